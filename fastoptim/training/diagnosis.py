"""Read a training curve: what it shows, with the evidence and what to do."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ..common.public import public
from ..common.validation import flag, names_arguments, real
from .curves import MeasuredCurve, autocorrelation, blocks, detrended, fall_of_means, kendall_tau, kept_pace, spread

VERDICTS = ("healthy", "diverged", "oscillating", "too slow", "plateau", "unclear", "too short")
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
    """

    verdict: str
    evidence: dict[str, float]
    remedy: str
    lr_factor: float

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
      falls, nor a rhythm of minibatches that always come in the same order;
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
    advise = partial(_diagnosis, lr=rate, scheduled=scheduled or varies, finished=finished)
    finite = np.isfinite(y)
    ended = _nonfinite_end(y, finite)
    if ended == 0:
        finding = "Not even the first loss is finite, which is not the learning rate's doing"
        return advise("unclear", {"first_nonfinite": 0.0}, 1.0, finding)
    if ended is not None:
        return advise("diverged", {"first_nonfinite": float(ended)}, 0.1, "The loss is no longer finite")
    missing = {"missing": float(np.sum(~finite))} if not finite.all() else {}
    y = y[finite]
    if len(y) < MINIMUM:
        figures = {"losses": float(len(y))}
        return advise("too short", figures | missing, 1.0, f"{_so_many(len(y))} to tell anything")
    with np.errstate(all="ignore"):
        late = math.ceil(min(2.0 / (1.0 - momentum), len(y)))
        curve = MeasuredCurve(y, fixed_batch, late, start)
        verdict, factor, finding = _judge_fixed(curve) if fixed_batch else _judge(curve)
        if rises and verdict in ("too slow", "plateau"):
            verdict, factor, finding = "unclear", 1.0, _RISING
        if verdict == "diverged" and curve.like_a_share:
            verdict, factor, finding = "unclear", 1.0, f"The loss has {_changed(curve)} towards 1, as an accuracy does"
        return advise(verdict, curve.evidence() | missing, factor, finding)


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
    gap before. An infinite value is never a gap, but one in the first half may have been survived.
    """
    infinite = np.flatnonzero(np.isinf(y))
    if len(infinite) and infinite[-1] >= len(y) // 2:
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


_ADVICE = {
    0.1: "divide the learning rate by 10",
    0.5: "halve the learning rate, or use momentum or Adam",
    1.0: "keep the learning rate",
    2.0: "double the learning rate",
    10.0: "multiply the learning rate by 10",
}
_RISING = "The loss has fallen slowly, or not at all, while the learning rate was still rising"
_JUMPED = "The loss has jumped up and is not clearly better than at its start"
_NOTHING = "The loss has not fallen beyond its noise"
HIDDEN = "whether it still falls is hidden by its noise"
_ADVICE_OF = {
    HIDDEN: "train longer before the learning rate is changed",
    _NOTHING: "probe_lr tells whether another rate is better or nothing is left to gain",
    _JUMPED: "probe_lr tells whether a smaller rate is better",
    _RISING: "wait until the learning rate has been at its height for a while",
    "slight": "keep the learning rate, or see by probe_lr whether a larger one is faster",
    "plateau": "lower the learning rate by a schedule, or stop here",
    "finished": "the schedule has come to its end; train again with a longer one, or stop here",
    "scheduled": "wait if the schedule will lower the learning rate further, or stop here",
    "unclear": "look at the model, the data and what kind of loss it is before the rate is changed",
    "too short": "train longer",
}


def _diagnosis(
    verdict: str,
    evidence: dict[str, float],
    factor: float,
    finding: str,
    lr: float | None,
    scheduled: bool,
    finished: bool,
) -> Diagnosis:
    advice = _ADVICE[factor]
    if factor == 1.0:
        advice = _ADVICE_OF.get(finding.split("; ")[-1]) or _ADVICE_OF.get(verdict, advice)
    if scheduled and advice == _ADVICE_OF["plateau"]:
        advice = _ADVICE_OF["scheduled"]
    if verdict == "healthy" and evidence["drop"] < _SLIGHT:
        advice = _ADVICE_OF["slight"]
    if finished and verdict in ("healthy", "plateau"):
        advice = _ADVICE_OF["finished"]
    number = ""
    if factor != 1.0 and scheduled:  # its present rate says nothing about the others
        number = f" (all of its schedule, schedules.scale(schedule, {factor:g}))"
    elif factor != 1.0 and lr is not None:
        number = f" (try {lr * factor:.3g})"
    return Diagnosis(verdict, evidence, f"{finding}: {advice}{number}.", factor)


def _so_many(count: int) -> str:
    return f"{count} loss is too few" if count == 1 else f"{count} losses are too few"


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


def _no_longer_falls(curve: MeasuredCurve) -> str:
    rises = curve.tail_trend > -_THROUGHOUT and -curve.tail_drop > _FLAT
    return "rises again, as a validation loss does when the model overfits" if rises else "is flat now"


Judgement = tuple[str, float, str]


def _judge_fixed(c: MeasuredCurve) -> Judgement:
    """Judge losses of one batch: the first is the start, and every rise is real."""
    if c.white and c.noise >= _FLAT and c.swing < 1.0:  # the model itself is random, as with dropout
        return _judge(c)
    drop, above = c.drop, float(c.z.max()) - c.start
    doubt = 3.0 * c.noise * math.sqrt(1.0 / c.first + 1.0 / c.last)
    above_start = -drop > _ABOVE_START + doubt
    if _grows(c) and (above_start or c.tail_trend > 0.8):
        return "diverged", 0.1, "The loss grows"
    amplitude = spread(c.rest)
    sinking = c.period > 0 and fall_of_means(c.tail, c.period) > 0.5 * amplitude
    cyclic = c.cycle >= _PERIODIC and amplitude >= _AMPLITUDE and c.rises > 0.0 and not sinking
    bouncing = c.swing >= _SWING and c.noise >= _FLAT and 0.1 <= c.rises <= 0.9
    falling = c.envelope_trend <= -0.5 and -c.envelope_rise > max(_FLAT, 2.0 * c.noise) and drop >= _SLOW
    swings = blocks(c.tail, 5, np.ptp)
    ringing = kendall_tau(swings) <= -0.6 and swings[-1] < 0.5 * swings[0]
    if ((cyclic or bouncing) and not (falling or ringing)) or (bouncing and drop < _SLOW):
        manner = f"cycles, about every {c.period} steps" if cyclic else "jumps up and down"
        return "oscillating", 0.1 if above_start else 0.5, f"The loss no longer falls but {manner}"
    if above_start:
        return "diverged", 0.1, "The loss has ended above its start"
    flat = c.tail_drop < max(_FLAT, 0.02 * drop) or c.tail_trend > _TREND
    levels = blocks(c.z, 16, np.median)
    lost, chance = c.end - float(levels.min()), 4.0 * c.noise * math.sqrt(16.0 / c.n + 1.0 / c.last)
    enough, lasting = max(_REGAINED, chance), max(c.n // 16, c.last)
    jumped = float(c.z[-lasting:].min()) - float(levels.min()) > enough and not falling
    jumped = jumped and lasting > c.late  # longer than momentum swings
    if (c.tail_trend > -0.7 * _TREND or jumped) and lost > enough:
        return "oscillating", 0.5, f"The loss has risen by {math.expm1(min(lost, 700.0)):.0%} again after its fall"
    if above > _SLOW and drop < min(_SLOW, _REMNANT * above):
        return "diverged", 0.1, _JUMPED
    pace = kept_pace(c.z, c.start)
    if above > max(drop, 3.0 * c.noise):  # a rate that is too slow never raises the loss
        pace = min(pace, _BENT)
    if drop < _SLOW and drop > 0.0 and c.tail_trend < _TREND:  # too small a fall for `flat` to tell
        if pace > _BENT:
            return "too slow", 10.0, f"The loss has only {_changed(c)}"
        flat = pace < _ENDED
    elif drop < _STRAIGHT and pace > _BENT and not flat:
        return "too slow", 2.0, f"The loss has only {_changed(c)}, along a straight line"
    elif drop < max(_AMPLITUDE, doubt):
        return "plateau", 1.0, "The loss has not moved"
    if flat:
        return "plateau", 1.0, f"The loss has {_changed(c)} and {_no_longer_falls(c)}"
    return "healthy", 1.0, f"The loss has {_changed(c)} and is still falling"


def _judge(c: MeasuredCurve) -> Judgement:
    """Judge losses of different minibatches: only what stands out of the noise counts."""
    rise, short, tail = c.rise, c.n < _SHORT, c.halves[1]
    far = rise > max(_GROWTH, _SURE * c.doubt / 3.0) or (rise > _GROWTH and c.risen > 1.5 * _SURE * c.error)
    late = c.levels[-(len(c.levels) // 2) :]
    if far and (_grows(c) or (rise > 4.0 * spread(detrended(late)) and not c.averaged)):
        return "diverged", 0.1, f"The loss has {_changed(c)}"
    if _alternates(c):
        return "oscillating", 0.1 if far else 0.5, "The loss no longer falls but alternates"
    lost, gained = c.lost_and_gained
    enough = max(_REGAINED, 1.5 * _SURE * c.error)
    falls = tail.sure >= 1.0 and kendall_tau(late) <= _TREND
    if not short and min(gained, lost) > enough and lost > 0.3 * gained and not falls:
        return "oscillating", 0.5, f"The loss has risen by {math.expm1(min(lost, 700.0)):.0%} again after its fall"
    remnant = c.drop < min(_SLOW, _REMNANT * (float(c.z.max()) - c.start))
    if c.jumped and (remnant or c.y[-(c.n // 10) :].mean() >= c.y[0]):  # typical losses may hide rare large ones
        if rise > _SURE * c.scatter and not c.averaged:
            return "diverged", 0.1, _JUMPED
        return "unclear", 1.0, _JUMPED
    if _rises(c):
        return "unclear", 1.0, f"The loss has {_changed(c)}, which need not be the learning rate's doing"
    slow = None if short else _slow(c)
    if slow:
        return slow
    if c.drop > max(_FLAT, c.doubt) or c.whole.sure > _SURE:
        if tail.fall < max(min(_FLAT, 0.2 * c.drop), 0.02 * c.drop, 2.0 * tail.error):
            if short:
                return "too short", 1.0, f"{_so_many(c.n)} to tell whether the loss still falls"
            if c.room > _ROOM:
                return "plateau", 1.0, f"The loss has {_changed(c)}; {HIDDEN}"
            return "plateau", 1.0, f"The loss has {_changed(c)} and {_no_longer_falls(c)}"
        return "healthy", 1.0, f"The loss has {_changed(c)} and is still falling"
    if short:
        return "too short", 1.0, f"{_so_many(c.n)} to tell a trend from the noise"
    return "plateau", 1.0, _NOTHING


def _rises(c: MeasuredCurve) -> bool:
    """Whether the loss has risen for certain, however little: above its start, or from level to level."""
    rise = c.rise
    above = rise > max(_ABOVE_START, c.doubt) and c.risen > 2.0 * c.error
    above = above or rise > max(_GROWTH, 4.0 * c.scatter * math.sqrt(1.0 / c.first + 1.0 / c.last))
    return above or rise > max(_ABOVE_START, _SURE * c.doubt / 3.0) or (rise > 0.0 and c.whole.sure < -_SURE)


def _grows(c: MeasuredCurve) -> bool:
    """Whether the peaks of the second half rise, and by much."""
    return c.envelope_trend >= 0.6 and c.envelope_rise > _GROWTH


def _slow(c: MeasuredCurve) -> Judgement | None:
    """Whether the curve falls from beginning to end, for certain, along a straight line, and by little."""
    first, second = c.halves
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
        return "too slow", 10.0, f"The loss has only {_changed(c)}"
    if total < _STRAIGHT:
        return "too slow", 2.0, f"The loss has only {_changed(c)}, along a straight line"
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
    return lasting and amplitude >= _FLAT and fall_of_means(c.tail, 2) < 0.5 * amplitude
