"""Reports say what the results say, losses and doubts included."""

from __future__ import annotations

import copy
import json
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from benchmarks import readme_numbers
from fastoptim.bench import charts, render, report, results, statistics
from fastoptim.bench.subjects import SUBJECTS
from tests.support import ROOT


def figures(document):
    return [c for block in report.blocks(document) if isinstance(block, render.Figures) for c in block.charts]


def test_report_folder(document, tmp_path):
    page = report.write(document, tmp_path / "out")
    names = {path.name for path in page.parent.iterdir()}
    assert {"report.html", "report.md", "results.json"} <= names
    slugs = [chart.slug for chart in figures(document)]
    assert len(set(slugs)) == len(slugs) > 15
    assert {f"{slug}.svg" for slug in slugs} <= names
    assert json.loads((page.parent / "results.json").read_text()) == document
    linked = re.findall(r"\]\((\S+)\)", (page.parent / "report.md").read_text())
    assert {link for link in linked if not link.startswith("#")} <= names


def test_page_needs_nothing_else(document):
    page = report.to_html(document)
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert [link for link in links if not link.startswith("#")] == ["data:,"]
    assert "<script" not in page
    assert "url(" not in page
    assert 'name="viewport"' in page
    assert "prefers-color-scheme:dark" in page
    assert "@media print" in page
    ET.fromstring(re.sub(r"<meta[^>]*>|<link[^>]*>|<!doctype html>", "", page))


def test_every_section_is_there(document):
    markdown = report.to_markdown(document)
    for heading in (
        "In short",
        "The machine and the run",
        "Speed against the others",
        "Time per element against size",
        "Share of the roofline",
        "Many arrays",
        "Threads",
        "A whole training step",
        "Clipping by the global norm",
        "What a call costs",
        "Some rows of a table",
        "Start-up",
        "How it was measured",
        "What was left out",
    ):
        assert f"## {heading}" in markdown
    assert "cuda: no device" in markdown
    assert "thinc: has no momentum" in markdown
    assert "8 of 9" not in markdown
    assert f"{8 * len(document['cases'])} of {9 * len(document['cases'])} rounds kept" in markdown


def test_losses_are_told(document):
    page, markdown = report.to_html(document), report.to_markdown(document)
    assert 'class="loss"' in page
    assert 'class="bar v-loss"' in page
    assert "(loss)**" in markdown
    lost = re.search(r" loses in (\d+) of (\d+) comparisons", markdown)
    assert lost is not None
    rows = list(results.Results(document).compared())
    assert int(lost[1]) == sum(statistics.verdict(ratios) == "loss" for _, _, ratios in rows) > 0
    assert int(lost[2]) == len(rows)
    winning = copy.deepcopy(document)
    for entry in winning["cases"]:
        for result in entry["results"].values():
            result["speedup_of_focus"] = [ratio + 5 for ratio in result["speedup_of_focus"]]
    assert f"loses in 0 of {len(rows)} comparisons" in report.to_markdown(winning)
    bars = [chart for chart in figures(winning) if isinstance(chart, charts.Bars)]
    assert not any(verdict == "loss" for chart in bars for row in chart.rows for _, verdict in row.parts)


def test_figures_of_the_text_come_from_the_rounds(document):
    shown = results.Results(document)
    entry = next(e for e in shown.cases if e["name"] == "size/adam/float32/1e7/2 threads")
    ratios = entry["results"]["numpy-in-place"]["speedup_of_focus"]
    table = report.speedup_table(shown, [entry], ["1e7"], "")
    row = next(row for row in table.rows if row[0] == "NumPy in place")
    assert row[1].text == results.ratio_text(float(np.median(ratios)))
    roofline, mine = entry["results"]["roofline"]["seconds"], entry["results"]["c"]["seconds"]
    share = shown.share_of_roofline(entry, "c")
    assert share.median == pytest.approx(float(np.median(np.divide(roofline, mine))))


def first_lines(document):
    """What stands above the table of contents."""
    return report.to_markdown(document).partition("- [A whole training step]")[0]


def test_a_busy_machine_is_told_first(document):
    quiet = report.to_markdown(document)
    assert "busy" not in quiet and "notice" not in report.to_html(document).partition("<body>")[2]
    busy = copy.deepcopy(document)
    busy["noise"] |= {"disturbed_cases": len(busy["cases"]) // 2, "others_at_most": 0.6}
    noisy = copy.deepcopy(document)
    for entry in noisy["cases"]:
        for result in entry["results"].values():
            result["seconds"] = [s * factor for s, factor in zip(result["seconds"], 4 * [0.5, 1.5], strict=True)]
    for run, reason in ((busy, "up to 60%"), (noisy, "rows spread by more than 20%")):
        first = report.to_markdown(run).split("\n\n")[2]
        assert first.startswith("> **This machine was busy: do not decide by these figures") and reason in first
        body = report.to_html(run).partition("<body>")[2]
        assert body.index('<p class="notice">This machine was busy') < body.index("<h2")
    assert ".notice{background:var(--warn)" in report.to_html(document)


def test_cases_that_are_missing_are_told_first(document):
    cut = copy.deepcopy(document)
    cut["not_reached"] = [entry["name"] for entry in cut["cases"] if entry["threads"] == 1]
    cut["cases"] = [entry for entry in cut["cases"] if entry["threads"] == 2]
    cut["complete"] = False
    missing, every = len(cut["not_reached"]), len(document["cases"])
    told = f"Not complete: {missing} of {every} cases are missing, among them all with 1 thread (the time was up)."
    assert f"> **{told}**" in first_lines(cut)
    assert "Not complete" not in report.to_markdown(document)


def test_the_training_step_comes_first(document):
    decided = copy.deepcopy(document)
    entry = next(e for e in decided["cases"] if e["name"] == "training/adam/float32/batch 32/2 threads")
    for key, whole, update in (("numpy-naive", 0.0279, 0.0209), ("c", 0.0077, 0.00085)):
        entry["results"][key] |= {"seconds": 8 * [whole], "update_seconds": 8 * [update]}
    point = first_lines(decided).partition("## In short\n\n")[2].splitlines()[0]
    assert "updates take 75% of it with NumPy naive and 11% with fastoptim (C)" in point
    assert "the step takes 27.9 ms and 7.7 ms, 3.6x as fast" in point
    entry["results"]["c"]["seconds"] = 4 * [0.004, 0.012]
    point = first_lines(decided).partition("## In short\n\n")[2].splitlines()[0]
    assert "no figure" in point and "3.6x" not in point


def test_noisy_rows_are_no_ends_of_a_range(document):
    noisy = copy.deepcopy(document)
    for label, ratios in (("1e5", 4 * [100.0, 2608.0]), ("1e4", [30.0, 30.0, 30.0])):
        entry = next(e for e in noisy["cases"] if e["name"] == f"size/adam/float32/{label}/2 threads")
        entry["results"]["torch-fused"]["speedup_of_focus"] = ratios
    line = next(x for x in first_lines(noisy).splitlines() if "Times as fast as torch fused" in x)
    assert "1354x" not in line and "30x" not in line
    assert "too noisy to be quoted: 2 of 6 rows" in line
    row = next(x for x in report.to_markdown(noisy).splitlines() if x.startswith("| torch fused") and "1354x" in x)
    assert "| 1354x ~ |" in row and "| 30x ? |" in row


def test_nothing_is_faster_than_the_roofline(document):
    fast = copy.deepcopy(document)
    for entry in fast["cases"]:
        for result in entry["results"].values():
            if "share_of_roofline" in result:
                result["share_of_roofline"] = 8 * [1.11]
    assert "the roofline, within noise" in first_lines(fast)
    assert not re.search(
        r"1[0-9][0-9]%", first_lines(fast) + report.to_html(fast).partition("Share of the roofline")[2]
    )


def test_every_subject_has_one_name(document):
    text = report.to_markdown(document)
    for subject in SUBJECTS.values():
        assert subject.title in text
    for other in ("tutorial", "torch's", "Optax, jitted", "fastoptim, C", "itself", "the law"):
        assert other not in text
    assert re.findall(r"\b(?:roof|yardsticks?)\b", text) == []


def test_contents_lead_to_every_section(document):
    page = report.to_html(document)
    headings = re.findall(r'<h2 id="([^"]+)">', page)
    assert re.findall(r'href="#([^"]+)"', page) == headings[1:] and len(set(headings)) == len(headings) > 10
    linked = re.findall(r"\(#([^)]+)\)", report.to_markdown(document))
    assert linked == headings[1:]


def test_quartiles_make_the_same_report_as_rounds(document):
    short = readme_numbers.condensed(document)
    assert len(short.splitlines()) < len(json.dumps(document, indent=1).splitlines()) / 10
    assert report.to_markdown(json.loads(short)) == report.to_markdown(document)


def svg_extent(root, font):
    """Leftmost and rightmost, highest and lowest of all text, measured in a wide font."""
    edges = []
    for text in root.iter("{http://www.w3.org/2000/svg}text"):
        if "transform" in text.attrib:
            continue
        x, y = float(text.get("x")), float(text.get("y"))
        width = font.getlength(text.text or "") * (1.25 if text.get("class") == "title" else 1.0)
        start = {"start": x, "middle": x - width / 2, "end": x - width}[text.get("text-anchor")]
        edges.append((start, start + width, y))
    return edges


def test_charts_are_valid_and_nothing_is_cut_off(document):
    pytest.importorskip("matplotlib", reason="matplotlib brings the font that text is measured in")
    from matplotlib.font_manager import findfont
    from PIL import ImageFont

    font = ImageFont.truetype(findfont("DejaVu Sans"), 11.5)
    for chart in figures(document):
        for standalone in (False, True):
            root = ET.fromstring(charts.svg(chart, standalone))
            _, _, width, height = map(float, root.get("viewBox").split())
            for start, end, y in svg_extent(root, font):
                assert start >= -1, chart.slug
                assert end <= width + 1, chart.slug
                assert 0 < y <= height, chart.slug
            assert ("<style>" in charts.svg(chart, standalone)) == standalone


def test_time_chart_has_a_line_for_everybody_and_the_roofline(document):
    chart = next(chart for chart in figures(document) if chart.slug == "time-adam-float32-t2")
    assert {series.key for series in chart.series} == {*SUBJECTS, "own", "roofline", "divide"}
    assert [series.x for series in chart.series if series.key == "roofline"] == [[10.0**k for k in range(3, 9)]]
    assert chart.series[0].key == "c"


def test_every_subject_has_a_colour_and_a_shape_of_its_own():
    assert set(SUBJECTS) <= set(charts.STYLES)
    looks = [style[:1] + style[2:] for style in charts.STYLES.values()]
    assert len(set(looks)) == len(looks)
    assert charts.VERDICTS["loss"][0] not in [style[0] for style in charts.STYLES.values()]


def test_a_report_of_nothing_is_still_a_report(document, tmp_path):
    empty = copy.deepcopy(document) | {"cases": [], "start_up": {}}
    page = report.write(empty, tmp_path)
    assert "Nothing was measured" in page.read_text()


def test_ticks():
    assert charts._ticks(1, 1000, True) == pytest.approx([1, 3, 10, 30, 100, 300, 1000])
    assert charts._ticks(1, 10**8, True, most=9) == pytest.approx([10.0**k for k in range(9)])
    assert charts._ticks(0.0, 1.05, False) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert charts.number(1e7) == "10M"
    assert charts.number(0.5) == "0.5"


def test_readme_numbers_cannot_drift(document, tmp_path, capsys):
    readme, source = tmp_path / "README.md", tmp_path / "results.json"
    source.write_text(json.dumps(document))
    readme.write_text(f"# Title\n{readme_numbers.BEGIN}\nold\n{readme_numbers.END}\nthe rest\n")
    options = ["--readme", str(readme), "--results", str(source)]
    assert readme_numbers.main([*options, "--check"]) == 1
    assert readme_numbers.main(options) == 0
    text = readme.read_text()
    assert text.startswith("# Title\n")
    assert text.endswith("\nthe rest\n")
    assert "\nold\n" not in text
    assert readme_numbers.main([*options, "--check"]) == 0
    entry = next(e for e in document["cases"] if e["name"] == "size/adam/float32/1e7/2 threads")
    ratio = float(np.median(entry["results"]["numpy-naive"]["speedup_of_focus"]))
    assert results.ratio_text(ratio) in next(
        line for line in text.splitlines()[::-1] if line.startswith("| NumPy naive")
    )
    readme.write_text(text.replace(results.ratio_text(ratio), "99x"))
    assert readme_numbers.main([*options, "--check"]) == 1
    assert "readme_numbers.py" in capsys.readouterr().out


def test_readme_without_markers_is_refused():
    begin, end = readme_numbers.BEGIN, readme_numbers.END
    for page in ("no markers", f"{end}\n{begin}", f"{begin}\n{end}\nwhat must stay\n{end}\nthis, too"):
        with pytest.raises(ValueError, match="needs one line"):
            readme_numbers.with_numbers(page, "text")


def test_documentation_names_every_field(document):
    text = (ROOT / "docs" / "development" / "benchmarks.md").read_text()
    entry = document["cases"][0]
    fields = {*document, *document["machine"], *document["settings"], *document["noise"], *entry}
    fields |= {field for result in entry["results"].values() for field in result} | {"update_seconds"}
    assert {field for field in fields if f"`{field}`" not in text and f'`{field}"' not in text} == set()
    assert f"`schema_version` is {results.SCHEMA_VERSION}" in text


@pytest.mark.parametrize("text_of, sizes", [
    (results.seconds_text, {"s": 1.0, "ms": 1e-3, "µs": 1e-6, "ns": 1e-9}),
    (results.bytes_text, {"GiB": 2.0**30, "MiB": 2.0**20, "KiB": 2.0**10, "B": 1.0}),
])  # fmt: skip
def test_times_and_sizes_are_three_digits_of_a_unit_that_fits_them(text_of, sizes):
    step = 1000 if "s" in sizes else 1024
    borders = [size * near for size in sizes.values() for near in (1.0, 0.9951, 0.9994, 0.9996, 999.6, 1023.0, 1e5)]
    for value in [*borders, *np.geomspace(min(sizes.values()), 1e3 * max(sizes.values()), 300)]:
        number, unit = text_of(value).split()
        assert "e" not in number and float(number) * sizes[unit] == pytest.approx(value, rel=5.1e-3)
        assert float(number) >= 1.0 or sizes[unit] == min(sizes.values())
        assert float(number) < step or sizes[unit] == max(sizes.values())
    assert text_of(0.0) == f"0 {[*sizes][-1]}"
