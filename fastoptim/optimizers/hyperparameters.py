"""Validates hyperparameters and turns them into a rule and its coefficients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from .. import rules
from ..common.validation import choice, flag, real
from ..rules.table import RULES, Rule


class Policy(NamedTuple):
    """What a group's hyper-parameters come to: a row of the law and the coefficients for each step."""

    rule: Rule
    decay: str
    decay_coefficient: float
    maximize: bool
    coefficients: Callable[[int, bool], tuple[float, ...]]  # (t, first) -> the rule's coefficients
    varies: bool = False  # whether they change with t


def sgd_policy(
    lr: Any,
    momentum: Any = 0.0,
    dampening: Any = 0.0,
    weight_decay: Any = 0.0,
    nesterov: Any = False,
    maximize: Any = False,
    momentum_mode: Any = "torch",
) -> Policy:
    """Validated hyper-parameters of SGD as a policy."""
    lr = real("lr", lr, 0.0)
    momentum = real("momentum", momentum, 0.0, 1.0)
    dampening = real("dampening", dampening)
    weight_decay = real("weight_decay", weight_decay, 0.0)
    mode = choice("momentum_mode", momentum_mode, rules.MOMENTUM_MODES)
    if dampening and mode != "torch":
        raise ValueError(f"momentum_mode={mode!r} has no dampening of its own; got dampening={dampening}")
    if flag("nesterov", nesterov):
        if momentum == 0 or dampening != 0 or mode == "damped":
            raise ValueError("nesterov needs momentum > 0, dampening = 0 and a momentum_mode other than 'damped'")
        kwargs = {"lr": lr, "momentum": momentum, "mode": mode}
        name, coefficients = "nesterov", lambda t, first: rules.nesterov_coefficients(**kwargs)
    elif momentum:
        name = "momentum"

        def coefficients(t: int, first: bool) -> tuple[float, ...]:
            return rules.momentum_coefficients(lr=lr, momentum=momentum, dampening=dampening, mode=mode, first=first)
    else:
        name, coefficients = "sgd", lambda t, first: (lr,)
    decay = "coupled" if weight_decay else "none"
    return Policy(RULES[name], decay, weight_decay, flag("maximize", maximize), coefficients)


def adam_policy(
    lr: Any,
    betas: Any = (0.9, 0.999),
    eps: Any = 1e-8,
    weight_decay: Any = 0.0,
    amsgrad: Any = False,
    maximize: Any = False,
    eps_mode: Any = "torch",
    decoupled: bool = False,
) -> Policy:
    """Validated hyper-parameters of Adam (`decoupled`: AdamW) as a policy."""
    lr = real("lr", lr, 0.0)
    try:
        beta1, beta2 = betas
    except (TypeError, ValueError) as error:
        raise TypeError(f"betas must be a pair of numbers, got {betas!r}") from error
    beta1, beta2 = real("betas[0]", beta1, 0.0, 1.0), real("betas[1]", beta2, 0.0, 1.0)
    eps = real("eps", eps, 0.0)
    weight_decay = real("weight_decay", weight_decay, 0.0)
    mode = choice("eps_mode", eps_mode, rules.EPS_MODES)
    rule = RULES["amsgrad" if flag("amsgrad", amsgrad) else "adam"]

    def coefficients(t: int, first: bool) -> tuple[float, ...]:
        return rules.adam_coefficients(t, lr, beta1, beta2, eps, mode)

    decay, decay_coefficient = "none", 0.0
    if weight_decay and decoupled:
        decay, decay_coefficient = "decoupled", rules.keep_coefficient(lr=lr, weight_decay=weight_decay)
    elif weight_decay:
        decay, decay_coefficient = "coupled", weight_decay
    return Policy(rule, decay, decay_coefficient, flag("maximize", maximize), coefficients, varies=True)
