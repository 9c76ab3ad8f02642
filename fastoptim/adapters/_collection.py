"""Many parameters at once, some of which may be Python numbers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from operator import is_, itemgetter
from typing import Any

import numpy as np

from ..arrays.checks import instead_of
from ..backends.base import count_of_steps
from ..common.busy import exclusive
from ..common.signals import deferred_signals
from ._update import RuleUpdate, gradient_of, step_array

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


class States:
    """An attribute that holds states by key: a dict, which may be changed or replaced; None empties it."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, optimizer: Any, owner: Any = None) -> Any:
        return self if optimizer is None else vars(optimizer).setdefault(self._name, {})

    def __set__(self, optimizer: Any, value: dict[Any, Any] | None) -> None:
        if value is not None and not isinstance(value, dict):
            raise TypeError(f"{self._name} must be a dict of states by key, or None, got {type(value).__name__}")
        vars(optimizer)[self._name] = {} if value is None else value


class Joint:
    """States of numbers side by side in one array; entries of the public dicts are views of it.

    An entry that is none is taken over when its key comes by: a new number, or what the user has put there.
    """

    def __init__(self, slots: int, room: int):
        self.array = np.zeros((slots, room))
        self.columns: Any = slice(0, 0)  # of `_keys`
        self._states: Sequence[dict[Hashable, Any]] = ()  # those of the last call
        self._column = dict[Hashable, int]()
        self._views: list[dict[Hashable, Any]] = [{} for _ in range(slots)]
        self._keys: list[Any] | None = None  # those of the last call
        self._pick: Callable[[dict[Hashable, Any]], tuple[Any, ...]]
        self._picked: list[tuple[Any, ...]] = []  # their views

    def holds(self, states: Sequence[dict[Hashable, Any]], keys: list[Any]) -> bool:
        """Whether `keys` have columns, after they were given some; False where there is no room."""
        self._states = states
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


def _put_back(write: Write, targets: Sequence[Any], values: Sequence[Any]) -> None:
    """Give each target the value that it had; one that refuses keeps what it has."""
    with deferred_signals():
        for target, value in zip(targets, values, strict=True):
            with suppress(Exception):
                _run(write([target], [value]))


class Collection:
    """A count of steps, and one fused update over any choice of keys, whose states lie in dicts.

    A step happens whole, whatever a signal's handler raises and whatever a target refuses: states, values and the count
    are written by one call of C, within which no handler runs, or with signals deferred; and are put back. `rule` and
    `called` are those of `RuleUpdate`.
    """

    def __init__(self, rule: str, called: tuple[str, ...] = ()):
        self.count = count_of_steps()
        self._rule, self._busy = rule, list[Any]()
        self._update = RuleUpdate(rule, counter=self.count, called=called)
        self._numbers = RuleUpdate(rule, called=called)
        self._joint = Joint(0, 0)

    def step(
        self,
        states: Sequence[dict[Hashable, Any]],
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

        `states` holds a dict for each state of the rule, by key: whatever the caller has put into them counts. `plain`
        says that `write` runs no Python code, where a signal could get in.
        """
        if _NUMBERS.issuperset(map(type, values)) and _GRADIENTS.issuperset(map(type, grads)):
            self._step_numbers(states, keys, targets, values, grads, coefficients, write, plain)
            return
        params = [as_array(value) for value in values]
        for name, p in zip(names, params, strict=True):
            if not isinstance(p, np.ndarray):
                got = f"{type(p).__name__}{instead_of(p)}"
                raise TypeError(f"parameter {name!r}: expected a NumPy array or a number, got {got}")
        gradients = [gradient_of(p, g, name) for p, g, name in zip(params, grads, names, strict=True)]
        made: list[dict[Hashable, Any]] = [{} for _ in states]  # kept once a step has taken them
        used = []
        for key, p, name in zip(keys, params, names, strict=True):
            for of, new in zip(states, made, strict=True):
                if key not in of:
                    new[key] = np.zeros_like(p)
                elif not isinstance(of[key], np.ndarray):
                    new[key] = as_array(of[key])
                    if not isinstance(new[key], np.ndarray):
                        got = type(of[key]).__name__
                        raise TypeError(f"a state of parameter {name!r}: expected a NumPy array or a number, got {got}")
            used.append(tuple(new[key] if key in new else of[key] for of, new in zip(states, made, strict=True)))

        numbers = [i for i, (p, value) in enumerate(zip(params, values, strict=True)) if p is not value]
        if not numbers and not any(made):
            self._update(tuple(params), tuple(gradients), tuple(chain(*used)), coefficients, names=names)
            return
        arrays = [i for i, (p, value) in enumerate(zip(params, values, strict=True)) if p is value]
        written, old = [targets[i] for i in numbers], [values[i] for i in numbers]
        kept = [(x, x.copy()) for i in numbers for x in used[i]]

        def step(update: RuleUpdate, chosen: list[int]) -> None:
            p, g, own, called = ([x[i] for i in chosen] for x in (params, gradients, used, names))
            update(tuple(p), tuple(g), tuple(chain(*own)), coefficients, names=called)

        with exclusive(self._busy), deferred_signals():
            if numbers:
                step(self._numbers, numbers)
            try:
                _run(write(written, [as_given(params[i], values[i]) for i in numbers]))
                if arrays:
                    step(self._update, arrays)
                else:
                    self.count[0] += 1
            except BaseException:
                _put_back(write, written, old)
                for x, before in kept:
                    x[...] = before
                raise
            for of, new in zip(states, made, strict=True):
                of.update(new)

    def _step_numbers(
        self,
        states: Sequence[dict[Hashable, Any]],
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
            new: tuple[Any, ...] = ()
            count = self.count[0]
            writes: Iterator[None] = map(self.count.__setitem__, (0,), (count + 1,))
            if states:
                if not self._joint.holds(states, keys):
                    self._joint = Joint(len(states), max(16, 2 * len({*keys, *chain(*states)})))
                    self._joint.holds(states, keys)
                columns, array = self._joint.columns, self._joint.array
                copy = self._joint.copy()
                new, writes = tuple(copy), chain(map(array.__setitem__, ((slice(None), columns),), (copy,)), writes)
            step_array(self._rule, p, g, new, coefficients)
            writes = chain(write(targets, p.tolist()), writes)
            try:
                if plain:
                    _run(writes)
                else:
                    with deferred_signals():
                        _run(writes)
            except BaseException:
                if self.count[0] == count:  # a target has refused; a handler raises when all is written
                    _put_back(write, targets, values)
                raise
