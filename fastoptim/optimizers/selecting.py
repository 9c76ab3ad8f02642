"""`groups`: parameter groups by name, pattern or predicate, which keep the structure of the parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NamedTuple

from ..common.public import public
from ..common.trees import Structure, find
from ..common.validation import names_arguments

Selector = str | tuple[str, ...] | Callable[[str, Any], bool]


class Members(NamedTuple):
    """One parameter group of a structure: what it sets, and which leaves it has."""

    hyperparameters: dict[str, Any]
    positions: tuple[int, ...]


@public
@dataclass(frozen=True)
class GroupedParams:
    """What `groups` returns: all parameters as they were given, and the groups of those that are stepped."""

    params: Any
    groups: tuple[Members, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", tuple(Members(*members) for members in self.groups))

    def __reduce__(self) -> Any:  # pickles name public things alone
        return GroupedParams, (self.params, tuple(map(tuple, self.groups)))


@public
@names_arguments
def groups(params: Any, rules: Mapping[Selector, Mapping[str, Any] | None]) -> GroupedParams:
    """Divide parameters into groups by their names, for an optimizer's first argument.

    Parameters, names, gradients, and what ``loss_and_grad`` returns keep the structure of `params`; only the
    hyperparameters differ from group to group.

    Parameters
    ----------
    params : array, sequence, mapping or nesting of these
        As an optimizer takes them.
    rules : mapping
        What a selector's parameters get: hyperparameters as in ``{"weight_decay": 0.0}``, or None to freeze them: they
        are not stepped, and their gradients are not looked at. A selector is a parameter's name ("encoder.0.w"), the
        beginning of some up to a dot ("encoder"), a pattern with ``*``, ``?`` or ``[...]`` such as ``"*.b"``, several
        of these in a tuple, or a function ``(name, array) -> bool``. Where several rules select a parameter, it gets
        what all of them set; the last one that says something has it. Hyperparameters after None bring it back.

    Returns
    -------
    GroupedParams
        Groups in the order of the rules, first what no rule selects. ``opt.param_groups`` shows them.

    Raises
    ------
    ValueError
        A selector selects nothing; it names parameters of similar names. Or nothing is left to be stepped.

    Examples
    --------
    >>> import numpy as np, fastoptim as fo
    >>> model = {"body": {"w": np.ones((2, 2)), "b": np.ones(2)}, "head": {"w": np.ones((1, 2)), "b": np.ones(1)}}
    >>> opt = fo.AdamW(fo.groups(model, {"*.b": {"weight_decay": 0.0}, "body.w": None}), lr=0.1, weight_decay=0.5)
    >>> [(group["names"], group["weight_decay"]) for group in opt.param_groups]
    [(['head.w'], 0.5), (['body.b', 'head.b'], 0.0)]
    >>> opt.step({"body": {"w": None, "b": np.zeros(2)}, "head": {"w": np.zeros((1, 2)), "b": np.zeros(1)}}).applied
    True
    >>> model["head"]["w"], model["head"]["b"]
    (array([[0.95, 0.95]]), array([1.]))
    """
    if not isinstance(rules, Mapping):
        raise TypeError(f'rules: expected a mapping such as {{"*.b": {{"weight_decay": 0.0}}}}, got {rules!r}')
    if isinstance(params, GroupedParams):
        raise TypeError("params: they are divided into groups already; give all rules at once")
    structure = Structure(params)
    leaves = structure.leaves(params)
    given: list[list[int]] = [[] for _ in leaves]  # the rules that made a parameter what it is
    frozen = [False] * len(leaves)
    for number, (selector, values) in enumerate(rules.items()):
        if values is not None and (not isinstance(values, Mapping) or "params" in values):
            raise TypeError(f"rules: {selector!r} must have a mapping of hyperparameters or None, got {values!r}")
        for i in select(selector, structure.names, leaves):
            frozen[i] = values is None
            if values:
                given[i].append(number)
    every = list(rules.values())
    members: dict[tuple[int, ...], list[int]] = {}
    for i, numbers in enumerate(given):
        if not frozen[i]:
            members.setdefault(tuple(numbers), []).append(i)
    if not members:
        raise ValueError("rules: every parameter is frozen")
    made = []
    for key in sorted(members):
        merged: dict[str, Any] = {}
        for number in key:
            merged |= every[number] or {}
        made.append(Members(merged, tuple(members[key])))
    return GroupedParams(params, tuple(made))


def select(selector: Any, names: Sequence[str], arrays: Iterable[Any]) -> list[int]:
    """Positions of the parameters that a selector selects; ValueError, naming similar names, if there are none."""
    if callable(selector):
        found = [i for i, (name, x) in enumerate(zip(names, arrays, strict=True)) if selector(name, x)]
        if not found:
            raise ValueError(f"{getattr(selector, '__name__', selector)} selects no parameter; {_some(names)}")
        return found
    if isinstance(selector, tuple):
        if not selector:
            raise ValueError(f"an empty selector selects no parameter; {_some(names)}")
        return sorted({i for part in selector for i in select(part, names, arrays)})
    if not isinstance(selector, str):
        raise TypeError(f"a selector is a name, a pattern or a function (name, array) -> bool, got {selector!r}")
    found = find(names, selector)
    if not found:
        near = get_close_matches(selector.replace("*", "").strip("."), names, n=3, cutoff=0.4)
        raise ValueError(f"no parameter has the name {selector!r}; " + (f"near are {near}" if near else _some(names)))
    return found


def _some(names: Sequence[str]) -> str:
    return f"there are {list(names[:10])}" + (f" and {len(names) - 10} more" if len(names) > 10 else "")
