"""The reference benchmark as one HTML page: text, tables and small SVG charts, no request, no pictures.

It shows the very tables of ``docs/results.md`` (``benchmarks.tables.Table``), so the two cannot disagree.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from benchmarks.contamination import BOTH, COPIES
from benchmarks.tables import Cell, Rows, Table, Value
from fewspect.report.page import document, table

TITLE = "Fewspect: the reference benchmark"
WIDTH, LINE, BAR, MOST = 400, 34, 10, 46
"""Chart: width, height of an entry, height of its bar (all in units of the drawing), letters of a name."""

LEAST = 0.05
LEGEND = (
    "How to read the tables: ± is the half width of the 95 % interval over seeds, splits or episodes "
    "(unless the heading says otherwise); no ±: a single draw so far, or a plain mean. Highlighted is "
    "the best mean of a column: where intervals overlap, it is not known to be better. ≈: no worse than"
    " the best on the very same draws. A click on a heading sorts."
)


@dataclass(frozen=True)
class Section:
    """One task of the page.

    Attributes:
        name: Its anchor.
        title: Heading.
        asked: The question in a sentence or two.
        published: What others report, and why it is or is not the same.
        tables: The results; none = not measured yet.
        rows: What they were made of: for machine, day and backbone.
        command: What regenerates them.
    """

    name: str
    title: str
    asked: str
    published: str
    tables: Sequence[Table]
    rows: Rows
    command: str


def page(sections: Sequence[Section], clean: Table | None) -> str:
    """The whole page.

    Args:
        sections: Tasks in order.
        clean: What was found on both sides of the splits; None = not looked for yet.
    """
    measured = [s for s in sections if s.tables]
    links = "".join(f'<a href="#{s.name}">{escape(s.title)}</a>' for s in measured)
    body = [
        f"<h1>{escape(TITLE)}</h1>",
        f'<p class="lead">{escape(_lead(measured))}</p>',
        f'<nav>{links}<a href="#both-sides">On both sides?</a></nav>',
        _glance(measured),
        f'<p class="dim">{escape(LEGEND)}</p>' if measured else "",
        *(_section(s) for s in measured),
        _contamination(clean),
        _missing([s for s in sections if not s.tables]),
    ]
    return document(TITLE, "".join(body), (Path(__file__).parent / "page.css").read_text("utf-8"))


def _lead(sections: Sequence[Section]) -> str:
    rows = [r for s in sections for r in s.rows]
    backbones = sorted({str(r.get("backbone", "tiny")) for r in rows})
    small = (
        ", the embedded network of 0.3 M parameters that has seen synthetic surfaces only: the numbers say "
        "how the machinery works on real pictures, not what a large backbone reaches"
    )
    told = [f"{name}{small if name == 'tiny' else ''}" for name in backbones]
    return (
        f"Every task of the framework on the data at hand: {len(rows)} measured cells, fixed splits and "
        f"draws. Backbone: {'; '.join(told) or 'none yet'}."
    )


def _glance(sections: Sequence[Section]) -> str:
    """What stands for every table: a number, whose it is, and on what data."""
    tiles = []
    for section in sections:
        for made in section.tables:
            found = _marked(made, made.chart[0]) if made.chart else None
            if found:
                name, best = (escape(_plain(str(word))) for word in found)
                tiles.append(
                    f'<a class="tile" href="#{section.name}"><b>{best}</b> {escape(made.chart[0])}'
                    f"<span>{name}</span><small>{escape(section.title)}: {escape(made.title)}</small></a>"
                )
    return f'<h2>At a glance</h2><div class="tiles">{"".join(tiles)}</div>' if tiles else ""


def _marked(made: Table, column: str) -> tuple[str, Value] | None:
    """What stands for a table: its best row; where nothing is better than another, the first one."""
    at = list(made.head).index(column)
    known = [(str(line[0]), c) for line in made.lines if isinstance(c := line[at], Value)]
    marked = [pair for pair in known if pair[1].mark == "best"]
    promised = known if not math.isnan(made.line) and not made.best else []
    return next(iter([*marked, *promised]), None) or _leader(made, column)


def _leader(made: Table, column: str) -> tuple[str, Value] | None:
    """Name and value of the best row of a column."""
    at = list(made.head).index(column)
    known = [(str(line[0]), c) for line in made.lines if isinstance(c := line[at], Value)]
    way = made.best.get(column)
    if way is None or len({str(cell) for _, cell in known}) < 2:  # one, or all alike
        return None
    found = (max if way == "max" else min)(known, key=lambda pair: pair[1].mean)
    return found if abs(found[1].mean) >= LEAST else None  # the best of nothing is nothing


def _section(section: Section) -> str:
    again = f"Again: <code>{escape(section.command)}</code>"
    parts = [
        f'<section><h2 id="{section.name}">{escape(section.title)}</h2>',
        f'<p class="asked">{escape(section.asked)}</p>',
        *(_table(made) for made in section.tables),
        f'<p class="note">{escape(section.published)}</p>',
        f'<p class="dim">{escape(_where(section.rows))} {again}</p></section>',
    ]
    return "".join(parts)


def _where(rows: Rows) -> str:
    """Machine, days and backbone of some rows, in words."""
    machines = sorted({r["machine"] for r in rows if r.get("machine")})
    days = sorted({r["date"] for r in rows if r.get("date")})
    span = "" if not days else days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}"
    number = f"{len(rows)} measured cell{'s' * (len(rows) != 1)}"
    told = f"{number}; {'; '.join(machines) or 'machine not recorded'}"
    return f"{told}{', ' if span else ''}{span}."


def _table(made: Table) -> str:
    hidden = {*made.costs, *(c for columns in made.details.values() for c in columns)}
    filled = {c for at, c in enumerate(made.head) if any(line[at] != "" for line in made.lines)}
    main = [c for c in made.head[1:] if c in filled - hidden]
    charts = "".join(chart(made, column) for column in made.chart)
    more = [
        f"<details><summary>{name}</summary>{table(_lines(made, columns))}</details>"
        for name, wanted in {**made.details, "What it takes": made.costs}.items()
        if (columns := [c for c in wanted if c in filled])
    ]
    notes = "".join(f'<p class="dim">{escape(n)}</p>' for n in made.notes)
    return (
        f'<h3>{escape(made.title)}</h3><div class="charts">{charts}</div>'
        f"{table(_lines(made, main)) if made.lines else ''}{''.join(more)}{notes}"
    )


def _lines(made: Table, columns: Iterable[str]) -> list[list[str]]:
    """Heading and lines of some columns, the best of each marked as ``report.page.table`` wants it."""
    places = [list(made.head).index(c) for c in columns]
    leaders = {at: _leader(made, made.head[at]) for at in places}
    lines = [[made.head[0] or "row", *(made.head[at] for at in places)]]
    body = ([_plain(str(line[0])), *(_cell(line[at], leaders[at]) for at in places)] for line in made.lines)
    return [*lines, *body]


def _cell(cell: Cell, leader: tuple[str, Value] | None) -> str:
    if not isinstance(cell, Value):
        return _plain(cell)
    if cell.mark == "best" or (leader is not None and str(cell) == str(leader[1])):  # equals share it
        return f"{cell} *"
    return f"{cell} ≈" if cell.mark == "tie" else str(cell)


def _plain(name: str) -> str:
    return name.replace("`", "")


def chart(made: Table, column: str) -> str:
    """Horizontal bars with intervals, a name and its number above each; empty without two numbers."""
    at = list(made.head).index(column)
    known = [(_plain(str(line[0])), c) for line in made.lines if isinstance(c := line[at], Value)]
    if len(known) < 2:
        return ""
    ends = [abs(c.mean) + (0.0 if math.isnan(c.half) else c.half) for _, c in known]
    limit = 100.0 if max(ends) > 60 else max(5.0, 5.0 * math.ceil(max(ends) / 5))
    low = 0.0 if all(c.mean >= 0 for _, c in known) else -limit
    scale = WIDTH / (limit - low)
    leader = _leader(made, column)
    marked = {c.mark for _, c in known} & {"best"}
    parts = []
    for k, (name, cell) in enumerate(known):
        best = cell.mark == "best" if marked else leader is not None and str(cell) == str(leader[1])
        parts.append(_bar(k, name, cell, (low, limit, scale), best=best))
    drawn = low < made.line < limit
    if drawn:
        x = (made.line - low) * scale
        parts.append(f'<path d="M{x:.1f} 0V{len(known) * LINE}" class="level"/>')
    told = f"{column}: {', '.join(f'{name} {cell}' for name, cell in known)}"
    ends_at = f"{'' if low == 0 else f'{low:.0f} to '}{limit:.0f}"
    dashed = f"; dashed: {made.line_name}" if drawn else ""
    return (
        f"<figure><figcaption>{escape(column)} <small>(full width: {ends_at}{dashed})</small></figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {len(known) * LINE}" role="img" class="bars">'
        f"<title>{escape(told)}</title>{''.join(parts)}</svg></figure>"
    )


def _bar(k: int, name: str, cell: Value, frame: tuple[float, float, float], *, best: bool) -> str:
    low, limit, scale = frame
    top, y = k * LINE + 12, k * LINE + 18
    zero, x = (0 - low) * scale, (min(max(cell.mean, low), limit) - low) * scale
    short = name if len(name) <= MOST else f"{name[: MOST - 1]}…"
    leader = " leader" if best else ""
    parts = [
        f'<text x="0" y="{top}" class="name{leader}">{escape(short)}</text>',
        f'<text x="{WIDTH}" y="{top}" class="number{leader}">{escape(str(cell))}</text>',
        f'<rect x="0" y="{y}" width="{WIDTH}" height="{BAR}" rx="3" class="track"/>',
        f'<rect x="{min(zero, x):.1f}" y="{y}" width="{abs(x - zero):.1f}" height="{BAR}" rx="3" '
        f'class="{"top" if best else "bar"}"/>',
    ]
    if not math.isnan(cell.half) and cell.half > 0:
        a, b = (
            (min(max(v, low), limit) - low) * scale for v in (cell.mean - cell.half, cell.mean + cell.half)
        )
        ends = f"M{a:.1f} {y + 2}v{BAR - 4}M{b:.1f} {y + 2}v{BAR - 4}"
        parts.append(f'<path d="M{a:.1f} {y + BAR / 2}H{b:.1f}{ends}" class="whisker"/>')
    return "".join(parts)


def _contamination(clean: Table | None) -> str:
    what = (
        "A score on a picture that was learned from is worth nothing. Before anything is measured, the "
        "decoded pixels of all pictures are compared by hash, and so are the groups (the same tile or part, "
        "photographed several times); a benchmark refuses to measure where one is on both sides."
    )
    head = f'<h2 id="both-sides">Is anything on both sides?</h2><p class="asked">{escape(what)}</p>'
    if clean is None:
        return f'<section>{head}<p class="dim">Not counted yet.</p></section>'
    shown = f'<div class="words">{table(_lines(clean, clean.head[1:]))}</div>'
    return f"<section>{head}{_verdict(clean)}{shown}</section>"


def _verdict(clean: Table) -> str:
    places = {c: list(clean.head).index(c) for c in (*BOTH, COPIES)}
    total = {c: sum(int(str(line[at])) for line in clean.lines) for c, at in places.items()}
    if any(total[c] for c in BOTH):
        return '<p class="note">Pictures or groups are on both sides: see the table.</p>'
    among = [f"{line[0]} on {line[1]}: {line[places[COPIES]]}" for line in clean.lines]
    among = [words for words in among if not words.endswith(" 0")]
    more = f" Copies among the asked ({', '.join(among)}) may meet as support and query." if among else ""
    return f'<p class="note good">No picture and no group is on both sides of any split.{escape(more)}</p>'


def _missing(sections: Sequence[Section]) -> str:
    lines = "".join(f"<li>{escape(s.title)}: <code>{escape(s.command)}</code></li>" for s in sections)
    return f"<h2>Not measured yet</h2><ul>{lines}</ul>" if lines else ""
