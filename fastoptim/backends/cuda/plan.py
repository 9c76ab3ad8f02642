"""Steps the same arrays again and again: they are looked at, not checked anew, and a gradient that moved is patched."""

from __future__ import annotations

import weakref
from collections.abc import MutableSequence, Sequence
from operator import call, is_
from typing import Any

import numpy as np

from ...arrays.autograd import tell_autograd, tensors_among
from ...arrays.storage import state_arrays
from ...common.signals import deferred_signals
from ...rules.codecs import Stored
from ...rules.norm import NORM_RETRY
from ...rules.table import Scalars
from ..base import Arrays, KernelCall, Runs, in_range
from .device_arrays import Vector, look_of, stays
from .work import Device, NormWork, UpdateWork, factors


class CudaPlan:
    """See `backends.base.NativePlan`. Arrays that are not plain (gaps, mixed orders, no gradient) need another way."""

    in_c = False

    def __init__(self, backend: Device, runs: Runs, counter: MutableSequence[int]):
        self._backend, self._kernels, self._run_of, self._counter = backend, runs.kernels, runs.run_of, counter
        self._limits = runs.limits()
        self._stored = [member.stored for member in runs.members]
        self._expected = []  # of each member: what its parameter and what is kept beside it must be
        for (_, shape, dtype, stored), run in zip(runs.members, runs.run_of, strict=True):
            beside = state_arrays(runs.kernels[run].rule, stored, shape, dtype)
            self._expected.append([(shape, dtype), *beside.values()])
        self._fixed: _Fixed | None = None
        self._norm: tuple[NormWork, _Gradients] | None = None

    def step(self, params: Arrays, grads: Arrays, states: Arrays, rows: Sequence[Scalars], scale: float = 1.0) -> bool:
        if not in_range(rows, self._limits):
            return False
        if scale != 1.0:
            rows = [(row[0] * scale, *row[1:]) for row in rows]
        fixed = self._fixed
        if fixed is None or not (fixed.same(params, states) and fixed.gradients.follow(grads)):
            fixed = self._bind(params, grads, states)
            if fixed is None:
                return False
        with deferred_signals():
            fixed.update.run(rows)
            self._counter[0] += 1
        if fixed.tensors:
            tell_autograd(fixed.tensors)
        return True

    def norm(self, grads: tuple[Any, ...], grad_scale: float) -> float | None:
        if self._norm is None or not self._norm[1].follow(grads):
            self._norm = self._bind_norm(grads)
        return None if self._norm is None else self._backend.norm_from(self._norm[0], grad_scale)

    def _bind_norm(self, grads: tuple[Any, ...]) -> tuple[NormWork, _Gradients] | None:
        if len(grads) != len(self._expected):
            return None
        vectors = []
        try:
            for g, (expected, *_), stored in zip(grads, self._expected, self._stored, strict=True):
                layout, stream = self._backend.host_layout("gradient", g)
                if not (_fits(layout, expected, stored) and layout.flags.aligned and layout.flags.c_contiguous):
                    return None
                self._backend.check_usable("gradient", g, layout, written=False)
                vectors.append(self._backend.vector(None, layout, stream))
        except (TypeError, ValueError):
            return None
        work = NormWork(self._backend, vectors, factors(NORM_RETRY, vectors), tree=True)
        positions = [work.gradients.get(i, -1) for i in range(len(vectors))]
        return work, _Gradients(self._backend, grads, vectors, positions, work, None)

    def _bind(self, params: Arrays, grads: Arrays, states: Arrays) -> _Fixed | None:
        """Check all arrays; None if one is not plain or not right: the long way will do it, or say what is wrong."""
        self._fixed = None
        backend, rest = self._backend, iter(states)
        backend.check_arithmetic()
        if not len(params) == len(grads) == len(self._expected):
            return None
        rows: list[list[tuple[Vector, ...]]] = [[] for _ in self._kernels]
        stored: list[list[Stored | None]] = [[] for _ in self._kernels]
        places = []
        members = zip(params, grads, self._run_of, self._expected, self._stored, strict=True)
        try:
            for p, g, run, (first, *others), by in members:
                own = [next(rest) for _ in others]
                every = [(x, *backend.host_layout("array", x)) for x in (p, g, *own)]
                for i, ((x, layout, _), expected) in enumerate(zip(every, (first, first, *others), strict=True)):
                    plain = _fits(layout, expected, by if i == 1 else None) and layout.flags.aligned
                    if not plain or (i != 1 and not layout.flags.writeable):
                        return None
                    backend.check_usable("array", x, layout, written=i != 1)
                orders = [layout.flags for _, layout, _ in every]
                in_order = all(f.c_contiguous for f in orders)
                if not (in_order or (by is None and all(f.f_contiguous for f in orders))):
                    return None
                places.append((run, len(rows[run])))
                stored[run].append(by)
                rows[run].append(tuple(backend.vector(None, layout, stream) for _, layout, stream in every))
        except (TypeError, ValueError, StopIteration):
            return None
        if next(rest, None) is not None:
            return None
        written = sorted(
            (v.address, v.address + v.size * v.dtype.itemsize)
            for run in rows
            for row in run
            for v in (row[0], *row[2:])
            if v.size
        )
        low, high = (np.array([w[i] for w in written], np.int64) for i in (0, 1))
        if (low[1:] < high[:-1]).any():
            return None
        calls = [KernelCall(*call) for call in zip(self._kernels, rows, stored, strict=True)]
        work = UpdateWork(backend, calls)
        gradients = _Gradients(
            backend,
            grads,
            [rows[run][row][1] for run, row in places],
            [work.gradients.get(place, -1) for place in places],
            work,
            (low, high),
        )
        if gradients.overlap():
            return None
        self._fixed = _Fixed(params, states, work, gradients)
        return self._fixed


def _fits(layout: np.ndarray, expected: tuple[tuple[int, ...], np.dtype], stored: Stored | None) -> bool:
    """Whether an array has the expected shape and dtype; the gradient of what is `stored` may be float32."""
    if layout.shape != expected[0]:
        return False
    return layout.dtype == expected[1] or (stored is not None and layout.dtype == np.float32)


class _Fixed:
    """Parameters and states that were checked, and the work over them."""

    __slots__ = ("_params", "_states", "_watched", "gradients", "tensors", "update")

    def __init__(self, params: Arrays, states: Arrays, update: UpdateWork, gradients: _Gradients):
        self._params, self._states, self.update, self.gradients = params, states, update, gradients
        every = [(x, look_of(type(x))) for x in (*params, *states)]
        self._watched = [(x, look, look(x)) for x, look in every if not stays(look)]
        self.tensors = tensors_among(x for x, _ in every)

    def same(self, params: tuple[Any, ...], states: tuple[Any, ...]) -> bool:
        """Whether parameters and states are those that were checked, where they were."""
        for given, known in ((params, self._params), (states, self._states)):
            if given is not known and not (len(given) == len(known) and all(map(is_, given, known))):
                return False
        return not self._watched or all(look(x) == known for x, look, known in self._watched)


class _Gradients:
    """Where the gradients of a `work` are; none is kept alive."""

    def __init__(
        self,
        backend: Device,
        grads: tuple[Any, ...],
        vectors: Sequence[Vector],
        positions: Sequence[int],
        work: UpdateWork | NormWork,
        written: tuple[np.ndarray, np.ndarray] | None,
    ):
        self._backend, self._work, self._written = backend, work, written
        self._items = np.array([v.dtype.itemsize for v in vectors], np.int64)
        self._sizes = self._items * [v.size for v in vectors]
        self._addresses = np.array([v.address for v in vectors], np.int64)
        self._there = np.array(positions, np.int64) >= 0
        self._positions = np.array(positions, np.int64)[self._there]
        self._kinds = list(map(type, grads))
        looks = {kind: look_of(kind) for kind in set(self._kinds)}
        self._lookers = [looks[kind] for kind in self._kinds]
        self._stay = all(map(stays, self._lookers))
        self._looks = self._look(grads)
        self._watch(grads)

    def _watch(self, grads: tuple[Any, ...]) -> None:
        self._gone: list[Any] = []  # a reference to what is gone gives None, and so may a caller
        self._refs = [weakref.ref(g, self._gone.append) for g in grads] if self._stay else []

    def _look(self, grads: tuple[Any, ...]) -> tuple[tuple[Any, ...], ...]:
        """The addresses; then, one after the other, what else must be as it was."""
        looks = [look(g) for look, g in zip(self._lookers, grads, strict=True)]
        return tuple(zip(*looks, strict=True))

    def overlap(self) -> bool:
        """Whether a gradient shares memory with what is written."""
        if self._written is None or not len(self._written[0]):
            return False
        low, high = self._written
        before = np.searchsorted(low, self._addresses + self._sizes) - 1
        return bool(((before >= 0) & (high[before] > self._addresses) & (self._sizes > 0)).any())

    def follow(self, grads: tuple[Any, ...]) -> bool:
        """Whether these gradients fit; the work then reads them, where they are now."""
        known = self._stay and not self._gone and len(grads) == len(self._refs)
        if known and all(map(is_, map(call, self._refs), grads)):
            return True
        if list(map(type, grads)) != self._kinds:
            return False
        looks = self._look(grads)
        if looks == self._looks:
            return True
        if looks[1:] != self._looks[1:]:
            return False
        self._addresses = np.array(looks[0], np.int64)
        if (self._addresses % self._items).any() or self.overlap():
            return False
        if not self._stay:
            for address, size in zip(self._addresses.tolist(), self._sizes.tolist(), strict=True):
                self._backend.check_device("gradient", address if size else 0)
        self._work.patch(self._positions, self._addresses[self._there])
        self._looks = looks
        self._watch(grads)
        return True
