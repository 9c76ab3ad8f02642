"""What tests go through of arrays of fewer bits: storages, contents that a step might have left, two steps compared."""

from __future__ import annotations

import numpy as np

from fastoptim.arrays.storage import small_dtype, state_arrays
from fastoptim.backends import KernelCall
from fastoptim.rules.codecs import Coding, Stored, encode
from fastoptim.rules.reference import update_stored
from fastoptim.rules.table import kernels

from .cases import VARIANTS, raw_bits, same_bits

SIZES = (1, 127, 129, 515, 4095, 8321)
# parameter, gradient, states, master copy
STORAGES = (
    ("float32", "float32", "bfloat16", False),
    ("float32", "float32", "float8", False),
    ("bfloat16", "bfloat16", "bfloat16", False),
    ("bfloat16", "float32", "float8", True),
    ("float16", "float16", "float32", False),
    ("float16", "float16", "float8", True),
    ("bfloat16", "bfloat16", "float32", False),
    ("bfloat16", "bfloat16", "bfloat16", True),
    ("bfloat16", "float32", "bfloat16", False),
)
ONE_OF_EACH = [next(v for v in VARIANTS if v.kernel == kernel) for kernel in kernels()]
FUSED = [v for v in ONE_OF_EACH if v.rule.name in ("momentum", "adam")]  # have loops of their own in C


def narrow(x, storage, stored=None):
    """An array of a storage without blocks, from float32."""
    codes = np.zeros(x.shape, small_dtype(storage))
    if storage == "float32":
        codes[...] = x
    else:
        encode(x, codes, None, Coding(storage, False, True, 0, 0))
    return codes


def rows_for(rng, rule, storages, nearest, make, sizes=SIZES):
    """(arrays, stored) of parameters of several sizes, with contents that any step might have left."""
    parameter, gradient, state, master = storages
    rows = []
    for number, n in enumerate(sizes):
        squares = tuple(name in rule.squares for name in rule.states)
        by = Stored(parameter, state, squares, 99, number, 128 * number, nearest, master)
        p, g = make(rng, n, np.float32), make(rng, n, np.float32)
        described = state_arrays(rule, by, (n,), small_dtype(parameter))
        states = [np.zeros(shape, dtype) for shape, dtype in described.values()]
        arrays = [narrow(p, parameter), narrow(g, gradient), *states]
        if make is raw_bits and gradient != "float32":
            arrays[1].view(np.uint16)[::97] = 0xFFC1  # a NaN that nothing encodes: gradients are not written to
        for i, square in enumerate(squares):
            x = np.abs(make(rng, n, np.float32)) if square else make(rng, n, np.float32)
            scales = states[len(squares) + i] if by.scales else None
            if state == "float32":
                states[i][...] = x
            else:
                encode(x, states[i], scales, by.slot(2 + i, 1))
        if master:
            states[-1][...] = p
        rows.append((arrays, by))
    return rows


def copies(rows):
    return [([x.copy() for x in arrays], by) for arrays, by in rows]


def differing(rows, wanted):
    """Which arrays differ; codes are compared as they are, since NaN has only one."""
    found = []
    for (arrays, by), (others, _) in zip(rows, wanted, strict=True):
        for i, (x, y) in enumerate(zip(arrays, others, strict=True)):
            equal = same_bits(x, y) if x.dtype == np.float32 else x.tobytes() == y.tobytes()
            if not equal:
                found.append((by.parameter, by.state, x.size, i))
    return found


def check(backend, variant, storages, nearest, make, threads, seed=0, sizes=SIZES, vectors=tuple, settle=lambda: None):
    """Two steps by a backend against the reference; `vectors` and `settle` as for `cases.differing`."""
    rng = np.random.default_rng(seed)
    rule = variant.rule
    if not rule.states and storages[0] == "float32":
        return
    rows = rows_for(rng, rule, storages, nearest, make, sizes)
    wanted = copies(rows)
    call = KernelCall(variant.kernel, [vectors(arrays) for arrays, _ in rows], [by for _, by in rows])
    launch = backend.prepare([call], threads)
    for t in (5, 6):
        scalars = variant.scalars(0.77, t=t)
        for arrays, by in wanted:
            update_stored(variant.kernel, arrays, by, scalars, t)
        launch([(*scalars, t)])
    settle()
    assert not differing(rows, wanted), (variant.label, storages, nearest)
