"""Blocks that a report is made of, and their rendering as HTML and Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, NamedTuple

from ..bench import charts
from .charts import Chart


@dataclass
class Heading:
    text: str

    @property
    def anchor(self) -> str:
        """What GitHub makes of a heading, so that one link serves both renderings."""
        return re.sub(r"[^\w -]", "", self.text.lower()).replace(" ", "-")


@dataclass
class Notice:
    """A warning that must not be overlooked."""

    text: str


@dataclass
class Contents:
    headings: list[Heading]


class Cell(NamedTuple):
    """Text of a table cell that has a mark: "loss", a key of `MARKS` or nothing."""

    text: str
    mark: str


@dataclass
class Table:
    header: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
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


# A text is a paragraph, a list of texts a list of points.
Block = Heading | Notice | str | list[str] | Contents | Table | Figures | Folded

MARKS = {"tie": "\N{ALMOST EQUAL TO}", "noisy": "~", "unknown": "?"}

STYLE = """
:root{color-scheme:light dark;--back:#fff;--text:#1b1f24;--soft:#57606a;--line:#d5dae0;--stripe:#f5f7f9;--loss:#c81e1e;
--warn:#fff3cd;--edge:#d97706}
@media(prefers-color-scheme:dark){:root{--back:#15181c;--text:#e6e6e6;--soft:#9aa4af;--line:#343b43;--stripe:#1d2126;
--loss:#ff6b6b;--warn:#3a2d0c;--edge:#ffb454}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1.2rem;max-width:1180px;background:var(--back);color:var(--text);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
h1{font-size:1.6rem;line-height:1.25;margin:.2em 0}
h2{font-size:1.2rem;margin:2em 0 .5em;border-bottom:1px solid var(--line)}
.soft,caption{color:var(--soft)}.scroll{overflow-x:auto;margin:.8em 0;max-width:100%}
table{border-collapse:collapse;font-size:.9rem}
caption{text-align:left;white-space:nowrap;padding:.2em 0;font-weight:600}
th,td{padding:.28em .6em;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
table.numbers th:not(:first-child),table.numbers td:not(:first-child){text-align:right}
table.numbers td{white-space:nowrap;font-variant-numeric:tabular-nums}table.numbers th:not(:first-child){min-width:5em}
td:first-child{font-weight:500}tbody tr:nth-child(even){background:var(--stripe)}
table.facts td{overflow-wrap:anywhere}
table.facts td:first-child{white-space:nowrap;overflow-wrap:normal;color:var(--soft)}
td.loss{color:var(--loss);font-weight:700}td.tie,td.noisy,td.unknown{color:var(--soft)}
.notice{background:var(--warn);border-left:5px solid var(--edge);padding:.6em .9em;margin:1em 0;font-weight:600}
nav ul{columns:2 17rem;padding-left:1.2em}nav li{margin:0}a{color:inherit}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,350px),1fr));gap:1.2rem;margin:1em 0}
figure{margin:0;max-width:560px}figure svg{width:100%;height:auto;display:block}
summary{cursor:pointer;font-weight:600;margin:1.5em 0 .5em}li{margin:.25em 0;overflow-wrap:anywhere}
@media(max-width:520px){body{padding:.8rem;font-size:15px}table{font-size:.8rem}th,td{padding:.25em .3em}
table.numbers th,table.numbers td{padding:.25em .2em}
table.facts td:first-child,table.numbers td{white-space:normal}table.numbers{font-size:.74rem}
table.numbers th:not(:first-child){min-width:0}td.loss small{display:block}}
@media print{:root{--back:#fff;--text:#000;--soft:#444;--line:#bbb;--stripe:#f5f5f5;--loss:#b00000;--warn:#fff;
color-scheme:light}
body{max-width:none;padding:0;font-size:10.5pt}figure,tr{break-inside:avoid}h2,caption{break-after:avoid}.scroll{overflow:visible}
table{font-size:8.5pt}.figures{grid-template-columns:1fr 1fr}table.numbers td{white-space:normal}}
"""


# --- HTML ---------------------------------------------------------------------------------------------------------


def _html_cell(cell: Cell | str) -> str:
    text, mark = (cell, "") if isinstance(cell, str) else cell
    if sign := "loss" if mark == "loss" else MARKS.get(mark):
        return f'<td class="{mark}">{escape(text)} <small>{sign}</small></td>'
    return f"<td>{escape(text)}</td>"


def _html_table(table: Table) -> str:
    kind = "numbers" if table.numeric else "facts"
    caption = f"<caption>{escape(table.caption)}</caption>" if table.caption else ""
    head = ""
    if any(table.header):
        head = f"<thead><tr>{''.join(f'<th>{escape(text)}</th>' for text in table.header)}</tr></thead>"
    body = "".join(f"<tr>{''.join(map(_html_cell, row))}</tr>" for row in table.rows)
    return f'<div class="scroll"><table class="{kind}">{caption}{head}<tbody>{body}</tbody></table></div>'


def _html_list(items: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{item}</li>' for item in items)}</ul>"


def _html(block: Block) -> str:
    match block:
        case Heading():
            return f'<h2 id="{block.anchor}">{escape(block.text)}</h2>'
        case Notice():
            return f'<p class="notice">{escape(block.text)}</p>'
        case str():
            return f"<p>{escape(block)}</p>"
        case list():
            return _html_list(map(escape, block))
        case Contents():
            links = (f'<a href="#{h.anchor}">{escape(h.text)}</a>' for h in block.headings)
            return f"<nav>{_html_list(links)}</nav>"
        case Table():
            return _html_table(block)
        case Figures():
            return f'<div class="figures">{"".join(f"<figure>{charts.svg(c)}</figure>" for c in block.charts)}</div>'
        case Folded():
            return f"<details><summary>{escape(block.title)}</summary>{''.join(map(_html, block.blocks))}</details>"


def html_page(title: str, subtitle: str, blocks: Iterable[Block]) -> str:
    """Render blocks as one page that needs nothing else."""
    body = "\n".join(map(_html, blocks))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>Benchmark: {escape(subtitle)}</title><style>{STYLE}{charts.css()}"
        # On paper the light colours hold, whatever the screen's.
        f"@media print{{{charts.css().split('@media')[0]}}}</style></head>\n"
        f'<body><h1>{escape(title)}</h1><p class="soft">{escape(subtitle)}</p>\n{body}\n</body></html>\n'
    )


# --- Markdown -----------------------------------------------------------------------------------------------------


def _markdown_cell(cell: Cell | str) -> str:
    text, mark = (cell, "") if isinstance(cell, str) else cell
    if mark == "loss":
        return f"**{text} (loss)**"
    return f"{text} {MARKS[mark]}" if mark in MARKS else text


def markdown_table(table: Table) -> str:
    """Render a table, its caption above it."""

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(text.replace("|", "\\|") for text in cells) + " |"

    rule = "|---|" + ("---:|" if table.numeric else "---|") * (len(table.header) - 1)
    caption = f"**{table.caption}**\n\n" if table.caption else ""
    return caption + "\n".join([line(table.header), rule, *(line(map(_markdown_cell, row)) for row in table.rows)])


def _markdown(block: Block) -> str:
    match block:
        case Heading():
            return f"## {block.text}"
        case Notice():
            return f"> **{block.text}**"
        case str():
            return block
        case list():
            return "\n".join(f"- {item}" for item in block)
        case Contents():
            return "\n".join(f"- [{h.text}](#{h.anchor})" for h in block.headings)
        case Table():
            return markdown_table(block)
        case Figures():
            return "\n\n".join(f"![{c.title}]({c.slug}.svg)" for c in block.charts)
        case Folded():
            return f"### {block.title}\n\n" + "\n\n".join(map(_markdown, block.blocks))


def markdown_page(title: str, subtitle: str, blocks: Iterable[Block]) -> str:
    """Render blocks as Markdown, with charts as files beside it."""
    return f"# {title}\n\n{subtitle}\n\n" + "\n\n".join(map(_markdown, blocks)) + "\n"
