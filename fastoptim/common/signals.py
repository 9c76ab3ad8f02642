"""Makes signals wait: `deferred_signals` until arrays are written, `Interrupts` until the user's code runs.

What waits is the handler in Python. Blocking the signal (``pthread_sigmask``) would not do: one that is sent to the
process goes to any thread that does not block it, a thread of OpenBLAS for one, and Python runs the handler in the main
thread all the same. So the handlers are replaced. What the operating system does with the signal stays as it was, as
``signal.siginterrupt(number, False)`` or ``faulthandler.register(number, chain=True)`` have set it, which a mere
``signal.signal`` would undo.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from threading import current_thread, main_thread
from typing import Any

try:  # the functions in C: the public ones turn numbers into enums, which takes ten times as long
    from _signal import getsignal as _getsignal
    from _signal import signal as _signal
except ImportError:
    _getsignal, _signal = signal.getsignal, signal.signal

try:
    import ctypes

    _sigaction: Any = ctypes.PyDLL(None).sigaction
    _Action: Any = ctypes.c_char * 512  # struct sigaction, opaque; no system's is as large
except (ImportError, AttributeError, OSError, TypeError):  # no ctypes, or Windows, whose signals have no dispositions
    _sigaction = None

# On Windows, signal.Signals also holds events (0 and 1) that no handler can be asked for.
_NUMBERS = tuple(sorted(int(n) for n in signal.Signals if n in signal.valid_signals()))

Handler = Callable[[int, Any], Any]
# Where handler, mask, flags and restorer are the first 16 bytes of struct sigaction and the 16 from 136 on.
_LAID_OUT = sys.platform == "linux" and sys.maxsize > 2**32 and os.uname().machine in ("x86_64", "aarch64")
_usual: set[bytes] = set()  # dispositions that setting a handler in Python gives, and so keeps


def _said(action: Any) -> bytes:
    """What a disposition says: glibc fills the rest with what was on its stack."""
    said: bytes = action[:16] + action[136:152] if _LAID_OUT else action.raw
    return said


def disposition(number: int) -> Any:
    """What the operating system does when a signal comes, opaque; None if that is usual or cannot be asked."""
    if _sigaction is None:
        return None
    action = _Action()
    return action if _sigaction(number, None, action) == 0 and _said(action) not in _usual else None


def set_handler(number: int, handler: Handler, action: Any) -> None:
    """Set a signal's handler in Python, and its `disposition` to what it was before."""
    _signal(number, handler)
    if action is not None:
        found = disposition(number)
        if found is not None and _said(found) == _said(action):
            _usual.add(_said(action))
        else:
            _sigaction(number, action, None)


class deferred_signals:
    """Make the handlers of signals that come in a ``with`` block, such as that of Ctrl-C, run right after it.

    However often a signal comes, its handler runs once, as if the operating system had blocked the signal. All handlers
    run, whatever others raise; what the last one raises has the others' exceptions as its context. Signals without a
    handler in Python do what they always do. In other threads than the main one, where no handler ever runs, nothing is
    done.
    """

    __slots__ = ("_actions", "_came", "_handlers", "_left", "_over")

    def __enter__(self) -> None:
        self._came: dict[int, Any] = {}
        self._over = False
        self._handlers: dict[int, Handler] = {}
        if current_thread() is main_thread():  # where handlers run
            self._handlers = {n: handler for n in _NUMBERS if callable(handler := _getsignal(n))}
        self._left = list(self._handlers)
        self._actions = {number: disposition(number) for number in self._left}
        try:
            for number in self._left:
                set_handler(number, self._collect, self._actions[number])
        except BaseException:  # a handler that was not replaced yet has raised, and may at once do so again,
            self._over = True  # also before `_restore` says so
            self._restore()
            raise

    def __exit__(self, *exception: Any) -> None:
        try:
            self._restore()
        finally:
            self._deliver()

    def _collect(self, number: int, frame: Any) -> None:
        if not self._over:
            self._came.setdefault(number, frame)
            return
        # Two handlers have raised within a microsecond while the handlers were put back, and this one was not.
        handler = self._handlers[number]
        set_handler(number, handler, self._actions[number])
        handler(number, frame)

    def _restore(self) -> None:
        """Put the handlers back; one that is back may run before the next is, and raise."""
        self._over = True
        try:
            while self._left:
                number = self._left[-1]
                set_handler(number, self._handlers[number], self._actions[number])
                self._left.pop()
        except BaseException:
            self._restore()
            raise

    def _deliver(self) -> None:
        """Call the handlers of the signals that came, in their order; as deep as there are kinds of signals."""
        if self._came:
            number = next(iter(self._came))
            frame = self._came.pop(number)
            try:
                self._handlers[number](number, frame)
            finally:
                self._deliver()


class Interrupts:
    """Let Ctrl-C through only while open, at most once each time, and whatever is left over on leaving."""

    def __init__(self) -> None:
        self._open = False
        self._pending: tuple[Any, ...] | None = None
        self._previous: Any = None

    def __enter__(self) -> Interrupts:
        previous = signal.getsignal(signal.SIGINT)
        if current_thread() is main_thread() and callable(previous):
            self._previous = previous
            self._action = disposition(signal.SIGINT)
            set_handler(signal.SIGINT, self._handle, self._action)
        return self

    def _handle(self, *args: Any) -> None:
        if self._open:
            self._open = False
            self._previous(*args)
        else:
            self._pending = args

    def open(self) -> None:
        """Let Ctrl-C through from here on, also one that came before."""
        self._open = True
        if self._pending is not None:
            args, self._pending, self._open = self._pending, None, False
            self._previous(*args)

    def close(self) -> None:
        """Make Ctrl-C wait again."""
        self._open = False

    def __exit__(self, *_: Any) -> None:
        if self._previous is not None:
            set_handler(signal.SIGINT, self._previous, self._action)
            if self._pending is not None:
                self._previous(*self._pending)
