"""Layout (e): a CSV or JSON table with the columns image, mask, label, product, split, group.

Byte-order marks, CRLF, semicolons, tabs, foreign absolute paths and tables without a header are read; a wrong
guess ends in an error that shows the first lines.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fewspect.data.readers.source import read_json
from fewspect.errors import UserError

Row = dict[str, str]
Columns = Sequence[str] | Mapping[str, str] | None

ALIASES = {
    "image": ("image", "file", "filename", "file_name", "path", "image_path", "img", "datei", "bild"),
    "mask": ("mask", "mask_path", "mask_file", "ground_truth", "maske"),
    "label": ("label", "class", "category", "defect", "klasse"),
    "product": ("product", "object", "part", "produkt", "teil"),
    "split": ("split", "set", "subset"),
    "group": ("group", "gruppe"),
}
"""Header names (lower case) that are understood without ``columns``."""

SEPARATORS = (";", "\t", ",", "|")


def read_rows(path: Path, columns: Columns = None, separator: str | None = None) -> list[Row]:
    """Read a table.

    Args:
        path: ``.json``, or text with separated columns.
        columns: None = by header; a mapping of our names to the header's; a list = names in order, file
            without header.
        separator: One character, or ``blank`` for runs of blanks; None = guessed from the first line.

    Returns:
        Rows with our column names; other columns are left out.

    Raises:
        UserError: Unreadable, or no image column.
    """
    if path.suffix.lower() == ".json":
        named = columns if isinstance(columns, Mapping) else None
        records = _json_rows(path)
        return [_required(_renamed(row, named), path, [json.dumps(row)]) for row in records]
    lines = _lines(path)
    cells = _cells(path, lines, separator)
    if columns is not None and not isinstance(columns, Mapping):
        return [_required(dict(zip(columns, row, strict=False)), path, lines) for row in cells]
    header = [name.strip() for name in cells[0]]
    rows = [_renamed(dict(zip(header, row, strict=False)), columns) for row in cells[1:]]
    return [_required(row, path, lines) for row in rows]


def read_cells(path: Path, separator: str | None = None) -> list[list[str]]:
    """Cells of a text table, the header's first; see ``read_rows``.

    Raises:
        UserError: Unreadable.
    """
    return _cells(path, _lines(path), separator)


def _lines(path: Path) -> list[str]:
    """Non-empty lines of a UTF-8 (or, failing that, Windows-1252) text file."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror})", "Check the path and permissions."
        ) from error
    try:
        text = raw.decode("utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError:
        text = raw.decode("cp1252", "replace")
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise UserError(f"{path}: the table is empty", "Columns: image, mask, label, product, split, group.")
    return lines


def _cells(path: Path, lines: list[str], separator: str | None) -> list[list[str]]:
    if separator == "blank":
        return [line.split() for line in lines]
    guess = separator or max(SEPARATORS, key=lines[0].count)
    try:
        return [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=guess)]
    except (csv.Error, TypeError) as error:  # an open quote, a separator of two characters
        hint = "Close every quote; data.reader.separator is one character, or blank."
        raise UserError(f"{path}: cannot be cut into columns ({error})", hint) from error


def _renamed(row: Mapping[str, Any], columns: Mapping[str, str] | None) -> Row:
    """Our column names; explicit ``columns`` win over the aliases."""
    lower = {str(k).strip().lower(): v for k, v in row.items()}
    found = {}
    for name, aliases in ALIASES.items():
        wanted = (columns[name].lower(),) if columns and name in columns else aliases
        value = next((lower[a] for a in wanted if lower.get(a) not in (None, "")), None)
        if value is not None:
            found[name] = str(value)
    return found


def _required(row: Row, path: Path, lines: list[str]) -> Row:
    if row.get("image"):
        return row
    shown = "\n".join(f"  {line[:200]}" for line in lines[:2])
    hint = "Set data.reader.columns (names, or our name to theirs) and data.reader.separator."
    what = "a record without image" if path.suffix.lower() == ".json" else "no image column found"
    raise UserError(f"{path}: {what}; the first lines are\n{shown}", hint)


def _json_rows(path: Path) -> list[dict[str, Any]]:
    """A list of records, ``{"samples": [...]}``, or the lists label_names, image_names, image_labels."""
    content = read_json(path)
    if isinstance(content, dict) and isinstance(content.get("image_names"), list):
        names, labels = content.get("label_names") or [], content.get("image_labels") or []
        if len(labels) != len(content["image_names"]) or any(k not in range(len(names)) for k in labels):
            raise UserError(
                f"{path}: image_labels do not fit image_names and label_names", "Write the list again."
            )
        return [{"image": i, "label": names[k]} for i, k in zip(content["image_names"], labels, strict=True)]
    rows = content.get("samples") if isinstance(content, dict) else content
    if not isinstance(rows, list) or not all(isinstance(r, dict) for r in rows):
        raise UserError(
            f"{path}: not a list of records", 'Write [{"image": ..., "mask": ..., "label": ...}, ...].'
        )
    return rows
