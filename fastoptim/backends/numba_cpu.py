"""The Numba backend for machines without a compiler: kernels generated from the update rules, parallel where that pays.

Numba compiles what `rules.lowering` makes of the rules with LLVM, which contracts nothing unless it is told to. A step
is one compiled call for each kernel and dtype, over a table of addresses, so that new arrays never mean a new
compilation. Compiled code is cached on disk under a name that holds a hash of its source.

Numba's three threading layers differ in what they survive; `_Pool` keeps steps out of trouble on each: "workqueue"
aborts the process if two threads enter it at once, and GNU OpenMP ("omp") ends a child made by fork.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from struct import Struct
from typing import Any

import numpy as np

from ..arrays import checks
from ..common.threads import fork_safe_lock
from ..common.warning import warn
from ..rules import lowering, reference
from ..rules.codecs import widened
from ..rules.norm import NORM_BLOCK, norm_from_squares
from ..rules.table import Kernel, Rule, Scalars
from . import numba_stored
from .base import Backend, BlockMeasures, KernelCall, Launch, Norm
from .numba_kernels import own_source, source

PIECE = 1 << 16  # elements that a thread takes at a time
NORM_PIECE = 16  # blocks of the norm that a thread takes at a time
ALONE_BELOW = 1 << 19  # elements; for fewer, waking a second thread costs more than it saves


class _Job:
    """One pass of a kernel over many arrays, by so many scalars of a type; `itemsize` 0: what counts are blocks."""

    __slots__ = ("_pack", "_scalars", "arguments", "table", "total")

    def __init__(
        self, kernel: int, rows: list[tuple[int, ...]], counts: Sequence[int], itemsize: int, scalars: int, dtype: Any
    ):
        self.table, ends = np.array(rows, np.uint64), np.cumsum(counts, dtype=np.int64)
        self.total = int(ends[-1])
        self._scalars: Any = np.zeros(scalars, dtype)
        self._pack = Struct(f"@{scalars}{self._scalars.dtype.char}").pack_into
        self.arguments = (kernel, self.table, ends, _address(self._scalars), itemsize)

    def set(self, values: Sequence[float]) -> None:
        """Set the scalars, rounded to their type."""
        self._pack(self._scalars, 0, *values)


_PROBE = np.array([1e-310, 1.0])  # a subnormal number, and a factor that leaves it one


class _Pool:
    """Numba's threads, where using them is safe."""

    _lock = fork_safe_lock()  # of the process, not of one backend: two threads may make a backend each

    def __init__(self, numba: Any, module: Any):
        self._numba, self._module = numba, module
        self._lost = self._layer() is not None and _only_thread()  # a child of a process that had started them
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        self._lost = self._layer() is not None

    def _layer(self) -> str | None:
        try:
            layer: str = self._numba.threading_layer()
        except ValueError:  # not started yet
            return None
        return layer

    def run(self, job: _Job, piece: int, alone_below: int, threads: int) -> None:
        """Do a job, on several threads where there is enough work and sharing it is safe."""
        arguments, workers = job.arguments, 1
        if threads > 1 and job.total >= alone_below and not self._lost:
            workers = min(threads, -(-job.total // piece), self._numba.config.NUMBA_NUM_THREADS)
        if workers < 2:
            self._module.alone(*arguments)
            return
        one = self._lock if self._layer() in (None, "workqueue") else nullcontext()
        with one:  # the first call chooses the layer
            self._module.shared(*arguments, piece, _PROBE, np.zeros(1, np.int64), workers)


def _only_thread() -> bool:
    try:
        return len(os.listdir("/proc/self/task")) == 1
    except OSError:
        return False


def _address(x: np.ndarray) -> int:
    address: int = x.__array_interface__["data"][0]
    return address


# What a cut or full cache makes of compiling.
UNREADABLE = (EOFError, pickle.UnpicklingError, OSError, AttributeError, IndexError, KeyError)


class NumbaBackend(Backend):
    name = "numba"
    alone_below = 4 * ALONE_BELOW  # no element has less than 4 bytes

    def __init__(self) -> None:
        try:
            import numba
        except ImportError as error:
            raise ImportError(f"backend 'numba' needs Numba: pip install 'fastoptim[numba]' ({error})") from error
        if numba.config.DISABLE_JIT:
            raise ImportError("backend 'numba' needs Numba's compiler, which NUMBA_DISABLE_JIT switches off: unset it")
        self._numba = numba
        self._cached = True
        try:
            self._load()
        except UNREADABLE as error:
            self._give_up_cache(error)

    def _load(self) -> None:
        self._module = lowering.load("numba_cpu", self._uncached(source()))
        self._own: dict[Rule, Any] = {}
        self._pool = _Pool(self._numba, self._module)
        self._compiled: dict[str, Any] = {}

    def _uncached(self, text: str) -> str:
        return text if self._cached else text.replace("cache=True", "cache=False")

    def _give_up_cache(self, error: Exception) -> None:
        """Compile everything anew, without the cache on the disk, and say so."""
        warn(
            f"Numba's cache of compiled code in {lowering.cache_directory()} cannot be used ({type(error).__name__}: "
            f"{error}), so kernels are compiled anew in every process: delete that folder, or make room on its disk"
        )
        self._cached = False
        self._load()

    def _module_of(self, rule: Rule | None) -> Any:
        """The generated module with the kernels of a rule; of None that with the norm."""
        if rule is None or not rule.own:
            return self._module
        if rule not in self._own:
            self._own[rule] = lowering.load(f"numba_{rule.name}", self._uncached(own_source(rule)))
        return self._own[rule]

    def _kernel(self, name: str, dtype: np.dtype, rule: Rule | None = None) -> int:
        """Address of a kernel, compiled (or read from the cache) before a step writes anything."""
        scalars = self._numba.types.CPointer(self._numba.from_dtype(dtype))
        return self._compile(f"{name}_{dtype.name}", scalars, rule)

    def _compile(self, name: str, scalars: Any, rule: Rule | None = None) -> int:
        """Address of a function ``(row, scalars, first, count)``."""
        module = self._module_of(rule)
        key = name if module is self._module else f"{module.__name__}.{name}"
        if key not in self._compiled:
            t = self._numba.types
            signature = t.void(t.CPointer(t.uint64), scalars, t.int64, t.int64)
            try:
                compiled = self._numba.cfunc(signature, cache=self._cached)(getattr(module, name))
            except UNREADABLE as error:
                if not self._cached:
                    raise
                self._give_up_cache(error)
                compiled = self._numba.cfunc(signature, cache=False)(getattr(self._module_of(rule), name))
            self._compiled[key] = compiled
        return int(self._compiled[key].address)

    def prepare(self, calls: Sequence[KernelCall], threads: int) -> Launch:
        jobs = []  # one for each dtype in a call, and how many scalars it takes
        stored_jobs = []
        for i, call in enumerate(calls):
            kernel = call.kernel
            low = [(row, by) for row, by in call.rows if by is not None and row[0].size]
            if low:
                stored_jobs.append((i, [by for _, by in low], self._stored_job(kernel, low)))
            for dtype in checks.DTYPES:
                chosen = [row for row, by in call.rows if by is None and row[0].dtype == dtype and row[0].size]
                if chosen:
                    address = self._kernel(kernel.name, dtype, kernel.rule)
                    addresses, sizes = [tuple(map(_address, row)) for row in chosen], [row[0].size for row in chosen]
                    count = 2 + len(kernel.rule.coefficients)
                    jobs.append((i, count, _Job(address, addresses, sizes, dtype.itemsize, count, dtype)))

        def launch(scalars: Sequence[Scalars]) -> None:
            checks.check_arithmetic()
            for i, count, job in jobs:  # before anything is written
                job.set(scalars[i][:count])
            for i, _, job in stored_jobs:
                job.set(scalars[i][:-1])
            for i, stored, job in stored_jobs:
                for row, by in zip(job.table, stored, strict=True):
                    numba_stored.set_keys(row, by, int(scalars[i][-1]))
                self._pool.run(job, PIECE // NORM_BLOCK, ALONE_BELOW // NORM_BLOCK, threads)
            for _, _, job in jobs:
                self._pool.run(job, PIECE, ALONE_BELOW, threads)

        return launch

    def _stored_job(self, kernel: Kernel, rows: Sequence[tuple[tuple[Any, ...], Any]]) -> _Job:
        """A kernel over parameters with arrays of fewer bits; its items are blocks of the norm."""
        inner = self._kernel(kernel.name, np.dtype(np.float32), kernel.rule)
        address = self._compile("stored_step", self._numba.types.uint64)
        table = [tuple(numba_stored.table_row(inner, row, by, _address)) for row, by in rows]
        blocks = [-(-row[0].size // NORM_BLOCK) for row, _ in rows]
        return _Job(address, table, blocks, 0, 2 + len(kernel.rule.coefficients), np.float32)

    def layouts(self, arrays: tuple[Any, ...], states: tuple[Any, ...]) -> list[dict[str, Any]] | None:
        if set(map(type, arrays)) != {np.ndarray}:
            return None
        return [x.__array_interface__ for x in arrays + states]

    def _sums(self, grads: Sequence[Any], threads: int) -> Callable[[float, float], np.ndarray]:
        """Prepares the block sums of some gradients, as a function of ``(grad_scale, k)``."""
        blocks = [-(-g.size // NORM_BLOCK) for g in grads]
        sums, scaling = np.empty(sum(blocks)), np.empty(1)
        starts = np.cumsum([0, *blocks])
        jobs = []
        for dtype in checks.DTYPES:
            chosen = [i for i, g in enumerate(grads) if g.dtype == dtype and g.size]
            if chosen:
                rows: list[tuple[int, ...]] = [
                    (_address(grads[i]), grads[i].size, _address(sums) + 8 * int(starts[i]), _address(scaling))
                    for i in chosen
                ]
                jobs.append(_Job(self._kernel("norm", dtype), rows, [blocks[i] for i in chosen], 0, 1, dtype))

        def run(grad_scale: float, k: float) -> np.ndarray:
            checks.check_arithmetic()
            scaling[0] = k
            for job in jobs:
                job.set((grad_scale,))
                self._pool.run(job, NORM_PIECE, ALONE_BELOW // NORM_BLOCK, threads)
            return sums

        return run

    def prepare_measures(self, calls: Sequence[KernelCall], threads: int) -> BlockMeasures:
        jobs, found = [], []
        scaling = np.empty(1)
        for i, (kernel, arrays, _) in enumerate(calls):
            for p, *rest in arrays:
                read = (p, *rest[: 1 + len(kernel.rule.states)])
                blocks = -(-p.size // NORM_BLOCK)
                sums = [np.empty(blocks) for _ in range(kernel.rule.terms)]
                found += sums
                if p.size:
                    address = self._kernel(kernel.name, p.dtype)
                    row = (*map(_address, read), p.size, *map(_address, (scaling, *sums)))
                    count = 2 + len(kernel.rule.coefficients)
                    jobs.append((i, _Job(address, [row], [blocks], 0, count, p.dtype)))

        def measure(scalars: Sequence[Scalars], k: float) -> list[np.ndarray]:
            checks.check_arithmetic()
            scaling[0] = k
            for i, job in jobs:
                job.set(scalars[i])
                self._pool.run(job, NORM_PIECE, ALONE_BELOW // NORM_BLOCK, threads)
            return found

        return measure

    def block_sums(self, grads: Sequence[Any], grad_scale: float, k: float, threads: int) -> np.ndarray:
        wide = [widened(g) for g in grads]  # must live until the sums are there
        return self._sums(wide, threads)(grad_scale, k)

    def prepare_norm(self, grads: Sequence[Any], threads: int) -> Norm:
        if not all(g.flags.c_contiguous and g.flags.aligned and g.dtype in checks.DTYPES for g in grads):
            return super().prepare_norm(grads, threads)
        sums = self._sums(grads, threads)
        return lambda _, grad_scale: norm_from_squares(lambda k: reference.tree_sum(sums(grad_scale, k)))

    def info(self) -> dict[str, Any]:
        return {"version": self._numba.__version__, "threads_at_most": self._numba.config.NUMBA_NUM_THREADS}
