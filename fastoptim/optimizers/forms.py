"""Steps of one array that the caller owns, one function for each class of `names.FAMILIES`.

Written by tests/proofs/forms_write.py; do not edit.
"""
# fmt: off

from __future__ import annotations

from typing import Any

from .adaptive import FTRL, Adadelta, Adagrad, Adamax, RMSprop
from .family import step_array
from .layerwise import LAMB, LARS, NovoGrad
from .moments import ADOPT, AdaBelief, Adan, AdEMAMix, LaProp, NAdam, RAdam, Yogi
from .schedule_free import ASGD, ScheduleFreeAdamW, ScheduleFreeSGD
from .sign import Lion, Rprop, SignSGD, Signum

__all__ = ["adabelief", "adadelta", "adagrad", "adamax", "adan", "ademamix", "adopt", "asgd", "ftrl", "lamb",
    "laprop", "lars", "lion", "nadam", "novograd", "radam", "rmsprop", "rprop", "schedule_free_adamw",
    "schedule_free_sgd", "signsgd", "signum", "yogi"]


def rmsprop(
    p: Any, g: Any, state: dict[str, Any], *, lr: float = 0.01, alpha: float = 0.99, eps: float = 1e-08,
    weight_decay: float = 0.0, momentum: float = 0.0, centered: bool = False, maximize: bool = False,
    eps_mode: str = "torch", momentum_mode: str = "torch", grad_scale: float = 1.0, backend: str = "auto",
    threads: int | None = None,
) -> None:
    """Take one step of `fastoptim.RMSprop` in place, on arrays that the caller owns.

    `state` is a dict, empty at first, that keeps "step", "square_avg", "momentum_buffer", "grad_avg" (what it needs).
    `grad_scale` multiplies g; all else, errors included, is as for the class.
    """
    values = (lr, alpha, eps, weight_decay, momentum, centered, maximize, eps_mode, momentum_mode)
    step_array(RMSprop, p, g, state, values, grad_scale, backend, threads)


def adagrad(
    p: Any, g: Any, state: dict[str, Any], *, lr: float = 0.01, lr_decay: float = 0.0, weight_decay: float = 0.0,
    initial_accumulator_value: float = 0.0, eps: float = 1e-10, maximize: bool = False, eps_mode: str = "torch",
    grad_scale: float = 1.0, backend: str = "auto", threads: int | None = None,
) -> None:
    """Take one step of `fastoptim.Adagrad` in place, on arrays that the caller owns.

    `state` is a dict, empty at first, that keeps "step", "square_avg". `grad_scale` multiplies g; all else, errors
    included, is as for the class.
    """
    values = (lr, lr_decay, weight_decay, initial_accumulator_value, eps, maximize, eps_mode)
    step_array(Adagrad, p, g, state, values, grad_scale, backend, threads)


def adadelta(
    p: Any, g: Any, state: dict[str, Any], *, lr: float = 1.0, rho: float = 0.9, eps: float = 1e-06,
    weight_decay: float = 0.0, maximize: bool = False, grad_scale: float = 1.0, backend: str = "auto",
    threads: int | None = None,
) -> None:
    """Take one step of `fastoptim.Adadelta` in place, on arrays that the caller owns.

    `state` is a dict, empty at first, that keeps "step", "square_avg", "acc_delta". `grad_scale` multiplies g; all
    else, errors included, is as for the class.
    """
    values = (lr, rho, eps, weight_decay, maximize)
    step_array(Adadelta, p, g, state, values, grad_scale, backend, threads)


def adamax(
    p: Any, g: Any, state: dict[str, Any], *, lr: float = 0.002, betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-08, weight_decay: float = 0.0, maximize: bool = False, eps_mode: str = "torch",
    grad_scale: float = 1.0, backend: str = "auto", threads: int | None = None,
) -> None:
    """Take one step of `fastoptim.Adamax` in place, on arrays that the caller owns.

    `state` is a dict, empty at first, that keeps "step", "exp_avg", "exp_inf". `grad_scale` multiplies g; all else,
    errors included, is as for the class.
    """
    values = (lr, betas, eps, weight_decay, maximize, eps_mode)
    step_array(Adamax, p, g, state, values, grad_scale, backend, threads)


def nadam(
    p: Any, g: Any, state: dict[str, Any], *, lr: float = 0.002, betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-08, weight_decay: float = 0.0, momentum_decay: float = 0.004, decoupled_weight_decay: bool = False,
    maximize: bool = False, mode: str = "torch", decay_mode: str = "lr", grad_scale: float = 1.0,
    backend: str = "auto", threads: int | None = None,
) -> None:
    """Take one step of `fastoptim.NAdam` in place, on arrays that the caller owns.

    `state` is a dict, empty at first, that keeps "step", "exp_avg", "exp_avg_sq", "mu_product". `grad_scale` multiplies
    g; all else, errors included, is as for the class.
    """
    values = (lr, betas, eps, weight_decay, momentum_decay, decoupled_weight_decay, maximize, mode, decay_mode)
    step_array(NAdam, p, g, state, values, grad_scale, backend, threads)


def radam(
    p: Any, g: Any, state: dict[str, Any], *, lr: float = 0.001, betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-08, weight_decay: float = 0.0, decoupled_weight_decay: bool = False, maximize: bool = False,
    decay_mode: str = "lr", grad_scale: float = 1.0, backend: str = "auto", threads: int | None = None,
) -> None:
    """Take one step of `fastoptim.RAdam` in place, on arrays that the caller owns.

    `state` is a dict, empty at first, that keeps "step", "exp_avg", "exp_avg_sq". `grad_scale` multiplies g; all else,
    errors included, is as for the class.
    """
    values = (lr, betas, eps, weight_decay, decoupled_weight_decay, maximize, decay_mode)
    step_array(RAdam, p, g, state, values, grad_scale, backend, threads)


def rprop(
    p: Any, g: Any, state: dict[str, Any], *, lr: float = 0.01, etas: tuple[float, float] = (0.5, 1.2),
    step_sizes: tuple[float, float] = (1e-06, 50.0), maximize: bool = False, grad_scale: float = 1.0,
    backend: str = "auto", threads: int | None = None,
) -> None:
    """Take one step of `fastoptim.Rprop` in place, on arrays that the caller owns.

    `state` is a dict, empty at first, that keeps "step", "prev", "step_size". `grad_scale` multiplies g; all else,
    errors included, is as for the class.
    """
    values = (lr, etas, step_sizes, maximize)
    step_array(Rprop, p, g, state, values, grad_scale, backend, threads)


def asgd(
    p: Any, g: Any, state: dict[str, Any], *, lr: float = 0.01, lambd: float = 0.0001, alpha: float = 0.75,
    t0: float = 1000000.0, weight_decay: float = 0.0, maximize: bool = False, grad_scale: float = 1.0,
    backend: str = "auto", threads: int | None = None,
) -> None:
    """Take one step of `fastoptim.ASGD` in place, on arrays that the caller owns.

    `state` is a dict, empty at first, that keeps "step", "ax". `grad_scale` multiplies g; all else, errors included, is
    as for the class.
    """
    values = (lr, lambd, alpha, t0, weight_decay, maximize)
    step_array(ASGD, p, g, state, values, grad_scale, backend, threads)


def lion(
    p: Any, g: Any, state: dict[str, Any], *, lr: float = 0.0001, betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 0.0, maximize: bool = False, decay_mode: str = "lr", cautious: bool = False,
    grad_scale: float = 1.0, backend: str = "auto", threads: int | None = None,
) -> None:
    """Take one step of `fastoptim.Lion` in place, on arrays that the caller owns.

    `state` is a dict, empty at first, that keeps "step", "exp_avg" (what it needs). `grad_scale` multiplies g; all
    else, errors included, is as for the class.
    """
    values = (lr, betas, weight_decay, maximize, decay_mode, cautious)
    step_array(Lion, p, g, state, values, grad_scale, backend, threads)


def signsgd(
    p: Any, g: Any, state: dict[str, Any], *, lr: float = 0.001, weight_decay: float = 0.0, maximize: bool = False,
    decay_mode: str = "lr", grad_scale: float = 1.0, backend: str = "auto", threads: int | None = None,
) -> None:
    """Take one step of `fastoptim.SignSGD` in place, on arrays that the caller owns.

    `state` is a dict, empty at first, that keeps "step". `grad_scale` multiplies g; all else, errors included, is as
    for the class.
    """
    values = (lr, weight_decay, maximize, decay_mode)
    step_array(SignSGD, p, g, state, values, grad_scale, backend, threads)


def signum(
    p: Any, g: Any, state: dict[str, Any], *, lr: float = 0.001, momentum: float = 0.9, weight_decay: float = 0.0,
    maximize: bool = False, decay_mode: str = "lr", grad_scale: float = 1.0, backend: str = "auto",
    threads: int | None = None,
) -> None:
    """Take one step of `fastoptim.Signum` in place, on arrays that the caller owns.

    `state` is a dict, empty at first, that keeps "step", "momentum_buffer". `grad_scale` multiplies g; all else, errors
    included, is as for the class.
    """
    values = (lr, momentum, weight_decay, maximize, decay_mode)
    step_array(Signum, p, g, state, values, grad_scale, backend, threads)


def adabelief(
    p: Any, g: Any, state: dict[str, Any], *, lr: float = 0.001, betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-16, weight_decay: float = 0.0, maximize: bool = False, eps_root: float = 1e-16,
    decay_mode: str = "lr", grad_scale: float = 1.0, backend: str = "auto", threads: int | None = None,
) -> None:
    """Take one step of `fastoptim.AdaBelief` in place, on arrays that the caller owns.

    `state` is a dict, empty at first, that keeps "step", "exp_avg", "exp_avg_var". `grad_scale` multiplies g; all else,
    errors included, is as for the class.
    """
    values = (lr, betas, eps, weight_decay, maximize, eps_root, decay_mode)
    step_array(AdaBelief, p, g, state, values, grad_scale, backend, threads)


def adopt(
    p: Any, g: Any, state: dict[str, Any], *, lr: float = 0.001, betas: tuple[float, float] = (0.9, 0.9999),
    eps: float = 1e-06, weight_decay: float = 0.0, maximize: bool = False, decay_mode: str = "lr",
    grad_scale: float = 1.0, backend: str = "auto", threads: int | None = None,
) -> None:
    """Take one step of `fastoptim.ADOPT` in place, on arrays that the caller owns.

    `state` is a dict, empty at first, that keeps "step", "exp_avg", "exp_avg_sq". `grad_scale` multiplies g; all else,
    errors included, is as for the class.
    """
    values = (lr, betas, eps, weight_decay, maximize, decay_mode)
    step_array(ADOPT, p, g, state, values, grad_scale, backend, threads)


def yogi(
    p: Any, g: Any, state: dict[str, Any], *, lr: float = 0.01, betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 0.001, weight_decay: float = 0.0, initial_accumulator_value: float = 1e-06, maximize: bool = False,
    decay_mode: str = "lr", grad_scale: float = 1.0, backend: str = "auto", threads: int | None = None,
) -> None:
    """Take one step of `fastoptim.Yogi` in place, on arrays that the caller owns.

    `state` is a dict, empty at first, that keeps "step", "exp_avg", "exp_avg_sq". `grad_scale` multiplies g; all else,
    errors included, is as for the class.
    """
    values = (lr, betas, eps, weight_decay, initial_accumulator_value, maximize, decay_mode)
    step_array(Yogi, p, g, state, values, grad_scale, backend, threads)


def laprop(
    p: Any, g: Any, state: dict[str, Any], *, lr: float = 0.0004, betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-15, weight_decay: float = 0.0, maximize: bool = False, decay_mode: str = "lr",
    grad_scale: float = 1.0, backend: str = "auto", threads: int | None = None,
) -> None:
    """Take one step of `fastoptim.LaProp` in place, on arrays that the caller owns.

    `state` is a dict, empty at first, that keeps "step", "exp_avg", "exp_avg_sq", "exp_avg_lr". `grad_scale` multiplies
    g; all else, errors included, is as for the class.
    """
    values = (lr, betas, eps, weight_decay, maximize, decay_mode)
    step_array(LaProp, p, g, state, values, grad_scale, backend, threads)


def ademamix(
    p: Any, g: Any, state: dict[str, Any], *, lr: float = 0.001,
    betas: tuple[float, float, float] = (0.9, 0.999, 0.9999), eps: float = 1e-08, weight_decay: float = 0.0,
    alpha: float = 5.0, warmup_steps: int = 0, maximize: bool = False, decay_mode: str = "lr", grad_scale: float = 1.0,
    backend: str = "auto", threads: int | None = None,
) -> None:
    """Take one step of `fastoptim.AdEMAMix` in place, on arrays that the caller owns.

    `state` is a dict, empty at first, that keeps "step", "exp_avg", "exp_avg_sq", "exp_avg_slow". `grad_scale`
    multiplies g; all else, errors included, is as for the class.
    """
    values = (lr, betas, eps, weight_decay, alpha, warmup_steps, maximize, decay_mode)
    step_array(AdEMAMix, p, g, state, values, grad_scale, backend, threads)


def adan(
    p: Any, g: Any, state: dict[str, Any], *, lr: float = 0.001,
    betas: tuple[float, float, float] = (0.98, 0.92, 0.99), eps: float = 1e-08, weight_decay: float = 0.0,
    maximize: bool = False, mode: str = "authors", decay_mode: str = "lr", grad_scale: float = 1.0,
    backend: str = "auto", threads: int | None = None,
) -> None:
    """Take one step of `fastoptim.Adan` in place, on arrays that the caller owns.

    `state` is a dict, empty at first, that keeps "step", "exp_avg", "exp_avg_sq", "exp_avg_diff", "previous_grad".
    `grad_scale` multiplies g; all else, errors included, is as for the class.
    """
    values = (lr, betas, eps, weight_decay, maximize, mode, decay_mode)
    step_array(Adan, p, g, state, values, grad_scale, backend, threads)


def ftrl(
    p: Any, g: Any, state: dict[str, Any], *, lr: float = 0.05, l1: float = 0.0, l2: float = 0.0, beta: float = 0.0,
    initial_accumulator_value: float = 0.1, maximize: bool = False, grad_scale: float = 1.0, backend: str = "auto",
    threads: int | None = None,
) -> None:
    """Take one step of `fastoptim.FTRL` in place, on arrays that the caller owns.

    `state` is a dict, empty at first, that keeps "step", "accumulator", "linear". `grad_scale` multiplies g; all else,
    errors included, is as for the class.
    """
    values = (lr, l1, l2, beta, initial_accumulator_value, maximize)
    step_array(FTRL, p, g, state, values, grad_scale, backend, threads)


def lamb(
    p: Any, g: Any, state: dict[str, Any], *, lr: float = 0.001, betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-06, weight_decay: float = 0.0, maximize: bool = False, adapt: bool = True,
    bias_correction: bool = True, trust_clip: bool = False, grad_scale: float = 1.0, backend: str = "auto",
    threads: int | None = None,
) -> None:
    """Take one step of `fastoptim.LAMB` in place, on arrays that the caller owns.

    `state` is a dict, empty at first, that keeps "step", "exp_avg", "exp_avg_sq". `grad_scale` multiplies g; all else,
    errors included, is as for the class.
    """
    values = (lr, betas, eps, weight_decay, maximize, adapt, bias_correction, trust_clip)
    step_array(LAMB, p, g, state, values, grad_scale, backend, threads)


def lars(
    p: Any, g: Any, state: dict[str, Any], *, lr: float = 1.0, momentum: float = 0.9, weight_decay: float = 0.0,
    trust_coefficient: float = 0.001, eps: float = 0.0, nesterov: bool = False, maximize: bool = False,
    adapt: bool = True, mode: str = "paper", grad_scale: float = 1.0, backend: str = "auto", threads: int | None = None,
) -> None:
    """Take one step of `fastoptim.LARS` in place, on arrays that the caller owns.

    `state` is a dict, empty at first, that keeps "step", "momentum_buffer" (what it needs). `grad_scale` multiplies g;
    all else, errors included, is as for the class.
    """
    values = (lr, momentum, weight_decay, trust_coefficient, eps, nesterov, maximize, adapt, mode)
    step_array(LARS, p, g, state, values, grad_scale, backend, threads)


def novograd(
    p: Any, g: Any, state: dict[str, Any], *, lr: float = 0.01, betas: tuple[float, float] = (0.95, 0.98),
    eps: float = 1e-08, weight_decay: float = 0.0, maximize: bool = False, grad_averaging: bool = False,
    grad_scale: float = 1.0, backend: str = "auto", threads: int | None = None,
) -> None:
    """Take one step of `fastoptim.NovoGrad` in place, on arrays that the caller owns.

    `state` is a dict, empty at first, that keeps "step", "exp_avg", "exp_avg_sq". `grad_scale` multiplies g; all else,
    errors included, is as for the class.
    """
    values = (lr, betas, eps, weight_decay, maximize, grad_averaging)
    step_array(NovoGrad, p, g, state, values, grad_scale, backend, threads)


def schedule_free_sgd(
    p: Any, g: Any, state: dict[str, Any], *, lr: float = 1.0, momentum: float = 0.9, weight_decay: float = 0.0,
    warmup_steps: int = 0, r: float = 0.0, weight_lr_power: float = 2.0, maximize: bool = False,
    grad_scale: float = 1.0, backend: str = "auto", threads: int | None = None,
) -> None:
    """Take one step of `fastoptim.ScheduleFreeSGD` in place, on arrays that the caller owns.

    `state` is a dict, empty at first, that keeps "step", "z", "lr_max", "weight_sum". `grad_scale` multiplies g; all
    else, errors included, is as for the class.
    """
    values = (lr, momentum, weight_decay, warmup_steps, r, weight_lr_power, maximize)
    step_array(ScheduleFreeSGD, p, g, state, values, grad_scale, backend, threads)


def schedule_free_adamw(
    p: Any, g: Any, state: dict[str, Any], *, lr: float = 0.0025, betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-08, weight_decay: float = 0.0, warmup_steps: int = 0, r: float = 0.0, weight_lr_power: float = 2.0,
    maximize: bool = False, grad_scale: float = 1.0, backend: str = "auto", threads: int | None = None,
) -> None:
    """Take one step of `fastoptim.ScheduleFreeAdamW` in place, on arrays that the caller owns.

    `state` is a dict, empty at first, that keeps "step", "z", "exp_avg_sq", "lr_max", "weight_sum". `grad_scale`
    multiplies g; all else, errors included, is as for the class.
    """
    values = (lr, betas, eps, weight_decay, warmup_steps, r, weight_lr_power, maximize)
    step_array(ScheduleFreeAdamW, p, g, state, values, grad_scale, backend, threads)
