"""COCO annotation files: polygons, run-length codes and boxes; broken entries are listed, not raised."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fewspect.data import rle
from fewspect.data.images import MAX_PIXELS, image_size
from fewspect.data.problems import Problem
from fewspect.data.readers.source import read_json, rebase
from fewspect.errors import UserError
from fewspect.types import Region

Entry = dict[str, Any]
Sizes = dict[Any, tuple[Path, int, int]]
"""Image id -> path, height, width."""


@dataclass
class CocoFile:
    """Content of one annotation file.

    Attributes:
        images: Image path -> class name -> regions; images without annotation have none.
        unclear: Images with annotations of which none gave a region: they are neither good nor drawn.
        classes: Names of the categories that are used, in id order.
        problems: Entries that could not be used.
    """

    images: dict[Path, dict[str, tuple[Region, ...]]] = field(default_factory=dict)
    unclear: frozenset[Path] = frozenset()
    classes: tuple[str, ...] = ()
    problems: list[Problem] = field(default_factory=list)


def read_file(
    path: Path, folder: Path, *, box_as_mask: bool = False, max_pixels: int | None = None
) -> CocoFile:
    """Read one annotation file whose images lie in ``folder``.

    Args:
        path: The JSON file.
        folder: Where the images are; no listed path can leave it.
        box_as_mask: Annotations that have a box but no segmentation: use the box as the mask.
        max_pixels: Pixel cap per image.

    Raises:
        UserError: Not valid JSON, or not a COCO file.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise UserError(f"{path}: not a COCO file (no list 'images')", "Export the annotations as COCO JSON.")
    result = CocoFile()
    report = _Reporter(path, result.problems)
    sizes: Sizes = {}
    for entry in _entries(content, "images", report):
        if located := _locate(entry, folder, report, max_pixels or MAX_PIXELS):
            sizes[entry.get("id")] = located
    listed = {entry.get("id") for entry in _entries(content, "images")}
    names = _names(_entries(content, "categories", report))
    notes = _entries(content, "annotations", report)
    regions: dict[tuple[Path, str], list[Region]] = defaultdict(list)
    used = set()
    for note in _known(notes, sizes, listed, names, report):
        image, height, width = sizes[note["image_id"]]
        used.add(note["category_id"])
        where = f"annotation {note.get('id')} of {image.name}"
        found = _regions(note, where, (height, width), box_as_mask, report)
        regions[image, names[note["category_id"]]] += found
    result.images = {image: {} for image, _, _ in sizes.values()}
    for (image, name), found in regions.items():
        result.images[image] |= {name: tuple(found)} if found else {}
    noted = {sizes[n["image_id"]][0] for n in notes if n.get("image_id") in sizes}
    result.unclear = frozenset(image for image in noted if not result.images[image])
    result.classes = tuple(name for i, name in names.items() if i in used)
    if unused := [name for i, name in names.items() if i not in used]:
        report("categories", "unused-category", f"never used: {', '.join(unused)}", level="notice")
    return result


def _known(
    notes: Sequence[Entry], sizes: Sizes, listed: set[Any], names: dict[Any, str], report: "_Reporter"
) -> Iterator[Entry]:
    """Annotations whose image and category exist; the others are listed."""
    for note in notes:
        where = f"annotation {note.get('id')}"
        if note.get("image_id") not in listed:
            report(where, "unknown-image", f"belongs to unknown image id {note.get('image_id')}")
        elif note.get("category_id") not in names:
            report(where, "unknown-category", f"has unknown category id {note.get('category_id')}")
        elif note["image_id"] in sizes:
            yield note


class _Reporter:
    """Collect problems of one file."""

    def __init__(self, path: Path, problems: list[Problem]) -> None:
        self.path, self.problems = path, problems

    def __call__(self, where: str, kind: str, detail: str, *, level: Any = "warning") -> None:  # noqa: ANN401
        self.problems.append(Problem(str(self.path), kind, f"{where} {detail}", level))


def _entries(content: Entry, name: str, report: _Reporter | None = None) -> list[Entry]:
    """The dictionaries of a list in the file whose ids can be looked up; anything else is listed."""
    value = content.get(name)
    items = value if isinstance(value, list) else []
    good = [e for e in items if isinstance(e, dict) and _plain_ids(e)]
    if report and len(good) < len(items):
        report(name, "bad-entry", f"holds {len(items) - len(good)} entries of the wrong kind")
    return good


def _plain_ids(entry: Entry) -> bool:
    return all(isinstance(entry.get(k), int | str | None) for k in ("id", "image_id", "category_id"))


def _names(categories: Sequence[Entry]) -> dict[Any, str]:
    """Category id -> name, in id order; equal names are told apart by their id."""
    ordered = sorted(categories, key=lambda c: (str(type(c.get("id"))), c.get("id") or 0))
    names = [str(c.get("name", c.get("id"))) for c in ordered]
    return {
        c.get("id"): f"{n}_{c.get('id')}" if names.count(n) > 1 else n
        for c, n in zip(ordered, names, strict=True)
    }


def _locate(entry: Entry, folder: Path, report: _Reporter, max_pixels: int) -> tuple[Path, int, int] | None:
    """Path and true size of a listed image; the file counts, not the stated size."""
    name = entry.get("file_name")
    path = rebase(folder, name) if isinstance(name, str) else None
    if path is None:
        report(f"image {name}", "missing-image", "is listed but not there", level="error")
        return None
    try:
        height, width = image_size(path, max_pixels=max_pixels)
    except UserError as error:
        report("image", "unreadable", error.message, level="error")
        return None
    stated = (entry.get("height", height), entry.get("width", width))
    if stated != (height, width):
        detail = f"is stated as {stated[0]} x {stated[1]}, the file has {height} x {width} (height x width)"
        report(f"image {name}", "stated-size", f"{detail}; the file counts")
    return path, height, width


def _regions(
    note: Entry, where: str, size: tuple[int, int], box_as_mask: bool, report: _Reporter
) -> list[Region]:
    """Regions of one annotation."""
    shape = note.get("segmentation")
    try:
        if isinstance(shape, dict):
            return [_from_rle(shape, size)]
        if isinstance(shape, list) and shape:
            polygons = [_polygon(p, where, size, report) for p in shape]
            kept = tuple(p for p in polygons if p)
            return [Region("polygon", points=kept)] if kept else []
        box = tuple(float(v) for v in note.get("bbox") or ())
    except (TypeError, ValueError, OverflowError, UserError) as error:
        report(where, "bad-annotation", f"cannot be decoded ({getattr(error, 'message', error)})")
        return []
    if len(box) == 4 and box_as_mask:
        return [Region("box", points=(box,))]
    report(where, "no-segmentation", "has no segmentation; data.reader.box_as_mask=true would use its box")
    return []


def _from_rle(shape: Entry, size: tuple[int, int]) -> Region:
    counts = shape.get("counts")
    stated = shape.get("size")
    if isinstance(stated, list) and stated and stated != list(size):
        given, real = " x ".join(map(str, stated)), " x ".join(map(str, size))
        raise UserError(
            f"run-length code of size {given}, the image has {real} (height x width)",
            "Export the annotations again for the images as they are.",
        )
    runs = rle.decompress(counts) if isinstance(counts, str | bytes) else tuple(int(c) for c in counts or ())
    rle.check(runs, *size)
    return Region("rle", counts=runs)


def _polygon(
    points: Sequence[float], where: str, size: tuple[int, int], report: _Reporter
) -> tuple[float, ...] | None:
    """Flat coordinates; None for fewer than three points or a polygon wholly outside."""
    flat = tuple(float(v) for v in points)
    xs, ys = flat[0::2], flat[1::2]
    if len(ys) < 3:
        report(where, "degenerate-polygon", f"has a polygon of {len(ys)} points, skipped")
        return None
    height, width = size
    if max(xs) < 0 or max(ys) < 0 or min(xs) > width or min(ys) > height:
        report(where, "outside-image", "has a polygon outside the image, skipped")
        return None
    if min(xs) < -1 or min(ys) < -1 or max(xs) > width + 1 or max(ys) > height + 1:
        report(where, "outside-image", "has a polygon that leaves the image, clipped")
    return flat
