"""What the ranks do in `test_distributed`: ``mpiexec -n N python tests/support/mpi_worker.py NAME arguments``."""

from __future__ import annotations

import contextlib
import os
import signal
import time
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import numpy as np
from mpi4py import MPI

import fastoptim as fo
from fastoptim.backends import available, get_backend
from fastoptim.checkpoint import format
from fastoptim.common.threads import usable_cores
from fastoptim.distributed import ShardedOptimizer, agreement, states
from fastoptim.rules.norm import NORM_BLOCK
from tests.support.mpi import run_named

COMM = MPI.COMM_WORLD
RANK, SIZE = COMM.rank, COMM.size


def parameters(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "w": rng.standard_normal((3, NORM_BLOCK)).astype(np.float32),
        "b": rng.standard_normal(40),
        "f": np.asfortranarray(rng.standard_normal((80, 90)).astype(np.float32)),
        "none": np.zeros((0, 3), np.float32),
    }


def gradients(params, t):
    """The same on every rank, so that their mean is the gradient itself (exactly, for 1, 2 and 4 ranks)."""
    rng = np.random.default_rng((t, 1))
    return {name: rng.standard_normal(p.shape).astype(p.dtype) for name, p in params.items()}


def sharded(params, kind=fo.Adam, **options):
    return ShardedOptimizer(kind, params, **{"lr": 0.01, "buffer_bytes": 1} | options)


def train(opt, params, steps, first=0, **options):
    for t in range(first, first + steps):
        opt.step(gradients(params, t), **options)


def same(a, b):
    return all(a[name].tobytes("A") == b[name].tobytes("A") for name in b)


def same_states(a, b):
    entries = [(a["state"][name], b["state"][name]) for name in b["state"]]
    return a["param_groups"] == b["param_groups"] and all(
        x.keys() == y.keys() and all(np.array_equal(x[key], y[key]) for key in y) for x, y in entries
    )


@contextlib.contextmanager
def raises(kind, *texts):
    """Every rank must see an exception of this type, with these texts."""
    try:
        yield
    except kind as error:
        for text in texts:
            assert text in str(error), f"rank {RANK}: {text!r} is not in {error}"
    else:
        raise AssertionError(f"rank {RANK}: no {kind}")


def odd(value, other):
    """`value` on all ranks but the last, which gets `other`."""
    return value if RANK < SIZE - 1 else other


def construction():
    """Ranks that were built differently are told so on every rank, by name."""
    last = f"rank {SIZE - 1}"
    with raises(ValueError, "lr of group 0", "0.01 on rank 0", f"0.02 on {last}"):
        sharded(parameters(), lr=odd(0.01, 0.02))
    with raises(ValueError, "kind", "Adam on rank 0", f"AdamW on {last}"):
        sharded(parameters(), kind=odd(fo.Adam, fo.AdamW), weight_decay=0.0)
    with raises(ValueError, "deterministic"):
        sharded(parameters(), deterministic=odd(False, True))
    with raises(ValueError, "parameter 'w'", "content"):
        sharded(parameters(seed=odd(0, 1)))
    with raises(ValueError, "parameter 'b'", "float64", "float32"):
        params = parameters()
        params["b"] = params["b"].astype(odd(np.float64, np.float32))
        sharded(params)
    with raises(ValueError, "seed", "0 on rank 0", f"1 on {last}"):
        sharded(parameters(), seed=odd(0, 1))
    with raises(TypeError, "'b' is float64", "state_dtype='float8' is for"):
        sharded(parameters(), state_dtype="float8")
    with raises(ValueError, "names of group 0"):
        sharded({"w": np.ones(3), odd("x", "y"): np.ones(3)})
    version, agreement.__version__ = agreement.__version__, odd("0.1.0", "0.9.9")
    with raises(ValueError, "fastoptim's version", "0.9.9"):
        sharded(parameters())
    agreement.__version__ = version
    with raises(odd(RuntimeError, ValueError), "lr must be >= 0", *odd([last, "building the optimizer"], [])):
        sharded(parameters(), lr=odd(0.01, -1.0))
    with raises(odd(RuntimeError, ValueError), "FASTOPTIM_NUM_THREADS", *odd([last], [])):
        before = os.environ["FASTOPTIM_NUM_THREADS"]
        os.environ["FASTOPTIM_NUM_THREADS"] = odd("1", "x")
        try:
            sharded(parameters())
        finally:
            os.environ["FASTOPTIM_NUM_THREADS"] = before
    del os.environ["FASTOPTIM_NUM_THREADS"]
    assert sharded(parameters(), threads=odd(None, 2)).threads == odd(max(1, usable_cores() // SIZE), 2)
    os.environ["FASTOPTIM_NUM_THREADS"] = before
    with raises(TypeError, "kind must be"):
        sharded(parameters(), kind=dict)
    with raises(TypeError, "comm must be"):
        sharded(parameters(), comm="world")
    with raises(ValueError, "reduction must be one of"):
        sharded(parameters(), reduction="median")
    with raises(ValueError, "buffer_bytes"):
        sharded(parameters(), buffer_bytes=0)


def steps():
    """A step that fails on one rank fails on all, before anything was changed; the next one works."""
    params, twins = parameters(), parameters()
    opt, plain = sharded(params), fo.Adam(twins, lr=0.01)
    train(opt, params, 3)
    train(plain, twins, 3)
    before = {name: p.tobytes() for name, p in params.items()}

    def unchanged():
        return all(params[name].tobytes() == content for name, content in before.items())

    grads = gradients(params, 3)
    bad = grads | {"w": odd(grads["w"], grads["w"][:2])}
    with raises(odd(RuntimeError, ValueError), "gradient of parameter 'w'", "expected shape"):
        opt.step(bad)
    with raises(ValueError, "grad_scale", "1.0 on rank 0", f"2.0 on rank {SIZE - 1}"):
        opt.step(grads, grad_scale=odd(1.0, 2.0))
    with raises(ValueError, "max_norm"):
        opt.step(grads, max_norm=odd(None, 1.0))
    opt.lr = odd(0.01, 0.5)
    with raises(ValueError, "lr of group 0"):
        opt.step(grads)
    opt.lr = 0.01
    overlapping = grads | {"b": odd(grads["b"], params["b"])}
    with raises(odd(RuntimeError, ValueError), "overlap in memory"):
        opt.step(overlapping)
    whole = opt.param_groups[0]["params"][0]
    opt.param_groups[0]["params"][0] = odd(whole, whole[:1])
    with raises(odd(RuntimeError, ValueError), "was replaced"):
        opt.step(grads)
    opt.param_groups[0]["params"][0] = whole
    assert unchanged()
    train(opt, params, 3, first=3)
    train(plain, twins, 3, first=3)
    assert same(params, twins) and same_states(opt.state_dict(), plain.state_dict())

    # What clipping makes of a NaN norm, without skipping, is NaN; with skipping nothing.
    poisoned = gradients(params, 9)
    poisoned["b"][7] = odd(poisoned["b"][7], np.nan)
    info = opt.step(poisoned, skip_nonfinite=True)
    assert not info.applied and np.isnan(info.grad_norm) and same(params, twins)
    opt.step(poisoned, max_norm=1.0)
    assert np.isnan(params["w"]).all()


def modes():
    """NumPy that raises, and a thread that flushes subnormals to zero, change nothing; or all ranks refuse."""
    tiny = np.finfo(np.float32).smallest_subnormal
    g = np.full(2 * NORM_BLOCK, 1e-39, np.float32)
    g[-4:] = odd([1, np.inf, 3e38, tiny], [1, -np.inf, 3e38, 0])

    def step(backend, deterministic, reduction):
        """What a step makes of sums and means that overflow, vanish or are subnormal."""
        p = {"w": np.zeros(2 * NORM_BLOCK, np.float32)}
        opt = sharded(p, fo.SGD, lr=1.0, backend=backend, deterministic=deterministic, reduction=reduction)
        with np.errstate(all="raise"):
            opt.step({"w": g})
        return p["w"]

    def flushing(mode):
        return mode | 0x8040 if get_backend("c").isa != "neon" else 1 << 24

    for deterministic, reduction in product((False, True), ("mean", "sum")):
        wanted = step("numpy", deterministic, reduction)
        if SIZE == 2:
            with np.errstate(all="ignore"):
                total = np.array([2e-39, 2, np.nan, np.inf, tiny], np.float32)
                total /= np.float32(2 if reduction == "mean" else 1)
            assert np.array_equal(-wanted[-5:], total, equal_nan=True), wanted[-5:]
        if available("c"):
            continue
        from fastoptim.backends.c import lib

        mode = lib.fo_float_mode_set_default()
        try:
            lib.fo_float_mode_restore(odd(mode, flushing(mode)))
            found = step("c", deterministic, reduction)
            with raises(odd(RuntimeError, FloatingPointError)):
                step("numpy", deterministic, reduction)
        finally:
            lib.fo_float_mode_restore(mode)
        assert np.array_equal(found.view(np.uint32), wanted.view(np.uint32)), (found[-5:], wanted[-5:])


def clipping():
    """A step with a norm: how often gradients travel, that they stay as they were, and the bits of one process."""
    everything = None, 0.0, np.inf
    huge, tiny = 1e200, 1e-200  # their squares overflow and vanish in float64
    for overwrite in (False, True):
        params, twins = parameters(), parameters()
        opt, plain = sharded(params, overwrite_grads=overwrite), fo.Adam(twins, lr=0.01)
        travels = []
        start_reduce = opt._channel.start_reduce
        opt._channel.start_reduce = lambda *args, f=start_reduce, t=travels: t.append(1) or f(*args)

        def step(grads, limit, own=None, opt=opt, plain=plain, travels=travels, overwrite=overwrite, **options):
            own = grads if own is None else own
            before = {name: None if g is None else g.tobytes("A") for name, g in own.items()}
            expected = plain.step({name: g if g is None else g.copy() for name, g in grads.items()}, max_norm=limit)
            travels.clear()
            assert opt.step(own, max_norm=limit, **options) == expected
            stay = before == {name: None if g is None else g.tobytes("A") for name, g in own.items()}
            assert stay or (overwrite and limit is not None), "gradients were written to"
            return len(travels) / len(opt._buckets), expected.grad_norm

        with raises(ValueError, "NovoGrad takes norms of whole parameters"):
            fo.distributed.ShardedOptimizer(fo.NovoGrad, {"w": np.ones(8)})
        with raises(ValueError, "clips by the global norm"):
            opt.step(gradients(params, 0), max_norm=1.0, clip="value")
        single = sharded({"w": params["w"]}, overwrite_grads=overwrite)
        with raises(ValueError, "grad_scale times the clip factor", "is zero in float32"):
            single.step({"w": np.full_like(params["w"], 1e20)}, max_norm=1e-44)
        for t, limit in enumerate(everything):
            grads = gradients(params, t)
            own = {name: odd(2, 0) * g for name, g in grads.items()} if SIZE == 2 else grads  # whose mean is the same
            passes, norm = step(grads, limit, own)
            assert passes == (1 if limit is None or overwrite else 2) and (norm is None) == (limit is None)
        assert norm > 100
        none = {"w": None, "f": None, "none": None}
        for size in (huge, tiny):
            passes, norm = step(gradients(params, 5) | none | {"b": np.full(40, size)}, 1.0)
            assert passes == (1 if overwrite else 3) and np.isclose(norm, size * 40**0.5, rtol=1e-12)
        assert same(params, twins)

        # None on one rank is zeros: twice its gradient on the other makes the same mean.
        grads = gradients(params, 6) | {"b": None}
        own = grads | {"w": odd(2 * grads["w"], None)} if SIZE == 2 else grads
        assert step(grads, 1.0, own)[0] == (1 if overwrite else 2)
        assert opt.state_dict()["state"]["b"]["step"] == 5 and opt.state_dict()["state"]["w"]["step"] == 4
        assert same(params, twins) and same_states(opt.state_dict(), plain.state_dict())

        # A gradient that one rank cannot use: nothing happens on any, and states stay.
        before = opt.state_dict()
        for value in (np.nan, np.inf, -np.inf):
            grads = gradients(params, 7)
            grads["f"][3, 4] = odd(grads["f"][3, 4], value)
            travels.clear()
            info = opt.step(grads, skip_nonfinite=True, max_norm=1.0)
            assert not info.applied and not np.isfinite(info.grad_norm)
            assert len(travels) == len(opt._buckets) * (1 if overwrite or np.isnan(value) else 2)
            assert same(params, twins) and same_states(opt.state_dict(), before)

    # One gradient for two parameters would be overwritten before it was read for the second.
    for overwrite in (False, True):
        pair = {"a": np.ones(3 * NORM_BLOCK), "b": np.ones(3 * NORM_BLOCK)}
        opt, g = sharded(pair, kind=fo.SGD, overwrite_grads=overwrite), np.ones(3 * NORM_BLOCK)
        if overwrite:
            with raises(ValueError, "gradient of parameter 'a'", "gradient of parameter 'b'", "overlap in memory"):
                opt.step({"a": g, "b": g}, max_norm=1e9)
            g.flags.writeable = False
        assert opt.step({"a": g, "b": g}, max_norm=1e9).applied
        assert (pair["a"] == 0.99).all() and (pair["b"] == 0.99).all()


def memory():
    """A clipped step allocates nothing of the size of this rank's slice, and buffers are as large as was said."""
    params = {"w": np.ones(1000 * NORM_BLOCK, np.float32)}
    for overwrite in (False, True):
        opt = sharded(params, overwrite_grads=overwrite, deterministic=overwrite, buffer_bytes=1 << 21)
        assert sum(b.nbytes for b in opt._buffers) <= 1 << 21
        grads = {"w": np.ones(1000 * NORM_BLOCK, np.float32)}
        opt.step(grads, max_norm=1.0)
        tracemalloc.start()
        opt.step(grads, max_norm=1.0)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < params["w"].nbytes / SIZE / 8, peak


def face():
    """Groups, a group that is added, gradients that are None, states, hyperparameters, read-only gradients, repr."""
    params, twins = parameters(), parameters()
    names = ("w", "b"), ("f", "none")

    def groups(tree):
        return [{"params": {n: tree[n] for n in names[0]}}, {"params": {n: tree[n] for n in names[1]}, "amsgrad": True}]

    opt = sharded(groups(params), overwrite_grads=True)
    plain = fo.Adam(groups(twins), lr=0.01)
    extra, twin = np.ones(2 * NORM_BLOCK), np.ones(2 * NORM_BLOCK)
    opt.add_param_group({"params": extra, "lr": 0.5})
    plain.add_param_group({"params": twin, "lr": 0.5})
    with raises(odd(RuntimeError, ValueError), "has no 'speed'"):
        opt.add_param_group({"params": np.ones(3), "lr": 1.0} | odd({}, {"speed": 2}))
    with raises(ValueError, "lr of group 3"):
        opt.add_param_group({"params": np.ones(3), "lr": odd(1.0, 2.0)})
    assert len(opt.param_groups) == 3
    lamb = fo.distributed.ShardedOptimizer(fo.LAMB, {"w": np.ones(3)}, adapt=False)
    with raises(ValueError, "norms of whole parameters"):
        lamb.add_param_group({"params": np.ones(3), "adapt": True})
    assert len(lamb.param_groups) == 1 and lamb.step({"w": np.ones(3)}).applied

    def step(optimizer, t):
        g = gradients(params, t)
        if t == 2:
            g["b"] = None
        last = np.full(extra.shape, 0.5)
        last.flags.writeable = t % 2 == 0
        optimizer.param_groups[1]["lr"] = 0.1 / (t + 1)
        optimizer.param_groups[0]["amsgrad"] = t >= 3
        entries = [{n: g[n] for n in names[0]}, {n: g[n] for n in names[1]}, last]
        return optimizer.step(entries, max_norm=1.0)

    for t in range(5):
        assert step(opt, t) == step(plain, t)
        assert same(params, twins) and extra.tobytes() == twin.tobytes()
    assert same_states(opt.state_dict(), plain.state_dict())
    assert opt.state_dict()["state"]["0.b"]["step"] == 4
    parts = [part for found in opt.state.values() for part in found]
    owned = sum(part["stop"] - part["start"] for part in parts)
    total = sum(p.size for p in params.values()) + extra.size
    assert COMM.allreduce(owned) == total and owned < 0.7 * total
    assert all(part["exp_avg"].shape == (part["stop"] - part["start"],) for part in parts)
    with raises(ValueError, "different values of lr"):
        _ = opt.lr
    opt.lr = 0.3
    opt.weight_decay = 0.0
    assert opt._whole.weight_decay == 0.0 and opt.weight_decay == 0.0
    with raises(AttributeError, "speed"):
        _ = opt.speed
    with raises(AttributeError, "step is a method of ShardedOptimizer, in whose place 3 "):
        opt.step = 3
    assert opt.lr == 0.3 and opt.backend == plain.backend and f"rank {RANK} of {SIZE}" in repr(opt)
    opt.threads = 1
    assert opt.threads == 1 and all(piece.optimizer.threads == 1 for piece in opt._own())
    for name in ("FASTOPTIM_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ.pop(name, None)
    default = sharded(parameters())
    assert COMM.allreduce(default.threads) <= max(SIZE, usable_cores())
    assert default.threads >= max(1, usable_cores() // SIZE)
    saved = plain.state_dict()
    opt.load_state_dict(saved)
    assert same_states(opt.state_dict(), saved)
    broken = plain.state_dict()
    broken["state"]["0.w"]["exp_avg"] = odd(broken["state"]["0.w"]["exp_avg"], np.zeros(3))
    with raises(odd(RuntimeError, TypeError), "exp_avg"):
        opt.load_state_dict(broken)
    assert same_states(opt.state_dict(), saved)


def busy():
    """A step of another thread is refused; one that was left by Ctrl-C before it had begun locks nothing."""
    params, twins = parameters(), parameters()
    opt, plain = sharded(params), fo.Adam(twins, lr=0.01)
    with ThreadPoolExecutor(1) as other:
        with opt._locked():
            refused = other.submit(train, opt, params, 1).exception()
        assert isinstance(refused, RuntimeError) and "another thread" in str(refused)
        (lambda: opt._locked().__enter__())()  # and never left
        train(opt, params, 1)
        other.submit(train, opt, params, 1, 1).result()
    train(plain, twins, 2)
    extra = np.ones(3)
    opt.add_param_group({"params": extra})
    assert len(opt.param_groups) == 2 and same(params, twins)


def alone():
    """With one rank it is the plain optimizer."""
    params, twins = parameters(), parameters()
    opt, plain = sharded(params, comm=MPI.COMM_SELF), fo.Adam(twins, lr=0.01)
    assert type(opt.step.__self__) is fo.Adam
    train(opt, params, 3, max_norm=1.0)
    train(plain, twins, 3, max_norm=1.0)
    assert same(params, twins) and same_states(opt.state_dict(), plain.state_dict())
    assert opt.state["w"]["step"] == 3
    opt.add_param_group({"params": np.ones(3)})
    assert len(opt.param_groups) == 2
    opt.forget("w")
    assert opt.state["w"] == {"step": 0}


def save(path, steps):
    """Train and save; the plain optimizer's checkpoint lies beside."""
    params, twins = parameters(), parameters()
    opt, plain = sharded(params), fo.Adam(twins, lr=0.01)
    for t in range(int(steps)):
        train(opt, params, 1, first=t, max_norm=1.0)
        train(plain, twins, 1, first=t, max_norm=1.0)
        opt.save(path, extra={"step": t, "rank": np.array([RANK])})
    if RANK == 0:
        plain.save(f"{path}.plain")


def load(path, *sources):
    """Each of the checkpoints, loaded here, has the same content; training goes on with the same bits."""
    twins = parameters(seed=5)
    plain = fo.Adam(twins, lr=1.0)
    plain.load(f"{path}.plain")
    for source in sources:
        params = parameters(seed=5)
        opt = sharded(params, lr=1.0)
        extra = opt.load(source)
        assert extra is None or (extra["step"] > 0 and extra["rank"].tolist() == [0])
        assert same(params, twins) and same_states(opt.state_dict(), plain.state_dict()), source
    if SIZE != 3:  # the mean of three equal gradients is rounded
        train(opt, params, 2, first=50)
        train(plain, twins, 2, first=50)
        assert same(params, twins)
    before = opt.state_dict()
    if RANK == SIZE - 1:
        opt.param_groups[0]["params"][0] = frozen = params["w"].copy()
        frozen.flags.writeable = False
    with raises(Exception, "'w' is read-only"):
        opt.load(path)
    assert same_states(opt.state_dict(), before)


def numbers(path):
    """Rules that keep numbers beside the step count: sharded, saved, restored like a plain optimizer's."""
    for kind in (fo.NAdam, fo.ScheduleFreeAdamW, fo.LaProp):
        params, twins = parameters(), parameters()
        opt, plain = sharded(params, kind=kind), kind(twins, lr=0.01)
        for t in range(3):
            grads = gradients(params, t)
            if t == 1:
                grads[next(iter(grads))] = None  # its numbers stay behind
            opt.step(grads)
            plain.step(grads)
        assert same(params, twins) and same_states(opt.state_dict(), plain.state_dict()), kind
        if SIZE > 1:  # they would look for states where there are none
            assert not any(hasattr(opt, name) for name in ("apply", "averaged", "forget"))
        opt.save(f"{path}.{kind.__name__}")
        content, saved = {name: p.copy("K") for name, p in params.items()}, opt.state_dict()
        train(plain, twins, 2, first=3)
        for restore, source in ((opt.load, f"{path}.{kind.__name__}"), (opt.load_state_dict, saved)):
            train(opt, params, 1, first=9)
            restore(source)
            for name, p in params.items():
                p[...] = content[name]
            train(opt, params, 2, first=3)
            assert same(params, twins) and same_states(opt.state_dict(), plain.state_dict()), kind
        twins = parameters(seed=5)
        plain = kind(twins)
        plain.load(f"{path}.{kind.__name__}")  # one process reads what several have written
        assert same(twins, content) and same_states(plain.state_dict(), saved), kind


LOW = {"state_dtype": "float8", "master": True, "seed": 7}


def low(**options):
    """Parameters in 16 bits and in 32, an optimizer of several ranks, and a plain one of their twins."""
    import ml_dtypes

    params, twins = ({n: p.astype(np.float32) for n, p in parameters().items()} for _ in range(2))
    for tree in (params, twins):
        tree["w"] = np.concatenate([tree["w"]] * 2).astype(ml_dtypes.bfloat16)  # two pieces for each of three ranks
        tree["f"] = tree["f"].astype(np.float16)
    return params, twins, sharded(params, **options), fo.Adam(twins, lr=0.01, **options)


def save_low(path):
    """Parameters and states in fewer bits: the bits of one process, saved."""
    params, twins, opt, plain = low(**LOW, state_dir=f"{path}.states", memory_budget="1 MiB")
    assert sum(piece.optimizer._backend.budget for piece in opt._own()) <= 1 << 20
    for t in range(3):
        grads = gradients(params, t)
        opt.step(grads, max_norm=1.0)
        plain.step({name: g.astype(np.float32) for name, g in grads.items()}, max_norm=1.0)
    assert same(params, twins) and same_states(opt.state_dict(), plain.state_dict())
    parts = [part for found in opt.state.values() for part in found if part["stop"]]
    assert all(isinstance(part[name], np.memmap) for part in parts for name in ("exp_avg", "exp_avg_sq_scale"))
    opt.save(path)
    if RANK == 0:
        plain.save(f"{path}.plain")


def load_low(path):
    """What `save_low` wrote, loaded by any number of ranks, and stored in another way; the run goes on."""
    for options in (LOW, LOW | {"state_dtype": "bfloat16", "seed": 9}):
        for restore in ("file", "plain file", "state dict"):
            params, twins, opt, plain = low(**options)
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                plain.load(f"{path}.plain")
                if restore == "state dict":
                    source = fo.Adam({name: p.copy("K") for name, p in twins.items()}, lr=1.0, **LOW)
                    source.load(f"{path}.plain")
                    opt.load_state_dict(source.state_dict())
                    for name, p in params.items():
                        p[...] = twins[name]
                else:
                    opt.load(path if restore == "file" else f"{path}.plain")
            converted = {str(warning.message) for warning in said}
            assert bool(converted) == (options is not LOW) and all("exp_avg" in text for text in converted)
            assert same(params, twins) and same_states(opt.state_dict(), plain.state_dict()), (options, restore)
            assert opt.state_dict()["storage"]["seed"] == 7
            grads = gradients(params, 9) if SIZE != 3 else {name: np.ones_like(p) for name, p in params.items()}
            opt.step(grads)
            plain.step({name: g.astype(np.float32) for name, g in grads.items()})
            assert same(params, twins) and same_states(opt.state_dict(), plain.state_dict()), (options, restore)


def refuse(path, text):
    """A checkpoint that is damaged is refused by all ranks, and nothing was changed."""
    params = parameters(seed=5)
    opt = sharded(params, lr=0.02)
    train(opt, params, 1)
    before = opt.state_dict()
    try:
        opt.load(path)
    except (fo.CheckpointError, RuntimeError) as error:
        assert text in str(error), error
    else:
        raise AssertionError(f"rank {RANK} has loaded it")
    assert opt.lr == 0.02 and same_states(opt.state_dict(), before)
    twins = parameters(seed=5)
    train(fo.Adam(twins, lr=0.02), twins, 1)
    assert same(params, twins)


def differing(path):
    """Ranks that find other files at the same path, or are given other state dicts, load none of them."""
    params = parameters()
    opt = sharded(params)
    saved = []
    for t in range(2):  # one rank's folder is two steps behind
        train(opt, params, 1 + t, first=t)
        opt.save(f"{path}.{t}")
        plain = fo.Adam(parameters(), lr=0.01)
        plain.load(f"{path}.{t}")
        if RANK == 0:
            plain.save(f"{path}.plain.{t}")
        saved.append(plain.state_dict())
    COMM.Barrier()
    params = parameters(seed=5)
    opt = sharded(params, lr=0.02)
    train(opt, params, 1)
    before, content = opt.state_dict(), {name: p.tobytes() for name, p in params.items()}
    for name in (path, f"{path}.plain"):
        for pair in ((0, 1), (1, 0)):
            with raises(ValueError, "differ in the checkpoint's content", "on rank 0", f"on rank {SIZE - 1}"):
                opt.load(f"{name}.{odd(*pair)}")
    with raises(ValueError, "differ in the step count of parameter", "1 on rank 0", f"3 on rank {SIZE - 1}"):
        opt.load_state_dict(odd(*saved))
    with raises(odd(RuntimeError, FileNotFoundError), "no.such.file"):
        opt.load(odd(f"{path}.0", f"{path}.no.such.file"))
    assert opt.lr == 0.02 and same_states(opt.state_dict(), before)
    assert {name: p.tobytes() for name, p in params.items()} == content
    opt.load(f"{path}.1")
    assert same_states(opt.state_dict(), saved[1])


def interrupted(path):
    """Ctrl-C on one rank in the middle of loading or of adding a group: it happens whole, then the rank raises."""
    params = parameters()
    opt = sharded(params)
    train(opt, params, 2)
    opt.save(path)
    saved = opt.state_dict()
    again = parameters(seed=5)
    other = sharded(again, lr=0.5)
    load, append = states.load_snapshot, fo.Adam._append_group

    def pressing(function):
        def call(*args):
            if RANK == SIZE - 1:
                signal.raise_signal(signal.SIGINT)
            return function(*args)

        return call

    def expect():
        return raises(KeyboardInterrupt) if RANK == SIZE - 1 else contextlib.nullcontext()

    signal.signal(signal.SIGINT, signal.default_int_handler)
    states.load_snapshot, fo.Adam._append_group = pressing(load), pressing(append)
    with expect():
        other.load(path)
    with expect():
        other.add_param_group({"params": np.ones(3)})
    states.load_snapshot, fo.Adam._append_group = load, append
    assert same(again, params) and other.param_groups[0]["lr"] == 0.01
    assert len(other.param_groups) == 2 and len(other.state_dict()["state"]) == len(saved["state"]) + 1
    third = sharded(parameters(seed=6))
    states.load_snapshot = pressing(load)
    with expect():
        third.load_state_dict(saved)
    states.load_snapshot = load
    assert same_states(third.state_dict(), saved)


def mapped_twice(path):
    """A gradient that lies in the file of a parameter, at another address, is refused on every rank."""
    path = f"{path}.{RANK}"
    np.ones(4096, np.float32).tofile(path)
    mapped, again = np.memmap(path, np.float32, "r+"), np.memmap(path, np.float32, "r")
    opt = sharded({"w": mapped, "v": np.ones(8, np.float32)})
    with raises(odd(RuntimeError, ValueError), "parameter 'w' and gradient of parameter 'w' overlap in the file"):
        opt.step({"w": odd(np.ones(4096, np.float32), again), "v": np.ones(8, np.float32)})
    assert (mapped == 1).all() and opt.step({"w": np.zeros(4096, np.float32), "v": None}).applied


def modes_of_files(path):
    """A checkpoint that others may not read keeps its slices from them too."""
    opt = sharded(parameters())
    opt.save(path)
    COMM.Barrier()
    if RANK == 0:
        os.chmod(path, 0o600)
    COMM.Barrier()
    opt.save(path)
    named = [entry["file"] for entry in format.read(path, kind="slices")["slices"]]
    assert len(named) == SIZE
    for file in (Path(path), *(Path(path).parent / name for name in named)):
        assert file.stat().st_mode & 0o777 == 0o600, file


def full_folder(path):
    """Where one rank cannot write, all raise and the last checkpoint stays."""
    params = parameters()
    opt = sharded(params)
    opt.save(path)
    content = Path(path).read_bytes()
    slices = sorted(Path(path).parent.glob("*"))
    train(opt, params, 1)
    write = format.write

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    format.write = odd(write, fail)
    with raises(odd(RuntimeError, OSError), "No space left on device"):
        opt.save(path)
    format.write = write
    COMM.Barrier()
    assert Path(path).read_bytes() == content
    assert sorted(Path(path).parent.glob("*")) == slices


def uncaught():
    """The last rank raises between two steps, while the others wait in the second."""
    params = parameters()
    opt = sharded(params)
    train(opt, params, 1)
    if RANK == SIZE - 1:
        raise ZeroDivisionError("planted in the user's own code")
    train(opt, params, 1, first=1)
    time.sleep(3600)


if __name__ == "__main__":
    os.environ.setdefault("FASTOPTIM_NUM_THREADS", "1")
    run_named(globals(), RANK)
