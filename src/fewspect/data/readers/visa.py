"""VisA (Zou et al., ECCV 2022) as shipped: good and defective parts of 12 products, defects with label maps.

``<root>/<product>/Data/Images/{Normal,Anomaly}/<stem>.JPG``, ``Data/Masks/Anomaly/<stem>.png`` (values but 0
are defects), ``<product>/image_anno.csv`` (image, label, mask: the label names the defect types) and
``<root>/split_csv/<split>.csv`` (object, split, label, image, mask). The folders say which images there are;
the tables are looked up by folder and file name only, so a path in them cannot lead anywhere.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from fewspect.data.index import Index
from fewspect.data.listing import require_folder
from fewspect.data.problems import Problem
from fewspect.data.readers.normals import split_normals
from fewspect.data.readers.source import (
    GOOD_NAMES,
    choose_categories,
    finish,
    labelled,
    pair,
    tasks_of,
)
from fewspect.data.readers.table import Row, read_rows
from fewspect.data.splits import fold_classes, hold_out
from fewspect.errors import UserError
from fewspect.types import Region, Sample

ANNOTATIONS = "image_anno.csv"
ANOMALY = "anomaly"
"""Class of defects whose type is not given."""

COMBINED = "combined"
"""Class of images with several types of defects."""

NOT_ZERO = tuple(range(1, 256))

Key = tuple[str, str]
"""(``normal`` or ``anomaly``, file name in lower case)."""

Rows = list[tuple[Sample, list[str]]]


def read(
    root: str,
    *,
    category: str | Sequence[str] | None = None,
    split: Literal["1cls", "2cls_highshot", "2cls_fewshot"] = "1cls",
    test_classes: Sequence[str] | None = None,
    fold: int | None = None,
    folds: int = 3,
    resize_masks: bool = False,
    white_level: int | None = None,
    max_pixels: int | None = None,
) -> Index:
    """Read VisA.

    Args:
        root: One product or the folder that holds them.
        category: Which product or products; None = all.
        split: Table of ``split_csv``. Without tables ``1cls`` is imitated: all defects are tested, and of the
            good images a fifth.
        test_classes: Split over defect classes instead: these are tested.
        fold: Likewise, every ``folds``-th class in sorted order.
        folds: Number of class folds.
        resize_masks: Bring masks of another size to that of their image.
        white_level: White of images deeper than 8 bits.
        max_pixels: Pixel cap per image.

    Raises:
        UserError: Missing root, product, table or class.
    """
    base = require_folder(root)
    chosen = choose_categories(base, is_product, category)
    if not chosen:
        raise UserError(
            f"{base}: no folder with Data/Images inside",
            "Set data.root to VisA as shipped (data=mvtec reads it in MVTec form).",
        )
    rows: Rows = []
    problems: list[Problem] = []
    table = _split_table(base, split)
    for name, folder in chosen.items():
        found, more = _read_product(folder, name)
        problems += more
        if table is not None:
            found, more = _divided(found, folder, [r for r in table if r.get("product") == name])
            problems += more
        rows += found
    samples, classes = labelled(rows)
    index = finish(
        Index(samples, classes, tasks_of(samples), tuple(problems)),
        white_level=white_level,
        max_pixels=max_pixels,
        resize_masks=resize_masks,
    )
    if fold is not None:
        test_classes = fold_classes(classes, fold, folds)
    if test_classes is not None:
        return hold_out(index, test_classes)
    return split_normals(index) if table is None else index


def is_product(folder: Path) -> bool:
    """True for a folder with ``Data/Images``."""
    return (folder / "Data" / "Images").is_dir()


def _split_table(base: Path, split: str) -> list[Row] | None:
    """Rows of the split; ``base`` may be one product. None: no table, ``1cls`` can be imitated."""
    places = [folder / "split_csv" / f"{split}.csv" for folder in (base, base.resolve().parent)]
    path = next((p for p in places if p.is_file()), None)
    if path is None and split != "1cls":
        raise UserError(f"{places[0]}: split table not found", "Copy split_csv from VisA, or use split=1cls.")
    return None if path is None else read_rows(path)


def _read_product(folder: Path, name: str) -> tuple[Rows, list[Problem]]:
    """All images; defects in ``test``, good ones not yet on a side."""
    rows: Rows = []
    problems: list[Problem] = []
    types = _types(folder)
    for kind in ("Normal", "Anomaly"):
        images = folder / "Data" / "Images" / kind
        if not images.is_dir():
            problems.append(Problem(str(images), "missing-folder", "no such folder", "warning"))
            continue
        pairs, more = pair(images, folder / "Data" / "Masks" / kind)
        problems += more
        for item in pairs:
            if kind == "Normal":
                rows.append((Sample(item.image, product=name), []))
                continue
            cls = types.get((kind.lower(), item.image.name.lower()), ANOMALY)
            regions = {cls: (Region("file", item.mask, NOT_ZERO),)} if item.mask else {}
            rows.append((Sample(item.image, regions, product=name, split="test"), [cls]))
            if item.mask is None:
                problems.append(Problem(str(item.image), "missing-mask", "defect without mask", "warning"))
    return rows, problems


def _types(folder: Path) -> dict[Key, str]:
    """Class of every annotated image; label maps are not split into types."""
    path = folder / ANNOTATIONS
    found = {}
    for row in read_rows(path) if path.is_file() else ():
        names = [name.strip() for name in row.get("label", "").split(",") if name.strip()]
        if names and names[0].lower() not in GOOD_NAMES:
            found[_key(row["image"])] = names[0] if len(set(names)) == 1 else COMBINED
    return found


def _divided(rows: Rows, folder: Path, table: list[Row]) -> tuple[Rows, list[Problem]]:
    """Sides as the table says; images that it does not mention are left out, both ways are reported."""
    sides = {_key(row["image"]): row["split"] for row in table if row.get("split") in ("train", "test")}
    problems, done = [], []
    for sample, shown in rows:
        side = sides.pop(_key(str(sample.image)), "")
        if not side:
            detail = "not in the split table, left out"
            problems.append(Problem(str(sample.image), "unlisted-image", detail, "warning"))
            continue
        done.append((replace(sample, split=side), shown))
    for kind, name in sides:
        missing = f"{folder.name}: {kind} image {name} is in the split table, not on disk"
        problems.append(Problem(str(folder), "missing-image", missing))
    return done, problems


def _key(path: str) -> Key:
    """Last folder and file name of a listed path, whatever its style."""
    folder, _, name = path.lower().replace("\\", "/").rpartition("/")
    return folder.rpartition("/")[2], name
