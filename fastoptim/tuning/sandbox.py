"""Train in place and put everything back: parameters, optimizer states, random generators, position in the data."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any

import numpy as np

from ..arrays import layout
from ..arrays.rows import Rows
from ..common.generators import GENERATORS, generators_within, set_state, state_of
from ..common.signals import Interrupts
from ..common.trees import Entries, Structure, leaves_of
from ..optimizers.adaptive import FTRL
from ..optimizers.base import Optimizer
from ..optimizers.groups import ascends, momentum_of
from ..optimizers.names import maker_of
from ..optimizers.selecting import GroupedParams
from ..training.data import Minibatches
from ..training.live_diagnosis import sees_all
from ..training.loop import LossAndGrad, check_replaced, checked_loss, explain, strange_arrays

FIXED_EXAMPLES = 256  # the fixed batch has at least as many, if there are as many


class Sandbox:
    """Train in place, and put everything back on leaving the ``with`` block.

    Parameters are as for `probe_lr`; without an optimizer it evaluates only.

    Attributes
    ----------
    slope_seen : bool
        Whether any gradient of a step so far was not zero.
    """

    def __init__(
        self,
        loss_and_grad: LossAndGrad,
        params: Any,
        data: Any,
        optimizer: str | Optimizer | Callable[..., Optimizer] | None,
        batch_size: int | None,
        rng: int | np.random.Generator | None,
        generators: Iterable[Any],
        buffers: Any,
        lr: float | None = None,
    ):
        if not callable(loss_and_grad):
            raise TypeError(f"loss_and_grad must be callable, got {type(loss_and_grad).__name__}")
        if isinstance(params, Iterator) or isinstance(data, Iterator):
            raise TypeError("an iterator cannot be put back: pass arrays, minibatches or None")
        if isinstance(optimizer, str):
            maker_of(optimizer)
        elif optimizer is not None and not callable(optimizer):
            _check_kind(optimizer)
        if data is None or isinstance(data, Minibatches):
            if batch_size is not None or rng is not None:
                raise ValueError("batch_size and rng say how to cut arrays into minibatches; there are none to cut")
            self.batches = data
        else:
            self.batches = Minibatches(data, 32 if batch_size is None else batch_size, rng=0 if rng is None else rng)
        self._loss_and_grad, self._stepped = loss_and_grad, params
        self.params = params = params.params if isinstance(params, GroupedParams) else params
        self._structure, self._stepping = Structure(params), None
        self._trees = params, buffers
        leaves = [*self._structure.leaves(params), *leaves_of(buffers)]
        if isinstance(optimizer, Optimizer):
            leaves += [p for group in optimizer.param_groups for p in group["params"]]
        for leaf in leaves:
            if not isinstance(leaf, np.ndarray):
                raise TypeError(f"parameters and buffers must be NumPy arrays, got {type(leaf).__name__}")
        self._arrays = list({id(leaf): leaf for leaf in leaves}.values())
        self._optimizer = optimizer
        found = list(generators)
        for generator in found:
            if not isinstance(generator, GENERATORS):
                raise TypeError(f"generators: expected random generators, got {type(generator).__name__}")
        found += generators_within(loss_and_grad, data, self.batches)
        self._generators = list({id(generator): generator for generator in found}.values())
        self._interrupts = Interrupts()
        self.slope_seen = False
        if optimizer is None:
            return
        try:
            made = self._new_optimizer(None)
        except TypeError:  # a factory that wants a rate
            if lr is None:
                raise
            made = self._new_optimizer(lr)
        _check_kind(made)
        self._stepping = optimizer if isinstance(optimizer, Optimizer) else made
        if strange := strange_arrays(made, leaves_of(params)):
            raise ValueError(f"the optimizer steps arrays that are not in params: {strange}")
        if ascends(self._stepping):
            raise ValueError(
                "the optimizer maximizes, and rates are judged by a loss that should fall: "
                "return minus score and minus gradients, and leave out maximize"
            )
        groups = made.param_groups
        self.default_lr = float(groups[0]["lr"])
        if not self.default_lr and any(group["lr"] for group in groups):
            raise ValueError("the first group has the rate 0, to which those of the others have no ratio: freeze it")
        self._ratios = [group["lr"] / self.default_lr if self.default_lr else 1.0 for group in groups]
        self.momentum = momentum_of(groups[0])

    def __enter__(self) -> Sandbox:
        self._entries = Entries(self._trees)
        self._saved = [array.copy(order="K") for array in self._arrays]
        self._states = [state_of(generator) for generator in self._generators]
        self._global_states = random.getstate(), np.random.get_state(legacy=False)
        self._position = None if self.batches is None else self.batches.state_dict()
        self._interrupts.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.restore()
        finally:
            self._interrupts.__exit__()

    def restore(self) -> None:
        """Put everything back to where it was on entering."""
        self._entries.put_back()
        for array, saved in zip(self._arrays, self._saved, strict=True):
            if array.flags.writeable:
                layout.put(array, saved)
        if self.batches is not None:
            self.batches.load_state_dict(self._position)  # type: ignore[arg-type]
        for generator, state in zip(self._generators, self._states, strict=True):
            set_state(generator, state)
        python_state, numpy_state = self._global_states
        random.setstate(python_state)
        np.random.set_state(numpy_state)

    def evaluate(self, batch: Any) -> tuple[float, Any]:
        """Loss and gradients of a batch; here Ctrl-C is heard."""
        self._interrupts.open()
        try:
            with np.errstate(all="ignore"):
                loss, grads = self._loss_and_grad(self.params, batch)
            loss = float(checked_loss(loss))
        except (TypeError, ValueError, StopIteration) as error:
            explain(error)
            raise
        finally:
            self._interrupts.close()
        if self._stepping is not None:
            check_replaced(self._structure, self.params, self._stepping)
        return loss, grads

    def next_batch(self) -> Any:
        """The next minibatch, None without data."""
        return None if self.batches is None else self.batches.next_batch()

    def repeats_itself(self) -> bool:
        """Whether a second call without data returns the same: loss_and_grad reads no stream and draws nothing."""
        first, second = self._copied(), self._copied()
        self.restore()
        return len(first) == len(second) and all(map(_same, first, second))

    def _copied(self) -> list[np.ndarray]:
        loss, grads = self.evaluate(None)
        parts = [[g.indices, g.values] if isinstance(g, Rows) else [g] for g in leaves_of(grads) if g is not None]
        return [np.array(x) for x in (loss, *(x for part in parts for x in part))]

    def train(self, rates: Sequence[float] | np.ndarray) -> Iterator[float]:
        """One step per rate from the state on entering; yields the loss that each minibatch had before its step."""
        self.restore()
        optimizer = self._new_optimizer(float(rates[0]))
        if isinstance(optimizer, FTRL) and rates[-1] != rates[0]:
            raise ValueError("a rate that changes scales all parameters of FTRL: probe_lr tries rates one by one")
        for lr in rates:
            loss, grads = self.evaluate(self.next_batch())
            if not self.slope_seen:
                self._look(optimizer, grads)
            for group, ratio in zip(optimizer.param_groups, self._ratios, strict=True):
                group["lr"] = float(lr) * ratio
            with np.errstate(all="ignore"):
                optimizer.step(grads)
            yield loss

    def _look(self, optimizer: Optimizer, grads: Any) -> None:
        """ValueError if a gradient that is stepped is not finite; note whether there is one that is not zero."""
        model = optimizer._model
        for parameter, g in zip(model.parameters, model.leaves(grads), strict=True):
            values = g.values if isinstance(g, Rows) else g
            if values is not None and not np.isfinite(values).all():
                raise ValueError(
                    f"gradient {parameter.name!r} is not finite at these parameters: no rate can be judged"
                )
            self.slope_seen = self.slope_seen or (values is not None and bool(np.any(values)))

    def following_batch(self, steps: int) -> Any:
        """The minibatches that follow those of a trial, joined; None if there are none, or each is all the data."""
        if self.batches is None or sees_all(self.batches.batch_size, self.batches.examples):
            return None
        for _ in range(steps):
            self.batches.next_batch()
        first = self.batches.next_batch()
        columns = [[part] for part in self.batches.parts(first)]
        if all(type(column[0]) is np.ndarray for column in columns):  # joining others may lose their masks
            wanted = min(FIXED_EXAMPLES, self.batches.examples)
            while sum(len(part) for part in columns[0]) < wanted:
                for column, part in zip(columns, self.batches.parts(self.batches.next_batch()), strict=True):
                    column.append(part)
        return self.batches.assemble([np.concatenate(column) if len(column) > 1 else column[0] for column in columns])

    def _new_optimizer(self, lr: float | None) -> Optimizer:
        assert self._optimizer is not None
        if isinstance(self._optimizer, Optimizer):
            shared = {id(p): p for group in self._optimizer.param_groups for p in group["params"]}
            return copy.deepcopy(self._optimizer, shared)
        make = maker_of(self._optimizer) if isinstance(self._optimizer, str) else self._optimizer
        return make(self._stepped) if lr is None else make(self._stepped, lr=lr)


def check_first_loss(loss: float) -> None:
    """ValueError if the loss before any step is not finite."""
    if not math.isfinite(loss):
        raise ValueError(f"the loss is {loss} at these parameters, before any step: no rate can be judged")


def _check_kind(optimizer: Any) -> None:
    if not isinstance(optimizer, Optimizer):
        kind = type(optimizer).__name__
        raise TypeError(f"optimizer must be a name, a class or an optimizer for one process, got {kind}")


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays are equal but for round-off."""
    if a.shape != b.shape or a.dtype.kind != "f":
        return np.array_equal(a, b)
    size = float(np.max(np.abs(a), initial=0.0, where=np.isfinite(a)))
    return np.allclose(a, b, rtol=0.0, atol=1e-5 * size, equal_nan=True)
