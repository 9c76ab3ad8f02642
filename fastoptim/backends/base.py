"""Defines what a backend is: it runs kernels over lists of arrays, and knows what its arrays are."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterable, Iterator, MutableSequence, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..arrays import checks, layout
from ..arrays.rows import TableRows
from ..arrays.storage import compute_dtype
from ..common.public import public
from ..common.validation import limit_of
from ..rules import reference
from ..rules.codecs import Stored, part
from ..rules.norm import NORM_BLOCK, norm_from_squares, norms_from_squares
from ..rules.table import Kernel, ScalarRows, Scalars

TILE = 1 << 15  # elements, whole blocks of the norm: the temporaries of one tile fit a level-2 cache

Arrays = tuple[Any, ...]
Launch = Callable[[Sequence[Scalars]], None]
Norm = Callable[[Sequence[Any], float], float]
# (scalars of each call, k) -> for each array and each of its terms, sums of (k * term)**2, one for each block.
BlockMeasures = Callable[[Sequence[Scalars], float], list[np.ndarray]]
# (params, grads, states, rows, k) -> these sums over whole arrays; None if they need another way.
NativeMeasure = Callable[[Arrays, Arrays, Arrays, ScalarRows, float], list[float] | None]


def count_of_steps() -> array[int]:
    """A count, 0, in memory that the C extension counts in without creating an object."""
    return array("q", (0,))


class Member(NamedTuple):
    """What is expected of a parameter."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    stored: Stored | None = None  # how its arrays are stored, where some have fewer bits than they are computed in

    @classmethod
    def of(cls, x: Any) -> Member:
        """One without states like an array at hand, of any dtype."""
        low = x.dtype not in checks.DTYPES
        return cls("", x.shape, x.dtype, Stored(x.dtype.name, "float32", (), 0, 0) if low else None)


class Runs(NamedTuple):
    """Parameters in runs, each with a kernel and, at each step, a row of scalars."""

    kernels: Sequence[Kernel]
    run_of: Sequence[int]  # of each member
    members: Sequence[Member]

    @classmethod
    def one(cls, kernel: Kernel, members: Sequence[Member]) -> Runs:
        return cls([kernel], [0] * len(members), members)

    def limits(self) -> list[float]:
        """For each run, the least number that is infinite in a type that one of its members is computed in."""
        limits = [math.inf] * len(self.kernels)
        for run, member in zip(self.run_of, self.members, strict=True):
            limits[run] = min(limits[run], limit_of(compute_dtype(member.dtype)))
        return limits


def in_range(rows: Sequence[Scalars], limits: Sequence[float]) -> bool:
    """Whether the coefficients of all runs, decay's too, are numbers in the types that they are needed in.

    Their root of squares is below the limit, which is looked at in half the time; so some close to it are not found.
    """
    return all(math.hypot(*row[1:]) < limit for row, limit in zip(rows, limits, strict=True))


class NativePlan(Protocol):
    """What steps arrays by one native call, after checks of its own: see `backends.c.CPlan`."""

    in_c: bool  # whether rows may be what `UpdateSpec.native_scalars` gives, and gradients anything

    @property
    def step(self) -> Callable[..., bool]:
        """``step(params, grads, states, rows, scale=1.0)``; False, with nothing touched, if arrays need another way.

        So it is where rows are not `in_range`, and may be where a gradient is `Rows`.
        """

    def norm(self, grads: tuple[Any, ...], grad_scale: float) -> float | None:
        """Norm of all gradients; None if they need another way."""


class Prepared(Protocol):
    """One parameter's arrays as kernels take them, and how their results get back where they belong."""

    @property
    def arrays(self) -> tuple[Any, ...]: ...

    @property
    def copies(self) -> tuple[Any, ...]: ...

    @property
    def views(self) -> bool: ...

    def copy_back(self) -> None: ...


class KernelCall(NamedTuple):
    """A kernel and the arrays that it is to work on: rows of (p, g, *states), all contiguous and one-dimensional.

    `stored` says of each row how it is stored, where some arrays have fewer bits: the row then goes on with scales and
    a master copy, all in C order, and the scalars with the number of the step.
    """

    kernel: Kernel
    arrays: Sequence[tuple[Any, ...]]
    stored: Sequence[Stored | None] = ()

    @property
    def rows(self) -> list[tuple[tuple[Any, ...], Stored | None]]:
        """Each row with how it is stored."""
        return list(zip(self.arrays, self.stored or [None] * len(self.arrays), strict=True))


@public
class StepInfo(NamedTuple):
    """What a step did: applied or skipped, and the gradient norm (after grad_scale) if the step needed it."""

    applied: bool
    grad_norm: float | None


class Backend(ABC):
    """A backend for host arrays. Subclasses give `prepare` and `block_sums`; device backends replace more."""

    name: str
    runs_own_rules = True  # whether it can make kernels of rules that are not in the table
    alone_below: float = 0  # bytes: one thread steps a smaller array, however many there may be

    # --- arithmetic
    @abstractmethod
    def prepare(self, calls: Sequence[KernelCall], threads: int) -> Launch:
        """Do everything that can fail; returns what runs the calls, given the scalars of each, in place."""

    def prepare_rows(
        self,
        kernel: Kernel,
        p: Any,
        states: Sequence[Any],
        table: TableRows,
        scalars: Scalars,
        stored: Stored | None = None,
    ) -> Callable[[], None]:
        """What steps some rows of a parameter and of its states, when called, with everything else done before."""
        if stored is not None:
            return self._prepare_stored_rows(kernel, layout.to_c_order(p, table.values, states), table, scalars, stored)
        arrays = [np.asarray(x) for x in (p, *states)]
        p, *states = (np.ascontiguousarray(x[table.rows]) for x in arrays)
        tile = (p, table.values, *states)  # prepared kernels may keep addresses alone
        launch = self.prepare([KernelCall(kernel, [tuple(map(layout.flat, tile))])], 1)

        def step() -> None:
            launch([scalars])
            for x, new in zip(arrays, (tile[0], *tile[2:]), strict=True):
                x[table.rows] = new

        return step

    def _prepare_stored_rows(
        self, kernel: Kernel, form: layout.Contiguous, table: TableRows, scalars: Scalars, stored: Stored
    ) -> Callable[[], None]:
        """Rows that follow each other are a parameter of their own: dithers and scales go by an element's place."""
        p, g, *states = form.arrays
        length = g.size // max(1, len(table.rows))
        cuts = np.flatnonzero(np.diff(table.rows) != 1) + 1
        parts, coded = [], []
        for first, last in zip([0, *cuts], [*cuts, len(table.rows)], strict=True):
            if first < last and length:
                start = int(table.rows[first]) * length
                stop = start + int(last - first) * length
                own = [part(x, p.size, start, stop) for x in states]
                parts.append((p[start:stop], g[first * length : last * length], *own))
                coded.append(stored.after(start))
        launch = self.prepare([KernelCall(kernel, parts, coded)], 1)

        def step() -> None:
            launch([scalars])
            form.copy_back()

        return step

    @abstractmethod
    def block_sums(self, grads: Sequence[Any], grad_scale: float, k: float, threads: int) -> np.ndarray:
        """Sums of ``(k * (grad_scale * g))**2``, one float64 per block of each C-ordered contiguous array, in order."""

    def prepare_measures(self, calls: Sequence[KernelCall], threads: int) -> BlockMeasures:
        """What computes the block sums of measures over arrays as `prepare` takes them; nothing is written."""

        def measure(scalars: Sequence[Scalars], k: float) -> list[np.ndarray]:
            self.check_arithmetic()
            sums = []
            for call, row in zip(calls, scalars, strict=True):
                for arrays in call.arrays:
                    tiles = [[x[i : i + TILE] for x in arrays] for i in range(0, max(1, arrays[0].size), TILE)]
                    found = [reference.measure(call.kernel, p, g, states, row, k) for p, g, *states in tiles]
                    sums += [np.concatenate(blocks) for blocks in zip(*found, strict=True)]
            return sums

        return measure

    def measure_plan(self, runs: Runs, measures: Sequence[Kernel], threads: int) -> NativeMeasure | None:
        """As `plan`, of what ``measures[run]`` says of the parameters of a run; or None."""
        return None

    check_arithmetic = staticmethod(checks.check_arithmetic)

    def norms(self, grads: Sequence[Any], grad_scale: float, threads: int) -> tuple[float, list[float]]:
        """Norm of all gradients (of any layout) after `grad_scale`, and that of each by itself."""
        self.check_arithmetic()
        ordered = [self.flat(g) for g in grads]
        ends = np.cumsum([-(-g.size // NORM_BLOCK) for g in ordered])[:-1]

        def sums(k: float) -> list[float]:
            blocks = self.block_sums(ordered, grad_scale, k, threads)
            return [reference.tree_sum(x) for x in (blocks, *np.split(blocks, ends))]

        norm, *each = norms_from_squares(sums)
        return norm, each

    def prepare_norm(self, grads: Sequence[Any], threads: int) -> Norm:
        """What gives the norm of these gradients (of any layout), or of others of the same layouts, after grad_scale.

        It keeps none of them alive.
        """

        def norm(grads: Sequence[Any], grad_scale: float) -> float:
            ordered = [self.flat(g) for g in grads]
            return norm_from_squares(lambda k: reference.tree_sum(self.block_sums(ordered, grad_scale, k, threads)))

        return norm

    def norm(self, grads: Sequence[Any], grad_scale: float, threads: int) -> float:
        """Norm of all gradients (of any layout) after `grad_scale`."""
        self.check_arithmetic()
        return self.prepare_norm(grads, threads)(grads, grad_scale)

    # --- repeated steps over the same arrays
    def plan(self, runs: Runs, counter: MutableSequence[int], threads: int, lazy: bool = False) -> NativePlan | None:
        """A plan that checks and steps arrays by itself; or None.

        With `lazy`, `Rows` leave other rows as they are, whatever the rule.
        """
        return None

    def array_step(self, kernel: Kernel) -> Callable[..., bool] | None:
        """A step of any one small array, as `backends.c.CPlan.step_array`; or None."""
        return None

    def layouts(self, arrays: tuple[Any, ...], states: tuple[Any, ...]) -> object | None:
        """What a prepared call relies on: equal values mean that it still fits. None: prepare anew at every step."""
        return None

    # --- arrays
    check_parameter = staticmethod(checks.check_parameter)
    check_companion = staticmethod(checks.check_companion)
    span = staticmethod(checks.span)
    to_contiguous = staticmethod(layout.to_contiguous)
    to_c_order = staticmethod(layout.to_c_order)
    flat = staticmethod(layout.flat)
    zeros_like = staticmethod(layout.zeros_like)
    check_dtype = staticmethod(checks.check_dtype)

    def zeros_for(self, params: Sequence[Any]) -> list[Any]:
        """`zeros_like` for each; side by side where the parameters lie so, that a step may be one run there."""
        zeros: list[Any] = []
        for run in layout.runs_side_by_side(params):
            if len(run) == 1:
                zeros.append(self.zeros_like(run[0]))
                continue
            joint = np.lib.stride_tricks.as_strided(run[0].reshape(-1), (sum(x.size for x in run),))
            zeros += layout.views_side_by_side(self.zeros_like(joint), run)
        return zeros

    def describe(self, x: Any) -> tuple[tuple[int, ...], np.dtype]:
        """Shape and dtype of an array that `check_parameter` has let pass."""
        return tuple(x.shape), x.dtype

    def is_single(self, x: Any) -> bool:
        """Whether `x` is an array of float32, if it is an array."""
        return getattr(x, "dtype", None) == np.float32

    def host_copy(self, x: Any) -> np.ndarray:
        """A state as a NumPy array of its own."""
        return np.array(x, order="C")

    def copied(self, x: Any) -> Any:
        """A new array with the elements of `x`; `x` itself if it is none, which a step refuses by name."""
        if not isinstance(x, np.ndarray):
            return x
        return np.array(x) if isinstance(x, np.memmap) else x.copy("K")

    def assign(self, x: Any, value: np.ndarray) -> None:
        """Fill a state from a NumPy array of its shape and dtype."""
        x[...] = value

    @contextmanager
    def arithmetic(self) -> Iterator[None]:
        """Have NumPy compute as kernels do, without warnings; FloatingPointError if this thread flushes subnormals."""
        checks.check_arithmetic()
        with np.errstate(all="ignore"):
            yield

    def multiply(self, xs: Sequence[Any], factor: float) -> None:
        """``x *= factor`` for each array, with the factor rounded to its dtype."""
        with self.arithmetic():
            for x in xs:
                reference.multiply(np.asarray(x), factor)  # asarray: no method of a subclass runs

    def limited(self, g: Any, factor: float, limit: float | None) -> Any:
        """A new array: ``factor * g``, no element beyond `limit` in size; NaN stays NaN. 16 bits become float32."""
        with self.arithmetic():
            return reference.limited(np.asarray(g), factor, math.inf if limit is None else limit)

    def check_disjoint(self, written: Iterable[checks.Span], read: Iterable[checks.Span]) -> None:
        checks.check_disjoint(written, read)

    def info(self) -> dict[str, Any]:
        """What `fastoptim.info` reports about this backend."""
        return {}
