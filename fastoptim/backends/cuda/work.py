"""The launches of an update or of a norm over arrays that were checked, with the table of addresses that they read."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from ...arrays import checks
from ...rules.codecs import Stored
from ...rules.norm import NORM_BLOCK, NORM_LANES
from ...rules.table import Kernel, Rule, Scalars
from ..base import KernelCall
from . import stored
from .device_arrays import Vector, streams_of
from .driver import Buffer, Launcher, NumbaDriver
from .places import Lease, Place

TABLES = 4  # streams on which one table is kept
_versions = itertools.count()


class Device(Protocol):
    """What launches and plans need of `backend.CudaBackend`, which imports them."""

    driver: NumbaDriver
    lock: Any  # of `common.threads.fork_safe_lock`
    threads: int

    def launcher(self, name: str, dtype: np.dtype, rule: Rule | None = None) -> Launcher: ...
    def stored_launcher(self, kernel: Kernel, form: stored.Form) -> Launcher: ...
    def grid(self, items: int) -> int: ...
    def piece(self, dtype: np.dtype, is_stored: bool) -> int: ...
    def begin(self, streams: Sequence[Any], device: int | None = None) -> tuple[Place, list[Place]]: ...
    def end(self, place: Place, others: Sequence[Place]) -> None: ...
    def norm_from(self, work: NormWork, grad_scale: float) -> float: ...
    def host_layout(self, what: str, x: Any) -> tuple[np.ndarray, Any]: ...
    def vector(self, x: Any, layout: np.ndarray, stream: Any) -> Vector: ...
    def check_arithmetic(self) -> None: ...
    def check_usable(self, what: str, x: Any, layout: np.ndarray, written: bool) -> None: ...
    def check_device(self, what: str, address: int) -> None: ...


class _Work:
    """Words that kernels read; addresses may be written anew."""

    def __init__(self, backend: Device, vectors: Sequence[Vector], words: list[int]):
        self._backend, self.device = backend, backend.driver.device()
        self.words = np.array(words, np.int64)
        self.streams = streams_of(vectors)
        self._version = next(_versions)
        self._tables: dict[Place, Lease] = {}

    def patch(self, positions: np.ndarray, addresses: np.ndarray) -> None:
        """Write addresses of arrays that have moved."""
        self._version = next(_versions)
        self.words[positions] = addresses

    def _table(self, place: Place) -> Buffer:
        """The words on the device, as the next kernel on this stream will see them."""
        lease = self._tables.get(place)
        if lease is None:
            if len(self._tables) >= TABLES:
                self._tables.clear()  # each goes back to its stream
            lease = self._tables[place] = place.lease(self.words.size)
        memory = lease.memory
        if memory.version != self._version:
            memory.write(self.words, self._version, place)
        return memory.buffer


class UpdateWork(_Work):
    """An update: one launch for each dtype, and each way of storing, in a call."""

    def __init__(self, backend: Device, calls: Sequence[KernelCall]):
        words: list[int] = []
        self.gradients: dict[tuple[int, int], int] = {}  # (call, row) -> where the gradient's address is
        self._launches = []
        for i, call in enumerate(calls):
            kernel, kinds = call.kernel, _kinds(call)
            for (dtype, form), chosen in kinds.items():
                if form is None:
                    launcher = backend.launcher(kernel.name, dtype, kernel.rule if kernel.rule.own else None)
                else:
                    launcher = backend.stored_launcher(kernel, form)
                piece = backend.piece(dtype, form is not None)
                pieces = [-(-row[0].size // piece) for _, row, _ in chosen]
                fixed = (len(words), len(chosen), sum(pieces), piece)
                count = 2 + len(kernel.rule.coefficients)
                self._launches.append((i, launcher, (backend.grid(sum(pieces)), 1), fixed, count, form is not None))
                words += np.cumsum(pieces).tolist() + [row[0].size for _, row, _ in chosen]
                for j, row, by in chosen:
                    self.gradients[i, j] = len(words) + 1
                    words += [vector.address for vector in row]
                    if form is not None and by is not None:
                        words += stored.words(kernel.rule, by, form)
        super().__init__(backend, [v for _, rows, _ in calls for row in rows for v in row], words)

    def run(self, scalars: Sequence[Scalars]) -> None:
        if not self._launches:
            return
        backend = self._backend
        with backend.lock:
            place, others = backend.begin(self.streams, self.device)
            table = self._table(place)
            for i, launcher, grid, fixed, count, takes_step in self._launches:
                k = scalars[i]
                if takes_step:
                    launcher(grid, place, table, *fixed, k[count], k[:count])
                else:
                    launcher(grid, place, table, *fixed, k if len(k) == count else k[:count])
            if others:
                backend.end(place, others)


def _kinds(call: KernelCall) -> dict[Any, list[tuple[int, tuple[Any, ...], Stored | None]]]:
    """(dtype, form if stored) -> the rows of a call that one launch can step: (number, row, how it is stored)."""
    kinds: dict[Any, list[tuple[int, tuple[Any, ...], Stored | None]]] = {}
    for j, (row, by) in enumerate(call.rows):
        if row[0].size:
            kind = (row[0].dtype, None) if by is None else (stored.SINGLE, stored.Form.of(by, row[1].dtype))
            kinds.setdefault(kind, []).append((j, row, by))
    return kinds


class NormWork(_Work):
    """Block sums of squares for each of some factors, and their sum by the tree."""

    def __init__(self, backend: Device, vectors: Sequence[Vector], ks: tuple[float, ...], tree: bool):
        blocks = [-(-v.size // NORM_BLOCK) for v in vectors]
        starts = np.cumsum([0, *blocks]).tolist()
        self._total, self._ks, self._tree = sum(blocks), ks, tree
        self.gradients: dict[int, int] = {}
        words: list[int] = []
        self._launches = []
        for dtype in dict.fromkeys(v.dtype for v in vectors):
            chosen = [i for i, v in enumerate(vectors) if v.dtype == dtype and v.size]
            if chosen:
                items = [blocks[i] for i in chosen]
                grid = backend.grid(-(-sum(items) // (backend.threads // NORM_LANES)))
                launcher = backend.launcher(f"sum_squares_{len(ks)}", dtype)
                self._launches.append((launcher, (grid, 1), (len(words), len(chosen), sum(items))))
                words += np.cumsum(items).tolist() + [vectors[i].size for i in chosen]
                for i in chosen:
                    self.gradients[i] = len(words)
                    words += [vectors[i].address, starts[i]]
        self._reduce = backend.launcher("tree", checks.DTYPES[0]) if tree else None
        super().__init__(backend, vectors, words)

    def run(self, grad_scale: float) -> np.ndarray:
        """For each factor a row: the block sums, or their sum; the host waits for them."""
        backend, ks, total = self._backend, self._ks, self._total
        if not total:
            return np.zeros((len(ks), 1 if self._tree else 0))
        with backend.lock:
            place, others = backend.begin(self.streams, self.device)
            sums, other = (place.scratch(use, len(ks) * total) for use in ("sums", "tree"))
            table = self._table(place)
            for launcher, grid, fixed in self._launches:
                launcher(grid, place, table, *fixed, grad_scale, ks, sums, total)
            left = total
            while self._reduce is not None and left > 1:
                out = -(-left // (2 * backend.threads))
                self._reduce((out, len(ks)), place, sums, left, left, other, out)
                sums, other, left = other, sums, out
            found = backend.driver.download(sums, len(ks) * left, place)
            if others:
                backend.end(place, others)
        rows: np.ndarray = found.reshape(len(ks), left)
        return rows


def factors(retry: float, vectors: Sequence[Vector]) -> tuple[float, ...]:
    """The factors whose sums a norm needs: squares of float32 or less neither overflow float64 nor vanish in it."""
    return (1.0,) if all(v.dtype != np.float64 for v in vectors) else (1.0, 1.0 / retry, retry)
