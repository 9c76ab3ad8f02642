"""A sample of the random cases of ``tests/proofs/random_cases.py``."""

from __future__ import annotations

import numpy as np

from tests.proofs.random_cases import Arena, differing, run_case
from tests.support.cases import VARIANTS


def test_a_sample_of_random_cases_has_no_differing_bit():
    cases = [run_case(number) for number in range(10**9, 10**9 + 600)]
    assert [case.description for case in cases if case.differing_bits] == []
    assert len({variant.label for case in cases for variant in case.variants}) > 0.9 * len(VARIANTS)


def test_differing_bits_are_counted():
    x = np.array([1.0, np.nan, 0.0], np.float32)
    assert differing(x, x.copy()) == 0
    assert differing(x, np.array([1.0, np.nan, -0.0], np.float32)) == 1
    payload = np.array([0x3F800000, 0x7FC00001, 0], np.uint32).view(np.float32)
    assert differing(x, payload) == 0
    assert differing(x, x.astype(np.float64)) > 0


def test_what_lies_between_the_arrays_is_watched():
    arena = Arena(1000)
    first, second = arena.place(np.zeros(5, np.float32), 3), arena.place(np.zeros(5, np.float32), 0)
    packed = arena.place(np.ones(2, np.float64), None)
    assert packed.ctypes.data == -(-(second.ctypes.data + second.nbytes) // 8) * 8
    first[:], second[:] = 1, 2
    assert arena.damage() == 0
    np.lib.stride_tricks.as_strided(first, (6,))[5] = 3.0
    assert arena.damage() > 0
