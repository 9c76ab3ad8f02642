"""The NumPy backend: the reference, run over tiles that stay in cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..arrays import checks
from ..rules import reference
from .base import Backend, KernelCall, Launch, Scalars

TILE = 1 << 15  # elements; the temporaries of one tile fit a level-2 cache


class NumpyBackend(Backend):
    name = "numpy"

    def prepare(self, calls: Sequence[KernelCall], threads: int) -> Launch:
        def launch(scalars: Sequence[Scalars]) -> None:
            checks.check_arithmetic()
            for (kernel, arrays), row in zip(calls, scalars, strict=True):
                for p, g, *states in arrays:
                    for start in range(0, p.size, TILE):
                        tile = slice(start, start + TILE)
                        reference.update(kernel, p[tile], g[tile], [state[tile] for state in states], row)

        return launch

    def block_sums(self, grads: Sequence[Any], grad_scale: float, k: float, threads: int) -> np.ndarray:
        checks.check_arithmetic()
        return np.concatenate([np.zeros(0), *(reference.block_sums(g, grad_scale, k) for g in grads)])
