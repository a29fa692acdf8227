"""Numbers that original systems reported: DeeCamp (specification reconstruction_ae, 5.3) and GCCS.

For comparison with old results only: DeeCamp's AUC sees defective images alone, 200 thresholds and no end
point. Similarity maps are low where the defect is.
"""

from collections.abc import Sequence

import numpy as np

STEP, COUNT = 0.005, 200
"""Thresholds of the curve: 0, 0.005, ..., 0.995."""


def legacy_values(
    similarity: Sequence[np.ndarray], masks: Sequence[np.ndarray], truths: Sequence[np.ndarray], area: int
) -> dict[str, float]:
    """All numbers of one category; those of a kind of image that is missing are absent.

    Args:
        similarity: (H, W) float maps in [0, 1], one per image.
        masks: (H, W) bool decisions.
        truths: (H, W) bool.
        area: An image with fewer mask pixels is judged good.

    Returns:
        ``iou``: mean over defective images; ``pixel_accuracy``: mean over all images; ``auc``: see ``curve``;
        ``accuracy_good``, ``accuracy_defective``.
    """
    defective = np.array([t.any() for t in truths], dtype=bool)
    judged_good = np.array([m.sum() < area for m in masks], dtype=bool)
    pairs = list(zip(masks, truths, strict=True))
    values = {"pixel_accuracy": float(np.mean([(m == t).mean() for m, t in pairs]))} if pairs else {}
    if defective.any():
        chosen = [k for k, bad in enumerate(defective) if bad]
        values["iou"] = float(np.mean([iou(*pairs[k]) for k in chosen]))
        fpr, tpr = curve([similarity[k] for k in chosen], [truths[k] for k in chosen])
        values["auc"] = float(np.trapezoid(tpr, fpr))
        values["accuracy_defective"] = float((~judged_good[defective]).mean())
    if not defective.all():
        values["accuracy_good"] = float(judged_good[~defective].mean())
    return values


def iou(mask: np.ndarray, truth: np.ndarray) -> float:
    """Intersection over union of two (H, W) bool masks that are not both empty."""
    return float((mask & truth).sum() / (mask | truth).sum())


def curve(similarity: Sequence[np.ndarray], truths: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates (200,) of "similarity < t", pixels of all images pooled."""
    value, truth = (np.concatenate([a.ravel() for a in part]) for part in (similarity, truths))
    levels = np.arange(COUNT) * STEP
    counts = [np.searchsorted(np.sort(value[truth == k]), levels) for k in (False, True)]
    return counts[0] / max(1, int((~truth).sum())), counts[1] / max(1, int(truth.sum()))


def accuracy_as_coded(accuracy: float, synthetic: float, asked: float) -> float:
    """What the original prints: its synthetic supports count as right answers. Inflated; for parity only.

    Args:
        accuracy: Over the queries.
        synthetic: Synthetic supports per class.
        asked: Queries per class.
    """
    return (synthetic + asked * accuracy) / (synthetic + asked)
