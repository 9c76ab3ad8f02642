"""`fit`: checks its arguments and runs the training loop."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
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
from .data import Minibatches, NoData
from .deciding import deciding_states
from .ending import StopOnSignals
from .history import FitResult
from .log import Log, path_of
from .loop import Callback, Loop, LossAndGrad, Rate, frozen_arrays, named_arrays, strange_arrays
from .progress import Progress, bar_class
from .ranks import Ranks
from .rates import Rates
from .resuming import CALLBACK, Checkpoints
from .resuming import resume as go_on
from .settings import Settings
from .together import StayTogether, share
from .validation import Validation, evaluator
from .watching import Watch, curve_reader, say_non_finite


@public
@names_arguments
def fit(
    loss_and_grad: LossAndGrad,
    params: Any,
    data: Any,
    optimizer: str | Optimizer = "adam",
    *,
    lr: float | Rate | Sequence[float | Rate] | None = None,
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
        `Plateau`), "batch_size" (the batch that the checkpoint is in begins anew), "accumulate", "max_norm",
        "skip_nonfinite", and the optimizer's hyperparameters ("momentum", "weight_decay", ...). Training goes on with
        those that are given here. A difference in any other is a CheckpointError that names both values.
    log : path
        ``.jsonl`` (JSON lines) or ``.csv``: one line per step and validation, in a new file. A resumed run continues
        the log where its checkpoint was taken, and refuses the log of another run.
    progress : bool
        A progress bar by tqdm, on the standard error or in a notebook. Default: if that is a terminal or a notebook.
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
    stepped = params
    if isinstance(params, GroupedParams):
        params = params.params
    optimizer = _optimizer(optimizer, params, backend, threads, stepped)
    ranks = Ranks(getattr(optimizer, "comm", None))
    if ranks.size > 1:
        where = ranks.pooled({"checkpoint": checkpoint, "log": log, "resume": resume})
        how = ranks.pooled({"checkpoint_every": checkpoint_every, "keep": keep, "override": override})
        checkpoint, log, resume = where.values()
        checkpoint_every, keep, override = how.values()
    with ranks.together("fit"):
        batches = _batches(data, batch_size, shuffle, drop_last, rng)
        callbacks = _callbacks(callbacks)
        _check(loss_and_grad, epochs, steps, batches)
        needing = early_stopping is not None or restore_best or validate_every is not None or mode is not None
        if validation is None and (needing or monitor != "loss"):
            raise ValueError("early_stopping, restore_best, validate_every, monitor and mode need validation")
        if override and not resume:
            raise ValueError("override says how to resume: it needs resume")
        if resume is True and checkpoint is None:
            raise ValueError("resume=True needs checkpoint; or give the path to resume from")
        given = {"checkpoint": checkpoint, "log": log, "resume": checkpoint if resume is True else resume or None}
        paths = {name: None if value is None else path_of(name, value) for name, value in given.items()}
        checkpoint, log, source = paths.values()
        for name, value in (("checkpoint_every", checkpoint_every), ("keep", keep)):
            if checkpoint is None and value is not None:
                raise ValueError(f"{name} needs checkpoint")
        if isinstance(batches, NoData) and early_stopping is not None and validate_every is None:
            raise ValueError(
                "early_stopping: without data there are no epochs, after which validation runs by default: give "
                "validate_every, the steps in between"
            )
        if flag("restore_best", restore_best) or checkpoint is not None:
            matching.check_holdable(dict(frozen_arrays(params, optimizer)), in_memory=checkpoint is None)

        parts: dict[str, Callback] = {}
        if average is not None:
            parts["average"] = Averaging(average, params)
        validated: Validation | None = None
        saver: Checkpoints | None = None
        if validation is not None:
            validated = parts["validation"] = Validation(
                evaluator(validation, loss_and_grad, batches.batch_size),
                params,
                by_data=not callable(validation),
                every=_optional_count("validate_every", validate_every),
                monitor=monitor,
                mode=mode,
                patience=_optional_count("early_stopping", early_stopping),
                min_delta=real("min_delta", min_delta, 0.0),
                restore_best=restore_best,
                validated=validated_params(params, optimizer, average),
                averaged=average is not None,
                deciding=deciding_states(optimizer, ranks, average is not None) if restore_best else None,
            )
        rates = parts["rates"] = Rates(lr, optimizer, validated)
        if rates.waits_for_epochs and isinstance(batches, NoData) and not callbacks:
            raise ValueError(
                "lr: a Plateau is told the mean loss of each epoch, and without data there are none: give validation "
                "and validate_every, or call its update in a callback"
            )
        own_limit, clip = getattr(optimizer, "max_norm", None), getattr(optimizer, "clip", "norm")
        max_norm, skip_nonfinite = step_options(1.0, max_norm, skip_nonfinite)[1:3]
        accumulate = count("accumulate", accumulate)
        settings = Settings(
            optimizer,
            batches,
            rates,
            accumulate=accumulate,
            max_norm=own_limit if max_norm is None else max_norm,
            clip=clip,
            skip_nonfinite=skip_nonfinite,
            average=average,
            override=override,
        )
        if log is not None:
            parts["log"] = Log(log, rates, validated, ranks.rank == 0)
        parts |= {f"{CALLBACK}{i}": callback for i, callback in enumerate(callbacks)}
        parts["interrupts"] = StopOnSignals()
        if ranks.size > 1:
            parts["together"] = StayTogether(bool(callbacks))
        if flag("diagnose", diagnose):
            parts["diagnosis"] = Watch()
        if checkpoint is not None:
            every, keep = _optional_count("checkpoint_every", checkpoint_every), _optional_count("keep", keep)
            saver = Checkpoints(checkpoint, settings, every=every, keep=keep, validation=validated, log=log)
            parts["checkpoints"] = saver
        bar = bar_class(progress)
        if bar is not None and ranks.rank == 0:
            parts["progress"] = Progress(bar)
        loop = Loop(
            loss_and_grad,
            params,
            batches,
            optimizer,
            schedules=rates.schedules,
            last_step=math.inf if steps is None else count("steps", steps),
            last_epoch=math.inf if epochs is None else count("epochs", epochs),
            accumulate=accumulate,
            step_options=(max_norm, skip_nonfinite),
            parts=parts,
            ranks=ranks,
        )
    if ranks.size > 1:
        given = {"steps": steps, "epochs": epochs, "validation": validation is not None}
        given |= {"validate_every": validate_every, "early_stopping": early_stopping, "min_delta": min_delta}
        given |= {"monitor": monitor, "mode": mode, "restore_best": restore_best}
        share(batches, ranks, settings.texts | {name: repr(value) for name, value in given.items()})
    if saver is not None:
        with ranks.together("trying to save a checkpoint"):
            saver.rehearse(loop, callbacks=False)
    if source is not None:
        if saver is not None:
            saver.go_on_from(source)
        go_on(loop, settings, source, required=resume is not True)
    if saver is not None:
        saver.warn_of_loss(loop)
    loop.run()
    if loop.reason == "non-finite loss":
        say_non_finite(loop)
    return FitResult(
        params,
        optimizer,
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


def _check(loss_and_grad: Any, epochs: Any, steps: Any, batches: Any) -> None:
    if not callable(loss_and_grad):
        raise TypeError(f"loss_and_grad must be callable, got {type(loss_and_grad).__name__}")
    if epochs is None and steps is None:
        raise ValueError("give epochs or steps: how long to train")
    if isinstance(batches, NoData) and (steps is None or epochs is not None):
        raise ValueError("without data there are no epochs: give steps alone")


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
    if isinstance(optimizer, Optimizer):
        strange = strange_arrays(optimizer, [p for _, p in named_arrays(params)])
        if strange:
            raise ValueError(f"the optimizer steps arrays that are not in params: {strange}")
    return optimizer


def _optional_count(name: str, value: Any) -> int | None:
    return None if value is None else count(name, value)
