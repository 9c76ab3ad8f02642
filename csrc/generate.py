"""Write generated headers of csrc/kernels from the update rules in Python: python csrc/generate.py

What it writes is committed, and a test compares it. `header` and `table` return the two texts.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from fastoptim.rules import codecs, coefficients, updates  # noqa: E402
from fastoptim.rules.table import APART, DECAYS, INSIDE, MEASURES, NONE, RULES, Rule  # noqa: E402
from fastoptim.rules.typed import TypedC  # noqa: E402

# What has loops of its own over arrays of fewer bits: rules, and the storages of parameter and gradient and of states.
FUSED = ("momentum", "adam")
FUSED_STORAGES = (("float32", "bfloat16"), ("float32", "float8"), ("bfloat16", "float32"), ("bfloat16", "bfloat16"))
PRECEDENCE = {ast.Mult: 2, ast.Div: 2, ast.Add: 1, ast.Sub: 1}
OPERATORS = {
    **{ast.Mult: "*", ast.Div: "/", ast.Add: "+", ast.Sub: "-"},
    **{ast.Gt: ">", ast.GtE: ">=", ast.Lt: "<", ast.LtE: "<="},
}

DECAYS_IN_C = {NONE: "NO_DECAY", INSIDE: "INSIDE", APART: "APART", DECAYS: "ANY_DECAY"}

HEADER = """\
/* The update rules; written by csrc/generate.py from fastoptim/rules/updates.py. Do not edit.
 *
 * Included once for each compute type, with T, SQRT and RULE(name) defined. `state` and `k` are the states and the
 * coefficients in the order in which the rule takes them. A measure's second term is left in state[0]. Build with
 * -ffp-contract=off. */
"""

TABLE = """\
/* Written by csrc/generate.py from fastoptim/rules/table.py. Do not edit.
 *
 * X(name, states, coefficients, gives, decays, vectors). `gives` says what a rule returns: the STEP to subtract from
 * the parameter, or the new PARAMETER. `decays` says which kinds of weight decay are compiled. `vectors` matters where
 * AVX-512 is: WIDE are of 64 bytes, NARROW of 32. Without states narrow ones are up to 7 % quicker from level-3 caches
 * and memory, and 4 % slower from nearer ones. MEASURES have the number of their terms in place of `gives`, and the
 * slots that they read, as bits, in place of `vectors`.
 *
 * FO_NARROW_RULES are those with loops over arrays of fewer bits: X(name, states, coefficients, squares, storage of
 * parameter and gradient, storage of states, name of the loop). Bit i of `squares`: state i is a mean of squares. */
"""

ADAM = """\
/* Adam's coefficients; written by csrc/generate.py from fastoptim/rules/coefficients.py. Do not edit. */
"""

CODECS = """\
/* Decoding and encoding of numbers that are stored in fewer bits; written by csrc/generate.py from
 * fastoptim/rules/codecs.py. Do not edit. */
"""

MIX = """\
/* The step of the hash that keys of dithers come from; written by csrc/generate.py from fastoptim/rules/codecs.py.
 * Do not edit. */
"""


def expression(node: ast.expr, within: int = 0) -> str:
    """C for an expression, with parentheses wherever Python's tree needs them in C."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.BinOp) and type(node.op) in PRECEDENCE:
        level = PRECEDENCE[type(node.op)]
        # Operators group to the left; a product in a quotient is set apart for the reader, as in the source.
        alike = isinstance(node.left, ast.BinOp) and type(node.left.op) is type(node.op)
        left = expression(node.left, level if alike or level == 1 else level + 1)
        right = expression(node.right, level + 1)
        text = f"{left} {OPERATORS[type(node.op)]} {right}"
        return f"({text})" if level < within else text
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        return f"{expression(node.left, 1)} {OPERATORS[type(node.ops[0])]} {expression(node.comparators[0], 1)}"
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        if node.func.id == "sqrt":
            return f"SQRT({expression(node.args[0])})"
        if node.func.id == "pow":
            return f"power({', '.join(map(expression, node.args))})"
        if node.func.id == "where":
            condition, chosen, other = (expression(argument) for argument in node.args)
            text = f"{condition} ? {chosen} : {other}"
            return f"({text})" if within else text
    raise SyntaxError(f"an update rule may not hold {ast.unparse(node)}; numbers are coefficients")


def definition(function: object) -> ast.FunctionDef:
    found = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    assert isinstance(found, ast.FunctionDef)
    return found


def statements(body: list[ast.stmt], known: set[str]) -> tuple[list[str], list[str]]:
    """The assignments of a function as lines of C, and the names or expressions that it returns."""
    lines = []
    for statement in body:
        if isinstance(statement, ast.Return) and statement.value is not None:
            values = statement.value.elts if isinstance(statement.value, ast.Tuple) else [statement.value]
            return lines, [expression(value) for value in values]
        if not (isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)):
            raise SyntaxError(f"an update rule may not hold {ast.unparse(statement)}")
        name = statement.targets[0].id
        lines.append(f"{'' if name in known else 'T '}{name} = {expression(statement.value)};")
        known.add(name)
    raise SyntaxError("an update rule must return something")


def part(function: object) -> str:
    """A function of plain numbers: scale, decay, end."""
    found = definition(function)
    names = [argument.arg for argument in found.args.args]
    lines, (result,) = statements(found.body, set(names))
    assert not lines
    return f"RULE({found.name})({', '.join(f'T {name}' for name in names)}) {{ return {result}; }}\n"


def names_used(found: ast.FunctionDef) -> set[str]:
    return {node.id for node in ast.walk(found) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


def reads(rule: Rule) -> int:
    """Which slots a measure reads, as bits: parameter, gradient, states."""
    found = definition(rule.function)
    g, p, *states = [argument.arg for argument in found.args.args][: 2 + len(rule.states)]
    return sum(1 << slot for slot, name in enumerate((p, g, *states)) if name in names_used(found))


def rule_function(rule: Rule) -> str:
    found = definition(rule.function)
    g, p, *names = (argument.arg for argument in found.args.args)
    states, coefficients = names[: len(rule.states)], names[len(rule.states) :]
    lines, (result, *new) = statements(found.body, {g, p, *names})
    used = names_used(found)
    unused = [f"(void){name};" for name in (g, p) if name not in used]
    unused += ["(void)state;"] * (not states and not new) + ["(void)k;"] * (not coefficients)
    text = [f"RULE({rule.name})(T {g}, T {p}, T *state, const T *k)", "{"]
    if coefficients:
        text.append("    const T " + ", ".join(f"{name} = k[{i}]" for i, name in enumerate(coefficients)) + ";")
    if states:
        text.append("    T " + ", ".join(f"{name} = state[{i}]" for i, name in enumerate(states)) + ";")
    unused += [f"(void){name};" for name in states + coefficients if name not in used]
    text += [f"    {line}" for line in unused + lines]
    if new:
        text.append("    " + ", ".join(f"state[{i}] = {name}" for i, name in enumerate(new)) + ";")
    return "\n".join([*text, f"    return {result};", "}", ""])


def header() -> str:
    parts = [part(f) for f in (updates.scale, updates.coupled, updates.plain, updates.decoupled)]
    return "\n".join([HEADER, *parts, *map(rule_function, (*RULES.values(), *MEASURES.values()))])


class _Literals(ast.NodeTransformer):
    """Turns numbers, which no update rule may hold, into names that `expression` prints."""

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        return ast.Name(repr(node.value)) if isinstance(node.value, float) else node


def adam() -> str:
    """`adam_coefficients` in float64: `k` gets what it returns, in its mode "hat" or the other one."""
    found = _Literals().visit(definition(coefficients.adam_coefficients))
    _, *body, branch, end = found.body  # behind the docstring
    assert isinstance(branch, ast.If) and ast.unparse(branch.test) == "mode == 'hat'"
    lines, values = statements([*body, end], set())
    names = [argument.arg for argument in found.args.args]
    arguments = ", ".join("int hat" if name == "mode" else f"double {name}" for name in names)
    text = [f"static void adam_coefficients({arguments}, double *k)", "{", *(f"    {line}" for line in lines)]
    for i, (hat, other) in enumerate(zip(statements(branch.body, set())[1], values, strict=True)):
        text.append(f"    k[{i}] = {other if hat == other else f'hat ? {hat} : {other}'};")
    return "\n".join([ADAM, *text, "}", ""]).replace("SQRT", "sqrt").replace("    T ", "    double ")


def table() -> str:
    rows, measures = (
        [
            f"    X({rule.name}, {len(rule.states)}, {len(rule.coefficients)}, {rule.terms or rule.gives.upper()}, "
            f"{DECAYS_IN_C[rule.decays]}, {reads(rule) if rule.terms else 'WIDE' if rule.states else 'NARROW'})"
            for rule in rules.values()
        ]
        for rules in (RULES, MEASURES)
    )
    fused = [
        f"    X({rule.name}, {len(rule.states)}, {len(rule.coefficients)}, "
        f"{sum(1 << i for i, state in enumerate(rule.states) if state in rule.squares)}, "
        f"FO_{wide.upper()}, FO_{narrow.upper()}, {wide}_{narrow})"
        for rule in map(RULES.__getitem__, FUSED)
        for wide, narrow in FUSED_STORAGES
    ]
    lists = (
        ["#define FO_RULES(X)", *rows],
        ["#define FO_NARROW_RULES(X)", *fused],
        ["#define FO_MEASURES(X)", *measures],
    )
    return TABLE + "\n".join("\n".join([f"{line:<118} \\" for line in lines[:-1]] + [lines[-1], ""]) for lines in lists)


def codec_functions() -> str:
    return "\n".join([CODECS, *(TypedC(function).text() for function in codecs.ELEMENTWISE)])


def mix() -> str:
    return MIX + "\n" + TypedC(codecs.mix).text().replace("CODEC ", "static inline ")


FILES = {"rules.h": header, "rule_table.h": table, "codecs.h": codec_functions, "mix.h": mix, "adam.h": adam}

if __name__ == "__main__":
    for name, text in FILES.items():
        (ROOT / "csrc" / "kernels" / name).write_text(text())
