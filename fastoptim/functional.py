"""One update on arrays that the caller owns, parameter and states alike.

Every function works in place, accepts what the classes accept (any layout of float32 or float64; on CUDA anything with
``__cuda_array_interface__``), checks everything before it writes anything, and has the bits of the class.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from .common.validation import NEARLY_ONE, check_range, count, flag
from .optimizers import forms
from .optimizers.adam import Adam, AdamW
from .optimizers.family import Family
from .optimizers.forms import *  # noqa: F403 (its __all__ is listed below)
from .optimizers.hyperparameters import UpdateSpec
from .optimizers.one_array import ArrayStep, chosen_for
from .optimizers.sgd import SGD
from .optimizers.update import TINY
from .rules.table import Scalars

__all__ = ["adam", "momentum", "sgd"]
__all__ += forms.__all__

_array_step = lru_cache(maxsize=256, typed=True)(ArrayStep)


def _prepare(
    cls: type[Family], backend: str, threads: int | None, *hyperparameters: Any
) -> tuple[ArrayStep, UpdateSpec, Scalars]:
    spec = cls._checked(hyperparameters).spec
    return _array_step(spec.kernel, backend, threads), spec, spec.scalars(1)


# Hyperparameters are mostly those of the call before.
_prepared = lru_cache(maxsize=256, typed=True)(_prepare)


def _known(*arguments: Any) -> tuple[ArrayStep, UpdateSpec, Scalars]:
    try:
        return _prepared(*arguments)
    except TypeError:  # not hashable, or not valid, which this says again
        return _prepare(*arguments)


def sgd(
    p: Any,
    g: Any,
    *,
    lr: float,
    weight_decay: float = 0.0,
    maximize: bool = False,
    decoupled: bool = False,
    decay_mode: str = "lr",
    grad_scale: float = 1.0,
    backend: str = "auto",
    threads: int | None = None,
) -> None:
    """``p <- p - lr * g``, in place; `weight_decay` adds ``weight_decay * p`` to g first.

    Parameters
    ----------
    p, g : array
        Parameter and gradient, of one shape and dtype (float32 or float64).
    lr, weight_decay, maximize, decay_mode, backend, threads
        As for `fastoptim.SGD`.
    decoupled : bool
        `decoupled_weight_decay` of `fastoptim.SGD`.
    grad_scale : float
        Factor for g, applied first.

    Raises
    ------
    TypeError, ValueError
        Bad array or hyperparameter; nothing was changed.

    Examples
    --------
    >>> import numpy as np, fastoptim as fo
    >>> p = np.array([1.0, 2.0])
    >>> fo.functional.sgd(p, np.array([1.0, 1.0]), lr=0.5)
    >>> p
    array([0.5, 1.5])
    """
    values = (lr, 0.0, 0.0, weight_decay, False, maximize, "torch", decoupled, decay_mode)
    step, _, scalars = _known(SGD, backend, threads, *values)
    step("p", p, g, (), scalars, grad_scale)


def momentum(
    p: Any,
    g: Any,
    v: Any,
    *,
    lr: float,
    momentum: float = 0.9,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    momentum_mode: str = "torch",
    decoupled: bool = False,
    decay_mode: str = "lr",
    first: bool = False,
    grad_scale: float = 1.0,
    backend: str = "auto",
    threads: int | None = None,
) -> None:
    """``v <- momentum * v + (1 - dampening) * g; p <- p - lr * v``, in place on `p` and `v`.

    Parameters
    ----------
    p, g, v : array
        Parameter, gradient and velocity, of one shape and dtype (float32 or float64); start `v` at zeros.
    lr, dampening, weight_decay, nesterov, maximize, momentum_mode, decay_mode, backend, threads
        As for `fastoptim.SGD`.
    decoupled : bool
        `decoupled_weight_decay` of `fastoptim.SGD`.
    momentum : float
        In (0, 1).
    first : bool
        Whether this is the step that creates the velocity: torch then leaves `dampening` out.
    grad_scale : float
        Factor for g, applied first.

    Raises
    ------
    TypeError, ValueError
        Bad array or hyperparameter; nothing was changed.

    Examples
    --------
    >>> import numpy as np, fastoptim as fo
    >>> p, v = np.array([1.0]), np.zeros(1)
    >>> fo.functional.momentum(p, np.array([1.0]), v, lr=0.5)
    >>> p, v
    (array([0.5]), array([1.]))
    """
    values = (lr, momentum, dampening, weight_decay, nesterov, maximize, momentum_mode, decoupled, decay_mode)
    step, spec, scalars = _known(SGD, backend, threads, *values)
    if not spec.kernel.rule.states:
        raise ValueError("momentum must be > 0; for plain steps use functional.sgd")
    if momentum >= NEARLY_ONE:
        check_range("momentum", float(momentum), chosen_for(p, backend, threads)[2], True, True)
    if first is not False:
        scalars = spec.scalars(1, flag("first", first))
    step("p", p, g, (v,), scalars, grad_scale)


def adam(
    p: Any,
    g: Any,
    m: Any,
    v: Any,
    vmax: Any = None,
    *,
    step: int,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    maximize: bool = False,
    eps_mode: str = "torch",
    decay_mode: str = "lr",
    update_clip: float | str | None = None,
    cautious: bool = False,
    grad_scale: float = 1.0,
    backend: str = "auto",
    threads: int | None = None,
) -> None:
    """One Adam step in place on `p`, `m` and `v` (and `vmax`, which makes it amsgrad), as `fastoptim.Adam` has it.

    Parameters
    ----------
    p, g, m, v : array
        Parameter, gradient and the two running means, of one shape and dtype (float32 or float64); start `m` and `v`
        at zeros.
    vmax : array, optional
        Largest v so far, for amsgrad; start at zeros.
    step : int
        Number of this step, from 1.
    lr, betas, eps, weight_decay, maximize, eps_mode, decay_mode, update_clip, cautious, backend, threads
        As for `fastoptim.Adam`.
    decoupled : bool
        Whether `weight_decay` is AdamW's.
    grad_scale : float
        Factor for g, applied first.

    Raises
    ------
    TypeError, ValueError
        Bad array or hyperparameter; nothing was changed.

    Examples
    --------
    >>> import numpy as np, fastoptim as fo
    >>> p, m, v = np.array([1.0]), np.zeros(1), np.zeros(1)
    >>> fo.functional.adam(p, np.array([2.0]), m, v, step=1, lr=0.1)
    >>> p.round(6)
    array([0.9])
    """
    cls = AdamW if decoupled is not False and flag("decoupled", decoupled) else Adam
    values = (lr, betas, eps, weight_decay, vmax is not None, maximize, eps_mode, decay_mode, update_clip, cautious)
    update, spec, _ = _known(cls, backend, threads, *values)
    if 0.0 < eps < TINY or betas[0] >= NEARLY_ONE or betas[1] >= NEARLY_ONE:
        dtype = chosen_for(p, backend, threads)[2]
        check_range("eps", float(eps), dtype)
        for i in range(2):
            check_range(f"betas[{i}]", float(betas[i]), dtype, True, True)
    states = (m, v) if vmax is None else (m, v, vmax)
    update("p", p, g, states, spec.scalars(count("step", step)), grad_scale, spec.measured)
