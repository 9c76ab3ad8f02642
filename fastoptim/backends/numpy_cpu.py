"""The NumPy backend: the reference, run over tiles that stay in cache."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..arrays import checks
from ..rules import reference
from ..rules.codecs import BLOCK, Stored, part
from ..rules.table import Kernel, Scalars
from .base import TILE, Backend, KernelCall, Launch

RESERVE = 1 << 21  # bytes, never touched: room for small tiles when there is none for large ones


def _step(kernel: Kernel, arrays: Sequence[Any], stored: Stored | None, row: Scalars) -> None:
    """Step one array tile by tile. Where memory is short, tiles become smaller, so that no step ends halfway."""
    reserve, size, start, n = _reserve(), TILE, 0, arrays[0].size
    least = 1 if stored is None else BLOCK
    scalars = row[: 2 + len(kernel.rule.coefficients)]  # without the number of the step
    while start < n:
        tile = [part(x, n, start, start + size) for x in arrays]
        try:
            if stored is None:
                reference.update(kernel, tile[0], tile[1], tile[2:], scalars)
            else:
                reference.update_stored(kernel, tile, stored.after(start), scalars, int(row[-1]))
        except MemoryError:  # before the tile was written
            if size == least:
                raise
            reserve, size = None, max(least, size // 8)
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
    alone_below = math.inf

    def prepare(self, calls: Sequence[KernelCall], threads: int) -> Launch:
        def launch(scalars: Sequence[Scalars]) -> None:
            checks.check_arithmetic()
            for call, row in zip(calls, scalars, strict=True):
                for arrays, stored in call.rows:
                    _step(call.kernel, arrays, stored, row)

        return launch

    def block_sums(self, grads: Sequence[Any], grad_scale: float, k: float, threads: int) -> np.ndarray:
        checks.check_arithmetic()
        return np.concatenate([np.zeros(0), *(reference.block_sums(g, grad_scale, k) for g in grads)])
