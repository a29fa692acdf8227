"""Squares around defects as a data set of their own: what is small in a picture is large enough to learn.

``python -m benchmarks.crops <magnetic_tile> <new folder>`` cuts one square per defective picture, with the
middle of the defect somewhere in its middle half, and squares anywhere out of good pictures. The line that
reads it (``data=folder data.root=<new folder> data.reader...``) is printed. A tile stays in one split. Places
are drawn: the same squares every time.
"""

import argparse
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from fewspect.data.index import load_image, load_mask
from fewspect.data.readers import magnetic_tile
from fewspect.draws import rng
from fewspect.nn.windows import crop_box
from fewspect.types import Sample

CLASSES = ("MT_Blowhole", "MT_Crack", "MT_Break")
"""Classes with an outline; Fray and Uneven cover half a tile."""

SIDE, GOOD = 96, 100

Square = tuple[str, np.ndarray, np.ndarray | None, str]
"""File name, pixels (side, side, 3), labels (side, side) or None for a good one, group."""


def main() -> None:
    """Cut, write, and say how to read it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", help="folder of magnetic tiles")
    parser.add_argument("out", type=Path, help="folder to write; must not exist")
    parser.add_argument("--side", type=int, default=SIDE, help="side of the squares in pixels")
    parser.add_argument("--good", type=int, default=GOOD, help="squares of good pictures")
    parser.add_argument("--classes", nargs="*", default=CLASSES)
    options = parser.parse_args()
    number = cut(options.root, options.out, options.classes, side=options.side, good=options.good)
    print(f"{number} squares;", *overrides(options.out, options.classes))


def overrides(place: Path, classes: Sequence[str] = CLASSES) -> tuple[str, ...]:
    """How the framework reads such a folder."""
    names = f"data.reader.class_names=[{','.join(classes)}]"
    return (
        "data=folder",
        f"data.root={place}",
        "data.reader.layout=table",
        "data.reader.mask_type=index",
        names,
    )


def cut(root: str, out: Path, classes: Sequence[str] = CLASSES, *, side: int = SIDE, good: int = GOOD) -> int:
    """Write the squares, their masks and ``index.csv``; how many there are."""
    for part in ("images", "masks"):
        (out / part).mkdir(parents=True)
    samples = magnetic_tile.read(root).refuse("skip").samples
    rows = []
    for name, pixels, labels, group in (*_defects(samples, classes, side), *_good(samples, side, good)):
        row = {"image": f"images/{name}.png", "mask": "", "label": "good", "group": group}
        Image.fromarray(pixels).save(out / row["image"])
        if labels is not None:
            row |= {"mask": f"masks/{name}.png", "label": ""}
            Image.fromarray(labels).save(out / row["mask"])
        rows.append(row)
    with (out / "index.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, ("image", "mask", "label", "group"))
        table.writeheader()
        table.writerows(rows)
    return len(rows)


def _defects(samples: Sequence[Sample], classes: Sequence[str], side: int) -> Iterator[Square]:
    """A square per defective picture; none where the picture is smaller."""
    for number, sample in enumerate(samples):
        for name in sorted(set(sample.regions) & set(classes)):
            mask = load_mask(sample, name).numpy() == 1
            found = np.argwhere(mask)
            if min(mask.shape) >= side and len(found):
                row, column = (int(v) for v in found[len(found) // 2])
                down, right = rng(0, "crops", number).integers(side // 4, side - side // 4, 2)
                box = crop_box(row, column, *mask.shape, side, int(down), int(right))
                labels = _part(mask, box).astype(np.uint8) * np.uint8(1 + list(classes).index(name))
                yield f"{name}_{sample.image.stem}", _part(_pixels(sample), box), labels, sample.group


def _good(samples: Sequence[Sample], side: int, most: int) -> Iterator[Square]:
    """Squares anywhere out of good pictures, one each."""
    every = [s for s in samples if s.label == 0]
    for number in rng(0, "crops/good").permutation(len(every))[:most].tolist():
        sample = every[number]
        pixels = _pixels(sample)
        height, width = pixels.shape[:2]
        if min(height, width) >= side:
            draw = rng(0, "crops/good", number)
            top, left = int(draw.integers(height - side + 1)), int(draw.integers(width - side + 1))
            box = (top, top + side, left, left + side)
            yield f"good_{sample.image.stem}", _part(pixels, box), None, sample.group


def _pixels(sample: Sample) -> np.ndarray:
    return np.moveaxis(load_image(sample).numpy(), 0, -1)


def _part(array: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    top, bottom, left, right = box
    return np.ascontiguousarray(array[top:bottom, left:right])


if __name__ == "__main__":
    main()
