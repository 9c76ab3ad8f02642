"""The same bits: every instruction set, number of threads, size, offset and variant, against the reference."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest

from fastoptim.backends.c import ISA_NAMES, RULE_NAMES
from fastoptim.rules.norm import NORM_RETRY, norm_from_squares
from fastoptim.rules.reference import block_sums, tree_sum
from fastoptim.rules.table import RULES
from tests.support.cases import (
    DTYPES,
    LARGE_SIZES,
    SAMPLE,
    SIZES,
    VARIANTS,
    at_offset,
    expected,
    native_plan,
    on_instruction_set,
    ordinary,
    raw_bits,
    run_kernel,
    same_bits,
    states_for,
)

THREADS = (1, 2, 3, 7)


@pytest.fixture(params=ISA_NAMES)
def c(request):
    with on_instruction_set(request.param) as backend:
        yield backend


@lru_cache(maxsize=4)  # what instruction sets and threads share: tests of one variant follow each other
def stepped(variant, dtype, sizes, make, seed, s, steps):
    """Arrays of each size, and what the reference makes of parameter and states in some steps."""
    rng = np.random.default_rng(seed)
    arrays = []
    for n in sizes:
        p, g = make(rng, n, dtype), make(rng, n, dtype)
        arrays.append([p, g, *states_for(rng, variant.rule, n, dtype, make)])
    wanted = [[p, *states] for p, _, *states in arrays]
    for _ in range(steps):
        wanted = [expected(variant, p, g, states, s) for (p, *states), (_, g, *_) in zip(wanted, arrays, strict=True)]
    return arrays, wanted


def check_step(backend, variant, dtype, sizes, make, seed, threads, offset=0, s=0.77, steps=1):
    arrays, wanted = stepped(variant, dtype, sizes, make, seed, s, steps)
    arrays = [[at_offset(x, offset) for x in row] for row in arrays]
    before = [g.copy() for _, g, *_ in arrays]
    params, grads = tuple(p for p, *_ in arrays), tuple(g for _, g, *_ in arrays)
    states = tuple(x for _, _, *states in arrays for x in states)
    plan = native_plan(backend, variant.kernel, params, threads)
    for _ in range(steps):
        assert plan.step(params, grads, states, (variant.scalars(s),))
    for (p, g, *states), wanted_arrays, g_before in zip(arrays, wanted, before, strict=True):
        assert g.tobytes() == g_before.tobytes(), "the gradient was written to"
        for x, w, name in zip((p, *states), wanted_arrays, ("p", *variant.rule.states), strict=True):
            assert same_bits(x, w), (variant.label, np.dtype(dtype).name, p.size, threads, offset, name)


@pytest.mark.parametrize("variant", SAMPLE, ids=lambda v: v.label, scope="module")
def test_step_equals_reference_on_raw_bits(c, variant):
    for dtype in DTYPES:
        check_step(c, variant, dtype, SIZES, raw_bits, 1, threads=1)
        check_step(c, variant, dtype, SIZES, ordinary, 1, threads=1, s=1.0)


@pytest.mark.parametrize("variant", SAMPLE[::2], ids=lambda v: v.label, scope="module")
def test_threads_and_chunks_do_not_change_bits(c, variant):
    for dtype in DTYPES:
        for threads in THREADS:
            check_step(c, variant, dtype, (*LARGE_SIZES, *SIZES), ordinary, 2, threads, steps=2)


@pytest.mark.parametrize("offset", range(16))
def test_offset_in_the_cache_line_does_not_change_bits(c, offset):
    for variant in SAMPLE[offset % 4 :: 4]:
        for dtype in DTYPES:
            check_step(c, variant, dtype, (1, 15, 16, 17, 100, 4097), ordinary, offset, threads=2, offset=offset)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: np.dtype(t).name)
@pytest.mark.parametrize("make", [ordinary, raw_bits], ids=lambda f: f.__name__)
def test_block_sums_equal_reference(c, dtype, make):
    rng = np.random.default_rng(3)
    grads = [at_offset(make(rng, n, dtype), i % 16) for i, n in enumerate((*SIZES, *LARGE_SIZES))]
    for k in (1.0, NORM_RETRY, 1 / NORM_RETRY):
        wanted = np.concatenate([block_sums(g, 0.3, k) for g in grads])
        for threads in THREADS:
            assert same_bits(c.block_sums(grads, 0.3, k, threads), wanted)


def test_norm_equals_reference_and_survives_overflow(c):
    rng = np.random.default_rng(4)
    for factor in (1.0, 1e160, 1e-170, 0.0):
        grads = [factor * rng.standard_normal(n) for n in (1, 4097, 70001)]
        wanted = norm_from_squares(
            lambda k, grads=grads: tree_sum(np.concatenate([block_sums(g, 1.0, k) for g in grads]))
        )
        exact = factor * np.linalg.norm(np.concatenate(grads) / factor) if factor else 0.0
        for threads in THREADS:
            assert c.norm(grads, 1.0, threads) == wanted
        assert wanted == pytest.approx(exact, rel=1e-12)


def test_flush_to_zero_set_by_others_changes_nothing(c):
    torch = pytest.importorskip("torch", reason="LOUD: torch is the library that sets flush-to-zero here")
    rng = np.random.default_rng(5)
    variant = next(v for v in VARIANTS if v.rule.name == "adam" and v.decay == "coupled")
    n = 200_000
    arrays = [(1e-39 * ordinary(rng, n, np.float32)) for _ in range(2 + len(variant.rule.states))]
    p, g, *states = [x.astype(np.float32) for x in arrays]
    wanted = expected(variant, p, g, states, 0.5)
    assert np.any((np.abs(wanted[1]) > 0) & (np.abs(wanted[1]) < np.finfo(np.float32).tiny)), "no subnormals to lose"
    if not torch.set_flush_denormal(True):
        pytest.skip("LOUD: torch cannot set flush-to-zero on this processor")
    try:
        run_kernel(c, variant, [(p, g, *states)], 0.5, 3)
    finally:
        torch.set_flush_denormal(False)
    for x, w in zip((p, *states), wanted, strict=True):
        assert same_bits(x, w)


def test_tables_of_rules_and_extension_agree():
    assert RULE_NAMES[: len(RULES)] == list(RULES)
