"""What a detector decides at its own thresholds, and how well it does by type of defect.

``ImageDecision`` counts the decisions that a user would get, ``DefectTypes`` tells which kinds of defect are
missed. Scores are compared within one product. A value that needs a kind of image that is missing is absent.
"""

import numpy as np
import torch
from torch import Tensor

from fewspect.metrics.detection import image_score, image_values
from fewspect.metrics.rows import RowMetric, decode_names, product_name
from fewspect.metrics.segmentation import vote_counts
from fewspect.types import Episode, Prediction

Values = dict[str, float]
UNKNOWN = -1
"""Stands in a column for what a prediction does not say."""


def decision_values(decision: np.ndarray, label: np.ndarray) -> Values:
    """Rates of right decisions of one product.

    Args:
        decision: (N,), 1 = called defective.
        label: (N,) in {0, 1}.

    Returns:
        ``accuracy_good``, ``false_alarm_rate`` (its complement), ``accuracy_defective``, and
        ``accuracy_balanced`` (mean of both accuracies), as far as there are images of either kind.
    """
    good, defective = decision[label == 0], decision[label == 1]
    values: Values = {}
    if len(good):
        rate = float((good == 1).mean())
        values |= {"accuracy_good": 1 - rate, "false_alarm_rate": rate}
    if len(defective):
        values["accuracy_defective"] = float((defective == 1).mean())
    if len(good) and len(defective):
        values["accuracy_balanced"] = (values["accuracy_good"] + values["accuracy_defective"]) / 2
    return values


class ImageDecision(RowMetric):
    """``decision_values`` of ``decision`` (Q,) per product, and their means over products."""

    shown = ("false_alarm_rate", "accuracy_defective")

    def __init__(self) -> None:
        super().__init__()
        self.add_table("decisions", 3)  # product, label, decision

    def update(self, prediction: Prediction, episode: Episode) -> None:
        """Keep Q decisions; a method that makes none is left out."""
        if prediction.decision is None:
            return
        key = self.learn(product_name(episode))
        decision = prediction.decision.to(self.device).long().reshape(-1)
        label = episode.query_label.to(self.device).clamp(-1, 1).long()
        self.keep("decisions", torch.stack([torch.full_like(decision, key), label, decision], 1))

    def compute(self) -> dict[str, Tensor]:
        """Means over the products that have the value."""
        rows, names = self.read("decisions"), decode_names(self.read("names"))
        found = {
            names[int(key)]: decision_values(part[:, 2], part[:, 1])
            for key in np.unique(rows[:, 0])
            for part in [rows[rows[:, 0] == key]]
        }
        self.table = [{"class": name, **found[name]} for name in sorted(found)]
        self.notes = [
            f"{name}: only good or only defective images, no balanced accuracy"
            for name in sorted(found)
            if "accuracy_balanced" not in found[name]
        ]
        keys = dict.fromkeys(key for values in found.values() for key in values)
        return {
            key: torch.tensor(float(np.mean([values[key] for values in found.values() if key in values])))
            for key in keys
        }


class DefectTypes(RowMetric):
    """Rows ``product/type`` of the table; no totals.

    ``images``; ``recall`` and ``iou`` of the mask at the method's own threshold, pooled over the images that
    show the type (an image that shows several counts for each); ``image_auroc`` of these images against the
    good ones of the product.
    """

    title = "by type of defect"

    def __init__(self) -> None:
        super().__init__()
        self.add_table("images", 6)  # product, type (0 = good), bits of the score, found, union, truth

    def update(self, prediction: Prediction, episode: Episode) -> None:
        """Keep what is needed of Q good images, or of Q images whose types are known."""
        product = self.learn(product_name(episode))
        shown = [self.learn(name) for name in episode.shown]
        scores = image_score(prediction)
        for q, label in enumerate(episode.query_label.tolist()):
            score = float("nan") if scores is None else float(scores[q])
            counts = [0, 0, 0] if label == 0 else _counts(prediction, episode, q)
            bits = int(np.float32(score).view(np.int32))
            types = [0] if label == 0 else shown
            rows = [[product, kind, bits, *counts] for kind in types]
            self.keep("images", torch.tensor(rows).reshape(-1, 6))

    def compute(self) -> dict[str, Tensor]:
        """Fill the table."""
        rows, names = self.read("images"), decode_names(self.read("names"))
        self.table = sorted(
            (
                {"class": f"{names[int(product)]}/{names[int(kind)]}", **_type_row(part, good)}
                for product in np.unique(rows[:, 0])
                for here in [rows[rows[:, 0] == product]]
                for good in [here[here[:, 1] == 0]]
                for kind in np.unique(here[here[:, 1] != 0, 1])
                for part in [here[here[:, 1] == kind]]
            ),
            key=lambda row: str(row["class"]),
        )
        return {}


def _counts(prediction: Prediction, episode: Episode, q: int) -> list[int]:
    """Found, united and true defect pixels of query q."""
    if prediction.mask is None:
        return [UNKNOWN] * 3
    inter, union = vote_counts(prediction.mask[q], episode.query_mask[q])
    return [int(inter[1]), int(union[1]), int(torch.count_nonzero(episode.query_mask[q] == 1))]


def _type_row(part: np.ndarray, good: np.ndarray) -> dict[str, str | int | float]:
    row: dict[str, str | int | float] = {"images": len(part)}
    scores = [rows[:, 2].astype(np.int32).view(np.float32) for rows in (part, good)]
    label = np.repeat([1, 0], [len(part), len(good)])
    score = np.concatenate(scores)
    if len(good) and not np.isnan(score).any():
        row["image_auroc"] = image_values(score, label)["image_auroc"]
    known = part[part[:, 5] > 0]  # with a mask in prediction and truth
    if len(known):
        found, union, truth = (float(known[:, k].sum()) for k in (3, 4, 5))
        row |= {"recall": found / truth, "iou": found / union}
    return row
