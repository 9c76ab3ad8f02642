"""thinc's optimizer under the adapter: same training, same attributes, everything else left to thinc."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

thinc = pytest.importorskip("thinc", reason="thinc is not installed: its adapter goes untested")
pytest.importorskip("sklearn", reason="scikit-learn is not installed: thinc's adapter goes untested for want of digits")

from sklearn.datasets import load_digits  # noqa: E402
from thinc import optimizers as own  # noqa: E402
from thinc.api import Relu, Softmax, chain, fix_random_seed  # noqa: E402
from thinc.schedules import warmup_linear  # noqa: E402

from fastoptim.adapters import thinc as adapter  # noqa: E402

DIGITS = load_digits()
X, LABELS = (DIGITS.data / 16).astype(np.float32), DIGITS.target
Y = np.eye(10, dtype=np.float32)[LABELS]
TRAIN, TEST = slice(0, 1400), slice(1400, None)


def train(optimizer, epochs=5, width=64):
    fix_random_seed(0)
    model = chain(Relu(nO=width), Relu(nO=width), Softmax())
    model.initialize(X=X[:10], Y=Y[:10])
    order = np.random.default_rng(0)
    for _ in range(epochs):
        shuffled = order.permutation(1400)
        for start in range(0, 1400, 32):
            batch = shuffled[start : start + 32]
            predicted, backprop = model.begin_update(X[batch])
            backprop((predicted - Y[batch]) / len(batch))
            model.finish_update(optimizer)
            optimizer.step_schedules()
    values = [node.get_param(name).ravel() for node in model.walk() for name in node.param_names]
    return float((model.predict(X[TEST]).argmax(1) == LABELS[TEST]).mean()), np.concatenate(values)


VARIANTS = {
    "adam": ("Adam", {}),
    "adamw": ("Adam", {"L2": 0.01}),
    "l2": ("Adam", {"L2": 0.01, "L2_is_weight_decay": False, "use_averages": False}),
    "unclipped": ("Adam", {"grad_clip": 0.0, "beta1": 0.8, "eps": 1e-6}),
    "clipped": ("Adam", {"grad_clip": 0.05}),
    "sgd": ("SGD", {"L2": 0.01}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_on_digits(variant):
    name, options = VARIANTS[variant]
    rate = 0.1 if name == "SGD" else 0.001
    theirs, ours = getattr(own, name)(rate, **options), getattr(adapter, name)(rate, **options)
    accuracy, expected = train(theirs)
    got_accuracy, got = train(ours)
    assert got_accuracy == accuracy > 0.7
    assert np.abs(got - expected).max() <= 2e-5  # some hundred float32 roundings over 220 steps
    assert type(ours) is adapter.Optimizer and len(ours.nr_update) == 6 and ours.step == theirs.step == 220
    if theirs.averages is not None:
        shapes = [x.shape for x in theirs.averages.values()]
        assert [x.shape for x in ours.averages.values()] == shapes
        for a, b in zip(theirs.averages.values(), ours.averages.values(), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5)


def calls(optimizer, count=4, **options):
    rng = np.random.default_rng(1)
    w = rng.normal(size=(17, 5)).astype(np.float32)
    for _ in range(count):
        g = rng.normal(size=w.shape).astype(np.float32)
        w, after = optimizer((7, "W"), w, g, **options)
        assert after.shape == w.shape and not after.any()
        optimizer.step_schedules()
    return w


def test_one_parameter_to_the_last_places():
    """Scale of the rate, schedule, clipping and averages: within 4 units in the last place over 4 steps."""
    for options in ({}, {"lr_scale": 0.25}):
        theirs, ours = (m.Adam(warmup_linear(0.01, 2, 8), L2=0.1) for m in (own, adapter))
        expected, got = calls(theirs, **options), calls(ours, **options)
        assert (np.abs(got - expected) <= 4 * np.spacing(np.abs(expected)) + 1e-8).all()
        for name in ("mom1", "mom2", "averages"):
            a, b = getattr(theirs, name)[(7, "W")], getattr(ours, name)[(7, "W")]
            np.testing.assert_allclose(b, a, rtol=1e-6, atol=1e-9)
        assert theirs.nr_update == ours.nr_update


def test_weights_and_gradient_change_in_place():
    optimizer, w, g = adapter.Adam(0.1), np.ones((2, 3), np.float32), np.ones((2, 3), np.float32)
    got, zeroed = optimizer((0, "W"), w, g)
    assert got is w and zeroed is g and (w < 1).all() and not g.any()
    empty = np.zeros((0, 3), np.float32)
    assert optimizer((1, "W"), empty, empty)[0] is empty and (1, "W") not in optimizer.nr_update


def test_the_rest_is_left_to_thinc(monkeypatch):
    fused = []
    monkeypatch.setattr(adapter, "step_array", lambda *args, **kwargs: fused.append(args))
    strided = np.ones((4, 6), np.float32)[:, ::2]
    adapter.Adam(0.1)((0, "W"), strided.copy(order="F"), np.ones((4, 3), np.float32))
    radam = adapter.RAdam(0.1)
    radam((0, "W"), np.ones(4, np.float32), np.ones(4, np.float32))
    assert not fused and type(radam) is own.Optimizer
    adapter.Adam(0.1)((0, "W"), np.ones(4, np.float32), np.ones(4, np.float32))
    assert fused


def outcome(module, kind, w, g, average=None, **options):
    """Everything that one call leaves; for a refused call the type of the error."""
    w, g, optimizer = w.copy(), g.copy(), getattr(module, kind)(0.1, **options)
    if average is not None:
        optimizer.averages[0, "W"] = average = average.copy(order="K")
    try:
        optimizer((0, "W"), w, g)
    except Exception as error:
        return type(error)
    return [x.tolist() for x in (w, g, optimizer.averages[0, "W"])]


@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_other_shapes_and_averages_are_left_to_thinc(kind):
    w, transposed = np.arange(6, dtype=np.float32).reshape(2, 3), np.arange(6, dtype=np.float32).reshape(3, 2)
    assert outcome(adapter, kind, w, transposed) == outcome(own, kind, w, transposed)
    assert outcome(adapter, "SGD", w, transposed) is ValueError
    for average in (np.zeros((2, 3), np.float32, order="F"), np.zeros((2, 3)), np.zeros((3, 2), np.float32)):
        got, expected = (outcome(m, kind, w, w, average) for m in (adapter, own))
        if expected is ValueError:
            assert got is ValueError
        else:
            np.testing.assert_allclose(got, expected, rtol=1e-6)
            assert np.any(got[2])


def test_a_refused_call_changes_nothing():
    rng = np.random.default_rng(0)
    for options in ({}, {"L2": 0.1, "L2_is_weight_decay": False}, {"grad_clip": 0.01, "L2": 0.1}):
        for kind in ("SGD", "Adam"):
            for locked in ("w", "g", None):
                optimizer = getattr(adapter, kind)(0.1, **options)
                w, g = (rng.normal(size=4).astype(np.float32) for _ in range(2))
                if locked is None:
                    g = w  # overlaps
                else:
                    {"w": w, "g": g}[locked].flags.writeable = False
                before = w.tobytes(), g.tobytes()
                with pytest.raises(ValueError, match=r"read-only|overlap"):
                    optimizer((0, "W"), w, g)
                assert (w.tobytes(), g.tobytes()) == before
                assert not (optimizer.nr_update or optimizer.mom1 or optimizer.mom2 or optimizer.averages)


@pytest.mark.parametrize("kind", ["locked", "weights", "mom1", "decay"])
def test_what_a_later_part_of_the_step_would_refuse_is_refused_first(kind):
    optimizer = adapter.Adam(0.01, L2=0.1, use_averages=True)
    key, w, g = (0, "W"), np.ones(4, np.float32), np.ones(4, np.float32)
    optimizer(key, w, g.copy())
    if kind == "locked":
        optimizer.averages[key].flags.writeable = False
    elif kind == "decay":
        optimizer.L2 = lambda step, **_: 1e60
    else:
        optimizer.averages[key] = w if kind == "weights" else optimizer.mom1[key]

    def all_there_is():
        return pickle.dumps((w, g, optimizer.mom1, optimizer.mom2, optimizer.nr_update, optimizer.averages))

    before = all_there_is()
    with pytest.raises(ValueError, match="learn_rate times L2" if kind == "decay" else "the average of these weights"):
        optimizer(key, w, g)
    assert all_there_is() == before


def test_it_is_copied_and_pickled_in_the_middle():
    once = adapter.Adam(0.01)
    expected = calls(once)
    for copied in (copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))):
        optimizer = adapter.Adam(0.01)
        calls(optimizer, 4)
        again = copied(optimizer)
        assert type(again) is adapter.Optimizer
        assert (calls(again) == calls(optimizer)).all() and (calls(adapter.Adam(0.01)) == expected).all()
