"""The training loop: minibatches, schedule, gradients, step, validation, early stopping, log, exact resume."""

from __future__ import annotations

import contextlib
import glob
import math
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from .. import __version__
from ..checkpoint import files, format, matching
from ..checkpoint.files import CheckpointError
from ..common.signals import deferred
from ..common.trees import Structure
from ..common.validation import flag, real
from ..optimizers import saving
from ..optimizers.base import Optimizer
from ..schedules import constant, parts_of
from .accumulate import _Accumulator
from .data import Minibatches, _NoData
from .diagnosis import MINIMUM, Diagnosis
from .diagnosis import diagnose as read_curve
from .history import FitResult, History, TrainingWarning
from .log import _is_empty, _Log, _log_path, _log_problem

# Steps before the first diagnosis, and the factor to the next: a diagnosis costs about as much as ten small steps.
# Floats, as "never" is one: so a checkpoint has the same bytes whether training was resumed before it or not.
_FIRST_DIAGNOSIS, _NEXT_DIAGNOSIS = 300.0, 4.0


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
            files.check_target(self._checkpoint)
            if validation is not None:
                files.check_target(_best_path(self._checkpoint))
        if self._checkpoint is not None or restore_best:
            matching.check_holdable(dict(self._frozen()), in_memory=self._checkpoint is None)
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
            matching.check_assignable(named, best)
            with deferred():
                for name, p in named.items():
                    matching.assign(p, best[name])
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
                self._best_params = {name: matching.to_host(p).copy() for name, p in _named(self.params)}
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
        return partial(read_curve, losses, fixed_batch=anchor, momentum=momentum, lr=float(group["lr"]))

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
                format.write(path, tree, kind="training", keep_previous=keep_previous)
                _remove_outdated(path, name)
            if self._size > 1:
                self._comm.Barrier()
            return
        with optimizer._locked():
            tree |= saving.optimizer_tree(optimizer)
            format.write(path, tree, kind="training", keep_previous=keep_previous)

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
            "frozen": {name: matching.to_host(p) for name, p in self._frozen()},
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
            tree = format.read_latest(path, kind="training", warn=self._warn)
        except FileNotFoundError:
            if required:
                raise
            return None
        with format.malformed(f"{path}: the state of training"):
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
            matching.check_arrays(dict(_named(self.params)), best_params)
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
        matching.check_arrays(dict(frozen), state["frozen"])
        matching.check_assignable(dict(frozen), state["frozen"])
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
                        saving.restore_optimizer(self.optimizer, tree)
                else:
                    self.optimizer.load(os.path.join(os.path.dirname(path), os.path.basename(own_file)))
            except BaseException:
                for part, saved in zip([self.batches, *parts], before, strict=True):
                    part.load_state_dict(saved)
                raise
            for name, p in frozen:
                matching.assign(p, state["frozen"][name])
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


def _schedules(lr: Any, optimizer: Any) -> tuple[Callable[[int], float], ...] | None:
    """One schedule for all groups or one for each; None if the optimizer's own rates are to stay."""
    if lr is None:
        return None
    several = isinstance(lr, (list, tuple))
    parts = tuple(lr) if several else (lr,)
    if several and len(parts) != len(optimizer.param_groups):
        raise ValueError(f"lr: expected one or {len(optimizer.param_groups)} (one per group), got {len(parts)}")
    return tuple(part if callable(part) else constant(part) for part in parts)


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
        before = format.read(files.previous_path(path), kind="training")
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
