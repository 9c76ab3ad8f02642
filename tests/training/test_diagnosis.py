"""A diagnosis is right: every verdict is a claim about the run, and the claim is checked against exact dynamics.

Thresholds for a fixed batch were chosen on quadratics of 30 dimensions with evenly and geometrically spaced curvatures
and on logistic regression with 40 and 60 examples. Here curvatures and starts are drawn at random, and the logistic
data are others. Those for minibatches were chosen on the generated curves of benchmarks/advice.py with seeds below
1,000,000 and on every other real curve; here seeds are above, and all real curves are judged.
"""

from __future__ import annotations

import itertools
import math
import warnings
from functools import partial
from typing import get_args

import numpy as np
import pytest

import fastoptim as fo
from fastoptim import cli
from fastoptim.training import diagnosis
from fastoptim.training.curves import kendall_tau
from fastoptim.training.diagnosis import MINIMUM, VERDICTS
from tests.support.scripts import benchmark

RATES = np.geomspace(0.01, 3.0, 9)  # as a share of the exact stability limit


def quadratic(condition, size, seed):
    """Curvatures from 1 / condition to 1 and a start, both random."""
    rng = np.random.default_rng(seed)
    curvature = np.concatenate([[1.0, 1.0 / condition], condition ** -rng.random(size - 2)])
    return curvature, rng.standard_normal(size) / curvature ** rng.choice([0.0, 0.25, 0.5])


@np.errstate(over="ignore", invalid="ignore")
def descend(curvature, start, lr, momentum, steps, sigma=0.0, seed=0):
    """Exact losses of (noisy) gradient descent with momentum on a quadratic."""
    rng = np.random.default_rng(seed)
    x, v, losses = start.copy(), np.zeros_like(start), []
    for _ in range(steps):
        losses.append(0.5 * np.sum(curvature * x * x))
        v = momentum * v + curvature * x + sigma * rng.standard_normal(len(x))
        x = x - lr * v
    return np.array(losses)


@np.errstate(over="ignore", invalid="ignore")
def expected(curvature, start, lr, steps, sigma):
    """Expected losses of noisy gradient descent, exactly: E[x**2] <- (1 - lr k)**2 E[x**2] + lr**2 sigma**2."""
    square, losses = start**2, []
    for _ in range(steps):
        losses.append(0.5 * np.sum(curvature * square))
        square = (1.0 - lr * curvature) ** 2 * square + (lr * sigma) ** 2
    return np.array(losses)


def chance(curvature, start, lr, steps, sigma):
    """Standard deviation, over runs, of the logarithm of the fall within the second half."""
    rng = np.random.default_rng(99)
    x, losses = np.tile(start, (64, 1)), []
    for _ in range(steps):
        losses.append(0.5 * np.sum(curvature * x * x, axis=1))
        x = x - lr * (curvature * x + sigma * rng.standard_normal(x.shape))
    quarter = steps // 8
    losses = np.log(losses)
    return np.std(np.median(losses[steps // 2 :][:quarter], axis=0) - np.median(losses[-quarter:], axis=0))


def wrong(verdict, share, losses, faster, chance=lambda: 0.0):
    """Why a verdict about a run at `share` of the stability limit is wrong; None if it is right.

    `losses` are the exact ones and `faster` those of twice the rate over as many steps; what a run does by `chance` in
    its second half, within three standard deviations, may be taken for what it does on average.
    """
    if share > 1.0:
        return None if verdict == "diverged" else "it diverges"
    if verdict in ("diverged", "oscillating"):
        return "it converges"
    half, end = losses[len(losses) // 2], np.median(losses[-5:])
    fall = math.log(half / end)
    if verdict == "too slow" and not (2 * share < 1.0 and np.median(faster[-5:]) < end and end > 0.4 * losses[0]):
        return "a larger rate is no better, or the loss has dropped well"
    if verdict != "too slow" and end > 0.95 * losses[0]:
        return "it has not dropped at all"
    if verdict == "healthy" and fall < 0.01 and fall + 3 * chance() < 0.01:
        return "it does not fall"
    if verdict == "plateau" and fall > 0.1 and end > 1e-12 * losses[0] and fall - 3 * chance() > 0.1:
        return "it still falls"
    return None


@pytest.mark.parametrize("condition", [1e2, 1e3, 1e4])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_every_verdict_is_right_on_quadratics_without_noise(condition, momentum):
    mistakes = []
    for seed in range(4):
        curvature, start = quadratic(condition, 20, seed)
        for steps in (100, 250):
            for share in RATES:
                lr = share * 2.0 * (1.0 + momentum)
                losses = descend(curvature, start, lr, momentum, steps)
                found = fo.diagnose(losses, fixed_batch=True, momentum=momentum)
                faster = descend(curvature, start, 2 * lr, momentum, steps)
                reason = wrong(found.verdict, share, losses, faster)
                if reason:
                    mistakes.append((seed, steps, share, reason, str(found)))
    assert mistakes == []


@pytest.mark.parametrize("condition", [1e2, 1e3, 1e4])
def test_every_verdict_is_right_on_quadratics_with_noise(condition):
    mistakes = []
    for seed in range(5):
        curvature, start = quadratic(condition, 100, seed)
        for steps in (100, 250):
            for share in RATES:
                losses = descend(curvature, start, 2.0 * share, 0.0, steps, sigma=0.1, seed=seed)
                found = fo.diagnose(losses, fixed_batch=True)
                exact = expected(curvature, start, 2.0 * share, steps, 0.1)
                faster = expected(curvature, start, 4.0 * share, steps, 0.1)
                reason = wrong(
                    found.verdict, share, exact, faster, partial(chance, curvature, start, 2.0 * share, steps, 0.1)
                )
                if reason:
                    mistakes.append((seed, steps, share, reason, str(found)))
    assert mistakes == []


# --- Cycles and ringing -------------------------------------------------------------------------------------------


def logistic(seed, size, examples=100):
    """Logistic regression on noisy labels: loss and gradient, and the stability limit 2 / curvature at its minimum."""
    rng = np.random.default_rng(1000 + seed)
    x = rng.standard_normal((examples, size)) * np.linspace(1.0, 2.0, size)
    label = np.where(rng.random(examples) < 0.25, -1.0, 1.0) * np.sign(x @ rng.standard_normal(size))
    signed = x * label[:, None]

    def loss_and_grad(w):
        margin = signed @ w
        return np.mean(np.logaddexp(0.0, -margin)), -signed.T @ (0.5 - 0.5 * np.tanh(0.5 * margin)) / examples

    w = np.zeros(size)
    for _ in range(50):
        p = 0.5 + 0.5 * np.tanh(0.5 * signed @ w)
        hessian = (signed * (p * (1.0 - p))[:, None]).T @ signed / examples
        w = w - np.linalg.solve(hessian, loss_and_grad(w)[1])
    return loss_and_grad, 2.0 / np.linalg.eigvalsh(hessian)[-1]


def train(loss_and_grad, size, lr, momentum, steps):
    w, v, losses = np.zeros(size), np.zeros(size), []
    for _ in range(steps):
        loss, gradient = loss_and_grad(w)
        losses.append(loss)
        v = momentum * v + gradient
        w = w - lr * v
    return np.array(losses)


@pytest.mark.parametrize("size", [2, 5, 10])
def test_bounded_logistic_cycles_are_called_oscillating(size):
    verdicts = []
    for seed in range(5):
        loss_and_grad, limit = logistic(seed, size)
        for share in (1.1, 1.5, 2.0, 3.0, 5.0, 10.0):
            losses = train(loss_and_grad, size, share * limit, 0.0, 1000)
            assert np.isfinite(losses).all()
            if np.ptp(losses[-200:]) > 0.01 * losses[-1]:  # it does not converge
                verdicts += [fo.diagnose(losses[:steps], fixed_batch=True).verdict for steps in (200, 500)]
    assert len(verdicts) > 30
    assert verdicts.count("oscillating") >= 0.99 * len(verdicts), verdicts


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_converging_logistic_runs_are_not_called_oscillating(momentum):
    verdicts = []
    for seed in range(10):
        loss_and_grad, limit = logistic(seed, 5)
        for share in (0.05, 0.1, 0.2, 0.3, 0.5):
            losses = train(loss_and_grad, 5, share * limit * (1.0 + momentum), momentum, 1000)
            if np.ptp(losses[100:]) < 1e-3 * losses[-1]:  # settled within the 200 losses that are shown
                verdicts.append(fo.diagnose(losses[:200], fixed_batch=True, momentum=momentum).verdict)
    assert len(verdicts) >= 40
    assert not {"oscillating", "diverged"} & set(verdicts)


@pytest.mark.parametrize("momentum", [0.8, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.6, 0.9])
def test_ringing_that_converges_is_not_called_oscillating(momentum, share):
    steps = math.ceil(10.0 / (1.0 - momentum))
    curvature = np.array([1.0])
    losses = descend(curvature, np.ones(1), share * 2.0 * (1.0 + momentum), momentum, steps)
    assert np.mean(np.diff(losses) > 0) > 0.05  # it does ring
    assert fo.diagnose(losses, fixed_batch=True, momentum=momentum).verdict in ("healthy", "plateau")
    floor = fo.diagnose(losses + 0.5, fixed_batch=True, momentum=momentum)  # as an irreducible loss hides the fall
    assert floor.verdict in ("healthy", "plateau")


# --- Minibatch noise, scales, plain cases -------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.02, 0.1, 0.3])
@pytest.mark.parametrize(
    ("curve", "verdict"),
    [
        (lambda t: 2.3 * np.exp(-t / 60) + 0.2, "healthy"),
        (lambda t: 2.0 * np.exp(-t / 10) + 0.3, "plateau"),
        (lambda t: np.full(len(t), 2.3), "plateau"),
        (lambda t: 2.3 * np.exp(t / 40), "diverged"),
    ],
)
def test_minibatch_noise_hides_nothing(curve, verdict, noise):
    found = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        losses = curve(np.arange(200.0)) * np.exp(noise * rng.standard_normal(200))
        found.append(fo.diagnose(losses))
    assert sum(one.verdict == verdict for one in found) >= {0.02: 40, 0.1: 38, 0.3: 32}[noise], found
    assert all((one.lr_factor < 1.0) <= (verdict == "diverged") and one.lr_factor <= 1.0 for one in found)


def test_alternation_is_seen_through_minibatch_noise():
    t = np.arange(200.0)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        losses = (2.0 * np.exp(-t / 10) + 0.5 + 0.2 * (-1.0) ** t) * np.exp(0.1 * rng.standard_normal(200))
        found = fo.diagnose(losses)
        assert found.verdict == "oscillating"
        assert found.evidence["period"] % 2 == 0
        assert found.lr_factor == 0.5


def test_alternation_is_seen_on_a_slope():
    t = np.arange(200.0)
    losses = 2.0 * np.exp(-t / 5) + 1.0 + 0.05 * (-1.0) ** t + 0.003 * t
    assert fo.diagnose(losses, fixed_batch=True).verdict == "oscillating"


def test_scale_does_not_matter():
    losses = descend(*quadratic(1e3, 20, 5), 0.5, 0.0, 100)
    verdicts = {fo.diagnose(scale * losses, fixed_batch=True).verdict for scale in (1e-30, 1e-3, 1.0, 1e6, 1e30)}
    assert verdicts == {"healthy"}
    assert fo.diagnose(losses[::-1], fixed_batch=True).verdict == "diverged"
    assert fo.diagnose(losses.tolist(), fixed_batch=True) == fo.diagnose(losses, fixed_batch=True)


def test_losses_may_be_negative():
    t = np.arange(100.0)
    assert fo.diagnose(-3.0 - 5.0 * t / 100).verdict == "healthy"
    assert fo.diagnose(-3.0 - 1e-4 * t).verdict == "too slow"
    assert fo.diagnose(-3.0 + 0.1 * t).verdict == "unclear"  # a log-likelihood, or a reward, rises like that
    assert fo.diagnose(-3.0 + np.exp(0.1 * t)).verdict == "diverged"
    assert fo.diagnose(-3.0 - 4.0 * (1 - np.exp(-t / 5))).verdict == "plateau"


def test_a_loss_of_zero_is_a_plateau():
    assert fo.diagnose([1.0, 0.1, 0.01, *[0.0] * 50]).verdict == "plateau"
    for fixed in (False, True):
        nothing = fo.diagnose(np.zeros(30), fixed_batch=fixed)
        assert (nothing.verdict, nothing.lr_factor) == ("plateau", 1.0)
    assert fo.diagnose(0.5 ** np.arange(400.0), fixed_batch=True).verdict == "plateau"  # a share of 1e-15 is round-off


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_has_diverged(bad):
    found = fo.diagnose([1.0, 0.5, bad], lr=0.1)
    assert found.verdict == "diverged"
    assert found.evidence == {"first_nonfinite": 2.0}
    if math.isinf(bad):  # infinite losses are no gaps
        assert fo.diagnose([1.0, 0.5, bad, 0.2], lr=0.1) == found
    assert "0.01" in found.remedy
    assert found.lr_factor == 0.1


def test_the_remedy_is_the_chapters():
    t = np.arange(100.0)
    cases = {
        "diverged": (np.exp(t / 10), 0.1, "divide the learning rate by 10 (try 0.05)"),
        "oscillating": (
            2 * np.exp(-t / 5) + 1 + 0.3 * (-1) ** t,
            0.5,
            "halve the learning rate, or use momentum or Adam",
        ),
        "too slow": (2.3 - 1e-4 * t, 10.0, "multiply the learning rate by 10 (try 5)"),
        "plateau": (2 * np.exp(-t / 5) + 1, 1.0, "lower the learning rate by a schedule, or stop here"),
        "healthy": (2 * np.exp(-t / 50), 1.0, "keep the learning rate"),
        "unclear": (1.0 + 0.3 * t / 100, 1.0, "look at the model, the data and what kind of loss it is"),
        "too short": (2 * np.exp(-t[:9] / 50), 1.0, "train longer"),
    }
    assert set(cases) == set(VERDICTS)
    for verdict, (losses, factor, remedy) in cases.items():
        found = fo.diagnose(losses, lr=0.5)
        assert found.verdict == verdict
        assert found.lr_factor == factor
        assert remedy in found.remedy
        assert found.remedy.endswith(".")
        assert verdict in str(found)
    straight, slower = fo.diagnose(2.3 - 0.6 * t / 100), fo.diagnose(2.3 - 0.1 * t / 100)
    assert (straight.verdict, straight.lr_factor) == ("too slow", 2.0)
    straight = fo.diagnose(2.3 - 0.6 * t / 100, fixed_batch=True)
    assert (straight.verdict, straight.lr_factor) == ("too slow", 2.0)
    assert (slower.verdict, slower.lr_factor) == ("too slow", 10.0)
    high = fo.diagnose(np.where(t < 5, 1.0, 20 + 5 * (-1) ** t), fixed_batch=True)  # bounded, but far above its start
    assert (high.verdict, high.lr_factor) == ("oscillating", 0.1)
    dead = fo.diagnose(np.where(t < 5, 2.0 + t, 1.99), fixed_batch=True)  # a network whose units have all died
    assert (dead.verdict, dead.lr_factor) == ("diverged", 0.1)
    risen = fo.diagnose(np.minimum(1.0 + t, 20.0))
    assert (risen.verdict, risen.lr_factor) == ("diverged", 0.1)


def test_a_fixed_batch_whose_loss_has_come_to_a_floor_is_not_called_slow():
    t = np.arange(300)
    for fall in (0.005, 0.05, 0.09):  # of the loss, as where most of it is noise that no model explains
        for steps, verdict, factor in ((1, "plateau", 1.0), (5, "plateau", 1.0), (20, "plateau", 1.0),
                                       (100, "healthy", 1.0), (1000, "too slow", 10.0)):  # fmt: skip
            found = fo.diagnose(1 - fall * (1 - np.exp(-t / steps)), fixed_batch=True)
            assert (found.verdict, found.lr_factor) == (verdict, factor), (fall, steps)
            assert f"dropped by {found.evidence['drop']:.1%}" in found.remedy
    assert "has not moved" in fo.diagnose(np.where(t % 7, 1.0, 1.0 - 1e-12), fixed_batch=True).remedy


def test_a_whole_data_set_of_mostly_noise_trains_without_a_warning():
    rng = np.random.default_rng(3)
    x = rng.standard_normal((500, 3))
    y = x @ [0.1, 0.2, 0.0] + rng.standard_normal(500)

    def loss_and_grad(p, batch):
        error = batch[0] @ p - batch[1]
        return np.mean(error**2), 2 * batch[0].T @ error / len(error)

    result = fo.fit(loss_and_grad, np.zeros(3), (x, y), "sgd", lr=0.05, steps=100, batch_size=500)
    assert 0.02 < result.diagnosis.evidence["drop"] < 0.1
    assert result.diagnosis.lr_factor == 1.0  # at ten times the rate it would diverge


def test_gains_that_are_lost_again_on_a_fixed_batch_are_called_oscillating():
    losses = np.interp(np.arange(200), [0, 60, 200], [2.3, 0.5, 0.9])  # the peaks do not double, the end is no new high
    found = fo.diagnose(losses, fixed_batch=True)
    assert (found.verdict, found.reason) == ("oscillating", "lost again")
    assert "risen by" in found.remedy


def test_no_rate_is_lowered_because_a_model_overfits():
    """By a validation loss that loses much of what it had gained, or all of it."""
    t = np.arange(200) / 200
    for seed in range(20):
        noise = np.exp(0.03 * np.random.default_rng(seed).standard_normal(200))
        for slope in (0.8, 3.0):
            found = fo.diagnose(noise * (0.2 + 2.0 * np.exp(-t / 0.05) + slope * np.maximum(t - 0.2, 0.0)))
            assert (found.verdict, found.lr_factor) in (("plateau", 1.0), ("unclear", 1.0)), found
            assert "validation loss" in found.remedy and "stop here" not in found.remedy


def test_no_rate_is_lowered_because_harder_data_come():
    t = np.arange(300)
    for seed in range(20):
        noise = np.exp(0.03 * np.random.default_rng(seed).standard_normal(300))
        for level in (0.4, 0.7, 1.0):
            harder = np.where(t < 150, 0.2 + 2.0 * np.exp(-t / 20), level + 0.6 * np.exp((150 - t) / 40))
            assert fo.diagnose(noise * harder).lr_factor == 1.0


def test_no_rate_is_lowered_because_scores_rise():
    """Rewards and log-likelihoods rise steadily or ever more slowly; a lost run does so ever faster, or at once."""
    t = np.arange(400) / 400
    for seed in range(10):
        noise = np.random.default_rng(seed).standard_normal(400)
        for pace in (0.2, 0.4):  # one that is over within an eighth of the curve cannot be told from a jump
            share = 1.0 - np.exp(-t / pace)
            for score in (
                10 + 88 * share + noise,
                500 * share + 20 * noise,
                -500 + 380 * share + 5 * noise,
                share * 34,
            ):
                found = fo.diagnose(score)
                assert (found.verdict, found.lr_factor) == ("unclear", 1.0), found
        for lost in (np.exp(6 * t), np.where(t < 0.3, 1.0 - t, 20.0), 1.0 + 19.0 * np.minimum(20.0 * t, 1.0)):
            assert fo.diagnose(lost * np.exp(0.05 * noise)).lr_factor == 0.1


def test_two_sources_in_turn_are_no_oscillation_while_both_fall():
    t = np.arange(400)
    noise = np.exp(0.05 * np.random.default_rng(0).standard_normal(400))
    assert fo.diagnose(noise * np.where(t % 2, 3.0, 1.0) * np.exp(-t / 300)).lr_factor == 1.0


def test_an_infinite_loss_that_was_survived_is_no_divergence():
    """As where mixed precision skips the step."""
    losses = 2.0 * np.exp(-np.arange(300) / 100)
    losses[250] = np.inf
    assert fo.diagnose(losses).verdict == "healthy"
    assert fo.diagnose(losses[:255]).verdict == "diverged"


def test_what_has_begun_to_fall_only_lately_is_not_called_slow():
    t = np.arange(300) / 300
    assert fo.diagnose(2.3 - 0.05 * t - 3.0 * np.maximum(t - 0.8, 0.0)).verdict == "healthy"


def test_a_rate_with_which_nothing_moves_is_not_to_be_lowered():
    assert "probe_lr" in fo.diagnose(np.full(100, 0.5), fixed_batch=True).remedy


def test_every_reason_has_its_text_and_every_text_a_reason():
    assert set(get_args(diagnosis.Reason)) == set(diagnosis._TEXTS)
    assert {text[0] for text in diagnosis._TEXTS.values()} == set(VERDICTS)


@pytest.mark.parametrize("fixed_batch", [False, True])
def test_a_loss_that_rises_slowly_after_its_fall_is_not_called_flat(fixed_batch):
    """As on data for validation: it keeps most of what it has gained, so that nothing oscillates or diverges."""
    epochs = np.arange(60)
    found = fo.diagnose(2 / np.sqrt(epochs + 1) + 0.01 * epochs, fixed_batch=fixed_batch)
    assert found.verdict == "plateau" and found.lr_factor == 1.0 and "and rises again" in found.remedy


def test_noise_on_a_fixed_batch_is_no_rise():
    for seed in range(40):
        losses = 2.3 * np.exp(0.015 * np.random.default_rng(seed).standard_normal(200))
        found = fo.diagnose(losses, fixed_batch=True)
        assert found.lr_factor == 1.0, found


def test_ringing_about_a_level_is_no_oscillation():
    t = np.arange(200.0)
    losses = 1.0 + np.exp(-t / 10) + 0.3 * np.exp(-t / 60) * np.cos(0.8 * t)
    assert fo.diagnose(losses, fixed_batch=True).verdict in ("healthy", "plateau")
    about_its_start = 1.0 + 0.05 * np.exp(-t / 60) * np.sin(0.8 * t)
    assert fo.diagnose(about_its_start, fixed_batch=True).lr_factor == 1.0
    lasting = 1.0 + np.exp(-t / 10) + 0.3 * np.cos(0.8 * t)
    assert fo.diagnose(lasting, fixed_batch=True).verdict == "oscillating"


def test_a_longer_momentum_is_given_more_steps_to_settle():
    losses = 2.0 - np.arange(100) / 200
    losses[55:65] += 0.2 * (np.arange(10) % 2)
    assert fo.diagnose(losses, momentum=0.5).evidence["rises"] > 0.0
    assert fo.diagnose(losses, momentum=0.97).evidence["rises"] == 0.0  # judged from step 2 / (1 - 0.97) on


def test_evidence_is_what_it_says():
    losses = 4.0 * 0.5 ** (np.arange(100) / 25)
    evidence = fo.diagnose(losses, fixed_batch=True).evidence
    assert evidence["start"] == pytest.approx(4.0)
    assert evidence["end"] == pytest.approx(np.median(losses[-5:]))
    assert evidence["drop"] == pytest.approx(1 - np.median(losses[-5:]) / 4.0)
    assert evidence["tail_trend"] == -1.0
    assert evidence["envelope_trend"] == -1.0
    assert evidence["rises"] == 0.0
    assert evidence["noise"] == pytest.approx(0.0, abs=1e-12)
    cycle = fo.diagnose(1.0 + 0.5 * np.cos(np.arange(120) * 2 * np.pi / 6), fixed_batch=True).evidence
    assert cycle["period"] == 6
    assert cycle["cycle"] > 0.9


def test_kendalls_tau_is_that_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    for seed in range(5):
        x = np.random.default_rng(seed).standard_normal(50)
        assert kendall_tau(x) == pytest.approx(stats.kendalltau(np.arange(50), x).statistic, abs=1e-12)
    assert kendall_tau([1.0]) == 0.0


@pytest.mark.parametrize(
    ("losses", "options", "error", "text"),
    [
        ([[1.0] * 20], {}, ValueError, r"one-dimensional, got shape \(1, 20\)"),
        (["a"] * 20, {}, TypeError, "real numbers"),
        (["1.0"] * 20, {}, TypeError, "real numbers"),
        ([1.0 + 5.0j] * 20, {}, TypeError, "real numbers"),
        ([1.0] * 20, {"momentum": 1.0}, ValueError, "momentum"),
        ([1.0] * 20, {"lr": -1.0}, ValueError, "lr"),
        ([1.0] * 20, {"fixed_batch": 1}, TypeError, "fixed_batch"),
        ([1.0] * 20, {"scheduled": 1}, TypeError, "scheduled"),
    ],
)
def test_bad_input_is_refused(losses, options, error, text):
    with pytest.raises(error, match=text):
        fo.diagnose(losses, **options)


@pytest.mark.parametrize("losses", [{0: 5.0, 1: 4.0}, {3.0, 1.0, 2.0}, None, 3.0, fo.fit])
def test_what_is_no_sequence_is_refused(losses):
    with pytest.raises(TypeError, match=f"losses must be a sequence of numbers, got {type(losses).__name__}"):
        fo.diagnose(losses)


def test_what_holds_losses_is_met_with_their_place(tmp_path):
    log = str(tmp_path / "run.csv")
    result = fo.fit(lambda w, batch: (1.0, w.copy()), np.ones(2), None, "sgd", steps=3, diagnose=False, log=log)
    curve = fo.plots.read_curve(log)
    assert fo.diagnose(curve.losses) == fo.diagnose(result.history.loss)
    for given, place in (
        *((result, "its history.loss"), (result.history, "its loss"), (curve, "its losses")),
        (log, r"plots\.read_curve\(path\)\.losses"),
    ):
        with pytest.raises(TypeError, match=f"got {type(given).__name__}: .*{place}"):
            fo.diagnose(given)


def test_masked_losses_are_missing():
    y = 2.3 * 0.9 ** np.arange(100)
    masked = np.ma.masked_array(np.where(np.arange(100) % 7 == 3, 1e9, y), np.arange(100) % 7 == 3)
    assert fo.diagnose(masked) == fo.diagnose(np.where(masked.mask, np.nan, y))
    assert fo.diagnose(masked).evidence["missing"] == 14


def test_losses_of_an_iterator_are_read():
    y = (2.3 * 0.9 ** np.arange(100)).tolist()
    assert fo.diagnose(iter(y)) == fo.diagnose(dict(enumerate(y)).values()) == fo.diagnose(y)


@pytest.mark.parametrize("late", [540, 560])
def test_a_late_jump_is_seen_on_a_fixed_batch(late):
    losses = np.r_[2.3 * np.exp(-np.arange(late) / 150), [2.0] * (600 - late)]
    found = fo.diagnose(losses, fixed_batch=True)
    assert (found.verdict, found.lr_factor) == ("oscillating", 0.5)
    assert "has risen by" in found.remedy
    spike = np.r_[losses[:late], [2.0] * 5, losses[late - (595 - late) : late]]  # it has come back
    assert fo.diagnose(spike, fixed_batch=True).lr_factor == 1.0


# --- Rates that change ---------------------------------------------------------------------------------------------


def test_a_remedy_for_a_schedule_scales_it():
    """The last rate of a cosine is next to nothing: ten times as much would be, too."""
    losses = 2.3 - 1e-5 * np.arange(100)
    cosine = fo.schedules.cosine(1e-5, 100)
    found = fo.diagnose(losses, lr=[cosine(step) for step in range(100)], scheduled=True)
    assert (found.verdict, found.lr_factor) == ("too slow", 10.0)
    assert found.remedy.endswith(
        "multiply the learning rate by 10 (all of its schedule, schedules.scale(schedule, 10))."
    )
    known = fo.diagnose(losses, lr=np.full(100, 1e-5))
    assert known.remedy == fo.diagnose(losses, lr=1e-5).remedy
    assert known.remedy.endswith("(try 0.0001).")


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("losses", [2.3 - 1e-5 * np.arange(300), np.full(300, 2.3)])
def test_nothing_is_slow_while_the_rate_rises(losses, fixed):
    steps = np.arange(300)
    for warmup in (290, 300, 3000):
        found = fo.diagnose(losses, fixed_batch=fixed, lr=np.minimum(steps / warmup, 1.0), scheduled=True)
        assert (found.verdict, found.lr_factor) == ("unclear", 1.0)
        assert "wait until the learning rate has been at its height" in found.remedy
    for rates in (np.minimum(steps / 30, 1.0), 1.0 - steps / 300, 0.1 ** (steps // 100)):
        assert fo.diagnose(losses, fixed_batch=fixed, lr=rates).verdict in ("too slow", "plateau")


def test_growth_is_growth_while_the_rate_rises():
    t = np.arange(300.0)
    found = fo.diagnose(np.exp(t / 30), lr=t / 300, scheduled=True)
    assert (found.verdict, found.lr_factor) == ("diverged", 0.1)


@pytest.mark.parametrize("lr", [[0.1] * 19, [[0.1]] * 20, [-0.1] * 20, ["a"] * 20, [np.nan] * 20])
def test_rates_are_as_many_as_losses(lr):
    with pytest.raises(ValueError, match="one for each of 20 losses"):
        fo.diagnose([1.0] * 20, lr=lr)


# --- What fit says -------------------------------------------------------------------------------------------------


def regression(w, batch):
    x, y = batch
    error = x @ w - y
    return float(np.mean(error**2)), 2 * x.T @ error / len(y)


def examples(count):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((count, 5))
    return x, x @ np.arange(1.0, 6.0) + rng.standard_normal(count)


def test_fit_reads_the_losses_of_a_stream_as_those_of_minibatches():
    data, options = examples(6400), {"lr": 0.01, "steps": 400, "diagnose": False}
    whole = fo.fit(regression, np.zeros(5), data, "sgd", **options)
    stream = fo.minibatches(data)
    read = fo.fit(lambda w, _: regression(w, stream.next_batch()), np.zeros(5), None, "sgd", **options)
    assert read.diagnosis == whole.diagnosis
    assert whole.diagnosis.lr_factor == 1.0


def test_a_score_that_is_maximized_is_no_loss_that_diverges():
    """It rises to its maximum of 100, which is no reason to divide the rate by 10."""

    def score(x, batch):
        value = 100.0 * math.exp(-0.05 * np.sum((x - 3.0) ** 2))
        return value, -0.1 * value * (x - 3.0)

    x = np.zeros(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = fo.fit(score, x, None, fo.SGD(x, lr=0.01, maximize=True), steps=400)
    assert result.history.loss[-1] > 99.0
    assert result.diagnosis is None


def test_fit_waits_until_a_warmup_has_ended():
    schedule = fo.schedules.warmup(fo.schedules.constant(1e-2), 30000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = fo.fit(regression, np.zeros(5), examples(64), "sgd", lr=schedule, steps=350, batch_size=64).diagnosis
    assert (found.verdict, found.lr_factor) == ("unclear", 1.0)


@pytest.mark.parametrize("batch_size", [8, 64])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_command_says_what_fit_says(batch_size, momentum, tmp_path, capsys):
    for lr in (1e-6, 0.3, 0.5, 0.55, fo.schedules.cosine(0.1, 60), fo.schedules.warmup(lambda step: 1e-3, 300)):
        w, path = np.zeros(5), tmp_path / "log.jsonl"
        path.unlink(missing_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            opt = fo.SGD(w, lr=0.1, momentum=momentum)
            result = fo.fit(
                regression, w, examples(64), opt, lr=lr, steps=60, batch_size=batch_size, log=path, diagnose=False
            )
        capsys.readouterr()
        if result.reason == "steps":
            assert cli.main(["diagnose", str(path)]) == 0
            assert f"  {result.diagnosis.verdict}. {result.diagnosis.remedy}\n" in capsys.readouterr().out


def test_null_of_a_log_is_no_number():
    assert fo.diagnose([1.0, 2.0, None]).verdict == "diverged"
    with pytest.raises(TypeError, match="real numbers"):
        fo.diagnose([None, "1.0"] * 10)


# --- Truth: generated and real curves ------------------------------------------------------------------------------

ADVICE = benchmark("advice")
SEEDS = range(ADVICE.HELD_OUT, ADVICE.HELD_OUT + 15)


@pytest.mark.parametrize("kind", ADVICE.KINDS)
def test_advice_about_curves_of_known_truth_does_no_harm(kind):
    truth = ADVICE.KINDS[kind]
    for noise in ADVICE.NOISES:
        found = [fo.diagnose(ADVICE.generated(kind, noise, seed), lr=0.1) for seed in SEEDS]
        harmful = [str(one) for one in found if one.lr_factor not in truth.factors]
        assert len(harmful) <= 1, harmful
        assert not any(one.lr_factor > 1.0 for one in found if max(truth.factors) <= 1.0)
        for one in found:
            assert "nan" not in one.remedy and "by -" not in one.remedy, one
        if noise == 0.0:
            assert sum(one.verdict in truth.verdicts for one in found) >= 0.9 * len(found), found


def test_real_curves_are_judged_acceptably_and_without_harm():
    tuned, others = ADVICE.real_curves()
    assert len(tuned) + len(others) == 61
    for curves, least in ((tuned, 27), (others, 28)):
        found = [(curve, fo.diagnose(curve.losses)) for curve in curves]
        assert sum(curve.acceptable(one) for curve, one in found) >= least
        assert not any(curve.harmful(one) for curve, one in found)
        assert not any(one.lr_factor == 10.0 and "raise" not in curve.rate for curve, one in found)


def test_some_values_more_or_less_change_no_advice_into_its_contrary():
    for curve in itertools.chain(*ADVICE.real_curves()):
        factors = {fo.diagnose(curve.losses[: len(curve.losses) - k]).lr_factor for k in (0, 1, 3, 8)}
        assert not (max(factors) > 1.0 > min(factors)), curve.name


def test_curves_that_never_rise_do_not_oscillate():
    for fixed in (False, True):
        verdicts = [
            fo.diagnose(ADVICE.never_rising(seed), fixed_batch=fixed).verdict
            for seed in range(ADVICE.HELD_OUT, ADVICE.HELD_OUT + 200)
        ]
        assert "oscillating" not in verdicts
        assert "diverged" not in verdicts
    rounded = fo.diagnose(np.round(1 - 0.0005 * np.arange(100), 3), lr=0.01, fixed_batch=True)
    assert (rounded.verdict, rounded.lr_factor) == ("too slow", 10.0)


def test_a_rise_is_never_too_slow():
    for seed in range(40):
        rng = np.random.default_rng(seed)
        for fixed in (False, True):
            rise = np.linspace(1.0, 3.0, 200) * np.exp(0.5 * rng.standard_normal(200))
            found = fo.diagnose(rise, fixed_batch=fixed)
            assert found.lr_factor <= 1.0, found
            assert found.verdict != "too slow" and "dropped" not in found.remedy


@pytest.mark.parametrize("seed", range(5))
def test_single_examples_at_a_good_rate_are_not_too_slow(seed):
    """Least squares with batch size 1, converged to its floor: the noise is as large as the loss."""

    def loss_and_grad(w, batch):
        x, y = batch
        error = x @ w - y
        return float(np.mean(error**2)), 2 * x.T @ error / len(y)

    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2000, 10))
    y = x @ rng.standard_normal(10) * 1.5 + rng.standard_normal(2000)
    options = {"lr": 0.02, "steps": 1300, "batch_size": 1, "rng": seed, "diagnose": False}
    losses = fo.fit(loss_and_grad, np.zeros(10), (x, y), "sgd", **options).history.loss
    assert fo.diagnose(losses, lr=0.02).lr_factor == 1.0


def test_minibatches_in_a_fixed_order_are_no_cycle():
    rng = np.random.default_rng(0)
    pattern = np.exp(0.3 * rng.standard_normal(10))
    t = np.arange(400)
    falling = np.exp(-t / 300) * pattern[t % 10]
    for curve in (falling, pattern[t % 10] * (1 + 3 * np.exp(-t / 20))):
        found = fo.diagnose(curve)
        assert found.verdict in ("healthy", "plateau") or found.reason == "hidden"
        assert found.lr_factor == 1.0
        assert found.evidence["cycle"] > 0.9  # it is seen, and not taken for one of the optimizer
    cycle = fo.diagnose(1.0 + 0.2 * np.sin(t * 2 * np.pi / 10), fixed_batch=True)  # there every rise is real
    assert cycle.verdict == "oscillating"
    sinking = np.exp(-t / 300) + 0.002 * np.sin(t * 2 * np.pi / 10)
    assert fo.diagnose(sinking, fixed_batch=True).verdict == "healthy"
    slowly = 1 + np.exp(-t / 20) - 0.015 * np.maximum(t - 200, 0) / 200 + 0.002 * np.sin(t * 2 * np.pi / 10)
    assert fo.diagnose(slowly, fixed_batch=True).verdict == "plateau"  # means over whole periods fall
    four = np.array([1.4, 0.8, 1.0, 0.7])[t % 4]  # goes up and down at every other step, but by four different losses
    assert fo.diagnose(four * (1 + 3 * np.exp(-t / 20))).lr_factor == 1.0
    assert fo.diagnose(np.array([1.3, 0.7])[t % 2] * (1 + 3 * np.exp(-t / 20))).verdict == "oscillating"


def test_missing_values_are_no_divergence():
    t = np.arange(300.0)
    losses = 2.0 * np.exp(-t / 100)
    for every in (2, 7):
        gaps = np.where(t % every == 0, losses, np.nan)
        found = fo.diagnose(gaps)
        assert found.verdict == "healthy"
        assert found.evidence["missing"] == np.isnan(gaps).sum()
        assert fo.diagnose([None if np.isnan(x) else x for x in gaps]) == found
    ended = np.where(t < 200, losses, np.nan)
    assert fo.diagnose(ended).evidence == {"first_nonfinite": 200.0}
    ended[100] = np.nan  # a gap of one, and then a hundred in the end
    assert fo.diagnose(ended).verdict == "diverged"
    survived = losses.copy()
    survived[3] = np.inf
    assert fo.diagnose(survived).verdict == "healthy"
    nothing = fo.diagnose([math.nan] * 20, lr=1.0)
    assert (nothing.verdict, nothing.lr_factor) == ("unclear", 1.0)


def test_a_run_that_collapses_is_neither_slow_nor_healthy():
    t = np.arange(150)
    losses = np.where(t < 80, 8.4 * np.exp(-t / 55), 8.45)
    found = fo.diagnose(losses)
    assert (found.verdict, found.lr_factor) == ("oscillating", 0.5)
    assert "risen" in found.remedy


def test_a_running_mean_that_begins_by_chance_below_its_level_has_not_diverged():
    """Logs of smoothed losses begin with a single value; at a tenth of the rate nothing would be trained."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        raw = np.exp(-np.arange(500) / 800) * rng.chisquare(1, 500)
        raw[0] = (0.1, 0.001)[seed % 2]
        mean = [raw[0]]
        for loss in raw[1:]:
            mean.append(0.95 * mean[-1] + 0.05 * loss)
        found = fo.diagnose(mean)
        assert found.lr_factor == 1.0, found
    growing = 1.1 ** np.arange(500) * np.exp(0.05 * np.cumsum(rng.standard_normal(500)))
    assert fo.diagnose(growing).lr_factor == 0.1


def test_dropout_on_a_whole_data_set_is_no_oscillation():
    """Every loss is of the same data, but not every rise is the rate's doing: half of it would train half as far."""
    for seed in range(20):
        noise = np.exp(0.045 * np.random.default_rng(seed).standard_normal(1000))
        found = fo.diagnose(1.6 * np.exp(-np.arange(1000) / 5000) * noise, fixed_batch=True)
        assert found.verdict in ("healthy", "too slow") and found.lr_factor >= 1.0, found


def test_a_constant_in_the_loss_of_one_batch_changes_no_advice_into_harm():
    t = np.arange(280)
    jump = np.where((t > 20) & (t < 40), 1.0, 0.26 * np.exp(-t / 15) + 0.01)  # gains more than a jump has cost
    edge = np.where(t < 160, 1.0 + 2.0 * (t % 6 == 2), 0.6) - 1e-4 * t  # at its limit, until a schedule lowers the rate
    for constant in (0.0, 3.5, 19.0):
        assert fo.diagnose(constant + jump, fixed_batch=True).lr_factor == 1.0
        assert fo.diagnose(constant + edge, fixed_batch=True).lr_factor <= 1.0


def test_rare_large_losses_count_where_typical_ones_rise():
    """Examples, most of which are right already: the typical loss rises while the mean, which is trained, falls."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        t = np.arange(600.0)
        rare = np.where(rng.random(600) < 0.2, 3.0 * np.exp(-t / 400), 2e-4 * (1 + t / 100))
        found = fo.diagnose(rare)
        assert found.lr_factor == 1.0, found
        loss = np.exp(-t / 300) * rng.exponential(1.0, 600)
        easy = (t >= 300) & (t < 400)  # now and then many easy examples follow one another
        loss[easy] *= np.where(rng.random(100) < 0.6, 1e-3, 2.0)
        assert fo.diagnose(loss).lr_factor == 1.0
        single = rng.chisquare(1, 300) * np.exp(-np.arange(300) / 2000)
        single[:5] = [0.0014, 0.39, 0.0002, 1.08, 0.001]  # of a few such losses the median may lie anywhere
        assert fo.diagnose(single).lr_factor == 1.0


def test_a_run_that_was_lost_and_ends_about_its_start_is_not_healthy():
    t = np.arange(500)
    losses = np.select([t < 120, t < 480], [7.6 * np.exp(-t / 200), 20.0], 6.8)
    found = fo.diagnose(losses)
    assert (found.verdict, found.lr_factor) == ("oscillating", 0.5)


def test_one_negative_loss_changes_no_unit():
    losses = np.linspace(13.0, 5.4, 200)
    plain = fo.diagnose(losses)
    losses[100] = -0.01
    found = fo.diagnose(losses)
    assert (found.verdict, found.lr_factor) == (plain.verdict, plain.lr_factor) == ("healthy", 1.0)
    assert found.evidence["drop"] == pytest.approx(plain.evidence["drop"], abs=0.01)
    falling = 10.0 * np.exp(-np.arange(200) / 15)  # by the logarithm it still falls
    falling[150] = -1e-3
    assert fo.diagnose(falling).verdict == "healthy"


@pytest.mark.parametrize("fixed_batch", [False, True])
@pytest.mark.parametrize("spike", [150.0, -1e4, 1e30])
def test_a_spike_among_losses_of_both_signs_changes_no_unit(spike, fixed_batch):
    """A fall from 0.3 to -0.9 was little beside the spike: "multiply the learning rate by 10", at which it diverged."""
    losses = np.linspace(0.3, -0.9, 300) + 0.02 * np.random.default_rng(0).standard_normal(300)
    plain = fo.diagnose(losses, fixed_batch=fixed_batch)
    losses[40] = spike
    found = fo.diagnose(losses, fixed_batch=fixed_batch)
    assert (found.verdict, found.lr_factor) == (plain.verdict, plain.lr_factor) == ("healthy", 1.0)
    assert found.evidence["drop"] == pytest.approx(plain.evidence["drop"])


def test_a_loss_that_was_thrown_up_at_once_is_compared_with_the_first():
    """The median of the first few is that of the jump: the loss seemed to have fallen by 95 %, and to be healthy."""
    t = np.arange(300.0)
    for seed in range(10):
        noise = np.random.default_rng(seed).uniform(-0.2, 0.2, 300)
        jump = np.where(t > 0, 60.0 * np.exp(-t / 50) + 3.0 + noise, 1.0)
        worse, better = fo.diagnose(jump), fo.diagnose(np.where(t > 0, jump - 2.7, 1.0))
        assert (worse.verdict, worse.lr_factor) == ("diverged", 0.1), worse
        assert (better.verdict, better.lr_factor) == ("healthy", 1.0), better
        assert worse.evidence["start"] == better.evidence["start"] == 1.0
        rare = np.where(np.arange(300) % 5 == 1, 100.0, 0.5)  # the mean is far above the start
        rare[:10] = [1.0, *[50.0] * 9]
        assert fo.diagnose(rare * np.exp(noise)).verdict == "unclear"


def test_a_first_loss_of_a_few_examples_is_no_level_from_which_the_loss_has_jumped():
    """In a log of plain C++ every 94th batch had a 32nd of the loss, the first among them: 0.072, 2.303, ..., 0.425."""
    losses = 0.4 + 1.9 / (1.0 + np.exp(0.015 * (np.arange(940) - 400.0)))
    losses *= 1.0 + 0.1 * np.random.default_rng(3).standard_normal(940)
    losses[::94] /= 32.0
    found = fo.diagnose(losses)
    assert (found.verdict, found.lr_factor) == ("healthy", 1.0), found
    jumped = np.where(np.arange(940) > 0, 2.3, 0.072) * np.exp(0.1 * np.random.default_rng(3).standard_normal(940))
    assert fo.diagnose(jumped).verdict == "diverged"


@pytest.mark.parametrize("early", [(3.6, 6.6, 10.3, 4.8), (13.1, 6.7, 38.0, 28.3), (87.5, 174.0, 923.0, 8.9)])
def test_a_network_that_died_at_once_has_gained_nothing(early):
    """Losses of SGD at rates of 3 and 10 on digits, whose ReLUs die: "dropped by 46 %", counted from the jump."""
    level = math.log(10.0) + 0.03 * np.random.default_rng(0).standard_normal(295)
    found = fo.diagnose([2.4, *early, *level])
    assert (found.verdict, found.lr_factor) == ("unclear", 1.0)
    assert "jumped up" in found.remedy and "smaller rate" in found.remedy
    gained = fo.diagnose([2.4, *early, *(level - 1.8)])  # half a unit is left: a real gain
    assert gained.verdict == "plateau" and "dropped by 79" in gained.remedy


def test_flat_is_said_only_where_noise_cannot_hide_a_fall():
    t = np.arange(300.0)
    noise = np.random.default_rng(0).standard_normal(300)
    curve = 0.3 + 2.0 * np.exp(-t / 20)
    for width, hidden in ((0.02, False), (0.5, True)):
        found = fo.diagnose(curve * np.exp(width * noise))
        assert (found.verdict, found.lr_factor) == ("plateau", 1.0)
        assert found.reason == ("hidden" if hidden else "flat")
        assert ("hidden by its noise" in found.remedy) == hidden == ("stop here" not in found.remedy)
        assert ("train longer" in found.remedy) == hidden


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_nothing_is_kept_after_a_schedule_has_come_to_its_end(level):
    """The rate is 0: keeping it trains nothing, and ten times as much is 0, too."""
    t = np.arange(200.0)
    ended, rates = level + np.exp(-t / 80), 0.1 * (1.0 - (t + 1.0) / 200)
    for fixed in (False, True):
        found = fo.diagnose(ended, lr=rates, fixed_batch=fixed)
        assert found.verdict == "healthy" and "schedule has come to its end" in found.remedy
        assert "keep the learning rate" in fo.diagnose(ended[:150], lr=rates[:150], fixed_batch=fixed).remedy
        slow = fo.diagnose(2.3 - 1e-5 * t, lr=rates, fixed_batch=fixed).remedy
        assert "all of its schedule" in slow and "try 0" not in slow


def test_an_accuracy_has_not_diverged():
    t = np.arange(300.0)
    noise = 0.01 * np.random.default_rng(0).standard_normal(300)
    for steps in (300, 30):
        found = fo.diagnose((0.95 - 0.85 * np.exp(-t / 60) + noise)[:: 300 // steps])
        assert (found.verdict, found.lr_factor) == ("unclear", 1.0) and "accuracy" in found.remedy
    assert fo.diagnose(np.minimum(0.01 * np.exp(t / 65), 1.0)).verdict == "diverged"  # faster and faster


@pytest.mark.parametrize("constant", [0.0, 100.0, 1e4])
def test_a_constant_in_the_loss_does_not_make_it_flat(constant):
    """It was told to lower the rate, or to stop, in the middle of its fall."""
    t = np.arange(400.0)
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 400)
    falling, done = constant + 5.0 * np.exp(-t / 300) + noise, constant + 5.0 * np.exp(-t / 15) + noise
    assert [fo.diagnose(losses).verdict for losses in (falling, done)] == ["healthy", "plateau"]


def test_a_game_between_networks_is_unclear():
    """The loss of a generator rises and wanders, and that is no divergence."""
    t = np.arange(2000)
    for seed in range(10):
        noise = 0.2 * np.random.default_rng(seed).standard_normal(2000)
        for period in (60, 150):
            found = fo.diagnose(np.exp(np.where(t < 200, -0.35, 0.9 + 0.4 * np.sin(t / period)) + noise))
            assert (found.verdict, found.lr_factor) == ("unclear", 1.0), found
        if seed < 4:  # a short game
            found = fo.diagnose(np.exp(np.where(t < 40, -0.35, 0.9 + 0.6 * np.sin(t / 60)) + noise)[:400])
            assert (found.verdict, found.lr_factor) == ("unclear", 1.0), found
        level = fo.diagnose(np.exp(np.where(t < 200, -0.35, 1.2) + noise))  # it has jumped up, and stays there
        assert (level.verdict, level.lr_factor) == ("diverged", 0.1), level


def test_what_wanders_is_not_too_slow():
    for seed in range(60):
        rng = np.random.default_rng(seed)
        walk = np.exp(0.5 * rng.standard_normal(400).cumsum() / 20 + 0.05 * rng.standard_normal(400))
        assert fo.diagnose(walk).verdict != "too slow", seed


def test_words_are_true():
    t = np.arange(100.0)
    assert "dropped from 12.9 to -1.649" in fo.diagnose(np.linspace(13.0, -2.0, 300)).remedy  # no share of its start
    assert "dropped to 0.0003 of its start" in fo.diagnose(3e3 * np.exp(-t / 12), fixed_batch=True).remedy  # no 100.0%
    assert "risen by 2" in fo.diagnose(1 + 0.3 * t / 100).remedy
    assert "straight" not in fo.diagnose(3 - 1.2 / (1 + np.exp(-(t - 45) / 8))).remedy  # an S
    assert "a larger one is faster" in fo.diagnose(2.43 - 0.4 * (1 - np.exp(-t / 60)), fixed_batch=False).remedy


def test_a_known_start_tells_a_late_log_from_a_slow_run():
    t = np.arange(200.0)
    late = 3.3 - 0.0005 * t
    assert fo.diagnose(late).lr_factor == 10.0  # by itself it looks like that
    assert fo.diagnose(late, start=10.8).lr_factor == 1.0
    assert fo.diagnose(late, start=10.8).evidence["start"] == 10.8


@pytest.mark.parametrize(("level", "start", "words"), [(-1.0, 0.0, "from 0 to -1"), (0.0, 1.0, "to 0")])
def test_a_log_that_begins_when_all_is_gained_is_flat(level, start, words):
    """The start is on the scale of the losses, also where these alone have none: all are equal, or zero."""
    found = fo.diagnose([level] * 50, start=start)
    assert found.reason == "flat"
    assert found.remedy.startswith(f"The loss has dropped {words} and is flat now")
    assert all(map(math.isfinite, found.evidence.values()))


def test_short_curves_say_so():
    for n in range(MINIMUM):
        found = fo.diagnose(np.ones(n), lr=1.0)
        assert (found.verdict, found.lr_factor, found.evidence) == ("too short", 1.0, {"losses": n})
    for seed in range(100):
        rng = np.random.default_rng(seed)
        losses = 2.3 * np.exp(-np.arange(20) / 200) * np.exp(0.1 * rng.standard_normal(20))
        found = fo.diagnose(losses)
        assert found.lr_factor == 1.0 and found.verdict in ("too short", "healthy", "unclear"), found


def test_no_values_raise_and_no_text_says_nan():
    """Advice beside training never ends it: zeros, subnormals, the largest numbers, mixed signs, constants."""
    assert [text for text in map(ADVICE.misread, [*range(2000), 71330, 75516]) if text] == []
    zero_first = fo.diagnose([0.0] * 3 + [100.0] * 300, lr=0.1)
    assert (zero_first.verdict, zero_first.lr_factor) == ("diverged", 0.1)


def test_a_line_that_bends_is_no_straight_line():
    t, noise = np.linspace(0.0, 1.0, 95), 0.002 * np.random.default_rng(0).standard_normal(95)
    bent = fo.diagnose(10.9 * np.exp(-0.42 * t + 0.05 * t**2 + noise))  # as language models fall at the beginning
    assert (bent.verdict, bent.lr_factor) == ("healthy", 1.0)
    straight = fo.diagnose(10.9 * (1.0 - 0.33 * t) * np.exp(noise))
    assert (straight.verdict, straight.lr_factor) == ("too slow", 2.0)


def test_a_loss_of_both_signs_that_comes_to_zero_has_not_diverged():
    for few in ([-0.0289, 0, 0, 0, 0.01, 0, 0, -0.0072, 0, 0], [-0.11, 0.01, 0.03, -0.14, -0.16, 0, -0.07, *[0] * 43]):
        assert fo.diagnose(few).lr_factor == 1.0
    assert fo.diagnose(-np.array(few)).lr_factor == 1.0
    lost = fo.diagnose(np.append(-np.linspace(1, 3, 30), np.exp(np.linspace(0, 9, 30))))
    assert lost.lr_factor < 1.0


def test_a_jump_that_is_made_good_for_the_most_part_is_not_certain_to_be_one_of_the_rate():
    fall = 0.038 * np.exp(-0.55 * np.linspace(0.0, 1.0, 29) ** 0.7)
    for last, factor in ((0.0224, 1.0), (0.036, 0.1)):
        rest = last + (fall - fall[-1]) / (fall[0] - fall[-1]) * (0.038 - last)
        found = fo.diagnose(np.append(0.0159, rest))
        assert found.lr_factor == factor, found
