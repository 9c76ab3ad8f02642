"""Validation: the figures, the best parameters so far, early stopping."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..checkpoint import matching
from ..checkpoint.files import CheckpointError
from ..common.signals import deferred
from .data import Minibatches
from .history import saved_count
from .loop import Loop, LossAndGrad, named_arrays

Evaluate = Callable[[Any], Mapping[str, float]]


class Validation:
    """Evaluate now and then, keep the best, stop when there is no improvement any more; part of `Loop`.

    Attributes
    ----------
    improved : bool
        Whether the validation after this step was the best so far.
    best_step, best_loss
        As in `FitResult`; `best_loss` is infinite before there is one.
    """

    def __init__(
        self,
        evaluate: Evaluate,
        params: Any,
        *,
        every: int | None,
        patience: int | None,
        min_delta: float,
        restore_best: bool,
    ):
        self._evaluate, self._params, self._every = evaluate, params, every
        self._patience, self._min_delta, self._restore_best = patience, min_delta, restore_best
        self.improved = False
        self.best_step: int | None = None
        self.best_loss = math.inf
        self._best_params: dict[str, np.ndarray] | None = None
        self._bad = 0  # validations since the best

    def begin(self, loop: Loop) -> None:
        if self._is_over():
            loop.stop("early stopping")

    def due(self, loop: Loop) -> float:
        return loop.next_due(self._every)

    def __call__(self, loop: Loop) -> None:
        self.improved = False
        if not loop.is_due(self._every):
            return
        metrics = loop.metrics = loop.ranks.first(dict(self._evaluate(self._params)))
        loop.history._validated(loop.steps - 1, metrics)
        self.improved = metrics["loss"] < self.best_loss - self._min_delta
        if self.improved:
            self.best_step, self.best_loss, self._bad = loop.steps - 1, metrics["loss"], 0
            if self._restore_best:
                self._best_params = {name: matching.to_host(p).copy() for name, p in named_arrays(self._params)}
            return
        self._bad += 1
        if self._is_over():
            loop.stop("early stopping")

    def _is_over(self) -> bool:
        return self._patience is not None and self._bad >= self._patience

    def end(self, loop: Loop) -> None:
        """Put the best parameters back."""
        best = self._best_params
        if loop.reason is None or best is None:
            return
        named = {name: p for name, p in named_arrays(self._params) if name in best}
        matching.check_assignable(named, best)
        with deferred():
            for name, p in named.items():
                matching.assign(p, best[name])

    def state_dict(self) -> dict[str, Any]:
        best = {"step": self.best_step, "loss": self.best_loss, "params": self._best_params}
        return {"best": best, "bad": self._bad}

    def check(self, state: Mapping[str, Any] | None, best_file: str) -> None:
        """CheckpointError if the best parameters are wanted and a checkpoint with this state lacks them."""
        if not self._restore_best or state is None or state["best"]["step"] is None:
            return
        if state["best"]["params"] is None:
            raise CheckpointError(
                "it was written without restore_best=True, so the best parameters so far are not in it; go on without "
                f"it, or take them from {best_file}"
            )

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        if state is None:  # written without validation
            return
        best, bad = state["best"], saved_count(state["bad"])
        step, loss, params = best["step"], float(best["loss"]), best["params"]
        if params is not None:
            matching.check_arrays(dict(named_arrays(self._params)), params)
        self.best_step, self.best_loss, self._bad = None if step is None else saved_count(step), loss, bad
        self._best_params = params if self._restore_best else None  # nobody would keep them up to date


def evaluator(validation: Any, loss_and_grad: LossAndGrad, batch_size: int) -> Evaluate:
    """`validation` as a function from parameters to named figures."""
    if not callable(validation):
        held_out = (
            validation.in_order()
            if isinstance(validation, Minibatches)
            else Minibatches(validation, max(batch_size, 256), shuffle=False)
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
