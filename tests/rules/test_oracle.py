"""The update rules against exact rational arithmetic with one rounding per operation.

The update equations and their coefficients are written down a second time in `equations`.
"""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product
from typing import NamedTuple

import numpy as np
import pytest

import fastoptim as fo
from fastoptim.rules.table import RULES, Kernel, kernels
from tests.rules.equations import EQUATIONS, EQUATIONS_OF_ARRAYS, OPTIONS, OPTIONS_OF_ARRAYS, adam
from tests.support.cases import raw_bits, same_bits

# --- IEEE 754 arithmetic from exact integers ----------------------------------------------------------------------


class Format(NamedTuple):
    """A binary floating-point format: `digits` bits of precision, exponents of normal numbers from `low` to `high`."""

    dtype: type
    digits: int
    low: int
    high: int


FORMATS = (Format(np.float32, 24, -126, 127), Format(np.float64, 53, -1022, 1023))
FORMAT_IDS = [np.dtype(f.dtype).name for f in FORMATS]


class Number(NamedTuple):
    """A floating-point number: `magnitude` is an exact rational, or None for infinity; NaN has sign 0."""

    sign: int
    magnitude: Fraction | None


NAN = Number(0, None)


def rounded(sign: int, x: Fraction, form: Format) -> Number:
    """The number nearest to ``sign * x`` (x >= 0), ties to even, with gradual underflow and overflow to infinity."""
    if x == 0:
        return Number(sign, x)
    exponent = x.numerator.bit_length() - x.denominator.bit_length()
    if x < Fraction(2) ** exponent:
        exponent -= 1
    unit = Fraction(2) ** (max(exponent, form.low) - form.digits + 1)
    scaled = x / unit
    whole, rest = divmod(scaled.numerator, scaled.denominator)
    twice = 2 * rest
    if twice > scaled.denominator or (twice == scaled.denominator and whole % 2):
        whole += 1
    result = whole * unit
    return Number(sign, None if result >= Fraction(2) ** (form.high + 1) else result)


def add(a: Number, b: Number, form: Format) -> Number:
    if NAN in (a, b):
        return NAN
    if a.magnitude is None or b.magnitude is None:
        if a.magnitude is None and b.magnitude is None:
            return a if a.sign == b.sign else NAN
        return a if a.magnitude is None else b
    total = a.sign * a.magnitude + b.sign * b.magnitude
    if total == 0:
        return Number(a.sign if a.sign == b.sign else 1, Fraction(0))
    return rounded(1 if total > 0 else -1, abs(total), form)


def subtract(a: Number, b: Number, form: Format) -> Number:
    return add(a, Number(-b.sign, b.magnitude), form)


def multiply(a: Number, b: Number, form: Format) -> Number:
    sign = a.sign * b.sign
    if a.magnitude is None or b.magnitude is None:
        return NAN if 0 in (a.magnitude, b.magnitude) or sign == 0 else Number(sign, None)
    return rounded(sign, a.magnitude * b.magnitude, form)


def divide(a: Number, b: Number, form: Format) -> Number:
    sign = a.sign * b.sign
    if sign == 0 or (a.magnitude is None and b.magnitude is None) or (a.magnitude == 0 and b.magnitude == 0):
        return NAN
    if a.magnitude is None or b.magnitude == 0:
        return Number(sign, None)
    if b.magnitude is None:
        return Number(sign, Fraction(0))
    return rounded(sign, a.magnitude / b.magnitude, form)


def root(a: Number, form: Format) -> Number:
    if a.magnitude == 0 or (a.sign == 1 and a.magnitude is None):
        return a
    if a.sign <= 0:
        return NAN
    # 2 * digits + 4 bits of the square give more bits than are kept; an odd last bit stands for a remainder.
    shift = max(0, 2 * form.digits + 4 - a.magnitude.numerator.bit_length() + a.magnitude.denominator.bit_length())
    shift += shift % 2
    scaled = a.magnitude * 2**shift
    whole = math.isqrt(scaled.numerator // scaled.denominator)
    inexact = whole * whole != scaled
    return rounded(1, Fraction(2 * whole + inexact, 2) / 2 ** (shift // 2), form)


def at_least(a: Number, b: Number) -> bool:
    """``a >= b``; false if either is NaN."""
    if NAN in (a, b):
        return False
    if a.magnitude is None or b.magnitude is None:
        left = a.sign * (2 if a.magnitude is None else 1 if a.magnitude else 0)
        right = b.sign * (2 if b.magnitude is None else 1 if b.magnitude else 0)
        return left >= right
    return a.sign * a.magnitude >= b.sign * b.magnitude


def number(x: float, form: Format) -> Number:
    """A Python float, rounded once to the format."""
    if math.isnan(x):
        return NAN
    sign = int(math.copysign(1, x))
    return Number(sign, None) if math.isinf(x) else rounded(sign, Fraction(abs(x)), form)


def value(x: Number) -> float:
    if x == NAN:
        return math.nan
    return x.sign * (math.inf if x.magnitude is None else float(x.magnitude))


class Arithmetic:
    """Operators on floats of one format, so that equations read as such."""

    def __init__(self, x: Number, form: Format):
        self.x, self.form = x, form

    def _new(self, x: Number) -> Arithmetic:
        return Arithmetic(x, self.form)

    def __add__(self, other: Arithmetic) -> Arithmetic:
        return self._new(add(self.x, other.x, self.form))

    def __sub__(self, other: Arithmetic) -> Arithmetic:
        return self._new(subtract(self.x, other.x, self.form))

    def __mul__(self, other: Arithmetic) -> Arithmetic:
        return self._new(multiply(self.x, other.x, self.form))

    def __truediv__(self, other: Arithmetic) -> Arithmetic:
        return self._new(divide(self.x, other.x, self.form))

    def root(self) -> Arithmetic:
        return self._new(root(self.x, self.form))

    def __gt__(self, other: Arithmetic) -> bool:
        return at_least(self.x, other.x) and not at_least(other.x, self.x)

    def __lt__(self, other: Arithmetic) -> bool:
        return other > self

    def __float__(self) -> float:
        return value(self.x)

    def or_larger(self, other: Arithmetic) -> Arithmetic:
        return self if at_least(self.x, other.x) else other


@pytest.mark.parametrize("form", FORMATS, ids=FORMAT_IDS)
def test_exact_arithmetic_equals_the_processor(form):
    """The oracle itself, on raw bits: NumPy's scalar operations are the processor's."""
    rng = np.random.default_rng(0)
    x, y = raw_bits(rng, 400, form.dtype), raw_bits(rng, 400, form.dtype)
    y[::7] = x[::7]
    operations = ((add, np.add), (subtract, np.subtract), (multiply, np.multiply), (divide, np.divide))
    with np.errstate(all="ignore"):
        a = [number(float(v), form) for v in x]
        b = [number(float(v), form) for v in y]
        for exact, native in operations:
            mine = [value(exact(*pair, form)) for pair in zip(a, b, strict=True)]
            assert same_bits(np.array(mine, form.dtype), native(x, y)), native.__name__
        mine = [value(root(v, form)) for v in a]
        assert same_bits(np.array(mine, form.dtype), np.sqrt(x))
        assert [at_least(*pair) for pair in zip(a, b, strict=True)] == list(x >= y)


# --- The update rules ----------------------------------------------------------------------------------------------

STEPS = {fo.RAdam: 7}  # which rectifies from the sixth step on


def label(case):
    cls, options = case
    return "-".join([cls.__name__, *(f"{k}={v}" for k, v in options.items() if v and k != "lr")])


def average(p, g, b):
    """`fo.Average`: the average moves towards the parameter `g` by the share `b`."""
    return p - b * (p - g)


def test_every_kernel_of_the_table_has_an_equation():
    reached = set()
    for cls, options in OPTIONS + OPTIONS_OF_ARRAYS:
        opt = cls(np.ones(1), **options)
        reached.add(opt._spec_of(opt.param_groups[0]).kernel)
    assert reached | {Kernel(RULES["average"], "none")} == set(kernels())


def inputs(form: Format, count: int, steps: int, seed: int):
    """Half ordinary numbers, half raw bits: NaN, infinities, subnormals, zeros of both signs; some gradients stay."""
    rng = np.random.default_rng(seed)
    p = rng.standard_normal(count).astype(form.dtype)
    p[::2] = raw_bits(rng, len(p[::2]), form.dtype)
    grads = [raw_bits(rng, count, form.dtype) for _ in range(steps)]
    for g in grads:
        g[: count // 2] = rng.standard_normal(count // 2)
        g[: count // 4] = grads[0][: count // 4]
    return p, grads


@pytest.mark.parametrize("form", FORMATS, ids=FORMAT_IDS)
@pytest.mark.parametrize("case", OPTIONS, ids=label)
def test_classes_equal_exact_arithmetic(case, form):
    cls, options = case
    count, steps = 16, STEPS.get(cls, 4)
    start, grads = inputs(form, count, steps, seed=len(label(case)))

    def k(x: float) -> Arithmetic:
        return Arithmetic(number(x, form), form)

    wanted = [k(float(x)) for x in start]
    states: list[list[Arithmetic]] = [[] for _ in wanted]
    for t, g in enumerate(grads, 1):
        for i in range(count):
            wanted[i], states[i] = EQUATIONS[cls][0](wanted[i], k(float(g[i])), states[i], t, options, k)
    for backend in ("numpy", "c"):
        p = start.copy()
        opt = cls(p, backend=backend, **options)
        for g in grads:
            opt.step(g)
        assert same_bits(p, np.array([value(x.x) for x in wanted], form.dtype)), backend
        arrays = [x for x in opt.state["0"].values() if isinstance(x, np.ndarray)]
        for j, state in enumerate(arrays):
            assert same_bits(state, np.array([value(s[j].x) for s in states], form.dtype)), (backend, j)
        assert len(arrays) == len(states[0])


@pytest.mark.parametrize("case", OPTIONS_OF_ARRAYS, ids=label)
def test_steps_that_depend_on_norms_equal_exact_arithmetic(case):
    """Ordinary numbers, zeros, numbers whose squares leave the range of float64, raw bits; another array is beside."""
    cls, options = case
    index = OPTIONS_OF_ARRAYS.index(case)
    rng, form = np.random.default_rng(index), FORMATS[index // 2 % 2]

    def k(x: float) -> Arithmetic:
        return Arithmetic(number(x, form), form)

    big = 1e15 if form.dtype is np.float32 else 1e170
    kinds = ((5, (1.0, 0.0)), (4, (0.0, 1.0)), (6, (big, big)), (16, None))
    for size, factors in ((9, (1.0, 1.0)), kinds[index % 3], kinds[3]):
        if factors is None:
            start, *grads = (raw_bits(rng, size, form.dtype) for _ in range(4))
        else:
            start = (factors[0] * rng.standard_normal(size)).astype(form.dtype)
            grads = [(factors[1] * rng.standard_normal(size)).astype(form.dtype) for _ in range(3)]
            grads[2][:2] = 0.0, -0.0
        wanted, states = [k(float(x)) for x in start], [[] for _ in start]
        own = dict(options)
        for t, g in enumerate(grads, 1):
            wanted, states = EQUATIONS_OF_ARRAYS[cls][0](wanted, [k(float(x)) for x in g], states, t, own, k)
        for backend in ("numpy", "c"):
            p, other = start.copy(), np.ones(3)
            opt = cls([other, p], backend=backend, **options)
            for g in grads:
                opt.step([np.ones(3), g])
            assert same_bits(p, np.array([value(x.x) for x in wanted], form.dtype)), (backend, size)
            arrays = [x for x in opt.state["1"].values() if isinstance(x, np.ndarray)]
            for j, state in enumerate(arrays):
                assert same_bits(state, np.array([value(s[j].x) for s in states], form.dtype)), (backend, size, j)
            kept = opt.state["1"].get("exp_avg_sq") if cls is fo.NovoGrad else None
            assert kept is None or same_bits(np.array(kept), np.array(own["kept"][-1]))


@pytest.mark.parametrize("form", FORMATS, ids=FORMAT_IDS)
@pytest.mark.parametrize("decay", [None, 0.87])
def test_averages_equal_exact_arithmetic(decay, form):
    """The first update copies; later ones move by ``1 - decay``, or by ``1 / n``."""
    start, values = inputs(form, 40, 3, seed=5)

    def k(x: float) -> Arithmetic:
        return Arithmetic(number(x, form), form)

    for backend in ("numpy", "c"):
        p = start.copy()
        kept = fo.Average([p], decay, backend=backend)
        kept.update()
        wanted = [k(float(x)) for x in start]
        for n, p[...] in enumerate(values, 2):
            kept.update()
            share = k(1.0 / n if decay is None else 1.0 - decay)
            wanted = [average(a, k(float(x)), share) for a, x in zip(wanted, p, strict=True)]
        assert same_bits(kept.arrays[0], np.array([value(x.x) for x in wanted], form.dtype)), backend


@pytest.mark.parametrize("form", FORMATS, ids=FORMAT_IDS)
def test_amsgrad_keeps_the_first_of_equals_and_takes_what_cannot_be_compared(form):
    """The maximum of zeros of either sign, infinities and NaN, in states that a checkpoint may hold."""
    values = (0.0, -0.0, 1.0, math.inf, math.nan)
    rows = np.array(list(product(values, values, (0.0, -0.0, 0.5))), form.dtype)
    v, largest, g = (np.ascontiguousarray(column) for column in rows.T)
    options = {"lr": 0.0123, "betas": (0.83, 0.977), "eps": 3e-5, "amsgrad": True}

    def k(x: float) -> Arithmetic:
        return Arithmetic(number(x, form), form)

    for backend in ("numpy", "c"):
        p = np.ones(len(rows), form.dtype)
        opt = fo.Adam(p, backend=backend, **options)
        state = opt.state_dict()
        moment = np.full(len(rows), 0.25, form.dtype)
        state["state"]["0"] = {"step": 4, "exp_avg": moment, "exp_avg_sq": v, "max_exp_avg_sq": largest}
        opt.load_state_dict(state)
        opt.step(g)
        found = opt.state["0"]["max_exp_avg_sq"]
        for i in range(len(rows)):
            start = [k(float(x[i])) for x in (moment, v, largest)]
            wanted, (_, _, maximum) = adam(k(1.0), k(float(g[i])), start, 5, options, k)
            assert same_bits(found[i : i + 1], np.array([value(maximum.x)], form.dtype)), (backend, rows[i])
            assert same_bits(p[i : i + 1], np.array([value(wanted.x)], form.dtype)), (backend, rows[i])


@pytest.mark.parametrize("form", FORMATS, ids=FORMAT_IDS)
def test_grad_scale_and_clipping_equal_exact_arithmetic(form):
    """``s = grad_scale * factor`` in float64, rounded once; the factor is ``min(1, max_norm / (norm + 1e-6))``."""
    rng = np.random.default_rng(7)
    start, g = (rng.standard_normal(50).astype(form.dtype) for _ in range(2))
    scaled = [multiply(number(0.3, form), number(float(x), form), form) for x in g]
    norm = float(sum((x.magnitude**2 for x in scaled), Fraction(0))) ** 0.5

    def k(x: float) -> Arithmetic:
        return Arithmetic(number(x, form), form)

    for max_norm in (0.5, 1e6):
        p = start.copy()
        info = fo.SGD(p, lr=0.125, backend="c").step(g, grad_scale=0.3, max_norm=max_norm)
        assert info.grad_norm == pytest.approx(norm, rel=1e-14)
        s = k(0.3 * min(1.0, max_norm / (info.grad_norm + 1e-6)))
        wanted = [k(float(a)) - k(0.125) * (s * k(float(b))) for a, b in zip(start, g, strict=True)]
        assert same_bits(p, np.array([value(x.x) for x in wanted], form.dtype))
