"""The NumPy backend: the reference, run over tiles that stay in cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..arrays import checks
from ..rules import reference
from ..rules.table import Kernel
from .base import Backend, KernelCall, Launch, Scalars

TILE = 1 << 15  # elements; the temporaries of one tile fit a level-2 cache


RESERVE = 1 << 21  # bytes, never touched: room for small tiles when there is none for large ones


def _step(kernel: Kernel, p: Any, g: Any, states: Sequence[Any], row: Scalars) -> None:
    """Step one array tile by tile. Where memory is short, tiles become smaller, so that no step ends halfway."""
    reserve, size, start = _reserve(), TILE, 0
    while start < p.size:
        tile = slice(start, start + size)
        try:
            reference.update(kernel, p[tile], g[tile], [state[tile] for state in states], row)
        except MemoryError:  # before the tile was written
            if size == 1:
                raise
            reserve, size = None, max(1, size // 8)
        else:
            start += size
    del reserve


def _reserve() -> Any:
    try:
        return np.empty(RESERVE, np.uint8)
    except MemoryError:
        return None


class NumpyBackend(Backend):
    name = "numpy"

    def prepare(self, calls: Sequence[KernelCall], threads: int) -> Launch:
        def launch(scalars: Sequence[Scalars]) -> None:
            checks.check_arithmetic()
            for (kernel, arrays), row in zip(calls, scalars, strict=True):
                for p, g, *states in arrays:
                    _step(kernel, p, g, states, row)

        return launch

    def block_sums(self, grads: Sequence[Any], grad_scale: float, k: float, threads: int) -> np.ndarray:
        checks.check_arithmetic()
        return np.concatenate([np.zeros(0), *(reference.block_sums(g, grad_scale, k) for g in grads)])
