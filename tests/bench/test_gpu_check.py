"""The check on a GPU keeps what it has."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest

from tests.support import simulator

pytestmark = pytest.mark.skipif(find_spec("numba_cuda") is None, reason='NOT TESTED: gpu_check; pip install ".[cuda]"')


def simulated(*command):
    """What Python prints in a process of its own, with Numba's simulator."""
    done = simulator.run(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


GPU_CHECK = """
import json, os, sys
from pathlib import Path

sys.path.insert(0, "benchmarks")
sys.modules["_cffi_backend"] = None  # the machine with the GPU need not have what the C extension needs
import gpu_check

def cut_short(*arguments):
    yield {"list": "the first", "arrays": 1}
    raise TimeoutError

one_a_rule = list({variant.rule.name: variant for variant in gpu_check.VARIANTS}.values())
checks = list(gpu_check.check_kernels(gpu_check.get_backend("cuda"), (5,), gpu_check.ordinary, 0, one_a_rule))
assert len(checks) == 2 * len(gpu_check.RULES) and not sum(differing for *_, differing in checks)

result = {"bits": {"differing": 0}, "lists": [], "sizes": []}
for name, factors in (("tied", (1.02, 0.995, 0.99, 0.98)), ("lost", (0.9, 0.91, 0.92, 0.93))):
    times = {"torch_fused": list(factors), "ours": [1.0] * 4}
    result["lists"].append({"list": name, "torch_over_ours": gpu_check.against(times, "torch_fused")})
print(">", json.dumps(gpu_check.bars(result)))

gpu_check.check_bits = lambda *arguments: iter(7 * [checks[0]])
gpu_check.time_lists = cut_short
status = gpu_check.main(["--quick", "--stages", "environment,bits,lists,sizes", "--json", sys.argv[1]])
print(">", json.dumps({"status": status, **json.loads(Path(sys.argv[1]).read_text())}))

os.environ["PATH"] = ""
gpu_check.SMALL = False
print(">", json.dumps(gpu_check.environment()["nvidia_smi"]))
"""


def test_gpu_check_keeps_what_it_has_and_needs_neither_cffi_nor_nvidia_smi(tmp_path):
    printed = simulated("-c", GPU_CHECK, str(tmp_path / "new" / "gpu.json"))
    lines = [json.loads(line[2:]) for line in printed.splitlines() if line.startswith("> ")]
    met, kept, smi = lines
    assert met == {
        "0 differing bits": True,
        "tied: no slower than torch fused": True,
        "lost: no slower than torch fused": False,
    }
    assert kept["status"] == 1 and "TimeoutError" in kept["errors"]["lists"]
    assert kept["bits"]["checks"] == 7 and len(kept["sizes"]) == 3 and "environment" in kept
    assert [row["list"] for row in kept["lists"]] == ["the first"]  # what a stage had found before it failed
    assert smi == []


def test_processes_share_the_checks_of_bits(tmp_path):
    path, found = tmp_path / "gpu.json", []
    for jobs in (1, 2):
        options = ("--quick", "--apart", "--jobs", str(jobs), "--stages", "environment,fewer_bits", "--json", str(path))
        simulated("benchmarks/gpu_check.py", *options)
        result = json.loads(path.read_text())
        assert result["errors"] == {}
        found.append(result["fewer_bits"])
    assert found[0] == found[1]
    assert found[0]["checks"] > 1
