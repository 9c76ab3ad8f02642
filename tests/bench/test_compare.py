"""What changed between two runs, and what is no results file."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
import random

import numpy as np
import pytest

from fastoptim import cli
from fastoptim.bench import compare, report, results, statistics


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


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_few_rounds_have_no_noise_to_compare_with(document, rounds):
    assert statistics.threshold(rounds * [1.0], 9 * [2.0]) == math.inf
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


HOSTILE = (
    None, True, -1, 0, 10**4000, 1e308, 1e-320, math.nan, math.inf, "x", "\x1b[31mred\x07", "\ud800\u202e", "",
    [], {}, [[]], ["x"], [0], {"median": 1.0, "q1": 2.0, "q3": 0.5, "rounds": 3},
    {"median": 1.0, "q1": 1.0, "q3": 1.0, "rounds": True},
)  # fmt: skip


def places(node, path=()):
    """Every place in a document."""
    yield path
    if isinstance(node, dict | list):
        for key in node if isinstance(node, dict) else range(min(len(node), 3)):
            yield from places(node[key], (*path, key))


def test_hostile_files_are_refused_or_compared(document, tmp_path, capsys):
    """No traceback, whatever stands where, and nothing that a terminal would act on."""
    small = document | {"cases": document["cases"][:2]}
    rng = random.Random(0)
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(json.dumps(small))
    everywhere = [path for path in places(small) if path]
    statuses = []
    for _ in range(400):
        broken = copy.deepcopy(small)
        *parents, last = rng.choice(everywhere)
        node = broken
        for key in parents:
            node = node[key]
        value = rng.choice(HOSTILE)
        if isinstance(node, dict) and rng.random() < 0.3:
            node["\x1b]0;title\x07" if rng.random() < 0.5 else "new"] = value
        else:
            node[last] = value
        with contextlib.suppress(ValueError):  # what Python itself does not write
            bad.write_text(json.dumps(broken), encoding="utf-8", errors="surrogatepass")
        statuses.append(cli.main(["bench", "compare", *map(str, rng.sample([good, bad], 2))]))
        seen = capsys.readouterr()
        assert "Traceback" not in seen.err
        assert all(c.isprintable() or c == "\n" for c in seen.out + seen.err)
        assert (statuses[-1] == 2) == bool(seen.err)
    assert set(statuses) >= {0, 2}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 200_000, "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"1" * 5000, "is not JSON"),
        (b"", "is not JSON"),
        (b'"' + b" " * (results.MOST_BYTES + 1) + b'"', "more than 64 MiB"),
    ],
    ids=["deep", "bytes", "digits", "empty", "large"],
)
def test_what_is_no_json_is_refused(content, message, tmp_path, capsys):
    path = tmp_path / "\x1b[31m.json"
    path.write_bytes(content)
    assert cli.main(["bench", "compare", str(path), str(path)]) == 2
    seen = capsys.readouterr().err
    assert message in seen and "\x1b" not in seen


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_a_fifo_is_not_waited_for(tmp_path, capsys):
    os.mkfifo(tmp_path / "results.json")
    assert cli.main(["bench", "compare", str(tmp_path), str(tmp_path)]) == 2
    assert "is not a file" in capsys.readouterr().err


def test_what_is_missing_or_was_disturbed_is_said(document, tmp_path, capsys):
    """Half a run compared as if it were whole: a case that fails now was no change at all."""
    half = rerun(document, 6)
    half["not_reached"] = [entry["name"] for entry in half["cases"][5:]]
    half["cases"] = half["cases"][:5]
    half["noise"]["disturbed_cases"] = 2
    half["machine"]["backends"] = {"c": {"isa": "baseline"}}
    for name, content in (("a.json", document), ("b.json", half)):
        (tmp_path / name).write_text(json.dumps(content))
    assert cli.main(["bench", "compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 0
    out = capsys.readouterr().out
    ours = {name for name, subject in document["subjects"].items() if subject["family"] == "fastoptim"}
    alone = sum(len(ours & entry["results"].keys()) for entry in document["cases"][5:])
    assert f"! B is not complete: {len(document['cases']) - 5} cases are missing." in out
    assert "! B was measured while the machine was busy, in 2 of 5 cases: do not decide by it." in out
    assert f"! A alone has {alone} rows of fastoptim, which are not compared: " in out
    assert "instruction set differs: " in out and " / baseline" in out and "! A is" not in out
    assert cli.main(["bench", "compare", str(tmp_path / "a.json"), str(tmp_path / "a.json")]) == 0
    assert "!" not in capsys.readouterr().out
