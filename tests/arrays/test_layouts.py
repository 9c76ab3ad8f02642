"""Odd layouts give the exact result."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import numpy as np
import pytest

import fastoptim as fo
from fastoptim.backends.c import _TYPES, lib
from tests.support.cases import same_bits


def strided(x):
    room = np.zeros((*x.shape[:-1], 2 * x.shape[-1] + 1), x.dtype)[..., 1::2][..., : x.shape[-1]]
    room[...] = x
    return room


def misaligned(x):
    room = np.zeros(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    room[...] = x
    return room


LAYOUTS = {
    "C": lambda x: x.copy(),
    "Fortran": np.asfortranarray,
    "transposed": lambda x: np.ascontiguousarray(x.T).T,
    "strided": strided,
    "reversed": lambda x: x[::-1, ::-1].copy()[::-1, ::-1],
    "misaligned": misaligned,
    "memmap": None,
}


def lay(name, x, folder):
    if name != "memmap":
        return LAYOUTS[name](x)
    mapped = np.memmap(folder / f"{np.random.default_rng().integers(1 << 60)}", x.dtype, "w+", shape=x.shape)
    mapped[...] = x
    return mapped


@pytest.mark.parametrize("backend", ["c", "numba", "numpy"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("p_layout", LAYOUTS)
@pytest.mark.parametrize("g_layout", LAYOUTS)
def test_layouts(p_layout, g_layout, dtype, backend, tmp_path):
    rng = np.random.default_rng(0)
    start = rng.standard_normal((6, 11)).astype(dtype)
    plain = start.copy()
    p = lay(p_layout, start, tmp_path)
    base = p.base
    opt, other = (fo.AdamW(x, lr=0.1, backend=b) for x, b in ((p, backend), (plain, "numpy")))
    for _ in range(3):
        g = rng.standard_normal((6, 11)).astype(dtype)
        info = opt.step(lay(g_layout, g, tmp_path), max_norm=1.0)
        assert info == other.step(g, max_norm=1.0)
    assert p.base is base
    assert same_bits(np.asarray(p), plain)


@pytest.mark.parametrize("backend", ["c", "numba", "numpy"])
def test_zero_dimensional_parameters_take_scalars(backend):
    p = np.array(1.0, np.float32)
    opt = fo.SGD(p, lr=0.5, momentum=0.5, backend=backend)
    opt.step(np.float32(2.0))
    opt.step(np.array(2.0, np.float32))
    assert p == np.float32(1 - 1 - 0.5 * 3)
    for wrong in (2.0, np.float64(2.0), 2):
        with pytest.raises(TypeError, match="gradient"):
            opt.step(wrong)


@pytest.mark.parametrize("backend", ["c", "numba", "numpy"])
def test_interleaved_views_are_told_from_overlapping_ones(backend):
    room = np.zeros(20)
    even, odd = room[::2], room[1::2]
    opt = fo.SGD([even, odd], lr=1.0, backend=backend)
    opt.step([np.ones(10), np.full(10, 2.0)])
    assert np.all(even == -1) and np.all(odd == -2)


@pytest.mark.parametrize("size", [1, 3, 7, 33])
def test_states_are_aligned_behind_those_of_narrower_types(size):
    for dtype in (np.float16, np.float32, np.float64):
        p = np.ones(100)
        narrow = np.ones(size, dtype)
        fo.SGD(narrow, momentum=0.9).step(narrow.copy())
        opt = fo.Adam(p, backend="c")
        opt.step(np.ones(100))
        states = [x for x in opt.state["0"].values() if isinstance(x, np.ndarray)]
        assert len(states) == 2 and all(x.flags.aligned for x in states)


def test_states_take_the_layout_of_their_parameter():
    p = np.asfortranarray(np.ones((3, 5), np.float32))
    opt = fo.Adam(p, backend="c")
    opt.step(np.asfortranarray(np.ones((3, 5), np.float32)))
    assert opt.state["0"]["exp_avg"].flags.f_contiguous


@pytest.mark.parametrize("backend", ["c", "numba", "numpy"])
def test_empty_arrays_and_one_element(backend):
    params = [np.zeros((0, 3)), np.zeros(1), np.zeros(0, np.float32)]
    opt = fo.Adam(params, lr=1.0, backend=backend)
    info = opt.step([np.zeros((0, 3)), np.ones(1), np.zeros(0, np.float32)], max_norm=10.0)
    assert info.grad_norm == 1.0 and params[1][0] == pytest.approx(-1.0)


def test_adjoining_arrays_are_stepped_as_one_and_apart_alike():
    rng = np.random.default_rng(1)
    values = [rng.standard_normal(n).astype(np.float32) for n in (5, 1000, 4096, 17)]
    edges = np.cumsum([0, *(x.size for x in values)])
    room, g_room = np.concatenate(values), rng.standard_normal(edges[-1]).astype(np.float32)
    views = [room[a:b] for a, b in pairwise(edges)]
    grads = [g_room[a:b] for a, b in pairwise(edges)]
    packed = fo.SGD(views, lr=0.1, backend="c")
    apart = fo.SGD(values, lr=0.1, backend="c")
    for optimizer in (packed, apart):
        optimizer.step(grads)
    assert all(same_bits(a, b) for a, b in zip(views, values, strict=True))


@pytest.mark.parametrize("backend", ["c", "numba", "numpy"])
@pytest.mark.parametrize("n", [7, 100, 50_001])
def test_gradients_are_only_read(n, backend, tmp_path):
    """Pages that the system lets nobody write to: storing even the same value would end the process."""
    g = np.random.default_rng(0).standard_normal(n + 3).astype(np.float32)
    g.tofile(tmp_path / "gradient")
    mapped = np.memmap(tmp_path / "gradient", np.float32, "r")[3:]
    for make in (fo.SGD, fo.Adam, lambda p, **options: fo.SGD(p, momentum=0.9, **options)):
        p, twin = np.ones(n, np.float32), np.ones(n, np.float32)
        make(p, lr=0.1, backend=backend, threads=2).step(mapped, max_norm=1.0)
        make(twin, lr=0.1, backend="numpy").step(g[3:].copy(), max_norm=1.0)
        assert same_bits(p, twin)


def test_tuples_of_another_make_are_noticed():
    found = partial(lib.fo_set_up, id(np.ndarray), id(np.memmap), id(_TYPES))
    try:
        assert not found(tuple.__basicsize__ - 8)
    finally:
        assert found(tuple.__basicsize__)
