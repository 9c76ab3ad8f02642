"""Read a training curve: what it shows, with the evidence and what to do."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from ..common.public import public
from ..common.validation import flag, names_arguments, real
from .curves import (
    BLOCKS,
    MeasuredCurve,
    autocorrelation,
    blocks,
    detrended,
    fall_of_means,
    kendall_tau,
    kept_pace,
    spread,
)

Verdict = Literal["healthy", "diverged", "oscillating", "too slow", "plateau", "unclear", "too short"]
Reason = Literal[
    "falling", "not finite", "growing", "risen far", "above start", "jumped", "cycling", "bouncing",
    "alternating", "lost again", "slow", "straight", "flat", "rising again", "hidden", "still", "within noise",
    "first not finite", "maybe jumped", "risen", "rate rising", "few", "few for a fall",
    "few for a trend", "seems falling", "come down since",
]  # fmt: skip
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
MINIMUM = 10  # a shorter curve shows nothing but non-finite values
_SHORT = 25  # a shorter curve of minibatch losses shows little
# Thresholds, in units of the logarithm of the loss (0.1: about ten per cent). benchmarks/advice.py says on which
# curves and problems they were chosen, and how they do on others.
_GROWTH = math.log(2.0)  # rise that counts as growth
_ABOVE_START = 0.02  # how far above its start a loss must end, beyond its noise
_AMPLITUDE = 0.002  # smaller swings are round-off or of no interest
_PERIODIC = 0.5  # autocorrelation that makes a cycle of a fluctuation
_SWING = 0.2  # share of all progress that a loss on a fixed batch may lose and regain
_SLOW = 0.1  # total drop below which a rate is too slow
_STRAIGHT = 0.5  # ... or below which it is if the curve is still a straight line
_REGAINED = math.log(1.5)  # rise above the lowest level that counts as gains lost again
_SLIGHT = 0.3  # relative drop of which it is not certain that it could not be larger
_FLAT = 0.02  # drop over the second half below which a curve is flat
_TREND = -0.3  # Kendall's tau of the second half above which its drop is chance
_SURE = 5.0  # standard errors that make a rise or a slow fall certain
_THROUGHOUT = -0.7  # Kendall's tau of a curve that falls from beginning to end
_BENT = 0.6  # fall of the second half, in units of that of the first, below which a curve is no straight line
_ENDED = 0.1  # ... and below which a loss has come to its floor
_REMNANT = 0.2  # drop, as a share of the rise before it, below which a jump has won nothing
_RISEN = 1.1  # largest rate of the last quarter, in units of the median one, from which on rates count as rising
_ROOM = 0.1  # fall that the noise of the second half may hide, from which on nobody knows that a curve is flat
_FINISHED = 0.01  # last rate, in units of the largest, below which a schedule has come to its end
_LOST = 0.7  # share of all gains that is a collapse if it is lost
_PACE = 0.7  # pace of the outer thirds, in units of the middle one's, below which a curve is no straight line


@public
@dataclass(frozen=True)
class Diagnosis:
    """What a training curve shows.

    Attributes
    ----------
    verdict : {"healthy", "diverged", "oscillating", "too slow", "plateau", "unclear", "too short"}
        The finding.
    evidence : dict
        The figures that it rests on; `fastoptim.diagnose` lists them.
    remedy : str
        What to do, in one sentence.
    lr_factor : float
        What to multiply the learning rate by: 0.1, 0.5, 1, 2 or 10. Weak evidence gives 1; so does a plateau, which
        asks for a schedule.
    reason : str
        What the verdict rests on, more exactly than that; one of `fastoptim.training.diagnosis.Reason`.
    """

    verdict: Verdict
    evidence: dict[str, float]
    remedy: str
    lr_factor: float
    reason: Reason

    def __str__(self) -> str:
        figures = ", ".join(f"{name} {value:.3g}" for name, value in self.evidence.items())
        return f"{self.verdict} ({figures}): {self.remedy}"


@public
@names_arguments
def diagnose(
    losses: Sequence[float] | np.ndarray,
    *,
    fixed_batch: bool = False,
    momentum: float = 0.0,
    lr: float | Sequence[float] | np.ndarray | None = None,
    start: float | None = None,
    scheduled: bool = False,
) -> Diagnosis:
    """Say whether a training curve is healthy, diverged, oscillating, too slow or on a plateau, and what to do.

    The logarithm of the loss is looked at (if losses are negative: the loss in units of its start). In this order:

    - *diverged*: the losses end with values that are not finite, or have grown for certain; or on a fixed batch have
      jumped above the start without a gain in the end;
    - *oscillating*: the second half alternates, or cycles on a fixed batch or jumps by much of what was gained, and
      neither the loss nor its swings get smaller; or much of what was gained has been lost again. Fluctuations
      without structure, as minibatches cause them, are not oscillation; nor is the ringing of momentum, whose envelope
      falls, nor a rhythm of minibatches that always come in the same order, unless it is one of two steps, which
      nothing but `fit` tells from alternation: give the means of pairs then;
    - *unclear*: the loss has risen, but not by so much, or not so steadily, that it must be the learning rate: losses
      of a game between two networks, of reinforcement learning and of validation do that; or it has fallen slowly, or
      not at all, while the learning rate was still rising; or it has risen as an accuracy does, towards 1;
    - *too slow*: the loss falls from beginning to end, for certain, in a nearly straight line, but has dropped by less
      than a tenth (factor 10) or by less than 40 % (factor 2);
    - *plateau*: the second half is flat or rises a little, or nothing has happened beyond the noise. Where the noise
      may hide a fall by a tenth the remedy is to train longer;
    - *healthy*: everything else;
    - *too short*: fewer than 10 losses, or fewer than 25 losses of different minibatches that show nothing for certain.

    Parameters
    ----------
    losses : sequence of float
        One loss per step. Minibatch losses may be noisy. Missing ones (NaN, None) are passed over, as are infinite ones
        in the first half, unless the curve ends with them.
    fixed_batch : bool
        Whether every loss was taken on the same data, so that the first one is as good as any, and every rise is real:
        the whole training set, or one batch. If the losses jump about at random even so, as dropout makes them, they
        are read as those of minibatches. Otherwise the start is the median of the first few, or the first
        alone if the next nine lie further above it than they lie apart.
    momentum : float
        The optimizer's momentum; a longer one is given more steps before the curve is judged.
    lr : float or sequence of float, optional
        The learning rate, for a remedy with numbers in it; or that of every step, so that a run is not called slow
        while its rate rises, and is not told to go on after its schedule has ended.
    start : float, optional
        The loss before training. A log that begins late does not show how much has been gained, and looks too slow.
    scheduled : bool
        Whether a schedule sets the learning rate already: the remedy is then one for the schedule. Implied by rates
        that vary.

    Returns
    -------
    Diagnosis
        `evidence` holds ``start`` and ``end`` (levels of the loss), ``drop`` (their relative difference),
        ``tail_drop`` (relative drop within the second half), ``tail_trend`` (Kendall's tau of the second half: -1
        falls, 1 rises), ``envelope_trend`` (the same for its peaks), ``rises`` (share of the steps of the second half
        that raise the loss), ``swing`` (spread of the second half as a share of all progress, at most 100), ``cycle``
        (strength of the cycle, 0 to 1), ``period`` (of that cycle, in steps) and ``noise`` (relative size of the
        fluctuation from step to step); ``missing``, if there are any, the number of losses passed over. If the losses
        end with values that are not finite: ``first_nonfinite``, the index of the first of them. If there are too few:
        ``losses``, their number.

    Raises
    ------
    TypeError, ValueError
        Losses are not one-dimensional numbers; momentum outside [0, 1); lr < 0, or rates that are not as many as the
        losses. No values of losses raise.

    Notes
    -----
    On a quadratic with largest curvature ``L`` gradient descent never raises the loss while it converges; it diverges
    beyond ``lr = 2 / L``, with momentum ``mu`` beyond ``2 (1 + mu) / L``. Losses that grow linearly far away, like the
    logistic loss, do not grow without bound there: they cycle.

    A large constant in the loss makes all falls look small: take it off, where it is known.

    Examples
    --------
    >>> import numpy as np, fastoptim as fo
    >>> fo.diagnose([1.0, 2.0, float("nan")], lr=0.3).remedy
    'The loss is no longer finite: divide the learning rate by 10 (try 0.03).'
    >>> fo.diagnose(2.3 * 0.9 ** np.arange(100)).verdict
    'healthy'
    >>> fo.diagnose(2.3 - 1e-5 * np.arange(100)).verdict
    'too slow'
    >>> fo.diagnose([2.3, 2.1]).verdict
    'too short'
    """
    flag("fixed_batch", fixed_batch), flag("scheduled", scheduled)
    momentum = real("momentum", momentum, 0.0, 1.0)
    start = None if start is None else real("start", start)
    y = numbers(losses)
    rate, rises, varies, finished = _rates(lr, len(y))
    said = partial(_said, lr=rate, scheduled=scheduled or varies, finished=finished)
    finite = np.isfinite(y)
    ended = _nonfinite_end(y, finite)
    if ended is not None:
        found = Finding("not finite", 0.1) if ended else Finding("first not finite")
        return said(found, {"first_nonfinite": float(ended)})
    missing = {"missing": float(np.sum(~finite))} if not finite.all() else {}
    y = y[finite]
    if len(y) < MINIMUM:
        return said(Finding("few", detail=_so_many(len(y))), {"losses": float(len(y))} | missing)
    with np.errstate(all="ignore"):
        late = math.ceil(min(2.0 / (1.0 - momentum), len(y)))
        curve = MeasuredCurve(y, fixed_batch, late, start)
        found = _judge_fixed(curve) if fixed_batch else _judge(curve)
        if rises and found.verdict in ("too slow", "plateau"):
            found = Finding("rate rising")
        if (found.verdict == "diverged" or found.reason == "maybe jumped") and curve.like_a_share:
            found = Finding("risen", detail=_changed(curve))
        return said(found, curve.evidence() | missing)


_HINTS = {
    "FitResult": ": give its history.loss",
    "History": ": give its loss",
    "Curve": ": give its losses",
    "str": ": those of a file are fastoptim.plots.read_curve(path).losses",
}


def numbers(losses: Any) -> np.ndarray:
    """Losses as float64, NaN where one is missing; TypeError or ValueError if they are no sequence of real numbers."""
    if isinstance(losses, (Mapping, Set, str)) or not (isinstance(losses, Iterable) or hasattr(losses, "__array__")):
        kind = type(losses).__name__
        raise TypeError(f"losses must be a sequence of numbers, got {kind}{_HINTS.get(kind, '')}")
    y = np.asarray(losses)
    if y.dtype == object:  # logs have null where a loss is missing
        y = np.array([math.nan if loss is None else loss for loss in losses])
    if y.size == 0:
        y = y.astype(np.float64)
    if y.dtype.kind not in "biuf":  # float64 would read strings, and drop imaginary parts
        raise TypeError(f"losses must be real numbers, got dtype {y.dtype}")
    if y.ndim != 1:
        raise ValueError(f"losses must be one-dimensional, got shape {y.shape}")
    y = y.astype(np.float64)
    if isinstance(losses, np.ma.MaskedArray):
        y[np.ma.getmaskarray(losses)] = math.nan
    return y


def _nonfinite_end(y: np.ndarray, finite: np.ndarray) -> int | None:
    """Where the values begin that are not finite and end the curve; None if others are merely missing.

    Columns of tables have gaps; they end with values that are not finite only if there are more of them than in any
    gap before. An infinite value is never a gap, but may have been survived: in the first half, or by ten values.
    """
    infinite = np.flatnonzero(np.isinf(y))
    if len(infinite) and (infinite[-1] >= len(y) // 2) and np.sum(finite[infinite[-1] :]) < MINIMUM:
        return int(infinite[0])
    if finite.all() or not len(y):
        return None
    known = np.flatnonzero(finite)
    if not len(known):
        return 0
    trailing = len(y) - 1 - int(known[-1])
    longest = int(np.diff(known, prepend=-1).max()) - 1
    return int(known[-1]) + 1 if trailing > 2 * longest else None


def _rates(lr: Any, count: int) -> tuple[float | None, bool, bool, bool]:
    """The last learning rate, and whether rates have been rising until lately, vary, and have come down to nothing."""
    if lr is None or np.ndim(lr) == 0:
        return None if lr is None else real("lr", lr, 0.0), False, False, False
    rates = np.asarray(lr)
    if rates.shape != (count,) or rates.dtype.kind not in "iuf" or not np.all((rates >= 0.0) & (rates < math.inf)):
        raise ValueError(f"lr: expected a rate >= 0, or one for each of {count} losses, got shape {rates.shape}")
    if count == 0:
        return None, False, False, False
    largest, last = float(rates.max()), float(rates[-1])
    rises = bool(rates[-count // 4 :].max() > _RISEN * np.median(rates))
    return last, rises, largest > float(rates.min()), last < _FINISHED * largest


_CHANGE = {
    0.1: "divide the learning rate by 10",
    0.5: "halve the learning rate, or use momentum or Adam",
    2.0: "double the learning rate",
    10.0: "multiply the learning rate by 10",
}
_KEEP = "keep the learning rate"
_SLIGHTLY = "keep the learning rate, or see by probe_lr whether a larger one is faster"
_STOP = "lower the learning rate by a schedule, or stop here"
_STOP_AT_LEAST = "if it is one, stop where it was lowest; if not, lower the learning rate by a schedule"
_PROBE = "probe_lr tells whether another rate is better or nothing is left to gain"
_STOP_SCHEDULE = "wait if the schedule will lower the learning rate further, or stop here"
_FINISH = "the schedule has come to its end; train again with a longer one, or stop here"
_LOOK = "look at the model, the data and what kind of loss it is before the rate is changed"
_LONGER = "train longer"
_NOTHING = "The loss has not fallen beyond its noise"
_JUMP = "The loss has jumped up and is not clearly better than at its start"
# What follows from each reason: the verdict, the finding, and the advice where the rate is not to be changed.
_TEXTS: dict[Reason, tuple[Verdict, str, str]] = {
    "falling": ("healthy", "The loss has {} and is still falling", _KEEP),
    "seems falling": ("healthy", "The loss has {} and seems to fall still, as far as its noise tells", _KEEP),
    "not finite": ("diverged", "The loss is no longer finite", ""),
    "growing": ("diverged", "The loss grows", ""),
    "risen far": ("diverged", "The loss has {}", ""),
    "above start": ("diverged", "The loss has ended above its start", ""),
    "jumped": ("diverged", _JUMP, ""),
    "cycling": ("oscillating", "The loss no longer falls but cycles, about every {} steps", ""),
    "bouncing": ("oscillating", "The loss no longer falls but jumps up and down", ""),
    "alternating": ("oscillating", "The loss no longer falls but alternates", ""),
    "lost again": ("oscillating", "The loss has risen by {} again after its fall", ""),
    "slow": ("too slow", "The loss has only {}", ""),
    "straight": ("too slow", "The loss has only {}, along a straight line", ""),
    "flat": ("plateau", "The loss has {} and is flat now", _STOP),
    "rising again": (
        "plateau",
        "The loss has {} and rises again, as a validation loss does when the model overfits",
        _STOP_AT_LEAST,
    ),
    "still": ("plateau", "The loss has not moved", _PROBE),
    "within noise": ("plateau", _NOTHING, _PROBE),
    "hidden": (
        "plateau",
        "The loss has {}; whether it still falls is hidden by its noise",
        "train longer before the learning rate is changed",
    ),
    "come down since": ("unclear", "The loss has risen by {} again after its fall, and come down since", _LOOK),
    "first not finite": ("unclear", "Not even the first loss is finite, which is not the learning rate's doing", _LOOK),
    "maybe jumped": ("unclear", _JUMP, "probe_lr tells whether a smaller rate is better"),
    "risen": ("unclear", "The loss has {}, as an accuracy, a reward or a validation loss may", _LOOK),
    "rate rising": (
        "unclear",
        "The loss has fallen slowly, or not at all, while the learning rate was still rising",
        "wait until the learning rate has been at its height for a while",
    ),
    "few": ("too short", "{} to tell anything", _LONGER),
    "few for a fall": ("too short", "{} to tell whether the loss still falls", _LONGER),
    "few for a trend": ("too short", "{} to tell a trend from the noise", _LONGER),
}


class Finding(NamedTuple):
    """What a curve shows, what to multiply the rate by, and what the text fills in."""

    reason: Reason
    factor: float = 1.0
    detail: object = ""

    @property
    def verdict(self) -> Verdict:
        return _TEXTS[self.reason][0]


def _said(found: Finding, evidence: dict[str, float], lr: float | None, scheduled: bool, finished: bool) -> Diagnosis:
    """The finding in words, with advice; the only place that makes text."""
    verdict, text, kept = _TEXTS[found.reason]
    advice = _CHANGE.get(found.factor, kept)
    if scheduled and advice == _STOP:
        advice = _STOP_SCHEDULE
    if found.reason == "falling" and evidence["drop"] < _SLIGHT:
        advice = _SLIGHTLY
    if finished and verdict in ("healthy", "plateau"):
        advice = _FINISH
    number = ""
    if found.factor != 1.0 and scheduled:  # its present rate says nothing about the others
        number = f" (all of its schedule, schedules.scale(schedule, {found.factor:g}))"
    elif found.factor != 1.0 and lr is not None:
        number = f" (try {lr * found.factor:.3g})"
    return Diagnosis(verdict, evidence, f"{text.format(found.detail)}: {advice}{number}.", found.factor, found.reason)


def _so_many(count: int) -> str:
    return f"{count} loss is too few" if count == 1 else f"{count} losses are too few"


def _percent(rise: float) -> str:
    return f"{math.expm1(min(rise, 700.0)):.0%}"


def _changed(curve: MeasuredCurve) -> str:
    """How far the loss has come, in true words."""
    start, end = curve.levels_of_loss
    verb = "risen" if end > start else "dropped"
    share = abs(curve.evidence()["drop"])
    if curve.positive and end == 0.0 < start:
        return f"{verb} to 0"
    if curve.positive and end < start and share >= 0.9995:
        return f"{verb} to {1.0 - share:.1g} of its start"
    if curve.positive and share < 10.0:
        return f"{verb} by {share:.1%}" if share >= 0.0005 else f"{verb} by {share:.1g} of its start"
    return f"{verb} from {start:.4g} to {end:.4g}"


def _no_longer_falls(curve: MeasuredCurve) -> Finding:
    rises = curve.tail_trend > -_THROUGHOUT and -curve.tail_drop > _FLAT
    return Finding("rising again" if rises else "flat", detail=_changed(curve))


def _judge_fixed(c: MeasuredCurve) -> Finding:
    """Judge losses of one batch: the first is the start, and every rise is real."""
    if c.white and c.noise >= _FLAT and c.swing < 1.0:  # the model itself is random, as with dropout
        return _judge(c)
    drop, above = c.drop, float(c.z.max()) - c.start
    doubt = 3.0 * c.noise * math.sqrt(1.0 / c.first + 1.0 / c.last)
    above_start = -drop > _ABOVE_START + doubt
    if _grows(c) and (above_start or c.tail_trend > 0.8):
        return Finding("growing", 0.1)
    amplitude = spread(c.rest)
    sinking = c.period > 0 and fall_of_means(c.tail, c.period) > 0.5 * amplitude
    cyclic = c.cycle >= _PERIODIC and amplitude >= _AMPLITUDE and c.rises > 0.0 and not sinking
    bouncing = c.swing >= _SWING and c.noise >= _FLAT and 0.1 <= c.rises <= 0.9
    falling = c.envelope_trend <= -0.5 and -c.envelope_rise > max(_FLAT, 2.0 * c.noise) and drop >= _SLOW
    swings = blocks(c.tail, 5, np.ptp)
    ringing = kendall_tau(swings) <= -0.6 and swings[-1] < 0.5 * swings[0]
    if ((cyclic or bouncing) and not (falling or ringing)) or (bouncing and drop < _SLOW):
        factor = 0.1 if above_start else 0.5
        return Finding("cycling", factor, c.period) if cyclic else Finding("bouncing", factor)
    if above_start:
        return Finding("above start", 0.1)
    flat = c.tail_drop < max(_FLAT, 0.02 * drop) or c.tail_trend > _TREND
    levels = blocks(c.z, 16, np.median)
    lost, chance = c.end - float(levels.min()), 4.0 * c.noise * math.sqrt(16.0 / c.n + 1.0 / c.last)
    enough, lasting = max(_REGAINED, chance), max(c.n // 16, c.last)
    jumped = float(c.z[-lasting:].min()) - float(levels.min()) > enough and not falling
    jumped = jumped and lasting > c.late  # longer than momentum swings
    if (c.tail_trend > -0.7 * _TREND or jumped) and lost > enough:
        return Finding("lost again", 0.5, _percent(lost))
    if above > _SLOW and drop < min(_SLOW, _REMNANT * above):
        return Finding("jumped", 0.1)
    pace = kept_pace(c.z, c.start)
    if above > max(drop, 3.0 * c.noise):  # a rate that is too slow never raises the loss
        pace = min(pace, _BENT)
    if drop < _SLOW and drop > 0.0 and c.tail_trend < _TREND:  # too small a fall for `flat` to tell
        if pace > _BENT:
            return Finding("slow", 10.0, _changed(c))
        flat = pace < _ENDED
    elif drop < _STRAIGHT and pace > _BENT and not flat:
        return Finding("straight", 2.0, _changed(c))
    elif drop < max(_AMPLITUDE, doubt):
        return Finding("still")
    if flat:
        return _no_longer_falls(c)
    return Finding("falling", detail=_changed(c))


def _judge(c: MeasuredCurve) -> Finding:
    """Judge losses of different minibatches: only what stands out of the noise counts."""
    rise, short, tail = c.rise, c.n < _SHORT, c.halves[1]
    far = rise > max(_GROWTH, _SURE * c.doubt / 3.0) or (rise > _GROWTH and c.risen > 1.5 * _SURE * c.error)
    far = far and not c.fades
    late = c.levels[-(len(c.levels) // 2) :]
    if far and not c.like_a_score and (_grows(c) or (rise > 4.0 * spread(detrended(late)) and not c.averaged)):
        return Finding("risen far", 0.1, _changed(c))
    if _alternates(c):
        return Finding("alternating", 0.1 if far else 0.5)
    lost, gained = c.lost_and_gained
    enough = max(_REGAINED, 1.5 * _SURE * c.error)
    falls = tail.sure >= 1.0 and kendall_tau(late) <= _TREND
    if not short and not c.fades and min(gained, lost) > enough and lost > 0.3 * gained and not falls:
        if c.bursts and (lost > _LOST * gained or not c.relieved):
            return Finding("lost again", 0.5, _percent(lost))
        if c.drop > 0.0:
            return Finding("come down since", detail=_percent(lost)) if c.bursts else _no_longer_falls(c)
    remnant = c.drop < min(_SLOW, _REMNANT * (float(c.z.max()) - c.start))
    if c.jumped and (remnant or c.y[-(c.n // 10) :].mean() >= c.y[0]):  # typical losses may hide rare large ones
        peak = float(c.z[1:].max())
        made_good = peak - c.end > 0.5 * (peak - c.start)
        if rise > _SURE * c.scatter and c.bursts and not c.averaged and not (made_good and falls):
            return Finding("jumped", 0.1)
        return Finding("maybe jumped")
    if _rises(c):
        return Finding("risen", detail=_changed(c))
    slow = None if short else _slow(c)
    if slow:
        return slow
    if c.drop > max(_FLAT, c.doubt) or c.whole.sure > _SURE:
        if tail.fall < max(min(_FLAT, 0.2 * c.drop), 0.02 * c.drop, 2.0 * tail.error):
            if short:
                return Finding("few for a fall", detail=_so_many(c.n))
            if c.room > _ROOM:
                return Finding("seems falling" if tail.sure >= 1.0 else "hidden", detail=_changed(c))
            return _no_longer_falls(c)
        return Finding("falling", detail=_changed(c))
    if short:
        return Finding("few for a trend", detail=_so_many(c.n))
    return Finding("within noise")


def _rises(c: MeasuredCurve) -> bool:
    """Whether the loss has risen for certain, however little: above its start, or from level to level."""
    rise = c.rise
    above = rise > max(_ABOVE_START, c.doubt) and c.risen > 2.0 * c.error
    above = above or rise > max(_GROWTH, 4.0 * c.scatter * math.sqrt(1.0 / c.first + 1.0 / c.last))
    return above or rise > max(_ABOVE_START, _SURE * c.doubt / 3.0) or (rise > 0.0 and c.whole.sure < -_SURE)


def _grows(c: MeasuredCurve) -> bool:
    """Whether the peaks of the second half rise, and by much."""
    return c.envelope_trend >= 0.6 and c.envelope_rise > _GROWTH


def _slow(c: MeasuredCurve) -> Finding | None:
    """Whether the curve falls from beginning to end, for certain, along a straight line, and by little."""
    first, second = c.halves
    if first.fall < 0.3 * second.fall:  # it has begun to fall only lately
        return None
    throughout = kendall_tau(c.levels) <= _THROUGHOUT and min(c.whole.sure, first.sure, second.sure) > 2.5
    bend = second.fall - _BENT * first.fall
    if not throughout or c.whole.sure < _SURE or bend < 2.0 * math.hypot(1.0, _BENT) * second.error:
        return None
    if c.ends_keep_pace(_PACE) < 1.0:  # an S, as a schedule makes it
        return None
    if c.start - c.whole.begin > max(0.2 * c.whole.fall, c.doubt):  # a fast fall at the beginning has ended
        return None
    total = max(c.whole.fall, c.drop)
    if total < _SLOW:
        return Finding("slow", 10.0, _changed(c))
    bent = (1.0 - _FLAT) * first.fall - second.fall > math.sqrt(2.0) * second.error
    if total < _STRAIGHT and not bent:  # under too small a rate the logarithm falls ever faster
        return Finding("straight", 2.0, _changed(c))
    return None


def _alternates(c: MeasuredCurve) -> bool:
    """Whether the second half goes up and down at every other step, by more than it falls.

    Other rhythms may be those of minibatches that always come in the same order.
    """
    e = c.rest
    limit = max(_PERIODIC, 4.0 / math.sqrt(len(e)))
    if len(e) < 12 or c.rises < 0.3 or autocorrelation(e, 1) > -limit:
        return False
    amplitude = spread(e)
    lasting = autocorrelation(e, 2) >= max(0.5 * limit, 0.8 * c.cycle)
    fall = fall_of_means(c.tail, 2)
    pairs = blocks(c.tail[len(c.tail) % 2 :].reshape(-1, 2).mean(axis=1), BLOCKS, np.mean)
    falls = fall > 0.5 * amplitude or (fall > _FLAT and kendall_tau(pairs) <= _THROUGHOUT)
    return lasting and amplitude >= _FLAT and not falls
