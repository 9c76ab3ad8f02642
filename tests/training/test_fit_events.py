"""fit between its steps: what is told to whom, which values count, and which arrays are trained."""

from __future__ import annotations

import functools
import json
import math
import subprocess
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

import fastoptim as fo
from fastoptim import schedules
from fastoptim.checkpoint import format
from fastoptim.training.best_states import deciding_states


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
    assert (result.reason, result.steps) == ("steps", 3)


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
    rates(2, 0.5, checkpoint=tmp_path / "a.ckpt", checkpoint_every=999)
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
    monitored([0.1, 0.5, 0.2], checkpoint=path, checkpoint_every=999, **options)
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


@pytest.mark.filterwarnings("ignore:validation's loss was NaN")
@pytest.mark.parametrize("end", [2, 5])  # before there is a best, and after one
def test_the_best_checkpoint_of_an_end_that_was_none_is_taken_back(tmp_path, end):
    best = tmp_path / "a.best.ckpt"
    losses = {end: 0.5} if end == 2 else {3: 1.0, end: 0.5}

    def run(steps, killed_at=None, **options):
        optimizer = fo.Adam({"w": np.zeros(2)})

        def validate(params):
            return losses.get(optimizer.state["w"]["step"], math.nan)

        def kill(loop):
            if loop.steps == killed_at:
                raise KeyboardInterrupt

        options |= {"checkpoint": tmp_path / "a.ckpt", "checkpoint_every": 20, "validate_every": 3, "diagnose": False}
        params = {"w": optimizer.param_groups[0]["params"][0]}
        f = lambda p, batch: (1.0, {"w": np.ones(2)})  # noqa: E731
        fo.fit(f, params, None, optimizer, steps=steps, validation=validate, callbacks=kill, **options)

    run(9)
    whole = best.exists() and best.read_bytes()
    for file in tmp_path.iterdir():
        file.unlink()
    run(end)
    assert best.read_bytes() != whole
    with pytest.raises(KeyboardInterrupt):
        run(9, killed_at=7, resume=True)
    run(9, resume=True)
    assert (best.exists() and best.read_bytes()) == whole


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
@pytest.mark.parametrize("crash", [False, True])
def test_a_validation_is_taken_back_also_where_the_run_ends_at_once(tmp_path, suffix, crash):
    log = tmp_path / f"a.{suffix}"
    saved = {"checkpoint": tmp_path / "a.ckpt", "checkpoint_every": 10, "resume": True}

    def run(steps, f=constant_gradient, path=log, **options):
        return fo.fit(f, np.zeros(2), None, "sgd", steps=steps, log=path, diagnose=False, **options)

    def lines_of_a_run_without_validation(steps):
        run(steps, path=tmp_path / f"b.{suffix}")
        return (tmp_path / f"b.{suffix}").read_text().splitlines()

    saved |= {"validation": lambda p: 1.0, "validate_every": 10}
    run(3, **saved)
    losses = iter([1.0] if crash else [math.nan])
    with pytest.raises(RuntimeError, match="stream") if crash else pytest.warns(fo.TrainingWarning, match="not taken"):
        result = run(9, lambda p, batch: (next(losses), np.ones(2)), **saved)
        assert result.history.validation == {}
    assert log.read_text().splitlines() == lines_of_a_run_without_validation(3 + crash)
    run(5, **saved)  # the checkpoint and the log that was cut belong together
    lines = [line for line in log.read_text().splitlines() if 'validation"' not in line]
    assert lines[:-1] == lines_of_a_run_without_validation(5)[:-1] and len(lines) == 6


# --- What validation leaves as it was ---------------------------------------------------------------------------------

INPUTS = np.random.default_rng(0).standard_normal((40, 3))
DATA = INPUTS, INPUTS @ [1.0, 2.0, 3.0]


def normalized(params, rng):
    """A model with running means, which it writes into or replaces, and with dropout."""

    def loss_and_grad(p, batch):
        x = batch[0] * (rng.random(batch[0].shape) < 0.8)
        params["mean"][...] = 0.9 * params["mean"] + 0.1 * x.mean(axis=0)
        params["last"] = x.mean(axis=0)
        p["own"][...] = x.mean(axis=0)
        error = x @ p["w"] - batch[1]
        return np.mean(error**2), {"w": 2 * x.T @ error / len(x)}

    return loss_and_grad


def trained(averaged=False, **options):
    params = {"w": np.zeros(3), **{name: np.zeros(3) for name in ("mean", "last", "own")}, "table": np.ones(9)}
    params["table"].flags.writeable = False
    rng = np.random.default_rng(1)
    optimizer = fo.SGD({"w": params["w"]}, lr=0.05)
    average = fo.Average(params, 0.9) if averaged else None
    options = {"steps": 12, "batch_size": 8, "rng": rng, "average": average, "diagnose": False} | options
    result = fo.fit(normalized(params, rng), params, DATA, optimizer, **options)
    arrays = params | ({} if average is None else {f"average {k}": x for k, x in average.arrays.items()})
    return {name: x.tobytes() for name, x in arrays.items()}, result


@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.parametrize("every", [1, 5, None])
def test_validation_by_data_moves_nothing_of_the_training(averaged, every):
    held_out = INPUTS + 100.0, DATA[1]
    plain, _ = trained(averaged)
    validated, result = trained(averaged, validation=held_out, validate_every=every)
    assert validated == plain and len(result.history.validation["loss"]) > 1


@pytest.mark.parametrize("by_data", [False, True])
def test_an_additional_validation_that_draws_numbers_does_not_show_in_the_resumed_run(tmp_path, by_data):
    def run(steps, **options):
        rng = np.random.default_rng(1)
        validation = DATA if by_data else lambda p: rng.random()
        w, loss_and_grad = np.zeros(3), lambda w, batch: (1.0, rng.standard_normal(3))
        options |= {"validation": validation, "validate_every": 4, "batch_size": 8, "rng": rng}
        result = fo.fit(loss_and_grad, w, DATA, "sgd", steps=steps, **options)
        return w.tobytes(), result.history.validation["loss"].tolist()

    saved = {"checkpoint": tmp_path / "a.ckpt", "resume": True}
    run(6, **saved)
    assert run(12, **saved) == run(12)


def test_validation_that_raises_has_put_everything_back():
    params = {"w": np.zeros(3), "mean": np.zeros(3)}

    def loss_and_grad(p, batch):
        p["mean"] += 1.0
        if len(batch) == 7:
            raise ArithmeticError
        return 1.0, {"w": np.ones(3)}

    with pytest.raises(ArithmeticError):
        fo.fit(loss_and_grad, params, np.ones(8), fo.SGD({"w": params["w"]}), epochs=1, validation=np.ones(7))
    assert params["mean"].tolist() == [1.0] * 3


@pytest.mark.parametrize("mode, infinite", [("min", -math.inf), ("max", math.inf)])
def test_a_figure_that_is_infinite_is_never_the_best(mode, infinite):
    sign = -1.0 if mode == "max" else 1.0
    w, result = monitored([sign * 3.0, infinite, sign * 2.0, infinite], monitor="accuracy", mode=mode,
                          restore_best=True)  # fmt: skip
    assert result.best_step == 2 and result.best_value == sign * 2.0 and w.tolist() == [-3.0]


def test_figures_may_come_in_another_order():
    given = iter([{"loss": 1.0, "a": 2.0, "b": 3.0}, {"b": 5.0, "a": 4.0, "loss": 1.0}, {"loss": 1.0, "c": 1.0}])
    seen = {}
    options = {"callbacks": lambda loop: seen.update(loop.history.validation), "validation": lambda p: next(given)}
    with pytest.raises(ValueError, match=r"\['loss', 'c'\], before it was \['loss', 'a', 'b'\]"):
        fo.fit(constant_gradient, np.zeros(1), None, "sgd", steps=3, validate_every=1, **options)
    assert seen["a"].tolist() == [2.0, 4.0] and seen["b"].tolist() == [3.0, 5.0]


# --- How training ends ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["steps", "stop", "early stopping"])
def test_an_exception_after_the_last_step_puts_nothing_back_and_gives_no_reason(ending):
    class Last:
        def __call__(self, loop):
            if loop.steps == 4:
                if ending == "stop":
                    loop.stop()
                raise ArithmeticError

        def end(self, loop):
            reasons.append(loop.reason)

    reasons, curve, w = [], iter([1.0, 2.0, 3.0, 4.0, 5.0]), np.zeros(1)
    patience, steps = 3 if ending == "early stopping" else None, 4 if ending == "steps" else 9
    options = {"validation": lambda p: next(curve), "validate_every": 1, "restore_best": True, "callbacks": Last()}
    with pytest.raises(ArithmeticError):
        fo.fit(constant_gradient, w, None, "sgd", lr=1.0, steps=steps, early_stopping=patience, **options)
    assert reasons == [None] and w.tolist() == [-4.0]  # not those of the best, which are -1


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_stream_that_ends_too_early_is_an_error_that_ends_no_iteration(accumulate):
    def train(lr):
        stream = iter(range(5))
        return fo.fit(lambda p, batch: (next(stream) + 1.0, np.ones(1)), np.ones(1), None, "sgd", lr=lr, steps=9,
                      accumulate=accumulate)  # fmt: skip

    with pytest.raises(RuntimeError, match="the stream that it reads has ended"):
        list(map(train, (0.1, 0.2)))  # StopIteration would end `map` without a word
    stream = iter(range(5))
    with pytest.raises(RuntimeError, match="the stream that it reads has ended"):
        fo.probe_lr(lambda p, batch: (next(stream) + 1.0, np.ones(1)), np.ones(1), None, "sgd")


@pytest.mark.parametrize("where", ["lr", "validation", "callbacks", "fun"])
def test_what_ends_too_early_anywhere_ends_no_iteration(where):
    def train(_):
        read = iter([0.1, 0.1]).__next__
        if where == "fun":
            return fo.minimize(lambda x: (read(), x), np.ones(1), jac=True)
        options = {"lr": lambda step: read(), "validation": lambda p: read(), "callbacks": lambda loop: read()}
        f = lambda p, batch: (1.0, np.ones(1))  # noqa: E731
        return fo.fit(f, np.ones(1), np.ones(1), "sgd", epochs=9, **{where: options.get(where)})

    with pytest.raises(RuntimeError, match="raised StopIteration: what it reads has ended"):
        list(map(train, (1, 2)))


def test_a_run_that_trains_nothing_any_more_says_so_once(tmp_path):
    def run(steps, good, grads=np.ones(1), **options):  # noqa: B008
        losses = iter([1.0] * good + [math.nan] * steps)
        f = lambda p, batch: (next(losses), grads)  # noqa: E731
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fo.fit(f, np.ones(1), None, "sgd", steps=steps, skip_nonfinite=True, **options)
        return [str(w.message) for w in caught if "applied" in str(w.message)]

    (said,) = run(20, 0)
    assert "none of the last 20 of 20 steps was applied" in said
    assert len(run(20, 20, None)) == len(run(400, 100)) == 1  # at step 300, and not again at the end
    saved = {"checkpoint": tmp_path / "a.ckpt", "resume": True}
    assert len(run(350, 100, **saved)) == 1 and run(400, 0, **saved) == []
    assert run(20, 15) == run(9, 0) == run(20, 0, diagnose=False) == []


def test_a_callback_is_no_class():
    class Own:
        def __call__(self, loop):
            raise AssertionError

    for callbacks in (Own, [Own]):
        with pytest.raises(TypeError, match=r"callbacks: got a class: make one, Own\(\)"):
            fo.fit(constant_gradient, np.ones(1), None, "sgd", steps=1, callbacks=callbacks)


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
options = {"checkpoint": "run.ckpt", "checkpoint_every": 999, "resume": True, "log": "run.jsonl"}
fo.fit(f, w, None, optimizer, lr=rates, steps=int(sys.argv[1]), **options)
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


def test_what_functions_hold_is_recorded_whatever_its_type():
    """As other libraries' schedules hold it: NumPy's numbers, lists and dicts of boundaries, other functions."""

    def made(held):
        return lambda step: held

    def text(held):
        return schedules.described([made(held)]).split("<lambda>", 1)[1]

    assert text(np.float32(0.5)) == text(np.float64(0.5)) == text(0.5) == "(held=0.5)]"
    assert text({10: 0.1, 20: np.float64(0.01)}) == "(held=dict([[10, 0.1], [20, 0.01]]))]"
    assert text((np.array([1, 2]), None)) == "(held=[[1, 2], None])]"
    assert text([schedules.constant(0.5), abs]) == "(held=[constant(lr=0.5), abs])]"
    assert "(held=0.25))]" in text(made(0.25)) and text(object()) == text([1, object()]) == text(np.ones(9999)) == "]"

    def recursive(step):
        return recursive(step - 1) if step else 0.5

    assert schedules.described([recursive]).endswith("recursive]")


# --- Steps without a norm, limits and groups that change --------------------------------------------------------------


@pytest.mark.parametrize("own", [True, False])
def test_a_step_without_a_norm_is_nan_in_the_history(tmp_path, own):
    w = np.ones(3)
    opt = fo.SGD(w, lr=0.1, clip="value", **({"max_norm": 1.0} if own else {}))
    options = {} if own else {"max_norm": 1.0}
    result = fo.fit(lambda p, b: (float(p @ p), 2 * p), w, None, opt, steps=3, log=tmp_path / "a.csv", **options)
    assert np.isnan(result.history.grad_norm).all() and result.history.applied.all()
    cells = [line.split(",") for line in (tmp_path / "a.csv").read_text().splitlines()]
    assert [row[cells[0].index("grad_norm")] for row in cells[1:]] == ["", "", ""]


def test_steps_without_gradients_are_not_applied_in_the_history(tmp_path):
    grads = iter([np.ones(2), None, np.ones(2), None])
    result = fo.fit(lambda p, b: (1.0, next(grads)), np.ones(2), None, "sgd", steps=4, log=tmp_path / "a.jsonl")
    logged = [json.loads(line)["applied"] for line in (tmp_path / "a.jsonl").read_text().splitlines()[1:]]
    assert result.history.applied.tolist() == logged == [True, False, True, False]


@pytest.mark.parametrize(("first", "then"), [(1.0, 0.25), (None, 0.25), (1.0, None)])
def test_callbacks_may_change_the_optimizers_own_limit(tmp_path, first, then):
    def change(loop):
        if loop.steps == 2:
            loop.optimizer.max_norm = then

    def train(name, *ends):
        w = np.zeros(1)
        for steps in ends:
            opt = fo.SGD(w, lr=1.0, max_norm=first)
            options = {"checkpoint": tmp_path / name, "checkpoint_every": 9, "resume": True, "diagnose": False}
            result = fo.fit(lambda p, b: (1.0, np.full(1, 4.0)), w, None, opt, steps=steps, callbacks=change, **options)
        return w[0], result.history.grad_norm.tolist()

    w, norms = train("whole", 4)
    moved = {1.0: 1.0, None: 4.0, 0.25: 0.25}
    assert w == pytest.approx(-2 * moved[first] - 2 * moved[then], rel=1e-5)
    limits = [first, first, then, then]
    assert [None if math.isnan(norm) else norm for norm in norms] == [None if x is None else 4.0 for x in limits]
    assert repr(train("cut", 3, 4)) == repr((w, norms))  # what the callback has changed is resumed


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("several", [False, True])
def test_a_group_that_a_callback_adds_is_trained_and_scheduled_like_the_others(several, accumulate):
    params, rates = {"a": np.ones(1), "b": np.ones(1)}, []

    def add(loop):
        if loop.steps == 2:
            loop.optimizer.add_param_group({"params": params["b"], "lr": 0.3})
        rates.append([group["lr"] for group in loop.optimizer.param_groups])

    opt = fo.SGD(params["a"], lr=0.5)
    f = lambda p, b: (1.0, [np.ones(1)] * 2 if len(opt.param_groups) == 2 else np.ones(1))  # noqa: E731
    schedule = schedules.linear(1.0, 0.0, 4)
    options = {"steps": 4, "callbacks": add, "accumulate": accumulate, "diagnose": False}
    fo.fit(f, params, None, opt, lr=[schedule] if several else schedule, **options)
    assert rates == [[1.0], [0.75, 0.3], [0.5, 0.5], [0.25, 0.25]]
    assert (params["a"], params["b"]) == (1.0 - 2.5, 1.0 - 0.75)


# --- The best, with what it is computed from --------------------------------------------------------------------------


def best_of(optimizer, w, steps=10, gradient=-1.0, **options):
    """Train upwards from 0; the best is where the figure of what is validated is nearest to 0.3."""
    options = {"validate_every": 1, "restore_best": True, "diagnose": False} | options
    seen = []

    def validation(p):
        seen.append(np.asarray(p, np.float64).copy())
        return abs(float(seen[-1][0]) - 0.3)

    f = lambda p, b: (1.0, np.full(w.shape, gradient, np.float64 if w.dtype == np.float64 else np.float32))  # noqa: E731
    result = fo.fit(f, w, None, optimizer, steps=steps, validation=validation, **options)
    return seen[np.argmin([abs(x[0] - 0.3) for x in seen])], result


@pytest.mark.parametrize("kind", [fo.SGD, fo.Adam])
@pytest.mark.parametrize("cut", [None, 5])
def test_the_best_is_put_back_with_its_master_copy(tmp_path, kind, cut):
    def train(steps, **options):
        w = np.zeros(4, np.float16)
        opt = kind(w, lr=0.1 + 1e-5, master=True, rounding="nearest")
        best, result = best_of(opt, w, steps, checkpoint=tmp_path / "a", checkpoint_every=9, **options)
        return w, opt, best, result

    if cut:
        train(cut)
    w, opt, best, result = train(10, resume=cut is not None)
    assert result.best_step == 2 and abs(w[0] - 0.3) < 1e-3 and (cut or w.tolist() == best.tolist())
    master = opt.state["0"]["master"]
    assert master.astype(np.float16).tolist() == w.tolist() and master[0] != np.float32(w[0])  # not only rounded
    there = kind(v := np.zeros_like(w), master=True)
    there.load(tmp_path / "a.best")
    assert master.tobytes() == there.state["0"]["master"].tobytes() and v.tobytes() == w.tobytes()
    opt.lr = 0.0
    opt.step(np.ones(4, np.float32))
    assert w.tolist() == v.tolist()


def test_a_parameter_that_had_no_states_at_the_best_begins_anew_there():
    params = {"a": np.zeros(1, np.float16), "b": np.ones(1, np.float16)}
    opt = fo.SGD(params, lr=0.125, master=True)
    grads = iter([{"a": -np.ones(1, np.float32), "b": g and np.ones(1, np.float32)} for g in (None, None, 1, 1)])
    f = lambda p, b: (1.0, next(grads))  # noqa: E731
    options = {"validate_every": 1, "restore_best": True, "diagnose": False}
    fo.fit(f, params, None, opt, steps=4, validation=lambda p: abs(float(p["a"][0]) - 0.25), **options)
    assert params["a"] == 0.25 and params["b"] == 1.0
    opt.step({"a": np.zeros(1, np.float32), "b": np.ones(1, np.float32)})
    assert params["a"] == 0.25 and params["b"] == 0.875


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
@pytest.mark.parametrize("kind", [fo.ScheduleFreeSGD, fo.ScheduleFreeAdamW])
def test_the_best_of_a_schedule_free_optimizer_is_what_averaged_returns(tmp_path, kind, dtype):
    w = np.zeros(2, dtype)
    opt = kind(w, lr=0.1, **({"master": True, "state_dtype": "float8"} if dtype == np.float16 else {}))
    best, result = best_of(opt, w, 10, checkpoint=tmp_path / "a", checkpoint_every=20)
    assert 0 < result.best_step < 9 and np.array_equal(opt.averaged(), best)
    there = kind(np.zeros_like(w), **({"master": True, "state_dtype": "float8"} if dtype == np.float16 else {}))
    there.load(tmp_path / "a.best")
    for x in (opt, there):
        x.lr = 0.1
        x.step(np.ones(2, np.float64 if dtype == np.float64 else np.float32))
    assert w.tobytes() == there.param_groups[0]["params"][0].tobytes()  # it goes on as the best checkpoint does


def test_the_best_of_ftrl_stays_at_the_next_step():
    w = np.zeros(2)
    opt = fo.FTRL(w, lr=0.1)
    best, result = best_of(opt, w, 10)
    assert 0 < result.best_step < 9 and w.tolist() == best.tolist()
    opt.step(np.zeros(2))
    assert w == pytest.approx(best, rel=1e-12)


def test_averages_are_not_put_back_where_they_would_be_lost():
    w = np.zeros(2)
    with pytest.raises(ValueError, match=r"ScheduleFreeSGD computes parameters from states.*average\.copy_to"):
        best_of(fo.ScheduleFreeSGD(w), w, average=fo.Average(w))
    ranks = functools.partial(deciding_states, ranks=SimpleNamespace(size=2), averaged=False)
    assert ranks(fo.SGD(w)) is None and not w.any()
    for opt, name in ((fo.FTRL(w), "FTRL"), (fo.Adam(w.astype(np.float16), master=True), "Adam with master=True")):
        with pytest.raises(ValueError, match=f"{name} computes.*several processes keep in slices"):
            ranks(SimpleNamespace(_whole=opt))


# --- What callbacks and validation may return -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "None$"), (np.ones(2), r"array.*"), ((1.0, 2.0), r"\(1.0, 2.0\)$"), ({"loss": 1.0, "x": None}, "for 'x'$")],
)
def test_what_validation_must_return_is_said(value, text):
    with pytest.raises(TypeError, match=f"validation must return the loss, a number, or a mapping.*{text}"):
        fo.fit(constant_gradient, np.zeros(2), None, "sgd", steps=2, validation=lambda p: value, validate_every=1)


@pytest.mark.parametrize("value", [None, "soon", math.nan])
def test_what_due_must_return_is_said_before_the_first_step(value):
    class Odd:
        def __call__(self, loop):
            pass

        def due(self, loop):
            return value

    w = np.zeros(2)
    with pytest.raises(TypeError, match=r"Odd\.due\(loop\) must return a number of steps, or infinity, got"):
        fo.fit(constant_gradient, w, None, "sgd", steps=2, callbacks=Odd())
    assert not w.any()


@pytest.mark.parametrize(
    "kind, dtype, change",
    [
        (fo.FTRL, np.float64, {"more": 1.0}),
        (fo.FTRL, np.float64, {"step": "1"}),
        (fo.SGD, np.float16, {"more": 1.0}),
        (fo.SGD, np.float16, {"master": np.zeros(2)}),
    ],
)
def test_best_states_that_could_not_be_put_back_at_the_end_are_refused_when_resuming(tmp_path, kind, dtype, change):
    w, again = np.zeros(2, dtype), np.ones(2, dtype)
    options = {"master": True} if dtype == np.float16 else {}
    best_of(kind(w, lr=0.1, **options), w, 5, checkpoint=tmp_path / "a")
    tree = format.read(tmp_path / "a", kind="training")
    tree["loop"]["parts"]["validation"]["best"]["states"]["0"] |= change
    format.write(tmp_path / "a", tree, kind="training")
    with pytest.raises(fo.CheckpointError, match="state"):
        best_of(kind(again, lr=0.1, **options), again, 10, checkpoint=tmp_path / "a", resume=True)
    assert again.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("clip", [None, 0, "", [], "values"])
def test_a_way_of_clipping_that_there_is_not_is_refused_before_anything_changes(tmp_path, clip):
    w, again = np.zeros(2), np.ones(2)
    best_of(fo.SGD(w, lr=0.1), w, 5, checkpoint=tmp_path / "a")
    tree = format.read(tmp_path / "a", kind="training")
    tree["loop"]["clipping"][1] = clip
    format.write(tmp_path / "a", tree, kind="training")
    with pytest.raises(fo.CheckpointError, match="clip must be"):
        best_of(fo.SGD(again, lr=0.1), again, 10, checkpoint=tmp_path / "a", resume=True)
    assert again.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("loss", ["1.5", b"1.5", 1 + 2j, np.complex64(1 + 2j), np.str_("1.5"), np.array("1.5"), None])
def test_a_loss_that_is_no_real_number_is_refused_by_name(loss):
    """Of a complex one the real part was taken, and a text was read."""
    data, wanted = np.ones((8, 1)), r"must return \(loss, gradients\), the loss a number"

    def given(p, batch):
        return loss, np.ones(2)

    for accumulate in (1, 2):
        w = np.ones(2)
        with pytest.raises(TypeError, match=wanted):
            fo.fit(given, w, data, "sgd", steps=2, accumulate=accumulate, batch_size=2)
        assert w.tolist() == [1.0, 1.0]
    with pytest.raises(TypeError, match=wanted):
        fo.probe_lr(given, np.ones(2), data)
    with pytest.raises(TypeError, match="validation must return the loss, a number"):
        fo.fit(constant_gradient, np.ones(2), data, "sgd", steps=2, validation=lambda p: loss)


def turns(levels, sigma=0.02):
    """Losses of as many minibatches as there are levels, always in the same order."""
    rng = np.random.default_rng(3)
    return lambda p, batch: (levels[int(batch[0])] * math.exp(sigma * rng.standard_normal()), np.ones(2))


def test_minibatches_that_take_turns_are_no_oscillation():
    """Easy and difficult ones in the same order were taken for a rate that is too large."""
    batches = np.repeat(np.arange(4), 8)

    def warned(**options):
        f = turns([1.0, 2.0, 1.0, 2.0])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = fo.fit(f, np.ones(2), batches, "sgd", lr=1e-3, batch_size=8, steps=301, **options)
        assert fo.diagnose(result.history.loss, lr=1e-3).reason == "alternating"
        return [str(warning.message) for warning in caught]

    (said,) = warned(shuffle=False)
    assert "plateau" in said and "halve" not in said
    assert warned(shuffle=False, diagnose=False) == []


def test_steps_that_overshoot_are_still_told_where_batches_are_shuffled():
    losses = iter([1.0, 2.0] * 200)
    with pytest.warns(fo.TrainingWarning, match="alternates: halve"):
        fo.fit(lambda p, batch: (next(losses), np.ones(2)), np.ones(2), np.ones(32), "sgd", batch_size=8, steps=301)


def test_resuming_without_a_group_that_a_callback_had_added_says_so(tmp_path):
    path = tmp_path / "run.ckpt"

    def run(steps, resume):
        params = {"w": np.ones(3), "b": np.ones(2)}
        optimizer = fo.Adam({"w": params["w"]})

        def f(p, batch):
            grads = [{"w": 2 * p["w"]}, {"b": 2 * p["b"]}][: len(optimizer.param_groups)]
            return 1.0, grads if len(grads) > 1 else grads[0]

        def add(loop):
            if loop.steps == 2:
                optimizer.add_param_group({"params": {"b": params["b"]}})

        fo.fit(f, params, None, optimizer, steps=steps, callbacks=[add], checkpoint=path, resume=resume)

    run(4, False)
    with pytest.raises(
        fo.CheckpointError, match=r"1 more group of parameters.*here nothing steps \['b'\]: add them before"
    ):
        run(6, True)
