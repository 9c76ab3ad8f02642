"""Fit a model of the step time to what `mpi_overlap.py` measured, and carry it on paper to 1,000 ranks.

    python benchmarks/mpi_model.py benchmarks/results/mpi_overlap.json --docs docs/scale.md

The model, for N float32 parameters, n ranks and C chunks (times in seconds)::

    copies        = 8 N gamma                                   packing gradients, unpacking parameters
    messages      = 2 C (n - 1) alpha + 8 N (n - 1) / n beta    each of both collectives sends n - 1 messages a chunk
    communication = copies + messages
    kernel        = N / n kappa
    step          = 2 log2(n) alpha + max(communication, kernel) + (1 - hidden) min(communication, kernel)

gamma and kappa are medians of what was measured, hidden is that of the row with the slow kernel, where it is measured
best; alpha and beta come from a least-squares fit in which alpha is not negative, for each kind of link. With
``--docs`` the tables are written into a document, between its comments ``<!-- mpi: NAME begin -->`` and
``<!-- mpi: NAME end -->``.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.mpi_overlap import table
from fastoptim.distributed.slices import IN_FLIGHT
from fastoptim.rules import NORM_BLOCK

Row = dict[str, Any]

# What the paper cluster is assumed to have; everything else is measured.
PARAMETERS = 1_000_000_000
LINK = 12.5e9  # bytes a second between hosts, each way (100 Gbit/s)
LATENCY = 5e-6  # seconds a message
RANKS = (1, 2, 8, 64, 256, 1000)


class Model(NamedTuple):
    """Constants of the model."""

    alpha: float
    beta: float
    gamma: float
    kappa: float
    hidden: float

    def communication(self, parameters: float, ranks: int, chunks: float) -> float:
        messages = 2 * chunks * (ranks - 1) * self.alpha + 8 * parameters * (ranks - 1) / ranks * self.beta
        return 8 * parameters * self.gamma + messages

    def step(self, parameters: float, ranks: int, chunks: float) -> float:
        kernel = parameters / ranks * self.kappa
        if ranks == 1:
            return kernel
        longer, shorter = sorted((self.communication(parameters, ranks, chunks), kernel), reverse=True)
        return 2 * math.log2(ranks) * self.alpha + longer + (1 - self.hidden) * shorter


def fit(rows: list[Row]) -> Model:
    """Constants for rows of two ranks over one kind of link."""
    hidden = next(row["hidden"] for row in rows if row["backend"] == "numpy")
    rows = [row for row in rows if row["backend"] == "c"]
    size = np.array([row["parameters"] for row in rows], float)
    large = [row for row in rows if row["parameters"] >= 1_000_000]
    gamma = float(np.median([row["copies"] / (8 * row["parameters"]) for row in large]))
    kappa = float(np.median([2 * row["kernel"] / row["parameters"] for row in large]))
    messages = np.array([row["communication"] for row in rows]) - 8 * size * gamma
    weights = 1 / np.array([row["communication"] for row in rows])
    matrix = np.stack([2 * np.array([row["chunks"] for row in rows], float), 4 * size], axis=1)
    matrix *= weights[:, None]
    alpha, beta = np.linalg.lstsq(matrix, messages * weights)[0]
    if alpha < 0:  # no latency is to be seen: the bandwidth alone
        alpha, beta = 0.0, np.linalg.lstsq(matrix[:, 1:], messages * weights)[0][0]
    return Model(float(alpha), float(beta), gamma, kappa, hidden)


def fit_table(models: dict[str, Model], rows: list[Row]) -> str:
    lines = [
        "| between ranks | alpha, a message | 1 / beta, link | 1 / gamma, copies | kappa, kernel | hidden "
        "| step, model / measured |",
        "|---|---|---|---|---|---|---|",
    ]
    for link, model in models.items():
        ratios = [model.step(row["parameters"], 2, row["chunks"]) / row["step"] for row in rows if row["link"] == link]
        lines.append(
            f"| {link} | {1e6 * model.alpha:.0f} us | {1e-9 / model.beta:.3f} GB/s | {1e-9 / model.gamma:.1f} GB/s "
            f"| {1e9 * model.kappa:.2f} ns | {model.hidden:.0%} | {min(ratios):.2f} to {max(ratios):.2f} |"
        )
    return "\n".join(lines)


def buffer_bytes(ranks: int) -> int:
    """The default, and 1 MiB for each of many ranks: their pieces of a chunk would get too small."""
    return max(1 << 25, ranks << 20)


def chunk_count(parameters: float, ranks: int) -> int:
    """How many chunks `ShardedOptimizer` makes of one float32 group."""
    piece = max(1, buffer_bytes(ranks) // (IN_FLIGHT * (ranks + 1) * 4 * NORM_BLOCK)) * NORM_BLOCK
    return math.ceil(parameters / ranks / piece)


def paper_table(model: Model) -> str:
    """The model on the paper cluster: measured copies, kernel and overlap; assumed link."""
    paper = model._replace(alpha=LATENCY, beta=1 / LINK)
    lines = [
        "| ranks | memory a rank | chunks | communication | kernel | sharded step | unsharded step |",
        "|---|---|---|---|---|---|---|",
    ]
    for ranks in RANKS:
        chunks = chunk_count(PARAMETERS, ranks)
        memory = 8 * PARAMETERS + 8 * PARAMETERS / ranks + (buffer_bytes(ranks) if ranks > 1 else 0)
        messages = paper.communication(PARAMETERS, ranks, chunks) if ranks > 1 else 0.0
        kernel = PARAMETERS / ranks * paper.kappa
        # Without sharding the gradients' sum moves as many bytes (all-reduce), in place, and every rank updates all.
        whole = messages - (8 * PARAMETERS * paper.gamma if ranks > 1 else 0) + PARAMETERS * paper.kappa
        lines.append(
            f"| {ranks:,} | {memory / 1e9:.2f} GB | {chunks if ranks > 1 else 0:,} | {1e3 * messages:,.0f} ms "
            f"| {1e3 * kernel:,.1f} ms | {1e3 * paper.step(PARAMETERS, ranks, chunks):,.0f} ms "
            f"| {1e3 * whole:,.0f} ms |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("measured", type=Path)
    parser.add_argument("--docs", type=Path, help="document to write the tables into")
    options = parser.parse_args()
    rows = json.loads(options.measured.read_text())["rows"]
    links = list(dict.fromkeys(row["link"] for row in rows))
    models = {link: fit([row for row in rows if row["link"] == link]) for link in links}
    tables = {"overlap": table(rows), "fit": fit_table(models, rows), "paper": paper_table(models[links[-1]])}
    for name, text in tables.items():
        print(f"{name}\n\n{text}\n")
    if options.docs:
        document = options.docs.read_text()
        for name, text in tables.items():
            pattern = re.compile(rf"(<!-- mpi: {name} begin -->\n).*?(<!-- mpi: {name} end -->)", re.S)
            document, found = pattern.subn(lambda match, text=text: f"{match[1]}{text}\n{match[2]}", document)
            if not found:
                raise SystemExit(f"{options.docs} has no place for the table {name!r}")
        options.docs.write_text(document)
    return 0


if __name__ == "__main__":
    sys.exit(main())
