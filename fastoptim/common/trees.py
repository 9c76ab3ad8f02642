"""Flattens nested parameters: an array, a sequence, a mapping from names, or any nesting of these."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping, MutableSequence, Sequence
from fnmatch import fnmatchcase
from functools import partial
from operator import itemgetter
from typing import Any

Tree = Any


def _is_sequence(tree: Tree) -> bool:
    return isinstance(tree, Sequence) and not isinstance(tree, (str, bytes))


def instead_of_function(tree: Tree) -> str:
    """What to write instead of a function where gradients belong, as torch's closures do; empty for what is none."""
    called = callable(tree) and not hasattr(tree, "dtype") and not isinstance(tree, type)
    return ": gradients come first, not a function that finds them: grads = f(), then opt.step(grads)" if called else ""


class Structure:
    """The shape of a tree, and a way to flatten other trees of the same shape.

    Whatever is neither a sequence nor a mapping is a leaf. `names` holds a dotted path for each, ``"0"`` for a tree
    that is a single array; ValueError if two are the same.
    """

    __slots__ = ("_children", "_flat", "_keys", "_pick", "names")
    names: tuple[str, ...]

    def __init__(self, tree: Tree):
        if isinstance(tree, Mapping):
            self._keys: tuple[Any, ...] | int | None = tuple(tree)
            children = [(str(key), Structure(tree[key])) for key in self._keys]
        elif _is_sequence(tree):
            self._keys = len(tree)
            children = [(str(i), Structure(item)) for i, item in enumerate(tree)]
        else:
            self._keys = None
            children = []
        self._children = tuple(child for _, child in children)
        self._flat = all(child._keys is None for child in self._children)
        self._pick = picker(self._keys) if isinstance(self._keys, tuple) else None
        names = [key if child._keys is None else f"{key}.{name}" for key, child in children for name in child.names]
        self.names = tuple(names) if self._keys is not None else ("0",)
        if len(set(self.names)) != len(self.names):
            twice = next(name for name in self.names if self.names.count(name) > 1)
            raise ValueError(f"two parameters have the name {twice!r}")

    @property
    def is_leaf(self) -> bool:
        """Whether the tree is a single array."""
        return self._keys is None

    @property
    def is_list(self) -> bool:
        """Whether the tree is a sequence of arrays, whose leaves are its items."""
        return self._flat and isinstance(self._keys, int)

    def leaves(self, tree: Tree, what: str = "gradients") -> tuple[Any, ...]:
        """Flatten a tree of this structure, in the order of `names`.

        Sequences and mappings may be of other kinds than those of the structure's own tree, and mappings have their
        names in any order. TypeError or ValueError that names the path in `what` if the structure differs.
        """
        keys = self._keys
        if keys is None:
            return (tree,)
        if self._flat:  # the usual cases, without a walk
            if isinstance(keys, int):
                if (type(tree) is list or type(tree) is tuple) and len(tree) == keys:
                    return tuple(tree)
            elif type(tree) is dict and len(tree) == len(keys):
                try:
                    return self._pick(tree)  # type: ignore[misc]
                except KeyError:
                    pass
        else:
            found: list[Any] = []
            if self._collect(tree, found):
                return tuple(found)
        return tuple(self._walk(tree, what, ""))

    def rebuild(self, leaves: Sequence[Any]) -> Tree:
        """Build a tree of this structure (dicts and lists) that holds `leaves`."""
        return self._build(iter(leaves))

    def __reduce__(self) -> Any:
        return Structure, (self.rebuild([None] * len(self.names)),)

    def _build(self, leaves: Iterator[Any]) -> Tree:
        if self._keys is None:
            return next(leaves)
        if isinstance(self._keys, int):
            return [child._build(leaves) for child in self._children]
        return {key: child._build(leaves) for key, child in zip(self._keys, self._children, strict=True)}

    def _collect(self, tree: Tree, found: list[Any]) -> bool:
        """Append the leaves of dicts, lists and tuples; False if `tree` is of anything else, or of another shape."""
        keys = self._keys
        items: Any = tree
        if isinstance(keys, int):
            if (type(tree) is not list and type(tree) is not tuple) or len(tree) != keys:
                return False
        elif type(tree) is not dict or len(tree) != len(keys):  # type: ignore[arg-type]
            return False
        else:
            try:
                items = self._pick(tree)  # type: ignore[misc]
            except KeyError:
                return False
        if self._flat:
            found += items
            return True
        for child, item in zip(self._children, items, strict=True):
            if child._keys is None:
                found.append(item)
            elif not child._collect(item, found):
                return False
        return True

    def _walk(self, tree: Tree, what: str, path: str) -> Iterator[Any]:
        """Yield the leaves of any sequences and mappings; or say where and how `tree` differs."""
        keys = self._keys
        if keys is None:
            yield tree
            return
        where = f"{what} at {path.removesuffix('.')!r}" if path else what
        if isinstance(keys, int):
            if not _is_sequence(tree):
                got = f"{type(tree).__name__}{instead_of_function(tree)}"
                raise TypeError(f"{where}: expected a sequence of {keys}, got {got}")
            if len(tree) != keys:
                raise ValueError(f"{where}: expected {keys} entries, got {len(tree)}")
            for i, child in enumerate(self._children):
                yield from child._walk(tree[i], what, f"{path}{i}.")
            return
        if not isinstance(tree, Mapping):
            got = f"{type(tree).__name__}{instead_of_function(tree)}"
            raise TypeError(f"{where}: expected a mapping with the names {listing(keys)}, got {got}")
        known = set(keys)
        missing, unknown = [key for key in keys if key not in tree], [key for key in tree if key not in known]
        if missing or unknown:
            told = [f"names {kind}: {listing(n)}" for kind, n in (("missing", missing), ("unknown", unknown)) if n]
            hint = " (None skips a parameter)" if missing and what == "gradients" else ""
            raise ValueError(f"{where}: {', '.join(told)}{hint}")
        for key, child in zip(keys, self._children, strict=True):
            yield from child._walk(tree[key], what, f"{path}{key}.")


class Entries:
    """The entries of the lists and dictionaries of a nesting, to be put back where a model has replaced them."""

    def __init__(self, tree: Tree):
        self._held = [
            (container, dict(container) if isinstance(container, MutableMapping) else list(container))
            for container in _containers(tree)
        ]

    def put_back(self) -> None:
        """Let every list and dictionary have the very entries that it had."""
        for container, entries in self._held:
            if isinstance(entries, list):
                if list(map(id, container)) != list(map(id, entries)):
                    container[:] = entries
                continue
            for key in [key for key in container if key not in entries]:
                del container[key]
            for key, item in entries.items():
                if container.get(key) is not item:
                    container[key] = item


def _containers(tree: Tree) -> list[Any]:
    items = tree.values() if isinstance(tree, Mapping) else tree if _is_sequence(tree) else ()
    own = [tree] if isinstance(tree, (MutableMapping, MutableSequence)) else []
    return own + [container for item in items for container in _containers(item)]


def picker(keys: tuple[Any, ...]) -> Callable[[Tree], tuple[Any, ...]]:
    """Make a function that takes the values of `keys`, in their order, out of a mapping."""
    if len(keys) > 1:
        return itemgetter(*keys)
    return partial(_values, keys)


def _values(keys: tuple[Any, ...], tree: Tree) -> tuple[Any, ...]:
    return tuple(map(tree.__getitem__, keys))


def listing(names: Sequence[Any]) -> str:
    """Names for an error message, not too many."""
    shown = ", ".join(repr(name) for name in names[:10])
    return f"[{shown}]" if len(names) <= 10 else f"[{shown}, ...] ({len(names)} in all)"


def find(names: Sequence[str], pattern: str) -> list[int]:
    """Positions of the leaves that a name stands for: a leaf's, that of a branch, or a pattern with ``*``.

    >>> find(["encoder.w", "encoder.b", "head"], "encoder")
    [0, 1]
    >>> find(["encoder.w", "encoder.b", "head"], "*.b")
    [1]
    """
    branch = f"{pattern}."
    return [
        i for i, name in enumerate(names) if name == pattern or name.startswith(branch) or fnmatchcase(name, pattern)
    ]


def leaves_of(tree: Tree) -> tuple[Any, ...]:
    """Flatten any tree."""
    return Structure(tree).leaves(tree)
