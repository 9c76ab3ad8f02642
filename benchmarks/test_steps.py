"""pytest-benchmark suites over the tables of rules, backends, dtypes and sizes.

    pytest benchmarks/test_steps.py                                     # everything, some minutes
    pytest benchmarks/test_steps.py -k "adam and c" --benchmark-json c.json
    pytest benchmarks/test_steps.py --benchmark-autosave                # later: --benchmark-compare

Every case is checked against the reference first; a backend whose result is not equal is not timed: its test fails.
``extra_info`` holds the bytes that a step must move, GB/s, threads and the instruction set. `fastoptim bench` measures
more carefully (interleaved rounds, a process for each library) and writes a report; these suites are for watching one
number while working on it.
"""

from __future__ import annotations

import pytest

from fastoptim.backends import available, get_backend
from fastoptim.bench.cases import Case, clip_case, list_case, size_case, thread_counts
from fastoptim.bench.subjects import SUBJECTS
from fastoptim.bench.worker import Bench
from fastoptim.common.threads import usable_cores
from fastoptim.rules.table import RULES

BACKENDS = {"c": "c", "numba": "numba", "reference": "numpy"}  # subject -> backend
SIZES = (10**3, 10**5, 10**7)
THREADS = thread_counts(usable_cores(), full=False)

pytest.importorskip("pytest_benchmark", reason="needs pytest-benchmark: pip install pytest-benchmark")


def run(benchmark, subject: str, case: Case, loop: str = "step") -> None:
    """Check the case, then time one loop of it."""
    backend = BACKENDS[subject]
    missing = available(backend)
    if missing:
        pytest.skip(f"backend {backend!r} is missing here: {missing}")
    bench = Bench(SUBJECTS[subject])
    verdict = bench.ready(case, block_seconds=0.0, check=True)["check"]
    assert verdict.startswith("bit-identical")
    step, prepare = bench.loops[loop]
    benchmark.group = case.name
    if prepare is None:
        benchmark(step)
    else:
        numbers = iter(range(10**9))
        benchmark.pedantic(step, setup=lambda: prepare(next(numbers)), rounds=50)
    benchmark.extra_info |= {
        "backend": backend,
        "bytes": case.moved_bytes,
        "GB/s": round(case.moved_bytes / benchmark.stats["median"] / 1e9, 3) if benchmark.stats else None,
        "threads": case.threads,
        "isa": get_backend(backend).info().get("isa"),
        "check": verdict,
    }


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("elements", SIZES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rule", list(RULES))
@pytest.mark.parametrize("subject", list(BACKENDS))
def test_step(benchmark, subject, rule, dtype, elements, threads):
    run(benchmark, subject, size_case(rule, elements, threads, dtype))


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("elements", SIZES)
@pytest.mark.parametrize("rule", list(RULES))
def test_roofline(benchmark, rule, elements, threads):
    run(benchmark, "c", size_case(rule, elements, threads), loop="roofline")


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("gradients", ["reused", "fresh"])
@pytest.mark.parametrize("subject", list(BACKENDS))
def test_list_of_1000(benchmark, subject, gradients, threads):
    run(benchmark, subject, list_case(threads, gradients))


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("subject", list(BACKENDS))
def test_clipping(benchmark, subject, threads):
    run(benchmark, subject, clip_case(10**6, threads))
