"""Contestants that take turns in this process, so that whatever else the machine does hits all of them alike."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from fastoptim.bench.cases import Case
from fastoptim.bench.storages import STORAGES
from fastoptim.bench.subjects import SUBJECTS, Unsupported
from fastoptim.bench.worker import Bench

Times = dict[str, list[float]]


def contestants(case: Case, *names: str, seconds: float = 0.02) -> dict[str, Callable[[], float]]:
    """The subjects of `fastoptim bench` that are here and can do this case, and the loops that belong to them, by name.

    Each steps arrays of its own for about so many seconds when it is called, and returns the seconds of one step.
    """
    found: dict[str, Callable[[], float]] = {}
    for name in names:
        bench = Bench((SUBJECTS | STORAGES)[name])
        with contextlib.suppress(Unsupported, ModuleNotFoundError):
            bench.ready(case, seconds, check=False)
            found |= {name if loop == "step" else loop: partial(_seconds, bench, loop) for loop in bench.loops}
    return found


def contestant(step: Callable[[], Any], seconds: float = 0.02) -> Callable[[], float]:
    """Any other function, to be called as those are."""
    bench = Bench(SUBJECTS["c"])
    bench.add("step", step, seconds)
    return partial(_seconds, bench, "step")


def _seconds(bench: Bench, loop: str) -> float:
    return bench.run(loop)["seconds"]


def take_turns(contestants: Mapping[str, Callable[[], float]], rounds: int) -> Times:
    """Seconds of a step of every contestant in every round."""
    times: Times = {name: [] for name in contestants}
    for k in range(rounds):
        for name in [*contestants] if k % 2 else [*reversed(contestants)]:
            time.sleep(0.02)  # the threads of the one before stop spinning
            times[name].append(contestants[name]())
    return times


def ratios(times: Times, above: str, below: str) -> list[float]:
    return [a / b for a, b in zip(times[above], times[below], strict=True)]
