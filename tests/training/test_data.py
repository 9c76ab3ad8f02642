"""Minibatches: every example once, reproducible, restorable bit by bit, and without copies or allocations."""

from __future__ import annotations

import copy
import pickle
import tracemalloc
from itertools import chain
from typing import NamedTuple

import numpy as np
import pytest

import fastoptim as fo

N = 37


def columns(n=N):
    return np.arange(3.0 * n).reshape(n, 3), np.arange(n)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 36, 37, 38, None])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("drop_last", [True, False])
def test_an_epoch_is_every_example_once(batch_size, shuffle, drop_last):
    x, y = columns()
    batches = fo.minibatches((x, y), batch_size, shuffle=shuffle, drop_last=drop_last)
    size = min(batch_size or N, N)
    for epoch in range(3):
        seen = list(batches)
        sizes = [len(labels) for _, labels in seen]
        assert sizes == [size] * (N // size) + ([N % size] if N % size and not drop_last else [])
        assert len(batches) == len(seen) and batches.epoch == epoch + 1 and batches.cursor == 0
        labels = np.concatenate([labels for _, labels in seen])
        assert len(set(labels.tolist())) == len(labels)
        assert np.array_equal(np.concatenate([rows for rows, _ in seen]), x[labels])
        in_order = np.array_equal(labels, np.arange(len(labels)))
        assert in_order == (not shuffle or size == N)


def test_epochs_differ_seeds_differ_and_runs_repeat():
    def order(seed):
        batches = fo.minibatches(np.arange(N), 5, rng=seed)
        return [np.concatenate(list(batches)).tolist() for _ in range(3)]

    assert order(1) == order(1)
    assert order(1)[0] != order(1)[1]
    assert order(1) != order(2)
    generator = np.random.default_rng(1)
    assert np.concatenate(list(fo.minibatches(np.arange(N), 5, rng=generator))).tolist() == order(1)[0]
    assert generator.bit_generator.state != np.random.default_rng(1).bit_generator.state


class Pair(NamedTuple):
    x: np.ndarray
    y: np.ndarray


class Own:
    """Somebody's own indexable; it counts what it is asked for."""

    def __init__(self, values):
        self.values, self.asked = values, []

    def __len__(self):
        return len(self.values)

    def __getitem__(self, where):
        self.asked.append(where)
        return self.values[where]


def test_structures_and_kinds(tmp_path):
    x, y = columns()
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    own = Own(x)
    masked = np.ma.masked_array(y, y % 2 == 0)
    swapped = x.astype(">f8")
    data = {
        "map": mapped,
        "own": own,
        "F": np.asfortranarray(x),
        "strided": x[:, ::2],
        ">": swapped,
        "ma": masked,
        "y": y,
    }
    for shuffle in (True, False):
        batches = fo.minibatches(data, 10, shuffle=shuffle)
        for batch in batches:
            labels = batch["y"]
            assert list(batch) == list(data)
            for name in ("map", "own", "F", ">"):
                assert np.array_equal(batch[name], x[labels])
            assert np.array_equal(batch["strided"], x[labels][:, ::2])
            assert np.array_equal(batch["ma"].mask, labels % 2 == 0)
            assert batch[">"].dtype == swapped.dtype and type(batch["map"]) is np.ndarray
    assert {type(where) for where in own.asked} == {slice, np.ndarray}
    assert type(next(iter(fo.minibatches(x, 4)))) is np.ndarray
    assert type(next(iter(fo.minibatches([x, y], 4)))) is list
    assert type(next(iter(fo.minibatches(Pair(x, y), 4)))) is Pair


class Labelled(Own):
    """As pandas does: ``[]`` by label, ``iloc`` by position."""

    def __init__(self, values, labels):
        super().__init__(values)
        self.iloc, self.labels = Own(values), labels

    def __getitem__(self, where):
        return self.values[[list(self.labels).index(i) for i in where]]


def test_rows_are_taken_by_position_not_by_label():
    x, y = columns()
    order = np.random.default_rng(1).permutation(N)
    data = [x, y, Labelled(x, order)]
    for shuffle in (True, False):
        for _, labels, rows in fo.minibatches(data, 5, shuffle=shuffle):
            assert np.array_equal(rows, x[labels])


def test_pandas():
    pandas = pytest.importorskip("pandas")
    x, y = columns()
    for index in (np.random.default_rng(1).permutation(N), np.linspace(0.0, 1.0, N)):
        frame = pandas.DataFrame(x, index=index)
        for shuffle in (True, False):
            for labels, rows, part in fo.minibatches((y, frame, frame[0]), 5, shuffle=shuffle):
                assert np.array_equal(rows, x[labels]) and np.array_equal(part, x[labels, 0])


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_column_that_raises_once_loses_no_batch(shuffle):
    x, y = columns()

    class Flaky(Own):
        broken = False

        def __getitem__(self, where):
            if self.broken:
                self.broken = False
                raise OSError("the disk is away")
            return self.values[where]

    flaky = Flaky(y)
    batches, expected = fo.minibatches((x, flaky), 8, shuffle=shuffle), fo.minibatches((x, y), 8, shuffle=shuffle)
    for i in range(12):  # more than two epochs, the first and the last batch of one among them
        before = repr(batches.state_dict())
        flaky.broken = True
        with pytest.raises(OSError, match="away"):
            batches.next_batch()
        assert repr(batches.state_dict()) == before, i
        assert np.array_equal(batches.next_batch()[1], expected.next_batch()[1])


def test_a_view_in_order_asks_columns_for_what_they_know():
    class Rows:
        def __len__(self):
            return 10

        def __getitem__(self, where):
            return np.array([int(i) for i in where])  # takes index arrays only

    view = fo.minibatches(Rows(), 4).in_order()
    assert [batch.tolist() for batch in view] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    view = fo.minibatches(np.arange(10.0), 4).in_order()
    for batch in (*view, *view):
        batch -= batch.mean()  # shuffled batches are copies, and so are these


def test_a_view_in_order_has_a_position_of_its_own():
    x, y = columns()
    for data in ((x, y), Pair(x, y), {"x": x, "y": y}):
        batches = fo.minibatches(data, 8, drop_last=True, rng=3)
        batches.share(0, 2)
        batches.next_batch()
        before = repr(batches.state_dict())
        view = batches.in_order()
        for _ in range(2):
            found = list(view)
            assert all(type(batch) is type(data) for batch in found)
            assert np.concatenate([view.parts(batch)[1] for batch in found]).tolist() == list(range(N))
        assert repr(batches.state_dict()) == before


def test_in_order_batches_are_read_only_views():
    x, y = columns()
    for rows, labels in fo.minibatches((x, y), 8, shuffle=False):
        assert np.shares_memory(rows, x) and np.shares_memory(labels, y)
        with pytest.raises(ValueError, match="read-only"):
            rows[0, 0] = 7.0
    assert x.flags.writeable
    (whole,) = fo.minibatches(x, None, shuffle=True)
    assert np.shares_memory(whole, x)


def test_buffers_are_used_again_only_when_nobody_holds_them():
    x = np.arange(1000.0 * 512).reshape(1000, 512)
    batches = fo.minibatches(x, 10)  # 40 KiB each
    kept, parts = [], []
    for i, batch in enumerate(batches):
        if i % 3 == 0:
            kept.append((batch, batch.copy()))
        elif i % 3 == 1:
            parts.append((batch[2:5, :7].T, batch[2:5, :7].T.copy()))
    assert all(np.array_equal(a, b) for a, b in kept + parts) and len(kept) == 34
    addresses = {batch.__array_interface__["data"][0] for batch in batches}
    assert len(addresses) <= 3


def test_a_loop_allocates_nothing_large():
    x = np.zeros((4096, 256), np.float32)
    y = np.zeros(4096, np.int64)
    for shuffle in (True, False):
        batches = fo.minibatches((x, y), 64, shuffle=shuffle)  # a batch of x is 64 KiB
        for _batch in batches:
            pass
        iterator = iter(batches)
        next(iterator)
        tracemalloc.start()
        for _batch in iterator:
            pass
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 8192


@pytest.mark.parametrize("layout", ["F", "misaligned"])
def test_no_layout_is_copied_as_a_whole(layout):
    x = np.zeros((4096, 64))
    if layout == "F":
        x = np.asfortranarray(x)
    else:
        x = np.frombuffer(bytearray(x.nbytes + 1), np.uint8)[1:].view(np.float64).reshape(x.shape)
        assert not x.flags.aligned
    batches = fo.minibatches(x, 16)
    batches.next_batch()
    tracemalloc.start()
    batches.next_batch()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < x.nbytes / 16


@pytest.mark.parametrize("bits", ["PCG64", "MT19937", "Philox", "SFC64", "PCG64DXSM"])
def test_position_is_restored_exactly(bits):
    def fresh(seed):
        generator = np.random.Generator(getattr(np.random, bits)(seed))
        return fo.minibatches(columns(), 5, rng=generator)

    for consumed in range(20):
        one, two = fresh(3), fresh(99)
        for _ in range(consumed):
            one.next_batch()
        state = one.state_dict()
        expected = [one.next_batch()[1].tolist() for _ in range(20)]
        two.next_batch()
        two.load_state_dict(state)
        assert (two.epoch, two.cursor) == (consumed // 8, consumed % 8 * 5)
        assert [two.next_batch()[1].tolist() for _ in range(20)] == expected
        assert np.array_equal(one.rng.random(4), two.rng.random(4))


def test_iterating_again_goes_on():
    batches = fo.minibatches(np.arange(N), 5)
    first = [batch.tolist() for batch, _ in zip(batches, range(3), strict=False)]
    rest = [batch.tolist() for batch in batches]
    assert sorted(chain(*first, *rest)) != list(range(N))  # zip has taken one batch that it did not use
    batches = fo.minibatches(np.arange(N), 5)
    first = [batches.next_batch().tolist() for _ in range(3)]
    rest = [batch.tolist() for batch in batches]
    assert sorted(chain(*first, *rest)) == list(range(N))


def bad_positions():
    batches = fo.minibatches(columns(), 5)
    batches.next_batch()
    good = batches.state_dict()
    order = good["permutation"]
    twice = order.copy()
    twice[0] = twice[1]
    far = order.copy()
    far[0] = N
    rng = good["rng"]
    yield from (
        {"examples": 36},
        {"batch_size": 6},
        {"shuffle": False},
        {"drop_last": 0},
        {"epoch": -1},
        {"epoch": 1.0},
        {"cursor": 3},
        {"cursor": 40},
        {"cursor": True},
        {"permutation": None},
        {"permutation": twice},
        {"permutation": far},
        {"permutation": order[:-1]},
        {"permutation": order.astype(np.int32)},
        {"permutation": order.tolist()},
        {"rng": None},
        {"rng": {}},
        {"rng": rng | {"bit_generator": "MT19937"}},
        {"rng": rng | {"state": {"state": -5, "inc": 1}}},
        {"rng": rng | {"state": {"state": 2**128, "inc": 1}}},
        {"rng": rng | {"has_uint32": 2**40}},
        {"rng": rng | {"uinteger": "x"}},
        {"rng": rng | {"state": {"state": 5.5, "inc": 1}}},
        {"more": 1},
    )


@pytest.mark.parametrize("change", list(bad_positions()), ids=str)
def test_a_bad_position_is_refused_whole(change):
    batches = fo.minibatches(columns(), 5)
    batches.next_batch()
    before = batches.state_dict()
    with pytest.raises(ValueError, match=r"position|state"):
        batches.load_state_dict(before | change)
    assert str(batches.state_dict()) == str(before)
    with pytest.raises(ValueError):
        batches.load_state_dict([])


def test_shares_are_equal_parts_of_the_same_batches():
    x, y = columns()
    whole = [labels.tolist() for _, labels in fo.minibatches((x, y), 8, rng=5)]
    parts = []
    for rank in range(3):
        batches = fo.minibatches((x, y), 8, rng=5)
        batches.share(rank, 3)
        sizes = []
        shares = [(sizes.append(batches.next_size()), batches.next_batch()[1])[1] for _ in range(len(batches))]
        assert sizes == [3 * len(share) for share in shares]
        parts.append([share.tolist() for share in shares])
    for batch, *shares in zip(whole, *parts, strict=True):
        assert {len(share) for share in shares} == {len(batch) // 3}
        assert list(chain(*shares)) == batch[: len(batch) // 3 * 3]
    with pytest.raises(ValueError, match="rank"):
        batches.share(3, 3)
    with pytest.raises(ValueError, match="a batch of 5 examples cannot be shared by 6 processes; set drop_last=True"):
        batches.share(0, 6)  # 37 % 8 = 5 examples in the last batch
    with pytest.raises(ValueError, match="a batch of 5 examples cannot be shared by 9 processes; give larger batches"):
        batches.share(0, 9)


class Short(Own):
    def __getitem__(self, where):
        return self.values[where][:-1]


@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        ((np.zeros(3), np.zeros(4)), {}, ValueError, "one length"),
        ((), {}, ValueError, "no arrays"),
        (np.zeros((0, 3)), {}, ValueError, "no examples"),
        (np.float64(3.0), {}, TypeError, "data"),
        (np.zeros(()), {}, TypeError, "data"),
        ((np.zeros(3), [1, 2, 3]), {}, TypeError, r"data\[1\].*got list; make it an array, np\.array\(x\)"),
        ({"text": "abc"}, {}, TypeError, "data"),
        (7, {}, TypeError, "data"),
        (np.zeros(3), {"batch_size": 0}, ValueError, "batch_size"),
        (np.zeros(3), {"batch_size": 2.0}, TypeError, "batch_size"),
        (np.zeros(3), {"batch_size": True}, TypeError, "batch_size"),
        (np.zeros(3), {"shuffle": 1}, TypeError, "shuffle"),
        (np.zeros(3), {"drop_last": None}, TypeError, "drop_last"),
        (np.zeros(3), {"rng": None}, TypeError, "rng"),
        (np.zeros(3), {"rng": "x"}, TypeError, "rng"),
    ],
)
def test_bad_arguments_are_refused(data, options, error, message):
    with pytest.raises(error, match=message):
        fo.minibatches(data, **options)


def test_sparse_matrices_are_refused_with_what_to_give_instead():
    sparse = pytest.importorskip("scipy.sparse")
    x = sparse.csr_matrix(np.eye(8))
    for column in (x, sparse.coo_array(np.eye(8))):
        with pytest.raises(TypeError, match=r"data\[0\]: a sparse matrix has no length: give x.toarray\(\), or"):
            fo.minibatches((column, np.zeros(8)))
    taken = [x[rows].toarray() for rows in fo.minibatches(np.arange(x.shape[0]), 3)]  # as the message says
    assert np.concatenate(taken).sum(axis=0).tolist() == [1.0] * 8


def test_an_indexable_that_returns_something_else_is_caught():
    for shuffle in (True, False):
        with pytest.raises(ValueError, match=r"asked for 5 examples at once, x\[(ndarray|slice)\] returned 4"):
            fo.minibatches(Short(np.zeros(20)), 5, shuffle=shuffle).next_batch()


class Growing:
    """Data that get more, or less, while they are used."""

    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, where):
        return np.arange(self.n)[where]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("drop_last", [False, True])
def test_data_may_grow_and_shrink_between_epochs(shuffle, drop_last):
    data = Growing(10)
    batches = fo.minibatches((data, data), 4, shuffle=shuffle, drop_last=drop_last)
    for n in (10, 17, 17, 3, 9):
        data.n = n
        seen = [x for one, _ in batches for x in one.tolist()]
        size = min(4, n)
        assert len(seen) == (n // size * size if drop_last else n) == len(set(seen)) and batches.examples == n
        assert batches.batch_size == size
        if not drop_last:
            assert sorted(seen) == list(range(n))
    assert batches.epoch == 5


def test_columns_that_do_not_grow_together_are_named():
    one, two = Growing(10), Growing(10)
    batches = fo.minibatches({"x": one, "y": two}, 4, shuffle=False)
    list(batches)
    one.n = 12
    before = batches.state_dict()
    with pytest.raises(ValueError, match=r"one length.*'x'.*12.*'y'.*10"):
        batches.next_batch()
    assert repr(batches.state_dict()) == repr(before)
    two.n = 12
    assert sum(len(batch["x"]) for batch in batches) == 12
    one.n = two.n = 0
    with pytest.raises(ValueError, match="no examples"):
        batches.next_batch()


@pytest.mark.parametrize("cut", [False, True])
def test_validation_sees_data_that_grow(cut):
    data, seen = Growing(5), []

    def f(p, batch):
        if batch is not None:
            seen.append(len(batch))
        return 1.0, np.zeros(2)

    held_out = fo.minibatches(data, 4) if cut else data
    grow = lambda loop: setattr(data, "n", 5 + loop.steps)  # noqa: E731
    fo.fit(f, np.ones(2), None, "sgd", steps=3, validation=held_out, validate_every=1, callbacks=grow)
    assert seen == ([4, 1, 4, 2, 4, 3] if cut else [5, 5, 1, 5, 2])


def test_fit_sees_data_that_grow(tmp_path):
    seen = []

    def run(sizes, **options):
        data = Growing(sizes[0])

        class Grow:
            def begin(self, loop):
                data.n = sizes[loop.epoch]

            def __call__(self, loop):
                if loop.epoch_ended and loop.epoch < len(sizes):
                    data.n = sizes[loop.epoch]

        def f(p, batch):
            seen.append(batch.tolist())
            return float(p @ p), p * batch.mean() / 10

        w = np.ones(2)
        options = {"epochs": len(sizes), "batch_size": 4, "checkpoint": tmp_path / "a.ckpt"} | options
        result = fo.fit(f, w, data, "sgd", lr=0.1, callbacks=Grow(), **options)
        return w.tobytes(), result.steps

    whole = run([8, 12, 20])
    assert whole[1] == 2 + 3 + 5 and sum(map(len, seen)) == 8 + 12 + 20
    run([8, 12, 20], steps=4)  # within the second epoch
    del seen[:]
    with pytest.raises(fo.CheckpointError, match="in other data, of 12 examples; here are 8"):
        run([8, 12, 20], resume=True)
    data = Growing(12)

    def f(p, batch):
        seen.append(batch.tolist())
        return float(p @ p), p * batch.mean() / 10

    w, sizes = np.ones(2), [8, 12, 20]
    grow = lambda loop: setattr(data, "n", sizes[min(loop.epoch, 2)])  # noqa: E731
    options = {"epochs": 3, "batch_size": 4, "checkpoint": tmp_path / "a.ckpt"}
    fo.fit(f, w, data, "sgd", lr=0.1, callbacks=grow, resume=True, **options)
    assert w.tobytes() == whole[0]


@pytest.mark.parametrize("again", [lambda x: pickle.loads(pickle.dumps(x)), copy.deepcopy], ids=["pickle", "deepcopy"])
@pytest.mark.parametrize("make", [Pair, lambda x, y: {"x": x, "y": y}, lambda x, y: [x, y], lambda x, y: x])
@pytest.mark.parametrize("shuffle", [False, True])
def test_a_copy_goes_on_from_the_same_position_with_data_of_its_own(again, make, shuffle):
    x, y = columns()
    x = np.repeat(x, 2000, axis=1)  # large enough for buffers that are used again
    batches = fo.minibatches(make(x, y), 5, shuffle=shuffle)
    batches.next_batch()
    other, first = again(batches), copy.deepcopy([*map(batches.parts, batches)])
    x[...] = -1.0
    found = [*map(other.parts, other)]
    assert type(other.next_batch()) is type(batches.next_batch())
    assert len(found) == len(first) == 7
    assert all(np.array_equal(*pair) for both in zip(found, first, strict=True) for pair in zip(*both, strict=True))


@pytest.mark.parametrize("name", ["shuffle", "drop_last"])
def test_how_epochs_are_cut_cannot_be_changed_to_no_effect(name):
    batches = fo.minibatches(np.arange(13.0), 4, rng=0)
    with pytest.raises(AttributeError, match=name):
        setattr(batches, name, not getattr(batches, name))
