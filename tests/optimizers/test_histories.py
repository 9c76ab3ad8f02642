"""A sample of `tests.proofs.random_histories`: two histories of every class, and a planted fault that it must see."""

from __future__ import annotations

import pytest

import fastoptim as fo
from fastoptim.optimizers.states import Plan
from tests.proofs import random_histories


@pytest.mark.parametrize("seed", range(2 * len(random_histories.CLASSES)))
def test_random_histories_have_the_bits_of_what_is_kept(seed):
    random_histories.history(seed)


def test_states_that_begin_too_early_are_seen(monkeypatch):
    monkeypatch.setattr(Plan, "unsettled", False)
    with pytest.raises(AssertionError, match="parameter t"):
        random_histories.history(987, fo.ScheduleFreeSGD)
