"""A plan for backends without one of their own in C: check the arrays once, then only look whether any has changed."""

from __future__ import annotations

from collections.abc import Sequence
from operator import is_
from typing import Any, Protocol

from ..common.signals import deferred
from ..rules.table import Rule


class Preparing(Protocol):
    """What a backend offers for such plans, beside its checks."""

    def faces(self, arrays: tuple[Any, ...], states: tuple[Any, ...]) -> list[dict[str, Any]] | None:
        """Address, shape, strides, dtype and writability of each array; None if one needs the checked path.

        Those of states are needed only where an array can move in memory and stay the same object.
        """

    def stage_without_copy(self, p: Any, g: Any, states: Sequence[Any]) -> Any | None:
        """The arrays in their plain form if that takes no copy."""

    def prepare(self, lists: Sequence[tuple[Rule, str, list[tuple[Any, ...]]]]) -> Any:
        """What `launch` needs for (rule, decay, rows of plain arrays); compiles what is not compiled yet."""

    def launch(self, prepared: Any, scalars: Sequence[tuple[float, ...]], threads: int) -> None:
        """Run what was prepared, with the scalars of each list."""


class RememberingPlan:
    """Repeated steps over one list of arrays; the interface is that of `backends.c.CPlan`."""

    def __init__(self, backend: Any, rows: Sequence[Any], counter: list[int], threads: int):
        self._backend, self._counter, self._threads = backend, counter, threads
        self._heads = [(rule, decay, maximize, list(members)) for rule, decay, _, maximize, members in rows]
        self._decay = [row[2] for row in rows]
        self._faces: list[dict[str, Any]] | None = None
        self._states: tuple[Any, ...] = ()
        self._prepared: Any = None

    def set_decay(self, decay_coefficients: Sequence[float]) -> None:
        """Replace the decay coefficient of every row."""
        self._decay = list(decay_coefficients)

    def step(
        self,
        params: tuple[Any, ...],
        grads: tuple[Any, ...],
        states: tuple[Any, ...],
        coefficients: Sequence[tuple[float, ...]],
        scale: float,
    ) -> bool:
        """True, or False with nothing touched if some array needs the checked path."""
        faces = self._backend.faces(params + grads, states)
        if faces is None:
            return False
        known = faces == self._faces and all(map(is_, states, self._states))
        if not known and not self._bind(params, grads, states, faces):
            return False
        scalars = [
            (-scale if maximize else scale, decay_coefficient, *k)
            for (_, _, maximize, _), decay_coefficient, k in zip(self._heads, self._decay, coefficients, strict=True)
        ]
        with deferred():
            self._backend.launch(self._prepared, scalars, self._threads)
            self._counter[0] += 1
        return True

    def _bind(self, params: tuple[Any, ...], grads: tuple[Any, ...], states: tuple[Any, ...], faces: list) -> bool:
        """Make every check that a step makes, and prepare; False if one fails or an array is not plain."""
        backend = self._backend
        self._faces = None
        lists, written, read = [], [], []
        entries, rest = iter(zip(params, grads, strict=True)), iter(states)
        try:
            for rule, decay, _, members in self._heads:
                rows = []
                for member, (p, g) in zip(members, entries):  # noqa: B905 - the next list goes on where this one ends
                    own = [next(rest) for _ in rule.states]
                    for x in (p, *own):
                        backend.check_parameter("written", x)
                    for x in (p, g, *own):
                        backend.check_companion("p", "array", x, member.shape, member.dtype)
                    form = backend.stage_without_copy(p, g, own)
                    if form is None:
                        return False
                    rows.append((form.p, form.g, *form.states))
                    written += [backend.span("written", x) for x in (p, *own)]
                    read.append(backend.span("read", g))
                lists.append((rule, decay, rows))
            backend.check_disjoint(written, read)
        except (TypeError, ValueError):
            return False
        self._prepared = backend.prepare(lists)
        self._faces, self._states = faces, states
        return True

    def norm(self, grads: tuple[Any, ...], grad_scale: float) -> float | None:
        """None: the norm is left to the checked path."""
        return None
