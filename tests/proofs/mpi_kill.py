"""Kill one of four ranks in the middle of a step: the others end, and three ranks load the last checkpoint.

    python tests/proofs/mpi_kill.py --trials 10

Four ranks train and save after every second step. At a random moment one of them is killed (SIGKILL). The job must have
ended within 10 seconds, whatever the other ranks were doing; then three ranks load the last checkpoint, whose
parameters and states must be those of a run of that many steps that nobody disturbed.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import fastoptim as fo
from tests.support import mpi

LIMIT = 10.0
EVERY = 2


def parameters() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {"w": rng.standard_normal((300, 300)).astype(np.float32), "b": rng.standard_normal(5000)}


def gradients(params: dict[str, np.ndarray], t: int) -> dict[str, np.ndarray]:
    """The same on every rank, so that the sum over four ranks divided by four is the gradient itself."""
    rng = np.random.default_rng((2, t))
    return {name: rng.standard_normal(p.shape).astype(p.dtype) for name, p in params.items()}


def train(path: str) -> None:
    """Step for ever; every rank leaves its process number."""
    from mpi4py import MPI

    params = parameters()
    opt = fo.distributed.ShardedOptimizer(fo.Adam, params, lr=0.01, buffer_bytes=1)
    Path(f"{path}.pid{MPI.COMM_WORLD.rank}").write_text(str(os.getpid()))
    t = 0
    while True:
        opt.step(gradients(params, t), max_norm=1.0)
        t += 1
        if t % EVERY == 0:
            opt.save(path)


def check(path: str) -> None:
    """Load what the killed run left, and repeat its steps with a plain optimizer."""
    from mpi4py import MPI

    params = parameters()
    for p in params.values():
        p[...] = 0
    opt = fo.distributed.ShardedOptimizer(fo.Adam, params, lr=1.0)
    opt.load(path)
    found = opt.state_dict()["state"]
    steps = found["w"]["step"]
    twins = parameters()
    plain = fo.Adam(twins, lr=0.01)
    for t in range(steps):
        plain.step(gradients(twins, t), max_norm=1.0)
    wanted = plain.state_dict()["state"]
    assert steps >= EVERY and steps % EVERY == 0, steps
    assert all(params[name].tobytes() == twins[name].tobytes() for name in twins), "parameters differ"
    for name, entry in wanted.items():
        assert all(np.array_equal(found[name][key], x) for key, x in entry.items()), f"states of {name} differ"
    if MPI.COMM_WORLD.rank == 0:
        print(steps)


def trial(folder: Path, seed: int) -> tuple[float, int]:
    """Seconds from the kill to the end of the job, and the steps in the checkpoint."""
    path = folder / f"run{seed}"
    rng = random.Random(seed)
    job = subprocess.Popen(
        mpi.command(4, __file__, "--train", path),
        env=mpi.environment(FASTOPTIM_NUM_THREADS="1"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not path.exists():
        assert job.poll() is None and time.monotonic() < deadline, f"no checkpoint: {job.communicate()[1]}"
        time.sleep(0.01)
    time.sleep(rng.random())
    pids = [int(Path(f"{path}.pid{rank}").read_text()) for rank in range(4)]
    os.kill(pids[rng.randrange(4)], signal.SIGKILL)
    start = time.monotonic()
    try:
        job.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        job.kill()
        raise AssertionError(f"the job was still there after {LIMIT:g} seconds") from None
    seconds = time.monotonic() - start
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() - start < LIMIT, f"some of {pids} are still there after {LIMIT:g} seconds"
        time.sleep(0.01)
    assert job.returncode != 0
    done = mpi.run(3, __file__, "--check", path)
    assert done.returncode == 0, done.stderr[-3000:]
    return seconds, int(done.stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", help=argparse.SUPPRESS)
    parser.add_argument("--check", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        train(options.train)
    if options.check:
        check(options.check)
        return 0
    times, steps = [], []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.seed, options.seed + options.trials):
            seconds, taken = trial(Path(folder), seed)
            times.append(seconds)
            steps.append(taken)
    print(
        f"{len(times)} kills among 4 ranks: jobs ended after at most {max(times):.2f} s; checkpoints of "
        f"{min(steps)} to {max(steps)} steps loaded by 3 ranks, 0 bits differ"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
