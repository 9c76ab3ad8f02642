"""Misbehaving peers, and results that are made up."""

from __future__ import annotations

import io
import json
import os
import sys

import numpy as np
import pytest

from fastoptim.bench import cases, runner
from fastoptim.bench.storages import STORAGES
from fastoptim.bench.subjects import SUBJECTS, Subject

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


@pytest.fixture(scope="session")
def document():
    """A full document with every section, made up from a seed: reports and comparisons are not about this machine."""
    rng = np.random.default_rng(5)
    subjects = SUBJECTS | STORAGES | {"own": Subject("my own", "own", "module:function")}
    run = runner.Run(runner.FULL, subjects, [{"what": "cuda", "why": "no device"}], io.StringIO())
    entries = []
    for case in cases.full_cases(2):
        entry = case.to_json() | {"results": {}, "left_out": {"thinc": "has no momentum"}}
        entry |= {"rounds": 9, "rounds_kept": 8, "others": 0.04}
        pace = 1e-6 + case.elements * 0.5e-9
        loops = [("c", "c", 1.0)] + [(n, n, 0.9 + 0.2 * k) for k, n in enumerate(SUBJECTS) if n != "c"]
        loops += [("own", "own", 0.8)]
        if case.section == "storage":
            loops = [("c", "c", 1.0), *((n, n, 0.8 + 0.2 * k) for k, n in enumerate(STORAGES))]
        if case.section in ("size", "list"):
            loops += [("roofline", "c", 0.9), ("divide", "c", 0.7)]
        if case.section == "rows":
            loops += [("dense", "c", 60.0)]
        focus = pace * (1 + 0.01 * rng.standard_normal(8))
        for key, subject, factor in loops:
            seconds = focus if key == "c" else factor * pace * (1 + 0.01 * rng.standard_normal(8))
            result = {"subject": subject, "seconds": list(seconds), "speedup_of_focus": []}
            if key != "c":
                result["speedup_of_focus"] = list(seconds / focus)
            if case.section == "training":
                result["update_seconds"] = list(seconds / 3)
            if case.section == "storage":
                result["state_bytes_per_element"] = 8.0 if key == "c" else 4.0
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
