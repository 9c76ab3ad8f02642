"""The command line."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import fastoptim as fo
from fastoptim import cli


def test_info_tells_what_is_here(capsys):
    assert cli.main(["info"]) == 0
    text = capsys.readouterr().out
    assert "isa:" in text and "usable cores:" in text and "-ffp-contract=off" in text
    assert cli.main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(json.dumps(fo.info()))
    assert found["auto"] == "c" and "missing" not in found["backends"]["numpy"]


def test_info_says_what_a_missing_backend_lacks(monkeypatch):
    get_backend = fo.backends.get_backend

    def only_numpy(name):
        if name != "numpy":
            raise ImportError("no such luck")
        return get_backend(name)

    monkeypatch.setattr(fo.backends, "get_backend", only_numpy)
    found = fo.info()
    assert found["auto"] == "numpy" and found["backends"]["c"] == {"missing": "no such luck"}


@pytest.mark.parametrize(
    ("arguments", "status"), [([], 2), (["--help"], 0), (["nothing"], 2), (["--version"], 0), (["info", "x"], 2)]
)
def test_exit_status(arguments, status, capsys):
    assert cli.main(arguments) == status
    out = capsys.readouterr()
    assert out.out or out.err


def test_module_runs():
    done = subprocess.run([sys.executable, "-m", "fastoptim", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == fo.__version__
