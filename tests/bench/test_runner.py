"""A failing subject costs its own rows only, and nothing is lost or made up."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fastoptim import bench, cli, environment
from fastoptim.bench import cases, load, report, results, runner
from fastoptim.bench.subjects import SUBJECTS, Subject

BRIEF = runner.Mode("quick", 60.0, (2, 3), 1, 20.0, 0.001)


def own(name, **options):
    return Subject(name, "own", f"bench_peers:{name}", **options)


def small_run(subjects, wanted, mode=BRIEF):
    run = runner.Run(mode, subjects, [], io.StringIO())
    run.measure(wanted)
    return run.document


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
        {"what": "3 of 3 cases, first size/sgd/float32/1e1/1 threads", "why": "the time limit was reached"}
    ]
    assert "not complete" in report.to_markdown(document)


def test_a_case_that_was_begun_and_came_to_nothing_is_missing(peers, monkeypatch):
    measured = runner.Run._group
    monkeypatch.setattr(
        runner.Run, "_group", lambda run, case, *rest: measured(run, case, *rest) if case.elements == 10 else None
    )
    wanted = [cases.size_case("sgd", n, 1) for n in (10, 100)]
    document = small_run({"reference": SUBJECTS["reference"]}, wanted)
    assert [entry["name"] for entry in document["cases"]] == [wanted[0].name]
    assert document["not_reached"] == [wanted[1].name] and not document["complete"]
    assert f"1 of 2 cases, first {wanted[1].name}" in report.to_markdown(document)


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


def test_what_is_not_installed_is_left_out_with_the_way_to_get_it(monkeypatch):
    monkeypatch.setattr(runner, "find_spec", lambda name: None if name in ("torch", "sklearn") else object())
    chosen, left_out = runner.choose(None, runner.FULL)
    assert not any(name.startswith("torch") for name in chosen)
    why = {row["what"]: row["why"] for row in left_out}
    assert why["torch fused"] == "not installed: pip install torch"
    assert why["scikit-learn"] == "not installed: pip install scikit-learn"


def test_against_chooses_families(tmp_path, monkeypatch):
    chosen, left_out = runner.choose(["numpy"], runner.QUICK)
    assert {"numpy-naive", "numpy-in-place", "reference"} <= set(chosen)
    assert {subject.family for subject in chosen.values()} == {"numpy", "fastoptim"}
    assert {"what": "thinc", "why": "not asked for"} in left_out
    with pytest.raises(ValueError, match="--against knows"):
        runner.choose(["tensorflow"], runner.QUICK)
    with pytest.raises(ValueError, match="module:function"):
        runner.choose(["mine=nothing"], runner.QUICK)
    with pytest.raises(ValueError, match=r"there is no module 'package\.module' here"):
        runner.choose(["mine=package.module:function"], runner.QUICK)
    (tmp_path / "of_this_folder.py").write_text("")
    monkeypatch.chdir(tmp_path)
    for module in ("of_this_folder", "fastoptim.bench"):
        chosen, _ = runner.choose([f"mine={module}:function"], runner.QUICK)
        assert chosen["mine"].factory == f"{module}:function"


def test_command_line_refuses_what_it_does_not_know(capsys, tmp_path):
    assert cli.main(["bench", "--against", "tensorflow"]) == 2
    assert "--against knows" in capsys.readouterr().err
    assert cli.main(["bench", "--only", "no such case", "none"]) == 2
    assert "'no such case' or 'none'" in capsys.readouterr().err
    assert cli.main(["bench", "--quick", "--only", "no such case", "size/sgd", "--out", "/proc/none"]) == 2
    assert "/proc/none" in capsys.readouterr().err
    assert cli.main(["bench", "compare", str(tmp_path / "none.json"), str(tmp_path / "none.json")]) == 2


def test_a_folder_that_cannot_be_written_is_refused_before_measuring(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(runner.Run, "measure", lambda *_: pytest.fail("measured"))
    (tmp_path / "file").write_text("")
    for out in ("/proc/nothing/here", tmp_path / "file", tmp_path / "file" / "below", "/proc"):
        assert cli.main(["bench", "--quick", "--out", str(out)]) == 2
        seen = capsys.readouterr()
        assert seen.err.startswith("fastoptim bench: ") and "Errno" not in seen.err and not seen.out


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
    monkeypatch.setattr(load.time, "monotonic", lambda: clock["now"])
    monkeypatch.setattr(load, "_busy_seconds", lambda: clock["busy"])
    monkeypatch.setattr(load, "_seconds_of", lambda pids: clock["ours"])
    monkeypatch.setattr(load.os, "cpu_count", lambda: 2)
    meter = load.LoadMeter([1, 2])
    clock |= {"now": 101.0, "busy": 51.5, "ours": 11.0}
    assert meter.others() == pytest.approx((0.5 - load.CLOCK_SLACK) / 2)
    clock |= {"busy": 51.0}
    assert meter.others() == 0.0
    monkeypatch.setattr(load, "_busy_seconds", lambda: None)
    assert meter.others() == 0.0


def test_cpu_time_of_a_process_is_read():
    if not Path("/proc/stat").exists():
        pytest.skip("this system does not tell the CPU time of other processes")
    code = "import time\nwhile time.process_time() < 0.4: pass\nprint('done', flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert load._seconds_of([other.pid]) - load._seconds_of([]) == pytest.approx(0.45, abs=0.1)
        busy = load._busy_seconds()
        assert busy is not None
        assert busy > 0.4
        other.communicate(b"\n")
