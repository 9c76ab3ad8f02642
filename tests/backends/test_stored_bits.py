"""Arrays of fewer bits: the same bits on every instruction set, by Numba, in chunks, on threads and in tiles."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

import fastoptim as fo
from fastoptim.backends import KernelCall, get_backend
from fastoptim.backends.c import ISA_NAMES
from fastoptim.backends.offload import OffloadBackend
from fastoptim.rules.reference import update_stored
from tests.support.cases import VARIANTS, on_instruction_set, ordinary, raw_bits, same_bits
from tests.support.stored import FUSED, ONE_OF_EACH, STORAGES, check, copies, differing, narrow, rows_for

pytest.importorskip("ml_dtypes", reason="LOUD: pip install ml_dtypes to test bfloat16 and float8")


@pytest.fixture(params=ISA_NAMES)
def c(request):
    with on_instruction_set(request.param) as backend:
        yield backend


@pytest.mark.parametrize("storages", STORAGES, ids=lambda s: f"{s[0]}-{s[2]}")
def test_c_equals_the_reference(c, storages):
    share = ONE_OF_EACH[STORAGES.index(storages) % 3 :: 3]  # every rule with one of two similar storages
    for i, (variant, nearest) in enumerate(product(share, (False, True))):
        check(c, variant, storages, nearest, raw_bits if i // 2 % 2 else ordinary, threads=1 + i % 3, seed=i)
    for i, (variant, make) in enumerate(product(FUSED, (ordinary, raw_bits))):
        check(c, variant, storages, False, make, threads=1 + i % 3, seed=i)
        if make is ordinary:  # chunks as long as those of arrays that lie beyond the second cache
            check(c, variant, storages, False, make, threads=1, seed=i, sizes=(8 * 16384 + 77,))


@pytest.mark.parametrize("storages", STORAGES, ids=lambda s: f"{s[0]}-{s[2]}")
def test_numba_equals_the_reference(storages):
    pytest.importorskip("numba", reason="LOUD: pip install numba to compare its kernels")
    backend = get_backend("numba")
    adam = [v for v in ONE_OF_EACH if v.rule.name in ("adam", "momentum", "sgd")]
    for i, (variant, nearest) in enumerate(product(adam, (False, True))):
        check(backend, variant, storages, nearest, raw_bits if i // 2 % 2 else ordinary, threads=1 + i % 3, seed=i)


@pytest.mark.parametrize("storages", STORAGES[:4], ids=lambda s: f"{s[0]}-{s[2]}")
def test_tiles_and_slices_are_parts_of_the_whole(storages, tmp_path, monkeypatch):
    """The NumPy backend's tiles, those of offloading, and two slices of an array against one step of the whole."""
    variant = next(v for v in VARIANTS if v.rule.name == "adam" and v.decay == "decoupled")
    rows = rows_for(np.random.default_rng(4), variant.rule, storages, False, ordinary, sizes=(70_000,))
    wanted = copies(rows)
    update_stored(variant.kernel, *wanted[0], variant.scalars(0.5, t=3), 3)
    (arrays, by) = rows[0]
    scalars = [(*variant.scalars(0.5, t=3), 3)]
    mapped = np.memmap(tmp_path / "p", arrays[0].dtype, "w+", shape=arrays[0].shape)
    mapped[...] = arrays[0]
    offload = OffloadBackend(get_backend("c"), memory_budget=1 << 20)
    monkeypatch.setattr(offload, "budget", 3 * 4096 * 40)
    for backend, first in ((get_backend("numpy"), arrays[0]), (offload, mapped)):
        own = [first, *[x.copy() for x in arrays[1:]]]
        own = own if first is mapped else [x.copy() for x in own]
        backend.prepare([KernelCall(variant.kernel, [tuple(own)], [by])], 1)(scalars)
        assert not differing([(own, by)], wanted), backend.name
    cut, states = 4096 * 5, len(by.squares)
    for backend in (get_backend("c"), get_backend("numpy")):
        own = [x.copy() for x in arrays]
        blocks = range(2 + states, 2 + states + by.scales)
        halves = [
            tuple(x[slice(*(b // 128 if i in blocks and b else b for b in span))] for i, x in enumerate(own))
            for span in ((0, cut), (cut, None))
        ]
        backend.prepare([KernelCall(variant.kernel, halves, [by, by.after(cut)])], 1)(scalars)
        assert not differing([(own, by)], wanted), backend.name


@pytest.mark.parametrize("backend", ["c", "numba"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_norm_of_narrow_gradients_is_that_of_their_values(backend, dtype):
    rng = np.random.default_rng(6)
    grads = [narrow(ordinary(rng, n, np.float32), dtype) for n in (1, 4097, 9000)]
    values = [g.astype(np.float32) for g in grads]
    for k in (1.0, 2.0**600):
        wanted = get_backend("numpy").block_sums(values, 0.3, k, 1)
        assert same_bits(get_backend(backend).block_sums(grads, 0.3, k, 2), wanted)
        assert same_bits(get_backend("numpy").block_sums(grads, 0.3, k, 1), wanted)


@pytest.mark.parametrize(
    "make",
    [lambda p, **o: fo.Adam(p, lr=1e-3, betas=(0.9, 0.5), **o), lambda p, **o: fo.SGD(p, lr=1e-3, momentum=0.9, **o)],
)
@pytest.mark.parametrize("rare", [1.8446e19, np.finfo(np.float32).max, np.inf, np.nan])
def test_one_rare_number_in_a_block_is_asked_about(make, rare):
    """The square of the first, and the second, lie between the largest bfloat16 and the largest float32."""
    found = {}
    for backend in ("numpy", "c"):
        p, g = np.ones(300, np.float32), np.full(300, 0.5, np.float32)
        g[5] = rare
        opt = make(p, state_dtype="bfloat16", backend=backend)
        for _ in range(20):
            opt.step(g)
        found[backend] = [np.asarray(x).tobytes() for x in (p, *opt.state["0"].values()) if np.ndim(x)]
    assert found["c"] == found["numpy"] and len(found["c"]) >= 2
