"""Properties of the public interface over generated models, hyperparameters and histories."""

from __future__ import annotations

import copy
from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import fastoptim as fo
from fastoptim.common.trees import Structure
from tests.support.cases import same_bits

dtypes = st.sampled_from([np.float32, np.float64])
shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9)
arrays = st.tuples(shapes, dtypes)
trees = st.recursive(
    arrays,
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3)
        | st.dictionaries(st.text("abc", min_size=1, max_size=3), inner, min_size=1, max_size=3)
    ),
    max_leaves=6,
)
unit = st.floats(0, 0.999)
positive = st.floats(1e-12, 10)
optimizers = st.one_of(
    st.fixed_dictionaries(
        {"lr": positive, "momentum": unit, "dampening": unit, "weight_decay": positive, "maximize": st.booleans()}
    ).map(lambda hyper: (fo.SGD, hyper)),
    st.fixed_dictionaries({"lr": positive, "momentum": st.floats(0.01, 0.99), "nesterov": st.just(True)}).map(
        lambda hyper: (fo.SGD, hyper)
    ),
    st.tuples(
        st.sampled_from([fo.Adam, fo.AdamW]),
        st.fixed_dictionaries(
            {
                "lr": positive,
                "betas": st.tuples(unit, unit),
                "eps": st.floats(0, 1e-3).filter(lambda x: x == 0 or x > 1e-40),
                "weight_decay": st.floats(0, 1),
                "amsgrad": st.booleans(),
                "eps_mode": st.sampled_from(["torch", "hat"]),
            }
        ),
    ),
)
options = st.fixed_dictionaries(
    {},
    optional={
        "grad_scale": st.floats(-100, 100).filter(lambda x: x == 0 or abs(x) > 1e-40),
        "max_norm": st.floats(0, 100),
        "skip_nonfinite": st.booleans(),
    },
)


def filled(tree, rng):
    """The tree with arrays in place of (shape, dtype) leaves; a list here is a list, a tuple is a leaf."""
    if isinstance(tree, dict):
        return {key: filled(value, rng) for key, value in tree.items()}
    if isinstance(tree, list):
        return [filled(value, rng) for value in tree]
    shape, dtype = tree
    return np.asarray(rng.standard_normal(shape), dtype)


def leaves(tree):
    return Structure(tree).leaves(tree)


@settings(max_examples=80, deadline=None)
@given(trees, optimizers, st.lists(options, min_size=1, max_size=4), st.integers(0, 2**32), st.integers(1, 3))
def test_c_equals_numpy_over_any_history(tree, optimizer, history, seed, threads):
    cls, hyper = optimizer
    rng = np.random.default_rng(seed)
    params = filled(tree, rng)
    models = {"c": params, "numpy": copy.deepcopy(params)}
    steppers = {b: cls(model, backend=b, threads=threads, **hyper) for b, model in models.items()}
    for step_options in history:
        grads = filled(tree, rng)
        flat = [g for g in leaves(grads) if g.size]
        if flat and rng.random() < 0.2:
            flat[0].flat[0] = rng.choice([np.nan, np.inf])
        infos = [stepper.step(grads, **step_options) for stepper in steppers.values()]
        assert repr(infos[0]) == repr(infos[1])
    for a, b in zip(leaves(models["c"]), leaves(models["numpy"]), strict=True):
        assert same_bits(a, b)
    states = [stepper.state_dict()["state"] for stepper in steppers.values()]
    for name, entry in states[0].items():
        assert all(np.array_equal(value, states[1][name][slot], equal_nan=True) for slot, value in entry.items())


@settings(max_examples=200, deadline=None)
@given(hnp.arrays(np.float64, st.integers(0, 300)), st.integers(1, 4), st.sampled_from(["c", "numpy"]))
def test_norm_is_what_exact_arithmetic_says(g, threads, backend):
    norm = fo.grad_norm(g, threads=threads, backend=backend)
    if not np.isfinite(g).all():
        assert not np.isfinite(norm) and np.isnan(norm) == np.isnan(g).any()
        return
    exact = sum(Fraction(float(x)) ** 2 for x in g)
    if np.isinf(norm):
        assert exact > Fraction(2) ** 2047
    else:
        unit = Fraction(1, 2**1074)  # of subnormal numbers, to which a norm may be rounded
        assert abs(Fraction(norm) ** 2 - exact) <= exact * Fraction(1, 10**12) + (2 * Fraction(norm) + unit) * unit
