"""A sample of `tests.proofs.random_histories`: a history of every class, and planted faults that it must see."""

from __future__ import annotations

import pytest

import fastoptim as fo
from fastoptim.backends.base import Backend
from fastoptim.optimizers import forms
from fastoptim.optimizers.one_array import update_array
from fastoptim.optimizers.states import Plan
from tests.proofs import random_histories


@pytest.mark.parametrize("seed", range(len(random_histories.CLASSES)))
def test_random_histories_have_the_bits_of_what_is_kept(seed):
    random_histories.history(seed)


def first_complaint(cls):
    """What a history of a class says that differs; None if none of these does."""
    for seed in range(70, 80):
        try:
            random_histories.history(seed, cls, backends=(("numpy", 1), ("c", 1)))
        except AssertionError as error:
            return str(error)
    return None


def norms_of_all(backend, grads, scale, threads):
    norm = backend.norm(grads, scale, threads)
    return norm, [norm] * len(grads)


PLANTS = {
    "states begin too early": (fo.ScheduleFreeSGD, Plan, "unsettled", False, "parameter"),
    "a form forgets the scale": (
        fo.Lion,
        forms,
        "update_array",
        lambda *a: update_array(*a[:8], 1.0, *a[9:]),
        "functional form",
    ),
    "one factor clips all arrays": (fo.SGD, Backend, "norms", norms_of_all, "parameter"),
    "apply does nothing": (fo.SGD, fo.Optimizer, "apply", lambda self, params, *a, **k: params, "of apply"),
}


@pytest.mark.parametrize("plant", PLANTS)
def test_faults_are_seen(plant, monkeypatch):
    cls, where, name, value, told = PLANTS[plant]
    monkeypatch.setattr(where, name, value)
    assert told in (first_complaint(cls) or "")
