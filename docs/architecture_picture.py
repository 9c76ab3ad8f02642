"""Draw which folders of the package import which: python -m docs.architecture_picture

It writes ``docs/development/architecture.svg`` from the import statements; a test compares the file with the code.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

from tests.test_house import LAYERS, imported, modules

PICTURE = Path(__file__).parent / "development" / "architecture.svg"
HIDDEN = ("__init__", "__main__")
WIDTH, BOX, ROW, HEIGHT = 660, 106, 62, 30
# In which of five columns a part stands, chosen so that no arrow crosses a box; what is new stands in the middle.
COLUMN = dict.fromkeys(("demo", "plots", "tuning", "training", "schedules"), 0)
COLUMN |= dict.fromkeys(("distributed", "checkpoint", "common"), 1)
COLUMN |= dict.fromkeys(("bench", "functional", "arrays"), 3)
COLUMN |= dict.fromkeys(("cli", "environment", "backends", "rules"), 4)


def imports() -> dict[str, set[str]]:
    """For each folder, or module beside the folders, those whose modules it imports."""
    graph: dict[str, set[str]] = {}
    for name, path in modules():
        part = name.partition(".")[0]
        targets = {target.partition(".")[0] for target in imported(name, path)}
        graph.setdefault(part, set()).update(targets - {part, "_c", *HIDDEN})
    return {part: targets for part, targets in graph.items() if part not in HIDDEN}


def direct(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """Leave out what is imported by something else that is imported: the picture shows the shortest statement."""

    def reach(part: str) -> set[str]:
        return set().union(*({target} | reach(target) for target in graph[part]))

    return {part: {t for t in ts if not any(t in reach(other) for other in ts - {t})} for part, ts in graph.items()}


def draw() -> str:
    """Write the picture as SVG: the lowest layer at the bottom, arrows from who imports to what is imported."""
    graph = direct(imports())
    layers = [[part for part in layer if part in graph] for layer in LAYERS]
    layers = [layer for layer in layers if layer]
    height = ROW * len(layers) + 8
    places: dict[str, tuple[float, float]] = {}
    for depth, layer in enumerate(layers):
        for part in layer:
            x = WIDTH * (COLUMN.get(part, 2) + 0.5) / 5
            places[part] = (x, height - ROW * (depth + 1) + HEIGHT)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        'font-size="14" text-anchor="middle">',
        "<title>Folders of fastoptim and what they import</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" fill="#57606a"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
    ]
    for part, targets in sorted(graph.items()):
        for target in sorted(targets):
            (x1, y1), (x2, y2) = places[part], places[target]
            lines.append(
                f'<line x1="{x1:.0f}" y1="{y1 + HEIGHT / 2:.0f}" x2="{x2:.0f}" y2="{y2 - HEIGHT / 2:.0f}" '
                'stroke="#57606a" marker-end="url(#tip)"/>'
            )
    for part, (x, y) in places.items():
        lines.append(
            f'<rect x="{x - BOX / 2:.0f}" y="{y - HEIGHT / 2:.0f}" width="{BOX}" height="{HEIGHT}" rx="5" '
            f'fill="#eaf2fb" stroke="#2f6db3"/><text x="{x:.0f}" y="{y + 5:.0f}" fill="#1f2328">{escape(part)}</text>'
        )
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(draw())
