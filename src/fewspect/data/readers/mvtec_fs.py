"""MVTec-FS, the benchmark of MVREC: one row of a CSV is one defect instance (spec mvrec, 1.2 to 1.4).

``<root>/CONFIG/<object>_config1/{train,valid}.csv`` (or ``<root>/<object>_config1/...``) and the images
``<root>/image/<object>/{training,testing}/<folder>/<nnn>.png`` (or without ``image/``). A checkout of MVTec
AD may stand in for the images: ``training/crack/000.png`` is looked up as ``<object>/test/crack/000.png``,
too.

The class of an instance is its column ``label``, never its folder. The pool of supports is ``train.csv`` in
the order of its rows (the published samplings depend on it), the queries are all of ``valid.csv``.
"""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from fewspect.data.index import Index
from fewspect.data.listing import require_folder
from fewspect.data.problems import Problem
from fewspect.data.readers.source import TASKS_WITH_MASKS, finish, labelled, rebase
from fewspect.errors import UserError
from fewspect.types import Region, Sample

CLASSES: dict[str, tuple[str, ...]] = {
    "carpet": ("color", "cut", "hole", "metal_contamination", "thread"),
    "grid": ("bent", "broken", "glue", "metal_contamination", "thread"),
    "leather": ("color", "cut", "fold", "glue", "poke"),
    "tile": ("crack", "glue_strip", "gray_stroke", "oil", "rough"),
    "wood": ("color", "hole", "liquid", "scratch"),
    "bottle": ("broken_large", "broken_small", "contamination"),
    "cable": (
        *("poke_insulation", "bent_wire", "missing_cable", "cable_swap"),
        *("cut_inner_insulation", "missing_wire", "cut_outer_insulation"),
    ),
    "capsule": ("squeeze", "crack", "faulty_imprint", "poke", "scratch"),
    "hazelnut": ("crack", "cut", "hole", "print"),
    "metal_nut": ("bent", "color", "flip", "scratch"),
    "pill": ("color", "crack", "faulty_imprint", "pill_type", "contamination", "scratch"),
    "screw": ("manipulated_front", "scratch_head", "scratch_neck", "thread_side", "thread_top"),
    "transistor": ("bent_lead", "cut_lead", "damaged_case", "misplaced"),
    "zipper": (
        *("broken_teeth", "split_teeth", "rough"),
        *("squeezed_teeth", "fabric_border", "fabric_interior"),
    ),
    "toothbrush": ("defective",),
}
"""Classes in the order of the published one-hot columns."""

UNUSED = "toothbrush"
"""Has one class only; not part of the benchmark."""

FILES = {"train.csv": "train", "valid.csv": "test"}
COLUMNS = ("part", "img_rel_path", "label", "points")

Row = dict[str, str]


def read(
    root: str,
    *,
    category: str | Sequence[str] | None = None,
    white_level: int | None = None,
    max_pixels: int | None = None,
) -> Index:
    """Read MVTec-FS.

    Args:
        root: Folder with the tables and the images.
        category: Object or objects; None = all 14.
        white_level: White of images deeper than 8 bits.
        max_pixels: Pixel cap per image.

    Raises:
        UserError: Missing folders or columns, an unknown object or class.
    """
    base = require_folder(root)
    found = {p.name.removesuffix("_config1"): p for p in _tables(base)}
    if not found:
        raise UserError(
            f"{base}: no folder <object>_config1 with train.csv",
            "Set data.root to MVTec-FS (CONFIG and image).",
        )
    names = [category] if isinstance(category, str) else list(category or [n for n in found if n != UNUSED])
    if missing := [n for n in names if n not in found]:
        raise UserError(f"{base}: no object {', '.join(missing)}", f"Found: {', '.join(sorted(found))}.")
    rows: list[tuple[Sample, list[str]]] = []
    problems: list[Problem] = []
    for name in names:
        for file, split in FILES.items():
            samples, more = _read(base, found[name] / file, name, split)
            rows += samples
            problems += more
    order = [c for n in names for c in CLASSES.get(n, ())]
    samples, classes = labelled(rows, order)
    index = Index(samples, classes, TASKS_WITH_MASKS, tuple(problems))
    return finish(index, white_level=white_level, max_pixels=max_pixels)


def _tables(base: Path) -> list[Path]:
    """Folders ``<object>_config1``, sorted."""
    places = (base, base / "CONFIG")
    return sorted(f for p in places for f in p.glob("*_config1") if (f / "train.csv").is_file())


def _read(
    base: Path, path: Path, name: str, split: str
) -> tuple[list[tuple[Sample, list[str]]], list[Problem]]:
    """Instances of one table, in its order; rows whose image or polygon is not there are listed."""
    rows, problems = [], []
    for number, row in enumerate(_rows(path)):
        image, points = _image(base, name, row["img_rel_path"]), _points(row["points"])
        if row["label"] not in CLASSES.get(name, (row["label"],)):
            known = ", ".join(CLASSES[name])
            raise UserError(
                f"{path}, row {number + 2}: class '{row['label']}' is none of {name}'s: {known}.",
                "Mend the table.",
            )
        if image is None:
            problems.append(Problem(row["img_rel_path"], "missing-image", f"{name}: listed but not there"))
        elif points is None:
            where = f"{path.name}, row {number + 2}: no polygon"
            problems.append(Problem(str(image), "bad-annotation", where))
        else:
            region = Region("polygon", points=(points,))
            meta = {"instance": row.get("id") or number}
            sample = Sample(
                image, {row["label"]: (region,)}, -1, name, split, f"{name}/{row['img_rel_path']}", meta
            )
            rows.append((sample, [row["label"]]))
    return rows, problems


def _rows(path: Path) -> Iterator[Row]:
    """Rows of a table.

    Raises:
        UserError: It is not there, or lacks a column.
    """
    if not path.is_file():
        raise UserError(f"{path}: table not found", "Copy CONFIG from MVTec-FS.")
    with path.open(newline="", encoding="utf-8-sig") as file:
        table = csv.DictReader(file)
        if lacking := [c for c in COLUMNS if c not in (table.fieldnames or ())]:
            raise UserError(f"{path}: no column {', '.join(lacking)}", "Copy CONFIG from MVTec-FS.")
        yield from table


def _image(base: Path, name: str, text: str) -> Path | None:
    """The image of a row; none that lies outside ``base``.

    Raises:
        UserError: The path climbs with ``..``.
    """
    for prefix in (f"image/{name}", name):
        if (found := rebase(base, f"{prefix}/{text}")) is not None and found.parent.name in Path(text).parts:
            return found
    inner = text.removeprefix("training/").removeprefix("testing/")
    return rebase(base, f"{name}/test/{inner}")


def _points(text: str) -> tuple[float, ...] | None:
    """Flat coordinates of one polygon; None if there is no usable one."""
    try:
        points = json.loads(text)
        flat = tuple(float(v) for point in points for v in point[:2])
    except (ValueError, TypeError):
        return None
    return flat if len(flat) >= 6 else None
