"""Two builds compared in one run: only what is so in every sitting is called slower or faster."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from benchmarks import against
from tests.support import ROOT

SCRIPT = against.__file__


def run(*arguments):
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, check=False)


def test_a_build_beside_itself(tmp_path):
    short = ("--rounds", 6, "--sittings", 2, "--seconds", 0.0002, "--only", "c: functional")
    done = run(ROOT, ROOT, *short, "--json", tmp_path / "rows.json")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "rows.json").read_text())
    (row,) = result["rows"]
    assert row["case"] == "c: functional.adam, 10" and row["rounds"] == 6
    assert row["q1"] <= row["ratio"] <= row["q3"] and 0.1 < row["ratio"] < 10
    assert result["old"] == result["new"] and str(ROOT) not in json.dumps(result)


def test_a_folder_without_the_package_is_refused(tmp_path):
    done = run(tmp_path, ROOT, "--only", "c: functional")
    assert done.returncode == 1 and "fastoptim" in done.stderr


@pytest.mark.parametrize(
    ("new", "verdict"),
    [
        ([1.1] * 12, "slower"),
        ([0.9] * 12, "faster"),
        ([1.0] * 12, ""),
        ([1.3] * 8 + [0.99] * 4, ""),  # not in every sitting
        ([0.9, 1.2, 1.2, 0.9, 1.2, 1.2] * 2, ""),  # a third of the rounds says the opposite
    ],
)
def test_verdicts(new, verdict):
    row = against.Timing([1.0] * 12, new).row("case", sittings=3)
    assert row["verdict"] == verdict and row["least_sitting"] <= row["ratio"] <= row["greatest_sitting"]


def test_cases_have_names_of_their_own():
    for threads in (1, 2, 8):
        names = [case.name for case in against.all_cases(threads)]
        assert len(set(names)) == len(names) and all(case.kind in against.CASES for case in against.all_cases(threads))
