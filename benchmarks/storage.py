"""Time and memory of a step with arrays in fewer bits.

    python benchmarks/storage.py [--rounds 9]        # how many times as fast as float32, in one run
    python benchmarks/storage.py --memory 100000000  # bytes of states, and the peak memory of a process that steps

Steps of all storages take turns on arrays of 1e5 elements, which caches hold, and of 3e7, which they do not. "bfloat16
everywhere" has parameters and gradients in bfloat16, too; the others' are float32. Each figure is the median of the
rounds' ratios, float32's time / theirs; behind it stands the share of the roofline: how many bytes a second the step
moves, of what a loop in C over float32's arrays moves that computes next to nothing, in the same rounds. bitsandbytes'
8-bit Adam stands beside them where it is installed, with torch.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import fastoptim as fo
from fastoptim.arrays.storage import small_dtype
from fastoptim.backends import get_backend
from fastoptim.bench.subjects import settle
from fastoptim.rules.codecs import BLOCK

# Name -> dtype of parameters and gradients, and of states.
STORAGES = {
    "float32": ("float32", "float32"),
    "bfloat16": ("float32", "bfloat16"),
    "bfloat16 everywhere": ("bfloat16", "bfloat16"),
    "float8": ("float32", "float8"),
}
OPTIMIZERS: dict[str, tuple[Any, dict[str, Any]]] = {"adam": (fo.Adam, {}), "momentum": (fo.SGD, {"momentum": 0.9})}
SIZES = {10**5: 300, 3 * 10**7: 1}  # elements -> steps a round
EIGHT_BITS = "bitsandbytes 8-bit"
ROOFLINE = "roofline"


def arrays(size: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    w = np.full(size, 0.5, np.float32).astype(small_dtype(dtype), copy=False)
    g = np.sin(np.arange(size, dtype=np.float32)).astype(small_dtype(dtype), copy=False)
    return w, g


def stepper(name: str, storage: str, size: int, threads: int) -> tuple[Any, Callable[[], Any]]:
    """An optimizer, and what steps it."""
    kind, options = OPTIMIZERS[name]
    dtype, state_dtype = STORAGES[storage]
    w, g = arrays(size, dtype)
    optimizer = kind(w, lr=1e-3, threads=threads, state_dtype=state_dtype, **options)
    return optimizer, lambda: optimizer.step(g)


def eight_bits(size: int, threads: int) -> Callable[[], Any] | None:
    """A step of bitsandbytes' Adam8bit on the processor; None if it cannot be had."""
    try:
        import bitsandbytes
        import torch
    except ImportError:
        return None
    torch.set_num_threads(threads)
    w, g = (torch.from_numpy(x) for x in arrays(size, "float32"))
    w.requires_grad_(True)
    w.grad = g
    step: Callable[[], Any] = bitsandbytes.optim.Adam8bit([w], lr=1e-3).step
    return step


def moved(storage: str, states: int) -> float:
    """Bytes an element that a step reads and writes: all but the gradient are written."""
    wide, narrow = ({"float32": 4, "bfloat16": 2, "float8": 1 + 4 / BLOCK}[name] for name in STORAGES[storage])
    return 3 * wide + 2 * narrow * states


def roofline(optimizer: Any, g: np.ndarray, threads: int) -> Callable[[], Any]:
    """What moves the bytes of a step, twice, so that numbers come back to what they were."""
    (p,), entry = optimizer.param_groups[0]["params"], optimizer.state["0"]
    states = tuple(x for x in entry.values() if isinstance(x, np.ndarray))
    rule = {1: "momentum", 2: "adam"}[len(states)]
    loop = get_backend("c").roofline(rule, [p], [g], [states], threads)
    return lambda: (loop(), loop())


def ratios(name: str, size: int, steps: int, threads: int, rounds: int) -> dict[str, tuple[float, float]]:
    """Storage -> how many times as fast as float32 it is, and its share of the roofline."""
    steppers = {storage: stepper(name, storage, size, threads) for storage in STORAGES}
    cases = {storage: step for storage, (_, step) in steppers.items()}
    if name == "adam" and (step := eight_bits(size, threads)) is not None:
        cases[EIGHT_BITS] = step
    for storage, step in cases.items():
        step() if storage == EIGHT_BITS else settle(step)
    plain = steppers["float32"][0]
    states = sum(isinstance(x, np.ndarray) for x in plain.state["0"].values())
    cases[ROOFLINE] = roofline(plain, arrays(size, "float32")[1], threads)
    times: dict[str, list[float]] = {storage: [] for storage in cases}
    settle(cases[ROOFLINE])
    for _ in range(rounds):
        for storage, step in cases.items():
            count = steps if storage != EIGHT_BITS else max(1, steps // 30)
            start = time.perf_counter()
            for _ in range(count):
                step()
            times[storage].append((time.perf_counter() - start) / count)

    def ratio(a: str, b: str) -> float:
        return statistics.median(x / y for x, y in zip(times[a], times[b], strict=True))

    return {
        storage: (
            ratio("float32", storage),
            ratio(ROOFLINE, storage) / 2 * moved(storage, states) / moved("float32", states)
            if storage in STORAGES
            else float("nan"),
        )
        for storage in cases
        if storage != ROOFLINE
    }


def speed(rounds: int) -> None:
    if eight_bits(1000, 1) is None:
        print("LOUD: no 8-bit Adam to compare with: pip install torch bitsandbytes")
    for name in OPTIMIZERS:
        for size, steps in SIZES.items():
            for threads in (1, 2):
                found = ratios(name, size, steps, threads, rounds)
                figures = [f"{storage} {ratio:.3g}x ({share:.0%})" for storage, (ratio, share) in found.items()]
                print(f"{name}, {size:.0e} elements, threads {threads}: {', '.join(figures)}", flush=True)


def resident(which: str) -> int:
    """Bytes of this process that are in memory: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(which)))


def peak(storage: str, size: int) -> None:
    """Print what an Adam of so many elements takes; for a process of its own."""
    stepper("adam", storage, 1000, 1)[1]()  # everything is loaded
    before = resident("VmRSS")
    optimizer, step = stepper("adam", storage, size, 1)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    for _ in range(2):
        step()
    most = resident("VmHWM") - before
    states = sum(x.nbytes for x in optimizer.state["0"].values() if isinstance(x, np.ndarray))
    own = 2 * np.dtype(small_dtype(STORAGES[storage][0])).itemsize
    print(
        f"adam, {storage}, {size:.0e} elements: {states / size:.3f} bytes of states an element; with parameters and "
        f"gradients ({own} bytes) at most {most / size:.3f} during two steps",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--memory", type=int, metavar="ELEMENTS", help="measure memory instead, of so many parameters")
    parser.add_argument("--storage", choices=STORAGES, help="the memory of one, in this process")
    options = parser.parse_args()
    if options.memory is None:
        speed(options.rounds)
    elif options.storage is not None:
        peak(options.storage, options.memory)
    else:
        for storage in STORAGES:  # what a process has taken at most only grows
            command = [sys.executable, __file__, "--memory", str(options.memory), "--storage", storage]
            subprocess.run(command, check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
