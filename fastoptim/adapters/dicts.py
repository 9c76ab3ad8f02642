"""Optimizers with ``update(params, grads)`` over dicts, as in "Deep Learning from Scratch" (common/optimizer.py).

    from fastoptim.adapters.dicts import SGD, Adam, Momentum, Nesterov

Convention: the book's. Momentum keeps the rate inside the velocity, ``v <- mu v - lr g; p <- p + v``; Nesterov's
form is ``p <- p + mu v - lr g`` with the new v; Adam adds 1e-7 to the root of the uncorrected mean ("eps-hat"). Arrays
change in place; an entry of `params` that is a Python number is rebound to a new one. States are made at the first
update, under the names of the parameters (`v`; `m` and `v`).
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

from ..common.validation import real
from ._collection import Collection
from ._update import adam_coefficients, velocity_coefficients

__all__ = ["SGD", "Adam", "Momentum", "Nesterov"]

Params = MutableMapping[Any, Any]
Grads = Mapping[Any, Any]


class _Optimizer:
    _rule: str
    _states: tuple[str, ...] = ()  # names of the attributes that hold them

    def _collect(self) -> None:
        self._collection = Collection(self._rule, [getattr(self, name) for name in self._states])

    def _step(self, params: Params, grads: Grads, coefficients: tuple[float, ...]) -> None:
        keys = list(params)
        missing = [key for key in keys if key not in grads]
        if missing:
            raise KeyError(f"no gradients for {missing}")
        before = [params[key] for key in keys]
        after = self._collection.step(keys, before, [grads[key] for key in keys], coefficients, keys)
        for key, old, new in zip(keys, before, after, strict=True):
            if new is not old:
                params[key] = new

    def __getstate__(self) -> dict[str, Any]:  # public attributes alone: what is native is made anew
        return {name: value for name, value in vars(self).items() if name != "_collection"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._collect()


class SGD(_Optimizer):
    """``p <- p - lr * g``."""

    _rule = "sgd"

    def __init__(self, lr: float = 0.01):
        self.lr = lr
        self._collect()

    def update(self, params: Params, grads: Grads) -> None:
        """Update every entry of `params` by that of `grads`."""
        self._step(params, grads, (real("lr", self.lr),))


class Momentum(_Optimizer):
    """``v <- momentum * v - lr * g; p <- p + v``."""

    _rule, _states = "momentum", ("v",)

    def __init__(self, lr: float = 0.01, momentum: float = 0.9):
        self.lr, self.momentum = lr, momentum
        self.v: dict[Any, Any] = {}
        self._collect()

    def update(self, params: Params, grads: Grads) -> None:
        """Update every entry of `params` by that of `grads`."""
        self._step(params, grads, velocity_coefficients(real("momentum", self.momentum), real("lr", self.lr)))


class Nesterov(Momentum):
    """``v <- momentum * v - lr * g; p <- p + momentum * v - lr * g``."""

    _rule = "nesterov"

    def update(self, params: Params, grads: Grads) -> None:
        """Update every entry of `params` by that of `grads`."""
        mu, lr = real("momentum", self.momentum), real("lr", self.lr)
        self._step(params, grads, velocity_coefficients(mu, lr, nesterov=True))


class Adam(_Optimizer):
    """Adam with eps = 1e-7 in the "eps-hat" form."""

    _rule, _states = "adam", ("m", "v")

    def __init__(self, lr: float = 0.001, beta1: float = 0.9, beta2: float = 0.999):
        self.lr, self.beta1, self.beta2 = lr, beta1, beta2
        self.iter = 0
        self.m: dict[Any, Any] = {}
        self.v: dict[Any, Any] = {}
        self._collect()

    def update(self, params: Params, grads: Grads) -> None:
        """Update every entry of `params` by that of `grads`."""
        coefficients = adam_coefficients(self.iter + 1, self.lr, self.beta1, self.beta2, 1e-7, "hat")
        self._step(params, grads, coefficients)
        self.iter += 1
