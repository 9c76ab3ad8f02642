"""Averages gradients over several minibatches."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arrays.checks import check_stored_dtype, instead_of
from ..arrays.storage import compute_dtype
from ..common.trees import Structure


class Accumulator:
    """The weighted mean of several gradients: summed in float64, rounded once, 16-bit ones to float32."""

    def __init__(self, count: int):
        self.count = count
        self.weight = 0.0
        self._structure: Structure | None = None
        self._sums: list[Any] = []
        self._means: list[Any] = []
        self._dtypes: list[Any] = []
        self._fresh: list[bool] = []

    def add(self, grads: Any, weight: float) -> None:
        if self.weight == 0.0:
            before, self._structure = self._structure, Structure(grads)
            if before is None or before.names != self._structure.names:  # callbacks may add groups
                self._sums = [None] * len(self._structure.names)
                self._means, self._dtypes = self._sums.copy(), self._sums.copy()
            self._fresh = [True] * len(self._sums)
        assert self._structure is not None
        self.weight += weight
        for i, (name, g) in enumerate(zip(self._structure.names, self._structure.leaves(grads), strict=True)):
            if g is None:
                continue
            if not isinstance(g, (np.ndarray, np.generic)) or isinstance(g, np.ma.MaskedArray):
                got = f"{type(g).__name__}{instead_of(g)}"
                raise TypeError(f"gradient {name!r}: accumulate needs NumPy arrays, got {got}")
            total, mean = self._sums[i], self._means[i]
            if total is None:
                check_stored_dtype(name, g.dtype, "gradient")
                total = self._sums[i] = np.empty(g.shape)
                self._means[i] = np.empty(g.shape, compute_dtype(g.dtype))
                self._dtypes[i] = g.dtype
            elif g.dtype != self._dtypes[i]:
                raise TypeError(f"gradient {name!r}: dtype {self._dtypes[i]} in one minibatch, {g.dtype} in another")
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
