"""Copy what the proofs have found into the documentation: python -m tests.proofs.summary

Each proof's output lies in ``benchmarks/results/NAME.txt``; its last line, the result, goes into
docs/development/verification.md, and what `parity` says of each class into the table of docs/guide/rules.md.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "development" / "verification.md"
TABLE = ROOT / "docs" / "guide" / "rules.md"
TABLES = ("kernels", "storage", "checkpoint", "training", "tuning")
PLATFORMS = ("golden_elsewhere", "free_threads", "versions", "windows")
PROOFS = ("million_steps", "mpi_bits", *PLATFORMS, "cuda_bits", "cuda_versions", "gpu_rehearsal")
PARITY = ("parity_torch", "parity_keras", "parity_optax")
NAMES = ("random_cases", "random_measures", *PARITY, *(f"mutants_{table}" for table in TABLES), *PROOFS)
BEGIN, END = "<!-- figures: begin -->\n", "<!-- figures: end -->"
LIBRARIES = {"torch": "torch", "optax": "Optax", "keras": "Keras", "schedulefree": "the authors'"}


def distances() -> dict[str, dict[str, float]]:
    """Class -> library -> how far the two lay apart at most, in machine epsilons."""
    found: dict[str, dict[str, float]] = {}
    for name in PARITY:
        text = (RESULTS / f"{name}.txt").read_text()
        for library, cls, epsilons in re.findall(r"^(\w+)-(\w+) float\d\d: ([\d.]+) epsilons", text, re.MULTILINE):
            of_class = found.setdefault(cls, {})
            of_class[LIBRARIES[library]] = max(of_class.get(LIBRARIES[library], 0.0), float(epsilons))
    return found


def exactness(classes: list[str], found: dict[str, dict[str, float]]) -> str:
    """A cell of the last column; where not all classes of a row were compared, it names those that were."""
    told = []
    for library in LIBRARIES.values():
        compared = [cls for cls in classes if library in found.get(cls, {})]
        which = "" if compared == classes else f" ({', '.join(f'`{cls}`' for cls in compared)})"
        if compared:
            told.append(f"{library} {max(found[cls][library] for cls in compared):.1f}{which}")
    return ", ".join(told) or "-"


def with_exactness(text: str) -> str:
    """The page of rules with the last column of its table as it was measured."""
    found = distances()

    def filled(row: re.Match[str]) -> str:
        classes = re.findall(r"`(\w+)`", row[2])
        return f"{row[1]}| {exactness(classes, found)} |"

    before, heading, rest = text.partition("| class | functional form |")
    table, end, after = rest.partition("\n\n")
    table = re.sub(r"^(\| ([^|-][^|]*)\|.*)\|[^|]*\|$", filled, table, flags=re.MULTILINE)
    return before + heading + table + end + after


def main() -> int:
    TABLE.write_text(with_exactness(TABLE.read_text()))
    lines = [f"- `{name}`: {(RESULTS / f'{name}.txt').read_text().strip().splitlines()[-1]}\n" for name in NAMES]
    head, _, rest = PAGE.read_text().partition(BEGIN)
    tail = rest.partition(END)[2]
    PAGE.write_text(head + BEGIN + "".join(lines) + END + tail)
    return 0


if __name__ == "__main__":
    sys.exit(main())
