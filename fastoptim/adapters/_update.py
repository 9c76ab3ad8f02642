"""Update rules on arrays and coefficients of the caller's own: what every adapter is made of."""

from __future__ import annotations

import operator
from collections.abc import MutableSequence, Sequence
from dataclasses import replace
from functools import cache
from inspect import signature
from typing import Any

import numpy as np

from ..arrays.checks import DTYPES, instead_of, real_array
from ..arrays.rows import Rows
from ..backends import resolve
from ..backends.base import Member, Runs
from ..common.busy import Busy, exclusive
from ..common.threads import resolve_threads
from ..common.validation import check_no_method, choice, names_arguments, real, unknown_name
from ..optimizers.one_array import ArrayStep
from ..optimizers.update import TINY, Update
from ..rules import coefficients as of_rule
from ..rules.table import RULES, Kernel


class RuleUpdate:
    """``update(params, grads, states, coefficients)``, in place, repeatable at the cost of one native call.

    `rule` is a name in `fastoptim.rules.table.RULES`; `called` is what errors call its states, where the caller has
    names of its own. The only item of `counter` grows by one with each step, within the step.
    """

    def __init__(self, rule: str, *, counter: MutableSequence[int] | None = None, called: tuple[str, ...] = ()):
        self._kernel = _kernel(rule, "none", called)
        self._backend = resolve("auto", ())
        self._threads = resolve_threads(None)
        self._counter = counter
        self._busy: Busy = []
        self._names: Sequence[Any] = ()
        self._shapes: list[Any] = []
        self._update: Update | None = None

    def __call__(
        self,
        params: tuple[Any, ...],
        grads: tuple[Any, ...],
        states: tuple[Any, ...],
        coefficients: tuple[float, ...],
        names: Sequence[Any] = (),
    ) -> None:
        """One step. `states` are those of the first parameter, then those of the second, and so on.

        Raises TypeError or ValueError, with nothing changed, for arrays that do not go together, and RuntimeError while
        another thread is in here. Errors call parameters by `names`, or by their numbers.
        """
        with exclusive(self._busy):
            slots = len(self._kernel.rule.states)
            if len(grads) != len(params) or len(states) != len(params) * slots:
                raise ValueError(
                    f"expected {len(params)} gradients and {len(params) * slots} states, "
                    f"got {len(grads)} and {len(states)}"
                )
            self._fit(params, names).step(params, grads, states, ((1.0, 0.0, *coefficients),))

    def _fit(self, params: tuple[Any, ...], names: Sequence[Any]) -> Update:
        """The update for parameters of these shapes and dtypes, that of the last call where it can be."""
        shapes = [(getattr(p, "shape", None), getattr(p, "dtype", None)) for p in params]
        if self._update is None or shapes != self._shapes or names != self._names:
            members = []
            for i, p in enumerate(params):
                name = str(names[i] if names else i)
                self._backend.check_parameter(name, p)
                members.append(Member(name, *self._backend.describe(p)))
            self._update = Update(self._backend, Runs.one(self._kernel, members), self._threads, self._counter)
            self._shapes, self._names = shapes, names
        return self._update


def _kernel(rule: str, decay: str, called: tuple[str, ...]) -> Kernel:
    found = RULES[rule]
    return Kernel(replace(found, states=called) if called else found, decay)


class Attributes:
    """An optimizer that has the attributes named like its arguments: others, which would do nothing, are refused.

    Classes that users derive may have any.
    """

    _others: tuple[str, ...] = ()  # public attributes besides
    _only_arguments: tuple[str, ...] = ()

    def __init_subclass__(cls) -> None:
        if cls.__module__.rpartition(".")[0] == __package__ and "__init__" in vars(cls):
            setattr(cls, "__init__", names_arguments(vars(cls)["__init__"]))  # noqa: B010 (mypy refuses the other form)

    def __setattr__(self, name: str, value: Any) -> None:
        cls: Any = type(self)
        if not name.startswith("_") and not hasattr(cls, name) and cls.__module__.rpartition(".")[0] == __package__:
            known = _arguments(cls)
            if name not in known and name not in self._others:
                raise AttributeError(unknown_name(cls.__name__, name, known))
        check_no_method(self, name, value)
        super().__setattr__(name, value)


def no_shallow_copy(optimizer: Any) -> Any:
    """Stands for ``__copy__``."""
    raise TypeError("a shallow copy would share states with this optimizer; use copy.deepcopy")


@cache
def _arguments(cls: Any) -> list[str]:
    """The attributes that are named like arguments."""
    return [name for name in signature(cls).parameters if name not in cls._only_arguments]


def step_array(
    rule: str,
    p: Any,
    g: Any,
    states: tuple[Any, ...],
    coefficients: tuple[float, ...],
    *,
    scale: float = 1.0,
    decay: str = "none",
    decay_coefficient: float = 0.0,
    called: tuple[str, ...] = (),
) -> None:
    """One step of one array, in place, for functions that keep nothing between calls; `g` is cast if need be.

    Errors call the states as `RuleUpdate` does.
    """
    if not isinstance(p, np.ndarray):
        raise TypeError(f"expected a NumPy array to update, got {type(p).__name__}{instead_of(p)}")
    _array_step(rule, decay, called)("0", p, gradient_of(p, g), states, (scale, decay_coefficient, *coefficients))


@cache
def _array_step(rule: str, decay: str, called: tuple[str, ...]) -> ArrayStep:
    return ArrayStep(_kernel(rule, decay, called))


def velocity_coefficients(mu: float, lr: float, nesterov: bool = False, mode: str = "lr_inside") -> tuple[float, ...]:
    """For velocities that hold what is added: ``v <- mu v - lr g; p <- p + v`` (Nesterov: ``p + mu v - lr g``).

    In the other modes they hold gradients, as `fastoptim.SGD` says.
    """
    if choice("momentum_mode", mode, ("lr_inside", "torch") if nesterov else of_rule.MOMENTUM_MODES) != "lr_inside":
        coefficients = of_rule.nesterov_coefficients if nesterov else of_rule.momentum_coefficients
        return coefficients(lr, mu, mode=mode)
    return (mu, -lr, -1.0, mu, -lr) if nesterov else (mu, -lr, -1.0)


def as_dtype_of(p: Any, g: Any, name: Any = "0") -> Any:
    """`g`, the gradient of `p`, as an array of the dtype of `p`; TypeError unless it holds real numbers."""
    if isinstance(g, np.ndarray) and g.dtype == p.dtype:
        return g
    return real_array(f"gradient of parameter {name!r}", g).astype(p.dtype, copy=False)


def gradient_of(p: Any, g: Any, name: Any = "0") -> Any:
    """As `as_dtype_of`; `Rows` stay such, of values of that dtype."""
    if type(g) is not Rows:
        return as_dtype_of(p, g, name)
    return g if g.values.dtype == p.dtype else Rows(g.indices, g.values.astype(p.dtype), lazy=g.lazy)


def adam_coefficients(t: Any, lr: Any, beta1: Any, beta2: Any, eps: Any, mode: str = "torch") -> tuple[float, ...]:
    """Those of the rule, of whatever the caller passed; TypeError or ValueError for what is no step of Adam."""
    if not hasattr(t, "__index__") or operator.index(t) < 1:
        raise ValueError(f"Adam needs the number of the step, an integer t >= 1, got {t!r}")
    beta1, beta2 = real("beta1", beta1, 0.0, 1.0), real("beta2", beta2, 0.0, 1.0)
    choice("eps_mode", mode, of_rule.EPS_MODES)
    return of_rule.adam_coefficients(real("lr", lr), beta1, beta2, checked_eps(eps), mode, operator.index(t))


def checked_eps(eps: Any) -> float:
    """`eps` as a float; ValueError for one that does not keep 0 / 0 out of float32 arrays, whatever these are of."""
    number = real("eps", eps, 0.0)
    if 0.0 < number < TINY:
        raise ValueError(f"eps = {number:g} is zero in float32: give 0 or at least {TINY:.2g}")
    return number


def rmsprop_coefficients(lr: Any, name: str, alpha: Any, eps: Any, mode: str) -> tuple[float, ...]:
    """Those of the rule; errors call the decay rate by `name`. In mode "root" eps is inside the root."""
    alpha, eps = real(name, alpha, 0.0, 1.0), checked_eps(eps)
    return of_rule.rmsprop_coefficients(real("lr", lr), alpha, eps, choice("eps_mode", mode, of_rule.ROOT_MODES))


def adagrad_coefficients(lr: Any, eps: Any, mode: str) -> tuple[float, ...]:
    """Those of the rule `rmsprop` that sum squares."""
    mode = choice("eps_mode", mode, of_rule.ROOT_MODES)
    return of_rule.adagrad_coefficients(real("lr", lr), 0.0, checked_eps(eps), mode, 1)


def plain_floats(*arrays: Any) -> bool:
    """Whether all are NumPy arrays of one dtype, native float32 or float64, and can be updated in place."""
    dtype = getattr(arrays[0], "dtype", None)
    return dtype in DTYPES and all(isinstance(x, np.ndarray) and x.dtype == dtype for x in arrays)
