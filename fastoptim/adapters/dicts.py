"""Optimizers with ``update(params, grads)`` over dicts or lists, as in "Deep Learning from Scratch"
(common/optimizer.py).

    from fastoptim.adapters.dicts import SGD, AdaGrad, Adam, Momentum, Nesterov, RMSprop

Convention: the book's. Momentum keeps the rate inside the velocity, ``v <- mu v - lr g; p <- p + v``; Nesterov's
form is ``p <- p + mu v - lr g`` with the new v; Adam adds 1e-7 to the root of the uncorrected mean ("eps-hat"),
AdaGrad and RMSprop add it to the root of `h`. Arrays change in place; an entry of `params` that is a Python number is
rebound to a new one. States are made at the first update, under the names of the parameters (`v`; `m` and `v`; `h`).

Options of other books and libraries: ``eps_mode="torch"`` adds eps to the root of the corrected mean, as the paper,
PyTorch, JAX and most code written from the paper do; ``AdaGrad(eps_mode="root")`` and ``RMSprop(eps_mode="root")``
divide by ``sqrt(h + eps)``, as river, Keras and Optax do; ``momentum_mode="torch"`` keeps the rate outside the
velocity; ``partial=True`` updates only parameters that have gradients, for sparse gradients, with one step count.
Python numbers are gathered into one array, and their states are 0-d arrays; a loop in Python over numbers alone is
quicker, and one NumPy array in their place quicker than both. A signal, such as that of Ctrl-C, never leaves a step
half done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from itertools import starmap
from typing import Any

from ..common.validation import flag, real, steps_taken
from ._collection import Collection, States
from ._update import (
    Attributes,
    adagrad_coefficients,
    adam_coefficients,
    no_shallow_copy,
    rmsprop_coefficients,
    velocity_coefficients,
)

__all__ = ["SGD", "AdaGrad", "Adam", "Momentum", "Nesterov", "RMSprop"]

Params = MutableMapping[Any, Any] | list[Any]
Grads = Mapping[Any, Any] | list[Any]


def _keys(what: str, given: Any) -> Any:
    """The names of `given`, or the positions in a list, to iterate over and to look for."""
    if isinstance(given, list):
        return range(len(given))
    if not hasattr(given, "keys"):
        raise TypeError(f"{what} must be a dict or list of arrays or numbers, got {type(given).__name__}")
    return given


class _Optimizer(Attributes):
    _rule: str
    _states: tuple[str, ...] = ()  # names of the attributes that hold them
    _coefficients: Callable[[], tuple[float, ...]]  # those of the next step

    def __init__(self, partial: bool) -> None:
        self.partial = flag("partial", partial)
        self._collection = Collection(self._rule, self._states)

    def update(self, params: Params, grads: Grads) -> None:
        """Update every entry of `params`, a dict or a list, by that of `grads`."""
        coefficients = self._coefficients()
        known, with_gradients = _keys("params", params), _keys("grads", grads)
        keys, there = (with_gradients, known) if self.partial else (known, with_gradients)
        keys = list(keys)
        missing = [key for key in keys if key not in there]
        if isinstance(grads, list) and len(grads) > len(params):
            raise ValueError(f"expected {len(params)} gradients, got {len(grads)}")
        if missing:
            what = "parameters" if self.partial else "gradients"
            hint = "" if self.partial else "; with partial=True only parameters that have gradients are updated"
            raise KeyError(f"no {what} for {missing}{hint}")
        if not keys:
            self._collection.count[0] += 1
            return

        def write(targets: Sequence[Any], values: Sequence[Any]) -> Iterator[None]:
            pairs = zip(targets, values, strict=True)
            return map(params.update, (pairs,)) if type(params) is dict else starmap(params.__setitem__, pairs)

        plain = type(params) in (dict, list)
        values, gradients = [params[key] for key in keys], [grads[key] for key in keys]
        states = [getattr(self, name) for name in self._states]
        self._collection.step(states, keys, keys, values, gradients, coefficients, keys, write, plain)

    __copy__ = no_shallow_copy

    def __getstate__(self) -> dict[str, Any]:  # public attributes alone: what is native is made anew
        public = {name: value for name, value in vars(self).items() if name != "_collection"}
        return public | {"iter": self._collection.count[0]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        steps = vars(self).pop("iter")
        self._collection = Collection(self._rule, self._states)
        self._collection.count[0] = steps


class SGD(_Optimizer):
    """``p <- p - lr * g``."""

    _rule = "sgd"

    def __init__(self, lr: float = 0.01, *, partial: bool = False):
        super().__init__(partial)
        self.lr = lr

    def _coefficients(self) -> tuple[float, ...]:
        return (real("lr", self.lr),)


class Momentum(_Optimizer):
    """``v <- momentum * v - lr * g; p <- p + v``."""

    _rule, _states = "momentum", ("v",)
    v = States()

    def __init__(
        self, lr: float = 0.01, momentum: float = 0.9, *, momentum_mode: str = "lr_inside", partial: bool = False
    ):
        super().__init__(partial)
        self.lr, self.momentum, self.momentum_mode = lr, momentum, momentum_mode

    def _coefficients(self) -> tuple[float, ...]:
        mu, lr = real("momentum", self.momentum), real("lr", self.lr)
        return velocity_coefficients(mu, lr, self._rule == "nesterov", self.momentum_mode)


class Nesterov(Momentum):
    """``v <- momentum * v - lr * g; p <- p + momentum * v - lr * g``."""

    _rule = "nesterov"


class Adam(_Optimizer):
    """Adam, in the "eps-hat" form unless `eps_mode` says otherwise."""

    _rule, _states = "adam", ("m", "v")
    m, v = States(), States()

    def __init__(
        self,
        lr: float = 0.001,
        beta1: float = 0.9,
        beta2: float = 0.999,
        *,
        eps: float = 1e-7,
        eps_mode: str = "hat",
        partial: bool = False,
    ):
        super().__init__(partial)
        self.lr, self.beta1, self.beta2, self.eps, self.eps_mode = lr, beta1, beta2, eps, eps_mode

    def _coefficients(self) -> tuple[float, ...]:
        return adam_coefficients(self.iter + 1, self.lr, self.beta1, self.beta2, self.eps, self.eps_mode)

    @property
    def iter(self) -> int:
        """The number of updates so far."""
        return self._collection.count[0]

    @iter.setter
    def iter(self, value: int) -> None:
        self._collection.count[0] = steps_taken("iter", value)


class AdaGrad(_Optimizer):
    """``h <- h + g**2; p <- p - lr * g / (sqrt(h) + eps)``."""

    _rule, _states = "rmsprop", ("h",)
    h = States()

    def __init__(self, lr: float = 0.01, *, eps: float = 1e-7, eps_mode: str = "torch", partial: bool = False):
        super().__init__(partial)
        self.lr, self.eps, self.eps_mode = lr, eps, eps_mode

    def _coefficients(self) -> tuple[float, ...]:
        return adagrad_coefficients(self.lr, self.eps, self.eps_mode)


class RMSprop(_Optimizer):
    """``h <- decay_rate * h + (1 - decay_rate) * g**2; p <- p - lr * g / (sqrt(h) + eps)``."""

    _rule, _states = "rmsprop", ("h",)
    h = States()

    def __init__(
        self,
        lr: float = 0.01,
        decay_rate: float = 0.99,
        *,
        eps: float = 1e-7,
        eps_mode: str = "torch",
        partial: bool = False,
    ):
        super().__init__(partial)
        self.lr, self.decay_rate, self.eps, self.eps_mode = lr, decay_rate, eps, eps_mode

    def _coefficients(self) -> tuple[float, ...]:
        return rmsprop_coefficients(self.lr, "decay_rate", self.decay_rate, self.eps, self.eps_mode)
