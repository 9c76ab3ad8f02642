"""Optimizers in the style of numpy-ml: called ``optimizer(param, param_grad, param_name)``, they return the new array.

    from fastoptim.adapters.numpy_ml import SGD, Adam

Convention: numpy-ml's ``neural_nets.optimizers``. States lie in `cache` under the parameter's name; momentum keeps the
rate inside the velocity, ``v <- mu v + lr g; p <- p - v``; Adam is the textbook's, with bias corrections; a gradient
whose norm exceeds `clip_norm` is scaled to it. `param` is left as it was. `lr_scheduler` is None or a function
``(cur_step, cur_loss) -> lr``; `step` counts the steps for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..arrays.checks import real_array
from ..arrays.rows import Rows
from ..common.signals import deferred_signals
from ..common.validation import norm_limit, real
from ._update import Attributes, adam_coefficients, as_dtype_of, gradient_of, no_shallow_copy, step_array

__all__ = ["SGD", "Adam"]


class _Optimizer(Attributes):
    _others = ("cache", "cur_step")

    def __init__(self, lr: float, clip_norm: float | None, lr_scheduler: Callable[..., float] | None):
        self.lr, self.clip_norm, self.lr_scheduler = lr, clip_norm, lr_scheduler
        self.cache: dict[str, dict[str, Any]] = {}
        self.cur_step = 0

    __copy__ = no_shallow_copy

    def step(self) -> None:
        """Count a step, for the learning rate's schedule."""
        self.cur_step += 1

    def _rate(self, cur_loss: Any) -> float:
        return self.lr if self.lr_scheduler is None else self.lr_scheduler(self.cur_step, cur_loss)

    def _scaled(self, param: np.ndarray, grad: Any, name: str) -> tuple[Any, float]:
        """The gradient in the dtype of its parameter, and the factor that clips it."""
        if self.clip_norm is None:
            return gradient_of(param, grad, name), 1.0
        if isinstance(grad, Rows):
            raise TypeError("clip_norm needs dense gradients, got Rows: hand over rows.to_dense(len(param))")
        grad, limit = as_dtype_of(param, grad, name), norm_limit(self.clip_norm, "clip_norm")
        with np.errstate(over="ignore"):
            norm = float(np.linalg.norm(grad))
            norm = norm if norm < np.inf else float(np.linalg.norm(grad.astype(np.float64)))
        return grad, limit / norm if norm > limit else 1.0


def _copy(param: Any, name: str) -> np.ndarray:
    return np.array(real_array(f"parameter {name!r}", param))


class SGD(_Optimizer):
    """``v <- momentum * v + lr * g; p <- p - v``."""

    def __init__(
        self,
        lr: float = 0.01,
        momentum: float = 0.0,
        clip_norm: float | None = None,
        lr_scheduler: Callable[..., float] | None = None,
    ):
        super().__init__(lr, clip_norm, lr_scheduler)
        self.momentum = momentum

    def __call__(self, param: Any, param_grad: Any, param_name: str, cur_loss: Any = None) -> Any:
        """The updated copy of `param`."""
        new = _copy(param, param_name)
        entry = self.cache.get(param_name)
        if entry is None:
            entry = {"velocity": np.zeros_like(new)}
        coefficients = (real("momentum", self.momentum), real("lr", self._rate(cur_loss)), 1.0)
        grad, scale = self._scaled(new, param_grad, param_name)
        step_array("momentum", new, grad, (entry["velocity"],), coefficients, scale=scale, called=("velocity",))
        self.cache[param_name] = entry
        return new

    update = __call__


class Adam(_Optimizer):
    """Adam; equations under `fastoptim.Adam`."""

    def __init__(
        self,
        lr: float = 0.001,
        decay1: float = 0.9,
        decay2: float = 0.999,
        eps: float = 1e-7,
        clip_norm: float | None = None,
        lr_scheduler: Callable[..., float] | None = None,
    ):
        super().__init__(lr, clip_norm, lr_scheduler)
        self.decay1, self.decay2, self.eps = decay1, decay2, eps

    def __call__(self, param: Any, param_grad: Any, param_name: str, cur_loss: Any = None) -> Any:
        """The updated copy of `param`."""
        new = _copy(param, param_name)
        entry = self.cache.get(param_name)
        if entry is None:
            entry = {"t": 0, "mean": np.zeros_like(new), "var": np.zeros_like(new)}
        t = entry["t"] + 1
        coefficients = adam_coefficients(t, self._rate(cur_loss), self.decay1, self.decay2, self.eps)
        grad, scale = self._scaled(new, param_grad, param_name)
        with deferred_signals():
            states, called = (entry["mean"], entry["var"]), ("mean", "var")
            step_array("adam", new, grad, states, coefficients, scale=scale, called=called)
            entry["t"] = t
            self.cache[param_name] = entry
        return new

    update = __call__
