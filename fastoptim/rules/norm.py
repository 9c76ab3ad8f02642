"""The gradient norm, whose order of summation is fixed, and the clip factor."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache


def clip_factor(norm: float, max_norm: float | None) -> float:
    """``min(1, max_norm / (norm + 1e-6))``, torch's; exactly 1 for an infinite `max_norm`. A NaN norm gives NaN."""
    if max_norm is None or max_norm == math.inf:
        return 1.0
    factor = max_norm / (norm + 1e-6)
    return 1.0 if factor > 1.0 else factor


# Each array is cut into blocks of NORM_BLOCK elements; element i of a block is added, in order, to lane i % NORM_LANES
# (float64, starting from +0). The lanes are added in pairs (0+1, 2+3, ...), and so on until one is left; then so are
# the blocks of all arrays, in order, an odd one at the end being carried as it is.
NORM_BLOCK = 4096
NORM_LANES = 16
# A float64 sum of squares that overflows or loses its small elements is taken again on gradients times a power of two.
NORM_RETRY = 2.0**600
NORM_TINY = 2.0**-900


def norm_from_squares(sum_of_squares: Callable[[float], float], total: float | None = None) -> float:
    """Euclidean norm from ``sum_of_squares(k)``, the sum over all elements ``x`` of ``(k * x)**2`` in float64.

    `total` is ``sum_of_squares(1.0)``, where that is known.
    """
    if total is None:
        total = sum_of_squares(1.0)
    if total == math.inf:
        return math.sqrt(sum_of_squares(1.0 / NORM_RETRY)) * NORM_RETRY
    if total < NORM_TINY:
        return math.sqrt(sum_of_squares(NORM_RETRY)) / NORM_RETRY
    return math.sqrt(total)


def norms_from_squares(sums_of_squares: Callable[[float], Sequence[float]], single: bool = False) -> list[float]:
    """Euclidean norms from ``sums_of_squares(k)``, such a sum for each of several arrays.

    `single` says that all are float32: their squares neither overflow float64 nor vanish in it, so that an array of
    zeros is not read a second time.
    """
    sums = cache(sums_of_squares)
    return [norm_from_squares(lambda k, i=i: sums(1.0 if single else k)[i]) for i in range(len(sums(1.0)))]  # type: ignore[misc]
