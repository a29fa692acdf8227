"""VISION V1 and any set in its layout: one folder per object, COCO annotations beside the images.

``<root>/<object>/{train,val}/_annotations.coco.json`` and the images; the two folders are merged, the split
runs over objects (folds of the SOFS protocol). ``inference`` folders carry no labels in VISION V1 and are not
read by default.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from fewspect.data.index import Index
from fewspect.data.listing import list_images, require_folder, subfolders
from fewspect.data.problems import Problem
from fewspect.data.readers import coco
from fewspect.data.readers.source import TASKS_WITH_MASKS, choose_objects, finish, labelled
from fewspect.errors import UserError
from fewspect.types import Sample

ANNOTATIONS = "_annotations.coco.json"

TEST_OBJECTS = (
    ("PCB_1", "Hemisphere", "Wood", "Ring", "Cable"),
    ("Casting", "Capacitor", "PCB_2", "Electronics", "Console"),
    ("Groove", "Lens", "Screw", "Cylinder"),
)
"""Test objects of folds 0, 1, 2; they partition the 14 objects."""


def fold_objects(fold: int | str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Training and test objects of a fold; ``"all"``: every object trains, none is tested.

    Raises:
        UserError: No such fold.
    """
    everything = tuple(sorted(name for names in TEST_OBJECTS for name in names))
    if fold == "all":
        return everything, ()
    if fold not in range(len(TEST_OBJECTS)):
        raise UserError(f"data.fold={fold} does not exist", "Choose 0, 1, 2 or all.")
    test = TEST_OBJECTS[int(fold)]
    return tuple(name for name in everything if name not in test), test


def read(
    root: str,
    *,
    fold: int | Literal["all"] = 0,
    objects: Sequence[str] | None = None,
    test_objects: Sequence[str] | None = None,
    folders: Sequence[str] = ("train", "val"),
    box_as_mask: bool = False,
    group_pattern: str | None = None,
    white_level: int | None = None,
    max_pixels: int | None = None,
) -> Index:
    """Read a VISION tree.

    Args:
        root: Folder that holds the object folders.
        fold: 0, 1, 2 or ``all``; ignored when objects are named.
        objects: Training objects; None = the fold's, or all others when only ``test_objects`` is given.
        test_objects: Test objects; None = the fold's.
        folders: Sub-folders that are merged.
        box_as_mask: Use the box of annotations without segmentation.
        group_pattern: Regular expression on the file name; what it matches is the group (same part, same
            photograph).
        white_level: White of images deeper than 8 bits.
        max_pixels: Pixel cap per image.

    Raises:
        UserError: Missing root, unknown fold or objects, broken JSON.
    """
    base, group = require_folder(root), _pattern(group_pattern)
    found = [p.name for p in subfolders(base) if any((p / f / ANNOTATIONS).is_file() for f in folders)]
    table = fold_objects(fold)
    chosen, problems = choose_objects(found, table, objects, test_objects)
    rows: list[tuple[Sample, list[str] | None]] = []
    for name, split in chosen.items():
        for folder in (base / name / f for f in folders):
            if (folder / ANNOTATIONS).is_file():
                content = coco.read_file(
                    folder / ANNOTATIONS, folder, box_as_mask=box_as_mask, max_pixels=max_pixels
                )
                problems += [*content.problems, *_unlisted(folder, content)]
                rows += [
                    (_sample(p, r, name, split, group), None if p in content.unclear else list(r))
                    for p, r in content.images.items()
                ]
    samples, classes = labelled(rows)
    index = Index(samples, classes, TASKS_WITH_MASKS, tuple(problems))
    return finish(index, white_level=white_level, max_pixels=max_pixels)


def _pattern(text: str | None) -> re.Pattern[str] | None:
    try:
        return re.compile(text) if text else None
    except re.error as error:
        raise UserError(
            f"data.reader.group_pattern={text}: not a regular expression ({error})",
            "Write one that fits the part of a file name that its group shares, e.g. '^[^_]+'.",
        ) from error


def _sample(path: Path, regions: dict, product: str, split: str, pattern: re.Pattern[str] | None) -> Sample:
    match = pattern.search(path.name) if pattern else None
    group = f"{product}/{match.group()}" if match else ""
    return Sample(path, regions, product=product, split=split, group=group)


def _unlisted(folder: Path, content: coco.CocoFile) -> list[Problem]:
    """Images beside the annotations that these do not mention."""
    extra = [p for p in list_images(folder) if p not in content.images]
    return [Problem(str(p), "unlisted-image", "not mentioned in the annotations", "warning") for p in extra]
