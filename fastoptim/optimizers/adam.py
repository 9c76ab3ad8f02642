"""Adam and AdamW."""

from __future__ import annotations

from dataclasses import KW_ONLY
from functools import partial
from typing import Any

from ..common.public import public
from ..common.validation import real
from ..rules import coefficients as k
from ..rules import measures
from .family import Family, spec_of
from .hyperparameters import BELOW_ONE, Hyper, Rate, UpdateSpec, kind_of_decay


@public
class Adam(Family):
    """Adam: steps scaled by running means of the gradient and of its square.

    At step t, with ``bc1 = 1 - beta1**t`` and ``bc2 = 1 - beta2**t``::

        m <- beta1 * m + (1 - beta1) * g
        v <- beta2 * v + (1 - beta2) * g**2
        p <- p - (lr / bc1) * m / (sqrt(v) / sqrt(bc2) + eps)

    Parameters
    ----------
    params : array, sequence, mapping, nesting of these, or list of group dicts
        Writeable native arrays of float32, float64, bfloat16 or float16; they are updated in place.
    lr : float
        Learning rate, >= 0.
    betas : pair of float
        Decay rates of the running means, each in [0, 1).
    eps : float
        Added to the root, >= 0.
    weight_decay : float
        Coupled (L2) weight decay, >= 0; for decoupled decay use `AdamW`.
    amsgrad : bool
        Divide by the largest v seen so far instead of v.
    maximize : bool
        Ascend instead of descend.
    eps_mode : {"torch", "hat"}
        "hat" is ``p <- p - lr * sqrt(bc2) / bc1 * m / (sqrt(v) + eps)`` (scikit-learn, thinc, TensorFlow).
    decay_mode : {"lr", "fixed"}
        For `AdamW`: "fixed" takes the share ``weight_decay`` of p in a step, whatever lr is.
    update_clip : None, "rms" or float
        StableAdamW (with `AdamW`): steps of an array, decoupled decay included, are divided by
        ``max(1, RMS / update_clip)``, where RMS is the root of the mean of ``g**2 / max(v / bc2, eps**2)`` over that
        array. "rms" is 1. It takes the place of clipping gradients, and reads gradient and v once more. NaN or infinity
        in one element makes NaN of the whole array, states too.
    cautious : bool
        Only elements whose step goes against the gradient, as m and g agree in sign, are stepped; they are multiplied
        by one over their share of the array, which counts as 1/1000 at least. Decoupled decay goes on everywhere. Reads
        gradient and m once more.
    all others, and errors
        As for `SGD`.

    References
    ----------
    Kingma and Ba, "Adam: a method for stochastic optimization", ICLR 2015; Reddi et al., "On the convergence of Adam
    and beyond", ICLR 2018 (amsgrad); Wortsman et al., "Stable and low-precision training for large-scale
    vision-language models", NeurIPS 2023 (update_clip); Liang et al., "Cautious optimizers: improving training with one
    line of code", 2024 (cautious), in the form of its authors' code and of timm.

    Examples
    --------
    >>> import numpy as np, fastoptim as fo
    >>> params = {"w": np.ones((2, 2), np.float32), "b": np.zeros(2, np.float32)}
    >>> opt = fo.Adam(params, lr=0.1)
    >>> opt.step({"w": np.ones((2, 2), np.float32), "b": np.ones(2, np.float32)}).applied
    True
    >>> round(float(params["w"][0, 0]), 4)
    0.9
    """

    _rules = ("adam", "amsgrad", "cautious_adam", "cautious_amsgrad")
    _decoupled = False
    lr: Hyper[float] = Rate(1e-3)
    betas: Hyper[tuple[float, float]] = Hyper((0.9, 0.999), BELOW_ONE)
    eps: Hyper[float] = Hyper(1e-8)
    weight_decay: Hyper[float] = Hyper(0.0)
    amsgrad: Hyper[bool] = Hyper(False)
    _: KW_ONLY
    eps_mode: Hyper[str] = Hyper("torch", k.EPS_MODES)
    decay_mode: Hyper[str] = Hyper("lr", k.DECAY_MODES)
    update_clip: Hyper[float | str | None] = Hyper(None)
    cautious: Hyper[bool] = Hyper(False)

    @classmethod
    def _update(cls, o: Any) -> UpdateSpec:
        rule, measured = "amsgrad" if o.amsgrad else "adam", None
        coefficients = partial(k.adam_coefficients, o.lr, o.betas[0], o.betas[1], o.eps, o.eps_mode)
        if o.update_clip is not None:
            measured = measures.clipped(_threshold(o.update_clip, o.eps_mode), cls._decay(o))
        if o.cautious:
            rule, measured = f"cautious_{rule}", measures.both(measured, measures.cautious(cls._decay(o)))
            coefficients = partial(k.cautious_adam_coefficients, o.lr, o.betas[0], o.betas[1], o.eps, o.eps_mode, 1.0)
        return spec_of(rule, o, coefficients, decoupled=cls._decoupled, measured=measured)

    @classmethod
    def _decay(cls, o: Any) -> str:
        return kind_of_decay(o.lr, o.weight_decay, cls._decoupled, o.decay_mode)[0]


def _threshold(update_clip: Any, eps_mode: str) -> float:
    """The root mean square above which an update is shortened."""
    if eps_mode != "torch":
        raise ValueError("update_clip looks at the corrected mean of squares, which eps_mode='torch' has")
    threshold = 1.0 if isinstance(update_clip, str) and update_clip == "rms" else update_clip
    if isinstance(threshold, str) or not (threshold := real("update_clip", threshold, 0.0)):
        raise ValueError(f"update_clip must be None, 'rms' or a number > 0, got {update_clip!r}")
    return threshold


@public
class AdamW(Adam):
    """Adam with decoupled weight decay.

    With the step ``u = (lr / bc1) * m / (sqrt(v) / sqrt(bc2) + eps)`` of `Adam`::

        p <- p - (lr * weight_decay * p + u)

    Parameters are those of `Adam`; `weight_decay` is 1e-2 by default.

    References
    ----------
    Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019. torch.optim.AdamW multiplies p by
    ``1 - lr * weight_decay`` instead, a factor that is exactly 1 in float32 wherever ``lr * weight_decay < 3e-8``.

    Examples
    --------
    >>> import numpy as np, fastoptim as fo
    >>> w = np.ones(3)
    >>> opt = fo.AdamW(w, lr=0.1, weight_decay=0.5)
    >>> opt.step(np.zeros(3)).applied, float(w[0])
    (True, 0.95)
    """

    _decoupled = True
    weight_decay: Hyper[float] = Hyper(1e-2)


@public
class SparseAdam(Adam):
    """Adam for tables of which a step touches few rows: gradients are `Rows`, and other rows are left as they are.

    For the rows that have a gradient, with the number t of all steps of the parameter::

        m <- beta1 * m + (1 - beta1) * g
        v <- beta2 * v + (1 - beta2) * g**2
        p <- p - lr * sqrt(1 - beta2**t) / (1 - beta1**t) * m / (sqrt(v) + eps)

    Neither means nor parameters of the others move, which the dense Adam would let go on. Dense gradients are stepped
    as by `Adam`. Parameters are those of `Adam`; weight decay is refused with Rows.

    References
    ----------
    torch.optim.SparseAdam, whose convention for `eps` this is.

    Examples
    --------
    >>> import numpy as np, fastoptim as fo
    >>> table = np.ones((4, 2))
    >>> opt = fo.SparseAdam(table, lr=0.1)
    >>> opt.step(fo.Rows(np.array([2]), np.ones((1, 2)))).applied
    True
    >>> table[:, 0].round(4)
    array([1. , 1. , 0.9, 1. ])
    """

    _lazy = True
    _: KW_ONLY
    eps_mode: Hyper[str] = Hyper("hat", k.EPS_MODES)
