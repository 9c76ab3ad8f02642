"""The blocks that a report is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .charts import Chart


@dataclass
class Heading:
    text: str


@dataclass
class Paragraph:
    text: str


@dataclass
class Points:
    items: list[str]


@dataclass
class Cell:
    """Text of a table cell; `mark` is "loss", "win" or nothing."""

    text: str
    mark: str = ""


@dataclass
class Table:
    header: list[str]
    rows: list[list[Cell]]
    caption: str = ""
    numeric: bool = True  # all columns but the first are numbers


@dataclass
class Figures:
    charts: list[Chart] = field(default_factory=list)


@dataclass
class Folded:
    """Blocks that are closed until asked for."""

    title: str
    blocks: list[Any]


Block = Heading | Paragraph | Points | Table | Figures | Folded
