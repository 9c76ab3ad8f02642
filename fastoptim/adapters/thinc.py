"""An optimizer for thinc and spaCy with fused updates.

Where thinc's ``Adam``, ``SGD`` or ``RAdam`` was made, make this module's::

    from fastoptim.adapters.thinc import Adam
    optimizer = Adam(0.001)
    model.finish_update(optimizer)

Convention: thinc's, whose `Optimizer` this is: called ``(key, W, dW, *, lr_scale) -> (W, dW)``; each gradient is
clipped by its own norm and zeroed after use; eps-hat Adam, ``W <- W - lr sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(v) +
eps)``; weight decay comes after the update, ``W <- W - lr L2 W``; averages follow the parameters. Schedules, moments
(`mom1`, `mom2`), `averages` and counts are thinc's attributes. Parameters stay within float32 rounding of thinc's
(its kernel multiplies by the rate after the division, and its BLAS may fuse a multiplication and an addition).
What are not contiguous float32 NumPy arrays of one shape, and RAdam, is left to thinc.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..common.signals import deferred_signals
from ..common.validation import check_range, real
from ._update import checked_eps, step_array

try:
    from thinc import optimizers
except ImportError as error:
    raise ImportError("this adapter needs thinc: pip install thinc") from error

__all__ = ["SGD", "Adam", "Optimizer", "RAdam"]


class Optimizer(optimizers.Optimizer):
    """``thinc.optimizers.Optimizer`` with fused updates of contiguous float32 NumPy arrays."""

    __slots__ = ()

    def __call__(self, key: Any, weights: Any, gradient: Any, *, lr_scale: float = 1.0) -> Any:
        if not self._takes(key, weights, gradient):
            return super().__call__(key, weights, gradient, lr_scale=lr_scale)
        if len(gradient) < 1:
            return weights, gradient
        step, arguments = self.step, self._schedule_args(key)
        b1, b2 = self.b1(step, **arguments), self.b2(step, **arguments)
        if (b1 > 0.0) != (b2 > 0.0):  # one moment only: thinc has its own opinion on that
            return super().__call__(key, weights, gradient, lr_scale=lr_scale)
        rate, decay = lr_scale * self.learn_rate(step, **arguments), self.L2(step, **arguments)
        limit = self.grad_clip(step, **arguments)
        if not gradient.flags.writeable or np.may_share_memory(weights, gradient):
            raise ValueError("the gradient is read-only or overlaps the weights, and it would be zeroed after use")
        check_range("learn_rate times L2", real("learn_rate times L2", rate * decay), weights.dtype, may_vanish=True)
        average = (self.averages or {}).get(key)
        others = [weights, gradient, *(moments[key] for moments in (self.mom1, self.mom2) if key in moments)]
        if average is not None and (
            not average.flags.writeable or any(np.may_share_memory(average, x) for x in others)
        ):
            raise ValueError("the average of these weights is read-only or overlaps another array: copy it")
        t = self.nr_update.get(key, 0) + 1
        w, g = weights.reshape(-1), gradient.reshape(-1)

        if decay and not self.L2_is_weight_decay:
            g = g.copy()  # the update may yet be refused
            g += decay * w
        scale = 1.0
        if limit:
            norm = np.linalg.norm(g)
            if norm >= limit:
                scale = float(limit / norm)
        with deferred_signals():
            if b1 > 0.0:
                moments = (self.mom1, self.mom2)
                states: Any = tuple(m[key] if key in m else np.zeros(w.size, np.float32) for m in moments)
                hat = self.learn_rate(step, **arguments) * (1.0 - b2**t) ** 0.5 / (1.0 - b1**t) * lr_scale
                c1, c2 = (float(np.float32(1.0) - np.float32(b)) for b in (b1, b2))  # as thinc's kernel has them
                coefficients = (b1, c1, b2, c2, hat, 1.0, checked_eps(self.eps(step, **arguments)))
                step_array("adam", w, g, states, coefficients, scale=scale, called=("mom1", "mom2"))
                self.mom1[key], self.mom2[key] = states
            else:
                step_array("sgd", w, g, (), (rate,), scale=scale)
            self.nr_update[key] = t
            gradient.fill(0.0)
            if decay and self.L2_is_weight_decay:  # w - c * (0 + 1 * w)
                step_array("sgd", w, g, (), (rate * decay,), decay="coupled", decay_coefficient=1.0)
            averages: Any = self.averages
            if averages is not None:
                if key not in averages:
                    averages[key] = np.zeros(weights.shape, np.float32)
                forget = 1 - min((1.0 + t) / (10.0 + t), 0.9999)  # a - forget * (-w + 1 * a)
                average = averages[key].reshape(-1)
                step_array("sgd", average, w, (), (forget,), decay="coupled", decay_coefficient=1.0, scale=-1.0)
        return weights, gradient

    def _takes(self, key: Any, weights: Any, gradient: Any) -> bool:
        average = (self.averages or {}).get(key, weights)
        return not self.use_radam and all(
            type(x) is np.ndarray and x.dtype == np.float32 and x.flags.c_contiguous and x.shape == weights.shape
            for x in (weights, gradient, average)
        )


def _fused(made: optimizers.Optimizer) -> Any:
    made.__class__ = Optimizer
    return made


def Adam(*args: Any, **kwargs: Any) -> Any:
    """``thinc.optimizers.Adam`` with fused updates; same arguments."""
    return _fused(optimizers.Adam(*args, **kwargs))


def SGD(*args: Any, **kwargs: Any) -> Any:
    """``thinc.optimizers.SGD`` with fused updates; same arguments."""
    return _fused(optimizers.SGD(*args, **kwargs))


RAdam = optimizers.RAdam
