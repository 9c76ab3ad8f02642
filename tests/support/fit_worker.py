"""What the ranks do in `tests/distributed/test_fit.py`."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import warnings
from functools import partial
from pathlib import Path

os.environ.setdefault("FASTOPTIM_NUM_THREADS", "1")

import numpy as np

import fastoptim as fo
from fastoptim.checkpoint import format
from fastoptim.distributed import ShardedOptimizer
from tests.support.mpi import run_named
from tests.support.mpi_worker import COMM, RANK, SIZE, raises

LAST = RANK == SIZE - 1
DATA = np.random.default_rng(3).standard_normal((48, 6))


def network(params, batch):
    """Least squares on normalised inputs: every process has running means of its own."""
    params["mean"] += 0.1 * (batch.mean(0) - params["mean"])
    error = (batch - params["mean"]) @ params["w"] - batch[:, :1]
    return float(np.mean(error**2)), {"w": 2 * (batch - params["mean"]).T @ error / len(batch)}


def fresh():
    params = {"w": np.zeros((6, 1)), "mean": np.zeros(6)}
    return params, ShardedOptimizer(fo.Adam, {"w": params["w"]}, lr=0.05, deterministic=True)


def fit(loss=network, data=DATA, **options):
    params, optimizer = fresh()
    options = {"batch_size": 8, "epochs": 3, "diagnose": False, "progress": False} | options
    return params, fo.fit(loss, params, data, optimizer, **options)


def all_equal(value):
    every = COMM.allgather(value)
    assert all(each == every[0] for each in every), every


@contextlib.contextmanager
def refused(kind, *texts, seconds=10.0):
    """Every rank must raise this, with these texts, soon."""
    begin = time.perf_counter()
    with raises(kind, *texts):
        yield
    assert time.perf_counter() - begin < seconds
    COMM.Barrier()


def differences():
    """Arguments that differ are named on every rank before the first step."""
    schedule = fo.schedules.cosine
    base = {"validation": lambda p: 1.0, "epochs": 2}
    other = {
        "epochs": (2, 3),
        "steps": (5, 6),
        "batch_size": (8, 16),
        "accumulate": (1, 2),
        "shuffle": (True, False),
        "drop_last": (False, True),
        "validate_every": (2, 3),
        "early_stopping": (2, 3),
        "restore_best": (False, True),
        "min_delta": (0.0, 0.1),
        "max_norm": (1.0, 2.0),
        "skip_nonfinite": (False, True),
        "lr": (schedule(0.1, 9), schedule(0.1, 10)),
        "checkpoint": ("a", "b"),
        "log": ("a.csv", "b.csv"),
    }
    calls = []
    f = lambda p, batch: calls.append(0) or network(p, batch)  # noqa: E731
    for name, values in other.items():
        with refused(ValueError, f"differ in {name}", "on rank 0", f"on rank {SIZE - 1}"):
            fit(f, **base | {name: values[LAST]})
    with refused(ValueError, "differ in examples: 48 on rank 0, 40 on rank"):
        fit(f, DATA[:40] if LAST else DATA, **base)
    params, optimizer = fresh()
    with refused(ValueError, "differ in average: decay=0.9, start=0 on rank 0, decay=0.8, start=0 on rank"):
        average = fo.Average(params, 0.8 if LAST else 0.9)
        fo.fit(f, params, DATA, optimizer, epochs=2, average=average, progress=False)
    with refused(ValueError, "differ in validation: True on rank 0, False"):
        fit(f, validation=None if LAST else base["validation"])
    batches = fo.minibatches(DATA, 8)
    if LAST:
        batches.next_batch()
    with refused(ValueError, "cursor: 0 on rank 0, 8 on rank"):
        fit(f, batches, batch_size=None)
    with refused(ValueError, "differ in rng: 0 on rank 0, 1 on rank"):
        fit(f, rng=int(LAST))
    with refused(ValueError, "kind of generator"):
        fit(f, rng=np.random.Generator(np.random.MT19937(0) if LAST else np.random.PCG64(0)))
    for kind, text in ((ValueError, "max_norm"), (RuntimeError, "failed on rank")):
        if (kind is ValueError) == LAST:
            with refused(kind, text, "max_norm must be"):
                fit(f, max_norm=-1.0 if LAST else 1.0)
    with refused(TypeError if LAST else RuntimeError, "callbacks must be callable"):
        fit(f, callbacks=[3] if LAST else [])
    with refused(ValueError if LAST else RuntimeError, "backend and threads belong to"):
        fit(f, backend="numpy" if LAST else None)
    optimizer = fresh()[1]
    with refused(ValueError if LAST else RuntimeError, "make it of these params"):
        fo.fit(f, {"w": np.zeros((6, 1))} if LAST else {"w": optimizer.param_groups[0]["params"][0]}, DATA, optimizer)
    assert not calls


def lengths():
    """Data that grow grow alike, or all ranks say so: they would end the epoch after different steps."""

    class Data:
        grown = 48

        def __len__(self):
            return self.grown

        def __getitem__(self, rows):
            return np.resize(DATA, (64, 6))[rows]

    def run(last):
        data = Data()

        def grow(loop):
            if loop.steps == 3:
                data.grown = last if LAST else 56

        return fit(data=data, callbacks=grow)[1].steps

    assert run(56) == 6 + 7 + 7
    with refused(ValueError, "examples: 56 on rank 0, 40 on rank"):
        run(40)


def other_folders(folder):
    """A path is that of the process that gives it, whose working folder need not be the others'."""
    os.chdir(folder if RANK == 0 else "/")
    fit(epochs=1, checkpoint="run.ckpt" if RANK == 0 else None)
    assert fit(epochs=2, resume="run.ckpt" if RANK == 0 else False)[1].steps == 12
    with refused(ValueError, "differ in checkpoint", "/run.ckpt' on rank 0, '/run.ckpt' on rank"):
        fit(checkpoint="run.ckpt")


def counts_and_names(folder):
    """Counts may be NumPy's, and names of settings stand in a set, as in one process."""
    path = {"checkpoint": Path(folder) / "run.ckpt", "checkpoint_every": np.int64(4), "keep": np.int32(2)}
    fit(epochs=1, **path)
    names = ("lr", "accumulate", "max_norm", "schedules", "batch_size")
    for override in (set(names), frozenset(names), dict.fromkeys(names).keys(), (name for name in names)):
        fit(epochs=2, resume=True, lr=0.1, override=override, **path)
        fit(epochs=1, **path)


def shares():
    """Shares of the batches make one run: that of one process with the whole batches, up to rounding."""
    sizes, found = [], []

    def f(params, batch):
        sizes.append(len(batch))
        error = batch[:, 1:] @ params["w"] - batch[:, :1]
        return float(np.mean(error**2)), {"w": 2 * batch[:, 1:].T @ error / len(batch)}

    for kind in (partial(ShardedOptimizer, fo.Adam, deterministic=True), fo.Adam):
        params = {"w": np.zeros((5, 1))}
        result = fo.fit(f, params, DATA, kind(params, lr=0.05), batch_size=8, epochs=4, diagnose=False, progress=False)
        found.append((result.history.loss, params["w"]))
    (loss, w), (loss_of_one, w_of_one) = found
    assert sizes == [8 // SIZE] * 24 + [8] * 24
    assert np.allclose(loss, loss_of_one, rtol=1e-9) and np.allclose(w, w_of_one, rtol=1e-9)
    all_equal((loss.tobytes(), w.tobytes()))


def one_sided(folder):
    """Callbacks, checkpoint, log and resume on one rank alone."""
    folder = Path(folder)
    whole, wanted = fit(epochs=4)
    path = {"checkpoint": folder / "run.ckpt", "log": folder / "run.jsonl"} if RANK == 0 else {}
    fit(epochs=2, **path)
    params, result = fit(epochs=4, resume=RANK == 0, callbacks=[lambda loop: None] if LAST else [], **path)
    assert params["w"].tobytes() == whole["w"].tobytes() and result.steps == 24
    assert result.history.loss.tobytes() == wanted.history.loss.tobytes()
    if RANK == 0:
        assert (folder / "run.jsonl").read_text().count('"kind": "step"') == 24
        assert sorted(p.name for p in folder.glob("run.ckpt*") if "optimizer" not in p.name) == [
            "run.ckpt",
            "run.ckpt.previous",
        ]

    def stop(loop):
        if loop.steps == 5:
            loop.stop(f"rank {RANK}")

    for who in range(SIZE):
        result = fit(callbacks=[stop] if who == RANK else [])[1]
        assert (result.steps, result.reason) == (5, f"rank {who}")

    class Rarely:
        seen = ()

        def due(self, loop):
            return loop.next_due(4)

        def __call__(self, loop):
            if loop.steps % 4 == 0:
                self.seen += (loop.steps,)

    rarely = Rarely()
    fit(callbacks=rarely if LAST else [], epochs=2)
    assert rarely.seen == ((4, 8, 12) if LAST else ())

    class Begin:
        def begin(self, loop):
            loop.stop("at once")

        def __call__(self, loop):
            raise AssertionError

    assert fit(callbacks=[Begin()] if LAST else [])[1].steps == 0


class Own:
    """A callback whose state differs from rank to rank."""

    def __init__(self):
        self.value = float(RANK)

    def __call__(self, loop):
        self.value = 0.9 * self.value + RANK + loop.loss

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = float(state["value"])


def own_states(folder):
    """Running means and callbacks' states are each rank's own, also those of the best parameters."""
    ends = []
    for cut in (False, True):
        losses = {0: 3.0, 6: 2.0, 12: 1.0, 18: 4.0, 24: 5.0}
        callback, steps = Own(), [0]

        def count(loop, steps=steps):
            steps[0] = loop.steps

        options = {
            "checkpoint": Path(folder) / f"{cut}.ckpt",
            "validation": lambda p, steps=steps, losses=losses: losses[round(steps[0] / 6 + 0.49) * 6],
            "restore_best": True,
        }
        callbacks = [callback, count, *([Own()] if RANK == 0 else [])]
        if cut:
            fit(epochs=3, callbacks=callbacks, **options)
            callback.value, callbacks = -1.0, [callback, count, *([Own()] if RANK == 0 else [])]
        params, result = fit(epochs=4, callbacks=callbacks, resume=cut, **options)
        extra = callbacks[2].value if RANK == 0 else 0.0
        ends.append((params["w"].tobytes(), params["mean"].tobytes(), callback.value, extra, result.best_step))
    assert ends[0] == ends[1], ends
    assert len(set(COMM.allgather(ends[0][1]))) == SIZE and len(set(COMM.allgather(ends[0][2]))) == SIZE
    all_equal(ends[0][0])


def own_averages(folder):
    """Averages of running means are each rank's own, too."""
    ends = []
    for epochs, resume in ((4, False), (2, False), (4, True)):
        params, optimizer = fresh()
        average = fo.Average(params, 0.8)
        options = {"average": average, "checkpoint": Path(folder) / "run.ckpt", "resume": resume}
        fo.fit(network, params, DATA, optimizer, batch_size=8, epochs=epochs, progress=False, diagnose=False, **options)
        ends.append([average.arrays[name].tobytes() for name in ("w", "mean")])
    assert ends[0] == ends[2] != ends[1]
    assert len(set(COMM.allgather(ends[0][1]))) == SIZE


def failures(folder):
    """Where one rank fails, in whatever of its own, all others raise what names it, and all can go on."""
    calls, places = [], []

    def fail(here):
        if LAST and here == places[-1]:
            raise KeyError("mine")

    def f(params, batch):
        calls.append(0)
        if len(calls) == 4:
            fail("loss")
        return network(params, batch)

    class Callback:
        def begin(self, loop):
            fail("begin")

        def due(self, loop):
            if loop.steps == 6:
                fail("due")
            return loop.next_due(3)

        def __call__(self, loop):
            if loop.steps == 3:
                fail("call")
            if loop.reason:
                fail("last call")

        def end(self, loop):
            fail("end")

    def validate(params):
        if len(calls) > 7:
            fail("validation")
        return 1.0

    class Data:
        def __len__(self):
            return len(DATA)

        def __getitem__(self, rows):
            if len(calls) == 9:
                fail("data")
            return DATA[rows]

    for place in ("begin", "loss", "call", "due", "validation", "data", "last call", "end"):
        places.append(place)
        for callbacks in ((Callback(),), (Callback(),) if LAST else ()):
            calls.clear()
            options = {"validation": validate, "validate_every": 4, "checkpoint": Path(folder) / "run.ckpt"}
            with refused(KeyError if LAST else RuntimeError, "mine"):
                fit(f, Data(), callbacks=callbacks, **options)

    def leave(loop):
        if LAST and loop.steps == 2:
            sys.exit("enough")

    with refused(SystemExit if LAST else RuntimeError, "enough"):
        fit(callbacks=leave)


def other_number(path, epochs):
    """Resumed by another number of ranks: it goes on, and says whose running means are taken."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = fit(epochs=int(epochs), checkpoint=path, resume=True, callbacks=[Own()])[1]
    assert result.steps == 6 * int(epochs)
    told = [str(warning.message) for warning in caught if "processes" in str(warning.message)]
    assert len(told) == (RANK == 0 and epochs == "2"), told


def goes_on(path, epochs):
    """Resumed in new processes: the bits of a run that nothing interrupted."""
    found, whole = fit(epochs=int(epochs), checkpoint=path, resume=True), fit(epochs=int(epochs))
    assert found[0]["w"].tobytes() == whole[0]["w"].tobytes()
    assert found[1].history.loss.tobytes() == whole[1].history.loss.tobytes()


def loaded_by_hand(folder):
    """An optimizer's `load`, sharded or plain, finds its part of a checkpoint that `fit` wrote."""
    path = Path(folder) / "run.ckpt"
    trained = fit(checkpoint=path)[0]["w"].tobytes()
    params, sharded = fresh()
    plain = fo.Adam({"w": np.zeros((6, 1))})
    for optimizer in (sharded, plain):
        assert optimizer.load(path) is None
        assert np.asarray(optimizer.param_groups[0]["params"][0]).tobytes() == trained
        assert optimizer.state_dict()["state"]["w"]["step"] == 18
    assert params["w"].tobytes() == trained
    sharded.save(f"{path}.optimizer-18", extra=1)
    with refused(fo.CheckpointError, "is of another checkpoint"):
        sharded.load(path)


def one_checkpoint(folder):
    """No rank can take another checkpoint than the first rank does."""
    path = Path(folder) / "run.ckpt"
    whole = fit(epochs=3)[0]["w"].tobytes()
    fit(epochs=2, checkpoint=path)
    read = format.read

    def stale(file, *, kind):
        if kind == "training":
            raise FileNotFoundError(2, "not there yet", str(file))
        return read(file, kind=kind)

    if LAST:
        format.read = stale
    assert fit(epochs=3, checkpoint=path, resume=True)[0]["w"].tobytes() == whole
    format.read = read
    fit(epochs=2, checkpoint=path)
    checksum = format.checksum_stated_in
    if LAST:
        format.checksum_stated_in = lambda file: "0" * 64
    with refused(fo.CheckpointError, "is of another checkpoint"):
        fit(epochs=3, checkpoint=path, resume=True)
    format.checksum_stated_in = checksum
    beside = format.files.beside
    if LAST:
        format.files.beside = lambda file, name: f"/somewhere else/{name}"
    with refused(fo.CheckpointError, "do all processes share the folder?"):
        fit(epochs=3, checkpoint=path, resume=True)
    format.files.beside = beside
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    COMM.Barrier()
    if RANK == 0:
        path.write_bytes(damaged)
        (path.parent / "run.ckpt.previous").unlink()
    COMM.Barrier()
    with refused(fo.CheckpointError, "checksum"):
        fit(epochs=3, checkpoint=path, resume=True)


def files(folder):
    """Files of the optimizer that no checkpoint needs are removed, users' own are not."""
    folder = Path(folder)
    mine = ["run.ckpt.optimizer-notes.txt", "run.ckpt.optimizer-6.txt", "run.ckpt.optimizer-12.bak"]
    if RANK == 0:
        for name in mine:
            (folder / name).write_text("mine")
    COMM.Barrier()
    options = {"checkpoint": folder / "run.ckpt"}

    def steps_of_optimizers():
        COMM.Barrier()
        found = {
            p.name.split("optimizer-")[1].split(".")[0]
            for p in folder.glob("run.ckpt.optimizer-*")
            if p.name not in mine
        }
        COMM.Barrier()
        return found

    fit(epochs=4, **options)
    assert steps_of_optimizers() == {"18", "24"}
    fit(epochs=5, resume=True, **options)
    assert steps_of_optimizers() == {"24", "30"}
    fit(epochs=2, keep=2, **options)  # a new run
    assert steps_of_optimizers() == {"6", "12"}, steps_of_optimizers()
    fit(epochs=4, resume=True, keep=2, **options)
    assert steps_of_optimizers() == {"18", "24"}
    for steps in (18, 24):
        assert fit(epochs=4, resume=folder / f"run-{steps}.ckpt")[1].steps == 24
    assert all((folder / name).read_text() == "mine" for name in mine)


def best_taken_back(folder):
    """The best checkpoint of an end that was none, and its optimizer's file, give way to those of the best before."""

    class Count:
        def begin(self, loop):
            self.steps = loop.steps

        __call__ = begin

    def run(name, steps, **options):
        count = Count()
        validate = lambda params: {3: 1.0, 5: 0.5}.get(count.steps + 1, 2.0)  # noqa: E731
        options |= {"validation": validate, "validate_every": 3, "checkpoint_every": 4}
        fit(checkpoint=Path(folder) / name, steps=steps, epochs=None, callbacks=count, **options)
        COMM.Barrier()
        return {".".join(x.name.split(".")[1:3]) for x in Path(folder).glob(f"{name}.best*")}

    whole = run("whole", 8)
    assert run("cut", 5) == {"best", "best.optimizer-3", "best.optimizer-5", "best.previous"}
    assert run("cut", 8, resume=True) == whole == {"best", "best.optimizer-3"}
    results = [fit(epochs=5, resume=Path(folder) / f"{name}.best")[0] for name in ("whole", "cut")]
    assert results[0]["w"].tobytes() == results[1]["w"].tobytes()
    assert format.read(Path(folder) / "cut.best", kind="training")["loop"]["steps"] == 3


def interrupted(folder):
    """Ctrl-C that only one rank hears ends all after the same step, and all say so, at the last step too."""
    path = Path(folder) / "run.ckpt"
    whole = fit(epochs=3)[0]["w"].tobytes()
    for last in (18, 4):
        calls = []

        def f(params, batch, calls=calls, last=last):
            calls.append(0)
            if LAST and len(calls) == last:
                signal.raise_signal(signal.SIGINT)
            return network(params, batch)

        result = fit(f, checkpoint=path)[1]
        assert result.reason == "interrupted" and result.steps in (last, last + 1)
        all_equal(result.steps)
        assert fit(checkpoint=path, resume=True)[0]["w"].tobytes() == whole


def generators():
    """Ranks whose shuffling generators part are told so before they see different data."""
    rng = np.random.default_rng(5)

    def f(params, batch):
        if LAST:
            rng.random()
        return network(params, batch)

    with refused(ValueError, "generator that shuffles"):
        fit(f, rng=rng)


def unwritable(folder):
    """Where one rank cannot save, all are told before the first step."""
    calls = []
    f = lambda p, batch: calls.append(0) or network(p, batch)  # noqa: E731
    rehearse = format.rehearse

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    if LAST:
        format.rehearse = refuse
    with refused(PermissionError if LAST else RuntimeError, "Permission denied"):
        fit(f, checkpoint=Path(folder) / "run.ckpt")
    format.rehearse = rehearse
    assert not calls


if __name__ == "__main__":
    run_named(globals(), RANK)
