"""Start several processes under MPI, for tests, proofs and benchmarks."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support import ROOT


def mpiexec() -> str | None:
    """The launcher beside this Python (where the mpich wheel puts it) or on the path; None without mpi4py."""
    if importlib.util.find_spec("mpi4py") is None:
        return None
    beside = Path(sys.executable).parent / "mpiexec"
    return str(beside) if beside.exists() else shutil.which("mpiexec")


def command(ranks: int, *arguments: object) -> list[str]:
    """The command line that runs ``python arguments...`` in so many processes."""
    launcher = mpiexec()
    assert launcher, 'this needs mpi4py and MPI: pip install ".[mpi]"'
    return [launcher, "-n", str(ranks), sys.executable, *map(str, arguments)]


def environment(**extra: str) -> dict[str, str]:
    """The environment of ranks that share few cores: NumPy's BLAS must not take them all, nor must waiting (MPICH)."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return os.environ | {"OPENBLAS_NUM_THREADS": "1", "MPIR_CVAR_ENABLE_HEAVY_YIELD": "1", "PYTHONPATH": path} | extra


def run(ranks: int, *arguments: object, timeout: float = 120, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run ``python arguments...`` in `ranks` processes and wait; TimeoutExpired if they hang."""
    return subprocess.run(
        command(ranks, *arguments),
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment(**extra),
        check=False,
    )


def run_worker(file: Path, ranks: int, *arguments: object) -> None:
    """Run a function of a file that calls `run_named`; AssertionError unless all ranks have come to its end."""
    done = run(ranks, file, *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert all(f"rank {rank} done" in lines for rank in range(ranks)), done.stdout


def run_named(functions: dict[str, Any], rank: int) -> None:
    """In a worker: call the function that the command line names with the arguments after it; say when it is done."""
    name, *arguments = sys.argv[1:]
    functions[name](*arguments)
    sys.stdout.write(f"rank {rank} done\n")
    sys.stdout.flush()
