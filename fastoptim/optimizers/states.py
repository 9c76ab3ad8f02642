"""Keeps what an optimizer needs between steps: runs of parameters with one step count, their states, a plan."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, MutableSequence, Sequence
from typing import Any

import numpy as np

from ..arrays.autograd import tensors_behind
from ..arrays.storage import MASTER, Storage, compute_dtype, pack, state_arrays, template
from ..backends.base import Backend, Member, Runs, count_of_steps
from ..rules.measures import Measured
from ..rules.table import ScalarRows, Scalars
from .groups import Groups, Parameter, ParamGroup
from .hyperparameters import UpdateSpec
from .measuring import Asked
from .update import Update


class ParamRun:
    """Parameters of one group with one step count: one tuple of scalars serves them all."""

    def __init__(
        self, group: ParamGroup, spec: UpdateSpec, base: int, fresh: bool, begins: bool, kept: tuple[float, ...]
    ):
        self.group, self.base = group, base
        self.fresh = fresh  # states of the rule were made for the plan
        self.begins = begins  # some arrays were, a master copy too; parameters own them from the first step on
        self.kept, self.kept_steps = kept, 0  # the rule's scalars, and after how many steps of the plan
        self.asked: Asked | None = None  # of the step that comes next, or was the last
        self.members: list[Parameter] = []
        self.stored = False  # whether a member is stored in fewer bits
        self.names: list[tuple[str, ...]] = []  # of each member's arrays
        self.states: list[tuple[Any, ...]] = []
        self.take(spec)

    @property
    def has_master(self) -> bool:
        return any(MASTER in names for names in self.names)

    def take(self, spec: UpdateSpec) -> None:
        """Go on with these hyperparameters."""
        self.spec, self.head, self.coefficients = spec, spec.head, spec.coefficients

    def kept_after(self, steps: int) -> tuple[float, ...]:
        """The rule's scalars after so many steps of the plan."""
        if self.asked is not None and self.asked.t <= self.base + steps:
            return self.asked.kept
        kept = self.kept
        if self.spec.advance is not None:
            for t in range(self.base + self.kept_steps + 1, self.base + steps + 1):
                kept = self.spec.advance(t, *kept)
        return kept

    def keep(self, steps: int) -> None:
        self.kept, self.kept_steps = self.kept_after(steps), steps

    def scalars(self, steps: int) -> Scalars:
        """Those of the step after so many steps of the plan."""
        self.keep(steps)
        t = self.base + steps + 1
        if self.spec.measured is not None:
            self.asked = Asked(self.spec.measured, math.prod(self.members[0].shape), t, self.kept)
        scalars = self.spec.scalars(t, self.fresh and steps == 0, self.kept)
        return (*scalars, t) if self.stored else scalars

    @property
    def measured(self) -> Measured | None:
        return self.spec.measured

    def finish(self, row: Scalars, norms: Scalars) -> Scalars:
        """See `measuring.Asking`; what is kept then counts once the step is counted."""
        assert self.asked is not None
        return self.asked.finish(row, norms)


class Plan:
    """The runs of one optimizer, and how many steps they took together.

    Attributes
    ----------
    update : Update
        What steps them.
    params, states : tuples of arrays
        As `update` takes them.
    leaves, is_list : callable, bool
        What takes gradients apart, and whether they are a list or tuple that may stay whole.
    version, arrays_version, changes : int, int, list of int
        The counts of changes up to which the groups and their arrays were read, and where both are counted on; -1 is
        never up to date.
    """

    __slots__ = (
        *("_dithers", "_fixed", "_measures", "_varies", "arrays_version", "changes", "counter", "is_list", "kept_rows"),
        *("leaves", "native_rows", "native_step", "params", "run_of", "runs", "states", "tensors", "update", "version"),
    )

    def __init__(self, runs: list[ParamRun], run_of: list[int], update: Update, counter: MutableSequence[int]):
        self.runs, self.run_of, self.update, self.counter = runs, run_of, update, counter
        self.native_step = update.native_step
        self.version = self.arrays_version = -1
        self.changes = [0, 0]
        self.params: tuple[Any, ...] = ()
        self.tensors: list[Any] = []  # of torch, whose memory the parameters are
        self.leaves: Callable[[Any], tuple[Any, ...]] = tuple
        self.is_list = False
        rest = [iter(run.states) for run in runs]
        self.states = tuple(array for run in run_of for array in next(rest[run]))
        self._dithers = any(run.stored for run in runs)
        self._look_at_specs()

    def take_params(self, params: tuple[Any, ...]) -> None:
        """Step these from now on."""
        self.params, self.tensors = params, tensors_behind(params)
        self.native_step = None if self.tensors else self.update.native_step

    @property
    def unsettled(self) -> bool:
        """Whether new states hold what parameters or hyperparameters were, which may change up to the first step."""
        if self.counter[0]:
            return False
        return any(run.begins and (run.spec.kernel.rule.initial or run.has_master) for run in self.runs)

    @property
    def has_master(self) -> bool:
        """Whether some parameters are stepped by way of a copy among their states."""
        return any(run.has_master for run in self.runs)

    def _look_at_specs(self) -> None:
        self.kept_rows: ScalarRows | None = None  # the scalars, while they do not change
        # The same with the steps before the plan, where the number of each step comes behind them.
        self._fixed: list[tuple[Scalars, int]] = []
        # What the C extension takes at every step in place of scalars that change.
        own = [row for run in self.runs if (row := run.spec.native_scalars(run.base))]
        all_native = len(own) == len(self.runs)
        self.native_rows = tuple(own) if all_native and self.update.in_c else None
        self._measures = not all_native and any(run.spec.measured is not None for run in self.runs)
        # Whether every run's scalars are its head and what a function of t gives.
        self._varies = not self._dithers and (
            all_native
            or not (
                self._measures
                or any(not callable(run.coefficients) or run.spec.first or run.spec.advance for run in self.runs)
            )
        )

    def adopt(self, specs: Mapping[int, UpdateSpec]) -> bool:
        """Take what the groups say now; False if that needs another plan."""
        if self.unsettled or not all(specs[id(run.group)].has_kernels_of(run.spec) for run in self.runs):
            return False
        for run in self.runs:
            run.keep(self.counter[0])
            run.take(specs[id(run.group)])
        self._look_at_specs()
        return True

    def rows(self) -> ScalarRows:
        """The scalars of each run for the next step."""
        if self.kept_rows is not None:
            return self.kept_rows
        steps = self.counter[0]
        t = steps + 1
        if self._fixed:
            return tuple([(*row, base + t) for row, base in self._fixed])
        if self._varies:
            return tuple([run.head + run.coefficients(run.base + t) for run in self.runs])  # type: ignore[operator]
        rows = tuple([run.scalars(steps) for run in self.runs])
        if not steps or self._measures or any(callable(run.coefficients) for run in self.runs):
            return rows  # the first step's may differ
        if not self._dithers:
            self.kept_rows = rows
        elif all(run.stored for run in self.runs):
            self._fixed = [(row[:-1], run.base) for row, run in zip(rows, self.runs, strict=True)]
        return rows

    def write_back(self, stepped: Sequence[bool] | None = None) -> None:
        """Hand states, step counts and scalars to the parameters; one step more to those that have `stepped`."""
        steps = self.counter[0]
        positions = [[i for i, run in enumerate(self.run_of) if run == r] for r in range(len(self.runs))]
        for run, places in zip(self.runs, positions, strict=True):
            rule, kept = run.spec.kernel.rule, run.kept_after(steps)
            after = kept if stepped is None else run.kept_after(steps + 1)
            for member, names, states, place in zip(run.members, run.names, run.states, places, strict=True):
                own = stepped is not None and stepped[place]
                member.t = run.base + steps + own
                if steps or own:
                    member.states.update(zip(names, states, strict=True))
                    member.scalars.update(zip(rule.scalars, after if own else kept, strict=True))

    def entries(self) -> dict[str, tuple[int, dict[str, Any]]]:
        """Name of a parameter -> its step count, and its states and scalars. Nothing is written."""
        steps = self.counter[0]
        found = {}
        for run in self.runs:
            rule, t, kept = run.spec.kernel.rule, run.base + steps, run.kept_after(steps)
            for member, names, states in zip(run.members, run.names, run.states, strict=True):
                entry = member.states | member.scalars
                if steps:
                    entry |= dict(zip(names, states, strict=True)) | dict(zip(rule.scalars, kept, strict=True))
                found[member.name] = (t, entry)
        return found


def make_plan(
    model: Groups,
    specs: Mapping[int, UpdateSpec],
    storage: Storage,
    backend: Backend,
    threads: int,
    skipped: Any,
    lazy: bool = False,
) -> Plan:
    """Sort parameters into runs, make the states that they lack, and bind them."""
    members = [
        member_of(q.name, q.shape, q.dtype, specs[id(q.group)], storage, q.number, q.first) for q in model.parameters
    ]
    states = _all_states(model, specs, members, backend)
    counter = count_of_steps()
    measures = any(spec.measured is not None for spec in specs.values())
    runs: dict[Any, int] = {}
    made: list[ParamRun] = []
    run_of = []
    for parameter, member, own in zip(model.parameters, members, states, strict=True):
        group, spec = parameter.group, specs[id(parameter.group)]
        rule = spec.kernel.rule
        fresh, begins = (any(name not in parameter.states for name in names) for names in (rule.states, own))
        kept = tuple(parameter.scalars.get(name, first) for name, first in rule.scalars.items())
        alone = parameter.name if measures else None  # norms give each array scalars of its own
        key = (id(group), parameter.t, fresh, begins, kept, alone)
        if key not in runs:
            runs[key] = len(made)
            made.append(ParamRun(group, spec, parameter.t, fresh, begins, kept))
        run = made[runs[key]]
        run.members.append(parameter)
        run.names.append(tuple(own))
        run.states.append(tuple(own.values()))
        run.stored |= member.stored is not None
        run_of.append(runs[key])
    kernels = [run.spec.kernel for run in made]
    update = Update(backend, Runs(kernels, run_of, members), threads, counter, skipped, lazy, made)
    return Plan(made, run_of, update, counter)


def check_members(model: Groups, group: ParamGroup, spec: UpdateSpec, storage: Storage) -> None:
    """TypeError or ValueError if a parameter of a group cannot be stored as it is, with these hyperparameters."""
    for q in model.parameters:
        if q.group is group:
            member_of(q.name, q.shape, q.dtype, spec, storage)


def member_of(
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    spec: UpdateSpec,
    storage: Storage,
    number: int = 0,
    first: int = 0,
) -> Member:
    """What is expected of a parameter; TypeError or ValueError if it cannot be stored so."""
    storage.check(name, dtype)
    rule = spec.kernel.rule
    stored = storage.of(rule, dtype, number, first)
    if stored is not None and spec.measured is not None:
        raise ValueError(
            f"parameter {name!r} is stored in fewer bits ({stored.parameter}, states in {stored.state}), and its step "
            "depends on norms that are taken of arrays in float32 or float64: leave out state_dtype, or update_clip "
            "and cautious; LAMB, LARS and NovoGrad always take norms"
        )
    return Member(name, shape, dtype, stored)


def _all_states(
    model: Groups, specs: Mapping[int, UpdateSpec], members: Sequence[Member], backend: Backend
) -> list[dict[str, Any]]:
    """The states of every parameter, in order: its own, and new ones with their first values."""
    owned = []
    missing: dict[tuple[str, bool], list[tuple[Parameter, Member, Any]]] = {}
    for q, member in zip(model.parameters, members, strict=True):
        p = q.array(backend)
        names = state_arrays(specs[id(q.group)].kernel.rule, member.stored, q.shape, q.dtype)
        owned.append(dict.fromkeys(names) | {name: q.states[name] for name in names if name in q.states})
        for name, (shape, dtype) in names.items():
            if name not in q.states:
                like = p if member.stored is None else template(shape, dtype)
                missing.setdefault((name, member.stored is None), []).append((q, member, like))
    made: dict[str, dict[str, Any]] = {}
    for (name, plain), wanted in missing.items():
        likes = [like for _, _, like in wanted]
        zeros = backend.zeros_for(likes) if plain else map(backend.zeros_like, likes)
        for (q, _, _), state in zip(wanted, zeros, strict=True):
            made.setdefault(q.name, {})[name] = state
    for q, member, own in zip(model.parameters, members, owned, strict=True):
        new = made.get(q.name, {})
        own.update(new)
        rule = specs[id(q.group)].kernel.rule
        for slot, name in enumerate(rule.states, 2):
            first = rule.initial.get(name, 0.0) if name in new else 0.0
            value = first_value(backend, q.array(backend), first, q.group) if first else None
            if value is not None:
                parts = {name: value} if member.stored is None else pack(value, name, member.stored, slot, 0)
                for part, codes in parts.items():
                    backend.assign(new[part], codes)
        if MASTER in new:
            backend.assign(new[MASTER], q.array(backend))
    return owned


def begin(backend: Backend, state: Any, p: Any, first: float | str, hyperparameters: Mapping[str, Any]) -> None:
    """Give a state of zeros what it holds before the first step; see `Rule.initial`."""
    if (value := first_value(backend, p, first, hyperparameters)) is not None:
        backend.assign(state, value)


def first_value(backend: Backend, p: Any, first: float | str, hyperparameters: Mapping[str, Any]) -> np.ndarray | None:
    """What a state of `p` holds before the first step; None for zeros."""
    if first == "parameter":
        return backend.host_copy(p)
    value = hyperparameters.get(first, 0.0) if isinstance(first, str) else first
    shape, dtype = backend.describe(p)
    return np.full(shape, value, compute_dtype(dtype)) if value else None


def state_view(model: Groups, plan: Plan | None) -> Mapping[str, Mapping[str, Any]]:
    """Name of a parameter -> ``{"step": int, name of a state: array, ...}``, read-only; nothing is written."""
    found = {} if plan is None else plan.entries()
    entries = {q.name: found.get(q.name) or (q.t, q.states | q.scalars) for q in model.parameters}
    return StateView({name: StateView({"step": t, **entry}) for name, (t, entry) in entries.items()})


class StateView(Mapping[str, Any]):
    """A mapping that cannot be changed; copies and pickles of it are dicts."""

    __slots__ = ("_content",)

    def __init__(self, content: dict[str, Any]) -> None:
        self._content = content

    def __getitem__(self, name: str) -> Any:
        return self._content[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._content)

    def __len__(self) -> int:
        return len(self._content)

    def __setitem__(self, name: str, value: Any) -> None:
        raise TypeError("states are read-only here: write into an array, x[...] = new, or use load_state_dict")

    def __or__(self, other: Mapping[str, Any]) -> dict[str, Any]:
        return {**self, **other}

    def __reduce__(self) -> Any:
        return dict, (self._content,)

    def __repr__(self) -> str:
        return repr(self._content)
