"""Read benchmark results: files that are checked first, and the figures that a report asks of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..common.text import printable
from .statistics import NOISY, Summary, Values, summarise

SCHEMA, SCHEMA_VERSION = "fastoptim-bench", 2
MOST_BYTES = 64 << 20
LONGEST_TEXT = 300
ROOFLINE_LOOPS = {"roofline": "roofline (same bytes)", "divide": "root and division", "dense": "the dense step"}

Entry = dict[str, Any]


# --- files --------------------------------------------------------------------------------------------------------


def _clean(value: Any) -> Any:
    """The same document with nothing in its texts that a terminal might act on."""
    if isinstance(value, str):
        return printable(value[:LONGEST_TEXT])
    if isinstance(value, list):
        return [_clean(x) for x in value]
    if isinstance(value, dict):
        return {_clean(key): _clean(x) for key, x in value.items()}
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_seconds(value: Any, where: str) -> None:
    if isinstance(value, dict):
        fields = ("q1", "median", "q3")
        rounds = value.get("rounds")
        if {*value} != {*fields, "rounds"} or not isinstance(rounds, int) or isinstance(rounds, bool) or rounds < 1:
            raise ValueError(f"{where} must hold q1, median, q3 and rounds")
        value = [value[name] for name in fields]
        ordered = all(map(_is_number, value)) and value == sorted(value)
    else:
        ordered = isinstance(value, list) and all(map(_is_number, value))
    if not ordered or not value or not all(1e-12 < x < 1e9 for x in value):
        raise ValueError(f"{where} must be positive seconds: one number for each round, or their quartiles")


ANY = "*"  # stands for every key of a mapping
# What a comparison reads: a dict is a mapping with these keys, a list holds any number of its one element.
SHAPE: dict[str, Any] = {
    "mode": str,
    "machine": {
        "date": str,
        "cpu": str,
        "cores": int,
        "versions": {ANY: str},
        "backends": {ANY: {}},
        "threads": {ANY: str},
        "commit": str,
    },
    "noise": {"disturbed_cases": int},
    "not_reached": [str],
    "subjects": {ANY: {"title": str, "family": str}},
    "cases": [{"name": str, "results": {ANY: {"seconds": _check_seconds}}}],
}


def _check(value: Any, shape: Any, where: str) -> None:
    """ValueError that names the first place where a document is not what it should be."""
    kind = type(shape) if isinstance(shape, dict | list) else shape
    if isinstance(kind, type) and (not isinstance(value, kind) or isinstance(value, bool)):
        raise ValueError(f"{where} must be {kind.__name__}, got {type(value).__name__}")
    if isinstance(shape, list):
        for number, entry in enumerate(value):
            _check(entry, shape[0], f"{where}, entry {number}")
    elif isinstance(shape, dict):
        wanted = dict.fromkeys(value, shape[ANY]) if ANY in shape else shape
        missing = [key for key in wanted if key not in value]
        if missing:
            raise ValueError(f"{where} is not whole: it lacks {', '.join(missing)}")
        for key, inner in wanted.items():
            _check(value[key], inner, f"{where}, {key}")
    elif not isinstance(kind, type):
        shape(value, where)


def load(path: Path) -> dict[str, Any]:
    """Read results.json, or that of a folder, and check it as far as a comparison reads it.

    Texts are fit for a terminal. ValueError, which names the place, if it is something else, too large or damaged.
    """
    path = path / "results.json" if path.is_dir() else path
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a file")
    with path.open("rb") as file:
        text = file.read(MOST_BYTES + 1)
    if len(text) > MOST_BYTES:
        raise ValueError(f"{path.name} has more than {MOST_BYTES >> 20} MiB, too many for benchmark results")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is not JSON: {error}") from error
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise ValueError(f"{path.name} does not hold results of a benchmark run")
    version = document.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ValueError(f"{path.name} has schema version {str(version)[:20]}, expected {SCHEMA_VERSION}")
    cleaned: dict[str, Any] = _clean(document)
    _check(cleaned, SHAPE, path.name)
    return cleaned


# --- texts --------------------------------------------------------------------------------------------------------


def _in_units(value: float, units: Mapping[str, float]) -> str:
    """Three digits in the largest unit in which they are at least 1, else in the last; never an exponent."""
    counts = [(value / size, unit) for unit, size in units.items()]
    count, unit = next((pair for pair in counts if float(f"{pair[0]:.3g}") >= 1.0), counts[-1])
    return f"{count:.0f} {unit}" if count >= 999.5 else f"{count:.3g} {unit}"


def seconds_text(seconds: float) -> str:
    return _in_units(seconds, {"s": 1.0, "ms": 1e-3, "µs": 1e-6, "ns": 1e-9})


def ratio_text(ratio: float) -> str:
    return f"{ratio:.{0 if ratio >= 20 else 1 if ratio >= 2 else 2 if ratio >= 0.1 else 4}f}x"


def share_text(share: float) -> str:
    """A share of the roofline; nothing exceeds it, so what seems to is noise."""
    return f"{share:.0%}" if share < 0.995 else "the roofline, within noise"


def threads_text(threads: int) -> str:
    return f"{threads} thread{'s' if threads > 1 else ''}"


def bytes_text(count: float) -> str:
    return _in_units(count, {"GiB": 1 << 30, "MiB": 1 << 20, "KiB": 1 << 10, "B": 1})


def case_text(entry: Entry) -> str:
    return f"{entry['rule']} {entry['dtype']}, {entry['label']}, {threads_text(entry['threads'])}"


# --- figures ------------------------------------------------------------------------------------------------------


def cache_bytes(sizes: dict[str, int], threads: int) -> dict[str, int]:
    """What so many threads have of caches of these sizes, nearest first: L3 once for all."""
    return {name: sizes[name] * (threads if name != "L3" else 1) for name in ("L1", "L2", "L3") if name in sizes}


def memory_level(resident_bytes: int, threads: int, sizes: dict[str, int]) -> str:
    """Name the smallest memory that holds so many bytes: "L1", "L2", "L3" or "memory"."""
    return next((name for name, size in cache_bytes(sizes, threads).items() if resident_bytes <= size), "memory")


class Results:
    """A results document with the questions that a report asks of it."""

    def __init__(self, document: dict[str, Any]):
        self.document = document
        self.focus: str = document["settings"]["focus"]
        self.subjects: dict[str, Any] = document["subjects"]
        self.cases: list[Entry] = [entry for entry in document["cases"] if entry["results"]]
        self.threads = max((entry["threads"] for entry in self.cases), default=1)

    def title(self, key: str) -> str:
        return self.subjects[key]["title"] if key in self.subjects else ROOFLINE_LOOPS.get(key, key)

    def peers(self) -> list[str]:
        return [name for name, subject in self.subjects.items() if subject["family"] != "fastoptim"]

    def ours(self) -> list[str]:
        return [name for name, subject in self.subjects.items() if subject["family"] == "fastoptim"]

    def select(self, section: str, **wanted: Any) -> list[Entry]:
        return [
            entry
            for entry in self.cases
            if entry["section"] == section and all(entry[key] == value for key, value in wanted.items())
        ]

    def sizes(self, rule: str, threads: int) -> list[Entry]:
        """One array of float32, smallest first."""
        return sorted(self.select("size", rule=rule, threads=threads, dtype="float32"), key=lambda e: e["elements"])

    def seconds(self, entry: Entry, key: str) -> Summary | None:
        result = entry["results"].get(key)
        return summarise(result["seconds"]) if result else None

    def ratios(self, entry: Entry, key: str) -> Values:
        """How many times faster than `key` the focus is, one number per round in which both were timed."""
        result = entry["results"].get(key)
        return result["speedup_of_focus"] if result else []

    def caches(self, threads: int) -> dict[str, int]:
        return cache_bytes(self.document["machine"]["caches"], threads)

    def level(self, entry: Entry) -> str:
        return memory_level(entry["resident_bytes"], entry["threads"], self.document["machine"]["caches"])

    def share_of_roofline(self, entry: Entry, key: str) -> Summary | None:
        """Time of the roofline loop over the time of a subject, by rounds."""
        shares = entry["results"].get(key, {}).get("share_of_roofline")
        return summarise(shares) if shares else None

    def compared(self) -> Iterable[tuple[Entry, str, Values]]:
        """Every row in which the focus met a peer."""
        peers = self.peers()
        for entry in self.cases:
            for key in peers:
                if ratios := self.ratios(entry, key):
                    yield entry, key, ratios

    def noisy_rows(self) -> tuple[int, int]:
        """How many rows spread too much to be quoted, and how many there are."""
        spreads = [summarise(r["seconds"]).spread for e in self.cases for r in e["results"].values()]
        return sum(spread > NOISY for spread in spreads), len(spreads)
