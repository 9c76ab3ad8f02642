"""The learning rates of a run: a schedule for all parameter groups or one for each, and what `Plateau` is told."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..checkpoint.files import CheckpointError
from ..schedules import constant, parts_of
from .loop import Loop, Rate


class Rates:
    """Tell every `Plateau` the validation loss, or without validation the epoch's mean loss; part of `Loop`.

    Attributes
    ----------
    schedules : tuple of callables or None
        One for all groups or one for each; None if the optimizer's own rates are to stay.
    """

    def __init__(self, lr: Any, optimizer: Any, validated: bool):
        self.schedules = _schedules(lr, optimizer)
        self._optimizer, self._validated = optimizer, validated
        parts = parts_of(self.schedules or ())
        self._plateaus = [part for part in parts if hasattr(part, "update")]
        self._stateful = [part for part in parts if hasattr(part, "state_dict") and hasattr(part, "load_state_dict")]
        self._resumed_text: str | None = None

    def begin(self, loop: Loop) -> None:
        if self._resumed_text not in (None, self.text()):
            loop.warn("the learning rate's schedule is not the one that the checkpoint was written with")

    def due(self, loop: Loop) -> float:
        return math.inf

    def __call__(self, loop: Loop) -> None:
        if not self._plateaus:
            return
        if loop.metrics is not None:
            self._update(loop.metrics["loss"])
        elif loop.epoch_ended and not self._validated:
            ends = loop.history._columns["epoch_ends"]
            self._update(float(np.mean(loop.history.loss[ends[-2] if len(ends) > 1 else 0 :])))

    def _update(self, metric: float) -> None:
        for plateau in self._plateaus:
            plateau.update(metric)

    def text(self) -> str:
        """The rates as logs and checkpoints describe them."""
        if self.schedules is None:
            return repr([float(group["lr"]) for group in self._optimizer.param_groups])
        return repr(list(self.schedules))

    def state_dict(self) -> dict[str, Any]:
        return {"text": self.text(), "states": [part.state_dict() for part in self._stateful]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        text, states = state["text"], state["states"]
        if len(states) != len(self._stateful):
            raise CheckpointError("it was written with other schedules")
        for part, saved in zip(self._stateful, states, strict=True):
            part.load_state_dict(saved)
        self._resumed_text = text


def _schedules(lr: Any, optimizer: Any) -> tuple[Rate, ...] | None:
    if lr is None:
        return None
    several = isinstance(lr, (list, tuple))
    parts = tuple(lr) if several else (lr,)
    if several and len(parts) != len(optimizer.param_groups):
        raise ValueError(f"lr: expected one or {len(optimizer.param_groups)} (one per group), got {len(parts)}")
    return tuple(part if callable(part) else constant(part) for part in parts)
