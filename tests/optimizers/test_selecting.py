"""Groups by name, pattern or predicate: gradients keep the structure of the parameters."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import fastoptim as fo
from fastoptim.backends import available
from tests.support.cases import same_bits

BACKENDS = [name for name in ("c", "numba", "numpy") if available(name) is None]


def model(seed=0):
    rng = np.random.default_rng(seed)
    layers = [{"w": rng.standard_normal((3, 4)), "b": rng.standard_normal(3)} for _ in range(2)]
    return {"body": layers, "head": {"w": rng.standard_normal((1, 3)), "b": rng.standard_normal(1)}}


NAMES = [f"{layer}.{kind}" for layer in ("body.0", "body.1", "head") for kind in "wb"]


def flat(tree):
    return [x[kind] for x in (*tree["body"], tree["head"]) for kind in "wb"]


def grouped(params, **options):
    rules = {"*.b": {"weight_decay": 0.0}, "head": {"lr": 0.5}, "body.0.w": None}
    return fo.AdamW(fo.groups(params, rules), lr=0.1, weight_decay=0.25, **options)


def described(opt):
    return [(group["names"], group["lr"], group["weight_decay"]) for group in opt.param_groups]


def test_rules_merge_and_groups_are_in_their_order():
    opt = grouped(model())
    assert described(opt) == [
        (["body.1.w"], 0.1, 0.25),
        (["body.0.b", "body.1.b"], 0.1, 0.0),
        (["head.b"], 0.5, 0.0),
        (["head.w"], 0.5, 0.25),
    ]
    assert list(opt.state) == [name for name in NAMES if name != "body.0.w"]
    large = fo.groups(model(), {lambda name, x: x.ndim == 2: {"weight_decay": 1.0}})
    assert [m.positions for m in large.groups] == [(1, 3, 5), (0, 2, 4)]
    thaw = fo.groups(model(), {"*": None, ("head.w", "head.b"): {}})
    assert [m.positions for m in thaw.groups] == [(4, 5)]
    last = fo.groups({"a": np.ones(1)}, {"a": {"lr": 0.5, "eps": 1.0}, "*": {"lr": 0.25}})
    assert last.groups[0].hyperparameters == {"lr": 0.25, "eps": 1.0}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", [{}, {"max_norm": 1.0}, {"skip_nonfinite": True}], ids=["plain", "clip", "skip"])
def test_steps_have_the_bits_of_an_optimizer_for_each_array(backend, options):
    params, alone = model(), flat(model())
    opt = grouped(params, backend=backend)
    each = [
        fo.AdamW(p, lr=0.5 if "head" in name else 0.1, weight_decay=0.0 if name.endswith("b") else 0.25)
        for name, p in zip(NAMES, alone, strict=True)
    ]
    for seed in range(4):
        grads = model(seed + 10)
        leaves = flat(grads)
        if seed == 2:
            grads["head"]["b"] = leaves[5] = None
        norm = fo.grad_norm(leaves[1:])
        info = opt.step(grads, **options)
        factor = min(1.0, 1.0 / (norm + 1e-6)) if "max_norm" in options else 1.0
        assert info.grad_norm == (norm if options else None)
        for own, g in zip(each[1:], leaves[1:], strict=True):
            own.step(g, grad_scale=factor)
    assert all(map(same_bits, flat(params), alone))
    assert same_bits(params["body"][0]["w"], model()["body"][0]["w"])  # frozen


def test_copies_pickles_and_checkpoints_keep_groups(tmp_path):
    params = model()
    opt = grouped(params)
    opt.step(model(1))
    opt.add_param_group({"params": {"late": np.ones(2)}, "lr": 1.0})
    opt.step([model(2), {"late": np.ones(2)}])
    opt.save(tmp_path / "x")
    for other in (copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        assert described(other) == described(opt)
        other.step([model(3), {"late": np.ones(2)}])
        state = other.state_dict()["state"]
    opt.step([model(3), {"late": np.ones(2)}])
    assert all(same_bits(x["exp_avg"], state[name]["exp_avg"]) for name, x in opt.state_dict()["state"].items())
    again = grouped(model(5))
    again.add_param_group({"params": {"late": np.zeros(2)}, "lr": 1.0})
    again.load(tmp_path / "x")
    again.step([model(3), {"late": np.ones(2)}])
    kept = zip(again.param_groups, opt.param_groups, strict=True)
    assert all(same_bits(a, b) for one, two in kept for a, b in zip(one["params"], two["params"], strict=True))
    ungrouped = fo.AdamW(model())  # names are those of the parameters, so states move
    keys = ungrouped.load_state_dict(grouped(model()).state_dict(), strict=False)
    assert keys.missing_keys == ["param_groups.0", "body.0.w"]


def test_fit_trains_groups_by_name_and_by_optimizer():
    x = np.linspace(-1, 1, 40)

    def loss_and_grad(params, batch):
        (x,) = batch
        assert set(params) == {"a", "b", "frozen"}
        error = params["a"] * x + params["b"] - 3 * x - params["frozen"]
        return float(np.mean(error**2)), {"a": [2 * np.mean(error * x)] * np.ones(1), "b": None, "frozen": "not asked"}

    ends = []
    for by_name in (True, False):
        params = {"a": np.zeros(1), "b": np.zeros(1), "frozen": np.ones(1)}
        selected = fo.groups(params, {"frozen": None, "b": {"lr": 0.5}})
        made = {"optimizer": "adam"} if by_name else {"optimizer": fo.Adam(selected)}
        result = fo.fit(loss_and_grad, selected if by_name else params, (x,), epochs=2, rng=1, diagnose=False, **made)
        assert result.params is params and params["frozen"] == 1 and params["a"] > 0
        ends.append(params["a"])
        with pytest.raises(ValueError, match="groups belong to an optimizer that is given by its name"):
            fo.fit(loss_and_grad, selected, (x,), fo.Adam(params), epochs=1)
    assert same_bits(*ends)


@pytest.mark.parametrize(
    ("rules", "error", "message"),
    [
        ({"*.bias": {}}, ValueError, r"no parameter has the name '\*.bias'; there are \['body.0.w', "),
        ({"boby.0.w": {}}, ValueError, r"no parameter has the name 'boby.0.w'; near are \['body.0.w'"),
        ({("head", "*.x"): {}}, ValueError, r"'\*.x'"),
        ({lambda name, x: False: {}}, ValueError, r"<lambda> selects no parameter; there are \["),
        ({(): {}}, ValueError, r"an empty selector selects no parameter; there are \["),
        ({"*": None}, ValueError, "every parameter is frozen"),
        ({"*": 0.5}, TypeError, r"'\*' must have a mapping of hyperparameters or None, got 0.5"),
        ({"*": {"params": []}}, TypeError, "must have a mapping of hyperparameters"),
        ({3: {}}, TypeError, "a selector is a name, a pattern or a function"),
        (["*.b"], TypeError, "expected a mapping such as"),
    ],
    ids=range(10),
)
def test_what_selects_nothing_is_an_error(rules, error, message):
    with pytest.raises(error, match=message):
        fo.groups(model(), rules)


def test_other_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match=r"a group of AdamW has no 'momentum': do you mean 'betas'.*it has lr"):
        fo.AdamW(fo.groups(model(), {"*": {"momentum": 0.5}}))
    opt = grouped(model())
    with pytest.raises(ValueError, match="gradients at 'head': names missing: \\['b'\\]"):
        opt.step(model() | {"head": {"w": np.ones((1, 3))}})
    with pytest.raises(ValueError, match=r"'body\.1\.b'"):
        bad = model()
        bad["body"][1]["b"] = np.ones(4)
        opt.step(bad)
    assert all(entry["step"] == 0 for entry in opt.state.values())
    with pytest.raises(TypeError, match="GroupedParams"):
        fo.SGD([fo.groups(model(), {"head": {}}), np.ones(1)])


def test_forgotten_parameters_begin_anew():
    params, wanted = model(), model()
    opt = grouped(params)
    opt.step(model(1))
    opt.step(model(2))
    for mine, own in zip(flat(wanted), flat(params), strict=True):
        mine[...] = own
    opt.forget(["head.*", "body.0.b"])
    assert {name for name, entry in opt.state.items() if entry == {"step": 0}} == {"head.w", "head.b", "body.0.b"}
    opt.step(model(3))
    assert [opt.state[name]["step"] for name in ("head.w", "body.1.w")] == [1, 3]
    fresh = grouped(wanted)
    fresh.step(model(3))
    assert same_bits(params["head"]["w"], wanted["head"]["w"])
    assert not same_bits(params["body"][1]["w"], wanted["body"][1]["w"])
    before = opt.state_dict()["state"]["head.w"]["exp_avg"]
    with pytest.raises(TypeError, match="divided into groups already; give all rules at once"):
        fo.groups(fo.groups(np.ones(2), {}), {"0": {"lr": 0.1}})
    with pytest.raises(ValueError, match="near are"):
        opt.forget("haed.w")
    with pytest.raises(ValueError, match="selects no parameter"):
        opt.forget([])
    assert same_bits(opt.state["head.w"]["exp_avg"], before)
    opt.forget(lambda name, x: True)
    assert all(entry == {"step": 0} for entry in opt.state.values())
