"""fit between its steps: what is told to whom, which values count, and which arrays are trained."""

from __future__ import annotations

import functools
import json
import math
import subprocess
import sys
import warnings

import numpy as np
import pytest

import fastoptim as fo
from fastoptim import schedules


def constant_gradient(p, batch):
    return 1.0, np.ones_like(p)


def test_a_skipped_step_does_not_lower_the_rate():
    losses = iter([8.0, 7.0, math.nan, 6.0, 5.0, 4.0, 3.0, 2.0] * 2)
    plateau = schedules.Plateau(1.0, patience=0)
    told, update = [], plateau.update
    plateau.update = lambda metric: told.append(metric) or update(metric)
    f = lambda p, batch: (next(losses) - 0.5 * len(told), np.zeros(2))  # noqa: E731
    fo.fit(f, np.ones(2), np.ones(8), "sgd", lr=plateau, epochs=4, batch_size=2, skip_nonfinite=True, diagnose=False)
    assert told == pytest.approx([7.0, 3.0, 6.0, 2.0]) and plateau.best == 2.0
    nothing = schedules.Plateau(1.0, patience=0)
    f = lambda p, batch: (math.nan, np.zeros(2))  # noqa: E731
    fo.fit(f, np.ones(2), np.ones(8), "sgd", lr=nothing, epochs=3, batch_size=2, skip_nonfinite=True, diagnose=False)
    assert nothing.lr == 1.0  # an epoch without a single step says nothing


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_step_of_a_loss_that_is_not_finite_is_skipped(bad, accumulate):
    losses = iter([1.0, 1.0, bad, bad, 1.0, 1.0] if accumulate == 2 else [1.0, bad, 1.0])
    w = np.zeros(2)
    f = lambda p, batch: (next(losses), np.ones(2))  # noqa: E731
    options = {"steps": 3, "skip_nonfinite": True, "accumulate": accumulate, "batch_size": 2, "diagnose": False}
    result = fo.fit(f, w, np.ones(40), "sgd", lr=1.0, **options)
    assert result.history.applied.tolist() == [True, False, True] and w.tolist() == [-2.0, -2.0]
    assert result.optimizer.state["0"]["step"] == 2 and math.isnan(result.history.grad_norm[1])


@pytest.mark.parametrize("rate", [np.float32(0.1), np.float64(0.1), np.float16(0.1)])
def test_a_rate_has_the_bits_of_the_schedules_number(rate):
    def train(lr):
        w = np.ones(3)
        fo.fit(lambda p, batch: (1.0, np.full(3, 0.7)), w, None, fo.SGD(w, lr=0.1), lr=lr, steps=3)
        return w.tobytes()

    hand = np.ones(3)
    optimizer = fo.SGD(hand, lr=0.1)
    for _ in range(3):
        optimizer.lr = rate
        optimizer.step(np.full(3, 0.7))
    assert train(lambda step: rate) == hand.tobytes()


def test_a_number_as_rate_is_set_once_and_callbacks_may_change_it(tmp_path):
    def halve(loop):
        loop.optimizer.param_groups[0]["lr"] *= 0.5

    def rates(steps, lr, **options):
        w = [np.ones(1), np.ones(1)]
        opt = fo.SGD([{"params": w[0]}, {"params": w[1]}], lr=9.0)
        f = lambda p, batch: (1.0, [np.zeros(1)] * 2)  # noqa: E731
        result = fo.fit(f, w, None, opt, lr=lr, steps=steps, callbacks=[halve], **options)
        return result.history.lr.tolist(), opt.param_groups[1]["lr"]

    assert rates(3, 0.5) == ([0.5, 0.25, 0.125], 0.5)
    assert rates(3, [0.5, schedules.linear(1.0, 0.0, 2)]) == ([0.5, 0.25, 0.125], 0.0)
    rates(2, 0.5, checkpoint=tmp_path / "a.ckpt")
    assert rates(4, 0.5, resume=tmp_path / "a.ckpt")[0] == [0.5, 0.25, 0.125, 0.0625]


# --- Which arrays are trained ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["callback", "loss"])
@pytest.mark.parametrize("nested", [False, True])
def test_an_array_that_the_model_replaced_is_noticed(who, nested):
    params = {"v": np.ones(2), "w": np.ones(2), "mean": np.zeros(1)}
    if nested:
        params["deep"] = [np.ones(2)]
    optimizer = fo.SGD({"v": params["v"], "w": params["w"]})

    def rebind(*_):
        params["w"] = params["w"] * 0.5
        return 1.0, {"v": np.ones(2), "w": np.ones(2)}

    f = rebind if who == "loss" else lambda p, batch: (1.0, {"v": np.ones(2), "w": np.ones(2)})
    seen = []
    with pytest.raises(ValueError, match=r"\['w'\].*replaced.*\[\.\.\.\]"):
        fo.fit(f, params, None, optimizer, steps=9, callbacks=[lambda loop: seen.append(loop.steps), rebind])
    assert len(seen) <= 1  # at the first event after


def test_frozen_arrays_may_be_replaced():
    params = {"w": np.ones(2), "mean": np.zeros(1)}

    def f(p, batch):
        p["mean"] = p["mean"] + 1.0
        return 1.0, {"w": np.ones(2)}

    seen = []
    fo.fit(f, params, None, fo.SGD({"w": params["w"]}), steps=4, callbacks=[lambda loop: seen.append(loop.steps)])
    assert params["mean"].tolist() == [4.0] and seen == [1, 2, 3, 4]


# --- What is monitored ------------------------------------------------------------------------------------------------


def monitored(curve, **options):
    values, w = iter(curve), np.zeros(1)
    validation = lambda p: {"loss": 1.0, "accuracy": next(values)}  # noqa: E731
    options = {"steps": len(curve), "lr": 1.0, "validate_every": 1, "validation": validation} | options
    return w, fo.fit(constant_gradient, w, None, "sgd", **options)


def test_another_figure_can_be_monitored():
    options = {"monitor": "accuracy", "mode": "max", "early_stopping": 2, "restore_best": True}
    w, result = monitored([0.1, 0.5, 0.52, 0.4, 0.9], min_delta=0.05, **options)
    assert (result.reason, result.steps) == ("early stopping", 4)
    assert (result.best_step, result.best_value, result.best_loss) == (1, 0.5, 1.0) and w.tolist() == [-2.0]
    _, result = monitored([0.1, 0.5, 0.5, 0.4], monitor="accuracy", mode="min")
    assert (result.best_step, result.best_value) == (0, 0.1)


def test_what_is_monitored_is_resumed(tmp_path):
    path, options = tmp_path / "a.ckpt", {"monitor": "accuracy", "mode": "max", "restore_best": True}
    monitored([0.1, 0.5, 0.2], checkpoint=path, **options)
    w, result = monitored([0.4, 0.3], steps=5, resume=path, **options)
    assert (result.best_step, result.best_value) == (1, 0.5) and w.tolist() == [-2.0]
    with pytest.raises(fo.CheckpointError, match="monitor is 'loss' here, 'accuracy' there"):
        monitored([0.4, 0.3], steps=5, resume=path)


def test_a_plateau_is_told_what_is_monitored():
    plateau = schedules.Plateau(1.0, mode="max", patience=0)
    _, result = monitored([0.5, 0.6, 0.6, 0.7, 0.7], lr=plateau, monitor="accuracy", mode="max")
    assert result.history.lr.tolist() == pytest.approx([1.0, 1.0, 1.0, 0.1, 0.1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"monitor": "accuracy"}, "mode"),
        ({"monitor": "accuracy", "mode": "best"}, "mode"),
        ({"monitor": "recall", "mode": "max"}, r"'recall'.*\['loss', 'accuracy'\]"),
        ({"monitor": "accuracy", "mode": "max", "lr": schedules.Plateau(1.0)}, r"Plateau.*mode='min'.*'max'"),
        ({"lr": schedules.warmup(schedules.Plateau(1.0, mode="max"), 2)}, r"Plateau.*mode='max'.*'min'"),
        ({"validation": None, "validate_every": None, "monitor": "loss", "mode": "max"}, "need validation"),
    ],
)
def test_what_cannot_be_monitored_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        monitored([0.1, 0.2], **options)


def test_validation_that_is_never_a_number_is_said():
    with pytest.warns(fo.training.TrainingWarning, match=r"loss.*NaN.*3 validations.*restore_best"):
        result = fo.fit(
            constant_gradient, np.ones(1), None, "sgd", steps=3, validation=lambda p: math.nan, validate_every=1
        )
    assert result.best_step is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monitored([math.nan, 0.5], monitor="accuracy", mode="max")


# --- Longer than planned ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
@pytest.mark.parametrize("first", [3, 4, 5, 7, 8])
def test_a_prolonged_run_is_the_one_that_was_planned_longer(tmp_path, suffix, first):
    curve = [5.0, 5.0, 0.5, 4.0, 4.5, 4.6, 4.7, 4.8, 4.9, 4.0]  # the least is seen by an end at 3 alone

    def run(name, steps, **options):
        w = np.zeros(1)
        log, path = tmp_path / f"{name}.{suffix}", tmp_path / f"{name}.ckpt"
        result = fo.fit(
            lambda p, batch: (float(2 + p[0]), np.ones(1)),
            w,
            np.ones(100),
            "sgd",
            lr=schedules.Plateau(0.01, patience=0, threshold=0.1),
            batch_size=10,
            steps=steps,
            validation=lambda p: {"loss": curve[round(loop_steps[0])], "other": 1.0},
            validate_every=2,
            early_stopping=3,
            restore_best=True,
            callbacks=[Count()],
            checkpoint=path,
            log=log,
            max_norm=9.0,
            **options,
        )
        history = {key: column.tolist() for key, column in result.history.validation.items()}
        return w.tobytes(), history, result.history.lr.tolist(), result.best_step, result.best_loss, log.read_text()

    loop_steps = [0]

    class Count:
        def begin(self, loop):
            loop_steps[0] = loop.steps

        def __call__(self, loop):
            loop_steps[0] = loop.steps

    whole = run("whole", 9)
    cut = run("cut", first)
    assert run("cut", first, resume=True) == cut  # what has ended is as it was
    assert (first % 2 == 1) == (cut[1]["step"][-1] % 2 == 0)  # one more validation at an end in between
    assert run("cut", 9, resume=True) == whole


# --- What is recorded -------------------------------------------------------------------------------------------------

PROGRAM = """
import functools, sys, numpy as np, fastoptim as fo

def twice(step):
    return 0.2

class Own:
    def __call__(self, step):
        return 0.1

def made(rate):
    def schedule(step):
        return rate
    return schedule

rates = [twice, Own(), made(0.25), functools.partial(pow, 0.5), fo.schedules.warmup(lambda step: 0.1, 3)]
rates.append(Own().__call__)
w = [np.ones(1) for _ in rates]
optimizer = fo.SGD([{"params": x} for x in w])
f = lambda p, batch: (1.0, [np.ones(1) for _ in rates])
fo.fit(f, w, None, optimizer, lr=rates, steps=int(sys.argv[1]), checkpoint="run.ckpt", resume=True, log="run.jsonl")
"""


def test_functions_are_recorded_by_their_names(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    logs = []
    for steps in ((4,), (2, 4)):
        for end in steps:
            command = [sys.executable, "-W", "error", "program.py", str(end)]
            done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
        logs.append((tmp_path / "run.jsonl").read_bytes())
        for path in tmp_path.glob("run.*"):
            path.unlink()
    assert logs[0] == logs[1]
    text = json.loads(logs[0].splitlines()[0])["lr"]
    assert "0x" not in text and "twice, Own, made.<locals>.schedule(rate=0.25), partial(pow, 0.5), warmup(" in text


def test_a_plateau_is_recorded_with_its_first_rate():
    plateau = schedules.Plateau(0.5, patience=0)
    before = repr(plateau)
    plateau.update(1.0), plateau.update(1.0)
    assert plateau.lr == 0.05 and repr(plateau) == before
    assert eval(before, vars(schedules)).lr == 0.5


def test_what_partial_functions_hold_is_recorded():
    assert repr(schedules.scale(functools.partial(pow, 0.5), 2.0)) == "scale(schedule=partial(pow, 0.5), factor=2.0)"
