"""A comparison as one HTML file: sortable tables, charts, panels side by side; no request leaves the page."""

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

from PIL import Image

from fewspect.report import charts
from fewspect.report.records import Run, curves
from fewspect.report.tables import Comparison, Key, costs, grid, legend

PANEL_WIDTH, PANELS, PANEL_QUALITY = 900, 2, 80
"""Pixels that a panel is shrunk to, panels per row of the comparison, JPEG quality."""

MOST_CURVES = 24


def to_html(comparison: Comparison, others: Sequence[Run] = (), title: str = "Comparison") -> str:
    """The whole page.

    Args:
        comparison: What ``tables.compare`` returned.
        others: Runs without a result; they are listed at the end.
        title: Heading.
    """
    main = comparison.metrics[0]
    number = sum(len(runs) for runs in comparison.groups.values())
    grouped = f"{', '.join(comparison.rows)} by {', '.join(comparison.columns)}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="dim">{number} runs · {escape(grouped)}</p>',
    ]
    for metric in comparison.metrics:
        parts += [f"<h2>{escape(metric)}</h2>", table(grid(comparison, metric))]
        if metric == main:
            parts.append(f'<p class="dim">{escape(legend(comparison, "Highlighted:"))}</p>')
            parts += [_bars(comparison, column, main) for column in comparison.column_names]
    parts += ["<h2>Cost</h2>", table(costs(comparison))]
    parts += [_curves(comparison), _panels(comparison), _failures(others)]
    return document(title, "".join(parts))


def document(title: str, body: str, style: str = "") -> str:
    """A page of our looks around a body; style (ours, then ``style``) and script are inside."""
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
    return (
        f"<!doctype html><html lang=en><head>{head}<title>{escape(title)}</title>"
        f"<style>{_part('page.css')}{style}</style></head>"
        f"<body>{body}<script>{_part('page.js')}</script></body></html>\n"
    )


def _part(name: str) -> str:
    """Style and script of the page, which lie beside this file."""
    return (Path(__file__).parent / name).read_text("utf-8")


def table(lines: Sequence[Sequence[str]]) -> str:
    """A table whose headings sort it; the first line holds them, a cell that ends with `` *`` is the best."""
    head, *body = lines
    top = "".join(f"<th>{escape(c)}</th>" for c in head)
    rows = "".join(f"<tr>{''.join(map(_data, line))}</tr>" for line in body)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{rows}</tbody></table></div>'


def _data(cell: str) -> str:
    best = cell.endswith(" *")
    return f"<td{' class=best' if best else ''}>{escape(cell.removesuffix(' *'))}</td>"


def _bars(comparison: Comparison, column: Key, metric: str) -> str:
    cells = [(row, comparison.cell(row, column, metric)) for row in comparison.row_names]
    chart = charts.bars([(" ".join(row), c.mean, c.half) for row, c in cells if c.count], metric)
    return f"<figure><figcaption>{escape(' '.join(column))}</figcaption>{chart}</figure>" if chart else ""


def _curves(comparison: Comparison) -> str:
    """Validation curves of the objective, or of the training loss; the first run of each cell."""
    series: dict[tuple[str, str], dict[str, charts.Line]] = {}
    places = ((row, column) for row in comparison.row_names for column in comparison.column_names)
    for row, column in (place for place in places if place in comparison.groups):
        runs = comparison.groups[row, column]
        found = curves(runs[0])
        objective = str((runs[0].record.get("objective") or {}).get("name"))
        name = objective if objective in found else "train/loss"
        if name in found and len(series) < MOST_CURVES:
            series.setdefault((" ".join(column), name), {})[" ".join(row)] = found[name]
    drawn = [
        f"<figure><figcaption>{escape(column)}: {escape(name)}, first seed</figcaption>"
        f"{charts.lines(lines, name)}</figure>"
        for (column, name), lines in sorted(series.items())
    ]
    return f"<h2>Learning curves</h2>{''.join(drawn)}" if drawn else ""


def _panels(comparison: Comparison) -> str:
    """The first test panels of every row, side by side on a wide screen."""
    figures = []
    for row in comparison.row_names:
        runs = next((r for (name, _), r in comparison.groups.items() if name == row), [])
        folder = runs[0].folder / "panels" if runs else None
        files = sorted(folder.glob("test_*.png")) if folder else []
        for file in files[:PANELS]:
            picture = _embedded(file.read_bytes())
            if picture:
                caption = f"{' '.join(row)}: {file.stem.removeprefix('test_').replace('_', ' ')}"
                figures.append(
                    f'<figure><img loading="lazy" alt="{escape(caption)}" src="{picture}">'
                    f"<figcaption>{escape(caption)}</figcaption></figure>"
                )
    return f"<h2>Panels</h2>{''.join(figures)}" if figures else ""


def _embedded(content: bytes) -> str:
    """A picture as a data URL, shrunk; empty when it cannot be read."""
    try:
        with Image.open(io.BytesIO(content)) as picture:
            shown = picture.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError):
        return ""
    shown.thumbnail((PANEL_WIDTH, 10 * PANEL_WIDTH))
    out = io.BytesIO()
    shown.save(out, "JPEG", quality=PANEL_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"


def _failures(others: Sequence[Run]) -> str:
    if not others:
        return ""
    lines = "".join(
        f"<li><code>{escape(str(r.folder))}</code> {escape(r.status)}"
        f"{': ' + escape(str(r.record['error'])[:200]) if r.record.get('error') else ''}</li>"
        for r in others
    )
    return f"<h2>Without a result</h2><ul>{lines}</ul>"
