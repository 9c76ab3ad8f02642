"""The speed that fastoptim promises, row by row, measured as ratios within one run.

    python benchmarks/bar.py [--quick] [--rounds 21] [--out benchmarks/results/bar.json]

Every row interleaves its contestants round by round and takes the median of the ratios of each round; the interquartile
range stands beside it. Where arrays happen to lie changes times in cache by up to a fifth, so rounds are spread over
several sittings, each with arrays of its own. A row passes if the median reaches its bar; a row that asks to be no
slower passes unless the whole interquartile range is more than 1 % slower, as losses are counted in reports. Peers are
those of `fastoptim bench`: torch fused, plain NumPy, and the roofline loop of the extension, which moves the memory
streams of the rule and computes next to nothing, on the same threads, chunks and arrays.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import torch
from turns import Times, contestant, contestants, ratios, take_turns

import fastoptim as fo
from fastoptim.backends import get_backend
from fastoptim.backends.base import Member, Runs, count_of_steps
from fastoptim.bench.cases import clip_case, gpt2_case, list_case, size_case
from fastoptim.bench.results import threads_text
from fastoptim.bench.statistics import summarise, verdict
from fastoptim.rules.table import RULES, Kernel

ADAM = (0.9, 0.1, 0.999, 0.001, 1e-3, 1.0, 1e-8)  # coefficients of the rule

c = get_backend("c")
rows: list[dict] = []


def rounds_of(make: Callable[[], dict[str, Callable[[], float]]], rounds: int, sittings: int = 3) -> Times:
    """Seconds per step of every contestant that `make` returns, round by round."""
    times: Times = {}
    for _ in range(sittings):
        for name, seconds in take_turns(make(), -(-rounds // sittings)).items():
            times.setdefault(name, []).extend(seconds)
    return times


def record(what: str, ratios: list[float], bar: float | None, at_least: bool, detail: str) -> None:
    """One row; without a bar it is one that asks to be no slower (`at_least`: ratios above 1 are quicker)."""
    median, low, high, _ = summarise(ratios)
    if bar is None:
        ok = verdict(ratios if at_least else [1 / x for x in ratios]) != "loss"
        asked = "no slower"
    else:
        ok = median >= bar if at_least else median <= bar
        asked = f"{'>=' if at_least else '<='} {bar}"
    rows.append({"row": what, "median": median, "q1": low, "q3": high, "bar": asked, "passed": ok, "detail": detail})
    print(
        f"{'ok  ' if ok else 'MISS'} {what:66} {median:8.3f}  [{low:.3f}, {high:.3f}]  {asked}   {detail}", flush=True
    )


def ns(times: Times, n: int) -> str:
    return "  ".join(f"{name} {statistics.median(t) / n * 1e9:.3f}" for name, t in times.items()) + " ns/element"


def native_adam(p, g, m, v, threads):
    """Adam's native call by itself."""
    plan = c.plan(Runs.one(Kernel(RULES["adam"], "none"), [Member.of(p)]), count_of_steps(), threads)
    return partial(plan.step, (p,), (g,), (m, v), ((1.0, 0.0, *ADAM),))


def ones(*sizes):
    return [np.ones(n, np.float32) for n in sizes]


# --- rows


def memory_rows(sizes, rounds):
    for n in sizes:
        for threads in (1, 2):
            for rule in ("sgd", "momentum", "adam"):
                case = size_case(rule, n, threads)
                names = ("c", "torch-fused") if n > 10**7 else ("c", "torch-fused", "numba")
                sittings = 1 if n > 10**7 else 3
                times = rounds_of(lambda case=case, names=names: contestants(case, *names), rounds, sittings)
                what = f"{rule}, N = {n:.0e}, {threads_text(threads)}"
                record(f"{what}: share of the roofline", ratios(times, "roofline", "c"), 0.95, True, ns(times, n))
                record(f"{what}: against torch fused", ratios(times, "torch-fused", "c"), None, True, "")
                if "numba" in times:
                    record(f"{what}: Numba's kernels against C's", ratios(times, "numba", "c"), 1.1, False, "")


def small_adam_rows(rounds):
    for threads in (1, 2):
        for n, bar in ((1000, 12), (10_000, 7), (100_000, 2.5), (1_000_000, 1.5)):
            case = size_case("adam", n, threads)
            times = rounds_of(lambda case=case: contestants(case, "c", "torch-fused"), rounds)
            what = f"adam, N = {n:.0e}, {threads_text(threads)}: against torch fused"
            record(what, ratios(times, "torch-fused", "c"), bar, True, ns(times, n))


def numpy_rows(rounds, large):
    for rule in ("sgd", "momentum"):
        for n in (1000, 10_000, 100_000, 1_000_000, 10_000_000):
            case = size_case(rule, n, 1)
            times = rounds_of(lambda case=case: contestants(case, "c", "numpy-in-place"), rounds)
            what = f"{rule}, N = {n:.0e}, 1 thread: against NumPy in place"
            record(what, ratios(times, "numpy-in-place", "c"), 1.0 if n == 1000 else 1.5, True, ns(times, n))
    for n in large:
        case = size_case("adam", n, 1)
        times = rounds_of(lambda case=case: contestants(case, "c", "numpy-naive"), max(5, rounds // 3), sittings=1)
        what = f"adam, N = {n:.0e}, 1 thread: against naive NumPy"
        record(what, ratios(times, "numpy-naive", "c"), 10, True, ns(times, n))


def kernel_rows(rounds):
    n = 100_000
    worst: list[float] = []
    details = ""
    for offset in range(16):

        def make(offset=offset):
            x = ones(*4 * [n + 32])
            x = [y[-y.__array_interface__["data"][0] % 64 // 4 + offset :][:n] for y in x]
            for y in x:
                y[...] = np.abs(np.random.default_rng(0).standard_normal(n, np.float32)) + 0.1
            steps = {"kernel": native_adam(*x, threads=1), "limit": c.root_and_divide(*ones(n, n))}
            return {name: contestant(step) for name, step in steps.items()}

        times = rounds_of(make, rounds)
        found = ratios(times, "kernel", "limit")
        if not worst or statistics.median(found) > statistics.median(worst):
            worst, details = found, f"offset {4 * offset} bytes, {ns(times, n)}"
    what = f"adam kernel in cache on {c.isa}, worst of 16 offsets: against sqrt + divide"
    record(what, worst, 1.12, False, details)


def many_rows(rounds):
    n = 10**6
    for threads in (2, 1):

        def beside_one_array(threads=threads):
            found = contestants(list_case(threads), "c")
            found["one array"] = contestants(size_case("adam", n, threads), "c")["c"]
            found["a tenth of sqrt + divide"] = contestant(c.root_and_divide(*ones(n // 10, n // 10)))
            return {name: found[name] for name in ("c", "one array", "a tenth of sqrt + divide")}

        what = f"1,000 x 1,000, {threads_text(threads)}"
        times = rounds_of(beside_one_array, rounds)
        record(f"{what}: against one array of 1e6", ratios(times, "c", "one array"), 1.3, False, ns(times, n))
        limit = 10 * statistics.median(times["a tenth of sqrt + divide"]) / threads
        for gradients, bar in (("reused", 20), ("new", 18)):
            case = list_case(threads, "fresh" if gradients == "new" else gradients)
            times = rounds_of(lambda case=case: contestants(case, "c", "torch-fused"), rounds)
            most = statistics.median(times["torch-fused"]) / limit
            record(
                f"{what}, gradients {gradients}: against torch fused",
                ratios(times, "torch-fused", "c"),
                bar,
                True,
                f"{ns(times, n)}; sqrt and divide alone allow {most:.1f}",
            )


def gpt2_rows(rounds):
    for threads in (1, 2):
        case = gpt2_case(threads)
        times = rounds_of(lambda case=case: contestants(case, "c"), rounds, sittings=1)
        what = f"{case.label}, {case.elements / 1e6:.0f} M, {threads_text(threads)}: share of the roofline"
        record(what, ratios(times, "roofline", "c"), 0.95, True, ns(times, case.elements))


def clipping_rows(sizes, rounds):
    for n, bar in sizes:

        def make(n=n):
            found = contestants(clip_case(n, 1), "c", "torch-fused")
            (g,) = ones(n)
            plan = c.plan(Runs.one(Kernel(RULES["sgd"], "none"), [Member.of(g)]), count_of_steps(), 1)
            found["step"] = contestants(size_case("adam", n, 1), "c")["c"]
            return found | {"reading pass": contestant(partial(plan.sum_squares, (g,), 1.0, 1.0))}

        times = rounds_of(make, rounds, sittings=1 if n > 10**7 else 3)
        parts = [a / (b + d) for a, b, d in zip(times["c"], times["step"], times["reading pass"], strict=True)]
        what = f"clipping in the step, N = {n:.0e}"
        record(f"{what}: against step + one reading pass", parts, 1.1, False, ns(times, n))
        record(f"{what}: against torch clip + fused", ratios(times, "torch-fused", "c"), bar, True, "")


def disturbed_rows(rounds):
    def pair(n):
        """The same arrays on one and on two threads, through the native call, so that nothing else differs."""
        shared = *ones(n, n), np.zeros(n, np.float32), np.zeros(n, np.float32)
        return {f"{threads}": native_adam(*shared, threads) for threads in (1, 2)}

    for n in (10_000, 100_000, 1_000_000):
        times: Times = {"1": [], "2": []}
        for _ in range(6):
            steps = pair(n)
            for _ in range(rounds):
                for threads, step in steps.items():
                    time.sleep(0.012)
                    start = time.perf_counter()
                    step()
                    times[threads].append(time.perf_counter() - start)
        what = f"adam, N = {n:.0e}, after 12 ms idle: 2 threads against 1"
        record(what, ratios(times, "2", "1"), None, False, "")
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        for n in (10_000, 100_000, 1_000_000, 10_000_000):
            times = rounds_of(
                lambda n=n: {threads: contestant(step, 0.1) for threads, step in pair(n).items()}, rounds, sittings=7
            )
            what = f"adam, N = {n:.0e}, one core busy: 2 threads against 1"
            record(what, ratios(times, "2", "1"), None, False, "")
    finally:
        busy.kill()


def import_row(rounds):
    def seconds(code):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return time.perf_counter() - start

    code = "import numpy; import fastoptim; fastoptim.Adam"
    beyond = [1e3 * (seconds(code) - seconds("import numpy")) for _ in range(rounds)]
    record("import fastoptim and its classes, beyond numpy, in ms", beyond, 40, False, "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="no 1e8")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--only", default="", help="only the groups whose name contains this")
    parser.add_argument("--out", type=Path, help="write the rows as JSON")
    options = parser.parse_args()
    rounds = options.rounds
    large = [10**7] if options.quick else [10**7, 10**8]
    groups = {
        "small": lambda: small_adam_rows(rounds),
        "numpy": lambda: numpy_rows(rounds, large),
        "kernel": lambda: kernel_rows(rounds),
        "many": lambda: many_rows(rounds),
        "disturbed": lambda: disturbed_rows(rounds),
        "import": lambda: import_row(rounds),
        "clipping": lambda: clipping_rows([(10**6, 2.0), (large[-1], 1.2)], max(7, rounds // 2)),
        "gpt2": lambda: gpt2_rows(rounds),
        "memory": lambda: memory_rows(large, rounds),
    }
    for name, group in groups.items():
        if options.only in name:
            group()
    missed = [row["row"] for row in rows if not row["passed"]]
    print(f"\n{len(rows) - len(missed)} of {len(rows)} rows reach their bar")
    if options.out:
        result = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "info": fo.info(),
            "torch": torch.__version__,
            "cores": os.cpu_count(),
            "rounds": rounds,
            "rows": rows,
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
        print(f"written to {options.out}")
    return bool(missed)


if __name__ == "__main__":
    raise SystemExit(main())
