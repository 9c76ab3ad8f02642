"""fit: the loop does what a hand-written one does, stops where it should, and resumes to the same bits."""

from __future__ import annotations

import json
import math
import signal
import tracemalloc
import warnings

import numpy as np
import pytest

import fastoptim as fo
from fastoptim import schedules
from fastoptim.backends import available
from fastoptim.checkpoint import format, matching
from fastoptim.checkpoint.files import CheckpointError
from fastoptim.optimizers import saving
from fastoptim.training import live_diagnosis
from fastoptim.training.diagnosis import Diagnosis
from fastoptim.training.history import TrainingWarning

BACKENDS = [name for name in ("numpy", "c", "numba") if available(name) is None]


def problem(n=70, seed=0, dtype=np.float32):
    """A small network on made-up data: (params, (x, y), loss_and_grad)."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 6)).astype(dtype)
    y = np.tanh(x @ rng.standard_normal((6, 2)).astype(dtype))
    params = {
        "w1": (rng.standard_normal((6, 5)) / 2).astype(dtype),
        "b1": np.zeros(5, dtype),
        "head": [(rng.standard_normal((5, 2)) / 2).astype(dtype), np.zeros(2, dtype)],
    }
    return params, (x, y), network


def network(params, batch):
    x, y = batch
    w2, b2 = params["head"]
    h = np.tanh(x @ params["w1"] + params["b1"])
    error = h @ w2 + b2 - y
    d = error * error.dtype.type(2.0 / error.size)
    dh = (d @ w2.T) * (1 - h * h)
    grads = {"w1": x.T @ dh, "b1": dh.sum(0), "head": [h.T @ d, d.sum(0)]}
    return float((error * error).mean()), grads


def leaves(params):
    return [params["w1"], params["b1"], *params["head"]]


def bits(*things):
    return b"".join(np.ascontiguousarray(x).tobytes() for x in things)


def states(optimizer):
    state = optimizer.state_dict()["state"]
    return [np.asarray(entry[name]) for entry in state.values() for name in sorted(entry)]


# --- the loop ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [1, 3, 4])
@pytest.mark.parametrize("max_norm", [None, 0.05])
def test_equals_a_hand_written_loop(accumulate, max_norm):
    params, data, f = problem()
    schedule = schedules.warmup(schedules.cosine(0.05, 30), 4)
    fitted = fo.fit(
        f, params, data, "adam", lr=schedule, epochs=3, batch_size=16, rng=7, accumulate=accumulate, max_norm=max_norm
    )

    hand, data, f = problem()
    optimizer = fo.Adam(hand)
    batches = fo.minibatches(data, 16, rng=7)
    losses = []
    for _ in range(3):
        parts = list(batches)
        for start in range(0, len(parts), accumulate):
            group = [f(hand, batch) for batch in parts[start : start + accumulate]]
            sizes = [len(batch[0]) for batch in parts[start : start + accumulate]]
            loss, grads = group[0]
            if accumulate > 1:
                loss = sum(n * part for n, (part, _) in zip(sizes, group, strict=True)) / sum(sizes)
                means = [
                    sum(n / 16 * g.astype(np.float64) for n, g in zip(sizes, each, strict=True)) / (sum(sizes) / 16)
                    for each in zip(*[leaves(grads) for _, grads in group], strict=True)
                ]
                means = [mean.astype(np.float32) for mean in means]
                grads = {"w1": means[0], "b1": means[1], "head": means[2:]}
            optimizer.lr = schedule(len(losses))
            optimizer.step(grads, max_norm=max_norm)
            losses.append(loss)
    assert bits(*leaves(params)) == bits(*leaves(hand))
    assert bits(*states(fitted.optimizer)) == bits(*states(optimizer))
    assert np.allclose(fitted.history.loss, losses, rtol=1e-15, atol=0.0)
    assert fitted.steps == len(losses) and fitted.epochs == 3 and fitted.reason == "epochs"
    assert fitted.history.lr.tolist() == [schedule(k) for k in range(len(losses))]
    assert np.isnan(fitted.history.grad_norm).all() == (max_norm is None)
    assert fitted.history.applied.all() and fitted.history.epoch.tolist() == sorted(fitted.history.epoch.tolist())


def test_accumulating_all_minibatches_is_the_full_batch():
    """Values with few bits make every sum exact, so that the order of summation does not show."""
    rng = np.random.default_rng(3)
    x = rng.integers(-4, 5, (64, 3)).astype(np.float32)
    y = rng.integers(-4, 5, 64).astype(np.float32)

    def f(params, batch):
        error = batch[0] @ params - batch[1]
        return float(np.mean(error**2)), (batch[0] * error[:, None]).mean(0)

    results = []
    for size, accumulate in ((64, 1), (8, 8), (1, 64), (32, 2)):
        w = np.array([1.0, -2.0, 0.5], np.float32)
        fo.fit(f, w, (x, y), "sgd", lr=0.25, steps=1, batch_size=size, accumulate=accumulate, diagnose=False)
        results.append(w.tobytes())
    assert len(set(results)) == 1 and results[0] != np.array([1.0, -2.0, 0.5], np.float32).tobytes()

    # A short minibatch counts for the examples it has: 40 + 24, in one step.
    w = np.array([1.0, -2.0, 0.5])
    fo.fit(f, w, (x.astype(float), y), "sgd", lr=0.25, steps=1, batch_size=40, accumulate=5, diagnose=False)
    assert np.allclose(w, np.frombuffer(results[0], np.float32), rtol=1e-6)


def test_accumulation_keeps_none_gradients_and_no_references():
    grads = {"a": np.ones(2), "b": np.ones(2), "c": None}

    def f(params, batch):
        grads["a"][...] = batch.mean()  # the same buffer every time
        return 1.0, grads | {"b": np.ones(2) if batch[0] > 0 else None}

    params = {name: np.zeros(2) for name in "abc"}
    x = np.arange(4.0)
    result = fo.fit(f, params, x, "sgd", lr=1.0, steps=1, batch_size=1, shuffle=False, accumulate=4, diagnose=False)
    assert params["a"].tolist() == [-1.5, -1.5]
    assert params["b"].tolist() == [-0.75, -0.75]
    assert params["c"].tolist() == [0.0, 0.0] and result.optimizer.state["c"]["step"] == 0


@pytest.mark.parametrize(
    ("first", "second", "error", "message"),
    [
        (np.ones(1), np.ones(3), ValueError, r"'w': shape \(1,\) in one minibatch, \(3,\) in another"),
        (np.ones(3), np.ones((3, 1)), ValueError, "'w': shape"),
        (np.ones(3), np.ones(3, np.float32), TypeError, "'w': dtype float64 in one minibatch, float32 in another"),
        (np.ones(3), np.ones(3, int), TypeError, "'w': dtype"),
        (np.ones(3), np.ma.ones(3), TypeError, "'w': accumulate needs NumPy arrays, got MaskedArray"),
        (np.ma.ones(3), np.ones(3), TypeError, "'w': accumulate needs"),
        (np.ones(3, int), np.ones(3, int), TypeError, r"'w': expected .*float32.*int64"),
    ],
)
def test_accumulated_gradients_are_all_alike(first, second, error, message):
    w, gradients = np.ones(3), iter([first, second])
    with pytest.raises(error, match=message):
        fo.fit(
            lambda p, batch: (1.0, {"w": next(gradients)}),
            {"w": w},
            np.ones(8),
            "sgd",
            steps=1,
            accumulate=2,
            batch_size=4,
        )
    assert w.tolist() == [1.0] * 3


def test_groups_can_have_a_schedule_each_and_frozen_parameters_stay():
    params, data, f = problem()
    optimizer = fo.SGD([{"params": [params["w1"]]}, {"params": params["head"], "lr": 0.5}], lr=0.1)

    def grouped(p, batch):
        loss, grads = f(p, batch)
        return loss, [[grads["w1"]], grads["head"]]

    bias = params["b1"].copy()
    rates = []
    fo.fit(
        grouped,
        params,
        data,
        optimizer,
        lr=[schedules.linear(0.1, 0.0, 5), 0.25],
        steps=5,
        callbacks=[lambda loop: rates.append([group["lr"] for group in loop.optimizer.param_groups])],
    )
    assert rates == [[schedules.linear(0.1, 0.0, 5)(k), 0.25] for k in range(5)]
    for flattening in (0.1, schedules.linear(0.1, 0.0, 5)):
        with pytest.raises(ValueError, match=r"own, 0.02 \(0.0, \.\.\.\), 0.25 .* lr=\[schedule, "):
            fo.fit(grouped, params, data, optimizer, lr=flattening, steps=6)
    assert np.array_equal(params["b1"], bias)
    assert np.any(params["w1"] != problem()[0]["w1"])


@pytest.mark.parametrize("bad", [-1.0, math.nan, "x"])
def test_a_rate_that_is_none_is_refused_before_anything_changes(bad):
    w, calls = np.ones(2), []

    def f(p, batch):
        calls.append(batch)
        return 1.0, np.ones(2)

    optimizer = fo.SGD(w, lr=0.5)
    with pytest.raises((TypeError, ValueError), match="lr must be"):
        fo.fit(f, w, None, optimizer, lr=lambda step: bad if step == 3 else 0.25, steps=9)
    assert optimizer.lr == 0.25 and len(calls) == 3 and w.tolist() == [0.25, 0.25]


def test_a_step_allocates_nothing_large():
    """From one call of `loss_and_grad` to the next: the batches, of 512 KiB, come from buffers."""
    data = np.zeros((1024, 1024), np.float32)
    w, g = np.zeros(1024, np.float32), np.ones(1024, np.float32)
    peaks, current = [], 0

    def f(p, batch):
        nonlocal current
        peaks.append(tracemalloc.get_traced_memory()[1] - current)
        tracemalloc.reset_peak()
        current = tracemalloc.get_traced_memory()[0]
        return 1.0, g

    tracemalloc.start()
    try:
        fo.fit(f, w, data, "adam", lr=schedules.cosine(0.1, 99), steps=60, batch_size=128, max_norm=1.0)
    finally:
        tracemalloc.stop()
    assert len(peaks) == 60 and max(peaks[:3]) > 2**19
    assert max(peaks[20:]) < 16_384  # the permutation of an epoch has 8 KiB


def test_params_may_be_groups():
    w, b = np.ones(3), np.ones(2)
    groups = [{"params": w, "lr": 0.5}, {"params": [b]}]

    def f(params, batch):
        return 1.0, [{"params": np.ones(3)}, {"params": [np.ones(2)]}]

    result = fo.fit(f, groups, None, "sgd", steps=1)
    assert w.tolist() == [0.5] * 3 and b.tolist() == [0.999] * 2 and result.steps == 1


def test_without_data():
    w = np.array([3.0, -4.0])
    result = fo.fit(lambda p, batch: (0.5 * float(p @ p), p.copy()), w, None, "sgd", lr=0.1, steps=50)
    assert np.allclose(w, np.array([3.0, -4.0]) * 0.9**50)
    assert (result.reason, result.epochs, result.steps, len(result.history)) == ("steps", 0, 50, 50)


def test_ends_after_steps_or_epochs_whichever_comes_first():
    for epochs, steps, expected in ((2, None, (10, 2, "epochs")), (None, 7, (7, 1, "steps")), (2, 7, (7, 1, "steps"))):
        params, data, f = problem()
        result = fo.fit(f, params, data, "sgd", epochs=epochs, steps=steps, batch_size=16)
        assert (result.steps, result.epochs, result.reason) == expected
    params, data, f = problem()
    assert fo.fit(f, params, data, "sgd", epochs=1, steps=7, batch_size=16).reason == "epochs"


def test_callbacks_see_every_step_and_can_stop():
    params, data, f = problem()
    seen = []

    def watch(loop):
        seen.append((loop.steps, loop.epoch, loop.epoch_ended, loop.loss, loop.lr, loop.info.applied))
        if loop.steps == 8:
            loop.stop("seen enough")

    result = fo.fit(f, params, data, "sgd", lr=0.1, epochs=9, batch_size=16, callbacks=[watch])
    assert result.reason == "seen enough" and result.steps == 8
    assert [entry[0] for entry in seen] == list(range(1, 9))
    assert [entry[2] for entry in seen] == [False] * 4 + [True] + [False] * 3
    assert [entry[3] for entry in seen] == result.history.loss.tolist()


# --- validation -----------------------------------------------------------------------------------------------------


def test_validation_early_stopping_and_the_best():
    params, data, f = problem()
    curve = iter([5.0, 4.0, 3.0, 3.5, 2.95, 3.1, 3.2, 0.0])
    kept = []

    def validate(p):
        loss = next(curve)
        kept.append(bits(*leaves(p)))
        return {"loss": loss, "accuracy": -loss}

    result = fo.fit(
        f,
        params,
        data,
        "sgd",
        lr=0.1,
        epochs=50,
        batch_size=16,
        validation=validate,
        early_stopping=3,
        min_delta=0.1,
        restore_best=True,
    )
    history = result.history.validation
    assert result.reason == "early stopping" and history["loss"].tolist() == [5.0, 4.0, 3.0, 3.5, 2.95, 3.1]
    assert history["step"].tolist() == [4, 9, 14, 19, 24, 29] and history["accuracy"][1] == -4.0
    assert (result.best_step, result.best_loss) == (14, 3.0)
    assert bits(*leaves(params)) == kept[2] != kept[-1]


def test_validation_on_data_is_the_mean_over_its_examples():
    params, data, f = problem(seed=1)
    held_out = problem(n=701, seed=5)[1]
    result = fo.fit(f, params, data, "sgd", steps=4, batch_size=16, validation=held_out, validate_every=3)
    assert result.history.validation["step"].tolist() == [2, 3]
    assert np.isclose(result.history.validation["loss"][-1], f(params, held_out)[0], rtol=1e-6)


def test_validation_by_minibatches_takes_every_example_once_from_a_position_of_its_own():
    x = np.arange(10.0)
    f = lambda p, batch: (float(np.mean(batch)), np.zeros(1))  # noqa: E731
    for options in ({"drop_last": True}, {"shuffle": False, "drop_last": True}, {}):
        held_out = fo.minibatches(x, 4, **options)
        held_out.next_batch()
        before = repr(held_out.state_dict())
        result = fo.fit(f, np.zeros(1), np.zeros(8), "sgd", epochs=3, batch_size=8, validation=held_out)
        assert result.history.validation["loss"].tolist() == [4.5] * 3
        assert repr(held_out.state_dict()) == before
    batches = fo.minibatches(np.arange(40.0), 4)  # the same object twice
    result = fo.fit(f, np.zeros(1), batches, "sgd", epochs=3, validation=batches, validate_every=3)
    assert result.steps == 30 and set(result.history.validation["loss"]) == {19.5}


def test_a_plateau_counts_once_wherever_it_stands(tmp_path):
    def rates(lr, epochs=5, optimizer=None, w=None, **options):
        w = [np.ones(2), np.ones(2)] if w is None else w
        f = lambda p, batch: (1.0, [np.zeros(2)] * 2)  # noqa: E731
        return fo.fit(f, w, np.ones(20), optimizer or "sgd", lr=lr, epochs=epochs, batch_size=10, **options).history.lr

    plateau = lambda: schedules.Plateau(1.0, patience=0)  # noqa: E731
    plain = rates(plateau())
    assert plain.tolist() == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    made_of_it = {
        "warmup": lambda p: schedules.warmup(p, 0),
        "scale": lambda p: schedules.scale(schedules.constant(1.0), p),
        "join": lambda p: schedules.join([p, schedules.constant(9.0)], [1000]),
        "nested": lambda p: schedules.warmup(schedules.scale(p, 1.0), 0),
    }
    for name, make in made_of_it.items():
        assert np.array_equal(rates(make(plateau())), plain), name
        path = tmp_path / name
        rates(make(plateau()), 3, checkpoint=path)
        assert np.array_equal(rates(make(plateau()), resume=path), plain), name
    w, shared = [np.ones(2), np.ones(2)], plateau()
    groups = fo.SGD([{"params": w[0]}, {"params": w[1]}])
    assert np.array_equal(rates([shared, schedules.warmup(shared, 0)], optimizer=groups, w=w), plain)


def test_plateau_is_told_the_validation_loss_or_the_epochs_mean():
    params, data, f = problem()
    losses = iter([1.0] * 9)
    plateau = schedules.Plateau(0.1, patience=1)
    fo.fit(f, params, data, "sgd", lr=plateau, epochs=4, batch_size=16, validation=lambda p: next(losses))
    assert plateau.lr == pytest.approx(0.01)

    params, data, f = problem()
    told = []
    plateau = schedules.Plateau(0.1)
    plateau.update = told.append
    result = fo.fit(f, params, data, "sgd", lr=plateau, epochs=3, batch_size=16)
    assert np.allclose(told, result.history.loss.reshape(3, 5).mean(1), rtol=1e-12)


# --- what it says ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_ends_training_before_its_step(tmp_path, bad):
    params, data, f = problem()
    target = tmp_path / "run.ckpt"
    before = []

    def breaks(p, batch):
        loss, grads = f(p, batch)
        if len(before) == 7:
            return bad, grads
        before.append(bits(*leaves(p)))
        return loss, grads

    with pytest.warns(TrainingWarning, match=rf"{bad} at step 7.*divide the learning rate by 10"):
        result = fo.fit(breaks, params, data, "sgd", lr=0.1, epochs=3, batch_size=16, checkpoint=target)
    assert result.reason == "non-finite loss" and result.steps == len(result.history) == 7
    assert result.diagnosis.verdict == "diverged" and bits(*leaves(params)) != before[-1]
    saved, _, _ = problem()
    optimizer = fo.SGD(saved)
    optimizer.load(target)
    assert optimizer.state["w1"]["step"] == 5  # the last good checkpoint, at the end of the first epoch


@pytest.mark.parametrize(("make", "text"), [(fo.FTRL, "lr: it must be > 0"), (fo.SGD, "lr = 1e\\+39 is infinite")])
def test_a_skipped_step_refuses_a_rate_that_no_checkpoint_could_hold(make, text):
    w = np.zeros(2, np.float32)
    losses, rate = iter([math.nan, 1.0, 1.0]), 0.0 if make is fo.FTRL else 1e39
    f = lambda p, batch: (next(losses), np.ones(2, np.float32))  # noqa: E731
    with pytest.raises(ValueError, match=text):
        fo.fit(f, w, None, make(w), lr=lambda step: 0.1 if step else rate, steps=3, skip_nonfinite=True)
    assert next(losses) == 1.0  # it ended at the first step


def test_diagnosis_beside_the_loop_names_the_remedy():
    w = np.array([1.0, 1.0])
    curvature = np.array([1.0, 100.0])

    def f(p, batch):
        return 0.5 * float(p @ (curvature * p)), curvature * p

    with pytest.warns(TrainingWarning, match=r"after 300 steps.*too slow.*learning rate"):
        result = fo.fit(f, w, None, "sgd", lr=1e-6, steps=350)
    assert result.diagnosis.verdict == "too slow"
    w = np.array([1.0, 1.0])
    with pytest.warns(TrainingWarning, match="training seems to have diverged"):
        fo.fit(f, w, None, "sgd", lr=0.0205, steps=350)
    for lr, remedy in ((0.01, "by a schedule"), (schedules.constant(0.01), "wait if the schedule will lower")):
        with pytest.warns(TrainingWarning, match=f"seems to have reached a plateau.*{remedy}"):
            result = fo.fit(lambda p, _: (f(p, _)[0] + 1.0, f(p, _)[1]), np.ones(2), None, "sgd", lr=lr, steps=350)
        assert remedy in result.diagnosis.remedy
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = fo.fit(f, np.array([1.0, 1.0]), None, "sgd", lr=1e-6, steps=350, diagnose=False)
    assert result.diagnosis.verdict == "too slow"
    assert fo.fit(f, np.array([1.0, 1.0]), None, "sgd", lr=1e-6, steps=5).diagnosis is None


def test_progress_bar_is_silent_off_a_terminal(capsys):
    params, data, f = problem()
    fo.fit(f, params, data, "sgd", steps=5)
    assert capsys.readouterr() == ("", "")
    fo.fit(f, params, data, "sgd", steps=5, progress=True)
    assert "5/5" in capsys.readouterr().err


def test_logs(tmp_path):
    for suffix in ("jsonl", "csv"):
        params, data, f = problem()
        fo.fit(
            f,
            params,
            data,
            "adam",
            lr=schedules.linear(0.1, 0.0, 20),
            epochs=2,
            batch_size=16,
            max_norm=1.0,
            validation=lambda p: {"loss": 1.5, "accuracy": math.nan},
            log=tmp_path / f"run.{suffix}",
        )
    lines = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert lines[0]["kind"] == "run" and lines[0]["version"] == 1 and lines[0]["optimizer"] == "Adam"
    steps = [line for line in lines if line["kind"] == "step"]
    assert [line["step"] for line in steps] == list(range(10)) and [line["epoch"] for line in steps] == [0] * 5 + [
        1
    ] * 5
    assert set(steps[0]) == {"kind", "step", "epoch", "loss", "lr", "grad_norm", "applied"}
    assert [line for line in lines if line["kind"] == "validation"] == [
        {"kind": "validation", "step": k, "loss": 1.5, "accuracy": None} for k in (4, 9)
    ]
    rows = [row.split(",") for row in (tmp_path / "run.csv").read_text().splitlines()]
    assert rows[0] == ["step", "epoch", "loss", "lr", "grad_norm", "applied", "validation_loss"] and len(rows) == 11
    assert [row[-1] for row in rows[1:]] == ["", "", "", "", "1.5"] * 2
    assert [float(row[2]) for row in rows[1:]] == [line["loss"] for line in steps]


# --- resume ---------------------------------------------------------------------------------------------------------


class Mean:
    """A callback with a state."""

    def __init__(self):
        self.value = 0.0

    def __call__(self, loop):
        self.value = 0.9 * self.value + 0.1 * loop.loss

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = float(state["value"])


def noisy(rng):
    """A loss that draws from the generator that also shuffles: dropout, say."""

    def f(params, batch):
        x, y = batch
        keep = (rng.random(x.shape) < 0.8).astype(x.dtype)
        return network(params, (x * keep, y))

    return f


def run(folder, name, *, stop=None, backend="numpy", resume=False, epochs=4, kind="adam", log=True):
    """One run with everything that has a state; `stop` raises after that many calls of the loss function."""
    params, data, _ = problem()
    rng = np.random.default_rng(11)
    loss_and_grad, mean, calls = noisy(rng), Mean(), iter(range(10**6))

    def f(p, batch):
        if next(calls) == stop:
            raise KeyboardInterrupt
        return loss_and_grad(p, batch)

    make = {
        "adam": lambda: fo.Adam(params, amsgrad=True, backend=backend),
        "momentum": lambda: fo.SGD(params, momentum=0.9, dampening=0.2, backend=backend),
    }
    held_out = problem(n=20, seed=5)[1]
    result = fo.fit(
        f,
        params,
        data,
        make[kind](),
        lr=schedules.Plateau(0.02, patience=0, threshold=0.05),
        epochs=epochs,
        batch_size=16,
        rng=rng,
        accumulate=2,
        max_norm=0.5,
        validation=lambda p: network(p, held_out)[0],
        validate_every=2,
        restore_best=True,
        callbacks=[mean],
        checkpoint=folder / f"{name}.ckpt",
        checkpoint_every=3,
        resume=resume,
        log=folder / f"{name}.jsonl" if log else None,
    )
    history = result.history
    return (
        bits(*leaves(params), *states(result.optimizer), history.loss, history.lr, history.grad_norm, history.epoch),
        {name: column.tolist() for name, column in history.validation.items()},
        (result.steps, result.epochs, result.reason, result.best_step, result.best_loss, mean.value),
        (folder / f"{name}.jsonl").read_bytes() if log else None,
    )


@pytest.mark.parametrize("kind", ["adam", "momentum"])
@pytest.mark.parametrize("second", BACKENDS)
def test_resume_is_exact_to_the_last_bit(tmp_path, kind, second):
    whole = run(tmp_path, "whole", kind=kind)
    for stop in range(0, 20, 3):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, f"cut{stop}", stop=stop, kind=kind)
        again = run(tmp_path, f"cut{stop}", resume=True, backend=second, kind=kind)
        assert again == whole


def test_a_finished_run_resumes_to_itself_and_can_be_prolonged(tmp_path):
    assert run(tmp_path, "a", epochs=4) == run(tmp_path, "a", epochs=4, resume=True)
    run(tmp_path, "b", epochs=2)
    assert run(tmp_path, "b", epochs=4, resume=True) == run(tmp_path, "a", epochs=4)


def test_patience_is_resumed(tmp_path):
    def run_until(steps, **options):
        w = np.ones(2)
        f = lambda p, batch: (1.0, np.ones(2))  # noqa: E731
        return fo.fit(
            f, w, None, "sgd", steps=steps, validation=lambda p: 1.0, validate_every=1, early_stopping=6, **options
        )

    assert run_until(50).steps == 7
    run_until(4, checkpoint=tmp_path / "a.ckpt", checkpoint_every=999)
    assert run_until(50, resume=tmp_path / "a.ckpt").steps == 7
    run_until(50, checkpoint=tmp_path / "a.ckpt", checkpoint_every=999)
    again = run_until(50, resume=tmp_path / "a.ckpt")
    assert (again.steps, again.reason) == (7, "early stopping")


def test_the_best_parameters_are_resumed(tmp_path):
    def run_until(steps, **options):
        w = np.ones(1)
        f = lambda p, batch: (1.0, np.ones(1))  # noqa: E731
        result = fo.fit(
            f,
            w,
            None,
            "sgd",
            lr=0.1,
            steps=steps,
            validation=lambda p: abs(p[0] - 0.7),
            validate_every=1,
            restore_best=True,
            **options,
        )
        return w.tobytes(), result.best_step, result.best_loss

    whole = run_until(10)
    run_until(5, checkpoint=tmp_path / "a.ckpt", checkpoint_every=999)
    assert run_until(10, resume=tmp_path / "a.ckpt") == whole and whole[1] == 2


def test_the_best_parameters_must_be_in_the_checkpoint(tmp_path):
    path, losses = tmp_path / "a.ckpt", iter([1.0, 0.5, 0.9, 0.8, 2.0, 3.0, 4.0])

    def run_until(steps, **options):
        w = np.ones(1)
        options |= {
            "validation": lambda p: next(losses),
            "validate_every": 1,
            "checkpoint": path,
            "checkpoint_every": 9,
        }
        return w, lambda: fo.fit(lambda p, batch: (1.0, np.ones(1)), w, None, "sgd", steps=steps, **options)

    run_until(3)[1]()
    w, fit = run_until(4, resume=True, restore_best=True)
    with pytest.raises(CheckpointError, match=r"without restore_best=True.*a\.best\.ckpt"):
        fit()
    assert w.tolist() == [1.0]
    # Nor may best parameters stay that a run without restore_best no longer keeps up to date.
    losses = iter([1.0, 0.9, 0.1])
    run_until(2, restore_best=True)[1]()
    run_until(3, resume=True)[1]()
    with pytest.raises(CheckpointError, match="without restore_best"):
        run_until(4, resume=True, restore_best=True)[1]()


def test_a_resumed_run_does_not_repeat_its_warnings(tmp_path):
    def run_until(steps, **options):
        return fo.fit(lambda p, batch: (1.0 + 1e-9 * p[0], np.ones(2)), np.ones(2), None, "sgd", steps=steps, **options)

    with pytest.warns(TrainingWarning, match="too slow"):
        run_until(310, checkpoint=tmp_path / "a.ckpt", checkpoint_every=999)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_until(1250, resume=tmp_path / "a.ckpt")
    with pytest.warns(TrainingWarning, match="after 300 steps"):
        run_until(299, checkpoint=tmp_path / "a.ckpt", checkpoint_every=999)
        run_until(310, resume=tmp_path / "a.ckpt")


def test_a_resumed_run_is_diagnosed_when_an_uninterrupted_one_is(tmp_path, monkeypatch):
    lengths = []

    def record(losses, **options):
        lengths.append(len(losses))
        return Diagnosis("healthy", {}, "", 1.0, "falling")

    def run_until(steps, **options):
        lengths.clear()
        fo.fit(lambda p, batch: (1.0, np.ones(2)), np.ones(2), None, "sgd", steps=steps, **options)
        return list(lengths)

    monkeypatch.setattr(live_diagnosis, "read_curve", record)
    path = tmp_path / "a.ckpt"
    assert run_until(1300) == [300, 1200]
    assert run_until(400, checkpoint=path, checkpoint_every=999) == [300]
    whole = path.read_bytes()
    assert run_until(310, checkpoint=path, checkpoint_every=999) == [300]
    assert run_until(400, checkpoint=path, checkpoint_every=999, resume=True) == []
    assert path.read_bytes() == whole
    assert run_until(1300, resume=path) == [1200]
    assert run_until(310, checkpoint=path, checkpoint_every=999, diagnose=False) == []
    assert run_until(1300, resume=path) == [4 * 310 + 1]


def test_a_resume_that_fails_leaves_data_schedule_and_callbacks_where_they_were(tmp_path):
    class Refusing(Mean):
        def load_state_dict(self, state):
            if told == "not this state" and state != self.state_dict():
                raise ValueError(told)

    params, data, f = problem()
    path = tmp_path / "run.ckpt"
    options, saved = {"validation": lambda p: 1.0, "validate_every": 1}, [Mean(), Refusing()]
    options |= {"lr": schedules.Plateau(0.5, patience=0)}
    batches = fo.minibatches(data, 16, rng=5)
    fo.fit(f, params, batches, "adam", steps=7, callbacks=saved, checkpoint=path, **options)

    batches, plateau, mean = fo.minibatches(data, 16, rng=5), schedules.Plateau(0.5, patience=0), Mean()
    batches.next_batch()
    plateau.update(3.0)
    before = [part.state_dict() for part in (batches, plateau, mean)]
    cut = {**params, "w1": params["w1"][:, :4].copy()}
    for target, optimizer, told in ((params, "sgd", "SGD"), (cut, "adam", "w1"), (params, "adam", "not this state")):
        options |= {"lr": plateau, "callbacks": [mean, Refusing()]}
        with pytest.raises(CheckpointError, match=told):
            fo.fit(f, target, batches, optimizer, steps=9, resume=path, **options)
        assert str([part.state_dict() for part in (batches, plateau, mean)]) == str(before)


def test_a_callback_may_have_no_state_before_it_begins(tmp_path):
    class Late(Mean):
        def __init__(self):
            pass

        def begin(self, loop):
            if loop.steps == 0:
                self.value = 0.0

    params, data, f = problem()
    whole, part, rest = Late(), Late(), Late()
    path = tmp_path / "run.ckpt"
    fo.fit(f, params, data, steps=9, callbacks=whole)
    params, data, f = problem()
    fo.fit(f, params, data, steps=5, callbacks=part, checkpoint=path)
    fo.fit(f, params, data, steps=9, callbacks=rest, resume=path)
    assert rest.value == whole.value != part.value


def test_checkpoints_come_every_so_many_steps(tmp_path):
    path, seen = tmp_path / "a.ckpt", []

    def f(p, batch):
        seen.append(path.exists() and format.read(path, kind="training")["loop"]["steps"])
        return 1.0, np.ones(2)

    fo.fit(f, np.ones(2), None, "sgd", steps=8, checkpoint=path, checkpoint_every=3)
    assert seen == [False, False, False, 3, 3, 3, 6, 6]
    assert format.read(path, kind="training")["loop"]["steps"] == 8


def test_resume_takes_the_previous_checkpoint_if_the_last_is_damaged(tmp_path):
    whole = run(tmp_path, "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "cut", stop=19)
    path = tmp_path / "cut.ckpt"
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.warns(TrainingWarning, match="checksum.*checkpoint before it"):
        assert run(tmp_path, "cut", resume=True) == whole
    path.unlink()
    with pytest.warns(TrainingWarning, match="checkpoint before it"):
        assert run(tmp_path, "cut", resume=True) == whole
    path.unlink()
    (tmp_path / "cut.ckpt.previous").unlink()
    with pytest.raises(FileNotFoundError):
        run(tmp_path, "cut", resume=path)
    assert run(tmp_path, "cut", resume=True) == whole  # nothing to resume from: it begins


def test_a_checkpoint_that_a_run_would_replace_is_told(tmp_path):
    path = tmp_path / "run.ckpt"
    options = {"batch_size": 16, "checkpoint": path}

    def run(steps, **more):
        params, data, f = problem()
        fo.fit(f, params, data, "adam", steps=steps, **options, **more)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(2)
        run(3, resume=True)
    with pytest.warns(TrainingWarning, match=r"run\.ckpt exists.*run\.ckpt\.previous.*resume=True") as caught:
        run(2)
    assert [warning.filename for warning in caught] == [__file__]
    fo.SGD(np.ones(3)).save(tmp_path / "saved.ckpt")
    with pytest.raises(CheckpointError, match=r"kind 'optimizer', expected training: .*opt\.load.*without resume"):
        run(3, resume=tmp_path / "saved.ckpt")


def test_resume_refuses_other_data_models_and_optimizers(tmp_path):
    params, data, f = problem()
    path = tmp_path / "run.ckpt"
    fo.fit(f, params, data, "adam", steps=7, batch_size=16, checkpoint=path)
    other, more, _ = problem(n=71)
    for arguments, options, message in (
        ((params, more, "adam"), {"batch_size": 16}, "examples"),
        ((params, data, "adam"), {"batch_size": 17}, "batch_size"),
        ((params, data, "adam"), {"batch_size": 16, "shuffle": False}, "shuffle"),
        ((params, data, "adam"), {"batch_size": 16, "accumulate": 2}, "accumulate"),
        ((params, data, "sgd"), {"batch_size": 16}, "Adam"),
        (
            (params, data, "adam"),
            {"batch_size": 16, "rng": np.random.Generator(np.random.MT19937(0))},
            "rng is Generator",
        ),
        ((params, data, "adam"), {"batch_size": 16, "callbacks": [Mean()]}, "callbacks"),
        (({**params, "w1": params["w1"].astype(np.float64)}, data, "adam"), {"batch_size": 16}, "w1"),
        (({**params, "more": np.zeros(2)}, data, "adam"), {"batch_size": 16}, "parameters"),
        ((params, None, "adam"), {"checkpoint_every": 9}, "batches|there is none"),
    ):
        before = bits(*leaves(arguments[0]))
        with pytest.raises(CheckpointError, match=message):
            fo.fit(f, *arguments, steps=9, checkpoint=path, resume=True, **options)
        assert bits(*leaves(arguments[0])) == before
    with pytest.raises(CheckpointError, match=r"lr is \[0.5\] here, \[0.001\] there"):
        fo.fit(f, other, data, "adam", lr=0.5, steps=9, batch_size=16, resume=path)
    fo.fit(f, other, data, "adam", lr=0.5, steps=9, batch_size=16, resume=path, override=["lr"])


def test_a_log_is_cut_where_training_goes_on(tmp_path):
    params, data, f = problem()
    options = {"batch_size": 16, "checkpoint": tmp_path / "a.ckpt", "checkpoint_every": 6, "log": tmp_path / "a.jsonl"}
    fo.fit(f, params, data, "adam", steps=10, **options)
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 1 + 10
    fo.fit(f, params, data, "adam", steps=8, resume=tmp_path / "a.ckpt.previous", **options)
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines[1:]] == list(range(8))
    (tmp_path / "a.jsonl").write_text("")
    with pytest.warns(TrainingWarning, match="cannot be continued"):
        fo.fit(f, params, data, "adam", steps=9, resume=True, **options)


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_the_log_of_another_run_is_not_cut(tmp_path, suffix):
    def fit(steps, log, start=1.0, **options):
        w = np.full(2, start)
        f = lambda p, batch: (float(p @ p), 2 * p)  # noqa: E731
        options |= {"validation": lambda p: 1.0, "validate_every": 2, "log": tmp_path / f"{log}.{suffix}"}
        fo.fit(f, w, None, "sgd", lr=0.1, steps=steps, **options)
        return w

    path, own, other = tmp_path / "run.ckpt", tmp_path / f"own.{suffix}", tmp_path / f"other.{suffix}"
    fit(4, "own", checkpoint=path, checkpoint_every=999)
    cut, whole = own.read_bytes(), own.read_bytes() + b"more"
    fit(9, "other", 7.0)
    step = (b"\n3,", b"\n5,") if suffix == "csv" else (b": 3", b": 5")
    altered = [cut.replace(*step), cut.replace(b"0.524", b"0.624"), cut[:-1] + b" more\n", cut[:-1], cut[:-9], cut[1:]]
    assert cut not in altered
    for content in (other.read_bytes(), other.read_bytes()[:50], b"x" * 5000, b"x" * 500 + b"\n", *altered):
        other.write_bytes(content)
        with pytest.raises(CheckpointError, match=f"other.{suffix} is not the log"):
            fit(5, "other", 3.0, resume=path)
        assert other.read_bytes() == content
    own.write_bytes(whole)
    fit(4, "none", checkpoint=tmp_path / "silent.ckpt", checkpoint_every=999)
    (tmp_path / f"none.{suffix}").unlink()
    w = np.full(2, 1.0)
    f = lambda p, batch: (float(p @ p), 2 * p)  # noqa: E731
    silent = {"checkpoint": tmp_path / "silent.ckpt", "checkpoint_every": 9}
    fo.fit(f, w, None, "sgd", lr=0.1, steps=4, validation=lambda p: 1.0, validate_every=9, **silent)
    with pytest.raises(CheckpointError, match="written without a log"):
        fit(5, "own", resume=tmp_path / "silent.ckpt")
    assert own.read_bytes() == whole
    fit(5, "own", resume=path)
    assert own.read_bytes()[: len(cut)] == cut and own.read_bytes()[len(cut) :].count(b"\n") == 1 + (suffix == "jsonl")


def test_frozen_arrays_are_part_of_the_state(tmp_path):
    def f(params, batch):
        params["mean"] += 0.1 * (batch.mean() - params["mean"])  # as normalisation layers do
        return float(params["mean"][0]), {"w": params["mean"].copy()}

    results = []
    for cut in (False, True):
        params = {"w": np.zeros(1), "mean": np.zeros(1)}
        options = {"batch_size": 3, "checkpoint": tmp_path / f"{cut}.ckpt"}
        if cut:
            fo.fit(f, params, np.arange(30.0), fo.SGD({"w": params["w"]}, lr=0.1), steps=7, **options)
            params = {"w": np.full(1, 9.0), "mean": np.full(1, 9.0)}
        optimizer = fo.SGD({"w": params["w"]}, lr=0.1)
        fo.fit(f, params, np.arange(30.0), optimizer, steps=15, resume=cut, **options)
        results.append(bits(params["w"], params["mean"]))
    assert results[0] == results[1]


def test_read_only_and_foreign_frozen_arrays(tmp_path):
    def fit(params, steps, **options):
        f = lambda p, batch: (float(p["w"] @ p["w"]), {"w": p["w"].copy()})  # noqa: E731
        optimizer = fo.SGD({"w": params["w"]}, lr=0.1)
        return fo.fit(f, params, np.ones(20), optimizer, steps=steps, batch_size=10, **options)

    def make(w, frozen, dtype=float):
        frozen = np.full(2, frozen, dtype)
        frozen.flags.writeable = False
        return {"w": np.full(2, w), "frozen": frozen}

    path = tmp_path / "a.ckpt"
    for dtype in ("<f8", ">f4"):
        params = make(1.0, 5.0, dtype)
        fit(params, 3, checkpoint=path, validation=lambda p: 1.0, restore_best=True)
        again = make(9.0, 5.0, dtype)
        fit(again, 5, resume=path)
        assert again["w"][0] == pytest.approx(0.9**5) and again["frozen"].dtype == dtype
    swapped = {"w": np.ones(2), "frozen": np.zeros(2, ">f4")}  # one that can be written to
    fit(swapped, 4, resume=path)
    assert swapped["frozen"].tolist() == [5.0, 5.0]
    other, batches = make(9.0, 6.0, ">f4"), fo.minibatches(np.ones(20), 10)
    before = repr(batches.state_dict())
    with pytest.raises(CheckpointError, match="'frozen' is read-only"):
        f = lambda p, batch: (1.0, p)  # noqa: E731
        fo.fit(f, other, batches, fo.SGD({"w": other["w"]}, lr=0.1), steps=5, resume=path)
    assert other["w"].tolist() == [9.0, 9.0] and repr(batches.state_dict()) == before
    for value, kind in ((np.float64(2.0), "float64"), (np.ma.ones(2), "MaskedArray"), (np.array(["x"]), "ndarray")):
        params = {"w": np.ones(2), "frozen": value}
        for options in ({"checkpoint": path}, {"restore_best": True, "validation": lambda p: 1.0}):
            if kind == "ndarray" and "restore_best" in options:
                fit(params | {"w": np.ones(2)}, 1, **options)  # copies of strings can be kept, too
                continue
            with pytest.raises(TypeError, match=f"'frozen': a checkpoint cannot hold a? ?{kind}"):
                fit(params, 3, **options)
        assert params["w"].tolist() == [1.0, 1.0]


def test_ctrl_c_waits_while_a_run_is_restored(tmp_path, monkeypatch):
    def fit(w, steps, **options):
        params = {"a": w[0], "b": w[1], "frozen": w[2]}
        optimizer = fo.Adam({"a": w[0], "b": w[1]}, lr=0.1)
        f = lambda p, batch: (1.0, {"a": np.ones(2), "b": np.ones(2)})  # noqa: E731
        return lambda: fo.fit(f, params, None, optimizer, steps=steps, **options), optimizer

    path = tmp_path / "a.ckpt"
    trained = [np.zeros(2), np.zeros(2), np.full(2, 3.0)]
    fit(trained, 4, checkpoint=path, checkpoint_every=999)[0]()
    assign = matching.assign

    def interrupted(p, x):
        signal.raise_signal(signal.SIGINT)
        assign(p, x)

    monkeypatch.setattr(matching, "assign", interrupted)
    monkeypatch.setattr(saving, "assign", interrupted)
    w = [np.full(2, 9.0) for _ in range(3)]
    go_on, optimizer = fit(w, 9, resume=path)
    with pytest.raises(KeyboardInterrupt):
        go_on()
    assert bits(*w) == bits(*trained) and optimizer.state["b"]["step"] == 4
    w = [np.full(2, 9.0) for _ in range(2)]
    optimizer = fo.Adam({"a": w[0], "b": w[1]})
    with pytest.raises(KeyboardInterrupt):
        optimizer.load(path)
    assert bits(*w) == bits(*trained[:2]) and optimizer.state["a"]["step"] == 4
    w, losses = [np.zeros(2), np.zeros(2), np.full(2, 3.0)], iter([2.0, 1.0, 3.0])
    with pytest.raises(KeyboardInterrupt):
        fit(w, 3, validation=lambda p: next(losses), validate_every=1, restore_best=True)[0]()
    assert w[0].tolist() == w[1].tolist() == pytest.approx([-0.2, -0.2], rel=1e-6)


def test_the_best_checkpoint_is_kept(tmp_path):
    params, data, f = problem()
    curve = iter([3.0, 1.0, 2.0, 4.0])
    after = []

    def validate(p):
        after.append(bits(*leaves(p)))
        return next(curve)

    options = {"validation": validate, "checkpoint": tmp_path / "run.ckpt", "callbacks": [lambda loop: None]}
    fo.fit(f, params, data, "adam", epochs=4, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.best.ckpt", "run.ckpt", "run.ckpt.previous"]
    best, _, _ = problem()
    fo.Adam(best).load(tmp_path / "run.best.ckpt")
    assert bits(*leaves(best)) == after[1] != after[3]


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "epochs or steps"),
        ({"epochs": 0}, ValueError, "epochs"),
        ({"steps": 1.5}, TypeError, "steps"),
        ({"steps": 5, "optimizer": "adamaxx"}, ValueError, "'adamaxx': do you mean 'adamax'"),
        ({"steps": 5, "optimizer": 3}, TypeError, "optimizer"),
        ({"steps": 5, "optimizer": np.zeros(3)}, TypeError, r"got ndarray: arrays of data are one argument, \(x, y\)"),
        ({"steps": 5, "accumulate": 0}, ValueError, "accumulate"),
        ({"steps": 5, "max_norm": -1.0}, ValueError, "max_norm"),
        ({"steps": 5, "lr": -1.0}, ValueError, "lr"),
        ({"steps": 5, "lr": [0.1, 0.2]}, ValueError, "lr"),
        ({"steps": 5, "lr": "x"}, TypeError, "lr"),
        ({"steps": 5, "early_stopping": 3}, ValueError, "validation"),
        ({"steps": 5, "checkpoint_every": 3}, ValueError, "checkpoint"),
        ({"steps": 5, "resume": True}, ValueError, "checkpoint"),
        ({"steps": 5, "callbacks": [3]}, TypeError, "callbacks"),
        ({"steps": 5, "data": None, "batch_size": 3}, ValueError, "batch_size: .* there are no data"),
        ({"steps": 5, "data": fo.minibatches(np.ones(3)), "rng": 3}, ValueError, "rng: .* are minibatches already"),
        (
            {"steps": 5, "data": None, "validation": lambda p: 1.0, "early_stopping": 2},
            ValueError,
            "give validate_every",
        ),
        (
            {"steps": 5, "data": None, "lr": schedules.Plateau(0.1)},
            ValueError,
            "Plateau.*give validation and validate_every",
        ),
        ({"epochs": 5, "data": None}, ValueError, "steps"),
        ({"epochs": 5, "steps": 5, "data": None}, ValueError, "give steps alone"),
        ({"steps": 5, "optimizer": fo.SGD}, TypeError, r"got a class: make one, SGD\(params\)"),
        ({"steps": 5, "accumulate": 2.0}, TypeError, "accumulate"),
        ({"steps": 5, "loss_and_grad": 3}, TypeError, "loss_and_grad"),
        ({"steps": 5, "loss_and_grad": lambda p, b: 1.0}, TypeError, "loss_and_grad"),
        ({"steps": 5, "loss_and_grad": lambda p, b: (np.ones(3), p)}, TypeError, "loss_and_grad"),
        ({"steps": 5, "loss_and_grad": lambda p, b: (np.ones(3), p), "accumulate": 2}, TypeError, "loss_and_grad"),
        ({"steps": 5, "validation": lambda p: {"accuracy": 1.0}}, ValueError, "loss"),
    ],
)
def test_bad_arguments_are_refused(options, error, message):
    params, data, f = problem()
    options = {"loss_and_grad": f, "data": data, "optimizer": "adam"} | options
    with pytest.raises(error, match=message):
        fo.fit(params=params, **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"progress": 1}, TypeError, "progress"),
        ({"log": "run.txt"}, ValueError, "log must end"),
        ({"log": "folder.csv"}, ValueError, "is a folder"),
        ({"log": "missing/run.csv"}, FileNotFoundError, "folder for the log"),
        ({"checkpoint": "missing/a.ckpt"}, FileNotFoundError, "folder for a checkpoint"),
        ({"checkpoint": "folder.csv"}, ValueError, "is a folder"),
        ({"checkpoint": "b.ckpt"}, ValueError, r"b\.best\.ckpt is a folder"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_overwritten(options, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params, data, f = problem()
    fo.fit(f, params, data, "adam", steps=2, checkpoint="a.ckpt", log="run.csv")
    for folder in ("folder.csv", "b.best.ckpt"):
        (tmp_path / folder).mkdir()
    before = {path.name: path.is_file() and path.read_bytes() for path in tmp_path.iterdir()}
    params, data, f = problem(seed=3)
    old = bits(*leaves(params))
    for resume in ("a.ckpt", False):
        with pytest.raises(error, match=message):
            options = {"log": "run.csv", "validation": lambda p: 1.0} | options
            fo.fit(f, params, data, "adam", steps=3, resume=resume, **options)
        assert bits(*leaves(params)) == old
        assert {path.name: path.is_file() and path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_optimizer_of_other_arrays_is_refused():
    params, data, f = problem()
    copies = {"w1": params["w1"].copy(), "b1": params["b1"], "head": params["head"]}
    with pytest.raises(ValueError, match=r"not in params: \['w1'\]; make it of these"):
        fo.fit(f, params, data, fo.Adam(copies), steps=3)
    with pytest.raises(ValueError, match="by its name"):
        fo.fit(f, params, data, fo.Adam(params), steps=3, backend="numpy")
