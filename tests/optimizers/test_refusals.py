"""Each bad input at each position of a list: a clear error, every byte and counter unchanged."""

from __future__ import annotations

import copy
import re
from fractions import Fraction
from functools import partial

import numpy as np
import pytest

import fastoptim as fo
from fastoptim.adapters import per_array
from fastoptim.backends import get_backend
from fastoptim.rules.table import RULES, Kernel
from tests.support import cases as support

BACKENDS = ("c", "numba", "numpy")
COUNT = 4


def parameters():
    return [np.full((2, 3), float(i + 1), np.float32) for i in range(COUNT)]


def gradients():
    return [np.full((2, 3), 0.5, np.float32) for _ in range(COUNT)]


def read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


# name -> (what becomes of gradient i, given parameters, gradients and i; error; words of the message)
BAD_GRADIENTS = {
    "shape": (lambda p, g, i: np.zeros((3, 2), np.float32), ValueError, "shape"),
    "dimensions": (lambda p, g, i: np.zeros(6, np.float32), ValueError, "shape"),
    "dtype": (lambda p, g, i: np.zeros((2, 3)), TypeError, "float32"),
    "integers": (lambda p, g, i: np.zeros((2, 3), np.int32), TypeError, "float32"),
    "byte order": (lambda p, g, i: np.zeros((2, 3), ">f4"), TypeError, ">f4"),
    "list": (lambda p, g, i: [[0.0] * 3] * 2, TypeError, "expected a NumPy array"),
    "masked": (lambda p, g, i: np.ma.zeros((2, 3), np.float32), TypeError, "MaskedArray"),
    "number": (lambda p, g, i: 1.0, TypeError, "float"),
    "overlaps its parameter": (lambda p, g, i: p[i], ValueError, "overlap"),
    "overlaps another parameter": (lambda p, g, i: p[(i + 1) % COUNT], ValueError, "overlap"),
}


def snapshot(params, opt):
    return [p.tobytes() for p in params], repr({name: dict(entry) for name, entry in opt.state.items()})


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("after_a_step", [False, True], ids=["first step", "later step"])
@pytest.mark.parametrize("position", range(COUNT))
@pytest.mark.parametrize("case", BAD_GRADIENTS)
def test_bad_gradient(case, position, after_a_step, backend):
    make, error, words = BAD_GRADIENTS[case]
    params = parameters()
    opt = fo.Adam(params, lr=0.1, backend=backend, threads=2)
    if after_a_step:
        opt.step(gradients())
    before = snapshot(params, opt)
    grads = gradients()
    grads[position] = make(params, grads, position)
    for options in ({}, {"max_norm": 1.0}, {"skip_nonfinite": True, "grad_scale": 0.5}):
        with pytest.raises(error, match=words) as caught:
            opt.step(grads, **options)
        assert f"'{position}'" in str(caught.value), "the message must name the parameter"
        assert snapshot(params, opt) == before


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("position", range(COUNT))
def test_gradient_that_overlaps_a_parameter_or_state_in_part(position, backend):
    room = np.zeros((COUNT, 4, 3), np.float32)
    params = [room[i, :2] for i in range(COUNT)]
    opt = fo.Adam(params, lr=0.1, backend=backend)
    opt.step(gradients())
    before = snapshot(params, opt)
    for bad in (room[position, 1:3], opt.state[str(position)]["exp_avg"]):
        grads = gradients()
        grads[position] = bad
        with pytest.raises(ValueError, match="overlap"):
            opt.step(grads)
        assert snapshot(params, opt) == before


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("skip", [False, True])
def test_a_step_that_would_be_skipped_still_refuses(skip, backend):
    params = parameters()
    opt = fo.SGD(params, lr=0.1, backend=backend)
    grads = gradients()
    grads[0][0, 0] = np.nan
    grads[2] = params[1]
    with pytest.raises(ValueError, match="overlap"):
        opt.step(grads, skip_nonfinite=skip)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("position", range(COUNT))
def test_bad_parameter_at_construction(position, backend):
    bad = {
        "read-only": read_only(np.zeros((2, 3), np.float32)),
        r"float16\), got int64: convert it": np.zeros((2, 3), np.int64),
        ">f4": np.zeros((2, 3), ">f4"),
        "expected a NumPy array": 1.0,
        "MaskedArray": np.ma.zeros(3),
        "same address": np.lib.stride_tricks.as_strided(np.zeros(3), (3, 3), (8, 8)),
        "overlap": None,
    }
    for words, p in bad.items():
        params = parameters()
        params[position] = params[(position + 1) % COUNT] if p is None else p
        with pytest.raises((TypeError, ValueError), match=words):
            fo.SGD(params, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("position", range(COUNT))
def test_parameter_that_changed_since(position, backend):
    changes = {
        "shape": lambda p: np.zeros(6, np.float32),
        "dtype": lambda p: np.zeros((2, 3)),
        "read-only": read_only,
        "overlap": None,
        "expected a NumPy array": lambda p: None,
    }
    for words, change in changes.items():
        params = parameters()
        opt = fo.Adam(params, lr=0.1, backend=backend)
        opt.step(gradients())
        before = snapshot(params, opt)
        live = opt.param_groups[0]["params"]
        live[position] = live[(position + 1) % COUNT] if change is None else change(live[position])
        with pytest.raises((TypeError, ValueError), match=words) as caught:
            opt.step(gradients())
        assert f"'{position}'" in str(caught.value)
        assert snapshot(params, opt) == before


def test_parameter_that_turned_read_only_in_place():
    params = parameters()
    opt = fo.SGD(params, lr=0.1, backend="c")
    opt.step(gradients())
    params[2].flags.writeable = False
    before = snapshot(params, opt)
    with pytest.raises(ValueError, match="'2' is read-only"):
        opt.step(gradients())
    assert snapshot(params, opt) == before


def test_memory_that_moves_under_a_live_array_is_followed():
    p = np.ones(10)
    opt = fo.SGD(p, lr=1.0, backend="c")
    opt.step(np.ones(10))
    p.resize(1_000_000, refcheck=False)
    with pytest.raises(ValueError, match="shape"):
        opt.step(np.ones(10))
    p.resize(10, refcheck=False)
    opt.step(np.ones(10))
    assert np.all(p == -1)


def native_plan(rule, params):
    return support.native_plan(get_backend("c"), Kernel(RULES[rule], "none"), params)


@pytest.mark.parametrize("room", [40, 60])
def test_a_gradient_between_parameters_is_plain_exactly_where_it_fits(room):
    """Parameters of 50 and 40 elements with `room` between them; the native call itself says what overlaps."""
    buffer = np.ones(50 + room + 40, np.float32)
    params, other = (buffer[:50], buffer[-40:]), np.ones(50, np.float32)
    plan = native_plan("sgd", params)
    for start in [*range(50 + room + 1), 0]:
        fits = 50 <= start <= 10 + room
        assert plan.step(params, (other, buffer[start : start + 40]), (), ((1.0, 0.0, 0.5),)) == fits, start


def test_an_overlap_is_noticed_when_a_norm_has_read_the_gradient_before():
    buffer = np.ones(200, np.float32)
    params, good, bad = (buffer[:100],), (buffer[100:],), (buffer[50:150],)
    plan = native_plan("sgd", params)
    assert plan.step(params, good, (), ((1.0, 0.0, 0.5),))
    for grads in (bad, good, bad):
        plan.sum_squares(grads, 1.0, 1.0)
        assert plan.step(params, grads, (), ((1.0, 0.0, 0.5),)) == (grads is good)


def momentum_step(params):
    """The native step ``v <- v / 2 + g, p <- p - v / 4`` of given parameters, gradients and states.

    One more array is stepped beside them, because the states of a single one are not remembered.
    """
    plan = native_plan("momentum", [*params, np.ones(2)])
    more = np.ones((3, 2))
    longer = {}  # the same tuple of states for the same tuple

    def step(params, grads, states):
        _, long = longer.setdefault(id(states), (states, (*states, more[2])))
        return plan.step((*params, more[0]), (*grads, more[1]), long, ((1.0, 0.0, 0.5, 1.0, 0.25),))

    return step


def test_states_that_move_or_shrink_are_noticed_in_the_very_same_tuple():
    p, g = np.ones(10), np.ones(10)
    v = np.zeros(10)
    states, step = (v,), momentum_step([p])
    assert step((p,), (g,), states)
    for size in (5, 1_000_000):  # where it was, and elsewhere
        v.resize(size, refcheck=False)
        assert not step((p,), (g,), states)
    v.resize(10, refcheck=False)
    v[:] = 1
    assert step((p,), (g,), states)
    assert np.all(v == 1.5)


def test_known_states_keep_their_order_in_memory():
    p, g, states = np.ones((3, 4)), np.ones((3, 4)), (np.zeros(12).reshape(3, 4),)
    step = momentum_step([p])
    assert step((p,), (g,), states) and step((p,), (g,), states)
    assert not step((np.asfortranarray(p),), (np.asfortranarray(g),), states)
    assert step((p,), (g,), states)


def test_known_states_are_not_mistaken_for_others_at_their_address():
    memory = np.zeros((3, 3), order="F")
    p, g, step = (np.ones((3, 3), order="F"),), (np.ones((3, 3), order="F"),), momentum_step([memory])
    views = (memory.T,)
    assert step((p[0].T,), (g[0].T,), views)
    assert step(p, g, (memory,))
    assert not step(p, g, views)


def test_addresses_of_known_states_are_read_at_every_step():
    p, g, memory = (np.ones(4),), (np.ones(4),), np.zeros(8)
    view, step = memory[2:6], momentum_step([p[0]])
    states = (view,)
    assert step(p, g, states)
    view.__setstate__((1, view.shape, view.dtype, False, np.zeros(4).tobytes()))  # a view no longer, and elsewhere
    assert step(p, g, states)
    assert np.all(memory[2:6] == 1) and np.all(view == 1)


def test_known_states_are_found_again_after_others_were_refused():
    params, grads = (np.ones(4), np.ones(4)), (np.ones(4), np.ones(4))
    ours, others = np.zeros((2, 4)), np.zeros((2, 4))
    step, states = momentum_step(params), tuple(ours)
    assert step(params, grads, states)
    assert not step(params, grads, (others[0], others[1][:3]))
    assert step(params, grads, states)
    assert np.all(ours == 1.5) and np.all(others == 0)


@pytest.mark.parametrize(
    "structure",
    [
        lambda g: g[:-1],
        lambda g: [*g, g[0]],
        lambda g: dict(enumerate(g)),
        lambda g: g[0],
        lambda g: None,
        lambda g: [g, *g[1:]],
    ],
    ids=["too few", "too many", "mapping", "array", "None", "nested"],
)
def test_other_structure(structure):
    params = parameters()
    opt = fo.SGD(params, lr=0.1, backend="c")
    opt.step(gradients())
    before = snapshot(params, opt)
    with pytest.raises((TypeError, ValueError)):
        opt.step(structure(gradients()))
    assert snapshot(params, opt) == before


def test_mapping_with_other_names():
    opt = fo.SGD({"w": np.ones(2), "b": np.ones(1)}, backend="c")
    with pytest.raises(ValueError, match=r"missing: \['b'\].*unknown: \['c'\]"):
        opt.step({"w": np.ones(2), "c": np.ones(1)})


NAN = float("nan")
BAD_HYPER = [
    (fo.SGD, {"lr": NAN}, "lr"),
    (fo.SGD, {"lr": 10**400}, "lr must be >= 0 and finite"),
    (fo.SGD, {"lr": -0.1}, r"lr must be >= 0 and finite, got -0\.1: to climb, say maximize=True"),
    (fo.SGD, {"dampening": -(10**400)}, "dampening"),
    (fo.SGD, {"lr": "fast"}, "lr"),
    (fo.SGD, {"lr": None}, "lr"),
    (fo.SGD, {"momentum": 1.0}, "momentum"),
    (fo.SGD, {"momentum": -0.1}, "momentum"),
    (fo.SGD, {"momentum": NAN}, "momentum"),
    (fo.SGD, {"dampening": NAN}, "dampening"),
    (fo.SGD, {"weight_decay": -1.0}, "weight_decay"),
    (fo.SGD, {"nesterov": True}, "nesterov"),
    (fo.SGD, {"nesterov": 1, "momentum": 0.9}, "nesterov"),
    (fo.SGD, {"momentum": 0.9, "momentum_mode": "keras"}, "momentum_mode"),
    (fo.SGD, {"maximize": "yes"}, "maximize"),
    (fo.Adam, {"lr": float("inf")}, "lr"),
    (fo.Adam, {"betas": (1.0, 0.9)}, r"betas\[0\]"),
    (fo.Adam, {"betas": (0.9, -0.1)}, r"betas\[1\]"),
    (fo.Adam, {"betas": (0.9, NAN)}, r"betas\[1\]"),
    (fo.Adam, {"betas": 0.9}, "betas"),
    (fo.Adam, {"betas": {0.9, 0.999}}, "betas must be a pair of numbers"),  # in whatever order
    (fo.Adam, {"betas": {0.9: 0, 0.999: 0}}, "betas must be a pair of numbers"),
    (fo.Adan, {"betas": iter((0.98, 0.92, 0.99))}, "betas must be three numbers"),  # which can be read once
    (fo.Adam, {"eps": -1e-8}, "eps"),
    (fo.Adam, {"eps_mode": "tf"}, "eps_mode"),
    (fo.AdamW, {"weight_decay": NAN}, "weight_decay"),
]


@pytest.mark.parametrize(("cls", "hyper", "name"), BAD_HYPER, ids=lambda x: str(x)[:40])
def test_bad_hyperparameters(cls, hyper, name):
    with pytest.raises((TypeError, ValueError), match=name):
        cls(np.ones(2), backend="c", **hyper)
    p = np.ones(2)
    opt = cls(p, backend="c")
    opt.step(np.ones(2))
    before = snapshot([p], opt)
    opt.param_groups[0].update(hyper)
    with pytest.raises((TypeError, ValueError), match=name):
        opt.step(np.ones(2))
    assert snapshot([p], opt) == before


@pytest.mark.parametrize(
    ("name", "value", "storage"),
    [
        ("lr", 1e39, {}),
        ("lr", 10**39, {}),
        ("eps", 1e-50, {}),
        ("betas", (0.9, NAN), {}),
        ("cautious", True, {"state_dtype": "float8"}),
    ],
)
def test_what_a_class_refuses_no_attribute_takes_and_no_file_holds(name, value, storage, tmp_path):
    p = np.ones(2, np.float32)
    with pytest.raises(ValueError) as refused:
        fo.Adam(p, **{name: value}, **storage)
    opt = fo.Adam(p, **storage)
    opt.step(np.ones(2, np.float32))
    for call in (lambda: setattr(opt, name, value), lambda: setattr(opt, name, [value])):
        with pytest.raises(ValueError, match=re.escape(str(refused.value))):
            call()
    assert opt.param_groups[0][name] == fo.Adam(p).param_groups[0][name]
    opt.param_groups[0][name] = value
    for call in (opt.state_dict, lambda: opt.save(tmp_path / "file"), lambda: copy.deepcopy(opt)):
        with pytest.raises(ValueError, match=re.escape(str(refused.value))):
            call()
    assert not list(tmp_path.iterdir())


def test_what_a_class_refuses_no_function_takes():
    p, g, m, v = (np.zeros(2, np.float32) for _ in range(4))
    for eps in (1e-50, Fraction(1, 10**50), np.array(1e-50)):
        with pytest.raises(ValueError, match="eps = 1e-50 is zero in float32"):
            fo.functional.adam(p, g, m, v, step=1, eps=eps)
    fo.functional.adam(*(np.zeros(2) for _ in range(4)), step=1, eps=1e-50)
    for adam in (partial(fo.functional.adam, step=1), partial(per_array.update, t=1)):
        with pytest.raises(TypeError, match="betas must be a pair of numbers"):
            adam(p, g, m, v, betas={0.9, 0.999})
        adam(*(np.zeros(2) for _ in range(4)), betas=np.array([0.9, 0.999]))
    with pytest.raises(ValueError, match="eps_root = 1e-50 is zero in float32"):
        fo.functional.adabelief(p, g, {}, eps_root=1e-50)
    assert not (np.isnan(p).any() or m.any() or v.any())

    def root(g, p, v, lr, eps):
        v = v + g * g
        return lr * g / (np.sqrt(v) + eps), v

    own = fo.rule(root, states="v", coefficients=lambda lr=0.1, eps=1e-8, pair=(1, 2): (lr, eps))
    with pytest.raises(ValueError, match="eps = 1e-50 is zero in float32"):
        own.update(p, g, v, step=1, eps=1e-50, backend="numpy")
    own.update(p, g, v, step=1, pair=[3, 4], backend="numpy")  # as the class takes it


def test_names_of_a_group_cannot_be_changed():
    opt = fo.SGD([np.ones(2), np.ones(2)], lr=0.5, momentum=0.5)
    names = opt.param_groups[0]["names"]
    changes = (names.reverse, lambda: names.append("2"), lambda: names.__setitem__(0, "w"), lambda: names.__iadd__("w"))
    for change in changes:
        with pytest.raises(TypeError, match="names of a group are fixed"):
            change()
    assert names == ["0", "1"] and type(copy.deepcopy(names)) is list


def test_a_group_is_merged_in_place():
    opt = fo.SGD([np.ones(2)], lr=0.5)
    opt.param_groups[0] |= {"lr": 0.25}
    assert opt.lr == 0.25
    for index, value in ((0, dict(opt.param_groups[0])), (slice(None), opt.param_groups)):
        with pytest.raises(TypeError, match="grows by add_param_group alone"):
            opt.param_groups[index] = value


@pytest.mark.parametrize(
    "options",
    [
        {"grad_scale": NAN},
        {"grad_scale": -float("inf")},
        {"grad_scale": "1"},
        {"grad_scale": None},
        {"max_norm": -1.0},
        {"max_norm": NAN},
        {"skip_nonfinite": "no"},
        {"skip_nonfinite": None},
    ],
    ids=str,
)
def test_bad_step_options(options):
    p = np.ones(2)
    opt = fo.SGD(p, backend="c")
    with pytest.raises((TypeError, ValueError), match=next(iter(options))):
        opt.step(np.ones(2), **options)
    assert np.all(p == 1) and opt.state["0"]["step"] == 0


def test_bad_construction():
    with pytest.raises(ValueError, match="no parameters"):
        fo.SGD([], backend="c")
    with pytest.raises(ValueError, match="backend"):
        fo.SGD(np.ones(2), backend="gpu")
    for backend in (np.ones(2), ["c"], None):
        with pytest.raises(TypeError, match="backend must be one of"):
            fo.SGD(np.ones(2), backend=backend)
    with pytest.raises(ValueError, match="threads"):
        fo.SGD(np.ones(2), threads=0)
    for threads in (2**29, 2**31, 2**64):  # the first once divided by 0 in C
        with pytest.raises(ValueError, match="threads must be from 1 to 1024"):
            fo.SGD(np.ones(2), threads=threads)
    fo.SGD(np.ones(2), threads=1024, backend="c").step(np.ones(2))
    for threads in (1.5, True, "2", np.array(2.5)):
        with pytest.raises(TypeError, match="threads"):
            fo.SGD(np.ones(2), threads=threads)
    with pytest.raises(TypeError, match=r"AdamW.*learning_rate"):
        fo.AdamW(np.ones(2), learning_rate=0.1)
    with pytest.raises(ValueError, match="beta"):
        fo.Adam([{"params": np.ones(2), "beta": 0.5}])
    with pytest.raises(ValueError, match="two parameters have the name"):
        fo.SGD({"a": {"b": np.ones(1)}, "a.b": np.ones(1)})
    with pytest.raises(TypeError, match="mapping with the key 'params'"):
        fo.SGD(np.ones(2), backend="c").add_param_group([np.ones(1)])


def test_a_failed_add_param_group_changes_nothing():
    p = np.ones(3)
    opt = fo.SGD(p, lr=0.5, backend="c")
    for bad in (
        {"params": [np.ones(2), p]},
        {"params": np.ones(2), "lr": -1},
        {"params": np.ones(2, int)},
    ):
        with pytest.raises((TypeError, ValueError)):
            opt.add_param_group(bad)
    assert len(opt.param_groups) == 1
    opt.step(np.ones(3))
    assert np.all(p == 0.5)


def test_functional_refuses_before_it_writes():
    p, g, m, v = (np.ones(3) for _ in range(4))
    arrays = copy.deepcopy((p, g, m, v))
    bad = [
        lambda: fo.functional.adam(p, g, m, m, step=1),
        lambda: fo.functional.adam(p, p, m, v, step=1),
        lambda: fo.functional.adam(p, g, m, v, step=0),
        lambda: fo.functional.adam(p, g, m, v, step=10**400),
        lambda: fo.functional.adam(p, g, m, v, step=1.0),
        lambda: fo.functional.adam(p, g, m, v.astype(np.float32), step=1),
        lambda: fo.functional.adam(p, g, m, v[:2], step=1),
        lambda: fo.functional.adam(p, g, m, read_only(v), step=1),
        lambda: fo.functional.adam(p, g, m, v, step=1, betas=(2, 0.5)),
        lambda: fo.functional.sgd(p, g.astype(np.float32), lr=0.1),
        lambda: fo.functional.sgd(p, g, lr=-1),
        lambda: fo.functional.momentum(p, g, v, lr=0.1, momentum=0.0),
        lambda: fo.functional.momentum(p, g, p, lr=0.1),
    ]
    for call in bad:
        with pytest.raises((TypeError, ValueError)):
            call()
        assert all(np.array_equal(a, b) for a, b in zip((p, g, m, v), arrays, strict=True))


def advised(call, **names):
    """What the error of a call says behind its last comma, where a program stands, with `names` for what is refused."""
    with pytest.raises(TypeError) as caught:
        call()
    return eval(str(caught.value).rpartition(", ")[2], {"np": np, **names})


@pytest.mark.parametrize("dtype", ["i8", "?", ">f4", ">f8", "f2", "longdouble"])
def test_what_an_error_advises_is_taken(dtype):
    """By functions and adapters, which take less than the classes do."""
    from fastoptim.adapters import cs231n, dicts

    x = np.ones(3, dtype)
    steps = (
        lambda p: fo.functional.sgd(p, np.ones(3, p.dtype), lr=0.1),
        lambda p: dicts.SGD().update({"w": p}, {"w": np.ones(3)}),
        lambda p: cs231n.sgd(p, np.ones(3), {}),
        lambda p: fo.grad_norm([p]),
        lambda p: fo.Rows(np.arange(3), p),
    )
    for step in steps:
        step(p := advised(lambda step=step: step(x), x=x))
        assert p.dtype == (np.float32 if x.dtype.kind == "f" and x.itemsize <= 4 else np.float64)


@pytest.mark.parametrize("dtype", ["c8", "c16"])
def test_complex_numbers_are_never_cut(dtype):
    p = np.ones(3, dtype)
    with pytest.raises(TypeError, match=r"complex.*: step its real and imaginary parts"):
        fo.Adam(p)
    fo.Adam(advised(lambda: fo.Adam(p), x=p), lr=0.5).step(np.ones(6, p.real.dtype))
    assert np.allclose(p, 0.5 - 0.5j)
    calls = (lambda: fo.Adam(np.ones(3)).step(p), lambda: fo.minimize(np.sum, np.ones(3), jac=lambda x: p))
    for call in calls:
        with pytest.raises(TypeError, match=r"complex.*: .\.real, if its imaginary part is nothing but"):
            call()


def test_tensors_are_handed_over_as_the_error_says():
    torch = pytest.importorskip("torch", reason="LOUD: pip install torch==2.13.0")
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="LOUD: pip install ml_dtypes")
    from fastoptim.adapters import dicts

    known = {"torch": torch, "ml_dtypes": ml_dtypes}
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        t = torch.ones(3, dtype=dtype, requires_grad=True)
        opt = fo.SGD(advised(lambda t=t: fo.SGD(t, lr=0.5), t=t, **known), lr=0.5)
        opt.step(advised(lambda opt=opt, t=t: opt.step(t), t=t, **known) * 0 + 1)
        assert t.tolist() == [0.5] * 3, "the memory is the tensor's"
        w = np.ones(3, np.float32)
        for step in (fo.SGD(w).step, lambda g, w=w: dicts.SGD().update({"": w}, {"": g}), lambda g: fo.grad_norm([g])):
            step(np.float32(1) * advised(lambda step=step, t=t: step(t), t=t, **known))
    with pytest.raises(TypeError, match=r"to_dense\(\)\.numpy"):
        fo.SGD(np.ones(3, np.float32)).step(torch.ones(3).to_sparse())


@pytest.mark.parametrize(
    "make", [np.copy, lambda x: [x], lambda x: {"a": x}, lambda x: {"a": [x]}, lambda x: [{"params": x}]]
)
def test_a_closure_is_told_that_gradients_come_first(make):
    p = np.ones(3)
    opt = fo.SGD(make(p), lr=0.1)
    for call in (lambda: opt.step(lambda: p), lambda: opt.step(p.copy), lambda: opt.step(lambda: p, max_norm=1.0)):
        with pytest.raises((TypeError, ValueError), match=r"gradients? .*: grads = f\(\), then opt\.step\(grads\)"):
            call()
    with pytest.raises(
        TypeError, match="parameter '0': expected a NumPy array, got builtin_function_or_method: call it"
    ):
        fo.SGD(p.copy, lr=0.1)


def test_a_group_without_its_list_is_no_parameter():
    group = {"params": np.ones(3), "lr": 0.1}
    with pytest.raises(TypeError, match=r"a parameter group goes into a list, \[group\]; got one with .*'lr'"):
        fo.Adam(group)
    assert fo.Adam([group]).lr == 0.1 and len(fo.Adam({"params": np.ones(3), "rest": np.ones(2)}).state) == 2


def test_a_function_names_the_hyperparameter_that_is_an_array():
    p, g, m, v = np.ones((4, 2))
    for name in ("lr", "eps", "weight_decay", "update_clip"):
        with pytest.raises(TypeError, match=f"{name} must be a real number, got an array"):
            fo.functional.adam(p, g, m, v, step=1, **{name: np.ones(2)})
