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


# Cautious: only where the step points the way of the gradient is it taken, times f. Products with zero keep NaN.


def cautious_adam(g, p, m, v, b1, c1, b2, c2, step, r2, eps, f, zero):
    m = b1 * m + c1 * g
    v = b2 * v + c2 * (g * g)
    u = f * ((step * m) / (sqrt(v) * r2 + eps))
    s = where(g > zero, m, where(g < zero, zero - m, zero))
    u = where(s > zero, u, zero * u)
    return u, m, v


def cautious_amsgrad(g, p, m, v, x, b1, c1, b2, c2, step, r2, eps, f, zero):
    m = b1 * m + c1 * g
    v = b2 * v + c2 * (g * g)
    x = where(x >= v, x, v)
    u = f * ((step * m) / (sqrt(x) * r2 + eps))
    s = where(g > zero, m, where(g < zero, zero - m, zero))
    u = where(s > zero, u, zero * u)
    return u, m, v, x


# Without roots: sums, signs, averages. `zero` is 0: rules hold no numbers. NaN must come out of every rule: in
# where(x < lo, lo, x) a NaN is neither less nor more, and is handed on; where(x > lo, x, lo) would lose it.


def signsgd(g, p, up, down, zero):
    u = where(g > zero, up, where(g < zero, down, g))
    return (u,)


def signum(g, p, m, a, b, up, down, zero):
    m = a * m + b * g
    u = where(m > zero, up, where(m < zero, down, m))
    return u, m


def lion(g, p, m, b1, c1, b2, c2, up, down, zero):
    d = b1 * m + c1 * g
    m = b2 * m + c2 * g
    u = where(d > zero, up, where(d < zero, down, d))
    return u, m


def cautious_lion(g, p, m, b1, c1, b2, c2, up, down, f, zero):
    d = b1 * m + c1 * g
    m = b2 * m + c2 * g
    share = where(g > zero, where(d > zero, f, zero), where(g < zero, where(d < zero, f, zero), zero))
    u = share * where(d > zero, up, where(d < zero, down, d))
    return u, m


def novograd(g, p, m, d, wd, b1, c1, c):
    m = b1 * m + c1 * (g / d + wd * p)
    u = c * m
    return u, m


def rprop(g, p, q, w, up, down, lo, hi, zero):
    s = g * q
    w = where(s > zero, w * up, where(s < zero, w * down, w))
    w = where(w < lo, lo, w)
    w = where(w > hi, hi, w)
    q = where(s < zero, zero, g)
    u = where(q > zero, w, where(q < zero, zero - w, q))
    return u, q, w


def asgd(g, p, x, d, c, a, b):
    p = p - (d * p + c * g)
    x = a * x + b * p
    return p, x


def schedule_free_sgd(g, p, z, a, b, e, c):
    p = (a * p + b * z) - e * g
    z = z - c * g
    return p, z


# With roots of running means or sums of squares.


def rmsprop(g, p, v, a, b, er, eps, c):
    v = a * v + b * (g * g)
    u = (c * g) / (sqrt(v + er) + eps)
    return u, v


def rmsprop_momentum(g, p, v, x, a, b, er, eps, d, e, c):
    v = a * v + b * (g * g)
    x = d * x + (e * g) / (sqrt(v + er) + eps)
    u = c * x
    return u, v, x


def rmsprop_centered(g, p, v, m, a, b, er, eps, c, zero):
    v = a * v + b * (g * g)
    m = a * m + b * g
    w = v - m * m
    w = where(w < zero, zero, w)
    u = (c * g) / (sqrt(w + er) + eps)
    return u, v, m


def rmsprop_centered_momentum(g, p, v, m, x, a, b, er, eps, d, e, c, zero):
    v = a * v + b * (g * g)
    m = a * m + b * g
    w = v - m * m
    w = where(w < zero, zero, w)
    x = d * x + (e * g) / (sqrt(w + er) + eps)
    u = c * x
    return u, v, m, x


def adadelta(g, p, v, x, a, b, eps, c):
    v = a * v + b * (g * g)
    d = (sqrt(x + eps) / sqrt(v + eps)) * g
    x = a * x + b * (d * d)
    u = c * d
    return u, v, x


def adamax(g, p, m, x, b1, c1, b2, e, step, eps, zero):
    m = b1 * m + c1 * g
    a = where(g < zero, zero - g, g) + e
    x = b2 * x
    x = where(x >= a, x, a)
    u = (step * m) / (x + eps)
    return u, m, x


def nadam(g, p, m, v, b1, c1, b2, c2, f, step, r2, eps):
    m = b1 * m + c1 * g
    v = b2 * v + c2 * (g * g)
    u = (f * g + step * m) / (sqrt(v) * r2 + eps)
    return u, m, v


def adabelief(g, p, m, v, b1, c1, b2, c2, er, step, r2, eps):
    m = b1 * m + c1 * g
    d = g - m
    v = (b2 * v + c2 * (d * d)) + er
    u = (step * m) / (sqrt(v) * r2 + eps)
    return u, m, v


def yogi(g, p, m, v, b1, c1, c2, step, r2, eps):
    m = b1 * m + c1 * g
    d = g * g
    e = c2 * d
    v = where(v > d, v - e, where(v < d, v + e, v))
    u = (step * m) / (sqrt(v) * r2 + eps)
    return u, m, v


def adopt(g, p, m, v, b1, c1, b2, c2, eps, lo, hi, c):
    d = sqrt(v)
    d = where(d < eps, eps, d)
    x = g / d
    x = where(x < lo, lo, x)
    x = where(x > hi, hi, x)
    m = b1 * m + c1 * x
    v = b2 * v + c2 * (g * g)
    u = c * m
    return u, m, v


def laprop(g, p, m, v, b1, c1, b2, c2, r2, eps, step):
    v = b2 * v + c2 * (g * g)
    m = b1 * m + c1 * (g / (sqrt(v) * r2 + eps))
    u = step * m
    return u, m, v


def ademamix(g, p, m, v, w, b1, c1, b2, c2, b3, c3, step, f, r2, eps):
    m = b1 * m + c1 * g
    v = b2 * v + c2 * (g * g)
    w = b3 * w + c3 * g
    u = (step * m + f * w) / (sqrt(v) * r2 + eps)
    return u, m, v, w


def adan(g, p, m, v, w, q, b1, c1, b2, c2, b3, c3, e, f, s1, s2, r3, eps):
    d = e * (g - q)
    m = b1 * m + c1 * g
    w = b2 * w + c2 * d
    x = g + f * d
    v = b3 * v + c3 * (x * x)
    u = (s1 * m + s2 * w) / (sqrt(v) * r3 + eps)
    return u, m, v, w, g


def schedule_free_adamw(g, p, z, v, b2, c2, r2, eps, wd, a, b, e, c):
    v = b2 * v + c2 * (g * g)
    x = g / (sqrt(v) * r2 + eps) + wd * p
    p = (a * p + b * z) - e * x
    z = z - c * x
    return p, z, v


def ftrl(g, p, n, z, h, l1, down, l2):
    s = sqrt(n)
    n = n + g * g
    r = sqrt(n)
    z = (z + g) - ((r - s) * h) * p
    y = where(z < down, down, z)
    y = where(y > l1, l1, y)
    p = (y - z) / (r * h + l2)
    return p, n, z


# --- Averages of parameters: p is the average, g the parameter that enters it ----------------------------------------
# In a * p + b * g with rounded a and b an average of equal values would drift: a + b is not 1.


def average(g, p, b):
    u = b * (p - g)
    return (u,)


# --- Measures: (g, p, states..., coefficients...) -> terms, of which a step needs the norms over the whole array ---
# They are taken before anything is written; see `measures`.


def weight_and_gradient(g, p):
    return p, g


def gradient(g, p):
    return (g,)


def trust(g, p, m, v, b1, c1, b2, c2, step, r2, eps, w):
    m = b1 * m + c1 * g
    v = b2 * v + c2 * (g * g)
    u = w * p + (step * m) / (sqrt(v) * r2 + eps)
    return p, u


def stable(g, p, m, v, b1, c1, b2, c2, step, r2, eps):
    v = b2 * v + c2 * (g * g)
    d = sqrt(v) * r2
    d = where(d < eps, eps, d)
    return (g / d,)


def agreement(g, p, m, b, c, zero, one):
    d = b * m + c * g
    s = where(g > zero, d, where(g < zero, zero - d, zero))
    return (where(s > zero, one, zero),)
