"""Threads and forks: children of fork step, optimizers in several threads keep apart, and the interpreter goes on."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import fastoptim as fo
from fastoptim.backends import get_backend
from fastoptim.backends.base import Member, Runs, count_of_steps
from fastoptim.rules import reference
from fastoptim.rules.table import RULES, Kernel
from tests.support.cases import on_threads, same_bits
from tests.support.forks import in_child
from tests.support.threads import in_threads

SIZES = (1_200_000, 3, 8193, 300_001)


@pytest.fixture(autouse=True)
def threads_work():
    """Every job is spread over threads: on a busy machine the caller would do it alone, and nothing be proved."""
    with on_threads():
        yield


def model(seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(n).astype(np.float32) for n in SIZES]


def after(steps, seed=0, backend="c", threads=1):
    """The parameters of a model after some steps."""
    params, grads = model(seed), model(seed + 1)
    opt = fo.Adam(params, lr=0.01, weight_decay=0.1, backend=backend, threads=threads)
    for _ in range(steps):
        opt.step(grads)
    return params


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_a_child_of_fork_steps_and_gets_the_same_bits(threads):
    params, grads = model(), model(1)
    opt = fo.Adam(params, lr=0.01, weight_decay=0.1, backend="c", threads=threads)
    for _ in range(3):
        opt.step(grads)
    wanted = after(5)

    def work():
        opt.step(grads)
        opt.step(grads)
        return all(same_bits(p, w) for p, w in zip(params, wanted, strict=True))

    assert in_child(work) == 0
    assert in_child(work) == 0  # once more: the first child left nothing behind
    assert all(same_bits(p, w) for p, w in zip(params, after(3), strict=True)), "a child wrote into its parent"
    assert work()


def test_a_child_of_a_child_steps():
    opt = fo.Adam(model(), backend="c", threads=2)
    grads = model(1)
    opt.step(grads)

    def work():
        opt.step(grads)
        return in_child(lambda: opt.step(grads).applied) == 0

    assert in_child(work) == 0


def test_a_child_gets_threads_of_its_own():
    opt, grads = fo.Adam(model(), backend="c", threads=3), model(1)
    for _ in range(5):
        opt.step(grads)

    def work():
        before = len(os.listdir("/proc/self/task"))
        opt.step(grads)
        return (before, len(os.listdir("/proc/self/task"))) == (1, 3)

    if not os.path.isdir("/proc/self/task"):
        pytest.skip("LOUD: no /proc to count threads in")
    assert in_child(work) == 0


def test_many_forks_while_threads_are_hot():
    params, grads = model(), model(1)
    opt = fo.SGD(params, lr=0.01, momentum=0.9, backend="c", threads=3)
    for _ in range(20):
        for _ in range(3):
            opt.step(grads)
        assert in_child(lambda: all(opt.step(grads).applied for _ in range(3))) == 0
    assert opt.state["0"]["step"] == 60


def test_forks_while_another_thread_steps():
    """The pool's locks may be held by a thread that the child does not have."""
    params, grads = model(), model(1)
    opt = fo.SGD(params, lr=1e-5, backend="c", threads=2)
    stop = threading.Event()

    def keep_stepping():
        while not stop.is_set():
            opt.step(grads)

    other = threading.Thread(target=keep_stepping)
    other.start()
    try:
        statuses = [
            in_child(lambda: fo.SGD(model(), lr=0.5, backend="c", threads=2).step(grads).applied) for _ in range(20)
        ]
    finally:
        stop.set()
        other.join()
    assert statuses == [0] * 20
    assert opt.state["0"]["step"] > 0


def _steps_in_a_process(seed):
    return [p.tobytes() for p in after(3, seed, threads=2)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="LOUD: this platform has no fork")
def test_multiprocessing_by_fork():
    wanted = [[p.tobytes() for p in after(3, seed, threads=2)] for seed in range(3)]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map_async(_steps_in_a_process, range(3)).get(timeout=60) == wanted


@pytest.mark.parametrize("backend", ["c", "numba", "numpy"])
def test_two_threads_step_two_optimizers(backend):
    if backend == "numba":
        pytest.importorskip("numba", reason="LOUD: pip install numba to step it from threads")
    seeds, start = (0, 10, 20), threading.Barrier(3)

    def work(seed):
        start.wait()
        return after(8, seed, backend, threads=2)

    for seed, result in zip(seeds, in_threads(work, seeds), strict=True):
        for p, w in zip(result, after(8, seed), strict=True):
            assert same_bits(p, w)


def test_one_optimizer_stepped_by_two_threads_raises():
    params, grads = model(), model(1)
    opt = fo.Adam(params, lr=0.01, weight_decay=0.1, backend="c", threads=2)
    errors, start, enough = [], threading.Barrier(2), threading.Event()

    def work(number):
        done = 0
        start.wait()
        end = time.monotonic() + 20
        while not enough.is_set() and time.monotonic() < end:
            try:
                opt.step(grads)
                done += 1
            except RuntimeError as error:
                errors.append(str(error))
                enough.set()
        return done

    steps = sum(in_threads(work, range(2)))
    assert errors and "another thread" in errors[0]
    # Whoever was refused changed nothing: as many steps were taken as were counted.
    assert opt.state["0"]["step"] == steps
    for p, w in zip(params, after(steps), strict=True):
        assert same_bits(p, w)


def test_a_plan_serves_one_thread_at_a_time():
    """Without the guard of the classes; on an interpreter without a global lock, threads meet inside all the time."""
    params, grads = tuple(model()), tuple(model(1))
    counter, threads, tries = count_of_steps(), 3, 60
    members = [Member.of(p) for p in params]
    plan = get_backend("c").plan(Runs.one(Kernel(RULES["sgd"], "none"), members), counter, 1)
    row, start = ((1.0, 0.0, 0.01),), threading.Barrier(threads)

    def work(number):
        start.wait()
        applied = sum(plan.step(params, grads, (), row) for _ in range(tries))
        return applied, {plan.sum_squares(grads, 1.0, 1.0) for _ in range(tries)}

    applied, norms = zip(*in_threads(work, range(threads)), strict=True)
    steps = sum(applied)
    assert tries <= steps <= threads * tries and counter[0] == steps
    assert len(set.union(*norms) - {None}) == 1
    wanted = [p.copy() for p in model()]
    for _ in range(steps):
        for p, g in zip(wanted, grads, strict=True):
            reference.update(Kernel(RULES["sgd"], "none"), p, g, [], row[0])
    for p, w in zip(params, wanted, strict=True):
        assert same_bits(p, w)


@pytest.mark.parametrize("options", [{}, {"max_norm": 1e9}], ids=["step", "step with norm"])
def test_the_interpreter_goes_on_during_a_step(options):
    """A counter in Python moves while one native call runs; it would stand still if the call kept the interpreter."""
    n = 30_000_000
    p, g = np.ones(n, np.float32), np.ones(n, np.float32)
    opt = fo.SGD(p, lr=1e-3, backend="c", threads=1)
    opt.step(g)
    ticks, stop = [], threading.Event()

    def tick():
        while not stop.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.0005)

    ticker = threading.Thread(target=tick)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    ticker.start()
    try:
        inside = []
        for _ in range(20):
            before = time.perf_counter()
            opt.step(g, **options)
            end = time.perf_counter()
            # Not near the ends, where the interpreter may be switched before or after the native call.
            margin = 0.2 * (end - before)
            inside.append(sum(before + margin < t < end - margin for t in list(ticks)))
    finally:
        stop.set()
        ticker.join()
        sys.setswitchinterval(interval)
    assert sum(inside) > 20, inside


def blocked_signals():
    """Thread -> mask of the signals that it blocks."""
    if not os.path.isdir("/proc/self/task"):
        pytest.skip("LOUD: no /proc to read the threads' signal masks from")
    masks = {}
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/status") as file:
            masks[int(task)] = next(int(line.split()[1], 16) for line in file if line.startswith("SigBlk"))
    return masks


def test_signals_reach_the_main_thread_only():
    """The pool's threads block every signal, so that handlers run where Python expects them."""
    opt, grads = fo.SGD(model(), lr=0.1, backend="c", threads=4), model(1)
    interrupt = 1 << (signal.SIGINT - 1)
    opt.step(grads)
    masks = blocked_signals()
    assert not masks[os.getpid()] & interrupt
    assert sum(bool(mask & interrupt) for mask in masks.values()) >= 3, masks


def test_threads_take_part():
    """Bits across numbers of threads would prove nothing if the caller did all the work."""
    if not os.path.exists("/proc/self/schedstat"):
        pytest.skip("LOUD: no /proc/self/schedstat to read the threads' processor times from")

    def seconds():
        return sorted(int(path.read_text().split()[0]) for path in Path("/proc/self/task").glob("*/schedstat"))

    def work():
        opt, g = fo.Adam(np.ones(100_000, np.float32), backend="c", threads=7), np.ones(100_000, np.float32)
        opt.step(g)
        before = seconds()
        for _ in range(200):
            opt.step(g)
        after = seconds()
        return len(after) == 7 and all(b > a for a, b in zip(before, after, strict=True))

    assert in_child(work) == 0


class Worker:
    """The pool's only worker in a fresh child, beside a caller on one of two cores."""

    def __init__(self):
        self.caller_core, self.other_core = sorted(os.sched_getaffinity(0))[:2]
        self.both = {self.caller_core, self.other_core}
        os.sched_setaffinity(0, self.both)
        opt, g = fo.SGD(np.ones(3_000_000, np.float32), lr=0.1, backend="c", threads=2), np.ones(3_000_000, np.float32)
        self.step = lambda: opt.step(g)
        self.step()
        (self.thread,) = (int(task) for task in os.listdir("/proc/self/task") if int(task) != os.getpid())

    def cores(self):
        return os.sched_getaffinity(self.thread)

    def step_until(self, cores, seconds=0.0):
        """Step until the worker may use just these cores, or until it is too late."""
        end = time.monotonic() + seconds
        while self.cores() != cores and time.monotonic() < end:
            self.step()
            time.sleep(0.0005)
        assert self.cores() == cores

    def leave(self):
        """Put the worker on its caller's core again and again, until it has left that."""
        os.sched_setaffinity(0, {self.caller_core})
        left = threading.Event()

        def put():
            os.sched_setaffinity(0, {self.other_core})
            while not left.is_set():
                os.sched_setaffinity(self.thread, {self.caller_core})
                os.sched_setaffinity(self.thread, self.both)
                end = time.monotonic() + 0.005  # in which this thread keeps the other core busy
                while not left.is_set() and time.monotonic() < end:
                    if self.cores() == {self.other_core}:
                        left.set()

        putter = threading.Thread(target=put)
        putter.start()
        end = time.monotonic() + 20
        while not left.is_set() and time.monotonic() < end:
            self.step()
        left.set()
        putter.join()
        assert self.cores() == {self.other_core}


def two_cores():
    if not hasattr(os, "sched_setaffinity") or not os.path.isdir("/proc/self/task"):
        pytest.skip("LOUD: this platform does not tell on which cores a thread may run")
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("LOUD: this process has one core only")


def test_a_worker_leaves_the_core_of_its_caller_and_comes_back():
    two_cores()

    def work():
        worker = Worker()
        worker.leave()
        os.sched_setaffinity(0, {worker.other_core})
        os.sched_setaffinity(0, worker.both)
        worker.step_until({worker.caller_core}, 20)
        return True

    assert in_child(work) == 0


@pytest.mark.parametrize("left", [True, False], ids=["after it left one", "at once"])
def test_a_worker_stays_on_the_cores_that_were_imposed_on_it(left):
    """As by ``taskset -a -p``, which sets the cores of every thread of a running process."""
    two_cores()

    def work():
        worker = Worker()
        if left:
            worker.leave()
        for thread in (os.getpid(), worker.thread):  # a thread that has just ended may still be listed
            os.sched_setaffinity(thread, {worker.other_core})
        for _ in range(50):
            worker.step()
            time.sleep(0.0005)
        return worker.cores() == {worker.other_core}

    assert in_child(work) == 0


def test_a_worker_forgets_the_cores_that_it_left_when_others_are_imposed_on_it():
    two_cores()
    if len(os.sched_getaffinity(0)) < 3:
        pytest.skip("LOUD: this process has two cores only")

    def work():
        third = sorted(os.sched_getaffinity(0))[2]
        worker = Worker()
        worker.leave()
        os.sched_setaffinity(worker.thread, {worker.other_core, third})
        os.sched_setaffinity(0, {worker.other_core})
        os.sched_setaffinity(0, worker.both)
        for _ in range(50):
            worker.step()
            time.sleep(0.0005)
        return worker.cores() <= {worker.other_core, third}

    assert in_child(work) == 0
