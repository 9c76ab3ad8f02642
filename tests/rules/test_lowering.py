"""The rules rewritten for compilers compute what the rules do; what could not be kept exact is refused."""

from __future__ import annotations

import operator
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from fastoptim.rules import lowering
from fastoptim.rules.table import RULES
from tests.support.cases import DTYPES, VARIANTS, expected, raw_bits, same_bits, states_for

PLAIN = {"root": np.sqrt}
CALLS = PLAIN | {"mul": operator.mul, "add": operator.add, "sub": operator.sub, "div": operator.truediv}


@cache
def rules_as(calls):
    names = dict(CALLS if calls else PLAIN)
    for text in lowering.rule_sources(calls):
        exec(text, names)
    return names


def run_source(variant, calls):
    names = rules_as(calls).copy()
    exec(lowering.element(variant.kernel), names)
    return names[variant.kernel.name]


@pytest.mark.parametrize("calls", [False, True], ids=["operators", "calls"])
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.label)
def test_element_function_equals_reference(variant, calls):
    rng = np.random.default_rng(0)
    element = run_source(variant, calls)
    for dtype in DTYPES:
        p, g = raw_bits(rng, 60, dtype), raw_bits(rng, 60, dtype)
        states = states_for(rng, variant.rule, 60, dtype, raw_bits)
        k = [dtype(x) for x in variant.scalars(0.77)]
        with np.errstate(all="ignore"):
            results = [element(*scalars, *k) for scalars in zip(p, g, *states, strict=True)]
        for column, wanted in zip(zip(*results, strict=True), expected(variant, p, g, states, 0.77), strict=True):
            assert {type(x) for x in column} == {dtype}
            assert same_bits(np.array(column), wanted)


def test_no_operator_is_left_where_calls_were_asked_for():
    text = "\n".join(lowering.rule_sources(calls=True))
    assert not set(text) & set("*/+-")
    assert "mul(c2, mul(g, g))" in text, "the parentheses of the rule are gone"


def literal(p, g):
    return (p * 0.5, g)


def power(p, g):
    return (p**g,)


def unknown_call(p, g):
    return (np.exp(p),)


def inversion(p, g):
    return (~p, g)


def augmented(p, g):
    p += g
    return (p,)


def branch(p, g):
    if p > g:
        p = g
    return (p,)


@pytest.mark.parametrize("function", [literal, power, unknown_call, inversion, augmented, branch])
def test_what_a_rule_may_not_use_is_refused(function):
    with pytest.raises(SyntaxError, match="an update rule may"):
        lowering.scalar(function)


def test_arguments_of_every_rule_are_told_apart():
    for rule in RULES.values():
        streams, scalars = lowering.arguments(rule)
        assert streams[:2] == ("p", "g")
        assert len(streams) == 2 + len(rule.states)
        assert scalars == ("s", "decay", *rule.coefficients)
        assert len(set(streams + scalars)) == len(streams + scalars)


def test_generated_modules_are_files_named_after_their_content(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    one, other = lowering.load("sample", "x = 1\n"), lowering.load("sample", "x = 2\n")
    assert (one.x, other.x) == (1, 2)
    assert one.__file__ != other.__file__
    assert one.__file__.startswith(str(tmp_path))
    with open(one.__file__, "w") as file:
        file.write("x = 3\n")
    assert lowering.load("sample", "x = 1\n").x == 1
    with open(one.__file__) as file:
        assert file.read() == "x = 1\n", "a damaged file was left in place"


def test_the_source_outlives_its_file(tmp_path, monkeypatch):
    """The folder may be cleared, and a relative name mean another after chdir."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NUMBA_CACHE_DIR", "cache")
    module = lowering.load("sample", "def own(ĝ):\n    return (ĝ,)\n")
    assert Path(module.__file__).is_absolute()
    Path(module.__file__).unlink()
    assert lowering.scalar(module.own) == "def own(ĝ):\n    return (ĝ,)"


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file" / "cache"))
    module = lowering.load("sample", "x = 4\n")
    assert module.x == 4
    assert not module.__file__.startswith(str(tmp_path))
