"""Write the toy factory in every folder layout that the readers know; the tests' fixtures are made here.

Example:
    >>> pictures = write("/tmp/toy", "mvtec", products=("wood",), defects=("hole",), images=2, good=2)
    >>> pictures[0].image
    PosixPath('wood/train/good/000.png')
"""

import csv
import itertools
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fewspect.data.toy.coco import annotations, row_polygons, run_lengths
from fewspect.data.toy.factory import DEFECTS, PRODUCTS, draw
from fewspect.errors import UserError

Key = tuple[str, str | None, int]
"""(product, defect, index): what ``draw`` needs beside seed and side."""

MANY = 300
"""Pictures from which on several processes draw (a second to begin with)."""

QUALITY = 97
"""JPEG quality of the layouts that demand JPEG."""

MAGNETIC_TILE = {
    "hole": "MT_Blowhole",
    "chip": "MT_Break",
    "crack": "MT_Crack",
    "smear": "MT_Fray",
    "stain": "MT_Uneven",
    None: "MT_Free",
}
"""The folder of the magnetic tile set that a toy defect plays."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One written picture; its pixels are ``draw(seed, product, defect, index, side)``.

    Attributes:
        image: Path relative to the root.
        product: Product.
        defect: Defect class, None = good.
        index: Number within (product, defect).
    """

    image: Path
    product: str
    defect: str | None
    index: int


@dataclass(frozen=True, slots=True)
class Job:
    """What to draw and where to put it."""

    root: Path
    seed: int
    side: int
    products: tuple[str, ...]
    defects: tuple[str, ...]
    images: int
    good: int

    def wanted(self) -> Iterator[Key]:
        """All (product, defect, index); good parts of a product first."""
        for product in self.products:
            yield from ((product, None, i) for i in range(self.good))
            yield from itertools.product((product,), self.defects, range(self.images))

    def label(self, defect: str | None) -> int:
        """Position + 1 among the defects, 0 = good."""
        return 0 if defect is None else self.defects.index(defect) + 1

    def save(self, key: Key, image: str, mask: str | None = None, value: int = 255) -> Picture:
        """Draw ``key`` = (product, defect, index) and write the image and, if asked for, its mask.

        Args:
            key: What to draw.
            image: Path of the image relative to the root; the ending chooses the format.
            mask: Path of the mask, None = no mask file.
            value: Value of the defect's pixels in the mask.
        """
        pixels, truth = draw(self.seed, *key, self.side)
        _save(self.root / image, pixels)
        if mask is not None:
            _save(self.root / mask, truth * np.uint8(value))
        return Picture(Path(image), *key)

    def save_all(self, tasks: Sequence[tuple[Key, str, str | None]]) -> list[Picture]:
        """``save`` many; on all cores where that is safe and worth it, with the same pixels."""
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1
        if len(tasks) < MANY or cores == 1 or multiprocessing.current_process().daemon:
            return [self.save(*task) for task in tasks]
        context = multiprocessing.get_context("fork")  # the others would import torch again
        with ProcessPoolExecutor(min(cores, 8), context) as pool:
            return list(pool.map(self.save, *zip(*tasks, strict=True), chunksize=16))


def write(
    root: Path | str,
    layout: str,
    *,
    seed: int = 0,
    side: int = 128,
    products: Sequence[str] = PRODUCTS,
    defects: Sequence[str] = tuple(DEFECTS),
    images: int = 4,
    good: int = 4,
) -> list[Picture]:
    """Write a toy data set. The folder appears complete or not at all; two processes at once do not collide.

    Args:
        root: Folder to make; must not exist or be empty.
        layout: One of ``LAYOUTS``.
        seed: Seed of the factory.
        side: Height and width in pixels.
        products: Products to write (``flat``, ``magnetic_tile``, ``support_query``: the first one only).
        defects: Defect classes (``support_query`` uses the first one only).
        images: Pictures per product and defect class.
        good: Good pictures per product.

    Returns:
        The pictures, in the order written.

    Raises:
        UserError: For an unknown layout or a folder that is not empty.
    """
    root = Path(root)
    if layout not in LAYOUTS:
        raise UserError(f"There is no toy layout {layout!r}.", f"Choose from: {', '.join(LAYOUTS)}.")
    if root.exists() and any(root.iterdir()):
        raise UserError(f"The folder {root} is not empty.", "Choose another folder or delete this one.")
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    except OSError as error:
        raise UserError(
            f"The folder {root} could not be made ({error.strerror}).", "Choose another data.root."
        ) from error
    try:
        work.chmod(0o755)  # mkdtemp makes private folders
        pictures = LAYOUTS[layout](Job(work, seed, side, tuple(products), tuple(defects), images, good))
        with suppress(OSError):  # another process was faster: its folder has the same content
            work.rename(root)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if not root.exists():
        raise UserError(f"The folder {root} could not be made.", "Check that its parent can be written to.")
    return pictures


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(pixels)
    if path.suffix == ".png":
        picture.save(path, compress_level=1)
    else:
        picture.save(path, quality=QUALITY, subsampling=0)


def _mvtec(job: Job) -> list[Picture]:
    """``product/train/good``, ``product/test/<class>``, ``product/ground_truth/<class>/<stem>_mask.png``."""
    tasks: list[tuple[Key, str, str | None]] = []
    for product, defect, i in job.wanted():
        part = "train" if defect is None and i < (job.good + 1) // 2 else "test"
        image = f"{product}/{part}/{defect or 'good'}/{i:03d}.png"
        mask = None if defect is None else f"{product}/ground_truth/{defect}/{i:03d}_mask.png"
        tasks.append(((product, defect, i), image, mask))
    return job.save_all(tasks)


def _pairs_binary(job: Job) -> list[Picture]:
    """``images/{good,<class>}/<stem>.png`` and ``masks/<class>/<stem>.png`` with values 0 and 255."""
    done = []
    for product, defect, i in job.wanted():
        stem = f"{defect or 'good'}/{product}_{i:03d}.png"
        mask = None if defect is None else f"masks/{stem}"
        done.append(job.save((product, defect, i), f"images/{stem}", mask))
    return done


def _pairs_index(job: Job) -> list[Picture]:
    """``images/<stem>.png``, ``masks/<stem>.png``; value k = line k of ``classes.txt``."""
    done = []
    for key in job.wanted():
        stem = f"{key[0]}_{key[1] or 'good'}_{key[2]:03d}.png"
        done.append(job.save(key, f"images/{stem}", f"masks/{stem}", job.label(key[1])))
    (job.root / "classes.txt").write_text("".join(f"{name}\n" for name in job.defects))
    return done


def _classes(job: Job) -> list[Picture]:
    """``<class>/<stem>.png``, good parts in ``good``; no masks."""
    return [job.save(key, f"{key[1] or 'good'}/{key[0]}_{key[2]:03d}.png") for key in job.wanted()]


def _support_query(job: Job) -> list[Picture]:
    """``support/{image,mask}``, ``query/{image,true_label}``, masks ``<stem>_mask``; a third supports."""
    product, defect, done = job.products[0], job.defects[0], []
    supports = max(1, job.images // 3)
    for i in range(job.images):
        part, truth = ("support", "mask") if i < supports else ("query", "true_label")
        image, mask = f"{part}/image/{i:03d}.png", f"{part}/{truth}/{i:03d}_mask.png"
        done.append(job.save((product, defect, i), image, mask))
    return done


def _table(job: Job) -> list[Picture]:
    """``index.csv``: image, mask, label, product, split; the files in ``files``; odd numbers are the test."""
    done, rows = [], []
    for product, defect, i in job.wanted():
        stem = f"files/{product}_{defect or 'good'}_{i:03d}"
        mask = None if defect is None else f"{stem}_mask.png"
        done.append(job.save((product, defect, i), f"{stem}.png", mask))
        rows.append((f"{stem}.png", mask or "", defect or "good", product, ("train", "test")[i % 2]))
    _write_csv(job.root / "index.csv", [("image", "mask", "label", "product", "split"), *rows])
    return done


def _magnetic_tile(job: Job) -> list[Picture]:
    """``MT_<class>/Imgs/exp<e>_num_<n>``: JPEG image and PNG mask side by side, masks of good tiles too."""
    done = []
    for n, (product, defect, i) in enumerate(job.wanted()):
        if product == job.products[0] and defect in MAGNETIC_TILE:
            stem = f"{MAGNETIC_TILE[defect]}/Imgs/exp{i % 6 + 1}_num_{100 + 10 * n}"
            done.append(job.save((product, defect, i), f"{stem}.jpg", f"{stem}.png"))
    return done


def _vision(job: Job, encode: Callable[[np.ndarray], object] = row_polygons) -> list[Picture]:
    """``product/{train,val}/_annotations.coco.json`` beside the images; even numbers train, odd ones val."""
    done = []
    for product, part in itertools.product(job.products, ("train", "val")):
        keys = [key for key in job.wanted() if key[0] == product and key[2] % 2 == (part == "val")]
        names = [f"{defect or 'good'}_{i:03d}.jpg" for _, defect, i in keys]
        done += [job.save(key, f"{product}/{part}/{name}") for key, name in zip(keys, names, strict=True)]
        masks = [draw(job.seed, *key, job.side)[1] for key in keys]
        table = annotations(names, masks, [job.label(key[1]) for key in keys], job.defects, encode)
        (job.root / product / part / "_annotations.coco.json").write_text(json.dumps(table))
    return done


def _vision_rle(job: Job) -> list[Picture]:
    """As ``vision``, with run lengths instead of polygons."""
    return _vision(job, run_lengths)


def _defect_spectrum(job: Job) -> list[Picture]:
    """``product/image/{good,<class>}/<stem>.png``, label maps ``product/mask/<class>/<stem>_mask.png``."""
    done = []
    for key in job.wanted():
        product, defect, i = key
        mask = None if defect is None else f"{product}/mask/{defect}/{i:03d}_mask.png"
        image = f"{product}/image/{defect or 'good'}/{i:03d}.png"
        done.append(job.save(key, image, mask, job.label(defect)))
    return done


def _visa(job: Job) -> list[Picture]:
    """``product/Data/{Images,Masks}/{Normal,Anomaly}``, ``image_anno.csv``, ``split_csv/1cls.csv``."""
    done, split = [], []
    for product in job.products:
        notes = []
        for key in (key for key in job.wanted() if key[0] == product):
            _, defect, i = key
            kind, stem = ("Normal", f"{i:04d}") if defect is None else ("Anomaly", f"{defect}_{i:03d}")
            image = f"{product}/Data/Images/{kind}/{stem}.JPG"
            mask = None if defect is None else f"{product}/Data/Masks/Anomaly/{stem}.png"
            done.append(job.save(key, image, mask, job.label(defect)))
            notes.append((image, defect or "normal", mask or ""))
            side = "train" if defect is None and i < (job.good + 1) // 2 else "test"
            split.append((product, side, kind.lower(), image, mask or ""))
        _write_csv(job.root / product / "image_anno.csv", [("image", "label", "mask"), *notes])
    _write_csv(job.root / "split_csv" / "1cls.csv", [("object", "split", "label", "image", "mask"), *split])
    return done


def _chip(job: Job) -> list[Picture]:
    """``product/train/<stem>.png`` (good) and ``product/test/{good,<type>}/<stem>.png``; no masks."""
    done = []
    for key in job.wanted():
        product, defect, i = key
        train = defect is None and i < (job.good + 1) // 2
        place = "train" if train else f"test/{defect or 'good'}"
        done.append(job.save(key, f"{product}/{place}/{i:03d}.png"))
    return done


def _flat(job: Job) -> list[Picture]:
    """``<stem>.png``, good parts of the first product only."""
    keys = [key for key in job.wanted() if key[0] == job.products[0] and key[1] is None]
    return [job.save(key, f"{key[0]}_{key[2]:03d}.png") for key in keys]


def _write_csv(path: Path, rows: Sequence[Sequence[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


LAYOUTS: dict[str, Callable[[Job], list[Picture]]] = {
    "mvtec": _mvtec,
    "pairs_binary": _pairs_binary,
    "pairs_index": _pairs_index,
    "classes": _classes,
    "support_query": _support_query,
    "table": _table,
    "magnetic_tile": _magnetic_tile,
    "vision": _vision,
    "vision_rle": _vision_rle,
    "defect_spectrum": _defect_spectrum,
    "visa": _visa,
    "chip": _chip,
    "flat": _flat,
}
"""Layout name -> writer."""
