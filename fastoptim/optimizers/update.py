"""The one place where a step happens: arrays are checked, the norm is taken, kernels run, results are copied back.

`Update` serves the optimizers' classes, the functional forms, the adapters, sharding and offloading. A step of
`Optimizer` that asks for no options first calls `Update.native_step`, the C extension's own function, and comes to
`Update.step` only where that takes no such arrays, or where there is no C extension.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, MutableSequence, Sequence, Set
from functools import lru_cache, partial
from operator import is_
from typing import Any, NamedTuple

import numpy as np

from ..arrays.checks import check_dtype, check_unchanged
from ..arrays.rows import Rows
from ..arrays.storage import compute_dtype, state_arrays
from ..backends.base import (
    Arrays,
    Backend,
    KernelCall,
    Launch,
    Member,
    NativePlan,
    Norm,
    Prepared,
    Runs,
    StepInfo,
    count_of_steps,
    in_range,
)
from ..common.signals import deferred_signals
from ..common.validation import check_range, step_options
from ..rules.codecs import Stored
from ..rules.norm import clip_factor
from ..rules.table import Kernel, ScalarRows, Scalars
from .measuring import Asking, Measuring
from .sparse import SparseStep, check_rule

APPLIED = StepInfo(True, None)


class StepOptions(NamedTuple):
    """What a step may be asked for besides the update, validated."""

    grad_scale: float = 1.0
    max_norm: float | None = None
    skip_nonfinite: bool = False
    clip: str = "norm"

    @property
    def asks_norm(self) -> bool:
        return self.max_norm is not None or self.skip_nonfinite

    def skips(self, norm: float | None) -> bool:
        """Whether nothing is to happen where this is the norm of the gradients."""
        return self.skip_nonfinite and norm is not None and not math.isfinite(norm)


PLAIN = StepOptions()


def _options(dtypes: frozenset[np.dtype[Any]], *given: Any) -> StepOptions:
    options = StepOptions(*step_options(*given))
    if options.clip == "value" and options.max_norm is not None and options.max_norm != math.inf:
        for dtype in dtypes:
            check_range("max_norm", options.max_norm, dtype)
    if options.grad_scale != 1.0:
        for dtype in dtypes:
            check_range("grad_scale", options.grad_scale, dtype)
    return options


_known_options = lru_cache(maxsize=256, typed=True)(_options)  # they are mostly those of the step before

SINGLE, TINY = np.dtype(np.float32), 2.0**-149  # the smallest number that it has


def clipped_scale(scale: float, norm: float | None, limit: float | None, dtypes: Set[np.dtype[Any]]) -> float:
    """`scale` times the clip factor; ValueError if it would drop all gradients, which are then in float32."""
    if norm is not None:
        scale *= clip_factor(norm, limit)
    if 0.0 < abs(scale) < TINY and limit is not None and limit > TINY and dtypes == {SINGLE}:
        check_range("grad_scale times the clip factor", scale, SINGLE)
    return scale


class _Bound:
    """Checked arrays, ready to be stepped; kept for the next step where the backend can tell that it still fits."""

    def __init__(
        self,
        launch: Launch,
        measure: Callable[[ScalarRows], ScalarRows] | None,
        forms: list[Prepared],
        grads: list[Any],
        runs: list[int],
    ) -> None:
        self.launch, self.measure, self.forms, self.runs = launch, measure, forms, runs
        self.grads, self.present = [g for g in grads if g is not None], [g is not None for g in grads]
        self.copies = [form for form in forms if form.copies]
        self.in_order = runs == list(range(len(runs))) and all(self.present)  # calls are the runs, one by one
        self.norm: Norm | None = None
        self.layouts: object | None = None
        self.states: Arrays = ()

    def run(self, scalars: ScalarRows) -> None:
        self.launch(scalars)
        for form in self.copies:
            form.copy_back()


class Update:
    """Steps one list of arrays again and again, at the price of one native call where nothing has changed.

    Parameters
    ----------
    runs : Runs
        The kernels, and what is expected of each parameter.
    counter : array of one 64-bit integer, optional
        Its only item grows by one with each step that every parameter has taken.
    skipped : callable, optional
        Called with a list of flags, one per parameter, instead of that count where some gradients were None: which have
        stepped. Without it, a gradient of None is refused.
    lazy : bool
        Whether `Rows` leave other rows as they are without saying so.
    asking : sequence of Asking, optional
        For each run, which then has one parameter, what norms it asks for before a step.
    """

    __slots__ = (
        *("_asking", "_backend", "_bound", "_by_array", "_counter", "_dtypes", "_kernels", "_lazy", "_limits"),
        *("_measuring", "_members", "_native", "_run_of", "_skipped", "_threads"),
    )

    def __init__(
        self,
        backend: Backend,
        runs: Runs,
        threads: int,
        counter: MutableSequence[int] | None = None,
        skipped: Callable[[list[bool]], None] | None = None,
        lazy: bool = False,
        asking: Sequence[Asking] | None = None,
    ) -> None:
        self._backend = backend
        self._kernels, self._run_of, self._members = runs
        for member in self._members:
            if member.stored is None:
                check_dtype(member.name, member.dtype)
        self._threads, self._skipped, self._lazy = threads, skipped, lazy
        self._counter = count_of_steps() if counter is None else counter
        self._native = backend.plan(runs, self._counter, threads, lazy)
        self._bound: _Bound | None = None
        self._dtypes = frozenset(compute_dtype(member.dtype) for member in self._members)
        self._limits = runs.limits()
        self._asking = asking
        self._by_array: Update | None = None
        self._measuring: Measuring | None = None
        if asking is not None and any(run.measured is not None for run in asking):
            self._measuring = Measuring(backend, runs, asking, threads)

    @property
    def in_c(self) -> bool:
        """Whether `native_step` takes native scalars, and judges by itself what gradients are."""
        return self._native is not None and self._native.in_c

    @property
    def native_step(self) -> Callable[..., bool] | None:
        """``(params, grads, states, scalars)`` -> whether a plain step could be taken; None if it takes more."""
        return None if self._native is None or self._measuring is not None else self._native.step

    def options(
        self, grad_scale: Any, max_norm: Any = None, skip_nonfinite: Any = False, clip: Any = "norm"
    ) -> StepOptions:
        """The options of a step, validated; TypeError or ValueError that names one."""
        try:
            return _known_options(self._dtypes, grad_scale, max_norm, skip_nonfinite, clip)
        except TypeError:  # not hashable, or not valid, which this says again
            return _options(self._dtypes, grad_scale, max_norm, skip_nonfinite, clip)

    def check_scalars(self, scalars: Sequence[Scalars], runs: Sequence[int] | None = None) -> None:
        """ValueError that names a coefficient which is not `in_range`; the rows are those of some runs, or of all."""
        kernels, limits = self._kernels, self._limits
        if runs is not None:
            kernels, limits = [kernels[run] for run in runs], [limits[run] for run in runs]
        if in_range(scalars, limits):
            return
        for kernel, row, limit in zip(kernels, scalars, limits, strict=True):
            rule = kernel.rule
            for name, x in zip(("of its weight decay", *rule.coefficients), row[1:], strict=False):
                if not -limit < x < limit:
                    raise ValueError(
                        f"the hyperparameters give the rule {rule.written or rule.name!r} a coefficient {name} = {x:g} "
                        f"in this step, which is no finite number in {'float64' if limit == math.inf else 'float32'}, "
                        "in which parameters are computed"
                    )

    def step(
        self,
        params: Arrays,
        grads: Arrays,
        states: Arrays,
        scalars: ScalarRows | Callable[[], ScalarRows],
        options: StepOptions = PLAIN,
        native_scalars: ScalarRows | None = None,
    ) -> StepInfo:
        """One step; it happens whole, or raises and leaves every byte and every count as it was.

        Parameters
        ----------
        params, grads : tuples of arrays
            In the order of the members.
        states : tuple of arrays
            Those of the first parameter, then those of the second, and so on.
        scalars : tuple of tuples, or callable
            ``(sign, decay, *coefficients)`` of each run; the sign is multiplied by the scale of the gradients. Behind
            them the number of the step, where a member of the run is stored in fewer bits. Or what returns them.
        options : StepOptions
        native_scalars : tuple of tuples, optional
            What a native plan takes in their place.

        Raises
        ------
        TypeError, ValueError
            An array is not as expected, or arrays overlap; or a coefficient is beyond the type it is needed in.
        """
        native = self._native
        if options.clip != "norm" and options.max_norm is not None:
            return self._step_limited(params, grads, states, scalars, options, native_scalars)
        if native is not None:
            rows = native_scalars or (scalars() if callable(scalars) else scalars)
            if options is PLAIN and self._measuring is None:
                if native.step(params, grads, states, rows):
                    return APPLIED
            elif (info := self._step_natively(native, params, grads, states, rows, options)) is not None:
                return info
        if callable(scalars):
            scalars = scalars()
        self.check_scalars(scalars)
        if Rows in map(type, grads):
            return self._step_rows(params, grads, states, scalars, options)
        bound = self._known(params, grads, states) or self._bind(params, grads, states)
        norm = None
        if options.asks_norm:
            present = grads if bound.layouts is not None else bound.grads
            if bound.norm is None:
                bound.norm = self._backend.prepare_norm(present, self._threads)
            norm = bound.norm(present, options.grad_scale)
        if options.skips(norm) or not any(bound.present):
            return StepInfo(False, norm)
        if not bound.in_order:
            scalars = tuple([scalars[run] for run in bound.runs])
        scaled = scalars if options is PLAIN else self._scaled(scalars, options, norm)
        if bound.measure is not None:
            scaled = bound.measure(scaled)
            self.check_scalars(scaled, bound.runs)
        return self._done(partial(bound.run, scaled), bound.present, norm)

    def _done(self, work: Callable[[], None], present: list[bool], norm: float | None) -> StepInfo:
        """Do what was prepared, and count it."""
        with deferred_signals():
            work()
            if all(present):
                self._counter[0] += 1
            elif self._skipped is not None:
                self._skipped(present)
        return StepInfo(True, norm)

    def _step_limited(
        self,
        params: Arrays,
        grads: Arrays,
        states: Arrays,
        scalars: ScalarRows | Callable[[], ScalarRows],
        options: StepOptions,
        native_scalars: ScalarRows | None,
    ) -> StepInfo:
        """The step with gradients that are clipped each by itself: by factors, or by value, which takes new arrays."""
        if Rows in map(type, grads):
            raise TypeError(f"Rows are clipped by the norm of all gradients, clip='norm', not by {options.clip!r}")
        backend, scale, limit = self._backend, options.grad_scale, options.max_norm
        checked = [g for _, g, _ in self._check(params, grads, states)]
        present = [g for g in checked if g is not None]
        norm: float | None = None
        norms: list[float] = []
        if options.clip == "norm_per_array":
            norm, norms = backend.norms(present, scale, self._threads)
        elif options.skip_nonfinite:
            norm = backend.norm(present, scale, self._threads)
        if options.skips(norm):
            return StepInfo(False, norm)
        if options.clip == "value":
            limited = tuple(None if g is None else backend.limited(g, scale, limit) for g in checked)
            return StepInfo(self.step(params, limited, states, scalars, PLAIN, native_scalars).applied, norm)
        each, rows = iter(norms), scalars() if callable(scalars) else scalars
        factors = [
            1.0 if g is None else clipped_scale(scale, next(each), limit, {compute_dtype(member.dtype)})
            for member, g in zip(self._members, checked, strict=True)
        ]
        rows = tuple((rows[run][0] * f, *rows[run][1:]) for run, f in zip(self._run_of, factors, strict=True))
        return StepInfo(self._one_run_each().step(params, grads, states, rows).applied, norm)

    def _one_run_each(self) -> Update:
        """This update with scalars for each parameter."""
        if self._by_array is None:
            runs = Runs([self._kernels[run] for run in self._run_of], range(len(self._members)), self._members)
            asking = None if self._asking is None else [self._asking[run] for run in self._run_of]
            rest = (self._counter, self._skipped, self._lazy, asking)
            self._by_array = Update(self._backend, runs, self._threads, *rest)
        return self._by_array

    def _step_natively(
        self, native: NativePlan, params: Arrays, grads: Arrays, states: Arrays, rows: ScalarRows, options: StepOptions
    ) -> StepInfo | None:
        """The step by native calls, one for the norm and one for the rest; None if the arrays need another way."""
        norm = None
        if options.max_norm is not None or options.skip_nonfinite:  # `asks_norm`, and `skips`, without calls
            norm = native.norm(grads, options.grad_scale)
            if norm is None:
                return None
            if options.skip_nonfinite and not math.isfinite(norm):
                if Rows in map(type, grads):
                    return None
                self._check(params, grads, states)  # a step that skips refuses bad input all the same
                return StepInfo(False, norm)
        scale = self._scale(options, norm)
        if self._measuring is not None:
            if Rows in map(type, grads):  # even of an array that is not measured: refused on every backend
                return None
            own = self._measuring.natively(params, grads, states, self._scaled(rows, options, norm))
            return StepInfo(True, norm) if own is not None and native.step(params, grads, states, own) else None
        return StepInfo(True, norm) if native.step(params, grads, states, rows, scale) else None

    def _step_rows(
        self, params: Arrays, grads: Arrays, states: Arrays, scalars: ScalarRows, options: StepOptions
    ) -> StepInfo:
        """The step where some gradients are `Rows`."""
        backend = self._backend
        if self._measuring is not None:
            raise TypeError(
                "LAMB, LARS, NovoGrad, update_clip and cautious take norms of whole arrays, not Rows: rows.to_dense(n)"
            )
        if backend.name == "cuda":
            raise TypeError("Rows are gradients of NumPy arrays; arrays on a GPU need dense gradients")
        if len(grads) != len(self._members):
            raise ValueError(f"expected {len(self._members)} gradients, got {len(grads)}")
        for member, g, run in zip(self._members, grads, self._run_of, strict=True):
            if type(g) is Rows:
                check_rule(member, g, self._kernels[run], scalars[run], self._lazy)
        backend.check_arithmetic()
        dense = tuple(None if type(g) is Rows else g for g in grads)
        for member, g in zip(self._members, grads, strict=True):
            if g is None and self._skipped is None:
                raise TypeError(f"gradient of parameter {member.name!r}: expected an array or Rows, got None")
        found = self._check(params, dense, states, may_lack=True)
        checked = [
            (member.name, p, given if type(given) is Rows else g, own, member.stored)
            for member, given, (p, g, own) in zip(self._members, grads, found, strict=True)
        ]
        step = SparseStep(backend, self._kernels, self._run_of, checked, self._lazy, self._threads)
        norm = step.norm(options.grad_scale) if options.asks_norm else None
        if options.skips(norm):
            return StepInfo(False, norm)
        return self._done(step.prepare(self._scaled(scalars, options, norm)), step.present, norm)

    def _scaled(self, scalars: ScalarRows, options: StepOptions, norm: float | None) -> ScalarRows:
        """`scalars` with the scale of the gradients in them."""
        scale = self._scale(options, norm)
        return scalars if scale == 1.0 else tuple([(row[0] * scale, *row[1:]) for row in scalars])

    def _scale(self, options: StepOptions, norm: float | None) -> float:
        return clipped_scale(options.grad_scale, norm, options.max_norm, self._dtypes)

    # --- checks

    def _check(
        self, params: Arrays, grads: Arrays, states: Arrays, may_lack: bool = False
    ) -> list[tuple[Any, Any, Arrays]]:
        """(parameter, gradient or None, its states) after every check that a step makes."""
        backend, members = self._backend, self._members
        if not len(params) == len(grads) == len(members):
            raise ValueError(f"expected {len(members)} parameters and gradients, got {len(params)} and {len(grads)}")
        rest = iter(states)
        written, read, checked = [], [], []
        for member, p, g, run in zip(members, params, grads, self._run_of, strict=True):
            name, shape, dtype, _ = member
            backend.check_parameter(name, p)
            check_unchanged(name, backend.describe(p), (shape, dtype))
            written.append(backend.span(f"parameter {name!r}", p))
            own = tuple(self._checked_states(member, self._kernels[run], rest))
            written += [backend.span(f"a state of parameter {name!r}", state) for state in own]
            if g is not None or (self._skipped is None and not may_lack):
                if member.stored is not None and backend.is_single(g):
                    dtype = SINGLE
                g = backend.check_companion(name, "gradient", g, shape, dtype)
                read.append(backend.span(f"gradient of parameter {name!r}", g))
            checked.append((p, g, own))
        if len(list(rest)):
            raise ValueError("there are more states than the rules have")
        backend.check_disjoint(written, read)
        return checked

    def _checked_states(self, member: Member, kernel: Kernel, states: Iterator[Any]) -> Iterator[Any]:
        name, stored = member.name, member.stored
        for slot, (shape, dtype) in state_arrays(kernel.rule, stored, member.shape, member.dtype).items():
            state = next(states, None)
            state = self._backend.check_companion(name, slot, state, shape, dtype)
            self._backend.check_parameter(name, state, f"{slot} of parameter")
            yield state

    def _bind(self, params: Arrays, grads: Arrays, states: Arrays) -> _Bound:
        """Check the arrays, bring them into the form that kernels take, and prepare the kernels."""
        backend = self._backend
        backend.check_arithmetic()
        self._bound = None
        checked = self._check(params, grads, states)
        rows: dict[int, list[Arrays]] = {}
        stored: dict[int, list[Stored | None]] = {}
        forms: list[Prepared] = []
        for run, member, (p, g, own) in zip(self._run_of, self._members, checked, strict=True):
            if g is not None:
                by = member.stored
                any_order = by is None and self._measuring is None  # blocks of sums, too, count in C order
                form = (backend.to_contiguous if any_order else backend.to_c_order)(p, g, own)
                forms.append(form)
                rows.setdefault(run, []).append(form.arrays)
                stored.setdefault(run, []).append(by)
        launch = backend.prepare(
            [KernelCall(self._kernels[run], arrays, stored[run]) for run, arrays in rows.items()], self._threads
        )
        measure = None
        if self._measuring is not None:
            measure = self._measuring.prepare([form.arrays for form in forms], list(rows))
        bound = _Bound(launch, measure, forms, [g for _, g, _ in checked], list(rows))
        fits_again = all(bound.present) and all(form.views for form in forms)
        if fits_again and (layouts := backend.layouts(params + grads, states)) is not None:
            bound.layouts, bound.states = layouts, states
            bound.forms, bound.grads = [], []  # keep no gradient alive
            self._bound = bound
        return bound

    def _known(self, params: Arrays, grads: Arrays, states: Arrays) -> _Bound | None:
        """What the last step has prepared, if it fits these arrays, too."""
        bound = self._bound
        if bound is None or len(states) != len(bound.states):
            return None
        same = all(map(is_, states, bound.states))
        return bound if same and self._backend.layouts(params + grads, states) == bound.layouts else None
