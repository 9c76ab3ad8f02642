"""Ranks on two hosts, simulated by network namespaces, have the bits of one process.

    python tests/proofs/mpi_hosts.py            # needs Linux and root; exit status 77 says that it was not allowed

Two network namespaces are made, joined by one virtual cable, with host names and shared memory of their own. MPI starts
two ranks in each, which find themselves on two hosts and do what ``mpi_bits.py`` does; what went over the cable is
counted.
"""

from __future__ import annotations

import argparse
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.support.hosts import NotAllowed, two_hosts

BITS = Path(__file__).with_name("mpi_bits.py")


def where() -> None:
    """What each rank does first: say where it is."""
    from mpi4py import MPI

    local = MPI.COMM_WORLD.Split_type(MPI.COMM_TYPE_SHARED)
    sys.stdout.write(f"rank {MPI.COMM_WORLD.rank} on {socket.gethostname()}, {local.size} ranks there\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--every", type=int, default=9, help="take every Nth case only")
    parser.add_argument("--where", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.where:
        where()
        return 0
    try:
        with two_hosts() as hosts:
            done = hosts.run(2, __file__, "--where")
            assert done.returncode == 0, done.stderr[-3000:]
            found = sorted(done.stdout.split("\n")[:4])
            expected = [f"rank {rank} on {hosts.names[rank // 2]}, 2 ranks there" for rank in range(4)]
            assert found == expected, found
            before = hosts.bytes_sent()
            done = hosts.run(2, BITS, "--worker", "--steps", options.steps, "--every", options.every)
            assert done.returncode == 0, done.stderr[-3000:]
            sent = hosts.bytes_sent() - before
            assert sent > 1e6, f"only {sent} bytes went over the cable"
    except NotAllowed as reason:
        print(reason)
        return 77
    print(f"{done.stdout.strip()}; 2 hosts of 2 ranks, {sent:,} bytes from one to the other")
    return 0


if __name__ == "__main__":
    sys.exit(main())
