"""The law's own source, rewritten for compilers, so that no kernel states an update rule a second time.

`law` prints the functions of `fastoptim.rules` as scalar Python: as they stand for a compiler that keeps every rounding
(Numba on the CPU), or with each operator turned into a call (``mul``, ``add``, ``sub``, ``div``, ``root``) for one that
would fuse a multiply and an add (NVVM). `load` makes a module of generated text, in a file named after its content:
compilers that cache by file can then never run what an older law said.
"""

from __future__ import annotations

import ast
import atexit
import hashlib
import inspect
import os
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from .. import rules
from .table import DECAYS, RULES, Rule

OPERATIONS: dict[type[ast.operator], str] = {ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "div"}
# What an expression of the law may be made of. A literal would be a float64 in the middle of float32 arithmetic.
_COMPARISONS = (ast.Compare, ast.Gt, ast.GtE, ast.Lt, ast.LtE)
_NAMES = (ast.Name, ast.Load, ast.Store, ast.Tuple, ast.Call)
_EXPRESSIONS = (*_NAMES, *_COMPARISONS, ast.BinOp, *OPERATIONS)
_CALLS = {"sqrt": 1, "where": 3}


class _Scalar(ast.NodeTransformer):
    """``where`` as a conditional expression; operators as calls if `calls`. SyntaxError for anything else."""

    def __init__(self, calls: bool):
        self.calls = calls

    def generic_visit(self, node: ast.AST) -> ast.AST:
        if not isinstance(node, _EXPRESSIONS):
            raise SyntaxError(f"the law may not use {type(node).__name__}")
        return super().generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        return _call(OPERATIONS[type(node.op)], node.left, node.right) if self.calls else node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if _CALLS.get(name) != len(node.args) or node.keywords:
            raise SyntaxError(f"the law may call only {sorted(_CALLS)}, got {ast.unparse(node)}")
        self.generic_visit(node)
        if name == "where":
            condition, chosen, other = node.args
            return ast.IfExp(condition, chosen, other)
        return _call("root", *node.args)


def _call(name: str, *arguments: ast.expr) -> ast.Call:
    return ast.Call(ast.Name(name, ast.Load()), list(arguments), [])


def scalar(function: Callable[..., Any], calls: bool = False) -> str:
    """The source of one function of the law for scalars, without its docstring.

    Examples
    --------
    >>> from fastoptim import rules
    >>> print(scalar(rules.sgd, calls=True))
    def sgd(p, g, c):
        p = sub(p, mul(c, g))
        return (p,)
    """
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    definition = tree.body[0]
    assert isinstance(definition, ast.FunctionDef)
    if ast.get_docstring(definition) is not None:
        definition.body = definition.body[1:]
    rewrite = _Scalar(calls)
    for statement in definition.body:
        if not isinstance(statement, (ast.Assign, ast.Return)) or statement.value is None:
            raise SyntaxError(f"the law may hold only assignments and a return, got {ast.unparse(statement)}")
        statement.value = rewrite.visit(statement.value)
    return ast.unparse(ast.fix_missing_locations(tree))


def law(calls: bool = False) -> list[str]:
    """The sources of all functions of the law that work on elements, for scalars."""
    functions: list[Callable[..., Any]] = [rules.scale, rules.coupled, rules.decoupled]
    functions += [rule.function for rule in RULES.values()]
    return [scalar(function, calls) for function in functions]


def element_name(rule: Rule, decay: str) -> str:
    return f"{rule.name}_{decay}"


def arguments(rule: Rule) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of an element function's arrays (p, g, states) and of its scalars (s, decay, coefficients)."""
    names = rule.function.__code__.co_varnames[: rule.function.__code__.co_argcount]
    streams = 2 + len(rule.states)
    return names[:streams], ("s", "decay", *names[streams:])


def element(rule: Rule, decay: str, suffix: str = "") -> str:
    """Source of the whole update of one element: scale, decay and rule, in the order of `reference.update`."""
    arrays, scalars = arguments(rule)
    states, coefficients = arrays[2:], scalars[2:]
    lines = [f"def {element_name(rule, decay)}{suffix}({', '.join(arrays + scalars)}):", "    g = scale(g, s)"]
    if decay == "coupled":
        lines.append("    g = coupled(p, g, decay)")
    elif decay == "decoupled":
        lines.append("    p = decoupled(p, decay)")
    lines.append(f"    return {rule.name}({', '.join(('p', 'g', *states, *coefficients))})")
    return "\n".join(lines)


def variants() -> list[tuple[Rule, str]]:
    """Every (rule, decay) pair."""
    return [(rule, decay) for rule in RULES.values() for decay in DECAYS]


def _cache_directory() -> Path:
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    if chosen:
        return Path(chosen)
    caches = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or os.path.expanduser("~/.cache")
    return Path(caches) / "fastoptim"


@cache
def _temporary_directory() -> Path:
    path = Path(tempfile.mkdtemp(prefix="fastoptim-"))
    owner = os.getpid()
    atexit.register(lambda: shutil.rmtree(path, ignore_errors=True) if os.getpid() == owner else None)
    return path


def _store(text: str, name: str) -> Path:
    """A file that holds `text`, in the user's cache, else (where that cannot be written) in a temporary directory."""
    directory = _cache_directory()
    path = directory / name
    try:
        if path.exists() and path.read_text() == text:
            return path
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(dir=directory, suffix=".tmp")
        with os.fdopen(handle, "w") as file:
            file.write(text)
        os.replace(draft, path)
        return path
    except OSError:
        pass
    path = _temporary_directory() / name
    path.write_text(text)
    return path


def load(name: str, text: str) -> ModuleType:
    """The module that `text` is, from a file ``<name>_<hash of text>.py`` that the same text always gets again."""
    name = f"{name}_{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    path = _store(text, f"{name}.py")
    module = ModuleType(f"{__package__}.{name}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # compiled code that comes from a cache looks for its module there
    exec(compile(text, str(path), "exec"), module.__dict__)
    return module
