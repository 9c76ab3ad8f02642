"""What the processes of one training run tell each other."""

from __future__ import annotations

from typing import Any

import numpy as np


class Ranks:
    """The processes that train together by one optimizer, or the only one.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm or None
        The optimizer's communicator.
    """

    def __init__(self, comm: Any):
        self._comm = comm
        self.rank: int = 0 if comm is None else comm.Get_rank()
        self.size: int = 1 if comm is None else comm.Get_size()
        self._sent, self._received = np.empty(2), np.empty(2)

    def common_loss(self, loss: float, flag: bool) -> tuple[float, bool]:
        """The mean of all processes' losses, and whether one of them raises its flag."""
        self._sent[:] = loss, flag
        self._comm.Allreduce(self._sent, self._received)
        total, flags = self._received.tolist()
        return total / self.size, flags > 0

    def agreed(self, reason: str | None) -> str | None:
        """The reason to end of the first process that has one."""
        return next((each for each in self.every(reason) if each), None)

    def first(self, value: Any) -> Any:
        """What the first process has."""
        return value if self.size == 1 else self._comm.bcast(value)

    def every(self, value: Any) -> list[Any]:
        """What each process has."""
        return [value] if self.size == 1 else list(self._comm.allgather(value))

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            self._comm.Barrier()
