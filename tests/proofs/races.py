"""What may come between: forks, signals' handlers and other threads, thousands of times.

    python -m tests.proofs.races forks 5000   # beside threads that make states: does a child hang?
    python -m tests.proofs.races loads 1000   # cut off by a signal: is one half done?
    python -m tests.proofs.races groups 1000  # the same of groups that are added
    python -m tests.proofs.races reads 400    # a thread that reads states beside steps with None, and loads

Each says how many it has seen, and which went wrong. `tests/optimizers/test_races.py` takes a sample.
"""

from __future__ import annotations

import contextlib
import pickle
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

import fastoptim as fo
from fastoptim.backends import available
from tests.support.forks import in_child
from tests.support.interrupts import interrupted_after

BACKENDS = [name for name in ("c", "numba", "numpy") if available(name) is None]
SECONDS = 30  # until a child counts as hung


@contextlib.contextmanager
def beside(*works):
    """Threads that repeat `works` meanwhile, changing places as often as Python can."""
    stop, before = threading.Event(), sys.getswitchinterval()

    def repeat(work):
        while not stop.is_set():
            work()

    workers = [threading.Thread(target=repeat, args=(work,)) for work in works]
    sys.setswitchinterval(1e-5)
    try:
        for worker in workers:
            worker.start()
        yield
    finally:
        stop.set()
        for worker in workers:
            worker.join()
        sys.setswitchinterval(before)


def stepped(backend):
    """Whether new optimizers, which make states, step as they should."""
    arrays = [np.ones(n, np.float32) for n in (3, 1000)]
    for cls in (fo.Adam, fo.SGD):
        options = {"momentum": 0.5} if cls is fo.SGD else {}
        cls(arrays, lr=0.5, backend=backend, threads=2, **options).step([np.ones(p.shape, np.float32) for p in arrays])
    return all(abs(float(x)) < 1e-6 for p in arrays for x in (p[0], p[-1]))


def forks(count):
    """Children made while two threads make states: numbers of those that hang, or do not step."""
    assert all(map(stepped, BACKENDS))
    wrong = []
    with beside(lambda: stepped("c"), lambda: stepped("numpy")):
        for i in range(count):
            backend = "numba" if "numba" in BACKENDS and i % 10 == 0 else ("c", "numpy")[i % 2]
            if status := in_child(lambda: stepped(backend), SECONDS):  # noqa: B023
                wrong.append((i, backend, status))
    return count, wrong


def drawn(rng, names):
    return {name: rng.standard_normal(5).astype(np.float32) for name in names}


def cut_off(count, call, put_back, look, allowed):
    """How often `call` was cut off, at moments spread over its time, and what `look` then saw that is not `allowed`."""
    lasts = np.inf
    for _ in range(5):
        start = time.perf_counter()
        call()
        lasts = min(lasts, time.perf_counter() - start)
        put_back()
    rng, cut, wrong = np.random.default_rng(count), 0, []
    for i in range(20 * count):
        # The exception stays alive, and with it all frames: as in a debugger, or where `except` goes on with the work.
        error = interrupted_after(rng.random() * 1.2 * lasts, call)
        if error is not None:
            cut += 1
            seen = look()
            if seen not in allowed:
                wrong.append((i, seen))
        put_back()
        if cut == count:
            break
    return cut, wrong


def loads(count):
    """Loads, in turn of state dicts and files, that were cut off, and those that left something half done."""
    rng, cut, wrong = np.random.default_rng(0), 0, []
    names = [f"p{i}" for i in range(30)]
    for how in ("state dict", "file"):
        params = drawn(rng, names)
        opt = fo.Adam(params, lr=0.1)
        with tempfile.TemporaryDirectory() as folder:
            saved = {}
            for key, steps in (("first", 2), ("second", 3)):
                for _ in range(steps):
                    opt.step(drawn(rng, names))
                opt.lr = 0.1 * steps
                saved[key] = opt.state_dict()
                opt.save(Path(folder, key))

            def load(key):
                opt.load_state_dict(saved[key]) if how == "state dict" else opt.load(Path(folder, key))  # noqa: B023

            def look():
                content = pickle.dumps((opt.lr, [{k: x.copy() for k, x in params.items()}, opt.state_dict()]))  # noqa: B023
                opt.step(dict.fromkeys(names))  # noqa: B023 (nobody is left in the middle of a step)
                return content

            whole = []
            for key in ("first", "second"):
                load(key)
                whole.append(look())
            load("first")
            assert len(set(whole)) == 2 and look() == whole[0]
            found = cut_off(-(-count // 2), lambda: load("second"), lambda: load("first"), look, whole)
        cut, wrong = cut + found[0], wrong + [(how, i) for i, _ in found[1]]
    return cut, wrong


def groups(count):
    """Additions of groups that were cut off, and those after which the optimizer is none."""
    state = {}

    def put_back():
        state["p"] = [np.ones(4, np.float32) for _ in range(3)]
        state["opt"] = fo.Adam([{"params": state["p"][:1]}], lr=0.5)
        state["opt"].step([[np.ones(4, np.float32)]])

    def add():
        state["opt"].add_param_group({"params": state["p"][1:], "lr": 0.25})

    def look():
        opt, before = state["opt"], [p[0] for p in state["p"]]
        there = len(opt.param_groups)
        try:
            opt.step([[np.ones(4, np.float32)] * n for n in (1, 2)[:there]])
        except (RuntimeError, ValueError, TypeError) as error:
            return there, repr(error)
        moved = [bool(p[0] != b) for p, b in zip(state["p"], before, strict=True)]
        return there, moved, [entry["step"] for entry in opt.state.values()], len(opt.state_dict()["param_groups"])

    put_back()
    allowed = [(1, [True, False, False], [2], 1), (2, [True] * 3, [2, 1, 1], 2)]
    assert look() == allowed[0]
    put_back()
    add()
    assert look() == allowed[1]
    put_back()
    return cut_off(count, add, put_back, look, allowed)


def reads(steps):
    """Step counts that a reader of `state` beside steps with None, and beside loads, has made wrong."""
    n, wrong = 300, []
    p = [np.zeros(2, np.float32) for _ in range(n)]
    g = [np.ones(2, np.float32) for _ in range(n)]
    for backend in BACKENDS:
        opt = fo.SGD(p, lr=1.0, momentum=0.9, backend=backend)

        def counts():
            return [entry["step"] for entry in opt.state.values()]  # noqa: B023

        with beside(counts):
            for i in range(steps):
                opt.step([*g[: i % n], None, *g[i % n + 1 :]])
            expected = [steps - len(range(k, steps, n)) for k in range(n)]
            wrong += [(backend, "steps", k) for k, t in enumerate(counts()) if t != expected[k]]
            saved = opt.state_dict()
            for _ in range(3 * steps // 4):
                opt.step(g)
                opt.load_state_dict(saved)
                wrong += [(backend, "loads", k) for k, t in enumerate(counts()) if t != expected[k]]
    return len(BACKENDS) * (steps + 3 * steps // 4), wrong


PROOFS = {"forks": (forks, 5000), "loads": (loads, 1000), "groups": (groups, 1000), "reads": (reads, 400)}

if __name__ == "__main__":
    chosen, *rest = sys.argv[1:]
    proof, usual = PROOFS[chosen]
    start = time.perf_counter()
    seen, failures = proof(int(rest[0]) if rest else usual)
    print(f"{chosen}: {seen} seen in {time.perf_counter() - start:.0f} s, {len(failures)} wrong {failures[:5]}")
    sys.exit(bool(failures))
