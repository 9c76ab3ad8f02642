"""Saves optimizers to checkpoint files and restores them."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np

from ..arrays.autograd import tell_of_assigned
from ..arrays.storage import is_scales
from ..checkpoint.files import CheckpointError
from ..checkpoint.format import malformed, names_previous, read_optimizer, shortened, write
from ..checkpoint.matching import assign, check_arrays, is_alike, to_host
from ..checkpoint.slices import check_slices, read_slices
from ..common.signals import deferred_signals
from ..common.validation import flag
from .state_dicts import IncompatibleKeys, Savable, load_snapshot, snapshot


def save_optimizer(optimizer: Savable, path: Any, extra: Any = None) -> None:
    """Write parameters, states, step counts and hyperparameters of `optimizer`; what ``optimizer.save`` does."""
    with optimizer._locked(reading=True):
        write(path, optimizer_tree(optimizer) | extra_part(extra), kind="optimizer")


def extra_part(extra: Any) -> dict[str, Any]:
    """The part of a checkpoint that holds what the caller keeps beside the optimizer; nothing for None."""
    return {} if extra is None else {"extra": extra}


def load_optimizer(optimizer: Savable, path: Any, strict: bool = True) -> tuple[Any, IncompatibleKeys]:
    """Do what ``optimizer.load`` does; returns the `extra` that it was saved with, and what did not fit."""
    strict = flag("strict", strict)
    with names_previous(path):
        path, tree, _ = read_optimizer(path)
    with optimizer._locked():
        try:
            if isinstance(tree, dict) and "slices" in tree:
                tree = whole_tree(optimizer, path, tree, strict)
            keys = restore_optimizer(optimizer, tree, strict)
        except CheckpointError as error:
            raise CheckpointError(f"{os.fspath(path)}: {error}") from error
    return tree.get("extra"), keys


def optimizer_tree(optimizer: Savable) -> dict[str, Any]:
    """The tree of an optimizer that the caller has locked, or that nobody else steps: live arrays, not copies."""
    params = {name: to_host(p) for name, p in _named_parameters(optimizer)}
    return {"params": params, "optimizer": snapshot(optimizer, to_host)}


def restore_optimizer(optimizer: Savable, tree: Any, strict: bool = True) -> IncompatibleKeys:
    """Put `optimizer_tree`'s content back; CheckpointError, with nothing changed, if it does not fit."""
    named = dict(_named_parameters(optimizer))
    with malformed("the optimizer's part"):
        saved, state = tree["params"], tree["optimizer"]
        if strict:
            check_arrays(named, saved)
        misfits = [name for name, p in named.items() if name not in saved or not is_alike(p, saved[name])]
        for entry in state["state"].values():
            if type(entry["step"]) is not int or entry["step"] >= 2**63:
                raise CheckpointError(f"step must be an int64, got {shortened(entry['step'])}")
        for group in state["param_groups"]:
            if any(_holds_array(value) for value in group.values()):
                raise CheckpointError("a hyperparameter is an array")
        for name, p in named.items():
            optimizer._backend.check_parameter(name, p)
        with deferred_signals():
            keys = load_snapshot(optimizer, state, strict, misfits)
            for name, p in named.items():
                if name not in misfits:
                    assign(p, saved[name])
            tell_of_assigned(named.values())
        return keys


def whole_tree(optimizer: Savable, path: Any, tree: Any, strict: bool = True) -> dict[str, Any]:
    """The tree that one process would have saved."""
    with malformed("the slices"):
        described = {name: optimizer._backend.describe(p) for name, p in _named_parameters(optimizer)}
        if strict:
            check_slices(tree, described)
        else:  # read what fits
            alike = {name: (tuple(x["shape"]), np.dtype(x["dtype"])) for name, x in tree["params"].items()}
            described = {name: x for name, x in described.items() if alike.get(name) == x}
        flat = read_slices(path, tree, {name: (0, math.prod(shape)) for name, (shape, _) in described.items()})
        params, states = {}, {}
        for name, (shape, _) in described.items():
            entry = {
                key: x.reshape(shape) if isinstance(x, np.ndarray) and not is_scales(key, flat[name]) else x
                for key, x in flat[name].items()
            }
            params[name] = entry.pop("parameter")
            states[name] = entry
        states |= {name: {"step": 0} for name in tree["params"] if name not in states}  # only to be named
        return {"params": params, "optimizer": tree["optimizer"] | {"state": states}} | extra_part(tree.get("extra"))


def _holds_array(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(_holds_array, value))
    return isinstance(value, (np.ndarray, dict))


def _named_parameters(optimizer: Savable) -> list[tuple[str, Any]]:
    return [
        (name, p) for group in optimizer.param_groups for name, p in zip(group["names"], group["params"], strict=True)
    ]
