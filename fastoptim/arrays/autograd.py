"""Tells torch of changes that are not its own: backward through changed weights is an error then, not a number."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import numpy as np


def tell_autograd(written: Iterable[Any]) -> None:
    """Have torch count a change of its tensors among these."""
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "Tensor"):
        tensors = [x for x in written if isinstance(x, torch.Tensor) and not x.is_inference()]
        if tensors:
            torch.autograd.graph.increment_version(tensors)


def tensors_behind(arrays: Iterable[Any]) -> list[Any]:
    """The tensors whose memory NumPy arrays are views of, such as ``tensor.numpy()``."""
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "Tensor"):
        return []
    found = []
    for view in arrays:
        x = view
        while isinstance(x, np.ndarray):
            x = x.base
        if x is not view and isinstance(x, torch.Tensor):  # of tensors themselves their backend tells
            found.append(x)
    return found
