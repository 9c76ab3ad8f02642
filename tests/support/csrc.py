"""The C sources with some of the update rules: the more rules, the longer they compile, and the rest is the same."""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection
from pathlib import Path

from . import ROOT

CSRC = ROOT / "csrc"


def sources_with(rules: Collection[str], folder: Path, more: bool = False) -> Path:
    """Copy ``csrc/`` to `folder`, with these rules; with `more`, also with all measures and loops over fewer bits."""
    shutil.copytree(CSRC, folder)
    table = folder / "kernels" / "rule_table.h"
    head, steps, rest = re.split(r"(?<=\n)(?=#define)", table.read_text(), maxsplit=2)
    steps = re.sub(r"    X\((\w+),.*\n", lambda row: row[0] if row[1] in rules else "", steps)
    table.write_text(head + steps + "\n" + (rest if more else re.sub(r"    X\(.*\n", "", rest) + "\n"))
    return folder
