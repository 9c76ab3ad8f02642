"""Records what happened in a training run: losses, rates, validations, the result."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from ..backends import StepInfo
from ..checkpoint.files import CheckpointError
from ..common.public import public
from .diagnosis import Diagnosis


@public
class TrainingWarning(UserWarning):
    """Something about a training run that a user should know; the text names the remedy."""


@public
class History:
    """What happened, one entry per optimizer step and one per validation.

    Attributes
    ----------
    loss, lr, grad_norm : float64 arrays
        Of every step; `grad_norm` is NaN where the step did not need it.
    epoch : int64 array
        The epoch, from zero, that a step belongs to.
    applied : bool array
        False where a step was skipped because the loss or a gradient was not finite, or where there were no gradients.
    validation : dict of arrays
        "step" (number of the step, from zero, after which it was), "loss", and whatever else validation returned.
    """

    # Loss and rate are stored at every step; the norm and whether it was applied only where steps ask for it, and
    # epochs by the steps at which they ended: a step has little time to spare for its own record.
    _TYPES = (("loss", "d"), ("lr", "d"), ("grad_norm", "d"), ("applied", "b"), ("epoch_ends", "q"))
    __slots__ = ("_columns", "_validation")

    def __init__(self) -> None:
        self._columns: dict[str, Any] = {name: array(code) for name, code in self._TYPES}
        self._validation: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self._columns["loss"])

    @property
    def loss(self) -> np.ndarray:
        return np.array(self._columns["loss"])

    @property
    def lr(self) -> np.ndarray:
        return np.array(self._columns["lr"])

    @property
    def grad_norm(self) -> np.ndarray:
        return self._padded("grad_norm", math.nan)

    @property
    def applied(self) -> np.ndarray:
        return self._padded("applied", True).astype(bool)

    @property
    def epoch(self) -> np.ndarray:
        return np.searchsorted(np.array(self._columns["epoch_ends"]), np.arange(len(self)), side="right")

    def _padded(self, name: str, value: Any) -> np.ndarray:
        column = self._columns[name]
        return np.array(column + array(column.typecode, [value]) * (len(self) - len(column)))

    def _pad(self) -> None:
        """Give every step so far its own entry, before steps are recorded in full."""
        for name, value in (("grad_norm", math.nan), ("applied", True)):
            column = self._columns[name]
            column.extend([value] * (len(self) - len(column)))

    def _record(self, info: StepInfo) -> None:
        """Keep the norm of the last step, and whether it was applied, where most steps have nothing to tell."""
        self._pad()
        self._columns["grad_norm"][-1] = math.nan if info.grad_norm is None else info.grad_norm
        self._columns["applied"][-1] = info.applied

    @property
    def validation(self) -> dict[str, np.ndarray]:
        return {name: np.array(column) for name, column in self._validation.items()}

    def __repr__(self) -> str:
        return f"<History: {len(self)} steps, {len(self._validation.get('step', ()))} validations>"

    def _validated(self, step: int, metrics: Mapping[str, float]) -> None:
        if not self._validation:
            self._validation = {"step": array("q")} | {name: array("d") for name in metrics}
        if self._validation.keys() - {"step"} != metrics.keys():
            raise ValueError(f"validation returned {list(metrics)}, before it was {list(self._validation)[1:]}")
        self._validation["step"].append(step)
        for name, value in metrics.items():
            self._validation[name].append(value)

    def _forget_validation(self) -> None:
        """Take back the last validation."""
        for column in self._validation.values():
            column.pop()
        if not self._validation["step"]:
            self._validation = {}

    def state_dict(self) -> dict[str, Any]:
        return {
            "steps": {name: np.array(column) for name, column in self._columns.items()},
            "validation": self.validation,
        }

    @classmethod
    def restored(cls, state: Any, steps: int, epoch: int) -> History:
        history = cls()
        columns, validation = dict(state["steps"]), state["validation"]
        lengths = {"loss": steps, "lr": steps, "epoch_ends": epoch}
        for name, column in history._columns.items():
            _fill(column, columns.pop(name), lengths.get(name))
        ends = np.array([0, *history._columns["epoch_ends"], steps])
        if columns or np.any(np.diff(ends) < 0) or any(len(c) > max(steps, epoch) for c in history._columns.values()):
            raise CheckpointError("its history has a column that is unknown or too long, or epochs out of order")
        if validation and list(validation)[:2] != ["step", "loss"]:
            raise CheckpointError("its history of validations does not begin with step and loss")
        for name, values in validation.items():
            history._validation[name] = array("q" if name == "step" else "d")
            _fill(history._validation[name], values, len(validation["step"]))
        return history


def saved_count(value: Any) -> int:
    """`value` if it is a count that a checkpoint may hold."""
    if type(value) is not int or not 0 <= value < 2**63:
        raise CheckpointError("a count is not an int64 from 0")
    return value


def _fill(column: array[Any], values: Any, length: int | None) -> None:
    if not isinstance(values, np.ndarray) or values.dtype != np.dtype(column.typecode) or values.ndim != 1:
        raise CheckpointError("its history has a column of the wrong kind")
    if length is not None and len(values) != length:
        raise CheckpointError("its history has a column of the wrong length")
    column.frombytes(values.tobytes())


@public
@dataclass(frozen=True)
class FitResult:
    """What `fit` returns.

    Attributes
    ----------
    params, optimizer
        As they are now; `params` is the object that was given.
    history : History
    steps, epochs : int
        Optimizer steps taken and epochs completed since the very beginning.
    reason : str
        Why training ended: "steps", "epochs", "early stopping", "non-finite loss", "interrupted", or what a callback
        said.
    best_step : int or None
        Number of the step, from zero, after which validation was best.
    best_loss, best_value : float or None
        The validation loss there, and the figure that is monitored (by default the loss, too).
    diagnosis : Diagnosis or None
        Of the whole curve of training losses, made when it is first asked for; None if the curve is too short,
        or the optimizer maximizes.
    """

    params: Any = field(repr=False)
    optimizer: Any
    history: History
    steps: int
    epochs: int
    reason: str
    best_step: int | None
    best_loss: float | None
    best_value: float | None
    _diagnose: Callable[[], Diagnosis] | None = field(repr=False)

    @cached_property
    def diagnosis(self) -> Diagnosis | None:
        return None if self._diagnose is None else self._diagnose()
