"""The base of optimizers that are hyperparameters and coefficients, and nothing else.

A class states its hyperparameters once, each with its type and default, and what they come to in `_update`. From that
follow the arguments of ``__init__``, how each is checked (by the type of its default), and the attributes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, InitVar
from functools import cache
from inspect import Parameter, Signature, get_annotations, signature
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from ..arrays.storage import Storage
from ..common.validation import bound
from ..rules.measures import Measured
from ..rules.table import RULES, Kernel
from .base import Optimizer
from .hyperparameters import BELOW_ONE, Hyper, UpdateSpec, check_of, kind_of_decay


class Family(Optimizer):
    """Base of the optimizers that state their hyperparameters as a dataclass states its fields, and `_update`.

    ``name: Hyper[type] = Hyper(default)`` is an argument, in the order of the class, and an attribute; those behind
    ``_: KW_ONLY`` are given by name. Type checkers read the same.
    """

    params: InitVar[Any]
    _: KW_ONLY
    maximize: Hyper[bool] = Hyper(False)
    if TYPE_CHECKING:  # what every optimizer takes beside its hyperparameters; `SGD` describes them

        class _Threads:  # is given as a number or None, and read as a number
            def __get__(self, optimizer: Any, owner: Any = None) -> int: ...
            def __set__(self, optimizer: Any, value: int | None) -> None: ...

        backend: str = "auto"
        threads: _Threads = _Threads()  # type: ignore[override]
        state_dir: InitVar[Any] = None
        memory_budget: InitVar[int | str | None] = None
        max_norm: float | None = None
        clip: str = "norm"
        state_dtype: InitVar[str | None] = None
        rounding: InitVar[str] = "stochastic"
        master: InitVar[bool] = False
        seed: InitVar[int] = 0

    def __init_subclass__(cls) -> None:
        stated = _stated(cls)
        allowed = {p.name: getattr(cls, p.name).allowed for p in stated}
        cls._checks = {p.name: check_of(p.name, p.default, allowed[p.name]) for p in stated}
        cls._below_one = {name for name, limits in allowed.items() if limits == BELOW_ONE}
        super().__init_subclass__()
        if "__init__" not in vars(cls):
            cls.__init__ = _init_of(cls, stated)  # type: ignore[method-assign]


def _stated(cls: type) -> list[Parameter]:
    """The hyperparameters of a class and its bases, as arguments."""
    found = {}
    for base in reversed(cls.__mro__):
        by_name = False
        for name, annotation in get_annotations(base).items():
            by_name |= annotation == "KW_ONLY"
            if isinstance(hyper := vars(base).get(name), Hyper):
                kind = Parameter.KEYWORD_ONLY if by_name else Parameter.POSITIONAL_OR_KEYWORD
                told = annotation.removeprefix("Hyper[").removesuffix("]")
                found[name] = Parameter(name, kind, default=hyper.default, annotation=told)
    return sorted(found.values(), key=attrgetter("kind"))


def _init_of(cls: type[Optimizer], stated: list[Parameter]) -> Callable[..., None]:
    """The ``__init__`` of a class with these hyperparameters."""
    me, params, _, *options = signature(Optimizer.__init__).parameters.values()
    options[-1:] = signature(Storage.checked).parameters.values()
    own = Signature([*stated, *(p.replace(kind=p.KEYWORD_ONLY) for p in options)])

    def __init__(self: Optimizer, params: Any, *args: Any, **options: Any) -> None:
        given = bound(type(self).__name__, own, args, options).arguments
        defaults = {name: given.pop(name) for name in self._names}
        Optimizer.__init__(self, params, defaults, **given)

    __init__.__qualname__ = f"{cls.__qualname__}.__init__"
    __init__.__signature__ = own.replace(parameters=[me, params, *own.parameters.values()])  # type: ignore[attr-defined]
    return __init__


def spec_of(
    rule: str,
    o: Any,
    coefficients: Callable[..., tuple[float, ...]] | tuple[float, ...],
    *,
    weight_decay: float | None = None,
    decoupled: bool | None = None,
    first: tuple[float, ...] | None = None,
    advance: Callable[..., tuple[float, ...]] | None = None,
    measured: Measured | None = None,
) -> UpdateSpec:
    """The update by `rule`, up or down as `o` says, with its weight decay of the kind that the rule or `o` says."""
    if weight_decay is None:
        weight_decay = getattr(o, "weight_decay", 0.0)
    if decoupled is None:
        decoupled = getattr(o, "decoupled_weight_decay", "coupled" not in RULES[rule].decays)
    decay, coefficient = kind_of_decay(o.lr, weight_decay, decoupled, getattr(o, "decay_mode", "lr"))
    head = (-1.0 if o.maximize else 1.0, coefficient)
    return UpdateSpec(_kernel(rule, decay), head, coefficients, first, advance, measured)


@cache
def _kernel(rule: str, decay: str) -> Kernel:
    return Kernel(RULES[rule], decay)
