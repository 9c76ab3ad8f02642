"""CUDA arrays of fewer bits over the fake driver, in a process that test_cuda_host.py starts."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from numba import cuda

import fastoptim as fo
from fastoptim.arrays.storage import small_dtype
from fastoptim.backends import get_backend
from fastoptim.backends.cuda import on_stream
from tests.support import fake_cuda, stored
from tests.support.cases import ordinary, raw_bits, same_bits
from tests.support.fake_cuda.checks import Copies, asked, side_stream

# As few kernels as show every way in which one reads and writes.
OPTIONS = {
    "bfloat16 states": ("float32", {"state_dtype": "bfloat16"}),
    "float8 and a master copy": ("bfloat16", {"state_dtype": "float8", "master": True}),
    "float16": ("float16", {"rounding": "nearest"}),
}
each_storage = pytest.mark.parametrize("storage", OPTIONS)
SHAPES = ((30, 41), (130,), (), (0,), (3, 700))


class Foreign:
    """An array of another library: what CuPy and torch say of theirs."""

    def __init__(self, x, dtype):
        self.inner, self.dtype = x, dtype

    @property
    def __cuda_array_interface__(self):
        return self.inner.__cuda_array_interface__


def on_device(x):
    """numba.cuda cannot upload dtypes of ml_dtypes, but views memory as them."""
    return cuda.to_device(np.ascontiguousarray(x).view(f"u{x.itemsize}")).view(x.dtype).reshape(x.shape)


WRAPPERS = {
    "numba": on_device,
    "cupy": lambda x: Foreign(on_device(x), x.dtype),
    "torch": lambda x: Foreign(on_device(x), f"torch.{x.dtype.name}"),
}


def read(x):
    cuda.synchronize()
    return getattr(x, "inner", x).copy_to_host()


def pair(storage, wrap=on_device, **more):
    """Equal optimizers on the device and on the host: (ours, theirs, device arrays, host arrays)."""
    dtype, options = OPTIONS[storage]
    rng = np.random.default_rng(1)
    host = [np.asarray(rng.standard_normal(shape)).astype(small_dtype(dtype)) for shape in SHAPES]
    device = [wrap(x) for x in host]
    options = {"lr": 0.01, "seed": 7} | options | more
    return fo.Adam(device, backend="cuda", **options), fo.Adam(host, backend="numpy", **options), device, host


def gradients(host, t, dtype=None):
    rng = np.random.default_rng(100 + t)
    return [np.asarray(rng.standard_normal(x.shape)).astype(dtype or x.dtype) for x in host]


def check_equal(ours, theirs, device, host):
    for x, y in zip(device, host, strict=True):
        assert read(x).tobytes() == y.tobytes()
    found, wanted = ours.state_dict()["state"], theirs.state_dict()["state"]
    for name, entry in wanted.items():
        assert set(found[name]) == set(entry)
        for slot, x in entry.items():
            assert np.asarray(found[name][slot]).tobytes() == np.asarray(x).tobytes(), (name, slot)


@each_storage
@pytest.mark.parametrize("shifted", [(), range(9), [3]], ids=["aligned", "none aligned", "one not aligned"])
@pytest.mark.parametrize("make", [ordinary, raw_bits], ids=lambda f: f.__name__)
def test_compiled_kernels_equal_the_reference(storage, make, shifted):
    """Also where all arrays, or one of them, begin where no vector may."""
    dtype, options = OPTIONS[storage]
    backend = get_backend("cuda")
    adam = next(v for v in stored.ONE_OF_EACH if v.rule.name == "adam" and v.decay == "none")
    form = (dtype, dtype, options.get("state_dtype", "float32"), options.get("master", False))
    copies = Copies(lambda i, x: on_device(np.append(x[:1], x))[1:] if i in shifted else on_device(x))
    stored.check(backend, adam, form, "rounding" in options, make, 1, vectors=copies.vectors, settle=copies.settle)


@pytest.mark.parametrize(
    ("storage", "library"),
    [
        *((storage, "numba") for storage in OPTIONS),
        ("float16", "torch"),
        *(("float8 and a master copy", library) for library in ("cupy", "torch")),
    ],
)
def test_optimizers_equal_the_host(storage, library):
    """Also where bfloat16 of another library is known by its dtype alone."""
    wrap = WRAPPERS[library]
    ours, theirs, device, host = pair(storage, wrap)
    for t in range(5):
        grads = gradients(host, t, np.float32 if t == 3 else None)
        options = {"max_norm": 3.0, "grad_scale": 0.5} if t == 2 else {}
        assert ours.step([wrap(g) for g in grads], **options) == theirs.step(grads, **options)
        check_equal(ours, theirs, device, host)
    grads[1] = None
    ours.step([None if g is None else wrap(g) for g in grads])
    theirs.step(grads)
    check_equal(ours, theirs, device, host)


@pytest.mark.parametrize("clip", ["value", "norm_per_array"])
def test_clipping_of_each_element_or_array_equals_the_host_on_late_streams(clip):
    with fake_cuda.behaviour("interleaved", careless=True):
        ours, theirs, device, host = pair("float16")
        kept = [(g, [on_device(x) for x in g]) for g in (gradients(host, t) for t in range(3))]
        cuda.synchronize()
        for t, (grads, own) in enumerate(kept):
            options = {"max_norm": 0.7, "clip": clip, "grad_scale": 0.3}
            with on_stream(1 if t else side_stream()):
                assert ours.step(own, **options) == theirs.step(grads, **options)
            cuda.synchronize()
        check_equal(ours, theirs, device, host)


@each_storage
def test_steps_on_late_streams_upload_nothing_while_addresses_stay(storage):
    with fake_cuda.behaviour("delayed"):
        ours, theirs, device, host = pair(storage)
        grads = gradients(host, 0)
        kept = [on_device(g) for g in grads]
        cuda.synchronize()
        with on_stream(side_stream()):
            found = [asked([lambda: ours.step(kept)]) for _ in range(4)]
        for _ in range(4):
            theirs.step(grads)
        check_equal(ours, theirs, device, host)
    assert "uploads" in found[0]
    assert all("uploads" not in step and "allocations" not in step for step in found[1:])


@each_storage
def test_states_and_checkpoints_go_to_the_host_and_back(storage, tmp_path):
    ours, theirs, device, host = pair(storage)
    again, _, other, _ = pair(storage)
    for t in range(2):
        grads = gradients(host, t)
        ours.step([on_device(g) for g in grads])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is converted
        ours.save(tmp_path / "file")
        theirs.load(tmp_path / "file")
        again.load(tmp_path / "file")
    check_equal(ours, theirs, device, host)
    for t in range(2, 4):
        grads = gradients(host, t)
        theirs.step(grads)
        again.step([on_device(g) for g in grads])
    check_equal(again, theirs, other, host)
    plain = fo.Adam([x.astype(np.float32) for x in host], lr=0.01, backend="numpy")
    if storage == "bfloat16 states":
        with pytest.warns(RuntimeWarning, match="another storage"):
            again.load_state_dict(plain.state_dict() | {"state": _stepped(plain)})
        check_equal(again, again, other, host)


def _stepped(opt):
    opt.step([np.ones(shape, np.float32) for shape in SHAPES])
    return opt.state_dict()["state"]


def test_layouts_with_gaps_are_stepped_in_c_order():
    rng = np.random.default_rng(2)
    base = rng.standard_normal((40, 62)).astype(small_dtype("bfloat16"))
    device, host = on_device(base), base.copy()
    ours, theirs = (
        fo.Adam(x[:, ::2], lr=0.01, state_dtype="float8", master=True, backend=name)
        for x, name in ((device, "cuda"), (host, "numpy"))
    )
    for _ in range(3):
        g = rng.standard_normal((31, 40)).astype(np.float32)
        ours.step(cuda.to_device(np.ascontiguousarray(g)).T)
        theirs.step(g.T)
    assert read(device).tobytes() == host.tobytes()
    assert same_bits(ours.state["0"]["master"].copy_to_host(), theirs.state["0"]["master"])


def test_what_does_not_fit_is_refused_before_anything_changed():
    ours, theirs, device, host = pair("float16")
    good = [on_device(g) for g in gradients(host, 0)]
    for _ in range(2):
        for bad, message in ((np.zeros(SHAPES[0]), "expected dtype float16, got float64"), (host[1], "expected shape")):
            with pytest.raises((TypeError, ValueError), match=message):
                ours.step([on_device(bad), *good[1:]])
        ours.step(good)
        theirs.step(gradients(host, 0))
    check_equal(ours, theirs, device, host)
    with pytest.raises(TypeError, match="optimizers' classes also take bfloat16"):
        fo.functional.sgd(device[0], good[0], lr=0.1)


def test_a_dither_without_its_step_is_caught(monkeypatch):
    """Planted: every step rounds by the same key."""
    from fastoptim.backends.cuda import work

    run = work.UpdateWork.run
    monkeypatch.setattr(work.UpdateWork, "run", lambda self, rows: run(self, [(*row[:-1], 1) for row in rows]))
    ours, theirs, device, host = pair("bfloat16 states")
    for t in range(2):
        ours.step([on_device(g) for g in gradients(host, t)])
        theirs.step(gradients(host, t))
    with pytest.raises(AssertionError):
        check_equal(ours, theirs, device, host)
