"""States that decide what parameters are after the next step, whatever they are before it: part of the best."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..arrays.checks import DTYPES, check_companion
from ..arrays.storage import MASTER
from ..checkpoint.files import CheckpointError
from ..optimizers.base import Optimizer
from ..optimizers.state_dicts import read_snapshot
from ..rules.table import rules_of
from .ranks import Ranks, whole_of


class DecidingStates:
    """Copies of the master copies of 16-bit parameters, or of all states of a rule that gives the parameter itself.

    Put back with the parameters, they make the optimizer go on from those, and `averaged` return what it did then.
    """

    def __init__(self, optimizer: Optimizer, all_states: bool):
        self._optimizer, self._all = optimizer, all_states

    def kept(self) -> dict[str, dict[str, Any]]:
        """Copies of them, by the names of parameters."""
        if self._all:
            state: dict[str, dict[str, Any]] = self._optimizer.state_dict()["state"]
            return state
        copy, live = self._optimizer._backend.host_copy, self._optimizer.state
        return {name: {MASTER: copy(entry[MASTER])} for name, entry in live.items() if MASTER in entry}

    def put_back(self, kept: Mapping[str, Mapping[str, Any]]) -> None:
        """Put back what `kept` returned; a parameter that had no states then begins anew."""
        self._optimizer.load_state_dict(self._with(kept))

    def _with(self, kept: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """The optimizer's state dict with these states in it."""
        state = self._optimizer.state_dict()
        for name, entry in state["state"].items():
            if self._all or MASTER in entry:
                own = kept.get(name, {})
                state["state"][name] = (own if self._all else entry | own) if own else {"step": 0}
        return state

    def checked(self, saved: Any) -> dict[str, dict[str, Any]]:
        """What a checkpoint has of them; an error if they could not be put back when training ends."""
        own = {q.name: q.shape for q in self._optimizer._model.parameters}
        kept = {name: dict(entry) for name, entry in saved.items()}
        for name, entry in kept.items():
            if name not in own or not (self._all or entry.keys() == {MASTER}):
                raise CheckpointError(f"the best states of {name!s:.80} are not of this model")
            if not self._all:
                check_companion(name, MASTER, entry[MASTER], own[name], np.dtype(np.float32))
        if self._all:
            read_snapshot(self._optimizer, self._with(kept))
        return kept


def deciding_states(optimizer: Any, ranks: Ranks, averaged: bool) -> DecidingStates | None:
    """What keeps them, if the optimizer has any; ValueError if what is to be put back cannot be decided so."""
    whole = whole_of(optimizer)
    if not isinstance(whole, Optimizer):
        return None
    every = any(rule.gives == "parameter" and rule.states for rule in rules_of(whole))
    low = any(q.dtype not in DTYPES for q in whole._model.parameters)
    if not every and not (low and whole._storage.master):
        return None
    what = f"{type(whole).__name__}{'' if every else ' with master=True'} computes parameters from states of its own"
    if averaged:
        raise ValueError(
            f"restore_best: {what}, so that averages put back would be lost at its next step: leave restore_best out, "
            "and use average.copy_to(params) at the end"
        )
    if ranks.size > 1:
        raise ValueError(
            f"restore_best: {what}, which several processes keep in slices: leave it out, and load the best "
            "checkpoint, <name>.best<suffix>, at the end"
        )
    return DecidingStates(whole, every)
