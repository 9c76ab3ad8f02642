"""Turn the results of a run into a folder: report.html, report.md, results.json and the charts as SVG."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ..bench import charts
from ..checkpoint.files import replace
from .charts import BarRow, Bars, Chart, Lines, Series
from .render import Block, Cell, Contents, Figures, Folded, Heading, Notice, Table, html_page, markdown_page
from .results import ROOFLINE_LOOPS, Entry, Results, bytes_text, case_text, ratio_text, seconds_text, threads_text
from .statistics import FEWEST_ROUNDS, NOISY, Summary, Values, summarise, verdict
from .verdicts import NETWORK, in_short, notices

TITLE = "How fast are the updates?"
RULES = ("adam", "momentum", "sgd")


# --- tables -------------------------------------------------------------------------------------------------------


def _ratio_cell(ratios: Values) -> Cell | str:
    if not ratios:
        return "-"
    s, mark = summarise(ratios), verdict(ratios)
    return Cell(ratio_text(s.median), "noisy" if mark == "win" and s.spread > NOISY else mark)


def speedup_table(
    results: Results, entries: list[Entry], columns: list[str], caption: str, others: list[str] | None = None
) -> Table | None:
    """Rows: peers, or others; columns: cases; cells: how many times faster the focus is."""
    rows = []
    for key in results.peers() if others is None else others:
        given = [results.ratios(entry, key) for entry in entries]
        if any(given):
            rows.append([results.title(key), *map(_ratio_cell, given)])
    if not rows:
        return None
    own = [results.seconds(entry, results.focus) for entry in entries]
    last = [f"{results.title(results.focus)} takes", *(seconds_text(s.median) if s else "-" for s in own)]
    return Table(["times faster than", *columns], [*rows, last], caption)


def _quartiles(s: Summary | None) -> str:
    return "-" if s is None else f"{seconds_text(s.median)} ({seconds_text(s.q1)} to {seconds_text(s.q3)})"


def times_table(results: Results, entries: list[Entry], caption: str = "") -> Iterator[Table]:
    """Rows: subjects; columns: cases; cells: median (quartiles)."""
    keys = [key for key in [*results.subjects, *ROOFLINE_LOOPS] if any(key in e["results"] for e in entries)]
    rows = [[results.title(key), *(_quartiles(results.seconds(entry, key)) for entry in entries)] for key in keys]
    if rows:
        yield Table(["median (quartiles)", *map(case_text, entries)], rows, caption)


def _noise_text(noise: dict[str, Any]) -> str:
    text = (
        f"{noise['rounds_kept']} of {noise['rounds']} rounds kept; other processes used at most "
        f"{noise['others_at_most']:.0%} of the CPU in a kept round, more than a tenth in "
        f"{noise['disturbed_cases']} {'case' if noise['disturbed_cases'] == 1 else 'cases'}"
    )
    if noise["median_spread"] is not None:
        text += f"; spread of a row (standard deviation): {noise['median_spread']:.1%}, the median of all rows"
    if noise["load_average_at_start"] is not None:
        text += f"; load average at the start {noise['load_average_at_start']}"
    return text


def machine_table(results: Results) -> Table:
    document, m = results.document, results.document["machine"]
    c = m["backends"].get("c", {})
    state = "" if document["complete"] else ", interrupted" if document.get("interrupted") else ", not complete"
    rows = {
        "processor": f"{m['cpu']}, {m['cores']} usable cores, {m['architecture']}",
        "GPU": m["gpu"],
        "caches of one core": ", ".join(f"{k} {bytes_text(v)}" for k, v in m["caches"].items()) or "unknown",
        "memory": f"{bytes_text(m['memory_bytes'])}, huge pages: {m['huge_pages']}",
        "system": m["system"],
        "C kernels": c.get("missing") or f"instruction set {c.get('isa')}; {c.get('compiler')}, {c.get('flags')}",
        "versions": ", ".join(f"{k} {v}" for k, v in m["versions"].items()),
        "settings": ", ".join(f"{k}={v}" for k, v in m["threads"].items()) or "none in the environment",
        "commit": m["commit"],
        "date": m["date"],
        "run": f"{document['mode']}, {document['seconds']:.0f} s{state}",
        "noise seen": _noise_text(document["noise"]),
    }
    return Table(["", ""], list(rows.items()), numeric=False)


def start_up_table(results: Results) -> Iterator[Table]:
    start = results.document["start_up"]
    once = {
        "numpy_import_seconds": "import numpy",
        "import_seconds": "import fastoptim, after numpy",
        "first_step_seconds": "first Adam and first step, libraries loaded on demand",
    }
    timed = [(text, start["fastoptim"][key]) for key, text in once.items() if start.get("fastoptim")]
    timed += [
        (f"import of {results.title(key)}, CPU time", entry["import_seconds"])
        for key, entry in start.items()
        if key in results.subjects
    ]
    rows = []
    for text, seconds in timed:
        s = summarise(seconds)
        rows.append([text, seconds_text(s.median), f"{seconds_text(s.q1)} to {seconds_text(s.q3)}"])
    firsts: dict[str, float] = {}
    for entry in results.select("size", rule="adam", dtype="float32"):
        for key, result in entry["results"].items():
            if "first_step_seconds" in result:
                beyond = result["first_step_seconds"] - summarise(result["seconds"]).median
                firsts.setdefault(key, max(0.0, beyond))
    for key, beyond in firsts.items():
        text = f"first step of {results.title(key)}, beyond a usual one (compilation, set-up)"
        rows.append([text, seconds_text(beyond), "once"])
    if rows:
        yield Table(["once per process", "median", "quartiles"], rows)


# --- charts -------------------------------------------------------------------------------------------------------


def size_lines(results: Results, rule: str, threads: int) -> Lines | None:
    """Draw time per element against size, with the roofline."""
    entries = results.sizes(rule, threads)
    if len(entries) < 2:
        return None
    series = []
    for key in [*results.subjects, *ROOFLINE_LOOPS]:
        rows = [(float(e["elements"]), s) for e in entries if (s := results.seconds(e, key))]
        if rows:
            columns = ([value / n * 1e9 for n, s in rows for value in [s[i]]] for i in range(3))
            series.append(Series(key, results.title(key), [n for n, _ in rows], *columns))
    per_element = entries[0]["resident_bytes"] / entries[0]["elements"]
    marks = [(size / per_element, f"{name} full") for name, size in results.caches(threads).items()]
    title = f"{rule}, float32, {threads_text(threads)}: time per element"
    return Lines(f"time-{rule}-float32-t{threads}", title, "elements", "ns per element", series, marks)


def roofline_bars(results: Results, threads: int) -> Bars | None:
    """Draw shares of the roofline in memory; those of other backends and torch for `RULES` alone."""
    rows = []
    for entry in results.select("size", threads=threads) + results.select("list", threads=threads):
        if results.level(entry) != "memory":
            continue
        compared = entry["rule"] in RULES
        for key in [*results.ours(), "torch-fused"] if compared else [results.focus]:
            s = results.share_of_roofline(entry, key)
            if s and s.median > 0.3:
                dtype = "" if entry["dtype"] == "float32" else f" {entry['dtype']}"
                label = f"{entry['rule']}{dtype} {entry['label'].split(',')[0]}"
                label += f", {results.title(key)}" if compared else ""
                kind = "win" if key == results.focus else "tie"
                text = f"{s.median:.0%}" if s.median < 0.995 else "roofline"
                rows.append(BarRow(label, [(s.median, kind)], text, s.q1, s.q3))
    if not rows:
        return None
    legend = [("win", results.title(results.focus)), ("tie", "others")]
    title = f"Speed in memory as a share of the roofline, {threads_text(threads)}"
    return Bars(f"roofline-t{threads}", title, "share of the roofline", rows, legend, line=1.0)


def speedup_bars(results: Results, entry: Entry) -> Bars | None:
    """Draw how many times faster the focus is than each peer in one case."""
    rows = []
    for key in results.peers():
        if ratios := results.ratios(entry, key):
            s = summarise(ratios)
            rows.append(BarRow(results.title(key), [(s.median, verdict(ratios))], ratio_text(s.median), s.q1, s.q3))
    if not rows:
        return None
    rows.sort(key=lambda row: row.parts[0][0])
    slug = entry["name"].replace("/", "-").replace(" ", "-").replace(",", "").lower()
    level = results.level(entry)
    where = "in memory" if level == "memory" else f"in {level} cache"
    title = f"{case_text(entry)} ({where}): speed-up"
    meanings = {"win": "faster", "tie": "within noise", "loss": "slower", "unknown": "too few rounds"}
    seen = {row.parts[0][1] for row in rows}
    legend = [(key, text) for key, text in meanings.items() if key in seen or key != "unknown"]
    return Bars(f"speedup-{slug}", title, "times faster than (log scale)", rows, legend, log=True)


def scaling_lines(results: Results, rule: str) -> Lines | None:
    """Draw the speed-up by threads of the focus."""
    styles = iter(("c", "torch-fused", "numba", "optax", "numpy-in-place", "numexpr", "sklearn"))
    series = []
    for elements in sorted({e["elements"] for e in results.select("size", rule=rule, dtype="float32")}):
        entries = results.select("size", rule=rule, dtype="float32", elements=elements)
        rows = sorted((e["threads"], s) for e in entries if (s := results.seconds(e, results.focus)))
        if len(rows) < 2 or rows[0][0] != 1:
            continue
        base = rows[0][1].median
        columns = ([base / value for _, s in rows for value in [s[i]]] for i in (0, 2, 1))
        title = f"{charts.number(elements)} elements"
        series.append(Series(next(styles, "own"), title, [float(t) for t, _ in rows], *columns))
    if not series:
        return None
    title = f"{rule}, float32: speed-up by threads, {results.title(results.focus)}"
    return Lines(f"scaling-{rule}", title, "threads", "times faster than one thread", series, log=False)


def training_bars(results: Results, entry: Entry) -> Bars:
    rows = []
    for key, result in entry["results"].items():
        whole, update = summarise(result["seconds"]).median * 1e3, summarise(result["update_seconds"]).median * 1e3
        parts = [(whole - update, "rest"), (update, "update")]
        rows.append(BarRow(results.title(key), parts, f"{whole:.2f} ms, {update / whole:.0%}"))
    rows.sort(key=lambda row: sum(value for value, _ in row.parts))
    title = f"One training step of a {NETWORK} network, {entry['label']}, {threads_text(entry['threads'])}"
    legend = [("rest", "forward and backward, NumPy"), ("update", "Adam's update")]
    slug = entry["label"].replace(" ", "-")
    return Bars(f"training-{slug}", title, "ms, and the share of the update", rows, legend)


# --- sections -----------------------------------------------------------------------------------------------------


def _figures(drawn: Iterable[Chart | None]) -> Iterator[Figures]:
    if found := [chart for chart in drawn if chart]:
        yield Figures(found)


def _thread_counts(results: Results) -> list[int]:
    return sorted({entry["threads"] for entry in results.cases})


def _training(results: Results) -> Iterator[Block]:
    entries = results.select("training")
    yield from _figures(training_bars(results, entry) for entry in entries)
    if entries:
        yield (
            "Forward and backward are the same NumPy code in every row. The update finds caches and threads as NumPy "
            "left them, so it may take longer than in a loop of updates alone."
        )


def _against_others(results: Results) -> Iterator[Block]:
    for threads in _thread_counts(results):
        for rule in RULES:
            entries = results.sizes(rule, threads)
            columns = [f"{e['label']} ({results.level(e)})" for e in entries]
            caption = f"{rule}, float32, one array, {threads_text(threads)}"
            if table := speedup_table(results, entries, columns, caption):
                yield table
    yield (
        f"Below 1 beyond noise is a loss, marked as such; \N{ALMOST EQUAL TO} is within noise; ~ is faster, but "
        f"spreads by more than {NOISY:.0%}; ? has fewer than {FEWEST_ROUNDS} rounds, too few to tell. In brackets: the "
        "smallest memory that holds all arrays."
    )
    entries = results.sizes("adam", results.threads)
    yield from _figures(speedup_bars(results, entry) for entry in entries)


def _many_arrays(results: Results) -> Iterator[Block]:
    entries = results.select("list")
    for threads in _thread_counts(results):
        chosen = [e for e in entries if e["threads"] == threads]
        caption = f"adam, float32, {threads_text(threads)}"
        if table := speedup_table(results, chosen, [e["label"] for e in chosen], caption):
            yield table
        single = results.select("size", rule="adam", dtype="float32", elements=10**6, threads=threads)
        many = [e for e in chosen if e["elements"] == 10**6 and e["gradients"] == "reused"]
        pair = [results.seconds(e, results.focus) for e in (*many, *single)]
        if len(pair) == 2 and pair[0] and pair[1]:
            times = seconds_text(pair[0].median), seconds_text(pair[1].median)
            yield (
                f"{threads_text(threads)}: 1,000 arrays of 1,000 elements take {times[0]}, one array of a million "
                f"{times[1]} ({pair[0].median / pair[1].median:.2f} times as long)."
            )
    yield from _figures(speedup_bars(results, e) for e in entries if e["threads"] == results.threads)


def _sizes(results: Results) -> Iterator[Block]:
    yield from _figures(size_lines(results, rule, t) for rule in RULES for t in _thread_counts(results))
    yield (
        "Left of the dashed lines the arrays fit into that cache. In memory the roofline (dotted) is the limit, in "
        "cache the arithmetic is."
    )


def _storage(results: Results) -> Iterator[Block]:
    """Rows: storages; columns: cases; cells: how many times as fast as the focus, which steps in float32."""
    entries = results.select("storage")
    rows = []
    for key in dict.fromkeys(key for entry in entries for key in entry["results"] if key != results.focus):
        given = [results.ratios(entry, key) for entry in entries]
        kept = next(entry["results"][key]["state_bytes_per_element"] for entry in entries if key in entry["results"])
        cells = [ratio_text(1 / summarise(ratios).median) if ratios else "-" for ratios in given]
        rows.append([results.title(key), f"{kept:.2f}", *cells])
    if rows:
        own = [results.seconds(entry, results.focus) for entry in entries]
        kept = entries[0]["results"][results.focus]["state_bytes_per_element"]
        takes = [seconds_text(s.median) if s else "-" for s in own]
        columns = [
            f"{e['label'].removeprefix('storage ')} ({results.level(e)}), {threads_text(e['threads'])}" for e in entries
        ]
        last = [f"{results.title(results.focus)} in float32 takes", f"{kept:.2f}", *takes]
        yield Table(["times as fast as in float32", "bytes of states per parameter", *columns], [*rows, last], "adam")
        yield (
            "fastoptim's are bit-identical to the reference. bitsandbytes rounds in a way of its own, so its result is "
            "not compared."
        )


def _rows(results: Results) -> Iterator[Block]:
    entries = results.select("rows")
    for threads in _thread_counts(results):
        chosen = [e for e in entries if e["threads"] == threads]
        columns = [f"{e['rule']}, {e['label']}" for e in chosen]
        others = [*results.peers(), "dense"]
        if table := speedup_table(results, chosen, columns, f"float32, {threads_text(threads)}", others):
            yield table
    if entries:
        yield (
            "Every step has rows of its own, drawn at random with repetition. The dense step is that of fastoptim's C "
            "backend on the whole table, its gradient at hand: making one of the rows would come on top. With Adam "
            "rows are lazy, as SparseAdam's."
        )


HOW = [
    "Every subject runs in a process of its own, with the same number of threads. In every round each is timed once, "
    "for {block:.0f} ms or one step, in an order that rotates. Tables show medians over rounds, brackets and whiskers "
    "the quartiles. A speed-up is the median of the ratios within rounds, so that a slow moment hits both sides.",
    "Before a subject is timed, three of its steps are compared with the reference: fastoptim's backends must be "
    "bit-identical, the others within 100 machine epsilons of |p| + |distance travelled|. Who differs is not timed.",
    "The roofline is a loop of the C extension over the same arrays, with the same chunks and threads, that moves the "
    'bytes of the step and computes next to nothing. In cache arithmetic is the limit: "root and division" shows it '
    "for Adam.",
    "Gradients are the same arrays at every step unless a case says otherwise. fastoptim is called through its public "
    "classes.",
    "A round in which other processes used more than a tenth of the CPU is measured again while there is time.",
]


def _left_out(results: Results) -> Iterator[Block]:
    lines = [f"{row['what']}: {row['why']}" for row in results.document["left_out"]]
    reasons: dict[tuple[str, str], list[str]] = {}
    for entry in results.document["cases"]:
        for key, why in entry["left_out"].items():
            reasons.setdefault((results.title(key), why), []).append(entry["name"])
    for (title, why), names in reasons.items():
        shown = "; ".join(names[:3]) + (f"; and {len(names) - 3} more" if len(names) > 3 else "")
        lines.append(f"{title}: {why} ({shown})")
    yield lines or ["Nothing."]


def _all_times(results: Results) -> Iterator[Block]:
    groups: dict[tuple[Any, ...], list[Entry]] = {}
    for entry in [*results.select("size"), *results.select("list"), *results.select("rows")]:
        key = entry["section"], entry["threads"], entry["rule"], entry["dtype"]
        groups.setdefault(key, []).append(entry)
    found = [
        t for rows in groups.values() for i in range(0, len(rows), 3) for t in times_table(results, rows[i : i + 3])
    ]
    if found:
        yield Folded("Medians and quartiles of every case", found)


SECTIONS: dict[str, Callable[[Results], Iterable[Block]]] = {
    "In short": lambda results: [
        in_short(results) or ["Nothing was measured that could be compared with other optimizers."]
    ],
    "A whole training step": _training,
    "Speed against the others": _against_others,
    "Many arrays": _many_arrays,
    "Time per element against size": _sizes,
    "Share of the roofline": lambda results: _figures(roofline_bars(results, t) for t in _thread_counts(results)),
    "Threads": lambda results: _figures(scaling_lines(results, rule) for rule in ("adam", "sgd")),
    "Some rows of a table": _rows,
    "Clipping by the global norm, in the step": lambda results: times_table(results, results.select("clip")),
    "States and parameters in fewer bits": _storage,
    "What a call costs": lambda results: times_table(
        results, results.select("launch"), "one step on arrays of one element"
    ),
    "Start-up, apart from all of the above": start_up_table,
    "The machine and the run": lambda results: [machine_table(results)],
    "How it was measured": lambda results: [
        [text.format(block=results.document["settings"]["block_ms"]) for text in HOW]
    ],
    "What was left out, and why": _left_out,
    "All times": _all_times,
}


def blocks(document: dict[str, Any]) -> list[Block]:
    """Lay out the whole report."""
    results = Results(document)
    found = [(Heading(title), list(make(results))) for title, make in SECTIONS.items()]
    # A section of nothing but explanations has nothing to explain.
    (first, summary), *rest = [row for row in found if any(not isinstance(block, str) for block in row[1])]
    out = [*map(Notice, notices(results)), first, *summary, Contents([heading for heading, _ in rest])]
    for heading, inner in rest:
        out += [heading, *inner]
    return out


def _page(render: Callable[[str, str, Iterable[Block]], str], document: dict[str, Any]) -> str:
    m = document["machine"]
    subtitle = f"fastoptim {m['versions']['fastoptim']} on {m['cpu']} ({m['cores']} cores), {m['date'][:10]}"
    return render(TITLE, subtitle, blocks(document))


def to_html(document: dict[str, Any]) -> str:
    """Render the report as one page that needs nothing else."""
    return _page(html_page, document)


def to_markdown(document: dict[str, Any]) -> str:
    """Render the report as Markdown, with its charts as files beside it."""
    return _page(markdown_page, document)


def write(document: dict[str, Any], folder: Path) -> Path:
    """Write the report into `folder` and return the path of report.html."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "results.json": json.dumps(document, indent=1) + "\n",
        "report.md": to_markdown(document),
        "report.html": to_html(document),
    }
    drawn = [chart for block in blocks(document) if isinstance(block, Figures) for chart in block.charts]
    files |= {f"{chart.slug}.svg": charts.svg(chart, standalone=True) for chart in drawn}
    for name, text in files.items():
        replace(folder / name, text.encode())
    return folder / "report.html"
