"""Diagnoses a run while it is training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from ..optimizers.groups import ascends, momentum_of
from .diagnosis import MINIMUM, Diagnosis
from .diagnosis import diagnose as read_curve
from .loop import Loop

# Steps before the first diagnosis, and the factor to the next: a diagnosis costs about as much as ten small steps.
# Floats, so that a checkpoint has the same bytes whether training was resumed before it or not.
_FIRST, _FACTOR = 300.0, 4.0
_IDLE = "idle"
_SEEMS = {
    "diverged": "to have diverged",
    "oscillating": "to oscillate",
    "too slow": "to be too slow",
    "plateau": "to have reached a plateau",
}


class LiveDiagnosis:
    """Diagnose the losses after 300, 1200, 4800, ... steps, and warn once of each verdict; part of `Loop`.

    Warn as well, then or at the end, if nothing is trained any more.
    """

    def __init__(self) -> None:
        self._next = _FIRST
        self._warned: list[str] = []
        self._resumed = False

    def begin(self, loop: Loop) -> None:
        if not self._resumed and loop.steps:
            self._next = _FACTOR * loop.steps + 1.0
        self._next = max(self._next, loop.steps + 1.0)

    def due(self, loop: Loop) -> float:
        return self._next

    def __call__(self, loop: Loop) -> None:
        if loop.steps < self._next:
            return
        self._next = _FACTOR * loop.steps
        self._look_for_steps(loop)
        diagnosis = _diagnosed(loop)
        if diagnosis is None or diagnosis.reason == "hidden":
            return
        if diagnosis.verdict in _SEEMS.keys() - self._warned:
            self._warned.append(diagnosis.verdict)
            loop.warn(f"after {loop.steps} steps training seems {_SEEMS[diagnosis.verdict]}. {diagnosis.remedy}")

    def end(self, loop: Loop) -> None:
        if loop.reason is not None:
            self._look_for_steps(loop)

    def _look_for_steps(self, loop: Loop) -> None:
        """Warn if none of the later steps was applied: nothing is trained any more, which no loss may show."""
        applied = np.flatnonzero(loop.history.applied)
        idle = loop.steps - (int(applied[-1]) + 1 if len(applied) else 0)
        if idle >= max(MINIMUM, loop.steps // 2) and _IDLE not in self._warned:
            self._warned.append(_IDLE)
            loop.warn(
                f"none of the last {idle} of {loop.steps} steps was applied, as the loss or a gradient was not finite "
                "or there was none: nothing is trained any more. Lower the learning rate, or look at model and data"
            )

    def state_dict(self) -> dict[str, Any]:
        return {"next": self._next, "warned": list(self._warned)}

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        if state is not None:
            next_one, warned = float(state["next"]), [str(verdict) for verdict in state["warned"]]
            self._next, self._warned, self._resumed = next_one, warned, True


def sees_all(batch_size: int, examples: int) -> bool:
    """Whether every minibatch holds all the data; one example stands for no data, of which nothing is known."""
    return batch_size == examples > 1


def curve_reader(loop: Loop) -> Callable[[], Diagnosis] | None:
    """What `fastoptim.diagnose` says about the training losses up to now, on demand.

    None if they are too few, or if an optimizer that maximizes makes scores of them, of which a rise is no harm.
    """
    losses, rates = loop.history.loss, loop.history.lr
    group = loop.optimizer.param_groups[0]
    if ascends(loop.optimizer):
        return None
    if loop.reason == "non-finite loss":
        losses, rates = np.append(losses, loop.loss), np.append(rates, group["lr"])
    else:
        finite = np.isfinite(losses)  # steps with others were skipped, as was asked for
        losses, rates = losses[finite], rates[finite]
        if len(losses) < MINIMUM:
            return None
    fixed = sees_all(loop.batches.batch_size, loop.batches.examples)
    options: dict[str, Any] = {
        "fixed_batch": fixed,
        "momentum": momentum_of(group),
        "lr": rates,
        "scheduled": loop.scheduled,
    }
    in_order = getattr(loop.batches, "shuffle", True) is False
    if in_order and read_curve(losses, **options).reason == "alternating":
        # Minibatches that always come in the same order alternate by themselves: the means of pairs say more.
        odd = len(losses) % 2
        losses = losses[odd:].reshape(-1, 2).mean(axis=1)
        options["lr"] = rates[odd + 1 :: 2]
    return partial(read_curve, losses, **options)


def _diagnosed(loop: Loop) -> Diagnosis | None:
    reader = curve_reader(loop)
    return None if reader is None else reader()


def say_non_finite(loop: Loop) -> None:
    """Warn of a loss that has ended training, with the remedy."""
    diagnosis = _diagnosed(loop)
    remedy = diagnosis.remedy if diagnosis is not None else "lower the learning rate"
    loop.warn(f"the loss is {loop.loss} at step {loop.steps}, which was not taken: {remedy}")
