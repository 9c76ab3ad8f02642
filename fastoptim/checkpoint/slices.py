"""Checkpoints that several processes write in slices: names of the files, their content, and which are outdated.

Beside the file at the target, the manifest, lie its slices, ``<name>.<token>.<rank>``; the token is new for each.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from ..arrays.storage import is_scales, storage_of
from ..rules.codecs import BLOCK
from .files import CheckpointError, previous_path, remove_abandoned, temporary_pattern
from .format import read, stated_kind
from .matching import check_names, misfit

_SLICE = r"\.[0-9a-f]{16}\.[0-9]+"  # what a slice's name has behind that of its manifest
_MOST_ARRAYS = 16  # of one parameter: itself and its states, each of which costs as much memory as the parameter


def slice_path(target: str, token: str, rank: int) -> str:
    """Return where process number `rank` writes its slice of the checkpoint `target`."""
    return f"{target}.{token}.{rank}"


# --- Outdated files


def remove_old_slices(target: str) -> None:
    """Remove slices that neither the checkpoint `target` nor the one before it is made of.

    Only what says that it is a slice is removed, and what a process has left behind that died while it wrote one.
    """
    folder, name = os.path.split(target)
    keep = set()
    for path in (target, previous_path(target)):
        with contextlib.suppress(OSError, CheckpointError):
            keep |= {entry["file"] for entry in read(path, kind="slices")["slices"]}
    _remove_ours(folder, f"({re.escape(name)}{_SLICE})", keep, ("slice",))


def remove_checkpoints(folder: str, names: Collection[str]) -> None:
    """Remove the optimizers' checkpoints of these names in a folder, with the ones before them and their slices.

    Only what says that it is the checkpoint of an optimizer is removed, and what a process has left behind that died
    while it wrote one: whatever else has such a name is somebody else's.
    """
    for name in names:
        _remove_ours(folder, rf"({re.escape(name)})(?:\.previous|{_SLICE})?", (), ("optimizer", "slices", "slice"))


def _remove_ours(folder: str, pattern: str, keep: Collection[str], kinds: tuple[str, ...]) -> None:
    """Remove files of these kinds whose name is of a pattern, unless its first group is to be kept."""
    whole, temporary = re.compile(pattern), re.compile(temporary_pattern(pattern))
    for entry in os.listdir(folder):
        path = os.path.join(folder, entry)
        match = whole.fullmatch(entry)
        if match and match[1] not in keep and stated_kind(path) in kinds:
            with contextlib.suppress(OSError):
                os.unlink(path)
        match = temporary.fullmatch(entry)
        if match and match[1] not in keep:
            remove_abandoned(path)


# --- Content


def check_slices(tree: Any, expected: Mapping[str, tuple[tuple[int, ...], np.dtype]]) -> None:
    """CheckpointError unless the checkpoint is of parameters with these names, shapes and dtypes."""
    check_names(expected, tree["params"])
    for name, (shape, dtype) in expected.items():
        saved = tree["params"][name]
        if (found := (tuple(saved["shape"]), saved["dtype"])) != (tuple(shape), dtype.name):
            raise misfit(name, (tuple(shape), dtype.name), found)


def read_slices(path: Any, tree: Any, wanted: Mapping[str, tuple[int, int]]) -> dict[str, dict[str, Any]]:
    """Read name of a parameter -> "step" and the other numbers that are kept, and elements of "parameter" and states.

    Those are elements `start` to `stop`, flat.

    Only the files are read that hold some of what is `wanted`, each once.
    """
    folder = os.path.dirname(os.path.realpath(os.fspath(path)))
    result: dict[str, dict[str, Any]] = {}
    missing = {name: stop - start for name, (start, stop) in wanted.items()}
    if len({entry["file"] for entry in tree["slices"]}) != len(tree["slices"]):
        raise CheckpointError("it names a slice twice")
    for entry in tree["slices"]:
        file = entry["file"]
        if os.path.basename(file) != file:
            raise CheckpointError("a slice is not beside it")
        if not any(name in wanted and _common(wanted[name], (start, stop)) for name, start, stop in entry["parts"]):
            continue
        try:
            content = read(os.path.join(folder, file), kind="slice")
        except OSError as error:
            raise CheckpointError(f"its slice {file} is missing or cannot be read") from error
        if content["token"] != tree["token"]:
            raise CheckpointError(f"its slice {file} is of another checkpoint")
        for name, start, stop, numbers, arrays in content["parts"]:
            common = name in wanted and _common(wanted[name], (start, stop))
            if common:
                _check_dtypes(name, arrays, tree["params"][name]["dtype"])
                _fill_in(result, name, wanted[name], (start, stop), common, numbers, arrays)
                missing[name] -= common[1] - common[0]
    if any(missing.values()) or set(result) != set(wanted):
        raise CheckpointError("its slices do not make up the whole")
    return result


def _common(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int] | None:
    """What two ranges share; an empty range shares itself with an empty one."""
    low, high = max(a[0], b[0]), min(a[1], b[1])
    return (low, high) if low < high or (a[0] == a[1] and b[0] == b[1]) else None


def _check_dtypes(name: str, arrays: dict[str, np.ndarray], dtype: str) -> None:
    """CheckpointError unless a parameter has the dtype that it should, and its states one that they may have."""
    if len(arrays) > _MOST_ARRAYS or any(x.ndim != 1 for x in arrays.values()):
        raise CheckpointError(f"its slices hold something else than states of parameter {name!r}")
    for key, x in arrays.items():
        if x.dtype.name != dtype and (key == "parameter" or dtype == "float64" or storage_of(x.dtype) is None):
            raise CheckpointError(f"{key} of parameter {name!r} is not of dtype {dtype}")


def _fill_in(
    result: dict[str, dict[str, Any]],
    name: str,
    wanted: tuple[int, int],
    saved: tuple[int, int],
    common: tuple[int, int],
    numbers: dict[str, float],
    arrays: dict[str, np.ndarray],
) -> None:
    """Copy the common part of a saved range into what was asked for; all begin with blocks."""
    units = {key: BLOCK if is_scales(key, arrays) else 1 for key in arrays}
    if name not in result:
        blank = {key: np.empty(len(_within(wanted, wanted, units[key])), x.dtype) for key, x in arrays.items()}
        result[name] = {**numbers, **blank}
    target = result[name]
    if any(target[key] != x for key, x in numbers.items()) or set(arrays) != set(target) - set(numbers):
        raise CheckpointError(f"its slices differ in what they say about parameter {name!r}")
    for key, x in arrays.items():
        to, source = (_within(common, whole, units[key]) for whole in (wanted, saved))
        if x.dtype != target[key].dtype or len(x) != len(_within(saved, saved, units[key])):
            raise CheckpointError(f"its slices differ in the dtype or length of {key} of parameter {name!r}")
        target[key][to.start : to.stop] = x[source.start : source.stop]


def _within(part: tuple[int, int], whole: tuple[int, int], unit: int) -> range:
    """Where a range lies within one that holds it, in units of so many elements, the last of which may be cut short."""
    return range((part[0] - whole[0]) // unit, -(-(part[1] - whole[0]) // unit))
