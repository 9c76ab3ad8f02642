"""fastoptim: fused SGD, momentum and Adam updates for NumPy models, with the same bits on every backend.

>>> import numpy as np, fastoptim as fo
>>> params = {"w": np.ones((3, 2), np.float32), "b": np.zeros(2, np.float32)}
>>> opt = fo.Adam(params, lr=1e-3)
>>> opt.step({"w": np.ones((3, 2), np.float32), "b": np.ones(2, np.float32)}).applied
True
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Public name -> module that has it; loaded on first use, so that importing fastoptim stays cheap.
_EXPORTS = {
    "SGD": "optimizers",
    "Adam": "optimizers",
    "AdamW": "optimizers",
    "Optimizer": "optimizers",
    "StepInfo": "backends",
    "clip_grad_norm": "optimizers.clipping",
    "grad_norm": "optimizers.clipping",
    "pack": "arrays.packing",
    "minibatches": "training.data",
    "fit": "training",
    "CheckpointError": "checkpoint",
    "diagnose": "training.diagnosis",
    "recommend": "tuning.advice",
    "probe_lr": "tuning.probe",
    "lr_range_test": "tuning.range_test",
    "info": "environment",
}
_MODULES = ("adapters", "distributed", "functional", "plots", "schedules")

__all__ = ["__version__", *_EXPORTS, *_MODULES]  # noqa: PLE0604 (keys are strings)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        value = getattr(import_module(f".{_EXPORTS[name]}", __name__), name)
    elif name in _MODULES:
        value = import_module(f".{name}", __name__)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
