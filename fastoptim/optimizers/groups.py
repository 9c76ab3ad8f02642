"""Parameter groups: dicts and lists that refuse what no step would read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, ValuesView
from typing import Any

import numpy as np

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


def _listed(params: Any) -> Any:
    """`params`, or its items if it can be walked only once or is the values of a dict."""
    return list(params) if isinstance(params, (Iterator, ValuesView)) else params
