"""Ends training on Ctrl-C and SIGTERM."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
from typing import Any

from .loop import Loop

# Signals and the handlers that are replaced: one of the user's own stays.
_DEFAULTS: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


class StopOnSignals:
    """End training after the step in which Ctrl-C or SIGTERM comes, at once if another follows; part of `Loop`.

    It stands after the users' callbacks and validation, so that they see a step like any other, and before checkpoints.
    """

    def __init__(self) -> None:
        self._loop: Loop | None = None
        self._replaced: list[int] = []
        self._seen = False

    def begin(self, loop: Loop) -> None:
        self._loop = loop
        if threading.current_thread() is threading.main_thread():  # where handlers can be set, and run
            for number, default in _DEFAULTS.items():
                if signal.getsignal(number) == default:
                    self._replaced.append(number)
                    signal.signal(number, self._handle)

    def _handle(self, number: int, frame: Any) -> None:
        if self._seen or self._loop is None:
            self._put_back()
            signal.signal(number, _DEFAULTS[number])  # `deferred_signals` may have put this handler back since
            signal.raise_signal(number)
        self._seen = True
        if self._loop is not None:
            self._loop.call_soon()
        if number == signal.SIGINT and sys.stderr is not None and sys.stderr.isatty():
            os.write(2, b"\nending after this step; once more: at once\n")  # unlike print, it may come in between

    def due(self, loop: Loop) -> float:
        return math.inf

    def __call__(self, loop: Loop) -> None:
        if self._seen and (loop.asked or loop.ranks.size == 1):  # else another process may not know of it
            loop.stop("interrupted")

    def _put_back(self) -> None:
        while self._replaced:
            number = self._replaced[-1]
            signal.signal(number, _DEFAULTS[number])
            self._replaced.pop()

    def end(self, loop: Loop) -> None:
        self._put_back()
        self._loop = None
        if loop.reason is not None and any(loop.ranks.every(self._seen)):  # also where training was ending anyway
            loop.reason = "interrupted"
