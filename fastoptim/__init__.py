"""fastoptim: fused SGD, momentum and Adam updates for NumPy models, with the same bits on every backend.

>>> import numpy as np, fastoptim as fo
>>> params = {"w": np.ones((3, 2), np.float32), "b": np.zeros(2, np.float32)}
>>> opt = fo.Adam(params, lr=1e-3)
>>> opt.step({"w": np.ones((3, 2), np.float32), "b": np.ones(2, np.float32)}).applied
True
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers see; at run time every name is loaded on first use, see _EXPORTS
    from . import adapters as adapters
    from . import distributed as distributed
    from . import functional as functional
    from . import plots as plots
    from . import schedules as schedules
    from .arrays.packing import pack as pack
    from .arrays.rows import Rows as Rows
    from .backends import StepInfo as StepInfo
    from .checkpoint import CheckpointError as CheckpointError
    from .environment import info as info
    from .optimizers import SGD as SGD
    from .optimizers import Adam as Adam
    from .optimizers import AdamW as AdamW
    from .optimizers import Optimizer as Optimizer
    from .optimizers import SparseAdam as SparseAdam
    from .optimizers.adaptive import FTRL as FTRL
    from .optimizers.adaptive import Adadelta as Adadelta
    from .optimizers.adaptive import Adagrad as Adagrad
    from .optimizers.adaptive import Adamax as Adamax
    from .optimizers.adaptive import RMSprop as RMSprop
    from .optimizers.averages import Average as Average
    from .optimizers.clipping import clip_grad_norm as clip_grad_norm
    from .optimizers.clipping import grad_norm as grad_norm
    from .optimizers.layerwise import LAMB as LAMB
    from .optimizers.layerwise import LARS as LARS
    from .optimizers.layerwise import NovoGrad as NovoGrad
    from .optimizers.minimize import MinimizeResult as MinimizeResult
    from .optimizers.minimize import minimize as minimize
    from .optimizers.moments import ADOPT as ADOPT
    from .optimizers.moments import AdaBelief as AdaBelief
    from .optimizers.moments import Adan as Adan
    from .optimizers.moments import AdEMAMix as AdEMAMix
    from .optimizers.moments import LaProp as LaProp
    from .optimizers.moments import NAdam as NAdam
    from .optimizers.moments import RAdam as RAdam
    from .optimizers.moments import Yogi as Yogi
    from .optimizers.own import rule as rule
    from .optimizers.schedule_free import ASGD as ASGD
    from .optimizers.schedule_free import ScheduleFreeAdamW as ScheduleFreeAdamW
    from .optimizers.schedule_free import ScheduleFreeSGD as ScheduleFreeSGD
    from .optimizers.selecting import GroupedParams as GroupedParams
    from .optimizers.selecting import groups as groups
    from .optimizers.sign import Lion as Lion
    from .optimizers.sign import Rprop as Rprop
    from .optimizers.sign import SignSGD as SignSGD
    from .optimizers.sign import Signum as Signum
    from .optimizers.state_dicts import IncompatibleKeys as IncompatibleKeys
    from .optimizers.torch_states import from_torch_state as from_torch_state
    from .optimizers.torch_states import to_torch_state as to_torch_state
    from .training import Callback as Callback
    from .training import FitResult as FitResult
    from .training import Loop as Loop
    from .training import TrainingWarning as TrainingWarning
    from .training.data import Minibatches as Minibatches
    from .training.data import minibatches as minibatches
    from .training.diagnosis import Diagnosis as Diagnosis
    from .training.diagnosis import diagnose as diagnose
    from .training.fit import fit as fit
    from .training.history import History as History
    from .tuning.advice import Recommendation as Recommendation
    from .tuning.advice import recommend as recommend
    from .tuning.probe import Probe as Probe
    from .tuning.probe import ProbeResult as ProbeResult
    from .tuning.probe import probe_lr as probe_lr
    from .tuning.range_test import RangeTest as RangeTest
    from .tuning.range_test import lr_range_test as lr_range_test

__version__ = "0.1.0"

# Public name -> module that has it; loaded on first use, so that importing fastoptim stays cheap.
_EXPORTS = {
    name: module
    for module, names in {
        "optimizers": "SGD Adam AdamW Optimizer SparseAdam",
        "optimizers.adaptive": "FTRL Adadelta Adagrad Adamax RMSprop",
        "optimizers.schedule_free": "ASGD ScheduleFreeAdamW ScheduleFreeSGD",
        "optimizers.moments": "ADOPT AdaBelief Adan AdEMAMix LaProp NAdam RAdam Yogi",
        "optimizers.layerwise": "LAMB LARS NovoGrad",
        "optimizers.sign": "Lion Rprop SignSGD Signum",
        "arrays.rows": "Rows",
        "backends": "StepInfo",
        "optimizers.averages": "Average",
        "optimizers.clipping": "clip_grad_norm grad_norm",
        "optimizers.minimize": "minimize MinimizeResult",
        "optimizers.own": "rule",
        "optimizers.state_dicts": "IncompatibleKeys",
        "optimizers.selecting": "GroupedParams groups",
        "optimizers.torch_states": "from_torch_state to_torch_state",
        "arrays.packing": "pack",
        "training.data": "minibatches Minibatches",
        "training.fit": "fit",
        "training": "FitResult Loop Callback TrainingWarning",
        "training.history": "History",
        "checkpoint": "CheckpointError",
        "training.diagnosis": "diagnose Diagnosis",
        "tuning.advice": "recommend Recommendation",
        "tuning.probe": "probe_lr ProbeResult Probe",
        "tuning.range_test": "lr_range_test RangeTest",
        "environment": "info",
    }.items()
    for name in names.split()
}
_MODULES = ("adapters", "distributed", "functional", "plots", "schedules")

if not TYPE_CHECKING:  # hidden, because any name whatever would have a type then
    __all__ = ["__version__", *_EXPORTS, *_MODULES]  # noqa: PLE0604 (keys are strings)

    def __getattr__(name: str) -> Any:
        if name in _EXPORTS:
            value = getattr(import_module(f".{_EXPORTS[name]}", __name__), name)
        elif name in _MODULES:
            value = import_module(f".{name}", __name__)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name, obj=sys.modules[__name__])
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(["__version__", *_EXPORTS, *_MODULES])
