"""What fastoptim found on this machine: ``fastoptim.info()`` and ``fastoptim info``."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from . import __version__, backends
from .common.threads import resolve_threads, usable_cores

PACKAGES = ("numpy", "numba", "cffi", "numba-cuda", "safetensors", "matplotlib", "tqdm", "ml_dtypes", "mpi4py")
VARIABLES = (
    "FASTOPTIM_BACKEND",
    "FASTOPTIM_ISA",
    "FASTOPTIM_NUM_THREADS",
    "FASTOPTIM_REQUIRE_C",
    "OMP_NUM_THREADS",
)


def processor() -> str:
    """Name of the processor, as the operating system gives it."""
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _auto() -> str:
    name = os.environ.get("FASTOPTIM_BACKEND") or "auto"
    if name != "auto":
        reason = backends.available(name)
        return f"error: {reason}" if reason else name
    try:
        return backends.best_for_host()[0]
    except (ImportError, ValueError) as error:
        return f"error: {error}"


def info() -> dict[str, Any]:
    """Backends found, instruction set chosen, threads, compiler and flags, GPU, versions; JSON-ready.

    Returns
    -------
    dict
        ``backends`` maps each name to its details, or to ``{"missing": reason}``; ``auto`` is what "auto" takes for
        NumPy arrays, or the error that it raises.
    """
    found: dict[str, Any] = {}
    for name in backends.BACKENDS:
        reason = backends.available(name)
        found[name] = {"missing": reason} if reason else backends.get_backend(name).info()
    return {
        "fastoptim": __version__,
        "auto": _auto(),
        "backends": found,
        "threads": {"default": resolve_threads(None), "usable cores": usable_cores()},
        "processor": processor(),
        "platform": platform.platform(),
        "python": sys.version.split()[0],
        "packages": {package: _version(package) for package in PACKAGES},
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def _lines(value: Any, indent: str = "") -> list[str]:
    lines = []
    for key, entry in value.items():
        if isinstance(entry, dict):
            lines += [f"{indent}{key}:", *_lines(entry, indent + "  ")]
        else:
            text = (
                ", ".join(map(str, entry))
                if isinstance(entry, list)
                else entry
                if entry is not None
                else "not installed"
            )
            lines.append(f"{indent}{key}: {text}")
    return lines


def main(arguments: Sequence[str]) -> int:
    """``fastoptim info [--json]``."""
    if [a for a in arguments if a != "--json"]:
        print("usage: fastoptim info [--json]")
        return 0 if set(arguments) <= {"-h", "--help"} else 2
    found = info()
    print(json.dumps(found, indent=2) if arguments else "\n".join(_lines(found)))
    return 0
