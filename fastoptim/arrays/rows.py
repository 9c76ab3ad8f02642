"""`Rows`: the gradient of a table of which a step has touched few rows."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from ..common.public import public
from ..common.validation import count, flag
from ..rules.norm import NORM_BLOCK
from .checks import DTYPES, check_dtype, check_match, conversion, dtype_name, instead_of

FEW = 64  # up to so many values of one row are added by rounds, more by np.add.at, which is slower for few


@public
class Rows:
    """Hold the gradient of some rows of a parameter; all other rows have none.

    Goes where a gradient goes, for a parameter of shape ``(n, ...)``. Values of one row that is named several times are
    added in the order in which they come, as ``np.add.at`` does.

    Parameters
    ----------
    indices : array of int32 or int64, shape (k,)
        The rows, in any order, from 0 to n - 1.
    values : array, shape (k, ...)
        The gradients of these rows, of the parameter's dtype; float32 for parameters in 16 bits.
    lazy : bool
        Leave parameter and states of all other rows as they are, whatever the rule: another algorithm than the dense
        step, in which states decay and steps go on without a gradient. By default a step with `Rows` has the bits of
        the dense one, and is refused for rules that cannot (`SparseAdam` is lazy by itself).

    Raises
    ------
    TypeError, ValueError
        Not integers, not float32 or float64, or shapes that do not go together.

    Examples
    --------
    >>> import numpy as np, fastoptim as fo
    >>> table = np.ones((5, 2))
    >>> opt = fo.SGD(table, lr=0.5)
    >>> opt.step(fo.Rows(np.array([3, 0, 3]), np.ones((3, 2)))).applied
    True
    >>> table[:, 0]
    array([0.5, 1. , 1. , 0. , 1. ])
    """

    __slots__ = ("indices", "lazy", "values")

    def __init__(self, indices: Any, values: Any, *, lazy: bool = False):
        if not isinstance(indices, np.ma.MaskedArray):  # of which nothing would be left of the mask
            empty = isinstance(indices, (list, tuple)) and not indices
            indices = np.asarray(indices, np.int64 if empty else None)
        _check_arrays(indices, values)
        if values.dtype not in DTYPES:
            raise TypeError(
                f"values of Rows must be native float32 or float64, got {dtype_name(values.dtype)}"
                f"{conversion(values.dtype)}"
            )
        if indices.ndim != 1 or values.ndim < 1 or len(indices) != len(values):
            raise ValueError(
                f"Rows needs one index for each of its values, shapes (k,) and (k, ...): got {indices.shape} and "
                f"{values.shape}{': flatten, indices.ravel(), values.reshape(-1, ...)' if indices.ndim > 1 else ''}"
            )
        self.indices, self.values, self.lazy = indices, values, flag("lazy", lazy)

    def to_dense(self, n: int) -> np.ndarray:
        """The gradient of a whole table of `n` rows; ValueError for an index beyond it."""
        n = count("n", n, 0)
        table = coalesced("0", self, (n, *self.values.shape[1:]), self.values.dtype)
        dense = np.zeros((n, *self.values.shape[1:]), self.values.dtype)
        dense[table.rows] = table.values
        return dense

    def __repr__(self) -> str:
        return f"Rows({len(self.indices)} of shape {self.values.shape[1:]}, {self.values.dtype}, lazy={self.lazy})"


def _check_arrays(indices: Any, values: Any) -> None:
    for what, x in (("indices", indices), ("values", values)):
        if not isinstance(x, np.ndarray) or isinstance(x, np.ma.MaskedArray):
            raise TypeError(f"{what} of Rows must be a NumPy array, got {type(x).__name__}{instead_of(x)}")
    if indices.dtype not in (np.dtype(np.int32), np.dtype(np.int64)):
        hint = {"b": ": np.flatnonzero(indices)", "i": ": indices.astype(np.int64)", "u": ": indices.astype(np.int64)"}
        got = f"{dtype_name(indices.dtype)}{hint.get(indices.dtype.kind, '')}"
        raise TypeError(f"indices of Rows must be int32 or int64, got {got}")


class TableRows(NamedTuple):
    """Checked rows of one parameter, each once, in increasing order."""

    rows: np.ndarray  # int64
    at: np.ndarray  # int64: which of `sums` are their gradients
    sums: np.ndarray  # C-contiguous, of its own memory

    @property
    def values(self) -> np.ndarray:
        """The gradients of these rows alone, C-contiguous."""
        values: np.ndarray = self.sums[self.at]
        return values


def coalesced(name: str, given: Rows, shape: tuple[int, ...], dtype: Any) -> TableRows:
    """The rows of a gradient of the parameter `name`, checked; TypeError or ValueError that names what is wrong."""
    _check_arrays(given.indices, given.values)  # which may be others by now
    indices, values = np.asarray(given.indices), np.asarray(given.values)  # no methods of subclasses
    check_dtype(name, dtype)
    if not shape:
        raise ValueError(f"gradient of parameter {name!r}: Rows needs a parameter of rows, and this has shape ()")
    check_match(name, "gradient", values.shape, values.dtype, (len(values), *shape[1:]), dtype)
    n = shape[0]
    if indices.shape != (len(values),):
        raise ValueError(f"gradient of parameter {name!r}: {indices.shape} indices for {len(values)} rows")
    order = np.argsort(indices, kind="stable")
    ordered = indices[order].astype(np.int64)
    if len(ordered) and (ordered[0] < 0 or ordered[-1] >= n):
        beyond = ordered[0] if ordered[0] < 0 else ordered[-1]
        raise ValueError(f"gradient of parameter {name!r}: row {beyond} of Rows is not in 0 ... {n - 1}")
    first = np.ones(len(ordered), bool)
    first[1:] = ordered[1:] != ordered[:-1]
    starts = np.flatnonzero(first)
    rows = ordered[starts]
    with np.errstate(all="ignore"):
        sums = np.add(values, dtype.type(0), order="C")  # from zero, as np.add.at begins
        at = order[starts]
        if len(starts) < len(ordered):
            counts = np.diff(starts, append=len(ordered))
            if counts.max() > FEW:
                sums[at] = 0
                np.add.at(sums, at[np.cumsum(first) - 1], values[order])
            else:
                for k in range(1, int(counts.max())):
                    more = np.flatnonzero(counts > k)
                    sums[at[more]] += values[order[starts[more] + k]]
    return TableRows(rows, at, sums)


def touched_blocks(table: TableRows, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The blocks of the norm that hold some of these rows of a table of that shape.

    Returns
    -------
    blocks, contents : arrays
        Their numbers, and their elements end to end, zeros where there is no gradient.
    """
    length = math.prod(shape[1:])
    starts = table.rows * length
    if not len(starts) or not length:
        return np.zeros(0, np.int64), np.zeros(0, table.sums.dtype)
    span = (length - 1) // NORM_BLOCK + 2  # blocks that a row may touch
    of_rows = np.minimum(
        starts[:, None] // NORM_BLOCK + np.arange(span), ((starts + length - 1) // NORM_BLOCK)[:, None]
    )
    blocks = np.unique(of_rows)
    contents = np.zeros(len(blocks) * NORM_BLOCK, table.sums.dtype)
    flat = table.values.reshape(len(starts), length)
    # Every block that a row reaches into is there, and blocks that adjoin in the table adjoin here.
    shift = blocks - np.arange(len(blocks))
    places = starts - shift[np.searchsorted(blocks, starts // NORM_BLOCK)] * NORM_BLOCK
    contents[(places[:, None] + np.arange(length)).reshape(-1)] = flat.reshape(-1)
    return blocks, contents
