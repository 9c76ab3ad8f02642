"""Adam's relatives with two moments and more: NAdam, RAdam, AdaBelief, ADOPT, Yogi, LaProp, AdEMAMix, Adan."""

from __future__ import annotations

from dataclasses import KW_ONLY
from functools import partial
from typing import Any

from ..common.public import public
from ..rules import coefficients as k
from .family import Family, spec_of
from .hyperparameters import BELOW_ONE, Hyper, Rate, UpdateSpec


@public
class NAdam(Family):
    """NAdam: Adam with Nesterov's momentum.

    At step t, with ``mu(t) = beta1 * (1 - 0.96**(t * momentum_decay) / 2)`` and M(t) the product of mu(1) to mu(t)::

        m <- beta1 * m + (1 - beta1) * g
        v <- beta2 * v + (1 - beta2) * g**2
        n = (1 - mu(t)) / (1 - M(t)) * g + mu(t + 1) / (1 - M(t + 1)) * m
        p <- p - lr * n / (sqrt(v) / sqrt(1 - beta2**t) + eps)

    Parameters
    ----------
    params, lr, betas, eps, weight_decay, maximize
        As for `Adam`; so is all that is not listed here, errors included.
    momentum_decay : float
        How fast mu rises to beta1, >= 0; 1 is Keras'. For "torch" only.
    decoupled_weight_decay : bool
        Whether weight decay is AdamW's.
    mode : {"torch", "optax", "mlcommons"}
        Without the warm-up of mu: "optax" is ``(1 - beta1) / (1 - beta1**t) * g + beta1 / (1 - beta1**(t + 1)) * m``
        (``nesterov=True``), "mlcommons" divides both by ``1 - beta1**t`` (NAdamW in the
        AlgoPerf benchmark and timm).
    decay_mode : {"lr", "fixed"}
        As for `Lion`; "fixed" needs decoupled_weight_decay.

    Notes
    -----
    The product M is kept beside the step count as "mu_product".

    References
    ----------
    Dozat, "Incorporating Nesterov momentum into Adam", ICLR workshop 2016.

    Examples
    --------
    >>> import numpy as np, fastoptim as fo
    >>> w = np.array([1.0])
    >>> fo.NAdam(w, lr=0.1, mode="mlcommons").step(np.array([2.0])).applied
    True
    >>> w.round(3)
    array([0.81])
    """

    _rules = ("nadam",)
    lr: Hyper[float] = Rate(2e-3)
    betas: Hyper[tuple[float, float]] = Hyper((0.9, 0.999), BELOW_ONE)
    eps: Hyper[float] = Hyper(1e-8)
    weight_decay: Hyper[float] = Hyper(0.0)
    momentum_decay: Hyper[float] = Hyper(4e-3)
    decoupled_weight_decay: Hyper[bool] = Hyper(False)
    _: KW_ONLY
    mode: Hyper[str] = Hyper("torch", k.NADAM_MODES)
    decay_mode: Hyper[str] = Hyper("lr", k.DECAY_MODES)

    @staticmethod
    def _update(o: Any) -> UpdateSpec:
        coefficients = partial(k.nadam_coefficients, o.lr, o.betas[0], o.betas[1], o.eps, o.momentum_decay, o.mode)
        return spec_of("nadam", o, coefficients, advance=partial(k.nadam_advance, o.betas[0], o.momentum_decay))


@public
class RAdam(Family):
    """RAdam: Adam that moves without its root until that is known well enough, then with a rectified rate.

    At step t, with m and v of `Adam`, bc1 and bc2 its corrections, ``last = 2 / (1 - beta2) - 1`` and
    ``rho = last - 2 * t * beta2**t / bc2``::

        p <- p - lr / bc1 * m                                               where rho <= 5
        p <- p - lr / bc1 * rect * sqrt(bc2) * m / (sqrt(v) + eps)          otherwise

    and ``rect = sqrt((rho - 4) * (rho - 2) * last / ((last - 4) * (last - 2) * rho))``.

    Parameters
    ----------
    params, lr, betas, eps, weight_decay, maximize
        As for `Adam`; so is all that is not listed here, errors included.
    decoupled_weight_decay, decay_mode
        As for `NAdam`.

    Notes
    -----
    torch's, but that a square that overflows (in float32 from gradients of 1.9e19 on) makes NaN where rho <= 5: the
    kernel is that of `Adam`, whose root is then multiplied by 0. torch steps by lr times such a gradient, and never
    again once it rectifies, since v stays infinite. With `max_norm` neither happens: squares are taken behind it. Optax
    rectifies where rho >= 5 and adds eps behind the correction of the root.

    References
    ----------
    Liu et al., "On the variance of the adaptive learning rate and beyond", ICLR 2020.

    Examples
    --------
    >>> import numpy as np, fastoptim as fo
    >>> w = np.array([1.0])
    >>> fo.RAdam(w, lr=0.1).step(np.array([2.0])).applied
    True
    >>> w.round(6)
    array([0.8])
    """

    _rules = ("adam",)
    lr: Hyper[float] = Rate(1e-3)
    betas: Hyper[tuple[float, float]] = Hyper((0.9, 0.999), BELOW_ONE)
    eps: Hyper[float] = Hyper(1e-8)
    weight_decay: Hyper[float] = Hyper(0.0)
    decoupled_weight_decay: Hyper[bool] = Hyper(False)
    _: KW_ONLY
    decay_mode: Hyper[str] = Hyper("lr", k.DECAY_MODES)

    @staticmethod
    def _update(o: Any) -> UpdateSpec:
        return spec_of("adam", o, partial(k.radam_coefficients, o.lr, o.betas[0], o.betas[1], o.eps))


@public
class AdaBelief(Family):
    """AdaBelief: Adam divided by how far gradients lie from their running mean.

    At step t, with bc1 and bc2 of `Adam`::

        m <- beta1 * m + (1 - beta1) * g
        v <- beta2 * v + (1 - beta2) * (g - m)**2 + eps_root
        u = (lr / bc1) * m / (sqrt(v) / sqrt(bc2) + eps)
        p <- p - (lr * weight_decay * p + u)

    Parameters
    ----------
    params, lr, betas, maximize
        As for `Adam`; so is all that is not listed here, errors included.
    eps, eps_root : float
        Added to the root, and to v at every step, >= 0.
    weight_decay : float
        Decoupled weight decay, >= 0.
    decay_mode : {"lr", "fixed"}
        As for `Lion`.

    References
    ----------
    Zhuang et al., "AdaBelief optimizer: adapting stepsizes by the belief in observed gradients", NeurIPS 2020.

    Examples
    --------
    >>> import numpy as np, fastoptim as fo
    >>> w = np.array([1.0])
    >>> fo.AdaBelief(w, lr=0.09).step(np.array([2.0])).applied
    True
    >>> w.round(6)
    array([0.9])
    """

    _rules = ("adabelief",)
    lr: Hyper[float] = Rate(1e-3)
    betas: Hyper[tuple[float, float]] = Hyper((0.9, 0.999), BELOW_ONE)
    eps: Hyper[float] = Hyper(1e-16)
    weight_decay: Hyper[float] = Hyper(0.0)
    _: KW_ONLY
    eps_root: Hyper[float] = Hyper(1e-16)
    decay_mode: Hyper[str] = Hyper("lr", k.DECAY_MODES)

    @staticmethod
    def _update(o: Any) -> UpdateSpec:
        return spec_of(
            "adabelief", o, partial(k.adabelief_coefficients, o.lr, o.betas[0], o.betas[1], o.eps, o.eps_root)
        )


@public
class ADOPT(Family):
    """ADOPT: Adam that divides by the mean square before it takes in the gradient, which makes any beta2 converge.

    At step 1, ``v <- g**2`` and nothing else. Then, with ``clip = (t - 1)**(1 / 4)``::

        d = g / max(sqrt(v), eps), within [-clip, clip]
        m <- beta1 * m + (1 - beta1) * d
        v <- beta2 * v + (1 - beta2) * g**2
        p <- p - (lr * weight_decay * p + lr * m)

    Parameters
    ----------
    params, lr, betas, eps, maximize
        As for `Adam`; so is all that is not listed here, errors included.
    weight_decay, decay_mode
        As for `AdaBelief`.

    Notes
    -----
    The authors' with ``decouple=True``, and Optax's. Weight decay, where it is not 0, is at work in step 1, too.

    References
    ----------
    Taniguchi et al., "ADOPT: modified Adam can converge with any beta2 with the optimal rate", NeurIPS 2024.

    Examples
    --------
    >>> import numpy as np, fastoptim as fo
    >>> w = np.array([1.0])
    >>> opt = fo.ADOPT(w, lr=0.1)
    >>> for g in (2.0, 2.0):
    ...     _ = opt.step(np.array([g]))
    >>> w.round(6)
    array([0.99])
    """

    _rules = ("adopt",)
    lr: Hyper[float] = Rate(1e-3)
    betas: Hyper[tuple[float, float]] = Hyper((0.9, 0.9999), BELOW_ONE)
    eps: Hyper[float] = Hyper(1e-6)
    weight_decay: Hyper[float] = Hyper(0.0)
    _: KW_ONLY
    decay_mode: Hyper[str] = Hyper("lr", k.DECAY_MODES)

    @staticmethod
    def _update(o: Any) -> UpdateSpec:
        return spec_of("adopt", o, partial(k.adopt_coefficients, o.lr, o.betas[0], o.betas[1], o.eps))


@public
class Yogi(Family):
    """Yogi: Adam whose mean square moves by a share of the new square, not of the difference.

    At step t, with bc1 and bc2 of `Adam`::

        m <- beta1 * m + (1 - beta1) * g
        v <- v - (1 - beta2) * sign(v - g**2) * g**2
        u = (lr / bc1) * m / (sqrt(v) / sqrt(bc2) + eps)
        p <- p - (lr * weight_decay * p + u)

    Parameters
    ----------
    params, lr, betas, eps, maximize
        As for `Adam`; so is all that is not listed here, errors included.
    weight_decay, decay_mode
        As for `AdaBelief`.
    initial_accumulator_value : float
        What m and v hold before the first step, >= 0.

    References
    ----------
    Zaheer et al., "Adaptive methods for nonconvex optimization", NeurIPS 2018. The defaults are Optax's.

    Examples
    --------
    >>> import numpy as np, fastoptim as fo
    >>> w = np.array([1.0])
    >>> fo.Yogi(w, lr=0.1).step(np.array([2.0])).applied
    True
    >>> w.round(3)
    array([0.9])
    """

    _rules = ("yogi",)
    lr: Hyper[float] = Rate(1e-2)
    betas: Hyper[tuple[float, float]] = Hyper((0.9, 0.999), BELOW_ONE)
    eps: Hyper[float] = Hyper(1e-3)
    weight_decay: Hyper[float] = Hyper(0.0)
    initial_accumulator_value: Hyper[float] = Hyper(1e-6)
    _: KW_ONLY
    decay_mode: Hyper[str] = Hyper("lr", k.DECAY_MODES)

    @staticmethod
    def _update(o: Any) -> UpdateSpec:
        return spec_of("yogi", o, partial(k.yogi_coefficients, o.lr, o.betas[0], o.betas[1], o.eps))


@public
class LaProp(Family):
    """LaProp: gradients are divided by the root first, and momentum is made of what comes out.

    At step t, with bc2 of `Adam` and r the running mean of lr that m holds as a factor (``lr * (1 - beta1**t)`` where
    lr stays the same)::

        v <- beta2 * v + (1 - beta2) * g**2
        m <- beta1 * m + (1 - beta1) * lr * g / (sqrt(v) / sqrt(bc2) + eps)
        p <- p - (lr * weight_decay * p + lr / r * m)

    Parameters
    ----------
    params, lr, betas, eps, maximize
        As for `Adam`; so is all that is not listed here, errors included.
    weight_decay, decay_mode
        As for `AdaBelief`.

    Notes
    -----
    The authors' and timm's, but for lr = 0, where momentum does not move the parameter on. r is kept beside the step
    count as "exp_avg_lr".

    References
    ----------
    Ziyin, Wang and Ueda, "LaProp: separating momentum and adaptivity in Adam", 2020.

    Examples
    --------
    >>> import numpy as np, fastoptim as fo
    >>> w = np.array([1.0])
    >>> fo.LaProp(w, lr=0.1).step(np.array([2.0])).applied
    True
    >>> w.round(6)
    array([0.9])
    """

    _rules = ("laprop",)
    lr: Hyper[float] = Rate(4e-4)
    betas: Hyper[tuple[float, float]] = Hyper((0.9, 0.999), BELOW_ONE)
    eps: Hyper[float] = Hyper(1e-15)
    weight_decay: Hyper[float] = Hyper(0.0)
    _: KW_ONLY
    decay_mode: Hyper[str] = Hyper("lr", k.DECAY_MODES)

    @staticmethod
    def _update(o: Any) -> UpdateSpec:
        coefficients = partial(k.laprop_coefficients, o.lr, o.betas[0], o.betas[1], o.eps)
        return spec_of("laprop", o, coefficients, advance=partial(k.laprop_advance, o.lr, o.betas[0]))


@public
class AdEMAMix(Family):
    """AdEMAMix: Adam with a second momentum that remembers thousands of steps.

    At step t, with bc1 and bc2 of `Adam`::

        m <- beta1 * m + (1 - beta1) * g
        v <- beta2 * v + (1 - beta2) * g**2
        w <- beta3 * w + (1 - beta3) * g
        u = lr * (m / bc1 + alpha * w) / (sqrt(v) / sqrt(bc2) + eps)
        p <- p - (lr * weight_decay * p + u)

    Parameters
    ----------
    params, lr, eps, maximize
        As for `Adam`; so is all that is not listed here, errors included.
    betas : three floats
        Decay rates of the fast mean, the mean square and the slow mean, each in [0, 1).
    weight_decay, decay_mode
        As for `AdaBelief`.
    alpha : float
        Weight of the slow mean, >= 0.
    warmup_steps : int
        Steps in which alpha grows from 0 and beta3 from beta1, as the paper has it; 0 for none.

    References
    ----------
    Pagliardini, Ablin and Grangier, "The AdEMAMix optimizer: better, faster, older", ICLR 2025.

    Examples
    --------
    >>> import numpy as np, fastoptim as fo
    >>> w = np.array([1.0])
    >>> fo.AdEMAMix(w, lr=0.1, alpha=0.0).step(np.array([2.0])).applied
    True
    >>> w.round(6)
    array([0.9])
    """

    _rules = ("ademamix",)
    lr: Hyper[float] = Rate(1e-3)
    betas: Hyper[tuple[float, float, float]] = Hyper((0.9, 0.999, 0.9999), BELOW_ONE)
    eps: Hyper[float] = Hyper(1e-8)
    weight_decay: Hyper[float] = Hyper(0.0)
    alpha: Hyper[float] = Hyper(5.0)
    warmup_steps: Hyper[int] = Hyper(0)
    _: KW_ONLY
    decay_mode: Hyper[str] = Hyper("lr", k.DECAY_MODES)

    @staticmethod
    def _update(o: Any) -> UpdateSpec:
        coefficients = partial(k.ademamix_coefficients, o.lr, o.betas, o.eps, o.alpha, o.warmup_steps)
        return spec_of("ademamix", o, coefficients)


@public
class Adan(Family):
    """Adan: Nesterov's momentum for Adam, by means of the differences between gradients.

    At step t, with q the gradient of the step before (g itself at step 1) and ``bc = 1 - beta**t`` for each beta::

        d = g - q
        m <- beta1 * m + (1 - beta1) * g
        w <- beta2 * w + (1 - beta2) * d
        v <- beta3 * v + (1 - beta3) * (g + beta2 * d)**2
        u = lr * (m / bc1 + beta2 * w / bc2) / (sqrt(v) / sqrt(bc3) + eps)
        p <- p - (lr * weight_decay * p + u)

    Parameters
    ----------
    params, lr, eps, maximize
        As for `Adam`; so is all that is not listed here, errors included.
    betas : three floats
        Decay rates of the means of gradients, of differences and of squares, each in [0, 1).
    weight_decay, decay_mode
        As for `AdaBelief`.
    mode : {"authors", "optax"}
        "optax" weighs differences with ``1 - beta2`` in place of beta2.

    Notes
    -----
    The authors divide p by ``1 + lr * weight_decay`` instead, which is the same to first order.

    References
    ----------
    Xie et al., "Adan: adaptive Nesterov momentum algorithm for faster optimizing deep models", TPAMI 2024.

    Examples
    --------
    >>> import numpy as np, fastoptim as fo
    >>> w = np.array([1.0])
    >>> fo.Adan(w, lr=0.1).step(np.array([2.0])).applied
    True
    >>> w.round(6)
    array([0.9])
    """

    _rules = ("adan",)
    lr: Hyper[float] = Rate(1e-3)
    betas: Hyper[tuple[float, float, float]] = Hyper((0.98, 0.92, 0.99), BELOW_ONE)
    eps: Hyper[float] = Hyper(1e-8)
    weight_decay: Hyper[float] = Hyper(0.0)
    _: KW_ONLY
    mode: Hyper[str] = Hyper("authors", k.ADAN_MODES)
    decay_mode: Hyper[str] = Hyper("lr", k.DECAY_MODES)

    @staticmethod
    def _update(o: Any) -> UpdateSpec:
        return spec_of("adan", o, partial(k.adan_coefficients, o.lr, o.betas, o.eps, o.mode))
