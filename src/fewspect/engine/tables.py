"""What a finished run says: one table per class, the notes, and the run folder as the last line."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

Row = Mapping[str, str | int | float]


def result(rows: Sequence[Row], totals: Mapping[str, float], title: str) -> Table:
    """Rows per class and a last one with the totals; columns are the union of the rows' keys."""
    columns = list(dict.fromkeys(key for row in rows for key in row if key != "class"))
    extra = [key for key in totals if key not in columns]
    table = Table(title=title, title_justify="left")
    table.add_column("class")
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(str(row.get("class", "")), *(cell(row.get(column)) for column in columns))
    table.add_section()
    table.add_row("all", *(cell(totals.get(column)) for column in columns))
    table.caption = "   ".join(f"{key} {cell(totals[key])}" for key in extra) or None
    table.caption_justify = "left"
    return table


def cell(value: str | float | None) -> str:
    """A number with four digits, anything else as it is."""
    return "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def show(rows: Sequence[Row], totals: Mapping[str, float], notes: Sequence[str], title: str) -> None:
    """Print the table and the notes to the terminal."""
    console = Console(width=None if Console().is_terminal else 160)
    if rows or totals:
        console.print(result(rows, totals, title))
    for note in notes:
        console.print(f"note: {note}", highlight=False)


def farewell(folder: Path) -> None:
    """The last line of every run."""
    print(folder, flush=True)
