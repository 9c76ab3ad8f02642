"""One step of one array, for callers that keep nothing between steps, or count theirs themselves."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from functools import cache
from itertools import compress
from operator import is_
from sys import modules
from threading import local
from typing import Any

import numpy as np

from ..arrays.autograd import tell_of_views
from ..arrays.checks import DTYPES, check_dtype
from ..backends import ENVIRONMENT, VARIABLES, choose, get_backend, read_environment, takes_native_steps
from ..backends.base import Backend, Member, Runs
from ..rules.measures import Measured
from ..rules.table import Kernel, Scalars
from .base import Optimizer
from .groups import fixed
from .hyperparameters import UpdateSpec
from .measuring import Asked
from .update import PLAIN, Update


class ArrayStep:
    """Steps arrays by one kernel, whatever their shapes: small ones by one native call each.

    What the environment says about backend and threads is looked up where it has changed since the last call.
    """

    __slots__ = ("_backend", "_kernel", "_native", "_threads", "_values")

    def __init__(self, kernel: Kernel, backend: str = "auto", threads: int | None = None) -> None:
        self._kernel, self._backend, self._threads = kernel, backend, threads
        self._look_up()

    def _look_up(self) -> None:
        self._values = read_environment()
        native = takes_native_steps(self._backend, self._threads)
        self._native = _native_step(self._kernel) if native else None

    def __call__(
        self,
        name: str,
        p: Any,
        g: Any,
        states: tuple[Any, ...],
        scalars: Scalars,
        grad_scale: Any = 1.0,
        measured: Measured | None = None,
    ) -> None:
        """One step, in place, as by `Update.step`; errors call the parameter by `name`."""
        if self._native is not None and measured is None and type(grad_scale) is float and grad_scale == 1.0:
            if self._native(p, g, states, scalars, ENVIRONMENT, VARIABLES, self._values):
                if "torch" in modules:
                    tell_of_views((p,))
                return
            if not all(map(is_, self._values, read_environment())):
                self._look_up()
        backend, threads = choose(self._backend, self._threads, p)
        update_array(backend, self._kernel, name, p, g, states, scalars, threads, grad_scale, measured)

    def counted(
        self, p: Any, g: Any, states: tuple[Any, ...], scalars: Scalars, counts: dict[str, Any], after: dict[str, Any]
    ) -> bool:
        """Whether a native call could take the step, and ``counts.update(after)`` with it; else nothing has changed.

        `p` is a NumPy array. Both are called from within C, where no handler of a signal gets in between.
        """
        done = False
        if self._native is not None:
            environment = (ENVIRONMENT,), (VARIABLES,), (self._values,)
            done = _all_done(map(self._native, (p,), (g,), (states,), (scalars,), *environment), counts, after)
            if not done and not all(map(is_, self._values, read_environment())):
                self._look_up()
        if not done:
            backend, threads = choose(self._backend, self._threads, p)
            known = _KeptUpdate(backend, self._kernel, "p", p, threads)
            native = known.update.native_step if known.update.in_c else None
            done = _all_done(map(native, ((p,),), ((g,),), (states,), ((scalars,),)) if native else (), counts, after)
            known.keep()
        if done and "torch" in modules:
            tell_of_views((p,))
        return done


def _all_done(steps: Iterable[bool], counts: dict[str, Any], after: dict[str, Any]) -> bool:
    return bool(deque(map(counts.update, compress((after,), steps))))


@cache
def _native_step(kernel: Kernel) -> Callable[..., bool] | None:
    return get_backend("c").array_step(kernel)


_kept = local()  # an `Update` serves one thread at a time


def update_array(
    backend: Backend,
    kernel: Kernel,
    name: str,
    p: Any,
    g: Any,
    states: tuple[Any, ...],
    scalars: Scalars,
    threads: int,
    grad_scale: Any = 1.0,
    measured: Measured | None = None,
    t: int = 1,
    kept: Scalars = (),
) -> Scalars:
    """One step of one array, in place, by a chosen backend; returns what is `kept` where norms enter it."""
    known = _KeptUpdate(backend, kernel, name, p, threads, measured)
    update, asked = known.update, known.asked
    if asked is not None:
        asked.t, asked.kept = t, kept
    plain = type(grad_scale) is float and grad_scale == 1.0
    update.step((p,), (g,), states, (scalars,), PLAIN if plain else update.options(grad_scale))
    tell_of_views((p,))
    known.keep()
    return kept if asked is None else asked.kept


class _KeptUpdate:
    """The update for such an array, kept for the next one unless a step fails; what it asks for, where it measures."""

    __slots__ = ("_key", "_updates", "asked", "update")

    def __init__(
        self, backend: Backend, kernel: Kernel, name: str, p: Any, threads: int, measured: Measured | None = None
    ) -> None:
        self._updates: dict[Any, tuple[Update, Asked | None]] = _kept.__dict__.setdefault("updates", {})
        self._key: Any = None
        if type(p) is np.ndarray and p.dtype in DTYPES:
            self._key = (backend, kernel, name, p.shape, p.dtype, threads, measured)
        known = self._updates.pop(self._key, None)  # the handler of a signal may step meanwhile
        if known is None:
            backend.check_parameter(name, p)
            member = Member(name, *backend.describe(p))
            asked = None if measured is None else Asked(measured, math.prod(member.shape), 1, ())
            asking = None if asked is None else [asked]
            known = Update(backend, Runs.one(kernel, [member]), threads, asking=asking), asked
        self.update, self.asked = known

    def keep(self) -> None:
        if self._key is not None:
            if len(self._updates) >= 256:
                self._updates.clear()
            self._updates[self._key] = self.update, self.asked


def chosen_for(p: Any, backend: str, threads: int | None) -> tuple[Backend, int, np.dtype[Any]]:
    """Backend, number of threads and dtype for a step of `p`; TypeError or ValueError if none can step it."""
    chosen, number = choose(backend, threads, p)
    return chosen, number, dtype_of(chosen, p)


def dtype_of(backend: Backend, p: Any) -> np.dtype[Any]:
    """The dtype of an array; TypeError or ValueError if it can take no step by itself."""
    backend.check_parameter("p", p)
    dtype: np.dtype[Any] = backend.describe(p)[1]
    check_dtype("p", dtype)
    return dtype


def valid_spec(cls: type[Optimizer], dtype: np.dtype[Any], *values: Any) -> UpdateSpec:
    """The update of these hyperparameters, for a parameter of this dtype."""
    return cls._checked(tuple(map(fixed, values)), (dtype,)).spec
