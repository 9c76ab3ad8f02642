"""The law: every update rule, stated once.

The rule functions below use only ``+ - * /``, ``sqrt`` and ``where`` (compare and select): the operations that
IEEE 754 rounds correctly everywhere, so that every backend that evaluates the same trees gets the same bits. They
work on NumPy arrays as they stand (`fastoptim.reference`); `fastoptim.lowering` turns the same source into scalar
functions for Numba and CUDA; ``csrc/rules.h`` mirrors them line by line, in the same order.

The parentheses are part of the law. No fused multiply-add, no reassociation, no ``pow``: coefficients are computed
once per step on the host in float64 by the ``*_coefficients`` functions and rounded once to the compute type.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numpy import sqrt, where

# --- What happens to the gradient and the parameter before every rule ---------------------------------------------


def scale(g, s):
    """Scaled gradient; ``s = grad_scale * clip factor * (-1 if maximize)``."""
    return s * g


def coupled(p, g, wd):
    """Coupled (L2) weight decay: it enters the gradient (SGD, Adam)."""
    return g + wd * p


def decoupled(p, keep):
    """Decoupled weight decay (AdamW): ``keep = 1 - lr * weight_decay``, before the update."""
    return p * keep


# --- The rules, in order of increasing complexity: (p, g, states..., coefficients...) -> (p, states...) ------------


def sgd(p, g, c):
    p = p - c * g
    return (p,)


def momentum(p, g, v, a, b, c):
    v = a * v + b * g
    p = p - c * v
    return p, v


def nesterov(p, g, v, a, b, c, e, f):
    v = a * v + b * g
    p = p - c * (e * v + f * g)
    return p, v


def adam(p, g, m, v, b1, c1, b2, c2, step, r2, eps):
    m = b1 * m + c1 * g
    v = b2 * v + c2 * (g * g)
    p = p - (step * m) / (sqrt(v) * r2 + eps)
    return p, m, v


def amsgrad(p, g, m, v, x, b1, c1, b2, c2, step, r2, eps):
    m = b1 * m + c1 * g
    v = b2 * v + c2 * (g * g)
    x = where(x >= v, x, v)
    p = p - (step * m) / (sqrt(x) * r2 + eps)
    return p, m, v, x


# --- Coefficients: hyper-parameters -> float64, in the order in which the rule takes them --------------------------

MOMENTUM_MODES = ("torch", "lr_inside", "damped")
EPS_MODES = ("torch", "hat")


def sgd_coefficients(*, lr: float) -> tuple[float, ...]:
    return (lr,)


def momentum_coefficients(
    *, lr: float, momentum: float, dampening: float = 0.0, mode: str = "torch", first: bool = False
) -> tuple[float, ...]:
    """``(a, b, c)``. `first` is the step that creates the buffer: torch then stores the gradient undamped."""
    if mode == "lr_inside":
        return (momentum, lr, 1.0)
    if mode == "damped":
        return (momentum, 1.0 - momentum, lr)
    return (momentum, 1.0 if first else 1.0 - dampening, lr)


def nesterov_coefficients(*, lr: float, momentum: float, mode: str = "torch") -> tuple[float, ...]:
    """``(a, b, c, e, f)``; the gradient that is looked ahead with carries the factor that the velocity gives it."""
    a, b, c = momentum_coefficients(lr=lr, momentum=momentum, mode=mode)
    return (a, b, c, momentum, b)


def adam_coefficients(
    t: int, lr: float, beta1: float, beta2: float, eps: float, mode: str = "torch"
) -> tuple[float, ...]:
    """``(b1, c1, b2, c2, step, r2, eps)`` for the step with the number `t` (from 1)."""
    bc1 = 1.0 - math.pow(beta1, t)
    bc2 = 1.0 - math.pow(beta2, t)
    if mode == "hat":
        step, r2 = lr * math.sqrt(bc2) / bc1, 1.0
    else:
        step, r2 = lr / bc1, 1.0 / math.sqrt(bc2)
    return (beta1, 1.0 - beta1, beta2, 1.0 - beta2, step, r2, eps)


def keep_coefficient(*, lr: float, weight_decay: float) -> float:
    """The factor of decoupled weight decay."""
    return 1.0 - lr * weight_decay


def clip_factor(norm: float, max_norm: float | None) -> float:
    """``min(1, max_norm / (norm + 1e-6))``, torch's; a NaN norm gives NaN."""
    if max_norm is None:
        return 1.0
    factor = max_norm / (norm + 1e-6)
    return 1.0 if factor > 1.0 else factor


# --- The table ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """One row of the table: what tests, benchmarks and backends walk.

    Attributes
    ----------
    function : callable
        The law, ``function(p, g, *states, *coefficients) -> (p, *states)``.
    states : tuple of str
        Names of the state arrays, torch's where torch has a name.
    coefficients : tuple of str
        Names of the scalars, in the order in which `function` takes them.
    """

    function: Callable[..., tuple]
    states: tuple[str, ...]
    coefficients: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def streams(self) -> int:
        """Array passes through memory per step: parameter and states are read and written, the gradient is read."""
        return 3 + 2 * len(self.states)

    def __reduce__(self) -> Any:
        return (RULES.__getitem__, (self.name,))


def _row(function: Callable[..., tuple], *states: str) -> Rule:
    names = function.__code__.co_varnames[2 + len(states) : function.__code__.co_argcount]
    return Rule(function, states, names)


RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        _row(sgd),
        _row(momentum, "momentum_buffer"),
        _row(nesterov, "momentum_buffer"),
        _row(adam, "exp_avg", "exp_avg_sq"),
        _row(amsgrad, "exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
    )
}

DECAYS = ("none", "coupled", "decoupled")

# --- The gradient norm: a sum depends on its order, so the order is law too ----------------------------------------
# Each array is cut into blocks of NORM_BLOCK elements; element i of a block is added, in order, to lane i % NORM_LANES
# (float64, starting from +0). The lanes are added in pairs (0+1, 2+3, ...), and so on until one is left; then so are
# the blocks of all arrays, in order, an odd one at the end being carried as it is.

NORM_BLOCK = 4096
NORM_LANES = 16

# A float64 sum of squares that overflows or loses its small elements is taken again on gradients times a power of two.
NORM_RETRY = 2.0**600
NORM_TINY = 2.0**-900


def norm_from_squares(sum_of_squares: Callable[[float], float]) -> float:
    """Euclidean norm from ``sum_of_squares(k)``, the sum over all elements ``x`` of ``(k * x)**2`` in float64."""
    total = sum_of_squares(1.0)
    if total == math.inf:
        return math.sqrt(sum_of_squares(1.0 / NORM_RETRY)) * NORM_RETRY
    if total < NORM_TINY:
        return math.sqrt(sum_of_squares(NORM_RETRY)) / NORM_RETRY
    return math.sqrt(total)
