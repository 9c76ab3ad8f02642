"""Runs the training loop: rate, minibatch, gradients, step; all else is done by callbacks when it is due."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import zip_longest
from typing import Any, Protocol

import numpy as np

from ..backends import StepInfo
from ..common.public import public
from ..common.trees import Structure, leaves_of
from ..common.validation import real
from ..common.warning import warn
from .accumulate import Accumulator
from .history import History, TrainingWarning
from .ranks import Ranks

_MUST_RETURN = "loss_and_grad(params, batch) must return (loss, gradients), the loss a number"
_SKIPPED = StepInfo(False, math.nan)  # of a step whose loss is not finite

LossAndGrad = Callable[[Any, Any], tuple[Any, Any]]
Rate = Callable[[int], float]


@public
class Callback(Protocol):
    """What `fit` takes as a callback, and what its own parts are: a callable with any of the methods below.

    ``callback(loop)`` is called after a step. A class may also have

    begin(loop)
        Called before the first step, after a checkpoint was restored.
    due(loop) -> number of steps
        The value of ``loop.steps`` at which to be called next at the latest; infinity: at the ends of epochs and of
        training alone. It is asked after ``begin`` and after every call. Without it a callback is called after every
        step; if all have it, the steps in between cost nothing. A call may come earlier.
    end(loop)
        Called once when training has ended, in the reverse order of ``begin``; ``loop.reason`` is None if that was by
        an exception.
    state_dict(), load_state_dict(state)
        Its state in the checkpoint: nestings of mappings, lists, numbers, strings and arrays. A run is resumed with
        callbacks of the same classes in the same order; callbacks of one class are told apart by their order alone.
    """

    def __call__(self, loop: Loop, /) -> object: ...


@public
class Loop:
    """A training run in progress: what callbacks are given.

    Attributes
    ----------
    params, optimizer, batches, history
        The live objects.
    steps : int
        Optimizer steps taken so far; the one just taken has the number ``steps - 1``.
    epoch : int
        Epochs completed.
    epoch_ended : bool
        Whether the step just taken was the last of an epoch.
    loss, lr : float
        Of the step just taken.
    info : StepInfo
        What ``optimizer.step`` returned for it.
    metrics : dict or None
        What validation returned, if there was one after this step.
    reason : str or None
        Why training ends after this step; None while it goes on.
    asked : bool
        Whether `call_soon` has asked for this call, in this process or another.
    """

    def __init__(
        self,
        loss_and_grad: LossAndGrad,
        params: Any,
        batches: Any,
        optimizer: Any,
        *,
        schedules: Mapping[str, Sequence[Any]],
        last_step: float,
        last_epoch: float,
        accumulate: int,
        step_options: tuple[float | None, bool],
        parts: Mapping[str, Callback],
        ranks: Ranks,
    ):
        self.params, self.optimizer, self.batches = params, optimizer, batches
        self.history = History()
        self.steps = self.epoch = 0
        self.epoch_ended = False
        self.loss = self.lr = math.nan
        self.info: Any = None
        self.metrics: dict[str, float] | None = None
        self.reason: str | None = None
        self.last_step, self.last_epoch, self.accumulate = last_step, last_epoch, accumulate
        self.parts, self.ranks = parts, ranks
        self._loss_and_grad, self._schedules, self._step_options = loss_and_grad, schedules, step_options
        self._structure = Structure(params)
        self._seen_epoch: int = batches.epoch
        self._next_event: float = 0
        self._waiting: list[Callable[[Loop], float]] | None = None  # `due` of all parts, if all have it
        self.asked = self._asked = self._soon = False

    def __repr__(self) -> str:
        return f"<Loop: {self.steps} steps, {self.epoch} epochs, loss {self.loss:.6g}, lr {self.lr:.6g}>"

    def stop(self, reason: str = "callback") -> None:
        """End training after this step; `reason` becomes ``FitResult.reason``."""
        self.reason = self.reason or str(reason)
        self.call_soon()

    def call_soon(self) -> None:
        """Call the callbacks after this step, whether they are due or not; handlers of signals may do so."""
        self._asked = True
        self._soon = self.ranks.size == 1  # several processes decide together

    def warn(self, text: str) -> None:
        """Issue a `TrainingWarning`, from one process alone."""
        if self.ranks.rank == 0:
            warn(text, TrainingWarning)

    @property
    def scheduled(self) -> bool:
        """Whether a schedule sets a learning rate."""
        return "lr" in self._schedules

    def is_due(self, every: int | None) -> bool:
        """Whether something is due that is done every so many steps (None: after every epoch) and at the end."""
        return self.reason is not None or self.is_regular(every)

    def is_regular(self, every: int | None) -> bool:
        """Whether it would be due here if training went on."""
        return self.epoch_ended if every is None else self.steps % every == 0

    def next_due(self, every: int | None) -> float:
        """The number of steps at which it is due next, ends of epochs aside."""
        return math.inf if every is None else (self.steps // every + 1) * every

    def restore(self, steps: int, epoch: int, history: History) -> None:
        """Go on from a checkpoint whose data position `batches` has taken over already."""
        self._seen_epoch = self.batches.epoch
        self.steps, self.epoch, self.history = steps, epoch, history

    def run(self) -> None:
        """Train until a reason to end is there."""
        self._check_end()
        every = list(self.parts.values())
        if all(hasattr(part, "due") for part in every):
            self._waiting = [part.due for part in every]  # type: ignore[attr-defined]
        with contextlib.ExitStack() as stack:
            try:
                for part in self.parts.values():
                    if hasattr(part, "end"):
                        stack.callback(part.end, self)
                    if hasattr(part, "begin"):
                        part.begin(self)
                self._plan_events()
                self._train()
                self.ranks.wait()  # for whoever fails after the last step
                with self.ranks.together("ending training"):
                    stack.close()
            except BaseException as error:  # at the last step there is a reason already
                self.reason = None
                if not isinstance(error, KeyboardInterrupt):  # which may come within an exchange: it ends the job
                    self.ranks.fail(error)
                if isinstance(error, StopIteration):  # as in `explain`
                    text = "a schedule, callback or validation raised StopIteration: what it reads has ended"
                    raise RuntimeError(text) from error
                raise

    def _train(self) -> None:
        # Local names, because each microsecond here is spent at every step; attributes are set when events need them.
        params, optimizer, batches, history = self.params, self.optimizer, self.batches, self.history
        loss_and_grad, next_batch, take_step = self._loss_and_grad, batches.next_batch, optimizer.step
        add_loss, add_rate = history._columns["loss"].append, history._columns["lr"].append
        others = [item for item in self._schedules.items() if item[0] != "lr"]
        rates, group = self._schedules.get("lr"), optimizer.param_groups[0]
        groups = optimizer.param_groups
        schedule = rates[0] if rates is not None and len(rates) == len(groups) == 1 else None
        accumulator = Accumulator(self.accumulate) if self.accumulate > 1 else None
        common_loss = self.ranks.common_loss if self.ranks.size > 1 else None
        max_norm, skip = self._step_options
        recorded = max_norm is not None or skip or getattr(optimizer, "max_norm", None) is not None
        if recorded:
            history._pad()
        if max_norm is not None or skip:  # the optimizer's own limit is its own to apply: callbacks may change it
            take_step = partial(take_step, max_norm=max_norm, skip_nonfinite=skip)
        steps, epoch, due = self.steps, self._seen_epoch, self._next_event
        going = self.reason is None
        while going:
            if schedule is not None and len(groups) == 1:  # callbacks may add some
                rate = schedule(steps)
                if type(rate) is not float or rate != group["lr"]:
                    group["lr"] = rate = real("lr", rate, 0.0)  # as `optimizer.lr = rate`, in a third of the time
            else:
                if rates is not None:
                    _set(optimizer, "lr", rates, steps)
                rate = group["lr"]
            for name, parts in others:
                _set(optimizer, name, parts, steps)
            if accumulator is None:
                try:
                    loss, grads = loss_and_grad(params, next_batch())
                    if type(loss) is not float:
                        loss = float(checked_loss(loss))
                except (TypeError, ValueError, StopIteration) as error:
                    explain(error)
                    raise
            else:
                loss, grads = self._accumulated(accumulator)
            if common_loss is not None:
                loss, self._soon = common_loss(loss, self._asked)
            if -math.inf < loss < math.inf:
                info = take_step(grads)
            elif skip:
                if schedule is not None:
                    optimizer.lr = rate  # refuses what the step would refuse, and no checkpoint could hold
                info = _SKIPPED
            else:
                self.steps, self.loss, self.reason = steps, loss, "non-finite loss"
                break
            add_loss(loss)
            add_rate(rate)
            if recorded:
                history._columns["grad_norm"].append(math.nan if info.grad_norm is None else info.grad_norm)
                history._columns["applied"].append(info.applied)
            elif isinstance(info, StepInfo) and (info.grad_norm is not None or not info.applied):
                history._record(info)
            steps += 1
            if steps >= due or self._soon or batches.epoch != epoch:
                self.steps, self.loss, self.lr, self.info = steps, loss, rate, info
                self._events()
                epoch, due, going = self._seen_epoch, self._next_event, self.reason is None

    def _accumulated(self, accumulator: Accumulator) -> tuple[float, Any]:
        batches, epoch = self.batches, self.batches.epoch
        total = 0.0
        for _ in range(accumulator.count):
            weight = batches.next_size() / batches.batch_size
            try:
                loss, grads = self._loss_and_grad(self.params, batches.next_batch())
                total += weight * float(checked_loss(loss))
            except (TypeError, ValueError, StopIteration) as error:
                explain(error)
                raise
            accumulator.add(grads, weight)
            if batches.epoch != epoch:
                break
        return total / accumulator.weight, accumulator.mean()

    def _events(self) -> None:
        """Do everything that is not done at every step."""
        self.asked, self._soon = self._soon, False
        if self.asked:
            self._asked = False
            self.reason = self.ranks.agreed(self.reason)
        self.epoch_ended = self.batches.epoch != self._seen_epoch
        self._seen_epoch = self.batches.epoch
        self.metrics = None
        # The model may have replaced an array that the optimizer steps.
        check_replaced(self._structure, self.params, self.optimizer, f", after step {self.steps - 1} at the latest")
        if self.epoch_ended:
            self.epoch += 1
            self.history._columns["epoch_ends"].append(self.steps)
        self._check_end()
        for part in self.parts.values():
            part(self)
        self._plan_events()

    def _check_end(self) -> None:
        if self.reason is None:
            if self.steps >= self.last_step:
                self.reason = "steps"
            elif self.epoch >= self.last_epoch:
                self.reason = "epochs"

    def _plan_events(self) -> None:
        """When to look again: ends of epochs aside, which the loop notices by itself."""
        waiting = self._waiting
        self._next_event = 0 if waiting is None else min([self.last_step, *(self._due(due) for due in waiting)])

    def _due(self, due: Callable[[Loop], float]) -> float:
        value = due(self)
        if isinstance(value, (int, float, np.integer, np.floating)) and value == value:
            return value
        name = getattr(due, "__qualname__", "due")
        raise TypeError(f"{name}(loop) must return a number of steps, or infinity, got {value!r}")


def _set(optimizer: Any, name: str, schedules: Sequence[Any], step: int) -> None:
    """Set a hyperparameter of all groups by one schedule, or each by its own; a group without one keeps its value."""
    if len(schedules) == 1 and schedules[0] is not None:
        setattr(optimizer, name, schedules[0](step))
    else:
        pairs = zip_longest(schedules, optimizer.param_groups)  # callbacks may add groups
        setattr(optimizer, name, [group[name] if schedule is None else schedule(step) for schedule, group in pairs])


def strange_arrays(optimizer: Any, leaves: Sequence[Any]) -> list[str]:
    """Names of the arrays that the optimizer steps and that are not among `leaves`."""
    own = set(map(id, leaves))
    return [
        name
        for group in optimizer.param_groups
        if not own.issuperset(map(id, group["params"]))
        for name, p in zip(group["names"], group["params"], strict=True)
        if id(p) not in own
    ]


def frozen_arrays(params: Any, optimizer: Any) -> list[tuple[str, Any]]:
    """Arrays in `params` that the optimizer does not step; `loss_and_grad` may change them (running means)."""
    stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return [(name, p) for name, p in named_arrays(params) if id(p) not in stepped]


def check_replaced(structure: Structure, params: Any, optimizer: Any, when: str = "") -> None:
    """ValueError if `params`, whose structure it was, do not hold all arrays that the optimizer steps any more."""
    try:
        leaves = structure.leaves(params)
    except (TypeError, ValueError):  # it has got another structure since
        leaves = leaves_of(params)
    if strange := strange_arrays(optimizer, leaves):
        raise ValueError(
            f"params: {strange} replaced by other arrays{when}, and the optimizer still steps the old ones: "
            "write into arrays, p[...] = new, instead of params[key] = new"
        )


def named_arrays(params: Any) -> list[tuple[str, Any]]:
    """Names and arrays of `params`; groups have leaves that are none, such as their rates."""
    structure = Structure(params)
    pairs = zip(structure.names, structure.leaves(params), strict=True)
    return [(name, leaf) for name, leaf in pairs if hasattr(leaf, "shape")]


def checked_loss(loss: Any) -> Any:
    """`loss`, or TypeError if `float` would take the real part of it alone, or read it as a text."""
    kind = getattr(getattr(loss, "dtype", None), "kind", "")
    if kind in ("c", "S", "U") or isinstance(loss, (complex, str, bytes, bytearray)):
        raise TypeError(f"{_MUST_RETURN}: got {loss!r:.80}")
    return loss


def explain(error: Exception) -> None:
    """Raise what `loss_and_grad` should have returned, unless `error` comes from within it, or that a stream ended."""
    if isinstance(error, StopIteration):  # which would silently end whatever iteration `fit` is called in
        text = (
            "loss_and_grad raised StopIteration: the stream that it reads has ended, and there are steps left to take"
        )
        raise RuntimeError(text) from error
    trace = error.__traceback__
    if trace is not None and trace.tb_next is None:
        raise TypeError(f"{_MUST_RETURN}: {error}") from error
