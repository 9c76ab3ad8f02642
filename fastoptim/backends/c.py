"""The C backend: one native call per step for a whole list of arrays.

`CPlan` binds a list of parameters to the extension once; each step hands it the tuples of arrays, whose addresses,
types and layouts the extension reads and checks by itself (``csrc/bind.c``).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from .. import rules
from ..rules.table import DECAYS, RULES, Rule
from .base import Backend, Run

try:
    from .. import _c
except ImportError as error:
    raise ImportError(f"the C extension of fastoptim is missing or cannot be loaded ({error})") from error

ffi, lib = _c.ffi, _c.lib

_STORAGE = {np.dtype(np.float32): 0, np.dtype(np.float64): 1}
_SLOTS = 5


def _names(function: Any) -> list[str]:
    names: list[str] = []
    while (name := function(len(names))) != ffi.NULL:
        names.append(ffi.string(name).decode())
    return names


RULE_NAMES = _names(lib.fo_rule_name)
ISA_NAMES = _names(lib.fo_isa_name)


class CPlan:
    """A list of parameters prepared for repeated steps.

    Parameters
    ----------
    rows : sequence of (rule number, decay, decay coefficient, maximize, members)
        A member is anything with the `shape` and `dtype` of a parameter.
    counter : list of int
        Its only item grows by one with each step that was applied, whatever interrupts the caller then.
    threads : int
        How many threads a step may use.

    Attributes
    ----------
    step : callable
        ``step(params, grads, states, coefficients, scale)``: tuples of arrays, one tuple of floats per row. True, or
        False with nothing touched if an array is not plain, not as expected or overlaps another.
    sum_squares : callable
        ``sum_squares(grads, grad_scale, k)``: sum of ``(k * (grad_scale * g))**2``, None if a gradient is not plain and
        C-ordered.
    """

    __slots__ = ("_handle", "step", "sum_squares")

    def __init__(self, rows: Sequence[tuple[int, str, float, bool, Sequence[Any]]], counter: list[int], threads: int):
        runs = ffi.new("fo_run[]", max(1, len(rows)))
        members: list[Any] = []
        entry_run: list[int] = []
        for i, (number, decay, decay_coefficient, maximize, group) in enumerate(rows):
            runs[i].rule, runs[i].decay = number, DECAYS.index(decay)
            runs[i].decay_coefficient, runs[i].maximize = decay_coefficient, maximize
            members += group
            entry_run += [i] * len(group)
        storage = np.repeat(np.array([_STORAGE[np.dtype(m.dtype)] for m in members], np.int8), _SLOTS)
        shapes = np.array([length for m in members for length in m.shape], np.int64)
        handle = lib.fo_plan_new(
            len(rows),
            runs,
            len(members),
            ffi.from_buffer("int32_t[]", np.array(entry_run, np.int32)),
            ffi.from_buffer("int8_t[]", storage),
            ffi.from_buffer("int32_t[]", np.array([len(m.shape) for m in members], np.int32)),
            ffi.from_buffer("int64_t[]", shapes),
            threads,
        )
        if handle == ffi.NULL:
            raise MemoryError("no memory for the plan of a step")
        functions: list[Any] = []
        if not lib.fo_functions(handle, id(counter), id(functions)):
            raise MemoryError("no memory for the plan of a step")
        self._handle = handle  # owned by the functions
        self.step, self.sum_squares = functions

    def set_decay(self, decay_coefficients: Sequence[float]) -> None:
        """Replace the decay coefficient of every row."""
        for i, value in enumerate(decay_coefficients):
            self._handle.runs[i].decay_coefficient = value

    def norm(self, grads: tuple[Any, ...], grad_scale: float) -> float | None:
        """Norm of all gradients; None if one is not plain and C-ordered."""
        total = self.sum_squares(grads, grad_scale, 1.0)
        if total is None:
            return None
        return rules.norm_from_squares(lambda k: total if k == 1.0 else self.sum_squares(grads, grad_scale, k))

    def block_sums(self) -> np.ndarray:
        """The block sums that the last `sum_squares` left."""
        count = self._handle.block_count
        return np.frombuffer(ffi.buffer(self._handle.block_sums, 8 * count), np.float64).copy()


class CBackend(Backend):
    name = "c"

    def __init__(self) -> None:
        _check_tables()
        types = np.ndarray, np.memmap
        if not lib.fo_set_up(id(types[0]), id(types[1]), id(types), tuple.__basicsize__):
            raise ImportError("the C extension of fastoptim cannot read tuples of this Python; please report this")
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
        return ISA_NAMES[lib.fo_isa_selected()]

    @property
    def isas(self) -> list[str]:
        """The instruction sets that were built and that this machine has."""
        return ISA_NAMES[: lib.fo_cpu_isa() + 1]

    def set_isa(self, name: str) -> None:
        """Use one instruction set for all steps of this process; ValueError if the machine or the build lacks it."""
        if name not in self.isas:
            raise ValueError(
                f"instruction set {name!r} is not to be had: built are {ISA_NAMES}, this machine runs {self.isas}"
            )
        lib.fo_isa_select(ISA_NAMES.index(name))

    # --- arithmetic

    def plan(
        self, rows: Sequence[tuple[Rule, str, float, bool, Sequence[Any]]], counter: list[int], threads: int
    ) -> CPlan:
        return CPlan([(RULE_NAMES.index(row[0].name), *row[1:]) for row in rows], counter, threads)

    def apply(self, runs: Sequence[Run], scale: float, threads: int) -> None:
        rows = [(run.rule, run.decay, run.decay_coefficient, run.maximize, run.params) for run in runs]
        arrays = _by_slot(runs)
        _applied(self.plan(rows, [0], threads).step(*arrays, [run.coefficients for run in runs], scale))

    def block_sums(self, grads: Sequence[Any], grad_scale: float, k: float, threads: int) -> np.ndarray:
        plan = CPlan([(0, "none", 0.0, False, grads)], [0], threads)
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

    # --- yardsticks for benchmarks

    def roofline(
        self, rule: str, params: Sequence[Any], grads: Sequence[Any], states: Sequence[Any], threads: int
    ) -> Any:
        """A function that moves the streams of one step of `rule` and computes next to nothing, when called.

        `states` holds one tuple per parameter. Chunks, threads and loops are those of a step; arrays are overwritten.
        """
        return self._yardstick(f"roof{len(RULES[rule].states)}", params, grads, states, threads)

    def root_and_divide(self, p: Any, g: Any, threads: int = 1) -> Any:
        """A function that does ``p <- sqrt(g) / p`` when called: what limits Adam in cache."""
        return self._yardstick("root_and_divide", [p], [g], [()], threads)

    def _yardstick(
        self, name: str, params: Sequence[Any], grads: Sequence[Any], states: Sequence[Any], threads: int
    ) -> Any:
        plan = CPlan([(RULE_NAMES.index(name), "none", 0.0, False, params)], [0], threads)
        arrays = tuple(params), tuple(grads), tuple(x for entry in states for x in entry)
        return lambda: _applied(plan.step(*arrays, [()], 1.0))

    def info(self) -> dict[str, Any]:
        return {
            "isa": self.isa,
            "isas": self.isas,
            "built for": ISA_NAMES,
            "compiler": ffi.string(lib.fo_compiler()).decode(),
            "flags": ffi.string(lib.fo_flags).decode(),
        }


def _by_slot(runs: Sequence[Run]) -> tuple[tuple[Any, ...], tuple[Any, ...], tuple[Any, ...]]:
    """Parameters, gradients and states of all runs, as the extension takes them."""
    return (
        tuple(p for run in runs for p in run.params),
        tuple(g for run in runs for g in run.grads),
        tuple(x for run in runs for states in run.states for x in states),
    )


def _applied(plain: bool) -> None:
    if not plain:
        raise RuntimeError("the C extension refused arrays that were prepared for it; please report this")


def _check_tables() -> None:
    """ImportError unless the extension was built from this law."""
    built = {
        name: (lib.fo_rule_states(i), lib.fo_rule_coefficients(i)) for i, name in enumerate(RULE_NAMES) if name in RULES
    }
    stated = {name: (len(rule.states), len(rule.coefficients)) for name, rule in RULES.items()}
    if built != stated:
        raise ImportError(
            f"the C extension was built from another law ({built}, not {stated}): install fastoptim again"
        )
