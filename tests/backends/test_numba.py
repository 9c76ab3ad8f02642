"""The Numba backend: the reference's bits, safe threads, a cache that never runs older update rules."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import fastoptim as fo
from fastoptim.backends import get_backend, numba_cpu
from fastoptim.rules import reference
from tests.support.cases import (
    DTYPES,
    LARGE_SIZES,
    SAMPLE,
    SIZES,
    VARIANTS,
    at_offset,
    differing,
    ordinary,
    raw_bits,
    same_bits,
)
from tests.support.threads import in_another_thread

BORDERS = (*SIZES, *LARGE_SIZES)


@pytest.fixture(scope="module")
def backend():
    return get_backend("numba")


@pytest.fixture
def small_pieces(monkeypatch):
    """Let even small arrays be shared among threads, in pieces with borders everywhere."""
    monkeypatch.setattr(numba_cpu, "ALONE_BELOW", 1)
    monkeypatch.setattr(numba_cpu, "PIECE", 1009)
    monkeypatch.setattr(numba_cpu, "NORM_PIECE", 1)


@pytest.mark.parametrize("variant", SAMPLE, ids=lambda v: v.label)
def test_step_equals_reference_on_raw_bits(backend, variant, small_pieces):
    for dtype in DTYPES:
        assert differing(backend, variant, dtype, SIZES, raw_bits, threads=1) == []
        assert differing(backend, variant, dtype, (*SIZES, LARGE_SIZES[0]), raw_bits, threads=2) == []
        assert differing(backend, variant, dtype, SIZES, ordinary, threads=2, offset=3) == []


@pytest.mark.parametrize("offset", range(16))
def test_offset_in_the_cache_line_does_not_change_bits(backend, offset, small_pieces):
    for variant in SAMPLE[offset % 8 :: 8]:
        for dtype in DTYPES:
            assert (
                differing(backend, variant, dtype, (1, 15, 16, 17, 100, 4097), ordinary, 1 + offset % 2, offset) == []
            )


def test_pieces_as_they_are_in_use(backend):
    variant = next(v for v in VARIANTS if v.rule.name == "adam" and v.decay == "decoupled")
    assert differing(backend, variant, np.float32, (numba_cpu.ALONE_BELOW - 1,), ordinary, 2) == []
    assert differing(backend, variant, np.float32, (3, numba_cpu.ALONE_BELOW + 5, 70_001), ordinary, 64) == []


@pytest.mark.parametrize("make", [ordinary, raw_bits], ids=lambda f: f.__name__)
def test_block_sums_equal_reference(backend, make, small_pieces):
    rng = np.random.default_rng(3)
    grads = [at_offset(make(rng, n, dtype), i % 16) for dtype in DTYPES for i, n in enumerate(BORDERS)]
    for k in (1.0, 2.0**600, 2.0**-600):
        wanted = np.concatenate([reference.block_sums(g, 0.3, k) for g in grads])
        for threads in (1, 2):
            assert same_bits(backend.block_sums(grads, 0.3, k, threads), wanted)
    assert backend.block_sums([], 1.0, 1.0, 2).size == 0


def test_mixed_dtypes_and_groups_in_one_step():
    rng = np.random.default_rng(4)
    shapes = [((7, 3), np.float32), ((5,), np.float64), ((0,), np.float32), ((), np.float64)]
    results = []
    for name in ("numba", "numpy"):
        rng = np.random.default_rng(4)
        params = [np.array(rng.standard_normal(shape), dtype) for shape, dtype in shapes]
        opt = fo.Adam([{"params": params[:2], "lr": 0.1}, {"params": params[2:], "amsgrad": True}], backend=name)
        for _ in range(10):
            grads = [np.array(rng.standard_normal(shape), dtype) for shape, dtype in shapes]
            info = opt.step([grads[:2], grads[2:]], max_norm=0.5, grad_scale=0.3)
        results.append((params, info))
    (ours, info), (wanted, wanted_info) = results
    assert info == wanted_info
    for x, w in zip(ours, wanted, strict=True):
        assert same_bits(x, w)


def test_new_arrays_mean_no_new_compilation(backend):
    variant = VARIANTS[0]
    assert differing(backend, variant, np.float32, (100, 3), ordinary, 2) == []
    module, before = backend._module, set(backend._compiled)
    for n in range(1, 20):
        assert differing(backend, variant, np.float32, (n,) * n, ordinary, 2) == []
    assert set(backend._compiled) == before
    assert [len(f.signatures) for f in (module.alone, module.shared)] == [1, 1]


def test_arrays_that_change_between_steps_are_looked_at_again():
    rng = np.random.default_rng(6)
    results = []
    for name in ("numba", "numpy"):
        rng = np.random.default_rng(6)
        p = [rng.standard_normal((6, 4)).astype(np.float32), rng.standard_normal(9).astype(np.float32)]
        g = [rng.standard_normal(x.shape).astype(np.float32) for x in p]
        opt = fo.Adam(p, lr=0.1, backend=name)
        opt.step(g)
        opt.step(g)
        p[1].resize((100_000,), refcheck=False)  # elsewhere in memory now ...
        p[1].resize((9,), refcheck=False)  # ... and what it was
        opt.step(g)
        g[0] = np.asfortranarray(g[0])
        opt.step(g)
        opt.step([g[0][::-1][::-1], None])
        opt.param_groups[0]["params"][1] = p[1].copy()
        opt.step(g, grad_scale=0.5)
        opt.step(g)
        results.append([*opt.param_groups[0]["params"], *opt.state["0"].values(), *opt.state["1"].values()])
    for ours, wanted in zip(*results, strict=True):
        assert same_bits(np.array(ours, float), np.array(wanted, float))


def test_refused_in_a_remembered_step_with_nothing_changed():
    p, g = np.ones(5, np.float32), np.ones(5, np.float32)
    opt = fo.SGD(p, lr=0.5, momentum=0.9, backend="numba")
    opt.step(g)
    opt.step(g)
    before, velocity = p.copy(), opt.state["0"]["momentum_buffer"].copy()
    p.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        opt.step(g)
    p.flags.writeable = True
    for bad in (np.ones(6, np.float32), np.ones(5), p, np.ma.masked_array(g)):
        with pytest.raises((TypeError, ValueError)):
            opt.step(bad)
    assert same_bits(p, before)
    assert same_bits(opt.state["0"]["momentum_buffer"], velocity)
    assert opt.state["0"]["step"] == 2
    opt.step(g)
    assert opt.state["0"]["step"] == 3


# --- What needs a process of its own ------------------------------------------------------------------------------

PREAMBLE = """
import os, sys, threading
import numpy as np
import fastoptim as fo

def steps(backend, n=700_000, count=3, threads=2):
    rng = np.random.default_rng(n)
    p = rng.standard_normal(n).astype(np.float32)
    opt = fo.Adam(p, lr=0.1, backend=backend, threads=threads)
    for _ in range(count):
        opt.step(rng.standard_normal(n).astype(np.float32))
    return p.tobytes()
"""


def python(code, timeout=120, **environment):
    """Run code in a fresh process; its output, if it ended well."""
    done = subprocess.run(
        [sys.executable, "-c", PREAMBLE + textwrap.dedent(code)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def layers():
    """The threading layers that this Numba can load."""
    found = []
    for layer, module in (("omp", "omppool"), ("workqueue", "workqueue"), ("tbb", "tbbpool")):
        try:
            __import__(f"numba.np.ufunc.{module}")
        except ImportError:
            continue
        found.append(layer)
    return found


@pytest.mark.parametrize("layer", ["omp", "workqueue", "tbb"])
def test_two_threads_step_at_once(layer):
    if layer not in layers():
        pytest.skip(f"LOUD: this Numba has no threading layer {layer!r}, only {layers()}")
    out = python(
        """
        import numba
        wanted, results = steps("numpy"), []
        def work():
            for _ in range(4):
                results.append(steps("numba") == wanted)
        workers = [threading.Thread(target=work) for _ in range(3)]
        for worker in workers: worker.start()
        for worker in workers: worker.join()
        print(results.count(True), len(results), numba.threading_layer())
        """,
        NUMBA_THREADING_LAYER=layer,
        NUMBA_NUM_THREADS="4",
    )
    assert out.split() == ["12", "12", layer]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="LOUD: this platform has no fork")
@pytest.mark.parametrize("layer", ["omp", "workqueue", "tbb"])
def test_child_made_by_fork_steps(layer):
    if layer not in layers():
        pytest.skip(f"LOUD: this Numba has no threading layer {layer!r}, only {layers()}")
    out = python(
        """
        wanted = steps("numpy")
        assert steps("numba") == wanted
        child = os.fork()
        if child == 0:
            os._exit(42 if steps("numba") == wanted else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), steps("numba") == wanted)
        """,
        NUMBA_THREADING_LAYER=layer,
        NUMBA_NUM_THREADS="4",
    )
    assert out.split() == ["42", "True"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="LOUD: this platform has no fork")
def test_child_steps_though_only_the_parent_has_used_numba():
    out = python(
        """
        import numba
        @numba.njit(parallel=True)
        def work(x):
            for i in numba.prange(x.size):
                x[i] = i
        work(np.zeros(10000))
        wanted = steps("numpy")
        child = os.fork()
        if child == 0:
            os._exit(42 if steps("numba") == wanted else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """,
        NUMBA_NUM_THREADS="4",
    )
    assert out.split() == ["42"]


def test_calling_thread_that_flushes_subnormals_is_refused():
    torch = pytest.importorskip("torch", reason="LOUD: torch is the library that sets flush-to-zero here")
    p, g = np.ones(5, np.float32), np.ones(5, np.float32)
    opt = fo.SGD(p, lr=0.1, backend="numba")

    def work():  # in a thread of its own: the mode belongs to threads
        assert torch.set_flush_denormal(True)
        try:
            opt.step(g)
        finally:
            torch.set_flush_denormal(False)

    with pytest.raises(FloatingPointError, match="subnormal"):
        in_another_thread(work)
    assert p.tolist() == [1.0] * 5


def test_pool_thread_that_flushes_subnormals_does_no_work():
    pytest.importorskip("torch", reason="LOUD: torch is the library that sets flush-to-zero here")
    out = python(
        """
        import numba, torch
        @numba.njit(parallel=True)
        def start(x, y, z):
            for i in numba.prange(x.size):
                z[i] = x[i] * y[i]
        z = np.zeros(1000)
        torch.set_flush_denormal(True)
        start(np.full(1000, 1e-310), np.ones(1000), z)  # the pool's threads inherit the mode
        torch.set_flush_denormal(False)
        start(np.full(1000, 1e-310), np.ones(1000), z)
        rng = np.random.default_rng(0)
        a, g = ((1e-39 * rng.standard_normal(900_000)).astype(np.float32) for _ in range(2))
        b = a.copy()
        fo.SGD(a, lr=0.5, backend="numba", threads=4).step(g)
        fo.SGD(b, lr=0.5, backend="numpy").step(g)
        print(np.count_nonzero(z == 0) > 0, a.tobytes() == b.tobytes(), np.count_nonzero(a) > 800_000)
        """,
        NUMBA_NUM_THREADS="4",
        NUMBA_THREADING_LAYER="workqueue",
    )
    assert out.split() == ["True", "True", "True"]


INSPECT = """
from fastoptim.backends import get_backend
backend = get_backend("numba")
p = np.ones(1000, np.float32)
fo.Adam(p, lr=0.1, backend="numba").step(np.ones(1000, np.float32))
kernel = backend._compiled["adam_none_float32"]
hits = kernel.cache_hits + sum(backend._module.alone.stats.cache_hits.values())
"""


def test_second_process_does_not_compile_and_a_changed_rule_does(tmp_path):
    cache = {"NUMBA_CACHE_DIR": str(tmp_path), "NUMBA_NUM_THREADS": "2"}
    show = "print(hits, bool(kernel.cache_hits), p[0])"
    assert python(INSPECT + show, **cache).split() == ["0", "False", "0.9"]
    assert python(INSPECT + show, **cache).split() == ["2", "True", "0.9"]
    (tmp_path / "other_rule.py").write_text(
        "def adam(g, p, m, v, b1, c1, b2, c2, step, r2, eps):\n    u = g + g\n    return u, m, v\n"
    )
    changed = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import other_rule
from dataclasses import replace
from fastoptim.rules.table import RULES

RULES["adam"] = replace(RULES["adam"], function=other_rule.adam)
"""
    assert python(changed + INSPECT + show, **cache).split() == ["0", "False", "-1.0"]


def test_compiled_kernels_fuse_nothing_and_are_vectorised(tmp_path):
    import platform

    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip(f"LOUD: reads x86 assembly, this is {platform.machine()}")
    out = python(
        """
        import re
        from fastoptim.rules.table import kernels
        from fastoptim.backends import get_backend
        backend = get_backend("numba")
        for kernel in kernels()[::6]:  # each compiles for half a second
            name = kernel.name
            backend._kernel(name, np.dtype(np.float32))
            assembly = backend._compiled[name + "_float32"]._library.get_asm_str()
            packed = len(re.findall(r"v?mulps", assembly))
            print(name, len(re.findall(r"vfn?m(add|sub)", assembly)), packed > 0, len(assembly) > 1000)
        """,
        NUMBA_CACHE_DIR=str(tmp_path),
    )
    lines = [line.split() for line in out.splitlines()]
    assert len(lines) == -(-len({v.kernel for v in VARIANTS}) // 6)
    for name, fused, vectorised, real in lines:
        assert (name, fused, vectorised, real) == (name, "0", "True", "True")


@pytest.mark.parametrize(
    ("missing", "switched_off", "said"),
    [("nothing", "1", "NUMBA_DISABLE_JIT"), ("numba", "0", "pip install 'fastoptim[numba]'")],
)
def test_a_numba_that_cannot_compile_is_named(missing, switched_off, said):
    out = python(
        f"""
        sys.modules["{missing}"] = None
        try:
            fo.SGD(np.ones(3), backend="numba")
        except ImportError as error:
            print(error)
        """,
        NUMBA_DISABLE_JIT=switched_off,
    )
    assert said in out
    assert len(out.splitlines()) == 1


def test_auto_passes_over_a_numba_that_cannot_compile():
    out = python(
        """
        import warnings
        sys.modules["fastoptim._c"] = None
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            opt = fo.SGD(np.ones(3))
        print(opt.backend, sum("using the numpy backend" in str(w.message) for w in caught))
        """,
        NUMBA_DISABLE_JIT="1",
        FASTOPTIM_BACKEND="",
        FASTOPTIM_REQUIRE_C="",
    )
    assert out.split() == ["numpy", "1"]
