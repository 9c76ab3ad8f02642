"""Optimizers for parameters that are objects with ``.data`` and ``.grad``: DeZero and many small frameworks.

    from fastoptim.adapters.objects import SGD, AdaGrad, Adam, MomentumSGD, RMSprop
    optimizer = Adam().setup(model)
    loss.backward()
    optimizer.update()            # or step()

Convention: DeZero's. `setup` takes a model with ``params()`` or ``parameters()``, or any iterable of parameters; a
gradient may be an array or an object with ``.data``, and a parameter whose ``.grad`` is None is left out. Momentum
keeps the rate inside the velocity; Adam adds eps to the root of the uncorrected mean ("eps-hat") and counts its updates
once for all parameters; AdaGrad adds eps to the root, and so does RMSprop, which is Chainer's. ``.data`` changes in
place; where it is a Python number it is replaced. Functions given to `add_hook` are called before each update with the
list of parameters that have gradients (weight decay, clipping).

Options of other frameworks: ``eps_mode="torch"`` adds eps to the root of the corrected mean, as the paper and PyTorch
do (DeZero and Chainer have "hat"); ``eps_mode="root"`` of AdaGrad and RMSprop adds it inside the root, as Chainer's
``eps_inside_sqrt=True``, Keras and Optax do; ``momentum_mode="torch"`` keeps the rate outside the velocity; `data` and
`grad` are the names of the attributes. Python numbers are gathered into one array, and their states are 0-d arrays;
a loop in Python over numbers alone is quicker. A signal, such as that of Ctrl-C, never leaves a step half done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import repeat
from types import MemberDescriptorType, WrapperDescriptorType
from typing import Any

import numpy as np

from ..common.validation import real, steps_taken
from ._collection import Collection, States
from ._update import Attributes, adagrad_coefficients, adam_coefficients, rmsprop_coefficients, velocity_coefficients

__all__ = ["SGD", "AdaGrad", "Adam", "MomentumSGD", "RMSprop"]


_PLAIN = (float, int, np.ndarray, np.generic)


def _values(grad: Any) -> Any:
    """The array (or number) behind a gradient; arrays have a ``.data`` of their own, which is not meant."""
    return grad if isinstance(grad, _PLAIN) else getattr(grad, "data", grad)


@lru_cache
def _is_plain(kind: type, name: str) -> bool:
    """Whether that attribute of such objects is set without Python code, such as that of a property."""
    if not isinstance(kind.__setattr__, WrapperDescriptorType):
        return False
    attribute = getattr(kind, name, None)
    return isinstance(attribute, MemberDescriptorType) or not hasattr(type(attribute), "__set__")


class _Optimizer(Attributes):
    _others, _only_arguments = ("target", "hooks"), ("data", "grad")  # which have names of their own
    _rule: str
    _states: tuple[str, ...] = ()  # names of the attributes that hold them

    def __init__(self, data: str = "data", grad: str = "grad") -> None:
        self._data, self._grad = data, grad
        self.target: Any = None
        self.hooks: list[Callable[[list[Any]], Any]] = []
        self._collection = Collection(self._rule, self._states)
        self._known: dict[int, Any] = {}  # keeps the parameters alive whose identities are keys

    def __getstate__(self) -> Any:
        raise TypeError("this optimizer cannot be copied or pickled: its states belong to the very objects it updates")

    def setup(self, target: Any) -> Any:
        """Choose what is updated; returns the optimizer."""
        if hasattr(target, "params") or hasattr(target, "parameters"):
            self.target = target
            return self
        if not isinstance(target, Iterable) or isinstance(target, Mapping):
            values = ", such as its values()" if isinstance(target, Mapping) else ""
            raise TypeError(
                "setup takes a model with params() or parameters(), or parameters in a list or another iterable"
                f"{values}, got {type(target).__name__}"
            )
        self.target = list(target)
        return self

    def add_hook(self, hook: Callable[[list[Any]], Any]) -> None:
        """Call ``hook(params)`` before each update."""
        self.hooks.append(hook)

    def _params(self) -> Iterable[Any]:
        if self.target is None:
            raise RuntimeError("call setup(model) first")
        for name in ("params", "parameters"):
            if hasattr(self.target, name):
                found: Iterable[Any] = getattr(self.target, name)()
                return found
        given: list[Any] = self.target
        return given

    def update(self) -> None:
        """Update every parameter that has a gradient."""
        params = list(self._params())
        try:
            params = [p for p in params if getattr(p, self._grad) is not None]
        except AttributeError as error:
            if any(isinstance(p, (np.ndarray, tuple, list, str)) for p in params):
                raise TypeError(
                    f"parameters must be objects with .{self._data} and .{self._grad}, got {type(params[0]).__name__}: "
                    "fastoptim.adapters.dicts updates arrays in dicts and lists"
                ) from error
            raise
        for hook in self.hooks:
            hook(params)
        if not params:
            self._collection.count[0] += 1
            return
        if len({id(p) for p in params}) < len(params):
            raise ValueError("a parameter is there twice: setup takes each once")

        def write(targets: Sequence[Any], values: Sequence[Any]) -> Iterator[None]:
            return map(setattr, targets, repeat(self._data), values)

        self._known.update((id(p), p) for p in params)
        grads = [_values(grad) for grad in map(getattr, params, repeat(self._grad))]
        values, keys, names = [*map(getattr, params, repeat(self._data))], [*map(id, params)], range(len(params))
        plain = all(map(_is_plain, set(map(type, params)), repeat(self._data)))
        states = [getattr(self, name) for name in self._states]
        self._collection.step(states, keys, params, values, grads, self._coefficients(), names, write, plain)

    step = update

    def zero_grad(self) -> None:
        """Fill the gradients of all parameters with zeros (numbers are set to 0.0); None stays None."""
        for p in self._params():
            grad = _values(getattr(p, self._grad))
            if isinstance(grad, np.ndarray):
                grad[...] = 0
            elif grad is not None:
                setattr(p, self._grad, 0.0)

    def _coefficients(self) -> tuple[float, ...]:
        raise TypeError("use SGD, MomentumSGD, AdaGrad, RMSprop or Adam")


class SGD(_Optimizer):
    """``p <- p - lr * g``."""

    _rule = "sgd"

    def __init__(self, lr: float = 0.01, *, data: str = "data", grad: str = "grad"):
        super().__init__(data, grad)
        self.lr = lr

    def _coefficients(self) -> tuple[float, ...]:
        return (real("lr", self.lr),)


class MomentumSGD(_Optimizer):
    """``v <- momentum * v - lr * g; p <- p + v``."""

    _rule, _states = "momentum", ("vs",)
    vs = States()

    def __init__(
        self,
        lr: float = 0.01,
        momentum: float = 0.9,
        *,
        momentum_mode: str = "lr_inside",
        data: str = "data",
        grad: str = "grad",
    ):
        super().__init__(data, grad)
        self.lr, self.momentum, self.momentum_mode = lr, momentum, momentum_mode

    def _coefficients(self) -> tuple[float, ...]:
        return velocity_coefficients(real("momentum", self.momentum), real("lr", self.lr), mode=self.momentum_mode)


class Adam(_Optimizer):
    """Adam, in the "eps-hat" form unless `eps_mode` says otherwise."""

    _rule, _states = "adam", ("ms", "vs")
    ms, vs = States(), States()

    def __init__(
        self,
        alpha: float = 0.001,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        *,
        eps_mode: str = "hat",
        data: str = "data",
        grad: str = "grad",
    ):
        super().__init__(data, grad)
        self.eps_mode = eps_mode
        self.alpha, self.beta1, self.beta2, self.eps = alpha, beta1, beta2, eps

    @property
    def t(self) -> int:
        """The number of updates so far."""
        return self._collection.count[0]

    @t.setter
    def t(self, value: int) -> None:
        self._collection.count[0] = steps_taken("t", value)

    def _coefficients(self) -> tuple[float, ...]:
        return adam_coefficients(self.t + 1, self.alpha, self.beta1, self.beta2, self.eps, self.eps_mode)


class AdaGrad(_Optimizer):
    """``h <- h + g**2; p <- p - lr * g / (sqrt(h) + eps)``."""

    _rule, _states = "rmsprop", ("hs",)
    hs = States()

    def __init__(
        self,
        lr: float = 0.001,
        eps: float = 1e-8,
        *,
        eps_mode: str = "torch",
        data: str = "data",
        grad: str = "grad",
    ):
        super().__init__(data, grad)
        self.lr, self.eps, self.eps_mode = lr, eps, eps_mode

    def _coefficients(self) -> tuple[float, ...]:
        return adagrad_coefficients(self.lr, self.eps, self.eps_mode)


class RMSprop(_Optimizer):
    """``h <- alpha * h + (1 - alpha) * g**2; p <- p - lr * g / (sqrt(h) + eps)``."""

    _rule, _states = "rmsprop", ("hs",)
    hs = States()

    def __init__(
        self,
        lr: float = 0.01,
        alpha: float = 0.99,
        eps: float = 1e-8,
        *,
        eps_mode: str = "torch",
        data: str = "data",
        grad: str = "grad",
    ):
        super().__init__(data, grad)
        self.lr, self.alpha, self.eps, self.eps_mode = lr, alpha, eps, eps_mode

    def _coefficients(self) -> tuple[float, ...]:
        return rmsprop_coefficients(self.lr, "alpha", self.alpha, self.eps, self.eps_mode)
