"""Keeps two threads, or a caller within a call, out of one object."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident

BUSY = "in the middle of a step already: of another thread, of a caller further up, or since a fork during that step"

# The thread that is at work comes first. Lists are atomic and quicker than locks, and Ctrl-C can land nowhere between a
# thread's being appended and the block that removes it. `Optimizer.step` states this once more, for speed.
Busy = list[int]


@contextmanager
def exclusive(busy: Busy, reading: bool = False) -> Iterator[None]:
    """Hold `busy`, or RuntimeError; who only reads may also come from within, from a signal's handler for example."""
    thread = get_ident()
    if busy:
        if not reading or thread not in busy:
            raise RuntimeError(BUSY)
        yield
        return
    try:
        busy.append(thread)
        if busy[0] != thread:
            raise RuntimeError(BUSY)
        yield
    finally:
        busy.remove(thread)
