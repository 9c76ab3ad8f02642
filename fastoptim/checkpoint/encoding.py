"""Turns trees into JSON and named arrays, and back."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from .files import CheckpointError

# safetensors' names of dtypes
_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "|u1",
    "BOOL": "|b1",
    "C64": "<c8",
}

_MOST_BITS = 14_000  # of an int: what Python reads by default has at most 4300 digits
# The same for dtypes of ml_dtypes
_SMALL = {"BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn"}


def encode(value: Any, path: str, arrays: dict[str, np.ndarray]) -> Any:
    """Turn `value` into what JSON can hold; arrays go to `arrays` under the path where they were found.

    TypeError, which names the path, for what a checkpoint cannot hold.
    """
    if isinstance(value, (np.ndarray, np.generic)):
        if isinstance(value, np.ma.MaskedArray) or dtype_name(value.dtype) is None:
            raise TypeError(f"{path}: a checkpoint cannot hold {type(value).__name__} of dtype {value.dtype}")
        name = path if path != "__metadata__" else path + "'"  # which is safetensors' own
        while name in arrays:
            name += "'"
        arrays[name] = np.asarray(value)
        if isinstance(value, np.generic):
            return {"$tensor": name, "form": "scalar"}
        if value.flags.f_contiguous and not value.flags.c_contiguous:
            return {"$tensor": name, "form": "F"}
        return {"$tensor": name}
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        raise TypeError(f"{path}: a checkpoint cannot hold an int of {value.bit_length()} bits")
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": repr(value)}
    if isinstance(value, tuple):
        return {"$tuple": [encode(item, f"{path}/{i}", arrays) for i, item in enumerate(value)]}
    if isinstance(value, list):
        return [encode(item, f"{path}/{i}", arrays) for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        items = [(key, encode(item, f"{path}/{key}" if path else str(key), arrays)) for key, item in value.items()]
        if all(isinstance(key, str) and not key.startswith("$") for key, _ in items):
            return dict(items)
        keys: dict[str, np.ndarray] = {}
        encoded = {"$items": [[encode(key, path, keys), item] for key, item in items]}
        if keys:
            raise TypeError(f"{path}: a checkpoint cannot hold a mapping whose keys are NumPy scalars")
        return encoded
    hint = ": give its state, rng.bit_generator.state" if isinstance(value, np.random.Generator) else ""
    raise TypeError(f"{path}: a checkpoint cannot hold a {type(value).__name__}{hint}")


def decode(text: str, arrays: dict[str, np.ndarray]) -> Any:
    """Build the tree that `encode` was given from its JSON; takes the arrays that it names out of `arrays`.

    Every array is taken once, so that no file can ask for many copies of one. Objects are turned into what they stand
    for while the text is parsed, so that there is no second tree.
    """

    def decoded(pairs: list[tuple[str, Any]]) -> Any:
        value = unique(pairs)
        if "$tensor" in value:
            array, form = arrays.pop(value["$tensor"]), value.get("form")
            return array[()] if form == "scalar" else np.asfortranarray(array) if form == "F" else array
        if "$tuple" in value:
            return tuple(_listed(value["$tuple"]))
        if "$float" in value:
            return float(value["$float"])
        if "$items" in value:
            return {key: item for key, item in map(_listed, _listed(value["$items"]))}  # noqa: C416 (pairs only)
        return value

    return json.loads(text, object_pairs_hook=decoded, parse_constant=_refuse_constant)


def parse(text: bytes) -> Any:
    """Parse plain JSON, as strictly as `decode`."""
    return json.loads(text, object_pairs_hook=unique, parse_constant=_refuse_constant)


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dict of an object's pairs; CheckpointError if a name occurs twice."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise CheckpointError("a name occurs twice")
    return result


def _listed(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise CheckpointError("a list is missing")
    return value


def _refuse_constant(text: str) -> Any:
    raise CheckpointError(f"{text} is not JSON")


def dtype_name(dtype: np.dtype) -> str | None:
    """Return safetensors' name of a dtype of either byte order; None if a checkpoint cannot hold it."""
    if dtype.name in _SMALL.values():
        return next(name for name, text in _SMALL.items() if text == dtype.name)
    little = dtype.newbyteorder("<").str
    return next((name for name, text in _DTYPES.items() if text == little), None)


def dtype_of(name: str) -> np.dtype:
    """Return the little-endian dtype of that name; CheckpointError or KeyError if there is none."""
    if name in _SMALL:
        try:
            import ml_dtypes
        except ImportError as error:
            raise CheckpointError(f"{_SMALL[name]} arrays need ml_dtypes: pip install ml_dtypes") from error
        small: np.dtype = np.dtype(getattr(ml_dtypes, _SMALL[name]))
        return small
    return np.dtype(_DTYPES[name])
