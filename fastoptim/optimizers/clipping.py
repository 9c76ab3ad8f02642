"""The reproducible gradient norm, and clipping by it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..arrays.autograd import tell_of_views
from ..arrays.checks import DTYPES, instead_of
from ..backends import Backend, resolve
from ..common.public import public
from ..common.signals import deferred_signals
from ..common.threads import resolve_threads
from ..common.trees import Structure
from ..common.validation import check_range, flag, norm_limit, real
from .update import clipped_scale


def _plain(grads: Any) -> list[Any] | None:
    """The gradients, where all are arrays of which nothing need be checked; else None."""
    leaves = grads.values() if type(grads) is dict else grads if type(grads) in (list, tuple) else (grads,)
    found = [g for g in leaves if g is not None]
    for g in found:
        if type(g) is not np.ndarray or g.dtype not in DTYPES or not (g.flags.carray and g.flags.owndata):
            return None
    return found if len({*map(id, found)}) == len(found) else None


def _checked(grads: Any, backend: str, written: bool) -> tuple[Backend, list[Any]]:
    """The backend, and the gradients that are not None; those that will be written share no memory."""
    found = _plain(grads)
    if found is not None and (chosen := resolve(backend, ())).name != "cuda":
        return chosen, found
    structure = Structure(grads)
    leaves = structure.leaves(grads)
    chosen = resolve(backend, tuple(leaf for leaf in leaves if leaf is not None))
    checked = {}
    for name, g in zip(structure.names, leaves, strict=True):
        if g is None:
            continue
        if written:
            chosen.check_parameter(name, g, "gradient")
            _described(chosen, name, g)
        else:
            g = chosen.check_companion(name, "gradient", g, *_described(chosen, name, g))
        checked[name] = g
    if written:
        chosen.check_disjoint([chosen.span(f"gradient {name!r}", g) for name, g in checked.items()], ())
    return chosen, [*checked.values()]


def _described(backend: Backend, name: str, g: Any) -> tuple[tuple[int, ...], Any]:
    try:
        shape, dtype = backend.describe(g)
        backend.check_dtype(name, dtype, "gradient")
    except AttributeError:  # as that of a dtype of torch
        raise TypeError(f"gradient {name!r}: expected an array, got {type(g).__name__}{instead_of(g)}") from None
    return shape, dtype


@public
def grad_norm(grads: Any, *, grad_scale: float = 1.0, backend: str = "auto", threads: int | None = None) -> float:
    """Euclidean norm over all elements of all gradients, in float64.

    The order of the sum is fixed (blocks, lanes, a pairwise tree), so that every backend and any number of threads
    give the same bits. A sum of squares beyond the range of float64 is taken again on scaled gradients.

    Parameters
    ----------
    grads : array, sequence, mapping or nesting of these
        float32 or float64, any layout; ``None`` entries are left out. Never written to.
    grad_scale : float
        Factor for every gradient, rounded to its dtype and applied before the square, as in `Optimizer.step`.
    backend, threads
        As for `SGD`.

    Returns
    -------
    float
        0.0 for no gradients; NaN or infinity if a gradient holds one.

    Examples
    --------
    >>> import numpy as np, fastoptim as fo
    >>> fo.grad_norm([np.array([3.0]), np.array([[4.0]])])
    5.0
    """
    chosen, checked = _checked(grads, backend, written=False)
    scale = real("grad_scale", grad_scale)
    for dtype in dict.fromkeys(chosen.describe(g)[1] for g in checked):
        check_range("grad_scale", scale, dtype)
    return chosen.norm(checked, scale, resolve_threads(threads))


@public
def clip_grad_norm(
    grads: Any,
    max_norm: float,
    *,
    error_if_nonfinite: bool = False,
    backend: str = "auto",
    threads: int | None = None,
) -> float:
    """Scale all gradients in place by ``min(1, max_norm / (norm + 1e-6))``; returns the norm before that.

    ``opt.step(grads, max_norm=...)`` does the same without writing the gradients, and faster.

    Parameters
    ----------
    grads : array, sequence, mapping or nesting of these
        Writeable float32 or float64 arrays; ``None`` entries are left out.
    max_norm : float
        Upper bound of the norm, >= 0.
    error_if_nonfinite : bool
        Raise ValueError, with nothing changed, if the norm is NaN or infinite. By default the factor is then NaN or
        0, as in ``torch.nn.utils.clip_grad_norm_``.
    backend, threads
        As for `SGD`.

    Examples
    --------
    >>> import numpy as np, fastoptim as fo
    >>> g = np.array([3.0, 4.0])
    >>> fo.clip_grad_norm(g, 1.0)
    5.0
    >>> g.round(4)
    array([0.6, 0.8])
    """
    limit = norm_limit(max_norm)
    strict = flag("error_if_nonfinite", error_if_nonfinite)
    chosen, checked = _checked(grads, backend, written=True)
    norm = chosen.norm(checked, 1.0, resolve_threads(threads))
    if strict and not math.isfinite(norm):
        raise ValueError(f"the gradient norm is {norm}")
    factor = clipped_scale(1.0, norm, limit, {chosen.describe(g)[1] for g in checked})
    if factor != 1.0:
        with deferred_signals():
            chosen.multiply(checked, factor)
            tell_of_views(checked)
    return norm
