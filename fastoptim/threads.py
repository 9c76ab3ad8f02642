"""How many threads a step may use."""

from __future__ import annotations

import math
import os
import sys
from functools import cache


def usable_cores() -> int:
    """Cores that this process may use: its affinity mask, and the CPU quota of its control group if it has one."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on this platform
        cores = os.cpu_count() or 1
    return min(cores, _quota())


@cache
def _quota() -> int:
    """Whole cores that the control group grants this process."""
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:
            quota, period = file.read().split()
        return max(1, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):  # no such file, or "max"
        return sys.maxsize


def _from_environment() -> int | None:
    text = os.environ.get("FASTOPTIM_NUM_THREADS")
    if text:
        if not text.strip().isdigit() or int(text) < 1:
            raise ValueError(f"FASTOPTIM_NUM_THREADS must be a positive integer, got {text!r}")
        return int(text)
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # OpenMP allows one number per nesting level
    return int(first) if first.isdigit() and int(first) > 0 else None


def resolve_threads(threads: int | None) -> int:
    """`threads`, else FASTOPTIM_NUM_THREADS, else OMP_NUM_THREADS, else the usable cores."""
    if threads is None:
        return _from_environment() or usable_cores()
    if isinstance(threads, bool) or not isinstance(threads, int):
        raise TypeError(f"threads must be an int or None, got {type(threads).__name__}")
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    return threads
