"""Lion, SignSGD, Signum and Rprop: steps of which only the sign comes from the gradient."""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import Any

from ..common.public import public
from ..rules import coefficients as k
from ..rules import measures
from .family import Family, spec_of
from .hyperparameters import BELOW_ONE, Hyper, Rate, UpdateSpec


@public
class Lion(Family):
    """Lion: steps of the size lr in the direction of the sign of a mixture of gradient and momentum.

    At each step::

        u = lr * sign(beta1 * m + (1 - beta1) * g)
        m <- beta2 * m + (1 - beta2) * g
        p <- p - (lr * weight_decay * p + u)

    One state, so a step moves five streams of memory where Adam's moves seven.

    Parameters
    ----------
    params : array, sequence, mapping, nesting of these, or list of group dicts
        Writeable native arrays of float32, float64, bfloat16 or float16; they are updated in place.
    lr : float
        Learning rate, >= 0: what every element moves in a step. A third to a tenth of Adam's.
    betas : pair of float
        Weight of the momentum in the direction, and its decay rate, each in [0, 1).
    weight_decay : float
        Decoupled weight decay, >= 0: three to ten times AdamW's, as lr is so much smaller.
    maximize : bool
        Ascend instead of descend.
    decay_mode : {"lr", "fixed"}
        "fixed" takes the share ``weight_decay`` of p in a step, whatever lr is.
    cautious : bool
        Only elements whose step goes against the gradient are stepped, as for `Adam`.
    all others, and errors
        As for `SGD`.

    Notes
    -----
    The paper's and Optax's. The sign of NaN is NaN; in torch it is 0, so that versions written there stand still
    without a word at an element whose momentum is NaN.

    As all steps are alike, no noise carries a weight decay that is smaller than a unit in the last place of p: in
    float32, one with ``lr * weight_decay < 1e-8`` may be rounded away or to twice as much, while from 1e-6 on it is
    right within 1 %. That is so for `SignSGD` and `Signum`, too.

    References
    ----------
    Chen et al., "Symbolic discovery of optimization algorithms", NeurIPS 2023.

    Examples
    --------
    >>> import numpy as np, fastoptim as fo
    >>> w = np.array([1.0, 2.0])
    >>> fo.Lion(w, lr=0.25).step(np.array([3.0, -0.1])).applied
    True
    >>> w
    array([0.75, 2.25])
    """

    _rules = ("lion", "cautious_lion")
    lr: Hyper[float] = Rate(1e-4)
    betas: Hyper[tuple[float, float]] = Hyper((0.9, 0.99), BELOW_ONE)
    weight_decay: Hyper[float] = Hyper(0.0)
    _: KW_ONLY
    decay_mode: Hyper[str] = Hyper("lr", k.DECAY_MODES)
    cautious: Hyper[bool] = Hyper(False)

    @staticmethod
    def _update(o: Any) -> UpdateSpec:
        if not o.cautious:
            return spec_of("lion", o, k.lion_coefficients(o.lr, o.betas[0], o.betas[1]))
        coefficients = k.cautious_lion_coefficients(o.lr, o.betas[0], o.betas[1], 1.0)
        return spec_of("cautious_lion", o, coefficients, measured=measures.cautious("none"))


@public
class SignSGD(Family):
    """Sign descent: ``p <- p - (lr * weight_decay * p + lr * sign(g))``.

    Parameters
    ----------
    params, weight_decay, maximize, decay_mode
        As for `Lion`; so is all that is not listed here, errors included.
    lr : float
        Learning rate, >= 0: what every element moves in a step.

    Notes
    -----
    The sign of NaN is NaN, and that of zero is zero.

    References
    ----------
    Bernstein et al., "signSGD: compressed optimisation for non-convex problems", ICML 2018.

    Examples
    --------
    >>> import numpy as np, fastoptim as fo
    >>> w = np.array([1.0, 2.0, 3.0])
    >>> fo.SignSGD(w, lr=0.25).step(np.array([3.0, -0.1, 0.0])).applied
    True
    >>> w
    array([0.75, 2.25, 3.  ])
    """

    _rules = ("signsgd",)
    lr: Hyper[float] = Rate(1e-3)
    weight_decay: Hyper[float] = Hyper(0.0)
    _: KW_ONLY
    decay_mode: Hyper[str] = Hyper("lr", k.DECAY_MODES)

    @staticmethod
    def _update(o: Any) -> UpdateSpec:
        return spec_of("signsgd", o, k.signsgd_coefficients(o.lr))


@public
class Signum(Family):
    """Sign descent with momentum.

    At each step::

        m <- momentum * m + (1 - momentum) * g
        p <- p - (lr * weight_decay * p + lr * sign(m))

    Parameters
    ----------
    params, lr, weight_decay, maximize, decay_mode
        As for `SignSGD`; so is all that is not listed here, errors included.
    momentum : float
        In [0, 1).

    References
    ----------
    Bernstein et al., "signSGD: compressed optimisation for non-convex problems", ICML 2018.

    Examples
    --------
    >>> import numpy as np, fastoptim as fo
    >>> w = np.array([1.0])
    >>> opt = fo.Signum(w, lr=0.25)
    >>> for g in (1.0, -0.5):
    ...     _ = opt.step(np.array([g]))
    >>> w
    array([0.5])
    """

    _rules = ("signum",)
    lr: Hyper[float] = Rate(1e-3)
    momentum: Hyper[float] = Hyper(0.9, BELOW_ONE)
    weight_decay: Hyper[float] = Hyper(0.0)
    _: KW_ONLY
    decay_mode: Hyper[str] = Hyper("lr", k.DECAY_MODES)

    @staticmethod
    def _update(o: Any) -> UpdateSpec:
        return spec_of("signum", o, k.signum_coefficients(o.lr, o.momentum))


@public
class Rprop(Family):
    """Resilient backpropagation: every element has a step size of its own, and its gradient gives the sign alone.

    With ``s = g * q``, where q is the gradient of the step before::

        w <- w * etas[1] where s > 0, w * etas[0] where s < 0, within step_sizes
        g <- 0 where s < 0
        p <- p - w * sign(g)
        q <- g

    For whole data sets: in minibatches the noise changes the signs.

    Parameters
    ----------
    params, maximize
        As for `Lion`; so is all that is not listed here, errors included.
    lr : float
        Step size w before the first step, >= 0; it has no say afterwards.
    etas : pair of float
        Factors by which w shrinks and grows, with ``0 < etas[0] < 1 < etas[1]``.
    step_sizes : pair of float
        Smallest and largest w, with ``0 <= step_sizes[0] <= step_sizes[1]``.

    Notes
    -----
    torch's (iRprop-, without weight decay). Optax moves with the step size of the step before, one step late, and so
    walks another way. The sign of NaN is NaN.

    References
    ----------
    Riedmiller and Braun, "A direct adaptive method for faster backpropagation learning: the RPROP algorithm", ICNN
    1993; Igel and Hüsken, "Improving the Rprop learning algorithm", 2000.

    Examples
    --------
    >>> import numpy as np, fastoptim as fo
    >>> w = np.array([1.0])
    >>> opt = fo.Rprop(w, lr=0.25, etas=(0.5, 2.0))
    >>> for g in (1.0, 1.0):
    ...     _ = opt.step(np.array([g]))
    >>> w
    array([0.25])
    """

    _rules = ("rprop",)
    lr: Hyper[float] = Rate(1e-2)
    etas: Hyper[tuple[float, float]] = Hyper((0.5, 1.2))
    step_sizes: Hyper[tuple[float, float]] = Hyper((1e-6, 50.0))

    @staticmethod
    def _update(o: Any) -> UpdateSpec:
        if not 0.0 < o.etas[0] < 1.0 < o.etas[1]:
            raise ValueError(f"etas must have 0 < etas[0] < 1 < etas[1], got {o.etas}")
        if o.step_sizes[0] > o.step_sizes[1]:
            raise ValueError(f"step_sizes must be the smallest and the largest, got {o.step_sizes}")
        return spec_of("rprop", o, k.rprop_coefficients(o.etas, o.step_sizes))
