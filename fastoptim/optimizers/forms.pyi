# Written by tests/proofs/forms_write.py; do not edit.
# fmt: off
from typing import Any

__all__ = ["adabelief", "adadelta", "adagrad", "adamax", "adan", "ademamix", "adopt", "asgd", "ftrl", "lamb",
    "laprop", "lars", "lion", "nadam", "novograd", "radam", "rmsprop", "rprop", "schedule_free_adamw",
    "schedule_free_sgd", "signsgd", "signum", "yogi"]

def rmsprop(
    p: Any, g: Any, state: dict[str, Any], *, lr: float = 0.01, alpha: float = 0.99, eps: float = 1e-08,
    weight_decay: float = 0.0, momentum: float = 0.0, centered: bool = False, maximize: bool = False,
    eps_mode: str = "torch", momentum_mode: str = "torch", grad_scale: float = 1.0, backend: str = "auto",
    threads: int | None = None,
) -> None: ...

def adagrad(
    p: Any, g: Any, state: dict[str, Any], *, lr: float = 0.01, lr_decay: float = 0.0, weight_decay: float = 0.0,
    initial_accumulator_value: float = 0.0, eps: float = 1e-10, maximize: bool = False, eps_mode: str = "torch",
    grad_scale: float = 1.0, backend: str = "auto", threads: int | None = None,
) -> None: ...

def adadelta(
    p: Any, g: Any, state: dict[str, Any], *, lr: float = 1.0, rho: float = 0.9, eps: float = 1e-06,
    weight_decay: float = 0.0, maximize: bool = False, grad_scale: float = 1.0, backend: str = "auto",
    threads: int | None = None,
) -> None: ...

def adamax(
    p: Any, g: Any, state: dict[str, Any], *, lr: float = 0.002, betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-08, weight_decay: float = 0.0, maximize: bool = False, eps_mode: str = "torch",
    grad_scale: float = 1.0, backend: str = "auto", threads: int | None = None,
) -> None: ...

def nadam(
    p: Any, g: Any, state: dict[str, Any], *, lr: float = 0.002, betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-08, weight_decay: float = 0.0, momentum_decay: float = 0.004, decoupled_weight_decay: bool = False,
    maximize: bool = False, mode: str = "torch", decay_mode: str = "lr", grad_scale: float = 1.0,
    backend: str = "auto", threads: int | None = None,
) -> None: ...

def radam(
    p: Any, g: Any, state: dict[str, Any], *, lr: float = 0.001, betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-08, weight_decay: float = 0.0, decoupled_weight_decay: bool = False, maximize: bool = False,
    decay_mode: str = "lr", grad_scale: float = 1.0, backend: str = "auto", threads: int | None = None,
) -> None: ...

def rprop(
    p: Any, g: Any, state: dict[str, Any], *, lr: float = 0.01, etas: tuple[float, float] = (0.5, 1.2),
    step_sizes: tuple[float, float] = (1e-06, 50.0), maximize: bool = False, grad_scale: float = 1.0,
    backend: str = "auto", threads: int | None = None,
) -> None: ...

def asgd(
    p: Any, g: Any, state: dict[str, Any], *, lr: float = 0.01, lambd: float = 0.0001, alpha: float = 0.75,
    t0: float = 1000000.0, weight_decay: float = 0.0, maximize: bool = False, grad_scale: float = 1.0,
    backend: str = "auto", threads: int | None = None,
) -> None: ...

def lion(
    p: Any, g: Any, state: dict[str, Any], *, lr: float = 0.0001, betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 0.0, maximize: bool = False, decay_mode: str = "lr", cautious: bool = False,
    grad_scale: float = 1.0, backend: str = "auto", threads: int | None = None,
) -> None: ...

def signsgd(
    p: Any, g: Any, state: dict[str, Any], *, lr: float = 0.001, weight_decay: float = 0.0, maximize: bool = False,
    decay_mode: str = "lr", grad_scale: float = 1.0, backend: str = "auto", threads: int | None = None,
) -> None: ...

def signum(
    p: Any, g: Any, state: dict[str, Any], *, lr: float = 0.001, momentum: float = 0.9, weight_decay: float = 0.0,
    maximize: bool = False, decay_mode: str = "lr", grad_scale: float = 1.0, backend: str = "auto",
    threads: int | None = None,
) -> None: ...

def adabelief(
    p: Any, g: Any, state: dict[str, Any], *, lr: float = 0.001, betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-16, weight_decay: float = 0.0, maximize: bool = False, eps_root: float = 1e-16,
    decay_mode: str = "lr", grad_scale: float = 1.0, backend: str = "auto", threads: int | None = None,
) -> None: ...

def adopt(
    p: Any, g: Any, state: dict[str, Any], *, lr: float = 0.001, betas: tuple[float, float] = (0.9, 0.9999),
    eps: float = 1e-06, weight_decay: float = 0.0, maximize: bool = False, decay_mode: str = "lr",
    grad_scale: float = 1.0, backend: str = "auto", threads: int | None = None,
) -> None: ...

def yogi(
    p: Any, g: Any, state: dict[str, Any], *, lr: float = 0.01, betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 0.001, weight_decay: float = 0.0, initial_accumulator_value: float = 1e-06, maximize: bool = False,
    decay_mode: str = "lr", grad_scale: float = 1.0, backend: str = "auto", threads: int | None = None,
) -> None: ...

def laprop(
    p: Any, g: Any, state: dict[str, Any], *, lr: float = 0.0004, betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-15, weight_decay: float = 0.0, maximize: bool = False, decay_mode: str = "lr",
    grad_scale: float = 1.0, backend: str = "auto", threads: int | None = None,
) -> None: ...

def ademamix(
    p: Any, g: Any, state: dict[str, Any], *, lr: float = 0.001,
    betas: tuple[float, float, float] = (0.9, 0.999, 0.9999), eps: float = 1e-08, weight_decay: float = 0.0,
    alpha: float = 5.0, warmup_steps: int = 0, maximize: bool = False, decay_mode: str = "lr", grad_scale: float = 1.0,
    backend: str = "auto", threads: int | None = None,
) -> None: ...

def adan(
    p: Any, g: Any, state: dict[str, Any], *, lr: float = 0.001,
    betas: tuple[float, float, float] = (0.98, 0.92, 0.99), eps: float = 1e-08, weight_decay: float = 0.0,
    maximize: bool = False, mode: str = "authors", decay_mode: str = "lr", grad_scale: float = 1.0,
    backend: str = "auto", threads: int | None = None,
) -> None: ...

def ftrl(
    p: Any, g: Any, state: dict[str, Any], *, lr: float = 0.05, l1: float = 0.0, l2: float = 0.0, beta: float = 0.0,
    initial_accumulator_value: float = 0.1, maximize: bool = False, grad_scale: float = 1.0, backend: str = "auto",
    threads: int | None = None,
) -> None: ...

def lamb(
    p: Any, g: Any, state: dict[str, Any], *, lr: float = 0.001, betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-06, weight_decay: float = 0.0, maximize: bool = False, adapt: bool = True,
    bias_correction: bool = True, trust_clip: bool = False, grad_scale: float = 1.0, backend: str = "auto",
    threads: int | None = None,
) -> None: ...

def lars(
    p: Any, g: Any, state: dict[str, Any], *, lr: float = 1.0, momentum: float = 0.9, weight_decay: float = 0.0,
    trust_coefficient: float = 0.001, eps: float = 0.0, nesterov: bool = False, maximize: bool = False,
    adapt: bool = True, mode: str = "paper", grad_scale: float = 1.0, backend: str = "auto", threads: int | None = None,
) -> None: ...

def novograd(
    p: Any, g: Any, state: dict[str, Any], *, lr: float = 0.01, betas: tuple[float, float] = (0.95, 0.98),
    eps: float = 1e-08, weight_decay: float = 0.0, maximize: bool = False, grad_averaging: bool = False,
    grad_scale: float = 1.0, backend: str = "auto", threads: int | None = None,
) -> None: ...

def schedule_free_sgd(
    p: Any, g: Any, state: dict[str, Any], *, lr: float = 1.0, momentum: float = 0.9, weight_decay: float = 0.0,
    warmup_steps: int = 0, r: float = 0.0, weight_lr_power: float = 2.0, maximize: bool = False,
    grad_scale: float = 1.0, backend: str = "auto", threads: int | None = None,
) -> None: ...

def schedule_free_adamw(
    p: Any, g: Any, state: dict[str, Any], *, lr: float = 0.0025, betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-08, weight_decay: float = 0.0, warmup_steps: int = 0, r: float = 0.0, weight_lr_power: float = 2.0,
    maximize: bool = False, grad_scale: float = 1.0, backend: str = "auto", threads: int | None = None,
) -> None: ...
