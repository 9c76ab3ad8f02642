"""``fastoptim bench``: time this machine and write a report; ``fastoptim bench compare A.json B.json``.

A run takes every subject (fastoptim's backends and whatever else is installed) through the same cases, in interleaved
rounds, and ends with a folder that holds report.html, report.md, results.json and the charts.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ..common.threads import usable_cores
from .cases import full_cases, quick_cases


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status.

    That is 0 if it worked, 130 after Ctrl-C (with a report of what was measured); of ``compare``, 1 if something became
    significantly slower. ValueError or OSError, before anything is measured, for an option or a file of no use.
    """
    if arguments and arguments[0] == "compare":
        return _compare(arguments[1:])
    return _bench(arguments)


def _folder(path: Path) -> Path:
    """The folder, made now and tried, so that a report is not lost after twenty minutes."""
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path):
        return path


def _bench(arguments: Sequence[str]) -> int:
    from ..bench import report, results, runner, verdicts

    parser = argparse.ArgumentParser(
        prog="fastoptim bench",
        description="Time this machine and write a report. `fastoptim bench compare A.json B.json` compares two runs.",
    )
    parser.add_argument("--quick", action="store_true", help="under 2 minutes (default: up to 20)")
    parser.add_argument(
        "--against",
        metavar="NAMES",
        help="comma-separated: torch, optax, jax, numpy, numexpr, thinc, sklearn, bitsandbytes, or "
        "name=module:function for code of your own (default: whatever is installed)",
    )
    parser.add_argument(
        "--minutes", type=float, metavar="M", help="stop measuring then (default: 19; 1.5 with --quick)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("bench_out"), help="folder for the report (default: %(default)s)"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="TEXT",
        help="only cases whose name holds one of these, as adam/float32 (default: all)",
    )
    options = parser.parse_args(arguments)

    mode = runner.QUICK if options.quick else runner.FULL
    if options.minutes is not None:
        if not 0 < options.minutes < math.inf:
            raise ValueError(f"--minutes must be positive and finite, got {options.minutes:g}")
        mode = mode._replace(seconds=60 * options.minutes)
    against = None if options.against is None else [name for name in options.against.split(",") if name]
    subjects, left_out = runner.choose(against, mode)
    cases = (quick_cases if options.quick else full_cases)(usable_cores())
    if options.only:
        cases = [case for case in cases if any(text in case.name for text in options.only)]
        if not cases:
            raise ValueError(f"no case holds {' or '.join(map(repr, options.only))} in its name")
    out = _folder(options.out)
    print(
        f"{len(cases)} cases, {len(subjects)} subjects, about {mode.seconds / 60:.2g} minutes. Close other programs; "
        "Ctrl-C writes the report of what was measured.",
        flush=True,
    )
    run = runner.Run(mode, subjects, left_out, sys.stderr)
    run.measure(cases)
    page = report.write(run.document, out)
    found = results.Results(run.document)
    for line in verdicts.notices(found):
        print(f"! {line}")
    for line in verdicts.in_short(found):
        print(f"- {line}")
    print(f"report: {page}")
    return 130 if run.document.get("interrupted") else 0


def _compare(arguments: Sequence[str]) -> int:
    from ..bench import compare, results

    parser = argparse.ArgumentParser(prog="fastoptim bench compare", description="Show what changed beyond noise.")
    parser.add_argument("a", type=Path, metavar="A.json", help="results.json of one run, or its folder")
    parser.add_argument("b", type=Path, metavar="B.json", help="the other's")
    options = parser.parse_args(arguments)
    a, b = results.load(options.a), results.load(options.b)
    found, drift = compare.changes(a, b)
    if not any(change.ours for change in found):
        raise ValueError("the two runs have no case in common")
    print(compare.to_text(a, b, found, drift))
    return int(any(change.ours and change.significant and change.relative > 0 for change in found))
