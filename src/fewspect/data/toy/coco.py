"""COCO annotations of exact masks: flat polygons per row run, or run lengths."""

from collections.abc import Callable, Sequence

import numpy as np


def annotations(
    names: Sequence[str],
    masks: Sequence[np.ndarray],
    labels: Sequence[int],
    classes: Sequence[str],
    encode: Callable[[np.ndarray], object],
) -> dict[str, list[dict]]:
    """Make the content of an annotation file.

    Args:
        names: File names of the images.
        masks: (H, W) uint8 in {0, 1} for each image.
        labels: For each image 0 = good (listed without annotation) or position + 1 in ``classes``.
        classes: Class names; category id 0 is an unused parent, as in the published files.
        encode: Mask -> segmentation.
    """
    images, found = [], []
    for number, (name, mask, label) in enumerate(zip(names, masks, labels, strict=True), start=1):
        images.append({"id": number, "file_name": name, "height": mask.shape[0], "width": mask.shape[1]})
        if label > 0:
            found.append({"id": number, "image_id": number, "category_id": label, **_shape(mask, encode)})
    categories = [{"id": k, "name": n, "supercategory": "none"} for k, n in enumerate(("defects", *classes))]
    return {"images": images, "annotations": found, "categories": categories}


def _shape(mask: np.ndarray, encode: Callable[[np.ndarray], object]) -> dict[str, object]:
    rows, columns = np.nonzero(mask)
    box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
    segmentation = encode(mask)
    crowd = int(isinstance(segmentation, dict))
    return {"segmentation": segmentation, "bbox": [int(b) for b in box], "area": len(rows), "iscrowd": crowd}


def row_polygons(mask: np.ndarray) -> list[list[int]]:
    """One flat polygon per run of a row: exact under every fill that includes the border."""
    edges = np.diff(np.pad(mask.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    starts, ends = np.argwhere(edges == 1).tolist(), np.argwhere(edges == -1).tolist()
    return [[x0, y, x1 - 1, y, x1 - 1, y] for (y, x0), (_, x1) in zip(starts, ends, strict=True)]


def run_lengths(mask: np.ndarray) -> dict[str, list[int]]:
    """Uncompressed run lengths: column by column, background first."""
    flat = mask.T.ravel()
    change = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *change.tolist(), flat.size]).tolist()
    return {"counts": [0, *runs] if flat[0] else runs, "size": list(mask.shape)}
