"""What the processes of one training run tell each other."""

from __future__ import annotations

from typing import Any


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

    def mean(self, loss: float) -> float:
        """The mean of all processes' losses."""
        return float(self._comm.allreduce(loss) / self.size)

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
