"""A sample of `tests.proofs.races`, and what it found: a block that a signal's handler cut off at its very end."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest

import fastoptim as fo
from fastoptim.common.busy import exclusive
from tests.proofs import races
from tests.support.interrupts import Interrupt, interrupted_at

COUNTS = {"forks": 20, "loads": 40, "groups": 100, "reads": 4}


@pytest.mark.skipif(not hasattr(os, "fork") or not hasattr(signal, "setitimer"), reason="LOUD: needs forks and timers")
@pytest.mark.parametrize("name", races.PROOFS)
def test_nothing_that_comes_between_leaves_half_of_something(name):
    seen, wrong = races.PROOFS[name][0](COUNTS[name])
    assert not wrong
    assert seen > COUNTS[name] // 2


@pytest.mark.parametrize(
    "call", [lambda o: o.step(np.ones(2)), lambda o: o.state_dict(), lambda o: setattr(o, "threads", 1)]
)
def test_a_block_that_was_cut_off_before_its_end_is_over(monkeypatch, call):
    """Also where the exception, and so the frame of the block, is still at hand."""
    opt = fo.SGD(np.ones(2), lr=0.5, threads=1)

    def cut_off(self, *_):
        raise Interrupt

    monkeypatch.setattr(exclusive, "__exit__", cut_off)
    try:
        opt.threads = 2
        raise AssertionError("it was not cut off")
    except Interrupt:
        assert opt._busy
        monkeypatch.undo()
        call(opt)
        assert opt.step(np.ones(2)).applied and not opt._busy
    with opt._locked():
        with pytest.raises(RuntimeError, match="of a caller further up"):
            opt.step(np.ones(2))
        assert opt.state_dict()["state"]
        assert opt._busy
    assert not opt._busy


@pytest.mark.parametrize("key", ["lr", "params"])
def test_what_a_group_says_is_what_the_next_step_does_wherever_a_change_was_cut_off(key):
    ended = n = 0
    while not ended:
        n += 1
        opt = fo.SGD([np.zeros(2)], lr=0.5, backend="numpy")
        opt.step([np.ones(2)])
        group, new = opt.param_groups[0], np.zeros(2)
        change = (group["params"], 0, new) if key == "params" else (group, "lr", 0.25)
        ended = interrupted_at(n, lambda change=change: change[0].__setitem__(*change[1:]), "optimizers")
        before, lr = group["params"][0].copy(), opt.lr
        opt.step([np.ones(2)])
        assert np.all(group["params"][0] == before - lr), f"instruction {n}"


def test_ctrl_c_changes_a_hyperparameter_of_all_groups_or_of_none():
    class Pressed(list):
        """Counts of changes that have Ctrl-C pressed when they are looked at."""

        def __setitem__(self, index, value):
            list.__setitem__(self, index, value)
            signal.raise_signal(signal.SIGINT)

    opt = fo.SGD([{"params": np.ones(2)}, {"params": np.ones(2)}], lr=0.5)
    opt.param_groups[0].changes = Pressed(opt.param_groups[0].changes)
    with pytest.raises(KeyboardInterrupt):
        opt.lr = 0.25
    assert [group["lr"] for group in opt.param_groups] == [0.25, 0.25]
