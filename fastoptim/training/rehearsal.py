"""Finds out before the first step what would keep a checkpoint from being saved."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..checkpoint import format


def rehearse(paths: Sequence[str], state: Mapping[str, Any], optimizer: Any, apart: bool) -> None:
    """Write a file with the names but not the numbers of a checkpoint, where those will go, and remove it.

    Of `paths` the longest name counts. `state` is the loop's part. `apart`: whether the optimizer will write files of
    its own, which have longer names. OSError if the folder cannot be written to or a name is too long; ValueError or
    TypeError for too many arrays, and for a state that no checkpoint can hold.
    """
    if apart:
        paths = [f"{path}.optimizer-{10**9}.{'0' * 16}.100" for path in paths]
    whole = {"loop": state} if apart else {"loop": state, **_expected_arrays(optimizer)}
    tree = _hollow(whole) | {"room": "-" * _numerals(_arrays_in(whole))}
    path = max(map(os.path.realpath, paths), key=lambda path: len(os.fsencode(os.path.basename(path))))
    try:
        format.rehearse(path, tree, kind="training")
    except OSError as error:
        raise type(error)(error.errno, f"{error.strerror}, so no checkpoint could be saved", path) from error


def check_free(path: str, log: str | None) -> None:
    """FileExistsError if a checkpoint that is kept could take the place of another file; ValueError if of the log."""
    if log is not None and is_kept(path, log):
        raise ValueError(f"log and checkpoint: one that is kept could take the place of the log {log!r}")
    folder = os.path.dirname(os.path.realpath(path))
    for file in (os.path.join(folder, name) for name in os.listdir(folder)):
        if is_kept(path, file) and (not os.path.isfile(file) or not _is_checkpoint(file)):
            raise FileExistsError(f"{file} is no checkpoint, and one that is kept could take its place: move it away")


def is_kept(path: str, file: str) -> bool:
    """Whether `file` has the name of a checkpoint that is kept beside the one at `path`."""
    root, suffix = os.path.splitext(os.path.realpath(path))
    return bool(re.fullmatch(rf"{re.escape(root)}-[0-9]+{re.escape(suffix)}", os.path.realpath(file)))


def _is_checkpoint(path: str) -> bool:
    with open(path, "rb") as file:  # the header follows eight bytes with its length
        return file.read(8 + len(format.PREFIX))[8:] == format.PREFIX


def _expected_arrays(optimizer: Any) -> dict[str, Any]:
    """Stand-ins of the arrays that the optimizer will save, its states included."""
    params, states = {}, {}
    for group in optimizer.param_groups:
        slots = _slots(optimizer, group)
        for name, p in zip(group["names"], group["params"], strict=True):
            stand_in = np.broadcast_to(np.zeros((), _dtype(p)), np.shape(p))
            params[name] = stand_in
            states[name] = {"step": 10**9, **dict.fromkeys(slots, stand_in)}
    return {"params": params, "optimizer": {"state": states}}


def _slots(optimizer: Any, group: Mapping[str, Any]) -> list[str]:
    """Names of the states that parameters of a group will have: those that one number gets in a first step."""
    hyper = {name: value for name, value in group.items() if name not in ("params", "names")}
    with contextlib.suppress(Exception):  # whatever a class of the user's own expects
        trial = type(optimizer)([np.zeros(1)], backend="numpy", threads=1, **hyper)
        trial.step([np.zeros(1)])
        return [slot for slot in trial.state["0"] if slot != "step"]
    return []


def _dtype(p: Any) -> np.dtype[Any]:
    device = getattr(p, "__cuda_array_interface__", None)
    dtype: np.dtype[Any] = np.dtype(p.dtype if device is None else device["typestr"])
    return dtype


def _arrays_in(tree: Any) -> Iterable[np.ndarray]:
    if isinstance(tree, np.ndarray):
        yield tree
    elif isinstance(tree, (Mapping, list, tuple)):
        for item in tree.values() if isinstance(tree, Mapping) else tree:
            yield from _arrays_in(item)


def _hollow(tree: Any) -> Any:
    """`tree` with empty arrays."""
    if isinstance(tree, np.ndarray):
        return np.empty(0, tree.dtype)
    if isinstance(tree, Mapping):
        return {key: _hollow(item) for key, item in tree.items()}
    return type(tree)(map(_hollow, tree)) if type(tree) in (list, tuple) else tree


def _numerals(arrays: Iterable[np.ndarray]) -> int:
    """How many more characters shapes and places take in a header than those of empty arrays."""
    total = end = 0
    for array in arrays:
        begin, end = end, end + array.nbytes
        total += len(f"{list(array.shape)}{begin}{end}".replace(" ", "")) - len("[0]00")
    return total
