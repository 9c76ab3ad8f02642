"""The CUDA backend over the fake driver, in a process that test_cuda_host.py starts."""

from __future__ import annotations

import numpy as np
import pytest
from numba import cuda

import fastoptim as fo
from fastoptim import rules
from fastoptim.backends import get_backend
from fastoptim.backends.cuda import on_stream
from fastoptim.rules import reference
from fastoptim.rules.table import kernels
from tests.support import fake_cuda
from tests.support.cases import (
    DTYPES,
    SIZES,
    VARIANTS,
    expected,
    ordinary,
    raw_bits,
    run_kernel,
    same_bits,
    states_for,
)

SAMPLE = 12  # kernels that are compiled for the suite; all of them: `python -m tests.proofs.cuda_bits`


@pytest.fixture(scope="module")
def backend():
    return get_backend("cuda")


def sample():
    """(kernel, dtype), spread over the table; every decay and both dtypes are among them."""
    every = kernels()
    chosen = np.unique(np.linspace(0, len(every) - 1, SAMPLE).astype(int))
    return [(every[i], DTYPES[n % 2]) for n, i in enumerate(chosen)]


def on_device(x, offset=0):
    """A copy on the GPU that begins `offset` elements behind the start of an allocation."""
    whole = cuda.to_device(np.concatenate([np.zeros(offset, x.dtype), x, np.zeros(1, x.dtype)]))
    return whole[offset : offset + x.size]


@pytest.mark.parametrize(
    ("kernel", "dtype"), sample(), ids=lambda x: getattr(x, "name", x.__name__ if x in DTYPES else "")
)
def test_compiled_kernels_equal_the_reference_on_raw_bits(backend, kernel, dtype):
    for variant in (v for v in VARIANTS if v.kernel == kernel):
        for make, offset in ((raw_bits, 0), (raw_bits, 1), (ordinary, 3)):
            rng = np.random.default_rng(offset)
            rows = []
            for n in (*SIZES, 20_001):
                p, g = make(rng, n, dtype), make(rng, n, dtype)
                rows.append([p, g, *states_for(rng, variant.rule, n, dtype, make)])
            devices = [[on_device(x, offset) for x in row] for row in rows]
            run_kernel(backend, variant, [tuple(map(backend.flat, row)) for row in devices], 0.77, 1)
            for host, device in zip(rows, devices, strict=True):
                p, *states = expected(variant, host[0], host[1], host[2:], 0.77)
                for x, wanted in zip(device, (p, host[1], *states), strict=True):
                    assert same_bits(x.copy_to_host(), wanted), (variant.label, make.__name__, wanted.size)


@pytest.mark.parametrize("make", [ordinary, raw_bits], ids=lambda f: f.__name__)
def test_norm_equals_the_reference(backend, make):
    rng = np.random.default_rng(1)
    grads = [make(rng, n, dtype) for n in (*SIZES, 100_001) for dtype in DTYPES]
    vectors = [backend.flat(on_device(g)) for g in grads]
    for k in (1.0, rules.NORM_RETRY, 1 / rules.NORM_RETRY):
        wanted = np.concatenate([reference.block_sums(g, 0.3, k) for g in grads])
        assert same_bits(backend.block_sums(vectors, 0.3, k, 1), wanted)
    host = get_backend("numpy")
    for factor in (1.0, 1e160, 1e-170):
        grads = [factor * rng.standard_normal(n) for n in (1, 70, 300_000)]
        assert backend.norm([cuda.to_device(g) for g in grads], 0.7, 1) == host.norm(grads, 0.7, 1)


# --- Streams ------------------------------------------------------------------------------------------------------


def side_stream():
    """The handle of a stream that the default one does not wait for."""
    from cuda.bindings import driver

    cuda.current_context()
    status, stream = driver.cuStreamCreate(driver.CUstream_flags.CU_STREAM_NON_BLOCKING)
    assert int(status) == 0
    return int(stream)


@pytest.fixture(params=["delayed", "interleaved"])
def late(request):
    with fake_cuda.behaviour(request.param):
        yield


def twins(sizes, steps=1, dtype=np.float32, make=fo.Adam):
    """Equal optimizers on the device and on the host, with gradients for each step: (ours, theirs, params, grads)."""
    rng = np.random.default_rng(sum(sizes))
    host = [rng.standard_normal(n).astype(dtype) for n in sizes]
    grads = [[rng.standard_normal(n).astype(dtype) for n in sizes] for _ in range(steps)]
    device = [cuda.to_device(x) for x in host]
    device_grads = [[cuda.to_device(x) for x in g] for g in grads]
    cuda.synchronize()
    pair = make(device, lr=0.1, backend="cuda"), make(host, lr=0.1, backend="numpy")
    return *pair, list(zip(device, host, strict=True)), list(zip(device_grads, grads, strict=True))


def wrong(pairs):
    """How many elements of device arrays differ from those of host arrays."""
    cuda.synchronize()
    return sum(int((x.copy_to_host() != y).sum()) for x, y in pairs)


@pytest.mark.parametrize("options", [{}, {"max_norm": 1.0}], ids=["plain", "clipped"])
@pytest.mark.parametrize("streams", [(0,), (1,), (0, 1)], ids=["default", "side", "in turn"])
def test_steps_whose_gradients_move_are_right_however_late_the_device_is(late, streams, options):
    handles = [1, side_stream()]
    ours, theirs, params, grads = twins((1000, 17, 4096), 12)
    for t, (d, h) in enumerate(grads):
        with on_stream(handles[streams[t % len(streams)]]):
            ours.step(d, **options)
        if len(streams) > 1:
            cuda.synchronize()  # who changes streams orders their own work
        theirs.step(h, **options)
    assert wrong(params) == 0
