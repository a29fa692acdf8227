"""Defect Spectrum: label maps per object, merged from DS-MVTec, DS-VISION, DS-DAGM and DS-Cotton-Fabric.

``<root>/<object>/image/[<defect type>/]<stem>.png`` and ``mask/[<defect type>/]<stem>_mask.png``; mask value
v >= 1 is ``class_v`` of that object. Folders of DS-VISION carry the suffix ``_VISION``. The folds are those
of the SOFS protocol.
"""

from collections.abc import Sequence
from typing import Literal

from fewspect.data.index import Index
from fewspect.data.listing import require_folder, subfolders
from fewspect.data.problems import Problem
from fewspect.data.readers.source import (
    TASKS_WITH_MASKS,
    Pair,
    choose_objects,
    finish,
    index_regions,
    labelled,
    pair,
)
from fewspect.errors import UserError
from fewspect.types import Sample

TEST_OBJECTS = (
    ("Screw_VISION", "Ring_VISION", "Capacitor_VISION", "toothbrush", "grid", "cable", "metal_nut", "tile"),
    ("Wood_VISION", "Console_VISION", "pill", "leather", "carpet", "hazelnut", "transistor"),
    ("Groove_VISION", "DS-DAGM", "capsule", "screw", "wood", "zipper", "DS-Cotton-Fabric", "bottle"),
)
"""Test objects of folds 0, 1, 2."""

SUFFIXES = ("_mask", "")


def fold_objects(fold: int | str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Training and test objects; ``"shift"``: the domain-shift test on all objects that are not from VISION.

    Raises:
        UserError: No such fold.
    """
    everything = tuple(name for names in TEST_OBJECTS for name in names)
    if fold == "shift":
        return (), tuple(name for name in everything if not name.endswith("_VISION"))
    if fold not in range(len(TEST_OBJECTS)):
        raise UserError(f"data.fold={fold} does not exist", "Choose 0, 1, 2 or shift.")
    test = TEST_OBJECTS[int(fold)]
    return tuple(name for name in everything if name not in test), test


def read(
    root: str,
    *,
    fold: int | Literal["shift"] = 0,
    objects: Sequence[str] | None = None,
    test_objects: Sequence[str] | None = None,
    resize_masks: bool = False,
    white_level: int | None = None,
    max_pixels: int | None = None,
) -> Index:
    """Read a Defect Spectrum tree.

    Args:
        root: Folder that holds the object folders.
        fold: 0, 1, 2 or ``shift``; ignored when objects are named.
        objects: Training objects; None = the fold's.
        test_objects: Test objects; None = the fold's.
        resize_masks: Bring masks of another size to that of their image.
        white_level: White of images deeper than 8 bits.
        max_pixels: Pixel cap per image.

    Raises:
        UserError: Missing root, unknown fold or objects.
    """
    base = require_folder(root)
    found = [p.name for p in subfolders(base) if (p / "image").is_dir()]
    chosen, problems = choose_objects(found, fold_objects(fold), objects, test_objects)
    rows = []
    for name, split in chosen.items():
        pairs, more = pair(base / name / "image", base / name / "mask", suffixes=SUFFIXES, recursive=True)
        problems += more
        for item in pairs:
            sample, shown, more = _sample(item, name, split, max_pixels)
            rows.append((sample, shown))
            problems += more
    samples, classes = labelled(rows)
    index = Index(samples, classes, TASKS_WITH_MASKS, tuple(problems))
    return finish(index, white_level=white_level, max_pixels=max_pixels, resize_masks=resize_masks)


def _sample(
    item: Pair, product: str, split: str, max_pixels: int | None
) -> tuple[Sample, list[str] | None, list[Problem]]:
    """Sample, classes shown (None = unknown) and problems of one pair."""
    plain = Sample(item.image, product=product, split=split)
    if "good" in item.folder.lower().split("/"):
        return plain, [], []
    if item.mask is None:
        return plain, None, [Problem(str(item.image), "missing-mask", "defect image without mask", "warning")]
    regions, problems = index_regions(item.image, item.mask, None, max_pixels=max_pixels)
    if regions is None:
        return plain, None, problems
    return Sample(item.image, regions, product=product, split=split), list(regions), problems
