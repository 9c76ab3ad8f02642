"""Optimizer states divided among the processes of an MPI job: ZeRO stage 1 for NumPy models.

Each rank owns one contiguous slice of the flat parameters of every group and dtype, and only that slice's states. A
step adds up the gradients of all ranks, each rank getting the sum of its slice (reduce-scatter); updates the slice; and
sends it to all others (all-gather). All three go chunk by chunk, so that the communication of one chunk runs beside
the kernel of another. See docs/scale.md for when this pays.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from .. import __version__, arrays, checkpoint, rules
from ..backends import StepInfo
from ..optimizers import Optimizer, ParamGroups, _interrupts_deferred, choice, flag, step_options
from ..reference import tree_sum
from ..rules import NORM_BLOCK
from ..threads import _from_environment
from .layout import Chunk, Part, chunks, ranges

__all__ = ["ShardedOptimizer"]

Array = np.ndarray
_Stage = Callable[[int, Any], None]

REDUCTIONS = ("mean", "sum")
_IN_FLIGHT = 3  # one chunk's gradients are on their way while the kernel has the next and parameters of a third leave
_SLOTS = tuple(dict.fromkeys(name for rule in rules.RULES.values() for name in rule.states))


class _Piece(NamedTuple):
    """This rank's part of a chunk, and the plain optimizer that steps it."""

    parts: tuple[Part, ...]
    optimizer: Optimizer


class ShardedOptimizer:
    """An optimizer whose states are divided among the ranks of an MPI communicator.

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
        Size of all buffers that gradients and parameters pass through; the chunks are made to fit, but hold at least
        4096 elements of every rank.
    overwrite_grads : bool
        With `max_norm` or `skip_nonfinite` no parameter may change before the last gradient has arrived, so this rank's
        slice of the reduced gradients must be kept: in memory of its own, or, if this is True, in the arrays that were
        given to `step`, whose contents are then undefined.
    backend, threads, and all others
        As for `kind`. `threads` is by default this rank's share of the host's cores.

    Attributes
    ----------
    comm : mpi4py.MPI.Intracomm
        As given.

    Raises
    ------
    TypeError, ValueError
        As for `kind`; and on every rank if the ranks' parameters, hyper-parameters or versions differ.
    RuntimeError
        Another rank has raised.
    ImportError
        mpi4py is missing.

    Notes
    -----
    With one rank this is the plain optimizer and costs no more.

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
        except ImportError as missing:
            raise ImportError(
                f'ShardedOptimizer needs mpi4py and an MPI library: pip install "fastoptim[mpi]" ({missing})'
            ) from missing
        self.comm = channel.communicator(comm)
        if self.comm.size == 1:
            self._whole = _plain(kind, params, backend, threads, hyper)
            _options(reduction, deterministic, buffer_bytes, overwrite_grads)
            self.step = self._whole.step  # type: ignore[method-assign]
            return
        channel.end_job_on_error()
        error: Exception | None = None
        described: dict[str, str] = {}
        self._channel = channel.Channel(self.comm)
        if threads is None and _from_environment() is None:
            threads = self._channel.share_of_cores()
        try:
            self._whole = _plain(kind, params, backend, threads, hyper)
            self._options = _options(reduction, deterministic, buffer_bytes, overwrite_grads)
            described = _description(self._whole, self._options)
        except Exception as exception:
            error = exception
        self._channel.agree(error, "building the optimizer", described)
        self._channel.mean, self._channel.deterministic = reduction == "mean", self._options["deterministic"]
        self._guard = threading.Lock()
        self._chunks: list[Chunk] = []
        self._pieces: list[_Piece | None] = []
        self._kept: list[Array] = []
        self._add_chunks(0)

    # --- the face of a plain optimizer

    @property
    def param_groups(self) -> ParamGroups:
        """The groups, with whole parameters; hyper-parameters are re-read at every step, on all ranks the same."""
        return self._whole.param_groups

    @property
    def lr(self) -> float:
        """Learning rate of all groups, as for `Optimizer`."""
        return self._whole.lr

    @lr.setter
    def lr(self, value: Any) -> None:
        self._whole.lr = value

    @property
    def backend(self) -> str:
        """Name of the backend that steps run on."""
        return self._whole.backend

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
        if self.comm.size == 1:
            whole.add_param_group(group)
            return
        with self._locked():
            error: Exception | None = None
            described: dict[str, str] = {}
            grouped, first = whole._grouped, len(whole.param_groups)
            try:
                whole.add_param_group(group)
                described = _description(whole, self._options)
            except Exception as exception:
                error = exception
            try:
                self._channel.agree(error, "adding a parameter group", described)
            except Exception:
                if error is None:
                    _remove_last_group(whole, grouped)
                raise
            self._add_chunks(first)

    # --- the step

    def step(
        self,
        grads: Any,
        *,
        grad_scale: float = 1.0,
        max_norm: float | None = None,
        skip_nonfinite: bool = False,
    ) -> StepInfo:
        """Update the parameters in place, on all ranks together.

        Arguments, result and errors are those of `Optimizer.step`; the norm is that of the reduced gradients, and all
        ranks skip or none does. A parameter is skipped if its gradient is ``None`` on every rank; where only some have
        one, ``None`` counts as zeros. Options and hyper-parameters must be the same on all ranks. An error on one rank
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
                    **_hyper_texts(self._whole),
                }
                params, flats, copies = self._checked(grads)
                absent[:] = [g is None for g in flats]
                self._prepare(params)
            except Exception as exception:
                error = exception
            present = self._channel.agree(error, "this step", said, absent) == 0
            with _interrupts_deferred():
                info = self._transaction(params, flats, present, scale, limit, skip)
                if info.applied:
                    for target, copy in copies:
                        target[...] = copy.reshape(target.shape)
            return info

    def _checked(self, grads: Any) -> tuple[list[Array], list[Array | None], list[tuple[Array, Array]]]:
        """Flat parameters and gradients after every check that a step makes, and which parameters are copies."""
        params, leaves = self._parameters(), self._leaves(grads)
        written, read, checked = [], [], []
        for (name, p), g in zip(params, leaves, strict=True):
            written.append(arrays.span(f"parameter {name!r}", p))
            if g is not None:
                g = arrays.check_companion(name, "gradient", g, p.shape, p.dtype)
                read.append(arrays.span(f"gradient of parameter {name!r}", g))
            checked.append(g)
        for _, entry in self._entries():
            written += [arrays.span("a state", x) for key, x in entry.items() if key != "step"]
        arrays.check_disjoint(written, read)
        if self.backend != "c":
            arrays.check_subnormals()
        flat = [arrays.flat(np.asarray(p)) for _, p in params]
        copies = [(p, copy) for (_, p), copy in zip(params, flat, strict=True) if not np.may_share_memory(p, copy)]
        return flat, [None if g is None else arrays.flat(np.asarray(g)) for g in checked], copies

    def _parameters(self) -> list[tuple[str, Array]]:
        """Names and arrays of all parameters; TypeError or ValueError if one is not what it was."""
        result = []
        for group in self._whole.param_groups:
            if len(group["params"]) != len(group["names"]):
                raise ValueError(f"params: expected {len(group['names'])} arrays, got {len(group['params'])}")
        for parameter in self._whole._parameters:
            p = parameter.group["params"][parameter.index]
            arrays.check_parameter(parameter.name, p)
            if p.shape != parameter.shape or p.dtype != parameter.dtype:
                raise ValueError(
                    f"parameter {parameter.name!r} was replaced: expected shape {parameter.shape} and dtype "
                    f"{parameter.dtype.name}, got {p.shape} and {p.dtype.name}"
                )
            result.append((parameter.name, p))
        return result

    def _leaves(self, grads: Any) -> tuple[Any, ...]:
        whole = self._whole
        return whole._group_leaves(grads) if whole._grouped else whole._structures[0].leaves(grads)

    def _prepare(self, params: Sequence[Array]) -> None:
        """Bring the pieces up to date with the groups, and allocate whatever the step needs."""
        for group in self._whole.param_groups:
            type(self._whole)._policy(*self._whole._read(group))
        for chunk, piece in zip(self._chunks, self._pieces, strict=True):
            if piece is None:
                continue
            target, source = piece.optimizer.param_groups[0], self._whole.param_groups[chunk.group]
            for key in self._whole._names:
                if target[key] is not source[key]:
                    target[key] = source[key]
            target["params"][:] = [params[part.parameter][part.start : part.stop] for part in piece.parts]
            _plan_of(piece.optimizer)

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

        def start_reduce(c: int, buffers: Any) -> None:
            channel.start_reduce(self._chunks[c], grads, buffers)

        def apply(c: int, own: Sequence[Array]) -> None:
            piece = self._pieces[c]
            if piece is not None:
                leaves = tuple(g if here[part.parameter] else None for part, g in zip(piece.parts, own, strict=True))
                piece.optimizer._step_checked(_plan_of(piece.optimizer), leaves, scale, None, False)

        def start_gather(c: int, buffers: Any) -> None:
            parts = [params[number][start:stop] for number, start, stop in self._chunks[c].parts[channel.rank]]
            channel.start_gather(self._chunks[c], parts, buffers)

        def finish_gather(c: int, buffers: Any) -> None:
            channel.finish_gather(self._chunks[c], params, buffers)

        if limit is None and not skip:

            def reduce_apply_gather(c: int, buffers: Any) -> None:
                apply(c, self._split(c, channel.finish_reduce(self._chunks[c], buffers)))
                start_gather(c, buffers)

            self._pipeline(start_reduce, reduce_apply_gather, finish_gather)
            return StepInfo(True, None)

        kept, sums = self._kept_slice(grads), []

        def keep(c: int, buffers: Any) -> None:
            for target, g in zip(kept[c], self._split(c, channel.finish_reduce(self._chunks[c], buffers)), strict=True):
                target[...] = g
            sums.append(self._block_sums(c, kept[c], here, scale, 1.0))

        def apply_gather(c: int, buffers: Any) -> None:
            apply(c, kept[c])
            start_gather(c, buffers)

        self._pipeline(start_reduce, keep, _nothing)

        def sum_of_squares(k: float) -> float:
            own = sums if k == 1.0 else [self._block_sums(c, kept[c], here, scale, k) for c in range(len(kept))]
            return self._sum_over_ranks(np.concatenate(own), present)

        norm = rules.norm_from_squares(sum_of_squares)
        if skip and not math.isfinite(norm):
            return StepInfo(False, norm)
        scale *= rules.clip_factor(norm, limit)
        self._pipeline(_nothing, apply_gather, finish_gather)
        return StepInfo(True, norm)

    def _pipeline(self, first: _Stage, second: _Stage, third: _Stage) -> None:
        """Lead all chunks through three stages; while one is in its second, its neighbours are on their way."""
        count = len(self._chunks)
        for i in range(count + _IN_FLIGHT):
            if i >= _IN_FLIGHT:
                third(i - _IN_FLIGHT, self._buffers[i % _IN_FLIGHT])
            if i < count:
                first(i, self._buffers[i % _IN_FLIGHT])
            if 0 < i <= count:
                second(i - 1, self._buffers[(i - 1) % _IN_FLIGHT])

    def _split(self, c: int, own: Array) -> list[Array]:
        """This rank's piece of a chunk as its parts."""
        ends = accumulate((part.size for part in self._chunks[c].parts[self._channel.rank]), initial=0)
        return [own[start:stop] for start, stop in pairwise(ends)]

    # --- the norm

    def _kept_slice(self, grads: Sequence[Array | None]) -> list[list[Array]]:
        """Where this rank's slice of the reduced gradients stays until the norm is known; one list per chunk."""
        own = [chunk.parts[self._channel.rank] for chunk in self._chunks]
        if not self._options["overwrite_grads"]:
            if not self._kept:
                counts = [sum(part.size for part in parts) for parts in own]
                self._kept = [np.empty(n, chunk.dtype) for n, chunk in zip(counts, self._chunks, strict=True)]
            return [self._split(c, self._kept[c]) for c in range(len(own))]
        return [
            [
                g[part.start : part.stop]
                if (g := grads[part.parameter]) is not None and g.flags.writeable
                else np.empty(part.size, chunk.dtype)
                for part in parts
            ]
            for parts, chunk in zip(own, self._chunks, strict=True)
        ]

    def _block_sums(self, c: int, own: Sequence[Array], here: Sequence[bool], scale: float, k: float) -> Array:
        parts = self._chunks[c].parts[self._channel.rank]
        counted = [g for part, g in zip(parts, own, strict=True) if here[part.parameter]]
        return self._whole._backend.block_sums(counted, scale, k, self.threads) if counted else np.zeros(0)

    def _sum_over_ranks(self, own: Array, present: Array) -> float:
        """The sum of all ranks' block sums by the fixed tree, which runs over the parameters in their order."""
        blocks = [-(-math.prod(q.shape) // NORM_BLOCK) for q in self._whole._parameters]
        first = list(accumulate((n if here else 0 for n, here in zip(blocks, present, strict=True)), initial=0))
        positions = []
        for rank in range(self._channel.size):
            parts = [part for chunk in self._chunks for part in chunk.parts[rank] if present[part.parameter]]
            positions.append([np.arange(first[part.parameter], first[-1])[part.blocks] for part in parts])
        counts = [sum(x.size for x in found) for found in positions]
        ordered = np.empty(first[-1])
        ordered[np.concatenate([np.zeros(0, int), *(x for found in positions for x in found)])] = (
            self._channel.gather_floats(own, counts)
        )
        return tree_sum(ordered)

    def __repr__(self) -> str:
        return f"<ShardedOptimizer: rank {self.comm.rank} of {self.comm.size}, {self._whole!r}>"

    # --- states, copied, saved and restored

    def state_dict(self) -> dict[str, Any]:
        """What `Optimizer.state_dict` returns, whole, on every rank: for models whose states fit into one process."""
        if self.comm.size == 1:
            return self._whole.state_dict()
        with self._locked():
            parameters = self._whole._parameters
            facts = np.zeros((len(parameters), 1 + len(_SLOTS)), np.int64)  # the step count, and which states there are
            for part, entry in self._entries():
                facts[part.parameter] = [entry["step"], *(slot in entry for slot in _SLOTS)]
            facts = self._channel.most(facts)
            states: list[dict[str, Any]] = [{"step": int(row[0])} for row in facts]
            for k, slot in enumerate(_SLOTS, 1):
                if facts[:, k].any():
                    for i, values in enumerate(self._gathered_states(slot)):
                        if facts[i, k]:
                            states[i][slot] = values.reshape(parameters[i].shape)
            whole = self._whole._snapshot(lambda x: x)
            return whole | {"state": dict(zip(self._names, states, strict=True))}

    def _gathered_states(self, slot: str) -> list[Array]:
        """The state `slot` of all parameters, flat; zeros where there is none."""
        targets = [np.zeros(math.prod(q.shape), q.dtype) for q in self._whole._parameters]
        for part, entry in self._entries():
            if slot in entry:
                targets[part.parameter][part.start : part.stop] = entry[slot]
        self._gather(targets)
        return targets

    def _gather(self, targets: Sequence[Array]) -> None:
        """Fill flat arrays, in which every rank has filled its own slice, with all others' slices."""
        channel = self._channel

        def start(c: int, buffers: Any) -> None:
            own = [targets[number][begin:end] for number, begin, end in self._chunks[c].parts[channel.rank]]
            channel.start_gather(self._chunks[c], own, buffers)

        def finish(c: int, buffers: Any) -> None:
            channel.finish_gather(self._chunks[c], targets, buffers)

        self._pipeline(start, _nothing, finish)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what `state_dict` of this class or of a plain optimizer returned, the same on every rank."""
        if self.comm.size == 1:
            self._whole.load_state_dict(state_dict)
            return
        with self._locked():
            self._restore(lambda: (state_dict, self._cut_states(state_dict)), "loading a state dict")

    def save(self, path: Any) -> None:
        """Write a checkpoint, every rank its slice; any number of ranks, or a plain optimizer, can load it.

        Beside the file at `path`, which is written last and atomically, there is one file per rank,
        ``<name>.<token>.<rank>``: the folder must be one that all ranks and hosts share. The checkpoint before stays as
        ``<name>.previous``, with its slices. If a rank fails, all raise, and the last checkpoint is as it was.
        """
        if self.comm.size == 1:
            self._whole.save(path)
            return
        with self._locked():
            channel, target = self._channel, os.path.realpath(os.fspath(path))
            token = channel.broadcast(secrets.token_hex(8))
            own = checkpoint.slice_path(target, token, channel.rank)
            try:
                self._together("saving a checkpoint", lambda: self._write_slice(own, token))
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(own)
                raise
            self._together("saving a checkpoint", lambda: self._write_manifest(target, token))

    def _write_slice(self, path: str, token: str) -> None:
        params, names = [arrays.flat(np.asarray(p)) for _, p in self._parameters()], self._names
        parts = []
        for part, entry in self._entries():
            contents = {"parameter": params[part.parameter][part.start : part.stop]}
            contents |= {slot: x for slot, x in entry.items() if slot != "step"}
            parts.append([names[part.parameter], part.start, part.stop, entry["step"], contents])
        checkpoint.write(path, {"token": token, "parts": parts}, kind="slice", keep_previous=False)

    def _write_manifest(self, target: str, token: str) -> None:
        """Commit the checkpoint that the slices make up, and remove slices that none needs any more; for rank 0."""
        if self._channel.rank != 0:
            return
        paths = [checkpoint.slice_path(target, token, rank) for rank in range(self._channel.size)]
        missing = [path for path in paths if not os.path.exists(path)]
        if missing:
            raise FileNotFoundError(f"{missing[0]} is not there on rank 0: is the folder one that all hosts share?")
        parameters, names = self._whole._parameters, self._names
        slices = []
        for rank, path in enumerate(paths):
            spans = [[names[i], *span] for i, span in ranges(self._chunks, rank).items()]
            slices.append({"file": os.path.basename(path), "parts": spans})
        tree = {
            "token": token,
            "params": {q.name: {"shape": list(q.shape), "dtype": q.dtype.name} for q in parameters},
            "optimizer": self._whole._snapshot(lambda x: x) | {"state": {}},
            "slices": slices,
        }
        checkpoint.write(target, tree, kind="slices")
        checkpoint.remove_old_slices(target)

    def load(self, path: Any) -> None:
        """Read a checkpoint that any number of ranks, a plain optimizer or `fit` has written.

        Each rank reads the slices that overlap its own. If a rank fails, all raise, and nothing was changed.
        """
        if self.comm.size == 1:
            self._whole.load(path)
            return

        params: Mapping[str, Array] | None = None

        def read() -> tuple[Mapping[str, Any], dict[str, dict[str, Any]]]:
            nonlocal params
            tree = checkpoint.read(path, kind=("slices", "optimizer", "training"))
            with checkpoint.malformed(f"{os.fspath(path)}: the optimizer's part"):
                state_dict = tree["optimizer"]
                if "slices" in tree:
                    own = {self._names[i]: span for i, span in ranges(self._chunks, self._channel.rank).items()}
                    checkpoint.check_slices(tree, {q.name: (q.shape, q.dtype) for q in self._whole._parameters})
                    return state_dict, checkpoint.read_slices(path, tree, own)
                params = tree["params"]
                checkpoint.check_arrays(dict(self._parameters()), params)
                return state_dict, self._cut_states(state_dict)

        with self._locked():
            own = self._restore(read, f"loading {os.fspath(path)}")
            if params is not None:
                for name, p in self._parameters():
                    p[...] = params[name]
            else:
                self._fill_parameters(own)

    def _fill_parameters(self, own: Mapping[str, Mapping[str, Any]]) -> None:
        """Set all parameters from every rank's slice of them."""
        flat = [arrays.flat(np.asarray(p)) for _, p in self._parameters()]
        for i, (start, stop) in ranges(self._chunks, self._channel.rank).items():
            flat[i][start:stop] = own[self._names[i]]["parameter"]
        self._gather(flat)
        for (_, p), x in zip(self._parameters(), flat, strict=True):
            if not np.may_share_memory(p, x):
                p[...] = x.reshape(p.shape)

    def _cut_states(self, state_dict: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """This rank's slice of whole states, by the names of parameters."""
        result = {}
        for i, (start, stop) in ranges(self._chunks, self._channel.rank).items():
            q = self._whole._parameters[i]
            entry = dict(state_dict["state"][q.name])
            result[q.name] = {"step": entry.pop("step")}
            for slot, x in entry.items():
                x = arrays.check_companion(q.name, slot, x, q.shape, q.dtype)
                result[q.name][slot] = arrays.flat(x)[start:stop]
        return result

    def _restore(
        self, read: Callable[[], tuple[Mapping[str, Any], dict[str, dict[str, Any]]]], what: str
    ) -> dict[str, dict[str, Any]]:
        """Take over the hyper-parameters and this rank's states that `read` returns; returns the latter.

        If that fails on one rank, all raise, and nothing was changed.
        """
        whole, mine = self._whole, ranges(self._chunks, self._channel.rank)
        before = whole._snapshot(lambda x: x)
        error: Exception | None = None
        states: list[tuple[Optimizer, Mapping[str, Any]]] = []
        said: dict[str, str] = {}
        own: dict[str, dict[str, Any]] = {}
        try:
            loaded, own = read()
            whole._load({**loaded, "state": {name: {"step": 0} for name in self._names}})
            said = _hyper_texts(whole)
            for chunk, piece in zip(self._chunks, self._pieces, strict=True):
                if piece is not None:
                    states.append((piece.optimizer, self._piece_state(chunk, piece, own, mine)))
        except Exception as exception:
            error = exception
        try:
            self._channel.agree(error, what, said)
        except Exception:
            whole._load(before)
            raise
        for optimizer, state in states:
            optimizer._load(state)
        return own

    def _piece_state(
        self, chunk: Chunk, piece: _Piece, own: Mapping[str, Mapping[str, Any]], mine: Mapping[int, tuple[int, int]]
    ) -> Mapping[str, Any]:
        """The state dict of one piece."""
        group = self._whole.param_groups[chunk.group]
        hyper = {key: group[key] for key in self._whole._names}
        states: dict[str, Any] = {}
        for name, part in zip(piece.optimizer.param_groups[0]["names"], piece.parts, strict=True):
            first = mine[part.parameter][0]
            entry = own[self._names[part.parameter]]
            states[name] = {
                key: x if key == "step" else x[part.start - first : part.stop - first]
                for key, x in entry.items()
                if key != "parameter"
            }
            t = entry["step"]
            if type(t) is not int or not 0 <= t < 2**63 or not set(entry) <= {"step", "parameter", *_SLOTS}:
                raise ValueError(f"state of parameter {self._names[part.parameter]!r}: not a step count and states")
        names = list(piece.optimizer.param_groups[0]["names"])
        return {
            "version": 1,
            "optimizer": type(self._whole).__name__,
            "state": states,
            "param_groups": [{"params": names, **hyper}],
        }

    def _together(self, what: str, work: Callable[[], None]) -> None:
        """Do something on all ranks; if it fails on one, raise on all."""
        error: Exception | None = None
        try:
            work()
        except Exception as exception:
            error = exception
        self._channel.agree(error, what, {})

    # --- pieces

    def _entries(self) -> Iterator[tuple[Part, Mapping[str, Any]]]:
        """This rank's parts with their step counts and states."""
        for piece in self._own():
            yield from zip(piece.parts, piece.optimizer.state.values(), strict=True)

    def _own(self) -> Iterator[_Piece]:
        """This rank's pieces."""
        return (piece for piece in self._pieces if piece is not None)

    @property
    def _names(self) -> list[str]:
        return [parameter.name for parameter in self._whole._parameters]

    def _add_chunks(self, first: int) -> None:
        """Divide the groups from number `first` on, and make this rank's pieces of them."""
        whole, rank, size = self._whole, self._channel.rank, self._channel.size
        contributions = 2 * size if self._options["deterministic"] else size + 1  # pieces that a set of buffers holds
        room = self._options["buffer_bytes"] // (_IN_FLIGHT * contributions)
        for number, group in enumerate(whole.param_groups[first:], first):
            mine = [(i, q) for i, q in enumerate(whole._parameters) if q.group is group]
            for dtype in dict.fromkeys(q.dtype for _, q in mine):
                chosen = [(i, math.prod(q.shape)) for i, q in mine if q.dtype == dtype]
                piece = max(1, room // (dtype.itemsize * NORM_BLOCK)) * NORM_BLOCK
                sizes, numbers = [n for _, n in chosen], [i for i, _ in chosen]
                self._chunks += chunks(number, dtype, sizes, numbers, size, piece)
        flat = [arrays.flat(np.asarray(p)) for _, p in self._parameters()]
        for chunk in self._chunks[len(self._pieces) :]:
            parts = chunk.parts[rank]
            views = [flat[part.parameter][part.start : part.stop] for part in parts]
            hyper = {key: whole.param_groups[chunk.group][key] for key in whole._names}
            optimizer = type(whole)(views, backend=whole.backend, threads=whole.threads, **hyper) if parts else None
            self._pieces.append(None if optimizer is None else _Piece(parts, optimizer))
        self._kept = []
        self._buffers = self._channel.buffers(self._chunks, _IN_FLIGHT)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        if not self._guard.acquire(False):
            raise RuntimeError("this optimizer is being stepped by another thread")
        try:
            yield
        finally:
            self._guard.release()


def _nothing(c: int, buffers: Any) -> None:
    """A stage without work."""


def _plan_of(optimizer: Optimizer) -> Any:
    plan = optimizer._plan
    return plan if plan is not None and plan.version == optimizer._changes[0] else optimizer._current_plan()


def _plain(
    kind: type[Optimizer], params: Any, backend: str, threads: int | None, hyper: Mapping[str, Any]
) -> Optimizer:
    """The plain optimizer over the whole parameters: it knows structures and groups, and allocates no state."""
    if not isinstance(kind, type) or not issubclass(kind, Optimizer) or kind is Optimizer:
        raise TypeError(f"kind must be fastoptim.SGD, Adam or AdamW, got {kind!r}")
    whole = kind(params, backend=backend, threads=threads, **hyper)
    if whole.backend == "cuda":
        raise TypeError("ShardedOptimizer takes NumPy arrays; its kernels run on the host")
    return whole


def _options(reduction: Any, deterministic: Any, buffer_bytes: Any, overwrite_grads: Any) -> dict[str, Any]:
    """What `ShardedOptimizer` adds to the hyper-parameters, validated."""
    if isinstance(buffer_bytes, bool) or not isinstance(buffer_bytes, int):
        raise TypeError(f"buffer_bytes must be an int, got {buffer_bytes!r}")
    if buffer_bytes < 1:
        raise ValueError(f"buffer_bytes must be at least 1, got {buffer_bytes}")
    return {
        "reduction": choice("reduction", reduction, REDUCTIONS),
        "deterministic": flag("deterministic", deterministic),
        "buffer_bytes": buffer_bytes,
        "overwrite_grads": flag("overwrite_grads", overwrite_grads),
    }


def _description(whole: Optimizer, options: Mapping[str, Any]) -> dict[str, str]:
    """Everything in which ranks must not differ, by name."""
    said = {"fastoptim's version": __version__, "numpy's version": np.__version__, "kind": type(whole).__name__}
    said |= {name: repr(value) for name, value in options.items()} | _hyper_texts(whole)
    for number, group in enumerate(whole.param_groups):
        said[f"names of group {number}"] = ", ".join(group["names"])
        for name, p in zip(group["names"], group["params"], strict=True):
            content = hashlib.sha256(arrays.flat(np.asarray(p)).view(np.uint8).data).hexdigest()[:16]
            said[f"parameter {name!r}"] = f"shape {p.shape}, {p.dtype.name}, content {content}"
    return said


def _hyper_texts(whole: Optimizer) -> dict[str, str]:
    return {
        f"{name} of group {number}": _text(group[name])
        for number, group in enumerate(whole.param_groups)
        for name in whole._names
    }


def _text(value: Any) -> str:
    """A hyper-parameter, written alike whatever the type of a number is."""
    if isinstance(value, (str, bool)):
        return repr(value)
    try:
        return repr(float(value))
    except (TypeError, ValueError):
        return f"({', '.join(map(_text, value))})" if isinstance(value, (tuple, list)) else repr(value)


def _remove_last_group(whole: Optimizer, grouped: bool) -> None:
    """Undo `add_param_group`, which another rank has refused."""
    count = len(list.pop(whole._groups)["names"])
    whole._structures.pop()
    del whole._parameters[-count:]
    whole._grouped = grouped
