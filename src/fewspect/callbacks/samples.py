"""A generated data set on disk: images, index masks, coloured masks, tables, a manifest, and a sheet to see.

``<folder>/{images,masks,colours}/<number>.png``, ``index.csv``, ``annotations.json`` (COCO, see ``coco``),
``manifest.json``, ``overview.png``. The folder appears complete or not at all.
"""

import csv
import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fewspect.callbacks import coco, draw
from fewspect.callbacks.files import folder_atomic
from fewspect.errors import UserError
from fewspect.types import Generated

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
KIND, FORMAT = "fewspect-generated", 1
"""By these ``data=folder`` knows what it reads."""

COLUMNS = ("image", "mask", "product", "group")
"""Of ``index.csv``."""

SHOWN = 12
"""Samples in the overview."""

TILE = 128
"""Side of one of its pictures in pixels."""


def write_set(
    folder: Path, samples: Iterable[Generated], classes: Sequence[str], about: Mapping[str, Any]
) -> None:
    """Write samples in their order.

    Args:
        folder: Where to; must not exist or be empty.
        samples: What was made; taken one by one, so that memory does not grow with their number.
        classes: Names of the labels 1, 2, ...
        about: Plain values for the manifest: method, seed, options.

    Raises:
        UserError: The folder is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not empty.", "Choose another folder with generate.folder=...")
    with folder_atomic(folder) as work:
        for part in ("images", "masks", "colours"):
            (work / part).mkdir()
        rows, shown, notes, absent = [], [], coco.Annotations(classes), Counter[str]()
        for number, sample in enumerate(samples):
            rows.append(_write(work, f"{number:06d}.png", sample, classes))
            absent.update(lacking(sample, classes))
            notes.add(str(rows[-1]["image"]), sample.mask.numpy())
            if number < SHOWN:
                shown.append(_tiles(sample))
        manifest = {"kind": KIND, "format": FORMAT, "classes": list(classes), **about, "samples": rows}
        for name, content in ((MANIFEST, manifest), (coco.FILE, notes.content())):
            text = json.dumps(content, indent=1, ensure_ascii=False)
            (work / name).write_text(text + "\n", "utf-8")
        with (work / "index.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
            table.writeheader()
            table.writerows(rows)
        _sheet(shown).save(work / "overview.png")
    for name, lost in absent.items():
        asked = sum(name in row.get("asked", "").split("+") for row in rows)
        log.warning("%s: asked for in %d samples, not there in %d of them.", name, asked, lost)


def lacking(sample: Generated, classes: Sequence[str]) -> tuple[str, ...]:
    """Classes (names of the labels 1, 2, ...) that were asked for and have no pixel in a sample."""
    asked = str(sample.origin.get("asked", "")).split("+")
    labels = set(sample.mask.unique().tolist()) if asked != [""] else set()
    return tuple(name for k, name in enumerate(classes, start=1) if name in asked and k not in labels)


def _write(folder: Path, name: str, sample: Generated, classes: Sequence[str]) -> dict[str, Any]:
    """Write the three pictures of a sample; its row of the manifest."""
    image, mask = draw.to_array(sample.image), sample.mask.numpy()
    pictures = {"images": image, "masks": mask, "colours": draw.class_colours(mask)}
    for part, pixels in pictures.items():
        Image.fromarray(pixels).save(folder / part / name, compress_level=1)
    areas = {c: int((mask == k).sum()) for k, c in enumerate(classes, start=1)}
    return {
        "image": f"images/{name}",
        "mask": f"masks/{name}",
        "product": sample.product,
        **({"group": sample.group} if sample.group else {}),
        "areas": {c: area for c, area in areas.items() if area},
        **_change(sample),
        **sample.origin,
    }


def _change(sample: Generated) -> dict[str, float]:
    """Mean difference in grey levels to what a defect was put onto, inside and outside of the mask."""
    if sample.ground is None:
        return {}
    away = (sample.image.float() - sample.ground.float()).abs().mean(0)  # (H, W)
    parts = {"change_inside": sample.mask > 0, "change_outside": sample.mask == 0}
    return {name: round(float(away[part].mean()), 4) for name, part in parts.items() if bool(part.any())}


def _tiles(sample: Generated) -> np.ndarray:
    """Image, and image with its defects outlined: (TILE, 2 TILE, 3)."""
    image = draw.to_array(sample.image)
    height, width = image.shape[:2]
    image = np.asarray(Image.fromarray(image).resize((TILE, TILE), Image.Resampling.BICUBIC))
    rows, columns = np.arange(TILE) * height // TILE, np.arange(TILE) * width // TILE
    mask = sample.mask.numpy()[np.ix_(rows, columns)] > 0
    return np.concatenate([image, draw.outline(image, mask, draw.PREDICTION, width=1)], 1)


def overview(samples: Sequence[Generated]) -> Image.Image:
    """Samples, plain and outlined, on one page."""
    return _sheet([_tiles(sample) for sample in samples])


def _sheet(tiles: Sequence[np.ndarray], columns: int = 3) -> Image.Image:
    """All tiles on one page."""
    rows = -(-len(tiles) // columns)
    gap = draw.GAP
    size = (rows * (TILE + gap) + gap, columns * (2 * TILE + gap) + gap, 3)
    page = np.full(size, draw.PAPER, np.uint8)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        top, left = gap + row * (TILE + gap), gap + column * (2 * TILE + gap)
        page[top : top + TILE, left : left + 2 * TILE] = tile
    return Image.fromarray(page)
