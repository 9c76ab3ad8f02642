"""Times steps on some rows of a table against the dense step on the whole of it: python benchmarks/rows.py

Both take turns in one process, so that the ratio does not depend on what else the machine does. Every step has rows of
its own, drawn at random with repetition ("all": each once, in random order), as cold as those of a training are. The
target is that 1,024 of 200,000 rows are stepped at least 50 times as fast as all by the dense step. That step is given
its gradient; whoever has rows must make it of them first, which the second figure counts in (`numpy.add.at`).
"""

from __future__ import annotations

import argparse
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

import fastoptim as fo

KINDS: dict[str, tuple[type[fo.Optimizer], bool, dict[str, Any]]] = {
    "SGD, exact": (fo.SGD, False, {}),
    "Adagrad, exact": (fo.Adagrad, False, {}),
    "FTRL from zeros": (fo.FTRL, True, {}),
    "SparseAdam": (fo.SparseAdam, True, {}),
}


def times(
    name: str, ks: list[int], rounds: int, *, n: int = 200_000, width: int = 64, **options: Any
) -> dict[int, dict[str, float]]:
    """For each number of rows: median seconds of a step on them, and medians of the ratios to the dense step."""
    kind, lazy, given = KINDS[name]
    rng = np.random.default_rng(0)
    dense_opt, rows_opt = (
        kind(np.full((n, width), 0, np.float32), lr=1e-3, **(given | options)) for _ in ("dense", "rows")
    )
    gradient = np.empty((n, width), np.float32)
    taken: dict[int, list[tuple[float, float, float]]] = {k: [] for k in ks}
    for _ in range(rounds + 2):
        for k, pairs in taken.items():
            index = rng.permutation(n) if k == n else rng.integers(0, n, k)
            rows = fo.Rows(index, rng.standard_normal((k, width), np.float32), lazy=lazy)
            begin = perf_counter()
            gradient[...] = 0
            np.add.at(gradient, index, rows.values)
            start = perf_counter()
            dense_opt.step(gradient)
            middle = perf_counter()
            rows_opt.step(rows)
            pairs.append((start - begin, middle - start, perf_counter() - middle))
    return {
        k: {
            "rows": median(s for _, _, s in pairs[2:]),
            "ratio": median(d / s for _, d, s in pairs[2:]),
            "with gradient": median((m + d) / s for m, d, s in pairs[2:]),
        }
        for k, pairs in taken.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=200_000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--k", type=int, nargs="*", help="numbers of rows; default: from 32 to all")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--backend", default="c")
    options = parser.parse_args()
    ks = options.k or [32, 256, 1024, 4096, 16384, 65536, options.n]
    print(f"{options.n} rows of {options.width}, float32, {options.threads} threads: times as fast as the dense step")
    print(f"{'rows given':>16}" + "".join(f"{k if k < options.n else 'all':>9}" for k in ks))
    for name in KINDS:
        shape = {"n": options.n, "width": options.width}
        found = times(name, ks, options.rounds, threads=options.threads, backend=options.backend, **shape)
        print(f"{name:>16}" + "".join(f"{found[k]['ratio']:9.3g}" for k in ks), flush=True)
        print(f"{'made of rows':>16}" + "".join(f"{found[k]['with gradient']:9.3g}" for k in ks))
        print(f"{'us':>16}" + "".join(f"{found[k]['rows'] * 1e6:9.0f}" for k in ks))


if __name__ == "__main__":
    main()
