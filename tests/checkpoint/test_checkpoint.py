"""Checkpoints: what was written comes back bit by bit; whatever else the file holds gets CheckpointError."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import fastoptim as fo
from fastoptim.backends import available
from fastoptim.checkpoint import files, format, slices
from fastoptim.checkpoint.files import CheckpointError
from tests.proofs.fuzz_checkpoint import save_slices
from tests.support import PROOFS
from tests.support.forks import in_child
from tests.support.platforms import needs_posix

BACKENDS = [name for name in ("numpy", "c", "numba") if available(name) is None]

MAKERS = {
    "sgd": lambda params, **k: fo.SGD(params, lr=0.1, **k),
    "momentum": lambda params, **k: fo.SGD(params, lr=0.1, momentum=0.9, dampening=0.3, **k),
    "nesterov": lambda params, **k: fo.SGD(params, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1, **k),
    "adam": lambda params, **k: fo.Adam(params, betas=(0.8, 0.9), eps_mode="hat", **k),
    "amsgrad": lambda params, **k: fo.Adam(params, amsgrad=True, maximize=True, **k),
    "adamw": fo.AdamW,
}


def tree_of_params(seed=0):
    """Every layout: C, Fortran, strided, 0-d, empty, one element; both dtypes."""
    rng = np.random.default_rng(seed)
    return {
        "C": rng.standard_normal((3, 5)).astype(np.float32),
        "F": np.asfortranarray(rng.standard_normal((4, 3))),
        "nested": [rng.standard_normal((6, 4))[::2, ::-1], {"0-d": np.array(rng.standard_normal())}],
        "empty": np.zeros((0, 3), np.float32),
        "one": rng.standard_normal(1).astype(np.float32),
    }


def flatten(tree):
    if isinstance(tree, dict):
        return [x for value in tree.values() for x in flatten(value)]
    return [x for value in tree for x in flatten(value)] if isinstance(tree, list) else [tree]


def like(tree, make):
    if isinstance(tree, dict):
        return {key: like(value, make) for key, value in tree.items()}
    return [like(value, make) for value in tree] if isinstance(tree, list) else make(tree)


def gradients(params, seed):
    rng = np.random.default_rng(seed)
    return like(params, lambda p: np.asarray(rng.standard_normal(p.shape), p.dtype))


def everything(params, optimizer):
    state = optimizer.state_dict()
    arrays = [*flatten(params), *(x for entry in state["state"].values() for x in entry.values())]
    return b"".join(np.asarray(x).tobytes() for x in arrays), state["param_groups"]


def small(path):
    """A small checkpoint file, its optimizer and its bytes."""
    params = {"w": np.arange(6.0).reshape(2, 3), "b": np.zeros(1)}
    optimizer = fo.SGD(params, lr=0.1, momentum=0.9)
    optimizer.step({"w": np.ones((2, 3)), "b": np.ones(1)})
    optimizer.save(path)
    return params, optimizer, path.read_bytes()


def signed(data):
    """`data` with the checksum that belongs to it."""
    at = 8 + len(format.PREFIX)
    blank = data[:at] + b"0" * 64 + data[at + 64 :]
    return data[:at] + hashlib.sha256(blank).hexdigest().encode() + data[at + 64 :]


def rewritten(data, change):
    """`data` with its header changed by a function of the parsed header, and a valid checksum."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header, separators=(",", ":")).encode()
    return signed(len(text).to_bytes(8, "little") + text + data[8 + length :])


# --- There and back -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MAKERS)
def test_an_optimizer_goes_on_bit_by_bit_on_any_backend(tmp_path, kind):
    params = tree_of_params()
    optimizer = MAKERS[kind](params, backend="numpy")
    for seed in range(3):
        optimizer.step(gradients(params, seed))
    partial = gradients(params, 3)
    partial["C"] = None  # its step count parts from the others'
    optimizer.step(partial)
    optimizer.save(tmp_path / "a.ckpt")
    saved = everything(params, optimizer)
    for seed in range(4, 7):
        optimizer.step(gradients(params, seed))
    expected = everything(params, optimizer)
    assert expected != saved
    for backend in BACKENDS:
        fresh = tree_of_params(seed=9)
        again = MAKERS[kind](fresh, backend=backend)
        again.load(tmp_path / "a.ckpt")
        assert everything(fresh, again) == saved
        for seed in range(4, 7):
            again.step(gradients(params, seed))
        assert everything(fresh, again) == expected


def test_trees_keep_values_types_dtypes_and_orders(tmp_path):
    rng = np.random.default_rng(0)
    tree = {
        "plain": [None, True, False, 0, -1, 2**200, 0.1, -0.0, "ä\ud800\0", []],
        "float": [math.inf, -math.inf, 5e-324, 1e308],
        "tuple": ((0.9, 0.999), (), [(1,)]),
        "$odd": {1: "one", (2, 3): "two", None: {"$tensor": "not one"}, "x": {}},
        "scalars": [np.float32(0.1), np.int8(-3), np.bool_(True), np.float64(2.5)],
        "a/b": {"c": np.ones(2)},
        "a": {"b/c": np.zeros(2)},
        "F": np.asfortranarray(rng.standard_normal((3, 4))),
        "strided": rng.standard_normal((6, 6))[::2, ::3],
        "big-endian": np.arange(3.0).astype(">f8"),
    }
    for dtype in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?", "c8"):
        tree[dtype] = (rng.standard_normal((2, 3)) * 100).astype(dtype)
    ml_dtypes = pytest.importorskip("ml_dtypes")
    tree["bf16"] = np.arange(4).astype(ml_dtypes.bfloat16)
    format.write(tmp_path / "t.ckpt", tree, kind="test")
    again = format.read(tmp_path / "t.ckpt", kind="test")

    def same(a, b):
        if isinstance(a, np.ndarray):
            return type(b) is np.ndarray and a.dtype == b.dtype.newbyteorder(a.dtype.byteorder) and np.array_equal(a, b)
        if isinstance(a, dict):
            return type(b) is dict and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
        if isinstance(a, (list, tuple)):
            return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
        return type(a) is type(b) and a == b and (a != 0 or math.copysign(1, a) == math.copysign(1, b))

    assert same(tree, again)
    assert again["F"].flags.f_contiguous and again["big-endian"].dtype.isnative
    format.write(tmp_path / "t.ckpt", math.nan, kind="test")
    assert math.isnan(format.read(tmp_path / "t.ckpt", kind="test"))


def test_the_name_that_safetensors_keeps_for_itself(tmp_path):
    path = tmp_path / "a.ckpt"
    for key in ("__metadata__", "__metadata__'"):
        tree = {key: np.arange(3.0), "__metadata__" + "'" * 2: 1}
        format.write(path, tree, kind="test")
        again = format.read(path, kind="test")
        assert list(again) == list(tree) and np.array_equal(again[key], tree[key])


def test_hyperparameters_may_be_arrays(tmp_path):
    optimizer = fo.Adam(np.ones(2), lr=np.array(0.1), betas=np.array([0.8, 0.9]))
    optimizer.step(np.ones(2))
    optimizer.save(tmp_path / "a.ckpt")
    again = fo.Adam(np.ones(2))
    again.load(tmp_path / "a.ckpt")
    group = again.param_groups[0]
    assert type(group["lr"]) is float and group["lr"] == 0.1 and tuple(group["betas"]) == (0.8, 0.9)
    for each in (optimizer, again):
        each.step(np.full(2, 0.3))
    assert optimizer.param_groups[0]["params"][0].tobytes() == again.param_groups[0]["params"][0].tobytes()
    optimizer = fo.Adam(np.ones(2), betas=(np.array(0.8), 0.9))
    optimizer.save(tmp_path / "a.ckpt")
    optimizer.load(tmp_path / "a.ckpt")


def test_the_safetensors_library_reads_the_same(tmp_path):
    library = pytest.importorskip("safetensors.numpy")
    params = tree_of_params()
    optimizer = fo.Adam(params)
    optimizer.step(gradients(params, 0))
    optimizer.save(tmp_path / "a.ckpt")
    arrays = library.load_file(tmp_path / "a.ckpt")
    assert np.array_equal(arrays["params/F"], params["F"]) and np.array_equal(arrays["params/C"], params["C"])
    assert np.array_equal(arrays["params/nested.1.0-d"], params["nested"][1]["0-d"])
    assert np.array_equal(arrays["optimizer/state/F/exp_avg"], optimizer.state["F"]["exp_avg"])
    assert len(arrays) == 3 * 6


def test_loading_reads_and_copies(tmp_path):
    params, optimizer, _ = small(tmp_path / "a.ckpt")
    expected = everything(params, optimizer)
    optimizer.load(tmp_path / "a.ckpt")
    with open(tmp_path / "a.ckpt", "r+b") as file:
        file.write(b"\xff" * os.path.getsize(tmp_path / "a.ckpt"))
    assert everything(params, optimizer) == expected


def test_a_state_may_not_be_saved_while_somebody_steps(tmp_path):
    _, optimizer, _ = small(tmp_path / "a.ckpt")
    with ThreadPoolExecutor(1) as other, optimizer._locked():
        for call in (optimizer.save, optimizer.load):
            error = other.submit(call, tmp_path / "a.ckpt").exception()
            assert isinstance(error, RuntimeError) and "another thread" in str(error)


# --- Writing ----------------------------------------------------------------------------------------------------------


def test_the_previous_checkpoint_stays(tmp_path):
    path = tmp_path / "a.ckpt"
    for number in range(3):
        format.write(path, number, kind="test")
    assert format.read(path, kind="test") == 2
    assert format.read(files.previous_path(path), kind="test") == 1
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.ckpt", "a.ckpt.previous"]
    format.write(path, 3, kind="test", keep_previous=False)
    assert format.read(files.previous_path(path), kind="test") == 1


def test_without_hard_links_it_works_too(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    for number in range(3):
        format.write(tmp_path / "a.ckpt", number, kind="test")
    assert format.read(tmp_path / "a.ckpt", kind="test") == 2
    assert format.read(files.previous_path(tmp_path / "a.ckpt"), kind="test") == 1


def test_a_damaged_file_takes_no_good_ones_place(tmp_path, monkeypatch):
    """Neither one that was found damaged nor one that this process has not looked at."""
    path = tmp_path / "a.ckpt"
    previous = files.previous_path(path)

    def interrupted(*arguments):
        raise KeyboardInterrupt

    for looked_at in (True, False):
        path.unlink(missing_ok=True)
        for number in (1, 2):
            format.write(path, number, kind="test")
        times = path.stat()
        path.write_bytes(path.read_bytes()[:-1] + b"?")
        if looked_at:  # the disk's fault, which leaves no other trace
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
            assert format.read_latest(path, kind="test", warn=lambda text: None) == 1
        else:
            format._intact.clear()
        replace = os.replace
        for count in range(2):  # interrupted before the first and before the second of what would be two renames
            calls = iter([replace] * count + [interrupted])
            monkeypatch.setattr(os, "replace", lambda *arguments, calls=calls: next(calls)(*arguments))
            with contextlib.suppress(KeyboardInterrupt, StopIteration):
                format.write(path, 3, kind="test")
            monkeypatch.setattr(os, "replace", replace)
            assert format.read_latest(path, kind="test", warn=lambda text: None) in (1, 3)
            assert format.read(previous, kind="test") == 1
        format.write(path, 4, kind="test")
        assert format.read(previous, kind="test") == 3  # a good one does
    (tmp_path / "note").write_text("precious")
    format.write(tmp_path / "note", 1, kind="test")
    assert (tmp_path / "note.previous").read_text() == "precious"


@pytest.mark.parametrize("name", ["folder", "pipe", "link", "before"])
def test_what_is_no_file_is_not_replaced(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("precious")
    (tmp_path / "before.previous").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    os.mkfifo(tmp_path / "pipe")
    before = sorted(tmp_path.rglob("*"))
    optimizer = fo.SGD(np.ones(2))
    with pytest.raises(ValueError, match="is a folder or device"):
        optimizer.save(tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before


@needs_posix
def test_links_modes_and_relative_paths(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link.ckpt").symlink_to(tmp_path / "real" / "a.ckpt")
    before = os.umask(0o027)
    try:
        format.write(tmp_path / "link.ckpt", 1, kind="test")
    finally:
        os.umask(before)
    assert (tmp_path / "link.ckpt").is_symlink() and (tmp_path / "real" / "a.ckpt").stat().st_mode & 0o777 == 0o640
    files.replace(tmp_path / "link.ckpt", b"a picture")
    assert (tmp_path / "link.ckpt").is_symlink() and (tmp_path / "real" / "a.ckpt").read_bytes() == b"a picture"
    monkeypatch.chdir(tmp_path)
    format.write("b.ckpt", 2, kind="test")
    assert format.read("b.ckpt", kind="test") == 2
    with pytest.raises(FileNotFoundError):
        format.write(tmp_path / "missing" / "a.ckpt", 1, kind="test")


def test_a_header_that_could_not_be_read_is_not_written(tmp_path, monkeypatch):
    format.write(tmp_path / "a.ckpt", list(range(3000)), kind="test")
    monkeypatch.setattr(format, "MAX_HEADER", 10_000)
    with pytest.raises(ValueError, match="store numbers in arrays"):
        format.write(tmp_path / "b.ckpt", list(range(3000)), kind="test")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.ckpt"]
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        format.read(tmp_path / "a.ckpt", kind="test")


def test_killed_before_any_system_call_a_checkpoint_is_there(tmp_path):
    """The child dies right before its n-th call that touches the file system, or in the middle of a write."""
    path = tmp_path / "a.ckpt"
    big = np.arange(50_000.0)

    def deadly(n):
        count = iter(range(1000))

        def wrap(function):
            def call(*arguments, **options):
                if next(count) == n:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **options)

            return call

        for name in ("open", "fsync", "link", "replace", "unlink", "fdopen", "listdir"):
            setattr(os, name, wrap(getattr(os, name)))
        format.write_file, write = None, format.write_file

        def halfway(file, header, arrays):
            if next(count) == n:
                file.write(b"x" * 100_000)
                file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            write(file, header, arrays)

        format.write_file = halfway

    format.write(path, {"number": 0, "x": big}, kind="test")
    ends = []
    for n in range(40):

        def save(n=n):
            deadly(n)
            format.write(path, {"number": n + 1, "x": big + n}, kind="test")
            return True

        last = format.read(path, kind="test")["number"]
        ends.append(in_child(save))
        number = format.read(path, kind="test")["number"]
        assert number == n + 1 if ends[-1] == 0 else number in (last, n + 1)
        if os.path.exists(files.previous_path(path)):
            format.read(files.previous_path(path), kind="test")
        if ends[-3:] == [0, 0, 0]:
            break
    assert ends.count(-signal.SIGKILL) >= 8 and ends[-3:] == [0, 0, 0]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.ckpt", "a.ckpt.previous"]


@needs_posix
def test_everything_is_synced_in_this_order(tmp_path, monkeypatch):
    path = tmp_path / "a.ckpt"
    format.write(path, 0, kind="test")
    calls = []

    def watch(name):
        function = getattr(os, name)

        def call(*arguments):
            target = os.readlink(f"/proc/self/fd/{arguments[0]}") if name == "fsync" else os.fspath(arguments[-1])
            calls.append((name, Path(target).name.split(".")[-1]))
            return function(*arguments)

        monkeypatch.setattr(os, name, call)

    for name in ("fsync", "link", "replace"):
        watch(name)
    format.write(path, 1, kind="test")
    assert calls == [
        ("fsync", "tmp"),
        ("link", "tmp"),
        ("replace", "previous"),
        ("replace", "ckpt"),
        ("fsync", tmp_path.name),
    ]


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path):
    path = tmp_path / "a.ckpt"
    format.write(path, 1, kind="test")

    def fill():
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, resource.RLIM_INFINITY))
        with contextlib.suppress(OSError):
            format.write(path, np.zeros(100_000), kind="test")
            os._exit(3)
        return True

    assert in_child(fill) == 0
    assert format.read(path, kind="test") == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.ckpt"]


def test_what_dead_writers_left_is_removed_what_live_ones_write_is_not(tmp_path):
    dead, live, other = (
        tmp_path / name for name in (".a.ckpt.0badf00d.tmp", ".a.ckpt.11fe11fe.tmp", ".b.ckpt.00000000.tmp")
    )
    for path in (dead, live, other):
        path.write_bytes(b"half")
    with open(live, "rb") as file:
        files.fcntl.flock(file, files.fcntl.LOCK_EX)
        format.write(tmp_path / "a.ckpt", 1, kind="test")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [live.name, other.name, "a.ckpt"]


def test_a_writer_locks_its_file_as_long_as_it_lives(tmp_path):
    target = str(tmp_path / "a.ckpt")
    with files.temporary_file(target) as (_, temporary):
        format.write(target, 1, kind="test")
        assert os.path.exists(temporary)


def test_a_file_that_was_removed_before_it_was_locked_is_made_anew(tmp_path, monkeypatch):
    flock, removed = files.fcntl.flock, []

    def late(file, operation):
        if not removed:
            removed.extend(tmp_path.iterdir())
            removed[0].unlink()
        flock(file, operation)

    monkeypatch.setattr(files.fcntl, "flock", late)
    format.write(tmp_path / "a.ckpt", 1, kind="test")
    assert len(removed) == 1 and format.read(tmp_path / "a.ckpt", kind="test") == 1


def test_arrays_are_aligned_within_the_file(tmp_path):
    """Readers that map the file into memory need that."""
    for length in range(8):
        tree = {"x" * length + "i1": np.ones(3, np.int8), "f4": np.ones(3, np.float32), "f8": np.ones(1), "c": "y"}
        format.write(tmp_path / "a.ckpt", tree, kind="test")
        data = (tmp_path / "a.ckpt").read_bytes()
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        assert (8 + size + header["f8"]["data_offsets"][0]) % 8 == 0
        assert (8 + size + header["f4"]["data_offsets"][0]) % 4 == 0


# --- Refusing ---------------------------------------------------------------------------------------------------------


def test_every_flipped_bit_and_every_cut_is_noticed(tmp_path):
    path = tmp_path / "a.ckpt"
    params, optimizer, data = small(path)
    before = everything(params, optimizer)
    assert 1000 < len(data) < 3000
    altered = [data[:i] + bytes([data[i] ^ (1 << i % 8)]) + data[i + 1 :] for i in range(len(data))]
    altered += [data[:i] for i in range(0, len(data), 7)] + [data + b"\0"]
    for content in altered:
        path.write_bytes(content)
        with pytest.raises(CheckpointError):
            optimizer.load(path)
    assert everything(params, optimizer) == before


def replaced(name, value):
    def change(header):
        header["__metadata__"][name] = value

    return change


def in_tree(*path, value):
    def change(header):
        tree = json.loads(header["__metadata__"]["tree"])
        inner = tree
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        header["__metadata__"]["tree"] = json.dumps(tree)

    return change


def in_array(name, key, value):
    def change(header):
        header[name][key] = value

    return change


SIGNED = {
    "newer version": (replaced("version", "2"), "format version 2.*reads version 1"),
    "no version": (replaced("version", "1.0"), "version"),
    "huge version": (replaced("version", "9" * 4000), "version"),
    "other format": (replaced("format", "other"), "not a checkpoint of fastoptim"),
    "number in metadata": (replaced("kind", 3), "not a checkpoint of fastoptim"),
    "other kind": (replaced("kind", "training_data"), "kind 'training_data'"),
    "tree is no JSON": (replaced("tree", "{"), "malformed"),
    "deep tree": (replaced("tree", "[" * 100_000), "malformed"),
    "NaN": (replaced("tree", "NaN"), "NaN"),
    "name twice": (replaced("tree", '{"a":1,"a":2}'), "twice"),
    "tree is a list": (replaced("tree", "[]"), "no array|tree does not name"),
    "dtype": (in_array("params/b", "dtype", "F128"), "malformed"),
    "dtype list": (in_array("params/b", "dtype", []), "malformed"),
    "shape negative": (in_array("params/b", "shape", [-1]), "impossible shape"),
    "shape huge": (in_array("params/b", "shape", [2**62, 2**62]), "not where"),
    "shape empty and huge": (in_array("params/b", "shape", [0, 2**62]), "not where"),
    "shape long": (in_array("params/b", "shape", [1] * 33), "impossible shape"),
    "shape no list": (in_array("params/b", "shape", 1), "described"),
    "offsets overlap": (in_array("params/b", "data_offsets", [0, 8]), "not where"),
    "offsets float": (in_array("params/w", "data_offsets", [0.0, 48.0]), "not where"),
    "offsets beyond": (in_array("params/w", "data_offsets", [0, 2**63]), "not where"),
    "unknown entry": (in_array("params/b", "more", 1), "described"),
    "array used twice": (in_tree("params", "b", value={"$tensor": "params/w"}), "malformed"),
    "array unknown": (in_tree("params", "b", value={"$tensor": "nowhere"}), "malformed"),
    "lr": (in_tree("optimizer", "param_groups", 0, "lr", value=-1.0), "lr must be"),
    "lr array": (in_tree("optimizer", "param_groups", 0, "lr", value={"$items": []}), "is an array|hyper"),
    "lr huge": (in_tree("optimizer", "param_groups", 0, "lr", value=10**400), "does not fit"),
    "step": (in_tree("optimizer", "state", "w", "step", value=2**63), "int64"),
    "step float": (in_tree("optimizer", "state", "w", "step", value=1.0), "int64"),
    "step negative": (in_tree("optimizer", "state", "w", "step", value=-1), "step"),
    "optimizer": (in_tree("optimizer", "optimizer", value="Adam"), "Adam"),
    "groups": (in_tree("optimizer", "param_groups", value=[]), "groups"),
    "no optimizer": (in_tree("optimizer", "state", value=None), "does not name"),
    "tree is a number": (replaced("tree", "3"), "does not name"),
    "state is a list": (in_tree("optimizer", "param_groups", value=[3]), "does not fit"),
}


@pytest.mark.parametrize("name", SIGNED)
def test_hostile_content_behind_a_valid_checksum(tmp_path, name):
    path = tmp_path / "a.ckpt"
    params, optimizer, data = small(path)
    before = everything(params, optimizer)
    change, message = SIGNED[name]
    path.write_bytes(rewritten(data, change))
    with pytest.raises(CheckpointError, match=message):
        optimizer.load(path)
    assert everything(params, optimizer) == before
    path.write_bytes(rewritten(data, lambda header: None))
    optimizer.load(path)


def test_bytes_behind_the_arrays_are_refused(tmp_path):
    path = tmp_path / "a.ckpt"
    _, optimizer, data = small(path)
    path.write_bytes(signed(data + bytes(8)))
    with pytest.raises(CheckpointError, match="belong to no array"):
        optimizer.load(path)


def test_a_truth_value_is_zero_or_one(tmp_path):
    path = tmp_path / "a.ckpt"
    format.write(path, np.array([True, False, True]), kind="test")
    path.write_bytes(signed(path.read_bytes()[:-1] + b"\2"))
    with pytest.raises(CheckpointError, match="truth value"):
        format.read(path, kind="test")


def test_shapes_and_dtypes_count_without_states_too(tmp_path):
    path = tmp_path / "a.ckpt"
    fo.SGD({"w": np.ones((2, 3))}).save(path)
    for w in (np.zeros((2, 3), np.float32), np.zeros((1, 2, 3)), np.zeros((4, 2, 3)), np.zeros((3, 2))):
        with pytest.raises(CheckpointError, match=r"'w' has shape .* here, \(2, 3\) and float64 in the file$"):
            fo.SGD({"w": w}).load(path)
        assert not w.any()
    with pytest.raises(CheckpointError, match=r"the file lacks \['v'\], the model lacks \['w'\]; .*strict=False"):
        fo.SGD({"v": np.zeros((2, 3))}).load(path)


def test_a_missing_or_damaged_file_is_told_with_the_one_before_it(tmp_path):
    path, optimizer = tmp_path / "a.ckpt", fo.SGD(np.ones(3))
    optimizer.save(path)
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(CheckpointError, match=r"checksum does not match its content$"):
        optimizer.load(path)
    shutil.copy(path, files.previous_path(path))
    with pytest.raises(CheckpointError, match=r"checksum .*; the checkpoint before it is a\.ckpt\.previous$"):
        optimizer.load(path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"; the checkpoint before it is a\.ckpt\.previous: ") as caught:
        optimizer.load(path)
    assert caught.value.errno == errno.ENOENT and caught.value.filename == str(path)


def test_other_files_are_refused(tmp_path):
    _, optimizer, _ = small(tmp_path / "a.ckpt")
    library = pytest.importorskip("safetensors.numpy")
    library.save_file({"w": np.zeros(3)}, tmp_path / "plain.safetensors")
    np.save(tmp_path / "x.npy", np.zeros(300))
    (tmp_path / "x.pickle").write_bytes(pickle.dumps({"w": np.zeros(300)}))
    (tmp_path / "empty").touch()
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("plain.safetensors", "x.npy", "x.pickle", "empty", "folder", "pipe"):
        with pytest.raises(CheckpointError, match=name):
            optimizer.load(tmp_path / name)
    with pytest.raises(CheckpointError, match="regular"):
        optimizer.load("/dev/zero")
    with pytest.raises(FileNotFoundError):
        optimizer.load(tmp_path / "nowhere")


def test_another_model_or_optimizer_is_refused_whole(tmp_path):
    path = tmp_path / "a.ckpt"
    small(path)
    w, b = np.full((2, 3), 7.0), np.full(1, 7.0)
    for params, make in (
        ({"w": w}, fo.SGD),
        ({"w": w, "c": b}, fo.SGD),
        ({"w": w, "b": b, "c": b.copy()}, fo.SGD),
        ({"w": w.reshape(3, 2), "b": b}, fo.SGD),
        ({"w": w.astype(np.float32), "b": b}, fo.SGD),
        ([{"params": {"w": w, "b": b}}], fo.SGD),
        ({"w": w, "b": b}, fo.Adam),
    ):
        optimizer = make(params)
        with pytest.raises(CheckpointError):
            optimizer.load(path)
        assert np.all(w == 7.0) and np.all(b == 7.0)
        assert all(entry["step"] == 0 for entry in optimizer.state.values())
    fo.SGD({"b": b, "w": w}).load(path)  # parameters are found by name, in any order
    assert not np.any(w == 7.0)
    w[...] = b[...] = 7.0
    optimizer = fo.SGD({"w": w, "b": b})
    w.flags.writeable = False
    with pytest.raises(CheckpointError, match="read-only"):
        optimizer.load(path)
    assert np.all(b == 7.0) and optimizer.lr == 1e-3


def peak_of(action):
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_is_a_small_multiple_of_the_file(tmp_path):
    """The worst that JSON can do per byte is an empty list in two or three, some thirty times as much memory."""
    path = tmp_path / "a.ckpt"
    _, optimizer, data = small(path)
    lists = "[" + "[]," * 60_000 + "[]]"
    contents = {
        "tree": rewritten(data, replaced("tree", lists)),
        "header": rewritten(data, lambda header: header.update(x=json.loads(lists))),
        "length": (2**63).to_bytes(8, "little") + data[8:],
        "offsets": rewritten(data, in_array("params/w", "data_offsets", [0, 2**62])),
        "shape": rewritten(data, in_array("params/w", "shape", [2**40, 3])),
    }
    for name, content in contents.items():
        path.write_bytes(content)

        def load():
            with pytest.raises(CheckpointError):
                optimizer.load(path)

        assert peak_of(load) < 60 * len(content) + 2**20 + 2**18, name  # a MiB is read at a time


def test_saving_and_loading_need_no_second_copy_of_the_file(tmp_path):
    params = np.zeros(1_000_000, np.float32)
    optimizer = fo.SGD(params)
    path = tmp_path / "a.ckpt"
    assert peak_of(lambda: optimizer.save(path)) < 2**20
    assert peak_of(lambda: optimizer.load(path)) < params.nbytes + 2 * 2**20


# --- Slices -----------------------------------------------------------------------------------------------------------


def sliced(path):
    """A checkpoint in two slices: its parameters, an optimizer of others, and what the saved ones hold."""
    params, optimizer, _ = small(path)
    save_slices(optimizer, path)
    fresh = {"w": np.full((2, 3), 7.0), "b": np.full(1, 7.0)}
    return fresh, fo.SGD(fresh, momentum=0.5), everything(params, optimizer)


def altered(path, kind, change):
    """Rewrite a file of a checkpoint with its tree changed."""
    tree = format.read(path, kind=kind)
    change(tree)
    format.write(path, tree, kind=kind, keep_previous=False)


def test_slices_make_up_the_whole(tmp_path):
    path = tmp_path / "a.ckpt"
    params, optimizer, saved = sliced(path)
    optimizer.load(path)
    assert everything(params, optimizer) == saved
    part = slices.read_slices(path, format.read(path, kind="slices"), {"w": (2, 6)})["w"]  # as another rank asks
    assert part["parameter"].tolist() == params["w"].reshape(-1)[2:].tolist()


def of_slice(change):
    def alter(path):
        altered(next(path.parent.glob(f"{path.name}.*.1")), "slice", change)

    return alter


def elsewhere(path):
    other = path.parent / "other"
    other.mkdir()
    found = next(path.parent.glob(f"{path.name}.*.1"))
    found.rename(other / found.name)
    altered(path, "slices", lambda tree: tree["slices"][1].update(file=f"other/{found.name}"))


def first_part(i, make):
    def change(tree):
        part = next(part for part in tree["parts"] if part[0] == "w")
        part[i] = make(part[i])

    return change


BROKEN_SLICES = {
    "of another checkpoint": (of_slice(lambda tree: tree.update(token="f" * 16)), "another checkpoint"),
    "missing": (lambda path: next(path.parent.glob(f"{path.name}.*.1")).unlink(), "missing"),
    "elsewhere": (elsewhere, "not beside"),
    "not named": (lambda path: altered(path, "slices", lambda tree: tree["slices"].pop()), "do not make up the whole"),
    "hole": (of_slice(lambda tree: tree["parts"].remove(next(p for p in tree["parts"] if p[0] == "w"))), "the whole"),
    "step": (of_slice(first_part(3, lambda numbers: {"step": numbers["step"] + 1})), "differ in what they say"),
    "states": (of_slice(first_part(4, lambda arrays: arrays | {"exp_avg": arrays["parameter"]})), "differ in what"),
    "dtype": (
        of_slice(first_part(4, lambda arrays: {name: x.astype(np.float32) for name, x in arrays.items()})),
        "not of dtype",
    ),
}


@pytest.mark.parametrize("name", BROKEN_SLICES)
def test_slices_that_do_not_belong_together_are_refused(tmp_path, name):
    params, optimizer, _ = sliced(tmp_path / "a.ckpt")
    change, message = BROKEN_SLICES[name]
    change(tmp_path / "a.ckpt")
    before = everything(params, optimizer)
    with pytest.raises(CheckpointError, match=message):
        optimizer.load(tmp_path / "a.ckpt")
    assert everything(params, optimizer) == before


def test_only_slices_that_no_checkpoint_names_are_removed(tmp_path):
    path = tmp_path / "a.ckpt"
    tokens = ["0" * 16, "1" * 16, "2" * 16]
    for token in tokens:
        for rank in range(2):
            format.write(slices.slice_path(str(path), token, rank), {}, kind="slice", keep_previous=False)
        named = [{"file": f"a.ckpt.{token}.{rank}", "parts": []} for rank in range(2)]
        format.write(path, {"slices": named}, kind="slices")
        (tmp_path / f"b.ckpt.{token}.0").touch()
    slices.remove_old_slices(str(path))
    left = {
        entry.name for entry in tmp_path.iterdir() if entry.name.startswith("a.ckpt.") and entry.suffix != ".previous"
    }
    assert left == {f"a.ckpt.{token}.{rank}" for token in tokens[1:] for rank in range(2)}
    assert len(list(tmp_path.glob("b.ckpt.*"))) == 3


# --- Samples of the long proofs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "arguments", "expected"),
    [
        ("fuzz_checkpoint.py", ["--files", "600", "--seed", "7"], "0 failures"),
        (
            "kill_save.py",
            ["--kills", "20", "--control", "60", "--seed", "7"],
            "0 checkpoints lost",
        ),
        ("kill_resume.py", ["--trials", "1", "--seed", "7"], "0 results differ"),
    ],
)
def test_a_sample_of(script, arguments, expected):
    done = subprocess.run([sys.executable, PROOFS / script, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert expected in done.stdout
