"""The check on a GPU keeps what it has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from tests.support import ROOT

GPU_CHECK = """
import json, os, sys
from pathlib import Path

sys.path.insert(0, "benchmarks")
sys.modules["_cffi_backend"] = None  # the machine with the GPU need not have what the C extension needs
import gpu_check

def cut_short(*arguments):
    raise TimeoutError

def cut_short_later(*arguments):
    yield cut_short()

one_a_rule = list({variant.rule.name: variant for variant in gpu_check.VARIANTS}.values())
checks = list(gpu_check.check_kernels(gpu_check.get_backend("cuda"), (5,), gpu_check.ordinary, 0, one_a_rule))
assert len(checks) == 2 * len(gpu_check.rules.RULES) and not sum(differing for *_, differing in checks)

result = {"bits": {"differing": 0}, "lists": [], "sizes": []}
for name, factors in (("tied", (1.02, 0.995, 0.99, 0.98)), ("lost", (0.9, 0.91, 0.92, 0.93))):
    times = {"torch_fused": list(factors), "ours": [1.0] * 4}
    result["lists"].append({"list": name, "torch_over_ours": gpu_check.against(times, "torch_fused")})
print(">", json.dumps(gpu_check.bars(result)))

gpu_check.check_bits = lambda *arguments: {"checks": 7, "differing": 0}
for stage, stop in (("time_first_use", cut_short), ("time_lists", cut_short_later)):
    usual = getattr(gpu_check, stage)
    setattr(gpu_check, stage, stop)
    try:
        gpu_check.main(["--quick", "--json", sys.argv[1]])
    except TimeoutError:
        print(">", Path(sys.argv[1]).read_text().replace("\\n", ""))
    setattr(gpu_check, stage, usual)

os.environ["PATH"] = ""
gpu_check.SIMULATED = False
print(">", json.dumps(gpu_check.environment()["nvidia_smi"]))
"""


@pytest.mark.skipif(find_spec("numba_cuda") is None, reason='NOT TESTED: gpu_check; pip install ".[cuda]"')
def test_gpu_check_keeps_what_it_has_and_needs_neither_cffi_nor_nvidia_smi(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", GPU_CHECK, str(tmp_path / "new" / "gpu.json")],
        cwd=ROOT,
        env=os.environ | {"NUMBA_ENABLE_CUDASIM": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line[2:]) for line in done.stdout.splitlines() if line.startswith("> ")]
    met, bits_only, up_to_lists, smi = lines
    assert met == {
        "0 differing bits": True,
        "tied: no slower than torch fused": True,
        "lost: no slower than torch fused": False,
    }
    assert set(bits_only) == {"simulated", "environment", "bits"} and bits_only["bits"]["checks"] == 7
    assert len(up_to_lists["sizes"]) == 3 and up_to_lists["lists"] == []
    assert smi == []
