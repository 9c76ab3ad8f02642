"""Nested parameters: an array, a sequence, a mapping from names, or any nesting of these, as one flat list."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Tree = Any


def _is_sequence(tree: Tree) -> bool:
    return isinstance(tree, Sequence) and not isinstance(tree, (str, bytes))


class Structure:
    """The shape of a tree, and a way to flatten other trees of the same shape.

    Attributes
    ----------
    names : tuple of str
        One dotted path per leaf, ``"0"`` for a tree that is a single array.
    """

    __slots__ = ("_children", "_flat", "_keys", "names")
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
        names = [key if child._keys is None else f"{key}.{name}" for key, child in children for name in child.names]
        self.names = tuple(names) if self._keys is not None else ("0",)
        if len(set(self.names)) != len(self.names):
            twice = next(name for name in self.names if self.names.count(name) > 1)
            raise ValueError(f"two parameters have the name {twice!r}")

    def leaves(self, tree: Tree) -> tuple[Any, ...]:
        """The leaves of `tree` in this structure's order; TypeError or ValueError if its shape differs."""
        keys = self._keys
        if keys is None:
            return (tree,)
        if self._flat:  # the usual cases, without a walk
            if isinstance(keys, int):
                if (type(tree) is list or type(tree) is tuple) and len(tree) == keys:
                    return tuple(tree)
            elif type(tree) is dict and len(tree) == len(keys):
                try:
                    return tuple(map(tree.__getitem__, keys))
                except KeyError:
                    pass
        return tuple(self._walk(tree, ""))

    def rebuild(self, leaves: Sequence[Any]) -> Tree:
        """A tree of this structure (dicts and lists) that holds `leaves`."""
        return self._build(iter(leaves))

    def _build(self, leaves: Iterator[Any]) -> Tree:
        if self._keys is None:
            return next(leaves)
        if isinstance(self._keys, int):
            return [child._build(leaves) for child in self._children]
        return {key: child._build(leaves) for key, child in zip(self._keys, self._children, strict=True)}

    def _walk(self, tree: Tree, path: str) -> Iterator[Any]:
        keys = self._keys
        if keys is None:
            yield tree
            return
        where = f"at {path.removesuffix('.')!r}" if path else "at the top"
        if isinstance(keys, int):
            if not _is_sequence(tree):
                raise TypeError(f"{where}: expected a sequence of {keys}, got {type(tree).__name__}")
            if len(tree) != keys:
                raise ValueError(f"{where}: expected {keys} entries, got {len(tree)}")
            for i, child in enumerate(self._children):
                yield from child._walk(tree[i], f"{path}{i}.")
            return
        if not isinstance(tree, Mapping):
            raise TypeError(f"{where}: expected a mapping with the names {list(keys)}, got {type(tree).__name__}")
        missing = [key for key in keys if key not in tree]
        unknown = [key for key in tree if key not in keys]
        if missing or unknown:
            raise ValueError(f"{where}: names missing: {missing}, names unknown: {unknown}")
        for key, child in zip(keys, self._children, strict=True):
            yield from child._walk(tree[key], f"{path}{key}.")


def leaves_of(tree: Tree) -> tuple[Any, ...]:
    """All leaves of any tree."""
    return Structure(tree).leaves(tree)
