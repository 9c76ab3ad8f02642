"""The CUDA backend's real host code and its compiled kernels' arithmetic, over a driver that needs no GPU."""

from __future__ import annotations

import re

import pytest

from tests.support import fake_cuda

MISSING = fake_cuda.missing()
pytestmark = pytest.mark.skipif(MISSING is not None, reason=f"LOUD: nothing of CUDA was run: {MISSING}")


def test_host_code_and_compiled_kernels_over_the_fake_driver():
    done = fake_cuda.run("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/support/fake_cuda/checks.py", devices=2)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|skipped)", done.stdout)}
    assert counts["passed"] > 40
    assert "skipped" not in counts
