"""Time and memory of a step with arrays in fewer bits.

    python benchmarks/storage.py [--rounds 9]        # how many times as fast as float32, in one run
    python benchmarks/storage.py --memory 100000000  # bytes of states, and the peak memory of a process that steps

Steps of all storages of `fastoptim bench` take turns on arrays of 1e5 elements, which caches hold, and of 3e7, which
they do not; bitsandbytes' 8-bit Adam stands beside them where it is installed, with torch. Each figure is the median of
the rounds' ratios, float32's time / theirs; behind it stands the share of the roofline: how many bytes a second the
step moves, of what a loop in C over float32's arrays moves that computes next to nothing, in the same rounds.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from statistics import median

import numpy as np
from turns import contestants, ratios, take_turns

from fastoptim.arrays.storage import small_dtype
from fastoptim.bench.cases import size_case
from fastoptim.bench.storages import STORAGES
from fastoptim.bench.subjects import SUBJECTS, optimizer
from fastoptim.rules.codecs import BLOCK
from fastoptim.rules.table import RULES

OURS = {"c": SUBJECTS["c"]} | {name: subject for name, subject in STORAGES.items() if subject.family == "fastoptim"}
BYTES = {"float32": 4, "bfloat16": 2, "float8": 1 + 4 / BLOCK}


def moved(name: str, rule: str) -> float:
    """Bytes an element that a step reads and writes: all but the gradient are written."""
    own, states = OURS[name].stored
    return 3 * BYTES[own] + 2 * BYTES[states] * len(RULES[rule].states)


def speed(rounds: int) -> None:
    for rule in ("adam", "momentum"):
        for size in (10**5, 3 * 10**7):
            for threads in (1, 2):
                times = take_turns(contestants(size_case(rule, size, threads), "c", *STORAGES), rounds)
                figures = []
                for name in [name for name in times if name in OURS | STORAGES]:
                    figure = f"{(OURS | STORAGES)[name].title} {median(ratios(times, 'c', name)):.3g}x"
                    if name in OURS:
                        share = median(ratios(times, "roofline", name)) * moved(name, rule) / moved("c", rule)
                        figure += f" ({share:.0%})"
                    figures.append(figure)
                if rule == "adam" and "bitsandbytes" not in times:
                    figures.append("LOUD: no 8-bit Adam to compare with: pip install torch bitsandbytes")
                print(f"{rule}, {size:.0e} elements, threads {threads}: {', '.join(figures)}", flush=True)


def resident(which: str) -> int:
    """Bytes of this process that are in memory: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(which)))


def peak(name: str, size: int) -> None:
    """Print what an Adam of so many elements takes; for a process of its own."""
    dtype, states = OURS[name].stored
    for elements in (1000, size):  # first everything is loaded
        before = resident("VmRSS")
        w, g = (np.full(elements, x, np.float32).astype(small_dtype(dtype), copy=False) for x in (0.5, 0.25))
        opt = optimizer("adam", [w], "c", 1, states=states)
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        for _ in range(2):
            opt.step([g])
    most = resident("VmHWM") - before
    kept = sum(x.nbytes for x in opt.state["0"].values() if isinstance(x, np.ndarray))
    print(
        f"adam, {OURS[name].title}, {size:.0e} elements: {kept / size:.3f} bytes of states an element; with parameters "
        f"and gradients ({2 * w.itemsize} bytes) at most {most / size:.3f} during two steps",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--memory", type=int, metavar="ELEMENTS", help="measure memory instead, of so many parameters")
    parser.add_argument("--storage", choices=OURS, help="the memory of one, in this process")
    options = parser.parse_args()
    if options.memory is None:
        speed(options.rounds)
    elif options.storage is not None:
        peak(options.storage, options.memory)
    else:
        for storage in OURS:  # what a process has taken at most only grows
            command = [sys.executable, __file__, "--memory", str(options.memory), "--storage", storage]
            subprocess.run(command, check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
