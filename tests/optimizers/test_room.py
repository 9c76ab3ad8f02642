"""What rules to come need: four states, sixteen coefficients, first values of states, numbers beside the step count."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from fastoptim.optimizers.family import Family
from fastoptim.optimizers.hyperparameters import Hyper, Rate, UpdateSpec
from fastoptim.rules import lowering
from fastoptim.rules.table import RULES, Kernel, row
from tests.support.cases import same_bits


def wide(g, p, w, x, y, z, k0, k1, k2, k3, k4, k5, k6, k7, k8, k9, k10, k11, k12, k13, k14, k15):
    w = k0 * w + k1 * g
    x = k2 * x + k3 * p
    y = (k4 * y + k5 * w) + k6 * g
    z = (k7 * z + k8 * y) + (k9 * x + k10 * g)
    u = (k11 * w + k12 * x) + ((k13 * y + k14 * z) + k15 * g)
    return u, w, x, y, z


def halved(g, p, c):
    p = c * (p + g)
    return (p,)


class Wide(Family):
    _rules = ("wide",)

    lr: Hyper[float] = Rate(0.1)
    start: Hyper[float] = Hyper(3.0)

    @staticmethod
    def _update(o):
        return UpdateSpec(
            Kernel(RULES["wide"], "none"),
            (1.0, 0.0),
            lambda t, product: (*(0.1 * (i + 1) for i in range(14)), product, o.lr / t),
            advance=lambda t, product: (product * (1.0 - 0.5 / t),),
        )


@pytest.fixture(autouse=True)
def rules(monkeypatch):
    first = {"x": "parameter", "y": 0.5, "z": "start"}
    monkeypatch.setitem(RULES, "wide", row(wide, "w", "x", "y", "z", initial=first, scalars={"product": 1.0}))
    monkeypatch.setitem(RULES, "halved", row(halved, gives="parameter"))


def by_hand(p, grads, lr, start):
    w, x, y, z, product = 0.0, p, 0.5, start, 1.0
    for t, g in enumerate(grads, 1):
        k = [0.1 * (i + 1) for i in range(14)] + [product, lr / t]
        w = k[0] * w + k[1] * g
        x = k[2] * x + k[3] * p
        y = (k[4] * y + k[5] * w) + k[6] * g
        z = (k[7] * z + k[8] * y) + (k[9] * x + k[10] * g)
        p = p - ((k[11] * w + k[12] * x) + ((k[13] * y + k[14] * z) + k[15] * g))
        product *= 1.0 - 0.5 / t
    return p, product


def test_states_begin_as_the_rule_says_and_numbers_go_along():
    p = np.array([2.0])
    opt = Wide(p, backend="numpy")
    for g in (1.0, -2.0, 0.25):
        opt.step(np.array([g]))
    wanted, product = by_hand(2.0, (1.0, -2.0, 0.25), 0.1, 3.0)
    assert p[0] == wanted
    assert opt.state["0"]["product"] == product and opt.state_dict()["state"]["0"]["product"] == product


def test_numbers_are_saved_restored_and_kept_by_parameter(tmp_path):
    def make():
        return {"a": np.array([2.0]), "b": np.array([1.0])}

    def grads(t):
        return {"a": np.array([0.5 * t]), "b": None if t == 2 else np.array([-1.0])}

    params = make()
    opt = Wide(params, backend="numpy")
    for t in (1, 2, 3):
        opt.step(grads(t))
    assert opt.state["a"]["step"] == 3 and opt.state["b"]["step"] == 2
    assert opt.state["a"]["product"] == 0.5 * 0.75 * (1 - 0.5 / 3) and opt.state["b"]["product"] == 0.5 * 0.75
    assert params["b"][0] == by_hand(1.0, (-1.0, -1.0), 0.1, 3.0)[0]
    bad = {"a": np.array([np.nan]), "b": np.array([1.0])}
    assert not opt.step(bad, skip_nonfinite=True).applied
    assert opt.state["b"]["product"] == 0.5 * 0.75
    opt.save(tmp_path / "a.ckpt")
    again = make()
    other = Wide(again, backend="numpy")
    other.load(tmp_path / "a.ckpt")
    twin = copy.deepcopy((params, opt))
    for pair in ((params, opt), (again, other), twin):
        pair[1].lr = 0.2  # takes the numbers along
        pair[1].step(grads(4))
    assert same_bits(params["a"], again["a"]) and same_bits(params["b"], twin[0]["b"])
    wrong = opt.state_dict()
    wrong["state"]["a"]["product"] = "three"
    with pytest.raises(TypeError, match="state of parameter 'a': product must be a real number"):
        opt.load_state_dict(wrong)


def test_a_rule_may_give_the_parameter_itself():
    class Halved(Family):
        _rules = ("halved",)
        _update = staticmethod(lambda o: UpdateSpec(Kernel(RULES["halved"], "coupled"), (1.0, 2.0), (o.lr,)))
        lr: Hyper[float] = Rate(0.1)

    p = np.array([4.0])
    Halved(p, 0.5, backend="numpy").step(np.array([1.0]))
    assert p[0] == 0.5 * (4.0 + (1.0 + 2.0 * 4.0))
    names = {"np": np}
    for text in (*lowering.rule_sources(), lowering.element(Kernel(RULES["halved"], "coupled"))):
        exec(text, names)
    assert names["halved_coupled"](4.0, 1.0, 1.0, 2.0, 0.5) == (6.5,)


def test_there_is_no_room_for_more():
    def five(g, p, a, b, c, d, e):
        return g, a, b, c, d, e

    with pytest.raises(ValueError, match="at most 4 states and 16 coefficients"):
        row(five, "a", "b", "c", "d", "e")
