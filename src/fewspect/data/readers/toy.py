"""The toy factory as a data set: written once, then read like any other.

The defect classes of the fold are never seen in training: they are the ``test`` split. Of the others the last
pictures are the ``val`` split.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from fewspect.data.index import Index
from fewspect.data.splits import fold_classes
from fewspect.data.toy import DEFECTS, PRODUCTS, Picture, write
from fewspect.types import Region, Sample

VERSION = 1
"""Raise when the pictures change; part of the folder's name."""

DEFAULT_ROOT = Path("data/toy")


def read(
    root: str | None = None,
    *,
    seed: int = 0,
    side: int = 128,
    products: Sequence[str] = PRODUCTS,
    defects: Sequence[str] = tuple(DEFECTS),
    images_per_class: int = 8,
    val_per_class: int = 2,
    test_per_class: int = 4,
    good: int = 12,
    fold: int = 0,
    folds: int = 4,
) -> Index:
    """Write the factory if it is not there yet, and read it.

    Args:
        root: Folder of toy factories; None = ``data/toy``. Each set of options gets its own sub-folder.
        seed: Seed of the factory.
        side: Height and width in pixels.
        products: Products to make.
        defects: Defect classes to make.
        images_per_class: Pictures per product and training class, validation included.
        val_per_class: How many of them are the validation split.
        test_per_class: Pictures per product and held-out class.
        good: Good pictures per product: half for training, a sixth for validation, a third for the test.
        fold: Which classes are held out (every ``folds``-th in alphabetical order).
        folds: Number of folds.

    Raises:
        UserError: For unknown products, defects or folds, or when the folder cannot be written.
    """
    held_out = fold_classes(list(defects), fold, folds)
    count = max(images_per_class, test_per_class)
    options = (VERSION, seed, side, tuple(products), tuple(defects), count, good)
    folder = Path(root or DEFAULT_ROOT) / hashlib.sha256(repr(options).encode()).hexdigest()[:12]
    if not folder.exists():
        made = {"seed": seed, "side": side, "products": products, "defects": defects}
        write(folder, "mvtec", **made, images=count, good=good)
    samples = []
    for product in products:
        for i in range(good):
            split = "train" if i < good / 2 else "val" if i < good * 2 / 3 else "test"
            samples.append(
                _sample(folder, Picture(_place(product, None, i, good), product, None, i), 0, split)
            )
        for label, defect in enumerate(defects, start=1):
            number = test_per_class if defect in held_out else images_per_class
            for i in range(number):
                split = "val" if i >= images_per_class - val_per_class else "train"
                split = "test" if defect in held_out else split
                picture = Picture(_place(product, defect, i, good), product, defect, i)
                samples.append(_sample(folder, picture, label, split))
    return Index(tuple(samples), tuple(defects), frozenset({"segment", "classify", "detect"}))


def _place(product: str, defect: str | None, i: int, good: int) -> Path:
    """Where the ``mvtec`` layout puts a picture."""
    part = "train" if defect is None and i < (good + 1) // 2 else "test"
    return Path(product, part, defect or "good", f"{i:03d}.png")


def _sample(folder: Path, picture: Picture, label: int, split: str) -> Sample:
    mask = folder / picture.product / "ground_truth" / str(picture.defect) / f"{picture.image.stem}_mask.png"
    regions = {} if picture.defect is None else {picture.defect: (Region("file", path=mask),)}
    return Sample(folder / picture.image, regions, label, picture.product, split)
