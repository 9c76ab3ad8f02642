"""The base of optimizers that are a typed signature and coefficients, and nothing else.

A class states its hyperparameters once, in the signature of ``__init__``, and what they come to in `_update`. Here are
read from the signature: their names, how each is checked (by the type of its default), and the attributes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, ClassVar

import numpy as np

from ..arrays.checks import check_dtype
from ..arrays.storage import StorageOptions
from ..backends import Backend, choose
from ..common.signals import deferred_signals
from ..common.validation import count, kept_number
from ..rules.measures import Measured
from ..rules.table import RULES, Kernel
from .base import Optimizer
from .groups import fixed
from .hyperparameters import UpdateSpec, check_of, kind_of_decay
from .states import begin
from .update import update_array

BELOW_ONE = (0.0, 1.0)


class Options(StorageOptions, total=False):
    """What every optimizer takes beside its hyperparameters; `SGD` describes them."""

    backend: str
    threads: int | None
    state_dir: Any
    memory_budget: int | str | None
    max_norm: float | None
    clip: str


class Family(Optimizer):
    """Base of the optimizers whose hyperparameters are the signature of ``__init__``, between params and options.

    Subclasses have ``__init__(self, params, ..., **options: Unpack[Options])`` that does no more than
    ``self._begin(locals())``, and `_update`. A keyword behind the base class says what a hyperparameter may be: its
    choices, or (low, below) in place of the usual "finite and >= 0".
    """

    _defaults: ClassVar[dict[str, Any]]  # name -> default

    def __init_subclass__(cls, **allowed: tuple[Any, ...]) -> None:
        if "_update" in vars(cls):  # else it has the hyperparameters of its base, whatever its own __init__ takes
            own, options = inspect.signature(cls.__init__), inspect.signature(Optimizer.__init__)
            me, params, *found = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
            more = [p.replace(kind=p.kind.KEYWORD_ONLY) for p in list(options.parameters.values())[3:-1]]
            told = own.replace(parameters=[me, params, *found, *more, options.parameters["storage"]])
            cls.__init__.__signature__ = told  # type: ignore[attr-defined]  # for help(): what the options are
            cls._defaults = {p.name: p.default for p in found}
            cls._checks = {name: check_of(name, value, allowed.get(name)) for name, value in cls._defaults.items()}
        super().__init_subclass__()

    def _begin(self, given: dict[str, Any]) -> None:
        super().__init__(given["params"], {name: given[name] for name in self._names}, **given["options"])


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
