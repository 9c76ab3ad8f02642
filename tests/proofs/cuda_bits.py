"""Run every compiled CUDA kernel over the fake driver, and compare all bits with the reference: minutes to an hour.

    python -m tests.proofs.cuda_bits [--full]

These are the checks of ``benchmarks/gpu_check.py`` (stage "bits"): every rule, variant and dtype on raw bits, around
every border and at odd addresses, the norm, and ten steps of the classes; ``--full`` adds 20 million elements of each
rule. The exit status is 1 if a bit differs.
"""

from __future__ import annotations

import subprocess
import sys

from tests.support import ROOT, fake_cuda


def main() -> int:
    if missing := fake_cuda.missing():
        print(missing)
        return 2
    quick = [] if "--full" in sys.argv[1:] else ["--quick"]
    command = [sys.executable, "benchmarks/gpu_check.py", "--stages", "bits", *quick]
    return subprocess.run(command, cwd=ROOT, env=fake_cuda.environment(), check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
