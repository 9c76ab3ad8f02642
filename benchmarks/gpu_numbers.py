"""Write the figures of docs/howto/gpu.md from committed runs of gpu_check.py, beside those predicted before the first.

    python benchmarks/gpu_numbers.py             # write them between the page's markers
    python benchmarks/gpu_numbers.py --check     # exit status 1 if the page says something else

The runs are all JSON files below ``benchmarks/results/gpu/``, except those of the simulator and of the tests' driver.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from readme_numbers import ROOT, with_numbers

from fastoptim.bench.cases import GPT2_SMALL
from fastoptim.bench.render import Table, markdown_table
from fastoptim.bench.results import ratio_text, seconds_text
from fastoptim.rules.table import RULES

PAGE, RUNS = Path("docs/howto/gpu.md"), Path("benchmarks/results/gpu")
# The prediction, of November 2026. A copy on the device is said to reach 0.9 of the peak of NVIDIA's data sheets (SXM);
# Adam's seven streams cost a little more than that. A step from Python takes what cuda_host.py measures without a GPU,
# and 3 us for the real driver's launch.
PEAKS = {"H100": 3350.0, "H200": 4800.0}  # GB/s
SHARES = {"sgd": 0.90, "momentum": 0.90, "adam": 0.88}
HOST = {1: 18e-6, 148: 25e-6, 1000: 68e-6}  # seconds of a step over so many arrays
SIZES = (10**4, 10**6, 10**8)
LISTS = {"gpt2_small": (148, sum(map(math.prod, GPT2_SMALL))), "1000 x 1000": (1000, 10**6)}


def predicted(kind: str, elements: int, peak: float, arrays: int = 1) -> float:
    """Seconds of a step of float32 arrays where memory, or else Python, is all that takes time."""
    moved = 4 * (3 + 2 * len(RULES[kind].states)) * elements
    return max(HOST[arrays], moved / (1e9 * peak * SHARES[kind]))


def prediction() -> str:
    cases = [(f"{kind}, {n:,} elements", (kind, n, 1)) for kind in SHARES for n in SIZES]
    cases += [(f"adam, {name}", ("adam", total, arrays)) for name, (arrays, total) in LISTS.items()]
    rows = [
        [label, *(seconds_text(predicted(kind, n, peak, arrays)) for peak in PEAKS.values())]
        for label, (kind, n, arrays) in cases
    ]
    return markdown_table(Table(["float32", *PEAKS], rows, "Predicted before the first run: a step"))


def measured(run: dict[str, Any]) -> list[str]:
    """What one run found: its tables, and a line for each of the rest."""
    card = run.get("environment", {}).get("backend", {}).get("device", "an unnamed GPU")
    peak = next((peak for name, peak in PEAKS.items() if name in card), None)

    def expected(seconds: float, kind: str, n: int, arrays: int = 1) -> str:
        return "-" if peak is None else f"{seconds / predicted(kind, n, peak, arrays):.2f}"

    sizes, lists, lines = [], [], []
    for row in run.get("sizes", []):
        if "microseconds" in row:
            kind, n, seconds = row["rule"], row["size"], 1e-6 * row["microseconds"]["ours"]
            torch, share = row.get("torch_over_ours"), row.get("share_of_copy_bandwidth")
            share = "-" if share is None else f"{share:.2f}"
            more = [f"{row['gigabytes_per_second']:.0f}", share, ratio_text(torch["median"]) if torch else "-"]
            sizes.append([f"{kind}, {n:,}", seconds_text(seconds), expected(seconds, kind, n), *more])
    for row in run.get("lists", []):
        times = row["microseconds"]
        names = ("ours", "ours_clipped", "ours_new_gradients", "ours_one_flat_array", "torch_fused")
        cells = [seconds_text(1e-6 * times[name]) if name in times else "-" for name in names]
        known = row["list"] in LISTS
        ratio = expected(1e-6 * times["ours"], "adam", row["elements"], row["arrays"]) if known else "-"
        lists.append([row["list"], *cells, ratio])
    if sizes:
        header = [
            "a step, float32",
            "time",
            "of the prediction",
            "GB/s",
            "of a copy's bandwidth",
            "as fast as torch fused",
        ]
        lines.append(markdown_table(Table(header, sizes, f"Measured on {card}")))
    if lists:
        header = [
            "adam, float32",
            "a step",
            "clipped",
            "new gradients",
            "as one array",
            "torch fused",
            "of the prediction",
        ]
        lines.append(markdown_table(Table(header, lists, f"Many arrays, on {card}")))
    lines += filter(None, (alone(run, "storages", card), alone(run, "rules", card)))
    points = [
        f"{stage.replace('_', ' ')}: {run[stage]['differing']} of {run[stage]['elements']:,} elements differ from the "
        f"NumPy reference, in {run[stage]['checks']:,} checks."
        for stage in ("bits", "fewer_bits")
        if stage in run
    ]
    if use := run.get("first_use"):
        cold, cached, later = use["first_step_cold_s"], use["first_step_cached_s"], 1e-6 * use["warm_step_host_us"]
        points.append(
            f"First step: {seconds_text(cold)}, with filled cache {seconds_text(cached)}; "
            f"the host's share of a later one: {seconds_text(later)}."
        )
    lines += ["\n".join(f"- {point}" for point in points)] if points else []
    return lines


def alone(run: dict[str, Any], stage: str, card: str) -> str:
    """The table of what was timed on the GPU's own clock; empty if nothing was."""
    rows, found = [], [row for row in run.get(stage, []) if "device_us" in row]
    if not found:
        return ""
    for row in found:
        times, first = row["device_us"], found[0]["device_us"]
        fastest = min((times[name], name) for name in times if name.startswith("torch_")) if len(times) > 2 else None
        parameters, states, *master = row["storage"]
        stored = f"{parameters} parameters, {states} states{', master copy' if master else ''}"
        more = ratio_text(first["ours"] / times["ours"]) if stage == "storages" else None
        rows.append(
            [
                stored if stage == "storages" else row["rule"],
                seconds_text(1e-6 * times["ours"]),
                f"{row['bytes_an_element']:.3g}",
                f"{row['share_of_copy_bandwidth']:.2f}",
                *([more] if more else []),
                f"{ratio_text(fastest[0] / times['ours'])} ({fastest[1][6:]})" if fastest else "-",
            ]
        )
    header = ["Adam" if stage == "storages" else "float32", "a step", "bytes an element", "of a copy's bandwidth"]
    header += ["as fast as float32"] if stage == "storages" else []
    caption = f"{found[0]['size']:,} elements on {card}, by the GPU's clock"
    return markdown_table(Table([*header, "as fast as torch's fastest form"], rows, caption))


def numbers(runs: Sequence[dict[str, Any]]) -> str:
    """Write the section of the page, in Markdown."""
    real = [run for run in runs if not run["simulated"] and not run["fake_driver"]]
    found = [line for run in real for line in measured(run)]
    return "\n\n".join([*(found or ["Nothing has been measured yet."]), prediction()])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit status 1 if the figures drifted")
    parser.add_argument("--page", type=Path, default=ROOT / PAGE)
    parser.add_argument("--runs", type=Path, default=ROOT / RUNS)
    options = parser.parse_args(arguments)
    runs = [json.loads(path.read_text()) for path in sorted(options.runs.rglob("*.json"))]
    page = options.page.read_text(encoding="utf-8")
    wanted = with_numbers(page, numbers(runs))
    if options.check and wanted != page:
        print(f"{options.page.name} does not say what the committed runs say: run python benchmarks/gpu_numbers.py")
        return 1
    if not options.check:
        options.page.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
