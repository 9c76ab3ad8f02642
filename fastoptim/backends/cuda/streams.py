"""Chooses the CUDA stream that a step runs on."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import numpy as np

chosen_stream: ContextVar[Any] = ContextVar("fastoptim_cuda_stream", default=None)
# Handles that __cuda_array_interface__ reserves; None is the default stream of numba.cuda.
LEGACY, PER_THREAD = 1, 2


@contextlib.contextmanager
def on_stream(stream: Any) -> Iterator[None]:
    """Run the steps in this block on `stream`: a Numba, torch or CuPy stream, or a handle as an int.

    >>> from fastoptim.backends.cuda import on_stream
    >>> with on_stream(7):  # doctest: +SKIP
    ...     opt.step(grads)
    """
    token = chosen_stream.set(_handle_of(stream))
    try:
        yield
    finally:
        chosen_stream.reset(token)


def _handle_of(stream: Any) -> int:
    """The number by which CUDA knows a stream."""
    handle = stream
    if hasattr(stream, "__cuda_stream__"):  # Numba, cuda.core, and whoever else knows the protocol
        handle = stream.__cuda_stream__()[1]
    for name in ("cuda_stream", "ptr"):  # torch, CuPy
        handle = getattr(handle, name, handle)
    if isinstance(handle, bool) or not hasattr(handle, "__index__"):
        raise TypeError(f"stream: expected a stream or its handle, got {type(stream).__name__}")
    return int(handle) or LEGACY


def stream_of(x: Any, interface: dict[str, Any]) -> Any:
    """The stream that an array says it belongs to: a handle, a device of torch, or None."""
    stream = interface.get("stream")
    torch: Any = sys.modules.get("torch")
    if stream is None and hasattr(torch, "Tensor") and isinstance(x, torch.Tensor):  # not while a thread imports torch
        return x.device
    return stream


def resolved(stream: Any) -> int:
    """The handle of what `stream_of` has found."""
    if isinstance(stream, int | np.integer):
        return int(stream)
    return _handle_of(sys.modules["torch"].cuda.current_stream(stream))
