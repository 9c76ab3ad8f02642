"""What a step makes of the norms of whole arrays: LAMB, LARS, NovoGrad, the clipped update, the cautious one.

Such a step goes twice over an array. First a *measure* (a row of `table.MEASURES`) yields terms, and nothing is
written: the squares of each term are summed in float64 by the blocks, lanes and tree of the gradient norm, so that
their norm has the same bits everywhere. Then the host turns the norms into scalars of that array alone, and the
ordinary kernel of the rule runs.

Scalars are ``(scale, decay, *coefficients)``, as everywhere. Norms are float64; what they give is rounded once.
"""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import NamedTuple

from .table import MEASURES, Kernel, Scalars


class Measure(NamedTuple):
    """A kernel of `MEASURES`, and its scalars from those of the step."""

    kernel: Kernel
    scalars: Callable[[Scalars], Scalars]


class Measured(NamedTuple):
    """What a step asks for first.

    Attributes
    ----------
    measures : tuple of Measure
    finish : callable
        ``finish(scalars, norms, size, *kept)``: the scalars of an array of `size` elements from those of its run. The
        norms are those of all terms, in order; `kept` are the rule's scalars behind this step.
    keep : callable, optional
        ``keep(norms, t, *kept)``: these from those before step `t`, where norms enter them.
    """

    measures: tuple[Measure, ...]
    finish: Callable[..., Scalars]
    keep: Callable[..., Scalars] | None = None


def ratio(a: float, b: float) -> float:
    """``a / b``, but 1 where either is zero; NaN where either is NaN."""
    return 1.0 if a == 0.0 or b == 0.0 else a / b


def _measure(name: str, decay: str, scalars: Callable[[Scalars], Scalars]) -> Measure:
    return Measure(Kernel(MEASURES[name], decay), scalars)


# --- LAMB: Adam's step with decoupled decay, as long as the parameter is ---------------------------------------------


def lamb(lr: float, trust_clip: bool) -> Measured:
    """For the kernel of Adam with decoupled decay; the step that is measured has the factor `lr`."""

    def finish(row: Scalars, norms: Scalars, size: int) -> Scalars:
        p, u = norms
        f = ratio(p, u / lr) if lr else 1.0
        return _times(row, 1.0 if trust_clip and f > 1.0 else f, "decoupled")

    return Measured((_measure("trust", "none", lambda row: (row[0], 0.0, *row[2:], row[1])),), finish)


def _times(row: Scalars, f: float, decay: str) -> Scalars:
    """Adam's scalars for a step that is `f` times as long, with its decay if that is decoupled."""
    s, w, b1, c1, b2, c2, step, *rest = row
    return (s, f * w if decay == "decoupled" else w, b1, c1, b2, c2, f * step, *rest)


# --- LARS: momentum of gradients that are as long as the parameter, times a coefficient ------------------------------


def lars(trust_coefficient: float, eps: float, mode: str, rates: tuple[int, ...]) -> Measured:
    """For kernels of descent with coupled decay; `rates` are the places of the scalars that have the factor lr."""
    joint = mode == "optax"

    def finish(row: Scalars, norms: Scalars, size: int) -> Scalars:
        p, g = norms
        length = g if joint else g + row[1] * p
        f = 1.0 if p == 0.0 or g == 0.0 else trust_coefficient * p / (length + eps)
        return tuple(f * x if i in rates else x for i, x in enumerate(row))

    return Measured((_measure("weight_and_gradient", "coupled" if joint else "none", lambda row: row[:2]),), finish)


# --- NovoGrad: a second moment for each array, of the norm of its gradient -------------------------------------------


def novograd(beta2: float, eps: float) -> Measured:
    """For the kernel `novograd`, whose coefficient d it fills in; the second moment is kept beside the step count."""

    def keep(norms: Scalars, t: int, v: float) -> Scalars:
        square = norms[0] * norms[0]
        return (square if t == 1 else beta2 * v + (1.0 - beta2) * square,)

    def finish(row: Scalars, norms: Scalars, size: int, v: float) -> Scalars:
        return (*row[:2], sqrt(v) + eps, *row[3:])

    return Measured((_measure("gradient", "none", lambda row: (row[0], 0.0)),), finish, keep)


# --- A clipped and a cautious update: of Adam, of Lion ---------------------------------------------------------------


def clipped(threshold: float, decay: str) -> Measured:
    """For Adam's kernels: a rate divided by ``max(1, RMS / threshold)``, where RMS is that of g / max(sqrt(v), eps)."""

    def finish(row: Scalars, norms: Scalars, size: int) -> Scalars:
        rms = norms[0] / sqrt(size) if size else 0.0
        f = 1.0 if rms <= threshold else threshold / rms
        return _times(row, f, decay)

    inside = "coupled" if decay == "coupled" else "none"
    return Measured((_measure("stable", inside, lambda row: row[:9]),), finish)


LEAST_SHARE = 1e-3  # of elements that agree: what is left is not made more than a thousand times as long


def cautious(decay: str) -> Measured:
    """For cautious kernels, whose last coefficients are the factor f and 0: f is one over the share that is stepped."""

    def finish(row: Scalars, norms: Scalars, size: int) -> Scalars:
        share = norms[0] * norms[0] / size if size else 1.0
        return (*row[:-2], 1.0 / (LEAST_SHARE if share < LEAST_SHARE else share), 0.0)

    inside = "coupled" if decay == "coupled" else "none"
    return Measured((_measure("agreement", inside, lambda row: (*row[:4], 0.0, 1.0)),), finish)


def both(first: Measured | None, second: Measured | None) -> Measured | None:
    """Two measures of one step that know nothing of each other; of one term each."""
    if first is None or second is None:
        return first or second
    one, two = first.finish, second.finish

    def finish(row: Scalars, norms: Scalars, size: int) -> Scalars:
        return two(one(row, norms[:1], size), norms[1:], size)

    return Measured(first.measures + second.measures, finish)
