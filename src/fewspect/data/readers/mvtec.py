"""MVTec AD trees and their relatives (converted VisA, BTAD, chip images, own folders in this shape).

``<category>/train/good``, ``<category>/test/<class>``, ``<category>/ground_truth/<class>/<stem>_mask.png``.
The root is one category or holds several; files beside the categories are ignored. Images that lie directly
in ``train`` are good, images directly in ``test`` are new parts of which nothing is known. Without
``ground_truth`` the set still trains image-level tasks, without ``test`` it still trains detectors.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fewspect.data.index import Index
from fewspect.data.listing import IMAGE_ENDINGS, hidden, list_images, require_folder, subfolders
from fewspect.data.problems import Problem
from fewspect.data.readers.source import (
    GOOD_NAMES,
    IMAGE_FOLDERS,
    MASK_FOLDERS,
    SUFFIXES,
    Pair,
    choose_categories,
    finish,
    labelled,
    pair,
    tasks_of,
)
from fewspect.data.splits import fold_classes, hold_out
from fewspect.errors import UserError
from fewspect.types import Region, Sample

SPLITS = ("train", "val", "validation", "test")

Rows = list[tuple[Sample, list[str] | None]]


def read(
    root: str,
    *,
    category: str | Sequence[str] | None = None,
    test_classes: Sequence[str] | None = None,
    fold: int | None = None,
    folds: int = 3,
    mask_suffixes: Sequence[str] = SUFFIXES,
    mask_invert: bool = False,
    resize_masks: bool = False,
    white_level: int | None = None,
    max_pixels: int | None = None,
) -> Index:
    """Read an MVTec AD tree.

    Args:
        root: One category or the folder that holds them.
        category: Which category or categories; None = all.
        test_classes: Split over defect classes instead of the folders' own split: these are tested.
        fold: Likewise, every ``folds``-th class in sorted order; None = the folders' own split.
        folds: Number of class folds.
        mask_suffixes: What is appended to the image's stem to name the mask.
        mask_invert: Masks mark the good pixels.
        resize_masks: Bring masks of another size to that of their image.
        white_level: White of images deeper than 8 bits.
        max_pixels: Pixel cap per image.

    Raises:
        UserError: Missing root, no category, unknown category or class.
    """
    base = require_folder(root)
    chosen = choose_categories(base, is_category, category)
    if not chosen:
        raise UserError(
            f"{base}: no folder with train/ and test/ inside", "Set data.root to an MVTec-like tree."
        )
    if all({n.lower() for n in chosen} & {*kind} for kind in (IMAGE_FOLDERS, MASK_FOLDERS)):
        raise UserError(
            f"{base}: {', '.join(chosen)} hold images and their masks, they are no products",
            "Use data=folder (layout pairs).",
        )
    rows: Rows = []
    problems: list[Problem] = []
    for name, folder in chosen.items():
        _read_category(folder, name, rows, problems, (mask_suffixes, mask_invert))
    samples, classes = labelled(rows)
    index = finish(
        Index(samples, classes, tasks_of(samples), tuple(problems)),
        white_level=white_level,
        max_pixels=max_pixels,
        resize_masks=resize_masks,
    )
    if fold is not None:
        test_classes = fold_classes(classes, fold, folds)
    return index if test_classes is None else hold_out(index, test_classes)


def is_category(folder: Path) -> bool:
    """True for a folder with ``train`` or ``test`` that holds class folders, or images and no COCO table."""
    places = [folder / split for split in ("train", "test")]
    return any(subfolders(p) or (_loose(p) and not any(p.glob("*.coco.json"))) for p in places)


def _loose(folder: Path) -> list[Path]:
    """Images that lie directly in a folder."""
    if not folder.is_dir():
        return []
    return [p for p in folder.iterdir() if p.suffix.lower() in IMAGE_ENDINGS and not hidden(p)]


def _read_category(
    base: Path, name: str, rows: Rows, problems: list[Problem], masks: tuple[Sequence[str], bool]
) -> None:
    suffixes, invert = masks
    truth = base / "ground_truth"
    defects = subfolders(base / "test")
    if not truth.is_dir() and any(p.name.lower() not in GOOD_NAMES for p in defects):
        detail = "no ground_truth folder: defects have no masks"
        problems.append(Problem(str(base), "no-ground-truth", detail, "warning"))
    for split in SPLITS:
        side = "val" if split == "validation" else split
        folders = subfolders(base / split)
        rows += _read_loose(base / split, name, side, problems, read=not folders)
        for folder in folders:
            good = folder.name.lower() in GOOD_NAMES
            pairs, more = pair(folder, None if good else truth / folder.name, suffixes=suffixes)
            problems += more
            if split != "test" and not good:
                pairs = _without_masks_of(base / "test" / folder.name, pairs, problems)
            for item in pairs:
                regions = {folder.name: (Region("file", item.mask, invert=invert),)} if item.mask else {}
                rows.append(
                    (Sample(item.image, regions, product=name, split=side), [] if good else [folder.name])
                )
                if truth.is_dir() and not good and not regions:
                    problems.append(
                        Problem(str(item.image), "missing-mask", "defect without mask", "warning")
                    )


def _without_masks_of(test: Path, pairs: list[Pair], problems: list[Problem]) -> list[Pair]:
    """Masks are named after test images: one whose name a test image has is not that of another."""
    stems = {p.stem for p in list_images(test)} if test.is_dir() else set()
    kept = []
    for item in pairs:
        shared = item.mask is not None and item.image.stem in stems
        if shared:
            detail = f"{item.mask} is the mask of the test image of this name: another name is needed here"
            problems.append(Problem(str(item.image), "shared-mask", detail, "warning"))
        kept.append(replace(item, mask=None) if shared else item)
    return kept


def _read_loose(folder: Path, name: str, side: str, problems: list[Problem], *, read: bool) -> Rows:
    """Images beside class folders are reported; without class folders they are good, in ``test`` unknown."""
    if not (loose := _loose(folder)):
        return []
    if not read:
        detail = f"{len(loose)} images beside the class folders left out"
        problems.append(Problem(str(folder), "loose-images", detail, "warning"))
        return []
    pairs, more = pair(folder, None)
    problems += more
    if side == "test":
        return [(Sample(item.image, product=name, split="query"), None) for item in pairs]
    return [(Sample(item.image, product=name, split=side), []) for item in pairs]
