"""Times a step on 1,024 rows of a table against the dense step on the whole of it: python benchmarks/rows.py

Both take turns in one process, so that the ratio does not depend on what else the machine does. Every step has rows of
its own, as cold as those of a training are. The target is that Adam's is at least 50 times as fast.
"""

from __future__ import annotations

import argparse
from statistics import median
from time import perf_counter

import numpy as np

import fastoptim as fo


def ratio(
    kind: type[fo.Optimizer], lazy: bool, n: int, width: int, k: int, rounds: int, **options: object
) -> dict[str, float]:
    """Median seconds of a dense step, of one on rows, and the median of the rounds' ratios."""
    rng = np.random.default_rng(0)
    dense_opt = kind(np.ones((n, width), np.float32), lr=1e-3, **options)
    rows_opt = kind(np.ones((n, width), np.float32), lr=1e-3, **options)
    gradient = np.full((n, width), 1e-3, np.float32)
    dense, sparse = [], []
    for _ in range(rounds + 2):
        rows = fo.Rows(rng.integers(0, n, k), rng.standard_normal((k, width)).astype(np.float32), lazy=lazy)
        start = perf_counter()
        dense_opt.step(gradient)
        middle = perf_counter()
        rows_opt.step(rows)
        sparse.append(perf_counter() - middle)
        dense.append(middle - start)
    pairs = list(zip(dense[2:], sparse[2:], strict=True))
    return {
        "dense": median(d for d, _ in pairs),
        "rows": median(s for _, s in pairs),
        "ratio": median(d / s for d, s in pairs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=200_000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--k", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    for name, kind, lazy in (("SGD, exact", fo.SGD, False), ("Adam, lazy", fo.Adam, True)):
        found = ratio(kind, lazy, options.n, options.width, options.k, options.rounds, threads=options.threads)
        print(
            f"{name}: {options.k} of {options.n} rows of {options.width}: {found['rows'] * 1e3:.3f} ms, dense "
            f"{found['dense'] * 1e3:.2f} ms, {found['ratio']:.0f} times as fast"
        )


if __name__ == "__main__":
    main()
