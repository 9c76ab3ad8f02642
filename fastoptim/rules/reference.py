"""The update rules executed by NumPy: what every other backend must equal, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import updates
from .norm import NORM_BLOCK, NORM_LANES
from .table import Kernel

Array = np.ndarray[Any, Any]


def _quiet() -> np.errstate:
    """IEEE 754 says what overflow and the like give; no warning is wanted."""
    return np.errstate(all="ignore")


def update(kernel: Kernel, p: Array, g: Array, states: Sequence[Array], scalars: Sequence[float]) -> None:
    """Apply one step in place to `p` and `states`; all arrays have one shape and one dtype, which scalars take on."""
    rule, T = kernel.rule, p.dtype.type
    with _quiet():
        s, decay, *coefficients = (T(x) for x in scalars)
        g = updates.scale(g, s)
        if kernel.decay == "coupled":
            g = updates.coupled(g, p, decay)
        result, *new_states = rule.function(g, p, *states, *coefficients)
        if rule.gives == "step":
            result = updates.decoupled(p, result, decay) if kernel.decay == "decoupled" else updates.plain(p, result)
        values = [result, *new_states]
        for i, value in enumerate(values):  # a rule may hand an array on as another: it is not to be overwritten first
            values[i] = value.copy() if any(value is x for x in (p, *states)) else value
        for target, new in zip((p, *states), values, strict=True):
            target[...] = new


def multiply(x: Array, factor: float) -> None:
    """``x <- factor * x`` in place, with the factor rounded to the dtype of `x`."""
    x *= x.dtype.type(factor)


def limited(g: Array, factor: float, limit: float) -> Array:
    """``where(x < -limit, -limit, where(x > limit, limit, x))`` with ``x = factor * g``, a new array."""
    T = g.dtype.type
    with _quiet():
        x = np.empty_like(g)
        np.multiply(g, T(factor), out=x)
        if limit < np.inf:
            np.copyto(x, T(-limit), where=x < T(-limit))
            np.copyto(x, T(limit), where=x > T(limit))
    return x


def block_sums(g: Array, grad_scale: float, k: float) -> Array:
    """Sums of ``(k * (grad_scale * g))**2``, one float64 for each block of `g` (1-d, contiguous)."""
    T = g.dtype.type
    blocks = -(-g.size // NORM_BLOCK)
    with _quiet():
        x = np.zeros(blocks * NORM_BLOCK)
        x[: g.size] = k * updates.scale(g, T(grad_scale)).astype(np.float64)
        rows = x.reshape(blocks, NORM_BLOCK // NORM_LANES, NORM_LANES)
        lanes = np.zeros((blocks, NORM_LANES))
        for row in range(NORM_BLOCK // NORM_LANES):
            lanes = lanes + rows[:, row] * rows[:, row]
        while lanes.shape[1] > 1:
            lanes = lanes[:, 0::2] + lanes[:, 1::2]
    return lanes[:, 0]


def tree_sum(values: Array) -> float:
    """Sum of `values` by the fixed pairwise tree; 0 for none."""
    with _quiet():
        while values.size > 1:
            even = values.size - values.size % 2
            values = np.concatenate([values[0:even:2] + values[1:even:2], values[even:]])
    return float(values[0]) if values.size else 0.0
