"""scikit-learn under the adapter: the same bits, its own optimizer tests, pickles without this package."""

from __future__ import annotations

import copy
import doctest
import itertools
import os
import pickle
import signal
import subprocess
import sys
import warnings

import numpy as np
import pytest

from tests.support import PROOFS
from tests.support.interrupts import interrupted_after

sklearn = pytest.importorskip("sklearn", reason="scikit-learn is not installed: its adapter goes untested")

from sklearn.base import clone  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402
from sklearn.exceptions import ConvergenceWarning  # noqa: E402
from sklearn.neural_network import MLPClassifier, MLPRegressor  # noqa: E402
from sklearn.neural_network._stochastic_optimizers import AdamOptimizer, SGDOptimizer  # noqa: E402

from fastoptim.adapters import sklearn as adapter  # noqa: E402

DIGITS = load_digits()
X, Y = DIGITS.data[:300] / 16, DIGITS.target[:300]

SOLVERS = [
    ("sgd", {"momentum": 0.0, "nesterovs_momentum": False}),
    ("sgd", {"nesterovs_momentum": False}),
    ("sgd", {}),
    ("adam", {}),
]


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


@pytest.fixture
def updates(monkeypatch):
    """How many updates were fused, and how many fell to scikit-learn's own code."""
    counts = {"fused": 0, "own": 0}

    def count(where, name, key):
        function = getattr(where, name)

        def counted(*args, **kwargs):
            counts[key] += 1
            return function(*args, **kwargs)

        monkeypatch.setattr(where, name, counted)

    count(adapter.RuleUpdate, "__call__", "fused")
    count(adapter, "_adam_rounded_once", "fused")
    count(adapter, "_own_sgd_update", "own")
    count(adapter, "_own_adam_update", "own")
    return counts


def network(cls=MLPClassifier, **options):
    return cls(**{"hidden_layer_sizes": (24, 16), "max_iter": 6, "batch_size": 32, "random_state": 0} | options)


def results(estimator):
    state = estimator._optimizer
    slots = [x for name in ("velocities", "ms", "vs") for x in getattr(state, name, [])]
    return [x.tobytes() for x in (*estimator.coefs_, *estimator.intercepts_, *slots)], estimator.loss_curve_


def both(make, fit):
    """The outcome of `fit` for scikit-learn's estimator, for the accelerated one, and for this module's."""
    plain = fit(make(MLPClassifier))
    with adapter.accelerate():
        fused = fit(make(MLPClassifier))
    return plain, fused, fit(make(adapter.MLPClassifier))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("schedule", ["constant", "invscaling", "adaptive"])
@pytest.mark.parametrize("solver, options", SOLVERS)
def test_bits_of_scikit_learn(solver, options, schedule, dtype, updates):
    options = {"solver": solver, "learning_rate": schedule, "learning_rate_init": 0.01, **options}
    if schedule == "adaptive":
        options |= {"tol": 10.0, "n_iter_no_change": 1}  # the rate falls at once
    plain, *fused = both(lambda cls: network(cls, **options), lambda e: e.fit(X.astype(dtype), Y))
    for estimator in fused:
        assert results(estimator) == results(plain)
        assert estimator._optimizer.learning_rate == plain._optimizer.learning_rate
    assert plain.coefs_[0].dtype == dtype
    assert updates["fused"] > 2 * 10 and updates["own"] == 0


def test_regressor_and_fortran_ordered_weights(updates):
    target = X[:, :2] * 3

    def fit(estimator):
        estimator.partial_fit(X, target)
        estimator.coefs_ = [np.asfortranarray(w) for w in estimator.coefs_]
        estimator.coefs_[0] = np.repeat(estimator.coefs_[0], 2, axis=1)[:, ::2]
        return estimator.partial_fit(X, target).partial_fit(X, target)

    plain = fit(network(MLPRegressor))
    fused = fit(network(adapter.MLPRegressor))
    assert not fused.coefs_[0].flags.c_contiguous and not fused.coefs_[0].flags.f_contiguous
    assert results(fused) == results(plain)
    assert updates["fused"] > 0 and updates["own"] == 0


@pytest.mark.parametrize("solver", ["sgd", "adam"])
def test_partial_fit_and_warm_start_keep_or_rebuild_the_optimizer(solver):
    def fit(estimator):
        optimizers = []
        for _ in range(3):
            estimator.partial_fit(X, Y, classes=range(10))
            optimizers.append(estimator._optimizer)
        assert optimizers[0] is optimizers[2]
        estimator.set_params(warm_start=True).fit(X, Y)
        assert estimator._optimizer is not optimizers[0]
        return estimator

    plain, *fused = both(lambda cls: network(cls, solver=solver), fit)
    for estimator in fused:
        assert results(estimator) == results(plain)


@pytest.mark.parametrize("solver", ["sgd", "adam"])
def test_switching_in_the_middle_changes_nothing(solver):
    plain, switched = network(solver=solver), network(solver=solver)
    for turn in range(6):
        plain.partial_fit(X, Y, classes=range(10))
        if turn % 2:
            with adapter.accelerate():
                switched.partial_fit(X, Y, classes=range(10))
        else:
            switched.partial_fit(X, Y, classes=range(10))
    assert results(switched) == results(plain)


@pytest.mark.parametrize("solver", ["sgd", "adam"])
def test_replaced_attributes_are_used_and_left_alone(solver):
    slots = ("velocities",) if solver == "sgd" else ("ms", "vs")

    def outcome(estimator):
        estimator.partial_fit(X, Y, classes=range(10))
        given = {slot: [np.full_like(x, 0.25) for x in getattr(estimator._optimizer, slot)] for slot in slots}
        for slot, arrays in given.items():
            setattr(estimator._optimizer, slot, arrays)
        estimator._optimizer.t = 41
        estimator._optimizer.learning_rate_init = estimator._optimizer.learning_rate = 0.05
        estimator.partial_fit(X, Y)
        return estimator, given

    plain, _ = outcome(network(solver=solver))
    fused, given = outcome(network(adapter.MLPClassifier, solver=solver))
    assert results(fused) == results(plain)
    assert all((x == 0.25).all() for arrays in given.values() for x in arrays)


def test_what_is_not_taken_goes_to_scikit_learn(updates):
    """float64 sample weights turn intercept gradients into float64, NumPy's scalars turn states into float64."""
    single = X.astype(np.float32)
    weights = np.linspace(0.5, 2, len(X))
    plain, *fused = both(network, lambda e: e.fit(single, Y, sample_weight=weights))
    for estimator in fused:
        assert results(estimator) == results(plain)
    assert updates["own"] > 0
    for options in ({"solver": "sgd", "momentum": np.float64(0.9)}, {"beta_1": np.float64(0.9)}):
        plain, *fused = both(lambda cls, o=options: network(cls, **o), lambda e: e.fit(single, Y))
        for estimator in fused:
            assert results(estimator) == results(plain)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("cls", [SGDOptimizer, AdamOptimizer])
def test_gradients_of_other_shapes_are_left_to_scikit_learn(cls, dtype):
    """As many elements in another shape, and fewer, which scikit-learn broadcasts or refuses."""

    def outcome(g):
        params = [np.ones(2, dtype), np.arange(6, dtype=dtype).reshape(2, 3)]
        optimizer = cls(params, 0.1)
        try:
            optimizer.update_params(params, [np.ones(2, dtype), g])
        except ValueError:
            return "refused", [p.tolist() for p in params]
        return [p.tolist() for p in params]

    for shape in ((3, 2), (1, 3), (3,)):
        g = np.arange(np.prod(shape), dtype=dtype).reshape(shape)
        expected = outcome(g)
        with adapter.accelerate():
            assert outcome(g) == expected
        assert (expected[0] == "refused") == (shape == (3, 2))


def test_fast_float32_stays_close(updates):
    """All of Adam in float32: the first step is within a few units in the last place, the accuracy stays."""
    single = X.astype(np.float32)
    plain, fused = network(batch_size=len(X)), network(batch_size=len(X))
    plain.partial_fit(single, Y, classes=range(10))
    with adapter.accelerate(float32="fast"):
        fused.partial_fit(single, Y, classes=range(10))
    for a, b in zip(plain.coefs_, fused.coefs_, strict=True):
        bound = np.spacing(np.maximum(np.abs(a), np.abs(b))) + 2 * np.spacing(np.float32(0.001))
        assert (np.abs(a - b) <= bound).all() and (a != b).any()
    assert [m.tobytes() for m in plain._optimizer.ms] == [m.tobytes() for m in fused._optimizer.ms]
    assert [v.tobytes() for v in plain._optimizer.vs] == [v.tobytes() for v in fused._optimizer.vs]
    plain = network(max_iter=30).fit(single, Y)
    with adapter.accelerate(float32="fast"):
        fused = network(max_iter=30).fit(single, Y)
    assert abs(plain.score(single, Y) - fused.score(single, Y)) < 0.01
    np.testing.assert_allclose(plain.loss_curve_, fused.loss_curve_, rtol=1e-3)
    assert updates["fused"] > 0 and updates["own"] == 0


def test_blocks_nest_and_end():
    own = SGDOptimizer.update_params, AdamOptimizer.update_params
    with adapter.accelerate():
        with adapter.accelerate("fast"):
            assert adapter._mode.float32 == "fast"
        assert adapter._mode.float32 == "exact"
        assert AdamOptimizer.update_params is not own[1]
    assert (SGDOptimizer.update_params, AdamOptimizer.update_params) == own
    with pytest.raises(KeyError), adapter.accelerate():
        raise KeyError
    assert (SGDOptimizer.update_params, AdamOptimizer.update_params) == own
    with pytest.raises(ValueError, match="float32 must be 'exact' or 'fast'"), adapter.accelerate("exactly"):
        pass


@pytest.mark.parametrize("order", [*itertools.permutations(range(3))])
def test_blocks_may_end_in_any_order(order):
    """As those of several threads do."""
    own = SGDOptimizer.update_params, AdamOptimizer.update_params
    modes = ("fast", "exact", "fast")
    blocks = [adapter.accelerate(mode) for mode in modes]
    for block in blocks:
        block.__enter__()
    left = dict(enumerate(modes))
    for i in order:
        assert AdamOptimizer.update_params is not own[1]
        blocks[i].__exit__(None, None, None)
        del left[i]
        assert adapter._mode.float32 == (left[max(left)] if left else "exact")
    assert (SGDOptimizer.update_params, AdamOptimizer.update_params) == own


@pytest.mark.parametrize(
    ("dtype", "owner", "name"), [(np.float32, adapter, "_adam_rounded_once"), (float, adapter.RuleUpdate, "__call__")]
)
def test_ctrl_c_waits_for_the_whole_step(monkeypatch, dtype, owner, name):
    inner = getattr(owner, name)

    def pressed(*arguments):
        inner(*arguments)
        signal.raise_signal(signal.SIGINT)

    params = [np.zeros(3, dtype), np.zeros(2, dtype)]
    optimizer = AdamOptimizer(params)
    monkeypatch.setattr(owner, name, pressed)
    with adapter.accelerate(), pytest.raises(KeyboardInterrupt):
        optimizer.update_params(params, [np.ones_like(p) for p in params])
    assert optimizer.t == 1 and all(np.all(p < 0) for p in params)


def test_no_signal_leaves_a_block_open():
    own = SGDOptimizer.update_params, AdamOptimizer.update_params

    def blocks():
        for _ in range(100):
            with adapter.accelerate("fast"):
                assert adapter._mode.float32 == "fast"

    cut = 0
    for i in range(500):
        cut += interrupted_after(2e-7 * i, blocks) is not None
        assert (SGDOptimizer.update_params, AdamOptimizer.update_params) == own
        assert adapter._mode.blocks == []
    assert cut > 200


def test_estimators_are_cloned_copied_and_pickled():
    fused = network(adapter.MLPClassifier).partial_fit(X, Y, classes=range(10))
    assert type(clone(fused)) is adapter.MLPClassifier and clone(fused).get_params() == fused.get_params()
    plain = network().partial_fit(X, Y, classes=range(10)).partial_fit(X, Y)
    for again in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        assert results(again.partial_fit(X, Y)) == results(plain)
    assert not hasattr(network(adapter.MLPClassifier), "_optimizer")


def test_models_fitted_in_a_block_load_without_this_package(tmp_path):
    with adapter.accelerate():
        fused = network().partial_fit(X, Y, classes=range(10))
    path = tmp_path / "model.pickle"
    path.write_bytes(pickle.dumps((fused, X[:5])))
    code = (
        "import pickle, sys; sys.modules['fastoptim'] = None\n"
        f"model, x = pickle.load(open({str(path)!r}, 'rb'))\n"
        "print(model.partial_fit(x, [0, 1, 2, 3, 4]).n_iter_)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "1", done.stderr


def test_some_of_scikit_learns_own_tests():
    """The whole suite is run by tests/proofs/sklearn_suite.py; these reach into the optimizers."""
    script = PROOFS / "sklearn_suite.py"
    names = "test_stochastic_optimizers"
    command = [sys.executable, str(script), "-k", names]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout
    assert "'fused'" in done.stdout and "passed" in done.stdout


def test_examples():
    result = doctest.testmod(adapter)
    assert result.attempted > 0 and result.failed == 0
