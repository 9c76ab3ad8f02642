"""Copy the last lines of the proofs' outputs into docs/development/verification.md: python -m tests.proofs.summary

Each proof's output lies in ``benchmarks/results/NAME.txt``; its last line is its result.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "development" / "verification.md"
TABLES = ("kernels", "checkpoint", "training", "tuning")
PLATFORMS = ("golden_elsewhere", "free_threads", "versions", "windows")
PROOFS = ("million_steps", *PLATFORMS, "cuda_bits", "cuda_versions", "gpu_rehearsal")
PARITY = ("parity_torch", "parity_keras", "parity_optax")
NAMES = ("random_cases", "random_measures", *PARITY, *(f"mutants_{table}" for table in TABLES), *PROOFS)
BEGIN, END = "<!-- figures: begin -->\n", "<!-- figures: end -->"


def main() -> int:
    lines = [f"- `{name}`: {(RESULTS / f'{name}.txt').read_text().strip().splitlines()[-1]}\n" for name in NAMES]
    head, _, rest = PAGE.read_text().partition(BEGIN)
    tail = rest.partition(END)[2]
    PAGE.write_text(head + BEGIN + "".join(lines) + END + tail)
    return 0


if __name__ == "__main__":
    sys.exit(main())
