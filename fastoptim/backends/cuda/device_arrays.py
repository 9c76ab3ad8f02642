"""Describes arrays on the GPU: layout, address, stream."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np


class _Shadow:
    """What NumPy needs to reason about a device array's layout. Its elements must never be read."""

    def __init__(self, interface: dict[str, Any]):
        self.__array_interface__ = {key: interface.get(key) for key in ("shape", "typestr", "strides", "data")} | {
            "version": 3
        }


class Vector(NamedTuple):
    """A plain device array: contiguous, one-dimensional."""

    address: int
    size: int
    dtype: np.dtype
    stream: Any  # None, a handle, or the device whose current stream it is in torch
    owner: Any  # keeps the memory alive


def _streams(vectors: Iterable[Vector]) -> list[Any]:
    """What the streams of vectors are known by, each once."""
    return list(dict.fromkeys(v.stream for v in vectors if v.stream is not None))


class _Staged(NamedTuple):
    """One parameter's arrays as vectors, and what must be moved back after the step (see `arrays.Staged`)."""

    p: Vector
    g: Vector
    states: tuple[Vector, ...]
    moves: tuple[tuple[Any, np.ndarray, Vector], ...]
    backend: Any

    def write_back(self) -> None:
        for stream, shadow, copy in self.moves:
            self.backend.move(stream, copy.address, _dense_strides(shadow.shape), shadow, back=True)


def _dense_strides(shape: tuple[int, ...]) -> list[int]:
    """Strides, in elements, of a C-ordered array."""
    return [math.prod(shape[d + 1 :]) for d in range(len(shape))]


def _address(shadow: np.ndarray) -> int:
    return shadow.__array_interface__["data"][0]


def _check_aligned(what: str, shadow: np.ndarray) -> None:
    if not shadow.flags.aligned or any(stride % shadow.itemsize for stride in shadow.strides):
        raise ValueError(f"{what}: a GPU cannot read elements that are not aligned to their size")
