"""Finds, saves and restores the random generators that a model or data set holds."""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Iterator, Mapping
from types import BuiltinMethodType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np


def _generator(rng: Any) -> np.random.Generator:
    if isinstance(rng, np.random.Generator):
        return rng
    if rng is not None and not isinstance(rng, bool):
        try:
            return np.random.default_rng(rng)
        except TypeError:
            pass
    raise TypeError(f"rng must be a seed or a numpy.random.Generator, got {rng!r}")


def _set_generator(rng: np.random.Generator, state: Any) -> None:
    """Set the state of `rng`; ValueError, with nothing changed, if it is not one of its kind."""
    before = rng.bit_generator.state
    try:
        rng.bit_generator.state = state
        after = rng.bit_generator.state
    except (TypeError, ValueError, LookupError, OverflowError, AttributeError) as error:
        rng.bit_generator.state = before
        raise ValueError(f"state of the generator is not one of {before['bit_generator']}: {error}") from error
    if not _same(after, state):  # NumPy takes some values that it cannot mean
        rng.bit_generator.state = before
        raise ValueError(f"state of the generator is not one of {before['bit_generator']}")


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Mapping):
        return isinstance(b, Mapping) and set(a) == set(b) and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b)
    return type(a) is type(b) and a == b


_GENERATORS = (np.random.Generator, np.random.RandomState, random.Random)


def _generator_state(generator: Any) -> Any:
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.get_state(legacy=False) if isinstance(generator, np.random.RandomState) else generator.getstate()


def _set_generator_state(generator: Any, state: Any) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(state)
    else:
        generator.setstate(state)


def _generators_within(root: Any) -> list[Any]:
    """Random generators that a function refers to: by closure, default, attribute, global name or `partial`."""
    found, seen = [], set()
    queue = [(root, 0)]
    while queue:
        item, depth = queue.pop()
        if id(item) in seen or depth > 5 or isinstance(item, (ModuleType, np.ndarray, str, bytes, int, float)):
            continue
        seen.add(id(item))
        inner: list[Any] = []
        if isinstance(item, _GENERATORS):
            found.append(item)
        elif isinstance(item, FunctionType):
            for cell in item.__closure__ or ():
                with contextlib.suppress(ValueError):  # not assigned yet
                    inner.append(cell.cell_contents)
            inner += [*(item.__defaults__ or ()), *(item.__kwdefaults__ or {}).values()]
            names = _names_within(item.__code__)
            inner += [item.__globals__[name] for name in names if name in item.__globals__]
        elif isinstance(item, MethodType):
            inner += [item.__func__, item.__self__]
        elif isinstance(item, BuiltinMethodType):  # `draw = generator.random`, of Python's generators
            inner.append(item.__self__)
        elif isinstance(item, functools.partial):
            inner += [item.func, *item.args, *item.keywords.values()]
        elif isinstance(item, Mapping):
            inner += list(item.values())
        elif isinstance(item, (list, tuple, set)):
            inner += list(item) if len(item) <= 1000 else []
        elif not isinstance(item, type):
            inner += list(getattr(item, "__dict__", {}).values())
            inner += [type(item).__call__] if callable(item) and hasattr(type(item).__call__, "__code__") else []
        queue += [(thing, depth + 1) for thing in inner]
    return found


def _names_within(code: CodeType) -> Iterator[str]:
    """Names that a function uses, with those of the functions, comprehensions and generators inside it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_within(constant)
