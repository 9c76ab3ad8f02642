"""Takes the norms of whole arrays that a step needs first, and makes of them scalars for each array.

See `rules.measures`. Nothing is written here: a step that measures happens whole, too, or not at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np

from ..backends.base import Arrays, Backend, BlockMeasures, KernelCall, NativeMeasure, Runs
from ..rules.measures import Measured
from ..rules.norm import norms_from_squares
from ..rules.reference import tree_sum
from ..rules.table import ScalarRows, Scalars

_Lists = tuple[Arrays, Arrays, Arrays]  # parameters, gradients, states


class Asking(Protocol):
    """A run of one parameter whose scalars depend on norms."""

    @property
    def measured(self) -> Measured | None: ...

    def finish(self, row: Scalars, norms: Scalars) -> Scalars:
        """The scalars of this step from those that depend on no norm."""


class Asked:
    """One step of one array; `kept` are the rule's scalars, after the step once it has been asked."""

    def __init__(self, measured: Measured, size: int, t: int, kept: Scalars) -> None:
        self.measured, self.size, self.t, self.kept = measured, size, t, kept

    def finish(self, row: Scalars, norms: Scalars) -> Scalars:
        if self.measured.keep is not None:
            self.kept = self.measured.keep(norms, self.t, *self.kept)
        if not all(map(math.isfinite, (*norms, *self.kept))):  # the whole array becomes NaN, for all to see
            return (math.nan, *row[1:])
        return self.measured.finish(row, norms, self.size, *self.kept)


class Measuring:
    """The measures of all parameters of an `Update`, each of which has a run of its own."""

    def __init__(self, backend: Backend, runs: Runs, asking: Sequence[Asking], threads: int) -> None:
        self._backend, self._runs, self._threads = backend, asking, threads
        kernels, _, members = runs
        self._single = all(member.dtype == np.float32 for member in members)
        self._rounds: list[tuple[list[int], NativeMeasure | None]] = []
        for k in range(max(len(self._measures(i)) for i in range(len(asking)))):
            chosen = [i for i in range(len(asking)) if k < len(self._measures(i))]
            these = Runs([kernels[i] for i in chosen], range(len(chosen)), [members[i] for i in chosen])
            native = backend.measure_plan(these, [self._measures(i)[k].kernel for i in chosen], threads)
            self._rounds.append((chosen, native))
        counts = [len(kernel.rule.states) for kernel in kernels]
        ends = np.cumsum(counts).tolist()
        self._states = [range(end - count, end) for end, count in zip(ends, counts, strict=True)]

    def _measures(self, i: int) -> Sequence[Any]:
        measured = self._runs[i].measured
        return () if measured is None else measured.measures

    def natively(self, params: Arrays, grads: Arrays, states: Arrays, rows: ScalarRows) -> ScalarRows | None:
        """`rows` with what the norms make of them, by native calls; None if the arrays need another way."""
        norms: list[Scalars] = [()] * len(rows)
        for k, (chosen, native) in enumerate(self._rounds):
            if native is None:
                return None
            own: _Lists = params, grads, states
            if len(chosen) < len(rows):
                own = (
                    tuple(params[i] for i in chosen),
                    tuple(grads[i] for i in chosen),
                    tuple(states[j] for i in chosen for j in self._states[i]),
                )
            asked = tuple(self._measures(i)[k].scalars(rows[i]) for i in chosen)
            first = native(*own, asked, 1.0)
            if first is None:
                return None
            sums = partial(_again, native, own, asked, first)
            self._add(norms, k, chosen, norms_from_squares(sums, self._single))
        return self._finished(range(len(rows)), rows, norms)

    def prepare(self, arrays: Sequence[Arrays], present: Sequence[int]) -> Callable[[ScalarRows], ScalarRows]:
        """The same for arrays as kernels take them, of the parameters that are `present`; a row for each."""
        rounds: list[tuple[int, list[int], BlockMeasures]] = []
        places = {i: place for place, i in enumerate(present)}
        for k, (chosen, _) in enumerate(self._rounds):
            here = [i for i in chosen if i in places]
            calls = [KernelCall(self._measures(i)[k].kernel, [arrays[places[i]]]) for i in here]
            rounds.append((k, here, self._backend.prepare_measures(calls, self._threads)))

        def run(rows: ScalarRows) -> ScalarRows:
            norms: list[Scalars] = [()] * len(self._runs)
            for k, here, measure in rounds:
                asked = tuple(self._measures(i)[k].scalars(rows[places[i]]) for i in here)
                sums = partial(_totals, measure, asked)
                self._add(norms, k, here, norms_from_squares(sums, self._single))
            return self._finished(present, rows, norms)

        return run

    def _add(self, norms: list[Scalars], k: int, chosen: Sequence[int], found: list[float]) -> None:
        """Put what was found behind the norms of each parameter."""
        rest = iter(found)
        for i in chosen:
            norms[i] += tuple(next(rest) for _ in range(self._measures(i)[k].kernel.rule.terms))

    def _finished(self, present: Sequence[int], rows: ScalarRows, norms: list[Scalars]) -> ScalarRows:
        return tuple(
            row if self._runs[i].measured is None else self._runs[i].finish(row, norms[i])
            for i, row in zip(present, rows, strict=True)
        )


def _again(native: NativeMeasure, arrays: _Lists, rows: ScalarRows, first: list[float], k: float) -> list[float]:
    """The sums for a factor; those for 1 are there."""
    found = first if k == 1.0 else native(*arrays, rows, k)
    assert found is not None
    return found


def _totals(measure: BlockMeasures, rows: ScalarRows, k: float) -> list[float]:
    return [tree_sum(blocks) for blocks in measure(rows, k)]
