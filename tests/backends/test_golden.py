"""Golden hashes: results that every platform, backend and instruction set must reproduce."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from fastoptim.backends import available, get_backend
from fastoptim.backends.c import ISA_NAMES
from tests.support import golden
from tests.support.cases import DTYPES, VARIANTS, on_instruction_set

GOLDEN = golden.load()
NAMES = list(GOLDEN["hashes"])


@pytest.fixture(scope="module")
def jobs():
    """Makes the jobs of a name afresh: executors work in place."""
    made = dict(golden.jobs(GOLDEN))
    return lambda name: copy.deepcopy(made[name])


def test_the_integer_generator_is_splitmix64():
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert golden.integers(1234567, 4).tolist() == published


def test_inputs_are_hard_enough():
    raw = golden.numbers(1, 100_000, np.float32, "raw")
    assert np.isnan(raw).any() and np.any((raw != 0) & (np.abs(raw) < np.finfo(np.float32).tiny))
    for dtype in DTYPES:
        x = golden.numbers(1, 10_000, dtype, "ordinary")
        assert np.abs(x).min() > 2**-8 and np.abs(x).max() < 2 and (x < 0).any() and (x > 0).any()
        assert golden.numbers(1, 10_000, dtype, "ordinary", positive=True).min() > 0
        tiny, limit = golden.numbers(1, 10_000, dtype, "tiny"), np.finfo(dtype).tiny
        assert (np.abs(tiny) < 2 * limit).all() and 0.4 < np.mean(np.abs(tiny) < limit) < 0.6 and (tiny < 0).any()


@pytest.mark.parametrize("rule", sorted({variant.rule.name for variant in VARIANTS}))
def test_every_variant_has_its_hashes(rule):
    labels = {variant.label for variant in VARIANTS if variant.rule.name == rule}
    stored = labels & set(GOLDEN["coefficients"])
    if not stored:
        pytest.skip(f"LOUD: rule {rule} has no golden hashes yet; write them: python -m tests.proofs.golden_write")
    assert stored == labels
    assert {f"{label} {np.dtype(dtype).name}" for label in labels for dtype in DTYPES} <= set(NAMES)


def test_every_hash_has_its_jobs():
    assert sorted(name for name, _ in golden.jobs(GOLDEN)) == sorted(NAMES)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.label)
def test_coefficients_are_the_stored_ones_but_for_the_last_bits_of_the_power(variant):
    if variant.label not in GOLDEN["coefficients"]:
        pytest.skip(f"LOUD: {variant.label} has no golden hashes yet; write them: python -m tests.proofs.golden_write")
    stored = [[float.fromhex(x) for x in row.split()] for row in GOLDEN["coefficients"][variant.label]]
    for row, wanted in zip(golden.host_coefficients(variant), stored, strict=True):
        assert row == pytest.approx(wanted, rel=4e-15)


@pytest.mark.parametrize("name", NAMES)
def test_reference(name, jobs):
    assert golden.hash_of([golden.by_reference(job) for job in jobs(name)]) == GOLDEN["hashes"][name]


@pytest.mark.parametrize("isa", ISA_NAMES)
def test_c_on_every_instruction_set(isa, jobs):
    with on_instruction_set(isa) as backend:
        found = {name: golden.hash_of([golden.by_backend(job, backend) for job in jobs(name)]) for name in NAMES}
    assert found == GOLDEN["hashes"]


@pytest.mark.parametrize("name", ["numpy", "numba"])
def test_other_host_backends(name, jobs):
    reason = available(name)
    if reason:
        pytest.skip(f"LOUD: {reason}")
    backend = get_backend(name)
    chosen = [key for key in NAMES if key.endswith("wide")] + NAMES[::9]
    found = {key: golden.hash_of([golden.by_backend(job, backend) for job in jobs(key)]) for key in chosen}
    assert found == {key: GOLDEN["hashes"][key] for key in chosen}


def test_a_single_changed_bit_changes_the_hash(jobs):
    answers = [golden.by_reference(job) for job in jobs(NAMES[0])]
    assert golden.hash_of(answers) == GOLDEN["hashes"][NAMES[0]]
    last = answers[0][0].view(np.uint8)
    last[0] ^= 1
    assert golden.hash_of(answers) != GOLDEN["hashes"][NAMES[0]]
