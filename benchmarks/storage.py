"""How many times as fast a step is with states in fewer bytes: float32's time / theirs, both in this run.

    python benchmarks/storage.py [--rounds 9]

Steps with states in float32, bfloat16 and float8 take turns on arrays of 1e5 elements, which caches hold, and of 3e7,
which they do not. Parameters and gradients are float32. Each figure is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import Any

import numpy as np

import fastoptim as fo

STORAGES = ("float32", "bfloat16", "float8")
OPTIMIZERS: dict[str, tuple[Any, dict[str, Any]]] = {"adam": (fo.Adam, {}), "momentum": (fo.SGD, {"momentum": 0.9})}
SIZES = {10**5: 300, 3 * 10**7: 1}  # elements -> steps a round


def ratios(name: str, size: int, steps: int, threads: int, rounds: int) -> dict[str, float]:
    kind, options = OPTIMIZERS[name]
    rng = np.random.default_rng(0)
    cases = {}
    for storage in STORAGES:
        w, g = (rng.standard_normal(size).astype(np.float32) for _ in range(2))
        cases[storage] = kind(w, lr=1e-3, threads=threads, state_dtype=storage, **options), g
        cases[storage][0].step(g)
    times: dict[str, list[float]] = {storage: [] for storage in STORAGES}
    for _ in range(rounds):
        for storage, (optimizer, g) in cases.items():
            start = time.perf_counter()
            for _ in range(steps):
                optimizer.step(g)
            times[storage].append(time.perf_counter() - start)
    return {
        storage: statistics.median(a / b for a, b in zip(times["float32"], times[storage], strict=True))
        for storage in STORAGES[1:]
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    for name in OPTIMIZERS:
        for size, steps in SIZES.items():
            for threads in (1, 2):
                found = ratios(name, size, steps, threads, options.rounds)
                figures = ", ".join(f"{storage} {ratio:.2f}x" for storage, ratio in found.items())
                print(f"{name}, {size:.0e} elements, threads {threads}: {figures}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
