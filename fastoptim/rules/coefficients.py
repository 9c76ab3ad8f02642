"""Coefficients of the update rules from hyperparameters: float64, in the order in which a rule takes them.

The last arguments are what changes from step to step, so that `functools.partial` can hold the others: the number of
the step, then the numbers that the rule keeps beside it (see `Rule.scalars`), which an ``_advance`` function moves on.
A mode is a convention in which libraries differ.
"""

from __future__ import annotations

from math import exp, inf, log, pow, sqrt

MOMENTUM_MODES = ("torch", "lr_inside", "damped")
EPS_MODES = ("torch", "hat")
ROOT_MODES = ("torch", "root")  # sqrt(v) + eps, or sqrt(v + eps)
RMSPROP_MOMENTUM_MODES = ("torch", "lr_inside")
ADAMAX_MODES = ("torch", "keras")
NADAM_MODES = ("torch", "optax", "mlcommons")
ADAN_MODES = ("authors", "optax")
LARS_MODES = ("paper", "optax")
DECAY_MODES = ("lr", "fixed")


def _power(x: float, y: float) -> float:
    """``x**y``, infinite where that is beyond float64: a step refuses what comes of it."""
    try:
        return pow(x, y)
    except OverflowError:
        return inf


def sgd_coefficients(lr: float) -> tuple[float, ...]:
    """``(c,)``."""
    return (lr,)


def momentum_coefficients(
    lr: float, momentum: float, dampening: float = 0.0, mode: str = "torch", first: bool = False
) -> tuple[float, ...]:
    """``(a, b, c)``. `first` is the step that creates the buffer: torch then stores the gradient undamped."""
    if mode == "lr_inside":
        return (momentum, lr, 1.0)
    if mode == "damped":
        return (momentum, 1.0 - momentum, lr)
    return (momentum, 1.0 if first else 1.0 - dampening, lr)


def nesterov_coefficients(lr: float, momentum: float, mode: str = "torch") -> tuple[float, ...]:
    """``(a, b, c, e, f)``; the gradient that is looked ahead with carries the factor that the velocity gives it."""
    a, b, c = momentum_coefficients(lr, momentum, mode=mode)
    return (a, b, c, momentum, b)


def adam_coefficients(lr: float, beta1: float, beta2: float, eps: float, mode: str, t: int) -> tuple[float, ...]:
    """``(b1, c1, b2, c2, step, r2, eps)`` for the step with the number `t` (from 1)."""
    bc1 = 1.0 - pow(beta1, t)
    bc2 = 1.0 - pow(beta2, t)
    if mode == "hat":
        return (beta1, 1.0 - beta1, beta2, 1.0 - beta2, lr * sqrt(bc2) / bc1, 1.0, eps)
    return (beta1, 1.0 - beta1, beta2, 1.0 - beta2, lr / bc1, 1.0 / sqrt(bc2), eps)


def cautious_adam_coefficients(
    lr: float, beta1: float, beta2: float, eps: float, mode: str, factor: float, t: int
) -> tuple[float, ...]:
    """``(b1, c1, b2, c2, step, r2, eps, f, zero)``; `factor` makes up for the elements that are left where they are."""
    return (*adam_coefficients(lr, beta1, beta2, eps, mode, t), factor, 0.0)


def decoupled_coefficient(lr: float, weight_decay: float, mode: str = "lr") -> float:
    """``w``, the share of a parameter that decoupled weight decay takes away in a step; "fixed" leaves lr out."""
    return weight_decay if mode == "fixed" else lr * weight_decay


def average_coefficients(t: int, decay: float | None = None) -> tuple[float, ...]:
    """``(b,)`` for the t-th value that enters an average: of the last ones if there is a `decay`, else of all."""
    return (1.0 / t if decay is None else 1.0 - decay,)


# --- Signs and averages --------------------------------------------------------------------------------------------


def signsgd_coefficients(lr: float) -> tuple[float, ...]:
    """``(up, down, zero)``."""
    return (lr, -lr, 0.0)


def signum_coefficients(lr: float, momentum: float) -> tuple[float, ...]:
    """``(a, b, up, down, zero)``."""
    return (momentum, 1.0 - momentum, lr, -lr, 0.0)


def lion_coefficients(lr: float, beta1: float, beta2: float) -> tuple[float, ...]:
    """``(b1, c1, b2, c2, up, down, zero)``."""
    return (beta1, 1.0 - beta1, beta2, 1.0 - beta2, lr, -lr, 0.0)


def cautious_lion_coefficients(lr: float, beta1: float, beta2: float, factor: float) -> tuple[float, ...]:
    """``(b1, c1, b2, c2, up, down, f, zero)``."""
    return (*lion_coefficients(lr, beta1, beta2)[:-1], factor, 0.0)


def novograd_coefficients(
    lr: float, beta1: float, weight_decay: float, grad_averaging: bool, denominator: float
) -> tuple[float, ...]:
    """``(d, wd, b1, c1, c)``."""
    return (denominator, weight_decay, beta1, 1.0 - beta1 if grad_averaging else 1.0, lr)


def rprop_coefficients(etas: tuple[float, float], step_sizes: tuple[float, float]) -> tuple[float, ...]:
    """``(up, down, lo, hi, zero)``."""
    return (etas[1], etas[0], *step_sizes, 0.0)


def asgd_coefficients(lr: float, lambd: float, alpha: float, t0: float, t: int) -> tuple[float, ...]:
    """``(d, c, a, b)``; rate and weight of the average are those that torch computes behind step ``t - 1``."""
    eta = lr / _power(1.0 + lambd * lr * (t - 1), alpha)
    mu = 1.0 if t == 1 else 1.0 / max(1.0, t - 1 - t0)
    return (lambd * eta, eta, 1.0 - mu, mu)


def _warm(lr: float, warmup_steps: int, t: int) -> float:
    return lr * min(1.0, t / warmup_steps) if warmup_steps else lr


def schedule_free_advance(
    lr: float, warmup_steps: int, r: float, power: float, t: int, lr_max: float, weight_sum: float
) -> tuple[float, ...]:
    """The largest rate so far, and the sum of the weights ``t**r * lr_max**power``."""
    lr_max = max(_warm(lr, warmup_steps, t), lr_max)
    return (lr_max, weight_sum + _power(t, r) * _power(lr_max, power))


def schedule_free_sgd_coefficients(
    lr: float,
    momentum: float,
    warmup_steps: int,
    r: float,
    weight_lr_power: float,
    t: int,
    lr_max: float,
    weight_sum: float,
) -> tuple[float, ...]:
    """``(a, b, e, c)``: weights of y and z in the new y, and the rates with which the two move."""
    new = schedule_free_advance(lr, warmup_steps, r, weight_lr_power, t, lr_max, weight_sum)[1]
    share = (new - weight_sum) / new if new else 0.0
    rate = _warm(lr, warmup_steps, t)
    return (1.0 - share, share, rate * (1.0 - momentum * (1.0 - share)), rate)


def schedule_free_adamw_coefficients(
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    warmup_steps: int,
    r: float,
    weight_lr_power: float,
    t: int,
    lr_max: float,
    weight_sum: float,
) -> tuple[float, ...]:
    """``(b2, c2, r2, eps, wd, a, b, e, c)``."""
    moves = schedule_free_sgd_coefficients(lr, beta1, warmup_steps, r, weight_lr_power, t, lr_max, weight_sum)
    return (beta2, 1.0 - beta2, 1.0 / sqrt(1.0 - pow(beta2, t)), eps, weight_decay, *moves)


# --- Means and sums of squares -------------------------------------------------------------------------------------


def _eps(eps: float, mode: str) -> tuple[float, float]:
    """``(er, eps)``: under the root and outside."""
    return (eps, 0.0) if mode == "root" else (0.0, eps)


def rmsprop_coefficients(lr: float, alpha: float, eps: float, mode: str = "torch") -> tuple[float, ...]:
    """``(a, b, er, eps, c)``."""
    return (alpha, 1.0 - alpha, *_eps(eps, mode), lr)


def rmsprop_momentum_coefficients(
    lr: float, alpha: float, eps: float, momentum: float, mode: str = "torch", momentum_mode: str = "torch"
) -> tuple[float, ...]:
    """``(a, b, er, eps, d, e, c)``."""
    e, c = (lr, 1.0) if momentum_mode == "lr_inside" else (1.0, lr)
    return (alpha, 1.0 - alpha, *_eps(eps, mode), momentum, e, c)


def rmsprop_centered_coefficients(lr: float, alpha: float, eps: float, mode: str = "torch") -> tuple[float, ...]:
    """``(a, b, er, eps, c, zero)``."""
    return (*rmsprop_coefficients(lr, alpha, eps, mode), 0.0)


def rmsprop_centered_momentum_coefficients(
    lr: float, alpha: float, eps: float, momentum: float, mode: str = "torch", momentum_mode: str = "torch"
) -> tuple[float, ...]:
    """``(a, b, er, eps, d, e, c, zero)``."""
    return (*rmsprop_momentum_coefficients(lr, alpha, eps, momentum, mode, momentum_mode), 0.0)


def adagrad_coefficients(lr: float, lr_decay: float, eps: float, mode: str, t: int) -> tuple[float, ...]:
    """Those of the rule `rmsprop` with a = b = 1: products with 1 are exact."""
    return (1.0, 1.0, *_eps(eps, mode), lr / (1.0 + (t - 1) * lr_decay))


def adadelta_coefficients(lr: float, rho: float, eps: float) -> tuple[float, ...]:
    """``(a, b, eps, c)``."""
    return (rho, 1.0 - rho, eps, lr)


def ftrl_coefficients(lr: float, l1: float, l2: float, beta: float) -> tuple[float, ...]:
    """``(h, l1, down, l2)``."""
    return (1.0 / lr, l1, -l1, 2.0 * l2 + beta / lr)


# --- Adam's relatives ----------------------------------------------------------------------------------------------


def lamb_coefficients(
    lr: float, beta1: float, beta2: float, eps: float, bias_correction: bool, t: int
) -> tuple[float, ...]:
    """Those of the rule `adam`."""
    if bias_correction:
        return adam_coefficients(lr, beta1, beta2, eps, "torch", t)
    return (beta1, 1.0 - beta1, beta2, 1.0 - beta2, lr, 1.0, eps)


def adamax_coefficients(lr: float, beta1: float, beta2: float, eps: float, mode: str, t: int) -> tuple[float, ...]:
    """``(b1, c1, b2, e, step, eps, zero)``; torch adds eps before the maximum, Keras behind it."""
    e, eps = (0.0, eps) if mode == "keras" else (eps, 0.0)
    return (beta1, 1.0 - beta1, beta2, e, lr / (1.0 - pow(beta1, t)), eps, 0.0)


def nadam_momentum(beta1: float, momentum_decay: float, t: int) -> float:
    """torch's momentum of step `t`, which warms up."""
    return beta1 * (1.0 - 0.5 * pow(0.96, t * momentum_decay))


def nadam_advance(beta1: float, momentum_decay: float, t: int, mu_product: float) -> tuple[float, ...]:
    """The product of all momenta."""
    return (mu_product * nadam_momentum(beta1, momentum_decay, t),)


def nadam_coefficients(
    lr: float, beta1: float, beta2: float, eps: float, momentum_decay: float, mode: str, t: int, mu_product: float
) -> tuple[float, ...]:
    """``(b1, c1, b2, c2, f, step, r2, eps)``: Dozat's in torch's form, Optax's ``nesterov=True``, MLCommons' NAdamW."""
    if mode == "torch":
        mu, after = (nadam_momentum(beta1, momentum_decay, k) for k in (t, t + 1))
        mu_product *= mu
        f, step = lr * (1.0 - mu) / (1.0 - mu_product), lr * after / (1.0 - mu_product * after)
    else:
        f = lr * (1.0 - beta1) / (1.0 - pow(beta1, t))
        step = lr * beta1 / (1.0 - pow(beta1, t + 1 if mode == "optax" else t))
    return (beta1, 1.0 - beta1, beta2, 1.0 - beta2, f, step, 1.0 / sqrt(1.0 - pow(beta2, t)), eps)


def radam_coefficients(lr: float, beta1: float, beta2: float, eps: float, t: int) -> tuple[float, ...]:
    """Those of the rule `adam`: while rho <= 5 the denominator is ``0 * sqrt(v) + 1``."""
    bc1, bc2 = 1.0 - pow(beta1, t), 1.0 - pow(beta2, t)
    last = 2.0 / (1.0 - beta2) - 1.0
    rho = last - 2.0 * t * pow(beta2, t) / bc2
    head = (beta1, 1.0 - beta1, beta2, 1.0 - beta2)
    if rho <= 5.0:
        return (*head, lr / bc1, 0.0, 1.0)
    rectified = sqrt((rho - 4.0) * (rho - 2.0) * last / ((last - 4.0) * (last - 2.0) * rho))
    return (*head, lr / bc1 * sqrt(bc2) * rectified, 1.0, eps)


def adabelief_coefficients(
    lr: float, beta1: float, beta2: float, eps: float, eps_root: float, t: int
) -> tuple[float, ...]:
    """``(b1, c1, b2, c2, er, step, r2, eps)``."""
    b1, c1, b2, c2, *rest = adam_coefficients(lr, beta1, beta2, eps, "torch", t)
    return (b1, c1, b2, c2, eps_root, *rest)


def yogi_coefficients(lr: float, beta1: float, beta2: float, eps: float, t: int) -> tuple[float, ...]:
    """``(b1, c1, c2, step, r2, eps)``."""
    b1, c1, _, *rest = adam_coefficients(lr, beta1, beta2, eps, "torch", t)
    return (b1, c1, *rest)


def adopt_coefficients(lr: float, beta1: float, beta2: float, eps: float, t: int) -> tuple[float, ...]:
    """``(b1, c1, b2, c2, eps, lo, hi, c)``; the first step fills v alone."""
    if t == 1:
        return (1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, lr)
    clip = pow(t - 1, 0.25)
    return (beta1, 1.0 - beta1, beta2, 1.0 - beta2, eps, -clip, clip, lr)


def laprop_advance(lr: float, beta1: float, t: int, exp_avg_lr: float) -> tuple[float, ...]:
    """The running mean of the rate, which the first moment holds as a factor."""
    return (beta1 * exp_avg_lr + (1.0 - beta1) * lr,)


def laprop_coefficients(
    lr: float, beta1: float, beta2: float, eps: float, t: int, exp_avg_lr: float
) -> tuple[float, ...]:
    """``(b1, c1, b2, c2, r2, eps, step)``."""
    (exp_avg_lr,) = laprop_advance(lr, beta1, t, exp_avg_lr)
    step = lr / exp_avg_lr if exp_avg_lr else 0.0  # rates may vanish in the mean
    return (beta1, (1.0 - beta1) * lr, beta2, 1.0 - beta2, 1.0 / sqrt(1.0 - pow(beta2, t)), eps, step)


def ademamix_coefficients(
    lr: float, betas: tuple[float, float, float], eps: float, alpha: float, warmup_steps: int, t: int
) -> tuple[float, ...]:
    """``(b1, c1, b2, c2, b3, c3, step, f, r2, eps)``; alpha grows linearly, the half-life that b3 gives does, too."""
    b1, b2, b3 = betas
    if t < warmup_steps:
        share = t / warmup_steps
        alpha *= share
        lo, hi = (log(b) if b else -inf for b in (b1, b3))
        b3 = min(exp(lo * hi / ((1.0 - share) * hi + share * lo)), b3) if b1 and b3 else b3
    step, r2 = lr / (1.0 - pow(b1, t)), 1.0 / sqrt(1.0 - pow(b2, t))
    return (b1, 1.0 - b1, b2, 1.0 - b2, b3, 1.0 - b3, step, lr * alpha, r2, eps)


def adan_coefficients(lr: float, betas: tuple[float, float, float], eps: float, mode: str, t: int) -> tuple[float, ...]:
    """``(b1, c1, b2, c2, b3, c3, e, f, s1, s2, r3, eps)``; the authors weigh differences with b2, Optax with 1 - b2."""
    b1, b2, b3 = betas
    f = 1.0 - b2 if mode == "optax" else b2
    s1, s2 = lr / (1.0 - pow(b1, t)), lr * f / (1.0 - pow(b2, t))
    r3 = 1.0 / sqrt(1.0 - pow(b3, t))
    return (b1, 1.0 - b1, b2, 1.0 - b2, b3, 1.0 - b3, 0.0 if t == 1 else 1.0, f, s1, s2, r3, eps)
