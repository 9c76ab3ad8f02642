"""How numbers are stored in fewer bits than they are computed in: decoding, encoding and its dither, each stated once.

A bfloat16, float16 or float8 array computes in float32: decode, run the rule, encode. Decoding is exact. Encoding adds
a *dither* below the bits that are kept and cuts them off, so that the mean over all dithers is the number itself:
rounding to nearest loses every change smaller than half a step, and running means then stand still.

The functions with annotations work on elements and hold only operations that every machine carries out alike: integer
ones modulo 2**32 (`U32`) or 2**64 (`U64`) and IEEE 754's in float32 (`F32`). NumPy runs them as they stand;
`typed` turns the same source into scalar functions for Numba, and ``csrc/generate.py`` into C.

===========  =====================================================================================================
bfloat16     the upper 16 bits of a float32
float16      IEEE 754 binary16
float8       e4m3fn (no infinity, largest 448) in blocks of 128 elements in C order, each with one float32 scale. A
             state that is a mean of squares is stored as its root, and one that is not zero never becomes zero.
===========  =====================================================================================================
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy import where

U32: TypeAlias = Any
U64: TypeAlias = Any
F32: TypeAlias = Any

# Asks about numbers that are rare: infinite, NaN, beyond the largest. C passes it over in blocks that hold none.
rare = where

BLOCK = 128  # elements of a float8 array that share a scale
LOW = ("bfloat16", "float16")  # what parameters and gradients may be that are computed in float32
ROUNDINGS = ("stochastic", "nearest")


def bits(x: Any) -> Any:
    """The pattern of a float32 as uint32."""
    return x.view(np.uint32)


def number(u: Any) -> Any:
    """The float32 of a pattern."""
    return u.view(np.float32)


# --- Dither ---------------------------------------------------------------------------------------------------------
# Element i of an array gets key + i * odd: uniform over the random key, which is all that unbiasedness needs, at the
# price of one addition, and the same however an array is cut. The key is random in (seed, parameter, slot, step).


# A step of splitmix64 (Steele, Lea and Flood, 2014) that takes another number in.
def mix(h: U64, x: U64) -> U64:
    a = h + x + 0x9E3779B97F4A7C15
    b = (a ^ (a >> 30)) * 0xBF58476D1CE4E5B9
    c = (b ^ (b >> 27)) * 0x94D049BB133111EB
    return c ^ (c >> 31)


def dither(key: U32, i: U32) -> U32:
    return key + i * 0x9E3779B1


# --- bfloat16 -------------------------------------------------------------------------------------------------------


def bfloat16_decode(c: U32) -> F32:
    return number(c << 16)


def bfloat16_stochastic(x: F32, r: U32) -> U32:
    u = bits(x)
    below = rare(number(u & 0x7FFFFFFF) > 3.3895313892515355e38, 0, r >> 16)  # none grows beyond the largest
    return rare(x != x, 0x7FC0, (u + below) >> 16)


def bfloat16_nearest(x: F32, r: U32) -> U32:
    u = bits(x)
    cut = (u + 0x7FFF + ((u >> 16) & 1)) >> 16
    return rare((u & 0x7FFFFFFF) > 0x7F800000, 0x7FC0, cut)


# --- float16 --------------------------------------------------------------------------------------------------------
# With m the smallest normal number, the larger of x + m and 2 x is x + m below m, where numbers have the spacing of m,
# and 2 x above; both have an exponent one higher than x.


def float16_decode(c: U32) -> F32:
    m = (c << 13) & 0x0FFFE000
    twice = number(m + 0x38800000)
    small = twice - 6.103515625e-05
    size = where(small < twice * 0.5, small, twice * 0.5)
    a = where(twice > 131008.0, m | 0x7F800000, bits(size))
    return number(a | ((c << 16) & 0x80000000))


def float16_stochastic(x: F32, r: U32) -> U32:
    u = bits(x)
    a = u & 0x7FFFFFFF
    small = number(a) + 6.103515625e-05
    twice = number(a) + number(a)
    cut = (bits(where(twice < small, small, twice)) - 0x38800000 + (r >> 19)) >> 13
    kept = rare(a > 0x7F7FFFFF, 0x7C00, where(cut > 0x7BFF, 0x7BFF, cut))
    return rare(x != x, 0x7E00, kept | ((u >> 16) & 0x8000))


def float16_nearest(x: F32, r: U32) -> U32:
    u = bits(x)
    a = u & 0x7FFFFFFF
    small = bits(number(a) + 0.5) - 0x3F000000  # float32's own rounding, at the spacing of float16's smallest
    cut = (a - 0x38000000 + 0x0FFF + ((a >> 13) & 1)) >> 13
    code = where(a < 0x38800000, small, where(a < 0x477FF000, cut, 0x7C00))
    return rare(a > 0x7F800000, 0x7E00, code | ((u >> 16) & 0x8000))


# --- float8: the codes of a block, times its scale --------------------------------------------------------------------


def float8_magnitude(x: F32) -> U32:  # the largest of a block's gives its scale
    a = bits(x) & 0x7FFFFFFF
    return where(a < 0x7F800000, a, 0)


def float8_scale(a: F32) -> F32:
    return a / 448.0


def float8_inverse(a: F32) -> F32:
    return where(a < 7.888609052210118e-31, a * 0.0, 448.0 / a)


def float8_decode(c: U32, scale: F32) -> F32:
    m = (c << 20) & 0x07F00000
    twice = number(m + 0x3C800000)
    small = twice - 0.015625
    size = where(small < twice * 0.5, small, twice * 0.5)
    a = rare(twice > 896.0, m | 0x7F800000, bits(size))
    return number(a | ((c << 24) & 0x80000000)) * scale


def float8_stochastic(x: F32, inverse: F32, floor: U32, r: U32) -> U32:
    u = bits(x)
    a = u & 0x7FFFFFFF
    y = number(a) * inverse
    small = y + 0.015625
    cut = (bits(where(y + y < small, small, y + y)) - 0x3C800000 + (r >> 12)) >> 20
    least = where(a < floor, a, floor)  # 0 is 0
    kept = where(cut < least, least, cut)
    return rare(a > 0x7F7FFFFF, 0x7F, where(kept > 0x7E, 0x7E, kept) | ((u >> 24) & 0x80))


def float8_nearest(x: F32, inverse: F32, floor: U32, r: U32) -> U32:
    u = bits(x)
    a = u & 0x7FFFFFFF
    y = number(a) * inverse
    small = bits(y + 16384.0) - 0x46800000  # as for float16
    cut = (bits(y) - 0x3C000000 + 0x7FFFF + ((bits(y) >> 20) & 1)) >> 20
    code = where(y < 0.015625, small, cut)
    least = where(a < floor, a, floor)
    kept = where(code < least, least, code)
    return rare(a > 0x7F7FFFFF, 0x7F, where(kept > 0x7E, 0x7E, kept) | ((u >> 24) & 0x80))


ELEMENTWISE = (
    dither,
    bfloat16_decode,
    bfloat16_stochastic,
    bfloat16_nearest,
    float16_decode,
    float16_stochastic,
    float16_nearest,
    float8_magnitude,
    float8_scale,
    float8_inverse,
    float8_decode,
    float8_stochastic,
    float8_nearest,
)


# --- Whole arrays, by NumPy -----------------------------------------------------------------------------------------


def mixed(*numbers: int) -> int:
    """A random number of 64 bits that these numbers determine."""
    h = np.zeros(1, np.uint64)
    with np.errstate(over="ignore"):
        for x in numbers:
            h = mix(h, np.array([x], np.uint64))
    return int(h[0])


def key_of(seed: int, parameter: int, slot: int, t: int) -> int:
    """The key of the dither of one array in one step; `slot` is 0 for the parameter, 2 for its first state."""
    return mixed(seed, parameter, slot, t) >> 32


def dithers(key: int, first: int, count: int) -> np.ndarray:
    """The dither of elements ``first:first + count``."""
    i = np.arange(first, first + count, dtype=np.uint64).astype(np.uint32)
    result: np.ndarray = dither(np.uint32(key), i)
    return result


class Stored(NamedTuple):
    """How a parameter is stored of which some arrays have fewer bits than it is computed in.

    Its arrays are the parameter, the gradient, the states, the scales of those that are float8, and the master copy.
    """

    parameter: str  # name of a dtype: float32, bfloat16, float16
    state: str  # of every state: float32, bfloat16, float8
    squares: tuple[bool, ...]  # of each state: whether it is a mean of squares
    seed: int
    number: int  # of the parameter within its optimizer
    first: int = 0  # the number of the first element, of a slice of a parameter
    nearest: bool = False
    master: bool = False

    @property
    def scales(self) -> int:
        """How many states have scales."""
        return len(self.squares) if self.state == "float8" else 0

    def slot(self, i: int, t: int) -> Coding:
        """How the parameter (0) or state i - 2 is encoded in step `t`."""
        storage, square = (self.state, self.squares[i - 2]) if i else (self.parameter, False)
        key = key_of(self.seed, self.number, i, t)
        return Coding(storage, square and storage == "float8", self.nearest, key, self.first)

    def after(self, start: int) -> Stored:
        """That of the elements from `start` on."""
        return self._replace(first=self.first + start)


class Coding(NamedTuple):
    """How one array is encoded: its storage, whether as roots, and the dither."""

    storage: str
    square: bool
    nearest: bool
    key: int
    first: int


def part(x: np.ndarray, size: int, start: int, stop: int) -> np.ndarray:
    """What elements ``start:stop`` have of an array of a parameter of `size` elements; of scales, their blocks'."""
    if x.size == size:  # a parameter of one element has one scale, too
        return x[start:stop]
    return x[start // BLOCK : -(-stop // BLOCK)]


def decoded(codes: np.ndarray, scales: np.ndarray | None, storage: str, square: bool) -> np.ndarray:
    """A flat array in float32; itself, if that is how it is stored."""
    if storage == "float32":
        return codes
    with np.errstate(all="ignore"):
        c: Any = codes.view(np.uint8 if storage == "float8" else np.uint16).astype(np.uint32)
        x: Any
        if storage == "bfloat16":
            x = bfloat16_decode(c)
        elif storage == "float16":
            x = float16_decode(c)
        else:
            assert scales is not None
            x = float8_decode(c, np.repeat(scales, BLOCK)[: c.size])
        values: np.ndarray = x * x if square and storage == "float8" else x
    return values


def widened(g: np.ndarray) -> np.ndarray:
    """A flat gradient as it is computed with: bfloat16 and float16 in float32, others as they are."""
    return decoded(g, None, g.dtype.name, False) if g.dtype.name in LOW else g


def encode(x: np.ndarray, codes: np.ndarray, scales: np.ndarray | None, by: Coding) -> None:
    """Store a flat float32 array; `codes` and `scales` begin with a block."""
    function = globals()[f"{by.storage}_{'nearest' if by.nearest else 'stochastic'}"]
    r = dithers(by.key, by.first, x.size)
    with np.errstate(all="ignore"):
        if by.storage != "float8":
            codes.view(np.uint16)[...] = function(x, r)
            return
        assert scales is not None
        x = np.sqrt(x) if by.square else x
        magnitude: Any = float8_magnitude(x)
        largest = np.maximum.reduceat(magnitude, np.arange(0, x.size, BLOCK)) if x.size else magnitude
        scales[...] = float8_scale(number(largest))
        inverse: Any = float8_inverse(number(largest))
        codes.view(np.uint8)[...] = function(x, np.repeat(inverse, BLOCK)[: x.size], int(by.square), r)
