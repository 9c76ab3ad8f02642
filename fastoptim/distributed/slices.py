"""Keeps this rank's slice of everything: its pieces of all buckets, each stepped by a plain optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..arrays import layout
from ..arrays.storage import MASTER, compute_dtype, scale_name
from ..backends.offload import OffloadBackend
from ..optimizers.base import Optimizer
from ..optimizers.update import StepOptions
from ..rules.codecs import BLOCK
from ..rules.table import rules_of
from .partition import Bucket, Part, buckets, piece_size

if TYPE_CHECKING:
    from .channel import Buffers, Channel

Array = np.ndarray
Stage = Callable[[int, Any], None]

IN_FLIGHT = 3  # one bucket's gradients are on their way while the kernel has the next and parameters of a third leave


class Piece(NamedTuple):
    """This rank's part of a bucket, and the plain optimizer that steps it."""

    parts: tuple[Part, ...]
    optimizer: Optimizer


class Slices:
    """What one rank has of the parameters, and how it leads buckets through their stages."""

    comm: Any
    threads: int
    backend: str
    _whole: Optimizer
    _channel: Channel
    _options: dict[str, Any]
    _buckets: list[Bucket]
    _pieces: list[Piece | None]
    _buffers: list[Buffers]

    @property
    def _slots(self) -> dict[str, int]:
        """The names of all arrays of states that there may be, and for how many elements they have one."""
        states = dict.fromkeys([name for rule in rules_of(self._whole) for name in rule.states] + [MASTER], 1)
        return {scale_name(name): BLOCK for name in states} | states

    @property
    def _kept(self) -> tuple[str, ...]:
        """The names of all numbers that there may be beside the step count."""
        return tuple(dict.fromkeys(name for rule in rules_of(self._whole) for name in rule.scalars))

    def _entries(self) -> Iterator[tuple[Part, Mapping[str, Any]]]:
        """This rank's parts with their step counts and states."""
        for piece in self._own():
            yield from zip(piece.parts, piece.optimizer.state.values(), strict=True)

    def _own(self) -> Iterator[Piece]:
        """This rank's pieces."""
        return (piece for piece in self._pieces if piece is not None)

    @property
    def _names(self) -> list[str]:
        return [parameter.name for parameter in self._whole._model.parameters]

    def _add_buckets(self, first: int) -> None:
        """Divide the groups from number `first` on, and make this rank's pieces of them."""
        whole, rank, size = self._whole, self._channel.rank, self._channel.size
        held = size + 1 + (size if self._options["deterministic"] else 0)  # pieces that a set of buffers holds
        room = self._options["buffer_bytes"] // IN_FLIGHT
        for number, group in enumerate(whole.param_groups[first:], first):
            mine = [(i, q) for i, q in enumerate(whole._model.parameters) if q.group is group]
            for dtype in dict.fromkeys(q.dtype for _, q in mine):
                chosen = [(i, math.prod(q.shape)) for i, q in mine if q.dtype == dtype]
                sizes, numbers = [n for _, n in chosen], [i for i, _ in chosen]
                piece = piece_size(room, held, compute_dtype(dtype).itemsize)
                self._buckets += buckets(number, dtype, sizes, numbers, size, piece)
        named = self._parameters()
        flat = [layout.flat(np.asarray(p)) for _, p in named]
        for bucket in self._buckets[len(self._pieces) :]:
            parts = bucket.parts[rank]
            views = {named[part.parameter][0]: flat[part.parameter][part.start : part.stop] for part in parts}
            hyper = {key: whole.param_groups[bucket.group][key] for key in whole._names}
            options: Any = {"backend": whole.backend, "threads": whole.threads, **whole._storage._asdict()}
            optimizer = type(whole)(views, **options, **hyper) if parts else None
            self._pieces.append(None if optimizer is None else Piece(parts, optimizer))
            for q, part in zip(() if optimizer is None else optimizer._model.parameters, parts, strict=True):
                q.number, q.first = part.parameter, part.start
        if isinstance(whole._backend, OffloadBackend) and whole._backend.folder is not None:
            share = whole._backend.share(len(self._pieces))
            for own in self._own():
                own.optimizer._drop_plan()
                own.optimizer._backend = share
        self._buffers = self._channel.buffers(self._buckets, IN_FLIGHT)

    def _locked(self) -> AbstractContextManager[None]:
        return self._whole._locked()

    def _parameters(self) -> list[tuple[str, Array]]:
        """Names and arrays of all parameters; TypeError or ValueError if one is not what it was."""
        return [(parameter.name, parameter.array(self._whole._backend)) for parameter in self._whole._model.parameters]

    def _pipeline(self, first: Stage, second: Stage, third: Stage, count: int | None = None) -> None:
        """Lead all buckets through three stages; while one is in its second, its neighbours are on their way."""
        count = len(self._buckets) if count is None else count
        for i in range(count + IN_FLIGHT):
            if i >= IN_FLIGHT:
                third(i - IN_FLIGHT, self._buffers[i % IN_FLIGHT])
            if i < count:
                first(i, self._buffers[i % IN_FLIGHT])
            if 0 < i <= count:
                second(i - 1, self._buffers[(i - 1) % IN_FLIGHT])

    def _split(self, b: int, own: Array) -> list[Array]:
        """This rank's piece of a bucket as its parts."""
        ends = accumulate((part.size for part in self._buckets[b].parts[self._channel.rank]), initial=0)
        return [own[start:stop] for start, stop in pairwise(ends)]


def nothing(b: int, buffers: Any) -> None:
    """Do nothing: a stage without work."""


def step_piece(optimizer: Optimizer, grads: tuple[Any, ...], scale: float) -> None:
    """Step a piece whose arrays were checked, with gradients multiplied by `scale`."""
    plan = optimizer._ready_plan()
    plan.update.step(plan.params, grads, plan.states, plan.rows(), StepOptions(scale))
