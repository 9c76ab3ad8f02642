"""The CUDA backend without a GPU: its logic in Numba's simulator, and what it says where it cannot run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from importlib.util import find_spec

import numpy as np
import pytest

import fastoptim as fo
from benchmarks import gpu_numbers
from fastoptim.backends import available
from fastoptim.backends.cuda import backend as cuda_backend
from tests.support import ROOT, simulator
from tests.support.cases import SAMPLE

needs_numba_cuda = pytest.mark.skipif(
    find_spec("numba_cuda") is None, reason='LOUD: numba-cuda is missing: pip install ".[cuda]"'
)


@needs_numba_cuda
def test_logic_in_the_simulator():
    done = simulator.run("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/support/simulator/cuda_logic.py")
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|skipped)", done.stdout)}
    assert counts["passed"] > 80
    assert "skipped" not in counts


@needs_numba_cuda
def test_gpu_check_runs_through_its_logic(tmp_path):
    done = simulator.run("benchmarks/gpu_check.py", "--tune", "--json", str(tmp_path / "gpu.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert result["simulated"] is True
    assert result["bits"]["differing"] == 0
    assert result["bits"]["checks"] > len(SAMPLE)
    assert result["bits"]["elements"] > 10_000
    assert {row["rule"] for row in result["sizes"]} == {"sgd", "momentum", "adam"}
    assert set(result["first_use"]) == {"first_step_cold_s", "first_step_cached_s", "warm_step_host_us"}
    assert len(result["tune"]) == 2
    assert result["bars"] == {"0 differing bits": True}
    assert "simulated: the times mean nothing" in done.stdout


@pytest.mark.skipif(shutil.which("bash") is None, reason="LOUD: the page's commands were not run: install bash")
def test_the_page_of_a_run_finds_the_toolkit_or_names_none(tmp_path):
    """A script called nvcc, which some machines have, lies in no toolkit."""
    setup = (ROOT / "docs/development/gpu_run.md").read_text().partition("```sh\n")[2].partition("```")[0]
    setup = setup.replace("/usr/local/", f"{tmp_path}/local/")
    homes = []
    for folder in ("script/bin", "toolkit/bin"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "nvcc").write_text("#!/bin/sh\n")
        (tmp_path / folder / "nvcc").chmod(0o755)
    library = tmp_path / "toolkit/nvvm/libdevice/libdevice.10.bc"
    library.parent.mkdir(parents=True)
    library.touch()
    (tmp_path / "local").mkdir()
    for folder, local in (("toolkit", False), ("script", False), ("script", True)):
        if local:
            (tmp_path / "local/cuda").symlink_to(tmp_path / "toolkit")
        command = f"unset CUDA_HOME; {setup}\necho ${{CUDA_HOME-none}}"
        path = os.pathsep.join([str(tmp_path / folder / "bin"), os.environ["PATH"]])
        found = subprocess.check_output(
            ["bash", "-c", command], env=os.environ | {"PATH": path}, cwd=tmp_path, text=True
        )
        homes.append(found.strip())
    assert homes == [str(tmp_path / "toolkit"), "none", str(tmp_path / "local/cuda")]


PLANTED = """
import sys
sys.path.insert(0, "benchmarks")
import gpu_check
from fastoptim.backends.cuda import simulator
wrong = simulator.add
simulator.add = lambda a, b: wrong(a, b) * a.dtype.type(1 + 2e-7)
gpu_check.VARIANTS = gpu_check.VARIANTS[-2:]
checks = gpu_check.check_kernels(gpu_check.get_backend("cuda"), (9,), gpu_check.ordinary, 0)
print(sum(differing for *_, differing in checks))
"""


@needs_numba_cuda
def test_gpu_check_finds_a_planted_error():
    done = simulator.run("-c", PLANTED)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10


@pytest.fixture
def fresh(monkeypatch):
    """A backend that is looked for again."""
    from fastoptim.backends import get_backend

    get_backend.cache_clear()
    yield monkeypatch
    get_backend.cache_clear()


def test_missing_numba_cuda_is_named(fresh):
    fresh.setattr(cuda_backend, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'needs numba-cuda: pip install "numba-cuda\[cu13\]"'):
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


def test_the_page_says_what_was_predicted_and_measured():
    assert gpu_numbers.main(["--check"]) == 0
    assert gpu_numbers.predicted("adam", 10**8, 3350.0) == pytest.approx(28e8 / (0.88 * 3350e9))
