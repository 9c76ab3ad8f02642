"""`fo.rule`: a rule that a user writes has the bits of its function on every backend; what is not exact is refused."""

from __future__ import annotations

import copy
import importlib.util
import linecache
import math
import pickle
import sys

import numpy as np
import pytest
from numpy import sqrt, where

import fastoptim as fo
from fastoptim.backends import available
from fastoptim.rules import language
from fastoptim.rules.table import Kernel
from tests.support.cases import raw_bits, same_bits

DTYPES = (np.float32, np.float64)
BACKENDS = [name for name in ("numpy", "numba") if available(name) is None]


# --- Three rules that the library does not have


def qhm(g, p, m, a, b, now, later):
    """Quasi-hyperbolic momentum (Ma and Yarats, 2019)."""
    m = a * m + b * g
    return now * g + later * m, m


def qhm_coefficients(lr=1e-2, beta=0.999, nu=0.7):
    return {"a": beta, "b": 1 - beta, "now": lr * (1 - nu), "later": lr * nu}


def aggmo(g, p, slow, fast, a, b, c):
    slow = a * slow + g
    fast = b * fast + g
    u = c * (slow + fast)
    return u, slow, fast


def aggmo_coefficients(lr=1e-2, betas=(0.9, 0.99)):
    return betas[0], betas[1], lr / len(betas)


@fo.rule(
    coefficients=lambda t, lr=1e-3, beta=0.965: (beta, 1 - beta, lr * min(1, t / 3), 0), states="m", decay="decoupled"
)
def Tiger(g, p, m, a, b, size, zero):
    m = a * m + b * g
    sign = where(m > zero, size, where(m < zero, -size, m))
    return sign, m


QHM = fo.rule(qhm, states="momentum_buffer", coefficients=qhm_coefficients, decay="coupled", name="QHM")
AggMo = fo.rule(aggmo, states=("slow", "fast"), coefficients=aggmo_coefficients)


def by_hand(kind, p, states, g, t, T):
    """One step as NumPy users write it, with coefficients rounded once."""
    if kind is QHM:
        a, b, now, later, wd = map(T, (0.95, 1 - 0.95, 0.1 * (1 - 0.6), 0.1 * 0.6, 0.03))
        g = g + wd * p
        m = a * states[0] + b * g
        return p - (now * g + later * m), [m]
    if kind is AggMo:
        slow, fast = T(0.8) * states[0] + g, T(0.95) * states[1] + g
        return p - T(0.1 / 2) * (slow + fast), [slow, fast]
    m = T(0.9) * states[0] + T(1 - 0.9) * g
    size = T(0.1 * min(1, t / 3))
    sign = np.where(m > 0, size, np.where(m < 0, -size, m))
    return p - (T(0.1 * 0.03) * p + sign), [m]


HYPER = {
    QHM: {"lr": 0.1, "beta": 0.95, "nu": 0.6, "weight_decay": 0.03},
    AggMo: {"lr": 0.1, "betas": (0.8, 0.95)},
    Tiger: {"lr": 0.1, "beta": 0.9, "weight_decay": 0.03},
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", HYPER, ids=lambda kind: kind.__name__)
def test_steps_have_the_bits_of_the_rule(kind, backend):
    rng = np.random.default_rng(3)
    start = {f"{T.__name__}_{n}": raw_bits(rng, n, T) for T in DTYPES for n in (1, 5, 67, 4099)}
    start["matrix"] = rng.standard_normal((40, 7))[:, ::2]
    params = {name: x.copy() for name, x in start.items()}
    opt = kind(params, backend=backend, **HYPER[kind])
    assert opt.backend == backend
    wanted, states, counts = dict(start), {}, dict.fromkeys(start, 0)
    with np.errstate(all="ignore"):
        for step in range(10):
            grads = {name: raw_bits(rng, x.size, x.dtype.type).reshape(x.shape) for name, x in start.items()}
            grads["matrix"] = rng.standard_normal(start["matrix"].shape)
            if step == 4:
                grads["float32_5"] = None
            opt.step(grads, grad_scale=0.5)
            for name, g in grads.items():
                if g is not None:
                    counts[name] += 1
                    T = wanted[name].dtype.type
                    own = states.setdefault(name, [np.zeros_like(g) for _ in opt._rules[0].states])
                    wanted[name], states[name] = by_hand(kind, wanted[name], own, T(0.5) * g, counts[name], T)
    for name, x in params.items():
        assert same_bits(x, wanted[name]), name
        entry = opt.state[name]
        assert entry["step"] == counts[name]
        for state, value in zip(opt._rules[0].states, states[name], strict=True):
            assert same_bits(np.asarray(entry[state]), value), (name, state)


@pytest.mark.parametrize("kind", HYPER, ids=lambda kind: kind.__name__)
def test_clipping_skipping_groups_saving_and_copies(kind, tmp_path):
    def make():
        w, b = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4), np.ones(4)
        return w, b, kind([{"params": {"w": w}}, {"params": [b], "lr": 0.5}], backend=BACKENDS[-1], **HYPER[kind])

    grads = [{"w": np.full((3, 4), 3.0, np.float32)}, [np.full(4, -2.0)]]
    w, b, opt = make()
    bad = [{"w": np.full((3, 4), np.nan, np.float32)}, [np.ones(4)]]
    before = w.copy(), b.copy()
    assert not opt.step(bad, skip_nonfinite=True).applied
    assert same_bits(w, before[0]) and same_bits(b, before[1])
    norm = math.sqrt(12 * 9 + 4 * 4)
    assert opt.step(grads, max_norm=1.0).grad_norm == pytest.approx(norm, rel=1e-15)
    assert [group["lr"] for group in opt.param_groups] == [0.1, 0.5]
    opt.save(tmp_path / "own.ckpt")
    w2, b2, other = make()
    other.load(tmp_path / "own.ckpt")
    copied = copy.deepcopy((w, b, opt))
    pickled = pickle.loads(pickle.dumps((w, b, opt)))
    assert type(pickled[2]) is kind
    for x, y, optimizer in ((w, b, opt), (w2, b2, other), copied, pickled):
        optimizer.step(grads)
        assert same_bits(x, w) and same_bits(y, b) and optimizer.state_dict()["optimizer"] == kind.__name__
    assert not same_bits(w, before[0])
    with pytest.raises(ValueError, match="state dict is of"):
        fo.SGD([{"params": {"w": w}}, {"params": [b]}]).load_state_dict(opt.state_dict())


def test_functional_use_and_fit():
    p, m = np.ones(3), np.zeros(3)
    q = np.ones(3)
    opt = QHM(q, lr=0.2, maximize=True)
    for t in (1, 2):
        QHM.update(p, np.full(3, 0.5), m, step=t, lr=0.2, maximize=True)
        opt.step(np.full(3, 0.5))
    assert same_bits(p, q) and same_bits(m, opt.state["0"]["momentum_buffer"])
    with pytest.raises(TypeError, match="expected 1 states"):
        QHM.update(p, p.copy(), step=1)
    x = np.linspace(-1, 1, 60)

    def loss_and_grad(params, batch):
        error = params["a"] * batch[0] - batch[1]
        return float(np.mean(error**2)), {"a": np.array([np.mean(2 * error * batch[0])])}

    params = {"a": np.zeros(1)}
    tiger = Tiger(params)
    schedule = fo.schedules.cosine(0.1, 120)
    fo.fit(loss_and_grad, params, (x, 3 * x), tiger, lr=schedule, steps=120, batch_size=20, rng=0, diagnose=False)
    assert abs(params["a"][0] - 3) < 0.1


def test_backends():
    with pytest.raises(ValueError, match=r"backend='c' has no kernels for a rule of your own.*'auto'"):
        QHM(np.ones(2), backend="c")
    assert QHM(np.ones(2)).backend == BACKENDS[-1]
    assert f"backend='{BACKENDS[-1]}'" in repr(QHM(np.ones(2)))


def test_without_numba_a_rule_says_that_it_is_slower(monkeypatch):
    from fastoptim.optimizers import own

    monkeypatch.setattr(own, "available", lambda name: "backend 'numba' needs Numba: pip install numba")
    with pytest.warns(RuntimeWarning, match="pip install numba.*runs on NumPy"):
        opt = QHM(np.ones(2))
    assert opt.backend == "numpy"


# --- The language

clashing = ("s", "k", "row", "scale", "count", "first", "offset", "i", "result", "decay", "table", "element")


def clash(g, p, s, k, row, scale, count, first, offset, i, result, decay):
    table = s * k + row * g
    element = scale * table + count * p
    root = sqrt(where(element > offset, element, -element))
    return root * i - (result + decay), table, first * element


def handed_on(gradient, parameter, x, y, a):
    return a * gradient, y, parameter


def given(g, p, a):
    return p - a * g


# --- Three more, as somebody writes them who has read the docs page alone: paper on one side, rule on the other


def adabound(g, p, m, v, b1, c1, b2, c2, rate, eps, low, high):
    """AdaBound (Luo et al., 2019): Adam whose rates are kept between bounds that close in on one."""
    m = b1 * m + c1 * g
    v = b2 * v + c2 * (g * g)
    each = rate / (sqrt(v) + eps)
    each = where(each < low, low, each)
    each = where(each > high, high, each)
    return each * m, m, v


def adabound_coefficients(t, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, final_lr=0.1, gamma=1e-3):
    (b1, b2), rate = betas, lr * math.sqrt(1 - betas[1] ** t) / (1 - betas[0] ** t)
    low, high = final_lr * (1 - 1 / (gamma * t + 1)), final_lr * (1 + 1 / (gamma * t))
    return {"b1": b1, "c1": 1 - b1, "b2": b2, "c2": 1 - b2, "rate": rate, "eps": eps, "low": low, "high": high}


def qhadam(g, p, m, v, b1, c1, b2, c2, m_share, g_share, v_share, g2_share, eps):
    """QHAdam (Ma and Yarats, 2019)."""
    m = b1 * m + c1 * g
    v = b2 * v + c2 * (g * g)
    return (g_share * g + m_share * m) / (sqrt(g2_share * (g * g) + v_share * v) + eps), m, v


def qhadam_coefficients(t, lr=1e-3, betas=(0.995, 0.999), nus=(0.7, 1.0), eps=1e-8):
    (b1, b2), (nu1, nu2) = betas, nus
    shares = lr * nu1 / (1 - b1**t), lr * (1 - nu1), nu2 / (1 - b2**t), 1 - nu2
    return (b1, 1 - b1, b2, 1 - b2, *shares, eps)


def cautious(g, p, m, a, lr, zero):
    """Momentum that moves no element against its gradient (Liang et al., 2024, without the rescaling)."""
    m = a * m + g
    return where(m * g > zero, lr * m, where(m * g <= zero, zero, m)), m


def cautious_coefficients(lr=1e-2, beta=0.9):
    return {"a": beta, "lr": lr, "zero": 0.0}


AdaBound = fo.rule(
    adabound, states=("m", "v"), squares="v", coefficients=adabound_coefficients, decay="decoupled", name="AdaBound"
)
QHAdam = fo.rule(qhadam, states=("m", "v"), squares="v", coefficients=qhadam_coefficients, name="QHAdam")
Cautious = fo.rule(cautious, states="m", coefficients=cautious_coefficients, name="Cautious")


def paper(kind, p, g, past, t):
    """A step as the papers have it, in float64."""
    if kind is Cautious:
        past["m"] = 0.9 * past["m"] + g
        return p - 0.05 * past["m"] * (past["m"] * g > 0)
    b1, b2 = (0.9, 0.999) if kind is AdaBound else (0.995, 0.999)
    past["m"] = b1 * past["m"] + (1 - b1) * g
    past["v"] = b2 * past["v"] + (1 - b2) * g**2
    if kind is AdaBound:
        rate = 0.05 * np.sqrt(1 - b2**t) / (1 - b1**t) / (np.sqrt(past["v"]) + 1e-8)
        rate = np.clip(rate, 0.1 * (1 - 1 / (1e-3 * t + 1)), 0.1 * (1 + 1 / (1e-3 * t)))
        return p - 0.05 * 0.2 * p - rate * past["m"]
    m, v = past["m"] / (1 - b1**t), past["v"] / (1 - b2**t)
    return p - 0.05 * (0.3 * g + 0.7 * m) / (np.sqrt(0.2 * g**2 + 0.8 * v) + 1e-8)


PAPERS = {AdaBound: {"weight_decay": 0.2}, QHAdam: {"nus": (0.7, 0.8)}, Cautious: {}}


@pytest.mark.parametrize("kind", PAPERS, ids=lambda kind: kind.__name__)
def test_rules_from_the_docs_alone_are_those_of_the_papers(kind):
    rng = np.random.default_rng(8)
    start = rng.standard_normal(300)
    past = {"m": np.zeros(300), "v": np.zeros(300)}
    copies = {backend: start.copy() for backend in BACKENDS}
    opts = {backend: kind(p, lr=0.05, backend=backend, **PAPERS[kind]) for backend, p in copies.items()}
    wanted = start
    for t in range(1, 31):
        g = rng.standard_normal(300)
        wanted = paper(kind, wanted, g, past, t)
        for opt in opts.values():
            opt.step(g)
    for p in copies.values():
        assert np.abs(p - wanted).max() < 1e-12 and same_bits(p, copies["numpy"])
    for opt, p in zip(opts.values(), copies.values(), strict=True):  # NaN comes out
        opt.step(np.full(300, np.nan))
        assert np.isnan(p).all()


@pytest.mark.skipif(available("numba") is not None, reason="LOUD: no Numba, so lowered rules were not compiled")
def test_names_results_and_first_values():
    rng = np.random.default_rng(5)
    Clash = fo.rule(clash, states=("s", "k"), coefficients=lambda lr=0.3: (lr, 0.2, 0.7, 0.9, 0.0, 0.4, 0.1, 0.6))
    Handed = fo.rule(
        handed_on, states=("x", "y"), coefficients=lambda lr=0.1: [lr], initial={"x": "lr", "y": "parameter"}
    )
    Given = fo.rule(given, gives="parameter", coefficients=lambda lr=0.1: {"a": lr}, decay="coupled")
    for kind in (Clash, Handed, Given):
        for T in DTYPES:
            p = rng.standard_normal(1001).astype(T)
            q, grads = p.copy(), [rng.standard_normal(1001).astype(T) for _ in range(3)]
            one, two = kind(p, backend="numpy"), kind(q, backend="numba")
            for g in grads:
                one.step(g)
                two.step(g)
            assert same_bits(p, q)
            for name in one._rules[0].states:
                assert same_bits(one.state["0"][name], two.state["0"][name])
    p = np.array([2.0, 3.0])
    opt = Handed(p, lr=0.5, backend="numpy")
    opt.step(np.ones(2))
    assert opt.state["0"]["x"].tolist() == [2.0, 3.0] and opt.state["0"]["y"].tolist() == [2.0, 3.0]
    opt.step(np.ones(2))
    assert opt.state["0"]["y"].tolist() == [1.5, 2.5] and p.tolist() == [1.0, 2.0]
    p = np.array([2.0])
    Given(p, weight_decay=1.0).step(np.array([3.0]))
    assert p[0] == 2.0 - 0.1 * (3.0 + 2.0)


beta = 0.9

REFUSED = {
    "u = g ** c": r"line \d+: g \*\* c may not stand in a rule: use products",
    "u = np.exp(g)": r"np.exp\(g\): np.exp may not stand in a rule: use no function .* coefficients",
    "u = abs(g)": r"abs may not stand in a rule: use where\(x < zero, -x, x\)",
    "u = np.maximum(g, p)": r"use where\(x < low, low, x\), which hands on a NaN",
    "u = np.clip(g, p, c)": r"np.clip may not stand in a rule: use x = where\(x < low, low, x\), then where",
    "u = g / np.linalg.norm(g)": "np.linalg.norm may not stand in a rule: use no sums or norms",
    "u = np.cbrt(g)": r"line 9: np.cbrt\(g\): np.cbrt may not stand in a rule: use no function that",
    "u = g[0]": "a rule sees one element, which has no parts",
    "u = np.where((g > c) & (p > c), p, c)": "must be one comparison: put one where into another",
    "u = math.sqrt(g)": "math.sqrt may not stand in a rule: write out .* sqrt and where from NumPy",
    "u = halved(g)": r"line 9: halved\(g\): halved may not stand in a rule: write out here what it computes, with",
    "u = mean(g, c)": r"mean\(g, c\): mean may not stand in a rule: write out here what it computes, with",
    "def twice(x):\n        return x + x\n    u = twice(g)": r"def twice\(x\): .*: write out what it computes",
    "twice = lambda x: x + x\n    u = twice(g)": "lambda x: x .* may not stand in a rule: write out what it",
    "u = 0.5 * g": "0.5 is a constant: make it a coefficient",
    "u = beta * g": "beta is no argument and was not assigned above: make it a coefficient",
    "u = g if g > c else p": r"g if g > c else p may not stand in a rule: use where",
    "u = (g > c) * p": "a comparison may only be the condition of where",
    "u = np.where(g, p, c)": "the condition of where must be one comparison",
    "u = np.where(p < g < c, p, c)": "a comparison is one of > >= < <=, between two values: put one",
    "u = np.where(p == g, p, c)": "a comparison is one of > >= < <=",
    "u = np.sqrt(g, out=p)": "sqrt takes 1 argument and no keywords",
    "u = g @ p": "g @ p may not stand in a rule: use no sums",
    "u = g.sum()": "g.sum may not stand in a rule: use no sums or norms",
    "u = ~g": "~g may not stand in a rule",
    "sqrt = p\n    u = sqrt(g)": r"sqrt\(g\): sqrt \(here it is a variable of the rule\) may not stand in a rule",
    "np = p\n    u = np.where(g > c, g, p)": r"np.where \(here it is a variable of the rule\) may not stand in a rule",
    "u = p\n    u += g": r"u \+= g: not allowed in a rule: write it out",
    "u, v = g, p": "assign one name at a time",
    "if g > c:\n        u = g": r"if g > c: not allowed in a rule: choose between two values with where",
    "return g, p\n    u = g": "return.* not allowed in a rule",
    "u: float = g": "u: float = g: not allowed in a rule",
}

HELPERS = "halved = lambda x: x / 2\n\n\ndef mean(x, c):\n    return c * x\n"


@pytest.mark.parametrize("body", REFUSED)
def test_what_is_not_exact_is_refused_with_its_line(body, tmp_path):
    text = "import math\nimport numpy as np\n\nbeta = 0.9\n\n\ndef own(g, p, m, c):\n    m = c * m\n    "
    module = load(tmp_path / "odd.py", f"{text}{body}\n    return u, m\n\n\n{HELPERS}")
    with pytest.raises(SyntaxError, match=REFUSED[body]) as caught:
        fo.rule(module.own, states="m", coefficients=lambda lr: (lr,))
    assert caught.value.filename == str(tmp_path / "odd.py")
    lines = (tmp_path / "odd.py").read_text().splitlines()
    assert caught.value.text == lines[caught.value.lineno - 1] and caught.value.lineno >= 9
    assert "update rule own, line " in str(caught.value)


def load(path, text):
    path.write_text(text)
    linecache.checkcache(str(path))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_signatures_and_results_are_checked():
    def short(g):
        return g

    def defaults(g, p, m, c=1):
        return c * g, m

    def one(g, p, m, c):
        return c * g

    def undeclared(g, p, m, c):
        return c * g, m

    for function, message in ((short, r"expected the arguments \(g, p, m"), (defaults, "without defaults")):
        with pytest.raises(SyntaxError, match=message):
            fo.rule(function, states="m", coefficients=lambda lr: (lr,))

    def swapped(p, g, m, c):
        return c * g, m

    def turned(g, p, n, m, c):
        return c * g, n, m

    for function, states, name in ((swapped, "m", "p"), (turned, ("m", "n"), "n"), (undeclared, "c", "c")):
        with pytest.raises(SyntaxError, match=f"argument {name!r} is number .*, but the order is"):
            fo.rule(function, states=states, coefficients=lambda lr: (lr,))
    with pytest.raises(SyntaxError, match=r"expected to return the step, the new m; got c \* g"):
        fo.rule(one, states="m", coefficients=lambda lr: (lr,))
    with pytest.raises(SyntaxError, match=r"expected to return the step; got \(c \* g, m\): .*states=\['m'\]"):
        fo.rule(undeclared, coefficients=lambda lr: (lr,))

    async def later(g, p, m, c):
        return c * g, m

    def five(g, p, q, r, s, t, u, c):
        return c * g, q, r, s, t, u

    with pytest.raises(ValueError, match="at most 4 states"):
        fo.rule(five, states=list("qrstu"), coefficients=lambda lr: (lr,))
    for function in (lambda g, p, c: (c * g,), later, 3, np.sqrt):
        with pytest.raises(TypeError, match="written with def"):
            fo.rule(function, coefficients=lambda lr: (lr,))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"coefficients": lambda rate=0.1: (rate,)}, ValueError, "must take lr"),
        ({"coefficients": lambda lr, step=3: (lr,)}, ValueError, "cannot be called 'step'"),
        ({"coefficients": lambda lr, save=3: (lr,)}, ValueError, "cannot be called 'save'"),
        ({"coefficients": lambda lr, _own=3: (lr,)}, ValueError, "cannot be called '_own'"),
        ({"coefficients": lambda *lr: (lr,)}, TypeError, "names of their own"),
        ({"coefficients": 3}, TypeError, "must be a function"),
        ({"coefficients": lambda lr=0.1: (lr, 1)}, ValueError, r"must return \['c'\], got 2 numbers"),
        ({"coefficients": lambda lr=0.1: {"d": lr}}, ValueError, r"must return \['c'\], got \['d'\]"),
        ({"coefficients": lambda lr=0.1: {lr}}, TypeError, r"must return \['c'\], as a dict or tuple"),
        ({"coefficients": lambda lr=0.1: lr}, TypeError, r"must return \['c'\], as a dict or tuple"),
        ({"coefficients": lambda lr=0.1: (math.inf,)}, ValueError, "coefficient c must be finite"),
        ({"gives": "steps"}, ValueError, "gives must be one of"),
        ({"decay": "l2"}, ValueError, "decay must be one of"),
        ({"decay": "decoupled", "gives": "parameter"}, ValueError, "needs gives='step'"),
        ({"initial": {"n": 0}}, ValueError, "there is no state 'n'"),
        ({"initial": {"m": "rate"}}, ValueError, r"initial\['m'\] must be one of"),
        ({"states": ("m", "m")}, ValueError, "different names"),
        ({"states": "g"}, ValueError, "other than g, p, step, master"),
        ({"states": "master"}, ValueError, "other than g, p, step, master"),
        ({"states": ("m", "m_scale")}, ValueError, "a state with _scale behind it"),
        ({"states": None}, TypeError, "states must be a name or a tuple"),
        ({"initial": [("m", 0)]}, TypeError, "initial must be a mapping"),
        ({"name": 3}, TypeError, "name must be that of a class"),
        (
            {"initial": {"m": "pair"}, "coefficients": lambda lr=0.1, pair=(1, 2): (lr,)},
            ValueError,
            r"initial\['m'\] must be one of \['parameter', 'lr'\]",
        ),
        ({"states": "m, v"}, ValueError, "a tuple of different names"),
        ({"coefficients": lambda lr=0.0: (1 / lr,)}, ValueError, r"coefficients\(lr=0.0\): ZeroDivisionError"),
    ],
)
def test_options_are_checked(options, error, message):
    def own(g, p, m, c):
        return c * g, m

    good = {"states": "m", "coefficients": lambda lr=0.1: (lr,)}
    fo.rule(own, **good)
    with pytest.raises(error, match=message):
        fo.rule(own, **good | options)


def test_hyperparameters_are_checked_and_attributes():
    def own(g, p, c):
        return c * g

    def coefficients(t, lr, pair=(1, 2), on=True, kind="a", most=None):
        return (lr / (t - 3) if kind == "late" else lr * sum(pair),)

    Own = fo.rule(own, coefficients=coefficients)
    for bad, error, message in (
        ({"lr": "x"}, TypeError, "lr must be a real number"),
        ({"lr": -1.0}, ValueError, "lr must be >= 0"),
        ({"lr": 1, "pair": 3}, TypeError, "pair must be 2 numbers"),
        ({"lr": 1, "on": 1}, TypeError, "on must be True or False"),
        ({"lr": 1, "kind": 1}, TypeError, "kind must be a string"),
        ({"lr": 1, "most": "x"}, TypeError, "most must be a real number"),
        ({"lr": 1, "rate": 1}, TypeError, "has no 'rate': it has lr, pair"),
        ({}, TypeError, "needs a value for lr"),
    ):
        with pytest.raises(error, match=message):
            Own(np.ones(2), backend="numpy", **bad)
    p = np.ones(2)
    opt = Own(p, lr=1.0, backend="numpy")
    opt.pair = (3, 4)
    opt.step(np.ones(2))
    assert opt.pair == (3, 4) and p[0] == 1.0 - 7.0
    opt.kind = "late"
    opt.step(np.ones(2))
    before = p.copy()
    with pytest.raises(ValueError, match=r"t=3\): ZeroDivisionError"):  # in the user's function: nothing is written yet
        opt.step(np.ones(2))
    assert same_bits(p, before) and opt.state["0"]["step"] == 2


def test_decorators_are_not_passed_over(tmp_path):
    """What `functools.wraps` marks would otherwise count for its wrapper."""
    text = """
import functools
def doubled(function):
    @functools.wraps(function)
    def wrapper(g, p, c):
        return function(g, p, c) * c
    return wrapper
@doubled
def own(g, p, c):
    return c * g
"""
    with pytest.raises(SyntaxError, match=r"line 6: function\(g, p, c\): function may not stand in a rule"):
        fo.rule(load(tmp_path / "wrapped.py", text).own, coefficients=lambda lr: (lr,))


def test_a_rule_in_a_closure_or_a_class_has_its_source(tmp_path):
    text = """
import numpy as np
class Rules:
    def unassigned():
        def own(g, p, c):
            return later.sqrt(g)
        return own
        later = np
    def own(ĝ, p, c):
        '''A text that begins
further left.'''
        return c * ĝ
"""
    rules = load(tmp_path / "closed.py", text).Rules
    with pytest.raises(SyntaxError, match=r"later.sqrt may not stand in a rule"):
        fo.rule(rules.unassigned(), coefficients=lambda lr: (lr,))
    p = np.ones(2)
    fo.rule(rules.own, coefficients=lambda lr=0.5: (lr,))(p, backend="numpy").step(np.ones(2))
    assert p.tolist() == [0.5, 0.5]


def test_a_rule_without_source_or_with_another_is_refused(tmp_path):
    names: dict = {}
    exec("def own(g, p, c):\n    return c * g", names)
    with pytest.raises(ValueError, match="its source, from which kernels are made, cannot be found"):
        fo.rule(names["own"], coefficients=lambda lr: (lr,))
    module = load(tmp_path / "moved.py", "def own(g, p, c):\n    return c * g\n")
    (tmp_path / "moved.py").write_text("def own(g, p, c):\n    return c * (g + p)\n")
    linecache.checkcache()
    with pytest.raises(ValueError, match="has changed since it was loaded"):
        fo.rule(module.own, coefficients=lambda lr: (lr,))


def test_cells_of_a_notebook_have_source():
    text = "import numpy as np\ndef own(g, p, c):\n    return c * np.sqrt(g)\n"
    linecache.cache["<cell 7>"] = (len(text), None, text.splitlines(True), "<cell 7>")  # as IPython does
    names: dict = {"__name__": "__main__"}
    exec(compile(text, "<cell 7>", "exec"), names)
    p = np.ones(2)
    fo.rule(names["own"], coefficients=lambda lr=0.5: (lr,))(p, backend="numpy").step(np.full(2, 4.0))
    assert p.tolist() == [0.0, 0.0]


def test_defaults_that_are_arrays_are_what_they_were_when_the_rule_was_made():
    weights, flag = np.array([0.5, 0.25]), np.True_

    def numbers(lr=1.0, weights=weights, flag=flag):
        return (lr * weights[0] if flag else 0.0,)

    def own(g, p, c):
        return c * g

    rule, p = fo.rule(own, coefficients=numbers), np.ones(2)
    weights *= 0
    opt = rule(p, backend="numpy")
    opt.step(np.ones(2))
    assert opt.param_groups[0]["weights"] == (0.5, 0.25) and p.tolist() == [0.5, 0.5]


def test_classes_are_pickled_by_the_variable_that_holds_them(monkeypatch):
    module = sys.modules[__name__]
    monkeypatch.setattr(module, "SomeName", fo.rule(given, coefficients=lambda lr=0.1: (lr,)), raising=False)
    assert pickle.loads(pickle.dumps(module.SomeName)) is module.SomeName
    nowhere = fo.rule(given, coefficients=lambda lr=0.1: (lr,))
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pickle.dumps(nowhere(np.ones(2), backend="numpy"))
    assert type(copy.deepcopy(nowhere(np.ones(2), backend="numpy"))) is nowhere
    with pytest.raises(TypeError, match="a rule of your own"):
        pickle.dumps(Kernel(QHM._rules[0], "none"))


def test_the_library_speaks_the_same_language():
    from fastoptim.rules.table import RULES

    for rule in RULES.values():
        assert language.own_rule(rule.function, rule.states, rule.gives, {}).coefficients == rule.coefficients


def test_the_bound_of_gradients_may_be_given_at_once_and_decay_is_pointed_to():
    p, q = np.ones(2), np.ones(2)
    AggMo(p, max_norm=0.5, clip="value").step(np.array([3.0, 0.1]))
    AggMo(q).step(np.array([0.5, 0.1]))
    assert same_bits(p, q) and p[0] != 1
    with pytest.raises(TypeError, match=r"has no 'weight_decay'.*decay="):
        AggMo(p, weight_decay=0.1)


def test_errors_call_rule_and_coefficients_as_they_are_written():
    def steep(g, p, m, kept, rate):
        return rate * g, kept * m

    def numbers(t, lr=0.1, power=0.0):
        return {"kept": math.nan if t > 2 else 0.0, "rate": lr * 10.0 ** (power * (t - 1))}

    cls = fo.rule(steep, states="m", coefficients=numbers)
    p = np.ones(2, np.float32)
    for backend in BACKENDS:
        opt = cls(p, power=40.0, backend=backend)
        opt.step(p * 0)
        with pytest.raises(ValueError, match=r"give the rule 'steep' a coefficient rate = 1e\+39 in this step"):
            opt.step(p * 0)
    with pytest.raises(ValueError, match="coefficient kept of step 3 must be finite, got nan"):
        cls.update(p, p * 0, p * 0, step=3, backend="numpy")


def test_what_a_state_begins_with_is_a_number_in_its_type():
    def held(g, p, m, c):
        return c * g, m

    for value in (1e39, 1e-50):
        cls = fo.rule(held, states="m", coefficients=lambda lr=0.1: (lr,), initial={"m": value})
        with pytest.raises(ValueError, match=r"initial\['m'\] = 1e.* in float32"):
            cls(np.ones(2, np.float32), backend="numpy")
        (opt := cls(np.ones(2), backend="numpy")).step(np.ones(2))
        assert opt.state["0"]["m"][0] == value


def test_hyperparameters_are_named_and_not_as_the_entries_of_groups():
    with pytest.raises(TypeError, match=r"QHM takes hyperparameters by name, as in \(params, lr=0.1\)"):
        QHM(np.ones(2), 0.1)
    with pytest.raises(ValueError, match="cannot be called 'names'"):
        fo.rule(qhm, states="m", coefficients=lambda lr=0.1, names=1: (lr,) * 4)
