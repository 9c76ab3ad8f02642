"""scikit-learn's ``MLPClassifier`` and ``MLPRegressor`` with fused updates: the same answers, sooner.

Either import the estimators from here, ::

    from fastoptim.adapters.sklearn import MLPClassifier, MLPRegressor

or let scikit-learn's own be accelerated for a while (in this process, in all threads)::

    with accelerate():
        classifier.fit(X, y)

Convention: scikit-learn's. SGD keeps the rate inside the velocity, ``v <- mu v - lr g; p <- p + v``, with Nesterov's
form ``p <- p + (mu v - lr g)`` by default; Adam adds eps to the root of the uncorrected mean ("eps-hat"),
``p <- p - lr sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(v) + eps)``.

Loss curves and weights are bit-identical to scikit-learn's, in float64 and in float32. In float32 scikit-learn's Adam
divides and adds in float64 and rounds once; ``accelerate(float32="fast")`` takes those two operations in float32 as
well, which is several times faster: for the same gradients ``m`` and ``v`` keep their bits, and a parameter lands
within one unit in its last place plus two in that of the step.

The optimizer (`_optimizer` of a fitted estimator) keeps scikit-learn's attributes (`ms`, `vs`, `t`, `velocities`,
`learning_rate`), which may be replaced at any time. State arrays that the adapter has made change in place: copy them
to keep their values. What the fused updates do not take (gradients of another shape or dtype than the weights, as
float64 sample weights give in float32) goes to scikit-learn's own code.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from ..common.signals import deferred_signals
from ..common.threads import fork_safe_lock
from ._update import RuleUpdate, plain_floats, velocity_coefficients

try:
    from sklearn import neural_network
    from sklearn.neural_network._stochastic_optimizers import AdamOptimizer, SGDOptimizer
except ImportError as error:
    raise ImportError("this adapter needs scikit-learn: pip install scikit-learn") from error

__all__ = ["MLPClassifier", "MLPRegressor", "accelerate"]

TILE = 1 << 14  # elements; the temporaries of one tile stay in a level-2 cache

_own_sgd_update = SGDOptimizer.update_params
_own_adam_update = AdamOptimizer.update_params


class _Books:
    """What the adapter keeps for one optimizer: the state lists that it may write to, and the native plan."""

    __slots__ = ("lists", "update")

    def __init__(self) -> None:
        self.lists: dict[str, list[Any]] = {}
        self.update: dict[str, RuleUpdate] = {}

    def states(self, optimizer: Any, slot: str) -> list[Any]:
        """The state list of this name; copied first if it is not the one that the last update left."""
        current: list[Any] = getattr(optimizer, slot)
        if self.lists.get(slot) is not current:
            current = [np.array(x) for x in current]
            self.lists[slot] = current
            setattr(optimizer, slot, current)
        return current

    def updater(self, rule: str) -> RuleUpdate:
        if rule not in self.update:
            self.update[rule] = RuleUpdate(rule)
        return self.update[rule]


_books: WeakKeyDictionary[Any, _Books] = WeakKeyDictionary()


def _books_of(optimizer: Any) -> _Books:
    books = _books.get(optimizer)
    if books is None:
        books = _books[optimizer] = _Books()
    return books


def _plain(params: Any, *others: Any) -> bool:
    """Whether all are plain floats, and each list in `others` has an array of the right shape for every parameter."""
    shapes = [p.shape for p in params]
    return plain_floats(*params, *chain(*others)) and all([x.shape for x in xs] == shapes for xs in others)


def _in_float32(params: Any, *hyperparameters: Any) -> bool:
    """Whether Python numbers meet float32 arrays; NumPy's own scalars would turn them into float64."""
    return params[0].dtype == np.float32 and not any(isinstance(x, np.generic) for x in hyperparameters)


def _update_sgd(self: SGDOptimizer, params: Any, grads: Any) -> None:
    """``update_params`` of SGDOptimizer. The velocities have scikit-learn's sign."""
    fits = _plain(params, grads, self.velocities) and (
        params[0].dtype == np.float64 or _in_float32(params, self.momentum, self.learning_rate)
    )
    if not fits:
        _own_sgd_update(self, params, grads)
        return
    books = _books_of(self)
    velocities = tuple(books.states(self, "velocities"))
    numbers = velocity_coefficients(float(self.momentum), float(self.learning_rate), self.nesterov)
    books.updater("nesterov" if self.nesterov else "momentum")(tuple(params), tuple(grads), velocities, numbers)


def _update_adam(self: AdamOptimizer, params: Any, grads: Any) -> None:
    """``update_params`` of AdamOptimizer."""
    fits = _plain(params, grads, self.ms, self.vs) and (
        params[0].dtype == np.float64 or _in_float32(params, self.beta_1, self.beta_2, self.epsilon)
    )
    if not fits:
        _own_adam_update(self, params, grads)
        return
    books = _books_of(self)
    ms, vs = books.states(self, "ms"), books.states(self, "vs")
    t = self.t + 1
    rate = self.learning_rate_init * np.sqrt(1 - self.beta_2**t) / (1 - self.beta_1**t)
    coefficients = (self.beta_1, 1 - self.beta_1, self.beta_2, 1 - self.beta_2, rate)
    with deferred_signals():  # scikit-learn goes on with what Ctrl-C leaves
        if params[0].dtype == np.float32 and _mode.float32 == "exact":
            for p, g, m, v in zip(params, grads, ms, vs, strict=True):
                _adam_rounded_once(p, g, m, v, *coefficients, self.epsilon)
        else:
            states = tuple(x for pair in zip(ms, vs, strict=True) for x in pair)
            numbers = (*map(float, coefficients), 1.0, float(self.epsilon))
            books.updater("adam")(tuple(params), tuple(grads), states, numbers)
        self.t, self.learning_rate = t, rate


def _adam_rounded_once(
    p: Any, g: Any, m: Any, v: Any, b1: float, c1: float, b2: float, c2: float, rate: np.float64, eps: float
) -> None:
    """scikit-learn's float32 Adam, operation for operation, over tiles that stay in cache."""
    arrays = (p, g, m, v)
    if all(x.flags.f_contiguous for x in arrays):
        arrays = tuple(x.T for x in arrays)
    if not all(x.flags.c_contiguous for x in arrays):  # rare enough to be left to one tile
        arrays = tuple(x[None] for x in arrays)
        tiles = [arrays]
    else:
        flat = [x.reshape(-1) for x in arrays]
        tiles = [tuple(x[i : i + TILE] for x in flat) for i in range(0, p.size, TILE)]
    for p, g, m, v in tiles:
        work = c1 * g
        m *= b1
        m += work
        np.multiply(g, g, out=work)
        work *= c2
        v *= b2
        v += work
        np.sqrt(v, out=work)
        work += eps
        p += -rate * m / work


# --- Switching it on ----------------------------------------------------------------------------------------------


class _Block:
    """An `accelerate` block."""

    def __init__(self, float32: str) -> None:
        self.float32 = float32


class _Mode:
    """Which `accelerate` blocks are open; they may end in any order, in any thread."""

    def __init__(self) -> None:
        self.lock = fork_safe_lock()
        self.blocks: list[_Block] = []

    @property
    def float32(self) -> str:
        """How float32 is computed: as the block says that began last."""
        blocks = self.blocks
        return blocks[-1].float32 if blocks else "exact"

    def begin(self, block: _Block) -> None:
        with self.lock:
            self.blocks = [*self.blocks, block]
            SGDOptimizer.update_params, AdamOptimizer.update_params = _update_sgd, _update_adam

    def end(self, block: _Block) -> None:
        """Once more does no harm."""
        with self.lock:
            self.blocks = [other for other in self.blocks if other is not block]
            if not self.blocks:
                for cls in (SGDOptimizer, AdamOptimizer):
                    if "update_params" in vars(cls):
                        del cls.update_params


_mode = _Mode()


@contextlib.contextmanager
def accelerate(float32: str = "exact") -> Iterator[None]:
    """Let the stochastic solvers of scikit-learn's multi-layer perceptrons run fused updates inside a with block.

    Applies to every ``MLPClassifier`` and ``MLPRegressor`` of the process, also to those fitted before
    (``partial_fit``, ``warm_start``); worker processes of ``n_jobs`` do not inherit it, while the estimators of this
    module carry it along. Blocks may be nested, and overlap in threads: the one that began last says how float32 is
    computed, for all.

    Parameters
    ----------
    float32 : {"exact", "fast"}
        How Adam treats float32 networks: bits of scikit-learn, or all operations in float32 (see the module).

    Raises
    ------
    ValueError
        Another `float32`.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.neural_network import MLPRegressor
    >>> from fastoptim.adapters.sklearn import accelerate
    >>> X = np.linspace(0, 1, 50).reshape(-1, 1)
    >>> plain = MLPRegressor(tol=1.0, random_state=0).fit(X, X.ravel())
    >>> with accelerate():
    ...     fused = MLPRegressor(tol=1.0, random_state=0).fit(X, X.ravel())
    >>> plain.loss_curve_ == fused.loss_curve_
    True
    """
    if float32 not in ("exact", "fast"):
        raise ValueError(f"float32 must be 'exact' or 'fast', got {float32!r}")
    block = _Block(float32)
    try:
        _mode.begin(block)
        yield
    finally:
        try:
            _mode.end(block)
        finally:
            _mode.end(block)  # a signal's handler may have raised in the first


class _FusedSGD(SGDOptimizer):
    update_params = _update_sgd


class _FusedAdam(AdamOptimizer):
    update_params = _update_adam


class _FusedEstimator:
    """Gives an estimator fused optimizers in place of those that scikit-learn's code makes."""

    @property
    def _optimizer(self) -> Any:
        try:
            optimizer = self.__dict__["_optimizer"]
        except KeyError:
            raise AttributeError("_optimizer") from None
        if type(optimizer) is SGDOptimizer:
            optimizer.__class__ = _FusedSGD
        elif type(optimizer) is AdamOptimizer:
            optimizer.__class__ = _FusedAdam
        return optimizer

    @_optimizer.setter
    def _optimizer(self, optimizer: Any) -> None:
        self.__dict__["_optimizer"] = optimizer

    def __getstate__(self) -> dict[str, Any]:
        given: Any = super().__getstate__()
        state: dict[str, Any] = dict(given)
        if type(state.get("_optimizer")) in (_FusedSGD, _FusedAdam):  # pickled as scikit-learn's own
            state["_optimizer"] = plain = copy.copy(state["_optimizer"])
            plain.__class__ = type(plain).__base__
        return state


class MLPClassifier(_FusedEstimator, neural_network.MLPClassifier):
    """``sklearn.neural_network.MLPClassifier`` with fused updates: same parameters, same results."""


class MLPRegressor(_FusedEstimator, neural_network.MLPRegressor):
    """``sklearn.neural_network.MLPRegressor`` with fused updates: same parameters, same results."""
