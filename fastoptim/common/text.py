"""Texts from files and from others, made fit to be shown."""

from __future__ import annotations


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
