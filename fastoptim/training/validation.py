"""Validation: the figures, the best parameters so far, early stopping."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..checkpoint import matching
from ..checkpoint.files import CheckpointError
from ..common.signals import deferred_signals
from ..common.trees import Entries
from ..common.validation import choice
from .best_states import DecidingStates
from .data import Minibatches
from .history import saved_count
from .loop import Loop, LossAndGrad, checked_loss, frozen_arrays, named_arrays

Evaluate = Callable[[Any], Mapping[str, float]]


class _Best(NamedTuple):
    """The best validation so far; numbers are infinite before there is one."""

    step: int | None
    loss: float
    value: float
    params: dict[str, np.ndarray] | None
    states: dict[str, dict[str, Any]]  # those that the optimizer would compute the parameters from


class Validation:
    """Evaluate now and then, keep the best, stop when there is no improvement any more; part of `Loop`."""

    def __init__(
        self,
        evaluate: Evaluate,
        params: Any,
        *,
        by_data: bool,
        every: int | None,
        monitor: str,
        mode: str | None,
        patience: int | None,
        min_delta: float,
        restore_best: bool,
        validated: Callable[[], Any],
        averaged: bool,
        deciding: DecidingStates | None,
    ):
        if mode is None and monitor != "loss":
            raise ValueError(f"monitor={monitor!r}: say whether less or more of it is better, mode='min' or mode='max'")
        # The figure that counts, and whether less or more of it is better.
        self.monitor, self.mode = monitor, choice("mode", mode or "min", ("min", "max"))
        self._evaluate, self._params, self._every, self._by_data = evaluate, params, every, by_data
        self._patience, self._min_delta, self._restore_best = patience, min_delta, restore_best
        self._validated, self._averaged, self._deciding = validated, averaged, deciding
        self.improved = False  # whether the validation after this step was the best so far
        self.additional = False  # whether it was only because training ends: a later end takes it back
        self.took_best_back = False  # whether one that was taken back when this run began had been the best
        self._sign = 1.0 if self.mode == "min" else -1.0
        self._best = _Best(None, math.inf, self._sign * math.inf, None, {})
        self._bad = 0  # validations since the best
        self._before: _Best | None = None  # the best before an additional validation

    @property
    def best_step(self) -> int | None:
        return self._best.step

    @property
    def best_loss(self) -> float | None:
        return None if self._best.step is None else self._best.loss

    @property
    def best_value(self) -> float | None:
        return None if self._best.step is None else self._best.value

    def begin(self, loop: Loop) -> None:
        if self._before is not None and loop.reason is None:
            loop.history._forget_validation()
            self.took_best_back = self._best.step != self._before.step
            self._best, self._before = self._before, None
        if self._is_over():
            loop.stop("early stopping")

    def due(self, loop: Loop) -> float:
        return loop.next_due(self._every)

    def __call__(self, loop: Loop) -> None:
        self.improved = self.additional = False
        if not loop.is_due(self._every):
            return
        self.additional = not loop.is_regular(self._every)
        evaluated = self._validated()
        with self._put_back(loop, evaluated):
            metrics = loop.metrics = loop.ranks.first(dict(self._evaluate(evaluated)))
        if self.monitor not in metrics:
            raise ValueError(f"monitor is {self.monitor!r}, validation returned {list(metrics)}")
        loop.history._validated(loop.steps - 1, metrics)
        self._before = self._best if self.additional else None
        value = metrics[self.monitor]
        better = self._sign * value < self._sign * self._best.value - self._min_delta
        self.improved = better and math.isfinite(value)
        if self.improved:
            kept = None
            if self._restore_best:
                source = evaluated if self._averaged else self._params
                kept = {name: matching.to_host(p).copy() for name, p in named_arrays(source)}
            states = {} if self._deciding is None else self._deciding.kept()
            self._best = _Best(loop.steps - 1, metrics["loss"], value, kept, states)
        if not self.additional:
            self._bad = 0 if self.improved else self._bad + 1
            if self._is_over():
                loop.stop("early stopping")

    @contextlib.contextmanager
    def _put_back(self, loop: Loop, evaluated: Any) -> Iterator[None]:
        """Put back what `loss_and_grad` has moved: arrays that are not stepped, and the generator of the minibatches.

        A function of the user's may move arrays on purpose, and the generator, unless it is called only because
        training ends.
        """
        names = {name for name, _ in frozen_arrays(self._params, loop.optimizer)} if self._by_data else set()
        trees = (self._params, evaluated) if names else ()
        entries = Entries(trees)
        frozen = {id(p): p for tree in trees for name, p in named_arrays(tree) if name in names}
        written = [p for p in frozen.values() if not isinstance(p, np.ndarray) or p.flags.writeable]
        kept = [(p, matching.to_host(p).copy()) for p in written]
        rng = getattr(loop.batches, "rng", None) if self._by_data or self.additional else None
        state = None if rng is None else rng.bit_generator.state
        try:
            yield
        finally:
            entries.put_back()
            for p, values in kept:
                matching.assign(p, values)
            if rng is not None:
                rng.bit_generator.state = state

    def _is_over(self) -> bool:
        return self._patience is not None and self._bad >= self._patience

    def end(self, loop: Loop) -> None:
        """Put the best parameters back."""
        count = len(loop.history.validation.get("step", ()))
        if count and self._best.step is None:
            loop.warn(
                f"validation's {self.monitor} was NaN or infinite in all {count} validations, so none was the best: "
                "early_stopping, restore_best and the best checkpoint had nothing to go by"
            )
        best = self._best.params
        if loop.reason is None or best is None:
            return
        named = {name: p for name, p in named_arrays(self._params) if name in best}
        matching.check_assignable(named, best)
        with deferred_signals():
            for name, p in named.items():
                matching.assign(p, best[name])
            if self._deciding is not None:
                self._deciding.put_back(self._best.states)

    def state_dict(self) -> dict[str, Any]:
        before = None if self._before is None else self._before._asdict()
        watched = {"monitor": self.monitor, "mode": self.mode}
        return watched | {"best": self._best._asdict(), "before": before, "bad": self._bad}

    def check(self, state: Mapping[str, Any] | None, best_file: str) -> None:
        """CheckpointError if a checkpoint with this state knows another best, or lacks the best parameters."""
        if state is None:
            return
        for name, own in (("monitor", self.monitor), ("mode", self.mode)):
            if state[name] != own:
                raise CheckpointError(f"{name} is {own!r} here, {state[name]!r} there: they know different bests")
        if self._restore_best and state["best"]["step"] is not None and state["best"]["params"] is None:
            raise CheckpointError(
                "it was written without restore_best=True, so the best parameters so far are not in it; go on without "
                f"it, or take them from {best_file}"
            )

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        if state is None:  # written without validation
            return
        best, bad = self._read(state["best"]), saved_count(state["bad"])
        self._before = None if state["before"] is None else self._read(state["before"])
        self._best, self._bad = best, bad

    def own_arrays(self, names: Collection[str]) -> list[dict[str, np.ndarray] | None]:
        """Those of the best parameters that each process has its own of."""
        kept = [None if best is None else best.params for best in (self._best, self._before)]
        return [None if params is None else {name: params[name] for name in names} for params in kept]

    def take_own_arrays(self, saved: Sequence[Any]) -> None:
        """Put `own_arrays` back among the best parameters, once these have been restored."""
        best, before = ({} if arrays is None else dict(arrays) for arrays in saved)
        if self._best.params is not None:
            matching.check_arrays({name: self._best.params[name] for name in best}, best)
            self._best.params.update(best)
        if self._before is not None and self._before.params is not None:
            self._before.params.update(before)

    def _read(self, saved: Mapping[str, Any]) -> _Best:
        step, params = saved["step"], saved["params"]
        if params is not None:
            matching.check_arrays(dict(named_arrays(self._params)), params)
        params = params if self._restore_best else None  # nobody would keep them up to date
        states = {} if self._deciding is None or step is None else self._deciding.checked(saved["states"])
        step = None if step is None else saved_count(step)
        return _Best(step, float(saved["loss"]), float(saved["value"]), params, states)


def evaluator(validation: Any, loss_and_grad: LossAndGrad, batch_size: int) -> Evaluate:
    """`validation` as a function from parameters to named figures."""
    if not callable(validation):
        given = validation
        if not isinstance(given, Minibatches):
            given = Minibatches(validation, max(batch_size, 256), shuffle=False)

        def evaluate(params: Any) -> Mapping[str, float]:
            held_out = given.in_order()  # as long as the data are now
            total = examples = 0.0
            while examples < held_out.examples:
                size = held_out.next_size()
                total += size * float(checked_loss(loss_and_grad(params, held_out.next_batch())[0]))
                examples += size
            return {"loss": total / examples}

        return evaluate

    def call(params: Any) -> Mapping[str, float]:
        value = validation(params)
        if not isinstance(value, Mapping):
            return {"loss": _figure("", value)}
        if "loss" not in value or "step" in value or "kind" in value:
            raise ValueError(f"validation must return 'loss', and neither 'step' nor 'kind'; got {list(value)}")
        names = dict.fromkeys(("loss", *value))
        return {name: _figure(f" for {name!r}", value[name]) for name in names}

    return call


def _figure(where: str, value: Any) -> float:
    try:
        return float(checked_loss(value))
    except (TypeError, ValueError) as error:
        text = f"validation must return the loss, a number, or a mapping of numbers; got {value!r:.80}{where}"
        raise TypeError(text) from error
