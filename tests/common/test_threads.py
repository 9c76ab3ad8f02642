"""Locks that a forked child never waits for in vain."""

from __future__ import annotations

import ast
import contextlib
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest

import fastoptim as fo
from fastoptim.common import threads
from fastoptim.common.threads import fork_safe_lock
from tests.support.forks import in_child
from tests.support.interrupts import interrupted_after
from tests.support.threads import in_another_thread

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="LOUD: this platform has no fork")
SECONDS = 30  # until a child that hangs is ended


@contextlib.contextmanager
def held_elsewhere(*locks):
    """Another thread holds locks meanwhile."""
    held, enough = threading.Event(), threading.Event()

    def hold():
        with contextlib.ExitStack() as stack:
            for lock in locks:
                stack.enter_context(lock)
            held.set()
            enough.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    try:
        yield
    finally:
        enough.set()
        thread.join()


def run_numba():
    p = np.ones(1 << 20, np.float32)
    return fo.SGD(p, lr=0.5, backend="numba", threads=2).step(p.copy()).applied and bool((p == 0.5).all())


def open_a_block():
    with pytest.importorskip("fastoptim.adapters.sklearn", exc_type=ImportError).accelerate():
        return True


def lock_of_numba():
    return pytest.importorskip("fastoptim.backends.numba_cpu")._Pool._lock


def lock_of_sklearn():
    return pytest.importorskip("fastoptim.adapters.sklearn", exc_type=ImportError)._mode.lock


@needs_fork
@pytest.mark.parametrize(
    ("lock", "work"),
    [(lock_of_numba, run_numba), (lock_of_sklearn, open_a_block)],
    ids=["numba", "sklearn"],
)
def test_a_child_works_though_another_thread_of_its_parent_held_the_lock(lock, work):
    with held_elsewhere(lock()):
        assert in_child(work, SECONDS) == 0
    assert in_child(work, SECONDS) == 0
    assert work()


@needs_fork
def test_every_lock_is_free_in_a_child():
    locks = [*threads._locks, fork_safe_lock()]
    with held_elsewhere(*locks):
        assert not any(lock.acquire(blocking=False) for lock in locks)
        assert in_child(lambda: all(lock.acquire(blocking=False) for lock in locks), SECONDS) == 0
    assert all(lock.acquire(blocking=False) for lock in locks)
    for lock in locks:
        lock.release()


@needs_fork
def test_what_the_forking_thread_holds_stays_held_in_its_child():
    lock = fork_safe_lock()

    def work():
        others = [in_another_thread(lambda: lock.acquire(blocking=False))]
        lock.release()
        others.append(in_another_thread(lambda: lock.acquire(blocking=False)))
        lock.release()
        return [*others, in_another_thread(lambda: lock.acquire(blocking=False))] == [False, False, True]

    with lock, lock:
        assert in_child(work, SECONDS) == 0


def test_a_lock_keeps_others_out_until_it_is_released_as_often_as_acquired():
    lock = fork_safe_lock()
    with lock:
        with lock:
            pass
        assert in_another_thread(lambda: lock.acquire(blocking=False)) is False
    assert in_another_thread(lambda: lock.acquire(blocking=False) and not lock.release()) is True
    with pytest.raises(RuntimeError):
        lock.release()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="LOUD: this platform has no timers")
def test_no_signal_leaves_a_lock_taken():
    lock = fork_safe_lock()

    def take():
        for _ in range(1000):
            with lock:
                len("")

    cut = 0
    for i in range(1000):
        cut += interrupted_after(1e-7 * i, take) is not None
        assert in_another_thread(lambda: lock.acquire(blocking=False) and not lock.release()) is True
    assert cut > 300


def test_the_package_makes_no_other_locks_and_takes_them_by_with_alone():
    """Others would stay held in a child for ever; ``acquire()`` leaves a gap for signals before ``try:``."""
    kinds = {"Lock", "RLock", "Condition", "Semaphore", "BoundedSemaphore", "Event", "Barrier", "allocate_lock"}
    found = []
    for path in sorted(Path(fo.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module in ("threading", "_thread"):
                found += [(path.name, alias.name) for alias in node.names if alias.name in kinds]
            elif isinstance(node, ast.Attribute):
                owner = getattr(node.value, "id", "")
                if node.attr in kinds if owner in ("threading", "_thread") else node.attr == "acquire":
                    found.append((path.name, node.attr))
    assert sorted(found) == [("threads.py", "RLock")]
