"""``fastoptim bench``: time this machine and write a report; ``fastoptim bench compare A.json B.json``.

A run takes every subject (fastoptim's backends and whatever else is installed) through the same cases, in interleaved
rounds, and ends with a folder that holds report.html, report.md, results.json and the charts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..common.threads import usable_cores
from .cases import full_cases, quick_cases


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; the exit status is 0 if it worked, 130 after Ctrl-C (with a report of what was measured).

    ``compare`` returns 1 if something became significantly slower.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if arguments[:1] == ["compare"]:
            return _compare(arguments[1:])
        return _bench(arguments)
    except (ValueError, OSError) as error:
        print(f"fastoptim bench: {error}", file=sys.stderr)
        return 2


def _bench(arguments: list[str]) -> int:
    from ..bench import report, runner, view

    parser = argparse.ArgumentParser(
        prog="fastoptim bench",
        description="Time this machine and write a report. `fastoptim bench compare A.json B.json` compares two runs.",
    )
    parser.add_argument("--quick", action="store_true", help="under 2 minutes; without it up to 20")
    parser.add_argument(
        "--against",
        metavar="NAMES",
        help="comma-separated: torch, optax, jax, numpy, numexpr, thinc, sklearn, or name=module:function for code of "
        "your own (default: whatever is installed)",
    )
    parser.add_argument("--minutes", type=float, metavar="M", help="stop measuring after so many minutes")
    parser.add_argument("--out", type=Path, default=Path("bench_out"), help="folder for the report")
    parser.add_argument("--only", metavar="TEXT", help="only cases whose name holds this text, such as adam/float32")
    options = parser.parse_args(arguments)

    mode = runner.QUICK if options.quick else runner.FULL
    if options.minutes is not None:
        if not options.minutes > 0:
            raise ValueError(f"--minutes must be positive, got {options.minutes:g}")
        mode = mode._replace(seconds=60 * options.minutes)
    against = None if options.against is None else [name for name in options.against.split(",") if name]
    subjects, left_out = runner.choose(against, mode)
    cases = (quick_cases if options.quick else full_cases)(usable_cores())
    if options.only:
        cases = [case for case in cases if options.only in case.name]
        if not cases:
            raise ValueError(f"no case holds {options.only!r} in its name")
    print(
        f"{len(cases)} cases, {len(subjects)} subjects, about {mode.seconds / 60:.0f} minutes. Close other programs; "
        "Ctrl-C writes the report of what was measured."
    )
    run = runner.Run(mode, subjects, left_out, sys.stderr)
    run.measure(cases)
    page = report.write(run.document, options.out)
    for line in report.in_short(view.View(run.document)):
        print(f"- {line}")
    print(f"report: {page}")
    return 130 if run.document.get("interrupted") else 0


def _compare(arguments: list[str]) -> int:
    from ..bench import compare

    parser = argparse.ArgumentParser(prog="fastoptim bench compare", description="What changed beyond noise.")
    parser.add_argument("a", type=Path, metavar="A.json")
    parser.add_argument("b", type=Path, metavar="B.json")
    options = parser.parse_args(arguments)
    a, b = (compare.load(path / "results.json" if path.is_dir() else path) for path in (options.a, options.b))
    found, drift = compare.changes(a, b)
    if not any(change.ours for change in found):
        raise ValueError("the two runs have no case in common")
    print(compare.to_text(a, b, found, drift))
    return int(any(change.ours and change.significant and change.relative > 0 for change in found))
