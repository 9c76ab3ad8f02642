"""Imports run downward and in no circle, importing stays cheap, what is public is documented."""

from __future__ import annotations

import ast
import doctest
import graphlib
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import fastoptim as fo
from fastoptim.rules import updates
from fastoptim.rules.table import RULES
from tests.proofs.mutants.__main__ import TABLES, place_of

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
    if name == "__init__":  # what it shows type checkers is loaded by name, when it is asked for
        tree.body = [node for node in tree.body if not only_for_type_checkers(node)]
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
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] == "fastoptim":
                    yield alias.name.partition(".")[2] or "__init__"


def only_for_type_checkers(node):
    return isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"


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


def circle(graph):
    """The modules of a circle of imports, or None."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return None


def test_imports_make_no_circle():
    graph = {name: set(imported(name, path)) - {name} for name, path in modules()}
    assert {"optimizers.family", "common.public"} <= graph["optimizers.adam"]
    assert circle(graph) is None


@pytest.mark.parametrize(
    "text",
    [
        "from .b import x",
        "def f():\n    from . import b",
        "if TYPE_CHECKING:\n    from .b import x",
        "import fastoptim.b",
    ],
)
def test_a_circle_is_seen(tmp_path, monkeypatch, text):
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    (tmp_path / "a.py").write_text(text)
    (tmp_path / "b.py").write_text("from .a import y\n")
    assert sorted(set(circle({name: set(imported(name, path)) for name, path in modules()}))) == ["a", "b"]


def test_files_are_small_few_and_begin_with_a_docstring():
    paths = [path for _, path in modules()]
    assert len([path for path in paths if path.parent == PACKAGE]) <= 12
    lengths = {
        path.name: len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py*") if path.suffix != ".pyc"
    }
    assert {name: length for name, length in lengths.items() if length > 600} == {}
    assert [path for path in paths if not ast.get_docstring(ast.parse(path.read_text()))] == []


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_stays_cheap():
    heavy = ["numba", "numba_cuda", "cuda", "cupy", "llvmlite"]
    heavy += ["matplotlib", "tqdm", "safetensors", "torch", "mpi4py", "sklearn"]
    uses = {
        "": [*heavy, "cffi", "numpy"],
        "fo.SGD; fo.clip_grad_norm; fo.functional; fo.schedules": heavy,
        "import numpy; fo.Adam(numpy.ones(2), backend='c').step(numpy.ones(2))": heavy,
        "import numpy; fo.Adam(numpy.ones(2), backend='numpy').step(numpy.ones(2))": heavy,
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


@pytest.mark.parametrize(
    "name",
    [
        "__init__",
        "optimizers.sgd",
        "optimizers.adam",
        "functional",
        "optimizers.clipping",
        "optimizers.own",
        "optimizers.averages",
        "arrays.packing",
        "arrays.rows",
    ],
)
def test_examples_in_docstrings(name):
    module = importlib.import_module("fastoptim" if name == "__init__" else f"fastoptim.{name}")
    # Public classes and functions say that they belong to fastoptim itself, so that testmod would pass them over.
    finder, runner = doctest.DocTestFinder(), doctest.DocTestRunner()
    found = finder.find(module)
    for key, value in vars(module).items():
        if name != "__init__" and getattr(value, "__module__", "") == "fastoptim":
            found += finder.find(value, key, module=False, globs=dict(vars(module)))
    for test in found:
        runner.run(test)
    assert runner.tries > 0 and runner.failures == 0


def test_update_rules_are_made_of_exact_operations():
    allowed = (ast.Add, ast.Sub, ast.Mult, ast.Div)
    functions = [updates.scale, updates.coupled, updates.plain, updates.decoupled]
    for function in functions + [rule.function for rule in RULES.values()]:
        for node in ast.walk(ast.parse(inspect.getsource(function))):
            if isinstance(node, ast.BinOp):
                assert isinstance(node.op, allowed), function.__name__
            if isinstance(node, ast.Call):
                assert node.func.id in ("sqrt", "where"), function.__name__


def test_planted_bugs_find_the_text_that_they_change():
    gone = [(m.file, m.name) for rows, _ in TABLES.values() for m in rows if place_of(PACKAGE.parent, m) is None]
    assert gone == []
