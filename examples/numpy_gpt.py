"""A character level GPT in plain NumPy, forward and backward by hand, and what its optimizer costs.

    python examples/numpy_gpt.py            # some minutes
    python examples/numpy_gpt.py --quick    # under one

About 11 million float32 parameters learn to write Python from the sources of the standard library. The model is trained
twice from the same weights on the same batches: *before*, with the Adam that people write by hand (`NumpyAdam` below),
and *after*, with ``fastoptim``. What changes is one import::

    from fastoptim import Adam

Printed at the end: the share of a training step that the optimizer takes, before and after, and how far the two loss
curves are apart. Both follow torch's formula, but in another order of operations, so they agree to rounding, which
training amplifies slowly; the exit status is 1 if they part by more than `TOLERANCE`.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from _data import library_text

from fastoptim import Adam

Array = np.ndarray
Params = dict[str, Array]

# Largest difference of the two losses at any step, in nats per character.
TOLERANCE = 1e-2


class NumpyAdam:
    """Adam as it is usually written in NumPy (torch's formula)."""

    def __init__(self, params: Params, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8):
        self.params, self.lr, self.betas, self.eps, self.t = params, lr, betas, eps, 0
        self.m = {name: np.zeros_like(p) for name, p in params.items()}
        self.v = {name: np.zeros_like(p) for name, p in params.items()}

    def step(self, grads: Params) -> None:
        self.t += 1
        beta1, beta2 = self.betas
        correction1, correction2 = 1 - beta1**self.t, 1 - beta2**self.t
        for name, p in self.params.items():
            g, m, v = grads[name], self.m[name], self.v[name]
            m *= beta1
            m += (1 - beta1) * g
            v *= beta2
            v += (1 - beta2) * g * g
            p -= self.lr * (m / correction1) / (np.sqrt(v / correction2) + self.eps)


# --- The model ----------------------------------------------------------------------------------------------------


class Shape(NamedTuple):
    """Sizes of the model."""

    symbols: int
    context: int = 64
    width: int = 384
    layers: int = 6
    heads: int = 6


def initial_parameters(shape: Shape, seed: int = 0, dtype: Any = np.float32) -> Params:
    """GPT-2's: normal with deviation 0.02, smaller where a layer adds to the residual stream; zero biases."""
    rng = np.random.default_rng(seed)
    c = shape.width
    residual = 0.02 / math.sqrt(2 * shape.layers)

    def normal(rows: int, columns: int, deviation: float = 0.02) -> Array:
        return (deviation * rng.standard_normal((rows, columns))).astype(dtype)

    params = {"symbol": normal(shape.symbols, c), "position": normal(shape.context, c)}
    for i in range(shape.layers):
        params |= {
            f"{i}.norm1.gain": np.ones(c, dtype),
            f"{i}.norm1.bias": np.zeros(c, dtype),
            f"{i}.qkv.w": normal(c, 3 * c),
            f"{i}.qkv.b": np.zeros(3 * c, dtype),
            f"{i}.mix.w": normal(c, c, residual),
            f"{i}.mix.b": np.zeros(c, dtype),
            f"{i}.norm2.gain": np.ones(c, dtype),
            f"{i}.norm2.bias": np.zeros(c, dtype),
            f"{i}.up.w": normal(c, 4 * c),
            f"{i}.up.b": np.zeros(4 * c, dtype),
            f"{i}.down.w": normal(4 * c, c, residual),
            f"{i}.down.b": np.zeros(c, dtype),
        }
    params |= {
        "norm.gain": np.ones(c, dtype),
        "norm.bias": np.zeros(c, dtype),
        "head.w": normal(c, shape.symbols),
        "head.b": np.zeros(shape.symbols, dtype),
    }
    return params


# A layer takes x, of shape (positions of all texts, width), and returns its output and a function from the gradient of
# the output to the gradient of x, which also records the gradients of the layer's parameters.
Backward = Callable[[Array], Array]
Layer = Callable[[Array], tuple[Array, Backward]]


def linear(name: str, params: Params, grads: Params) -> Layer:
    w, b = params[f"{name}.w"], params[f"{name}.b"]

    def forward(x: Array) -> tuple[Array, Backward]:
        def backward(dy: Array) -> Array:
            grads[f"{name}.w"] = x.T @ dy
            grads[f"{name}.b"] = dy.sum(axis=0)
            return dy @ w.T

        return x @ w + b, backward

    return forward


def layer_norm(name: str, params: Params, grads: Params) -> Layer:
    gain, bias = params[f"{name}.gain"], params[f"{name}.bias"]

    def forward(x: Array) -> tuple[Array, Backward]:
        centred = x - x.mean(axis=1, keepdims=True)
        inverse = 1 / np.sqrt((centred * centred).mean(axis=1, keepdims=True) + 1e-5)
        unit = centred * inverse

        def backward(dy: Array) -> Array:
            grads[f"{name}.gain"] = (dy * unit).sum(axis=0)
            grads[f"{name}.bias"] = dy.sum(axis=0)
            d = dy * gain
            return inverse * (d - d.mean(axis=1, keepdims=True) - unit * (d * unit).mean(axis=1, keepdims=True))

        return unit * gain + bias, backward

    return forward


def gelu(x: Array) -> tuple[Array, Backward]:
    """The tanh form of the Gaussian error linear unit."""
    k = math.sqrt(2 / math.pi)
    square = x * x
    tanh = np.tanh(k * x * (1 + 0.044715 * square))

    def backward(dy: Array) -> Array:
        slope = k * (1 + 3 * 0.044715 * square)
        return dy * (0.5 * (1 + tanh) + 0.5 * x * (1 - tanh * tanh) * slope)

    return 0.5 * x * (1 + tanh), backward


def attention(texts: int, heads: int) -> Layer:
    """Causal attention: every position looks at itself and at those before it."""

    def forward(qkv: Array) -> tuple[Array, Backward]:
        rows, width = qkv.shape[0], qkv.shape[1] // 3
        length, depth = rows // texts, width // heads
        # q, k and v are (texts, heads, length, depth)
        q, k, v = qkv.reshape(texts, length, 3, heads, depth).transpose(2, 0, 3, 1, 4)
        factor = 1 / math.sqrt(depth)
        scores = (q @ k.swapaxes(2, 3)) * factor
        scores[:, :, np.triu(np.ones((length, length), bool), 1)] = -np.inf
        weights = np.exp(scores - scores.max(axis=3, keepdims=True))
        weights /= weights.sum(axis=3, keepdims=True)

        def backward(dy: Array) -> Array:
            dy = dy.reshape(texts, length, heads, depth).transpose(0, 2, 1, 3)
            dweights = dy @ v.swapaxes(2, 3)
            dscores = weights * (dweights - (dweights * weights).sum(axis=3, keepdims=True)) * factor
            dqkv = np.stack([dscores @ k, dscores.swapaxes(2, 3) @ q, weights.swapaxes(2, 3) @ dy])
            return dqkv.transpose(1, 3, 0, 2, 4).reshape(rows, 3 * width)

        return (weights @ v).transpose(0, 2, 1, 3).reshape(rows, width), backward

    return forward


def chain(*layers: Layer) -> Layer:
    """One layer after another."""

    def forward(x: Array) -> tuple[Array, Backward]:
        ways_back = []
        for layer in layers:
            x, back = layer(x)
            ways_back.append(back)

        def backward(d: Array) -> Array:
            for back in reversed(ways_back):
                d = back(d)
            return d

        return x, backward

    return forward


def residual(*layers: Layer) -> Layer:
    """``x + layers(x)``."""
    branch = chain(*layers)

    def forward(x: Array) -> tuple[Array, Backward]:
        y, back = branch(x)
        return x + y, lambda d: d + back(d)

    return forward


def loss_and_gradients(params: Params, shape: Shape, inputs: Array, targets: Array) -> tuple[float, Params]:
    """Mean cross-entropy in nats per character, and its gradient; `inputs` and `targets` are (texts, length)."""
    texts, length = inputs.shape
    grads: Params = {}

    def norm(name: str) -> Layer:
        return layer_norm(name, params, grads)

    def dense(name: str) -> Layer:
        return linear(name, params, grads)

    blocks = []
    for i in range(shape.layers):
        blocks += [
            residual(norm(f"{i}.norm1"), dense(f"{i}.qkv"), attention(texts, shape.heads), dense(f"{i}.mix")),
            residual(norm(f"{i}.norm2"), dense(f"{i}.up"), gelu, dense(f"{i}.down")),
        ]
    model = chain(*blocks, norm("norm"), dense("head"))
    x = params["symbol"][inputs] + params["position"][:length]
    logits, backward = model(x.reshape(texts * length, -1))

    rows, labels = np.arange(texts * length), targets.reshape(-1)
    logits -= logits.max(axis=1, keepdims=True)
    probabilities = np.exp(logits)
    totals = probabilities.sum(axis=1, keepdims=True)
    loss = float(np.mean(np.log(totals[:, 0]) - logits[rows, labels]))
    d = probabilities / totals
    d[rows, labels] -= 1
    d = backward(d / (texts * length)).reshape(texts, length, -1)
    grads["position"] = np.zeros_like(params["position"])
    grads["position"][:length] = d.sum(axis=0)
    grads["symbol"] = np.zeros_like(params["symbol"])
    np.add.at(grads["symbol"], inputs, d)
    return loss, grads


# --- Training -----------------------------------------------------------------------------------------------------


class Result(NamedTuple):
    """One training run: the loss of every step, and the seconds of every step and of its update."""

    losses: list[float]
    step_seconds: list[float]
    update_seconds: list[float]


def train(
    name: str, optimizer: Callable[..., Any], shape: Shape, text: Array, steps: int, texts: int, bar: Any
) -> Result:
    """Train from the first weights; the same batches at every call."""
    params = initial_parameters(shape)
    opt = optimizer(params, lr=3e-4)
    rng = np.random.default_rng(1)
    result = Result([], [], [])
    offsets = np.arange(shape.context + 1)
    for _ in range(steps):
        start = time.perf_counter()
        batch = text[rng.integers(0, len(text) - shape.context - 1, (texts, 1)) + offsets]
        loss, grads = loss_and_gradients(params, shape, batch[:, :-1], batch[:, 1:])
        computed = time.perf_counter()
        opt.step(grads)
        end = time.perf_counter()
        result.losses.append(loss)
        result.step_seconds.append(end - start)
        result.update_seconds.append(end - computed)
        bar.set_postfix_str(f"{name}: loss {loss:.3f}", refresh=False)
        bar.update()
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="20 steps instead of 200")
    parser.add_argument("--steps", type=int, help="training steps of each run")
    parser.add_argument("--texts", type=int, default=4, help="texts per batch")
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--context", type=int, default=64, help="characters per text")
    options = parser.parse_args(arguments)
    try:
        from tqdm import tqdm
    except ImportError:
        raise SystemExit("the progress bar needs tqdm: pip install tqdm") from None

    steps = options.steps or (20 if options.quick else 200)
    characters = library_text()
    symbols, text = np.unique(np.frombuffer(characters.encode("ascii"), np.uint8), return_inverse=True)
    shape = Shape(len(symbols), options.context, options.width, options.layers)
    params = initial_parameters(shape)
    print(
        f"GPT: {sum(p.size for p in params.values()):,} float32 parameters in {len(params)} arrays; "
        f"{len(text):,} characters of the standard library's sources, {len(symbols)} symbols; "
        f"{steps} steps of {options.texts} x {options.context} characters"
    )
    # BLAS starts its threads, and memory is touched for the first time, outside the timing.
    loss_and_gradients(params, shape, text[None, : options.context], text[None, 1 : options.context + 1])

    pace = 0.2 if sys.stderr.isatty() else 5.0
    with tqdm(total=2 * steps, unit="step", mininterval=pace) as bar:
        runs = {
            name: train(name, optimizer, shape, text, steps, options.texts, bar)
            for name, optimizer in (("before", NumpyAdam), ("after", Adam))
        }

    print(f"\n{'':8} {'first loss':>11} {'last loss':>10} {'update':>10} {'step':>10} {'optimizer':>18}")
    for name, run in runs.items():
        update, step = np.median(run.update_seconds), np.median(run.step_seconds)
        print(
            f"{name:8} {run.losses[0]:11.4f} {np.mean(run.losses[-10:]):10.4f} {update * 1e3:7.1f} ms "
            f"{step * 1e3:7.1f} ms {update / step:9.1%} of step"
        )
    before, after = runs["before"], runs["after"]
    print(
        f"updates {np.median(before.update_seconds) / np.median(after.update_seconds):.1f} times faster, "
        f"training {np.median(before.step_seconds) / np.median(after.step_seconds):.2f} times (medians)"
    )
    apart = float(np.max(np.abs(np.subtract(before.losses, after.losses))))
    agrees = apart <= TOLERANCE
    verdict = "the same loss curve" if agrees else "DIFFERENT loss curves"
    print(f"{verdict}: at most {apart:.1e} nats per character apart (tolerance {TOLERANCE:g})")
    return 0 if agrees else 1


if __name__ == "__main__":
    sys.exit(main())
