"""`fo.Average`: the equation, on every backend with the same bits; in `fit` validated with, saved and restored."""

from __future__ import annotations

import copy
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest

import fastoptim as fo
from fastoptim.adapters import dicts, objects
from fastoptim.backends import available
from fastoptim.training.averaging import validated_params
from tests.support.cases import raw_bits, same_bits

BACKENDS = [name for name in ("numpy", "c", "numba") if available(name) is None]


def values(steps=8):
    rng = np.random.default_rng(2)
    shapes = {"a": (4099,), "b": (3, 5), "c": ()}
    return [
        {
            name: np.array(raw_bits(rng, int(np.prod(s)), T).reshape(s))
            for (name, s), T in zip(shapes.items(), TYPES, strict=True)
        }
        for _ in range(steps)
    ]


TYPES = (np.float32, np.float64, np.float32)


def set_to(params, new):
    for name, p in params.items():
        p[...] = new[name]


@pytest.mark.parametrize("decay", [None, 0.9])
@pytest.mark.parametrize("start", [0, 3])
def test_every_backend_has_the_bits_of_the_equation(decay, start):
    seen = values()
    wanted = {}
    with np.errstate(all="ignore"):
        for name in seen[0]:
            T = seen[0][name].dtype.type
            n = 0
            for i, x in enumerate(seen):
                n = n + 1 if i >= start else 1
                if i <= start:
                    wanted[name], n = x[name].copy(), 1
                else:
                    b = T(1 / n if decay is None else 1 - decay)
                    wanted[name] = np.asarray(wanted[name] - b * (wanted[name] - x[name]), T)
    for backend in BACKENDS:
        params = copy.deepcopy(seen[0])
        average = fo.Average(params, decay, start=start, backend=backend)
        for x in seen:
            set_to(params, x)
            average.update()
        assert average.count == len(seen)
        for name, x in average.arrays.items():
            assert same_bits(x, wanted[name]), (backend, name)
        average.copy_to(params)
        assert all(same_bits(params[name], wanted[name]) for name in wanted)


def test_a_mean_is_the_mean_and_equal_values_stay():
    p = np.zeros(3)
    average = fo.Average([p])
    numbers = [3.0, -1.25, 7.5, 0.1, 2.0]
    for x in numbers:
        p[:] = x
        average.update()
    assert average.arrays[0][0] == pytest.approx(float(sum(map(Fraction, numbers)) / 5), rel=1e-15)
    q = np.full(100, 0.1, np.float32)
    constant = fo.Average(q, 0.999)
    for _ in range(5000):
        constant.update()
    assert same_bits(constant.arrays, q)


def test_it_is_torchs_average():
    torch = pytest.importorskip("torch", reason="LOUD: torch is missing, so averages were not compared with it")
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    rng = np.random.default_rng(0)
    for decay, options in ((None, {}), (0.97, {"multi_avg_fn": get_ema_multi_avg_fn(0.97)})):
        model = torch.nn.Linear(5, 3, dtype=torch.float64)
        peer = AveragedModel(model, **options)
        params = [t.detach().numpy() for t in model.parameters()]
        average = fo.Average(params, decay)
        for _ in range(50):
            for p in params:
                p[...] = rng.standard_normal(p.shape)
            average.update()
            peer.update_parameters(model)
        for x, y in zip(average.arrays, peer.module.parameters(), strict=True):
            np.testing.assert_allclose(x, y.detach().numpy(), rtol=0, atol=4e-15)


def test_other_leaves_are_handed_on_and_replaced_arrays_followed():
    params = {"w": np.ones(2), "steps": np.array(3), "name": None, "rate": 0.5}
    average = fo.Average(params)
    average.update()
    params["w"] = np.full(2, 3.0)
    average.update()
    assert average.arrays["w"].tolist() == [2.0, 2.0] and average.arrays["steps"] is params["steps"]
    assert average.arrays["rate"] == 0.5 and average.arrays["name"] is None
    assert "1 arrays, mean, start=0, 2 updates" in repr(average)


def test_state_and_refusals():
    params = {"w": np.ones(3), "b": np.zeros(2, np.float32)}
    average = fo.Average(params, 0.5)
    average.update()
    params["w"][:] = 2.0
    average.update()
    saved = average.state_dict()
    other = fo.Average({"b": np.ones(2, np.float32), "w": np.ones(3)})
    other.load_state_dict(saved)
    assert (other.count, other.decay) == (2, 0.5) and other.arrays["w"].tolist() == [1.5, 1.5, 1.5]
    before = copy.deepcopy(other.state_dict())
    for bad, message in (
        ({}, "not a state dict"),
        (saved | {"arrays": {"w": saved["arrays"]["w"]}}, "other parameters"),
        (saved | {"arrays": saved["arrays"] | {"w": np.ones(4)}}, "average of parameter 'w': expected shape"),
        (saved | {"count": -1}, "count must be at least 0"),
        (saved | {"decay": 1.0}, "decay must be in"),
    ):
        with pytest.raises(ValueError, match=message):
            other.load_state_dict(bad)
        assert str(other.state_dict()) == str(before)
    params["w"] = np.ones(4)
    with pytest.raises(ValueError, match="parameter 'w' was replaced: expected shape"):
        average.update()
    params["w"] = average.arrays["w"]
    with pytest.raises(ValueError, match=r"average of 'w' and parameter 'w' overlap in memory$"):
        average.update()
    with pytest.raises(AttributeError, match="decy"):
        average.decy = 0.9
    assert average.count == 2 and average.arrays["b"].tolist() == [0.0, 0.0]
    with pytest.raises(ValueError, match="names missing"):
        average.copy_to({"w": np.ones(3)})
    with pytest.raises(ValueError, match="overlap"):
        average.copy_to(average.arrays)
    frozen = {"w": np.ones(3), "b": np.zeros(2, np.float32)}
    frozen["b"].flags.writeable = False
    with pytest.raises(ValueError, match="'b' is read-only"):
        average.copy_to(frozen)
    assert frozen["w"].tolist() == [1.0, 1.0, 1.0]
    for bad in ({"decay": 1.0}, {"decay": -0.1}, {"start": -1}):
        with pytest.raises(ValueError):
            fo.Average(np.ones(2), **bad)
    with pytest.raises(ValueError, match="nothing to average"):
        fo.Average({"n": np.array(3)})
    mixed = {"w": np.ones(3, np.float32), "half": np.ones(2, np.float16)}
    with pytest.raises(TypeError, match=r"'half'.*its float32 copies"):
        fo.Average(mixed)
    opt = fo.SGD(mixed, lr=1.0, master=True)
    opt.step({"w": np.ones(3, np.float32), "half": np.full(2, 0.25, np.float32)})
    copies = fo.Average({name: entry["master"] for name, entry in opt.state.items() if "master" in entry})
    copies.update()
    assert copies.arrays["half"].tolist() == [0.75, 0.75]
    with pytest.raises(TypeError, match="save its state_dict"):
        copy.deepcopy(average)
    average.decay = None
    assert average.decay is None


# --- In fit

X = np.random.default_rng(1).standard_normal((120, 4))
Y = X @ np.array([1.0, -2.0, 0.5, 3.0])


def loss_and_grad(params, batch):
    x, y = batch
    error = x @ params["w"] - y
    return float(np.mean(error**2)), {"w": 2 * x.T @ error / len(x)}


def trained(tmp_path, epochs, resume=False, decay=0.8, start=0, **options):
    params = {"w": np.zeros(4)}
    average = fo.Average(params, decay, start=start)
    seen = []

    def validation(given):
        seen.append(given["w"].copy())
        return float(np.mean((X @ given["w"] - Y) ** 2))

    result = fo.fit(
        loss_and_grad,
        params,
        (X, Y),
        fo.SGD(params, lr=0.3),
        epochs=epochs,
        batch_size=12,
        rng=5,
        validation=validation,
        checkpoint=tmp_path / "run.ckpt",
        resume=resume,
        diagnose=False,
        **{"average": average} | options,
    )
    return params, average, seen, result


def test_fit_validates_with_the_average_saves_and_resumes_it(tmp_path):
    (tmp_path / "one").mkdir()
    params, average, seen, _ = trained(tmp_path / "one", 4)
    by_hand, w, rng = None, {"w": np.zeros(4)}, fo.minibatches((X, Y), 12, rng=5)
    opt = fo.SGD(w, lr=0.3)
    for _ in range(4):
        for _ in range(10):
            opt.step(loss_and_grad(w, rng.next_batch())[1])
            by_hand = w["w"].copy() if by_hand is None else by_hand - (1 - 0.8) * (by_hand - w["w"])
    assert same_bits(average.arrays["w"], by_hand) and same_bits(params["w"], w["w"])
    assert same_bits(seen[-1], by_hand) and not same_bits(seen[-1], params["w"])
    (tmp_path / "two").mkdir()
    trained(tmp_path / "two", 2)
    with pytest.raises(fo.CheckpointError, match="written with an average, which would be lost"):
        trained(tmp_path / "two", 4, resume=True, average=None)
    again, resumed, _, _ = trained(tmp_path / "two", 4, resume=True)
    assert same_bits(again["w"], params["w"]) and same_bits(resumed.arrays["w"], by_hand) and resumed.count == 40


def test_another_average_is_refused_by_name_or_taken_on_purpose(tmp_path):
    trained(tmp_path, 2)
    other = {"resume": True, "decay": None, "start": 23}
    with pytest.raises(fo.CheckpointError, match=r"average is decay=None, start=23 here, decay=0\.8, start=0 there"):
        trained(tmp_path, 4, **other)
    _, average, _, _ = trained(tmp_path, 4, override="average", **other)
    assert average.decay is None and average.state_dict()["start"] == 23 and average.count == 40
    opt, w, batches = fo.SGD(v := {"w": np.zeros(4)}, lr=0.3), [], fo.minibatches((X, Y), 12, rng=5)
    for _ in range(40):
        opt.step(loss_and_grad(v, batches.next_batch())[1])
        w.append(v["w"].copy())
    assert np.allclose(
        average.arrays["w"], np.mean(w[23:], axis=0), rtol=1e-12, atol=0
    )  # the first of the mean is the 24th
    trained(tmp_path, 5, **other)


def test_the_best_is_an_average_and_skipped_steps_are_not_taken(tmp_path):
    params, average, seen, result = trained(tmp_path, 3, restore_best=True)
    assert same_bits(params["w"], seen[(result.best_step + 1) // 10 - 1])
    w = {"w": np.ones(4)}
    average = fo.Average(w)

    def sometimes(params, batch):
        return 0.0, {"w": np.full(4, np.nan if average.count == 2 else 1.0)}

    fo.fit(sometimes, w, None, fo.SGD(w, lr=1.0), steps=5, average=average, skip_nonfinite=True, diagnose=False)
    assert average.count == 2  # after two updates every step is skipped


@pytest.mark.parametrize("cls", [fo.ScheduleFreeSGD, fo.ScheduleFreeAdamW])
@pytest.mark.parametrize("form", [lambda p: p, lambda p: [{"params": p["w"]}, {"params": [p["b"]], "lr": 0.2}]])
def test_fit_validates_a_schedule_free_optimizer_with_its_averages(cls, form):
    params = {"frozen": np.ones(1), "b": np.zeros(1), "w": np.zeros(4)}
    opt = cls(form({name: params[name] for name in ("w", "b")}), lr=0.3)
    seen = []

    def gradient(given, batch):
        error = batch[0] @ given["w"] + given["b"] - batch[1]
        grads = {"w": 2 * batch[0].T @ error / len(error), "b": 2 * error.mean(keepdims=True)}
        return float(np.mean(error**2)), grads if opt.param_groups[1:] == [] else [grads["w"], [grads["b"]]]

    def validation(given):
        seen.append({name: x.copy() for name, x in given.items()})
        found = opt.averaged()
        x = found if isinstance(found, dict) else {"w": found[0], "b": found[1][0]}
        assert same_bits(given["w"], x["w"]) and same_bits(given["b"], x["b"]) and given["frozen"] is params["frozen"]
        assert not same_bits(given["w"], params["w"])
        return gradient(given, (X, Y))[0]

    options = {"epochs": 4, "batch_size": 12, "rng": 5, "validation": validation, "diagnose": False}
    result = fo.fit(gradient, params, (X, Y), opt, restore_best=True, **options)
    averages = opt.averaged() if opt.param_groups[1:] == [] else {"w": opt.averaged()[0]}
    assert len(seen) == 4 and same_bits(averages["w"], seen[(result.best_step + 1) // 10 - 1]["w"])
    with pytest.raises(ValueError, match=rf"{cls.__name__} is validated with its averages.*several processes"):
        validated_params(params, SimpleNamespace(_whole=opt), None)


def test_fit_refuses_an_average_of_something_else(tmp_path):
    params = {"w": np.zeros(4)}
    for bad, error, message in (
        (0.99, TypeError, "must be a fastoptim.Average"),
        (fo.Average({"w": np.zeros(4)}), ValueError, "made of these params"),
    ):
        with pytest.raises(error, match=message):
            fo.fit(loss_and_grad, params, (X, Y), "sgd", epochs=1, average=bad)
    options = {"epochs": 1, "checkpoint": tmp_path / "a.ckpt", "diagnose": False}
    fo.fit(loss_and_grad, params, (X, Y), fo.SGD(params), **options)
    with pytest.raises(fo.CheckpointError, match="without an average"):
        fo.fit(
            loss_and_grad,
            params,
            (X, Y),
            fo.SGD(params),
            resume=True,
            average=fo.Average(params),
            **options | {"epochs": 2},
        )


@pytest.mark.parametrize("dtype", [">f4", ">f8", "longdouble", "c16", object])
def test_no_array_of_reals_is_left_out_without_a_word(dtype):
    with pytest.raises(TypeError, match="array 'w': expected native float32 or float64"):
        fo.Average({"w": np.ones(3, dtype), "b": np.ones(3)})
    fo.Average({"w": np.ones(3), "count": np.ones(3, int), "rate": 0.5})


def test_nor_is_a_tensor():
    torch = pytest.importorskip("torch", reason="LOUD: pip install torch==2.13.0")
    with pytest.raises(TypeError, match=r"array 'w': expected a NumPy array, got Tensor: .* t\.detach\(\)\.numpy\(\)"):
        fo.Average({"w": torch.ones(3), "b": np.ones(3)})


@pytest.mark.parametrize("taken", [2**63 - 2**40 + 1, 2**63 - 1])
def test_counts_leave_room_for_the_updates_to_come(taken):
    """A count of 64 bits would go on with -2**63."""
    average = fo.Average(np.ones(3))
    saved = average.state_dict()
    with pytest.raises(ValueError, match=f"count must be at most .*got {taken}"):
        average.load_state_dict(saved | {"count": taken})
    average.load_state_dict(saved | {"count": 2**63 - 2**40})
    average.update()
    assert average.count == 2**63 - 2**40 + 1
    opt = dicts.Adam()
    with pytest.raises(ValueError, match=f"iter must be at most .*got {taken}"):
        opt.iter = taken
    other = objects.Adam()
    with pytest.raises(ValueError, match=f"t must be at most .*got {taken}"):
        other.t = taken
    assert opt.iter == other.t == 0


def test_an_average_that_could_not_move_is_refused():
    single, double = {"w": np.ones(2, np.float32)}, {"w": np.ones(2)}
    near, below = 1 - 2.0**-25, 1 - 2.0**-24
    for decay in (near, 1 - 2.0**-30):
        fo.Average(double, decay)
        with pytest.raises(ValueError, match=r"decay = 0\.9999999\d+ is 1 in float32"):
            fo.Average({"a": np.ones(1), **single}, decay)
    average = fo.Average(single, below)
    with pytest.raises(ValueError, match=r"not a state dict of an Average: decay = .* is 1 in float32"):
        average.load_state_dict(average.state_dict() | {"decay": near})
    with pytest.raises(ValueError, match=r"decay = .* is 1 in float32"):
        average.decay = near
    assert average.decay == average.state_dict()["decay"] == below
