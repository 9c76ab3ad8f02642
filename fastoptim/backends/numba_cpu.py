"""The Numba backend for machines without a compiler: kernels generated from the law, parallel where that pays.

Numba compiles what `fastoptim.lowering` makes of the law with LLVM, which contracts nothing unless it is told to. A
step is one compiled call for each run and dtype, over a table of addresses, so that new arrays never mean a new
compilation. Compiled code is cached on disk under a name that holds a hash of its source.

Numba's three threading layers differ in what they survive; `_Pool` keeps steps out of trouble on each:
"workqueue" aborts the process if two threads enter it at once, and GNU OpenMP ("omp") ends a child made by fork.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import arrays, lowering
from ..rules import NORM_BLOCK, NORM_LANES, Rule
from .base import Backend, Run
from .remembering import RememberingPlan

PIECE = 1 << 16  # elements that a thread takes at a time
NORM_PIECE = 16  # blocks of the norm that a thread takes at a time
ALONE_BELOW = 1 << 19  # elements; for fewer, waking a second thread costs more than it saves
ROWS = 8  # rows of a norm block that are added between two stores of the lanes

_PRELUDE = """\
import math
import numpy as np
from llvmlite import ir
from numba import carray, njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic

root = math.sqrt
exact = njit(error_model="numpy", nogil=True, cache=True)


@intrinsic
def pointer(typing, address):
    def build(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.uint64), build


@intrinsic
def call(typing, kernel, row, k, first, count):
    # Call a kernel by its address: one driver, compiled once, then serves them all.
    def build(context, builder, signature, arguments):
        i64 = ir.IntType(64)
        function = ir.FunctionType(ir.VoidType(), [i64, i64, i64, i64])
        builder.call(builder.inttoptr(arguments[0], function.as_pointer()), arguments[1:])
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64, types.uint64, types.int64, types.int64), build


@intrinsic
def take(typing, counter):
    # One atomic addition: the number of the next piece of work.
    def build(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.atomic_rmw("add", data, context.get_constant(types.int64, 1), "monotonic")

    return types.int64(counter), build


@exact
def walk(kernel, table, ends, k, itemsize, start, stop):
    # Items [start, stop) of all arrays put end to end; an item is an element, or a block of the norm (itemsize 0).
    which = np.searchsorted(ends, start, side="right")
    while start < stop:
        begin = ends[which - 1] if which else 0
        end = min(stop, ends[which])
        row = table[which:].ctypes.data
        if itemsize:  # up to the next cache line by itself: loads and stores that cross lines are slower
            beyond = (table[which, 0] + np.uint64((start - begin) * itemsize)) % np.uint64(64)
            head = min(end - start, np.int64((np.uint64(64) - beyond) % np.uint64(64)) // itemsize)
            if head:
                call(kernel, row, k, start - begin, head)
                start += head
        if start < end:
            call(kernel, row, k, start - begin, end - start)
        start = end
        which += 1


@njit("void(uint64, uint64[:, ::1], int64[::1], uint64, int64)", nogil=True, cache=True)
def alone(kernel, table, ends, k, itemsize):
    walk(kernel, table, ends, k, itemsize, 0, ends[-1])


@njit(
    "void(uint64, uint64[:, ::1], int64[::1], uint64, int64, int64, float64[::1], int64[::1], int64)",
    nogil=True, cache=True, parallel=True,
)
def shared(kernel, table, ends, k, itemsize, piece, probe, counter, workers):
    total = ends[-1]
    for worker in prange(workers):
        while probe[0] * probe[1] != 0.0:  # not if this thread flushes subnormal numbers to zero
            start = take(counter) * piece
            if start >= total:
                break
            walk(kernel, table, ends, k, itemsize, start, min(start + piece, total))
    start = take(counter) * piece
    while start < total:  # what such threads have left
        walk(kernel, table, ends, k, itemsize, start, min(start + piece, total))
        start = take(counter) * piece
"""

# A kernel works on `count` items of one array from item `first` on; `row` holds addresses, `k` the scalars of a run.
_UPDATE = """\
def {name}_{dtype}(row, k, first, count):
    offset = np.uint64(first * {itemsize})
{pointers}
{scalars}
    for i in range(count):
        {targets} = {name}({values})
"""

_BLOCK_SUM = """\
@exact
def square(scaling, s, x):
    y = scaling * np.float64(scale(x, s))
    return y * y


@exact
def block_sum(g, s, scaling, lanes):
    lanes[:] = 0.0
    tiles = g.size // {tile}
    for t in range(np.uintp(tiles)):
        x = g[t * {tile} : (t + 1) * {tile}]
        for i in range(np.uintp({lanes})):
            lane = lanes[i]
{rows}
            lanes[i] = lane
    for i in range(tiles * {tile}, g.size):
        lanes[i % {lanes}] += square(scaling, s, g[i])
    width = {lanes}
    while width > 1:
        width //= 2
        for i in range(width):
            lanes[i] = lanes[2 * i] + lanes[2 * i + 1]
    return lanes[0]
"""

_NORM = """\
def norm_{dtype}(row, k, first, count):
    g = carray(pointer(row[0]), np.int64(row[1]), np.{dtype})
    sums = carray(pointer(row[2]), first + count, np.float64)
    scaling = carray(pointer(row[3]), 1, np.float64)[0]
    lanes = np.empty({lanes})
    for block in range(first, first + count):
        start = block * {block}
        sums[block] = block_sum(g[start : min(start + {block}, g.size)], k[0], scaling, lanes)
"""


def _update(rule: Rule, decay: str, dtype: np.dtype) -> str:
    streams, scalars = lowering.arguments(rule)
    targets = [f"{x}[i]" for x in streams if x != "g"]
    return _UPDATE.format(
        name=lowering.element_name(rule, decay),
        dtype=dtype.name,
        itemsize=dtype.itemsize,
        pointers="\n".join(
            f"    {x} = carray(pointer(row[{j}] + offset), count, np.{dtype.name})" for j, x in enumerate(streams)
        ),
        scalars="\n".join(f"    {x} = k[{j}]" for j, x in enumerate(scalars)),
        targets=", ".join(targets) + ("," if len(targets) == 1 else ""),
        values=", ".join([f"{x}[i]" for x in streams] + list(scalars)),
    )


def source() -> str:
    """The module that is compiled: the law, a loop for each rule, decay and dtype, and the norm."""
    functions = lowering.law() + [lowering.element(rule, decay) for rule, decay in lowering.variants()]
    rows = [f"            lane = lane + square(scaling, s, x[i + np.uintp({j * NORM_LANES})])" for j in range(ROWS)]
    return "\n\n".join(
        [
            _PRELUDE,
            *(f"@exact\n{text}\n" for text in functions),
            *(_update(*variant, dtype) for variant in lowering.variants() for dtype in arrays.DTYPES),
            _BLOCK_SUM.format(tile=ROWS * NORM_LANES, lanes=NORM_LANES, rows="\n".join(rows)),
            *(_NORM.format(dtype=dtype.name, lanes=NORM_LANES, block=NORM_BLOCK) for dtype in arrays.DTYPES),
        ]
    )


class _Job:
    """One pass of a kernel over many arrays."""

    __slots__ = ("ends", "itemsize", "kernel", "table", "total")

    def __init__(self, kernel: int, rows: list[tuple[int, ...]], counts: Sequence[int], itemsize: int):
        self.kernel, self.itemsize = kernel, itemsize
        self.table, self.ends = np.array(rows, np.uint64), np.cumsum(counts, dtype=np.int64)
        self.total = int(self.ends[-1])


_PROBE = np.array([1e-310, 1.0])  # a subnormal number, and a factor that leaves it one


class _Pool:
    """Numba's threads, where using them is safe."""

    _lock = threading.Lock()  # of the process, not of one backend: two threads may make a backend each

    def __init__(self, numba: Any, module: Any):
        self._numba, self._module = numba, module
        self._lost = self._layer() is not None and _only_thread()  # a child of a process that had started them
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        self._lost = self._layer() is not None
        type(self)._lock = threading.Lock()

    def _layer(self) -> str | None:
        try:
            return self._numba.threading_layer()
        except ValueError:  # not started yet
            return None

    def run(self, job: _Job, k: np.ndarray, piece: int, alone_below: int, threads: int) -> None:
        """Do a job, on several threads where there is enough work and sharing it is safe."""
        arguments = (job.kernel, job.table, job.ends, _address(k), job.itemsize)
        workers = min(threads, -(-job.total // piece), self._numba.config.NUMBA_NUM_THREADS)
        if workers < 2 or job.total < alone_below or self._lost:
            self._module.alone(*arguments)
            return
        layer = self._layer()
        if layer in ("omp", "tbb"):
            self._shared(arguments, piece, workers)
        elif self._lock.acquire(blocking=layer is None):  # the first call chooses the layer: let it be the only one
            try:
                self._shared(arguments, piece, workers)
            finally:
                self._lock.release()
        else:
            self._module.alone(*arguments)

    def _shared(self, arguments: tuple[Any, ...], piece: int, workers: int) -> None:
        self._module.shared(*arguments, piece, _PROBE, np.zeros(1, np.int64), workers)


def _only_thread() -> bool:
    try:
        return len(os.listdir("/proc/self/task")) == 1
    except OSError:
        return False


def _address(x: np.ndarray) -> int:
    return x.__array_interface__["data"][0]


def _rounded(values: Sequence[float], dtype: np.dtype) -> np.ndarray:
    with np.errstate(over="ignore", under="ignore"):
        return np.array(values, np.float64).astype(dtype)


class NumbaBackend(Backend):
    name = "numba"

    def __init__(self) -> None:
        try:
            import numba
        except ImportError as error:
            raise ImportError(f"backend 'numba' needs Numba: pip install numba ({error})") from error
        if numba.config.DISABLE_JIT:
            raise ImportError("backend 'numba' needs Numba's compiler, which NUMBA_DISABLE_JIT switches off: unset it")
        self._numba = numba
        self._module = lowering.load("numba_cpu", source())
        self._pool = _Pool(numba, self._module)
        self._compiled: dict[str, Any] = {}

    def _kernel(self, name: str, dtype: np.dtype) -> int:
        """Address of a kernel, compiled (or read from the cache) before a step writes anything."""
        name = f"{name}_{dtype.name}"
        if name not in self._compiled:
            t = self._numba.types
            signature = t.void(t.CPointer(t.uint64), t.CPointer(self._numba.from_dtype(dtype)), t.int64, t.int64)
            self._compiled[name] = self._numba.cfunc(signature, cache=True)(getattr(self._module, name))
        return self._compiled[name].address

    def apply(self, runs: Sequence[Run], scale: float, threads: int) -> None:
        lists = [
            (run.rule, run.decay, [(p, g, *s) for p, g, s in zip(run.params, run.grads, run.states, strict=True)])
            for run in runs
        ]
        scalars = [(-scale if run.maximize else scale, run.decay_coefficient, *run.coefficients) for run in runs]
        self.launch(self.prepare(lists), scalars, threads)

    def prepare(self, lists: Sequence[tuple[Rule, str, list[tuple[Any, ...]]]]) -> list[tuple[int, np.dtype, _Job]]:
        """One job for each dtype in a list of (rule, decay, rows of plain arrays)."""
        jobs = []
        for i, (rule, decay, rows) in enumerate(lists):
            for dtype in arrays.DTYPES:
                chosen = [row for row in rows if row[0].dtype == dtype and row[0].size]
                if chosen:
                    kernel = self._kernel(lowering.element_name(rule, decay), dtype)
                    addresses = [tuple(map(_address, row)) for row in chosen]
                    jobs.append((i, dtype, _Job(kernel, addresses, [row[0].size for row in chosen], dtype.itemsize)))
        return jobs

    def launch(
        self, prepared: Sequence[tuple[int, np.dtype, _Job]], scalars: Sequence[tuple[float, ...]], threads: int
    ) -> None:
        """Do the jobs, with the scalars of each list."""
        arrays.check_subnormals()
        for i, dtype, job in prepared:
            self._pool.run(job, _rounded(scalars[i], dtype), PIECE, ALONE_BELOW, threads)

    def plan(self, rows: Sequence[Any], counter: list[int], threads: int) -> RememberingPlan:
        return RememberingPlan(self, rows, counter, threads)

    def faces(self, arrays: tuple[Any, ...], states: tuple[Any, ...]) -> list[dict[str, Any]] | None:
        """What each array says of itself; None if one is not a plain NumPy array."""
        if set(map(type, arrays)) != {np.ndarray}:
            return None
        return [x.__array_interface__ for x in arrays + states]

    def stage_without_copy(self, p: Any, g: Any, states: Sequence[Any]) -> arrays.Staged | None:
        """The arrays in their plain form if that takes no copy."""
        every = [x.flags for x in (p, g, *states)]
        if all(f.aligned and f.c_contiguous for f in every) or all(f.aligned and f.f_contiguous for f in every):
            return arrays.stage(p, g, states)
        return None

    def block_sums(self, grads: Sequence[Any], grad_scale: float, k: float, threads: int) -> np.ndarray:
        arrays.check_subnormals()
        blocks = [-(-g.size // NORM_BLOCK) for g in grads]
        sums = np.empty(sum(blocks))
        scaling = np.array([k], np.float64)
        starts = np.cumsum([0, *blocks])
        for dtype in arrays.DTYPES:
            chosen = [i for i, g in enumerate(grads) if g.dtype == dtype and g.size]
            if not chosen:
                continue
            rows: list[tuple[int, ...]] = [
                (_address(grads[i]), grads[i].size, _address(sums) + 8 * int(starts[i]), _address(scaling))
                for i in chosen
            ]
            s = _rounded((grad_scale,), dtype)
            job = _Job(self._kernel("norm", dtype), rows, [blocks[i] for i in chosen], 0)
            self._pool.run(job, s, NORM_PIECE, ALONE_BELOW // NORM_BLOCK, threads)
        return sums

    def info(self) -> dict[str, Any]:
        return {"version": self._numba.__version__, "threads_at_most": self._numba.config.NUMBA_NUM_THREADS}
