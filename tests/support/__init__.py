"""What tests share: cases and expected results, golden hashes, simulated hosts, MPI."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROOFS = ROOT / "tests" / "proofs"
