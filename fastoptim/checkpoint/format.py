"""Writes and reads the file of a checkpoint; its bytes are described in the package's docstring."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

import numpy as np

from .. import __version__
from . import files
from .encoding import decode, dtype_name, dtype_of, encode, parse
from .files import CheckpointError, naming, open_regular, previous_path

VERSION = 1
MAX_HEADER = 1 << 23  # bytes, unless the arrays have more; what parsing may allocate is a multiple of the header
PREFIX = b'{"__metadata__":{"sha256":"'
DIGITS = 64
_CHUNK = 1 << 20

# What interpreting a file's content may raise, if the content is not what was written.
_MALFORMED = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError)


# --- Writing


def write(path: Any, tree: Any, *, kind: str, keep_previous: bool = True, like: str | None = None) -> None:
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
    like : path, optional
        A file whose mode a new file gets, if there is one. A file that is replaced hands down its own mode.

    Raises
    ------
    TypeError, ValueError
        `tree` holds something that a checkpoint cannot hold, or `path` is a folder; nothing was touched.
    OSError
        The disk is full, the folder is missing, ...; it names the file, and the target is as it was.
    """
    with _written(path, tree, kind, like) as (target, file, temporary):
        identity = _identity(file)
        if os.name == "nt":  # an open file cannot be renamed there
            file.close()
        if keep_previous:
            files.keep_previous(target, temporary, is_intact)
        os.replace(temporary, target)
        _remember_intact(target, identity)
        files.sync_folder(os.path.dirname(target))


def rehearse(path: Any, tree: Any, *, kind: str) -> None:
    """Do what `write` does, and raise what it would raise, up to where it replaces the file."""
    with _written(path, tree, kind):
        pass


@contextlib.contextmanager
def _written(path: Any, tree: Any, kind: str, like: str | None = None) -> Iterator[tuple[str, IO[bytes], str]]:
    """Where the file belongs that `path` names, and a whole one beside it, open, with its name."""
    header, arrays = _prepared(tree, kind)
    target = os.path.realpath(os.fspath(path))
    files.check_replaceable(target)
    with naming(target), files.temporary_file(target, like) as (file, temporary):
        write_file(file, header, arrays)
        yield target, file, temporary


def check_tree(tree: Any, *, kind: str) -> None:
    """Raise what `write` would raise because of `tree`: something that a checkpoint cannot hold, or too much of it."""
    _prepared(tree, kind)


def _prepared(tree: Any, kind: str) -> tuple[bytes, list[np.ndarray]]:
    """The header of a file that holds `tree`, and its arrays in their order."""
    arrays: dict[str, np.ndarray] = {}
    try:
        text = json.dumps(encode(tree, "", arrays), allow_nan=False, separators=(",", ":"))
    except RecursionError:
        raise ValueError("a checkpoint cannot hold what is nested so deeply, or holds itself") from None
    ordered = sorted(arrays.items(), key=lambda item: -item[1].itemsize)  # keeps every array aligned within the file
    return make_header(text, ordered, kind), [array for _, array in ordered]


def make_header(text: str, arrays: Sequence[tuple[str, np.ndarray]], kind: str) -> bytes:
    """Make a file's header, with a checksum of zeros; ValueError if it would be too long to be read."""
    metadata = {
        "sha256": "0" * DIGITS,
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
            "dtype": dtype_name(array.dtype),
            "shape": list(array.shape),
            "data_offsets": [begin, end],
        }
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    limit = longest_header(end)
    if len(header) > limit:
        raise ValueError(
            f"a checkpoint's header may have {limit} bytes here, this one has {len(header)}: store numbers in arrays, "
            f"not in lists, and in fewer arrays than these {len(arrays)} (fastoptim.pack joins those of a model)"
        )
    return header


def longest_header(data: int) -> int:
    """Return how many bytes a header may have beside so many bytes of arrays."""
    return max(MAX_HEADER, data)


def write_file(file: IO[bytes], header: bytes, arrays: Sequence[np.ndarray]) -> None:
    """Write a whole file, put its checksum in, and sync it."""
    digest = hashlib.sha256()
    for part in (len(header).to_bytes(8, "little"), header):
        digest.update(part)
        file.write(part)
    for array in arrays:
        if array.size:
            raw = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1).view(np.uint8)
            digest.update(raw.data)
            file.write(raw.data)
    file.seek(8 + len(PREFIX))
    file.write(digest.hexdigest().encode())
    file.flush()
    os.fsync(file.fileno())


# --- Reading


def read(path: Any, *, kind: str | tuple[str, ...]) -> Any:
    """Read the tree that `write` wrote to `path`.

    Raises
    ------
    CheckpointError
        The file is cut, altered, hostile, from a newer version or of another kind, whatever its bytes are.
    OSError
        There is no file, or it may not be read.
    """
    return read_with_checksum(path, kind=kind)[0]


def read_with_checksum(path: Any, *, kind: str | tuple[str, ...]) -> tuple[Any, str]:
    """Read as `read` does; the second result is the file's SHA-256, by which processes can tell that it is the same."""
    target = os.path.realpath(os.fspath(path))
    _intact.pop(target, None)
    with naming(target), open_regular(path) as file:
        try:
            header, size = _read_verified_header(file)
            tree = _read_content(file, header, size, (kind,) if isinstance(kind, str) else kind)
            _remember_intact(target, _identity(file))
            return tree, _stated_checksum(header)
        except CheckpointError as error:
            raise CheckpointError(f"{os.fspath(path)}: {error}") from error
        except _MALFORMED as error:
            raise CheckpointError(
                f"{os.fspath(path)}: malformed ({type(error).__name__}: {shortened(error)})"
            ) from error


def read_optimizer(path: Any) -> tuple[str, Any, str]:
    """Read the checkpoint of an optimizer or of `fit`; of `fit` on several processes the one beside it that it names.

    Returns
    -------
    path, tree, checksum
        Of the file that holds the optimizer's part.
    """
    path = os.fspath(path)
    tree, checksum = read_with_checksum(path, kind=("optimizer", "training", "slices"))
    with malformed(f"{path}: the state of training"):
        beside = tree["loop"]["optimizer_file"] if "loop" in tree else None
        if beside is None:
            return path, tree, checksum
        file, wanted = files.beside(path, beside), tree["loop"]["optimizer_checksum"]
    tree, checksum = read_with_checksum(file, kind=("optimizer", "slices"))
    if checksum != wanted:
        raise CheckpointError(f"{path}: the optimizer's part, {file}, is of another checkpoint")
    return file, tree, checksum


def read_latest(path: Any, *, kind: str, warn: Callable[[str], None]) -> Any:
    """Read as `read` does; where that fails, the previous checkpoint, after `warn` was told."""
    try:
        return read(path, kind=kind)
    except (FileNotFoundError, CheckpointError) as error:
        if not os.path.exists(previous_path(path)):
            raise
        tree = read(previous_path(path), kind=kind)
        warn(f"{error}; going on from the checkpoint before it")
        return tree


@contextlib.contextmanager
def names_previous(path: Any) -> Iterator[None]:
    """Let the error of a file that is missing or damaged name the checkpoint before it, if there is one."""
    try:
        yield
    except (FileNotFoundError, CheckpointError) as error:
        if os.path.exists(previous_path(path)):
            hint = f"; the checkpoint before it is {os.path.basename(previous_path(path))}"
            if isinstance(error, CheckpointError):
                error.args = (f"{error}{hint}",)
            else:
                error.strerror = f"{error.strerror}{hint}"
        raise


def stated_kind(path: Any) -> str | None:
    """Read which kind of checkpoint a file says it is, without looking at its arrays; None if it is no checkpoint."""
    try:
        with open_regular(path, follow=False) as file:
            return str(_metadata(_entries(_read_header(file)[1]))["kind"])
    except (OSError, *_MALFORMED):
        return None


def stated_tree(path: Any) -> Any:
    """Read the tree of a checkpoint file with zeros in place of its arrays; nothing is compared with the checksum."""
    with malformed("what a checkpoint states"), open_regular(path) as file:
        entries = _entries(_read_header(file)[1])
        return decode(_metadata(entries)["tree"], dict.fromkeys(entries, np.zeros(())))


@contextlib.contextmanager
def malformed(what: str) -> Iterator[None]:
    """Turn whatever interpreting a file's content raises into a CheckpointError."""
    try:
        yield
    except CheckpointError:
        raise
    except _MALFORMED as error:
        raise CheckpointError(f"{what} does not fit: {shortened(error)}") from error


def shortened(error: BaseException) -> str:
    """Return an error's text, of a hostile file's the beginning."""
    text = str(error)
    return text if len(text) <= 200 else text[:200] + "..."


def _read_header(file: IO[bytes]) -> tuple[bytes, bytes, int]:
    """The first eight bytes, the header and the file's size."""
    size = os.fstat(file.fileno()).st_size
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or not len(PREFIX) + DIGITS <= length <= size - 8:
        raise CheckpointError("not a checkpoint, or cut off")
    if length > longest_header(size - 8 - length):
        raise CheckpointError("not a checkpoint, or cut off")
    header = file.read(length)
    if len(header) != length or not header.startswith(PREFIX):
        raise CheckpointError("not a checkpoint of fastoptim")
    return start, header, size


def _read_verified_header(file: IO[bytes]) -> tuple[bytes, int]:
    """The header and the file's size, after the checksum was compared with that of the whole file."""
    start, header, size = _read_header(file)
    digits = slice(len(PREFIX), len(PREFIX) + DIGITS)
    digest = hashlib.sha256(start)
    digest.update(header[: digits.start])
    digest.update(b"0" * DIGITS)
    digest.update(memoryview(header)[digits.stop :])
    read = 8 + len(header)
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
        read += len(chunk)
    if read != size or digest.hexdigest().encode() != header[digits]:
        raise CheckpointError("damaged: its checksum does not match its content")
    return header, size


def checksum_stated_in(path: Any) -> str:
    """Read the checksum that a checkpoint file begins with; nothing is compared with it."""
    with open(path, "rb") as file:
        return _stated_checksum(file.read(8 + len(PREFIX) + DIGITS)[8:])


def _stated_checksum(header: bytes) -> str:
    return header[len(PREFIX) : len(PREFIX) + DIGITS].decode("ascii", "replace")


def _entries(header: bytes) -> dict[str, Any]:
    if not header.isascii():  # `json.dumps` wrote it; other characters would take four bytes each
        raise CheckpointError("a header that is not ASCII")
    entries: dict[str, Any] = parse(header)
    return entries


def _metadata(entries: dict[str, Any]) -> dict[str, str]:
    """Take the metadata out of a header's entries."""
    metadata: dict[str, str] = entries.pop("__metadata__")
    if not all(isinstance(value, str) for value in metadata.values()) or metadata["format"] != "fastoptim":
        raise CheckpointError("not a checkpoint of fastoptim")
    return metadata


def _read_content(file: IO[bytes], header: bytes, size: int, kinds: tuple[str, ...]) -> Any:
    entries = _entries(header)
    metadata = _metadata(entries)
    if not re.fullmatch("[1-9][0-9]{0,8}", metadata["version"], re.ASCII):
        raise CheckpointError("no valid version number")
    if int(metadata["version"]) > VERSION:
        raise CheckpointError(
            f"format version {metadata['version']}, written by {metadata.get('software', '')[:80]!r}; this fastoptim "
            f"({__version__}) reads version {VERSION}"
        )
    if metadata["kind"] not in kinds:
        how = _SAVED if metadata["kind"] in ("optimizer", "slices") and "training" in kinds else ""
        raise CheckpointError(f"a checkpoint of kind {metadata['kind'][:80]!r}, expected {' or '.join(kinds)}{how}")
    text = metadata["tree"]
    if not text.isascii():
        raise CheckpointError("a tree that is not ASCII")
    specs = _array_specs(entries, size - 8 - len(header))
    entries.clear()
    file.seek(8 + len(header))
    arrays = {name: _read_array(file, *spec) for name, spec in specs}
    tree = decode(text, arrays)
    if arrays:
        raise CheckpointError("an array that the tree does not name")
    return tree


_SAVED = ": an optimizer's save wrote it: read it with opt.load, then call fit without resume"


def _array_specs(entries: dict[str, Any], available: int) -> list[tuple[str, tuple[np.dtype, tuple[int, ...]]]]:
    """Name, dtype and shape of every array in the order of the file, after checking that they fill it exactly."""
    specs, end = [], 0
    for name, entry in entries.items():
        if set(entry) != {"dtype", "shape", "data_offsets"}:
            raise CheckpointError("an array is not described as it should be")
        dtype, shape, offsets = dtype_of(entry["dtype"]), entry["shape"], entry["data_offsets"]
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


# --- Which files are known to be intact: those that this process has written or read whole need not be read again

_intact: dict[str, tuple[int, int, int]] = {}


def is_intact(path: str) -> bool:
    """Tell whether a file's checksum matches its content."""
    try:
        if _intact.get(path) != _identity(path):
            with open_regular(path) as file:
                _read_verified_header(file)
    except CheckpointError:
        return False
    return True


def _identity(file: IO[bytes] | str) -> tuple[int, int, int]:
    status = os.stat(file if isinstance(file, str) else file.fileno())
    return status.st_ino, status.st_size, status.st_mtime_ns


def _remember_intact(path: str, identity: tuple[int, int, int]) -> None:
    if len(_intact) >= 64:  # slices have new names at every save
        _intact.clear()
    _intact[path] = identity
