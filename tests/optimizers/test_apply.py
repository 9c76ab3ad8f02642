"""`Optimizer.apply` has the bits of `step` and writes to nothing that it was given; `minimize` in SciPy's form."""

from __future__ import annotations

import math
from collections import namedtuple

import numpy as np
import pytest

import fastoptim as fo
from fastoptim.common.busy import BUSY
from tests.support.cases import same_bits

Pair = namedtuple("Pair", "w b")
BACKENDS = ("c", "numba", "numpy")


def optimizers(params, backend="auto"):
    return [
        fo.SGD(params, 0.1, backend=backend),
        fo.SGD(params, 0.1, 0.9, dampening=0.5, weight_decay=0.1, backend=backend),
        fo.Adam(params, 0.1, amsgrad=True, backend=backend),
        fo.AdamW(params, 0.1, backend=backend),
    ]


def arrays(rng, dtype=np.float64):
    return Pair(rng.standard_normal((4, 3)).astype(dtype), [np.asfortranarray(rng.standard_normal((5, 2)), dtype)])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("which", range(4))
def test_apply_has_the_bits_of_step(which, backend):
    rng = np.random.default_rng(0)
    for options in ({}, {"grad_scale": 0.3}, {"max_norm": 0.5}, {"skip_nonfinite": True}):
        ours, theirs = arrays(rng), arrays(rng)
        theirs.w[...], theirs.b[0][...] = ours.w, ours.b[0]
        own = Pair(np.full((4, 3), 7.0), [np.full((5, 2), 7.0)])
        applying, stepping = optimizers(own, backend)[which], optimizers(theirs, backend)[which]
        points = [ours]
        for t in range(4):
            g = arrays(rng)
            if t == 2:
                g = g._replace(b=[None])
            for x in (points[-1].w, points[-1].b[0]):
                x.flags.writeable = False
            points.append(applying.apply(points[-1], g, **options))
            stepping.step(g, **options)
            new = points[-1]
            assert type(new) is Pair and type(new.b) is list
            assert same_bits(new.w, theirs.w) and same_bits(new.b[0], theirs.b[0])
        assert (own.w == 7).all() and (own.b[0] == 7).all() and same_bits(points[0].w, ours.w)
        assert applying.state["w" if "w" in applying.state else "0"]["step"] == 4


def test_a_named_tuple_of_numbers_comes_back_as_such():
    opt = fo.SGD(np.zeros(2), lr=0.5)
    assert opt.apply(Pair(1.0, 2.0), Pair(1.0, 1.0)) == Pair(0.5, 1.5) and opt.state["0"]["step"] == 1


def test_numbers_are_gradients_of_16_bit_parameters_in_float32():
    opt = fo.SGD({"a": np.zeros((), np.float16), "b": np.zeros((), np.float16)}, lr=1e9)
    assert opt.apply({"a": 1.0, "b": 2.0}, {"a": 1e-9, "b": None}) == {"a": 0.0, "b": 2.0}
    assert fo.SGD(np.zeros(2, np.float16), lr=1e9).apply([1.0, 2.0], (1e-9, 1e-9)) == [0.0, 1.0]


def test_numbers_and_lists_come_back_as_such():
    values, grads = [0.1 * i for i in range(20)], [1.0 - 0.1 * i for i in range(20)]
    p = np.array(values)
    for kind in (list, tuple):
        opt, other = fo.Adam(np.zeros(20), 0.1), fo.Adam(q := p.copy(), 0.1)
        new = kind(values)
        for _ in range(3):
            new = opt.apply(new, grads)
            other.step(np.array(grads))
        assert type(new) is kind and all(type(x) is float for x in new) and same_bits(np.array(new), q)
    opt = fo.SGD({"a": np.zeros(()), "b": np.zeros((), np.float32), "c": np.zeros(2)}, lr=0.5)
    new = opt.apply({"a": 1, "b": np.float32(2), "c": np.ones(2)}, {"c": np.ones(2), "a": 1.0, "b": np.float32(1)})
    assert new["a"] == 0.5 and type(new["a"]) is float
    assert new["b"] == 1.5 and type(new["b"]) is np.float32 and (new["c"] == 0.5).all()


def test_a_gradient_may_be_the_parameter_itself():
    p = np.array([1.0, 2.0])
    opt = fo.SGD(p.copy(), lr=0.5)
    assert (opt.apply(p, p) == [0.5, 1.0]).all() and (p == [1.0, 2.0]).all()


def test_groups_and_files(tmp_path):
    a, b = np.ones(3), np.ones(2)
    opt = fo.SGD([{"params": [a]}, {"params": [b], "lr": 0.25}], lr=0.5)
    (x,), (y,) = opt.apply([[a], [b]], [[np.ones(3)], [np.ones(2)]])
    assert (x == 0.5).all() and (y == 0.75).all() and (a == 1).all() and (b == 1).all()
    np.ones(5).tofile(tmp_path / "w")
    mapped = np.memmap(tmp_path / "w", np.float64, "r+")
    new = fo.SGD(mapped, lr=0.5).apply(mapped, np.ones(5))
    assert (new == 0.5).all() and (mapped == 1).all()


def test_what_no_group_steps_comes_back():
    params = {"w": np.ones(2), "b": np.zeros(())}
    opt = fo.SGD(fo.groups(params, {"w": {"lr": 0.5}, "b": None}), lr=1.0)
    new = opt.apply({"w": np.ones(2), "b": 3.0}, {"w": np.ones(2), "b": 1.0})
    assert (new["w"] == 0.5).all() and new["b"] == 3.0


def test_apply_refuses_whole():
    opt = fo.Adam({"w": np.zeros(3)}, 0.1)
    good, g = {"w": np.ones(3)}, {"w": np.ones(3)}
    bad = [
        ({"w": np.ones(4)}, g, {}, r"value of parameter 'w': expected shape \(3,\)"),
        ({"w": np.ones(3, np.float32)}, g, {}, "value of parameter 'w': expected dtype float64"),
        ({"w": np.ma.ones(3)}, g, {}, "parameter 'w': expected a NumPy array, got MaskedArray"),
        ({"w": "abc"}, g, {}, "parameter 'w': expected a NumPy array"),
        ({"w": 1.0}, g, {}, r"value of parameter 'w': expected shape \(3,\)"),
        ({"v": np.ones(3)}, g, {}, "names missing: \\['w'\\]"),
        (good, {"w": np.ones(4)}, {}, "gradient of parameter 'w': expected shape"),
        (good, {"w": np.ones(3, int)}, {}, "gradient of parameter 'w': expected dtype"),
        (good, {}, {}, "names missing"),
        (good, g, {"max_norm": -1.0}, "max_norm"),
        (good, g, {"grad_scale": "1"}, "grad_scale"),
        (good, g, {"grad_scale": True}, "grad_scale must be a real number, got True"),
        (good, g, {"grad_scale": np.ones(2)}, r"grad_scale must be a real number, got an array of shape \(2,\)"),
    ]
    for params, grads, options, words in bad:
        with pytest.raises((TypeError, ValueError), match=words):
            opt.apply(params, grads, **options)
        assert opt.state["w"]["step"] == 0
    flat = fo.SGD(np.zeros(3))
    for values in (["1"] * 3, [1.0, None, 2.0], [1j] * 3, [1.0, 2.0]):
        with pytest.raises((TypeError, ValueError), match="parameter '0'"):
            flat.apply(values, np.ones(3))
        with pytest.raises((TypeError, ValueError), match="parameter '0'"):
            flat.apply([1.0] * 3, values)
    opt._busy.append(0)
    with pytest.raises(RuntimeError, match=BUSY.split(":")[0]):
        opt.apply(good, g)
    opt._busy.remove(0)
    assert not (opt.apply(good, {"w": np.full(3, np.nan)}, skip_nonfinite=True)["w"] != 1).any()


def rosenbrock(x, a=1.0):
    value = 100.0 * (x[1] - x[0] ** 2) ** 2 + (a - x[0]) ** 2
    slope = 200.0 * (x[1] - x[0] ** 2)
    return value, np.array([-2.0 * x[0] * slope - 2.0 * (a - x[0]), slope])


def test_minimize_descends_as_a_loop_does():
    points = []
    found = fo.minimize(
        lambda x, a: rosenbrock(x, a)[0], [-1.2, 1], (1.5,), jac=lambda x, a: rosenbrock(x, a)[1],
        optimizer=lambda x: fo.Adam(x, 0.05), maxiter=50, callback=points.append,
    )  # fmt: skip
    x = np.array([-1.2, 1.0])
    opt = fo.Adam(x, 0.05)
    for point in points:
        opt.step(rosenbrock(x, 1.5)[1])
        assert same_bits(point, x)
    assert (found.nit, found.nfev, found.njev, found.status, found.success) == (50, 51, 51, 1, False)
    assert found.message.startswith("maxiter steps were taken; without tol ")  # which alone could make a success of it
    assert same_bits(found.x, x) and found.fun == rosenbrock(x, 1.5)[0] and len(points) == 50


@pytest.mark.parametrize("kind", [fo.ScheduleFreeSGD, fo.ScheduleFreeAdamW])
@pytest.mark.parametrize("tol", [None, 0.0, 1e-3])
def test_minimize_returns_and_judges_the_average_of_a_schedule_free_optimizer(kind, tol):
    curvature, seen = np.array([1.0, 30.0]), []

    def fun(x):
        return 0.5 * x @ (curvature * x), curvature * x

    y, means = np.array([3.0, -1.0]), []
    opt = kind(y, lr=0.05)
    for _ in range(300):
        opt.step(fun(y)[1])
        means.append(opt.averaged())
        if tol and abs(fun(means[-1])[1]).max() <= tol:
            break
    options = {"jac": True, "optimizer": lambda x: kind(x, lr=0.05), "tol": tol, "maxiter": 300}
    found = fo.minimize(fun, [3.0, -1.0], callback=seen.append, **options)
    assert all(map(same_bits, seen, means)) and len(seen) == len(means) == found.nit
    assert same_bits(found.x, means[-1]) and not same_bits(found.x, y)
    assert (found.fun, found.jac.tolist()) == (fun(found.x)[0], fun(found.x)[1].tolist())
    assert found.nfev == found.njev == 1 + (found.nit + 1 if tol is None else 2 * found.nit)
    assert found.success == (bool(tol) and found.nit < 300)

    values = iter([1.0] * 4 + [math.nan, 2.0])  # the last one at the average
    found = fo.minimize(lambda x: (next(values), np.ones(2)), np.zeros(2), **options | {"tol": None})
    assert (found.status, found.nit, found.fun) == (2, 4, 2.0)


def test_minimize_refuses_gradients_of_another_shape_and_what_is_no_optimizer():
    for wrong in (np.zeros(0), 0.0, np.zeros((3, 3))):
        with pytest.raises(ValueError, match=r"gradient: expected the shape of x, \(3,\), got \("):
            fo.minimize(lambda x, wrong=wrong: (x @ x, wrong), np.full(3, 5.0), jac=True, tol=1e-3)
    with pytest.raises(TypeError, match="it made 3"):
        fo.minimize(lambda x: (x @ x, 2 * x), np.ones(3), jac=True, optimizer=lambda x: 3)


def test_minimize_says_why_it_ended():
    square = {"jac": True, "optimizer": lambda x: fo.SGD(x, 0.25)}
    fun = lambda x: ((x * x).sum(), 2 * x)  # noqa: E731
    assert (
        fo.minimize(fun, 4.0, tol=0.1, **square).status,
        fo.minimize(fun, 4.0, tol=0.0, maxiter=3, **square).success,
    ) == (0, False)
    assert fo.minimize(fun, np.zeros(2), tol=0.0, **square).nit == 0

    def stop(x):
        raise StopIteration

    assert fo.minimize(fun, [4.0], callback=stop, **square).status == 3
    found = fo.minimize(
        lambda x: (float(x[0]) * np.inf if x[0] < 0 else 0.0, 1 / x),
        np.full(2, 0.2, np.float32),
        jac=True,
        optimizer=lambda x: fo.SGD(x, 1.0),
    )
    assert found.status == 2 and not found.success and found.x.dtype == np.float32 and found.nit == 1
    for bad in ({"jac": None}, {"jac": True, "tol": -1.0}, {"jac": True, "maxiter": 1.5}):
        with pytest.raises((TypeError, ValueError), match=next(reversed(bad))):
            fo.minimize(fun, [1.0], **bad)
    for bad, options, words in (
        (lambda x: (0.0, np.ones(3)), {}, "expected the shape of x"),
        (lambda x: (np.ones(2), np.ones(1)), {}, r"value: expected one number, got an array of shape \(2,\)"),
        (lambda x: 0.0, {}, "fun returns value and gradient, as a pair; got float"),
        (fun, {"optimizer": fo.SGD(np.ones(1))}, "optimizer must make one of an array"),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            fo.minimize(bad, [1.0], jac=True, **options)


def test_points_are_safe_from_functions_that_write_into_them():
    def overwrites(x, a=0.0):
        gradient = 2 * x - a
        x[...] = 99
        return 1.0, gradient

    options = {"jac": True, "maxiter": 2, "optimizer": lambda x: fo.SGD(x, 0.25)}
    assert fo.minimize(overwrites, [4.0], callback=lambda x: x.fill(7), **options).x.tolist() == [1.0]
    assert fo.minimize(overwrites, [4.0], 2.0, **options).x.tolist() == [1.75]  # one argument, as SciPy takes it
