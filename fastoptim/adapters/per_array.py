"""One fused update of one array, for code that keeps its own states and step counts.

    from fastoptim.adapters.per_array import update
    update(p, g, m, v, t=t, lr=1e-3)          # Adam
    update(p, g, v, lr=1e-2, momentum=0.9)    # momentum
    update(p, g, lr=1e-2)                     # gradient descent

Convention: fastoptim's (torch's), as in `fastoptim.functional`, which has more hyperparameters and casts nothing.
"""

from __future__ import annotations

from typing import Any

from ..common.validation import choice, real
from ..optimizers.hyperparameters import BELOW_ONE, check_of
from ..rules import coefficients as k
from ._update import adam_coefficients, step_array

__all__ = ["update"]

_CALLED = ("states[0]", "states[1]")
_betas = check_of("betas", (0.9, 0.999), BELOW_ONE)


def update(
    p: Any,
    g: Any,
    *states: Any,
    lr: float = 1e-3,
    momentum: float = 0.9,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    t: int | None = None,
    eps_mode: str = "torch",
    momentum_mode: str = "torch",
) -> Any:
    """Update `p` and its states in place; returns `p`.

    Parameters
    ----------
    p, g : array
        Parameter and gradient of one shape, float32 or float64; `g` is cast to the dtype of `p`.
    *states : array
        None for gradient descent, the velocity for momentum, both running means for Adam; start at zeros.
    lr, momentum, betas, eps
        As for `fastoptim.SGD` and `fastoptim.Adam`.
    t : int
        Number of this step, from 1; Adam needs it.
    eps_mode, momentum_mode : str
        Convention, as for the classes.

    Raises
    ------
    TypeError, ValueError
        Arrays that do not go together, a hyperparameter that makes no sense, or no `t` for Adam; nothing was changed.

    Examples
    --------
    >>> import numpy as np
    >>> from fastoptim.adapters.per_array import update
    >>> p, m, v = np.array([1.0]), np.zeros(1), np.zeros(1)
    >>> update(p, np.array([2.0]), m, v, t=1, lr=0.1).round(6)
    array([0.9])
    """
    lr = real("lr", lr)
    choice("momentum_mode", momentum_mode, k.MOMENTUM_MODES)
    choice("eps_mode", eps_mode, k.EPS_MODES)
    if not states:
        step_array("sgd", p, g, (), (lr,))
    elif len(states) == 1:
        mu = real("momentum", momentum)
        coefficients = k.momentum_coefficients(lr, mu, mode=momentum_mode)
        step_array("momentum", p, g, states, coefficients, called=_CALLED[:1])
    elif len(states) == 2:
        beta1, beta2 = betas if type(betas) is tuple and len(betas) == 2 else _betas(betas)
        step_array("adam", p, g, states, adam_coefficients(t, lr, beta1, beta2, eps, eps_mode), called=_CALLED)
    else:
        raise TypeError(f"expected no state, one (momentum) or two (Adam), got {len(states)}")
    return p
