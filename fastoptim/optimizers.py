"""SGD, Adam and AdamW over nested NumPy (or CUDA) arrays: the classes that people import.

A step validates everything before it touches anything; it happens whole, or raises and leaves every byte and every
counter as it was.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, ValuesView
from copy import deepcopy
from functools import partial
from operator import index, itemgetter
from threading import get_ident
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from . import arrays, rules
from .backends import Run, StepInfo, resolve
from .interrupts import deferred
from .rules import RULES, Rule
from .threads import resolve_threads
from .trees import Structure, leaves_of

APPLIED = StepInfo(True, None)
BUSY = "in the middle of a step already: of another thread, of a caller further up, or since a fork during that step"


# --- Hyper-parameters ---------------------------------------------------------------------------------------------


def real(name: str, value: Any, low: float = -math.inf, below: float = math.inf) -> float:
    """`value` as a float with ``low <= value < below``; TypeError or ValueError that names it."""
    try:
        number = float(value + 0)  # also refuses strings, which float() reads
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be a real number, got {value!r}") from error
    except OverflowError:
        number = math.inf if value > 0 else -math.inf
    if not (math.isfinite(number) and low <= number < below):
        limit = f">= {low:g} and finite" if math.isinf(below) else f"in [{low:g}, {below:g})"
        raise ValueError(f"{name} must be {'finite' if math.isinf(low) else limit}, got {number}")
    return number


def count(name: str, value: Any, low: int = 1) -> int:
    """`value` as an int with ``low <= value < 2**63``; TypeError or ValueError that names it."""
    no_bool: Any = None if isinstance(value, bool) else value
    try:
        number = index(no_bool)
    except TypeError as error:
        raise TypeError(f"{name} must be an int, got {value!r}") from error
    if number < low:
        raise ValueError(f"{name} must be at least {low}, got {number}")
    if number >= 1 << 63:
        raise ValueError(f"{name} must be below 2**63")
    return number


def flag(name: str, value: Any) -> bool:
    """`value` if it is a bool."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """`value` if it is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {list(choices)}, got {value!r}")
    return value


class Policy(NamedTuple):
    """What a group's hyper-parameters come to: a row of the law and the coefficients for each step."""

    rule: Rule
    decay: str
    decay_coefficient: float
    maximize: bool
    coefficients: Callable[[int, bool], tuple[float, ...]]  # (t, first) -> the rule's coefficients
    varies: bool = False  # whether they change with t


def sgd_policy(
    lr: Any,
    momentum: Any = 0.0,
    dampening: Any = 0.0,
    weight_decay: Any = 0.0,
    nesterov: Any = False,
    maximize: Any = False,
    momentum_mode: Any = "torch",
) -> Policy:
    """Validated hyper-parameters of SGD as a policy."""
    lr = real("lr", lr, 0.0)
    momentum = real("momentum", momentum, 0.0, 1.0)
    dampening = real("dampening", dampening)
    weight_decay = real("weight_decay", weight_decay, 0.0)
    mode = choice("momentum_mode", momentum_mode, rules.MOMENTUM_MODES)
    if dampening and mode != "torch":
        raise ValueError(f"momentum_mode={mode!r} has no dampening of its own; got dampening={dampening}")
    if flag("nesterov", nesterov):
        if momentum == 0 or dampening != 0 or mode == "damped":
            raise ValueError("nesterov needs momentum > 0, dampening = 0 and a momentum_mode other than 'damped'")
        kwargs = {"lr": lr, "momentum": momentum, "mode": mode}
        name, coefficients = "nesterov", lambda t, first: rules.nesterov_coefficients(**kwargs)
    elif momentum:
        name = "momentum"

        def coefficients(t: int, first: bool) -> tuple[float, ...]:
            return rules.momentum_coefficients(lr=lr, momentum=momentum, dampening=dampening, mode=mode, first=first)
    else:
        name, coefficients = "sgd", lambda t, first: (lr,)
    decay = "coupled" if weight_decay else "none"
    return Policy(RULES[name], decay, weight_decay, flag("maximize", maximize), coefficients)


def adam_policy(
    lr: Any,
    betas: Any = (0.9, 0.999),
    eps: Any = 1e-8,
    weight_decay: Any = 0.0,
    amsgrad: Any = False,
    maximize: Any = False,
    eps_mode: Any = "torch",
    decoupled: bool = False,
) -> Policy:
    """Validated hyper-parameters of Adam (`decoupled`: AdamW) as a policy."""
    lr = real("lr", lr, 0.0)
    try:
        beta1, beta2 = betas
    except (TypeError, ValueError) as error:
        raise TypeError(f"betas must be a pair of numbers, got {betas!r}") from error
    beta1, beta2 = real("betas[0]", beta1, 0.0, 1.0), real("betas[1]", beta2, 0.0, 1.0)
    eps = real("eps", eps, 0.0)
    weight_decay = real("weight_decay", weight_decay, 0.0)
    mode = choice("eps_mode", eps_mode, rules.EPS_MODES)
    rule = RULES["amsgrad" if flag("amsgrad", amsgrad) else "adam"]

    def coefficients(t: int, first: bool) -> tuple[float, ...]:
        return rules.adam_coefficients(t, lr, beta1, beta2, eps, mode)

    decay, decay_coefficient = "none", 0.0
    if weight_decay and decoupled:
        decay, decay_coefficient = "decoupled", rules.keep_coefficient(lr=lr, weight_decay=weight_decay)
    elif weight_decay:
        decay, decay_coefficient = "coupled", weight_decay
    return Policy(rule, decay, decay_coefficient, flag("maximize", maximize), coefficients, varies=True)


def norm_limit(value: Any, name: str = "max_norm") -> float:
    """An upper bound of a norm, validated: >= 0, and infinity means no limit."""
    return math.inf if value == math.inf else real(name, value, 0.0)


def step_options(grad_scale: Any, max_norm: Any, skip_nonfinite: Any) -> tuple[float, float | None, bool]:
    """The options of a step, validated."""
    limit = None if max_norm is None else norm_limit(max_norm)
    return real("grad_scale", grad_scale), limit, flag("skip_nonfinite", skip_nonfinite)


# Only values that cannot change in place need no second look while their group is unchanged.
_IMMUTABLE = (float, int, bool, str, np.generic)


def _fixed(value: Any) -> bool:
    return isinstance(value, _IMMUTABLE) or (isinstance(value, tuple) and all(isinstance(v, _IMMUTABLE) for v in value))


class ParamGroup(dict):
    """One entry of `Optimizer.param_groups`: a dict that refuses what no step would read, and counts its changes."""

    changes: list[int]  # counts those of all groups of an optimizer

    def count_changes(self, changes: list[int]) -> None:
        """From now on count changes of the group and of its arrays here."""
        self.changes = self["params"].changes = changes

    def __setitem__(self, key: str, value: Any) -> None:
        self.update({key: value})

    def update(self, *args: Any, **kwargs: Any) -> None:
        new = dict(*args, **kwargs)
        for key in new:
            if key not in self or key == "names":
                raise KeyError(f"parameter groups let {sorted(self.keys() - {'names'})} be set, not {key!r}")
        if "params" in new:
            new["params"] = ParamList(new["params"])
            if len(new["params"]) != len(self["names"]):
                raise ValueError(f"params: expected {len(self['names'])} arrays, got {len(new['params'])}")
            new["params"].changes = self.changes
        super().update(new)
        self.changes[0] += 1

    def __ior__(self, other: Any) -> ParamGroup:  # type: ignore[override,misc]
        self.update(other)
        return self

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("entries of a parameter group can be set, not added or removed")

    __delitem__ = pop = popitem = clear = setdefault = _refuse  # type: ignore[assignment]

    def __reduce__(self) -> Any:
        return _restore_group, (dict(self),)


def _restore_group(items: dict) -> ParamGroup:
    group = ParamGroup()
    dict.update(group, items)
    group.count_changes([0])
    return group


class _FixedList(list):
    _why: str

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(self._why)

    append = extend = insert = pop = remove = clear = sort = reverse = _refuse  # type: ignore[assignment]
    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refuse  # type: ignore[assignment]

    def __reduce__(self) -> Any:
        return type(self), (list(self),)


class ParamGroups(_FixedList):
    """`Optimizer.param_groups`: a list that grows by `Optimizer.add_param_group` alone."""

    _why = "param_groups grows by add_param_group alone; change the entries of its groups instead"


class ParamList(_FixedList):
    """ "params" of a group: each array may be replaced by another; their number and order stay."""

    _why = "arrays of a group can be replaced, not added, removed or moved; add_param_group adds some"

    def __init__(self, arrays: Iterable[Any]):
        super().__init__(arrays)
        self.changes = [0]  # that of the group, when it has one

    def __setitem__(self, index: Any, value: Any) -> None:
        if isinstance(index, slice):
            value = list(value)
            if len(value) != len(self[index]):
                self._refuse()
        list.__setitem__(self, index, value)
        self.changes[0] += 1


# --- Bookkeeping --------------------------------------------------------------------------------------------------


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


# --- The optimizers -----------------------------------------------------------------------------------------------


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
        from .offload import OffloadBackend

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
                value = arrays.check_companion(parameter.name, slot, value, parameter.shape, parameter.dtype)
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
        from .checkpoint import save_optimizer

        save_optimizer(self, path)

    def load(self, path: Any) -> None:
        """Read what `save` wrote, into this optimizer and its parameters, in place."""
        from .checkpoint import load_optimizer

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


def _listed(params: Any) -> Any:
    """`params`, or its items if it can be walked only once or is the values of a dict."""
    return list(params) if isinstance(params, (Iterator, ValuesView)) else params


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum or Nesterov's momentum on request.

    With ``momentum = mu``::

        v <- mu * v + (1 - dampening) * g        (the first step stores g undamped)
        p <- p - lr * v                          (nesterov: p <- p - lr * (mu * v + g))

    and ``p <- p - lr * g`` without it; ``weight_decay`` adds ``weight_decay * p`` to g first.

    Parameters
    ----------
    params : array, sequence, mapping, nesting of these, or list of group dicts
        Writeable native float32 or float64 arrays; they are updated in place.
    lr : float
        Learning rate, >= 0.
    momentum : float
        ``mu`` in [0, 1).
    dampening : float
        See the equation.
    weight_decay : float
        Coupled (L2) weight decay, >= 0.
    nesterov : bool
        Needs momentum > 0 and dampening = 0.
    maximize : bool
        Ascend instead of descend.
    momentum_mode : {"torch", "lr_inside", "damped"}
        "lr_inside" keeps the rate in the velocity, ``v <- mu v + lr g; p <- p - v`` (scikit-learn, Keras); "damped" is
        ``v <- mu v + (1 - mu) g`` (HIPS autograd).
    backend : {"auto", "c", "numba", "numpy", "cuda"}
        All give the same bits.
    threads : int, optional
        Default: FASTOPTIM_NUM_THREADS, else OMP_NUM_THREADS, else the usable cores.
    state_dir : path, optional
        Keep the states in files in this folder, which go when the optimizer does; see `fastoptim.offload`.
    memory_budget : int or str, optional
        Bound for resident pages of parameters, gradients and states that are `numpy.memmap` arrays, in bytes or as
        "512 MiB". Default: 256 MiB.

    Raises
    ------
    TypeError, ValueError
        A parameter or hyper-parameter is not as described.

    References
    ----------
    Sutskever et al., "On the importance of initialization and momentum in deep learning", ICML 2013. torch.optim.SGD
    is followed where conventions differ.

    Examples
    --------
    >>> import numpy as np, fastoptim as fo
    >>> w = np.array([1.0, 2.0])
    >>> opt = fo.SGD(w, lr=0.5)
    >>> opt.step(np.array([1.0, 1.0])).applied
    True
    >>> w
    array([0.5, 1.5])
    """

    _rules = ("sgd", "momentum", "nesterov")
    _names = ("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize", "momentum_mode")
    _policy = staticmethod(sgd_policy)

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        momentum_mode: str = "torch",
        backend: str = "auto",
        threads: int | None = None,
        state_dir: Any = None,
        memory_budget: int | str | None = None,
    ):
        values = (lr, momentum, dampening, weight_decay, nesterov, maximize, momentum_mode)
        defaults = dict(zip(self._names, values, strict=True))
        super().__init__(params, defaults, backend, threads, state_dir, memory_budget)


class Adam(Optimizer):
    """Adam: steps scaled by running means of the gradient and of its square.

    At step t, with ``bc1 = 1 - beta1**t`` and ``bc2 = 1 - beta2**t``::

        m <- beta1 * m + (1 - beta1) * g
        v <- beta2 * v + (1 - beta2) * g**2
        p <- p - (lr / bc1) * m / (sqrt(v) / sqrt(bc2) + eps)

    Parameters
    ----------
    params : array, sequence, mapping, nesting of these, or list of group dicts
        Writeable native float32 or float64 arrays; they are updated in place.
    lr : float
        Learning rate, >= 0.
    betas : pair of float
        Decay rates of the running means, each in [0, 1).
    eps : float
        Added to the root, >= 0.
    weight_decay : float
        Coupled (L2) weight decay, >= 0; for decoupled decay use `AdamW`.
    amsgrad : bool
        Divide by the largest v seen so far instead of v.
    maximize : bool
        Ascend instead of descend.
    eps_mode : {"torch", "hat"}
        "hat" is ``p <- p - lr * sqrt(bc2) / bc1 * m / (sqrt(v) + eps)`` (scikit-learn, thinc, TensorFlow).
    backend, threads, state_dir, memory_budget
        As for `SGD`.

    Raises
    ------
    TypeError, ValueError
        A parameter or hyper-parameter is not as described.

    References
    ----------
    Kingma and Ba, "Adam: a method for stochastic optimization", ICLR 2015; Reddi et al., "On the convergence of Adam
    and beyond", ICLR 2018 (amsgrad).

    Examples
    --------
    >>> import numpy as np, fastoptim as fo
    >>> params = {"w": np.ones((2, 2), np.float32), "b": np.zeros(2, np.float32)}
    >>> opt = fo.Adam(params, lr=0.1)
    >>> opt.step({"w": np.ones((2, 2), np.float32), "b": np.ones(2, np.float32)}).applied
    True
    >>> round(float(params["w"][0, 0]), 4)
    0.9
    """

    _rules = ("adam", "amsgrad")
    _names = ("lr", "betas", "eps", "weight_decay", "amsgrad", "maximize", "eps_mode")
    _policy = staticmethod(adam_policy)

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        eps_mode: str = "torch",
        backend: str = "auto",
        threads: int | None = None,
        state_dir: Any = None,
        memory_budget: int | str | None = None,
    ):
        values = (lr, betas, eps, weight_decay, amsgrad, maximize, eps_mode)
        defaults = dict(zip(self._names, values, strict=True))
        super().__init__(params, defaults, backend, threads, state_dir, memory_budget)


class AdamW(Adam):
    """Adam with decoupled weight decay: ``p <- p * (1 - lr * weight_decay)`` before the update of `Adam`.

    Parameters are those of `Adam`; `weight_decay` defaults to 1e-2.

    References
    ----------
    Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019.

    Examples
    --------
    >>> import numpy as np, fastoptim as fo
    >>> w = np.ones(3)
    >>> opt = fo.AdamW(w, lr=0.1, weight_decay=0.5)
    >>> opt.step(np.zeros(3)).applied, float(w[0])
    (True, 0.95)
    """

    _policy = staticmethod(partial(adam_policy, decoupled=True))

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        eps_mode: str = "torch",
        backend: str = "auto",
        threads: int | None = None,
        state_dir: Any = None,
        memory_budget: int | str | None = None,
    ):
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            eps_mode=eps_mode,
            backend=backend,
            threads=threads,
            state_dir=state_dir,
            memory_budget=memory_budget,
        )
