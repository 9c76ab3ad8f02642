"""From the results of a run to a folder: report.html, report.md, results.json and the charts as SVG and PNG."""

from __future__ import annotations

import json
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..bench import charts
from .blocks import Block, Cell, Figures, Folded, Heading, Paragraph, Points, Table
from .charts import BarRow, Bars, Lines, Series
from .render import STYLE, _html, _markdown, _subtitle
from .statistics import FEWEST_ROUNDS, summarise
from .view import YARDSTICKS, Entry, View, bytes_text, case_text, ratio_text, seconds_text, threads_text, verdict


def in_short(view: View) -> list[str]:
    """The findings in a few sentences, losses included."""
    found = []
    focus = view.title(view.focus)
    large = [e for e in view.select("size", dtype="float32") if view.level(e) == "memory"]
    fractions = [(e, f) for e in large if (f := view.fraction_of_roof(e, view.focus))]
    if fractions:
        worst = min(fractions, key=lambda row: row[1].median)
        best = max(fractions, key=lambda row: row[1].median)
        found.append(
            f"In memory (arrays that no cache holds), {focus} runs at {worst[1].median:.0%} to {best[1].median:.0%} of "
            "the roof, a loop that moves the same bytes with the same threads and computes next to nothing."
        )
    for key, text in (
        ("numpy-naive", "NumPy as in a tutorial"),
        ("numpy-in-place", "NumPy in place"),
        ("torch-default", "torch's default optimizer"),
        ("torch-fused", "torch's fused optimizer"),
        ("optax", "Optax (jitted)"),
    ):
        rows = [
            (e, summarise(view.ratios(e, key)).median)
            for e in view.select("size", rule="adam", dtype="float32", threads=view.threads)
            if view.ratios(e, key)
        ]
        if rows:
            low, high = min(rows, key=lambda row: row[1]), max(rows, key=lambda row: row[1])
            span = f"{ratio_text(low[1])} ({low[0]['label']} elements)"
            if len(rows) > 1:
                span += f" to {ratio_text(high[1])} ({high[0]['label']})"
            found.append(f"Adam against {text}, {threads_text(view.threads)}: {span}.")
    met = list(view.compared())
    lost = [(e, key, summarise(r).median) for e, key, r in met if verdict(r) == "loss"]
    if met and not lost:
        found.append(f"It loses to nobody in {len(met)} comparisons.")
    elif lost:
        worst_losses = sorted(lost, key=lambda row: row[2])[:5]
        listed = "; ".join(f"{view.title(key)} at {case_text(e)}: {ratio_text(r)}" for e, key, r in worst_losses)
        found.append(f"It loses in {len(lost)} of {len(met)} comparisons, most clearly to {listed}.")
    if too_few := sum(len(r) < FEWEST_ROUNDS for _, _, r in met):
        found.append(f"{too_few} of these comparisons have fewer than {FEWEST_ROUNDS} rounds, which show no loss.")
    return found


def machine_table(view: View) -> Table:
    m, noise = view.document["machine"], view.document["noise"]
    c = m["backends"].get("c", {})
    rows = [
        ("processor", f"{m['cpu']}, {m['cores']} usable cores, {m['architecture']}"),
        ("GPU", m["gpu"]),
        ("caches of one core", ", ".join(f"{k} {bytes_text(v)}" for k, v in m["caches"].items()) or "unknown"),
        ("memory", f"{bytes_text(m['memory_bytes'])}, huge pages: {m['huge_pages']}"),
        ("system", m["system"]),
        ("C kernels", c.get("missing") or f"instruction set {c.get('isa')}; {c.get('compiler')}, {c.get('flags')}"),
        ("versions", ", ".join(f"{k} {v}" for k, v in m["versions"].items())),
        ("thread settings", ", ".join(f"{k}={v}" for k, v in m["threads"].items()) or "none in the environment"),
        ("commit", m["commit"]),
        ("date", m["date"]),
        ("run", f"{view.document['mode']}, {view.document['seconds']:.0f} s{_state(view.document)}"),
        ("noise seen", noise_text(noise)),
    ]
    return Table(["", ""], [[Cell(a), Cell(b)] for a, b in rows], numeric=False)


def _state(document: dict[str, Any]) -> str:
    if document.get("interrupted"):
        return ", interrupted: only what was measured until then is shown"
    return "" if document["complete"] else ", not complete"


def noise_text(noise: dict[str, Any]) -> str:
    text = (
        f"{noise['rounds_kept']} of {noise['rounds']} rounds kept; other processes used at most "
        f"{noise['others_at_most']:.0%} of the CPU in a kept round"
    )
    if noise["disturbed_cases"]:
        text += f", more than a tenth in {noise['disturbed_cases']} cases"
    if noise["median_spread"] is not None:
        text += f"; spread of a row (standard deviation): {noise['median_spread']:.1%} in the middle"
    if noise["load_average_at_start"] is not None:
        text += f"; load average at the start {noise['load_average_at_start']}"
    return text


def size_lines(view: View, rule: str, threads: int, dtype: str = "float32") -> Lines | None:
    """Time per element against size, the roof drawn in."""
    entries = sorted(view.select("size", rule=rule, threads=threads, dtype=dtype), key=lambda e: e["elements"])
    if len(entries) < 2:
        return None
    series = []
    for key in [*view.subjects, *YARDSTICKS]:
        rows = [(e["elements"], s) for e in entries if (s := view.seconds(e, key))]
        if rows:
            series.append(
                Series(
                    key,
                    view.title(key),
                    [float(n) for n, _ in rows],
                    [s.median / n * 1e9 for n, s in rows],
                    [s.q1 / n * 1e9 for n, s in rows],
                    [s.q3 / n * 1e9 for n, s in rows],
                )
            )
    per_element = entries[0]["resident_bytes"] / entries[0]["elements"]
    marks = [
        (size * (threads if name != "L3" else 1) / per_element, f"{name} full") for name, size in view.caches.items()
    ]
    title = f"{rule}, {dtype}, {threads_text(threads)}: time per element"
    return Lines(f"time-{rule}-{dtype}-t{threads}", title, "elements", "ns per element", series, marks)


def roof_bars(view: View) -> list[Bars]:
    """Fraction of the roof, per backend, in memory."""
    found = []
    for threads in sorted({e["threads"] for e in view.cases}):
        rows = []
        for entry in view.select("size", threads=threads) + view.select("list", threads=threads):
            if view.level(entry) != "memory":
                continue
            for key in [*view.ours(), "torch-fused"]:
                s = view.fraction_of_roof(entry, key)
                if s and s.median > 0.3:
                    label = entry["label"] if entry["section"] == "size" else "GPT-2"
                    kind = f"{entry['rule']} {'f64 ' if entry['dtype'] == 'float64' else ''}{label}"
                    mark = "win" if key == view.focus else "rest"
                    name = {"c": "C", "numba": "Numba", "reference": "NumPy", "torch-fused": "torch"}.get(key, key)
                    rows.append(BarRow(f"{kind}, {name}", [(s.median, mark)], f"{s.median:.0%}", s.q1, s.q3))
        if rows:
            found.append(
                Bars(
                    f"roof-t{threads}",
                    f"Fraction of the roof in memory, {threads_text(threads)}",
                    "time of the roof / time of the step",
                    rows,
                    line=1.0,
                    legend=[("win", view.title(view.focus)), ("rest", "others above 30 %")],
                )
            )
    return found


def speedup_bars(view: View, entry: Entry) -> Bars | None:
    """The focus against every peer, losses in a colour of their own."""
    rows = []
    for key in view.peers():
        ratios = view.ratios(entry, key)
        if ratios:
            s = summarise(ratios)
            rows.append(BarRow(view.title(key), [(s.median, verdict(ratios))], ratio_text(s.median), s.q1, s.q3))
    if not rows:
        return None
    rows.sort(key=lambda row: row.parts[0][0])
    slug = entry["name"].replace("/", "-").replace(" ", "-").replace(",", "").lower()
    where = {"memory": "in memory"}.get(view.level(entry), f"in {view.level(entry)} cache")
    return Bars(
        f"speedup-{slug}",
        f"{case_text(entry)} ({where}): speed-up",
        "times faster than (log scale)",
        rows,
        origin=1.0,
        log=True,
        legend=[("win", "faster"), ("tie", "within noise"), ("loss", "slower")],
    )


def scaling_lines(view: View) -> list[Lines]:
    """Speed-up by threads, of the focus and of the roof."""
    found = []
    for rule in ("adam", "sgd"):
        series = []
        for elements in sorted({e["elements"] for e in view.select("size", rule=rule, dtype="float32")}):
            entries = view.select("size", rule=rule, dtype="float32", elements=elements)
            rows = sorted((e["threads"], s) for e in entries if (s := view.seconds(e, view.focus)))
            if len(rows) < 2 or rows[0][0] != 1:
                continue
            base = rows[0][1].median
            series.append(
                Series(
                    f"n{elements}",
                    f"{charts.number(elements)} elements",
                    [float(t) for t, _ in rows],
                    [base / s.median for _, s in rows],
                    [base / s.q3 for _, s in rows],
                    [base / s.q1 for _, s in rows],
                )
            )
        if series:
            keys = ("c", "torch-fused", "numba", "optax", "numpy-in-place", "numexpr", "sklearn")
            for line, key in zip(series, keys, strict=False):
                line.key = key
            found.append(
                Lines(
                    f"scaling-{rule}",
                    f"{rule}, float32: speed-up by threads, {view.title(view.focus)}",
                    "threads",
                    "times faster than one thread",
                    series,
                    log_x=False,
                    log_y=False,
                )
            )
    return found


def training_bars(view: View, entry: Entry) -> Bars:
    rows = []
    for key, result in entry["results"].items():
        whole, update = summarise(result["seconds"]), summarise(result["update_seconds"])
        parts = [((whole.median - update.median) * 1e3, "rest"), (update.median * 1e3, "update")]
        rows.append(BarRow(view.title(key), parts, f"{whole.median * 1e3:.2f} ms, {update.median / whole.median:.0%}"))
    rows.sort(key=lambda row: sum(value for value, _ in row.parts))
    slug = entry["label"].replace(" ", "-")
    return Bars(
        f"training-{slug}",
        f"One training step of a 784-1024-1024-10 network, {entry['label']}, {entry['threads']} threads",
        "ms, and the share of the update",
        rows,
        legend=[("rest", "forward and backward, NumPy"), ("update", "Adam's update")],
    )


def speedup_table(view: View, entries: list[Entry], columns: list[str], caption: str) -> Table | None:
    """Rows: peers; columns: cases; cells: how many times faster the focus is."""
    rows = []
    for key in view.peers():
        cells = [Cell(view.title(key))]
        for entry in entries:
            ratios = view.ratios(entry, key)
            if ratios:
                mark = verdict(ratios)
                cells.append(Cell(ratio_text(summarise(ratios).median), mark if mark == "loss" else ""))
            else:
                cells.append(Cell("-"))
        if any(cell.text != "-" for cell in cells[1:]):
            rows.append(cells)
    if not rows:
        return None
    own = [Cell(f"{view.title(view.focus)} itself")]
    for entry in entries:
        s = view.seconds(entry, view.focus)
        own.append(Cell(seconds_text(s.median) if s else "-"))
    return Table(["times faster than", *columns], [*rows, own], caption)


def times_table(view: View, entries: list[Entry], caption: str) -> Table | None:
    """Rows: subjects; columns: cases; cells: median (quartiles)."""
    keys = [key for key in [*view.subjects, *YARDSTICKS] if any(key in e["results"] for e in entries)]
    if not keys:
        return None
    rows = []
    for key in keys:
        cells = [Cell(view.title(key))]
        for entry in entries:
            s = view.seconds(entry, key)
            text = "-" if s is None else f"{seconds_text(s.median)} ({seconds_text(s.q1)} to {seconds_text(s.q3)})"
            cells.append(Cell(text))
        rows.append(cells)
    return Table(["median (quartiles)", *[case_text(e) for e in entries]], rows, caption)


def _once(text: str, seconds: list[float]) -> list[Cell]:
    s = summarise(seconds)
    return [Cell(text), Cell(seconds_text(s.median)), Cell(f"{seconds_text(s.q1)} to {seconds_text(s.q3)}")]


def start_up_table(view: View) -> Table | None:
    start = view.document["start_up"]
    rows = []
    own = start.get("fastoptim")
    if own:
        for key, text in (
            ("numpy_import_seconds", "import numpy"),
            ("import_seconds", "import fastoptim, after numpy"),
            ("first_step_seconds", "first Adam and first step, libraries loaded on demand"),
        ):
            rows.append(_once(text, own[key]))
    for key, entry in start.items():
        if key != "fastoptim" and key in view.subjects:
            rows.append(_once(f"import of {view.title(key)}, CPU time", entry["import_seconds"]))
    firsts: dict[str, float] = {}
    for entry in view.select("size", rule="adam", dtype="float32"):
        for key, result in entry["results"].items():
            if "first_step_seconds" in result and key not in firsts:
                firsts[key] = result["first_step_seconds"] - summarise(result["seconds"]).median
    for key, seconds in firsts.items():
        text = f"first step of {view.title(key)}, beyond a usual one (compilation, set-up)"
        rows.append([Cell(text), Cell(seconds_text(max(0.0, seconds))), Cell("once")])
    return Table(["once per process", "median", "quartiles"], rows) if rows else None


HOW = [
    "Every subject runs in a process of its own, with the same number of threads. Rounds are interleaved: in each "
    "round every subject takes one turn of {block:.0f} ms or one step, in an order that rotates. Tables show medians "
    "over rounds, brackets and whiskers the quartiles.",
    "A speed-up is the median of the ratios within rounds, so that a slow moment of the machine hits both sides.",
    "Before a subject is timed, three steps from the same start are compared with the reference: fastoptim's backends "
    "must be equal to the last bit, the others within 100 machine epsilons of |p| + |distance travelled|. Who differs "
    "is not timed.",
    "The roof is a loop of the C extension that reads and writes the same streams as the step, on the same arrays, "
    "with the same chunks and threads, and computes next to nothing. In cache the limit is arithmetic instead: the "
    'line "root and division" shows it for Adam.',
    'Gradients are the same arrays at every step unless a case says "fresh". fastoptim is called through its public '
    "classes.",
    "A round in which other processes used more than a tenth of the CPU is measured again while there is time; the "
    "header says how many were kept.",
    "In-cache and memory sizes are told apart by the bytes of parameters, gradients and states against the cache sizes "
    "of the cores in use.",
]


def blocks(document: dict[str, Any]) -> list[Block]:
    """The whole report."""
    view = View(document)
    top = view.threads
    every_thread = sorted({e["threads"] for e in view.cases})
    out: list[Block] = [Heading("In short"), Points(in_short(view) or ["Nothing was measured."])]
    out += [Heading("The machine and the run"), machine_table(view)]

    out.append(Heading("Speed against the others"))
    for threads in every_thread:
        for rule in ("adam", "momentum", "sgd"):
            entries = sorted(
                view.select("size", rule=rule, threads=threads, dtype="float32"), key=lambda e: e["elements"]
            )
            columns = [f"{e['label']} ({view.level(e)})" for e in entries]
            caption = f"{rule}, float32, one array, {threads_text(threads)}"
            table = speedup_table(view, entries, columns, caption)
            if table:
                out.append(table)
    out.append(
        Paragraph(
            "Below 1 beyond noise is a loss, marked as such. In brackets: the smallest memory that holds all arrays."
        )
    )
    bars = [speedup_bars(view, e) for e in view.select("size", rule="adam", dtype="float32", threads=top)]
    if any(bars):
        out.append(Figures([b for b in bars if b]))

    cache = [size_lines(view, rule, t) for rule in ("adam", "momentum", "sgd") for t in every_thread]
    if any(cache):
        out += [Heading("Time per element against size"), Figures([c for c in cache if c])]
        out.append(
            Paragraph(
                "Left of the dashed lines the arrays fit into that cache. In memory the roof (dotted) is the limit, in "
                "cache the arithmetic is."
            )
        )
    if roofs := roof_bars(view):
        out += [Heading("Fraction of the roof"), Figures(list(roofs))]

    lists = view.select("list")
    if lists:
        out.append(Heading("Many arrays"))
        for threads in every_thread:
            entries = [e for e in lists if e["threads"] == threads]
            columns = [e["label"] for e in entries]
            if table := speedup_table(view, entries, columns, f"adam, float32, {threads_text(threads)}"):
                out.append(table)
        one = {e["threads"]: e for e in view.select("size", rule="adam", dtype="float32", elements=10**6)}
        for entry in lists:
            mine, alone = view.seconds(entry, view.focus), None
            if entry["elements"] == 10**6 and entry["threads"] in one and entry["gradients"] == "reused":
                alone = view.seconds(one[entry["threads"]], view.focus)
            if mine and alone:
                out.append(
                    Paragraph(
                        f"{threads_text(entry['threads'])}: 1,000 arrays of 1,000 elements "
                        f"take {seconds_text(mine.median)}, one array of a million {seconds_text(alone.median)} "
                        f"({mine.median / alone.median:.2f} times as long)."
                    )
                )
        out.append(Figures([b for e in lists if e["threads"] == top and (b := speedup_bars(view, e))]))

    if scaling := scaling_lines(view):
        out += [Heading("Threads"), Figures(list(scaling))]

    training = view.select("training")
    if training:
        out += [Heading("A whole training step"), Figures([training_bars(view, e) for e in training])]
        out.append(
            Paragraph(
                "Forward and backward are the same NumPy code in every row. The update finds caches and threads as "
                "NumPy left them, so it may take longer than in a loop of updates alone."
            )
        )

    clip = view.select("clip")
    if clip:
        out.append(Heading("Clipping by the global norm, in the step"))
        if table := times_table(view, clip, ""):
            out.append(table)
    launch = view.select("launch")
    if launch:
        out.append(Heading("What a call costs"))
        if table := times_table(view, launch, "one step on arrays of one element"):
            out.append(table)
    if table := start_up_table(view):
        out += [Heading("Start-up, apart from all of the above"), table]

    out += [
        Heading("How it was measured"),
        Points([text.format(block=document["settings"]["block_ms"]) for text in HOW]),
    ]
    out += [Heading("What was left out, and why"), Points(left_out(view) or ["Nothing."])]
    everything = []
    for section in ("size", "list"):
        for threads in every_thread:
            for rule in dict.fromkeys(e["rule"] for e in view.select(section)):
                for dtype in ("float32", "float64"):
                    entries = view.select(section, threads=threads, rule=rule, dtype=dtype)
                    for i in range(0, len(entries), 3):
                        if table := times_table(view, entries[i : i + 3], ""):
                            everything.append(table)
    if everything:
        out.append(Folded("All times", everything))
    return out


def left_out(view: View) -> list[str]:
    """One line per reason."""
    lines = [f"{row['what']}: {row['why']}" for row in view.document["left_out"]]
    reasons: dict[tuple[str, str], list[str]] = {}
    for entry in view.document["cases"]:
        for key, why in entry["left_out"].items():
            reasons.setdefault((view.title(key), why), []).append(entry["name"])
    for (title, why), names in reasons.items():
        shown = "; ".join(names[:3]) + (f"; and {len(names) - 3} more" if len(names) > 3 else "")
        lines.append(f"{title}: {why} ({shown})")
    return lines


def to_html(document: dict[str, Any]) -> str:
    """The report as one page that needs nothing else."""
    body = "\n".join(map(_html, blocks(document)))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>Benchmark: {escape(_subtitle(document))}</title><style>{STYLE}{charts.css()}"
        # On paper the light colours hold, whatever the screen's.
        f"@media print{{{charts.css().split('@media')[0]}}}</style></head>\n"
        f'<body><h1>How fast are the updates?</h1><p class="soft">{escape(_subtitle(document))}</p>\n{body}\n'
        "</body></html>\n"
    )


def to_markdown(document: dict[str, Any]) -> str:
    """The report as Markdown, with its charts as files beside it."""
    body = "\n\n".join(map(_markdown, blocks(document)))
    return f"# How fast are the updates?\n\n{_subtitle(document)}\n\n{body}\n"


def write(document: dict[str, Any], folder: Path) -> Path:
    """Write the report into `folder` and return the path of report.html."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (folder / "report.md").write_text(to_markdown(document), encoding="utf-8")
    page = folder / "report.html"
    page.write_text(to_html(document), encoding="utf-8")
    drawn = [chart for block in blocks(document) if isinstance(block, Figures) for chart in block.charts]
    for chart in drawn:
        (folder / f"{chart.slug}.svg").write_text(charts.svg(chart, standalone=True), encoding="utf-8")
        if find_spec("matplotlib"):
            charts.png(chart, folder / f"{chart.slug}.png")
    return page
