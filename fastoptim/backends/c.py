"""The C backend: one native call per step for a whole list of arrays.

`CPlan` binds a list of parameters to the extension once; each step hands it the tuples of arrays, whose addresses,
types and layouts the extension reads and checks by itself (``csrc/bind.c``).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, MutableSequence, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import checks
from ..arrays.rows import Rows
from ..arrays.storage import small_dtype
from ..rules.norm import norm_from_squares
from ..rules.table import DECAYS, MAX_STATES, MEASURES, RULES, Kernel, Scalars
from .base import Backend, BlockMeasures, KernelCall, Launch, Member, NativeMeasure, Runs, count_of_steps


def _hint() -> str:
    """What to do where there is no extension that can be used."""
    root = Path(__file__).parents[2]
    if not (root / "setup.py").exists() or not (root / "csrc").exists():
        return "; to have it, install a wheel, or a C compiler and then fastoptim anew"
    return (
        f"; these are the sources at {root}: run from another folder, or build in place by python setup.py build_ext "
        "--inplace"
    )


try:
    from .. import _c

    if "t" in getattr(sys, "abiflags", "") and ".abi3" in _c.__file__:  # CPython loads it all the same
        raise ImportError(f"{_c.__file__} was not built for a free-threaded Python, which lays objects out otherwise")
    ffi, lib = _c.ffi, _c.lib
except (ImportError, AttributeError) as error:
    raise ImportError(f"the C extension of fastoptim is missing or cannot be loaded ({error}){_hint()}") from error

_TYPES = np.ndarray, np.memmap, Rows, "indices", "values", "lazy", "mask"  # which the extension keeps
_STORAGE = {"float32": 0, "float64": 1, "bfloat16": 2, "float16": 3, "float8": 4, "scales": 5}
_SLOTS = 2 + MAX_STATES + MAX_STATES + 1
_KEPT = 64  # plans of norms
_ANY = Member("", (1,), np.dtype(np.float64))  # of a plan whose arrays are checked by nothing but each other


def _names(function: Any) -> list[str]:
    names: list[str] = []
    while (name := function(len(names))) != ffi.NULL:
        names.append(ffi.string(name).decode())
    return names


RULE_NAMES = _names(lib.fo_rule_name)
ISA_NAMES = _names(lib.fo_isa_name)


@cache
def _know_types() -> None:
    """Tell the extension which numbers NumPy has given to the dtypes of ml_dtypes, if that is installed."""
    lib.fo_set_types(*(-1 if dtype is None else dtype.num for dtype in map(small_dtype, ("bfloat16", "float8"))))


class CPlan:
    """A list of parameters prepared for repeated steps.

    Parameters
    ----------
    runs : sequence of (rule number, decay)
    counter : array of one 64-bit integer
        Its only item grows by one with each step that was applied, whatever interrupts the caller then.
    states : sequence of int, optional
        How many states the members of each run have; by default as many as its rule.
    lazy : bool
        Whether `Rows` leave other rows as they are, whatever the rule, without saying so.

    Attributes
    ----------
    step : callable
        ``step(params, grads, states, rows, scale=1.0)``: tuples of arrays, one with the scalars of each run (or what
        `UpdateSpec.native_scalars` gives), and a factor for the gradients, which may be `Rows`. True, or False with
        nothing touched if an array is not plain, not as expected or overlaps another, an index of Rows is not one of a
        row, or a step with Rows would not have the bits of the dense one and was not asked to be lazy.
    sum_squares : callable
        ``sum_squares(grads, grad_scale, k)``: sum of ``(k * (grad_scale * g))**2``, None if a gradient is not plain and
        C-ordered. They may be `Rows`.
    step_array : callable
        ``step_array(p, g, states, row, dict, names, values)``: a step of one small array of any shape, for a plan of
        one parameter. True, or False with nothing touched, as for `step`, or if ``dict.get`` of the names does not give
        these very values.
    measure : callable
        ``measure(params, grads, states, rows, k)``, where runs are measures: sums of ``(k * term)**2`` for each
        parameter and each of its terms; None where `step` would say False.
    """

    __slots__ = ("_handle", "measure", "step", "step_array", "sum_squares")
    in_c = True
    step: Callable[..., bool]
    sum_squares: Callable[[tuple[Any, ...], float, float], float | None]
    step_array: Callable[..., bool]
    measure: NativeMeasure

    def __init__(
        self,
        runs: Sequence[tuple[int, str]],
        run_of: Sequence[int],
        members: Sequence[Member],
        counter: MutableSequence[int],
        threads: int,
        states: Sequence[int] | None = None,
        lazy: bool = False,
    ):
        described = ffi.new("fo_run[]", max(1, len(runs)))
        for i, (number, decay) in enumerate(runs):
            described[i].rule, described[i].decay, described[i].lazy = number, DECAYS.index(decay), lazy
            rule = RULES.get(RULE_NAMES[number])
            if rule is not None and rule.still is not None:
                described[i].still = 1
                described[i].ones, described[i].above = (
                    sum(1 << rule.coefficients.index(name) for name in names) for names in rule.still
                )
        storage = np.full((len(members), _SLOTS), -1, np.int8)
        stored = ffi.new("fo_stored[]", max(1, len(members)))
        for i, member in enumerate(members):
            run = run_of[i]
            count = lib.fo_rule_states(runs[run][0]) if states is None else states[run]
            if (by := member.stored) is None:
                storage[i, : 2 + count] = _STORAGE[member.dtype.name]
                continue
            slots = [by.parameter, by.parameter, *[by.state] * count, *["scales"] * by.scales]
            slots += ["float32"] * by.master
            storage[i, : len(slots)] = [_STORAGE[slot] for slot in slots]
            squares = sum(square << k for k, square in enumerate(by.squares))
            stored[i] = (by.seed, by.number, by.first, by.nearest, by.master, squares, True)
            _know_types()
        shapes = np.array([length for m in members for length in m.shape], np.int64)
        handle = lib.fo_plan_new(
            len(runs),
            described,
            len(members),
            ffi.from_buffer("int32_t[]", np.array(run_of, np.int32)),
            ffi.from_buffer("int8_t[]", storage),
            stored,
            ffi.from_buffer("int32_t[]", np.array([len(m.shape) for m in members], np.int32)),
            ffi.from_buffer("int64_t[]", shapes),
            threads,
        )
        if handle == ffi.NULL:
            raise MemoryError("no memory for the plan of a step")
        functions: list[Any] = []
        if not lib.fo_functions(handle, id(counter), ffi.from_buffer("int64_t[]", counter), id(functions)):
            raise MemoryError("no memory for the plan of a step")
        self._handle = handle  # owned by the functions
        self.step, self.sum_squares, self.step_array, self.measure = functions

    def norm(self, grads: tuple[Any, ...], grad_scale: float) -> float | None:
        """Norm of all gradients; None if one is not plain and C-ordered."""
        total = self.sum_squares(grads, grad_scale, 1.0)
        again: Any = partial(self.sum_squares, grads, grad_scale)
        return None if total is None else norm_from_squares(again, total)

    def block_sums(self, terms: int = 1) -> np.ndarray:
        """The block sums that the last `sum_squares` or `measure` left; of two terms one behind the other."""
        count = self._handle.block_count * terms
        return np.frombuffer(ffi.buffer(self._handle.block_sums, 8 * count), np.float64).copy()


class CBackend(Backend):
    name = "c"
    runs_own_rules = False

    def __init__(self) -> None:
        self._norms: dict[Any, CPlan] = {}  # of gradients of some shapes
        try:
            self.alone_below = lib.FO_ALONE_BELOW
            _check_tables()
            if not lib.fo_set_up(id(np.ndarray), id(np.memmap), id(_TYPES), tuple.__basicsize__):
                raise ImportError("the C extension of fastoptim cannot read tuples of this Python; please report this")
            CPlan([(0, "none")], [0], [_ANY], count_of_steps(), 1)
        except (AttributeError, TypeError, ValueError) as error:
            raise ImportError(
                f"the C extension was built from other sources ({error}): install fastoptim again{_hint()}"
            ) from error
        wanted = os.environ.get("FASTOPTIM_ISA", "")
        if wanted:
            try:
                self.set_isa(wanted)
            except ValueError as error:
                raise ValueError(f"FASTOPTIM_ISA: {error}") from None

    # --- instruction sets

    @property
    def isa(self) -> str:
        """The instruction set in use."""
        selected: int = lib.fo_isa_selected()
        return ISA_NAMES[selected]

    @property
    def isas(self) -> list[str]:
        """The instruction sets that were built and that this machine has."""
        return ISA_NAMES[: lib.fo_cpu_isa() + 1]

    def set_isa(self, name: str) -> None:
        """Use one instruction set for all steps of this process; ValueError if the machine or the build lacks it."""
        if name not in self.isas:
            raise ValueError(
                f"instruction set {name!r} is not available: built are {ISA_NAMES}, this machine runs {self.isas}"
            )
        lib.fo_isa_select(ISA_NAMES.index(name))

    # --- arithmetic

    check_arithmetic = staticmethod(checks.check_rounding)  # coefficients are computed by the caller's thread

    def plan(self, runs: Runs, counter: MutableSequence[int], threads: int, lazy: bool = False) -> CPlan:
        if bad := [kernel.name for kernel in runs.kernels if kernel.decay not in kernel.rule.decays]:
            raise ValueError(f"no such kernels: {bad}; a rule's decays say which there are")
        return CPlan(_numbered(runs.kernels), runs.run_of, runs.members, counter, threads, lazy=lazy)

    def array_step(self, kernel: Kernel) -> Callable[..., bool]:
        return self.plan(Runs.one(kernel, [_ANY]), count_of_steps(), 1).step_array

    def prepare(self, calls: Sequence[KernelCall], threads: int) -> Launch:
        run_of = [i for i, call in enumerate(calls) for _ in call.arrays]
        rows = [row for call in calls for row in call.arrays]
        params, grads = tuple(row[0] for row in rows), tuple(row[1] for row in rows)
        states = tuple(x for row in rows for x in row[2:])
        members = [Member("", row[0].shape, row[0].dtype, stored) for call in calls for row, stored in call.rows]
        plan = self.plan(Runs([call.kernel for call in calls], run_of, members), count_of_steps(), threads)
        return lambda scalars: _applied(plan.step(params, grads, states, tuple(scalars)))

    def measure_plan(self, runs: Runs, measures: Sequence[Kernel], threads: int) -> NativeMeasure:
        states = [len(kernel.rule.states) for kernel in runs.kernels]
        return CPlan(_numbered(measures), runs.run_of, runs.members, count_of_steps(), threads, states).measure

    def prepare_measures(self, calls: Sequence[KernelCall], threads: int) -> BlockMeasures:
        plans = []
        for i, (kernel, rows, _) in enumerate(calls):
            for p, g, *states in rows:
                plan = CPlan(_numbered([kernel]), [0], [Member.of(p)], count_of_steps(), threads, [len(states)])
                plans.append((plan, ((p,), (g,), tuple(states)), i, kernel.rule.terms))

        def measure(scalars: Sequence[Scalars], k: float) -> list[np.ndarray]:
            sums: list[np.ndarray] = []
            for plan, (params, grads, states), i, terms in plans:
                _applied(plan.measure(params, grads, states, (scalars[i],), k) is not None)
                sums += np.split(plan.block_sums(terms), terms)
            return sums

        return measure

    def norm(self, grads: Sequence[Any], grad_scale: float, threads: int) -> float:
        key = threads, *[(g.shape, g.dtype) for g in grads]
        plan = self._norms.get(key)
        if plan is None:
            if len(self._norms) >= _KEPT:
                self._norms.clear()
            plan = self._norms[key] = _plan_of_sums(grads, threads)
        norm = plan.norm(tuple(grads), grad_scale)  # None, too, while another thread uses the plan
        return super().norm(grads, grad_scale, threads) if norm is None else norm

    def block_sums(self, grads: Sequence[Any], grad_scale: float, k: float, threads: int) -> np.ndarray:
        plan = _plan_of_sums(grads, threads)
        _applied(plan.sum_squares(tuple(grads), grad_scale, k) is not None)
        return plan.block_sums()

    @contextmanager
    def arithmetic(self) -> Iterator[None]:
        mode = lib.fo_float_mode_set_default()
        try:
            with super().arithmetic():
                yield
        finally:
            lib.fo_float_mode_restore(mode)

    # --- loops that compute next to nothing, for benchmarks

    def roofline(
        self, rule: str, params: Sequence[Any], grads: Sequence[Any], states: Sequence[Any], threads: int
    ) -> Any:
        """A function that moves the bytes of one step of `rule` and computes next to nothing, when called.

        `states` holds one tuple per parameter. Chunks, threads and loops are those of a step; arrays are overwritten.
        """
        return self._bare_loop(f"roof{len(RULES[rule].states)}", params, grads, states, threads)

    def root_and_divide(self, p: Any, g: Any, threads: int = 1) -> Any:
        """A function that does ``p <- sqrt(g) / p`` when called: what limits Adam in cache."""
        return self._bare_loop("root_and_divide", [p], [g], [()], threads)

    def _bare_loop(
        self, name: str, params: Sequence[Any], grads: Sequence[Any], states: Sequence[Any], threads: int
    ) -> Any:
        runs, members = [(RULE_NAMES.index(name), "none")], [Member.of(p) for p in params]
        plan = CPlan(runs, [0] * len(params), members, count_of_steps(), threads)
        arrays = tuple(params), tuple(grads), tuple(x for entry in states for x in entry)
        return lambda: _applied(plan.step(*arrays, ((1.0, 0.0),)))

    def info(self) -> dict[str, Any]:
        return {
            "isa": self.isa,
            "isas": self.isas,
            "built for": ISA_NAMES,
            "compiler": ffi.string(lib.fo_compiler()).decode(),
            "flags": ffi.string(lib.fo_flags).decode(),
        }


def _numbered(kernels: Sequence[Kernel]) -> list[tuple[int, str]]:
    """What the extension calls kernels."""
    return [(RULE_NAMES.index(kernel.rule.name), kernel.decay) for kernel in kernels]


def _plan_of_sums(grads: Sequence[Any], threads: int) -> CPlan:
    """A plan for the sums of squares of gradients like these; it makes no steps."""
    return CPlan([(0, "none")], [0] * len(grads), [Member.of(g) for g in grads], count_of_steps(), threads)


def _applied(plain: bool) -> None:
    if not plain:
        raise RuntimeError("the C extension refused arrays that were prepared for it; please report this")


def _check_tables() -> None:
    """ImportError unless the extension was built from these update rules."""
    stated = {name: (len(rule.states), len(rule.coefficients), rule.terms) for name, rule in (RULES | MEASURES).items()}
    built = {
        name: (lib.fo_rule_states(i), lib.fo_rule_coefficients(i), lib.fo_rule_terms(i))
        for i, name in enumerate(RULE_NAMES)
        if name in stated
    }
    if built != stated:
        raise ImportError(
            f"the C extension was built from other update rules ({built}, not {stated}): install fastoptim again"
            + _hint()
        )
