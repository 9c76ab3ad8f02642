"""Decides how many threads a step may use; locks that outlive a fork."""

from __future__ import annotations

import math
import os
import sys
from _thread import RLock
from functools import cache
from operator import index
from typing import Any
from weakref import WeakSet

MOST = 1024  # what the thread pool of the C backend can start


def usable_cores() -> int:
    """Count the cores that this process may use, by its affinity mask and its control group's CPU quota."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on this platform
        cores = os.cpu_count() or 1
    return min(cores, _quota())


@cache
def _quota() -> int:
    """Count the whole cores that the control group grants this process."""
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:
            quota, period = file.read().split()
        return max(1, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):  # no such file, or "max"
        return sys.maxsize


def threads_from_environment() -> int | None:
    """Read FASTOPTIM_NUM_THREADS, or else OMP_NUM_THREADS; None if neither holds a number.

    ValueError if the first is set to something else than a number from 1 to `MOST`.
    """
    text = os.environ.get("FASTOPTIM_NUM_THREADS")
    if text:
        number = _parsed(text)
        if not 1 <= number <= MOST:
            shown = text if len(text) <= 40 else text[:40] + "..."
            raise ValueError(f"FASTOPTIM_NUM_THREADS must be an integer from 1 to {MOST}, got {shown!r}")
        return number
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]  # OpenMP allows one number per nesting level
    return min(_parsed(first), MOST) or None


def _parsed(text: str) -> int:
    """A number of any length, those above `MOST` as ``MOST + 1``; 0 for what is no number."""
    digits = text.strip()
    if not digits.isdecimal():
        return 0
    return min(int(digits[-9:]), MOST + 1) if not digits[:-9].strip("0") else MOST + 1


def resolve_threads(threads: Any) -> int:
    """Return `threads`, else FASTOPTIM_NUM_THREADS, else OMP_NUM_THREADS, else the usable cores."""
    if threads is None:
        return threads_from_environment() or min(usable_cores(), MOST)
    no_bool: Any = None if isinstance(threads, bool) else threads
    try:
        number = index(no_bool)
    except TypeError as error:
        raise TypeError(f"threads must be an int or None, got {type(threads).__name__}") from error
    if not 1 <= number <= MOST:
        raise ValueError(f"threads must be from 1 to {MOST}, got {number}")
    return number


class _Lock(RLock):  # type: ignore[misc]  # mypy alone calls it final
    # Python 3.14 runs signals' handlers when a function of C returns, so also between `RLock.__enter__` and the block.
    # No version does when an attribute has been read, or when a function of Python returns.
    _taken = property(RLock.__enter__)

    def __enter__(self) -> Any:  # type: ignore[override]
        return self._taken


_locks: WeakSet[Any] = WeakSet()


def fork_safe_lock() -> Any:
    """Make a lock for one thread at a time, which may take it again, that a forked child never waits for in vain.

    It is to be taken by ``with lock:`` and in no other way: then no signal's handler can raise between its being taken
    and the block, nor between the block and its release, which is done in C.

    A child of a fork has one thread. A lock that another thread of its parent held would never be released there, so
    the child begins with a free one; only what the forking thread itself holds stays held. What a lock guards must be
    usable wherever its holder may be cut off.
    """
    lock = _Lock()
    _locks.add(lock)
    return lock


def _begin_child() -> None:
    for lock in list(_locks):
        if not lock._is_owned():
            lock._at_fork_reinit()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_child)
