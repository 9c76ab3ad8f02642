"""Steps whose results any platform must reproduce: inputs made of integers, results as hashes in ``golden.json``.

`jobs` yields the steps; an executor (`by_reference`, `by_backend`, or the C program of ``tests/support/emulated``)
takes a job and returns its arrays. ``python -m tests.proofs.golden_write`` adds what is missing from the file.
``python -m tests.support.golden`` compares the installed C kernels, on each instruction set, and needs but NumPy.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastoptim.backends import Backend, KernelCall, get_backend
from fastoptim.rules import reference
from tests.support.cases import DTYPES, VARIANTS, Variant, digest, native_plan, nonnegative

FILE = Path(__file__).with_name("golden.json")
STEPS = 3
SCALE = 0.77
SIZES = (1, 3, 17, 130, 4099)
WIDE = {np.float32: (600_011, 5, 4099), np.float64: (300_017, 5, 4099)}


def integers(seed: int, n: int) -> np.ndarray:
    """The first `n` outputs of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def numbers(seed: int, n: int, dtype: type, kind: str, positive: bool = False) -> np.ndarray:
    """Floats from integers alone, of both signs.

    "ordinary": within [2**-7, 2); "tiny": around the smallest normal number, half of them subnormal; "raw": any bits.
    """
    word, digits, bias = (np.uint32, 23, 127) if dtype is np.float32 else (np.uint64, 52, 1023)
    x = (integers(seed, n) >> np.uint64(64 - 8 * np.dtype(word).itemsize)).astype(word)
    if kind != "raw":
        sign = x >> word(8 * x.itemsize - 1) << word(8 * x.itemsize - 1)
        exponent = (x >> word(digits) & word(7)) + word(bias - 7) if kind == "ordinary" else x >> word(digits) & word(1)
        x = (word(0) if positive else sign) | exponent << word(digits) | x & word((1 << digits) - 1)
    return x.view(dtype)


@dataclass
class Job:
    """Some steps over a list of arrays; `entries` are (parameter, states...), `grads` are one list per step."""

    variant: Variant
    dtype: type
    threads: int
    coefficients: list[tuple[float, ...]]
    entries: list[list[np.ndarray]]
    grads: list[list[np.ndarray]]

    def scalars(self, step: int) -> tuple[float, ...]:
        sign = -SCALE if self.variant.maximize else SCALE
        return (sign, self.variant.decay_coefficient, *self.coefficients[step])


def make_job(
    variant: Variant, dtype: type, kind: str, coefficients: list[tuple[float, ...]], sizes=SIZES, threads=1
) -> Job:
    seed = int.from_bytes(f"{variant.label} {kind}".encode(), "little") % (1 << 61)
    seeds = iter(range(seed, seed + 1000))
    entries = [
        [
            numbers(next(seeds), n, dtype, kind),
            *(numbers(next(seeds), n, dtype, kind, positive=nonnegative(name)) for name in variant.rule.states),
        ]
        for n in sizes
    ]
    grads = [[numbers(next(seeds), n, dtype, kind) for n in sizes] for _ in coefficients]
    return Job(variant, dtype, threads, coefficients, entries, grads)


def host_coefficients(variant: Variant, steps: int = STEPS) -> list[tuple[float, ...]]:
    return [variant.coefficients(t=t, first=t == 1) for t in range(1, steps + 1)]


def jobs(golden: dict) -> Iterator[tuple[str, list[Job]]]:
    """(name, jobs that are hashed together) for every variant and dtype that the file knows.

    Coefficients come from the file: they hold a power, which the C library of a platform need not round correctly.
    """
    known = {variant.label: variant for variant in VARIANTS}
    for label, rows in golden["coefficients"].items():
        coefficients = [tuple(map(float.fromhex, row.split())) for row in rows]
        for dtype in DTYPES:
            name = f"{label} {np.dtype(dtype).name}"
            yield name, [make_job(known[label], dtype, kind, coefficients) for kind in ("ordinary", "raw")]
            if label == "adam-torch-coupled-down":
                yield f"{name} wide", [make_job(known[label], dtype, "tiny", coefficients, WIDE[dtype], threads=3)]


def by_reference(job: Job) -> list[np.ndarray]:
    for step, grads in enumerate(job.grads):
        for (p, *states), g in zip(job.entries, grads, strict=True):
            reference.update(job.variant.kernel, p, g, states, job.scalars(step))
    sums = np.concatenate([reference.block_sums(g, SCALE, 1.0) for g in job.grads[-1]])
    return [*(x for entry in job.entries for x in entry), np.array([reference.tree_sum(sums)])]


def by_backend(job: Job, backend: Backend) -> list[np.ndarray]:
    params = tuple(p for p, *_ in job.entries)
    states = tuple(x for _, *states in job.entries for x in states)
    plan = native_plan(backend, job.variant.kernel, params, job.threads)
    for step, grads in enumerate(job.grads):
        if plan is None:
            rows = [(p, g, *states) for (p, *states), g in zip(job.entries, grads, strict=True)]
            backend.prepare([KernelCall(job.variant.kernel, rows)], job.threads)([job.scalars(step)])
        else:
            assert plan.step(params, tuple(grads), states, (job.scalars(step),))
    sums = backend.block_sums(job.grads[-1], SCALE, 1.0, job.threads)
    return [*(x for entry in job.entries for x in entry), np.array([reference.tree_sum(sums)])]


def hash_of(answers: list[list[np.ndarray]]) -> str:
    return digest([x for answer in answers for x in answer])


def load() -> dict:
    return json.loads(FILE.read_text())


def main() -> int:
    wanted, backend, wrong = load(), get_backend("c"), 0
    for isa in backend.isas:
        backend.set_isa(isa)
        found = {name: hash_of([by_backend(job, backend) for job in made]) for name, made in jobs(wanted)}
        other = [name for name, value in wanted["hashes"].items() if found.get(name) != value]
        print(f"{isa} {len(found) - len(other)} of {len(wanted['hashes'])} golden hashes", *other[:5])
        wrong += len(other)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
