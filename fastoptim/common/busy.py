"""Keeps two threads, or a caller within a call, out of one object."""

from __future__ import annotations

import sys
from contextlib import suppress
from threading import get_ident
from types import FrameType
from typing import Any

BUSY = "in the middle of a step already: of another thread, of a caller further up, or since a fork during that step"


class _Turn:
    """A `with` block of `exclusive`: which thread is in it, and in which frame it stands."""

    __slots__ = ("frame", "thread")

    def __init__(self, thread: int, frame: FrameType) -> None:
        self.thread, self.frame = thread, frame


# Whose turn it is comes first: a block, or the number of a thread, as `Optimizer.step` states this once more, for
# speed. Lists are atomic and quicker than locks, and Ctrl-C can land nowhere between an entry's being appended and the
# `finally` that removes it; only where a program is traced can it land before the entry.
Busy = list[Any]


def check_free(busy: Busy) -> None:
    """RuntimeError if somebody is at work.

    A signal's handler may raise right before ``__exit__``, which then never runs: a block of this thread that is not
    among its callers is over.
    """
    thread = get_ident()
    for turn in list(busy):
        if type(turn) is _Turn and turn.thread == thread and not _calls_this(turn.frame):
            with suppress(ValueError):
                busy.remove(turn)
    if busy:
        raise RuntimeError(BUSY)


def _calls_this(frame: FrameType) -> bool:
    caller: FrameType | None = sys._getframe(1)
    while caller is not None and caller is not frame:
        caller = caller.f_back
    return caller is not None


class exclusive:
    """Hold `busy` in a with block, or RuntimeError.

    Who only reads may also come from within a block, from a signal's handler for example.
    """

    __slots__ = ("_busy", "_reading", "_turn")

    def __init__(self, busy: Busy, reading: bool = False) -> None:
        self._busy, self._reading = busy, reading

    def __enter__(self) -> None:
        busy, thread = self._busy, get_ident()
        self._turn: _Turn | None = None
        if busy:
            if self._reading and any(getattr(turn, "thread", turn) == thread for turn in busy):
                return
            check_free(busy)
        turn = self._turn = _Turn(thread, sys._getframe(1))
        try:
            busy.append(turn)
            if busy[0] is not turn:
                raise RuntimeError(BUSY)
        except BaseException:
            with suppress(ValueError):
                busy.remove(turn)
            raise

    def __exit__(self, *_: object) -> None:
        if self._turn is not None:
            self._busy.remove(self._turn)
