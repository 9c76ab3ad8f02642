"""What a backend is: something that applies the law to runs of arrays."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from .. import rules
from ..arrays import checks, layout
from ..rules import reference
from ..rules.table import Rule


class Run(NamedTuple):
    """Parameters that share a rule and its coefficients; all arrays are plain (see `fastoptim.arrays`)."""

    rule: Rule
    decay: str
    decay_coefficient: float
    coefficients: tuple[float, ...]
    maximize: bool
    params: Sequence[Any]
    grads: Sequence[Any]
    states: Sequence[tuple[Any, ...]]


class StepInfo(NamedTuple):
    """What a step did: applied or skipped, and the gradient norm (after grad_scale) if the step needed it."""

    applied: bool
    grad_norm: float | None


class Backend(ABC):
    """A backend for host arrays. Subclasses give `apply` and `block_sums`; device backends replace more."""

    name: str

    # --- arithmetic
    @abstractmethod
    def apply(self, runs: Sequence[Run], scale: float, threads: int) -> None:
        """One step of every run, in place. `scale` multiplies gradients (negated where a run maximizes)."""

    @abstractmethod
    def block_sums(self, grads: Sequence[Any], grad_scale: float, k: float, threads: int) -> np.ndarray:
        """Sums of ``(k * (grad_scale * g))**2``, one float64 per block of each C-ordered plain array, in order."""

    def norm(self, grads: Sequence[Any], grad_scale: float, threads: int) -> float:
        """Norm of all gradients (of any layout) after `grad_scale`."""
        ordered = [self.flat(g) for g in grads]
        return rules.norm_from_squares(lambda k: reference.tree_sum(self.block_sums(ordered, grad_scale, k, threads)))

    def transaction(
        self,
        runs: Sequence[Run],
        norm_grads: Sequence[Any],
        grad_scale: float,
        max_norm: float | None,
        skip_nonfinite: bool,
        threads: int,
    ) -> StepInfo:
        """The whole step: norm where it is needed, the decision, then `apply`. Nothing is written if it skips."""
        norm, factor = None, 1.0
        if max_norm is not None or skip_nonfinite:
            norm = self.norm(norm_grads, grad_scale, threads)
            if skip_nonfinite and not math.isfinite(norm):
                return StepInfo(False, norm)
            factor = rules.clip_factor(norm, max_norm)
        self.apply(runs, grad_scale * factor, threads)
        return StepInfo(True, norm)

    # --- arrays
    check_parameter = staticmethod(checks.check_parameter)
    check_companion = staticmethod(checks.check_companion)
    span = staticmethod(checks.span)
    stage = staticmethod(layout.stage)
    flat = staticmethod(layout.flat)
    zeros_like = staticmethod(layout.zeros_like)
    check_dtype = staticmethod(checks.check_dtype)

    def zeros_for(self, params: Sequence[Any]) -> list[Any]:
        """`zeros_like` for each; side by side where the parameters lie so, that a step may be one run there."""
        zeros: list[Any] = []
        for run in layout.runs_side_by_side(params):
            if len(run) == 1:
                zeros.append(self.zeros_like(run[0]))
                continue
            joint = np.lib.stride_tricks.as_strided(run[0].reshape(-1), (sum(x.size for x in run),))
            zeros += layout.views_side_by_side(self.zeros_like(joint), run)
        return zeros

    def describe(self, x: Any) -> tuple[tuple[int, ...], np.dtype]:
        """Shape and dtype of an array that `check_parameter` has let pass."""
        return tuple(x.shape), x.dtype

    def host_copy(self, x: Any) -> np.ndarray:
        """A state as a NumPy array of its own."""
        return x.copy()

    def assign(self, x: Any, value: np.ndarray) -> None:
        """Fill a state from a NumPy array of its shape and dtype."""
        x[...] = value

    @contextmanager
    def arithmetic(self) -> Iterator[None]:
        """Have NumPy compute as kernels do, without warnings; FloatingPointError if this thread flushes subnormals."""
        checks.check_subnormals()
        with np.errstate(all="ignore"):
            yield

    def multiply(self, xs: Sequence[Any], factor: float) -> None:
        """``x *= factor`` for each array, with the factor rounded to its dtype."""
        with self.arithmetic():
            for x in xs:
                reference.multiply(x, factor)

    def check_disjoint(self, written: Iterable[checks.Span], read: Iterable[checks.Span]) -> None:
        checks.check_disjoint(written, read)

    # --- the way past all that: a backend may take plain arrays by itself
    def plan(self, rows: Sequence[Any], counter: list[int], threads: int) -> Any | None:
        """A native plan for repeated steps over one list of arrays (see `backends.c.CPlan`), or None."""
        return None

    def info(self) -> dict[str, Any]:
        """What `fastoptim.info` reports about this backend."""
        return {}
