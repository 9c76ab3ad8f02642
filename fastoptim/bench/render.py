"""Renders a report as HTML and Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any

from ..bench import charts
from .blocks import Block, Figures, Heading, Paragraph, Points, Table

STYLE = """
:root{color-scheme:light dark;--back:#fff;--text:#1b1f24;--soft:#57606a;--line:#d5dae0;--stripe:#f5f7f9;--loss:#c81e1e}
@media(prefers-color-scheme:dark){:root{--back:#15181c;--text:#e6e6e6;--soft:#9aa4af;--line:#343b43;--stripe:#1d2126;
--loss:#ff6b6b}}
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
td.loss{color:var(--loss);font-weight:700}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,350px),1fr));gap:1.2rem;margin:1em 0}
figure{margin:0;max-width:560px}figure svg{width:100%;height:auto;display:block}
summary{cursor:pointer;font-weight:600;margin:1.5em 0 .5em}li{margin:.25em 0;overflow-wrap:anywhere}
@media(max-width:520px){body{padding:.8rem;font-size:15px}table{font-size:.8rem}th,td{padding:.25em .3em}
table.numbers th,table.numbers td{padding:.25em .2em}
table.facts td:first-child,table.numbers td{white-space:normal}table.numbers{font-size:.74rem}
table.numbers th:not(:first-child){min-width:0}small{display:block}}
@media print{:root{--back:#fff;--text:#000;--soft:#444;--line:#bbb;--stripe:#f5f5f5;--loss:#b00000;color-scheme:light}
body{max-width:none;padding:0;font-size:10.5pt}figure,tr{break-inside:avoid}h2,caption{break-after:avoid}.scroll{overflow:visible}
table{font-size:8.5pt}.figures{grid-template-columns:1fr 1fr}table.numbers td{white-space:normal}}
"""


def _html_table(table: Table) -> str:
    kind = "numbers" if table.numeric else "facts"
    caption = f"<caption>{escape(table.caption)}</caption>" if table.caption else ""
    head = ""
    if any(table.header):
        head = f"<thead><tr>{''.join(f'<th>{escape(text)}</th>' for text in table.header)}</tr></thead>"
    rows = []
    for row in table.rows:
        cells = []
        for cell in row:
            if cell.mark == "loss":
                cells.append(f'<td class="loss">{escape(cell.text)} <small>loss</small></td>')
            else:
                cells.append(f"<td>{escape(cell.text)}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return f'<div class="scroll"><table class="{kind}">{caption}{head}<tbody>{"".join(rows)}</tbody></table></div>'


def _html(block: Block) -> str:
    if isinstance(block, Heading):
        return f"<h2>{escape(block.text)}</h2>"
    if isinstance(block, Paragraph):
        return f"<p>{escape(block.text)}</p>"
    if isinstance(block, Points):
        return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in block.items)}</ul>"
    if isinstance(block, Table):
        return _html_table(block)
    if isinstance(block, Figures):
        return f'<div class="figures">{"".join(f"<figure>{charts.svg(c)}</figure>" for c in block.charts)}</div>'
    return f"<details><summary>{escape(block.title)}</summary>{''.join(map(_html, block.blocks))}</details>"


def _subtitle(document: dict[str, Any]) -> str:
    m = document["machine"]
    return f"fastoptim {m['versions']['fastoptim']} on {m['cpu']} ({m['cores']} cores), {m['date'][:10]}"


def _markdown(block: Block) -> str:
    if isinstance(block, Heading):
        return f"## {block.text}"
    if isinstance(block, Paragraph):
        return block.text
    if isinstance(block, Points):
        return "\n".join(f"- {item}" for item in block.items)
    if isinstance(block, Table):
        return markdown_table(block)
    if isinstance(block, Figures):
        return "\n\n".join(f"![{c.title}]({c.slug}.svg)" for c in block.charts)
    return f"### {block.title}\n\n" + "\n\n".join(map(_markdown, block.blocks))


def markdown_table(table: Table) -> str:
    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(text.replace("|", "\\|") for text in cells) + " |"

    rows = [[f"**{cell.text} (loss)**" if cell.mark == "loss" else cell.text for cell in row] for row in table.rows]
    rule = "|---|" + ("---:|" if table.numeric else "---|") * (len(table.header) - 1)
    caption = f"**{table.caption}**\n\n" if table.caption else ""
    return caption + "\n".join([line(table.header), rule, *map(line, rows)])
