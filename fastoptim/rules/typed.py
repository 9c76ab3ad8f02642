"""The source of the functions of `codecs`, rewritten for compilers: every expression has a type of 32 or 64 bits.

`Typed` walks a function whose arguments are annotated with types; what it prints is C, or scalar Python for Numba,
where the sum of two uint32 would otherwise be an int64.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

OPERATORS: dict[type[ast.operator], str] = {
    **{ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"},
    **{ast.LShift: "<<", ast.RShift: ">>", ast.BitAnd: "&", ast.BitOr: "|", ast.BitXor: "^"},
}
COMPARISONS: dict[type[ast.cmpop], str] = {ast.Lt: "<", ast.Gt: ">", ast.NotEq: "!="}
BOOL, F32 = "bool", "F32"
RARE = "rare"
_CASTS = {"bits": "U32", "number": F32}


class Typed(ABC):
    """Prints a function for one compiler; subclasses say how. SyntaxError for what the language does not hold."""

    def __init__(self, function: Callable[..., Any]):
        definition = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
        assert isinstance(definition, ast.FunctionDef)
        self.name = definition.name
        self.types = {x.arg: _annotation(x.annotation) for x in definition.args.args}
        self.arguments = dict(self.types)
        self.returns = _annotation(definition.returns)
        self.used = {x.id for x in ast.walk(definition) if isinstance(x, ast.Name)}
        self.lines: list[tuple[str, str, str]] = []  # (type, name, expression); the last has no name
        for statement in definition.body:
            if isinstance(statement, ast.Assign) and isinstance(target := statement.targets[0], ast.Name):
                text, kind = self.expression(statement.value)
                if target.id in self.types:
                    raise SyntaxError(f"{self.name}: {target.id} is assigned twice")
                self.types[target.id] = kind
                self.lines.append((kind, target.id, text))
            elif isinstance(statement, ast.Return) and statement.value is not None:
                text, kind = self.expression(statement.value)
                if kind != self.returns:
                    raise SyntaxError(f"{self.name} returns {kind}, not {self.returns}")
                self.lines.append((kind, "", text))
            else:
                raise SyntaxError(f"{self.name}: a codec may not hold {ast.unparse(statement)}")

    @abstractmethod
    def literal(self, value: float, kind: str) -> str: ...

    @abstractmethod
    def binary(self, left: str, operator: str, right: str, kind: str) -> str: ...

    @abstractmethod
    def choice(self, condition: str, chosen: str, other: str) -> str: ...

    def rare(self, condition: str) -> str:
        """A condition that only rare numbers meet."""
        return condition

    @abstractmethod
    def text(self) -> str: ...

    def pair(self, a: ast.expr, b: ast.expr) -> tuple[str, str, str]:
        """Two expressions of one type; a literal takes the type of the other."""
        if isinstance(a, ast.Constant):
            right, kind = self.expression(b)
            return self.literal(a.value, kind), right, kind  # type: ignore[arg-type]
        left, kind = self.expression(a)
        if isinstance(b, ast.Constant):
            return left, self.literal(b.value, kind), kind  # type: ignore[arg-type]
        right, other = self.expression(b)
        if kind != other:
            raise SyntaxError(f"{self.name}: {ast.unparse(a)} is {kind}, {ast.unparse(b)} is {other}")
        return left, right, kind

    def expression(self, node: ast.expr) -> tuple[str, str]:
        """Text and type of an expression."""
        if isinstance(node, ast.Name) and node.id in self.types:
            return node.id, self.types[node.id]
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            left, right, kind = self.pair(node.left, node.right)
            return self.binary(left, OPERATORS[type(node.op)], right, kind), kind
        if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in COMPARISONS:
            left, right, _ = self.pair(node.left, node.comparators[0])
            return f"({left} {COMPARISONS[type(node.ops[0])]} {right})", BOOL
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
            if node.func.id in _CASTS:
                return f"{node.func.id}({self.expression(node.args[0])[0]})", _CASTS[node.func.id]
            if node.func.id in ("where", RARE):
                condition, kind = self.expression(node.args[0])
                chosen, other, result = self.pair(node.args[1], node.args[2])
                if kind == BOOL:
                    condition = self.rare(condition) if node.func.id == RARE else condition
                    return self.choice(condition, chosen, other), result
        raise SyntaxError(f"{self.name}: a codec may not hold {ast.unparse(node)}")


def _annotation(node: ast.expr | None) -> str:
    if not isinstance(node, ast.Name) or node.id not in ("U32", "U64", F32):
        raise SyntaxError("the arguments and the result of a codec are U32, U64 or F32")
    return node.id


_C = {"U32": "uint32_t", "U64": "uint64_t", F32: "float", BOOL: "int"}


class TypedC(Typed):
    """A function in C; where it asks about rare numbers, its first argument says that there is none."""

    def literal(self, value: float, kind: str) -> str:
        return f"{float(value).hex()}f" if kind == F32 else f"{value:#x}u" + "ll" * (kind == "U64")

    def binary(self, left: str, operator: str, right: str, kind: str) -> str:
        return f"({left} {operator} {right})"

    def choice(self, condition: str, chosen: str, other: str) -> str:
        return f"({condition} ? {chosen} : {other})"

    def rare(self, condition: str) -> str:
        return f"(!ordinary && {condition})"

    def text(self) -> str:
        arguments = ", ".join(f"{_C[kind]} {name}" for name, kind in self.arguments.items())
        arguments = f"int ordinary, {arguments}" if RARE in self.used else arguments
        unused = [name for name in self.arguments if name not in self.used]
        lines = [f"CODEC {_C[self.returns]} {self.name}({arguments})", "{"]
        lines += [f"    (void){name};" for name in unused]
        for kind, name, text in self.lines:
            plain = text[1:-1] if text.startswith("(") and _closes_at_end(text) else text
            lines.append(f"    const {_C[kind]} {name} = {plain};" if name else f"    return {plain};")
        return "\n".join([*lines, "}", ""])


class TypedNumba(Typed):
    """A function in Python for Numba, whose types `u32`, `u64` and `f32` the module defines."""

    def literal(self, value: float, kind: str) -> str:
        return f"f32({value!r})" if kind == F32 else f"{kind.lower()}({value:#x})"

    def binary(self, left: str, operator: str, right: str, kind: str) -> str:
        return f"({left} {operator} {right})" if kind in (F32, BOOL) else f"{kind.lower()}({left} {operator} {right})"

    def choice(self, condition: str, chosen: str, other: str) -> str:
        return f"({chosen} if {condition} else {other})"

    def text(self) -> str:
        lines = [f"    {name} = {text}" if name else f"    return {text}" for _, name, text in self.lines]
        return "\n".join([f"def {self.name}({', '.join(self.arguments)}):", *lines, ""])


def _closes_at_end(text: str) -> bool:
    """Whether the parenthesis that opens `text` is closed by its last character."""
    depth = 0
    for i, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return i == len(text) - 1
    return False
