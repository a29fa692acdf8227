"""Numbers of several runs: mean and interval over seeds, and paired tests on the episodes that runs share.

Intervals are Student's t over the runs of a cell; the paired test resamples the query images, the same for
both methods, within each class (cluster bootstrap, Davison and Hinkley 1997, section 3.8), because two
methods that saw the same episodes differ by far less than each varies.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from fewspect.report.records import Run, episodes

T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145,
        2.131, 2.120, 2.110, 2.101, 2.093, 2.086)  # fmt: skip
"""97.5 % points of Student's t for 1, 2, ... degrees of freedom."""

RESAMPLES = 1000
KEPT = 16
"""Tables and resamples that are kept for the next pair of the same column."""

PAIRS = 3
"""Fewest pairs of runs for a test without episodes."""

Columns = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of a comparison.

    Attributes:
        mean: Over the runs; NaN without any.
        half: Half width of the 95 % interval; NaN for a single run.
        count: Number of runs.
    """

    mean: float = math.nan
    half: float = math.nan
    count: int = 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a paired test says about A - B.

    Attributes:
        difference: Mean of A - B.
        low: Lower end of its 95 % interval.
        high: Upper end.
        basis: ``episodes`` or ``runs``, whatever was resampled or averaged.
    """

    difference: float
    low: float
    high: float
    basis: str

    @property
    def word(self) -> str:
        """``higher``, ``lower`` or ``not distinguishable``."""
        if self.low > 0:
            return "higher"
        return "lower" if self.high < 0 else "not distinguishable"


def summarise(values: Sequence[float]) -> Cell:
    """Mean and 95 % interval of the runs of a cell."""
    if not values:
        return Cell()
    if len(values) == 1:
        return Cell(values[0], math.nan, 1)
    number, mean = len(values), math.fsum(values) / len(values)
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (number - 1))
    return Cell(mean, _t(number) * deviation / math.sqrt(number), number)


def paired(a: Sequence[Run], b: Sequence[Run], metric: str) -> Verdict | None:
    """Test whether A differs from B on what both have answered.

    Args:
        a: Runs of A; run i was made like run i of B but for what is compared.
        b: Runs of B.
        metric: Name, e.g. ``test/miou``.

    Returns:
        None when there is nothing to pair.
    """
    statistic = STATISTICS.get(metric.removeprefix("test/"))
    tables = [(_table(x), _table(y)) for x, y in zip(a, b, strict=True)] if statistic else []
    shared = [(x, y) for x, y in tables if x and y and _same(x, y)]
    if statistic and shared and len(shared) == len(tables):
        return _bootstrap(shared, statistic)
    pairs = [(x.metrics.get(metric), y.metrics.get(metric)) for x, y in zip(a, b, strict=True)]
    differences = [x - y for x, y in pairs if x is not None and y is not None]
    if len(differences) < PAIRS:
        return None
    cell = summarise(differences)
    return Verdict(cell.mean, cell.mean - cell.half, cell.mean + cell.half, "runs")


def _bootstrap(
    pairs: Sequence[tuple[Columns, Columns]], statistic: Callable[[Columns, np.ndarray], np.ndarray]
) -> Verdict:
    """Resample query images within classes, the same for both; average the difference over pairs of runs."""
    total = np.zeros(RESAMPLES + 1)
    for x, y in pairs:
        weights = _weights(x)
        total += statistic(x, weights) - statistic(y, weights)
    observed, *rest = total / len(pairs)
    low, high = np.nanquantile(rest, [0.025, 0.975])
    return Verdict(float(observed), float(low), float(high), "episodes")


def _weights(table: Columns) -> np.ndarray:
    """(1 + RESAMPLES, N): how often each episode counts; the first row counts every one once."""
    return _resampled(tuple(table["class"]), tuple(table["query"]))


@lru_cache(maxsize=KEPT)
def _resampled(classes: tuple[str, ...], queries: tuple[str, ...]) -> np.ndarray:
    r = np.random.default_rng(0)
    weights = np.ones((RESAMPLES + 1, len(classes)))
    for name in sorted(set(classes)):
        rows = np.flatnonzero(np.array(classes) == name)
        _, member = np.unique(np.array(queries)[rows], return_inverse=True)
        number = int(member.max()) + 1
        drawn = r.multinomial(number, np.full(number, 1 / number), size=RESAMPLES)
        weights[1:, rows] = drawn[:, member]
    return weights


def _miou(table: Columns, weights: np.ndarray) -> np.ndarray:
    """Mean over classes of the accumulated IoU, (R,)."""
    scores = []
    for name in np.unique(table["class"]):
        rows = table["class"] == name
        union = weights[:, rows] @ table["union"][rows]
        hit = weights[:, rows] @ table["intersection"][rows]
        scores.append(np.divide(hit, union, out=np.full(len(weights), np.nan), where=union > 0))
    kept = [s for s in scores if not np.isnan(s[0])]
    return np.nanmean(kept, 0) if kept else np.full(len(weights), np.nan)


def _accuracy(table: Columns, weights: np.ndarray) -> np.ndarray:
    """Share of right answers, mean over classes (products, where every episode has all of theirs), (R,)."""
    scores = []
    for name in np.unique(table["class"]):
        rows = table["class"] == name
        scores.append(weights[:, rows] @ table["correct"][rows] / weights[:, rows].sum(1))
    return np.mean(scores, 0)


def _image_auroc(table: Columns, weights: np.ndarray) -> np.ndarray:
    """Weighted area under the ROC curve of image scores, ties count half, (R,)."""
    _, rank = np.unique(table["score"], return_inverse=True)
    number, bad = int(rank.max()) + 1, table["label"] > 0
    at = np.eye(number)[rank]  # (N, distinct scores)
    defective, good = weights[:, bad] @ at[bad], weights[:, ~bad] @ at[~bad]
    below = np.cumsum(good, 1) - good / 2
    pairs = defective.sum(1) * good.sum(1)
    return np.divide((defective * below).sum(1), pairs, out=np.full(len(weights), np.nan), where=pairs > 0)


STATISTICS: dict[str, Callable[[Columns, np.ndarray], np.ndarray]] = {
    "miou": _miou,
    "accuracy": _accuracy,
    "image_auroc": _image_auroc,
}
"""Metrics that can be computed again from ``episodes.csv``."""

NUMBERS = ("intersection", "union", "correct", "score", "label")


def _table(run: Run) -> dict[str, np.ndarray]:
    """Columns of a run's episodes; empty without the file."""
    return _columns(run.folder)


@lru_cache(maxsize=KEPT)
def _columns(folder: Path) -> dict[str, np.ndarray]:
    rows = episodes(folder)
    if not rows:
        return {}
    names = {k: np.array([row.get(k) or "" for row in rows]) for k in ("index", "class", "query")}
    return names | {k: np.array([float(row.get(k) or "nan") for row in rows]) for k in NUMBERS}


def _same(x: Columns, y: Columns) -> bool:
    keys = ("index", "class", "query")
    return all(np.array_equal(x[k], y[k]) for k in keys)


def _t(count: int) -> float:
    return T975[count - 2] if count - 2 < len(T975) else 1.96
