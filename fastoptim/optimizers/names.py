"""The optimizers that `fit` and `probe_lr` know by name; those in `FAMILIES` have a functional form of that name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ..common.validation import do_you_mean
from .adam import Adam, AdamW, SparseAdam
from .adaptive import FTRL, Adadelta, Adagrad, Adamax, RMSprop
from .base import Optimizer
from .family import Family
from .layerwise import LAMB, LARS, NovoGrad
from .moments import ADOPT, AdaBelief, Adan, AdEMAMix, LaProp, NAdam, RAdam, Yogi
from .schedule_free import ASGD, ScheduleFreeAdamW, ScheduleFreeSGD
from .sgd import SGD
from .sign import Lion, Rprop, SignSGD, Signum

_FAMILIES: tuple[type[Family], ...] = (
    *(RMSprop, Adagrad, Adadelta, Adamax, NAdam, RAdam, Rprop, ASGD, Lion, SignSGD, Signum),
    *(AdaBelief, ADOPT, Yogi, LaProp, AdEMAMix, Adan, FTRL, LAMB, LARS, NovoGrad),
)
FAMILIES = {
    **{cls.__name__.lower(): cls for cls in _FAMILIES},
    "schedule_free_sgd": ScheduleFreeSGD,
    "schedule_free_adamw": ScheduleFreeAdamW,
}

# The names that `fit` knows optimizers by.
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": SGD,
    "momentum": partial(SGD, momentum=0.9),
    "adam": Adam,
    "adamw": AdamW,
    "sparse_adam": SparseAdam,
    **FAMILIES,
}


def maker_of(optimizer: str) -> Callable[..., Optimizer]:
    """What makes the optimizer of this name; ValueError that says which may be meant."""
    if optimizer not in OPTIMIZERS:
        hint = do_you_mean(optimizer.lower(), OPTIMIZERS)
        raise ValueError(f"there is no optimizer {optimizer!r}: {hint}optimizer must be one of {list(OPTIMIZERS)}")
    return OPTIMIZERS[optimizer]
