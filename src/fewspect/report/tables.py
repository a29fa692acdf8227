"""A comparison as a table: groups of runs in rows, data sets in columns, mean ± interval in the cells.

Example:
    >>> comparison = compare(runs, rows=["method"], columns=["data"], metrics=["test/miou"])
    >>> print(to_markdown(comparison))
"""

import csv
import io
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fewspect.errors import UserError
from fewspect.report.records import Run, known_keys, text, value, varying
from fewspect.report.statistics import Cell, Verdict, paired, summarise

MAIN = ("test/miou", "test/accuracy", "test/image_auroc", "test/pixel_auroc")
"""What is compared where the objectives of the runs do not say."""

BESIDE = (
    "test/fb_iou",
    "test/dice",
    "test/pixel_auroc",
    "test/aupro_0.3",
    "test/image_auroc",
    "test/macro_recall",
)
"""Metrics that are shown beside it where every run has them."""

COSTS: dict[str, tuple[str, ...]] = {
    "ms / image": ("milliseconds_per_image",),
    "GFLOP / image": ("flops_per_image",),
    "episodes / s": ("samples_per_second",),
    "peak memory, MiB": ("peak_memory_mib", "rss"),
    "hours": ("wall_seconds",),
    "parameters, M": ("parameters", "all"),
    "trained, M": ("parameters", "trained"),
}
"""Column -> where ``run.json`` has it."""

SCALE = {"GFLOP / image": 1e-9, "hours": 1 / 3600, "parameters, M": 1e-6, "trained, M": 1e-6}
SMALL_IS_GOOD = ("loss", "alarm", "error", "seconds", "fid", "kid", "_ci95")
"""Parts of the names of metrics of which less is better."""

NONE = "-"

Key = tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Runs set side by side.

    Attributes:
        rows: Configuration keys that name a row.
        columns: Configuration keys that name a column.
        metrics: Metrics, the main one first.
        groups: (row, column) -> its runs, in the order of their other values.
        verdicts: (row, column) -> paired test against the best row of that column, by the main metric.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    metrics: tuple[str, ...]
    groups: dict[tuple[Key, Key], list[Run]]
    verdicts: dict[tuple[Key, Key], Verdict]

    @property
    def row_names(self) -> list[Key]:
        """Rows, the best by the main metric of the first column first."""
        names = list(dict.fromkeys(row for row, _ in self.groups))
        sign = -1 if is_better_high(self.metrics[0]) else 1
        columns = self.column_names

        def rank(row: Key) -> tuple[float, ...]:
            means = (self.cell(row, column, self.metrics[0]).mean for column in columns)
            return tuple(math.inf if math.isnan(m) else sign * m for m in means)

        return sorted(names, key=rank)

    @property
    def column_names(self) -> list[Key]:
        """Columns in alphabetical order."""
        return sorted({column for _, column in self.groups})

    def cell(self, row: Key, column: Key, metric: str) -> Cell:
        """Mean and interval of a metric; an empty cell without runs."""
        runs = self.groups.get((row, column), [])
        return summarise([r.metrics[metric] for r in runs if metric in r.metrics])

    def cost(self, row: Key, column: Key, name: str) -> float:
        """Mean of a cost column over the runs of a cell; NaN where nothing is recorded."""
        found = [_inside(r.record, COSTS[name]) for r in self.groups.get((row, column), [])]
        known = [v * SCALE.get(name, 1.0) for v in found if v is not None]
        return sum(known) / len(known) if known else math.nan

    def best(self, column: Key, metric: str) -> Key | None:
        """Row with the best mean of a column."""
        means = {row: self.cell(row, column, metric).mean for row, c in self.groups if c == column}
        known = {row: mean for row, mean in means.items() if not math.isnan(mean)}
        choose = max if is_better_high(metric) else min
        return choose(known, key=lambda row: known[row]) if known else None


def compare(
    runs: Sequence[Run],
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    metrics: Sequence[str] | None = None,
) -> Comparison:
    """Group runs and test the best row of every column against the others.

    Args:
        runs: What ``records.collect`` found.
        rows: Configuration keys; None = the method and whatever else differs within a method and data set.
        columns: Configuration keys; None = the data set.
        metrics: Names with or without ``test/``; None = the objective of most runs and what goes with it.

    Raises:
        UserError: A key or a metric that no run has.
    """
    across = tuple(columns or ["data"])
    down = tuple(rows or ["method", *(k for k in varying(runs) if k not in across)])
    _refuse_unknown([*down, *across], runs)
    shown = tuple(_full(m, runs) for m in metrics) if metrics else _metrics(runs)
    groups: dict[tuple[Key, Key], list[Run]] = {}
    for run in sorted(runs, key=lambda r: (r.record.get("seed") or 0, str(r.folder))):
        place = tuple(tuple(text(value(run, k)) for k in keys) for keys in (down, across))
        groups.setdefault((place[0], place[1]), []).append(run)
    plain = Comparison(down, across, shown, groups, {})
    return Comparison(down, across, shown, groups, _verdicts(plain))


def is_better_high(metric: str) -> bool:
    """Whether more of a metric is better; checkpoints, searches and comparisons all ask here."""
    return not any(word in metric for word in SMALL_IS_GOOD)


def grid(comparison: Comparison, metric: str) -> list[list[str]]:
    """Header and lines of one metric's table; * marks the best of a column and what is as good."""
    head = [*comparison.rows, *(" ".join(c) for c in comparison.column_names)]
    lines = []
    for row in comparison.row_names:
        cells = [_shown(comparison, row, column, metric) for column in comparison.column_names]
        lines.append([*row, *cells])
    return [head, *lines]


def costs(comparison: Comparison) -> list[list[str]]:
    """Header and lines of what the runs cost, mean over their columns; what nobody measured is left."""
    body = {}
    for row in comparison.row_names:
        found = [[comparison.cost(row, c, name) for c in comparison.column_names] for name in COSTS]
        means = [[v for v in values if not math.isnan(v)] for values in found]
        body[row] = [sum(v) / len(v) if v else math.nan for v in means]
    kept = [k for k in range(len(COSTS)) if any(not math.isnan(values[k]) for values in body.values())]
    head = [*comparison.rows, *(list(COSTS)[k] for k in kept)]
    return [head, *([*row, *(_cost(values[k]) for k in kept)] for row, values in body.items())]


def to_markdown(comparison: Comparison) -> str:
    """Tables of all metrics and of the costs."""
    parts = [f"**{m}**\n\n{_markdown(grid(comparison, m))}" for m in comparison.metrics]
    parts += [f"**cost**\n\n{_markdown(costs(comparison))}"]
    return "\n\n".join([*parts, legend(comparison)]) + "\n"


def to_csv(comparison: Comparison) -> str:
    """One line per row, column and metric, with full precision."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*comparison.rows, *comparison.columns, "metric", "mean", "ci95", "runs", "against_best"])
    for (row, column), _ in sorted(comparison.groups.items()):
        for metric in comparison.metrics:
            cell = comparison.cell(row, column, metric)
            verdict = comparison.verdicts.get((row, column)) if metric == comparison.metrics[0] else None
            numbers = [repr(cell.mean), "" if math.isnan(cell.half) else repr(cell.half), cell.count]
            writer.writerow([*row, *column, metric, *numbers, verdict.word if verdict else ""])
    return out.getvalue()


def legend(comparison: Comparison, mark: str = "*") -> str:
    """How to read the tables; ``mark`` stands before what the marked cells are."""
    counts = Counter(len(runs) for runs in comparison.groups.values())
    runs = " or ".join(str(n) for n in sorted(counts))
    bases = sorted({v.basis for v in comparison.verdicts.values()})
    basis = f", paired over shared {' and '.join(bases)}" if bases else ""
    best = f"{mark} best of its column, or not distinguishable from it{basis}."
    return f"Mean ± 95 % interval over {runs} run(s) per cell. {best}"


def _verdicts(comparison: Comparison) -> dict[tuple[Key, Key], Verdict]:
    found = {}
    metric = comparison.metrics[0]
    for column in comparison.column_names:
        best = comparison.best(column, metric)
        for row in (r for r, c in comparison.groups if c == column and best is not None and r != best):
            assert best is not None
            a, b = _paired(comparison.groups[row, column], comparison.groups[best, column])
            verdict = paired(a, b, metric) if a else None
            if verdict is not None:
                found[row, column] = verdict
    return found


def _paired(a: Sequence[Run], b: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """Runs of both with the same seed, in its order."""
    left, right = ({str(r.record.get("seed")): r for r in runs} for runs in (a, b))
    shared = sorted(set(left) & set(right))
    return [left[s] for s in shared], [right[s] for s in shared]


def _metrics(runs: Iterable[Run]) -> tuple[str, ...]:
    known = [r.metrics for r in runs]
    shared = [m for m in known[0] if all(m in k for k in known)]
    objectives = Counter(str((r.record.get("objective") or {}).get("name")).rpartition("/")[2] for r in runs)
    wanted = [f"test/{name}" for name, _ in objectives.most_common()] + list(MAIN)
    main = next((m for m in wanted if m in shared), None) or next(
        (m for m in shared if m.startswith("test/")), None
    )
    if main is None:
        raise UserError(
            "These runs have no test metric in common.",
            "Compare fewer of them, or name metrics: compare.metrics=[test/miou].",
        )
    return (main, *(m for m in BESIDE if m in shared and m != main))


def _full(metric: str, runs: Iterable[Run]) -> str:
    known = dict.fromkeys(m for r in runs for m in r.metrics)
    for name in (metric, f"test/{metric}"):
        if name in known:
            return name
    listed = ", ".join(m.removeprefix("test/") for m in known if m.startswith("test/"))
    raise UserError(f"compare.metrics: no run has {metric}.", f"There are: {listed}.")


def _refuse_unknown(keys: Sequence[str], runs: Sequence[Run]) -> None:
    known = known_keys(runs)
    for key in keys:
        if key not in known and sum(k.endswith(f".{key}") for k in known) != 1:
            close = [k for k in known if k.rpartition(".")[2] == key.rpartition(".")[2]][:3]
            hint = f"There are: {', '.join(close)}." if close else "Name keys as in config.yaml: data.shot."
            raise UserError(f"compare: {key} is no key of these runs, or of several.", hint)


def _shown(comparison: Comparison, row: Key, column: Key, metric: str) -> str:
    cell = comparison.cell(row, column, metric)
    if cell.count == 0:
        return NONE
    half = "" if math.isnan(cell.half) else f" ± {_number(cell.half)}"
    verdict = comparison.verdicts.get((row, column)) if metric == comparison.metrics[0] else None
    star = comparison.best(column, metric) == row or (
        verdict is not None and verdict.low <= 0 <= verdict.high
    )
    return f"{_number(cell.mean)}{half}{' *' if star else ''}"


def _number(number: float) -> str:
    if math.isnan(number):
        return NONE
    return f"{number:.4f}" if abs(number) < 10 else f"{number:.1f}"


def _cost(number: float) -> str:
    if math.isnan(number):
        return NONE
    return f"{number:.0f}" if abs(number) >= 1000 else f"{number:.3g}"


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    head, *body = lines
    rows = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in rows)


def _inside(record: object, path: Sequence[str]) -> float | None:
    for key in path:
        record = record.get(key) if isinstance(record, dict) else None
    return float(record) if isinstance(record, int | float) else None
