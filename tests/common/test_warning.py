"""Warnings name the user's line that led to them, not one of the package."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import numpy as np
import pytest

import fastoptim as fo
from fastoptim import backends
from fastoptim.adapters import _update, cs231n, dicts
from fastoptim.arrays.storage import small_dtype
from fastoptim.optimizers import own


@fo.rule(coefficients=lambda lr=0.1: (lr,))
def Plain(g, p, c):
    return c * g


def saved_in_float32(tmp_path):
    p = np.ones(3, np.float32)
    (other := fo.Adam(p)).step(p.copy())
    other.save(tmp_path / "x.ckpt")
    return fo.Adam(p, state_dtype="bfloat16"), other.state_dict(), tmp_path / "x.ckpt"


OF_C = {
    "class": lambda p, g: fo.Adam(p),
    "groups": lambda p, g: fo.SGD([{"params": p}], lr=0.1),
    "function": lambda p, g: fo.functional.sgd(p, g, lr=0.1),
    "norm": lambda p, g: fo.clip_grad_norm([g], 1.0),
    "average": lambda p, g: fo.Average({"p": p}),
    "adapter": lambda p, g: dicts.Adam(),
    "style": lambda p, g: cs231n.adam(p, g, {}),
    "fit": lambda p, g: fo.fit(lambda p, batch: (0.0, g), p, None, "sgd", steps=1),
}


HAVE_THEIR_BACKEND = (_update._array_step, fo.functional._array_step, fo.functional._prepared)


@pytest.mark.parametrize("call", OF_C)
def test_no_extension(call, monkeypatch):
    monkeypatch.setattr(backends, "best_for_host", lambda: ("numpy", "there is no compiler"))
    monkeypatch.setattr(backends, "_choices", {})
    monkeypatch.delenv("FASTOPTIM_BACKEND", raising=False)
    for kept in (backends._best_host_backend, *HAVE_THEIR_BACKEND):
        kept.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match="no compiler; using the numpy backend") as caught:
            OF_C[call](np.ones(3), np.ones(3))
    finally:
        for kept in (backends._best_host_backend, *HAVE_THEIR_BACKEND):
            kept.cache_clear()
    line = inspect.getsourcelines(OF_C[call])[1]
    assert [(warning.filename, warning.lineno) for warning in caught] == [(__file__, line)]


def test_an_own_rule_without_numba(monkeypatch):
    monkeypatch.setattr(own, "available", lambda name: "no Numba")
    for call in (Plain, lambda p: Plain.update(p, p.copy(), step=1)):
        with pytest.warns(RuntimeWarning, match="no Numba; a rule of your own runs on NumPy") as caught:
            call(np.ones(3))
        assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.skipif(small_dtype("bfloat16") is None, reason="states of 16 bits need ml_dtypes: pip install ml_dtypes")
def test_states_of_another_storage(tmp_path):
    opt, state, path = saved_in_float32(tmp_path)
    for load, source in ((opt.load_state_dict, state), (opt.load, path)):
        with pytest.warns(RuntimeWarning, match="another storage") as caught:
            load(source)
        assert [warning.filename for warning in caught] == [__file__]


def test_all_are_issued_by_one_function():
    package = Path(fo.__file__).parent
    found = [p.name for p in package.rglob("*.py") if re.search(r"warnings\.warn|stacklevel", p.read_text("utf-8"))]
    assert found == ["warning.py"]
