"""fit and its files: what would fail at the first save fails before the first step, and messages name the file."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
import warnings

import numpy as np
import pytest

import fastoptim as fo
from fastoptim.checkpoint import files, format
from fastoptim.training import log as logs
from fastoptim.training import progress, resuming
from tests.support.forks import in_child
from tests.support.platforms import needs_posix


def fit(steps=3, w=None, optimizer="sgd", calls=None, **options):
    w = np.ones(2) if w is None else w

    def f(p, batch):
        if calls is not None:
            calls.append(0)
        return 1.0, p.copy() if isinstance(p, np.ndarray) else [x.copy() for x in p]

    every = {"validate_every": "validation", "checkpoint_every": "checkpoint"}
    options = {"data": None} | {name: 999 for name, of in every.items() if of in options} | options
    return fo.fit(f, w, optimizer=optimizer, steps=steps, lr=0.1, **options)


def refused(error, message, **options):
    calls, w = [], options.pop("w", np.ones(2))
    before = w.tobytes() if isinstance(w, np.ndarray) else None
    with pytest.raises(error, match=message):
        fit(w=w, calls=calls, **options)
    assert not calls and (before is None or w.tobytes() == before)


# --- Found before the first step --------------------------------------------------------------------------------------


@pytest.fixture
def closed(tmp_path, monkeypatch):
    """A folder in which no file can be made."""
    folder = tmp_path / "closed"
    folder.mkdir()
    make = os.open

    def refusing(path, flags, *args, **kwargs):
        if flags & os.O_CREAT and str(path).startswith(str(folder)):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return make(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", refusing)
    return folder


def test_a_folder_that_cannot_be_written_to(closed):
    refused(PermissionError, "closed", checkpoint=closed / "run.ckpt")
    refused(PermissionError, "closed", checkpoint=closed / "run.ckpt", resume=True, validation=lambda p: 1.0)


@pytest.mark.skipif(
    os.name != "posix" or os.geteuid() == 0, reason="NOT TESTED: read-only folders; root writes everywhere"
)
def test_a_read_only_folder(tmp_path):
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o500)
    for option in ({"checkpoint": folder / "run.ckpt"}, {"log": folder / "run.csv"}):
        refused(PermissionError, "closed", **option)


@needs_posix
@pytest.mark.parametrize(("kind", "length"), [("checkpoint", 242), ("checkpoint", 250), ("log", 260)])
def test_a_name_that_is_too_long(tmp_path, kind, length):
    suffix = ".ckpt" if kind == "checkpoint" else ".csv"
    refused(
        OSError,
        "[Nn]ame (too long|of a checkpoint may have 240 bytes).*aaaa",
        **{kind: tmp_path / ("a" * (length - len(suffix)) + suffix)},
    )
    assert not list(tmp_path.iterdir())
    fit(**{kind: tmp_path / ("a" * (240 - len(suffix)) + suffix)})  # the longest that can be saved


def test_what_a_run_leaves_that_is_killed_while_it_tries_to_save_is_removed(tmp_path):
    path = tmp_path / "run.ckpt"

    def killed():
        os.fsync = lambda descriptor: os._exit(7)
        fit(checkpoint=path)

    assert in_child(killed) == 7 and len(list(tmp_path.iterdir())) == 1
    fit(checkpoint=path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_best_whose_run_was_killed_before_its_checkpoint_is_taken_back(tmp_path):
    """The validation at an end that turns out to be none does not count, nor does the file that it has written."""
    best = os.path.realpath(tmp_path / "run.best.ckpt")
    options = {"checkpoint": tmp_path / "run.ckpt", "checkpoint_every": 2, "validate_every": 2}
    figures = {2: 0.5, 4: 0.25, 5: 0.01}
    options["validation"] = lambda p: figures.get(round(np.log(p[0]) / np.log(0.9)), 1.0)

    def killed():
        replace, targets = os.replace, []

        def replacing(source, target):
            replace(source, target)
            targets.append(target)
            if targets.count(best) == 3:
                os._exit(7)

        os.replace = replacing
        fit(steps=5, **options)

    assert in_child(killed) == 7 and format.read(best, kind="training")["loop"]["steps"] == 5
    assert fit(steps=8, resume=True, **options).best_step == 3
    assert format.read(best, kind="training")["loop"]["steps"] == 4 and not os.path.exists(f"{best}.previous")


def test_going_on_reads_the_best_checkpoint_no_further_than_its_header(tmp_path, monkeypatch):
    options = {"checkpoint": tmp_path / "run.ckpt", "validate_every": 2, "validation": lambda p: float(p[0])}
    fit(steps=4, **options)
    read, wholly = format.read, []
    monkeypatch.setattr(format, "read", lambda path, kind: wholly.append(path) or read(path, kind=kind))
    assert fit(steps=6, resume=True, **options).best_step == 5
    assert [os.path.basename(path) for path in wholly] == ["run.ckpt"]


def test_more_parameters_than_a_header_can_name(tmp_path, monkeypatch):
    monkeypatch.setattr(format, "MAX_HEADER", 50_000)
    for optimizer, most in (("sgd", 200), ("adam", 60)):
        w = [np.ones(1, np.float32) for _ in range(most)]
        fit(w=w, optimizer=optimizer, checkpoint=tmp_path / "run.ckpt")
        w += [np.ones(1, np.float32) for _ in range(2 * most)]
        refused(ValueError, "header", w=w, optimizer=optimizer, checkpoint=tmp_path / "more.ckpt")
    assert not list(tmp_path.glob("*more*"))


def test_a_header_too_long_for_its_shapes_alone(tmp_path, monkeypatch):
    path, w = tmp_path / "run.ckpt", [np.ones((1,) * 30, np.float32) for _ in range(50)]
    fit(w=w, checkpoint=path)
    length = int.from_bytes(path.read_bytes()[:8], "little")
    monkeypatch.setattr(format, "MAX_HEADER", length - 1000)
    refused(ValueError, "header", w=w, checkpoint=tmp_path / "more.ckpt")


def test_a_state_of_a_callback_that_a_checkpoint_cannot_hold(tmp_path):
    class Odd:
        seen = frozenset()

        def __call__(self, loop):
            pass

        def state_dict(self):
            return {"seen": self.seen}

        def load_state_dict(self, state):
            pass

    log = tmp_path / "run.csv"
    log.write_text("the log of another run")
    refused(TypeError, "frozenset", checkpoint=tmp_path / "run.ckpt", callbacks=[Odd()], log=log)
    assert log.read_text() == "the log of another run" and list(tmp_path.iterdir()) == [log]


@pytest.mark.parametrize(
    ("log", "checkpoint"),
    [
        ("a.csv", "a.csv"),
        ("./a.csv", "a.csv"),
        ("a.best.csv", "a.csv"),
        pytest.param("link.csv", "a.csv", marks=needs_posix),
        ("a-3.csv", "a.csv"),
    ],
)
def test_log_and_checkpoint_of_one_path(tmp_path, monkeypatch, log, checkpoint):
    monkeypatch.chdir(tmp_path)
    if log == "link.csv":
        (tmp_path / log).symlink_to(checkpoint)
    before, options = os.listdir(), {"log": log, "checkpoint": checkpoint, "validation": lambda p: 1.0, "keep": 3}
    refused(ValueError, "log and checkpoint", **options)
    assert os.listdir() == before


# --- Files and errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["size", "plain"])
def test_a_log_is_never_as_long_as_a_checkpoint_says(tmp_path, part):
    path, log = tmp_path / "a.ckpt", tmp_path / "a.jsonl"
    fit(checkpoint=path, log=log)
    tree = format.read(path, kind="training")
    tree["loop"]["parts"]["log"][part] = 2**63 - 1 if part == "size" else (2**63 - 1, "{}")
    format.write(path, tree, kind="training")
    with pytest.raises(fo.CheckpointError, match=r"is not the log of that run|begin behind its end"):
        fit(steps=9, checkpoint=path, log=log, resume=True)


@needs_posix
def test_a_pipe_is_no_log(tmp_path):
    os.mkfifo(tmp_path / "a.csv")
    with pytest.raises(ValueError, match=r"log must be a file, .* is a folder or a pipe"):
        fit(log=tmp_path / "a.csv")


def test_an_error_is_not_its_own_cause():
    def f(p, batch):
        raise ValueError("mine")

    for accumulate in (1, 2):
        with pytest.raises(ValueError, match="mine") as caught:
            fo.fit(f, np.ones(2), None, "sgd", steps=1, accumulate=accumulate)
        assert caught.value.__cause__ is None


def test_a_log_can_be_read_while_training_goes_on(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(logs, "monotonic", lambda: now[0])
    path, seen = tmp_path / "run.jsonl", []

    def f(p, batch):
        now[0] += 0.4
        seen.append(path.read_text().count('"step", "step"') if path.exists() else 0)
        return 1.0, np.zeros(2)

    fo.fit(f, np.ones(2), None, "sgd", steps=12, log=path)
    assert max(k - lines for k, lines in enumerate(seen)) <= 3 and seen[-1] >= 9


@pytest.mark.skipif(os.name == "nt", reason="NOT TESTED: an open file cannot be removed on Windows")
def test_a_log_that_is_removed_while_it_is_written_is_said(tmp_path):
    log = tmp_path / "a.jsonl"
    with pytest.warns(fo.TrainingWarning, match=r"a\.jsonl was removed or renamed"):
        fit(log=log, callbacks=lambda loop: log.unlink() if loop.steps == 2 else None)
    assert not log.exists() and fit(log=log).steps == 3 and log.exists()


@needs_posix
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="NOT TESTED: a full disk; there is no /dev/full")
def test_a_full_disk_is_told_with_the_file(tmp_path):
    link = tmp_path / "run.csv"
    link.symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left.*run\.csv") as caught:
        fit(steps=3, log=link)
    assert caught.value.errno == errno.ENOSPC and str(caught.value).count("run.csv") == 1


def test_a_full_disk_at_a_checkpoint_is_told_with_the_file(tmp_path, monkeypatch):
    path, sync, calls = tmp_path / "run.ckpt", os.fsync, []

    def full(descriptor):
        calls.append(0)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(format.os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left.*run\.ckpt") as caught:
        fit(checkpoint=path)
    assert caught.value.errno == errno.ENOSPC and len(calls) > 1


@needs_posix
def test_permissions_are_kept(tmp_path):
    path, log = tmp_path / "run.ckpt", tmp_path / "run.csv"
    fit(checkpoint=path, log=log)
    for file in (path, log):
        file.chmod(0o600)
    fit(steps=5, checkpoint=path, log=log, resume=True)
    fit(steps=5, checkpoint=path, log=log)
    fit(steps=5, checkpoint=path, keep=1, validation=lambda params: 1.0)  # new files hold what that one does
    files = (path, log, tmp_path / "run-5.ckpt", tmp_path / "run.best.ckpt")
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


# --- Callbacks and progress -------------------------------------------------------------------------------------------


def test_one_callback_may_stand_alone(capsys):
    fit(steps=2, callbacks=print)
    assert capsys.readouterr().out.count("Loop") == 2
    refused(TypeError, "callbacks.*got int", callbacks=3)


def test_callbacks_are_begun_and_ended_in_order():
    said = []

    class Part:
        def __init__(self, name, fails=False):
            self.name, self.fails = name, fails

        def begin(self, loop):
            said.append(f"begin {self.name}")

        def __call__(self, loop):
            if self.fails:
                raise ZeroDivisionError

        def due(self, loop):
            return 2

        def end(self, loop):
            said.append(f"end {self.name} {loop.reason}")

    fit(steps=3, callbacks=[Part("a"), Part("b")])
    assert said == ["begin a", "begin b", "end b steps", "end a steps"]
    del said[:]
    with pytest.raises(ZeroDivisionError):
        fit(steps=3, callbacks=[Part("a"), Part("b", True)])
    assert said == ["begin a", "begin b", "end b None", "end a None"]


class Kept:
    def __init__(self):
        self.state = type(self).__name__

    def __call__(self, loop):
        pass

    def state_dict(self):
        return {"name": self.state}

    def load_state_dict(self, state):
        self.state = state["name"]


class Other(Kept):
    pass


def test_callbacks_in_another_order_are_refused(tmp_path):
    options = {"checkpoint": tmp_path / "a.ckpt", "checkpoint_every": 9}
    fit(steps=2, callbacks=[Kept(), Other()], **options)
    with pytest.raises(fo.CheckpointError, match=r"'0 Kept', '1 Other'\] there, \['0 Other', '1 Kept'\] here"):
        fit(steps=3, callbacks=[Other(), Kept()], resume=True, **options)
    assert fit(steps=3, callbacks=[Kept(), lambda loop: None, Other()], resume=True, **options).steps == 3


def test_a_callback_with_due_costs_nothing_in_between():
    class Every:
        steps = ()

        def due(self, loop):
            return loop.next_due(4)

        def __call__(self, loop):
            self.steps += (loop.steps,)

    every = Every()
    fit(steps=10, callbacks=[every])
    assert every.steps == (4, 8, 10)


def test_notebooks_get_a_bar(monkeypatch):
    monkeypatch.setattr(progress, "_in_notebook", lambda: True)
    assert progress.bar_class(None) is __import__("tqdm.auto").auto.tqdm
    monkeypatch.setattr(progress, "_in_notebook", lambda: False)
    assert progress.bar_class(None) is None and progress.bar_class(True) is not None


def test_what_is_a_notebook():
    code = (
        "import sys, types\n"
        "from fastoptim.training.progress import _in_notebook\n"
        "assert not _in_notebook()\n"
        "sys.modules['ipykernel'] = types.ModuleType('ipykernel')\n"
        "sys.modules['IPython'] = ipython = types.ModuleType('IPython')\n"
        "ipython.get_ipython = lambda: None\n"
        "assert not _in_notebook()\n"
        "ipython.get_ipython = lambda: types.SimpleNamespace(kernel=1)\n"
        "assert _in_notebook()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- The last few checkpoints -----------------------------------------------------------------------------------------


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_last_few_are_kept(tmp_path):
    path = tmp_path / "run.ckpt"
    mine = ["run-1.ckpt.txt", "run-x.ckpt", "xrun-1.ckpt"]
    for name in mine:
        (tmp_path / name).write_text("mine")
    options = {"checkpoint": path, "checkpoint_every": 2, "keep": 3}
    fit(steps=7, **options)
    kept = [f"run-{step}.ckpt" for step in (4, 6, 7)]
    assert names(tmp_path) == sorted([*kept, *mine, "run.ckpt", "run.ckpt.previous"])
    fit(steps=10, resume=True, **options)
    kept = [f"run-{step}.ckpt" for step in (7, 8, 10)]
    assert names(tmp_path) == sorted([*kept, *mine, "run.ckpt", "run.ckpt.previous"])
    for step in (7, 8, 10):
        assert format.read(tmp_path / f"run-{step}.ckpt", kind="training")["loop"]["steps"] == step
    assert fit(steps=9, resume=tmp_path / "run-8.ckpt").steps == 9
    assert {(tmp_path / name).read_text() for name in mine} == {"mine"}
    fit(steps=4, checkpoint=path, keep=1)  # a new run leaves the others, and writes over its own
    assert format.read(tmp_path / "run-4.ckpt", kind="training")["loop"]["steps"] == 4
    assert {"run-7.ckpt", "run-8.ckpt", "run-10.ckpt"} < set(names(tmp_path))


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("name", ["_remove", "_write", "_link"])
def test_as_many_are_kept_when_a_run_was_killed_while_it_saved(tmp_path, monkeypatch, name, after):
    class Killed(BaseException):
        pass

    options = {"checkpoint": tmp_path / "run.ckpt", "checkpoint_every": 1, "keep": 2}
    carry_out, steps = getattr(resuming, name), []

    def die(*args, **kwargs):
        if after or steps[-1] != 5:
            carry_out(*args, **kwargs)
        if steps[-1] == 5:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(resuming, name, die)
        fit(steps=8, callbacks=lambda loop: steps.append(loop.steps), **options)
    fit(steps=6, resume=True, callbacks=lambda loop: None, **options)
    assert names(tmp_path) == sorted(["run-5.ckpt", "run-6.ckpt", "run.ckpt", "run.ckpt.previous"])


class SavesItself(fo.SGD):
    def save(self, path, extra=None):
        super().save(path, extra)


@pytest.mark.parametrize("resumed", [True, False])
@pytest.mark.parametrize("at", [3, 4])
def test_files_of_an_optimizer_are_removed_though_a_run_was_killed_while_it_removed_them(
    tmp_path, monkeypatch, resumed, at
):
    class Killed(BaseException):
        pass

    def train(steps, **options):
        w = np.ones(2)
        options |= {"checkpoint": tmp_path / "run.ckpt", "checkpoint_every": 1, "diagnose": False}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a new run says what it replaces
            fo.fit(lambda p, _: (float(p @ p), 2 * p), w, None, SavesItself(w, lr=0.1), steps=steps, **options)

    def die(folder, outdated):
        if f"run.ckpt.optimizer-{at - 2}" in outdated:
            raise Killed
        remove(folder, outdated)

    remove = resuming.slices.remove_checkpoints
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(resuming.slices, "remove_checkpoints", die)
        train(8)
    assert f"run.ckpt.optimizer-{at - 2}" in names(tmp_path)
    train(at + 3, resume=resumed)
    last = [f"run.ckpt.optimizer-{step}" for step in (at + 2, at + 3)]
    assert names(tmp_path) == sorted(["run.ckpt", "run.ckpt.previous", *last])


def test_checkpoints_of_another_run_stay_where_this_one_goes_on_elsewhere(tmp_path):
    options = {"checkpoint_every": 1, "keep": 2}
    fit(steps=4, checkpoint=tmp_path / "a.ckpt", **options)
    fit(steps=4, checkpoint=tmp_path / "b.ckpt", **options)
    with pytest.warns(fo.TrainingWarning, match=r"b\.ckpt exists, and this run goes on from .*a\.ckpt: its first"):
        fit(steps=6, resume=tmp_path / "a.ckpt", checkpoint=tmp_path / "b.ckpt", **options)
    assert [name for name in names(tmp_path) if name[:2] == "b-"] == [f"b-{step}.ckpt" for step in (3, 4, 5, 6)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(steps=7, resume=tmp_path / "b-5.ckpt", checkpoint=tmp_path / "b.ckpt", **options)  # one of its own
    assert [name for name in names(tmp_path) if name[:2] == "b-"] == [f"b-{step}.ckpt" for step in (3, 4, 6, 7)]


def test_files_stay_where_they_were_when_the_program_goes_elsewhere(tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(tmp_path)
    options = {"checkpoint": "a.ckpt", "checkpoint_every": 1, "keep": 1, "log": "a.jsonl", "validation": lambda p: 1.0}
    fit(callbacks=lambda loop: os.chdir(elsewhere), **options)
    names = {"a.ckpt", "a.ckpt.previous", "a.best.ckpt", "a-3.ckpt", "a.jsonl"}
    assert {path.name for path in tmp_path.iterdir()} == names | {"elsewhere"} and not [*elsewhere.iterdir()]


def test_paths_may_be_bytes(tmp_path):
    path, log = os.fsencode(tmp_path / "a.ckpt"), os.fsencode(tmp_path / "a.jsonl")
    for steps in (2, 3):
        fit(steps=steps, checkpoint=path, log=log, keep=1, resume=True, checkpoint_every=9)
    assert fit(steps=4, resume=path).steps == 4
    assert names(tmp_path) == ["a-3.ckpt", "a.ckpt", "a.ckpt.previous", "a.jsonl"]
    for name in ("checkpoint", "log", "resume"):
        refused(TypeError, f"{name} must be a path, got 3", **{"checkpoint_every": 9, "checkpoint": path, name: 3})


def test_a_file_that_is_no_checkpoint_is_not_overwritten_by_one_that_is_kept(tmp_path):
    (tmp_path / "run-12345.ckpt").write_text("mine")
    refused(FileExistsError, r"run-12345\.ckpt", checkpoint=tmp_path / "run.ckpt", keep=2)
    assert names(tmp_path) == ["run-12345.ckpt"] and (tmp_path / "run-12345.ckpt").read_text() == "mine"


def test_keep_is_checked():
    refused(ValueError, "keep needs checkpoint", keep=2)
    refused(ValueError, "keep", keep=0, checkpoint="a.ckpt")


# --- Data -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [(x for x in range(3)), iter([1, 2]), zip([1], [2], strict=True), map(abs, [1])])
def test_an_iterator_as_data_says_what_to_do(data):
    refused(TypeError, r"data: an iterator.*data=None.*next", data=data)


def test_json_lines_are_valid(tmp_path):
    fit(steps=3, log=tmp_path / "a.jsonl")
    assert [json.loads(line)["kind"] for line in (tmp_path / "a.jsonl").read_text().splitlines()] == ["run"] + [
        "step"
    ] * 3


def test_training_warns_of_nothing_here(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(steps=3, checkpoint=tmp_path / "a.ckpt", log=tmp_path / "a.csv", keep=2)
    assert files.previous_path(tmp_path / "a.ckpt").endswith("a.ckpt.previous")
