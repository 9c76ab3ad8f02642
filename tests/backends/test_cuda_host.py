"""The CUDA backend's real host code and its compiled kernels' arithmetic, over a driver that needs no GPU."""

from __future__ import annotations

import json
import re

import pytest

from benchmarks import gpu_numbers
from tests.support import fake_cuda

MISSING = fake_cuda.missing()
pytestmark = pytest.mark.skipif(MISSING is not None, reason=f"LOUD: nothing of CUDA was run: {MISSING}")


def test_host_code_and_compiled_kernels_over_the_fake_driver():
    files = [f"tests/support/fake_cuda/{name}.py" for name in ("checks", "stored_checks")]
    done = fake_cuda.run("-m", "pytest", "-q", "-p", "no:cacheprovider", *files, devices=2)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|skipped)", done.stdout)}
    assert counts["passed"] > 40
    assert "skipped" not in counts


WITHOUT_ROW_STACK = """
import numpy as np
if hasattr(np, "row_stack"):
    del np.row_stack  # as in NumPy 2.5, whose place it takes here
from fastoptim.backends.cuda import backend
PLANTED
import fastoptim as fo
from numba import cuda
p = cuda.to_device(np.ones(3, np.float32))
fo.SGD(p, lr=0.5).step(cuda.to_device(np.ones(3, np.float32)))
assert p.copy_to_host().tolist() == [0.5] * 3
assert not hasattr(np, "row_stack"), "the stand-in stays"
print("stepped")
"""


def test_kernels_compile_beside_numpy_2_5(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))  # nothing compiled is there yet
    done = fake_cuda.run("-c", WITHOUT_ROW_STACK.replace("PLANTED", ""))
    assert done.stdout == "stepped\n", done.stderr[-2000:]
    done = fake_cuda.run("-c", WITHOUT_ROW_STACK.replace("PLANTED", "backend.load_overloads = lambda: None"))
    assert "row_stack" in done.stderr, "the fault that this is about is not seen any more"


WITHOUT = """
import sys
for name in ("cffi", "_cffi_backend", "fastoptim._c"):
    sys.modules[name] = None
import numpy as np
import fastoptim as fo
from numba import cuda
p = cuda.to_device(np.ones(3, np.float32))
fo.SGD(p, lr=0.5).step(cuda.to_device(np.ones(3, np.float32)), max_norm=100.0)
print(p.copy_to_host().tolist(), fo.SGD(p, lr=0.5).backend)
"""


def test_steps_need_neither_cffi_nor_the_extension():
    done = fake_cuda.run("-c", WITHOUT)
    assert done.stdout == "[0.5, 0.5, 0.5] cuda\n", done.stderr[-2000:]


MISMATCH = """
import sys, types
import numba
class Loader:
    def find_spec(self, name, path=None, target=None):
        if name == "numba.cuda":
            raise AttributeError("module 'numba.core.config' has no attribute 'CUDA_ENABLE_PYNVJITLINK'")
sys.modules.pop("numba.cuda", None)
sys.meta_path.insert(0, Loader())
from fastoptim.backends import available
print(available("cuda"))
"""


def test_a_numba_cuda_that_does_not_fit_numba_is_named():
    done = fake_cuda.run("-c", MISMATCH)
    assert "needs a numba-cuda that fits the installed numba: pip install -U" in done.stdout, done.stderr[-2000:]
    assert "CUDA_ENABLE_PYNVJITLINK" in done.stdout


NUMBAS_OWN = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__name__ != "NumbaCudaFinder"]
from fastoptim.backends import available
print(available("cuda"))
"""


def test_numba_cuda_that_does_not_take_its_place_is_named():
    """As where it lies in a folder on PYTHONPATH."""
    done = fake_cuda.run("-c", NUMBAS_OWN)
    assert "numba.cuda is numba's own" in done.stdout, done.stderr[-2000:]
    assert "pip install -U" in done.stdout


REHEARSED = "environment,smoke,ordering,users,sizes,device,lists,rules,storages,first_use"


def test_rehearsal_of_a_run_on_a_gpu(tmp_path):
    """All stages of ``gpu_check.py`` but the bits, which the simulator goes through, and proofs/cuda_bits.py here."""
    path = tmp_path / "gpu.json"
    command = ("benchmarks/gpu_check.py", "--quick", "--stages", REHEARSED, "--json", str(path))
    done = fake_cuda.run(*command, "--minutes", "10")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    result = json.loads(path.read_text())
    assert result["errors"] == {}
    assert set(result["seconds"]) == set(REHEARSED.split(","))
    assert [result[stage]["differing"] for stage in ("smoke", "ordering", "users")] == [0, 0, 0]
    assert len(result["sizes"]) == 3
    figures = gpu_numbers.numbers([result | {"fake_driver": False}])
    row = result["sizes"][0]
    assert f"| {row['gigabytes_per_second']:.0f} |" in figures
    assert "first step: " in figures.lower()
    assert "Nothing has been measured" in gpu_numbers.numbers([result]), "without a GPU nothing is"


PLANTED = """
import os, sys, time
sys.path.insert(0, "benchmarks")
import gpu_check

def dies(*_):
    yield from (("check", 1, 0) for _ in range(15))
    os._exit(9)

def perform(stage, *rest, original=gpu_check.perform_apart):
    gpu_check.SILENCE = 1.0 if stage == "ordering" else 100.0
    return original(stage, *rest)

gpu_check.__file__ = __file__
gpu_check.perform_apart = perform
gpu_check.check_ordering = lambda _: time.sleep(100)
gpu_check.check_bits = dies
gpu_check.check_smoke = lambda _: 1 / 0
sys.exit(gpu_check.main())
"""


def test_a_stage_that_hangs_dies_fails_or_comes_too_late_costs_no_other(tmp_path):
    script, path = tmp_path / "planted.py", tmp_path / "gpu.json"
    script.write_text(PLANTED)
    for minutes, stages in (("10", "ordering,bits,smoke"), ("0", "smoke,environment")):
        done = fake_cuda.run(str(script), "--apart", "--stages", stages, "--json", str(path), "--minutes", minutes)
        assert done.returncode == 1, done.stderr[-2000:]
        errors = (result := json.loads(path.read_text()))["errors"]
        if minutes == "0":
            assert "the time was up" in errors["environment"]
            continue
        assert "ended after 1 s" in errors["ordering"]
        assert "status 9" in errors["bits"]
        assert result["bits"]["elements"] == 10, "what it had written is lost"
        assert "ZeroDivisionError" in errors["smoke"]
        assert set(tmp_path.iterdir()) == {script, path}


SMALL_NETWORK = "--train 64 --test 32 --batch 16 --hidden 16 --epochs 2 --data made --matmul tiles"
EXAMPLES = {"gpu_mlp.py": SMALL_NETWORK, "gpu_streams.py": "--steps 60"}


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_train_over_the_fake_driver(name):
    done = fake_cuda.run(f"examples/{name}", *EXAMPLES[name].split())
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert ("agree" if name == "gpu_mlp.py" else "0 differing") in done.stdout
