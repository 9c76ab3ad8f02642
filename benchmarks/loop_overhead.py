"""What `fit` costs over a hand-written loop, on a network for handwritten digits.

    python benchmarks/loop_overhead.py --out benchmarks/results/loop_overhead.json

The hand-written loop is what one writes without the library's loop: a permutation per epoch, indexing, the loss, the
schedule, the optimizer's step, a list of losses. Both train the same network on the same minibatches with the same
optimizer class; `fit` also keeps its history and runs its diagnosis, as it does by default. Both must end at the same
bits. The contenders take turns in one process in random order; the result is the median over rounds of the ratio of
neighbouring times, with its quartiles. A third contender, the hand-written loop again, shows how far from 1 a ratio of
equals falls (the noise). BLAS and the optimizer run in one thread, which is fastest for networks of this size, and what
is measured is the processor time of the process, so that other processes disturb less.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import random
import statistics
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
    "64-256-256-10, batch 64": ((64, 256, 256, 10), 64),
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


def hand_written(params, data, batch_size, epochs):
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


def with_fit(params, data, batch_size, epochs):
    fit = fo.fit(loss_and_grad, params, data, fo.Adam(params), lr=SCHEDULE, epochs=epochs, batch_size=batch_size, rng=0)
    return fit.history.loss.tolist()


def measure(sizes, batch_size, data, epochs, rounds, seed):
    """Seconds of every contender in every round, after checking that both loops do the same."""
    results = {}
    for run in (hand_written, with_fit):
        params = new_params(sizes)
        results[run] = (run(params, data, batch_size, epochs), b"".join(p.tobytes() for p in params.values()))
    if results[hand_written] != results[with_fit]:
        sys.exit("the two loops do not compute the same: the comparison would mean nothing")
    contenders = {"hand": hand_written, "fit": with_fit, "hand again": hand_written}
    seconds = {name: [] for name in contenders}
    rng = random.Random(seed)
    for _ in range(rounds):
        for name in rng.sample(sorted(contenders), len(contenders)):
            params = new_params(sizes)
            begin = time.process_time()
            contenders[name](params, data, batch_size, epochs)
            seconds[name].append(time.process_time() - begin)
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    arguments = parser.parse_args()
    data = digits()
    report = {"python": platform.python_version(), "numpy": np.__version__, "rounds": arguments.rounds, "networks": {}}
    print(f"{'network':24} {'hand, us/step':>14} {'fit / hand, median (quartiles)':>32} {'hand again / hand':>28}")
    for name, (sizes, batch_size) in NETWORKS.items():
        seconds = measure(sizes, batch_size, data, arguments.epochs, arguments.rounds, arguments.seed)
        steps = arguments.epochs * -(-len(data[0]) // batch_size)
        entry = {"microseconds_per_step": 1e6 * statistics.median(seconds["hand"]) / steps}
        for contender in ("fit", "hand again"):
            ratios = [a / b for a, b in zip(seconds[contender], seconds["hand"], strict=True)]
            entry[contender] = statistics.quantiles(ratios, n=4)
        report["networks"][name] = entry
        cells = ["{1:.4f} ({0:.4f} to {2:.4f})".format(*entry[key]) for key in ("fit", "hand again")]
        print(f"{name:24} {entry['microseconds_per_step']:14.1f} {cells[0]:>32} {cells[1]:>28}")
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
