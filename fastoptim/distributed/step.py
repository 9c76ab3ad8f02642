"""Carries out the step of a sharded optimizer: checks, the norm over all ranks, kernels beside communication."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from ..arrays import checks, layout
from ..arrays.storage import compute_dtype
from ..backends import StepInfo
from ..optimizers.update import clipped_scale
from ..rules.norm import NORM_BLOCK, norm_from_squares
from ..rules.reference import tree_sum
from .agreement import check_updates
from .partition import Part
from .slices import Array, Slices, nothing, step_piece


class Steps(Slices):
    """Check and take the steps of a `ShardedOptimizer`."""

    def _checked(self, grads: Any) -> tuple[list[Array], list[Array | None], list[tuple[Array, Array]]]:
        """Flat parameters and gradients after every check that a step makes, and which parameters are copies."""
        params, leaves, backend = self._parameters(), self._whole._model.leaves(grads), self._whole._backend
        written: list[checks.Span] = []
        read: list[checks.Span] = []
        checked = []
        for (name, p), g in zip(params, leaves, strict=True):
            written.append(backend.span(f"parameter {name!r}", p))
            if g is not None:
                computed = compute_dtype(p.dtype)
                dtype = computed if getattr(g, "dtype", None) == computed else p.dtype
                g = checks.check_companion(name, "gradient", g, p.shape, dtype)
                overwritten = self._options["overwrite_grads"] and g.flags.writeable and dtype == computed
                (written if overwritten else read).append(backend.span(f"gradient of parameter {name!r}", g))
            checked.append(g)
        for _, entry in self._entries():
            written += [backend.span("a state", x) for key, x in entry.items() if key in self._slots]
        backend.check_disjoint(written, read)
        if self.backend != "c":
            checks.check_arithmetic()
        flat = [layout.flat(np.asarray(p)) for _, p in params]
        copies = [(p, copy) for (_, p), copy in zip(params, flat, strict=True) if not np.may_share_memory(p, copy)]
        return flat, [None if g is None else layout.flat(np.asarray(g)) for g in checked], copies

    def _prepare(self, params: Sequence[Array]) -> None:
        """Bring the pieces up to date with the groups, and allocate whatever the step needs."""
        check_updates(self._whole)
        for bucket, piece in zip(self._buckets, self._pieces, strict=True):
            if piece is None:
                continue
            target, source = piece.optimizer.param_groups[0], self._whole.param_groups[bucket.group]
            for key in self._whole._names:
                if target[key] is not source[key]:
                    target[key] = source[key]
            target["params"][:] = [params[part.parameter][part.start : part.stop] for part in piece.parts]
            plan = piece.optimizer._ready_plan()
            plan.update.check_scalars(plan.rows())

    def _transaction(
        self,
        params: list[Array],
        grads: list[Array | None],
        present: Array,
        scale: float,
        limit: float | None,
        skip: bool,
    ) -> StepInfo:
        """The step itself, after all checks."""
        channel, here = self._channel, present.tolist()
        wants_norm = limit is not None or skip
        places = self._places(grads, here) if wants_norm and self._options["overwrite_grads"] else None

        def start_reduce(b: int, buffers: Any) -> None:
            channel.start_reduce(self._buckets[b], grads, buffers)

        def reduced(b: int, buffers: Any) -> Sequence[Array | None]:
            own = self._split(b, channel.finish_reduce(self._buckets[b], buffers))
            if places is None:
                return own
            for place, g in zip(places[b], own, strict=True):
                if place is not None:
                    place[...] = g
            return places[b]

        begin, gradients = start_reduce, reduced  # a pipeline's first stage, and what its second finds there

        def sum_of_squares(k: float) -> float:
            nonlocal begin, gradients
            sums: list[Array] = []

            def add_squares(b: int, buffers: Any) -> None:
                sums.append(self._block_sums(b, gradients(b, buffers), here, scale, k))

            self._pipeline(begin, add_squares, nothing)
            if places is not None:
                begin, gradients = nothing, lambda b, buffers: places[b]
            return self._sum_over_ranks(np.concatenate(sums), present)

        norm = None
        if wants_norm:
            norm = norm_from_squares(sum_of_squares)
            if skip and not math.isfinite(norm):
                return StepInfo(False, norm)
        if not any(here):
            return StepInfo(False, norm)
        scale = clipped_scale(scale, norm, limit, {compute_dtype(p.dtype) for p in params})

        def apply_gather(b: int, buffers: Any) -> None:
            own, bucket, piece = gradients(b, buffers), self._buckets[b], self._pieces[b]
            if piece is not None:
                leaves = tuple(g if here[part.parameter] else None for part, g in zip(piece.parts, own, strict=True))
                step_piece(piece.optimizer, leaves, scale)
            parts = [params[number][start:stop] for number, start, stop in bucket.parts[channel.rank]]
            channel.start_gather(bucket, parts, buffers)

        def finish_gather(b: int, buffers: Any) -> None:
            channel.finish_gather(self._buckets[b], params, buffers)

        self._pipeline(begin, apply_gather, finish_gather)
        return StepInfo(True, norm)

    # --- the norm

    def _places(self, grads: Sequence[Array | None], here: Sequence[bool]) -> list[list[Array | None]]:
        """Where this rank's slice of the reduced gradients waits for the norm, for `overwrite_grads`; by buckets."""

        def place(part: Part, dtype: np.dtype) -> Array | None:
            g = grads[part.parameter]
            if g is not None and g.flags.writeable and g.dtype == dtype:
                return g[part.start : part.stop]
            return np.empty(part.size, dtype) if here[part.parameter] else None

        rank = self._channel.rank
        return [[place(part, compute_dtype(b.dtype)) for part in b.parts[rank]] for b in self._buckets]

    def _block_sums(self, b: int, own: Sequence[Array | None], here: Sequence[bool], scale: float, k: float) -> Array:
        parts = self._buckets[b].parts[self._channel.rank]
        counted = [g for part, g in zip(parts, own, strict=True) if here[part.parameter]]
        return self._whole._backend.block_sums(counted, scale, k, self.threads) if counted else np.zeros(0)

    def _sum_over_ranks(self, own: Array, present: Array) -> float:
        """The sum of all ranks' block sums by the fixed tree, which runs over the parameters in their order."""
        blocks = [-(-math.prod(q.shape) // NORM_BLOCK) for q in self._whole._model.parameters]
        first = list(accumulate((n if here else 0 for n, here in zip(blocks, present, strict=True)), initial=0))
        positions = []
        for rank in range(self._channel.size):
            parts = [part for bucket in self._buckets for part in bucket.parts[rank] if present[part.parameter]]
            positions.append([first[part.parameter] + np.arange(*part.over(NORM_BLOCK)[1:]) for part in parts])
        counts = [sum(x.size for x in found) for found in positions]
        ordered = np.empty(first[-1])
        ordered[np.concatenate([np.zeros(0, int), *(x for found in positions for x in found)])] = (
            self._channel.gather_floats(own, counts)
        )
        return tree_sum(ordered)
