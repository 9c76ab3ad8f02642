"""Run every compiled CUDA kernel over the fake driver, and compare all bits with the reference: minutes to an hour.

    python -m tests.proofs.cuda_bits [--full]

These are the checks of ``benchmarks/gpu_check.py`` (stage "bits"): every rule, variant and dtype on raw bits, around
every border and at odd addresses, arrays of fewer bits, the norm, and ten steps of the classes; ``--full`` adds 20
million elements of each rule. The exit status is 1 if a bit differs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.support import ROOT, fake_cuda


def main() -> int:
    if missing := fake_cuda.missing():
        print(missing)
        return 2
    quick = [] if "--full" in sys.argv[1:] else ["--quick"]
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bits.json"
        command = [sys.executable, "benchmarks/gpu_check.py", "--stages", "bits", "--json", str(path), *quick]
        done = subprocess.run(command, cwd=ROOT, env=fake_cuda.environment(), check=False)
        found = json.loads(path.read_text()).get("bits", {})
    if not found:
        return done.returncode or 1
    print(
        f"{found['checks']:,} checks of compiled CUDA kernels over the fake driver, {found['elements']:,} elements, "
        f"{found['differing']} differing, {time.perf_counter() - start:.0f} s"
    )
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
