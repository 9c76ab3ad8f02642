"""`Average`: averages of parameters along training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..arrays.autograd import tell_of_assigned
from ..arrays.checks import DTYPES, check_companion, check_dtype, check_unchanged, instead_of
from ..backends import resolve
from ..backends.base import Member, Runs, count_of_steps
from ..checkpoint import matching
from ..common.busy import Busy, exclusive
from ..common.public import public
from ..common.signals import deferred_signals
from ..common.threads import resolve_threads
from ..common.trees import Structure
from ..common.validation import check_range, count, names_arguments, real, steps_taken
from ..rules.codecs import LOW
from ..rules.coefficients import average_coefficients
from ..rules.table import RULES, Kernel
from .groups import listed
from .update import Update


@public
class Average:
    """Average the parameters along training: exponentially (EMA), or all alike (SWA, Polyak).

    The n-th update, for n > 1, with ``b = 1 - decay``, or ``b = 1 / n`` where no decay is given::

        average <- average - b * (average - p)

    The first one copies the parameters. In this form an average of equal values stays that value, bit for bit.

    Parameters
    ----------
    params : array, sequence, mapping or nesting of these
        What an optimizer steps; arrays that are replaced by others in it are followed. Numbers and arrays of integers
        are not averaged; arrays of other real or complex types, and those that no step takes, are refused.
    decay : float, optional
        In [0, 1), and not rounded to 1 in float32: how much of the average stays. None: the mean of all that `update`
        has seen. Where ``b * abs(average - p)`` is below 3e-8 of a float32 average, that no longer moves.
    start : int
        The first so many updates copy the parameters only, so that the average begins where training has got somewhere.
    backend, threads
        As for `SGD`.

    Attributes
    ----------
    arrays : structure of params
        The averages: dicts and lists like those of `params`, for ``model(average.arrays)``. Not to be written to.
    count : int
        How many updates there were.

    Raises
    ------
    TypeError, ValueError
        An argument is not as described.

    References
    ----------
    Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992; Izmailov et al., "Averaging
    weights leads to wider optima and better generalization", UAI 2018. As in torch.optim.swa_utils.AveragedModel.

    Examples
    --------
    >>> import numpy as np, fastoptim as fo
    >>> w = {"w": np.array([1.0, 2.0])}
    >>> average = fo.Average(w)
    >>> for value in (2.0, 4.0):
    ...     w["w"][:] = value
    ...     average.update()
    >>> average.arrays
    {'w': array([3., 3.])}
    """

    __slots__ = (
        *("_averaged", "_averages", "_backend", "_busy", "_counter", "_decay", "_members", "_names", "_params"),
        *("_rest", "_start", "_structure", "_threads", "_update"),
    )

    @names_arguments
    def __init__(
        self,
        params: Any,
        decay: float | None = None,
        *,
        start: int = 0,
        backend: str = "auto",
        threads: int | None = None,
    ):
        self._start, self._threads = count("start", start, 0), resolve_threads(threads)
        self._busy: Busy = []
        self._params = listed(params)
        self._structure = Structure(self._params)
        leaves = self._structure.leaves(self._params)
        self._averaged = [_is_averaged(*named) for named in zip(self._structure.names, leaves, strict=True)]
        chosen = self._chosen(leaves)
        if not chosen:
            raise ValueError("params holds no arrays of float32 or float64, so that there is nothing to average")
        self._names = self._chosen(self._structure.names)
        self._backend = resolve(backend, chosen)
        for name, p in zip(self._names, chosen, strict=True):
            self._backend.check_companion(name, "array", p, *self._backend.describe(p))
        self._members = [Member(n, *self._backend.describe(p)) for n, p in zip(self._names, chosen, strict=True)]
        self._decay = self._checked_decay(decay)
        self._averages = tuple(self._backend.zeros_like(p) for p in chosen)
        self._rest = tuple(None if averaged else leaf for leaf, averaged in zip(leaves, self._averaged, strict=True))
        runs = Runs.one(Kernel(RULES["average"], "none"), self._members)
        self._counter = count_of_steps()
        self._update = Update(self._backend, runs, self._threads, self._counter)
        self._copy(chosen)

    def _checked_decay(self, value: Any) -> float | None:
        decay = None if value is None else real("decay", value, 0.0, 1.0)
        for dtype in {member.dtype for member in self._members}:
            check_range("decay", decay or 0.0, dtype, may_vanish=True, below_one=True)
        return decay

    def _chosen(self, leaves: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(leaf for leaf, averaged in zip(leaves, self._averaged, strict=True) if averaged)

    def _copy(self, leaves: tuple[Any, ...]) -> None:
        for average, p in zip(self._averages, leaves, strict=True):
            self._backend.assign(average, matching.to_host(p))

    @property
    def count(self) -> int:
        """How many updates there were."""
        return self._counter[0]

    @property
    def decay(self) -> float | None:
        """How much of the average stays at an update; None for the mean of all. It may be set."""
        return self._decay

    @decay.setter
    def decay(self, value: float | None) -> None:
        self._decay = self._checked_decay(value)

    @property
    def arrays(self) -> Any:
        """The averages, in the structure of the parameters."""
        averages = iter(self._averages)
        pairs = zip(self._averaged, self._rest, strict=True)
        return self._structure.rebuild([next(averages) if averaged else leaf for averaged, leaf in pairs])

    def update(self) -> None:
        """Take the parameters as they are now into the average; whole, or an error and nothing has changed."""
        with exclusive(self._busy):
            leaves = self._chosen(self._structure.leaves(self._params, "params"))
            taken = self.count - self._start
            if taken > 0:
                scalars = ((1.0, 0.0, *average_coefficients(taken + 1, self._decay)),)
                try:
                    self._update.step(self._averages, leaves, (), scalars)  # which counts it, too
                except (TypeError, ValueError):
                    self._check(leaves)  # what it calls a gradient is a parameter here
                    raise
                return
            self._check(leaves)
            with deferred_signals():
                self._copy(leaves)
                self._counter[0] += 1

    def _check(self, leaves: tuple[Any, ...]) -> None:
        """TypeError or ValueError unless these are parameters as they were."""
        for member, p in zip(self._members, leaves, strict=True):
            self._backend.check_companion(member.name, "array", p, *self._backend.describe(p))
            check_unchanged(member.name, self._backend.describe(p), (member.shape, member.dtype))
        self._backend.check_disjoint(self._spans("average of", self._averages), self._spans("parameter", leaves))

    def _spans(self, what: str, arrays: tuple[Any, ...]) -> list[Any]:
        return [self._backend.span(f"{what} {name!r}", x) for name, x in zip(self._names, arrays, strict=True)]

    def copy_to(self, params: Any) -> None:
        """Write the averages into the arrays of `params`, which has the structure of the averaged ones."""
        with exclusive(self._busy):
            leaves = self._chosen(self._structure.leaves(params, "params"))
            for member, p in zip(self._members, leaves, strict=True):
                self._backend.check_parameter(member.name, p)
                check_unchanged(member.name, self._backend.describe(p), (member.shape, member.dtype))
            self._backend.check_disjoint(self._spans("parameter", leaves), self._spans("average of", self._averages))
            with deferred_signals():
                for p, average in zip(leaves, self._averages, strict=True):
                    matching.assign(p, matching.to_host(average))
                tell_of_assigned(leaves)

    def state_dict(self) -> dict[str, Any]:
        """Everything but the parameters, as copies; plain numbers and arrays by name."""
        with exclusive(self._busy, reading=True):
            arrays = {n: self._backend.host_copy(x) for n, x in zip(self._names, self._averages, strict=True)}
            return {"version": 1, "count": self.count, "decay": self._decay, "start": self._start, "arrays": arrays}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; names, shapes and dtypes must match, or nothing changes."""
        with exclusive(self._busy):
            try:
                version, arrays = state_dict["version"], dict(state_dict["arrays"])
                n, start = steps_taken("count", state_dict["count"]), count("start", state_dict["start"], 0)
                decay = self._checked_decay(state_dict["decay"])
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"not a state dict of an Average: {error}") from error
            if version != 1 or set(arrays) != set(self._names):
                raise ValueError("state dict has other parameters than this Average, or another version")
            for name, shape, dtype, _ in self._members:
                check_companion(name, "average", arrays[name], shape, dtype)
            with deferred_signals():
                for name, average in zip(self._names, self._averages, strict=True):
                    self._backend.assign(average, arrays[name])
                self._counter[0], self._start, self._decay = n, start, decay

    def __getstate__(self) -> Any:
        raise TypeError("an Average follows arrays of its params: save its state_dict, or copy average.arrays")

    def __repr__(self) -> str:
        kind = "mean" if self._decay is None else f"decay={self._decay}"
        return f"Average({len(self._names)} arrays, {kind}, start={self._start}, {self.count} updates)"


def _is_averaged(name: str, leaf: Any) -> bool:
    if str(getattr(leaf, "dtype", "")).removeprefix("torch.") in LOW:
        raise TypeError(
            f"array {name!r}: 16 bits are too few for an average; give the optimizer master=True and average its "
            "float32 copies: Average({name: entry['master'] for name, entry in opt.state.items()})"
        )
    if isinstance(leaf, np.ndarray):
        if leaf.dtype.kind in "fcO":
            check_dtype(name, leaf.dtype, "array")
        return leaf.dtype in DTYPES
    interface = getattr(leaf, "__cuda_array_interface__", None)
    if interface is None and hasattr(leaf, "dtype") and not isinstance(leaf, np.generic):
        raise TypeError(f"array {name!r}: expected a NumPy array, got {type(leaf).__name__}{instead_of(leaf, name)}")
    return interface is not None and np.dtype(interface["typestr"]) in DTYPES
