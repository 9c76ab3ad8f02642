"""Nested parameters: every kind of container, in any order of names; errors name the path."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict, UserDict, UserList, namedtuple
from types import MappingProxyType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastoptim.common.trees import Structure, find, leaves_of

Pair = namedtuple("Pair", "a b")

trees = st.recursive(
    st.integers(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=4),
    max_leaves=20,
)


def flatten(tree):
    """The leaves, by the plainest recursion."""
    if isinstance(tree, dict):
        return [x for key in tree for x in flatten(tree[key])]
    return [x for item in tree for x in flatten(item)] if isinstance(tree, list) else [tree]


def changed(tree, rng):
    """The same tree of other containers, names in another order."""
    if isinstance(tree, dict):
        items = [(key, changed(tree[key], rng)) for key in tree]
        rng.shuffle(items)
        return rng.choice([dict, OrderedDict, UserDict, lambda pairs: MappingProxyType(dict(pairs))])(items)
    if isinstance(tree, list):
        return rng.choice([list, tuple, UserList])([changed(item, rng) for item in tree])
    return tree


@settings(deadline=None, max_examples=300)
@given(tree=trees, rng=st.randoms(use_true_random=False))
def test_every_container_and_every_order_gives_the_same_leaves(tree, rng):
    structure = Structure(tree)
    expected = tuple(flatten(tree))
    assert structure.leaves(tree) == leaves_of(tree) == expected
    assert structure.leaves(changed(tree, rng)) == expected
    assert len(structure.names) == len(expected)
    assert structure.rebuild(expected) == tree


@settings(deadline=None, max_examples=300)
@given(tree=trees, other=trees)
def test_another_shape_is_an_error(tree, other):
    def shape(tree):
        if isinstance(tree, dict):
            return {key: shape(tree[key]) for key in tree}
        return [shape(item) for item in tree] if isinstance(tree, list) else None

    def fits(shape, tree):
        if isinstance(shape, dict):
            return isinstance(tree, dict) and set(tree) == set(shape) and all(fits(shape[k], tree[k]) for k in tree)
        if isinstance(shape, list):
            return isinstance(tree, list) and len(tree) == len(shape) and all(map(fits, shape, tree))
        return True  # a leaf may be anything

    structure = Structure(tree)
    if fits(shape(tree), other):
        assert len(structure.leaves(other)) == len(structure.names)
    else:
        with pytest.raises((TypeError, ValueError), match=r"^gradients"):
            structure.leaves(other)


MODEL = {"encoder": [{"w": 1, "b": 2}, {"w": 3, "b": 4}], "head": (5, 6)}


@pytest.mark.parametrize(
    ("tree", "kind", "message"),
    [
        ([1, 2], TypeError, "^gradients: expected a mapping with the names ['encoder', 'head'], got list$"),
        (
            {"encoder": MODEL["encoder"]},
            ValueError,
            "^gradients: names missing: ['head'] (None skips a parameter)$",
        ),
        (MODEL | {"tail": 1}, ValueError, "^gradients: names unknown: ['tail']$"),
        (MODEL | {"head": 5}, TypeError, "^gradients at 'head': expected a sequence of 2, got int$"),
        (MODEL | {"head": (5, 6, 7)}, ValueError, "^gradients at 'head': expected 2 entries, got 3$"),
        (MODEL | {"head": "56"}, TypeError, "^gradients at 'head': expected a sequence of 2, got str$"),
        (
            {"encoder": [{"w": 1, "b": 2}, {"w": 3, "bias": 4}], "head": (5, 6)},
            ValueError,
            "^gradients at 'encoder.1': names missing: ['b'], names unknown: ['bias'] (None skips a parameter)$",
        ),
        (
            {"encoder": [{"w": 1, "b": 2}, None], "head": (5, 6)},
            TypeError,
            "^gradients at 'encoder.1': expected a mapping with the names ['w', 'b'], got NoneType$",
        ),
    ],
)
def test_errors_name_the_path(tree, kind, message):
    with pytest.raises(kind) as caught:
        Structure(MODEL).leaves(tree)
    assert str(caught.value) == message[1:-1]
    with pytest.raises(kind) as caught:
        Structure(MODEL).leaves(tree, "the state")
    assert str(caught.value) == message[1:-1].replace("gradients", "the state").replace(" (None skips a parameter)", "")


def test_errors_stay_short():
    many = {f"w{i}": i for i in range(10_000)}
    for tree in ([], {}, {"x": 1}):
        with pytest.raises((TypeError, ValueError), match=r"w9', \.\.\.\] \(10000 in all\)") as caught:
            Structure(many).leaves(tree)
        assert len(str(caught.value)) < 300


def test_names():
    assert Structure(7).names == ("0",) and Structure(7).leaves("x") == ("x",)
    assert Structure(MODEL).names == ("encoder.0.w", "encoder.0.b", "encoder.1.w", "encoder.1.b", "head.0", "head.1")
    assert Structure(Pair([1], 2)).names == ("0.0", "1") and Structure([]).leaves([]) == ()
    assert Structure({}).leaves({}) == () and Structure({"a": {}}).leaves({"a": {}}) == ()
    for tree in ({"1": 1, 1: 2}, {"a.b": 1, "a": {"b": 2}}):
        with pytest.raises(ValueError, match="two parameters have the name"):
            Structure(tree)


def test_what_a_name_stands_for():
    structure = Structure(MODEL)
    for pattern, positions in {
        "encoder": [0, 1, 2, 3],
        "encoder.1": [2, 3],
        "head.0": [4],
        "*.b": [1, 3],
        "encoder.*.w": [0, 2],
        "*": [0, 1, 2, 3, 4, 5],
        "enc": [],
        "Head": [],
        "": [],
    }.items():
        assert find(structure.names, pattern) == positions, pattern


@pytest.mark.parametrize("tree", [MODEL, {"w": 1}, {"w": 1, "b": 2}, [1, 2], 5], ids=str)
def test_structures_can_be_copied(tree):
    """As optimizers are."""
    for again in (copy.deepcopy(Structure(tree)), pickle.loads(pickle.dumps(Structure(tree)))):
        assert again.leaves(tree) == Structure(tree).leaves(tree) and again.names == Structure(tree).names
