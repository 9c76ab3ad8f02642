"""SGD, Adam and AdamW over nested NumPy (or CUDA) arrays: the classes that people import.

A step validates everything before it touches anything; it happens whole, or raises and leaves every byte and every
counter as it was.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from operator import itemgetter
from threading import get_ident
from types import MappingProxyType
from typing import Any

import numpy as np

from .. import rules
from ..arrays import checks
from ..backends import Run, StepInfo, resolve
from ..common.signals import deferred
from ..common.threads import resolve_threads
from ..common.trees import Structure, leaves_of
from ..common.validation import real, step_options
from ..rules.table import RULES
from .groups import ParamGroups, ParamList, _fixed, _listed, _restore_group
from .hyperparameters import Policy
from .states import _Parameter
from .update import APPLIED, BUSY, _Cohort, _Plan


class Optimizer:
    """Base of the optimizers: parameter groups, states, the step as a transaction.

    Subclasses name their hyper-parameters (`_names`) and turn them into a `Policy` (`_policy`) for one of `_rules`.
    """

    _rules: tuple[str, ...]
    _names: tuple[str, ...]
    _policy: Callable[..., Policy]

    def __init__(
        self,
        params: Any,
        defaults: dict[str, Any],
        backend: str,
        threads: int | None,
        state_dir: Any = None,
        memory_budget: int | str | None = None,
    ):
        self._defaults = defaults
        self._threads = resolve_threads(threads)
        self._prepare()
        self._structures: list[Structure] = []
        self._parameters: list[_Parameter] = []
        self._groups = ParamGroups()
        params = _listed(params)
        self._grouped = (
            isinstance(params, (list, tuple))
            and bool(params)
            and all(isinstance(item, Mapping) and "params" in item for item in params)
        )
        groups = (
            [dict(group, params=_listed(group["params"])) for group in params]
            if self._grouped
            else [{"params": params}]
        )
        self._backend = resolve(backend, tuple(x for group in groups for x in leaves_of(group["params"])))
        if state_dir is not None or memory_budget is not None:
            self._offload(state_dir, memory_budget)
        for group in groups:
            self._add_group(group)

    def _offload(self, state_dir: Any = None, memory_budget: Any = None) -> None:
        from ..backends.offload import OffloadBackend

        self._backend = OffloadBackend(self._backend, state_dir, memory_budget)

    def _prepare(self) -> None:
        """What is made anew in a copy."""
        # The thread that is at work here comes first. Lists are atomic and quicker than locks, and Ctrl-C can land
        # nowhere between a thread's being appended and the block that removes it.
        self._turn: list[int] = []
        self._read = itemgetter(*self._names)
        self._changes = [0]
        self._plan: _Plan | None = None

    # --- parameters and groups

    @property
    def param_groups(self) -> ParamGroups:
        """The groups: dicts with "params", "names" and the hyper-parameters, which are re-read at every step."""
        return self._groups

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Add ``{"params": ..., "lr": ..., ...}``; from then on `step` takes a list with one entry per group."""
        with self._locked():
            self._append_group(group)

    def _append_group(self, group: Mapping[str, Any]) -> None:
        if not isinstance(group, Mapping) or "params" not in group:
            raise TypeError("a parameter group is a mapping with the key 'params'")
        self._add_group(group, prefixed=True)
        self._grouped = True

    def _add_group(self, group: Mapping[str, Any], prefixed: bool | None = None) -> None:
        unknown = [key for key in group if key not in self._defaults and key != "params"]
        if unknown:
            raise ValueError(f"{type(self).__name__} has no {unknown}; a group may set {list(self._defaults)}")
        params = _listed(group["params"])
        structure = Structure(params)
        leaves = list(structure.leaves(params))
        if not leaves:
            raise ValueError("a parameter group holds no parameters")
        names, number = list(structure.names), len(self._groups)
        if self._grouped if prefixed is None else prefixed:
            known = {parameter.name for parameter in self._parameters}
            while not known.isdisjoint(names := [f"{number}.{name}" for name in structure.names]):
                number += 1  # an ungrouped model may have names of this form
        for name, leaf in zip(names, leaves, strict=True):
            self._backend.check_parameter(name, leaf)
        span = self._backend.span
        spans = [span(f"parameter {name!r}", leaf) for name, leaf in zip(names, leaves, strict=True)]
        spans += [span(f"parameter {q.name!r}", q.group["params"][q.index]) for q in self._parameters]
        self._backend.check_disjoint(spans, ())
        entry = _restore_group(
            {"params": None, "names": names} | self._defaults | dict(group, params=ParamList(leaves))
        )
        type(self)._policy(*self._read(entry))
        if any(isinstance(leaf, np.memmap) for leaf in leaves) and not hasattr(self._backend, "budget"):
            self._offload()
        entry.count_changes(self._changes)
        list.append(self._groups, entry)
        self._structures.append(structure)
        self._parameters += [
            _Parameter(name, entry, i, *self._backend.describe(leaves[i])) for i, name in enumerate(names)
        ]
        self._sync()

    @property
    def lr(self) -> float:
        """Learning rate of all groups; ValueError on reading if they differ. Setting takes one or one per group."""
        rates = {float(group["lr"]) for group in self._groups}
        if len(rates) > 1:
            raise ValueError("the groups have different learning rates: read opt.param_groups[i]['lr']")
        return rates.pop()

    @lr.setter
    def lr(self, value: Any) -> None:
        groups = self._groups
        values = list(value) if isinstance(value, (list, tuple)) else [value] * len(groups)
        if len(values) != len(groups):
            raise ValueError(f"expected one learning rate or {len(groups)}, got {len(values)}")
        rates = [real("lr", v, 0.0) for v in values]
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate

    @property
    def backend(self) -> str:
        """Name of the backend that steps run on."""
        return self._backend.name

    @property
    def threads(self) -> int:
        """Number of threads that a step may use."""
        return self._threads

    @threads.setter
    def threads(self, value: int | None) -> None:
        with self._locked():
            self._threads = resolve_threads(value)
            self._sync()

    # --- the step

    def step(
        self,
        grads: Any,
        grad_scale: float = 1.0,
        max_norm: float | None = None,
        skip_nonfinite: bool = False,
    ) -> StepInfo:
        """Update the parameters in place.

        Parameters
        ----------
        grads : same structure as the parameters
            One gradient per parameter, of its shape and dtype; never written to. ``None`` skips its parameter, whose
            step count then does not move. With parameter groups: a list with one entry per group.
        grad_scale : float
            Factor for every gradient, for example ``1 / loss_scale``.
        max_norm : float, optional
            Clip: gradients are multiplied by ``min(1, max_norm / (norm + 1e-6))``, where `norm` is the Euclidean norm
            of all gradients after `grad_scale`, in float64.
        skip_nonfinite : bool
            Leave everything as it was if a gradient holds a NaN or an infinity (after `grad_scale`), or if the norm of
            them all is beyond float64.

        Returns
        -------
        StepInfo
            ``applied``; and ``grad_norm``, None unless `max_norm` or `skip_nonfinite` asked for it.

        Raises
        ------
        TypeError, ValueError
            Wrong structure, shape, dtype, byte order, overlap or hyper-parameter; nothing was changed.
        RuntimeError
            Another thread is stepping this optimizer.
        """
        thread, turn = get_ident(), self._turn
        if turn:
            raise RuntimeError(BUSY)
        try:
            turn.append(thread)
            if turn[0] != thread:
                raise RuntimeError(BUSY)
            plan = self._plan
            if plan is None or plan.version != self._changes[0]:
                plan = self._current_plan()
            leaves = self._group_leaves(grads) if self._grouped else self._structures[0].leaves(grads)
            plain = grad_scale == 1.0 and max_norm is None and skip_nonfinite is False
            if plain and plan.native is not None and plan.step(leaves, 1.0):
                return APPLIED
            return self._step_checked(plan, leaves, *step_options(grad_scale, max_norm, skip_nonfinite))
        finally:
            turn.remove(thread)

    def _step_checked(
        self, plan: _Plan, leaves: tuple[Any, ...], grad_scale: float, max_norm: float | None, skip: bool
    ) -> StepInfo:
        """Any step, through validation in Python: it knows every layout and names what is wrong."""
        backend = self._backend
        if plan.native is not None:
            info = self._step_native(plan, leaves, grad_scale, max_norm, skip)
            if info is not None:
                return info
        checked = self._checked_arrays(plan, leaves)
        runs, staged = [], []
        for cohort in plan.cohorts:
            policy = cohort.policy
            chosen = [i for i, position in enumerate(cohort.positions) if checked[position][1] is not None]
            if not chosen:
                continue
            forms = [backend.stage(*checked[cohort.positions[i]], cohort.states[i]) for i in chosen]
            staged += forms
            runs.append(
                Run(
                    policy.rule,
                    policy.decay,
                    policy.decay_coefficient,
                    cohort.coefficients(),
                    policy.maximize,
                    [form.p for form in forms],
                    [form.g for form in forms],
                    [form.states for form in forms],
                )
            )
        with deferred():
            info = backend.transaction(
                runs, [g for _, g in checked if g is not None], grad_scale, max_norm, skip, self._threads
            )
            if info.applied:
                for form in staged:
                    form.write_back()
                self._commit(plan, checked)
        return info

    def _step_native(
        self, plan: _Plan, leaves: tuple[Any, ...], grad_scale: float, max_norm: float | None, skip: bool
    ) -> StepInfo | None:
        """The step by native calls, one for the norm and one for the rest; None if the arrays need the checked path."""
        norm = None
        if max_norm is not None or skip:
            norm = plan.native.norm(leaves, grad_scale)
            if norm is None:
                return None
            if skip and not math.isfinite(norm):
                self._checked_arrays(plan, leaves)  # a step that skips still refuses bad input
                return StepInfo(False, norm)
            grad_scale *= rules.clip_factor(norm, max_norm)
        return StepInfo(True, norm) if plan.step(leaves, grad_scale) else None

    def _checked_arrays(self, plan: _Plan, leaves: tuple[Any, ...]) -> list[tuple[Any, Any]]:
        """(parameter, gradient or None) pairs after every check that a step makes."""
        backend = self._backend
        written, read, checked = [], [], []
        states: dict[int, tuple[Any, ...]] = {}
        for cohort in plan.cohorts:
            states.update(zip(cohort.positions, cohort.states, strict=True))
        for position, (parameter, g) in enumerate(zip(self._parameters, leaves, strict=True)):
            name = parameter.name
            p = parameter.array(backend)
            written.append(backend.span(f"parameter {name!r}", p))
            for state in states[position]:
                backend.check_parameter(name, state, "a state of parameter")
                backend.check_companion(name, "a state", state, parameter.shape, parameter.dtype)
                written.append(backend.span(f"a state of parameter {name!r}", state))
            if g is not None:
                g = backend.check_companion(name, "gradient", g, parameter.shape, parameter.dtype)
                read.append(backend.span(f"gradient of parameter {name!r}", g))
            checked.append((p, g))
        backend.check_disjoint(written, read)
        return checked

    def _commit(self, plan: _Plan, checked: list[tuple[Any, Any]]) -> None:
        if all(g is not None for _, g in checked):
            plan.counter[0] += 1
            return
        self._sync()  # some parameters were skipped: their counts part from the others'
        for cohort in plan.cohorts:
            names = cohort.policy.rule.states
            for member, position, states in zip(cohort.members, cohort.positions, cohort.states, strict=True):
                if checked[position][1] is not None:
                    member.t += 1
                    member.states.update(zip(names, states, strict=True))

    # --- plans

    def _current_plan(self) -> _Plan:
        """The plan, made or brought up to date with the groups."""
        version = self._changes[0]
        policies = {id(group): type(self)._policy(*self._read(group)) for group in self._groups}
        plan = self._plan
        if plan is None or not plan.adopt(policies):
            plan = self._make_plan(policies)
        plan.params = tuple(q.group["params"][q.index] for cohort in plan.cohorts for q in cohort.members)
        values = [value for group in self._groups for value in self._read(group)]
        plan.version = version if all(map(_fixed, values)) else -1
        return plan

    def _make_plan(self, policies: Mapping[int, Policy]) -> _Plan:
        self._sync()
        counter = [0]
        cohorts: dict[Any, _Cohort] = {}
        missing: dict[str, list[Any]] = {}
        for parameter in self._parameters:
            p = parameter.array(self._backend)
            for name in policies[id(parameter.group)].rule.states:
                if name not in parameter.states:
                    missing.setdefault(name, []).append(p)
        made = {name: iter(self._backend.zeros_for(params)) for name, params in missing.items()}
        for position, parameter in enumerate(self._parameters):
            group = parameter.group
            policy = policies[id(group)]
            names = policy.rule.states
            fresh = any(name not in parameter.states for name in names)
            where = (id(group), parameter.t, fresh)
            if where not in cohorts:
                cohorts[where] = _Cohort(group, policy, parameter.t, fresh, counter)
            cohort = cohorts[where]
            own = parameter.states
            cohort.members.append(parameter)
            cohort.positions.append(position)
            cohort.states.append(tuple(own[name] if name in own else next(made[name]) for name in names))
        native = self._backend.plan(
            [(*cohort.policy[:4], cohort.members) for cohort in cohorts.values()], counter, self._threads
        )
        self._plan = _Plan(list(cohorts.values()), counter, native)
        return self._plan

    def _settle(self) -> None:
        """Hand states and step counts back to the parameters."""
        if self._plan is not None:
            for cohort in self._plan.cohorts:
                cohort.settle()

    def _sync(self) -> None:
        """`_settle`, and forget the plan."""
        self._settle()
        self._plan = None

    def _group_leaves(self, grads: Any) -> tuple[Any, ...]:
        structures = self._structures
        if not isinstance(grads, Sequence) or len(grads) != len(structures):
            raise ValueError(
                f"grads: expected a sequence with one entry for each of the {len(structures)} groups, such as "
                "[gradients of group 0, gradients of group 1]"
            )
        return tuple(
            leaf
            for structure, entry in zip(structures, grads, strict=True)
            for leaf in structure.leaves(entry["params"] if isinstance(entry, Mapping) and "params" in entry else entry)
        )

    @contextlib.contextmanager
    def _locked(self, reading: bool = False) -> Iterator[None]:
        """The turn; who only reads may also be called from within a step, by the handler of a signal for example."""
        thread, turn = get_ident(), self._turn
        if turn:
            if not reading or thread not in turn:
                raise RuntimeError(BUSY)
            yield
            return
        try:
            turn.append(thread)
            if turn[0] != thread:
                raise RuntimeError(BUSY)
            yield
        finally:
            turn.remove(thread)

    # --- states

    @property
    def state(self) -> Mapping[str, Mapping[str, Any]]:
        """Name of a parameter -> ``{"step": int, name of a state: array, ...}``.

        The mapping is read-only (`load_state_dict` replaces states); the arrays are the live ones. Their values may be
        changed; their flags, dtype and strides belong to the optimizer.
        """
        self._settle()
        return MappingProxyType({q.name: MappingProxyType({"step": q.t, **q.states}) for q in self._parameters})

    def state_dict(self) -> dict[str, Any]:
        """Everything but the parameters, as copies: step counts, states in their exact dtypes, hyper-parameters."""
        with self._locked(reading=True):
            return self._snapshot(self._backend.host_copy)

    def _snapshot(self, copy: Callable[[Any], Any]) -> dict[str, Any]:
        return {
            "version": 1,
            "optimizer": type(self).__name__,
            "state": {
                name: {k: v if k == "step" else copy(v) for k, v in entry.items()} for name, entry in self.state.items()
            },
            "param_groups": [
                {"params": list(group["names"])} | {name: deepcopy(group[name]) for name in self._names}
                for group in self.param_groups
            ],
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; names, shapes and dtypes must match, or nothing changes."""
        with self._locked():
            self._load(state_dict)

    def _load(self, state_dict: Mapping[str, Any]) -> None:
        try:
            version, kind = state_dict["version"], state_dict["optimizer"]
            entries, groups = state_dict["state"], state_dict["param_groups"]
        except (TypeError, KeyError) as error:
            raise ValueError(f"not a state dict of an optimizer: {error}") from error
        if version != 1:
            raise ValueError(f"state dict has version {version!r}; this fastoptim reads version 1")
        if kind != type(self).__name__:
            raise ValueError(f"state dict is of {kind}, this optimizer is {type(self).__name__}")
        names = [list(group["names"]) for group in self._groups]
        if [isinstance(group, Mapping) and list(group.get("params", ())) for group in groups] != names:
            raise ValueError("state dict has other parameter groups or names than this optimizer")
        if set(entries) != {name for group in names for name in group}:
            raise ValueError("state dict has states for other parameters than this optimizer")
        for group in groups:
            if set(group) != {"params", *self._names}:
                raise ValueError(f"state dict: a group has {sorted(set(group) - {'params'})}, expected {self._names}")
            type(self)._policy(*self._read(group))
        slots = [set(RULES[name].states) for name in self._rules]
        loaded = []
        for parameter in self._parameters:
            entry = dict(entries[parameter.name])
            t = entry.pop("step", None)
            if isinstance(t, bool) or not isinstance(t, (int, np.integer)) or not 0 <= t < 1 << 63:
                raise ValueError(
                    f"state of parameter {parameter.name!r}: step must be an int from 0 to 2**63, got {t!r}"
                )
            if t and (missing := set.intersection(*slots) - entry.keys()):
                raise ValueError(f"state of parameter {parameter.name!r} lacks {sorted(missing)}")
            p = parameter.group["params"][parameter.index]
            states = {}
            for slot, value in entry.items():
                if slot not in set.union(*slots):
                    raise ValueError(f"state of parameter {parameter.name!r}: unknown name {slot!r}")
                value = checks.check_companion(parameter.name, slot, value, parameter.shape, parameter.dtype)
                states[slot] = self._backend.zeros_like(p)
                self._backend.assign(states[slot], value)
            loaded.append((int(t), states))
        self._sync()
        for parameter, (t, states) in zip(self._parameters, loaded, strict=True):
            parameter.t, parameter.states = t, states
        for entry, group in zip(self._groups, groups, strict=True):
            entry.update({name: deepcopy(group[name]) for name in self._names})

    def save(self, path: Any) -> None:
        """Write parameters, states, step counts and hyper-parameters to a checkpoint file."""
        from .saving import save_optimizer

        save_optimizer(self, path)

    def load(self, path: Any) -> None:
        """Read what `save` wrote, into this optimizer and its parameters, in place."""
        from .saving import load_optimizer

        load_optimizer(self, path)

    # --- copies

    def __copy__(self) -> Any:
        raise TypeError("a shallow copy would share groups and states with this optimizer; use copy.deepcopy")

    def __getstate__(self) -> dict[str, Any]:
        with self._locked(reading=True):
            self._settle()
            state = self.__dict__.copy()
        for transient in ("_turn", "_read", "_changes", "_plan"):
            del state[transient]
        state["_backend"] = self._backend.name
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._backend = resolve(state["_backend"], ())
        self._prepare()
        for group in self._groups:
            group.count_changes(self._changes)

    def __repr__(self) -> str:
        groups = "; ".join(
            f"{len(group['params'])} parameters, " + ", ".join(f"{name}={group[name]!r}" for name in self._names)
            for group in self._groups
        )
        return f"{type(self).__name__}({groups}; backend={self.backend!r}, threads={self.threads})"
