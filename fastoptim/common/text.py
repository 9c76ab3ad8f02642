"""Texts from files and from others, made fit to be shown."""

from __future__ import annotations


def printable(text: str, keep: str = "") -> str:
    """Escape what a terminal might act on, but for `keep`: control characters, bidirectional marks, lone surrogates."""
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode("ascii") for c in text)
