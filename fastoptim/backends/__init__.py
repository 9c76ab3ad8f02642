"""The table of backends, and the choice among them."""

from __future__ import annotations

import os
import warnings
from functools import cache
from importlib import import_module
from typing import Any

from .base import Backend, Run, StepInfo

__all__ = ["BACKENDS", "Backend", "Run", "StepInfo", "available", "get_backend", "resolve"]

# name -> (module, class), in the order in which "auto" prefers them for host arrays
BACKENDS = {
    "c": ("c", "CBackend"),
    "numba": ("numba_cpu", "NumbaBackend"),
    "numpy": ("numpy_cpu", "NumpyBackend"),
    "cuda": ("cuda.backend", "CudaBackend"),
}


@cache
def get_backend(name: str) -> Backend:
    """The backend called `name`; ImportError that says what is missing, ValueError for an unknown name."""
    if name not in BACKENDS:
        raise ValueError(f"backend must be one of {['auto', *BACKENDS]}, got {name!r}")
    module, cls = BACKENDS[name]
    return getattr(import_module(f".{module}", __name__), cls)()


def available(name: str) -> str | None:
    """None if the backend works here, else the reason why it does not."""
    try:
        get_backend(name)
    except (ImportError, RuntimeError, OSError, ValueError) as error:  # ValueError: FASTOPTIM_ISA
        return str(error)
    return None


def best_for_host() -> tuple[str, str | None]:
    """What "auto" takes for NumPy arrays, and why it is not C; an error if the environment wants C."""
    try:
        get_backend("c")
        return "c", None
    except ImportError as error:
        if os.environ.get("FASTOPTIM_REQUIRE_C") == "1":
            raise
        if isa := os.environ.get("FASTOPTIM_ISA"):
            raise ImportError(f"FASTOPTIM_ISA={isa} chooses among kernels in C, but {error}") from error
        return "numba" if available("numba") is None else "numpy", str(error)


@cache
def _best_host_backend() -> str:
    name, reason = best_for_host()
    if reason:
        warnings.warn(f"{reason}; using the {name} backend: same numbers, slower", RuntimeWarning, stacklevel=5)
    return name


def resolve(name: str, leaves: tuple[Any, ...]) -> Backend:
    """The backend that `name` means for these parameters; FASTOPTIM_BACKEND speaks where `name` is "auto"."""
    if name == "auto":
        name = os.environ.get("FASTOPTIM_BACKEND", "") or "auto"
        if name not in ("auto", *BACKENDS):
            raise ValueError(f"FASTOPTIM_BACKEND must be one of {['auto', *BACKENDS]}, got {name!r}")
    if name == "auto":
        on_device = any(hasattr(leaf, "__cuda_array_interface__") for leaf in leaves)
        name = "cuda" if on_device else _best_host_backend()
    return get_backend(name)
