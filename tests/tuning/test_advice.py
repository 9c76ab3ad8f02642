"""Recommendations follow the rule, and what they measure is what it is called."""

from __future__ import annotations

import json
import math
import re
import warnings
from typing import NamedTuple

import numpy as np
import pytest

import fastoptim as fo
from tests.support import ROOT

RESULTS = ROOT / "benchmarks" / "results" / "which_optimizer.json"


@pytest.mark.parametrize(
    ("answers", "optimizer", "lr"),
    [
        ({}, "adam", 1e-3),
        ({"sparse": True}, "adam", 1e-3),
        ({"badly_scaled": True}, "adam", 1e-3),
        ({"badly_scaled": True, "time_to_tune": True}, "adam", 1e-3),
        ({"sparse": True, "badly_scaled": False, "time_to_tune": True}, "adam", 1e-3),
        ({"attention": True}, "adamw", 1e-3),
        ({"attention": True, "badly_scaled": False, "time_to_tune": True}, "adamw", 1e-3),
        ({"badly_scaled": False, "time_to_tune": True}, "momentum", 0.1),
        ({"badly_scaled": False, "sparse": False}, "adam", 1e-3),
        ({"time_to_tune": True}, "adam", 1e-3),
        ({"unstable": True}, "adam", 1e-4),
        ({"unstable": True, "lr": 0.5, "badly_scaled": False, "time_to_tune": True}, "momentum", 0.05),
        ({"unstable": False, "lr": 0.5}, "adam", 1e-3),
    ],
)
def test_the_rule_from_answers(answers, optimizer, lr):
    advice = fo.recommend(**answers)
    assert (advice.optimizer, advice.lr) == (optimizer, pytest.approx(lr))
    low, high = advice.lr_range
    assert low <= advice.lr <= high
    assert advice.figures == {}
    assert advice.batch_size is None
    assert advice.reasons
    assert str(advice).startswith(f"{optimizer}, lr {advice.lr:g}\n- ")
    needs_adam = any(answers.get(name) for name in ("sparse", "badly_scaled", "attention"))
    assert not (needs_adam and any("time to tune" in reason for reason in advice.reasons))


@pytest.mark.parametrize(
    ("answers", "task", "score", "ours"),
    [
        ({"attention": True}, "GPT", "score", "adamw"),
        ({"sparse": True}, "words", "score", "adam"),
        ({}, "optimizers", "accuracy", "adam"),
    ],
)
def test_what_else_to_try_is_what_came_out_in_the_runs(answers, task, score, ours):
    if not RESULTS.exists():
        pytest.skip("LOUD: no benchmarks beside the tests")
    advice, measured = fo.recommend(**answers), json.loads(RESULTS.read_text())[task]
    assert advice.optimizer == ours and len(advice.beside) == 2
    assert {name: measured[name]["lr"] for name in advice.beside} == advice.beside
    for name in (ours, *advice.beside):
        shown = f"{-measured[name]['score']:.2f}" if task == "GPT" else f"{100 * measured[name][score]:.1f} %"
        assert sum(f"{name} {shown}" in reason for reason in advice.reasons) == 1, (name, shown)


def test_an_unstable_run_is_read_from_its_losses():
    t = np.arange(100.0)
    diverged = fo.recommend(losses=np.exp(t / 10), lr=0.002)
    assert diverged.lr == pytest.approx(0.0002)
    assert "diverged" in diverged.reasons[-1]
    assert diverged.reasons[-1].endswith("First lower the rate, then use momentum or Adam, then a larger batch.")
    bouncing = fo.recommend(losses=2 * np.exp(-t / 5) + 1 + 0.3 * (-1) ** t, lr=0.001)
    assert bouncing.lr == pytest.approx(0.0005)
    assert fo.recommend(losses=2 * np.exp(-t / 50), lr=0.02).lr == 1e-3
    assert fo.recommend(losses=np.exp(t / 10), lr=0.02, unstable=False).lr == 1e-3  # the answer counts


@pytest.mark.parametrize("told", [{"unstable": True}, {"losses": np.exp(np.arange(100.0) / 10)}])
def test_a_rate_of_sgd_is_not_handed_to_adam(told):
    """A tenth of a rate at which gradient descent diverged may be a hundred times too large for Adam."""
    advice = fo.recommend(lr=5.0, **told)
    assert (advice.optimizer, advice.lr) == ("adam", 1e-3)
    assert "(try 0.5" in advice.reasons[-1]
    with pytest.raises(ValueError, match="lr must be > 0"):
        fo.recommend(lr=0.0, **told)


def linear(x, y):
    """Least squares: loss_and_grad and parameters."""

    def loss_and_grad(w, batch):
        features, target = batch
        error = features @ w - target
        return 0.5 * float(np.mean(error**2)), features.T @ error / len(target)

    return loss_and_grad, np.zeros(x.shape[1]), (x, y)


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((600, 20))
    return x, x @ rng.standard_normal(20) + rng.standard_normal(600)


def test_scales_are_measured(data):
    x, y = data
    even = fo.recommend(*linear(x, y), time_to_tune=True)
    assert even.optimizer == "momentum"
    assert even.figures["spread"] < 100
    uneven = fo.recommend(*linear(x * np.geomspace(1e-3, 1e3, 20), y), time_to_tune=True)
    assert uneven.optimizer == "adam"
    assert uneven.figures["spread"] > 1e4
    for advice in (even, uneven):  # the reason rests on the figure
        assert any(f"{advice.figures['spread']:.3g}" in reason for reason in advice.reasons)
    assert fo.recommend(
        *linear(x * np.geomspace(1e-3, 1e3, 20), y), time_to_tune=True, badly_scaled=False
    ).optimizer == ("momentum")


def test_the_spread_is_that_of_the_root_mean_squares():
    gradients = [[np.array([1.0, 2.0]), np.array([30.0])], [np.array([-1.0, 2.0]), np.array([-40.0])]]

    def loss_and_grad(params, batch):
        return 0.0, gradients[int(batch[0]) // 2]

    advice = fo.recommend(loss_and_grad, [np.zeros(2), np.zeros(1)], np.arange(4.0), batch_size=2, batches=2)
    typical = [1.0, 2.0, math.sqrt((30.0**2 + 40.0**2) / 2)]
    arrays = [math.sqrt(2.5), typical[2]]
    high, low = np.exp(np.percentile(np.log(typical), (95, 5)))
    assert advice.figures["spread"] == pytest.approx(max(high / low, arrays[1] / arrays[0]))


def test_one_array_on_another_scale_is_noticed():
    advice = fo.recommend(lambda x, batch: (0.0, [np.ones(500), np.full(1, 1e5)]), [np.zeros(500), np.zeros(1)], None)
    assert advice.figures["spread"] == pytest.approx(1e5)


def test_noise_is_measured_on_whole_batches_and_single_examples():
    sizes = []

    def loss_and_grad(w, batch):
        sizes.append(len(batch))
        return 0.0, np.mean(w - batch, axis=0)

    fo.recommend(loss_and_grad, np.zeros(3), np.random.default_rng(0).standard_normal((50, 3)), batches=5)
    assert sizes[:5] == [32] * 5  # each epoch is one batch of 32 and one of 18
    assert set(sizes[5:]) == {1}


def test_sparsity_is_measured_and_dead_inputs_are_not_sparse(data):
    x, y = data
    rng = np.random.default_rng(1)
    rare = x * (rng.random(x.shape) < 0.02)
    advice = fo.recommend(*linear(rare, y), batch_size=8, time_to_tune=True)
    assert advice.optimizer == "adam"
    assert 0.7 < advice.figures["sparsity"] < 0.95
    dead = x.copy()
    dead[:, :15] = 0.0
    advice = fo.recommend(*linear(dead, y), batch_size=8, time_to_tune=True)
    assert advice.figures["sparsity"] == 0.0
    assert advice.optimizer == "momentum"


@pytest.mark.parametrize("sigma", [1.0, 4.0])
def test_the_noise_scale_is_the_one_that_the_data_have(sigma):
    rng = np.random.default_rng(2)
    mean = np.full(50, 0.5)
    rows = mean + sigma * rng.standard_normal((6400, 50))  # the gradient of example i is -rows[i]

    def loss_and_grad(w, batch):
        return 0.0, np.mean(w - batch, axis=0)

    advice = fo.recommend(loss_and_grad, np.zeros(50), rows, batch_size=32, batches=200)
    exact = sigma**2 * 50 / (mean @ mean)
    assert advice.figures["noise_scale"] == pytest.approx(exact, rel=0.2)
    share = 1 / (1 + advice.figures["noise_scale"] / 32)
    assert any(f"{share:.0%}" in reason for reason in advice.reasons)
    assert advice.batch_size == (8 if sigma == 1.0 else 32)  # 4 would take as long for a step


@pytest.mark.parametrize("size", [8, 100, 150, 200, 299])
def test_the_noise_scale_knows_that_batches_are_drawn_without_replacement(size):
    rows = 0.5 + 1.7 * np.random.default_rng(0).standard_normal((300, 50))
    mean = rows.mean(axis=0)
    exact = rows.var(axis=0, ddof=1).sum() / (mean @ mean)

    def loss_and_grad(w, batch):
        return 0.0, np.mean(w - batch, axis=0)

    found = [
        fo.recommend(loss_and_grad, np.zeros(50), rows, batch_size=size, rng=seed).figures["noise_scale"]
        for seed in range(10)
    ]
    assert np.mean(found) == pytest.approx(exact, rel=0.15)


def test_batches_in_order_are_looked_at_once():
    rows = 0.5 + 1.7 * np.random.default_rng(0).standard_normal((300, 50))
    calls = []

    def loss_and_grad(w, batch):
        calls.append(len(batch))
        return 0.0, np.mean(w - batch, axis=0)

    fo.recommend(loss_and_grad, np.zeros(50), fo.minibatches(rows, 100, shuffle=False), batches=16)
    assert calls[: calls.index(1)] == [100] * 3


@pytest.mark.parametrize("frozen", [np.arange(5), np.zeros(3, np.float32)])
def test_read_only_and_integer_arrays_may_be_in_the_model(frozen, data):
    frozen = frozen.copy()
    frozen.flags.writeable = False
    w = np.zeros(data[0].shape[1])

    def loss_and_grad(params, batch):
        x, y = batch
        error = x @ params["w"] - y
        return 0.5 * float(np.mean(error**2)), {"w": x.T @ error / len(y), "frozen": None}

    params = {"w": w, "frozen": frozen}
    assert fo.recommend(loss_and_grad, params, data).figures["noise_scale"] > 0.0

    def trained(params, batch):
        loss, grads = loss_and_grad(params, batch)
        return loss, grads["w"]

    result = fo.probe_lr(trained, params, data, fo.SGD(w, lr=0.01), steps=10, max_probes=3)
    assert len(result.probes) == 3
    assert not w.any()


def test_noise_without_a_gradient_asks_for_large_batches():
    rows = np.random.default_rng(3).standard_normal((1000, 10))
    rows -= rows.mean(axis=0)

    def loss_and_grad(w, batch):
        return 0.0, np.mean(w - batch, axis=0)

    advice = fo.recommend(loss_and_grad, np.zeros(10), rows, batch_size=8, batches=16)
    assert advice.figures["noise_scale"] > 200
    assert 32 <= advice.batch_size <= 128


def test_a_heavy_example_asks_for_clipping(data):
    x, y = data
    y = y.copy()
    order = np.random.default_rng(0).permutation(600)  # that of minibatches: an example of the last batch
    y[order[5 * 32 + 3]] = 1e4
    advice = fo.recommend(*linear(x, y), batches=6)
    assert advice.figures["example_spread"] > 100
    assert any("clip with max_norm" in reason for reason in advice.reasons)
    assert not any("clip" in reason for reason in fo.recommend(*linear(*data), batches=6).reasons)


def test_nothing_is_left_behind(data):
    dropout = np.random.default_rng(7)
    batches = fo.minibatches(data, 32, rng=1)
    batches.next_batch()

    def loss_and_grad(w, batch):
        features, target = batch
        features = features * (dropout.random(20) > 0.5)
        w += 1.0  # badly behaved
        return 0.0, features.T @ (features @ np.nan_to_num(w) - target)

    w = np.full(20, np.nan)
    w[0] = 1.0
    before = (w.tobytes(), repr(batches.state_dict()), repr(dropout.bit_generator.state))
    fo.recommend(loss_and_grad, w, batches)
    assert (w.tobytes(), repr(batches.state_dict()), repr(dropout.bit_generator.state)) == before


def test_without_minibatches_only_scales_are_measured():
    advice = fo.recommend(lambda x, batch: (0.0, np.array([1.0, 10.0])), np.zeros(2), None, time_to_tune=True)
    assert set(advice.figures) == {"spread"}
    assert advice.optimizer == "momentum"


@pytest.mark.parametrize("examples", [None, np.arange(100.0)])
@pytest.mark.parametrize(("value", "text"), [(0.0, "all gradients are zero"), (np.nan, "not finite"), (None, "zero")])
def test_gradients_that_tell_nothing_give_no_advice(examples, value, text):
    gradient = None if value is None else np.full(2, value)
    with pytest.raises(ValueError, match=text):
        fo.recommend(lambda x, batch: (0.0, gradient), np.zeros(2), examples)


def test_a_gradient_of_none_counts_as_zeros(data):
    calls = iter(range(10**6))

    def measure(missing):
        def loss_and_grad(params, batch):
            features, target = batch
            error = features @ params["a"] - target
            sometimes = np.ones((2, 2)) if len(target) == 32 and next(calls) % 2 else missing
            return 0.0, {"a": features.T @ error, "b": sometimes, "frozen": None if missing is None else np.zeros(5)}

        params = {"a": np.zeros(data[0].shape[1]), "b": np.zeros((2, 2)), "frozen": np.zeros(5)}
        return fo.recommend(loss_and_grad, params, data)

    assert measure(None) == measure(np.zeros((2, 2)))


@pytest.mark.parametrize("drop_last", [False, True])
def test_the_same_batch_twice_tells_nothing_of_noise(drop_last):
    rows = np.random.default_rng(0).standard_normal((40, 3))
    batches = fo.minibatches(rows, 32, shuffle=False, drop_last=drop_last)
    advice = fo.recommend(lambda w, b: (0.0, np.mean(w - b, axis=0)), np.zeros(3), batches)
    assert set(advice.figures) == {"spread", "example_spread"}
    assert advice.batch_size is None


def test_batches_in_order_are_all_looked_at_from_the_middle_on():
    calls = []

    def loss_and_grad(w, batch):
        calls.append(batch[0])
        return 0.0, np.mean(w - batch[:, None], axis=0)

    batches = fo.minibatches(np.arange(6.0), 2, shuffle=False)
    batches.next_batch(), batches.next_batch()
    fo.recommend(loss_and_grad, np.zeros(1), batches)
    assert calls[:3] == [4.0, 0.0, 2.0]


def test_no_batch_is_larger_than_the_data():
    rows = np.random.default_rng(3).standard_normal((40, 10))
    rows -= rows.mean(axis=0)
    advice = fo.recommend(lambda w, b: (0.0, np.mean(w - b, axis=0)), np.zeros(10), rows, batch_size=8)
    assert advice.figures["noise_scale"] > 64
    assert advice.batch_size == 40
    assert any("up to about 40," in reason for reason in advice.reasons)


@pytest.mark.parametrize("scale", [1e-160, 1.0, 1e160])
def test_figures_do_not_depend_on_the_size_of_gradients(scale, data):
    """Squares of the small ones are zero, and of the large ones infinite."""
    loss_and_grad, w, data = linear(*data)

    def scaled(w, batch):
        loss, gradient = loss_and_grad(w, batch)
        return loss, scale * gradient

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = fo.recommend(scaled, w, data).figures
    assert found == pytest.approx(fo.recommend(loss_and_grad, w, data).figures)


def test_spreads_beyond_all_numbers_are_numbers():
    """Between two elements, too, where percentiles are read between the lines."""
    gradient = np.array([1e-200, 1e200])
    for w, gradients in ((np.zeros(2), gradient), ([np.zeros(1), np.zeros(1)], [gradient[:1], gradient[1:]])):
        advice = fo.recommend(lambda w, batch, gradients=gradients: (1.0, gradients), w, None, time_to_tune=True)
        assert 1e300 < advice.figures["spread"] < math.inf
        assert advice.optimizer == "adam"
        assert "inf" not in str(advice) and "nan" not in str(advice)


@pytest.mark.parametrize("batch_size", [None, 1, 7])
def test_one_example_tells_nothing_of_noise(batch_size):
    loss_and_grad, w, data = linear(np.ones((1, 3)), np.ones(1))
    assert fo.recommend(loss_and_grad, w, data, batch_size=batch_size).figures == {"spread": 1.0}


def test_equal_gradients_have_no_noise():
    found = []
    for seed in range(5):
        gradient = np.random.default_rng(seed).standard_normal(3)
        advice = fo.recommend(lambda w, b, g=gradient: (0.0, g), np.zeros(3), np.arange(90.0), batch_size=7)
        found.append(advice.figures["noise_scale"])
    assert min(found) == 0.0 and max(found) < 1e-9


@pytest.mark.parametrize(
    ("gradient", "error", "text"),
    [
        (np.ones(3), ValueError, r"gradient of parameter 'w': expected shape \(2,\), got \(3,\)"),
        (np.ones(2) + 1j, TypeError, "expected real numbers, got ndarray \\(dtype complex128"),
        (np.ma.masked_array(np.ones(2), [True, False]), TypeError, "expected real numbers, got MaskedArray"),
    ],
)
@pytest.mark.parametrize("data", [None, np.arange(100.0)])
def test_gradients_that_are_none_of_the_parameter_are_refused(data, gradient, error, text):
    with pytest.raises(error, match=text):
        fo.recommend(lambda p, batch: (0.0, {"w": gradient}), {"w": np.zeros(2)}, data)


def test_groups_and_rows_are_measured(data):
    table, rows = np.zeros((20, 1)), np.random.default_rng(0).integers(0, 20, (64, 1))

    def measured(kind, given):
        def loss_and_grad(params, batch):
            indices = batch[:, 0]
            gradient = fo.Rows(indices, 1.0 + np.cos(indices)[:, None])
            return 0.0, {"table": gradient if kind else gradient.to_dense(20), "frozen": "nothing"}

        return fo.recommend(loss_and_grad, given, rows, batch_size=8)

    params = fo.groups({"table": table, "frozen": np.zeros(2)}, {"frozen": None})
    assert measured(True, params) == measured(False, params)
    assert 0.4 < measured(True, params).figures["sparsity"] < 0.9


class Pair(NamedTuple):
    x: np.ndarray
    y: np.ndarray


def test_examples_have_the_structure_of_the_data(data):
    loss_and_grad, w, _ = linear(*data)

    def by_name(w, batch):
        return loss_and_grad(w, (batch.x, batch.y))

    assert fo.recommend(by_name, w, Pair(*data)) == fo.recommend(loss_and_grad, w, data)


def test_examples_are_taken_by_position(data):
    pandas = pytest.importorskip("pandas")
    loss_and_grad, w, (x, y) = linear(*data)
    labelled = pandas.Series(y, index=np.linspace(0.0, 1.0, len(y)))
    by_array = lambda w, batch: loss_and_grad(w, (batch[0], np.asarray(batch[1])))  # noqa: E731
    assert fo.recommend(by_array, w, (x, labelled)) == fo.recommend(loss_and_grad, w, (x, y))


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"sparse": "yes"}, TypeError, "sparse must be True or False"),
        ({"time_to_tune": 1}, TypeError, "time_to_tune must be"),
        ({"lr": -1.0}, ValueError, "lr must be >= 0"),
        ({"batches": 1}, ValueError, "batches must be at least 2"),
        ({"batches": 2.5}, TypeError, "batches must be an int"),
        ({"params": np.zeros(2)}, TypeError, "all of loss_and_grad, params and data"),
    ],
)
def test_bad_input_is_refused(options, error, text):
    with pytest.raises(error, match=re.escape(text)):
        fo.recommend(**options)
