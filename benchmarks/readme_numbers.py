"""Write the README's numbers from a committed run, so that they cannot drift.

    python benchmarks/readme_numbers.py            # write them between the markers
    python benchmarks/readme_numbers.py --check    # exit status 1 if the README says something else

The numbers stand between the lines ``<!-- numbers: begin -->`` and ``<!-- numbers: end -->``; whatever is written there
by hand is lost. Their source is ``benchmarks/results/cpu/results.json``, written by ``fastoptim bench``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fastoptim.bench import compare, report
from fastoptim.bench.render import markdown_table
from fastoptim.bench.statistics import summarise
from fastoptim.bench.view import View, ratio_text, seconds_text, threads_text

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path("benchmarks/results/cpu/results.json")
BEGIN, END = "<!-- numbers: begin -->", "<!-- numbers: end -->"


def numbers(view: View) -> str:
    """The section of the README, in Markdown."""
    m = view.document["machine"]
    lines = [
        f"Measured on {m['cpu']} ({m['cores']} cores, {m['system']}), {m['date'][:10]}, by `fastoptim bench`; medians "
        f"of interleaved rounds. The whole report: [report.md]({RESULTS.parent.as_posix()}/report.md), every round: "
        f"[results.json]({RESULTS.as_posix()}).",
    ]
    for threads in (1, view.threads) if view.threads > 1 else (1,):
        entries = view.select("size", rule="adam", dtype="float32", threads=threads)
        entries.sort(key=lambda entry: entry["elements"])
        columns = [f"{entry['label']} ({view.level(entry)})" for entry in entries]
        caption = f"Adam, float32, one array, {threads_text(threads)}: how many times faster fastoptim's C kernels are"
        table = report.speedup_table(view, entries, columns, caption)
        if table:
            lines.append(markdown_table(table))
    points = report.in_short(view)[:1]
    for entry in view.select("list"):
        ratios = view.ratios(entry, "torch-fused")
        mine = view.seconds(entry, view.focus)
        if ratios and mine:
            points.append(
                f"{entry['label']}, {threads_text(entry['threads'])}: {seconds_text(mine.median)} a step, "
                f"{ratio_text(summarise(ratios).median)} as fast as torch fused."
            )
    for entry in view.select("training"):
        shares = []
        for key in ("numpy-naive", "numpy-in-place", view.focus):
            result = entry["results"].get(key)
            if result:
                share = summarise(result["update_seconds"]).median / summarise(result["seconds"]).median
                shares.append(f"{share:.0%} with {view.title(key)}")
        if shares:
            network = f"a 784-1024-1024-10 NumPy network, {entry['label']}"
            points.append(f"Share of Adam in a training step of {network}: {', '.join(shares)}.")
    points += report.in_short(view)[-1:]
    lines.append("\n".join(f"- {point}" for point in points))
    return "\n\n".join(lines)


def with_numbers(readme: str, text: str) -> str:
    """The README with this text between the markers; ValueError if it has no such place."""
    if readme.count(BEGIN) != 1 or readme.count(END) != 1 or readme.index(BEGIN) > readme.index(END):
        raise ValueError(f"the README needs one line {BEGIN} and, after it, one line {END}")
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit status 1 if the numbers drifted")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--results", type=Path, default=ROOT / RESULTS)
    options = parser.parse_args(arguments)
    readme = options.readme.read_text(encoding="utf-8")
    wanted = with_numbers(readme, numbers(View(compare.load(options.results))))
    if options.check:
        if wanted != readme:
            print("README.md does not say what the committed results say: run python benchmarks/readme_numbers.py")
            return 1
        print("README.md says what the committed results say")
        return 0
    options.readme.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
