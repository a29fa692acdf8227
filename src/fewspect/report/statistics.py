"""Numbers of several runs: mean and interval over seeds, and paired tests on the episodes that runs share.

Intervals are Student's t over the runs of a cell; the paired test resamples the query images, the same for
both methods, within each class (cluster bootstrap, Davison and Hinkley 1997, section 3.8), because two
methods that saw the same episodes differ by far less than each varies. Of classifiers it resamples the
samplings of every product.
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

EXACT = 1e-5
"""Largest difference of a metric (32 bits) and what its episodes give."""

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

    Episodes are resampled where the metric follows from ``episodes.csv`` of every run; otherwise the runs
    are paired.

    Args:
        a: Runs of A; run i was made like run i of B but for what is compared.
        b: Runs of B.
        metric: Name, e.g. ``test/miou``.

    Returns:
        None when there is nothing to pair.
    """
    return _by_episodes(a, b, metric) or _by_runs(a, b, metric)


def _by_episodes(a: Sequence[Run], b: Sequence[Run], metric: str) -> Verdict | None:
    statistic = STATISTICS.get(metric.removeprefix("test/"))
    if statistic is None or not a:
        return None
    pairs = []
    for runs in zip(a, b, strict=True):
        x, y = (_table(run) for run in runs)
        if not x or not y or not _same(x, y):
            return None
        if not all(_gives(statistic, t, run, metric) for t, run in zip((x, y), runs, strict=True)):
            return None
        pairs.append((x, y))
    return _bootstrap(pairs, statistic)


def _by_runs(a: Sequence[Run], b: Sequence[Run], metric: str) -> Verdict | None:
    pairs = [(x.metrics.get(metric), y.metrics.get(metric)) for x, y in zip(a, b, strict=True)]
    differences = [x - y for x, y in pairs if x is not None and y is not None]
    if len(differences) < PAIRS:
        return None
    cell = summarise(differences)
    return Verdict(cell.mean, cell.mean - cell.half, cell.mean + cell.half, "runs")


def _gives(statistic: "Statistic", table: Columns, run: Run, metric: str) -> bool:
    """Whether a table yields the value that the run reports: a test of anything else would judge that.

    It does not where maps, votes or several classes of a mask count, of which the table says nothing.
    """
    reported = run.metrics.get(metric, math.nan)
    found = float(statistic.of(table, np.ones((1, len(table["class"]))))[0])
    return abs(found - reported) <= EXACT


def _bootstrap(pairs: Sequence[tuple[Columns, Columns]], statistic: "Statistic") -> Verdict | None:
    """Resample clusters within strata, the same for both; average the difference over pairs of runs.

    Returns:
        None where every stratum is one cluster: its variance is not known.
    """
    total = np.zeros(RESAMPLES + 1)
    for x, y in pairs:
        weights = _weights(x, statistic)
        if (weights == 1).all():
            return None
        total += statistic.of(x, weights) - statistic.of(y, weights)
    observed, *rest = total / len(pairs)
    low, high = np.nanquantile(rest, [0.025, 0.975])
    return Verdict(float(observed), float(low), float(high), "episodes")


def _weights(table: Columns, statistic: "Statistic") -> np.ndarray:
    """(1 + RESAMPLES, N): how often each episode counts; the first row counts every one once."""
    return _resampled(tuple(table[statistic.stratum]), tuple(table[statistic.cluster]))


@lru_cache(maxsize=KEPT)
def _resampled(strata: tuple[str, ...], clusters: tuple[str, ...]) -> np.ndarray:
    r = np.random.default_rng(0)
    weights = np.ones((RESAMPLES + 1, len(strata)))
    for name in sorted(set(strata)):
        rows = np.flatnonzero(np.array(strata) == name)
        _, member = np.unique(np.array(clusters)[rows], return_inverse=True)
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
    return _mean(scores, len(weights))


def _accuracy(table: Columns, weights: np.ndarray) -> np.ndarray:
    """Mean over products of the mean over their episodes of the share of right answers, (R,).

    An episode without a query of a known class has no share and counts nowhere.
    """
    scores = []
    for name in np.unique(table["product"]):
        rows = (table["product"] == name) & ~np.isnan(table["correct"])
        count = weights[:, rows].sum(1)
        right = weights[:, rows] @ table["correct"][rows]
        scores.append(np.divide(right, count, out=np.full(len(weights), np.nan), where=count > 0))
    return _mean(scores, len(weights))


def _image_auroc(table: Columns, weights: np.ndarray) -> np.ndarray:
    """Mean over products of the weighted area under the ROC curve of image scores, ties count half, (R,).

    Images without a label (-1) or a score count nowhere; a product of one kind of images has no area.
    """
    usable = (table["label"] >= 0) & ~np.isnan(table["score"])
    areas = []
    for name in np.unique(table["product"]):
        rows = usable & (table["product"] == name)
        if rows.any():
            areas.append(_area(table["score"][rows], table["label"][rows] > 0, weights[:, rows]))
    return _mean(areas, len(weights))


def _area(score: np.ndarray, bad: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of the scores (N,) of one product, (R,); NaN for one kind of images."""
    _, rank = np.unique(score, return_inverse=True)
    at = np.eye(int(rank.max()) + 1)[rank]  # (N, distinct scores)
    defective, good = weights[:, bad] @ at[bad], weights[:, ~bad] @ at[~bad]
    below = np.cumsum(good, 1) - good / 2
    pairs = defective.sum(1) * good.sum(1)
    return np.divide((defective * below).sum(1), pairs, out=np.full(len(weights), np.nan), where=pairs > 0)


def _mean(scores: Sequence[np.ndarray], number: int) -> np.ndarray:
    """Mean over rows (R,) of what is known; a row that is unknown when every episode counts once is left."""
    kept = np.array([s for s in scores if not np.isnan(s[0])])
    if not len(kept):
        return np.full(number, np.nan)
    known = ~np.isnan(kept)
    return np.divide(
        np.where(known, kept, 0.0).sum(0), known.sum(0), out=np.full(number, np.nan), where=known.any(0)
    )


@dataclass(frozen=True, slots=True)
class Statistic:
    """A metric that can be computed again from ``episodes.csv``.

    Attributes:
        of: (columns, weights (R, N)) -> its values (R,).
        stratum: Column within whose values is resampled.
        cluster: Column whose rows of one value stay together. Masks and scores vary with the query image;
            a classifier is asked the same in all samplings of a product, which vary by their supports.
    """

    of: Callable[[Columns, np.ndarray], np.ndarray]
    stratum: str = "class"
    cluster: str = "query"


STATISTICS = {
    "miou": Statistic(_miou),
    "accuracy": Statistic(_accuracy, "product", "index"),
    "image_auroc": Statistic(_image_auroc),
}

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
    names["product"] = np.array([_product(row) for row in rows])
    return names | {k: np.array([float(row.get(k) or "nan") for row in rows]) for k in NUMBERS}


def _product(row: Mapping[str, str]) -> str:
    """What scores and samplings are averaged within: the product, else the class, as the metrics do."""
    name = row.get("class") or ""
    known = row.get("product")  # runs of older versions do not say
    return (name.rpartition("/")[0] if known is None else known) or name


def _same(x: Columns, y: Columns) -> bool:
    keys = ("index", "class", "query")
    return all(np.array_equal(x[k], y[k]) for k in keys)


def _t(count: int) -> float:
    return T975[count - 2] if count - 2 < len(T975) else 1.96
