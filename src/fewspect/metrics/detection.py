"""Anomaly detection: how well pixel and image scores rank defects above good material.

Scores are compared within one product; reported values are plain means over products (as published tables
do), the values of each product are rows of the table. A value that needs two kinds of pixels or images and
finds one is absent and explained in ``notes``; nothing is NaN.

Memory: image scores are kept exactly (float32); pixels as three histograms per product (1.4 MB each, see
``bins``).
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fewspect.metrics import bins
from fewspect.metrics.rows import RowMetric, decode_names, product_name
from fewspect.types import Episode, Prediction

LIMITS = (0.3, 0.05)
"""False positive rates up to which the region overlap is integrated (MVTec AD: 0.3; MVTec AD 2: 0.05)."""
UNIT = 2.0**40
"""Region weights are summed as integers of this unit: exact, whatever the order of images and processes."""

DOUBT = 0.01
"""Bound on the error of pixel AUROC through binning from which on a note says so."""


def pixel_values(positive: np.ndarray, negative: np.ndarray, regions: np.ndarray) -> dict[str, float]:
    """Pixel metrics of one product; empty when one kind of pixel is missing.

    Args:
        positive: (M,) histogram of defect pixels, in ascending order of score.
        negative: (M,) histogram of good pixels.
        regions: (M,) histogram of defect pixels, each weighted by one over the size of its region.
    """
    if not (positive.any() and negative.any()):
        return {}
    return {
        "pixel_auroc": bins.auroc(positive, negative),
        "pixel_ap": bins.average_precision(positive, negative),
        "pixel_f1_max": bins.f1_max(positive, negative),
        "pixel_iou_max": bins.iou_max(positive, negative),
        **{f"aupro_{limit}": bins.aupro(regions, negative, limit) for limit in LIMITS},
    }


def image_values(score: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """Image metrics of one product; empty when one kind of image is missing.

    Args:
        score: (N,).
        label: (N,) in {0, 1}.
    """
    positive, negative = bins.exact_histograms(score, label)
    if not (positive.any() and negative.any()):
        return {}
    return {
        "image_auroc": bins.auroc(positive, negative),
        "image_ap": bins.average_precision(positive, negative),
        "image_f1_max": bins.f1_max(positive, negative),
        "image_tnr_at_95tpr": bins.tnr_at_tpr(positive, negative, 0.95),
        "image_tpr_at_5fpr": bins.tpr_at_fpr(positive, negative, 0.05),
    }


class _Ranking(RowMetric):
    """Shared end of both rankings: mean over products, table and notes."""

    kind = ""

    def finish(self, keys: np.ndarray, values: Callable[[int], dict[str, float]]) -> dict[str, Tensor]:
        """Evaluate every product and average; products with one kind of ``kind`` are noted and left out."""
        names = decode_names(self.read("names"))
        found = sorted((names[int(key)], values(int(key))) for key in np.unique(keys))
        self.table = [{"class": name, **row} for name, row in found]
        self.notes = [
            f"{name}: only good or only defective {self.kind}s, not ranked" for name, row in found if not row
        ]
        if not found:
            self.notes = [f"no {self.kind} scores to rank"]
        ranked = [row for _, row in found if row]
        means = {key: np.mean([row[key] for row in ranked]) for key in (ranked[0] if ranked else {})}
        return {key: torch.tensor(float(value)) for key, value in means.items()}


class PixelRanking(_Ranking):
    """``pixel_values`` of binned ``prob`` (Q, H, W); 255 in the mask does not count."""

    kind = "pixel"
    shown = ("pixel_auroc", "pixel_ap", "aupro_0.3")
    bins: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_table("bins", 2 + 3 * bins.NUM_BINS)  # product, NaN pixels, then the three histograms
        self._mine: dict[int, Tensor] = {}

    def update(self, prediction: Prediction, episode: Episode) -> None:
        """Add the pixels of Q queries."""
        if prediction.prob is None:
            return
        prob, truth = prediction.prob, episode.query_mask.to(prediction.prob.device)
        assert prob.shape == truth.shape, (prob.shape, truth.shape)
        row = self._row(self.learn(product_name(episode)))
        row[0, 1] += torch.count_nonzero(prob.isnan()).to(row.device)
        table = row[0, 2:].view(3, bins.NUM_BINS)  # positive, negative, regions
        for score, mask in zip(prob, truth, strict=True):
            bins.count(table[1], score)  # all pixels; those that are not good go off again
            box = bins.extent(mask)
            inside, label = score[box], mask[box]
            bins.count(table[1], inside[label != 0], -1)
            if (defect := label == 1).any():
                weight = np.rint(bins.region_weights(defect.cpu().numpy()) * UNIT).astype(np.int64)
                bins.count(table[0], inside[defect])
                bins.count(table[2], inside[defect], torch.from_numpy(weight))

    def _row(self, key: int) -> Tensor:
        """The row that this process adds to; a new one if the state was replaced (moved, gathered, reset)."""
        row = self._mine.get(key)
        if row is None or not any(row is mine for mine in self.bins):
            row = torch.zeros(1, 2 + 3 * bins.NUM_BINS, dtype=torch.int64, device=self.device)
            row[0, 0] = key
            self._mine[key] = row
            self.bins.append(row)
        return row

    def compute(self) -> dict[str, Tensor]:
        """Means over products."""
        rows = self.read("bins")
        doubts: list[float] = [0.0]

        def values(key: int) -> dict[str, float]:
            total = rows[rows[:, 0] == key, 2:].sum(0).reshape(3, bins.NUM_BINS)
            result = pixel_values(*total)
            doubts.append(bins.tie_bound(total[0], total[1]) if result else 0.0)
            return result

        result = self.finish(rows[:, 0], values)
        if max(doubts) > DOUBT:
            self.notes.append(
                f"tied or crowded pixel scores: binning may move pixel_auroc by up to {max(doubts):.3f}"
            )
        if broken := int(rows[:, 1].sum()):
            self.notes.append(f"{broken} pixel scores were not numbers and rank lowest")
        return result


class ImageRanking(_Ranking):
    """``image_values`` of the raw ``score`` (Q,), or of the maximum of ``prob`` where there is none."""

    kind = "image"
    shown = ("image_auroc", "image_f1_max")

    def __init__(self) -> None:
        super().__init__()
        self.add_table("scores", 3)  # product, label, bits of the float32 score

    def update(self, prediction: Prediction, episode: Episode) -> None:
        """Keep Q scores."""
        score = image_score(prediction)
        if score is None:
            return
        key = self.learn(product_name(episode))
        bits = score.float().contiguous().view(torch.int32).long().to(self.device)
        label = episode.query_label.to(self.device).clamp(-1, 1).long()
        self.keep("scores", torch.stack([torch.full_like(bits, key), label, bits], 1))

    def compute(self) -> dict[str, Tensor]:
        """Means over products."""
        rows = self.read("scores")
        score = rows[:, 2].astype(np.int32).view(np.float32)
        usable = (rows[:, 1] >= 0) & ~np.isnan(score)

        def values(key: int) -> dict[str, float]:
            part = usable & (rows[:, 0] == key)
            return image_values(score[part], rows[part, 1])

        result = self.finish(rows[:, 0], values)
        if not usable.all():
            self.notes.append(
                f"{int((~usable).sum())} images without a label or with a score that is no number"
            )
        return result


def image_score(prediction: Prediction) -> Tensor | None:
    """Raw image score (Q,); the maximum of the map if the method gives none."""
    if prediction.score is not None:
        return prediction.score.detach().reshape(-1)
    return None if prediction.prob is None else prediction.prob.detach().flatten(1).amax(1)
