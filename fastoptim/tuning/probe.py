"""Find the learning rate by trying some: `probe_lr`.

It trains for real, in place, and then puts everything back, bit-identical: parameters, optimizer states, random
generators and the position in the data, also if the loss function raises or Ctrl-C is pressed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..common.public import public
from ..common.validation import count, names_arguments, real
from ..optimizers.base import Optimizer
from ..training.diagnosis import MINIMUM, Diagnosis, diagnose
from ..training.loop import LossAndGrad
from .sandbox import Sandbox, check_first_loss

_SERIES = (1.0, 2.0, 5.0)  # rates are tried on the grid 1, 2, 5, 10, 20, 50, ...
_DECADE = len(_SERIES)
_REACH = 2  # so many neighbours on each side must be worse: a single one may be a mere bump in the way
_CONFIRMATIONS = 8  # most candidates of the longer horizon
_FARTHEST = 36 * _DECADE  # rates from 1e-36 to 1e36 are tried: they are numbers in float32, too
_ROUNDOFF = 1e-6  # relative, of a loss in float32
_CHANCE = 4.0  # standard errors within which the scores of all rates are alike
_BAD = ("diverged", "oscillating")


@public
@dataclass(frozen=True)
class Probe:
    """One candidate rate and what came of it.

    Attributes
    ----------
    lr : float
        The rate.
    losses : numpy.ndarray
        Loss on the fixed batch before the first step and after every step; cut off at the first that is not finite.
    score : float
        Mean of the last tenth of `losses`; infinite if one is not finite.
    diagnosis : Diagnosis
        Verdict, evidence and remedy.
    """

    lr: float
    losses: np.ndarray = field(repr=False)
    score: float
    diagnosis: Diagnosis

    @property
    def verdict(self) -> str:
        """The verdict of `diagnosis`."""
        return self.diagnosis.verdict

    @property
    def bad(self) -> bool:
        """Whether the rate is too large."""
        return self.verdict in _BAD

    @property
    def still(self) -> bool:
        """Whether the loss has not moved by more than the round-off of float32."""
        change = np.abs(self.losses[1:] - self.losses[0])
        return len(change) > 0 and bool(change.max() <= _ROUNDOFF * abs(self.losses[0]))


@public
@dataclass(frozen=True)
class ProbeResult:
    """What `probe_lr` found.

    Attributes
    ----------
    lr : float
        The best rate found; where to start from if none stood out.
    interval : tuple of float
        The nearest rates below and above that are worse; 0 or infinity where none was tried.
    probes : tuple of Probe
        All candidates, by rate.
    inconclusive : bool
        Whether the budget ended before both neighbours of `lr` were known to be worse, no rate was fit for use,
        or none stood out, as nothing moved or by no more than the losses of a stream scatter.
    confirmed : tuple of Probe
        The candidates of the longer horizon, by rate; empty without `confirm`.
    """

    lr: float
    interval: tuple[float, float]
    probes: tuple[Probe, ...]
    inconclusive: bool
    confirmed: tuple[Probe, ...] = ()

    def __str__(self) -> str:
        low, high = self.interval
        head = f"lr {self.lr:g}, between {low:g} and {high:g}" + (" (inconclusive)" if self.inconclusive else "")
        lines = [head, "    rate     loss         verdict", *map(self._line, self.probes)]
        if self.confirmed:
            steps = max(len(probe.losses) for probe in self.confirmed) - 1
            lines += [f"  after {steps} steps", *map(self._line, self.confirmed)]
        return "\n".join(lines)

    def _line(self, probe: Probe) -> str:
        return f"  {'*' if probe.lr == self.lr else ' '} {probe.lr:<8g} {probe.score:<12.5g} {probe.verdict}"


@public
@names_arguments
def probe_lr(
    loss_and_grad: LossAndGrad,
    params: Any,
    data: Any = None,
    optimizer: str | Optimizer | Callable[..., Optimizer] = "adam",
    *,
    lr: float | None = None,
    steps: int = 100,
    max_probes: int = 16,
    confirm: int | None = None,
    fixed_batch: Any = None,
    batch_size: int | None = None,
    rng: int | np.random.Generator | None = None,
    generators: Iterable[Any] = (),
    buffers: Any = (),
) -> ProbeResult:
    """Find a learning rate: start, probe briefly, read the curve, adjust, until both neighbours are worse.

    Every candidate starts from the same parameters, optimizer states and random numbers, sees the same minibatches, and
    is judged by its losses on one fixed batch that follows the minibatches it is trained on. Candidates
    are 1, 2 or 5 times a power of ten. `fastoptim.diagnose` reads each curve: a rate that diverges or oscillates is
    divided by 10 (by 100 if it left the numbers at once), one that is too slow is multiplied by 10 (by 100 if nothing
    moves); around the best the steps become 2 to 2.5. The best rate is the one of the lowest score that neither
    diverges nor oscillates, and it is accepted when its neighbours on both sides were tried and are worse, two on each
    side unless the nearer one already is too large or too slow.

    Parameters
    ----------
    loss_and_grad : callable
        ``loss_and_grad(params, batch) -> (loss, grads)``, as for `fastoptim.fit`.
    params : array or nesting of arrays, or `groups` of these
        Trained in place, and put back. What `groups` freezes stays as it is, and `loss_and_grad` gets the parameters as
        they were given to it.
    data : arrays, `Minibatches` or None
        As for `fastoptim.fit`. Iterators that can be read only once are refused, for they could not be put back.
    optimizer : str, class, or an optimizer
        A name that `fastoptim.fit` knows. A class or function is called with ``(params, lr=...)``, and first, for its
        default rate, with ``(params)``; if it has none, `lr` must be given. An optimizer is probed from its present
        states, on copies of it. The rates of all groups are scaled together: they keep their ratios to that of the
        first group, whose rate is meant, as the optimizer has them or is made with its default rate.
    lr : float, optional
        Where to start, > 0; default: the optimizer's own.
    steps : int
        Steps per candidate, at least 10.
    max_probes : int
        Most candidates to try.
    confirm : int, optional
        Try the best rate again for so many steps, with two neighbours on each side, and go on to a better one until
        all four are worse, in at most 8 trials: short probes flatter rates that are large for a noisy loss, and small
        for a long way. With `LAMB` and `LARS`, whose steps grow with the parameters, a rate may even diverge later.
    fixed_batch : batch, optional
        A batch of your own to judge by, for example of validation data. Default: enough of the minibatches that follow
        for 256 examples or one minibatch; without minibatches the loss of the steps themselves, which is read as that
        of different minibatches unless a second call at the same parameters returns the same (what a stream that
        `loss_and_grad` reads has handed out is not put back).
    batch_size, rng
        As for `fastoptim.minibatches` (default 32), where `data` is arrays.
    generators : iterable
        Random generators (``numpy.random.Generator`` or ``RandomState``, ``random.Random``) that `loss_and_grad` draws
        from. Those that it refers to by closure, attribute or global name are found without this, and so are the
        global ones of NumPy and Python.
    buffers : array or nesting of arrays
        Whatever else `loss_and_grad` writes to and should be put back, such as running means.

    Returns
    -------
    ProbeResult

    Raises
    ------
    TypeError, ValueError
        Bad arguments, or a model of which nothing can be told: its first loss or gradients are not finite, or all
        gradients are zero. Whatever `loss_and_grad` raises is passed on. Everything is put back.

    Notes
    -----
    Costs at most ``max_probes * steps`` steps, each with one more loss on the fixed batch, and a copy of parameters and
    states. Ctrl-C is held back while things are put back.

    Examples
    --------
    >>> import numpy as np, fastoptim as fo
    >>> curvature = np.geomspace(1.0, 100.0, 10)
    >>> def loss_and_grad(x, batch):
    ...     return 0.5 * np.sum(curvature * x**2), curvature * x
    >>> result = fo.probe_lr(loss_and_grad, np.ones(10), None, "sgd")  # diverges beyond 2 / 100
    >>> result.lr, result.interval
    (0.01, (0.005, 0.02))
    """
    steps, max_probes = count("steps", steps, MINIMUM), count("max_probes", max_probes)
    confirm = None if confirm is None else count("confirm", confirm, steps + 1)
    lr = None if lr is None else real("lr", lr, 0.0)
    with Sandbox(loss_and_grad, params, data, optimizer, batch_size, rng, generators, buffers, lr) as sandbox:
        start = sandbox.default_lr if lr is None else lr
        if not start > 0.0:
            raise ValueError(f"lr must be > 0 to start from, got {start}")
        if fixed_batch is None:
            fixed_batch = sandbox.following_batch(steps)
        same = fixed_batch is not None or sandbox.batches is not None or sandbox.repeats_itself()
        search = _Search(lambda k: _trial(sandbox, _rate(k), steps, fixed_batch, same), max_probes)
        best, inconclusive = search.run(_grid_index(start))
        longer: dict[int, Probe] = {}
        if confirm is not None and not search.done[best].bad:
            confirmation = _Search(
                lambda k: _trial(sandbox, _rate(k), confirm, fixed_batch, same), _CONFIRMATIONS, neighbours_only=True
            )
            best, unknown = confirmation.run(best)
            longer, inconclusive = confirmation.done, inconclusive or unknown
    low = max((k for k in (*search.done, *longer) if k < best), default=None)
    high = min((k for k in (*search.done, *longer) if k > best), default=None)
    return ProbeResult(
        _rate(best),
        (0.0 if low is None else _rate(low), math.inf if high is None else _rate(high)),
        tuple(search.done[k] for k in sorted(search.done)),
        inconclusive,
        tuple(longer[k] for k in sorted(longer)),
    )


def _trial(sandbox: Sandbox, lr: float, steps: int, fixed_batch: Any, same: bool) -> Probe:
    """Train at one rate and judge the losses on the fixed batch; None: those of the steps, of `same` data or not."""
    training = sandbox.train([lr] * steps)
    if fixed_batch is None:
        losses = list(_until_nonfinite(training))
        if len(losses) == steps:
            losses.append(sandbox.evaluate(sandbox.next_batch())[0])
    else:
        sandbox.restore()
        losses = [sandbox.evaluate(fixed_batch)[0]]
        losses += _until_nonfinite(sandbox.evaluate(fixed_batch)[0] for _ in training)
    check_first_loss(losses[0])
    if not sandbox.slope_seen:
        raise ValueError(f"all gradients of {len(losses) - 1} steps are zero: no rate can be judged")
    return _judge(lr, np.array(losses), sandbox.momentum, same)


def _until_nonfinite(losses: Iterable[float]) -> Iterator[float]:
    for loss in losses:
        yield loss
        if not math.isfinite(loss):
            return


def _judge(lr: float, losses: np.ndarray, momentum: float, same: bool) -> Probe:
    diagnosis = diagnose(losses, fixed_batch=same, momentum=momentum, lr=lr)
    score = float(np.mean(losses[-_scored(len(losses)) :])) if np.isfinite(losses[-1]) else math.inf
    return Probe(lr, losses, score, diagnosis)


def _scored(count: int) -> int:
    """How many of so many losses the score is the mean of."""
    return max(5, count // 10)


def _rate(k: int) -> float:
    return float(f"{_SERIES[k % _DECADE]:g}e{k // _DECADE}")


def _grid_index(lr: float) -> int:
    """Where on the grid `lr` lies, or the grid's nearest rate."""
    near = round(_DECADE * math.log10(lr))
    around = (k for k in range(near - 1, near + 2) if _rate(k) > 0.0)
    return min(around, key=lambda k: abs(math.log(_rate(k) / lr)))


def _better(a: Probe, b: Probe) -> bool:
    """Whether `a` is the better candidate: any that is fit for use beats one that is not."""
    if a.bad or b.bad:
        return (a.bad, a.lr) < (b.bad, b.lr)
    if a.still and b.still:  # neither is better, and larger ones are to be tried
        return a.lr > b.lr
    return (a.score, a.lr) < (b.score, b.lr)


class _Search:
    """Minimum over the grid of rates: decades first, then neighbours."""

    def __init__(self, trial: Callable[[int], Probe], budget: int, neighbours_only: bool = False):
        self._trial, self._budget, self._neighbours_only = trial, budget, neighbours_only
        self.done: dict[int, Probe] = {}

    def run(self, start: int) -> tuple[int, bool]:
        """The best index, and whether the search is inconclusive."""
        k: int | None = start
        while k is not None and len(self.done) < self._budget:
            self.done[k] = self._trial(k)
            k = self._next()
        best = self._best()
        if self.done[best].still or self._within_noise():  # no rate has moved anything
            return start, True
        return best, k is not None or self.done[best].bad or best in (min(self.done), max(self.done))

    def _best(self) -> int:
        best = next(iter(self.done))
        for k, probe in self.done.items():
            if _better(probe, self.done[best]):
                best = k
        return best

    def _within_noise(self) -> bool:
        """Whether scores differ by no more than chance: losses of a stream differ at the same parameters, too."""
        probes = self.done.values()
        first = [probe.losses[0] for probe in probes]
        repeated = np.ptp(first) <= _ROUNDOFF * abs(first[0])
        if repeated or not all(math.isfinite(probe.score) for probe in probes):
            return False
        tails = [probe.losses[-_scored(len(probe.losses)) :] for probe in probes]
        noise = float(np.median([np.std(tail) / math.sqrt(len(tail)) for tail in tails]))
        return bool(np.ptp([probe.score for probe in probes]) < _CHANCE * noise)

    def _next(self) -> int | None:
        """The rate to try next; None if the best has been accepted."""
        best = self._best()
        probe = self.done[best]
        above = min((k for k in self.done if k > best), default=None)
        below = max((k for k in self.done if k < best), default=None)
        if self._neighbours_only:
            return self._untried_neighbour(best)
        if probe.bad:  # everything tried is too large
            far = not math.isfinite(probe.score) or probe.score > 1e3 * abs(probe.losses[0])
            return self._within(best, -_DECADE * (2 if far else 1))
        if above is None:
            slight = abs(probe.diagnosis.evidence["drop"]) < 1e-3 and not probe.diagnosis.evidence["noise"] > 1e-3
            step = _DECADE * (2 if slight else 1)
            return self._within(best, step)
        if below is None:
            return self._within(best, -_DECADE)
        if above - best > _DECADE:
            return best + _DECADE
        if below is not None and best - below > _DECADE:
            return best - _DECADE
        return self._untried_neighbour(best)

    def _within(self, best: int, step: int) -> int | None:
        return best + step if abs(best + step) <= max(abs(best), _FARTHEST) else None

    def _untried_neighbour(self, best: int) -> int | None:
        for distance in range(1, _REACH + 1):
            for k in (best + distance, best - distance):
                if k not in self.done and not self._hopeless(best, k):
                    return k
        return None

    def _hopeless(self, best: int, k: int) -> bool:
        """Whether a rate between `best` and `k` is known to be too large or too slow already."""
        between = [self.done[i] for i in range(min(best, k) + 1, max(best, k)) if i in self.done]
        return any(probe.bad if k > best else probe.verdict == "too slow" for probe in between)
