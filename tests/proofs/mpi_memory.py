"""Memory of sharded steps, measured: states per rank, and the peak of a step; arrays larger than 2^31 bytes too.

    python tests/proofs/mpi_memory.py                 # 1, 2 and 4 ranks, 8 million float32 parameters
    python tests/proofs/mpi_memory.py --large         # and one array of more than 2^31 bytes on 2 ranks (10 GB)

Every rank measures its own resident memory: before the arrays are made, and at its highest during Adam steps (the
kernel's VmHWM, reset before). The peak must be within 1.1 times parameters + gradients + its slice of the states +
`buffer_bytes`, for every kind of step; what the MPI library allocates counts, and must fit into the tenth. All buffers
together, of three buckets on their way, must fit into `buffer_bytes`; states must be 1 / ranks of the whole within one
block of 4096 elements.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import fastoptim as fo
from fastoptim.rules.norm import NORM_BLOCK
from tests.support import mpi

BOUND = 1.1


def resident(field: str) -> int:
    """Bytes that the kernel reports under "VmRSS" (now) or "VmHWM" (the highest since `reset_peak`)."""
    for line in Path("/proc/self/status").read_text().split("\n"):
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {field}")


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def state_bytes(opt: fo.distributed.ShardedOptimizer) -> int:
    entries = [part for parts in opt.state.values() for part in (parts if isinstance(parts, list) else [parts])]
    return sum(x.nbytes for entry in entries for x in entry.values() if isinstance(x, np.ndarray))


def measure(sizes: list[int], kind: type, clip: bool, overwrite: bool, buffer_bytes: int) -> None:
    """One row of the table, from the rank that needs most."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    warm = fo.distributed.ShardedOptimizer(kind, [np.ones(3, np.float32)], lr=0.1)  # loads and connects everything
    warm.step([np.ones(3, np.float32)], max_norm=1.0)
    comm.Barrier()
    before = resident("VmRSS")
    params = [np.full(n, 0.5, np.float32) for n in sizes]
    grads = [np.full(n, 0.25, np.float32) for n in sizes]
    opt = fo.distributed.ShardedOptimizer(kind, params, lr=0.1, overwrite_grads=overwrite, buffer_bytes=buffer_bytes)
    reset_peak()
    for _ in range(2):
        opt.step(grads, max_norm=1e9 if clip else None)
    peak = resident("VmHWM") - before
    expected = sum(x.nbytes for x in params + grads)
    assert all(p[0] == p[-1] and p[0] < 0.5 for p in params)

    own = state_bytes(opt)
    buffers = buffer_bytes if comm.size > 1 else 0
    assert comm.size == 1 or sum(b.nbytes for b in opt._buffers) <= buffer_bytes
    whole = comm.allreduce(own)
    slots = len(next(iter(opt.param_groups))["betas"]) if kind is fo.Adam else 0
    assert whole == slots * expected // 2, (whole, expected)
    share = whole / comm.size
    assert abs(own - share) <= slots * 4 * NORM_BLOCK, (own, share)
    ratio = comm.allreduce(peak / (expected + own + buffers), op=MPI.MAX)
    largest, least = comm.allreduce(own, op=MPI.MAX), comm.allreduce(own, op=MPI.MIN)
    if comm.rank == 0:
        step = "clipped, overwrite_grads" if clip and overwrite else "clipped" if clip else "plain"
        shares = f"{least / whole:.4f} to {largest / whole:.4f} of the states" if whole else "no states"
        print(
            f"{comm.size} ranks, {kind.__name__}, {sum(sizes):,} parameters, {step}: {shares} per rank; "
            f"peak {peak / 1e6:.0f} MB, {ratio:.3f} x (parameters + gradients + slice + {buffers / 2**20:g} MiB)",
            flush=True,
        )
    assert ratio <= BOUND, ratio


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--worker", nargs=4, metavar=("SIZES", "KIND", "CLIP", "OVERWRITE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        sizes, kind, clip, overwrite = options.worker
        buffer_bytes = 1 << 25 if "large" in sizes else 1 << 22
        numbers = [2**29 + 12345] if sizes == "large" else [int(n) for n in sizes.split(",")]
        measure(numbers, getattr(fo, kind), clip == "1", overwrite == "1", buffer_bytes)
        return 0
    sizes = "4000000,3,1000001,2999996"
    jobs = [(ranks, sizes, "Adam", *flags) for ranks in (1, 2, 4) for flags in (("0", "0"), ("1", "0"), ("1", "1"))]
    if options.large:
        jobs.append((2, "large", "SGD", "0", "0"))
    failures = 0
    for ranks, *arguments in jobs:
        done = mpi.run(ranks, __file__, "--worker", *arguments, timeout=600, FASTOPTIM_NUM_THREADS="1")
        print(done.stdout, end="", flush=True)
        if done.returncode:
            failures += 1
            print(f"{ranks} ranks {arguments}: FAILED\n{done.stderr[-3000:]}", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
