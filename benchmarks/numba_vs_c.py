"""The Numba backend against the C kernels: medians of ratios of interleaved rounds in one process.

    python benchmarks/numba_vs_c.py [--sizes 100000 30000000] [--threads 1 2] [--rounds 15] [--json OUT]

Prints, per rule, size and number of threads, the time of the C backend in ns per element and how many times as long
Numba takes. Out of cache (sizes from 1e7 on) the bar is 1.10; the exit status is 1 if a median exceeds it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from functools import partial

import numpy as np

from fastoptim.backends import KernelCall, get_backend
from fastoptim.rules.table import RULES, Kernel

BAR, OUT_OF_CACHE = 1.10, 10_000_000
COEFFICIENTS = {
    "sgd": (1e-3,),
    "momentum": (0.9, 0.1, 1e-3),
    "nesterov": (0.9, 0.1, 1e-3, 0.9, 0.1),
    "adam": (0.9, 0.1, 0.999, 0.001, 1e-3, 1.1, 1e-8),
    "amsgrad": (0.9, 0.1, 0.999, 0.001, 1e-3, 1.1, 1e-8),
}


def compare(name: str, size: int, threads: int, rounds: int) -> dict[str, float | int | str]:
    """Interleaved timings of one step by both backends, on the same arrays."""
    rule = RULES[name]
    rng = np.random.default_rng(0)
    p, g, *states = (rng.random(size, dtype=np.float32) for _ in range(2 + len(rule.states)))
    calls, scalars = [KernelCall(Kernel(rule, "none"), [(p, g, *states)])], [(1.0, 0.0, *COEFFICIENTS[name])]
    steps = {key: partial(get_backend(key).prepare(calls, threads), scalars) for key in ("c", "numba")}
    repeats = max(1, 2_000_000 // size)
    times: dict[str, list[float]] = {key: [] for key in steps}
    for step in steps.values():  # compile, touch the pages, wake the threads
        step()
    for i in range(rounds):
        for key in sorted(steps, reverse=bool(i % 2)):
            start = time.perf_counter()
            for _ in range(repeats):
                steps[key]()
            times[key].append((time.perf_counter() - start) / repeats / size * 1e9)
    ratios = [n / c for n, c in zip(times["numba"], times["c"], strict=True)]
    return {
        "rule": name,
        "size": size,
        "threads": threads,
        "c_ns": round(statistics.median(times["c"]), 4),
        "numba_ns": round(statistics.median(times["numba"]), 4),
        "ratio": round(statistics.median(ratios), 3),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000, 30_000_000])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rules", nargs="+", choices=sorted(RULES), default=["sgd", "momentum", "adam"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", help="write the results to this file")
    options = parser.parse_args()
    print(f"{'rule':10} {'size':>11} {'threads':>7} {'C ns':>8} {'Numba ns':>9} {'ratio':>6}")
    results = []
    for size in options.sizes:
        for name in options.rules:
            for threads in options.threads:
                row = compare(name, size, threads, options.rounds)
                results.append(row)
                print(
                    f"{name:10} {size:11,} {threads:7} {row['c_ns']:8.3f} {row['numba_ns']:9.3f} {row['ratio']:6.2f}",
                    flush=True,
                )
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"bar": BAR, "results": results}, file, indent=1)
    slow = [row for row in results if int(row["size"]) >= OUT_OF_CACHE and float(row["ratio"]) > BAR]
    print("bar missed: " + ", ".join(f"{r['rule']}/{r['threads']}" for r in slow) if slow else "bar met")
    return bool(slow)


if __name__ == "__main__":
    sys.exit(main())
