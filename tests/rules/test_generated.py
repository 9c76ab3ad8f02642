"""The update rules in C are those in Python: written by a script, committed, compared here."""

from __future__ import annotations

import runpy

import pytest
from numpy import sqrt, where

from fastoptim.rules.table import RULES, row
from tests.support import ROOT

if not (ROOT / "csrc").is_dir():
    pytest.skip("LOUD: no C sources beside the tests", allow_module_level=True)

GENERATE = runpy.run_path(str(ROOT / "csrc" / "generate.py"))


@pytest.mark.parametrize("name", GENERATE["FILES"])
def test_what_is_committed_is_what_the_script_writes(name):
    text = (ROOT / "csrc" / "kernels" / name).read_text()
    assert text == GENERATE["FILES"][name](), f"run: python csrc/generate.py ({name} is older than the rules)"


def test_every_rule_is_there():
    assert all(f"RULE({name})" in GENERATE["header"]() and f"X({name}," in GENERATE["table"]() for name in RULES)


def grouped(g, p, x, a, b):
    x = (a - b) - (g - (p - x))
    u = (a / b) * (x / (g * p))
    w = where(u > (a + b), u, where(u < b, a, sqrt(x * (a + b))))
    return w, x


def test_parentheses_and_choices_survive():
    text = GENERATE["rule_function"](row(grouped, "x"))
    assert "x = a - b - (g - (p - x));" in text
    assert "T u = (a / b) * (x / (g * p));" in text
    assert "T w = u > a + b ? u : u < b ? a : SQRT(x * (a + b));" in text
    assert text.endswith("    state[0] = x;\n    return w;\n}\n")


def power(g, p, a):
    return (g**a,)


def changed(g, p, a):
    g += a
    return (g,)


def branching(g, p, a):
    if a > p:
        return (g,)
    return (p,)


@pytest.mark.parametrize("function", [power, changed, branching])
def test_what_c_could_not_say_is_refused(function):
    with pytest.raises(SyntaxError):
        GENERATE["rule_function"](row(function))
