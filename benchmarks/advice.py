"""The advice of `fastoptim.diagnose`, `probe_lr` and `lr_range_test` beside the truth.

    python benchmarks/advice.py                 # confusion matrix over generated curves, and real curves: a minute
    python benchmarks/advice.py --problems      # ... and 12 problems beside brute force over rates: some minutes
    python benchmarks/advice.py --tuning        # the curves on which thresholds were chosen

Thresholds were chosen on generated curves with seeds below 1,000,000 and on every other real curve; figures are reported
for seeds above and for the other real curves. No threshold was chosen by looking at the 12 problems.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

import fastoptim as fo
from fastoptim.training.diagnosis import VERDICTS

Array = np.ndarray
REAL = Path(__file__).resolve().parent.parent / "tests" / "support" / "curves"
NOISES = (0.0, 0.05, 0.3, 0.8)
HELD_OUT = 1_000_000  # first seed of the curves that are reported


# --- Generated curves ---------------------------------------------------------------------------------------------


class Kind(NamedTuple):
    """A family of curves: the exact loss over ``t`` in steps, what may be said of it, and which factors do no harm."""

    curve: Callable[[np.random.Generator, Array], Array]
    verdicts: tuple[str, ...]
    factors: tuple[float, ...]


def _falling(rng: np.random.Generator, t: Array) -> Array:
    """Still falling at the end: exponentially, by a power, or in a straight line, above a floor."""
    n, start = len(t), math.exp(rng.uniform(-3, 5))
    shape = rng.integers(3)
    floor = rng.uniform(0.0, 0.2)
    if shape == 0:
        fall = np.exp(-t / (n * rng.uniform(0.2, 0.5)))
    elif shape == 1:
        fall = (1 + t / (n * rng.uniform(0.01, 0.1))) ** -rng.uniform(0.4, 1.0)
    else:
        fall = 1 - rng.uniform(0.6, 0.9) * t / n
    return start * (floor + (1 - floor) * fall)


def _plateau(rng: np.random.Generator, t: Array) -> Array:
    floor = rng.uniform(0.05, 0.6)
    return math.exp(rng.uniform(-3, 5)) * (floor + (1 - floor) * np.exp(-t / (len(t) * rng.uniform(0.01, 0.08))))


def _flat(rng: np.random.Generator, t: Array) -> Array:
    return np.full(len(t), math.exp(rng.uniform(-3, 5)))


def _slow(rng: np.random.Generator, t: Array) -> Array:
    return math.exp(rng.uniform(-3, 5)) * (1 - rng.uniform(0.01, 0.08) * t / len(t))


def _straight(rng: np.random.Generator, t: Array) -> Array:
    return math.exp(rng.uniform(-3, 5)) * (1 - rng.uniform(0.15, 0.33) * t / len(t))


def _cosine(rng: np.random.Generator, t: Array) -> Array:
    """A rate that falls along a cosine: the loss falls with it and is flat in the end."""
    progress = np.cumsum(1 + np.cos(math.pi * t / len(t))) / len(t)
    floor = rng.uniform(0.02, 0.3)
    return math.exp(rng.uniform(-2, 3)) * (floor + (1 - floor) * np.exp(-rng.uniform(1.5, 6) * progress))


def _warmup(rng: np.random.Generator, t: Array) -> Array:
    """Hardly anything at first, or even a small rise; then an ordinary fall."""
    late = int(len(t) * rng.uniform(0.05, 0.25))
    rise = 1 + rng.uniform(0, 0.1) * np.minimum(t / late, 1)
    return math.exp(rng.uniform(-2, 3)) * rise * (0.1 + 0.9 * np.exp(-np.maximum(t - late, 0) / (0.3 * len(t))))


def _epochs(rng: np.random.Generator, t: Array) -> Array:
    """The pattern of an epoch's minibatches, always in the same order."""
    period = int(rng.integers(3, max(4, len(t) // 8)))
    return np.exp(rng.uniform(0.05, 0.4) * rng.standard_normal(period))[t.astype(int) % period]


def _spikes(rng: np.random.Generator, t: Array) -> Array:
    spike = rng.random(len(t)) < 0.02
    return np.where(spike, np.exp(rng.uniform(1, 4, len(t))), 1.0)


def _heavy(rng: np.random.Generator, t: Array) -> Array:
    return np.exp(0.2 * np.clip(rng.standard_t(2, len(t)), -20, 20))


def _diverging(rng: np.random.Generator, t: Array) -> Array:
    """Growth from the start, after a fall, or within a few steps to a level far above."""
    n, shape = len(t), rng.integers(3)
    if shape == 0:
        return np.exp(rng.uniform(2, 50) * t / n)
    if shape == 1:
        return np.exp(-rng.uniform(2, 5) * t / n) + 1e-3 * np.exp(rng.uniform(12, 40) * t / n)
    return 1 + rng.uniform(5, 50) * np.minimum(t / (n * rng.uniform(0.05, 0.3)), 1)


def _rising(rng: np.random.Generator, t: Array) -> Array:
    return 1 + rng.uniform(0.1, 0.8) * (t / len(t)) ** rng.uniform(0.5, 2)


def _two_cycle(rng: np.random.Generator, t: Array) -> Array:
    fall = np.exp(-t / (len(t) * rng.uniform(0.02, 0.1)))
    return rng.uniform(1, 5) * fall + 1 + rng.uniform(0.1, 0.6) * (-1.0) ** t


def _late(rng: np.random.Generator, t: Array) -> Array:
    """A power law whose first quarter is missing."""
    return (1 + (t + len(t) / 3) / (len(t) * rng.uniform(0.01, 0.1))) ** -rng.uniform(0.05, 0.5)


def _both(first: Callable[..., Array], second: Callable[..., Array]) -> Callable[..., Array]:
    return lambda rng, t: first(rng, t) * second(rng, t)


FINE = ("healthy", "plateau")
KEEP = (1.0,)
KINDS = {
    "healthy": Kind(_falling, FINE, KEEP),
    "healthy, cosine": Kind(_cosine, FINE, KEEP),
    "healthy, warm-up": Kind(_warmup, FINE, KEEP),
    "healthy, in order of the data": Kind(_both(_falling, _epochs), FINE, KEEP),
    "healthy, heavy tails": Kind(_both(_falling, _heavy), FINE, KEEP),
    "healthy, spikes": Kind(_both(_falling, _spikes), FINE, KEEP),
    "healthy, log begins late": Kind(_late, FINE, KEEP),
    "plateau": Kind(_plateau, FINE, KEEP),
    "plateau, in order of the data": Kind(_both(_plateau, _epochs), FINE, KEEP),
    "flat from the start": Kind(_flat, ("plateau",), KEEP),
    "flat, heavy tails": Kind(_both(_flat, _heavy), ("plateau",), KEEP),
    "too slow": Kind(_slow, ("too slow",), (1.0, 2.0, 10.0)),
    "too slow, straight": Kind(_straight, ("too slow",), (1.0, 2.0)),
    "two-cycle": Kind(_two_cycle, ("oscillating",), (1.0, 0.5, 0.1)),
    "rising": Kind(_rising, ("unclear", "diverged", "oscillating"), (1.0, 0.5, 0.1)),
    "diverging": Kind(_diverging, ("diverged",), (1.0, 0.5, 0.1)),
}


def generated(kind: str, noise: float, seed: int) -> Array:
    """One curve of known truth, of 60 to 2,000 steps; every third rounded to 2 to 6 decimals, every third float32."""
    rng = np.random.default_rng([seed, list(KINDS).index(kind), NOISES.index(noise)])
    n = int(math.exp(rng.uniform(math.log(60), math.log(2000))))
    y = KINDS[kind].curve(rng, np.arange(float(n))) * np.exp(noise * rng.standard_normal(n))
    if seed % 3 == 1:
        return np.round(y, int(rng.integers(2, 7)))
    return y.astype(np.float32) if seed % 3 == 2 else y


def never_rising(seed: int) -> Array:
    """A curve without a single rise, rounded to 2 to 6 decimals, or float32."""
    rng = np.random.default_rng([seed, 99])
    n = int(rng.integers(20, 400))
    t = np.arange(float(n))
    fall = (t * rng.uniform(0, 0.9) / n, 1 - np.exp(-t / rng.uniform(1, n)), 1 - 1 / (1 + t) ** rng.uniform(0.1, 2))
    y = math.exp(rng.uniform(-5, 5)) * (1 - rng.uniform(0.001, 1.0) * fall[rng.integers(3)])
    return np.round(y, int(rng.integers(2, 7))) if seed % 2 else y.astype(np.float32)


def confusion(seeds: Sequence[int]) -> Iterator[str]:
    """The matrix of what was said by what is true, noise by noise, as lines of Markdown."""
    yield "| truth | noise | " + " | ".join(VERDICTS) + " | right | harmful |"
    yield "|---" * (len(VERDICTS) + 4) + "|"
    for kind, truth in KINDS.items():
        for noise in NOISES:
            found = [fo.diagnose(generated(kind, noise, seed)) for seed in seeds]
            said = Counter(one.verdict for one in found)
            right = sum(said[verdict] for verdict in truth.verdicts) / len(found)
            harmful = sum(one.lr_factor not in truth.factors for one in found)
            counts = " | ".join(str(said[verdict] or "") for verdict in VERDICTS)
            yield f"| {kind} | {noise:g} | {counts} | {right:.0%} | {harmful or ''} |"
    oscillating = sum(fo.diagnose(never_rising(seed)).verdict == "oscillating" for seed in seeds[:10] or ())
    del oscillating


# --- Real curves --------------------------------------------------------------------------------------------------


class Real(NamedTuple):
    """A curve that somebody's training left behind, and what may be said of it."""

    name: str
    kind: str
    losses: Array
    verdicts: tuple[str, ...]
    rate: str

    def acceptable(self, found: fo.training.diagnosis.Diagnosis) -> bool:
        """Whether the verdict is among those given for it."""
        return found.verdict in self.verdicts

    def harmful(self, found: fo.training.diagnosis.Diagnosis) -> bool:
        """Whether following the advice would do harm: raise, halve or divide where the truth says otherwise."""
        if found.lr_factor > 1.0:
            return "raise" not in self.rate
        if found.lr_factor == 1.0 or "lower" in self.rate:
            return False
        return found.lr_factor == 0.1 or "oscillating" not in self.verdicts


def real_curves() -> tuple[list[Real], list[Real]]:
    """The curves on which thresholds were chosen, every other one by name, and the rest."""
    with (REAL / "truth.csv").open(encoding="utf-8") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["file"])
    curves = [
        Real(
            row["file"],
            row["kind"],
            np.array([float(value) for value in (REAL / row["file"]).read_text().split()]),
            tuple(row["acceptable"].split(";")),
            row["rate"],
        )
        for row in rows
    ]
    return curves[::2], curves[1::2]
