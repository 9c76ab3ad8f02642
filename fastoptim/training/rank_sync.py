"""Keeps several processes that train together at the same step, in the same order of the data."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import __version__
from .data import Minibatches
from .loop import Loop
from .ranks import Ranks


def share(batches: Any, ranks: Ranks, said: Mapping[str, str]) -> None:
    """Give every process its part of each minibatch; ValueError on all of them if they differ in what they `said`."""
    position = batches.state_dict()
    generator = position.pop("rng", None)
    names = [name for name in ("examples", "shuffle", "drop_last", "epoch", "cursor") if name in position]
    facts = {name: repr(position[name]) for name in names}
    facts["order of the data"] = _digest({"permutation": position.get("permutation")})
    facts["kind of generator"] = "" if generator is None else str(generator["bit_generator"])
    ranks.same({"fastoptim's version": __version__, **said, **facts})
    if isinstance(batches, Minibatches):
        batches.rng.bit_generator.state = ranks.first(generator)
    with ranks.together("sharing minibatches"):
        batches.share(ranks.rank, ranks.size)


class StayTogether:
    """Let all processes of a run call their callbacks, and end, after the same step; part of `Loop`, after these."""

    def __init__(self, callbacks: bool):
        self._callbacks = callbacks  # whether there are some here, from `begin` on whether there are some anywhere
        self._always = False  # whether one of the processes wants to be called after every step

    def begin(self, loop: Loop) -> None:
        waiting = all(hasattr(part, "due") for part in loop.parts.values())
        found = loop.ranks.every((self._callbacks, self._callbacks or not waiting))
        self._callbacks, self._always = (any(values) for values in zip(*found, strict=True))
        loop.reason = loop.ranks.agreed(loop.reason)

    def due(self, loop: Loop) -> float:
        return 0 if self._always else math.inf

    def __call__(self, loop: Loop) -> None:
        if loop.epoch_ended:
            loop.batches.next_size()  # begins the next epoch: data may have grown
            loop.ranks.same({"examples": repr(loop.batches.examples)})
            digests = loop.ranks.every(_digest(loop.batches.state_dict()))
            if len(set(digests)) > 1:
                raise ValueError(
                    "the processes would go on in different orders of the data: they have used the generator that "
                    "shuffles differently. Give dropout and the like a generator of their own in each process"
                )
        if self._callbacks or loop.asked:
            loop.reason = loop.ranks.agreed(loop.reason)


def _digest(tree: Any) -> str:
    """A few digits that tell nestings of mappings, numbers and arrays apart."""
    digest = hashlib.sha256()

    def add(item: Any) -> None:
        if isinstance(item, Mapping):
            for key in sorted(item):
                digest.update(f"{key}:".encode())
                add(item[key])
        elif isinstance(item, np.ndarray):
            digest.update(item.tobytes())
        else:
            digest.update(repr(item).encode())

    add(tree)
    return digest.hexdigest()[:16]
