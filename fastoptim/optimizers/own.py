"""`rule`: a user's own update rule as an optimizer class, with kernels that are compiled from it."""

from __future__ import annotations

import copyreg
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import Any, cast, overload

import numpy as np

from ..arrays.storage import MASTER, Storage, scale_name
from ..backends import Backend, available, choose, get_backend, resolve
from ..common.public import public
from ..common.validation import check_range, choice, count, flag, real, unknown_name
from ..common.warning import warn
from ..rules.language import own_rule
from ..rules.table import Kernel, Rule
from .base import Optimizer
from .groups import fixed
from .hyperparameters import Checked, Hyper, UpdateSpec, check_of, checked_rate, kind_of_decay
from .one_array import dtype_of, update_array, valid_spec

GIVES = ("step", "parameter")


@dataclass(frozen=True)
class _Own:
    """What `rule` was given, checked."""

    rule: Rule
    coefficients: Callable[..., Any]
    counts: bool  # whether the coefficients depend on t
    defaults: Mapping[str, Any]  # hyperparameter -> its default, or `inspect.Parameter.empty`
    decay: str | None

    def numbers(self, hyperparameters: Mapping[str, Any], t: int) -> tuple[float, ...]:
        """The coefficients of step t; TypeError or ValueError that names one."""
        given = {**hyperparameters, **({"t": t} if self.counts else {})}
        try:
            found = self.coefficients(**given)
        except (ArithmeticError, ValueError) as error:
            named = ", ".join(f"{name}={value!r}" for name, value in given.items())
            raise ValueError(f"coefficients({named}): {type(error).__name__}: {error}") from error
        names = self.rule.coefficients
        if isinstance(found, Mapping):
            if set(found) != set(names):
                raise ValueError(f"coefficients must return {list(names)}, got {list(found)}")
            found = [found[name] for name in names]
        if not isinstance(found, Iterable) or isinstance(found, (Set, bytes)):  # a set has no order
            raise TypeError(f"coefficients must return {list(names)}, as a dict or tuple, got {found!r}")
        values = tuple(found)
        if len(values) != len(names):
            raise ValueError(f"coefficients must return {list(names)}, got {len(values)} numbers")
        step = f" of step {t}" if self.counts else ""
        return tuple(real(f"coefficient {name}{step}", x) for name, x in zip(names, values, strict=True))

    def checks(self) -> dict[str, Callable[[Any], Any]]:
        """How each hyperparameter is checked."""
        own = {name: partial(_like, name, default) for name, default in self.defaults.items()}
        decay = {} if self.decay is None else {"weight_decay": check_of("weight_decay", 0.0)}
        return {**own, **decay, "maximize": check_of("maximize", False)}

    def update(self, o: Any) -> UpdateSpec:
        """What checked hyperparameters come to."""
        given = {name: getattr(o, name) for name in self.defaults}
        share = 0.0 if self.decay is None else o.weight_decay
        decay, coefficient = kind_of_decay(o.lr, share, self.decay == "decoupled")
        first = self.numbers(given, 1)  # what is wrong with them shows before a step
        numbers = partial(self.numbers, given) if self.counts else first
        return UpdateSpec(Kernel(self.rule, decay), (-1.0 if o.maximize else 1.0, coefficient), numbers)


def _like(name: str, default: Any, value: Any) -> Any:
    """A hyperparameter, checked for being of the kind of its default."""
    if name == "lr":
        return checked_rate(value)
    if isinstance(default, bool):
        return flag(name, value)
    if isinstance(default, str):
        if not isinstance(value, str):
            raise TypeError(f"{name} must be a string, got {value!r}")
        return value
    if isinstance(default, tuple):
        if not isinstance(value, tuple) or len(value) != len(default):
            raise TypeError(f"{name} must be {len(default)} numbers, got {value!r}")
        return tuple(_like(f"{name}[{i}]", like, x) for i, (x, like) in enumerate(zip(value, default, strict=True)))
    if value is None and default is None:
        return None
    number = real(name, value)
    return value if type(value) is int else number


class _OwnClass(type):
    """The type of classes made by `rule`: a pickle names the variable that holds them."""


def _variable(cls: _OwnClass) -> str:
    names = vars(sys.modules.get(cls.__module__, object()))
    return next((name for name, value in names.items() if value is cls), cls.__qualname__)


copyreg.pickle(_OwnClass, _variable)


class OwnOptimizer(Optimizer, metaclass=_OwnClass):
    """Base of the optimizers that `fastoptim.rule` makes; hyperparameters are keywords."""

    _own: _Own

    def __init__(
        self,
        params: Any,
        *unnamed: Any,
        backend: str = "auto",
        threads: int | None = None,
        state_dir: Any = None,
        memory_budget: int | str | None = None,
        max_norm: float | None = None,
        clip: str = "norm",
        **hyperparameters: Any,
    ):
        if unnamed:
            raise TypeError(f"{type(self).__name__} takes hyperparameters by name, as in (params, lr={unnamed[0]!r})")
        storage: Any = {name: hyperparameters.pop(name) for name in Storage._fields if name in hyperparameters}
        values = self._values(hyperparameters)
        super().__init__(params, values, backend, threads, state_dir, memory_budget, max_norm, clip, **storage)

    @classmethod
    def _values(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        values = dict(cls._own.defaults)
        if cls._own.decay is not None:
            values["weight_decay"] = 0.0
        values["maximize"] = False
        if unknown := [name for name in given if name not in values]:
            lacking = "; fo.rule(..., decay=) gives it weight_decay" if unknown[0] == "weight_decay" else ""
            raise TypeError(unknown_name(cls.__name__, unknown[0], values) + lacking)
        values |= given
        if missing := [name for name, value in values.items() if value is inspect.Parameter.empty]:
            raise TypeError(f"{cls.__name__} needs a value for {', '.join(missing)}")
        return values

    @classmethod
    def _checked(
        cls, given: tuple[Any, ...], dtypes: Iterable[np.dtype[Any]] = (), known: Checked | None = None
    ) -> Checked:
        for name, first in cls._own.rule.initial.items():
            if not isinstance(first, str):
                for dtype in dtypes:
                    check_range(f"initial[{name!r}]", first, dtype)
        return super()._checked(given, dtypes, known)

    @staticmethod
    def _resolve(name: str, leaves: tuple[Any, ...]) -> Backend:
        if name == "c":
            raise ValueError(
                "backend='c' has no kernels for a rule of your own, as those are compiled when fastoptim is installed; "
                "backend='auto' takes Numba's, with the same bits"
            )
        chosen = resolve(name, leaves)
        if chosen.runs_own_rules:
            return chosen
        missing = available("numba")
        if missing is not None:
            warn(f"{missing}; a rule of your own runs on NumPy: same numbers, slower")
        return get_backend("numpy" if missing else "numba")

    @classmethod
    def update(
        cls,
        p: Any,
        g: Any,
        *states: Any,
        step: int,
        grad_scale: float = 1.0,
        backend: str = "auto",
        threads: int | None = None,
        **hyperparameters: Any,
    ) -> None:
        """One update of arrays that the caller owns, in place on `p` and the states, like those of `functional`.

        Parameters
        ----------
        p, g, *states : array
            Parameter, gradient and the rule's states in its order, of one shape and dtype; states that the rule gives
            no first value begin at zeros.
        step : int
            Number of this step, from 1.
        grad_scale : float
            Factor for g, applied first.
        backend, threads, **hyperparameters
            As for the class.

        Raises
        ------
        TypeError, ValueError
            Bad array or hyperparameter; nothing was changed.
        """
        chosen = cls._resolve(backend, (p,))
        spec = valid_spec(cls, dtype_of(chosen, p), *cls._values(hyperparameters).values())
        names = spec.kernel.rule.states
        if len(states) != len(names):
            raise TypeError(f"{cls.__name__}.update: expected {len(names)} states {list(names)}, got {len(states)}")
        number = choose("numpy", threads, p)[1]
        scalars = spec.scalars(count("step", step))
        update_array(chosen, spec.kernel, "p", p, g, states, scalars, number, grad_scale)


@overload
def rule(
    function: Callable[..., Any],
    *,
    coefficients: Callable[..., Any],
    states: str | Sequence[str] = ...,
    decay: str | None = ...,
    initial: Mapping[str, float | str] | None = ...,
    squares: str | Sequence[str] = ...,
    gives: str = ...,
    name: str | None = ...,
) -> type[OwnOptimizer]: ...


@overload
def rule(
    function: None = ...,
    *,
    coefficients: Callable[..., Any],
    states: str | Sequence[str] = ...,
    decay: str | None = ...,
    initial: Mapping[str, float | str] | None = ...,
    squares: str | Sequence[str] = ...,
    gives: str = ...,
    name: str | None = ...,
) -> Callable[[Callable[..., Any]], type[OwnOptimizer]]: ...


@public
def rule(
    function: Callable[..., Any] | None = None,
    *,
    coefficients: Callable[..., Any],
    states: str | Sequence[str] = (),
    decay: str | None = None,
    initial: Mapping[str, float | str] | None = None,
    squares: str | Sequence[str] = (),
    gives: str = "step",
    name: str | None = None,
) -> Any:
    """Make an optimizer class of an update rule of your own; also a decorator.

    The class is like any other of fastoptim: parameter groups, gradients of None, clipping, skipping, checkpoints,
    `fit`, and ``update`` for arrays that you own. Its kernels are compiled from the function for Numba or CUDA, with
    the bits of the function itself, run by NumPy; the C backend has none, so that ``backend="auto"`` means Numba.

    Parameters
    ----------
    function : callable
        ``function(g, p, *states, *coefficients) -> (step, *new states)``, written with ``def``: gradient, parameter,
        states and coefficients of one element. It holds assignments and one return, made of ``+ - * /``, negation, and
        NumPy's ``sqrt`` and ``where`` with one comparison.
    coefficients : callable
        ``coefficients(lr=..., ...)`` from hyperparameters, with their defaults, to the numbers that `function` takes
        last: a dict by name, or a tuple in their order. It runs in float64 when the class is made, whenever a
        hyperparameter has changed, and at every step if it takes ``t``, the number of the step, from 1. One
        hyperparameter must be ``lr``.
    states : str or sequence of str
        Names of the states.
    decay : {"coupled", "decoupled"}, optional
        Gives the class the hyperparameter ``weight_decay`` (0 by default): added to the gradient, or
        ``p - (lr * weight_decay * p + step)``.
    initial : mapping, optional
        State -> what it holds before the first step: a number, "parameter" for a copy of the parameter, or the name of
        a hyperparameter. The others begin at zero.
    squares : str or sequence of str, optional
        The states that are means of squares: ``state_dtype="float8"`` stores those as their roots.
    gives : {"step", "parameter"}
        Whether `function` returns what is subtracted from the parameter, or the new parameter.
    name : str, optional
        Name of the class, which is in its checkpoints; default: that of the function.

    Returns
    -------
    type
        Subclass of `Optimizer`, ``cls(params, lr=..., ..., maximize=False, backend="auto", threads=None)``. Pickles
        find it if a variable of its module holds it.

    Raises
    ------
    SyntaxError
        The function holds something that no rule may hold, such as a power or a constant: the message says what,
        in which line, and what to write instead.
    TypeError, ValueError
        Something else is not as described, or the source of the function cannot be found.

    Examples
    --------
    >>> import numpy as np, fastoptim as fo
    >>> def heavy_ball(g, p, v, mu, lr):
    ...     v = mu * v + lr * g
    ...     return v, v
    >>> def numbers(lr=0.1, mu=0.9):
    ...     return {"mu": mu, "lr": lr}
    >>> HeavyBall = fo.rule(heavy_ball, states="v", coefficients=numbers)
    >>> w = np.ones(2)
    >>> opt = HeavyBall(w, lr=0.25, backend="numpy")
    >>> for _ in range(2):
    ...     info = opt.step(np.ones(2))
    >>> w
    array([0.275, 0.275])
    """
    module = sys._getframe(1).f_globals.get("__name__", "__main__")
    make = partial(_make, coefficients, module, states, decay, initial, squares, gives, name)
    return make if function is None else make(function)


def _make(
    coefficients: Any,
    module: str,
    states: Any,
    decay: Any,
    initial: Any,
    squares: Any,
    gives: Any,
    name: Any,
    function: Any,
) -> type[OwnOptimizer]:
    for what, value in (("states", states), ("squares", squares)):
        if not isinstance(value, (str, list, tuple)):
            raise TypeError(f"{what} must be a name or a tuple of names, got {value!r}")
    if not isinstance(initial or {}, Mapping):
        raise TypeError(f"initial must be a mapping from states to what they hold at first, got {initial!r}")
    if name is not None and not (isinstance(name, str) and name.isidentifier()):
        raise TypeError(f"name must be that of a class, got {name!r}")
    states = (states,) if isinstance(states, str) else tuple(states)
    for state in states:
        named = isinstance(state, str) and state.isidentifier() and state not in ("g", "p", "step", MASTER)
        if not named or states.count(state) > 1 or scale_name(state) in states:
            raise ValueError(
                f"states must be a name, or a tuple of different names other than g, p, step, {MASTER} and that of a "
                f"state with _scale behind it, got {states!r}"
            )
    choice("gives", gives, GIVES)
    if decay is not None and choice("decay", decay, ("coupled", "decoupled")) == "decoupled" and gives == "parameter":
        raise ValueError("decay='decoupled' is subtracted with the step, so that it needs gives='step'")
    defaults = _hyperparameters(coefficients)
    counts = defaults.pop("t", None) is not None
    if "lr" not in defaults:
        raise ValueError("coefficients must take lr, the learning rate that schedules and `fit` set")
    for taken in (
        *(("weight_decay",) if decay else ()),
        *(name for name in defaults if name.startswith("_")),
        "maximize",
        *(x for x in dir(OwnOptimizer) if x != "lr"),
        *_INIT,
    ):
        if taken in defaults:
            raise ValueError(f"coefficients: a hyperparameter cannot be called {taken!r}, which the class has already")
    squares = (squares,) if isinstance(squares, str) else tuple(squares)
    if not set(squares) <= set(states):
        raise ValueError(f"squares: there is no state {next(x for x in squares if x not in states)!r}")
    first = dict(initial or {})
    for state, value in first.items():
        if state not in states:
            raise ValueError(f"initial: there is no state {state!r}; states are {list(states)}")
        if isinstance(value, str):
            numbers = [name for name, default in defaults.items() if not isinstance(default, (tuple, str, bool))]
            choice(f"initial[{state!r}]", value, ["parameter", *numbers])
        else:
            first[state] = real(f"initial[{state!r}]", value)
    stated = own_rule(function, states, gives, first, squares)
    own = _Own(stated, coefficients, counts, defaults, decay)
    body: dict[str, Any] = {
        "__module__": module,
        "__qualname__": name or function.__name__,
        "__doc__": inspect.getdoc(function) or f"The update rule {function.__name__}, as an optimizer.",
        "_own": own,
        "_rules": (stated,),
        "_checks": own.checks(),
        **{name: Hyper(None) for name in own.checks() if name not in ("lr", "maximize")},
        "_update": staticmethod(own.update),
    }
    made: Any = _OwnClass(name or function.__name__, (OwnOptimizer,), body)
    if all(value is not inspect.Parameter.empty for value in defaults.values()):
        made._checked(tuple(made._values({}).values()))
    return cast(type[OwnOptimizer], made)


_INIT = (
    *("params", "names", "backend", "threads", "state_dir", "memory_budget", "max_norm", "clip"),
    *("self", "cls", "p", "g", "step", "grad_scale", *Storage._fields),
)


def _hyperparameters(coefficients: Any) -> dict[str, Any]:
    """Name -> default of each argument of `coefficients`."""
    try:
        found = inspect.signature(coefficients).parameters.values()
    except (TypeError, ValueError) as error:
        raise TypeError(f"coefficients must be a function of the hyperparameters, got {coefficients!r}") from error
    defaults = {}
    for argument in found:
        if argument.kind not in (argument.POSITIONAL_OR_KEYWORD, argument.KEYWORD_ONLY):
            raise TypeError(f"coefficients: expected arguments with names of their own, got {argument}")
        defaults[argument.name] = fixed(argument.default)
    return defaults
