"""ASGD and the schedule-free optimizers: they keep an average of the parameters."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arrays.storage import MASTER, compute_dtype, scale_name, unpack
from ..common.public import public
from ..rules import coefficients as k
from .family import Family, spec_of
from .hyperparameters import BELOW_ONE, Hyper, NotNeeded, Rate, UpdateSpec


@public
class ASGD(Family):
    """Averaged stochastic gradient descent, with a falling rate.

    At step t, with ``eta = lr / (1 + lambd * lr * (t - 1))**alpha`` and ``mu = 1 / max(1, t - 1 - t0)``::

        p <- p - (lambd * eta * p + eta * g)
        a <- a + mu * (p - a)

    The average a is the state "ax".

    Parameters
    ----------
    params : array, sequence, mapping, nesting of these, or list of group dicts
        Writeable native arrays of float32, float64, bfloat16 or float16; they are updated in place.
    lr : float
        Learning rate, >= 0.
    lambd : float
        Decay of the parameter, >= 0.
    alpha : float
        Power with which the rate falls, >= 0.
    t0 : float
        Step from which on p is averaged, >= 0; up to there a is p.
    weight_decay : float
        Coupled (L2) weight decay, >= 0.
    maximize : bool
        Ascend instead of descend.
    all others, and errors
        As for `SGD`.

    Notes
    -----
    torch's. Where lr changes from step to step, torch takes that of the step before; here it is that of the step.

    References
    ----------
    Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992.

    Examples
    --------
    >>> import numpy as np, fastoptim as fo
    >>> w = np.array([1.0])
    >>> opt = fo.ASGD(w, lr=0.5, lambd=0.0, t0=0)
    >>> for g in (1.0, 1.0, 1.0):
    ...     _ = opt.step(np.array([g]))
    >>> w, opt.state["0"]["ax"]
    (array([-0.5]), array([-0.25]))
    """

    _rules = ("asgd",)
    lr: Hyper[float] = Rate(1e-2)
    lambd: Hyper[float] = Hyper(1e-4)
    alpha: Hyper[float] = Hyper(0.75)
    t0: Hyper[float] = Hyper(1e6)
    weight_decay: Hyper[float] = Hyper(0.0)

    @staticmethod
    def _update(o: Any) -> UpdateSpec:
        return spec_of("asgd", o, partial(k.asgd_coefficients, o.lr, o.lambd, o.alpha, o.t0))


class ScheduleFree(Family):
    """Base of the two: gradients are taken at y (the parameters), z moves, x is the average that is used in the end."""

    if not TYPE_CHECKING:
        train = NotNeeded("gradients are always taken at the parameters")
        eval = NotNeeded("validate with what averaged() returns")

    def averaged(self, params: Any = None) -> Any:
        """Return the averages x as new NumPy arrays, in the structure of the parameters: what to validate and to use.

        ``x = y + (1 - 1 / beta) * (z - y)``, in the dtype of the parameter; copies before the first step. Writing x
        into the parameters and back would change bits, so that training goes on with the parameters as they are.
        With a list of parameter groups: a list with one entry per group.

        Parameters
        ----------
        params : same structure as the parameters, optional
            y where it is not in the optimizer's own arrays: what `apply` has returned. Arrays that are not stepped are
            taken over from it; without it, None stands in their place.

        Raises
        ------
        TypeError, ValueError
            `params` is not like the parameters; or it is missing, and steps were taken by `apply`.
        """
        found = self._model.rebuilt(self._averages(params), params)
        return found if self._model.grouped else found[0]

    def _averages(self, params: Any = None) -> list[np.ndarray]:
        """The averages in the order of the parameters."""
        with self._locked(reading=True):
            backend, model, kept = self._backend, self._model, self.state
            if params is None and model.elsewhere:
                raise ValueError(
                    "apply has taken steps at points of yours: averaged(params), with what it returned last"
                )
            points = model.arrays() if params is None else model.leaves(params)
            averages = []
            for q, p in zip(model.parameters, points, strict=True):
                entry, y = kept[q.name], backend.check_companion(q.name, "value", p, q.shape, q.dtype)
                if "z" not in entry:
                    averages.append(backend.host_copy(y))
                    continue
                compute = compute_dtype(q.dtype)
                y = backend.host_copy(entry.get(MASTER, y)).astype(compute)
                z = {name: backend.host_copy(entry[name]) for name in ("z", scale_name("z")) if name in entry}
                moved = z["z"] if compute == np.float64 else unpack("z", z, square=False)
                beta = float(q.group["momentum"] if "momentum" in q.group else q.group["betas"][0])
                with np.errstate(all="ignore"):
                    x = y + compute.type(1.0 - 1.0 / beta) * (moved - y)
                    averages.append(x.astype(q.dtype))
            return averages


def _positive(name: str, value: float) -> None:
    if value == 0.0:
        raise ValueError(f"{name} must be > 0 here: without it nothing is averaged")


@public
class ScheduleFreeSGD(ScheduleFree):
    """Schedule-free SGD: averaging in place of a falling rate, so that nobody needs to know when training ends.

    At step t, with ``rate = lr * min(1, t / warmup_steps)``, ``w = t**r * (largest rate so far)**weight_lr_power`` and
    ``c = w / (sum of all w)``; the parameters are ``y = (1 - momentum) * z + momentum * x``::

        z <- z - rate * g
        x <- (1 - c) * x + c * z

    Gradients are taken at y; `averaged` returns x. z is the state, x is not kept: it follows from the two.

    Parameters
    ----------
    params, weight_decay, maximize
        As for `ASGD`; so is all that is not listed here, errors included.
    lr : float
        Learning rate, >= 0: constant, and larger than that of SGD.
    momentum : float
        In (0, 1).
    warmup_steps : int
        Steps in which the rate rises to lr.
    r, weight_lr_power : float
        Powers in the weights of the average, >= 0.

    Notes
    -----
    The authors' ``SGDScheduleFree``; switching with ``train()`` and ``eval()`` is replaced by `averaged`.

    References
    ----------
    Defazio et al., "The road less scheduled", NeurIPS 2024.

    Examples
    --------
    >>> import numpy as np, fastoptim as fo
    >>> params = {"w": np.array([1.0])}
    >>> opt = fo.ScheduleFreeSGD(params, lr=0.5)
    >>> for _ in range(50):
    ...     _ = opt.step({"w": 1.0 * params["w"]})
    >>> opt.averaged()["w"].round(2)
    array([0.01])
    """

    _rules = ("schedule_free_sgd",)
    lr: Hyper[float] = Rate(1.0)
    momentum: Hyper[float] = Hyper(0.9, BELOW_ONE)
    weight_decay: Hyper[float] = Hyper(0.0)
    warmup_steps: Hyper[int] = Hyper(0)
    r: Hyper[float] = Hyper(0.0)
    weight_lr_power: Hyper[float] = Hyper(2.0)

    @staticmethod
    def _update(o: Any) -> UpdateSpec:
        _positive("momentum", o.momentum)
        weights = (o.warmup_steps, o.r, o.weight_lr_power)
        coefficients = partial(k.schedule_free_sgd_coefficients, o.lr, o.momentum, *weights)
        return spec_of("schedule_free_sgd", o, coefficients, advance=partial(k.schedule_free_advance, o.lr, *weights))


@public
class ScheduleFreeAdamW(ScheduleFree):
    """Schedule-free AdamW: as `ScheduleFreeSGD`, with steps divided by Adam's root.

    At step t, with rate, c, x and y of `ScheduleFreeSGD` and ``betas[0]`` as the momentum::

        v <- beta2 * v + (1 - beta2) * g**2
        u = g / (sqrt(v) / sqrt(1 - beta2**t) + eps) + weight_decay * y
        z <- z - rate * u
        x <- (1 - c) * x + c * z

    Parameters
    ----------
    params, maximize, warmup_steps, r, weight_lr_power
        As for `ScheduleFreeSGD`; so is all that is not listed here, errors included.
    lr : float
        Learning rate, >= 0: one to ten times that of AdamW.
    betas : pair of float
        The momentum, in (0, 1), and the decay rate of the mean square, in [0, 1).
    eps : float
        Added to the root, >= 0.
    weight_decay : float
        Decoupled weight decay at y, >= 0.

    Notes
    -----
    The authors' ``AdamWScheduleFree``; they multiply the rate by ``sqrt(1 - beta2**t)`` while it warms up, too, in
    earlier versions; here, as in the present ones, the correction is in the root.

    References
    ----------
    Defazio et al., "The road less scheduled", NeurIPS 2024.

    Examples
    --------
    >>> import numpy as np, fastoptim as fo
    >>> w = np.array([1.0])
    >>> opt = fo.ScheduleFreeAdamW(w, lr=0.5)
    >>> opt.step(np.array([2.0])).applied
    True
    >>> opt.averaged().round(6)
    array([0.5])
    """

    _rules = ("schedule_free_adamw",)
    lr: Hyper[float] = Rate(2.5e-3)
    betas: Hyper[tuple[float, float]] = Hyper((0.9, 0.999), BELOW_ONE)
    eps: Hyper[float] = Hyper(1e-8)
    weight_decay: Hyper[float] = Hyper(0.0)
    warmup_steps: Hyper[int] = Hyper(0)
    r: Hyper[float] = Hyper(0.0)
    weight_lr_power: Hyper[float] = Hyper(2.0)

    @staticmethod
    def _update(o: Any) -> UpdateSpec:
        _positive("betas[0]", o.betas[0])
        weights = (o.warmup_steps, o.r, o.weight_lr_power)
        coefficients = partial(
            k.schedule_free_adamw_coefficients, o.lr, o.betas[0], o.betas[1], o.eps, o.weight_decay, *weights
        )
        advance = partial(k.schedule_free_advance, o.lr, *weights)
        return spec_of("schedule_free_adamw", o, coefficients, weight_decay=0.0, advance=advance)
