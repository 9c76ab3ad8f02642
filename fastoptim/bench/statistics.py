"""Medians, quartiles, and what a difference must exceed to mean something."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

IQR_TO_SIGMA = 1.349  # interquartile range of a normal distribution, in standard deviations
SIGMAS = 4.0  # a report has some hundred rows: with 3 a few would stand out by chance
FEWEST_ROUNDS = 4  # fewer show no spread that could be trusted, and a single one shows none at all
FLOOR = 0.05  # what timings of one program on one machine differ by from day to day


class Summary(NamedTuple):
    """Quartiles of some timings or ratios."""

    median: float
    q1: float
    q3: float

    @property
    def spread(self) -> float:
        """Standard deviation estimated from the interquartile range, as a fraction of the median."""
        return (self.q3 - self.q1) / IQR_TO_SIGMA / self.median if self.median else 0.0


def quantile(values: Sequence[float], fraction: float) -> float:
    """Quantile by linear interpolation; ValueError for no values."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    position = fraction * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


def summarise(values: Sequence[float]) -> Summary:
    """Median and quartiles."""
    return Summary(quantile(values, 0.5), quantile(values, 0.25), quantile(values, 0.75))


def loses(ratios: Sequence[float]) -> bool:
    """Whether ratios (above 1: faster) of paired rounds lie below 1 beyond their own spread; few rounds cannot tell."""
    return len(ratios) >= FEWEST_ROUNDS and summarise(ratios).q3 < 1 - 0.01


def threshold(a: Sequence[float], b: Sequence[float], drift: float = 0.0) -> float:
    """The relative change between two sets of timings that noise explains.

    `SIGMAS` times the spreads of both and the `drift` between the runs (a standard deviation too), and at least
    `FLOOR`. Spreads count in full, not divided by the root of the number of rounds: rounds that follow each other share
    their pages, their clock and their neighbours, so they are not independent. Few rounds show too little of a spread:
    it counts twice for four of them, and by half more for eight. Of fewer than `FEWEST_ROUNDS` no change is known to be
    one: the threshold is infinite.
    """
    if min(len(a), len(b)) < FEWEST_ROUNDS:
        return math.inf
    of_a, of_b = (summarise(x).spread * (1 + 4 / len(x)) for x in (a, b))
    spread = math.sqrt(of_a**2 + of_b**2 + drift**2)
    return max(FLOOR, SIGMAS * spread)
