"""The CUDA backend, through numba-cuda: the law in ``_rn`` operations, a handful of launches for any list of arrays.

NVVM and ptxas fuse plain multiplies and adds, and no switch of ``cuda.jit`` forbids it; so every operator of the law
becomes a libdevice call that is rounded to nearest by name (`fastoptim.lowering`). All arrays of one dtype that share a
rule and coefficients are one launch over a table of addresses. The table is uploaded only when an address has changed,
from pinned memory and on the step's own stream, so that a step without clipping never waits for the device; a step with
it waits once, for the norm.

A step runs on the stream that is given by `on_stream`, else on the current stream of torch's tensors, else on the
stream that the arrays export (``__cuda_array_interface__`` version 3), else on the default stream. Where arrays come
from several streams, events put the step after all of them, and later work of all of them after the step. Arrays must
live on the current device of `numba.cuda`.
"""

from __future__ import annotations

import contextlib
import math
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np

from .. import arrays, lowering, rules
from ..rules import NORM_BLOCK, NORM_LANES, Rule
from .base import Backend, Run
from .remembering import RememberingPlan

THREADS = 256  # per block
BLOCKS_PER_MULTIPROCESSOR = 16
PIECE = 4096  # elements that a block takes at a time
VECTOR_BYTES = 16  # the widest load
LAUNCHERS = 1000  # launch configurations that are kept
ROWS = 8  # rows of a norm block that are loaded before they are added

_OPERATIONS = {
    np.dtype(np.float32): {"mul": "fmul_rn", "add": "fadd_rn", "div": "fdiv_rn", "root": "fsqrt_rn"},
    np.dtype(np.float64): {"mul": "dmul_rn", "add": "dadd_rn", "div": "ddiv_rn", "root": "dsqrt_rn"},
}

_PRELUDE = """\
import numpy as np
from numba import cuda

inlined = cuda.jit(device=True, inline="always")
"""

_COMPILED = """\
from llvmlite import ir
from numba import types
from numba.cuda import libdevice
from numba.cuda.extending import intrinsic

{operations}
dmul, dadd = libdevice.dmul_rn, libdevice.dadd_rn


@inlined
def sub(a, b):  # libdevice has no dsub_rn
    return add(a, -b)


def element(builder, arguments, width):
    kind = ir.{ir_type}()
    first = builder.gep(builder.inttoptr(arguments[0], kind.as_pointer(1)), [arguments[1]])
    return builder.bitcast(first, ir.VectorType(kind, width).as_pointer(1)) if width > 1 else first


@intrinsic
def load(typing, address, i):
    def build(context, builder, signature, arguments):
        return builder.load(element(builder, arguments, 1), align={itemsize})

    return types.{dtype}(types.int64, types.int64), build


@intrinsic
def store(typing, address, i, x):
    def build(context, builder, signature, arguments):
        builder.store(arguments[2], element(builder, arguments, 1), align={itemsize})
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.{dtype}), build


@intrinsic
def load_vector(typing, address, i):
    def build(context, builder, signature, arguments):
        loaded = builder.load(element(builder, arguments, {width}), align={vector_bytes})
        parts = [builder.extract_element(loaded, ir.IntType(32)(j)) for j in range({width})]
        return context.make_tuple(builder, signature.return_type, parts)

    return types.UniTuple(types.{dtype}, {width})(types.int64, types.int64), build


@intrinsic
def store_vector(typing, address, i, {vector}):
    def build(context, builder, signature, arguments):
        value = ir.Constant(ir.VectorType(ir.{ir_type}(), {width}), ir.Undefined)
        for j in range({width}):
            value = builder.insert_element(value, arguments[2 + j], ir.IntType(32)(j))
        builder.store(value, element(builder, arguments, {width}), align={vector_bytes})
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, *[types.{dtype}] * {width}), build
"""

_SIMULATED = """\
from fastoptim.backends.cuda_simulator import add, dadd, div, dmul, memory, mul, root, sub

load, store, load_vector, store_vector = memory(np.dtype("{dtype}"), {width})
"""

# `table` holds, from `begin` on: the running total of items of `count` arrays, their sizes, and a row for each.
_FIND = """\
@inlined
def find(table, begin, count, item):
    low, high = np.int64(0), count - 1
    while low < high:
        middle = (low + high) >> 1
        if table[begin + middle] > item:
            high = middle
        else:
            low = middle + 1
    return low
"""

# `range` with a step would cost a division of 64-bit integers: hence the loops with `while`.
_UPDATE = """\
def {name}(table, begin, count, pieces, piece, k):
{scalars}
    thread, threads = np.int64(cuda.threadIdx.x), np.int64(cuda.blockDim.x)
    number = np.int64(cuda.blockIdx.x)
    while number < pieces:
        which = find(table, begin, count, number)
        before = table[begin + which - 1] if which > 0 else np.int64(0)
        start = (number - before) * piece
        stop = min(start + piece, table[begin + count + which])
        row = begin + 2 * count + which * {streams}
{addresses}
        if ({every}) % {vector_bytes} == 0:
            full = start + ((stop - start) & -{width})
            i = start + thread * {width}
            while i < full:
{vector}
                i += threads * {width}
            start = full
        i = start + thread
        while i < stop:
{loads}
            {targets} = {name}_element({values})
{stores}
            i += threads
        number += np.int64(cuda.gridDim.x)
"""

_SUM = """\
def sum_squares_{n}(table, begin, count, blocks, s, ks, sums, stride):
    {factors}, = ks
    shared = cuda.shared.array({threads}, np.float64)
    thread = np.int64(cuda.threadIdx.x)
    lane, group = thread & {last_lane}, thread >> {lane_bits}
    groups = np.int64(cuda.blockDim.x) >> {lane_bits}
    first = np.int64(cuda.blockIdx.x) * groups
    while first < blocks:
        {totals} = {zeros}
        number = first + group
        target = np.int64(-1)
        if number < blocks:
            which = find(table, begin, count, number)
            before = table[begin + which - 1] if which > 0 else np.int64(0)
            row = begin + 2 * count + which * 2
            address = table[row]
            target = table[row + 1] + number - before
            start = (number - before) * {block}
            stop = min(start + {block}, table[begin + count + which])
            tiles = start + ((stop - start) & -{tile})
            i = start + lane
            while i < tiles:
{tile_loads}
{tile_sums}
                i += {tile}
            while i < stop:
                x0 = np.float64(scale(load(address, i), s))
{row_sums}
                i += {lanes}
{combine}
        first += np.int64(cuda.gridDim.x) * groups
"""

_COMBINE = """\
        shared[thread] = {total}
        cuda.syncthreads()
        width = 1
        while width < {lanes}:
            if lane & (2 * width - 1) == 0:
                shared[thread] = dadd(shared[thread], shared[thread + width])
            cuda.syncthreads()
            width *= 2
        if lane == 0 and target >= 0:
            sums[{j} * stride + target] = shared[thread]
        cuda.syncthreads()"""

# One level after another of the pairwise tree, for as many values as a block of threads can hold.
_TREE = """\
def tree(values, count, stride, out, out_stride):
    shared = cuda.shared.array({twice}, np.float64)
    thread, threads = np.int64(cuda.threadIdx.x), np.int64(cuda.blockDim.x)
    row, first = np.int64(cuda.blockIdx.y), np.int64(cuda.blockIdx.x) * 2 * threads
    left = min(count - first, 2 * threads)
    i = thread
    while i < left:
        shared[i] = values[row * stride + first + i]
        i += threads
    cuda.syncthreads()
    while left > 1:
        total = 0.0
        if 2 * thread < left:
            total = shared[2 * thread]
            if 2 * thread + 1 < left:
                total = dadd(total, shared[2 * thread + 1])
        cuda.syncthreads()
        if 2 * thread < left:
            shared[thread] = total
        cuda.syncthreads()
        left = (left + 1) >> 1
    if thread == 0:
        out[row * out_stride + np.int64(cuda.blockIdx.x)] = shared[0]
"""

_PLAIN = """\
def multiply(address, size, s):
    for i in range(np.int64(cuda.grid(1)), size, np.int64(cuda.gridsize(1))):
        store(address, i, scale(load(address, i), s))


def fill(address, size, x):
    for i in range(np.int64(cuda.grid(1)), size, np.int64(cuda.gridsize(1))):
        store(address, i, x)


def move(source, target, table, begin, dimensions, size):
    # Element by element in C order; the table holds, for each dimension: length, stride of source and of target.
    for i in range(np.int64(cuda.grid(1)), size, np.int64(cuda.gridsize(1))):
        rest, a, b = i, np.int64(0), np.int64(0)
        for d in range(dimensions - 1, -1, -1):
            at = begin + 3 * d
            index = rest % table[at]
            rest = rest // table[at]
            a += index * table[at + 1]
            b += index * table[at + 2]
        store(target, b, load(source, a))
"""


def _indent(depth: int, lines: Sequence[str]) -> str:
    return "\n".join("    " * depth + line for line in lines)


def _update(rule: Rule, decay: str, width: int) -> str:
    streams, scalars = lowering.arguments(rule)
    written = [x for x in streams if x != "g"]
    name = lowering.element_name(rule, decay)

    def call(suffix: str) -> str:
        return f"{name}_element({', '.join([x + suffix for x in streams] + list(scalars))})"

    vector = [", ".join(f"{x}{j}" for j in range(width)) + f" = load_vector(at_{x}, i)" for x in streams]
    vector += [", ".join(f"{x}{j}" for x in written) + f", = {call(str(j))}" for j in range(width)]
    vector += [f"store_vector(at_{x}, i, " + ", ".join(f"{x}{j}" for j in range(width)) + ")" for x in written]
    return _UPDATE.format(
        name=name,
        streams=len(streams),
        width=width,
        vector_bytes=VECTOR_BYTES,
        scalars=_indent(1, [f"{x} = k[{j}]" for j, x in enumerate(scalars)]),
        addresses=_indent(2, [f"at_{x} = table[row + {j}]" for j, x in enumerate(streams)]),
        every=" | ".join(f"at_{x}" for x in streams),
        vector=_indent(4, vector),
        loads=_indent(3, [f"{x} = load(at_{x}, i)" for x in streams]),
        targets=", ".join(written) + ("," if len(written) == 1 else ""),
        values=", ".join([*streams, *scalars]),
        stores=_indent(3, [f"store(at_{x}, i, {x})" for x in written]),
    )


def _sum_squares(n: int, threads: int) -> str:
    def add(j: int, x: str) -> list[str]:
        return [f"y = dmul(k{j}, {x})", f"total{j} = dadd(total{j}, dmul(y, y))"]

    return _SUM.format(
        n=n,
        threads=threads,
        lanes=NORM_LANES,
        last_lane=NORM_LANES - 1,
        lane_bits=NORM_LANES.bit_length() - 1,
        block=NORM_BLOCK,
        tile=ROWS * NORM_LANES,
        factors=", ".join(f"k{j}" for j in range(n)),
        totals=", ".join(f"total{j}" for j in range(n)),
        zeros=", ".join("0.0" for _ in range(n)),
        tile_loads=_indent(
            4, [f"x{r} = np.float64(scale(load(address, i + {r * NORM_LANES}), s))" for r in range(ROWS)]
        ),
        tile_sums=_indent(4, [line for r in range(ROWS) for j in range(n) for line in add(j, f"x{r}")]),
        row_sums=_indent(4, [line for j in range(n) for line in add(j, "x0")]),
        combine="\n".join(_COMBINE.format(total=f"total{j}", j=j, lanes=NORM_LANES) for j in range(n)),
    )


def source(dtype: np.dtype, threads: int = THREADS, simulated: bool = False) -> str:
    """The module of kernels for one dtype: for the compiler, or for the simulator."""
    width = VECTOR_BYTES // dtype.itemsize
    if simulated:
        operations = _SIMULATED.format(dtype=dtype.name, width=width)
    else:
        operations = _COMPILED.format(
            dtype=dtype.name,
            itemsize=dtype.itemsize,
            width=width,
            vector_bytes=VECTOR_BYTES,
            ir_type={4: "FloatType", 8: "DoubleType"}[dtype.itemsize],
            vector=", ".join(f"x{j}" for j in range(width)),
            operations="\n".join(f"{name} = libdevice.{function}" for name, function in _OPERATIONS[dtype].items()),
        )
    elements = [lowering.element(*variant, suffix="_element") for variant in lowering.variants()]
    return "\n\n".join(
        [
            _PRELUDE,
            operations,
            *(f"@inlined\n{text}\n" for text in lowering.law(calls=True) + elements),
            _FIND,
            *(_update(*variant, width) for variant in lowering.variants()),
            *(_sum_squares(n, threads) for n in (1, 3)),
            _TREE.format(twice=2 * threads),
            _PLAIN,
        ]
    )


def signatures(dtype: np.dtype) -> dict[str, tuple[Any, ...]]:
    """Kernel name -> argument types."""
    from numba import from_dtype, types

    T, whole = from_dtype(dtype), types.int64
    table, sums = types.Array(types.int64, 1, "C"), types.Array(types.float64, 1, "C")
    result: dict[str, tuple[Any, ...]] = {}
    for rule, decay in lowering.variants():
        k = types.UniTuple(T, len(lowering.arguments(rule)[1]))
        result[lowering.element_name(rule, decay)] = (table, whole, whole, whole, whole, k)
    for n in (1, 3):
        ks = types.UniTuple(types.float64, n)
        result[f"sum_squares_{n}"] = (table, whole, whole, whole, T, ks, sums, whole)
    result["tree"] = (sums, whole, whole, sums, whole)
    result["multiply"] = result["fill"] = (whole, whole, T)
    result["move"] = (whole, whole, table, whole, whole, whole)
    return result


# --- Streams ------------------------------------------------------------------------------------------------------

_chosen: ContextVar[Any] = ContextVar("fastoptim_cuda_stream", default=None)

# Handles that __cuda_array_interface__ reserves; None is the default stream of numba.cuda.
LEGACY, PER_THREAD = 1, 2


@contextlib.contextmanager
def on_stream(stream: Any) -> Iterator[None]:
    """Run the steps in this block on `stream`: a Numba, torch or CuPy stream, or a handle as an int.

    >>> from fastoptim.backends.cuda import on_stream
    >>> with on_stream(7):  # doctest: +SKIP
    ...     opt.step(grads)
    """
    token = _chosen.set(_handle_of(stream))
    try:
        yield
    finally:
        _chosen.reset(token)


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


def _stream_of(x: Any, interface: dict[str, Any]) -> Any:
    """The stream that an array says it belongs to: a handle, a device of torch, or None."""
    stream = interface.get("stream")
    if stream is None and (torch := sys.modules.get("torch")) is not None and isinstance(x, torch.Tensor):
        return x.device
    return stream


def _resolved(stream: Any) -> int:
    return stream if isinstance(stream, int) else _handle_of(sys.modules["torch"].cuda.current_stream(stream))


# --- Arrays -------------------------------------------------------------------------------------------------------


class _Shadow:
    """What NumPy needs to reason about a device array's layout. Its elements must never be read."""

    def __init__(self, interface: dict[str, Any]):
        self.__array_interface__ = {key: interface.get(key) for key in ("shape", "typestr", "strides", "data")} | {
            "version": 3
        }


class Vector(NamedTuple):
    """A plain device array: contiguous, one-dimensional."""

    address: int
    size: int
    dtype: np.dtype
    stream: Any  # None, a handle, or the device whose current stream it is in torch
    owner: Any  # keeps the memory alive


def _streams(vectors: Iterable[Vector]) -> list[Any]:
    """What the streams of vectors are known by, each once."""
    return list(dict.fromkeys(v.stream for v in vectors if v.stream is not None))


class _Prepared(NamedTuple):
    """The table for a step, its launches (list, dtype, kernel, where it finds its rows), and the arrays' streams."""

    words: np.ndarray
    launches: list[tuple[int, np.dtype, Any, tuple[int, int, int, int]]]
    streams: list[Any]


class _Staged(NamedTuple):
    """One parameter's arrays as vectors, and what must be moved back after the step (see `arrays.Staged`)."""

    p: Vector
    g: Vector
    states: tuple[Vector, ...]
    moves: tuple[tuple[Any, np.ndarray, Vector], ...]
    backend: CudaBackend

    def write_back(self) -> None:
        for stream, shadow, copy in self.moves:
            self.backend.move(stream, copy.address, _dense_strides(shadow.shape), shadow, back=True)


def _dense_strides(shape: tuple[int, ...]) -> list[int]:
    """Strides, in elements, of a C-ordered array."""
    return [math.prod(shape[d + 1 :]) for d in range(len(shape))]


class _Table:
    """Numbers that a stream's kernels read: one buffer on the device, written from pinned memory in stream order."""

    def __init__(self, cuda: Any):
        self._cuda = cuda
        self._words: np.ndarray | None = None
        self._slots: list[tuple[Any, Any]] = []  # pinned buffers, each with the event after its upload
        self._capacity = 0
        self.device: Any = None

    def upload(self, words: np.ndarray, stream: Any) -> Any:
        if self._words is not None and np.array_equal(self._words, words):
            return self.device
        if words.size > self._capacity:
            self._capacity = 2 * words.size
            self.device = self._cuda.device_array(self._capacity, np.int64)
            self._slots = []
        slot = next((slot for slot in self._slots if slot[1].query()), None)
        if slot is None:
            slot = self._cuda.pinned_array(self._capacity, np.int64), self._cuda.event(timing=False)
            self._slots.append(slot)
        buffer, event = slot
        buffer[: words.size] = words
        self._words = None  # an interrupted upload leaves nothing known
        self.device[: words.size].copy_to_device(buffer[: words.size], stream=stream)
        event.record(stream)
        self._words = words
        return self.device


class CudaPlan(RememberingPlan):
    """As long as no array has moved, a step only compares and launches."""

    def __init__(self, backend: CudaBackend, rows: Sequence[Any], counter: list[int], threads: int):
        super().__init__(backend, rows, counter, threads)
        self._norm_faces: list[dict[str, Any]] | None = None
        self._norm_vectors: list[Vector] = []

    def norm(self, grads: tuple[Any, ...], grad_scale: float) -> float | None:
        """Norm of all gradients; None if one is not plain and C-ordered."""
        backend = self._backend
        faces = backend.faces(grads)
        if faces is None:
            return None
        if faces != self._norm_faces:
            self._norm_faces = None
            vectors = []
            for g in grads:
                shadow, stream = backend.view("gradient", g)
                if not shadow.flags.c_contiguous or shadow.dtype not in arrays.DTYPES:
                    return None
                vectors.append(backend.vector(None, shadow, stream))  # without a hold on its memory
            self._norm_faces, self._norm_vectors = faces, vectors
        return backend.norm_of(self._norm_vectors, grad_scale)


# --- The backend --------------------------------------------------------------------------------------------------


class CudaBackend(Backend):
    name = "cuda"

    def __init__(self) -> None:
        if find_spec("numba_cuda") is None:
            raise ImportError("backend 'cuda' needs numba-cuda: pip install \"fastoptim[cuda]\"")
        try:
            from numba import config, cuda
        except ImportError as error:
            raise ImportError(f"backend 'cuda' needs numba-cuda: pip install \"fastoptim[cuda]\" ({error})") from error
        self.simulated = bool(getattr(config, "ENABLE_CUDASIM", False))
        if self.simulated:
            from . import cuda_simulator

            cuda_simulator.complete()
            self.threads = cuda_simulator.THREADS
        else:
            _require_device(cuda)
            self.threads = THREADS
        self._cuda = cuda
        self._lock = threading.RLock()
        self._modules: dict[np.dtype, Any] = {}
        self._kernels: dict[tuple[str, np.dtype], Any] = {}
        self._launchers: dict[tuple[Any, ...], Any] = {}
        self._streams: dict[int | None, Any] = {}
        self._tables: dict[int | None, _Table] = {}
        self._scratch: dict[tuple[int | None, str], Any] = {}
        processors = 1 if self.simulated else cuda.get_current_device().MULTIPROCESSOR_COUNT
        self._blocks = 3 if self.simulated else BLOCKS_PER_MULTIPROCESSOR * processors

    # --- kernels and launches

    def kernel(self, name: str, dtype: np.dtype) -> Any:
        """A kernel, compiled (or read from the cache on disk) on first use."""
        key = (name, dtype)
        if key not in self._kernels:
            if dtype not in self._modules:
                text = source(dtype, self.threads, self.simulated)
                self._modules[dtype] = lowering.load(f"cuda_{dtype.name}", text)
            function = getattr(self._modules[dtype], name)
            if self.simulated:
                self._kernels[key] = self._cuda.jit(function)
            else:
                self._kernels[key] = self._cuda.jit(signatures(dtype)[name], cache=True)(function)
        return self._kernels[key]

    def _launch(self, kernel: Any, grid: int | tuple[int, int], stream: Any, *arguments: Any) -> None:
        key = (kernel, grid, stream)
        launcher = None if self.simulated else self._launchers.get(key)
        if launcher is None:
            if len(self._launchers) >= LAUNCHERS:
                self._launchers.clear()
            with warnings.catch_warnings():  # of grids that are small because the arrays are
                warnings.simplefilter("ignore")
                launcher = self._launchers[key] = kernel[grid, self.threads, stream]
        launcher(*arguments)

    def _grid(self, items: int) -> int:
        return max(1, min(items, self._blocks))

    def _elements(self, size: int) -> int:
        """Blocks for a kernel in which a thread takes one element at a time."""
        return self._grid(-(-size // self.threads))

    # --- streams

    def stream(self, handle: int | None) -> Any:
        """numba.cuda's object for a stream."""
        if self.simulated:
            handle = None
        if handle not in self._streams:
            if handle is None:
                self._streams[handle] = self._cuda.default_stream()
            elif handle == LEGACY:
                self._streams[handle] = self._cuda.legacy_default_stream()
            elif handle == PER_THREAD:
                self._streams[handle] = self._cuda.per_thread_default_stream()
            else:
                self._streams[handle] = self._cuda.external_stream(handle)
        return self._streams[handle]

    @contextlib.contextmanager
    def _on(self, streams: Sequence[Any]) -> Iterator[tuple[int | None, Any]]:
        """The stream for work on arrays of these: after what the streams hold now, before what they hold later."""
        handles = list(dict.fromkeys(map(_resolved, streams)))
        chosen = _chosen.get()
        handle = chosen if chosen is not None else (handles[0] if handles else None)
        stream = self.stream(handle)
        others = [self.stream(h) for h in handles if h != handle]
        for other in others:
            event = self._cuda.event(timing=False)
            event.record(other)
            event.wait(stream)
        yield handle, stream
        if others:
            event = self._cuda.event(timing=False)
            event.record(stream)
            for other in others:
                event.wait(other)

    def _table(self, handle: int | None, words: np.ndarray, stream: Any) -> Any:
        return self._tables.setdefault(handle, _Table(self._cuda)).upload(words, stream)

    def _buffer(self, handle: int | None, use: str, size: int) -> Any:
        """Device memory for float64 sums, kept from step to step."""
        key = (handle, use)
        if key not in self._scratch or self._scratch[key].size < size:
            self._scratch[key] = self._cuda.device_array(max(size, 1024), np.float64)
        return self._scratch[key]

    # --- arithmetic

    def apply(self, runs: Sequence[Run], scale: float, threads: int) -> None:
        lists = [
            (run.rule, run.decay, [(p, g, *s) for p, g, s in zip(run.params, run.grads, run.states, strict=True)])
            for run in runs
        ]
        scalars = [(-scale if run.maximize else scale, run.decay_coefficient, *run.coefficients) for run in runs]
        self.launch(self.prepare(lists), scalars, threads)

    def prepare(self, lists: Sequence[tuple[Rule, str, Sequence[tuple[Vector, ...]]]]) -> _Prepared:
        """The table and the launches for (rule, decay, rows of vectors): one launch for each dtype in a list."""
        words: list[int] = []
        launches = []
        for i, (rule, decay, rows) in enumerate(lists):
            for dtype in arrays.DTYPES:
                chosen = [row for row in rows if row[0].dtype == dtype and row[0].size]
                if not chosen:
                    continue
                kernel = self.kernel(lowering.element_name(rule, decay), dtype)
                piece = self._piece(sum(p.size for p, *_ in chosen))
                pieces = [-(-p.size // piece) for p, *_ in chosen]
                launches.append((i, dtype, kernel, (len(words), len(chosen), sum(pieces), piece)))
                words += np.cumsum(pieces).tolist() + [p.size for p, *_ in chosen]
                words += [vector.address for row in chosen for vector in row]
        streams = _streams(vector for _, _, rows in lists for row in rows for vector in row)
        return _Prepared(np.array(words, np.int64), launches, streams)

    def launch(self, prepared: _Prepared, scalars: Sequence[tuple[float, ...]], threads: int) -> None:
        """Run what was prepared, with the scalars of each list."""
        if not prepared.launches:
            return
        with self._lock, self._on(prepared.streams) as (handle, stream):
            table = self._table(handle, prepared.words, stream)
            for i, dtype, kernel, (begin, count, pieces, piece) in prepared.launches:
                k = _rounded(scalars[i], dtype)
                self._launch(kernel, self._grid(pieces), stream, table, begin, count, pieces, piece, k)

    def plan(self, rows: Sequence[Any], counter: list[int], threads: int) -> CudaPlan:
        return CudaPlan(self, rows, counter, threads)

    def faces(self, arrays: tuple[Any, ...], states: tuple[Any, ...] = ()) -> list[dict[str, Any]] | None:
        """What each array says of itself; None if one is not on the GPU."""
        try:
            return [x.__cuda_array_interface__ for x in arrays]
        except AttributeError:
            return None

    def _piece(self, total: int) -> int:
        """Elements that a block takes at a time: fewer where there would be too few blocks for the device."""
        smallest = self.threads * VECTOR_BYTES // 8
        return max(smallest, min(PIECE, -(-total // self._blocks // smallest) * smallest))

    def _sums(self, vectors: Sequence[Vector], grad_scale: float, ks: tuple[float, ...], tree: bool) -> np.ndarray:
        """For each factor in `ks` the block sums of all arrays, or their sum by the tree; the host waits for it."""
        with self._lock:
            blocks = [-(-v.size // NORM_BLOCK) for v in vectors]
            total = sum(blocks)
            if not total:
                return np.zeros((len(ks), 1 if tree else 0))
            starts = np.cumsum([0, *blocks]).tolist()
            words: list[int] = []
            launches = []
            for dtype in arrays.DTYPES:
                chosen = [i for i, v in enumerate(vectors) if v.dtype == dtype and v.size]
                if chosen:
                    kernel = self.kernel(f"sum_squares_{len(ks)}", dtype)
                    items = [blocks[i] for i in chosen]
                    launches.append((kernel, len(words), len(chosen), sum(items), _rounded((grad_scale,), dtype)[0]))
                    words += np.cumsum(items).tolist() + [vectors[i].size for i in chosen]
                    words += [word for i in chosen for word in (vectors[i].address, starts[i])]
            reduce = self.kernel("tree", arrays.DTYPES[0])
            with self._on(_streams(vectors)) as (handle, stream):
                sums, other = (self._buffer(handle, use, len(ks) * total) for use in ("sums", "tree"))
                table = self._table(handle, np.array(words, np.int64), stream)
                groups = self.threads // NORM_LANES
                for kernel, begin, count, items_, s in launches:
                    grid = self._grid(-(-items_ // groups))
                    self._launch(kernel, grid, stream, table, begin, count, items_, s, ks, sums, total)
                left = total
                while tree and left > 1:
                    out = -(-left // (2 * self.threads))
                    self._launch(reduce, (out, len(ks)), stream, sums, left, left, other, out)
                    sums, other, left = other, sums, out
                host = sums[: len(ks) * left].copy_to_host(stream=stream)
                stream.synchronize()
            return host.reshape(len(ks), left)

    def norm(self, grads: Sequence[Any], grad_scale: float, threads: int) -> float:
        """Norm of all gradients after `grad_scale`; the host waits for the device once."""
        return self.norm_of([self.flat(g) for g in grads], grad_scale)

    def norm_of(self, vectors: Sequence[Vector], grad_scale: float) -> float:
        ks = (1.0, 1.0 / rules.NORM_RETRY, rules.NORM_RETRY)
        if all(v.dtype == np.float32 for v in vectors):  # squares of float32 neither overflow float64 nor vanish in it
            totals = dict.fromkeys(ks, float(self._sums(vectors, grad_scale, ks[:1], tree=True)[0, 0]))
        else:
            totals = dict(zip(ks, self._sums(vectors, grad_scale, ks, tree=True)[:, 0].tolist(), strict=True))
        return rules.norm_from_squares(totals.__getitem__)

    def block_sums(self, grads: Sequence[Any], grad_scale: float, k: float, threads: int) -> np.ndarray:
        return self._sums(grads, grad_scale, (float(k),), tree=False)[0]

    def multiply(self, xs: Sequence[Any], factor: float) -> None:
        for x in xs:
            form = self.stage(x, x, ())
            with self._lock, self._on(_streams([form.p])) as (_, stream):
                kernel, s = self.kernel("multiply", form.p.dtype), _rounded((factor,), form.p.dtype)[0]
                self._launch(kernel, self._elements(form.p.size), stream, form.p.address, form.p.size, s)
            form.write_back()

    def move(self, stream: Any, address: int, strides: Sequence[int], shadow: np.ndarray, back: bool = False) -> None:
        """Copy the elements of an array of any layout to dense memory at `address`, or `back` from there."""
        if not shadow.size:
            return
        odd = [stride // shadow.itemsize for stride in shadow.strides]
        source, target = (address, _address(shadow)) if back else (_address(shadow), address)
        columns = (shadow.shape, strides, odd) if back else (shadow.shape, odd, strides)
        words = np.array(columns, np.int64).T.ravel()
        handle, stream = stream
        table = self._table(handle, words, stream)
        kernel = self.kernel("move", shadow.dtype)
        self._launch(kernel, self._elements(shadow.size), stream, source, target, table, 0, shadow.ndim, shadow.size)

    # --- arrays

    def view(self, what: str, x: Any) -> tuple[np.ndarray, Any]:
        """The layout of a device array, as an array that must not be read, and the stream that it belongs to."""
        try:
            interface = x.__cuda_array_interface__
        except AttributeError:
            raise TypeError(
                f"{what}: expected an array on the GPU (with __cuda_array_interface__), got {type(x).__name__}"
            ) from None
        return np.asarray(_Shadow(interface)), _stream_of(x, interface)

    def describe(self, x: Any) -> tuple[tuple[int, ...], Any]:
        shadow, _ = self.view("array", x)
        return shadow.shape, shadow.dtype

    def check_parameter(self, name: str, p: Any, role: str = "parameter") -> None:  # type: ignore[override]
        shadow, _ = self.view(f"{role} {name!r}", p)
        arrays.check_parameter(name, shadow, role)
        _check_aligned(f"{role} {name!r}", shadow)

    def check_companion(self, name: str, role: str, x: Any, shape: tuple[int, ...], dtype: Any) -> Any:  # type: ignore[override]
        shadow, _ = self.view(f"{role} of parameter {name!r}", x)
        arrays.check_match(name, role, shadow.shape, shadow.dtype, shape, np.dtype(dtype))
        _check_aligned(f"{role} of parameter {name!r}", shadow)
        return x

    def span(self, label: str, x: Any) -> arrays.Span:  # type: ignore[override]
        return arrays.span(label, self.view(label, x)[0])

    def vector(self, x: Any, shadow: np.ndarray, stream: Any) -> Vector:
        return Vector(_address(shadow), shadow.size, shadow.dtype, stream, x)

    def _copy(self, shadow: np.ndarray, stream: tuple[int | None, Any]) -> Vector:
        copy = self._cuda.device_array(max(1, shadow.size), shadow.dtype)
        address = _address(self.view("copy", copy)[0])
        self.move(stream, address, _dense_strides(shadow.shape), shadow)
        return Vector(address, shadow.size, shadow.dtype, stream[0], copy)

    def stage(self, p: Any, g: Any, states: Sequence[Any]) -> Any:  # type: ignore[override]
        form = self.stage_without_copy(p, g, states)
        if form is not None:
            return form
        every = [(x, *self.view("array", x)) for x in (p, g, *states)]
        vectors = [self.vector(*entry) for entry in every]
        moves = []
        with self._lock, self._on(_streams(vectors)) as stream:
            for i, (_, shadow, _) in enumerate(every):
                if not shadow.flags.c_contiguous:
                    vectors[i] = self._copy(shadow, stream)
                    if i != 1:
                        moves.append((stream, shadow, vectors[i]))
        return _Staged(vectors[0], vectors[1], tuple(vectors[2:]), tuple(moves), self)

    def stage_without_copy(self, p: Any, g: Any, states: Sequence[Any]) -> _Staged | None:
        """The arrays as vectors if all lie in one order without gaps."""
        every = [(x, *self.view("array", x)) for x in (p, g, *states)]
        if all(s.flags.c_contiguous for _, s, _ in every) or all(s.flags.f_contiguous for _, s, _ in every):
            vectors = [self.vector(*entry) for entry in every]
            return _Staged(vectors[0], vectors[1], tuple(vectors[2:]), (), self)
        return None

    def flat(self, x: Any) -> Any:  # type: ignore[override]
        shadow, stream = self.view("array", x)
        vector = self.vector(x, shadow, stream)
        if shadow.flags.c_contiguous:
            return vector
        with self._lock, self._on(_streams([vector])) as chosen:
            return self._copy(shadow, chosen)

    def zeros_like(self, p: Any) -> Any:  # type: ignore[override]
        shadow, _ = self.view("array", p)
        order = "F" if shadow.flags.f_contiguous and not shadow.flags.c_contiguous else "C"
        zeros = self._cuda.device_array(shadow.shape, shadow.dtype, order=order)
        if shadow.size:
            address = _address(self.view("state", zeros)[0])
            zero = _rounded((0.0,), shadow.dtype)[0]
            kernel, grid = self.kernel("fill", shadow.dtype), self._elements(shadow.size)
            self._launch(kernel, grid, self.stream(None), address, shadow.size, zero)
            self._cuda.synchronize()  # whatever stream the first step runs on
        return zeros

    def host_copy(self, x: Any) -> np.ndarray:
        return x.copy_to_host()

    def assign(self, target: Any, value: Any) -> None:
        target.copy_to_device(np.array(value, order="A"))

    def info(self) -> dict[str, Any]:
        import numba
        import numba_cuda

        found: dict[str, Any] = {"numba": numba.__version__, "numba-cuda": numba_cuda.__version__}
        if self.simulated:
            return found | {"device": "simulator"}
        device = self._cuda.get_current_device()
        name = device.name.decode() if isinstance(device.name, bytes) else device.name
        return found | {
            "device": name,
            "compute capability": ".".join(map(str, device.compute_capability)),
            "multiprocessors": device.MULTIPROCESSOR_COUNT,
            "CUDA runtime": ".".join(map(str, self._cuda.runtime.get_version())),
        }


def _require_device(cuda: Any) -> None:
    """RuntimeError that says what is missing unless a kernel can be run."""
    install = "install NVIDIA's driver on a machine with an NVIDIA GPU, or use a host backend"
    if not cuda.is_available():
        reason = cuda.cuda_error() if hasattr(cuda, "cuda_error") else None
        detail = " ".join(str(reason).split()) if reason else "no GPU was found"
        raise RuntimeError(f"backend 'cuda' needs an NVIDIA GPU and its driver ({detail}): {install}")


def _rounded(values: Sequence[float], dtype: np.dtype) -> tuple[Any, ...]:
    with np.errstate(over="ignore", under="ignore"):
        return tuple(dtype.type(value) for value in values)


def _address(shadow: np.ndarray) -> int:
    return shadow.__array_interface__["data"][0]


def _check_aligned(what: str, shadow: np.ndarray) -> None:
    if not shadow.flags.aligned or any(stride % shadow.itemsize for stride in shadow.strides):
        raise ValueError(f"{what}: a GPU cannot read elements that are not aligned to their size")
