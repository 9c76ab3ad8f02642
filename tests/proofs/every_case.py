"""The tests of bits over every kernel, convention and direction, where the suite has samples.

Run: python -m tests.proofs.every_case

Arguments are handed to pytest.
"""

from __future__ import annotations

import os
import subprocess
import sys

FILES = [f"tests/backends/test_{name}.py" for name in ("bits", "numba", "ptx", "cuda_simulator", "golden", "emulated")]

if __name__ == "__main__":
    command = [sys.executable, "-m", "pytest", "-q", *FILES, *sys.argv[1:]]
    sys.exit(subprocess.run(command, env={**os.environ, "FASTOPTIM_TEST_EVERY_CASE": "1"}, check=False).returncode)
