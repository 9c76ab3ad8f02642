"""The base of optimizers that are hyperparameters and coefficients, and nothing else.

A class states its hyperparameters once, each with its type and default, and what they come to in `_update`. From that
follow the arguments of ``__init__``, how each is checked (by the type of its default), and the attributes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, InitVar
from functools import cache, lru_cache
from inspect import Parameter, Signature, get_annotations, signature
from math import isfinite
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arrays.checks import DTYPES, check_dtype
from ..arrays.storage import Storage
from ..backends import Backend, choose
from ..common.signals import deferred_signals
from ..common.trees import picker
from ..common.validation import MOST_STEPS, bound, count, kept_number
from ..rules.measures import Measured
from ..rules.table import RULES, Kernel
from .base import Optimizer
from .groups import fixed
from .hyperparameters import Hyper, UpdateSpec, check_of, kind_of_decay
from .one_array import ArrayStep, update_array
from .states import begin

BELOW_ONE = (0.0, 1.0)


class Family(Optimizer):
    """Base of the optimizers that state their hyperparameters as a dataclass states its fields, and `_update`.

    ``name: Hyper[type] = Hyper(default)`` is an argument, in the order of the class, and an attribute; those behind
    ``_: KW_ONLY`` are given by name. Type checkers read the same.
    """

    params: InitVar[Any]
    _: KW_ONLY
    maximize: Hyper[bool] = Hyper(False)
    if TYPE_CHECKING:  # what every optimizer takes beside its hyperparameters; `SGD` describes them

        class _Threads:  # is given as a number or None, and read as a number
            def __get__(self, optimizer: Any, owner: Any = None) -> int: ...
            def __set__(self, optimizer: Any, value: int | None) -> None: ...

        backend: str = "auto"
        threads: _Threads = _Threads()  # type: ignore[override]
        state_dir: InitVar[Any] = None
        memory_budget: InitVar[int | str | None] = None
        max_norm: float | None = None
        clip: str = "norm"
        state_dtype: InitVar[str | None] = None
        rounding: InitVar[str] = "stochastic"
        master: InitVar[bool] = False
        seed: InitVar[int] = 0

    def __init_subclass__(cls) -> None:
        stated = _stated(cls)
        cls._checks = {p.name: check_of(p.name, p.default, getattr(cls, p.name).allowed) for p in stated}
        super().__init_subclass__()
        if "__init__" not in vars(cls):
            cls.__init__ = _init_of(cls, stated)  # type: ignore[method-assign]


def _stated(cls: type) -> list[Parameter]:
    """The hyperparameters of a class and its bases, as arguments."""
    found = {}
    for base in reversed(cls.__mro__):
        by_name = False
        for name, annotation in get_annotations(base).items():
            by_name |= annotation == "KW_ONLY"
            if isinstance(hyper := vars(base).get(name), Hyper):
                kind = Parameter.KEYWORD_ONLY if by_name else Parameter.POSITIONAL_OR_KEYWORD
                told = annotation.removeprefix("Hyper[").removesuffix("]")
                found[name] = Parameter(name, kind, default=hyper.default, annotation=told)
    return sorted(found.values(), key=attrgetter("kind"))


def _init_of(cls: type[Optimizer], stated: list[Parameter]) -> Callable[..., None]:
    """The ``__init__`` of a class with these hyperparameters."""
    me, params, _, *options = signature(Optimizer.__init__).parameters.values()
    options[-1:] = signature(Storage.checked).parameters.values()
    own = Signature([*stated, *(p.replace(kind=p.KEYWORD_ONLY) for p in options)])

    def __init__(self: Optimizer, params: Any, *args: Any, **options: Any) -> None:
        given = bound(type(self).__name__, own, args, options).arguments
        defaults = {name: given.pop(name) for name in self._names}
        Optimizer.__init__(self, params, defaults, **given)

    __init__.__qualname__ = f"{cls.__qualname__}.__init__"
    __init__.__signature__ = own.replace(parameters=[me, params, *own.parameters.values()])  # type: ignore[attr-defined]
    return __init__


def spec_of(
    rule: str,
    o: Any,
    coefficients: Callable[..., tuple[float, ...]] | tuple[float, ...],
    *,
    weight_decay: float | None = None,
    decoupled: bool | None = None,
    first: tuple[float, ...] | None = None,
    advance: Callable[..., tuple[float, ...]] | None = None,
    measured: Measured | None = None,
) -> UpdateSpec:
    """The update by `rule`, up or down as `o` says, with its weight decay of the kind that the rule or `o` says."""
    if weight_decay is None:
        weight_decay = getattr(o, "weight_decay", 0.0)
    if decoupled is None:
        decoupled = getattr(o, "decoupled_weight_decay", "coupled" not in RULES[rule].decays)
    decay, coefficient = kind_of_decay(o.lr, weight_decay, decoupled, getattr(o, "decay_mode", "lr"))
    head = (-1.0 if o.maximize else 1.0, coefficient)
    return UpdateSpec(_kernel(rule, decay), head, coefficients, first, advance, measured)


@cache
def _kernel(rule: str, decay: str) -> Kernel:
    return Kernel(RULES[rule], decay)


# --- One step of one array, for `forms` ---------------------------------------------------------------------------


def chosen_for(p: Any, backend: str, threads: int | None) -> tuple[Backend, int, np.dtype[Any]]:
    """Backend, number of threads and dtype for a step of `p`; TypeError or ValueError if none can step it."""
    chosen, number = choose(backend, threads, p)
    return chosen, number, dtype_of(chosen, p)


def dtype_of(backend: Backend, p: Any) -> np.dtype[Any]:
    """The dtype of an array; TypeError or ValueError if it can take no step by itself."""
    backend.check_parameter("p", p)
    dtype: np.dtype[Any] = backend.describe(p)[1]
    check_dtype("p", dtype)
    return dtype


def valid_spec(cls: type[Optimizer], dtype: np.dtype[Any], *values: Any) -> UpdateSpec:
    """The update of these hyperparameters, for a parameter of this dtype."""
    return cls._checked(tuple(map(fixed, values)), (dtype,)).spec


_known: Callable[..., UpdateSpec] = lru_cache(maxsize=64, typed=True)(valid_spec)


def _how_counted(cls: type[Optimizer], dtype: Any, backend: str, threads: int | None, *values: Any) -> Any:
    """What `_counted` needs to know of the hyperparameters; TypeError or ValueError where it has no way."""
    if dtype not in DTYPES:
        raise TypeError("the native call takes float32 and float64 alone")
    spec = valid_spec(cls, dtype, *values)
    if spec.measured is not None:
        raise TypeError("norms are taken before the step")
    rule = spec.kernel.rule
    size = len(rule.states) + len(rule.scalars)
    return ArrayStep(spec.kernel, backend, threads), spec, size, picker(rule.states), tuple(rule.scalars)


_known_counted: Callable[..., Any] = lru_cache(maxsize=256, typed=True)(_how_counted)


def _counted(cls: type[Optimizer], p: Any, g: Any, state: Any, values: tuple[Any, ...], *where: Any) -> bool:
    """Whether one native call could take the step and count it, so that no signal has to wait."""
    if type(p) is not np.ndarray or type(state) is not dict:
        return False
    taken, kept = state.get("step", 0), ()
    if type(taken) is not int or not 0 <= taken < MOST_STEPS:
        return False
    try:
        step, spec, size, states_of, scalars = _known_counted(cls, p.dtype, *where, *values)
        states = states_of(state)
        if scalars:
            kept = tuple([state[name] for name in scalars])
    except (TypeError, ValueError, KeyError):  # which `step_array` reports, or makes
        return False
    if len(state) - ("step" in state) != size or (kept and not all(type(x) is float and isfinite(x) for x in kept)):
        return False
    after = {"step": taken + 1}
    if kept:
        after.update(zip(scalars, spec.advance(taken + 1, *kept), strict=True))
    return bool(step.counted(p, g, states, spec.scalars(taken + 1, taken == 0, kept), state, after))


def step_array(
    cls: type[Optimizer],
    p: Any,
    g: Any,
    state: dict[str, Any],
    values: tuple[Any, ...],
    grad_scale: Any,
    backend: str,
    threads: int | None,
) -> None:
    """One step of `cls` on an array that the caller owns, with what `state` holds; `state` is empty at the start.

    Raises
    ------
    TypeError, ValueError
        Bad array, state or hyperparameter; nothing was changed.
    """
    if type(grad_scale) is float and grad_scale == 1.0 and _counted(cls, p, g, state, values, backend, threads):
        return
    if not isinstance(state, dict):
        raise TypeError(f"state must be a dict, empty before the first step, got {type(state).__name__}")
    chosen, number, dtype = chosen_for(p, backend, threads)
    try:
        spec = _known(cls, dtype, *values)
    except TypeError:  # not hashable, or not valid, which this says again
        spec = valid_spec(cls, dtype, *values)
    rule = spec.kernel.rule
    if unknown := sorted(map(str, state.keys() - {"step", *rule.states, *rule.scalars})):
        raise ValueError(f"state holds {unknown}, which is not of {cls.__name__} with these hyperparameters")
    t = count("state['step']", state.get("step", 0), 0) + 1
    kept = tuple(kept_number(f"state[{name!r}]", state.get(name, first)) for name, first in rule.scalars.items())
    arrays = dict(state)
    for name in rule.states:
        if name not in state:
            if t > 1:
                raise ValueError(
                    f"state lacks {name!r}, and its step count is {t - 1}: give all of it, or an empty dict"
                )
            arrays[name] = chosen.zeros_like(p)
            begin(chosen, arrays[name], p, rule.initial.get(name, 0.0), dict(zip(cls._names, values, strict=True)))
    states = tuple(arrays[name] for name in rule.states)
    scalars = spec.scalars(t, t == 1, kept)
    rest = (grad_scale, spec.measured, t, kept)
    with deferred_signals():
        after = update_array(chosen, spec.kernel, "p", p, g, states, scalars, number, *rest)
        after = after if spec.advance is None else spec.advance(t, *kept)
        state.update(zip((*rule.states, *rule.scalars), (*states, *after), strict=True), step=t)
