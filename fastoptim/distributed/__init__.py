"""Optimizer states divided among the processes of an MPI job: ZeRO stage 1 for NumPy models.

Each rank owns one contiguous slice of the flat parameters of every group and dtype, and only that slice's states. A
step adds up the gradients of all ranks, each rank getting the sum of its slice (reduce-scatter); updates the slice; and
sends it to all others (all-gather). All three go bucket by bucket, so that the communication of one bucket runs beside
the kernel of another. See docs/scale.md for when this pays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import rules
from ..arrays import checks, layout
from ..backends import StepInfo
from ..common.signals import deferred_signals
from ..common.threads import threads_from_environment
from ..common.validation import step_options
from ..optimizers.base import Optimizer
from ..optimizers.groups import ParamGroups
from ..rules.norm import NORM_BLOCK
from ..rules.reference import tree_sum
from .agreement import description, hyper_texts, options, plain_optimizer, remove_last_group
from .partition import Part
from .slices import Array, nothing, plan_of
from .states import States

__all__ = ["ShardedOptimizer"]


# What is the plain optimizer's own where there is one rank.
_METHODS = ("step", "add_param_group", "state_dict", "load_state_dict", "save", "load")


class ShardedOptimizer(States):
    """Divide an optimizer's states among the ranks of an MPI communicator.

    Every rank holds all parameters, calls every method together with the others, and hands `step` the gradients of its
    own share of the data. Afterwards all ranks have the same parameters: those that one process would have got from the
    reduced gradients, bit for bit.

    Parameters
    ----------
    kind : type
        `fastoptim.SGD`, `Adam` or `AdamW`.
    params : array, sequence, mapping, nesting of these, or list of group dicts
        As for `kind`, NumPy arrays; the same on every rank, values included.
    comm : mpi4py.MPI.Intracomm, optional
        Default: all processes of the job.
    reduction : {"mean", "sum"}
        What is made of the ranks' gradients. "mean" divides their sum by the number of ranks.
    deterministic : bool
        Add up gradients in the order of ranks, so that the result does not depend on the MPI library's algorithm.
        Slower, see docs/scale.md.
    buffer_bytes : int
        Size of all buffers that gradients and parameters pass through, of the three buckets that are on their way at a
        time; buckets are made to fit, but hold at least one or two blocks of 4096 elements of every rank.
    overwrite_grads : bool
        With `max_norm` or `skip_nonfinite` no parameter may change before the last gradient has arrived. By default
        the gradients are therefore added up twice: for their norm, of which nothing but sums is kept, and again for the
        update (and a third time where squares overflow float64 or vanish in it). If this is True, they are added up
        once, and this rank's slice of the result waits in the arrays that were given to `step`, whose contents are then
        undefined and which must not overlap each other; where one is None or read-only, in memory of its own.
    backend, threads, and all others
        As for `kind`. `threads` is by default this rank's share of the host's cores.

    Attributes
    ----------
    comm : mpi4py.MPI.Intracomm
        As given.
    param_groups, lr, backend, hyperparameters
        As for `kind`: groups hold whole parameters; hyperparameters are re-read at every step, the same on all ranks.

    Raises
    ------
    TypeError, ValueError
        As for `kind`; and on every rank if the ranks' parameters, hyperparameters or versions differ.
    RuntimeError
        Another rank has raised.
    ImportError
        mpi4py is missing.

    Notes
    -----
    With one rank this is the plain optimizer and costs no more.

    The memory of a step is that of parameters, gradients, this rank's slice of the states and `buffer_bytes`.

    Gradients that are added up twice must come to the same bits, if the norm is to be exactly that of the gradients
    that are applied. With `deterministic` they do. Else it is up to the MPI library: the standard recommends it, for
    the same arguments in the same order. Whatever it does, all ranks take the same norm and have the same parameters.

    With several ranks, an exception that nobody catches ends the whole job once its traceback was printed (by
    ``sys.excepthook`` and ``MPI_Abort``); otherwise the other ranks would wait for ever. Leave by an exception, not by
    ``sys.exit``, where the others are not told.

    References
    ----------
    Rajbhandari et al., "ZeRO: memory optimizations toward training trillion parameter models", SC 2020 (stage 1).

    Examples
    --------
    Under ``mpiexec -n 4 python train.py`` each process runs this:

    >>> import numpy as np, fastoptim as fo
    >>> params = {"w": np.ones(8, np.float32)}
    >>> opt = fo.distributed.ShardedOptimizer(fo.Adam, params, lr=0.1)
    >>> opt.step({"w": np.ones(8, np.float32)}, max_norm=1.0).applied
    True
    >>> params["w"][0].round(4)
    np.float32(0.9)
    """

    param_groups: ParamGroups
    lr: float
    backend: str

    def __init__(
        self,
        kind: type[Optimizer],
        params: Any,
        *,
        comm: Any = None,
        reduction: str = "mean",
        deterministic: bool = False,
        buffer_bytes: int = 1 << 25,
        overwrite_grads: bool = False,
        backend: str = "auto",
        threads: int | None = None,
        **hyper: Any,
    ):
        try:
            from . import channel
        except (ImportError, RuntimeError) as missing:  # mpi4py without an MPI library raises the latter
            raise ImportError(
                f'ShardedOptimizer needs mpi4py and an MPI library: pip install "fastoptim[mpi]" ({missing})'
            ) from missing
        self.comm = channel.communicator(comm)
        if self.comm.size == 1:
            self._whole = plain_optimizer(kind, params, backend, threads, hyper)
            options(reduction, deterministic, buffer_bytes, overwrite_grads)
            self.__dict__ |= {name: getattr(self._whole, name) for name in _METHODS}
            return
        channel.end_job_on_error()
        error: Exception | None = None
        described: dict[str, str] = {}
        self._channel = channel.Channel(self.comm)
        share = self._channel.share_of_cores()  # asked of all ranks, whichever of them need it
        try:
            if threads is None and threads_from_environment() is None:
                threads = share
            self._whole = plain_optimizer(kind, params, backend, threads, hyper)
            self._options = options(reduction, deterministic, buffer_bytes, overwrite_grads)
            described = description(self._whole, self._options)
        except Exception as exception:
            error = exception
        self._channel.agree(error, "building the optimizer", described)
        self._channel.mean, self._channel.deterministic = reduction == "mean", self._options["deterministic"]
        self._buckets, self._pieces = [], []
        self._add_buckets(0)

    # --- the interface of a plain optimizer

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name.startswith("_"):
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            return getattr(self._whole, name)

    def __setattr__(self, name: str, value: Any) -> None:
        own = name.startswith("_") or name == "comm" or hasattr(type(self), name)
        if own:
            object.__setattr__(self, name, value)
        else:
            setattr(self._whole, name, value)

    @property
    def threads(self) -> int:
        """Number of threads that a step of this rank may use."""
        return self._whole.threads

    @threads.setter
    def threads(self, value: int | None) -> None:
        self._whole.threads = value
        if self.comm.size > 1:
            for piece in self._own():
                piece.optimizer.threads = self._whole.threads

    @property
    def state(self) -> Mapping[str, Any]:
        """Name of a parameter -> its states, as for `Optimizer`; with several ranks a list of this rank's parts of it.

        A part is ``{"start", "stop", "step", name of a state: live 1-d array, ...}``, elements `start` to `stop` of the
        parameter in C order.
        """
        if self.comm.size == 1:
            return self._whole.state
        names = self._names
        result: dict[str, list] = {name: [] for name in names}
        for part, entry in self._entries():
            result[names[part.parameter]].append({"start": part.start, "stop": part.stop, **entry})
        return MappingProxyType(result)

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """As `Optimizer.add_param_group`, on all ranks together."""
        whole = self._whole
        with self._locked(), deferred_signals():
            error: Exception | None = None
            described: dict[str, str] = {}
            grouped, first = whole._grouped, len(whole.param_groups)
            try:
                whole._append_group(group)
                described = description(whole, self._options)
            except Exception as exception:
                error = exception
            try:
                self._channel.agree(error, "adding a parameter group", described)
            except Exception:
                if error is None:
                    remove_last_group(whole, grouped)
                raise
            self._add_buckets(first)

    # --- the step

    def step(
        self,
        grads: Any,
        grad_scale: float = 1.0,
        max_norm: float | None = None,
        skip_nonfinite: bool = False,
    ) -> StepInfo:
        """Update the parameters in place, on all ranks together.

        Arguments, result and errors are those of `Optimizer.step`; the norm is that of the reduced gradients, and all
        ranks skip or none does. A parameter is skipped if its gradient is ``None`` on every rank; where only some have
        one, ``None`` counts as zeros. Options and hyperparameters must be the same on all ranks. An error on one rank
        raises on all of them, before anything was changed.
        """
        with self._locked():
            error: Exception | None = None
            said: dict[str, str] = {}
            params: list[Array] = []
            absent = np.zeros(len(self._whole._parameters), np.int64)
            try:
                scale, limit, skip = step_options(grad_scale, max_norm, skip_nonfinite)
                said = {
                    "grad_scale": repr(scale),
                    "max_norm": repr(limit),
                    "skip_nonfinite": repr(skip),
                    **hyper_texts(self._whole),
                }
                params, flats, copies = self._checked(grads)
                absent[:] = [g is None for g in flats]
                self._prepare(params)
            except Exception as exception:
                error = exception
            present = self._channel.agree(error, "this step", said, absent) == 0
            with deferred_signals(), self._whole._backend.arithmetic():  # MPI's sums too
                info = self._transaction(params, flats, present, scale, limit, skip)
                if info.applied:
                    for target, copy in copies:
                        target[...] = copy.reshape(target.shape)
            return info

    def _checked(self, grads: Any) -> tuple[list[Array], list[Array | None], list[tuple[Array, Array]]]:
        """Flat parameters and gradients after every check that a step makes, and which parameters are copies."""
        params, leaves = self._parameters(), self._leaves(grads)
        written: list[checks.Span] = []
        read: list[checks.Span] = []
        checked = []
        for (name, p), g in zip(params, leaves, strict=True):
            written.append(checks.span(f"parameter {name!r}", p))
            if g is not None:
                g = checks.check_companion(name, "gradient", g, p.shape, p.dtype)
                overwritten = self._options["overwrite_grads"] and g.flags.writeable
                (written if overwritten else read).append(checks.span(f"gradient of parameter {name!r}", g))
            checked.append(g)
        for _, entry in self._entries():
            written += [checks.span("a state", x) for key, x in entry.items() if key != "step"]
        checks.check_disjoint(written, read)
        if self.backend != "c":
            checks.check_subnormals()
        flat = [layout.flat(np.asarray(p)) for _, p in params]
        copies = [(p, copy) for (_, p), copy in zip(params, flat, strict=True) if not np.may_share_memory(p, copy)]
        return flat, [None if g is None else layout.flat(np.asarray(g)) for g in checked], copies

    def _leaves(self, grads: Any) -> tuple[Any, ...]:
        whole = self._whole
        return whole._group_leaves(grads) if whole._grouped else whole._structures[0].leaves(grads)

    def _prepare(self, params: Sequence[Array]) -> None:
        """Bring the pieces up to date with the groups, and allocate whatever the step needs."""
        for group in self._whole.param_groups:
            type(self._whole)._policy(*self._whole._read(group))
        for bucket, piece in zip(self._buckets, self._pieces, strict=True):
            if piece is None:
                continue
            target, source = piece.optimizer.param_groups[0], self._whole.param_groups[bucket.group]
            for key in self._whole._names:
                if target[key] is not source[key]:
                    target[key] = source[key]
            target["params"][:] = [params[part.parameter][part.start : part.stop] for part in piece.parts]
            plan_of(piece.optimizer)

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
            norm = rules.norm_from_squares(sum_of_squares)
            if skip and not math.isfinite(norm):
                return StepInfo(False, norm)
            scale *= rules.clip_factor(norm, limit)

        def apply_gather(b: int, buffers: Any) -> None:
            own, bucket, piece = gradients(b, buffers), self._buckets[b], self._pieces[b]
            if piece is not None:
                leaves = tuple(g if here[part.parameter] else None for part, g in zip(piece.parts, own, strict=True))
                piece.optimizer._step_checked(plan_of(piece.optimizer), leaves, scale, None, False)
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
            if g is not None and g.flags.writeable:
                return g[part.start : part.stop]
            return np.empty(part.size, dtype) if here[part.parameter] else None

        return [[place(part, bucket.dtype) for part in bucket.parts[self._channel.rank]] for bucket in self._buckets]

    def _block_sums(self, b: int, own: Sequence[Array | None], here: Sequence[bool], scale: float, k: float) -> Array:
        parts = self._buckets[b].parts[self._channel.rank]
        counted = [g for part, g in zip(parts, own, strict=True) if here[part.parameter]]
        return self._whole._backend.block_sums(counted, scale, k, self.threads) if counted else np.zeros(0)

    def _sum_over_ranks(self, own: Array, present: Array) -> float:
        """The sum of all ranks' block sums by the fixed tree, which runs over the parameters in their order."""
        blocks = [-(-math.prod(q.shape) // NORM_BLOCK) for q in self._whole._parameters]
        first = list(accumulate((n if here else 0 for n, here in zip(blocks, present, strict=True)), initial=0))
        positions = []
        for rank in range(self._channel.size):
            parts = [part for bucket in self._buckets for part in bucket.parts[rank] if present[part.parameter]]
            positions.append([first[part.parameter] + np.arange(part.blocks.start, part.blocks.stop) for part in parts])
        counts = [sum(x.size for x in found) for found in positions]
        ordered = np.empty(first[-1])
        ordered[np.concatenate([np.zeros(0, int), *(x for found in positions for x in found)])] = (
            self._channel.gather_floats(own, counts)
        )
        return tree_sum(ordered)

    def __repr__(self) -> str:
        return f"<ShardedOptimizer: rank {self.comm.rank} of {self.comm.size}, {self._whole!r}>"
