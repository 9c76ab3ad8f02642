"""Run functions in other threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def in_threads(work: Callable[[Any], Any], arguments: Sequence[Any]) -> list[Any]:
    """What `work` returns for each argument, in a thread of its own; raises what one of them has raised."""
    with ThreadPoolExecutor(len(arguments)) as pool:
        return list(pool.map(work, arguments))


def in_another_thread(work: Callable[[], Any]) -> Any:
    """What `work` returns, or raises, in a new thread."""
    return in_threads(lambda _: work(), [None])[0]
