"""Clipping by value and per array, and the bound that an optimizer is given once."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest

import fastoptim as fo
from fastoptim.backends import available
from tests.support.cases import same_bits

BACKENDS = [name for name in ("c", "numba", "numpy") if available(name) is None]
SIZES = (1, 17, 4097)


def arrays(dtype, seed):
    rng = np.random.default_rng(seed)
    made = [rng.standard_normal(n).astype(dtype) for n in SIZES]
    made.append(np.asfortranarray(rng.standard_normal((5, 7)).astype(dtype)))
    made.append(rng.standard_normal(20).astype(dtype)[::2])
    return made


def clamped(g, scale, limit):
    """What is meant, element by element, in numbers of the array's dtype."""
    T = g.dtype.type
    with np.errstate(all="ignore"):
        x = g * T(scale)
        x = np.where(x < T(-limit), T(-limit), x)
        return np.where(x > T(limit), T(limit), x).astype(g.dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["value", "norm_per_array"])
def test_the_step_is_that_of_gradients_clipped_before(kind, dtype, backend):
    mine, wanted = arrays(dtype, 0), arrays(dtype, 0)
    opt = fo.Adam(mine, lr=0.1, weight_decay=0.1, maximize=True, backend=backend)
    reference = fo.Adam(wanted, lr=0.1, weight_decay=0.1, maximize=True, backend="numpy")
    for seed in range(4):
        g = arrays(dtype, seed + 5)
        g[1][:4] = [np.inf, -np.inf, 1e-45 if dtype is np.float32 else 5e-324, -0.0]
        if kind == "value":
            g[1][5] = np.nan
            clipped = [clamped(x, 0.7, 0.3) for x in g]
        else:
            g[1][:2] = 1e10
            factors = [0.7 * min(1.0, 0.3 / (fo.grad_norm(x, grad_scale=0.7) + 1e-6)) for x in g]
            clipped = [(x * x.dtype.type(factor)).astype(dtype) for x, factor in zip(g, factors, strict=True)]
        if seed == 2:
            g[3] = clipped[3] = None
        before = [None if x is None else x.copy() for x in g]
        info = opt.step(g, grad_scale=0.7, max_norm=0.3, clip=kind)
        norm = fo.grad_norm(g, grad_scale=0.7)
        assert info.applied and (info.grad_norm is None if kind == "value" else info.grad_norm == norm)
        assert all(a is b is None or same_bits(a, b) for a, b in zip(g, before, strict=True))
        reference.step(clipped)
        assert all(map(same_bits, mine, wanted)), seed
    assert opt.state["3"]["step"] == 3


@pytest.mark.parametrize("backend", BACKENDS)
def test_limits_of_zero_and_infinity_and_skipped_steps(backend):
    p = np.zeros(3)
    opt = fo.SGD(p, lr=1.0, backend=backend)
    g = np.array([np.inf, -2.0, 0.5])
    assert opt.step(g, max_norm=1.0, clip="value", skip_nonfinite=True) == (False, math.inf)
    assert p.tolist() == [0, 0, 0] and opt.state["0"]["step"] == 0
    opt.step(g, max_norm=1.0, clip="value")
    assert p.tolist() == [-1, 1, -0.5]
    opt.step(g, max_norm=0.0, clip="value")
    assert p.tolist() == [-1, 1, -0.5]
    opt.step(g, max_norm=math.inf, clip="value")
    assert p.tolist() == [-math.inf, 3, -1]
    with pytest.raises(ValueError, match="shape"):
        opt.step(np.ones(4), max_norm=1.0, clip="value")
    assert opt.state["0"]["step"] == 3


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["norm", "value", "norm_per_array"])
def test_an_optimizer_keeps_its_bound(kind, backend):
    def run(opt, p, **options):
        infos = [opt.step([x * 3 for x in arrays(np.float64, seed)], **options) for seed in range(3)]
        return p, infos

    one, two = arrays(np.float64, 9), arrays(np.float64, 9)
    opt = fo.AdamW(one, lr=0.1, backend=backend, max_norm=0.5, clip=kind)
    mine = run(opt, one)
    wanted = run(fo.AdamW(two, lr=0.1, backend=backend), two, max_norm=0.5, clip=kind)
    assert all(map(same_bits, mine[0], wanted[0])) and mine[1] == wanted[1]
    for other in (copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        assert (other.max_norm, other.clip) == (0.5, kind)
    before = [x.copy() for x in one]
    opt.step([np.full(x.shape, 1e9) for x in one], max_norm=0.0)  # the step's own bound counts
    assert all(np.allclose(a, b, atol=1) for a, b in zip(one, before, strict=True))
    opt.max_norm = None
    assert opt.step(arrays(np.float64, 1)).grad_norm is None


def test_fit_takes_the_bound_of_the_optimizer(tmp_path):
    def loss_and_grad(params, batch):
        return float(params @ params), 200 * params

    p, other = np.ones(3), np.ones(3)
    clipped = fo.SGD(p, lr=0.1, max_norm=0.5)
    result = fo.fit(
        loss_and_grad, p, None, clipped, steps=4, diagnose=False, checkpoint=tmp_path / "x", checkpoint_every=999
    )
    fo.fit(loss_and_grad, other, None, fo.SGD(other, lr=0.1), steps=4, diagnose=False, max_norm=0.5)
    assert same_bits(p, other) and np.all(np.abs(p) < 1) and result.history.grad_norm[0] > 100
    by_value = fo.SGD(np.ones(3), lr=0.1, max_norm=0.5, clip="value")
    with pytest.raises(fo.CheckpointError, match=r"max_norm is 0\.5 by value here, 0\.5 there"):
        fo.fit(loss_and_grad, by_value.param_groups[0]["params"][0], None, by_value, steps=6, resume=tmp_path / "x")


def test_factors_that_vanish_in_float32_drop_no_gradients():
    large, beside = np.full(3, 1e20, np.float32), np.ones(2)
    p, q = np.ones(3, np.float32), np.ones(2)
    for call in (
        lambda: fo.SGD(p, lr=0.1).step(large, max_norm=1e-30),
        lambda: fo.SGD([p, q], lr=0.1).step([large, beside], max_norm=1e-30, clip="norm_per_array"),
        lambda: fo.clip_grad_norm(large, 1e-30),
    ):
        with pytest.raises(ValueError, match=r"clip factor = 5\.7735e-51 is zero in float32"):
            call()
    fo.SGD(q, lr=1.0).step(1e20 * beside, max_norm=1e-30)  # float64 has it
    for scale, what in ((1e-50, "zero"), (1e39, "infinite")):
        with pytest.raises(ValueError, match=f"is {what} in float32"):
            fo.grad_norm([beside, large], grad_scale=scale)
        assert fo.grad_norm([beside[:1]], grad_scale=scale) == scale
    assert p.tolist() == [1, 1, 1] and q.tolist() == [1, 1] and large[0] == np.float32(1e20)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda opt: opt.step(np.ones(2, np.float32), clip="value"), ValueError, "give max_norm, too"),
        (lambda opt: opt.step(np.ones(2, np.float32), max_norm=1.0, clip="box"), ValueError, "clip must be one of"),
        (lambda opt: opt.step(np.ones(2, np.float32), max_norm=1e-60, clip="value"), ValueError, "max_norm = 1e-60"),
        (lambda opt: setattr(opt, "clip", 3), TypeError, "clip must be one of"),
        (lambda opt: setattr(opt, "max_norm", -1.0), ValueError, "max_norm must be"),
        (lambda opt: fo.Adam(np.ones(2), max_norm=np.ones(2)), TypeError, "max_norm must be a real number"),
    ],
)
def test_wrong_bounds_are_refused(call, error, message):
    p = np.ones(2, np.float32)
    opt = fo.SGD(p, lr=1.0)
    with pytest.raises(error, match=message):
        call(opt)
    assert p.tolist() == [1, 1] and (opt.max_norm, opt.clip) == (None, "norm")
