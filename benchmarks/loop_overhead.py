"""What `fit` costs over a hand-written loop, on a network for handwritten digits.

    python benchmarks/loop_overhead.py --out benchmarks/results/loop_overhead.json

The hand-written loop is what one writes without the library's loop: a permutation per epoch, indexing, the loss, the
schedule, the optimizer's step, a list of losses. Both train the same network on the same minibatches with the same
optimizer class; `fit` also keeps its history and runs its diagnosis, as it does by default. Both must end at the same
bits.

Both spend most of their time in the same network, whose time varies more from one second to the next than the loops
differ. So each contender runs in a thread of its own, and they alternate, one epoch at a time, in random order: what
is compared was measured within milliseconds. Only one thread runs at any moment, and what counts is its own processor
time. For every epoch of the run the median over rounds is taken of the difference to the hand-written loop; the
overhead is the sum of these medians as a share of the hand-written loop's whole run. It holds everything that `fit`
does: its set-up falls into the first epoch, its diagnosis into the one of step 300, its result into the last. The
interval is the 95 % one of a bootstrap over rounds. A third contender, the hand-written loop again, shows how large an
overhead is found where there is none. BLAS and the optimizer run in one thread, which is fastest for networks of this
size.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import random
import sys
import threading
import time
from pathlib import Path

for variable in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "FASTOPTIM_NUM_THREADS"):
    os.environ[variable] = "1"  # before NumPy is imported

import numpy as np  # noqa: E402

import fastoptim as fo  # noqa: E402
from fastoptim.demo import network  # noqa: E402

NETWORKS = {
    "64-64-10, batch 32": ((64, 64, 10), 32),
    "64-128-64-10, batch 64": ((64, 128, 64, 10), 64),
    "64-256-10, batch 64": ((64, 256, 10), 64),
}


def digits():
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        sys.exit('this needs scikit-learn: pip install ".[examples]"')
    x, y = load_digits(return_X_y=True)
    return (x / 16).astype(np.float32), y


SCHEDULE = fo.schedules.cosine(1e-3, 100_000)


def hand_written(loss_and_grad, params, data, batch_size, epochs):
    x, y = data
    optimizer = fo.Adam(params)
    rng = np.random.default_rng(0)
    losses = []
    step = 0
    for _ in range(epochs):
        order = rng.permutation(len(x))
        for start in range(0, len(x), batch_size):
            where = order[start : start + batch_size]
            loss, grads = loss_and_grad(params, (x[where], y[where]))
            optimizer.lr = SCHEDULE(step)
            optimizer.step(grads)
            losses.append(loss)
            step += 1
    return losses


def with_fit(loss_and_grad, params, data, batch_size, epochs):
    fit = fo.fit(loss_and_grad, params, data, fo.Adam(params), lr=SCHEDULE, epochs=epochs, batch_size=batch_size, rng=0)
    return fit.history.loss.tolist()


class Contender(threading.Thread):
    """A training run that goes on for one epoch at a time, and the processor time of each."""

    def __init__(self, train, sizes, data, batch_size, epochs):
        super().__init__(daemon=True)
        params, self._loss_and_grad, _ = network(sizes)
        self._train = lambda: train(self._network, params, data, batch_size, epochs)
        self._calls = itertools.count()
        self._per_epoch = -(-len(data[0]) // batch_size)
        self._go, self._paused = threading.Semaphore(0), threading.Semaphore(0)
        self.seconds = []

    def run(self):
        self._go.acquire()
        self._begin = time.thread_time()
        try:
            self._train()
        finally:
            self.seconds.append(time.thread_time() - self._begin)
            self._paused.release()

    def _network(self, params, batch):
        call = next(self._calls)
        if call and call % self._per_epoch == 0:
            self.seconds.append(time.thread_time() - self._begin)
            self._paused.release()
            self._go.acquire()
            self._begin = time.thread_time()
        return self._loss_and_grad(params, batch)

    def advance(self):
        """Train for one epoch more, from the network's call in one to that in the next."""
        if not self.is_alive():
            sys.exit("a contender has ended too early")
        self._go.release()
        self._paused.acquire()


def measure(sizes, batch_size, data, epochs, rounds, seed):
    """Processor seconds per contender, round and epoch; first both loops must do the same."""
    results = {}
    for train in (hand_written, with_fit):
        params, loss_and_grad, _ = network(sizes)
        results[train] = (
            train(loss_and_grad, params, data, batch_size, epochs),
            [p.tobytes() for p in params.values()],
        )
    if results[hand_written] != results[with_fit]:
        sys.exit("the two loops do not compute the same: the comparison would mean nothing")
    contenders = {"hand": hand_written, "fit": with_fit, "hand again": hand_written}
    seconds = {name: [] for name in contenders}
    rng = random.Random(seed)
    for _ in range(rounds):
        running = {name: Contender(train, sizes, data, batch_size, epochs) for name, train in contenders.items()}
        for contender in running.values():
            contender.start()
        for _ in range(epochs):
            for name in rng.sample(sorted(running), len(running)):
                running[name].advance()
        for name, contender in running.items():
            contender.join()
            seconds[name].append(contender.seconds)
    return {name: np.array(values) for name, values in seconds.items()}


def overhead(contender, hand, seed):
    """(share, lower, upper) of a contender's time beyond the hand-written loop's, with a bootstrap interval."""
    rng = np.random.default_rng(seed)

    def share(rounds):
        differences = np.median(contender[rounds] - hand[rounds], axis=0)
        return float(differences.sum() / np.median(hand[rounds], axis=0).sum())

    count = len(hand)
    draws = [share(rng.integers(count, size=count)) for _ in range(1000)]
    return [share(np.arange(count)), *map(float, np.quantile(draws, (0.025, 0.975)))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=150)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    arguments = parser.parse_args()
    data = digits()
    report = {"python": platform.python_version(), "numpy": np.__version__, "rounds": arguments.rounds, "networks": {}}
    print(f"{'network':24} {'hand, us/step':>14} {'overhead of fit':>28} {'of the hand-written again':>28}")
    for name, (sizes, batch_size) in NETWORKS.items():
        seconds = measure(sizes, batch_size, data, arguments.epochs, arguments.rounds, arguments.seed)
        steps = arguments.epochs * -(-len(data[0]) // batch_size)
        whole = float(np.median(seconds["hand"], axis=0).sum())
        entry = {"microseconds_per_step": 1e6 * whole / steps, "steps": steps}
        for contender in ("fit", "hand again"):
            entry[contender] = overhead(seconds[contender], seconds["hand"], arguments.seed)
        report["networks"][name] = entry
        cells = ["{:.2%} ({:.2%} to {:.2%})".format(*entry[key]) for key in ("fit", "hand again")]
        print(f"{name:24} {entry['microseconds_per_step']:14.1f} {cells[0]:>28} {cells[1]:>28}", flush=True)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
