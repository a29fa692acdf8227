"""What all readers share: safe paths, kind JSON errors, pairing by stem, object splits, the final index."""

import json
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from fewspect.data.images import MAX_PIXELS
from fewspect.data.index import Index
from fewspect.data.listing import MASK_ENDINGS, scan, subfolders
from fewspect.data.masks import SMALL_VALUES, VOID, read_index
from fewspect.data.problems import Problem
from fewspect.errors import UserError
from fewspect.types import Region, Sample

SUFFIXES = ("", "_mask", "_gt", "_label", "-mask", "_seg")
"""What tools append to an image's stem to name its mask."""

GOOD_NAMES = frozenset({"good", "ok", "normal", "no_defect", "defect_free", "defect-free", "free"})
"""Folder names and labels (lower case) that mean: no defect."""

IMAGE_FOLDERS = ("image", "images", "imgs", "img")
MASK_FOLDERS = ("mask", "masks", "annotations", "labels", "label", "ground_truth", "true_label")

SIDES = {name: name for name in ("train", "val", "test", "support", "query")}
SIDES |= {"training": "train", "validation": "val", "valid": "val", "testing": "test"}
"""Words (lower case) for the splits in tables and folder names."""

TASKS_WITH_MASKS = frozenset({"segment", "classify", "detect", "reconstruct"})
TASKS_WITH_LABELS = frozenset({"classify", "detect", "reconstruct"})
TASKS_OF_GOOD_IMAGES = frozenset({"detect", "reconstruct"})


def rebase(root: Path, text: str) -> Path | None:
    """Find a listed file below ``root``: the longest tail of its path that exists; None if there is none.

    Windows and foreign absolute paths work; the result can never lie outside ``root``.

    Raises:
        UserError: The path climbs with ``..``.
    """
    plain = text.strip().replace("\\", "/")
    parts = [p for p in PurePosixPath(plain).parts if p not in ("/", ".", "")]
    parts = parts[1:] if parts and PureWindowsPath(parts[0]).drive else parts
    if ".." in parts:
        raise UserError(
            f"{text!r} leaves the data folder {root}", "List paths relative to data.root, without '..'."
        )
    for start in range(len(parts)):
        candidate = root.joinpath(*parts[start:])
        if _is_file(candidate):
            return candidate
    return None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # over-long names, embedded zero bytes
        return False


def read_json(path: Path) -> Any:  # noqa: ANN401 - whatever the file holds
    """Parse a JSON file, with or without byte-order mark.

    Raises:
        UserError: Not valid; names file, line, column and the likely cause.
    """
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        where = f"{path}, line {error.lineno}, column {error.colno}: not valid JSON ({error.msg})"
        backslash = "escape" in error.msg
        hint = (
            "Backslashes must be doubled; write Windows paths with / or \\\\."
            if backslash
            else "Mend the file."
        )
        raise UserError(where, hint) from error
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 JSON ({error})", "Save it as UTF-8.") from error


@dataclass(frozen=True, slots=True)
class Pair:
    """An image, its mask if there is one, and the sub-folder it lies in (posix, empty = top)."""

    image: Path
    mask: Path | None
    folder: str


def pair(
    images: Path, masks: Path | None, *, suffixes: Sequence[str] = SUFFIXES, recursive: bool = False
) -> tuple[list[Pair], list[Problem]]:
    """Pair the files of two folders by stem (and sub-folder, if the masks have sub-folders too).

    An accent is the same whether it is stored with its letter or after it, as macOS does.

    Problems: two images with one stem, two masks for one image (errors that name both), masks without image.
    """
    listed = scan(images, recursive=recursive)
    found = scan(masks, recursive=recursive, endings=MASK_ENDINGS) if masks and masks.is_dir() else None
    problems = [*listed.problems, *(found.problems if found else ())]
    flat = found is not None and all(m.parent == masks for m in found.images)
    by_name: dict[tuple[str, str], list[Path]] = defaultdict(list)
    for mask in found.images if found and masks else ():
        by_name[_folder(mask, masks), _composed(mask.stem)].append(mask)
    pairs, used = [], set[Path]()
    seen: dict[tuple[str, str], Path] = {}
    for image in listed.images:
        folder, stem = _folder(image, images), _composed(image.stem)
        if twin := seen.get((folder, stem)):
            problems.append(Problem(str(image), "same-stem", f"has the same stem as {twin.name}"))
            continue
        seen[folder, stem] = image
        options = [m for s in suffixes for m in by_name.get(("" if flat else folder, stem + s), ())]
        used.update(options)
        if len(options) > 1:
            names = " and ".join(str(m) for m in options)
            problems.append(Problem(str(image), "two-masks", f"two masks fit: {names}"))
        pairs.append(Pair(image, options[0] if options else None, folder))
    orphans = [m for m in (found.images if found else ()) if m not in used]
    problems += [Problem(str(m), "orphan-mask", "mask without image", "warning") for m in orphans]
    if listed.deeper:
        detail = f"{listed.deeper} images in sub-folders left out; data.reader.recursive=true reads them"
        problems.append(Problem(str(images), "sub-folders", detail, "notice"))
    return pairs, problems


def _folder(path: Path, base: Path | None) -> str:
    relative = path.parent.relative_to(base) if base else Path()
    return "" if relative == Path() else _composed(relative.as_posix())


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def index_regions(
    image: Path,
    mask: Path,
    class_names: Sequence[str] | None,
    *,
    invert: bool = False,
    max_pixels: int | None = None,
) -> tuple[dict[str, tuple[Region, ...]] | None, list[Problem]]:
    """Regions of the classes in an index mask: value v is ``class_names[v - 1]`` or ``class_v``; 255 is none.

    Returns:
        Regions, empty where the mask shows no class: the image is good. None where the mask cannot be used or
        shows classes without a name alone: what the image shows is not known. The problems name the image.
    """
    where = str(image)
    try:
        values = [int(v) for v in np.unique(read_index(mask, max_pixels=max_pixels or MAX_PIXELS))]
    except UserError as error:
        return None, [Problem(where, "bad-mask", error.message)]
    problems = []
    if VOID in values:
        detail = f"{mask.name}: value 255 ('do not care') is no class and counted as background"
        problems.append(Problem(where, "void", detail, "notice"))
    present = [v for v in values if v not in (0, VOID)]
    if len(present) > SMALL_VALUES or any(v < 0 for v in present):
        detail = f"{mask}: {len(present)} values up to {max(present)}: no class indices; "
        return None, [Problem(where, "bad-mask", f"{detail}data.reader.mask_type=binary?")]
    if class_names is not None and (unknown := [v for v in present if v > len(class_names)]):
        detail = f"{mask}: values {unknown} have no name among {list(class_names)}"
        problems.append(Problem(where, "unknown-class", detail))
        present = [v for v in present if v <= len(class_names)]
        if not present:
            return None, problems
    names = {v: class_names[v - 1] if class_names else f"class_{v}" for v in present}
    return {n: (Region("file", mask, (v,), invert),) for v, n in names.items()}, problems


def choose_objects(
    found: Sequence[str],
    table: tuple[Sequence[str], Sequence[str]] | None,
    objects: Sequence[str] | None,
    test_objects: Sequence[str] | None,
) -> tuple[dict[str, str], list[Problem]]:
    """Object -> split. Explicit lists win over the fold's ``table`` (training objects, test objects).

    Raises:
        UserError: A named object has no folder, or nothing of the fold is there.
    """
    if objects is not None or test_objects is not None:
        test = list(test_objects or ())
        train = [o for o in (objects if objects is not None else found) if o not in test]
        if missing := sorted({*train, *test} - set(found)):
            names = ", ".join(found) or "no object folders"
            raise UserError(f"no folder for objects {', '.join(missing)}", f"Found: {names}.")
        return {**dict.fromkeys(train, "train"), **dict.fromkeys(test, "test")}, []
    train, test = table or ((), ())
    wanted = {**dict.fromkeys(train, "train"), **dict.fromkeys(test, "test")}
    chosen = {name: split for name, split in wanted.items() if name in found}
    if not chosen:
        names = ", ".join(found) or "no object folders"
        raise UserError(
            f"none of the fold's objects is there; found: {names}",
            "Set data.fold=null data.reader.test_objects=[...] (and data.reader.objects=[...]).",
        )
    problems = [
        Problem(name, "missing-object", f"{split} object of this fold has no folder", "warning")
        for name, split in wanted.items()
        if name not in found
    ]
    if extra := [name for name in found if name not in wanted]:
        problems.append(Problem("", "other-objects", f"not part of this fold: {', '.join(extra)}", "notice"))
    return chosen, problems


def choose_categories(
    base: Path, is_category: Callable[[Path], bool], wanted: str | Sequence[str] | None
) -> dict[str, Path]:
    """Name -> folder of the products: ``base`` is one or holds several.

    Raises:
        UserError: A wanted one is not there.
    """
    if is_category(base):
        found = {base.resolve().name: base}
    else:
        found = {p.name: p for p in subfolders(base) if is_category(p)}
    names = [wanted] if isinstance(wanted, str) else list(found if wanted is None else wanted)
    if missing := sorted(set(names) - set(found)):
        listed = ", ".join(found) or "none"
        raise UserError(f"{base}: no category {', '.join(missing)}", f"Found: {listed}.")
    return {name: found[name] for name in names}


def tasks_of(samples: Sequence[Sample]) -> frozenset[str]:
    """What the annotations allow."""
    if any(s.regions for s in samples):
        return TASKS_WITH_MASKS
    labels = {s.label for s in samples}
    return TASKS_OF_GOOD_IMAGES if labels in ({0}, {0, -1}) else TASKS_WITH_LABELS


def labelled(
    samples: Iterable[tuple[Sample, Sequence[str] | None]], classes: Sequence[str] = ()
) -> tuple[tuple[Sample, ...], tuple[str, ...]]:
    """Give labels to (sample, class names in the image; empty = good, None = unknown).

    An image with several classes gets the first in class order. Classes: ``classes``, then others, sorted.
    """
    rows = list(samples)
    names = tuple(dict.fromkeys([*classes, *sorted({n for _, shown in rows for n in shown or ()})]))
    place = {name: i + 1 for i, name in enumerate(names)}
    done = [
        replace(s, label=-1 if shown is None else min((place[n] for n in shown), default=0))
        for s, shown in rows
    ]
    return tuple(done), names


def finish(
    index: Index,
    *,
    white_level: int | None = None,
    max_pixels: int | None = None,
    resize_masks: bool = False,
) -> Index:
    """Refuse an empty index; carry the reading options in every sample.

    Raises:
        UserError: No image was found.
    """
    if not index.samples:
        first = f" (first problem: {index.problems[0]})" if index.problems else ""
        raise UserError(
            f"no images found{first}", "Check data.root and the layout in the header of conf/data."
        )
    options = {"white_level": white_level, "max_pixels": max_pixels, "resize_masks": resize_masks or None}
    extra = {k: v for k, v in options.items() if v is not None}
    if not extra:
        return index
    return index.with_samples(replace(s, meta={**s.meta, **extra}) for s in index.samples)
