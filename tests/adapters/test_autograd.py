"""HIPS autograd's optimizers: same trajectories, snapshots intact."""

from __future__ import annotations

import numpy as np
import pytest

autograd = pytest.importorskip("autograd", reason="autograd is not installed: its adapter goes untested")

import autograd.numpy as anp  # noqa: E402
from autograd import grad  # noqa: E402
from autograd.misc import optimizers as own  # noqa: E402

from fastoptim.adapters import autograd as adapter  # noqa: E402

RNG = np.random.default_rng(0)
INPUTS, TARGETS = RNG.normal(size=(40, 3)), RNG.normal(size=(40, 1))


def network_loss(params, i):
    """A small tanh network on minibatches, in the manner of autograd's examples."""
    batch = slice(8 * (i % 5), 8 * (i % 5) + 8)
    x = INPUTS[batch]
    for w, b in params[:-1]:
        x = anp.tanh(anp.dot(x, w) + b)
    w, b = params[-1]
    return anp.mean((anp.dot(x, w) + b - TARGETS[batch]) ** 2)


def rosenbrock(x, i):
    return 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2


def dictionary(p, i):
    return anp.sum((p["a"] - 3) ** 2) + anp.sum(anp.sin(p["b"]) * p["b"] ** 2) + p["c"] ** 2


PROBLEMS = {
    "network": (network_loss, [(RNG.normal(size=s), RNG.normal(size=s[1])) for s in ((3, 6), (6, 5), (5, 1))]),
    "rosenbrock": (rosenbrock, np.array([-1.2, 1.0])),
    "dictionary": (dictionary, {"a": np.ones((3, 2)), "b": np.linspace(-2, 2, 9), "c": 1.5}),
}


def flat(x):
    return autograd.misc.flatten(x)[0]


def trajectory(module, name, loss, start, steps, **options):
    """Everything that callbacks were handed, kept as it was handed over, with copies made at that time."""
    kept, copies = [], []

    def callback(x, i, g):
        assert i == len(kept)
        kept.append((x, g))
        copies.append((flat(x).copy(), flat(g).copy()))

    end = getattr(module, name)(grad(loss), start, callback, steps, **options)
    return [*((flat(x), flat(g)) for x, g in kept), (flat(end), np.zeros(0))], copies


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("name, options", [("adam", {"step_size": 0.01}), ("sgd", {"step_size": 0.001, "mass": 0.8})])
def test_trajectories(problem, name, options):
    loss, start = PROBLEMS[problem]
    expected, _ = trajectory(own, name, loss, start, 300, **options)
    got, copies = trajectory(adapter, name, loss, start, 300, **options)
    assert len(got) == 301
    difference = max(np.abs(a[0] - b[0]).max() for a, b in zip(got, expected, strict=True))
    assert difference <= (1e-12 if name == "adam" else 0.0)
    assert np.abs(got[0][0] - got[-1][0]).max() > 0.01
    for (x, g), (x_then, g_then) in zip(got, copies, strict=False):
        assert (x == x_then).all() and (g == g_then).all()


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_a_gradient_that_is_its_argument(name):
    """The gradient of |x|^2 / 2 is the very array that was handed over."""
    seen = []

    def identity(x, i):
        seen.append(x)
        return x

    start = np.array([1.0, -2.0])
    expected = getattr(own, name)(lambda x, i: x, start, num_iters=50)
    got = getattr(adapter, name)(identity, start, num_iters=50)
    np.testing.assert_allclose(got, expected, rtol=1e-13)
    assert start.tolist() == [1.0, -2.0] and len({x.tobytes() for x in seen}) == 50


@pytest.mark.parametrize("kind", ["start", "always", "half"])
@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_float32_becomes_float64_as_in_autograd(name, kind):
    """A start in float32, whose first gradient is, too; gradients that are never more than float32 or float16."""
    start = np.array([1.0, -2.0, 0.3], np.float32)
    dtype = {"start": start.dtype, "always": np.float32, "half": np.float16}[kind]
    of = (lambda x, i: 2.1 * x) if kind == "start" else (lambda x, i: (2.1 * x).astype(dtype))
    assert of(start, 0).dtype == dtype
    expected = getattr(own, name)(of, start, num_iters=20)
    got = getattr(adapter, name)(of, start, num_iters=20)
    assert got.dtype == expected.dtype == np.float64
    assert np.abs(got - expected).max() <= (1e-12 if name == "adam" else 0.0)
    assert start.tolist() == np.array([1.0, -2.0, 0.3], np.float32).tolist()


def test_no_steps_and_complex_parameters():
    assert adapter.adam(lambda x, i: x, np.ones(2), num_iters=0).tolist() == [1, 1]
    with pytest.raises(TypeError, match="expected real parameters"):
        adapter.adam(lambda x, i: x, np.ones(2) * 1j)
    assert adapter.rmsprop is own.rmsprop


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_what_has_no_real_answer_is_refused(name):
    """autograd's own would go on with complex numbers, with a step size for each parameter, or with NaN."""
    optimize = getattr(adapter, name)
    start = np.ones(2)
    with pytest.raises(TypeError, match="expected real numbers"):
        optimize(lambda x, i: x + 1j, start, num_iters=1)
    for step_size in (np.array([0.1, 0.2]), "0.1", None):
        with pytest.raises(TypeError, match="must be a real number"):
            optimize(lambda x, i: x, start, num_iters=1, step_size=step_size)
    with pytest.raises(ValueError, match="must be finite"):
        optimize(lambda x, i: x, start, num_iters=1, step_size=float("nan"))
    assert (start == 1).all()
