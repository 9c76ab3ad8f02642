"""Sharded over 1, 2, 3 and 4 ranks, every rule gives the bits of one process.

    python tests/proofs/mpi_bits.py                    # all: some minutes on two cores
    python tests/proofs/mpi_bits.py --ranks 2 --steps 8

Every rank also runs the plain optimizer, on NumPy, with the reduced gradients that the ranks' gradients come to; after
every step all parameters must be bit-identical, at the end all states and step counts. Reduced gradients are
known exactly in two ways: with ``deterministic=True`` from sums in the order of ranks, of any gradients; else from
gradients whose sums are exact, whatever the order in which the MPI library adds.

On the way the learning rate changes at every step, some gradients are None on all ranks or on one, and with clipping
one rank's gradient is NaN once, which all must skip.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from itertools import chain, cycle, islice, product
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import fastoptim as fo
from fastoptim.arrays.storage import compute_dtype, small_dtype
from fastoptim.optimizers.names import FAMILIES
from fastoptim.rules.norm import NORM_BLOCK
from fastoptim.rules.table import RULES
from tests.support import mpi

# Every rule, every convention, both kinds of decay, up and down, through the public classes.
CASES: list[tuple[type, dict[str, Any]]] = [
    (fo.SGD, {}),
    (fo.SGD, {"weight_decay": 0.03, "maximize": True}),
    (fo.SGD, {"momentum": 0.87, "dampening": 0.31, "weight_decay": 0.02}),
    (fo.SGD, {"momentum": 0.87, "momentum_mode": "lr_inside"}),
    (fo.SGD, {"momentum": 0.87, "momentum_mode": "damped", "maximize": True}),
    (fo.SGD, {"momentum": 0.87, "nesterov": True, "weight_decay": 0.02}),
    (fo.SGD, {"momentum": 0.87, "nesterov": True, "momentum_mode": "lr_inside"}),
    (fo.Adam, {"betas": (0.83, 0.977)}),
    (fo.Adam, {"betas": (0.83, 0.977), "eps_mode": "hat", "weight_decay": 0.02}),
    (fo.Adam, {"betas": (0.83, 0.977), "amsgrad": True, "maximize": True}),
    (fo.AdamW, {"betas": (0.83, 0.977), "weight_decay": 0.1}),
    (fo.AdamW, {"betas": (0.83, 0.977), "amsgrad": True, "eps_mode": "hat"}),
    (fo.RMSprop, {"momentum": 0.87}),
    (fo.RMSprop, {"centered": True}),
    (fo.RMSprop, {"centered": True, "momentum": 0.87}),
    *((cls, {"adapt": False} if "adapt" in cls._names else {}) for cls in FAMILIES.values() if cls is not fo.NovoGrad),
]

# Parameters, and how they and their states are stored.
STORED: list[tuple[str, dict[str, Any]]] = [
    ("float32", {"state_dtype": "bfloat16"}),
    ("float32", {"state_dtype": "float8", "seed": 3}),
    ("bfloat16", {"state_dtype": "float8", "master": True}),
    ("bfloat16", {"state_dtype": "bfloat16", "rounding": "nearest"}),
    ("float16", {"state_dtype": "float8"}),
    ("float16", {"master": True, "seed": 5}),
]

# Around every border of the norm's blocks, some arrays smaller than a block, one empty, one of no dimension.
SIZES = (NORM_BLOCK + 1, 0, NORM_BLOCK - 1, 2 * NORM_BLOCK + 5, 1)
SHAPES = ((3, NORM_BLOCK), *((size,) for size in SIZES), (), (33, 57), (70, 81))


def rate(t: int) -> float:
    return 0.01 / (1 + t % 7)


def parameters(rng: np.random.Generator, dtype: Any) -> dict[str, np.ndarray]:
    params = {f"p{i}": np.asarray(rng.standard_normal(shape).astype(dtype)) for i, shape in enumerate(SHAPES)}
    params["p8"] = np.asfortranarray(params["p8"])
    return params


def gradients(
    rng: np.random.Generator, params: dict[str, np.ndarray], ranks: int, exact: bool
) -> list[dict[str, np.ndarray]]:
    """One set for every rank. Exact ones are multiples of 1/64 of 13 bits, so that no sum of four rounds."""

    def one(p: np.ndarray) -> np.ndarray:
        if exact:
            return np.asarray((rng.integers(-4096, 4096, p.shape) / 64).astype(p.dtype))
        return np.asarray((rng.standard_normal(p.shape) * 10.0 ** rng.integers(-3, 3)).astype(p.dtype))

    return [{name: one(p) for name, p in params.items()} for _ in range(ranks)]


def reduced(sets: list[dict[str, Any]], params: dict[str, np.ndarray], mean: bool) -> dict[str, Any]:
    """What the ranks' gradients come to: a sum in the order of ranks, None where all have None."""
    result: dict[str, Any] = {}
    for name, p in params.items():
        if all(grads[name] is None for grads in sets):
            result[name] = None
            continue
        dtype = compute_dtype(p.dtype)
        total = np.zeros(p.shape, dtype)
        for number, grads in enumerate(sets):
            g = np.zeros(p.shape, dtype) if grads[name] is None else grads[name].astype(dtype)
            total = g if number == 0 else np.asarray(total + g)
        result[name] = np.asarray(total / dtype.type(len(sets))) if mean else total
    return result


def compare(case: tuple[type, dict], dtype: Any, clip: bool, deterministic: bool, comm: Any, steps: int) -> int:
    """Run one case; returns how many values were compared. AssertionError where a bit differs."""
    kind, hyper = case
    rng = np.random.default_rng(11)
    params = parameters(rng, dtype)
    twins = {name: p.copy(order="K") for name, p in params.items()}
    mean = clip == deterministic  # both kinds of reduction, each with and without clipping
    sharded = fo.distributed.ShardedOptimizer(
        kind,
        params,
        comm=comm,
        deterministic=deterministic,
        reduction="mean" if mean else "sum",
        overwrite_grads=clip and deterministic,
        buffer_bytes=1,  # buckets of one block per rank
        **hyper,
    )
    plain = kind(twins, backend="numpy", **hyper)
    options: dict[str, Any] = {"grad_scale": 0.37}
    if clip:
        options |= {"max_norm": 40.0, "skip_nonfinite": True}
    compared = 0
    for t in range(steps):
        sharded.lr = plain.lr = rate(t)
        sets: list[dict[str, Any]] = gradients(rng, params, comm.size, exact=not deterministic)
        if t % 3 == 1:  # gradients of parameters in 16 bits may be float32
            sets[0] = {name: g.astype(compute_dtype(g.dtype)) for name, g in sets[0].items()}
        if t % 10 == 3:
            for grads in sets:
                grads["p7"] = None
        if t % 10 == 5:
            sets[-1]["p0"] = None
        if clip and t % 10 == 7:
            sets[-1]["p4"][NORM_BLOCK + 2] = np.nan
        expected = plain.step(reduced(sets, params, mean), **options)
        found = sharded.step(sets[comm.rank], **options)
        assert found == expected or (not found.applied and not expected.applied), (t, found, expected)
        assert found.applied == (not clip or t % 10 != 7)
        for name, p in params.items():
            assert p.tobytes("A") == twins[name].tobytes("A"), f"step {t}: parameter {name} differs"
            compared += p.size
    states, wanted = sharded.state_dict(), plain.state_dict()
    assert states["param_groups"] == wanted["param_groups"]
    for name, entry in wanted["state"].items():
        own = states["state"][name]
        assert own.keys() == entry.keys() and own["step"] == entry["step"], f"states of {name}"
        for slot in entry.keys() - {"step"}:
            assert np.array_equal(own[slot], entry[slot]), f"{slot} of {name} differs"
            assert np.asarray(own[slot]).tobytes() == np.asarray(entry[slot]).tobytes(), f"{slot} of {name} differs"
            compared += np.size(own[slot])
    return compared


def combinations(every: int) -> Iterator[tuple[tuple[type, dict], Any, bool, bool]]:
    """(case, dtype, clip, deterministic): each `every`-th of all, whose end is what is stored in fewer bits."""
    whole = product(CASES, (np.float32, np.float64), (False, True), (False, True))
    low = (
        ((kind, hyper | storage), small_dtype(dtype), clip, deterministic)
        for ((kind, hyper), (dtype, storage)), clip, deterministic in product(
            zip(CASES, cycle(STORED), strict=False), (False, True), (False, True)
        )
    )
    return islice(chain(whole, low), 0, None, every)


def check_coverage() -> None:
    """Every update rule must be among the cases."""
    reached = set()
    for kind, hyper in CASES:
        opt = kind(np.ones(1), **hyper)
        reached.add(opt._spec_of(opt.param_groups[0]).kernel.rule.name)
    no_case = {"average", "novograd", *(name for name in RULES if name.startswith("cautious"))}  # need whole arrays
    missing = set(RULES) - reached - no_case
    assert not missing, f"no case for {missing}"


def work(steps: int, every: int) -> None:
    """What each rank does."""
    from mpi4py import MPI

    check_coverage()
    count = compared = 0
    for case, dtype, clip, deterministic in combinations(every):
        compared += compare(case, dtype, clip, deterministic, MPI.COMM_WORLD, steps)
        count += 1
    if MPI.COMM_WORLD.rank == 0:
        print(
            f"{MPI.COMM_WORLD.size} ranks: {count} cases of {steps} steps, {compared:,} values compared on each rank, "
            "0 bits differ",
            flush=True,
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--every", type=int, default=1, help="take every Nth case only")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.steps, options.every)
        return 0
    failures = 0
    for ranks in options.ranks:
        done = mpi.run(ranks, __file__, "--worker", "--steps", options.steps, "--every", options.every, timeout=3600)
        print(done.stdout, end="", flush=True)
        if done.returncode:
            failures += 1
            print(f"{ranks} ranks: FAILED\n{done.stderr[-4000:]}", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
