"""Charts as data, drawn as SVG.

Colours are CSS variables, so that one SVG is legible on light and on dark pages; every series also has a marker and a
dash of its own. Charts are as wide as a phone, so that nothing has to be scaled down there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH = 430
TITLE_CHARACTERS = 54

# name -> (light, dark, marker, dash)
STYLES: dict[str, tuple[str, str, str, str]] = {
    "c": ("#0b57d0", "#7db2ff", "circle", ""),
    "numba": ("#00796b", "#4fd1c1", "square", ""),
    "reference": ("#5f7186", "#9fb3c8", "triangle", "5 3"),
    "roofline": ("#1b1f24", "#e6e6e6", "none", "2 3"),
    "divide": ("#1b1f24", "#e6e6e6", "cross", "1 4"),
    "torch-fused": ("#d97706", "#ffb454", "circle", ""),
    "torch-default": ("#92500a", "#d9a066", "square", "5 3"),
    "torch-foreach": ("#b8860b", "#e3c565", "triangle", "2 2"),
    "optax": ("#7b2cbf", "#c79bf2", "diamond", ""),
    "jax": ("#a855a0", "#e39ad9", "cross", "5 3"),
    "numpy-in-place": ("#2e7d32", "#7ccf80", "circle", "5 3"),
    "numpy-naive": ("#6a994e", "#b5d99c", "square", "2 2"),
    "numexpr": ("#ad1a72", "#f28cc3", "diamond", "5 3"),
    "thinc": ("#4a5568", "#b0b8c4", "cross", "2 2"),
    "sklearn": ("#0e7490", "#67c7dd", "triangle", "2 2"),
}
OWN = ("#6b4f3a", "#d3b8a1", "diamond", "2 2")  # a subject of the user's own
# what a bar says (verdicts, and parts of a training step) -> (light, dark)
VERDICTS = {
    "win": ("#0b57d0", "#7db2ff"),
    "tie": ("#6b7280", "#9ca3af"),
    "loss": ("#c81e1e", "#ff6b6b"),
    "unknown": ("#c3c8cf", "#4b5563"),
    "update": ("#d97706", "#ffb454"),
    "rest": ("#9aa7b5", "#5b6b7c"),
}


@dataclass
class Series:
    """One line: points with their quartiles."""

    key: str
    title: str
    x: list[float]
    y: list[float]
    low: list[float]
    high: list[float]


@dataclass
class Lines:
    """A chart of lines."""

    slug: str
    title: str
    x_label: str
    y_label: str
    series: list[Series]
    marks: list[tuple[float, str]] = field(default_factory=list)  # vertical lines with a label
    log: bool = True  # both axes


@dataclass
class BarRow:
    """One bar: its parts from left to right as (value, verdict), and the text behind it."""

    label: str
    parts: list[tuple[float, str]]
    text: str
    low: float | None = None
    high: float | None = None


@dataclass
class Bars:
    """A chart of horizontal bars that start at 0, on a logarithmic axis at 1."""

    slug: str
    title: str
    x_label: str
    rows: list[BarRow]
    legend: list[tuple[str, str]]  # (verdict, what it means)
    log: bool = False
    line: float | None = None  # a vertical line, such as the roofline

    @property
    def origin(self) -> float:
        return 1.0 if self.log else 0.0


Chart = Lines | Bars


def css() -> str:
    """Give every class its colour, light and dark."""

    def block(i: int) -> str:
        rules = [f".k-{key}{{--k:{style[i]}}}" for key, style in (STYLES | {"own": OWN}).items()]
        rules += [f".v-{key}{{--k:{style[i]}}}" for key, style in VERDICTS.items()]
        return "".join(rules)

    base = (
        ".chart{font:11.5px system-ui,sans-serif;fill:currentColor}"
        ".chart .grid{stroke:currentColor;opacity:.14}.chart .axis{stroke:currentColor;opacity:.5}"
        ".chart .mark{stroke:currentColor;opacity:.35;stroke-dasharray:3 3}"
        ".chart .title{font-weight:600;font-size:13px}"
        ".chart .soft{opacity:.72}.chart .line{stroke:var(--k);fill:none;stroke-width:1.7}"
        ".chart .strong{stroke-width:3}.chart .dot,.chart .bar{fill:var(--k)}"
        ".chart .cross,.chart .whisker{stroke:var(--k);stroke-width:1.3;fill:none}"
        ".chart .whisker.on{stroke:currentColor;opacity:.6}"
    )
    return f"{base}{block(0)}@media(prefers-color-scheme:dark){{{block(1)}}}"


STANDALONE = (
    "svg{background:#fff;color:#1b1f24}@media(prefers-color-scheme:dark){svg{background:#15181c;color:#e6e6e6}}"
)


def style_class(key: str) -> str:
    return f"k-{key}" if key in STYLES else "k-own"


def number(value: float) -> str:
    """Shorten a number for an axis: 0.5, 20, 1k, 10M."""
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:g}{suffix}"
    return f"{value:g}"


def _ticks(low: float, high: float, log: bool, most: int = 7) -> list[float]:
    if log:
        exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for steps in ((1, 2, 5), (1, 3), (1,)):
            ticks = [s * 10.0**e for e in exponents for s in steps if low * 0.999 <= s * 10.0**e <= high * 1.001]
            if len(ticks) <= most:
                break
        return ticks
    span = high - low or 1.0
    unit = 10.0 ** math.floor(math.log10(span / most))
    unit = next(unit * s for s in (1, 2, 5, 10) if span / (unit * s) <= most)
    first = math.ceil(low / unit - 1e-9)
    return [k * unit for k in range(first, math.floor(high / unit + 1e-9) + 1)]


def _scale(low: float, high: float, start: float, end: float, log: bool) -> Callable[[float], float]:
    """What maps values to pixels."""
    on_axis: Callable[[float], float] = math.log if log else float
    first, length = on_axis(low), on_axis(high) - on_axis(low)
    return lambda value: start + (on_axis(value) - first) / length * (end - start)


def _text(x: float, y: float, text: str, anchor: str = "start", classes: str = "", extra: str = "") -> str:
    name = f' class="{classes}"' if classes else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{name}{extra}>{escape(text)}</text>'


def _line(s: Series, points: Iterable[tuple[float, float]]) -> str:
    dash = STYLES.get(s.key, OWN)[3]
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    strong = " strong" if s.key == "c" else ""
    return f'<polyline class="line{strong}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"{dashes}/>'


def _marker(s: Series, x: float, y: float) -> str:
    kind = STYLES.get(s.key, OWN)[2]
    if kind == "circle":
        return f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="3.2"/>'
    if kind == "square":
        return f'<rect class="dot" x="{x - 2.9:.1f}" y="{y - 2.9:.1f}" width="5.8" height="5.8"/>'
    if kind == "triangle":
        return f'<path class="dot" d="M{x:.1f} {y - 3.8:.1f}l3.7 6.6h-7.4z"/>'
    if kind == "diamond":
        return f'<path class="dot" d="M{x:.1f} {y - 4:.1f}l4 4l-4 4l-4-4z"/>'
    if kind == "cross":
        return f'<path class="cross" d="M{x - 3:.1f} {y - 3:.1f}l6 6m0-6l-6 6"/>'
    return ""


def text_width(text: str) -> float:
    """Estimate the pixels that a label may take, with the widths of a wide font."""
    return sum(11.4 if c in "mwMW%@" else 4.2 if c in "ijlft.,:;|'()- " else 7.5 for c in text)


def _wrap(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def svg(chart: Chart, standalone: bool = False) -> str:
    """Draw a chart as SVG; `standalone` brings its own colours and background, for a file."""
    title = _wrap(chart.title, TITLE_CHARACTERS)
    top = 14 + 16 * len(title)
    body, height = _lines(chart, top) if isinstance(chart, Lines) else _bars(chart, top)
    body = [*(_text(8, 18 + 16 * i, line, classes="title") for i, line in enumerate(title)), *body]
    sheet = f"<style>{STANDALONE}{css()}</style>" if standalone else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
        f'aria-label="{escape(chart.title)}">{sheet}{"".join(body)}</svg>'
    )


def _range(values: Sequence[float], log: bool) -> tuple[float, float]:
    low, high = min(values), max(values)
    if log:
        return low / 1.25, high * 1.25
    return min(0.0, low), high * 1.08 or 1.0


def _lines(chart: Lines, top: float) -> tuple[list[str], float]:
    """What stands below the title, and the height of all."""
    left, right, bottom = 48.0, WIDTH - 14.0, top + 232.0
    xs = [x for s in chart.series for x in s.x]
    x_low, x_high = (min(xs) / 1.5, max(xs) * 1.5) if chart.log else (min(xs) - 0.2, max(xs) + 0.2)
    y_low, y_high = _range([y for s in chart.series for y in (*s.low, *s.high)], chart.log)
    x, y = _scale(x_low, x_high, left, right, chart.log), _scale(y_low, y_high, bottom, top + 14, chart.log)
    body = []
    for tick in _ticks(y_low, y_high, chart.log):
        body.append(f'<path class="grid" d="M{left} {y(tick):.1f}H{right}"/>')
        body.append(_text(left - 6, y(tick) + 4, number(tick), "end"))
    for tick in _ticks(x_low, x_high, chart.log) if chart.log else sorted(set(xs)):
        body.append(f'<path class="grid" d="M{x(tick):.1f} {top + 14}V{bottom}"/>')
        body.append(_text(x(tick), bottom + 15, number(tick), "middle"))
    for position, label in chart.marks:
        if x_low < position < x_high:
            body.append(f'<path class="mark" d="M{x(position):.1f} {top + 14}V{bottom}"/>')
            body.append(_text(x(position), top + 9, label, "middle", "soft"))
    body.append(f'<path class="axis" d="M{left} {top + 14}V{bottom}H{right}" fill="none"/>')
    body.append(_text((left + right) / 2, bottom + 31, chart.x_label, "middle", "soft"))
    middle = (top + bottom) / 2
    upright = f' transform="rotate(-90 12 {middle:.1f})"'
    body.append(_text(12, middle, chart.y_label, "middle", "soft", upright))
    for s in reversed(chart.series):  # the first is drawn on top
        body.append(f'<g class="{style_class(s.key)}"><title>{escape(s.title)}</title>')
        body.append(_line(s, zip(map(x, s.x), map(y, s.y), strict=True)))
        for a, b, low, high in zip(s.x, s.y, s.low, s.high, strict=True):
            body.append(f'<path class="whisker" d="M{x(a):.1f} {y(low):.1f}V{y(high):.1f}"/>')
            body.append(_marker(s, x(a), y(b)))
        body.append("</g>")
    base = bottom + 52
    for i, s in enumerate(chart.series):
        cx, cy = 14 + (i % 2) * (WIDTH / 2), base + 17 * (i // 2)
        body.append(f'<g class="{style_class(s.key)}">{_line(s, [(cx, cy), (cx + 24, cy)])}')
        body.append(f"{_marker(s, cx + 12, cy)}</g>{_text(cx + 31, cy + 4, s.title)}")
    return body, base + 17 * ((len(chart.series) + 1) // 2)


def _bar_ends(chart: Bars) -> tuple[float, float]:
    ends = [chart.origin, *([chart.line] if chart.line is not None else [])]
    for row in chart.rows:
        total = sum(value for value, _ in row.parts)
        ends += [value for value in (total, row.low, row.high) if value is not None]
    if chart.log:
        return min(ends) / 1.1, max(ends) * 1.15
    return min(ends), max(ends) * 1.05


def _bars(chart: Bars, top: float) -> tuple[list[str], float]:
    """What stands below the title, and the height of all."""
    left = min(10 + max(text_width(row.label) for row in chart.rows), 250.0)
    right = WIDTH - 12 - max(text_width(row.text) for row in chart.rows)
    step = 22.0
    bottom = top + 6 + step * len(chart.rows)
    low, high = _bar_ends(chart)
    x = _scale(low, high, left, right, chart.log)
    body = []
    for tick in _ticks(low, high, chart.log, most=5):
        body.append(f'<path class="grid" d="M{x(tick):.1f} {top}V{bottom}"/>')
        body.append(_text(x(tick), bottom + 14, number(tick), "middle"))
    for i, row in enumerate(chart.rows):
        y = top + 6 + step * i
        body.append(_text(left - 6, y + 12, row.label, "end"))
        at = chart.origin
        for value, verdict in row.parts:
            end = value if len(row.parts) == 1 else at + value
            a, b = sorted((x(at), x(end)))
            body.append(
                f'<rect class="bar v-{verdict}" x="{a:.1f}" y="{y + 1:.1f}" width="{max(b - a, 1.5):.1f}" height="15"/>'
            )
            at = end
        furthest = x(max(at, chart.origin))
        if row.low is not None and row.high is not None:
            body.append(
                f'<path class="whisker on" d="M{x(row.low):.1f} {y + 8.5:.1f}H{x(row.high):.1f}m0-4v8'
                f'M{x(row.low):.1f} {y + 4.5:.1f}v8"/>'
            )
            furthest = max(furthest, x(row.high))
        body.append(_text(furthest + 6, y + 12.5, row.text))
    body.append(f'<path class="axis" d="M{x(chart.origin):.1f} {top}V{bottom}"/>')
    if chart.line is not None:
        body.append(f'<path class="mark" d="M{x(chart.line):.1f} {top}V{bottom}"/>')
    body.append(_text((left + right) / 2, bottom + 29, chart.x_label, "middle", "soft"))
    base = bottom + 48
    at_x = 12.0
    for verdict, text in chart.legend:
        wide = 30 + text_width(text)
        if at_x > 12 and at_x + wide > WIDTH:
            at_x, base = 12.0, base + 17
        body.append(f'<rect class="bar v-{verdict}" x="{at_x:.1f}" y="{base - 9:.1f}" width="12" height="12"/>')
        body.append(_text(at_x + 17, base + 1, text))
        at_x += wide
    return body, base + 8
