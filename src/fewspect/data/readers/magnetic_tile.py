"""The magnetic tile set as shipped: ``MT_<class>/Imgs/<stem>.jpg`` with the mask ``<stem>.png`` beside it.

Every tile was photographed under up to six exposures, so a random split puts the same defect on both sides;
groups (``magnetic_tile_groups.csv``: class, stem, ..., tile_group) keep them apart. A tile that is labelled
good under one exposure and defective under another counts as neither.
"""

from pathlib import Path

from fewspect.data.index import Index
from fewspect.data.listing import IMAGE_ENDINGS, require_folder, scan, subfolders
from fewspect.data.problems import Problem
from fewspect.data.readers.normals import split_normals
from fewspect.data.readers.source import TASKS_WITH_MASKS, finish, labelled
from fewspect.data.readers.table import read_cells
from fewspect.data.splits import hold_out, split_by_group
from fewspect.errors import UserError
from fewspect.types import Region, Sample

PREFIX = "MT_"
FREE = "MT_Free"
GROUP_FILE = "magnetic_tile_groups.csv"
PRODUCT = "magnetic_tile"
COLUMNS = ("class", "stem", "tile_group")


def read(
    root: str,
    *,
    fold: int | None = None,
    groups: str | None = None,
    resize_masks: bool = False,
    white_level: int | None = None,
    max_pixels: int | None = None,
) -> Index:
    """Read the magnetic tile set.

    Args:
        root: Folder that holds ``MT_*``.
        fold: Index into the sorted defect classes: this class is tested, the others train; images of tested
            tiles leave the training set. None = every class on both sides, whole tiles apart; of the good
            tiles four in five train, the others are tested (detectors learn from the first and are tested on
            the second and on defects).
        groups: Table of tiles; None = ``magnetic_tile_groups.csv`` inside or beside ``root``, if there.
        resize_masks: Bring masks of another size to that of their image.
        white_level: White of images deeper than 8 bits.
        max_pixels: Pixel cap per image.

    Raises:
        UserError: Missing root, class folders or group table; no such fold.
    """
    base = require_folder(root)
    folders = [p for p in subfolders(base) if p.name.startswith(PREFIX)]
    if not folders:
        raise UserError(f"{base}: no folders named MT_*", "Set data.root to the magnetic tile data set.")
    tiles, problems = _read_groups(base, groups)
    rows = []
    for folder in folders:
        inner = folder / "Imgs" if (folder / "Imgs").is_dir() else folder
        samples, more = _read_class(inner, folder.name, tiles)
        rows += samples
        problems += more
    samples, classes = labelled(rows)
    index = finish(
        Index(samples, classes, TASKS_WITH_MASKS, tuple(problems)),
        white_level=white_level,
        max_pixels=max_pixels,
        resize_masks=resize_masks,
    )
    if fold is None:
        return split_normals(split_by_group(index))
    if fold not in range(len(classes)):
        named = ", ".join(f"{i} {c}" for i, c in enumerate(classes))
        raise UserError(f"data.fold={fold} does not exist", f"Choose one of: {named}.")
    return hold_out(index, [classes[fold]])


def _read_class(
    folder: Path, name: str, tiles: dict[tuple[str, str], str]
) -> tuple[list[tuple[Sample, list[str]]], list[Problem]]:
    """Pair by ending: the PNG is the mask, every other image a photograph."""
    listed = scan(folder, endings=IMAGE_ENDINGS)
    masks = {p.stem: p for p in listed.images if p.suffix.lower() == ".png"}
    photographs = [p for p in listed.images if p.suffix.lower() != ".png"]
    rows, problems = [], list(listed.problems)
    for image in photographs:
        mask = masks.pop(image.stem, None)
        regions = {name: (Region("file", mask),)} if mask and name != FREE else {}
        if mask is None and name != FREE:
            problems.append(Problem(str(image), "missing-mask", "defect without mask"))
        group = tiles.get((name, image.stem), "")
        if tiles and not group:
            problems.append(Problem(str(image), "no-group", "not in the group table", "warning"))
        sample = Sample(image, regions, product=PRODUCT, group=group)
        rows.append((sample, [] if name == FREE else [name]))
    problems += [Problem(str(m), "orphan-mask", "mask without image", "warning") for m in masks.values()]
    return rows, problems


def _read_groups(base: Path, groups: str | None) -> tuple[dict[tuple[str, str], str], list[Problem]]:
    """(class, stem) -> tile."""
    places = [Path(groups)] if groups else [base / GROUP_FILE, base.resolve().parent / GROUP_FILE]
    path = next((p for p in places if p.is_file()), None)
    if path is None:
        if groups:
            raise UserError(
                f"{groups}: group table not found", "Correct data.reader.groups, or set it to null."
            )
        detail = f"no {GROUP_FILE}: exposures of one tile may fall on both sides of a split"
        return {}, [Problem(str(base), "no-groups", detail, "warning")]
    header, *cells = read_cells(path, ",")
    if missing := set(COLUMNS) - set(header):
        raise UserError(f"{path}: no column {', '.join(sorted(missing))}", f"Columns: {', '.join(COLUMNS)}.")
    rows = (dict(zip(header, row, strict=False)) for row in cells)
    named = [tuple(row.get(name, "") for name in COLUMNS) for row in rows]
    return {(cls, stem): tile for cls, stem, tile in named}, []
