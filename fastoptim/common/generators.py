"""Finds, saves and restores the random generators that a model or data set holds."""

from __future__ import annotations

import contextlib
import functools
import random
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from types import (
    BuiltinMethodType,
    CodeType,
    FunctionType,
    GeneratorType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
)
from typing import Any

import numpy as np


def generator_of(rng: Any) -> np.random.Generator:
    if isinstance(rng, np.random.Generator):
        return rng
    if rng is not None and not isinstance(rng, bool):
        try:
            return np.random.default_rng(rng)
        except TypeError:
            pass
    raise TypeError(f"rng must be a seed or a numpy.random.Generator, got {rng!r}")


def set_checked_state(rng: np.random.Generator, state: Any) -> None:
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


GENERATORS = (np.random.Generator, np.random.RandomState, random.Random)


def state_of(generator: Any) -> Any:
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.get_state(legacy=False) if isinstance(generator, np.random.RandomState) else generator.getstate()


def set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(state)
    else:
        generator.setstate(state)


# Libraries that keep no generators for the model, or whose global ones are put back anyway; looking into their
# functions and classes would take long. Objects made of their classes are looked into.
_LIBRARIES = sys.stdlib_module_names | {
    "fastoptim", "numpy", "scipy", "pandas", "sklearn", "numba", "torch", "jax", "jaxlib", "matplotlib", "cupy",
}  # fmt: skip
_PLAIN = (str, bytes, bytearray, int, float, complex, type(None), CodeType)
_DEPTH = 10


def generators_within(*roots: Any) -> list[Any]:
    """Return the random generators that functions and objects refer to.

    They are followed by closure, default, global name, `partial`, attribute (also of a class or module, and in slots),
    container, array of objects and the local names of a suspended generator.
    """
    found: list[Any] = []
    seen: dict[int, Any] = {}  # holds what was seen, so that no number is given away twice
    queue = [(root, 0) for root in roots]
    while queue:
        item, depth = queue.pop()
        if id(item) in seen or depth > _DEPTH or isinstance(item, _PLAIN):
            continue
        seen[id(item)] = item
        if isinstance(item, GENERATORS):
            found.append(item)
        else:
            queue += [(thing, depth + 1) for thing in _referred(item) if not isinstance(thing, _PLAIN)]
    return found


def _referred(item: Any) -> Iterable[Any]:
    """What a generator may be reached by from `item`, one step further."""
    if isinstance(item, FunctionType):
        return _of_function(item)
    if isinstance(item, (staticmethod, classmethod)):
        return (item.__func__,)
    if isinstance(item, property):
        return (item.fget,)
    if isinstance(item, functools.cached_property):
        return (item.func,)
    if isinstance(item, MethodType):
        return item.__func__, item.__self__
    if isinstance(item, BuiltinMethodType):  # `draw = generator.random`, of Python's generators
        return () if isinstance(item.__self__, ModuleType) else (item.__self__,)
    if isinstance(item, functools.partial):
        return item.func, *item.args, *item.keywords.values()
    if isinstance(item, GeneratorType):
        frame = item.gi_frame
        return () if frame is None else (*frame.f_locals.values(), *_globals(item.gi_code, frame.f_globals))
    if isinstance(item, np.ndarray):
        return item.ravel().tolist() if item.dtype == object else ()
    if isinstance(item, ModuleType):
        return ()
    if isinstance(item, type):
        return () if _of_library(item.__module__) else vars(item).values()
    contents: list[Any] = []
    if isinstance(item, Mapping):
        contents += item.values()
    elif isinstance(item, (list, tuple, set, frozenset, deque)):
        contents += item
    return (*contents, *_attributes(item))


def _of_function(function: FunctionType) -> list[Any]:
    inner = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values(), *vars(function).values()]
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # not assigned yet
            inner.append(cell.cell_contents)
    if not _of_library(function.__module__):
        inner += _globals(function.__code__, function.__globals__, inner)
    return inner


def _globals(code: CodeType, names: Mapping[str, Any], others: Iterable[Any] = ()) -> list[Any]:
    """Global values that code names, and what it names of modules among them and among `others`."""
    used = set(_names_within(code))
    inner = [names[name] for name in used if name in names]
    modules = [item for item in (*inner, *others) if isinstance(item, ModuleType)]
    for module in modules:  # grows: a module may be reached by another one's name
        if not _of_library(module.__name__):
            attributes = [vars(module)[name] for name in used if name in vars(module)]
            modules += [item for item in attributes if isinstance(item, ModuleType) and item not in modules]
            inner += attributes
    return inner


def _attributes(item: Any) -> Iterator[Any]:
    """Attributes of an object, in its dictionary, its slots and its class."""
    yield from getattr(item, "__dict__", {}).values()
    for kind in type(item).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            own = f"_{kind.__name__.lstrip('_')}{name}" if name.startswith("__") and not name.endswith("__") else name
            member = vars(kind).get(own)
            if isinstance(member, MemberDescriptorType):
                with contextlib.suppress(AttributeError):  # not assigned yet
                    yield member.__get__(item)
        yield kind


def _of_library(module: str | None) -> bool:
    return (module or "").partition(".")[0] in _LIBRARIES


def _names_within(code: CodeType) -> Iterator[str]:
    """Names that a function uses, with those of the functions, comprehensions and generators inside it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_within(constant)
