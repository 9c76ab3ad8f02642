"""Times a step of every update rule against the memory it moves, and against torch: python benchmarks/rules_roofline.py

The roofline of a rule is a loop that reads and writes what its step does (parameter and states read and written, the
gradient read) and computes next to nothing, with the same chunks and threads. It, fastoptim's step and torch's foreach
and fused steps take turns, and a row shows medians of the rounds' ratios, so that they do not depend on what else the
machine does. A dash stands where torch has no such optimizer or form.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
from statistics import median
from time import perf_counter

import numpy as np

from fastoptim.bench.cases import Case, size_case
from fastoptim.bench.subjects import SUBJECTS, Stepper, Unsupported, make_stepper
from fastoptim.common.threads import usable_cores
from fastoptim.rules.table import RULES

TORCH = ("torch-foreach", "torch-fused")


def loops(case: Case) -> dict[str, Stepper]:
    """Name -> what takes a turn, each on arrays of its own and warmed up."""
    rng = np.random.default_rng(0)
    p, g = (rng.standard_normal(case.elements, np.float32) for _ in range(2))
    found = {}
    for name in ("c", *TORCH):
        with contextlib.suppress(Unsupported, ModuleNotFoundError):
            found[name] = make_stepper(SUBJECTS[name], case, [p.copy()], [[g.copy()]])
            found[name].step()
    bare = make_stepper(SUBJECTS["c"], case, [p], [[g]])
    bare.step()  # which makes the states
    found["roofline"] = Stepper(bare.roofline_loops["roofline"](), bare.values)
    found["roofline"].step()
    return found


def timed(case: Case, rounds: int) -> dict[str, list[float]]:
    """Seconds of every loop in every round."""
    turns = loops(case)
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for k in range(rounds):
        for name in [*turns] if k % 2 else [*reversed(turns)]:
            if turns[name].prepare is not None:
                turns[name].prepare(k)  # gives back the gradients that torch has overwritten
            start = perf_counter()
            turns[name].step()
            seconds[name].append(perf_counter() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rules", nargs="*", default=[*RULES], help="names of rules; all by default")
    parser.add_argument("--elements", type=int, default=20_000_000, help="float32; should be far above the caches")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    if unknown := sorted({*options.rules} - {*RULES}):
        parser.error(f"no such rules: {unknown}; there are {[*RULES]}")
    print(f"{options.elements:,} float32 elements, {options.threads} threads, medians of {options.rounds} rounds")
    print(f"{'rule':26}{'streams':>8}{'ms':>9}{'GB/s':>8}{'of roofline':>13}{'foreach':>10}{'fused':>8}")
    for rule in options.rules:
        case = size_case(rule, options.elements, options.threads)
        seconds = timed(case, options.rounds)
        own = seconds["c"]
        share = median(bare / mine for bare, mine in zip(seconds["roofline"], own, strict=True))
        others = [
            f"{median(theirs / mine for theirs, mine in zip(seconds[name], own, strict=True)):.2f}x"
            if name in seconds
            else "-"
            for name in TORCH
        ]
        rate = case.moved_bytes / median(own) / 1e9
        print(
            f"{rule:26}{RULES[rule].memory_streams:8}{median(own) * 1e3:9.2f}{rate:8.1f}{share:13.0%}"
            f"{others[0]:>10}{others[1]:>8}",
            flush=True,
        )
        gc.collect()


if __name__ == "__main__":
    main()
