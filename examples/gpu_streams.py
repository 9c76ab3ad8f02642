"""Train a softmax classifier with numba.cuda kernels on a side stream, and move the training between GPU and CPU.

    python examples/gpu_streams.py [--steps 60]

The first half runs on the GPU, on a stream of its own: kernels write the gradients, `fastoptim` steps behind them on
the same stream, and the host never waits. Parameters and states then go into a checkpoint file, from which two
trainings go on: one on the GPU, one on the CPU. They are given the same gradients (the GPU's), and must end with the
same bits; the exit status is 1 if they do not. Without a GPU, NUMBA_ENABLE_CUDASIM=1 runs it in Numba's simulator.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numba import config, cuda, float32

import fastoptim as fo
from fastoptim.backends.cuda import on_stream
from fastoptim.backends.cuda.backend import load_overloads

SIMULATED = bool(config.ENABLE_CUDASIM)
config.CUDA_LOW_OCCUPANCY_WARNINGS = 0  # the arrays are small
CLASSES, FEATURES, ROWS = 3, 8, 48
THREADS = 16 if SIMULATED else 128


@cuda.jit
def errors_of_rows(x, labels, w, b, errors):
    """Gradient of the mean cross-entropy with respect to each row's logits."""
    row = cuda.grid(1)
    if row < x.shape[0]:
        largest = float32(-1e30)
        for j in range(w.shape[1]):
            total = b[j]
            for i in range(w.shape[0]):
                total += x[row, i] * w[i, j]
            errors[row, j] = total
            largest = max(largest, total)
        total = float32(0)
        for j in range(w.shape[1]):
            errors[row, j] = math.exp(errors[row, j] - largest)
            total += errors[row, j]
        for j in range(w.shape[1]):
            hit = float32(1) if j == labels[row] else float32(0)
            errors[row, j] = (errors[row, j] / total - hit) / float32(x.shape[0])


@cuda.jit
def gradients_of(x, errors, gw, gb):
    at = cuda.grid(1)
    if at < gw.size:
        i, j = at // gw.shape[1], at % gw.shape[1]
        total = float32(0)
        for row in range(x.shape[0]):
            total += x[row, i] * errors[row, j]
        gw[i, j] = total
        if i == 0:
            total = float32(0)
            for row in range(x.shape[0]):
                total += errors[row, j]
            gb[j] = total


def optimizer(params: dict[str, Any], backend: str) -> Any:
    return fo.AdamW(params, lr=0.05, weight_decay=0.01, backend=backend)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="half of them before the checkpoint")
    options = parser.parse_args(arguments)
    if not SIMULATED and not cuda.is_available():
        print("no GPU was found: NUMBA_ENABLE_CUDASIM=1 runs this in Numba's simulator", file=sys.stderr)
        return 2
    rng = np.random.default_rng(0)
    truth = rng.standard_normal((FEATURES, CLASSES)).astype(np.float32)
    x = rng.standard_normal((ROWS, FEATURES)).astype(np.float32)
    labels = (x @ truth).argmax(axis=1)
    first = {"w": np.zeros((FEATURES, CLASSES), np.float32), "b": np.zeros(CLASSES, np.float32)}

    load_overloads()  # kernels of one's own need it beside NumPy 2.5
    params = {name: cuda.to_device(p) for name, p in first.items()}
    grads = {name: cuda.device_array(p.shape, p.dtype) for name, p in first.items()}
    images, targets = cuda.to_device(x), cuda.to_device(labels)
    errors = cuda.device_array((ROWS, CLASSES), np.float32)
    cuda.synchronize()
    stream = cuda.stream()

    def train(opt: Any) -> None:
        errors_of_rows[-(-ROWS // THREADS), THREADS, stream](images, targets, params["w"], params["b"], errors)
        gradients_of[-(-first["w"].size // THREADS), THREADS, stream](images, errors, grads["w"], grads["b"])
        with on_stream(1 if SIMULATED else stream):
            opt.step(grads)

    def accuracy(p: dict[str, np.ndarray]) -> float:
        return float(((x @ p["w"] + p["b"]).argmax(axis=1) == labels).mean())

    on_gpu = optimizer(params, "cuda")
    for _ in range(options.steps // 2):
        train(on_gpu)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "training.safetensors"
        on_gpu.save(path)
        host = {name: np.empty_like(p) for name, p in first.items()}
        on_cpu = optimizer(host, "auto")
        on_cpu.load(path)
        for p in params.values():  # a new process would have nothing but the file
            p.copy_to_device(np.zeros(p.shape, p.dtype))
        on_gpu = optimizer(params, "cuda")
        on_gpu.load(path)
    for _ in range(options.steps - options.steps // 2):
        train(on_gpu)
        stream.synchronize()
        on_cpu.step({name: g.copy_to_host() for name, g in grads.items()})
    found = {name: p.copy_to_host() for name, p in params.items()}
    differing = sum(int((found[name].view(np.uint32) != host[name].view(np.uint32)).sum()) for name in first)
    print(f"accuracy {accuracy(found):.2f}, {differing} differing elements between GPU and CPU")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
