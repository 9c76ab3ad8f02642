"""Arrays on a GPU: their dtype, and copies from and to the host."""

from __future__ import annotations

from typing import Any

import numpy as np

from .storage import small_dtype


def device_dtype(x: Any) -> np.dtype:
    """The dtype of a device array, whose interface knows bfloat16 and float8 by their size alone."""
    dtype: np.dtype = np.dtype(x.__cuda_array_interface__["typestr"])
    if dtype.kind != "V":
        return dtype
    name = {"bfloat16": "bfloat16", "float8_e4m3fn": "float8"}.get(str(getattr(x, "dtype", dtype)).rpartition(".")[2])
    found = small_dtype(name) if name else dtype
    if found is None:
        raise ImportError(f"arrays of {name} need ml_dtypes: pip install ml_dtypes")
    return found


def to_host(x: Any) -> np.ndarray:
    """A copy of a device array, after all work that is under way."""
    from numba import cuda

    cuda.synchronize()  # a step may be on a stream that the default one does not wait for
    dtype = device_dtype(x)
    if not hasattr(x, "copy_to_host"):
        x = cuda.as_cuda_array(x)
    copy: np.ndarray = x.copy_to_host()
    return copy.view(dtype)


def assign(p: Any, x: np.ndarray) -> None:
    """Fill a device array of any layout from a NumPy array of its shape and dtype."""
    from numba import cuda

    device = p if hasattr(p, "copy_to_device") else cuda.as_cuda_array(p)
    if x.dtype.itemsize < 4:  # numba.cuda does not know all of these, nor views of 0-d arrays
        raw = f"u{x.dtype.itemsize}"
        device, x = (device, x) if x.ndim else (device.reshape(1), x.reshape(1))
        device, x = device.view(raw), x.view(raw)
    cuda.synchronize()
    if device.flags["C_CONTIGUOUS"] or device.flags["F_CONTIGUOUS"]:
        device.copy_to_device(np.array(x, order="A"))
    else:  # numba.cuda does not take an Ellipsis here
        device[(slice(None),) * x.ndim] = cuda.to_device(np.ascontiguousarray(x))
    cuda.synchronize()
