"""Saves and restores the states of a sharded optimizer: written by every rank, loaded by any number of them."""

from __future__ import annotations

import contextlib
import math
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..arrays import checks, layout
from ..arrays.storage import convertible, is_scales, state_arrays
from ..checkpoint import format, matching, slices
from ..common.signals import deferred_signals
from ..optimizers.groups import Parameter
from ..optimizers.saving import extra_part
from ..optimizers.state_dicts import load_snapshot, read_snapshot, snapshot
from ..rules.codecs import BLOCK
from ..rules.table import rules_of
from .agreement import hyper_texts
from .partition import Bucket, Part, ranges
from .slices import Array, Piece, Slices, nothing

# Name of a parameter -> the numbers that the rule keeps ("step" and others), and this rank's elements of its states.
Own = Mapping[str, Mapping[str, Any]]


class States(Slices):
    """Keeps, saves and restores the states of a `ShardedOptimizer`."""

    def state_dict(self) -> dict[str, Any]:
        """Return `Optimizer.state_dict`'s content, whole, on every rank: for models whose states fit in one process."""
        with self._locked():
            parameters = self._whole._model.parameters
            names = (*self._slots, *self._kept)
            facts = np.zeros((len(parameters), 1 + len(names)), np.int64)  # step count, and what else there is
            numbers = np.zeros((len(parameters), len(self._kept)), np.float64)
            for part, entry in self._entries():
                facts[part.parameter] = [entry["step"], *(name in entry for name in names)]
                numbers[part.parameter] = [entry.get(name, 0.0) for name in self._kept]
            facts, numbers = self._channel.most(facts), self._channel.most(numbers)  # none of them is ever negative
            states: list[dict[str, Any]] = [{"step": int(row[0])} for row in facts]
            for k, name in enumerate(names):
                present = np.flatnonzero(facts[:, 1 + k])
                whole_states = self._gathered_states(name) if k < len(self._slots) and len(present) else {}
                for i in map(int, present):
                    if whole_states:
                        states[i][name] = whole_states[i]
                    else:
                        states[i][name] = float(numbers[i, k - len(self._slots)])
            whole = snapshot(self._whole, lambda x: x)
            return whole | {"state": dict(zip(self._names, states, strict=True))}

    def _described(self, q: Parameter) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape and dtype of all arrays of states that a parameter may have."""
        found: dict[str, tuple[tuple[int, ...], np.dtype]] = {}
        for rule in rules_of(self._whole):
            stored = self._whole._storage.of(rule, q.dtype, q.number)
            found |= state_arrays(rule, stored, q.shape, q.dtype)
        return found

    def _gathered_states(self, slot: str) -> dict[int, Array]:
        """The states `slot` of all parameters that may have one, by their numbers; zeros where there is none."""
        parameters, unit = self._whole._model.parameters, self._slots[slot]
        found = {q.number: np.zeros(*d[slot]) for q in parameters if slot in (d := self._described(q))}
        flat = {number: x.reshape(-1) for number, x in found.items()}
        for part, entry in self._entries():
            if slot in entry:
                _, start, stop = part.over(unit)
                flat[part.parameter][start:stop] = entry[slot]
        buckets = []
        for bucket in self._buckets:
            number = next((part.parameter for own in bucket.parts for part in own), None)
            if number is not None and number in flat:
                buckets.append(bucket.holding(flat[number].dtype, unit))
        self._gather(flat, buckets)
        return found

    def _gather(self, targets: Mapping[int, Array], buckets: Sequence[Bucket]) -> None:
        """Fill flat arrays, in which every rank has filled its own slice, with all others' slices."""
        channel = self._channel

        def start(b: int, buffers: Any) -> None:
            own = [targets[number][begin:end] for number, begin, end in buckets[b].parts[channel.rank]]
            channel.start_gather(buckets[b], own, buffers)

        def finish(b: int, buffers: Any) -> None:
            channel.finish_gather(buckets[b], targets, buffers)

        self._pipeline(start, nothing, finish, len(buckets))

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what `state_dict` of this class or of a plain optimizer returned, the same on every rank."""
        with self._locked():
            what = "loading a state dict"
            own = self._channel.together(what, lambda: self._cut_states(state_dict), lambda _: _step_texts(state_dict))
            with deferred_signals():
                self._restore(state_dict, own, what)

    def save(self, path: Any, extra: Any = None) -> None:
        """Write a checkpoint, every rank its slice; any number of ranks, or a plain optimizer, can load it.

        Beside the file at `path`, which is written last and atomically, there is one file per rank,
        ``<name>.<token>.<rank>``: the folder must be one that all ranks and hosts share. The checkpoint before stays as
        ``<name>.previous``, with its slices; a file that is replaced hands down its mode, to slices too. If a rank
        fails, all raise, and the last checkpoint is as it was. `extra` is rank 0's, as for `Optimizer.save`.
        """
        with self._locked():
            channel, target = self._channel, os.path.realpath(os.fspath(path))
            token = channel.broadcast(secrets.token_hex(8))
            own = slices.slice_path(target, token, channel.rank)
            try:
                channel.together("saving a checkpoint", lambda: self._write_slice(own, token, target, extra))
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(own)
                raise
            channel.together("saving a checkpoint", lambda: self._write_manifest(target, token, extra))

    def _write_slice(self, path: str, token: str, target: str, extra: Any) -> None:
        format.check_tree(extra_part(extra), kind="slices")
        snapshot(self._whole, lambda x: x)  # refuses hyperparameters that nobody could load
        params, names = [layout.flat(np.asarray(p)) for _, p in self._parameters()], self._names
        parts = []
        for part, entry in self._entries():
            contents = {"parameter": params[part.parameter][part.start : part.stop]}
            contents |= {slot: x for slot, x in entry.items() if slot in self._slots}
            numbers = {key: x for key, x in entry.items() if key not in self._slots}
            parts.append([names[part.parameter], part.start, part.stop, numbers, contents])
        format.write(path, {"token": token, "parts": parts}, kind="slice", keep_previous=False, like=target)

    def _write_manifest(self, target: str, token: str, extra: Any) -> None:
        """Commit the checkpoint that the slices make up, and remove slices that none needs any more; for rank 0."""
        if self._channel.rank != 0:
            return
        paths = [slices.slice_path(target, token, rank) for rank in range(self._channel.size)]
        missing = [path for path in paths if not os.path.exists(path)]
        if missing:
            raise FileNotFoundError(f"{missing[0]} is not there on rank 0: is the folder one that all hosts share?")
        parameters, names = self._whole._model.parameters, self._names
        written = []
        for rank, path in enumerate(paths):
            spans = [[names[i], *span] for i, span in ranges(self._buckets, rank).items()]
            written.append({"file": os.path.basename(path), "parts": spans})
        tree = {
            "token": token,
            "params": {q.name: {"shape": list(q.shape), "dtype": q.dtype.name} for q in parameters},
            "optimizer": snapshot(self._whole, lambda x: x) | {"state": {}},
            "slices": written,
        }
        format.write(target, tree | extra_part(extra), kind="slices")
        slices.remove_old_slices(target)

    def load(self, path: Any) -> Any:
        """Read a checkpoint that any number of ranks, a plain optimizer or `fit` has written; return its `extra`.

        Each rank reads the slices that overlap its own. Before anything is changed, the ranks compare the checksums of
        what they have read: if one has found another file (in a folder that is not shared, or in an old view of one),
        all raise ValueError. If a rank fails, all raise, and nothing was changed.
        """
        what = f"loading {os.fspath(path)}"
        with self._locked():
            path, tree, _ = self._channel.together(
                what,
                lambda: format.read_optimizer(path),
                # A node may have a folder of its own, or an old view of a shared one.
                lambda found: {"the checkpoint's content (SHA-256)": found[2]},
            )
            state_dict, own, params = self._channel.together(what, lambda: self._own_content(path, tree))
            with deferred_signals():
                self._restore(state_dict, own, what)
                if params is None:
                    self._fill_parameters(own)
                else:
                    for name, p in self._parameters():
                        layout.put(p, params[name])
            return tree.get("extra")

    def _own_content(self, path: Any, tree: Any) -> tuple[Mapping[str, Any], Own, Mapping[str, Array] | None]:
        """The optimizer's state dict, this rank's slices of states, and the whole parameters if they are all there."""
        own = dict(self._parameters())  # what is wrong with them shows before anything is changed
        with format.malformed(f"{os.fspath(path)}: the optimizer's part"):
            state_dict = tree["optimizer"]
            if "slices" in tree:
                wanted = {self._names[i]: span for i, span in ranges(self._buckets, self._channel.rank).items()}
                slices.check_slices(tree, {q.name: (q.shape, q.dtype) for q in self._whole._model.parameters})
                return state_dict, slices.read_slices(path, tree, wanted), None
            matching.check_arrays(own, tree["params"])
            return state_dict, self._cut_states(state_dict), tree["params"]

    def _fill_parameters(self, own: Own) -> None:
        """Set all parameters from every rank's slice of them."""
        flat = {i: layout.flat(np.asarray(p)) for i, (_, p) in enumerate(self._parameters())}
        for i, (start, stop) in ranges(self._buckets, self._channel.rank).items():
            flat[i][start:stop] = own[self._names[i]]["parameter"]
        self._gather(flat, self._buckets)
        for (_, p), x in zip(self._parameters(), flat.values(), strict=True):
            if not np.may_share_memory(p, x):
                layout.put(p, x.reshape(p.shape))

    def _cut_states(self, state_dict: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """This rank's slice of whole states, by the names of parameters."""
        result = {}
        for i, (start, stop) in ranges(self._buckets, self._channel.rank).items():
            q = self._whole._model.parameters[i]
            result[q.name] = dict(state_dict["state"][q.name])
            for slot in list(result[q.name]):
                if slot != "step" and slot not in self._kept:
                    _, low, high = Part(i, start, stop).over(self._slots.get(slot, 1))
                    result[q.name][slot] = layout.flat(self._saved(q, slot, state_dict["state"][q.name]))[low:high]
        return result

    def _saved(self, q: Parameter, slot: str, entry: Mapping[str, Any]) -> Array:
        """An array of an entry of a state dict; TypeError or ValueError if no state can be made of it."""
        shape, dtype = self._described(q).get(slot, (q.shape, np.dtype(np.float32)))
        if is_scales(slot, entry):
            shape = (-(-math.prod(q.shape) // BLOCK),)
        elif self._slots.get(slot) == 1 and convertible(slot, entry, q.dtype):
            dtype = entry[slot].dtype
        return checks.check_companion(q.name, slot, entry[slot], shape, dtype)

    def _restore(self, state_dict: Mapping[str, Any], own: Own, what: str) -> None:
        """Take over hyperparameters and this rank's states; if one rank fails, all raise, with nothing changed."""
        whole, mine = self._whole, ranges(self._buckets, self._channel.rank)
        before = snapshot(whole, lambda x: x)
        seed = {"storage": state_dict["storage"]} if "storage" in state_dict else {}

        def checked() -> list[Callable[[], None]]:
            load_snapshot(whole, {**state_dict, "state": {name: {"step": 0} for name in self._names}})
            pieces = [(b, piece) for b, piece in zip(self._buckets, self._pieces, strict=True) if piece is not None]
            states = [(piece, self._piece_state(b, piece, own, mine) | seed) for b, piece in pieces]
            return [read_snapshot(piece.optimizer, state)[0] for piece, state in states]

        try:
            loaded = self._channel.together(what, checked, lambda _: hyper_texts(whole))
        except Exception:
            load_snapshot(whole, before)
            raise
        for put in loaded:
            put()

    def _piece_state(
        self, bucket: Bucket, piece: Piece, own: Own, mine: Mapping[int, tuple[int, int]]
    ) -> dict[str, Any]:
        """The state dict of one piece."""
        group = self._whole.param_groups[bucket.group]
        hyper = {key: group[key] for key in self._whole._names}
        names = list(piece.optimizer.param_groups[0]["names"])
        states: dict[str, Any] = {name: {} for name in names}
        for name, (number, start, stop) in zip(names, piece.parts, strict=True):
            first = mine[number][0]
            for key, x in own[name].items():
                if key in self._slots:
                    _, low, high = Part(number, start - first, stop - first).over(self._slots[key])
                    states[name][key] = x[low:high]
                elif key != "parameter":
                    states[name][key] = x
        return {
            "version": 1,
            "optimizer": type(self._whole).__name__,
            "state": states,
            "param_groups": [{"params": names, **hyper}],
        }


def _step_texts(state_dict: Mapping[str, Any]) -> dict[str, str]:
    return {f"the step count of parameter {name!r}": str(e["step"]) for name, e in state_dict["state"].items()}
