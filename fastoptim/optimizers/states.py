"""What an optimizer keeps for each parameter."""

from __future__ import annotations

from typing import Any

import numpy as np

from .groups import ParamGroup


class _Parameter:
    """One parameter: where it is found at each step, and what the optimizer keeps for it."""

    __slots__ = ("dtype", "group", "index", "name", "shape", "states", "t")

    def __init__(self, name: str, group: ParamGroup, index: int, shape: tuple[int, ...], dtype: np.dtype):
        self.name, self.group, self.index = name, group, index
        self.shape, self.dtype = shape, dtype
        self.states: dict[str, Any] = {}
        self.t = 0

    def array(self, backend: Any) -> Any:
        """The array as the group has it now; TypeError or ValueError if it is not what it was."""
        p = self.group["params"][self.index]
        backend.check_parameter(self.name, p)
        shape, dtype = backend.describe(p)
        if shape != self.shape or dtype != self.dtype:
            raise ValueError(
                f"parameter {self.name!r} was replaced: expected shape {self.shape} and dtype "
                f"{self.dtype.name}, got {shape} and {dtype.name}"
            )
        return p
