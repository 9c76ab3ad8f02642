"""What ends training from outside."""

from __future__ import annotations

import math

from .loop import Loop


class StopTogether:
    """If one process's callback has called `Loop.stop`, stop all; part of `Loop`, after the callbacks."""

    def __init__(self, callbacks: bool):
        self._callbacks = callbacks

    def begin(self, loop: Loop) -> None:
        self(loop)

    def due(self, loop: Loop) -> float:
        return 0 if self._callbacks else math.inf

    def __call__(self, loop: Loop) -> None:
        loop.reason = next((reason for reason in loop.ranks.every(loop.reason) if reason), None)
