"""What a planted bug is."""

from __future__ import annotations

from typing import NamedTuple

GOLDEN, BITS, ORACLE, RANDOM, THREADS, REFUSALS, OBJECTS, DISPATCH = (
    f"tests/{name}.py"
    for name in (
        "backends/test_golden",
        "backends/test_bits",
        "rules/test_oracle",
        "backends/test_random_cases",
        "backends/test_threads",
        "optimizers/test_refusals",
        "backends/test_objects",
        "backends/test_dispatch",
    )
)
EMULATED = "tests/backends/test_emulated.py"
GOLDEN_C = f"{GOLDEN}::test_c_on_every_instruction_set"
OPTIMIZERS, FUNCTIONAL = "tests/optimizers/test_optimizers.py", "tests/optimizers/test_functional.py"


class Mutant(NamedTuple):
    """`old` becomes `new` at its place number `which` in a file; `tests` are to notice."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...] = (GOLDEN_C, RANDOM, BITS)
    which: int = 0


def planted(file: str, tests: tuple[str, ...], *bugs: tuple[str, str, str] | tuple[str, str, str, int]) -> list[Mutant]:
    return [Mutant(name, file, old, new, tests, *which) for name, old, new, *which in bugs]
