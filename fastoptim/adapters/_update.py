"""One row of the law on arrays and coefficients of the caller's own: what every adapter is made of."""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import Any

import numpy as np

from ..backends import Run, resolve
from ..rules import RULES
from ..threads import resolve_threads


class Update:
    """``update(params, grads, states, coefficients)``, in place, repeatable at the cost of one native call.

    Parameters
    ----------
    rule : str
        A name in `fastoptim.rules.RULES`.
    decay : str
        Where a weight decay enters; its coefficient is an argument of the call.
    maximize : bool
        Negate the gradients.
    backend, threads
        As for `fastoptim.SGD`.
    """

    def __init__(
        self,
        rule: str,
        *,
        decay: str = "none",
        decay_coefficient: float = 0.0,
        maximize: bool = False,
        backend: str = "auto",
        threads: int | None = None,
    ):
        self._arguments = (rule, decay, decay_coefficient, maximize, backend, threads)
        self._rule = RULES[rule]
        self._row = (self._rule, decay, decay_coefficient)
        self._maximize = maximize
        self._backend = resolve(backend, ())
        self._threads = resolve_threads(threads)
        self._native: Any = None

    def __reduce__(self) -> Any:  # what is native is made anew
        return _make_update, self._arguments

    def __call__(
        self,
        params: tuple[Any, ...],
        grads: tuple[Any, ...],
        states: tuple[Any, ...],
        coefficients: tuple[float, ...],
        scale: float = 1.0,
    ) -> None:
        """One step. `states` are those of the first parameter, then those of the second, and so on.

        Raises TypeError or ValueError, with nothing changed, for arrays that do not go together.
        """
        native = self._native
        if native is not None and native.step(params, grads, states, [coefficients], scale):
            return
        self._checked(params, grads, states, coefficients, scale)

    def _checked(
        self,
        params: tuple[Any, ...],
        grads: tuple[Any, ...],
        states: tuple[Any, ...],
        coefficients: tuple[float, ...],
        scale: float,
    ) -> None:
        backend, slots = self._backend, self._rule.states
        if len(grads) != len(params) or len(states) != len(params) * len(slots):
            raise ValueError(
                f"expected {len(params)} gradients and {len(params) * len(slots)} states, "
                f"got {len(grads)} and {len(states)}"
            )
        written, read, forms = [], [], []
        for i, (p, g) in enumerate(zip(params, grads, strict=True)):
            name = str(i)
            own = states[i * len(slots) : (i + 1) * len(slots)]
            backend.check_parameter(name, p)
            shape, dtype = backend.describe(p)
            g = backend.check_companion(name, "gradient", g, shape, dtype)
            for slot, state in zip(slots, own, strict=True):
                backend.check_parameter(f"{slot} of {name}", state)
                backend.check_companion(name, slot, state, shape, dtype)
            written.append(backend.span(f"parameter {name!r}", p))
            written += [backend.span(f"a state of parameter {name!r}", state) for state in own]
            read.append(backend.span(f"gradient of parameter {name!r}", g))
            forms.append((p, g, own))
        backend.check_disjoint(written, read)
        self._native = backend.plan([(*self._row, self._maximize, params)], [0], self._threads)
        if self._native is not None and self._native.step(params, grads, states, [coefficients], scale):
            return
        staged = [backend.stage(*form) for form in forms]
        plain = [s.p for s in staged], [s.g for s in staged], [s.states for s in staged]
        backend.apply([Run(*self._row, coefficients, self._maximize, *plain)], scale, self._threads)
        for s in staged:
            s.write_back()


def _make_update(
    rule: str, decay: str, decay_coefficient: float, maximize: bool, backend: str, threads: int | None
) -> Update:
    return Update(
        rule, decay=decay, decay_coefficient=decay_coefficient, maximize=maximize, backend=backend, threads=threads
    )


@lru_cache(maxsize=1024)
def _update_for(thread: int, shape: tuple[int, ...], dtype: Any, row: tuple[str, str, float, bool]) -> Update:
    return _make_update(*row, "auto", None)


def update_array(
    rule: str,
    p: Any,
    g: Any,
    states: tuple[Any, ...],
    coefficients: tuple[float, ...],
    *,
    scale: float = 1.0,
    decay: str = "none",
    decay_coefficient: float = 0.0,
    maximize: bool = False,
) -> None:
    """One step of one array, in place, for functions that keep nothing between calls; `g` is cast if need be."""
    if not isinstance(p, np.ndarray):
        raise TypeError(f"expected a NumPy array to update, got {type(p).__name__}")
    update = _update_for(threading.get_ident(), p.shape, p.dtype, (rule, decay, decay_coefficient, maximize))
    update((p,), (as_dtype_of(p, g),), states, coefficients, scale)


def as_dtype_of(p: Any, g: Any) -> Any:
    """`g` as an array of the dtype of `p`."""
    return g if isinstance(g, np.ndarray) and g.dtype == p.dtype else np.asarray(g, p.dtype)


def plain_floats(*arrays: Any) -> bool:
    """Whether all are NumPy arrays of one dtype, native float32 or float64, and can be updated in place."""
    dtype = getattr(arrays[0], "dtype", None)
    return dtype in (np.dtype(np.float32), np.dtype(np.float64)) and all(
        isinstance(x, np.ndarray) and x.dtype == dtype for x in arrays
    )
