"""Saves optimizers to checkpoint files and restores them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np

from ..arrays.checks import check_companion
from ..backends import Backend, resolve
from ..checkpoint.files import CheckpointError
from ..checkpoint.format import malformed, read, shortened, write
from ..checkpoint.matching import assign, check_arrays, to_host
from ..checkpoint.slices import check_slices, read_slices
from ..common.signals import deferred_signals
from ..common.validation import real
from ..rules.table import Rule, rules_of
from .groups import Groups, Parameter, ParamGroups
from .hyperparameters import UpdateSpec


class Savable(Protocol):
    """What is saved and restored: an `Optimizer`, of which this module sees no more than it needs."""

    _backend: Backend
    _model: Groups
    _threads: int
    _rules: tuple[str | Rule, ...]
    _names: tuple[str, ...]
    _spec: Callable[..., UpdateSpec]

    @property
    def param_groups(self) -> ParamGroups: ...

    @property
    def state(self) -> Mapping[str, Mapping[str, Any]]: ...

    @property
    def backend(self) -> str: ...

    @property
    def threads(self) -> int: ...

    def _start(self, defaults: dict[str, Any]) -> None: ...

    def _read(self, group: Mapping[str, Any]) -> tuple[Any, ...]: ...

    def _add_group(self, group: Mapping[str, Any], prefixed: bool, names: list[str] | None = None) -> None: ...

    def _locked(self, reading: bool = False) -> AbstractContextManager[None]: ...

    def _drop_plan(self) -> None: ...


def save_optimizer(optimizer: Savable, path: Any) -> None:
    """Write parameters, states, step counts and hyperparameters of `optimizer`; what ``optimizer.save`` does."""
    with optimizer._locked(reading=True):
        write(path, optimizer_tree(optimizer), kind="optimizer")


def load_optimizer(optimizer: Savable, path: Any) -> None:
    """Read what `save_optimizer` or `fit` wrote into `optimizer` and its parameters, in place.

    Raises
    ------
    CheckpointError
        The file is not a whole checkpoint, or one of other parameters or another optimizer; nothing was changed.
    """
    tree = read(path, kind=("optimizer", "training", "slices"))
    with optimizer._locked():
        try:
            if isinstance(tree, dict) and "slices" in tree:
                tree = whole_tree(optimizer, path, tree)
            restore_optimizer(optimizer, tree)
        except CheckpointError as error:
            raise CheckpointError(f"{os.fspath(path)}: {error}") from error


def optimizer_tree(optimizer: Savable) -> dict[str, Any]:
    """The tree of an optimizer that the caller has locked, or that nobody else steps: live arrays, not copies."""
    params = {name: to_host(p) for name, p in _named_parameters(optimizer)}
    return {"params": params, "optimizer": snapshot(optimizer, to_host)}


def restore_optimizer(optimizer: Savable, tree: Any) -> None:
    """Put `optimizer_tree`'s content back; CheckpointError, with nothing changed, if it does not fit."""
    named = _named_parameters(optimizer)
    with malformed("the optimizer's part"):
        saved, state = tree["params"], tree["optimizer"]
        check_arrays(dict(named), saved)
        for entry in state["state"].values():
            if type(entry["step"]) is not int or entry["step"] >= 2**63:
                raise CheckpointError(f"step must be an int64, got {shortened(entry['step'])}")
        for group in state["param_groups"]:
            if any(_holds_array(value) for value in group.values()):
                raise CheckpointError("a hyperparameter is an array")
        for name, p in named:
            optimizer._backend.check_parameter(name, p)
        with deferred_signals():
            load_snapshot(optimizer, state)
            for name, p in named:
                assign(p, saved[name])


def whole_tree(optimizer: Savable, path: Any, tree: Any) -> dict[str, Any]:
    """The tree that one process would have saved."""
    with malformed("the slices"):
        described = {name: optimizer._backend.describe(p) for name, p in _named_parameters(optimizer)}
        check_slices(tree, described)
        flat = read_slices(path, tree, {name: (0, math.prod(shape)) for name, (shape, _) in described.items()})
        params, states = {}, {}
        for name, (shape, _) in described.items():
            entry = {key: x if key == "step" else x.reshape(shape) for key, x in flat[name].items()}
            params[name] = entry.pop("parameter")
            states[name] = entry
        return {"params": params, "optimizer": tree["optimizer"] | {"state": states}}


def _holds_array(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(_holds_array, value))
    return isinstance(value, (np.ndarray, dict))


def _named_parameters(optimizer: Savable) -> list[tuple[str, Any]]:
    return [
        (name, p) for group in optimizer.param_groups for name, p in zip(group["names"], group["params"], strict=True)
    ]


# --- State dicts and pickles ----------------------------------------------------------------------------------------


def snapshot(optimizer: Savable, copy: Callable[[Any], Any]) -> dict[str, Any]:
    """What `Optimizer.state_dict` returns, with states passed through `copy`."""
    return {
        "version": 1,
        "optimizer": type(optimizer).__name__,
        "state": {
            name: {key: value if isinstance(value, (int, float)) else copy(value) for key, value in entry.items()}
            for name, entry in optimizer.state.items()
        },
        "param_groups": [
            {"params": list(group["names"])} | {name: group[name] for name in optimizer._names}
            for group in optimizer.param_groups
        ],
    }


def load_snapshot(optimizer: Savable, state_dict: Any) -> None:
    """Put a snapshot into an optimizer that the caller has locked; TypeError or ValueError before anything changes."""
    try:
        version, kind = state_dict["version"], state_dict["optimizer"]
        entries, groups = state_dict["state"], state_dict["param_groups"]
    except (TypeError, KeyError) as error:
        raise ValueError(f"not a state dict of an optimizer: {error}") from error
    if version != 1:
        raise ValueError(f"state dict has version {version!r}; this fastoptim reads version 1")
    if kind != type(optimizer).__name__:
        raise ValueError(f"state dict is of {kind}, this optimizer is {type(optimizer).__name__}")
    _check_groups(optimizer, entries, groups)
    parameters = optimizer._model.parameters
    loaded = [_loaded(optimizer, parameter, entries[parameter.name]) for parameter in parameters]
    with deferred_signals():
        optimizer._drop_plan()
        for parameter, (t, states, scalars) in zip(parameters, loaded, strict=True):
            parameter.t, parameter.states, parameter.scalars = t, states, scalars
        for own, group in zip(optimizer.param_groups, groups, strict=True):
            own.update({name: group[name] for name in optimizer._names})


def _check_groups(optimizer: Savable, entries: Any, groups: Any) -> None:
    """ValueError unless groups, names and hyperparameters of a snapshot are this optimizer's; names in any order."""
    names = [sorted(group["names"]) for group in optimizer.param_groups]
    if [isinstance(group, Mapping) and sorted(map(str, group.get("params", ()))) for group in groups] != names:
        raise ValueError("state dict has other parameter groups or names than this optimizer")
    if set(entries) != {name for group in names for name in group}:
        raise ValueError("state dict has states for other parameters than this optimizer")
    for group in groups:
        if set(group) != {"params", *optimizer._names}:
            raise ValueError(f"state dict: a group has {sorted(set(group) - {'params'})}, expected {optimizer._names}")
        type(optimizer)._spec(*optimizer._read(group))


def _loaded(optimizer: Savable, parameter: Parameter, entry: Any) -> tuple[int, dict[str, Any], dict[str, float]]:
    """Step count, states and scalars of one parameter from its entry in a snapshot."""
    what, backend = f"state of parameter {parameter.name!r}", optimizer._backend
    if not isinstance(entry, Mapping):
        raise TypeError(f"{what}: expected a mapping, got {type(entry).__name__}")
    rest = dict(entry)
    t = rest.pop("step", None)
    if isinstance(t, bool) or not isinstance(t, (int, np.integer)) or not 0 <= t < 1 << 63:
        raise ValueError(f"{what}: step must be an int from 0 to 2**63, got {t!r}")
    rules = rules_of(optimizer)
    if t and (missing := set.intersection(*(set(rule.states) | set(rule.scalars) for rule in rules)) - rest.keys()):
        raise ValueError(f"{what} lacks {sorted(missing)}")
    p = parameter.group["params"][parameter.index]
    states, scalars = {}, {}
    for name, value in rest.items():
        if any(name in rule.scalars for rule in rules):
            scalars[name] = real(f"{what}: {name}", value)
        elif any(name in rule.states for rule in rules):
            value = check_companion(parameter.name, name, value, parameter.shape, parameter.dtype)
            states[name] = backend.zeros_like(p)
            backend.assign(states[name], value)
        else:
            raise ValueError(f"{what}: unknown name {name!r}")
    return int(t), states, scalars


_OWN = ("_backend", "_busy", "_model", "_plan", "_threads")


def picklable(optimizer: Savable) -> dict[str, Any]:
    """An optimizer that the caller has locked, as plain dicts, lists, numbers and arrays, so that code can move."""
    model = optimizer._model
    return {
        "params": [
            structure.rebuild(list(group["params"]))
            for structure, group in zip(model.structures, model.groups, strict=True)
        ],
        "grouped": model.grouped,
        "defaults": dict(model.defaults),
        "snapshot": snapshot(optimizer, lambda x: x),
        "backend": optimizer.backend,
        "threads": optimizer.threads,
        "attributes": {name: value for name, value in vars(optimizer).items() if name not in _OWN},
    }


def unpickle(optimizer: Savable, state: dict[str, Any]) -> None:
    """Make an optimizer of what `picklable` returned."""
    vars(optimizer).update(state["attributes"])
    optimizer._start(state["defaults"])
    optimizer._threads, optimizer._backend = state["threads"], resolve(state["backend"], ())
    for params, saved in zip(state["params"], state["snapshot"]["param_groups"], strict=True):
        values = {name: saved[name] for name in optimizer._names}
        optimizer._add_group({"params": params} | values, prefixed=False, names=list(saved["params"]))
    optimizer._model.grouped = state["grouped"]
    load_snapshot(optimizer, state["snapshot"])
