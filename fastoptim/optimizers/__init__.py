"""The optimizers: parameter groups, states, the step, clipping, saving."""

from .adam import Adam, AdamW, SparseAdam
from .base import Optimizer
from .sgd import SGD

__all__ = ["SGD", "Adam", "AdamW", "Optimizer", "SparseAdam"]
