"""Finds what changed between two runs, beyond noise."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import median
from typing import Any, NamedTuple

from .statistics import BUSY, FEWEST_ROUNDS, Values, summarise, threshold
from .subjects import SUBJECTS, distribution

MAD_TO_SIGMA = 1.4826
FEWEST_CONTROLS = 5
FEWEST_IN_CASE = 3
ENGINES = {"torch": (), "jax": ("jaxlib",), "optax": ("jaxlib",)}  # what computes for a family; NumPy for all others


class Change(NamedTuple):
    """One row: a subject in a case."""

    case: str
    subject: str
    ours: bool
    before: float
    after: float
    limit: float  # the relative change that noise explains; infinite where too few rounds tell
    shift: float  # logarithm of how much the others changed in the same case: that was the machine

    @property
    def log_change(self) -> float:
        """Logarithm of the change beyond the machine's; above 0 is slower."""
        return math.log(self.after / self.before) - self.shift

    @property
    def relative(self) -> float:
        """The same as a fraction."""
        return math.expm1(self.log_change)

    @property
    def significant(self) -> bool:
        # A halved time is as much of a change as a doubled one.
        return abs(self.log_change) > math.log1p(self.limit)


def _rows(document: dict[str, Any]) -> dict[tuple[str, str], Values]:
    return {
        (entry["name"], key): result["seconds"]
        for entry in document["cases"]
        for key, result in entry["results"].items()
    }


def _unchanged(subject: str, a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether a subject is the same program in both runs, as only another library in one version is sure to be."""
    row = SUBJECTS.get(subject)
    if row is None or row.family == "fastoptim":
        return False
    packages = {*map(distribution, row.requires), *ENGINES.get(row.family, ("numpy",))}
    return all(a["machine"]["versions"].get(x) == b["machine"]["versions"].get(x) for x in packages)


def changes(a: dict[str, Any], b: dict[str, Any]) -> tuple[list[Change], float | None]:
    """Find every row that both runs have, and the drift between the runs.

    The *others* (NumPy, torch, ...) in the same version are the same programs in both runs, so what moves them is the
    machine. What they did in a case, in the median, is taken off the changes there (where they are too few, what they
    did in all cases); what is left of their changes is the drift, a standard deviation that counts as noise. None if
    too few of their rows are in both.
    """
    rows_a, rows_b = _rows(a), _rows(b)
    common = [key for key in rows_a if key in rows_b]
    families = {name: subject["family"] for name, subject in (a["subjects"] | b["subjects"]).items()}
    medians = {key: (summarise(rows_a[key]).median, summarise(rows_b[key]).median) for key in common}
    controls: dict[str, list[float]] = {}
    for (case, subject), (before, after) in medians.items():
        if _unchanged(subject, a, b):
            controls.setdefault(case, []).append(math.log(after / before))
    shifts = {case: median(moved) for case, moved in controls.items() if len(moved) >= FEWEST_IN_CASE}
    every = [x for moved in controls.values() for x in moved]
    elsewhere = median(every) if len(every) >= FEWEST_CONTROLS else 0.0
    left = [abs(x - shifts.get(case, elsewhere)) for case, moved in controls.items() for x in moved]
    drift = MAD_TO_SIGMA * median(left) if len(left) >= FEWEST_CONTROLS else None
    found = [
        Change(
            case,
            subject,
            families.get(subject) == "fastoptim",
            *medians[case, subject],
            threshold(rows_a[case, subject], rows_b[case, subject], drift or 0.0),
            shifts.get(case, elsewhere),
        )
        for case, subject in common
    ]
    return found, drift


def to_text(a: dict[str, Any], b: dict[str, Any], found: list[Change], drift: float | None) -> str:
    """Write the comparison for a person to read."""
    ours = [change for change in found if change.ours]
    significant = sorted((c for c in ours if c.significant), key=lambda c: -abs(c.log_change))
    lines = [f"A: {_header(a)}", f"B: {_header(b)}"]
    lines += [f"   {name} differs: {x} / {y}" for name, x, y in _differences(a, b)]
    lines.append(f"{len(ours)} rows of fastoptim are in both.")
    for name, run, other in (("A", a, b), ("B", b, a)):
        lines += [f"! {name} {doubt}" for doubt in _doubts(run, other)]
    if too_few := sum(math.isinf(c.limit) for c in ours):
        lines.append(f"{too_few} of them have fewer than {FEWEST_ROUNDS} rounds in a run, too few to be significant.")
    if drift is None:
        lines.append("Too few rows of unchanged libraries are in both to tell how much the machine itself changed.")
    else:
        lines.append(f"Unchanged libraries drifted by {drift:.1%} (standard deviation), which counts as noise.")
        lines.append("Factors are beyond what they did in the same case; times are as measured.")
    if not significant:
        lines.append("No significant change.")
    else:
        slower = sum(c.relative > 0 for c in significant)
        lines.append(f"{len(significant)} significant changes: {slower} slower, {len(significant) - slower} faster.")
    for c in significant:
        word = "slower" if c.relative > 0 else "faster"
        lines.append(
            f"  {word:6} x{math.exp(abs(c.log_change)):.2f}  {c.before * 1e6:11.2f} -> "
            f"{c.after * 1e6:11.2f} us  (noise: {c.limit:.0%})  {c.subject}: {c.case}"
        )
    return "\n".join(lines)


def _doubts(run: dict[str, Any], other: dict[str, Any]) -> Iterator[str]:
    """What speaks against relying on a run, and what of it the other one lacks."""
    disturbed, cases = run["noise"]["disturbed_cases"], len(run["cases"])
    if disturbed > BUSY * cases:
        yield f"was measured while the machine was busy, in {disturbed} of {cases} cases: do not decide by it."
    if missing := run["not_reached"]:
        yield f"is not complete: {len(missing)} cases are missing."
    families, theirs = {name: subject["family"] for name, subject in run["subjects"].items()}, _rows(other)
    alone = [key for key in _rows(run) if key not in theirs and families.get(key[1]) == "fastoptim"]
    if alone:
        listed = "; ".join(f"{subject}: {case}" for case, subject in alone[:3])
        more = f" and {len(alone) - 3} more" if len(alone) > 3 else ""
        yield f"alone has {len(alone)} rows of fastoptim, which are not compared: {listed}{more}."


def _isa(document: dict[str, Any]) -> Any:
    return document["machine"]["backends"].get("c", {}).get("isa", "no C kernels")


def _header(document: dict[str, Any]) -> str:
    m = document["machine"]
    return f"{m['date']}, commit {m['commit']}, {m['cpu']}, {_isa(document)}, {document['mode']} run"


def _differences(a: dict[str, Any], b: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """What makes two runs hard to compare."""
    rows = [(name, a["machine"][name], b["machine"][name]) for name in ("cpu", "cores", "threads")]
    rows.append(("instruction set", _isa(a), _isa(b)))
    rows += [
        (f"version of {name}", a["machine"]["versions"].get(name), b["machine"]["versions"].get(name))
        for name in a["machine"]["versions"] | b["machine"]["versions"]
    ]
    return [row for row in rows if row[1] != row[2]]
