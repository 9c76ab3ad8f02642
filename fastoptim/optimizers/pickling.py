"""What of an optimizer is pickled, and how one is made of it."""

from __future__ import annotations

from typing import Any

from ..arrays.storage import Storage
from ..backends import resolve
from ..common.trees import Structure
from .selecting import Members
from .state_dicts import Savable, load_snapshot, snapshot

_OWN = ("_backend", "_busy", "_model", "_options", "_plan", "_storage", "_threads")


def picklable(optimizer: Savable) -> dict[str, Any]:
    """An optimizer that the caller has locked, as plain dicts, lists, numbers and arrays, so that code can move."""
    model = optimizer._model
    return {
        "params": model.rebuilt(model.arrays()),
        "places": [[list(positions) for positions in places] for places in model.places],
        "grouped": model.grouped,
        "elsewhere": model.elsewhere,
        "defaults": dict(model.defaults),
        "snapshot": snapshot(optimizer, lambda x: x),
        "storage": optimizer._storage._asdict(),
        "backend": optimizer.backend,
        "threads": optimizer.threads,
        "clipping": [optimizer.max_norm, optimizer.clip],
        "attributes": {name: value for name, value in vars(optimizer).items() if name not in _OWN},
    }


def unpickle(optimizer: Savable, state: dict[str, Any]) -> None:
    """Make an optimizer of what `picklable` returned."""
    vars(optimizer).update(state["attributes"])
    optimizer._start(state["defaults"])
    optimizer._storage = Storage.checked(**state["storage"])
    optimizer._threads, optimizer._backend = state["threads"], resolve(state["backend"], ())
    optimizer.max_norm, optimizer.clip = state["clipping"]
    groups = iter(state["snapshot"]["param_groups"])
    for params, places in zip(state["params"], state["places"], strict=True):
        members, names = [], list(Structure(params).names)
        for positions, group in zip(places, groups, strict=False):
            members.append(Members({name: group[name] for name in optimizer._names}, tuple(positions)))
            for position, name in zip(positions, group["params"], strict=True):
                names[position] = name
        optimizer._add_groups(params, members, names=names)
    optimizer._model.grouped, optimizer._model.elsewhere = state["grouped"], state["elsewhere"]
    load_snapshot(optimizer, state["snapshot"])
