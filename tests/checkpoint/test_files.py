"""Files are replaced whole, keep their modes, and what stands in the way is said before anything is written."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

import fastoptim as fo
from fastoptim.checkpoint import encoding, files, format
from fastoptim.checkpoint.files import CheckpointError
from tests.support.forks import in_child
from tests.support.platforms import needs_posix


@contextlib.contextmanager
def within(seconds):
    """AssertionError if it takes longer; an OSError, such as TimeoutError, would be taken for the file system's."""

    def ring(*_):
        raise AssertionError(f"no end within {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def as_nobody(action):
    """Run `action` in a child that may not write everywhere; its exit status is 0 if nothing was raised."""

    def work():
        if os.geteuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        action()
        return True

    return in_child(work)


# --- What lies beside the target


@pytest.mark.parametrize("save", [format.write, files.check_target], ids=["write", "check_target"])
def test_a_pipe_that_is_named_like_a_temporary_file_holds_nobody_up(tmp_path, save):
    """Opening one waits for a writer."""
    names = [".run.ckpt.0badf00d.tmp", ".run.ckpt.0badf00d_.tmp"]
    for name in names:
        os.mkfifo(tmp_path / name)
    arguments = ({"kind": "test"}, [1]) if save is format.write else ({}, [])
    with within(5):
        save(tmp_path / "run.ckpt", *arguments[1], **arguments[0])
    assert all(stat.S_ISFIFO((tmp_path / name).stat().st_mode) for name in names)


@needs_posix
def test_only_regular_files_are_taken_for_temporary_ones(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("x")
    (tmp_path / ".run.ckpt.00000001.tmp").symlink_to(precious)
    (tmp_path / ".run.ckpt.00000002.tmp").mkdir()
    (tmp_path / ".run.ckpt.notes.tmp").write_text("not one of ours")
    (tmp_path / ".run.ckpt.00000003.tmp").write_text("half a checkpoint")
    (tmp_path / ".run.ckpt.00000003_.tmp").write_text("the last one, on its way to become the previous")
    format.write(tmp_path / "run.ckpt", 1, kind="test")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        ".run.ckpt.00000001.tmp",
        ".run.ckpt.00000002.tmp",
        ".run.ckpt.notes.tmp",
        "precious",
        "run.ckpt",
    ]


# --- Before the first step


def test_a_read_only_folder_is_found_before_anything_is_done():
    with tempfile.TemporaryDirectory() as name:  # others may not look into pytest's folders
        check_a_read_only_folder(Path(name))


def check_a_read_only_folder(folder):
    folder.chmod(0o555)

    def check():
        with pytest.raises(OSError, match=r"run\.ckpt") as caught:
            files.check_target(folder / "run.ckpt")
        assert caught.value.errno in (errno.EACCES, errno.EROFS)

    assert as_nobody(check) == 0
    folder.chmod(0o777)
    assert as_nobody(lambda: files.check_target(folder / "run.ckpt")) == 0
    assert not list(folder.iterdir())


def test_a_long_name_is_found_before_anything_is_done(tmp_path):
    limit = os.pathconf(tmp_path, "PC_NAME_MAX") - len(".x.12345678_.tmp") + len("x")
    for name in ("n" * limit, "ä" * (limit // 2)):
        for number in range(2):  # with a previous one too
            files.check_target(tmp_path / name)
            format.write(tmp_path / name, number, kind="test")
        assert format.read(files.previous_path(tmp_path / name), kind="test") == 0
    before = sorted(tmp_path.iterdir())
    for name in ("n" * (limit + 1), "ä" * (limit // 2 + 1), "n" * 5000):
        for refuse in (files.check_target, lambda path: format.write(path, 1, kind="test")):
            with pytest.raises(OSError, match=f"may have {limit} bytes") as caught:
                refuse(tmp_path / name)
            assert caught.value.errno == errno.ENAMETOOLONG and caught.value.filename.endswith(name)
    assert sorted(tmp_path.iterdir()) == before


def test_many_parameters_fit_if_they_are_arrays_rather_than_numbers(tmp_path, monkeypatch):
    """The header of so many may be as large as their content; otherwise it is said beforehand."""
    monkeypatch.setattr(format, "MAX_HEADER", 50_000)  # as if they were a hundred times as many
    path = tmp_path / "a.ckpt"
    large = {f"w{i}": np.full(40, i, np.float32) for i in range(1000)}
    optimizer = fo.Adam(large)
    optimizer.step({name: np.ones(40, np.float32) for name in large})
    optimizer.save(path)
    assert int.from_bytes(path.read_bytes()[:8], "little") > 300_000
    before = [p.tobytes() for p in large.values()]
    for p in large.values():
        p[...] = 0
    optimizer.load(path)
    assert [p.tobytes() for p in large.values()] == before
    small = {f"w{i}": np.full(4, i, np.float32) for i in range(1000)}
    larger = {f"w{i}": np.full(10, i, np.float32) for i in range(1000)}  # 40,000 bytes, still fewer than the header's
    for tree in (small, larger):
        for refuse in (format.check_tree, lambda tree, kind: format.write(path, tree, kind=kind)):
            with pytest.raises(ValueError, match=r"header may have 50000 bytes.*fewer arrays than these 1000 .*pack"):
                refuse(tree, kind="test")
    fo.SGD(fo.pack(list(small.values())))  # what the message names exists
    format.check_tree(large, kind="test")


# --- Modes and errors


@needs_posix
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666, 0o400])
def test_a_file_that_is_replaced_hands_down_its_mode(tmp_path, mode):
    path = tmp_path / "a.ckpt"
    format.write(path, 0, kind="test")
    path.chmod(mode)
    seen = []
    write_file = format.write_file

    def watched(file, header, arrays):
        seen.append(stat.S_IMODE(os.fstat(file.fileno()).st_mode))
        write_file(file, header, arrays)

    format.write_file = watched
    try:
        format.write(path, 1, kind="test")
    finally:
        format.write_file = write_file
    assert seen == [mode]  # nobody could read it while it was being written
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert stat.S_IMODE(os.stat(files.previous_path(path)).st_mode) == mode
    format.write(tmp_path / "b.ckpt", 1, kind="test", like=path)
    assert stat.S_IMODE((tmp_path / "b.ckpt").stat().st_mode) == mode
    format.write(tmp_path / "c.ckpt", 1, kind="test", like=tmp_path / "nowhere")
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "c.ckpt").stat().st_mode) == 0o666 & ~umask


def test_a_full_disk_names_the_file(tmp_path):
    path = tmp_path / "a.ckpt"

    def fill():
        import resource

        os.chmod(tmp_path, 0o777)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, resource.RLIM_INFINITY))
        with pytest.raises(OSError, match=r"a\.ckpt") as caught:
            format.write(path, np.zeros(100_000), kind="test")
        assert caught.value.errno == errno.EFBIG and caught.value.filename == str(path)
        return True

    assert in_child(fill) == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("call", ["fsync", "read"])
def test_errors_of_the_disk_name_the_file(tmp_path, monkeypatch, call):
    path = tmp_path / "a.ckpt"
    format.write(path, np.ones(3), kind="test")

    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(*((os, "fsync") if call == "fsync" else (format, "_read_array")), fail)
    with pytest.raises(OSError, match=r"a\.ckpt") as caught:
        format.write(path, 2, kind="test") if call == "fsync" else format.read(path, kind="test")
    assert caught.value.errno == errno.EIO and caught.value.filename == str(path)


# --- Memory


HOSTILE = {  # what costs most memory for a byte of JSON
    "empty lists": "[]",
    "dicts": '{"":0}',
    "long strings": '"\\\\ud83d\\\\ude00ab"',
}

LOAD = """
import resource, sys
import numpy as np
import fastoptim as fo
optimizer = fo.SGD({"w": np.zeros(3)}, backend="numpy")
try:
    optimizer.load(sys.argv[1])
except fo.CheckpointError:
    pass
with open("/proc/self/statm") as file:
    held = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + int(sys.argv[3]), resource.RLIM_INFINITY))
try:
    optimizer.load(sys.argv[2])
except fo.CheckpointError as error:
    print("refused:", str(error)[:200])
"""


def hostile_file(path, unit, header_bytes, size):
    """A file of `size` bytes with a valid checksum, a header full of `unit`s, and one array that fills the rest."""
    data = size - header_bytes - 8
    metadata = {
        "sha256": "0" * 64,
        "format": "fastoptim",
        "version": "1",
        "kind": "optimizer",
        "software": "",
        "tree": "",
    }
    entry = {"dtype": "U8", "shape": [data], "data_offsets": [0, data]}
    frame = json.dumps({"__metadata__": metadata, "x": entry}, separators=(",", ":"))
    room = header_bytes - len(frame)
    quoted = unit.replace('"', '\\"')
    tree = "[" + (quoted + ",") * ((room - 10) // (len(quoted.encode()) + 1)) + "0]"
    header = frame.replace('"tree":""', f'"tree":"{tree}"').encode()
    header += b" " * (header_bytes - len(header))
    with open(path, "w+b") as file:
        format.write_file(file, header, [np.zeros(data, np.uint8)])


@needs_posix
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="NOT TESTED: no /proc to read the memory from")
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_costs_a_small_multiple_of_its_size(tmp_path, name):
    """16 MiB cost 806."""
    small, path = tmp_path / "small.ckpt", tmp_path / "hostile.ckpt"
    format.write(small, 1, kind="optimizer")
    size = 16 << 20
    hostile_file(path, HOSTILE[name], min(size - 4096, format.MAX_HEADER) & ~7, size)
    limit = 16 * size
    done = subprocess.run(
        [sys.executable, "-c", LOAD, small, path, str(limit)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("refused: "), done.stdout + done.stderr
    assert "MemoryError" not in done.stdout


def test_a_header_may_be_half_of_the_file_or_eight_mebibytes(tmp_path):
    path = tmp_path / "a.ckpt"
    for header, size, fits in ((1 << 23, 9 << 20, True), ((1 << 23) + 8, 9 << 20, False), (9 << 20, 20 << 20, True)):
        hostile_file(path, "0", header, size)
        with pytest.raises(CheckpointError, match="does not name" if fits else "not a checkpoint, or cut off"):
            format.read(path, kind="optimizer")


@pytest.mark.parametrize(
    ("unit", "message"), [('"ä"', "header that is not ASCII"), ('"\\u00e4"', "tree that is not ASCII")]
)
def test_one_character_does_not_make_the_others_four_bytes_long(tmp_path, unit, message):
    hostile_file(tmp_path / "a.ckpt", unit, 1 << 16, 1 << 17)
    with pytest.raises(CheckpointError, match=message):
        format.read(tmp_path / "a.ckpt", kind="optimizer")


def test_decoding_makes_no_second_tree():
    arrays = {}
    tree = {"a": [(1, 2.5), {"b": None}], (1, "x"): [np.ones(2)], "f": float("inf")}
    text = json.dumps(encoding.encode(tree, "", arrays))
    again = encoding.decode(text, arrays)
    assert list(again) == list(tree) and again["a"] == tree["a"] and again["f"] == tree["f"] and not arrays
    for text in ('{"$items":5}', '{"$items":[5]}', '{"$items":[[1,2,3]]}', '{"$tuple":"ab"}', '{"$float":[]}'):
        with pytest.raises((CheckpointError, TypeError, ValueError)):
            encoding.decode(text, {})


def test_another_writer_may_remove_the_file_of_a_check_first(tmp_path, monkeypatch):
    remove = os.unlink

    def second(path):
        remove(path)
        remove(path)

    monkeypatch.setattr(files.os, "unlink", second)
    files.check_target(tmp_path / "run.ckpt")
    assert not list(tmp_path.iterdir())


@needs_posix
def test_another_writer_may_take_away_what_is_to_become_the_previous_one(tmp_path, monkeypatch):
    """Two processes save to one path: both succeed, and whoever reads finds a whole checkpoint at every moment."""
    path, link, calls = tmp_path / "run.ckpt", os.link, []
    fo.SGD(np.full(2, 1.0), lr=0.1).save(path)

    def contended(source, spare):
        calls.append(format.read(path, kind="optimizer")["params"]["0"][0])
        if len(calls) == 1:  # the target is replaced while it gets its second name: it has none left
            raise FileNotFoundError(errno.ENOENT, "no such file", source)
        link(source, spare)
        if len(calls) == 2:  # the spare name is taken for that of a dead writer's file
            files.check_target(path)
            assert not os.path.exists(spare)

    monkeypatch.setattr(files.os, "link", contended)
    fo.SGD(np.full(2, 2.0), lr=0.1).save(path)
    assert calls == [1.0, 1.0, 1.0]
    saved = [format.read(name, kind="optimizer")["params"]["0"][0] for name in (path, f"{path}.previous")]
    assert saved == [2.0, 1.0]
    assert sorted(name.name for name in tmp_path.iterdir()) == ["run.ckpt", "run.ckpt.previous"]


@needs_posix
def test_several_processes_may_save_to_one_path(tmp_path):
    """Whichever is last wins; no save fails, and no load finds nothing or a mixture."""
    script = """
import sys
import numpy as np
import fastoptim as fo

for _ in range(60):
    opt = fo.SGD(np.full(9, float(sys.argv[2])), lr=0.1)
    opt.save(sys.argv[1])
    opt.load(sys.argv[1])
    (p,) = opt.param_groups[0]["params"]
    assert p[0] in (1.0, 2.0, 3.0) and (p == p[0]).all()
"""
    path = tmp_path / "run.ckpt"
    writers = [
        subprocess.Popen([sys.executable, "-c", script, str(path), str(k)], stderr=subprocess.PIPE) for k in (1, 2, 3)
    ]
    said = [writer.communicate(timeout=600)[1].decode() for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0, 0], said
    assert sorted(name.name for name in tmp_path.iterdir()) == ["run.ckpt", "run.ckpt.previous"]
