"""The CUDA backend's logic, run by Numba's simulator in a process that test_cuda_simulator.py starts."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from numba import cuda

import fastoptim as fo
from fastoptim.backends import KernelCall, base, get_backend
from fastoptim.backends.cuda import backend as cuda_backend
from fastoptim.backends.cuda import device_arrays
from fastoptim.backends.cuda import kernels as cuda_kernels
from fastoptim.backends.cuda import places as cuda_places
from fastoptim.backends.cuda import streams as cuda_streams
from fastoptim.backends.cuda import work as cuda_work
from fastoptim.rules import reference
from fastoptim.rules.norm import NORM_RETRY
from fastoptim.rules.table import MEASURES, kernels
from tests.support import cases, stored
from tests.support.cases import DTYPES, SAMPLE, VARIANTS, ordinary, raw_bits, same_bits

pytestmark = pytest.mark.simulator
PIECE = 128  # float32 elements that a block of simulated threads takes
BORDERS = (0, 1, 3, 4, 5, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 7)


class Device:
    """An array that says it lives on the GPU."""

    def __init__(self, x, stream=None, readonly=False, **more):
        self.host, self.stream, self.readonly, self.dtype, self.more = x, stream, readonly, x.dtype, more

    @property
    def __cuda_array_interface__(self):
        face = self.host.__array_interface__
        return {
            "shape": face["shape"],
            "typestr": face["typestr"],
            "data": (face["data"][0], self.readonly),
            "strides": face["strides"],
            "version": 3,
            "stream": self.stream,
            **self.more,
        }


@pytest.fixture(scope="module")
def backend():
    return get_backend("cuda")


@pytest.fixture(params=[128])
def small_blocks(request, monkeypatch):
    """A fresh backend whose norm has short blocks, so that small arrays have many."""
    for module in (cuda_work, cuda_kernels, cuda_backend, base, reference):
        monkeypatch.setattr(module, "NORM_BLOCK", request.param)
    return cuda_backend.CudaBackend()


def vectors(backend, arrays):
    return [backend.flat(Device(x)) for x in arrays]


def differing(backend, *case, **options):
    return cases.differing(backend, *case, vectors=partial(vectors, backend), **options)


@pytest.mark.parametrize("variant", SAMPLE, ids=lambda v: v.label)
def test_step_equals_reference_on_raw_bits(backend, variant):
    offset = VARIANTS.index(variant) % 3
    for dtype in DTYPES:
        assert differing(backend, variant, dtype, BORDERS[offset::3], raw_bits, offset=offset) == []


def small(g, p, m, a, b, c):
    m = a * m + b * g
    return np.where(m < -c, -c, m), m


def test_a_rule_of_somebody_else_is_compiled_too(backend):
    rule = fo.rule(small, states="m", coefficients=lambda lr=0.1: (lr, lr, lr))._rules[0]
    for dtype, decay in zip(DTYPES, ("coupled", "decoupled"), strict=True):
        variant = cases.Variant(rule, None, decay, False)
        assert differing(backend, variant, dtype, BORDERS, raw_bits) == []


def test_every_border_aligned_and_not(backend):
    for offset in (0, 1):
        for dtype in DTYPES:
            assert differing(backend, VARIANTS[-1], dtype, BORDERS, ordinary, offset=offset) == []


def test_larger_pieces_and_more_pieces_than_blocks(backend, monkeypatch):
    monkeypatch.setattr(backend, "_blocks", 1)
    monkeypatch.setattr(backend, "vectors", 8)
    assert backend.piece(np.dtype(np.float32), False) == 8 * PIECE
    assert differing(backend, VARIANTS[-1], np.float32, (4097, 5000, 3), ordinary) == []


@pytest.mark.parametrize("make", [ordinary, raw_bits], ids=lambda f: f.__name__)
def test_block_sums_equal_reference(small_blocks, make):
    rng = np.random.default_rng(1)
    sizes = (0, 1, 15, 17, 128, 129, 300)
    grads = [make(rng, n, dtype) for n in sizes for dtype in DTYPES]
    for k in (1.0, NORM_RETRY, 1 / NORM_RETRY):
        wanted = np.concatenate([reference.block_sums(g, 0.3, k) for g in grads])
        assert same_bits(small_blocks.block_sums(vectors(small_blocks, grads), 0.3, k, 1), wanted)


@pytest.mark.parametrize("small_blocks", [16], indirect=True)
@pytest.mark.parametrize("blocks", [1, 3, 65, 129])
def test_tree_equals_reference(small_blocks, blocks):
    rng = np.random.default_rng(blocks)
    grads = [rng.standard_normal(16 * blocks - 5).astype(np.float32)]
    wanted = reference.tree_sum(reference.block_sums(grads[0], 0.3, 1.0))
    work = cuda_work.NormWork(small_blocks, vectors(small_blocks, grads), (1.0,), tree=True)
    assert work.run(0.3).tolist() == [[wanted]]


@pytest.mark.parametrize("factor", [1.0, 1e160, 1e-170, 0.0])
def test_norm_survives_overflow(backend, factor):
    rng = np.random.default_rng(2)
    grads = [factor * rng.standard_normal(n) for n in (1, 70)] + [np.float32([3, 4])]
    numpy = get_backend("numpy")
    assert backend.norm([Device(g) for g in grads], 0.7, 1) == numpy.norm(grads, 0.7, 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_norm_of_bad_values(backend, bad):
    for dtype in DTYPES:
        grads = [np.array([1, bad, 2], dtype), np.zeros(3, dtype)]
        assert repr(backend.norm([Device(g) for g in grads], 1.0, 1)) == repr(abs(float(bad)))
    assert backend.norm([], 1.0, 1) == 0.0


# --- Arrays of fewer bits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", range(8))
def test_arrays_of_fewer_bits_equal_the_reference(backend, case):
    """Adam in every storage, and other rules, each in one."""
    storages = stored.STORAGES[case % 6]
    kinds = [v for v in stored.ONE_OF_EACH if v.rule.name == "adam"]
    variant = kinds[case % 3] if case < 6 else stored.ONE_OF_EACH[-case]
    make = raw_bits if case % 2 else ordinary
    sizes, of_arrays = (1, 129, 200), lambda arrays: tuple(vectors(backend, arrays))
    stored.check(backend, variant, storages, case % 4 > 1, make, 1, case, sizes, of_arrays)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_norms_of_fewer_bits_are_those_of_their_values(small_blocks, dtype):
    rng = np.random.default_rng(6)
    grads = [stored.narrow(ordinary(rng, n, np.float32), dtype) for n in (0, 1, 129, 300)]
    wanted = np.concatenate([reference.block_sums(g.astype(np.float32), 0.3, 1.0) for g in grads])
    assert same_bits(small_blocks.block_sums(vectors(small_blocks, grads), 0.3, 1.0, 1), wanted)


# --- Through the public face --------------------------------------------------------------------------------------

SHAPES = [(5, 7), (), (0,), (3,), (2, 3, 4)]
KINDS = {
    "sgd": lambda p, b: fo.SGD(p, lr=0.1, weight_decay=0.1, maximize=True, backend=b),
    "momentum": lambda p, b: fo.SGD(p, lr=0.1, momentum=0.9, dampening=0.3, backend=b),
    "nesterov": lambda p, b: fo.SGD(p, lr=0.1, momentum=0.9, nesterov=True, backend=b),
    "adam": lambda p, b: fo.Adam(p, lr=0.1, eps_mode="hat", backend=b),
    "amsgrad": lambda p, b: fo.AdamW(p, lr=0.1, weight_decay=0.1, amsgrad=True, backend=b),
}
LAYOUTS = [
    lambda x: x.copy(),
    lambda x: np.array(x, order="F"),
    lambda x: np.repeat(x[..., None], 2, axis=-1)[..., 0],
    lambda x: x[..., ::-1].copy()[..., ::-1] if x.ndim else x.copy(),
]


@pytest.mark.parametrize("number", range(len(KINDS)), ids=list(KINDS))
def test_classes_equal_the_host(number):
    """The two dtypes in turns: what a dtype changes lies in the kernels, which are run in both."""
    kind, dtype = list(KINDS)[number], DTYPES[number % 2]
    rng = np.random.default_rng(3)
    start = [rng.standard_normal(shape).astype(dtype) for shape in SHAPES]
    host = [np.array(x) for x in start]
    device = [LAYOUTS[i % len(LAYOUTS)](np.array(x)) for i, x in enumerate(start)]
    ours, theirs = KINDS[kind]([Device(x) for x in device], "auto"), KINDS[kind](host, "numpy")
    assert ours.backend == "cuda"
    for t in range(4):
        grads = [np.array(rng.standard_normal(x.shape), dtype) for x in host]
        if t == 2:
            grads[0] = None
        laid = [None if g is None else LAYOUTS[(i + t) % len(LAYOUTS)](g) for i, g in enumerate(grads)]
        before = [None if g is None else g.copy() for g in laid]
        options = {"max_norm": 1.0, "grad_scale": 0.5} if t % 2 else {}
        info = ours.step([None if g is None else Device(g) for g in laid], **options)
        assert info == theirs.step(grads, **options)
        assert all(g is None or same_bits(g, b) for g, b in zip(laid, before, strict=True))
    for x, w in zip(device, host, strict=True):
        assert same_bits(np.array(x), w)
    ours_state, theirs_state = ours.state_dict()["state"], theirs.state_dict()["state"]
    for name, entry in theirs_state.items():
        for slot, value in entry.items():
            assert same_bits(np.array(ours_state[name][slot], float), np.array(value, float)), (name, slot)


@pytest.mark.parametrize("clip", ["value", "norm_per_array"])
def test_clipping_of_each_element_or_array_equals_the_host(clip):
    rng = np.random.default_rng(7)
    for dtype in (*DTYPES, "bfloat16", "float16"):
        small_dtype = np.dtype(dtype) if dtype in DTYPES else stored.small_dtype(dtype)
        host = [np.array(rng.standard_normal(shape)).astype(small_dtype) for shape in SHAPES]
        device = [LAYOUTS[i % len(LAYOUTS)](x.copy()) for i, x in enumerate(host)]
        ours, theirs = fo.Adam([Device(x) for x in device], lr=0.1), fo.Adam(host, lr=0.1, backend="numpy")
        for t in range(2):
            grads = [np.array(3 * rng.standard_normal(x.shape)).astype(x.dtype) for x in host]
            grads[0][0, :3] = np.nan, np.inf, -np.inf
            laid = [LAYOUTS[(i + t) % len(LAYOUTS)](g.copy()) for i, g in enumerate(grads)]
            options = {"max_norm": 0.7, "clip": clip, "grad_scale": 0.3}
            assert repr(ours.step([Device(g) for g in laid], **options)) == repr(theirs.step(grads, **options))
        for x, w in zip(device, host, strict=True):
            assert same_bits(np.array(x, np.float64), np.array(w, np.float64))


def test_skip_leaves_everything():
    p = np.ones(5, np.float32)
    opt = fo.Adam(Device(p), lr=0.1)
    opt.step(Device(np.ones(5, np.float32)))
    before, state = p.copy(), opt.state_dict()["state"]["0"]
    info = opt.step(Device(np.float32([1, np.inf, 1, 1, 1])), skip_nonfinite=True)
    assert (info.applied, info.grad_norm) == (False, np.inf)
    assert same_bits(p, before)
    after = opt.state_dict()["state"]["0"]
    assert after["step"] == state["step"] == 1
    assert same_bits(after["exp_avg"], state["exp_avg"])


def test_state_dict_goes_from_device_to_host_and_back():
    rng = np.random.default_rng(4)
    p = rng.standard_normal((3, 4)).astype(np.float32)
    q, r = p.copy(), p.copy()
    a, b, c = fo.Adam(Device(p), lr=0.1), fo.Adam(q, lr=0.1, backend="numpy"), fo.Adam(Device(r), lr=0.1)
    for t in range(4):
        g = rng.standard_normal((3, 4)).astype(np.float32)
        a.step(Device(g))
        if t == 2:
            q[...], r[...] = p, p
            b.load_state_dict(a.state_dict())
            c.load_state_dict(b.state_dict())
    b.step(g)
    c.step(Device(g))
    assert same_bits(p, q)
    assert same_bits(p, r)


def parameters(value):
    return {"w": np.full((3, 4), value, np.float32), "F": np.asfortranarray(np.arange(6.0).reshape(2, 3) * value)}


def to_device(tree):
    return {name: cuda.to_device(x) for name, x in tree.items()}


def equal(tree, wanted):
    return all(same_bits(np.array(x), np.array(wanted[name])) for name, x in tree.items())


def test_a_checkpoint_goes_from_device_to_host_and_back(tmp_path):
    grads = {name: np.ones_like(x) for name, x in parameters(1.0).items()}
    ours = to_device(parameters(2.0))
    optimizer = fo.Adam(ours, backend="cuda")
    optimizer.step(to_device(grads))
    optimizer.save(tmp_path / "file")
    optimizer.step(to_device(grads))
    for backend, wrap in (("cuda", to_device), ("numpy", dict)):
        loaded = wrap(parameters(5.0))
        again = fo.Adam(loaded, backend=backend)
        again.load(tmp_path / "file")
        again.step(wrap(grads))
        assert equal(loaded, ours)


def test_training_of_device_arrays_is_resumed(tmp_path):
    grads = to_device({name: np.ones_like(x) for name, x in parameters(1.0).items()})
    whole, cut, resumed = (to_device(parameters(value)) for value in (2.0, 2.0, 9.0))
    options = {"backend": "cuda", "validation": lambda p: 1.0, "validate_every": 9}
    for params, steps, more in (
        (whole, 4, {}),
        (cut, 2, {"checkpoint": tmp_path / "file", "checkpoint_every": 999}),
        (resumed, 4, {"resume": tmp_path / "file"}),
    ):
        fo.fit(lambda p, batch: (1.0, grads), params, None, "adam", steps=steps, **options, **more)
    assert equal(resumed, whole)


def test_apply_writes_to_nothing_that_it_is_given():
    rng = np.random.default_rng(9)
    start = {"w": np.asfortranarray(rng.standard_normal((5, 3))), "b": rng.standard_normal(7)}
    grads = {name: rng.standard_normal(x.shape) for name, x in start.items()}
    own = {name: cuda.to_device(np.ones(x.shape)) for name, x in start.items()}
    host = fo.Adam({name: np.ones(x.shape) for name, x in start.items()}, lr=0.1, backend="numpy")
    opt = fo.Adam(own, lr=0.1, backend="cuda")
    points = {name: cuda.to_device(x) for name, x in start.items()}
    for options in ({}, {"max_norm": 0.5}, {"max_norm": 0.1, "skip_nonfinite": True}):
        found = opt.apply(points, {name: cuda.to_device(g) for name, g in grads.items()}, **options)
        expected = host.apply(start, grads, **options)
        for name, x in start.items():
            assert same_bits(points[name].copy_to_host(), x), "what was handed in was written to"
            assert same_bits(found[name].copy_to_host(), expected[name])
            assert np.all(own[name].copy_to_host() == 1)
        points, start = found, expected
    with pytest.raises(TypeError, match="parameter 'b': expected an array on the GPU"):
        opt.apply(points | {"b": start["b"]}, points)


def test_functional_and_clipping():
    rng = np.random.default_rng(5)
    host = [rng.standard_normal((4, 3)) for _ in range(4)]
    device = [x.copy() for x in host]
    device[0] = np.asfortranarray(device[0])
    fo.functional.adam(*(abs(x) for x in host), step=3, backend="numpy")
    one, other = [abs(x) for x in host], [abs(x) for x in device]
    fo.functional.adam(*one, step=3, backend="numpy")
    fo.functional.adam(*map(Device, other), step=3)
    for x, w in zip(other, one, strict=True):
        assert same_bits(np.array(x), np.array(w))
    assert fo.grad_norm([Device(x) for x in device]) == fo.grad_norm(host, backend="numpy")
    norms = [fo.clip_grad_norm([wrap(x) for x in xs], 0.5) for wrap, xs in ((Device, device), (np.asarray, host))]
    assert norms[0] == norms[1]
    for x, w in zip(device, host, strict=True):
        assert same_bits(np.array(x), np.array(w))


def test_arrays_of_numba_pass_without_copies():
    p, g = cuda.to_device(np.ones((3, 2), np.float32)), cuda.to_device(np.full((3, 2), 2, np.float32))
    assert fo.SGD(p, lr=0.25, backend="cuda").step(g).applied
    assert p.copy_to_host().tolist() == [[0.5, 0.5]] * 3


def test_groups_and_dtypes_share_one_table_and_few_launches(backend, monkeypatch):
    launches, uploads = [], []
    launcher, write = backend.launcher, cuda_places.Memory.write
    monkeypatch.setattr(backend, "launcher", lambda *key: lambda *a: (launches.append(key[0]), launcher(*key)(*a)))
    monkeypatch.setattr(cuda_places.Memory, "write", lambda *a: (uploads.append(1), write(*a)))
    waits = []
    monkeypatch.setattr(type(backend.driver.stream(1)), "synchronize", lambda self: waits.append(1))
    monkeypatch.setattr(backend._cuda, "synchronize", lambda: waits.append(1))
    params = [np.ones(5, np.float32) for _ in range(9)] + [np.ones(4)]
    grads = [np.ones_like(p) for p in params]
    opt = fo.SGD([Device(p) for p in params], lr=0.5, momentum=0.9)
    opt.step([Device(g) for g in grads])  # makes states, uploads the table
    for log in (launches, uploads, waits):
        log.clear()
    opt.step([Device(g) for g in grads])
    opt.step([Device(g) for g in grads])
    assert len(launches) == 2 * 2, "one launch for each dtype"
    assert uploads == [], "nothing had moved"
    assert waits == [], "a step without clipping waited"
    opt.step([Device(g.copy()) for g in grads])
    assert uploads == [1]
    opt.step([Device(g) for g in grads], max_norm=1.0)
    assert uploads == [1, 1, 1], "the gradients are back, and the norm has a table of its own"
    waits.clear()
    opt.step([Device(g) for g in grads], max_norm=1.0)
    assert uploads == [1, 1, 1], "clipped or not"
    assert len(waits) == 1, "a step with clipping waits once"


def test_bad_input_is_refused_before_anything_changed():
    p = np.ones((2, 3), np.float32)
    opt = fo.SGD({"w": Device(p)}, lr=0.0)
    readonly, wide = Device(p, readonly=True), np.ones(7, np.float32)
    bad_grads = {
        "expected an array on the GPU": np.ones((2, 3), np.float32),
        "expected shape": Device(np.ones((3, 2), np.float32)),
        "expected dtype": Device(np.ones((2, 3))),
        "overlap": Device(p[::-1]),
        "without a mask": Device(np.ones((2, 3), np.float32), mask=Device(np.ones((2, 3), bool))),
        "not aligned": Device(np.frombuffer(bytes(25), np.uint8)[1:].view(np.float32).reshape(2, 3)),
    }
    good = Device(np.ones((2, 3), np.float32))
    for _ in range(2):  # before the first step, and after one
        for message, g in bad_grads.items():
            for options in ({}, {"max_norm": 1.0}):
                with pytest.raises((TypeError, ValueError), match=message):
                    opt.step({"w": g}, **options)
        opt.step({"w": good})
    bad_params = {
        "read-only": readonly,
        "float32": Device(p.astype(np.int32)),
        "expected an array on the GPU": p,
        "same address": Device(np.lib.stride_tricks.as_strided(wide, (3, 3), (4, 4))),
    }
    for message, x in bad_params.items():
        with pytest.raises((TypeError, ValueError), match=message):
            fo.SGD({"w": x}, lr=0.1, backend="cuda")
    with pytest.raises(ValueError, match="overlap"):
        fo.SGD([Device(wide[:4]), Device(wide[3:])], lr=0.1)
    assert (p == 1).all()
    assert opt.step({"w": Device(np.ones((2, 3), np.float32))}).applied


# --- Streams ------------------------------------------------------------------------------------------------------


class Event:
    log: list = []  # noqa: RUF012

    def __init__(self, timing=True):
        assert not timing, "events that time are slower"

    def record(self, stream):
        self.log.append(("record", stream))

    def wait(self, stream):
        self.log.append(("wait", stream))


@pytest.fixture
def streams(backend, monkeypatch):
    """Streams are their handles, and events write down what they are told."""
    monkeypatch.setattr(backend.driver, "stream", lambda handle: handle)
    monkeypatch.setattr(backend, "_places", cuda_places.Places(backend.driver))
    monkeypatch.setattr(backend._cuda, "event", Event)
    Event.log = []
    return backend


def use(backend, *handles):
    arrays = [backend.flat(Device(np.ones(1), stream=handle)) for handle in handles]
    place, others = backend.begin(device_arrays.streams_of(arrays))
    Event.log.append(("work", place.stream))
    backend.end(place, others)
    return Event.log


def test_work_runs_on_the_stream_of_the_arrays(streams):
    assert use(streams, None, 7, 7) == [("work", 7)]
    assert use(streams, np.int64(7)) == 2 * [("work", 7)]


def test_work_without_a_stream_runs_on_the_default_one(streams):
    assert use(streams, None, None) == [("work", 1)]


def test_work_waits_for_all_streams_and_they_for_it(streams):
    assert use(streams, 7, 8) == [("record", 8), ("wait", 7), ("work", 7), ("record", 7), ("wait", 8)]


def test_a_given_stream_goes_first(streams):
    with cuda_streams.on_stream(5):
        assert use(streams, 7, None) == [("record", 7), ("wait", 5), ("work", 5), ("record", 5), ("wait", 7)]
    Event.log = []
    assert use(streams, 7) == [("work", 7)]


def test_streams_that_are_kept_are_few(streams):
    for handle in range(10, 60):
        use(streams, handle)
    assert len(streams._places) == cuda_places.PLACES


class Torch:
    cuda_stream = 11


class CuPy:
    ptr = 12


class Numba:
    def __cuda_stream__(self):
        return (0, 13)


@pytest.mark.parametrize(("stream", "handle"), [(Torch(), 11), (CuPy(), 12), (Numba(), 13), (14, 14), (0, 1)])
def test_streams_of_other_libraries_are_understood(stream, handle):
    assert cuda_streams._handle_of(stream) == handle


@pytest.mark.parametrize("stream", ["a", 1.5j, True, object()])
def test_what_is_no_stream_is_refused(stream):
    with pytest.raises(TypeError, match="stream"), cuda_streams.on_stream(stream):
        pass


def test_the_simulator_itself_cannot_run_the_operations():
    from numba.cuda import libdevice

    @cuda.jit
    def kernel(out):
        out[0] = libdevice.fmul_rn(np.float32(2), np.float32(3))

    out = np.zeros(1, np.float32)
    kernel[1, 1](out)
    assert out[0] != 6, "libdevice works here: the stand-ins are no longer needed"


@pytest.mark.parametrize("kernel", kernels(MEASURES.values()), ids=lambda kernel: kernel.name)
def test_measures_equal_reference(small_blocks, kernel):
    rng = np.random.default_rng(2)
    scalars = (-0.77, 0.3, *(0.7 / (i + 2) for i in range(len(kernel.rule.coefficients))))
    for dtype, make, k in zip(DTYPES, (raw_bits, ordinary), (NORM_RETRY, 1.0), strict=True):
        rows = [[make(rng, n, dtype) for _ in range(3 + len(kernel.rule.states))] for n in (0, 1, 129, 300)]
        calls = [KernelCall(kernel, [tuple(vectors(small_blocks, row)) for row in rows])]
        wanted = [x for p, g, *states in rows for x in reference.measure(kernel, p, g, states, scalars, k)]
        assert all(map(same_bits, small_blocks.prepare_measures(calls, 1)([scalars], k), wanted))


@pytest.mark.parametrize(
    "make",
    [
        lambda p, **o: fo.LAMB(p, weight_decay=0.1, **o),
        fo.NovoGrad,
        lambda p, **o: fo.AdamW(p, cautious=True, update_clip=0.5, **o),
    ],
    ids=("lamb", "novograd", "adamw"),
)
def test_steps_that_depend_on_norms(make):
    """With gaps, gradients of None, and a bound for each array."""
    rng = np.random.default_rng(4)
    start = [rng.standard_normal(n).astype(t) for n, t in ((5, "f"), (70, "d"), (12, "d"))]
    here, there = [x.copy() for x in start], [x.copy() for x in start]
    here[2], there[2] = here[2][::2], there[2][::2]
    a, b = make(here, backend="numpy"), make([Device(x) for x in there])
    for t in range(3):
        grads = [rng.standard_normal(x.shape).astype(x.dtype) for x in here]
        given = [None if t == 1 and i == 0 else g for i, g in enumerate(grads)]
        bound = {"max_norm": 0.5, "clip": "norm_per_array"} if t == 2 else {}
        wanted = a.step(given, **bound)
        assert b.step([None if g is None else Device(g) for g in given], **bound) == wanted
        assert all(map(same_bits, there, here)), t
