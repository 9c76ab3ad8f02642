"""The learning rates of a run: a schedule for all parameter groups or one for each, and what `Plateau` is told."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..checkpoint.files import CheckpointError
from ..common.validation import real
from ..schedules import described, parts_of
from .loop import Loop
from .validation import Validation


class Rates:
    """Set rates that are numbers, and tell every `Plateau` what is monitored; part of `Loop`.

    Attributes
    ----------
    schedules : tuple of callables or None
        One for all groups or one for each, None for a group whose rate stays what it is; None if all stay.
    """

    def __init__(self, lr: Any, optimizer: Any, validation: Validation | None):
        self._optimizer, self._validation = optimizer, validation
        self._given = given = _given(lr, optimizer)
        self.schedules = tuple(x if callable(x) else None for x in given) if any(map(callable, given)) else None
        parts = parts_of(given)
        self._plateaus = [part for part in parts if hasattr(part, "update")]
        self._stateful = [part for part in parts if hasattr(part, "state_dict") and hasattr(part, "load_state_dict")]
        self._resumed = False
        mode = "min" if validation is None else validation.mode
        for plateau in self._plateaus:
            if getattr(plateau, "mode", mode) != mode:
                raise ValueError(f"a Plateau has mode={plateau.mode!r}, but what it is told has mode={mode!r}")

    @property
    def waits_for_epochs(self) -> bool:
        """Whether a `Plateau` is told something at the ends of epochs alone."""
        return bool(self._plateaus) and self._validation is None

    def begin(self, loop: Loop) -> None:
        if not self._resumed:
            self._set_numbers()

    def _set_numbers(self) -> None:
        """Set the rates that are numbers, once: callbacks may change them later."""
        groups = self._optimizer.param_groups
        given = self._given if len(self._given) != 1 else self._given * len(groups)
        for group, rate in zip(groups, given, strict=False):
            if not callable(rate):
                group["lr"] = rate

    def due(self, loop: Loop) -> float:
        return math.inf

    def __call__(self, loop: Loop) -> None:
        if not self._plateaus:
            return
        if self._validation is not None:
            if loop.metrics is not None and not self._validation.additional:
                self._update(loop.metrics[self._validation.monitor])
        elif loop.epoch_ended:
            ends = loop.history._columns["epoch_ends"]
            epoch = slice(ends[-2] if len(ends) > 1 else 0, None)
            losses = loop.history.loss[epoch][loop.history.applied[epoch]]
            if losses.size:
                self._update(float(np.mean(losses)))

    def _update(self, metric: float) -> None:
        for plateau in self._plateaus:
            plateau.update(metric)

    def text(self) -> str:
        """The rates as logs and checkpoints describe them, alike in every process."""
        return described(self._given or [float(group["lr"]) for group in self._optimizer.param_groups])

    def state_dict(self) -> dict[str, Any]:
        return {"states": [part.state_dict() for part in self._stateful]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        states = state["states"]
        if len(states) != len(self._stateful):
            raise CheckpointError("it was written with other schedules")
        for part, saved in zip(self._stateful, states, strict=True):
            part.load_state_dict(saved)
        self._resumed = True


def _given(lr: Any, optimizer: Any) -> tuple[Any, ...]:
    """Numbers and schedules, one for all groups or one for each; none if the optimizer's own rates are to stay."""
    if lr is None:
        return ()
    several = isinstance(lr, (list, tuple))
    parts = tuple(lr) if several else (lr,)
    groups = optimizer.param_groups
    if not several and len({float(group["lr"]) for group in groups}) > 1:
        rates = ", ".join(f"{group['lr']:g} ({', '.join(group['names'][:2])}, ...)" for group in groups)
        raise ValueError(
            f"the groups have rates of their own, {rates}, which one lr would make equal: give a list with one for "
            "each, such as lr=[schedule, fastoptim.schedules.scale(schedule, 0.1)]"
        )
    if several and len(parts) != len(groups):
        raise ValueError(f"lr: expected one or {len(groups)} (one per group), got {len(parts)}")
    for part in parts:
        if isinstance(part, str):
            raise TypeError(f"lr must be a number or a schedule, such as fastoptim.schedules.cosine(...), got {part!r}")
    return tuple(part if callable(part) else real("lr", part, 0.0) for part in parts)
