"""Steps in which some gradients are `Rows`: exact where the rule allows it, lazy where that is asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from .. import rules
from ..arrays.rows import Rows, TableRows, coalesced, touched_blocks
from ..backends.base import Backend, KernelCall, Scalars
from ..rules import reference
from ..rules.norm import NORM_BLOCK
from ..rules.table import Kernel

# Rules that leave a row without a gradient as it is, and for which coefficients: only they are exact.
EXACT: dict[str, Callable[..., bool]] = {
    "sgd": math.isfinite,
    "rmsprop": lambda a, b, er, eps, c: a == b == 1.0 and er + eps > 0.0 and math.isfinite(c),  # Adagrad
}


def check_rule(name: str, given: Rows, kernel: Kernel, scalars: Scalars, lazy: bool) -> None:
    """ValueError unless a step of `kernel` with Rows means something."""
    rule, what = kernel.rule, f"gradient of parameter {name!r}"
    if kernel.decay != "none":
        raise ValueError(f"{what}: weight decay acts on every row, and Rows has but some: set weight_decay=0")
    if not (lazy or given.lazy) and not (rule.name in EXACT and EXACT[rule.name](*scalars[2:])):
        own = "a rule of your own" if rule.own else f"the rule {rule.name!r}"
        raise ValueError(
            f"{what}: with {own} the dense step changes rows without a gradient too, so that Rows would be another "
            "algorithm: ask for it, Rows(indices, values, lazy=True) or fo.SparseAdam, which leaves those rows as they "
            "are; or hand over rows.to_dense(len(p))"
        )


class SparseStep:
    """One step, checked and prepared before anything is written.

    Parameters
    ----------
    backend : Backend
    kernels : sequence of Kernel
        One for each run.
    run_of : sequence of int
        The run of each parameter.
    checked : list of (name, parameter, gradient, states)
        Gradients are arrays, None or `Rows`.
    scalars : list of tuples
        Those of each run.
    lazy : bool
        Whether Rows are lazy without saying so.
    threads : int
    """

    def __init__(
        self,
        backend: Backend,
        kernels: Sequence[Kernel],
        run_of: Sequence[int],
        checked: Sequence[tuple[str, Any, Any, tuple[Any, ...]]],
        scalars: list[Scalars],
        lazy: bool,
        threads: int,
    ):
        self._backend, self._kernels, self._run_of, self._threads = backend, kernels, run_of, threads
        self._checked, self._lazy = checked, lazy
        self._tables: list[TableRows | None] = []
        for (name, p, g, own), run in zip(checked, run_of, strict=True):
            if isinstance(g, Rows):
                check_rule(name, g, kernels[run], scalars[run], lazy)
                if any(state.dtype != p.dtype for state in own):
                    raise TypeError(f"gradient of parameter {name!r}: Rows needs states of the parameter's dtype")
                self._tables.append(coalesced(name, g, p.shape, p.dtype))
            else:
                self._tables.append(None)

    @property
    def present(self) -> list[bool]:
        return [g is not None for _, _, g, _ in self._checked]

    def norm(self, grad_scale: float) -> float:
        """Bit-identical to that of the dense gradients: blocks without a gradient add zero."""
        backend, threads = self._backend, self._threads
        parts: list[tuple[int, Any, Any]] = []  # blocks of an array, which of them there are (None: all), contents
        for (_, p, g, _), table in zip(self._checked, self._tables, strict=True):
            if g is not None:
                numbers, contents = (None, backend.flat(g)) if table is None else touched_blocks(table, p.shape)
                parts.append((-(-p.size // NORM_BLOCK), numbers, contents))

        def sum_squares(k: float) -> float:
            found = backend.block_sums([contents for _, _, contents in parts], grad_scale, k, threads)
            sums, start = [np.zeros(0)], 0
            for count, numbers, _ in parts:
                stop = start + (count if numbers is None else len(numbers))
                own = found[start:stop]
                if numbers is not None:
                    own = np.zeros(count)
                    own[numbers] = found[start:stop]
                sums.append(own)
                start = stop
            return reference.tree_sum(np.concatenate(sums))

        return rules.norm_from_squares(sum_squares)

    def prepare(self, scalars: list[Scalars]) -> Callable[[], None]:
        """What does the step when it is called; all memory is there then."""
        backend = self._backend
        jobs: list[Callable[[], None]] = []
        for (_, p, g, own), table, run in zip(self._checked, self._tables, self._run_of, strict=True):
            kernel, row = self._kernels[run], scalars[run]
            if g is None:
                continue
            if table is not None:
                # Zero times a scale below zero, or NaN, is -0 or NaN, which the dense step carries into every row.
                if g.lazy or self._lazy or row[0] >= 0.0:
                    jobs.append(backend.prepare_rows(kernel, p, own, table, row))
                    continue
                g = np.zeros(p.shape, p.dtype)
                g[table.rows] = table.values
            form = backend.to_contiguous(p, g, own)
            launch = backend.prepare([KernelCall(kernel, [form.arrays])], self._threads)
            jobs += [partial(launch, [row]), form.copy_back]

        def run_all() -> None:
            for job in jobs:
                job()

        return run_all
