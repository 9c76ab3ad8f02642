"""The update rules, each stated once.

The functions below use only ``+ - * /``, ``sqrt`` and ``where`` (compare and select): the operations that IEEE 754
rounds correctly everywhere, so that every backend that evaluates the same trees gets the same bits. They work on NumPy
arrays as they stand (`reference`); `lowering` turns the same source into scalar functions for Numba and CUDA, and
``csrc/generate.py`` into C.

The parentheses count: no fused multiply-add, no reassociation, no ``pow``. Coefficients are computed once per step on
the host in float64 (`coefficients`) and rounded once to the compute type.
"""

from __future__ import annotations

from numpy import sqrt, where

# --- Before every rule: the gradient is scaled, and coupled (L2) weight decay enters it (SGD, Adam) ----------------


def scale(g, s):
    return s * g


def coupled(g, p, wd):
    return g + wd * p


# --- After every rule: its step is subtracted ----------------------------------------------------------------------
# Decoupled weight decay (AdamW) is added to the step first: the usual factor 1 - lr * weight_decay is 1 in float32
# wherever lr * weight_decay < 3e-8.


def plain(p, u):
    return p - u


def decoupled(p, u, w):
    return p - (w * p + u)


# --- The rules, in order of increasing complexity: (g, p, states..., coefficients...) -> (step, states...) -----------


def sgd(g, p, c):
    u = c * g
    return (u,)


def momentum(g, p, v, a, b, c):
    v = a * v + b * g
    u = c * v
    return u, v


def nesterov(g, p, v, a, b, c, e, f):
    v = a * v + b * g
    u = c * (e * v + f * g)
    return u, v


def adam(g, p, m, v, b1, c1, b2, c2, step, r2, eps):
    m = b1 * m + c1 * g
    v = b2 * v + c2 * (g * g)
    u = (step * m) / (sqrt(v) * r2 + eps)
    return u, m, v


def amsgrad(g, p, m, v, x, b1, c1, b2, c2, step, r2, eps):
    m = b1 * m + c1 * g
    v = b2 * v + c2 * (g * g)
    x = where(x >= v, x, v)
    u = (step * m) / (sqrt(x) * r2 + eps)
    return u, m, v, x


# --- Averages of parameters: p is the average, g the parameter that enters it ----------------------------------------
# In a * p + b * g with rounded a and b an average of equal values would drift: a + b is not 1.


def average(g, p, b):
    u = b * (p - g)
    return (u,)
