"""Validates hyperparameters and turns them into what a step does: a kernel and its scalars."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar, cast

import numpy as np

from ..common.validation import choice, count, flag, real
from ..rules import coefficients as k
from ..rules import measures
from ..rules.table import Kernel

T = TypeVar("T")
BELOW_ONE = (0.0, 1.0)  # what is allowed of numbers such as the share that a mean keeps of itself


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
        if getattr(self.coefficients, "func", None) is not k.adam_coefficients or self.measured is not None:
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
        if self.measured is other.measured is None:
            return self.kernel is other.kernel or self.kernel == other.kernel
        return self.kernels == other.kernels


class Checked(NamedTuple):
    """The hyperparameters of a group as they are given, what checks have made of each, and what they come to."""

    given: tuple[Any, ...]
    values: dict[str, Any]
    spec: UpdateSpec


class Hyper(Generic[T]):
    """A hyperparameter as its class states it, and as an attribute: read is what all groups share.

    `allowed` are the choices of a string, or (low, below) for numbers, in place of "finite and >= 0". Set is one value,
    or a list of one per group.
    """

    def __init__(self, default: T, allowed: tuple[Any, ...] | None = None) -> None:
        self.default, self.allowed = default, allowed

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, optimizer: Any, owner: Any = None) -> T:
        if optimizer is None:
            return cast(T, self)
        first, *others = [group[self.name] for group in optimizer.param_groups]
        if others and any(value != first for value in others):
            raise ValueError(
                f"the groups have different values of {self.name}: read opt.param_groups[i][{self.name!r}]"
            )
        found: T = first
        return found

    def __set__(self, optimizer: Any, value: T | list[T]) -> None:
        optimizer._set(self.name, value if isinstance(value, list) else [value] * len(optimizer.param_groups))


class Rate(Hyper[float]):
    """The learning rate, which reads as a float; a tuple sets one per group, too."""

    def __get__(self, optimizer: Any, owner: Any = None) -> float:
        rates = set() if optimizer is None else {float(group["lr"]) for group in optimizer.param_groups}
        return rates.pop() if len(rates) == 1 else super().__get__(optimizer, owner)

    def __set__(self, optimizer: Any, value: Any) -> None:
        rates = list(value) if isinstance(value, (list, tuple)) else [value] * len(optimizer.param_groups)
        optimizer._set(self.name, rates)


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


def checked_rate(lr: Any) -> float:
    if type(lr) is float and lr >= 0.0:
        return real("lr", lr, 0.0)
    if callable(lr):
        raise TypeError(
            "lr must be a number: set opt.lr = schedule(step) before each step, or let fit(..., lr=schedule) do it"
        )
    if isinstance(lr, (list, tuple)):
        raise TypeError(
            f"lr must be a number, got {lr!r}: groups take rates of their own, [{{'params': a, 'lr': 0.1}}, ...]; "
            "opt.lr = [...] sets them anew"
        )
    try:
        return real("lr", lr, 0.0)
    except ValueError as error:
        raise ValueError(f"{error}{': to climb, say maximize=True' if lr < 0 else ''}") from None


def kind_of_decay(lr: float, weight_decay: float, apart: bool, mode: str = "lr") -> tuple[str, float]:
    """One of `rules.table.DECAYS` and its coefficient; `apart` is decoupled weight decay, which alone has a mode."""
    if mode != "lr" and not apart:
        raise ValueError(f"decay_mode={mode!r} is for decoupled weight decay (AdamW, decoupled_weight_decay=True)")
    if not weight_decay:
        return "none", 0.0
    return ("decoupled", k.decoupled_coefficient(lr, weight_decay, mode)) if apart else ("coupled", weight_decay)


def check_of(name: str, default: Any, allowed: tuple[Any, ...] | None = None) -> Callable[[Any], Any]:
    """What checks a hyperparameter and converts it, by the type of its default; None is checked where it is used.

    `allowed` are the choices of a string, or (low, below) for numbers, in place of "finite and >= 0".
    """
    limits = allowed or (0.0,)
    if name == "lr":
        return checked_rate
    if default is None:
        return lambda value: value
    if isinstance(default, bool):
        return partial(flag, name)
    if isinstance(default, str):
        return lambda value: choice(name, value, allowed or ())
    if isinstance(default, int):
        return lambda value: count(name, value, 0)
    if isinstance(default, tuple):
        return lambda value: _numbers(name, value, len(default), limits)
    return lambda value: real(name, value, *limits)


def _numbers(name: str, value: Any, size: int, limits: tuple[float, ...]) -> tuple[float, ...]:
    numbers = value.tolist() if isinstance(value, np.ndarray) else value
    if not isinstance(numbers, (tuple, list)) or len(numbers) != size:  # sets, for example, have no order
        raise TypeError(f"{name} must be {'a pair of' if size == 2 else 'three'} numbers, got {value!r}")
    return tuple([real(f"{name}[{i}]", x, *limits) for i, x in enumerate(numbers)])


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
