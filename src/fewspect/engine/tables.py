"""What a finished run says: one table per class, the notes, and the run folder as the last line."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fewspect.report.inspection import Summary, sentences, short
from fewspect.report.inspection import cell as shown
from fewspect.report.records import Run
from fewspect.report.tables import Comparison, costs, grid, legend

INTERVAL = "_ci95"
COUNTS = ("classes", "episodes", "episodes_empty", "episodes_ignored")
"""Totals that are whole numbers; Lightning hands every metric back as a float."""

MOST = 40
"""Rows of a further table (say, of defect types) from which on it is left to the file."""

INSPECTED = ("class", "score", "regions", "area_pixels", "length_pixels", "area_mm2", "length_mm")

FILE, SAMPLINGS = "results.csv", "samplings.csv"

Row = Mapping[str, str | int | float]


def result(rows: Sequence[Row], totals: Mapping[str, float], title: str, head: str = "class") -> Table:
    """Rows per class, then the mean over classes (``m`` + column, else the column) with its interval."""
    columns = list(dict.fromkeys(key for row in rows for key in row if key != head))
    table = Table(title=escape(title), title_justify="left", caption_justify="left")
    table.add_column(head)
    for column in columns:
        table.add_column(escape(column), justify="right")
    for row in rows:
        table.add_row(*(escape(cell(row.get(column))) for column in (head, *columns)))
    if totals:
        table.add_section()
        table.add_row("all", *(cell(totals.get(f"m{column}", totals.get(column))) for column in columns))
    plain = {
        k: v for k, v in totals.items() if "/" not in k and k not in columns and not k.endswith(INTERVAL)
    }
    table.caption = escape(
        "   ".join(f"{k} {cell(int(v) if k in COUNTS else v)}{interval(totals, k)}" for k, v in plain.items())
    )
    return table


def interval(totals: Mapping[str, float], key: str) -> str:
    """Half width of the 95 % interval of a mean, where there is one."""
    width = totals.get(f"{key}{INTERVAL}")
    return "" if width is None else f" ± {width:.4f}"


def cell(value: str | float | None) -> str:
    """A number with four digits (counts without), anything else as it is."""
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() and abs(value) > 1 else f"{value:.4f}"
    return "" if value is None else str(value)


def show(
    tables: Mapping[str, Sequence[Row]], totals: Mapping[str, float], notes: Sequence[str], title: str
) -> None:
    """Print the main table (no title of its own) with totals, the others, and the notes to the terminal."""
    console = Console(width=None if Console().is_terminal else 160)
    for name, rows in sorted(tables.items(), reverse=True):  # the main one last
        if len(rows) > MOST and name:
            console.print(f"{name}: {len(rows)} rows, see {FILE}", highlight=False, markup=False)
        elif rows or (totals and not name):
            console.print(result(rows, {} if name else totals, name or title))
    for note in notes:
        console.print(f"note: {note}", highlight=False, markup=False)


def show_evaluation(rows: Sequence[Row], notes: Sequence[str]) -> None:
    """Print what was measured of a generated set."""
    console = Console(width=None if Console().is_terminal else 160)
    console.print(result(rows, {}, "generated images", "measure"))
    for note in notes:
        console.print(f"note: {note}", highlight=False, markup=False)


def show_comparison(comparison: Comparison, others: Sequence[Run]) -> None:
    """Print one table per metric, the costs, and what has no result."""
    console = Console(width=None if Console().is_terminal else 160)
    blocks = {m: grid(comparison, m) for m in comparison.metrics} | {"cost": costs(comparison)}
    for title, (head, *body) in blocks.items():
        table = Table(title=escape(title), title_justify="left")
        for k, name in enumerate(head):
            table.add_column(escape(name), justify="left" if k < len(comparison.rows) else "right")
        for line in body:
            table.add_row(*map(escape, line))
        console.print(table)
    console.print(legend(comparison), highlight=False, markup=False)
    for run in others:
        line = f"without a result: {run.folder} ({run.status})"
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def show_inspection(told: Summary, rows: Sequence[Row]) -> None:
    """Print the images that were called defective, the most striking first, and the summary."""
    console = Console(width=None if Console().is_terminal else 160)
    called = sorted((r for r in rows if r["decision"] == "defect"), key=lambda r: -float(r["score"]))
    table = Table(title="called defective", title_justify="left")
    columns = [c for c in INSPECTED if any(c in r for r in called)]
    names = short(rows)
    table.add_column("image", overflow="fold")
    for column in columns:
        table.add_column(column, justify="left" if column == "class" else "right")
    for row in called[:MOST]:
        table.add_row(*map(escape, (names[str(row["file"])], *(shown(row, c) for c in columns))))
    if called:
        console.print(table)
    if len(called) > MOST:
        console.print(f"and {len(called) - MOST} more, see inspection.csv", highlight=False)
    for line in sentences(told):
        console.print(line, highlight=False, markup=False)


def save(rows: Sequence[Row], folder: Path, name: str = FILE) -> None:
    """Write every row with all its columns to ``results.csv`` (or another name)."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    part = folder / f"{name}.part"
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    part.replace(folder / name)


def farewell(folder: Path) -> None:
    """The last line of every run."""
    print(folder, flush=True)
