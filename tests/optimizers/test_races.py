"""A sample of `tests.proofs.races`, and what it found: a block that a signal's handler cut off at its very end."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest

import fastoptim as fo
from fastoptim.common.busy import exclusive
from tests.proofs import races
from tests.support.interrupts import Interrupt

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
