"""Talks to the GPU: launches, small copies and questions about streams, by the driver's own calls or by numba.cuda's.

`RawDriver` packs a kernel's arguments itself and calls the driver through cuda-bindings, which numba-cuda brings along:
a launch takes a thirtieth of the time of numba.cuda's. `NumbaDriver` does the same with nothing but numba.cuda: in its
simulator, and wherever what a kernel expects is not what `RawDriver` would pack.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from .streams import LEGACY, PER_THREAD

Launcher = Callable[..., None]  # (grid, place, *arguments)
PINNED = 1 << 13  # bytes of an answer that is read through pinned memory


class Buffer(NamedTuple):
    """Device memory that kernels take as an array, with the words that they take it as."""

    array: Any
    address: int
    size: int
    words: tuple[int, ...]

    @classmethod
    def of(cls, array: Any, address: int) -> Buffer:
        n, item = array.size, array.dtype.itemsize
        return cls(array, address, n, (0, 0, n, item, address, n, item))  # numba's: two objects, sizes, data, shape


class NumbaDriver:
    """What `CudaBackend` needs, through numba.cuda alone."""

    def __init__(self, cuda: Any, simulated: bool) -> None:
        self.cuda, self.simulated = cuda, simulated

    def device(self) -> int:
        """Number of this thread's current device."""
        return 0 if self.simulated else int(self.cuda.get_current_device().id)

    def device_of(self, address: int) -> int | None:
        """Number of the device that memory belongs to; None if that is not known."""
        return None

    def stream(self, handle: int) -> Any:
        """numba.cuda's object for a stream."""
        if self.simulated:
            return self.cuda.default_stream()
        if handle == LEGACY:
            return self.cuda.legacy_default_stream()
        if handle == PER_THREAD:
            return self.cuda.per_thread_default_stream()
        return self.cuda.external_stream(handle)

    def raw_stream(self, handle: int) -> Any:
        return None

    def stream_id(self, place: Any) -> int:
        """A number that no other stream ever has, where the driver gives one."""
        return 0

    def check_capture(self, place: Any) -> None:
        """RuntimeError if a graph is being captured on the stream of `place`."""

    def launcher(self, kernel: Any, signature: Sequence[Any], threads: int) -> Launcher:
        """``(grid, place, *arguments)`` launches `kernel`; arrays are given as `Buffer`, numbers are rounded."""
        from numba import types

        def converter(kind: Any) -> Callable[[Any], Any]:
            if isinstance(kind, types.Array):
                return lambda x: x.array
            if isinstance(kind, types.UniTuple):
                scalar = np.dtype(kind.dtype.name).type
                return lambda xs: _rounded(xs, scalar)
            scalar = np.dtype(kind.name).type
            return lambda x: _rounded((x,), scalar)[0]

        converters = [converter(kind) for kind in signature]

        def launch(grid: tuple[int, int], place: Any, *arguments: Any) -> None:
            with warnings.catch_warnings():  # of grids that are small because the arrays are
                warnings.simplefilter("ignore")
                kernel[grid, threads, place.stream](*(c(x) for c, x in zip(converters, arguments, strict=True)))

        return launch

    def upload(self, buffer: Buffer, pinned: np.ndarray, count: int, place: Any) -> None:
        """Copy `count` words from pinned memory, in stream order."""
        buffer.array[:count].copy_to_device(pinned[:count], stream=place.stream)

    def download(self, buffer: Buffer, count: int, place: Any) -> np.ndarray:
        """The first `count` numbers; the host waits for them."""
        found: np.ndarray = buffer.array[:count].copy_to_host(stream=place.stream)
        place.stream.synchronize()
        return found


class RawDriver(NumbaDriver):
    """The same by the driver's own calls; ImportError or AttributeError where cuda-bindings lacks one."""

    def __init__(self, cuda: Any) -> None:
        super().__init__(cuda, simulated=False)
        from cuda.bindings import driver

        self._raw = driver
        self._is_capturing, self._current = driver.cuStreamIsCapturing, driver.cuCtxGetDevice
        self._attribute, self._ordinal = (
            driver.cuPointerGetAttribute,
            driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL,
        )
        self._id, self._idle = driver.cuStreamGetId, driver.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_NONE
        self._good = driver.CUresult.CUDA_SUCCESS  # an enum's members are compared by identity in a fifth of the time
        driver.cuMemcpyHtoDAsync, driver.cuMemcpyDtoHAsync, driver.cuStreamSynchronize, driver.cuLaunchKernel  # noqa: B018

    def device(self) -> int:
        status, device = self._current()
        if status is not self._good:  # a thread that has not used CUDA yet
            return int(self.cuda.current_context().device.id)
        return int(device)

    def device_of(self, address: int) -> int | None:
        status, device = self._attribute(self._ordinal, address)
        return None if status or device < 0 else int(device)  # negative: memory of the host, which a GPU may share

    def raw_stream(self, handle: int) -> Any:
        return self._raw.CUstream(handle)

    def stream_id(self, place: Any) -> int:
        status, number = self._id(place.raw)
        return 0 if status else int(number)

    def check_capture(self, place: Any) -> None:
        status, capturing = self._is_capturing(place.raw)
        if status is self._good and capturing is self._idle:
            return
        if status != self._good and int(status) != 906:  # 906: another stream is captured
            self._checked((status,))
        raise RuntimeError(
            "a CUDA graph is being captured on this stream: a replayed step would repeat the learning rate and the "
            "bias correction of the captured one; capture forward and backward, and step between replays"
        )

    def _checked(self, result: tuple[Any, ...]) -> None:
        if result[0]:
            number = int(result[0])
            late = " of this step, or of earlier work on the GPU: errors arrive late" if number >= 700 else ""
            raise RuntimeError(f"the CUDA driver reports {result[0].name} ({number}){late}")

    def launcher(self, kernel: Any, signature: Sequence[Any], threads: int) -> Launcher:
        try:
            return self._packed(kernel, signature, threads)
        except (AttributeError, TypeError, ValueError, LookupError):  # numba-cuda keeps its functions in another way,
            return super().launcher(kernel, signature, threads)  # or a driver before CUDA 12.4 cannot be asked

    def _packed(self, kernel: Any, signature: Sequence[Any], threads: int) -> Launcher:
        raw = self._raw
        (compiled,) = kernel.overloads.values()
        handle = compiled._codelibrary.get_cufunc().handle
        # Both kinds are launched by one call; asked they are by two, which refuse each other's.
        of_kernel = isinstance(handle, raw.CUkernel)
        function, ask = raw.CUfunction(int(handle)), raw.cuKernelGetParamInfo if of_kernel else raw.cuFuncGetParamInfo
        forms, sizes = _forms(signature)
        try:
            asked = [ask(handle, i) for i in range(len(sizes) + 1)]
        except RuntimeError as error:  # of cuda-bindings, for a call that the driver does not have
            raise LookupError(error) from error
        if any(status or found != size for (status, _, found), size in zip(asked[:-1], sizes, strict=True)):
            raise ValueError(f"an argument of {kernel} has another size than is packed")
        if not asked[-1][0]:
            raise ValueError(f"{kernel} has more arguments than are packed")
        form = struct.Struct("=" + "".join(forms))
        memory = np.zeros(len(sizes), np.int64)  # one word for each argument
        pointers = memory.ctypes.data + 8 * np.arange(len(sizes), dtype=np.int64)
        pack, view, list_, call = form.pack_into, memory.view(np.uint8).data, pointers.ctypes.data, raw.cuLaunchKernel
        singles, good = [item == "f4x" for item in forms], self._good

        def launch(grid: tuple[int, int], place: Any, *arguments: Any) -> None:
            flat: list[Any] = []
            for x in arguments:
                if type(x) is Buffer:
                    flat += x.words
                elif type(x) is tuple:
                    flat += x
                else:
                    flat.append(x)
            try:
                pack(view, 0, *flat)
            except OverflowError:  # a number beyond float32, which rounds to infinity
                pairs = zip(singles, flat, strict=True)
                flat = [float(_rounded((x,), np.float32)[0]) if single else x for single, x in pairs]
                pack(view, 0, *flat)
            status = call(function, grid[0], grid[1], 1, threads, 1, 1, 0, place.raw, list_, 0)
            if status[0] is not good:
                self._checked(status)

        launch.keeps = memory, pointers, kernel  # type: ignore[attr-defined]
        return launch

    def upload(self, buffer: Buffer, pinned: np.ndarray, count: int, place: Any) -> None:
        self._checked(self._raw.cuMemcpyHtoDAsync(buffer.address, pinned.ctypes.data, 8 * count, place.raw))

    def download(self, buffer: Buffer, count: int, place: Any) -> np.ndarray:
        size = 8 * count
        if place.answer is None:
            place.answer = self.cuda.pinned_array(PINNED // 8, np.float64)
            place.answer_address = place.answer.ctypes.data
        fits = size <= PINNED
        found = place.answer if fits else np.empty(count)
        address = place.answer_address if fits else found.ctypes.data
        self._checked(self._raw.cuMemcpyDtoHAsync(address, buffer.address, size, place.raw))
        self._checked(self._raw.cuStreamSynchronize(place.raw))
        return np.array(found[:count])


def _forms(signature: Sequence[Any]) -> tuple[list[str], list[int]]:
    """How each argument of a kernel is packed into a word, and its size in bytes."""
    from numba import types

    forms, sizes = [], []
    for kind in signature:
        if isinstance(kind, types.Array):
            forms += ["q"] * 7
            sizes += [8] * 7
            continue
        scalar, count = (kind.dtype, kind.count) if isinstance(kind, types.UniTuple) else (kind, 1)
        form = {"int64": "q", "float32": "f4x", "float64": "d"}[scalar.name]
        forms += [form] * count
        sizes += [4 if form == "f4x" else 8] * count
    return forms, sizes


def _rounded(values: Sequence[float], scalar: Any) -> tuple[Any, ...]:
    with np.errstate(over="ignore", under="ignore"):
        return tuple(map(scalar, values))


def make(cuda: Any, simulated: bool) -> NumbaDriver:
    """The faster driver, where it can be had."""
    if not simulated:
        try:
            return RawDriver(cuda)
        except (ImportError, AttributeError):
            pass
    return NumbaDriver(cuda, simulated)
