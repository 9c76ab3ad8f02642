"""Adapters for NumPy code bases that have optimizers of their own; each is loaded when it is asked for.

=====================================  ==============================================================================
`fastoptim.adapters.sklearn`           scikit-learn's ``MLPClassifier`` and ``MLPRegressor``
`fastoptim.adapters.autograd`          ``autograd.misc.optimizers`` of HIPS autograd
`fastoptim.adapters.thinc`             an ``Optimizer`` for thinc and spaCy
`fastoptim.adapters.cs231n`            ``rule(w, dw, config) -> (w, config)``
`fastoptim.adapters.dicts`             ``update(params, grads)`` over dicts ("Deep Learning from Scratch")
`fastoptim.adapters.objects`           objects with ``.data`` and ``.grad`` (DeZero, micro-frameworks)
`fastoptim.adapters.numpy_ml`          ``optimizer(param, grad, name)``, which returns the new array
`fastoptim.adapters.per_array`         ``update(p, g, m, v, ...)`` for code that keeps its own states
=====================================  ==============================================================================
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what type checkers see, as in the package's own __init__
    from . import autograd as autograd
    from . import cs231n as cs231n
    from . import dicts as dicts
    from . import numpy_ml as numpy_ml
    from . import objects as objects
    from . import per_array as per_array
    from . import sklearn as sklearn
    from . import thinc as thinc

_MODULES = ("autograd", "cs231n", "dicts", "numpy_ml", "objects", "per_array", "sklearn", "thinc")

if not TYPE_CHECKING:
    __all__ = [*_MODULES]  # noqa: PLE0604 (they are strings)

    def __getattr__(name: str) -> ModuleType:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(_MODULES)}")
        return import_module(f".{name}", __name__)


def __dir__() -> list[str]:
    return list(_MODULES)
