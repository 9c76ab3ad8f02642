"""The law: every update rule, stated once.

The rule functions below use only ``+ - * /``, ``sqrt`` and ``where`` (compare and select): the operations that
IEEE 754 rounds correctly everywhere, so that every backend that evaluates the same trees gets the same bits. They
work on NumPy arrays as they stand (`fastoptim.reference`); `fastoptim.lowering` turns the same source into scalar
functions for Numba and CUDA; ``csrc/kernels/rules.h`` mirrors them line by line, in the same order.

The parentheses are part of the law. No fused multiply-add, no reassociation, no ``pow``: coefficients are computed
once per step on the host in float64 by the ``*_coefficients`` functions and rounded once to the compute type.
"""

from __future__ import annotations

from numpy import sqrt, where


def scale(g, s):
    """Scaled gradient; ``s = grad_scale * clip factor * (-1 if maximize)``."""
    return s * g


def coupled(p, g, wd):
    """Coupled (L2) weight decay: it enters the gradient (SGD, Adam)."""
    return g + wd * p


def decoupled(p, keep):
    """Decoupled weight decay (AdamW): ``keep = 1 - lr * weight_decay``, before the update."""
    return p * keep


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
