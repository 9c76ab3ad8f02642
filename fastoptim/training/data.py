"""Minibatches: a data set in pieces, in a reproducible order, from a position that can be saved."""

from __future__ import annotations

import copy
import platform
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from sys import getrefcount
from typing import Any

import numpy as np

from ..common.generators import generator_of, set_checked_state
from ..common.public import public
from ..common.signals import deferred_signals
from ..common.validation import count, flag, names_arguments

Array = np.ndarray


@public
@names_arguments
def minibatches(
    data: Any,
    batch_size: int | None = 32,
    *,
    shuffle: bool = True,
    rng: int | np.random.Generator = 0,
    drop_last: bool = False,
) -> Minibatches:
    """Cut `data` into minibatches along the first axis; iterating once is one epoch.

    Parameters
    ----------
    data : array, or tuple, list or mapping of arrays
        All of one length along the first axis; a batch has the same structure. Memory maps are read where they are
        used. An object of your own will do for an array: it needs ``len(x)`` and ``x[where]``, which is asked for a
        slice if batches are in order and for an int64 index array if they are shuffled. What has ``iloc`` (pandas) is
        read by that: by position, never by label. An object's length is asked for at the beginning of every epoch, so
        that data may grow.
    batch_size : int or None
        Examples per batch, from 1 (one example per step) to all; None, or more than there are, means all.
    shuffle : bool
        A new permutation for every epoch. One batch of everything is not shuffled, as its order would not matter.
    rng : int or numpy.random.Generator
        A seed, or the generator to draw permutations from (shared, not copied).
    drop_last : bool
        Leave the last batch of an epoch out if it is short.

    Returns
    -------
    Minibatches

    Notes
    -----
    In order, batches of NumPy arrays are views, read-only so that no step can alter the data. Shuffled, they are
    copies; those beyond 32 KiB are made in a few buffers that are used again once nothing refers to the batch or to a
    view of it: a loop allocates nothing large, and ``list(batches)`` still holds every batch. (A pointer taken without
    a reference, such as ``x.ctypes.data``, does not keep a batch.) Arrays that are not C-contiguous, and objects of
    your own, return whatever their indexing returns.

    Examples
    --------
    >>> import numpy as np, fastoptim as fo
    >>> x, y = np.arange(10.0).reshape(5, 2), np.arange(5)
    >>> batches = fo.minibatches((x, y), 2, shuffle=False)
    >>> [labels.tolist() for _, labels in batches]
    [[0, 1], [2, 3], [4]]
    >>> batches.epoch, len(batches)
    (1, 3)
    """
    return Minibatches(data, batch_size, shuffle=shuffle, rng=rng, drop_last=drop_last)


@public
class Minibatches:
    """What `minibatches` returns: iterate for the rest of an epoch; `state_dict` is the exact position.

    Iterating again goes on where the last loop stopped, be it in the middle of an epoch, so that a restored position
    is a position like any other. All iterators over one object share its position.

    Attributes
    ----------
    examples : int
        Length of the data, as it was when the present epoch began.
    batch_size, asked_size : int
        Examples in a full batch, and what was asked for (None: all).
    epoch : int
        Epochs completed; it moves as soon as the last batch of an epoch is handed out.
    cursor : int
        Examples handed out in the present epoch.
    rng : numpy.random.Generator
        Where permutations come from.
    seed : str
        What it was made of, in words.
    shuffle, drop_last : bool
        As given; they cannot be changed.
    """

    def __init__(
        self,
        data: Any,
        batch_size: int | None = 32,
        *,
        shuffle: bool = True,
        rng: int | np.random.Generator = 0,
        drop_last: bool = False,
    ):
        self._data = data
        self._columns, self.assemble = _columns(data)
        self._several = isinstance(data, (Mapping, tuple, list))
        self._varies = not all(isinstance(column, np.ndarray) for _, column in self._columns)
        self.asked_size = None if batch_size is None else count("batch_size", batch_size)
        self._drop_last = flag("drop_last", drop_last)
        self._shuffle = flag("shuffle", shuffle)
        self.rng = generator_of(rng)
        self.seed = type(rng).__name__ if rng is self.rng else str(np.array(rng).tolist())
        self._share = (0, 1)
        self._begun: int | None = None  # the epoch whose length is known
        self._order: Array | None
        self._lay_out(_common_length(self._columns))
        self.epoch = 0
        self.cursor = 0

    @property
    def shuffle(self) -> bool:
        return self._shuffle

    @property
    def drop_last(self) -> bool:
        return self._drop_last

    def _lay_out(self, examples: int) -> None:
        """Say how epochs of so many examples are cut."""
        size = min(self.asked_size or examples, examples)
        end = examples - (examples % size if self._drop_last else 0)
        _check_share(end, size, self._share[1])
        shuffled = self._shuffle and size < examples
        self._readers = [_reader(name, column, size, shuffled) for name, column in self._columns]
        # At once, with nothing called in between, where Ctrl-C could leave half of it.
        self.examples, self.batch_size, self._end, self._shuffled, self._order = examples, size, end, shuffled, None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_columns", "assemble", "_readers")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._columns, self.assemble = _columns(self._data)
        self._readers = [_reader(name, column, self.batch_size, self._shuffled) for name, column in self._columns]

    def _begin_epoch(self) -> None:
        """Take the data as long as they are now, once an epoch: within it they stay as long as they were."""
        if self._varies and self._begun != self.epoch:
            if (examples := _common_length(self._columns)) != self.examples:
                self._lay_out(examples)
            self._begun = self.epoch

    def __len__(self) -> int:
        """Batches in an epoch."""
        return (self._end + self.batch_size - 1) // self.batch_size

    def __iter__(self) -> Iterator[Any]:
        epoch = self.epoch
        while self.epoch == epoch:
            yield self.next_batch()

    def next_batch(self) -> Any:
        """The next batch, going on to the next epoch where one ends."""
        start = self.cursor
        if start == 0:
            self._begin_epoch()
        end, order = self._end, self._order
        draws = start == 0 and self._shuffled
        before = self.rng.bit_generator.state if draws else None
        stop = start + self.batch_size
        if stop < end:
            epoch, cursor = self.epoch, stop
        else:
            stop = end
            epoch, cursor = self.epoch + 1, 0
        rank, size = self._share
        if size > 1:
            part = (stop - start) // size
            start += rank * part
            stop = start + part
        try:
            if draws:
                order = self.rng.permutation(self.examples)
            where = slice(start, stop) if order is None else order[start:stop]
            batch = self.assemble([read(where) for read in self._readers])
        except BaseException:  # the position stays, so that a column that raised once loses no batch
            if before is not None:
                self.rng.bit_generator.state = before
            raise
        self.cursor, self.epoch, self._order = cursor, epoch, order
        return batch

    def next_size(self) -> int:
        """How many examples the next batch will have, with the shares of all processes."""
        if self.cursor == 0:
            self._begin_epoch()
        size = min(self.batch_size, self._end - self.cursor)
        return size - size % self._share[1]

    def share(self, rank: int, size: int) -> None:
        """From now on hand out part `rank` of `size` equal parts of every batch, for one of several processes.

        Up to ``size - 1`` examples at the end of a batch whose length is not a multiple of `size` are left out, so that
        the mean over processes is the mean over examples. All processes need generators in the same state.
        """
        if not 0 <= rank < size:
            raise ValueError(f"rank must be in [0, {size}), got {rank}")
        _check_share(self._end, self.batch_size, size)
        self._share = (rank, size)

    def in_order(self) -> Minibatches:
        """The same data with a position of its own: every example once, in order, in batches of the same size."""
        view = copy.copy(self)
        view._shuffle = view._shuffled = view._drop_last = False
        view.examples = _common_length(self._columns) if self._varies else self.examples
        view._order = np.arange(view.examples) if self._shuffled else None  # columns are asked for what they know
        view._varies = False
        view._end, view._share = view.examples, (0, 1)
        view.epoch = view.cursor = 0
        return view

    def parts(self, batch: Any) -> list[Any]:
        """The columns that a batch is put together from by `assemble`."""
        return [part for _, part in _columns(batch)[0]] if self._several else [batch]

    # --- the position

    def state_dict(self) -> dict[str, Any]:
        """The exact position: epoch, cursor, the permutation in use and the generator's state, as copies."""
        return {
            "examples": self.examples,
            "batch_size": self.batch_size,
            "shuffle": self.shuffle,
            "drop_last": self.drop_last,
            "epoch": self.epoch,
            "cursor": self.cursor,
            "permutation": None if self._order is None or self.cursor == 0 else self._order.copy(),
            "rng": self.rng.bit_generator.state,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to the position that `state_dict` returned; ValueError, with nothing changed, if it is of other data."""
        own = self.state_dict()
        if not isinstance(state, Mapping) or set(state) != set(own):
            raise ValueError(f"position of minibatches: expected a mapping with {list(own)}")
        for name in ("examples", "batch_size", "shuffle", "drop_last"):
            if type(state[name]) is not type(own[name]) or state[name] != own[name]:
                if name == "examples":
                    raise ValueError(f"a position in other data, of {state[name]!r} examples; here are {own[name]!r}")
                raise ValueError(f"a position of minibatches with {name}={state[name]!r}; here it is {own[name]!r}")
        epoch, cursor, order = state["epoch"], state["cursor"], state["permutation"]
        if type(epoch) is not int or not 0 <= epoch < 2**63:
            raise ValueError(f"position of minibatches: epoch must be an int from 0, got {epoch!r}")
        if type(cursor) is not int or not 0 <= cursor < self._end or cursor % self.batch_size:
            raise ValueError(f"position of minibatches: no batch begins at {cursor!r}")
        if (order is not None) != (self._shuffled and cursor > 0):
            raise ValueError("position of minibatches: a permutation is there or missing against expectation")
        if order is not None:
            order = _permutation(order, self.examples)
        with deferred_signals():
            set_checked_state(self.rng, state["rng"])
            self.epoch, self.cursor, self._order, self._begun = epoch, cursor, order, None

    def recut(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The position `state`, of batches of another size, for these: the batch that it is in begins anew."""
        last = (self._end - 1) // self.batch_size * self.batch_size
        cursor = min(state["cursor"] // self.batch_size * self.batch_size, last)
        order = state["permutation"] if self._shuffled and cursor else None
        return {**state, "batch_size": self.batch_size, "cursor": cursor, "permutation": order}

    def __repr__(self) -> str:
        return (
            f"<Minibatches: {self.examples} examples in batches of {self.batch_size}, epoch {self.epoch}, "
            f"cursor {self.cursor}>"
        )


_SPARSE = (
    "a sparse matrix has no length: give x.toarray(), or x = x.tocsr() in loss_and_grad and the numbers of its rows as "
    "data, np.arange(x.shape[0]), whose batch takes them, x[rows]"
)
_INSTEAD = "give arrays, or in fit data=None and steps=..., and take batches in loss_and_grad: batch = next(stream)"


def _columns(data: Any) -> tuple[list[tuple[str, Any]], Callable[[list[Any]], Any]]:
    """Named columns, and what puts a batch together from their parts."""
    if isinstance(data, Iterator):
        raise TypeError(f"data: an iterator can be neither shuffled nor resumed; {_INSTEAD}")
    if isinstance(data, Mapping):
        keys = tuple(data)
        return [(f"data[{key!r}]", data[key]) for key in keys], lambda parts: dict(zip(keys, parts, strict=True))
    if isinstance(data, tuple):
        make = getattr(type(data), "_make", tuple)  # a named tuple stays one
        return [(f"data[{i}]", column) for i, column in enumerate(data)], make
    if isinstance(data, list):
        return [(f"data[{i}]", column) for i, column in enumerate(data)], list
    return [("data", data)], lambda parts: parts[0]


def _check_share(end: int, batch_size: int, processes: int) -> None:
    shortest = (end % batch_size) or batch_size
    if shortest < processes:
        hint = "set drop_last=True" if batch_size >= processes else "give larger batches"
        raise ValueError(f"a batch of {shortest} examples cannot be shared by {processes} processes; {hint}")


def _common_length(columns: list[tuple[str, Any]]) -> int:
    if not columns:
        raise ValueError("data holds no arrays")
    lengths = {}
    for name, column in columns:
        if isinstance(column, (str, bytes, list, tuple, Mapping, set)) or not hasattr(column, "__getitem__"):
            hint = "make it an array, np.array(x)" if isinstance(column, (list, tuple)) else _INSTEAD
            kind = type(column).__name__
            raise TypeError(f"{name}: expected an array, or an object that arrays index, got {kind}; {hint}")
        if hasattr(column, "tocsr"):
            raise TypeError(f"{name}: {_SPARSE}")
        try:
            lengths[name] = len(column)
        except TypeError as error:
            raise TypeError(f"{name}: {error}") from error
    if len(set(lengths.values())) > 1:
        raise ValueError(f"all arrays must have one length along their first axis, got {lengths}")
    length = next(iter(lengths.values()))
    if length == 0:
        raise ValueError("data has no examples")
    return length


def _reader(name: str, column: Any, batch_size: int, shuffled: bool) -> Callable[[Any], Any]:
    """``read(where)`` for one column; `where` is an index array if batches are shuffled, else a slice."""
    if type(column) not in (np.ndarray, np.memmap):
        return partial(_checked, name, positional(column))
    plain = np.asarray(column)
    if not shuffled:
        return partial(_view, plain)
    if not (plain.flags.c_contiguous and plain.flags.aligned):  # `take` would copy the whole array every time
        return plain.__getitem__
    take, shape, dtype = plain.take, (batch_size, *plain.shape[1:]), plain.dtype
    if plain.nbytes // len(plain) * batch_size <= _SMALL:
        return lambda where: take(where, 0)
    pool: list[Array] = []  # newest first

    def gather(where: Array) -> Array:
        # NumPy views keep their array alive by a reference, so the reference count tells whether a buffer is free.
        # mode="clip" writes straight into it; indices are a permutation's, none is ever out of range.
        for buffer in pool:
            if getrefcount(buffer) == _UNUSED:
                return take(where, 0, buffer[: len(where)], "clip")
        buffer = np.empty(shape, dtype)
        if _UNUSED:
            pool[:] = [buffer, *pool[: _POOL - 1]]
        return take(where, 0, buffer[: len(where)], "clip")

    return gather


def positional(column: Any) -> Any:
    """What takes rows of `column` by position: pandas' own ``[]`` looks up labels."""
    return getattr(column, "iloc", column)


def _view(column: Array, where: slice) -> Array:
    part = column[where]
    part.flags.writeable = False
    return part


def _checked(name: str, column: Any, where: Any) -> Any:
    part = column[where]
    rows = where.stop - where.start if isinstance(where, slice) else len(where)
    if len(part) != rows:
        raise ValueError(f"{name}: asked for {rows} examples at once, x[{type(where).__name__}] returned {len(part)}")
    return part


def _unused_count() -> int:
    """What `getrefcount` says of a list's element that nothing else holds, within a loop; 0 if it cannot tell."""
    if platform.python_implementation() != "CPython":
        return 0
    for buffer in [object()]:
        return getrefcount(buffer)
    return 0


_UNUSED = _unused_count()
_SMALL = 1 << 15  # bytes of a batch of one array below which a new one costs less than finding an old one
_POOL = 3  # buffers per array: a loop holds one batch, and its predecessor until the next is bound


def _permutation(order: Any, examples: int) -> Array:
    """A copy of `order` if it is a permutation of ``range(examples)``."""
    if not isinstance(order, np.ndarray) or order.dtype != np.int64 or order.shape != (examples,):
        raise ValueError(f"position of minibatches: permutation must be an int64 array of {examples}")
    seen = np.zeros(examples, bool)
    if order.min() < 0 or order.max() >= examples:
        raise ValueError("position of minibatches: permutation has an entry out of range")
    seen[order] = True
    if not seen.all():
        raise ValueError("position of minibatches: permutation has an entry twice")
    return order.copy()


class NoData:
    """Stands for the minibatches of a problem that has no data."""

    epoch = 0
    batch_size = examples = 1

    def next_batch(self) -> None:
        return None

    def next_size(self) -> int:
        return 1

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": 0}

    def load_state_dict(self, state: Any) -> None:
        if state != {"epoch": 0}:
            raise ValueError("it was written with data, and there is none here")

    def share(self, rank: int, size: int) -> None:
        pass
