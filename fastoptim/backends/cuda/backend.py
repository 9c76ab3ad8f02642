"""The CUDA backend, through numba-cuda: update rules in ``_rn`` operations, a few launches for any list of arrays.

NVVM and ptxas fuse plain multiplies and adds, and no switch of ``cuda.jit`` forbids it; so every operator of a rule
becomes a libdevice call that is rounded to nearest by name (`rules.lowering`). All arrays of one dtype that share a
kernel and its scalars are one launch over a table of addresses. The table is uploaded only when an address has changed,
from pinned memory and on the step's own stream, so that a step without clipping never waits for the device; a step with
it waits once, for the norm.

A step runs on the stream that is given by `on_stream`, else on the current stream of torch's tensors, else on the
stream that the arrays export (``__cuda_array_interface__`` version 3), else on the default stream. Where arrays come
from several streams, events put the step after all of them, and later work of all of them after the step. Arrays must
live on the current device of `numba.cuda`.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from ... import rules
from ...arrays import checks
from ...common.threads import ForkSafeLock
from ...rules import lowering
from ...rules.norm import NORM_BLOCK, NORM_LANES
from ...rules.table import Rule
from ..base import Backend, KernelCall, Launch, Norm, Scalars
from .device_arrays import ContiguousOnDevice, HostLayout, Vector, _address, _check_aligned, _dense_strides, _streams
from .kernels import THREADS, VECTOR_BYTES, signatures, source
from .streams import LEGACY, PER_THREAD, _chosen, _resolved, _stream_of

BLOCKS_PER_MULTIPROCESSOR = 16
PIECE = 4096  # elements that a block takes at a time
LAUNCHERS = 1000  # launch configurations that are kept


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


class CudaBackend(Backend):
    name = "cuda"

    def __init__(self) -> None:
        if find_spec("numba_cuda") is None:
            raise ImportError("backend 'cuda' needs numba-cuda: pip install \"numba-cuda[cu13]\"")
        try:
            from numba import config, cuda
        except ImportError as error:
            raise ImportError(f"backend 'cuda' needs numba-cuda: pip install \"numba-cuda[cu13]\" ({error})") from error
        self.simulated = bool(getattr(config, "ENABLE_CUDASIM", False))
        if self.simulated:
            from ..cuda import simulator

            simulator.complete()
            self.threads = simulator.THREADS
        else:
            _require_device(cuda)
            self.threads = THREADS
        self._cuda = cuda
        self._lock = ForkSafeLock(reentrant=True)
        self._modules: dict[tuple[np.dtype, Rule | None], Any] = {}
        self._kernels: dict[tuple[str, np.dtype, Rule | None], Any] = {}
        self._launchers: dict[tuple[Any, ...], Any] = {}
        self._streams: dict[int | None, Any] = {}
        self._tables: dict[int | None, _Table] = {}
        self._scratch: dict[tuple[int | None, str], Any] = {}
        processors = 1 if self.simulated else cuda.get_current_device().MULTIPROCESSOR_COUNT
        self._blocks = 3 if self.simulated else BLOCKS_PER_MULTIPROCESSOR * processors

    # --- kernels and launches

    def kernel(self, name: str, dtype: np.dtype, rule: Rule | None = None) -> Any:
        """A kernel, compiled (or read from the cache on disk) on first use; `rule` if a user has written its rule."""
        key = (name, dtype, rule)
        if key not in self._kernels:
            own = None if rule is None else [rule]
            if (dtype, rule) not in self._modules:
                text = source(dtype, self.threads, self.simulated, own)
                self._modules[dtype, rule] = lowering.load(f"cuda_{dtype.name}", text)
            function = getattr(self._modules[dtype, rule], name)
            if self.simulated:
                self._kernels[key] = self._cuda.jit(function)
            else:
                self._kernels[key] = self._cuda.jit(signatures(dtype, own)[name], cache=True)(function)
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

    def prepare(self, calls: Sequence[KernelCall], threads: int) -> Launch:
        """The table of addresses, and one launch for each dtype in a call."""
        words: list[int] = []
        launches = []
        for i, (kernel, rows) in enumerate(calls):
            for dtype in checks.DTYPES:
                chosen = [row for row in rows if row[0].dtype == dtype and row[0].size]
                if not chosen:
                    continue
                compiled = self.kernel(kernel.name, dtype, kernel.rule if kernel.rule.own else None)
                piece = self._piece(sum(p.size for p, *_ in chosen))
                pieces = [-(-p.size // piece) for p, *_ in chosen]
                launches.append((i, dtype, compiled, (len(words), len(chosen), sum(pieces), piece)))
                words += np.cumsum(pieces).tolist() + [p.size for p, *_ in chosen]
                words += [vector.address for row in chosen for vector in row]
        table_words = np.array(words, np.int64)
        streams = _streams(vector for _, rows in calls for row in rows for vector in row)

        def launch(scalars: Sequence[Scalars]) -> None:
            rounded = [_rounded(scalars[i], dtype) for i, dtype, _, _ in launches]
            if not launches:
                return
            with self._lock, self._on(streams) as (handle, stream):
                table = self._table(handle, table_words, stream)
                for (_, _, compiled, (begin, count, pieces, piece)), k in zip(launches, rounded, strict=True):
                    self._launch(compiled, self._grid(pieces), stream, table, begin, count, pieces, piece, k)

        return launch

    def layouts(self, arrays: tuple[Any, ...], states: tuple[Any, ...]) -> list[dict[str, Any]] | None:
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
            for dtype in checks.DTYPES:
                chosen = [i for i, v in enumerate(vectors) if v.dtype == dtype and v.size]
                if chosen:
                    kernel = self.kernel(f"sum_squares_{len(ks)}", dtype)
                    items = [blocks[i] for i in chosen]
                    launches.append((kernel, len(words), len(chosen), sum(items), _rounded((grad_scale,), dtype)[0]))
                    words += np.cumsum(items).tolist() + [vectors[i].size for i in chosen]
                    words += [word for i in chosen for word in (vectors[i].address, starts[i])]
            reduce = self.kernel("tree", checks.DTYPES[0])
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
            sums_of_k: np.ndarray = host.reshape(len(ks), left)
            return sums_of_k

    def prepare_norm(self, grads: Sequence[Any], threads: int) -> Norm:
        """The host waits for the device once at each call of what this returns."""
        layouts = [self.host_layout("gradient", g) for g in grads]
        if all(layout.flags.c_contiguous for layout, _ in layouts):
            vectors = [self.vector(None, *layout) for layout in layouts]  # without a hold on their memory
            return lambda _, grad_scale: self.norm_of(vectors, grad_scale)
        return lambda grads, grad_scale: self.norm_of([self.flat(g) for g in grads], grad_scale)

    def norm_of(self, vectors: Sequence[Vector], grad_scale: float) -> float:
        ks = (1.0, 1.0 / rules.NORM_RETRY, rules.NORM_RETRY)
        if all(v.dtype == np.float32 for v in vectors):  # squares of float32 neither overflow float64 nor vanish in it
            totals = dict.fromkeys(ks, float(self._sums(vectors, grad_scale, ks[:1], tree=True)[0, 0]))
        else:
            totals = dict(zip(ks, self._sums(vectors, grad_scale, ks, tree=True)[:, 0].tolist(), strict=True))
        return rules.norm_from_squares(totals.__getitem__)

    def block_sums(self, grads: Sequence[Any], grad_scale: float, k: float, threads: int) -> np.ndarray:
        sums: np.ndarray = self._sums(grads, grad_scale, (float(k),), tree=False)[0]
        return sums

    def multiply(self, xs: Sequence[Any], factor: float) -> None:
        for x in xs:
            form = self.to_contiguous(x, x, ())
            vector = form.arrays[0]
            with self._lock, self._on(_streams([vector])) as (_, stream):
                kernel, s = self.kernel("multiply", vector.dtype), _rounded((factor,), vector.dtype)[0]
                self._launch(kernel, self._elements(vector.size), stream, vector.address, vector.size, s)
            form.copy_back()

    def move(self, stream: Any, address: int, strides: Sequence[int], layout: np.ndarray, back: bool = False) -> None:
        """Copy the elements of an array of any layout to dense memory at `address`, or `back` from there."""
        if not layout.size:
            return
        odd = [stride // layout.itemsize for stride in layout.strides]
        source, target = (address, _address(layout)) if back else (_address(layout), address)
        columns = (layout.shape, strides, odd) if back else (layout.shape, odd, strides)
        words = np.array(columns, np.int64).T.ravel()
        handle, stream = stream
        table = self._table(handle, words, stream)
        kernel = self.kernel("move", layout.dtype)
        self._launch(kernel, self._elements(layout.size), stream, source, target, table, 0, layout.ndim, layout.size)

    # --- arrays

    def host_layout(self, what: str, x: Any) -> tuple[np.ndarray, Any]:
        """The layout of a device array, as an array that must not be read, and the stream that it belongs to."""
        try:
            interface = x.__cuda_array_interface__
        except AttributeError:
            raise TypeError(
                f"{what}: expected an array on the GPU (with __cuda_array_interface__), got {type(x).__name__}"
            ) from None
        return np.asarray(HostLayout(interface)), _stream_of(x, interface)

    def describe(self, x: Any) -> tuple[tuple[int, ...], Any]:
        layout, _ = self.host_layout("array", x)
        return layout.shape, layout.dtype

    def check_parameter(self, name: str, p: Any, role: str = "parameter") -> None:
        layout, _ = self.host_layout(f"{role} {name!r}", p)
        checks.check_parameter(name, layout, role)
        _check_aligned(f"{role} {name!r}", layout)

    def check_companion(self, name: str, role: str, x: Any, shape: tuple[int, ...], dtype: Any) -> Any:
        layout, _ = self.host_layout(f"{role} of parameter {name!r}", x)
        checks.check_match(name, role, layout.shape, layout.dtype, shape, np.dtype(dtype))
        _check_aligned(f"{role} of parameter {name!r}", layout)
        return x

    def span(self, label: str, x: Any) -> checks.Span:
        return checks.span(label, self.host_layout(label, x)[0])

    def vector(self, x: Any, layout: np.ndarray, stream: Any) -> Vector:
        return Vector(_address(layout), layout.size, layout.dtype, stream, x)

    def _copy(self, layout: np.ndarray, stream: tuple[int | None, Any]) -> Vector:
        copy = self._cuda.device_array(max(1, layout.size), layout.dtype)
        address = _address(self.host_layout("copy", copy)[0])
        self.move(stream, address, _dense_strides(layout.shape), layout)
        return Vector(address, layout.size, layout.dtype, stream[0], copy)

    def to_contiguous(self, p: Any, g: Any, states: Sequence[Any]) -> ContiguousOnDevice:  # type: ignore[override]
        every = [(x, *self.host_layout("array", x)) for x in (p, g, *states)]
        vectors = [self.vector(*entry) for entry in every]
        moves = []
        flags = [layout.flags for _, layout, _ in every]
        views = all(f.c_contiguous for f in flags) or all(f.f_contiguous for f in flags)
        if not views:
            with self._lock, self._on(_streams(vectors)) as stream:
                for i, (_, layout, _) in enumerate(every):
                    if not layout.flags.c_contiguous:
                        vectors[i] = self._copy(layout, stream)
                        if i != 1:
                            moves.append((stream, layout, vectors[i]))
        return ContiguousOnDevice(tuple(vectors), tuple(moves), views, self)

    def flat(self, x: Any) -> Any:
        layout, stream = self.host_layout("array", x)
        vector = self.vector(x, layout, stream)
        if layout.flags.c_contiguous:
            return vector
        with self._lock, self._on(_streams([vector])) as chosen:
            return self._copy(layout, chosen)

    def zeros_like(self, p: Any) -> Any:
        layout, _ = self.host_layout("array", p)
        order = "F" if layout.flags.f_contiguous and not layout.flags.c_contiguous else "C"
        zeros = self._cuda.device_array(layout.shape, layout.dtype, order=order)
        if layout.size:
            address = _address(self.host_layout("state", zeros)[0])
            zero = _rounded((0.0,), layout.dtype)[0]
            kernel, grid = self.kernel("fill", layout.dtype), self._elements(layout.size)
            self._launch(kernel, grid, self.stream(None), address, layout.size, zero)
            self._cuda.synchronize()  # whatever stream the first step runs on
        return zeros

    def host_copy(self, x: Any) -> np.ndarray:
        copy: np.ndarray = x.copy_to_host()
        return copy

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
