"""Saves the whole state of training and goes on from it: every part of the loop is asked for its own."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
from collections.abc import Mapping, Sequence
from typing import Any

from ..checkpoint import files, format, matching
from ..checkpoint.files import CheckpointError
from ..common.signals import deferred
from ..optimizers import saving
from ..optimizers.base import Optimizer
from . import rehearsal
from .history import History, saved_count
from .log import Log, naming
from .loop import Loop, named_arrays
from .settings import Settings
from .validation import Validation

CALLBACK = "callback "  # users' callbacks are parts of this name with a number


class Checkpoints:
    """Save the whole state of training now and then, and the best so far to a file of its own; part of `Loop`.

    Parameters
    ----------
    every : int or None
        Steps between checkpoints; None: after every epoch.
    keep : int or None
        How many of the last ones stay as files of their own, ``<name>-<steps><suffix>``.
    validation : Validation or None
        Says when there is a new best.
    log : path or None
        Where the log is, which may be none of these files.
    """

    def __init__(
        self,
        path: Any,
        settings: Settings,
        *,
        every: int | None,
        keep: int | None,
        validation: Validation | None,
        log: Any,
    ):
        self.path: str = os.fspath(path)
        self._every, self._keep, self._validation, self._settings = every, keep, validation, settings
        self._kept: list[int] = []  # steps of those that stay
        self._files: list[str] | None = None  # of an optimizer that saves itself, those that are there
        self._targets = [self.path] if validation is None else [self.path, best_path(self.path)]
        for target in self._targets:
            files.check_target(target)
            if log is not None and os.path.realpath(log) in (os.path.realpath(target), files.previous_path(target)):
                raise ValueError(f"log and checkpoint would be one file, {os.fspath(log)!r}")
        if keep is not None:
            rehearsal.check_free(self.path, log)

    def rehearse(self, loop: Loop, callbacks: bool) -> None:
        """Raise whatever would keep a checkpoint from being saved, before there is one.

        With or without the states of users' callbacks, which there may not be before they have begun.
        """
        paths = self._targets if self._keep is None else [*self._targets, kept_path(self.path, 10**9)]
        state = _state(loop, self._settings, callbacks)
        rehearsal.rehearse(paths, state, loop.optimizer, saves_itself(loop.optimizer))

    def begin(self, loop: Loop) -> None:
        if any(name.startswith(CALLBACK) for name in _stateful(loop)):
            self.rehearse(loop, callbacks=True)

    def due(self, loop: Loop) -> float:
        return loop.next_due(self._every)

    def __call__(self, loop: Loop) -> None:
        if self._validation is not None and self._validation.improved:
            self._save(loop, best_path(self.path), keep_previous=False)
        if loop.is_due(self._every):
            kept = [*self._kept, loop.steps][-self._keep :] if self._keep is not None else []
            outdated, self._kept = [step for step in self._kept if step not in kept], kept
            self._save(loop, self.path)
            if kept and loop.ranks.rank == 0:
                _link(self.path, kept_path(self.path, loop.steps))
                for step in outdated:
                    with contextlib.suppress(OSError):
                        os.unlink(kept_path(self.path, step))

    def _save(self, loop: Loop, path: str, keep_previous: bool = True) -> None:
        optimizer = loop.optimizer
        if saves_itself(optimizer):
            self._save_apart(loop, path, keep_previous)
            return
        tree: dict[str, Any] = {"loop": _state(loop, self._settings)}
        with optimizer._locked():
            tree |= saving.optimizer_tree(optimizer)
            _write(path, tree, keep_previous)

    def _save_apart(self, loop: Loop, path: str, keep_previous: bool) -> None:
        """Save with an optimizer that writes files of its own, and remove those that no checkpoint needs any more."""
        if self._files is None:
            self._files = _files_of(self.path)
        name = f"{path}.optimizer-{loop.steps}"
        own = os.path.basename(name)
        with naming(name):
            loop.optimizer.save(name)
        needed = {own, *_needed([self.path, best_path(self.path), *(kept_path(self.path, k) for k in self._kept)])}
        outdated = [file for file in self._files if file not in needed]
        self._files = [file for file in self._files if file in needed and file != own] + [own]
        if loop.ranks.rank == 0:
            _write(path, {"loop": _state(loop, self._settings) | {"optimizer_file": own}}, keep_previous)
            _remove(os.path.dirname(os.path.realpath(path)), outdated)
        loop.ranks.wait()

    def state_dict(self) -> dict[str, Any]:
        return {"kept": list(self._kept), "files": list(self._files or ())}

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        if state is not None:
            kept, own = [saved_count(step) for step in state["kept"]], list(map(os.path.basename, state["files"]))
            self._kept, self._files = kept, own or None


def _write(path: str, tree: Any, keep_previous: bool) -> None:
    """`format.write`; the file gets the permissions that the one before it has."""
    mode = stat.S_IMODE(os.stat(path).st_mode) if os.path.exists(path) else None
    with naming(path):
        format.write(path, tree, kind="training", keep_previous=keep_previous)
    if mode is not None and stat.S_IMODE(os.stat(path).st_mode) != mode:
        os.chmod(path, mode)


def _link(path: str, other: str) -> None:
    """Make the checkpoint at `path` available as `other`, too, whatever becomes of `path` later."""
    spare = f"{other}.tmp"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(spare)
    try:
        os.link(os.path.realpath(path), spare)
    except OSError:  # a file system without hard links
        shutil.copy2(path, spare)
    os.replace(spare, other)


def kept_path(path: str, steps: int) -> str:
    """Where a checkpoint goes that is one of the last few."""
    root, suffix = os.path.splitext(path)
    return f"{root}-{steps}{suffix}"


def _state(loop: Loop, settings: Settings, callbacks: bool = True) -> dict[str, Any]:
    parts = {name: part for name, part in _stateful(loop).items() if callbacks or not name.startswith(CALLBACK)}
    return {
        "steps": loop.steps,
        "epoch": loop.epoch,
        "settings": settings.texts,
        "batches": loop.batches.state_dict(),
        "history": loop.history.state_dict(),
        "parts": {name: part.state_dict() for name, part in parts.items()},
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


def _files_of(path: str) -> list[str]:
    """The optimizer's files that the checkpoint at `path`, of an earlier run, knows of."""
    with contextlib.suppress(OSError, CheckpointError, LookupError, TypeError):
        state = format.read(path, kind="training")["loop"]["parts"]["checkpoints"]
        return [os.path.basename(file) for file in state["files"]]
    return []


def _needed(paths: Sequence[str]) -> set[str]:
    """The optimizer's files that the checkpoints at `paths` refer to."""
    needed = set()
    for path in paths:
        with contextlib.suppress(OSError, CheckpointError, LookupError, TypeError):
            needed.add(str(format.read(path, kind="training")["loop"]["optimizer_file"]))
    return needed


def _remove(folder: str, names: list[str]) -> None:
    """Remove files of an optimizer that saves itself, with their slices."""
    for name in names:
        pattern = re.compile(rf"{re.escape(name)}(\.previous|\.[0-9a-f]{{16}}\.[0-9]+)?")
        for found in filter(pattern.fullmatch, os.listdir(folder)):
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(folder, found))
