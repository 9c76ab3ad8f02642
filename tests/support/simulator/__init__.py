"""Processes in which Numba's simulator stands for a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

from .. import ROOT


def _stay_on_one_core() -> None:
    """The simulator's threads run one at a time, and take twice as long where they go from core to core."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def run(*command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run Python with the simulator, from the repository's folder."""
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1"}
    options = {"cwd": ROOT, "env": environment, "timeout": 900} | options
    if hasattr(os, "sched_setaffinity"):
        options["preexec_fn"] = _stay_on_one_core
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False, **options)
