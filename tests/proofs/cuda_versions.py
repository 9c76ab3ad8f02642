"""Run the CUDA tests beside the oldest and the newest packages that the extra allows: environments of their own.

    python -m tests.proofs.cuda_versions [--folder FOLDER] [NAME ...]

Each row of `ENVIRONMENTS` gets a virtual environment in the folder (kept there, and used again), in which the tests of
the simulator, of the fake driver and of PTX run from this tree, with an empty cache of compiled kernels. Without cffi
the C extension cannot be loaded either. The exit status is 1 if a test fails.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from tests.support import ROOT

CUDA = ["cuda-toolkit==13.0.*", "cuda-bindings==13.0.*", "nvidia-nvjitlink==13.0.*", "nvidia-cuda-nvdisasm>=13"]
COMMON = ["numba-cuda[cu13]>=0.30.4", "pytest>=8", "ml_dtypes", *CUDA]
ENVIRONMENTS = {
    "oldest": ["numba==0.61.0", "numba-cuda==0.30.4", "numpy==2.0.*", "cffi"],
    "newest": ["numba", "numpy==2.4.*", "cffi"],
    "numpy-2.5": ["numba", "numpy>=2.5"],  # beside what numba-cuda allows, and without cffi
}
TESTS = [f"tests/backends/test_{name}.py" for name in ("cuda_simulator", "cuda_host", "ptx")]
VERSIONS = """
from importlib.metadata import PackageNotFoundError, version
for name in ("numpy", "numba", "numba-cuda", "cuda-bindings", "cffi"):
    try:
        print(name, version(name), end="; ")
    except PackageNotFoundError:
        print("no", name, end="; ")
"""


def python_in(folder: Path, packages: list[str]) -> Path:
    """The interpreter of an environment with these packages."""
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        venv.create(folder, with_pip=True)
    subprocess.run([str(python), "-m", "pip", "install", "-q", *packages, *COMMON], check=True)
    return python


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {list(ENVIRONMENTS)}; default: all")
    parser.add_argument("--folder", type=Path, help="keep the environments here")
    options = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as temporary:
        for name in options.names or ENVIRONMENTS:
            python = python_in((options.folder or Path(temporary)).resolve() / name, ENVIRONMENTS[name])
            versions = subprocess.run([str(python), "-c", VERSIONS], capture_output=True, text=True, check=True).stdout
            environment = os.environ | {"NUMBA_CACHE_DIR": f"{temporary}/{name}-cache", "PYTHONPATH": str(ROOT)}
            command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS]
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                print(done.stdout[-6000:] + done.stderr[-2000:])
            counts = re.findall(r"\d+ (?:passed|failed|skipped|errors?)", done.stdout.strip().splitlines()[-1])
            print(f"{name}: {versions}{', '.join(counts)}", flush=True)
            failed |= done.returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
