"""COCO annotations of label masks: one per connected region, as a run-length code that every reader knows."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from fewspect.callbacks import draw

FILE = "annotations.json"


class Annotations:
    """Collects the masks of a data set.

    Args:
        classes: Names of the labels 1, 2, ...; they are the category ids, too.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self._images: list[dict[str, Any]] = []
        self._found: list[dict[str, Any]] = []

    def add(self, name: str, mask: np.ndarray) -> None:
        """Add an image (its path in the folder) with its labels (H, W)."""
        height, width = mask.shape
        number = len(self._images) + 1
        self._images.append({"id": number, "file_name": name, "height": height, "width": width})
        for label in np.unique(mask[mask > 0]).tolist():
            regions, _ = draw.components(mask == label)
            for k, (rows, columns) in enumerate(ndimage.find_objects(regions), start=1):
                region = regions == k
                box = [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start]
                self._found.append(
                    {
                        "id": len(self._found) + 1,
                        "image_id": number,
                        "category_id": label,
                        "bbox": box,
                        "area": int(region.sum()),
                        "iscrowd": 0,
                        "segmentation": {"size": [height, width], "counts": runs(region)},
                    }
                )

    def content(self) -> dict[str, Any]:
        """The file as plain values."""
        categories = [{"id": k, "name": name} for k, name in enumerate(self.classes, start=1)]
        return {"images": self._images, "annotations": self._found, "categories": categories}


def runs(mask: np.ndarray) -> list[int]:
    """Run lengths of a boolean (H, W) mask, column by column, the first of background (may be 0)."""
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff([0, *edges.tolist(), flat.size]).tolist()
    return [0, *counts] if flat[:1].any() else counts
