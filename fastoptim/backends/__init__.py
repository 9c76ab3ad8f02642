"""The table of backends, and the choice among them."""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np

from ..common.threads import resolve_threads, threads_from_environment
from ..common.validation import choice
from ..common.warning import warn
from .base import Backend, KernelCall, StepInfo

__all__ = ["BACKENDS", "Backend", "KernelCall", "StepInfo", "available", "get_backend", "resolve"]

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
    backend: Backend = getattr(import_module(f".{module}", __name__), cls)()
    return backend


def available(name: str) -> str | None:
    """None if the backend works here, else the reason why it does not."""
    try:
        get_backend(name)
    except (ImportError, RuntimeError, OSError, ValueError) as error:  # ValueError: FASTOPTIM_ISA
        return str(error)
    return None


SETTINGS = {
    "FASTOPTIM_BACKEND": ("auto", *BACKENDS),
    "FASTOPTIM_ISA": ("baseline", "avx2", "avx512", "neon"),
    "FASTOPTIM_REQUIRE_C": ("0", "1"),
}


def setting(name: str) -> str:
    """A variable of the environment, "" if there is none; ValueError for what is not one of its `SETTINGS`."""
    value = os.environ.get(name, "")
    if value and value not in SETTINGS[name]:
        raise ValueError(f"{name} must be one of {', '.join(SETTINGS[name])}, got {value!r}")
    return value


def best_for_host() -> tuple[str, str | None]:
    """What "auto" takes for NumPy arrays, and why it is not C; an error if the environment wants C."""
    try:
        get_backend("c")
        return "c", None
    except ImportError as error:
        if setting("FASTOPTIM_REQUIRE_C") == "1":
            raise
        if isa := setting("FASTOPTIM_ISA"):
            raise ImportError(f"FASTOPTIM_ISA={isa} chooses among kernels in C, but {error}") from error
        return "numba" if available("numba") is None else "numpy", str(error)


@cache
def _best_host_backend() -> str:
    name, reason = best_for_host()
    if reason:
        hint = " (pip install 'fastoptim[numba]' is faster)" if name == "numpy" else ""
        warn(f"{reason}; using the {name} backend: same numbers, slower{hint}")
    return name


def resolve(name: str, leaves: tuple[Any, ...]) -> Backend:
    """The backend that `name` means for these parameters; FASTOPTIM_BACKEND speaks where `name` is "auto"."""
    if not isinstance(name, str):  # asked at every step: other texts are refused where they are looked up
        choice("backend", name, ("auto", *BACKENDS))
    if name == "auto":
        name = setting("FASTOPTIM_BACKEND") or "auto"
    setting("FASTOPTIM_ISA"), setting("FASTOPTIM_REQUIRE_C")  # wrong ones are refused, whichever backend it is
    if name == "auto":
        on_device = any(hasattr(leaf, "__cuda_array_interface__") for leaf in leaves)
        name = "cuda" if on_device else _best_host_backend()
    return get_backend(name)


# --- The choice for one array, at every call of a function --------------------------------------------------------

_NAMES = (*SETTINGS, "FASTOPTIM_NUM_THREADS", "OMP_NUM_THREADS")
# CPython keeps the environment in a dict; asking os.environ itself would take longer than a small step.
ENVIRONMENT: Any = getattr(os.environ, "_data", None)
VARIABLES: tuple[Any, ...] = tuple(getattr(os.environ, "encodekey", str)(name) for name in _NAMES)
_choices: dict[Any, tuple[Backend, int | None]] = {}


def read_environment() -> tuple[Any, ...]:
    """What the variables are that decide about backend and threads."""
    if isinstance(ENVIRONMENT, dict):
        return tuple(map(ENVIRONMENT.get, VARIABLES))
    return tuple(map(os.environ.get, _NAMES))


def choose(name: str, threads: int | None, p: Any) -> tuple[Backend, int]:
    """Backend and number of threads for a step of one array; looked up again when the environment changes."""
    if type(p) is not np.ndarray:
        return resolve(name, (p,)), resolve_threads(threads)
    key = (name, threads, type(threads), read_environment())
    if key not in _choices:
        number = threads_from_environment() if threads is None else resolve_threads(threads)
        _choices[key] = resolve(name, (p,)), number
    backend, number = _choices[key]
    if p.nbytes < backend.alone_below:
        return backend, 1
    return backend, number or resolve_threads(None)  # the cores that may be used can change


def takes_native_steps(name: str, threads: int | None) -> bool:
    """Whether `choose` gives the C backend for small host arrays; ValueError or TypeError as from there."""
    if name not in ("auto", "c") or not isinstance(ENVIRONMENT, dict) or available("c") is not None:
        return False
    return choose(name, threads, np.empty(0))[0].name == "c"
