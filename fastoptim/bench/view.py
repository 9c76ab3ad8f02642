"""Reads benchmark results: the figures that a report shows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..bench import machine
from .statistics import FEWEST_ROUNDS, Summary, loses, summarise

Entry = dict[str, Any]
YARDSTICKS = {"roof": "roof (same bytes)", "divide": "root and division"}


def seconds_text(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def ratio_text(ratio: float) -> str:
    return f"{ratio:.0f}x" if ratio >= 20 else f"{ratio:.1f}x" if ratio >= 2 else f"{ratio:.2f}x"


def threads_text(threads: int) -> str:
    return f"{threads} thread{'s' if threads > 1 else ''}"


def bytes_text(count: float) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"


class View:
    """The results document with the questions that the report asks of it."""

    def __init__(self, document: dict[str, Any]):
        self.document = document
        self.focus: str = document["settings"]["focus"]
        self.subjects: dict[str, Any] = document["subjects"]
        self.cases: list[Entry] = [entry for entry in document["cases"] if entry["results"]]
        self.caches: dict[str, int] = document["machine"]["caches"]
        self.threads = max((entry["threads"] for entry in self.cases), default=1)

    def title(self, key: str) -> str:
        return self.subjects[key]["title"] if key in self.subjects else YARDSTICKS.get(key, key)

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

    def seconds(self, entry: Entry, key: str) -> Summary | None:
        result = entry["results"].get(key)
        return summarise(result["seconds"]) if result else None

    def ratios(self, entry: Entry, key: str) -> list[float]:
        """How many times faster than `key` the focus is, one number per round in which both took their turn."""
        result = entry["results"].get(key)
        return result["speedup_of_focus"] if result else []

    def level(self, entry: Entry) -> str:
        return machine.level(entry["resident_bytes"], entry["threads"], self.caches)

    def fraction_of_roof(self, entry: Entry, key: str) -> Summary | None:
        """Time of the roof over the time of a subject, by rounds."""
        result, roof = entry["results"].get(key), entry["results"].get("roof")
        if not result or not roof or len(result["seconds"]) != len(roof["seconds"]):
            return None
        return summarise([a / b for a, b in zip(roof["seconds"], result["seconds"], strict=True)])

    def compared(self) -> Iterable[tuple[Entry, str, list[float]]]:
        """Every row in which the focus met a peer."""
        peers = self.peers()
        for entry in self.cases:
            for key in peers:
                ratios = self.ratios(entry, key)
                if ratios:
                    yield entry, key, ratios


def verdict(ratios: list[float]) -> str:
    """ "loss" or "win" where the whole interquartile range is below or above 1, "tie" elsewhere and in few rounds."""
    if loses(ratios):
        return "loss"
    return "win" if len(ratios) >= FEWEST_ROUNDS and summarise(ratios).q1 > 1 else "tie"


def case_text(entry: Entry) -> str:
    return f"{entry['rule']} {entry['dtype']}, {entry['label']}, {threads_text(entry['threads'])}"
