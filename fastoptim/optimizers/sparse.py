"""Steps in which some gradients are `Rows`: exact where the rule allows it, lazy where that is asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from ..arrays import layout
from ..arrays.rows import Rows, coalesced, touched_blocks
from ..arrays.storage import compute_dtype
from ..backends.base import Backend, KernelCall, Member
from ..rules import reference
from ..rules.codecs import BLOCK, Stored
from ..rules.norm import NORM_BLOCK, norm_from_squares
from ..rules.table import Kernel, Rule, Scalars


def _stays_still(rule: Rule, coefficients: Sequence[float]) -> bool:
    """Whether a step with these (finite) coefficients leaves an element without a gradient as it is."""
    if rule.still is None:
        return False
    ones, above = ([coefficients[rule.coefficients.index(name)] for name in names] for names in rule.still)
    return all(x == 1.0 for x in ones) and (not above or sum(above) > 0.0)


def check_rule(member: Member, given: Rows, kernel: Kernel, scalars: Scalars, lazy: bool) -> None:
    """ValueError unless a step of `kernel` with Rows means something."""
    name, shape, _, stored = member
    rule, what = kernel.rule, f"gradient of parameter {name!r}"
    if kernel.decay != "none":
        raise ValueError(
            f"{what}: weight decay acts on every row, and Rows hold only some: set weight_decay=0, or, where others "
            f"decay, fo.groups(params, {{{name!r}: {{'weight_decay': 0.0}}}})"
        )
    scaled, length = stored is not None and stored.scales > 0, math.prod(shape[1:])
    if scaled and 0 not in shape and length % BLOCK:
        raise ValueError(
            f"{what}: float8 states have one scale for {BLOCK} elements, which rows of {length} "
            f"would share: pad rows to a multiple of {BLOCK}, or use state_dtype='bfloat16'"
        )
    if lazy or given.lazy:
        return
    if scaled or not _stays_still(rule, scalars[2:]):
        own = "a rule of your own" if rule.own else f"the rule {rule.name!r}"
        raise ValueError(
            f"{what}: with {own} {'and float8 states ' if scaled else ''}the dense step changes rows without a "
            "gradient too, so that Rows would be another algorithm: ask for it, Rows(indices, values, lazy=True) or "
            "fo.SparseAdam, which leaves those rows as they are; or hand over rows.to_dense(len(p))"
        )


def touches_rows_alone(given: Rows, scale: float, lazy: bool) -> bool:
    """Whether a step leaves other rows as they are.

    Zero times a scale below zero, that is -0.0, or NaN is -0 or NaN, which an exact step carries into every row.
    """
    return given.lazy or lazy or (scale >= 0.0 and math.copysign(1.0, scale) > 0.0)


class SparseStep:
    """One step, checked and prepared before anything is written, where no native plan takes it.

    `checked` has (name, parameter, gradient, states, how they are stored) of each parameter; gradients are arrays, None
    or `Rows` for which `check_rule` was asked. If `lazy`, Rows are lazy without saying so.
    """

    def __init__(
        self,
        backend: Backend,
        kernels: Sequence[Kernel],
        run_of: Sequence[int],
        checked: Sequence[tuple[str, Any, Any, tuple[Any, ...], Stored | None]],
        lazy: bool,
        threads: int,
    ):
        self._backend, self._kernels, self._run_of, self._threads = backend, kernels, run_of, threads
        self._checked, self._lazy = checked, lazy
        self._tables = [
            coalesced(name, g, p.shape, compute_dtype(p.dtype)) if isinstance(g, Rows) else None
            for name, p, g, _, _ in checked
        ]

    @property
    def present(self) -> list[bool]:
        return [g is not None for _, _, g, _, _ in self._checked]

    def norm(self, grad_scale: float) -> float:
        """Bit-identical to that of the dense gradients: blocks without a gradient add zero."""
        backend, threads = self._backend, self._threads
        parts: list[tuple[int, Any, Any]] = []  # blocks of an array, which of them there are (None: all), contents
        for (_, p, g, _, _), table in zip(self._checked, self._tables, strict=True):
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

        return norm_from_squares(sum_squares)

    def prepare(self, scalars: Sequence[Scalars]) -> Callable[[], None]:
        """What does the step when it is called; all memory is there then."""
        backend = self._backend
        jobs: list[Callable[[], None]] = []
        for (_, p, g, own, stored), table, run in zip(self._checked, self._tables, self._run_of, strict=True):
            kernel, row = self._kernels[run], scalars[run]
            if g is None:
                continue
            if table is not None:
                if touches_rows_alone(g, row[0], self._lazy):
                    jobs.append(backend.prepare_rows(kernel, p, own, table, row, stored))
                    continue
                g = np.zeros(p.shape, compute_dtype(p.dtype))
                g[table.rows] = table.values
            form = backend.to_contiguous(p, g, own) if stored is None else layout.to_c_order(p, g, own)
            launch = backend.prepare([KernelCall(kernel, [form.arrays], [stored])], self._threads)
            jobs += [partial(launch, [row]), form.copy_back]

        def run_all() -> None:
            for job in jobs:
                job()

        return run_all
