"""What an optimizer's arrays are stored in: which dtypes, which arrays a parameter has, and their conversion."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from ..common.validation import choice, count, flag
from ..rules import codecs
from ..rules.codecs import BLOCK, LOW, ROUNDINGS, Stored
from ..rules.table import Rule

STATE_DTYPES = ("float32", "bfloat16", "float8")
MASTER, _SCALE = "master", "_scale"


@cache
def small_dtype(name: str) -> np.dtype[Any] | None:
    """The dtype that NumPy knows as float32, bfloat16, float16, or float8; None if ml_dtypes is needed and missing."""
    if name in ("float32", "float16"):
        return np.dtype(name)
    try:
        import ml_dtypes
    except ImportError:
        return None
    found: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else ml_dtypes.float8_e4m3fn)
    return found


class Storage(NamedTuple):
    """What an optimizer was asked to store its arrays in; see `fastoptim.SGD`."""

    state_dtype: str | None = None
    rounding: str = "stochastic"
    master: bool = False
    seed: int = 0

    @classmethod
    def checked(
        cls, state_dtype: Any = None, rounding: Any = "stochastic", master: Any = False, seed: Any = 0
    ) -> Storage:
        """The arguments of an optimizer's class; TypeError, ValueError or ImportError for what cannot be."""
        if state_dtype is not None:
            state_dtype = choice("state_dtype", state_dtype, STATE_DTYPES)
            if small_dtype(state_dtype) is None:
                raise ImportError(f"state_dtype={state_dtype!r} needs ml_dtypes: pip install ml_dtypes")
        rounding = choice("rounding", rounding, ROUNDINGS)
        return cls(state_dtype, rounding, flag("master", master), count("seed", seed, 0))

    def check(self, name: str, dtype: np.dtype[Any]) -> None:
        """TypeError or ValueError unless a parameter of this dtype can be stored so."""
        if self.state_dtype is not None and dtype == np.float64:
            raise TypeError(
                f"parameter {name!r} is float64, whose states are float64: state_dtype={self.state_dtype!r} is for "
                "float32, bfloat16 and float16"
            )

    def of(self, rule: Rule, dtype: np.dtype[Any], number: int, first: int = 0) -> Stored | None:
        """How a parameter of this dtype with a rule's states is stored; None if in nothing less than it computes in."""
        low = dtype.name in LOW
        state = self.state_dtype or "float32"
        if not low and (dtype == np.float64 or state == "float32" or not rule.states):
            return None
        roots = tuple(name in rule.squares for name in rule.states)
        nearest = self.rounding == "nearest"
        return Stored(dtype.name, state, roots, self.seed, number, first, nearest, self.master and low)


def compute_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype that a parameter of this one is computed in."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def state_arrays(
    rule: Rule, stored: Stored | None, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Name -> shape and dtype of every array that is kept beside a parameter, in the order of kernels."""
    if stored is None:
        return dict.fromkeys(rule.states, (shape, dtype))
    state, size = small_dtype(stored.state), int(np.prod(shape, dtype=np.int64))
    assert state is not None
    arrays: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = dict.fromkeys(rule.states, (shape, state))
    if stored.scales:
        blocks = (-(-size // BLOCK),)
        arrays |= {scale_name(name): (blocks, np.dtype(np.float32)) for name in rule.states}
    if stored.master:
        arrays[MASTER] = (shape, np.dtype(np.float32))
    return arrays


def template(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    """An array of this shape and dtype that takes no memory."""
    return np.broadcast_to(np.zeros((), dtype), shape)


def scale_name(name: str) -> str:
    """What the scales of a float8 state are called."""
    return name + _SCALE


def is_scales(name: str, entry: Mapping[str, Any]) -> bool:
    """Whether an array of an entry of a state dict holds the scales of another."""
    codes = entry.get(name.removesuffix(_SCALE))
    return name.endswith(_SCALE) and isinstance(codes, np.ndarray) and storage_of(codes.dtype) == "float8"


def storage_of(dtype: np.dtype[Any]) -> str | None:
    """What a state of this dtype is stored as; None if no state is."""
    return next((name for name in STATE_DTYPES if small_dtype(name) == dtype), None)


def convertible(name: str, entry: Mapping[str, Any], dtype: np.dtype[Any]) -> bool:
    """Whether a state in an entry of a state dict can be stored otherwise, for a parameter of `dtype`."""
    x, scales = entry[name], entry.get(scale_name(name))
    if not isinstance(x, np.ndarray):
        return False
    if dtype == np.float64:
        return bool(x.dtype == dtype)
    storage = storage_of(x.dtype)
    if storage == "float8":
        return isinstance(scales, np.ndarray) and scales.dtype == np.float32 and scales.shape == (-(-x.size // BLOCK),)
    return storage is not None


def unpack(name: str, entry: Mapping[str, Any], square: bool) -> np.ndarray:
    """A state of an entry that is `convertible`, in float32."""
    x, scales = entry[name], entry.get(scale_name(name))
    flat = np.ascontiguousarray(x).reshape(-1)
    storage = storage_of(x.dtype)
    assert storage is not None
    return codecs.decoded(flat, scales, storage, square).reshape(x.shape)


def pack(x: np.ndarray, name: str, stored: Stored, slot: int, t: int) -> dict[str, np.ndarray]:
    """The arrays in which step `t` would store a state of this float32 array."""
    flat = np.ascontiguousarray(x, np.float32).reshape(-1)
    if stored.state == "float32":
        return {name: flat.reshape(x.shape)}
    codes = np.empty(flat.size, small_dtype(stored.state))
    scales = np.empty(-(-flat.size // BLOCK), np.float32) if stored.scales else None
    codecs.encode(flat, codes, scales, stored.slot(slot, t))
    return {name: codes.reshape(x.shape)} | ({} if scales is None else {scale_name(name): scales})
