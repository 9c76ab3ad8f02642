"""One update on arrays that the caller owns, parameter and states alike: for code that keeps its own books.

Every function works in place, accepts what the classes accept (any layout of float32 or float64; on CUDA anything with
``__cuda_array_interface__``), checks everything before it writes anything, and has the bits of the class.
"""

from __future__ import annotations

from threading import local
from typing import Any

import numpy as np

from .arrays.checks import DTYPES
from .backends import Backend, Run, resolve
from .common.signals import deferred
from .common.threads import resolve_threads
from .common.validation import count, flag, real
from .optimizers.hyperparameters import Policy, adam_policy, sgd_policy

__all__ = ["adam", "momentum", "sgd"]


_plans = local()  # a plan serves one thread at a time


def _step_natively(
    backend: Backend,
    policy: Policy,
    threads: int,
    p: Any,
    g: Any,
    states: tuple[Any, ...],
    coefficients: tuple[float, ...],
    scale: float,
) -> bool:
    """A step by the native plan for arrays like `p`, kept from the last call; False where it cannot be done so."""
    if type(p) is not np.ndarray or p.dtype not in DTYPES:
        return False
    key = (backend.name, policy.rule, policy.decay, policy.maximize, p.shape, p.dtype, threads)
    kept: dict[Any, Any] = _plans.__dict__.setdefault("kept", {})
    plan, decay = kept.pop(key, (None, None))  # the handler of a signal may step meanwhile
    if plan is None:
        plan = backend.plan([(*policy[:4], [p])], [0], threads)
        if plan is None:
            return False
    elif decay != policy.decay_coefficient:
        plan.set_decay([policy.decay_coefficient])
    done = plan.step((p,), (g,), states, [coefficients], scale)
    if len(kept) >= 256:
        kept.clear()
    kept[key] = plan, policy.decay_coefficient
    return done


def _apply(
    policy: Policy, coefficients: tuple[float, ...], p: Any, g: Any, states: tuple[Any, ...], options: dict[str, Any]
) -> None:
    scale = real("grad_scale", options["grad_scale"])
    backend, threads = resolve(options["backend"], (p,)), resolve_threads(options["threads"])
    if _step_natively(backend, policy, threads, p, g, states, coefficients, scale):
        return
    backend.check_parameter("p", p)
    shape, dtype = backend.describe(p)
    g = backend.check_companion("p", "gradient", g, shape, dtype)
    for slot, state in zip(policy.rule.states, states, strict=True):
        backend.check_parameter(slot, state)
        backend.check_companion("p", slot, state, shape, dtype)
    written = [backend.span(name, x) for name, x in zip(("p", *policy.rule.states), (p, *states), strict=True)]
    backend.check_disjoint(written, [backend.span("gradient of 'p'", g)])
    form = backend.stage(p, g, states)
    run = Run(
        policy.rule,
        policy.decay,
        policy.decay_coefficient,
        coefficients,
        policy.maximize,
        [form.p],
        [form.g],
        [form.states],
    )
    with deferred():
        backend.apply([run], scale, threads)
        form.write_back()


def sgd(
    p: Any,
    g: Any,
    *,
    lr: float,
    weight_decay: float = 0.0,
    maximize: bool = False,
    grad_scale: float = 1.0,
    backend: str = "auto",
    threads: int | None = None,
) -> None:
    """``p <- p - lr * g``, in place; `weight_decay` adds ``weight_decay * p`` to g first.

    Parameters
    ----------
    p, g : array
        Parameter and gradient, of one shape and dtype (float32 or float64).
    lr, weight_decay, maximize, backend, threads
        As for `fastoptim.SGD`.
    grad_scale : float
        Factor for g, applied first.

    Raises
    ------
    TypeError, ValueError
        Bad array or hyper-parameter; nothing was changed.

    Examples
    --------
    >>> import numpy as np, fastoptim as fo
    >>> p = np.array([1.0, 2.0])
    >>> fo.functional.sgd(p, np.array([1.0, 1.0]), lr=0.5)
    >>> p
    array([0.5, 1.5])
    """
    policy = sgd_policy(lr, weight_decay=weight_decay, maximize=maximize)
    options = {"grad_scale": grad_scale, "backend": backend, "threads": threads}
    _apply(policy, policy.coefficients(1, False), p, g, (), options)


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
    lr, dampening, weight_decay, nesterov, maximize, momentum_mode, backend, threads
        As for `fastoptim.SGD`.
    momentum : float
        In (0, 1).
    first : bool
        Whether this is the step that creates the velocity: torch then leaves `dampening` out.
    grad_scale : float
        Factor for g, applied first.

    Raises
    ------
    TypeError, ValueError
        Bad array or hyper-parameter; nothing was changed.

    Examples
    --------
    >>> import numpy as np, fastoptim as fo
    >>> p, v = np.array([1.0]), np.zeros(1)
    >>> fo.functional.momentum(p, np.array([1.0]), v, lr=0.5)
    >>> p, v
    (array([0.5]), array([1.]))
    """
    policy = sgd_policy(lr, momentum, dampening, weight_decay, nesterov, maximize, momentum_mode)
    if not policy.rule.states:
        raise ValueError("momentum must be > 0; for plain steps use functional.sgd")
    options = {"grad_scale": grad_scale, "backend": backend, "threads": threads}
    _apply(policy, policy.coefficients(1, flag("first", first)), p, g, (v,), options)


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
    lr, betas, eps, weight_decay, maximize, eps_mode, backend, threads
        As for `fastoptim.Adam`.
    decoupled : bool
        Whether `weight_decay` is AdamW's.
    grad_scale : float
        Factor for g, applied first.

    Raises
    ------
    TypeError, ValueError
        Bad array or hyper-parameter; nothing was changed.

    Examples
    --------
    >>> import numpy as np, fastoptim as fo
    >>> p, m, v = np.array([1.0]), np.zeros(1), np.zeros(1)
    >>> fo.functional.adam(p, np.array([2.0]), m, v, step=1, lr=0.1)
    >>> p.round(6)
    array([0.9])
    """
    policy = adam_policy(
        lr, betas, eps, weight_decay, vmax is not None, maximize, eps_mode, flag("decoupled", decoupled)
    )
    options = {"grad_scale": grad_scale, "backend": backend, "threads": threads}
    states = (m, v) if vmax is None else (m, v, vmax)
    _apply(policy, policy.coefficients(count("step", step), False), p, g, states, options)
