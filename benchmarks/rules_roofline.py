"""Times a step of every update rule against the memory it moves, and against torch: python benchmarks/rules_roofline.py

The roofline of a rule is a loop that reads and writes what its step does (parameter and states read and written, the
gradient read) and computes next to nothing, with the same chunks and threads. It, fastoptim's step and torch's foreach
and fused steps take turns, and a row shows medians of the rounds' ratios, so that they do not depend on what else the
machine does. A dash stands where torch has no such optimizer or form.

Steps that depend on norms of whole arrays (`MEASURING`) read some of their streams once more, before anything is
written; their roofline is that of the rule and a pass that reads as many arrays, for their norm.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
from collections.abc import Callable
from functools import partial
from statistics import median
from time import perf_counter

import numpy as np

import fastoptim as fo
from fastoptim.bench.cases import Case, size_case
from fastoptim.bench.subjects import SUBJECTS, Stepper, Unsupported, make_stepper, settle
from fastoptim.common.threads import usable_cores
from fastoptim.rules.table import RULES

TORCH = ("torch-foreach", "torch-fused")
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


def loops(case: Case) -> dict[str, Stepper]:
    """Name -> what takes a turn, each on arrays of its own."""
    rng = np.random.default_rng(0)
    p, g = (rng.standard_normal(case.elements, np.float32) for _ in range(2))
    found = {}
    for name in ("c", *TORCH):
        with contextlib.suppress(Unsupported, ModuleNotFoundError):
            found[name] = make_stepper(SUBJECTS[name], case, [p.copy()], [[g.copy()]])
    bare = make_stepper(SUBJECTS["c"], case, [p], [[g]])
    bare.step()  # which makes the states
    found["roofline"] = Stepper(bare.roofline_loops["roofline"](), bare.values)
    return found


def measuring_loops(name: str, case: Case) -> dict[str, Stepper]:
    """As `loops`, for one of `MEASURING`."""
    rng = np.random.default_rng(0)
    p, g = (rng.standard_normal(case.elements, np.float32) for _ in range(2))
    bare = [x.copy() for x in (p, g, *(p for _ in RULES[case.rule].states))]
    opt = MEASURING[name][0](p, threads=case.threads, backend="c")
    loop = opt._backend.roofline(case.rule, bare[:1], bare[1:2], [tuple(bare[2:])], case.threads)
    read = bare[: MEASURING[name][2]]

    def roofline() -> None:
        opt._backend.norm(read, 1.0, case.threads)
        loop()

    found = {"c": Stepper(lambda: opt.step(g), lambda: [p]), "roofline": Stepper(roofline, lambda: bare)}
    return found


def timed(turns: dict[str, Stepper], rounds: int) -> dict[str, list[float]]:
    """Seconds of every loop in every round."""
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for stepper in turns.values():
        settle(stepper.step)
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
    every = [*dict.fromkeys([*RULES, *MEASURING])]
    parser.add_argument("rules", nargs="*", default=every, help="names of rules or of `MEASURING`; all by default")
    parser.add_argument("--elements", type=int, default=20_000_000, help="float32; should be far above the caches")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    if unknown := sorted({*options.rules} - {*every}):
        parser.error(f"no such rules: {unknown}; there are {every}")
    print(f"{options.elements:,} float32 elements, {options.threads} threads, medians of {options.rounds} rounds")
    print(f"{'rule':26}{'streams':>8}{'ms':>9}{'GB/s':>8}{'of roofline':>13}{'foreach':>10}{'fused':>8}")
    for rule in options.rules:
        _, row, read = MEASURING.get(rule, (None, rule, 0))
        case = size_case(row, options.elements, options.threads)
        seconds = timed(measuring_loops(rule, case) if read else loops(case), options.rounds)
        own, streams = seconds["c"], RULES[row].memory_streams
        longer = (streams + read) / streams
        share = median(bare / mine for bare, mine in zip(seconds["roofline"], own, strict=True))
        others = [
            f"{median(theirs / mine for theirs, mine in zip(seconds[name], own, strict=True)):.2f}x"
            if name in seconds
            else "-"
            for name in TORCH
        ]
        rate = longer * case.moved_bytes / median(own) / 1e9
        print(
            f"{rule:26}{streams + read:8}{median(own) * 1e3:9.2f}{rate:8.1f}{share:13.0%}{others[0]:>10}{others[1]:>8}",
            flush=True,
        )
        gc.collect()


if __name__ == "__main__":
    main()
