"""Every storage with everything that an optimizer can be asked for: it works, or is refused by name."""

from __future__ import annotations

import copy
import json
import pickle
import runpy
import subprocess
import sys
import warnings
from itertools import product
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pytest

import fastoptim as fo
from fastoptim.adapters import cs231n, dicts, numpy_ml, per_array
from fastoptim.arrays.storage import small_dtype
from fastoptim.backends import get_backend
from fastoptim.checkpoint import format
from fastoptim.checkpoint.files import CheckpointError
from fastoptim.optimizers.saving import optimizer_tree
from fastoptim.rules.codecs import decoded
from fastoptim.training.accumulate import Accumulator
from tests.support.cases import same_bits

ml_dtypes = pytest.importorskip("ml_dtypes", reason="LOUD: pip install ml_dtypes to test bfloat16 and float8")

# dtype of the parameters, options of the class
STORAGES = {
    "bfloat16": ("float32", {"state_dtype": "bfloat16"}),
    "float8": ("float32", {"state_dtype": "float8"}),
    "nearest": ("float32", {"state_dtype": "bfloat16", "rounding": "nearest"}),
    "bfloat16 everywhere": ("bfloat16", {"state_dtype": "bfloat16"}),
    "float16 parameters": ("float16", {}),
    "master copy": ("bfloat16", {"state_dtype": "float8", "master": True}),
}
each_storage = pytest.mark.parametrize("storage", STORAGES)
BACKENDS = ("numpy", "c", "numba")


def model(storage, seed=0):
    rng, dtype = np.random.default_rng(seed), small_dtype(STORAGES[storage][0])
    return {
        "w": rng.standard_normal((30, 41)).astype(dtype),
        "f": np.asfortranarray(rng.standard_normal((20, 30)).astype(dtype)),
        "strided": np.zeros((10, 14), dtype)[:, ::2],
        "b": np.array(rng.standard_normal(), dtype),
    }


def gradients(params, i, dtype=None):
    rng = np.random.default_rng(100 + i)
    return {k: np.asarray(rng.standard_normal(x.shape)).astype(dtype or x.dtype) for k, x in params.items()}


def optimizer(storage, params, cls=fo.AdamW, **options):
    return cls(params, lr=0.01, **({"seed": 7} | STORAGES[storage][1] | options))


def content(params, opt):
    """All bytes of parameters and states."""
    states = {f"{k}.{s}": np.asarray(x).tobytes() for k, e in opt.state.items() for s, x in e.items()}
    return {k: x.tobytes() for k, x in params.items()} | states


def trained(storage, steps=3, backend="c", **options):
    params = model(storage)
    opt = optimizer(storage, params, backend=backend, **options)
    for i in range(steps):
        opt.step(gradients(params, i))
    return params, opt


@each_storage
@pytest.mark.parametrize("cls", [fo.AdamW, fo.Adam, fo.SGD])
def test_all_backends_have_the_same_bits(storage, cls):
    kind = {fo.Adam: {"amsgrad": True}, fo.SGD: {"momentum": 0.9, "nesterov": True}}.get(cls, {})
    found = []
    for backend in BACKENDS:
        params = model(storage)
        opt = optimizer(storage, params, cls, backend=backend, threads=2, **kind)
        for i in range(4):
            own = gradients(params, i, np.float32 if i == 3 else None)
            opt.step(own, grad_scale=0.5 if i == 1 else 1.0, max_norm=3.0 if i == 2 else None)
        found.append(content(params, opt))
    assert found[0] == found[1] == found[2]
    assert found[0]["w"] != model(storage)["w"].tobytes()


@each_storage
def test_what_is_saved_goes_on_as_if_nothing_had_happened(storage, tmp_path):
    params, opt = trained(storage)
    opt.save(tmp_path / "file")
    ours = model(storage, 1)
    others = optimizer(storage, ours, backend="numpy", seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is converted
        others.load(tmp_path / "file")
        again = [pickle.loads(pickle.dumps(opt)), copy.deepcopy(opt)]
        third_params = {k: x.copy() for k, x in params.items()}
        third = optimizer(storage, third_params, seed=2)
        third.load_state_dict(opt.state_dict())
    for target, values in ((others, ours), (third, third_params)):
        assert content(values, target) == content(params, opt)
    opt.step(gradients(params, 9))
    for target, values in ((others, ours), (third, third_params)):
        target.step(gradients(values, 9))
        assert content(values, target) == content(params, opt), "the seed has not come along"
    for target in again:
        values = dict(zip(params, target.param_groups[0]["params"], strict=True))
        target.step(gradients(values, 9))
        assert content(values, target) == content(params, opt)


def test_a_checkpoint_of_another_storage_is_converted_and_says_so(tmp_path):
    kinds = {None: {}, "bfloat16": {"state_dtype": "bfloat16"}, "float8": {"state_dtype": "float8"}}
    for saved, options in kinds.items():
        p = np.ones(1000, np.float32)
        opt = fo.Adam(p, **options)
        for i in range(5):
            opt.step(np.random.default_rng(i).standard_normal(1000).astype(np.float32))
        opt.save(tmp_path / "file")
        for wanted, other in kinds.items():
            if wanted == saved:
                continue
            target = fo.Adam(np.zeros(1000, np.float32), **other)
            with pytest.warns(RuntimeWarning, match="another storage"):
                target.load(tmp_path / "file")
            entry, own = opt.state["0"], target.state["0"]
            for name in ("exp_avg", "exp_avg_sq"):
                square = name == "exp_avg_sq"
                a = decoded(entry[name], entry.get(f"{name}_scale"), saved or "float32", square)
                b = decoded(own[name], own.get(f"{name}_scale"), wanted or "float32", square)
                step = 2.0**-7 if wanted == "bfloat16" else 2.0**-3 * (2 if square else 1)
                limit = np.abs(a) * (step if wanted else 0) + (a.max() * 2.0**-9 if wanted == "float8" else 0)
                assert np.all(np.abs(a - b) <= limit), (saved, wanted, name)
            target.step(np.ones(1000, np.float32))
    with pytest.raises((TypeError, CheckpointError), match="float8_e4m3fn"):
        opt.state_dict()
        broken = opt.state_dict()
        del broken["state"]["0"]["exp_avg_scale"]
        fo.Adam(np.zeros(1000, np.float32)).load_state_dict(broken)
    with pytest.raises(ValueError, match="lacks 'exp_avg_scale'"):
        opt.load_state_dict(broken)


@each_storage
def test_none_groups_skips_and_new_hyperparameters(storage):
    found = []
    for backend in BACKENDS:
        params = model(storage)
        names = list(params)
        opt = optimizer(storage, [{"params": {k: params[k]}, "lr": 0.01 * (i + 1)} for i, k in enumerate(names)],
                        backend=backend)  # fmt: skip
        for i in range(5):
            grads = [{k: g} for k, g in gradients(params, i).items()]
            if i == 1:
                grads[0] = {names[0]: None}
            if i == 2:
                before = content(params, opt)
                grads[2][names[2]] = np.full_like(grads[2][names[2]], np.inf)
                assert not opt.step(grads, skip_nonfinite=True).applied
                assert content(params, opt) == before
                continue
            opt.lr = 0.02 if i == 3 else opt.param_groups[0]["lr"]
            opt.step(grads)
        assert [entry["step"] for entry in opt.state.values()] == [3, 4, 4, 4]
        found.append(content(params, opt))
    assert found[0] == found[1] == found[2]


@each_storage
@pytest.mark.parametrize("clip", ["norm", "value", "norm_per_array"])
def test_every_way_to_clip_has_the_same_bits(storage, clip):
    found, free = [], model(storage)
    for backend in BACKENDS:
        params = model(storage)
        opt = optimizer(storage, params, fo.SGD, momentum=0.9, backend=backend, threads=2, max_norm=0.4, clip=clip)
        for i in range(2):
            opt.step(gradients(params, i), grad_scale=0.7)
        found.append(content(params, opt))
    assert found[0] == found[1] == found[2]
    opt = optimizer(storage, free, fo.SGD, momentum=0.9)
    for i in range(2):
        opt.step(gradients(free, i), grad_scale=0.7)
    assert content(free, opt)["w"] != found[0]["w"], "nothing was clipped"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bound_that_binds_nothing_leaves_scaled_gradients_as_they_are(dtype, backend):
    """Also what 16 bits do not have: gradients of a scaled loss come out of float16's range."""
    found = []
    for options in ({}, {"max_norm": 1.0, "clip": "value"}, {"max_norm": 1.0, "clip": "norm_per_array"}):
        p = np.ones(300, small_dtype(dtype))
        opt = fo.Adam(p, lr=0.25, eps=1e-12, backend=backend)
        opt.step(np.linspace(-1e-3, 1e-3, 300).astype(p.dtype), grad_scale=2.0**-16 / 3, **options)
        found.append(content({"p": p}, opt))
    assert found[0] == found[1] == found[2] and opt.state["0"]["exp_avg"].all()


@each_storage
def test_what_fits_is_loaded_if_asked(storage):
    params, opt = trained(storage)
    saved = opt.state_dict()
    saved["state"]["new"] = saved["state"].pop("w")
    saved["param_groups"][0]["params"] = ["new", "f", "strided", "b"]
    ours = {k: x.copy() for k, x in params.items()}
    target = optimizer(storage, ours, seed=1)
    keys = target.load_state_dict(saved, strict=False)
    assert (keys.missing_keys, keys.unexpected_keys) == (["w"], ["new"])
    assert target.state["w"]["step"] == 0
    grads = gradients(params, 9)
    opt.step(grads)
    target.step(grads)
    wanted, found = content(params, opt), content(ours, target)
    kept = [k for k in wanted if k.split(".")[0] != "w"]
    assert [found[k] for k in kept] == [wanted[k] for k in kept], "the seed has not come along"


@each_storage
def test_files_and_tiles_have_the_same_bits(storage, tmp_path):
    dtype = small_dtype(STORAGES[storage][0])
    values = np.random.default_rng(0).standard_normal(50_000).astype(dtype)
    plain, mapped = values.copy(), np.memmap(tmp_path / "p", dtype, "w+", shape=values.shape)
    mapped[...] = values
    one = optimizer(storage, plain)
    two = optimizer(storage, mapped, state_dir=tmp_path / "states", memory_budget=1 << 20)
    for i in range(3):
        g = np.random.default_rng(i).standard_normal(50_000).astype(dtype)
        one.step(g, max_norm=10.0)
        two.step(g, max_norm=10.0)
    assert content({"p": plain}, one) == content({"p": np.array(mapped)}, two)


@each_storage
def test_a_refused_step_leaves_everything(storage):
    params, opt = trained(storage)
    before = content(params, opt)
    good = gradients(params, 5)
    for name, bad, error in (
        ("w", good["w"][:5], ValueError),
        ("w", good["w"].astype(np.float64), TypeError),
        ("b", good["b"].astype(np.int32), TypeError),
        ("f", params["f"], ValueError),
    ):
        with pytest.raises(error, match=f"'{name}'"):
            opt.step(good | {name: bad})
        assert content(params, opt) == before


@pytest.mark.parametrize("bad", [np.ones(3), [1.0] * 3, 1.0], ids=["float64", "list", "number"])
def test_messages_name_dtypes_that_there_are(bad):
    with pytest.raises(TypeError, match=r"[( ]ml_dtypes\.bfloat16\)$"):
        fo.SGD(np.ones(3, small_dtype("bfloat16"))).step(bad)


def test_fit_resumes_with_the_same_bits(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 5)).astype(np.float32)
    y = (x @ np.arange(5, dtype=np.float32)).astype(np.float32)

    def loss(params, batch):
        a, b = batch
        error = a @ params["w"] - b
        return float(np.mean(error**2)), {"w": (2 * a.T @ error / len(b)).astype(np.float32)}

    def run(epochs, **options):
        params = {"w": np.zeros(5, np.float32)}
        opt = fo.Adam(params, lr=0.1, state_dtype="float8", seed=3)
        fo.fit(loss, params, (x, y), opt, epochs=epochs, batch_size=16, rng=0, diagnose=False, **options)
        return content(params, opt)

    whole = run(4)
    run(2, checkpoint=tmp_path / "file")
    assert run(4, checkpoint=tmp_path / "file", resume=True) == whole


def test_gradients_in_16_bits_are_accumulated_in_float64_and_rounded_to_float32():
    found, by_hand = (np.zeros(3, ml_dtypes.bfloat16) for _ in range(2))
    seen = gradients({"0": np.empty((3, 3), ml_dtypes.bfloat16)}, 0)["0"]
    fo.fit(lambda p, batch: (0.0, batch[0]), found, seen, "sgd", lr=1.0, steps=1, batch_size=1, accumulate=3,
           shuffle=False, diagnose=False)  # fmt: skip
    fo.SGD(by_hand, lr=1.0).step(seen.astype(np.float64).mean(0).astype(np.float32))
    assert same_bits(found, by_hand) and found.all()
    with pytest.raises(TypeError, match="gradient '0': dtype float32 in one minibatch, bfloat16 in another"):
        accumulator = Accumulator(2)
        accumulator.add(np.ones(3, np.float32), 1.0)
        accumulator.add(np.ones(3, ml_dtypes.bfloat16), 1.0)


REFUSED = {
    "float64 parameters": (lambda: fo.Adam(np.ones(3), state_dtype="bfloat16"), TypeError, "'0' is float64"),
    "a dtype in place of its name": (
        lambda: fo.Adam(np.ones(3, "f4"), state_dtype=np.float32), TypeError, "must be one of .* got <class"),
    "an unknown storage": (lambda: fo.Adam(np.ones(3, "f4"), state_dtype="int8"), ValueError, "state_dtype"),
    "an unknown rounding": (lambda: fo.SGD(np.ones(3, "f4"), rounding="up"), ValueError, "rounding"),
    "a seed below 0": (lambda: fo.SGD(np.ones(3, "f4"), seed=-1), ValueError, "seed"),
    "a foreign option": (lambda: fo.SGD(np.ones(3, "f4"), state_type="float8"), TypeError, "state_type"),
    "functional forms": (
        lambda: fo.functional.sgd(np.ones(3, "f2"), np.ones(3, "f2"), lr=1.0), TypeError, "'p'.*float16"),
    "functional states": (
        lambda: fo.functional.momentum(
            np.ones(3, "f4"), np.ones(3, "f4"), np.ones(3, ml_dtypes.bfloat16), lr=1.0), TypeError, "bfloat16"),
    "functional forms with a dict": (
        lambda: fo.functional.lion(np.ones(3, ml_dtypes.bfloat16), np.ones(3, ml_dtypes.bfloat16), {}),
        TypeError, "'p'.*float32 or float64 .*got bfloat16: convert it, x.astype"),
    "clipping in place": (
        lambda: fo.clip_grad_norm([np.ones(3, "f2")], 1.0), TypeError, "float32 or float64 .*got float16"),
    "a norm alone": (lambda: fo.grad_norm([np.ones(3, ml_dtypes.bfloat16)]), TypeError, "'0'.*bfloat16"),
    "adapter: an array": (lambda: per_array.update(np.ones(3, "f2"), np.ones(3, "f2")), TypeError, "'0'.*float16"),
    "adapter: its states": (
        lambda: per_array.update(np.ones(3, "f4"), np.ones(3, "f4"), np.ones(3, ml_dtypes.bfloat16)),
        TypeError, r"states\[0\] of parameter '0'.*bfloat16"),
    "adapter: dicts": (
        lambda: dicts.SGD().update({"w": np.ones(3, "f2")}, {"w": np.ones(3, "f2")}), TypeError, "'w'.*float16"),
    "adapter: cs231n": (
        lambda: cs231n.adam(np.ones(3, ml_dtypes.bfloat16), np.ones(3, ml_dtypes.bfloat16)), TypeError, "bfloat16"),
    "adapter: numpy_ml": (
        lambda: numpy_ml.SGD().update(np.ones(3, "f2"), np.ones(3, "f2"), "w"), TypeError, "float16"),
    "packing": (lambda: fo.pack([np.ones(3, "f2")]), TypeError, "float16"),
    "float8 parameters": (lambda: fo.SGD(np.ones(3, ml_dtypes.float8_e4m3fn)), TypeError, "float8_e4m3fn"),
    "foreign byte order": (lambda: fo.SGD(np.ones(3, ">f2")), TypeError, "foreign byte order"),
    "foreign byte order of bfloat16": (
        lambda: fo.SGD(np.zeros(3, np.dtype(ml_dtypes.bfloat16).newbyteorder())), TypeError, "foreign byte order"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_go_is_refused_by_name(what):
    call, error, text = REFUSED[what]
    with pytest.raises(error, match=text):
        call()


def test_a_checkpoint_that_asks_for_norms_is_refused_when_it_is_loaded():
    params, opt = trained("bfloat16")
    saved, before = opt.state_dict(), content(params, opt)
    saved["param_groups"][0]["update_clip"] = 1.0
    with pytest.raises(ValueError, match=r"'w' is stored in fewer bits.*leave out state_dtype, or update_clip"):
        opt.load_state_dict(saved)
    assert content(params, opt) == before


def _set(*path, to):
    """A mutation of a tree: the value at a path, or what a function makes of it; nothing for no function's result."""

    def mutate(tree):
        *parents, last = path
        for key in parents:
            tree = tree[key]
        value = to(tree[last]) if callable(to) else to
        if value is None:
            del tree[last]
        else:
            tree[last] = value

    return mutate


ENTRY = ("optimizer", "state", "w")
HOSTILE = {
    "no scales": _set(*ENTRY, "exp_avg_scale", to=lambda x: None),
    "scales of too few blocks": _set(*ENTRY, "exp_avg_scale", to=lambda x: x[:-1]),
    "scales of too many blocks": _set(*ENTRY, "exp_avg_sq_scale", to=lambda x: np.append(x, x)),
    "scales in the shape of the state": _set(*ENTRY, "exp_avg_scale", to=lambda x: np.ones((30, 41), np.float32)),
    "scales in float64": _set(*ENTRY, "exp_avg_scale", to=lambda x: x.astype(np.float64)),
    "scales that are codes": _set(*ENTRY, "exp_avg_scale", to=lambda x: x.astype(ml_dtypes.float8_e4m3fn)),
    "scales that are a number": _set(*ENTRY, "exp_avg_scale", to=1.0),
    "scales of no state": _set(*ENTRY, "exp_avg", to=lambda x: None),
    "codes as integers": _set(*ENTRY, "exp_avg", to=lambda x: x.view(np.uint8)),
    "codes in float16": _set(*ENTRY, "exp_avg", to=lambda x: x.astype(np.float16)),
    "codes of another shape": _set(*ENTRY, "exp_avg", to=lambda x: x.reshape(-1)),
    "bfloat16 of another shape": _set(*ENTRY, "exp_avg", to=lambda x: x[:5].astype(ml_dtypes.bfloat16)),
    "a master copy in bfloat16": _set(*ENTRY, "master", to=lambda x: x.astype(ml_dtypes.bfloat16)),
    "a master copy of another shape": _set(*ENTRY, "master", to=lambda x: x[1:]),
    "a master copy that is a list": _set(*ENTRY, "master", to=[1.0]),
    "a parameter in float32": _set("params", "w", to=lambda x: x.astype(np.float32)),
    "a parameter in float16": _set("params", "w", to=lambda x: x.astype(np.float16)),
    "a parameter as integers": _set("params", "w", to=lambda x: x.view(np.uint16)),
    "a storage that is a list": _set("optimizer", "storage", to=[1, 2]),
    "a storage that is a number": _set("optimizer", "storage", to=3),
    "an unknown state_dtype": _set("optimizer", "storage", "state_dtype", to="int4"),
    "a state_dtype that is a list": _set("optimizer", "storage", "state_dtype", to=["float8"]),
    "an unknown rounding": _set("optimizer", "storage", "rounding", to="up"),
    "a master that is text": _set("optimizer", "storage", "master", to="yes"),
    "a seed below 0": _set("optimizer", "storage", "seed", to=-1),
    "a seed beyond 64 bits": _set("optimizer", "storage", "seed", to=2**64),
    "a seed that is a float": _set("optimizer", "storage", "seed", to=1.5),
    "an unknown word": _set("optimizer", "storage", "bits", to=4),
}  # fmt: skip


def copied(tree):
    return {k: copied(x) for k, x in tree.items()} if isinstance(tree, dict) else copy.deepcopy(tree)


@pytest.mark.parametrize("storage", ["master copy", "bfloat16 everywhere"])  # as it is in the file; converted
@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_checkpoint_changes_nothing(what, storage, tmp_path):
    if storage != "master copy" and what.startswith("a master copy"):
        return  # it is left out there, whatever it is
    _, opt = trained("master copy")
    tree = copied(optimizer_tree(opt))
    format.write(tmp_path / "whole", tree, kind="optimizer")
    HOSTILE[what](tree)
    format.write(tmp_path / "file", tree, kind="optimizer")
    ours = model(storage, 1)
    target = optimizer(storage, ours, seed=1)
    target.step(gradients(ours, 0))
    before, kept = content(ours, target), target.state_dict()["storage"]
    with pytest.raises(CheckpointError):
        target.load(tmp_path / "file")
    assert content(ours, target) == before and target.state_dict()["storage"] == kept
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of another storage
        target.load(tmp_path / "whole")  # the control: it was the mutation


@pytest.mark.parametrize("storage", [{"state_dtype": "float8"}, {"state_dtype": "bfloat16"}, {}])
def test_states_in_float16_are_none_of_ours(storage):
    opt = fo.Adam(np.ones(4, np.float16), **storage)
    opt.step(np.ones(4, np.float16))
    before, saved = content({}, opt), opt.state_dict()
    saved["state"]["0"]["exp_avg"] = np.zeros(4, np.float16)
    with pytest.raises(TypeError, match=r"exp_avg of parameter '0': expected dtype .*, got float16"):
        opt.load_state_dict(saved)
    assert opt.load_state_dict(saved, strict=False).missing_keys == ["0"] and content({}, opt) == before


def test_a_checkpoint_without_master_copies_begins_with_new_ones(tmp_path):
    _, opt = trained("master copy")
    tree = copied(optimizer_tree(opt))
    for entry in tree["optimizer"]["state"].values():
        del entry["master"]
    format.write(tmp_path / "file", tree, kind="optimizer")
    ours = model("master copy", 1)
    target = optimizer("master copy", ours)
    target.load(tmp_path / "file")
    target.step(gradients(ours, 0))
    assert all(np.array_equal(x["master"].shape, ours[k].shape) for k, x in target.state.items())


def test_states_loaded_without_a_master_copy_are_not_begun_anew():
    grad, options = np.ones(4, np.float32), {"lr": 0.1, "momentum": 0.5, "dampening": 0.9}
    plain = fo.SGD(np.ones(4, np.float16), **options)
    plain.step(grad)
    copying = fo.SGD(np.ones(4, np.float16), **options, master=True)
    copying.load_state_dict(plain.state_dict())
    for opt in (plain, copying):
        opt.step(grad)  # dampened, as every step but that which makes the velocity
    assert np.array_equal(plain.state["0"]["momentum_buffer"], copying.state["0"]["momentum_buffer"])


def test_v_follows_gradients_that_fall_where_rounding_to_nearest_does_not():
    n, ratio = 2048, {}
    for name, options in {
        "float32": {},
        "bfloat16": {"state_dtype": "bfloat16"},
        "float8": {"state_dtype": "float8"},
        "nearest": {"state_dtype": "bfloat16", "rounding": "nearest"},
    }.items():
        rng = np.random.default_rng(0)
        scale = np.exp(rng.standard_normal(n)).astype(np.float32)
        opt = fo.Adam(np.zeros(n, np.float32), **options)
        for t in range(1, 1501):
            opt.step(rng.standard_normal(n).astype(np.float32) * scale * np.float32(0.1 if t > 500 else 1.0))
        entry = opt.state["0"]
        v = decoded(entry["exp_avg_sq"], entry.get("exp_avg_sq_scale"), options.get("state_dtype", "float32"), True)
        ratio[name] = float(np.median(v / scale**2))
    assert abs(ratio["bfloat16"] / ratio["float32"] - 1) < 0.05 and abs(ratio["float8"] / ratio["float32"] - 1) < 0.05
    assert abs(ratio["nearest"] / ratio["float32"] - 1) > 0.5, "the control"


def test_without_ml_dtypes_the_error_says_what_to_install():
    code = """
import sys
sys.modules["ml_dtypes"] = None
import numpy as np, fastoptim as fo
fo.SGD(np.ones(3, np.float16), lr=0.5).step(np.ones(3, np.float16))
try:
    fo.Adam(np.ones(3, np.float32), state_dtype="bfloat16")
except ImportError as error:
    assert "pip install ml_dtypes" in str(error), error
else:
    raise SystemExit("not refused")
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_states_take_the_bytes_that_they_should():
    p = np.ones(100_000, np.float32)
    for state_dtype, limit in (("bfloat16", 4.0), ("float8", 2.07)):
        opt = fo.Adam(p.copy(), state_dtype=state_dtype)
        opt.step(p)
        taken = sum(x.nbytes for name, x in opt.state["0"].items() if name != "step")
        assert taken / p.size <= limit


def test_the_same_key_is_used_for_no_two_arrays():
    """Equal values in two states and two parameters are rounded by different dithers."""
    opt = fo.Adam([np.zeros(4096, np.float32) for _ in range(2)], betas=(0.5, 0.5), state_dtype="bfloat16")
    opt.step([np.ones(4096, np.float32) * np.float32(1.2345)] * 2)
    codes = [opt.state[k][s].view(np.uint16) & 1 for k in "01" for s in ("exp_avg", "exp_avg_sq")]
    assert get_backend("c") and len({x.tobytes() for x in codes}) == 4


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("state_dtype", [None, "bfloat16", "float8"])
def test_averages_are_read_out_of_what_they_are_stored_in(dtype, state_dtype):
    wanted, ours = np.linspace(1, 2, 40, dtype=np.float32), np.linspace(1, 2, 40, dtype=np.float32).astype(dtype)
    plain, opt = fo.ScheduleFreeSGD(wanted, lr=0.1), fo.ScheduleFreeSGD(ours, lr=0.1, state_dtype=state_dtype)
    for i in range(3):
        g = np.random.default_rng(i).standard_normal(40).astype(np.float32)
        plain.step(g)
        opt.step(g)
    error = np.abs(opt.averaged().astype(np.float32) - plain.averaged()).max()
    step = {"float8": 2.0**-4, "bfloat16": 2.0**-8}.get(state_dtype, 0.0) + 2.0**-8 * (dtype != np.float32)
    assert opt.averaged().dtype == ours.dtype
    assert error <= 2.5 * 4 * step + 1e-6  # of up to 2.5, roundings of three steps and one


def test_a_master_copy_begins_at_the_first_step_and_apply_is_refused():
    w, wanted = (np.ones(3, np.float16) for _ in range(2))
    opt = fo.SGD(w, lr=0.5, master=True)
    assert not opt.step(np.full(3, np.nan, np.float32), skip_nonfinite=True).applied
    w[:] = wanted[:] = 8
    opt.step(np.ones(3, np.float32))
    assert w.tolist() == [7.5] * 3
    with pytest.raises(ValueError, match="apply steps what it is given"):
        opt.apply(wanted, np.ones(3, np.float32))
    assert opt.state["0"]["step"] == 1 and opt.state["0"]["master"].tolist() == [7.5] * 3


@pytest.mark.parametrize("state_dtype", ["bfloat16", "float8"])
def test_states_go_to_torch_as_what_they_stand_for(state_dtype):
    pytest.importorskip("torch", reason="LOUD: torch is missing (pip install torch)")
    opt = fo.Adam(np.ones(300, np.float32), state_dtype=state_dtype)
    for i in range(3):
        opt.step(np.random.default_rng(i).standard_normal(300).astype(np.float32))
    found, entry = fo.to_torch_state(opt)["state"][0], opt.state["0"]
    for name, square in (("exp_avg", False), ("exp_avg_sq", True)):
        wanted = decoded(entry[name], entry.get(name + "_scale"), state_dtype, square)
        assert np.array_equal(found[name].numpy(), wanted)
    with pytest.raises(TypeError, match="parameter '0' is float16: only states of float32 and float64"):
        half = fo.Adam(np.ones(3, np.float16))
        half.step(np.ones(3, np.float32))
        fo.to_torch_state(half)


def test_the_seed_of_16_bit_parameters_comes_along_although_all_else_is_the_default():
    p = np.ones(300, np.float16)
    opt = fo.SGD(p, lr=1e-3)
    opt.step(np.ones(300, np.float32))
    other, q = fo.SGD(p.copy(), lr=0.5, seed=9), p.copy()
    other.param_groups[0]["params"][0] = q
    other.load_state_dict(opt.state_dict())
    opt.step(np.ones(300, np.float32))
    other.step(np.ones(300, np.float32))
    assert p.tobytes() == q.tobytes()


def test_the_table_of_the_page_is_that_of_the_benchmark():
    path = Path(__file__).parents[2] / "benchmarks" / "precision.py"
    if not path.exists():
        pytest.skip("LOUD: no benchmarks beside the tests")
    script = runpy.run_path(str(path))
    results = json.loads(script["RESULTS"].read_text())
    text = script["DOCS"].read_text()
    assert text == script["written"](text, results), "run: python benchmarks/precision.py"
    unbiased = [storage for storage in script["STORAGES"] if "nearest" not in storage and storage != "float32"]
    for name, storage in product(script["TRAININGS"], unbiased):
        exact, found = results[name]["float32"], results[name][storage]
        assert abs(mean(found) - mean(exact)) < stdev(exact), (name, storage)
    ends = {storage: found["end"][1] for storage, found in results["fall"].items()}
    for storage in ("bfloat16 states", "float8 states"):
        assert abs(ends[storage] / ends["float32"] - 1) < 0.05
    assert ends["bfloat16 states, to nearest"] > 10 * ends["float32"]


def test_entries_keep_their_order():
    """Two checkpoints of one state are the same file, whether it was loaded or not."""
    opt = fo.Adam(np.ones((3, 200), np.float16), state_dtype="float8", master=True, amsgrad=True)
    opt.step(np.ones((3, 200), np.float16))
    saved = opt.state_dict()
    opt.load_state_dict(saved)
    for _ in range(2):
        assert list(opt.state_dict()["state"]["0"]) == list(saved["state"]["0"])
        opt.step(np.ones((3, 200), np.float16))
