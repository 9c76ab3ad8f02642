"""One moment in one file, states that fit in part, and states from torch and for it."""

from __future__ import annotations

import copy
import math
import pickle
import subprocess
import sys

import numpy as np
import pytest

import fastoptim as fo
from fastoptim import CheckpointError
from tests.support.cases import same_bits


def model(seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return {"w": rng.standard_normal((3, 2)).astype(dtype), "b": rng.standard_normal(2).astype(dtype)}


def gradients(seed, like):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(p.shape).astype(p.dtype) for name, p in like.items()}


def stepped(opt, params, seeds):
    for seed in seeds:
        opt.step(gradients(seed, params))
    return opt


def copies(params):
    return {name: p.copy() for name, p in params.items()}


# --- extra


def same(a, b):
    """Whether two trees have the same types, values, dtypes and bits."""
    if isinstance(a, dict):
        return type(b) is dict and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, (np.ndarray, np.generic)):
        return type(a) is type(b) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return type(a) is type(b) and repr(a) == repr(b)


EXTRAS = [
    None,
    7,
    -0.0,
    "run é \ud800",
    [],
    {},
    {"step": 3, "best": float("inf"), "none": None, "flag": True, "nan": float("nan"), "big": 1 << 200},
    {"rng": np.random.default_rng(1).bit_generator.state, "old": np.random.MT19937(3).state},
    {"history": [1.0, (2.0, [3])], "curve": np.arange(6, dtype=np.float32).reshape(2, 3).T, "empty": np.zeros((0, 4))},
    {
        "scalars": [np.float32(0.1), np.int64(-1), np.bool_(True)],
        "0-d": np.array(2.5),
        "c": np.array([1j], np.complex64),
    },
    {
        1: "int keys",
        (2, "x"): np.arange(3, dtype=np.int8),
        None: 0.5,
        "$tensor": "w",
        "a/b": np.ones(1),
        "": np.ones(2),
    },
]


@pytest.mark.parametrize("extra", EXTRAS, ids=[str(i) for i in range(len(EXTRAS))])
def test_what_is_saved_beside_an_optimizer_comes_back_exactly(tmp_path, extra):
    params = model()
    opt = stepped(fo.Adam(params, lr=0.1), params, range(3))
    opt.save(tmp_path / "x", extra=extra)
    before, other = copies(params), model(5)
    loaded = fo.Adam(other).load(tmp_path / "x")
    assert same(extra, loaded)
    assert all(same_bits(other[name], before[name]) for name in before)


def test_a_loop_goes_on_from_one_file(tmp_path):
    def train(until, resume=False):
        params, rng, history, start = model(), np.random.default_rng(3), [], 0
        opt = fo.Adam(params, lr=0.1)
        if resume:
            extra = opt.load(tmp_path / "run")
            start, history = extra["step"], extra["history"]
            rng.bit_generator.state = extra["rng"]
        for step in range(start, until):
            g = {name: rng.standard_normal(p.shape) for name, p in params.items()}
            opt.step(g)
            history.append(float(params["b"][0]))
            if step == 3:
                extra = {"step": step + 1, "rng": rng.bit_generator.state, "history": history}
                opt.save(tmp_path / "run", extra=extra)
        return params, history

    whole = train(8)
    again = train(8, resume=True)
    assert whole[1] == again[1] and all(same_bits(whole[0][name], again[0][name]) for name in whole[0])


def endless():
    tree = {}
    tree["again"] = tree
    return tree


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"a": [0, {"b": object()}]}, "extra/a/1/b: a checkpoint cannot hold a object"),
        ({"rng": np.random.default_rng(0)}, "extra/rng: .* hold a Generator: give its state, rng.bit_generator.state"),
        ({"when": np.datetime64("2020-01-01")}, "extra/when: .*datetime64"),
        ({"names": np.array(["x"])}, "extra/names: .*dtype <U1"),
        ({"complex": np.array([1j])}, "extra/complex: .*dtype complex128"),
        ({"keys": {np.int64(1): 2}}, "extra/keys: .*a mapping whose keys are NumPy scalars"),
        ({"f": [print]}, "extra/f/0: .*builtin_function"),
        ({"s": {1, 2}}, "extra/s: .*set"),
        ({"m": np.ma.array([1.0])}, "extra/m: .*MaskedArray"),
        ({"b": b"x"}, "extra/b: .*bytes"),
        (endless(), "nested so deeply, or holds itself"),
        ([0, 10**5000], "extra/1: .*int of 16610 bits"),
    ],
    ids=str.split("object generator datetime strings complex keys function set masked bytes cycle int"),
)
def test_what_no_file_can_hold_is_refused_before_anything_is_written(tmp_path, extra, message):
    opt = fo.SGD(model())
    opt.save(tmp_path / "x", extra="old")
    before = (tmp_path / "x").read_bytes()
    with pytest.raises((TypeError, ValueError), match=message):
        opt.save(tmp_path / "x", extra=extra)
    assert [path.name for path in tmp_path.iterdir()] == ["x"] and (tmp_path / "x").read_bytes() == before


def test_checkpoints_without_extra_give_none(tmp_path):
    def loss_and_grad(params, batch):
        return 0.0, {name: np.zeros_like(p) for name, p in params.items()}

    params = model()
    fo.fit(
        loss_and_grad, params, None, "adam", steps=2, checkpoint=tmp_path / "fit", checkpoint_every=999, diagnose=False
    )
    assert fo.Adam(model(4)).load(tmp_path / "fit") is None


# --- strict=False


def test_what_fits_is_loaded_and_the_rest_is_named(tmp_path):
    saved = model() | {"old": np.zeros(2), "shape": np.zeros(3), "dtype": np.zeros(2)}
    opt = stepped(fo.Adam(saved, lr=0.5, betas=(0.5, 0.75)), saved, range(3))
    opt.save(tmp_path / "x", extra=1)
    file, state = tmp_path / "x", opt.state_dict()

    def other():
        return model(7) | {"new": np.ones(2), "shape": np.ones(4), "dtype": np.ones(2, np.float32)}

    missing, unexpected = ["new", "shape", "dtype"], ["old", "shape", "dtype"]
    for load in ("state dict", "file"):
        params = other()
        mine, before = fo.Adam(params, lr=0.1), copies(params)
        stepped(mine, params, range(2))
        after = copies(params)
        with pytest.raises(ValueError, match="strict=False"):
            mine.load_state_dict(state)
        if load == "file":
            extra, keys = mine.load(file, strict=False)
            assert extra == 1 and same_bits(params["w"], saved["w"]) and same_bits(params["b"], saved["b"])
            after |= {"w": saved["w"], "b": saved["b"]}
        else:
            keys = mine.load_state_dict(state, strict=False)
        assert type(keys) is fo.IncompatibleKeys
        assert sorted(keys.missing_keys) == sorted(missing) and sorted(keys.unexpected_keys) == sorted(unexpected)
        assert mine.lr == 0.5 and mine.betas == (0.5, 0.75)
        assert [mine.state[name]["step"] for name in params] == [3, 3, 2, 2, 2]
        assert same_bits(mine.state["w"]["exp_avg"], state["state"]["w"]["exp_avg"])
        assert all(same_bits(params[name], after[name]) for name in params)
        assert not same_bits(after["new"], before["new"])


def test_sums_of_adam_go_on_in_adamw():
    params = model()
    opt = stepped(fo.Adam(params, lr=0.5, weight_decay=0.25), params, range(3))
    state = opt.state_dict()
    mine, wanted = copies(params), copies(params)
    adamw = fo.AdamW(mine, lr=0.1, weight_decay=0.5)
    with pytest.raises(ValueError, match="state dict is of Adam, this optimizer is AdamW; strict=False"):
        adamw.load_state_dict(state)
    keys = adamw.load_state_dict(state, strict=False)
    assert keys == (["param_groups.0"], []) and adamw.weight_decay == 0.5 and adamw.lr == 0.1
    g = gradients(9, params)
    adamw.step(g)
    for name, p in wanted.items():
        entry = state["state"][name]
        fo.functional.adam(
            p, g[name], entry["exp_avg"], entry["exp_avg_sq"], step=4, lr=0.1, weight_decay=0.5, decoupled=True
        )
        assert same_bits(p, mine[name])


def test_a_parameter_is_loaded_whole_or_not_at_all():
    params = model()
    momentum = stepped(fo.SGD(params, lr=0.1, momentum=0.9), params, range(3)).state_dict()
    adam = fo.Adam(params)
    assert adam.load_state_dict(momentum, strict=False) == (["param_groups.0", "w", "b"], ["w", "b"])
    assert adam.state["w"]["step"] == 0 and "exp_avg" not in adam.state["w"]
    amsgrad = fo.Adam(model(), amsgrad=True)
    state = stepped(fo.AdamW(params), params, range(2)).state_dict()
    keys = amsgrad.load_state_dict(state, strict=False)
    assert sorted(keys.missing_keys) == ["b.max_exp_avg_sq", "param_groups.0", "w.max_exp_avg_sq"]
    assert amsgrad.state["w"]["step"] == 2
    plain = fo.SGD(params)
    assert plain.load_state_dict(momentum, strict=False) == ([], []) and plain.momentum == 0.9


def test_groups_are_matched_by_their_parameters():
    def grouped(order, **options):
        groups = {"w": {"params": {"w": np.zeros(2)}, "lr": 0.5}, "b": {"params": {"b": np.zeros(1)}, "lr": 0.25}}
        return fo.SGD([groups[name] for name in order], lr=0.1, **options)

    state = grouped("wb").state_dict()
    for group, name in zip(state["param_groups"], "wb", strict=True):
        group["params"] = [name]
    state["state"] = {"w": {"step": 3}, "b": {"step": 4}}
    one = fo.SGD({"b": np.zeros(1)}, lr=0.1)
    assert one.load_state_dict(state, strict=False) == ([], ["param_groups.0", "w"])
    assert one.lr == 0.25 and one.state["b"]["step"] == 4
    both = fo.SGD({"w": np.zeros(2), "b": np.zeros(1)}, lr=0.1)
    keys = both.load_state_dict(state, strict=False)
    assert keys.missing_keys == ["param_groups.0"] and both.lr == 0.1  # two rates, of which none is this one's
    assert [both.state[name]["step"] for name in "wb"] == [3, 4]
    state["param_groups"][1]["lr"] = -1.0
    with pytest.raises(ValueError, match="lr must be"):
        one.load_state_dict(state, strict=False)
    state["state"]["b"]["step"] = -1
    with pytest.raises(ValueError, match="step must be an int"):
        both.load_state_dict(state, strict=False)
    assert both.state["w"]["step"] == 3


def test_copies_and_pickles_of_states_are_dicts():
    w = {"a": np.ones(2)}
    opt = fo.NAdam(w)
    opt.step({"a": np.ones(2)})
    then = opt.state_dict()["state"]
    kept = [copy.deepcopy(opt.state), pickle.loads(pickle.dumps(opt.state)), opt.state | {}]
    assert copy.copy(opt.state)["a"]["exp_avg"] is opt.state["a"]["exp_avg"]
    opt.step({"a": np.ones(2)})
    for found in kept[:2]:
        assert type(found) is type(found["a"]) is dict
        np.testing.assert_equal(found, then)
    assert type(kept[2]) is dict and repr(opt.state).startswith("{'a': {'step': 2, ")
    for key in ("a", "b"):
        with pytest.raises(TypeError, match=r"states are read-only here.*load_state_dict"):
            opt.state[key] = {}
    with pytest.raises(TypeError, match="states are read-only here"):
        opt.state["a"]["exp_avg"] = np.zeros(2)


@pytest.mark.parametrize(
    ("make", "name", "bad", "good"),
    [
        (fo.ScheduleFreeSGD, "lr_max", (1e300, math.inf, math.nan, -1.0), (0.0, 7.0)),
        (fo.ScheduleFreeAdamW, "weight_sum", (math.inf, math.nan, -1.0), (0.0, 1e300)),
        (fo.NAdam, "mu_product", (math.nan, -1.0), (0.0, 1.0)),
        (fo.LaProp, "exp_avg_lr", (math.nan, -1.0), (0.0, 1e300)),
        (fo.NovoGrad, "exp_avg_sq", (1e300, -1.0), (0.0, 1e60, math.nan, math.inf)),
    ],
)
def test_numbers_with_which_no_step_could_be_taken_are_not_loaded(tmp_path, make, name, bad, good):
    w, g = np.ones(2, np.float32), np.full(2, 0.5, np.float32)
    opt = make(w)
    opt.step(g)
    saved = opt.state_dict()

    def with_number(value):
        return saved | {"state": {"0": saved["state"]["0"] | {name: value}}}

    for value in bad:
        before = copy.deepcopy(opt.state["0"])
        with pytest.raises(ValueError, match=name):
            opt.load_state_dict(with_number(value))
        np.testing.assert_equal(dict(opt.state["0"]), before)
        file = make(np.ones(2, np.float32))
        file.load_state_dict(saved)
        file._model.parameters[0].scalars[name] = value
        file.save(tmp_path / "a")
        with pytest.raises(CheckpointError, match=name):
            opt.load(tmp_path / "a")
        opt.step(g)
    for value in good:
        opt.load_state_dict(with_number(value))
        assert opt.step(g).applied


# --- torch

TORCH = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.25, "weight_decay": 0.01}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "maximize": True}),
    ("Adam", {"lr": 0.05, "betas": (0.7, 0.9), "weight_decay": 0.1}),
    ("Adam", {"lr": 0.05, "amsgrad": True, "eps": 1e-3}),
    ("AdamW", {"lr": 0.05, "weight_decay": 0.1, "amsgrad": True}),
    ("Adagrad", {"lr": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.5}),
    ("ASGD", {"lr": 0.1, "lambd": 0.1, "t0": 2}),
    ("NAdam", {"lr": 0.05, "momentum_decay": 1.0}),
    ("RMSprop", {"lr": 0.05, "momentum": 0.5, "centered": True}),
    ("Rprop", {"lr": 0.05}),
]
SINGLE = ("ASGD", "NAdam")  # torch keeps numbers beside their states in float32


def torch_run(torch, kind, params, **hyper):
    """A torch optimizer over copies of params; and what steps it with the gradients of some seeds."""
    tensors = {name: torch.nn.Parameter(torch.from_numpy(p.copy())) for name, p in params.items()}
    opt = getattr(torch.optim, kind)(list(tensors.values()), **hyper)

    def step(seeds):
        for seed in seeds:
            for name, g in gradients(seed, params).items():
                tensors[name].grad = torch.from_numpy(g)
            opt.step()
        return {name: tensor.detach().numpy().copy() for name, tensor in tensors.items()}

    return opt, step


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("kind", "hyper"), TORCH, ids=[f"{kind}{i}" for i, (kind, _) in enumerate(TORCH)])
@pytest.mark.parametrize("k", [0, 1, 5])
def test_training_goes_on_in_torch_and_comes_back(kind, hyper, dtype, k):
    torch = pytest.importorskip("torch", reason="LOUD: torch is missing (pip install torch)")
    eps = np.finfo(np.float32 if kind in SINGLE else dtype).eps
    tolerance = {"rtol": 50 * eps, "atol": 50 * eps}  # of 12 steps, each 4 roundings
    start = model(2, dtype)
    straight = copies(start)
    stepped(getattr(fo, kind)(straight, **hyper), straight, range(12))

    params = copies(start)  # k steps here, then torch
    opt = stepped(getattr(fo, kind)(params, **hyper), params, range(k))
    theirs, step = torch_run(torch, kind, params, lr=9.0)
    theirs.load_state_dict(fo.to_torch_state(opt))
    for name, p in step(range(k, 12)).items():
        np.testing.assert_allclose(p, straight[name], **tolerance)

    theirs, step = torch_run(torch, kind, start, **hyper)  # k steps in torch, then here
    params = step(range(k))
    opt = getattr(fo, kind)(params, lr=9.0)
    opt.load_state_dict(fo.from_torch_state(opt, theirs.state_dict(), step=k))
    assert [entry["step"] for entry in opt.state.values()] == [k, k]
    stepped(opt, params, range(k, 12))
    for name, p in params.items():
        np.testing.assert_allclose(p, straight[name], **tolerance)


def test_torch_groups_and_orders():
    torch = pytest.importorskip("torch", reason="LOUD: torch is missing (pip install torch)")
    arrays = {"w": np.ones((2, 3)), "b": np.ones(3), "s": np.ones(1)}
    opt = fo.Adam(
        [{"params": {"w": arrays["w"], "b": arrays["b"]}}, {"params": {"s": arrays["s"]}, "lr": 0.5}], lr=0.25
    )
    opt.step([{"w": np.ones((2, 3)), "b": np.full(3, 2.0)}, {"s": np.ones(1)}])
    state = fo.to_torch_state(opt, ["0.b", "0.w", "1.s"])
    assert [group["lr"] for group in state["param_groups"]] == [0.25, 0.5]
    assert [group["params"] for group in state["param_groups"]] == [[0, 1], [2]]
    assert tuple(state["state"][0]["exp_avg"].shape) == (3,) and state["state"][0]["step"].item() == 1
    tensors = [torch.nn.Parameter(torch.ones(shape, dtype=torch.float64)) for shape in ((3,), (2, 3), (1,))]
    theirs = torch.optim.Adam([{"params": tensors[:2]}, {"params": tensors[2:]}])
    theirs.load_state_dict(state)
    for names, problem in ((["0.w", "1.s", "0.b"], "group 0 has"), (["0.w", "0.b", "1.s", "2"], "expected 3, got 4")):
        with pytest.raises(ValueError, match=problem):
            fo.to_torch_state(opt, names)
    back = fo.from_torch_state(opt, theirs.state_dict(), ["0.b", "0.w", "1.s"])
    for name, entry in opt.state_dict()["state"].items():
        assert same(dict(sorted(entry.items())), dict(sorted(back["state"][name].items())))
    large = 2**24 + 1  # float32, in which torch counts, does not have it
    state = opt.state_dict()
    state["state"]["1.s"]["step"] = large
    opt.load_state_dict(state)
    assert fo.to_torch_state(opt)["state"][2]["step"].item() == large


def test_what_torch_does_not_have_is_refused():
    pytest.importorskip("torch", reason="LOUD: torch is missing (pip install torch)")
    for opt, problem in (
        (fo.Adam(np.ones(1), eps_mode="hat"), "torch's Adam has no eps_mode='hat'"),
        (fo.SGD(np.ones(1), momentum=0.5, momentum_mode="damped"), "torch's SGD has no momentum_mode='damped'"),
        (type("Mine", (fo.Adam,), {})(np.ones(1)), "torch.optim has no Mine"),
    ):
        with pytest.raises(ValueError, match=problem):
            fo.to_torch_state(opt)
    with pytest.raises(TypeError, match="expected an optimizer"):
        fo.to_torch_state({"w": np.ones(1)})


def test_states_of_torch_are_taken_whole_or_refused():
    torch_state = {"state": {"0": {"momentum_buffer": np.ones(2)}}, "param_groups": [{"lr": 0.5, "params": [0]}]}
    opt = fo.SGD(np.zeros(2), lr=0.1, momentum=0.5)
    assert fo.from_torch_state(opt, torch_state, step=7)["state"]["0"]["momentum_buffer"].tolist() == [1.0, 1.0]
    for change, problem in (
        ({"state": {1: {"momentum_buffer": np.ones(2)}}}, r"of the parameters \[1\], which no group has"),
        ({"state": {0: {"step": 2.5}}}, "'0': step must be a whole number from 0, got 2.5"),
        ({"param_groups": [{"lr": 0.5}]}, "not a state dict of torch.optim.*KeyError: 'params'"),
        ({"state": None}, "not a state dict of torch.optim"),
    ):
        with pytest.raises(ValueError, match=problem):
            fo.from_torch_state(opt, torch_state | change)
    for nothing in (None, {}):
        with pytest.raises(ValueError, match=r"not a state dict of torch\.optim"):
            fo.from_torch_state(opt, nothing)
    with pytest.raises(TypeError, match="step"):
        fo.from_torch_state(opt, torch_state, step=1.5)
    with pytest.raises(ValueError, match=r"torch\.optim has no LAMB"):
        fo.from_torch_state(fo.LAMB(np.zeros(2)), torch_state)


@pytest.mark.parametrize("strict", [True, False])
def test_what_is_no_state_dict_is_refused_by_name(strict):
    for part, bad in (("param_groups", None), ("param_groups", [{"lr": 1.0}]), ("param_groups", [3]), ("state", None)):
        opt = fo.Adam({"w": np.ones(2)}, lr=0.25)
        with pytest.raises(ValueError, match="not a state dict of an optimizer: state must be a mapping"):
            opt.load_state_dict(opt.state_dict() | {part: bad}, strict=strict)
        assert opt.lr == 0.25
        with pytest.raises(ValueError, match=r"'version' is missing; fastoptim\.from_torch_state converts"):
            opt.load_state_dict({"state": {}, "param_groups": []}, strict=strict)


def test_what_torch_averages_and_sums_goes_over():
    torch = pytest.importorskip("torch", reason="LOUD: torch is missing (pip install torch)")
    opt = fo.ASGD(np.ones(2), lr=0.1, t0=1)
    stepped_to = fo.Adagrad(np.ones(2), initial_accumulator_value=0.5)  # torch has its sum from the start
    for _ in range(3):
        opt.step(np.ones(2))
    state = fo.to_torch_state(opt)["state"][0]
    theirs = torch.optim.ASGD([torch.nn.Parameter(torch.ones(2, dtype=torch.float64))], lr=0.1, t0=1)
    for _ in range(3):
        theirs.param_groups[0]["params"][0].grad = torch.ones(2, dtype=torch.float64)
        theirs.step()
    wanted = theirs.state_dict()["state"][0]
    assert set(state) == set(wanted)
    for key, x in wanted.items():
        np.testing.assert_allclose(state[key], x, rtol=1e-6)  # torch's eta and mu are float32
    assert fo.to_torch_state(stepped_to)["state"][0]["sum"].tolist() == [0.5, 0.5]
    sparse = fo.SparseAdam(np.ones((3, 2)))
    sparse.step(fo.Rows(np.array([1]), np.ones((1, 2))))
    assert set(fo.to_torch_state(sparse)["state"][0]) == {"step", "exp_avg", "exp_avg_sq"}


def test_states_come_from_torch_without_torch():
    code = """
import sys
sys.modules["torch"] = None
import numpy as np, fastoptim as fo
opt = fo.Adam(np.zeros(2), eps_mode="hat")
entry = {"step": np.float32(3), "exp_avg": np.ones(2), "exp_avg_sq": np.full(2, 4.0)}
group = {"lr": 0.5, "betas": (0.5, 0.75), "weight_decay": 0, "fused": None, "foreach": True, "params": [0]}
torch_state = {"state": {0: entry}, "param_groups": [group]}
opt.load_state_dict(fo.from_torch_state(opt, torch_state))
print(opt.lr, opt.betas, opt.eps_mode, opt.state["0"]["step"], opt.state["0"]["exp_avg_sq"])
for change in ({"decoupled_weight_decay": True, "weight_decay": 0.1}, {"momentum_decay": 0.1}, {"params": [0, 1]}):
    try:
        fo.from_torch_state(opt, {"state": {}, "param_groups": [group | change]})
    except ValueError as error:
        print(error)
try:
    fo.to_torch_state(opt)
except ImportError as error:
    print("ImportError")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "0.5 (0.5, 0.75) torch 3 [4. 4.]",
        "Adam is not what torch computes with decoupled_weight_decay=True",
        "Adam has no momentum_decay, which torch's state dict sets to 0.1",
        "torch's groups have [2] parameters, those of this optimizer [1]",
        "ImportError",
    ]


@pytest.mark.parametrize("strict", [True, False])
def test_hyperparameters_that_float32_cannot_hold_are_not_loaded(strict):
    state = fo.Adam([np.ones(3)], eps=1e-50).state_dict()
    opt = fo.Adam([np.ones(3, np.float32)])
    with pytest.raises(ValueError, match="eps = 1e-50 is zero in float32"):
        opt.load_state_dict(state, strict=strict)
    assert opt.param_groups[0]["eps"] == 1e-8
    fo.Adam([np.ones(3)]).load_state_dict(state)
