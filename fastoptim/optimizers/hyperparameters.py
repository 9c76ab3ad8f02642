"""Validates hyperparameters and turns them into what a step does: a kernel and its scalars."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import signature
from types import FunctionType
from typing import Any, Generic, NamedTuple, TypeVar, cast

import numpy as np

from .. import rules
from ..common.validation import choice, flag, real
from ..rules import measures
from ..rules.coefficients import cautious_adam_coefficients
from ..rules.table import RULES, Kernel

T = TypeVar("T")
Class = TypeVar("Class", bound=type)


class UpdateSpec(NamedTuple):
    """What a group's hyperparameters come to."""

    kernel: Kernel
    head: tuple[float, float]  # sign of the gradient (-1 to maximize), coefficient of the decay
    coefficients: Callable[[int], tuple[float, ...]] | tuple[float, ...]  # of step t, or the same at every step
    first: tuple[float, ...] | None = None  # those of the step that creates the states, where they differ
    advance: Callable[..., tuple[float, ...]] | None = None  # (t, *scalars) -> the rule's scalars after step t
    measured: measures.Measured | None = None  # norms that give each array scalars of its own

    def scalars(self, t: int, first: bool = False, kept: tuple[float, ...] = ()) -> tuple[float, ...]:
        """``(sign, decay, *coefficients)`` of the step with the number `t`, from 1; `kept` are the rule's scalars."""
        if first and self.first is not None:
            return self.head + self.first
        coefficients = self.coefficients
        return self.head + (coefficients if isinstance(coefficients, tuple) else coefficients(t, *kept))

    def native_scalars(self, taken: int) -> tuple[float, ...] | None:
        """What the C extension finds `scalars` from, for all steps behind the first `taken`; None if it cannot."""
        if getattr(self.coefficients, "func", None) is not rules.adam_coefficients or self.measured is not None:
            return None
        *numbers, mode = self.coefficients.args  # type: ignore[union-attr]
        return (*self.head, *numbers, float(mode == "hat"), taken)

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """That of the step, and those that measure before it."""
        asked = () if self.measured is None else self.measured.measures
        return (self.kernel, *(measure.kernel for measure in asked))

    def has_kernels_of(self, other: UpdateSpec) -> bool:
        """Whether a plan for the one serves the other."""
        if self.measured is None and other.measured is None:
            return self.kernel == other.kernel
        return self.kernels == other.kernels


class PerGroup(Generic[T]):
    """A hyperparameter as an attribute: read is what all groups share; set is one value, or a list of one per group."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, optimizer: Any, owner: Any = None) -> T:
        if optimizer is None:
            return cast(T, self)
        values = [group[self.name] for group in optimizer.param_groups]
        if any(value != values[0] for value in values):
            raise ValueError(
                f"the groups have different values of {self.name}: read opt.param_groups[i][{self.name!r}]"
            )
        return cast(T, values[0])

    def __set__(self, optimizer: Any, value: T | list[T]) -> None:
        optimizer._set(self.name, value if isinstance(value, list) else [value] * len(optimizer.param_groups))


class NotNeeded:
    """What code that comes from torch asks for; asking says why it is not there."""

    def __init__(self, why: str) -> None:
        self.why = why

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, optimizer: Any, owner: Any = None) -> Any:
        if optimizer is None:
            return self
        raise AttributeError(f"{type(optimizer).__name__} has no attribute {self.name!r}: {self.why}")


def head_of(maximize: Any, decay: float) -> tuple[float, float]:
    return -1.0 if flag("maximize", maximize) else 1.0, decay


def checked_rate(lr: Any) -> float:
    if callable(lr):
        raise TypeError(
            "lr must be a number: set opt.lr = schedule(step) before each step, or let fit(..., lr=schedule) do it"
        )
    if isinstance(lr, (list, tuple)):
        raise TypeError(
            f"lr must be a number, got {lr!r}: groups take rates of their own, [{{'params': a, 'lr': 0.1}}, ...]; "
            "opt.lr = [...] sets them anew"
        )
    return real("lr", lr, 0.0)


def kind_of_decay(lr: float, weight_decay: float, apart: bool, mode: Any) -> tuple[str, float]:
    """One of `rules.DECAYS` and its coefficient; `apart` is decoupled weight decay, which alone has a mode."""
    if choice("decay_mode", mode, rules.DECAY_MODES) != "lr" and not apart:
        raise ValueError(f"decay_mode={mode!r} is for decoupled weight decay (AdamW, decoupled_weight_decay=True)")
    if not weight_decay:
        return "none", 0.0
    return ("decoupled", rules.decoupled_coefficient(lr, weight_decay, mode)) if apart else ("coupled", weight_decay)


def sgd_spec(
    lr: Any,
    momentum: Any = 0.0,
    dampening: Any = 0.0,
    weight_decay: Any = 0.0,
    nesterov: Any = False,
    maximize: Any = False,
    momentum_mode: Any = "torch",
    decoupled_weight_decay: Any = False,
    decay_mode: Any = "lr",
) -> UpdateSpec:
    """What validated hyperparameters of SGD come to."""
    lr = checked_rate(lr)
    momentum = real("momentum", momentum, 0.0, 1.0)
    dampening = real("dampening", dampening)
    weight_decay = real("weight_decay", weight_decay, 0.0)
    mode = choice("momentum_mode", momentum_mode, rules.MOMENTUM_MODES)
    if dampening and mode != "torch":
        raise ValueError(f"momentum_mode={mode!r} has no dampening of its own; got dampening={dampening}")
    apart = flag("decoupled_weight_decay", decoupled_weight_decay)
    decay, coefficient = kind_of_decay(lr, weight_decay, apart, decay_mode)
    head = head_of(maximize, coefficient)
    if flag("nesterov", nesterov):
        if momentum == 0 or dampening != 0 or mode == "damped":
            raise ValueError("nesterov needs momentum > 0, dampening = 0 and a momentum_mode other than 'damped'")
        return UpdateSpec(Kernel(RULES["nesterov"], decay), head, rules.nesterov_coefficients(lr, momentum, mode))
    if not momentum:
        return UpdateSpec(Kernel(RULES["sgd"], decay), head, rules.sgd_coefficients(lr))
    coefficients = partial(rules.momentum_coefficients, lr, momentum, dampening, mode)
    return UpdateSpec(Kernel(RULES["momentum"], decay), head, coefficients(), first=coefficients(True))


def adam_spec(
    lr: Any,
    betas: Any = (0.9, 0.999),
    eps: Any = 1e-8,
    weight_decay: Any = 0.0,
    amsgrad: Any = False,
    maximize: Any = False,
    eps_mode: Any = "torch",
    decay_mode: Any = "lr",
    update_clip: Any = None,
    cautious: Any = False,
    decoupled: bool = False,
) -> UpdateSpec:
    """What validated hyperparameters of Adam (`decoupled`: AdamW) come to."""
    lr = checked_rate(lr)
    try:
        beta1, beta2 = betas
    except (TypeError, ValueError) as error:
        raise TypeError(f"betas must be a pair of numbers, got {betas!r}") from error
    beta1, beta2 = real("betas[0]", beta1, 0.0, 1.0), real("betas[1]", beta2, 0.0, 1.0)
    eps = real("eps", eps, 0.0)
    weight_decay = real("weight_decay", weight_decay, 0.0)
    mode = choice("eps_mode", eps_mode, rules.EPS_MODES)
    rule = "amsgrad" if flag("amsgrad", amsgrad) else "adam"
    decay, coefficient = kind_of_decay(lr, weight_decay, decoupled, decay_mode)
    coefficients = partial(rules.adam_coefficients, lr, beta1, beta2, eps, mode)
    measured = clipped = None if update_clip is None else measures.clipped(_threshold(update_clip, mode), decay)
    if flag("cautious", cautious):
        rule, measured = f"cautious_{rule}", measures.both(clipped, measures.cautious(decay))
        coefficients = partial(cautious_adam_coefficients, lr, beta1, beta2, eps, mode, 1.0)
    return UpdateSpec(Kernel(RULES[rule], decay), head_of(maximize, coefficient), coefficients, measured=measured)


def _threshold(update_clip: Any, eps_mode: str) -> float:
    """The root mean square above which an update is shortened."""
    if eps_mode != "torch":
        raise ValueError("update_clip looks at the corrected mean of squares, which eps_mode='torch' has")
    threshold = 1.0 if update_clip == "rms" else update_clip
    if isinstance(threshold, str) or not (threshold := real("update_clip", threshold, 0.0)):
        raise ValueError(f"update_clip must be None, 'rms' or a number > 0, got {update_clip!r}")
    return threshold


def text_of(value: Any) -> str:
    """A hyperparameter, written alike whatever the type of a number is."""
    if value is None or isinstance(value, (str, bool)):
        return repr(value)
    if isinstance(value, np.bool_):
        return repr(bool(value))
    if isinstance(value, (tuple, list)) or (isinstance(value, np.ndarray) and value.ndim):
        return f"({', '.join(map(text_of, value))})"
    try:
        return repr(float(value))
    except (TypeError, ValueError):
        return type(value).__qualname__


def with_defaults(**defaults: Any) -> Callable[[Class], Class]:
    """Give a class an ``__init__`` like that of its base, but for some defaults; type checkers see that of the base."""

    def decorate(cls: Class) -> Class:
        base: Any = cls.__init__  # type: ignore[misc]
        values = {name: p.default for name, p in signature(base).parameters.items() if p.default is not p.empty}
        values |= defaults
        init = FunctionType(base.__code__, base.__globals__, "__init__", None, base.__closure__)
        init.__kwdefaults__ = {name: values.pop(name) for name in base.__kwdefaults__}
        init.__defaults__ = tuple(values.values())
        init.__qualname__, init.__annotations__ = f"{cls.__qualname__}.__init__", base.__annotations__
        cls.__init__ = init  # type: ignore[misc]
        return cls

    return decorate
