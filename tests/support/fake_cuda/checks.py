"""The CUDA backend over the fake driver, in a process that test_cuda_host.py starts."""

from __future__ import annotations

import sys
import threading
import types

import numpy as np
import pytest
from cuda.bindings import driver as bindings
from numba import cuda

import fastoptim as fo
from fastoptim.backends import KernelCall, get_backend
from fastoptim.backends.cuda import driver as cuda_driver
from fastoptim.backends.cuda import on_stream, places
from fastoptim.backends.cuda.backend import CudaBackend
from fastoptim.rules import reference
from fastoptim.rules.norm import NORM_RETRY
from fastoptim.rules.table import RULES, Kernel, kernels
from tests.support import fake_cuda
from tests.support.cases import DTYPES, SIZES, VARIANTS, differing, ordinary, raw_bits, same_bits
from tests.support.threads import in_another_thread

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


class Copies:
    """Copies of arrays on the GPU, as kernels take them: ``upload(i, x)`` makes one of the array `x` at place `i`."""

    def __init__(self, upload):
        self.upload, self.pairs = upload, []

    def vectors(self, arrays):
        own = [(x, self.upload(i, x)) for i, x in enumerate(arrays)]
        self.pairs += own
        return tuple(get_backend("cuda").flat(copy) for _, copy in own)

    def settle(self):
        """Bring what they have become back into the arrays."""
        cuda.synchronize()
        for x, copy in self.pairs:
            x[...] = copy.copy_to_host()


@pytest.mark.parametrize(
    ("kernel", "dtype"), sample(), ids=lambda x: getattr(x, "name", x.__name__ if x in DTYPES else "")
)
def test_compiled_kernels_equal_the_reference_on_raw_bits(backend, kernel, dtype):
    for variant in (v for v in VARIANTS if v.kernel == kernel):
        for make, offset in ((raw_bits, 0), (raw_bits, 1), (ordinary, 3)):
            copies = Copies(lambda i, x, offset=offset: on_device(x, offset))
            face = {"vectors": copies.vectors, "settle": copies.settle}
            assert differing(backend, variant, dtype, (*SIZES, 20_001), make, offset=offset, **face) == []


@pytest.mark.parametrize("make", [ordinary, raw_bits], ids=lambda f: f.__name__)
def test_norm_equals_the_reference(backend, make):
    rng = np.random.default_rng(1)
    grads = [make(rng, n, dtype) for n in (*SIZES, 100_001) for dtype in DTYPES]
    vectors = [backend.flat(on_device(g)) for g in grads]
    for k in (1.0, NORM_RETRY, 1 / NORM_RETRY):
        wanted = np.concatenate([reference.block_sums(g, 0.3, k) for g in grads])
        assert same_bits(backend.block_sums(vectors, 0.3, k, 1), wanted)
    host = get_backend("numpy")
    for factor in (1.0, 1e160, 1e-170):
        grads = [factor * rng.standard_normal(n) for n in (1, 70, 300_000)]
        assert backend.norm([cuda.to_device(g) for g in grads], 0.7, 1) == host.norm(grads, 0.7, 1)


# --- Streams ------------------------------------------------------------------------------------------------------


def side_stream():
    """The handle of a stream that the default one does not wait for."""
    cuda.current_context()
    status, stream = bindings.cuStreamCreate(bindings.CUstream_flags.CU_STREAM_NON_BLOCKING)
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


def test_reading_states_waits_for_steps_on_any_stream(late):
    ours, theirs, params, grads = twins((5000,), 2)
    ours.step(grads[0][0])
    theirs.step(grads[0][1])
    assert differing_states(ours, theirs) == 0
    with on_stream(side_stream()):
        ours.step(grads[1][0])
    theirs.step(grads[1][1])
    assert differing_states(ours, theirs) == 0
    assert wrong(params) == 0


def test_loading_states_waits_for_steps_on_any_stream(late):
    ours, theirs, _, grads = twins((5000,), 2)
    ours.step(grads[0][0])
    theirs.step(grads[0][1])
    with on_stream(side_stream()):
        ours.step(grads[1][0])
    ours.load_state_dict(theirs.state_dict())
    assert differing_states(ours, theirs) == 0


def test_loading_a_checkpoint_waits_for_steps_on_any_stream(late, tmp_path):
    ours, theirs, params, grads = twins((5000,), 2, make=fo.SGD)  # without states, whose making waits
    for opt, g in ((ours, grads[0][0]), (theirs, grads[0][1])):
        opt.step(g)
    theirs.save(tmp_path / "file")
    with on_stream(side_stream()):
        ours.step(grads[1][0])
    ours.load(tmp_path / "file")
    assert wrong(params) == 0


def differing_states(ours, theirs):
    found, wanted = ours.state_dict()["state"], theirs.state_dict()["state"]
    slots = [(name, slot) for name, entry in wanted.items() for slot in entry if slot != "step"]
    return sum(int((found[name][slot] != wanted[name][slot]).sum()) for name, slot in slots)


@pytest.mark.parametrize("options", [{}, {"max_norm": 1.0}], ids=["plain", "clipped"])
def test_threads_step_on_their_own_default_streams(late, options):
    assert on_three_threads(options) == 0


def on_three_threads(options):
    """Differing elements after three threads have stepped in turn, each on its per-thread default stream."""
    quadruples = [twins((3000,), 4) for _ in range(3)]
    turn, failures = threading.Barrier(3), []

    def work(ours, grads):
        try:
            with on_stream(2):
                for d, _ in grads:
                    ours.step(d, **options)
                    turn.wait()
        except BaseException as error:
            turn.abort()
            failures.append(error)

    threads = [threading.Thread(target=work, args=(q[0], q[3])) for q in quadruples]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    for _, theirs, _, grads in quadruples:
        for _, h in grads:
            theirs.step(h, **options)
    return sum(wrong(q[2]) for q in quadruples)


def test_a_thread_that_never_used_cuda_steps():
    ours, theirs, params, grads = twins((500,), 3)
    ours.step(grads[0][0])
    in_another_thread(lambda: [ours.step(d, max_norm=1.0) for d, _ in grads[1:]])
    theirs.step(grads[0][1])
    for _, h in grads[1:]:
        theirs.step(h, max_norm=1.0)
    assert wrong(params) == 0


def test_arrays_with_gaps_survive_a_careless_memory_manager():
    with fake_cuda.behaviour("delayed", careless=True):
        rng = np.random.default_rng(3)
        base, grads = rng.standard_normal((50, 64)).astype(np.float32), rng.standard_normal((4, 50, 32))
        device, host = cuda.to_device(base), base.copy()
        ours, theirs = fo.Adam(device[:, ::2], lr=0.1), fo.Adam(host[:, ::2], lr=0.1, backend="numpy")
        kept = [cuda.to_device(g.astype(np.float32)) for g in grads]
        with on_stream(side_stream()):
            for d, h in zip(kept, grads, strict=True):
                ours.step(d)
                theirs.step(h.astype(np.float32))
        assert wrong([(device, host)]) == 0


def test_memory_that_was_outgrown_survives_a_careless_memory_manager():
    with fake_cuda.behaviour("delayed", careless=True):
        pairs = [twins((n,), 3) for n in (300, 60_000, 300_000)]
        with on_stream(side_stream()):
            for t, (ours, theirs, _, grads) in ((t, pair) for t in range(3) for pair in pairs):
                ours.step(grads[t][0], max_norm=1.0)
                theirs.step(grads[t][1], max_norm=1.0)
        assert [wrong(pair[2]) for pair in pairs] == [0, 0, 0]


def test_many_streams_leave_little_behind(backend):
    ours, theirs, params, grads = twins((300,), 1)
    for _ in range(40):
        handle = side_stream()
        with on_stream(handle):
            ours.step(grads[0][0], max_norm=1.0)
        cuda.synchronize()
        bindings.cuStreamDestroy(handle)
        theirs.step(grads[0][1], max_norm=1.0)
    assert len(backend._places) <= places.PLACES
    assert wrong(params) == 0


# --- What a step asks of the driver -------------------------------------------------------------------------------


def asked(steps):
    before = fake_cuda.counts()
    for step in steps:
        step()
    return {name: n - before[name] for name, n in fake_cuda.counts().items() if n != before[name]}


def test_steps_whose_addresses_stay_upload_nothing():
    (a, _, _, ga), (b, _, _, gb) = twins((300, 5)), twins((40, 1))
    for options in ({}, {"max_norm": 1.0}):
        turns = [lambda o=options: a.step(ga[0][0], **o), lambda o=options: b.step(gb[0][0], **o)]
        asked(turns * 2)
        found = asked(turns * 5)
        assert "uploads" not in found
        assert "allocations" not in found
        assert "events" not in found
        assert found["launches"] == (10 if not options else found["downloads"] + found["launches"] - 10)
        assert found.get("downloads", 0) == (10 if options else 0), "the norm is what the host waits for"
    ours, _, _, grads = twins((300, 5), 2)
    asked([lambda: ours.step(grads[0][0]), lambda: ours.step(grads[1][0])])
    work = ours._plan.update._native._fixed
    assert asked([lambda: ours.step(grads[0][0])])["uploads"] == 1, "the gradients have moved"
    assert ours._plan.update._native._fixed is work, "their addresses are patched, and nothing is checked anew"


@pytest.mark.parametrize("options", [{}, {"max_norm": 0.5}], ids=["plain", "clipped"])
def test_no_gradient_is_not_taken_for_one_that_is_gone(options):
    p = cuda.to_device(np.ones(129, np.float32))
    opt = fo.Adam(p, lr=0.1, backend="cuda")
    for value in (1.0, 2.0):
        assert opt.step(cuda.to_device(np.full(129, value, np.float32)), **options).applied  # which nobody keeps
    before = p.copy_to_host()
    assert not opt.step(None, **options).applied
    assert p.copy_to_host().tobytes() == before.tobytes()
    assert opt.step(cuda.to_device(np.ones(129, np.float32)), **options).applied


def test_launches_are_packed_and_sent_by_the_drivers_own_call(backend):
    ours, _, _, grads = twins((300,), 1)
    ours.step(grads[0][0], max_norm=1.0)
    assert len(backend._launchers) > 2
    assert all("keeps" in vars(launch) for launch in backend._launchers.values())


@pytest.mark.parametrize(
    ("owner", "name", "error"),
    [
        (cuda_driver.RawDriver, "_packed", AttributeError("get_cufunc")),
        (bindings, "cuKernelGetParamInfo", RuntimeError('Function "cuKernelGetParamInfo" not found')),
    ],
    ids=["compiler", "driver before CUDA 12.4"],
)
def test_the_compilers_launcher_takes_over_where_arguments_cannot_be_packed(monkeypatch, owner, name, error):
    def unknown(*_):
        raise error

    monkeypatch.setattr(owner, name, unknown)
    backend = CudaBackend()
    ours, theirs, params, grads = twins((300, 5), 4)
    ours._backend = backend
    for d, h in grads:
        ours.step(d, max_norm=1.0)
        theirs.step(h, max_norm=1.0)
    assert wrong(params) == 0
    assert all("keeps" not in vars(launch) for launch in backend._launchers.values())


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            FileNotFoundError(2, "No such file or directory", "/none/nvvm/libdevice/libdevice.10.bc"),
            r"set CUDA_HOME to the CUDA toolkit, or pip install .*libdevice.10.bc",
        ),
        (ValueError("ERROR_OUTDATED_LIBRARY (14)"), "install nvidia-nvjitlink and nvidia-nvvm .* of one release"),
    ],
    ids=["none", "older linker"],
)
def test_a_compiler_that_is_not_found_or_does_not_fit_is_named(monkeypatch, error, said):
    def jit(*arguments, cache=False, **options):
        if cache:  # a kernel is compiled at once
            raise error
        return usual(*arguments, **options)

    backend, usual = CudaBackend(), cuda.jit
    monkeypatch.setattr(cuda, "jit", jit)
    with pytest.raises(RuntimeError, match=said):
        backend.launcher("zero", np.dtype(np.float32))


def test_scalars_beyond_float32_round_to_infinity_as_on_the_host():
    p, g = np.float32([1, 0]), np.float32([1e-30, 1])
    device = cuda.to_device(p), cuda.to_device(g)
    kernel, backend = Kernel(RULES["sgd"], "none"), get_backend("cuda")
    backend.prepare([KernelCall(kernel, [tuple(map(backend.flat, device))])], 1)([(1.0, 0.0, 1e60)])
    assert device[0].copy_to_host().tolist() == [-np.inf, -np.inf]


# --- What is refused ----------------------------------------------------------------------------------------------


def test_a_step_into_a_captured_graph_is_refused():
    ours, theirs, params, grads = twins((300,), 2)
    ours.step(grads[0][0])
    handle = side_stream()
    bindings.cuStreamBeginCapture(handle, bindings.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED)
    with on_stream(handle):
        for options in ({}, {"max_norm": 1.0}):
            with pytest.raises(RuntimeError, match="graph is being captured"):
                ours.step(grads[1][0], **options)
    bindings.cuStreamEndCapture(handle)
    theirs.step(grads[0][1])
    assert wrong(params) == 0
    assert ours.state["0"]["step"] == 1


def test_arrays_of_another_device_are_refused():
    p = cuda.to_device(np.ones(3, np.float32))
    with cuda.gpus[1]:
        other = cuda.to_device(np.ones(3, np.float32))
    with pytest.raises(ValueError, match="parameter '0': it is on GPU 1, and GPU 0 is current"):
        fo.SGD(other, lr=0.1)
    ours = fo.SGD(p, lr=0.1)
    for _ in range(2):
        with pytest.raises(ValueError, match="gradient of parameter '0': it is on GPU 1"):
            ours.step(other)
        ours.step(cuda.to_device(np.ones(3, np.float32)))
    with cuda.gpus[1], pytest.raises((ValueError, RuntimeError), match="GPU 0"):
        ours.step(p)


def test_memory_that_host_and_gpu_share_belongs_to_no_other_gpu(monkeypatch):
    driver = get_backend("cuda").driver
    monkeypatch.setattr(driver, "_attribute", lambda *_: (bindings.CUresult.CUDA_SUCCESS, -2))
    p = cuda.to_device(np.ones(3, np.float32))
    assert fo.SGD(p, lr=0.5).step(cuda.to_device(np.ones(3, np.float32))).applied


def test_an_error_that_may_be_of_earlier_work_says_so(monkeypatch):
    ours, _, _, grads = twins((300,))
    ours.step(grads[0][0])
    failed = (bindings.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS,)
    monkeypatch.setattr(get_backend("cuda").driver._raw, "cuStreamSynchronize", lambda stream: failed)
    with pytest.raises(RuntimeError, match=r"ILLEGAL_ADDRESS \(700\) of this step, or of earlier work"):
        ours.step(grads[0][0], max_norm=1.0)
    assert ours.state["0"]["step"] == 1


def test_immutable_arrays_of_jax_are_refused():
    kind = type("ArrayImpl", (), {"__module__": "jaxlib._jax"})
    inner = cuda.to_device(np.ones(3, np.float32))
    kind.__cuda_array_interface__ = property(lambda self: inner.__cuda_array_interface__)
    with pytest.raises(TypeError, match="jax's arrays are immutable"):
        fo.SGD(kind(), lr=0.1)
    p = cuda.to_device(np.ones(3, np.float32))
    assert fo.SGD(p, lr=0.5).step(kind()).applied, "a gradient may be constant"
    assert p.copy_to_host().tolist() == [0.5] * 3


# --- autograd -----------------------------------------------------------------------------------------------------


@pytest.fixture
def torch(monkeypatch):
    """What of torch the backend meets, over arrays of numba.cuda."""
    fake = types.ModuleType("torch")

    class Tensor:
        def __init__(self, x):
            self.x, self._version, self.device, self.dtype, self.requires_grad = (
                cuda.to_device(x),
                0,
                "cuda:0",
                "f4",
                False,
            )

        @property
        def __cuda_array_interface__(self):
            found = dict(self.x.__cuda_array_interface__)
            del found["stream"]
            return found | {"version": 2}

        def data_ptr(self):
            return self.x.device_ctypes_pointer.value

        def stride(self):
            return self.x.strides

        def is_inference(self):
            return False

        shape = property(lambda self: self.x.shape)

    def increment_version(tensors):
        for x in tensors:
            x._version += 1

    Tensor.__module__ = "torch"
    fake.Tensor = Tensor
    fake.nn = types.SimpleNamespace()
    fake.autograd = types.SimpleNamespace(graph=types.SimpleNamespace(increment_version=increment_version))
    fake.cuda = types.SimpleNamespace(current_stream=lambda device: types.SimpleNamespace(cuda_stream=0))
    monkeypatch.setitem(sys.modules, "torch", fake)
    return fake


def test_autograd_counts_every_step(torch):
    rng = np.random.default_rng(0)
    host, g = rng.standard_normal((2, 300)).astype(np.float32)
    p, d = torch.Tensor(host), torch.Tensor(g)
    ours, theirs = fo.Adam(p, lr=0.1), fo.Adam(host, lr=0.1, backend="numpy")
    for t in range(1, 4):
        ours.step(d)
        theirs.step(g)
        assert (p._version, d._version) == (t, 0)
    ours.step(torch.Tensor(np.full(300, np.nan, np.float32)), skip_nonfinite=True)
    assert p._version == 3, "nothing was written"
    assert wrong([(p.x, host)]) == 0
    fo.clip_grad_norm([d], 0.1)
    assert d._version == 1
    fo.functional.sgd(p, d, lr=0.1)
    assert p._version == 4
    average = fo.Average([p], decay=0.5)
    average.update()
    average.copy_to([p])
    assert p._version == 5
    own = type("Own", (torch.Tensor,), {"__module__": "somewhere"})(host)
    theirs = fo.Adam(own, lr=0.1)
    for t in range(1, 4):
        theirs.step(d)
        assert own._version == t, "a subclass of somebody else's"
    p.x = cuda.to_device(np.ones(300, np.float32))  # as `p.data = ...` does: the same object, elsewhere
    ours.step(d)
    assert float(p.x.copy_to_host()[0]) != 1.0


# --- Planted faults -----------------------------------------------------------------------------------------------


def test_reading_states_without_waiting_is_caught(monkeypatch):
    with fake_cuda.behaviour("delayed"):
        monkeypatch.setattr(CudaBackend, "host_copy", lambda self, x: x.copy_to_host())
        ours, theirs, _, grads = twins((5000,), 2)
        with on_stream(side_stream()):
            for d, h in grads:
                ours.step(d)
                theirs.step(h)
        assert differing_states(ours, theirs) > 1000


def test_one_table_for_all_streams_is_caught(monkeypatch, backend):
    shared = places.Memory(backend.begin(())[0], 1024)
    monkeypatch.setattr(places.Place, "lease", lambda self, words: places.Lease(self, shared))
    monkeypatch.setattr(places.Place, "take_back", lambda self, memory: None)
    with fake_cuda.behaviour("interleaved"):
        assert on_three_threads({}) > 0


def test_steps_that_do_not_wait_for_their_arrays_streams_are_caught(monkeypatch):
    assert between_streams() == 0
    monkeypatch.setattr(CudaBackend, "_after", lambda self, first, second: None)
    assert between_streams() > 0


def between_streams():
    """Differing elements where a gradient is still being written on its own stream when the step is called."""
    with fake_cuda.behaviour("delayed"):
        ours, theirs, params, grads = twins((3000,), 2)
        handles = side_stream(), side_stream()
        writer, stepper = map(cuda.external_stream, handles)
        g = cuda.device_array(3000, np.float32).bind(writer)
        for device, host in grads:
            g.copy_to_device(device[0], stream=writer)
            with on_stream(handles[1]):
                ours.step([g])
            theirs.step(host)
            stepper.synchronize()  # before the writer, as far as nothing orders them
        return wrong(params)
