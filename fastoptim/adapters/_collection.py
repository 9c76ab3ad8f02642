"""Many parameters at once, some of which may be Python numbers."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from ..common.busy import exclusive
from ._update import RuleUpdate, as_dtype_of, step_array

_NUMBERS = {float, int}
_GRADIENTS = {*_NUMBERS, np.float64}


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

    def __init__(self, rule: str, states: Sequence[dict[Hashable, Any]]):
        self._rule, self._update, self._busy = rule, RuleUpdate(rule), list[int]()
        self._states = states

    def step(
        self,
        keys: Sequence[Hashable],
        values: Sequence[Any],
        grads: Sequence[Any],
        coefficients: tuple[float, ...],
        names: Sequence[Any],
    ) -> list[Any]:
        """Update; returns what the values have become: the same arrays, or new numbers. Errors use `names`."""
        if _NUMBERS.issuperset(map(type, values)) and _GRADIENTS.issuperset(map(type, grads)):
            return self._step_numbers(keys, values, grads, coefficients)
        params = [as_array(value) for value in values]
        for name, p in zip(names, params, strict=True):
            if not isinstance(p, np.ndarray):
                raise TypeError(f"parameter {name!r}: expected a NumPy array or a number, got {type(p).__name__}")
        gradients = tuple(as_dtype_of(p, g, name) for p, g, name in zip(params, grads, names, strict=True))
        made: list[dict[Hashable, Any]] = [{} for _ in self._states]  # kept once a step has taken them
        used = []
        for key, p in zip(keys, params, strict=True):
            for states, new in zip(self._states, made, strict=True):
                if key not in states:
                    new[key] = np.zeros_like(p)
                elif type(states[key]) is float:  # kept by `_step_numbers`
                    new[key] = np.array(states[key])
                used.append(new[key] if key in new else states[key])
        self._update(tuple(params), gradients, tuple(used), coefficients, names=names)
        for states, new in zip(self._states, made, strict=True):
            states.update(new)
        return [as_given(p, value) for p, value in zip(params, values, strict=True)]

    def _step_numbers(
        self, keys: Sequence[Hashable], values: Sequence[Any], grads: Sequence[Any], coefficients: tuple[float, ...]
    ) -> list[Any]:
        """The same for Python numbers alone, in one array; their states are numbers, too."""
        with exclusive(self._busy):
            p, g = np.array(values, np.float64), np.array(grads, np.float64)
            used = tuple([np.array([states.get(key, 0.0) for key in keys], np.float64) for states in self._states])
            step_array(self._rule, p, g, used, coefficients)
            for states, new in zip(self._states, used, strict=True):
                states.update(zip(keys, new.tolist(), strict=True))
            new_values: list[Any] = p.tolist()
            return new_values
