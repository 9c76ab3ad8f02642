"""`fit`: checks its arguments and runs the training loop."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from ..checkpoint import matching
from ..common.public import public
from ..common.validation import count, flag, names_arguments, real, step_options
from ..optimizers.averages import Average
from ..optimizers.base import Optimizer
from ..optimizers.names import maker_of
from ..optimizers.selecting import GroupedParams
from .averaging import Averaging, validated_params
from .best_states import deciding_states
from .data import Minibatches, NoData
from .history import FitResult
from .live_diagnosis import LiveDiagnosis, curve_reader, say_non_finite
from .log import Log, path_of
from .loop import Callback, Loop, LossAndGrad, Rate, frozen_arrays, named_arrays, strange_arrays
from .progress import Progress, bar_class
from .rank_sync import StayTogether, share
from .ranks import Ranks, whole_of
from .rates import Rates
from .resuming import CALLBACK, Checkpoints
from .resuming import resume as go_on
from .settings import Settings
from .stop_on_signals import StopOnSignals
from .validation import Validation, evaluator


@public
@names_arguments
def fit(
    loss_and_grad: LossAndGrad,
    params: Any,
    data: Any,
    optimizer: str | Optimizer = "adam",
    *,
    lr: float | Rate | Sequence[float | Rate] | None = None,
    schedules: Mapping[str, Any] | None = None,
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
    average: Average | None = None,
    validate_every: int | None = None,
    monitor: str = "loss",
    mode: str | None = None,
    early_stopping: int | None = None,
    min_delta: float = 0.0,
    restore_best: bool = False,
    callbacks: Callback | Iterable[Callback] = (),
    checkpoint: Any = None,
    checkpoint_every: int | None = None,
    keep: int | None = None,
    resume: Any = False,
    override: str | Iterable[str] = (),
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
        the structure that ``optimizer.step`` takes: that of `params`, or a list with one entry for each of an
        optimizer's groups, if it was made of a list of groups (of `fastoptim.groups`: that of `params`).
    params : array or nesting of arrays
        Updated in place. What `fastoptim.groups` returned may stand for them where `optimizer` is a name.
    data : arrays, `Minibatches` or None
        Whatever `fastoptim.minibatches` takes, or what it returned; None if there is no data: `loss_and_grad` then gets
        None for its batch.
    optimizer : str or optimizer
        The name of a functional form ("sgd", "adam", "lion", ...), "adamw", or "momentum", SGD with momentum 0.9. An
        optimizer must have been made of arrays in `params`; those that it does not step are frozen.
    lr : float, schedule or Plateau, or one of these per parameter group
        Schedules are called with the number of the optimizer step, from zero. A number is set before the first step;
        callbacks may change it (``loop.optimizer.lr = ...``). Default: the optimizer's own rate.
    schedules : mapping of str to schedule, or to one per parameter group
        Of other hyperparameters, ``{"weight_decay": fastoptim.schedules.cosine(0.1, 10_000)}``: functions of the number
        of the optimizer step. In a sequence, None leaves a group's value as it is.
    epochs, steps : int
        When to end: after so many epochs, after so many optimizer steps, or whichever comes first. Counted from the
        very beginning, also where a run is resumed.
    batch_size, shuffle, drop_last, rng
        As for `fastoptim.minibatches`, whose defaults None stands for, in `batch_size` too: for one batch of everything
        give ``batch_size=len(x)``. Not to be given where `data` is a `Minibatches` already.
    accumulate : int
        Minibatches per optimizer step. Gradients are summed in float64, each weighted by the examples of its minibatch,
        divided by the examples of all and rounded once: the gradient of the mean loss over all of them. Clipping and
        schedules see that one step. A step never mixes epochs: the last of an epoch takes what is left.
    max_norm, skip_nonfinite
        As for ``optimizer.step``. Default: the optimizer's own `max_norm`; what it bounds is the optimizer's `clip`.
    validation : callable or data
        ``validation(params)`` returns a loss or a mapping of figures with "loss" among them; arrays or `Minibatches`
        instead are evaluated with `loss_and_grad` in batches, every example once, in order, from a position of their
        own, and averaged over examples; arrays that are not stepped (running means) and the generator of `data` are
        then put back, so that no validation moves the training.
    average : Average
        Made of these `params`; updated after every step that was applied. Validation is given its arrays in place of
        `params`, and `restore_best` puts the best averages back. It is part of checkpoints, and restored by `resume`.
        At the end, ``average.copy_to(params)`` puts the averages into the parameters. Schedule-free optimizers are
        validated with what their ``averaged()`` returns; use that at the end, too, also after `restore_best`.
    validate_every : int
        Steps between validations; default: after every epoch (without data, at the end alone). There is one at the end,
        too, unless a callback ended training.
    monitor, mode : str, {"min", "max"}
        Which of validation's figures counts for `early_stopping`, the best parameters and `Plateau`, and whether less
        or more of it is better. Default: the loss, of which less is better.
    early_stopping : int
        End after so many validations in a row that did not better the best by more than `min_delta`. A validation that
        runs only because training ends is not counted.
    restore_best : bool
        At the end put the parameters of the best validation back, and with them the states that they are computed from
        (master copies; those of FTRL, ASGD and schedule-free optimizers), so that training can go on from there. To be
        resumed, a run must have had it from the start.
    callbacks : callable or sequence of callables
        Called after every step with the `Loop`, which they may read and may `Loop.stop`. If one has ``state_dict`` and
        ``load_state_dict``, its state is part of the checkpoint. ``begin``, ``due`` and ``end`` are called as well, if
        there are: `fastoptim.Callback` says when.
    checkpoint : path
        Where to save the whole state of training; with `validation`, the best so far also goes to
        ``<name>.best<suffix>``. See `fastoptim.checkpoint` for what is guaranteed.
    checkpoint_every : int
        Steps between checkpoints; default: after every epoch (without data, at the end alone). There is always one at
        the end.
    keep : int
        Keep so many of the last checkpoints as files of their own, too: ``<name>-<steps><suffix>``.
    resume : bool or path
        True: go on from `checkpoint`, or, with a warning, from ``<name>.previous`` if that is all there is or
        `checkpoint` is damaged; begin if there is neither. A path: go on from that file or its previous one. The result
        has the same bits as if training had not been interrupted, on any backend.
    override : str or iterable of str
        Names of settings in which this program may differ from the checkpoint that it resumes: "lr" (rates, schedules,
        `Plateau`), "schedules" (and all hyperparameters), "batch_size" (the batch that the checkpoint is in begins
        anew), "accumulate", "max_norm", "skip_nonfinite", "monitor" (what a `Plateau` is told), "average",
        "rounding", and the optimizer's hyperparameters ("momentum", "weight_decay", ...).
        Training goes on with those that are given here. A difference in any other, or in a seed, is a CheckpointError
        that names both values.
    log : path
        ``.jsonl`` (JSON lines) or ``.csv``: one line per step and validation, in a new file. A resumed run continues
        the log where its checkpoint was taken, and refuses the log of another run.
    progress : bool
        A progress bar by tqdm, on the standard error or in a notebook. Default: if that is a terminal or a notebook.
    diagnose : bool
        Run `fastoptim.diagnose` beside the loop, after 300, 1200, 4800, ... steps, and issue a `TrainingWarning` that
        names the remedy when its verdict is not "healthy". What an optimizer maximizes is not diagnosed.
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
        The file to resume from is not a whole checkpoint, or one of another model, optimizer, data or settings.

    Notes
    -----
    A loss that is NaN or infinite ends training before the step that it belongs to is taken, with a warning. No
    checkpoint is written then, so that the last good one stays. With `skip_nonfinite` only that step is skipped.

    Ctrl-C and SIGTERM end training after the step in which they come: the checkpoint is saved, and `fit` returns with
    the reason "interrupted". Another one ends it at once, by KeyboardInterrupt or the end of the process. That is so in
    the main thread, and for a signal that has no other handler than Python's; it is put back at the end.

    With an optimizer that has an MPI communicator (``optimizer.comm``), every process sees its share of each minibatch,
    losses are averaged, and process 0 alone shows progress, logs and writes. What decides how processes communicate
    must be the same in all of them: if it is not, all raise a ValueError that names it, before the first step.
    Callbacks, and the paths and intervals of checkpoints and logs, may be given in one process alone. Arrays that are
    not stepped, and the states of callbacks, are each process's own, in checkpoints as well.

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
    given = SimpleNamespace(**locals())  # the arguments by name, in whose place checked ones are put
    ranks = _ranks(given)
    with ranks.together("fit"):
        _check(given)
        parts, settings = _parts(given, ranks)
        loop = Loop(
            loss_and_grad,
            given.params,
            given.batches,
            given.optimizer,
            schedules=given.rates.schedules,
            last_step=math.inf if steps is None else count("steps", steps),
            last_epoch=math.inf if epochs is None else count("epochs", epochs),
            accumulate=given.accumulate,
            step_options=(given.max_norm, given.skip_nonfinite),
            parts=parts,
            ranks=ranks,
        )
    return _run(given, loop, settings)


def _ranks(given: SimpleNamespace) -> Ranks:
    """Make the optimizer if need be, and return its ranks; what may be given on one of them is then given on all."""
    params = given.params
    if isinstance(params, GroupedParams):
        given.params = params.params
    ranks = Ranks(getattr(given.optimizer, "comm", None))
    with ranks.together("fit"):
        given.optimizer = _optimizer(given.optimizer, given.params, given.backend, given.threads, params)
        for name in ("checkpoint", "log", "resume"):  # ranks may have working folders of their own
            if isinstance(path := getattr(given, name), (str, bytes, os.PathLike)):
                setattr(given, name, path_of(name, path))
    if ranks.size > 1:
        for names in (("checkpoint", "log", "resume"), ("checkpoint_every", "keep", "override")):
            vars(given).update(ranks.pooled({name: getattr(given, name) for name in names}))
    return ranks


def _check(given: SimpleNamespace) -> None:
    """Check the arguments, except those that the parts of the loop check themselves."""
    given.batches = batches = _batches(given.data, given.batch_size, given.shuffle, given.drop_last, given.rng)
    given.callbacks = _callbacks(given.callbacks)
    if not callable(given.loss_and_grad):
        raise TypeError(f"loss_and_grad must be callable, got {type(given.loss_and_grad).__name__}")
    if given.epochs is None and given.steps is None:
        raise ValueError("give epochs or steps: how long to train")
    if isinstance(batches, NoData) and (given.steps is None or given.epochs is not None):
        raise ValueError("without data there are no epochs: give steps alone")
    needing = given.early_stopping is not None or given.restore_best or given.validate_every is not None
    needing = needing or given.mode is not None or given.monitor != "loss"
    if given.validation is None and needing:
        raise ValueError("early_stopping, restore_best, validate_every, monitor and mode need validation")
    if given.override and not given.resume:
        raise ValueError("override says how to resume: it needs resume")
    if given.resume is True and given.checkpoint is None:
        raise ValueError("resume=True needs checkpoint; or give the path to resume from")
    given.source = given.checkpoint if given.resume is True else given.resume or None
    for name, argument in (("checkpoint", "checkpoint"), ("log", "log"), ("source", "resume")):
        path = getattr(given, name)
        setattr(given, name, None if path is None else path_of(argument, path))
    for name in ("checkpoint_every", "keep"):
        if given.checkpoint is None and getattr(given, name) is not None:
            raise ValueError(f"{name} needs checkpoint")
    if isinstance(batches, NoData) and given.early_stopping is not None and given.validate_every is None:
        raise ValueError(
            "early_stopping: without data there are no epochs, after which validation runs by default: give "
            "validate_every, the steps in between"
        )
    if flag("restore_best", given.restore_best) or given.checkpoint is not None:
        frozen = dict(frozen_arrays(given.params, given.optimizer))
        matching.check_holdable(frozen, in_memory=given.checkpoint is None)
    given.max_norm, given.skip_nonfinite = step_options(1.0, given.max_norm, given.skip_nonfinite)[1:3]
    given.accumulate = count("accumulate", given.accumulate)


def _parts(given: SimpleNamespace, ranks: Ranks) -> tuple[dict[str, Callback], Settings]:
    """Return what is done around the steps, in this order, and what a run is resumed with."""
    optimizer, averaged = given.optimizer, given.average is not None
    parts: dict[str, Callback] = {}
    validated: Validation | None = None
    if averaged:
        parts["average"] = Averaging(given.average, given.params)
    if given.validation is not None:
        validated = parts["validation"] = Validation(
            evaluator(given.validation, given.loss_and_grad, given.batches.batch_size),
            given.params,
            by_data=not callable(given.validation),
            every=_optional_count("validate_every", given.validate_every),
            monitor=given.monitor,
            mode=given.mode,
            patience=_optional_count("early_stopping", given.early_stopping),
            min_delta=real("min_delta", given.min_delta, 0.0),
            restore_best=given.restore_best,
            validated=validated_params(given.params, optimizer, given.average),
            averaged=averaged,
            deciding=deciding_states(optimizer, ranks, averaged) if given.restore_best else None,
        )
    given.rates = parts["rates"] = Rates(given.lr, optimizer, validated, given.schedules)
    if given.rates.waits_for_epochs and isinstance(given.batches, NoData) and not given.callbacks:
        raise ValueError(
            "lr: a Plateau is told the mean loss of each epoch, and without data there are none: give validation "
            "and validate_every, or call its update in a callback"
        )
    settings = Settings(
        optimizer,
        given.batches,
        given.rates,
        accumulate=given.accumulate,
        max_norm=getattr(optimizer, "max_norm", None) if given.max_norm is None else given.max_norm,
        clip=getattr(optimizer, "clip", "norm"),
        skip_nonfinite=given.skip_nonfinite,
        average=given.average,
        override=given.override,
    )
    if given.log is not None:
        parts["log"] = Log(given.log, given.rates, validated, ranks.rank == 0)
    parts |= {f"{CALLBACK}{i}": callback for i, callback in enumerate(given.callbacks)}
    parts["interrupts"] = StopOnSignals()
    if ranks.size > 1:
        parts["together"] = StayTogether(bool(given.callbacks))
    if flag("diagnose", given.diagnose):
        parts["diagnosis"] = LiveDiagnosis()
    if given.checkpoint is not None:
        every, keep = (_optional_count(name, getattr(given, name)) for name in ("checkpoint_every", "keep"))
        parts["checkpoints"] = Checkpoints(
            given.checkpoint, settings, every=every, keep=keep, validation=validated, log=given.log
        )
    bar = bar_class(given.progress)
    if bar is not None and ranks.rank == 0:
        parts["progress"] = Progress(bar)
    return parts, settings


# What must be the same on all ranks, beside the settings and whether there is validation.
_ALIKE = "steps", "epochs", "validate_every", "early_stopping", "min_delta", "monitor", "mode", "restore_best"


def _run(given: SimpleNamespace, loop: Loop, settings: Settings) -> FitResult:
    """Try whether a checkpoint can be saved, resume if that is asked for, and train."""
    ranks = loop.ranks
    saver: Any = loop.parts.get("checkpoints")
    validated: Any = loop.parts.get("validation")
    if ranks.size > 1:
        alike = {name: repr(getattr(given, name)) for name in _ALIKE} | {"validation": str(validated is not None)}
        share(given.batches, ranks, settings.texts | alike)
    if saver is not None:
        with ranks.together("trying to save a checkpoint"):
            saver.rehearse(loop, callbacks=False)
        if given.source is not None:
            saver.go_on_from(given.source)
    if given.source is not None:
        go_on(loop, settings, given.source, required=given.resume is not True)
    if saver is not None:
        saver.warn_of_loss(loop)
    loop.run()
    if loop.reason == "non-finite loss":
        say_non_finite(loop)
    return FitResult(
        loop.params,
        loop.optimizer,
        loop.history,
        loop.steps,
        loop.epoch,
        loop.reason or "",
        None if validated is None else validated.best_step,
        None if validated is None else validated.best_loss,
        None if validated is None else validated.best_value,
        curve_reader(loop),
    )


def _batches(data: Any, batch_size: Any, shuffle: Any, drop_last: Any, rng: Any) -> Any:
    given = {"batch_size": batch_size, "shuffle": shuffle, "drop_last": drop_last, "rng": rng}
    given = {name: value for name, value in given.items() if value is not None}
    if data is not None and not isinstance(data, Minibatches):
        return Minibatches(data, **given)
    if given:
        why = "there are no data" if data is None else "these data are minibatches already"
        raise ValueError(f"{', '.join(given)}: how to cut data into minibatches, and {why}: leave it out")
    return NoData() if data is None else data


def _callbacks(callbacks: Any) -> tuple[Callback, ...]:
    several = isinstance(callbacks, Iterable) and not callable(callbacks)
    every = tuple(callbacks) if several else (callbacks,)
    for callback in every:
        if isinstance(callback, type):
            raise TypeError(f"callbacks: got a class: make one, {callback.__name__}()")
        if not callable(callback):
            raise TypeError(f"callbacks must be callable, got {type(callback).__name__}")
    return every


def _optimizer(optimizer: Any, params: Any, backend: str | None, threads: int | None, stepped: Any) -> Any:
    if isinstance(optimizer, str):
        return maker_of(optimizer)(stepped, backend=backend or "auto", threads=threads)
    if backend is not None or threads is not None:
        raise ValueError("backend and threads belong to an optimizer that is given by its name")
    if stepped is not params:
        raise ValueError("groups belong to an optimizer that is given by its name; here give params as they are")
    if isinstance(optimizer, type):
        raise TypeError(
            f"optimizer must be a name or an optimizer, got a class: make one, {optimizer.__name__}(params)"
        )
    if not all(hasattr(optimizer, name) for name in ("step", "param_groups", "save", "load")):
        hint = ": arrays of data are one argument, (x, y)" if hasattr(optimizer, "__array__") else ""
        raise TypeError(f"optimizer must be a name or an optimizer, got {type(optimizer).__name__}{hint}")
    if isinstance(whole_of(optimizer), Optimizer):
        strange = strange_arrays(optimizer, [p for _, p in named_arrays(params)])
        if strange:
            raise ValueError(f"the optimizer steps arrays that are not in params: {strange}; make it of these params")
    return optimizer


def _optional_count(name: str, value: Any) -> int | None:
    return None if value is None else count(name, value)
