"""Compare two builds of fastoptim in one run: how many times as long does the new one take as the old one?

    git worktree add ../old v0.1.0; (cd ../old && python setup.py build_ext --inplace)
    python benchmarks/against.py ../old . [--only adam] [--json FILE]

OLD and NEW are folders to put on the path: checkouts with their built extension, unpacked wheels, site-packages. Each
build runs in a process of its own, which lives as long as the run and keeps a case's arrays. Both are asked for short
blocks of equally many steps in the order old, new, new, old, so that whatever else the machine does hits both alike;
such a round makes one ratio. Tables show medians with quartiles, and the ratio of the least times. As it matters where
arrays happen to lie, rounds are spread over several sittings with new arrays, and "slower" or "faster" is only what was
so in every sitting and in three quarters of the rounds. Two equal builds must come out near 1; how near tells how far
to trust the rest.

Only what both builds have is used: `SGD`, `Adam`, `functional.adam`, `step(grads, max_norm=...)`, `opt.lr = rate`.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import cycle, repeat
from pathlib import Path
from typing import Any, NamedTuple

Loops = dict[str, Callable[[], Any]]

MOST_REPEATS = 200_000
SLOWER, FASTER = 1.01, 0.99  # what the near quartile and every sitting's median must exceed to count


class Case(NamedTuple):
    """What is timed; each of its loops is a row."""

    kind: str  # a function of CASES
    backend: str
    rule: str
    elements: int
    threads: int = 1

    @property
    def name(self) -> str:
        what = {"many": "1,000 arrays of ", "scheduled": "a new rate, "}.get(self.kind, "")
        threads = f", {self.threads} threads" if self.threads > 1 else ""
        return f"{self.backend}: {self.rule}, {what}{self.elements:,}{threads}"


def all_cases(threads: int) -> Iterator[Case]:
    for backend in ("c", "numba"):
        yield Case("functional", backend, "functional.adam", 10)
        yield Case("clipped", backend, "adam", 10)
        yield Case("scheduled", backend, "adam", 1_000)
        for rule in ("sgd", "momentum", "adam"):
            for elements in (10, 1_000, 100_000, 10_000_000):
                if (rule, elements) != ("adam", 10):  # stands above, beside its clipped form
                    yield Case("step", backend, rule, elements)
                if threads > 1 and elements >= 100_000:
                    yield Case("step", backend, rule, elements, threads)
        for number in sorted({1, threads}):
            yield Case("many", backend, "adam", 1_000, number)


# --- a worker: one build, in a process of its own -----------------------------------------------------------------


def _arrays(count: int, elements: int) -> list[Any]:
    import numpy as np

    rng = np.random.default_rng(0)
    return [rng.standard_normal(elements, np.float32) for _ in range(count)]


def _optimizer(case: Case, params: list[Any]) -> Any:
    import fastoptim as fo

    options: dict[str, Any] = {"lr": 1e-4, "backend": case.backend, "threads": case.threads}
    if case.rule == "adam":
        return fo.Adam(params, **options)
    return fo.SGD(params, momentum=0.9 if case.rule == "momentum" else 0.0, **options)


def step(case: Case, count: int = 1) -> Loops:
    params, grads = _arrays(count, case.elements), _arrays(count, case.elements)
    opt = _optimizer(case, params)
    return {"": lambda: opt.step(grads)}


def many(case: Case) -> Loops:
    return step(case, 1_000)


def scheduled(case: Case) -> Loops:
    params, grads = _arrays(1, case.elements), _arrays(1, case.elements)
    opt, rates = _optimizer(case, params), cycle([1e-4, 2e-4])

    def call() -> None:
        opt.lr = next(rates)
        opt.step(grads)

    return {"": call}


def clipped(case: Case) -> Loops:
    return step(case) | {", clipped": step_clipped(case)}


def step_clipped(case: Case) -> Callable[[], Any]:
    params, grads = _arrays(1, case.elements), _arrays(1, case.elements)
    opt = _optimizer(case, params)
    return lambda: opt.step(grads, max_norm=1.0)


def functional(case: Case) -> Loops:
    import numpy as np

    import fastoptim as fo

    (p,), (g,) = _arrays(1, case.elements), _arrays(1, case.elements)
    m, v = np.zeros_like(p), np.zeros_like(p)
    counter = [0]

    def call() -> None:
        counter[0] += 1
        fo.functional.adam(p, g, m, v, step=counter[0], lr=1e-4, backend=case.backend, threads=case.threads)

    return {"": call}


CASES = {"step": step, "many": many, "scheduled": scheduled, "clipped": clipped, "functional": functional}


def work(folder: str) -> None:
    """Serve requests, lines of JSON on standard input, until it is closed."""
    replies, sys.stdout = sys.stdout, sys.stderr
    import fastoptim as fo
    from fastoptim.backends import get_backend

    found = Path(fo.__file__).resolve().parent.parent
    error = None if found == Path(folder).resolve() else "this folder holds no fastoptim; another one was imported"
    try:
        isa = get_backend("c").isa
    except ImportError:
        isa = None
    hello = {"error": error, "version": fo.__version__, "isa": isa}
    print(json.dumps(hello), file=replies, flush=True)
    gc.disable()
    loops: Loops = {}
    for line in sys.stdin:
        request = json.loads(line)
        answer: Any = None
        if request["do"] == "ready":
            loops = {}
            gc.collect()
            case = Case(*request["case"])
            try:
                loops = CASES[case.kind](case)
                for call in loops.values():
                    for _ in range(3):
                        call()
                answer = list(loops)
            except Exception as failure:
                answer = f"{type(failure).__name__}: {failure}"
        else:
            call, repeats = loops[request["loop"]], request["repeats"]
            for _ in repeat(None, max(1, repeats // 8)):  # caches and threads were the other build's
                call()
            start = time.perf_counter()
            for _ in repeat(None, repeats):
                call()
            answer = (time.perf_counter() - start) / repeats
        print(json.dumps(answer), file=replies, flush=True)


# --- the parent ---------------------------------------------------------------------------------------------------


class Worker:
    """One build."""

    def __init__(self, folder: Path):
        cache = tempfile.mkdtemp(prefix="against-")  # of compiled code, which two builds must not share
        atexit.register(shutil.rmtree, cache, ignore_errors=True)
        environment = os.environ | {"PYTHONPATH": str(folder.resolve()), "NUMBA_CACHE_DIR": cache}
        command = [sys.executable, __file__, "--worker", str(folder.resolve())]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=folder
        )
        self.about = self._receive()
        if self.about["error"]:
            raise SystemExit(f"{folder}: {self.about['error']}")
        self.about["commit"] = commit(folder)

    def _receive(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker ended with status {self.process.wait()}; its message stands above")
        return json.loads(line)

    def ask(self, **request: Any) -> Any:
        assert self.process.stdin is not None
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return self._receive()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def commit(folder: Path) -> str:
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    return (
        subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "not from a repository"
    )


def quartiles(values: list[float]) -> list[float]:
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else 3 * values


class Timing(NamedTuple):
    """Seconds a step of one loop, round by round: two blocks of each build make a round."""

    old: list[float]
    new: list[float]

    def row(self, name: str, sittings: int) -> dict[str, Any]:
        ratios = [b / a for a, b in zip(self.old, self.new, strict=True)]
        q1, median, q3 = quartiles(ratios)
        each = len(ratios) // sittings
        medians = [statistics.median(ratios[i : i + each]) for i in range(0, len(ratios), each)]
        slower, faster = min(q1, *medians) > SLOWER, max(q3, *medians) < FASTER
        verdict = "slower" if slower else "faster" if faster else ""
        times = {"old_us": 1e6 * statistics.median(self.old), "new_us": 1e6 * statistics.median(self.new)}
        times["least_ratio"] = min(self.new) / min(self.old)
        spread = {"q1": q1, "q3": q3, "least_sitting": min(medians), "greatest_sitting": max(medians)}
        return {"case": name} | times | {"ratio": median} | spread | {"rounds": len(ratios), "verdict": verdict}


def measure(case: Case, old: Worker, new: Worker, rounds: int, sittings: int, seconds: float) -> dict[str, Timing]:
    """Rounds of old, new, new, old for every loop of a case; RuntimeError if a build cannot do it."""
    times: dict[str, Timing] = {}
    for _ in range(sittings):
        ready = [worker.ask(do="ready", case=case) for worker in (old, new)]
        for build, answer in zip(("old", "new"), ready, strict=True):
            if isinstance(answer, str):
                raise RuntimeError(f"the {build} build: {answer}")
        repeats = {}
        for loop in ready[0]:
            spent = min(worker.ask(do="run", loop=loop, repeats=3) for worker in (old, new))
            repeats[loop] = max(1, min(MOST_REPEATS, round(seconds / spent)))
        for _ in range(-(-rounds // sittings)):
            for loop in ready[0]:
                blocks = []
                for worker in (old, new, new, old):
                    time.sleep(0.003)  # the threads of the other build stop spinning
                    blocks.append(worker.ask(do="run", loop=loop, repeats=repeats[loop]))
                timing = times.setdefault(loop, Timing([], []))
                timing.old.append((blocks[0] + blocks[3]) / 2)
                timing.new.append((blocks[1] + blocks[2]) / 2)
    return times


def time_text(microseconds: float) -> str:
    return f"{microseconds:9.2f} us" if microseconds < 1e4 else f"{microseconds / 1e3:9.2f} ms"


def show(row: dict[str, Any]) -> None:
    times = f"{time_text(row['old_us'])} {time_text(row['new_us'])}"
    spread = f"[{row['q1']:.3f}, {row['q3']:.3f}]"
    ratios = f"{row['ratio']:7.3f}  {spread:16} {row['least_ratio']:6.3f}"
    print(f"{row['case']:44} {times} {ratios}  {row['verdict']}", flush=True)


def clipping_row(case: Case, times: dict[str, Timing]) -> dict[str, Any]:
    """How many times as long clipped steps take as plain ones, in each build."""
    factors = [
        statistics.median(b / a for a, b in zip(plain, clip, strict=True))
        for plain, clip in zip(times[""], times[", clipped"], strict=True)
    ]
    print(f"{'':44} clipped over plain: {factors[0]:.2f} in the old build, {factors[1]:.2f} in the new")
    return {"case": f"{case.name}: clipped over plain", "old": factors[0], "new": factors[1]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path, nargs="?", help="folder of the build to compare with")
    parser.add_argument("new", type=Path, nargs="?", help="folder of the other build")
    parser.add_argument("--rounds", type=int, default=60, help="rounds of a case (default: %(default)s)")
    parser.add_argument("--sittings", type=int, default=5, help="how often arrays are new (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=0.005, help="length of a block (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="for large arrays, beside 1 (default: %(default)s)")
    parser.add_argument("--only", default="", help="only cases whose name holds this, as 'c: adam' (default: all)")
    sizes = "only plain steps in C over arrays of these sizes (default: all cases)"
    parser.add_argument("--elements", type=int, nargs="+", metavar="N", help=sizes)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker)
        return 0
    if options.new is None:
        parser.error("two folders are needed, OLD and NEW")
    old, new = Worker(options.old), Worker(options.new)
    for name, worker in (("old", old), ("new", new)):
        print(f"{name}: {', '.join(f'{key} {value}' for key, value in worker.about.items() if value)}")
    print(f"{'':44} {'old':>12} {'new':>12} {'new/old':>7}  {'quartiles':16}  least")
    rows, others = [], []
    cases = all_cases(options.threads)
    if options.elements:
        threads = sorted({1, options.threads})
        cases = (
            Case("step", "c", rule, n, number)
            for rule in ("sgd", "momentum", "adam")
            for n in options.elements
            for number in (threads if n >= 100_000 else threads[:1])
        )
    for case in cases:
        if options.only not in case.name:
            continue
        try:
            times = measure(case, old, new, options.rounds, options.sittings, options.seconds)
        except RuntimeError as error:
            print(f"{case.name:44} not timed: {error}")
            others.append({"case": case.name, "not timed": str(error)})
            continue
        for loop, timing in times.items():
            rows.append(timing.row(case.name + loop, options.sittings))
            show(rows[-1])
        if case.kind == "clipped":
            others.append(clipping_row(case, times))
    for worker in (old, new):
        worker.close()
    if not rows:
        print("nothing was timed")
        return 2
    ratios = quartiles([row["ratio"] for row in rows])
    counts = {name: sum(row["verdict"] == name for row in rows) for name in ("slower", "faster")}
    print(f"\n{len(rows)} rows: {counts['slower']} slower, {counts['faster']} faster, the others within noise")
    print(f"median of the ratios {ratios[1]:.3f}, quartiles {ratios[0]:.3f} to {ratios[2]:.3f}")
    if options.json:
        about = {"old": old.about, "new": new.about, "load_average": os.getloadavg()[0]}
        options.json.write_text(json.dumps(about | {"rows": rows, "others": others}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
