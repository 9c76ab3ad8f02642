"""Coefficients of the update rules from hyperparameters: float64, in the order in which a rule takes them.

The last argument is what changes from step to step, so that `functools.partial` can hold the others.
"""

from __future__ import annotations

from math import pow, sqrt

MOMENTUM_MODES = ("torch", "lr_inside", "damped")
EPS_MODES = ("torch", "hat")


def sgd_coefficients(lr: float) -> tuple[float, ...]:
    """``(c,)``."""
    return (lr,)


def momentum_coefficients(
    lr: float, momentum: float, dampening: float = 0.0, mode: str = "torch", first: bool = False
) -> tuple[float, ...]:
    """``(a, b, c)``. `first` is the step that creates the buffer: torch then stores the gradient undamped."""
    if mode == "lr_inside":
        return (momentum, lr, 1.0)
    if mode == "damped":
        return (momentum, 1.0 - momentum, lr)
    return (momentum, 1.0 if first else 1.0 - dampening, lr)


def nesterov_coefficients(lr: float, momentum: float, mode: str = "torch") -> tuple[float, ...]:
    """``(a, b, c, e, f)``; the gradient that is looked ahead with carries the factor that the velocity gives it."""
    a, b, c = momentum_coefficients(lr, momentum, mode=mode)
    return (a, b, c, momentum, b)


def adam_coefficients(lr: float, beta1: float, beta2: float, eps: float, mode: str, t: int) -> tuple[float, ...]:
    """``(b1, c1, b2, c2, step, r2, eps)`` for the step with the number `t` (from 1)."""
    bc1 = 1.0 - pow(beta1, t)
    bc2 = 1.0 - pow(beta2, t)
    if mode == "hat":
        return (beta1, 1.0 - beta1, beta2, 1.0 - beta2, lr * sqrt(bc2) / bc1, 1.0, eps)
    return (beta1, 1.0 - beta1, beta2, 1.0 - beta2, lr / bc1, 1.0 / sqrt(bc2), eps)


def decoupled_coefficient(lr: float, weight_decay: float) -> float:
    """``w``, the share of a parameter that decoupled weight decay takes away in a step."""
    return lr * weight_decay


def average_coefficients(t: int, decay: float | None = None) -> tuple[float, ...]:
    """``(b,)`` for the t-th value that enters an average: of the last ones if there is a `decay`, else of all."""
    return (1.0 / t if decay is None else 1.0 - decay,)
