"""What is known of a sample without keeping its pixels: size, defect area per class, faults of its files."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

from fewspect.data.images import MAX_PIXELS, decode_image, image_size
from fewspect.data.masks import decode_mask, mask_size, rasterise
from fewspect.data.problems import Problem
from fewspect.errors import UserError
from fewspect.types import Sample

MIN_SIDE = 8
"""Images with a shorter side hold nothing to segment."""

TAIL_BYTES = 4096
ENDINGS = {b"\xff\xd8": b"\xff\xd9", b"\x89P": b"IEND"}
"""First bytes of JPEG and PNG, and the mark that a complete file has near its end."""


class MaskOptions(TypedDict):
    """Options of ``rasterise``."""

    resize: bool
    max_pixels: int


@dataclass(frozen=True, slots=True)
class Facts:
    """Measured once per sample.

    Attributes:
        height: Of the image as it is used, in pixels.
        width: Likewise.
        area: Pixels per class; classes whose mask cannot be used are absent.
        problems: What is wrong with the files.
    """

    height: int = 0
    width: int = 0
    area: dict[str, int] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()

    def fraction(self, cls: str) -> float:
        """Defect pixels of ``cls`` / image pixels."""
        return self.area.get(cls, 0) / max(self.height * self.width, 1)


def look(sample: Sample) -> Facts:
    """Read the image's header and every mask of ``sample``; never raises for a bad file."""
    path = str(sample.image)
    try:
        upright = is_upright(sample)
        height, width = image_size(sample.image, max_pixels=pixel_cap(sample), upright=upright)
        if complaint := _cut_short(sample):
            return Facts(height, width, problems=(Problem(path, "unreadable", complaint),))
    except UserError as error:
        return Facts(problems=(Problem(path, "unreadable", _plain(error, path)),))
    problems = []
    if min(height, width) < MIN_SIDE:
        problems.append(Problem(path, "too-small", f"{height} x {width} pixels, at least {MIN_SIDE} needed"))
    if not upright:
        detail = "the mask only fits the image without its EXIF rotation: both are used unrotated"
        problems.append(Problem(path, "unrotated", detail, "notice"))
    area = {}
    for cls, regions in sample.regions.items():
        try:
            mask = rasterise(regions, height, width, upright, **mask_options(sample))
            area[cls] = int(mask.sum())
        except UserError as error:
            problems.append(Problem(path, _mask_kind(error), error.message))
    return Facts(height, width, area, (*problems, *_judge(sample, area, height * width)))


def is_upright(sample: Sample) -> bool:
    """False when the image is stored rotated and its mask file has the stored, not the upright size."""
    files = [r.path for regions in sample.regions.values() for r in regions if r.path is not None]
    if not files:
        return True
    cap = pixel_cap(sample)
    stored, shown = (image_size(sample.image, max_pixels=cap, upright=u) for u in (False, True))
    return stored == shown or not files[0].exists() or mask_size(files[0], max_pixels=cap) != stored


def pixel_cap(sample: Sample) -> int:
    """The reader's ``max_pixels``, carried in ``meta``."""
    return int(sample.meta.get("max_pixels", MAX_PIXELS))


def white_level(sample: Sample) -> int | None:
    """The reader's ``white_level``, carried in ``meta``."""
    value = sample.meta.get("white_level")
    return None if value is None else int(value)


def mask_options(sample: Sample) -> MaskOptions:
    """How ``rasterise`` treats the mask files of a sample: the reader's ``resize_masks``, ``max_pixels``."""
    return {"resize": bool(sample.meta.get("resize_masks", False)), "max_pixels": pixel_cap(sample)}


def pixel_options(sample: Sample) -> tuple[int | None, bool]:
    """What changes the pixels of a sample beside its files: part of the name of every cache of features."""
    return white_level(sample), mask_options(sample)["resize"]


def decode_problems(sample: Sample) -> list[Problem]:
    """Decode image and masks fully: what only shows in the pixels, and how things were read."""
    path, found = str(sample.image), []
    try:
        _, notices = decode_image(sample.image, max_pixels=pixel_cap(sample), white_level=white_level(sample))
        found += [Problem(path, "read-as", text, "notice") for text in notices]
    except UserError as error:
        return [Problem(path, "unreadable", _plain(error, path))]
    for region in {
        r for regions in sample.regions.values() for r in regions if r.kind == "file" and not r.values
    }:
        try:
            _, notices = decode_mask(str(region.path), max_pixels=pixel_cap(sample))
        except UserError:
            continue  # ``look`` reports it
        found += [Problem(path, "mask-read-as", f"{region.path}: {text}", "notice") for text in notices]
    return found


def _cut_short(sample: Sample) -> str:
    """Message for a JPEG or PNG that ends too early: the end mark is looked for, decoding confirms."""
    with sample.image.open("rb") as file:
        mark = ENDINGS.get(file.read(2))
        size = file.seek(0, 2)
        file.seek(max(size - TAIL_BYTES, 0))
        if mark is None or mark in file.read():
            return ""
    try:
        decode_image(sample.image, max_pixels=pixel_cap(sample), white_level=white_level(sample))
    except UserError as error:
        return _plain(error, str(sample.image))
    return ""


def _plain(error: UserError, path: str) -> str:
    """The message without the name that the problem carries anyway."""
    return error.message.removeprefix(f"{path}: ")


def _mask_kind(error: UserError) -> str:
    return "wrong-size" if "its image" in error.message else "bad-mask"


def _judge(sample: Sample, area: dict[str, int], pixels: int) -> list[Problem]:
    """Masks that are readable but strange."""
    path, found = str(sample.image), []
    if sample.label > 0 and area and not any(area.values()):
        found.append(Problem(path, "empty-mask", "labelled as a defect, but its mask is empty", "warning"))
    if sample.label == 0 and any(area.values()):
        found.append(
            Problem(path, "unexpected-mask", "labelled as good, but its mask is not empty", "warning")
        )
    found += [
        Problem(path, "full-mask", f"the mask of {cls!r} covers the whole image", "warning")
        for cls, count in area.items()
        if count == pixels
    ]
    return found


def duplicates(samples: Iterable[Sample]) -> list[Problem]:
    """Files with equal content on both sides of a split (support and query, train and test)."""
    by_size: dict[int, set[tuple[Path, str]]] = defaultdict(set)
    for sample in samples:
        if sample.split and sample.image.is_file():
            by_size[sample.image.stat().st_size].add((sample.image, sample.split))
    found = []
    for candidates in by_size.values():
        if len({split for _, split in candidates}) < 2:
            continue
        twins: dict[str, list[tuple[Path, str]]] = defaultdict(list)
        for path, split in sorted(candidates):
            twins[hashlib.sha256(path.read_bytes()).hexdigest()].append((path, split))
        for group in twins.values():
            other = next((item for item in group if item[1] != group[0][1]), None)
            if other:
                detail = f"same content as {other[0]}: one is in {group[0][1]!r}, the other in {other[1]!r}"
                found.append(Problem(str(group[0][0]), "duplicate", detail, "warning"))
    return sorted(found, key=lambda p: p.path)
