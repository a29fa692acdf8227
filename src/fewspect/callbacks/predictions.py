"""Predictions on disk: one 16-bit probability map, mask and overlay per image, and one CSV row.

Layout of the folder: ``prob/<name>.png`` (0..65535 = ``map_low``..``map_high`` of the table: 0..1 for
probabilities, the range of its own values for a raw anomaly map), ``mask/<name>.png`` (0 or 255; class
labels 0, 1, 2, ... of a supervised segmenter, whose names are in the column ``labels``),
``overlay/<name>.png``, all at the original size, and ``predictions.csv`` (UTF-8), flushed after every
batch, so a crash loses no finished image. The functions work without a trainer.
"""
# ruff: noqa: ARG002 - the signatures are those of the hooks

import csv
import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from scipy import ndimage
from torch import Tensor

from fewspect.callbacks import draw
from fewspect.callbacks.classes import answer_rows
from fewspect.callbacks.files import Names, write_atomic
from fewspect.callbacks.panels import pairs, write_png
from fewspect.errors import UserError
from fewspect.types import Episode, Prediction

COLUMNS: tuple[str, ...] = (
    "file", "class", "status", "reason", "score", "calibrated", "decision", "area_pixels", "area_fraction",
    "components", "boxes", "map_low", "map_high", "seconds", "name", "probability", "episode", "labels",
)  # fmt: skip
DEPTH = 65535
TABLE = "predictions.csv"
PARTS = ("prob", "mask", "overlay")

Row = dict[str, str | int | float]


def probability_image(prob: np.ndarray) -> Image.Image:
    """(H, W) in [0, 1] as 16-bit grey; reads back within 0.5 / 65535."""
    return Image.fromarray(np.rint(prob.astype(np.float64).clip(0, 1) * DEPTH).astype(np.uint16))


def regions(mask: np.ndarray) -> list[list[int]]:
    """Boxes [x, y, width, height] of the connected regions (8-neighbourhood) of a boolean (H, W) mask."""
    label, _ = draw.components(mask)
    return [[c.start, r.start, c.stop - c.start, r.stop - r.start] for r, c in ndimage.find_objects(label)]


def failed_row(file: str, reason: str) -> Row:
    """Row of an image that could not be judged."""
    return {"file": file, "status": "failed", "reason": " ".join(reason.split())}


def describe(prediction: Prediction, mask: np.ndarray) -> Row:
    """Numbers of one image: score, decision, area and regions.

    ``decision`` is ``defect`` or ``good``: the method's own if it decides, else whether any pixel is marked.
    ``calibrated`` is the share of good images with a lower score.
    """
    boxes = regions(mask)
    defect = bool(mask.any()) if prediction.decision is None else bool(prediction.decision[0])
    score = {} if prediction.score is None else {"score": float(prediction.score[0])}
    if "calibrated" in prediction.extra:
        score["calibrated"] = round(float(prediction.extra["calibrated"][0]), 6)
    return {
        "status": "ok",
        **score,
        "decision": "defect" if defect else "good",
        "area_pixels": int(mask.sum()),
        "area_fraction": round(float(mask.mean()), 9),
        "components": len(boxes),
        "boxes": json.dumps(boxes, separators=(",", ":")),
    }


def write_prediction(folder: Path | str, name: str, image: Tensor, prediction: Prediction) -> Row:
    """Write the pictures of one image and describe it.

    Args:
        folder: Where to; ``prob``, ``mask`` and ``overlay`` are made inside.
        name: File name without ending, already safe and unique (see ``files.Names``).
        image: (3, H, W) uint8 or float in [0, 1], original size.
        prediction: Q = 1, maps of the size of the image; parts that are missing are not written.

    Returns:
        The CSV row without ``file``, ``class`` and ``seconds``; ``status`` is ``failed`` when a number is
        not finite.
    """
    folder, grey = Path(folder), draw.to_array(image)
    prob = None if prediction.prob is None else prediction.prob[0].detach().float().cpu().numpy()
    if prob is not None and not np.isfinite(prob).all():
        return failed_row("", "the probability map holds values that are not numbers") | {"name": name}
    mask = np.zeros(grey.shape[:2], bool) if prob is None else prob >= 0.5
    if prediction.mask is not None:
        mask = prediction.mask[0].cpu().numpy() > 0
    limits: Row = {}
    if prob is not None:
        low, high = (0.0, 1.0) if prediction.scale == (0.0, 1.0) else (float(prob.min()), float(prob.max()))
        scaled = (prob - low) / ((high - low) or 1.0)
        write_png(probability_image(scaled), folder / "prob" / f"{name}.png")
        limits = {"map_low": low, "map_high": high}
    values = mask.astype(np.uint8) * 255
    marked = draw.outline(draw.overlay(grey, mask, alpha=0.35), mask, draw.PREDICTION)
    if prediction.labels and prediction.mask is not None:
        values = prediction.mask[0].cpu().numpy().astype(np.uint8)
        marked = draw.tint(grey, values)
        limits |= shown_labels(values, prediction.labels)
    write_png(Image.fromarray(values), folder / "mask" / f"{name}.png")
    write_png(Image.fromarray(marked), folder / "overlay" / f"{name}.png")
    return describe(prediction, mask) | limits | {"name": name}


def shown_labels(values: np.ndarray, names: tuple[str, ...]) -> Row:
    """Which classes a label mask (H, W) shows: their names, and label, name and pixels of each as JSON."""
    found = [(k, names[k - 1], int((values == k).sum())) for k in np.unique(values).tolist() if k]
    listed = [{"label": k, "name": name, "pixels": pixels} for k, name, pixels in found]
    shown = "+".join(name for _, name, _ in found)
    return {"class": shown or "good", "labels": json.dumps(listed, ensure_ascii=False)}


class Table:
    """A CSV file that grows row by row and is flushed every time.

    Args:
        path: The file; an old one is replaced.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.file = path.open("w", newline="", encoding="utf-8", errors="backslashreplace")
        self.writer = csv.DictWriter(self.file, COLUMNS, restval="")
        self.writer.writeheader()
        self.file.flush()

    def add(self, rows: Iterable[Mapping[str, object]]) -> None:
        """Append rows and hand them to the system."""
        self.writer.writerows(rows)
        self.file.flush()

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def join_tables(parts: list[Path], path: Path) -> None:
    """Write the rows of several tables as one, atomically, and remove the parts."""
    texts = [part.read_bytes() for part in parts]
    bodies = [text.partition(b"\r\n")[2] for text in texts]
    header = texts[0].partition(b"\r\n")[0] + b"\r\n"
    write_atomic(path, lambda file: file.write(header + b"".join(bodies)))
    for part in parts:
        part.unlink()


class Predictions(Callback):
    """Write what ``predict`` answers.

    Args:
        folder: Where to; default ``<default_root_dir>/predictions``. Must not be a folder that holds inputs.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder
        self._began = 0.0

    def _start(self, trainer: Trainer) -> None:
        self._path = Path(self.folder or Path(trainer.default_root_dir) / "predictions")
        several = trainer.world_size > 1
        self._names = Names(always=several)
        self._part = self._path / (f"rank{trainer.global_rank}.{TABLE}" if several else TABLE)
        self._table: Table | None = None

    def _add(self, rows: Iterable[Mapping[str, object]]) -> None:
        """Add rows; the file is opened late, when the inputs are known to lie elsewhere."""
        self._table = self._table or Table(self._part)
        self._table.add(rows)

    def _write(self, outputs: object) -> None:
        found = pairs(outputs)
        spent = (time.perf_counter() - self._began) / max(1, len(found))
        for episode, prediction in found:
            if prediction.logits is not None:
                rows = answer_rows(episode, prediction)
                self._add(row | {"seconds": round(spent / len(rows), 6)} for row in rows)
                continue
            self._add([self._one(episode, prediction) | {"seconds": round(spent, 4)}])

    def _one(self, episode: Episode, prediction: Prediction) -> Row:
        file = episode.paths[0] if episode.paths else f"episode_{episode.index:05d}"
        if Path(file).parent.resolve() in {
            self._path.resolve(),
            *((self._path / p).resolve() for p in PARTS),
        }:
            raise UserError(
                f"predictions would be written beside their inputs in {self._path}", "Choose another folder."
            )
        name = self._names(Path(file).stem, f"{file}|{episode.name}|{episode.index}")
        row = write_prediction(self._path, name, episode.query_image[0], prediction)
        return {"class": episode.name.strip("/"), **row, "file": file}

    def _end(self, trainer: Trainer) -> None:
        self._add([])
        if self._table is not None:
            self._table.close()
        if trainer.world_size > 1:
            trainer.strategy.barrier("predictions")
            if trainer.is_global_zero:
                parts = [self._path / f"rank{rank}.{TABLE}" for rank in range(trainer.world_size)]
                join_tables(parts, self._path / TABLE)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the table."""
        self._start(trainer)

    def on_predict_batch_start(self, *args: object, **kwargs: object) -> None:
        """Start the clock."""
        self._began = time.perf_counter()

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, *rest: object, **kwargs: object
    ) -> None:
        """Write the answers of one batch."""
        self._write(outputs)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the table; join those of all processes."""
        self._end(trainer)
