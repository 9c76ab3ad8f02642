"""The update rules executed by NumPy: what every other backend must equal, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import codecs, updates
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


def update_stored(
    kernel: Kernel, arrays: Sequence[Array], stored: codecs.Stored, scalars: Sequence[float], t: int
) -> None:
    """As `update`, for flat arrays (p, g, states, scales, master copy) of fewer bits; `t` is the step."""
    count = len(kernel.rule.states)
    p, g, *states = arrays[: 2 + count]
    rest = list(arrays[2 + count :])
    scales = [rest.pop(0) if stored.scales else None for _ in states]
    gradient = stored.parameter if g.dtype == p.dtype else "float32"
    whole = rest[0] if stored.master else p
    value = codecs.decoded(whole, None, "float32" if stored.master else stored.parameter, False).copy()
    pairs = list(zip(states, scales, stored.squares, strict=True))
    values = [codecs.decoded(x, scale, stored.state, square).copy() for x, scale, square in pairs]
    update(kernel, value, codecs.decoded(g, None, gradient, False), values, scalars)
    written: list[tuple[Array, Array]] = []  # at the very end, when nothing needs memory any more
    if whole.dtype == np.float32:
        written.append((whole, value))
    if stored.parameter != "float32":
        new = np.empty_like(p)
        codecs.encode(value, new, None, stored.slot(0, t))
        written.append((p, new))
    for i, ((codes, scale, _), x) in enumerate(zip(pairs, values, strict=True), 2):
        if stored.state == "float32":
            written.append((codes, x))
            continue
        new, new_scale = np.empty_like(codes), None if scale is None else np.empty_like(scale)
        codecs.encode(x, new, new_scale, stored.slot(i, t))
        written.append((codes, new))
        if scale is not None and new_scale is not None:
            written.append((scale, new_scale))
    for target, result in written:
        target[...] = result


def measure(
    kernel: Kernel, p: Array, g: Array, states: Sequence[Array], scalars: Sequence[float], k: float
) -> list[Array]:
    """For each term of a measure: sums of ``(k * term)**2``, one float64 for each block of the arrays (1-d)."""
    T = p.dtype.type
    with _quiet():
        s, decay, *coefficients = (T(x) for x in scalars)
        g = updates.scale(g, s)
        if kernel.decay == "coupled":
            g = updates.coupled(g, p, decay)
        terms = kernel.rule.function(g, p, *states[: len(kernel.rule.states)], *coefficients)
    return [block_sums(term, 1.0, k) for term in terms]


def multiply(x: Array, factor: float) -> None:
    """``x <- factor * x`` in place, with the factor rounded to the dtype of `x`."""
    x *= x.dtype.type(factor)


def limited(g: Array, factor: float, limit: float) -> Array:
    """``where(x < -limit, -limit, where(x > limit, limit, x))`` with ``x = factor * g``, a new array."""
    g = codecs.widened(g)
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
    g = codecs.widened(g)
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
