"""What a difference must exceed, and what is timed."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fastoptim.bench import cases, statistics
from fastoptim.bench.cases import Case
from fastoptim.rules.table import RULES


def test_spread_is_the_deviation_of_normal_noise():
    values = list(np.random.default_rng(1).normal(10, 0.5, 20_000))
    assert statistics.summarise(values).spread == pytest.approx(0.05, rel=0.05)


def test_threshold_grows_with_spread_and_drift():
    quiet, noisy = [1.0, 1.001, 1.002, 1.001], [0.9, 1.0, 1.1, 1.2]
    assert statistics.threshold(quiet, quiet) == statistics.FLOOR
    assert statistics.threshold(quiet, noisy) > 0.3
    assert statistics.threshold(quiet, quiet, drift=0.1) == pytest.approx(4 * 0.1, rel=0.01)


def test_a_loss_is_below_one_beyond_its_spread():
    assert statistics.verdict([0.8, 0.9, 1.0, 1.1]) == statistics.verdict([0.985, 0.995, 0.995, 0.996]) == "tie"
    assert statistics.verdict([0.8, 0.85, 0.85, 0.9]) == "loss"
    assert statistics.verdict([0.9, 1.0, 1.0, 1.1]) == "tie"
    assert statistics.verdict([1.2, 1.3, 1.3, 1.4]) == "win"


@pytest.mark.parametrize("cores", [1, 2, 3, 64])
@pytest.mark.parametrize("table", [cases.quick_cases, cases.full_cases])
def test_cases_have_unique_names_and_survive_json(table, cores):
    rows = table(cores)
    names = [case.name for case in rows]
    assert len(set(names)) == len(names)
    assert [Case.from_json(json.loads(json.dumps(case.to_json()))) for case in rows] == rows
    assert {case.threads for case in rows} <= set(range(1, cores + 1))
    assert cores in {case.threads for case in rows}


def test_every_rule_of_the_table_is_timed():
    assert {case.rule for case in cases.full_cases(2)} == set(RULES)


def test_gpt2_small_has_its_148_arrays():
    case = cases.gpt2_case(1)
    assert case.count == 148
    assert case.elements == 124_439_808


def test_bytes_of_a_step():
    case = cases.size_case("adam", 1000, 1)
    assert case.moved_bytes == 28 * 1000
    assert case.resident_bytes == 16 * 1000
    assert cases.size_case("sgd", 1000, 1).moved_bytes == 12 * 1000
    assert cases.size_case("momentum", 1000, 1, "float64").moved_bytes == 40 * 1000
