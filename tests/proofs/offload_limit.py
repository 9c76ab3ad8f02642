"""Step a model that is four times larger than its memory limit, and compare it with the in-memory run, bit for bit.

    python tests/proofs/offload_limit.py [--gib 2] [--limit-mib 512] [--steps 10] [--folder DIR]

Parameters, gradients and both Adam states lie in files; a child process steps them inside a memory cgroup of its own, a
child of the one that this process is in, whose limit covers everything: anonymous memory, mapped pages, page cache.
(``ulimit -v`` would count address space, of which mapping a file takes its full length, rather than memory.) Files are
written back and dropped from the page cache first, so that the child is charged for every page it touches. A second
child takes the same steps in memory, without the limit; SHA-256 digests of all parameters and states must be equal.
Needs free disk and free memory of four times the parameters. Everything is removed at the end.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import fastoptim as fo

SHARES = {"embedding": 0.5, "hidden": 0.375, "output": 0.125}
BLOCK = 1 << 24  # bytes written or hashed at a time


def write_files(folder: Path, total: int) -> None:
    rng = np.random.default_rng(0)
    for kind, scale in (("parameter", 1.0), ("gradient", 0.1)):
        for name, share in SHARES.items():
            left = int(total * share)
            with open(folder / f"{kind}-{name}", "wb") as file:
                while left > 0:
                    count = min(left, BLOCK)
                    file.write((scale * (rng.random(count // 4, np.float32) - 0.5)).astype(np.float32).data)
                    left -= count
                file.flush()
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def digest(parts) -> str:
    sha = hashlib.sha256()
    for x in parts:
        flat = x.reshape(-1)
        for start in range(0, flat.size, BLOCK // 4):
            sha.update(np.ascontiguousarray(flat[start : start + BLOCK // 4]).data)
    return sha.hexdigest()


def steps(folder: Path, count: int, on_disk: bool, budget: int) -> dict:
    """What a child does: the steps, and the digest of what they left."""

    def load(kind: str, mode: str):
        arrays = {name: np.memmap(folder / f"{kind}-{name}", np.float32, mode) for name in SHARES}
        return arrays if on_disk else {name: np.array(x) for name, x in arrays.items()}

    params, grads = load("parameter", "r+"), load("gradient", "r")
    options = {"state_dir": folder / "states", "memory_budget": budget} if on_disk else {}
    opt = fo.AdamW(params, lr=1e-2, weight_decay=0.1, backend="c", **options)
    began = time.perf_counter()
    for t in range(count):
        opt.step(grads, grad_scale=0.9**t)
    seconds = time.perf_counter() - began
    status = Path("/proc/self/status").read_text().splitlines()
    resident = int(next(line for line in status if line.startswith("VmHWM")).split()[1]) >> 10
    ordered = [x for name in SHARES for x in (params[name], *(opt.state[name][k] for k in ("exp_avg", "exp_avg_sq")))]
    result = {"digest": digest(ordered), "seconds": round(seconds, 1), "peak_resident_mib": resident}
    del ordered, opt
    gc.collect()
    return result


class MemoryGroup:
    """A child of this process's memory cgroup with a limit, version 1 or 2; removed on exit."""

    def __init__(self, limit: int):
        lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
        old = next((path for _, controllers, path in lines if "memory" in controllers.split(",")), None)
        root = Path("/sys/fs/cgroup/memory" if old is not None else "/sys/fs/cgroup")
        own = old if old is not None else next(path for number, _, path in lines if number == "0")
        self.path = root / own.lstrip("/") / f"fastoptim-{os.getpid()}"
        self.version = 1 if old is not None else 2
        self.limit = limit

    def __enter__(self) -> MemoryGroup:
        self.path.mkdir()
        name = "memory.limit_in_bytes" if self.version == 1 else "memory.max"
        try:
            (self.path / name).write_text(str(self.limit))
        except OSError:
            self.path.rmdir()
            raise
        return self

    def enter_child(self) -> None:
        (self.path / "cgroup.procs").write_text(str(os.getpid()))

    def peak(self) -> int:
        name = "memory.max_usage_in_bytes" if self.version == 1 else "memory.peak"
        return int((self.path / name).read_text()) >> 20

    def __exit__(self, *error: object) -> None:
        self.path.rmdir()


def child(arguments, on_disk: bool, group: MemoryGroup | None) -> dict:
    command = [sys.executable, __file__, "--child", "disk" if on_disk else "memory", "--folder", str(arguments.folder),
               "--steps", str(arguments.steps), "--limit-mib", str(arguments.limit_mib)]  # fmt: skip
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, preexec_fn=group.enter_child if group else None, check=False
    )
    if done.returncode:
        raise SystemExit(f"the run {'on disk' if on_disk else 'in memory'} failed with status {done.returncode}")
    return json.loads(done.stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=2.0, help="size of the parameters")
    parser.add_argument("--limit-mib", type=int, default=512)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--folder", help="where to put the files")
    parser.add_argument("--child", choices=("disk", "memory"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        budget = arguments.limit_mib * (1 << 20) // 4
        print(json.dumps(steps(Path(arguments.folder), arguments.steps, arguments.child == "disk", budget)))
        return 0
    total = int(arguments.gib * (1 << 30))
    base = arguments.folder or tempfile.gettempdir()
    if shutil.disk_usage(base).free < 4.5 * total:
        raise SystemExit(f"not enough free disk: {4.5 * total / (1 << 30):.1f} GiB are needed")
    arguments.folder = tempfile.mkdtemp(prefix="fastoptim-", dir=base)
    folder = Path(arguments.folder)
    try:
        write_files(folder, total)
        in_memory = child(arguments, False, None)
        try:
            with MemoryGroup(arguments.limit_mib << 20) as group:
                os.sync()
                for path in folder.iterdir():
                    with open(path) as file:
                        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                on_disk = child(arguments, True, group)
                peak, version = group.peak(), group.version
        except PermissionError as error:
            raise SystemExit(f"this proof needs a memory cgroup that this user may create ({error})") from error
    finally:
        shutil.rmtree(folder)
    equal = in_memory["digest"] == on_disk["digest"]
    print(f"{arguments.gib:g} GiB of float32 parameters, AdamW, {arguments.steps} steps")
    print(f"in memory: {in_memory['seconds']} s, peak resident {in_memory['peak_resident_mib']} MiB")
    print(f"on disk:   {on_disk['seconds']} s, peak resident {on_disk['peak_resident_mib']} MiB, "
          f"limit {arguments.limit_mib} MiB (cgroup version {version}), peak charged {peak} MiB")  # fmt: skip
    print("parameters and states: " + ("equal, bit for bit" if equal else "DIFFERENT"))
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
