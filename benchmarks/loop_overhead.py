"""What `fit` costs over a hand-written loop, on a network for handwritten digits.

    python benchmarks/loop_overhead.py --out benchmarks/results/loop_overhead.json

The hand-written loop is what one writes without the library's loop: a permutation per epoch, indexing, the loss, the
schedule, the optimizer's step, a list of losses. Both train the same network on the same minibatches with the same
optimizer class; `fit` also keeps its history and runs its diagnosis, as it does by default. Both must end at the same
bits. The contenders take turns in one process in random order.

Both spend most of their time in the same network, whose time varies more from run to run than the loops differ. So the
network's time is measured within each run and taken out: the overhead is the difference of what is left, as a share of
the hand-written loop's whole time. Other work on the machine only ever adds time, so each contender is represented by
the mean of its fastest quarter of rounds; the interval is the 90 % one of a bootstrap over rounds. A third contender,
the hand-written loop again, shows how large an overhead is found where there is none (the noise). BLAS and the
optimizer run in one thread, which is fastest for networks of this size; what is measured is that thread's processor
time, so that time given to other processes does not count.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import random
import sys
import time
from pathlib import Path

for variable in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "FASTOPTIM_NUM_THREADS"):
    os.environ[variable] = "1"  # before NumPy is imported

import numpy as np  # noqa: E402

import fastoptim as fo  # noqa: E402

NETWORKS = {
    "64-64-10, batch 32": ((64, 64, 10), 32),
    "64-128-64-10, batch 64": ((64, 128, 64, 10), 64),
    "64-256-10, batch 64": ((64, 256, 10), 64),
}


def digits():
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        sys.exit('this needs scikit-learn: pip install "fastoptim[examples]"')
    x, y = load_digits(return_X_y=True)
    return (x / 16).astype(np.float32), y


def new_params(sizes):
    rng = np.random.default_rng(0)
    params = {}
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        params[f"w{i}"] = (rng.standard_normal((fan_in, fan_out)) * np.sqrt(2 / fan_in)).astype(np.float32)
        params[f"b{i}"] = np.zeros(fan_out, np.float32)
    return params


def loss_and_grad(params, batch):
    """Multi-layer perceptron with ReLU and softmax cross-entropy."""
    x, labels = batch
    layers = len(params) // 2
    inputs = []
    for i in range(layers):
        inputs.append(x)
        x = x @ params[f"w{i}"] + params[f"b{i}"]
        if i + 1 < layers:
            np.maximum(x, 0, out=x)
    rows = np.arange(len(labels))
    x -= x.max(axis=1, keepdims=True)
    probabilities = np.exp(x)
    totals = probabilities.sum(axis=1, keepdims=True)
    loss = float(np.mean(np.log(totals[:, 0]) - x[rows, labels]))
    delta = probabilities / totals
    delta[rows, labels] -= 1
    delta /= len(labels)
    grads = {}
    for i in reversed(range(layers)):
        grads[f"w{i}"] = inputs[i].T @ delta
        grads[f"b{i}"] = delta.sum(axis=0)
        if i:
            delta = (delta @ params[f"w{i}"].T) * (inputs[i] > 0)
    return loss, grads


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


class Timed:
    """`loss_and_grad`, and the seconds spent in it."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self, params, batch):
        begin = time.thread_time()
        result = loss_and_grad(params, batch)
        self.seconds += time.thread_time() - begin
        return result


def measure(sizes, batch_size, data, epochs, rounds, seed):
    """Per contender, round by round: (seconds outside the network, all seconds); first both must do the same."""
    results = {}
    for run in (hand_written, with_fit):
        params = new_params(sizes)
        results[run] = (run(loss_and_grad, params, data, batch_size, epochs), [p.tobytes() for p in params.values()])
    if results[hand_written] != results[with_fit]:
        sys.exit("the two loops do not compute the same: the comparison would mean nothing")
    contenders = {"hand": hand_written, "fit": with_fit, "hand again": hand_written}
    seconds = {name: [] for name in contenders}
    rng = random.Random(seed)
    for _ in range(rounds):
        for name in rng.sample(sorted(contenders), len(contenders)):
            params, network = new_params(sizes), Timed()
            begin = time.thread_time()
            contenders[name](network, params, data, batch_size, epochs)
            total = time.thread_time() - begin
            seconds[name].append((total - network.seconds, total))
    return {name: np.array(values) for name, values in seconds.items()}


def fastest(seconds):
    """Mean of the fastest quarter."""
    return float(np.sort(seconds)[: max(1, len(seconds) // 4)].mean())


def overhead(contender, hand, seed):
    """(share, lower, upper): the time outside the network beyond the hand-written loop's, with a bootstrap interval."""
    rng, whole = np.random.default_rng(seed), fastest(hand[:, 1])
    a, b = contender[:, 0], hand[:, 0]
    draws = [fastest(rng.choice(a, len(a))) - fastest(rng.choice(b, len(b))) for _ in range(1000)]
    return [float(x) / whole for x in (fastest(a) - fastest(b), *np.quantile(draws, (0.05, 0.95)))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
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
        entry = {"microseconds_per_step": 1e6 * fastest(seconds["hand"][:, 1]) / steps, "steps": steps}
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
