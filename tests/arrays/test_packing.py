"""fo.pack: one aligned buffer, and steps over packed models with the bits of any other."""

from __future__ import annotations

import numpy as np
import pytest

import fastoptim as fo
from fastoptim.arrays import layout

SHAPES = [(5, 3), (), (7,), (0,), (2, 3, 4), (300,)]


def model(seed=0, dtypes=(np.float32,)):
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.normal(size=shape)).astype(dtypes[i % len(dtypes)]) for i, shape in enumerate(SHAPES)]


def address(x):
    return x.__array_interface__["data"][0]


@pytest.mark.parametrize("dtypes", [(np.float32,), (np.float64,), (np.float32, np.float64)])
def test_packed_arrays_lie_side_by_side(dtypes):
    params = model(dtypes=dtypes)
    packed = fo.pack(params)
    assert [(x.shape, x.dtype, x.tolist()) for x in packed] == [(x.shape, x.dtype, x.tolist()) for x in params]
    assert all(x.base is packed[0].base and x.flags.c_contiguous and x.flags.aligned for x in packed)
    ordered = sorted(packed, key=address)
    ends = [address(x) + x.nbytes for x in ordered]
    assert [address(x) for x in ordered[1:]] == ends[:-1] and address(ordered[0]) % 64 == 0
    assert not any(np.shares_memory(a, b) for a, b in zip(params, packed, strict=True) if a.size)


def test_structure_is_kept():
    tree = {"layers": [{"w": np.ones((2, 2)), "b": np.zeros(2)}, {"w": np.full((2, 1), 3.0)}], "scale": np.array(2.0)}
    packed = fo.pack(tree)
    assert packed["layers"][1]["w"].tolist() == [[3.0], [3.0]] and packed["scale"].shape == ()
    assert list(packed) == ["layers", "scale"] and list(packed["layers"][0]) == ["w", "b"]
    assert fo.pack(np.ones(3)).tolist() == [1, 1, 1]


def test_odd_layouts_become_plain():
    whole = np.arange(24.0).reshape(4, 6)
    packed = fo.pack([whole[:, ::2], whole.T, whole[::-1]])
    assert (packed[0] == whole[:, ::2]).all() and (packed[1] == whole.T).all() and (packed[2] == whole[::-1]).all()
    assert all(x.flags.c_contiguous for x in packed)


@pytest.mark.parametrize("dtypes", [(np.float32,), (np.float32, np.float64)])
def test_packing_twice_copies_nothing(dtypes):
    packed = fo.pack(model(dtypes=dtypes))
    assert all(a is b for a, b in zip(packed, fo.pack(packed), strict=True))
    buffer = np.zeros(10)
    views = [buffer[:4].reshape(2, 2), buffer[4:]]
    assert all(a is b for a, b in zip(views, fo.pack(views), strict=True))
    assert not np.shares_memory(fo.pack([buffer[:4], buffer[5:]])[0], buffer)  # a gap


@pytest.mark.parametrize("backend", ["c", "numpy"])
@pytest.mark.parametrize("cls, options", [(fo.SGD, {"momentum": 0.9}), (fo.AdamW, {"amsgrad": True})])
def test_steps_have_the_bits_of_separate_arrays(cls, options, backend):
    dtypes = (np.float32, np.float64)
    separate, packed, gradients = model(dtypes=dtypes), fo.pack(model(dtypes=dtypes)), fo.pack(model(1, dtypes))
    one, other = (cls(params, 0.1, backend=backend, **options) for params in (separate, packed))
    for _ in range(3):
        one.step(model(1, dtypes))
        other.step(gradients)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(separate, packed, strict=True))
    for name in one.state:
        for slot in one.state[name].keys() - {"step"}:
            assert one.state[name][slot].tobytes() == other.state[name][slot].tobytes()


def test_states_of_packed_parameters_lie_side_by_side():
    packed = fo.pack(model())
    opt = fo.Adam(packed)
    opt.step(fo.pack(model(1)))
    for slot in ("exp_avg", "exp_avg_sq"):
        states = [opt.state[str(i)][slot] for i in range(len(packed))]
        assert len(layout.runs_side_by_side(states)) == 1
    separate = fo.Adam(model())
    separate.step(model(1))
    assert len(layout.runs_side_by_side([separate.state[str(i)]["exp_avg"] for i in range(len(SHAPES))])) > 1


def test_what_cannot_be_packed_is_named():
    with pytest.raises(TypeError, match="'b': expected a NumPy array, got float"):
        fo.pack({"a": np.ones(2), "b": 1.0})
    with pytest.raises(TypeError, match="'1': expected native float32 or float64"):
        fo.pack([np.ones(2), np.ones(2, np.int64)])
    with pytest.raises(TypeError, match="'0': expected native float32 or float64"):
        fo.pack([np.ones(2, ">f4")])


@pytest.mark.parametrize(
    "odd", [np.ones((4, 6))[::2].T, np.asfortranarray(np.ones((2, 3)))], ids=["strided", "Fortran"]
)
def test_one_odd_array_is_packed_too(odd):
    packed = fo.pack({"w": odd, "b": np.zeros(3, np.float32)})
    assert all(x.flags.c_contiguous for x in packed.values()) and np.array_equal(packed["w"], odd)
    assert packed["w"].base is packed["b"].base is not None
