"""Tells torch of changes that are not its own: backward through changed weights is an error then, not a number."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import numpy as np


def tensors_among(arrays: Iterable[Any]) -> list[Any]:
    """The tensors of torch that autograd watches, whatever subclass they are of."""
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "Tensor"):
        return []
    return [x for x in arrays if isinstance(x, torch.Tensor) and not x.is_inference()]


def tell_autograd(written: Iterable[Any]) -> None:
    """Have torch count a change of its tensors among these."""
    if tensors := tensors_among(written):
        sys.modules["torch"].autograd.graph.increment_version(tensors)


def tensors_behind(arrays: Iterable[Any]) -> list[Any]:
    """The tensors whose memory NumPy arrays are views of, such as ``tensor.numpy()``."""
    return tensors_among(_owner(x) for x in arrays if isinstance(x, np.ndarray))


def tell_of_assigned(written: Iterable[Any]) -> None:
    """Have torch count a change of its tensors among these arrays, and of those that they are views of."""
    arrays = [*written]
    tell_autograd([*arrays, *tensors_behind(arrays)])


def tell_of_views(written: Iterable[Any]) -> None:
    """Have torch count a change of the tensors that these arrays are views of; of tensors their backend tells."""
    tell_autograd(tensors_behind(written))


def _owner(x: Any) -> Any:
    """What holds the memory of an array, where that is not NumPy itself."""
    while isinstance(x, np.ndarray):
        x = x.base
    return x
