"""A worker times only what computes the right thing."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest

from fastoptim.bench import cases, worker
from fastoptim.bench.storages import STORAGES
from fastoptim.bench.subjects import OPTIMIZERS, SUBJECTS, Subject, optimizer
from fastoptim.rules.table import RULES

SIZES = (1, 1000)


@pytest.fixture(autouse=True)
def quick_to_collect():
    """A worker collects garbage before every case; what other tests have loaded is not looked through."""
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def thawed_behind():
    yield
    gc.unfreeze()


@pytest.mark.parametrize("rule", list(RULES))
@pytest.mark.parametrize("name", list(SUBJECTS))
def test_every_subject_computes_the_rule(name, rule):
    subject = SUBJECTS[name]
    missing = [module for module in subject.requires if find_spec(module) is None]
    if missing:
        pytest.skip(f"{subject.title} needs {missing}")
    if name == "c":
        pytest.importorskip("fastoptim.backends.c", reason="the C extension is not built")
    timer = worker.Bench(subject)
    for n in SIZES if subject.family == "fastoptim" else SIZES[-1:]:
        request = {"do": "ready", "case": cases.size_case(rule, n, 1).to_json(), "block_seconds": 0.0, "check": True}
        answer = worker.answer(timer, request)
        if not answer["ok"]:
            assert subject.family != "fastoptim"
            assert "has no" in answer["reason"] or "another formula" in answer["reason"]
            if name in ("torch-default", "torch-foreach"):  # have every class that torch has
                torch = pytest.importorskip("torch")
                name_there, options = OPTIMIZERS.get(rule, ("", {}))
                assert not hasattr(torch.optim, name_there) or "cautious" in options
            assert (name, rule) not in [("torch-fused", "adam"), ("optax", "adam"), ("thinc", "adam"), ("jax", "sgd")]
            continue
        expected = "bit-identical" if subject.family == "fastoptim" else "machine epsilons"
        assert expected in answer["check"]
        assert worker.answer(timer, {"do": "run", "loop": "step"})["seconds"] > 0


@pytest.mark.parametrize("case", [cases.list_case(1, "fresh"), cases.clip_case(5000, 1), cases.training_case(4, 1)])
@pytest.mark.parametrize("name", ["reference", "numpy-in-place", "torch-fused"])
def test_lists_clipping_and_training_are_checked_too(name, case):
    if case.section not in SUBJECTS[name].sections:
        assert case.section == "clip"
        return
    if name == "torch-fused":
        pytest.importorskip("torch", reason="torch is not installed")
    timer = worker.Bench(SUBJECTS[name])
    assert "after 3 steps" in timer.ready(case, 0.0, True)["check"]
    timed = timer.run("step")
    assert timed["seconds"] > 0
    if case.section == "training":
        assert 0 < timed["update_seconds"] < timed["seconds"]


@pytest.mark.parametrize("rule", ["sgd", "adam"])
@pytest.mark.parametrize("name", ["c", "reference", "numpy-in-place", "torch-default"])
def test_rows_are_checked_too(name, rule):
    if name == "torch-default":
        pytest.importorskip("torch", reason="torch is not installed")
    case = cases.Case("rows", rule, ((1, 4 * 80_000),), 1, "rows", rows=(3000, 4))  # its ends are compared
    timer = worker.Bench(SUBJECTS[name])
    answer = worker.answer(timer, {"do": "ready", "case": case.to_json(), "block_seconds": 0.0, "check": True})
    if name == "numpy-in-place" and rule == "adam":
        assert "has no adam" in answer["reason"]
        return
    assert "after 3 steps (262,1" in answer["check"]
    for loop in answer["loops"]:
        assert timer.run(loop)["seconds"] > 0
    assert ("dense" in answer["loops"]) == (name == "c")


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("reference", cases.size_case("adam", 1000, 1)),
        ("reference", cases.Case("list", "adam", ((3, 10),), 1, "fresh", gradients="fresh")),
        ("torch-fused", cases.clip_case(1000, 1)),
        ("thinc", cases.size_case("adam", 1000, 1)),
    ],
)
def test_whoever_is_timed_warms_up_first(name, case):
    for module in SUBJECTS[name].requires:
        pytest.importorskip(module, reason=f"{module} is not installed")
    timer = worker.Bench(SUBJECTS[name])
    timer.ready(case, 0.0, False)
    step, prepare = timer.loops["step"]
    steps = []
    timer.loops["step"] = lambda: steps.append(step()), prepare
    for repeats, untimed in ((1, 2), (16, 2), (64, 8)):
        steps.clear()
        timer.repeats["step"] = repeats
        assert timer.run("step")["seconds"] > 0
        assert len(steps) == repeats + untimed


@pytest.mark.parametrize("n", [1000, 300_000])  # of the longer one, the beginning is compared
@pytest.mark.parametrize("name", STORAGES)
def test_storages_in_fewer_bits_have_the_bits_of_the_reference(name, n):
    subject = STORAGES[name]
    for module in subject.requires:
        pytest.importorskip(module, reason=f"LOUD: {module} is not installed")
    pytest.importorskip("fastoptim.backends.c", reason="LOUD: the C extension is not built")
    answer = worker.Bench(subject).ready(cases.storage_case(n, 1), 0.0, True)
    assert subject.compared == (answer["check"] is not None)
    if subject.compared:
        assert answer["check"].startswith("bit-identical") and f"{min(n, 2**17):,} elements" in answer["check"]
        wanted = {"bfloat16": 4.0, "float8": 2 + 8 * -(-n // 128) / n}[subject.stored[1]]
        assert answer["state_bytes_per_element"] == pytest.approx(wanted, rel=1e-12)


NEW_RULE = """
import importlib.util, json, sys
from pathlib import Path
from fastoptim.rules.table import RULES

from fastoptim.bench import cases, worker
from fastoptim.rules.table import row
from fastoptim.bench.subjects import OPTIMIZERS, SUBJECTS, Subject

path = Path(sys.argv[1])
path.write_text('''
from numpy import where

def new_sign(g, p, h, c, zero, one):
    h = where(g > zero, one, where(g < zero, zero - one, zero))
    u = c * h
    return u, h
''')
spec = importlib.util.spec_from_file_location("new_rule", path)
module = importlib.util.module_from_spec(spec)
sys.modules["new_rule"] = module
spec.loader.exec_module(module)
RULES["new_sign"] = row(module.new_sign, "sign")
assert {case.name for case in cases.full_cases(2) if case.rule == "new_sign"} > {"size/new_sign/float32/1e5/2 threads"}
answers = {}
for name in sys.argv[2:]:
    timer = worker.Bench(SUBJECTS[name])
    case = cases.size_case("new_sign", 1000, 1)
    answers[name] = worker.answer(timer, {"do": "ready", "case": case.to_json(), "block_seconds": 0.0, "check": True})
    if answers[name]["ok"]:
        answers[name] |= worker.answer(timer, {"do": "run", "loop": "step"})
print(json.dumps(answers))
"""


def test_a_rule_that_was_added_to_the_table_is_timed(tmp_path):
    # That other libraries lack a rule is said in one place; importing them all would take most of the time.
    names = [name for name, row in SUBJECTS.items() if row.family in ("fastoptim", "numpy") and name != "c"]
    names = [name for name in names if all(map(find_spec, SUBJECTS[name].requires))]
    done = subprocess.run(
        [sys.executable, "-c", NEW_RULE, str(tmp_path / "new_rule.py"), *names],
        env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for name, answer in json.loads(done.stdout).items():
        if SUBJECTS[name].family == "fastoptim":
            assert "bit-identical" in answer["check"] and answer["seconds"] > 0
        else:
            assert answer["reason"] == "has no new_sign"


def test_the_training_network_has_the_right_gradient():
    case = cases.training_case(8, 1)
    rng = np.random.default_rng(0)
    params = [0.05 * rng.standard_normal(n) for n in case.sizes]
    gradients = [np.zeros(n) for n in case.sizes]
    network = worker.Network(case, params, gradients)

    def loss():
        x = network.x
        for w, b in zip(network.weights[:-1], network.biases[:-1], strict=True):
            x = np.maximum(x @ w + b, 0)
        logits = x @ network.weights[-1] + network.biases[-1]
        return float(np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(8), network.labels]))

    network.gradients()
    for p, g in zip(params, gradients, strict=True):
        for i in np.argsort(-np.abs(g))[:3]:  # where it is large, rounding of the differences is small beside it
            old = p[i]
            p[i] = old + 1e-6
            above = loss()
            p[i] = old - 1e-6
            below = loss()
            p[i] = old
            assert g[i] == pytest.approx((above - below) / 2e-6, rel=1e-4)


def test_a_wrong_result_is_not_timed(peers):
    answer = worker.answer(
        worker.Bench(Subject("wrong", "own", "bench_peers:wrong")),
        {"do": "ready", "case": cases.size_case("sgd", 100, 1).to_json(), "block_seconds": 0.0, "check": True},
    )
    assert not answer["ok"]
    assert "machine epsilons away from the reference" in answer["reason"]


def test_one_bit_is_enough_to_refuse_a_backend():
    case = cases.size_case("adam", 100, 1)
    params = [np.linspace(1, 2, 100, dtype=np.float32)]
    expected = worker.Expected(case, params, "torch")
    expected.step([np.ones(100, np.float32)])
    values = [expected.rows[0][2].copy()]
    assert "bit-identical" in expected.verdict(values, exact=True)
    values[0][57] = np.nextafter(values[0][57], np.float32(9))
    with pytest.raises(ValueError, match="differs from the reference in 1 of 100"):
        expected.verdict(values, exact=True)
    values[0][57] = np.nan
    with pytest.raises(ValueError, match="away from the reference"):
        expected.verdict(values, exact=False)


def test_both_ends_of_a_large_array_are_checked():
    size, budget = 10_000_000, worker.CHECKED_ELEMENTS
    parts = worker.checked_parts(size, budget)
    assert parts[0].start == 0
    assert parts[-1].stop == size
    assert sum(part.stop - part.start for part in parts) == budget
    assert worker.checked_parts(10, budget) == [slice(0, 10)]


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_of_the_table_can_be_timed(rule):
    p = np.ones(5, np.float32)
    opt = optimizer(rule, [p], "numpy", 1)
    opt.step([p.copy()])
    assert rule in opt._rules and not np.isnan(p).any()
