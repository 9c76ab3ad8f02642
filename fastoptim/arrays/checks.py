"""Checks host arrays: types, dtypes, shapes, overlaps; and how this thread computes.

Whatever is refused is refused before anything was changed, by a TypeError or ValueError that names the parameter.
"""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterable
from inspect import isroutine
from typing import Any, NamedTuple

import numpy as np

from ..common.trees import instead_of_function
from ..rules.codecs import LOW

Array = np.ndarray
DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


def _in_code(dtype: Any) -> str:
    """What a program calls a dtype."""
    name = np.dtype(dtype).name
    return f"{'np' if hasattr(np, name) else 'ml_dtypes'}.{name}"


def instead_of(x: Any, name: str = "", dtype: str = "np.float64") -> str:
    """What to write instead of `x`, which is no NumPy array; empty where nobody can tell."""
    module = type(x).__module__.partition(".")[0]
    if isinstance(x, np.ma.MaskedArray):
        return ": fill it, x.filled(0)"
    if x.device.type != "cpu" if module == "torch" else hasattr(x, "__cuda_array_interface__"):
        return ": it is on a GPU, where the classes of optimizers step it, by backend='auto' or 'cuda', with all others"
    if module == "torch" and str(x.dtype) == "torch.bfloat16":  # which NumPy has no name for
        low = "bfloat16" in dtype or name
        memory = "view(torch.int16).numpy().view(ml_dtypes.bfloat16)" if low else "float().numpy()"
        return f": hand over its {'memory' if low else 'numbers'}, t.detach().{memory}"
    if module == "torch":
        dense = "to_dense()." if str(x.layout) != "torch.strided" else ""
        return f": hand over its memory, t.detach().{dense}numpy()"
    if module == "fastoptim" and type(x).__name__ == "Rows":
        return (
            ": Rows go to the step of an optimizer, function or adapter in one process; elsewhere rows.to_dense(len(p))"
        )
    if module in ("jax", "jaxlib", "tensorflow", "keras", "mlx"):
        return ": convert it, np.array(x)"
    if module in ("pandas", "polars"):
        return f": convert it, x.to_numpy({dtype})"
    if module == "scipy" and hasattr(x, "toarray"):
        return ": convert it, x.toarray()"
    if callable(getattr(x, "named_parameters", None)):
        return ": hand over its arrays, {name: p.detach().numpy() for name, p in x.named_parameters()}"
    if isroutine(x):
        return ": call it" if name else instead_of_function(x)
    if isinstance(x, ItemsView) or (isinstance(x, str) and name.endswith(".0")):
        return ": make the pairs of names and arrays a dict, dict(pairs)"
    if isinstance(x, (bool, int, float, list, tuple, np.generic)):
        if isinstance(x, np.floating) and x.dtype in DTYPES:
            dtype = _in_code(x.dtype)
        rate = (
            f"; if it is the rate, parameters come first, as in Adam(params, lr={x})"
            if name == "0" and not isinstance(x, (list, tuple))
            else ""
        )
        return f": make it an array, np.array(x, {dtype}){rate}"
    return ""


def check_parameter(name: str, p: Any, role: str = "parameter") -> None:
    """TypeError or ValueError unless `p` is an array that a step can update in place."""
    if not isinstance(p, np.ndarray) or isinstance(p, np.ma.MaskedArray):
        raise TypeError(f"{role} {name!r}: expected a NumPy array, got {type(p).__name__}{instead_of(p, name)}")
    check_stored_dtype(name, p.dtype, role)
    if not p.flags.writeable:
        raise ValueError(f"{role} {name!r} is read-only: make a copy, x.copy()")
    if overlaps_itself(p):
        raise ValueError(f"{role} {name!r}: several of its elements lie at the same address")


def real_array(what: str, x: Any) -> np.ndarray:
    """`x` as an array; TypeError unless it holds real numbers, which NumPy's casts do not ask for."""
    try:
        array = np.asarray(x)
    except (TypeError, RuntimeError) as error:  # from the library that it is of
        hint = instead_of(x) or f": {error}"
        raise TypeError(f"{what}: expected real numbers, got {type(x).__name__}{hint}") from error
    if not _is_real(array.dtype) or isinstance(x, np.ma.MaskedArray):
        plain = isinstance(x, np.ndarray) and not isinstance(x, np.ma.MaskedArray)
        hint = conversion(array.dtype, np.float64) if plain else instead_of(x)
        raise TypeError(f"{what}: expected real numbers, got {type(x).__name__} (dtype {array.dtype.name}){hint}")
    return array


def _is_real(dtype: np.dtype[Any]) -> bool:
    return dtype.kind in "biuf" or (dtype.kind == "V" and dtype.type is not np.void)  # bfloat16 and kin, of ml_dtypes


def conversion(dtype: np.dtype[Any], wanted: Any = None, x: str = "x") -> str:
    """How to make an array one of the dtype `wanted`, or of one that parameters may have; empty if nobody can tell."""
    if dtype.kind == "c" and wanted is not None:
        return f": {x}.real, if its imaginary part is nothing but rounding error"
    if dtype.kind == "c":
        parts = np.float32 if dtype.itemsize == 8 else np.float64
        return f": step its real and imaginary parts, {x}.view({_in_code(parts)})"
    if dtype.kind == "O" and wanted is None:
        return f": if it holds arrays, make it a list of them, list({x})"
    if dtype.kind != "O" and not _is_real(dtype):
        return ""
    fits = np.float32 if dtype.kind in "fV" and dtype.itemsize <= 4 else np.float64
    return f": convert it, {x}.astype({_in_code(wanted or fits)})"


def dtype_name(dtype: np.dtype[Any]) -> str:
    """What people call a dtype; a foreign byte order is named."""
    return dtype.name if dtype.isnative else f"{dtype.name} in foreign byte order ({dtype.str!r})"


def check_dtype(name: str, dtype: np.dtype, role: str = "parameter") -> None:
    """TypeError unless `dtype` is native float32 or float64."""
    if dtype not in DTYPES:
        raise TypeError(
            f"{role} {name!r}: expected native float32 or float64 (the optimizers' classes also take bfloat16 and "
            f"float16), got {dtype_name(dtype)}{conversion(dtype)}"
        )


def check_stored_dtype(name: str, dtype: np.dtype, role: str = "parameter") -> None:
    """TypeError unless `dtype` is native and one that arrays are stored in: float8 only for states."""
    low = dtype.isnative and dtype.name in LOW
    if not (dtype in DTYPES or low or (role not in ("parameter", "gradient") and dtype.name == "float8_e4m3fn")):
        check_dtype(name, dtype, role)


def check_companion(name: str, role: str, x: Any, shape: tuple[int, ...], dtype: np.dtype) -> Array:
    """`x` as the array that goes with parameter `name` in the given role ("gradient", "exp_avg", ...)."""
    if isinstance(x, np.generic) and shape == ():  # NumPy arithmetic turns 0-d arrays into scalars
        x = np.asarray(x)
    if not isinstance(x, np.ndarray) or isinstance(x, np.ma.MaskedArray):
        number = isinstance(x, (bool, int, float, np.generic))
        hint = f": np.full({shape}, x, {_in_code(dtype)})" if number else instead_of(x, dtype=_in_code(dtype))
        raise TypeError(f"{role} of parameter {name!r}: expected a NumPy array, got {type(x).__name__}{hint}")
    check_match(name, role, x.shape, x.dtype, shape, dtype)
    return x


def check_match(
    name: str, role: str, shape: tuple[int, ...], dtype: np.dtype, expected_shape: tuple[int, ...], expected_dtype: Any
) -> None:
    """TypeError or ValueError unless shape and dtype are the expected ones."""
    if dtype != expected_dtype:
        raise TypeError(
            f"{role} of parameter {name!r}: expected dtype {np.dtype(expected_dtype).name}, got {dtype_name(dtype)}"
            f"{conversion(dtype, expected_dtype, 'g' if role == 'gradient' else 'x')}"
        )
    if tuple(shape) != tuple(expected_shape):
        own, wanted = ([n for n in each if n != 1] for each in (shape, expected_shape))
        x = "g" if role == "gradient" else "x"
        hint = f": {x}.reshape({tuple(expected_shape)})" if own == wanted else ""
        raise ValueError(f"{role} of parameter {name!r}: expected shape {expected_shape}, got {tuple(shape)}{hint}")


def check_unchanged(
    name: str, found: tuple[tuple[int, ...], Any], expected: tuple[tuple[int, ...], np.dtype[Any]]
) -> None:
    """ValueError if a parameter's array has another shape or dtype than the one it stands for."""
    if found != expected:
        raise ValueError(
            f"parameter {name!r} was replaced: expected shape {expected[0]} and dtype {expected[1].name}, "
            f"got {found[0]} and {found[1].name}"
        )


def overlaps_itself(x: Array) -> bool:
    """Whether two elements of `x` may share memory (as broadcast and some as_strided arrays do)."""
    if x.flags.c_contiguous or x.flags.f_contiguous or x.size == 0:
        return False
    reach = x.itemsize
    for stride, length in sorted((abs(s), n) for s, n in zip(x.strides, x.shape, strict=True) if n > 1):
        if stride < reach:
            return True
        reach += stride * (length - 1)
    return False


class Span(NamedTuple):
    """The bytes between an array's first and last element, with what to call it in an error."""

    low: int
    high: int
    label: str
    array: Any
    dense: bool


def span(label: str, x: Array) -> Span:
    low, high = np.lib.array_utils.byte_bounds(x)
    return Span(low, high if x.size else low, label, x, x.flags.c_contiguous or x.flags.f_contiguous)


def _share_memory(a: Span, b: Span) -> bool:
    if a.dense and b.dense:
        return True
    try:
        return np.shares_memory(a.array, b.array, max_work=10**6)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


Entry = tuple[int, int, bool, Span]  # first byte, byte behind the last, whether it is written, and what lies there


def first_overlap(entries: list[Entry], collide: Callable[[Span, Span], bool]) -> tuple[Entry, Entry] | None:
    """Two of which one is written, whose bytes overlap and which `collide`; None if there are none."""
    entries = sorted(entries, key=lambda entry: entry[0])
    for i, first in enumerate(entries):
        for second in entries[i + 1 :]:
            if second[0] >= first[1]:
                break
            if (first[2] or second[2]) and collide(first[3], second[3]):
                return first, second
    return None


def check_disjoint(written: Iterable[Span], read: Iterable[Span]) -> None:
    """ValueError if something that is written overlaps anything else."""
    entries = [(s.low, s.high, True, s) for s in written if s.low < s.high]
    entries += [(s.low, s.high, False, s) for s in read if s.low < s.high]
    if found := first_overlap(entries, _share_memory):
        (_, _, writes, first), (_, _, also_writes, second) = found
        gradient = "gradient" in first.label or "gradient" in second.label
        hint = ": copy the gradient, g.copy()" if gradient and not (writes and also_writes) else ""
        raise ValueError(f"{first.label} and {second.label} overlap in memory{hint}")


_SUBNORMAL = np.float32(1e-40)
_ONE = np.float32(1)
_UNIT, _HALF = 1.0, 2.0**-53  # the sum is half way between two numbers


def check_rounding() -> None:
    """FloatingPointError unless this thread rounds to nearest, as IEEE 754 has it by default."""
    if _UNIT + _HALF != _UNIT or _UNIT + 1.5 * _HALF == _UNIT:
        raise FloatingPointError(
            "this thread does not round to nearest (a library has set another mode), so results would not "
            "be exact: set the mode back before the step"
        )


def check_arithmetic() -> None:
    """FloatingPointError unless this thread rounds to nearest and keeps subnormal numbers."""
    check_rounding()
    if _SUBNORMAL * _ONE == 0:
        raise FloatingPointError(
            "this thread flushes subnormal numbers to zero (a library compiled with -ffast-math sets that mode), "
            "so results would not be exact; use backend='c', which is immune, or clear the mode"
        )
