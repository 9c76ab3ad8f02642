"""Time the host's share of a CUDA step without a GPU: over the tests' fake driver, whose kernels do nothing.

    python benchmarks/cuda_host.py [--against COMMIT] [--json FILE]

Each line is the median of rounds of steps, in microseconds; with ``--against`` an older commit's code is timed too, in
turn with this one's, round by round in processes of their own. What is timed is checking arrays, packing arguments and
calling the driver; a real driver's own share comes on top.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

BARS = {  # microseconds
    "one array": 15,
    "one array, clipped": 60,
    "148 arrays": 80,
    "148 arrays, clipped": 160,
    "148 arrays, new gradients": 350,
    "1000 arrays": 400,
    "1000 arrays, new gradients": 2000,
}
WORK = r"""
import ctypes, json, sys, time
import statistics
import numpy as np
if not hasattr(np, "row_stack"):
    np.row_stack = np.vstack
from numba import cuda
import fastoptim as fo
from tests.support import fake_cuda

result = {}
with fake_cuda.behaviour(computes=False):
    for name in json.loads(sys.argv[1]):
        n = 1 if name.startswith("one") else int(name.split()[0])
        options = {"max_norm": 1.0} if "clipped" in name else {}
        params = [cuda.to_device(np.ones(8, np.float32)) for _ in range(n)]
        grads = [[cuda.to_device(np.ones(8, np.float32)) for _ in range(n)] for _ in range(2)]
        step, last = fo.Adam(params, lr=0.1, backend="cuda").step, 1 if "new" in name else 0
        for i in range(4):
            step(grads[i & last], **options)
        cuda.synchronize()
        start, uploads, times = time.perf_counter(), fake_cuda.counts()["uploads"], []
        while time.perf_counter() - start < 0.15 or len(times) < 10:
            begin = time.perf_counter()
            step(grads[len(times) & last], **options)
            times.append(time.perf_counter() - begin)
        # The median: a collection of garbage among numba's many objects takes 90 ms, whoever has made it due.
        result[name] = statistics.median(times) * 1e6, (fake_cuda.counts()["uploads"] - uploads) / len(times)
        cuda.synchronize()
    pair = [fo.Adam(cuda.to_device(np.ones(8, np.float32)), lr=0.1, backend="cuda") for _ in range(2)]
    g = cuda.to_device(np.ones(8, np.float32))
    for i in range(6):
        before = fake_cuda.counts()["uploads"]
        pair[i % 2].step(g, max_norm=1.0)
    result["two optimizers in turn, clipped"] = 0.0, fake_cuda.counts()["uploads"] - before
print(json.dumps(result))
"""


def measure(tree: Path) -> dict[str, list[float]]:
    """Microseconds and uploads of a step in each case, by the code in `tree`."""
    from tests.support import fake_cuda

    environment = fake_cuda.environment()
    environment["PYTHONPATH"] = f"{tree}:{environment['PYTHONPATH']}"
    command = [sys.executable, "-c", WORK, json.dumps(list(BARS))]
    done = subprocess.run(command, env=environment, cwd=tree, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    found: dict[str, list[float]] = json.loads(done.stdout)
    return found


def checkout(commit: str, folder: Path) -> Path:
    """The files of a commit that a step in Python needs."""
    archive = subprocess.run(["git", "archive", commit, "fastoptim"], cwd=ROOT, capture_output=True, check=True)
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    return folder


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", help="time the code of this commit, too")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", help="write the result to this file")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        trees = {"this": ROOT}
        if options.against:
            trees[options.against] = checkout(options.against, Path(folder))
        rounds = [{name: measure(tree) for name, tree in trees.items()} for _ in range(options.rounds)]
    result = {
        case: {name: statistics.median(r[name][case][0] for r in rounds) for name in trees}
        | {f"uploads, {name}": rounds[-1][name][case][1] for name in trees}
        for case in rounds[0]["this"]
    }
    for case, row in result.items():
        times = "  ".join(f"{name} {value:10.1f}" for name, value in row.items())
        bar = f"  bar {BARS[case]}: {'met' if row['this'] <= BARS[case] else 'MISSED'}" if case in BARS else ""
        print(f"{case:32} {times}{bar}")
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
