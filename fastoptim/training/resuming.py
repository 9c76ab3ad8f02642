"""Saves the whole state of training and goes on from it: every part of the loop is asked for its own."""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Mapping
from typing import Any

from ..checkpoint import files, format, matching
from ..checkpoint.files import CheckpointError
from ..common.signals import deferred
from ..optimizers import saving
from ..optimizers.base import Optimizer
from .history import History, saved_count
from .log import Log
from .loop import Loop, named_arrays
from .settings import Settings
from .validation import Validation

CALLBACK = "callback "  # users' callbacks are parts of this name with a number


class Checkpoints:
    """Save the whole state of training now and then, and the best so far to a file of its own; part of `Loop`."""

    def __init__(self, path: Any, every: int | None, validation: Validation | None, settings: Settings):
        self.path: str = os.fspath(path)
        self._every, self._validation, self._settings = every, validation, settings
        files.check_target(self.path)
        if validation is not None:
            files.check_target(best_path(self.path))

    def due(self, loop: Loop) -> float:
        return loop.next_due(self._every)

    def __call__(self, loop: Loop) -> None:
        if self._validation is not None and self._validation.improved:
            self._save(loop, best_path(self.path), keep_previous=False)
        if loop.is_due(self._every):
            self._save(loop, self.path)

    def _save(self, loop: Loop, path: str, keep_previous: bool = True) -> None:
        tree: dict[str, Any] = {"loop": _state(loop, self._settings)}
        optimizer = loop.optimizer
        if saves_itself(optimizer):
            name = f"{path}.optimizer-{loop.steps}"
            optimizer.save(name)
            tree["loop"]["optimizer_file"] = os.path.basename(name)
            if loop.ranks.rank == 0:
                format.write(path, tree, kind="training", keep_previous=keep_previous)
                _remove_outdated(path, name)
            loop.ranks.wait()
            return
        with optimizer._locked():
            tree |= saving.optimizer_tree(optimizer)
            format.write(path, tree, kind="training", keep_previous=keep_previous)


def _state(loop: Loop, settings: Settings) -> dict[str, Any]:
    return {
        "steps": loop.steps,
        "epoch": loop.epoch,
        "settings": settings.texts,
        "batches": loop.batches.state_dict(),
        "history": loop.history.state_dict(),
        "parts": {name: part.state_dict() for name, part in _stateful(loop).items()},
        "frozen": {name: matching.to_host(p) for name, p in frozen_arrays(loop.params, loop.optimizer)},
        "optimizer_file": None,
    }


def _stateful(loop: Loop) -> dict[str, Any]:
    """The parts that have a state; users' callbacks are numbered among themselves."""
    found = {n: p for n, p in loop.parts.items() if hasattr(p, "state_dict") and hasattr(p, "load_state_dict")}
    own = {name: part for name, part in found.items() if not name.startswith(CALLBACK)}
    users = [part for name, part in found.items() if name.startswith(CALLBACK)]
    return own | {f"{CALLBACK}{i}": part for i, part in enumerate(users)}


def frozen_arrays(params: Any, optimizer: Any) -> list[tuple[str, Any]]:
    """Arrays in `params` that the optimizer does not step; `loss_and_grad` may change them (running means)."""
    stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return [(name, p) for name, p in named_arrays(params) if id(p) not in stepped]


def resume(loop: Loop, settings: Settings, path: str, required: bool) -> None:
    """Restore the state that was saved to `path`; where there is none, begin unless it is `required`."""
    try:
        tree = format.read_latest(path, kind="training", warn=loop.warn)
    except FileNotFoundError:
        if required:
            raise
        return
    with format.malformed(f"{path}: the state of training"):
        _restore(loop, settings, path, tree)


def _restore(loop: Loop, settings: Settings, path: str, tree: Any) -> None:
    state = tree["loop"]
    steps, epoch = saved_count(state["steps"]), saved_count(state["epoch"])
    _check_optimizer(loop.optimizer, state, tree)
    overridden = settings.overridden(state["settings"])
    history = History.restored(state["history"], steps, epoch)
    saved, parts = dict(state["parts"]), _stateful(loop)
    if {name for name in saved if name.startswith(CALLBACK)} != {name for name in parts if name.startswith(CALLBACK)}:
        raise CheckpointError("it was written with other callbacks")
    _check_parts(loop, saved, history, best_path(path))
    frozen = frozen_arrays(loop.params, loop.optimizer)
    matching.check_arrays(dict(frozen), state["frozen"])
    matching.check_assignable(dict(frozen), state["frozen"])
    position = loop.batches.recut(state["batches"]) if "batch_size" in overridden else state["batches"]
    if "lr" in overridden:
        del saved["rates"], parts["rates"]
    states = [(loop.batches, position), *((part, saved.get(name)) for name, part in parts.items())]
    before = [(part, part.state_dict()) for part, _ in states]
    with deferred():
        try:
            for part, its_state in states:
                part.load_state_dict(its_state)
            _restore_optimizer(loop.optimizer, tree, os.path.dirname(path), state["optimizer_file"])
        except BaseException:
            for part, its_state in before:
                part.load_state_dict(its_state)
            raise
        for name, p in frozen:
            matching.assign(p, state["frozen"][name])
        settings.apply(overridden)
    loop.restore(steps, epoch, history)


def _check_optimizer(optimizer: Any, state: Any, tree: Any) -> None:
    if (state["optimizer_file"] is not None) != saves_itself(optimizer):
        raise CheckpointError("it was written with another kind of optimizer (sharded or not)")
    if not saves_itself(optimizer) and tree["optimizer"]["optimizer"] != type(optimizer).__name__:
        written = tree["optimizer"]["optimizer"]
        raise CheckpointError(f"it was written with {written!s:.40}, this optimizer is {type(optimizer).__name__}")


def _check_parts(loop: Loop, saved: Mapping[str, Any], history: History, best_file: str) -> None:
    validation, log = loop.parts.get("validation"), loop.parts.get("log")
    if isinstance(validation, Validation):
        validation.check(saved.get("validation"), best_file)
    if isinstance(log, Log):
        problem = loop.ranks.first(log.check(saved.get("log"), history))  # all raise, or none
        if problem is not None:
            raise CheckpointError(problem)


def _restore_optimizer(optimizer: Any, tree: Any, folder: str, optimizer_file: str | None) -> None:
    if optimizer_file is not None:
        optimizer.load(os.path.join(folder, os.path.basename(optimizer_file)))
        return
    with optimizer._locked():
        saving.restore_optimizer(optimizer, tree)


def saves_itself(optimizer: Any) -> bool:
    """Whether the optimizer writes files of its own, as a sharded one does."""
    return getattr(type(optimizer), "save", None) is not Optimizer.save


def best_path(path: str) -> str:
    """Where the best checkpoint so far goes."""
    root, suffix = os.path.splitext(path)
    return f"{root}.best{suffix}"


def _remove_outdated(path: str, newest: str) -> None:
    """Remove files of an optimizer that saves itself, but those of `path` and of the checkpoint before it."""
    keep = {os.path.basename(newest)}
    with contextlib.suppress(OSError, CheckpointError):
        before = format.read(files.previous_path(path), kind="training")
        keep.add(before["loop"]["optimizer_file"])
    for found in glob.glob(f"{glob.escape(path)}.optimizer-*"):
        name = os.path.basename(found)
        if not any(name == kept or name.startswith(f"{kept}.") for kept in keep):  # slices begin with its name
            with contextlib.suppress(OSError):
                os.unlink(found)
