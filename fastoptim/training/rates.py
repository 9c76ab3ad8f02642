"""The learning rates of a run, schedules of other hyperparameters, and what `Plateau` is told."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..checkpoint.files import CheckpointError
from ..common.validation import real
from ..optimizers.groups import one_or_each
from ..schedules import described, parts_of
from .loop import Loop
from .validation import Validation


class Rates:
    """Set rates that are numbers, and tell every `Plateau` what is monitored; part of `Loop`.

    `schedules` holds those of "lr" and other hyperparameters, where there are any: one for all groups or one for each,
    None for a group whose value stays what it is.
    """

    def __init__(self, lr: Any, optimizer: Any, validation: Validation | None, schedules: Any = None):
        self._optimizer, self._validation = optimizer, validation
        self._given = given = _given(lr, optimizer)
        self._others = _others(schedules, optimizer)
        self.schedules: dict[str, tuple[Any, ...]] = dict(self._others)
        if any(map(callable, given)):
            self.schedules["lr"] = tuple(x if callable(x) else None for x in given)
        parts = parts_of((*given, *self._others.values()))
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

    @property
    def monitor(self) -> str | None:
        """What a `Plateau` is told; None where there is none."""
        if not self._plateaus:
            return None
        return "the mean loss of each epoch" if self._validation is None else f"validation's {self._validation.monitor}"

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

    def other_text(self) -> str:
        """The other schedules, likewise."""
        return ", ".join(f"{name}: {described(self._others[name])}" for name in sorted(self._others)) or "none"

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
        raise ValueError(f"lr: expected {one_or_each(len(groups))}, got {len(parts)}")
    for part in parts:
        if isinstance(part, str):
            raise TypeError(f"lr must be a number or a schedule, such as fastoptim.schedules.cosine(...), got {part!r}")
    return tuple(part if callable(part) else real("lr", part, 0.0) for part in parts)


def _others(schedules: Any, optimizer: Any) -> dict[str, tuple[Any, ...]]:
    """Schedules by name of the hyperparameter, one for all groups or one for each."""
    if schedules is None:
        return {}
    if not isinstance(schedules, Mapping):
        raise TypeError(
            f'schedules must be a mapping such as {{"weight_decay": schedule}}, got {type(schedules).__name__}; '
            "schedules of the learning rate are given as lr"
        )
    groups = optimizer.param_groups
    names = sorted(set(groups[0]) - {"params", "names", "lr"})
    found = {}
    for name, given in schedules.items():
        if name == "lr":
            raise ValueError("schedules: the learning rate's is given as lr")
        if name not in names:
            raise ValueError(f"schedules: the optimizer has no hyperparameter {name!r}; it has {names}")
        parts = tuple(given) if isinstance(given, (list, tuple)) else (given,)
        if len(parts) not in (1, len(groups)):
            raise ValueError(f"schedules: {name}: expected {one_or_each(len(groups))}, got {len(parts)}")
        for part in parts:
            if not callable(part) and (part is not None or len(parts) == 1):
                raise TypeError(
                    f"schedules: {name} must be a schedule, a function of the step's number, got {part!r}; what does "
                    "not change is given to the optimizer"
                )
        found[name] = parts
    return found
