"""Variational inference for a Bayesian regression, in the style of Chainer: links with ``.data`` and ``.grad``.

    python examples/variational.py

A normal distribution with independent entries is fitted to the posterior of six coefficients, by RMSprop on
gradients of single samples (the reparametrisation trick). For a linear model the best such distribution is known
exactly, which tells how good the fit is. Beside it run Chainer's own lines of RMSprop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from fastoptim.adapters import objects

NOISE = 0.5  # known standard deviation of the data; the prior is standard normal


class Parameter:
    def __init__(self, data: np.ndarray) -> None:
        self.data, self.grad = data, np.zeros_like(data)


class Posterior:
    """A link: mean and logarithm of the standard deviation of every coefficient."""

    def __init__(self, n: int) -> None:
        self.mean, self.log_std = Parameter(np.zeros(n)), Parameter(np.full(n, -1.0))

    def params(self) -> Iterator[Parameter]:
        yield from (self.mean, self.log_std)

    def backward(self, x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> None:
        """Gradients of minus the evidence lower bound at one sample of the coefficients."""
        std = np.exp(self.log_std.data)
        sample = rng.standard_normal(len(std))
        w = self.mean.data + std * sample
        slope = x.T @ (x @ w - y) / NOISE**2 + w
        self.mean.grad = slope
        self.log_std.grad = slope * std * sample - 1.0  # the entropy grows by one


def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, 6))
    return x, x @ rng.standard_normal(6) + NOISE * rng.standard_normal(50)


def fit(link: Posterior, update: Callable[[float], None], steps: int) -> None:
    rng, (x, y) = np.random.default_rng(1), data()
    for t in range(steps):
        link.backward(x, y, rng)
        update(0.05 / (1 + t / 50))


def main(steps: int = 3000) -> dict[str, np.ndarray]:
    ours, other = Posterior(6), Posterior(6)
    optimizer = objects.RMSprop().setup(ours)
    means = {p: np.zeros(6) for p in other.params()}

    def update(rate: float) -> None:
        optimizer.lr = rate
        optimizer.update()

    def by_hand(rate: float) -> None:
        for p, ms in means.items():
            ms *= 0.99
            ms += (1 - 0.99) * p.grad * p.grad
            p.data -= rate * p.grad / (np.sqrt(ms) + 1e-8)

    fit(ours, update, steps)
    fit(other, by_hand, steps)
    x, y = data()
    precision = x.T @ x / NOISE**2 + np.eye(6)
    exact = np.concatenate([np.linalg.solve(precision, x.T @ y / NOISE**2), -0.5 * np.log(np.diag(precision))])
    found, expected = (np.concatenate([p.data for p in link.params()]) for link in (ours, other))
    print("mean and log std, found and exact:", *np.stack([found, exact]).round(3), sep="\n")
    print(f"largest difference from Chainer's lines: {abs(found - expected).max():.1e}")
    return {"ours": found, "by hand": expected, "exact": exact}


if __name__ == "__main__":
    main()
