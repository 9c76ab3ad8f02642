"""The training loop: minibatches, schedule, gradients, step, validation, early stopping, log, exact resume."""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import math
import os
import sys
import warnings
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np

from . import __version__
from . import checkpoint as checkpoints
from .arrays import DTYPES
from .checkpoint import CheckpointError
from .data import Minibatches
from .diagnosis import MINIMUM, Diagnosis
from .diagnosis import diagnose as read_curve
from .interrupts import deferred
from .optimizers import SGD, Adam, AdamW, Optimizer, count, flag, real, step_options
from .schedules import constant, parts_of
from .trees import Structure

# The names that `fit` knows optimizers by.
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": SGD,
    "momentum": partial(SGD, momentum=0.9),
    "adam": Adam,
    "adamw": AdamW,
}

# Steps before the first diagnosis, and the factor to the next: a diagnosis costs about as much as ten small steps.
# Floats, as "never" is one: so a checkpoint has the same bytes whether training was resumed before it or not.
_FIRST_DIAGNOSIS, _NEXT_DIAGNOSIS = 300.0, 4.0

_TAIL = 1 << 20  # bytes at the end of a log within which its last two lines stand


class TrainingWarning(UserWarning):
    """Something about a training run that a user should know; the text names the remedy."""


def fit(
    loss_and_grad: Callable[[Any, Any], tuple[Any, Any]],
    params: Any,
    data: Any,
    optimizer: str | Optimizer = "adam",
    *,
    lr: float | Callable[[int], float] | Sequence[float | Callable[[int], float]] | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    shuffle: bool | None = None,
    drop_last: bool | None = None,
    rng: int | np.random.Generator | None = None,
    accumulate: int = 1,
    max_norm: float | None = None,
    skip_nonfinite: bool = False,
    validation: Any = None,
    validate_every: int | None = None,
    early_stopping: int | None = None,
    min_delta: float = 0.0,
    restore_best: bool = False,
    callbacks: Sequence[Callable[[Loop], None]] = (),
    checkpoint: Any = None,
    checkpoint_every: int | None = None,
    resume: Any = False,
    log: Any = None,
    progress: bool | None = None,
    diagnose: bool = True,
    backend: str | None = None,
    threads: int | None = None,
) -> FitResult:
    """Train `params` in place.

    Each step sets the learning rate, takes a minibatch, calls `loss_and_grad` and steps the optimizer.

    Parameters
    ----------
    loss_and_grad : callable
        ``loss_and_grad(params, batch) -> (loss, grads)``: the mean loss over the batch, a number, and its gradients in
        the structure that ``optimizer.step`` takes.
    params : array or nesting of arrays
        Updated in place.
    data : arrays, `Minibatches` or None
        Whatever `fastoptim.minibatches` takes, or what it returned; None if there is no data: `loss_and_grad` then gets
        None for its batch.
    optimizer : {"sgd", "momentum", "adam", "adamw"} or an optimizer
        "momentum" is SGD with momentum 0.9. An optimizer must have been made of arrays in `params`; those that it does
        not step are frozen.
    lr : float, schedule or Plateau, or one of these per parameter group
        Schedules are called with the number of the optimizer step, from zero. Default: the optimizer's own rate.
    epochs, steps : int
        When to end: after so many epochs, after so many optimizer steps, or whichever comes first. Counted from the
        very beginning, also where a run is resumed.
    batch_size, shuffle, drop_last, rng
        As for `fastoptim.minibatches`, with its defaults; not to be given where `data` is a `Minibatches` already.
    accumulate : int
        Minibatches per optimizer step. Gradients are summed in float64, each weighted by the examples of its minibatch,
        divided by the examples of all and rounded once: the gradient of the mean loss over all of them. Clipping and
        schedules see that one step. A step never mixes epochs: the last of an epoch takes what is left.
    max_norm, skip_nonfinite
        As for ``optimizer.step``.
    validation : callable or data
        ``validation(params)`` returns a loss or a mapping of figures with "loss" among them; arrays or `Minibatches`
        instead are evaluated with `loss_and_grad` in batches, every example once, in order, from a position of their
        own, and averaged over examples.
    validate_every : int
        Steps between validations; default: after every epoch. There is one at the end, too, unless a callback ended
        training.
    early_stopping : int
        End after so many validations in a row that did not lower the best validation loss by more than `min_delta`.
    restore_best : bool
        At the end put the parameters of the best validation back. To be resumed, a run must have had it from the start.
    callbacks : sequence of callables
        Called after every step with the `Loop`, which they may read and may `Loop.stop`. If one has ``state_dict`` and
        ``load_state_dict``, its state is part of the checkpoint. If one has ``begin``, that is called with the `Loop`
        before the first step, after a checkpoint was restored.
    checkpoint : path
        Where to save the whole state of training; with `validation`, the best so far also goes to
        ``<name>.best<suffix>``. See `fastoptim.checkpoint` for what is guaranteed.
    checkpoint_every : int
        Steps between checkpoints; default: after every epoch. There is always one at the end.
    resume : bool or path
        True: go on from `checkpoint`, or, with a warning, from ``<name>.previous`` if that is all there is or
        `checkpoint` is damaged; begin if there is neither. A path: go on from that file or its previous one. The result
        has the same bits as if training had not been interrupted, on any backend.
    log : path
        ``.jsonl`` (JSON lines) or ``.csv``: one line per step and validation, in a new file. A resumed run continues
        the log where its checkpoint was taken, and refuses the log of another run.
    progress : bool
        A progress bar by tqdm on the standard error. Default: if that is a terminal.
    diagnose : bool
        Run `fastoptim.diagnose` beside the loop, after 300, 1200, 4800, ... steps, and issue a `TrainingWarning` that
        names the remedy when its verdict is not "healthy".
    backend, threads
        For an optimizer that is given by its name; as for `fastoptim.SGD`.

    Returns
    -------
    FitResult

    Raises
    ------
    TypeError, ValueError
        Bad arguments, before anything changed.
    CheckpointError
        The file to resume from is not a whole checkpoint, or one of another model, optimizer or data.

    Notes
    -----
    A loss that is NaN or infinite ends training before the step that it belongs to is taken, with a warning, unless
    `skip_nonfinite` is set. No checkpoint is written then, so that the last good one stays.

    With an optimizer that has an MPI communicator (``optimizer.comm``), every process sees its share of each minibatch,
    losses are averaged, and process 0 alone shows progress, logs and writes.

    Examples
    --------
    >>> import numpy as np, fastoptim as fo
    >>> x = np.linspace(-1.0, 1.0, 200)
    >>> def loss_and_grad(params, batch):
    ...     x, y = batch
    ...     error = params["a"] * x + params["b"] - y
    ...     grads = {"a": np.mean(error * x, keepdims=True), "b": np.mean(error, keepdims=True)}
    ...     return 0.5 * np.mean(error**2), grads
    >>> params = {"a": np.zeros(1), "b": np.zeros(1)}
    >>> schedule = fo.schedules.cosine(0.1, 140)
    >>> result = fo.fit(loss_and_grad, params, (x, 3 * x - 1), "adam", lr=schedule, epochs=20, diagnose=False)
    >>> result.steps, result.reason, params["a"].round(1), params["b"].round(1)
    (140, 'epochs', array([3.]), array([-1.]))
    """
    if isinstance(data, (Minibatches, type(None))):
        given = {"batch_size": batch_size, "shuffle": shuffle, "drop_last": drop_last, "rng": rng}
        extra = [name for name, value in given.items() if value is not None]
        if extra:
            raise ValueError(f"{extra} say how to cut data into minibatches; there is nothing to cut here")
        batches = _NoData() if data is None else data
    else:
        batches = Minibatches(
            data,
            32 if batch_size is None else batch_size,
            shuffle=True if shuffle is None else shuffle,
            rng=0 if rng is None else rng,
            drop_last=False if drop_last is None else drop_last,
        )
    loop = Loop(
        loss_and_grad,
        params,
        batches,
        _optimizer(optimizer, params, backend, threads),
        lr=lr,
        epochs=_optional_count("epochs", epochs),
        steps=_optional_count("steps", steps),
        accumulate=count("accumulate", accumulate),
        step_options=step_options(1.0, max_norm, skip_nonfinite)[1:],
        validation=_validation(validation, loss_and_grad, batches),
        validate_every=_optional_count("validate_every", validate_every),
        early_stopping=_optional_count("early_stopping", early_stopping),
        min_delta=real("min_delta", min_delta, 0.0),
        restore_best=flag("restore_best", restore_best),
        callbacks=tuple(callbacks),
        checkpoint=checkpoint,
        checkpoint_every=_optional_count("checkpoint_every", checkpoint_every),
        diagnose=flag("diagnose", diagnose),
    )
    return loop._run(resume, log, progress)


# --- What fit returns and what callbacks see ----------------------------------------------------------------------


class History:
    """What happened, one entry per optimizer step and one per validation.

    Attributes
    ----------
    loss, lr, grad_norm : float64 arrays
        Of every step; `grad_norm` is NaN where the step did not need it.
    epoch : int64 array
        The epoch, from zero, that a step belongs to.
    applied : bool array
        False where a step was skipped because of non-finite gradients.
    validation : dict of arrays
        "step" (number of the step, from zero, after which it was), "loss", and whatever else validation returned.
    """

    # Loss and rate are stored at every step; the norm and whether it was applied only where steps ask for it, and
    # epochs by the steps at which they ended: a step has little time to spare for its own record.
    _TYPES = (("loss", "d"), ("lr", "d"), ("grad_norm", "d"), ("applied", "b"), ("epoch_ends", "q"))
    __slots__ = ("_columns", "_validation")

    def __init__(self) -> None:
        self._columns: dict[str, Any] = {name: array(code) for name, code in self._TYPES}
        self._validation: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self._columns["loss"])

    @property
    def loss(self) -> np.ndarray:
        return np.array(self._columns["loss"])

    @property
    def lr(self) -> np.ndarray:
        return np.array(self._columns["lr"])

    @property
    def grad_norm(self) -> np.ndarray:
        return self._padded("grad_norm", math.nan)

    @property
    def applied(self) -> np.ndarray:
        return self._padded("applied", True).astype(bool)

    @property
    def epoch(self) -> np.ndarray:
        return np.searchsorted(np.array(self._columns["epoch_ends"]), np.arange(len(self)), side="right")

    def _padded(self, name: str, value: Any) -> np.ndarray:
        column = self._columns[name]
        return np.array(column + array(column.typecode, [value]) * (len(self) - len(column)))

    def _pad(self) -> None:
        """Give every step so far its own entry, before steps are recorded in full."""
        for name, value in (("grad_norm", math.nan), ("applied", True)):
            column = self._columns[name]
            column.extend([value] * (len(self) - len(column)))

    @property
    def validation(self) -> dict[str, np.ndarray]:
        return {name: np.array(column) for name, column in self._validation.items()}

    def __repr__(self) -> str:
        return f"<History: {len(self)} steps, {len(self._validation.get('step', ()))} validations>"

    def _validated(self, step: int, metrics: Mapping[str, float]) -> None:
        if not self._validation:
            self._validation = {"step": array("q")} | {name: array("d") for name in metrics}
        if list(self._validation)[1:] != list(metrics):
            raise ValueError(f"validation returned {list(metrics)}, before it was {list(self._validation)[1:]}")
        self._validation["step"].append(step)
        for name, value in metrics.items():
            self._validation[name].append(value)

    def _state(self) -> dict[str, Any]:
        return {
            "steps": {name: np.array(column) for name, column in self._columns.items()},
            "validation": self.validation,
        }

    @classmethod
    def _restored(cls, state: Any, steps: int, epoch: int) -> History:
        history = cls()
        columns, validation = dict(state["steps"]), state["validation"]
        lengths = {"loss": steps, "lr": steps, "epoch_ends": epoch}
        for name, column in history._columns.items():
            _fill(column, columns.pop(name), lengths.get(name))
        ends = np.array([0, *history._columns["epoch_ends"], steps])
        if columns or np.any(np.diff(ends) < 0) or any(len(c) > max(steps, epoch) for c in history._columns.values()):
            raise CheckpointError("its history is not one")
        if validation and list(validation)[:2] != ["step", "loss"]:
            raise CheckpointError("its history of validations is not one")
        for name, values in validation.items():
            history._validation[name] = array("q" if name == "step" else "d")
            _fill(history._validation[name], values, len(validation["step"]))
        return history


def _fill(column: array, values: Any, length: int | None) -> None:
    if not isinstance(values, np.ndarray) or values.dtype != np.dtype(column.typecode) or values.ndim != 1:
        raise CheckpointError("its history has a column of the wrong kind")
    if length is not None and len(values) != length:
        raise CheckpointError("its history has a column of the wrong length")
    column.frombytes(values.tobytes())


@dataclass(frozen=True)
class FitResult:
    """What `fit` returns.

    Attributes
    ----------
    params, optimizer
        As they are now; `params` is the object that was given.
    history : History
    steps, epochs : int
        Optimizer steps taken and epochs completed since the very beginning.
    reason : str
        Why training ended: "steps", "epochs", "early stopping", "non-finite loss", or what a callback said.
    best_step : int or None
        Number of the step, from zero, after which the validation loss was least.
    best_loss : float or None
        That validation loss.
    diagnosis : Diagnosis or None
        Of the whole curve of training losses, made when it is first asked for; None if the curve is too short.
    """

    params: Any = field(repr=False)
    optimizer: Any
    history: History
    steps: int
    epochs: int
    reason: str
    best_step: int | None
    best_loss: float | None
    _diagnose: Callable[[], Diagnosis | None] = field(repr=False)

    @cached_property
    def diagnosis(self) -> Diagnosis | None:
        return self._diagnose()


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
    """

    def __init__(
        self,
        loss_and_grad: Callable[[Any, Any], tuple[Any, Any]],
        params: Any,
        batches: Any,
        optimizer: Any,
        *,
        lr: Any,
        epochs: int | None,
        steps: int | None,
        accumulate: int,
        step_options: tuple[float | None, bool],
        validation: Callable[[Any], Mapping[str, float]] | None,
        validate_every: int | None,
        early_stopping: int | None,
        min_delta: float,
        restore_best: bool,
        callbacks: tuple[Callable[[Loop], None], ...],
        checkpoint: Any,
        checkpoint_every: int | None,
        diagnose: bool,
    ):
        if not callable(loss_and_grad):
            raise TypeError(f"loss_and_grad must be callable, got {type(loss_and_grad).__name__}")
        if epochs is None and steps is None:
            raise ValueError("give epochs or steps: how long to train")
        if validation is None and (early_stopping is not None or restore_best or validate_every is not None):
            raise ValueError("early_stopping, restore_best and validate_every need validation")
        if checkpoint is None and checkpoint_every is not None:
            raise ValueError("checkpoint_every needs checkpoint")
        if isinstance(batches, _NoData) and (steps is None or epochs is not None):
            raise ValueError("without data there are no epochs: give steps alone")
        for callback in callbacks:
            if not callable(callback):
                raise TypeError(f"callbacks must be callable, got {type(callback).__name__}")
        self.params, self.optimizer, self.batches = params, optimizer, batches
        self.history = History()
        self.steps = 0
        self.epoch = 0
        self._seen_epoch = batches.epoch
        self.epoch_ended = False
        self.loss = self.lr = math.nan
        self.info: Any = None
        self.metrics: dict[str, float] | None = None
        self._loss_and_grad = loss_and_grad
        self._schedules = _schedules(lr, optimizer)
        self._rates = parts_of(self._schedules or ())
        self._last_step = math.inf if steps is None else steps
        self._last_epoch = math.inf if epochs is None else epochs
        self._accumulator = _Accumulator(accumulate) if accumulate > 1 else None
        self._accumulate = accumulate
        max_norm, skip = step_options
        self._skip_nonfinite = skip
        self._step: Any = optimizer.step
        self._recorded = max_norm is not None or skip
        if self._recorded:
            self._step = partial(optimizer.step, max_norm=max_norm, skip_nonfinite=skip)
        self._validation, self._validate_every = validation, validate_every
        self._patience, self._min_delta, self._restore_best = early_stopping, min_delta, restore_best
        self._callbacks = callbacks
        self._checkpoint = None if checkpoint is None else os.fspath(checkpoint)
        self._checkpoint_every = checkpoint_every
        if self._checkpoint is not None:
            checkpoints.check_target(self._checkpoint)
            if validation is not None:
                checkpoints.check_target(_best_path(self._checkpoint))
        if self._checkpoint is not None or restore_best:
            checkpoints.check_holdable(dict(self._frozen()), in_memory=self._checkpoint is None)
        self._diagnose = diagnose
        self._warned: list[str] = []
        self._next_diagnosis: float = _FIRST_DIAGNOSIS if diagnose else math.inf
        self._reason: str | None = None
        self._best_step: int | None = None
        self._best_loss = math.inf
        self._best_params: dict[str, np.ndarray] | None = None
        self._improved = False
        self._bad_validations = 0
        self._log: _Log | None = None
        self._bar: Any = None
        self._comm: Any = getattr(optimizer, "comm", None)
        self._rank: int = 0 if self._comm is None else self._comm.Get_rank()
        self._size: int = 1 if self._comm is None else self._comm.Get_size()
        if self._size > 1:
            _same_generator(self._comm, batches)
            batches.share(self._rank, self._size)

    def stop(self, reason: str = "callback") -> None:
        """End training after this step; `reason` becomes ``FitResult.reason``."""
        self._reason = self._reason or str(reason)

    # --- the loop

    def _run(self, resume: Any, log: Any, progress: bool | None) -> FitResult:
        bar = _bar_class(progress)
        path = None if log is None else _log_path(log, self._rank == 0)
        offset = self._resume(resume, path)
        with contextlib.ExitStack() as stack:
            if path is not None and self._rank == 0:
                self._log = stack.enter_context(_Log(path, offset, self._describe, self._warn))
            if bar is not None and self._rank == 0:
                self._bar = stack.enter_context(bar(total=self._total(), unit="step", dynamic_ncols=True))
                self._bar.update(self.steps)
            for callback in self._callbacks:
                if hasattr(callback, "begin"):
                    callback.begin(self)
            self._agree_to_stop()
            self._check_end()
            self._plan_events()
            self._train()
        if self._restore_best and self._best_params is not None:
            best = self._best_params
            named = {name: p for name, p in _named(self.params) if name in best}
            checkpoints.check_assignable(named, best)
            with deferred():
                for name, p in named.items():
                    checkpoints.assign(p, best[name])
        return FitResult(
            self.params,
            self.optimizer,
            self.history,
            self.steps,
            self.epoch,
            self._reason or "",
            self._best_step,
            None if self._best_step is None else self._best_loss,
            self._curve_reader(),
        )

    def _train(self) -> None:
        # Local names, because each microsecond here is spent at every step; attributes are set when events need them.
        params, optimizer, batches, history = self.params, self.optimizer, self.batches, self.history
        loss_and_grad, next_batch, take_step = self._loss_and_grad, batches.next_batch, self._step
        add_loss, add_rate = history._columns["loss"].append, history._columns["lr"].append
        schedules, group = self._schedules, optimizer.param_groups[0]
        schedule = schedules[0] if schedules is not None and len(optimizer.param_groups) == 1 else None
        accumulator, size, guarded = self._accumulator, self._size, not self._skip_nonfinite
        steps, epoch, due = self.steps, self._seen_epoch, self._next_event
        recorded = self._recorded
        if recorded:
            history._pad()
        while self._reason is None:
            if schedule is not None:
                rate = schedule(steps)
                if rate != group["lr"]:
                    group["lr"] = rate = real("lr", rate, 0.0)  # as `optimizer.lr = rate`, in a third of the time
            else:
                if schedules is not None:
                    rates = [each(steps) for each in schedules]
                    optimizer.lr = rates if len(rates) > 1 else rates[0]
                rate = group["lr"]
            if accumulator is None:
                try:
                    loss, grads = loss_and_grad(params, next_batch())
                    loss = float(loss)
                except (TypeError, ValueError) as error:
                    raise _explained(error) from error
            else:
                loss, grads = self._accumulated(accumulator)
            if size > 1:
                loss = self._comm.allreduce(loss) / size
            if guarded and not -math.inf < loss < math.inf:
                self.steps, self.loss, self._reason = steps, loss, "non-finite loss"
                self._warn(f"the loss is {loss} at step {steps}, which was not taken: {self._remedy()}")
                break
            info = take_step(grads)
            add_loss(loss)
            add_rate(rate)
            if recorded:
                history._columns["grad_norm"].append(info.grad_norm)
                history._columns["applied"].append(info.applied)
            steps += 1
            if steps >= due or batches.epoch != epoch:
                self.steps, self.loss, self.lr, self.info = steps, loss, rate, info
                self._events()
                epoch, due = self._seen_epoch, self._next_event

    def _accumulated(self, accumulator: _Accumulator) -> tuple[float, Any]:
        batches, epoch = self.batches, self.batches.epoch
        total = 0.0
        for _ in range(accumulator.count):
            weight = batches.next_size() / batches.batch_size
            try:
                loss, grads = self._loss_and_grad(self.params, batches.next_batch())
                total += weight * float(loss)
            except (TypeError, ValueError) as error:
                raise _explained(error) from error
            accumulator.add(grads, weight)
            if batches.epoch != epoch:
                break
        return total / accumulator.weight, accumulator.mean()

    # --- what happens now and then

    def _events(self) -> None:
        """Everything that is not done at every step, and everything at every step if somebody watches."""
        self.epoch_ended = self.batches.epoch != self._seen_epoch
        self._seen_epoch = self.batches.epoch
        self.metrics = None
        epoch = self.epoch
        self.epoch += self.epoch_ended
        self._check_end()
        if self._validation is not None and self._is_due(self._validate_every):
            self._validate()
        if self.epoch_ended:
            ends = self.history._columns["epoch_ends"]
            if self._validation is None:
                self._update_plateaus(lambda: np.mean(self.history.loss[ends[-1] if ends else 0 :]))
            ends.append(self.steps)
        if self._log is not None:
            self._log.step(self, epoch)
        for callback in self._callbacks:
            callback(self)
        self._agree_to_stop()
        if self.steps >= self._next_diagnosis:
            self._warn_if_unhealthy()
        if self._checkpoint is not None:
            if self._improved:
                self._save(_best_path(self._checkpoint), keep_previous=False)
            if self._is_due(self._checkpoint_every):
                self._save(self._checkpoint)
        self._improved = False
        if self._bar is not None:
            self._bar.update(1)
            if self._bar.n == self._bar.last_print_n:  # it has just been drawn
                self._bar.set_postfix_str(f"loss {self.loss:.4g}, lr {self.lr:.3g}", refresh=False)
        self._plan_events()

    def _is_due(self, every: int | None) -> bool:
        if self._reason is not None:
            return True
        return self.epoch_ended if every is None else self.steps % every == 0

    def _plan_events(self) -> None:
        """When to look again: ends of epochs aside, which the loop notices by itself."""
        if self._log is not None or self._callbacks or self._bar is not None:
            self._next_event: float = 0
            return
        periods = [self._validate_every if self._validation is not None else None, self._checkpoint_every]
        self._next_event = min(
            [self._last_step, self._next_diagnosis]
            + [(self.steps // every + 1) * every for every in periods if every is not None]
        )

    def _agree_to_stop(self) -> None:
        if self._size > 1 and self._callbacks:  # of which one process's may have called stop
            self._reason = next((reason for reason in self._comm.allgather(self._reason) if reason), None)

    def _check_end(self) -> None:
        if self._reason is None:
            if self.steps >= self._last_step:
                self._reason = "steps"
            elif self.epoch >= self._last_epoch:
                self._reason = "epochs"

    def _total(self) -> float | None:
        per_epoch = -(-len(self.batches) // self._accumulate) if math.isfinite(self._last_epoch) else 0
        total = min(self._last_step, self._last_epoch * per_epoch if per_epoch else math.inf)
        return total if math.isfinite(total) else None

    def _validate(self) -> None:
        assert self._validation is not None
        metrics = dict(self._validation(self.params))
        if self._size > 1:
            metrics = self._comm.bcast(metrics)
        self.metrics = metrics
        self.history._validated(self.steps - 1, metrics)
        self._improved = metrics["loss"] < self._best_loss - self._min_delta
        if self._improved:
            self._best_step, self._best_loss, self._bad_validations = self.steps - 1, metrics["loss"], 0
            if self._restore_best:
                self._best_params = {name: checkpoints.to_host(p).copy() for name, p in _named(self.params)}
        else:
            self._bad_validations += 1
            if self._patience is not None and self._bad_validations >= self._patience:
                self.stop("early stopping")
        self._update_plateaus(lambda: metrics["loss"])

    def _update_plateaus(self, loss: Callable[[], float]) -> None:
        for schedule in self._rates:
            if hasattr(schedule, "update"):
                schedule.update(float(loss()))

    # --- diagnosis

    def _curve_reader(self) -> Callable[[], Diagnosis | None]:
        """What `fastoptim.diagnose` says about the training losses up to now, on demand."""
        losses = self.history.loss
        if self._reason == "non-finite loss":
            losses = np.append(losses, self.loss)
        else:
            losses = losses[np.isfinite(losses)]  # steps with others were skipped, as was asked for
            if len(losses) < MINIMUM:
                return lambda: None
        group = self.optimizer.param_groups[0]
        momentum = float(group["momentum"] if "momentum" in group else group["betas"][0])
        anchor = self.batches.batch_size == self.batches.examples
        return partial(read_curve, losses, anchor=anchor, momentum=momentum, lr=float(group["lr"]))

    def _remedy(self) -> str:
        diagnosis = self._curve_reader()()
        return diagnosis.remedy if diagnosis is not None else "lower the learning rate"

    def _warn_if_unhealthy(self) -> None:
        self._next_diagnosis = _NEXT_DIAGNOSIS * self.steps
        diagnosis = self._curve_reader()()
        if diagnosis is not None and diagnosis.verdict not in ("healthy", *self._warned):
            self._warned.append(diagnosis.verdict)
            self._warn(f"after {self.steps} steps training looks {diagnosis.verdict}. {diagnosis.remedy}")

    def _warn(self, text: str) -> None:
        if self._rank == 0:
            warnings.warn(text, TrainingWarning, stacklevel=_outside())

    def _describe(self) -> dict[str, Any]:
        return {
            "kind": "run",
            "version": 1,
            "fastoptim": __version__,
            "optimizer": type(self.optimizer).__name__,
            "lr": self._rate_text(),
            "parameters": sum(math.prod(p.shape) for _, p in _named(self.params)),
            "examples": self.batches.examples,
            "batch_size": self.batches.batch_size,
            "accumulate": self._accumulate,
        }

    def _rate_text(self) -> str:
        if self._schedules is None:
            return repr([float(group["lr"]) for group in self.optimizer.param_groups])
        return repr(list(self._schedules))

    # --- the whole state, saved and restored

    def _save(self, path: str, keep_previous: bool = True) -> None:
        tree: dict[str, Any] = {"loop": self._state()}
        optimizer = self.optimizer
        if _saves_itself(optimizer):
            name = f"{path}.optimizer-{self.steps}"
            optimizer.save(name)
            tree["loop"]["optimizer_file"] = os.path.basename(name)
            if self._rank == 0:
                checkpoints.write(path, tree, kind="training", keep_previous=keep_previous)
                _remove_outdated(path, name)
            if self._size > 1:
                self._comm.Barrier()
            return
        with optimizer._locked():
            tree |= checkpoints.optimizer_tree(optimizer)
            checkpoints.write(path, tree, kind="training", keep_previous=keep_previous)

    def _state(self) -> dict[str, Any]:
        return {
            "steps": self.steps,
            "epoch": self.epoch,
            "accumulate": self._accumulate,
            "batches": self.batches.state_dict(),
            "schedules": {
                "text": self._rate_text(),
                "states": [schedule.state_dict() for schedule in _stateful(self._rates)],
            },
            "callbacks": [callback.state_dict() for callback in _stateful(self._callbacks)],
            "frozen": {name: checkpoints.to_host(p) for name, p in self._frozen()},
            "history": self.history._state(),
            "best": {"step": self._best_step, "loss": self._best_loss, "params": self._best_params},
            "bad_validations": self._bad_validations,
            "next_diagnosis": self._next_diagnosis,
            "warned": list(self._warned),
            "log": None if self._log is None else self._log.sync(),
            "optimizer_file": None,
        }

    def _frozen(self) -> list[tuple[str, Any]]:
        """Arrays in `params` that the optimizer does not step; `loss_and_grad` may change them (running means)."""
        stepped = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        return [(name, p) for name, p in _named(self.params) if id(p) not in stepped]

    def _resume(self, resume: Any, log: str | None) -> int | None:
        """Restore the state that `resume` asks for; returns where the log goes on."""
        if isinstance(resume, bool):
            if not resume:
                return None
            if self._checkpoint is None:
                raise ValueError("resume=True needs checkpoint; or give the path to resume from")
            path, required = self._checkpoint, False
        else:
            path, required = os.fspath(resume), True
        try:
            tree = checkpoints.read_latest(path, kind="training", warn=self._warn)
        except FileNotFoundError:
            if required:
                raise
            return None
        with checkpoints.malformed(f"{path}: the state of training"):
            return self._restore(path, tree, log)

    def _restore(self, path: str, tree: Any, log: str | None) -> int | None:
        state = tree["loop"]
        steps, epoch = _saved_count(state["steps"]), _saved_count(state["epoch"])
        if _saved_count(state["accumulate"]) != self._accumulate:
            raise CheckpointError(f"accumulate is {self._accumulate} here, {state['accumulate']!r} there")
        history = History._restored(state["history"], steps, epoch)
        best, bad_validations = state["best"], _saved_count(state["bad_validations"])
        best_step = None if best["step"] is None else _saved_count(best["step"])
        best_loss, best_params = float(best["loss"]), best["params"]
        if best_params is not None:
            checkpoints.check_arrays(dict(_named(self.params)), best_params)
        elif self._restore_best and best_step is not None:
            raise CheckpointError(
                "it was written without restore_best=True, so the best parameters so far are not in it; go on without "
                f"it, or take them from {_best_path(path)}"
            )
        next_diagnosis, warned = float(state["next_diagnosis"]), [str(verdict) for verdict in state["warned"]]
        offset = None if state["log"] is None else _saved_count(state["log"])
        problem = None
        if log is not None and self._rank == 0 and not _is_empty(log):
            problem = _log_problem(log, offset, steps - 1, float(history.loss[-1]))
        if self._size > 1:  # all raise, or none
            problem = self._comm.bcast(problem)
        if problem is not None:
            raise CheckpointError(problem)
        frozen = self._frozen()
        checkpoints.check_arrays(dict(frozen), state["frozen"])
        checkpoints.check_assignable(dict(frozen), state["frozen"])
        own_file = state["optimizer_file"]
        if (own_file is not None) != _saves_itself(self.optimizer):
            raise CheckpointError("it was written with another kind of optimizer (sharded or not)")
        parts = [*_stateful(self._rates), *_stateful(self._callbacks)]
        saved_parts, rate_text = [*state["schedules"]["states"], *state["callbacks"]], state["schedules"]["text"]
        if len(parts) != len(saved_parts):
            raise CheckpointError("it was written with other schedules or callbacks")
        before = [self.batches.state_dict(), *(part.state_dict() for part in parts)]
        with deferred():
            try:
                for part, saved in zip([self.batches, *parts], [state["batches"], *saved_parts], strict=True):
                    part.load_state_dict(saved)
                if own_file is None:
                    with self.optimizer._locked():
                        checkpoints.restore_optimizer(self.optimizer, tree)
                else:
                    self.optimizer.load(os.path.join(os.path.dirname(path), os.path.basename(own_file)))
            except BaseException:
                for part, saved in zip([self.batches, *parts], before, strict=True):
                    part.load_state_dict(saved)
                raise
            for name, p in frozen:
                checkpoints.assign(p, state["frozen"][name])
        self._seen_epoch = self.batches.epoch
        self.steps, self.epoch, self.history = steps, epoch, history
        self._best_step, self._best_loss = best_step, best_loss
        self._best_params = best_params if self._restore_best else None  # nobody would keep them up to date
        self._bad_validations, self._warned = bad_validations, warned
        if self._diagnose:
            self._next_diagnosis = (
                max(next_diagnosis, steps + 1.0) if math.isfinite(next_diagnosis) else _NEXT_DIAGNOSIS * steps + 1.0
            )
        if self._patience is not None and bad_validations >= self._patience:
            self._reason = "early stopping"
        if rate_text != self._rate_text():
            self._warn("the learning rate's schedule is not the one that the checkpoint was written with")
        return offset


# --- Parts --------------------------------------------------------------------------------------------------------


class _NoData:
    """Stands for the minibatches of a problem that has no data."""

    epoch = 0
    batch_size = examples = 1

    def next_batch(self) -> None:
        return None

    def next_size(self) -> int:
        return 1

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": 0}

    def load_state_dict(self, state: Any) -> None:
        if state != {"epoch": 0}:
            raise ValueError("it was written with data, and there is none here")

    def share(self, rank: int, size: int) -> None:
        pass


class _Accumulator:
    """The weighted mean of several gradients: summed in float64, rounded once."""

    def __init__(self, count: int):
        self.count = count
        self.weight = 0.0
        self._structure: Structure | None = None
        self._sums: list[Any] = []
        self._means: list[Any] = []
        self._fresh: list[bool] = []

    def add(self, grads: Any, weight: float) -> None:
        if self._structure is None:
            self._structure = Structure(grads)
            self._sums = [None] * len(self._structure.names)
            self._means = [None] * len(self._structure.names)
        if self.weight == 0.0:
            self._fresh = [True] * len(self._sums)
        self.weight += weight
        for i, (name, g) in enumerate(zip(self._structure.names, self._structure.leaves(grads), strict=True)):
            if g is None:
                continue
            if not isinstance(g, (np.ndarray, np.generic)) or isinstance(g, np.ma.MaskedArray):
                raise TypeError(f"gradient {name!r}: accumulate needs NumPy arrays, got {type(g).__name__}")
            total, mean = self._sums[i], self._means[i]
            if total is None:
                if g.dtype not in DTYPES:
                    raise TypeError(f"gradient {name!r}: expected float32 or float64, got dtype {g.dtype.str!r}")
                total = self._sums[i] = np.empty(g.shape)
                self._means[i] = np.empty(g.shape, g.dtype)
            elif g.dtype != mean.dtype:
                raise TypeError(f"gradient {name!r}: dtype {mean.dtype} in one minibatch, {g.dtype} in another")
            elif g.shape != mean.shape:
                raise ValueError(f"gradient {name!r}: shape {mean.shape} in one minibatch, {g.shape} in another")
            if self._fresh[i]:
                np.multiply(g, weight, out=total, dtype=np.float64)
                self._fresh[i] = False
            elif weight == 1.0:
                total += g
            else:
                total += np.multiply(g, weight, dtype=np.float64)

    def mean(self) -> Any:
        assert self._structure is not None
        weight, self.weight = self.weight, 0.0
        for i, (total, mean) in enumerate(zip(self._sums, self._means, strict=True)):
            if not self._fresh[i]:
                np.divide(total, weight, out=mean, casting="same_kind")
        leaves = [None if fresh else mean for fresh, mean in zip(self._fresh, self._means, strict=True)]
        return self._structure.rebuild(leaves)


class _Log:
    """Lines about steps and validations; what is past a checkpoint is cut off when training resumes from it."""

    def __init__(
        self, path: str, offset: int | None, describe: Callable[[], dict[str, Any]], warn: Callable[[str], None]
    ):
        self._csv = _is_csv(path)
        if offset is not None and _is_empty(path):
            warn(f"{path} is missing or empty, so it cannot be continued; it begins anew")
            offset = None
        self._file = open(path, "wb" if offset is None else "r+b")  # noqa: SIM115 (__exit__ closes it)
        if offset is None:
            first = "step,epoch,loss,lr,grad_norm,applied,validation_loss" if self._csv else json.dumps(describe())
            self._write(first)
        else:
            self._file.truncate(offset)
            self._file.seek(offset)

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.close()

    def step(self, loop: Loop, epoch: int) -> None:
        step, norm, metrics = loop.steps - 1, loop.info.grad_norm, loop.metrics
        if self._csv:
            cells = (step, epoch, loop.loss, loop.lr, norm, loop.info.applied, metrics and metrics["loss"])
            self._write(",".join("" if cell is None else str(cell) for cell in cells))
            return
        line = {"kind": "step", "step": step, "epoch": epoch, "loss": _json(loop.loss), "lr": float(loop.lr)}
        if norm is not None:
            line["grad_norm"] = _json(norm)
        self._write(json.dumps(line | {"applied": loop.info.applied}))
        if metrics is not None:
            values = {name: _json(value) for name, value in metrics.items()}
            self._write(json.dumps({"kind": "validation", "step": step} | values))

    def _write(self, line: str) -> None:
        self._file.write(line.encode() + b"\n")

    def sync(self) -> int:
        """Put everything on the disk; returns the size."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()


def _log_path(log: Any, writes: bool) -> str:
    """The log's path; ValueError or FileNotFoundError if who writes cannot open a log there."""
    path = os.fspath(log)
    if os.path.splitext(path)[1].lower() not in (".jsonl", ".csv"):
        raise ValueError(f"log must end in .jsonl or .csv, got {path!r}")
    if writes and os.path.isdir(path):
        raise ValueError(f"log must be a file, {path!r} is a folder")
    folder = os.path.dirname(os.path.abspath(path))
    if writes and not os.path.isdir(folder):
        raise FileNotFoundError(errno.ENOENT, "the folder for the log is missing", folder)
    return path


def _is_csv(path: str) -> bool:
    return os.path.splitext(path)[1].lower() == ".csv"


def _is_empty(path: str) -> bool:
    return not os.path.exists(path) or os.path.getsize(path) == 0


def _log_problem(path: str, offset: int | None, step: int, loss: float) -> str | None:
    """Why a log cannot be continued at `offset`: it must have a line that ends there, and this last step before it."""
    if offset is None:
        return f"the checkpoint was written without a log, and {path} is there: move it away, or log to another file"
    with open(path, "rb") as file:
        file.seek(max(0, offset - _TAIL))
        tail = file.read(min(offset, _TAIL))
    last: Any = None
    with contextlib.suppress(ValueError, LookupError, TypeError):
        if len(tail) == min(offset, _TAIL) and tail.endswith(b"\n"):
            lines = tail.splitlines()
            if _is_csv(path):
                cells = lines[-1].split(b",")
                last = int(cells[0]), float(cells[2])
            else:  # a validation may be behind the step
                row = json.loads(lines[-1] if b'"kind": "step"' in lines[-1] else lines[-2])
                last = row["step"], math.nan if row["loss"] is None else row["loss"]
                loss = loss if math.isfinite(loss) else math.nan
    if repr(last) == repr((step, loss)):
        return None
    return f"{path} is not the log of that run, or was cut since: move it away, or log to another file"


def _json(value: float) -> float | None:
    """JSON has no NaN and no infinity; null stands for them."""
    return value if math.isfinite(value) else None


def _bar_class(progress: bool | None) -> Any:
    """tqdm, or None: by default where the standard error is no terminal or tqdm is not installed."""
    wanted = sys.stderr is not None and sys.stderr.isatty() if progress is None else flag("progress", progress)
    if not wanted:
        return None
    try:
        from tqdm import tqdm
    except ImportError as error:
        if progress:
            raise ImportError('progress=True needs tqdm: pip install "fastoptim[train]"') from error
        return None
    return tqdm


def _optimizer(optimizer: Any, params: Any, backend: str | None, threads: int | None) -> Any:
    if isinstance(optimizer, str):
        if optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {list(OPTIMIZERS)} or an optimizer, got {optimizer!r}")
        return OPTIMIZERS[optimizer](params, backend=backend or "auto", threads=threads)
    if backend is not None or threads is not None:
        raise ValueError("backend and threads belong to an optimizer that is given by its name")
    if isinstance(optimizer, type):
        raise TypeError(
            f"optimizer must be a name or an optimizer, got a class: make one, {optimizer.__name__}(params)"
        )
    if not all(hasattr(optimizer, name) for name in ("step", "param_groups", "save", "load")):
        raise TypeError(f"optimizer must be a name or an optimizer, got {type(optimizer).__name__}")
    if isinstance(optimizer, Optimizer):
        own = {id(p) for _, p in _named(params)}
        strange = [
            name
            for group in optimizer.param_groups
            for name, p in zip(group["names"], group["params"], strict=True)
            if id(p) not in own
        ]
        if strange:
            raise ValueError(f"the optimizer steps arrays that are not in params: {strange}")
    return optimizer


def _schedules(lr: Any, optimizer: Any) -> tuple[Callable[[int], float], ...] | None:
    """One schedule for all groups or one for each; None if the optimizer's own rates are to stay."""
    if lr is None:
        return None
    several = isinstance(lr, (list, tuple))
    parts = tuple(lr) if several else (lr,)
    if several and len(parts) != len(optimizer.param_groups):
        raise ValueError(f"lr: expected one or {len(optimizer.param_groups)} (one per group), got {len(parts)}")
    return tuple(part if callable(part) else constant(part) for part in parts)


def _validation(
    validation: Any, loss_and_grad: Callable[[Any, Any], tuple[Any, Any]], batches: Any
) -> Callable[[Any], Mapping[str, float]] | None:
    """`validation` as a function from parameters to named figures."""
    if validation is None:
        return None
    if not callable(validation):
        held_out = (
            validation.in_order()
            if isinstance(validation, Minibatches)
            else Minibatches(validation, max(batches.batch_size, 256), shuffle=False)
        )

        def evaluate(params: Any) -> Mapping[str, float]:
            total = examples = 0.0
            while examples < held_out.examples:
                size = held_out.next_size()
                total += size * float(loss_and_grad(params, held_out.next_batch())[0])
                examples += size
            return {"loss": total / examples}

        return evaluate

    def call(params: Any) -> Mapping[str, float]:
        value = validation(params)
        if not isinstance(value, Mapping):
            return {"loss": float(value)}
        if "loss" not in value or "step" in value or "kind" in value:
            raise ValueError(f"validation must return 'loss', and neither 'step' nor 'kind'; got {list(value)}")
        return {"loss": float(value["loss"])} | {name: float(x) for name, x in value.items()}

    return call


def _optional_count(name: str, value: Any) -> int | None:
    return None if value is None else count(name, value)


def _saved_count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise CheckpointError("a count is not an int64 from 0")
    return value


def _named(params: Any) -> list[tuple[str, Any]]:
    """Names and arrays of `params`; groups have leaves that are none, such as their rates."""
    structure = Structure(params)
    pairs = zip(structure.names, structure.leaves(params), strict=True)
    return [(name, leaf) for name, leaf in pairs if hasattr(leaf, "shape")]


def _stateful(parts: Any) -> list[Any]:
    return [part for part in parts or () if hasattr(part, "state_dict") and hasattr(part, "load_state_dict")]


def _saves_itself(optimizer: Any) -> bool:
    return getattr(type(optimizer), "save", None) is not Optimizer.save


def _best_path(path: str) -> str:
    root, suffix = os.path.splitext(path)
    return f"{root}.best{suffix}"


def _remove_outdated(path: str, newest: str) -> None:
    """Remove files of an optimizer that saves itself, but those of `path` and of the checkpoint before it."""
    keep = {os.path.basename(newest)}
    with contextlib.suppress(OSError, CheckpointError):
        before = checkpoints.read(checkpoints.previous_path(path), kind="training")
        keep.add(before["loop"]["optimizer_file"])
    for found in glob.glob(f"{glob.escape(path)}.optimizer-*"):
        name = os.path.basename(found)
        if not any(name == kept or name.startswith(f"{kept}.") for kept in keep):  # slices begin with its name
            with contextlib.suppress(OSError):
                os.unlink(found)


def _same_generator(comm: Any, batches: Any) -> None:
    """Give all processes the generator state of process 0."""
    if isinstance(batches, Minibatches):
        batches.rng.bit_generator.state = comm.bcast(batches.rng.bit_generator.state)


def _explained(error: Exception) -> Exception:
    """`error` itself if it comes from within `loss_and_grad`, else what that should have returned."""
    trace = error.__traceback__
    if trace is not None and trace.tb_next is None:
        return TypeError(f"loss_and_grad(params, batch) must return (loss, gradients), the loss a number: {error}")
    return error


def _outside() -> int:
    """The stack level of the first caller outside this module, for a warning issued by `Loop._warn`."""
    level, frame = 2, sys._getframe(2)
    while frame.f_back is not None and frame.f_code.co_filename == __file__:
        level, frame = level + 1, frame.f_back
    return level
