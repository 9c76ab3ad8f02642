"""Decides which rank owns what: cuts parameters into slices, and slices into the buckets that communication moves.

Every cut lies at a border of the blocks that the gradient norm is summed over, so that each rank sums whole blocks and
the norm has the same bits however many ranks there are.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np

from ..rules.norm import NORM_BLOCK


class Part(NamedTuple):
    """Elements ``start:stop``, in C order, of the parameter with the number `parameter`."""

    parameter: int
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start

    def over(self, unit: int) -> Part:
        """The same in blocks of so many elements, which cuts lie between."""
        return Part(self.parameter, self.start // unit, -(-self.stop // unit))


class Bucket(NamedTuple):
    """One round of communication: a piece of every rank's slice, of one group and one dtype.

    Gradients are added up in the dtype that the parameters are computed in.
    """

    group: int
    dtype: np.dtype  # of the parameters
    parts: tuple[tuple[Part, ...], ...]  # of every rank
    counts: tuple[int, ...]  # elements of every rank
    displacements: tuple[int, ...]

    @classmethod
    def of_parts(cls, group: int, dtype: np.dtype, parts: Sequence[tuple[Part, ...]]) -> Bucket:
        counts = tuple(sum(part.size for part in own) for own in parts)
        return cls(group, dtype, tuple(parts), counts, tuple(accumulate(counts, initial=0))[:-1])

    def holding(self, dtype: np.dtype, unit: int) -> Bucket:
        """For arrays of another dtype that have one element for so many of the parameters'."""
        return self.of_parts(self.group, dtype, [tuple(part.over(unit) for part in own) for own in self.parts])

    @property
    def size(self) -> int:
        return sum(self.counts)


def cut(ends: Sequence[int], low: int, high: int, parts: int) -> list[int]:
    """Find ``parts + 1`` positions from `low` to `high`, evenly, at block borders of arrays laid end to end.

    `ends` holds where the arrays begin, and where the last one ends.
    """
    borders = [low]
    for k in range(1, parts):
        target = low + (high - low) * k // parts
        i = min(bisect_right(ends, target), len(ends) - 1) - 1
        offset = round((target - ends[i]) / NORM_BLOCK) * NORM_BLOCK
        borders.append(min(max(ends[i] + offset, borders[-1]), ends[i + 1], high))
    return [*borders, high]


def parts_between(ends: Sequence[int], numbers: Sequence[int], low: int, high: int) -> tuple[Part, ...]:
    """List the parts of arrays (numbered `numbers`) that lie between two positions; of no empty array."""
    parts = []
    i = bisect_right(ends, low) - 1
    while i < len(numbers) and ends[i] < high:
        start, stop = max(low, ends[i]), min(high, ends[i + 1])
        if start < stop:
            parts.append(Part(numbers[i], start - ends[i], stop - ends[i]))
        i += 1
    return tuple(parts)


def piece_size(room: int, pieces: int, itemsize: int) -> int:
    """Compute the elements of a piece of which so many fit into `room` bytes, one block at least.

    One block is left over: as cuts lie between blocks, a piece may get one more than others.
    """
    return max(1, room // (pieces * itemsize * NORM_BLOCK) - 1) * NORM_BLOCK


def buckets(
    group: int, dtype: np.dtype, sizes: Sequence[int], numbers: Sequence[int], ranks: int, piece: int
) -> list[Bucket]:
    """Make buckets of parameters of one group and dtype, with pieces of about `piece` elements per rank.

    Empty parameters go to the first rank, so that every parameter has a place.
    """
    ends = list(accumulate(sizes, initial=0))
    slices = list(pairwise(cut(ends, 0, ends[-1], ranks)))
    count = max(1, *(-(-(high - low) // piece) for low, high in slices))
    pieces = [list(pairwise(cut(ends, low, high, count))) for low, high in slices]
    empty = tuple(Part(number, 0, 0) for number, size in zip(numbers, sizes, strict=True) if not size)
    result = []
    for b in range(count):
        parts = [parts_between(ends, numbers, *pieces[rank][b]) for rank in range(ranks)]
        if b == 0:
            parts[0] = (*empty, *parts[0])
        result.append(Bucket.of_parts(group, dtype, parts))
    return result


def ranges(buckets: Sequence[Bucket], rank: int) -> dict[int, tuple[int, int]]:
    """Map the number of a parameter to the elements ``(start, stop)`` of it that a rank owns."""
    found: dict[int, tuple[int, int]] = {}
    for bucket in buckets:
        for number, start, stop in bucket.parts[rank]:
            low, high = found.get(number, (start, stop))
            found[number] = (min(low, start), max(high, stop))
    return found
