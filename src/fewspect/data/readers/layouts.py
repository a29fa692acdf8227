"""Which of the six layouts of ``folder`` a directory has, with the evidence; see there for the layouts."""

from collections.abc import Sequence
from pathlib import Path

from fewspect.data.listing import MASK_ENDINGS, list_images, scan, subfolders
from fewspect.data.readers import mvtec
from fewspect.data.readers.source import IMAGE_FOLDERS, MASK_FOLDERS, SIDES
from fewspect.errors import UserError

TABLES = tuple(
    f"{name}{ending}" for name in ("index", "labels", "samples", "list") for ending in (".csv", ".json")
)
KNOWN_SETS = (
    ("magnetic_tile", "MT_*/Imgs"),
    ("visa", "*/Data/Images"),
    ("vision", "*/train/_annotations.coco.json"),
    ("vision", "*/val/_annotations.coco.json"),
    ("vision", "train/_annotations.coco.json"),
)
"""Readers of their own, and what their folders hold."""

RESERVED = frozenset({*SIDES.values(), *IMAGE_FOLDERS, *MASK_FOLDERS})


def detect(base: Path, table: str | None = None) -> dict[str, str]:
    """Layouts that fit, each with the evidence for it."""
    found = {}
    tables = [t for t in ([table] if table else TABLES) if (base / t).is_file()]
    if tables:
        found["table"] = f"tables {', '.join(tables)}"
    images, masks = one_of(base, IMAGE_FOLDERS), mask_folders(base)
    paired = {images, *masks} if images and masks else set()  # images/train is no product
    places = [p for p in (base, *subfolders(base)) if p not in paired and not is_support(p)]
    if categories := [p.name for p in places if mvtec.is_category(p)]:
        found["mvtec"] = f"train/ or test/ with class folders in {', '.join(categories[:5])}"
    if objects := [p.name for p in (base, *subfolders(base)) if is_support(p)]:
        found["support"] = f"support/ in {', '.join(objects[:5])}"
    if images and masks:
        found["pairs"] = f"{images.name}/ with {', '.join(m.name for m in masks)}/"
    taken = {c for c in (categories or []) + (objects or [])}
    folders = [p for p in subfolders(base) if p.name.lower() not in RESERVED and p.name not in taken]
    classes = [p.name for p in folders if list_images(p)]
    if len(classes) > bool(tables):  # a single one beside a table is where its pictures lie
        found["classes"] = f"class folders {', '.join(classes[:5])}"
    if not set(found) - {"classes"} and (loose := list_images(base)):
        found["flat"] = f"{len(loose)} images at the top"
    return found


def choose(found: dict[str, str], base: Path) -> str:
    """The one layout that fits.

    Raises:
        UserError: None fits, or several do; lists what was found. Or it is a data set with a reader of its
            own; names that.
    """
    _refuse_known(base)
    if len(found) == 1:
        return next(iter(found))
    if not found:
        inside = ", ".join(sorted(p.name for p in base.iterdir())[:10]) or "nothing"
        hint = (
            "Layouts: train/test/ground_truth; images/ + masks/; class folders; support/ + query/; index.csv;"
            " images of good parts only."
        )
        raise UserError(f"{base}: no known layout (found: {inside})", hint)
    evidence = "; ".join(f"{name} ({why})" for name, why in found.items())
    raise UserError(
        f"{base}: several layouts fit: {evidence}", f"Set data.reader.layout to one of {', '.join(found)}."
    )


def _refuse_known(base: Path) -> None:
    """Point at the reader of a published layout."""
    for name, pattern in KNOWN_SETS:
        if found := min(base.glob(pattern), default=None):
            root = base if "*" in pattern else base.resolve().parent
            sign = found.relative_to(base)
            what = f"{base}: this is the layout of {name} ({sign})"
            raise UserError(what, f"Use data={name} data.root={root}.")


def is_support(folder: Path) -> bool:
    """True for a folder with ``support/image``."""
    return one_of(folder / "support", IMAGE_FOLDERS) is not None


def one_of(folder: Path, names: Sequence[str]) -> Path | None:
    """The sub-folder whose name (lower case) is among ``names``; None if there is none."""
    return next((p for p in subfolders(folder) if p.name.lower() in names), None)


def mask_folders(folder: Path) -> list[Path]:
    """Sub-folders named like masks that hold any."""
    named = [p for p in subfolders(folder) if p.name.lower() in MASK_FOLDERS]
    return [p for p in named if scan(p, recursive=True, endings=MASK_ENDINGS).images]
