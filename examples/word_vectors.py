"""Word vectors from the sources of Python's own standard library: skip-gram with negative sampling (word2vec).

Every machine that runs Python has the text. A batch touches few rows of two tables of vectors, so that its gradient
is `fo.Rows`, and a step leaves all other rows alone. Beside it the dense step is timed, for the same tables.

    python examples/word_vectors.py
"""

from __future__ import annotations

import argparse
import re
import sysconfig
from collections import Counter
from pathlib import Path
from time import perf_counter

import numpy as np

import fastoptim as fo

WORD = re.compile(r"[A-Za-z_]{2,}")


def corpus(least: int) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Words that occur at least so often, how often, and the text as their numbers, -1 between two files."""
    folder = Path(sysconfig.get_path("stdlib"))
    paths = [p for p in sorted(folder.rglob("*.py")) if not {"site-packages", "dist-packages"} & set(p.parts)]
    texts = [WORD.findall(path.read_text(errors="ignore")) for path in paths]
    found = Counter(word for text in texts for word in text)
    words = sorted(word for word, count in found.items() if count >= least)
    number = {word: i for i, word in enumerate(words)}
    flat: list[int] = []
    for text in texts:
        flat += [number[word] for word in text if word in number] + [-1]
    return words, np.array([found[word] for word in words]), np.array(flat)


def neighbours(rng: np.random.Generator, text: np.ndarray, count: int, window: int) -> tuple[np.ndarray, np.ndarray]:
    """About `count` words, and for each one beside it, at most `window` places away, both drawn at random."""
    at = rng.integers(window, len(text) - window, count)
    beside = at + rng.integers(1, window + 1, count) * rng.choice([-1, 1], count)
    inside = (text[at] >= 0) & (text[beside] >= 0)
    return text[at[inside]], text[beside[inside]]


def gradients(
    params: dict[str, np.ndarray], word: np.ndarray, context: np.ndarray, negative: np.ndarray
) -> tuple[float, dict]:
    """Mean loss of a batch, and its gradients as rows: context words are likely, drawn ones (`negative`) are not."""
    size, drawn = negative.shape
    v = params["word"][word]
    others = np.concatenate([context[:, None], negative], axis=1)
    u = params["context"][others]
    score = np.einsum("bd,bkd->bk", v, u)
    sign = np.ones(1 + drawn, np.float32)
    sign[1:] = -1
    loss = np.logaddexp(0, -sign * score).sum() / size
    slope = (-sign / (1 + np.exp(sign * score)) / size).astype(np.float32)
    dv = np.einsum("bk,bkd->bd", slope, u)
    du = (slope[:, :, None] * v[:, None, :]).reshape(-1, v.shape[1])
    return float(loss), {"word": fo.Rows(word, dv), "context": fo.Rows(others.reshape(-1), du)}


def nearest(vectors: np.ndarray, words: list[str], word: str, count: int = 5) -> list[str]:
    """The words whose vectors point the same way."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    order = np.argsort(-(unit @ unit[words.index(word)]))
    return [words[i] for i in order if words[i] != word][:count]


def train(options: argparse.Namespace) -> dict[str, object]:
    """Train, time some dense steps beside, and return what was found."""
    rng = np.random.default_rng(options.seed)
    words, counts, text = corpus(options.least)
    rare = (counts / counts.sum()) ** 0.75
    share = np.cumsum(rare / rare.sum())
    shape = (len(words), options.width)
    params = {
        "word": rng.uniform(-0.5, 0.5, shape).astype(np.float32) / options.width,
        "context": np.zeros(shape, np.float32),
    }
    opt = fo.SparseAdam(params, lr=options.lr)
    twin = {name: p.copy() for name, p in params.items()}
    dense_opt = fo.Adam(twin, lr=options.lr, eps_mode="hat")
    losses, rows_time, dense_time = [], [], []
    for step in range(options.steps):
        word, context = neighbours(rng, text, options.batch, options.window)
        negative = np.searchsorted(share, rng.random((len(word), options.negative)))
        loss, grads = gradients(params, word, context, negative)
        losses.append(loss)
        start = perf_counter()
        opt.step(grads)
        rows_time.append(perf_counter() - start)
        if step % options.compare_every == 0:  # the dense step's time, with gradients that are dense already
            dense = {name: rows.to_dense(len(words)) for name, rows in grads.items()}
            start = perf_counter()
            dense_opt.step(dense)
            dense_time.append(perf_counter() - start)
    return {
        "words": words,
        "length": len(text),
        "params": params,
        "losses": losses,
        "rows": float(np.median(rows_time)),
        "dense": float(np.median(dense_time)),
    }


def main(arguments: list[str] | None = None) -> dict[str, object]:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--window", type=int, default=4)
    parser.add_argument("--negative", type=int, default=5)
    parser.add_argument("--least", type=int, default=2, help="words that are rarer are left out")
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compare-every", type=int, default=50)
    options = parser.parse_args(arguments)
    found = train(options)
    words, losses = found["words"], found["losses"]
    print(f"{len(words)} words, a text of {found['length']}; two tables of {len(words)} x {options.width}")
    tenth = max(1, len(losses) // 10)
    print(f"loss {np.mean(losses[:tenth]):.3f} -> {np.mean(losses[-tenth:]):.3f} in {len(losses)} steps")
    for word in ("for", "self", "True", "socket", "TypeError"):
        if word in words:
            print(f"  {word}: {', '.join(nearest(found['params']['word'], words, word))}")
    print(
        f"a step on the rows of a batch takes {found['rows'] * 1e3:.3f} ms, a dense one {found['dense'] * 1e3:.3f} ms: "
        f"{found['dense'] / found['rows']:.1f} times as long"
    )
    return found


if __name__ == "__main__":
    main()
