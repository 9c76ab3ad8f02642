"""Schedules: equal to torch's and Optax's of the same name, defined everywhere, cheap, and honest about bad input."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
import tracemalloc
import warnings

import numpy as np
import pytest

import fastoptim as fo
from fastoptim import schedules as s

STEPS = 1000
# torch steps most of its schedules by a recursion (rate *= something) whose rounding errors add up, at most a few
# machine epsilons a step: 1000 steps * 2**-52 * 8 = 2e-12 of the largest rate.
RECURSION = 2e-12
# Optax computes in float32 unless told otherwise; here it is told to use float64. Powers may differ in the last bits.
CLOSED_FORM = 1e-14


def torch_rates(make, lr, total=STEPS):
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = make(torch.optim.lr_scheduler, optimizer)
    rates = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates an argument inside its own SequentialLR
        for _ in range(total):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
    return rates


def worst(schedule, rates):
    """Largest difference from `rates`, as a share of the largest rate."""
    return max(abs(schedule(k) - rate) for k, rate in enumerate(rates)) / max(rates)


TORCH = {
    "step_decay": (s.step_decay(0.1, 130, 0.5), lambda m, o: m.StepLR(o, 130, 0.5), 0.1),
    "multistep": (s.multistep(0.1, [70, 300, 701], 0.3), lambda m, o: m.MultiStepLR(o, [70, 300, 701], 0.3), 0.1),
    "exponential": (s.exponential(0.1, 0.997), lambda m, o: m.ExponentialLR(o, 0.997), 0.1),
    "linear": (s.linear(0.1, 0.02, 613), lambda m, o: m.LinearLR(o, 1.0, 0.2, 613), 0.1),
    "polynomial": (s.polynomial(0.1, 777, 2.5), lambda m, o: m.PolynomialLR(o, 777, 2.5), 0.1),
    "cosine": (s.cosine(0.1, STEPS, 0.003), lambda m, o: m.CosineAnnealingLR(o, STEPS, 0.003), 0.1),
    "cosine_restarts": (
        s.cosine_restarts(0.1, 37, 2, 0.003),
        lambda m, o: m.CosineAnnealingWarmRestarts(o, 37, 2, 0.003),
        0.1,
    ),
    "cosine_restarts, equal cycles": (
        s.cosine_restarts(0.1, 37),
        lambda m, o: m.CosineAnnealingWarmRestarts(o, 37),
        0.1,
    ),
    "one_cycle": (s.one_cycle(0.7, STEPS + 1), lambda m, o: m.OneCycleLR(o, 0.7, STEPS + 1, cycle_momentum=False), 0.7),
    "one_cycle, linear": (
        s.one_cycle(0.7, STEPS + 1, pct_start=0.41, anneal_strategy="linear", div_factor=9.0),
        lambda m, o: m.OneCycleLR(
            o, 0.7, STEPS + 1, pct_start=0.41, anneal_strategy="linear", div_factor=9.0, cycle_momentum=False
        ),
        0.7,
    ),
    "one_cycle, three phases": (
        s.one_cycle(0.7, STEPS + 1, three_phase=True, final_div_factor=77.0),
        lambda m, o: m.OneCycleLR(o, 0.7, STEPS + 1, three_phase=True, final_div_factor=77.0, cycle_momentum=False),
        0.7,
    ),
    "warmup and join": (
        s.join([s.warmup(s.constant(0.1), 50, 0.25), s.exponential(0.1, 0.99)], [400]),
        lambda m, o: m.SequentialLR(o, [m.LinearLR(o, 0.25, 1.0, 50), m.ExponentialLR(o, 0.99)], [400]),
        0.1,
    ),
}


@pytest.mark.parametrize("name", TORCH)
def test_equals_torch(name):
    schedule, make, lr = TORCH[name]
    assert worst(schedule, torch_rates(make, lr)) <= RECURSION


def optax_rates(make, total=STEPS):
    optax = pytest.importorskip("optax")
    jax = pytest.importorskip("jax")
    with jax.enable_x64(True):
        schedule = jax.jit(make(optax.schedules))
        return [float(schedule(k)) for k in range(total)]


OPTAX = {
    "constant": (s.constant(0.1), lambda m: lambda k: m.constant_schedule(0.1)(k) + 0.0 * k),
    "exponential": (s.exponential(0.1, 0.99), lambda m: m.exponential_decay(0.1, 1, 0.99)),
    "linear": (s.linear(0.1, 0.02, 613), lambda m: m.linear_schedule(0.1, 0.02, 613)),
    "polynomial": (s.polynomial(0.1, 777, 2.5, 0.01), lambda m: m.polynomial_schedule(0.1, 0.01, 2.5, 777)),
    "cosine": (s.cosine(0.1, 777, 0.01), lambda m: m.cosine_decay_schedule(0.1, 777, 0.1)),
    "warmup, cosine": (
        s.warmup(s.cosine(0.1, 700, 0.01), 77),
        lambda m: m.warmup_cosine_decay_schedule(0.0, 0.1, 77, 777, 0.01),
    ),
    "join": (
        s.join([s.constant(0.3), s.linear(0.2, 0.1, 300), s.cosine(0.1, 100)], [100, 500]),
        lambda m: m.join_schedules(
            [m.constant_schedule(0.3), m.linear_schedule(0.2, 0.1, 300), m.cosine_decay_schedule(0.1, 100)], [100, 500]
        ),
    ),
}


@pytest.mark.parametrize("name", OPTAX)
def test_equals_optax(name):
    schedule, make = OPTAX[name]
    assert worst(schedule, optax_rates(make)) <= CLOSED_FORM


@pytest.mark.parametrize(
    "options",
    [
        {"patience": 3},
        {"patience": 2, "cooldown": 4, "factor": 0.5, "min_lr": 0.004},
        {"patience": 1, "threshold": 0.05, "threshold_mode": "abs"},
        {"mode": "max", "patience": 2},
        {"mode": "max", "patience": 2, "threshold": 0.3, "threshold_mode": "abs"},
    ],
)
def test_plateau_equals_torch(options):
    torch = pytest.importorskip("torch")
    metrics = [math.exp(-k / 60) + 0.1 * math.sin(7.0 * k) ** 2 for k in range(STEPS)]
    if options.get("mode") == "max":
        metrics = [1.0 - m for m in metrics]
    metrics[37] = math.nan
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **options)
    ours = s.Plateau(0.1, **options)
    rates = []
    for metric in metrics:
        theirs.step(metric)
        rates.append((ours.update(metric), optimizer.param_groups[0]["lr"]))
    assert [a for a, _ in rates] == [b for _, b in rates]
    assert len({a for a, _ in rates}) > 1


def test_plateau_state_survives_exactly():
    metrics = [1.0, 0.9, 0.9, 0.9, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8]
    for cut in range(1, len(metrics)):
        one, two = (s.Plateau(0.1, patience=1, cooldown=2) for _ in range(2))
        for metric in metrics[:cut]:
            one.update(metric)
        two.load_state_dict(one.state_dict())
        assert two.state_dict() == one.state_dict() != s.Plateau(0.1).state_dict()
        assert [one.update(m) for m in metrics[cut:]] == [two.update(m) for m in metrics[cut:]]


@pytest.mark.parametrize(
    "change", [{"lr": -1.0}, {"lr": math.nan}, {"best": "x"}, {"bad": -1}, {"cooling": 1.5}, {"x": 1}]
)
def test_plateau_refuses_a_bad_state_whole(change):
    plateau = s.Plateau(0.1)
    before = plateau.state_dict()
    with pytest.raises((TypeError, ValueError)):
        plateau.load_state_dict(before | change)
    assert plateau.state_dict() == before


EVERY = {name: schedule for name, (schedule, *_) in (TORCH | OPTAX).items()} | {
    "inverse_sqrt": s.inverse_sqrt(0.1, 50),
    "wsd": s.warmup_stable_decay(0.1, 500, warmup_steps=20, decay_steps=100, final_lr=0.01),
    "wsd, cosine": s.warmup_stable_decay(0.1, 500, warmup_steps=0, decay_steps=100, decay="cosine"),
    "wsd, sqrt": s.warmup_stable_decay(0.1, 500, warmup_steps=20, decay_steps=480, decay="sqrt"),
    "scale": s.scale(s.cosine(0.1, 500), s.exponential(1.0, 0.99)),
}


@pytest.mark.parametrize("name", EVERY)
def test_pure_defined_past_the_end_and_a_float(name):
    schedule = EVERY[name]
    forwards = [schedule(k) for k in range(300)]
    assert [schedule(k) for k in reversed(range(300))] == forwards[::-1]
    assert all(type(rate) is float and 0.0 <= rate <= 1.0 for rate in forwards)
    assert all(0.0 <= schedule(k) <= 1.0 for k in (10**4, 10**9))
    with pytest.raises(ValueError, match="from 0"):
        schedule(-1)


def test_what_a_schedule_cannot_be_made_of_is_named():
    with pytest.raises(TypeError, match=r"step must be an int from 0, got 3\.0"):
        s.cosine(1.0, 10)(3.0)
    for make, message in (
        (lambda: s.multistep(1.0, 5), "milestones must be a list of numbers of steps, got 5"),
        (lambda: s.join(s.constant(0.1), [3]), r"schedules must be a list of schedules, got constant\(lr=0.1\)"),
        (lambda: s.join([s.constant(0.1)], 3), "boundaries must be a list"),
        (lambda: s.Plateau(1.0).update(None), "metric must be a number, got None"),
        (lambda: s.Plateau(1.0).update(np.ones(2)), "metric must be a number, got array"),
    ):
        with pytest.raises(TypeError, match=message):
            make()


@pytest.mark.parametrize("name", EVERY)
def test_copies_print_and_compare(name):
    schedule = EVERY[name]
    again = pickle.loads(pickle.dumps(schedule))
    assert again == schedule and hash(again) == hash(schedule) and repr(again) == repr(schedule)
    assert eval(repr(schedule), dict(vars(s))) == schedule
    assert schedule != s.constant(0.123)


@pytest.mark.parametrize("make", [s.exponential, lambda lr, gamma: s.step_decay(lr, 1, gamma)])
def test_a_rate_beyond_all_numbers_is_infinite(make):
    assert make(1.0, 1.5)(5000) == math.inf == make(1e300, 1e300)(1)
    assert make(0.0, 1.5)(5000) == 0.0
    assert s.multistep(1.0, range(5000), 1.5)(5000) == math.inf
    with pytest.raises(ValueError, match="lr must be"):
        fo.SGD(np.ones(1)).lr = make(1.0, 1.5)(5000)


def test_no_schedule_allocates():
    every = list(EVERY.values())
    for schedule in every:
        schedule(5)
    tracemalloc.start()
    for k in range(200):
        for schedule in every:
            schedule(k)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4096


def test_shapes_without_a_namesake():
    transformer = s.warmup(s.inverse_sqrt(0.1, 400), 400)
    assert transformer(400) == 0.1 and transformer(1600) == 0.05 and transformer(200) == 0.05
    wsd = s.warmup_stable_decay(1.0, 100, warmup_steps=10, decay_steps=16, final_lr=0.5, decay="sqrt")
    assert [wsd(0), wsd(10), wsd(84), wsd(88), wsd(100), wsd(200)] == [0.0, 1.0, 1.0, 0.75, 0.5, 0.5]
    longer = s.warmup_stable_decay(1.0, 200, warmup_steps=10, decay_steps=16, final_lr=0.5, decay="sqrt")
    assert [longer(k) for k in range(85)] == [wsd(k) for k in range(85)]
    joined = s.join([s.constant(0.3), s.linear(0.2, 0.1, 10)], [100])
    assert [joined(k) for k in (0, 99, 100, 105)] == pytest.approx([0.3, 0.3, 0.2, 0.15])
    assert repr(s.scale(math.sqrt, 2.0)) == "scale(schedule=sqrt, factor=2.0)"


@pytest.mark.parametrize(
    "make",
    [
        lambda: s.constant(-1.0),
        lambda: s.constant("x"),
        lambda: s.constant(math.nan),
        lambda: s.step_decay(0.1, 0),
        lambda: s.step_decay(0.1, 2.5),
        lambda: s.multistep(0.1, [3, -1]),
        lambda: s.exponential(0.1, -0.5),
        lambda: s.linear(0.1, 0.0, 0),
        lambda: s.polynomial(0.1, True),
        lambda: s.cosine(0.1, -5),
        lambda: s.cosine_restarts(0.1, 5, 0),
        lambda: s.one_cycle(0.1, 1),
        lambda: s.one_cycle(0.1, 100, pct_start=1.0),
        lambda: s.one_cycle(0.1, 100, pct_start=0.6, three_phase=True),
        lambda: s.one_cycle(0.1, 100, anneal_strategy="cosine"),
        lambda: s.inverse_sqrt(0.1, 0),
        lambda: s.warmup_stable_decay(0.1, 100, warmup_steps=50, decay_steps=51),
        lambda: s.warmup_stable_decay(0.1, 100, warmup_steps=5, decay_steps=5, decay="no"),
        lambda: s.warmup(0.1, 5),
        lambda: s.warmup(s.constant(0.1), -1),
        lambda: s.join([], []),
        lambda: s.join([s.constant(0.1)], [5]),
        lambda: s.join([s.constant(0.1)] * 3, [5, 5]),
        lambda: s.scale(s.constant(0.1), -2.0),
        lambda: s.Plateau(0.1, factor=1.0),
        lambda: s.Plateau(0.1, patience=-1),
        lambda: s.Plateau(0.1, mode="down"),
    ],
)
def test_bad_arguments_are_refused(make):
    with pytest.raises((TypeError, ValueError)):
        make()


@pytest.mark.parametrize(("mode", "sign"), [("min", 1.0), ("max", -1.0)])
@pytest.mark.parametrize("value", [-2.0, -1e-3, 0.0, 3.0])
def test_plateau_wants_a_margin_whatever_the_sign_of_the_metric(mode, sign, value):
    """torch's margin is on the wrong side of a negative metric: its rate is never lowered."""
    plateau = s.Plateau(1.0, mode=mode, patience=0, threshold=0.1)
    plateau.update(value)
    assert plateau.update(value - sign * 0.05 * abs(value)) == pytest.approx(0.1)  # less than the margin
    assert plateau.best == value
    plateau.update(value - sign * (0.2 * abs(value) + 1e-6))
    assert plateau.bad == 0 and plateau.best != value


def test_a_deep_copy_has_a_plateau_of_its_own():
    plateau = s.Plateau(1.0, patience=0)
    given = [
        s.join([s.warmup(plateau, 3), s.constant(0.5)], [9]),
        s.scale(plateau, 0.5),
    ]
    copies = copy.deepcopy(given)
    plateau.update(2.0), plateau.update(2.0)
    assert [schedule(5) for schedule in given] == [0.1, 0.05]
    assert [schedule(5) for schedule in copies] == [1.0, 0.5]
    (own,) = [part for part in s.parts_of(copies) if isinstance(part, s.Plateau)]  # one for both
    own.update(2.0), own.update(2.0)
    assert [schedule(5) for schedule in copies] == [0.1, 0.05]


def test_a_schedule_is_typed_like_a_function():
    assert str(inspect.signature(s.cosine)).startswith("(lr: float, steps: int, final_lr: float = 0.0) -> ")
    with pytest.raises(TypeError, match="'final'"):
        s.cosine(0.1, 5, final=3)
