"""The functional forms have the bits of the classes; norm and clipping are reproducible."""

from __future__ import annotations

import gc
import os
import signal
import weakref

import numpy as np
import pytest

import fastoptim as fo
from fastoptim import functional
from fastoptim.backends import get_backend
from fastoptim.backends.c import lib
from fastoptim.backends.numpy_cpu import TILE
from fastoptim.common.signals import deferred_signals
from fastoptim.optimizers import one_array
from fastoptim.optimizers.update import Update
from fastoptim.rules import coefficients as k
from fastoptim.rules import reference
from fastoptim.rules.norm import clip_factor
from fastoptim.rules.table import RULES, Kernel
from tests.support.cases import DTYPES, native_plan, same_bits
from tests.support.forks import in_child
from tests.support.threads import in_another_thread, in_threads

BACKENDS = ("c", "numba", "numpy")


def arrays(dtype, count, n=4099):
    rng = np.random.default_rng(0)
    return [rng.standard_normal(n).astype(dtype) for _ in range(count)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: np.dtype(t).name)
def test_sgd_has_the_bits_of_the_class(dtype, backend):
    p, g = arrays(dtype, 2)
    q = p.copy()
    fo.functional.sgd(p, g, lr=0.1, weight_decay=0.3, maximize=True, grad_scale=0.7, backend=backend)
    fo.SGD(q, lr=0.1, weight_decay=0.3, maximize=True, backend="numpy").step(g, grad_scale=0.7)
    assert same_bits(p, q)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", [{"dampening": 0.4}, {"nesterov": True}, {"momentum_mode": "lr_inside"}], ids=str)
def test_momentum_has_the_bits_of_the_class(options, backend):
    p, g = arrays(np.float32, 2)
    q, v = p.copy(), np.zeros_like(p)
    opt = fo.SGD(q, lr=0.1, momentum=0.8, backend="numpy", **options)
    for t in range(3):
        fo.functional.momentum(p, g, v, lr=0.1, momentum=0.8, first=t == 0, backend=backend, **options)
        opt.step(g)
    assert same_bits(p, q) and same_bits(v, opt.state["0"]["momentum_buffer"])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("decoupled", [False, True])
def test_adam_has_the_bits_of_the_class(amsgrad, decoupled, backend):
    p, g = arrays(np.float32, 2)
    q, m, v, x = p.copy(), *(np.zeros_like(p) for _ in range(3))
    opt = (fo.AdamW if decoupled else fo.Adam)(q, lr=0.1, weight_decay=0.2, amsgrad=amsgrad, backend="numpy")
    for t in range(1, 4):
        extra = (x,) if amsgrad else ()
        fo.functional.adam(p, g, m, v, *extra, step=t, lr=0.1, weight_decay=0.2, decoupled=decoupled, backend=backend)
        opt.step(g)
    assert same_bits(p, q) and same_bits(v, opt.state["0"]["exp_avg_sq"])
    assert not amsgrad or same_bits(x, opt.state["0"]["max_exp_avg_sq"])


def test_odd_layouts():
    room = np.zeros((8, 9))
    p, m, v = room[::2, ::3], np.zeros((4, 3), order="F"), np.zeros((4, 3))
    q = np.zeros((4, 3))
    fo.functional.adam(p, np.ones((3, 4)).T, m, v, step=1, lr=0.1)
    fo.Adam(q, lr=0.1, backend="numpy").step(np.ones((4, 3)))
    assert same_bits(p, q) and np.all(m == m[0, 0]) and m[0, 0] != 0
    assert np.count_nonzero(room) == 12


@pytest.mark.parametrize("backend", BACKENDS)
def test_norm_has_the_same_bits_everywhere(backend):
    rng = np.random.default_rng(1)
    grads = {"a": rng.standard_normal((50, 331)).astype(np.float32), "b": [None, rng.standard_normal(70_001)]}
    one = fo.grad_norm(grads, backend="numpy")
    assert all(fo.grad_norm(grads, backend=backend, threads=threads) == one for threads in (1, 2, 3, 7))
    exact = np.sqrt(np.sum(grads["a"].astype(np.float64) ** 2) + np.sum(grads["b"][1] ** 2))
    assert one == pytest.approx(exact, rel=1e-13)
    assert fo.grad_norm(grads | {"a": np.asfortranarray(grads["a"])}, backend=backend) == one


def test_norm_of_nothing_and_of_bad_things():
    assert fo.grad_norm([]) == 0.0 and fo.grad_norm([None]) == 0.0
    assert np.isnan(fo.grad_norm(np.array([1.0, np.nan]))) and fo.grad_norm(np.array([np.inf])) == np.inf
    assert fo.grad_norm(np.full(2, 1e200)) == pytest.approx(np.sqrt(2) * 1e200)
    assert fo.grad_norm(np.full(2, 1e-200)) == pytest.approx(np.sqrt(2) * 1e-200)
    for bad in (np.ones(2, int), [1.0], "g", np.ma.ones(2)):
        with pytest.raises(TypeError):
            fo.grad_norm(bad)


@pytest.mark.parametrize("backend", BACKENDS)
def test_clip_grad_norm(backend):
    rng = np.random.default_rng(2)
    grads = [rng.standard_normal(100), rng.standard_normal((3, 3)).astype(np.float32)]
    before = [g.copy() for g in grads]
    norm = fo.clip_grad_norm(grads, 2.0, backend=backend)
    assert norm == fo.grad_norm(before, backend="numpy")
    factor = clip_factor(norm, 2.0)
    assert all(same_bits(g, b * b.dtype.type(factor)) for g, b in zip(grads, before, strict=True))
    assert fo.clip_grad_norm(grads, 100.0, backend=backend) == pytest.approx(2.0, rel=1e-6)
    assert same_bits(grads[0], before[0] * factor), "a norm below the limit changes nothing"


def test_norms_of_plain_arrays_keep_nothing_of_the_call_before():
    """Their plans are kept, and used by one thread at a time."""
    big = np.full(1000, 1e200)
    assert fo.grad_norm(big, backend="c") == fo.grad_norm(big, backend="numpy") > 1e201

    def norms(seed):
        rng, wrong = np.random.default_rng(seed), 0
        for _ in range(20):
            given = [rng.standard_normal(n).astype(t) for n, t in ((5, "f4"), (9000, "f4"), (30_000, "f8"))]
            views = [np.concatenate([g, g])[: g.size] for g in given]
            wrong += fo.grad_norm(given, backend="c") != fo.grad_norm({"a": given[0], "b": views[1:]}, backend="numpy")
        return wrong

    assert in_threads(norms, range(4)) == [0] * 4


def test_clip_grad_norm_refuses_before_it_writes():
    a, b = np.full(3, 5.0), np.array([np.nan])
    with pytest.raises(ValueError, match="norm is nan"):
        fo.clip_grad_norm([a, b], 1.0, error_if_nonfinite=True)
    with pytest.raises(ValueError, match="gradient 'v' and gradient 'w' overlap"):
        fo.clip_grad_norm({"v": a, "w": a}, 1.0)
    with pytest.raises(ValueError, match="max_norm"):
        fo.clip_grad_norm([a], -1.0)
    read_only = np.ones(3)
    read_only.flags.writeable = False
    with pytest.raises(ValueError, match="gradient '1' is read-only"):
        fo.clip_grad_norm([a, read_only], 1.0)
    assert np.all(a == 5)
    fo.clip_grad_norm([a, b], 1.0)
    assert np.isnan(a).all(), "torch's choice: a NaN norm spreads"


@pytest.mark.parametrize("max_norm", [0.0, 1.0, float("inf")])
def test_clip_limits(max_norm):
    g = np.array([3.0, 4.0])
    assert fo.clip_grad_norm(g, max_norm) == 5.0
    assert np.linalg.norm(g) == pytest.approx(min(5.0, max_norm), rel=1e-5, abs=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_clipping_is_exact_whatever_the_modes_of_floating_point(backend):
    a, b = np.array([3.0, 1e-40], np.float32), np.array([4.0, 1e-308])
    wanted = [x * x.dtype.type(clip_factor(5.0, 1.0)) for x in (a, b)]
    with np.errstate(all="raise"):  # 1e-308 becomes subnormal
        fo.clip_grad_norm([x := a.copy(), y := b.copy()], 1.0, backend=backend)
        assert same_bits(x, wanted[0]) and same_bits(y, wanted[1])
    mode = lib.fo_float_mode_set_default()
    lib.fo_float_mode_restore(mode | 0x8040 if get_backend("c").isa != "neon" else 1 << 24)  # flush to zero
    try:
        flushed = np.float32(1e-40) * np.float32(1) == 0
        if backend == "c":
            fo.clip_grad_norm([a, b], 1.0, backend=backend)
        else:
            with pytest.raises(FloatingPointError, match="subnormal"):
                fo.clip_grad_norm([a, b], 1.0, backend=backend)
    finally:
        lib.fo_float_mode_restore(mode)
    assert flushed
    if backend == "c":
        assert same_bits(a, wanted[0]) and same_bits(b, wanted[1])
    else:
        assert a[0] == 3 and b[0] == 4, "refused after something was written"


def interrupting(function, number=signal.SIGINT):
    """`function`, with Ctrl-C pressed (or another signal sent) at the end of each call."""

    def call(*args, **kwargs):
        function(*args, **kwargs)
        signal.raise_signal(number)

    return call


def test_ctrl_c_waits_until_all_is_written(monkeypatch):
    p, g = np.zeros(2 * TILE), np.ones(2 * TILE)
    monkeypatch.setattr(reference, "update", interrupting(reference.update))
    with pytest.raises(KeyboardInterrupt):
        fo.functional.sgd(p, g, lr=1.0, backend="numpy")
    assert np.all(p == -1)
    monkeypatch.setattr(reference, "multiply", interrupting(reference.multiply))
    grads = [np.full(1, 3.0), np.full(1, 4.0)]
    with pytest.raises(KeyboardInterrupt):
        fo.clip_grad_norm(grads, 0.0)
    assert grads[0][0] == grads[1][0] == 0


def test_ctrl_c_leaves_no_state_behind_and_no_update_uncounted(monkeypatch):
    params, p, state = [np.zeros(3)], np.zeros(3), {}
    average = fo.Average(params, backend="numpy")
    average.update()
    params[0][:] = 4.0
    monkeypatch.setattr(reference, "update", interrupting(reference.update))
    with pytest.raises(KeyboardInterrupt):
        average.update()
    assert (average.count, average.arrays[0][0]) == (2, 2.0)
    with pytest.raises(KeyboardInterrupt):
        fo.functional.nadam(p, np.ones(3), state, lr=0.1, backend="numpy")
    assert p[0] < 0 and state["step"] == 1 and state["exp_avg"][0] > 0 and state["mu_product"] < 1


def test_ctrl_c_after_the_arrays_of_one_dtype_waits_for_the_others(monkeypatch):
    """Numba runs one job for each dtype; both run, and the step is counted."""
    numba = get_backend("numba")
    params = [np.zeros(3), np.zeros(3, np.float32)]
    opt = fo.SGD(params, lr=1.0, backend="numba")
    grads = [np.ones(3), np.ones(3, np.float32)]
    opt.step(grads)
    monkeypatch.setattr(numba._pool, "run", interrupting(numba._pool.run))
    with pytest.raises(KeyboardInterrupt):
        opt.step(grads)
    assert all(np.all(p == -2) for p in params)
    assert {entry["step"] for entry in opt.state.values()} == {2}


def test_a_schedule_needs_one_plan(monkeypatch):
    """AdamW's decay changes with its rate."""
    made = []
    c = get_backend("c")
    plan = c.plan
    monkeypatch.setattr(c, "plan", lambda *args: made.append(args) or plan(*args))
    for cached in (functional._prepared, functional._array_step, one_array._native_step):
        cached.cache_clear()
    arrays, params = [np.ones(77), np.ones(77), np.zeros(77), np.zeros(77)], np.ones(77)
    opt = fo.AdamW(params, weight_decay=0.5, backend="numpy")
    for step in range(1, 6):
        opt.lr = 0.1 / step
        opt.step(arrays[1])
        fo.functional.adam(*arrays, step=step, lr=0.1 / step, weight_decay=0.5, decoupled=True, backend="c")
    assert len(made) == 1
    assert same_bits(arrays[0], params)


def test_a_call_within_a_call_changes_nothing(monkeypatch):
    """The handler of a signal may step arrays like these in the middle of a call."""
    p, q, g = np.ones(20_000), np.ones(20_000), np.ones(20_000)  # more than one native call steps at once

    def step(array, decay):
        fo.functional.sgd(array, g, lr=0.5, weight_decay=decay, backend="c")

    step(p.copy(), 0.1)
    inner = Update.step

    def interrupted(update, *arguments):
        monkeypatch.setattr(Update, "step", inner)
        step(q, 0.75)
        return inner(update, *arguments)

    monkeypatch.setattr(Update, "step", interrupted)
    step(p, 0.25)
    assert p[0] == 1 - 0.5 * 1.25 and q[0] == 1 - 0.5 * 1.75


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: np.dtype(t).name)
def test_arrays_of_all_shapes_take_turns(dtype):
    """One native plan serves them all; those of some thousand elements go another way."""
    rng = np.random.default_rng(3)
    shapes = [(), (1,), (7,), (0,), (3, 5), (5, 3), (15,), (2, 3, 4), (1200,), (8191,), (8192,), (9000,), (16_384,)]
    models = []
    for shape in shapes:
        for order in "CF":
            p = np.asarray(rng.standard_normal(shape)).astype(dtype, order=order)
            models.append(
                ((p, np.zeros_like(p), np.zeros_like(p)), q := p.copy(order="K"), fo.Adam(q, backend="numpy"))
            )
    for t in range(1, 4):
        for (p, m, v), q, opt in models:
            g = np.asarray(rng.standard_normal(p.shape)).astype(dtype)
            fo.functional.adam(p, g, m, v, step=t)
            opt.step(g)
            assert same_bits(p, q) and same_bits(v, opt.state["0"]["exp_avg_sq"])


@pytest.mark.parametrize("function", ["sgd", "momentum", "adam"])
def test_small_arrays_are_refused_as_large_ones_are(function):
    """After a call that was right, and before one that is right again."""

    def step(p, g=None, m=None, v=None, lr=0.5):
        g = np.ones_like(p) if g is None else g
        states = [x if x is not None else np.zeros_like(p) for x in (m, v)][
            : ("sgd", "momentum", "adam").index(function)
        ]
        options = {"step": 1} if function == "adam" else {}
        getattr(fo.functional, function)(p, g, *states, lr=lr, **options)
        return p

    expected = step(np.ones(6))
    pool = np.ones(12)
    locked = np.ones(6)
    locked.flags.writeable = False
    broadcast = np.broadcast_to(np.ones(1), (6,))
    bad = [
        (pool[:6], {"g": pool[3:9]}, "overlap"),
        (pool[:6], {"g": pool[:6]}, "overlap"),
        (np.ones(6), {"g": np.ones(5)}, "expected shape"),
        (np.ones(6), {"g": np.ones((6, 1))}, r"expected shape \(6,\), got \(6, 1\): g\.reshape\(\(6,\)\)"),
        (np.ones((2, 3)), {"g": np.ones((3, 2))}, r"got \(3, 2\)$"),
        (np.ones(6), {"g": np.ones(6, np.float32)}, "expected dtype"),
        (np.ones(6), {"g": np.ones(6, ">f8")}, "expected dtype"),
        (np.ones(6, ">f8"), {}, "expected native"),
        (np.ones(6, int), {}, "expected native"),
        (np.ones(6, np.float16), {}, "expected native"),
        (locked, {"g": np.ones(6)}, "read-only"),
        (broadcast, {"g": np.ones(6)}, "read-only"),
        (np.ma.ones(6), {}, "expected a NumPy array"),
        ([1.0] * 6, {"g": np.ones(6)}, "expected a NumPy array"),
        (np.ones(6), {"g": 1.0}, "expected a NumPy array"),
        (np.ones(6), {"lr": True}, "lr must be a real number"),
        (np.ones(6), {"lr": 0.5 + 0j}, "lr must be a real number"),
    ]
    if function != "sgd":
        bad += [(pool[:6], {"m": pool[:6]}, "overlap"), (pool[:6], {"g": np.ones(6), "m": pool[5:11]}, "overlap")]
        bad += [
            (np.ones(6), {"m": np.zeros(6, np.float32)}, "expected dtype"),
            (np.ones(6), {"m": np.zeros(7)}, "shape"),
        ]
    if function == "adam":
        bad += [(np.ones(6), {"m": pool[:6], "v": pool[2:8]}, "overlap")]
    for p, options, words in bad:
        before = np.array(p)
        with pytest.raises((TypeError, ValueError), match=words):
            step(p, **options)
        assert (np.array(p) == before).all() and (pool == 1).all()
        assert same_bits(step(np.ones(6)), expected)


def test_longer_arrays_at_the_same_addresses_are_looked_at_again():
    pool = np.ones(24, np.float32)
    doubles = pool.view(np.float64)
    fo.functional.sgd(pool[:4], pool[4:8], lr=0.5)
    before = pool.copy()
    with pytest.raises(ValueError, match="overlap"):
        fo.functional.sgd(pool[:5], pool[4:9], lr=0.5)
    fo.functional.sgd(pool[:4], pool[4:8], lr=0.0)
    with pytest.raises(ValueError, match="overlap"):
        fo.functional.sgd(doubles[:4], doubles[2:6], lr=0.5)
    assert same_bits(pool, before)


def test_the_environment_is_looked_up_again_when_it_changes(monkeypatch):
    """Each change tells on the next call, whatever was chosen before; a change back does, too."""

    def used():
        p = np.ones(3)
        monkeypatch.setattr(reference, "update", lambda *args: seen.append(args) or plain(*args))
        fo.functional.sgd(p, np.ones(3), lr=0.5)
        assert np.all(p == 0.5)
        return len(seen)

    seen, plain = [], reference.update
    monkeypatch.delenv("FASTOPTIM_BACKEND", raising=False)
    assert used() == 0
    monkeypatch.setenv("FASTOPTIM_BACKEND", "numpy")
    assert used() == 1
    os.environ["FASTOPTIM_BACKEND"] = "c"
    assert used() == 1
    os.environ["FASTOPTIM_BACKEND"] = "".join(["c"])  # the same, but another object
    assert used() == 1
    for name in ("FASTOPTIM_BACKEND", "FASTOPTIM_ISA", "FASTOPTIM_REQUIRE_C", "FASTOPTIM_NUM_THREADS"):
        p = np.ones(3)
        with monkeypatch.context() as patch:
            patch.setenv(name, "bogus")
            with pytest.raises(ValueError, match=name):
                fo.functional.sgd(p, np.ones(3), lr=0.5)
            with pytest.raises(ValueError, match=name):
                fo.functional.sgd(p, np.ones(3), lr=0.25)  # what was never asked for before
        assert np.all(p == 1) and used() == 1


def test_threads_share_what_steps_small_arrays():
    def work(seed):
        p, g = np.zeros(seed * 5), np.full(seed * 5, float(seed))
        for _ in range(3000):
            fo.functional.sgd(p, g, lr=0.5)
        return p

    assert all(np.all(p == -1500 * seed) for seed, p in enumerate(in_threads(work, (1, 2, 3)), 1))


def test_nothing_keeps_the_callers_arrays_alive():
    class Array(np.ndarray):
        """One that can be referred to weakly."""

    buffer = Array(300)
    buffer[:] = 1
    p, m, v = (np.asarray(buffer[i : i + 100]) for i in (0, 100, 200))
    fo.functional.adam(p, np.ones(100), m, v, step=1, backend="c")
    alive = weakref.ref(buffer)
    del buffer, p, m, v
    gc.collect()
    assert alive() is None


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="LOUD: this platform has no SIGALRM")
def test_handlers_of_other_signals_wait_too(monkeypatch):
    """Time limits are often made of a handler that raises."""

    def ring(number, frame):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, ring)
    try:
        p, g = np.zeros(2 * TILE), np.ones(2 * TILE)
        monkeypatch.setattr(reference, "update", interrupting(reference.update, signal.SIGALRM))
        opt = fo.SGD(p, lr=1.0, backend="numpy")
        with pytest.raises(TimeoutError):
            opt.step(g)
        assert np.all(p == -1) and opt.state["0"]["step"] == 1
        assert signal.getsignal(signal.SIGALRM) is ring
    finally:
        signal.signal(signal.SIGALRM, before)


def test_handlers_run_in_the_main_thread_only_so_others_defer_nothing():
    def work():
        with deferred_signals():
            return signal.getsignal(signal.SIGINT)

    assert in_another_thread(work) is signal.default_int_handler


def test_a_signal_without_a_handler_still_ends_the_process(monkeypatch):
    monkeypatch.setattr(reference, "update", interrupting(reference.update))

    def work():
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        fo.functional.sgd(np.zeros(1), np.ones(1), lr=1.0, backend="numpy")

    assert in_child(work) == -signal.SIGINT


def test_code_that_runs_when_known_states_go_may_step_too():
    """States that are replaced may take memory with them whose finaliser makes a step of its own with the same plan."""
    plan = native_plan(get_backend("c"), Kernel(RULES["adam"], "none"), [np.ones(8)] * 2)
    scalars = ((1.0, 0.0, *k.adam_coefficients(0.1, 0.9, 0.999, 1e-8, "torch", 1)),)
    memory = np.zeros((4, 8))
    nested = []

    def step(*states):
        return plan.step((np.ones(8), np.ones(8)), (np.ones(8), np.ones(8)), states, scalars)

    class Memory(bytearray):
        def __del__(self):
            nested.append(step(*memory))

    assert step(np.frombuffer(Memory(64)), *memory[1:])
    integers = memory[0].view(np.int64)
    integers[:] = 7
    assert not step(integers, *memory[1:]), "integers were taken for a known state"
    assert nested == [True]


@pytest.mark.parametrize("backend", BACKENDS)
def test_subclasses_of_arrays_have_a_norm(backend):
    class Array(np.ndarray):
        pass

    g = np.array([3.0, 4.0]).view(Array)
    assert fo.grad_norm(g, backend=backend) == 5.0
    p = np.zeros(2)
    assert fo.SGD(p, lr=1.0, backend=backend).step(g, max_norm=1.0).grad_norm == 5.0


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_state_of_another_dtype_is_told_the_one_that_it_must_have(dtype):
    p, wrong = np.ones(3, dtype), np.zeros(3, int)
    expected = f"exp_avg of parameter 'p': expected dtype {dtype.__name__}, got int64: convert it"
    with pytest.raises(TypeError, match=expected):
        functional.adam(p, p.copy(), wrong, np.zeros(3, dtype), step=1)
