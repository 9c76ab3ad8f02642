"""The NumPy backend: the reference, run over tiles that stay in cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..arrays import checks
from ..rules import reference
from .base import Backend, Run

TILE = 1 << 15  # elements; the law's temporaries of one tile fit a level-2 cache


class NumpyBackend(Backend):
    name = "numpy"

    def apply(self, runs: Sequence[Run], scale: float, threads: int) -> None:
        checks.check_subnormals()
        for run in runs:
            for p, g, states in zip(run.params, run.grads, run.states, strict=True):
                for start in range(0, p.size, TILE):
                    tile = slice(start, start + TILE)
                    reference.update(
                        run.rule,
                        p[tile],
                        g[tile],
                        [state[tile] for state in states],
                        run.coefficients,
                        s=-scale if run.maximize else scale,
                        decay=run.decay,
                        decay_coefficient=run.decay_coefficient,
                    )

    def block_sums(self, grads: Sequence[Any], grad_scale: float, k: float, threads: int) -> np.ndarray:
        checks.check_subnormals()
        return np.concatenate([np.zeros(0), *(reference.block_sums(g, grad_scale, k) for g in grads)])
