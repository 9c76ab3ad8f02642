"""Train a NumPy network on real handwritten digits, with the NumPy reference and with the C kernels.

    python examples/digits.py --out demo_out

A network of two hidden layers, forward and backward in plain NumPy, is trained with momentum and with Adam, each by
`fastoptim`'s NumPy reference (``backend="numpy"``) and by its C kernels (``backend="c"``). Everything else is the same:
the process, the first weights, the batches, the arrays that BLAS works on. The final weights must then be
bit-identical, and the exit status is 1 if they are not.

The two runs alternate in blocks of steps, so that whatever else the machine does hits both.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from _data import digits

import fastoptim as fo

OPTIMIZERS = {
    "momentum": lambda params, backend: fo.SGD(params, lr=0.05, momentum=0.9, backend=backend),
    "adam": lambda params, backend: fo.Adam(params, lr=5e-4, backend=backend),
}

BLOCK = 10  # steps of one run before the other's


class Network:
    """Multi-layer perceptron with ReLU and softmax cross-entropy; float32, gradients written into fixed arrays."""

    def __init__(self, sizes: Sequence[int]):
        self.params: dict[str, np.ndarray] = {}
        for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
            self.params[f"w{i}"] = np.zeros((fan_in, fan_out), np.float32)
            self.params[f"b{i}"] = np.zeros(fan_out, np.float32)
        self.grads = {name: np.zeros_like(p) for name, p in self.params.items()}
        self.layers = len(sizes) - 1

    def initialise(self, seed: int) -> None:
        """He's normal weights, zero biases, in place: every run starts from the same bits at the same addresses."""
        rng = np.random.default_rng(seed)
        for p in self.params.values():
            p[...] = rng.standard_normal(p.shape, np.float32) * np.sqrt(2 / len(p)) if p.ndim == 2 else 0

    def outputs(self, x: np.ndarray) -> list[np.ndarray]:
        """Every layer's input, and the logits at the end."""
        values = [x]
        for i in range(self.layers):
            x = x @ self.params[f"w{i}"] + self.params[f"b{i}"]
            if i + 1 < self.layers:
                np.maximum(x, 0, out=x)
            values.append(x)
        return values

    def loss_and_gradients(self, x: np.ndarray, labels: np.ndarray) -> float:
        """Mean cross-entropy of a batch; its gradient is left in `grads`."""
        *inputs, logits = self.outputs(x)
        rows = np.arange(len(labels))
        logits -= logits.max(axis=1, keepdims=True)
        probabilities = np.exp(logits)
        totals = probabilities.sum(axis=1, keepdims=True)
        loss = float(np.mean(np.log(totals[:, 0]) - logits[rows, labels]))
        delta = probabilities / totals
        delta[rows, labels] -= 1
        delta /= len(labels)
        for i in reversed(range(self.layers)):
            np.matmul(inputs[i].T, delta, out=self.grads[f"w{i}"])
            np.sum(delta, axis=0, out=self.grads[f"b{i}"])
            if i:
                delta = (delta @ self.params[f"w{i}"].T) * (inputs[i] > 0)
        return loss

    def accuracy(self, x: np.ndarray, labels: np.ndarray) -> float:
        return float(np.mean(self.outputs(x)[-1].argmax(axis=1) == labels))


@dataclass
class Run:
    """One training run: its own optimizer and weights, which are swapped into the network's arrays for each block."""

    backend: str
    opt: Any
    weights: dict[str, np.ndarray]
    losses: list[float] = field(default_factory=list)
    rest_seconds: list[float] = field(default_factory=list)  # forward and backward, a step, block by block
    update_seconds: list[float] = field(default_factory=list)
    accuracy: float = 0.0


def swap(network: Network, weights: dict[str, np.ndarray]) -> None:
    for name, p in network.params.items():
        p[...] = weights[name]


def train(
    network: Network, optimizer: str, backends: Sequence[str], data: tuple, epochs: int, batch: int, bar
) -> list[Run]:
    """Train once for each backend, in alternating blocks, from the same first weights with the same batches."""
    x, labels, x_test, labels_test = data
    network.initialise(seed=1)
    first = {name: p.copy() for name, p in network.params.items()}
    # Both optimizers update the network's own arrays: where arrays lie may change the last bits of what BLAS computes.
    runs = [Run(name, OPTIMIZERS[optimizer](network.params, name), first) for name in backends]
    rng = np.random.default_rng(2)
    orders = [rng.permutation(len(x)) for _ in range(epochs)]
    batches = [order[i : i + batch] for order in orders for i in range(0, len(x) - batch + 1, batch)]
    for number, start in enumerate(range(0, len(batches), BLOCK)):
        for run in runs if number % 2 == 0 else runs[::-1]:
            swap(network, run.weights)
            train_block(network, run, x, labels, batches[start : start + BLOCK])
            run.weights = {name: p.copy() for name, p in network.params.items()}
            bar.set_postfix_str(f"{optimizer}, {run.backend}: loss {run.losses[-1]:.3f}", refresh=False)
            bar.update(len(batches[start : start + BLOCK]))
    for run in runs:
        swap(network, run.weights)
        run.accuracy = network.accuracy(x_test, labels_test)
    return runs


def train_block(network: Network, run: Run, x: np.ndarray, labels: np.ndarray, batches: list[np.ndarray]) -> None:
    """Some steps of one run."""
    rest = update = 0.0
    for rows in batches:
        start = time.perf_counter()
        run.losses.append(network.loss_and_gradients(x[rows], labels[rows]))
        middle = time.perf_counter()
        run.opt.step(network.grads)
        update += time.perf_counter() - middle
        rest += middle - start
    run.rest_seconds.append(rest / len(batches))
    run.update_seconds.append(update / len(batches))


def differing_bits(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> int:
    """In how many elements two sets of weights differ, as bits."""
    return sum(int(np.count_nonzero(a[name].view(np.uint32) != b[name].view(np.uint32))) for name in a)


def report(runs: list[Run]) -> None:
    """Print what the runs learned, what they took, and how many times as fast the second is.

    Each figure is the median of ratios of blocks that were timed next to each other, in units of the second run's
    median update. Forward and backward are the same code in both runs, so that one figure stands in both rows: the
    speed-up of training then follows from the shares, and cannot exceed what they allow.
    """
    first, second = runs
    pairs = list(zip(first.rest_seconds, first.update_seconds, second.rest_seconds, second.update_seconds, strict=True))
    unit = statistics.median(second.update_seconds)
    rest = unit * statistics.median((a + c) / 2 / d for a, _, c, d in pairs)
    updates = unit * statistics.median(b / d for _, b, _, d in pairs), unit
    print(f"  {'backend':8} {'last loss':>10} {'test accuracy':>14} {'update':>11} {'whole step':>11} {'share':>7}")
    for run, update in zip(runs, updates, strict=True):
        whole = rest + update
        print(
            f"  {run.backend:8} {np.mean(run.losses[-20:]):10.4f} {run.accuracy:14.1%} {1e3 * update:8.3f} ms "
            f"{1e3 * whole:8.3f} ms {update / whole:7.1%}"
        )
    print(
        f"  updates {updates[0] / updates[1]:.1f} times as fast, "
        f"training {(rest + updates[0]) / (rest + updates[1]):.2f} times"
    )
    apart = statistics.median(abs(math.log(a / c)) for a, _, c, _ in pairs)
    if apart > 0.2:
        print(
            "  (The machine was busy: forward and backward, the same code, differed by more than a fifth from block to"
        )
        print("  block. Do not rely on these times.)")


def plot_losses(results: dict[str, list[Run]], path: Path) -> None:
    """Draw loss curves, averaged over 20 steps; the second backend is dashed on top of the first."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    styles: list[dict] = [{"lw": 4, "alpha": 0.35}, {"lw": 1.4, "ls": "--"}]
    for i, (name, runs) in enumerate(results.items()):
        for run, style in zip(runs, styles, strict=True):
            width = min(20, len(run.losses))
            smooth = np.convolve(run.losses, np.ones(width) / width, mode="valid")
            steps = np.arange(width, len(run.losses) + 1)
            axes.plot(steps, smooth, color=f"C{i}", label=f"{name}, backend {run.backend}", **style)
    axes.set(xlabel="step", ylabel="training loss", yscale="log", title="A NumPy network on handwritten digits")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo_out"), help="folder for the picture")
    parser.add_argument("--backends", nargs=2, default=["numpy", "c"], metavar=("FIRST", "SECOND"))
    parser.add_argument("--data", choices=["auto", "mnist", "sklearn"], default="auto")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=1024, help="width of the two hidden layers")
    options = parser.parse_args(arguments)
    try:
        from tqdm import tqdm
    except ImportError:
        raise SystemExit("the progress bar needs tqdm: pip install tqdm") from None

    *data, name = digits(options.data)
    x, labels = data[0], data[1]
    network = Network([x.shape[1], options.hidden, options.hidden, int(labels.max()) + 1])
    count = sum(p.size for p in network.params.values())
    print(f"{name}: {len(x):,} images to train on, {len(data[2]):,} to test; {count:,} float32 parameters")
    network.initialise(seed=1)
    network.loss_and_gradients(x[: options.batch], labels[: options.batch])  # BLAS starts its threads untimed

    steps = options.epochs * (len(x) // options.batch)
    results: dict[str, list[Run]] = {}
    pace = 0.2 if sys.stderr.isatty() else 5.0
    with tqdm(total=steps * len(OPTIMIZERS) * 2, unit="step", mininterval=pace) as bar:
        for optimizer in OPTIMIZERS:
            results[optimizer] = train(
                network, optimizer, options.backends, tuple(data), options.epochs, options.batch, bar
            )

    failures = 0
    for optimizer, runs in results.items():
        print(f"\n{optimizer}: {steps} steps of {options.batch} images")
        report(runs)
        different = differing_bits(runs[0].weights, runs[1].weights)
        failures += different > 0
        verdict = "bit-identical" if not different else f"DIFFERENT in {different:,} elements"
        print(f"  final weights: {verdict} ({count:,} parameters)")
    options.out.mkdir(parents=True, exist_ok=True)
    picture = options.out / "loss.png"
    plot_losses(results, picture)
    print(f"\nloss curves: {picture}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
