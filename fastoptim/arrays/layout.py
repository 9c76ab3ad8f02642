"""Brings arrays into the form that kernels take, and lays new ones out in memory."""

from __future__ import annotations

from collections.abc import Sequence
from threading import local
from typing import Any, NamedTuple

import numpy as np

from .checks import Array


def put(target: Array, values: Any) -> None:
    """Set ``target[...] = values`` in an array of the user, where no method of a subclass is to run in between."""
    np.asarray(target)[...] = values


class Contiguous(NamedTuple):
    """One parameter's arrays as kernels take them: contiguous, aligned, one-dimensional, in one order."""

    arrays: tuple[Array, ...]  # p, g, states
    copies: tuple[tuple[Array, Array], ...]  # (target, what a step has made of its copy): of the odd layouts
    views: bool  # whether no array, the gradient included, was copied

    def copy_back(self) -> None:
        for target, copy in self.copies:
            put(target, copy.reshape(target.shape))


def _base_array(x: Array) -> Array:
    """`x` without the methods of a subclass; memmaps know their file, and kernels take them."""
    if x.dtype.char == "g":  # on Windows another name of float64, with a number that kernels do not know
        x = x.view(np.float64)
    return x if type(x) is np.memmap else np.asarray(x)


def flat(x: Array) -> Array:
    """`x` in C order, one-dimensional and aligned; a copy only where the layout asks for one."""
    return np.require(_base_array(x), requirements=("C", "A")).reshape(-1)


def to_contiguous(p: Array, g: Array, states: Sequence[Array]) -> Contiguous:
    """Views where all arrays lie in one order, else copies of the odd ones."""
    every = (p, g, *states)
    if all(x.flags.f_contiguous and x.flags.aligned for x in every):
        return Contiguous(tuple(_base_array(x).T.reshape(-1) for x in every), (), True)
    return to_c_order(p, g, states)


def to_c_order(p: Array, g: Array, states: Sequence[Array]) -> Contiguous:
    """Views where all arrays lie in C order, in which dithers and blocks count elements; else copies of the others."""
    every = (p, g, *states)
    plain = tuple(flat(x) for x in every)
    copied = [not np.may_share_memory(x, copy) for x, copy in zip(every, plain, strict=True)]
    copies = tuple((every[i], plain[i]) for i, moved in enumerate(copied) if moved and i != 1)
    return Contiguous(plain, copies, not any(copied))


CACHE_LINE = 64
CHUNK = 4 << 20  # bytes; from here on the system gives huge pages
SMALL = CHUNK >> 5
_own = local()  # each thread's chunk: a lock would be lost where Ctrl-C comes right after it was acquired


def _room(size: int) -> Array:
    """Bytes of an array's own; small ones lie side by side, as processors like to read them.

    They begin at multiples of a cache line within their chunk: behind an odd number of bytes, wider types would not be
    aligned.
    """
    if size > SMALL:
        return np.empty(size, np.uint8)
    size += -size % CACHE_LINE
    chunk = _own.__dict__.pop("chunk", None)  # taken out, as a signal's handler may come here meanwhile
    if chunk is None or chunk.size < size:
        chunk = np.empty(CHUNK, np.uint8)
    _own.chunk = chunk[size:]
    room: Array = chunk[:size]
    return room


def zeros_like(p: Array) -> Array:
    """Zeros of the shape, dtype and memory order of `p`, at the same offset within a cache line.

    Kernels run fastest when all streams reach a cache line together. `numpy.empty` asks the system for huge pages
    where they pay, which `numpy.zeros` does not in every version, so the zeros are written here.
    """
    order = "F" if p.flags.f_contiguous and not p.flags.c_contiguous else "C"
    raw = _room(p.nbytes + CACHE_LINE)
    offset = (p.__array_interface__["data"][0] - raw.__array_interface__["data"][0]) % CACHE_LINE
    offset -= offset % p.itemsize
    zeros = np.ndarray(p.shape, p.dtype, buffer=raw, offset=offset, order=order)  # type: ignore[arg-type]
    zeros[...] = 0
    return zeros


def runs_side_by_side(xs: Sequence[Any]) -> list[list[Any]]:
    """`xs` in order, cut wherever an array does not begin where the one before ends, or is of another dtype or odd."""
    runs: list[list[Any]] = []
    end = dtype = None
    for x in xs:
        plain = type(x) is np.ndarray and x.flags.c_contiguous
        start = x.__array_interface__["data"][0] if plain else None
        if plain and runs and start == end and x.dtype == dtype:
            runs[-1].append(x)
        else:
            runs.append([x])
        end, dtype = (start + x.nbytes, x.dtype) if plain else (None, None)
    return runs


def views_side_by_side(buffer: Array, xs: Sequence[Array], offset: int = 0) -> list[Array]:
    """C-ordered views of `buffer` (bytes), one behind the other, of the shapes and dtypes of `xs`."""
    views = []
    for x in xs:
        views.append(np.ndarray(x.shape, x.dtype, buffer=buffer, offset=offset))
        offset += x.nbytes
    return views
