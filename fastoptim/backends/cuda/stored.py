"""Generates the CUDA kernels over arrays of fewer bits: a thread decodes, runs the float32 rule, encodes.

What a parameter, its gradient and its states are stored in is known when a kernel is compiled (`Form`), so that each
array is read and written once, as in float32, four elements at a time. Where states are float8, a warp steps a block of
128 elements, and finds the largest of them by shuffles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ...rules import codecs, lowering, updates
from ...rules.codecs import BLOCK, Stored
from ...rules.table import Kernel, Rule
from ...rules.typed import F32, TypedNumba
from ..numba_stored import BITS
from .kernels import (
    FIND,
    IMPORTS,
    LIMIT,
    MOVES,
    PRELUDE,
    THREADS,
    Array,
    aligned,
    computed,
    elementwise,
    encoded,
    indent,
    loaded,
    memory,
    over_pieces,
    prelude,
    sums,
    written,
)

SINGLE = np.dtype(np.float32)
WIDTH = 4  # elements that a thread takes at a time
LANES = BLOCK // WIDTH  # threads that share a block of float8: a warp
_BITS = BLOCK.bit_length() - 1
_CODES = {"bfloat16": "uint16", "float16": "uint16", "float8": "uint8"}
_ZEROS = {"": "f32(0)", "_uint16": "u16(0)", "_uint8": "u8(0)"}
_NAMES = {"+": "add", "-": "sub", "*": "mul", "/": "div"}
_VIEWS = """\
u32, f32 = np.uint32, np.float32
bits, number = quiet(lambda x: x.view(u32)), quiet(lambda u: u.view(f32))
"""
_LARGEST = """\
@inlined
def largest(u):  # of a warp's
{steps}
    return u
"""
_SHUFFLES = [f"u = max(u, u32(cuda.shfl_xor_sync(-1, np.int32(u), {distance})))" for distance in (16, 8, 4, 2, 1)]
_SIMULATED_LARGEST = """\
@inlined
def largest(u):
    shared, thread = cuda.shared.array({lanes}, np.uint32), cuda.threadIdx.x
    shared[thread] = u
    cuda.syncthreads()
    found = shared.max()
    cuda.syncthreads()
    return found
"""
_BLOCKS = """\
        in_vectors = {aligned}
        at = start
        while at < stop:
            i = at + thread * {each}
            left = np.int32(min(stop - i, {each}))
            in_vector = in_vectors and left == {each}
            if in_vector:
{load_vector}
            else:
{load_elements}
{step}
            if thread % {lanes} == 0 and left > 0:
{scales}
            if in_vector:
{store_vector}
            else:
{store_elements}
            at += threads * {each}"""


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


def _codecs(simulated: bool) -> list[str]:
    """What the codecs are made of, and the codecs."""
    parts = ["u64, u16, u8 = np.uint64, np.uint16, np.uint8\n", _VIEWS if simulated else BITS]
    decorator = "@quiet" if simulated else "@inlined"
    parts += [f"{decorator}\n{_Typed(function).text()}" for function in (codecs.mix, *codecs.ELEMENTWISE)]
    return parts + [_memory(name, simulated) for name in ("uint8", "uint16")]


def _memory(name: str, simulated: bool, suffix: bool = True) -> str:
    return memory(np.dtype(name), WIDTH, simulated, f"_{name}" * suffix)


def norm_source(dtype: np.dtype, threads: int, simulated: bool) -> str:
    """The sums of squares of bfloat16 or float16, and their limits, which are float32."""
    functions = (
        f"def load(address, i):\n    return {_decoded(dtype.name, f'load_{_CODES[dtype.name]}(address, i)')}\n",
        lowering.scalar(updates.scale, calls=True),
    )
    access = [f"@inlined\n{text}\n" for text in functions]
    return "\n\n".join([prelude(SINGLE, simulated), *_codecs(simulated), *access, FIND, *sums(threads), LIMIT])


def raw_source(dtype: np.dtype, simulated: bool) -> str:
    """What is done alike with all dtypes of one size."""
    text = (
        f"{PRELUDE}\n\nfrom fastoptim.backends.cuda.simulator import memory\n" if simulated else f"{PRELUDE}\n{IMPORTS}"
    )
    return "\n\n".join([text, _memory(dtype.name, simulated, suffix=False), MOVES.format(dtype=dtype.name)])


def _decoded(storage: str, code: str, scale: str = "", square: bool = False) -> str:
    """What a code stands for."""
    if storage == "float32":
        return code
    if storage != "float8":
        return f"{storage}_decode(u32({code}))"
    value = f"float8_decode(u32({code}), {scale})"
    return f"squared({value})" if square else value


def _array(x: str, storage: str, nearest: bool, square: bool = False) -> Array:
    """The array at `x`, for reading and for writing; `square` if its roots are stored."""
    if storage == "float32":
        return Array(x, x)
    codec = f"{storage}_{'nearest' if nearest else 'stochastic'}"
    more = f"inverse_{x}, u32({int(square)}), " if storage == "float8" else ""
    kind = _CODES[storage]
    decoded = _decoded(storage, "{code}", f"scale_{x}", square)
    encoded = f"u{kind[4:]}({codec}({{value}}, {more}dither(key_{x}, u32(first + u32({{i}})))))"
    return Array(x, x, f"_{kind}", WIDTH * np.dtype(kind).itemsize, decoded, encoded)


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


def _in_blocks(
    kernel: Kernel, read: Sequence[Array], singles: Sequence[Array], states: Sequence[Array], roots: Sequence[str]
) -> str:
    """As `elementwise`, where a warp steps a block of each state, whose new scale it finds before codes are written.

    Of the states in `roots` the roots are stored.
    """
    names, every = [x.value for x in states], range(WIDTH)
    step = [f"scale_{x} = load(at_scale_{x}, min(i, stop - 1) >> {_BITS})" for x in names]
    step += computed(kernel, read, [singles[0].value, *names], every)
    step += [f"{x}{j} = root({x}{j})" for x in roots for j in every]
    step += [f"top_{x} = u32(0)" for x in names]
    for j in every:
        step += [f"if left > {j}:", *(f"    top_{x} = max(top_{x}, float8_magnitude({x}{j}))" for x in names)]
    step += [f"top_{x} = largest(top_{x})" for x in names]
    step += [f"inverse_{x} = float8_inverse(number(top_{x}))" for x in names]
    step += encoded([*singles, *states], every)

    def each(lines: Callable[[Sequence[int], bool], list[str]]) -> list[str]:
        """Line for line, for those of a thread's elements that there are."""
        return [y for j in every for y in (f"if left > {j}:", *("    " + x for x in lines([j], False)))]

    nothing = [f"c_{x.place}{j} = {_ZEROS[x.memory]}" for x in read for j in every]
    load, store = partial(loaded, read), partial(written, [*singles, *states])
    return _BLOCKS.format(
        aligned=aligned([*read, *singles]),
        each=WIDTH,
        lanes=LANES,
        load_vector=indent(4, load(every, True)),
        load_elements=indent(4, nothing + each(load)),
        step=indent(3, step),
        scales=indent(4, [f"store(at_scale_{x}, i >> {_BITS}, float8_scale(number(top_{x})))" for x in names]),
        store_vector=indent(4, store(every, True)),
        store_elements=indent(4, each(store)),
    )


def source(kernel: Kernel, form: Form, threads: int = THREADS, simulated: bool = False) -> str:
    """The module with the kernel of a rule over arrays of fewer bits."""
    rule, name = kernel.rule, name_of(kernel, form)
    values = lowering.arguments(rule)[0]
    roots = [x for x, state in zip(values[2:], rule.states, strict=True) if state in rule.squares]
    parameter = _array("p", form.parameter, form.nearest)
    masters = [Array("p", "master")] if form.master else []
    states = [_array(x, form.state, form.nearest, x in roots) for x in values[2:]]
    read = [*(masters or [parameter]), _array("g", form.gradient, form.nearest), *states]
    of_columns = columns(rule, form)
    if form.state == "float8" and states:
        loop = _in_blocks(kernel, read, [*masters, parameter], states, roots)
    else:
        loop = elementwise(kernel, read, [*masters, parameter, *states], WIDTH)
    keys = [f"first = u32(table[row + {of_columns.index('first')}])"]
    keys += [
        f"{x} = u32(mix(u64(table[row + {j}]), u64(t)) >> u64(32))"
        for j, x in enumerate(of_columns)
        if x.startswith("key_")
    ]
    update = over_pieces(kernel, name, of_columns, loop, "t, k", keys)
    elements = [*lowering.rule_sources(True, [rule]), lowering.element(kernel, suffix="_element")]
    elements.append("def squared(x):\n    return mul(x, x)\n")
    return "\n\n".join(
        [
            prelude(SINGLE, simulated),
            *_codecs(simulated),
            *(f"@inlined\n{text}\n" for text in elements),
            _SIMULATED_LARGEST.format(lanes=LANES) if simulated else _LARGEST.format(steps=indent(1, _SHUFFLES)),
            FIND,
            update,
        ]
    )


def signature(kernel: Kernel) -> tuple[Any, ...]:
    """Argument types of the kernel in `source`."""
    from numba import types

    k = types.UniTuple(types.float32, len(lowering.arguments(kernel.rule)[1]))
    return (types.Array(types.int64, 1, "C"), *[types.int64] * 5, k)
