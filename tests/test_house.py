"""Imports run downward, importing stays cheap, what is public is documented."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import fastoptim as fo
from fastoptim import rules

PACKAGE = Path(fo.__file__).parent

# Each layer may import from those above it in this list, and from nothing in its own.
LAYERS = (
    ("__init__",),
    ("common", "rules"),
    ("arrays",),
    ("backends", "checkpoint"),
    ("optimizers",),
    ("functional", "schedules"),
    ("training",),
    ("tuning",),
    ("plots",),
    ("demo",),
    ("distributed",),
    ("adapters", "environment"),
    ("bench",),
    ("cli",),
    ("__main__",),
)
# The table of backends loads them by name; the package loads its public names when they are asked for.
DEPTH = {name: depth for depth, layer in enumerate(LAYERS) for name in layer}


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        yield name, path


def layer_of(name):
    """Depth of a module; one inside a package of a layer has that package's depth."""
    while name not in DEPTH and "." in name:
        name = name.rpartition(".")[0]
    return DEPTH[name]


def imported(name, path):
    """Modules of the package that a module names in its import statements, wherever they stand."""
    parts = name.split(".") if name != "__init__" else []
    inside = parts if path.name == "__init__.py" else parts[:-1]
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):  # what only type checkers read is no import
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = inside[: len(inside) - node.level + 1]
            found = ".".join([*base, *(node.module.split(".") if node.module else [])])
            for alias in node.names:
                longer = f"{found}.{alias.name}".removeprefix(".")
                exists = (PACKAGE / (longer.replace(".", "/") + ".py")).exists() or (
                    PACKAGE / longer.replace(".", "/")
                ).is_dir()
                yield longer if exists else found or "__init__"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "fastoptim":
            yield node.module.partition(".")[2] or "__init__"


def upward(name, path):
    same_package = name.partition(".")[0] if layer_of(name) != DEPTH.get(name) else None
    return [
        target
        for target in imported(name, path)
        if target != "_c"
        and not (same_package and target.partition(".")[0] == same_package)
        and not target.startswith(name + ".")
        and layer_of(target) >= layer_of(name)
    ]


def test_imports_run_downward():
    wrong = {name: upward(name, path) for name, path in modules()}
    assert {name: targets for name, targets in wrong.items() if targets} == {}


def test_an_upward_import_is_seen(tmp_path):
    path = tmp_path / "rules.py"
    path.write_text("def f():\n    from .optimizers import SGD\n")
    assert upward("rules", path) == ["optimizers"]
    path.write_text("from . import backends\n")
    assert upward("common", path) == ["backends"]


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_stays_cheap():
    heavy = ["numba", "llvmlite", "matplotlib", "tqdm", "safetensors", "torch", "mpi4py", "sklearn"]
    uses = {
        "": [*heavy, "cffi", "numpy"],
        "fo.SGD; fo.clip_grad_norm; fo.functional; fo.schedules": heavy,
        "import numpy; fo.Adam(numpy.ones(2), backend='c').step(numpy.ones(2))": heavy,
    }
    for use, absent in uses.items():
        found = run(f"import sys, fastoptim as fo\n{use}\nprint([m for m in {absent} if m in sys.modules])")
        assert found.strip() == "[]", use


def test_every_public_name_is_there_and_documented():
    for name in fo.__all__:
        if name in ("__version__",):
            continue
        value = getattr(fo, name)
        assert inspect.getdoc(value), name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = fo.nothing
    assert set(fo.__all__) <= set(dir(fo))


@pytest.mark.parametrize("name", ["__init__", "optimizers.sgd", "optimizers.adam", "functional", "optimizers.clipping"])
def test_examples_in_docstrings(name):
    module = importlib.import_module("fastoptim" if name == "__init__" else f"fastoptim.{name}")
    result = doctest.testmod(module)
    assert result.attempted > 0 and result.failed == 0


def test_update_rules_are_made_of_exact_operations():
    allowed = (ast.Add, ast.Sub, ast.Mult, ast.Div)
    functions = [rules.scale, rules.coupled, rules.plain, rules.decoupled]
    for function in functions + [rule.function for rule in rules.RULES.values()]:
        for node in ast.walk(ast.parse(inspect.getsource(function))):
            if isinstance(node, ast.BinOp):
                assert isinstance(node.op, allowed), function.__name__
            if isinstance(node, ast.Call):
                assert node.func.id in ("sqrt", "where"), function.__name__
