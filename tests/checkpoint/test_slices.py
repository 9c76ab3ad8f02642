"""Slices: only our own outdated files are removed, and hostile ones cannot ask for memory that they do not have."""

from __future__ import annotations

import os

import numpy as np
import pytest

import fastoptim as fo
from fastoptim.checkpoint import files, format, slices
from fastoptim.checkpoint.files import CheckpointError
from tests.checkpoint.test_checkpoint import altered
from tests.proofs.fuzz_checkpoint import save_slices

TOKEN = "0123456789abcdef"


def optimizer_of(value=1.0):
    optimizer = fo.SGD({"w": np.full((3, 4), value, np.float32), "b": np.full((), value)}, momentum=0.9)
    optimizer.step({"w": np.ones((3, 4), np.float32), "b": np.float64(1.0)})
    return optimizer


def names(folder):
    return {entry.name for entry in folder.iterdir()}


def test_only_checkpoints_of_ours_are_removed(tmp_path):
    """Whatever matched ``<checkpoint>.optimizer-*`` was removed."""
    optimizer = optimizer_of()
    for number in (3, 5, 7):
        save_slices(optimizer, tmp_path / f"run.ckpt.optimizer-{number}")
    save_slices(optimizer, tmp_path / "run.ckpt.optimizer-5")  # twice, so that there is a previous one
    save_slices(optimizer, tmp_path / "run.ckpt.optimizer-50")
    optimizer.save(tmp_path / "run.ckpt.optimizer-9")  # of a single process
    left_behind = f".run.ckpt.optimizer-3.{TOKEN}.1.00c0ffee.tmp"
    (tmp_path / left_behind).write_bytes(b"half a slice")
    ours = names(tmp_path)
    assert "run.ckpt.optimizer-5.previous" in ours
    theirs = {
        "run.ckpt.optimizer-notes.txt": b"precious",
        "run.ckpt.optimizer-3.bak": (tmp_path / "run.ckpt.optimizer-3").read_bytes(),
        "run.ckpt.optimizer-8": b"not a checkpoint, but named like one",
        f"run.ckpt.optimizer-3.{TOKEN}.7": b"nor this a slice",
        "run.ckpt.optimizer-": b"",
        "run2.ckpt.optimizer-3": (tmp_path / "run.ckpt.optimizer-3").read_bytes(),
        "runxckpt.optimizer-3": (tmp_path / "run.ckpt.optimizer-3").read_bytes(),
        f".run.ckpt.optimizer-4.{TOKEN}.1.notes.tmp": b"precious",
    }
    for name, content in theirs.items():
        (tmp_path / name).write_bytes(content)
    fo.SGD(np.ones(2)).save(tmp_path / "run.ckpt")
    format.write(tmp_path / "run.ckpt.optimizer-11", {"loop": {}}, kind="training")  # of another kind
    (tmp_path / "run.ckpt.optimizer-12").mkdir()
    (tmp_path / "run.ckpt.optimizer-13").symlink_to(tmp_path / "run.ckpt.optimizer-3")
    os.mkfifo(tmp_path / "run.ckpt.optimizer-14")
    theirs = names(tmp_path) - ours
    slices.remove_checkpoints(str(tmp_path), [f"run.ckpt.optimizer-{n}" for n in (3, 8, 9, 11, 12, 13, 14, 50)])
    kept = {name for name in ours if name.startswith(("run.ckpt.optimizer-5.", "run.ckpt.optimizer-7"))}
    assert names(tmp_path) == theirs | kept | {"run.ckpt.optimizer-5"}
    optimizer.load(tmp_path / "run.ckpt.optimizer-7")
    optimizer.load(tmp_path / "run.ckpt.optimizer-5.previous")


def test_old_slices_are_removed_by_what_they_are(tmp_path):
    optimizer, path = optimizer_of(), tmp_path / "a.ckpt"
    save_slices(optimizer, path)
    named = names(tmp_path)
    old, foreign, half, live = (f"a.ckpt.{digit * 16}.0" for digit in "abcd")
    format.write(tmp_path / old, {}, kind="slice", keep_previous=False)
    (tmp_path / foreign).write_text("of somebody else")
    half, live = f".{half}.00c0ffee.tmp", f".{live}.00c0ffee.tmp"
    for name in (half, live):
        (tmp_path / name).write_bytes(b"{")
    with open(tmp_path / live, "rb") as file:
        files.fcntl.flock(file, files.fcntl.LOCK_EX)
        slices.remove_old_slices(str(path))
    assert names(tmp_path) == named | {foreign, live}
    slices.remove_old_slices(str(path))
    assert names(tmp_path) == named | {foreign}


def many_states(tree):
    for part in tree["parts"]:
        part[4] |= {f"x{i}": np.zeros(part[2] - part[1], np.float32) for i in range(20)}


def states_of_other_shapes(tree):
    for part in tree["parts"]:
        part[4] = {key: x.reshape(1, -1) for key, x in part[4].items()}


@pytest.mark.parametrize("change", [many_states, states_of_other_shapes])
def test_a_slice_holds_states_and_nothing_else(tmp_path, change):
    """Each array in it makes room for a whole parameter."""
    optimizer, path = optimizer_of(), tmp_path / "a.ckpt"
    save_slices(optimizer, path)
    for rank in range(2):
        altered(next(tmp_path.glob(f"a.ckpt.*.{rank}")), "slice", change)
    with pytest.raises(CheckpointError, match="something else than states of parameter 'w'"):
        optimizer.load(path)


def test_a_slice_is_read_once(tmp_path):
    optimizer, path = optimizer_of(), tmp_path / "a.ckpt"
    save_slices(optimizer, path)
    altered(path, "slices", lambda tree: tree["slices"].extend(tree["slices"]))
    with pytest.raises(CheckpointError, match="names a slice twice"):
        optimizer.load(path)


def test_the_kind_of_a_file_is_told_from_its_beginning(tmp_path):
    optimizer, path = optimizer_of(), tmp_path / "a.ckpt"
    save_slices(optimizer, path)
    assert format.stated_kind(path) == "slices"
    assert format.stated_kind(next(tmp_path.glob("a.ckpt.*.0"))) == "slice"
    data = path.read_bytes()
    for content in (b"", data[:7], data[:100], data[:8] + b"x" * (len(data) - 8), b"\xff" * 100):
        path.write_bytes(content)
        assert format.stated_kind(path) is None
    assert format.stated_kind(tmp_path) is None and format.stated_kind(tmp_path / "nowhere") is None


def test_a_file_is_told_by_its_checksum(tmp_path):
    sums = []
    for tree in (1, 2, 1):
        format.write(tmp_path / "a.ckpt", tree, kind="test")
        found, checksum = format.read_with_checksum(tmp_path / "a.ckpt", kind="test")
        assert found == tree and len(checksum) == 64
        sums.append(checksum)
    assert sums[0] == sums[2] != sums[1]
