"""Many parameters at once, some of which may be Python numbers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from itertools import chain
from operator import is_, itemgetter
from typing import Any

import numpy as np

from ..common.busy import exclusive
from ..common.signals import deferred_signals
from ._update import RuleUpdate, as_dtype_of, step_array

Write = Callable[[Sequence[Any], Sequence[Any]], Iterator[None]]
"""``write(targets, values)`` puts values where they belong, one with each item that is asked for."""

_run = deque[Any](maxlen=0).extend  # asks an iterator for all its items and drops them, in C
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


class Joint:
    """States of numbers side by side in one array; entries of the public dicts are views of it.

    An entry that is none is taken over when its key comes by: a new number, or what the user has put there.
    """

    def __init__(self, states: Sequence[dict[Hashable, Any]], room: int):
        self.array = np.zeros((len(states), room))
        self.columns: Any = slice(0, 0)  # of `_keys`
        self._states, self._column = states, dict[Hashable, int]()
        self._views: list[dict[Hashable, Any]] = [{} for _ in states]
        self._keys: list[Any] | None = None  # those of the last call
        self._pick: Callable[[dict[Hashable, Any]], tuple[Any, ...]]
        self._picked: list[tuple[Any, ...]] = []  # their views

    def holds(self, keys: list[Any]) -> bool:
        """Whether `keys` have columns, after they were given some; False where there is no room."""
        if keys != self._keys:
            self._keys = None
            for key in keys:
                if key not in self._column:
                    if len(self._column) == self.array.shape[1]:
                        return False
                    self._column[key] = len(self._column)
            columns = [self._column[key] for key in keys]
            in_order = columns == list(range(columns[0], columns[0] + len(keys)))
            self.columns = slice(columns[0], columns[-1] + 1) if in_order else np.array(columns)
            self._pick = itemgetter(*keys) if len(keys) > 1 else lambda states: (states[keys[0]],)
            self._take_over(keys)
            self._keys = keys
        else:
            try:
                picked = map(self._pick, self._states)
                if all(map(is_, chain(*picked), chain(*self._picked))):
                    return True
            except KeyError:
                pass
            self._take_over(keys)
        return True

    def _take_over(self, keys: list[Any]) -> None:
        for row, states, views in zip(self.array, self._states, self._views, strict=True):
            for key in keys:
                if key not in states or states[key] is not views.get(key):
                    value, i = states.get(key, 0.0), self._column[key]
                    if np.shape(value):
                        raise ValueError(f"a state of {key!r}, a number, has the shape {np.shape(value)}")
                    row[i] = value
                    states[key] = views[key] = row[i : i + 1].reshape(())
        self._picked = [self._pick(views) for views in self._views]

    def copy(self) -> Any:
        """The states of those keys."""
        if isinstance(self.columns, slice):
            return self.array[:, self.columns].copy()
        return self.array.take(self.columns, 1)


class Collection:
    """States by key, a count of steps, and one fused update over any choice of keys.

    A step happens whole, whatever a signal's handler raises: states, values and the count are written by one call of C,
    within which no handler runs, or with signals deferred.

    Parameters
    ----------
    rule : str
        A name in `fastoptim.rules.RULES`.
    states : sequence of dict
        One for each state of the rule, by key. They are public: whatever is put into them counts.
    """

    def __init__(self, rule: str, states: Sequence[dict[Hashable, Any]]):
        self.count = [0]
        self._rule, self._states, self._busy = rule, states, list[int]()
        self._update = RuleUpdate(rule, counter=self.count)
        self._joint = Joint(states, 0)

    def step(
        self,
        keys: list[Any],
        targets: Sequence[Any],
        values: Sequence[Any],
        grads: Sequence[Any],
        coefficients: tuple[float, ...],
        names: Sequence[Any],
        write: Write,
        plain: bool,
    ) -> None:
        """Update arrays in place, and `write` what numbers have become to their `targets`; errors use `names`.

        `plain` says that `write` runs no Python code, where a signal could get in.
        """
        if _NUMBERS.issuperset(map(type, values)) and _GRADIENTS.issuperset(map(type, grads)):
            self._step_numbers(keys, targets, values, grads, coefficients, write, plain)
            return
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
                elif not isinstance(states[key], np.ndarray):
                    new[key] = as_array(states[key])
                used.append(new[key] if key in new else states[key])
        numbers = [i for i, (p, value) in enumerate(zip(params, values, strict=True)) if p is not value]
        if not numbers and not any(made):
            self._update(tuple(params), gradients, tuple(used), coefficients, names=names)
            return
        with deferred_signals():
            self._update(tuple(params), gradients, tuple(used), coefficients, names=names)
            for states, new in zip(self._states, made, strict=True):
                states.update(new)
            _run(write([targets[i] for i in numbers], [as_given(params[i], values[i]) for i in numbers]))

    def _step_numbers(
        self,
        keys: list[Any],
        targets: Sequence[Any],
        values: Sequence[Any],
        grads: Sequence[Any],
        coefficients: tuple[float, ...],
        write: Write,
        plain: bool,
    ) -> None:
        """The same for Python numbers alone, in one array."""
        with exclusive(self._busy):
            p, g = np.array(values, np.float64), np.array(grads, np.float64)
            states: tuple[Any, ...] = ()
            writes: Iterator[None] = map(self.count.__setitem__, (0,), (self.count[0] + 1,))
            if self._states:
                if not self._joint.holds(keys):
                    self._joint = Joint(self._states, max(16, 2 * len({*keys, *chain(*self._states)})))
                    self._joint.holds(keys)
                columns, array = self._joint.columns, self._joint.array
                new = self._joint.copy()
                states, writes = tuple(new), chain(map(array.__setitem__, ((slice(None), columns),), (new,)), writes)
            step_array(self._rule, p, g, states, coefficients)
            writes = chain(write(targets, p.tolist()), writes)
            if plain:
                _run(writes)
            else:
                with deferred_signals():
                    _run(writes)
