"""Online learning with sparse keys: a dict of weights, a dict of gradients for the words of one line, as in river.

    python examples/online_words.py

A logistic regression reads the lines of two modules of Python's standard library in random order, says which module
each comes from, and learns the answer. Only weights of words in the line have gradients: ``partial=True``. Beside
Adam and AdaGrad run the lines of a loop over the dict, in the same convention.
"""

from __future__ import annotations

import argparse
import inspect
import math
import random
import re
import tarfile
from collections.abc import Callable

from fastoptim.adapters import dicts

Weights = dict[str, float]
Step = Callable[[Weights, Weights], None]


def lines() -> list[tuple[set[str], int]]:
    """Words of each line that has some, and the number of its module; shuffled, the same every time."""
    texts = [inspect.getsource(module).splitlines() for module in (argparse, tarfile)]
    found = [(set(re.findall(r"[A-Za-z_]+", line)), i) for i, text in enumerate(texts) for line in text]
    found = [line for line in found if line[0]]
    random.Random(0).shuffle(found)
    return found


def learn(step: Step, limit: int) -> tuple[Weights, float]:
    """The weights in the end, and the share of right answers, each given before the line was learned."""
    weights: Weights = {}
    right, data = 0, lines()[:limit]
    for words, label in data:
        words = ["", *sorted(words)]  # the empty word is the intercept
        p = 1 / (1 + math.exp(-sum(weights.setdefault(word, 0.0) for word in words)))
        right += (p > 0.5) == label
        step(weights, dict.fromkeys(words, p - label))
    return weights, right / len(data)


def adam_by_hand() -> Step:
    m: Weights = {}
    v: Weights = {}
    t = 0

    def step(weights: Weights, grads: Weights) -> None:
        nonlocal t
        t += 1
        rate = 0.02 * math.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        for word, g in grads.items():
            m[word] = 0.9 * m.get(word, 0.0) + 0.1 * g
            v[word] = 0.999 * v.get(word, 0.0) + 0.001 * g * g
            weights[word] -= rate * m[word] / (math.sqrt(v[word]) + 1e-8)

    return step


def adagrad_by_hand() -> Step:
    h: Weights = {}

    def step(weights: Weights, grads: Weights) -> None:
        for word, g in grads.items():
            h[word] = h.get(word, 0.0) + g * g
            weights[word] -= 0.3 * g / math.sqrt(h[word] + 1e-8)

    return step


def main(limit: int = 3000) -> dict[str, tuple[Weights, Weights, float]]:
    results = {}
    for name, optimizer, by_hand in (
        ("Adam", dicts.Adam(0.02, eps=1e-8, partial=True), adam_by_hand()),
        ("AdaGrad", dicts.AdaGrad(0.3, eps=1e-8, eps_mode="root", partial=True), adagrad_by_hand()),
    ):
        ours, accuracy = learn(optimizer.update, limit)
        expected, _ = learn(by_hand, limit)
        worst = max(abs(ours[word] - expected[word]) for word in expected)
        print(f"{name}: {accuracy:.1%} right, {len(ours)} words; largest difference from the loop: {worst:.1e}")
        results[name] = ours, expected, accuracy
    return results


if __name__ == "__main__":
    main()
