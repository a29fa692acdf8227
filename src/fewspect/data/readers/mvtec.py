"""MVTec AD trees and their relatives (VisA, BTAD, own folders in this shape).

``<category>/train/good``, ``<category>/test/<class>``, ``<category>/ground_truth/<class>/<stem>_mask.png``.
The root is one category or holds several; files beside the categories are ignored. Without ``ground_truth``
the set still trains image-level tasks.
"""

from collections.abc import Sequence
from pathlib import Path

from fewspect.data.index import Index
from fewspect.data.listing import require_folder, subfolders
from fewspect.data.problems import Problem
from fewspect.data.readers.source import (
    GOOD_NAMES,
    SUFFIXES,
    TASKS_WITH_LABELS,
    TASKS_WITH_MASKS,
    finish,
    labelled,
    pair,
)
from fewspect.data.splits import fold_classes, hold_out
from fewspect.errors import UserError
from fewspect.types import Region, Sample

SPLITS = ("train", "val", "validation", "test")


def read(
    root: str,
    *,
    categories: Sequence[str] | None = None,
    test_classes: Sequence[str] | None = None,
    fold: int | None = None,
    folds: int = 3,
    mask_suffixes: Sequence[str] = SUFFIXES,
    mask_invert: bool = False,
    white_level: int | None = None,
    max_pixels: int | None = None,
) -> Index:
    """Read an MVTec AD tree.

    Args:
        root: One category or the folder that holds them.
        categories: Which categories; None = all.
        test_classes: Split over defect classes instead of the folders' own split: these are tested.
        fold: Likewise, every ``folds``-th class in sorted order; None = the folders' own split.
        folds: Number of class folds.
        mask_suffixes: What is appended to the image's stem to name the mask.
        mask_invert: Masks mark the good pixels.
        white_level: White of images deeper than 8 bits.
        max_pixels: Pixel cap per image.

    Raises:
        UserError: Missing root, no category, unknown category or class.
    """
    base = require_folder(root)
    found = {p.name: p for p in ([base] if is_category(base) else subfolders(base)) if is_category(p)}
    if not found:
        raise UserError(
            f"{base}: no folder with train/ and test/ inside", "Set data.root to an MVTec-like tree."
        )
    if missing := sorted(set(categories or ()) - set(found)):
        raise UserError(f"{base}: no category {', '.join(missing)}", f"Found: {', '.join(found)}.")
    rows: list[tuple[Sample, list[str]]] = []
    problems: list[Problem] = []
    for name in categories or found:
        _read_category(found[name], rows, problems, (mask_suffixes, mask_invert))
    samples, classes = labelled(rows)
    tasks = TASKS_WITH_MASKS if any(s.regions for s in samples) else TASKS_WITH_LABELS
    index = finish(
        Index(samples, classes, tasks, tuple(problems)), white_level=white_level, max_pixels=max_pixels
    )
    if fold is not None:
        test_classes = fold_classes(classes, fold, folds)
    return index if test_classes is None else hold_out(index, test_classes)


def is_category(folder: Path) -> bool:
    """True for a folder with ``train`` or ``test`` that holds class folders."""
    return any(subfolders(folder / split) for split in ("train", "test"))


def _read_category(
    base: Path,
    rows: list[tuple[Sample, list[str]]],
    problems: list[Problem],
    masks: tuple[Sequence[str], bool],
) -> None:
    suffixes, invert = masks
    truth = base / "ground_truth"
    if not truth.is_dir():
        detail = "no ground_truth folder: defects have no masks"
        problems.append(Problem(str(base), "no-ground-truth", detail, "warning"))
    for split in SPLITS:
        for folder in subfolders(base / split):
            good = folder.name.lower() in GOOD_NAMES
            pairs, more = pair(folder, None if good else truth / folder.name, suffixes=suffixes)
            problems += more
            for item in pairs:
                regions = {folder.name: (Region("file", item.mask, invert=invert),)} if item.mask else {}
                side = "val" if split == "validation" else split
                sample = Sample(item.image, regions, product=base.resolve().name, split=side)
                rows.append((sample, [] if good else [folder.name]))
                if truth.is_dir() and not good and not regions:
                    problems.append(
                        Problem(str(item.image), "missing-mask", "defect without mask", "warning")
                    )
