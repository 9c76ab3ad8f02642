"""State dicts of optimizers: what they hold, and what of them an optimizer takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..arrays.checks import DTYPES, check_companion
from ..arrays.storage import (
    MASTER,
    Storage,
    compute_dtype,
    convertible,
    pack,
    scale_name,
    state_arrays,
    template,
    unpack,
)
from ..backends import Backend
from ..backends.base import in_range
from ..common.public import public
from ..common.signals import deferred_signals
from ..common.validation import MOST_STEPS, kept_number, limit_of
from ..common.warning import warn
from ..rules.codecs import Stored
from ..rules.table import Rule, rules_of
from .groups import Groups, Parameter, ParamGroup, ParamGroups, fixed
from .hyperparameters import Checked, UpdateSpec
from .measuring import Asked
from .selecting import Members
from .states import check_members


class Savable(Protocol):
    """What is saved and restored: an `Optimizer`, of which this module sees no more than it needs."""

    _backend: Backend
    _storage: Storage
    _model: Groups
    _threads: int
    max_norm: float | None
    clip: str
    _rules: tuple[str | Rule, ...]
    _names: tuple[str, ...]

    def _spec_of(self, group: ParamGroup) -> UpdateSpec: ...

    def _checked(self, given: tuple[Any, ...], dtypes: Iterable[np.dtype[Any]] = ()) -> Checked: ...

    @property
    def param_groups(self) -> ParamGroups: ...

    @property
    def state(self) -> Mapping[str, Mapping[str, Any]]: ...

    @property
    def backend(self) -> str: ...

    @property
    def threads(self) -> int: ...

    def _start(self, defaults: dict[str, Any]) -> None: ...

    def _read(self, group: Mapping[str, Any]) -> tuple[Any, ...]: ...

    def _add_groups(
        self, params: Any, members: Sequence[Members], prefixed: bool = False, names: Sequence[str] | None = None
    ) -> None: ...

    def _locked(self, reading: bool = False) -> AbstractContextManager[None]: ...

    def _drop_plan(self) -> None: ...


@public
class IncompatibleKeys(NamedTuple):
    """What did not fit where ``strict=False`` allowed it: names, such as "w", "w.exp_avg" or "param_groups.0".

    `missing_keys` are those of the optimizer that were not loaded and stay as they were; `unexpected_keys` are those of
    what was loaded that found no place. An array of another shape or dtype is among both.
    """

    missing_keys: list[str]
    unexpected_keys: list[str]


def snapshot(optimizer: Savable, copy: Callable[[Any], Any]) -> dict[str, Any]:
    """What `Optimizer.state_dict` returns, with states passed through `copy`; an error if nobody could load it."""
    for group in optimizer.param_groups:
        _check_hyperparameters(optimizer, group, group)
    return {
        "version": 1,
        "optimizer": type(optimizer).__name__,
        **({"storage": optimizer._storage._asdict()} if _in_fewer_bits(optimizer) else {}),
        "state": {
            name: {key: value if isinstance(value, (int, float)) else copy(value) for key, value in entry.items()}
            for name, entry in optimizer.state.items()
        },
        "param_groups": [
            {"params": list(group["names"])} | {name: group[name] for name in optimizer._names}
            for group in optimizer.param_groups
        ],
    }


def _in_fewer_bits(optimizer: Savable) -> bool:
    """Whether a snapshot must say how arrays are stored, and by which seed they are rounded."""
    low = any(q.dtype not in DTYPES for q in optimizer._model.parameters)
    return low or optimizer._storage != Storage()


Loaded = tuple[int, dict[str, Any], dict[str, float]]  # step count, states and scalars of a parameter


def load_snapshot(
    optimizer: Savable, state_dict: Any, strict: bool = True, misfits: Collection[str] = ()
) -> IncompatibleKeys:
    """Put a snapshot into an optimizer that the caller has locked; TypeError or ValueError before anything changes.

    Unless `strict`, what does not fit is left out and named; so are the parameters `misfits`.
    """
    put, keys = read_snapshot(optimizer, state_dict, strict, misfits)
    put()
    return keys


def read_snapshot(
    optimizer: Savable, state_dict: Any, strict: bool = True, misfits: Collection[str] = ()
) -> tuple[Callable[[], None], IncompatibleKeys]:
    """The two halves of `load_snapshot`: this one makes the new states, what it returns puts them into their place."""
    try:
        version, kind = state_dict["version"], state_dict["optimizer"]
        entries, groups = state_dict["state"], state_dict["param_groups"]
    except (TypeError, KeyError) as error:
        theirs = isinstance(state_dict, Mapping) and {"state", "param_groups"} == set(state_dict)
        hint = " is missing; fastoptim.from_torch_state converts those of torch.optim" if theirs else ""
        raise ValueError(f"not a state dict of an optimizer: {error}{hint}") from error
    if version != 1:
        raise ValueError(f"state dict has version {version!r}; this fastoptim reads version 1")
    listed = isinstance(groups, (list, tuple)) and all(isinstance(x, Mapping) and _has_names(x) for x in groups)
    if not listed or not isinstance(entries, Mapping):
        raise ValueError(
            "not a state dict of an optimizer: state must be a mapping, param_groups a list of mappings, each with a "
            "list of names under 'params'"
        )
    own_kind = type(optimizer).__name__
    if strict and kind != own_kind:
        raise ValueError(f"state dict is of {kind}, this optimizer is {own_kind}; strict=False loads what they share")
    keys = IncompatibleKeys([], [])
    seed = _seed(state_dict.get("storage"), optimizer._storage.seed)
    converted: list[str] = []
    if strict:
        _check_groups(optimizer, entries, groups)
        hyper = [{name: group[name] for name in optimizer._names} for group in groups]
    else:
        hyper = _shared_hyperparameters(optimizer, groups if kind == own_kind else [], keys)
        known = {parameter.name for parameter in optimizer._model.parameters}
        keys.unexpected_keys.extend(name for name in entries if name not in known)
    specs = {
        id(own): _spec_with(optimizer, own, own | values)
        for own, values in zip(optimizer.param_groups, hyper, strict=True)
    }
    loaded: list[tuple[Parameter, Loaded]] = []
    for parameter in optimizer._model.parameters:
        what = f"state of parameter {parameter.name!r}"
        if strict:
            entry = _entry(what, entries[parameter.name])
            loaded.append((parameter, _loaded(optimizer, parameter, entry, converted)))
        elif parameter.name not in entries:
            keys.missing_keys.append(parameter.name)
        else:
            entry = _entry(what, entries[parameter.name])
            fitting = None if parameter.name in misfits else _fitting(optimizer, parameter, entry, keys)
            if fitting is None:
                keys.missing_keys.append(parameter.name)
                keys.unexpected_keys.append(parameter.name)
            else:
                loaded.append((parameter, _loaded(optimizer, parameter, fitting, converted)))
    for parameter, (t, _, scalars) in loaded:
        _check_further_step(parameter, specs[id(parameter.group)], t, scalars)
    if converted:
        rest = f" and {len(converted) - 3} more" if len(converted) > 3 else ""
        warn(f"states were saved in another storage, and are converted: {', '.join(converted[:3])}{rest}")

    def put() -> None:
        with deferred_signals():
            optimizer._drop_plan()
            optimizer._storage = optimizer._storage._replace(seed=seed)
            for parameter, (t, states, scalars) in loaded:
                parameter.t, parameter.states, parameter.scalars = t, states, scalars
            for own, values in zip(optimizer.param_groups, hyper, strict=True):
                own.update(values)

    return put, keys


def _has_names(group: Mapping[str, Any]) -> bool:
    names = group.get("params")
    return isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)


def _check_groups(optimizer: Savable, entries: Any, groups: Any) -> None:
    """ValueError unless groups, names and hyperparameters of a snapshot are this optimizer's; names in any order."""
    names = [sorted(group["names"]) for group in optimizer.param_groups]
    if [sorted(group["params"]) for group in groups] != names:
        raise ValueError(
            "state dict has other parameter groups or names than this optimizer; strict=False loads what they share"
        )
    if set(entries) != {name for group in names for name in group}:
        raise ValueError("state dict has states for other parameters than this optimizer")
    for own, group in zip(optimizer.param_groups, groups, strict=True):
        if set(group) != {"params", *optimizer._names}:
            raise ValueError(f"state dict: a group has {sorted(set(group) - {'params'})}, expected {optimizer._names}")
        _check_hyperparameters(optimizer, own, group)


def _check_hyperparameters(optimizer: Savable, own: ParamGroup, values: Mapping[str, Any]) -> None:
    """TypeError or ValueError unless a group of this optimizer could have these."""
    check_members(optimizer._model, own, _spec_with(optimizer, own, values), optimizer._storage)


def _spec_with(optimizer: Savable, own: ParamGroup, values: Mapping[str, Any]) -> UpdateSpec:
    return optimizer._checked(tuple(map(fixed, optimizer._read(values))), own.dtypes).spec


def _shared_hyperparameters(optimizer: Savable, groups: Any, keys: IncompatibleKeys) -> list[dict[str, Any]]:
    """For each group the hyperparameters of the only saved group that has parameters of it."""
    found: list[dict[str, Any]] = []
    homes: list[Any] = []
    for i, own in enumerate(optimizer.param_groups):
        sources = [group for group in groups if not set(own["names"]).isdisjoint(group["params"])]
        source = sources[0] if len(sources) == 1 else None
        found.append({name: source[name] for name in optimizer._names if source is not None and name in source})
        if source is None:
            keys.missing_keys.append(f"param_groups.{i}")
        else:
            homes.append(source)
            missing = [name for name in optimizer._names if name not in source]
            keys.missing_keys.extend(f"param_groups.{i}.{name}" for name in missing)
        _check_hyperparameters(optimizer, own, own | found[-1])
    for i, group in enumerate(groups):
        if not any(group is home for home in homes):
            keys.unexpected_keys.append(f"param_groups.{i}")
        else:
            unknown = [name for name in group if name not in ("params", *optimizer._names)]
            keys.unexpected_keys.extend(f"param_groups.{i}.{name}" for name in unknown)
    return found


def _entry(what: str, entry: Any) -> Mapping[str, Any]:
    if not isinstance(entry, Mapping):
        raise TypeError(f"{what}: expected a mapping, got {type(entry).__name__}")
    return entry


def _fitting(
    optimizer: Savable, parameter: Parameter, entry: Mapping[str, Any], keys: IncompatibleKeys
) -> dict[str, Any] | None:
    """The part of an entry that a parameter can go on with; None if it can do so with nothing of it."""
    rules = rules_of(optimizer)
    states = {name: rule for rule in reversed(rules) for name in rule.states}
    known = {"step", MASTER, *states, *map(scale_name, states)}.union(*(rule.scalars for rule in rules))
    fitting = {name: value for name, value in entry.items() if name in known}
    for name in states.keys() & fitting.keys():
        x = fitting[name]
        if getattr(x, "shape", None) != parameter.shape or not convertible(name, fitting, parameter.dtype):
            return None
    rule = optimizer._spec_of(parameter.group).kernel.rule
    needed, always = {*rule.states, *rule.scalars}, _always(rules)
    if fitting.get("step") and not always <= fitting.keys():
        return None
    keys.unexpected_keys.extend(f"{parameter.name}.{name}" for name in entry if name not in known)
    if fitting.get("step"):
        keys.missing_keys.extend(f"{parameter.name}.{name}" for name in sorted(needed - fitting.keys()))
    return fitting


def _always(rules: Sequence[Rule]) -> set[str]:
    """States and scalars that every one of some rules has."""
    return set.intersection(*(set(rule.states) | set(rule.scalars) for rule in rules))


def _seed(storage: Any, own: int) -> int:
    """The seed of a snapshot; the optimizer's own if it has none."""
    if storage is None:
        return own
    try:
        return Storage.checked(**storage).seed
    except TypeError as error:
        raise ValueError(f"state dict: storage: {error}") from error


def _loaded(optimizer: Savable, parameter: Parameter, entry: Mapping[str, Any], converted: list[str]) -> Loaded:
    """Step count, states and scalars of one parameter from its entry in a snapshot.

    The names of states that are stored otherwise here are added to `converted`.
    """
    what = f"state of parameter {parameter.name!r}"
    rest = dict(entry)
    t = rest.pop("step", None)
    if isinstance(t, bool) or not isinstance(t, (int, np.integer)) or not 0 <= t < MOST_STEPS:
        raise ValueError(f"{what}: step must be an int >= 0 and below 2**63 - 2**40, got {t!r}")
    rules = rules_of(optimizer)
    if t and (missing := _always(rules) - rest.keys()):
        raise ValueError(f"{what} lacks {sorted(missing)}")
    states: dict[str, Any] = {}
    scalars: dict[str, float] = {}
    rule_of = {name: rule for rule in reversed(rules) for name in rule.states}
    scales = {scale_name(name): name for name in rule_of}
    for name, value in rest.items():
        if any(name in rule.scalars for rule in rules):
            scalars[name] = kept_number(f"{what}: {name}", value)
        elif name in rule_of:
            states |= _loaded_state(optimizer, parameter, name, rule_of[name], rest, int(t), converted)
        elif name == MASTER:
            states |= _loaded_master(optimizer, parameter, rules[0], value, converted)
        elif scales.get(name) not in rest:
            raise ValueError(f"{what}: unknown name {name!r}")
    in_order = {name: states[name] for name in (*rest, *states) if name in states}  # as saved: scales come last
    return int(t), in_order, scalars


def _check_further_step(parameter: Parameter, spec: UpdateSpec, t: int, scalars: Mapping[str, float]) -> None:
    """ValueError if numbers that are kept beside the step count let no further step be taken."""
    kept = tuple(scalars.get(name, first) for name, first in spec.kernel.rule.scalars.items())
    if not t or not kept:
        return
    try:
        row = spec.scalars(t + 1, False, kept)
        if spec.measured is not None:
            row = Asked(spec.measured, math.prod(parameter.shape), t + 1, kept).finish(row, (0.0,))
        elif not all(map(math.isfinite, kept)):
            row = (1.0, math.nan)
    except ZeroDivisionError:
        row = (1.0, math.nan)
    if not in_range([row], [limit_of(compute_dtype(parameter.dtype))]):
        numbers = ", ".join(f"{name} = {number:g}" for name, number in scalars.items())
        raise ValueError(f"state of parameter {parameter.name!r}: no further step could be taken with {numbers}")


def _stored(optimizer: Savable, parameter: Parameter, rule: Rule) -> Stored | None:
    return optimizer._storage.of(rule, parameter.dtype, parameter.number, parameter.first)


def _loaded_state(
    optimizer: Savable, q: Parameter, name: str, rule: Rule, entry: Mapping[str, Any], t: int, converted: list[str]
) -> dict[str, Any]:
    """The arrays of one state as this optimizer stores them."""
    backend, stored = optimizer._backend, _stored(optimizer, q, rule)
    own = {
        key: described
        for key, described in state_arrays(rule, stored, q.shape, q.dtype).items()
        if key in (name, scale_name(name))
    }
    same = getattr(entry[name], "dtype", None) == own[name][1] or not convertible(name, entry, q.dtype)
    shape, dtype = q.shape, own[name][1] if same else entry[name].dtype
    check_companion(q.name, name, entry[name], shape, dtype)
    p = q.group["params"][q.index]
    made = {key: backend.zeros_like(p if stored is None else template(*described)) for key, described in own.items()}
    if same:
        for key, state in made.items():
            if key not in entry:
                raise ValueError(f"state of parameter {q.name!r} lacks {key!r}")
            backend.assign(state, check_companion(q.name, key, entry[key], *own[key]))
        return made
    converted.append(f"{q.name}.{name}")
    x = unpack(name, entry, name in rule.squares)
    if stored is None:
        backend.assign(made[name], x)
    else:
        for key, codes in pack(x, name, stored, 2 + rule.states.index(name), t).items():
            backend.assign(made[key], codes)
    return made


def _loaded_master(optimizer: Savable, q: Parameter, rule: Rule, value: Any, converted: list[str]) -> dict[str, Any]:
    """The master copy, if this optimizer keeps one."""
    stored = _stored(optimizer, q, rule)
    if stored is None or not stored.master:
        converted.append(f"{q.name}.{MASTER}")
        return {}
    value = check_companion(q.name, MASTER, value, q.shape, np.dtype(np.float32))
    copy = optimizer._backend.zeros_like(template(q.shape, value.dtype))
    optimizer._backend.assign(copy, value)
    return {MASTER: copy}
