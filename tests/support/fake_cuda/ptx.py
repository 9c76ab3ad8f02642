"""Translates the PTX that numba-cuda makes of a kernel into C, one statement for each instruction.

Arithmetic is that of the processor, correctly rounded and not contracted. The threads of a block run one after another,
from barrier to barrier; a barrier that not all of them reach, or an access that is not aligned, ends the process.
"""

from __future__ import annotations

import re
from typing import NamedTuple

TYPES = {
    "u64": "uint64_t",
    "s64": "int64_t",
    "b64": "uint64_t",
    "u32": "uint32_t",
    "s32": "int32_t",
    "b32": "uint32_t",
    "u16": "uint16_t",
    "s16": "int16_t",
    "b16": "uint16_t",
    "u8": "uint8_t",
    "s8": "int8_t",
    "b8": "uint8_t",
    "f32": "float",
    "f64": "double",
    "pred": "uint8_t",
}
SIZES = {name: int(name[1:]) // 8 for name in TYPES if name != "pred"}
COMPARISONS = {
    "lt": "<",
    "le": "<=",
    "gt": ">",
    "ge": ">=",
    "eq": "==",
    "ne": "!=",
    "lo": "<",
    "ls": "<=",
    "hi": ">",
    "hs": ">=",
}
BINARY = {"and": "&", "or": "|", "xor": "^", "add": "+", "sub": "-", "mul": "*", "div": "/", "rem": "%"}
HEAD = """\
#include <fenv.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
static inline float single(uint32_t u) { float f; memcpy(&f, &u, 4); return f; }
static inline double twice(uint64_t u) { double f; memcpy(&f, &u, 8); return f; }
static inline float saturated(float f) { return f > 0 ? (f < 1 ? f : 1) : 0; }
static float fma_down(float a, float b, float c) {
    fesetround(FE_DOWNWARD);
    volatile float result = fmaf(a, b, c);
    fesetround(FE_TONEAREST);
    return result;
}
static inline int shuffled(unsigned thread, int distance, int last, int mask) {  // where a thread reads
    if (last != 31 || mask != -1) { fprintf(stderr, "fake CUDA: a shuffle of less than a warp\\n"); abort(); }
    return (int)(thread ^ (unsigned)distance) - (int)thread;
}
static inline void aligned(const void *p, int size) {
    if ((uintptr_t)p % size) { fprintf(stderr, "fake CUDA: misaligned access of %d bytes at %p\\n", size, p); abort(); }
}
"""
# Each thread keeps its registers and where it stands; a block goes on until all threads are done.
BLOCK = """\
void run(unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, const char *P) {{
    {shared}
    struct T *all = malloc((size_t)bx * by * bz * sizeof *all);
    for (unsigned cz = 0; cz < gz; cz++) for (unsigned cy = 0; cy < gy; cy++) for (unsigned cx = 0; cx < gx; cx++) {{
        int waiting, over;
        for (unsigned i = 0; i < bx * by * bz; i++) all[i].at = 0;
        do {{
            struct T *t = all;
            waiting = over = 0;
            for (unsigned z = 0; z < bz; z++) for (unsigned y = 0; y < by; y++) for (unsigned x = 0; x < bx; x++, t++)
                if (step(t, x, y, z, bx, by, bz, cx, cy, cz, gx, gy, gz, P{passed})) waiting++; else over++;
            if (waiting && over) {{ fprintf(stderr, "fake CUDA: divergent barrier\\n"); abort(); }}
        }} while (waiting);
    }}
    free(all);
}}
"""


class Translated(NamedTuple):
    """A kernel: its name, the C source, and where its parameters lie among the packed arguments."""

    name: str
    source: str
    offsets: list[int]
    sizes: list[int]


def translate(ptx: str) -> Translated:
    """The C of the one kernel in `ptx`; SyntaxError for an instruction that is not known."""
    entry = re.search(r"\.visible \.entry ([\w$]+)\(\s*(.*?)\)\s*(?:\.\w+[^{]*)?\{(.*?)\n\}", ptx, re.DOTALL)
    assert entry is not None, "no kernel"
    name, parameters, body = entry.groups()
    offsets, sizes, at = [], [], 0
    places = {}
    for kind, parameter in re.findall(r"\.param (?:\.align \d+ )?\.(\w+)\s+([\w$]+)", parameters):
        at = -(-at // SIZES[kind]) * SIZES[kind]
        places[parameter] = at
        offsets.append(at)
        sizes.append(SIZES[kind])
        at += SIZES[kind]
    shared = dict(re.findall(r"\.shared \.align \d+ \.b8 ([\w$]+)\[(\d+)\]", ptx))
    registers = [
        f"{TYPES[kind]} {prefix}{i};"
        for kind, prefix, n in re.findall(r"\.reg \.(\w+)\s+%(\w+)<(\d+)>;", body)
        for i in range(int(n))
    ]
    body = re.sub(r"//[^\n]*|\.(?:pragma|reg) [^;]*;|\.loc [^\n]*|\.shared [^;]*;", "", body)
    statements, barriers = [], 0
    for label, text in re.findall(r"(\$[\w$]+):|([^;:]+);", body):
        instruction = " ".join(text.split())
        if label:
            statements.append(f"{label.replace('$', 'L')}:;")
        elif instruction.startswith(("bar.sync", "barrier.sync")):
            barriers += 1
            statements.append(f"t->at = {barriers}; return 1; case {barriers}:;")
        elif instruction.startswith("shfl.sync.bfly.b32"):  # two barriers: all have sent, all have read
            found = re.match(r"\S+ %(\w+)(?:\|%\w+)?, %(\w+), (\S+), (\S+), (\S+)$", instruction)
            if not found:
                raise SyntaxError(instruction)
            target, source, *rest = (x.replace("%", "t->") for x in found.groups())
            barriers += 2
            statements.append(f"t->sent = t->{source}; t->at = {barriers - 1}; return 1; case {barriers - 1}:;")
            statements.append(f"t->{target} = t[shuffled(tid_x, {', '.join(rest)})].sent;")
            statements.append(f"t->at = {barriers}; return 1; case {barriers}:;")
        elif instruction:
            guard = re.match(r"@(!?)%(\w+) (.*)", instruction)
            prefix = ""
            if guard:
                prefix, instruction = f"if ({guard[1]}t->{guard[2]}) ", guard[3]
            statements.append(prefix + "{ " + _statement(instruction, places, shared) + " }")
    parts = ("tid", "ntid", "ctaid", "nctaid")
    arguments = "".join(f"unsigned {part}_{axis}, " for part in parts for axis in "xyz") + "const char *P"
    arguments += "".join(f", char *shared_{x}" for x in shared)
    source = HEAD + "struct T { int at; uint32_t sent; " + " ".join(registers) + " };\n"
    source += f"static int step(struct T *t, {arguments}) {{\nswitch (t->at) {{ case 0:;\n"
    source += "\n".join(statements) + "\n} return 0; }\n"
    source += BLOCK.format(
        shared=" ".join(
            f"static __thread char shared_{x}[{n}] __attribute__((aligned(16)));" for x, n in shared.items()
        ),
        passed="".join(f", shared_{x}" for x in shared),
    )
    return Translated(name, source, offsets, sizes)


def _statement(instruction: str, places: dict[str, int], shared: dict[str, str]) -> str:
    operation, _, rest = instruction.partition(" ")
    op, *modifiers = operation.split(".")
    kind = modifiers[-1] if modifiers else ""
    c = TYPES.get(kind, "")
    operands = re.split(r",\s*(?![^\[{]*[\]}])", rest) if rest else []

    def value(x: str) -> str:
        x = x.strip()
        special = re.match(r"%(tid|ntid|ctaid|nctaid)\.([xyz])$", x)
        if special:
            return f"{special[1]}_{special[2]}"
        if x.startswith("%"):
            return f"t->{x[1:]}"
        if re.match(r"0[fF][0-9A-Fa-f]{8}$", x):
            return f"single(0x{x[2:]}u)"
        if re.match(r"0[dD][0-9A-Fa-f]{16}$", x):
            return f"twice(0x{x[2:]}ull)"
        if x in shared:
            return f"(uint64_t)(shared_{x})"
        if re.match(r"-?\d+$", x):
            return "INT64_MIN" if x == "-9223372036854775808" else f"((int64_t){x}ll)"
        raise SyntaxError(f"operand {x} in {instruction}")

    def place(x: str) -> str:
        found = re.match(r"\[(%?[\w$]+)(?:\+(-?\d+))?\]$", x.strip())
        assert found, instruction
        return f"({value(found[1])} + ({found[2] or 0}))"

    if op == "ret":
        return "return 0;"
    if op == "bra":
        return f"goto {operands[0].replace('$', 'L')};"
    if op == "ld" and "param" in modifiers:
        found = re.match(r"\[([\w$]+)(?:\+(\d+))?\]", operands[1])
        assert found, instruction
        return f"{value(operands[0])} = *(const {c} *)(P + {places[found[1]] + int(found[2] or 0)});"
    if op in ("ld", "st"):
        register, address = operands if op == "ld" else operands[::-1]
        values = register.strip("{} ").split(",")
        moves = [f"{value(x)} = q[{i}];" if op == "ld" else f"q[{i}] = ({c}){value(x)};" for i, x in enumerate(values)]
        return f"{c} *q = ({c} *){place(address)}; aligned(q, {SIZES[kind] * len(values)}); {' '.join(moves)}"
    target, *inputs = [value(x) for x in operands]
    if op == "mov" and kind in ("b32", "b64"):  # bits, whatever they mean
        floats = [bool(re.match(r"t->fd?\d+$", x)) for x in (target, inputs[0])]
        if floats[0] != floats[1]:
            return (
                f"memcpy(&{target}, &(uint{kind[1:]}_t){{{inputs[0]}}}, {SIZES[kind]});"
                if floats[0]
                else (f"memcpy(&{target}, &{inputs[0]}, {SIZES[kind]});")
            )
        return f"{target} = {inputs[0]};"
    return f"{target} = {_expression(op, modifiers, kind, c, inputs, instruction)};"


def _expression(op: str, modifiers: list[str], kind: str, c: str, inputs: list[str], instruction: str) -> str:
    floating = kind in ("f32", "f64")
    allowed = {"cvt": {"rz", "sat"}, "fma": {"rm"}}.get(op, set())
    if {"hi", "cc", "NaN", "sat", "rz", "rm", "rp"} & set(modifiers) - allowed:
        raise SyntaxError(instruction)
    suffix = "f" if kind == "f32" else ""
    x = [f"(({c}){text})" for text in inputs]
    if op in ("mov", "cvta"):
        return x[0]
    if op == "cvt":
        target, source = modifiers[-2:]
        if "sat" in modifiers:
            return f"saturated({inputs[0]})"
        return f"({TYPES[target]})({TYPES[source]}){inputs[0]}"
    if op == "setp":
        if len(inputs) != 2:
            raise SyntaxError(instruction)
        if modifiers[0] in ("nan", "num"):
            either = f"{x[0]} != {x[0]} || {x[1]} != {x[1]}"
            return either if modifiers[0] == "nan" else f"!({either})"
        unordered = modifiers[0] in ("ltu", "leu", "gtu", "geu", "equ", "neu")
        comparison = COMPARISONS[modifiers[0][:2]]
        if not unordered:
            text = f"{x[0]} {comparison} {x[1]}"
            return f"{text} && {x[0]} == {x[0]} && {x[1]} == {x[1]}" if floating and modifiers[0] == "ne" else text
        return f"{x[0]} {comparison} {x[1]} || {x[0]} != {x[0]} || {x[1]} != {x[1]}"
    if op == "selp":
        return f"{inputs[2]} ? {x[0]} : {x[1]}"
    if op == "neg":
        return f"-{x[0]}"
    if op == "not":
        return f"!{inputs[0]}" if kind == "pred" else f"~{x[0]}"
    if op in ("shl", "shr"):
        return f"{x[0]} {'<<' if op == 'shl' else '>>'} {inputs[1]}"
    if op in ("min", "max"):
        function = f"f{op}{suffix}({x[0]}, {x[1]})"
        return function if floating else f"{x[0]} {'<' if op == 'min' else '>'} {x[1]} ? {x[0]} : {x[1]}"
    if op in ("mul", "mad") and "wide" in modifiers:
        wide = "int64_t" if kind[0] == "s" else "uint64_t"
        return f"({wide}){x[0]} * ({wide}){x[1]}" + (f" + ({wide}){inputs[2]}" if op == "mad" else "")
    if op in BINARY:
        if floating or op in ("div", "rem", "and", "or", "xor") or kind[0] == "u":
            return f"{x[0]} {BINARY[op]} {x[1]}"
        return f"({c})((u{c.removeprefix('u')}){inputs[0]} {BINARY[op]} (u{c.removeprefix('u')}){inputs[1]})"
    if op == "mad" and not floating:
        return f"{x[0]} * {x[1]} + {x[2]}"
    if op == "fma":
        return f"{'fma_down' if 'rm' in modifiers else 'fma' + suffix}({', '.join(x)})"
    functions = {"ex2": "exp2", "lg2": "log2", "abs": "fabs", "sqrt": "sqrt"}
    if op in functions and floating:
        return f"{functions[op]}{suffix}({x[0]})"
    if op == "rcp":
        return f"1 / {x[0]}"
    raise SyntaxError(instruction)
