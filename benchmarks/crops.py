"""Squares around defects as a data set of their own: what is small in a picture is large enough to learn.

``python -m benchmarks.crops <magnetic_tile> <new folder>`` cuts one square per defective picture, centred on
the defect as far as the border allows; ``data=folder data.root=<new folder> data.reader.mask_type=index
data.reader.class_names=[...]`` reads it (the line is printed). A tile stays in one split.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from PIL import Image

from fewspect.data.index import load_image, load_mask
from fewspect.data.readers import magnetic_tile
from fewspect.nn.windows import crop_box

CLASSES = ("MT_Blowhole", "MT_Crack", "MT_Break")
"""Classes with an outline; Fray and Uneven cover half a tile."""


def main() -> None:
    """Cut, write, and say how to read it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", help="folder of magnetic tiles")
    parser.add_argument("out", type=Path, help="folder to write; must not exist")
    parser.add_argument("--side", type=int, default=96, help="side of the squares in pixels")
    parser.add_argument("--classes", nargs="*", default=CLASSES)
    options = parser.parse_args()
    for part in ("images", "masks"):
        (options.out / part).mkdir(parents=True)
    index = magnetic_tile.read(options.root).refuse("skip")
    rows = []
    for sample in index.samples:
        for name in set(sample.regions) & set(options.classes):
            square = _cut(load_image(sample).numpy(), load_mask(sample, name).numpy(), options.side)
            if square is None:
                continue
            pixels, mask = square
            file = f"{name}_{sample.image.stem}.png"
            Image.fromarray(pixels).save(options.out / "images" / file)
            label = np.uint8(1 + list(options.classes).index(name))
            Image.fromarray(mask * label).save(options.out / "masks" / file)
            rows.append({"image": f"images/{file}", "mask": f"masks/{file}", "group": sample.group})
    with (options.out / "index.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, ("image", "mask", "group"))
        table.writeheader()
        table.writerows(rows)
    names = ",".join(options.classes)
    print(f"{len(rows)} squares; data=folder data.root={options.out} data.reader.mask_type=index", end=" ")
    print(f"data.reader.class_names=[{names}]")


def _cut(image: np.ndarray, mask: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Pixels and mask of the square around a defect's middle pixel; None where the picture is smaller."""
    found = np.argwhere(mask == 1)
    if min(mask.shape) < side or not len(found):
        return None
    row, column = found[len(found) // 2]
    height, width = mask.shape
    half = side // 2
    top, bottom, left, right = crop_box(int(row), int(column), height, width, side, half, half)
    pixels = np.ascontiguousarray(np.moveaxis(image[:, top:bottom, left:right], 0, -1))
    return pixels, (mask[top:bottom, left:right] == 1).astype(np.uint8)


if __name__ == "__main__":
    main()
