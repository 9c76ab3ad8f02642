"""Marks what is public, so that code can move: pickles, tracebacks and reprs then name the path that stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Public = TypeVar("Public", bound=Callable[..., Any])


def public(thing: Public) -> Public:
    """Say that a class or function belongs to ``fastoptim`` itself, whichever module it is written in."""
    thing.__module__ = "fastoptim"
    return thing
