"""Generates the source of the Numba kernels from the update rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..arrays import checks
from ..rules import lowering
from ..rules.norm import NORM_BLOCK, NORM_LANES
from ..rules.table import MEASURES, Kernel, Rule, kernels
from . import numba_stored

ROWS = 8  # rows of a norm block that are added between two stores of the lanes
_PRELUDE = """\
import math
import numpy as np
from llvmlite import ir
from numba import carray, njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic

root = math.sqrt
exact = njit(error_model="numpy", nogil=True, cache=True)


@intrinsic
def pointer(typing, address):
    def build(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.uint64), build
"""
_DRIVER = """\
@intrinsic
def call(typing, kernel, row, k, first, count):
    # Call a kernel by its address: one driver, compiled once, then serves them all.
    def build(context, builder, signature, arguments):
        i64 = ir.IntType(64)
        function = ir.FunctionType(ir.VoidType(), [i64, i64, i64, i64])
        builder.call(builder.inttoptr(arguments[0], function.as_pointer()), arguments[1:])
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64, types.uint64, types.int64, types.int64), build


@intrinsic
def take(typing, counter):
    # One atomic addition: the number of the next piece of work.
    def build(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.atomic_rmw("add", data, context.get_constant(types.int64, 1), "monotonic")

    return types.int64(counter), build


@exact
def walk(kernel, table, ends, k, itemsize, start, stop):
    # Items [start, stop) of all arrays put end to end; an item is an element, or a block of the norm (itemsize 0).
    which = np.searchsorted(ends, start, side="right")
    while start < stop:
        begin = ends[which - 1] if which else 0
        end = min(stop, ends[which])
        row = table[which:].ctypes.data
        if itemsize:  # up to the next cache line by itself: loads and stores that cross lines are slower
            beyond = (table[which, 0] + np.uint64((start - begin) * itemsize)) % np.uint64(64)
            head = min(end - start, np.int64((np.uint64(64) - beyond) % np.uint64(64)) // itemsize)
            if head:
                call(kernel, row, k, start - begin, head)
                start += head
        if start < end:
            call(kernel, row, k, start - begin, end - start)
        start = end
        which += 1


@njit("void(uint64, uint64[:, ::1], int64[::1], uint64, int64)", nogil=True, cache=True)
def alone(kernel, table, ends, k, itemsize):
    walk(kernel, table, ends, k, itemsize, 0, ends[-1])


@njit(
    "void(uint64, uint64[:, ::1], int64[::1], uint64, int64, int64, float64[::1], int64[::1], int64)",
    nogil=True, cache=True, parallel=True,
)
def shared(kernel, table, ends, k, itemsize, piece, probe, counter, workers):
    total = ends[-1]
    for worker in prange(workers):
        while probe[0] * probe[1] != 0.0:  # not if this thread flushes subnormal numbers to zero
            start = take(counter) * piece
            if start >= total:
                break
            walk(kernel, table, ends, k, itemsize, start, min(start + piece, total))
    start = take(counter) * piece
    while start < total:  # what such threads have left
        walk(kernel, table, ends, k, itemsize, start, min(start + piece, total))
        start = take(counter) * piece
"""
# A kernel works on `count` items of one array from item `first` on; `row` holds addresses, `k` the scalars of a run.
_UPDATE = """\
def {name}_{dtype}(row, k, first, count):
    offset = np.uint64(first * {itemsize})
{pointers}
{scalars}
    for i in range(count):
        {targets} = {name}({values})
"""
_BLOCK_SUM = """\
@exact
def square(scaling, s, x):
    y = scaling * np.float64(scale(x, s))
    return y * y


@exact
def block_sum(g, s, scaling, lanes):
    lanes[:] = 0.0
    tiles = g.size // {tile}
    for t in range(np.uintp(tiles)):
        x = g[t * {tile} : (t + 1) * {tile}]
        for i in range(np.uintp({lanes})):
            lane = lanes[i]
{rows}
            lanes[i] = lane
    for i in range(tiles * {tile}, g.size):
        lanes[i % {lanes}] += square(scaling, s, g[i])
    width = {lanes}
    while width > 1:
        width //= 2
        for i in range(width):
            lanes[i] = lanes[2 * i] + lanes[2 * i + 1]
    return lanes[0]
"""
_NORM = """\
def norm_{dtype}(row, k, first, count):
    g = carray(pointer(row[0]), np.int64(row[1]), np.{dtype})
    sums = carray(pointer(row[2]), first + count, np.float64)
    scaling = carray(pointer(row[3]), 1, np.float64)[0]
    lanes = np.empty({lanes})
    for block in range(first, first + count):
        start = block * {block}
        sums[block] = block_sum(g[start : min(start + {block}, g.size)], k[0], scaling, lanes)
"""
_MEASURE = """\
def {name}_{dtype}(row, k, first, count):
    size = np.int64(row[{count}])
{pointers}
{sums}
    scaling = carray(pointer(row[{count} + 1]), 1, np.float64)[0]
{scalars}
    lanes, unit = np.empty({lanes}), np.{dtype}(1)
{tiles}
    for block in range(first, first + count):
        start = block * {block}
        length = min({block}, size - start)
        for i in range(length):
            {targets} = {name}({values})
{results}
"""


def _measure(kernel: Kernel, dtype: np.dtype[Any]) -> str:
    """The block sums of a measure's terms; the row: arrays, their size, address of a factor, where sums go."""
    names, scalars = lowering.arguments(kernel.rule)
    count, terms = len(names), range(kernel.rule.terms)
    name = dtype.name
    return _MEASURE.format(
        name=kernel.name,
        dtype=name,
        count=count,
        lanes=NORM_LANES,
        block=NORM_BLOCK,
        pointers="\n".join(f"    {x} = carray(pointer(row[{j}]), size, np.{name})" for j, x in enumerate(names)),
        sums="\n".join(
            f"    sums{j} = carray(pointer(row[{count + 2 + j}]), first + count, np.float64)" for j in terms
        ),
        scalars="\n".join(f"    {x} = k[{j}]" for j, x in enumerate(scalars)),
        tiles="\n".join(f"    term{j} = np.empty({NORM_BLOCK}, np.{name})" for j in terms),
        targets=", ".join(f"term{j}[i]" for j in terms) + ("," if len(terms) == 1 else ""),
        values=", ".join([f"{x}[start + i]" for x in names] + list(scalars)),
        results="\n".join(f"        sums{j}[block] = block_sum(term{j}[:length], unit, scaling, lanes)" for j in terms),
    )


def _update(kernel: Kernel, dtype: np.dtype[Any]) -> str:
    names, scalars = lowering.arguments(kernel.rule)
    targets = [f"{x}[i]" for x in names if x != "g"]
    return _UPDATE.format(
        name=kernel.name,
        dtype=dtype.name,
        itemsize=dtype.itemsize,
        pointers="\n".join(
            f"    {x} = carray(pointer(row[{j}] + offset), count, np.{dtype.name})" for j, x in enumerate(names)
        ),
        scalars="\n".join(f"    {x} = k[{j}]" for j, x in enumerate(scalars)),
        targets=", ".join(targets) + ("," if len(targets) == 1 else ""),
        values=", ".join([f"{x}[i]" for x in names] + list(scalars)),
    )


def _updates(rules: Sequence[Rule] | None = None) -> list[str]:
    """The update rules, and a loop for each kernel and dtype."""
    measures = kernels(MEASURES.values() if rules is None else ())
    functions = lowering.rule_sources(rules=rules)
    functions += [lowering.element(kernel) for kernel in (*kernels(rules), *measures)]
    loops = [_update(kernel, dtype) for kernel in kernels(rules) for dtype in checks.DTYPES]
    return [f"@exact\n{text}\n" for text in functions] + loops


def own_source(rule: Rule) -> str:
    """The module that is compiled for a rule that is not in the table."""
    return "\n\n".join([_PRELUDE, *_updates([rule])])


def source() -> str:
    """The module that is compiled for the rules of the table, with the driver and the norm."""
    rows = [f"            lane = lane + square(scaling, s, x[i + np.uintp({j * NORM_LANES})])" for j in range(ROWS)]
    return "\n\n".join(
        [
            _PRELUDE,
            _DRIVER,
            *_updates(),
            *numba_stored.sources(),
            _BLOCK_SUM.format(tile=ROWS * NORM_LANES, lanes=NORM_LANES, rows="\n".join(rows)),
            *(_NORM.format(dtype=dtype.name, lanes=NORM_LANES, block=NORM_BLOCK) for dtype in checks.DTYPES),
            *(_measure(kernel, dtype) for kernel in kernels(MEASURES.values()) for dtype in checks.DTYPES),
        ]
    )
