"""Ctrl-C wherever Python can hear it: a call has happened whole or not at all, and all goes on from there."""

from __future__ import annotations

import linecache
import pickle
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import fastoptim as fo
from fastoptim import functional, schedules
from fastoptim.adapters import cs231n, numpy_ml
from fastoptim.training.stop_on_signals import StopOnSignals
from tests.support.interrupts import interrupted_at

GRADS = [np.random.default_rng(i).standard_normal(3) for i in range(6)]


PACKAGE = str(Path(fo.__file__).parent)


def seen(x, look, more):
    found = pickle.dumps(look(x))
    more(x)
    return found, pickle.dumps(look(x))


def stepped(cls=fo.Adam, backend="auto", **hyperparameters):
    params = [np.ones(3), np.full(3, 2.0)]
    opt = cls([{"params": [p]} for p in params], lr=0.1, backend=backend, threads=1, **hyperparameters)
    opt.step([[g] for g in GRADS[:2]])
    return opt


def of_optimizer(opt):
    groups = [[p.copy() for p in group["params"]] for group in opt.param_groups]
    return groups, opt.state_dict(), opt.threads, opt._model.elsewhere


def go_on(opt):
    opt.step([[GRADS[i]] for i in range(len(opt.param_groups))])


def apply(opt):
    return opt.apply([[np.ones(3)], [np.ones(3)]], [[g] for g in GRADS[:2]])


def optimizer(call, **made):
    return lambda: stepped(**made), call, of_optimizer, go_on


class Growing:
    """Examples, some of which have come since the last epoch."""

    def __init__(self):
        self.count = 10

    def __len__(self):
        return self.count

    def __getitem__(self, where):
        return np.arange(self.count)[where]


def minibatches(call, seen, grow=0):
    def make():
        data = Growing()
        batches = fo.minibatches(data, 4, rng=1)
        for _ in range(seen):
            batches.next_batch()
        data.count += grow
        return batches

    def look(batches):
        return [batches.next_batch() for _ in range(5)], batches.state_dict()

    return make, call, look, lambda batches: None


def position():
    batches = fo.minibatches(np.arange(10), 4, rng=1)
    for _ in range(5):
        batches.next_batch()
    return batches.state_dict()


def plateau(metrics, call):
    def make():
        made = schedules.Plateau(1.0, patience=1, cooldown=1)
        for metric in metrics:
            made.update(metric)
        return made

    return make, call, schedules.Plateau.state_dict, lambda made: made.update(5.0)


def average():
    params = [np.ones(3), np.ones(3)]
    made = fo.Average(params)
    for _ in range(2):
        params[0] += 1.0
        made.update()
    params[0] += 1.0
    return made


def array(call):
    """A function that is called with a parameter and a dict of states."""
    return lambda: (np.ones(3), {}), lambda x: call(*x), lambda x: x, lambda x: call(*x)


def begun(size):
    """A parameter and a dict of states after a step: from then on a native call steps and counts."""
    p, state = np.ones(size), {}
    functional.nadam(p, np.full(size, 0.5), state, lr=0.1)
    return lambda: (p.copy(), {key: np.copy(x) if np.ndim(x) else x for key, x in state.items()})


def again_in_place(x):
    functional.nadam(x[0], np.full_like(x[0], 0.25), x[1], lr=0.1)


def cached():
    """An optimizer that returns new arrays, of which its cache is all there is to see."""
    made = numpy_ml.Adam()
    made(np.ones(3), GRADS[0], "w")
    return made


def again(optimizer):
    optimizer(np.ones(3), GRADS[1], "w")


CASES = {
    "step in C, clipped": optimizer(lambda o: o.step([[g] for g in GRADS[:2]], max_norm=0.5)),
    "lr of all groups": optimizer(lambda o: setattr(o, "lr", 0.25)),
    "update of a group": optimizer(lambda o: o.param_groups[0].update(lr=0.25, eps=0.5)),
    "threads": optimizer(lambda o: setattr(o, "threads", 2)),
    "forget": optimizer(lambda o: o.forget(["0.0", "1.0"])),
    "apply": optimizer(apply, cls=fo.ScheduleFreeSGD),
    "minibatches, a new epoch": minibatches(fo.Minibatches.next_batch, 3),
    "minibatches, within an epoch": minibatches(fo.Minibatches.next_batch, 1),
    "minibatches of growing data": minibatches(fo.Minibatches.next_batch, 3, grow=3),
    "position of minibatches": minibatches(lambda b: b.load_state_dict(position()), 1),
    "plateau": plateau([5.0, 5.0], lambda p: p.update(5.0)),
    "state of plateau": plateau([5.0], lambda p: p.load_state_dict({"lr": 0.5, "best": 2.0, "bad": 1, "cooling": 1})),
    "average": (average, fo.Average.update, fo.Average.state_dict, fo.Average.update),
    "functional form": array(lambda p, state: functional.nadam(p, GRADS[0], state, lr=0.1)),
    "functional form that has begun": (begun(3), again_in_place, lambda x: x, again_in_place),
    "functional form of a large array": (begun(30_000), again_in_place, lambda x: x, again_in_place),
    "adapter": array(lambda p, config: cs231n.adam(p, GRADS[0], config)),
    "adapter that returns new arrays": (cached, again, lambda optimizer: optimizer.cache, again),
}


@pytest.mark.parametrize("name", CASES)
def test_ctrl_c_leaves_nothing_half_done(name):
    make, call, look, more = CASES[name]

    def found(*calls):
        """What is seen after these, and what once things have gone on."""
        x = make()
        for each in calls:
            each(x)
        return seen(x, look, more)

    whole = [found(), found(call)]
    assert whole[0] != whole[1]
    ended = n = 0
    while not ended:
        n += 1
        x = make()
        ended = interrupted_at(n, lambda x=x: call(x), PACKAGE, pressed=True)
        assert seen(x, look, more) in whole, f"place {n}"


def test_ctrl_c_right_behind_a_native_step_of_apply():
    opt = fo.ScheduleFreeSGD(np.ones(3), lr=0.1, threads=1)
    opt.step(GRADS[0])
    plan, native = opt._plan, opt._plan.native_step
    if native is None:
        pytest.skip("LOUD: no C extension, and so no native step")

    def then_pressed(*arguments):
        native(*arguments)
        raise KeyboardInterrupt

    plan.native_step = then_pressed
    with pytest.raises(KeyboardInterrupt):
        opt.apply(np.ones(3), GRADS[1])
    assert opt.state["0"]["step"] == 2
    with pytest.raises(ValueError, match="apply has taken steps"):
        opt.averaged()


def test_ctrl_c_while_fit_puts_handlers_back_leaves_none_behind():
    loop, ended, n = SimpleNamespace(call_soon=lambda: None, reason=None), False, 0

    def train():
        part = StopOnSignals()
        try:
            part.begin(loop)
            part._seen = True
        finally:
            part.end(loop)

    while not ended:
        n += 1
        ended = interrupted_at(n, train, PACKAGE, pressed=True)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, f"place {n}"
    assert n > 5


@pytest.mark.parametrize("call", ["step", "apply", "state_dict"])
def test_ctrl_c_where_a_program_is_traced_stays_ctrl_c(call):
    """A debugger lets it in right before the entry that was to be removed: ValueError came in its place."""
    optimizer, g = fo.Adam(np.zeros(3)), np.ones(3)
    calls = {
        "step": lambda: optimizer.step(g),
        "apply": lambda: optimizer.apply(np.zeros(3), g),
        "state_dict": optimizer.state_dict,
    }
    came = []

    def trace(frame, event, argument):
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        if event == "line" and "busy.append(" in line and not came:
            came.append(line)
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    try:
        with pytest.raises(KeyboardInterrupt):
            sys.settrace(trace)
            calls[call]()
    finally:
        sys.settrace(before)
    assert came
    optimizer.step(g)
    assert optimizer.state["0"]["step"] == 1
