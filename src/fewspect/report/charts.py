"""Small charts as SVG text: bars with intervals, learning curves. Colours are CSS variables of the page."""

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, BAR, GAP, LABEL = 640, 20, 8, 200
PLOT_HEIGHT, MARGIN = 220, 44
PALETTE = 8
"""Number of line colours of the page (``--c0`` ... ``--c7``)."""

MOST_POINTS = 200

Line = Sequence[tuple[float, float]]


def bars(items: Sequence[tuple[str, float, float]], unit: str) -> str:
    """Horizontal bars with 95 % intervals.

    Args:
        items: (name, mean, half width or NaN).
        unit: What is measured.
    """
    known = [(n, m, 0.0 if math.isnan(h) else h) for n, m, h in items if not math.isnan(m)]
    if not known:
        return ""
    top = max(m + h for _, m, h in known)
    low = min(0.0, *(m - h for _, m, h in known))
    limit = 1.0 if 0.5 < top <= 1.0 else top
    span = (limit - low) or 1.0
    scale = (WIDTH - LABEL - 70) / span
    height = len(known) * (BAR + GAP) + GAP
    parts = []
    for k, (name, mean, half) in enumerate(known):
        y, x0, x1 = GAP + k * (BAR + GAP), LABEL + (0 - low) * scale, LABEL + (mean - low) * scale
        left, width, middle = min(x0, x1), abs(x1 - x0), y + BAR / 2
        size = f'x="{left:.1f}" y="{y}" width="{width:.1f}" height="{BAR}"'
        parts.append(_text(LABEL - 8, middle + 4, _short(name), "end"))
        parts.append(f'<rect {size} rx="3" fill="{_colour(k)}"/>')
        end = x1
        if half:
            a, end = x1 - half * scale, x1 + half * scale
            ends = f"M{a:.1f} {y + 5}v10M{end:.1f} {y + 5}v10"
            parts.append(f'<path d="M{a:.1f} {middle}H{end:.1f}{ends}" class="whisker"/>')
        parts.append(_text(end + 6, middle + 4, f"{mean:.3f}"))
    title = f"<title>{escape(unit)}</title>"
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" class="chart">{title}{"".join(parts)}</svg>'


def lines(series: Mapping[str, Line], unit: str) -> str:
    """Learning curves over epochs; a legend below.

    Args:
        series: Name -> (epoch, value).
        unit: What is measured.
    """
    known = {n: [(x, y) for x, y in p if math.isfinite(y)] for n, p in series.items()}
    known = {n: _thinned(p) for n, p in known.items() if p}
    if not known:
        return ""
    xs, ys = zip(*(point for p in known.values() for point in p), strict=True)
    (x0, x1), (y0, y1) = (min(xs), max(xs)), (min(ys), max(ys))
    across, down = (WIDTH - MARGIN - 12) / ((x1 - x0) or 1), (PLOT_HEIGHT - 40) / ((y1 - y0) or 1)

    def place(x: float, y: float) -> str:
        return f"{MARGIN + (x - x0) * across:.1f},{12 + (y1 - y) * down:.1f}"

    parts = [f'<path d="M{MARGIN} 12V{PLOT_HEIGHT - 28}H{WIDTH - 12}" class="axis"/>']
    for x, y, words, anchor in (
        (MARGIN - 6, 16, f"{y1:.3g}", "end"),
        (MARGIN - 6, PLOT_HEIGHT - 26, f"{y0:.3g}", "end"),
        (MARGIN, PLOT_HEIGHT - 10, f"epoch {x0:.0f}", "start"),
        (WIDTH - 12, PLOT_HEIGHT - 10, f"{x1:.0f}", "end"),
    ):
        parts.append(_text(x, y, words, anchor))
    for k, (name, points) in enumerate(known.items()):
        where = " ".join(place(x, y) for x, y in points)
        if len(points) == 1:  # a line of one point would not be seen
            where = f"{where} {place(points[0][0], points[0][1])}"
        drawn = f'<polyline points="{where}" stroke="{_colour(k)}" class="line"/>'
        parts.append(f"<g><title>{escape(name)}</title>{drawn}</g>")
    legend = "".join(
        f'<span><i style="background:{_colour(k)}"></i>{escape(name)}</span>' for k, name in enumerate(known)
    )
    title = f"<title>{escape(unit)}</title>"
    svg = f'<svg viewBox="0 0 {WIDTH} {PLOT_HEIGHT}" role="img" class="chart">{title}{"".join(parts)}</svg>'
    return f'{svg}<p class="legend">{legend}</p>'


def _colour(k: int) -> str:
    return f"var(--c{k % PALETTE})"


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most ``MOST_POINTS``, evenly chosen, the last one kept."""
    step = max(1, math.ceil(len(points) / MOST_POINTS))
    return [*points[::step], points[-1]] if (len(points) - 1) % step else list(points[::step])


def _text(x: float, y: float, words: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _short(name: str, most: int = 28) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
