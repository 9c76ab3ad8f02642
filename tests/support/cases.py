"""What the tests go through: every update rule with every variant, and inputs that are hard on arithmetic.

A rule that is added to the table is in every test from then on: nothing here names one.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from fastoptim.backends import Backend, KernelCall, get_backend
from fastoptim.backends.base import Member, Runs, count_of_steps
from fastoptim.rules import coefficients as k
from fastoptim.rules.norm import NORM_BLOCK
from fastoptim.rules.reference import update
from fastoptim.rules.table import Kernel, Rule, kernels

DTYPES = (np.float32, np.float64)

# Around every border there is: vectors, cache lines, blocks of the norm, chunks of the native kernels.
_AROUND_A_BLOCK = (NORM_BLOCK - 1, NORM_BLOCK, NORM_BLOCK + 1)
SIZES = (*range(4), 7, 8, 15, 16, 17, 31, 33, 63, 65, 127, 1000, *_AROUND_A_BLOCK, 8191, 8193)
LARGE_SIZES = (3 * 8192 + 5, 65536 - 1, 65536 * 2 + 17)

# Values for the hyperparameters that a rule's coefficient function asks for: none is neutral.
HYPER = {
    "lr": 0.0123,
    "momentum": 0.87,
    "dampening": 0.31,
    "t": 3,
    "beta1": 0.83,
    "beta2": 0.977,
    "eps": 3e-5,
    "first": False,
    "alpha": 0.93,
    "rho": 0.91,
    "etas": (0.5, 1.25),
    "step_sizes": (3e-5, 0.7),
    "lambd": 2e-3,
    "t0": 1.0,
    "momentum_decay": 4e-3,
    "eps_root": 7e-6,
    "betas": (0.83, 0.977, 0.991),
    "warmup_steps": 2,
    "r": 0.5,
    "weight_lr_power": 2.0,
    "weight_decay": 0.0456,
    "l1": 0.07,
    "l2": 0.03,
    "beta": 0.2,
    "mu_product": 0.6,
    "exp_avg_lr": 0.003,
    "lr_max": 0.009,
    "weight_sum": 0.0003,
    "mode": "torch",
    "factor": 1.37,
    "grad_averaging": True,
    "denominator": 1.9,
}
MODES = {
    "momentum": k.MOMENTUM_MODES,
    "nesterov": ("torch", "lr_inside"),
    "adam": k.EPS_MODES,
    "amsgrad": k.EPS_MODES,
    "nadam": k.NADAM_MODES,
    "adamax": ("keras",),  # the other makes no other kernel
    "adan": ("authors",),
}
# Contents of such states are never negative, unless bits are raw.
NONNEGATIVE = ("sq", "var", "acc", "inf", "step_size")


def coefficients(rule: Rule, mode: str | None = None, **hyper: object) -> tuple[float, ...]:
    """Coefficients of `rule` from `HYPER`; plain numbers for a rule without a coefficient function."""
    function = getattr(k, f"{rule.name}_coefficients", None)
    if function is None and "amsgrad" in rule.name:
        function = getattr(k, f"{rule.name.replace('amsgrad', 'adam')}_coefficients")
    if function is None:
        return tuple(0.7 / (i + 2) for i in range(len(rule.coefficients)))
    wanted = inspect.signature(function).parameters
    values = {name: value for name, value in (HYPER | hyper).items() if name in wanted}
    if mode is not None and "mode" in wanted:
        values["mode"] = mode
    return function(**values)


@dataclass(frozen=True)
class Variant:
    """One rule in one convention, with one kind of decay, up or down."""

    rule: Rule
    mode: str | None
    decay: str
    maximize: bool

    @property
    def label(self) -> str:
        parts = (self.rule.name, self.mode, self.decay, "up" if self.maximize else "down")
        return "-".join(part for part in parts if part)

    def coefficients(self, **hyper: object) -> tuple[float, ...]:
        return coefficients(self.rule, self.mode, **hyper)

    @property
    def kernel(self) -> Kernel:
        return Kernel(self.rule, self.decay)

    @property
    def decay_coefficient(self) -> float:
        return {"none": 0.0, "coupled": 0.0456, "decoupled": 0.0123 * 0.0456}[self.decay]

    def scalars(self, s: float, **hyper: object) -> tuple[float, ...]:
        """What a step with this scale of the gradients is given."""
        return (-s if self.maximize else s, self.decay_coefficient, *self.coefficients(**hyper))


VARIANTS = [
    Variant(kernel.rule, mode, kernel.decay, maximize)
    for kernel in kernels()
    for mode, maximize in product(MODES.get(kernel.rule.name, (None,)), (False, True))
]

# Where a variant takes long, each kernel goes through one of its conventions and directions; all of them go through
# tests/proofs/every_case.py.
EVERY_CASE = os.environ.get("FASTOPTIM_TEST_EVERY_CASE") == "1"
_OF_KERNELS = [[variant for variant in VARIANTS if variant.kernel == kernel] for kernel in kernels()]
SAMPLE = VARIANTS if EVERY_CASE else [variants[i % len(variants)] for i, variants in enumerate(_OF_KERNELS)]

SPECIAL = (0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0)


def raw_bits(rng: np.random.Generator, n: int, dtype: type) -> np.ndarray:
    """Random bit patterns (NaNs, infinities, subnormals, huge and tiny numbers), mixed with ordinary numbers."""
    dtype = np.dtype(dtype)
    x = rng.integers(0, 256, n * dtype.itemsize, np.uint8).view(dtype)
    ordinary = rng.random(n) < 0.5
    x[ordinary] = rng.standard_normal(int(ordinary.sum()))
    limits = np.finfo(dtype)
    special = np.array(
        [*SPECIAL, limits.tiny, limits.smallest_subnormal, -limits.smallest_subnormal, limits.max], dtype
    )
    chosen = rng.random(n) < 0.1
    x[chosen] = rng.choice(special, int(chosen.sum()))
    return x


def ordinary(rng: np.random.Generator, n: int, dtype: type) -> np.ndarray:
    return rng.standard_normal(n).astype(dtype)


def at_offset(x: np.ndarray, offset: int) -> np.ndarray:
    """A copy of `x` that begins `offset` elements behind a 64-byte boundary."""
    room = np.empty(x.nbytes + 256, np.uint8)
    begin = -room.__array_interface__["data"][0] % 64 + offset * x.itemsize
    copy = room[begin : begin + x.nbytes].view(x.dtype).reshape(x.shape)
    copy[...] = x
    return copy


def nonnegative(state: str) -> bool:
    return any(part in state for part in NONNEGATIVE)


def states_for(rng: np.random.Generator, rule: Rule, n: int, dtype: type, make=ordinary) -> list[np.ndarray]:
    """Contents for every state."""
    states = [make(rng, n, dtype) for _ in rule.states]
    if make is ordinary:
        states = [abs(x) if nonnegative(name) else x for x, name in zip(states, rule.states, strict=True)]
    return states


def expected(
    variant: Variant, p: np.ndarray, g: np.ndarray, states: list[np.ndarray], s: float, **hyper: object
) -> list[np.ndarray]:
    """Parameter and states after one step of the reference, on copies."""
    p, states = p.copy(), [x.copy() for x in states]
    update(variant.kernel, p, g, states, variant.scalars(s, **hyper))
    return [p, *states]


def run_kernel(backend: Backend, variant: Variant, rows: list[tuple[np.ndarray, ...]], s: float, threads: int) -> None:
    """One step of (p, g, *states) rows, in place, by a backend's prepared kernels."""
    backend.prepare([KernelCall(variant.kernel, rows)], threads)([variant.scalars(s)])


def differing(
    backend: Backend,
    variant: Variant,
    dtype: type,
    sizes: Sequence[int],
    make: Any,
    threads: int = 1,
    offset: int = 0,
    vectors: Any = list,
    settle: Any = lambda: None,
) -> list[tuple[str, str, str, int]]:
    """What a step leaves with other bits than the reference.

    `vectors` makes of arrays what the backend takes, and `settle` brings back what has become of copies.
    """
    rng = np.random.default_rng(offset)
    rows = []
    for n in sizes:
        p, g = make(rng, n, dtype), make(rng, n, dtype)
        rows.append([at_offset(x, offset) for x in (p, g, *states_for(rng, variant.rule, n, dtype, make))])
    wanted = [expected(variant, p, g, states, 0.77) for p, g, *states in rows]
    wanted = [[p, g.copy(), *states] for (_, g, *_), (p, *states) in zip(rows, wanted, strict=True)]
    run_kernel(backend, variant, [tuple(vectors(row)) for row in rows], 0.77, threads)
    settle()
    names = ("p", "g", *variant.rule.states)
    return [
        (variant.label, np.dtype(dtype).name, name, x.size)
        for row, wanted_row in zip(rows, wanted, strict=True)
        for name, x, w in zip(names, row, wanted_row, strict=True)
        if not same_bits(x, w)
    ]


def native_plan(backend: Backend, kernel: Kernel, members: Sequence[np.ndarray], threads: int = 1) -> Any:
    return backend.plan(Runs.one(kernel, [Member.of(x) for x in members]), count_of_steps(), threads)


def bits(x: np.ndarray) -> bytes:
    """The bytes of `x` with every NaN written alike: NaN payloads are the hardware's business."""
    x = np.array(x)
    x[np.isnan(x)] = np.nan
    return x.tobytes()


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and bits(a) == bits(b)


def digest(arrays: list[np.ndarray]) -> str:
    """A hash that any platform must reproduce (little-endian bytes)."""
    total = hashlib.sha256()
    for x in arrays:
        total.update(bits(np.asarray(x)))
    return total.hexdigest()


@contextlib.contextmanager
def on_threads() -> Iterator[None]:
    """The C backend spreads every job of several chunks over its threads, whether that pays or not."""
    from fastoptim.backends.c import lib

    lib.fo_pool_always(1)
    try:
        yield
    finally:
        lib.fo_pool_always(0)


@contextlib.contextmanager
def on_instruction_set(isa: str) -> Iterator[Any]:
    """The C backend on one instruction set, every job on threads; skips loudly where this machine lacks it."""
    import pytest  # the cases are read where there is none, too

    backend = get_backend("c")
    if isa not in backend.isas:
        pytest.skip(f"LOUD: this machine cannot run {isa} (it has {backend.isas})")
    before = backend.isa
    backend.set_isa(isa)
    try:
        with on_threads():
            yield backend
    finally:
        backend.set_isa(before)
