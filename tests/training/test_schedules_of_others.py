"""`fit(schedules=...)`: hyperparameters other than the rate follow schedules, also across resuming."""

from __future__ import annotations

import numpy as np
import pytest

import fastoptim as fo
from fastoptim import schedules
from fastoptim.checkpoint import CheckpointError
from tests.support.cases import same_bits

DATA = np.arange(12.0)
DECAY = schedules.cosine(0.2, 9)


def betas(step):
    return (0.5 + 0.04 * step, 0.99)


def loss_and_grad(params, batch):
    grads = {name: batch[0] + p for name, p in params.items()}
    return float(sum(np.sum(p) for p in params.values())), grads


def model(**options):
    params = {"w": np.linspace(-1.0, 1.0, 5), "b": np.ones(2)}
    groups = fo.groups(params, {"b": {"weight_decay": 0.3}})
    return params, fo.AdamW(groups, lr=0.1, backend="numpy", **options)


def run(params, optimizer, steps=9, given=None, **options):
    given = {"weight_decay": [DECAY, None], "betas": betas} if given is None else given
    batches = {"batch_size": 4, "shuffle": False, "diagnose": False}
    return fo.fit(loss_and_grad, params, DATA, optimizer, schedules=given, steps=steps, **batches, **options)


def test_every_step_has_the_values_of_its_number():
    params, optimizer = model()
    run(params, optimizer)
    wanted, own = model()
    for step in range(9):
        own.betas = betas(step)
        own.param_groups[0]["weight_decay"] = DECAY(step)
        own.step(loss_and_grad(wanted, DATA[step % 3 * 4 : step % 3 * 4 + 4])[1])
    assert all(same_bits(params[name], wanted[name]) for name in params)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [DECAY(8), 0.3]


def test_a_resumed_run_has_the_same_bits_and_schedules(tmp_path):
    whole, optimizer = model()
    run(whole, optimizer)
    path = tmp_path / "run.ckpt"
    run(*model(), steps=4, checkpoint=path)
    with pytest.raises(CheckpointError, match=r"schedules is none here, betas: .*weight_decay: .*cosine.* there"):
        run(*model(), given={}, resume=path)
    resumed, optimizer = model()
    run(resumed, optimizer, resume=path)
    assert all(same_bits(resumed[name], whole[name]) for name in whole)
    params, optimizer = model()
    run(params, optimizer, given={}, resume=path, override="schedules")
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.3]
    assert optimizer.betas == (0.9, 0.999)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (DECAY, TypeError, "a mapping such as"),
        ({"lr": DECAY}, ValueError, "is given as lr"),
        ({"momentum": DECAY}, ValueError, "no hyperparameter 'momentum'; it has .*'weight_decay'"),
        ({"weight_decay": 0.1}, TypeError, "weight_decay must be a schedule.*got 0.1"),
        ({"weight_decay": [DECAY] * 3}, ValueError, r"expected one or 2 \(one per group\), got 3"),
        ({"weight_decay": lambda step: -1.0}, ValueError, "weight_decay must be"),
        ({"weight_decay": [lambda step: -1.0, None]}, ValueError, "weight_decay must be"),
    ],
)
def test_bad_schedules_change_nothing(given, error, message):
    params, optimizer = model()
    before = {name: p.copy() for name, p in params.items()}
    with pytest.raises(error, match=message):
        run(params, optimizer, given=given)
    assert all(same_bits(params[name], before[name]) for name in params)
