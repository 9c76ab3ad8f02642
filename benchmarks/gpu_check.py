"""Check and time the CUDA backend on a real GPU, with one command, and write the result as JSON.

    python benchmarks/gpu_check.py --json benchmarks/results/gpu.json        (some minutes)
    python benchmarks/gpu_check.py --quick                                   (about a minute)

1. Bits: every rule, dtype, decay and convention on raw-bit inputs against the NumPy reference, at sizes around every
   border and at odd addresses; every rule on 20 million elements; the norm and the measures of arrays; ten steps of
   every class, on torch's arrays too where it is installed; arrays of fewer bits (stage "fewer_bits"). The number of
   differing elements must be 0.
2. Time: one step of sgd, momentum and adam (float32) for N = 1e4 ... 1e9 against a device-to-device copy that is timed
   in the same rounds, torch's fused optimizers and an update in CuPy written as one would in NumPy, where these are
   installed; GPT-2 small's 148 arrays and 1,000 arrays of 1,000, against torch and against one flat array of the same
   size (what the table of addresses costs); new gradient arrays at every step (what uploading it costs); clipping.
3. First use: time to compile with an empty cache and with a filled one; host time of a warm step.

Times are medians of interleaved rounds; a round is as many steps as fill the time, and ends when the device is done.
"No slower" is missed where the whole interquartile range of the rounds' ratios is more than 1 % slower. The file is
written anew after every stage and row, so that a run that was cut short leaves what it had. The exit status is 1 if a
bit differs, 2 if a bar is missed and ``--strict`` was given.

Each part is a stage, and ``--stages smoke,bits,sizes`` runs only those, in the order given. A stage that fails leaves
its traceback in the file and the next one runs; ``--minutes 8`` stops in good time before a limit on the command: what
was left out is among the file's errors. ``--apart`` gives each stage a process of its own, which is ended if nothing is
heard of it: a kernel that hangs, or that leaves the context unusable, costs no other stage. With ``--jobs 8`` eight
processes share the checks of bits, most of whose time goes into compiling.
``smoke`` comes first: it says within a minute whether kernels compile, run and round as they should, and how fast a
step is.
``ordering`` steps on streams that no other stream waits for, and reads what the step wrote. ``users`` steps views, 0-d
arrays, in threads, from a checkpoint, and under torch's autograd. ``device`` times the kernels alone, between events
(needs torch), against a kernel that only moves the same bytes (needs CuPy); ``rules`` does so for every rule, and
``storages`` for Adam with arrays of fewer bits, against a copy of as many bytes and torch's fused and foreach forms.

``--tune`` also times launch configurations at N = 1e8. With NUMBA_ENABLE_CUDASIM=1 the script runs through its own
logic on tiny arrays in Numba's simulator; the times then mean nothing, and the result says so.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from numba import config, cuda  # noqa: E402

import fastoptim as fo  # noqa: E402
from fastoptim.backends import KernelCall, get_backend  # noqa: E402
from fastoptim.backends.cuda import backend as cuda_backend  # noqa: E402
from fastoptim.bench.cases import GPT2_SMALL  # noqa: E402
from fastoptim.bench.statistics import summarise, verdict  # noqa: E402
from fastoptim.bench.subjects import OPTIMIZERS  # noqa: E402
from fastoptim.bench.subjects import optimizer as bench_optimizer  # noqa: E402
from fastoptim.environment import output  # noqa: E402
from fastoptim.rules import reference  # noqa: E402
from fastoptim.rules.norm import NORM_RETRY  # noqa: E402
from fastoptim.rules.table import MEASURES, RULES, kernels  # noqa: E402
from tests.support import stored  # noqa: E402
from tests.support.cases import (  # noqa: E402
    DTYPES,
    SAMPLE,
    SIZES,
    VARIANTS,
    Variant,
    expected,
    ordinary,
    raw_bits,
    run_kernel,
    states_for,
)

SIMULATED = bool(config.ENABLE_CUDASIM)
FAKE = bool(os.environ.get("FASTOPTIM_FAKE_CUDA"))  # the tests' driver without a GPU: the whole plan, on small arrays
SMALL = SIMULATED or FAKE
cuda_backend.load_overloads()
COPY_SHARE = 0.93  # of the copy's bandwidth, from 1e8 elements on
BARS_FROM = 10**8
STREAMS = {"sgd": 3, "momentum": 5, "adam": 7}


# --- What is checked ----------------------------------------------------------------------------------------------

share = [0, 1]  # of the checks, this process does each `share[1]`-th kernel's, from the `share[0]`-th on
_kernels_met: dict[str, int] = {}


def is_mine(kernel: str) -> bool:
    """Whether this process does the checks of a kernel, where several share them: it compiles the kernel for all."""
    return _kernels_met.setdefault(kernel, len(_kernels_met)) % share[1] == share[0]


def to_device(x: np.ndarray, offset: int = 0) -> Any:
    """A copy on the GPU that begins `offset` elements behind the start of an allocation."""
    whole = cuda.to_device(np.concatenate([np.zeros(offset, x.dtype), x, np.zeros(1, x.dtype)]))
    return whole[offset : offset + x.size]


def count_differing(x: np.ndarray, wanted: np.ndarray) -> int:
    """Elements with other bits, two NaNs being equal."""
    unsigned = {4: np.uint32, 8: np.uint64}[x.itemsize]
    return int(np.count_nonzero((x.view(unsigned) != wanted.view(unsigned)) & ~(np.isnan(x) & np.isnan(wanted))))


def check_kernels(
    backend: Any,
    sizes: Sequence[int],
    make: Callable[..., np.ndarray],
    offset: int,
    variants: Sequence[Variant] | None = None,
) -> Iterator[tuple]:
    """(what, elements, differing elements) for one step of every variant and dtype on a list of arrays."""
    for variant in filter(lambda variant: is_mine(variant.kernel.name), variants or VARIANTS):
        for dtype in DTYPES:
            rng = np.random.default_rng(offset)
            hosts = []
            for n in sizes:
                p, g = make(rng, n, dtype), make(rng, n, dtype)
                hosts.append([p, g, *states_for(rng, variant.rule, n, dtype, make)])
            devices = [[to_device(x, offset) for x in row] for row in hosts]
            rows = [[backend.flat(x) for x in row] for row in devices]
            run_kernel(backend, variant, [tuple(row) for row in rows], 0.77, 1)
            elements = differing = 0
            for host, device in zip(hosts, devices, strict=True):
                p, *states = expected(variant, host[0], host[1], host[2:], 0.77)
                for x, wanted in zip(device, (p, host[1], *states), strict=True):
                    elements += wanted.size
                    differing += count_differing(x.copy_to_host(), wanted)
            yield f"{variant.label}/{np.dtype(dtype).name}/{make.__name__}/offset {offset}", elements, differing


def to_device_as(x: np.ndarray) -> Any:
    """A copy on the GPU, of any dtype that NumPy knows."""
    return cuda.to_device(x.view(f"u{x.itemsize}")).view(x.dtype)


def check_stored(backend: Any, sizes: Sequence[int]) -> Iterator[tuple]:
    """Two steps over arrays of fewer bits: Adam in every storage and rounding, every other kernel in one of them."""
    if not find_spec("ml_dtypes"):
        raise ImportError("arrays of fewer bits were not checked: pip install ml_dtypes")
    ways = list(product(stored.STORAGES, (False, True), (ordinary, raw_bits)))
    adam = next(v for v in stored.ONE_OF_EACH if v.rule.name == "adam" and v.decay == "none")
    cases = [(adam, way) for way in ways]
    cases += [(variant, ways[i % len(ways)]) for i, variant in enumerate(stored.ONE_OF_EACH) if variant != adam]
    for i, (variant, (storages, nearest, make)) in enumerate(cases[:3] if SIMULATED else cases):
        if (not variant.rule.states and storages[0] == "float32") or not is_mine(f"{variant.label} {i}"):
            continue
        rows = stored.rows_for(np.random.default_rng(i), variant.rule, storages, nearest, make, sizes)
        devices = [[to_device_as(x) for x in arrays] for arrays, _ in rows]
        calls = [tuple(map(backend.flat, row)) for row in devices]
        launch = backend.prepare([KernelCall(variant.kernel, calls, [by for _, by in rows])], 1)
        for t in (5, 6):
            launch([(*variant.scalars(0.77, t=t), t)])
            for arrays, by in rows:
                reference.update_stored(variant.kernel, arrays, by, variant.scalars(0.77, t=t), t)
        read = [([x.copy_to_host() for x in row], by) for row, (_, by) in zip(devices, rows, strict=True)]
        way = "/".join([*storages[:3], "nearest" if nearest else "stochastic"])
        elements = sum(x.size for arrays, _ in rows for x in arrays)
        yield f"{variant.label}/{way}/{make.__name__}", elements, len(stored.differing(read, rows))


def check_norm(backend: Any, sizes: Sequence[int]) -> Iterator[tuple]:
    if not is_mine("norm"):
        return
    rng = np.random.default_rng(9)
    for make in (ordinary, raw_bits):
        grads = [make(rng, n, dtype) for n in sizes for dtype in DTYPES]
        vectors = [backend.flat(to_device(g)) for g in grads]
        for k in (1.0, NORM_RETRY, 1 / NORM_RETRY):
            wanted = np.concatenate([reference.block_sums(g, 0.3, k) for g in grads])
            yield (
                f"block sums/{make.__name__}/k={k:g}",
                wanted.size,
                count_differing(backend.block_sums(vectors, 0.3, k, 1), wanted),
            )
    host = get_backend("numpy")
    for factor in (1.0, 1e160, 1e-170):
        grads = [factor * rng.standard_normal(n) for n in sizes]
        ours, wanted = backend.norm([to_device(g) for g in grads], 0.7, 1), host.norm(grads, 0.7, 1)
        yield f"norm/{factor:g}", 1, int(ours != wanted)


def check_measures(backend: Any, sizes: Sequence[int]) -> Iterator[tuple]:
    """The sums of whole arrays that some steps depend on."""
    measures = list(kernels(MEASURES.values()))
    for kernel in filter(lambda kernel: is_mine(kernel.name), measures[:2] if SIMULATED else measures):
        scalars = (-0.77, 0.3, *(0.7 / (i + 2) for i in range(len(kernel.rule.coefficients))))
        for dtype, make in product(DTYPES, (ordinary, raw_bits)):
            rng = np.random.default_rng(5)
            rows = [[make(rng, n, dtype) for _ in range(2 + len(kernel.rule.states))] for n in sizes]
            devices = [[to_device(x) for x in row] for row in rows]
            measured = backend.prepare_measures([KernelCall(kernel, [tuple(map(backend.flat, d)) for d in devices])], 1)
            for k in (1.0, NORM_RETRY):
                wanted = [x for p, g, *states in rows for x in reference.measure(kernel, p, g, states, scalars, k)]
                found = measured([scalars], k)
                elements = sum(x.size for row in rows for x in row)
                differing = sum(count_differing(x, y) for x, y in zip(found, wanted, strict=True))
                yield f"measure {kernel.name}/{np.dtype(dtype).name}/{make.__name__}/k={k:g}", elements, differing


KINDS: dict[str, Callable[[Any, str], Any]] = {
    "SGD": lambda p, b: fo.SGD(p, lr=0.1, weight_decay=0.1, maximize=True, backend=b),
    "SGD momentum": lambda p, b: fo.SGD(p, lr=0.1, momentum=0.9, dampening=0.3, backend=b),
    "SGD nesterov": lambda p, b: fo.SGD(p, lr=0.1, momentum=0.9, nesterov=True, backend=b),
    "Adam": lambda p, b: fo.Adam(p, lr=0.1, backend=b),
    "AdamW amsgrad": lambda p, b: fo.AdamW(p, lr=0.1, weight_decay=0.1, amsgrad=True, backend=b),
}


def check_classes(wrap: Callable[[np.ndarray], Any], unwrap: Callable[[Any], np.ndarray], name: str) -> Iterator[tuple]:
    """Ten steps of every class, some with clipping, over arrays of another library."""
    if not is_mine(name):
        return
    shapes = [(5, 7), (1,), (3,), (2, 3, 4)] if SIMULATED else [(257, 129), (1,), (1000,), (31, 33, 35)]
    for i, (kind, make) in enumerate(KINDS.items()):
        for dtype in DTYPES[i % 2 :][:1] if SIMULATED else DTYPES:
            rng = np.random.default_rng(3)
            host = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
            device = [wrap(x.copy()) for x in host]
            ours, theirs = make(device, "cuda"), make(host, "numpy")
            differing = 0
            for t in range(3 if SIMULATED else 10):
                grads = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
                options = {"max_norm": 1.0, "grad_scale": 0.5} if t % 3 == 1 else {}
                info = ours.step([wrap(g) for g in grads], **options)
                differing += info != theirs.step(grads, **options)
            for x, wanted in zip(device, host, strict=True):
                differing += count_differing(unwrap(x), wanted)
            elements = sum(x.size for x in host)
            yield f"{kind}/{np.dtype(dtype).name}/arrays of {name}", elements, differing


def check_bits(backend: Any, quick: bool) -> Iterator[tuple]:
    plans: list[tuple[Any, ...]]
    if SIMULATED:  # where all kernels go through tests/support/simulator
        plans = [((0, 1, 5, 65), raw_bits, 0, SAMPLE[::4]), ((3, 67), ordinary, 1, SAMPLE[2::8])]
        norm_sizes: Sequence[int] = (1, 17)
    else:
        large, huge = (65537, 1_000_003), () if quick else (20_000_001,)
        plans = [(SIZES, raw_bits, 0), (SIZES, raw_bits, 1), (SIZES, ordinary, 3), (large, ordinary, 0)]
        if huge:
            # New is how the work is shared out, which variants have in common; the host takes a second for each.
            plans.append((huge, ordinary, 0, list({variant.rule.name: variant for variant in VARIANTS}.values())))
        norm_sizes = (*SIZES, *large, *huge)
    yield from check_norm(backend, norm_sizes)
    yield from check_measures(backend, norm_sizes)
    yield from check_classes(cuda.to_device, lambda x: x.copy_to_host(), "numba")
    if torch_on_gpu():
        import torch

        yield from check_classes(lambda x: torch.from_numpy(x).cuda(), lambda x: x.cpu().numpy(), "torch")
    if find_spec("cupy") and not SIMULATED:
        import cupy

        yield from check_classes(cupy.asarray, cupy.asnumpy, "cupy")
    for plan in plans:
        yield from check_kernels(backend, *plan)


def counted(checks: Sequence[tuple]) -> dict[str, Any]:
    return {
        "checks": len(checks),
        "elements": sum(elements for _, elements, _ in checks),
        "differing": sum(differing for *_, differing in checks),
        "failures": [what for what, _, differing in checks if differing][:50],
    }


def check_smoke(backend: Any) -> dict[str, Any]:
    """One kernel from end to end, its registers, and one time: what to know if nothing else can be run."""
    n = 1000 if SMALL else 1_000_003
    rng = np.random.default_rng(1)
    p, g = rng.standard_normal((2, n)).astype(np.float32)
    device, gradient = cuda.to_device(p), cuda.to_device(g)
    ours_, theirs = fo.Adam(device, lr=0.1, backend="cuda"), fo.Adam(p, lr=0.1, backend="numpy")
    start = time.perf_counter()
    ours_.step(gradient)
    cuda.synchronize()
    found: dict[str, Any] = {"first_step_s": time.perf_counter() - start}
    ours_.step(gradient, max_norm=1.0)
    theirs.step(g)
    theirs.step(g, max_norm=1.0)
    found["differing"] = count_differing(device.copy_to_host(), p)
    if not SIMULATED:
        kernels = {}
        for (name, dtype, _), kernel in backend._kernels.items():
            (compiled,) = kernel.overloads.values()
            kernels[f"{name}/{dtype.name}"] = {
                "registers": compiled.regs_per_thread,
                "local_bytes": compiled.local_mem_per_thread,
                "shared_bytes": compiled.shared_mem_per_block,
            }
        found["kernels"] = kernels
        # They take 40 us in place of 2: the driver, or numba-cuda, is not what was expected.
        found["slow_launchers"] = [key[0] for key, launch in backend._launchers.items() if "keeps" not in vars(launch)]
        large = 10**4 if FAKE else 10**8 if free_bytes() > 4 * 10**9 else 10**7
        subjects = {"ours": subject_ours("adam", [large]), "copy": subject_copy(large)}
        found["adam_1e8"] = microseconds(interleaved(subjects, 0.05, 5)) | {"size": large}
    return found


def check_ordering(backend: Any) -> dict[str, Any]:
    """Differing elements after steps on streams that the default stream does not wait for, in the face of long work."""
    from fastoptim.backends.cuda import on_stream

    n, found = (100 if SMALL else 20_000_000), {}
    rng = np.random.default_rng(2)
    p, g = rng.standard_normal((2, n)).astype(np.float32)

    def trial(name: str, stream: Any, read: Callable[[Any, Any], np.ndarray]) -> None:
        device, gradient, host = cuda.to_device(p), cuda.to_device(g), p.copy()
        ours_, theirs = fo.Adam(device, lr=0.1, backend="cuda"), fo.Adam(host, lr=0.1, backend="numpy")
        ours_.step(gradient)
        cuda.synchronize()
        with on_stream(stream):
            for _ in range(4):
                ours_.step(gradient)
        for _ in range(5):
            theirs.step(g)
        wanted = theirs.state_dict() if read is of_state else host
        found[name] = count_differing(read(ours_, device), read_host(wanted))
        cuda.synchronize()

    def of_state(optimizer: Any, _: Any) -> np.ndarray:
        return read_host(optimizer.state_dict())

    def read_host(x: Any) -> np.ndarray:
        if isinstance(x, np.ndarray):
            return x
        inner = [y for y in (x.values() if isinstance(x, dict) else x) if isinstance(y, (dict, list, np.ndarray))]
        arrays = [read_host(y) for y in inner]
        return np.concatenate([y.ravel() for y in arrays]) if arrays else np.zeros(0, np.float32)

    def of_parameter(_: Any, device: Any) -> np.ndarray:
        cuda.synchronize()
        return device.copy_to_host()

    streams: dict[str, Any] = {"numba": 7 if SIMULATED else cuda.stream()}
    if torch_on_gpu():
        import torch

        streams["torch side stream"] = torch.cuda.Stream()
    if find_spec("cupy") and not SIMULATED:
        import cupy

        streams["cupy non-blocking"] = cupy.cuda.Stream(non_blocking=True)
    for name, stream in streams.items():
        trial(f"parameter/{name}", stream, of_parameter)
        trial(f"state_dict/{name}", stream, of_state)
    return {"differing": sum(found.values()), "trials": found}


def check_long_array() -> int:
    """Whether a step or a norm misses an element of an array whose indices need more than 32 bits."""
    n = 100 if SMALL else 2**31 + 4099
    p, g = filled(n), filled(n)
    for i, x in ((0, 3.0), (n // 2, 4.0), (n - 1, 12.0)):
        g[i : i + 1].copy_to_device(np.full(1, x, np.float32))
    fo.SGD(p, lr=1.0, backend="cuda").step(g)  # leaves zeros, and at these places -2.5, -3.5 and -11.5
    return int(fo.grad_norm([p], backend="cuda") != math.sqrt(150.75))


def check_users(backend: Any) -> dict[str, Any]:
    """Differing elements in what users do besides: views, 0-d and long arrays, threads, checkpoints, autograd."""
    from fastoptim.backends.cuda import on_stream

    found: dict[str, int] = {}

    def trial(name: str, shapes: Sequence[tuple[int, ...]], width: int = 1, stream: Any = 1) -> tuple[Any, Any]:
        """Four clipped steps on every `width`-th element, here and on the host: the two optimizers."""
        rng = np.random.default_rng(4)
        hosts = [np.array(rng.standard_normal(shape), np.float32) for shape in shapes]
        devices = [cuda.to_device(x) for x in hosts]
        views = [[x[:, ::width] if width > 1 else x for x in arrays] for arrays in (devices, hosts)]
        ours_, theirs = (fo.AdamW(v, lr=0.1, backend=b) for v, b in zip(views, ("cuda", "numpy"), strict=True))
        for _ in range(4):
            grads = [np.array(rng.standard_normal(x.shape), np.float32) for x in views[1]]
            with on_stream(stream):
                ours_.step([cuda.to_device(g) for g in grads], max_norm=1.0)
            theirs.step(grads, max_norm=1.0)
        cuda.synchronize()
        pairs = zip(devices, hosts, strict=True)
        found[name] = sum(count_differing(x.copy_to_host().ravel(), y.ravel()) for x, y in pairs)
        return ours_, theirs

    shape = (6, 8) if SMALL else (500, 640)
    trial("views", [shape], width=2)
    ours_, theirs = trial("0-d and empty", [(), (0, 3), shape])
    if free_bytes() > 20 * 10**9 or SMALL:
        found["more than 2^31 elements"] = check_long_array()
        release()
    with tempfile.TemporaryDirectory() as folder:
        ours_.save(Path(folder) / "file")
        hosts = [np.zeros((), np.float32), np.zeros((0, 3), np.float32), np.zeros(shape, np.float32)]
        again = fo.AdamW(hosts, lr=0.1, backend="numpy")
        again.load(Path(folder) / "file")
    kept = theirs.state_dict()
    found["checkpoint"] = sum(
        count_differing(np.ravel(x), np.ravel(kept["state"][name][slot]))
        for name, entry in again.state_dict()["state"].items()
        for slot, x in entry.items()
        if slot != "step"
    )
    if not SIMULATED:
        with ThreadPoolExecutor(2) as threads:  # each on its own default stream
            list(threads.map(lambda i: trial(f"thread {i}", [shape], stream=2), range(2)))
    if torch_on_gpu():
        import torch

        weights = torch.ones(5, device="cuda", requires_grad=True)
        loss = (weights**3).sum()
        fo.SGD(weights.detach(), lr=0.1).step(torch.ones(5, device="cuda"))
        try:
            loss.backward()
            found["autograd"] = 1  # through weights that have changed
        except RuntimeError:
            found["autograd"] = 0
    return {"differing": sum(found.values()), "trials": found}


# --- What is timed ------------------------------------------------------------------------------------------------


def torch_on_gpu() -> bool:
    if SIMULATED or not find_spec("torch"):
        return False
    import torch

    return torch.cuda.is_available()


def ours(kind: str, params: Any) -> Any:
    if kind == "adam":
        return fo.Adam(params, lr=1e-3, backend="cuda")
    return fo.SGD(params, lr=1e-3, momentum=0.9 if kind == "momentum" else 0.0, backend="cuda")


@cuda.jit
def fill(x, value):
    for i in range(cuda.grid(1), x.size, cuda.gridsize(1)):
        x[i] = value


def filled(shape: tuple[int, ...] | int) -> Any:
    """An array on the GPU that holds an ordinary number."""
    size = math.prod(shape) if isinstance(shape, tuple) else shape
    x = cuda.device_array(size, np.float32)
    fill[min(1024, -(-size // 32)), 32](x, np.float32(0.5))
    return x.reshape(shape)


def subject_ours(kind: str, shapes: Sequence[Any], fresh: bool = False, **options: Any) -> Callable[[], Any]:
    params, grads = [filled(s) for s in shapes], [filled(s) for s in shapes]
    others = [filled(s) for s in shapes] if fresh else grads
    optimizer = ours(kind, params)
    turn = [grads, others]

    def step() -> None:
        turn.reverse()
        optimizer.step(turn[0], **options)

    return step


def subject_torch(kind: str, shapes: Sequence[Any], clip: bool = False) -> Callable[[], Any]:
    import torch

    params = [torch.full(s if isinstance(s, tuple) else (s,), 0.5, device="cuda", requires_grad=True) for s in shapes]
    for p in params:
        p.grad = torch.full_like(p, 0.5)
    if kind == "adam":
        optimizer: Any = torch.optim.Adam(params, lr=1e-3, fused=True)
    else:
        optimizer = torch.optim.SGD(params, lr=1e-3, momentum=0.9 if kind == "momentum" else 0.0, fused=True)

    def step() -> None:
        if clip:
            torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()

    return step


def subject_ours_on_torch(kind: str, shapes: Sequence[Any]) -> Callable[[], Any]:
    import torch

    params = [torch.full(s if isinstance(s, tuple) else (s,), 0.5, device="cuda") for s in shapes]
    grads = [torch.full_like(p, 0.5) for p in params]
    optimizer = ours(kind, params)
    return lambda: optimizer.step(grads)


def subject_cupy(kind: str, size: int) -> Callable[[], Any]:
    import cupy as cp

    p, g, m, v = (cp.full(size, 0.5, cp.float32) for _ in range(4))
    state = {"p": p, "m": m, "v": v, "t": 0}

    def step() -> None:
        if kind == "sgd":
            state["p"] = state["p"] - 1e-3 * g
        elif kind == "momentum":
            state["m"] = 0.9 * state["m"] + g
            state["p"] = state["p"] - 1e-3 * state["m"]
        else:
            state["t"] += 1
            state["m"] = 0.9 * state["m"] + 0.1 * g
            state["v"] = 0.999 * state["v"] + 0.001 * g**2
            m_hat, v_hat = state["m"] / (1 - 0.9 ** state["t"]), state["v"] / (1 - 0.999 ** state["t"])
            state["p"] = state["p"] - 1e-3 * m_hat / (cp.sqrt(v_hat) + 1e-8)

    return step


def subject_copy(size: int) -> Callable[[], Any]:
    source, target = filled(size), filled(size)
    return lambda: target.copy_to_device(source)


def round_time(step: Callable[[], Any], repeats: int) -> float:
    cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def interleaved(subjects: dict[str, Callable[[], Any]], seconds: float, rounds: int) -> dict[str, list[float]]:
    """Seconds of a step of each subject, round by round; a round is about `seconds` long."""
    repeats = {}
    for name, step in subjects.items():
        round_time(step, 1 if SMALL else 3)
        repeats[name] = 1 if SMALL else max(1, min(1000, math.ceil(seconds / round_time(step, 3))))
    times: dict[str, list[float]] = {name: [] for name in subjects}
    for i in range(rounds):
        for name in sorted(subjects, reverse=bool(i % 2)):
            times[name].append(round_time(subjects[name], repeats[name]))
    return times


def microseconds(times: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) * 1e6 for name, values in times.items()}


def against(times: dict[str, list[float]], name: str, mine: str = "ours") -> dict[str, Any]:
    """How many times faster than `name` we are in the same round: median, quartiles and whether that is a loss."""
    ratios = [theirs / own for theirs, own in zip(times[name], times[mine], strict=True)]
    return summarise(ratios)._asdict() | {"loses": verdict(ratios) == "loss"}


def free_bytes() -> int:
    return 10**9 if SIMULATED else int(cuda.current_context().get_memory_info().free)


def release() -> None:
    """Give memory back to the driver, so that the next size finds it."""
    import gc

    gc.collect()
    if SIMULATED:
        return
    cuda.synchronize()
    cuda.current_context().deallocations.clear()
    if torch_on_gpu():
        import torch

        torch.cuda.empty_cache()
    if find_spec("cupy"):
        import cupy

        cupy.get_default_memory_pool().free_all_blocks()


def time_sizes(sizes: Sequence[int], seconds: float, rounds: int) -> Iterator[dict[str, Any]]:
    for size in sizes:
        for kind, streams in STREAMS.items():
            needed = 4 * size * ((streams + 1) // 2 + 2) * (2 if torch_on_gpu() else 1)
            if needed > 0.9 * free_bytes():
                yield {"rule": kind, "size": size, "skipped": f"needs {needed / 2**30:.0f} GiB of GPU memory"}
                continue
            subjects = {"ours": subject_ours(kind, [size]), "copy": subject_copy(size)}
            if torch_on_gpu():
                subjects["torch_fused"] = subject_torch(kind, [size])
            if find_spec("cupy") and not SIMULATED and 2 * needed < free_bytes():
                subjects["cupy_naive"] = subject_cupy(kind, size)
            times = interleaved(subjects, seconds, rounds)
            medians = microseconds(times)
            row: dict[str, Any] = {"rule": kind, "size": size, "microseconds": medians}
            row["gigabytes_per_second"] = 4e-3 * size * streams / medians["ours"]
            if size >= BARS_FROM:  # a smaller copy takes the time of the call
                row["share_of_copy_bandwidth"] = (streams / medians["ours"]) / (2 / medians["copy"])
            if "torch_fused" in times:
                row["torch_over_ours"] = against(times, "torch_fused")
            if "cupy_naive" in times:
                row["cupy_over_ours"] = against(times, "cupy_naive")
            yield row
            del subjects
            release()


COPIES = """
extern "C" __global__ void move(const float4* a, float4* b, const float4* c, float4* d, const float4* e, float4* f,
                                const float4* g, long long n, int in, int out) {
  for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < n; i += gridDim.x * (long long)blockDim.x) {
    float4 x = a[i], y = in > 1 ? c[i] : x, z = in > 2 ? e[i] : x, w = in > 3 ? g[i] : x;
    x.x += y.x; x.y += z.y; x.z += w.z;
    b[i] = x;
    if (out > 1) d[i] = y;
    if (out > 2) f[i] = z;
  }
}
"""


def device_time(step: Callable[[], Any], steps: int = 10) -> float:
    """Microseconds on the GPU of one step, between events around some that the host has launched ahead."""
    import torch

    times = []
    for _ in range(7):
        begin, end = cuda.event(), cuda.event()
        cuda.synchronize()
        torch.cuda._sleep(2_000_000)  # cycles: a millisecond, in which the host launches what is timed
        begin.record()
        for _ in range(steps):
            step()
        end.record()
        end.synchronize()
        times.append(cuda.event_elapsed_time(begin, end) * 1e3 / steps)
    return statistics.median(times[2:])


def time_device(sizes: Sequence[int]) -> Iterator[dict[str, Any]]:
    """The kernels alone, against a kernel that moves as many streams and computes almost nothing."""
    if not torch_on_gpu() or not find_spec("cupy"):
        yield {"skipped": "needs torch and cupy"}
        return
    import cupy as cp
    import torch

    move = cp.RawKernel(COPIES, "move")
    for size in sizes:
        for kind, streams in STREAMS.items():
            if 8 * size * streams > 0.8 * free_bytes():
                continue
            params, grads = [torch.full((size,), 0.5, device="cuda")], [torch.full((size,), 0.5, device="cuda")]
            optimizer = ours(kind, params)
            optimizer.step(grads)
            row: dict[str, Any] = {"rule": kind, "size": size}
            row["device_us"] = device_time(partial(optimizer.step, grads))
            flat = [cp.full(size // 4 * 4, 0.5, cp.float32) for _ in range(7)]
            reads = {"sgd": 2, "momentum": 3, "adam": 4}[kind]
            arguments = (*flat, size // 4, reads, streams - reads)
            row["moving_us"] = device_time(partial(move, (132 * 16,), (256,), arguments))
            row["share_of_moving"] = row["moving_us"] / row["device_us"]
            row["gigabytes_per_second"] = 4e-3 * size * streams / row["device_us"]
            yield row
            del params, grads, optimizer, flat, arguments
            release()


# What Adam is timed with: dtype of parameters and gradients, of states, and whether there is a master copy.
STORED = [
    ("float32", "float32", False),
    ("float32", "bfloat16", False),
    ("float32", "float8", False),
    ("bfloat16", "float32", True),
    ("bfloat16", "bfloat16", True),
    ("bfloat16", "bfloat16", False),
    ("bfloat16", "float8", True),
    ("bfloat16", "float8", False),
    ("float16", "float32", True),
]


def torch_forms(rule: str, size: int, dtype: Any) -> dict[str, Callable[[], Any]]:
    """Steps of torch's optimizer that does what a rule does, in each form that it has."""
    import torch

    name, options = OPTIMIZERS.get(rule, ("", {}))
    kind, found = getattr(torch.optim, name, None), {}
    for form in ("fused", "foreach"):
        parameter = torch.full((size,), 0.5, device="cuda", dtype=dtype, requires_grad=True)
        parameter.grad = torch.full_like(parameter, 0.5)
        with contextlib.suppress(TypeError):  # it has no such form, or torch no such optimizer
            found[f"torch_{form}"] = kind([parameter], lr=1e-3, **options, **{form: True}).step
    return found


def time_alone(size: int, cases: Sequence[tuple[str, str, str, bool]], rounds: int) -> Iterator[dict[str, Any]]:
    """Steps on the GPU's clock: against a copy of as many bytes, and torch's optimizer on such parameters.

    A case is a rule, the dtype of parameters and gradients, that of states, and whether there is a master copy.
    """
    if not torch_on_gpu():
        yield {"skipped": "needs torch"}
        return
    import torch

    source = torch.full((size,), 0.5, device="cuda")
    target = torch.empty_like(source)
    for rule, stored_as, states, master in cases:
        p, g = (torch.full((size,), 0.5, device="cuda", dtype=getattr(torch, stored_as)) for _ in range(2))
        if rule == "adam":
            optimizer: Any = fo.Adam([p], lr=1e-3, backend="cuda", state_dtype=states, master=master)
        else:
            optimizer = bench_optimizer(rule, [p], "cuda", 1)
        steps: dict[str, Any] = {"ours": partial(optimizer.step, [g]), "copy": partial(target.copy_, source)}
        steps["ours"]()
        kept = sum(x.nbytes for x in optimizer.state["0"].values() if hasattr(x, "__cuda_array_interface__"))
        moved = 2 * p.nbytes + g.nbytes + 2 * kept
        steps |= {} if master else torch_forms(rule, size, p.dtype)  # which keep no master copy
        times = {name: [device_time(step) for _ in range(rounds)] for name, step in steps.items()}
        row: dict[str, Any] = {"rule": rule, "storage": [stored_as, states, *["master"] * master], "size": size}
        row["device_us"] = {name: statistics.median(values) for name, values in times.items()}
        row["bytes_an_element"], row["gigabytes_per_second"] = moved / size, 1e-3 * moved / row["device_us"]["ours"]
        row["share_of_copy_bandwidth"] = row["device_us"]["copy"] / (8 * size) * moved / row["device_us"]["ours"]
        for name in times.keys() - {"ours", "copy"}:
            row[f"{name}_over_ours"] = against(times, name)
        yield row
        del p, g, optimizer, steps
        release()


def time_lists(seconds: float, rounds: int) -> Iterator[dict[str, Any]]:
    """Many arrays: against torch, one flat array, new gradients at every step, and clipping."""
    lists: dict[str, list[Any]] = {"gpt2_small": list(GPT2_SMALL), "1000 x 1000": [1000] * 1000}
    if SMALL:
        lists = {"six arrays": [(3, 2), (5,), (1,), (7,), (2, 2), (4,)]}
    for name, shapes in lists.items():
        total = sum(math.prod(s) if isinstance(s, tuple) else s for s in shapes)
        subjects = {
            "ours": subject_ours("adam", shapes),
            "ours_new_gradients": subject_ours("adam", shapes, fresh=True),
            "ours_clipped": subject_ours("adam", shapes, max_norm=1.0),
            "ours_one_flat_array": subject_ours("adam", [total]),
        }
        if torch_on_gpu():
            subjects["torch_fused"] = subject_torch("adam", shapes)
            subjects["torch_fused_clipped"] = subject_torch("adam", shapes, clip=True)
            subjects["ours_on_torch_tensors"] = subject_ours_on_torch("adam", shapes)
        times = interleaved(subjects, seconds, rounds)
        row: dict[str, Any] = {"list": name, "arrays": len(shapes), "elements": total}
        medians = row["microseconds"] = microseconds(times)
        row["table_over_flat"] = medians["ours"] / medians["ours_one_flat_array"]
        if "torch_fused" in times:
            row["torch_over_ours"] = against(times, "torch_fused")
            row["torch_over_ours_clipped"] = against(times, "torch_fused_clipped", "ours_clipped")
            row["torch_over_ours_new_gradients"] = against(times, "torch_fused", "ours_new_gradients")
            row["torch_over_ours_on_torch_tensors"] = against(times, "torch_fused", "ours_on_torch_tensors")
        yield row
        del subjects
        release()


FIRST_STEP = """
import time, numpy as np
from numba import cuda
from fastoptim.backends.cuda.backend import load_overloads
load_overloads()
import fastoptim as fo
p, g = cuda.to_device(np.ones(1000, np.float32)), cuda.to_device(np.ones(1000, np.float32))
cuda.synchronize()
start = time.perf_counter()
optimizer = fo.Adam(p, lr=1e-3, backend="cuda")
optimizer.step(g)
cuda.synchronize()
first = time.perf_counter() - start
times = []
for _ in range(REPEATS):
    start = time.perf_counter()
    optimizer.step(g)
    times.append(time.perf_counter() - start)
    cuda.synchronize()
print(first, sorted(times)[len(times) // 2])
"""


def time_first_use() -> dict[str, float]:
    """Seconds of the first step with an empty and a filled cache of kernels; host time of a warm step."""
    before = [path for path in (os.environ.get("PYTHONPATH"),) if path]  # carried packages may lie there
    with tempfile.TemporaryDirectory() as cache:
        results = []
        for _ in range(2):
            out = subprocess.run(
                [sys.executable, "-c", FIRST_STEP.replace("REPEATS", "5" if SMALL else "1000")],
                env=os.environ | {"NUMBA_CACHE_DIR": cache, "PYTHONPATH": os.pathsep.join([str(ROOT), *before])},
                capture_output=True,
                text=True,
                check=False,
            )
            if out.returncode:
                raise RuntimeError(out.stderr[-3000:])
            results.append([float(x) for x in out.stdout.split()])
    (cold, _), (warm, launch) = results
    return {"first_step_cold_s": cold, "first_step_cached_s": warm, "warm_step_host_us": launch * 1e6}


def tune(size: int, seconds: float, rounds: int) -> list[dict[str, Any]]:
    """Adam under other launch configurations, fastest first."""
    rows = []
    processors = 1 if SIMULATED else cuda.get_current_device().MULTIPROCESSOR_COUNT
    choices = [(32,), (1, 2), (1,)] if SMALL else [(128, 256, 512, 1024), (1, 2, 4), (16, 64, 0)]
    for threads, vectors, per_processor in product(*choices):
        backend = cuda_backend.CudaBackend()
        backend.threads, backend.vectors = threads, vectors
        backend._blocks = per_processor * processors or backend._blocks
        optimizer, g = ours("adam", [filled(size)]), [filled(size)]
        optimizer._backend = backend
        times = interleaved({"ours": partial(optimizer.step, g)}, seconds, rounds)
        row: dict[str, Any] = {"threads": threads, "vectors": vectors, "blocks_per_multiprocessor": per_processor}
        rows.append(row | {"microseconds": microseconds(times)["ours"]})
        del optimizer, g
        release()
    rows.sort(key=lambda row: row["microseconds"])
    for row in rows[:5]:
        print("tune", json.dumps(row), flush=True)
    return rows


# --- The report ---------------------------------------------------------------------------------------------------


def environment() -> dict[str, Any]:
    packages = ("fastoptim", "numpy", "numba", "numba-cuda", "cuda-bindings", "nvidia-nvvm", "torch", "cupy-cuda13x")
    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    found = {"python": platform.python_version(), "platform": platform.platform(), "versions": versions}
    found["backend"] = get_backend("cuda").info()
    if not SMALL:
        query = "--query-gpu=name,driver_version,memory.total,clocks.max.mem"
        found["nvidia_smi"] = output("nvidia-smi", query, "--format=csv,noheader").splitlines()
    return found


def bars(result: dict[str, Any]) -> dict[str, bool]:
    """Each bar and whether it was met; only what was measured is here."""
    exact = [result[stage]["differing"] for stage in ("bits", "fewer_bits") if stage in result]
    met = {"0 differing bits": not any(exact)} if exact else {}
    if "slow_launchers" in result.get("smoke", {}):
        met["kernels are launched by the driver's own call"] = not result["smoke"]["slow_launchers"]
    for row in result["sizes"]:
        if "microseconds" not in row:
            continue
        label = f"{row['rule']} at {row['size']:.0e}"
        if row["size"] >= BARS_FROM:
            met[f"{label}: >= {COPY_SHARE} of copy bandwidth"] = row["share_of_copy_bandwidth"] >= COPY_SHARE
        if "torch_over_ours" in row:
            met[f"{label}: no slower than torch fused"] = not row["torch_over_ours"]["loses"]
    for row in [*result.get("rules", []), *result.get("storages", [])]:
        if "device_us" in row and row["size"] >= BARS_FROM:
            label = f"{row['rule']}, {', '.join(row['storage'])}"
            met[f"{label}: >= {COPY_SHARE} of copy bandwidth"] = row["share_of_copy_bandwidth"] >= COPY_SHARE
            for form in ("fused", "foreach"):
                if f"torch_{form}_over_ours" in row:
                    met[f"{label}: no slower than torch {form}"] = not row[f"torch_{form}_over_ours"]["loses"]
    for row in result["lists"]:
        if "torch_over_ours" in row:
            met[f"{row['list']}: no slower than torch fused"] = not row["torch_over_ours"]["loses"]
    return met


EXACT = ("smoke", "bits", "fewer_bits", "ordering", "users")
SHARED = ("bits", "fewer_bits")
STAGES = (
    "environment",
    "smoke",
    "bits",
    "sizes",
    "lists",
    "fewer_bits",
    "ordering",
    "users",
    "device",
    "rules",
    "storages",
    "first_use",
)
LATE = "the time was up"
SILENCE, GRACE = 120.0, 45.0  # seconds after which a process is ended: without a word, and beyond its time


def perform_shared(stage: str, options: argparse.Namespace, minutes: float, path: Path) -> dict[str, Any]:
    """The result of a stage of checks in processes that share them."""
    with ThreadPoolExecutor(options.jobs) as threads:
        parts = list(
            threads.map(
                lambda i: perform_apart(stage, options, minutes, path.with_suffix(f".{i}"), [i, options.jobs]),
                range(options.jobs),
            )
        )
    errors = {f"{name} {i}": error for i, part in enumerate(parts) for name, error in part["errors"].items()}
    found = [part[stage] for part in parts if stage in part]
    sums = {key: sum((part[key] for part in found), type(found[0][key])()) for key in found[0]} if found else {}
    return {"errors": errors} | ({stage: sums} if found else {})


def perform_apart(
    stage: str, options: argparse.Namespace, minutes: float, path: Path, shared: Sequence[int] = (0, 1)
) -> dict[str, Any]:
    """The result of a stage in a process of its own: what it had written by its end, however it ended."""
    path.unlink(missing_ok=True)
    command = [sys.executable, "-X", "faulthandler", __file__, "--stages", stage, "--json", str(path)]
    command += ["--minutes", str(minutes), *["--quick"] * options.quick, "--share", *map(str, shared)]
    command += ["--sizes", *map(str, options.sizes)] if options.sizes else []
    begun = heard = time.monotonic()
    written, ended = 0, ""
    process = subprocess.Popen(command)
    while process.poll() is None:
        time.sleep(0.05)
        now = time.monotonic()
        if path.exists() and path.stat().st_mtime_ns != written:
            written, heard = path.stat().st_mtime_ns, now
        if now > begun + 60 * minutes + GRACE:
            ended = f"ended after {now - begun:.0f} s: {LATE}"
        elif now > heard + SILENCE:
            ended = f"ended after {SILENCE:g} s in which it had done nothing"
        if ended:
            process.send_signal(signal.SIGABRT)  # faulthandler prints where it is
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    path.unlink(missing_ok=True)
    if "errors" not in found:  # it did not come to its end
        found["errors"] = {stage: ended or f"its process ended with status {process.returncode}"}
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer sizes and rounds")
    parser.add_argument("--strict", action="store_true", help="exit status 2 if a bar is missed")
    parser.add_argument("--tune", action="store_true", help="also time launch configurations")
    parser.add_argument("--apart", action="store_true", help="each stage in a process of its own")
    parser.add_argument("--jobs", type=int, default=1, help="with --apart: processes that share the checks of bits")
    parser.add_argument("--share", type=int, nargs=2, default=[0, 1], help=argparse.SUPPRESS)  # of such a process
    parser.add_argument("--sizes", type=float, nargs="+", help="numbers of elements to time")
    parser.add_argument("--json", help="write the result to this file")
    parser.add_argument("--stages", default=",".join(STAGES), help=f"of {', '.join(STAGES)}, in the order to run")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no further stage or row after so long")
    options = parser.parse_args(arguments)
    stages = options.stages.split(",") + (["tune"] if options.tune and "tune" not in options.stages else [])
    if unknown := set(stages) - {*STAGES, "tune"}:
        parser.error(f"no such stage: {', '.join(sorted(unknown))}")
    share[:] = options.share
    begun = time.monotonic()
    seconds, rounds = (0.05, 5) if options.quick else (0.1, 15)
    # The sizes that decide come first.
    default = (1e8, 1e6, 1e4) if options.quick else (1e8, 1e6, 1e7, 1e4, 1e5, 3e8, 1e9)
    sizes = [int(size) for size in options.sizes or default]
    if SMALL:
        sizes, rounds = [100], 1
    largest = max(n for n in sizes if n <= BARS_FROM)
    result: dict[str, Any] = {"simulated": SIMULATED, "fake_driver": FAKE, "sizes": [], "lists": []}

    path = Path(options.json or Path(tempfile.gettempdir()) / f"gpu-{os.getpid()}.json")

    def enter(stage: str, found: Any) -> None:
        """Put what a stage has found into the result, and write the file: the run may be cut short in the next one."""
        result[stage] = found
        if options.json:
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_suffix(".draft")
            draft.write_text(json.dumps(result, indent=1) + "\n")
            os.replace(draft, path)

    def over() -> bool:
        return time.monotonic() - begun > 60 * options.minutes

    def perform(stage: str) -> None:
        backend = get_backend("cuda")
        rows = {
            "sizes": lambda: time_sizes(sizes, seconds, rounds),
            "device": lambda: time_device([n for n in sizes if n <= 3e8]),
            "lists": lambda: time_lists(seconds, rounds),
            "rules": lambda: time_alone(largest, [(rule, "float32", "float32", False) for rule in RULES], rounds),
            "storages": lambda: time_alone(largest, [("adam", *case) for case in STORED], rounds),
        }
        checks = {
            "bits": lambda: check_bits(backend, options.quick),
            "fewer_bits": lambda: check_stored(backend, (1, 127, 515) if SIMULATED else stored.SIZES),
        }
        whole: dict[str, Callable[[], Any]] = {
            "environment": environment,
            "smoke": lambda: check_smoke(backend),
            "ordering": lambda: check_ordering(backend),
            "users": lambda: check_users(backend),
            "first_use": time_first_use,
            "tune": lambda: tune(1000 if SMALL else 10**8, seconds, 1 if SMALL else 5),
        }
        if stage in rows:
            enter(stage, [])
            for row in rows[stage]():
                print(json.dumps({stage: row}), flush=True)
                enter(stage, [*result[stage], row])
                if over():
                    errors[stage] = f"cut short after {len(result[stage])} rows: {LATE}"
                    break
            return
        if stage in checks:
            done: list[tuple] = []
            for check in checks[stage]():
                if over():
                    errors[stage] = f"cut short after {len(done)} checks: {LATE}"
                    break
                done.append(check)
                if len(done) % 10 == 0:
                    enter(stage, counted(done))
            enter(stage, counted(done))
        else:
            enter(stage, whole[stage]())
        if stage != "tune":
            print(json.dumps({stage: result[stage]}), flush=True)

    errors: dict[str, str] = {}
    for stage in stages:
        if over():
            errors[stage] = f"not begun: {LATE}"
            continue
        start = time.monotonic()
        try:
            if options.apart and (len(stages) > 1 or options.jobs > 1):
                left = options.minutes - (start - begun) / 60
                perform_part = perform_shared if stage in SHARED and options.jobs > 1 else perform_apart
                part = perform_part(stage, options, left, path.with_suffix(f".{stage}.part"))
                errors |= part["errors"]
                if stage in part:
                    enter(stage, part[stage])
            else:
                perform(stage)
            enter("seconds", result.get("seconds", {}) | {stage: round(time.monotonic() - start, 1)})
        except Exception:
            errors[stage] = traceback.format_exc()
            print(f"FAILED {stage}\n{errors[stage]}", flush=True)
        if LATE in errors.get(stage, ""):
            print(f"{stage}: {errors[stage]}", flush=True)
    enter("errors", errors)
    enter("bars", bars(result))
    for bar, met in result["bars"].items():
        print("met   " if met else "MISSED", bar)
    if SMALL:
        print("simulated: the times mean nothing" if SIMULATED else "no GPU: the times mean nothing")
    if errors or any(result.get(stage, {}).get("differing") for stage in EXACT):
        return 1
    return 2 if options.strict and not all(result["bars"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
