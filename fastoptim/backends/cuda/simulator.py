"""Does in NumPy what Numba's CUDA simulator cannot run: correctly rounded operations and access to memory by address.

The simulator executes kernels as Python (``NUMBA_ENABLE_CUDASIM=1``), where libdevice functions are NaN and device
arrays have no ``__cuda_array_interface__``. It proves a kernel's logic; what is compiled is proved by its PTX.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

THREADS = 32  # per block: every simulated thread is a real one


def quiet(function: Callable[..., Any]) -> Callable[..., Any]:
    def operation(*arguments: Any) -> Any:
        with np.errstate(all="ignore"):
            return function(*arguments)

    return operation


mul = dmul = quiet(lambda a, b: a * b)
add = dadd = quiet(lambda a, b: a + b)
sub = quiet(lambda a, b: a - b)
div = quiet(lambda a, b: a / b)
root = quiet(np.sqrt)


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    from numba import cuda

    device_function: Callable[..., Any] = cuda.jit(device=True)(function)
    return device_function


def memory(dtype: np.dtype, width: int) -> tuple[Callable[..., Any], ...]:
    """``load(address, i)``, ``store(address, i, x)`` and their forms for `width` elements at once."""

    def at(address: int, i: int, count: int = 1) -> np.ndarray:
        memory: Any = (ctypes.c_char * (count * dtype.itemsize)).from_address(int(address) + int(i) * dtype.itemsize)
        return np.frombuffer(memory, dtype)

    def load(address: int, i: int) -> Any:
        return at(address, i)[0]

    def store(address: int, i: int, x: Any) -> None:
        assert x.dtype == dtype
        at(address, i)[0] = x

    def load_vector(address: int, i: int) -> tuple[Any, ...]:
        assert (int(address) + int(i) * dtype.itemsize) % (width * dtype.itemsize) == 0, (
            "a vector may not straddle its alignment"
        )
        return tuple(at(address, i, width))

    def store_vector(address: int, i: int, *x: Any) -> None:
        assert (int(address) + int(i) * dtype.itemsize) % (width * dtype.itemsize) == 0, (
            "a vector may not straddle its alignment"
        )
        at(address, i, width)[:] = x

    return load, store, load_vector, store_vector


def complete() -> None:
    """Give the simulator's arrays and events what the real ones have."""
    from numba import cuda
    from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray

    def interface(self: Any) -> dict[str, Any]:
        found: dict[str, Any] = self._ary.__array_interface__ | {"version": 3, "stream": None}
        return found

    event: Any = type(cuda.event())
    setattr(FakeCUDAArray, "__cuda_array_interface__", property(interface))  # noqa: B010
    event.__init__ = lambda self, timing=True: None
    event.query = lambda self: True
