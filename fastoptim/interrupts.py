"""Signals wait while arrays are being written."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

# Whose handlers, if they are Python functions, may raise or look at arrays; some platforms lack some. That of SIGINT is
# put back last, since it raises as soon as it is there.
_SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGTERM", "SIGALRM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGBREAK", "SIGINT")
    if hasattr(signal, name)
)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Keep handlers in Python, that of Ctrl-C above all, from running in the middle of a step: they run right after."""
    handlers = {}
    if threading.current_thread() is threading.main_thread():  # where handlers run
        handlers = {number: handler for number in _SIGNALS if callable(handler := signal.getsignal(number))}
    seen: list[int] = []
    try:
        for number in handlers:
            signal.signal(number, lambda number, frame: seen.append(number))
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in dict.fromkeys(seen):
            signal.raise_signal(number)
