"""What type checkers say of programs that use the package: nothing of a good one, something of every slip in a bad one.

The package must also be lazy at run time: the list for type checkers and that of the names to load are compared.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastoptim as fo
from tests.support import ROOT

PACKAGE = Path(fo.__file__).parent

GOOD = """
from __future__ import annotations

from typing import Any

import numpy as np

import fastoptim as fo
from fastoptim.adapters import numpy_ml
from fastoptim.optimizers import Adam
from fastoptim.training import fit


def loss_and_grad(params: Any, batch: Any) -> tuple[float, Any]:
    return 0.0, params


def callback(loop: fo.Loop) -> None:
    if loop.steps > 3:
        loop.stop()


p = {"w": np.ones(3)}
sgd: fo.Optimizer = fo.SGD(p, lr=0.1, momentum=0.9, nesterov=True)
opt = fo.AdamW([{"params": p, "lr": 1e-2}], betas=(0.9, 0.99), weight_decay=0.1, backend="auto", threads=1)
opt.weight_decay = 5
opt.weight_decay = [5.0]
opt.betas = (0.8, 0.9)
opt.lr = [0.1]
rate: float = opt.lr + opt.weight_decay + opt.betas[0]
info: fo.StepInfo = opt.step(p, max_norm=1.0)
norm: float = fo.clip_grad_norm(p, 1.0) + fo.grad_norm(p)
schedule = fo.schedules.warmup(fo.schedules.cosine(0.1, 10), 5)
result: fo.FitResult = fo.fit(
    loss_and_grad, p, (np.ones(3),), opt, lr=schedule, epochs=3, callbacks=[callback, fo.plots.UpdateRatios(p)]
)
again: fo.FitResult = fit(loss_and_grad, p, None, Adam(p), steps=3)
history: fo.History = result.history
diagnosis: fo.Diagnosis | None = result.diagnosis
found: fo.ProbeResult = fo.probe_lr(loss_and_grad, p, None, fo.SGD, steps=10)
probes: tuple[fo.Probe, ...] = found.probes
test: fo.RangeTest = fo.lr_range_test(loss_and_grad, p)
advice: fo.Recommendation = fo.recommend(sparse=True)
Own = fo.rule(loss_and_grad, states="m", coefficients=callback)
own: fo.Optimizer = Own(p, lr=0.1)
sparse: fo.SparseAdam = fo.SparseAdam(p, lr=0.1)
sparse.step(fo.Rows(np.ones(1, np.int64), np.ones((1, 2)), lazy=True))
average: fo.Average = fo.Average(p, decay=0.9)
fo.fit(loss_and_grad, p, None, own, steps=3, average=average)
batches: fo.Minibatches = fo.minibatches((np.ones(3),), 2)
fo.functional.adam(p["w"], p["w"], p["w"], p["w"], step=1)
fo.adapters.dicts.SGD(lr=0.1).update({}, {})
numpy_ml.SGD(lr=0.1)
sharded = fo.distributed.ShardedOptimizer(fo.Adam, p, lr=0.1)
error: type[ValueError] = fo.CheckpointError
warning: type[UserWarning] = fo.TrainingWarning
version: str = fo.__version__
"""

HEAD = """
import numpy as np

import fastoptim as fo

p = np.ones(3)
opt = fo.SGD(p)
"""
BAD = """
fo.Admm(p)
fo.FitResults
fo.SGD(p, learning_rate=1)
fo.Adam(p, learning_rate=1)
fo.AdamW(p, learning_rate=1)
fo.SGD(p, lr="x")
fo.AdamW(p, lr="x")
opt.stepp(p)
opt.step(p, maxnorm=1.0)
opt.weight_deccay = 1
opt.weight_decay = "x"
print(opt.momentun)
fo.Adam(p).momentum = 0.9
fo.fit(lambda p, b: (0.0, p), p, None, epochz=3)
fo.probe_lr(lambda p, b: (0.0, p), p, confrm=1)
fo.minibatches(p, batchsize=3)
fo.clip_grad_norm(p, maxnorm=1.0)
fo.rule(print, coeffs=print)
fo.Average(p, decoy=0.9)
fo.Rows(p)
fo.functional.adamm(p, p, p, p, step=1)
fo.functional.adam(p, p, p, p, step=1, learning_rate=1)
fo.schedules.cosin(0.1, 10)
fo.schedules.cosine(0.1, 10, final=0.1)
fo.adapters.sklern
fo.adapters.dicts.SGD(rate=0.1)
""".strip()


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("programs")
    (folder / "good.py").write_text(GOOD)
    (folder / "bad.py").write_text(HEAD + BAD + "\n")
    return folder


def check(found, name):
    """`found`: (file, line) of every error."""
    first = len(HEAD.splitlines()) + 1
    slips = {first + i: line for i, line in enumerate(BAD.splitlines())}
    lines = {line for file, line in found if file == "bad.py"}
    assert [line for file, line in found if file != "bad.py"] == [], f"{name} complains about a good program"
    assert {text for line, text in slips.items() if line not in lines} == set(), f"{name} lets these pass"
    assert lines <= set(slips)


def run(command, folder):
    environment = os.environ | {"MYPYPATH": str(PACKAGE.parent)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stdout, done.stderr
    return done.stdout


def test_mypy_sees_every_slip(programs):
    if importlib.util.find_spec("mypy") is None:
        pytest.skip("NOT CHECKED: mypy is missing, so nothing shows that the public names are typed: pip install mypy")
    # With the options of `make lint`, which leaves a cache of the package and of NumPy: they take most of the time.
    output = run([sys.executable, "-m", "mypy", programs / "good.py", programs / "bad.py"], ROOT)
    errors = re.findall(r"^(?:.*/)?(\w+\.py):(\d+): error:", output, re.MULTILINE)
    check([(file, int(line)) for file, line in errors], "mypy")


def test_pyright_sees_every_slip(programs):
    program = next(filter(None, map(shutil.which, ("pyright", "basedpyright"))), None)
    if program is None:
        pytest.skip("NOT CHECKED: pyright is missing, so nothing shows what it says: pip install basedpyright")
    settings = {"extraPaths": [str(PACKAGE.parent)], "typeCheckingMode": "standard", "reportUnusedExpression": False}
    (programs / "pyrightconfig.json").write_text(json.dumps(settings))
    output = json.loads(run([program, "--outputjson", "--pythonpath", sys.executable, "-p", "."], programs))
    errors = [entry for entry in output["generalDiagnostics"] if entry["severity"] == "error"]
    check([(Path(entry["file"]).name, entry["range"]["start"]["line"] + 1) for entry in errors], "pyright")


def shown(path):
    """Name -> module of what the ``if TYPE_CHECKING:`` block of a file imports as public."""
    tree = ast.parse(path.read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and getattr(node.test, "id", "") != ""]
    assert all(alias.asname == alias.name for node in block.body for alias in node.names)  # else it is not public
    return {alias.name: node.module for node in block.body for alias in node.names}


def test_type_checkers_and_the_interpreter_are_told_the_same():
    assert shown(PACKAGE / "__init__.py") == fo._EXPORTS | dict.fromkeys(fo._MODULES)
    assert shown(PACKAGE / "adapters" / "__init__.py") == dict.fromkeys(fo.adapters.__all__)
    files = {path.stem for path in (PACKAGE / "adapters").glob("[!_]*.py")}
    assert set(fo.adapters.__all__) == files == set(dir(fo.adapters))


def test_public_names_say_where_they_are_public():
    for name in fo._EXPORTS:
        value = getattr(fo, name)
        assert (value.__module__, value.__qualname__) == ("fastoptim", name)


def test_adapters_are_attributes_and_load_nothing_before():
    code = (
        "import sys, fastoptim as fo\nadapters = fo.adapters\n"
        "before = [m for m in sys.modules if m.startswith('fastoptim.adapters.')]\n"
        "adapters.dicts.SGD; adapters.per_array.update\n"
        "print(before, sorted(m for m in sys.modules if m.startswith('fastoptim.adapters.') and '._' not in m))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert found == "[] ['fastoptim.adapters.dicts', 'fastoptim.adapters.per_array']"
    with pytest.raises(AttributeError, match=r"no attribute 'sklern'; it has .*sklearn"):
        _ = fo.adapters.sklern


def test_misspelt_hyperparameters_are_refused_at_run_time():
    opt = fo.SGD(np.ones(2))
    with pytest.raises(AttributeError, match="no 'weight_deccay': do you mean 'weight_decay'"):
        opt.weight_deccay = 1
    with pytest.raises(AttributeError, match="no attribute 'momentun'"):
        _ = opt.momentun
