"""Replaces files as a whole: a reader finds the old file or the new one, never half of one."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from typing import IO, Any

from ..common.public import public
from ..common.text import printable

try:
    import fcntl
except ImportError:  # not on this platform
    fcntl = None  # type: ignore[assignment]

_ATTEMPTS = 1000  # to find two files while others write to their place
_BINARY = getattr(os, "O_BINARY", 0)


@public
class CheckpointError(ValueError):
    """A file is not a whole checkpoint, or not one of this model, optimizer and data."""

    def __str__(self) -> str:  # which may quote what the file says
        return printable(super().__str__())


def check_target(path: Any) -> None:
    """Raise what would keep `write` from putting a file there: a file is made beside it, and removed.

    FileNotFoundError for a missing folder; ValueError where `path`, or the place of the previous checkpoint, is a
    folder or device; OSError, which names the file, where the folder is read-only or the name too long.
    """
    target = os.path.realpath(os.fspath(path))
    check_replaceable(target)
    with naming(target), temporary_file(target):
        pass


def check_replaceable(target: str) -> None:
    """Raise what can be told without touching anything: a missing folder, a name that is too long or no file's."""
    folder, name = os.path.split(target)
    if not os.path.isdir(folder):
        raise FileNotFoundError(errno.ENOENT, "the folder for a checkpoint is missing", folder)
    limit = _longest_name(folder)
    if len(os.fsencode(name)) > limit:
        raise OSError(errno.ENAMETOOLONG, f"the name of a checkpoint may have {limit} bytes here", target)
    for place in (target, previous_path(target)):
        if os.path.exists(place) and not os.path.isfile(place):
            raise ValueError(f"{place} is a folder or device: a checkpoint would take its place")


def _longest_name(folder: str) -> int:
    """How many bytes a target's name may have, so that those of its temporary files are not too long."""
    limit = 0
    with contextlib.suppress(AttributeError, OSError, ValueError):
        limit = os.pathconf(folder, "PC_NAME_MAX")
    return (limit if limit > 0 else 255) - len(_spare(_temporary("", "0" * 8)))


def previous_path(path: Any) -> str:
    """Return where `write` keeps what was at `path` before."""
    return str(os.path.realpath(os.fspath(path))) + ".previous"


def beside(path: str, name: str) -> str:
    """Return where the file is that the checkpoint at `path` names; what it says of folders is left out."""
    return os.path.join(os.path.dirname(path), os.path.basename(name))


@contextlib.contextmanager
def naming(path: str) -> Iterator[None]:
    """Let an OSError that names no file, such as that of a full disk, name this one."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = path
        raise


def _temporary(name: str, token: str) -> str:
    return f".{name}.{token}.tmp"


def _spare(temporary: str) -> str:
    return f"{temporary[: -len('.tmp')]}_.tmp"


def temporary_pattern(name: str) -> str:
    """Return the regular expression of the names that temporary files of the file `name` have."""
    return rf"\.{name}\.[0-9a-f]{{8}}_?\.tmp"


@contextlib.contextmanager
def temporary_file(target: str, like: str | None = None) -> Iterator[tuple[IO[bytes], str]]:
    """Make a new file beside `target`; it is gone afterwards unless it was renamed. Those of dead writers are removed.

    A writer holds a lock on its file while it lives: what can be locked has been left behind. The file has the mode of
    `target`, or else of `like`, if there is one, from the beginning.
    """
    folder, name = os.path.split(target)
    pattern = re.compile(temporary_pattern(re.escape(name)))
    for entry in os.listdir(folder):
        if pattern.fullmatch(entry):
            remove_abandoned(os.path.join(folder, entry))
    mode = _mode_of(target, like)
    while True:
        temporary = os.path.join(folder, _temporary(name, secrets.token_hex(4)))
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _BINARY
            descriptor = os.open(temporary, flags, 0o666 if mode is None else mode & 0o600)
        except FileExistsError:
            continue
        file = os.fdopen(descriptor, "r+b")
        if fcntl is None or _lock(file, temporary):
            break
        file.close()
    try:
        if mode is not None and hasattr(os, "fchmod"):
            os.fchmod(file.fileno(), mode)
        yield file, temporary
    finally:
        file.close()  # no system then minds that it is removed, and another writer may do so first
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def replace(path: Any, data: bytes) -> None:
    """Put a file with these bytes at `path`, in place of what is there; a device or a pipe is written to."""
    target = os.path.realpath(os.fspath(path))
    if os.path.exists(target) and not os.path.isfile(target):
        with open(target, "wb") as file:
            file.write(data)
        return
    with naming(target), temporary_file(target) as (file, temporary):
        file.write(data)
        file.flush()
        if os.name == "nt":  # an open file cannot be renamed there
            file.close()
        os.replace(temporary, target)


def _mode_of(*paths: str | None) -> int | None:
    """The mode of the first of these files that is there."""
    for path in paths:
        with contextlib.suppress(OSError):
            if path is not None:
                return stat.S_IMODE(os.stat(path).st_mode)
    return None


def _lock(file: IO[bytes], path: str) -> bool:
    """Lock `file`; False if somebody has removed it in between."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        return os.path.exists(path)
    except OSError:  # a file system without locks: nothing is ever removed there
        return True


def remove_abandoned(path: str) -> None:
    """Remove a temporary file that no writer holds; nothing that is not a regular file."""
    if fcntl is not None:
        with contextlib.suppress(OSError, CheckpointError), open_regular(path, follow=False) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)


def keep_previous(target: str, temporary: str, is_intact: Callable[[str], bool]) -> None:
    """Make `target`'s content available as the previous checkpoint, without ever taking `target` away.

    Unless it is damaged and there is a previous one: until `target` is replaced, that may be the only good one. Where
    another writer takes a file away in between, this begins again: it has put another one there.
    """
    previous, spare = previous_path(target), _spare(temporary)
    for _ in range(_ATTEMPTS):
        try:
            if not os.path.exists(target):
                return
            if os.path.exists(previous) and (os.path.samefile(target, previous) or not is_intact(target)):
                return
            os.link(target, spare)
        except FileNotFoundError:
            continue
        except OSError:
            break
        with contextlib.suppress(FileNotFoundError):
            os.replace(spare, previous)
            return
    # A file system without hard links; `read_latest` knows what to do if this is where it ends.
    with contextlib.suppress(FileNotFoundError):
        os.replace(target, previous)


def sync_folder(folder: str) -> None:
    """Make a renaming in `folder` outlast a power failure."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def open_regular(path: Any, follow: bool = True) -> Iterator[IO[bytes]]:
    """Open a regular file for reading, at once; CheckpointError if it is something else, a named pipe for example."""
    # Without O_NONBLOCK, opening a named pipe would wait for a writer.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _BINARY | (0 if follow else getattr(os, "O_NOFOLLOW", 0))
    descriptor = os.open(path, flags)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise CheckpointError(f"{os.fspath(path)}: not a regular file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(descriptor)
