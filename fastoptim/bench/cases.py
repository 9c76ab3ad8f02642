"""Lists what is timed: one row per case, from the table of rules."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from ..rules.table import RULES

_GPT2_BLOCK = (
    *((768,), (768,), (768, 2304), (2304,), (768, 768), (768,)),  # layer norm, attention
    *((768,), (768,), (768, 3072), (3072,), (3072, 768), (768,)),  # layer norm, network
)
GPT2_SMALL: tuple[tuple[int, ...], ...] = ((50257, 768), (1024, 768), *(12 * _GPT2_BLOCK), (768,), (768,))


@dataclass(frozen=True)
class Case:
    """One thing to time, for every subject."""

    section: str  # where the report shows it: "size", "list", "clip", "storage", "launch", "training" or "rows"
    rule: str  # a key of `fastoptim.rules.table.RULES`
    arrays: tuple[tuple[int, int], ...]  # the list of parameters: (count, elements)
    threads: int  # that a step may use
    label: str
    dtype: str = "float32"
    gradients: str = "reused"  # or "fresh": every step gets arrays that the step before has not seen
    max_norm: float | None = None  # clip gradients to this norm
    rows: tuple[int, int] | None = None  # gradients of so many rows, drawn anew for every step, of so many elements
    batch: int | None = None  # compute a network's gradients for so many rows before each step, and time that too
    stored: tuple[str, str] = ("float32", "float32")  # what a subject stores parameters and gradients, and states in

    @property
    def name(self) -> str:
        """Identity of the case across runs."""
        return f"{self.section}/{self.rule}/{self.dtype}/{self.label}/{self.threads} threads"

    @property
    def sizes(self) -> list[int]:
        return [elements for count, elements in self.arrays for _ in range(count)]

    @property
    def count(self) -> int:
        return sum(count for count, _ in self.arrays)

    @property
    def elements(self) -> int:
        return sum(count * elements for count, elements in self.arrays)

    @property
    def itemsize(self) -> int:
        return {"float32": 4, "float64": 8}[self.dtype]

    @property
    def resident_bytes(self) -> int:
        """Bytes of the parameters, gradients and states."""
        return (2 + len(RULES[self.rule].states)) * self.itemsize * self.elements

    @property
    def moved_bytes(self) -> int:
        """Bytes that one step must read and write."""
        return RULES[self.rule].memory_streams * self.itemsize * self.elements

    def to_json(self) -> dict[str, Any]:
        derived = ("name", "elements", "count", "resident_bytes", "moved_bytes")
        entry = asdict(self) | {name: getattr(self, name) for name in derived}
        del entry["stored"]  # each subject has its own
        return entry

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> Case:
        fields = {name: entry[name] for name in cls.__dataclass_fields__ if name != "stored"}
        fields["rows"] = fields["rows"] and tuple(fields["rows"])
        return cls(**fields | {"arrays": tuple((count, elements) for count, elements in fields["arrays"])})


def _power(elements: int) -> str:
    return f"{elements:.0e}".replace("e+0", "e")


def size_case(rule: str, elements: int, threads: int, dtype: str = "float32") -> Case:
    return Case("size", rule, ((1, elements),), threads, _power(elements), dtype)


def list_case(threads: int, gradients: str = "reused") -> Case:
    label = "1000 arrays of 1000 elements" + ", new gradients at every step" * (gradients == "fresh")
    return Case("list", "adam", ((1000, 1000),), threads, label, gradients=gradients)


def gpt2_case(threads: int) -> Case:
    counts = Counter(math.prod(shape) for shape in GPT2_SMALL)
    arrays = tuple((count, elements) for elements, count in counts.items())
    return Case("list", "adam", arrays, threads, "GPT-2 small, 148 arrays")


def clip_case(elements: int, threads: int) -> Case:
    return Case("clip", "adam", ((1, elements),), threads, f"clip {_power(elements)}", max_norm=1.0)


def storage_case(elements: int, threads: int) -> Case:
    return Case("storage", "adam", ((1, elements),), threads, f"storage {_power(elements)}")


def launch_case(rule: str, count: int) -> Case:
    return Case("launch", rule, ((count, 1),), 1, f"{count} x 1")


def rows_case(rule: str, rows: int, threads: int) -> Case:
    count, width = TABLE
    label = f"{rows:,} of {count:,} rows of {width}"
    return Case("rows", rule, ((1, count * width),), threads, label, rows=(rows, width))


def training_case(batch: int, threads: int) -> Case:
    return Case("training", "adam", TRAINING_ARRAYS, threads, f"batch {batch}", batch=batch)


TABLE = (200_000, 64)
TRAINING_SIZES = (784, 1024, 1024, 10)
TRAINING_ARRAYS = tuple(shape for a, b in itertools.pairwise(TRAINING_SIZES) for shape in ((1, a * b), (1, b)))


def thread_counts(cores: int, full: bool) -> list[int]:
    """Choose 1 and all cores; in a full run the powers of two in between as well."""
    counts = {1, cores}
    if full:
        counts |= {2**k for k in range(cores.bit_length()) if 2**k < cores}
    return sorted(counts)


def quick_cases(cores: int) -> list[Case]:
    cases = [clip_case(10**6, cores), training_case(32, cores)]
    for threads in reversed(thread_counts(cores, full=False)):
        cases += [size_case("adam", n, threads) for n in (10**3, 10**4, 10**5, 10**6, 10**7)]
        cases += [size_case(rule, n, threads) for rule in ("sgd", "momentum") for n in (10**3, 10**5, 10**7)]
        cases += [list_case(threads)]
    cases += [storage_case(n, cores) for n in (10**5, 10**7)]
    cases += [launch_case("adam", 1), rows_case("sgd", 1024, 1)]
    return cases


def full_cases(cores: int) -> list[Case]:
    cases = [training_case(32, cores), training_case(256, cores)]
    sizes = [10**k for k in range(3, 9)]
    others = [rule for rule in RULES if rule not in ("sgd", "momentum", "adam")]
    for threads in reversed(thread_counts(cores, full=True)):
        if threads == 1:
            cases += [launch_case("sgd", 1), launch_case("adam", 1), launch_case("adam", 100)]
        every_size = sizes if threads in (1, cores) else [10**5, 10**6, 10**7]
        cases += [size_case(rule, n, threads) for rule in ("adam", "momentum", "sgd") for n in every_size]
        if threads in (1, cores):
            cases += [list_case(threads), list_case(threads, "fresh"), gpt2_case(threads)]
            cases += [clip_case(n, threads) for n in (10**6, 10**8)]
            cases += [storage_case(n, threads) for n in (10**5, 10**7, 10**8)]
            cases += [rows_case(rule, k, threads) for rule in ("sgd", "adam") for k in (32, 1024, 32768)]
            cases += [size_case("adam", n, threads, "float64") for n in (10**3, 10**5, 10**7)]
        if threads == cores:
            cases += [size_case(rule, n, cores) for rule in others for n in (10**5, 10**7)]
    return cases
