"""Describe this machine: ``fastoptim.info()``, ``fastoptim info`` and the header of a benchmark report."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from . import __version__, backends
from .common.public import public
from .common.text import printable
from .common.threads import resolve_threads, usable_cores

# What fastoptim can make use of, and what its benchmark compares it with.
PACKAGES = ("numpy", "numba", "cffi", "numba-cuda", "safetensors", "matplotlib", "tqdm", "ml_dtypes", "mpi4py")
PEERS = ("llvmlite", "torch", "jax", "jaxlib", "optax", "numexpr", "thinc", "scikit-learn")
VARIABLES = (
    "FASTOPTIM_BACKEND", "FASTOPTIM_ISA", "FASTOPTIM_NUM_THREADS", "FASTOPTIM_REQUIRE_C", "OMP_NUM_THREADS",
    "OMP_PROC_BIND", "OMP_PLACES", "OMP_WAIT_POLICY", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS",
    "MALLOC_ARENA_MAX",
)  # fmt: skip


# --- text ---------------------------------------------------------------------------------------------------------


def without_paths(text: str) -> str:
    """Cut every absolute path in a text down to its last part, so that a report can be forwarded."""
    return re.sub(r"(?<![\w.:/])/(?:[\w.+@~-]+/)+([\w.+@~-]+)", r"\1", text)


# --- facts --------------------------------------------------------------------------------------------------------


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def output(*command: str) -> str:
    """Run a command and return what it prints, or nothing if it fails."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def processor() -> str:
    """Name the processor as the operating system does."""
    match = re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    if match:
        return match[1]
    return output("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor() or platform.machine()


def caches() -> dict[str, int]:
    """Measure one core's caches in bytes: ``{"L1": ..., "L2": ..., "L3": ...}``, as far as the system tells."""
    sizes = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        match = re.fullmatch(r"(\d+)([KM])", _read(f"{folder}/size"))
        if _read(f"{folder}/type") in ("Data", "Unified") and match:
            sizes[f"L{_read(f'{folder}/level')}"] = int(match[1]) * {"K": 1 << 10, "M": 1 << 20}[match[2]]
    return sizes


def _memory_field(name: str) -> int:
    match = re.search(rf"^{name}:\s+(\d+) kB", _read("/proc/meminfo"), re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


def total_memory() -> int:
    """Return the bytes of main memory; 0 where the system does not tell."""
    return _memory_field("MemTotal")


def available_memory() -> int:
    """Return the bytes that can be used without swapping; 4 GiB where the system does not tell."""
    return _memory_field("MemAvailable") or 4 << 30


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    """Return the versions of fastoptim, Python and the installed packages that a benchmark may involve."""
    found = {"fastoptim": __version__, "python": platform.python_version()}
    return found | {name: version for name in (*PACKAGES, *PEERS) if (version := _version(name)) is not None}


def _backends() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name in backends.BACKENDS:
        reason = backends.available(name)
        found[name] = {"missing": reason} if reason else backends.get_backend(name).info()
    return found


def _environment() -> dict[str, str]:
    return {name: os.environ[name] for name in VARIABLES if name in os.environ}


def _commit() -> str:
    here = str(Path(__file__).resolve().parent)
    # An installed package may lie inside somebody else's repository: only one that tracks this file counts.
    if not output("git", "-C", here, "ls-files", Path(__file__).name):
        return "not from a repository"
    commit = output("git", "-C", here, "rev-parse", "--short=12", "HEAD")
    changed = output("git", "-C", here, "status", "--porcelain", "--untracked-files=no", "--", ".", "../csrc")
    return commit + (" with changes" if changed else "")


def describe() -> dict[str, Any]:
    """Describe machine and software for a benchmark report, without paths; JSON-ready."""
    huge_pages = re.findall(r"\[(\w+)\]", _read("/sys/kernel/mm/transparent_hugepage/enabled"))
    os_release = re.search(r'^PRETTY_NAME="?([^"\n]+)', _read("/etc/os-release"), re.MULTILINE)
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": processor(),
        "cores": usable_cores(),
        "caches": caches(),
        "memory_bytes": total_memory(),
        "huge_pages": huge_pages[0] if huge_pages else "unknown",
        "gpu": output("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader") or "none",
        "system": f"{platform.system()} {platform.release()}, {os_release[1] if os_release else platform.version()}",
        "architecture": platform.machine(),
        "versions": versions(),
        "backends": {
            name: {key: without_paths(str(value)) for key, value in found.items()}
            for name, found in _backends().items()
        },
        "threads": _environment(),
        "commit": _commit(),
    }


# --- fastoptim info -----------------------------------------------------------------------------------------------


def _auto() -> str:
    name = os.environ.get("FASTOPTIM_BACKEND") or "auto"
    if name != "auto":
        reason = backends.available(name)
        return f"error: {reason}" if reason else name
    try:
        return backends.best_for_host()[0]
    except (ImportError, ValueError) as error:
        return f"error: {error}"


def _default_threads() -> int | str:
    try:
        return resolve_threads(None)
    except ValueError as error:
        return f"error: {error}"


def problems() -> list[str]:
    """Say what is wrong with the settings in the environment, whether or not this machine would use them."""
    found = []
    for name in backends.SETTINGS:
        try:
            backends.setting(name)
        except ValueError as error:
            found.append(str(error))
    if not found and (auto := _auto()).startswith("error: "):
        found.append(auto.removeprefix("error: "))
    if isinstance(threads := _default_threads(), str):
        found.append(threads.removeprefix("error: "))
    return found


@public
def info() -> dict[str, Any]:
    """Report backends, instruction set, threads, compiler and flags, GPU, versions; JSON-ready.

    Returns
    -------
    dict
        ``backends`` maps each name to its details, or to ``{"missing": reason}``; ``auto`` is what "auto" takes for
        NumPy arrays, or the error that it raises; ``problems`` lists settings in the environment that are invalid.
    """
    return {
        "fastoptim": __version__,
        "problems": problems(),
        "auto": _auto(),
        "backends": _backends(),
        "threads": {"default": _default_threads(), "usable cores": usable_cores()},
        "processor": processor(),
        "cache bytes": caches(),
        "memory bytes": total_memory(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": {package: _version(package) for package in PACKAGES},
        "environment": _environment(),
    }


def _lines(found: dict[str, Any], indent: str = "") -> Iterator[str]:
    for key, value in found.items():
        if isinstance(value, dict):
            yield f"{indent}{key}:"
            yield from _lines(value, indent + "  ")
        elif value != []:
            text = (
                "; ".join(map(str, value)) if isinstance(value, list) else "not installed" if value is None else value
            )
            yield f"{indent}{key}: {printable(str(text))}"


def main(arguments: Sequence[str]) -> int:
    """Run ``fastoptim info [--json]``."""
    parser = argparse.ArgumentParser(prog="fastoptim info", description="Show what fastoptim found on this machine.")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs (default: text)")
    found = info()
    print(json.dumps(found, indent=2) if parser.parse_args(arguments).json else "\n".join(_lines(found)))
    return 0
