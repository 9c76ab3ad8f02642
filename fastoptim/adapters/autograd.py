"""The optimizers of HIPS autograd (``autograd.misc.optimizers``), with fused updates.

Change the import, and nothing else::

    from fastoptim.adapters.autograd import adam, sgd

Convention: autograd's. Each function owns the loop, flattens containers of arrays, and calls ``grad(x, i)`` and then
``callback(x, i, g)``. ``sgd`` damps, ``v <- mass v - (1 - mass) g; x <- x + step_size v``, and has autograd's bits;
``adam`` is the textbook's and stays within rounding of autograd's, which divides by the bias corrections array by
array. Whatever was handed to `grad` or `callback` is never written to again, so that it may be kept as a snapshot.
Steps are computed in float64, as autograd's are; those of gradients in float32, as a start in float32 gives at first,
by autograd's lines, whose first products are rounded to float32. ``rmsprop`` is autograd's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..common.validation import real
from ._update import RuleUpdate, adam_coefficients, as_dtype_of

try:
    from autograd.misc.optimizers import rmsprop, unflatten_optimizer
except ImportError as error:
    raise ImportError("this adapter needs autograd: pip install autograd") from error

__all__ = ["adam", "rmsprop", "sgd"]


def _descend(
    grad: Any,
    x: Any,
    callback: Any,
    num_iters: int,
    update: RuleUpdate,
    states: int,
    coefficients: Callable[[int], tuple[float, ...]],
    own: Callable[..., Any],
) -> Any:
    """`own`, autograd's ``(i, x, g, *states) -> x``, takes the gradients that are not computed in float64."""
    if np.iscomplexobj(x):
        raise TypeError("expected real parameters, got complex ones: use autograd's own optimizers for them")
    kept = tuple(np.zeros(len(x)) for _ in range(states))
    for i in range(num_iters):
        g = grad(x, i)
        if callback:
            callback(x, i, g)
        new = np.array(x, np.float64)  # the old one belongs to whoever was handed it
        wanted = as_dtype_of(new, g)
        if getattr(g, "dtype", new.dtype).kind == "f" and g.dtype != new.dtype and g.shape == new.shape:
            x = own(i, x, g, *kept)
        else:
            x = new
            update((x,), (wanted,), kept, coefficients(i))
    return x


@unflatten_optimizer
def sgd(
    grad: Any, x: Any, callback: Any = None, num_iters: int = 200, step_size: float = 0.1, mass: float = 0.9
) -> Any:
    """Stochastic gradient descent with damped momentum; `grad` has the signature ``grad(x, i)``.

    ``v <- mass * v - (1 - mass) * g; x <- x + step_size * v``
    """
    real("step_size", step_size)  # only looked at: they keep their dtypes, for autograd's bits
    real("mass", mass)

    def own(i: int, x: Any, g: Any, v: Any) -> Any:
        v[...] = mass * v - (1.0 - mass) * g
        return x + step_size * v

    update = RuleUpdate("momentum")
    return _descend(grad, x, callback, num_iters, update, 1, lambda i: (mass, -(1.0 - mass), -step_size), own)


@unflatten_optimizer
def adam(
    grad: Any,
    x: Any,
    callback: Any = None,
    num_iters: int = 100,
    step_size: float = 0.001,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 10**-8,
) -> Any:
    """Adam; `grad` has the signature ``grad(x, i)``. Equations under `fastoptim.Adam`."""

    def coefficients(i: int) -> tuple[float, ...]:
        return adam_coefficients(i + 1, step_size, b1, b2, eps)

    def own(i: int, x: Any, g: Any, m: Any, v: Any) -> Any:
        coefficients(i)  # refuses what is no step of Adam
        m[...] = (1 - b1) * g + b1 * m
        v[...] = (1 - b2) * (g**2) + b2 * v
        mean, square = m / (1 - b1 ** (i + 1)), v / (1 - b2 ** (i + 1))
        return x - step_size * mean / (np.sqrt(square) + eps)

    return _descend(grad, x, callback, num_iters, RuleUpdate("adam"), 2, coefficients, own)
