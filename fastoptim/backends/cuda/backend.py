"""The CUDA backend, through numba-cuda: update rules in ``_rn`` operations, a few launches for any list of arrays.

NVVM and ptxas fuse plain multiplies and adds, and no switch of ``cuda.jit`` forbids it; so every operator of a rule
becomes a libdevice call that is rounded to nearest by name (`rules.lowering`). All arrays of one dtype that share a
kernel and its scalars are one launch over a table of addresses (`work`). The table is uploaded only when an address has
changed, from pinned memory and on the step's own stream (`places`), so that a step without clipping never waits for the
device; a step with it waits once, for the norm. Steps over the same arrays go through `plan`.

A step runs on the stream that is given by `on_stream`, else on the current stream of torch's tensors, else on the
stream that the arrays export (``__cuda_array_interface__`` version 3), else on the default stream. Where arrays come
from several streams, events put the step after all of them, and later work of all of them after the step. Arrays must
live on the current device of `numba.cuda`.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableSequence, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import numpy as np

from ...arrays import checks
from ...arrays.autograd import tell_autograd
from ...arrays.device import assign, device_dtype, to_host
from ...arrays.storage import compute_dtype
from ...common.threads import fork_safe_lock
from ...rules import lowering
from ...rules.norm import NORM_BLOCK, NORM_RETRY, norm_from_squares
from ...rules.table import Kernel, Rule, Scalars
from ..base import Backend, BlockMeasures, KernelCall, Launch, Norm, Runs
from . import driver, stored
from .device_arrays import (
    ContiguousOnDevice,
    HostLayout,
    Lent,
    Vector,
    address_of,
    check_aligned,
    dense_strides,
    refuse_immutable,
    streams_of,
)
from .kernels import THREADS, VECTOR_BYTES, signatures, source
from .places import Place, Places
from .plan import CudaPlan
from .streams import LEGACY, PER_THREAD, chosen_stream, resolved, stream_of
from .work import NormWork, UpdateWork, factors

MOST_BLOCKS = 2**31 - 1  # of a launch


class CudaBackend(Backend):
    name = "cuda"

    def __init__(self) -> None:
        package = find_spec("numba_cuda")
        if package is None:
            raise ImportError("backend 'cuda' needs numba-cuda: pip install \"numba-cuda[cu13]\"")
        try:
            from numba import config, cuda

            if not str(cuda.__file__).startswith(str(package.origin).removesuffix("__init__.py")):
                raise ImportError(
                    f"numba.cuda is numba's own, in {cuda.__file__}: numba-cuda takes its place where it was installed "
                    "by pip, and not from a folder on PYTHONPATH, whose .pth files Python does not run"
                )

            load_overloads()
        except (ImportError, AttributeError) as error:  # numba-cuda before 0.30.4 fails beside numba from 0.66 on
            raise ImportError(
                "backend 'cuda' needs a numba-cuda that fits the installed numba: "
                f'pip install -U "numba-cuda[cu13]>=0.30.4" ({type(error).__name__}: {error})'
            ) from error
        self.simulated = bool(getattr(config, "ENABLE_CUDASIM", False))
        if self.simulated:
            from ..cuda import simulator

            simulator.complete()
            self.threads = simulator.THREADS
        else:
            _require_device(cuda)
            self.threads = THREADS
        self._cuda = cuda
        self.driver = driver.make(cuda, self.simulated)
        self.lock = fork_safe_lock()
        self._modules: dict[tuple[Any, ...], Any] = {}
        self._kernels: dict[tuple[str, np.dtype, Any], Any] = {}
        self._launchers: dict[tuple[str, np.dtype, Any, int], driver.Launcher] = {}
        self._places = Places(self.driver)
        per_thread = getattr(config, "CUDA_PER_THREAD_DEFAULT_STREAM", 0)
        self._default = PER_THREAD if per_thread else LEGACY
        self._blocks = 3 if self.simulated else MOST_BLOCKS
        # Vectors that a thread takes of a piece: an H200 is fastest with one each, and as many blocks as it takes; of
        # arrays in fewer bits with four, since a block first makes the keys of its dithers.
        self.vectors, self.stored_vectors = 1, 4

    # --- kernels and launches

    def kernel(self, name: str, dtype: np.dtype, rule: Rule | None = None) -> Any:
        """A kernel, compiled (or read from the cache on disk) on first use; `rule` if a user has written its rule."""
        own = None if rule is None else [rule]
        if (dtype, rule) not in self._modules:
            if dtype in checks.DTYPES:
                text = source(dtype, self.threads, self.simulated, own)
            elif dtype.kind == "u":
                text = stored.raw_source(dtype, self.simulated)
            else:
                text = stored.norm_source(dtype, self.threads, self.simulated)
            self._modules[dtype, rule] = lowering.load(f"cuda_{dtype.name}", text)
        return self._compiled((name, dtype, rule), self._modules[dtype, rule], signatures(dtype, own)[name])

    def _compiled(self, key: tuple[str, np.dtype, Any], module: Any, signature: Any) -> Any:
        if key not in self._kernels:
            function = getattr(module, key[0])
            if self.simulated:
                self._kernels[key] = self._cuda.jit(function)
            else:
                try:
                    self._kernels[key] = self._cuda.jit(signature, cache=True)(function)
                except (FileNotFoundError, ImportError) as error:
                    raise RuntimeError(
                        "numba-cuda finds no compiler (libNVVM and libdevice): set CUDA_HOME to the CUDA toolkit, or "
                        f'pip install "numba-cuda[cu13]" ({type(error).__name__}: {error})'
                    ) from error
                except Exception as error:
                    if "OUTDATED_LIBRARY" not in str(error):
                        raise
                    raise RuntimeError(
                        "NVIDIA's linker is older than its compiler: install nvidia-nvjitlink and nvidia-nvvm (or the "
                        f"toolkit) of one release ({type(error).__name__}: {error})"
                    ) from error
        return self._kernels[key]

    def launcher(self, name: str, dtype: np.dtype, rule: Rule | None = None) -> driver.Launcher:
        """What launches a `kernel` on the current device: ``(grid, place, *arguments)``."""
        key = (name, dtype, rule, self.driver.device())
        found = self._launchers.get(key)
        if found is None:
            signature = signatures(dtype, None if rule is None else [rule])[name]
            with self.lock:  # numba-cuda's compiling and loading is for one thread at a time
                found = self.driver.launcher(self.kernel(name, dtype, rule), signature, self.threads)
                self._launchers[key] = found
        return found

    def stored_launcher(self, kernel: Kernel, form: stored.Form) -> driver.Launcher:
        """As `launcher`, for the step of arrays of fewer bits."""
        name = stored.name_of(kernel, form)
        rule = kernel.rule if kernel.rule.own else None
        key = (name, stored.SINGLE, (rule, form), self.driver.device())
        found = self._launchers.get(key)
        if found is None:
            signature = stored.signature(kernel)
            with self.lock:
                text = stored.source(kernel, form, self.threads, self.simulated)
                function = self._compiled(key[:3], lowering.load("cuda_stored", text), signature)
                found = self._launchers[key] = self.driver.launcher(function, signature, self.threads)
        return found

    def grid(self, items: int) -> int:
        return max(1, min(items, self._blocks))

    def _elements(self, size: int) -> tuple[int, int]:
        """Blocks for a kernel in which a thread takes one element at a time."""
        return self.grid(-(-size // self.threads)), 1

    # --- streams

    def begin(self, streams: Sequence[Any], device: int | None = None) -> tuple[Place, list[Place]]:
        """The stream for work on arrays of these, after what the streams hold now; and the others: see `end`."""
        current = self.driver.device()
        if device is not None and device != current:
            raise RuntimeError(
                f"the arrays are on GPU {device}, and GPU {current} is current: numba.cuda.select_device"
            )
        chosen = chosen_stream.get()
        if len(streams) > 1 or (chosen is not None and streams):
            handles = list(dict.fromkeys(resolved(s) or self._default for s in streams))
            handle = chosen if chosen is not None else handles[0]
            others = [self._places.find(h, current) for h in handles if h != handle]
        else:
            handle = chosen if chosen is not None else (resolved(streams[0]) if streams else 0) or self._default
            others = []
        place = self._places.find(handle, current)
        self.driver.check_capture(place)
        for other in others:
            self.driver.check_capture(other)
            self._after(other, place)
        return place, others

    def end(self, place: Place, others: Sequence[Place]) -> None:
        """Put later work of the others after the work that `begin` was called for."""
        for other in others:
            self._after(place, other)

    @contextmanager
    def _placed(self, *vectors: Vector) -> Iterator[Place]:
        """The stream for work on these, in order with what their streams hold."""
        with self.lock:
            place, others = self.begin(streams_of(vectors))
            yield place
            self.end(place, others)

    def _after(self, first: Place, second: Place) -> None:
        event = self._cuda.event(timing=False)
        event.record(first.stream)
        event.wait(second.stream)

    # --- arithmetic

    def prepare(self, calls: Sequence[KernelCall], threads: int) -> Launch:
        work = UpdateWork(self, calls)
        written = [vector.owner for _, rows, _ in calls for row in rows for vector in (row[0], *row[2:])]

        def launch(scalars: Sequence[Scalars]) -> None:
            work.run(scalars)
            tell_autograd(written)

        return launch

    def plan(self, runs: Runs, counter: MutableSequence[int], threads: int, lazy: bool = False) -> CudaPlan:
        return CudaPlan(self, runs, counter)

    def piece(self, dtype: np.dtype, is_stored: bool) -> int:
        """Elements that a block takes at a time."""
        return self.threads * (self.stored_vectors if is_stored else self.vectors) * VECTOR_BYTES // dtype.itemsize

    def prepare_norm(self, grads: Sequence[Any], threads: int) -> Norm:
        return lambda grads, grad_scale: self.norm_of([self.flat(g) for g in grads], grad_scale)

    def norm_of(self, vectors: Sequence[Vector], grad_scale: float) -> float:
        return self.norm_from(NormWork(self, vectors, factors(NORM_RETRY, vectors), tree=True), grad_scale)

    def norm_from(self, work: NormWork, grad_scale: float) -> float:
        """The norm that the sums of `work` give; the host waits for the device once."""
        sums = work.run(grad_scale)[:, 0].tolist()
        ks = (1.0, 1.0 / NORM_RETRY, NORM_RETRY)
        return norm_from_squares(dict(zip(ks, sums if len(sums) > 1 else 3 * sums, strict=True)).__getitem__)

    def block_sums(self, grads: Sequence[Any], grad_scale: float, k: float, threads: int) -> np.ndarray:
        sums: np.ndarray = NormWork(self, grads, (float(k),), tree=False).run(grad_scale)[0]
        return sums

    def prepare_measures(self, calls: Sequence[KernelCall], threads: int) -> BlockMeasures:
        every, arrays = [], [[row[: 2 + len(kernel.rule.states)] for row in rows] for kernel, rows, _ in calls]
        with self._placed(*(v for rows in arrays for row in rows for v in row)) as place:
            for (kernel, _, _), rows in zip(calls, arrays, strict=True):
                scratch = [[self._scratch(row[0], place) for _ in range(kernel.rule.terms)] for row in rows]
                every.append(([(*terms, *row) for terms, row in zip(scratch, rows, strict=True)], scratch))
        work = UpdateWork(self, [KernelCall(call.kernel, rows) for call, (rows, _) in zip(calls, every, strict=True)])
        terms = [term for _, scratch in every for own in scratch for term in own]
        ends = np.cumsum([-(-term.size // NORM_BLOCK) for term in terms])[:-1]

        def measure(scalars: Sequence[Scalars], k: float) -> list[np.ndarray]:
            work.run(scalars)
            return np.split(self.block_sums(terms, 1.0, k, threads), ends)

        return measure

    def _scratch(self, like: Vector, place: Place) -> Vector:
        """Dense memory of the size and dtype of an array."""
        lease = place.lease(-(-max(1, like.size * like.dtype.itemsize) // 8))
        return Vector(lease.memory.buffer.address, like.size, like.dtype, place.handle, lease)

    def multiply(self, xs: Sequence[Any], factor: float) -> None:
        for x in xs:
            form = self.to_contiguous(x, x, ())
            vector = form.arrays[0]
            with self._placed(vector) as place:
                launcher = self.launcher("multiply", vector.dtype)
                launcher(self._elements(vector.size), place, vector.address, vector.size, factor)
            form.copy_back()
        tell_autograd(xs)

    def limited(self, g: Any, factor: float, limit: float | None) -> Any:
        layout, stream = self.host_layout("gradient", g)
        dense = layout.flags.c_contiguous or layout.flags.f_contiguous
        vector = self.vector(g, layout, stream) if dense else self.flat(g)
        high = np.inf if limit is None else limit
        dtype = compute_dtype(vector.dtype)
        strides = [stride // layout.itemsize * dtype.itemsize for stride in layout.strides]
        with self._placed(vector) as place:
            copy = self._scratch(vector._replace(dtype=dtype), place)
            launcher = self.launcher("limit", vector.dtype)
            arguments = (vector.address, copy.address, vector.size, factor, -high, high)
            launcher(self._elements(vector.size), place, *arguments)
        return Lent(copy, layout.shape, tuple(strides) if dense else None)

    def move(self, place: Place, address: int, strides: Sequence[int], layout: np.ndarray, back: bool = False) -> None:
        """Copy the elements of an array of any layout to dense memory at `address`, or `back` from there."""
        if not layout.size:
            return
        odd = [stride // layout.itemsize for stride in layout.strides]
        source, target = (address, address_of(layout)) if back else (address_of(layout), address)
        columns = (layout.shape, strides, odd) if back else (layout.shape, odd, strides)
        words = np.array(columns, np.int64).T.ravel()
        with self.lock:
            lease = place.lease(max(1, words.size))
            lease.memory.write(words, None, place)
            launcher = self.launcher("move", _of_size(layout.dtype))
            launcher(
                self._elements(layout.size), place, source, target, lease.memory.buffer, 0, layout.ndim, layout.size
            )

    # --- arrays

    def host_layout(self, what: str, x: Any) -> tuple[np.ndarray, Any]:
        """The layout of a device array, as an array that must not be read, and the stream that it belongs to."""
        try:
            interface = x.__cuda_array_interface__
        except AttributeError:
            raise TypeError(
                f"{what}: expected an array on the GPU (with __cuda_array_interface__), got {type(x).__name__}"
            ) from None
        if interface.get("mask") is not None:
            raise TypeError(f"{what}: expected an array without a mask, whose elements would all be stepped")
        layout = np.asarray(HostLayout(interface))
        if layout.dtype.kind == "V":
            layout = layout.view(device_dtype(x))
        return layout, stream_of(x, interface)

    def describe(self, x: Any) -> tuple[tuple[int, ...], Any]:
        layout, _ = self.host_layout("array", x)
        return layout.shape, layout.dtype

    def is_single(self, x: Any) -> bool:
        return hasattr(x, "__cuda_array_interface__") and device_dtype(x) == np.float32

    def check_parameter(self, name: str, p: Any, role: str = "parameter") -> None:
        layout, _ = self.host_layout(f"{role} {name!r}", p)
        checks.check_parameter(name, layout, role)
        self.check_usable(f"{role} {name!r}", p, layout, written=True)

    def check_companion(self, name: str, role: str, x: Any, shape: tuple[int, ...], dtype: Any) -> Any:
        layout, _ = self.host_layout(f"{role} of parameter {name!r}", x)
        checks.check_match(name, role, layout.shape, layout.dtype, shape, np.dtype(dtype))
        self.check_usable(f"{role} of parameter {name!r}", x, layout, written=False)
        return x

    def check_usable(self, what: str, x: Any, layout: np.ndarray, written: bool) -> None:
        """An error that names the array unless kernels of the current device may read, or write, it."""
        check_aligned(what, layout)
        if written:
            refuse_immutable(what, x)
        self.check_device(what, address_of(layout) if layout.size else 0)

    def check_device(self, what: str, address: int) -> None:
        """ValueError for memory on another device than the current one."""
        owner = self.driver.device_of(address) if address else None
        if owner is not None and owner != (current := self.driver.device()):
            raise ValueError(
                f"{what}: it is on GPU {owner}, and GPU {current} is current: "
                "move it, or make its GPU current with numba.cuda.select_device"
            )

    def span(self, label: str, x: Any) -> checks.Span:
        return checks.span(label, self.host_layout(label, x)[0])

    def vector(self, x: Any, layout: np.ndarray, stream: Any) -> Vector:
        return Vector(address_of(layout), layout.size, layout.dtype, stream, x)

    def _copy(self, layout: np.ndarray, place: Place) -> Vector:
        copy = self._scratch(self.vector(None, layout, place.handle), place)
        self.move(place, copy.address, dense_strides(layout.shape), layout)
        return copy

    def to_contiguous(  # type: ignore[override]
        self, p: Any, g: Any, states: Sequence[Any], any_order: bool = True
    ) -> ContiguousOnDevice:
        every = [(x, *self.host_layout("array", x)) for x in (p, g, *states)]
        vectors = [self.vector(*entry) for entry in every]
        moves = []
        flags = [layout.flags for _, layout, _ in every]
        views = all(f.c_contiguous for f in flags) or (any_order and all(f.f_contiguous for f in flags))
        if not views:
            with self._placed(*vectors) as place:
                for i, (x, layout, _) in enumerate(every):
                    if not layout.flags.c_contiguous:
                        vectors[i] = self._copy(layout, place)
                        if i != 1:
                            moves.append((place, x, layout, vectors[i]))
        return ContiguousOnDevice(tuple(vectors), tuple(moves), views, self)

    def to_c_order(self, p: Any, g: Any, states: Sequence[Any]) -> ContiguousOnDevice:  # type: ignore[override]
        return self.to_contiguous(p, g, states, any_order=False)

    def flat(self, x: Any) -> Any:
        layout, stream = self.host_layout("array", x)
        vector = self.vector(x, layout, stream)
        if layout.flags.c_contiguous:
            return vector
        with self._placed(vector) as place:
            return self._copy(layout, place)

    def zeros_like(self, p: Any) -> Any:
        layout = p if isinstance(p, np.ndarray) else self.host_layout("array", p)[0]
        order = "F" if layout.flags.f_contiguous and not layout.flags.c_contiguous else "C"
        zeros = self._cuda.device_array(layout.shape, layout.dtype, order=order)
        if layout.size:
            address = address_of(self.host_layout("state", zeros)[0])
            with self._placed() as place:
                zero = self.launcher("zero", _of_size(layout.dtype))
                zero(self._elements(layout.size), place, address, layout.size)
            self._cuda.synchronize()  # whatever stream the first step runs on
        return zeros

    def host_copy(self, x: Any) -> np.ndarray:
        return to_host(x)

    def copied(self, x: Any) -> Any:
        if not hasattr(x, "__cuda_array_interface__"):
            return x
        copy = self.zeros_like(x)
        self.assign(copy, x)
        return copy

    def assign(self, target: Any, value: Any) -> None:
        host = value if isinstance(value, np.ndarray) else to_host(value)
        assign(target, host.astype(self.describe(target)[1], copy=False))

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


def _of_size(dtype: np.dtype) -> np.dtype:
    """A dtype that kernels know, of the same size."""
    return dtype if dtype in checks.DTYPES else np.dtype(f"u{dtype.itemsize}")


def load_overloads() -> None:
    """Have numba-cuda register its overloads where NumPy has no `row_stack`, which it looks for: 2.5 removed it.

    numba-cuda is in maintenance; its last release still fails so at the first kernel that it compiles. Programs whose
    own kernels are compiled before the first step on the GPU call this first. In the simulator it does nothing.
    """
    from numba import config

    if hasattr(np, "row_stack") or getattr(config, "ENABLE_CUDASIM", False):
        return

    def row_stack(arrays: Any) -> Any:
        return np.vstack(arrays)

    setattr(np, "row_stack", row_stack)  # noqa: B010
    try:
        from numba.cuda.descriptor import cuda_target

        cuda_target.typing_context.refresh()
        cuda_target.target_context.refresh()
    finally:
        delattr(np, "row_stack")


def _require_device(cuda: Any) -> None:
    """RuntimeError that says what is missing unless a kernel can be run."""
    install = "install NVIDIA's driver on a machine with an NVIDIA GPU, or use a host backend"
    if not cuda.is_available():
        reason = cuda.cuda_error() if hasattr(cuda, "cuda_error") else None
        detail = " ".join(str(reason).split()) if reason else "no GPU was found"
        raise RuntimeError(f"backend 'cuda' needs an NVIDIA GPU and its driver ({detail}): {install}")
