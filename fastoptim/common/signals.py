"""Signals wait while arrays are being written."""

from __future__ import annotations

import signal
import threading
from threading import current_thread, main_thread
from typing import Any

try:  # the functions in C: the public ones turn numbers into enums, which takes ten times as long
    from _signal import getsignal as _getsignal
    from _signal import signal as _signal
except ImportError:
    _getsignal, _signal = signal.getsignal, signal.signal
_NUMBERS = tuple(map(int, signal.Signals))


class deferred:
    """Keep handlers in Python, that of Ctrl-C above all, from running in the middle of a step: they run right after.

    >>> with deferred():
    ...     pass
    """

    __slots__ = ("_handlers", "_numbers", "_seen")

    def __enter__(self) -> None:
        found = []
        if current_thread() is main_thread():  # where handlers run
            found = [(number, handler) for number in _NUMBERS if callable(handler := _getsignal(number))]
        self._numbers, self._handlers = [n for n, _ in found], [handler for _, handler in found]
        self._seen: list[Any] = []
        try:
            for number in self._numbers:
                _signal(number, self._collect)
        except BaseException:  # a handler that was not replaced yet has raised
            self._restore()
            raise

    def _collect(self, *arguments: Any) -> None:
        self._seen.append(arguments)

    def _restore(self) -> None:
        try:
            list(map(_signal, self._numbers, self._handlers))
        except BaseException:  # a handler that was back already has raised
            list(map(_signal, self._numbers, self._handlers))
            raise

    def __exit__(self, *exception: Any) -> None:
        try:
            self._restore()
        finally:
            self._deliver(dict(zip(self._numbers, self._handlers, strict=True)))

    def _deliver(self, handlers: dict[int, Any]) -> None:
        """Call each handler that was put off, whatever those before it raise."""
        if self._seen:
            number, frame = self._seen.pop(0)
            try:
                handlers[number](number, frame)
            finally:
                self._deliver(handlers)


class _Interrupts:
    """Ctrl-C is delivered only where `opened`, at most once each time, and whatever is left over on leaving."""

    def __init__(self) -> None:
        self._open = False
        self._pending: tuple[Any, ...] | None = None
        self._previous: Any = None

    def __enter__(self) -> _Interrupts:
        previous = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is threading.main_thread() and callable(previous):
            self._previous = previous
            signal.signal(signal.SIGINT, self._handle)
        return self

    def _handle(self, *args: Any) -> None:
        if self._open:
            self._open = False
            self._previous(*args)
        else:
            self._pending = args

    def open(self) -> None:
        self._open = True
        if self._pending is not None:
            args, self._pending, self._open = self._pending, None, False
            self._previous(*args)

    def close(self) -> None:
        self._open = False

    def __exit__(self, *_: Any) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            if self._pending is not None:
                self._previous(*self._pending)
