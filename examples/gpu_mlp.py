"""Train a network on the GPU end to end with kernels of one's own in numba.cuda; the update is one line of fastoptim.

    python examples/gpu_mlp.py [--epochs 5] [--hidden 256] [--matmul tiles | cupy]

Forward and backward are numba.cuda kernels (matrix products over tiles in shared memory, or CuPy's product where CuPy
is installed); the parameters never leave the GPU. The same network is then trained by NumPy on the CPU, from the same
first weights and with the same batches, and loss and accuracy are printed side by side. They are not equal to the last
bit, because matrix products add in another order on each side; the updates are. The exit status is 1 if the two drift
apart.

Without a GPU it runs, slowly, in Numba's simulator:

    NUMBA_ENABLE_CUDASIM=1 python examples/gpu_mlp.py --train 32 --test 16 --batch 16 --hidden 8 --epochs 2
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
from _data import digits
from digits import Network
from numba import config, cuda, float32

import fastoptim as fo
from fastoptim.backends.cuda.backend import load_overloads

SIMULATED = bool(config.ENABLE_CUDASIM)
config.CUDA_LOW_OCCUPANCY_WARNINGS = 0  # the arrays are small
load_overloads()  # kernels of one's own need it beside NumPy 2.5
TILE = 4 if SIMULATED else 16  # a simulated thread is a real one
THREADS = TILE * TILE
CLASSES = 10
DRIFT = 0.05  # largest relative difference of the two losses that still counts as the same training


@cuda.jit
def matmul(a, b, out):
    """``out = a @ b``, every block of threads one tile of `out`."""
    tile_a = cuda.shared.array((TILE, TILE), float32)
    tile_b = cuda.shared.array((TILE, TILE), float32)
    tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
    row, column = cuda.blockIdx.y * TILE + ty, cuda.blockIdx.x * TILE + tx
    total = float32(0)
    for start in range(0, a.shape[1], TILE):
        inside = row < a.shape[0] and start + tx < a.shape[1]
        tile_a[ty, tx] = a[row, start + tx] if inside else float32(0)
        inside = start + ty < b.shape[0] and column < b.shape[1]
        tile_b[ty, tx] = b[start + ty, column] if inside else float32(0)
        cuda.syncthreads()
        for k in range(TILE):
            total += tile_a[ty, k] * tile_b[k, tx]
        cuda.syncthreads()
    if row < out.shape[0] and column < out.shape[1]:
        out[row, column] = total


@cuda.jit
def add_bias(x, bias, relu):
    """``x += bias``, then what is negative becomes 0 if `relu`."""
    i = cuda.grid(1)
    if i < x.size:
        row, column = i // x.shape[1], i % x.shape[1]
        value = x[row, column] + bias[column]
        x[row, column] = float32(0) if relu and value < 0 else value


@cuda.jit
def cross_entropy(logits, labels, losses):
    """Each row's loss; `logits` become the gradient of the mean loss."""
    row = cuda.grid(1)
    if row < logits.shape[0]:
        largest = logits[row, 0]
        for j in range(1, logits.shape[1]):
            largest = max(largest, logits[row, j])
        total = float32(0)
        for j in range(logits.shape[1]):
            total += math.exp(logits[row, j] - largest)
        losses[row] = math.log(total) + largest - logits[row, labels[row]]
        for j in range(logits.shape[1]):
            share = math.exp(logits[row, j] - largest) / total
            hit = float32(1) if j == labels[row] else float32(0)
            logits[row, j] = (share - hit) / float32(logits.shape[0])


@cuda.jit
def column_sums(x, out):
    j = cuda.grid(1)
    if j < out.size:
        total = float32(0)
        for row in range(x.shape[0]):
            total += x[row, j]
        out[j] = total


@cuda.jit
def relu_backward(gradient, output):
    i = cuda.grid(1)
    if i < output.size:
        row, column = i // output.shape[1], i % output.shape[1]
        if output[row, column] <= 0:
            gradient[row, column] = 0


def blocks(n: int, per_block: int = THREADS) -> int:
    return -(-n // per_block)


class GpuNetwork:
    """One hidden layer with ReLU, softmax and cross-entropy; everything is on the GPU."""

    def __init__(self, params: dict[str, np.ndarray], batch: int, product: str):
        self.params = {name: cuda.to_device(p) for name, p in params.items()}
        self.grads = {name: cuda.device_array(p.shape, p.dtype) for name, p in params.items()}
        self.hidden, self.logits, self.d_hidden = (
            cuda.device_array((batch, n), np.float32) for n in (len(params["b0"]), CLASSES, len(params["b0"]))
        )
        self.losses = cuda.device_array(batch, np.float32)
        self.product = self._cupy_product if product == "cupy" else self._tiled_product

    @staticmethod
    def _tiled_product(a: Any, b: Any, out: Any) -> None:
        matmul[(blocks(out.shape[1], TILE), blocks(out.shape[0], TILE)), (TILE, TILE)](a, b, out)

    @staticmethod
    def _cupy_product(a: Any, b: Any, out: Any) -> None:
        import cupy

        cupy.matmul(cupy.asarray(a), cupy.asarray(b), out=cupy.asarray(out))

    def forward(self, x: Any, hidden: Any, logits: Any) -> None:
        p = self.params
        self.product(x, p["w0"], hidden)
        add_bias[blocks(hidden.size), THREADS](hidden, p["b0"], True)
        self.product(hidden, p["w1"], logits)
        add_bias[blocks(logits.size), THREADS](logits, p["b1"], False)

    def loss_and_gradients(self, x: np.ndarray, labels: np.ndarray) -> Any:
        """The gradients of a batch are left in `grads`; the losses stay on the GPU."""
        images, targets = cuda.to_device(x), cuda.to_device(labels)
        self.forward(images, self.hidden, self.logits)
        cross_entropy[blocks(len(x)), THREADS](self.logits, targets, self.losses)
        g = self.grads
        self.product(self.hidden.T, self.logits, g["w1"])
        column_sums[blocks(CLASSES), THREADS](self.logits, g["b1"])
        self.product(self.logits, self.params["w1"].T, self.d_hidden)
        relu_backward[blocks(self.hidden.size), THREADS](self.d_hidden, self.hidden)
        self.product(images.T, self.d_hidden, g["w0"])
        column_sums[blocks(g["b0"].size), THREADS](self.d_hidden, g["b0"])
        return self.losses

    def mean_loss(self, losses: Any) -> float:
        return float(losses.copy_to_host().mean(dtype=np.float64))

    def accuracy(self, x: np.ndarray, labels: np.ndarray) -> float:
        hidden = cuda.device_array((len(x), self.hidden.shape[1]), np.float32)
        logits = cuda.device_array((len(x), CLASSES), np.float32)
        self.forward(cuda.to_device(x), hidden, logits)
        return float((logits.copy_to_host().argmax(axis=1) == labels).mean())


class CpuNetwork(Network):
    """The same network in NumPy."""

    mean_loss = staticmethod(float)  # `loss_and_gradients` returns it


def train(network: Any, backend: str, data: Sequence[np.ndarray], options: argparse.Namespace) -> list[tuple]:
    """(mean loss, test accuracy) after each epoch."""
    images, labels, test_images, test_labels = data
    optimizer = fo.Adam(network.params, lr=options.lr, backend=backend)
    rng, history = np.random.default_rng(1), []
    for _ in range(options.epochs):
        order, losses = rng.permutation(len(images)), []
        for start in range(0, len(images) - options.batch + 1, options.batch):
            batch = order[start : start + options.batch]
            loss = network.loss_and_gradients(images[batch], labels[batch])
            optimizer.step(network.grads)
            losses.append(network.mean_loss(loss))
        history.append((float(np.mean(losses)), network.accuracy(test_images, test_labels)))
    return history


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("auto", "mnist", "sklearn", "made"), default="auto")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--train", type=int, help="use only so many images for training")
    parser.add_argument("--test", type=int, help="use only so many images for testing")
    parser.add_argument("--matmul", choices=("tiles", "cupy"), help="default: cupy where it is installed")
    options = parser.parse_args(arguments)
    if not cuda.is_available():
        print("no GPU was found; set NUMBA_ENABLE_CUDASIM=1 for a small run in the simulator", file=sys.stderr)
        return 2
    product = options.matmul or ("cupy" if find_spec("cupy") and not SIMULATED else "tiles")
    *data, source = digits(options.data)
    data = [*(x[: options.train] for x in data[:2]), *(x[: options.test] for x in data[2:])]
    network = CpuNetwork((data[0].shape[1], options.hidden, CLASSES))
    network.initialise(seed=0)
    device = "simulator" if SIMULATED else cuda.get_current_device().name
    print(f"{source}: {len(data[0])} images to learn from, {len(data[2])} to test on; {device}, products by {product}")
    gpu = train(GpuNetwork(network.params, options.batch, product), "cuda", data, options)
    cpu = train(network, "auto", data, options)
    print(f"{'epoch':>5} {'GPU loss':>10} {'CPU loss':>10} {'GPU accuracy':>13} {'CPU accuracy':>13}")
    for epoch, (ours, theirs) in enumerate(zip(gpu, cpu, strict=True), 1):
        print(f"{epoch:5} {ours[0]:10.5f} {theirs[0]:10.5f} {ours[1]:13.4f} {theirs[1]:13.4f}")
    same = math.isclose(gpu[-1][0], cpu[-1][0], rel_tol=DRIFT)
    print("the two trainings agree" if same else "the two trainings drift apart")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
