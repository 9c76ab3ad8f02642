"""A CUDA driver without a GPU, for tests: numba-cuda's real host code, and the arithmetic of the compiled kernels.

`environment` gives the variables of a process in which numba-cuda finds this driver in the place of NVIDIA's
(``driver.cpp``), and in which every kernel that it loads has first been translated from PTX to C (`ptx`). It does not
show how fast a kernel is, nor what PTX's assembler makes of it.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.abc
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastoptim.rules.lowering import cache_directory

from .. import ROOT

HERE = Path(__file__).parent
COUNTS = (
    "launches",
    "uploads",
    "downloads",
    "allocations",
    "frees",
    "events",
    "waits",
    "queries",
    "pinned",
    "synchronisations",
)
ORDERS = ("eager", "delayed", "interleaved")
# Not one flag that would let the compiler contract, reorder or assume anything about floats.
FLAGS = ("-O1", "-w", "-std=gnu11", "-ffp-contract=off", "-fwrapv", "-fno-strict-aliasing", "-fPIC", "-shared")


def missing() -> str | None:
    """What the fake driver lacks here, with the way to get it; None if it can be built."""
    if sys.platform != "linux":
        return "the fake CUDA driver needs Linux"
    if find_spec("numba_cuda") is None:
        return 'the fake CUDA driver needs numba-cuda: pip install ".[cuda]"'
    if _header() is None:
        return 'the fake CUDA driver needs cuda.h: pip install "cuda-toolkit[cudart]==13.0.*"'
    if not (shutil.which("gcc") and shutil.which("g++")):
        return "the fake CUDA driver needs gcc and g++: apt-get install g++"
    return None


def _header() -> Path | None:
    return next((p.parent for x in sys.path for p in Path(x).glob("nvidia/cu*/include/cuda.h")), None)


@cache
def driver() -> Path:
    """The driver's file, built where its source has changed."""
    source = HERE / "driver.cpp"
    return _built(source.read_text(), "libcuda", ["g++", "-O2", "-shared", "-fPIC", f"-I{_header()}", "-xc++"])


def _built(text: str, name: str, command: list[str]) -> Path:
    folder = cache_directory() / "fake_cuda"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    stem = f"{name}-{hashlib.sha256((text + ' '.join(command)).encode()).hexdigest()[:20]}"
    path = folder / f"{stem}.so"
    if not path.exists():
        draft = folder / f"{stem}.{os.getpid()}.so"
        more = ["-Wl,-soname,libcuda.so.1"] if name == "libcuda" else []
        subprocess.run([*command, "-", *more, "-lm", "-o", str(draft)], input=text, text=True, check=True)
        os.replace(draft, path)
    return path


def environment(**settings: Any) -> dict[str, str]:
    """The environment of a process on this driver; `devices=2` becomes ``FAKE_CUDA_DEVICES=2``."""
    chosen = {f"FAKE_CUDA_{name.upper()}": str(value) for name, value in settings.items()}
    others = [path for path in (os.environ.get("PYTHONPATH"),) if path]
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE), *others]), "FASTOPTIM_FAKE_CUDA": str(driver())}
    return os.environ | {"NUMBA_ENABLE_CUDASIM": "0"} | paths | chosen


def run(*command: str, timeout: float = 900, **settings: Any) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments in a process on this driver."""
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment(**settings),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


# --- In such a process

_library: Any = None
_codes: dict[str, Any] = {}


def install() -> None:
    """Load the driver, and have numba-cuda's kernels translated when they are loaded."""
    global _library
    _library = ctypes.CDLL(os.environ["FASTOPTIM_FAKE_CUDA"], ctypes.RTLD_GLOBAL)
    sys.meta_path.insert(0, _Patches())


def counts() -> dict[str, int]:
    """What this process has asked of the driver so far."""
    found = (ctypes.c_uint64 * len(COUNTS))()
    _library.fake_counts(found)
    return dict(zip(COUNTS, found, strict=True))


@contextmanager
def behaviour(order: str = "eager", computes: bool = True, careless: bool = False) -> Iterator[None]:
    """When work is done, whether kernels compute, and whether memory is freed without waiting: see ``driver.cpp``."""
    _library.fake_behave(ORDERS.index(order), computes, careless)
    try:
        yield
    finally:
        _library.fake_behave(0, True, False)


def register(text: str) -> None:
    """Give the driver the code of the kernel in this PTX."""
    from .ptx import translate

    kernel = translate(text)
    if kernel.name not in _codes:
        code = _codes[kernel.name] = ctypes.CDLL(str(_built(kernel.source, "kernel", ["gcc", *FLAGS, "-xc"])))
        numbers = ctypes.c_int * len(kernel.offsets)
        arguments = (len(kernel.offsets), numbers(*kernel.offsets), numbers(*kernel.sizes))
        _library.fake_register(kernel.name.encode(), ctypes.cast(code.run, ctypes.c_void_p), *arguments)


def _patch(library: Any) -> None:
    load = library.get_cufunc

    def get_cufunc(self: Any) -> Any:
        if not getattr(self, "_translated", False):
            for text in self.get_asm_strs():
                register(text)
            self._translated = True
        return load(self)

    library.get_cufunc = get_cufunc


class _Patches(importlib.abc.MetaPathFinder):
    """Patches numba-cuda's code library when that is imported."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != "numba.cuda.codegen":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        execute = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            _patch(module.CUDACodeLibrary)

        spec.loader.exec_module = exec_module
        return spec
