"""The training loop and its parts."""

from .fit import fit
from .history import FitResult, TrainingWarning
from .loop import Callback, Loop

__all__ = ["Callback", "FitResult", "Loop", "TrainingWarning", "fit"]
