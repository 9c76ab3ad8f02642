"""Describes arrays on the GPU: layout, address, stream."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np


class HostLayout:
    """What NumPy needs to reason about a device array's layout. Its elements must never be read."""

    def __init__(self, interface: dict[str, Any]):
        self.__array_interface__ = {key: interface.get(key) for key in ("shape", "typestr", "strides", "data")} | {
            "version": 3
        }


class Vector(NamedTuple):
    """A contiguous, one-dimensional device array."""

    address: int
    size: int
    dtype: np.dtype
    stream: Any  # None, a handle, or the device whose current stream it is in torch
    owner: Any  # keeps the memory alive


def _streams(vectors: Iterable[Vector]) -> list[Any]:
    """What the streams of vectors are known by, each once."""
    return list(dict.fromkeys(v.stream for v in vectors if v.stream is not None))


class ContiguousOnDevice(NamedTuple):
    """One parameter's arrays as vectors, and what must be moved back after the step (see `arrays.layout`)."""

    arrays: tuple[Vector, ...]  # p, g, states
    copies: tuple[tuple[Any, np.ndarray, Vector], ...]  # stream, layout of the target, its updated copy
    views: bool  # whether no array was copied
    backend: Any

    def copy_back(self) -> None:
        for stream, layout, copy in self.copies:
            self.backend.move(stream, copy.address, _dense_strides(layout.shape), layout, back=True)


def _dense_strides(shape: tuple[int, ...]) -> list[int]:
    """Strides, in elements, of a C-ordered array."""
    return [math.prod(shape[d + 1 :]) for d in range(len(shape))]


def _address(layout: np.ndarray) -> int:
    address: int = layout.__array_interface__["data"][0]
    return address


def _check_aligned(what: str, layout: np.ndarray) -> None:
    if not layout.flags.aligned or any(stride % layout.itemsize for stride in layout.strides):
        raise ValueError(f"{what}: a GPU cannot read elements that are not aligned to their size")
