"""States and checkpoints of a sharded optimizer: saved by every rank, loaded by any number of them."""

from __future__ import annotations

import contextlib
import math
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .. import rules
from ..arrays import checks, layout
from ..checkpoint import format, matching, slices
from ..optimizers.base import Optimizer
from .agreement import hyper_texts
from .partition import Chunk, ranges
from .slices import Array, Piece, Slices, nothing

SLOTS = tuple(dict.fromkeys(name for rule in rules.RULES.values() for name in rule.states))


class States(Slices):
    """The states' part of `ShardedOptimizer`."""

    def state_dict(self) -> dict[str, Any]:
        """What `Optimizer.state_dict` returns, whole, on every rank: for models whose states fit into one process."""
        if self.comm.size == 1:
            return self._whole.state_dict()
        with self._locked():
            parameters = self._whole._parameters
            facts = np.zeros((len(parameters), 1 + len(SLOTS)), np.int64)  # the step count, and which states there are
            for part, entry in self._entries():
                facts[part.parameter] = [entry["step"], *(slot in entry for slot in SLOTS)]
            facts = self._channel.most(facts)
            states: list[dict[str, Any]] = [{"step": int(row[0])} for row in facts]
            for k, slot in enumerate(SLOTS, 1):
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

        self._pipeline(start, nothing, finish)

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
            own = slices.slice_path(target, token, channel.rank)
            try:
                self._together("saving a checkpoint", lambda: self._write_slice(own, token))
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(own)
                raise
            self._together("saving a checkpoint", lambda: self._write_manifest(target, token))

    def _write_slice(self, path: str, token: str) -> None:
        params, names = [layout.flat(np.asarray(p)) for _, p in self._parameters()], self._names
        parts = []
        for part, entry in self._entries():
            contents = {"parameter": params[part.parameter][part.start : part.stop]}
            contents |= {slot: x for slot, x in entry.items() if slot != "step"}
            parts.append([names[part.parameter], part.start, part.stop, entry["step"], contents])
        format.write(path, {"token": token, "parts": parts}, kind="slice", keep_previous=False)

    def _write_manifest(self, target: str, token: str) -> None:
        """Commit the checkpoint that the slices make up, and remove slices that none needs any more; for rank 0."""
        if self._channel.rank != 0:
            return
        paths = [slices.slice_path(target, token, rank) for rank in range(self._channel.size)]
        missing = [path for path in paths if not os.path.exists(path)]
        if missing:
            raise FileNotFoundError(f"{missing[0]} is not there on rank 0: is the folder one that all hosts share?")
        parameters, names = self._whole._parameters, self._names
        written = []
        for rank, path in enumerate(paths):
            spans = [[names[i], *span] for i, span in ranges(self._chunks, rank).items()]
            written.append({"file": os.path.basename(path), "parts": spans})
        tree = {
            "token": token,
            "params": {q.name: {"shape": list(q.shape), "dtype": q.dtype.name} for q in parameters},
            "optimizer": self._whole._snapshot(lambda x: x) | {"state": {}},
            "slices": written,
        }
        format.write(target, tree, kind="slices")
        slices.remove_old_slices(target)

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
            tree = format.read(path, kind=("slices", "optimizer", "training"))
            with format.malformed(f"{os.fspath(path)}: the optimizer's part"):
                state_dict = tree["optimizer"]
                if "slices" in tree:
                    own = {self._names[i]: span for i, span in ranges(self._chunks, self._channel.rank).items()}
                    slices.check_slices(tree, {q.name: (q.shape, q.dtype) for q in self._whole._parameters})
                    return state_dict, slices.read_slices(path, tree, own)
                params = tree["params"]
                matching.check_arrays(dict(self._parameters()), params)
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
        flat = [layout.flat(np.asarray(p)) for _, p in self._parameters()]
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
                x = checks.check_companion(q.name, slot, x, q.shape, q.dtype)
                result[q.name][slot] = layout.flat(x)[start:stop]
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
            said = hyper_texts(whole)
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
        self, chunk: Chunk, piece: Piece, own: Mapping[str, Mapping[str, Any]], mine: Mapping[int, tuple[int, int]]
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
            if type(t) is not int or not 0 <= t < 2**63 or not set(entry) <= {"step", "parameter", *SLOTS}:
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
