"""LAMB, LARS and NovoGrad: the step of each array depends on the norms of that array."""

from __future__ import annotations

from dataclasses import KW_ONLY
from functools import partial
from typing import Any

from ..common.public import public
from ..rules import coefficients as k
from ..rules import measures
from .family import Family, spec_of
from .hyperparameters import BELOW_ONE, Hyper, Rate, UpdateSpec


@public
class LAMB(Family):
    """LAMB: Adam's steps, made as long as the array that they change; for large batches.

    For each array, with m, v, bc1 and bc2 as for `Adam`::

        u = (m / bc1) / (sqrt(v / bc2) + eps) + weight_decay * p
        p <- p - lr * |p| / |u| * u

    where the ratio of the norms is 1 if either is zero. So lr is the share of its length that every array moves.

    Parameters
    ----------
    params : array, sequence, mapping, nesting of these, or list of group dicts
        Writeable native float32 or float64 arrays; they are updated in place. Norms are those of whole arrays, so a
        packed model (`pack`) is one array for it only where its buffer is what is handed over.
    lr : float
        Learning rate, >= 0.
    betas : pair of float
        Decay rates of the running means, each in [0, 1).
    eps : float
        Added to the root, >= 0.
    weight_decay : float
        Added to the step before its norm is taken, >= 0.
    adapt : bool
        Whether steps are made as long as the array; False leaves those of `AdamW`. Biases and the scales of
        normalizations are usually given a group with ``adapt=False`` and ``weight_decay=0``.
    bias_correction : bool
        False leaves out bc1 and bc2, as in the first version of the paper.
    trust_clip : bool
        Let the ratio be 1 at most.
    maximize : bool
        Ascend instead of descend.
    all others, and errors
        As for `SGD`. States of fewer bits (`state_dtype`) and gradients that are `Rows` are refused.

    Notes
    -----
    Norms are sums in float64 in a fixed order, so that bits are the same on every backend. A step reads parameter,
    gradient and states first, and then once more: eleven streams of memory where Adam has seven. Without `adapt` it
    has seven.

    Optax's and Keras', up to rounding. timm and Apex adapt only where there is weight decay: give the others
    ``adapt=False``. NaN or infinity in one element makes a norm so, and with it NaN of the whole array and its states;
    in Keras the ratio is then 1.

    References
    ----------
    You et al., "Large batch optimization for deep learning: training BERT in 76 minutes", ICLR 2020.

    Examples
    --------
    >>> import numpy as np, fastoptim as fo
    >>> w = np.full(4, 2.0)
    >>> fo.LAMB(w, lr=0.25).step(np.array([3.0, 3.0, -3.0, -3.0])).applied
    True
    >>> w.round(4)
    array([1.5, 1.5, 2.5, 2.5])
    """

    _rules = ("adam",)
    lr: Hyper[float] = Rate(1e-3)
    betas: Hyper[tuple[float, float]] = Hyper((0.9, 0.999), BELOW_ONE)
    eps: Hyper[float] = Hyper(1e-6)
    weight_decay: Hyper[float] = Hyper(0.0)
    _: KW_ONLY
    adapt: Hyper[bool] = Hyper(True)
    bias_correction: Hyper[bool] = Hyper(True)
    trust_clip: Hyper[bool] = Hyper(False)

    @staticmethod
    def _update(o: Any) -> UpdateSpec:
        coefficients = partial(k.lamb_coefficients, o.lr, o.betas[0], o.betas[1], o.eps, o.bias_correction)
        measured = measures.lamb(o.lr, o.trust_clip) if o.adapt else None
        return spec_of("adam", o, coefficients, decoupled=True, measured=measured)


@public
class LARS(Family):
    """LARS: momentum of gradients that are made as long as the array that they change; for large batches.

    For each array::

        rate = lr * trust_coefficient * |p| / (|g| + weight_decay * |p| + eps)
        v <- momentum * v + rate * (g + weight_decay * p)
        p <- p - v

    where the rate is lr if p or g is all zeros.

    Parameters
    ----------
    params : array, sequence, mapping, nesting of these, or list of group dicts
        As for `LAMB`.
    lr : float
        Learning rate, >= 0: times `trust_coefficient` the share of its length that every array moves.
    momentum : float
        In [0, 1).
    weight_decay : float
        Coupled (L2) weight decay, >= 0.
    trust_coefficient : float
        Factor of the ratio of norms, >= 0.
    eps : float
        Added to the denominator, >= 0.
    nesterov : bool
        Look ahead along the velocity, as in `SGD`.
    adapt : bool
        False leaves the rate at lr. Biases and the scales of normalizations are usually given a group with
        ``adapt=False`` and ``weight_decay=0``.
    maximize : bool
        Ascend instead of descend.
    mode : {"paper", "optax"}
        "optax" has ``|g + weight_decay * p| + eps`` for the denominator.
    all others, and errors
        As for `SGD`. States of fewer bits (`state_dtype`) and gradients that are `Rows` are refused.

    Notes
    -----
    lr enters the velocity, so that a smaller one takes as many steps to come through as `momentum` says; torch's SGD,
    and LARC on top of it, multiply the velocity instead. A step has seven streams of memory where momentum has five.

    References
    ----------
    You, Gitman and Ginsburg, "Large batch training of convolutional networks", 2017.

    Examples
    --------
    >>> import numpy as np, fastoptim as fo
    >>> w = np.full(4, 2.0)
    >>> fo.LARS(w, lr=1.0, trust_coefficient=0.25).step(np.array([3.0, 3.0, -3.0, -3.0])).applied
    True
    >>> w
    array([1.5, 1.5, 2.5, 2.5])
    """

    _rules = ("sgd", "momentum", "nesterov")
    lr: Hyper[float] = Rate(1.0)
    momentum: Hyper[float] = Hyper(0.9, BELOW_ONE)
    weight_decay: Hyper[float] = Hyper(0.0)
    trust_coefficient: Hyper[float] = Hyper(1e-3)
    eps: Hyper[float] = Hyper(0.0)
    nesterov: Hyper[bool] = Hyper(False)
    _: KW_ONLY
    adapt: Hyper[bool] = Hyper(True)
    mode: Hyper[str] = Hyper("paper", k.LARS_MODES)

    @staticmethod
    def _update(o: Any) -> UpdateSpec:
        rates: tuple[int, ...]
        coefficients: tuple[float, ...]
        if o.nesterov and not o.momentum:
            raise ValueError("nesterov needs momentum > 0")
        if o.nesterov:
            rule, rates, coefficients = "nesterov", (3, 6), k.nesterov_coefficients(o.lr, o.momentum, "lr_inside")
        elif o.momentum:
            rule, rates, coefficients = "momentum", (3,), k.momentum_coefficients(o.lr, o.momentum, mode="lr_inside")
        else:
            rule, rates, coefficients = "sgd", (2,), k.sgd_coefficients(o.lr)
        measured = measures.lars(o.trust_coefficient, o.eps, o.mode, rates) if o.adapt else None
        return spec_of(rule, o, coefficients, decoupled=False, measured=measured)


@public
class NovoGrad(Family):
    """NovoGrad: momentum of gradients over a running mean of their norm, one number for each array.

    For each array, with ``v = |g|**2`` at the first step::

        v <- beta2 * v + (1 - beta2) * |g|**2
        m <- beta1 * m + (g / (sqrt(v) + eps) + weight_decay * p)
        p <- p - lr * m

    One state, half of Adam's; v is kept beside the step count as "exp_avg_sq".

    Parameters
    ----------
    params : array, sequence, mapping, nesting of these, or list of group dicts
        As for `LAMB`.
    lr : float
        Learning rate, >= 0.
    betas : pair of float
        Decay rates of the momentum and of the mean of norms, each in [0, 1).
    eps : float
        Added to the root, >= 0. With 0 an array whose gradients are all zeros becomes NaN.
    weight_decay : float
        Enters the momentum, >= 0.
    grad_averaging : bool
        Give what enters the momentum the weight ``1 - beta1``.
    maximize : bool
        Ascend instead of descend.
    all others, and errors
        As for `SGD`. States of fewer bits (`state_dtype`) and gradients that are `Rows` are refused.

    Notes
    -----
    betas are those of the authors' code; Optax has (0.9, 0.25), and keeps v in the dtype of the parameter, where here
    it is float64. A step has six streams of memory where Adam has seven.

    References
    ----------
    Ginsburg et al., "Stochastic gradient methods with layer-wise adaptive moments for training of deep networks", 2019.

    Examples
    --------
    >>> import numpy as np, fastoptim as fo
    >>> w = np.ones(2)
    >>> fo.NovoGrad(w, lr=0.5).step(np.array([3.0, -4.0])).applied
    True
    >>> w.round(6)
    array([0.7, 1.4])
    """

    _rules = ("novograd",)
    lr: Hyper[float] = Rate(1e-2)
    betas: Hyper[tuple[float, float]] = Hyper((0.95, 0.98), BELOW_ONE)
    eps: Hyper[float] = Hyper(1e-8)
    weight_decay: Hyper[float] = Hyper(0.0)
    _: KW_ONLY
    grad_averaging: Hyper[bool] = Hyper(False)

    @staticmethod
    def _update(o: Any) -> UpdateSpec:
        def coefficients(t: int, v: float) -> tuple[float, ...]:
            return k.novograd_coefficients(o.lr, o.betas[0], o.weight_decay, o.grad_averaging, 1.0)

        return spec_of("novograd", o, coefficients, weight_decay=0.0, measured=measures.novograd(o.betas[1], o.eps))
