"""Generates the CUDA kernels over arrays of fewer bits: a thread decodes, runs the float32 rule, encodes.

What a parameter, its gradient and its states are stored in is known when a kernel is compiled (`Form`), so that each
array is read and written once, as in float32. Where states are float8, 32 threads share a block of 128 elements, whose
largest one they tell each other.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ...rules import codecs, lowering, updates
from ...rules.codecs import BLOCK, Stored
from ...rules.table import Kernel, Rule
from ...rules.typed import F32, TypedNumba
from ..numba_stored import BITS
from .kernels import EACH, FIND, IMPORTS, LIMIT, MOVES, PRELUDE, THREADS, indent, over_pieces, prelude, sums

SINGLE = np.dtype(np.float32)
LANES = 32  # threads that share a block of float8
_CODES = {"bfloat16": "uint16", "float16": "uint16", "float8": "uint8"}
_NAMES = {"+": "add", "-": "sub", "*": "mul", "/": "div"}
_MEMORY = """\
@intrinsic
def load_{name}(typing, address, i):
    def build(context, builder, signature, arguments):
        kind = ir.IntType({bits})
        at = builder.gep(builder.inttoptr(arguments[0], kind.as_pointer(1)), [arguments[1]])
        return builder.load(at, align={itemsize})

    return types.{name}(types.int64, types.int64), build


@intrinsic
def store_{name}(typing, address, i, x):
    def build(context, builder, signature, arguments):
        kind = ir.IntType({bits})
        at = builder.gep(builder.inttoptr(arguments[0], kind.as_pointer(1)), [arguments[1]])
        builder.store(arguments[2], at, align={itemsize})
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.{name}), build
"""
_VIEWS = """\
u32, f32 = np.uint32, np.float32
bits, number = quiet(lambda x: x.view(u32)), quiet(lambda u: u.view(f32))
"""
_BLOCKS = """\
        at = start
        while at < stop:
            first_i = at + (thread // {lanes}) * {block} + thread % {lanes}
{largest}
            for j in range({each}):  # unrolled, so that the arrays are registers
                i = first_i + j * {lanes}
                if i < stop:
{step}
{told}
            cuda.syncthreads()
            j = thread - thread % {lanes}
            while j < thread - thread % {lanes} + {lanes}:
{together}
                j += 1
            cuda.syncthreads()
{scales}
            for j in range({each}):
                i = first_i + j * {lanes}
                if i < stop:
{stores}
            at += threads // {lanes} * {block}"""


class Form(NamedTuple):
    """What a kernel is compiled for."""

    parameter: str
    gradient: str
    state: str
    nearest: bool
    master: bool

    @classmethod
    def of(cls, stored: Stored, gradient: np.dtype) -> Form:
        name = "float32" if gradient == SINGLE else stored.parameter
        return cls(stored.parameter, name, stored.state, stored.nearest, stored.master)

    @property
    def label(self) -> str:
        rounding = "nearest" if self.nearest else "stochastic"
        return "_".join((self.parameter, self.gradient, self.state, rounding) + ("master",) * self.master)


class _Typed(TypedNumba):
    """A codec whose operations on floats are calls, which no compiler fuses."""

    def binary(self, left: str, operator: str, right: str, kind: str) -> str:
        return f"{_NAMES[operator]}({left}, {right})" if kind == F32 else super().binary(left, operator, right, kind)


def name_of(kernel: Kernel, form: Form) -> str:
    """What the kernel of `source` is called."""
    return f"{kernel.name}_{form.label}"


def _memory(name: str, simulated: bool) -> str:
    """``load_uint16(address, i)`` and ``store_uint16(address, i, x)``, and the like."""
    if simulated:
        return f'load_{name}, store_{name}, _, _ = memory(np.dtype("{name}"), 1)\n'
    return _MEMORY.format(name=name, bits=8 * np.dtype(name).itemsize, itemsize=np.dtype(name).itemsize)


def _codecs(simulated: bool) -> list[str]:
    """What the codecs are made of, and the codecs."""
    parts = ["u64, u16, u8 = np.uint64, np.uint16, np.uint8\n", _VIEWS if simulated else BITS]
    decorator = "@quiet" if simulated else "@inlined"
    parts += [f"{decorator}\n{_Typed(function).text()}" for function in (codecs.mix, *codecs.ELEMENTWISE)]
    return parts + [_memory(name, simulated) for name in ("uint8", "uint16")]


def norm_source(dtype: np.dtype, threads: int, simulated: bool) -> str:
    """The sums of squares of bfloat16 or float16, and their limits, which are float32."""
    functions = (
        f"def load(address, i):\n    return {_load(dtype.name, 'address', 'i')}\n",
        lowering.scalar(updates.scale, calls=True),
    )
    access = [f"@inlined\n{text}\n" for text in functions]
    return "\n\n".join([prelude(SINGLE, simulated), *_codecs(simulated), *access, FIND, *sums(threads), LIMIT])


def raw_source(dtype: np.dtype, simulated: bool) -> str:
    """What is done alike with all dtypes of one size."""
    text = (
        f"{PRELUDE}\n\nfrom fastoptim.backends.cuda.simulator import memory\n" if simulated else f"{PRELUDE}\n{IMPORTS}"
    )
    names = f"load, store = load_{dtype.name}, store_{dtype.name}\n"
    return "\n\n".join([text, _memory(dtype.name, simulated), names, MOVES.format(dtype=dtype.name)])


def _load(storage: str, address: str, i: str, scale: str = "", square: bool = False) -> str:
    if storage == "float32":
        return f"load({address}, {i})"
    code = f"u32(load_{_CODES[storage]}({address}, {i}))"
    if storage != "float8":
        return f"{storage}_decode({code})"
    value = f"float8_decode({code}, load({scale}, {i} // {BLOCK}))"
    return f"squared({value})" if square else value


class _Written(NamedTuple):
    """An array that a kernel writes: the name of the value, its storage, whether as roots."""

    name: str
    storage: str
    square: bool

    def store(self, form: Form, value: str, i: str) -> str:
        if self.storage == "float32":
            return f"store(at_{self.name}, {i}, {value})"
        codec = f"{self.storage}_{'nearest' if form.nearest else 'stochastic'}"
        more = f"inverse_{self.name}, u32({int(self.square)}), " if self.storage == "float8" else ""
        code = f"{codec}({value}, {more}dither(key_{self.name}, u32(first + u32({i}))))"
        kind = _CODES[self.storage]
        return f"store_{kind}(at_{self.name}, {i}, u{kind[4:]}({code}))"


def columns(rule: Rule, form: Form) -> list[str]:
    """What the words of a row are: addresses, the number of the first element, and a part of each dither's key."""
    states = lowering.arguments(rule)[0][2:]
    addresses = ["p", "g", *states]
    addresses += [f"scale_{x}" for x in states] if form.state == "float8" else []
    addresses += ["master"] if form.master else []
    low = ["p"] if form.parameter != "float32" else []
    low += states if form.state != "float32" else []
    return [*(f"at_{x}" for x in addresses), "first", *(f"key_{x}" for x in low)]


def words(rule: Rule, stored: Stored, form: Form) -> list[int]:
    """The words of a row after the addresses."""
    slots = {"p": 0} | {x: slot for slot, x in enumerate(lowering.arguments(rule)[0][2:], 2)}
    found = [stored.first]
    for column in columns(rule, form):
        if column.startswith("key_"):
            h = codecs.mixed(stored.seed, stored.number, slots[column[4:]])
            found.append(h - (h >> 63 << 64))  # as int64
    return found


def source(kernel: Kernel, form: Form, threads: int = THREADS, simulated: bool = False) -> str:
    """The module with the kernel of a rule over arrays of fewer bits."""
    rule, name = kernel.rule, name_of(kernel, form)
    arrays, scalars = lowering.arguments(rule)
    states = arrays[2:]
    squares = [x in rule.squares for x in rule.states]
    low = dict.fromkeys(states, form.state)
    written = [_Written("p", form.parameter, False)]
    written += [_Written(x, form.state, square) for x, square in zip(states, squares, strict=True)]
    blocks = [w for w in written if w.storage == "float8"]
    each = [w for w in written if w.storage != "float8"]
    of_columns = columns(rule, form)
    single = "master" if form.master else "p"

    def step(i: str) -> list[str]:
        values = [_load("float32" if form.master else form.parameter, f"at_{single}", i)]
        values.append(_load(form.gradient, "at_g", i))
        values += [_load(low[x], f"at_{x}", i, f"at_scale_{x}", q) for x, q in zip(states, squares, strict=True)]
        targets = ", ".join(w.name for w in written) + ("," if len(written) == 1 else "")
        lines = [f"{targets} = {kernel.name}_element({', '.join([*values, *scalars])})"]
        lines += [f"store(at_master, {i}, p)"] if form.master else []
        return lines + [w.store(form, w.name, i) for w in each]

    if blocks:
        lines = step("i")
        lines += [f"{w.name} = root({w.name})" for w in blocks if w.square]
        lines += [f"top_{w.name} = max(top_{w.name}, float8_magnitude({w.name}))" for w in blocks]
        lines += [f"of_{w.name}[j] = {w.name}" for w in blocks]
        scales = [f"inverse_{w.name} = float8_inverse(number(top_{w.name}))" for w in blocks]
        scales += [f"if thread % {LANES} == 0 and first_i < stop:"]
        stores = [f"store(at_scale_{w.name}, first_i // {BLOCK}, float8_scale(number(top_{w.name})))" for w in blocks]
        loop = _BLOCKS.format(
            lanes=LANES,
            block=BLOCK,
            each=BLOCK // LANES,
            largest=indent(3, [f"top_{w.name} = u32(0)" for w in blocks]),
            step=indent(5, lines),
            told=indent(3, [f"shared_{w.name}[thread] = top_{w.name}" for w in blocks]),
            together=indent(4, [f"top_{w.name} = max(top_{w.name}, shared_{w.name}[j])" for w in blocks]),
            scales=indent(3, scales + ["    " + line for line in stores]),
            stores=indent(5, [w.store(form, f"of_{w.name}[j]", "i") for w in blocks]),
        )
    else:
        lines = step("i")
        loop = EACH.format(step=indent(3, lines))
    keys = [f"first = u32(table[row + {of_columns.index('first')}])"]
    keys += [
        f"{x} = u32(mix(u64(table[row + {j}]), u64(t)) >> u64(32))"
        for j, x in enumerate(of_columns)
        if x.startswith("key_")
    ]
    room = [f"shared_{w.name} = cuda.shared.array({threads}, np.uint32)" for w in blocks]
    room += [f"of_{w.name} = cuda.local.array({BLOCK // LANES}, np.float32)" for w in blocks]
    update = over_pieces(kernel, name, of_columns, loop, "t, k", room, keys)
    elements = [*lowering.rule_sources(True, [rule]), lowering.element(kernel, suffix="_element")]
    elements.append("def squared(x):\n    return mul(x, x)\n")
    return "\n\n".join(
        [
            prelude(SINGLE, simulated),
            *_codecs(simulated),
            *(f"@inlined\n{text}\n" for text in elements),
            FIND,
            update,
        ]
    )


def signature(kernel: Kernel) -> tuple[Any, ...]:
    """Argument types of the kernel in `source`."""
    from numba import types

    k = types.UniTuple(types.float32, len(lowering.arguments(kernel.rule)[1]))
    return (types.Array(types.int64, 1, "C"), *[types.int64] * 5, k)
