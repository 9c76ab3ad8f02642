"""Times a step of every update rule against the memory it moves, Numba and torch: python benchmarks/rules_roofline.py

The roofline of a rule is a loop that reads and writes what its step does (parameter and states read and written, the
gradient read) and computes next to nothing, with the same chunks and threads. It, the steps of the C and the Numba
kernels and torch's foreach and fused ones take turns, and a row shows medians of the rounds' ratios, so that they do
not depend on what else the machine does. A dash stands where there is no such optimizer or form. In memory Numba's
steps should take at most 1.1 times as long as those in C.

Steps that depend on norms of whole arrays (`MEASURING`) read some of their streams once more, before anything is
written; their roofline is that of the rule and a pass that reads as many arrays, for their norm.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable
from functools import partial
from statistics import median

import numpy as np
from turns import contestant, contestants, ratios, take_turns

import fastoptim as fo
from fastoptim.bench.cases import Case, size_case
from fastoptim.common.threads import usable_cores
from fastoptim.rules.table import RULES

OTHERS = ("numba", "torch-foreach", "torch-fused")
# Name -> what makes the optimizer, the rule that it steps by, and the streams that it reads first.
MEASURING: dict[str, tuple[Callable[..., fo.Optimizer], str, int]] = {
    "lamb": (partial(fo.LAMB, weight_decay=0.01), "adam", 4),
    "lars": (partial(fo.LARS, weight_decay=0.01), "momentum", 2),
    "novograd": (fo.NovoGrad, "novograd", 1),
    "update_clip": (partial(fo.AdamW, update_clip="rms"), "adam", 2),
    "cautious_adam": (partial(fo.AdamW, cautious=True), "cautious_adam", 2),
    "cautious_amsgrad": (partial(fo.AdamW, amsgrad=True, cautious=True), "cautious_amsgrad", 2),
    "cautious_lion": (partial(fo.Lion, cautious=True), "cautious_lion", 2),
}


def loops(name: str, case: Case) -> dict[str, Callable[[], float]]:
    """Name -> what takes a turn, each on arrays of its own."""
    if name not in MEASURING:
        return contestants(case, "c", *OTHERS)
    make, _, streams = MEASURING[name]
    rng = np.random.default_rng(0)
    p, g = (rng.standard_normal(case.elements, np.float32) for _ in range(2))
    bare = [x.copy() for x in (p, g, *(p for _ in RULES[case.rule].states))]
    opt = make(p, threads=case.threads, backend="c")
    loop = opt._backend.roofline(case.rule, bare[:1], bare[1:2], [tuple(bare[2:])], case.threads)

    def roofline() -> None:
        opt._backend.norm(bare[:streams], 1.0, case.threads)
        loop()

    return {"c": contestant(lambda: opt.step(g)), "roofline": contestant(roofline)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = [*dict.fromkeys([*RULES, *MEASURING])]
    parser.add_argument("rules", nargs="*", default=every, help="names of rules or of `MEASURING`; all by default")
    parser.add_argument("--elements", type=int, default=20_000_000, help="float32; should be far above the caches")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    if unknown := sorted({*options.rules} - {*every}):
        parser.error(f"no such rules: {unknown}; there are {every}")
    print(f"{options.elements:,} float32 elements, {options.threads} threads, medians of {options.rounds} rounds")
    print(f"{'rule':26}{'streams':>8}{'ms':>9}{'GB/s':>8}{'of roofline':>13}" + "".join(f"{x:>15}" for x in OTHERS))
    for rule in options.rules:
        _, row, read = MEASURING.get(rule, (None, rule, 0))
        case = size_case(row, options.elements, options.threads)
        times = take_turns(loops(rule, case), options.rounds)
        own, streams = median(times["c"]), RULES[row].memory_streams
        share = median(ratios(times, "roofline", "c"))
        others = [f"{median(ratios(times, name, 'c')):.2f}x" if name in times else "-" for name in OTHERS]
        rate = (streams + read) / streams * case.moved_bytes / own / 1e9
        figures = f"{streams + read:8}{own * 1e3:9.2f}{rate:8.1f}{share:13.0%}"
        print(f"{rule:26}{figures}{''.join(f'{x:>15}' for x in others)}", flush=True)
        gc.collect()


if __name__ == "__main__":
    main()
