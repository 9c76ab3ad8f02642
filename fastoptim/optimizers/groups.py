"""Parameter groups: dicts and lists that refuse what no step would read, and count their changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, ValuesView
from itertools import chain
from typing import Any

import numpy as np

from ..arrays.checks import check_unchanged
from ..arrays.storage import compute_dtype
from ..backends.base import Backend
from ..common.trees import Structure, instead_of_function, listing
from ..common.validation import unknown_name
from .hyperparameters import Checked

NO_GROUP = "a parameter group is a mapping with the key 'params'"


def fixed(value: Any) -> Any:
    """A hyperparameter as a value that nobody can change in place: arrays and the like become numbers, lists tuples."""
    if type(value) is float:
        return value
    if isinstance(value, (list, tuple)):
        return tuple(map(fixed, value))
    if isinstance(value, (bool, int, float, str)) and not isinstance(value, np.generic):
        return value
    if isinstance(value, (np.generic, np.ndarray)):
        plain = value.tolist()
        if not isinstance(plain, np.generic):
            return fixed(plain)
        if not isinstance(plain, np.floating):  # which float may take for a number, with a warning
            return plain
    try:
        return float(value)
    except (TypeError, ValueError):
        return value  # which a step refuses by name


class ParamGroup(dict[str, Any]):
    """One entry of `Optimizer.param_groups`: a dict that refuses what no step would read."""

    changes: list[int]  # counts those of all groups of an optimizer, and those of their arrays
    dtypes: frozenset[np.dtype[Any]]  # which its parameters are computed in
    checked: Checked | None = None  # what its hyperparameters have come to

    @classmethod
    def make(
        cls, params: Iterable[Any], names: list[str], hyperparameters: dict[str, Any], dtypes: Iterable[np.dtype[Any]]
    ) -> ParamGroup:
        group = cls()
        group.dtypes = frozenset(map(compute_dtype, dtypes))
        values = {name: fixed(value) for name, value in hyperparameters.items()}
        dict.update(group, {"params": ParamList(params), "names": NameList(names)} | values)
        group.count_changes([0, 0])
        return group

    def count_changes(self, changes: list[int]) -> None:
        """From now on count changes of the group and of its arrays here."""
        self.changes = self["params"].changes = changes

    def __setitem__(self, key: str, value: Any) -> None:
        self.put(key, self._kept(key, value))

    def put(self, key: str, value: Any) -> None:
        """Set what it keeps of a value."""
        _count(self.changes, key == "params")
        super().__setitem__(key, value)
        _count(self.changes, key == "params")

    def update(self, *args: Any, **kwargs: Any) -> None:
        new = {key: self._kept(key, value) for key, value in dict(*args, **kwargs).items()}
        _count(self.changes, "params" in new)
        super().update(new)
        _count(self.changes, "params" in new)

    def _kept(self, key: str, value: Any) -> Any:
        """What the group keeps of a value; KeyError or ValueError if it can keep nothing of it."""
        if key not in self or key == "names":
            raise KeyError(f"parameter groups let {sorted(self.keys() - {'names'})} be set, not {key!r}")
        if key != "params":
            return fixed(value)
        arrays = ParamList(value)
        if len(arrays) != len(self["names"]):
            raise ValueError(f"params: expected {len(self['names'])} arrays, got {len(arrays)}")
        arrays.changes = self.changes
        return arrays

    def __ior__(self, other: Any) -> ParamGroup:  # type: ignore[override,misc]
        self.update(other)
        return self

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("entries of a parameter group can be set, not added or removed")

    __delitem__ = pop = popitem = clear = setdefault = _refuse

    def __reduce__(self) -> Any:  # copies are plain dicts: only an optimizer's own groups are watched
        return dict, (dict(self),)


def _count(changes: list[int], of_arrays: bool) -> None:
    """Count a change: before it, as a signal's handler may raise right behind it; and after it, for other threads."""
    changes[1] += of_arrays
    changes[0] += 1


class _FixedList(list[Any]):
    _why: str

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(self._why)

    append = extend = insert = pop = remove = clear = sort = reverse = _refuse
    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refuse

    def __reduce__(self) -> Any:
        return list, (list(self),)


class ParamGroups(_FixedList):
    """`Optimizer.param_groups`: a list that grows by `Optimizer.add_param_group` alone."""

    _why = "param_groups grows by add_param_group alone; change the entries of its groups instead"

    def __setitem__(self, index: Any, value: Any) -> None:
        if isinstance(index, slice) or value is not self[index]:  # which `param_groups[0] |= {...}` puts back
            self._refuse()


class NameList(_FixedList):
    """The "names" of a group, by which states are saved and found again."""

    _why = "names of a group are fixed: they come from the structure of the parameters"


class ParamList(_FixedList):
    """The "params" of a group: each array may be replaced by another; their number and order stay."""

    _why = "arrays of a group can be replaced, not added, removed or moved; add_param_group adds some"

    def __init__(self, arrays: Iterable[Any]):
        super().__init__(arrays)
        self.changes = [0, 0]  # those of the group, when it has one

    def __setitem__(self, index: Any, value: Any) -> None:
        if isinstance(index, slice):
            value = list(value)
            if len(value) != len(self[index]):
                self._refuse()
        _count(self.changes, True)
        list.__setitem__(self, index, value)
        _count(self.changes, True)


Places = Sequence[Sequence[int]]


class Part:
    """A structure of which only some leaves are stepped."""

    is_leaf = is_list = False

    def __init__(self, structure: Structure, positions: Sequence[int]):
        self._structure, self._positions = structure, positions

    def leaves(self, tree: Any, what: str = "gradients") -> tuple[Any, ...]:
        """Those that are stepped, of a tree of the whole structure."""
        return tuple(map(self._structure.leaves(tree, what).__getitem__, self._positions))

    def rebuild(self, leaves: Sequence[Any], rest: Any = None) -> Any:
        """Build a tree of the whole structure; what is not stepped comes from the tree `rest`, or is None."""
        every = [None] * len(self._structure.names) if rest is None else list(self._structure.leaves(rest))
        for position, leaf in zip(self._positions, leaves, strict=True):
            every[position] = leaf
        return self._structure.rebuild(every)


class Parameter:
    """One parameter: where it is found at each step, and what an optimizer keeps for it between plans."""

    __slots__ = ("dtype", "first", "group", "index", "name", "number", "scalars", "shape", "states", "t")

    def __init__(self, name: str, group: ParamGroup, index: int, shape: tuple[int, ...], dtype: np.dtype[Any]):
        self.name, self.group, self.index = name, group, index
        self.shape, self.dtype = shape, dtype
        # What dithers are found by: its number among the parameters, and the number of its first element, of a slice.
        self.number = self.first = 0
        self.states: dict[str, Any] = {}
        self.scalars: dict[str, float] = {}  # what the rule keeps beside the step count
        self.t = 0

    def forget(self) -> None:
        """Be as if it had never been stepped."""
        self.t, self.states, self.scalars = 0, {}, {}

    def array(self, backend: Backend) -> Any:
        """The array as the group has it now; TypeError or ValueError if it is not what it was."""
        p = self.group["params"][self.index]
        backend.check_parameter(self.name, p)
        check_unchanged(self.name, backend.describe(p), (self.shape, self.dtype))
        return p


class Groups:
    """All parameter groups of an optimizer: their parameters, and how gradients map to them."""

    def __init__(self, defaults: dict[str, Any], kind: str) -> None:
        self.defaults, self._kind = {name: fixed(value) for name, value in defaults.items()}, kind
        self.groups = ParamGroups()
        self.parameters: list[Parameter] = []
        self.structures: list[Structure | Part] = []
        self.places: list[Places] = []  # of each structure: the leaves that its groups have
        self.grouped = False
        self.elsewhere = False  # whether `apply` has stepped arrays that are not the parameters
        self.changes = [0, 0]  # counts those of all groups, and those of their arrays

    def checked(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """The group with what it does not say; ValueError for what it may not say."""
        unknown = [key for key in group if key not in self.defaults and key != "params"]
        if unknown:
            raise ValueError(f"a group of {unknown_name(self._kind, unknown[0], self.defaults)}")
        return self.defaults | {key: value for key, value in group.items() if key != "params"}

    def new_names(self, structure: Structure, prefixed: bool) -> list[str]:
        """Names for the parameters of another group."""
        names, number = list(structure.names), len(self.groups)
        if prefixed:
            known = {parameter.name for parameter in self.parameters}
            while not known.isdisjoint(names := [f"{number}.{name}" for name in structure.names]):
                number += 1  # an ungrouped model may have names of this form
        return names

    def append(self, structure: Structure, groups: Sequence[ParamGroup], places: Places, described: list[Any]) -> None:
        """Take in groups that were checked: arrays of one structure, its leaves being `described` as (shape, dtype)."""
        found = {}
        for group, positions in zip(groups, places, strict=True):
            group.count_changes(self.changes)
            for i, (name, position) in enumerate(zip(group["names"], positions, strict=True)):
                found[position] = Parameter(name, group, i, *described[position])
        stepped = sorted(found)  # parameters are in the order of the structure
        for group in groups:
            list.append(self.groups, group)
        self.structures.append(structure if len(stepped) == len(structure.names) else Part(structure, stepped))
        self.places.append(places)
        for position in stepped:
            found[position].number = len(self.parameters)
            self.parameters.append(found[position])
        self.changes[0] += 1

    def remove_last(self, grouped: bool) -> None:
        """Undo the last `append`."""
        count = len(list.pop(self.groups)["names"])
        self.structures.pop()
        self.places.pop()
        del self.parameters[len(self.parameters) - count :]
        self.grouped = grouped
        self.changes[0] += 1

    def arrays(self) -> tuple[Any, ...]:
        """The parameters' arrays as the groups have them now."""
        return tuple(q.group["params"][q.index] for q in self.parameters)

    def rebuilt(self, leaves: Iterable[Any], rest: Any = None) -> list[Any]:
        """The structures with other leaves; what is not stepped is that of `rest` (like gradients), or None."""
        each, found = iter(leaves), []
        for i, (structure, places) in enumerate(zip(self.structures, self.places, strict=True)):
            own = [next(each) for _ in chain(*places)]
            if rest is None or not isinstance(structure, Part):
                found.append(structure.rebuild(own))
            else:
                found.append(structure.rebuild(own, _entry(rest[i]) if self.grouped else rest))
        return found

    @property
    def leaves(self) -> Callable[[Any], tuple[Any, ...]]:
        """What puts gradients in the order of the parameters, until the groups change; an error for others."""
        return self._leaves_of_groups if self.grouped else self.structures[0].leaves

    @property
    def is_list(self) -> bool:
        """Whether the gradients are a sequence in the order of the parameters."""
        return not self.grouped and self.structures[0].is_list

    def _leaves_of_groups(self, grads: Any) -> tuple[Any, ...]:
        structures = self.structures
        if not isinstance(grads, Sequence) or len(grads) != len(structures):
            entries = ", ".join(f"gradients of group {i}" for i in range(min(2, len(structures))))
            raise ValueError(
                f"grads: expected a sequence with one entry for each group, {len(structures)} in all, such as "
                f"[{entries}]{instead_of_function(grads)}"
            )
        return tuple(
            leaf for structure, entry in zip(structures, grads, strict=True) for leaf in structure.leaves(_entry(entry))
        )


def _entry(entry: Any) -> Any:
    """What is given for one of several groups, which may be a group dict."""
    return entry["params"] if isinstance(entry, Mapping) and "params" in entry else entry


def ascends(optimizer: Any) -> bool:
    """Whether an optimizer maximizes anything: its losses may then be scores, which should rise."""
    return any(group.get("maximize", False) for group in optimizer.param_groups)


def momentum_of(group: Mapping[str, Any]) -> float:
    """How much of a step goes on in the next, as far as a group says: 0 for rules that know no such thing."""
    betas = group.get("betas", group.get("beta1", 0.0))
    momentum = group.get("momentum", betas[0] if isinstance(betas, tuple) and betas else betas)
    return float(momentum) if isinstance(momentum, (int, float)) and 0.0 <= momentum < 1.0 else 0.0


def one_or_each(groups: int) -> str:
    """How many values a hyperparameter may be given, for an error message."""
    return "one value, as there is one group" if groups == 1 else f"one or {groups} (one per group)"


def listed(params: Any) -> Any:
    """`params`, or its items if it can be walked only once or is the values of a dict."""
    return list(params) if isinstance(params, (Iterator, ValuesView)) else params


def is_grouped(params: Any) -> bool:
    """Whether `params` is a list of group dicts; TypeError if it is one but for the key "params", or the list."""
    numbers = isinstance(params, Mapping) and any(isinstance(x, (bool, int, float, str)) for x in params.values())
    if numbers and "params" in params:
        raise TypeError(f"a parameter group goes into a list, [group]; got one with {listing(list(params))}")
    if not isinstance(params, (list, tuple)) or not params or not all(isinstance(item, Mapping) for item in params):
        return False
    for item in (item for item in params if "params" not in item):
        if any(isinstance(value, (bool, int, float, str)) for value in item.values()):
            raise TypeError(f"{NO_GROUP}: one of these has {listing(list(item))}")
    return all("params" in item for item in params)
