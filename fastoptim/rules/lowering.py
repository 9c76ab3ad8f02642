"""The source of the update rules, rewritten for compilers, so that no kernel states a rule a second time.

`rule_sources` prints the functions of `updates` as scalar Python: as they stand for a compiler that keeps every
rounding (Numba on the CPU), or with each operator turned into a call (``mul``, ``add``, ``sub``, ``div``, ``root``) for
one that would fuse a multiply and an add (NVVM). `load` makes a module of generated text, in a file named after its
content: compilers that cache by file can then never run what older rules said.
"""

from __future__ import annotations

import ast
import atexit
import hashlib
import inspect
import linecache
import os
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from . import updates
from .table import MEASURES, RULES, Kernel, Rule

OPERATIONS: dict[type[ast.operator], str] = {ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "div"}
# What an expression of a rule may be made of. A literal would be a float64 in the middle of float32 arithmetic.
COMPARISONS = (ast.Gt, ast.GtE, ast.Lt, ast.LtE)
_NAMES = (ast.Name, ast.Load, ast.Store, ast.Tuple, ast.Call)
_EXPRESSIONS = (*_NAMES, ast.Compare, *COMPARISONS, ast.UnaryOp, ast.USub, ast.BinOp, *OPERATIONS)
_CALLS = {"sqrt": 1, "where": 3}


class _Scalar(ast.NodeTransformer):
    """``where`` as a conditional expression; operators as calls if `calls`. SyntaxError for anything else."""

    def __init__(self, calls: bool):
        self.calls = calls

    def generic_visit(self, node: ast.AST) -> ast.AST:
        if not isinstance(node, _EXPRESSIONS):
            raise SyntaxError(f"an update rule may not use {type(node).__name__}")
        return super().generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        return _call(OPERATIONS[type(node.op)], node.left, node.right) if self.calls else node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if _CALLS.get(name) != len(node.args) or node.keywords:
            raise SyntaxError(f"an update rule may call only {sorted(_CALLS)}, got {ast.unparse(node)}")
        self.generic_visit(node)
        if name == "where":
            condition, chosen, other = node.args
            return ast.IfExp(condition, chosen, other)
        return _call("root", *node.args)


def _call(name: str, *arguments: ast.expr) -> ast.Call:
    return ast.Call(ast.Name(name, ast.Load()), list(arguments), [])


def scalar(function: Callable[..., Any], calls: bool = False) -> str:
    """The source of one function of `updates` for scalars, without its docstring.

    Examples
    --------
    >>> from fastoptim.rules import updates
    >>> print(scalar(updates.sgd, calls=True))
    def sgd(g, p, c):
        u = mul(c, g)
        return (u,)
    """
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    definition = tree.body[0]
    assert isinstance(definition, ast.FunctionDef)
    if ast.get_docstring(definition) is not None:
        definition.body = definition.body[1:]
    rewrite = _Scalar(calls)
    for statement in definition.body:
        if not isinstance(statement, (ast.Assign, ast.Return)) or statement.value is None:
            raise SyntaxError(f"an update rule may hold only assignments and a return, got {ast.unparse(statement)}")
        statement.value = rewrite.visit(statement.value)
    return ast.unparse(ast.fix_missing_locations(tree))


def rule_sources(calls: bool = False, rules: Iterable[Rule] | None = None) -> list[str]:
    """The sources of all functions that work on elements, for scalars; of `rules`, by default those of the table."""
    functions: list[Callable[..., Any]] = [updates.scale, updates.coupled, updates.plain, updates.decoupled]
    functions += [rule.function for rule in ((*RULES.values(), *MEASURES.values()) if rules is None else rules)]
    return [scalar(function, calls) for function in functions]


def arguments(rule: Rule) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of an element function's arrays (p, g, states) and of its scalars (s, decay, coefficients)."""
    names = rule.function.__code__.co_varnames[2 : rule.function.__code__.co_argcount]
    count = len(rule.states)
    return ("p", "g", *names[:count]), ("s", "decay", *names[count:])


def element(kernel: Kernel, suffix: str = "") -> str:
    """Source of the whole update of one element: the steps of `reference.update` in their order; or of a measure's."""
    rule = kernel.rule
    arrays, scalars = arguments(rule)
    states, end = arrays[2:], "" if rule.states else ","
    call = f"{rule.name}({', '.join(('g', 'p', *states, *scalars[2:]))})"
    new = ", ".join(("result", *states)) + end
    lines = [f"def {kernel.name}{suffix}({', '.join(arrays + scalars)}):", "g = scale(g, s)"]
    if kernel.decay == "coupled":
        lines.append("g = coupled(g, p, decay)")
    if rule.terms:
        return "\n    ".join([*lines, f"return {call}"])
    lines.append(f"{new} = {call}")
    if rule.gives == "step":
        decoupled = kernel.decay == "decoupled"
        lines.append("result = " + ("decoupled(p, result, decay)" if decoupled else "plain(p, result)"))
    return "\n    ".join([*lines, f"return {new}"])


def cache_directory() -> Path:
    """Where generated modules, and what compilers make of them, are kept."""
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    if chosen:
        return Path(chosen).absolute()
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
    directory, source = cache_directory(), text.encode()
    path = directory / name
    try:
        if path.exists() and path.read_bytes() == source:
            return path
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(dir=directory, suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            file.write(source)
        os.replace(draft, path)
        return path
    except OSError:
        pass
    path = _temporary_directory() / name
    path.write_bytes(source)
    return path


def load(name: str, text: str) -> ModuleType:
    """The module that `text` is, from a file ``<name>_<hash of text>.py`` that the same text always gets again."""
    name = f"{name}_{hashlib.sha256((__name__ + text).encode()).hexdigest()[:16]}"  # as caches name the module, too
    path = _store(text, f"{name}.py")
    module = ModuleType(f"{__package__}.{name}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # compiled code that comes from a cache looks for its module there
    linecache.cache[str(path)] = (len(text), None, text.splitlines(keepends=True), str(path))  # should it be removed
    exec(compile(text, str(path), "exec"), module.__dict__)
    return module
