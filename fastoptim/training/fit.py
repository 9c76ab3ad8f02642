"""`fit`: checks its arguments and runs the training loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..common.validation import count, flag, real, step_options
from ..optimizers.base import Optimizer
from ..optimizers.names import OPTIMIZERS
from .data import Minibatches, _NoData
from .history import FitResult
from .loop import Loop, _named


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
