"""Train a NumPy network on real handwritten digits, with the NumPy reference and with the C kernels.

    python examples/digits.py --out demo_out

A network of two hidden layers, forward and backward in plain NumPy, is trained with momentum and with Adam, first by
`fastoptim`'s NumPy reference (``backend="numpy"``) and then by its C kernels (``backend="c"``). Everything else is the
same: the process, the first weights, the batches, the arrays that BLAS works on. The final weights must then be equal
to the last bit, and the exit status is 1 if they are not.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from _data import digits

import fastoptim as fo

OPTIMIZERS = {
    "momentum": lambda params, backend: fo.SGD(params, lr=0.05, momentum=0.9, backend=backend),
    "adam": lambda params, backend: fo.Adam(params, lr=5e-4, backend=backend),
}


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


class Result(NamedTuple):
    """One training run."""

    losses: list[float]
    accuracy: float
    update_seconds: float
    total_seconds: float
    weights: dict[str, np.ndarray]


def train(network: Network, optimizer: str, backend: str, data: tuple, epochs: int, batch: int, bar) -> Result:
    """One run from the network's first weights: the same batches whatever the optimizer and the backend."""
    x, labels, x_test, labels_test = data
    network.initialise(seed=1)
    opt = OPTIMIZERS[optimizer](network.params, backend)
    rng = np.random.default_rng(2)
    losses, update_seconds = [], 0.0
    start = time.perf_counter()
    for _ in range(epochs):
        order = rng.permutation(len(x))
        for first in range(0, len(x) - batch + 1, batch):
            rows = order[first : first + batch]
            losses.append(network.loss_and_gradients(x[rows], labels[rows]))
            before = time.perf_counter()
            opt.step(network.grads)
            update_seconds += time.perf_counter() - before
            bar.set_postfix_str(f"{optimizer}, {backend}: loss {losses[-1]:.3f}", refresh=False)
            bar.update()
    total = time.perf_counter() - start
    weights = {name: p.copy() for name, p in network.params.items()}
    return Result(losses, network.accuracy(x_test, labels_test), update_seconds, total, weights)


def differing_bits(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> int:
    """In how many elements two sets of weights differ, as bits."""
    return sum(int(np.count_nonzero(a[name].view(np.uint32) != b[name].view(np.uint32))) for name in a)


def plot_losses(results: dict[str, list[Result]], backends: Sequence[str], path: Path) -> None:
    """Loss curves, averaged over 20 steps; the second backend is dashed on top of the first."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    styles: list[dict] = [{"lw": 4, "alpha": 0.35}, {"lw": 1.4, "ls": "--"}]
    for i, (name, runs) in enumerate(results.items()):
        for run, backend, style in zip(runs, backends, styles, strict=True):
            width = min(20, len(run.losses))
            smooth = np.convolve(run.losses, np.ones(width) / width, mode="valid")
            steps = np.arange(width, len(run.losses) + 1)
            axes.plot(steps, smooth, color=f"C{i}", label=f"{name}, backend {backend}", **style)
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
        raise SystemExit('the progress bar needs tqdm: pip install "fastoptim[examples]"') from None

    *data, name = digits(options.data)
    x, labels = data[0], data[1]
    network = Network([x.shape[1], options.hidden, options.hidden, int(labels.max()) + 1])
    count = sum(p.size for p in network.params.values())
    print(f"{name}: {len(x):,} images to train on, {len(data[2]):,} to test; {count:,} float32 parameters")
    network.initialise(seed=1)
    network.loss_and_gradients(x[: options.batch], labels[: options.batch])  # BLAS starts its threads untimed

    steps = options.epochs * (len(x) // options.batch)
    results: dict[str, list[Result]] = {}
    pace = 0.2 if sys.stderr.isatty() else 5.0
    with tqdm(total=steps * len(OPTIMIZERS) * 2, unit="step", mininterval=pace) as bar:
        for optimizer in OPTIMIZERS:
            results[optimizer] = [
                train(network, optimizer, backend, tuple(data), options.epochs, options.batch, bar)
                for backend in options.backends
            ]

    failures = 0
    for optimizer, runs in results.items():
        print(f"\n{optimizer}: {steps} steps of {options.batch} images")
        print(f"  {'backend':8} {'last loss':>10} {'test accuracy':>14} {'updates':>9} {'training':>9} {'share':>7}")
        for backend, run in zip(options.backends, runs, strict=True):
            last = np.mean(run.losses[-20:])
            print(
                f"  {backend:8} {last:10.4f} {run.accuracy:14.1%} {run.update_seconds:7.2f} s "
                f"{run.total_seconds:7.2f} s {run.update_seconds / run.total_seconds:7.1%}"
            )
        first, second = runs
        print(
            f"  updates {first.update_seconds / second.update_seconds:.1f} times faster, "
            f"training {first.total_seconds / second.total_seconds:.2f} times"
        )
        different = differing_bits(first.weights, second.weights)
        failures += different > 0
        verdict = "equal to the last bit" if not different else f"DIFFERENT in {different:,} elements"
        print(f"  final weights: {verdict} ({count:,} parameters)")
    options.out.mkdir(parents=True, exist_ok=True)
    picture = options.out / "loss.png"
    plot_losses(results, options.backends, picture)
    print(f"\nloss curves: {picture}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
