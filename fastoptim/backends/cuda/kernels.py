"""Generates the source of the CUDA kernels from the update rules."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ...arrays.checks import DTYPES
from ...rules import lowering
from ...rules.norm import NORM_BLOCK, NORM_LANES
from ...rules.table import MEASURES, RULES, Kernel, Rule, kernels

THREADS = 256  # per block
VECTOR_BYTES = 16  # the widest load
ROWS = 8  # rows of a norm block that are loaded before they are added
_OPERATIONS = {
    np.dtype(np.float32): {"mul": "fmul_rn", "add": "fadd_rn", "div": "fdiv_rn", "root": "fsqrt_rn"},
    np.dtype(np.float64): {"mul": "dmul_rn", "add": "dadd_rn", "div": "ddiv_rn", "root": "dsqrt_rn"},
}
_IR_TYPES = {4: "FloatType()", 8: "DoubleType()"}
PRELUDE = """\
import numpy as np
from numba import cuda
"""
IMPORTS = """\
from llvmlite import ir
from numba import types
from numba.cuda import libdevice
from numba.cuda.extending import intrinsic

inlined = cuda.jit(device=True, forceinline=True)  # by the compiler: Numba's own inlining takes seven times as long
"""
_COMPILED = """\
{operations}
dmul, dadd = libdevice.dmul_rn, libdevice.dadd_rn


@inlined
def sub(a, b):  # libdevice has no dsub_rn
    return add(a, -b)
"""
_MEMORY = """\
def element{suffix}(builder, arguments, width):
    kind = ir.{ir_type}
    first = builder.gep(builder.inttoptr(arguments[0], kind.as_pointer(1)), [arguments[1]])
    return builder.bitcast(first, ir.VectorType(kind, width).as_pointer(1)) if width > 1 else first


@intrinsic
def load{suffix}(typing, address, i):
    def build(context, builder, signature, arguments):
        return builder.load(element{suffix}(builder, arguments, 1), align={itemsize})

    return types.{dtype}(types.int64, types.int64), build


@intrinsic
def store{suffix}(typing, address, i, x):
    def build(context, builder, signature, arguments):
        builder.store(arguments[2], element{suffix}(builder, arguments, 1), align={itemsize})
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.{dtype}), build


@intrinsic
def load_vector{suffix}(typing, address, i):
    def build(context, builder, signature, arguments):
        loaded = builder.load(element{suffix}(builder, arguments, {width}), align={vector_bytes})
        parts = [builder.extract_element(loaded, ir.IntType(32)(j)) for j in range({width})]
        return context.make_tuple(builder, signature.return_type, parts)

    return types.UniTuple(types.{dtype}, {width})(types.int64, types.int64), build


@intrinsic
def store_vector{suffix}(typing, address, i, {vector}):
    def build(context, builder, signature, arguments):
        value = ir.Constant(ir.VectorType(ir.{ir_type}, {width}), ir.Undefined)
        for j in range({width}):
            value = builder.insert_element(value, arguments[2 + j], ir.IntType(32)(j))
        builder.store(value, element{suffix}(builder, arguments, {width}), align={vector_bytes})
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, *[types.{dtype}] * {width}), build
"""
_SIMULATED = """\
from fastoptim.backends.cuda.simulator import add, dadd, div, dmul, inlined, memory, mul, quiet, root, sub
"""
_SIMULATED_MEMORY = """\
load{suffix}, store{suffix}, load_vector{suffix}, store_vector{suffix} = memory(np.dtype("{dtype}"), {width})
"""
# `table` holds, from `begin` on: the running total of pieces of `count` arrays, their sizes, a row of words for each.
FIND = """\
@inlined
def find(table, begin, count, item, words):  # a piece's row and number in its array, the array's size
    low, high = np.int64(0), count - 1
    while low < high:
        middle = (low + high) >> 1
        if table[begin + middle] > item:
            high = middle
        else:
            low = middle + 1
    before = table[begin + low - 1] if low > 0 else np.int64(0)
    return begin + 2 * count + low * words, item - before, table[begin + count + low]
"""
# A block of threads takes one piece after another. `range` with a step would cost a division of 64-bit integers: hence
# the loops with `while`.
_PIECES = """\
def {name}(table, begin, count, pieces, piece, {scalars}):
{first}
    thread, threads = np.int64(cuda.threadIdx.x), np.int64(cuda.blockDim.x)
    item = np.int64(cuda.blockIdx.x)
    while item < pieces:
        row, index, size = find(table, begin, count, item, {words})
        start = index * piece
        stop = min(start + piece, size)
{loads}
{loop}
        item += np.int64(cuda.gridDim.x)
"""
_VECTORS = """\
        if {aligned}:
            full = start + ((stop - start) & -{width})
            i = start + thread * {width}
            while i < full:
{vector}
                i += threads * {width}
            start = full
        i = start + thread
        while i < stop:
{element}
            i += threads"""
_SUM = """\
def sum_squares_{n}(table, begin, count, blocks, s, ks, sums, stride):
    {factors}, = ks
    shared = cuda.shared.array({threads}, np.float64)
    thread = np.int64(cuda.threadIdx.x)
    lane, group = thread & {last_lane}, thread >> {lane_bits}
    groups = np.int64(cuda.blockDim.x) >> {lane_bits}
    first = np.int64(cuda.blockIdx.x) * groups
    while first < blocks:
        {totals} = {zeros}
        number = first + group
        target = np.int64(-1)
        if number < blocks:
            row, index, size = find(table, begin, count, number, 2)
            address = table[row]
            target = table[row + 1] + index
            start = index * {block}
            stop = min(start + {block}, size)
            tiles = start + ((stop - start) & -{tile})
            i = start + lane
            while i < tiles:
{tile_loads}
{tile_sums}
                i += {tile}
            while i < stop:
                x0 = np.float64(scale(load(address, i), s))
{row_sums}
                i += {lanes}
{combine}
        first += np.int64(cuda.gridDim.x) * groups
"""
_COMBINE = """\
        shared[thread] = {total}
        cuda.syncthreads()
        width = 1
        while width < {lanes}:
            if lane & (2 * width - 1) == 0:
                shared[thread] = dadd(shared[thread], shared[thread + width])
            cuda.syncthreads()
            width *= 2
        if lane == 0 and target >= 0:
            sums[{j} * stride + target] = shared[thread]
        cuda.syncthreads()"""
# One level after another of the pairwise tree, for as many values as a block of threads can hold.
_TREE = """\
def tree(values, count, stride, out, out_stride):
    shared = cuda.shared.array({twice}, np.float64)
    thread, threads = np.int64(cuda.threadIdx.x), np.int64(cuda.blockDim.x)
    row, first = np.int64(cuda.blockIdx.y), np.int64(cuda.blockIdx.x) * 2 * threads
    left = min(count - first, 2 * threads)
    i = thread
    while i < left:
        shared[i] = values[row * stride + first + i]
        i += threads
    cuda.syncthreads()
    while left > 1:
        total = 0.0
        if 2 * thread < left:
            total = shared[2 * thread]
            if 2 * thread + 1 < left:
                total = dadd(total, shared[2 * thread + 1])
        cuda.syncthreads()
        if 2 * thread < left:
            shared[thread] = total
        cuda.syncthreads()
        left = (left + 1) >> 1
    if thread == 0:
        out[row * out_stride + np.int64(cuda.blockIdx.x)] = shared[0]
"""
_MULTIPLY = """\
def multiply(address, size, s):
    for i in range(np.int64(cuda.grid(1)), size, np.int64(cuda.gridsize(1))):
        store(address, i, scale(load(address, i), s))
"""
LIMIT = """\
def limit(source, target, size, s, low, high):
    for i in range(np.int64(cuda.grid(1)), size, np.int64(cuda.gridsize(1))):
        x = scale(load(source, i), s)
        store(target, i, low if x < low else (high if x > high else x))
"""
MOVES = """\
nothing = np.{dtype}(0)


def zero(address, size):
    for i in range(np.int64(cuda.grid(1)), size, np.int64(cuda.gridsize(1))):
        store(address, i, nothing)


def move(source, target, table, begin, dimensions, size):
    # Element by element in C order; the table holds, for each dimension: length, stride of source and of target.
    for i in range(np.int64(cuda.grid(1)), size, np.int64(cuda.gridsize(1))):
        rest, a, b = i, np.int64(0), np.int64(0)
        for d in range(dimensions - 1, -1, -1):
            at = begin + 3 * d
            index = rest % table[at]
            rest = rest // table[at]
            a += index * table[at + 1]
            b += index * table[at + 2]
        store(target, b, load(source, a))
"""


def indent(depth: int, lines: Sequence[str]) -> str:
    return "\n".join("    " * depth + line for line in lines)


class Array(NamedTuple):
    """An array that a kernel reads or writes: the rule's value, the place, and how elements lie there."""

    value: str
    place: str
    memory: str = ""  # suffix of what loads and stores
    vector_bytes: int = VECTOR_BYTES
    decoded: str = "{code}"
    encoded: str = "{value}"  # may depend on {i}


def _moved(line: str, code: str, arrays: Sequence[Array], numbers: Sequence[int], wide: bool) -> list[str]:
    """Lines that move the codes of elements ``i + j`` for all `numbers` j; `wide` takes them as a vector."""
    lines = []
    for x in arrays:
        codes = [f"{code}_{x.place}{j}" for j in numbers]
        parts = [("i", ", ".join(codes))] if wide else [(f"i + {j}", c) for j, c in zip(numbers, codes, strict=True)]
        memory = f"_vector{x.memory}" if wide else x.memory
        lines += [line.format(memory=memory, place=x.place, i=at, codes=part) for at, part in parts]
    return lines


loaded = partial(_moved, "{codes} = load{memory}(at_{place}, {i})", "c")
written = partial(_moved, "store{memory}(at_{place}, {i}, {codes})", "e")


def computed(kernel: Kernel, read: Sequence[Array], results: Sequence[str], numbers: Sequence[int]) -> list[str]:
    """Lines that make of the codes ``c_p0`` of elements the results ``p0``."""
    scalars, lines = ", ".join(lowering.arguments(kernel.rule)[1]), []
    for j in numbers:
        values = ", ".join(x.decoded.format(code=f"c_{x.place}{j}") for x in read)
        lines.append(", ".join(f"{x}{j}" for x in results) + f", = {kernel.name}_element({values}, {scalars})")
    return lines


def encoded(arrays: Sequence[Array], numbers: Sequence[int]) -> list[str]:
    """Lines that make of results the codes ``e_p0`` that are stored."""
    return [
        f"e_{x.place}{j} = {x.encoded.format(value=f'{x.value}{j}', i=f'i + {j}')}" for x in arrays for j in numbers
    ]


def aligned(arrays: Sequence[Array]) -> str:
    """Whether vectors of all arrays lie as a vector must."""
    sizes: dict[int, list[str]] = {}
    for x in arrays:
        sizes.setdefault(x.vector_bytes, []).append(f"at_{x.place}")
    return " and ".join(f"({' | '.join(dict.fromkeys(places))}) % {size} == 0" for size, places in sizes.items())


def elementwise(kernel: Kernel, read: Sequence[Array], arrays: Sequence[Array], width: int) -> str:
    """A loop that steps the elements of a piece, in vectors where their alignment allows it."""
    results = list(dict.fromkeys(x.value for x in arrays))

    def step(numbers: Sequence[int], wide: bool) -> list[str]:
        lines = loaded(read, numbers, wide) + computed(kernel, read, results, numbers)
        return lines + encoded(arrays, numbers) + written(arrays, numbers, wide)

    return _VECTORS.format(
        aligned=aligned([*read, *arrays]),
        width=width,
        vector=indent(4, step(range(width), True)),
        element=indent(3, step([0], False)),
    )


def _update(kernel: Kernel, width: int) -> str:
    read = lowering.arguments(kernel.rule)[0]
    terms = [f"term{j}" for j in range(kernel.rule.terms)]
    arrays = [Array(x, x) for x in terms or [x for x in read if x != "g"]]
    loop = elementwise(kernel, [Array(x, x) for x in read], arrays, width)
    return over_pieces(kernel, kernel.name, [f"at_{x}" for x in (*terms, *read)], loop)


def over_pieces(
    kernel: Kernel,
    name: str,
    columns: Sequence[str],
    loop: str,
    scalars: str = "k",
    loads: Sequence[str] = (),
) -> str:
    """A kernel that does `loop` with each piece of each array; its rows hold `columns`, addresses first."""
    first = [f"{x} = k[{j}]" for j, x in enumerate(lowering.arguments(kernel.rule)[1])]
    loads = [*(f"{x} = table[row + {j}]" for j, x in enumerate(columns) if x.startswith("at_")), *loads]
    return _PIECES.format(
        name=name, scalars=scalars, words=len(columns), first=indent(1, first), loads=indent(2, loads), loop=loop
    )


def _sum_squares(n: int, threads: int) -> str:
    def add(j: int, x: str) -> list[str]:
        return [f"y = dmul(k{j}, {x})", f"total{j} = dadd(total{j}, dmul(y, y))"]

    return _SUM.format(
        n=n,
        threads=threads,
        lanes=NORM_LANES,
        last_lane=NORM_LANES - 1,
        lane_bits=NORM_LANES.bit_length() - 1,
        block=NORM_BLOCK,
        tile=ROWS * NORM_LANES,
        factors=", ".join(f"k{j}" for j in range(n)),
        totals=", ".join(f"total{j}" for j in range(n)),
        zeros=", ".join("0.0" for _ in range(n)),
        tile_loads=indent(
            4, [f"x{r} = np.float64(scale(load(address, i + {r * NORM_LANES}), s))" for r in range(ROWS)]
        ),
        tile_sums=indent(4, [line for r in range(ROWS) for j in range(n) for line in add(j, f"x{r}")]),
        row_sums=indent(4, [line for j in range(n) for line in add(j, "x0")]),
        combine="\n".join(_COMBINE.format(total=f"total{j}", j=j, lanes=NORM_LANES) for j in range(n)),
    )


def _kernels(rules: Sequence[Rule] | None) -> list[Kernel]:
    """Every kernel of `rules`, or of the tables: a measure's writes its terms."""
    return kernels(rules) if rules is not None else kernels((*RULES.values(), *MEASURES.values()))


def prelude(dtype: np.dtype, simulated: bool) -> str:
    """What the kernels of one dtype are made of: operations that are rounded by themselves, access to memory."""
    width = VECTOR_BYTES // dtype.itemsize
    operations = "\n".join(f"{name} = libdevice.{function}" for name, function in _OPERATIONS[dtype].items())
    parts = [_SIMULATED] if simulated else [IMPORTS, _COMPILED.format(operations=operations)]
    return "\n".join([PRELUDE, *parts, memory(dtype, width, simulated)])


def memory(dtype: np.dtype, width: int, simulated: bool, suffix: str = "") -> str:
    """What loads and stores an element, or `width` of them."""
    if simulated:
        return _SIMULATED_MEMORY.format(dtype=dtype.name, width=width, suffix=suffix)
    return _MEMORY.format(
        dtype=dtype.name,
        itemsize=dtype.itemsize,
        width=width,
        suffix=suffix,
        vector_bytes=width * dtype.itemsize,
        ir_type={"u": f"IntType({8 * dtype.itemsize})", "f": _IR_TYPES.get(dtype.itemsize)}[dtype.kind],
        vector=", ".join(f"x{j}" for j in range(width)),
    )


def sums(threads: int) -> list[str]:
    """The kernels that sum up squares."""
    return [_sum_squares(n, threads) for n in (1, 3)]


def source(
    dtype: np.dtype, threads: int = THREADS, simulated: bool = False, rules: Sequence[Rule] | None = None
) -> str:
    """The module of kernels for one dtype: for the compiler, or for the simulator.

    `rules` are those that a user has written; by default it is the table, with the norm and what else there is.
    """
    width, every = VECTOR_BYTES // dtype.itemsize, _kernels(rules)
    elements = [lowering.element(kernel, suffix="_element") for kernel in every]
    others = [*sums(threads), _TREE.format(twice=2 * threads), _MULTIPLY, LIMIT, MOVES.format(dtype=dtype.name)]
    return "\n\n".join(
        [
            prelude(dtype, simulated),
            *(f"@inlined\n{text}\n" for text in lowering.rule_sources(True, rules) + elements),
            FIND,
            *(_update(kernel, width) for kernel in every),
            *(others if rules is None else ()),
        ]
    )


def signatures(dtype: np.dtype, rules: Sequence[Rule] | None = None) -> dict[str, tuple[Any, ...]]:
    """Kernel name -> argument types."""
    from numba import from_dtype, types

    T, whole = from_dtype(dtype) if dtype in DTYPES else types.float32, types.int64
    table, sums = types.Array(types.int64, 1, "C"), types.Array(types.float64, 1, "C")
    result: dict[str, tuple[Any, ...]] = {}
    for kernel in _kernels(rules):
        k = types.UniTuple(T, len(lowering.arguments(kernel.rule)[1]))
        result[kernel.name] = (table, whole, whole, whole, whole, k)
    for n in (1, 3):
        ks = types.UniTuple(types.float64, n)
        result[f"sum_squares_{n}"] = (table, whole, whole, whole, T, ks, sums, whole)
    result["tree"] = (sums, whole, whole, sums, whole)
    result["limit"] = (whole, whole, whole, T, T, T)
    result["multiply"], result["zero"] = (whole, whole, T), (whole, whole)
    result["move"] = (whole, whole, table, whole, whole, whole)
    return result
