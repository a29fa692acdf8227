"""Few-shot segmentation: overlap counts per episode, accumulated per class over the whole test set.

One row of integers per query image is kept; every number is derived from these rows by pure functions:

* class IoU: sum of intersections / sum of unions over all episodes of a class (``product/class``); mIoU:
  their mean.
* FB-IoU: the same sums over all classes for background and foreground, mean of the two.
* Dice: 2 I / (U + I) per class, mean over classes.
* Recall, hit rate and IoU by the area fraction of the defect (small defects vanish in an average).
* 95 % interval of mIoU: see ``interval``.

Rules for the odd cases. A query without defect adds its false alarms to the union of its class. A class
whose union is empty (no truth, no prediction) has no IoU: it is left out of the mean and named in
``notes``. A query that is all ignore adds nothing and is counted in ``episodes_ignored``.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewspect.metrics.interval import BOOTSTRAPS, clusters, half_width, iou
from fewspect.metrics.rows import RowMetric, class_name, decode_names, product_name, query_key
from fewspect.types import IGNORE, Episode, Prediction

COLUMNS = ("class", "query", "index", "i0", "u0", "i1", "u1", "truth", "valid", "pixels")
STRATA = (("lt_0.03", 0.0, 0.0003), ("lt_0.1", 0.0003, 0.001), ("lt_1", 0.001, 0.01), ("ge_1", 0.01, 2.0))
"""Name (per cent of the image), from, to (exclusive) of the defect area fraction: disjoint bands."""

Rows = dict[str, np.ndarray]
Counts = Mapping[Any, Any] | Tensor | np.ndarray | Sequence[Any]


def vote_counts(votes: Tensor, target: Tensor, ignore: int = IGNORE) -> tuple[Tensor, Tensor]:
    """Count intersection and union for the values 0 and 1 (specification sofs, 5.2).

    A vote >= 0.5 adds to the predicted area of 1, a smaller one to that of 0, but the intersection needs
    equality: a disputed pixel (0 < vote < 1) is wrong for both. For a hard mask these are the usual counts.

    Args:
        votes: (H, W) in [0, 1]: hard mask, or mean of the hard masks of overlapping windows.
        target: (H, W) in {0, 1, ignore}.
        ignore: Value of pixels that do not count.

    Returns:
        Intersections (2,) and unions (2,), int64.
    """
    vote, truth = votes.cpu().numpy(), target.cpu().numpy()  # NumPy counts bytes many times faster
    front, valid = vote >= 0.5, truth != ignore
    positive = np.count_nonzero(valid & front)
    predicted = torch.tensor([np.count_nonzero(valid) - positive, positive])
    area = torch.tensor([np.count_nonzero(truth == v) for v in (0, 1)])
    inter = torch.tensor([np.count_nonzero((vote == v) & (truth == v)) for v in (0, 1)])
    return inter, predicted + area - inter


def _as_array(counts: Counts) -> np.ndarray:
    """Counts per class as (K,) or (K, 2) float64."""
    values = list(counts.values()) if isinstance(counts, Mapping) else counts
    return np.asarray([np.asarray(v, dtype=np.float64) for v in values])


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def mean_iou(intersections: Counts, unions: Counts) -> float:
    """Plain mean of the foreground IoU over classes with a non-empty union; NaN when there is none.

    Args:
        intersections: Array (K,) or mapping of foreground counts; or pairs (background, foreground) per
            class.
        unions: The same for the unions.
    """
    inter, union = (_as_array(counts) for counts in (intersections, unions))
    return _mean(iou(inter[:, -1], union[:, -1]) if inter.ndim > 1 else iou(inter, union))


def fb_iou(intersections: Counts, unions: Counts) -> float:
    """Mean of background and foreground IoU of the sums over all classes.

    Args:
        intersections: (2,), (K, 2) or mapping of class to a pair (background, foreground).
        unions: The same for the unions.
    """
    inter, union = _as_array(intersections).reshape(-1, 2).sum(0), _as_array(unions).reshape(-1, 2).sum(0)
    return _mean(iou(inter, union))


def by_class(rows: Rows) -> dict[int, Rows]:
    """Split a table by class hash, in ascending order of the hash."""
    return {int(c): {k: v[rows["class"] == c] for k, v in rows.items()} for c in np.unique(rows["class"])}


def stratified(rows: Rows) -> dict[str, float]:
    """Recall, hit rate and IoU by defect area fraction (truth pixels / image pixels), queries with a defect.

    ``recall``: found truth pixels / truth pixels of the stratum; ``hit``: share of queries with at least
    one found truth pixel; ``iou``: pooled over the stratum; ``count``: queries. Empty strata are absent.
    """
    fraction = rows["truth"] / np.maximum(rows["pixels"], 1)
    result: dict[str, float] = {}
    for name, low, high in STRATA:
        part = (rows["truth"] > 0) & (fraction >= low) & (fraction < high)
        if part.any():
            inter = rows["i1"][part]
            result[f"recall/{name}"] = float(inter.sum() / rows["truth"][part].sum())
            result[f"hit/{name}"] = float((inter > 0).mean())
            result[f"iou/{name}"] = float(inter.sum() / rows["u1"][part].sum())
            result[f"count/{name}"] = int(part.sum())
    return result


def class_row(name: str, rows: Rows) -> dict[str, str | int | float]:
    """One line of the result table; a value that is undefined for this class is absent."""
    i0, u0, i1, u1, truth = (float(rows[k].sum()) for k in ("i0", "u0", "i1", "u1", "truth"))
    predicted = u1 + i1 - truth
    defects = rows["truth"] > 0
    pairs = {
        "iou": (i1, u1),
        "dice": (2 * i1, u1 + i1),
        "precision": (i1, predicted),
        "recall": (i1, truth),
        "hit": (float((rows["i1"][defects] > 0).sum()), float(defects.sum())),
        "background_iou": (i0, u0),
    }
    values = {key: top / bottom for key, (top, bottom) in pairs.items() if bottom > 0}
    return {"class": name, "episodes": len(rows["class"]), **values}


class SegmentationCounts(RowMetric):
    """All overlap metrics of few-shot segmentation (see the module) from one row of counts per query.

    With ``by_product`` all defects of a product are one class, and few columns are printed.

    Reads ``extra["votes"]`` (Q, H, W) if present (parity counting), else ``mask``, else ``prob >= 0.5``.
    """

    def __init__(self, seed: int = 0, bootstraps: int = BOOTSTRAPS, *, by_product: bool = False) -> None:
        super().__init__()
        self.seed, self.bootstraps = seed, bootstraps
        self.name_of = product_name if by_product else class_name
        self.shown = ("episodes", "iou", "recall") if by_product else None
        self.add_table("rows", len(COLUMNS))

    def update(self, prediction: Prediction, episode: Episode) -> None:
        """Count the Q queries of one episode; prediction and mask have the same (Q, H, W)."""
        votes = decision(prediction)
        if votes is None:
            return
        target = episode.query_mask
        assert votes.shape == target.shape, (votes.shape, target.shape)
        key = self.learn(self.name_of(episode))
        for q, (vote, truth) in enumerate(zip(votes, target, strict=True)):
            inter, union = vote_counts(vote, truth)
            pairs = torch.stack([inter, union], 1).flatten()  # i0, u0, i1, u1
            pixels = truth.cpu().numpy()
            sizes = [np.count_nonzero(pixels == 1), np.count_nonzero(pixels != IGNORE), pixels.size]
            head = torch.tensor([key, query_key(episode, q), episode.index])
            self.keep("rows", torch.cat([head, pairs, torch.tensor(sizes)])[None])

    def compute(self) -> dict[str, Tensor]:
        """All values, plus ``table`` and ``notes``; a value that is undefined is absent."""
        rows: Rows = dict(zip(COLUMNS, self.read("rows").T, strict=True))
        names, classes = decode_names(self.read("names")), by_class(rows)
        table = [class_row(names[key], part) for key, part in classes.items()]
        self.table = sorted(table, key=lambda row: str(row["class"]))
        self.notes = [
            f"{r['class']}: no defect in truth or prediction, no IoU" for r in self.table if "iou" not in r
        ]
        if not classes:
            self.notes = ["segmentation: no masks to compare"]
            return {}
        images = {key: clusters(part) for key, part in classes.items()}
        values = summary(rows, classes) | {"miou_ci95": half_width(images, self.seed, self.bootstraps)}
        return {key: torch.tensor(float(value)) for key, value in values.items() if not np.isnan(value)}


def decision(prediction: Prediction) -> Tensor | None:
    """(Q, H, W) map that is counted: parity votes, decided mask, or probability cut at 0.5."""
    if "votes" in prediction.extra:
        return prediction.extra["votes"]
    if prediction.mask is not None:
        return prediction.mask
    return None if prediction.prob is None else (prediction.prob >= 0.5).to(torch.uint8)


def summary(rows: Rows, classes: Mapping[int, Rows]) -> dict[str, float]:
    """All overlap metrics of a table of counts as flat names; NaN = undefined."""
    i0, u0, i1, u1 = (
        np.array([part[k].sum() for part in classes.values()], dtype=np.float64)
        for k in ("i0", "u0", "i1", "u1")
    )
    return {
        "miou": mean_iou(i1, u1),
        "fb_iou": fb_iou(np.stack([i0, i1], 1), np.stack([u0, u1], 1)),
        "dice": _mean(iou(2 * i1, u1 + i1)),
        **stratified(rows),
        "classes": len(classes),
        "episodes": len(rows["class"]),
        "episodes_empty": int(((rows["truth"] == 0) & (rows["valid"] > 0)).sum()),
        "episodes_ignored": int((rows["valid"] == 0).sum()),
    }
