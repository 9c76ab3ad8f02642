"""`Optimizer.apply`: a step that gives new parameters and leaves the old ones alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import repeat
from typing import Any

import numpy as np

from ..arrays.checks import check_match, real_array
from ..arrays.storage import compute_dtype
from ..backends.base import Backend
from ..common.signals import deferred_signals
from .groups import Groups, Parameter
from .states import Plan
from .update import PLAIN, StepOptions

_NUMBERS = (int, float, np.integer, np.floating)
_GATHERED = (list, tuple, *_NUMBERS)
_GRADIENT = "gradient of parameter"


class _Slot:
    """Stands in a tree for a number, and keeps the array that is stepped instead."""

    __slots__ = ("array", "given")

    def __init__(self, given: Any) -> None:
        self.given = given
        self.array: Any = None  # of what is not stepped

    def new(self) -> Any:
        """The array as what was given."""
        if self.array is None:
            return self.given
        return self.array[()] if isinstance(self.given, np.generic) else self.array.item()


def _copied(tree: Any, slots: list[_Slot], backend: Backend) -> Any:
    """The tree with copies of its arrays, and slots for its numbers."""
    if isinstance(tree, Mapping):
        return {key: _copied(item, slots, backend) for key, item in tree.items()}
    if isinstance(tree, Sequence) and not isinstance(tree, (str, bytes)):
        return _like(tree, [_copied(item, slots, backend) for item in tree])
    if not isinstance(tree, _NUMBERS) or isinstance(tree, bool):
        return backend.copied(tree)
    slots.append(_Slot(tree))
    return slots[-1]


def _filled(tree: Any) -> Any:
    """The tree with what its slots have become."""
    if isinstance(tree, _Slot):
        return tree.new()
    if isinstance(tree, dict):
        return {key: _filled(item) for key, item in tree.items()}
    return _like(tree, [_filled(item) for item in tree]) if isinstance(tree, (list, tuple)) else tree


def _like(tree: Sequence[Any], items: list[Any]) -> Any:
    if isinstance(tree, tuple):
        return type(tree)(*items) if hasattr(tree, "_fields") else tuple(items)
    return items


def _gathered(what: str, q: Parameter, numbers: Any) -> Any:
    """Numbers as an array of their own; what else it may be is for the step to judge."""
    if not isinstance(numbers, _GATHERED):
        return numbers
    array = np.asarray(numbers)
    dtype = compute_dtype(q.dtype) if what is _GRADIENT else q.dtype  # 16 bits may have nothing of a gradient
    return array if array.dtype == q.dtype else real_array(f"{what} {q.name!r}", numbers).astype(dtype)


def applied(
    model: Groups,
    plan: Plan,
    backend: Backend,
    params: Any,
    grads: Any,
    options: StepOptions,
) -> Any:
    """What `Optimizer.apply` returns; the optimizer's lock is held."""
    slots: list[_Slot] = []
    numbers = False  # whether all parameters are one list or tuple of numbers
    if type(params) is np.ndarray:
        tree = params.copy("K")
    elif isinstance(params, (list, tuple)) and not model.grouped and model.structures[0].is_leaf:
        q, numbers = model.parameters[0], True
        tree, grads = _gathered("parameter", q, params), _gathered(_GRADIENT, q, grads)
    else:
        tree = _copied(params, slots, backend)
    new, gradients, native = plan.leaves(tree), plan.leaves(grads), plan.native_step
    if slots:
        for q, x in zip(model.parameters, new, strict=True):
            if type(x) is _Slot:
                x.array = _gathered("parameter", q, x.given)
        new = tuple([x.array if type(x) is _Slot else x for x in new])
        gradients = tuple(map(_gathered, repeat(_GRADIENT), model.parameters, gradients))
    rows, steps = plan.native_rows or plan.kept_rows or plan.rows(), plan.counter[0]
    try:
        stepped = options is PLAIN and native is not None and native(new, gradients, plan.states, rows)
    finally:  # Ctrl-C may come right behind the step
        model.elsewhere = model.elsewhere or plan.counter[0] != steps
    if not stepped:
        for q, x in zip(model.parameters, new, strict=True):
            backend.check_parameter(q.name, x)
            check_match(q.name, "value", *backend.describe(x), q.shape, q.dtype)
        gradients = tuple(map(_gathered, repeat(_GRADIENT), model.parameters, gradients))
        fixed = plan.kept_rows or plan.rows
        with deferred_signals():
            stepped = plan.update.step(new, gradients, plan.states, fixed, options, plan.native_rows).applied
            model.elsewhere = model.elsewhere or stepped
    if numbers:
        return _like(params, tree.tolist())
    return _filled(tree) if slots else tree
