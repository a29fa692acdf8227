"""Supervised segmentation: overlap per class label, accumulated over the whole test set.

A row of counts per (image, class) that is in truth or prediction; classes are known by name, so that a method
may know others than the data. IoU and Dice of a class come from sums over all images; ``miou`` is the mean
over the classes (``product/class``) that the truth shows, without background; ``miou_with_background`` has
the background as one class more. ``false_alarm_rate`` is the share of good images with any marked pixel. A
class that is only ever predicted takes no part in a mean: its pixels are errors of the others (and of the
background), and a note names it.
"""

import numpy as np
import torch
from torch import Tensor

from fewspect.metrics.interval import clusters, half_width, iou
from fewspect.metrics.rows import decode_names, name_hash, query_key
from fewspect.metrics.segmentation import (
    COLUMNS,
    Rows,
    SegmentationCounts,
    by_class,
    class_row,
    mean_iou,
    stratified,
    vote_counts,
)
from fewspect.types import IGNORE, Episode, Prediction

BACKGROUND = "(background)"


class LabelCounts(SegmentationCounts):
    """Overlap metrics of label masks, see the module.

    Reads ``Prediction.mask`` (Q, H, W) with the names ``Prediction.labels`` and ``Episode.query_mask`` with
    the names ``Episode.classes``.
    """

    def update(self, prediction: Prediction, episode: Episode) -> None:
        """Count every class of the Q queries of one episode."""
        if prediction.mask is None:
            return
        assert prediction.mask.shape == episode.query_mask.shape
        found, known = prediction.labels or episode.classes, episode.classes
        names = {n: (_place(found, n), _place(known, n)) for n in dict.fromkeys([*known, *found])}
        pairs = zip(prediction.mask.cpu(), episode.query_mask.cpu(), strict=True)
        for q, (mask, truth) in enumerate(pairs):
            asked = (query_key(episode, q), episode.index)
            self._count(BACKGROUND, mask == 0, _target(truth, 0), asked)
            for name, (predicted, true) in names.items():
                marked = mask == predicted if predicted else torch.zeros_like(mask, dtype=torch.bool)
                target = _target(truth, true or None)
                if bool(marked.any()) or bool((target == 1).any()):
                    self._count(f"{episode.product}/{name}".strip("/"), marked, target, asked)

    def _count(self, name: str, marked: Tensor, target: Tensor, asked: tuple[int, int]) -> None:
        """Keep a row."""
        inter, union = vote_counts(marked.to(torch.uint8), target)
        pairs = torch.stack([inter, union], 1).flatten()  # i0, u0, i1, u1
        sizes = [int((target == 1).sum()), int((target != IGNORE).sum()), target.numel()]
        head = torch.tensor([self.learn(name), *asked])
        self.keep("rows", torch.cat([head, pairs, torch.tensor(sizes)])[None])

    def compute(self) -> dict[str, Tensor]:
        """All values, plus ``table`` and ``notes``; a value that is undefined is absent."""
        rows: Rows = dict(zip(COLUMNS, self.read("rows").T, strict=True))
        names, classes = decode_names(self.read("names")), by_class(rows)
        background = classes.pop(name_hash(BACKGROUND), None)
        shown = {key: part for key, part in classes.items() if part["truth"].any()}
        self.table = sorted((class_row(names[k], p) for k, p in shown.items()), key=lambda r: str(r["class"]))
        for row in self.table:
            row["images"] = row.pop("episodes")
            row.pop("background_iou", None)
        self.notes = [
            f"{names[key]}: predicted, never in the truth, no IoU" for key in classes if key not in shown
        ]
        if background is None or not shown:
            self.notes = ["segmentation: no masks to compare", *self.notes]
            return {}
        images = {key: clusters(part) for key, part in shown.items()}
        values = totals(shown, background) | {"miou_ci95": half_width(images, self.seed, self.bootstraps)}
        return {key: torch.tensor(float(value)) for key, value in values.items() if not np.isnan(value)}


def totals(classes: dict[int, Rows], background: Rows) -> dict[str, float]:
    """All metrics of tables of counts as flat names; NaN = undefined."""
    i, u = (np.array([p[k].sum() for p in classes.values()], dtype=np.float64) for k in ("i1", "u1"))
    i0, u0 = (float(background[k].sum()) for k in ("i1", "u1"))
    good = (background["truth"] == background["valid"]) & (background["valid"] > 0)
    alarms = background["i1"] < background["valid"]
    every = {k: np.concatenate([p[k] for p in classes.values()]) for k in COLUMNS}
    return {
        "miou": mean_iou(i, u),
        "miou_with_background": mean_iou([*i, i0], [*u, u0]),
        "dice": float(np.nanmean(iou(2 * i, u + i))),
        "background_iou": i0 / u0 if u0 else float("nan"),
        "false_alarm_rate": float(alarms[good].mean()) if good.any() else float("nan"),
        **stratified(every),
        "classes": len(classes),
        "episodes": len(background["class"]),
    }


def _target(truth: Tensor, label: int | None) -> Tensor:
    """Pixels of a label in a truth (H, W) as 1; none where the truth does not know the class."""
    shown = torch.zeros_like(truth) if label is None else (truth == label).to(torch.uint8)
    return shown.masked_fill(truth == IGNORE, IGNORE)


def _place(names: tuple[str, ...], name: str) -> int:
    """Label of a name, 0 where it is not known."""
    return names.index(name) + 1 if name in names else 0
