"""Benchmark reports: only what is right is timed, failures cost their own rows only, and nothing is lost or made up."""

from __future__ import annotations

import copy
import importlib
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from fastoptim import bench, cli, environment
from fastoptim.bench import cases, charts, compare, render, report, results, runner, statistics, watch, worker
from fastoptim.bench.cases import Case
from fastoptim.bench.subjects import SUBJECTS, Subject
from fastoptim.rules.table import RULES
from tests.support import ROOT

BRIEF = runner.Mode("quick", 60.0, (2, 3), 1, 20.0, 0.001)
SIZES = (1, 1000)

PEERS = '''
"""Peers that misbehave, each in its own way."""
import os, time
import numpy as np
from fastoptim.bench.subjects import Stepper, numpy_in_place

def right(case, params, gradients):
    return numpy_in_place(case, params, gradients)

def wrong(case, params, gradients):
    def step():
        for p, g in zip(params, gradients[0]):
            p -= 1.01e-3 * g
    return Stepper(step, lambda: params)

def crash(case, params, gradients):
    os.abort()

def hungry(case, params, gradients):
    return np.empty(1 << 60, np.uint8)

def stuck(case, params, gradients):
    time.sleep(600)

def dies_later(case, params, gradients):
    stepper = numpy_in_place(case, params, gradients)
    left = [40]
    whole = stepper.step
    def step():
        left[0] -= 1
        if left[0] < 0:
            os._exit(3)
        whole()
    return Stepper(step, stepper.values)

def slow(case, params, gradients):
    stepper = numpy_in_place(case, params, gradients)
    whole = stepper.step
    def step():
        time.sleep(0.05)
        whole()
    return Stepper(step, stepper.values)
'''


@pytest.fixture
def peers(tmp_path, monkeypatch):
    """Have the module `bench_peers` importable here and in workers."""
    folder = tmp_path / "peers"
    folder.mkdir()
    (folder / "bench_peers.py").write_text(PEERS)
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    sys.modules.pop("bench_peers", None)


@pytest.fixture(autouse=True)
def no_start_up(monkeypatch, request):
    """Start-up times take seconds; one test is about them."""
    if "start_up" not in request.node.name:
        monkeypatch.setattr(runner, "start_up", dict)


def own(name, **options):
    return Subject(name, "own", f"bench_peers:{name}", **options)


def small_run(subjects, wanted, mode=BRIEF):
    run = runner.Run(mode, subjects, [], io.StringIO())
    run.measure(wanted)
    return run.document


# --- Statistics ---------------------------------------------------------------------------------------------------


def test_quantiles_are_numpys():
    rng = np.random.default_rng(0)
    for n in (1, 2, 3, 10, 11):
        values = list(rng.random(n))
        for fraction in (0.0, 0.25, 0.5, 0.75, 1.0):
            assert statistics.quantile(values, fraction) == pytest.approx(np.quantile(values, fraction), rel=1e-12)
    with pytest.raises(ValueError, match="no values"):
        statistics.quantile([], 0.5)


def test_spread_is_the_deviation_of_normal_noise():
    values = list(np.random.default_rng(1).normal(10, 0.5, 20_000))
    assert statistics.summarise(values).spread == pytest.approx(0.05, rel=0.05)


def test_threshold_grows_with_spread_and_drift():
    quiet, noisy = [1.0, 1.001, 1.002, 1.001], [0.9, 1.0, 1.1, 1.2]
    assert statistics.threshold(quiet, quiet) == statistics.FLOOR
    assert statistics.threshold(quiet, noisy) > 0.3
    assert statistics.threshold(quiet, quiet, drift=0.1) == pytest.approx(4 * 0.1, rel=0.01)


def test_a_loss_is_below_one_beyond_its_spread():
    assert statistics.loses([0.8, 0.85, 0.85, 0.9])
    assert not statistics.loses([0.8, 0.9, 1.0, 1.1])
    assert not statistics.loses([0.985, 0.995, 0.995, 0.996])
    assert statistics.verdict([0.8, 0.85, 0.85, 0.9]) == "loss"
    assert statistics.verdict([0.9, 1.0, 1.0, 1.1]) == "tie"
    assert statistics.verdict([1.2, 1.3, 1.3, 1.4]) == "win"


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_few_rounds_have_no_noise_to_compare_with(document, rounds):
    assert statistics.threshold(rounds * [1.0], 9 * [2.0]) == math.inf
    assert not statistics.loses(rounds * [0.5])
    assert statistics.verdict(rounds * [0.5]) == statistics.verdict(rounds * [2.0]) == "unknown"
    slowed = copy.deepcopy(document)
    for entry in slowed["cases"]:
        for result in entry["results"].values():
            for key in ("seconds", "speedup_of_focus"):
                result[key] = result[key][:rounds]
        entry["results"]["c"]["seconds"] = [2 * s for s in entry["results"]["c"]["seconds"]]
    found, drift = compare.changes(document, slowed)
    assert found and not any(change.significant for change in found)
    ours = sum(change.ours for change in found)
    assert f"{ours} of them have fewer than 4 rounds" in compare.to_text(document, slowed, found, drift)
    rows = list(results.Results(slowed).compared())
    assert f"{len(rows)} of these comparisons have fewer than 4 rounds" in report.to_markdown(slowed)


# --- Cases --------------------------------------------------------------------------------------------------------


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


# --- A case refuses to time what is not the law -------------------------------------------------------------------


@pytest.mark.parametrize("rule", list(RULES))
@pytest.mark.parametrize("name", list(SUBJECTS))
def test_every_subject_computes_the_law(name, rule):
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


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("reference", cases.size_case("adam", 1000, 1)),
        ("reference", cases.list_case(1, "fresh")),
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


NEW_RULE = """
import importlib.util, json, sys
from pathlib import Path
from fastoptim import rules
from fastoptim.bench import cases, worker
from fastoptim.rules.table import _row
from fastoptim.bench.subjects import SUBJECTS

path = Path(sys.argv[1])
path.write_text('''
from numpy import where

def signsgd(p, g, h, c, zero, one):
    h = where(g > zero, one, where(g < zero, zero - one, zero))
    p = p - c * h
    return p, h
''')
spec = importlib.util.spec_from_file_location("new_rule", path)
module = importlib.util.module_from_spec(spec)
sys.modules["new_rule"] = module
spec.loader.exec_module(module)
rules.RULES["signsgd"] = _row(module.signsgd, "sign")
assert {case.name for case in cases.full_cases(2) if case.rule == "signsgd"} > {"size/signsgd/float32/1e5/2 threads"}
answers = {}
for name in sys.argv[2:]:
    timer = worker.Bench(SUBJECTS[name])
    case = cases.size_case("signsgd", 1000, 1)
    answers[name] = worker.answer(timer, {"do": "ready", "case": case.to_json(), "block_seconds": 0.0, "check": True})
    if answers[name]["ok"]:
        answers[name] |= worker.answer(timer, {"do": "run", "loop": "step"})
print(json.dumps(answers))
"""


def test_a_rule_that_was_added_to_the_table_is_timed(tmp_path):
    names = [name for name, row in SUBJECTS.items() if name != "c" and all(map(find_spec, row.requires))]
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
            assert answer["reason"] == "has no signsgd"


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
        worker.Bench(own("wrong")),
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


# --- A peer that fails costs its own rows only --------------------------------------------------------------------


def test_failures_cost_their_own_rows_only(peers, tmp_path):
    failing = {
        "wrong": "machine epsilons away",
        "crash": "crashed (SIGABRT)",
        "hungry": "out of memory",
        "stuck": "no answer within 5 s",
        "dies_later": "ended with status 3",
    }
    subjects = {name: own(name) for name in ("right", *failing)} | {"reference": SUBJECTS["reference"]}
    subjects["absent"] = own("right", requires=("no_such_module",))
    wanted = [cases.size_case("sgd", n, 1) for n in (100, 1000)]
    document = small_run(subjects, wanted, BRIEF._replace(patience=5.0))
    assert document["complete"]
    assert len(document["cases"]) == 2
    for entry in document["cases"]:
        assert set(entry["results"]) == {"right", "reference"}
        assert all(len(result["seconds"]) == entry["rounds_kept"] >= 2 for result in entry["results"].values())
        for name, reason in failing.items():
            assert reason in entry["left_out"][name]
    assert any("no_such_module" in row["why"] for row in document["left_out"])
    markdown = report.to_markdown(document)
    for reason in failing.values():
        assert reason in markdown
    assert str(tmp_path) not in json.dumps(document)


def test_ratios_are_of_paired_rounds(peers):
    document = small_run({"reference": SUBJECTS["reference"], "slow": own("slow")}, [cases.size_case("sgd", 1000, 1)])
    (entry,) = document["cases"]
    mine, theirs = entry["results"]["reference"], entry["results"]["slow"]
    assert document["settings"]["focus"] == "reference"
    assert theirs["speedup_of_focus"] == [b / a for a, b in zip(mine["seconds"], theirs["seconds"], strict=True)]
    assert min(theirs["speedup_of_focus"]) > 1
    assert min(theirs["seconds"]) >= 0.05
    assert mine["speedup_of_focus"] == []


def test_the_time_limit_leaves_cases_out(peers):
    wanted = [cases.size_case("sgd", n, 1) for n in (10, 100, 1000)]
    document = small_run({"reference": SUBJECTS["reference"]}, wanted, BRIEF._replace(seconds=0.0))
    assert document["cases"] == []
    assert not document["complete"]
    assert document["left_out"] == [
        {"what": "3 cases, from size/sgd/float32/1e1/1 threads on", "why": "the time limit was reached"}
    ]
    assert "not complete" in report.to_markdown(document)


def test_subjects_that_do_not_fit_together_take_turns(monkeypatch):
    monkeypatch.setattr(runner, "available_memory", lambda: 10_000)
    subjects = {name: SUBJECTS[name] for name in ("reference", "numpy-in-place", "numpy-naive", "sklearn")}
    run = runner.Run(BRIEF, subjects, [], io.StringIO())
    groups = run._groups(cases.size_case("adam", 150, 1), list(subjects))
    assert all(group[0] == "reference" for group in groups)
    assert sorted(name for group in groups for name in group[1:]) == ["numpy-in-place", "numpy-naive", "sklearn"]
    assert len(groups) > 1
    monkeypatch.setattr(runner, "available_memory", lambda: 1 << 40)
    assert len(run._groups(cases.size_case("adam", 150, 1), list(subjects))) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_leaves_a_report_of_what_was_measured(peers, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "fastoptim", "bench", "--quick", "--out", str(out), "--only", "size/sgd"]
    command += ["--against", "slow=bench_peers:slow"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    seen = process.stderr.readline()
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert "cases" in seen
    assert process.returncode == 130, errors
    assert "report.html" in output
    document = json.loads((out / "results.json").read_text())
    assert document["interrupted"]
    assert not document["complete"]
    assert document["left_out"][-1]["why"] == "the run was interrupted"
    assert "interrupted" in (out / "report.md").read_text()
    assert all(result["seconds"] for entry in document["cases"] for result in entry["results"].values())


def test_start_up_times_are_of_a_new_process():
    times = runner.start_up(rounds=2)
    assert set(times) == {"numpy_import_seconds", "import_seconds", "first_step_seconds"}
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in times.values())


# --- Who takes part -----------------------------------------------------------------------------------------------


def test_what_is_not_installed_is_left_out_with_the_way_to_get_it(monkeypatch):
    monkeypatch.setattr(runner, "find_spec", lambda name: None if name in ("torch", "sklearn") else object())
    chosen, left_out = runner.choose(None, runner.FULL)
    assert not any(name.startswith("torch") for name in chosen)
    why = {row["what"]: row["why"] for row in left_out}
    assert why["torch fused"] == "not installed: pip install torch"
    assert why["scikit-learn"] == "not installed: pip install scikit-learn"


def test_against_chooses_families():
    chosen, left_out = runner.choose(["numpy"], runner.QUICK)
    assert {"numpy-naive", "numpy-in-place", "reference"} <= set(chosen)
    assert all(SUBJECTS[name].family in ("numpy", "fastoptim") for name in chosen)
    assert {"what": "thinc", "why": "not asked for"} in left_out
    with pytest.raises(ValueError, match="--against knows"):
        runner.choose(["tensorflow"], runner.QUICK)
    with pytest.raises(ValueError, match="module:function"):
        runner.choose(["mine=nothing"], runner.QUICK)
    chosen, _ = runner.choose(["mine=package.module:function"], runner.QUICK)
    assert chosen["mine"].factory == "package.module:function"


def test_command_line_refuses_what_it_does_not_know(capsys, tmp_path):
    assert cli.main(["bench", "--against", "tensorflow"]) == 2
    assert "--against knows" in capsys.readouterr().err
    assert cli.main(["bench", "--only", "no such case"]) == 2
    assert cli.main(["bench", "compare", str(tmp_path / "none.json"), str(tmp_path / "none.json")]) == 2


# --- The machine --------------------------------------------------------------------------------------------------


def test_levels_of_memory():
    sizes = {"L1": 32 << 10, "L2": 1 << 20, "L3": 32 << 20}
    assert results.memory_level(16_000, 1, sizes) == "L1"
    assert results.memory_level(60_000, 1, sizes) == "L2"
    assert results.memory_level(60_000, 2, sizes) == "L1"
    assert results.memory_level(16 << 20, 2, sizes) == "L3"
    assert results.memory_level(33 << 20, 2, sizes) == "memory"
    assert results.memory_level(1, 1, {}) == "memory"


def test_paths_are_cut_down():
    text = "ImportError: /home/me/.venv/lib/python3.11/site-packages/a/_c.so: not found in /opt/x/y"
    assert environment.without_paths(text) == "ImportError: _c.so: not found in y"
    assert environment.without_paths("see https://docs.python.org/3/library and 1/2") == (
        "see https://docs.python.org/3/library and 1/2"
    )


def test_description_has_what_a_reader_needs_and_no_paths():
    described = environment.describe()
    for key in (
        "cpu",
        "cores",
        "caches",
        "memory_bytes",
        "system",
        "versions",
        "backends",
        "threads",
        "commit",
        "date",
    ):
        assert key in described
    assert described["versions"]["numpy"] == np.__version__
    assert str(Path.home()) not in json.dumps(described)
    assert str(Path(bench.__file__).parent) not in json.dumps(described)


def test_the_work_of_others_is_what_is_not_ours(monkeypatch):
    clock = {"now": 100.0, "busy": 50.0, "ours": 10.0}
    monkeypatch.setattr(watch.time, "monotonic", lambda: clock["now"])
    monkeypatch.setattr(watch, "_busy_seconds", lambda: clock["busy"])
    monkeypatch.setattr(watch, "_seconds_of", lambda pids: clock["ours"])
    monkeypatch.setattr(watch.os, "cpu_count", lambda: 2)
    watching = watch.Watch([1, 2])
    clock |= {"now": 101.0, "busy": 51.5, "ours": 11.0}
    assert watching.others() == pytest.approx((0.5 - watch.CLOCK_SLACK) / 2)
    clock |= {"busy": 51.0}
    assert watching.others() == 0.0
    monkeypatch.setattr(watch, "_busy_seconds", lambda: None)
    assert watching.others() == 0.0


def test_cpu_time_of_a_process_is_read():
    if not Path("/proc/stat").exists():
        pytest.skip("this system does not tell the CPU time of other processes")
    code = "import time\nwhile time.process_time() < 0.4: pass\nprint('done', flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert watch._seconds_of([other.pid]) - watch._seconds_of([]) == pytest.approx(0.45, abs=0.1)
        busy = watch._busy_seconds()
        assert busy is not None
        assert busy > 0.4
        other.communicate(b"\n")


# --- Comparing ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def document():
    """A full document with every section, made up from a seed: reports and comparisons are not about this machine."""
    rng = np.random.default_rng(5)
    subjects = SUBJECTS | {"own": Subject("my own", "own", "module:function")}
    run = runner.Run(runner.FULL, subjects, [{"what": "cuda", "why": "no device"}], io.StringIO())
    entries = []
    for case in cases.full_cases(2):
        entry = case.to_json() | {"results": {}, "left_out": {"thinc": "has no momentum"}}
        entry |= {"rounds": 9, "rounds_kept": 8, "others": 0.04}
        pace = 1e-6 + case.elements * 0.5e-9
        loops = [("c", "c", 1.0)] + [(n, n, 0.9 + 0.2 * k) for k, n in enumerate(SUBJECTS) if n != "c"]
        loops += [("own", "own", 0.8)]
        if case.section in ("size", "list"):
            loops += [("roofline", "c", 0.9), ("divide", "c", 0.7)]
        focus = pace * (1 + 0.01 * rng.standard_normal(8))
        for key, subject, factor in loops:
            seconds = focus if key == "c" else factor * pace * (1 + 0.01 * rng.standard_normal(8))
            result = {"subject": subject, "seconds": list(seconds), "speedup_of_focus": []}
            if key != "c":
                result["speedup_of_focus"] = list(seconds / focus)
            if case.section == "training":
                result["update_seconds"] = list(seconds / 3)
            if key == subject:
                result |= {"check": "within 2 machine epsilons", "first_step_seconds": 0.1}
            entry["results"][key] = result
        if "roofline" in entry["results"]:
            limit = np.array(entry["results"]["roofline"]["seconds"])
            for key, result in entry["results"].items():
                if key != "roofline":
                    result["share_of_roofline"] = list(limit / result["seconds"])
        entries.append(entry)
    run.document |= {"cases": entries, "complete": True}
    run.document["start_up"] = {
        "fastoptim": {k: [0.1, 0.2, 0.3] for k in ("numpy_import_seconds", "import_seconds", "first_step_seconds")},
        "torch-fused": {"import_seconds": [2.0, 2.5]},
    }
    run.document["noise"], run.document["seconds"] = run._noise(), 12.0
    return json.loads(json.dumps(run.document))


def rerun(document, seed, drift=0.0):
    """The same measurements with other noise; everybody slower by `drift`."""
    rng = np.random.default_rng(seed)
    again = copy.deepcopy(document)
    for entry in again["cases"]:
        for result in entry["results"].values():
            middle = np.median(result["seconds"])
            result["seconds"] = list(middle * (1 + drift) * (1 + 0.01 * rng.standard_normal(8)))
    return again


def test_two_runs_of_one_machine_show_no_change(document):
    for seed in range(5):
        found, drift = compare.changes(document, rerun(document, seed))
        assert len([change for change in found if change.ours]) > 100
        assert not any(change.significant for change in found)
        assert 0 < drift < 0.02


def test_a_slower_kernel_is_found_and_nothing_else(document):
    slowed = rerun(document, 1)
    victim = "size/adam/float32/1e5/2 threads"
    entry = next(entry for entry in slowed["cases"] if entry["name"] == victim)
    entry["results"]["c"]["seconds"] = [1.2 * s for s in entry["results"]["c"]["seconds"]]
    found, _ = compare.changes(document, slowed)
    assert [(c.case, c.subject) for c in found if c.significant] == [(victim, "c")]
    back, _ = compare.changes(slowed, document)
    (change,) = [c for c in back if c.significant]
    assert change.relative == pytest.approx(-1 / 6, abs=0.03)


def test_a_slow_day_is_not_a_slow_kernel(document):
    slow_day = rerun(document, 2, drift=0.5)
    found, drift = compare.changes(document, slow_day)
    assert drift < 0.02  # what all have in common is no noise
    assert not any(change.significant for change in found)
    entry = next(entry for entry in slow_day["cases"] if entry["name"] == "size/adam/float32/1e5/2 threads")
    entry["results"]["c"]["seconds"] = [1.2 * s for s in entry["results"]["c"]["seconds"]]
    found, _ = compare.changes(document, slow_day)
    assert [(c.case, c.subject) for c in found if c.significant] == [(entry["name"], "c")]


def test_who_stays_behind_when_the_machine_speeds_up_is_slower(document):
    quick_day = rerun(document, 3, drift=-0.4)
    entry = next(entry for entry in quick_day["cases"] if entry["name"] == "size/adam/float32/1e5/2 threads")
    entry["results"]["c"]["seconds"] = [s / 0.6 for s in entry["results"]["c"]["seconds"]]  # as long as before
    found, drift = compare.changes(document, quick_day)
    (change,) = [c for c in found if c.significant]
    assert change.subject == "c" and change.relative == pytest.approx(1 / 0.6 - 1, abs=0.05)
    assert "1 slower, 0 faster" in compare.to_text(document, quick_day, found, drift)


@pytest.mark.parametrize("changed", ["own", "torch", "jax", "numpy"])
def test_a_program_that_changed_is_no_measure_of_the_machine(document, changed):
    """The user's own code, and a library in another version, may be faster for reasons of their own."""
    before = copy.deepcopy(document)
    before["machine"]["versions"] |= {"torch": "2.12", "jaxlib": "0.4", "numpy": "2.1", "numexpr": "2.10"}
    after = rerun(before, 5)
    if changed == "own":
        movers = ["own"]
        before["cases"] = [entry for entry in before["cases"] if "own" in entry["results"]]
        for entry in before["cases"]:
            entry["results"] = {key: entry["results"][key] for key in ("c", "own")}
    else:
        movers = {
            "torch": ["torch-fused", "torch-default", "torch-foreach"],
            "jax": ["jax", "optax"],
            "numpy": ["numpy-in-place", "numpy-naive", "numexpr", "thinc", "sklearn"],
        }[changed]
        after["machine"]["versions"][{"jax": "jaxlib"}.get(changed, changed)] = "9.9"
    kept = {"c", *movers}
    for run in (before, after):
        for entry in run["cases"]:
            entry["results"] = {key: result for key, result in entry["results"].items() if key in kept}
    for entry in after["cases"]:
        for name in movers:
            if name in entry["results"]:
                entry["results"][name]["seconds"] = [s / 2 for s in entry["results"][name]["seconds"]]
    found, drift = compare.changes(before, after)
    assert drift is None
    assert not any(change.significant for change in found if change.ours)
    assert "Too few rows of unchanged libraries" in compare.to_text(before, after, found, drift)


def test_few_rounds_explain_more():
    rounds = [0.95, 1.0, 1.05, 1.0]
    assert statistics.threshold(rounds, rounds) > 1.5 * statistics.threshold(4 * rounds, 4 * rounds)


def test_too_few_others_tell_no_drift(document):
    few = copy.deepcopy(document)
    few["cases"] = few["cases"][:2]
    for entry in few["cases"]:
        entry["results"] = {key: entry["results"][key] for key in ("c", "numba", "thinc")}
    found, drift = compare.changes(few, rerun(few, 1))
    assert drift is None
    assert "Too few rows" in compare.to_text(few, few, found, drift)


def test_compare_command(document, tmp_path, capsys):
    slowed = rerun(document, 3)
    for entry in slowed["cases"]:
        if entry["threads"] == 2 and "c" in entry["results"]:
            entry["results"]["c"]["seconds"] = [1.8 * s for s in entry["results"]["c"]["seconds"]]
    paths = [tmp_path / name for name in ("a.json", "b.json", "slow.json")]
    for path, content in zip(paths, (document, rerun(document, 4), slowed), strict=True):
        path.write_text(json.dumps(content))
    a, b, slow = map(str, paths)
    assert cli.main(["bench", "compare", a, b]) == 0
    assert "No significant change." in capsys.readouterr().out
    assert cli.main(["bench", "compare", a, slow]) == 1
    output = capsys.readouterr().out
    assert "slower x1.8" in output
    assert " 0 faster" in output
    assert cli.main(["bench", "compare", slow, a]) == 0
    assert "0 slower" in capsys.readouterr().out


def test_compare_refuses_other_files(document, tmp_path, capsys):
    good, other = tmp_path / "good.json", tmp_path / "other.json"
    good.write_text(json.dumps(document))
    for text, message in (
        ("{}", "does not hold results"),
        ("[1", "is not JSON"),
        (json.dumps(document | {"schema_version": 99}), "schema version 99"),
        (json.dumps({"schema": document["schema"]}), "schema version None"),
        (json.dumps({key: document[key] for key in ("schema", "schema_version")}), "lacks mode, machine"),
        (json.dumps({key: value for key, value in document.items() if key != "cases"}), "lacks cases"),
        (json.dumps(document | {"cases": []}), "no case in common"),
    ):
        other.write_text(text)
        assert cli.main(["bench", "compare", str(good), str(other)]) == 2
        assert message in capsys.readouterr().err


# --- The report ---------------------------------------------------------------------------------------------------


def figures(document):
    return [c for block in report.blocks(document) if isinstance(block, render.Figures) for c in block.charts]


def test_report_folder(document, tmp_path):
    page = report.write(document, tmp_path / "out")
    names = {path.name for path in page.parent.iterdir()}
    assert {"report.html", "report.md", "results.json"} <= names
    slugs = [chart.slug for chart in figures(document)]
    assert len(set(slugs)) == len(slugs) > 15
    assert {f"{slug}.svg" for slug in slugs} <= names
    assert json.loads((page.parent / "results.json").read_text()) == document
    linked = re.findall(r"\]\((\S+)\)", (page.parent / "report.md").read_text())
    assert {link for link in linked if not link.startswith("#")} <= names


def test_page_needs_nothing_else(document):
    page = report.to_html(document)
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert [link for link in links if not link.startswith("#")] == ["data:,"]
    assert "<script" not in page
    assert "url(" not in page
    assert 'name="viewport"' in page
    assert "prefers-color-scheme:dark" in page
    assert "@media print" in page
    ET.fromstring(re.sub(r"<meta[^>]*>|<link[^>]*>|<!doctype html>", "", page))


def test_every_section_is_there(document):
    markdown = report.to_markdown(document)
    for heading in (
        "In short",
        "The machine and the run",
        "Speed against the others",
        "Time per element against size",
        "Fraction of the roofline",
        "Many arrays",
        "Threads",
        "A whole training step",
        "Clipping by the global norm",
        "What a call costs",
        "Start-up",
        "How it was measured",
        "What was left out",
    ):
        assert f"## {heading}" in markdown
    assert "cuda: no device" in markdown
    assert "thinc: has no momentum" in markdown
    assert "8 of 9" not in markdown
    assert f"{8 * len(document['cases'])} of {9 * len(document['cases'])} rounds kept" in markdown


def test_losses_are_told(document):
    page, markdown = report.to_html(document), report.to_markdown(document)
    assert 'class="loss"' in page
    assert 'class="bar v-loss"' in page
    assert "(loss)**" in markdown
    lost = re.search(r" loses in (\d+) of (\d+) comparisons", markdown)
    assert lost is not None
    rows = list(results.Results(document).compared())
    assert int(lost[1]) == sum(statistics.verdict(ratios) == "loss" for _, _, ratios in rows) > 0
    assert int(lost[2]) == len(rows)
    winning = copy.deepcopy(document)
    for entry in winning["cases"]:
        for result in entry["results"].values():
            result["speedup_of_focus"] = [ratio + 5 for ratio in result["speedup_of_focus"]]
    assert f"loses in 0 of {len(rows)} comparisons" in report.to_markdown(winning)
    bars = [chart for chart in figures(winning) if isinstance(chart, charts.Bars)]
    assert not any(verdict == "loss" for chart in bars for row in chart.rows for _, verdict in row.parts)


def test_figures_of_the_text_come_from_the_rounds(document):
    shown = results.Results(document)
    entry = next(e for e in shown.cases if e["name"] == "size/adam/float32/1e7/2 threads")
    ratios = entry["results"]["numpy-in-place"]["speedup_of_focus"]
    table = report.speedup_table(shown, [entry], ["1e7"], "")
    row = next(row for row in table.rows if row[0].text == "NumPy in place")
    assert row[1].text == results.ratio_text(float(np.median(ratios)))
    roofline, mine = entry["results"]["roofline"]["seconds"], entry["results"]["c"]["seconds"]
    share = shown.share_of_roofline(entry, "c")
    assert share.median == pytest.approx(float(np.median(np.divide(roofline, mine))))


def svg_extent(root, font):
    """Leftmost and rightmost, highest and lowest of all text, measured in a wide font."""
    edges = []
    for text in root.iter("{http://www.w3.org/2000/svg}text"):
        if "transform" in text.attrib:
            continue
        x, y = float(text.get("x")), float(text.get("y"))
        width = font.getlength(text.text or "") * (1.25 if text.get("class") == "title" else 1.0)
        start = {"start": x, "middle": x - width / 2, "end": x - width}[text.get("text-anchor")]
        edges.append((start, start + width, y))
    return edges


def test_charts_are_valid_and_nothing_is_cut_off(document):
    pytest.importorskip("matplotlib", reason="matplotlib brings the font that text is measured in")
    from matplotlib.font_manager import findfont
    from PIL import ImageFont

    font = ImageFont.truetype(findfont("DejaVu Sans"), 11.5)
    for chart in figures(document):
        for standalone in (False, True):
            root = ET.fromstring(charts.svg(chart, standalone))
            _, _, width, height = map(float, root.get("viewBox").split())
            for start, end, y in svg_extent(root, font):
                assert start >= -1, chart.slug
                assert end <= width + 1, chart.slug
                assert 0 < y <= height, chart.slug
            assert ("<style>" in charts.svg(chart, standalone)) == standalone


def test_time_chart_has_a_line_for_everybody_and_the_roofline(document):
    chart = next(chart for chart in figures(document) if chart.slug == "time-adam-float32-t2")
    assert {series.key for series in chart.series} == {*SUBJECTS, "own", "roofline", "divide"}
    assert [series.x for series in chart.series if series.key == "roofline"] == [[10.0**k for k in range(3, 9)]]
    assert chart.series[0].key == "c"


def test_every_subject_has_a_colour_and_a_shape_of_its_own():
    assert set(SUBJECTS) <= set(charts.STYLES)
    looks = [style[:1] + style[2:] for style in charts.STYLES.values()]
    assert len(set(looks)) == len(looks)
    assert charts.VERDICTS["loss"][0] not in [style[0] for style in charts.STYLES.values()]


def test_a_report_of_nothing_is_still_a_report(document, tmp_path):
    empty = copy.deepcopy(document) | {"cases": [], "start_up": {}}
    page = report.write(empty, tmp_path)
    assert "Nothing was measured" in page.read_text()


def test_ticks():
    assert charts._ticks(1, 1000, True) == pytest.approx([1, 3, 10, 30, 100, 300, 1000])
    assert charts._ticks(1, 10**8, True, most=9) == pytest.approx([10.0**k for k in range(9)])
    assert charts._ticks(0.0, 1.05, False) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert charts.number(1e7) == "10M"
    assert charts.number(0.5) == "0.5"


# --- The check on a GPU -------------------------------------------------------------------------------------------

GPU_CHECK = """
import json, os, sys
from pathlib import Path

sys.path.insert(0, "benchmarks")
sys.modules["_cffi_backend"] = None  # the machine with the GPU need not have what the C extension needs
import gpu_check

def cut_short(*arguments):
    raise TimeoutError

def cut_short_later(*arguments):
    yield cut_short()

one_a_rule = list({variant.rule.name: variant for variant in gpu_check.VARIANTS}.values())
checks = list(gpu_check.check_kernels(gpu_check.get_backend("cuda"), (5,), gpu_check.ordinary, 0, one_a_rule))
assert len(checks) == 2 * len(gpu_check.rules.RULES) and not sum(differing for *_, differing in checks)

result = {"bits": {"differing": 0}, "lists": [], "sizes": []}
for name, factors in (("tied", (1.02, 0.995, 0.99, 0.98)), ("lost", (0.9, 0.91, 0.92, 0.93))):
    times = {"torch_fused": list(factors), "ours": [1.0] * 4}
    result["lists"].append({"list": name, "torch_over_ours": gpu_check.against(times, "torch_fused")})
print(">", json.dumps(gpu_check.bars(result)))

gpu_check.check_bits = lambda *arguments: {"checks": 7, "differing": 0}
for stage, stop in (("time_first_use", cut_short), ("time_lists", cut_short_later)):
    usual = getattr(gpu_check, stage)
    setattr(gpu_check, stage, stop)
    try:
        gpu_check.main(["--quick", "--json", sys.argv[1]])
    except TimeoutError:
        print(">", Path(sys.argv[1]).read_text().replace("\\n", ""))
    setattr(gpu_check, stage, usual)

os.environ["PATH"] = ""
gpu_check.SIMULATED = False
print(">", json.dumps(gpu_check.environment()["nvidia_smi"]))
"""


@pytest.mark.skipif(find_spec("numba_cuda") is None, reason='NOT TESTED: gpu_check; pip install "fastoptim[cuda]"')
def test_gpu_check_keeps_what_it_has_and_needs_neither_cffi_nor_nvidia_smi(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", GPU_CHECK, str(tmp_path / "new" / "gpu.json")],
        cwd=ROOT,
        env=os.environ | {"NUMBA_ENABLE_CUDASIM": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line[2:]) for line in done.stdout.splitlines() if line.startswith("> ")]
    met, bits_only, up_to_lists, smi = lines
    assert met == {
        "0 differing bits": True,
        "tied: no slower than torch fused": True,
        "lost: no slower than torch fused": False,
    }
    assert set(bits_only) == {"simulated", "environment", "bits"} and bits_only["bits"]["checks"] == 7
    assert len(up_to_lists["sizes"]) == 3 and up_to_lists["lists"] == []
    assert smi == []


# --- The README's numbers -----------------------------------------------------------------------------------------


@pytest.fixture
def readme_numbers(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield importlib.import_module("readme_numbers")
    sys.modules.pop("readme_numbers", None)


def test_readme_numbers_cannot_drift(readme_numbers, document, tmp_path, capsys):
    readme, results = tmp_path / "README.md", tmp_path / "results.json"
    results.write_text(json.dumps(document))
    readme.write_text(f"# Title\n{readme_numbers.BEGIN}\nold\n{readme_numbers.END}\nthe rest\n")
    options = ["--readme", str(readme), "--results", str(results)]
    assert readme_numbers.main([*options, "--check"]) == 1
    assert readme_numbers.main(options) == 0
    text = readme.read_text()
    assert text.startswith("# Title\n")
    assert text.endswith("\nthe rest\n")
    assert "\nold\n" not in text
    assert readme_numbers.main([*options, "--check"]) == 0
    entry = next(e for e in document["cases"] if e["name"] == "size/adam/float32/1e7/2 threads")
    ratio = float(np.median(entry["results"]["numpy-naive"]["speedup_of_focus"]))
    assert results.ratio_text(ratio) in next(line for line in text.splitlines()[::-1] if line.startswith("| NumPy naive"))
    readme.write_text(text.replace(results.ratio_text(ratio), "99x"))
    assert readme_numbers.main([*options, "--check"]) == 1
    assert "readme_numbers.py" in capsys.readouterr().out


def test_readme_without_markers_is_refused(readme_numbers):
    with pytest.raises(ValueError, match="needs one line"):
        readme_numbers.with_numbers("no markers", "text")
    with pytest.raises(ValueError, match="needs one line"):
        readme_numbers.with_numbers(f"{readme_numbers.END}\n{readme_numbers.BEGIN}", "text")


def test_documentation_names_every_field(document):
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    entry = document["cases"][0]
    fields = {*document, *document["machine"], *document["settings"], *document["noise"], *entry}
    fields |= {field for result in entry["results"].values() for field in result} | {"update_seconds"}
    assert {field for field in fields if f"`{field}`" not in text and f'`{field}"' not in text} == set()
    assert f"`schema_version` is {results.SCHEMA_VERSION}" in text
