"""Threads that share what they can, without a global lock: python -X gil=0 -m tests.proofs.free_threads [SECONDS]

Threads step optimizers of their own and, with the plans that all share, the functional form: the bits must be those
of one thread. Then they step one optimizer: whoever is refused must have changed nothing. With the lock it proves less,
and says so. Exit status 1 if anything differs.
"""

from __future__ import annotations

import sys
import time

import numpy as np

import fastoptim as fo
from tests.support.threads import in_threads

THREADS, STEPS, SIZES = 5, 400, (3, 1000, 8193)
OPTIONS = {"backend": "c", "threads": 1}


def stepped(seed: int) -> list[bytes]:
    """What some steps make of arrays that belong to a seed."""
    rng = np.random.default_rng(seed)
    params, grads = ([rng.standard_normal(n).astype(np.float32) for n in SIZES] for _ in range(2))
    opt = fo.Adam(params, lr=0.01, **OPTIONS)
    p, m, v = params[1].copy(), np.zeros(SIZES[1], np.float32), np.zeros(SIZES[1], np.float32)
    for t in range(1, STEPS + 1):
        opt.step(grads)
        fo.functional.adam(p, grads[1], m, v, step=t, lr=0.01, **OPTIONS)
    return [x.tobytes() for x in (*params, p, m, v)]


def shared(seconds: float) -> tuple[int, int, bool]:
    """Steps of one optimizer by all threads, how many were refused, and whether all is as if one had made them."""
    p, g = np.ones(1000, np.float32), np.ones(1000, np.float32)
    opt, end = fo.SGD(p, lr=2.0**-20, **OPTIONS), time.monotonic() + seconds

    def work(i: int) -> tuple[int, int]:
        done = refused = 0
        while time.monotonic() < end:
            try:
                opt.step(g)
                done += 1
            except RuntimeError:
                refused += 1
        return done, refused

    done, refused = map(sum, zip(*in_threads(work, range(THREADS)), strict=True))
    wanted = np.ones(1000, np.float32)
    alone = fo.SGD(wanted, lr=2.0**-20, **OPTIONS)
    for _ in range(done):
        alone.step(g)
    equal = opt.state["0"]["step"] == done and p.tobytes() == wanted.tobytes()
    return done, refused, equal


def main() -> int:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 30.0
    if getattr(sys, "_is_gil_enabled", lambda: True)():
        print("SKIPPED without the lock: this interpreter has it (a free-threaded Python with -X gil=0 has not)")
    wanted, end, rounds, wrong = [stepped(i) for i in range(THREADS)], time.monotonic() + seconds, 0, 0
    while time.monotonic() < end:
        rounds, wrong = rounds + 1, wrong + (in_threads(stepped, range(THREADS)) != wanted)
    steps, refused, equal = shared(seconds / 2)
    print(
        f"{rounds} rounds of {THREADS} threads x {2 * STEPS} steps, {wrong} with other bits; one optimizer: "
        f"{steps} steps, {refused} refused, {'the same' if equal else 'OTHER'} bits and count"
    )
    return int(wrong > 0 or not equal)


if __name__ == "__main__":
    sys.exit(main())
