"""Averages of the parameters: kept beside the training loop, or by the optimizer itself."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from ..checkpoint import matching
from ..checkpoint.files import CheckpointError
from ..common.trees import Structure
from ..optimizers.averages import Average
from ..optimizers.schedule_free import ScheduleFree
from .loop import Loop
from .ranks import whole_of


def validated_params(params: Any, optimizer: Any, average: Average | None) -> Callable[[], Any]:
    """What returns the parameters that are to be validated: an average, those of `averaged`, or `params`."""
    if average is not None:
        return lambda: average.arrays
    whole = whole_of(optimizer)
    if not isinstance(whole, ScheduleFree):
        return lambda: params
    if not hasattr(optimizer, "averaged"):
        raise ValueError(
            f"{type(whole).__name__} is validated with its averages, which several processes keep in slices: train "
            "without validation, or in one process"
        )
    structure = Structure(params)

    def averages() -> Any:
        stepped = dict(zip(map(id, whole._model.arrays()), whole._averages(), strict=True))
        return structure.rebuild([stepped.get(id(leaf), leaf) for leaf in structure.leaves(params)])

    return averages


class Averaging:
    """Update an `Average` after every step that was applied; part of `Loop`."""

    def __init__(self, average: Any, params: Any):
        if not isinstance(average, Average):
            raise TypeError(f"average must be a fastoptim.Average of the parameters, got {average!r}")
        own = Structure(params).leaves(params)
        averaged = average._structure.leaves(average._params)
        if len(own) != len(averaged) or any(x is not y for x, y in zip(own, averaged, strict=True)):
            raise ValueError("average must have been made of these params: fo.Average(params, ...)")
        self._average = average
        self.settings = {"decay": average._decay, "start": average._start}  # before a checkpoint replaces them

    def due(self, loop: Loop) -> float:
        return loop.steps + 1

    def __call__(self, loop: Loop) -> None:
        if loop.info is None or loop.info.applied:
            self._average.update()

    def own_arrays(self, names: Collection[str]) -> dict[str, Any]:
        """The averages of arrays that each process has its own of."""
        arrays = zip(self._average._names, self._average._averages, strict=True)
        return {name: matching.to_host(x) for name, x in arrays if name in names}

    def state_dict(self) -> dict[str, Any]:
        return self._average.state_dict()

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        if state is None:
            raise CheckpointError("it was written without an average, which cannot begin in the middle")
        self._average.load_state_dict(state)
