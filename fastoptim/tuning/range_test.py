"""Sweep the learning rate upward in one run, and see where the loss falls and where it blows up: `lr_range_test`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..common.public import public
from ..common.validation import count, names_arguments, real
from ..optimizers.base import Optimizer
from ..training.diagnosis import MINIMUM
from ..training.loop import LossAndGrad
from .sandbox import Sandbox, check_first_loss

_CHANCE = 6.0  # standard errors by which noise alone takes a running mean down to its minimum


@public
@dataclass(frozen=True)
class RangeTest:
    """What `lr_range_test` saw.

    Attributes
    ----------
    rates, losses, smoothed : numpy.ndarray
        Rate of each step, the loss of its minibatch before that step, and its bias-corrected running mean.
    steepest : float
        The rate around which the loss fell fastest, by the running mean; NaN if it never fell by more than chance. The
        first ``1 / (1 - smoothing)`` values, which are means of little, and those after the minimum do not count, and
        the ``smoothing / (1 - smoothing)`` steps by which a running mean lags behind (fewer at first) are taken off.
    blow_up : float
        The rate at which the test ended because the running mean exceeded `stop` times its minimum; NaN if it did not.
    """

    rates: np.ndarray = field(repr=False)
    losses: np.ndarray = field(repr=False)
    smoothed: np.ndarray = field(repr=False)
    steepest: float
    blow_up: float


@public
@names_arguments
def lr_range_test(
    loss_and_grad: LossAndGrad,
    params: Any,
    data: Any = None,
    optimizer: str | Optimizer | Callable[..., Optimizer] = "adam",
    *,
    low: float = 1e-7,
    high: float = 10.0,
    steps: int = 200,
    smoothing: float = 0.95,
    stop: float = 4.0,
    batch_size: int | None = None,
    rng: int | np.random.Generator | None = None,
    generators: Iterable[Any] = (),
    buffers: Any = (),
) -> RangeTest:
    """Train while the rate grows exponentially from `low` to `high`, and watch the loss of the minibatches.

    The usual plot: the loss falls where the rate begins to matter and rises where it becomes too large; a common choice
    is a rate near the steepest fall. Every step starts where the last one ended, so that what is seen at one rate
    depends on all smaller ones: `probe_lr` asks the question more carefully.

    Parameters
    ----------
    low, high : float
        First and last rate, ``0 < low < high``.
    steps : int
        Steps from `low` to `high`, at least 10.
    smoothing : float
        Weight ``beta`` of the past in the running mean ``s <- beta s + (1 - beta) loss``, in [0, 1); divided by
        ``1 - beta**t`` it is unbiased. With fewer than 100 steps a smaller one, such as 0.8, shows more.
    stop : float
        End as soon as the running mean, of more than ``1 / (1 - smoothing)`` losses, exceeds its minimum so many times
        (or the loss is not finite), > 1. If losses are not all positive: as soon as it lies ``stop - 1`` times their
        range up to the minimum above that.
    loss_and_grad, params, data, optimizer, batch_size, rng, generators, buffers
        As for `probe_lr`; everything is put back here, too.

    Returns
    -------
    RangeTest

    Raises
    ------
    TypeError, ValueError
        Bad arguments, `FTRL`, whose parameters change with the rate itself, or a first loss or gradient that is not
        finite; everything is put back.

    References
    ----------
    Smith, "Cyclical learning rates for training neural networks", WACV 2017.

    Examples
    --------
    >>> import numpy as np, fastoptim as fo
    >>> def loss_and_grad(x, batch):
    ...     return 0.5 * np.sum(x**2), 1.0 * x
    >>> test = fo.lr_range_test(loss_and_grad, np.ones(3), None, "sgd", high=100.0)
    >>> bool(0.01 < test.steepest < 2.0 < test.blow_up)
    True
    """
    steps, low, high = count("steps", steps, MINIMUM), real("low", low), real("high", high)
    smoothing, stop = real("smoothing", smoothing, 0.0, 1.0), real("stop", stop)
    if not 0.0 < low < high:
        raise ValueError(f"expected 0 < low < high, got {low} and {high}")
    if not stop > 1.0:
        raise ValueError(f"stop must be > 1, got {stop}")
    schedule = np.geomspace(low, high, steps)
    losses: list[float] = []
    smoothed: list[float] = []
    mean, blow_up = 0.0, math.nan
    with Sandbox(loss_and_grad, params, data, optimizer, batch_size, rng, generators, buffers, low) as sandbox:
        for lr, loss in zip(schedule, sandbox.train(schedule), strict=False):
            losses.append(loss)
            check_first_loss(losses[0])
            mean = smoothing * mean + (1.0 - smoothing) * loss
            smoothed.append(mean / (1.0 - smoothing ** len(losses)))
            known = len(losses) > 1.0 / (1.0 - smoothing)  # before, it is the mean of a few
            if not math.isfinite(loss) or (known and smoothed[-1] > _limit(losses, smoothed, stop)):
                blow_up = float(lr)
                break
    curve = np.array(smoothed)
    rates = schedule[: len(curve)]
    found = np.array(losses)
    return RangeTest(rates, found, curve, _steepest(rates, found, curve, smoothing), blow_up)


def _steepest(rates: np.ndarray, losses: np.ndarray, curve: np.ndarray, smoothing: float) -> float:
    """Rate of the fastest fall, between the first values of the running mean and its minimum; NaN if there is none.

    The fall is that over as many steps as a running mean lags behind: from one step to the next noise falls faster. The
    place is the mean of all, weighted by the fourth power of their falls: where several are about as steep, chance
    would choose between them.
    """
    known = np.where(np.isfinite(curve), curve, math.inf)
    first = min(math.ceil(1.0 / (1.0 - smoothing)), len(curve) // 4)
    last = first + int(np.argmin(known[first:])) if len(curve) > first else 0
    delay = round(smoothing / (1.0 - smoothing))
    width = max(1, min(delay, (last - first) // 2))
    if last - first < 2:
        return math.nan
    falls = curve[first : last + 1 - width] - curve[first + width : last + 1]
    noise = float(np.std(np.diff(losses[: last + 1]))) / math.sqrt(2.0)
    by_chance = _CHANCE * noise * math.sqrt((1.0 - smoothing) / (1.0 + smoothing))
    if not (falls.max() > 1e-9 * abs(curve[0]) and curve[first] - curve[last] > by_chance):  # or round-off
        return math.nan
    weights = np.maximum(falls / falls.max(), 0.0) ** 4
    place = round(float(np.average(np.arange(len(falls)), weights=weights)))
    middle = first + place + width // 2
    return float(rates[max(0, middle - round(_lag(smoothing, middle + 1)))])


def _lag(smoothing: float, count: int) -> float:
    """Mean age, in steps, of what a bias-corrected running mean of so many values is a mean of."""
    past = smoothing**count
    return smoothing / (1.0 - smoothing) - count * past / (1.0 - past)


def _limit(losses: list[float], smoothed: list[float], stop: float) -> float:
    """Running mean that is a blow-up: `stop` times the minimum, or as far above it if losses are not all positive."""
    best = int(np.argmin(smoothed))
    unit = abs(smoothed[best])
    if min(losses) <= 0.0:  # close to zero a multiple means nothing: the range of losses up to there does
        unit = max(unit, float(np.ptp(losses[: best + 1])))
    return smoothed[best] + (stop - 1.0) * unit
