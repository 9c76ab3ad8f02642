"""Steps of one array that the caller owns: a function for each class of `names.FAMILIES`, its types in forms.pyi."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from inspect import signature
from math import isfinite
from typing import Any

import numpy as np

from ..arrays.checks import DTYPES
from ..common.signals import deferred_signals
from ..common.trees import picker
from ..common.validation import MOST_STEPS, count, kept_number, unknown_name
from ..rules.table import rules_of
from .base import Optimizer
from .family import Family
from .hyperparameters import UpdateSpec
from .names import FAMILIES
from .one_array import ArrayStep, chosen_for, update_array, valid_spec
from .states import begin

__all__ = [*FAMILIES]  # noqa: PLE0604 (keys are strings)

_DOCSTRING = """Take one step of `fastoptim.{cls}` in place, on arrays that the caller owns.

`state` is a dict, empty at first, that keeps {kept}.
`grad_scale` multiplies g; all else, errors included, is as for the class.
"""


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
    except (TypeError, ValueError, KeyError):  # which `_step` reports, or makes
        return False
    if len(state) - ("step" in state) != size or (kept and not all(type(x) is float and isfinite(x) for x in kept)):
        return False
    after = {"step": taken + 1}
    if kept:
        after.update(zip(scalars, spec.advance(taken + 1, *kept), strict=True))
    return bool(step.counted(p, g, states, spec.scalars(taken + 1, taken == 0, kept), state, after))


def _step(
    cls: type[Optimizer],
    p: Any,
    g: Any,
    state: dict[str, Any],
    values: tuple[Any, ...],
    grad_scale: Any,
    backend: str,
    threads: int | None,
) -> None:
    """One step of `cls` on an array that the caller owns, with what `state` holds: nothing at the start."""
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


def _form(name: str, cls: type[Family]) -> Callable[..., None]:
    stated = [signature(cls.__init__).parameters[key] for key in cls._names]
    defaults = {p.name: p.default for p in stated}

    def form(
        p: Any,
        g: Any,
        state: dict[str, Any],
        *,
        grad_scale: float = 1.0,
        backend: str = "auto",
        threads: int | None = None,
        **hyper: Any,
    ) -> None:
        values = tuple((defaults | hyper).values())
        if len(values) > len(defaults):
            unknown = next(key for key in hyper if key not in defaults)
            raise TypeError(unknown_name(name, unknown, own.parameters))
        _step(cls, p, g, state, values, grad_scale, backend, threads)

    given = signature(form)
    *arrays, grad_scale, backend, threads, _ = given.parameters.values()
    hyper = [p.replace(kind=p.KEYWORD_ONLY) for p in stated]
    own = given.replace(parameters=[*arrays, *hyper, grad_scale, backend, threads])
    names = dict.fromkeys(x for rule in rules_of(cls) for x in (*rule.states, *rule.scalars))
    kept = ", ".join(f'"{key}"' for key in ("step", *names)) + " (what it needs)" * (len(cls._rules) > 1)
    form.__signature__ = own  # type: ignore[attr-defined]
    form.__name__ = form.__qualname__ = name
    form.__module__ = "fastoptim.functional"
    form.__doc__ = _DOCSTRING.format(cls=cls.__name__, kept=kept)
    return form


globals().update({name: _form(name, cls) for name, cls in FAMILIES.items()})
