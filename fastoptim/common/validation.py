"""Checks of plain arguments: numbers, counts, flags, choices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import index
from typing import Any

import numpy as np


def real(name: str, value: Any, low: float = -math.inf, below: float = math.inf) -> float:
    """`value` as a float with ``low <= value < below``; TypeError or ValueError that names it."""
    try:
        number = float(value + 0)  # also refuses strings, which float() reads
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be a real number, got {value!r}") from error
    except OverflowError:
        number = math.inf if value > 0 else -math.inf
    if not (math.isfinite(number) and low <= number < below):
        limit = f">= {low:g} and finite" if math.isinf(below) else f"in [{low:g}, {below:g})"
        raise ValueError(f"{name} must be {'finite' if math.isinf(low) else limit}, got {number}")
    return number


def count(name: str, value: Any, low: int = 1) -> int:
    """`value` as an int with ``low <= value < 2**63``; TypeError or ValueError that names it."""
    no_bool: Any = None if isinstance(value, bool) else value
    try:
        number = index(no_bool)
    except TypeError as error:
        raise TypeError(f"{name} must be an int, got {value!r}") from error
    if number < low:
        raise ValueError(f"{name} must be at least {low}, got {number}")
    if number >= 1 << 63:
        raise ValueError(f"{name} must be below 2**63")
    return number


def flag(name: str, value: Any) -> bool:
    """`value` if it is a bool."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """`value` if it is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {list(choices)}, got {value!r}")
    return value


def norm_limit(value: Any, name: str = "max_norm") -> float:
    """An upper bound of a norm, validated: >= 0, and infinity means no limit."""
    return math.inf if value == math.inf else real(name, value, 0.0)


def step_options(grad_scale: Any, max_norm: Any, skip_nonfinite: Any) -> tuple[float, float | None, bool]:
    """The options of a step, validated."""
    limit = None if max_norm is None else norm_limit(max_norm)
    return real("grad_scale", grad_scale), limit, flag("skip_nonfinite", skip_nonfinite)
