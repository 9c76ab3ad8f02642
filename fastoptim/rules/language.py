"""Reads an update rule that a user has written, or says which line holds what no rule may hold.

A rule is made of assignments and one return, of ``+ - * /``, negation, ``sqrt``, and ``where`` with one comparison: the
operations that IEEE 754 rounds correctly everywhere. `own_rule` makes of it a function like those of `updates`, whose
arguments have other names, so that none can clash with those of generated code.
"""

from __future__ import annotations

import ast
import builtins
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from types import CodeType, FunctionType
from typing import Any, NoReturn

import numpy as np

from . import lowering
from .table import Rule, row

_EXACT: dict[Any, tuple[str, int]] = {np.sqrt: ("sqrt", 1), np.where: ("where", 3)}
_WHERE = "where(condition, a, b), from NumPy"
_INSTEAD = {
    "abs": "where(x < zero, -x, x), with a coefficient zero",
    "max": "where(x < low, low, x), which hands on a NaN of x",
    "min": "where(x > high, high, x), which hands on a NaN of x",
    "sign": "where(x > zero, one, where(x < zero, minus_one, x)), with coefficients",
    "square": "x * x",
    "pow": "products, such as x * x, or sqrt; a power of the step or a hyperparameter belongs to the coefficients",
}
_INSTEAD |= {"absolute": _INSTEAD["abs"], "fabs": _INSTEAD["abs"], "power": _INSTEAD["pow"]}
_INSTEAD |= {
    "maximum": _INSTEAD["max"],
    "minimum": _INSTEAD["min"],
    "clip": "x = where(x < low, low, x), then where(x > high, high, x)",
}
_OVER_ARRAYS = "no sums or norms: a rule sees one element"
_BESIDE = (
    "no function that other libraries round otherwise; what depends on hyperparameters or the step alone can be "
    "computed in the function of the coefficients"
)
_INSTEAD |= dict.fromkeys(("exp", "exp2", "expm1", "log", "log1p", "log2"), _BESIDE)
_INSTEAD |= dict.fromkeys(("cbrt", "sin", "cos", "tan", "tanh", "arctan"), _BESIDE)
_INSTEAD |= dict.fromkeys(("sum", "mean", "norm", "dot", "std", "var", "prod", "any", "all"), _OVER_ARRAYS)
_OPERATORS = {
    ast.Pow: _INSTEAD["pow"],
    ast.FloorDiv: "/",
    ast.MatMult: _OVER_ARRAYS,
}
_INLINE = "write out what it computes where it is called"
_STATEMENTS = {
    ast.AugAssign: "write it out, x = x + y: in place it would change the caller's array",
    ast.If: f"choose between two values with {_WHERE}",
    ast.For: "write the steps out",
    ast.While: "write the steps out",
    ast.FunctionDef: _INLINE,
}


class _Reader:
    """One function: what its names stand for, and where its lines are."""

    def __init__(self, function: FunctionType, tree: ast.FunctionDef, lines: Sequence[str]):
        self.function, self.tree, self.lines = function, tree, lines  # those of its file
        self.names: dict[str, str] = {}

    def refuse(self, node: ast.AST, why: str) -> NoReturn:
        """SyntaxError for a part of the function, with its file and line."""
        line = getattr(node, "lineno", self.tree.lineno)
        where = (self.function.__code__.co_filename, line, None, self.lines[line - 1].rstrip())
        raise SyntaxError(f"update rule {self.function.__name__}, line {line}: {why}", where)

    # --- names

    def arguments(self, states: Sequence[str]) -> list[str]:
        """The names of the coefficients, after all arguments got their standard names."""
        given = self.tree.args
        odd = given.vararg or given.kwarg or given.kwonlyargs or given.posonlyargs or given.defaults
        names = [argument.arg for argument in given.args]
        if odd or len(names) < 2 + len(states):
            wanted = ", ".join(("g", "p", *states))
            self.refuse(
                self.tree,
                f"expected the arguments ({wanted}, coefficients...): gradient, parameter, {len(states)} states, then "
                f"coefficients, without defaults; got ({ast.unparse(given)})",
            )
        roles = ["g", "p", *states]
        for place, name in enumerate(names):
            if name in roles[0 if place < 2 else 2 :] and roles.index(name) != place:  # coefficients may be called g, p
                self.refuse(
                    self.tree,
                    f"argument {name!r} is number {place + 1}, but the order is ({', '.join(roles)}, coefficients...): "
                    "gradient, parameter, states",
                )
        coefficients = names[2 + len(states) :]
        standard = ["g", "p", *(f"x{i}" for i in range(len(states))), *(f"c{i}" for i in range(len(coefficients)))]
        self.names = dict(zip(names, standard, strict=False))
        return coefficients

    def meaning(self, node: ast.expr) -> Any:
        """What a name such as ``sqrt`` or ``np.sqrt`` stands for where the function was written; None if unknown."""
        if isinstance(node, ast.Attribute):
            return getattr(self.meaning(node.value), node.attr, None)
        if not isinstance(node, ast.Name):
            return None
        code, name = self.function.__code__, node.id
        if name in code.co_varnames:  # which hides what is called so elsewhere
            return None
        if name in code.co_freevars:
            with suppress(ValueError):  # nothing was assigned to it yet
                return (self.function.__closure__ or ())[code.co_freevars.index(name)].cell_contents
            return None
        return self.function.__globals__.get(name, getattr(builtins, name, None))

    def has_written(self, what: Any) -> bool:
        """Whether that is a function of the same module or package, whose name says nothing about it."""
        roots = [str(f.__module__).partition(".")[0] for f in (self.function, what) if isinstance(f, FunctionType)]
        return len(roots) == 2 and roots[0] == roots[1]

    # --- expressions

    def expression(self, node: ast.expr) -> ast.expr:
        text = ast.unparse(node)
        if isinstance(node, ast.Name):
            if node.id not in self.names:
                self.refuse(node, f"{text} is no argument and was not assigned above: make it a coefficient")
            return ast.Name(self.names[node.id], ast.Load())
        if isinstance(node, ast.Constant):
            self.refuse(node, f"{text} is a constant: make it a coefficient, which is rounded once to the dtype")
        if isinstance(node, ast.BinOp):
            if type(node.op) not in lowering.OPERATIONS:
                instead = _OPERATORS.get(type(node.op), "+ - * /")
                self.refuse(node, f"{text} may not stand in a rule: use {instead}")
            return ast.BinOp(self.expression(node.left), node.op, self.expression(node.right))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return ast.UnaryOp(node.op, self.expression(node.operand))
        if isinstance(node, ast.Call):
            return self.call(node)
        if isinstance(node, ast.Compare):
            self.refuse(node, f"{text}: a comparison may only be the condition of where")
        instead = f": use {_WHERE}" if isinstance(node, (ast.IfExp, ast.BoolOp)) else ""
        instead = f": {_INLINE}" if isinstance(node, ast.Lambda) else instead
        instead = ": a rule sees one element, which has no parts" if isinstance(node, ast.Subscript) else instead
        self.refuse(node, f"{text} may not stand in a rule{instead}")

    def call(self, node: ast.Call) -> ast.expr:
        text, what = ast.unparse(node), self.meaning(node.func)
        callee = ast.unparse(node.func)
        name, count = _EXACT.get(what, ("", 0)) if isinstance(what, (np.ufunc, type(np.where))) else ("", 0)
        if not name:
            last, found = callee.rpartition(".")[2], ""
            instead = "write out here what it computes, with + - * /, and sqrt and where from NumPy"
            if last in _INSTEAD and not self.has_written(what):
                instead = f"use {_INSTEAD[last]}"
            if last in ("sqrt", "where") and callee.partition(".")[0] in self.function.__code__.co_varnames:
                found = " (here it is a variable of the rule)"
            elif callee in ("sqrt", "where") and what is not None:
                found = f" (here it is {getattr(what, '__module__', '?')}.{getattr(what, '__name__', what)})"
            self.refuse(node, f"{text}: {callee}{found} may not stand in a rule: {instead}")
        if len(node.args) != count or node.keywords or any(isinstance(a, ast.Starred) for a in node.args):
            self.refuse(node, f"{text}: {name} takes {count} argument{'s' if count > 1 else ''} and no keywords here")
        values = node.args
        if name == "where":
            return ast.Call(
                ast.Name(name, ast.Load()), [self.condition(values[0]), *map(self.expression, values[1:])], []
            )
        return ast.Call(ast.Name(name, ast.Load()), [self.expression(values[0])], [])

    def condition(self, node: ast.expr) -> ast.expr:
        if not isinstance(node, ast.Compare):
            hint = ": put one where into another" if isinstance(node, (ast.BoolOp, ast.BinOp)) else ""
            self.refuse(node, f"{ast.unparse(node)}: the condition of where must be one comparison{hint}")
        if len(node.ops) != 1 or not isinstance(node.ops[0], lowering.COMPARISONS):
            hint = ": put one where into another" if len(node.ops) > 1 or isinstance(node.ops[0], ast.Eq) else ""
            self.refuse(node, f"{ast.unparse(node)}: a comparison is one of > >= < <=, between two values{hint}")
        return ast.Compare(self.expression(node.left), node.ops, [self.expression(node.comparators[0])])

    # --- statements

    def assignment(self, node: ast.stmt) -> ast.stmt:
        if not isinstance(node, ast.Assign):
            instead = _STATEMENTS.get(type(node), "a rule holds assignments and one return")
            text = ast.unparse(node).splitlines()[0].removesuffix(":")
            self.refuse(node, f"{text}: not allowed in a rule: {instead}")
        target = node.targets[0]
        if len(node.targets) != 1 or not isinstance(target, ast.Name):
            self.refuse(node, f"{ast.unparse(node)}: assign one name at a time")
        value = self.expression(node.value)
        name = self.names.setdefault(target.id, f"t{len(self.names)}")
        return ast.Assign([ast.Name(name, ast.Store())], value)

    def results(self, node: ast.stmt, states: Sequence[str], gives: str) -> ast.stmt:
        if not isinstance(node, ast.Return) or node.value is None:
            self.refuse(node, "a rule ends with its only return")
        values = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
        if len(values) != 1 + len(states):
            wanted = ", ".join((f"the {gives}", *(f"the new {name}" for name in states)))
            more = [value.id for value in values[1 + len(states) :] if isinstance(value, ast.Name)]
            hint = f": name its states, states={[*states, *more]}" if more else ""
            self.refuse(node, f"expected to return {wanted}; got {ast.unparse(node.value)}{hint}")
        return ast.Return(ast.Tuple([self.expression(value) for value in values], ast.Load()))

    def body(self, states: Sequence[str], gives: str) -> list[ast.stmt]:
        statements = self.tree.body[1 if ast.get_docstring(self.tree) is not None else 0 :]
        if not statements:
            self.refuse(self.tree, "the rule is empty")
        made = [self.assignment(statement) for statement in statements[:-1]]
        return [*made, self.results(statements[-1], states, gives)]


def _source(function: Any) -> _Reader:
    """The function and its source; TypeError or ValueError if there is none, or another than the function's."""
    code: Any = getattr(function, "__code__", None)
    if not isinstance(function, FunctionType) or code.co_name == "<lambda>" or inspect.iscoroutinefunction(function):
        raise TypeError(f"a rule is a function that was written with def, got {function!r}")
    name = function.__name__
    try:
        lines, _ = inspect.findsource(code)  # of this function, not of one that it wraps
        tree = ast.parse(text := "".join(lines))
        whole = compile(text, code.co_filename, "exec", dont_inherit=True)
    except (OSError, TypeError, SyntaxError) as error:
        raise ValueError(
            f"update rule {name}: its source, from which kernels are made, cannot be found ({error}): write it in a "
            "file or in a cell of a notebook"
        ) from error
    parts = ("co_firstlineno", "co_code", "co_names", "co_varnames", "co_freevars", "co_consts")
    same = any(all(getattr(other, part) == getattr(code, part) for part in parts) for other in _codes(whole))
    for found in ast.walk(tree):
        if same and isinstance(found, ast.FunctionDef) and _first_line(found) == code.co_firstlineno:
            return _Reader(function, found, lines)
    raise ValueError(f"update rule {name}: its file {code.co_filename} has changed since it was loaded")


def _first_line(function: ast.FunctionDef) -> int:
    return min([function.lineno, *(node.lineno for node in function.decorator_list)])


def _codes(code: CodeType) -> Iterator[CodeType]:
    """The code of every function in compiled source."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _codes(constant)


def own_rule(
    function: Callable[..., Any], states: Sequence[str], gives: str, initial: Any, squares: tuple[str, ...] = ()
) -> Rule:
    """The rule that a user's function states, with the function's names of the coefficients.

    TypeError or ValueError if it was not written with ``def``, or its source cannot be found; SyntaxError, which names
    what and its line, if it holds something else than exact operations.
    """
    reader = _source(function)
    coefficients = reader.arguments(states)
    body = reader.body(states, gives)
    standard = [reader.names[argument.arg] for argument in reader.tree.args.args]
    arguments = ast.arguments([], [ast.arg(name) for name in standard], None, [], [], None, [])
    called = function.__name__
    name = f"own_{called}" if called.isascii() else "own_rule"  # files are named after it
    made: Any = ast.FunctionDef(name, arguments, body, [])
    made.type_params = []  # which Python 3.11 does not know
    tree = ast.Module([made], [])
    text = f"from numpy import sqrt, where\n\n\n{ast.unparse(ast.fix_missing_locations(tree))}\n"
    made = getattr(lowering.load(name, text), name)
    rule = row(made, *states, gives=gives, initial=initial, squares=squares)
    return replace(rule, coefficients=tuple(coefficients), written=called)
