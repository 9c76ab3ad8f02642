"""Stochastic gradient descent, with and without momentum."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY
from functools import partial
from typing import Any

from ..common.public import public
from ..rules import coefficients as k
from .family import Family, spec_of
from .hyperparameters import BELOW_ONE, Hyper, Rate, UpdateSpec


@public
class SGD(Family):
    """Stochastic gradient descent, with momentum or Nesterov's momentum on request.

    With ``momentum = mu``::

        v <- mu * v + (1 - dampening) * g        (the first step stores g undamped)
        p <- p - lr * v                          (nesterov: p <- p - lr * (mu * v + g))

    and ``p <- p - lr * g`` without it; ``weight_decay`` adds ``weight_decay * p`` to g first.

    Parameters
    ----------
    params : array, sequence, mapping, nesting of these, or list of group dicts
        Writeable native arrays of float32, float64, bfloat16 or float16; they are updated in place.
    lr : float
        Learning rate, >= 0.
    momentum : float
        ``mu`` in [0, 1).
    dampening : float
        See the equation.
    weight_decay : float
        Weight decay, >= 0; coupled (L2) unless `decoupled_weight_decay` says otherwise.
    nesterov : bool
        Needs momentum > 0 and dampening = 0.
    maximize : bool
        Ascend instead of descend.
    momentum_mode : {"torch", "lr_inside", "damped"}
        "lr_inside" keeps the rate in the velocity, ``v <- mu v + lr g; p <- p - v`` (scikit-learn, Keras); "damped" is
        ``v <- mu v + (1 - mu) g`` (HIPS autograd).
    decoupled_weight_decay : bool
        Add ``lr * weight_decay * p`` to the step (SGDW) in place of ``weight_decay * p`` to the gradient.
    decay_mode : {"lr", "fixed"}
        "fixed" is a decoupled weight decay that takes the share ``weight_decay`` of p in a step, whatever lr is.
    backend : {"auto", "c", "numba", "numpy", "cuda"}
        All give the same bits.
    threads : int, optional
        Default: FASTOPTIM_NUM_THREADS, else OMP_NUM_THREADS, else the usable cores.
    state_dir : path, optional
        Keep the states in files in this folder, which go when the optimizer does; see `fastoptim.backends.offload`.
    memory_budget : int or str, optional
        Bound for resident pages of parameters, gradients and states that are `numpy.memmap` arrays, in bytes or as
        "512 MiB". Default: 256 MiB.
    max_norm, clip
        What `step` takes where it is not given: a bound, and "norm", "value" or "norm_per_array". The attributes may be
        changed; state dicts and checkpoints do not hold them.
    state_dtype : {None, "float32", "bfloat16", "float8"}
        What states are stored in; default: float64 for float64 parameters, else float32.
    rounding : {"stochastic", "nearest"}
        How parameters and states are rounded to 16 bits or fewer.
    master : bool
        Keep a float32 copy of bfloat16 and float16 parameters among the states, and step that.
    seed : int
        Of stochastic rounding, >= 0.

    Raises
    ------
    TypeError, ValueError
        A parameter or hyperparameter is not as described.

    References
    ----------
    Sutskever et al., "On the importance of initialization and momentum in deep learning", ICML 2013. torch.optim.SGD
    is followed where conventions differ. Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019.

    Examples
    --------
    >>> import numpy as np, fastoptim as fo
    >>> w = np.array([1.0, 2.0])
    >>> opt = fo.SGD(w, lr=0.5)
    >>> opt.step(np.array([1.0, 1.0])).applied
    True
    >>> w
    array([0.5, 1.5])
    """

    _rules = ("sgd", "momentum", "nesterov")
    lr: Hyper[float] = Rate(1e-3)
    momentum: Hyper[float] = Hyper(0.0, BELOW_ONE)
    dampening: Hyper[float] = Hyper(0.0, (-math.inf,))
    weight_decay: Hyper[float] = Hyper(0.0)
    nesterov: Hyper[bool] = Hyper(False)
    _: KW_ONLY
    momentum_mode: Hyper[str] = Hyper("torch", k.MOMENTUM_MODES)
    decoupled_weight_decay: Hyper[bool] = Hyper(False)
    decay_mode: Hyper[str] = Hyper("lr", k.DECAY_MODES)

    @staticmethod
    def _update(o: Any) -> UpdateSpec:
        mode = o.momentum_mode
        if o.dampening and mode != "torch":
            raise ValueError(f"momentum_mode={mode!r} has no dampening of its own; got dampening={o.dampening}")
        if o.nesterov:
            if not o.momentum or o.dampening or mode == "damped":
                raise ValueError("nesterov needs momentum > 0, dampening = 0 and a momentum_mode other than 'damped'")
            return spec_of("nesterov", o, k.nesterov_coefficients(o.lr, o.momentum, mode))
        if not o.momentum:
            return spec_of("sgd", o, k.sgd_coefficients(o.lr))
        coefficients = partial(k.momentum_coefficients, o.lr, o.momentum, o.dampening, mode)
        return spec_of("momentum", o, coefficients(), first=coefficients(True))
