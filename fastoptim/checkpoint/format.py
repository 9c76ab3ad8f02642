"""Checkpoints: one safetensors file that is either whole or refused, and never a reason to run code.

Format (version 1). A safetensors file: 8 bytes of header length, a JSON header, the arrays' bytes, all in C order and
little-endian. The header begins with ``{"__metadata__":{"sha256":"<64 hex digits>"``, the SHA-256 of the whole file
with these digits as zeros. The other metadata are "format" ("fastoptim"), "version", "kind", "software" and "tree": the
saved tree as JSON, in which ``{"$tensor": name}`` stands for an array of the file.

A file is written beside its target, synced, and renamed; the target's last content stays as ``<name>.previous``. So at
every moment, whatever happens to the process, the target is a whole checkpoint, the new one or the last one. Loading
reads the file (no memory map), checks all of it before anything is built from it, and allocates no more than a multiple
of the file's size.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from .. import __version__

if TYPE_CHECKING:
    pass
from .files import (
    CheckpointError,
    _keep_previous,
    _open,
    _sync_folder,
    _temporary,
    check_target,
    previous_path,
)

VERSION = 1
MAX_HEADER = 1 << 24  # bytes; what parsing may allocate is a multiple of this
_PREFIX = b'{"__metadata__":{"sha256":"'
_DIGITS = 64
_CHUNK = 1 << 20
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


def _encode(value: Any, path: str, arrays: dict[str, np.ndarray]) -> Any:
    """`value` as JSON; arrays go to `arrays` under the path where they were found."""
    if isinstance(value, (np.ndarray, np.generic)):
        if isinstance(value, np.ma.MaskedArray) or _dtype_name(value.dtype) is None:
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
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": repr(value)}
    if isinstance(value, tuple):
        return {"$tuple": [_encode(item, f"{path}/{i}", arrays) for i, item in enumerate(value)]}
    if isinstance(value, list):
        return [_encode(item, f"{path}/{i}", arrays) for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        items = [(key, _encode(item, f"{path}/{key}" if path else str(key), arrays)) for key, item in value.items()]
        if all(isinstance(key, str) and not key.startswith("$") for key, _ in items):
            return dict(items)
        keys: dict[str, np.ndarray] = {}
        encoded = {"$items": [[_encode(key, path, keys), item] for key, item in items]}
        if keys:
            raise TypeError(f"{path}: a checkpoint cannot hold a mapping whose keys are NumPy scalars")
        return encoded
    raise TypeError(f"{path}: a checkpoint cannot hold a {type(value).__name__}")


def _decode(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """The tree that `_encode` was given. Every array is taken once, so that no file can ask for many copies of one."""
    if isinstance(value, list):
        return [_decode(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    if "$tensor" in value:
        array, form = arrays.pop(value["$tensor"]), value.get("form")
        return array[()] if form == "scalar" else np.asfortranarray(array) if form == "F" else array
    if "$tuple" in value:
        return tuple(_decode(item, arrays) for item in value["$tuple"])
    if "$float" in value:
        return float(value["$float"])
    if "$items" in value:
        return {_decode(key, arrays): _decode(item, arrays) for key, item in value["$items"]}
    return {key: _decode(item, arrays) for key, item in value.items()}


def _dtype_name(dtype: np.dtype) -> str | None:
    if dtype.name == "bfloat16":
        return "BF16"
    little = dtype.newbyteorder("<").str
    return next((name for name, text in _DTYPES.items() if text == little), None)


def _dtype(name: str) -> np.dtype:
    if name == "BF16":
        try:
            import ml_dtypes
        except ImportError as error:
            raise CheckpointError('bfloat16 arrays need ml_dtypes: pip install "fastoptim[lowprec]"') from error
        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(_DTYPES[name])


def write(path: Any, tree: Any, *, kind: str, keep_previous: bool = True) -> None:
    """Write `tree` to a checkpoint file, so that the file is at every moment whole: the last one or this one.

    Parameters
    ----------
    path : path
        Where to; the folder must exist.
    tree : nesting of mappings, lists and tuples
        Leaves are None, bool, int, float, str, NumPy scalars and arrays. What is read back has the same values, types
        and dtypes, dicts for mappings; arrays in C order, or in Fortran order where that was theirs.
    kind : str
        What it is ("optimizer", "training"): `read` asks for it.
    keep_previous : bool
        Whether the file that is replaced stays as ``<name>.previous``. One that is damaged takes no checkpoint's place.

    Raises
    ------
    TypeError, ValueError
        `tree` holds something that a checkpoint cannot hold, or `path` is a folder; nothing was touched.
    OSError
        The disk is full, the folder is missing, ...; the target is as it was.
    """
    arrays: dict[str, np.ndarray] = {}
    text = json.dumps(_encode(tree, "", arrays), allow_nan=False, separators=(",", ":"))
    ordered = sorted(arrays.items(), key=lambda item: -item[1].itemsize)  # keeps every array aligned within the file
    header = _header(text, ordered, kind)
    target = os.path.realpath(os.fspath(path))
    check_target(target)
    with _temporary(target) as (file, temporary):
        _write_file(file, header, [array for _, array in ordered])
        written = _identity(file)
        if os.name == "nt":  # an open file cannot be renamed there
            file.close()
        if keep_previous:
            _keep_previous(target, temporary, _is_whole)
        os.replace(temporary, target)
    _remember(target, written)
    _sync_folder(os.path.dirname(target))


def _header(text: str, arrays: list[tuple[str, np.ndarray]], kind: str) -> bytes:
    metadata = {
        "sha256": "0" * _DIGITS,
        "format": "fastoptim",
        "version": str(VERSION),
        "kind": kind,
        "software": f"fastoptim {__version__}, numpy {np.__version__}, python {sys.version.split()[0]}",
        "tree": text,
    }
    entries: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, array in arrays:
        begin, end = end, end + array.nbytes
        entries[name] = {
            "dtype": _dtype_name(array.dtype),
            "shape": list(array.shape),
            "data_offsets": [begin, end],
        }
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    if len(header) > MAX_HEADER:
        raise ValueError(
            f"a checkpoint's header may have {MAX_HEADER} bytes, this one has {len(header)}: store numbers in arrays, "
            "not in lists"
        )
    return header


def _write_file(file: IO[bytes], header: bytes, arrays: list[np.ndarray]) -> None:
    digest = hashlib.sha256()
    for part in (len(header).to_bytes(8, "little"), header):
        digest.update(part)
        file.write(part)
    for array in arrays:
        if array.size:
            raw = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1).view(np.uint8)
            digest.update(raw.data)
            file.write(raw.data)
    file.seek(8 + len(_PREFIX))
    file.write(digest.hexdigest().encode())
    file.flush()
    os.fsync(file.fileno())


def read(path: Any, *, kind: str | tuple[str, ...]) -> Any:
    """The tree that `write` wrote to `path`.

    Raises
    ------
    CheckpointError
        The file is cut, altered, hostile, from a newer version or of another kind, whatever its bytes are.
    OSError
        There is no file, or it may not be read.
    """
    target = os.path.realpath(os.fspath(path))
    _whole.pop(target, None)
    with _open(path) as file:
        try:
            tree = _read(file, (kind,) if isinstance(kind, str) else kind)
            _remember(target, _identity(file))
            return tree
        except CheckpointError as error:
            raise CheckpointError(f"{os.fspath(path)}: {error}") from error
        except _MALFORMED as error:
            raise CheckpointError(f"{os.fspath(path)}: malformed ({type(error).__name__}: {_short(error)})") from error


def read_latest(path: Any, *, kind: str, warn: Callable[[str], None]) -> Any:
    """`read`, or where that fails the previous checkpoint, after `warn` was told."""
    try:
        return read(path, kind=kind)
    except (FileNotFoundError, CheckpointError) as error:
        if not os.path.exists(previous_path(path)):
            raise
        tree = read(previous_path(path), kind=kind)
        warn(f"{error}; going on from the checkpoint before it")
        return tree


def _short(error: BaseException) -> str:
    text = str(error)
    return text if len(text) <= 200 else text[:200] + "..."


def _checked_header(file: IO[bytes]) -> tuple[bytes, int]:
    """The header and the file's size, after its checksum was compared."""
    size = os.fstat(file.fileno()).st_size
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or not len(_PREFIX) + _DIGITS <= length <= min(MAX_HEADER, size - 8):
        raise CheckpointError("not a checkpoint, or cut off")
    header = file.read(length)
    if len(header) != length or not header.startswith(_PREFIX):
        raise CheckpointError("not a checkpoint of fastoptim")
    _verify(file, start, header, size)
    return header, size


def _read(file: IO[bytes], kinds: tuple[str, ...]) -> Any:
    header, size = _checked_header(file)
    length = len(header)
    entries = json.loads(header, object_pairs_hook=_unique, parse_constant=_no_constant)
    metadata = entries.pop("__metadata__")
    if not all(isinstance(value, str) for value in metadata.values()) or metadata["format"] != "fastoptim":
        raise CheckpointError("not a checkpoint of fastoptim")
    if not re.fullmatch("[1-9][0-9]{0,8}", metadata["version"], re.ASCII):
        raise CheckpointError("no valid version number")
    if int(metadata["version"]) > VERSION:
        raise CheckpointError(
            f"format version {metadata['version']}, written by {metadata.get('software', '')[:80]!r}; this fastoptim "
            f"({__version__}) reads version {VERSION}"
        )
    if metadata["kind"] not in kinds:
        raise CheckpointError(f"a checkpoint of kind {metadata['kind'][:80]!r}, expected {' or '.join(kinds)}")
    tree = json.loads(metadata["tree"], object_pairs_hook=_unique, parse_constant=_no_constant)
    specs = _array_specs(entries, size - 8 - length)
    file.seek(8 + length)
    arrays = {name: _read_array(file, *spec) for name, spec in specs}
    tree = _decode(tree, arrays)
    if arrays:
        raise CheckpointError("an array that the tree does not name")
    return tree


def _verify(file: IO[bytes], start: bytes, header: bytes, size: int) -> None:
    """CheckpointError unless the checksum is that of the whole file."""
    digits = slice(len(_PREFIX), len(_PREFIX) + _DIGITS)
    digest = hashlib.sha256(start)
    digest.update(header[: digits.start])
    digest.update(b"0" * _DIGITS)
    digest.update(memoryview(header)[digits.stop :])
    read = 8 + len(header)
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
        read += len(chunk)
    if read != size or digest.hexdigest().encode() != header[digits]:
        raise CheckpointError("damaged: its checksum does not match its content")


def _array_specs(entries: dict[str, Any], available: int) -> list[tuple[str, tuple[np.dtype, tuple[int, ...]]]]:
    """Name, dtype and shape of every array in the order of the file, after checking that they fill it exactly."""
    specs, end = [], 0
    for name, entry in entries.items():
        if set(entry) != {"dtype", "shape", "data_offsets"}:
            raise CheckpointError("an array is not described as it should be")
        dtype, shape, offsets = _dtype(entry["dtype"]), entry["shape"], entry["data_offsets"]
        if not isinstance(shape, list) or not isinstance(offsets, list):
            raise CheckpointError("an array is not described as it should be")
        if len(shape) > 32 or any(type(n) is not int or not 0 <= n < 2**63 for n in shape):
            raise CheckpointError("an array has an impossible shape")
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        if any(type(n) is not int for n in offsets) or offsets != [begin, end] or end > available:
            raise CheckpointError("an array is not where it should be")
        specs.append((name, (dtype, tuple(shape))))
    if end != available:
        raise CheckpointError("bytes that belong to no array")
    return specs


def _read_array(file: IO[bytes], dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    array = np.empty(shape, dtype)
    raw = array.reshape(-1).view(np.uint8) if array.size else np.empty(0, np.uint8)
    if raw.size and file.readinto(raw.data) != raw.size:  # type: ignore[attr-defined]
        raise CheckpointError("cut off while it was being read")
    if dtype.kind == "b" and raw.size and raw.max() > 1:
        raise CheckpointError("a truth value is neither 0 nor 1")
    return array.astype(dtype.newbyteorder("="), copy=False)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise CheckpointError("a name occurs twice")
    return result


def _no_constant(text: str) -> Any:
    raise CheckpointError(f"{text} is not JSON")


# Files that this process has written or read whole, so that saving over them need not read them again.
_whole: dict[str, tuple[int, int, int]] = {}


def _identity(file: IO[bytes] | str) -> tuple[int, int, int]:
    status = os.stat(file if isinstance(file, str) else file.fileno())
    return status.st_ino, status.st_size, status.st_mtime_ns


def _remember(path: str, identity: tuple[int, int, int]) -> None:
    if len(_whole) >= 64:  # slices have new names at every save
        _whole.clear()
    _whole[path] = identity


def _is_whole(path: str) -> bool:
    """Whether a file's checksum matches its content."""
    try:
        if _whole.get(path) != _identity(path):
            with _open(path) as file:
                _checked_header(file)
    except CheckpointError:
        return False
    return True


# What interpreting a file's content may raise, if the content is not what was written.
_MALFORMED = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError)


@contextlib.contextmanager
def malformed(what: str) -> Iterator[None]:
    """Whatever interpreting a file's content raises, as CheckpointError."""
    try:
        yield
    except CheckpointError:
        raise
    except _MALFORMED as error:
        raise CheckpointError(f"{what} does not fit: {_short(error)}") from error
