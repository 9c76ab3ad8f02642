"""Random steps that depend on norms, on every backend, bit for bit: python -m tests.proofs.random_measures [--cases N]

A case draws a class and its options, arrays (dtypes, sizes around the blocks of the norm, places in memory, ordinary
numbers, zeros or any bits), gradients of which some are None, clipping, a scale, an instruction set, a number of
threads and some steps. C on that instruction set, Numba and NumPy must leave the same bits in parameters and states,
and the same numbers beside the step counts. A case's number is its seed.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np

import fastoptim as fo
from fastoptim.backends import available, get_backend
from tests.support.cases import DTYPES, at_offset, on_threads, ordinary, raw_bits, same_bits

THREADS = (1, 2, 3, 7)
BORDERS = (1, 15, 16, 17, 4095, 4096, 4097, 8192, 12289)
CLASSES = (fo.LAMB, fo.LARS, fo.NovoGrad, fo.Adam, fo.AdamW, fo.Lion)
CHOICES: dict[str, tuple[Any, ...]] = {
    "weight_decay": (0.0, 0.03, 0.4),
    "momentum": (0.0, 0.87),
    "mode": ("paper", "optax"),
    "eps": (0.0, 3e-5),
    **dict.fromkeys(("maximize", "bias_correction", "trust_clip", "grad_averaging", "amsgrad"), (False, True)),
}


def draw_options(rng: np.random.Generator, cls: type[fo.Optimizer]) -> dict[str, Any]:
    options = {name: values[rng.integers(len(values))] for name, values in CHOICES.items() if name in cls._names}
    options["lr"] = 10 ** rng.uniform(-4, 0)
    if "cautious" in cls._names:
        options["cautious"] = cls is fo.Lion or bool(rng.integers(2))
    if "update_clip" in cls._names:
        options["update_clip"] = ("rms", 0.3, None)[rng.integers(3 if options["cautious"] else 2)]
    if options.get("momentum"):
        options["nesterov"] = bool(rng.integers(2))
    return options


def draw_arrays(rng: np.random.Generator, sizes: list[int], dtypes: list[type], kind: str) -> list[np.ndarray]:
    make = raw_bits if kind == "any bits" else ordinary
    arrays = [make(rng, n, dtype) for n, dtype in zip(sizes, dtypes, strict=True)]
    if kind == "zeros":
        arrays[0][:] = 0
    return [at_offset(x, int(rng.integers(16))) for x in arrays]


def run_case(number: int, backends: tuple[str, ...] = ("c", "numba")) -> tuple[str, list[str]]:
    """What was drawn, and what differs from NumPy's."""
    rng = np.random.default_rng(number)
    cls = CLASSES[rng.integers(len(CLASSES))]
    options, kind = draw_options(rng, cls), ("ordinary", "ordinary", "zeros", "any bits")[rng.integers(4)]
    sizes = [
        int(rng.choice(BORDERS) if rng.random() < 0.4 else rng.integers(0, 300)) for _ in range(rng.integers(1, 5))
    ]
    dtypes = [DTYPES[i] for i in rng.integers(len(DTYPES), size=len(sizes))]
    start, steps = draw_arrays(rng, sizes, dtypes, kind), []
    for _ in range(rng.integers(1, 4)):
        grads: list[Any] = draw_arrays(rng, sizes, dtypes, kind)
        if rng.random() < 0.2:
            grads[rng.integers(len(grads))] = None
        clip = ("norm", "norm_per_array", "value")[rng.integers(3)]
        asked = {"max_norm": 0.5, "clip": clip} if rng.random() < 0.3 else {}
        steps.append((grads, asked | {"grad_scale": float(rng.choice([1.0, 0.37]))}))
    c = get_backend("c")
    isa, threads = c.isas[rng.integers(len(c.isas))], THREADS[rng.integers(len(THREADS))]
    described = f"{cls.__name__} {options}: {sizes}, {kind}, {isa}, {threads=}, {[asked for _, asked in steps]}"

    def run(backend: str) -> tuple[list[np.ndarray], Any, str]:
        arrays, told = [at_offset(x, 3) for x in start], ""
        opt = cls(arrays, backend=backend, threads=threads, **options)
        for grads, asked in steps:
            try:
                opt.step(grads, **asked)
            except ValueError as error:  # a coefficient beyond its type
                told += str(error)
        return arrays, opt.state, told

    arrays, states, told = run("numpy")
    before, wrong = c.isa, []
    for backend in backends:
        c.set_isa(isa)
        try:
            with on_threads():
                mine, own, said = run(backend)
        finally:
            c.set_isa(before)
        wrong += [
            f"{backend}: parameter {i}"
            for i, (x, y) in enumerate(zip(mine, arrays, strict=True))
            if not same_bits(x, y)
        ]
        wrong += [
            f"{backend}: {name} of {key}"
            for key, entry in states.items()
            for name, x in entry.items()
            if not same_bits(np.asarray(own[key][name], float), np.asarray(x, float))
        ]
        wrong += [f"{backend}: {said!r}, not {told!r}"] if said != told else []
    return described, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    backends = ("c",) if available("numba") else ("c", "numba")
    failed = 0
    for number in range(options.first, options.first + options.cases):
        described, wrong = run_case(number, backends)
        if wrong:
            failed += 1
            print(f"case {number}: {wrong}: {described}", flush=True)
    print(f"{options.cases} cases on {', '.join(backends)} (numbers from {options.first}): {failed} differ from NumPy")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
