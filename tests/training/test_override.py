"""Going on with other settings than a checkpoint's: refused by name, or asked for by name."""

from __future__ import annotations

import numpy as np
import pytest

import fastoptim as fo
from fastoptim import schedules
from fastoptim.checkpoint import format
from fastoptim.checkpoint.files import CheckpointError
from fastoptim.training.data import Minibatches

DATA = np.arange(40.0)


def fit(path, steps, optimizer="sgd", w=None, start=1.0, **options):
    w = np.full(2, start) if w is None else w
    f = lambda p, batch: (float(p @ p + batch.mean()), 2 * p)  # noqa: E731
    options = {"batch_size": 4, "diagnose": False, "checkpoint": path} | options
    return w, fo.fit(f, w, DATA, optimizer, steps=steps, **options)


def own(kind, **options):
    w = np.ones(2)
    return {"w": w, "optimizer": kind(w, **options)}


SETTINGS = {
    "lr": ({"lr": 0.1}, {"lr": 0.2}, r"lr is \[0.2\] here, \[0.1\] there"),
    "own lr": ({}, {"lr": 0.2}, r"lr is \[0.2\] here, \[0.001\] there"),
    "schedule": ({"lr": schedules.cosine(0.1, 9)}, {"lr": schedules.cosine(0.1, 99)}, r"steps=99.*steps=9"),
    "function": ({"lr": schedules.warmup(lambda k: 0.1, 3)}, {"lr": schedules.warmup(abs, 3)}, r"abs.*lambda"),
    "first rate": ({"lr": schedules.Plateau(0.1)}, {"lr": schedules.Plateau(0.001)}, r"lr=0.001.*lr=0.1"),
    "patience": ({"lr": schedules.Plateau(0.1)}, {"lr": schedules.Plateau(0.1, patience=2)}, "patience=2.*patience=10"),
    "momentum": ({"optimizer": "sgd"}, {"optimizer": "momentum"}, "momentum is 0.9 here, 0.0 there"),
    "no momentum": ({"optimizer": "momentum"}, {"optimizer": "sgd"}, "momentum is 0.0 here, 0.9 there"),
    "betas": (own(fo.Adam), own(fo.Adam, betas=(0.8, 0.999)), r"betas is \(0.8, 0.999\) here, \(0.9, 0.999\) there"),
    "amsgrad": (own(fo.Adam), own(fo.Adam, amsgrad=True), "amsgrad is True here, False there"),
    "eps_mode": (own(fo.Adam), own(fo.Adam, eps_mode="hat"), "eps_mode is 'hat' here"),
    "maximize": (own(fo.SGD), own(fo.SGD, maximize=True), "maximize is True here"),
    "weight_decay": (own(fo.SGD), own(fo.SGD, weight_decay=0.1), "weight_decay is 0.1 here, 0.0 there"),
    "max_norm": ({"max_norm": 1.0}, {"max_norm": 2.0}, "max_norm is 2.0 here, 1.0 there"),
    "no max_norm": ({"max_norm": 1.0}, {}, "max_norm is None here, 1.0 there"),
    "skip_nonfinite": ({}, {"skip_nonfinite": True}, "skip_nonfinite is True here"),
    "accumulate": ({}, {"accumulate": 2}, "accumulate is 2 here, 1 there"),
    "batch_size": ({}, {"batch_size": 5}, "batch_size is 5 here, 4 there"),
}
SEEDS = {
    "rng": ({}, {"rng": 5}, "rng is 5 here, 0 there"),
    "a generator": ({"rng": 5}, {"rng": np.random.default_rng(5)}, "rng is Generator here, 5 there"),
    "several numbers": ({"rng": (1, 2)}, {"rng": [1, 3]}, r"rng is \[1, 3\] here, \[1, 2\] there"),
}


@pytest.mark.parametrize("name", SEEDS)
def test_another_seed_is_refused(tmp_path, name):
    """The order of the data goes on from the checkpoint's generator, whatever it is: a seed would not count."""
    first, then, message = SEEDS[name]
    fit(tmp_path / "a.ckpt", 3, **first)
    with pytest.raises(CheckpointError, match=message + r". Use the same$"):
        fit(tmp_path / "a.ckpt", 5, resume=True, **then)
    with pytest.raises(ValueError, match="there is no"):
        fit(tmp_path / "a.ckpt", 5, resume=True, override="rng", **then)
    assert fit(tmp_path / "a.ckpt", 5, resume=True, **first)[1].steps == 5
    fit(tmp_path / "b.ckpt", 3, rng=5)
    assert fit(tmp_path / "b.ckpt", 5, rng=np.int64(5), resume=True)[1].steps == 5


@pytest.mark.parametrize("name", SETTINGS)
def test_other_settings_are_refused_by_name_or_taken_on_purpose(tmp_path, name):
    first, then, message = SETTINGS[name]
    path = tmp_path / "a.ckpt"
    then = dict(then)
    if "optimizer" in first and not isinstance(first["optimizer"], str):
        first = first | own(type(first["optimizer"]))
        template = then["optimizer"]
        then["w"] = np.ones(2)
        group = {k: v for k, v in template.param_groups[0].items() if k not in ("params", "names")}
        then["optimizer"] = type(template)(then["w"], **group)
    fit(path, 3, **first)
    given = then.get("w", np.ones(2))
    then["w"] = given
    before = given.tobytes()
    with pytest.raises(CheckpointError, match=message) as caught:
        fit(path, 5, resume=True, **then)
    assert given.tobytes() == before
    told = str(caught.value).partition("override=")[2].partition("]")[0] + "]"
    _, result = fit(path, 5, resume=True, override=eval(told), **then)
    assert result.steps == 5
    group = result.optimizer.param_groups[0]
    hyper = told.strip("[]'")
    if hyper in group and hyper != "lr":
        assert group[hyper] == (then["optimizer"].param_groups[0] if "w" in SETTINGS[name][1] else group)[hyper]
    if hyper == "momentum":
        assert group["momentum"] == (0.9 if then["optimizer"] == "momentum" else 0.0)
    if isinstance(then.get("lr"), float):
        assert result.history.lr.tolist()[3:] == [then["lr"]] * 2
    fit(path, 6, resume=True, **then | {"w": given})  # what was overridden then is what the checkpoint has now
    fit(path, 7, resume=True, override=eval(told), **then | {"w": given})


def test_several_are_named_at_once_and_all_must_be_overridden(tmp_path):
    path = tmp_path / "a.ckpt"
    fit(path, 3, "sgd", lr=0.1)
    with pytest.raises(CheckpointError, match=r"lr is.*momentum is 0.9.*override=\['lr', 'momentum'\]"):
        fit(path, 5, "momentum", lr=0.2, resume=True)
    with pytest.raises(CheckpointError, match=r"settings: momentum is 0.9.*override=\['lr', 'momentum'\]"):
        fit(path, 5, "momentum", lr=0.2, resume=True, override=["lr"])
    _, result = fit(path, 5, "momentum", lr=0.2, resume=True, override=["momentum", "lr"])
    assert result.history.lr.tolist() == [0.1] * 3 + [0.2] * 2


def test_what_callbacks_have_changed_stays(tmp_path):
    """What is compared is what the program asks for, not what callbacks have made of it since."""

    def decay(loop):
        loop.optimizer.param_groups[0]["weight_decay"] = 0.1 * loop.steps
        loop.optimizer.lr = 0.5**loop.steps

    ends = []
    for cut in (False, True):
        path = tmp_path / f"{cut}.ckpt"
        options = {"callbacks": [decay]}
        if cut:
            fit(path, 3, **own(fo.SGD, lr=0.1), **options)
        w, result = fit(path, 6, **own(fo.SGD, lr=0.1), resume=cut, **options)
        ends.append((w.tobytes(), result.history.lr.tolist()))
    assert ends[0] == ends[1]


def test_a_plateau_that_is_overridden_begins_anew(tmp_path):
    path = tmp_path / "a.ckpt"
    epochs = {"steps": None, "batch_size": 20, "shuffle": False}
    f = lambda p, batch: (1.0, np.zeros(2))  # noqa: E731

    def rates(count, lr, **options):
        return fo.fit(
            f, np.ones(2), DATA, "sgd", lr=lr, epochs=count, checkpoint=path, **{**epochs, **options}
        ).history.lr.tolist()

    rates(4, schedules.Plateau(1.0, patience=0))
    new = schedules.Plateau(0.5, patience=9)
    assert rates(5, new, resume=True, override=["lr"])[-2:] == [0.5, 0.5]
    again = schedules.Plateau(0.5, patience=9)
    rates(6, again, resume=True, override=["lr"])
    assert again.bad == new.bad + 1  # that of the checkpoint, which it was written with


@pytest.mark.parametrize("size", [3, 5, 7, 16, 40, 1])
@pytest.mark.parametrize("drop_last", [False, True])
def test_another_batch_size_goes_on_within_the_epoch(tmp_path, size, drop_last):
    path, seen = tmp_path / "a.ckpt", []

    def run(steps, **options):
        def f(p, batch):
            seen.append(batch.tolist())
            return 1.0, np.zeros(2)

        fo.fit(f, np.ones(2), DATA, "sgd", steps=steps, checkpoint=path, drop_last=drop_last, **options)

    run(7, batch_size=4)  # 28 of 40 examples
    rest = 28 // size * size if not drop_last else min(28 // size * size, 40 // size * size - size)
    with pytest.raises(CheckpointError, match="batch_size"):
        run(9, batch_size=size, resume=True)
    left = -(-(40 - rest) // size) if not drop_last else (40 - rest) // size
    first = [x for batch in seen[:7] for x in batch]
    del seen[:]
    run(7 + left, batch_size=size, resume=True, override=["batch_size"])
    then = [x for batch in seen for x in batch]
    assert [len(batch) for batch in seen[:-1]] == [size] * (left - 1)
    if rest:
        assert sorted(first[:rest] + then) == sorted(DATA)[: rest + len(then)] or drop_last
        assert then[: 28 - rest] == first[rest:]  # the batch that it was in begins anew
    run(8 + left, batch_size=size, resume=True)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"override": ["learning_rate"], "resume": True}, ValueError, r"learning_rate.*'lr'"),
        ({"override": ["betas"], "resume": True}, ValueError, "betas"),
        ({"override": ["lr"]}, ValueError, "resume"),
        ({"override": {"lr": 0.1}, "resume": True}, TypeError, "names"),
    ],
)
def test_overrides_that_mean_nothing_are_refused(tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        fit(tmp_path / "a.ckpt", 3, **options)


@pytest.mark.parametrize("override", [3, 1.5, ["lr", 3], {"lr": 0.1}])
def test_an_override_that_holds_no_names_is_refused(tmp_path, override):
    fit(tmp_path / "a.ckpt", 1)
    with pytest.raises(TypeError, match=r"override holds names of settings.*got"):
        fit(tmp_path / "a.ckpt", 2, resume=True, override=override)


def test_one_name_may_stand_alone(tmp_path):
    fit(tmp_path / "a.ckpt", 3, lr=0.1)
    assert fit(tmp_path / "a.ckpt", 4, lr=0.2, resume=True, override="lr")[1].history.lr[-1] == 0.2


def test_other_optimizers_are_refused(tmp_path):
    fit(tmp_path / "a.ckpt", 3, "adam")
    for options in ({"optimizer": "adamw"}, {"optimizer": "sgd"}):
        with pytest.raises(CheckpointError, match=r"Adam, this optimizer is .*: use the same"):
            fit(tmp_path / "a.ckpt", 4, resume=True, **options)


def test_a_position_is_not_recut_by_itself():
    one, two = Minibatches(DATA, 4), Minibatches(DATA, 5)
    one.next_batch()
    with pytest.raises(ValueError, match="batch_size"):
        two.load_state_dict(one.state_dict())


def test_what_a_plateau_is_told_is_compared(tmp_path):
    path = tmp_path / "a.ckpt"
    fit(path, 3, lr=schedules.Plateau(0.1))
    then = {"lr": schedules.Plateau(0.1), "validation": lambda p: 1.0, "resume": True}
    with pytest.raises(CheckpointError, match="monitor is validation's loss here, the mean loss of each epoch there"):
        fit(path, 5, **then)
    assert fit(path, 5, override="monitor", **then)[1].steps == 5


@pytest.mark.parametrize(
    ("name", "first", "then"),
    [
        ("rounding", "stochastic", "nearest"),
        ("seed", 0, 7),
    ],
)
def test_how_states_are_rounded_is_compared(tmp_path, name, first, then):
    path = tmp_path / "a.ckpt"

    def stored(steps, value, **options):
        w = np.ones(2, np.float16)
        return fit(path, steps, fo.Adam(w, **{"state_dtype": "bfloat16", name: value}), w, **options)[1]

    pytest.importorskip("ml_dtypes", reason="LOUD: pip install ml_dtypes to test bfloat16")
    stored(3, first)
    with pytest.raises(CheckpointError, match=f"{name} is {then} here, {first} there"):
        stored(5, then, resume=True)
    if name != "seed":
        assert stored(5, then, resume=True, override=name).steps == 5


@pytest.mark.parametrize(("name", "first", "then"), [("master", True, False), ("state_dtype", "bfloat16", "float8")])
def test_states_of_another_storage_are_converted_with_a_warning(tmp_path, name, first, then):
    path = tmp_path / "a.ckpt"

    def stored(steps, value, **options):
        w = np.ones(2, np.float16)
        return fit(path, steps, fo.Adam(w, **{"state_dtype": "bfloat16", name: value}), w, **options)[1]

    pytest.importorskip("ml_dtypes", reason="LOUD: pip install ml_dtypes to test bfloat16")
    stored(3, first)
    with pytest.warns(RuntimeWarning, match="states were saved in another storage, and are converted"):
        assert stored(5, then, resume=True).steps == 5


def test_what_a_checkpoint_says_is_shown_without_terminal_escapes(tmp_path):
    path = tmp_path / "a.ckpt"
    fit(path, 3)
    tree = format.read(path, kind="training")
    tree["loop"]["settings"]["momentum"] = "\x1b[31mred" + 10**6 * "!"
    format.write(path, tree, kind="training")
    with pytest.raises(CheckpointError, match=r"momentum is 0.0 here, \\x1b\[31mred!* there") as caught:
        fit(path, 5, resume=True)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 3000
