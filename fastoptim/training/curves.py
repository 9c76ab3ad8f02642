"""Measure a training curve: levels, trends, noise, cycles. `fastoptim.diagnose` judges by these figures."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

Array = np.ndarray

TAIL_LIMIT = 512  # values of the tail that are looked at one by one
BLOCKS = 16  # parts whose levels are compared
_ROUNDOFF = 1e-15  # a loss below this share of its start is round-off
_JUMP = math.log(4.0)  # how far, at least, all that follow lie above a first loss from which a large rate has gone
_THROWN = math.log(1.5)  # ... or the next four, above what the second half scatters about
_RARE = math.log(4.0)  # by how much means lie above levels where rare large losses make up most of them
_WIDE = 1.0  # scatter from which on the median of a few losses may lie anywhere
_SUDDEN = 0.15  # share of a curve within which a rise is sudden
_FASTER = 0.65  # duration of the second part of a rise, in units of the first, below which it gets faster ...
_SLOWER = 1.4  # ... and from which on it gets slower
_LEAST = 1e-60  # unit of losses, in that of the largest one, below which squares might overflow
_STRAY = 0.05  # share of values that may be negative in a curve that is positive otherwise


def kendall_tau(values: object) -> float:
    """Return Kendall's tau of a sequence against its order: 1 rises throughout, -1 falls throughout, 0 no trend."""
    x = np.asarray(values, np.float64)
    if len(x) < 2:
        return 0.0
    later, earlier = np.triu_indices(len(x), 1)[::-1]
    return float(np.mean(np.sign(x[later] - x[earlier])))


def blocks(x: Array, count: int, reduce: Callable[[Array], float]) -> Array:
    """Reduce each of `count` equal parts of a curve to one number."""
    return np.array([reduce(part) for part in np.array_split(x, min(count, len(x)))])


def middle(x: Array) -> float:
    """Mean of the middle half: neither moved by spikes nor stuck on rounded values, as a median is."""
    cut = (len(x) + 1) // 4
    return float(np.mean(np.sort(x)[cut : len(x) - cut]))


def spread(x: Array) -> float:
    """Distance from the 10th to the 90th percentile."""
    low, high = np.percentile(x, (10, 90))
    return float(high - low)


@dataclass(frozen=True)
class Line:
    """A straight line through the levels of equal blocks: where it begins, by how much it falls, and how surely."""

    begin: float
    fall: float
    error: float

    @property
    def sure(self) -> float:
        """Fall in units of its standard error."""
        return self.fall / self.error if self.error > 0.0 else math.copysign(math.inf, self.fall) if self.fall else 0.0


def line(levels: Array, error: float) -> Line:
    """Fit a `Line` by least squares to levels with a standard error each."""
    time = np.arange(len(levels)) - (len(levels) - 1) / 2
    power = float(time @ time)
    slope = float(time @ levels) / power
    fall = -slope * len(levels)
    return Line(float(levels.mean()) + 0.5 * fall, fall, error / math.sqrt(power) * len(levels))


class MeasuredCurve:
    """A curve of finite losses on the scale on which it is judged, and its figures.

    `z` is the logarithm of the loss where it is positive, apart from a few stray values, so that 0.1 is about ten per
    cent; else the loss in units of its start, or of the range of its levels if it starts close to zero.

    Parameters
    ----------
    y : float64 array
        At least 10 finite losses.
    exact_start : bool
        Whether the first loss alone is the start; otherwise the median of the first few, unless the loss jumps there.
    late : int
        Steps before which nothing is judged, as momentum has to build up.
    start : float, optional
        The loss before training, where it is known from elsewhere.
    """

    def __init__(self, y: Array, exact_start: bool, late: int = 0, start: float | None = None):
        n = len(y)
        self.y, self.n, self.late = y, n, late
        self.jumped = not exact_start and start is None and _jumps(y)
        self.first = 1 if exact_start or self.jumped else min(max(1, n // 20), 5)
        self.last = max(n // 20, min(5, n // 4), 1)
        y_start = _median(y[: self.first]) if start is None else start
        y_end = _median(y[-self.last :])
        self.positive, scaled = _scaled(y if start is None else np.append(y, start), y_start)
        self.z = scaled[:n]
        self.levels_of_loss = y_start, y_end
        self.start = float(np.median(self.z[: self.first]) if start is None else scaled[n])
        self.end = float(np.median(self.z[-self.last :]))
        self.tail_start = min(max(n // 2, late), n - 5)
        self.tail = self.z[self.tail_start :]
        steps = np.diff(self.tail)
        self.noise = 1.4826 * float(np.median(np.abs(steps - np.median(steps)))) / math.sqrt(2.0)
        self.rises = float(np.mean(steps > 0))
        self.tail_trend = kendall_tau(blocks(self.tail, 64, np.mean))
        quarter = max(1, len(self.tail) // 4)
        self.tail_drop = float(np.median(self.tail[:quarter]) - np.median(self.tail[-quarter:]))
        peaks = blocks(self.tail, 8, np.max)
        self.envelope_trend, self.envelope_rise = kendall_tau(peaks), float(peaks[-1] - peaks[0])
        self.rest = detrended(self.tail[-TAIL_LIMIT:])
        self.cycle, self.period = cycle(self.rest)

    @property
    def drop(self) -> float:
        """From start to end, on the scale of `z`."""
        return self.start - self.end

    @property
    def swing(self) -> float:
        """Spread of the second half as a share of all progress, at most 100."""
        scale = float(np.abs(self.y).max())
        y = self.y / scale if scale > 0.0 else self.y
        width = spread(y[self.tail_start :])
        progress = float(np.median(y[: self.first]) - y.min())
        if not width > 0.0:
            return 0.0
        return width / progress if progress > 0.01 * width else 100.0

    @cached_property
    def levels(self) -> Array:
        """Levels of equal parts of the curve."""
        return blocks(self.z, min(BLOCKS, max(4, self.n // 4)), middle)

    def _mean(self, z: Array) -> float:
        """What the mean of some losses is on the scale of `z`."""
        if not self.positive:
            return float(z.mean())
        top = float(z.max())
        return top + math.log(np.exp(z - top).mean())

    @cached_property
    def means(self) -> Array:
        """Means of the same parts: rare large losses, which levels do not see, count in them."""
        return blocks(self.z, len(self.levels), self._mean)

    @cached_property
    def scatter(self) -> float:
        """Standard deviation of single values about the line through the levels, by their median."""
        centres = (np.arange(len(self.levels)) + 0.5) * self.n / len(self.levels) - 0.5
        residues = np.abs(self.z - np.interp(np.arange(self.n), centres, self.levels))
        return 1.4826 * float(np.median(residues))

    @cached_property
    def error(self) -> float:
        """Standard error of a level: from the scatter of single values, and from how levels jump about."""
        single = 1.25 * self.scatter / math.sqrt(self.n / len(self.levels))
        bends = np.abs(self.levels[1:-1] - 0.5 * (self.levels[:-2] + self.levels[2:]))
        return max(single, 1.4826 * float(np.median(bends)) / math.sqrt(1.5), self._quantum)

    @cached_property
    def _quantum(self) -> float:
        """Half the distance of neighbouring values: rounded losses know no better. Of equal ones, that of numbers."""
        values = np.unique(self.z)
        distance = np.min(np.diff(values)) if len(values) > 1 else 8.0 * np.spacing(values[0])
        return 0.5 * float(abs(distance)) / math.sqrt(self.n / len(self.levels))

    @cached_property
    def doubt(self) -> float:
        """Three standard errors of the drop."""
        return 3.0 * math.hypot(1.25 * self.scatter / math.sqrt(self.first), self.error)

    @cached_property
    def whole(self) -> Line:
        """The line through all levels."""
        return line(self.levels, self.error)

    @property
    def room(self) -> float:
        """By how much the loss may have fallen in the second half: two standard errors more than is seen."""
        return self.halves[1].fall + 2.0 * self.halves[1].error if np.any(self.y[self.tail_start :]) else 0.0

    def ends_keep_pace(self, share: float) -> float:
        """By how many standard errors the outer thirds fall faster than `share` times the middle one."""
        third = len(self.levels) // 3
        parts = self.levels[: third + 1], self.levels[third - 1 : 1 - third], self.levels[-third - 1 :]
        (first, inner, last), sizes = (line(part, self.error) for part in parts), [len(part) for part in parts]
        pace = 0.5 * (first.fall / sizes[0] + last.fall / sizes[2]) - share * inner.fall / sizes[1]
        error = math.hypot(0.5 * first.error / sizes[0], 0.5 * last.error / sizes[2], share * inner.error / sizes[1])
        return Line(0.0, pace, error).sure

    @cached_property
    def halves(self) -> tuple[Line, Line]:
        """The lines through the first and the second half of the levels."""
        half = len(self.levels) // 2
        return line(self.levels[:half], self.error), line(self.levels[-half:], self.error)

    @cached_property
    def white(self) -> bool:
        """Whether the second half fluctuates at random from value to value, as minibatches and dropout make it."""
        limit = max(0.25, 2.0 / math.sqrt(len(self.rest)))
        return abs(autocorrelation(self.rest, 1)) < limit and autocorrelation(np.diff(self.rest), 1) < -0.2

    @cached_property
    def averaged(self) -> bool:
        """Whether the second half walks at random, as running means do; they begin with whatever one value was."""
        if not self.noise > 1e-9:
            return False
        return autocorrelation(self.rest, 1) > 0.5 and abs(autocorrelation(np.diff(self.rest), 1)) < 0.3

    @property
    def rise(self) -> float:
        """From start to end, or of means, where single losses scatter widely or rare ones make up most of the means."""
        rise = -self.drop
        if self.scatter > _WIDE:
            rise = min(rise, self.end - self._mean(self.z[: self.first]))
        rare = float(np.mean(self.means[-2:] - self.levels[-2:])) > _RARE
        return min(rise, float(np.mean(self.means[-2:]) - np.mean(self.means[:2]))) if rare else rise

    @property
    def fades(self) -> bool:
        """Whether a loss of both signs has come closer to zero: losses of policies do, those of lost runs grow."""
        start, end = self.levels_of_loss
        return not self.positive and abs(end) < abs(start)

    @cached_property
    def bursts(self) -> bool:
        """Whether the loss rises ever faster, or all at once, from its lowest level to its last.

        Accuracies, rewards and likelihoods rise steadily or ever more slowly, and so do losses of models that overfit.
        """
        early, half, late, whole = self._rise
        first, second = half - early, late - half
        if late - early <= _SUDDEN * whole:
            return second <= _SLOWER * first + 1.0  # as exactly as blocks tell
        return second < _FASTER * first

    @property
    def like_a_score(self) -> bool:
        """Whether the curve has never come down, and rises as scores do: ever more slowly, or steadily if negative."""
        lost, gained = self.lost_and_gained
        if gained > max(self.doubt, 0.2 * lost):
            return False
        early, half, late, whole = self._rise
        if self.positive:
            return late - half > half - early and late - early > _SUDDEN * whole
        return not self.bursts

    @cached_property
    def _rise(self) -> tuple[int, int, int, int]:
        """How long 15, 45 and 75 per cent of the rise from the lowest level take, and the whole curve, in blocks."""
        width = -(-self.n // 128)  # blocks of one length, so that they tell time
        part = self.y[self.n % width :] / max(float(np.abs(self.y).max()), 1e-300)
        levels = np.median(part.reshape(-1, width), axis=1)
        rise = levels[int(np.argmin(levels)) :] - levels.min()
        rise /= np.median(rise[-max(1, len(levels) // 16) :])
        early, half, late = (int(np.sum(rise < share)) for share in (0.15, 0.45, 0.75))
        return early, half, late, len(levels)

    @property
    def relieved(self) -> bool:
        """Whether a loss that has risen above its lowest level has clearly come down again since."""
        k = int(np.argmin(self.levels))
        peak, end = float(self.levels[k:].max()), float(np.mean(self.levels[-2:]))
        return peak - end > max(0.2 * (peak - float(self.levels[k])), 3.0 * self.error)

    @property
    def like_a_share(self) -> bool:
        """Whether the curve rises ever more slowly between 0 and 1, as an accuracy does; a lost run rises faster."""
        if self.y.min() < 0.0 or self.y.max() > 1.0:
            return False
        first, inner, last = (float(np.median(part)) for part in np.array_split(self.y, 3))
        return first < last and inner - first >= last - inner

    @property
    def risen(self) -> float:
        """By how much the last levels lie above the first."""
        return float(np.mean(self.levels[-2:]) - self.levels[0])

    @property
    def lost_and_gained(self) -> tuple[float, float]:
        """How far the last levels, and means, lie above the lowest, and how far the loss had come down to that."""
        k = int(np.argmin(self.levels))
        lowest = float(self.levels[k])
        lost = float(np.mean(self.levels[-2:])) - lowest
        lost = min(lost, float(np.mean(self.means[-2:]) - np.min(self.means[max(0, k - 1) : k + 2])))
        return lost, max(self.start, float(self.levels[0])) - lowest

    def evidence(self) -> dict[str, float]:
        """The figures that `fastoptim.diagnose` reports."""
        start, end = self.levels_of_loss
        return {
            "start": start,
            "end": end,
            "drop": self._relative(self.drop),
            "tail_drop": self._relative(self.tail_drop),
            "tail_trend": self.tail_trend,
            "envelope_trend": self.envelope_trend,
            "rises": self.rises,
            "swing": self.swing,
            "cycle": self.cycle,
            "period": float(self.period),
            "noise": self.noise,
        }

    def _relative(self, drop: float) -> float:
        return -math.expm1(min(-drop, 700.0)) if self.positive else drop


def _jumps(y: Array) -> bool:
    """Whether the first loss lies further below the next nine than these lie apart, or has been thrown up for a while.

    Thrown up are the next four losses if they lie above the first by more than later ones scatter. Nothing has jumped
    if a later loss, too, lies far below its neighbours, as those of a few examples do.
    """
    if not y[:10].min() > 0.0 or np.any(y[11:-1] < math.exp(-_JUMP) * np.minimum(y[10:-2], y[12:])):
        return False
    z = np.log(y[:10])
    late = y[len(y) // 2 :]
    scatter = spread(np.log(late[late > 0.0])) if np.any(late > 0.0) else math.inf
    thrown = z[1:5].min() > z[0] and np.median(z[1:5]) - z[0] > max(_THROWN, 2.5 * scatter)
    return bool(thrown or z[1:].min() - z[0] > max(_JUMP, np.ptp(z[1:])))


def _median(y: Array) -> float:
    """The median, also of values whose sum would overflow."""
    largest = float(np.abs(y).max())
    return largest * float(np.median(y / largest)) if largest > 0.0 else 0.0


def _scaled(y: Array, start: float) -> tuple[bool, Array]:
    """Whether a curve is positive, stray values apart, and the curve on the scale on which it is judged."""
    largest = float(np.abs(y).max())
    if largest == 0.0:
        return False, np.zeros(len(y))
    stray = y < 0.0
    if y.max() > 0.0 and np.mean(stray) <= _STRAY and (not stray.any() or np.mean(y > 0.0) > 0.5):
        usual = start if start > 0.0 else largest
        floor = max(usual * _ROUNDOFF, float(np.finfo(np.float64).tiny))
        if stray.any():  # a value below zero is read as the least one above it
            floor = max(floor, float(np.percentile(y[y > 0.0], 1)))
        return True, np.log(np.maximum(y, floor))
    scaled = y / largest
    unit = abs(start) / largest
    levels = np.append(blocks(scaled, min(BLOCKS, 1 + len(y) // 5), np.median), start / largest)
    width = float(np.ptp(levels)) or float(np.ptp(scaled))  # of levels: a spike is no scale
    return False, scaled / max(unit if unit > 0.05 * width else width, _LEAST)


def detrended(x: Array) -> Array:
    """A sequence without its mean and its straight trend."""
    time = np.arange(len(x)) - (len(x) - 1) / 2
    e: Array = x - x.mean()
    e -= time * float(time @ e) / float(time @ time)
    return e


def autocorrelation(e: Array, lag: int) -> float:
    """Autocorrelation of a detrended sequence, without the bias towards zero of long lags."""
    power = float(e @ e)
    return float(e[lag:] @ e[:-lag]) / power * len(e) / (len(e) - lag) if power > 0.0 else 0.0


def cycle(e: Array) -> tuple[float, int]:
    """Strength and period of the strongest cycle: the largest autocorrelation beyond a dip, or minus that of lag 1."""
    if not float(e @ e) > 0.0 or len(e) < 8:
        return 0.0, 0
    lags = range(1, max(3, len(e) // 4))
    r = {k: autocorrelation(e, k) for k in lags}
    best, period, lowest = max(0.0, -r[1]), 2, r[1]
    for k in list(lags)[1:]:
        if r[k] > best and lowest < 0.0:
            best, period = r[k], k
        lowest = min(lowest, r[k])
    return min(best, 1.0), period if best > 0 else 0


def fall_of_means(x: Array, period: int) -> float:
    """By how much means over whole periods fall from the first to the last third of a sequence."""
    count = len(x) // period
    if count < 2:
        return 0.0
    means = x[len(x) - count * period :].reshape(count, period).mean(axis=1)
    third = max(1, count // 3)
    return float(np.mean(means[:third]) - np.mean(means[-third:]))


def kept_pace(z: Array, start: float) -> float:
    """Fall of the second half in units of that of the first; infinite if there was none before."""
    half = len(z) // 2
    reach = max(1, len(z) // 10)
    at_half = float(np.median(z[max(0, half - reach) : half + reach]))
    first, second = start - at_half, at_half - float(np.median(z[-reach:]))
    return second / first if first > 0.0 else math.copysign(math.inf, second)
