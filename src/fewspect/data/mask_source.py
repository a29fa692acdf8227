"""Masks for instances that come without one: the predictions of an earlier run.

``python run.py mode=predict run=<folder> ...`` writes masks and maps and a table that says which file each
belongs to. Probabilities count as soft masks, raw anomaly maps on the scale of the table's thresholds do not:
there the decided mask counts.
"""

import csv
import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fewspect.data.images import opened
from fewspect.data.instances import Instance
from fewspect.errors import UserError

TABLE = "predictions.csv"
DEPTH = 65535


class MaskSource:
    """Predictions of one run.

    Args:
        run: Run folder, or any folder with a ``predictions.csv`` below.

    Raises:
        UserError: There are no predictions.
    """

    def __init__(self, run: str | Path) -> None:
        tables = sorted(Path(run).rglob(TABLE), key=lambda p: p.stat().st_mtime) if Path(run).is_dir() else []
        if not tables:
            raise UserError(
                f"{run}: no predictions in this folder.",
                f"Make them: python run.py mode=predict run={run} data.root=<images>.",
            )
        self.rows: dict[str, tuple[Path, dict[str, str]]] = {}
        for table in tables:  # the newest wins
            with table.open(newline="", encoding="utf-8") as file:
                self.rows |= {
                    str(Path(row["file"]).resolve()): (table.parent, row)
                    for row in csv.DictReader(file)
                    if row.get("status") == "ok"
                }
        told = "".join(sorted(hashlib.sha256(t.read_bytes()).hexdigest() for t in tables))
        self.digest = hashlib.sha256(told.encode()).hexdigest()[:16]

    def of(self, instance: Instance, image: Tensor) -> Tensor | None:
        """Mask (H, W) uint8, 0 to 255, for an instance without regions; None where it has its own.

        Raises:
            UserError: The run did not see this image, or its mask has another size.
        """
        if instance.regions:
            return None
        found = self.rows.get(str(instance.sample.image.resolve()))
        if found is None:
            raise UserError(
                f"{instance.sample.image}: the run that masks are taken from did not see this image.",
                "Predict these images with that run first.",
            )
        folder, row = found
        mask = _read(folder, row)
        if mask.shape != image.shape[-2:]:
            raise UserError(
                f"{instance.sample.image}: the predicted mask is {tuple(mask.shape)}, the image "
                f"{tuple(image.shape[-2:])} (height, width).",
                "Predict these images again.",
            )
        return mask


def _read(folder: Path, row: dict[str, str]) -> Tensor:
    """The probability as a soft mask where the map is one, else the decided mask."""
    path = folder / "prob" / f"{row['name']}.png"
    if (row.get("map_low"), row.get("map_high")) == ("0.0", "1.0") and path.is_file():
        with opened(path) as image:
            values = np.asarray(image, dtype=np.float64)
        return torch.from_numpy(np.rint(values * (255 / DEPTH)).astype(np.uint8))
    with opened(folder / "mask" / f"{row['name']}.png") as image:
        return torch.from_numpy(np.asarray(image.convert("L") if image.mode != "L" else image).copy())
