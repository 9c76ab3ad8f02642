"""Learning-rate schedules: pure functions ``step -> rate``.

One convention for all: `step` counts optimizer steps from zero, and ``schedule(step)`` is the rate to be used *for*
that step, so the first step uses ``schedule(0)``. Every schedule is defined for all steps; past its end it keeps its
last rate, unless its equation says otherwise. In torch's terms ``schedule(k)`` is the rate after ``k`` calls of
``scheduler.step()``; in Optax's it is ``schedule(k)``. A rate too large for a float (``gamma > 1``) is infinite, which
optimizers refuse.

Schedules are immutable, comparable and picklable, print as the call that made them, and cost less than a microsecond.
`Plateau` alone has a state. Any callable from an int to a float may stand where a schedule is expected.

>>> from fastoptim import schedules
>>> schedule = schedules.warmup(schedules.cosine(0.1, 90), 10)
>>> [round(schedule(step), 4) for step in (0, 5, 10, 55, 100, 1000)]
[0.0, 0.05, 0.1, 0.05, 0.0, 0.0]
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from functools import partial, wraps
from inspect import Signature, signature
from itertools import pairwise
from operator import index
from typing import Annotated, Any, Concatenate, ParamSpec, get_type_hints

from .common.text import in_words
from .common.validation import bound, choice, count, flag, names_arguments, real

__all__ = [
    "Plateau",
    "Schedule",
    "constant",
    "cosine",
    "cosine_restarts",
    "exponential",
    "inverse_sqrt",
    "join",
    "linear",
    "multistep",
    "one_cycle",
    "polynomial",
    "scale",
    "step_decay",
    "warmup",
    "warmup_stable_decay",
]


class Schedule:
    """A function of the step together with the arguments that made it; the functions below return these."""

    __slots__ = ("_arguments", "_call", "_make")

    def __init__(self, make: Callable[..., Schedule], function: Callable[..., float], arguments: dict[str, Any]):
        self._make, self._arguments = make, tuple(arguments.items())
        self._call = partial(function, **arguments)

    def __call__(self, step: int) -> float:
        """The learning rate for optimizer step number `step`, an int from 0."""
        try:
            step = index(step)
        except TypeError as error:
            raise TypeError(f"step must be an int from 0, got {step!r}") from error
        if step < 0:
            raise ValueError(f"step counts from 0, got {step}")
        return self._call(step)

    def __repr__(self) -> str:
        return f"{self._make.__name__}({', '.join(f'{name}={_text(value)}' for name, value in self._arguments)})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Schedule):
            return NotImplemented
        return (self._make, self._arguments) == (other._make, other._arguments)

    def __hash__(self) -> int:
        return hash((self._make, self._arguments))

    def __reduce__(self) -> Any:
        return partial(self._make, **dict(self._arguments)), ()  # a call of a public function

    def __deepcopy__(self, memo: dict[int, Any]) -> Schedule:  # with a `Plateau` of its own
        return self._make(**deepcopy(dict(self._arguments), memo))


def _text(value: Any) -> str:
    """`value` as in a call; a function by its name, because its address would differ from run to run."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, partial):
        named = [f"{name}={_text(item)}" for name, item in value.keywords.items()]
        return f"partial({', '.join([_text(value.func), *map(_text, value.args), *named])})"
    return in_words(value, (Schedule, Plateau)) or repr(value)


def described(schedules: Iterable[Any]) -> str:
    """`schedules` in words that are the same in every process."""
    return _text(tuple(schedules))


def parts_of(schedules: Iterable[Any]) -> list[Any]:
    """`schedules` and the schedules that they are made of, each object once."""
    found: dict[int, Any] = {}

    def visit(item: Any) -> None:
        if isinstance(item, tuple):
            for part in item:
                visit(part)
        elif callable(item):
            found[id(item)] = item
            if isinstance(item, Schedule):
                visit(tuple(value for _, value in item._arguments))

    visit(tuple(schedules))
    return list(found.values())


# --- How a schedule is stated: ``equation(step, arguments)``, each argument with what validates it --------------------

P = ParamSpec("P")
_Equation = Callable[Concatenate[int, P], float]
_Check = Callable[[str, Any], Any]  # (name of the argument, value) -> the value to use


def _public(equation: _Equation[P], check: Callable[..., None] | None = None) -> Callable[P, Schedule]:
    """Make of an equation the function that takes its arguments and returns a `Schedule`.

    Arguments are validated as their annotations say, then all together by `check`.
    """
    hints = get_type_hints(equation, include_extras=True)
    plain = [
        p.replace(annotation=getattr(hints[p.name], "__origin__", int)) for p in signature(equation).parameters.values()
    ]
    own = Signature(plain[1:], return_annotation=Schedule)

    @wraps(equation)
    def make(*args: P.args, **kwargs: P.kwargs) -> Schedule:
        given = bound(make.__name__, own, args, kwargs)
        valid = {name: hints[name].__metadata__[0](name, value) for name, value in given.arguments.items()}
        if check is not None:
            check(**valid)
        return Schedule(make, equation, valid)

    make.__signature__ = own  # type: ignore[attr-defined]
    del make.__wrapped__
    return make


def _checked(check: Callable[..., None]) -> Callable[[_Equation[P]], Callable[P, Schedule]]:
    return partial(_public, check=check)


def _real(low: float) -> _Check:
    return lambda name, value: real(name, value, low)


def _count(low: int) -> _Check:
    return lambda name, value: count(name, value, low)


def _choice(*choices: str) -> _Check:
    return lambda name, value: choice(name, value, choices)


def _function(name: str, value: Any) -> Callable[[int], float]:
    if not callable(value):
        raise TypeError(f"{name} must be a callable from step to rate, such as constant(0.1), got {value!r}")
    function: Callable[[int], float] = value
    return function


def _functions(name: str, values: Any) -> tuple[Callable[[int], float], ...]:
    return tuple(_function(f"{name}[{i}]", value) for i, value in _numbered(name, values, "schedules"))


def _factor(name: str, value: Any) -> Any:
    return value if callable(value) else real(name, value, 0.0)


def _counts(name: str, values: Any) -> tuple[int, ...]:
    return tuple(count(f"{name}[{i}]", value, 0) for i, value in _numbered(name, values, "numbers of steps"))


def _numbered(name: str, values: Any, what: str) -> Iterable[tuple[int, Any]]:
    if not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a list of {what}, got {values!r}")
    return enumerate(values)


Real = Annotated[float, _real(0.0)]
AtLeast1 = Annotated[float, _real(1.0)]
Count = Annotated[int, _count(1)]
From0 = Annotated[int, _count(0)]
Counts = Annotated[Sequence[int], _counts]
Function = Annotated[Callable[[int], float], _function]
Functions = Annotated[Sequence[Callable[[int], float]], _functions]


# --- Schedules ----------------------------------------------------------------------------------------------------


@_public
def constant(step: int, lr: Real) -> float:
    """``lr`` at every step; Optax's ``constant_schedule``.

    >>> constant(0.1)(7)
    0.1
    """
    return lr


@_public
def step_decay(step: int, lr: Real, step_size: Count, gamma: Real = 0.1) -> float:
    """``lr * gamma ** (step // step_size)``; torch's ``StepLR``.

    >>> [round(step_decay(1.0, 10)(step), 4) for step in (9, 10, 25)]
    [1.0, 0.1, 0.01]
    """
    return _decayed(lr, gamma, step // step_size)


@_public
def multistep(
    step: int, lr: Real, milestones: Annotated[Sequence[int], lambda *x: tuple(sorted(_counts(*x)))], gamma: Real = 0.1
) -> float:
    """``lr * gamma ** k``, where `k` of the milestones are at or before the step; torch's ``MultiStepLR``.

    >>> [round(multistep(1.0, [30, 80])(step), 4) for step in (29, 30, 79, 80)]
    [1.0, 0.1, 0.1, 0.01]
    """
    return _decayed(lr, gamma, bisect_right(milestones, step))


@_public
def exponential(step: int, lr: Real, gamma: Real) -> float:
    """``lr * gamma ** step``; torch's ``ExponentialLR``, Optax's ``exponential_decay`` with ``transition_steps=1``.

    >>> exponential(1.0, 0.5)(3)
    0.125
    """
    return _decayed(lr, gamma, step)


def _decayed(lr: float, gamma: float, times: int) -> float:
    try:
        return lr * gamma**times
    except OverflowError:  # a product that is too large is infinite; a power that is too large raises
        return math.inf if lr else 0.0


@_public
def linear(step: int, lr: Real, final_lr: Real, steps: Count) -> float:
    """From `lr` at step 0 in a straight line to `final_lr` at step `steps`, which it keeps.

    Optax's ``linear_schedule``; torch's ``LinearLR`` with ``start_factor=1``, ``end_factor=final_lr / lr``.

    >>> [linear(1.0, 0.0, 4)(step) for step in (0, 1, 4, 9)]
    [1.0, 0.75, 0.0, 0.0]
    """
    return final_lr if step >= steps else lr + (final_lr - lr) * (step / steps)


@_public
def polynomial(step: int, lr: Real, steps: Count, power: Real = 1.0, final_lr: Real = 0.0) -> float:
    """``final_lr + (lr - final_lr) * (1 - step / steps) ** power`` up to step `steps`, then `final_lr`.

    Optax's ``polynomial_schedule``; with ``final_lr=0`` torch's ``PolynomialLR``.

    >>> [polynomial(1.0, 4, power=2.0)(step) for step in (0, 2, 4)]
    [1.0, 0.25, 0.0]
    """
    return final_lr if step >= steps else float(final_lr + (lr - final_lr) * (1.0 - step / steps) ** power)


@_public
def cosine(step: int, lr: Real, steps: Count, final_lr: Real = 0.0) -> float:
    """``final_lr + (lr - final_lr) * (1 + cos(pi * step / steps)) / 2`` up to step `steps`, then `final_lr`.

    Optax's ``cosine_decay_schedule``; torch's ``CosineAnnealingLR`` up to ``T_max`` (beyond it torch's rate rises
    again, here and in Optax it stays).

    References
    ----------
    Loshchilov and Hutter, "SGDR: stochastic gradient descent with warm restarts", ICLR 2017.

    >>> [round(cosine(1.0, 100)(step), 4) for step in (0, 50, 100, 150)]
    [1.0, 0.5, 0.0, 0.0]
    """
    return _cosine(step, lr, steps, final_lr)


def _cosine(step: int, lr: float, steps: int, final_lr: float) -> float:
    return final_lr if step >= steps else final_lr + (lr - final_lr) * (1.0 + math.cos(math.pi * step / steps)) / 2.0


@_public
def cosine_restarts(step: int, lr: Real, period: Count, multiplier: Count = 1, final_lr: Real = 0.0) -> float:
    """`cosine` over `period` steps, again and again, each cycle `multiplier` times as long as the one before.

    torch's ``CosineAnnealingWarmRestarts`` with ``T_0=period``, ``T_mult=multiplier``, ``eta_min=final_lr``.

    >>> [round(cosine_restarts(1.0, 10, 2)(step), 4) for step in (0, 5, 10, 20, 30)]
    [1.0, 0.5, 1.0, 0.5, 1.0]
    """
    if multiplier == 1:
        step %= period
    while step >= period:
        step -= period
        period *= multiplier
    return _cosine(step, lr, period, final_lr)


def _check_one_cycle(steps: int, pct_start: float, three_phase: bool, **others: Any) -> None:
    real("pct_start", pct_start, 1.0 / steps, 1.0)
    if three_phase and pct_start > 0.5:
        raise ValueError(f"pct_start must be at most 0.5 with three_phase, got {pct_start}")


@_checked(_check_one_cycle)
def one_cycle(
    step: int,
    max_lr: Real,
    steps: Annotated[int, _count(2)],
    *,
    pct_start: Real = 0.3,
    div_factor: AtLeast1 = 25.0,
    final_div_factor: AtLeast1 = 1e4,
    anneal_strategy: Annotated[str, _choice("cos", "linear")] = "cos",
    three_phase: Annotated[bool, flag] = False,
) -> float:
    """Up from ``max_lr / div_factor`` to `max_lr`, then down to ``max_lr / div_factor / final_div_factor``.

    torch's ``OneCycleLR`` with ``total_steps=steps`` (rates only): the peak is at step ``pct_start * steps - 1`` and
    the last rate at step ``steps - 1``; torch refuses later steps, here the last rate stays. Optax's
    ``*_onecycle_schedule`` puts both one step later. With `three_phase` the way down first mirrors the way up.

    References
    ----------
    Smith and Topin, "Super-convergence: very fast training of neural networks using large learning rates", 2018.

    >>> [round(one_cycle(1.0, 100)(step), 4) for step in (0, 29, 99)]
    [0.04, 1.0, 0.0]
    """
    low = max_lr / div_factor
    last = low / final_div_factor
    begin, end, rates = 0.0, pct_start * steps - 1.0, (low, max_lr)
    if step > end:
        begin, end, rates = end, steps - 1.0, (max_lr, last)
        if three_phase:
            middle = 2.0 * pct_start * steps - 2.0
            if step <= middle:
                end, rates = middle, (max_lr, low)
            else:
                begin, rates = middle, (low, last)
    done = 1.0 if step >= end else (step - begin) / (end - begin)
    start, stop = rates
    if anneal_strategy == "linear":
        return start + (stop - start) * done
    return stop + (start - stop) * (1.0 + math.cos(math.pi * done)) / 2.0


@_public
def inverse_sqrt(step: int, lr: Real, timescale: Count) -> float:
    """``lr * sqrt(timescale / (timescale + step))``.

    ``warmup(inverse_sqrt(lr, n), n)`` is the Transformer's schedule: up to `lr` at step n, then
    ``lr * sqrt(n / step)``.

    References
    ----------
    Vaswani et al., "Attention is all you need", 2017, section 5.3.

    >>> [inverse_sqrt(1.0, 100)(step) for step in (0, 300)]
    [1.0, 0.5]
    """
    return lr * math.sqrt(timescale / (timescale + step))


def _check_stable(steps: int, warmup_steps: int, decay_steps: int, **others: Any) -> None:
    if warmup_steps + decay_steps > steps:
        raise ValueError(f"warmup_steps + decay_steps must be at most steps = {steps}")


@_checked(_check_stable)
def warmup_stable_decay(
    step: int,
    lr: Real,
    steps: Count,
    *,
    warmup_steps: From0,
    decay_steps: Count,
    final_lr: Real = 0.0,
    decay: Annotated[str, _choice("linear", "cosine", "sqrt")] = "linear",
) -> float:
    """Linearly from 0 to `lr`, then `lr`, then down to `final_lr` over the last `decay_steps` of `steps`.

    `decay` is "linear", "cosine" or "sqrt" (``1 - sqrt(fraction done)``). To train longer, raise `steps`: all rates
    before the decay stay as they were.

    References
    ----------
    Hu et al., "MiniCPM", 2024; Hägele et al., "Scaling laws and compute-optimal training beyond fixed training
    durations", 2024 (sqrt).

    >>> schedule = warmup_stable_decay(1.0, 100, warmup_steps=10, decay_steps=20)
    >>> [round(schedule(step), 4) for step in (0, 5, 10, 80, 90, 100)]
    [0.0, 0.5, 1.0, 1.0, 0.5, 0.0]
    """
    if step < warmup_steps:
        return lr * (step / warmup_steps)
    begin = steps - decay_steps
    if step <= begin:
        return lr
    if step >= steps:
        return final_lr
    done = (step - begin) / decay_steps
    if decay == "linear":
        left = 1.0 - done
    elif decay == "cosine":
        left = (1.0 + math.cos(math.pi * done)) / 2.0
    else:
        left = 1.0 - math.sqrt(done)
    return final_lr + (lr - final_lr) * left


# --- Ways to compose them -----------------------------------------------------------------------------------------


@_public
def warmup(step: int, schedule: Function, steps: From0, start_factor: Real = 0.0) -> float:
    """Linearly from ``start_factor * schedule(0)`` to ``schedule(0)`` at step `steps`; then `schedule` from its step 0.

    With a cosine behind it Optax's ``warmup_cosine_decay_schedule``; torch's ``LinearLR`` followed by `schedule` in a
    ``SequentialLR``. With the default the very first step has rate 0.

    >>> [warmup(constant(1.0), 4)(step) for step in (0, 1, 4, 5)]
    [0.0, 0.25, 1.0, 1.0]
    """
    if step >= steps:
        return schedule(step - steps)
    return schedule(0) * (start_factor + (1.0 - start_factor) * (step / steps))


def _check_join(schedules: Sequence[Any], boundaries: Sequence[int]) -> None:
    if not schedules or len(boundaries) != len(schedules) - 1:
        raise ValueError(f"expected one boundary fewer than schedules, got {len(boundaries)} for {len(schedules)}")
    if any(a >= b for a, b in pairwise(boundaries)):
        raise ValueError(f"boundaries must increase, got {list(boundaries)}")


@_checked(_check_join)
def join(step: int, schedules: Functions, boundaries: Counts) -> float:
    """One schedule after another: number i begins, at its own step 0, at step ``boundaries[i - 1]``.

    Optax's ``join_schedules``, torch's ``SequentialLR``.

    >>> joined = join([constant(1.0), linear(0.5, 0.0, 10)], [100])
    >>> [joined(step) for step in (99, 100, 105)]
    [1.0, 0.5, 0.25]
    """
    i = bisect_right(boundaries, step)
    return schedules[i](step - (boundaries[i - 1] if i else 0))


@_public
def scale(step: int, schedule: Function, factor: Annotated[float | Callable[[int], float], _factor]) -> float:
    """``factor * schedule(step)``; `factor` is a number or another schedule.

    >>> scale(constant(0.1), 0.5)(3)
    0.05
    """
    return (factor(step) if callable(factor) else factor) * schedule(step)


# --- The one with a state -----------------------------------------------------------------------------------------


class Plateau:
    """Lower the rate when a metric has stopped improving; torch's ``ReduceLROnPlateau``.

    `update` is told the metric, once per epoch or validation; after more than `patience` calls without an improvement
    the rate is multiplied by `factor`. `fit` calls it with the validation loss, or without validation with the mean
    training loss of each epoch: from the first one on, also where it stands inside another schedule.

    Parameters
    ----------
    lr : float
        Rate to begin with.
    mode : {"min", "max"}
        Whether less or more is better.
    factor : float
        In [0, 1).
    patience : int
        Calls without improvement that are let pass.
    threshold, threshold_mode : float, {"rel", "abs"}
        How much better counts: for "min" below ``best - threshold * abs(best)`` or below ``best - threshold``. (torch
        takes ``best * (1 - threshold)``, so that it never lowers the rate for a negative metric that stays.)
    cooldown : int
        Calls after a reduction during which none counts as bad.
    min_lr : float
        Lower bound of the rate.
    eps : float
        A smaller change of the rate is not made.

    Examples
    --------
    >>> plateau = Plateau(1.0, patience=0)
    >>> plateau.update(5.0), plateau.update(5.0)
    (1.0, 0.1)
    """

    _STATE = ("lr", "best", "bad", "cooling")

    @names_arguments
    def __init__(
        self,
        lr: float,
        *,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: float = 0.0,
        eps: float = 1e-8,
    ):
        self.lr = self.first_lr = real("lr", lr, 0.0)
        self.mode = choice("mode", mode, ("min", "max"))
        self.factor = real("factor", factor, 0.0, 1.0)
        self.patience = count("patience", patience, 0)
        self.threshold = real("threshold", threshold, 0.0)
        self.threshold_mode = choice("threshold_mode", threshold_mode, ("rel", "abs"))
        self.cooldown = count("cooldown", cooldown, 0)
        self.min_lr = real("min_lr", min_lr, 0.0)
        self.eps = real("eps", eps, 0.0)
        self.best = math.inf if mode == "min" else -math.inf
        self.bad = 0
        self.cooling = 0

    def __call__(self, step: int) -> float:
        """The present rate, whatever the step."""
        return self.lr

    def update(self, metric: float) -> float:
        """Take note of the metric; returns the rate from now on."""
        try:
            metric = float(metric)
        except (TypeError, ValueError) as error:
            raise TypeError(f"metric must be a number, got {metric!r}") from error
        lr, cooling = self.lr, self.cooling
        best, bad = (metric, 0) if self._better(metric) else (self.best, self.bad + 1)
        if cooling > 0:
            cooling, bad = cooling - 1, 0
        if bad > self.patience:
            lower = max(lr * self.factor, self.min_lr)
            lr = lower if lr - lower > self.eps else lr
            cooling, bad = self.cooldown, 0
        self.lr, self.best, self.bad, self.cooling = lr, best, bad, cooling  # at once, whatever Ctrl-C cuts off
        return lr

    def _better(self, metric: float) -> bool:
        sign = 1.0 if self.mode == "min" else -1.0
        if self.threshold_mode == "abs":
            return sign * metric < sign * self.best - self.threshold
        side = sign if self.best >= 0 else -sign
        return sign * metric < sign * (self.best * (1.0 - side * self.threshold))

    def state_dict(self) -> dict[str, Any]:
        """What `update` has changed."""
        return {name: getattr(self, name) for name in self._STATE}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; ValueError or TypeError, with nothing changed, for anything else."""
        if not isinstance(state, Mapping) or set(state) != set(self._STATE):
            raise ValueError(f"state of Plateau: expected {list(self._STATE)}")
        lr, best = real("lr", state["lr"], 0.0), state["best"]
        if not isinstance(best, (int, float)) or best != best:
            raise ValueError(f"state of Plateau: best must be a number, got {best!r}")
        bad, cooling = count("bad", state["bad"], 0), count("cooling", state["cooling"], 0)
        self.lr, self.best, self.bad, self.cooling = lr, float(best), bad, cooling

    def __repr__(self) -> str:
        names = ("mode", "factor", "patience", "threshold", "threshold_mode", "cooldown", "min_lr", "eps")
        return f"Plateau(lr={self.first_lr!r}, {', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"
