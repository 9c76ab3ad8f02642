"""Write the README's numbers from a committed run, so that they cannot drift.

    python benchmarks/readme_numbers.py                    # write them between the markers
    python benchmarks/readme_numbers.py --check            # exit status 1 if the README says something else
    python benchmarks/readme_numbers.py --take bench_out   # first keep what a run of `fastoptim bench` measured

The numbers stand between the lines ``<!-- numbers: begin -->`` and ``<!-- numbers: end -->``; whatever is written there
by hand is lost. Their source is ``benchmarks/results/cpu/results.json``: what ``fastoptim bench`` wrote, with medians
and quartiles in the place of rounds. The report and its pictures lie beside it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastoptim.bench import report, verdicts
from fastoptim.bench.render import markdown_table
from fastoptim.bench.results import Results, load, ratio_text, seconds_text, threads_text
from fastoptim.bench.statistics import NOISY, summarise

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path("benchmarks/results/cpu/results.json")
BEGIN, END = "<!-- numbers: begin -->", "<!-- numbers: end -->"


def numbers(results: Results) -> str:
    """Write the section of the README, in Markdown."""
    m = results.document["machine"]
    lines = [
        f"Measured on {m['cpu']} ({m['cores']} cores, {m['system']}), {m['date'][:10]}, by `fastoptim bench`; medians "
        "of interleaved rounds (\N{ALMOST EQUAL TO}: equal within noise, "
        f"~: spread by more than {NOISY:.0%}). The whole report, with one thread and other rules: "
        f"[report.md]({RESULTS.parent.as_posix()}/report.md).",
    ]
    lines.append(_bullets(verdicts.training_verdicts(results)[:-1]))
    entries = results.sizes("adam", results.threads)
    columns = [f"{entry['label']} ({results.level(entry)})" for entry in entries]
    threads = threads_text(results.threads)
    caption = f"Adam, float32, one array, {threads}: how many times as fast fastoptim's C kernels are"
    if table := report.speedup_table(results, entries, columns, caption):
        lines.append(markdown_table(table))
    points = verdicts.roofline_verdict(results)
    for entry in results.select("list"):
        ratios, mine = results.ratios(entry, "torch-fused"), results.seconds(entry, results.focus)
        if ratios and mine:
            points.append(
                f"{entry['label']}, {threads_text(entry['threads'])}: {seconds_text(mine.median)} a step, "
                f"{ratio_text(summarise(ratios).median)} as fast as torch fused."
            )
    points += verdicts.tally(results)
    lines.append(_bullets(points))
    return "\n\n".join(line for line in lines if line)


def _bullets(points: list[str]) -> str:
    return "\n".join(f"- {point}" for point in points)


def with_numbers(page: str, text: str, begin: str = BEGIN, end: str = END) -> str:
    """Put this text between two lines of a page; ValueError if it has no such place."""
    if page.count(begin) != 1 or page.count(end) != 1 or page.index(begin) > page.index(end):
        raise ValueError(f"the page needs one line {begin} and, after it, one line {end}")
    before, rest = page.split(begin)
    return f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}"


def _short(value: Any) -> Any:
    """Nine digits of every fraction, and quartiles in the place of a number for each round."""
    if isinstance(value, float):
        return float(f"{value:.9g}")
    if isinstance(value, list) and value and all(isinstance(x, float) for x in value):
        return _short(summarise(value)._asdict())
    if isinstance(value, dict):
        return {key: _short(x) for key, x in value.items()}
    return value


def condensed(document: dict[str, Any]) -> str:
    """Write a results document with quartiles in the place of rounds, one line for each subject in a case."""
    cases = []
    for entry in document["cases"]:
        results = {key: _short(result) for key, result in entry["results"].items() if result["seconds"]}
        rows = ",\n".join(f"   {json.dumps(key)}: {json.dumps(result)}" for key, result in results.items())
        rest = json.dumps(_short({key: value for key, value in entry.items() if key != "results"}))
        cases.append(f'  {rest[:-1]}, "results": {{\n{rows}}}}}')
    head = json.dumps(_short(document | {"cases": []}), indent=1)
    return head.replace('"cases": []', '"cases": [\n' + ",\n".join(cases) + "]") + "\n"


def take(source: Path, target: Path) -> None:
    """Keep a run's results, condensed, and its report beside them."""
    text = condensed(load(source))
    report.write(json.loads(text), target.parent)
    (target.parent / "report.html").unlink()
    target.write_text(text, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit status 1 if the numbers drifted")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--results", type=Path, default=ROOT / RESULTS)
    parser.add_argument("--take", type=Path, metavar="RUN", help="folder or results.json of the run to keep")
    options = parser.parse_args(arguments)
    if options.take:
        take(options.take, options.results)
    readme = options.readme.read_text(encoding="utf-8")
    wanted = with_numbers(readme, numbers(Results(load(options.results))))
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
