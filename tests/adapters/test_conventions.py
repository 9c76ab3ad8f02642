"""Conventions, attributes, gathered numbers and partial gradients of the dict and object adapters."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest

import fastoptim as fo
from fastoptim.adapters import dicts, numpy_ml, objects
from fastoptim.rules.coefficients import MOMENTUM_MODES

RNG = np.random.default_rng(0)
START, GRADS = RNG.normal(size=9), RNG.normal(size=(58, 9))


def loop(opt):
    for g in GRADS:
        opt.step(g)


@pytest.mark.parametrize("mode", ["torch", "hat"])
def test_adam_of_both_conventions(mode):
    expected, p = START.copy(), START.copy()
    loop(fo.Adam(expected, lr=0.01, eps=1e-3, eps_mode=mode))
    opt, params = dicts.Adam(0.01, eps=1e-3, eps_mode=mode), {"w": p}
    thing = SimpleNamespace(value=START.copy(), slope=None)
    other = objects.Adam(0.01, eps=1e-3, eps_mode=mode, data="value", grad="slope").setup([thing])
    for g in GRADS:
        opt.update(params, {"w": g})
        thing.slope = g
        other.update()
    assert p.tobytes() == thing.value.tobytes() == expected.tobytes()


@pytest.mark.parametrize("mode", ["torch", "root"])
@pytest.mark.parametrize("kind, options", [("RMSprop", {"alpha": 0.9}), ("AdaGrad", {})])
def test_roots_of_both_conventions(kind, options, mode):
    """Against the classes, bit by bit, and the lines that Chainer (torch) and river (root) have."""
    eps, lines, h = 1e-3, START.copy(), np.zeros(9)
    expected, thing, params = START.copy(), SimpleNamespace(data=START.copy(), grad=None), {"w": START.copy()}
    loop(getattr(fo, kind.replace("G", "g"))(expected, lr=0.01, eps=eps, eps_mode=mode, **options))
    other = getattr(objects, kind)(0.01, eps=eps, eps_mode=mode, **options).setup([thing])
    opt = getattr(dicts, kind)(0.01, *options.values(), eps=eps, eps_mode=mode)
    for g in GRADS:
        opt.update(params, {"w": g})
        thing.grad = g
        other.update()
        h = 0.9 * h + (1 - 0.9) * g * g if options else h + g * g
        lines -= 0.01 * g / (np.sqrt(h) + eps if mode == "torch" else np.sqrt(h + eps))
    assert params["w"].tobytes() == thing.data.tobytes() == expected.tobytes()
    np.testing.assert_allclose(lines, expected, rtol=1e-12)
    assert opt.h["w"].tobytes() == other.hs[id(thing)].tobytes()


@pytest.mark.parametrize("mode", MOMENTUM_MODES)
@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_of_all_conventions(mode, nesterov):
    kind = dicts.Nesterov if nesterov else dicts.Momentum
    if nesterov and mode == "damped":
        with pytest.raises(ValueError, match="momentum_mode must be one of"):
            kind(momentum_mode=mode).update({"w": START.copy()}, {"w": GRADS[0]})
        return
    expected, params = START.copy(), {"w": START.copy()}
    loop(fo.SGD(expected, 0.01, 0.9, nesterov=nesterov, momentum_mode=mode))
    opt, thing = kind(momentum_mode=mode), SimpleNamespace(data=START.copy(), grad=None)
    other = objects.MomentumSGD(momentum_mode=mode).setup([thing])
    for g in GRADS:
        opt.update(params, {"w": g})
        thing.grad = g
        other.update()
    assert params["w"].tobytes() == expected.tobytes()
    assert nesterov or thing.data.tobytes() == expected.tobytes()


def test_unknown_conventions_are_refused():
    for opt in (dicts.Adam(eps_mode="no"), dicts.Momentum(momentum_mode="no"), dicts.RMSprop(eps_mode="hat")):
        with pytest.raises(ValueError, match="_mode must be one of"):
            opt.update({"w": START.copy()}, {"w": GRADS[0]})
    with pytest.raises(TypeError, match="partial must be True or False"):
        dicts.SGD(partial=1)


@pytest.mark.parametrize("kind", dicts.__all__)
def test_gathered_numbers_have_the_bits_of_arrays(kind):
    numbers, array = {i: float(x) for i, x in enumerate(START)}, {"w": START.copy()}
    ours, theirs = getattr(dicts, kind)(), getattr(dicts, kind)()
    for g in GRADS[:5]:
        ours.update(numbers, dict(enumerate(g.tolist())))
        theirs.update(array, {"w": g})
    assert all(type(x) is float for x in numbers.values())
    assert np.array(list(numbers.values())).tobytes() == array["w"].tobytes()
    numbers["more"] = np.zeros(2)  # arrays beside numbers take another way, with the same states
    g = dict(enumerate(GRADS[5].tolist())) | {"more": np.ones(2)}
    ours.update(numbers, g)
    theirs.update(array, {"w": GRADS[5]})
    assert np.array([numbers[i] for i in range(9)]).tobytes() == array["w"].tobytes()
    with pytest.raises((TypeError, ValueError)):
        ours.update({0: 1.0}, {0: None})


def test_partial_gradients_share_one_step_count():
    params, opt = {"a": 1.0, "b": 2.0, "c": np.ones(2)}, dicts.Adam(0.1, partial=True)
    m, v, p = dict.fromkeys("ab", 0.0), dict.fromkeys("ab", 0.0), {"a": 1.0, "b": 2.0}
    for t, keys in enumerate(["a", "ab", "", "b"], 1):
        for k in keys:
            m[k] += 0.1 * (t - m[k])
            v[k] += 0.001 * (t * t - v[k])
            p[k] -= 0.1 * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m[k] / (np.sqrt(v[k]) + 1e-7)
        opt.update(params, {k: float(t) for k in keys})
    np.testing.assert_allclose([params["a"], params["b"]], [p["a"], p["b"]], rtol=1e-12)
    assert opt.iter == 4 and (params["c"] == 1).all() and "c" not in opt.m
    with pytest.raises(KeyError, match="no parameters for"):
        opt.update(params, {"a": 1.0, "z": 1.0})
    with pytest.raises(KeyError, match="partial=True"):
        dicts.SGD().update(params, {"a": 1.0})
    assert opt.iter == 4


def test_errors_say_what_to_do():
    p = np.ones(3)
    with pytest.raises(ValueError, match=r"overlap in memory: copy the gradient, g.copy\(\)"):
        fo.SGD(p).step(p)
    with pytest.raises(ValueError, match=r"expected shape \(3,\), got \(3, 1\): g.reshape\(\(3,\)\)$"):
        fo.SGD(p).step(np.ones((3, 1)))
    with pytest.raises(ValueError, match=r"expected shape \(3,\), got \(2,\)$"):
        fo.SGD(p).step(np.ones(2))
    with pytest.raises((TypeError, ValueError), match=r"max_norm .*shape \(1,\): x.item\(\)"):
        fo.SGD(p).step(np.ones(3), max_norm=np.ones(1))
    with pytest.raises(ValueError, match=r"lr .*-0.1: to climb, say maximize=True"):
        fo.SGD(p, lr=-0.1)
    with pytest.raises(TypeError, match=r"grad_scale .*: give what it returns, before each step$"):
        fo.SGD(p).step(np.ones(3), grad_scale=abs)
    with pytest.raises(TypeError, match=r"make it a list of them, list\(x\)"):
        fo.SGD(np.array([np.ones(2), np.ones(3)], object))


@pytest.mark.parametrize("kind", ["SGD", "Momentum", "Nesterov", "Adam", "AdaGrad", "RMSprop"])
def test_a_shallow_copy_would_share_states(kind):
    opt = getattr(dicts, kind)()
    opt.update({"w": START.copy()}, {"w": GRADS[0]})
    with pytest.raises(TypeError, match=r"share states with this optimizer; use copy\.deepcopy"):
        copy.copy(opt)
    a, b = {"w": START.copy()}, {"w": START.copy()}
    with pytest.raises(TypeError, match=r"share states with this optimizer; use copy\.deepcopy"):
        copy.copy(numpy_ml.Adam())
    copy.deepcopy(opt).update(a, {"w": GRADS[1]})
    opt.update(b, {"w": GRADS[1]})
    assert a["w"].tobytes() == b["w"].tobytes()
