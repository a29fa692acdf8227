"""What the table benchmarks share: row files, cells with intervals, tables between marks of a page.

A row is one JSON object on a line of ``benchmarks/results/<task>.jsonl``: what was asked (set, method, seed,
...), the metrics as plain fractions, and on which machine, day and backbone. A table is made of rows and is
written as Markdown into ``docs/results.md`` and as HTML into ``docs/benchmark.html``; both show the same
numbers, because both show the same ``Table``.
"""

import argparse
import datetime
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from benchmarks.report import processor
from fewspect.callbacks.files import write_atomic
from fewspect.engine import build, folders
from fewspect.errors import UserError
from fewspect.metrics.classification import half_width

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "results.md"
RESULTS = ROOT / "benchmarks" / "results"
FIXED = ("logger=none", "trainer=cpu", "data.workers=0")
"""Every run of a benchmark: no logger, the processor, no loader processes."""

BACKBONE = "tiny"

Row = Mapping[str, Any]
Rows = Sequence[Row]


@dataclass(frozen=True, slots=True)
class Value:
    """A number of a table.

    Attributes:
        mean: Over what was drawn (seeds, splits, episodes).
        half: Half width of its 95 % interval; NaN = not known.
        sign: Write the sign of positive numbers too: a difference.
        mark: ``best``, ``tie`` (its paired difference to the best includes 0) or nothing.
    """

    mean: float
    half: float = math.nan
    sign: bool = False
    mark: str = ""

    def __str__(self) -> str:
        mean = f"{self.mean:{'+' if self.sign else ''}.1f}"
        return mean if math.isnan(self.half) else f"{mean} ± {self.half:.1f}"

    def markdown(self) -> str:
        """As ``str``; the best one bold, its equals with a star."""
        return {"best": f"**{self}**", "tie": f"{self} *"}.get(self.mark, str(self))


Cell = Value | str


@dataclass(frozen=True)
class Table:
    """One table of a page.

    Attributes:
        name: Its mark in ``docs/results.md``.
        title: What stands above it.
        head: Names of the columns, that of the rows first.
        lines: Cells; every line begins with the name of the row.
        best: Column -> ``max`` or ``min``: what is good there; a column that is not named has no best.
        chart: Columns that are drawn as well.
        costs: Columns that say what it takes, not what it reaches.
        details: Columns that are shown on request, by what they are called together.
        extra: Columns for which Markdown has no room.
        line: A level that is drawn with the bars: what guessing reaches, say; NaN = none.
        line_name: What it is.
        notes: What a reader must know, below the table.
    """

    name: str
    title: str
    head: Sequence[str]
    lines: Sequence[Sequence[Cell]]
    best: Mapping[str, str] = field(default_factory=dict)
    chart: Sequence[str] = ()
    costs: Sequence[str] = ()
    details: Mapping[str, Sequence[str]] = field(default_factory=dict)
    extra: Sequence[str] = ()
    line: float = math.nan
    line_name: str = "chance"
    notes: Sequence[str] = ()

    def markdown(self) -> str:
        """The table as text."""
        at = [k for k, name in enumerate(self.head) if name not in self.extra]
        cells = ([line[k] for k in at] for line in self.lines)
        shown = [[c.markdown() if isinstance(c, Value) else c for c in line] for line in cells]
        body = [markdown([self.head[k] for k in at], shown)] if shown else []
        return "\n\n".join([*body, *self.notes])


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    rows = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join([*rows, *("| " + " | ".join(line) + " |" for line in lines)])


def value(numbers: Sequence[float], *, sign: bool = False, interval: bool = True) -> Cell:
    """Mean of some numbers with the 95 % interval of Student's t; no interval for one, empty for none."""
    if not len(numbers):
        return ""
    array = np.asarray(numbers, dtype=np.float64)
    return Value(float(array.mean()), half_width(array) if interval else math.nan, sign)


def spread(numbers: Sequence[float]) -> Value:
    """Mean ± standard deviation of at least one number; none for a single one."""
    array = np.asarray(numbers, dtype=np.float64)
    return Value(float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else math.nan)


def of(rows: Iterable[Row], key: str, factor: float = 100) -> list[float]:
    """Values of a key in the rows that have it."""
    return [factor * r[key] for r in rows if r.get(key) is not None]


def read(path: Path) -> list[dict[str, Any]]:
    """Rows of a file; none without one. A last line that was not finished is no row.

    Raises:
        UserError: Another line is not a JSON object; names it.
    """
    if not path.is_file():
        return []
    lines, rows = path.read_text("utf-8", errors="replace").split("\n"), []
    for number, line in enumerate(lines, 1):
        row = _parsed(line)
        if row is not None:
            rows.append(row)
        elif line.strip() and number < len(lines):  # the last one: killed while it was written
            raise UserError(
                f"{path}, line {number} is no row.", "Remove this line; its cell is measured again."
            )
    return rows


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def append(path: Path, row: Row, *, threads: int = 1) -> dict[str, Any]:
    """Add a row, told where and when it was measured, and print it; half a line at the end goes."""
    told = {**row, "backbone": row.get("backbone", BACKBONE), **stamp(threads)}
    path.parent.mkdir(parents=True, exist_ok=True)
    text = path.read_text("utf-8", errors="replace") if path.is_file() else ""
    whole, _, rest = text.rpartition("\n")
    if rest:
        kept = [rest] if _parsed(rest) is not None else []
        new = "".join(f"{line}\n" for line in [*whole.splitlines(), *kept])
        write_atomic(path, lambda file: file.write(new.encode()))
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(told, ensure_ascii=False) + "\n")
    print(json.dumps(told, ensure_ascii=False), flush=True)
    return told


def stamp(threads: int) -> dict[str, str]:
    """Machine (no host name) and day."""
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    return {"machine": f"{processor()}, {threads} thread{'s' * (threads > 1)}", "date": day}


def put(page: Path, name: str, body: str) -> bool:
    """Replace what stands between ``<!-- name -->`` and ``<!-- /name -->``; whether the page has them."""
    text = page.read_text("utf-8")
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    found = re.search(f"(?s){re.escape(start)}.*?{re.escape(end)}", text)
    if found:
        text = f"{text[: found.start()]}{start}\n{body}\n{end}{text[found.end() :]}"
        write_atomic(page, lambda file: file.write(text.encode()))
    return bool(found)


def write(made: Iterable[Table], page: Path = PAGE, *, show: bool = True) -> None:
    """Put tables between their marks, and print them."""
    for name, group in _grouped(made).items():
        body = "\n\n".join(t.markdown() for t in group)
        if show:
            print(f"{name}\n{body}\n", flush=True)
        put(page, name, body)


def _grouped(made: Iterable[Table]) -> dict[str, list[Table]]:
    """Tables by mark: several may stand between the same two."""
    found: dict[str, list[Table]] = {}
    for table in made:
        found.setdefault(table.name, []).append(table)
    return found


def config(*overrides: str) -> DictConfig:
    """The composed config of a run."""
    OmegaConf.register_new_resolver("run_folder", folders.run_folder, replace=True)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", list(overrides))


def tree(*overrides: str) -> dict[str, Any]:
    """The resolved config of a run on the processor, without logger and loader processes."""
    return build.resolve(config(*FIXED, *overrides))


def metrics(session_metrics: Mapping[str, Any], prefix: str = "test/") -> dict[str, float]:
    """Values of a stage under their plain names."""
    return {k.removeprefix(prefix): float(v) for k, v in session_metrics.items() if k.startswith(prefix)}


def arguments(
    task: str,
    argv: Sequence[str] | None,
    more: Callable[[argparse.ArgumentParser], None] | None,
    *,
    root: bool = True,
) -> argparse.Namespace:
    """The command line of a table benchmark: ``--root``, ``--out``, ``--page``, ``--threads``, its own.

    Args:
        task: Its name; rows are kept in ``benchmarks/results/<task>.jsonl``.
        argv: Words; None = those of the process.
        more: Adds the others; None = there are none.
        root: Whether the task cannot do without data sets.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{task}")
    parser.add_argument("--root", type=Path, required=root, help="folder that holds the data sets")
    parser.add_argument("--out", type=Path, default=RESULTS / f"{task}.jsonl", help="finished rows")
    parser.add_argument("--page", type=Path, default=PAGE, help="page whose tables are rewritten")
    parser.add_argument("--threads", type=int, default=1)
    if more is not None:
        more(parser)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    return options


def started(main: Callable[[], None]) -> None:
    """Run a command; what the user has to mend is told in two lines."""
    try:
        main()
    except UserError as error:
        print(f"{error.message}\n{error.hint}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; the same command goes on here", file=sys.stderr)
        sys.exit(130)
