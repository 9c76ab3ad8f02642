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

try:
    import fcntl
except ImportError:  # not on this platform
    fcntl = None  # type: ignore[assignment]


class CheckpointError(ValueError):
    """A file is not a whole checkpoint, or not one of this model, optimizer and data."""


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


def _keep_previous(target: str, temporary: str, is_whole: Callable[[str], bool]) -> None:
    """Make `target`'s content available as the previous checkpoint, without ever taking `target` away.

    Unless it is damaged and there is a previous one: until `target` is replaced, that may be the only good one.
    """
    previous = previous_path(target)
    if not os.path.exists(target):
        return
    if os.path.exists(previous) and (os.path.samefile(target, previous) or not is_whole(target)):
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
