"""Run every compiled CUDA kernel over the fake driver, and compare all bits with the reference: minutes to an hour.

    python -m tests.proofs.cuda_bits [--full]

These are the checks of ``benchmarks/gpu_check.py`` (its stages "bits" and "fewer_bits"): every rule, variant and dtype
on raw bits, around every border and at odd addresses, the norm and the measures, ten steps of the classes, and arrays
of fewer bits; ``--full`` adds 20 million elements of each rule. The exit status is 1 if a bit differs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.support import ROOT, fake_cuda

STAGES = ("bits", "fewer_bits")


def main() -> int:
    if missing := fake_cuda.missing():
        print(missing)
        return 2
    quick = [] if "--full" in sys.argv[1:] else ["--quick"]
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bits.json"
        command = [sys.executable, "benchmarks/gpu_check.py", "--stages", ",".join(STAGES), "--json", str(path), *quick]
        done = subprocess.run(command, cwd=ROOT, env=fake_cuda.environment(), check=False)
        result = json.loads(path.read_text())
    if not set(STAGES) <= set(result):
        return done.returncode or 1
    checks, elements, differing = (
        sum(result[stage][what] for stage in STAGES) for what in ("checks", "elements", "differing")
    )
    print(
        f"{checks:,} checks of compiled CUDA kernels over the fake driver, {elements:,} elements, "
        f"{differing} differing, {time.perf_counter() - start:.0f} s"
    )
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
