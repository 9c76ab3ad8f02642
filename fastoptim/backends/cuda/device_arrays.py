"""Describes arrays on the GPU: layout, address, stream."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from ...arrays.autograd import tell_autograd

NOWHERE = 1 << 12


class HostLayout:
    """What NumPy needs to reason about a device array's layout. Its elements must never be read."""

    def __init__(self, interface: dict[str, Any]):
        address, readonly = interface["data"]
        self.__array_interface__ = {key: interface.get(key) for key in ("shape", "typestr", "strides")} | {
            "data": (address or NOWHERE, readonly),  # that of an empty array: NumPy 2.0 refuses 0
            "version": 3,
        }


class Vector(NamedTuple):
    """A contiguous, one-dimensional device array."""

    address: int
    size: int
    dtype: np.dtype
    stream: Any  # None, a handle, or the device whose current stream it is in torch
    owner: Any  # keeps the memory alive


class Lent:
    """A vector as an array of some shape."""

    def __init__(self, vector: Vector, shape: tuple[int, ...], strides: tuple[int, ...] | None):
        self.vector, self.dtype = vector, vector.dtype
        face = {"shape": shape, "typestr": vector.dtype.str, "strides": strides, "data": (vector.address, False)}
        self.__cuda_array_interface__ = face | {"version": 3, "stream": vector.stream}


def streams_of(vectors: Iterable[Vector]) -> list[Any]:
    """What the streams of vectors are known by, each once."""
    return list(dict.fromkeys(v.stream for v in vectors if v.stream is not None))


class ContiguousOnDevice(NamedTuple):
    """One parameter's arrays as vectors, and what must be moved back after the step (see `arrays.layout`)."""

    arrays: tuple[Vector, ...]  # p, g, states
    copies: tuple[tuple[Any, Any, np.ndarray, Vector], ...]  # place, the target and its layout, its updated copy
    views: bool  # whether no array was copied
    backend: Any

    def copy_back(self) -> None:
        for place, _, layout, copy in self.copies:
            self.backend.move(place, copy.address, dense_strides(layout.shape), layout, back=True)
        tell_autograd([x for _, x, _, _ in self.copies])


def dense_strides(shape: tuple[int, ...]) -> list[int]:
    """Strides, in elements, of a C-ordered array."""
    return [math.prod(shape[d + 1 :]) for d in range(len(shape))]


def address_of(layout: np.ndarray) -> int:
    address: int = layout.__array_interface__["data"][0]
    return address


def check_aligned(what: str, layout: np.ndarray) -> None:
    if not layout.flags.aligned or any(stride % layout.itemsize for stride in layout.strides):
        raise ValueError(f"{what}: a GPU cannot read elements that are not aligned to their size")


def refuse_immutable(what: str, x: Any) -> None:
    """TypeError for an array that its library takes to be constant."""
    if type(x).__module__.partition(".")[0] in ("jax", "jaxlib"):
        raise TypeError(
            f"{what}: jax's arrays are immutable, and jax would not see the change: keep the parameters in arrays of "
            "CuPy, torch or numba.cuda (cupy.from_dlpack(x).copy())"
        )


# --- Where an array is, at as little cost as its library allows. Equal answers mean that nothing has changed; the first
# --- entry is the address.


def _look_numba(x: Any) -> tuple[Any, ...]:
    data = x.gpu_data
    memory = getattr(data, "_view", data)  # what an owner's attributes are looked up in, slowly
    return memory.device_ctypes_pointer.value or 0, x.shape, x.strides, x.dtype, x.stream, memory.context


def _look_torch(x: Any) -> tuple[Any, ...]:
    return x.data_ptr(), x.shape, x.stride(), x.dtype, x.device, x.requires_grad


def _look_anywhere(x: Any) -> tuple[Any, ...]:
    face = x.__cuda_array_interface__
    address, readonly = face["data"]
    return address, face["shape"], face.get("strides"), face["typestr"], face.get("stream"), readonly


def look_of(kind: type) -> Callable[[Any], tuple[Any, ...]]:
    """What looks at arrays of this type."""
    if kind.__module__ == "numba.cuda.cudadrv.devicearray":
        return _look_numba
    torch = sys.modules.get("torch")
    if torch is not None and kind in (
        getattr(torch, "Tensor", None),
        getattr(getattr(torch, "nn", None), "Parameter", None),
    ):
        return _look_torch
    return _look_anywhere


def stays(look: Callable[[Any], tuple[Any, ...]]) -> bool:
    """Whether an array of this kind is for ever where it is: those of numba.cuda."""
    return look is _look_numba
