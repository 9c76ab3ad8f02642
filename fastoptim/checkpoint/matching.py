"""Compares the arrays of a checkpoint with the arrays that they go into, and fills those."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..arrays import device, layout
from ..common.trees import listing
from .encoding import encode
from .files import CheckpointError


def check_arrays(expected: Mapping[str, Any], saved: Any) -> None:
    """CheckpointError unless `saved` has arrays of the names, shapes and dtypes of `expected`."""
    if not isinstance(saved, dict):
        raise CheckpointError("it has no parameters by name")
    check_names(expected, saved)
    for name, p in expected.items():
        if not is_alike(p, saved[name]):
            x = saved[name]
            raise misfit(name, _described(p), (getattr(x, "shape", None), getattr(x, "dtype", None)))


def check_names(expected: Iterable[str], saved: Iterable[str]) -> None:
    """CheckpointError that says which names are not in both."""
    ours, theirs = dict.fromkeys(expected), dict.fromkeys(saved)
    lacking = {
        "the file": [name for name in ours if name not in theirs],
        "the model": [name for name in theirs if name not in ours],
    }
    told = [f"{where} lacks {listing(names):.200}" for where, names in lacking.items() if names]
    if told:
        raise CheckpointError(
            f"it has other parameters than this model: {', '.join(told)}; opt.load(path, strict=False) loads the others"
        )


def misfit(name: str, expected: tuple[Any, Any], saved: tuple[Any, Any]) -> CheckpointError:
    """Make the error for a parameter whose shape and dtype are not those in the file."""
    (shape, dtype), (their_shape, their_dtype) = expected, saved
    return CheckpointError(
        f"parameter {name!r} has shape {shape} and dtype {dtype} here, {their_shape!s:.80} and {their_dtype!s:.40} in "
        "the file"
    )


def is_alike(p: Any, x: Any) -> bool:
    """Whether `x` is an array of the shape and dtype of `p`, which may be a device's."""
    return isinstance(x, np.ndarray) and (tuple(x.shape), x.dtype) == _described(p)


def _described(p: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    face = getattr(p, "__cuda_array_interface__", None)
    shape, dtype = (p.shape, p.dtype) if face is None else (face["shape"], device.device_dtype(p))
    return tuple(shape), dtype.newbyteorder("=")  # as files are read


def check_assignable(expected: Mapping[str, Any], saved: Mapping[str, np.ndarray]) -> None:
    """ValueError if one of the arrays is read-only and holds other values than the saved ones."""
    for name, p in expected.items():
        if not _is_assignable(p, saved[name]):
            raise ValueError(f"parameter {name!r} is read-only, and its values differ")


def _is_assignable(p: Any, x: np.ndarray) -> bool:
    """Whether `x` can be assigned to `p`: a read-only array must hold these values already."""
    return not isinstance(p, np.ndarray) or p.flags.writeable or p.tobytes() == np.asarray(x, p.dtype).tobytes()


def check_holdable(expected: Mapping[str, Any], in_memory: bool = False) -> None:
    """TypeError unless a checkpoint can hold each of these parameters, or a copy of each can be kept `in_memory`."""
    for name, p in expected.items():
        if isinstance(p, np.ndarray):
            if not in_memory or isinstance(p, np.ma.MaskedArray):
                encode(p, f"parameter {name!r}", {})
        elif not hasattr(p, "__cuda_array_interface__"):
            raise TypeError(f"parameter {name!r}: a checkpoint cannot hold a {type(p).__name__}; make it an array")


def to_host(x: Any) -> np.ndarray:
    """Return `x` itself, or its copy on the host if it is a device's."""
    return x if isinstance(x, np.ndarray) else device.to_host(x)


def assign(p: Any, x: np.ndarray) -> None:
    """Set ``p[...] = x`` for an array on the host or on a device; a read-only one may hold these values already."""
    if isinstance(p, np.ndarray):
        if p.flags.writeable or not _is_assignable(p, x):
            layout.put(p, x)
        return
    device.assign(p, x)
