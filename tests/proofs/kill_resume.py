"""Kill training, resume it in a fresh process on another backend: the result has the bits of an uninterrupted run.

    python tests/proofs/kill_resume.py --trials 200

Every trial starts a process that trains a small network with everything that has a state (Adam with amsgrad, a Plateau
schedule, shuffling and dropout from one generator, accumulation, clipping, validation, a callback, a log), kills it
(SIGKILL) at a random moment of its training, and resumes in a new process on another backend, which is killed as well
in every third trial. At the end the checkpoint, the best checkpoint and the log must equal, byte for byte, those of a
run that nobody disturbed.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np

import fastoptim as fo
from fastoptim.backends import available

FILES = ("run.ckpt", "run.best.ckpt", "run.jsonl")


class Mean:
    """A callback with a state; it also says that training has begun, and slows it down so that kills can hit it."""

    def __init__(self, delay):
        self.value, self.delay = 0.0, delay

    def __call__(self, loop):
        if self.delay:
            if self.value == 0.0 or loop.steps % 100 == 1:
                print("training", flush=True)
            time.sleep(self.delay)
        self.value = 0.9 * self.value + 0.1 * loop.loss

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = float(state["value"])


def train(folder, backend, delay):
    rng = np.random.default_rng(5)
    make = np.random.default_rng(6)
    x = make.standard_normal((300, 20)).astype(np.float32)
    y = np.tanh(x @ make.standard_normal((20, 3)).astype(np.float32))
    params = {
        "w1": np.asfortranarray(make.standard_normal((20, 30)).astype(np.float32) / 4),
        "b1": np.zeros(30, np.float32),
        "w2": make.standard_normal((30, 3)).astype(np.float32) / 5,
        "scale": np.ones((), np.float32),
    }

    def network(p, batch):
        inputs, targets = batch
        h = np.tanh(inputs @ p["w1"] + p["b1"])
        out = h @ p["w2"]
        error = p["scale"] * out - targets
        d = error * np.float32(2.0 / error.size)
        dout = d * p["scale"]
        dh = (dout @ p["w2"].T) * (1 - h * h)
        grads = {"w1": inputs.T @ dh, "b1": dh.sum(0), "w2": h.T @ dout, "scale": (d * out).sum()}
        return float((error * error).mean()), grads

    def with_dropout(p, batch):
        inputs, targets = batch
        return network(p, (inputs * (rng.random(inputs.shape) < 0.9), targets))

    held_out = (x[:60], y[:60])
    warnings.simplefilter("ignore")  # dropout on made-up data may well look like a plateau
    fo.fit(
        with_dropout,
        params,
        (x[60:], y[60:]),
        fo.Adam(params, amsgrad=True, backend=backend),
        lr=fo.schedules.Plateau(0.01, patience=2, threshold=0.02),
        steps=400,
        batch_size=16,
        rng=rng,
        accumulate=2,
        max_norm=0.3,
        validation=lambda p: {"loss": network(p, held_out)[0], "scale": float(p["scale"])},
        validate_every=20,
        callbacks=[Mean(delay)],
        checkpoint=folder / "run.ckpt",
        checkpoint_every=7,
        resume=True,
        log=folder / "run.jsonl",
    )


def digest(folder):
    return [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES]


def start(folder, backend, delay):
    command = [sys.executable, __file__, "--worker", str(folder), backend, str(delay)]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def killed(folder, backend, delay, wait):
    """Train, and kill `wait` seconds after training has begun; False if it had ended by then."""
    with start(folder, backend, delay) as process:
        process.stdout.readline()
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.stdout.read()
        return process.wait() == -signal.SIGKILL


def finished(folder, backend):
    with start(folder, backend, 0.0) as process:
        process.stdout.read()
        return process.wait() == 0


def main() -> int:
    if sys.argv[1:2] == ["--worker"]:
        train(Path(sys.argv[2]), sys.argv[3], float(sys.argv[4]))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--duration", type=float, default=1.2, help="seconds within which a kill falls")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    backends = [name for name in ("c", "numpy", "numba") if available(name) is None]
    if len(backends) < 2:
        print("this proof needs two backends", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as name:
        whole = Path(name) / "whole"
        whole.mkdir()
        if not finished(whole, backends[0]):
            return 1
        expected = digest(whole)
        pairs: Counter[str] = Counter()
        kills = middle = without = differing = 0
        for trial in range(arguments.trials):
            # Numba compiles for seconds in every new process, so it takes part in one trial of ten.
            pool = backends if trial % 10 == 9 else backends[:2]
            first, *rest = rng.sample(pool, 2)
            folder = Path(name) / str(trial)
            folder.mkdir()
            chain = [first, *rest] if trial % 3 else [first, rest[0], first]
            for backend in chain[:-1]:
                kills += killed(folder, backend, 0.003, rng.random() * arguments.duration)
                without += not (folder / "run.ckpt").exists()
                middle += any(entry.name.endswith(".tmp") for entry in folder.iterdir())
            pairs[" -> ".join(chain)] += 1
            if not finished(folder, chain[-1]) or digest(folder) != expected:
                differing += 1
                print(f"trial {trial} ({' -> '.join(chain)}): the result differs")
            shutil.rmtree(folder)
    print(
        f"{arguments.trials} runs killed {kills} times ({middle} in mid-save, {without} before the first checkpoint), "
        f"resumed in a fresh process on another backend: {differing} results differ"
    )
    print("  " + ", ".join(f"{pair}: {count}" for pair, count in sorted(pairs.items())))
    if differing or kills < arguments.trials:
        print("FAILED", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
