"""Models of Python numbers in the adapters of dicts and objects: gathered states, and steps that happen whole."""

from __future__ import annotations

import copy
import signal
from collections import UserDict
from types import SimpleNamespace

import numpy as np
import pytest

from fastoptim.adapters import _collection, dicts, objects
from tests.support.interrupts import interrupted_at

RNG = np.random.default_rng(5)


def public(opt):
    """Count and states of an optimizer, zeros left out: they are what a key without a state has."""
    states = {name: getattr(opt, name) for name in ("m", "v", "h") if hasattr(opt, name)}
    found = {(name, k): x.tolist() for name, of in states.items() for k, x in of.items() if np.any(x)}
    return found, opt._collection.count[0]


@pytest.mark.parametrize("kind", dicts.__all__)
def test_any_choice_of_many_keys_has_the_bits_of_arrays_of_one(kind):
    """Sparse keys that come in any order, again and again, as the joint array grows several times."""
    numbers, arrays, ours, theirs = {}, {}, *(getattr(dicts, kind)(partial=True) for _ in range(2))
    for _ in range(60):
        keys = RNG.permutation(200)[: RNG.integers(1, 9)].tolist()
        grads = dict(zip(keys, RNG.normal(size=len(keys)).tolist(), strict=True))
        for k in keys:
            numbers.setdefault(k, 0.5)
            arrays.setdefault(k, np.array([0.5]))
        ours.update(numbers, grads)
        theirs.update(arrays, {k: np.array([g]) for k, g in grads.items()})
    assert len(numbers) > 100
    assert {k: x.item() for k, x in arrays.items()} == numbers
    (found, count), (expected, steps) = public(ours), public(theirs)
    assert count == steps == 60
    assert found == {k: x[0] for k, x in expected.items()}


def test_what_is_put_into_the_states_counts():
    params, again = {"a": 1.0, "b": 2.0}, {"a": 1.0, "b": 2.0}
    grads, opt, other = {"a": 0.5, "b": -1.0}, dicts.Adam(), dicts.Adam()
    held = opt.m
    for _ in range(3):
        opt.update(params, grads)
        other.update(again, grads)
    assert held is opt.m and held["a"] == 0.5 * (1 - 0.9**3)
    held["a"], other.m["a"] = 0.25, np.array(0.25)  # a number, an array
    opt.v["b"][...] = other.v["b"][...] = 0.125  # in place
    del opt.v["a"], other.v["a"]
    opt.iter = other.iter = 7
    expected = 0.9 * 0.25 + (1 - 0.9) * 0.5
    opt.update(params, grads)
    assert (opt.m["a"], opt.v["b"]) == (pytest.approx(expected), pytest.approx(0.999 * 0.125 + 0.001))
    assert opt.v["a"] == pytest.approx(0.001 * 0.25) and opt.iter == 8
    other = copy.deepcopy(other)
    other.update(again, grads)
    assert params == again and public(opt) == public(other)
    opt.m["a"] = np.ones(3)
    with pytest.raises(ValueError, match=r"a state of 'a', a number, has the shape \(3,\)"):
        opt.update(params, grads)
    assert params == again and opt.iter == 8
    with pytest.raises(TypeError, match="iter must be an int"):
        opt.iter = 1.5


@pytest.mark.parametrize("style", ["dicts", "objects"])
def test_a_step_of_numbers_happens_whole_wherever_it_is_interrupted(style):
    """At every instruction of the third step in turn, which brings new keys: before it or after it, nothing else."""

    def start():
        opt, params = dicts.Adam(partial=True), {i: float(i) for i in range(3)}
        things = [SimpleNamespace(data=float(i), grad=0.5 - i) for i in range(3)]
        target = objects.Adam().setup(things)

        def step(keys):
            if style == "dicts":
                opt.update(params, {i: 0.5 - i for i in keys})
            else:
                target.setup([things[i] for i in keys]).update()

        def look():
            if style == "dicts":
                return public(opt), dict(params)
            states = [[s.get(id(x), 0.0) + 0.0 for x in things] for s in (target.ms, target.vs)]
            return states, target.t, [x.data for x in things]

        for keys in ([0, 1], [1, 0]):
            step(keys)
        return step, look

    step, look = start()
    before = look()
    step([0, 1, 2])
    after = look()
    step([2, 1])
    last = look()
    assert before != after != last
    seen = []
    for n in range(1, 5000):
        step, look = start()
        ended = interrupted_at(n, lambda: step([0, 1, 2]), "adapters")  # noqa: B023
        now = look()
        assert now in (before, after), n
        seen.append(now == after)
        if now == before:
            step([0, 1, 2])
        step([2, 1])
        assert look() == last, n
        if ended:
            break
    assert ended and len(seen) > 100 and seen == sorted(seen) and seen.count(True) > 3


class Ringing(UserDict):
    """A mapping within whose Python code a signal comes."""

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        if getattr(self, "armed", False):
            signal.raise_signal(signal.SIGINT)


class Thing:
    grad = 1.0

    def __init__(self, value):
        self._value, self.armed = value, False

    @property
    def data(self):
        return self._value

    @data.setter
    def data(self, value):
        self._value = value
        if self.armed:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("more", [{}, {"w": np.ones(2)}])
def test_ctrl_c_waits_while_the_users_code_writes(more):
    params = Ringing({"a": 1.0, "b": 2.0} | copy.deepcopy(more))
    grads, opt = {"a": 1.0, "b": 1.0} | more, dicts.Momentum(lr=0.5)
    things = [Thing(1.0), Thing(2.0), *(SimpleNamespace(data=x.copy(), grad=x) for x in more.values())]
    other = objects.MomentumSGD(lr=0.5).setup(things)
    opt.update(params, grads)
    other.update()
    params.armed = things[0].armed = things[1].armed = True
    with pytest.raises(KeyboardInterrupt):
        opt.update(params, grads)
    with pytest.raises(KeyboardInterrupt):
        other.update()
    end = [1 - (0.5 + 0.95), 2 - (0.5 + 0.95)]
    assert [params["a"], params["b"]] == [x.data for x in things[:2]] == pytest.approx(end)
    assert all((params[k] == things[2].data).all() and params[k] == pytest.approx(end[0]) for k in more)
    assert opt.v["b"] == other.vs[id(things[1])] == pytest.approx(-0.95)


def test_what_sets_attributes_by_python_code_is_known():
    class Slots:
        __slots__ = ("data",)

    class Own:
        def __setattr__(self, name, value):
            object.__setattr__(self, name, value)

    kinds = {SimpleNamespace: True, Slots: True, Thing: False, Own: False}
    assert {kind: objects._is_plain(kind, "data") for kind in kinds} == kinds


def test_nothing_is_kept_of_steps_that_were_refused():
    params, opt = {"a": 1.0, "b": np.ones(2)}, dicts.Adam()
    with pytest.raises(ValueError, match="expected shape"):
        opt.update(params, {"a": 1.0, "b": np.ones(3)})
    assert opt.m == opt.v == {} and opt.iter == 0 and params["a"] == 1.0
    assert _collection.Joint(1, 2).holds(({},), ["a", "b", "c"]) is False


STYLES = [(module, kind) for module in (dicts, objects) for kind in module.__all__]


@pytest.mark.parametrize("start", [{"a": 1.0, "b": 2.0}, {"a": np.ones(2), "b": 2.0}], ids=["numbers", "both"])
@pytest.mark.parametrize(("module", "kind"), STYLES)
def test_states_may_be_replaced_as_those_of_the_originals(module, kind, start):
    """Saved and put back, and emptied, by assignment: training goes on from there, as it did the first time."""
    params = copy.deepcopy(start)
    grads = {key: value * 0 + 0.5 for key, value in params.items()}
    things = [SimpleNamespace(data=value, grad=grads[key]) for key, value in params.items()]
    opt = getattr(module, kind)()
    if module is objects:
        opt.setup(things)

    def steps(count):
        for _ in range(count):
            opt.update(params, grads) if module is dicts else opt.update()
        return look()

    def look():
        return copy.deepcopy([params] if module is dicts else [(x.data, x.grad) for x in things])

    def put_back(values):
        for i, (key, value) in enumerate(values.items()):
            if isinstance(value, np.ndarray):
                (params[key] if module is dicts else things[i].data)[...] = value
            elif module is dicts:
                params[key] = value
            else:
                things[i].data = value

    def same(a, b):
        return repr(a) == repr(b)  # floats are written with all their digits

    first = steps(2)
    saved, count, middle = {n: copy.deepcopy(getattr(opt, n)) for n in opt._states}, opt._collection.count[0], first[0]
    values = middle if module is dicts else dict(zip(params, [x[0] for x in first], strict=True))
    last = steps(2)
    put_back(values)
    opt._collection.count[0] = count
    for name, of in saved.items():
        setattr(opt, name, of)
        assert getattr(opt, name) is of
    assert same(steps(2), last)
    put_back(start)
    opt._collection.count[0] = 0
    for name in opt._states:
        setattr(opt, name, None)
        assert getattr(opt, name) == {}
    assert same(steps(2), first)
    for name in opt._states:
        with pytest.raises(TypeError, match=f"{name} must be a dict of states by key, or None, got list"):
            setattr(opt, name, [1.0])
        assert getattr(opt, name)


class Refusing:
    """An object whose number can be refused, by a property or by a slot that is not its own."""

    grad = 1.0

    def __init__(self, value):
        self._value, self.refuses = value, False

    @property
    def data(self):
        return self._value

    @data.setter
    def data(self, value):
        self._value = value  # a setter may do its work and then refuse
        if self.refuses and value != 2.0:
            raise ValueError("not this one")


class ReadOnly:
    data, grad, __slots__ = 2.0, 1.0, ()  # an attribute of the class, which objects without a dict cannot shadow


class RefusingDict(UserDict):
    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        if key == getattr(self, "refuses", None) and value != 2.0:
            raise ValueError("not this one")


@pytest.mark.parametrize("which", ["first", "middle", "last"])
@pytest.mark.parametrize("more", [False, True], ids=["numbers", "both"])
@pytest.mark.parametrize("kind", ["property", "class attribute", "mapping"])
def test_a_step_that_a_target_refuses_changes_nothing(kind, more, which):
    at = {"first": 0, "middle": 1, "last": 2}[which]
    arrays = [np.ones(2)] * more
    if kind == "mapping":
        opt, params = dicts.Adam(), RefusingDict(dict(enumerate([2.0, 2.0, 2.0, *arrays])))

        def step():
            opt.update(params, {i: x * 0 + 1.0 for i, x in params.items()})
    else:
        things = [SimpleNamespace(data=2.0, grad=1.0) for _ in range(3)]
        things[at] = Refusing(2.0) if kind == "property" else ReadOnly()
        things += [SimpleNamespace(data=x, grad=np.ones(2)) for x in arrays]
        opt = objects.Adam().setup(things)
        step = opt.update

    def look():
        values = list(params.values()) if kind == "mapping" else [x.data for x in things]
        keys = list(params) if kind == "mapping" else [*map(id, things)]
        states = [
            [np.array(of.get(key, 0.0)).tolist() for key in keys] for of in (getattr(opt, n) for n in opt._states)
        ]
        return copy.deepcopy((values, states, opt._collection.count[0]))

    for _ in range(2):
        before = look()
        if kind == "mapping":
            params.refuses = at
        elif kind == "property":
            things[at].refuses = True
        with pytest.raises((ValueError, AttributeError), match=r"not this one|read-only"):
            step()
        assert repr(look()) == repr(before)
        if kind == "class attribute":
            break
        if kind == "mapping":
            params.refuses = None
        else:
            things[at].refuses = False
        step()
        assert look()[2] == before[2] + 1 and look()[0][0] != before[0][0]
        for i in range(3):  # what the next refusal leaves alone
            if kind == "mapping":
                params[i] = 2.0
            else:
                things[i].data = 2.0
