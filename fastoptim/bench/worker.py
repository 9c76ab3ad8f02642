"""One subject in a process of its own: it prepares cases, compares results with the reference, and times.

    python -m fastoptim.bench.worker SUBJECT_AS_JSON

Requests and answers are lines of JSON on the standard streams. A subject that crashes or runs out of memory takes only
this process with it.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise, repeat
from typing import Any

import numpy as np

from ..arrays.rows import Rows
from ..arrays.storage import small_dtype
from ..environment import available_memory
from ..rules import norm, reference
from .cases import TRAINING_SIZES, Case
from .subjects import Stepper, Subject, Unsupported, make_stepper, optimizer, tables

CHECKED_STEPS = 3
CHECKED_ELEMENTS = 1 << 18  # rules work element by element: of larger arrays, the ends are checked
EPSILONS = 100  # how far a peer may be from the reference, in epsilons of |p| + |distance travelled|
BLOCK_ELEMENTS = 1 << 18  # arrays repeat random numbers after so many
ROW_SETS = 32  # of indices and values that alternate: most rows have left the nearest caches when they come again
FRESH_SETS = 4  # gradient sets that alternate where every step is to get new arrays
MOST_REPEATS = 20_000

Array = np.ndarray


def clip_factor(case: Case, gradients: list[Array]) -> float:
    """Compute the reference's clip factor for these gradients."""
    if case.max_norm is None:
        return 1.0
    slab = 1024 * norm.NORM_BLOCK

    def sum_of_squares(k: float) -> float:
        parts = [reference.block_sums(g[i : i + slab], 1.0, k) for g in gradients for i in range(0, g.size, slab)]
        return reference.tree_sum(np.concatenate(parts))

    return norm.clip_factor(norm.norm_from_squares(sum_of_squares), case.max_norm)


def checked_parts(size: int, budget: int) -> list[slice]:
    """Choose the parts of an array that are compared: all of it, or the two ends."""
    if size <= budget:
        return [slice(0, size)]
    half = budget // 2
    return [slice(0, half), slice(size - half, size)]


def _within(gradient: Any, part: slice, dtype: Any) -> Any:
    """The gradient of a part, of whole rows where it is one of rows."""
    if not isinstance(gradient, Rows):
        return gradient[part].astype(dtype, copy=False)
    first, behind = part.start // gradient.values.shape[1], part.stop // gradient.values.shape[1]
    chosen = (gradient.indices >= first) & (gradient.indices < behind)
    return Rows(gradient.indices[chosen] - first, gradient.values[chosen], lazy=True)


class Expected:
    """The reference's result on the checked parts of every array."""

    def __init__(self, case: Case, params: list[Array], eps_mode: str):
        self.case = case
        dtype, states = case.stored
        self.dtype = small_dtype(dtype) if dtype != "float32" else case.dtype
        budget = max(64, CHECKED_ELEMENTS // len(params))
        # Dithers count from where an array begins, so that the reference cannot have its end alone.
        parts = slice(None) if states == "float32" else slice(1)
        self.rows = [
            (i, part, p[part].astype(self.dtype))
            for i, p in enumerate(params)
            for part in checked_parts(p.size, budget)[parts]
        ]
        self.starts = [p.copy() for *_, p in self.rows]
        mode = "hat" if case.rows else eps_mode  # as SparseAdam's
        self.optimizer = optimizer(case.rule, tables(case, [p for *_, p in self.rows]), "numpy", 1, mode, states)
        self.t = 0

    def step(self, gradients: list[Array]) -> None:
        self.t += 1
        own = [_within(gradients[i], part, self.dtype) for i, part, _ in self.rows]
        self.optimizer.step(own, grad_scale=clip_factor(self.case, gradients))

    def verdict(self, values: Any, exact: bool) -> str:
        """What the comparison found; ValueError if `values` are not the reference's."""
        count, worst = 0, 0.0
        for (i, part, p), start in zip(self.rows, self.starts, strict=True):
            value = np.asarray(values[i]).reshape(-1)[part]
            count += p.size
            if value.dtype != p.dtype:
                raise ValueError(f"result is {value.dtype}, not {p.dtype}")
            if exact:
                different = int(np.count_nonzero(value != p))
                if different:
                    raise ValueError(f"result differs from the reference in {different} of {p.size} elements")
                continue
            scale = np.finfo(p.dtype).eps * (np.abs(p) + np.abs(p - start))
            epsilons = np.abs(value - p) / np.maximum(scale, np.finfo(p.dtype).tiny)
            furthest = float(epsilons.max(initial=0.0))
            if not furthest <= EPSILONS:  # NaN is not
                raise ValueError(
                    f"result is {furthest:.0f} machine epsilons away from the reference, {EPSILONS} allowed"
                )
            worst = max(worst, furthest)
        if exact:
            return f"bit-identical after {self.t} steps ({count:,} elements)"
        return f"within {max(worst, 1):.0f} machine epsilons after {self.t} steps ({count:,} elements)"


class Network:
    """Forward and backward of a ReLU network on seeded data, into the gradient arrays of a case."""

    def __init__(self, case: Case, params: list[Array], gradients: list[Array]):
        rng = np.random.default_rng(3)
        assert case.batch is not None
        self.x = rng.random((case.batch, TRAINING_SIZES[0]), np.float32)
        self.labels = rng.integers(0, TRAINING_SIZES[-1], case.batch)
        shapes = list(pairwise(TRAINING_SIZES))
        self.weights = [p.reshape(shape) for p, shape in zip(params[0::2], shapes, strict=True)]
        self.biases = params[1::2]
        self.weight_gradients = [g.reshape(shape) for g, shape in zip(gradients[0::2], shapes, strict=True)]
        self.bias_gradients = gradients[1::2]

    def gradients(self) -> None:
        inputs = [self.x]
        for w, b in zip(self.weights[:-1], self.biases[:-1], strict=True):
            inputs.append(np.maximum(inputs[-1] @ w + b, 0))
        logits = inputs[-1] @ self.weights[-1] + self.biases[-1]
        delta = np.exp(logits - logits.max(axis=1, keepdims=True))
        delta /= delta.sum(axis=1, keepdims=True)
        delta[np.arange(len(delta)), self.labels] -= 1
        delta /= len(delta)
        for i in reversed(range(len(self.weights))):
            np.matmul(inputs[i].T, delta, out=self.weight_gradients[i])
            np.sum(delta, axis=0, out=self.bias_gradients[i])
            delta = (delta @ self.weights[i].T) * (inputs[i] > 0)


def filled(size: int, block: Array, number: int) -> Array:
    """A new array of `size` elements that repeats `block`, scaled so that neighbours in a list differ."""
    array = np.empty(size, block.dtype)
    for start in range(0, size, block.size):
        part = array[start : start + block.size]
        np.multiply(block[: part.size], 1 + number % 8 / 8, out=part)
    return array


def _some_rows(rng: np.random.Generator, case: Case, count: int, width: int) -> Rows:
    values = rng.standard_normal((count, width), np.float32).astype(case.dtype)
    return Rows(rng.integers(0, case.elements // width, count), values, lazy=True)


class Bench:
    """What is being timed now."""

    def __init__(self, subject: Subject):
        self.subject = subject
        self.loops: dict[str, tuple[Callable[[], Any], Callable[[int], Any] | None]] = {}
        self.repeats: dict[str, int] = {}
        self.network: Network | None = None
        self.count = 0

    def ready(self, case: Case, block_seconds: float, check: bool) -> dict[str, Any]:
        """Build the case, compare its result with the reference, and find out how often to repeat it."""
        self.drop()
        dtype, states = self.subject.stored
        case = replace(case, stored=(dtype, states))
        rng = np.random.default_rng(7)
        block = rng.standard_normal(min(case.elements, BLOCK_ELEMENTS), np.float32).astype(case.dtype)
        params = [filled(n, block, i) for i, n in enumerate(case.sizes)]
        sets = FRESH_SETS if case.gradients == "fresh" else 1
        turned = [np.roll(block, 17 + k) for k in range(sets)]
        gradients: list[list[Any]]
        if case.rows is None:
            gradients = [[filled(n, t, i) for i, n in enumerate(case.sizes)] for t in turned]
        else:
            sets, (count, width) = ROW_SETS, case.rows
            gradients = [[_some_rows(rng, case, count, width)] for _ in range(sets)]
        if case.batch is not None:
            for p in params:
                p *= 0.05
        expected = Expected(case, params, self.subject.eps_mode) if check and self.subject.compared else None
        pristine = gradients
        if self.subject.family != "fastoptim" and (case.max_norm is not None or case.rule == "nesterov"):
            pristine = [[g.copy() for g in grads] for grads in gradients]  # torch overwrites gradients there
        stepper = make_stepper(self.subject, case, params, gradients)
        seconds = []
        for k in range(CHECKED_STEPS):
            if stepper.prepare:
                stepper.prepare(k)
            start = time.perf_counter()
            stepper.step()
            seconds.append(time.perf_counter() - start)
            if expected is not None:
                expected.step(pristine[k % sets])
        verdict = None
        if expected is not None:
            verdict = expected.verdict(stepper.values(), exact=self.subject.family == "fastoptim")
        self.count = CHECKED_STEPS
        self._loops(case, stepper, params, gradients, block_seconds)
        kept = None if stepper.state_bytes is None else stepper.state_bytes() / case.elements
        return {
            "check": verdict,
            "first_step_seconds": seconds[0],
            "loops": list(self.loops),
            "state_bytes_per_element": kept,
        }

    def _loops(
        self, case: Case, stepper: Stepper, params: list[Array], gradients: list[list[Array]], block_seconds: float
    ) -> None:
        if case.batch is not None:
            self.network = Network(case, params, gradients[0])
        self.add("step", stepper.step, block_seconds, stepper.prepare)
        for name, make in stepper.roofline_loops.items():
            self.add(name, make(), block_seconds)

    def add(
        self, name: str, step: Callable[[], Any], block_seconds: float, prepare: Callable[[int], Any] | None = None
    ) -> None:
        """Time this loop, too, in blocks of about so many seconds; `prepare`, called before each step, is not timed."""
        self.loops[name] = step, prepare
        self.repeats[name] = 2
        spent = self.run(name)["seconds"]
        wanted = block_seconds / max(spent, 1e-9)
        # An even number: the roofline loop writes g - p for p, so that two passes give p back.
        self.repeats[name] = max(2 if name == "roofline" else 1, min(MOST_REPEATS, 2 * round(wanted / 2)))

    def run(self, name: str) -> dict[str, float]:
        """Seconds of one step, the mean over a block of repeats."""
        step, prepare = self.loops[name]
        repeats = self.repeats[name]
        if self.network is not None:
            return self._train(step, prepare, repeats)
        # Another process had the caches, and pages of an idle process may have moved. The roofline loop comes in pairs.
        untimed = repeats // 16 * 2 or 2
        if prepare is None:
            for _ in repeat(None, untimed):
                step()
            start = time.perf_counter()
            for _ in repeat(None, repeats):
                step()
            return {"seconds": (time.perf_counter() - start) / repeats}
        total = 0.0
        for k in range(-untimed, repeats):
            prepare(self.count)
            self.count += 1
            start = time.perf_counter()
            step()
            if k >= 0:
                total += time.perf_counter() - start
        return {"seconds": total / repeats}

    def _train(self, step: Callable[[], Any], prepare: Callable[[int], Any] | None, repeats: int) -> dict[str, float]:
        assert self.network is not None
        update = whole = 0.0
        for _ in range(repeats):
            start = time.perf_counter()
            self.network.gradients()
            whole += time.perf_counter() - start
            if prepare is not None:
                prepare(self.count)
                self.count += 1
            start = time.perf_counter()
            step()
            update += time.perf_counter() - start
        return {"seconds": (whole + update) / repeats, "update_seconds": update / repeats}

    def drop(self) -> None:
        """Free the arrays."""
        self.loops, self.repeats, self.network = {}, {}, None
        gc.collect()


def answer(bench: Bench, request: dict[str, Any]) -> dict[str, Any]:
    """Do what a request asks; whatever goes wrong becomes part of the answer."""
    try:
        if request["do"] == "ready":
            return {"ok": True} | bench.ready(
                Case.from_json(request["case"]), request["block_seconds"], request["check"]
            )
        if request["do"] == "run":
            return {"ok": True} | bench.run(request["loop"])
        bench.drop()
        return {"ok": True}
    except Unsupported as error:
        return {"ok": False, "reason": str(error)}
    except MemoryError:
        bench.drop()
        return {"ok": False, "reason": "out of memory"}
    except Exception as error:
        bench.drop()
        return {"ok": False, "reason": f"{type(error).__name__}: {error}"}


def _limit_memory() -> None:
    """Let this process fail before the machine does."""
    try:
        import resource

        available = available_memory()
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (available, hard))
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except (ImportError, OSError, ValueError):
        pass  # not Linux, or not allowed: the machine's own limits hold


def main() -> int:
    subject = Subject(**json.loads(sys.argv[1]))
    _limit_memory()
    replies, sys.stdout = sys.stdout, sys.stderr  # whatever libraries print stays out of the answers
    start = time.process_time()
    failure = None
    try:
        for module in subject.requires:
            __import__(module)
    except Exception as error:
        failure = f"cannot be imported ({type(error).__name__}: {error})"
    hello = {"ok": failure is None, "reason": failure, "import_seconds": time.process_time() - start}
    print(json.dumps(hello), file=replies, flush=True)
    gc.collect()
    gc.freeze()  # the libraries' objects stay: collecting is quick then
    bench = Bench(subject)
    for line in sys.stdin:
        print(json.dumps(answer(bench, json.loads(line))), file=replies, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
