"""Random cases of the C backend against the reference, bit for bit: python -m tests.proofs.random_cases

A case draws a rule, a convention, a decay, a direction, hyper-parameters, a dtype, a list of sizes, an offset within
the cache line for each array (or one buffer that holds them all), a number of threads, an instruction set, the values
(ordinary, or any bits: NaN, infinities, subnormals) and a number of steps. Its number is its seed, so that a failing
one can be run alone (--first N --cases 1).
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from fastoptim import reference
from fastoptim.backends import get_backend
from tests.cases import DTYPES, SPECIAL, VARIANTS, Variant, at_offset, bits, ordinary, raw_bits, states_for

THREADS = (1, 2, 3, 7)
BORDERS = (8, 16, 32, 64, 128, 1024, 4096, 8192, 12288)


@dataclass
class Case:
    """What was drawn, and how many bits of the results differ from the reference's."""

    description: str
    variant: Variant
    isa: str
    elements: int
    differing_bits: int


def hyper_parameters(rng: np.random.Generator, t: int) -> dict[str, object]:
    def beta() -> float:
        return 0.0 if rng.random() < 0.1 else 1 - 10 ** -rng.uniform(0.01, 5)

    return {
        "lr": 10 ** rng.uniform(-6, 1),
        "momentum": beta(),
        "dampening": rng.uniform(-0.5, 1),
        "first": t == 1,
        "t": t,
        "beta1": beta(),
        "beta2": beta(),
        "eps": 0.0 if rng.random() < 0.2 else 10 ** rng.uniform(-12, 0),
    }


def draw_sizes(rng: np.random.Generator) -> list[int]:
    kind = rng.random()
    if kind < 0.01:  # enough for several threads
        return [int(rng.integers(20_000, 150_000)), *map(int, rng.integers(0, 5000, rng.integers(0, 4)))]
    if kind < 0.3:
        return [int(rng.choice(BORDERS)) * int(rng.integers(1, 3)) + int(rng.integers(-2, 3))]
    return [int(n) for n in rng.integers(0, 200, rng.integers(1, 5))]


def draw_arrays(rng, variant: Variant, dtype: type, sizes: list[int], make) -> tuple[list[list[np.ndarray]], str]:
    """(parameter, gradient, states...) of each entry, and how they lie in memory."""

    def draw(n: int, t: type) -> list[np.ndarray]:
        values = [make(rng, n, t), make(rng, n, t), *states_for(rng, variant.rule, n, t, make)]
        return [at_offset(x, int(rng.integers(16))) for x in values]

    kind = rng.random()
    if kind < 0.2:
        ends = np.cumsum([0, *sizes])
        slots = draw(int(ends[-1]), dtype)
        return [[x[a:b] for x in slots] for a, b in pairwise(ends)], "one buffer"
    if kind < 0.4:
        return [draw(n, DTYPES[rng.integers(len(DTYPES))]) for n in sizes], "mixed dtypes"
    return [draw(n, dtype) for n in sizes], "apart"


def differing(a: np.ndarray, b: np.ndarray) -> int:
    """Number of bits in which two arrays differ, NaN being NaN whatever its payload."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return 8 * max(a.nbytes, b.nbytes)
    x, y = (np.frombuffer(bits(v), np.uint8) for v in (a, b))
    return int(np.bitwise_count(x ^ y).sum())


def run_case(number: int) -> Case:
    rng = np.random.default_rng(number)
    backend = get_backend("c")
    variant = VARIANTS[rng.integers(len(VARIANTS))]
    dtype = DTYPES[rng.integers(len(DTYPES))]
    isa = backend.isas[rng.integers(len(backend.isas))]
    threads = THREADS[rng.integers(len(THREADS))]
    make = raw_bits if rng.random() < 0.5 else ordinary
    sizes = draw_sizes(rng)
    steps = 6 if sum(sizes) > 20_000 else int(rng.integers(1, 4))
    t0 = 1 if rng.random() < 0.3 else int(10 ** rng.uniform(0, 7))
    kind = rng.random()
    s = (
        1.0
        if kind < 0.2
        else float(rng.choice(SPECIAL))
        if kind < 0.25
        else float(rng.normal()) * 10 ** rng.uniform(-3, 3)
    )
    wd = 10 ** rng.uniform(-6, 0)
    decay_coefficient = {"none": 0.0, "coupled": wd, "decoupled": 1 - wd}[variant.decay]
    hyper = hyper_parameters(rng, t0)

    arrays, layout = draw_arrays(rng, variant, dtype, sizes, make)
    grads = tuple(g for _, g, *_ in arrays)
    wanted = [[x.copy() for x in entry] for entry in arrays]
    rows = [variant.coefficients(**hyper | {"t": t0 + i, "first": t0 + i == 1}) for i in range(steps)]

    before = backend.isa
    backend.set_isa(isa)
    try:
        row = (variant.rule, variant.decay, decay_coefficient, variant.maximize, [p for p, *_ in arrays])
        plan = backend.plan([row], [0], threads)
        params, states = tuple(p for p, *_ in arrays), tuple(x for _, _, *entry in arrays for x in entry)
        for coefficients in rows:
            if not plan.step(params, grads, states, [coefficients], s):
                raise RuntimeError(f"case {number}: the extension refused plain arrays")
        squares = plan.sum_squares(grads, s, 1.0)
    finally:
        backend.set_isa(before)

    for p, g, *entry in wanted:
        for coefficients in rows:
            reference.update(
                variant.rule,
                p,
                g,
                entry,
                coefficients,
                s=-s if variant.maximize else s,
                decay=variant.decay,
                decay_coefficient=decay_coefficient,
            )
    sums = np.concatenate([reference.block_sums(g, s, 1.0) for g in grads])
    wrong = differing(np.array([squares]), np.array([reference.tree_sum(sums)]))
    for found, right in zip(arrays, wanted, strict=True):
        wrong += sum(differing(x, y) for x, y in zip(found, right, strict=True))
    label = f"{variant.label} {np.dtype(dtype).name} {isa} {threads=} {make.__name__} {sizes} {layout} {steps=}"
    return Case(label, variant, isa, steps * sum(sizes), wrong)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    begin, elements, wrong, failed = time.perf_counter(), 0, 0, 0
    seen: dict[str, int] = {}
    for number in range(options.first, options.first + options.cases):
        case = run_case(number)
        elements += case.elements
        wrong += case.differing_bits
        for key in (case.variant.label, case.isa):
            seen[key] = seen.get(key, 0) + 1
        if case.differing_bits:
            failed += 1
            if failed <= 20:
                print(f"case {number}: {case.differing_bits} differing bits: {case.description}")
        if number % 10_000 == 9_999:
            print(f"{number + 1} cases, {wrong} differing bits, {time.perf_counter() - begin:.0f} s", flush=True)
    isas = ", ".join(f"{isa} {seen.get(isa, 0)}" for isa in get_backend("c").isas)
    variants = sum(variant.label in seen for variant in VARIANTS)
    print(
        f"{options.cases} cases (numbers from {options.first}), {elements} updated elements, "
        f"{variants} of {len(VARIANTS)} variants, instruction sets: {isas}; {failed} cases differ, "
        f"{wrong} differing bits, {time.perf_counter() - begin:.0f} s"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
