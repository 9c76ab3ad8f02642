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
import errno
import hashlib
import json
import math
import os
import re
import secrets
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from . import __version__
from .interrupts import deferred

if TYPE_CHECKING:
    from .optimizers import Optimizer

try:
    import fcntl
except ImportError:  # not on this platform
    fcntl = None  # type: ignore[assignment]

__all__ = ["CheckpointError", "load_optimizer", "previous_path", "read", "save_optimizer", "write"]

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

# What interpreting a file's content may raise, if the content is not what was written.
_MALFORMED = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError)


class CheckpointError(ValueError):
    """A file is not a whole checkpoint, or not one of this model, optimizer and data."""


# --- Trees <-> JSON and arrays ------------------------------------------------------------------------------------


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


# --- Writing ------------------------------------------------------------------------------------------------------


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
            _keep_previous(target, temporary)
        os.replace(temporary, target)
    _remember(target, written)
    _sync_folder(os.path.dirname(target))


def check_target(path: Any) -> None:
    """Raise what would keep `write` from putting a file there, as far as that can be told beforehand."""
    target = os.path.realpath(os.fspath(path))
    if not os.path.isdir(os.path.dirname(target)):
        raise FileNotFoundError(errno.ENOENT, "the folder for a checkpoint is missing", os.path.dirname(target))
    for name in (target, previous_path(target)):
        if os.path.exists(name) and not os.path.isfile(name):
            raise ValueError(f"{name} is a folder or device: a checkpoint would take its place")


def previous_path(path: Any) -> str:
    """Where `write` keeps what was at `path` before."""
    return os.path.realpath(os.fspath(path)) + ".previous"


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


@contextlib.contextmanager
def _temporary(target: str) -> Iterator[tuple[IO[bytes], str]]:
    """A new file beside `target`; it is gone afterwards unless it was renamed. Those of dead writers are removed.

    A writer holds a lock on its file while it lives: what can be locked has been left behind.
    """
    folder, name = os.path.split(target)
    pattern = re.compile(rf"\.{re.escape(name)}\.\w+\.tmp")
    for entry in os.listdir(folder) if fcntl else ():
        if pattern.fullmatch(entry):
            _remove_if_abandoned(os.path.join(folder, entry))
    while True:
        temporary = os.path.join(folder, f".{name}.{secrets.token_hex(4)}.tmp")
        try:
            descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        except FileExistsError:
            continue
        file = os.fdopen(descriptor, "r+b")
        if fcntl is None or _lock(file, temporary):
            break
        file.close()
    try:
        yield file, temporary
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    finally:
        file.close()


def _lock(file: IO[bytes], path: str) -> bool:
    """Lock `file`; False if somebody has removed it in between."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        return os.path.exists(path)
    except OSError:  # a file system without locks: nothing is ever removed there
        return True


def _remove_if_abandoned(path: str) -> None:
    with contextlib.suppress(OSError), open(path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)


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


def _keep_previous(target: str, temporary: str) -> None:
    """Make `target`'s content available as the previous checkpoint, without ever taking `target` away.

    Unless it is damaged and there is a previous one: until `target` is replaced, that may be the only good one.
    """
    previous = previous_path(target)
    if not os.path.exists(target):
        return
    if os.path.exists(previous) and (os.path.samefile(target, previous) or not _is_whole(target)):
        return
    spare = f"{temporary[: -len('.tmp')]}_.tmp"
    try:
        os.link(target, spare)
    except OSError:  # a file system without hard links; `read_latest` knows what to do if this is where it ends
        os.replace(target, previous)
        return
    os.replace(spare, previous)


def _sync_folder(folder: str) -> None:
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- Reading ------------------------------------------------------------------------------------------------------


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


@contextlib.contextmanager
def _open(path: Any) -> Iterator[IO[bytes]]:
    # Without O_NONBLOCK, opening a named pipe would wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise CheckpointError(f"{os.fspath(path)}: not a regular file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(descriptor)


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


# --- Optimizers ---------------------------------------------------------------------------------------------------


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
                raise CheckpointError(f"step must be an int64, got {_short(entry['step'])}")
        for group in state["param_groups"]:
            if any(_holds_array(value) for value in group.values()):
                raise CheckpointError("a hyper-parameter is an array")
        for name, p in named:
            optimizer._backend.check_parameter(name, p)
        with deferred():
            optimizer._load(state)
            for name, p in named:
                assign(p, saved[name])


# --- Slices: what several processes write, each its part, before one of them commits the whole ------------------------


def slice_path(target: str, token: str, rank: int) -> str:
    """Where process number `rank` writes its slice of the checkpoint `target`; `token` is new for each."""
    return f"{target}.{token}.{rank}"


def remove_old_slices(target: str) -> None:
    """Remove slices that neither the checkpoint `target` nor the one before it is made of."""
    folder, name = os.path.split(target)
    keep = set()
    for path in (target, previous_path(target)):
        with contextlib.suppress(OSError, CheckpointError):
            keep |= {entry["file"] for entry in read(path, kind="slices")["slices"]}
    pattern = re.compile(rf"\.?({re.escape(name)}\.[0-9a-f]{{16}}\.[0-9]+)(\.\w+\.tmp)?")
    for entry in os.listdir(folder):
        match = pattern.fullmatch(entry)
        if match and match[1] not in keep:
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(folder, entry))


def check_slices(tree: Any, expected: Mapping[str, tuple[tuple[int, ...], np.dtype]]) -> None:
    """CheckpointError unless the checkpoint is of parameters with these names, shapes and dtypes."""
    if set(tree["params"]) != set(expected):
        raise CheckpointError("it has other parameters than this model")
    for name, (shape, dtype) in expected.items():
        saved = tree["params"][name]
        if saved["dtype"] != dtype.name or tuple(saved["shape"]) != tuple(shape):
            raise CheckpointError(f"parameter {name!r} is not of shape {tuple(shape)} and dtype {dtype.name}")


def read_slices(path: Any, tree: Any, wanted: Mapping[str, tuple[int, int]]) -> dict[str, dict[str, Any]]:
    """Name of a parameter -> "step", and elements `start` to `stop` of "parameter" and of every state, flat.

    Only the files are read that hold some of what is `wanted`.
    """
    folder = os.path.dirname(os.path.realpath(os.fspath(path)))
    result: dict[str, dict[str, Any]] = {}
    missing = {name: stop - start for name, (start, stop) in wanted.items()}
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
        for name, start, stop, step, arrays in content["parts"]:
            common = name in wanted and _common(wanted[name], (start, stop))
            if common:
                dtype = np.dtype(tree["params"][name]["dtype"])
                _fill_in(result, name, wanted[name], start, common, step, arrays, dtype)
                missing[name] -= common[1] - common[0]
    if any(missing.values()) or set(result) != set(wanted):
        raise CheckpointError("its slices do not make up the whole")
    return result


def _common(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int] | None:
    """What two ranges share; an empty range shares itself with an empty one."""
    low, high = max(a[0], b[0]), min(a[1], b[1])
    return (low, high) if low < high or (a[0] == a[1] and b[0] == b[1]) else None


def _fill_in(
    result: dict[str, dict[str, Any]],
    name: str,
    wanted: tuple[int, int],
    start: int,
    common: tuple[int, int],
    step: int,
    arrays: dict[str, np.ndarray],
    dtype: np.dtype,
) -> None:
    """Copy the common part of a saved range into what was asked for."""
    if name not in result:
        blank = {key: np.empty(wanted[1] - wanted[0], dtype) for key in arrays}
        result[name] = {"step": step, **blank}
    target = result[name]
    if target["step"] != step or set(arrays) != set(target) - {"step"}:
        raise CheckpointError(f"its slices differ in what they say about parameter {name!r}")
    for key, x in arrays.items():
        if x.dtype != dtype:
            raise CheckpointError(f"{key} of parameter {name!r} is not of dtype {dtype.name}")
        target[key][common[0] - wanted[0] : common[1] - wanted[0]] = x[common[0] - start : common[1] - start]


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


@contextlib.contextmanager
def malformed(what: str) -> Iterator[None]:
    """Whatever interpreting a file's content raises, as CheckpointError."""
    try:
        yield
    except CheckpointError:
        raise
    except _MALFORMED as error:
        raise CheckpointError(f"{what} does not fit: {_short(error)}") from error


def check_arrays(expected: Mapping[str, Any], saved: Any) -> None:
    """CheckpointError unless `saved` has arrays of the names, shapes and dtypes of `expected`."""
    if not isinstance(saved, dict) or set(saved) != set(expected):
        raise CheckpointError("it has other parameters than this model")
    for name, p in expected.items():
        device = getattr(p, "__cuda_array_interface__", None)
        shape, dtype = (p.shape, p.dtype) if device is None else (device["shape"], np.dtype(device["typestr"]))
        dtype = dtype.newbyteorder("=")  # as files are read
        x = saved[name]
        if not isinstance(x, np.ndarray) or x.dtype != dtype or x.shape != tuple(shape):
            raise CheckpointError(f"parameter {name!r} is not of shape {tuple(shape)} and dtype {dtype}")


def check_assignable(expected: Mapping[str, Any], saved: Mapping[str, np.ndarray]) -> None:
    """ValueError if one of the arrays is read-only and holds other values than the saved ones."""
    for name, p in expected.items():
        if not _is_settled(p, saved[name]):
            raise ValueError(f"parameter {name!r} is read-only, and its values differ")


def _is_settled(p: Any, x: np.ndarray) -> bool:
    """Whether nothing is in the way of assigning `x` to `p`: a read-only array must hold these values already."""
    return not isinstance(p, np.ndarray) or p.flags.writeable or p.tobytes() == np.asarray(x, p.dtype).tobytes()


def check_holdable(expected: Mapping[str, Any], in_memory: bool = False) -> None:
    """TypeError unless a checkpoint can hold each of these parameters, or a copy of each can be kept `in_memory`."""
    for name, p in expected.items():
        if isinstance(p, np.ndarray):
            if not in_memory or isinstance(p, np.ma.MaskedArray):
                _encode(p, f"parameter {name!r}", {})
        elif not hasattr(p, "__cuda_array_interface__"):
            raise TypeError(f"parameter {name!r}: a checkpoint cannot hold a {type(p).__name__}; make it an array")


def _holds_array(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(_holds_array, value))
    return isinstance(value, (np.ndarray, dict))


def _named_parameters(optimizer: Optimizer) -> list[tuple[str, Any]]:
    return [
        (name, p) for group in optimizer.param_groups for name, p in zip(group["names"], group["params"], strict=True)
    ]


def to_host(x: Any) -> np.ndarray:
    """`x` itself, or its copy on the host if it is a device's."""
    if isinstance(x, np.ndarray):
        return x
    if hasattr(x, "copy_to_host"):
        return x.copy_to_host()
    from numba import cuda

    return cuda.as_cuda_array(x).copy_to_host()


def assign(p: Any, x: np.ndarray) -> None:
    """``p[...] = x`` for an array on the host or on a device; a read-only one may hold these values already."""
    if isinstance(p, np.ndarray):
        if p.flags.writeable or not _is_settled(p, x):
            p[...] = x
        return
    from numba import cuda

    device = p if hasattr(p, "copy_to_device") else cuda.as_cuda_array(p)
    device[...] = cuda.to_device(np.ascontiguousarray(x))
