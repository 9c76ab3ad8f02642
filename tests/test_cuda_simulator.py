"""The CUDA backend without a GPU: its logic in Numba's simulator, and what it says where it cannot run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import fastoptim as fo
from fastoptim.backends import available
from fastoptim.backends import cuda as cuda_backend

ROOT = Path(__file__).parents[1]
needs_numba_cuda = pytest.mark.skipif(
    find_spec("numba_cuda") is None, reason='LOUD: numba-cuda is missing: pip install "fastoptim[cuda]"'
)


@needs_numba_cuda
def test_logic_in_the_simulator():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/simulator/cuda_logic.py"],
        cwd=ROOT,
        env=os.environ | {"NUMBA_ENABLE_CUDASIM": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|skipped)", done.stdout)}
    assert counts["passed"] > 80
    assert "skipped" not in counts


@pytest.fixture
def fresh(monkeypatch):
    """A backend that is looked for again."""
    from fastoptim.backends import get_backend

    get_backend.cache_clear()
    yield monkeypatch
    get_backend.cache_clear()


def test_missing_numba_cuda_is_named(fresh):
    fresh.setattr(cuda_backend, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'needs numba-cuda: pip install "fastoptim\[cuda\]"'):
        fo.SGD(np.ones(3), backend="cuda")
    assert "numba-cuda" in available("cuda")


class NoDriver:
    """numba.cuda on a machine that has no driver, or no GPU."""

    def __init__(self, error):
        self.error = error

    def is_available(self):
        return False

    def cuda_error(self):
        return self.error


@pytest.mark.parametrize(
    ("error", "said"), [("\nCUDA driver library\ncannot be found.\n", "CUDA driver library cannot"), (None, "no GPU")]
)
def test_missing_driver_or_gpu_is_named_in_one_sentence(error, said):
    with pytest.raises(RuntimeError) as caught:
        cuda_backend._require_device(NoDriver(error))
    message = str(caught.value)
    assert said in message
    assert "install NVIDIA's driver" in message
    assert "\n" not in message


@needs_numba_cuda
def test_here_the_backend_works_or_says_why_not():
    from numba import cuda

    reason = available("cuda")
    assert (reason is None) == cuda.is_available()
    if reason is not None:
        with pytest.raises(RuntimeError, match="needs an NVIDIA GPU and its driver"):
            fo.SGD(np.ones(3), backend="cuda")
