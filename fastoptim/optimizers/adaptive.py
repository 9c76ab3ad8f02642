"""RMSprop, Adagrad, Adadelta, Adamax and FTRL: steps divided by a root of squares, or by the largest gradient."""

from __future__ import annotations

from dataclasses import KW_ONLY
from functools import partial
from typing import Any

from ..common.public import public
from ..rules import coefficients as k
from .family import Family, spec_of
from .hyperparameters import BELOW_ONE, Hyper, Rate, UpdateSpec


@public
class RMSprop(Family):
    """RMSprop: steps divided by the root of a running mean of squared gradients.

    At each step, with the centered second moment ``w = max(v - a**2, 0)`` in place of ``v`` on request::

        v <- alpha * v + (1 - alpha) * g**2
        a <- alpha * a + (1 - alpha) * g                (centered)
        d = g / (sqrt(v) + eps)
        p <- p - lr * d                                 (momentum: x <- momentum * x + d;  p <- p - lr * x)

    Parameters
    ----------
    params : array, sequence, mapping, nesting of these, or list of group dicts
        Writeable native arrays of float32, float64, bfloat16 or float16; they are updated in place.
    lr : float
        Learning rate, >= 0.
    alpha : float
        Decay rate of the running means, in [0, 1).
    eps : float
        Added to the root, >= 0.
    weight_decay : float
        Coupled (L2) weight decay, >= 0.
    momentum : float
        In [0, 1).
    centered : bool
        Divide by the root of the variance instead of the mean square.
    maximize : bool
        Ascend instead of descend.
    eps_mode : {"torch", "root"}
        "root" is ``g / sqrt(v + eps)`` (TensorFlow, Keras, Optax).
    momentum_mode : {"torch", "lr_inside"}
        "lr_inside" is ``x <- momentum * x + lr * d; p <- p - x`` (TensorFlow, Keras, Optax).
    all others, and errors
        As for `SGD`.

    Notes
    -----
    torch takes the root of ``v - a**2`` as it is. Rounding makes that negative where a gradient hardly changes, and the
    parameter NaN; here it is 0 then. A NaN in the gradient comes out all the same.

    References
    ----------
    Hinton, "Neural networks for machine learning", lecture 6e, 2012; Graves, "Generating sequences with recurrent
    neural networks", 2013 (centered).

    Examples
    --------
    >>> import numpy as np, fastoptim as fo
    >>> w = np.array([1.0, 2.0])
    >>> opt = fo.RMSprop(w, lr=0.1)
    >>> opt.step(np.array([3.0, -0.5])).applied
    True
    >>> w.round(6)
    array([0., 3.])
    """

    _rules = ("rmsprop", "rmsprop_momentum", "rmsprop_centered", "rmsprop_centered_momentum")
    lr: Hyper[float] = Rate(1e-2)
    alpha: Hyper[float] = Hyper(0.99, BELOW_ONE)
    eps: Hyper[float] = Hyper(1e-8)
    weight_decay: Hyper[float] = Hyper(0.0)
    momentum: Hyper[float] = Hyper(0.0, BELOW_ONE)
    centered: Hyper[bool] = Hyper(False)
    _: KW_ONLY
    eps_mode: Hyper[str] = Hyper("torch", k.ROOT_MODES)
    momentum_mode: Hyper[str] = Hyper("torch", k.RMSPROP_MOMENTUM_MODES)

    @staticmethod
    def _update(o: Any) -> UpdateSpec:
        if o.momentum:
            of = k.rmsprop_centered_momentum_coefficients if o.centered else k.rmsprop_momentum_coefficients
            coefficients = of(o.lr, o.alpha, o.eps, o.momentum, o.eps_mode, o.momentum_mode)
            return spec_of("rmsprop_centered_momentum" if o.centered else "rmsprop_momentum", o, coefficients)
        if o.centered:
            return spec_of("rmsprop_centered", o, k.rmsprop_centered_coefficients(o.lr, o.alpha, o.eps, o.eps_mode))
        return spec_of("rmsprop", o, k.rmsprop_coefficients(o.lr, o.alpha, o.eps, o.eps_mode))


@public
class Adagrad(Family):
    """Adagrad: steps divided by the root of the sum of all squared gradients.

    At step t::

        s <- s + g**2
        p <- p - lr / (1 + (t - 1) * lr_decay) * g / (sqrt(s) + eps)

    Parameters
    ----------
    params, weight_decay, maximize, eps_mode
        As for `RMSprop`; so is all that is not listed here, errors included.
    lr : float
        Learning rate, >= 0.
    lr_decay : float
        How fast the rate falls, >= 0.
    initial_accumulator_value : float
        What s holds before the first step, >= 0.
    eps : float
        Added to the root, >= 0.

    Notes
    -----
    torch's, with the sum under the name "square_avg". Keras and Optax start the sum at 0.1 and have
    ``eps_mode="root"`` with 1e-7.

    References
    ----------
    Duchi, Hazan and Singer, "Adaptive subgradient methods for online learning and stochastic optimization", JMLR 2011.

    Examples
    --------
    >>> import numpy as np, fastoptim as fo
    >>> w = np.array([1.0, 2.0])
    >>> fo.Adagrad(w, lr=0.5).step(np.array([3.0, 0.0])).applied
    True
    >>> w.round(6)
    array([0.5, 2. ])
    """

    _rules = ("rmsprop",)
    lr: Hyper[float] = Rate(1e-2)
    lr_decay: Hyper[float] = Hyper(0.0)
    weight_decay: Hyper[float] = Hyper(0.0)
    initial_accumulator_value: Hyper[float] = Hyper(0.0)
    eps: Hyper[float] = Hyper(1e-10)
    _: KW_ONLY
    eps_mode: Hyper[str] = Hyper("torch", k.ROOT_MODES)

    @staticmethod
    def _update(o: Any) -> UpdateSpec:
        coefficients = partial(k.adagrad_coefficients, o.lr, o.lr_decay, o.eps, o.eps_mode)
        return spec_of("rmsprop", o, coefficients if o.lr_decay else coefficients(1))


@public
class Adadelta(Family):
    """Adadelta: steps with the typical size of earlier steps over that of gradients, so that units agree.

    At each step::

        v <- rho * v + (1 - rho) * g**2
        d = sqrt(x + eps) / sqrt(v + eps) * g
        x <- rho * x + (1 - rho) * d**2
        p <- p - lr * d

    Parameters
    ----------
    params, weight_decay, maximize
        As for `RMSprop`; so is all that is not listed here, errors included.
    lr : float
        Learning rate, >= 0; 1 in the paper. Keras' default of 0.001 moves nothing.
    rho : float
        Decay rate of the running means, in [0, 1).
    eps : float
        Under both roots, >= 0; it makes the size of the first steps.

    References
    ----------
    Zeiler, "ADADELTA: an adaptive learning rate method", 2012.

    Examples
    --------
    >>> import numpy as np, fastoptim as fo
    >>> w = np.array([1.0])
    >>> fo.Adadelta(w).step(np.array([2.0])).applied
    True
    >>> w.round(4)
    array([0.9968])
    """

    _rules = ("adadelta",)
    lr: Hyper[float] = Rate(1.0)
    rho: Hyper[float] = Hyper(0.9, BELOW_ONE)
    eps: Hyper[float] = Hyper(1e-6)
    weight_decay: Hyper[float] = Hyper(0.0)

    @staticmethod
    def _update(o: Any) -> UpdateSpec:
        return spec_of("adadelta", o, k.adadelta_coefficients(o.lr, o.rho, o.eps))


@public
class Adamax(Family):
    """Adamax: Adam with the largest recent gradient in place of the root mean square.

    At step t::

        m <- beta1 * m + (1 - beta1) * g
        u <- max(beta2 * u, abs(g) + eps)
        p <- p - lr / (1 - beta1**t) * m / u

    Parameters
    ----------
    params, lr, betas, eps, weight_decay, maximize
        As for `Adam`; so is all that is not listed here, errors included.
    eps_mode : {"torch", "keras"}
        "keras" adds eps behind the maximum: ``u <- max(beta2 * u, abs(g))`` and ``m / (u + eps)``. Optax is "torch".

    References
    ----------
    Kingma and Ba, "Adam: a method for stochastic optimization", section 7.1, ICLR 2015.

    Examples
    --------
    >>> import numpy as np, fastoptim as fo
    >>> w = np.array([1.0])
    >>> fo.Adamax(w, lr=0.1).step(np.array([2.0])).applied
    True
    >>> w.round(6)
    array([0.9])
    """

    _rules = ("adamax",)
    lr: Hyper[float] = Rate(2e-3)
    betas: Hyper[tuple[float, float]] = Hyper((0.9, 0.999), BELOW_ONE)
    eps: Hyper[float] = Hyper(1e-8)
    weight_decay: Hyper[float] = Hyper(0.0)
    _: KW_ONLY
    eps_mode: Hyper[str] = Hyper("torch", k.ADAMAX_MODES)

    @staticmethod
    def _update(o: Any) -> UpdateSpec:
        return spec_of("adamax", o, partial(k.adamax_coefficients, o.lr, o.betas[0], o.betas[1], o.eps, o.eps_mode))


@public
class FTRL(Family):
    """FTRL-Proximal: Adagrad's rates with L1 and L2 penalties that give exact zeros; for online linear models.

    At each step, with sums n of squares and z of gradients::

        s = (sqrt(n + g**2) - sqrt(n)) / lr
        n <- n + g**2
        z <- z + g - s * p
        p <- (clip(z, -l1, l1) - z) / (sqrt(n) / lr + 2 * (l2 + beta / (2 * lr)))

    Parameters
    ----------
    params, maximize
        As for `RMSprop`; so is all that is not listed here, errors included.
    lr : float
        Learning rate, > 0.
    l1, l2 : float
        Strengths of the penalties, >= 0.
    beta : float
        Added to ``sqrt(n)`` by way of l2, as in the paper, >= 0.
    initial_accumulator_value : float
        What n holds before the first step, >= 0.

    Notes
    -----
    TensorFlow's and Keras' with ``learning_rate_power=-0.5``. p is computed from z and n alone: start at p = 0,
    and keep the rate: to lower it by a schedule takes all of p towards zero with it, not only the steps.
    A step with ``Rows(..., lazy=True)`` then has the bits of the dense one, as long as hyperparameters stay.

    References
    ----------
    McMahan et al., "Ad click prediction: a view from the trenches", KDD 2013.

    Examples
    --------
    >>> import numpy as np, fastoptim as fo
    >>> w = np.zeros(2)
    >>> fo.FTRL(w, lr=0.5, l1=0.1).step(np.array([1.0, 0.05])).applied
    True
    >>> w.round(3)
    array([-0.429,  0.   ])
    """

    _rules = ("ftrl",)
    lr: Hyper[float] = Rate(0.05)
    l1: Hyper[float] = Hyper(0.0)
    l2: Hyper[float] = Hyper(0.0)
    beta: Hyper[float] = Hyper(0.0)
    initial_accumulator_value: Hyper[float] = Hyper(0.1)

    @staticmethod
    def _update(o: Any) -> UpdateSpec:
        if o.lr == 0.0:
            raise ValueError("FTRL divides by lr: it must be > 0; schedules take start_factor= and final_lr= for that")
        return spec_of("ftrl", o, k.ftrl_coefficients(o.lr, o.l1, o.l2, o.beta))
