"""The optimizers that `fit` and `probe_lr` know by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from .adam import Adam, AdamW
from .base import Optimizer
from .sgd import SGD

# The names that `fit` knows optimizers by.
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": SGD,
    "momentum": partial(SGD, momentum=0.9),
    "adam": Adam,
    "adamw": AdamW,
}
