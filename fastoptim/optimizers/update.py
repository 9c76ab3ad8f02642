"""The one place where a step happens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..backends import StepInfo
from .groups import ParamGroup
from .hyperparameters import Policy
from .states import _Parameter

APPLIED = StepInfo(True, None)
BUSY = "in the middle of a step already: of another thread, of a caller further up, or since a fork during that step"


class _Cohort:
    """Parameters of one group with one step count: one set of coefficients serves them all."""

    __slots__ = ("base", "counter", "fresh", "group", "members", "policy", "positions", "states")

    def __init__(self, group: ParamGroup, policy: Policy, base: int, fresh: bool, counter: list[int]):
        self.group, self.policy = group, policy
        self.base, self.counter = base, counter
        self.fresh = fresh  # the states were made for the plan; the parameters own them from the first step on
        self.members: list[_Parameter] = []
        self.positions: list[int] = []
        self.states: list[tuple[Any, ...]] = []

    @property
    def t(self) -> int:
        return self.base + self.counter[0]

    def coefficients(self) -> tuple[float, ...]:
        steps = self.counter[0]
        return self.policy.coefficients(self.base + steps + 1, self.fresh and steps == 0)

    def settle(self) -> None:
        """Hand states and step counts to the parameters."""
        t = self.t
        for member, states in zip(self.members, self.states, strict=True):
            member.t = t
            if self.counter[0]:
                member.states.update(zip(self.policy.rule.states, states, strict=True))


class _Plan:
    """The cohorts of one optimizer in the order in which a step walks them, and how many steps they took together."""

    __slots__ = ("cohorts", "counter", "native", "params", "reorder", "rows", "states", "varies", "version")

    def __init__(self, cohorts: list[_Cohort], counter: list[int], native: Any):
        self.cohorts, self.counter, self.native = cohorts, counter, native
        self.version = -1  # the count of changes up to which the groups were read; -1 is never up to date
        positions = [position for cohort in cohorts for position in cohort.positions]
        self.reorder = None if positions == list(range(len(positions))) else positions
        self.params: tuple[Any, ...] = ()  # as the groups had them at that version
        self.states = tuple(array for cohort in cohorts for states in cohort.states for array in states)
        self.rows: list[tuple[float, ...]] | None = None  # the coefficients, while they do not change
        self.varies = any(cohort.policy.varies for cohort in cohorts)

    def adopt(self, policies: Mapping[int, Policy]) -> bool:
        """Take what the groups say now; False if that needs another plan."""
        for cohort in self.cohorts:
            new, old = policies[id(cohort.group)], cohort.policy
            if new[:2] != old[:2] or new.maximize != old.maximize:
                return False
        for cohort in self.cohorts:
            cohort.policy = policies[id(cohort.group)]
        self.rows = None
        if self.native is not None:
            self.native.set_decay([cohort.policy.decay_coefficient for cohort in self.cohorts])
        return True

    def coefficients(self) -> list[tuple[float, ...]]:
        if self.rows is not None:
            return self.rows
        rows = [cohort.coefficients() for cohort in self.cohorts]
        if not self.varies and self.counter[0]:  # the first step's may differ
            self.rows = rows
        return rows

    def step(self, leaves: tuple[Any, ...], scale: float) -> bool:
        """One native call; False, with nothing touched, if some array is not plain or not as expected."""
        if self.reorder is not None:
            leaves = tuple(leaves[i] for i in self.reorder)
        return self.native.step(self.params, leaves, self.states, self.rows or self.coefficients(), scale)
