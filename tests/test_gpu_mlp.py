"""The GPU example trains in the simulator, and agrees with NumPy."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest

from tests.support import ROOT, simulator

EXAMPLE = ROOT / "examples" / "gpu_mlp.py"
SLICE = ("--data=sklearn", "--train=8", "--test=8", "--batch=8", "--hidden=8", "--epochs=2", "--lr=0.02")
needs = [
    pytest.mark.skipif(find_spec("numba_cuda") is None, reason='LOUD: pip install ".[cuda]"'),
    pytest.mark.skipif(find_spec("sklearn") is None, reason='LOUD: pip install ".[examples]"'),
]
pytestmark = needs


def test_a_slice_in_the_simulator():
    done = simulator.run(str(EXAMPLE), *SLICE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "scikit-learn's digits: 8 images to learn from, 8 to test on; simulator, products by tiles" in done.stdout
    rows = [
        [float(x) for x in line.split()]
        for line in done.stdout.splitlines()
        if re.match(r"\s+\d+(\s+\d+\.\d+){4}$", line)
    ]
    assert [row[0] for row in rows] == [1, 2]
    for _, gpu_loss, cpu_loss, gpu_accuracy, cpu_accuracy in rows:
        assert gpu_loss == pytest.approx(cpu_loss, rel=1e-4)
        assert gpu_accuracy == cpu_accuracy
    assert rows[1][1] < rows[0][1], "it did not learn"


def test_without_a_gpu_it_says_so():
    from numba import cuda

    if cuda.is_available():
        pytest.skip("LOUD: there is a GPU here")
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "0"}
    done = subprocess.run(
        [sys.executable, str(EXAMPLE)], env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 2
    assert "no GPU was found" in done.stderr
