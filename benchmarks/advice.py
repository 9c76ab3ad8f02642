"""The advice of `fastoptim.diagnose`, `probe_lr` and `lr_range_test` beside the truth.

    python benchmarks/advice.py                 # generated and real curves: two minutes
    python benchmarks/advice.py --problems      # 15 problems beside what other rates, and more steps, do: 5 minutes
    python benchmarks/advice.py --probes        # probe_lr on them beside brute force: ten minutes
    python benchmarks/advice.py --hostile 100000 # curves of extreme values: nothing raises, nothing says "nan"
    python benchmarks/advice.py --tuning        # the curves on which thresholds were chosen

Thresholds were chosen on generated curves with seeds below 1,000,000 and on every other real curve by name; what is
reported by default are seeds above and the other real curves. None was chosen by looking at the 15 problems. Two rules
were added after a first look at what is reported: an S is no straight line (one curve of the other half), and `confirm`
of `probe_lr` looks at two rates on each side, as its search does (three pairs of the problems).
That noise may hide a fall by a tenth (`_ROOM`) was added because of what `--problems` says.
"""

from __future__ import annotations

import argparse
import csv
import itertools
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


def _s_shape(rng: np.random.Generator, t: Array) -> Array:
    """Slow, then faster, then slow again, as a schedule or the leaving of a saddle makes it; not by very much."""
    steep, centre = rng.uniform(5, 12), rng.uniform(0.35, 0.6)
    return math.exp(rng.uniform(-2, 3)) * (1 - rng.uniform(0.15, 0.45) / (1 + np.exp(-steep * (t / len(t) - centre))))


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
    "healthy, S-shaped": Kind(_s_shape, FINE, KEEP),
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


EXTREMES = np.array([0.0, -0.0, 5e-324, -5e-324, 1e-310, 1.0, -1.0, 100.0, 1e308, -1.7e308, np.nan, np.inf])


def hostile(seed: int) -> Array:
    """Up to 60 values that no training has: zeros, subnormals, the largest numbers, mixed signs, gaps, steps."""
    rng = np.random.default_rng([seed, 98])
    n, kind = int(rng.integers(0, 60)), seed % 4
    if kind == 0:
        return rng.choice(EXTREMES, n)
    if kind == 1:
        return rng.choice(EXTREMES[:10], 2)[rng.integers(0, 2, n)]
    if kind == 2:
        return np.sign(rng.standard_normal(n)) * 10.0 ** rng.uniform(-320, 308, n)
    before, after = rng.choice(EXTREMES, 2)
    return np.where(np.arange(n) < rng.integers(0, 60), before, after)


def misread(seed: int) -> str:
    """What is wrong with the diagnosis of a hostile curve: it raises, or says what is no number; "" if nothing is."""
    losses = hostile(seed)
    for fixed in (False, True):
        try:
            found = fo.diagnose(losses, fixed_batch=fixed, momentum=0.9, lr=0.1)
        except Exception as error:
            return f"seed {seed}: {error!r}"
        if found.verdict not in VERDICTS or "nan" in str(found) or "inf" in found.remedy:
            return f"seed {seed}: {found}"
    return ""


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


def judged(curves: Sequence[Real]) -> Iterator[str]:
    """How many verdicts are acceptable and how much advice would do harm; the exceptions by name."""
    found = [(curve, fo.diagnose(curve.losses)) for curve in curves]
    good = sum(curve.acceptable(one) for curve, one in found)
    bad = sum(curve.harmful(one) for curve, one in found)
    unclear = sum(one.verdict in ("unclear", "too short") and not curve.acceptable(one) for curve, one in found)
    yield f"{len(curves)} curves: {good} verdicts acceptable, {unclear} more unclear or too short, {bad} harmful"
    for curve, one in found:
        if not curve.acceptable(one) or curve.harmful(one):
            harm = " HARMFUL" if curve.harmful(one) else ""
            yield f"  {curve.name} ({curve.kind}; {'/'.join(curve.verdicts)}; {curve.rate}):"
            yield f"    {one.verdict}, factor {one.lr_factor:g}{harm}. {one.remedy}"


def stability(curves: Sequence[Real]) -> str:
    """How often one to eight values fewer at the end change a verdict or a factor."""
    verdicts = factors = worst = 0
    for curve in curves:
        whole = fo.diagnose(curve.losses)
        cut = [fo.diagnose(curve.losses[:-k]) for k in range(1, 9)]
        verdicts += any(one.verdict != whole.verdict for one in cut)
        factors += any(one.lr_factor != whole.lr_factor for one in cut)
        worst += any(max(one.lr_factor, whole.lr_factor) > 1 > min(one.lr_factor, whole.lr_factor) for one in cut)
    return (
        f"one to eight values fewer change the verdict of {verdicts} of {len(curves)} curves, the factor of {factors}, "
        f"and turn raising into lowering in {worst}"
    )


# --- Fifteen problems ---------------------------------------------------------------------------------------------

Grads = dict[str, Array]


class Problem(NamedTuple):
    """Something to train from given parameters on given data."""

    name: str
    params: dict[str, Array]
    loss_and_grad: Callable[[dict[str, Array], tuple[Array, ...]], tuple[float, Grads]]
    data: tuple[Array, ...]
    batch_size: int

    @property
    def fixed_batch(self) -> bool:
        """Whether every step sees all the data."""
        return self.batch_size == len(self.data[0])

    def train(self, optimizer: str, lr: float, steps: int) -> tuple[Array, Callable[[int], float]]:
        """Losses of the minibatches, and the loss over all data around a step; parameters are put back.

        That is the mean over the last tenth of the steps up to it: at rates that are large for a problem this loss goes
        up and down by more than good rates lie apart, and a single value would call the luckiest rate the best.
        """
        saved = {key: p.copy() for key, p in self.params.items()}
        opt = OPTIMIZERS[optimizer](self.params, lr)
        batches, losses, ends = fo.minibatches(self.data, self.batch_size), [], np.full(steps + 1, math.inf)
        asked = {
            step for end in (STEPS, *LENGTHS, *(2 * n for n in LENGTHS)) for step in range(end, int(0.9 * end), -5)
        }
        with np.errstate(all="ignore"):
            for step in range(1, steps + 1):
                loss, grads = self.loss_and_grad(self.params, batches.next_batch())
                losses.append(loss)
                if not math.isfinite(loss):
                    break
                opt.step(grads)
                if step in asked:
                    ends[step] = self.loss_and_grad(self.params, self.data)[0]
        for key, p in self.params.items():
            p[...] = saved[key]

        def around(step: int) -> float:
            end = float(np.mean(ends[np.arange(step, int(0.9 * step), -5)]))
            return end if math.isfinite(end) else math.inf

        return np.array(losses), around


OPTIMIZERS: dict[str, Callable[[dict[str, Array], float], fo.Optimizer]] = {
    "sgd": lambda params, lr: fo.SGD(params, lr=lr),
    "momentum": lambda params, lr: fo.SGD(params, lr=lr, momentum=0.9),
    "adam": lambda params, lr: fo.Adam(params, lr=lr),
}


def _linear(name: str, link: Callable[[Array, Array], tuple[Array, Array]], x: Array, y: Array, size: int) -> Problem:
    """A generalised linear model: ``link(margin, y)`` gives losses and their derivatives by the margin."""

    def loss_and_grad(params: dict[str, Array], batch: tuple[Array, ...]) -> tuple[float, Grads]:
        features, target = batch
        loss, slope = link(features @ params["w"] + params["b"], target)
        return float(np.mean(loss)), {"w": features.T @ slope / len(target), "b": np.array([np.mean(slope)])}

    return Problem(name, {"w": np.zeros(x.shape[1]), "b": np.zeros(1)}, loss_and_grad, (x, y), size)


def _squared(margin: Array, y: Array) -> tuple[Array, Array]:
    return 0.5 * (margin - y) ** 2, margin - y


def _huber(margin: Array, y: Array) -> tuple[Array, Array]:
    error = margin - y
    small = np.abs(error) < 1.0
    return np.where(small, 0.5 * error**2, np.abs(error) - 0.5), np.clip(error, -1.0, 1.0)


def _logistic(margin: Array, y: Array) -> tuple[Array, Array]:
    return np.logaddexp(0.0, margin) - y * margin, 0.5 * (1.0 + np.tanh(0.5 * margin)) - y


def _poisson(margin: Array, y: Array) -> tuple[Array, Array]:
    rate = np.exp(margin)
    return rate - y * margin, rate - y


def _hinge(margin: Array, y: Array) -> tuple[Array, Array]:
    side = 2.0 * y - 1.0
    return np.maximum(0.0, 1.0 - side * margin), np.where(side * margin < 1.0, -side, 0.0)


def _softmax(logits: Array, labels: Array) -> tuple[float, Array]:
    """Mean cross-entropy and its gradient by the logits."""
    logits = logits - logits.max(axis=1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    delta = np.exp(log_p)
    delta[np.arange(len(labels)), labels] -= 1.0
    return -float(np.mean(log_p[np.arange(len(labels)), labels])), delta / len(labels)


def _layers(name: str, x: Array, y: Array, sizes: Sequence[int], size: int, classes: bool) -> Problem:
    """A network of tanh units with softmax or squared error."""
    rng = np.random.default_rng(7)
    shapes = list(itertools.pairwise(sizes))
    params = {f"w{i}": rng.standard_normal(shape) / math.sqrt(shape[0]) for i, shape in enumerate(shapes)}
    params |= {f"b{i}": np.zeros(shape[1]) for i, shape in enumerate(shapes)}

    def loss_and_grad(params: dict[str, Array], batch: tuple[Array, ...]) -> tuple[float, Grads]:
        features, target = batch
        values = [features]
        for i in range(len(shapes)):
            out = values[-1] @ params[f"w{i}"] + params[f"b{i}"]
            values.append(np.tanh(out) if i + 1 < len(shapes) else out)
        if classes:
            loss, delta = _softmax(values[-1], target)
        else:
            error = values[-1] - target
            loss, delta = 0.5 * float(np.mean(error**2)), error / error.size
        grads: Grads = {}
        for i in reversed(range(len(shapes))):
            grads[f"w{i}"], grads[f"b{i}"] = values[i].T @ delta, delta.sum(axis=0)
            delta = (delta @ params[f"w{i}"].T) * (1.0 - values[i] ** 2)
        return loss, grads

    return Problem(name, params, loss_and_grad, (x, y), size)


def _embeddings(seed: int = 3) -> Problem:
    """Ratings of users and things from embeddings: sparse gradients."""
    rng = np.random.default_rng(seed)
    user, thing = rng.integers(0, 100, 4000), rng.integers(0, 80, 4000)
    rating = np.sum(rng.standard_normal((100, 4))[user] * rng.standard_normal((80, 4))[thing], axis=1)
    params = {"u": 0.3 * rng.standard_normal((100, 4)), "v": 0.3 * rng.standard_normal((80, 4))}

    def loss_and_grad(params: dict[str, Array], batch: tuple[Array, ...]) -> tuple[float, Grads]:
        i, j, target = batch
        a, b = params["u"][i], params["v"][j]
        error = np.sum(a * b, axis=1) - target
        grads = {key: np.zeros_like(p) for key, p in params.items()}
        np.add.at(grads["u"], i, error[:, None] * b / len(i))
        np.add.at(grads["v"], j, error[:, None] * a / len(j))
        return 0.5 * float(np.mean(error**2)), grads

    return Problem("embeddings of ratings", params, loss_and_grad, (user, thing, rating), 64)


def problems() -> list[Problem]:
    """Problems on which nothing was tuned."""
    from sklearn.datasets import (
        load_breast_cancer,
        load_diabetes,
        load_digits,
        load_iris,
        load_wine,
        make_friedman1,
        make_moons,
    )

    rng = np.random.default_rng(11)

    def scaled(x: Array) -> Array:
        return (x - x.mean(axis=0)) / x.std(axis=0)

    wine, cancer, iris, diabetes = load_wine(), load_breast_cancer(), load_iris(), load_diabetes()
    digits = load_digits()
    friedman, friedman_y = make_friedman1(1500, 10, noise=1.0, random_state=0)
    moons, moons_y = make_moons(1000, noise=0.2, random_state=0)
    x = rng.standard_normal((2000, 15)) * np.geomspace(0.1, 3.0, 15)
    w = rng.standard_normal(15)
    target = (diabetes.target - diabetes.target.mean()) / diabetes.target.std()
    return [
        _linear("least squares", _squared, x, x @ w + rng.standard_normal(2000), 8),
        _linear("least squares, one example a step", _squared, x, x @ w + 3.0 * rng.standard_normal(2000), 1),
        _linear("Huber, outliers", _huber, x, x @ w + rng.standard_t(1.5, 2000), 16),
        _linear("logistic, cancer", _logistic, scaled(cancer.data), cancer.target.astype(float), 8),
        _linear("Poisson counts", _poisson, 0.3 * x, rng.poisson(np.exp(0.15 * (x @ w).clip(-8, 8))).astype(float), 32),
        _linear("hinge, moons", _hinge, scaled(moons), moons_y.astype(float), 16),
        _linear("least squares, diabetes", _squared, scaled(diabetes.data), target, 32),
        _layers("softmax, wine", scaled(wine.data), wine.target, (13, 3), 16, True),
        _layers("network, iris", scaled(iris.data), iris.target, (4, 16, 3), 8, True),
        _layers("network, moons", scaled(moons), moons_y, (2, 32, 32, 2), 32, True),
        _layers("network, Friedman", friedman, scaled(friedman_y[:, None]), (10, 24, 1), 32, False),
        _embeddings(),
        _layers("network, digits", digits.data / 16.0, digits.target, (64, 32, 10), 32, True),
        _layers("network, iris, all data", scaled(iris.data), iris.target, (4, 16, 3), 150, True),
        _linear("logistic, cancer, all data", _logistic, scaled(cancer.data), cancer.target.astype(float), 569),
    ]


STEPS = 500  # for which rates are sought
LENGTHS = (75, 300)  # after so many steps a curve is judged, and trained as long again
CLEAR = 0.1  # relative difference of losses that is clear
GRID = [float(f"{digit}e{power}") for power in range(-5, 2) for digit in (1, 2, 5)]


def tried(problem: Problem, optimizer: str, totals: Counter[str]) -> Iterator[str]:
    """`diagnose` at every rate of the grid, beside what the other rates, and more steps, lead to.

    Advice to change the rate is harmful if the rate that is advised ends clearly above the present one after the same
    number of steps from the same start, and helpful if clearly below; where it is neither, the factor changes nothing.
    """
    runs = {lr: problem.train(optimizer, lr, 2 * max(LENGTHS)) for lr in GRID}
    for (lr, (losses, around)), n in itertools.product(runs.items(), LENGTHS):
        found = fo.diagnose(
            losses[:n], momentum=0.9 if optimizer == "momentum" else 0.0, fixed_batch=problem.fixed_batch, lr=lr
        )
        totals[f"verdict {found.verdict}"] += 1
        end, later = around(n), around(2 * n)
        if found.lr_factor != 1.0:
            near = min(GRID, key=lambda other, wanted=lr * found.lr_factor: abs(math.log(other / wanted)))
            followed = runs[near][1](n)
            harm, help_ = followed > (1 + CLEAR) * end, followed < (1 - CLEAR) * end
            key = f"advice to {'raise' if found.lr_factor > 1.0 else 'lower'} the rate"
            totals[key] += 1
            totals[f"{key}: helpful"] += help_
            totals[f"{key}: harmful"] += harm
            if harm:
                run = f"{problem.name}, {optimizer}, rate {lr:g}, {n} steps"
                yield f"  HARMFUL: {run}: {end:.4g}, as advised {followed:.4g}: {found}"
            continue
        improves = later < (1 - CLEAR) * end
        gain = "much" if improves else "a little" if later < end else "not at all"
        key = f"told to keep the rate, as many steps more lower the loss {gain}"
        totals[key] += 1
        totals[f"{key}: verdict {found.verdict}"] += 1
        totals[f"{key}: told to stop or to lower the rate"] += "stop here" in found.remedy


def probed(problem: Problem, optimizer: str, totals: Counter[str]) -> Iterator[str]:
    """`probe_lr`, beside the losses that the rates of the grid end with."""
    ends = {lr: problem.train(optimizer, lr, STEPS)[1](STEPS) for lr in GRID}
    best = min(GRID, key=lambda lr: ends[lr])
    for confirm in (None, STEPS):
        opt = OPTIMIZERS[optimizer](problem.params, 1e-3)
        found = fo.probe_lr(
            problem.loss_and_grad, problem.params, problem.data, opt, batch_size=problem.batch_size, confirm=confirm
        )
        ratio = max(found.lr / best, best / found.lr)
        end, least = problem.train(optimizer, found.lr, STEPS)[1](STEPS), ends[best]
        near = ratio <= 4.0 * (1 + 1e-9) or end <= 1.02 * least
        key = "probe" if confirm is None else "probe with confirm"
        totals[f"{key}: within 4x of the best, or as good within 2 %"] += near
        totals[f"{key}: further off, and says inconclusive"] += not near and found.inconclusive
        note = " (inconclusive)" if found.inconclusive else ""
        told = f"best {best:g} ({least:.4g}); {key} {found.lr:g} ({end:.4g}){note}"
        yield f"  {problem.name}, {optimizer}: {told}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=100, help="curves of every kind and noise")
    parser.add_argument("--tuning", action="store_true", help="the curves on which thresholds were chosen")
    parser.add_argument("--hostile", type=int, metavar="N", help="so many curves of extreme values instead")
    parser.add_argument("--problems", action="store_true", help="diagnose on the 15 problems instead of curves")
    parser.add_argument("--probes", action="store_true", help="probe_lr on the 15 problems instead of curves")
    options = parser.parse_args(arguments)
    if options.hostile:
        wrong = [text for text in map(misread, range(options.hostile)) if text]
        print("\n".join([f"{options.hostile} hostile curves: {len(wrong)} raise or say nan", *wrong[:10]]))
        return 1 if wrong else 0
    if options.problems or options.probes:
        from threadpoolctl import threadpool_limits

        totals: Counter[str] = Counter()
        with threadpool_limits(1):
            for problem in problems():
                for optimizer in OPTIMIZERS:
                    for text in (tried if options.problems else probed)(problem, optimizer, totals):
                        print(text, flush=True)
        print("\n".join(f"{name}: {count}" for name, count in sorted(totals.items())))
        return 0
    first = 0 if options.tuning else HELD_OUT
    seeds = range(first, first + options.seeds)
    for text in confusion(seeds):
        print(text, flush=True)
    falling = [fo.diagnose(never_rising(seed)).verdict for seed in range(first, first + 100 * options.seeds)]
    print(f"\n{len(falling)} curves that never rise: {falling.count('oscillating')} oscillating")
    curves = real_curves()[0 if options.tuning else 1]
    print("\nreal curves, " + ("those on which thresholds were chosen" if options.tuning else "the others"))
    print("\n".join([*judged(curves), stability(curves)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
