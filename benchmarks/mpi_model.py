"""Fit a model of the step time to what `mpi_overlap.py` measured, and carry it on paper to 1,000 ranks.

    python benchmarks/mpi_model.py benchmarks/results/mpi_overlap.json --docs docs/development/mpi_measured.md

The model, for B bytes of parameters, n ranks and C buckets (times in seconds)::

    copies        = 2 B gamma                                   packing gradients, unpacking parameters
    agreement     = 2 log2(n) alpha                             before anything is touched
    messages      = 2 C (n - 1) alpha + 2 B (n - 1) / n beta    each of both collectives sends n - 1 messages a bucket
    communication = agreement + copies + messages
    kernel        = B / n kappa
    step          = max(communication, kernel) + (1 - hidden) min(communication, kernel)

Everything is fitted for each kind of link on its own: gamma and kappa (of Adam's C kernel) are medians of what was
measured; hidden is the median over the rows where it could be resolved; alpha and beta come from a least-squares fit to
the communication in which alpha is not negative. With ``--docs`` the tables are written into a document, between its
comments ``<!-- mpi: NAME begin -->`` and ``<!-- mpi: NAME end -->``.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.mpi_overlap import table
from benchmarks.readme_numbers import with_numbers
from fastoptim.distributed.partition import piece_size
from fastoptim.distributed.slices import IN_FLIGHT

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

    def communication(self, nbytes: float, ranks: int, buckets: float) -> float:
        latency = (2 * math.log2(ranks) + 2 * buckets * (ranks - 1)) * self.alpha
        return 2 * nbytes * self.gamma + latency + 2 * nbytes * (ranks - 1) / ranks * self.beta

    def step(self, nbytes: float, ranks: int, buckets: float, kernel: float) -> float:
        if ranks == 1:
            return kernel
        longer, shorter = sorted((self.communication(nbytes, ranks, buckets), kernel), reverse=True)
        return longer + (1 - self.hidden) * shorter


def parameter_bytes(row: Row) -> int:
    return row["parameters"] * np.dtype(row["dtype"]).itemsize


def fit(rows: list[Row]) -> Model:
    """Constants for rows of two ranks over one kind of link."""
    hidden = float(np.median([row["hidden"][1] for row in rows if row["resolvable"]] or [0.0]))
    sizes = np.array([parameter_bytes(row) for row in rows], float)
    communication = np.array([row["communication"][1] for row in rows])
    gamma = float(np.median([row["copies"][1] for row in rows] / (2 * sizes)))
    fast = [row for row in rows if row["kernel of"] == "C"]
    kappa = float(np.median([2 * row["kernel"][1] / parameter_bytes(row) for row in fast]))
    matrix = (
        np.stack([2 + 2 * np.array([row["buckets"] for row in rows], float), sizes], axis=1) / communication[:, None]
    )
    messages = (communication - 2 * sizes * gamma) / communication
    alpha, beta = np.linalg.lstsq(matrix, messages)[0]
    if alpha < 0:  # no latency is to be seen: the bandwidth alone
        alpha, beta = 0.0, np.linalg.lstsq(matrix[:, 1:], messages)[0][0]
    return Model(float(alpha), float(beta), gamma, kappa, hidden)


def fit_table(models: dict[str, Model], rows: list[Row]) -> str:
    lines = [
        "| between ranks | alpha, a message | 1 / beta, link | 1 / gamma, copies | kappa, 4 bytes | hidden "
        "| step, model / measured |",
        "|---|---|---|---|---|---|---|",
    ]
    for link, model in models.items():
        ratios = [
            model.step(parameter_bytes(row), 2, row["buckets"], row["kernel"][1]) / row["step"][1]
            for row in rows
            if row["link"] == link
        ]
        lines.append(
            f"| {link} | {1e6 * model.alpha:.0f} us | {1e-9 / model.beta:.3f} GB/s | {1e-9 / model.gamma:.1f} GB/s "
            f"| {4e9 * model.kappa:.2f} ns | {model.hidden:.0%} | {min(ratios):.2f} to {max(ratios):.2f} |"
        )
    return "\n".join(lines)


def buffer_bytes(ranks: int) -> int:
    """The default, and 1 MiB for each of many ranks: their pieces of a bucket would get too small."""
    return max(1 << 25, ranks << 20)


def bucket_count(parameters: float, ranks: int) -> int:
    """How many buckets `ShardedOptimizer` makes of one float32 group."""
    return math.ceil(parameters / ranks / piece_size(buffer_bytes(ranks) // IN_FLIGHT, ranks + 1, 4))


def paper_table(model: Model) -> str:
    """The model on the paper cluster: measured copies, kernel and overlap; assumed link."""
    paper = model._replace(alpha=LATENCY, beta=1 / LINK)
    lines = [
        "| ranks | memory a rank | buckets | communication | kernel | sharded step | unsharded step |",
        "|---|---|---|---|---|---|---|",
    ]
    nbytes = 4 * PARAMETERS
    for ranks in RANKS:
        buckets = bucket_count(PARAMETERS, ranks) if ranks > 1 else 0
        memory = 2 * nbytes + 2 * nbytes / ranks + (buffer_bytes(ranks) if ranks > 1 else 0)
        messages = paper.communication(nbytes, ranks, buckets) if ranks > 1 else 0.0
        kernel = nbytes / ranks * paper.kappa
        # Without sharding the gradients' sum moves as many bytes (all-reduce), in place, and every rank updates all.
        whole = messages - (2 * nbytes * paper.gamma if ranks > 1 else 0) + nbytes * paper.kappa
        lines.append(
            f"| {ranks:,} | {memory / 1e9:.2f} GB | {buckets:,} | {1e3 * messages:,.0f} ms | {1e3 * kernel:,.1f} ms "
            f"| {1e3 * paper.step(nbytes, ranks, buckets, kernel):,.0f} ms | {1e3 * whole:,.0f} ms |"
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
            document = with_numbers(document, text, f"<!-- mpi: {name} begin -->", f"<!-- mpi: {name} end -->")
        options.docs.write_text(document)
    return 0


if __name__ == "__main__":
    sys.exit(main())
