"""What a reader needs to know about the machine, and how quiet it was."""

from __future__ import annotations

import datetime
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from .. import __version__
from ..backends import BACKENDS, available, get_backend
from ..common.threads import usable_cores

LIBRARIES = (
    "numpy", "numba", "llvmlite", "cffi", "torch", "jax", "jaxlib", "optax", "numexpr", "thinc", "scikit-learn",
)  # fmt: skip
VARIABLES = (
    "FASTOPTIM_NUM_THREADS", "FASTOPTIM_BACKEND", "FASTOPTIM_ISA", "OMP_NUM_THREADS", "OMP_PROC_BIND", "OMP_PLACES",
    "OMP_WAIT_POLICY", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "MALLOC_ARENA_MAX",
)  # fmt: skip


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def output(*command: str) -> str:
    """What a command prints, or nothing."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def without_paths(text: str) -> str:
    """The text with every absolute path cut down to its last part: a report is for forwarding."""
    return re.sub(r"(?<![\w.:/])/(?:[\w.+@~-]+/)+([\w.+@~-]+)", r"\1", text)


def cpu_model() -> str:
    match = re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return match[1] if match else output("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor()


def caches() -> dict[str, int]:
    """Bytes of one core's caches: ``{"L1": ..., "L2": ..., "L3": ...}``, as far as the system tells."""
    sizes = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        kind, size = _read(f"{folder}/type"), _read(f"{folder}/size")
        match = re.fullmatch(r"(\d+)([KM])", size)
        if kind in ("Data", "Unified") and match:
            sizes[f"L{_read(f'{folder}/level')}"] = int(match[1]) * {"K": 1 << 10, "M": 1 << 20}[match[2]]
    return sizes


def memory_field(name: str) -> int:
    match = re.search(rf"^{name}:\s+(\d+) kB", _read("/proc/meminfo"), re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


def available_memory() -> int:
    """Bytes that can be used without swapping; 4 GiB where the system does not tell."""
    return memory_field("MemAvailable") or 4 << 30


def level(resident_bytes: int, threads: int, sizes: dict[str, int]) -> str:
    """The smallest memory that holds so many bytes: "L1", "L2", "L3" or "memory". L1 and L2 count once per thread."""
    for name in ("L1", "L2", "L3"):
        size = sizes.get(name, 0) * (threads if name != "L3" else 1)
        if resident_bytes <= size:
            return name
    return "memory"


def _commit() -> str:
    here = str(Path(__file__).resolve().parent)
    # An installed package may lie inside somebody else's repository: only one that tracks this file counts.
    if not output("git", "-C", here, "ls-files", Path(__file__).name):
        return "not from a repository"
    commit = output("git", "-C", here, "rev-parse", "--short=12", "HEAD")
    changed = output("git", "-C", here, "status", "--porcelain", "--untracked-files=no", "--", "..", "../../csrc")
    return commit + (" with changes" if changed else "")


def versions() -> dict[str, str]:
    found = {"fastoptim": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def backends() -> dict[str, dict[str, Any]]:
    """Each backend with what it tells about itself, or why it is missing."""
    found: dict[str, dict[str, Any]] = {}
    for name in BACKENDS:
        reason = available(name)
        if reason is None:
            found[name] = {key: without_paths(str(value)) for key, value in get_backend(name).info().items()}
        else:
            found[name] = {"missing": without_paths(reason)}
    return found


def describe() -> dict[str, Any]:
    """The header of a report."""
    huge_pages = re.findall(r"\[(\w+)\]", _read("/sys/kernel/mm/transparent_hugepage/enabled"))
    os_release = re.search(r'^PRETTY_NAME="?([^"\n]+)', _read("/etc/os-release"), re.MULTILINE)
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "caches": caches(),
        "memory_bytes": memory_field("MemTotal"),
        "huge_pages": huge_pages[0] if huge_pages else "unknown",
        "gpu": output("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader") or "none",
        "system": f"{platform.system()} {platform.release()}, {os_release[1] if os_release else platform.version()}",
        "architecture": platform.machine(),
        "versions": versions(),
        "backends": backends(),
        "threads": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "commit": _commit(),
    }


def _busy_seconds() -> float | None:
    """CPU seconds that all processes of the machine have used; None where the system does not tell."""
    fields = _read("/proc/stat").split("\n", 1)[0].split()
    if len(fields) < 9:
        return None
    user, nice, system, _idle, _wait, irq, soft, steal = (int(field) for field in fields[1:9])
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")


def _seconds_of(pids: Iterable[int]) -> float:
    """CPU seconds that these processes and this one have used."""
    times = os.times()
    total = times.user + times.system
    for pid in pids:
        fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
        if len(fields) > 12:
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


CLOCK_SLACK = 0.02  # the kernel counts in hundredths of a second, for the machine and for a process apart


class Watch:
    """Watches how much other processes use the machine while these ones work."""

    def __init__(self, pids: Iterable[int]):
        self.pids = list(pids)
        self.start, self.busy, self.own = time.monotonic(), _busy_seconds(), _seconds_of(self.pids)

    def others(self) -> float:
        """Share of the machine's CPU time that other processes have used since; 0 where the system does not tell."""
        busy = _busy_seconds()
        if busy is None or self.busy is None:
            return 0.0
        available = (time.monotonic() - self.start) * (os.cpu_count() or 1)
        used = (busy - self.busy) - (_seconds_of(self.pids) - self.own) - CLOCK_SLACK
        return min(1.0, max(0.0, used / available)) if available else 0.0


def load_average() -> float | None:
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
