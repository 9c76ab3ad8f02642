"""Texts from files and from others, made fit to be shown."""

from __future__ import annotations

from collections.abc import Mapping
from types import CellType
from typing import Any

_MOST = 1000  # numbers in an array that is written out


def printable(text: str, keep: str = "") -> str:
    """Escape what a terminal might act on, but for `keep`: control characters, bidirectional marks, lone surrogates."""
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode("ascii") for c in text)


def reason(error: BaseException) -> str:
    """What went wrong, in one printable line."""
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    else:
        text = str(error) or type(error).__name__
    return printable(" ".join(text.split("\n")))


def in_words(value: Any, named: tuple[type, ...] = (), within: tuple[Any, ...] = ()) -> str | None:
    """A number, text or function, or a list or dict of these, in words; None for what may look otherwise next time.

    Of a function also what it has taken from where it was made. Objects of the types `named` are what they say.
    """
    if hasattr(value, "dtype") and getattr(value, "size", _MOST) < _MOST:
        value = value.tolist()  # a number, or a list
    if value is None or isinstance(value, (bool, int, float, str, *named)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        items = [in_words(item, named, within) for item in value]
        words = [item for item in items if item is not None]
        return f"[{', '.join(words)}]" if len(words) == len(items) else None
    if isinstance(value, Mapping):
        pairs = in_words([list(pair) for pair in value.items()], named, within)
        return None if pairs is None else f"dict({pairs})"
    if not callable(value) or any(value is each for each in within):
        return None
    names = getattr(getattr(value, "__code__", None), "co_freevars", ())
    cells = zip(names, getattr(value, "__closure__", None) or (), strict=False)
    found = {name: in_words(cell.cell_contents, named, (*within, value)) for name, cell in cells if cell != CellType()}
    own = [f"{name}={words}" for name, words in found.items() if words is not None]
    return str(getattr(value, "__qualname__", type(value).__name__)) + (f"({', '.join(own)})" if own else "")
