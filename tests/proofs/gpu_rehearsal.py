"""Run every command of docs/development/gpu_run.md without a GPU: over the fake driver, and in Numba's simulator.

    python -m tests.proofs.gpu_rehearsal [BLOCK ...]

Each block must take no more processor time than the minutes that the page gives it (so that a busy machine may take
longer), and each command must end with status 0; only a stage of ``gpu_check.py`` that compiles hundreds of kernels may
say that its time was up. What such a machine has and this one lacks (nvcc, ncu, compute-sanitizer) is stood in for by
programs that run the command given to them. In the simulator, where examples would take hours, only the blocks of
``gpu_check.py`` run. The exit status is 1 if a block fails.
"""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.support import ROOT, fake_cuda

PAGE = ROOT / "docs" / "development" / "gpu_run.md"
BLOCK = re.compile(r"\*\*(\d)\. .*?\((\d+) minutes\).*?```sh\n(.*?)```", re.DOTALL)
STAND_IN = '#!/bin/sh\nwhile [ "$1" != python3 ]; do shift; done\nexec "$@"\n'
LATE = "the time was up"


def processor_time() -> float:
    """Seconds that processes have used which this one waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(setup: str, block: str, environment: dict[str, str], folder: Path) -> list[str]:
    """What went wrong in a block; its files go into the folder."""
    faults = []
    for command in filter(None, block.replace("\\\n", " ").splitlines()):
        before = set(folder.glob("*.json"))
        done = subprocess.run(
            ["bash", "-c", setup + command],
            cwd=ROOT,
            env=environment | {"RESULTS": str(folder)},
            capture_output=True,
            text=True,
            check=False,
        )
        files = set(folder.glob("*.json")) - before
        errors = [e for file in files for e in json.loads(file.read_text())["errors"].values()]
        if done.returncode and not (errors and all(LATE in e for e in errors)):
            faults.append(f"{command}: status {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return faults


def main() -> int:
    if missing := fake_cuda.missing():
        print(missing)
        return 2
    page = PAGE.read_text()
    setup = page.partition("```sh\n")[2].partition("```")[0]
    simulator = os.environ | {"NUMBA_ENABLE_CUDASIM": "1", "PYTHONPATH": str(ROOT)}
    failed, lines = False, []
    for where, environment in (("fake driver", fake_cuda.environment()), ("simulator", simulator)):
        with tempfile.TemporaryDirectory() as temporary:
            programs = dict.fromkeys(("nvcc", "ncu", "compute-sanitizer"), STAND_IN)
            programs["python3"] = f'#!/bin/sh\nexec {sys.executable} "$@"\n'
            for name, text in programs.items():
                (Path(temporary) / name).write_text(text)
                (Path(temporary) / name).chmod(0o755)
            environment["PATH"] = f"{temporary}{os.pathsep}{environment['PATH']}"
            for number, minutes, block in BLOCK.findall(page):
                simulable = all(line.startswith("$CHECK") for line in block.splitlines())
                if (sys.argv[1:] and number not in sys.argv[1:]) or (where == "simulator" and not simulable):
                    continue
                start, used = time.monotonic(), processor_time()
                faults = run(setup, block, environment, Path(temporary))
                seconds, used = time.monotonic() - start, processor_time() - used
                if used > 60 * int(minutes):
                    faults.append(f"it took longer than {minutes} minutes")
                failed |= bool(faults)
                times = f"{used:.0f} s of the processor, {seconds:.0f} s, of {60 * int(minutes)} s"
                lines.append(f"{number}: {times}" + (", FAILED" if faults else ""))
                print(f"{where}, block {lines[-1]}", *faults, sep="\n", flush=True)
    print(f"{len(lines)} blocks rehearsed, {sum('FAILED' in line for line in lines)} failed ({'; '.join(lines)})")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
