"""Own data in one of six layouts, found out by looking, or named.

``mvtec``    ``[<product>/]{train/good, test/<class>, ground_truth/<class>}``, or ``train/`` with images
``pairs``    ``images/`` and ``masks/`` with equal stems, classes from mask values or sub-folders; both may be
             divided into ``train``, ``val`` and ``test`` first
``classes``  one folder per class, no masks
``support``  ``[<product>/]support/{image,mask}`` and ``query/image`` (``query/true_label`` if known)
``table``    a CSV or JSON file with the columns image, mask, label, product, split, group
``flat``     images of good parts and nothing else

What ``mode=generate`` wrote is recognised by its manifest and needs no option.

Layouts without a split of their own put about half of every class on either side (whole groups), or hold
classes out. Where all images are good, all of them train.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from fewspect.data.index import Index
from fewspect.data.listing import require_folder, subfolders
from fewspect.data.problems import Problem
from fewspect.data.readers import mvtec
from fewspect.data.readers.generated import generated
from fewspect.data.readers.layouts import (
    TABLES,
    choose,
    detect,
    is_support,
    mask_folders,
    one_of,
)
from fewspect.data.readers.merging import merged
from fewspect.data.readers.normals import one_class
from fewspect.data.readers.source import (
    GOOD_NAMES,
    IMAGE_FOLDERS,
    SIDES,
    SUFFIXES,
    finish,
    index_regions,
    labelled,
    pair,
    rebase,
    tasks_of,
)
from fewspect.data.readers.table import read_rows
from fewspect.data.splits import fold_classes, hold_out, split_by_group
from fewspect.errors import UserError
from fewspect.types import Region, Sample

DEFECT = "defect"
"""Class name where nothing names it."""

Layout = Literal["auto", "mvtec", "pairs", "classes", "support", "table", "flat"]
Rows = list[tuple[Sample, list[str] | None]]


@dataclass(frozen=True)
class Options:
    """How masks and tables are read; see ``read``."""

    mask_type: str
    invert: bool
    suffixes: Sequence[str]
    class_names: Sequence[str] | None
    recursive: bool
    table: str | None
    columns: Sequence[str] | Mapping[str, str] | None
    separator: str | None
    product: str
    max_pixels: int | None


def read(
    root: str,
    *,
    layout: Layout = "auto",
    mask_type: Literal["binary", "index"] = "binary",
    mask_invert: bool = False,
    mask_suffixes: Sequence[str] = SUFFIXES,
    class_names: Sequence[str] | None = None,
    test_classes: Sequence[str] | None = None,
    fold: int | None = None,
    folds: int = 3,
    normal_class: str | None = None,
    recursive: bool = False,
    table: str | None = None,
    columns: Sequence[str] | Mapping[str, str] | None = None,
    separator: str | None = None,
    product: str | None = None,
    resize_masks: bool = False,
    white_level: int | None = None,
    max_pixels: int | None = None,
) -> Index:
    """Read a folder of one's own.

    Args:
        root: The folder.
        layout: One of the six, or ``auto``.
        mask_type: ``binary``: one class per mask file; ``index``: pixel values are classes.
        mask_invert: Masks mark the good pixels.
        mask_suffixes: What may follow the image's stem in the name of its mask.
        class_names: ``index``: names of the values 1, 2, ...; ``binary``: the first names the class of
            unnamed masks.
        test_classes: These classes are tested, the others train.
        fold: Likewise, every ``folds``-th class in sorted order.
        folds: Number of class folds.
        normal_class: For detectors on a set without good images: images of this class play them, all others
            are defects whose pixels are not known.
        recursive: Walk into sub-folders of a flat folder of images.
        table: Name of the CSV or JSON file in ``root``; None = index/labels/samples/list.
        columns: Columns of the table, see ``readers.table``.
        separator: Its separator, or ``blank``.
        product: Name of the inspected object where no folder or column gives it; None = name of ``root``.
        resize_masks: Bring masks of another size to that of their image.
        white_level: White of images deeper than 8 bits.
        max_pixels: Pixel cap per image.

    Raises:
        UserError: Missing folder, no or several layouts, broken tables.
    """
    base = require_folder(root)
    name = product or base.resolve().name
    if layout == "auto" and (own := generated(base)):
        layout, mask_type, class_names = "table", "index", own
    options = Options(
        *(mask_type, mask_invert, mask_suffixes, class_names),
        *(recursive, table, columns, separator, name, max_pixels),
    )
    chosen = choose(detect(base, table), base) if layout == "auto" else layout
    if chosen == "mvtec":
        index = mvtec.read(root, mask_suffixes=mask_suffixes, mask_invert=mask_invert)
    elif chosen in READERS:
        index = _indexed(*READERS[chosen](base, options), class_names if mask_type == "index" else ())
    else:
        known = f"Choose auto, mvtec, {', '.join(READERS)}."
        raise UserError(f"data.reader.layout={chosen} does not exist", known)
    index = finish(index, white_level=white_level, max_pixels=max_pixels, resize_masks=resize_masks)
    index = _cleared(index)
    if normal_class is not None:
        return one_class(index, normal_class)
    if fold is not None:
        test_classes = fold_classes(index.classes, fold, folds)
    if test_classes is not None:
        return hold_out(index, test_classes)
    if any(s.split for s in index.samples):
        return _without_split_reported(index)
    if all(s.label == 0 for s in index.samples):
        return index.with_samples(replace(s, split="train") for s in index.samples)
    return split_by_group(index)


def _without_split_reported(index: Index) -> Index:
    """A split that is given counts; images that it leaves out are on neither side, and errors."""
    detail = "belongs to no split, others do; fill in its split, or empty the column"
    lost = [s for s in index.samples if not s.split]
    return index.with_samples(index.samples, *(Problem(str(s.image), "no-split", detail) for s in lost))


def _indexed(rows: Rows, problems: list[Problem], classes: Sequence[str] | None) -> Index:
    samples, names = labelled(rows, classes or ())
    return Index(samples, names, tasks_of(samples), (*problems, *_confusing(names)))


def _cleared(index: Index) -> Index:
    """Images whose label is known from their mask alone are good if it is empty."""
    unsure = [s for s in index.samples if s.regions and s.meta.get("label_from") == "mask"]
    good = {
        id(s)
        for s, f in zip(unsure, index.measure(unsure), strict=True)
        if f.area and not any(f.area.values())
    }
    return index.with_samples(replace(s, label=0) if id(s) in good else s for s in index.samples)


def _confusing(names: Sequence[str]) -> list[Problem]:
    """Class names that differ only in case or blanks."""
    plain: dict[str, str] = {}
    found = []
    for name in names:
        if other := plain.get(name.strip().casefold()):
            found.append(
                Problem(
                    name, "similar-classes", f"classes {other!r} and {name!r} differ only in case or blanks"
                )
            )
        plain.setdefault(name.strip().casefold(), name)
    return found


def _regions(
    image: Path, mask: Path, cls: str, options: Options
) -> tuple[dict[str, tuple[Region, ...]] | None, list[Problem]]:
    if options.mask_type == "index":
        names, cap = options.class_names, options.max_pixels
        return index_regions(image, mask, names, invert=options.invert, max_pixels=cap)
    return {cls: (Region("file", mask, invert=options.invert),)}, []


def _sample(image: Path, mask: Path | None, label: str, options: Options) -> tuple[Rows, list[Problem]]:
    """One row: ``label`` is a class, a word for good, or empty (then the mask decides)."""
    good = label.lower() in GOOD_NAMES
    cls = label or (options.class_names or (DEFECT,))[0]
    if mask is None or good:
        shown = [] if good else [label] if label else None
        return [(Sample(image, product=options.product), shown)], []
    regions, problems = _regions(image, mask, cls, options)
    if regions is None:
        return [(Sample(image, product=options.product), None)], problems
    known = label and options.mask_type == "binary"
    meta = {"label_from": "folder" if known else "mask"}
    return [(Sample(image, regions, product=options.product, meta=meta), list(regions))], problems


def _read_pairs(base: Path, options: Options) -> tuple[Rows, list[Problem]]:
    images, masks = one_of(base, IMAGE_FOLDERS), mask_folders(base)
    if images is None or len(masks) != 1:
        found = ", ".join(m.name for m in masks) or "none"
        raise UserError(
            f"{base}: one folder of images and one of masks needed; mask folders: {found}", "Rename them."
        )
    inside = subfolders(images)
    divided = bool(inside) and all(p.name.lower() in SIDES for p in inside)
    pairs, problems = pair(
        images, masks[0], suffixes=options.suffixes, recursive=bool(inside) or options.recursive
    )
    rows: Rows = []
    for item in pairs:
        first, *further = item.folder.split("/")
        side, label = (SIDES.get(first.lower(), ""), "".join(further[:1])) if divided else ("", first)
        row, more = _sample(item.image, item.mask, label, options)
        rows += [(replace(s, split=side), shown) for s, shown in row]
        problems += more
        if item.mask is None and label.lower() not in GOOD_NAMES:
            problems.append(Problem(str(item.image), "missing-mask", "image without mask", "warning"))
    return _tested(rows, problems) if divided else rows, problems


def _tested(rows: Rows, problems: list[Problem]) -> Rows:
    """Where folders give training and validation only, the second is what is asked about."""
    if {s.split for s, _ in rows} - {""} != {"train", "val"}:
        return rows
    detail = "no test folder: val is tested, a share of train validates"
    problems.append(Problem("", "val-is-test", detail, "notice"))
    return [(replace(s, split="test") if s.split == "val" else s, shown) for s, shown in rows]


def _read_classes(base: Path, options: Options) -> tuple[Rows, list[Problem]]:
    rows: Rows = []
    problems: list[Problem] = []
    for folder in subfolders(base):
        pairs, more = pair(folder, None, recursive=options.recursive)
        problems += more
        if not pairs:
            problems.append(Problem(str(folder), "empty-class", "class folder without images", "warning"))
        for item in pairs:
            rows += _sample(item.image, None, folder.name, options)[0]
    return rows, problems


def _read_support(base: Path, options: Options) -> tuple[Rows, list[Problem]]:
    rows: Rows = []
    problems: list[Problem] = []
    for folder in [base] if is_support(base) else [p for p in subfolders(base) if is_support(p)]:
        named = options if folder == base else replace(options, product=folder.name)
        for split in ("support", "query"):
            side, more = _read_side(folder / split, split, named)
            rows += side
            problems += more
    return rows, problems


def _read_side(folder: Path, split: str, options: Options) -> tuple[Rows, list[Problem]]:
    images, masks = one_of(folder, IMAGE_FOLDERS), mask_folders(folder) if folder.is_dir() else []
    if images is None:
        return [], [Problem(str(folder), "missing-folder", f"no {split}/image folder")]
    pairs, problems = pair(
        images, masks[0] if masks else None, suffixes=options.suffixes, recursive=options.recursive
    )
    rows: Rows = []
    for item in pairs:
        found, more = _sample(item.image, item.mask, "", options)
        rows += [(replace(s, split=split), shown) for s, shown in found]
        problems += more
        if item.mask is None and (split == "support" or masks):
            level = "error" if split == "support" else "warning"
            problems.append(Problem(str(item.image), "missing-mask", f"{split} image without mask", level))
    return rows, problems


def _read_table(base: Path, options: Options) -> tuple[Rows, list[Problem]]:
    names = [options.table] if options.table else [t for t in TABLES if (base / t).is_file()]
    path = rebase(base, names[0]) if len(names) == 1 else None
    if path is None:
        raise UserError(
            f"{base}: one table needed, found {', '.join(names) or 'none'}",
            "Set data.reader.table to its name.",
        )
    rows: Rows = []
    problems: list[Problem] = []
    for entry in read_rows(path, options.columns, options.separator):
        image, mask = rebase(base, entry["image"]), rebase(base, entry.get("mask", ""))
        if image is None or (mask is None and entry.get("mask")):
            kind, name = ("image", entry["image"]) if image is None else ("mask", entry["mask"])
            problems.append(
                Problem(
                    str(image or name), f"missing-{kind}", f"{kind} {name} is in {path.name}, not on disk"
                )
            )
            continue
        label = _label(entry.get("label", ""), options)
        found, more = _sample(
            image, mask, label, replace(options, product=entry.get("product", options.product))
        )
        extra = {"split": _side(entry.get("split", ""), path), "group": entry.get("group", "")}
        rows += [(replace(s, **extra), shown) for s, shown in found]
        problems += more
    return merged(rows, problems), problems


def _side(text: str, path: Path) -> str:
    """The split that a word of a table means; empty where none is given."""
    word = text.strip().lower()
    if word and word not in SIDES:
        hint = "Write train, val, test, support or query, or name the column in data.reader.columns."
        raise UserError(f"{path}: there is no split {text!r}", hint)
    return SIDES.get(word, "")


def _label(text: str, options: Options) -> str:
    """Numbers count like labels everywhere: 0 good, k the k-th class name."""
    if not text.isdecimal():
        return text
    number, names = int(text), options.class_names or ()
    if number == 0:
        return "good"
    return names[number - 1] if number <= len(names) else f"class_{number}"


def _read_flat(base: Path, options: Options) -> tuple[Rows, list[Problem]]:
    """Good images only.

    Raises:
        UserError: Masks lie among them.
    """
    pairs, problems = pair(base, None, recursive=options.recursive)
    stems = {(item.folder, item.image.stem) for item in pairs}
    for item in pairs:
        for suffix in filter(item.image.stem.endswith, filter(None, options.suffixes)):
            if (item.folder, item.image.stem.removesuffix(suffix)) in stems:
                hint = "Put images and masks into folders of their own: images/ and masks/."
                raise UserError(f"{item.image}: looks like a mask beside its image", hint)
    detail = f"nothing says which images are defective: all {len(pairs)} are taken as good"
    problems.append(Problem(str(base), "all-good", detail, "notice"))
    return [row for item in pairs for row in _sample(item.image, None, "good", options)[0]], problems


READERS: dict[str, Callable[[Path, Options], tuple[Rows, list[Problem]]]] = {
    "pairs": _read_pairs,
    "classes": _read_classes,
    "support": _read_support,
    "table": _read_table,
    "flat": _read_flat,
}
