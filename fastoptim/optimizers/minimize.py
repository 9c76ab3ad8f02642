"""`minimize`: a whole descent in one call, in SciPy's form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays.checks import DTYPES, real_array
from ..common.public import public
from ..common.validation import count, names_arguments, real
from .adam import Adam
from .base import Optimizer
from .schedule_free import ScheduleFree


@public
@dataclass(frozen=True)
class MinimizeResult:
    """What `minimize` found; names are those of ``scipy.optimize.OptimizeResult``.

    Attributes
    ----------
    x, fun, jac
        The last point, and value and gradient there. Of a schedule-free optimizer it is the average.
    nit, nfev, njev : int
        Steps, evaluations of the function, and of its gradient.
    status : int
        0 the gradient is within `tol`, 1 `maxiter` steps were taken, 2 a value or gradient is not finite, 3 the
        callback has stopped.
    success : bool
        Whether the status is 0. Without `tol` it never is: nothing says then what is small enough.
    message : str
        The status in words.
    """

    x: np.ndarray
    fun: float
    jac: np.ndarray
    nit: int
    nfev: int
    njev: int
    status: int
    success: bool
    message: str


_MESSAGES = (
    "every entry of the gradient is at most tol",
    "maxiter steps were taken before every entry of the gradient was at most tol",
    "the value or the gradient is not finite",
    "the callback has stopped",
)
_WITHOUT_TOL = "maxiter steps were taken; without tol nothing says whether that is the minimum"


@public
@names_arguments
def minimize(
    fun: Callable[..., Any],
    x0: Any,
    args: Any = (),
    *,
    jac: Callable[..., Any] | bool,
    optimizer: Callable[[Any], Optimizer] = Adam,
    tol: float | None = None,
    maxiter: int = 1000,
    callback: Callable[[np.ndarray], Any] | None = None,
) -> MinimizeResult:
    """Minimize a function by steps of an optimizer.

    Parameters
    ----------
    fun : callable
        ``fun(x, *args)`` -> value; with ``jac=True`` value and gradient.
    x0 : array_like
        Where to start, of any shape; float32 stays float32, other numbers become float64.
    args : tuple
        More arguments for `fun` and `jac`; what is no tuple is one argument.
    jac : callable or True
        ``jac(x, *args)`` -> gradient, of the shape of x. There are no finite differences.
    optimizer : callable
        Makes the optimizer of an array: a class, or for example ``lambda x: fo.SGD(x, lr=0.1, momentum=0.9)``.
    tol : float, optional
        Stop where no entry of the gradient is larger. By default all `maxiter` steps are taken, and ``success`` is
        False. With a schedule-free optimizer the gradient is evaluated twice a step for it: at the average, too.
    maxiter : int
        Most steps.
    callback : callable, optional
        Called with the new point, or average, after each step; it stops by raising StopIteration. Points are never
        written to.

    Returns
    -------
    MinimizeResult

    Raises
    ------
    TypeError, ValueError
        An argument or a gradient is not as described.

    Examples
    --------
    >>> import numpy as np, fastoptim as fo
    >>> def fun(x):
    ...     return x @ x, 2 * x
    >>> found = fo.minimize(fun, [3.0, -1.0], jac=True, optimizer=lambda x: fo.SGD(x, lr=0.1), tol=1e-6)
    >>> found.success, found.nit, bool(abs(found.x).max() < 1e-6)
    (True, 70, True)
    """
    if jac is not True and not callable(jac):
        raise TypeError("jac must be a function that returns the gradient, or True if fun returns value and gradient")
    tol, maxiter = None if tol is None else real("tol", tol, 0.0), count("maxiter", maxiter, 0)
    x = real_array("x0", x0)
    x = np.array(x, x.dtype if x.dtype in DTYPES else np.float64)
    if not callable(optimizer):
        raise TypeError(
            f"optimizer must make one of an array: fo.Adam, or lambda x: fo.SGD(x, lr=0.1); got {optimizer!r}"
        )
    given = args if isinstance(args, tuple) else (args,)
    descent = optimizer(x.copy())
    if not isinstance(descent, Optimizer):
        raise TypeError(f"optimizer must make one of an array, such as fo.Adam; it made {descent!r}")

    def evaluate(x: np.ndarray) -> tuple[float, np.ndarray]:
        if jac is not True:
            value, gradient = fun(x.copy(), *given), jac(x.copy(), *given)  # which may write into what they get
        else:
            both = fun(x.copy(), *given)
            if not isinstance(both, (tuple, list)) or len(both) != 2:
                raise TypeError(f"with jac=True fun returns value and gradient, as a pair; got {type(both).__name__}")
            value, gradient = both
        slope = real_array("gradient", gradient)
        if slope.shape != x.shape:
            raise ValueError(f"gradient: expected the shape of x, {x.shape}, got {slope.shape}")
        number = real_array("value", value)
        if number.size != 1:
            raise ValueError(f"value: expected one number, got an array of shape {number.shape}")
        with np.errstate(over="ignore"):
            return number.astype(float).item(), slope.astype(x.dtype)

    def evaluated(x: np.ndarray) -> tuple[float, np.ndarray]:
        try:
            return evaluate(x)
        except StopIteration as error:  # which would silently end whatever iteration `minimize` is called in
            raise RuntimeError("fun or jac raised StopIteration: what it reads has ended") from error

    def finite(value: float, gradient: np.ndarray) -> bool:
        return bool(np.isfinite(value) and np.isfinite(gradient).all())

    averaged = descent.averaged if isinstance(descent, ScheduleFree) else None
    nit, nfev, status, point = 0, 0, 1, x  # steps are taken at `point`, whose average x may be
    while True:
        value, gradient = here, slope = evaluated(point)
        nfev += 1
        lost = x_is_lost = not finite(here, slope)
        last = nit == maxiter or status == 3 or lost
        if x is not point and (last or tol is not None):
            value, gradient = evaluated(x)
            nfev += 1
            x_is_lost = not finite(value, gradient)
        if x_is_lost:
            status = 2
        elif tol is not None and (np.abs(gradient) <= tol).all():
            status = 0
        elif not last:
            point = descent.apply(point, slope)
            x = point if averaged is None else averaged(point)
            nit += 1
            try:
                if callback is not None:
                    callback(x.copy())
            except StopIteration:
                status = 3
            continue
        elif lost:
            status = 2
        message = _MESSAGES[status] if tol is not None or status != 1 else _WITHOUT_TOL
        return MinimizeResult(x, value, gradient, nit, nfev, nfev, status, status == 0, message)
