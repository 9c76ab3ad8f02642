"""Load a script outside the package as a module."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from . import ROOT


def benchmark(name: str) -> ModuleType:
    """Load ``benchmarks/<name>.py``."""
    return load(ROOT / "benchmarks" / f"{name}.py")


def load(path: Path) -> ModuleType:
    """Load a file as the module of its name."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module
