"""Averages gradients over several minibatches."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arrays.checks import DTYPES, dtype_name
from ..common.trees import Structure


class _Accumulator:
    """The weighted mean of several gradients: summed in float64, rounded once."""

    def __init__(self, count: int):
        self.count = count
        self.weight = 0.0
        self._structure: Structure | None = None
        self._sums: list[Any] = []
        self._means: list[Any] = []
        self._fresh: list[bool] = []

    def add(self, grads: Any, weight: float) -> None:
        if self._structure is None:
            self._structure = Structure(grads)
            self._sums = [None] * len(self._structure.names)
            self._means = [None] * len(self._structure.names)
        if self.weight == 0.0:
            self._fresh = [True] * len(self._sums)
        self.weight += weight
        for i, (name, g) in enumerate(zip(self._structure.names, self._structure.leaves(grads), strict=True)):
            if g is None:
                continue
            if not isinstance(g, (np.ndarray, np.generic)) or isinstance(g, np.ma.MaskedArray):
                raise TypeError(f"gradient {name!r}: accumulate needs NumPy arrays, got {type(g).__name__}")
            total, mean = self._sums[i], self._means[i]
            if total is None:
                if g.dtype not in DTYPES:
                    raise TypeError(f"gradient {name!r}: expected float32 or float64, got {dtype_name(g.dtype)}")
                total = self._sums[i] = np.empty(g.shape)
                self._means[i] = np.empty(g.shape, g.dtype)
            elif g.dtype != mean.dtype:
                raise TypeError(f"gradient {name!r}: dtype {mean.dtype} in one minibatch, {g.dtype} in another")
            elif g.shape != mean.shape:
                raise ValueError(f"gradient {name!r}: shape {mean.shape} in one minibatch, {g.shape} in another")
            if self._fresh[i]:
                np.multiply(g, weight, out=total, dtype=np.float64)
                self._fresh[i] = False
            elif weight == 1.0:
                total += g
            else:
                total += np.multiply(g, weight, dtype=np.float64)

    def mean(self) -> Any:
        assert self._structure is not None
        weight, self.weight = self.weight, 0.0
        for i, (total, mean) in enumerate(zip(self._sums, self._means, strict=True)):
            if not self._fresh[i]:
                np.divide(total, weight, out=mean, casting="same_kind")
        leaves = [None if fresh else mean for fresh, mean in zip(self._fresh, self._means, strict=True)]
        return self._structure.rebuild(leaves)
