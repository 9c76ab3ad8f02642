"""Parameters and states in files: steps over memory-mapped arrays, in tiles, within a budget of resident memory.

An optimizer whose parameters are `numpy.memmap` arrays, or that is given `state_dir` or `memory_budget`, steps its
mapped arrays in tiles: the pages of the next tile are asked for (``madvise(MADV_WILLNEED)``) while one is computed, and
those behind it are let go of (``MADV_DONTNEED``; the kernel writes changed pages back to their files in its own time).
Resident pages of mapped files stay within the budget, however large the files are; bits are those of any other step.

Before a step every mapping is compared with its file: one that has become shorter is a ValueError, and nothing was
changed. What cannot be noticed: a file that is cut while the step is running, a medium that fails to deliver a page, or
a sparse file on a disk that is full; the system then ends the process with SIGBUS. State files are allocated in full
when they are made, so that for them a full disk is an OSError at that time.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import checks, layout
from ..rules.codecs import part
from ..rules.norm import NORM_BLOCK
from ..rules.table import Scalars
from .base import Backend, BlockMeasures, KernelCall, Launch

DEFAULT_BUDGET = 256 << 20
PAGE = mmap.PAGESIZE
_UNITS = {"": 1, "B": 1, "K": 1 << 10, "KIB": 1 << 10, "M": 1 << 20, "MIB": 1 << 20, "G": 1 << 30, "GIB": 1 << 30}


def budget_in_bytes(value: Any) -> int:
    """`memory_budget` in bytes: an int, or a string such as "512 MiB"; TypeError or ValueError for others."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer, str)):
        raise TypeError(f"memory_budget must be a number of bytes or a string such as '512 MiB', got {value!r}")
    if isinstance(value, str):
        digits = value.strip().rstrip("KMGiIbBkmg ")
        unit = value.strip()[len(digits) :].strip().upper()
        if not digits.isdecimal() or unit not in _UNITS:
            raise ValueError(f"memory_budget must be a number of bytes or a string such as '512 MiB', got {value!r}")
        value = int(digits) * _UNITS[unit]
    if value < 1 << 20:
        raise ValueError(f"memory_budget must be at least 1 MiB, got {value} bytes")
    return int(value)


def mapping_of(x: Any) -> mmap.mmap | None:
    """The mapping behind a memmap array or a view of one; None for other arrays."""
    return getattr(x, "_mmap", None) if isinstance(x, np.memmap) else None


def _base(mapping: mmap.mmap) -> int:
    """Address of the first byte of a mapping."""
    address: int = np.frombuffer(mapping, np.uint8, 1).__array_interface__["data"][0]
    return address


def _start(x: Any) -> int:
    """Where the mapping of a memmap array begins in the file."""
    return int(x.offset - x.offset % mmap.ALLOCATIONGRANULARITY)


def check_file(label: str, x: Any) -> None:
    """ValueError if the file under a memmap array has become too short for it."""
    mapping = mapping_of(x)
    if mapping is None or not x.size:
        return
    end = _start(x) + np.lib.array_utils.byte_bounds(x)[1] - _base(mapping)
    size = mapping.size()
    if size < end:
        raise ValueError(f"{label}: {x.filename} was truncated: it has {size} bytes, the array ends at byte {end}")


def check_mapped_once(written: Iterable[checks.Span], read: Iterable[checks.Span]) -> None:
    """ValueError if bytes of a file that are written are mapped at two addresses, where no other check sees it."""
    files: dict[Any, list[checks.Entry]] = {}
    for writes, spans in ((True, written), (False, read)):
        for s in spans:
            mapping = mapping_of(s.array)
            if mapping is None or s.low == s.high or s.array.mode == "c":
                continue
            try:
                status = os.stat(s.array.filename)
            except (OSError, TypeError):  # the file has no name any more, or never had one
                continue
            shift = _start(s.array) - _base(mapping)
            entry = (s.low + shift, s.high + shift, writes, s)
            files.setdefault((status.st_dev, status.st_ino), []).append(entry)
    for mapped in files.values():
        if found := checks.first_overlap(mapped, _at_two_addresses):
            first, second = (entry[3] for entry in found)
            raise ValueError(f"{first.label} and {second.label} overlap in the file {first.array.filename}")


def _at_two_addresses(a: checks.Span, b: checks.Span) -> bool:
    return _base(a.array._mmap) != _base(b.array._mmap)


def _advise(arrays: Iterable[Any], advice: int) -> None:
    """Give advice about the pages of memmap arrays that share them with their files."""
    for x in arrays:
        mapping = mapping_of(x)
        if mapping is None or not x.size or x.mode == "c":  # letting go of a private page would lose its changes
            continue
        low, high = np.lib.array_utils.byte_bounds(x)
        base = _base(mapping)
        start = (low - base) // PAGE * PAGE
        with contextlib.suppress(OSError):  # advice only
            mapping.madvise(advice, start, min(high - base, len(mapping)) - start)


_WILLNEED, _DONTNEED = getattr(mmap, "MADV_WILLNEED", None), getattr(mmap, "MADV_DONTNEED", None)


def _walk(tiles: Sequence[Sequence[Any]], budget: int) -> Iterator[Sequence[Any]]:
    """The tiles in order, each read ahead while the one before is in use, and let go of after use.

    Where all mapped arrays fit the budget they simply stay.
    """
    mapped = sum(x.nbytes for tile in tiles for x in tile if mapping_of(x) is not None)
    if mapped <= budget or _WILLNEED is None or _DONTNEED is None:
        yield from tiles
        return
    for i, tile in enumerate(tiles):
        if i + 1 < len(tiles):
            _advise(tiles[i + 1], _WILLNEED)
        yield tile
        _advise(tile, _DONTNEED)


class OffloadBackend(Backend):
    """Another host backend, whose arrays may lie in files.

    Parameters
    ----------
    inner : Backend
        What computes.
    state_dir : path, optional
        Folder for the states, one file each; they are scratch files that go when the optimizer does (or the process
        ends), so that `Optimizer.save` is how to keep them. By default states live in memory.
    memory_budget : int or str, optional
        Bound, in bytes or as "512 MiB", for resident pages of mapped files during a step; default 256 MiB.
    """

    def __init__(self, inner: Backend, state_dir: Any = None, memory_budget: Any = None):
        if inner.name == "cuda":
            raise ValueError("state_dir and memory_budget are for host arrays, not for backend='cuda'")
        self.inner, self.name = inner, inner.name
        self.budget = DEFAULT_BUDGET if memory_budget is None else budget_in_bytes(memory_budget)
        try:
            self.folder = None if state_dir is None else Path(state_dir)
        except TypeError:
            raise TypeError(f"state_dir must be the path of a folder, got {state_dir!r}") from None
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)

    def share(self, parts: int) -> OffloadBackend:
        """One for so many optimizers, whose states lie in the same folder and which have one budget together."""
        other = OffloadBackend(self.inner, self.folder)
        other.budget = self.budget // parts
        return other

    def check_disjoint(self, written: Iterable[checks.Span], read: Iterable[checks.Span]) -> None:
        written, read = list(written), list(read)
        super().check_disjoint(written, read)
        check_mapped_once(written, read)

    # --- arithmetic, tile by tile

    def _cut(self, *streams: Any) -> list[tuple[int, list[Any]]]:
        """Tiles of a parameter's arrays, and where they begin: three, one in use and its neighbours, fill the budget.

        They end at blocks of the norm, whose sum is then that of the whole.
        """
        size = streams[0].size
        if all(mapping_of(x) is None for x in streams):
            return [(0, list(streams))] if size else []
        length = self.budget // (3 * sum(x.itemsize for x in streams))
        length = max(NORM_BLOCK, length - length % NORM_BLOCK)
        return [(i, [part(x, size, i, i + length) for x in streams]) for i in range(0, size, length)]

    def prepare(self, calls: Sequence[KernelCall], threads: int) -> Launch:
        tiles, steps = [], []
        for i, call in enumerate(calls):
            for row, stored in call.rows:
                for start, tile in self._cut(*row):
                    tiles.append(tile)
                    by = None if stored is None else stored.after(start)
                    steps.append((i, self.inner.prepare([KernelCall(call.kernel, [tuple(tile)], [by])], threads)))

        def launch(scalars: Sequence[Scalars]) -> None:
            for (i, step), _ in zip(steps, _walk(tiles, self.budget), strict=True):
                step([scalars[i]])

        return launch

    def prepare_measures(self, calls: Sequence[KernelCall], threads: int) -> BlockMeasures:
        counts, tiles, steps = [], [], []  # for each array how many tiles and terms it has
        for i, (kernel, arrays, _) in enumerate(calls):
            for row in arrays:
                cut = [tuple(tile) for _, tile in self._cut(*row)]
                counts.append((len(cut), kernel.rule.terms))
                tiles += cut
                steps += [(i, self.inner.prepare_measures([KernelCall(kernel, [tile])], threads)) for tile in cut]

        def measure(scalars: Sequence[Scalars], k: float) -> list[np.ndarray]:
            found = [step([scalars[i]], k) for (i, step), _ in zip(steps, _walk(tiles, self.budget), strict=True)]
            rest, sums = iter(found), []
            for count, terms in counts:
                own = [next(rest) for _ in range(count)]
                sums += [np.concatenate([np.zeros(0), *(tile[term] for tile in own)]) for term in range(terms)]
            return sums

        return measure

    def block_sums(self, grads: Sequence[Any], grad_scale: float, k: float, threads: int) -> np.ndarray:
        tiles = [tile for g in grads for _, tile in self._cut(g)]
        sums = [self.inner.block_sums(tile, grad_scale, k, threads) for tile in _walk(tiles, self.budget)]
        return np.concatenate([np.zeros(0), *sums])

    def info(self) -> dict[str, Any]:
        return self.inner.info()

    # --- arrays

    @staticmethod
    def span(label: str, x: Any) -> checks.Span:
        """As for any array; every array of a step passes here before anything is written, so files are checked here."""
        check_file(label, x)
        return checks.span(label, x)

    def host_copy(self, x: Any) -> np.ndarray:
        return np.array(x)

    def zeros_like(self, p: Any) -> Any:
        return layout.zeros_like(p) if self.folder is None else _zeros_on_disk(self.folder, p)


def _zeros_on_disk(folder: Path, p: Any) -> Any:
    """Zeros of the shape, dtype and memory order of `p` in a new file, which is removed with the array."""
    if not p.size:
        return layout.zeros_like(p)
    handle, path = tempfile.mkstemp(prefix="state-", suffix=".bin", dir=folder)
    os.close(handle)
    try:
        with open(path, "r+b", opener=lambda name, flags: os.open(name, flags | _GOES_WITH_LAST_HANDLE)) as file:
            _allocate(file.fileno(), p.nbytes)
            order: Any = "F" if p.flags.f_contiguous and not p.flags.c_contiguous else "C"
            state: Any = np.memmap(file, dtype=p.dtype, mode="r+", shape=p.shape, order=order)
    except BaseException:
        _remove(path, os.getpid())
        raise
    weakref.finalize(state, _remove, path, os.getpid())
    return state


# Windows removes no file that is mapped: there it goes with the handle that the mapping keeps.
_GOES_WITH_LAST_HANDLE = getattr(os, "O_TEMPORARY", 0)


def _allocate(handle: int, size: int) -> None:
    """Reserve `size` bytes of zeros on the disk, where the system can; OSError if there is no room."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(handle, 0, size)
    else:
        os.truncate(handle, size)


def _remove(path: str, owner: int) -> None:
    if os.getpid() == owner:  # not from a fork of the process
        with contextlib.suppress(OSError):
            os.unlink(path)
