"""The examples do what they say: real training, exact equality, gradients that are right."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.fixture
def example(monkeypatch):
    """Import an example by its name, as `python examples/name.py` would."""
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def load(name):
        for module in ("_data", name):
            sys.modules.pop(module, None)
        return importlib.import_module(name)

    yield load
    for file in EXAMPLES.glob("*.py"):
        sys.modules.pop(file.stem, None)


SMALL_RUN = ["--data", "sklearn", "--hidden", "128", "--epochs", "5", "--backends", "numpy", "numpy"]


def test_digits_learns_and_writes_the_picture(example, tmp_path, capsys):
    pytest.importorskip("sklearn", reason="the small digits come with scikit-learn")
    status = example("digits").main([*SMALL_RUN, "--out", str(tmp_path)])
    output = capsys.readouterr().out
    assert status == 0
    assert output.count("bit-identical") == 2
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    accuracies = [
        float(line.split()[2].rstrip("%")) for line in output.splitlines() if line.strip().startswith("numpy ")
    ]
    assert len(accuracies) == 4
    assert min(accuracies) > 75


def test_digits_fails_where_one_bit_differs(example, tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn", reason="the small digits come with scikit-learn")
    digits = example("digits")
    train = digits.train
    runs = []

    def flip_one_bit(*arguments):
        pair = train(*arguments)
        runs.append(pair)
        if len(runs) == 2:
            pair[1].weights["b1"].view(np.uint32)[3] ^= 1
        return pair

    monkeypatch.setattr(digits, "train", flip_one_bit)
    assert digits.main([*SMALL_RUN, "--epochs", "1", "--out", str(tmp_path)]) == 1
    output = capsys.readouterr().out
    assert output.count("bit-identical") == 1
    assert "DIFFERENT in 1 elements" in output


class LoadedClock:
    """A clock on which forward and backward take 10 ms, updates 5 and 1 ms, and all six times as long half of the time.

    The load comes and goes as somebody else's program would: it knows nothing of the two runs.
    """

    def __init__(self, loaded):
        self.now, self.calls, self.loaded = 0.0, 0, loaded

    def spend(self, seconds):
        self.calls += 1
        self.now += seconds * (6 if self.loaded(self.calls) else 1)

    def perf_counter(self):
        return self.now


@pytest.mark.parametrize("loaded", [lambda n: n < 440, lambda n: n >= 440, lambda n: n % 300 < 150, lambda n: False])
def test_digits_claims_no_more_than_its_shares_allow(example, tmp_path, monkeypatch, capsys, loaded):
    pytest.importorskip("sklearn", reason="the small digits come with scikit-learn")
    digits = example("digits")
    clock = LoadedClock(loaded)
    made = []

    class Optimizer:
        """The first that is made for a rule stands for NumPy, the second for C."""

        def __init__(self):
            made.append(self)
            self.seconds = 0.005 if len(made) % 2 else 0.001

        def step(self, grads):
            clock.spend(self.seconds)

    monkeypatch.setattr(digits, "time", clock)
    monkeypatch.setattr(digits, "OPTIMIZERS", {"adam": lambda params, backend: Optimizer()})
    monkeypatch.setattr(digits.Network, "loss_and_gradients", lambda *_: clock.spend(0.010) or 1.0)
    assert digits.main([*SMALL_RUN, "--out", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    claims = re.search(r"updates ([0-9.]+) times .*training ([0-9.]+) times", output)
    shares = [float(line.split()[-1].rstrip("%")) for line in output.splitlines() if line.startswith("  numpy ")]
    assert float(claims[2]) <= 1 / (1 - shares[0] / 100) + 0.01
    assert float(claims[1]) == pytest.approx(5.0, rel=0.05)
    assert float(claims[2]) == pytest.approx(15 / 11, rel=0.05)


def test_digits_network_gradient(example):
    network = example("digits").Network([5, 7, 6, 3])
    network.initialise(seed=3)
    rng = np.random.default_rng(0)
    for store in (network.params, network.grads):
        for name in store:
            store[name] = store[name].astype(np.float64)
    for name in ("b0", "b1", "b2"):
        network.params[name] += 0.1 * rng.standard_normal(network.params[name].shape)
    x, labels = rng.standard_normal((8, 5)), rng.integers(0, 3, 8)
    network.loss_and_gradients(x, labels)
    exact = {name: g.copy() for name, g in network.grads.items()}
    worst = _worst_gradient_error(network.params, exact, lambda: network.loss_and_gradients(x, labels))
    assert worst < 1e-6


def _worst_gradient_error(params, grads, loss, samples=6, h=1e-6):
    """Largest relative difference between gradients and central differences, at some elements of every array."""
    rng = np.random.default_rng(1)
    worst = 0.0
    for name, p in params.items():
        flat = p.reshape(-1)
        for i in rng.choice(p.size, min(samples, p.size), replace=False):
            old = flat[i]
            flat[i] = old + h
            above = loss()
            flat[i] = old - h
            below = loss()
            flat[i] = old
            numeric, exact = (above - below) / (2 * h), float(grads[name].reshape(-1)[i])
            worst = max(worst, abs(numeric - exact) / max(abs(numeric), abs(exact), 1e-3))
    return worst


def test_gpt_gradient(example):
    gpt = example("numpy_gpt")
    shape = gpt.Shape(symbols=11, context=6, width=8, layers=2, heads=2)
    params = gpt.initial_parameters(shape, dtype=np.float64)
    rng = np.random.default_rng(0)
    for p in params.values():  # away from zero, where mistakes in attention and normalisation hide
        p += 0.3 * rng.standard_normal(p.shape)
    inputs, targets = rng.integers(0, 11, (3, 5)), rng.integers(0, 11, (3, 5))
    _, grads = gpt.loss_and_gradients(params, shape, inputs, targets)
    assert set(grads) == set(params)
    assert all(grads[name].shape == p.shape for name, p in params.items())
    worst = _worst_gradient_error(params, grads, lambda: gpt.loss_and_gradients(params, shape, inputs, targets)[0])
    assert worst < 1e-5


def test_gpt_does_not_see_the_future(example):
    gpt = example("numpy_gpt")
    shape = gpt.Shape(symbols=7, context=8, width=8, layers=1, heads=2)
    layer = gpt.attention(texts=1, heads=2)
    x = np.random.default_rng(0).standard_normal((8, 3 * shape.width))
    first, _ = layer(x)
    x[5:] += 1
    second, _ = layer(x)
    assert np.array_equal(first[:5], second[:5])
    assert not np.array_equal(first[5:], second[5:])


def test_gpt_has_ten_million_parameters(example):
    gpt = example("numpy_gpt")
    assert sum(p.size for p in gpt.initial_parameters(gpt.Shape(symbols=90)).values()) >= 10_000_000


SMALL_GPT = ["--steps", "12", "--width", "24", "--layers", "1", "--context", "16"]


def test_gpt_before_and_after_agree(example, capsys):
    status = example("numpy_gpt").main(SMALL_GPT)
    output = capsys.readouterr().out
    assert status == 0
    assert "the same loss curve" in output
    assert "times faster" in output


def test_gpt_fails_where_the_curves_part(example, monkeypatch, capsys):
    gpt = example("numpy_gpt")
    monkeypatch.setattr(gpt, "NumpyAdam", lambda params, lr: gpt.Adam(params, lr=2 * lr))
    monkeypatch.setattr(gpt, "TOLERANCE", 1e-4)
    assert gpt.main(SMALL_GPT) == 1
    assert "DIFFERENT" in capsys.readouterr().out


def test_library_text_is_real_python_and_always_the_same(example):
    data = example("_data")
    text = data.library_text(50_000)
    assert len(text) == 50_000
    assert text.count("def ") > 50
    assert all(c == "\n" or " " <= c <= "~" for c in text)
    assert text == data.library_text(50_000)


def test_digits_are_split_without_overlap(example):
    pytest.importorskip("sklearn", reason="the small digits come with scikit-learn")
    data = example("_data")
    x, labels, x_test, labels_test, name = data.digits("sklearn")
    assert "scikit-learn" in name
    assert len(x) == len(labels) == 1438
    assert len(x_test) == len(labels_test) == 359
    assert x.dtype == np.float32
    assert 0 <= x.min() < x.max() <= 1
    again = data.digits("sklearn")
    assert np.array_equal(again[0], x)
    with pytest.raises(ValueError, match="source must be"):
        data.digits("cifar")


def test_word_vectors_have_right_gradients_and_learn(example, capsys):
    module = example("word_vectors")
    rng = np.random.default_rng(0)
    params = {name: rng.standard_normal((9, 4)) for name in ("word", "context")}
    word, context, negative = rng.integers(0, 9, 6), rng.integers(0, 9, 6), rng.integers(0, 9, (6, 3))
    _, grads = module.gradients(params, word, context, negative)
    for name, p in params.items():
        found = grads[name].to_dense(9)
        for i, j in ((int(word[0]), 0), (int(context[3]), 2), (int(negative[1, 1]), 3)):
            value, losses = p[i, j], []
            for p[i, j] in (value + 1e-4, value - 1e-4):
                losses.append(module.gradients(params, word, context, negative)[0])
            p[i, j] = value
            assert found[i, j] == pytest.approx((losses[0] - losses[1]) / 2e-4, abs=2e-6)
    found = module.main(["--steps", "150", "--least", "20", "--width", "16", "--compare-every", "40"])
    assert np.mean(found["losses"][-20:]) < np.mean(found["losses"][:20]) - 0.3
    assert "times as long" in capsys.readouterr().out


# Code that has an optimizer of its own, beside its own lines. Both round at other places: (1 - b) * g * g is not
# (1 - b) * (g * g). Over these runs that stays below 1e-14; a convention mistaken for another (eps) is above 1e-9.
OWN_LINES = {"rtol": 1e-12, "atol": 1e-12}


def test_circuit_finds_the_ground_state_as_the_lines_by_hand(example):
    module = example("circuit")
    angles = np.array([0.3, -1.2, 0.7, 2.0])
    numeric = [(module.energy(angles + h) - module.energy(angles - h)) / 2e-6 for h in 1e-6 * np.eye(4)]
    np.testing.assert_allclose(module.shifts(angles), numeric, atol=1e-8)
    found = module.main()
    np.testing.assert_allclose(found["ours"], found["by hand"], **OWN_LINES)
    assert 0 <= found["error"] + 1e-12 < 1e-6


def test_online_words_follow_the_loop_over_a_dict(example):
    results = example("online_words").main(1200)
    for ours, expected, accuracy in results.values():
        assert list(ours) == list(expected) and len(ours) > 500
        np.testing.assert_allclose(list(ours.values()), list(expected.values()), **OWN_LINES)
        assert accuracy > 0.7


def test_scalar_values_have_the_bits_of_the_loop(example):
    module = example("scalar_values")
    a, b = module.Value(0.3), module.Value(-1.7)
    ((a * b + a).tanh() * a).backward()
    inner = 0.3 * -1.7 + 0.3
    slope = 1 - np.tanh(inner) ** 2
    np.testing.assert_allclose([a.grad, b.grad], [np.tanh(inner) + 0.3 * slope * -0.7, 0.3 * slope * 0.3])
    weights, expected, right = module.main(80)
    assert weights == expected and len(weights) == 25 and right >= 28


def test_evolution_balances_the_pole_and_keeps_its_points(example):
    ours, expected, ends = example("evolution").main(30)
    np.testing.assert_allclose(ours, expected, **OWN_LINES)
    assert len(ours) == 31 and not ours[0].any() and ends[0] < 50 < 150 < ends[1]


def test_variational_fit_comes_near_the_exact_posterior(example):
    found = example("variational").main(1500)
    np.testing.assert_allclose(found["ours"], found["by hand"], **OWN_LINES)
    np.testing.assert_allclose(found["ours"], found["exact"], atol=0.15)
