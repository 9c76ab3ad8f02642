"""The speed that fastoptim promises, row by row, measured as ratios within one run.

    python benchmarks/bar.py [--quick] [--rounds 21] [--out benchmarks/results/bar.json]

Every row interleaves its contestants round by round and takes the median of the ratios of each round; the interquartile
range stands beside it. Where arrays happen to lie changes times in cache by up to a fifth, so rounds are spread over
several sittings, each with arrays of its own; in memory, contestants share theirs. A row passes if the median reaches
its bar; a row that asks to be no slower passes unless the whole interquartile range is more than 1 % slower, as losses
are counted in reports. Peers: torch ``fused=True`` (2.13.0, CPU), plain NumPy, and the roofline loop of the extension,
which moves the memory streams of the rule and computes next to nothing, on the same threads, chunks and pages.
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
from typing import Any

import numpy as np
import torch

import fastoptim as fo
from fastoptim.backends import get_backend
from fastoptim.backends.base import Member, Runs, count_of_steps
from fastoptim.bench.cases import GPT2_SMALL
from fastoptim.bench.statistics import summarise, verdict
from fastoptim.rules.table import RULES, Kernel

LR = np.float32(1e-3)
ADAM = (0.9, 0.1, 0.999, 0.001, 1e-3, 1.0, 1e-8)  # coefficients of the rule

c = get_backend("c")
rows: list[dict] = []


def clock(function, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - start) / calls


def rounds_of(
    make: Callable[[], dict], rounds: int, seconds: float = 0.02, sittings: int = 3
) -> dict[Any, list[float]]:
    """Seconds per call of every function that `make` returns, round by round, about `seconds` in each."""
    times: dict[Any, list] = {}
    for _ in range(sittings):
        functions, calls = make(), {}
        for name, function in functions.items():
            for _ in range(3):
                function()
            calls[name] = max(1, round(seconds / max(clock(function, 1), 1e-7)))
        for _ in range(-(-rounds // sittings)):
            for name, function in functions.items():
                time.sleep(0.02)  # the threads of the contestant before stop spinning,
                clock(function, max(1, calls[name] // 8))  # and this one's wake up
                times.setdefault(name, []).append(clock(function, calls[name]))
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


def ratio(times: dict[str, list[float]], above: str, below: str) -> list[float]:
    return [a / b for a, b in zip(times[above], times[below], strict=True)]


def ns(times: dict[str, list[float]], n: int) -> str:
    return "  ".join(f"{name} {statistics.median(t) / n * 1e9:.3f}" for name, t in times.items()) + " ns/element"


# --- contestants: each gets arrays of its own, but in memory


SAMPLE = np.random.default_rng(0).standard_normal(1 << 20, np.float32)


def filled(shape):
    x = np.empty(shape, np.float32)
    flat = x.reshape(-1)
    for start in range(0, x.size, SAMPLE.size):
        part = flat[start : start + SAMPLE.size]
        part[...] = SAMPLE[: part.size]
    return x


def arrays(shapes):
    return [filled(shape) for shape in shapes]


def optimizer(rule, p, threads):
    return {"sgd": fo.SGD, "momentum": partial(fo.SGD, momentum=0.9), "adam": fo.Adam}[rule](p, lr=LR, threads=threads)


def ours(rule, shapes, threads):
    opt, g = optimizer(rule, arrays(shapes), threads), arrays(shapes)
    return lambda: opt.step(g)


def native_adam(p, g, m, v, threads):
    """Adam's native call by itself."""
    plan = c.plan(Runs.one(Kernel(RULES["adam"], "none"), [Member.of(p)]), count_of_steps(), threads)
    return partial(plan.step, (p,), (g,), (m, v), ((1.0, 0.0, *ADAM),))


def torch_parameters(params, grads):
    parameters = [torch.from_numpy(x) for x in params]
    for parameter, g in zip(parameters, grads, strict=True):
        parameter.grad = torch.from_numpy(g)
    return parameters


def torch_optimizer(rule, parameters):
    lr = float(LR)
    return {
        "sgd": lambda: torch.optim.SGD(parameters, lr=lr, fused=True),
        "momentum": lambda: torch.optim.SGD(parameters, lr=lr, momentum=0.9, fused=True),
        "adam": lambda: torch.optim.Adam(parameters, lr=lr, fused=True),
    }[rule]()


def numpy_in_place(rule, n):
    p, g, v, scratch = *arrays([n, n]), np.zeros(n, np.float32), np.empty(n, np.float32)
    mu = np.float32(0.9)

    def sgd():
        np.multiply(g, LR, out=scratch)
        np.subtract(p, scratch, out=p)

    def momentum():
        np.multiply(v, mu, out=v)
        np.add(v, g, out=v)
        np.multiply(v, LR, out=scratch)
        np.subtract(p, scratch, out=p)

    return {"sgd": sgd, "momentum": momentum}[rule]


def numpy_naive_adam(n):
    w = {"p": arrays([n])[0], "m": np.zeros(n, np.float32), "v": np.zeros(n, np.float32), "t": 0}
    g = arrays([n])[0]

    def step():
        w["t"] += 1
        w["m"] = 0.9 * w["m"] + (1 - 0.9) * g
        w["v"] = 0.999 * w["v"] + (1 - 0.999) * g**2
        m_hat = w["m"] / (1 - 0.9 ** w["t"])
        v_hat = w["v"] / (1 - 0.999 ** w["t"])
        w["p"] = w["p"] - 1e-3 * m_hat / (np.sqrt(v_hat) + 1e-8)

    return step


# --- rows


def on_the_same_pages(rule, shapes, threads):
    """fastoptim, the roofline loop and torch over the same arrays: where these lie changes times by some per cent."""
    p, g = arrays(shapes), arrays(shapes)
    opt = optimizer(rule, p, threads)
    opt.step(g)
    states = [tuple(state[name] for name in RULES[rule].states) for state in opt.state.values()]
    parameters = torch_parameters(p, g)
    peer = torch_optimizer(rule, parameters)
    peer.step()
    for parameter, own in zip(parameters, states, strict=True):
        peer.state[parameter].update(zip(RULES[rule].states, map(torch.from_numpy, own), strict=True))
    return {"fastoptim": lambda: opt.step(g), "roofline": c.roofline(rule, p, g, states, threads), "torch": peer.step}


def memory_rows(sizes, rounds):
    for n in sizes:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for rule in ("sgd", "momentum", "adam"):
                times = rounds_of(
                    lambda rule=rule, n=n, threads=threads: on_the_same_pages(rule, [n], threads),
                    rounds,
                    sittings=1 if n > 10**7 else 3,
                )
                what = f"{rule}, N = {n:.0e}, {threads} thread{'s' * (threads > 1)}"
                record(
                    f"{what}: share of the roofline", ratio(times, "roofline", "fastoptim"), 0.95, True, ns(times, n)
                )
                record(f"{what}: against torch fused", ratio(times, "torch", "fastoptim"), None, True, "")


def small_adam_rows(rounds):
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for n, bar in ((1000, 12), (10_000, 7), (100_000, 2.5), (1_000_000, 1.5)):
            times = rounds_of(
                lambda n=n, threads=threads: {
                    "fastoptim": ours("adam", [n], threads),
                    "torch": torch_optimizer("adam", torch_parameters(arrays([n]), arrays([n]))).step,
                },
                rounds,
            )
            what = f"adam, N = {n:.0e}, {threads} thread{'s' * (threads > 1)}: against torch fused"
            record(what, ratio(times, "torch", "fastoptim"), bar, True, ns(times, n))


def numpy_rows(rounds, large):
    for rule in ("sgd", "momentum"):
        for n in (1000, 10_000, 100_000, 1_000_000, 10_000_000):
            times = rounds_of(
                lambda rule=rule, n=n: {"fastoptim": ours(rule, [n], 1), "NumPy": numpy_in_place(rule, n)}, rounds
            )
            what = f"{rule}, N = {n:.0e}, 1 thread: against NumPy in place"
            record(what, ratio(times, "NumPy", "fastoptim"), 1.0 if n == 1000 else 1.5, True, ns(times, n))
    for n in large:
        times = rounds_of(
            lambda n=n: {"fastoptim": ours("adam", [n], 1), "NumPy": numpy_naive_adam(n)},
            max(5, rounds // 3),
            sittings=1,
        )
        what = f"adam, N = {n:.0e}, 1 thread: against naive NumPy"
        record(what, ratio(times, "NumPy", "fastoptim"), 10, True, ns(times, n))


def kernel_rows(rounds):
    n = 100_000
    worst: list[float] = []
    details = ""
    for offset in range(16):

        def make(offset=offset):
            x = [np.empty(n + 32, np.float32) for _ in range(4)]
            x = [y[-y.__array_interface__["data"][0] % 64 // 4 + offset :][:n] for y in x]
            for y in x:
                y[...] = np.abs(arrays([n])[0]) + 0.1
            limit = c.root_and_divide(np.ones(n, np.float32), np.ones(n, np.float32))
            return {"kernel": native_adam(*x, threads=1), "limit": limit}

        times = rounds_of(make, rounds)
        ratios = ratio(times, "kernel", "limit")
        if not worst or statistics.median(ratios) > statistics.median(worst):
            worst, details = ratios, f"offset {4 * offset} bytes, {ns(times, n)}"
    what = f"adam kernel in cache on {c.isa}, worst of 16 offsets: against sqrt + divide"
    record(what, worst, 1.12, False, details)


def many_rows(rounds):
    shapes, n = [(1000,)] * 1000, 10**6

    def new_gradients(threads):
        sets = [arrays(shapes) for _ in range(8)]  # two sets never follow each other
        tensors = [[torch.from_numpy(g) for g in grads] for grads in sets]
        parameters = torch_parameters(arrays(shapes), arrays(shapes))
        opt, peer = optimizer("adam", arrays(shapes), threads), torch_optimizer("adam", parameters)
        turn = [0]

        def step():
            turn[0] += 1
            opt.step(sets[turn[0] % 8])

        def torch_step():
            turn[0] += 1
            for parameter, g in zip(parameters, tensors[turn[0] % 8], strict=True):
                parameter.grad = g
            peer.step()

        return {"fastoptim": step, "torch": torch_step}

    for threads in (2, 1):
        torch.set_num_threads(threads)
        what = f"1,000 x 1,000, {threads} thread{'s' * (threads > 1)}"
        times = rounds_of(
            lambda threads=threads: {
                "fastoptim": ours("adam", shapes, threads),
                "one array": ours("adam", [n], threads),
                "a tenth of sqrt + divide": c.root_and_divide(
                    np.ones(n // 10, np.float32), np.ones(n // 10, np.float32)
                ),
            },
            rounds,
        )
        record(f"{what}: against one array of 1e6", ratio(times, "fastoptim", "one array"), 1.3, False, ns(times, n))
        limit = 10 * statistics.median(times["a tenth of sqrt + divide"]) / threads
        for gradients, bar, make in (
            (
                "reused",
                20,
                lambda threads=threads: {
                    "fastoptim": ours("adam", shapes, threads),
                    "torch": torch_optimizer("adam", torch_parameters(arrays(shapes), arrays(shapes))).step,
                },
            ),
            ("new", 18, lambda threads=threads: new_gradients(threads)),
        ):
            times = rounds_of(make, rounds)
            most = statistics.median(times["torch"]) / limit
            record(
                f"{what}, gradients {gradients}: against torch fused",
                ratio(times, "torch", "fastoptim"),
                bar,
                True,
                f"{ns(times, n)}; sqrt and divide alone allow {most:.1f}",
            )


def gpt2_rows(rounds):
    n = sum(int(np.prod(shape)) for shape in GPT2_SMALL)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        times = rounds_of(
            lambda threads=threads: on_the_same_pages("adam", GPT2_SMALL, threads),
            rounds,
            sittings=1,
        )
        what = f"GPT-2 small, {len(GPT2_SMALL)} arrays, {n / 1e6:.0f} M, {threads} thread{'s' * (threads > 1)}"
        record(f"{what}: share of the roofline", ratio(times, "roofline", "fastoptim"), 0.95, True, ns(times, n))


def clipping_rows(sizes, rounds):
    torch.set_num_threads(1)
    for n, bar in sizes:

        def make(n=n):
            p, g = arrays([n]), arrays([n])
            opt = optimizer("adam", p, 1)
            plan = c.plan(Runs.one(Kernel(RULES["sgd"], "none"), [Member.of(x) for x in g]), count_of_steps(), 1)
            parameters = torch_parameters(arrays([n]), arrays([n]))
            peer = torch_optimizer("adam", parameters)

            def torch_clipped():
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                peer.step()

            return {
                "clipped": lambda: opt.step(g, max_norm=1.0),
                "step": lambda: opt.step(g),
                "reading pass": lambda: plan.sum_squares(tuple(g), 1.0, 1.0),
                "torch": torch_clipped,
            }

        times = rounds_of(make, rounds, sittings=1 if n > 10**7 else 3)
        parts = [a / (b + d) for a, b, d in zip(times["clipped"], times["step"], times["reading pass"], strict=True)]
        what = f"clipping in the step, N = {n:.0e}"
        record(f"{what}: against step + one reading pass", parts, 1.1, False, ns(times, n))
        record(f"{what}: against torch clip + fused", ratio(times, "torch", "clipped"), bar, True, "")


def disturbed_rows(rounds):
    def pair(n):
        """The same arrays on one and on two threads, through the native call, so that nothing else differs."""
        shared = *arrays([n, n]), np.zeros(n, np.float32), np.zeros(n, np.float32)
        return {threads: native_adam(*shared, threads) for threads in (1, 2)}

    for n in (10_000, 100_000, 1_000_000):
        times: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(6):
            steps = pair(n)
            for _ in range(rounds):
                for threads, step in steps.items():
                    time.sleep(0.012)
                    times[threads].append(clock(step, 1))
        what = f"adam, N = {n:.0e}, after 12 ms idle: 2 threads against 1"
        record(what, ratio(times, 2, 1), None, False, "")
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        for n in (10_000, 100_000, 1_000_000, 10_000_000):
            times = rounds_of(lambda n=n: pair(n), rounds, seconds=0.1, sittings=7)
            what = f"adam, N = {n:.0e}, one core busy: 2 threads against 1"
            record(what, ratio(times, 2, 1), None, False, "")
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
