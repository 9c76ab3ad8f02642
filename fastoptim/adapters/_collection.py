"""Many parameters at once, some of which may be Python numbers."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from ._update import Update, as_dtype_of


def as_array(value: Any) -> Any:
    """An array as it is; a number as a 0-d float64 array (NumPy's scalars keep their dtype)."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.floating, np.integer)):
        return value
    dtype = value.dtype if isinstance(value, np.floating) else np.float64
    return np.array(value, dtype)


def as_given(array: Any, value: Any) -> Any:
    """What takes the place of `value` after `array`, made of it, was updated."""
    if isinstance(value, np.ndarray):
        return value
    return array[()] if isinstance(value, np.generic) else float(array)


class Collection:
    """States by key, and one fused update over any choice of keys."""

    def __init__(self, rule: str, states: Sequence[dict[Hashable, Any]], *, maximize: bool = False):
        self._update = Update(rule, maximize=maximize)
        self._states = states

    def step(
        self, keys: Sequence[Hashable], values: Sequence[Any], grads: Sequence[Any], coefficients: tuple[float, ...]
    ) -> list[Any]:
        """Update; returns what the values have become: the same arrays, or new numbers."""
        params = [as_array(value) for value in values]
        for key, p in zip(keys, params, strict=True):
            if not isinstance(p, np.ndarray):
                raise TypeError(f"parameter {key!r}: expected a NumPy array or a number, got {type(p).__name__}")
        kept = []
        for key, p in zip(keys, params, strict=True):
            for states in self._states:
                if key not in states:
                    states[key] = np.zeros_like(p)
                kept.append(states[key])
        gradients = tuple(as_dtype_of(p, g) for p, g in zip(params, grads, strict=True))
        self._update(tuple(params), gradients, tuple(kept), coefficients)
        return [as_given(p, value) for p, value in zip(params, values, strict=True)]
