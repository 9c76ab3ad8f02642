"""The update rules: each stated once, in NumPy terms, with its coefficients and the norm.

`updates` holds the equations, `coefficients` what hyperparameters come to, `table` the rows that all else goes
through, `norm` the gradient norm and the clip factor; `reference` runs them with NumPy, `lowering` rewrites them for
Numba and CUDA.
"""

from .coefficients import (
    DECAY_MODES,
    EPS_MODES,
    MOMENTUM_MODES,
    adam_coefficients,
    average_coefficients,
    decoupled_coefficient,
    momentum_coefficients,
    nesterov_coefficients,
    sgd_coefficients,
)
from .norm import NORM_BLOCK, NORM_LANES, NORM_RETRY, NORM_TINY, clip_factor, norm_from_squares, norms_from_squares
from .table import DECAYS, RULES, Kernel, Rule, kernels
from .updates import adam, amsgrad, coupled, decoupled, momentum, nesterov, plain, scale, sgd

__all__ = [
    "DECAYS",
    "DECAY_MODES",
    "EPS_MODES",
    "MOMENTUM_MODES",
    "NORM_BLOCK",
    "NORM_LANES",
    "NORM_RETRY",
    "NORM_TINY",
    "RULES",
    "Kernel",
    "Rule",
    "adam",
    "adam_coefficients",
    "amsgrad",
    "average_coefficients",
    "clip_factor",
    "coupled",
    "decoupled",
    "decoupled_coefficient",
    "kernels",
    "momentum",
    "momentum_coefficients",
    "nesterov",
    "nesterov_coefficients",
    "norm_from_squares",
    "norms_from_squares",
    "plain",
    "scale",
    "sgd",
    "sgd_coefficients",
]
