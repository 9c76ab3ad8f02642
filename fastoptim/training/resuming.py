"""Saves the whole state of training and goes on from it: every part of the loop is asked for its own."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from ..checkpoint import files, format, matching, slices
from ..checkpoint.files import CheckpointError, naming
from ..common.signals import deferred_signals
from ..common.trees import listing
from ..common.validation import step_options
from ..optimizers import saving
from ..optimizers.base import Optimizer
from . import rehearsal
from .averaging import Averaging
from .history import History, saved_count
from .log import Log
from .loop import Loop, frozen_arrays
from .settings import Settings
from .validation import Validation

CALLBACK = "callback "  # users' callbacks are parts of this name with a number
_CLIPPING = ("max_norm", "clip")  # attributes of optimizers, which callbacks may change


class Checkpoints:
    """Save the whole state of training now and then, and the best so far to a file of its own; part of `Loop`.

    Every so many steps (None: after every epoch); of the last ones `keep` stay as files of their own,
    ``<name>-<steps><suffix>``. `validation` says when there is a new best. The log may be none of these files.
    """

    def __init__(
        self,
        path: str,
        settings: Settings,
        *,
        every: int | None,
        keep: int | None,
        validation: Validation | None,
        log: str | None,
    ):
        self.path = path
        self._every, self._keep, self._validation, self._settings = every, keep, validation, settings
        self._kept: list[int] = []  # steps of those that stay
        self._files: dict[str, str] | None = None  # checkpoint -> file of an optimizer that saves itself
        self._outdated: list[str] = []  # such files that are removed once no checkpoint names them any more
        self._source: str | None = None  # the checkpoint that the run goes on from
        self._continues = False  # whether that is one of these
        self._overtaken = False  # whether the best file is of a validation that the run does not know
        self._targets = [self.path] if validation is None else [self.path, best_path(self.path)]
        for target in self._targets:
            files.check_target(target)
            if log is not None and os.path.realpath(log) in (os.path.realpath(target), files.previous_path(target)):
                raise ValueError(f"log and checkpoint would be one file, {log!r}")
        if keep is not None:
            rehearsal.check_free(self.path, log)

    def rehearse(self, loop: Loop, callbacks: bool) -> None:
        """Raise whatever would keep a checkpoint from being saved, before there is one.

        With or without the states of users' callbacks, which there may not be before they have begun.
        """
        paths = self._targets if self._keep is None else [*self._targets, kept_path(self.path, 10**9)]
        state = _state(loop, self._settings) | {"own": [_own_state(loop, callbacks)]}
        rehearsal.rehearse(paths, state, loop.optimizer, saves_itself(loop.optimizer))

    def go_on_from(self, source: str) -> None:
        """Prepare for a checkpoint of another name: files that it knows of are not this run's."""
        own = (self.path, files.previous_path(self.path), best_path(self.path))
        self._source = source
        self._continues = os.path.realpath(source) in map(os.path.realpath, own) or rehearsal.is_kept(self.path, source)

    def warn_of_loss(self, loop: Loop) -> None:
        """Warn that a checkpoint of another run will be replaced."""
        if not self._continues and os.path.exists(self.path):
            begins = "begins anew" if self._source is None else f"goes on from {self._source}"
            loop.warn(
                f"{self.path} exists, and this run {begins}: its first checkpoint makes that file "
                f"{os.path.basename(self.path)}.previous, its second one replaces that, too. To go on from it, stop "
                "here and pass resume=True; to keep it, give another checkpoint; or remove it"
            )

    def begin(self, loop: Loop) -> None:
        with loop.ranks.together("trying to save a checkpoint"):
            if _stateful(loop, users=True):
                self.rehearse(loop, callbacks=True)
        if self._continues and loop.ranks.rank == 0:
            self._overtaken = self._is_overtaken()
            self._keep_last(loop.steps)

    def due(self, loop: Loop) -> float:
        return loop.next_due(self._every)

    def __call__(self, loop: Loop) -> None:
        validation = self._validation
        if self._overtaken:
            self._overtaken = False
            os.replace(files.previous_path(best_path(self.path)), os.path.realpath(best_path(self.path)))
        if validation is not None and validation.took_best_back:
            validation.took_best_back = False
            with loop.ranks.together("taking the best checkpoint back"):
                self._take_best_back(loop.ranks.rank == 0)
        if validation is not None and validation.improved:
            self._save(loop, best_path(self.path), keep_previous=validation.additional)
        if loop.is_due(self._every):
            self._save(loop, self.path)

    def _is_overtaken(self) -> bool:
        """Whether a run was killed at its end between the best of its last validation and the checkpoint beside it."""
        validation, best = self._validation, best_path(self.path)
        if validation is None or validation.best_step is None or validation.took_best_back:
            return False
        with contextlib.suppress(OSError, CheckpointError, LookupError, TypeError):
            steps, previous = validation.best_step + 1, files.previous_path(best)
            return _steps_in(best) != steps and _steps_in(previous) == steps and format.is_intact(previous)
        return False

    def _keep_last(self, steps: int) -> None:
        """Keep the checkpoint that the run goes on from, if it was killed before it could."""
        kept = kept_path(self.path, steps)
        if self._keep is not None and steps in self._kept and not os.path.exists(kept):
            with contextlib.suppress(OSError, CheckpointError, LookupError, TypeError):
                if _steps_in(self.path) == steps:
                    _link(self.path, kept)

    def _take_best_back(self, writes: bool) -> None:
        """Put the best checkpoint of before the last end in its place, once training has gone on from there."""
        best = os.path.realpath(best_path(self.path))
        previous = files.previous_path(best)
        known = self._files or {}
        outdated = known.pop(os.path.basename(best), None)
        if os.path.basename(previous) in known:
            known[os.path.basename(best)] = known.pop(os.path.basename(previous))
        if writes and self._continues:
            with contextlib.suppress(FileNotFoundError):  # it was taken back before
                if self._validation is not None and self._validation.best_step is None:
                    os.unlink(best)
                else:
                    os.replace(previous, best)
            if outdated is not None:
                slices.remove_checkpoints(os.path.dirname(best), {outdated})

    def _save(self, loop: Loop, path: str, keep_previous: bool = True) -> None:
        kept: list[int] = []
        if self._keep is not None and path == self.path:
            kept = [*self._kept, loop.steps][-self._keep :]
        outdated = [kept_path(path, step) for step in self._kept if kept and step not in kept]
        self._kept = kept or self._kept
        if loop.ranks.rank == 0:
            _remove(outdated)  # first: what was killed in between would leave them for ever
        if saves_itself(loop.optimizer):
            self._save_apart(loop, path, keep_previous, outdated)
        else:
            state = _state(loop, self._settings) | {"own": [_own_state(loop)]}
            with loop.optimizer._locked():
                _write(path, {"loop": state, **saving.optimizer_tree(loop.optimizer)}, keep_previous, self.path)
        if kept and loop.ranks.rank == 0:
            _link(path, kept_path(path, loop.steps))
        loop.ranks.wait()

    def _save_apart(self, loop: Loop, path: str, keep_previous: bool, outdated: Sequence[str]) -> None:
        """Save with an optimizer that writes files of its own, and remove those that no checkpoint needs any more."""
        before, left = _files_of(loop, self.path) if self._files is None else (self._files, self._outdated)
        name = f"{path}.optimizer-{loop.steps}"
        loop.ranks.wait()  # the optimizer would not hear of one that has failed
        with naming(name):
            loop.optimizer.save(name)
        after = {key: value for key, value in before.items() if key not in map(os.path.basename, outdated)}
        if keep_previous and os.path.basename(path) in before:
            after[os.path.basename(files.previous_path(path))] = before[os.path.basename(path)]
        after[os.path.basename(path)] = os.path.basename(name)
        if self._keep is not None and path == self.path:
            after[os.path.basename(kept_path(path, loop.steps))] = os.path.basename(name)
        self._files, self._outdated = after, sorted({*before.values(), *left} - set(after.values()))
        own = loop.ranks.gathered(_own_state(loop))
        with loop.ranks.together("saving a checkpoint"):
            if loop.ranks.rank == 0:
                file = {"optimizer_file": os.path.basename(name), "optimizer_checksum": format.checksum_stated_in(name)}
                _write(path, {"loop": _state(loop, self._settings) | {"own": own} | file}, keep_previous, self.path)
                folder = os.path.dirname(os.path.realpath(path))
                slices.remove_checkpoints(folder, self._outdated)
        self._outdated = []  # the file names them: a run that was killed in between removes them when it next saves

    def state_dict(self) -> dict[str, Any]:
        return {"kept": list(self._kept), "files": dict(self._files or {}), "outdated": list(self._outdated)}

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        if state is not None and self._continues:  # else files of those names are of another run
            kept = [saved_count(step) for step in state["kept"]]
            own, outdated = _files_in(state)
            self._kept, self._files, self._outdated = kept, own or None, outdated


def _write(path: str, tree: Any, keep_previous: bool, like: str) -> None:
    with naming(path):
        format.write(path, tree, kind="training", keep_previous=keep_previous, like=like)


def _steps_in(path: str) -> int:
    steps: int = format.stated_tree(path)["loop"]["steps"]
    return steps


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


def _state(loop: Loop, settings: Settings) -> dict[str, Any]:
    """What all processes have in common."""
    return {
        "steps": loop.steps,
        "epoch": loop.epoch,
        "settings": settings.texts,
        "batches": loop.batches.state_dict(),
        "history": loop.history.state_dict(),
        "parts": {name: part.state_dict() for name, part in _stateful(loop).items()},
        "clipping": [getattr(loop.optimizer, name, None) for name in _CLIPPING],
        "optimizer_file": None,
    }


def _own_state(loop: Loop, callbacks: bool = True) -> dict[str, Any]:
    """What every process has of its own: arrays that no optimizer keeps alike, and users' callbacks."""
    frozen = {name: matching.to_host(p) for name, p in frozen_arrays(loop.params, loop.optimizer)}
    parts = loop.parts if loop.ranks.size > 1 else {}
    validation, averaging = parts.get("validation"), parts.get("average")
    return {
        "frozen": frozen,
        "callbacks": {name: part.state_dict() for name, part in _stateful(loop, users=True).items() if callbacks},
        "best": validation.own_arrays(frozen) if isinstance(validation, Validation) else None,
        "average": averaging.own_arrays(frozen) if isinstance(averaging, Averaging) else {},
    }


def _stateful(loop: Loop, users: bool = False) -> dict[str, Any]:
    """The parts that have a state: the users' callbacks, by number among themselves and class, or all others."""
    found = {n: p for n, p in loop.parts.items() if hasattr(p, "state_dict") and hasattr(p, "load_state_dict")}
    chosen = {name: part for name, part in found.items() if name.startswith(CALLBACK) == users}
    return {f"{i} {type(part).__name__}": part for i, part in enumerate(chosen.values())} if users else chosen


def resume(loop: Loop, settings: Settings, path: str, required: bool) -> None:
    """Restore the state that was saved to `path`; where there is none, begin unless it is `required`.

    The first process reads the checkpoint for all, so that none can take another one.
    """
    tree: Any = None
    with loop.ranks.together(f"reading {path}"):
        if loop.ranks.rank == 0:
            try:
                tree = format.read_latest(path, kind="training", warn=loop.warn)
            except FileNotFoundError:
                if required:
                    raise
    tree = loop.ranks.first(tree)
    if tree is not None:
        try:
            with format.malformed("the state of training"):
                _restore(loop, settings, path, tree)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error


def _restore(loop: Loop, settings: Settings, path: str, tree: Any) -> None:
    ranks, optimizer = loop.ranks, loop.optimizer
    with ranks.together("resuming"), format.malformed("the state of training"):
        state = tree["loop"]
        steps, epoch = saved_count(state["steps"]), saved_count(state["epoch"])
        _check_optimizer(optimizer, state, tree, path)
        overridden = settings.overridden(state["settings"])
        history = History.restored(state["history"], steps, epoch)
        clipping = dict(zip(_CLIPPING, state["clipping"], strict=True))
        step_options(1.0, clipping["max_norm"], False, clipping["clip"] if hasattr(optimizer, "clip") else "norm")
        own, saved = _own_of(loop, state["own"]), dict(state["parts"])
        parts, users = _stateful(loop), _stateful(loop, users=True)
        if set(own["callbacks"]) != set(users):
            raise CheckpointError(
                f"it was written with other callbacks, or in another order: {list(own['callbacks'])} there, "
                f"{list(users)} here, numbered from 0"
            )
        _check_parts(loop, saved, history, best_path(path))
        frozen = frozen_arrays(loop.params, optimizer)
        _check_groups(optimizer, tree, [name for name, _ in frozen if name not in own["frozen"]])
        matching.check_arrays(dict(frozen), own["frozen"])
        matching.check_assignable(dict(frozen), own["frozen"])
        position = loop.batches.recut(state["batches"]) if "batch_size" in overridden else state["batches"]
        if overridden & {"lr", "schedules"}:
            del saved["rates"], parts["rates"]
        if own.get("average"):
            saved["average"] = saved["average"] | {"arrays": saved["average"]["arrays"] | own["average"]}
        if "average" in overridden:
            saved["average"] = {**saved["average"], **parts["average"].settings}
        states = [(loop.batches, position), *((part, saved.get(name)) for name, part in parts.items())]
        states += [(part, own["callbacks"][name]) for name, part in users.items()]
        undo = [put_back for part, _ in states if (put_back := _put_back(part)) is not None]
    with deferred_signals():
        try:
            with ranks.together("resuming"), format.malformed("the state of training"):
                for part, its_state in states:
                    part.load_state_dict(its_state)
                if own["best"] is not None and isinstance(validation := parts.get("validation"), Validation):
                    validation.take_own_arrays(own["best"])
            if state["optimizer_file"] is not None:
                optimizer.load(files.beside(path, state["optimizer_file"]))
            else:
                with optimizer._locked():
                    saving.restore_optimizer(optimizer, tree)
        except BaseException:
            for put_back in undo:
                put_back()
            raise
        for name, p in frozen:
            matching.assign(p, own["frozen"][name])
        settings.apply(overridden)
        for name, value in clipping.items():
            if hasattr(optimizer, name) and "max_norm" not in overridden:
                setattr(optimizer, name, value)
    loop.restore(steps, epoch, history)


def _put_back(part: Any) -> Callable[[], object] | None:
    """What puts a part back to the state it has now; None for a callback that has none before it has begun."""
    try:
        return partial(part.load_state_dict, part.state_dict())
    except Exception:
        return None


def _own_of(loop: Loop, saved: Any) -> Any:
    """What this process has of its own in a checkpoint; where it was written by others, that of one of them."""
    size, rank = loop.ranks.size, loop.ranks.rank
    if len(saved) != size and any(own["frozen"] or own["callbacks"] for own in saved):
        loop.warn(
            f"the checkpoint was written by {len(saved)} processes, here are {size}: those that are new take the "
            "arrays that are not stepped (running means, for example) and the callbacks' states of the first"
        )
    return saved[rank if rank < len(saved) else 0]


def _check_optimizer(optimizer: Any, state: Any, tree: Any, path: str) -> None:
    if (state["optimizer_file"] is not None) != saves_itself(optimizer):
        raise CheckpointError("it was written with another kind of optimizer (sharded or not)")
    if not saves_itself(optimizer) and tree["optimizer"]["optimizer"] != type(optimizer).__name__:
        written = tree["optimizer"]["optimizer"]
        raise CheckpointError(
            f"it was written with {written!s:.40}, this optimizer is {type(optimizer).__name__}: "
            "use the same, or another checkpoint"
        )
    if saves_itself(optimizer):
        file = files.beside(path, state["optimizer_file"])
        if not os.path.exists(file):
            raise CheckpointError(f"the optimizer's part is missing, {file}: do all processes share the folder?")
        if format.checksum_stated_in(file) != state["optimizer_checksum"]:
            raise CheckpointError(f"the optimizer's part, {file}, is of another checkpoint")


def _check_groups(optimizer: Any, tree: Any, new: list[str]) -> None:
    """CheckpointError if arrays that are frozen here, and were not there, are of a group that was added there."""
    groups = len(optimizer.param_groups)
    if new and not saves_itself(optimizer) and (added := len(tree["optimizer"]["param_groups"]) - groups) > 0:
        raise CheckpointError(
            f"its optimizer had {added} more group{'s' if added > 1 else ''} of parameters, which a callback may have "
            f"added; here nothing steps {listing(new)}: add them before fit, by optimizer.add_param_group"
        )


def _check_parts(loop: Loop, saved: Mapping[str, Any], history: History, best_file: str) -> None:
    if "average" in saved and "average" not in loop.parts:
        raise CheckpointError(
            "it was written with an average, which would be lost: give fit average=fo.Average(params), too"
        )
    validation, log = loop.parts.get("validation"), loop.parts.get("log")
    if isinstance(validation, Validation):
        validation.check(saved.get("validation"), best_file)
    if isinstance(log, Log):
        problem = log.check(saved.get("log"), history)
        if problem is not None:
            raise CheckpointError(problem)


def saves_itself(optimizer: Any) -> bool:
    """Whether the optimizer writes files of its own, as a sharded one does."""
    return getattr(type(optimizer), "save", None) is not Optimizer.save


def best_path(path: str) -> str:
    """Where the best checkpoint so far goes."""
    root, suffix = os.path.splitext(path)
    return f"{root}.best{suffix}"


def _files_of(loop: Loop, path: str) -> tuple[dict[str, str], list[str]]:
    """The optimizer's files that the checkpoint at `path`, of an earlier run, knows of, and those it was to remove."""
    found: tuple[dict[str, str], list[str]] = ({}, [])
    if loop.ranks.rank == 0:
        with contextlib.suppress(OSError, CheckpointError, LookupError, TypeError, AttributeError):
            found = _files_in(format.stated_tree(path)["loop"]["parts"]["checkpoints"])
    files, outdated = loop.ranks.first(found)
    return dict(files), list(outdated)


def _files_in(state: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    """What a checkpoint says of an optimizer's files; what it says of folders is left out."""
    files = {os.path.basename(key): os.path.basename(value) for key, value in state["files"].items()}
    return files, [os.path.basename(name) for name in state["outdated"]]


def _remove(paths: Sequence[str]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            os.unlink(path)
