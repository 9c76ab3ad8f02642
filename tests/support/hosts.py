"""Two hosts for MPI ranks, simulated by network namespaces: they share no network but one (virtual) cable."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.support import mpi

ADDRESSES = ("10.231.7.1", "10.231.7.2")

# What stands in for ssh: it runs a command in the namespace of the host that it is given.
LAUNCHER = """#!/bin/sh
while case "$1" in -*) true;; *) false;; esac; do shift; done
host=$1
shift
case $host in
{cases}
*) exit 1 ;;
esac
exec ip netns exec $namespace unshare --ipc --uts sh -c "hostname $namespace; exec $*"
"""


class NotAllowed(Exception):
    """Namespaces cannot be made here."""


class TwoHosts:
    """What `two_hosts` yields."""

    def __init__(self, names: list[str], launcher: Path):
        self.names, self._launcher = names, launcher

    def run(
        self, ranks_per_host: int, *arguments: object, timeout: float = 120, **extra: str
    ) -> subprocess.CompletedProcess[str]:
        """Run ``python arguments...`` in so many processes on each host, and wait."""
        plain = mpi.command(2 * ranks_per_host, *arguments)
        options = ["-launcher", "ssh", "-launcher-exec", str(self._launcher), "-ppn", str(ranks_per_host)]
        here = ["ip", "netns", "exec", self.names[0], "unshare", "--ipc", "--uts"]
        here += ["sh", "-c", f'hostname {self.names[0]}; exec "$@"', "sh"]
        command = [*here, plain[0], *options, "-hosts", ",".join(ADDRESSES), *plain[1:]]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=timeout,
            env=mpi.environment(UCX_TLS="tcp", UCX_NET_DEVICES="cable", **extra),
            check=False,
        )

    def bytes_sent(self) -> int:
        """What the first host has sent to the other so far."""
        table = _do("ip", "netns", "exec", self.names[0], "cat", "/proc/net/dev")
        line = next(line for line in table.split("\n") if line.strip().startswith("cable:"))
        return int(line.split()[9])


@contextlib.contextmanager
def two_hosts(rate: str | None = None) -> Iterator[TwoHosts]:
    """Two namespaces and the cable between them, which carries `rate` ("1gbit") each way, or what it can.

    Raises
    ------
    NotAllowed
        Says why.
    """
    if sys.platform != "linux" or os.geteuid() != 0:
        raise NotAllowed("network namespaces need Linux and root")
    for tool in ("ip", "unshare", *(("tc",) if rate else ())):
        if shutil.which(tool) is None:
            raise NotAllowed(f"no {tool!r} here (Debian packages iproute2 and util-linux)")
    names = [f"fo{os.getpid()}{letter}" for letter in "ab"]
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        try:
            for name in names:
                _do("ip", "netns", "add", name)
                stack.callback(subprocess.run, ["ip", "netns", "del", name], check=False)
            _do("ip", "-n", names[0], "link", "add", "cable", "type", "veth", "peer", "cable", "netns", names[1])
            for name, address in zip(names, ADDRESSES, strict=True):
                _do("ip", "-n", name, "addr", "add", f"{address}/24", "dev", "cable")
                _do("ip", "-n", name, "link", "set", "cable", "up")
                _do("ip", "-n", name, "link", "set", "lo", "up")
                if rate:
                    limit = ["rate", rate, "burst", "256kb", "latency", "50ms"]
                    _do("tc", "-n", name, "qdisc", "add", "dev", "cable", "root", "tbf", *limit)
        except subprocess.CalledProcessError as error:
            raise NotAllowed(f"{' '.join(error.cmd)}: {error.stderr.strip()}") from error
        _wait_for_cable(names)
        launcher = folder / "launcher"
        pairs = zip(ADDRESSES, names, strict=True)
        launcher.write_text(LAUNCHER.format(cases="\n".join(f"{a}) namespace={name} ;;" for a, name in pairs)))
        launcher.chmod(0o755)
        yield TwoHosts(names, launcher)


def _wait_for_cable(names: list[str]) -> None:
    """MPI looks for networks once, when it starts."""
    deadline = time.monotonic() + 10
    while any("state UP" not in _do("ip", "-n", name, "link", "show", "cable") for name in names):
        if time.monotonic() > deadline:
            raise NotAllowed("the virtual cable did not come up")
        time.sleep(0.05)


def _do(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
