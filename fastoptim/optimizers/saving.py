"""Saves optimizers to checkpoint files and restores them."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from ..checkpoint.files import CheckpointError
from ..checkpoint.format import malformed, read, shortened, write
from ..checkpoint.matching import assign, check_arrays, to_host
from ..checkpoint.slices import check_slices, read_slices
from ..common.signals import deferred

if TYPE_CHECKING:
    from .base import Optimizer


def save_optimizer(optimizer: Optimizer, path: Any) -> None:
    """Write parameters, states, step counts and hyper-parameters of `optimizer`; what ``optimizer.save`` does."""
    with optimizer._locked(reading=True):
        write(path, optimizer_tree(optimizer), kind="optimizer")


def load_optimizer(optimizer: Optimizer, path: Any) -> None:
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


def optimizer_tree(optimizer: Optimizer) -> dict[str, Any]:
    """The tree of an optimizer that the caller has locked, or that nobody else steps: live arrays, not copies."""
    params = {name: to_host(p) for name, p in _named_parameters(optimizer)}
    snapshot = optimizer._snapshot(to_host)
    for group in snapshot["param_groups"]:
        group |= {name: _plain(value) for name, value in group.items()}
    return {"params": params, "optimizer": snapshot}


def _plain(value: Any) -> Any:
    """A hyper-parameter without arrays, which loading refuses: numbers and lists of them instead."""
    if isinstance(value, (list, tuple)):
        return (tuple if isinstance(value, tuple) else list)(map(_plain, value))
    return value.tolist() if isinstance(value, np.ndarray) else value


def restore_optimizer(optimizer: Optimizer, tree: Any) -> None:
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
                raise CheckpointError("a hyper-parameter is an array")
        for name, p in named:
            optimizer._backend.check_parameter(name, p)
        with deferred():
            optimizer._load(state)
            for name, p in named:
                assign(p, saved[name])


def whole_tree(optimizer: Optimizer, path: Any, tree: Any) -> dict[str, Any]:
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


def _named_parameters(optimizer: Optimizer) -> list[tuple[str, Any]]:
    return [
        (name, p) for group in optimizer.param_groups for name, p in zip(group["names"], group["params"], strict=True)
    ]
