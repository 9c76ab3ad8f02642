"""Generates what steps parameters of fewer bits with Numba: decode a tile, run a float32 kernel, encode it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..rules import codecs
from ..rules.codecs import BLOCK, LOW, Stored
from ..rules.norm import NORM_BLOCK
from ..rules.table import MAX_STATES
from ..rules.typed import TypedNumba

TILE = 1024  # elements that are decoded at a time; whole blocks
CODES = {"float32": 0, "bfloat16": 1, "float16": 2, "float8": 3}
_SLOTS = 2 + MAX_STATES
# What a row of the table holds: numbers, then addresses and storages of slots, keys of their dithers, scales.
SIZE, FIRST, KERNEL, STATES, NEAREST, SQUARES, MASTER = range(7)
DATA, STORAGE, KEY = (7 + i * _SLOTS for i in range(3))
SCALES = 7 + 3 * _SLOTS
LENGTH = SCALES + _SLOTS

BITS = """\
u32, f32 = np.uint32, np.float32


@intrinsic
def bits(typing, x):
    def build(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.uint32(types.float32), build


@intrinsic
def number(typing, u):
    def build(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.uint32), build
"""
_DECODE = f"""\
@exact
def decode(storage, square, codes, scales, count, x):
    if storage == {CODES["bfloat16"]}:
        c = carray(pointer(codes), count, np.uint16)
        for i in range(count):
            x[i] = bfloat16_decode(u32(c[i]))
    elif storage == {CODES["float16"]}:
        c = carray(pointer(codes), count, np.uint16)
        for i in range(count):
            x[i] = float16_decode(u32(c[i]))
    else:
        c8 = carray(pointer(codes), count, np.uint8)
        scale = carray(pointer(scales), (count + {BLOCK - 1}) // {BLOCK}, np.float32)
        for i in range(count):
            x[i] = float8_decode(u32(c8[i]), scale[i // {BLOCK}])
        if square:
            for i in range(count):
                x[i] = x[i] * x[i]
"""
_ENCODE = """\
@exact
def encode_{storage}_{rounding}(codes, count, key, first, x):
    c = carray(pointer(codes), count, np.uint16)
    for i in range(count):
        c[i] = {storage}_{rounding}(x[i], dither(key, u32(first + u32(i))))
"""
_ENCODE_8 = f"""\
@exact
def encode_float8_{{rounding}}(square, codes, scales, count, key, first, x):
    c = carray(pointer(codes), count, np.uint8)
    scale = carray(pointer(scales), (count + {BLOCK - 1}) // {BLOCK}, np.float32)
    if square:
        for i in range(count):
            x[i] = root(x[i])
    for block in range(0, count, {BLOCK}):
        end = min(block + {BLOCK}, count)
        largest = u32(0)
        for i in range(block, end):
            largest = max(largest, float8_magnitude(x[i]))
        scale[block // {BLOCK}] = float8_scale(number(u32(largest)))
        inverse = float8_inverse(number(u32(largest)))
        for i in range(block, end):
            c[i] = float8_{{rounding}}(x[i], inverse, u32(square), dither(key, u32(first + u32(i))))
"""
_STEP = f"""\
@exact
def encode(storage, nearest, square, codes, scales, count, key, first, x):
    if storage == {CODES["bfloat16"]}:
        if nearest:
            encode_bfloat16_nearest(codes, count, key, first, x)
        else:
            encode_bfloat16_stochastic(codes, count, key, first, x)
    elif storage == {CODES["float16"]}:
        if nearest:
            encode_float16_nearest(codes, count, key, first, x)
        else:
            encode_float16_stochastic(codes, count, key, first, x)
    elif nearest:
        encode_float8_nearest(square, codes, scales, count, key, first, x)
    else:
        encode_float8_stochastic(square, codes, scales, count, key, first, x)


def stored_step(row, k, first, count):
    # Blocks of the norm [first, first + count) of one parameter; see the numbers of a row in numba_stored.
    row = carray(row, {LENGTH})
    room = np.empty(({_SLOTS}, {TILE}), np.float32)
    inner = np.zeros({_SLOTS}, np.uint64)
    slots = 2 + np.int64(row[{STATES}])
    stop = min(np.int64(row[{SIZE}]), (first + count) * {NORM_BLOCK})
    for start in range(first * {NORM_BLOCK}, stop, {TILE}):
        n = min(stop - start, {TILE})
        at = u32(u32(row[{FIRST}]) + u32(start))
        for slot in range(slots):
            storage = np.int64(row[{STORAGE} + slot])
            size = 4 if storage == {CODES["float32"]} else 1 if storage == {CODES["float8"]} else 2
            data = row[{DATA} + slot] + np.uint64(start * size)
            scales = row[{SCALES} + slot] + np.uint64(start // {BLOCK} * 4)
            square = (np.int64(row[{SQUARES}]) >> slot) & 1
            if slot == 0 and row[{MASTER}]:
                inner[0] = row[{MASTER}] + np.uint64(start * 4)
            elif storage == {CODES["float32"]}:
                inner[slot] = data
            else:
                decode(storage, square, data, scales, n, room[slot])
                inner[slot] = np.uint64(room[slot:].ctypes.data)
        call(row[{KERNEL}], np.uint64(inner.ctypes.data), k, np.int64(0), n)
        for slot in range(slots):
            storage = np.int64(row[{STORAGE} + slot])
            if slot != 1 and storage:
                size = 1 if storage == {CODES["float8"]} else 2
                data = row[{DATA} + slot] + np.uint64(start * size)
                scales = row[{SCALES} + slot] + np.uint64(start // {BLOCK} * 4)
                square = (np.int64(row[{SQUARES}]) >> slot) & 1
                x = carray(pointer(inner[slot]), n, np.float32)
                encode(storage, row[{NEAREST}], square, data, scales, n, u32(row[{KEY} + slot]), at, x)
"""


def sources() -> list[str]:
    """The functions of the codecs and the loops over arrays."""
    functions = [f"@exact\n{TypedNumba(function).text()}" for function in codecs.ELEMENTWISE]
    plain = [_ENCODE.format(storage=storage, rounding=rounding) for storage in LOW for rounding in codecs.ROUNDINGS]
    blocks = [_ENCODE_8.format(rounding=rounding) for rounding in codecs.ROUNDINGS]
    return [BITS, *functions, _DECODE, *plain, *blocks, _STEP]


def table_row(kernel: int, arrays: Sequence[Any], stored: Stored, address: Any) -> list[int]:
    """The numbers of one parameter, all but its keys."""
    states = len(stored.squares)
    scales = arrays[2 + states : 2 + states + stored.scales]
    row = [0] * LENGTH
    row[SIZE], row[FIRST], row[KERNEL], row[STATES] = arrays[0].size, stored.first % 2**32, kernel, states
    row[NEAREST] = int(stored.nearest)
    row[MASTER] = address(arrays[-1]) if stored.master else 0
    gradient = stored.parameter if arrays[1].dtype == arrays[0].dtype else "float32"
    for slot, storage in enumerate([stored.parameter, gradient, *[stored.state] * states]):
        row[DATA + slot], row[STORAGE + slot] = address(arrays[slot]), CODES[storage]
        if storage == "float8":
            row[SCALES + slot] = address(scales[slot - 2])
            row[SQUARES] |= int(stored.squares[slot - 2]) << slot
    return row


def set_keys(row: np.ndarray, stored: Stored, t: int) -> None:
    """Put the keys of step `t` into a row of the table."""
    for slot in (0, *range(2, 2 + len(stored.squares))):
        if row[STORAGE + slot] != CODES["float32"]:
            row[KEY + slot] = stored.slot(slot, t).key
