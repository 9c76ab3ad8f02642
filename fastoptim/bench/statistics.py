"""Medians, quartiles, and what a difference must exceed to mean something."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

IQR_TO_SIGMA = 1.349  # interquartile range of a normal distribution, in standard deviations
SIGMAS = 4.0  # a report has some hundred rows: with 3 a few would stand out by chance
FEWEST_ROUNDS = 4  # fewer show no spread that could be trusted, and a single one shows none at all
FLOOR = 0.05  # what timings of one program on one machine differ by from day to day
BUSY = 0.1  # of the cases or rows: where more are disturbed, the whole run is not to be relied on
NOISY = 0.2  # rows that spread by more are left out of every range that a report states


class Summary(NamedTuple):
    """Quartiles of some timings or ratios, and how many there were."""

    median: float
    q1: float
    q3: float
    rounds: int

    @property
    def spread(self) -> float:
        """Standard deviation estimated from the interquartile range, as a fraction of the median."""
        return (self.q3 - self.q1) / IQR_TO_SIGMA / self.median if self.median else 0.0


# One number for each round, or what `summarise` makes of them: results may hold either.
Values = Sequence[float] | Mapping[str, Any]


def summarise(values: Values) -> Summary:
    """Find median and quartiles."""
    if isinstance(values, Mapping):
        return Summary(**values)
    q1, median, q3 = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return Summary(median, q1, q3, len(values))


def verdict(ratios: Values) -> str:
    """Judge how many times faster one of two was, round by round.

    "win" or "loss" where the whole interquartile range lies above 1 or below .99, "tie" elsewhere, and "unknown" where
    fewer than `FEWEST_ROUNDS` rounds show no spread to judge by.
    """
    _, q1, q3, rounds = summarise(ratios)
    if rounds < FEWEST_ROUNDS:
        return "unknown"
    return "loss" if q3 < 1 - 0.01 else "win" if q1 > 1 else "tie"


def threshold(a: Values, b: Values, drift: float = 0.0) -> float:
    """Find the relative change between two sets of timings that noise explains.

    `SIGMAS` times the spreads of both and the `drift` between the runs (a standard deviation too), and at least
    `FLOOR`. Spreads count in full, not divided by the root of the number of rounds: rounds that follow each other share
    their pages, their clock and their neighbours, so they are not independent. Few rounds show too little of a spread:
    it counts twice for four of them, and by half more for eight. Of fewer than `FEWEST_ROUNDS` no change is known to be
    one: the threshold is infinite.
    """
    both = summarise(a), summarise(b)
    if min(s.rounds for s in both) < FEWEST_ROUNDS:
        return math.inf
    spread = math.hypot(*(s.spread * (1 + 4 / s.rounds) for s in both), drift)
    return max(FLOOR, SIGMAS * spread)
