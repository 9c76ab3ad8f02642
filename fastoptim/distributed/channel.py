"""Carries what ranks send each other: agreement before a step, sums of gradients, pieces of parameters.

The one module that loads mpi4py.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import numpy as np
from mpi4py import MPI

from ..arrays.storage import compute_dtype
from ..common.threads import usable_cores
from ..rules.codecs import widened
from .partition import Bucket

Array = np.ndarray
T = TypeVar("T")

_SUMS = {np.dtype(np.float32): MPI.FLOAT, np.dtype(np.float64): MPI.DOUBLE}
_BITS = {1: MPI.UINT8_T, 2: MPI.UINT16_T, 4: MPI.UINT32_T, 8: MPI.UINT64_T}  # what is only sent, by its bytes


class Buffers:
    """Hold one bucket on its way: `packed` holds the pieces of all ranks, `own` the sum of this rank's piece."""

    def __init__(self, packed: int, own: int, contributions: int):
        self.packed = np.empty(packed, np.uint8)
        self.own = np.empty(own, np.uint8)
        self.contributions = np.empty(contributions, np.uint8)
        self.request: Any = None

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes + self.own.nbytes + self.contributions.nbytes


class Channel:
    """Send and receive on a communicator of its own, a duplicate of `comm`, so that no others' messages mix in.

    All ranks of `comm` must take part.

    Attributes
    ----------
    mean : bool
        Whether the sum of gradients is divided by the number of ranks.
    deterministic : bool
        Whether gradients are summed in the order of ranks, whatever the MPI library would do.
    """

    def __init__(self, comm: Any):
        self.comm = _duplicate(comm)
        self.rank, self.size = comm.rank, comm.size
        self.mean, self.deterministic = True, False

    # --- agreement

    def agree(
        self, error: BaseException | None, what: str, said: Mapping[str, str], counts: Sequence[int] | Array = ()
    ) -> Array:
        """Return the least of every rank's `counts`, if no rank has an error and all say the same.

        Else the error itself on the rank that has one, and an exception that tells of it on all others; or a ValueError
        on all ranks that names the first thing in `said` on which they differ.
        """
        digest = hashlib.sha256(repr(sorted(said.items())).encode()).digest()
        words = np.frombuffer(digest[:16], np.int64) >> 1  # whose negative is an int64 too
        message = np.concatenate([[error is None], words, -words, counts]).astype(np.int64)
        least = np.empty_like(message)
        self.comm.Allreduce(message, least, MPI.MIN)
        if not least[0]:
            text = "" if error is None else f"{type(error).__name__}: {error}"
            reports = [(rank, report) for rank, report in enumerate(self.tell(text)) if report]
            if error is not None:
                raise error
            raise RuntimeError(f"{what} failed on rank {reports[0][0]}, so on all ranks: {reports[0][1]}")
        if np.any(least[1:3] != -least[3:5]):
            raise ValueError(self._difference(what, said))
        return least[5:]

    def together(self, what: str, work: Callable[[], T], said: Callable[[T], Mapping[str, str]] | None = None) -> T:
        """Do something on all ranks; if it fails on one, or what is `said` of the results differs, raise on all."""
        error: Exception | None = None
        result: Any = None
        texts: Mapping[str, str] = {}
        try:
            result = work()
            texts = {} if said is None else said(result)
        except Exception as exception:
            error = exception
        self.agree(error, what, texts)
        return cast(T, result)

    def _difference(self, what: str, said: Mapping[str, str]) -> str:
        texts = self.tell("\0".join(f"{key}\1{value}" for key, value in said.items()))
        others = [dict(line.split("\1") for line in text.split("\0")) for text in texts]
        for rank, other in enumerate(others):
            for key in [*others[0], *other]:
                here, there = others[0].get(key), other.get(key)
                if here != there:
                    return (
                        f"{what}: the ranks differ in {key}: {here or 'nothing'} on rank 0, "
                        f"{there or 'nothing'} on rank {rank}"
                    )
        return f"{what}: the ranks differ"

    def tell(self, text: str) -> list[str]:
        """Gather every rank's text."""
        raw = np.frombuffer(text.encode(), np.uint8)
        lengths = np.empty(self.size, np.int64)
        self.comm.Allgather(np.array([raw.size], np.int64), lengths)
        every = np.empty(int(lengths.sum()), np.uint8)
        self.comm.Allgatherv(raw, [every, lengths.tolist()])
        return [part.tobytes().decode() for part in np.split(every, np.cumsum(lengths)[:-1])]

    # --- the buckets of a step

    def buffers(self, buckets: Sequence[Bucket], number: int) -> list[Buffers]:
        """Allocate `number` sets of buffers, each large enough for every bucket."""
        packed = max(bucket.size * compute_dtype(bucket.dtype).itemsize for bucket in buckets)
        own = max(bucket.counts[self.rank] * compute_dtype(bucket.dtype).itemsize for bucket in buckets)
        return [Buffers(packed, own, own * self.size if self.deterministic else 0) for _ in range(number)]

    def start_reduce(self, bucket: Bucket, grads: Sequence[Array | None], buffers: Buffers) -> None:
        """Begin to add up a bucket of the gradients (flat arrays; None counts as zeros)."""
        packed = self._gradients(buffers.packed, bucket, bucket.size)
        end = 0
        for parts in bucket.parts:
            for parameter, start, stop in parts:
                begin, end = end, end + stop - start
                g = grads[parameter]
                packed[begin:end] = 0 if g is None else widened(g[start:stop])
        kind = _SUMS[packed.dtype]
        if not self.deterministic:
            buffers.request = self.comm.Ireduce_scatter(
                [packed, kind], [self._own(bucket, buffers), kind], list(bucket.counts), MPI.SUM
            )
            return
        count = bucket.counts[self.rank]
        everybody = [count] * self.size, [rank * count for rank in range(self.size)]
        buffers.request = self.comm.Ialltoallv(
            [packed, (bucket.counts, bucket.displacements), kind],
            [self._contributions(bucket, buffers), everybody, kind],
        )

    def finish_reduce(self, bucket: Bucket, buffers: Buffers) -> Array:
        """Wait for the sum or mean of this rank's piece."""
        buffers.request.Wait()
        own = self._own(bucket, buffers)
        if self.deterministic:
            contributions = self._contributions(bucket, buffers).reshape(self.size, own.size)
            np.add(contributions[0], contributions[1], out=own)
            for contribution in contributions[2:]:
                own += contribution
        if self.mean:
            own /= self.size
        return own

    def start_gather(self, bucket: Bucket, own: Sequence[Array], buffers: Buffers) -> None:
        """Begin to send this rank's piece, given as its parts, and to receive the others'."""
        packed = buffers.packed[: bucket.size * bucket.dtype.itemsize].view(bucket.dtype)
        end = bucket.displacements[self.rank]
        for part in own:
            begin, end = end, end + part.size
            packed[begin:end] = part
        size = bucket.dtype.itemsize
        layout = bucket.counts, bucket.displacements
        buffers.request = self.comm.Iallgatherv(MPI.IN_PLACE, [packed.view(f"u{size}"), layout, _BITS[size]])

    def finish_gather(self, bucket: Bucket, targets: Any, buffers: Buffers) -> None:
        """Put the other ranks' pieces where they belong in `targets` (flat arrays, found by their numbers)."""
        buffers.request.Wait()
        packed = buffers.packed[: bucket.size * bucket.dtype.itemsize].view(bucket.dtype)
        for rank, parts in enumerate(bucket.parts):
            if rank == self.rank:
                continue
            end = bucket.displacements[rank]
            for parameter, start, stop in parts:
                begin, end = end, end + stop - start
                targets[parameter][start:stop] = packed[begin:end]

    def _own(self, bucket: Bucket, buffers: Buffers) -> Array:
        return self._gradients(buffers.own, bucket, bucket.counts[self.rank])

    def _contributions(self, bucket: Bucket, buffers: Buffers) -> Array:
        return self._gradients(buffers.contributions, bucket, self.size * bucket.counts[self.rank])

    def _gradients(self, buffer: Array, bucket: Bucket, count: int) -> Array:
        """Room for so many numbers of the gradients of a bucket."""
        dtype = compute_dtype(bucket.dtype)
        return buffer[: count * dtype.itemsize].view(dtype)

    # --- small things

    def gather_floats(self, values: Array, counts: Sequence[int]) -> Array:
        """Gather every rank's float64 values, end to end."""
        every = np.empty(sum(counts))
        self.comm.Allgatherv(values, [every, list(counts)])
        return every

    def most(self, values: Array) -> Array:
        """Return the greatest of every rank's values."""
        every = np.empty_like(values)
        self.comm.Allreduce(values, every, MPI.MAX)
        return every

    def broadcast(self, text: str) -> str:
        """Send the text of rank 0 to all."""
        length = np.array([len(text.encode())], np.int64)
        self.comm.Bcast(length)
        raw = np.frombuffer(text.encode(), np.uint8).copy() if self.rank == 0 else np.empty(int(length[0]), np.uint8)
        self.comm.Bcast(raw)
        return raw.tobytes().decode()

    def share_of_cores(self) -> int:
        """Count the cores of this host that are left for this rank, the others that run on it counted in."""
        local = self.comm.Split_type(MPI.COMM_TYPE_SHARED)
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
        wanted = np.zeros(max(os.cpu_count() or 1, *(core + 1 for core in cores)), np.int32)
        length = np.array([wanted.size], np.int64)
        local.Allreduce(MPI.IN_PLACE, length, MPI.MAX)
        wanted.resize(int(length[0]), refcheck=False)
        wanted[list(cores)] = 1
        users = np.empty_like(wanted)
        local.Allreduce(wanted, users)
        local.Free()
        share = sum(1 / users[core] for core in cores) * usable_cores() / len(cores)  # a quota may allow less
        return max(1, int(share + 1e-9))


_DUPLICATE = MPI.Comm.Create_keyval()
_ends_job = False


def communicator(comm: Any) -> Any:
    """Return `comm`, or all processes if it is None; TypeError if it is something else."""
    comm = MPI.COMM_WORLD if comm is None else comm
    if not isinstance(comm, MPI.Intracomm) or comm == MPI.COMM_NULL:
        raise TypeError(f"comm must be an mpi4py.MPI.Intracomm, got {comm!r}")
    return comm


def _duplicate(comm: Any) -> Any:
    """The duplicate of `comm` that all sharded optimizers on it share; MPI libraries have only some thousands."""
    duplicate = comm.Get_attr(_DUPLICATE)
    if duplicate is None:
        duplicate = comm.Dup()
        comm.Set_attr(_DUPLICATE, duplicate)
    return duplicate


def end_job_on_error() -> None:
    """Make an exception that nobody catches end the whole job, after its traceback was printed.

    The process that has it would end anyway; without this the others would wait for it for ever.
    """
    global _ends_job
    if _ends_job:
        return
    _ends_job = True
    report = sys.excepthook

    def report_and_abort(kind: Any, error: Any, trace: Any) -> None:
        report(kind, error, trace)
        if not MPI.Is_finalized():
            sys.stderr.write(f"rank {MPI.COMM_WORLD.rank} of {MPI.COMM_WORLD.size} ends the job\n")
            sys.stderr.flush()
            time.sleep(0.5)  # launchers drop what they have not yet passed on
            MPI.COMM_WORLD.Abort(1)

    sys.excepthook = report_and_abort
