"""Sums of whole arrays before a step: the same bits on every instruction set, and nothing is written."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import fastoptim as fo
from fastoptim.backends import KernelCall, available, get_backend
from fastoptim.backends.base import Member, Runs
from fastoptim.backends.c import ISA_NAMES
from fastoptim.rules import reference
from fastoptim.rules.norm import NORM_RETRY
from fastoptim.rules.table import MEASURES, RULES, Kernel, kernels
from tests.proofs.random_measures import CLASSES, run_case
from tests.support.cases import DTYPES, at_offset, on_instruction_set, ordinary, raw_bits, same_bits

KERNELS = kernels(MEASURES.values())
SIZES = (0, 1, 15, 17, 4095, 4096, 4097, 3 * 4096 + 5)


def check(backend, kernel: Kernel, dtype, make, sizes=SIZES, threads=3, vectors=list):
    """A backend's block sums, and its native sums where it has them, are those of the reference."""
    rng = np.random.default_rng(7)
    count = len(kernel.rule.states)
    rows = [
        [at_offset(make(rng, n, dtype), i % 16) for _ in range(2 + count + 1)] for i, n in enumerate(sizes)
    ]  # one state more than is read
    scalars = (-0.77, 0.3, *(0.7 / (i + 2) for i in range(len(kernel.rule.coefficients))))
    before = [x.tobytes() for row in rows for x in row]
    for k in (1.0, 1.0 / NORM_RETRY):
        wanted = [x for p, g, *states in rows for x in reference.measure(kernel, p, g, states, scalars, k)]
        found = backend.prepare_measures([KernelCall(kernel, [tuple(vectors(row)) for row in rows])], threads)(
            [scalars], k
        )
        assert all(map(same_bits, found, wanted)) and len(found) == len(wanted), (kernel.name, k)
        step = Kernel(RULES[("momentum", "adam", "amsgrad")[count]], "none")  # with as many states
        plan = backend.measure_plan(Runs.one(step, [Member.of(p) for p, *_ in rows]), [kernel], threads)
        if plan is not None:
            params, grads = (tuple(row[i] for row in rows) for i in (0, 1))
            states = tuple(x for row in rows for x in row[2:])
            totals = plan(params, grads, states, (scalars,), k)
            assert same_bits(np.array(totals), np.array([reference.tree_sum(x) for x in wanted]))
    assert before == [x.tobytes() for row in rows for x in row], "something was written"


@pytest.mark.parametrize("isa", ISA_NAMES)
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_c_has_the_sums_of_the_reference(kernel, isa):
    with on_instruction_set(isa) as backend:
        for dtype, make in zip(DTYPES, (raw_bits, ordinary), strict=True):
            check(backend, kernel, dtype, make)
        check(backend, kernel, np.float32, ordinary, (70_001, 3), threads=2)


@pytest.mark.parametrize("name", ["numpy", "numba"])
def test_other_backends_have_the_sums_of_the_reference(name):
    if reason := available(name):
        pytest.skip(f"LOUD: {reason}")
    for kernel in KERNELS[:: 1 if name == "numpy" else 3]:
        check(get_backend(name), kernel, np.float32, ordinary)


def test_a_sample_of_random_steps_has_no_differing_bit():
    """Of tests/proofs/random_measures.py; Numba's kernels take long to compile, so that few cases go there."""
    cases = [run_case(10**9 + i, ("c",)) for i in range(100)]
    if reason := available("numba"):
        pytest.skip(f"LOUD: {reason}")
    cases += [run_case(2 * 10**9 + i, ("numba",)) for i in range(6)]
    assert [case for case in cases if case[1]] == []
    assert {described.split()[0] for described, _ in cases} == {cls.__name__ for cls in CLASSES}


def test_files_larger_than_the_budget_have_the_same_sums(tmp_path):
    n = 3 * 4096 * 40 + 7
    rng = np.random.default_rng(3)
    start, grads = ordinary(rng, n, np.float32), [ordinary(rng, n, np.float32) for _ in range(2)]
    here = start.copy()
    there = np.memmap(tmp_path / "p", np.float32, "w+", shape=(n,))
    there[:] = start
    for p, options in ((here, {}), (there, {"state_dir": tmp_path, "memory_budget": "1 MiB"})):
        opt = fo.LAMB(p, weight_decay=0.1, **options)
        for g in grads:
            opt.step(g)
    assert same_bits(np.asarray(there), here)


@pytest.mark.parametrize(
    ("make", "grad", "error", "told"),
    [
        (
            lambda p: fo.LAMB(p, state_dtype="bfloat16"),
            None,
            ValueError,
            "'0' is stored in fewer bits.*leave out state_dtype.*LAMB",
        ),
        (
            fo.NovoGrad,
            fo.Rows(np.array([1]), np.ones((1, 3), "f")),
            TypeError,
            r"NovoGrad, update_clip and .* whole arrays.*rows\.to_dense",
        ),
        (lambda p: fo.AdamW(p, update_clip="max"), None, ValueError, "update_clip must be None, 'rms' or a number > 0"),
        (lambda p: fo.AdamW(p, update_clip=0.0), None, ValueError, "update_clip must be None, 'rms' or a number > 0"),
        (lambda p: fo.AdamW(p, update_clip="rms", eps_mode="hat"), None, ValueError, "eps_mode='torch'"),
        (lambda p: fo.AdamW(p, cautious=1), None, TypeError, "cautious must be True or False"),
        (lambda p: fo.LARS(p, mode="apex"), None, ValueError, r"mode must be one of \['paper', 'optax'\]"),
        (lambda p: fo.LARS(p, momentum=0.0, nesterov=True), None, ValueError, "nesterov needs momentum > 0"),
        (lambda p: fo.LAMB(p, lr=1e30), 1e-38 * np.ones((4, 3), "f"), ValueError, "coefficient .* no finite number"),
    ],
)
def test_what_has_no_such_step_is_refused_by_name(make, grad, error, told):
    p = np.full((4, 3), 2.0, np.float32)
    with pytest.raises(error, match=told):
        opt = make(p)
        opt.step(np.ones_like(p) if grad is None else grad)
    assert (p == 2).all()


def test_a_norm_that_is_no_number_makes_nan_of_its_array_alone():
    for make in (fo.LAMB, fo.LARS, fo.NovoGrad, lambda p, **kw: fo.AdamW(p, update_clip="rms", **kw)):
        for backend in ("numpy", "c"):
            params = [np.ones(20, np.float32), np.ones(20)]
            opt = make(params, backend=backend)
            for bad in (np.nan, np.inf):
                g = np.ones(20)
                g[3] = bad
                opt.step([np.ones(20, np.float32), g])
                assert np.isnan(params[1]).all() and np.isfinite(params[0]).all()


def test_what_is_kept_beside_the_count_moves_only_with_the_step():
    p = np.ones(3)
    opt = fo.NovoGrad(p, betas=(0.9, 0.5))
    opt.step(np.array([3.0, 4.0, 0.0]))
    assert opt.state["0"]["exp_avg_sq"] == 25.0
    saved = opt.state_dict()
    for bad in (np.ones(4), np.ones(3, "f"), p):
        with pytest.raises((TypeError, ValueError)):
            opt.step(bad)
    assert not opt.step(np.full(3, np.nan), skip_nonfinite=True).applied
    assert opt.state["0"]["exp_avg_sq"] == 25.0 and opt.state["0"]["step"] == 1
    opt.step(np.array([1.0, 0.0, 0.0]))
    assert opt.state["0"]["exp_avg_sq"] == 13.0
    opt.load_state_dict(saved)
    assert opt.state["0"]["exp_avg_sq"] == 25.0
    opt.step(np.zeros(3), grad_scale=2.0)
    assert opt.state["0"]["exp_avg_sq"] == 12.5


@pytest.mark.parametrize("backend", ["numpy", "c"])
def test_a_coefficient_beyond_its_type_changes_nothing_that_is_kept(backend):
    p = np.ones(20, np.float32)
    opt = fo.NovoGrad(p, betas=(0.9, 0.0), backend=backend)
    opt.step(np.ones(20, np.float32))
    kept, after = opt.state["0"]["exp_avg_sq"], p.copy()
    with pytest.raises(ValueError, match="'novograd' a coefficient d = "):
        opt.step(np.full(20, 3e38, np.float32))  # its norm is beyond float32
    assert same_bits(p, after) and opt.state["0"]["exp_avg_sq"] == kept and opt.state["0"]["step"] == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e200])
def test_a_second_moment_that_is_no_number_can_be_saved_and_loaded(bad, tmp_path):
    opt = fo.NovoGrad(np.ones(2))
    opt.step(np.array([bad, 1.0]))
    kept = opt.state["0"]["exp_avg_sq"]
    assert not np.isfinite(kept)
    opt.save(tmp_path / "file")
    loaded = fo.NovoGrad(np.ones(2))
    loaded.load(tmp_path / "file")
    opt.load_state_dict(opt.state_dict())
    for other in (opt, loaded, copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        assert same_bits(np.float64(other.state["0"]["exp_avg_sq"]), np.float64(kept))
    state = {key: np.array(x) if key == "exp_avg" else x for key, x in opt.state["0"].items()}
    p = np.ones(2)
    fo.functional.novograd(p, np.ones(2), state)
    assert np.isnan(p).all()


@pytest.mark.parametrize("backend", ["numpy", "c"])
@pytest.mark.parametrize(
    "cls, options", [(fo.LAMB, {}), (fo.LARS, {}), (fo.NovoGrad, {}), (fo.AdamW, {"update_clip": 0.3})]
)
def test_norms_do_not_depend_on_the_order_in_memory(backend, cls, options):
    found = []
    for p_order in "CF":
        for g_order in "CF":
            rng = np.random.default_rng(0)
            p = np.array(rng.standard_normal((130, 47)), order=p_order)
            opt = cls(p, lr=0.1, backend=backend, **options)
            for _ in range(20):
                opt.step(np.array(rng.standard_normal((130, 47)), order=g_order))
            found.append(p)
    assert all(same_bits(x, found[0]) for x in found)


def test_storage_in_fewer_bits_is_refused_where_it_is_asked_for():
    p = np.ones(3, np.float32)
    for make in (lambda: fo.LAMB(p, state_dtype="bfloat16"), lambda: fo.Adam(p, cautious=True, state_dtype="float8")):
        with pytest.raises(ValueError, match="'0' is stored in fewer bits"):
            make()
    opt = fo.Adam(p, state_dtype="float8")
    with pytest.raises(ValueError, match="'0' is stored in fewer bits"):
        opt.cautious = True
    assert opt.cautious is False and opt.step(np.ones_like(p)).applied
