"""How many threads a step may use."""

from __future__ import annotations

import math
import os
import sys
from functools import cache
from operator import index
from typing import Any

MOST = 1024  # what the pool of the C backend serves


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
        if not text.strip().isdecimal() or not 1 <= int(text) <= MOST:
            raise ValueError(f"FASTOPTIM_NUM_THREADS must be an integer from 1 to {MOST}, got {text!r}")
        return int(text)
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # OpenMP allows one number per nesting level
    return min(int(first), MOST) if first.isdecimal() and int(first) > 0 else None


def resolve_threads(threads: Any) -> int:
    """`threads`, else FASTOPTIM_NUM_THREADS, else OMP_NUM_THREADS, else the usable cores."""
    if threads is None:
        return _from_environment() or min(usable_cores(), MOST)
    no_bool: Any = None if isinstance(threads, bool) else threads
    try:
        number = index(no_bool)
    except TypeError as error:
        raise TypeError(f"threads must be an int or None, got {type(threads).__name__}") from error
    if not 1 <= number <= MOST:
        raise ValueError(f"threads must be from 1 to {MOST}, got {number}")
    return number
