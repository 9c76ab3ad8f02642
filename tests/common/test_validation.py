"""Arguments: what is taken, and that an error names what is refused."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

import fastoptim as fo
from fastoptim.common import validation
from fastoptim.common.threads import MOST, resolve_threads
from fastoptim.common.validation import check_range, choice, count, flag, norm_limit, real, step_options

NUMBERS = [3, 3.0, np.float32(3), np.int8(3), np.array(3.0), np.array(3), Fraction(3), Decimal(3), np.float16(3)]


@pytest.mark.parametrize("value", NUMBERS, ids=repr)
def test_whatever_is_one_real_number_is_taken(value):
    for found in (real("lr", value), norm_limit(value)):
        assert type(found) is float and found == 3.0


NO_NUMBERS = [True, False, np.True_, None, "3", b"3", 3j, [3], np.ones(1), np.ones((2, 3)), np.array("3"), ...]


@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
def test_what_is_no_number_is_a_type_error_that_names_it(value):
    with pytest.raises(TypeError, match="lr must be a real number, got"):
        real("lr", value)
    with pytest.raises(TypeError, match="max_norm must be a real number, got"):
        norm_limit(value)


@pytest.mark.parametrize("array", [np.ones(1), np.ones(3), np.ones((2, 3)), np.zeros(0)], ids=str)
def test_arrays_are_refused_by_name_and_shape(array):
    """Comparing one raised "the truth value of an array is ambiguous"."""
    shape = str(array.shape).replace("(", r"\(").replace(")", r"\)")
    calls = {
        "grad_scale": lambda: step_options(array, None, False),
        "max_norm": lambda: step_options(1.0, array, False),
        "skip_nonfinite": lambda: step_options(1.0, None, array),
        "eps_mode": lambda: choice("eps_mode", array, ("torch", "hat")),
        "maximize": lambda: flag("maximize", array),
    }
    for name, call in calls.items():
        with pytest.raises(TypeError, match=f"{name} must be .*, got an array of shape {shape}"):
            call()
    with pytest.raises(TypeError, match="epochs must be an int"):
        count("epochs", array)


def test_limits_and_what_is_not_finite():
    assert norm_limit(math.inf) == math.inf and norm_limit(np.float32(np.inf)) == math.inf
    for value in (math.nan, -math.inf, -1, np.float64(-1e-300)):
        with pytest.raises(ValueError, match=r"max_norm must be >= 0 \(infinity: no limit\)"):
            norm_limit(value)
    for value in (math.nan, math.inf, 10**400, -(10**400)):
        with pytest.raises(ValueError, match="lr must be finite"):
            real("lr", value)
    with pytest.raises(ValueError, match=r"beta must be in \[0, 1\)"):
        real("beta", 1.0, 0.0, 1.0)
    with pytest.raises(ValueError, match="mode must be one of"):
        choice("mode", "hats", ("torch", "hat"))
    assert choice("mode", "hat", ("torch", "hat")) == "hat"


def test_long_values_are_cut_in_messages():
    with pytest.raises(TypeError) as caught:
        real("lr", "x" * 100_000)
    assert len(str(caught.value)) < 300


def around(value):
    return [float(np.nextafter(value, 0.0)), value, float(np.nextafter(value, math.inf))]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ranges_are_those_of_rounding(dtype):
    """Against what the rounding itself gives, at the borders and either side of them."""
    edges = [x for edge in (2.0**-150, 2.0**-149, 2.0**128 - 2.0**103, 2.0**128, 1e39) for x in around(edge)]
    for value in [0.0, 5e-324, 1e-50, 1e-46, 1e-8, 1.0, 1e308, *edges]:
        for signed in (value, -value):
            with np.errstate(all="ignore"):
                rounded = dtype(signed)
            vanishes, overflows = rounded == 0 != signed, bool(np.isinf(rounded))
            for may_vanish in (False, True):
                if overflows or (vanishes and not may_vanish):
                    with pytest.raises(ValueError, match=f"eps = .*{'infinite' if overflows else 'zero'} in float"):
                        check_range("eps", signed, np.dtype(dtype), may_vanish)
                else:
                    check_range("eps", signed, np.dtype(dtype), may_vanish)
    check_range("max_norm", math.inf, np.dtype(dtype))  # what is infinite on purpose


def test_every_validator_says_in_its_first_line_what_it_returns():
    for name in ("real", "norm_limit", "count", "flag", "choice", "step_options"):
        assert getattr(validation, name).__doc__.startswith("Return ")


@pytest.mark.parametrize("digits", ["9" * 5000, "1" + "0" * 5000, "9" * 10, str(MOST + 1)])
def test_thread_counts_of_any_length(monkeypatch, digits):
    """int() refuses more than 4,300 digits."""
    monkeypatch.delenv("FASTOPTIM_NUM_THREADS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", digits)
    assert resolve_threads(None) == MOST
    monkeypatch.setenv("OMP_NUM_THREADS", "0" * 5000 + "2,4")
    assert resolve_threads(None) == 2
    monkeypatch.setenv("FASTOPTIM_NUM_THREADS", digits)
    with pytest.raises(ValueError, match="FASTOPTIM_NUM_THREADS must be an integer from 1 to") as caught:
        resolve_threads(None)
    assert len(str(caught.value)) < 200
    monkeypatch.setenv("FASTOPTIM_NUM_THREADS", " 003 ")
    assert resolve_threads(None) == 3


@pytest.mark.parametrize("text", ["", " ", "x", "-1", "0", "1.5", "²", ",4", "0" * 5000])
def test_what_is_no_count_of_threads(monkeypatch, text):
    monkeypatch.delenv("FASTOPTIM_NUM_THREADS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    expected = resolve_threads(None)
    assert expected == 3
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert resolve_threads(None) >= 1
    if text:
        monkeypatch.setenv("FASTOPTIM_NUM_THREADS", text)
        with pytest.raises(ValueError, match="FASTOPTIM_NUM_THREADS"):
            resolve_threads(None)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("learning_rate", "do you mean 'lr'? it has"),
        ("beta1", "do you mean 'betas'? it has"),
        ("clipnorm", "do you mean 'max_norm'? it has"),
        ("momentum", "do you mean 'betas' (the first of them is Adam's momentum)? it has"),
        ("weigth_decay", "do you mean 'weight_decay'? it has"),
        ("decoupled_weight_decay", "Adam has no 'decoupled_weight_decay': that is AdamW; it has"),
        ("fused", "every step is fused: leave it out; it has"),
        ("colour", "Adam has no 'colour': it has lr, "),
    ],
)
def test_a_name_of_another_library_is_met_with_ours(name, said):
    with pytest.raises(TypeError, match=re.escape(said)):
        fo.Adam(np.ones(1), **{name: 1})


@pytest.mark.parametrize(
    ("function", "name", "meant"),
    [
        (fo.fit, "max_nrom", "max_norm"),
        (fo.minibatches, "batchsize", "batch_size"),
        (fo.minimize, "max_iter", "maxiter"),
        (fo.probe_lr, "max_probe", "max_probes"),
        (fo.lr_range_test, "step", "steps"),
        (fo.fit, "patience", "early_stopping"),
        (fo.lr_range_test, "min_lr", "low"),
        (fo.minimize, "method", "optimizer"),
        (fo.diagnose, "fixedbatch", "fixed_batch"),
        (fo.recommend, "sparsity", "sparse"),
        (fo.minibatches, "seed", "rng"),
        (fo.schedules.cosine, "T_max", "steps"),
        (fo.schedules.cosine, "eta_min", "final_lr"),
        (fo.schedules.cosine_restarts, "T_mult", "multiplier"),
        (fo.schedules.exponential, "decay_rate", "gamma"),
        (fo.schedules.one_cycle, "peak_value", "max_lr"),
        (fo.schedules.Plateau, "patients", "patience"),
        (fo.Average, "decays", "decay"),
        (fo.groups, "rule", "rules"),
        (fo.pack, "param", "params"),
        (fo.to_torch_state, "name", "names"),
        (fo.from_torch_state, "optimiser", "optimizer"),
        (fo.adapters.dicts.Adam, "learning_rate", "lr"),
        (fo.adapters.objects.Adam, "beta_1", "beta1"),
        (fo.adapters.numpy_ml.SGD, "learning_rate", "lr"),
    ],
)
def test_a_misspelt_keyword_of_a_function_is_met_with_the_right_one(function, name, meant):
    with pytest.raises(TypeError, match=f"{function.__name__} has no '{name}': do you mean '{meant}'"):
        function(1, **{name: 1})


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("weight_decay", "optimizer=fo.AdamW(params, weight_decay=...)"),
        ("grad_scale", "let loss_and_grad divide its gradients"),
    ],
)
def test_fit_says_where_an_argument_of_the_optimizer_or_of_its_step_goes(name, said):
    with pytest.raises(TypeError, match=f"fit has no '{name}': .*{re.escape(said)}"):
        fo.fit(print, np.ones(1), None, **{name: 1})
    with pytest.raises(TypeError, match=r"minimize has no 'lr': .* optimizer=lambda x: fo\.AdamW\(x, lr=\.\.\.\)"):
        fo.minimize(print, np.ones(1), jac=True, lr=0.1)


def test_a_schedule_without_an_argument_says_which_it_takes():
    with pytest.raises(TypeError, match=r"cosine\(lr: float, steps: int.*\): missing a required argument: 'steps'"):
        fo.schedules.cosine(0.1)


def test_python_proposes_the_public_name_that_is_nearest():
    script = "import fastoptim as fo\nfo.AdaGrad"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert re.search(r"Did you mean:? '\.?Adagrad'", done.stderr)  # the words are Python's, and change


def test_a_list_in_place_of_an_array_is_taken_for_no_rate():
    with pytest.raises(TypeError, match=r"got float: make it an array, .* parameters come first, .*lr=0\.1"):
        fo.Adam(0.1)
    with pytest.raises(TypeError, match=r"got list: make it an array, np\.array\(x, np\.float64\)$"):
        fo.SGD([np.ones((1, 1), np.float32)]).apply([[[1.0]]], [np.ones((1, 1), np.float32)])
