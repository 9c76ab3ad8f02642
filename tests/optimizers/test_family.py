"""The classes of the family, all of them through one table: what each promises, and other libraries beside them."""

from __future__ import annotations

import copy
import inspect
import json
import re
import runpy

import numpy as np
import pytest

import fastoptim as fo
from fastoptim.backends import available
from fastoptim.optimizers import forms
from fastoptim.optimizers.hyperparameters import BELOW_ONE
from fastoptim.optimizers.names import FAMILIES, OPTIMIZERS
from fastoptim.rules.table import RULES, rules_of
from tests.proofs import forms_write, summary
from tests.support import ROOT
from tests.support.cases import DTYPES, VARIANTS, expected, same_bits, states_for
from tests.support.peers import MORE, PEERS, distance


def _below_one(cls):
    return [name for name in cls._names if getattr(cls, name).allowed == BELOW_ONE]


# Options that reach every rule, mode and kind of decay of a class, beside its defaults.
OPTIONS = {
    "rmsprop": (
        {"weight_decay": 0.01, "eps_mode": "root"},
        {"momentum": 0.9, "momentum_mode": "lr_inside"},
        {"centered": True},
        {"momentum": 0.5, "centered": True},
    ),
    "adagrad": ({"lr_decay": 0.1, "initial_accumulator_value": 0.5},),
    "adamax": ({"eps_mode": "keras", "weight_decay": 0.1},),
    "nadam": (
        {"mode": "optax", "weight_decay": 0.1},
        {"mode": "mlcommons", "decoupled_weight_decay": True, "weight_decay": 0.1, "decay_mode": "fixed"},
    ),
    "radam": ({"betas": (0.9, 0.6)}, {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    "rprop": ({"lr": 0.5},),
    "asgd": ({"t0": 1.0, "weight_decay": 0.1},),
    "lion": ({"weight_decay": 0.1, "decay_mode": "fixed"}, {"weight_decay": 0.1, "cautious": True}),
    "lamb": (
        {"weight_decay": 0.1, "trust_clip": True},
        {"bias_correction": False},
        {"weight_decay": 0.1, "adapt": False},
    ),
    "lars": (
        {"weight_decay": 0.1, "mode": "optax", "nesterov": True},
        {"momentum": 0.0, "weight_decay": 0.1},
        {"adapt": False, "eps": 0.1},
    ),
    "novograd": ({"weight_decay": 0.1, "grad_averaging": True},),
    "adan": ({"mode": "optax"},),
    "ademamix": ({"warmup_steps": 3, "alpha": 2.0},),
    "ftrl": ({"l1": 0.3, "l2": 0.1, "beta": 0.5},),
    "schedule_free_sgd": ({"warmup_steps": 3, "r": 1.0, "weight_decay": 0.1},),
    "schedule_free_adamw": ({"warmup_steps": 3, "weight_decay": 0.1},),
}
CASES = [(name, options) for name in FAMILIES for options in ({}, {"maximize": True}, *OPTIONS.get(name, ()))]
IDS = ["-".join([name, *map(str, options)]) for name, options in CASES]


def make():
    rng = np.random.default_rng(3)
    return {"w": rng.standard_normal((5, 7)), "b": rng.standard_normal(3), "h": rng.standard_normal(9).astype("f")}


def grads(t):
    rng = np.random.default_rng(100 + t)
    return {name: rng.standard_normal(x.shape).astype(x.dtype) for name, x in make().items()}


def run(name, options, steps=4, **more):
    params = make()
    opt = FAMILIES[name](params, **options, **more)
    for t in range(steps):
        opt.step(grads(t))
    return params, opt


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        x, y = (z if isinstance(z, np.ndarray) else np.float64(z) for z in (a[name], b[name]))
        assert same_bits(x, y), name


@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_backends_forms_and_checkpoints_have_the_same_bits(name, options, tmp_path):
    wanted, opt = run(name, options, backend="numpy")
    assert all(
        np.isfinite(x).all() and not same_bits(x, y) for x, y in zip(wanted.values(), make().values(), strict=True)
    )
    params, other = run(name, options, backend="c", threads=2)
    assert_same(params, wanted)
    for key in params:
        assert_same(other.state[key], opt.state[key])
    form = getattr(fo.functional, name)
    owned, states = make(), {key: {} for key in params}
    for t in range(4):
        for key, g in grads(t).items():
            form(owned[key], g, states[key], **options)
    assert_same(owned, wanted)
    for key in params:
        assert_same(states[key], opt.state[key])
    other.save(tmp_path / "a.ckpt")
    again = make()
    loaded = FAMILIES[name](again, **options)
    loaded.load(tmp_path / "a.ckpt")
    twin, twin_opt = copy.deepcopy((params, other))
    for values, optimizer in ((params, other), (again, loaded), (twin, twin_opt), (wanted, opt)):
        optimizer.step(grads(9))
        assert_same(values, params)
    assert_same(twin, again)


@pytest.mark.skipif(available("c") is not None, reason="LOUD: no C extension, and so no native call")
@pytest.mark.parametrize("size", [3, 30_000])
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in ("lamb", "lars", "novograd")])
def test_a_form_that_has_begun_is_one_native_call(name, size, monkeypatch):
    """In Python, with signals made to wait, it would take longer than NumPy's own lines do for small arrays."""
    form, p, state = getattr(fo.functional, name), np.ones(size), {}
    form(p, np.full(size, 0.5), state)
    monkeypatch.setattr(forms, "update_array", None)
    monkeypatch.setattr(forms, "deferred_signals", None)
    before = p.copy()
    form(p, np.full(size, 0.25), state)
    assert state["step"] == 2
    assert not same_bits(p, before)


@pytest.mark.parametrize(("name", "options"), CASES[::4], ids=IDS[::4])
def test_numba_has_the_same_bits(name, options):
    if reason := available("numba"):
        pytest.skip(f"LOUD: {reason}")
    assert_same(run(name, options, backend="numba")[0], run(name, options, backend="numpy")[0])


@pytest.mark.parametrize("name", FAMILIES)
def test_groups_missing_gradients_clipping_and_skipping(name):
    rates = (0.02, 0.05)
    params = make()
    opt = FAMILIES[name]([{"params": {"w": params["w"], "h": params["h"]}, "lr": rates[0]}, {"params": [params["b"]]}])
    opt.param_groups[1]["lr"] = rates[1]
    alone = {"w": make()["w"], "b": make()["b"]}
    single = {"w": FAMILIES[name](alone["w"], lr=rates[0]), "b": FAMILIES[name](alone["b"], lr=rates[0])}
    single["b"].lr = rates[1]
    for t in range(3):
        g = grads(t)
        opt.step([{"w": g["w"], "h": g["h"]}, [None if t == 1 else g["b"]]])
        single["w"].step(g["w"])
        if t != 1:
            single["b"].step(g["b"])
    assert_same({"w": params["w"], "b": params["b"]}, alone)
    before = copy.deepcopy((params, opt.state_dict()))
    bad = grads(5)
    bad["h"][0] = np.inf
    assert not opt.step([{"w": bad["w"], "h": bad["h"]}, [bad["b"]]], skip_nonfinite=True).applied
    assert_same(params, before[0])
    after = opt.state_dict()
    for key, entry in before[1]["state"].items():
        assert_same(after["state"][key], entry)
    g = grads(6)
    twin, twin_opt = copy.deepcopy((params, opt))
    norm = opt.step([{"w": g["w"], "h": g["h"]}, [g["b"]]], max_norm=0.5).grad_norm
    clipped = {key: x.dtype.type(0.5 / (norm + 1e-6)) * x for key, x in g.items()}
    twin_opt.step([{"w": clipped["w"], "h": clipped["h"]}, [clipped["b"]]])
    assert_same(params, twin)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.label)
def test_nan_comes_out_of_every_rule(variant):
    rng = np.random.default_rng(8)
    for dtype in DTYPES:
        p, g = (rng.standard_normal(40).astype(dtype) for _ in range(2))
        states = states_for(rng, variant.rule, 40, dtype)
        g[::5] = np.nan
        after, *_ = expected(variant, p, g, states, 0.77)
        assert np.isnan(after[::5]).all() and not np.isnan(np.delete(after, np.s_[::5])).any()


@pytest.mark.parametrize("product", [1e-8, 2e-8, 1e-7])
def test_asgd_decays_in_float32_as_in_float64(product):
    """``(1 - lambd * eta) * p`` takes nothing away below 3e-8, and up to twice too much below 1e-7."""

    def moved(dtype, lambd):
        rng = np.random.default_rng(0)
        p = (1 + 0.5 * rng.random(2000)).astype(dtype)
        opt = fo.ASGD(p, lr=1e-3, lambd=lambd)
        for _ in range(300):
            opt.step((0.05 * rng.standard_normal(2000)).astype(dtype))
        return p.mean(dtype=float)

    found, wanted = (moved(dtype, 0.0) - moved(dtype, product / 1e-3) for dtype in DTYPES)
    assert found == pytest.approx(wanted, rel=0.02)  # measured: within .2 %


def test_decoupled_decay_of_sgd_and_a_fixed_share():
    for momentum in (0.0, 0.5):
        for mode, share in (("lr", 0.25 * 0.125), ("fixed", 0.125)):
            options = {"lr": 0.25, "weight_decay": 0.125, "decay_mode": mode}
            p = np.array([2.0])
            fo.SGD(p, momentum=momentum, decoupled_weight_decay=True, **options).step(np.array([4.0]))
            assert p[0] == 2.0 - (share * 2.0 + 1.0)
            q, v = np.array([2.0]), np.zeros(1)
            if momentum:
                fo.functional.momentum(q, np.array([4.0]), v, momentum=momentum, decoupled=True, **options)
            else:
                fo.functional.sgd(q, np.array([4.0]), decoupled=True, **options)
            assert same_bits(p, q)
    w, u = np.array([2.0]), np.array([2.0])
    fo.AdamW(w, lr=0.25, weight_decay=0.125, decay_mode="fixed", eps=0.0, betas=(0.0, 0.0)).step(np.array([4.0]))
    assert w[0] == 2.0 - (0.125 * 2.0 + 0.25)
    fo.functional.adam(u, np.array([4.0]), np.zeros(1), np.zeros(1), step=1, lr=0.25, betas=(0.0, 0.0), eps=0.0,
                       weight_decay=0.125, decoupled=True, decay_mode="fixed")  # fmt: skip
    assert same_bits(w, u)
    for bad in (lambda: fo.Adam(w, decay_mode="fixed"), lambda: fo.SGD(w, decay_mode="fixed")):
        with pytest.raises(ValueError, match="for decoupled weight decay"):
            bad()


def test_centered_rmsprop_survives_a_steady_gradient_where_torch_does_not():
    torch = pytest.importorskip("torch", reason="LOUD: no torch to compare with (pip install torch)")
    g = np.linspace(0.01, 3.0, 1000).astype(np.float32)
    mine, theirs = np.zeros_like(g), torch.nn.Parameter(torch.zeros(1000))
    opt, other = fo.RMSprop(mine, alpha=0.9, centered=True), torch.optim.RMSprop([theirs], alpha=0.9, centered=True)
    for _ in range(133):
        opt.step(g)
        theirs.grad = torch.from_numpy(g.copy())
        other.step()
    assert np.isfinite(mine).all()
    assert np.isnan(theirs.detach().numpy()).any(), "torch no longer makes NaN: say so no more"


def test_the_sign_of_nan_is_nan_where_torch_has_zero():
    torch = pytest.importorskip("torch", reason="LOUD: no torch to compare with (pip install torch)")
    assert float(torch.sign(torch.tensor(np.nan))) == 0.0, "torch's sign is NaN now: say so no more"
    w = np.ones(2)
    fo.Lion(w, lr=0.5).step(np.array([np.nan, 1.0]))
    assert np.isnan(w[0]) and w[1] == 0.5


def test_averages_of_schedule_free_are_those_of_the_equations():
    for cls, beta in ((fo.ScheduleFreeSGD, 0.8), (fo.ScheduleFreeAdamW, 0.7)):
        y = np.array([1.0, -2.0])
        options = {"momentum": beta} if cls is fo.ScheduleFreeSGD else {"betas": (beta, 0.9), "eps": 1e-3}
        opt = cls({"y": y}, lr=0.3, warmup_steps=2, **options)
        assert opt.averaged()["y"] is not y and same_bits(opt.averaged()["y"], y)
        x, z, v, weights = y.copy(), y.copy(), np.zeros(2), 0.0
        largest = 0.0
        for t in range(1, 8):
            g = np.sin(np.arange(2.0) + t)
            rate = 0.3 * min(1.0, t / 2)
            largest = max(largest, rate)
            u = g
            if cls is fo.ScheduleFreeAdamW:
                v = 0.9 * v + 0.1 * g**2
                u = g / (np.sqrt(v / (1 - 0.9**t)) + 1e-3)
            z = z - rate * u
            weights += largest**2
            c = largest**2 / weights
            x = (1 - c) * x + c * z
            opt.step({"y": g})
            np.testing.assert_allclose(y, (1 - beta) * z + beta * x, rtol=1e-13)
            np.testing.assert_allclose(opt.averaged()["y"], x, rtol=1e-12)
        groups = cls([{"params": [y]}, {"params": {"b": np.zeros(3)}}], **options).averaged()
        assert groups[0][0].shape == (2,) and groups[1]["b"].shape == (3,)


@pytest.mark.parametrize("cls", [fo.ScheduleFreeSGD, fo.ScheduleFreeAdamW])
def test_averages_follow_groups_by_name_and_points_of_the_callers(cls):
    plain, named = make(), make()
    one = cls(plain, lr=0.3)
    two = cls(fo.groups(named, {"b": {"lr": 0.1}, "h": None}), lr=0.3)
    with pytest.raises(ValueError, match="unknown"):
        two.averaged({"w": named["w"], "x": 1})
    points = {name: x.copy() for name, x in make().items()}
    far = cls(make(), lr=0.3)
    for t in range(3):
        one.step(grads(t))
        two.step(grads(t))
        points = far.apply(points, grads(t))
    x = one.averaged()
    assert same_bits(two.averaged()["w"], x["w"]) and two.averaged()["h"] is None
    assert two.averaged(named)["h"] is named["h"] and not same_bits(two.averaged()["b"], x["b"])
    two.apply(named, dict.fromkeys(named))  # which is no step
    assert same_bits(two.averaged()["w"], x["w"])
    with pytest.raises(ValueError, match=r"averaged\(params\), with what it returned"):
        far.averaged()
    with pytest.raises(ValueError, match="averaged"):
        copy.deepcopy(far).averaged()
    with pytest.raises(TypeError, match="value of parameter 'w': expected dtype float64"):
        far.averaged(points | {"w": points["w"].astype("f")})
    assert all(same_bits(far.averaged(points)[name], x[name]) for name in x)


@pytest.mark.parametrize("name", [name for name, cls in FAMILIES.items() if any(r.initial for r in rules_of(cls))])
def test_states_begin_at_what_the_first_step_finds(name):
    wanted, ours = make(), make()
    nans = {key: np.full_like(x, np.nan) for key, x in ours.items()}
    for x in ours.values():
        x += 1
    opt = FAMILIES[name](ours, lr=0.5)
    assert not opt.step(nans, skip_nonfinite=True).applied  # which has made states
    with pytest.raises(TypeError, match="w"):
        opt.step(nans | {"w": "nothing"})
    for key, x in wanted.items():
        ours[key][...] = x
    changed = {"lr": 0.25}
    if "initial_accumulator_value" in opt._names:
        changed["initial_accumulator_value"] = 2.0
    for key, value in changed.items():
        setattr(opt, key, value)
    fresh = FAMILIES[name](wanted, **changed)
    for t in range(2):
        opt.step(grads(t))
        fresh.step(grads(t))
    assert all(same_bits(ours[key], x) for key, x in wanted.items())
    for key in ours:
        pairs = [(np.asarray(x, float), np.asarray(fresh.state[key][of], float)) for of, x in opt.state[key].items()]
        assert all(same_bits(*pair) for pair in pairs)


def test_the_functional_forms_are_those_that_the_script_writes():
    assert forms_write.FILE.read_text() == forms_write.text(), "run: python -m tests.proofs.forms_write"
    assert set(FAMILIES) <= set(fo.functional.__all__)
    for name, cls in FAMILIES.items():
        form = inspect.signature(getattr(fo.functional, name)).parameters
        own = {key: p for key, p in inspect.signature(cls).parameters.items() if key in cls._names}
        assert all(form[key].default == p.default and form[key].annotation == p.annotation for key, p in own.items())
        assert all(hasattr(cls, key) for key in own) and set(cls._rules) <= set(RULES)
        annotations = {key for base in cls.__mro__ for key in inspect.get_annotations(base)}
        assert set(own) <= annotations, f"{name}: type checkers must know the hyperparameters"


@pytest.mark.parametrize(
    ("make", "error", "told"),
    [
        (lambda p: fo.RMSprop(p, alpha=1.0), ValueError, r"alpha must be in \[0, 1\), got 1.0"),
        (lambda p: fo.RMSprop(p, eps_mode="keras"), ValueError, r"eps_mode must be one of \['torch', 'root'\]"),
        (
            lambda p: fo.RMSprop(p, learning_rate=1.0),
            TypeError,
            r"has no 'learning_rate': do you mean 'lr'\? it has lr",
        ),
        (lambda p: fo.RMSprop(p, centered=1), TypeError, "centered must be True or False"),
        (lambda p: fo.Lion(p, betas=(0.9,)), TypeError, "betas must be a pair of numbers"),
        (lambda p: fo.Adan(p, betas=(0.9, 0.99)), TypeError, "betas must be three numbers"),
        (lambda p: fo.NAdam(p, decay_mode="fixed"), ValueError, "decoupled_weight_decay=True"),
        (lambda p: fo.Rprop(p, etas=(1.2, 0.5)), ValueError, r"etas must have 0 < etas\[0\] < 1 < etas\[1\]"),
        (lambda p: fo.Rprop(p, step_sizes=(1.0, 0.5)), ValueError, "smallest and the largest"),
        (lambda p: fo.FTRL(p, lr=0.0), ValueError, "FTRL divides by lr"),
        (lambda p: fo.ScheduleFreeSGD(p, momentum=0.0), ValueError, "momentum must be > 0"),
        (lambda p: fo.ScheduleFreeSGD(p, warmup_steps=1.5), TypeError, "warmup_steps must be an int"),
        (lambda p: fo.AdaBelief(p.astype("f"), eps=1e-60), ValueError, "eps = 1e-60 is zero in float32"),
        (lambda p: fo.functional.lion(p, p, {}), ValueError, "overlap"),
        (lambda p: fo.functional.lion(p, 1 * p, {}, beta1=0.9), TypeError, "lion has no 'beta1': do you mean 'betas'"),
        (lambda p: fo.functional.lion(p, 1 * p, []), TypeError, "state must be a dict"),
        (lambda p: fo.functional.lion(p, 1 * p, {"step": 3}), ValueError, "state lacks 'exp_avg'"),
        (lambda p: fo.functional.lion(p, 1 * p, {"x": 3}), ValueError, r"state holds \['x'\]"),
        (lambda p: fo.functional.nadam(p, 1 * p, {"mu_product": "a"}), TypeError, "must be a real number"),
    ],
)
def test_bad_input_is_refused_by_name(make, error, told):
    p = np.ones(2)
    with pytest.raises(error, match=told):
        make(p)
    assert same_bits(p, np.ones(2))


@pytest.mark.parametrize(
    ("cls", "name"),
    [(cls, name) for which, cls in OPTIMIZERS.items() if which != "momentum" for name in _below_one(cls)],
)
def test_what_a_mean_keeps_of_itself_may_not_be_one_in_float32(cls, name):
    """Silently, nothing was ever forgotten."""
    near, default = 1 - 2.0**-25, getattr(cls, name).default
    high = (*default[:-1], near) if isinstance(default, tuple) else near
    low = (*default[:-1], 1 - 2.0**-24) if isinstance(default, tuple) else 1 - 2.0**-24
    w, p, told = np.ones(2), np.ones(2, np.float32), f"{name}.* = 0.99999997.* is 1 in float32"
    cls(w, **{name: high}).step(np.ones(2))
    opt = cls(p, **{name: low})
    with pytest.raises(ValueError, match=told):
        cls(p, **{name: high})
    with pytest.raises(ValueError, match=told):
        setattr(opt, name, high)
    with pytest.raises(ValueError, match=told):
        opt.load_state_dict(cls(np.ones(2), **{name: high}).state_dict())
    assert getattr(opt, name) == low and opt.step(np.ones(2, np.float32)).applied
    form_of = {fo.SGD: "momentum", fo.Adam: "adam", **{cls: key for key, cls in FAMILIES.items()}}
    if cls in form_of:
        extra = {"adam": {"step": 1}, "momentum": {"lr": 0.1}}.get(form_of[cls], {})
        states = {"adam": [0 * p, 0 * p], "momentum": [0 * p]}.get(form_of[cls], [{}])
        with pytest.raises(ValueError, match=told):
            getattr(fo.functional, form_of[cls])(p, np.ones(2, np.float32), *states, **{name: high}, **extra)
        assert not any(map(np.any, states))


@pytest.mark.parametrize("name", FAMILIES)
def test_subclasses_step_as_their_base(name):
    base = FAMILIES[name]
    plain = type("Plain", (base,), {})

    class Noted(base):
        def __init__(self, params, *, note="", **options):
            super().__init__(params, **options)
            self._note = note

    found = []
    for cls, options in ((base, {}), (plain, {}), (Noted, {"note": "mine"})):
        p = np.ones(3)
        opt = cls(p, lr=0.25, maximize=True, **options)
        opt.step(np.arange(3.0))
        if cls is Noted:
            assert copy.deepcopy(opt)._note == "mine"
        opt.lr = 0.125
        opt.step(np.arange(3.0))
        found.append(p)
    assert same_bits(found[0], found[1]) and same_bits(found[0], found[2])
    with pytest.raises(TypeError, match="do you mean 'lr'"):
        Noted(np.ones(3), learning_rate=0.1)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: np.dtype(t).name)
@pytest.mark.parametrize("peer", (*PEERS, *MORE), ids=lambda peer: peer.label)
def test_other_libraries_walk_the_same_way(peer, dtype):
    """A sample of tests/proofs/parity.py."""
    pytest.importorskip(peer.library, reason=f"LOUD: no {peer.library} to compare with (pip install {peer.library})")
    rng = np.random.default_rng(5)
    for _ in range(4 if peer in PEERS else 20):
        found = distance(peer, dtype, rng, 25)
        assert found.share <= 1.0, found


def test_the_table_of_rules_states_what_they_keep():
    path = ROOT / "docs" / "guide" / "rules.md"
    if not path.exists():
        pytest.skip("LOUD: no documentation beside the tests")
    rows = [line.split(" | ") for line in path.read_text().splitlines() if line.startswith("| `")]
    table = {form.strip("` "): cells for cells in rows for form in cells[1].split(", ")}
    for name in set(OPTIMIZERS) - {"momentum", "adamw", "sparse_adam"}:  # which have no functional form
        p = np.ones((2, 128), np.float32)
        opt = OPTIMIZERS[name](p)
        opt.step(p.copy())
        states = sum(isinstance(x, np.ndarray) for x in opt.state["0"].values())
        for cell, wanted in zip(table[name][3:5], (states, 8 + 4 * states), strict=True):
            assert str(wanted) in re.findall(r"\d+", cell), (name, cell)


def test_the_table_of_rules_states_the_distances_that_were_measured():
    if not summary.TABLE.exists() or not summary.RESULTS.exists():
        pytest.skip("LOUD: no documentation or results beside the tests")
    text = summary.TABLE.read_text()
    assert text == summary.with_exactness(text), "run: python -m tests.proofs.summary"
    measured = {(cls, library) for cls, found in summary.distances().items() for library in found}
    assert measured == {(peer.cls, summary.LIBRARIES[peer.library]) for peer in PEERS}
    assert all(f"`{cls}`" in text for cls, _ in measured)
    assert summary.exactness(["A", "B"], {"A": {"Keras": 1.25}, "B": {"torch": 2.0, "Keras": 3.0}}) == (
        "torch 2.0 (`B`), Keras 3.0"
    )


def test_the_table_of_the_guide_is_that_of_the_benchmark():
    path = ROOT / "benchmarks" / "which_optimizer.py"
    if not path.exists():
        pytest.skip("LOUD: no benchmarks beside the tests")
    script = runpy.run_path(str(path))
    results = json.loads(script["RESULTS"].read_text())
    assert set(results["optimizers"]) == set(OPTIMIZERS) - {
        "sparse_adam"
    }  # that is adam, where all rows have gradients
    text = script["DOCS"].read_text()
    assert text == script["written"](text, results), "run: python benchmarks/which_optimizer.py"


def test_a_square_that_overflows_shows_in_radam_unless_clipped():
    p, q = np.ones(3, np.float32), np.ones(3, np.float32)
    huge = np.full(3, 2e19, np.float32)  # finite, its square is not
    fo.RAdam(p, lr=1e-3).step(huge)
    assert np.isnan(p).all()
    fo.RAdam(q, lr=1e-3).step(huge, max_norm=1.0)
    assert np.isfinite(q).all() and (q < 1.0).all()
