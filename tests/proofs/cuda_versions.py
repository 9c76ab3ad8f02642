"""Run the CUDA tests beside the oldest and the newest packages that the extra allows: environments of their own.

    python -m tests.proofs.cuda_versions [--folder FOLDER] [NAME ...]

Each row of `ENVIRONMENTS` gets a virtual environment in the folder (kept there, and used again), in which tests of the
fake driver, of PTX and machine code, and of the simulator run from this tree, with an empty cache of compiled kernels:
`TESTS`, under two minutes of processor time a row. Left out is most of what another of them shows as well, and
``gpu_check.py``, which `gpu_rehearsal` runs. Without cffi the C extension cannot be loaded either. The exit status is 1
if a test fails.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from tests.support import ROOT


class Environment(NamedTuple):
    python: str
    packages: tuple[str, ...]


CUDA_13_0 = ("cuda-toolkit==13.0.*", "cuda-bindings==13.0.*", "nvidia-nvjitlink==13.0.*")
CUDA_13_5 = ("cuda-toolkit>=13.5", "cuda-bindings>=13.5", "nvidia-nvjitlink>=13.5")
COMMON = ["numba-cuda[cu13]>=0.30.4", "cuda-toolkit[cudart]", "nvidia-cuda-nvdisasm>=13", "pytest>=8", "ml_dtypes"]
ENVIRONMENTS = {
    "oldest": Environment("python3.11", ("numba==0.61.0", "numba-cuda==0.30.4", "numpy==2.0.*", "cffi", *CUDA_13_0)),
    "newest": Environment("python3.11", ("numba", "numpy==2.4.*", "cffi", *CUDA_13_5)),
    # Beside what numba-cuda allows, and without cffi: what a borrowed machine has.
    "numpy-2.5": Environment("python3.12", ("numba", "numpy>=2.5", *CUDA_13_0)),
}
TESTS = (
    ["tests/backends/test_cuda_host.py", "-k", "not rehearsal and not stage and not gpu_mlp"],
    ["tests/backends/test_ptx.py", "-k", "adam or fewer_bits or fused_machine or sum_squares or flushing"],
    ["tests/support/simulator/cuda_logic.py", "-k", "classes or clipping or bad_input or groups or state_dict"],
)
VERSIONS = """
import platform
from importlib.metadata import PackageNotFoundError, version
import fastoptim
from fastoptim.backends import available
print("Python", platform.python_version(), end=", ")
for name in ("numpy", "numba", "numba-cuda", "cuda-bindings", "cffi"):
    try:
        print(name, version(name), end=", ")
    except PackageNotFoundError:
        print("no", name, end=", ")
print("C extension" if available("c") is None else "no C extension")
"""


def python_in(folder: Path, environment: Environment) -> Path:
    """The interpreter of an environment with these packages."""
    python = folder / "bin" / "python"
    if not python.exists():
        base = shutil.which(environment.python)
        if base is None:
            raise SystemExit(f"{environment.python} is needed: install it, and put it on the PATH")
        subprocess.run([base, "-m", "venv", str(folder)], check=True)
    subprocess.run([str(python), "-m", "pip", "install", "-q", *environment.packages, *COMMON], check=True)
    return python


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {list(ENVIRONMENTS)}; default: all")
    parser.add_argument("--folder", type=Path, help="keep the environments here")
    options = parser.parse_args()
    names = options.names or list(ENVIRONMENTS)
    passed = []
    with tempfile.TemporaryDirectory() as temporary:
        for name in names:
            start, counts = time.monotonic(), dict.fromkeys(("passed", "failed", "skipped", "errors"), 0)
            python = python_in((options.folder or Path(temporary)).resolve() / name, ENVIRONMENTS[name])
            settings = {"NUMBA_CACHE_DIR": f"{temporary}/{name}-cache", "PYTHONPATH": str(ROOT)}
            versions = subprocess.run(
                [str(python), "-c", VERSIONS], env=os.environ | settings, capture_output=True, text=True, check=True
            ).stdout.strip()
            for tests in TESTS:
                simulated = {"NUMBA_ENABLE_CUDASIM": str(int("simulator" in tests[0]))}
                done = subprocess.run(
                    [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
                    cwd=ROOT,
                    env=os.environ | settings | simulated,
                    capture_output=True,
                    text=True,
                    check=False,
                )
                if done.returncode:
                    counts["errors"] += 1
                    print(done.stdout[-6000:] + done.stderr[-2000:])
                for n, what in re.findall(r"(\d+) (passed|failed|skipped|errors?)", done.stdout.strip()[-200:]):
                    counts["errors" if what == "error" else what] += int(n)
            result = ", ".join(f"{n} {what}" for what, n in counts.items())
            print(f"{name}: {versions}: {result}, {time.monotonic() - start:.0f} s", flush=True)
            if counts["passed"] and not counts["failed"] and not counts["errors"]:
                passed.append(f"{name} ({counts['passed']} tests; {versions})")
    print(f"{len(passed)} of {len(names)} environments pass: {'; '.join(passed)}")
    return 0 if len(passed) == len(names) else 1


if __name__ == "__main__":
    sys.exit(main())
