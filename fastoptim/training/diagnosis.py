"""Read a training curve: diverged, oscillating, too slow, plateau or healthy, with the evidence and what to do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..common.validation import flag, real

VERDICTS = ("healthy", "diverged", "oscillating", "too slow", "plateau")
MINIMUM = 10  # a shorter curve shows nothing but non-finite values
_TAIL_LIMIT = 512  # values of the tail that are looked at one by one
_CONVERGED = 1e-15  # a loss below this share of its start is round-off
# Thresholds, in units of the logarithm of the loss (0.1: about ten per cent). benchmarks/probe_table.py and
# tests/training/test_diagnosis.py say on which problems they were chosen and on which others they were checked.
_GROWTH = math.log(2.0)  # rise of the peaks over the second half that counts as growth
_ABOVE_START = 0.02  # how far above its start a loss must end, beyond its noise
_AMPLITUDE = 0.002  # smaller swings are round-off or of no interest
_PERIODIC = 0.5  # autocorrelation that makes a cycle of a fluctuation
_SWING = 0.2  # share of all progress that a loss on a fixed batch may lose and regain
_SLOW = 0.1  # total drop below which a rate is too slow
_STRAIGHT = 0.5  # ... or below which it is if the curve is still a straight line
_REGAINED = math.log(1.5)  # rise above the lowest level that counts as gains lost again
_FLAT = 0.02  # drop over the second half below which a curve is flat
_TREND = -0.3  # Kendall's tau of the second half above which its drop is chance


@dataclass(frozen=True)
class Diagnosis:
    """What a training curve shows.

    Attributes
    ----------
    verdict : {"healthy", "diverged", "oscillating", "too slow", "plateau"}
        The finding.
    evidence : dict
        The figures that it rests on; `fastoptim.diagnose` lists them.
    remedy : str
        What to do, in one sentence.
    lr_factor : float
        What to multiply the learning rate by: 0.1, 0.5, 1, 2 or 10. A plateau keeps 1: it asks for a schedule.
    """

    verdict: str
    evidence: dict[str, float]
    remedy: str
    lr_factor: float

    def __str__(self) -> str:
        figures = ", ".join(f"{name} {value:.3g}" for name, value in self.evidence.items())
        return f"{self.verdict} ({figures}): {self.remedy}"


def kendall_tau(values: Any) -> float:
    """Kendall's tau of a sequence against its order: 1 rises throughout, -1 falls throughout, 0 no trend."""
    x = np.asarray(values, np.float64)
    if len(x) < 2:
        return 0.0
    later, earlier = np.triu_indices(len(x), 1)[::-1]
    return float(np.mean(np.sign(x[later] - x[earlier])))


def diagnose(
    losses: Sequence[float] | np.ndarray, *, anchor: bool = False, momentum: float = 0.0, lr: float | None = None
) -> Diagnosis:
    """Say whether a training curve is healthy, diverged, oscillating, too slow or on a plateau, and what to do.

    The logarithm of the loss is looked at (if a loss is negative: the loss in units of its start). In this order:

    - *diverged*: a loss that is not finite, sustained growth, an end above the start that is no bounded cycle, or (on
      a fixed batch) a jump above the start without a gain in the end;
    - *oscillating*: the second half cycles, or on a fixed batch jumps by much of what was gained, and neither the loss
      nor its swings get smaller; or much of what was gained has been lost again. Fluctuations without structure, as
      minibatches cause them, are not oscillation; nor is the ringing of momentum, whose envelope falls;
    - *too slow*: the loss has dropped by less than a tenth, or by less than 40 % along a line that is nearly straight;
    - *plateau*: the loss has dropped, but the second half is flat;
    - *healthy*: everything else.

    Parameters
    ----------
    losses : sequence of float
        One loss per step, at least 10 of them unless one is not finite. Minibatch losses may be noisy.
    anchor : bool
        Whether every loss was taken on the same batch, so that the first one is as good as any: then it alone is the
        start. Otherwise the start is the median of the first few.
    momentum : float
        The optimizer's momentum; a longer one is given more steps to settle.
    lr : float, optional
        The learning rate, for a remedy with numbers in it.

    Returns
    -------
    Diagnosis
        `evidence` holds ``start`` and ``end`` (levels of the loss), ``drop`` (their relative difference),
        ``tail_drop`` (relative drop within the second half), ``tail_trend`` (Kendall's tau of the second half: -1
        falls, 1 rises), ``envelope_trend`` (the same for its peaks), ``rises`` (share of the steps of the second half
        that raise the loss), ``swing`` (spread of the second half as a share of all progress, at most 100), ``cycle``
        (strength of the cycle, 0 to 1), ``period`` (of that cycle, in steps) and ``noise`` (relative size of the
        fluctuation from step to step). If a loss is not finite: ``first_nonfinite``, its index.

    Raises
    ------
    TypeError, ValueError
        Losses are not one-dimensional numbers, or too few; momentum outside [0, 1); lr < 0.

    Notes
    -----
    On a quadratic with largest curvature ``L`` gradient descent never raises the loss while it converges; it diverges
    beyond ``lr = 2 / L``, with momentum ``mu`` beyond ``2 (1 + mu) / L``. Losses that grow linearly far away, like the
    logistic loss, do not grow without bound there: they cycle.

    Examples
    --------
    >>> import numpy as np, fastoptim as fo
    >>> fo.diagnose([1.0, 2.0, float("nan")], lr=0.3).remedy
    'The loss is no longer finite: divide the learning rate by 10 (try 0.03).'
    >>> fo.diagnose(2.3 * 0.9 ** np.arange(100)).verdict
    'healthy'
    >>> fo.diagnose(2.3 - 1e-5 * np.arange(100)).verdict
    'too slow'
    """
    flag("anchor", anchor)
    momentum = real("momentum", momentum, 0.0, 1.0)
    lr = None if lr is None else real("lr", lr, 0.0)
    y = np.asarray(losses)
    if y.dtype == object:  # logs have null where a loss was not finite
        y = np.array([math.nan if loss is None else loss for loss in losses])
    if y.dtype.kind not in "biuf":  # float64 would read strings, and drop imaginary parts
        raise TypeError(f"losses must be real numbers, got dtype {y.dtype}")
    y = y.astype(np.float64)
    if y.ndim != 1:
        raise ValueError(f"losses must be one-dimensional, got shape {y.shape}")
    finite = np.isfinite(y)
    if not finite.all():
        evidence = {"first_nonfinite": float(np.argmin(finite))}
        return _diagnosis("diverged", evidence, 0.1, lr, "The loss is no longer finite")
    if len(y) < MINIMUM:
        raise ValueError(f"a diagnosis needs at least {MINIMUM} losses, got {len(y)}")
    return _read(y, anchor, momentum, lr)


def _diagnosis(verdict: str, evidence: dict[str, float], factor: float, lr: float | None, finding: str) -> Diagnosis:
    advice = {
        0.1: "divide the learning rate by 10",
        0.5: "halve the learning rate, or use momentum or Adam",
        1.0: "keep the learning rate",
        2.0: "double the learning rate",
        10.0: "multiply the learning rate by 10",
    }[factor]
    if verdict == "plateau":
        advice = "lower the learning rate by a schedule, or stop here"
    number = f" (try {lr * factor:.3g})" if lr is not None and factor != 1.0 else ""
    return Diagnosis(verdict, evidence, f"{finding}: {advice}{number}.", factor)


def _read(y: np.ndarray, anchor: bool, momentum: float, lr: float | None) -> Diagnosis:
    n = len(y)
    z, unit = _scaled(y)
    # The second half is judged; with momentum it begins later if the velocity needs longer to settle.
    tail = z[min(max(n // 2, math.ceil(2.0 / (1.0 - momentum))), n - MINIMUM // 2) :]
    size = max(1, n // 20)
    first = 1 if anchor else min(size, 5)
    start, end = float(np.median(z[:first])), float(np.median(z[-max(size, min(5, n // 4)) :]))
    steps = np.diff(tail)
    noise = 1.4826 * float(np.median(np.abs(steps - np.median(steps)))) / math.sqrt(2.0)

    quarter = max(1, len(tail) // 4)
    tail_drop = float(np.median(tail[:quarter]) - np.median(tail[-quarter:]))
    tail_trend = kendall_tau(_blocks(tail, 64, np.mean))
    peaks = _blocks(tail, 8, np.max)
    envelope_trend, envelope_rise = kendall_tau(peaks), float(peaks[-1] - peaks[0])
    cycle, period = _cycle(tail[-_TAIL_LIMIT:])
    amplitude = float(np.subtract(*np.percentile(tail, (90, 10))))
    spread, progress = float(np.subtract(*np.percentile(y[-len(tail) :], (90, 10)))), unit(start) - float(y.min())
    swing = spread / max(progress, 0.01 * spread) if spread else 0.0
    rises = float(np.mean(steps > 0))
    drop = start - end

    evidence = {
        "start": unit(start),
        "end": unit(end),
        "drop": _relative(drop, y),
        "tail_drop": _relative(tail_drop, y),
        "tail_trend": tail_trend,
        "envelope_trend": envelope_trend,
        "rises": rises,
        "swing": swing,
        "cycle": cycle,
        "period": float(period),
        "noise": noise,
    }

    def verdict(name: str, factor: float, finding: str) -> Diagnosis:
        return _diagnosis(name, evidence, factor, lr, finding)

    doubt = 3.0 * noise * math.sqrt(1.0 / first + 1.0 / size)  # of the drop
    above_start = -drop > _ABOVE_START + doubt
    growing = envelope_trend >= 0.6 and envelope_rise > _GROWTH
    if growing and (above_start or tail_trend > 0.8):
        return verdict("diverged", 0.1, "The loss grows")
    cyclic = cycle >= _PERIODIC and amplitude >= _AMPLITUDE
    bouncing = anchor and swing >= _SWING and noise >= _FLAT and 0.1 <= rises <= 0.9
    falling = envelope_trend <= -0.5 and -envelope_rise > max(_FLAT, 2.0 * noise) and drop >= _SLOW
    swings = _blocks(tail, 5, np.ptp)
    ringing = kendall_tau(swings) <= -0.6 and swings[-1] < 0.5 * swings[0]
    if ((cyclic or bouncing) and not (falling or ringing)) or (bouncing and drop < _SLOW):
        manner = f"cycles, about every {period} steps" if cyclic else "jumps up and down"
        return verdict("oscillating", 0.1 if above_start else 0.5, f"The loss no longer falls but {manner}")
    if above_start:
        return verdict("diverged", 0.1, "The loss has ended above its start")
    flat = tail_drop < max(_FLAT, 0.02 * drop) or tail_trend > _TREND
    levels = _blocks(z, 16, np.median)
    lost, chance = end - float(levels.min()), 4.0 * noise * math.sqrt(16.0 / n + 1.0 / size)
    if tail_trend > -0.7 * _TREND and lost > max(_REGAINED, chance):
        return verdict("oscillating", 0.5, f"The loss has risen by {math.expm1(lost):.0%} again after its fall")
    if anchor and drop < _SLOW and float(z.max()) > start + _SLOW:  # a rate that is too slow never raises the loss
        return verdict("diverged", 0.1, "The loss has jumped up and is no better than at its start")
    if drop < _SLOW or (not anchor and drop < _SLOW + doubt and _lower(z, max(size, 5)) < 0.85):
        return verdict("too slow", 10.0, f"The loss has dropped by only {evidence['drop']:.1%}")
    if drop < _STRAIGHT and _straight(z, start) and not flat:
        return verdict("too slow", 2.0, f"The loss has dropped by only {evidence['drop']:.1%}, along a straight line")
    if flat:
        return verdict("plateau", 1.0, f"The loss has dropped by {evidence['drop']:.1%} and is flat now")
    return verdict("healthy", 1.0, f"The loss has dropped by {evidence['drop']:.1%} and is still falling")


def _scaled(y: np.ndarray) -> tuple[np.ndarray, Any]:
    """The curve on the scale on which it is judged, and the way back for a level."""
    if y.min() >= 0.0 and y.max() > 0.0:
        return np.log(np.maximum(y, max(y[0] * _CONVERGED, np.finfo(np.float64).tiny))), math.exp
    scale = float(abs(y[0]) or np.abs(y).max() or 1.0)
    return y / scale, lambda level: level * scale


def _relative(drop: float, y: np.ndarray) -> float:
    return -math.expm1(-drop) if y.min() >= 0.0 and y.max() > 0.0 else drop


def _blocks(x: np.ndarray, count: int, reduce: Any) -> np.ndarray:
    return np.array([reduce(part) for part in np.array_split(x, min(count, len(x)))])


def _lower(z: np.ndarray, size: int) -> float:
    """How often one of the last values is lower than one of the first: 0.5 if only noise tells them apart."""
    return float(np.mean(z[-size:, None] < z[:size]))


def _straight(z: np.ndarray, start: float) -> bool:
    """Whether the second half drops by more than 0.6 of what the first does."""
    middle = len(z) // 2
    reach = max(1, len(z) // 10)
    half = float(np.median(z[max(0, middle - reach) : middle + reach]))
    return half - float(np.median(z[-reach:])) > 0.6 * (start - half)


def _cycle(x: np.ndarray) -> tuple[float, int]:
    """Strength and period of the strongest cycle: the largest autocorrelation beyond a dip, or minus that of lag 1."""
    time = np.arange(len(x)) - (len(x) - 1) / 2
    e = x - x.mean()
    e -= time * (time @ e) / (time @ time)
    power = float(e @ e)
    if power == 0.0 or len(x) < 8:
        return 0.0, 0
    lags = range(1, max(3, len(x) // 4))
    r = {k: float(e[k:] @ e[:-k]) / power * len(x) / (len(x) - k) for k in lags}
    best, period, lowest = max(0.0, -r[1]), 2, r[1]
    for k in list(lags)[1:]:
        if r[k] > best and lowest < 0.0:
            best, period = r[k], k
        lowest = min(lowest, r[k])
    return min(best, 1.0), period if best > 0 else 0
