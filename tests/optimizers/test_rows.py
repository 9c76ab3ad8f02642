"""`fo.Rows`: exact steps have the bits of dense ones, lazy ones leave other rows alone, bad ones change nothing."""

from __future__ import annotations

import copy

import numpy as np
import pytest

import fastoptim as fo
from fastoptim.adapters import cs231n, dicts, numpy_ml, per_array
from fastoptim.backends import available
from fastoptim.optimizers.sparse import SparseStep
from tests.support.cases import on_threads, raw_bits, same_bits

BACKENDS = [name for name in ("numpy", "c", "numba") if available(name) is None]
DTYPES = (np.float32, np.float64)


def dense(rows, shape):
    """What np.add.at makes of rows, one value after the other."""
    d = np.zeros(shape, rows.values.dtype)
    with np.errstate(all="ignore"):
        np.add.at(d, rows.indices, rows.values)
    return d


def some_rows(rng, n, k, width, T, make=None, index=np.int64):
    values = (
        rng.standard_normal((k, *width)).astype(T) if make is None else make(rng, k * max(1, int(np.prod(width))), T)
    )
    return fo.Rows(rng.integers(0, n, k).astype(index), values.reshape(k, *width))


SHAPES = [(300, 5), (70, 64), (9000,), (40, 3, 3), (3, 9000)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", [fo.SGD, fo.Adagrad])
def test_exact_steps_have_the_bits_of_dense_ones(kind, backend):
    rng = np.random.default_rng(4)
    for shape in SHAPES:
        for T in DTYPES:
            start = raw_bits(rng, int(np.prod(shape)), T).reshape(shape)
            p, q = {"t": start.copy(), "d": np.ones(7, T)}, {"t": start.copy(), "d": np.ones(7, T)}
            one, two = kind(p, lr=0.03, backend=backend), kind(q, lr=0.03, backend=backend)
            ks = (1, 0, 40, 700, shape[0])
            for t, k in enumerate(ks):
                make = raw_bits if t % 2 else None
                rows = some_rows(rng, shape[0], k, shape[1:], T, make, np.int32 if t % 2 else np.int64)
                d = rng.standard_normal(7).astype(T)
                options = [{}, {"grad_scale": 0.5}, {"max_norm": 0.7}, {"grad_scale": -0.25}, {"max_norm": 1e9}][t]
                a = one.step({"t": rows, "d": None if t == 2 else d}, **options)
                b = two.step({"t": dense(rows, shape), "d": None if t == 2 else d}, **options)
                assert str(a) == str(b)  # the norm too, to the last bit; NaN is NaN
                assert same_bits(p["t"], q["t"]) and same_bits(p["d"], q["d"]), (shape, T, t)
            for name in p:
                assert one.state[name].keys() == two.state[name].keys()
                for slot, x in one.state[name].items():
                    y = two.state[name][slot]
                    assert x == y if slot == "step" else same_bits(x, y), (name, slot)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", [{"grad_scale": 0.0}, {"max_norm": 0.0}], ids=["scale", "norm"])
def test_zero_times_a_scale_of_minus_zero_reaches_every_row(options, backend):
    p, q, rows = np.full((3, 2), -0.0), np.full((3, 2), -0.0), fo.Rows(np.array([1]), np.ones((1, 2)))
    fo.SGD(p, lr=0.5, maximize=True, backend=backend).step(rows, **options)
    fo.SGD(q, lr=0.5, maximize=True, backend=backend).step(dense(rows, p.shape), **options)
    assert same_bits(p, q)


@pytest.mark.parametrize("backend", BACKENDS)
def test_lazy_steps_touch_their_rows_alone(backend):
    rng = np.random.default_rng(5)
    kinds = [
        (fo.Adam, {"amsgrad": True}, True),
        (fo.SGD, {"momentum": 0.9, "nesterov": True, "maximize": True}, True),
        (fo.SparseAdam, {}, False),
    ]
    for kind, options, lazy in kinds:
        for T in DTYPES:
            table = rng.standard_normal((50, 6)).astype(T)
            opt = kind(table, lr=0.1, backend=backend, **options)
            reference, states = table.copy(), None
            for t in range(1, 6):
                rows = some_rows(rng, 50, 12, (6,), T)
                before = copy.deepcopy(opt.state_dict()["state"]["0"])
                opt.step(fo.Rows(rows.indices, rows.values, lazy=lazy))
                touched = np.unique(rows.indices)
                tile = np.ascontiguousarray(reference[touched])
                twin = kind(tile, lr=0.1, backend="numpy", **options)
                twin.step(np.zeros_like(tile))
                saved = twin.state_dict()
                saved["state"]["0"] = {"step": t - 1}
                if states is None:
                    states = {name: np.zeros_like(reference) for name in opt.state["0"] if name != "step"}
                saved["state"]["0"] |= {name: x[touched] for name, x in states.items()}
                tile[...] = reference[touched]
                twin.load_state_dict(saved)
                twin.step(dense(rows, (50, 6))[touched])
                reference[touched] = tile
                for name, x in states.items():
                    x[touched] = twin.state["0"][name]
                assert same_bits(table, reference)
                assert opt.state["0"]["step"] == t
                for name, x in states.items():
                    assert same_bits(opt.state["0"][name], x), name
                    others = np.setdiff1d(np.arange(50), touched)
                    if name in before:
                        assert same_bits(opt.state["0"][name][others], before[name][others])


@pytest.mark.parametrize("backend", BACKENDS)
def test_ftrl_from_zeros_has_the_bits_of_the_dense_step(backend):
    rng = np.random.default_rng(10)
    p, q = np.zeros((60, 3), np.float32), np.zeros((60, 3), np.float32)
    options = {"lr": 0.1, "l1": 0.3, "l2": 0.01, "backend": backend}
    one, two = fo.FTRL(p, **options), fo.FTRL(q, **options)
    for _ in range(12):
        rows = some_rows(rng, 60, 9, (3,), np.float32)
        one.step(fo.Rows(rows.indices, rows.values, lazy=True))
        two.step(dense(rows, (60, 3)))
    assert same_bits(p, q) and np.count_nonzero(p == 0) > 0 and np.count_nonzero(p) > 0


def test_adagrad_without_eps_is_not_exact():
    with pytest.raises(ValueError, match="another algorithm"):  # 0 / 0 in rows that have had no gradient
        fo.Adagrad(np.ones((3, 2)), eps=0.0).step(fo.Rows(np.array([1]), np.ones((1, 2))))


def test_odd_layouts_and_neighbouring_rows():
    rng = np.random.default_rng(6)
    wide = rng.standard_normal((40, 12))
    for make in (lambda x: x[:, ::2], np.asfortranarray, lambda x: x[::-1], lambda x: x):
        p, q = make(wide.copy()), make(wide.copy())
        one, two = fo.SGD(p, lr=0.1), fo.SGD(q, lr=0.1)
        index = np.array([3, 4, 5, 39, 0, 5, 6])
        values = rng.standard_normal((7, p.shape[1]))
        one.step(fo.Rows(index, values))
        two.step(dense(fo.Rows(index, values), p.shape))
        assert same_bits(np.asarray(p), np.asarray(q))


def test_many_values_of_one_row_are_added_in_their_order():
    rng = np.random.default_rng(7)
    for k in (3, 60, 64, 65, 500):
        rows = fo.Rows(
            rng.integers(0, 2, k), (rng.standard_normal((k, 3)) * 10.0 ** rng.integers(-8, 8, (k, 1))).astype("f4")
        )
        assert same_bits(rows.to_dense(4), dense(rows, (4, 3)))
    assert np.signbit(fo.Rows(np.array([1]), np.array([-0.0])).to_dense(2)).tolist() == [False, False]


def test_it_is_torchs_sparse_adam():
    torch = pytest.importorskip("torch", reason="LOUD: torch is missing, so SparseAdam was not compared with it")
    rng = np.random.default_rng(8)
    table = rng.standard_normal((30, 4))
    peer = torch.nn.Parameter(torch.tensor(table.copy()))
    one = fo.SparseAdam(table, lr=0.05, betas=(0.8, 0.95), eps=1e-6)
    two = torch.optim.SparseAdam([peer], lr=0.05, betas=(0.8, 0.95), eps=1e-6)
    torch.sparse.check_sparse_tensor_invariants.enable()
    for _ in range(50):
        rows = some_rows(rng, 30, 9, (4,), np.float64)
        one.step(rows)
        peer.grad = torch.sparse_coo_tensor(torch.tensor(rows.indices[None]), torch.tensor(rows.values), (30, 4))
        two.step()
    np.testing.assert_allclose(table, peer.detach().numpy(), rtol=0, atol=1e-12)


# --- Refusals


@pytest.mark.parametrize(
    ("index", "values", "error", "message"),
    [
        ([0, -1], (2, 4), ValueError, r"'t': row -1 of Rows is not in 0 ... 9"),
        ([0, 10], (2, 4), ValueError, r"'t': row 10 of Rows is not in 0 ... 9"),
        ([0, 1], (2, 5), ValueError, r"'t': expected shape \(2, 4\), got \(2, 5\)"),
        ([0, 1], (2, 4, 1), ValueError, r"'t': expected shape \(2, 4\)"),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_rows_change_nothing(index, values, error, message, backend):
    params = {"a": np.ones(5), "t": np.ones((10, 4)), "z": np.ones(3)}
    before = copy.deepcopy(params)
    opt = fo.SGD(params, lr=0.1, backend=backend)
    grads = {"a": np.ones(5), "t": fo.Rows(np.array(index), np.ones(values)), "z": np.ones(3)}
    for options in ({}, {"max_norm": 1.0}, {"skip_nonfinite": True}):
        with pytest.raises(error, match=message):
            opt.step(grads, **options)
    assert all(same_bits(params[name], before[name]) for name in params)
    assert {entry["step"] for entry in opt.state.values()} == {0}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([0.5], np.ones((1, 2))), TypeError, "must be int32 or int64, got float64"),
        ((np.array([True]), np.ones((1, 2))), TypeError, "must be int32 or int64, got bool"),
        ((np.array([1], np.uint64), np.ones((1, 2))), TypeError, "must be int32 or int64"),
        ((np.array([[1, 2]]), np.ones((1, 2, 3))), ValueError, r"one index for each .* flatten, indices\.ravel\(\)"),
        ((np.array([1, 2]), np.ones((1, 2))), ValueError, "one index for each of its values"),
        (([1], [[1.0]]), TypeError, "must be a NumPy array"),
        ((np.ma.array([1], mask=[True]), np.ones((1, 2))), TypeError, "must be a NumPy array, got MaskedArray"),
        (([1], np.ones((1, 2), np.int64)), TypeError, "must be native float32 or float64"),
        (([1], np.ones((1, 2), ">f4")), TypeError, "foreign byte order"),
    ],
)
def test_what_are_no_rows(arguments, error, message):
    with pytest.raises(error, match=message):
        fo.Rows(*arguments)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_table_without_rows_shares_no_scales(backend):
    opt = fo.SparseAdam(np.zeros((0, 3), np.float32), state_dtype="float8", backend=backend)
    assert opt.step(fo.Rows(np.zeros(0, int), np.zeros((0, 3), np.float32))).applied


@pytest.mark.parametrize("name, other", [("indices", np.array([1.5])), ("indices", [1]), ("values", [[1.0]])])
def test_rows_are_checked_again_in_the_step(name, other):
    p, rows = np.ones((4, 1)), fo.Rows(np.array([1]), np.ones((1, 1)))
    setattr(rows, name, other)
    for backend in BACKENDS:
        with pytest.raises(TypeError, match=f"{name} of Rows must be"):
            fo.SGD(p, backend=backend).step(rows)
    assert np.all(p == 1)


def test_another_algorithm_is_asked_for_by_name_and_decay_refused():
    table = np.ones((10, 4))
    rows = fo.Rows(np.array([1, 2]), np.ones((2, 4)))
    lazy = fo.Rows(rows.indices, rows.values, lazy=True)
    for opt in (fo.Adam(table), fo.AdamW(table, weight_decay=0), fo.SGD(table, momentum=0.9), fo.RMSprop(table)):
        with pytest.raises(ValueError, match=r"another algorithm: ask for it, Rows.*lazy=True.* or fo.SparseAdam"):
            opt.step(rows)
    for opt in (fo.SGD(table, weight_decay=0.1), fo.AdamW(table), fo.SparseAdam(table, weight_decay=0.1)):
        with pytest.raises(ValueError, match=r"'0': weight decay acts on every row.*fo.groups\(params, {'0': "):
            opt.step(lazy)
    with pytest.raises(TypeError, match="expected dtype float64, got float32"):
        fo.SGD(table).step(fo.Rows(rows.indices, rows.values.astype("f4")))
    with pytest.raises(ValueError, match="a parameter of rows"):
        fo.SGD(np.array(1.0)).step(fo.Rows(np.array([0]), np.ones(1)))
    assert same_bits(table, np.ones((10, 4)))
    with pytest.raises(TypeError, match=r"got Rows.*rows.to_dense"):
        fo.clip_grad_norm([rows], 1.0)


@pytest.mark.parametrize("options", [{}, {"max_norm": 1.0}, {"grad_scale": 2.0, "skip_nonfinite": True}], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cls", [fo.LAMB, fo.LARS])
def test_rows_beside_an_array_that_is_measured_are_refused_on_every_backend(cls, backend, options):
    """The C extension stepped them where their own group takes no norms."""
    table, w = np.ones((4, 2)), np.ones(3)
    opt = cls([{"params": [table], "adapt": False}, {"params": [w]}], lr=0.1, backend=backend)
    rows = fo.Rows(np.array([1]), np.ones((1, 2)), lazy=True)
    with pytest.raises(TypeError, match=r"norms of whole arrays, not Rows: rows.to_dense\(n\)"):
        opt.step([[rows], [np.ones(3)]], **options)
    assert (table == 1).all() and (w == 1).all() and [entry["step"] for entry in opt.state.values()] == [0, 0]


def test_nonfinite_rows():
    table, other = np.ones((10, 4)), np.ones((10, 4))
    bad = fo.Rows(np.array([1]), np.full((1, 4), np.inf))
    opt = fo.SGD(table, lr=0.1)
    info = opt.step(bad, skip_nonfinite=True)
    assert not info.applied and same_bits(table, np.ones((10, 4))) and opt.state["0"]["step"] == 0
    with np.errstate(all="ignore"):
        opt.step(fo.Rows(np.array([1]), np.full((1, 4), np.nan)), max_norm=1.0)
        fo.SGD(other, lr=0.1).step(dense(fo.Rows(np.array([1]), np.full((1, 4), np.nan)), (10, 4)), max_norm=1.0)
    assert same_bits(table, other) and np.isnan(table).all()  # as the dense step has it: the factor is NaN


def test_fit_functional_accumulation_and_files(tmp_path):
    rng = np.random.default_rng(9)
    user, wanted = rng.integers(0, 20, 400), rng.standard_normal(20)

    def loss_and_grad(params, batch):
        index, y = batch
        error = params["t"][index] - y
        return float(np.mean(error**2)), {"t": fo.Rows(index, 2 * error / len(index))}

    params = {"t": np.zeros(20)}
    data = user, wanted[user]
    fo.fit(loss_and_grad, params, data, fo.SGD(params, lr=2.0), epochs=30, batch_size=40, rng=0, diagnose=False)
    assert np.abs(params["t"] - wanted).max() < 0.01
    with pytest.raises(TypeError, match=r"accumulate needs NumPy arrays, got Rows: .*to_dense"):
        fo.fit(loss_and_grad, params, data, fo.SGD(params), epochs=1, accumulate=2, diagnose=False)
    result = fo.fit(loss_and_grad, params, data, "sparse_adam", epochs=1, diagnose=False)
    assert repr(result.optimizer).startswith("SparseAdam(1 parameter, ")
    p, q = np.ones((6, 2)), np.ones((6, 2))
    rows = fo.Rows(np.array([5, 0]), np.ones((2, 2)))
    fo.functional.sgd(p, rows, lr=0.5)
    fo.functional.sgd(q, rows.to_dense(6), lr=0.5)
    assert same_bits(p, q) and p[5, 0] == 0.5
    mapped = np.memmap(tmp_path / "t.bin", np.float32, "w+", shape=(3000, 40))
    mapped[:] = 1.0
    opt = fo.SparseAdam(mapped, lr=0.1, state_dir=tmp_path)
    opt.step(fo.Rows(np.array([2999, 7]), np.ones((2, 40), np.float32)))
    assert (mapped[[7, 2999]] < 0.95).all() and (mapped[8:2999] == 1.0).all()


def test_rows_that_were_changed_since_are_checked_again():
    table = np.ones((10, 4))
    rows = fo.Rows(np.array([1, 2]), np.ones((2, 4)))
    for indices, values in ((np.array([1]), rows.values), (rows.indices, np.ones((2, 3))), (rows.indices, np.ones(2))):
        rows.indices, rows.values = indices, values
        with pytest.raises(ValueError, match="gradient of parameter '0'"):
            fo.SGD(table).step(rows)
    assert same_bits(table, np.ones((10, 4)))


# --- One native call


def stepped(opt, params, grads, **options):
    """All bytes after a step."""
    opt.step(grads, **options)
    states = {f"{k}.{s}": np.asarray(x).tobytes() for k, entry in opt.state.items() for s, x in entry.items()}
    return {k: x.tobytes() for k, x in params.items()} | states


@pytest.mark.parametrize("threads", [1, 3])
def test_the_native_call_has_the_bits_of_the_reference(threads):
    """Chunks, runs of neighbours, wide rows, rows named a thousand times; sorted, not sorted, and a few more tables."""
    rng = np.random.default_rng(11)
    draws = [
        ("random", lambda n, k: rng.integers(0, n, k)),
        ("in order", lambda n, k: np.sort(rng.integers(0, n, k))),
        ("all", lambda n, k: np.arange(n)),
        ("all backwards", lambda n, k: np.arange(n)[::-1]),
        ("few of many values", lambda n, k: rng.integers(0, 3, k) * (n // 3)),
        ("high bytes", lambda n, k: np.array([n - 1, 0, 256 % n, n - 1, 65536 % n])),
    ]
    for shape, k in (((3000, 16), 4000), ((70_000,), 40_000), ((5, 9001), 11), ((300, 0), 7)):
        for what, draw in draws:
            index = draw(shape[0], k)
            for T, kind in ((np.float32, fo.Adam), (np.float64, fo.Adagrad)):
                values = rng.standard_normal((len(index), *shape[1:])).astype(T)
                start = rng.standard_normal(shape).astype(T)
                found = []
                for backend in ("c", "numpy"):
                    params = {"a": start[:3].copy(), "t": start.copy(), "u": start.copy()}
                    opt = kind(params, lr=0.1, backend=backend, threads=threads)
                    grads = {"a": start[:3], "t": fo.Rows(index.astype(np.int32), values, lazy=True)}
                    grads["u"] = fo.Rows(index[:1], values[:1], lazy=True)
                    with on_threads():
                        found.append(stepped(opt, params, grads))
                assert found[0] == found[1], (shape, what, T)


def test_the_native_call_is_taken_and_others_are_not_touched(monkeypatch):
    def other_way(*_):
        raise AssertionError("the way without a native plan")

    rng = np.random.default_rng(12)
    table, rows = np.ones((50, 4)), some_rows(rng, 50, 20, (4,), np.float64)
    copies = [table.copy() for _ in range(3)]
    with monkeypatch.context() as patch:
        patch.setattr(SparseStep, "__init__", other_way)
        fo.SGD(table, backend="c").step(rows)
        narrow = fo.Rows(rows.indices.astype(np.int32), rows.values)
        fo.functional.sgd(copies[0], narrow, lr=1e-3, backend="c")
        dicts.SGD(1e-3).update({"t": copies[1]}, {"t": fo.Rows(rows.indices, rows.values)})
        fo.SGD(copies[1]).step(rows, max_norm=0.5, grad_scale=0.7, skip_nonfinite=True)  # the norm, too
        with pytest.raises(AssertionError):  # values that are part of the table must be copied first
            fo.SGD(table).step(fo.Rows(np.array([1, 2]), table[2:4]))
        with pytest.raises(AssertionError):  # and those that begin before it and end within
            fo.SGD(table[2:]).step(fo.Rows(np.array([1, 2]), table[1:3]))
    fo.SGD(copies[2], backend="numpy").step(rows)
    assert same_bits(copies[0], table) and same_bits(copies[2], table)
    fo.SGD(copies[2], backend="numpy").step(rows, max_norm=0.5, grad_scale=0.7)
    assert same_bits(copies[1], copies[2])
    zeros = np.full((4, 2), -0.0)
    fo.SGD(zeros).step(fo.Rows(np.array([1]), np.full((1, 2), -0.0)))
    assert np.signbit(zeros).all()  # -0 - +0, for sums begin at zero
    opt = fo.SGD(table, lr=1.0)
    opt.step(rows)
    before = table.copy()
    opt.step(np.ones_like(table))  # nothing is left of the rows
    assert same_bits(table, before - 1.0)
    p, q = table.copy(), table.copy()
    fo.SGD(p, lr=0.5).step(fo.Rows(np.array([3, 2]), p[2:4]))
    fo.SGD(q, lr=0.5).step(fo.Rows(np.array([3, 2]), q[2:4].copy()))
    assert same_bits(p, q)


def test_the_norm_forgets_the_rows_of_the_step_before():
    table = np.ones((3, 5000))
    opt = fo.SGD(table, lr=0.1)
    for row in (0, 2, 1):
        rows = fo.Rows(np.array([row]), np.ones((1, 5000)))
        assert opt.step(rows, max_norm=1.0).grad_norm == np.sqrt(5000.0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_low_precision_have_the_bits_of_the_dense_step(backend):
    small = pytest.importorskip("ml_dtypes", reason="LOUD: pip install ml_dtypes to test Rows with bfloat16 and float8")
    rng = np.random.default_rng(13)
    cases = [
        (np.float32, (40, 3, 5), {"state_dtype": "bfloat16"}),
        (np.float32, (40, 128), {"state_dtype": "float8"}),
        (small.bfloat16, (30, 256), {"state_dtype": "float8", "master": True}),
        (np.float16, (300,), {"rounding": "nearest"}),
    ]
    for T, shape, options in cases:
        table = rng.standard_normal(shape).astype(T)
        opt = fo.SparseAdam(table, lr=0.1, seed=5, backend=backend, **options)
        opt.step(fo.Rows(np.zeros(0, np.int64), np.zeros((0, *shape[1:]), np.float32)))  # makes states, changes nothing
        for t in range(2, 6):
            rows = some_rows(rng, shape[0], 12, shape[1:], np.float32)
            twin_table = table.copy()
            twin = fo.SparseAdam(twin_table, lr=0.1, seed=5, backend="numpy", **options)
            twin.load_state_dict(opt.state_dict())
            before = {name: np.array(x) for name, x in twin.state["0"].items()} | {"p": table.copy()}
            twin.step(dense(rows, shape))
            opt.step(rows, **({"max_norm": 1e9} if t == 3 else {}))
            touched = np.zeros(shape[0], bool)
            touched[rows.indices] = True
            after, wanted = ({**x.state["0"], "p": p} for x, p in ((opt, table), (twin, twin_table)))
            for name, x in after.items():
                if name != "step":
                    chosen = np.repeat(touched, x.size // shape[0])
                    for part, whole in ((chosen, wanted), (~chosen, before)):
                        flat = (np.asarray(y).reshape(-1)[part].tobytes() for y in (x, whole[name]))
                        assert len(set(flat)) == 1, (T, options, t, name)
    short = np.ones((4, 2), np.float32)
    with pytest.raises(
        ValueError, match="'0': float8 states have one scale for 128 elements, which rows of 2 would share"
    ):
        fo.SparseAdam(short, backend=backend, state_dtype="float8").step(fo.Rows([1], np.ones((1, 2), np.float32)))
    assert (short == 1).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_exact_steps_of_16_bits_have_the_bits_of_dense_ones(backend):
    small = pytest.importorskip("ml_dtypes", reason="LOUD: pip install ml_dtypes to test Rows with bfloat16 and float8")
    rng = np.random.default_rng(14)
    for T, kind, options in (
        (small.bfloat16, fo.SGD, {}),
        (np.float16, fo.SGD, {}),
        (np.float32, fo.Adagrad, {"state_dtype": "bfloat16", "initial_accumulator_value": 0.1}),
    ):
        with np.errstate(all="ignore"):
            p = raw_bits(rng, 700, np.float32).astype(T).reshape(100, 7)
        q = p.copy()
        one, two = (kind(x, lr=0.1, backend=backend, **options) for x in (p, q))
        for scale in (1.0, 0.5, -1.0):
            rows = some_rows(rng, 100, 30, (7,), np.float32)
            one.step(rows, grad_scale=scale)
            two.step(dense(rows, p.shape), grad_scale=scale)
            assert same_bits(p, q), (T, scale)
    with pytest.raises(ValueError, match="float8 states the dense step changes rows"):
        fo.Adagrad(np.ones((4, 128), "f4"), state_dtype="float8").step(
            fo.Rows(np.array([1]), np.ones((1, 128), np.float32))
        )


def test_adapters_take_rows():
    rng = np.random.default_rng(15)
    rows = some_rows(rng, 20, 9, (3,), np.float32)
    lazy = fo.Rows(rows.indices, rows.values, lazy=True)
    p, q = np.ones((20, 3)), np.ones((20, 3))
    opt, twin = dicts.Adam(0.1), fo.SparseAdam(q, lr=0.1, eps=1e-7)
    wide = fo.Rows(rows.indices, rows.values.astype(np.float64))
    for _ in range(3):
        opt.update({"t": p}, {"t": lazy})
        twin.step(wide)
        assert same_bits(p, q)
    per_array.update(p, rows, lr=0.5)
    fo.SGD(q, lr=0.5).step(wide)
    cs231n.sgd(p, rows)
    fo.SGD(q, lr=0.01).step(wide)
    assert same_bits(p, q)
    with pytest.raises(ValueError, match="'t': with the rule 'adam' the dense step changes"):
        opt.update({"t": p}, {"t": rows})
    with pytest.raises(TypeError, match="clip_norm needs dense gradients"):
        numpy_ml.SGD(clip_norm=1.0).update(p, rows, "w")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_pair_beside_rows_is_no_gradient(backend):
    a, b = np.ones((4, 2)), np.ones(2)
    opt = fo.AdamW([{"params": [a]}, {"params": [b], "weight_decay": 0.0}], weight_decay=0.5, backend=backend)
    with pytest.raises(TypeError, match="expected a NumPy array, got tuple"):
        opt.step([[(np.array([0]), np.ones((1, 2)))], [fo.Rows(np.array([0]), np.ones(1), lazy=True)]])
    assert (a == 1).all() and (b == 1).all()
    assert opt.state["0.0"]["step"] == 0


def test_no_rows_are_rows_and_indices_of_other_types_are_told_what_to_be():
    table = np.ones((3, 2))
    assert fo.SGD(table, lr=1.0).step(fo.Rows([], np.ones((0, 2)))).applied and (table == 1).all()
    for indices in (np.array([True, False, True]), np.array([0, 2], np.uint8), np.array([0, 2], np.int16)):
        with pytest.raises(TypeError, match="must be int32 or int64, got") as caught:
            fo.Rows(indices, np.ones((2, 2)))
        advised = eval(str(caught.value).rpartition(": ")[2], {"np": np, "indices": indices})
        assert fo.Rows(advised, np.ones((2, 2))).indices.tolist() == [0, 2]
