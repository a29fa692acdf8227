"""Few-shot classification: one row of integers per query, every number derived from the rows.

* accuracy and macro recall of every episode; their mean over the episodes of a product, then over products.
* 95 % interval of that mean: Student's t over the episodes (samplings) of every product. Supports are drawn
  anew, the queries usually are the same: it says what another draw of supports would change, not what other
  queries would.
* recall and precision per class, over all episodes; confusion counts per product.
* queries of none of the classes (label 0): how many are told apart (``unknown_found``), how well the score
  ranks them (``unknown_auroc``), and the share of known ones that is kept (``known_kept``).

A query whose label is not known (-1) counts nowhere. A known query that is rejected is wrong.
Letters: N rows, E episodes, K classes.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from fewspect.metrics.rows import RowMetric, decode_names, product_name
from fewspect.types import Episode, Prediction

COLUMNS = ("product", "index", "truth", "predicted", "score")
UNKNOWN = 0
"""Stands for the hash of a class: none of them."""

Rows = dict[str, np.ndarray]
Matrix = tuple[list[str], np.ndarray]
"""Class names, and counts (K, K + 1): truth by answer, the last column is ``unknown``."""


def predicted_labels(prediction: Prediction) -> Tensor:
    """(Q,) int64 label of every query, counted from 1; -1 = none of the classes."""
    if "label" in prediction.extra:
        return prediction.extra["label"].long()
    assert prediction.logits is not None, "a classifier answers with logits"
    return prediction.logits.argmax(-1) + 1


def recalls(truth: np.ndarray, predicted: np.ndarray) -> tuple[float, float]:
    """Accuracy and macro recall (mean over the classes that occur) of labels (N,); NaN without labels."""
    if not len(truth):
        return math.nan, math.nan
    hit = truth == predicted
    return float(hit.mean()), float(np.mean([hit[truth == k].mean() for k in np.unique(truth)]))


def auroc(positive: np.ndarray, score: np.ndarray) -> float:
    """Chance that a positive item has a higher score than another one, ties count half; NaN for one kind."""
    count = int(positive.sum())
    if count in (0, len(positive)):
        return math.nan
    ranks = stats.rankdata(score)
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * (len(positive) - count)))


def half_width(values: np.ndarray) -> float:
    """Half width of the 95 % interval of a mean (Student's t); NaN for fewer than two values."""
    number = len(values)
    if number < 2:
        return math.nan
    return float(stats.t.ppf(0.975, number - 1) * values.std(ddof=1) / math.sqrt(number))


def mean_width(groups: Mapping[str, np.ndarray]) -> tuple[float, float]:
    """Mean over groups of their means, and the half width of its 95 % interval (NaN where unknown)."""
    means = [v.mean() for v in groups.values()]
    widths = np.array([half_width(v) for v in groups.values()])
    return float(np.mean(means)), float(np.sqrt((widths**2).sum()) / len(widths))


class ClassCounts(RowMetric):
    """All values of the module.

    Attributes:
        matrices: Product -> confusion counts of the last ``compute``.
        episodes: One row per episode of the last ``compute``: product, index, accuracy, macro recall.
    """

    shown = ("queries", "recall", "precision", "accuracy", "accuracy_sd")

    def __init__(self) -> None:
        super().__init__()
        self.add_table("rows", len(COLUMNS))
        self.matrices: dict[str, Matrix] = {}
        self.episodes: list[dict[str, str | int | float]] = []

    def update(self, prediction: Prediction, episode: Episode) -> None:
        """Take the Q queries of one episode."""
        if prediction.logits is None:
            return
        names = [self.learn(f"{episode.product}/{c}".strip("/")) for c in episode.classes]
        place = torch.tensor([UNKNOWN, *names, UNKNOWN])  # 0 and -1: none of them
        truth, predicted = episode.query_label.cpu(), predicted_labels(prediction).cpu()
        product = torch.full_like(truth, self.learn(product_name(episode)))
        score = torch.zeros(len(truth)) if prediction.score is None else prediction.score.cpu()
        bits = score.double().view(torch.int64)
        index = torch.full_like(truth, episode.index)
        rows = torch.stack([product, index, place[truth], place[predicted], bits], 1)
        self.keep("rows", rows[truth >= 0])

    def compute(self) -> dict[str, Tensor]:
        """All values, plus ``table``, ``matrices``, ``episodes``; a value that is undefined is absent."""
        rows: Rows = dict(zip(COLUMNS, self.read("rows").T, strict=True))
        names = decode_names(self.read("names"))
        products = {int(p): _of(rows, rows["product"] == p) for p in np.unique(rows["product"])}
        self.table, self.matrices, self.episodes = [], {}, []
        if not products:
            self.notes = ["classification: no labelled queries to compare"]
            return {}
        for key, part in products.items():
            self._about(names[key], part, names)
        self.table.sort(key=lambda row: str(row["class"]))
        values: dict[str, float] = {}
        for name in ("accuracy", "macro_recall"):
            groups = {p: self._values(p, name) for p in self.matrices}
            if groups := {p: v for p, v in groups.items() if len(v)}:
                values[name], values[f"{name}_ci95"] = mean_width(groups)
        values |= _rejection(rows) | {
            "episodes": len(self.episodes),
            "classes": sum(len(found) for found, _ in self.matrices.values()),
        }
        self.notes = []
        return {key: torch.tensor(float(value)) for key, value in values.items() if not math.isnan(value)}

    def _values(self, product: str, name: str) -> np.ndarray:
        found = [float(e[name]) for e in self.episodes if e["product"] == product]
        return np.array([v for v in found if not math.isnan(v)])

    def _about(self, product: str, rows: Rows, names: Mapping[int, str]) -> None:
        """Episodes, classes and confusion of one product."""
        order = np.argsort(rows["index"], kind="stable")
        rows = {k: v[order] for k, v in rows.items()}
        known = _of(rows, rows["truth"] != UNKNOWN)
        index, start = np.unique(known["index"], return_index=True)
        parts = zip(np.split(known["truth"], start[1:]), np.split(known["predicted"], start[1:]), strict=True)
        for number, (truth, predicted) in zip(index, parts, strict=False):
            accuracy, macro = recalls(truth, predicted)
            self.episodes.append(
                {"product": product, "index": int(number), "accuracy": accuracy, "macro_recall": macro}
            )
        classes, matrix = _confusion(known)
        told = [names[key].removeprefix(f"{product}/") for key in classes]
        by_name = sorted(range(len(told)), key=lambda i: told[i])
        matrix = matrix[by_name][:, [*by_name, len(told)]]
        self.matrices[product] = [told[i] for i in by_name], matrix
        self.table += _class_rows(product, *self.matrices[product])
        accuracy = self._values(product, "accuracy")
        spread = float(accuracy.std()) if len(accuracy) else 0.0
        row = {"class": product, "queries": int(matrix.sum()), "accuracy": float(accuracy.mean())}
        self.table.append({**row, "accuracy_sd": spread})


def _of(rows: Rows, chosen: np.ndarray) -> Rows:
    return {k: v[chosen] for k, v in rows.items()}


def _confusion(rows: Rows) -> tuple[list[int], np.ndarray]:
    """Hashes of the classes that occur (K), and counts (K, K + 1)."""
    classes = np.unique(np.concatenate([rows["truth"], rows["predicted"]]))
    classes = classes[classes != UNKNOWN]
    matrix = np.zeros((len(classes), len(classes) + 1), dtype=np.int64)
    column = np.where(rows["predicted"] == UNKNOWN, len(classes), np.searchsorted(classes, rows["predicted"]))
    np.add.at(matrix, (np.searchsorted(classes, rows["truth"]), column), 1)
    return [int(k) for k in classes], matrix


def _class_rows(product: str, names: list[str], matrix: np.ndarray) -> list[dict[str, str | int | float]]:
    """Recall and precision of every class; a value that is undefined is absent."""
    table = []
    for i, name in enumerate(names):
        row: dict[str, str | int | float] = {"class": f"{product}/{name}", "queries": int(matrix[i].sum())}
        if matrix[i].sum():
            row["recall"] = float(matrix[i, i] / matrix[i].sum())
        if matrix[:, i].sum():
            row["precision"] = float(matrix[i, i] / matrix[:, i].sum())
        table.append(row)
    return table


def _rejection(rows: Rows) -> dict[str, float]:
    """How queries of none of the classes are told apart, if there are any or something was rejected."""
    known, kept = rows["truth"] != UNKNOWN, rows["predicted"] != UNKNOWN
    values = {"known_kept": float(kept[known].mean())} if known.any() and not kept.all() else {}
    if known.all():
        return values
    score = rows["score"].view(np.float64)
    return values | {"unknown_found": float((~kept)[~known].mean()), "unknown_auroc": auroc(known, score)}
