"""The classes: what a step does, groups, skipped parameters, states, copies."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import fastoptim as fo
from fastoptim.rules import coefficients as k
from fastoptim.rules.norm import clip_factor
from tests.support.cases import same_bits

BACKENDS = ("c", "numba", "numpy")


_ADAM = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6}
KINDS = {
    "sgd": (fo.SGD, {"lr": 0.1}),
    "sgd-decay": (fo.SGD, {"lr": 0.1, "weight_decay": 0.2, "maximize": True}),
    "momentum": (fo.SGD, {"lr": 0.1, "momentum": 0.8, "dampening": 0.3, "weight_decay": 0.01}),
    "lr-inside": (fo.SGD, {"lr": 0.1, "momentum": 0.8, "momentum_mode": "lr_inside"}),
    "damped": (fo.SGD, {"lr": 0.1, "momentum": 0.8, "momentum_mode": "damped"}),
    "nesterov": (fo.SGD, {"lr": 0.1, "momentum": 0.8, "nesterov": True}),
    "nesterov-lr-inside": (fo.SGD, {"lr": 0.1, "momentum": 0.8, "nesterov": True, "momentum_mode": "lr_inside"}),
    "adam": (fo.Adam, _ADAM | {"weight_decay": 0.1}),
    "adam-hat": (fo.Adam, _ADAM | {"eps_mode": "hat"}),
    "adamw": (fo.AdamW, _ADAM | {"weight_decay": 0.1}),
    "amsgrad": (fo.Adam, _ADAM | {"amsgrad": True}),
}


def model(dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "w": rng.standard_normal((7, 13)).astype(dtype),
        "layers": [rng.standard_normal(n).astype(dtype) for n in (1, 300)],
        "b": rng.standard_normal(()).astype(dtype),
    }


def flat(tree):
    return [tree["w"], *tree["layers"], tree["b"]]


def gradients(t, dtype=np.float32):
    return model(dtype, seed=100 + t)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_stepped_as_each_of_its_arrays_by_itself(kind, dtype, backend):
    """Those have the bits of the equations: see tests/rules/test_oracle.py."""
    cls, hyper = KINDS[kind]
    params = model(dtype)
    wanted = [p.copy() for p in flat(params)]
    opt = cls(params, backend=backend, threads=2, **hyper)
    alone = [cls(p, backend="numpy", **hyper) for p in wanted]
    for t in range(1, 11):
        grads = gradients(t, dtype)
        assert opt.step(grads, grad_scale=0.5) == (True, None)
        for other, g in zip(alone, flat(grads), strict=True):
            other.step(g, grad_scale=0.5)
    for name, p, w, other in zip(opt.state, flat(params), wanted, alone, strict=True):
        mine, theirs = opt.state[name], other.state["0"]
        assert same_bits(p, w) and mine.keys() == theirs.keys() and mine["step"] == theirs["step"] == 10
        assert all(same_bits(x, theirs[slot]) for slot, x in mine.items() if slot != "step")


def test_names_are_paths():
    assert list(fo.SGD(model(), backend="numpy").state) == ["w", "layers.0", "layers.1", "b"]
    assert list(fo.SGD(np.zeros(3), backend="numpy").state) == ["0"]
    assert list(fo.SGD([{"params": np.zeros(3)}, {"params": [np.zeros(2)]}], backend="numpy").state) == ["0.0", "1.0"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_none_skips_a_parameter_and_zeros_do_not(backend):
    p = [np.ones(3), np.ones(3)]
    opt = fo.Adam(p, lr=0.1, backend=backend)
    opt.step([np.ones(3), None])
    assert [entry["step"] for entry in opt.state.values()] == [1, 0]
    assert np.all(p[1] == 1) and "exp_avg" not in opt.state["1"]
    opt.step([np.zeros(3), np.ones(3)])
    assert [entry["step"] for entry in opt.state.values()] == [2, 1]
    assert np.all(p[1] == p[1][0]) and p[1][0] == pytest.approx(0.9)
    alone = np.ones(3)
    other = fo.Adam(alone, lr=0.1, backend=backend)
    other.step(np.ones(3))
    opt.step([None, np.full(3, 2.0)])
    other.step(np.full(3, 2.0))
    assert same_bits(p[1], alone)


@pytest.mark.parametrize("backend", BACKENDS)
def test_groups_have_their_own_hyperparameters(backend):
    a, b, c = np.ones(4), np.ones(4), np.ones(4)
    opt = fo.SGD([{"params": [a], "lr": 0.5}, {"params": {"b": b}, "momentum": 0.9}], lr=0.25, backend=backend)
    g = np.ones(4)
    opt.step([[g], {"b": g}])
    opt.step([[g], {"b": g}])
    assert a[0] == 1 - 2 * 0.5
    assert b[0] == 1 - 0.25 - 0.25 * 1.9
    opt.add_param_group({"params": c, "lr": 1.0, "maximize": True})
    opt.step([[g], {"b": g}, g])
    assert c[0] == 2.0
    assert [entry["step"] for entry in opt.state.values()] == [3, 3, 1]


def test_add_param_group_to_a_plain_optimizer_makes_step_take_a_list():
    a, b = np.ones(2), np.ones(2)
    opt = fo.SGD(a, lr=0.5, backend="c")
    opt.step(np.ones(2))
    opt.add_param_group({"params": [b]})
    opt.step([np.ones(2), [np.ones(2)]])
    assert a[0] == 0 and b[0] == 0.5
    with pytest.raises(ValueError, match="each group, 2 in all"):
        opt.step(np.ones(2))


@pytest.mark.parametrize("backend", BACKENDS)
def test_hyperparameters_are_reread_at_every_step(backend):
    p = np.zeros(2)
    opt = fo.SGD(p, lr=1.0, backend=backend)
    opt.step(np.ones(2))
    opt.lr = 0.5
    opt.step(np.ones(2))
    opt.param_groups[0]["lr"] = 0.25
    opt.step(np.ones(2))
    opt.param_groups[0].update(lr=0.125, weight_decay=1.0)
    opt.step(np.ones(2))
    assert p[0] == -1.75 - 0.125 * (1 - 1.75)
    opt.param_groups[0]["momentum"] = 0.5
    opt.step(np.ones(2))
    assert opt.state["0"]["momentum_buffer"][0] == 1 + (-1.75 - 0.125 * (1 - 1.75))


def test_hyperparameters_are_values_of_their_own():
    """An array or a list that is given belongs to the caller, and to no two groups at once."""
    betas, lr = [0.5, 0.5], np.array(1.0)
    opt = fo.Adam([{"params": np.zeros(2)}, {"params": np.zeros(2)}], lr=lr, betas=betas, backend="c")
    betas[0], lr[...] = 0.25, 0.5
    opt.param_groups[0]["lr"] *= 0.1
    assert [group["lr"] for group in opt.param_groups] == [0.1, 1.0]
    opt.param_groups[1].update(betas=betas, lr=lr)
    betas[1], lr[...] = 0.125, 0.25
    assert [group["betas"] for group in opt.param_groups] == [(0.5, 0.5), (0.25, 0.5)]
    assert opt.param_groups[1]["lr"] == 0.5 and type(opt.param_groups[1]["lr"]) is float


def test_parameters_replaced_by_equal_shapes_are_followed():
    params = [np.zeros(3), np.zeros(3)]
    opt = fo.SGD(params, lr=1.0, backend="c")
    opt.step([np.ones(3), np.ones(3)])
    new = np.full(3, 7.0)
    opt.param_groups[0]["params"][1] = new
    opt.step([np.ones(3), np.ones(3)])
    assert new[0] == 6 and params[1][0] == -1


@pytest.mark.parametrize("backend", BACKENDS)
def test_clipping_and_unscaling_in_the_step(backend):
    rng = np.random.default_rng(0)
    g = [1024 * rng.standard_normal(n) for n in (5, 5000)]
    p = [np.ones(5), np.ones(5000)]
    opt = fo.SGD(p, lr=1.0, backend=backend, threads=2)
    info = opt.step(g, grad_scale=1 / 1024, max_norm=1.0)
    norm = np.linalg.norm(np.concatenate(g)) / 1024
    assert info.applied and info.grad_norm == pytest.approx(norm, rel=1e-12)
    assert info.grad_norm == fo.grad_norm(g, grad_scale=1 / 1024, backend=backend)
    moved = np.linalg.norm(np.concatenate(p) - 1)
    assert moved == pytest.approx(1.0, rel=1e-5)
    factor = clip_factor(info.grad_norm, 1.0)
    assert same_bits(p[0], 1 - 1.0 * ((1 / 1024 * factor) * g[0]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_skip_nonfinite_leaves_everything(backend, bad):
    params = model(np.float64)
    opt = fo.Adam(params, lr=0.1, backend=backend, threads=2)
    grads = gradients(1, np.float64)
    grads["layers"][1][-1] = bad
    before = copy.deepcopy(params)
    info = opt.step(grads, skip_nonfinite=True)
    assert not info.applied and not np.isfinite(info.grad_norm)
    assert all(same_bits(a, b) for a, b in zip(flat(params), flat(before), strict=True))
    assert all(set(entry) == {"step"} and entry["step"] == 0 for entry in opt.state.values())  # no buffers either
    assert opt.step(gradients(2, np.float64), skip_nonfinite=True).applied
    states = copy.deepcopy({name: dict(entry) for name, entry in opt.state.items()})
    before = copy.deepcopy(params)
    assert not opt.step(grads, skip_nonfinite=True, max_norm=1.0, grad_scale=0.5).applied
    assert all(same_bits(a, b) for a, b in zip(flat(params), flat(before), strict=True))
    for name, entry in states.items():
        for slot, value in entry.items():
            assert np.array_equal(opt.state[name][slot], value)


def test_skip_judges_the_scaled_gradient():
    p = np.zeros(1, np.float32)
    opt = fo.SGD(p, lr=1.0, backend="c")
    assert not opt.step(np.array([3e38], np.float32), grad_scale=10.0, skip_nonfinite=True).applied
    assert opt.step(np.array([3e38], np.float32), grad_scale=0.1, skip_nonfinite=True).applied


@pytest.mark.parametrize("kind", KINDS)
def test_state_dict_restores_exactly_on_another_backend(kind):
    cls, hyper = KINDS[kind]
    params = model()
    opt = cls(params, backend="c", **hyper)
    for t in range(3):
        opt.step(gradients(t))
    saved, params_saved = opt.state_dict(), copy.deepcopy(params)
    for t in range(3, 6):
        opt.step(gradients(t))
    other = cls(params_saved, backend="numpy", **hyper)
    other.load_state_dict(saved)
    for t in range(3, 6):
        other.step(gradients(t))
    assert all(same_bits(a, b) for a, b in zip(flat(params), flat(params_saved), strict=True))
    assert saved["state"]["w"]["step"] == 3, "state_dict must hold copies"


def test_state_dict_that_does_not_fit_is_refused_and_changes_nothing():
    p = [np.ones(3, np.float32), np.ones(2)]
    opt = fo.Adam(p, lr=0.1, backend="c")
    opt.step([np.ones(3, np.float32), np.ones(2)])
    good = opt.state_dict()
    before = copy.deepcopy(good)

    def broken(change):
        bad = copy.deepcopy(good)
        change(bad)
        return bad

    cases = {
        "not a state dict": broken(lambda d: d.pop("state")),
        "version": broken(lambda d: d.update(version=99)),
        "SGD": broken(lambda d: d.update(optimizer="SGD")),
        "names": broken(lambda d: d["param_groups"][0].update(params=["x", "1"])),
        "other parameters": broken(lambda d: d["state"].pop("1")),
        "shape": broken(lambda d: d["state"]["1"].update(exp_avg=np.ones(5))),
        "dtype": broken(lambda d: d["state"]["0"].update(exp_avg=np.ones(3))),
        "step must be": broken(lambda d: d["state"]["0"].update(step=-1)),
        "unknown name": broken(lambda d: d["state"]["0"].update(velocity=np.ones(3, np.float32))),
        "unknown name 'momentum_buffer'": broken(
            lambda d: d["state"]["0"].update(momentum_buffer=np.ones(3, np.float32))
        ),
        r"lacks \['exp_avg'\]": broken(lambda d: d["state"]["1"].pop("exp_avg")),
        "parameter '0': step must be": broken(lambda d: d["state"]["0"].update(step=10**400)),
        "list of names under 'params'": broken(lambda d: d["param_groups"][0].pop("params")),
        "of names under 'params'": broken(lambda d: d["param_groups"][0].update(params=5)),
        "names under 'params'": broken(lambda d: d["param_groups"][0].update(params=[["0"], "1"])),
        "under 'params'": broken(lambda d: d["param_groups"][0].update(params="01")),
        "lr": broken(lambda d: d["param_groups"][0].update(lr=-1.0)),
    }
    for message, bad in cases.items():
        with pytest.raises((TypeError, ValueError), match=message):
            opt.load_state_dict(bad)
        if "under" in message:
            with pytest.raises(ValueError, match=message):
                opt.load_state_dict(bad, strict=False)
        assert repr(opt.state_dict()) == repr(before)
    with pytest.raises((TypeError, ValueError)):
        opt.load_state_dict(None)


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"]
)
def test_copies_are_independent_and_equal(duplicate):
    params = model()
    opt = fo.Adam(params, lr=0.1, backend="c")
    opt.step(gradients(1))
    params2, opt2 = duplicate((params, opt))
    assert opt2.param_groups[0]["params"][0] is params2["w"]
    opt2.step(gradients(2))
    assert opt.state["w"]["step"] == 1 and opt2.state["w"]["step"] == 2
    opt.step(gradients(2))
    assert all(same_bits(a, b) for a, b in zip(flat(params), flat(params2), strict=True))
    opt2.lr = 0.5
    assert opt.lr == 0.1


def test_a_method_is_not_replaced_by_what_cannot_be_called():
    opt = fo.SGD(np.zeros(2), lr=0.1)
    update = fo.adapters.dicts.SGD()
    for thing, name in ((opt, "step"), (opt, "state_dict"), (update, "update")):
        with pytest.raises(AttributeError, match=f"{name} is a method of {type(thing).__name__}, in whose place 3 "):
            setattr(thing, name, 3)
    calls = []
    opt.step = lambda *given, step=opt.step: calls.append(0) or step(*given)
    assert opt.step(np.ones(2)).applied and calls == [0]

    class Own(fo.SGD):
        def made(self): ...

    Own(np.zeros(2)).made = 3


def test_group_lists_and_dicts_refuse_what_no_step_would_read():
    opt = fo.SGD([np.zeros(2)], lr=0.1, backend="c")
    group = opt.param_groups[0]
    with pytest.raises(TypeError, match="add_param_group"):
        opt.param_groups.append({"params": np.zeros(1)})
    with pytest.raises(TypeError, match="add_param_group"):
        opt.param_groups[0] = {}
    with pytest.raises(KeyError, match="learning_rate"):
        group["learning_rate"] = 1.0
    with pytest.raises(TypeError):
        del group["lr"]
    with pytest.raises(ValueError, match="expected 1 arrays"):
        group["params"] = [np.zeros(2), np.zeros(2)]
    with pytest.raises(AttributeError):
        opt.param_groups = []
    with pytest.raises(KeyError, match="learning_rate"):
        group.update(lr=0.5, learning_rate=1.0)
    assert opt.lr == 0.1, "half an update was taken"


@pytest.mark.parametrize(
    "change",
    [
        lambda a, b: a.append(np.zeros(1)),
        lambda a, b: b.append(a.pop()),
        lambda a, b: a.extend([np.zeros(1)]),
        lambda a, b: a.__setitem__(slice(None), a[:1]),
        lambda a, b: a.__delitem__(0),
        lambda a, b: a.reverse(),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_arrays_of_groups_do_not_move_about(change, backend):
    """Moved from one group to another, they were once stepped with each other's gradients and rates."""
    params = [np.zeros(1), np.zeros(1), np.zeros(1)]
    groups = [{"params": params[:2], "lr": 1.0}, {"params": params[2:], "lr": 10.0}]
    opt = fo.SGD(groups, backend=backend)
    with pytest.raises(TypeError, match="not added, removed or moved"):
        change(*(group["params"] for group in opt.param_groups))
    new = np.full(1, 5.0)
    opt.param_groups[0]["params"][1] = new
    opt.param_groups[1]["params"][:] = params[2:]
    opt.step([[np.ones(1), np.ones(1)], [np.ones(1)]])
    assert [p[0] for p in (*params, new)] == [-1.0, 0.0, -10.0, 4.0]


def test_what_an_added_group_does_not_say_is_what_was_given_then():
    lr, betas = np.array(0.25), [0.5, 0.75]
    opt = fo.Adam([np.zeros(1)], lr=lr, betas=betas)
    lr *= 2
    betas[0] = 0.0
    opt.add_param_group({"params": [np.zeros(1)]})
    assert [(group["lr"], group["betas"]) for group in opt.param_groups] == [(0.25, (0.5, 0.75))] * 2


def test_a_group_added_to_nested_parameters_finds_a_free_name():
    opt = fo.SGD([[np.zeros(1), np.zeros(1)], [np.zeros(1)]], lr=1.0)
    opt.add_param_group({"params": [np.zeros(1)], "lr": 2.0})
    opt.step([[[np.ones(1), np.ones(1)], [np.ones(1)]], [np.ones(1)]])
    assert list(opt.state) == ["0.0", "0.1", "1.0", "2.0"]
    assert opt.param_groups[1]["params"][0][0] == -2.0


def test_values_of_a_dict_are_parameters():
    weights = {"w": np.zeros(2), "b": np.zeros(1)}
    opt = fo.SGD(weights.values(), lr=1.0)
    opt.step([np.ones(2), np.ones(1)])
    assert weights["w"][0] == weights["b"][0] == -1.0


def test_threads_cannot_be_set_while_another_thread_steps():
    opt = fo.Adam(np.zeros(3), backend="numpy", threads=1)
    opt._busy.append(-1)  # as during the step of another thread
    with pytest.raises(RuntimeError, match="another thread"):
        opt.threads = 2
    opt._busy.clear()
    opt.threads = np.int64(2)
    assert opt.threads == 2


class Meddling(dict):
    """Gradients that do something while a step reads them, as the handler of a signal may."""

    def __init__(self, grads, work):
        super().__init__(grads)
        self.work = work

    def __getitem__(self, key):
        self.work()
        return super().__getitem__(key)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("read", [copy.deepcopy, pickle.dumps, lambda o: o.state_dict()])
def test_reading_an_optimizer_within_its_step_loses_nothing(read, backend):
    params, grads = {"w": np.zeros(3)}, {"w": np.ones(3)}
    opt = fo.Adam(params, lr=0.1, backend=backend)
    seen = []
    for _ in range(3):
        opt.step(Meddling(grads, lambda: seen.append(read(opt))))
    assert opt.state["w"]["step"] == 3 and len(seen) == 3
    twin = {"w": np.zeros(3)}
    plain = fo.Adam(twin, lr=0.1, backend=backend)
    for _ in range(3):
        plain.step(grads)
    assert same_bits(params["w"], twin["w"])


@pytest.mark.parametrize(
    "change",
    [
        lambda o: o.step({"w": np.ones(3)}),
        lambda o: setattr(o, "threads", 1),
        lambda o: o.load_state_dict(o.state_dict()),
        lambda o: o.add_param_group({"params": np.ones(1)}),
    ],
    ids=["step", "threads", "load_state_dict", "add_param_group"],
)
def test_an_optimizer_cannot_be_changed_within_its_step(change):
    params = {"w": np.zeros(3)}
    opt = fo.SGD(params, lr=1.0)
    with pytest.raises(RuntimeError, match="in the middle of a step"):
        opt.step(Meddling({"w": np.ones(3)}, lambda: change(opt)))
    assert np.all(params["w"] == 0)
    opt.step({"w": np.ones(3)})
    assert np.all(params["w"] == -1) and opt.state["w"]["step"] == 1


def test_a_refused_caller_never_keeps_the_owner_out():
    """Who is refused while another thread steps leaves nothing behind that would refuse that thread's next step."""
    opt = fo.SGD({"w": np.zeros(3)}, lr=1.0)
    with ThreadPoolExecutor(1) as other:

        def meddle():
            assert "another thread" in str(other.submit(opt.state_dict).exception())
            assert len(opt._busy) == 1

        for _ in range(3):
            opt.step(Meddling({"w": np.ones(3)}, meddle))
    assert opt.state["w"]["step"] == 3 and not opt._busy


@pytest.mark.parametrize("backend", BACKENDS)
def test_arrays_that_are_replaced_are_seen_at_once(backend):
    """Steps keep the tuple of parameters from one to the next."""
    groups = [{"params": [np.zeros(1), np.zeros(1)]}, {"params": [np.zeros(1)]}]
    opt, twin = (x := fo.SGD(groups, lr=1.0, backend=backend)), copy.deepcopy(x)
    grads = [[np.ones(1), np.ones(1)], [np.ones(1)]]
    for o in (opt, twin, pickle.loads(pickle.dumps(opt))):
        for group, i in ((0, 1), (1, 0), (0, 0)):
            o.step(grads)
            old, new = o.param_groups[group]["params"][i], np.full(1, 9.0)
            before = old.copy()
            o.param_groups[group]["params"][i] = new
            o.step(grads)
            assert new[0] == 8 and old[0] == before[0]
        o.param_groups[0].update(params=[np.zeros(1), np.full(1, 5.0)])
        o.step(grads)
        assert [p[0] for p in o.param_groups[0]["params"]] == [-1, 4]


def test_a_shallow_copy_is_refused():
    """It shared the groups, whose changes the first optimizer then no longer saw."""
    with pytest.raises(TypeError, match="deepcopy"):
        copy.copy(fo.SGD(np.zeros(1)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("wrong", [np.ones(1), np.ones(3, np.float32)], ids=["shape", "dtype"])
def test_states_are_not_made_for_an_array_that_is_refused(wrong, backend):
    p, g = np.ones(3), np.ones(3)
    opt = fo.Adam(p, lr=0.1, backend=backend)
    opt.param_groups[0]["params"][0] = wrong
    with pytest.raises(ValueError, match="parameter '0' was replaced"):
        opt.step(g)
    opt.param_groups[0]["params"][0] = p
    opt.step(g)
    twin = np.ones(3)
    fo.Adam(twin, lr=0.1, backend="numpy").step(g)
    assert same_bits(p, twin)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_state_that_was_made_read_only_is_refused_before_anything_is_written(backend):
    p, g = np.ones(3), np.ones(3)
    opt = fo.Adam(p, lr=0.1, backend=backend)
    opt.step(g)
    before = copy.deepcopy((p, opt.state_dict()))
    opt.state["0"]["exp_avg_sq"].flags.writeable = False
    with pytest.raises(ValueError, match="exp_avg_sq of parameter '0' is read-only"):
        opt.step(g)
    assert repr((p, opt.state_dict())) == repr(before)


def test_a_state_dict_shares_nothing_with_its_optimizer():
    betas = [0.9, 0.999]
    opt = fo.Adam(np.zeros(3), betas=betas)
    saved = opt.state_dict()
    betas[0] = 0.5
    assert opt.param_groups[0]["betas"] == saved["param_groups"][0]["betas"] == (0.9, 0.999)
    saved["param_groups"][0]["betas"] = betas = [0.8, 0.999]
    opt.load_state_dict(saved)
    betas[0] = 0.1
    assert opt.param_groups[0]["betas"] == (0.8, 0.999)


def test_lr_of_groups():
    opt = fo.SGD([{"params": np.zeros(1), "lr": 0.1}, {"params": np.zeros(1), "lr": 0.2}], backend="c")
    with pytest.raises(ValueError, match="different"):
        _ = opt.lr
    opt.lr = [0.3, 0.4]
    assert [group["lr"] for group in opt.param_groups] == [0.3, 0.4]
    with pytest.raises(ValueError):
        opt.lr = [0.3, -1.0]
    assert [group["lr"] for group in opt.param_groups] == [0.3, 0.4]
    opt.lr = 0.5
    assert opt.lr == 0.5


def test_toggled_amsgrad_keeps_the_means():
    p = np.ones(3)
    opt = fo.Adam(p, lr=0.1, backend="c")
    opt.step(np.full(3, 2.0))
    mean = opt.state["0"]["exp_avg"].copy()
    opt.param_groups[0]["amsgrad"] = True
    opt.step(np.zeros(3))
    assert opt.state["0"]["step"] == 2
    assert np.all(opt.state["0"]["exp_avg"] == 0.9 * mean)
    assert "max_exp_avg_sq" in opt.state["0"]


@pytest.mark.parametrize("eps_mode", k.EPS_MODES)
@pytest.mark.parametrize("cls", [fo.Adam, fo.AdamW])
def test_coefficients_that_the_native_call_works_out_are_those_of_python(cls, eps_mode, monkeypatch):
    """Powers that are subnormal or vanish, counts that float64 does not hold, one group's count ahead of another's."""
    counts = [*range(20), 350, 7100, 10**6, 2**53 + 2, 2**60 + 3]  # .9**7100 is subnormal
    made = []
    for backend in ("c", "numpy"):
        groups = [
            {"params": [np.full(3, 0.5)], "lr": lr, "betas": betas, "eps": eps}
            for lr, betas, eps in ((1e-3, (0.9, 0.999), 1e-8), (0.0, (0.0, 0.0), 1e-3), (0.3, (1 - 1e-15, 0.7), 0.0))
        ]
        opt = cls(groups, backend=backend, eps_mode=eps_mode, maximize=True)
        saved = opt.state_dict()
        for i, t in enumerate(counts):
            for j, name in enumerate(saved["state"]):
                filled = {"exp_avg": np.full(3, 0.1 + i), "exp_avg_sq": np.full(3, 0.7 + i)}
                saved["state"][name] = {"step": t + j * i} | (filled if t + j * i else {})
            opt.load_state_dict(saved)
            opt.step([[np.array([1.0, -2.0, 3.0])]] * 3)
            if backend == "c":
                with monkeypatch.context() as patch:  # all that is needed is there
                    patch.setattr(type(opt._plan), "rows", None)
                    opt.step([[np.array([1.5, 0.0, -1.0])]] * 3, max_norm=1.0)
            else:
                opt.step([[np.array([1.5, 0.0, -1.0])]] * 3, max_norm=1.0)
            made.append([group["params"][0].copy() for group in opt.param_groups])
    half = len(made) // 2
    for ours, wanted in zip(made[:half], made[half:], strict=True):
        assert all(map(same_bits, ours, wanted))


def test_lists_of_gradients_may_be_of_other_kinds():
    """The native call takes lists and tuples alone; what has items of its own is asked for them."""

    class Doubled(list):
        def __iter__(self):
            return (2 * x for x in super().__iter__())

        def __getitem__(self, i):
            return 2 * super().__getitem__(i)

    params = [np.zeros(2), np.zeros(2)]
    opt = fo.SGD(params, lr=1.0, backend="c")
    g = [np.ones(2), np.ones(2)]
    for i, grads in enumerate((g, tuple(g), Doubled(g)), 1):
        opt.step(grads)
        assert all(np.all(p == -i - (i > 2)) for p in params), i
    with pytest.raises(ValueError, match="expected 2 entries, got 1"):
        opt.step(g[:1])
    for grads in (np.ones((2, 2)), {0: g[0], 1: g[1]}):
        with pytest.raises(TypeError, match="expected a sequence of 2"):
            opt.step(grads)
    with pytest.raises(TypeError, match="gradient of parameter '1'"):
        opt.step([g[0], [1.0, 1.0]])
    single = fo.SGD(params[0], lr=1.0, backend="c")
    with pytest.raises(TypeError, match="gradient of parameter '0'"):
        single.step([g[0]])
