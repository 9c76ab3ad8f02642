"""One row of the law on arrays and coefficients of the caller's own: what every adapter is made of."""

from __future__ import annotations

import operator
import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from .. import rules
from ..backends import Run, resolve
from ..common.signals import deferred
from ..common.threads import resolve_threads
from ..common.validation import real
from ..optimizers.update import BUSY
from ..rules.table import RULES


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
        self._turn: list[int] = []  # the thread that is in here, as in `Optimizer`: a native plan serves one at a time

    def __reduce__(self) -> Any:  # what is native is made anew
        return _make_update, self._arguments

    def __call__(
        self,
        params: tuple[Any, ...],
        grads: tuple[Any, ...],
        states: tuple[Any, ...],
        coefficients: tuple[float, ...],
        scale: float = 1.0,
        names: Sequence[Any] = (),
    ) -> None:
        """One step. `states` are those of the first parameter, then those of the second, and so on.

        Raises TypeError or ValueError, with nothing changed, for arrays that do not go together, and RuntimeError while
        another thread is in here. Errors call parameters by `names`, or by their numbers.
        """
        thread, turn = threading.get_ident(), self._turn
        if turn:
            raise RuntimeError(BUSY)
        try:
            turn.append(thread)
            if turn[0] != thread:
                raise RuntimeError(BUSY)
            native = self._native
            if native is None or not native.step(params, grads, states, [coefficients], scale):
                self._checked(params, grads, states, coefficients, scale, names)
        finally:
            turn.remove(thread)

    def _checked(
        self,
        params: tuple[Any, ...],
        grads: tuple[Any, ...],
        states: tuple[Any, ...],
        coefficients: tuple[float, ...],
        scale: float,
        names: Sequence[Any],
    ) -> None:
        backend, slots = self._backend, self._rule.states
        if len(grads) != len(params) or len(states) != len(params) * len(slots):
            raise ValueError(
                f"expected {len(params)} gradients and {len(params) * len(slots)} states, "
                f"got {len(grads)} and {len(states)}"
            )
        written, read, forms = [], [], []
        for i, (p, g) in enumerate(zip(params, grads, strict=True)):
            name = names[i] if names else str(i)
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
        with deferred():
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


def real_array(what: str, x: Any) -> np.ndarray:
    """`x` as an array; TypeError unless it holds real numbers, which NumPy's casts do not ask for."""
    array = np.asarray(x)
    small = array.dtype.kind == "V" and array.dtype.type is not np.void  # bfloat16 and kin, of ml_dtypes
    if not (array.dtype.kind in "biuf" or small) or isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{what}: expected real numbers, got {type(x).__name__} (dtype {array.dtype.name})")
    return array


def as_dtype_of(p: Any, g: Any, name: Any = "0") -> Any:
    """`g`, the gradient of `p`, as an array of the dtype of `p`; TypeError unless it holds real numbers."""
    if isinstance(g, np.ndarray) and g.dtype == p.dtype:
        return g
    return real_array(f"gradient of parameter {name!r}", g).astype(p.dtype, copy=False)


def adam_coefficients(t: Any, lr: Any, beta1: Any, beta2: Any, eps: Any, mode: str = "torch") -> tuple[float, ...]:
    """The law's, of whatever the caller passed; TypeError or ValueError for what is no step of Adam."""
    if not hasattr(t, "__index__") or operator.index(t) < 1:
        raise ValueError(f"Adam needs the number of the step, an integer t >= 1, got {t!r}")
    beta1, beta2 = real("beta1", beta1, 0.0, 1.0), real("beta2", beta2, 0.0, 1.0)
    return rules.adam_coefficients(operator.index(t), real("lr", lr), beta1, beta2, real("eps", eps), mode)


def plain_floats(*arrays: Any) -> bool:
    """Whether all are NumPy arrays of one dtype, native float32 or float64, and can be updated in place."""
    dtype = getattr(arrays[0], "dtype", None)
    return dtype in (np.dtype(np.float32), np.dtype(np.float64)) and all(
        isinstance(x, np.ndarray) and x.dtype == dtype for x in arrays
    )
