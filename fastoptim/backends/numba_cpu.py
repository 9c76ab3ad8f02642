"""The Numba backend for machines without a compiler: kernels generated from the law, parallel where that pays.

Numba compiles what `fastoptim.lowering` makes of the law with LLVM, which contracts nothing unless it is told to. A step
is one compiled call for each run and dtype, over a table of addresses, so that new arrays never mean a new compilation.
Compiled code is cached on disk under a name that holds a hash of its source.

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

PIECE = 1 << 14  # elements that a thread takes at a time
NORM_PIECE = 4  # blocks of the norm that a thread takes at a time
ALONE_BELOW = 1 << 16  # elements; for fewer, waking a second thread costs more than it saves
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
def call(typing, function, job, start, stop):
    # Call a kernel by its address: one driver, compiled once, then serves them all.
    def build(context, builder, signature, arguments):
        i64 = ir.IntType(64)
        kernel = ir.FunctionType(ir.VoidType(), [i64, i64, i64])
        builder.call(builder.inttoptr(arguments[0], kernel.as_pointer()), arguments[1:])
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64, types.int64, types.int64), build


@intrinsic
def take(typing, counter):
    # One atomic addition: the number of the next piece of work.
    def build(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.atomic_rmw("add", data, context.get_constant(types.int64, 1), "monotonic")

    return types.int64(counter), build


@njit("void(uint64, uint64, int64)", nogil=True, cache=True)
def serial(function, job, total):
    call(function, job, 0, total)


@njit("void(uint64, uint64, int64, int64, float64[::1], int64[::1], int64)", nogil=True, cache=True, parallel=True)
def parallel(function, job, total, piece, probe, counter, workers):
    for worker in prange(workers):
        while probe[0] * probe[1] != 0.0:  # not if this thread flushes subnormal numbers to zero
            start = take(counter) * piece
            if start >= total:
                break
            call(function, job, start, min(start + piece, total))
    start = take(counter) * piece
    while start < total:  # what such threads have left
        call(function, job, start, min(start + piece, total))
        start = take(counter) * piece
"""

# A kernel works on the pieces [start, stop) of everything that a job holds: `job` points to addresses and counts.
_UPDATE = """\
@exact
def {name}_span(row, first, size, k):
    offset = np.uint64(first * k.itemsize)
{pointers}
{coefficients}
    for i in range(np.uintp(size)):  # unsigned, so that no test for negative indices keeps it from being vectorised
        {targets} = {name}({values})


@exact
def {name}_kernel(table, ends, k, start, stop):
    which = np.searchsorted(ends, start, side="right")
    while start < stop:
        begin = ends[which - 1] if which else 0
        end = min(stop, ends[which])
        {name}_span(table[which], start - begin, end - start, k)
        start = end
        which += 1
"""

_NORM = """\
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


@exact
def norm_kernel(table, ends, k, start, stop):
    lanes = np.empty({lanes})
    which = np.searchsorted(ends, start, side="right")
    while start < stop:
        row = table[which]
        g = carray(pointer(row[0]), row[1], k.dtype)
        begin = ends[which - 1] if which else 0
        end = min(stop, ends[which])
        out = carray(pointer(row[2]), ends[which] - begin, np.float64)
        scaling = carray(pointer(row[3]), 1, np.float64)[0]
        for block in range(start - begin, end - begin):
            first = block * {block}
            out[block] = block_sum(g[first : min(first + {block}, g.size)], k[0], scaling, lanes)
        start = end
        which += 1
"""

# Entry points with a plain C signature, one for each dtype.
_ENTRY = """\
def {name}_{dtype}(job, start, stop):
    header = carray(job, 4)
    table = carray(pointer(header[0]), (header[3], {columns}), np.uint64)
    ends = carray(pointer(header[1]), header[3], np.int64)
    k = carray(pointer(header[2]), {scalars}, np.{dtype})
    {name}_kernel(table, ends, k, start, stop)
"""


def _update(rule: Rule, decay: str) -> str:
    streams, scalars = lowering.arguments(rule)
    targets = [f"{x}[i]" for x in streams if x != "g"]
    return _UPDATE.format(
        name=lowering.element_name(rule, decay),
        pointers="\n".join(
            f"    {x} = carray(pointer(row[{j}] + offset), size, k.dtype)" for j, x in enumerate(streams)
        ),
        coefficients="\n".join(f"    {x} = k[{j}]" for j, x in enumerate(scalars)),
        targets=", ".join(targets) + ("," if len(targets) == 1 else ""),
        values=", ".join([f"{x}[i]" for x in streams] + list(scalars)),
    )


def source() -> str:
    """The module that is compiled: the law, one loop for each rule and decay, and the norm."""
    functions = lowering.law() + [lowering.element(rule, decay) for rule, decay in lowering.variants()]
    rows = [f"            lane = lane + square(scaling, s, x[i + np.uintp({j * NORM_LANES})])" for j in range(ROWS)]
    parts = [_PRELUDE, *(f"@exact\n{text}\n" for text in functions)]
    parts.append(_NORM.format(tile=ROWS * NORM_LANES, lanes=NORM_LANES, block=NORM_BLOCK, rows="\n".join(rows)))
    shapes = {"norm": (4, 1)}
    for rule, decay in lowering.variants():
        parts.append(_update(rule, decay))
        shapes[lowering.element_name(rule, decay)] = tuple(map(len, lowering.arguments(rule)))
    for name, (columns, scalars) in shapes.items():
        for dtype in arrays.DTYPES:
            parts.append(_ENTRY.format(name=name, dtype=dtype.name, columns=columns, scalars=scalars))
    return "\n\n".join(parts)


class _Job:
    """One pass of a kernel over many arrays."""

    __slots__ = ("_held", "header", "kernel", "total")

    def __init__(self, kernel: int, rows: list[tuple[int, ...]], counts: Sequence[int], k: np.ndarray):
        table, ends = np.array(rows, np.uint64), np.cumsum(counts, dtype=np.int64)
        self._held = (table, ends, k)
        self.kernel, self.total = kernel, int(ends[-1])
        self.header = np.array([_address(table), _address(ends), _address(k), len(rows)], np.uint64)


_PROBE = np.array([1e-310, 1.0])  # a subnormal number, and a factor that leaves it one


class _Pool:
    """Numba's threads, where using them is safe."""

    def __init__(self, numba: Any, module: Any):
        self._numba, self._module = numba, module
        self._lock = threading.Lock()
        self._lost = self._layer() is not None and _only_thread()  # a child of a process that had started them
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        self._lost = self._layer() is not None
        self._lock = threading.Lock()

    def _layer(self) -> str | None:
        try:
            return self._numba.threading_layer()
        except ValueError:  # not started yet
            return None

    def run(self, job: _Job, piece: int, alone_below: int, threads: int) -> None:
        """Do a job, on several threads where there is enough work and sharing it is safe."""
        workers = min(threads, -(-job.total // piece), self._numba.config.NUMBA_NUM_THREADS)
        if workers < 2 or job.total < alone_below or self._lost:
            self._alone(job)
            return
        layer = self._layer()
        if layer in ("omp", "tbb"):
            self._shared(job, piece, workers)
        elif self._lock.acquire(blocking=layer is None):  # the first call chooses the layer: let it be the only one
            try:
                self._shared(job, piece, workers)
            finally:
                self._lock.release()
        else:
            self._alone(job)

    def _alone(self, job: _Job) -> None:
        self._module.serial(job.kernel, _address(job.header), job.total)

    def _shared(self, job: _Job, piece: int, workers: int) -> None:
        counter = np.zeros(1, np.int64)
        self._module.parallel(job.kernel, _address(job.header), job.total, piece, _PROBE, counter, workers)


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
            compiler = self._numba.cfunc(t.void(t.CPointer(t.uint64), t.int64, t.int64), cache=True)
            self._compiled[name] = compiler(getattr(self._module, name))
        return self._compiled[name].address

    def apply(self, runs: Sequence[Run], scale: float, threads: int) -> None:
        arrays.check_subnormals()
        jobs = [job for run in runs for dtype in arrays.DTYPES if (job := self._job(run, scale, dtype)) is not None]
        for job in jobs:
            self._pool.run(job, PIECE, ALONE_BELOW, threads)

    def _job(self, run: Run, scale: float, dtype: np.dtype) -> _Job | None:
        rows, sizes = [], []
        for p, g, states in zip(run.params, run.grads, run.states, strict=True):
            if p.dtype == dtype and p.size:
                rows.append((_address(p), _address(g), *map(_address, states)))
                sizes.append(p.size)
        if not rows:
            return None
        s = -scale if run.maximize else scale
        k = _rounded((s, run.decay_coefficient, *run.coefficients), dtype)
        return _Job(self._kernel(lowering.element_name(run.rule, run.decay), dtype), rows, sizes, k)

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
            rows = [
                (_address(grads[i]), grads[i].size, _address(sums) + 8 * int(starts[i]), _address(scaling))
                for i in chosen
            ]
            job = _Job(self._kernel("norm", dtype), rows, [blocks[i] for i in chosen], _rounded((grad_scale,), dtype))
            self._pool.run(job, NORM_PIECE, ALONE_BELOW // NORM_BLOCK, threads)
        return sums

    def info(self) -> dict[str, Any]:
        return {"version": self._numba.__version__, "threads_at_most": self._numba.config.NUMBA_NUM_THREADS}
