"""Validates hyperparameters and turns them into what a step does: a kernel and its scalars."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any, NamedTuple, TypeVar, cast

from .. import rules
from ..common.validation import choice, flag, real
from ..rules.table import RULES, Kernel

Init = TypeVar("Init", bound=Callable[..., None])


class UpdateSpec(NamedTuple):
    """What a group's hyperparameters come to."""

    kernel: Kernel
    head: tuple[float, float]  # sign of the gradient (-1 to maximize), coefficient of the decay
    coefficients: Callable[[int], tuple[float, ...]] | tuple[float, ...]  # of step t, or the same at every step
    first: tuple[float, ...] | None = None  # those of the step that creates the states, where they differ
    advance: Callable[..., tuple[float, ...]] | None = None  # (t, *scalars) -> the rule's scalars after step t

    def scalars(self, t: int, first: bool = False, kept: tuple[float, ...] = ()) -> tuple[float, ...]:
        """``(sign, decay, *coefficients)`` of the step with the number `t`, from 1; `kept` are the rule's scalars."""
        if first and self.first is not None:
            return self.head + self.first
        coefficients = self.coefficients
        return self.head + (coefficients if isinstance(coefficients, tuple) else coefficients(t, *kept))


def _head(maximize: Any, decay: float) -> tuple[float, float]:
    return -1.0 if flag("maximize", maximize) else 1.0, decay


def _rate(lr: Any) -> float:
    if callable(lr):
        raise TypeError(
            "lr must be a number: set opt.lr = schedule(step) before each step, or let fit(..., lr=schedule) do it"
        )
    return real("lr", lr, 0.0)


def sgd_spec(
    lr: Any,
    momentum: Any = 0.0,
    dampening: Any = 0.0,
    weight_decay: Any = 0.0,
    nesterov: Any = False,
    maximize: Any = False,
    momentum_mode: Any = "torch",
) -> UpdateSpec:
    """What validated hyperparameters of SGD come to."""
    lr = _rate(lr)
    momentum = real("momentum", momentum, 0.0, 1.0)
    dampening = real("dampening", dampening)
    weight_decay = real("weight_decay", weight_decay, 0.0)
    mode = choice("momentum_mode", momentum_mode, rules.MOMENTUM_MODES)
    if dampening and mode != "torch":
        raise ValueError(f"momentum_mode={mode!r} has no dampening of its own; got dampening={dampening}")
    head = _head(maximize, weight_decay)
    decay = "coupled" if weight_decay else "none"
    if flag("nesterov", nesterov):
        if momentum == 0 or dampening != 0 or mode == "damped":
            raise ValueError("nesterov needs momentum > 0, dampening = 0 and a momentum_mode other than 'damped'")
        return UpdateSpec(Kernel(RULES["nesterov"], decay), head, rules.nesterov_coefficients(lr, momentum, mode))
    if not momentum:
        return UpdateSpec(Kernel(RULES["sgd"], decay), head, rules.sgd_coefficients(lr))
    coefficients = partial(rules.momentum_coefficients, lr, momentum, dampening, mode)
    return UpdateSpec(Kernel(RULES["momentum"], decay), head, coefficients(), first=coefficients(True))


def adam_spec(
    lr: Any,
    betas: Any = (0.9, 0.999),
    eps: Any = 1e-8,
    weight_decay: Any = 0.0,
    amsgrad: Any = False,
    maximize: Any = False,
    eps_mode: Any = "torch",
    decoupled: bool = False,
) -> UpdateSpec:
    """What validated hyperparameters of Adam (`decoupled`: AdamW) come to."""
    lr = _rate(lr)
    try:
        beta1, beta2 = betas
    except (TypeError, ValueError) as error:
        raise TypeError(f"betas must be a pair of numbers, got {betas!r}") from error
    beta1, beta2 = real("betas[0]", beta1, 0.0, 1.0), real("betas[1]", beta2, 0.0, 1.0)
    eps = real("eps", eps, 0.0)
    weight_decay = real("weight_decay", weight_decay, 0.0)
    mode = choice("eps_mode", eps_mode, rules.EPS_MODES)
    rule = RULES["amsgrad" if flag("amsgrad", amsgrad) else "adam"]
    decay, coefficient = "none", 0.0
    if weight_decay:
        decay = "decoupled" if decoupled else "coupled"
        coefficient = rules.decoupled_coefficient(lr, weight_decay) if decoupled else weight_decay
    coefficients = partial(rules.adam_coefficients, lr, beta1, beta2, eps, mode)
    return UpdateSpec(Kernel(rule, decay), _head(maximize, coefficient), coefficients)


def with_defaults(init: Init, owner: str, **defaults: Any) -> Init:
    """An ``__init__`` for the class `owner` like that of its base, but for some defaults."""
    function: Any = init
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    first = len(names) - len(function.__defaults__)
    code = function.__code__.replace(co_qualname=f"{owner}.__init__")
    new = FunctionType(code, function.__globals__, "__init__", None, function.__closure__)
    new.__defaults__ = tuple(defaults.get(names[first + i], value) for i, value in enumerate(function.__defaults__))
    new.__kwdefaults__ = function.__kwdefaults__ | {k: v for k, v in defaults.items() if k in function.__kwdefaults__}
    new.__qualname__, new.__annotations__ = f"{owner}.__init__", function.__annotations__
    return cast(Init, new)
