"""Arrays, numbers and surroundings that would make a step silently wrong, or half of one."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import pickle
import platform
import subprocess
import sys
import threading
from collections.abc import Sequence

import numpy as np
import pytest

import fastoptim as fo
from fastoptim.backends import available, get_backend, numpy_cpu
from fastoptim.optimizers.names import FAMILIES
from fastoptim.rules.table import RULES, Kernel
from tests.support.cases import native_plan, same_bits

BACKENDS = [name for name in ("c", "numba", "numpy") if available(name) is None]


class Stubborn(np.ndarray):
    """An array whose methods must not run in the middle of a step."""

    def __setitem__(self, key, value):
        raise ZeroDivisionError

    def __array_ufunc__(self, *arguments, **options):
        raise ZeroDivisionError


class Sub(np.ndarray):
    pass


@pytest.mark.parametrize("backend", BACKENDS)
def test_methods_of_subclasses_never_run_within_a_step(backend):
    first, odd = np.zeros(4), np.zeros(8)[::2].view(Stubborn)
    fo.SGD([first, odd], lr=1.0, backend=backend).step([np.ones(4), np.ones(4)])
    assert np.all(first == -1) and np.all(np.asarray(odd) == -1)
    grads = [np.full(4, 3.0), np.full(8, 4.0)[::2].view(Stubborn)]
    assert fo.clip_grad_norm(grads, 1.0, backend=backend) == 10.0
    assert np.all(np.asarray(grads[1]) < 0.41)
    rows = fo.Rows(np.array([1, 1, 0]).view(Stubborn), np.ones(3).view(Stubborn))
    fo.SGD([first, odd], lr=1.0, backend=backend).step([rows, rows], max_norm=100.0)
    assert np.asarray(odd).tolist() == first.tolist() == [-2, -3, -1, -1]


def test_averages_of_schedule_free_optimizers_are_plain_arrays():
    params = [np.zeros(4).view(Stubborn), np.zeros(4)]
    opt = fo.ScheduleFreeSGD(params, lr=1.0)
    for _ in range(2):
        assert [type(x) for x in opt.averaged()] == [np.ndarray, np.ndarray]
        opt.step([np.ones(4), np.ones(4)])
    assert same_bits(*opt.averaged())


@pytest.mark.parametrize("what", ["load", "copy_to", "probe"])
def test_methods_of_subclasses_never_run_while_arrays_are_restored(tmp_path, what):
    params = [np.zeros(4), np.zeros(4).view(Stubborn)]
    if what == "load":
        opt = fo.SGD(params, lr=1.0)
        opt.save(tmp_path / "file")
        opt.step([np.ones(4), np.ones(4)])
        opt.load(tmp_path / "file")
    elif what == "copy_to":
        average = fo.Average(params)
        fo.SGD(params, lr=1.0).step([np.ones(4), np.ones(4)])
        average.copy_to(params)
    else:
        errors = lambda params: [np.asarray(p) - 1 for p in params]  # noqa: E731
        fo.probe_lr(lambda p, _: (sum((e * e).sum() for e in errors(p)), errors(p)), params, steps=10)
    assert all(np.all(np.asarray(p) == 0) for p in params)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "odd", [lambda: np.zeros(4).view(Sub), lambda: np.asmatrix(np.zeros((2, 2)))], ids=["sub", "matrix"]
)
def test_offloaded_steps_take_subclasses(backend, odd):
    first, second = np.zeros(4), odd()
    gradient = np.ones(second.shape)
    fo.SGD([first, second], lr=1.0, memory_budget="1 MiB", backend=backend).step([np.ones(4), gradient])
    assert np.all(first == -1) and np.all(np.asarray(second) == -1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_native_byte_order_may_be_spelt_out(backend):
    w = np.arange(4.0).astype(">f8")
    w = w.byteswap().view(w.dtype.newbyteorder("<" if sys.byteorder == "little" else ">"))
    fo.SGD(w, lr=1.0, backend=backend).step(np.ones(4))
    assert w.tolist() == [-1, 0, 1, 2]


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_infinite_limit_is_no_limit(backend):
    p = {"a": np.zeros(3), "b": np.zeros(2)}
    info = fo.SGD(p, lr=1.0, backend=backend).step({"a": np.ones(3), "b": np.array([np.inf, 1.0])}, max_norm=np.inf)
    assert info.grad_norm == np.inf and p["a"].tolist() == [-1] * 3 and p["b"].tolist() == [-np.inf, -1]
    g = [np.array([1e200, 1e200])]
    assert fo.clip_grad_norm(g, np.inf, backend=backend) > 1e200 and g[0].tolist() == [1e200, 1e200]


@pytest.mark.parametrize(
    ("make", "options", "name"),
    [
        (lambda p: fo.SGD(p, lr=1e39), {}, "lr"),
        (lambda p: fo.Adam(p, eps=1e-50), {}, "eps"),
        (lambda p: fo.Adam(p, eps=float(np.finfo(float).tiny)), {}, "eps"),
        (lambda p: fo.SGD(p, weight_decay=1e39), {}, "weight_decay"),
        (lambda p: fo.SGD(p, lr=1.0), {"grad_scale": 1e-50}, "grad_scale"),
        (lambda p: fo.SGD(p, lr=1.0), {"grad_scale": 1e39}, "grad_scale"),
        (lambda p: fo.SGD(p, lr=1.0), {"grad_scale": 1e-50, "skip_nonfinite": True}, "grad_scale"),
        (lambda p: fo.SGD(p, lr=1.0, max_norm=1e-50, clip="value"), {}, "max_norm"),
    ],
)
def test_numbers_that_float32_cannot_hold_are_refused(make, options, name):
    p = np.ones(2, np.float32)
    with pytest.raises(ValueError, match=rf"{name} = .* in float32"):
        make(p).step(np.zeros(2, np.float32), **options)
    assert p.tolist() == [1, 1]
    make(np.ones(2)).step(np.zeros(2), **options)  # which float64 can
    opt = fo.SGD(p, lr=1e-300)  # a rate may fade to nothing
    opt.step(np.ones(2, np.float32))
    with pytest.raises(ValueError, match="lr = 1e"):
        opt.lr = 1e39
        opt.step(np.ones(2, np.float32))
    assert p.tolist() == [1, 1]


EXTREMES = (
    {"lr": 3e38},
    {"lr": 1e-39},
    {"lr": 1e30, "weight_decay": 1e20},
    {"lr": 1e30, "alpha": 1e30},
    {"r": 1e5},
    {"lr": 1e20, "lambd": 1e30},
)
NEVER = (fo.SGD, fo.Rprop, fo.RMSprop, fo.Adagrad, fo.Adadelta, fo.NAdam, fo.NovoGrad)  # with these


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cls", [*dict.fromkeys([fo.SGD, fo.Adam, fo.AdamW, *FAMILIES.values()])])
def test_coefficients_that_only_the_type_makes_infinite_are_refused(cls, backend):
    """They come of hyperparameters that float32 does hold, in the first step or in a later one."""
    checked = 0
    for options in EXTREMES:
        if not options.keys() <= set(cls._names):
            continue
        p, twin = np.ones(3, np.float32), np.ones(3)
        try:
            opt, wide = cls([p], **options, backend=backend), cls([twin], **options, backend=backend)
        except ValueError:  # says so at once
            continue
        for _ in range(3):
            before = p.copy(), pickle.dumps(opt.state_dict())
            rows = opt._ready_plan().rows()
            with np.errstate(over="ignore"):
                fits = np.isfinite(np.array(rows, np.float64).astype(np.float32)).all()
            try:
                opt.step([np.full(3, 1e-3, np.float32)])
                assert fits, (options, rows)
            except ValueError as error:
                by_norms = opt._plan.runs[0].spec.measured is not None  # the coefficients come to more than `rows`
                assert (not fits or by_norms) and "no finite number in float32" in str(error), (options, rows)
                assert p.tobytes() == before[0].tobytes() and pickle.dumps(opt.state_dict()) == before[1]
                checked += 1
                break
        if np.isfinite(wide._ready_plan().rows()).all():
            assert wide.step([np.full(3, 1e-3)]).applied
    assert bool(checked) == (cls not in NEVER)


def test_infinite_coefficients_are_refused_everywhere():
    """In a step of arrays that the caller owns, of an adapter, and of ranks, whose first group has not moved."""
    p, m, v = (np.full(3, x, np.float32) for x in (1.0, 0.0, 0.0))
    with pytest.raises(
        ValueError, match=r"coefficient step = 3e\+39 in this step, which is no finite number in float32"
    ):
        fo.functional.adam(p, p.copy(), m, v, step=1, lr=3e38)
    with pytest.raises(ValueError, match=r"coefficient h = 1e\+39"):
        fo.functional.ftrl(p, p.copy(), {}, lr=1e-39)
    with pytest.raises(ValueError, match="coefficient step"):
        fo.adapters.per_array.update(p, p.copy(), m, v, t=1, lr=3e38)
    assert p.tolist() == [1.0] * 3 and not m.any() and not v.any()
    wide = np.ones(3)
    fo.functional.adam(wide, wide.copy(), np.zeros(3), np.zeros(3), step=1, lr=3e38)
    assert np.isfinite(wide).all()
    comm = pytest.importorskip("mpi4py.MPI", reason="LOUD: pip install mpi4py mpich").COMM_SELF
    first, second = np.ones(3, np.float32), np.ones(3, np.float32)
    groups = [{"params": [first]}, {"params": [second], "lr": 3e38}]
    sharded = fo.distributed.ShardedOptimizer(fo.Adam, groups, lr=0.1, comm=comm)
    with pytest.raises(ValueError, match="coefficient step"):
        sharded.step([[first.copy()], [second.copy()]])
    assert first.tolist() == second.tolist() == [1.0] * 3


def test_a_clip_factor_that_would_drop_the_gradients_is_refused():
    p, g = np.zeros(2, np.float32), np.full(2, 1e38, np.float32)
    with pytest.raises(ValueError, match="clip factor"):
        fo.SGD(p, lr=1.0).step(g, max_norm=1e-9)
    assert p.tolist() == [0, 0]
    assert fo.SGD(p, lr=1.0).step(g, max_norm=0.0).applied and p.tolist() == [0, 0]


DECAYS = [(2e-6, 0.01), (1e-5, 0.01), (1e-3, 1e-5), (3e-6, 0.1)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("lr", "weight_decay"), DECAYS)
def test_decoupled_decay_keeps_its_mean_in_float32(lr, weight_decay, backend):
    """What the decay takes in 1,000 steps with noisy gradients: the difference to the same run without it."""
    rng = np.random.default_rng(0)
    start = rng.standard_normal(10_000).astype(np.float32)
    ends = {}
    for dtype in (np.float32, np.float64):
        for decay in (0.0, weight_decay):
            p, noise = start.astype(dtype), np.random.default_rng(1)
            opt = fo.AdamW(p, lr=lr, weight_decay=decay, backend=backend)
            for _ in range(1000):
                opt.step(noise.standard_normal(p.size, np.float32).astype(dtype))
            ends[dtype, decay] = p.astype(np.float64)
    taken = {t: np.dot(ends[t, 0.0] - ends[t, weight_decay], start) for t in (np.float32, np.float64)}
    assert taken[np.float32] == pytest.approx(taken[np.float64], rel=0.01)


@pytest.mark.parametrize("cls", [fo.Lion, fo.SignSGD, fo.Signum])
@pytest.mark.parametrize("lr", [1e-5, 2.7e-4, 1e-3])
def test_decay_beside_equal_steps_is_kept_from_where_the_documentation_says(cls, lr):
    start = np.random.default_rng(0).uniform(0.05, 4.0, 2000).astype(np.float32)

    def taken(dtype, decay):
        ends = []
        for weight_decay in (0.0, decay / lr):
            p, noise = start.astype(dtype), np.random.default_rng(1)
            opt = cls(p, lr=lr, weight_decay=weight_decay)
            for _ in range(200):
                opt.step(noise.standard_normal(p.size).astype(dtype))
            ends.append(p.astype(np.float64).sum())
        return ends[0] - ends[1]

    assert taken(np.float32, 1e-6) == pytest.approx(taken(np.float64, 1e-6), rel=0.01)
    assert abs(taken(np.float32, 1e-9) / taken(np.float64, 1e-9) - 1.0) > 0.5  # or the warning is out of date


@pytest.mark.parametrize("backend", BACKENDS)
def test_reading_states_changes_no_count(backend):
    n = 60
    p, g = ([np.full(2, x, np.float32) for _ in range(n)] for x in (0, 1))
    opt, done = fo.SGD(p, lr=1.0, momentum=0.5, backend=backend), False

    def watch():
        while not done:
            assert len(opt.state) == n and len(repr(opt)) > 0

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        for i in range(300):
            opt.step([None if k == i % n else x for k, x in enumerate(g)])
    finally:
        done = True
        thread.join()
        sys.setswitchinterval(before)
    assert [s["step"] for s in opt.state.values()] == [300 - len(range(k, 300, n)) for k in range(n)]


def test_hyperparameters_are_attributes():
    opt = fo.SGD([{"params": np.zeros(1)}, {"params": np.zeros(1), "momentum": 0.5}], lr=0.1)
    opt.weight_decay = 5
    assert opt.weight_decay == 5 and [group["weight_decay"] for group in opt.param_groups] == [5, 5]
    with pytest.raises(ValueError, match=r"param_groups\[i\]\['momentum'\]"):
        _ = opt.momentum
    opt.momentum = [0.25, 0.75]
    assert [group["momentum"] for group in opt.param_groups] == [0.25, 0.75]
    with pytest.raises(AttributeError, match=r"SGD has no 'learning_rate': do you mean 'lr'\? it has lr, momentum"):
        opt.learning_rate = 9
    with pytest.raises(ValueError, match="momentum"):
        opt.momentum = [0.1, 2.0]
    with pytest.raises(ValueError, match="2 \\(one per group\\), got 3"):
        opt.momentum = [0.1, 0.2, 0.3]
    assert [group["momentum"] for group in opt.param_groups] == [0.25, 0.75]
    adam = fo.Adam(np.zeros(1))
    adam.betas = (0.5, 0.75)
    assert adam.betas == (0.5, 0.75)
    with pytest.raises(ValueError, match="lr: expected one value, as there is one group, got 2"):
        adam.lr = [0.1, 0.2]
    with pytest.raises(AttributeError, match=r"zero_grad.*arguments of step"):
        adam.zero_grad()
    with pytest.raises(AttributeError, match=r"ScheduleFreeSGD has no attribute 'eval': .*averaged\(\)"):
        fo.ScheduleFreeSGD(np.zeros(1)).eval()


@pytest.mark.skipif(platform.system() != "Linux", reason="LOUD: the rounding mode is set through Linux' libm here")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", [{}, {"max_norm": 1.0}], ids=["plain", "clipped"])
def test_other_rounding_modes_are_refused(backend, options):
    libm = ctypes.CDLL(ctypes.util.find_library("m"))
    modes = {"x86_64": (0x400, 0x800, 0xC00), "aarch64": (0x400000, 0x800000, 0xC00000)}[platform.machine()]
    p, g = np.ones(3), np.ones(3)
    opt = fo.Adam(p, lr=0.1, backend=backend)
    opt.step(g)
    before = p.copy()
    for mode in modes:
        libm.fesetround(mode)
        try:
            for call in (lambda: opt.step(g, **options), lambda: fo.grad_norm(g, backend=backend)):
                with pytest.raises(FloatingPointError, match="round to nearest"):
                    call()
        finally:
            libm.fesetround(0)
        assert same_bits(p, before) and opt.state["0"]["step"] == 1
    assert opt.step(g, **options).applied


CUT = """
import sys, warnings
from pathlib import Path
import numpy as np, fastoptim as fo
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    p = np.ones(3)
    fo.Adam(p, lr=0.1, backend="numba").step(np.ones(3))
print(round(p[0], 6), sum("cache" in str(w.message) for w in seen))
"""


@pytest.mark.skipif("numba" not in BACKENDS, reason="LOUD: Numba is missing")
def test_a_cut_cache_is_done_without(tmp_path):
    def run():
        environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
        done = subprocess.run([sys.executable, "-c", CUT], capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    assert run() == ["0.9", "0"]
    whole = {file: file.read_bytes() for suffix in ("nbi", "nbc") for file in tmp_path.rglob(f"*.{suffix}")}
    for suffix in ("nbi", "nbc"):
        cut = {file: x[:10] if file.suffix == f".{suffix}" else x for file, x in whole.items()}
        assert cut != whole
        for file, content in cut.items():
            file.write_bytes(content)
        assert run() == ["0.9", "1"], suffix


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: fo.SGD(np.ones(2, np.float32)).step(np.ones(2)),
            r"float32, got float64: convert it, g.astype\(np.float32\)",
        ),
        (lambda: fo.SGD(np.ones(2)).step([1.0, 2.0]), r"make it an array, np.array\(x, np.float64\)"),
        (lambda: fo.SGD(np.ones(2)).step(np.ma.array([1.0, 2.0], mask=[0, 1])), r"fill it, x.filled\(0\)"),
        (
            lambda: fo.Adam(1e-3),
            r"'0': expected a NumPy array, got float: .*parameters come first, as in Adam\(params, lr=0.001\)$",
        ),
        (
            lambda: fo.Adam([{"params": np.ones(2)}, {"parms": np.ones(2), "lr": 0.1}]),
            r"mapping with the key 'params': one of these has \['parms', 'lr'\]",
        ),
        (lambda: fo.Adam({"w": np.ones(2)}.items()), r"got dict_items: make the pairs .* a dict, dict\(pairs\)"),
        (lambda: fo.Adam([("w", np.ones(2))]), r"got str: make the pairs of names and arrays a dict, dict\(pairs\)"),
        (lambda: fo.Adam({"w": 1e-3}), r"'w': expected a NumPy array, got float: make it an array, np.array\(x, .*\)$"),
        (lambda: fo.SGD(np.ones(2), lr=[0.1, 0.2]), r"got \(0.1, 0.2\): groups take rates of their own, \[{'params'"),
        (lambda: fo.grad_norm({"t": fo.Rows(np.array([0]), np.ones(1))}), r"an array, got Rows: .*to_dense"),
        (lambda: fo.schedules.warmup(0.3, 3), r"schedule must be .* such as constant\(0.1\), got 0.3$"),
        (lambda: fo.Adam(np.ones(2), lr=fo.schedules.cosine(0.1, 10)), r"opt.lr = schedule\(step\)"),
        (lambda: fo.SGD(np.ones(2, ">f4")), "float32 in foreign byte order"),
    ],
)
def test_errors_say_what_to_do(call, message):
    with pytest.raises(TypeError, match=message):
        call()


@pytest.mark.parametrize("backend", BACKENDS)
def test_longdouble_is_refused_or_another_name_of_float64(backend):
    """The latter on Windows."""
    w, g = np.ones(3, np.longdouble), np.ones(3, np.longdouble)
    if w.dtype != np.float64:
        with pytest.raises(TypeError, match=r"got (longdouble|float128)"):
            fo.SGD(w, backend=backend)
        return
    opt = fo.SGD(w, lr=0.5, momentum=0.9, backend=backend)
    opt.step(np.ones(3))
    opt.step(g)
    assert w.tolist() == [1.0 - 0.5 - 0.5 * 1.9] * 3


SHORT = """
import resource, sys
import numpy as np, fastoptim as fo
from fastoptim.backends import numpy_cpu
n, room = 1 << 20, int(sys.argv[1]) << 10
p, g = np.linspace(-1, 1, n), np.linspace(1, -1, n)
opt = fo.Adam([p, np.ones(3)], lr=0.1, weight_decay=0.1, backend="numpy")
opt.step([g, np.ones(3)])
before = [x.tobytes() for x in (p, *opt.state["0"].values()) if isinstance(x, np.ndarray)]
want, state = p.copy(), opt.state_dict()
other = fo.Adam([want, np.ones(3)], backend="numpy")
other.load_state_dict(state)
other.step([g, np.ones(3)])
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + room, resource.RLIM_INFINITY))
raised = False
short = [g, np.ones(3)]
try:
    opt.step(short)
except MemoryError:
    raised = True
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
if not raised:
    whole = "stepped" if p.tobytes() == want.tobytes() and opt._plan.counter[0] == 2 else "HALF"
else:
    now = [x.tobytes() for x in (p, *opt.state["0"].values()) if isinstance(x, np.ndarray)]
    whole = "untouched" if now == before and opt.state["0"]["step"] == 1 else "HALF"
print(whole)
"""


@pytest.mark.skipif(platform.system() != "Linux", reason="LOUD: the limit of memory is Linux'")
@pytest.mark.parametrize("room", [64, 256, 768, 1024, 1216, 2048])
def test_a_step_that_lacks_memory_happens_whole_or_not_at_all(room):
    done = subprocess.run([sys.executable, "-c", SHORT, str(room)], capture_output=True, text=True, check=False)
    assert done.stdout.split() in (["stepped"], ["untouched"]), done.stdout + done.stderr


@pytest.mark.parametrize("kind", [fo.SGD, fo.Adam])
def test_tiles_become_smaller_where_memory_is_short(monkeypatch, kind):
    """An allocator that fails for more than 100 elements, from the second tile on."""
    real, calls = numpy_cpu.reference.update, []

    def update(kernel, p, g, states, row):
        calls.append(p.size)
        if len(calls) > 1 and p.size > 100:
            raise MemoryError
        real(kernel, p, g, states, row)

    n = numpy_cpu.TILE + 12_345
    p, want, g = np.ones(n), np.ones(n), np.linspace(-1, 1, n)
    kind(want, lr=0.1, backend="numpy").step(g)
    monkeypatch.setattr(numpy_cpu.reference, "update", update)
    opt = kind(p, lr=0.1, backend="numpy")
    opt.step(g)
    assert same_bits(p, want) and max(calls[4:]) <= 100 and opt.state["0"]["step"] == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_small_things_that_a_step_meets(backend):
    p = [np.ones(2), np.ones(1)]
    opt = fo.Adam(p, lr=0.1, backend=backend)
    assert opt.step([None, None]) == (False, None)  # nothing was applied
    assert opt.step([None, None], max_norm=1.0) == (False, 0.0)
    assert opt.step([None, None], max_norm=1.0, clip="value") == (False, None)
    assert [entry["step"] for entry in opt.state.values()] == [0, 0]
    opt = fo.Adam([{"params": []}, {"params": p}, {"params": {}}], lr=0.1, backend=backend)  # groups may be empty
    assert opt.step([[], [np.ones(2), np.ones(1)], {}]).applied
    opt.add_param_group({"params": (), "lr": 1.0})
    opt.step([[], [np.ones(2), None], {}, ()])
    opt.load_state_dict(opt.state_dict())
    assert [entry["step"] for entry in opt.state.values()] == [2, 1]
    with pytest.raises(ValueError, match="no parameters to step"):
        fo.Adam([{"params": []}, {"params": {}}], backend=backend)
    state = opt.state_dict()
    for taken in (2**63 - 1, 2**63 - 2**40):  # none could be counted for long
        state["state"]["1.0"]["step"] = taken
        with pytest.raises(ValueError, match=r"state of parameter '1\.0': step must be an int >= 0 and below 2\*\*63"):
            opt.load_state_dict(state)
    assert [entry["step"] for entry in opt.state.values()] == [2, 1]
    opt.load_state_dict(opt.state_dict())


class Replacing(Sequence):
    """Gradients whose second item, when it is asked for, replaces the first parameter."""

    def __init__(self, opt, new):
        self.opt, self.new = opt, new

    def __len__(self):
        return 2

    def __getitem__(self, i):
        if i == 1:
            self.opt.param_groups[0]["params"][0] = self.new
        return np.ones(2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_container_that_replaces_a_parameter_meanwhile_means_the_same_everywhere(backend):
    old, new = [np.zeros(2), np.zeros(2)], np.zeros(2)
    opt = fo.SGD(old, lr=1.0, backend=backend)
    opt.step(Replacing(opt, new))
    assert [x.tolist() for x in (*old, new)] == [[-1, -1], [-1, -1], [0, 0]]  # what it was when the step began
    opt.step([np.ones(2), np.ones(2)])
    assert [x.tolist() for x in (*old, new)] == [[-1, -1], [-2, -2], [-1, -1]]


@pytest.mark.parametrize("view", [lambda w: w.detach().numpy(), lambda w: w.detach().numpy().T[::1]])
@pytest.mark.parametrize("backend", BACKENDS)
def test_torch_knows_that_memory_of_its_tensors_has_changed(tmp_path, backend, view):
    """Backward through weights that were stepped meanwhile is torch's error, as it is with torch's optimizers."""
    torch = pytest.importorskip("torch", reason="LOUD: pip install torch==2.13.0")
    w, x = torch.nn.Parameter(torch.eye(2)), torch.ones(2, requires_grad=True)
    p = view(w)
    opt = fo.SGD([p], lr=0.1, backend=backend)
    opt.save(tmp_path / "saved")
    average = fo.Average([p], decay=0.5, backend=backend)
    for change in (
        lambda: opt.step([np.ones_like(p)]),
        lambda: opt.step([np.ones_like(p)], max_norm=1.0),
        lambda: opt.load(tmp_path / "saved"),
        lambda: fo.functional.sgd(p, np.ones_like(p), lr=0.1, backend=backend),
        lambda: fo.functional.sgd(p, np.ones_like(p), lr=0.1, grad_scale=0.5, backend=backend),
        lambda: fo.functional.lion(p, np.ones_like(p), {}, lr=0.1, backend=backend),
        lambda: average.copy_to([p]),
        lambda: fo.clip_grad_norm(p, 0.1, backend=backend),
    ):
        loss, before = (w @ x).sum(), w._version
        assert not opt.step([np.full_like(p, np.nan)], skip_nonfinite=True).applied and w._version == before
        change()
        assert w._version > before
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
    own = np.ones(2)  # beside torch, but not of it
    plain = fo.SGD([own], lr=0.1, backend=backend)
    plain.step([own.copy()])
    assert plain._plan.tensors == [] and plain._plan.native_step is plain._plan.update.native_step


def test_numbers_in_extended_precision_are_numbers():
    for lr in (np.longdouble(0.25), np.array(0.25, np.longdouble)):
        w = np.ones(2)
        opt = fo.SGD(w, lr=lr)
        opt.step(np.ones(2))
        assert (w == 0.75).all() and type(opt.param_groups[0]["lr"]) is float
        opt.param_groups[0]["lr"] = np.longdouble(0.5)
        opt.step(np.ones(2))
        assert (w == 0.25).all()
    with pytest.raises(TypeError, match="lr must be a real number"):
        fo.SGD(np.ones(2), lr=np.clongdouble(0.25))
    for wrong in (np.complex128(2 + 3j), np.array(2 + 3j)):
        with pytest.raises(TypeError, match="grad_scale must be a real number"):
            opt.step(np.ones(2), grad_scale=wrong)


def test_a_rate_that_vanishes_in_its_mean_steps_nothing():
    w = np.ones(2)
    assert fo.LaProp(w, lr=5e-324).step(np.ones(2)).applied
    assert (w == 1).all()


class Meta(type):
    def __getattr__(cls, name):
        raise AssertionError("no code of others may run within a native call")


class OfMeta(np.ndarray, metaclass=Meta):
    pass


class WithMask(np.ndarray):
    mask = None


@pytest.mark.skipif(available("c") is not None, reason="LOUD: no C extension, and so no native step")
@pytest.mark.parametrize("role", ["parameter", "gradient"])
def test_subclasses_are_stepped_natively_unless_they_may_mask(role):
    """Other libraries' tensors and parameters, such as PennyLane's: in Python a step of one took 150 µs."""
    for cls, natively in (
        (Sub, True),
        (np.matrix, True),
        (WithMask, False),
        (OfMeta, False),
        (np.ma.MaskedArray, False),
    ):
        p, g = np.ones((3, 5)), np.full((3, 5), 0.5)
        plan = native_plan(get_backend("c"), Kernel(RULES["sgd"], "none"), [p])
        given = [np.ndarray.view(x, cls) if what == role else x for x, what in ((p, "parameter"), (g, "gradient"))]
        assert plan.step((given[0],), (given[1],), (), ((1.0, 0.0, 1.0),)) is natively
        assert np.all(p == (0.5 if natively else 1.0))
        if cls is not np.ma.MaskedArray:
            fo.SGD(given[0], lr=1.0).step(given[1])
            assert np.all(p == (0.0 if natively else 0.5))
