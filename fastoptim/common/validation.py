"""Checks plain arguments: numbers, counts, flags, choices. Whatever is wrong, an error names the argument."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import wraps
from inspect import BoundArguments, Signature, isroutine, signature
from operator import index
from types import FunctionType
from typing import Any, TypeVar, cast

import numpy as np

Function = TypeVar("Function", bound=Callable[..., Any])


def real(name: str, value: Any, low: float = -math.inf, below: float = math.inf) -> float:
    """Return `value` as a float with ``low <= value < below``; TypeError or ValueError that names it."""
    number = value + 0.0 if type(value) is float else _number(name, value)  # -0.0 becomes 0.0
    if not (low <= number < below and number != -math.inf):
        limit = f">= {low:g} and finite" if math.isinf(below) else f"in [{low:g}, {below:g})"
        raise ValueError(f"{name} must be {'finite' if math.isinf(low) else limit}, got {number}")
    return number


def kept_number(name: str, value: Any) -> float:
    """Return a number >= 0 that a rule keeps beside the step count: NaN, too, which norms may have made it."""
    number = _number(name, value)
    return number if math.isnan(number) or number == math.inf else real(name, number, 0.0)


_ELSEWHERE = {  # what other libraries call it, or do
    "lr": "learning_rate alpha eta step_size init_value initial_learning_rate max_lr schedule scheduler lr_scheduler",
    "max_lr": "lr learning_rate peak_value",
    "final_lr": "eta_min min_lr end_value end_learning_rate",
    "steps": "T_max total_steps decay_steps transition_steps total_iters warmup_steps",
    "gamma": "decay_rate factor",
    "period": "T_0 first_decay_steps",
    "multiplier": "T_mult t_mul",
    "early_stopping": "patience",
    "progress": "verbose",
    "low": "min_lr start_lr init_value",
    "high": "max_lr end_lr final_value",
    "optimizer": "method",
    "rng": "seed random_state generator",
    "betas": "beta1 beta2 beta_1 beta_2 b1 b2 momentum",
    "eps": "epsilon",
    "weight_decay": "wd decay l2 lambda",
    "momentum": "mu",
    "max_norm": "clipnorm global_clipnorm clip_norm grad_clip",
}
_ALWAYS = ("foreach", "fused", "capturable", "differentiable")
_OF_OPTIMIZERS = "lr weight_decay betas momentum nesterov eps amsgrad clip state_dtype master"
_SCALES = ("grad_scale", "loss_scale", "grad_scaler", "scaler")


def unknown_name(owner: str, name: str, known: Iterable[str]) -> str:
    """Say that `owner` has no argument `name`, what may be meant, and which there are."""
    known = list(known)
    if name in _ALWAYS:
        hint = "every step is fused: leave it out; "
    elif name in _OF_OPTIMIZERS.split() and "optimizer" in known:
        made = "lambda x: fo.AdamW(x" if "x0" in known else "fo.AdamW(params"
        hint = f"it is the optimizer's: give optimizer={made}, {name}=...), for example; "
    elif name in _SCALES and "loss_and_grad" in known:
        hint = "let loss_and_grad divide its gradients by the loss scale; "
    elif (owner, name) == ("Adam", "decoupled_weight_decay"):
        hint = "that is AdamW; "
    else:
        hint = do_you_mean(name, known)
    return f"{owner} has no {name!r}: {hint}it has {', '.join(known)}"


def do_you_mean(name: str, known: Iterable[str]) -> str:
    """Ask whether one of the names `known` is meant; nothing if none is like `name`."""
    known = list(known)
    meant = next((ours for ours, theirs in _ELSEWHERE.items() if name in theirs.split() and ours in known), None)
    meant = meant or next(iter(get_close_matches(name, known, 1)), None)
    first = " (the first of them is Adam's momentum)" if (name, meant) == ("momentum", "betas") else ""
    return f"do you mean {meant!r}{first}? " if meant else ""


def check_no_method(thing: Any, name: str, value: Any) -> None:
    """AttributeError where `value`, which cannot be called, would take the place of a method of fastoptim's."""
    own = getattr(type(thing), name, None)
    if isinstance(own, FunctionType) and own.__module__.startswith("fastoptim.") and not callable(value):
        raise AttributeError(f"{name} is a method of {type(thing).__name__}, in whose place {value!r} would be set")


def names_arguments(function: Function) -> Function:
    """Let a call with an unknown keyword say which may be meant, as Python does from 3.13 on."""
    known = [name for name in signature(function).parameters if name != "self"]
    owner = function.__qualname__.removesuffix(".__init__").rpartition(".")[2]

    @wraps(function)
    def checked(*args: Any, **options: Any) -> Any:
        if unknown := [name for name in options if name not in known]:
            raise TypeError(unknown_name(owner, unknown[0], known))
        return function(*args, **options)

    return cast(Function, checked)


def bound(owner: str, own: Signature, args: tuple[Any, ...], options: Mapping[str, Any]) -> BoundArguments:
    """Return the arguments of a call, defaults among them; a TypeError says what `owner` takes."""
    if unknown := [name for name in options if name not in own.parameters]:
        raise TypeError(unknown_name(owner, unknown[0], own.parameters))
    try:
        given = own.bind(*args, **options)
    except TypeError as error:
        raise TypeError(f"{owner}{own.replace(return_annotation=Signature.empty)}: {error}") from None
    given.apply_defaults()
    return given


def norm_limit(value: Any, name: str = "max_norm") -> float:
    """Return an upper bound of a norm, >= 0, as a float; infinity means no limit."""
    number = _number(name, value)
    if not number >= 0.0:  # NaN is not
        raise ValueError(f"{name} must be >= 0 (infinity: no limit), got {number}")
    return number


def _number(name: str, value: Any) -> float:
    is_complex = getattr(getattr(value, "dtype", None), "kind", "") == "c"  # of which float would take the real part
    if isinstance(value, (bool, np.bool_)) or is_complex or _is_array(value):
        raise TypeError(f"{name} must be a real number, got {_described(value)}")
    try:
        return float(value + 0)  # also refuses strings, which float() reads
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be a real number, got {_described(value)}") from error
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _is_array(value: Any) -> bool:
    dimensions = getattr(value, "ndim", 0)  # of a type, such as np.float32, that is no number
    return isinstance(dimensions, int) and dimensions > 0  # an array without dimensions is a number


def _described(value: Any) -> str:
    """A value for an error message; of an array its shape, as that is what is wrong with it."""
    if _is_array(value):
        return f"an array of shape {tuple(value.shape)}{': x.item()' if math.prod(value.shape) == 1 else ''}"
    text = repr(value)
    text = text if len(text) <= 200 else text[:200] + "..."
    return f"{text}: give what it returns, before each step" if isroutine(value) else text


NEARLY_ONE = 1.0 - 2.0**-25  # the least number that rounds to 1 in float32

# Compute type -> what rounds to zero in it, to one, and to infinity.
_RANGES = {
    np.dtype(np.float32): (2.0**-150, NEARLY_ONE, 2.0**128 - 2.0**103),
    np.dtype(np.float64): (0.0, 1.0, math.inf),
}


def limit_of(dtype: np.dtype[Any]) -> float:
    """The least number that rounds to infinity in the compute type `dtype`."""
    return _RANGES[dtype][2]


def check_range(
    name: str, value: float, dtype: np.dtype[Any], may_vanish: bool = False, below_one: bool = False
) -> None:
    """ValueError if a finite `value` is infinite in the compute type `dtype`, or zero there without being zero.

    A rate `may_vanish`, at the end of a schedule; an eps or a grad_scale may not. What a mean keeps of itself at each
    step must be `below_one` there, too.
    """
    vanishing, one, overflowing = _RANGES[dtype]
    size = abs(value)
    if overflowing <= size < math.inf:
        raise ValueError(f"{name} = {value:g} is infinite in {dtype.name}, in which these parameters are computed")
    if 0.0 < size <= vanishing and not may_vanish:
        raise ValueError(f"{name} = {value:g} is zero in {dtype.name}, in which these parameters are computed")
    if below_one and one <= value:
        raise ValueError(f"{name} = {value!r} is 1 in {dtype.name}, in which these parameters are computed")


def count(name: str, value: Any, low: int = 1) -> int:
    """Return `value` as an int with ``low <= value < 2**63``; TypeError or ValueError that names it."""
    no_bool: Any = None if isinstance(value, bool) else value
    try:
        number = index(no_bool)
    except TypeError as error:
        raise TypeError(f"{name} must be an int, got {_described(value)}") from error
    if number < low:
        raise ValueError(f"{name} must be at least {low}, got {number}")
    if number >= 1 << 63:
        raise ValueError(f"{name} must be below 2**63")
    return number


MOST_STEPS = 2**63 - 2**40  # nobody takes 2**40 more, and counts have 64 bits


def steps_taken(name: str, value: Any) -> int:
    """Return a count of steps as an int from 0 to `MOST_STEPS`, so that it can go on; an error names it."""
    number = count(name, value, 0)
    if number > MOST_STEPS:
        raise ValueError(f"{name} must be at most 2**63 - 2**40, so that steps can still be counted, got {number}")
    return number


def flag(name: str, value: Any) -> bool:
    """Return `value` if it is a bool; TypeError that names it."""
    if value is not True and value is not False and not isinstance(value, np.bool_):
        raise TypeError(f"{name} must be True or False, got {_described(value)}")
    return bool(value)


def choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """Return `value` if it is one of `choices`; TypeError or ValueError that names it."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be one of {list(choices)}, got {_described(value)}")
    if value not in choices:
        raise ValueError(f"{name} must be one of {list(choices)}, got {value!r}")
    return value


CLIPS = ("norm", "value", "norm_per_array")


def step_options(
    grad_scale: Any, max_norm: Any, skip_nonfinite: Any, clip: Any = "norm"
) -> tuple[float, float | None, bool, str]:
    """Return the options of a step, validated; TypeError or ValueError that names one."""
    limit = None if max_norm is None else norm_limit(max_norm)
    return real("grad_scale", grad_scale), limit, flag("skip_nonfinite", skip_nonfinite), choice("clip", clip, CLIPS)
