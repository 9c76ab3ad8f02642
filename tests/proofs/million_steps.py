"""One million steps keep the memory of the process as it was: python -m tests.proofs.million_steps

Small models are stepped by several classes on the C backend, through every path that a training loop takes: plain
steps, gradients made anew at every step, clipping, skipped steps, missing gradients, a changing learning rate,
functional forms, several threads. Resident memory is read after a warm-up of 50,000 steps and again at the end.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time

import numpy as np

import fastoptim as fo

LIMIT = 1 << 20
WARM_UP = 50_000


def resident() -> int:
    """Resident memory of this process, in bytes (Linux)."""
    gc.collect()
    with open("/proc/self/smaps_rollup") as file:
        fields = dict(line.split(":") for line in file if line.startswith(("Rss", "Pss")))
    return 1024 * int(fields["Rss"].split()[0])


class Work:
    """Optimizers that are stepped alternately."""

    def __init__(self, backend: str):
        self.backend = backend
        rng = np.random.default_rng(0)
        shapes = ((16, 8), (8,), (8, 3), (3,))
        self.grads = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
        self.wide = [g.astype(np.float64) for g in self.grads]

        def params():
            return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]

        options = {"backend": backend, "threads": 2}
        self.adam = fo.Adam(params(), lr=1e-4, **options)
        self.adamw = fo.AdamW(params(), lr=1e-4, amsgrad=True, **options)
        self.momentum = fo.SGD(params(), lr=1e-4, momentum=0.9, weight_decay=1e-3, **options)
        self.sgd = fo.SGD([p.astype(np.float64) for p in params()], lr=1e-4, **options)
        self.partial = fo.Adam(params(), lr=1e-4, **options)
        self.large = fo.Adam(np.zeros(60_000, np.float32), lr=1e-4, **options)  # enough for two threads
        self.large_grad = np.full(60_000, 0.5, np.float32)
        self.flat, self.velocity = np.ones(32, np.float32), np.zeros(32, np.float32)
        self.nan = [np.full_like(g, np.nan) for g in self.grads]

    def run(self, rounds: int) -> int:
        """`rounds` rounds of ten steps; returns how many steps were asked for."""
        for i in range(rounds):
            self.adam.step(self.grads)
            self.adam.step([g * 0.5 for g in self.grads])
            self.adamw.step(self.grads, grad_scale=0.5, max_norm=1.0)
            self.adamw.step(self.nan, skip_nonfinite=True)
            self.momentum.lr = 1e-4 / (1 + i % 100)
            self.momentum.step(self.grads)
            self.sgd.step(self.wide, max_norm=0.1)
            self.momentum.step(self.grads)
            fo.functional.momentum(
                self.flat, self.flat * 0.1, self.velocity, lr=1e-4, momentum=0.9, backend=self.backend
            )
            if i % 100 == 0:  # two in a row wake the pool's threads
                self.large.step(self.large_grad)
                self.large.step(self.large_grad)
            elif i % 100 == 50:
                self.partial.step([self.grads[0], None, self.grads[2], None])
                self.partial.step(self.grads)
            else:
                self.adam.step(self.grads)
                self.sgd.step(self.wide)
        return 10 * rounds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--backend", default="c")
    options = parser.parse_args()
    work = Work(options.backend)
    warm = work.run(WARM_UP // 10)
    before = resident()
    begin = time.perf_counter()
    taken = work.run(options.steps // 10)
    seconds = time.perf_counter() - begin
    growth = resident() - before
    print(
        f"{taken} steps after {warm} to warm up, {seconds:.0f} s, backend {options.backend}: "
        f"resident memory {before / 2**20:.1f} MiB, growth {growth / 1024:.0f} KiB (limit {LIMIT / 1024:.0f} KiB)"
    )
    finite = all(np.isfinite(p).all() for p in (*work.adam.param_groups[0]["params"], work.flat))
    return 0 if growth < LIMIT and finite else 1


if __name__ == "__main__":
    sys.exit(main())
