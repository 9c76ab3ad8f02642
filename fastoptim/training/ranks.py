"""Exchanges what the processes of one training run must tell each other."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np

from ..checkpoint.files import CheckpointError


def whole_of(optimizer: Any) -> Any:
    """The optimizer whose states ranks have divided among them, or this one."""
    return getattr(optimizer, "_whole", optimizer)


class Ranks:
    """The processes that train together by one optimizer, which has the communicator `comm`, or the only one."""

    def __init__(self, comm: Any):
        self._comm = comm
        self.rank: int = 0 if comm is None else comm.Get_rank()
        self.size: int = 1 if comm is None else comm.Get_size()
        self._sent, self._received = np.empty(2), np.empty(2)
        self._failed = False  # whether one has told that it ends by an exception

    def common_loss(self, loss: float, flag: float) -> tuple[float, bool]:
        """The mean of all processes' losses, and whether one of them raises its flag.

        Every exchange begins with this one, so that a process that has failed can tell all others, wherever they are.
        """
        self._sent[:] = loss, flag
        self._comm.Allreduce(self._sent, self._received)
        total, flags = self._received.tolist()
        if flags == math.inf:
            self._failed = True
            _raise("training", self._comm.allgather(None))
        return total / self.size, flags > 0

    def fail(self, error: BaseException) -> None:
        """Tell all other processes, which raise at their next exchange, that this one ends by `error`."""
        if self.size > 1 and not self._failed:
            self._failed = True
            self._sent[:] = 0.0, math.inf
            self._comm.Allreduce(self._sent, self._received)
            self._comm.allgather(_report(error))

    def first(self, value: Any) -> Any:
        """What the first process has."""
        self.wait()
        return value if self.size == 1 else self._comm.bcast(value)

    def every(self, value: Any) -> list[Any]:
        """What each process has."""
        self.wait()
        return [value] if self.size == 1 else list(self._comm.allgather(value))

    def gathered(self, value: Any) -> list[Any]:
        """What each process has, for the first alone; the others get an empty list."""
        self.wait()
        return [value] if self.size == 1 else list(self._comm.gather(value) or ())

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            self.common_loss(0.0, 0.0)

    def agreed(self, reason: str | None) -> str | None:
        """The reason to end of the first process that has one."""
        return next((each for each in self.every(reason) if each), None)

    @contextlib.contextmanager
    def together(self, what: str) -> Iterator[None]:
        """Do something that needs no other process; if it fails on one, raise on all."""
        error: Exception | None = None
        try:
            yield
        except Exception as exception:
            error = exception
        failures = self.every(None if error is None else _report(error))
        if error is not None:
            raise error
        _raise(what, failures)

    def same(self, said: Mapping[str, str]) -> None:
        """ValueError on every process that names what differs, unless all say the same."""
        first, *others = self.every(dict(said))
        for rank, other in enumerate(others, 1):
            names = [name for name in {**first, **other} if first.get(name) != other.get(name)]
            if names:
                here, there = ([each.get(name, "nothing") for name in names] for each in (first, other))
                rows = zip(names, here, there, strict=True)
                found = [f"{name}: {own} on rank 0, {its} on rank {rank}" for name, own, its in rows]
                raise ValueError(f"fit: the ranks differ in {'; '.join(found)}")

    def pooled(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments that may be given on one process alone, as if they were on all; ValueError if two differ."""
        own = {name: _plain(value) for name, value in given.items()}
        pooled = dict(own)
        everybody = self.every(own)
        for name in own:
            values = [(rank, other[name]) for rank, other in enumerate(everybody) if other[name]]
            if len({repr(value) for _, value in values}) > 1:
                texts = [f"{value!r} on rank {rank}" for rank, value in values]
                raise ValueError(f"fit: the ranks differ in {name}: {', '.join(texts)}")
            pooled[name] = values[0][1] if values else own[name]
        return pooled


def _report(error: BaseException) -> tuple[str, str]:
    return type(error).__name__, str(error)


def _raise(what: str, reports: Sequence[tuple[str, str] | None]) -> None:
    """Raise the first failure that another process has reported, if there is one."""
    for rank, report in enumerate(reports):
        if report is not None:
            name, text = report
            kind = CheckpointError if name == "CheckpointError" else RuntimeError
            raise kind(f"{what} failed on rank {rank}, so on all ranks: {name}: {text}")


def _plain(value: Any) -> Any:
    """`value` as something that any process can be sent."""
    if isinstance(value, (os.PathLike, bytes)):
        return os.fsdecode(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Set):  # whose order differs from process to process
        return sorted(map(_plain, value), key=repr)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    several = isinstance(value, Iterable) and not isinstance(value, Mapping)
    return [_plain(item) for item in value] if several else repr(value)
