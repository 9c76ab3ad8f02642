"""Random cases of the C backend against the reference, bit for bit: python -m tests.proofs.random_cases

A case draws one or two runs (rule, convention, decay, direction, hyperparameters), a list of sizes, dtypes, a layout
in memory (arrays apart at any offset in the cache line, or adjoining in several ways), a number of threads, an
instruction set, the values (ordinary, or any bits: NaN, infinities, subnormals), a scale and a number of steps. What
lies between the arrays must stay as it was, too. A case's number is its seed, so that a failing one can be run alone
(--first N --cases 1).
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastoptim.backends import get_backend
from fastoptim.backends.base import Member, Runs, count_of_steps
from fastoptim.rules import reference
from tests.support.cases import DTYPES, SPECIAL, VARIANTS, Variant, bits, on_threads, ordinary, raw_bits, states_for

THREADS = (1, 2, 3, 7)
BORDERS = (8, 16, 32, 64, 128, 1024, 4096, 8192, 12288)


LAYOUTS = ("apart", "apart", "apart", "slots packed", "parameters packed", "one slab")
FILLER = 0xA5


@dataclass
class Case:
    """What was drawn, and how many bits of the results differ from the reference's."""

    description: str
    variants: list[Variant]
    isa: str
    elements: int
    differing_bits: int


def hyperparameters(rng: np.random.Generator, t: int) -> dict[str, object]:
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


class Arena:
    """Memory in which arrays are laid side by side, with a filler that nobody may touch between them."""

    def __init__(self, size: int):
        self.room = np.full(size + 64, FILLER, np.uint8)
        self.at = -self.room.__array_interface__["data"][0] % 64
        self.free = np.ones(size + 64, bool)

    def place(self, x: np.ndarray, offset: int | None) -> np.ndarray:
        """A copy of `x`, `offset` elements behind a cache line's beginning, or right behind the last array if None."""
        address = self.room.__array_interface__["data"][0]
        align = x.itemsize if offset is None else 64
        self.at += -(address + self.at) % align + (0 if offset is None else 64 + offset * x.itemsize)
        span = slice(self.at, self.at + x.nbytes)
        self.room[span] = x.view(np.uint8)
        self.free[span] = False
        self.at += x.nbytes
        return self.room[span].view(x.dtype)

    def damage(self) -> int:
        return int(np.bitwise_count(self.room[self.free] ^ np.uint8(FILLER)).sum())


def lay_out(
    rng: np.random.Generator, layout: str, values: list[list[np.ndarray]]
) -> tuple[list[list[np.ndarray]], Arena]:
    """The arrays of each entry (parameter, gradient, states...) placed in one arena."""
    arena = Arena(sum(x.nbytes + 256 for entry in values for x in entry))
    placed: list[list[Any]] = [[None] * len(entry) for entry in values]
    order = [(e, slot) for e, entry in enumerate(values) for slot in range(len(entry))]
    if layout != "one slab":
        order.sort(key=lambda pair: (pair[1], pair[0]))
    for e, slot in order:
        packed = layout in ("slots packed", "one slab") or (layout == "parameters packed" and slot == 0)
        offset = None if packed and (e, slot) != order[0] else int(rng.integers(16))
        placed[e][slot] = arena.place(values[e][slot], offset)
    return placed, arena


def differing(a: np.ndarray, b: np.ndarray) -> int:
    """Number of bits in which two arrays differ, NaN being NaN whatever its payload."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return 8 * max(a.nbytes, b.nbytes)
    x, y = (np.frombuffer(bits(v), np.uint8) for v in (a, b))
    return int(np.bitwise_count(x ^ y).sum())


def draw_scale(rng: np.random.Generator) -> float:
    kind = rng.random()
    if kind < 0.2:
        return 1.0
    return float(rng.choice(SPECIAL)) if kind < 0.25 else float(rng.normal() * 10 ** rng.uniform(-3, 3))


@dataclass
class Drawn:
    """One run: a variant with its coefficients for each step, and the entries that it updates."""

    variant: Variant
    decay_coefficient: float
    rows: list[tuple[float, ...]]
    entries: range

    def scalars(self, coefficients: tuple[float, ...], s: float) -> tuple[float, ...]:
        return (-s if self.variant.maximize else s, self.decay_coefficient, *coefficients)


def draw_runs(rng: np.random.Generator, entries: int, steps: int) -> list[Drawn]:
    cut = int(rng.integers(1, entries)) if entries > 1 and rng.random() < 0.3 else entries
    drawn = []
    for members in (range(cut), range(cut, entries)):
        if members:
            variant = VARIANTS[rng.integers(len(VARIANTS))]
            wd = 10 ** rng.uniform(-6, 0)
            t = 1 if rng.random() < 0.3 else int(10 ** rng.uniform(0, 7))
            hyper = hyperparameters(rng, t)
            rows = [variant.coefficients(**hyper | {"t": t + i, "first": t + i == 1}) for i in range(steps)]
            decay = {"none": 0.0, "coupled": wd, "decoupled": wd}[variant.decay]
            drawn.append(Drawn(variant, decay, rows, members))
    return drawn


def by_reference(run: Drawn, arrays: list[list[np.ndarray]], s: float) -> None:
    for p, g, *states in (arrays[e] for e in run.entries):
        for coefficients in run.rows:
            reference.update(run.variant.kernel, p, g, states, run.scalars(coefficients, s))


def run_case(number: int) -> Case:
    rng = np.random.default_rng(number)
    backend = get_backend("c")
    isa = backend.isas[rng.integers(len(backend.isas))]
    threads = THREADS[rng.integers(len(THREADS))]
    make = raw_bits if rng.random() < 0.5 else ordinary
    layout = LAYOUTS[rng.integers(len(LAYOUTS))]
    s = draw_scale(rng)
    sizes = draw_sizes(rng)
    steps = 6 if sum(sizes) > 20_000 else int(rng.integers(1, 4))
    runs = draw_runs(rng, len(sizes), steps)
    dtypes = [DTYPES[i] for i in rng.integers(len(DTYPES), size=len(sizes))]
    if rng.random() < 0.7:
        dtypes = dtypes[:1] * len(sizes)

    values = []
    for run in runs:
        for e in run.entries:
            n, t = sizes[e], dtypes[e]
            values.append([make(rng, n, t), make(rng, n, t), *states_for(rng, run.variant.rule, n, t, make)])
    arrays, arena = lay_out(rng, layout, values)

    before = backend.isa
    backend.set_isa(isa)
    try:
        params, grads = (tuple(entry[slot] for entry in arrays) for slot in (0, 1))
        states = tuple(x for _, _, *entry in arrays for x in entry)
        run_of, members = [i for i, run in enumerate(runs) for _ in run.entries], [Member.of(p) for p in params]
        plan = backend.plan(Runs([run.variant.kernel for run in runs], run_of, members), count_of_steps(), threads)
        with on_threads():
            for i in range(steps):
                if not plan.step(params, grads, states, tuple(run.scalars(run.rows[i], s) for run in runs)):
                    raise RuntimeError(f"case {number}: the extension refused plain arrays")
            squares = plan.sum_squares(grads, s, 1.0)
    finally:
        backend.set_isa(before)

    for run in runs:
        by_reference(run, values, s)
    sums = np.concatenate([reference.block_sums(g, s, 1.0) for g in grads])
    wrong = arena.damage() + differing(np.array([squares]), np.array([reference.tree_sum(sums)]))
    for found, right in zip(arrays, values, strict=True):
        wrong += sum(differing(x, y) for x, y in zip(found, right, strict=True))
    variants = [run.variant for run in runs]
    names = ", ".join(f"{size} x {np.dtype(dtype).name}" for size, dtype in zip(sizes, dtypes, strict=True))
    label = (
        f"{' and '.join(v.label for v in variants)}: {names}; {isa}, {threads=}, {make.__name__}, {layout}, {steps=}"
    )
    return Case(label, variants, isa, steps * sum(sizes), wrong)


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
        for key in (*(variant.label for variant in case.variants), case.isa):
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
