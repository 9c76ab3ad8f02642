"""Ctrl-C and SIGTERM: the step is finished, the checkpoint saved, the result returned; a second one raises."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

import fastoptim as fo
from fastoptim.checkpoint import format
from tests.support.platforms import needs_posix
from tests.training.test_training import bits, leaves, problem

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def handlers():
    """The handlers are the same before and after."""
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    assert [signal.getsignal(number) for number in SIGNALS] == before


def run(f, steps=12, **options):
    params, data, _ = problem()
    result = fo.fit(f, params, data, "adam", lr=0.01, steps=steps, batch_size=16, rng=3, diagnose=False, **options)
    return params, result


def signalling(at, number=signal.SIGINT, times=1):
    """A loss function that sends a signal in its call number `at`."""
    _, _, f = problem()
    calls = []

    def interrupted(params, batch):
        calls.append(0)
        if len(calls) == at:
            for _ in range(times):
                signal.raise_signal(number)
        return f(params, batch)

    return interrupted


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_step_is_finished_and_saved(tmp_path, number, accumulate):
    whole, _ = run(problem()[2], accumulate=accumulate)
    path, validations = tmp_path / "run.ckpt", []
    options = {"checkpoint": path, "checkpoint_every": 50, "accumulate": accumulate}
    f = signalling(3 if accumulate == 1 else 5, number)  # an epoch has five minibatches
    _, result = run(f, **options, validation=lambda p: validations.append(p) or 1.0, validate_every=10)
    assert (result.reason, result.steps, len(result.history)) == ("interrupted", 3, 3) and not validations
    assert format.read(path, kind="training")["loop"]["steps"] == 3
    params, result = run(problem()[2], resume=True, **options)
    assert result.reason == "steps" and bits(*leaves(params)) == bits(*leaves(whole))


@pytest.mark.parametrize("where", ["callback", "validation", "begin", "last"])
def test_wherever_it_comes(where, tmp_path):
    class Callback:
        def begin(self, loop):
            if where == "begin":
                signal.raise_signal(signal.SIGINT)

        def __call__(self, loop):
            if loop.steps == (12 if where == "last" else 5) and where in ("callback", "last"):
                signal.raise_signal(signal.SIGINT)

    def validation(p):
        if where == "validation":
            signal.raise_signal(signal.SIGINT)
        return 1.0

    options = {"callbacks": [Callback()], "checkpoint": tmp_path / "a.ckpt", "validation": validation}
    if where == "begin":  # training has not begun
        with pytest.raises(KeyboardInterrupt):
            run(problem()[2], validate_every=5, **options)
        return
    _, result = run(problem()[2], validate_every=5, **options)
    assert (result.reason, result.steps) == ("interrupted", 12 if where == "last" else 5)
    assert format.read(tmp_path / "a.ckpt", kind="training")["loop"]["steps"] == result.steps


def test_without_a_checkpoint_and_with_the_best_put_back():
    losses = iter([1.0, 5.0, 6.0, 7.0])
    w, calls = np.zeros(1), []

    def f(p, batch):
        calls.append(p.copy())
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return 1.0, np.ones(1)

    options = {"validation": lambda p: next(losses), "validate_every": 1, "restore_best": True}
    result = fo.fit(f, w, None, "sgd", lr=1.0, steps=9, **options)
    assert (result.reason, result.steps, w.tolist()) == ("interrupted", 3, [-1.0])


def test_the_second_raises():
    f = signalling(4, times=2)
    with pytest.raises(KeyboardInterrupt):
        run(f)


def test_an_error_puts_the_handlers_back():
    def f(params, batch):
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(f)


def test_handlers_of_the_user_stay():
    seen = []
    before = [signal.signal(number, lambda *_: seen.append(0)) for number in SIGNALS]
    try:
        _, result = run(signalling(4))
        assert result.reason == "steps" and seen == [0]
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _, result = run(signalling(4))
        assert result.reason == "steps"
    finally:
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)


def test_another_thread_trains_without_them():
    found = []

    def train():
        def f(params, batch):
            found.append(signal.getsignal(signal.SIGINT))
            return problem()[2](params, batch)

        found.append(run(f, steps=2)[1].reason)

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler, signal.default_int_handler, "steps"]


PROGRAM = """
import sys, time, numpy as np, fastoptim as fo

def f(p, batch):
    print("step", flush=True)
    time.sleep(float(sys.argv[1]))
    return 1.0, np.ones(2)

result = fo.fit(f, np.ones(2), None, "sgd", steps=10**6, checkpoint="a.ckpt", checkpoint_every=10**6)
print(result.reason, flush=True)
"""


@needs_posix
@pytest.mark.parametrize(("times", "pause"), [(1, 0.01), (2, 30)])
@pytest.mark.parametrize("number", SIGNALS)
def test_a_process_ends_cleanly_or_at_once(tmp_path, number, times, pause):
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "program.py", str(pause)]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "step\n"
    for _ in range(times):
        process.send_signal(number)
        if times == 2:
            threading.Event().wait(0.5)
    output, errors = process.communicate(timeout=20)
    if times == 1:
        assert process.returncode == 0 and output.endswith("interrupted\n") and errors == ""
        assert (tmp_path / "a.ckpt").exists()
    else:
        assert process.returncode in (-number, 130 if number == signal.SIGINT else -number)
        assert not (tmp_path / "a.ckpt").exists() and ("KeyboardInterrupt" in errors) == (number == signal.SIGINT)


def test_stop_from_within_the_loss_function_ends_after_its_step():
    loops = []

    def f(p, batch):
        if len(seen) == 3:
            loops[0].stop("enough")
        seen.append(0)
        return 1.0, np.ones(2)

    class Keep:
        def begin(self, loop):
            loops.append(loop)

        def due(self, loop):
            return float("inf")

        def __call__(self, loop):
            pass

    seen = []
    result = fo.fit(f, np.ones(2), None, "sgd", steps=100, callbacks=[Keep()])
    assert (result.reason, result.steps, len(result.history)) == ("enough", 4, 4)


@pytest.mark.parametrize("twice", [False, True])
def test_a_handler_that_outlives_training_lets_ctrl_c_through(twice):
    """Two signals within a microsecond can put it back within `deferred_signals`: it called itself for ever."""
    left = []

    def look(loop):
        left.append(signal.getsignal(signal.SIGINT))
        if twice:
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    fo.fit(lambda p, b: (1.0, np.ones(1)), np.ones(1), None, "sgd", steps=2, callbacks=look, diagnose=False)
    signal.signal(signal.SIGINT, left[0])
    try:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is before
    finally:
        signal.signal(signal.SIGINT, before)
