"""Adapters for course, book and micro-framework styles, against those styles' own formulas in plain NumPy."""

from __future__ import annotations

import copy
import doctest
import pickle
import re
import signal
import threading
import time
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

import fastoptim as fo
from fastoptim.adapters import cs231n, dicts, numpy_ml, objects, per_array
from fastoptim.adapters._update import RuleUpdate, step_array
from fastoptim.backends.numpy_cpu import NumpyBackend
from fastoptim.common.busy import BUSY
from tests.support.threads import in_threads

RNG = np.random.default_rng(0)
P0 = {"W": RNG.normal(size=(13, 7)), "b": RNG.normal(size=7)}
GRADS = [{k: RNG.normal(size=p.shape) for k, p in P0.items()} for _ in range(5)]
CLOSE = {"rtol": 1e-13, "atol": 1e-15}


# --- CS231n: values published with assignment 2, "Fully-connected neural nets" (FullyConnectedNets.ipynb) ----------

MOMENTUM_W = """
 0.1406      0.20738947  0.27417895  0.34096842  0.40775789  0.47454737  0.54133684  0.60812632  0.67491579  0.74170526
 0.80849474  0.87528421  0.94207368  1.00886316  1.07565263  1.14244211  1.20923158  1.27602105  1.34281053  1.4096"""
VELOCITY = """
 0.5406      0.55475789  0.56891579  0.58307368  0.59723158  0.61138947  0.62554737  0.63970526  0.65386316  0.66802105
 0.68217895  0.69633684  0.71049474  0.72465263  0.73881053  0.75296842  0.76712632  0.78128421  0.79544211  0.8096"""
ADAM_W = """
-0.40094747 -0.34836187 -0.29577703 -0.24319299 -0.19060977 -0.1380274  -0.08544591 -0.03286534  0.01971428  0.0722929
 0.1248705   0.17744702  0.23002243  0.28259667  0.33516969  0.38774145  0.44031188  0.49288093  0.54544852
 0.59801459"""
ADAM_V = """
 0.69966     0.68908382  0.67851319  0.66794809  0.65738853  0.64683452  0.63628604  0.6257431   0.61520571  0.60467385
 0.59414753  0.58362676  0.57311152  0.56260183  0.55209767  0.54159906  0.53110598  0.52061845  0.51013645  0.49966"""
ADAM_M = """
 0.48        0.49947368  0.51894737  0.53842105  0.55789474  0.57736842  0.59684211  0.61631579  0.63578947  0.65526316
 0.67473684  0.69421053  0.71368421  0.73315789  0.75263158  0.77210526  0.79157895  0.81105263  0.83052632  0.85"""


def published(text):
    return np.array(text.split(), float).reshape(4, 5)


def ramp(low, high):
    return np.linspace(low, high, 20).reshape(4, 5)


def test_cs231n_published_momentum():
    config = {"learning_rate": 1e-3, "velocity": ramp(0.6, 0.9)}
    w, returned = cs231n.sgd_momentum(ramp(-0.4, 0.6), ramp(-0.6, 0.4), config)
    assert returned is config
    assert (w.round(8) == published(MOMENTUM_W)).all()
    assert (config["velocity"].round(8) == published(VELOCITY)).all()


def test_cs231n_published_adam():
    config = {"learning_rate": 1e-2, "m": ramp(0.6, 0.9), "v": ramp(0.7, 0.5), "t": 5}
    w, _ = cs231n.adam(ramp(-0.4, 0.6), ramp(-0.6, 0.4), config)
    assert (w.round(8) == published(ADAM_W)).all()
    assert (config["v"].round(8) == published(ADAM_V)).all()
    assert (config["m"].round(8) == published(ADAM_M)).all()
    assert config["t"] == 6


def test_cs231n_sgd_and_defaults():
    w = ramp(-0.4, 0.6)
    expected = w - 1e-2 * ramp(-0.6, 0.4)
    after, config = cs231n.sgd(w, ramp(-0.6, 0.4))
    assert after is w and (w == expected).all() and config == {"learning_rate": 1e-2}
    _, config = cs231n.sgd_momentum(w, w * 2.0)
    assert {k: config[k] for k in ("learning_rate", "momentum")} == {"learning_rate": 1e-2, "momentum": 0.9}
    _, config = cs231n.adam(w, w * 2.0)
    assert {k: config[k] for k in ("learning_rate", "beta1", "beta2", "epsilon", "t")} == {
        "learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "t": 1,
    }  # fmt: skip


def test_gradients_of_another_dtype_are_cast():
    w = np.ones(3, np.float32)
    cs231n.sgd(w, np.full(3, 0.1), {"learning_rate": 1.0})
    assert w.dtype == np.float32 and (w == np.float32(1) - np.float32(0.1)).all()


# --- "Deep Learning from Scratch" ----------------------------------------------------------------------------------


def book(kind, params, all_grads):
    """The book's formulas, step by step."""
    p = {k: np.array(x) for k, x in params.items()}
    m, v = ({k: np.zeros_like(x) for k, x in p.items()} for _ in range(2))
    for t, grads in enumerate(all_grads, 1):
        for k, g in grads.items():
            if kind == "SGD":
                p[k] -= 0.01 * g
            elif kind == "Momentum":
                v[k] = 0.9 * v[k] - 0.01 * g
                p[k] += v[k]
            elif kind == "Nesterov":
                p[k] += 0.9 * 0.9 * v[k] - (1 + 0.9) * 0.01 * g
                v[k] = 0.9 * v[k] - 0.01 * g
            else:
                m[k] += (1 - 0.9) * (g - m[k])
                v[k] += (1 - 0.999) * (g**2 - v[k])
                p[k] -= 0.001 * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m[k] / (np.sqrt(v[k]) + 1e-7)
    return p


@pytest.mark.parametrize("kind", ["SGD", "Momentum", "Nesterov", "Adam"])
def test_dicts_follow_the_book(kind):
    params = copy.deepcopy(P0)
    arrays = dict(params)
    optimizer = getattr(dicts, kind)()
    for grads in GRADS:
        optimizer.update(params, grads)
    for k, expected in book(kind, P0, GRADS).items():
        np.testing.assert_allclose(params[k], expected, **CLOSE)
        assert params[k] is arrays[k]


@pytest.mark.parametrize("kind", ["SGD", "Momentum", "Nesterov", "Adam"])
def test_dicts_rebind_python_numbers(kind):
    """As in the book's chapter 6, where x and y are floats."""
    params = {"x": -7.0, "y": 2, "z": np.float32(1.5)}
    optimizer = getattr(dicts, kind)()
    history = []
    for _ in range(4):
        history.append({"x": params["x"] / 10.0, "y": params["y"] * 2.0, "z": params["z"]})
        optimizer.update(params, history[-1])
    expected = book(kind, {"x": -7.0, "y": 2.0}, [{k: h[k] for k in "xy"} for h in history])
    assert type(params["x"]) is float and type(params["y"]) is float and type(params["z"]) is np.float32
    np.testing.assert_allclose([params["x"], params["y"]], [expected["x"], expected["y"]], **CLOSE)


def test_dicts_refuse_before_they_change_anything():
    params = copy.deepcopy(P0)
    optimizer = dicts.Adam()
    with pytest.raises(KeyError, match="no gradients for"):
        optimizer.update(params, {"W": GRADS[0]["W"]})
    with pytest.raises(ValueError, match="expected shape"):
        optimizer.update(params, {"W": GRADS[0]["W"], "b": np.ones(8)})
    with pytest.raises(TypeError, match="expected a NumPy array or a number, got str"):
        optimizer.update({"W": "no"}, {"W": 1.0})
    assert optimizer.iter == 0 and all((params[k] == P0[k]).all() for k in P0)


def test_dict_optimizers_survive_pickling():
    params, again = copy.deepcopy(P0), copy.deepcopy(P0)
    one = dicts.Adam()
    one.update(params, GRADS[0])
    one.update(params, GRADS[1])
    other = dicts.Adam()
    other.update(again, GRADS[0])
    other = pickle.loads(pickle.dumps(other))
    other.update(again, GRADS[1])
    assert all(params[k].tobytes() == again[k].tobytes() for k in P0)
    assert other.iter == one.iter == 2 and all((other.m[k] == one.m[k]).all() for k in P0)


# --- objects with .data and .grad ----------------------------------------------------------------------------------


def parameters():
    return [SimpleNamespace(data=p.copy(), grad=None) for p in P0.values()]


class Model:
    def __init__(self):
        self.list = parameters()

    def params(self):
        yield from self.list


@pytest.mark.parametrize("kind, options", [("SGD", {}), ("MomentumSGD", {}), ("Adam", {"eps": 1e-7})])
@pytest.mark.parametrize("wrapped", [False, True])
def test_objects_follow_dezero(kind, options, wrapped):
    model = Model()
    arrays = [p.data for p in model.list]
    optimizer = getattr(objects, kind)(**options).setup(model)
    for grads in GRADS:
        for p, g in zip(model.list, grads.values(), strict=True):
            p.grad = SimpleNamespace(data=g) if wrapped else g
        optimizer.update()
    expected = book(kind.removesuffix("SGD") or "SGD", P0, GRADS)
    for p, array, value in zip(model.list, arrays, expected.values(), strict=True):
        assert p.data is array
        np.testing.assert_allclose(p.data, value, **CLOSE)


def test_objects_leave_out_none_and_call_hooks():
    params = parameters()
    params[0].grad = GRADS[0]["W"].copy()
    seen = []
    optimizer = objects.SGD(lr=1.0).setup(iter(params))
    optimizer.add_hook(lambda ps: seen.append(len(ps)))
    optimizer.step()
    assert seen == [1] and (params[1].data == P0["b"]).all()
    assert (params[0].data == P0["W"] - GRADS[0]["W"]).all()
    optimizer.zero_grad()
    assert not params[0].grad.any() and params[1].grad is None


def test_objects_replace_numbers():
    values = [SimpleNamespace(data=1.0, grad=0.5), SimpleNamespace(data=-2.0, grad=1.0)]
    optimizer = objects.MomentumSGD(lr=0.1).setup(values)
    optimizer.update()
    optimizer.update()
    assert [type(x.data) for x in values] == [float, float]
    np.testing.assert_allclose([x.data for x in values], [1 - 0.05 - 0.095, -2 - 0.1 - 0.19], **CLOSE)
    optimizer.zero_grad()
    assert [x.grad for x in values] == [0.0, 0.0]


def test_objects_say_what_is_missing():
    with pytest.raises(RuntimeError, match="setup"):
        objects.Adam().update()
    with pytest.raises(TypeError, match="cannot be copied or pickled"):
        copy.deepcopy(objects.Adam().setup(parameters()))


# --- numpy-ml --------------------------------------------------------------------------------------------------------


def test_numpy_ml_momentum_returns_new_arrays():
    optimizer, p, v = numpy_ml.SGD(lr=0.1, momentum=0.9, clip_norm=3.0), P0["W"], np.zeros_like(P0["W"])
    expected = p
    for grads in GRADS:
        g = grads["W"]
        g = g * 3.0 / np.linalg.norm(g)
        assert np.linalg.norm(grads["W"]) > 3.0
        v = 0.9 * v + 0.1 * g
        expected = expected - v
        before, kept = p, p.copy()
        p = optimizer(p, grads["W"], "W")
        assert p is not before and (before == kept).all()
    np.testing.assert_allclose(p, expected, **CLOSE)


def test_numpy_ml_adam_and_its_schedule():
    optimizer = numpy_ml.Adam(lr_scheduler=lambda step, loss: 0.1 / (1 + step) * loss)
    p, m, v, expected = P0["b"], 0.0, 0.0, P0["b"]
    for t, grads in enumerate(GRADS, 1):
        g = grads["b"]
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        rate = 0.1 / t * 2.0
        expected = expected - rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-7)
        p = optimizer.update(p, g, "b", cur_loss=2.0)
        optimizer.step()
    np.testing.assert_allclose(p, expected, rtol=1e-11)
    assert optimizer.cache["b"]["t"] == 5


# --- per array -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [np.ascontiguousarray, np.asfortranarray])
def test_per_array_has_the_bits_of_the_classes(layout):
    ours = [layout(P0["W"].copy()) for _ in range(3)]
    theirs = [P0["W"].copy() for _ in range(3)]
    states = [[np.zeros((13, 7)) for _ in range(n)] for n in range(3)]
    optimizers = [fo.SGD(theirs[0], 0.01), fo.SGD(theirs[1], 0.01, momentum=0.9), fo.Adam(theirs[2], 0.01)]
    for t, grads in enumerate(GRADS, 1):
        for p, kept, optimizer in zip(ours, states, optimizers, strict=True):
            assert per_array.update(p, grads["W"], *kept, lr=0.01, t=t) is p
            optimizer.step(grads["W"])
    assert [a.tobytes() for a in ours] == [b.tobytes() for b in theirs]


def test_per_array_refuses():
    p = np.ones(3)
    with pytest.raises(ValueError, match="number of the step"):
        per_array.update(p, p * 2, p * 0, p * 0)
    with pytest.raises(TypeError, match="expected no state, one"):
        per_array.update(p, p * 2, p * 0, p * 0, p * 0, t=1)
    with pytest.raises(TypeError, match="expected a NumPy array to update, got list"):
        per_array.update([1.0], p)
    with pytest.raises(ValueError, match="overlap"):
        per_array.update(p, p)
    with pytest.raises(ValueError, match="expected shape"):
        per_array.update(p, np.ones(4))
    with pytest.raises(ValueError, match="momentum_mode must be one of"):
        per_array.update(p, p * 2, p * 0, momentum_mode="bogus")
    with pytest.raises(ValueError, match="eps_mode must be one of"):
        per_array.update(p, p * 2, p * 0, p * 0, t=1, eps_mode="bogus")
    for t in (1.5, 2.0, np.float64(3), float("nan"), "1", 0, -1):
        with pytest.raises(ValueError, match="integer t >= 1"):
            per_array.update(p, p * 2, p * 0, p * 0, t=t)
    for betas in ((0.9,), (0.9, 0.99, 0.999)):
        with pytest.raises(TypeError, match="betas must be a pair of numbers"):
            per_array.update(p, p * 2, p * 0, p * 0, t=1, betas=betas)
    assert (p == 1).all()


def test_per_array_takes_numbers_of_numpy_for_what_they_are():
    """Coefficients come of them in float64, also where NumPy's own arithmetic would be float32's."""
    single = np.float32([1e-3, 0.9, 0.999])
    results = []
    for lr, beta1, beta2 in (single, single.tolist()):
        p = P0["b"].copy()
        per_array.update(p, P0["b"] * 2, p * 0, p * 0, t=np.int64(3), lr=lr, betas=(beta1, beta2))
        results.append(p.tobytes())
    assert results[0] == results[1]


# --- what all of them share -----------------------------------------------------------------------------------------


def of_dicts(kind):
    """``step(p, g)`` of one optimizer, which returns what `p` has become."""

    def make(**options):
        optimizer = getattr(dicts, kind)(**options)

        def step(p, g):
            params = {"w": p}
            optimizer.update(params, {"w": g})
            return params["w"]

        return step

    return make


def of_objects(kind):
    def make(**options):
        parameter = SimpleNamespace(data=None, grad=None)
        optimizer = getattr(objects, kind)(**options).setup([parameter])

        def step(p, g):
            parameter.data, parameter.grad = p, SimpleNamespace(data=g)
            optimizer.update()
            return parameter.data

        return step

    return make


def of_cs231n(rule):
    def make(lr=1e-3, **options):
        config = {"learning_rate": lr, **options}
        return lambda p, g: rule(p, g, config)[0]

    return make


def of_numpy_ml(kind):
    def make(**options):
        optimizer = kind(**options)
        return lambda p, g: optimizer(p, g, "w")

    return make


def of_per_array(states):
    def make(lr=1e-3):
        return lambda p, g: per_array.update(p, g, *(np.zeros_like(p) for _ in range(states)), lr=lr, t=1)

    return make


STYLES = {
    **{f"dicts.{kind}": of_dicts(kind) for kind in dicts.__all__},
    **{f"objects.{kind}": of_objects(kind) for kind in objects.__all__ if kind != "Adam"},
    "objects.Adam": lambda lr=1e-3, **options: of_objects("Adam")(alpha=lr, **options),
    **{f"cs231n.{rule}": of_cs231n(getattr(cs231n, rule)) for rule in cs231n.__all__},
    **{f"numpy_ml.{kind}": of_numpy_ml(getattr(numpy_ml, kind)) for kind in numpy_ml.__all__},
    **{f"per_array.{states}": of_per_array(states) for states in range(3)},
}


@pytest.mark.parametrize("style", STYLES)
def test_what_is_no_gradient_is_refused(style):
    odd = [
        None,
        1 + 1j,
        "1",
        np.datetime64(3, "s"),
        np.ma.array(1.0, np.float32, mask=True),
        np.ma.array(1.0, mask=True),
    ]
    for value in odd:
        p = np.full((), 0.5)
        with warnings.catch_warnings(), pytest.raises(TypeError):  # and no mere warning
            warnings.simplefilter("ignore")
            STYLES[style]()(p, value)
        assert p == 0.5
    for g in (np.ones(2, complex), ["1", "2"], [1.0, None], np.ma.array([1, 2], np.float32, mask=[1, 0])):
        p = np.full(2, 0.5)
        with warnings.catch_warnings(), pytest.raises(TypeError, match="expected real numbers"):
            warnings.simplefilter("ignore")
            STYLES[style]()(p, g)
        assert (p == 0.5).all()


@pytest.mark.parametrize("style", STYLES)
def test_other_real_gradients_are_cast(style):
    g = np.array([2.0, -3.0])
    expected = STYLES[style]()(np.ones(2), g)
    for same in (g.tolist(), g.astype(int), g.astype(np.float16), g.astype(">f4"), g.astype(np.longdouble)):
        assert STYLES[style]()(np.ones(2), same).tobytes() == expected.tobytes()


@pytest.mark.parametrize("style", STYLES)
def test_a_refused_call_leaves_nothing_behind(style):
    """After parameters or gradients that are refused, what is right is stepped as if for the first time."""
    p, g = np.linspace(-1, 1, 6).reshape(2, 3), np.ones((2, 3))
    expected = STYLES[style]()(p.copy(), g)
    step = STYLES[style]()
    for bad_p, bad_g in ((p.astype(int), g), (np.ones((3, 2), np.float32), g), (p.copy(), g.T), (p > 0, g)):
        before = bad_p.copy()
        with pytest.raises((TypeError, ValueError)):
            step(bad_p, bad_g)
        assert (bad_p == before).all()
    assert step(p.copy(), g).tobytes() == expected.tobytes()


def test_a_refused_call_leaves_configurations_and_caches_alone():
    config = {}
    for rule in (cs231n.sgd, cs231n.sgd_momentum, cs231n.adam):
        with pytest.raises(TypeError, match="got int64: convert it"):
            rule(np.ones(2, int), np.ones(2), config)
        assert config == {}
    for optimizer in (numpy_ml.SGD(), numpy_ml.Adam()):
        with pytest.raises(ValueError, match="expected shape"):
            optimizer(np.ones(2), np.ones(3), "w")
        assert optimizer.cache == {}
    optimizer = dicts.Adam()
    with pytest.raises(ValueError, match=r"gradient of parameter 'b': expected shape \(7,\)"):
        optimizer.update(copy.deepcopy(P0), GRADS[0] | {"b": np.ones(8)})
    assert optimizer.m == optimizer.v == {}


@pytest.mark.parametrize("style", STYLES)
def test_hyperparameters_that_make_no_sense_are_refused(style):
    bad = [("lr", value) for value in (None, "0.1", 1j, float("nan"), [0.1], np.array([0.1]))]
    if style.lower().endswith("adam"):
        names = ("decay1", "decay2") if style.startswith("numpy_ml") else ("beta1", "beta2")
        bad += [(name, value) for name in names for value in (1.0, 1.5, -0.5, float("nan"), "0.9", None)]
        name = "epsilon" if style.startswith("cs231n") else "eps"
        bad += [(name, -1e-8), (name, 1e-50)]  # which is zero in float32, so that 0 / 0 would be NaN
    elif style.endswith("RMSprop"):
        name = "alpha" if style.startswith("objects") else "decay_rate"
        bad += [(name, value) for value in (1.0, -0.5, float("nan"), "0.9", None)] + [("eps", -1e-8)]
    elif style in ("dicts.Momentum", "dicts.Nesterov", "objects.MomentumSGD", "cs231n.sgd_momentum", "numpy_ml.SGD"):
        bad += [("momentum", value) for value in (None, "0.9", float("nan"))]
    if style.startswith("numpy_ml"):
        bad += [("clip_norm", value) for value in (float("nan"), -1.0, "1")]
        unlimited, plain = (STYLES[style](clip_norm=limit)(np.ones(2), np.ones(2)) for limit in (np.inf, None))
        assert (unlimited == plain).all()
    for name, value in bad:
        p = np.ones(2)
        with pytest.raises((TypeError, ValueError), match=r"must be|invalid|zero in float32"):
            STYLES[style](**{name: value})(p, np.ones(2))
        assert (p == 1).all()


def test_cs231n_counts_whole_steps():
    for t in (1.5, float("nan"), -1):
        config = {"t": t}
        with pytest.raises((TypeError, ValueError), match=r"^t must be "):
            cs231n.adam(np.ones(2), np.ones(2), config)
        assert list(config) == ["t"]
    count = np.array(3)
    _, config = cs231n.adam(np.ones(2), np.ones(2), {"t": count})
    assert config["t"] == 4 and count == 3


def test_cs231n_keeps_its_states_under_ctrl_c(monkeypatch):
    def pressed(*arguments, inner=cs231n.step_array, **options):
        inner(*arguments, **options)
        signal.raise_signal(signal.SIGINT)

    w, config = np.ones(2), {}
    monkeypatch.setattr(cs231n, "step_array", pressed)
    with pytest.raises(KeyboardInterrupt):
        cs231n.adam(w, np.ones(2), config)
    assert w[0] < 1 and config["t"] == 1 and config["m"][0] > 0


def test_numpy_ml_refuses_masked_parameters():
    for optimizer in (numpy_ml.SGD(), numpy_ml.Adam()):
        with pytest.raises(TypeError, match="parameter 'w': expected real numbers, got MaskedArray"):
            optimizer(np.ma.array(np.ones(2), mask=[1, 0]), np.ones(2), "w")


def test_one_update_takes_lists_that_change():
    """Other shapes, other layouts and other dtypes from call to call."""
    update = RuleUpdate("momentum")
    for shape, dtype, order in [((3, 4), "f4", "C"), ((3, 4), "f8", "C"), ((2, 5), "f8", "F"), ((), "f4", "C")]:
        p, g, v = (np.asarray(RNG.normal(size=shape)).astype(dtype, order=order) for _ in range(3))
        T = p.dtype.type
        new_v = T(0.9) * v + T(0.1) * -g
        new_p = p - T(-1.0) * new_v
        for _ in range(2):
            q, w = p.copy(order="K"), v.copy(order="K")
            update((q,), (g,), (w,), (0.9, -0.1, -1.0))
            assert (q == new_p).all() and (w == new_v).all()
    with pytest.raises(ValueError, match="expected 1 gradients and 1 states, got 1 and 0"):
        update((np.ones(2),), (np.ones(2),), (), (0.9, 0.1, -1.0))


def test_two_threads_cannot_step_one_optimizer_at_once(monkeypatch):
    """The second is refused while the first is held inside its step."""
    inside, go_on = threading.Event(), threading.Event()

    class Slow(NumpyBackend):
        def prepare(self, *arguments):
            launch = super().prepare(*arguments)

            def held(scalars):
                inside.set()
                assert go_on.wait(60)
                launch(scalars)

            return held

    monkeypatch.setattr("fastoptim.adapters._update.resolve", lambda *arguments: Slow())
    optimizer, params, others = dicts.SGD(lr=1.0), {"w": np.zeros(3)}, {"w": np.zeros(3)}
    thread = threading.Thread(target=optimizer.update, args=(params, {"w": np.ones(3)}))
    thread.start()
    assert inside.wait(60)
    try:
        refused = []

        def second():
            with pytest.raises(RuntimeError, match=re.escape(BUSY)):
                optimizer.update(others, {"w": np.ones(3)})
            refused.append(True)

        other = threading.Thread(target=second)
        other.start()
        other.join(5)
        assert refused
    finally:
        go_on.set()
        thread.join()
    optimizer.update(others, {"w": np.full(3, 2.0)})
    assert (params["w"] == -1).all() and (others["w"] == -2).all()


def test_ctrl_c_waits_for_arrays_that_are_copied_back(monkeypatch):
    class Interrupted(NumpyBackend):
        def prepare(self, *arguments):
            launch = super().prepare(*arguments)
            return lambda scalars: (launch(scalars), signal.raise_signal(signal.SIGINT))

    monkeypatch.setattr("fastoptim.adapters._update.resolve", lambda *arguments: Interrupted())
    params = {"a": np.zeros(6)[::2], "b": np.zeros(3)}
    with pytest.raises(KeyboardInterrupt):
        dicts.SGD(lr=1.0).update(params, {"a": np.ones(3), "b": np.ones(3)})
    assert (params["a"] == -1).all() and (params["b"] == -1).all()


def test_threads_do_not_share_what_is_native():
    def work(seed):
        p, g = np.zeros(5000), np.full(5000, float(seed))
        for _ in range(200):
            step_array("sgd", p, g, (), (1.0,))
        return p

    assert all((p == -200.0 * seed).all() for seed, p in enumerate(in_threads(work, (1, 2, 3)), 1))


def test_examples():
    result = doctest.testmod(per_array)
    assert result.attempted > 0 and result.failed == 0


def test_small_floats_are_cast():
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="LOUD: ml_dtypes has the small floats")
    w = np.ones(2, np.float32)
    dicts.SGD(lr=0.5).update({"w": w}, {"w": np.ones(2, ml_dtypes.bfloat16)})
    assert (w == 0.5).all()
    with pytest.raises(TypeError, match="real numbers"):
        dicts.SGD(lr=0.5).update({"w": w}, {"w": np.zeros(2, "V4")})


def test_a_signal_at_any_moment_leaves_an_update_free():
    """A time limit's handler that raises may strike between any two instructions."""

    def ring(number, frame):
        if armed:
            raise TimeoutError

    optimizer, w, g = dicts.SGD(lr=0.0), np.ones(2), np.ones(2)
    armed, rung = True, 0
    before = signal.signal(signal.SIGALRM, ring)
    try:
        end = time.monotonic() + 2
        while time.monotonic() < end:
            try:
                signal.setitimer(signal.ITIMER_REAL, 2e-5)
                for _ in range(100):
                    optimizer.update({"w": w}, {"w": g})
            except TimeoutError:
                rung += 1
            armed = False  # an assignment cannot be interrupted, stopping the timer can
            signal.setitimer(signal.ITIMER_REAL, 0)
            armed = True
    finally:
        signal.signal(signal.SIGALRM, before)
    optimizer.update({"w": w}, {"w": g})
    assert rung > 100


def test_a_parameter_that_is_there_twice_is_refused():
    class Param:
        def __init__(self, data):
            self.data, self.grad = data, data

    for data in (1.0, np.ones(2)):
        p = Param(data)
        optimizer = objects.Adam().setup([p, Param(data), p])
        with pytest.raises(ValueError, match="a parameter is there twice"):
            optimizer.update()
        assert optimizer.t == 0 and not optimizer.ms


@pytest.mark.parametrize(
    ("make", "name", "meant"),
    [
        (dicts.Adam, "learning_rate", "lr"),
        (dicts.RMSprop, "epsilon", "eps"),
        (objects.Adam, "beta_1", "beta1"),
        (objects.SGD, "data", "lr"),
        (numpy_ml.Adam, "learning_rate", "lr"),
    ],
)
def test_an_attribute_that_would_do_nothing_is_refused(make, name, meant):
    optimizer = make()
    with pytest.raises(AttributeError, match=f"{make.__name__} has no '{name}': .*{meant}"):
        setattr(optimizer, name, 0.5)

    class Derived(make):
        def __init__(self):
            super().__init__()
            self.learning_rate = 3

    class Twice(Derived):
        pass

    setattr(Twice(), name, 1.0)  # what others add to their classes is theirs


def test_a_gradient_of_16_bits_is_clipped_by_its_norm():
    for dtype, size in ((np.float16, 300.0), (np.float32, 1e30)):
        w, g = np.ones(4, np.float32), np.full(4, size, dtype)
        for make, wanted in ((numpy_ml.SGD, 0.5), (numpy_ml.Adam, 0.0)):
            found = make(lr=1.0, clip_norm=1.0)(w, g, "w")
            assert np.allclose(found, wanted, atol=1e-4), "beyond the range of its dtype the norm took it for nothing"


def test_what_is_no_dict_and_no_model_is_named():
    class Number:
        data, grad = 1.0, 1.0

    calls = {
        "params must be a dict or list of arrays or numbers, got float": lambda: dicts.Adam().update(1.0, {0: 1.0}),
        "grads must be a dict or list of arrays or numbers, got NoneType": lambda: dicts.Adam().update(
            {"w": 1.0}, None
        ),
        r"objects with .data and .grad, got ndarray: fastoptim.adapters.dicts updates arrays in dicts and lists": (
            lambda: objects.SGD().setup([np.ones(2)]).update()
        ),
        r"parameters in a list or another iterable, got Number": lambda: objects.SGD().setup(Number()),
        r"such as its values\(\), got dict": lambda: objects.SGD().setup({"w": Number()}),
        "t must be an int, got 'a'": lambda: cs231n.adam(np.ones(2), np.ones(2), {"t": "a"}),
        "gradient of parameter 'w': expected real numbers, got NoneType .dtype object.$": (
            lambda: numpy_ml.SGD(clip_norm=1.0)(np.ones(2), None, "w")
        ),
    }
    for message, call in calls.items():
        with pytest.raises(TypeError, match=message):
            call()


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("kind", dicts.__all__)
def test_lists_are_updated_as_dicts_are(kind, partial):
    rng = np.random.default_rng(4)
    listed = [rng.standard_normal((3, 2)), 0.5, np.float32(2)]
    named = {i: x.copy() if isinstance(x, np.ndarray) else x for i, x in enumerate(listed)}
    first, of_lists, of_dicts = listed[0], getattr(dicts, kind)(), getattr(dicts, kind)()
    of_lists.partial = of_dicts.partial = partial
    for t in range(3):
        grads = [rng.standard_normal((3, 2)), 1.5, np.float32(t)][: 2 if partial else 3]
        of_lists.update(listed, grads)
        of_dicts.update(named, dict(enumerate(grads)))
    assert listed[0] is first, "arrays stay where they are"
    for i, x in named.items():
        assert type(listed[i]) is type(x) and np.array_equal(listed[i], x), i
    with pytest.raises(ValueError, match="expected 3 gradients, got 4"):
        of_lists.update(listed, [np.ones((3, 2)), 1.0, 1.0, 1.0])


@pytest.mark.parametrize("bad", [None, "x", True, 1j, [1.0]])
def test_a_state_that_is_no_array_is_refused_by_name(bad):
    params = {"w": np.float32(1), "b": np.ones(2)}
    optimizer = dicts.RMSprop()
    optimizer.h = {"w": bad}
    with pytest.raises(TypeError, match="a state of parameter 'w': expected a NumPy array or a number, got"):
        optimizer.update(params, {"w": 1.0, "b": np.ones(2)})
    assert params["w"] == 1 and (params["b"] == 1).all() and optimizer.h == {"w": bad}


def test_a_state_that_does_not_fit_is_called_as_the_caller_calls_it():
    w, g, short = np.ones(3), np.ones(3), np.zeros(2)
    momentum, adam = dicts.Momentum(), dicts.Adam()
    momentum.v, adam.v = {"w": short}, {"w": short}
    of_numpy_ml = numpy_ml.Adam()
    of_numpy_ml.cache["w"] = {"t": 1, "mean": np.zeros(3), "var": short}
    thing = SimpleNamespace(data=w, grad=g)
    of_objects = objects.RMSprop().setup([thing])
    of_objects.hs = {id(thing): short}
    calls = {
        "v of parameter 'w'": lambda: momentum.update({"w": w}, {"w": g}),
        "^v of parameter 'w'": lambda: adam.update({"w": w}, {"w": g}),
        "hs of parameter '0'": of_objects.update,
        "var of parameter": lambda: of_numpy_ml(w, g, "w"),
        "velocity of parameter": lambda: cs231n.sgd_momentum(w, g, {"velocity": short}),
        r"states\[1\] of parameter": lambda: per_array.update(w, g, np.zeros(3), short, t=1),
    }
    for message, call in calls.items():
        with pytest.raises(ValueError, match=rf"{message}.*: expected shape \(3,\), got \(2,\)"):
            call()
    assert (w == 1).all()
