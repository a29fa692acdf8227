"""Pictures of what the method saw and said: support | query | truth | probability | prediction | detail.

A method without support that rebuilds its query shows the reconstruction in the place of the support; raw
anomaly maps are drawn on the scale that the method gives.

Validation: one sheet of the first ``count`` episodes per epoch (the same ones each time). Test: the ``count``
worst episodes, one file each, whose names sort the worst first, and a sheet; of a classifier the most
confident mistakes. All goes to ``<run>/panels``
and to every logger that offers ``log_image``.
"""
# ruff: noqa: ARG002 - the signatures are those of the hooks

import heapq
from pathlib import Path

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from torch import Tensor

from fewspect.callbacks import draw
from fewspect.callbacks.classes import Mistakes
from fewspect.callbacks.files import safe_name, write_atomic
from fewspect.types import IGNORE, Episode, Prediction


def agreement(predicted: np.ndarray, truth: np.ndarray) -> float:
    """IoU of two boolean masks; two empty masks agree (1)."""
    union = np.logical_or(predicted, truth).sum()
    return float(np.logical_and(predicted, truth).sum() / union) if union else 1.0


def query_arrays(episode: Episode, prediction: Prediction) -> tuple[np.ndarray, ...]:
    """Query image, truth, valid, probability and decided mask of the first query as arrays."""
    image = draw.to_array(episode.query_image[0])
    target = episode.query_mask[0].cpu().numpy()
    shape = image.shape[:2]
    prob = (
        np.zeros(shape, np.float32) if prediction.prob is None else prediction.prob[0].float().cpu().numpy()
    )
    mask = prob >= 0.5 if prediction.mask is None else prediction.mask[0].cpu().numpy() > 0
    return image, (target > 0) & (target != IGNORE), target != IGNORE, prob, mask


def panel(episode: Episode, prediction: Prediction, side: int = draw.TILE) -> Image.Image:
    """Draw one episode; wide queries are stacked at twice the length."""
    image, truth, valid, prob, mask = query_arrays(episode, prediction)
    stacked = image.shape[1] > draw.WIDE * image.shape[0]
    long = 2 * side if stacked else side
    query, aim, found = draw.fit(image, long), draw.fit_mask(truth, long), draw.fit_mask(mask, long)
    rows, columns = draw.zoom_box(truth if truth.any() else mask)
    inset = [draw.fit(image[rows, columns], side), draw.fit_mask(truth[rows, columns], side)]
    inset_found = draw.fit_mask(mask[rows, columns], side)
    low, high = prediction.scale
    kind = "probability" if (low, high) == (0.0, 1.0) else "anomaly map"
    labels = prediction.mask if prediction.labels else None
    tinted = draw.overlay(query, found) if labels is None else label_tile(image, labels, long)
    outlined = draw.outline(query, aim) if labels is None else label_tile(image, episode.query_mask, long)
    tiles = [
        *given_tiles(episode, prediction, side),
        ("query", query),
        ("truth", outlined),
        (f"{kind}, max {prob.max(initial=0):.3g}", draw.fit(draw.heat((prob - low) / (high - low)), long)),
        ("prediction + truth", draw.outline(tinted, aim, width=1)),
        ("detail", draw.outline(draw.overlay(inset[0], inset_found), inset[1])),
    ]
    score = "" if prediction.score is None else f"   score {float(prediction.score[0]):.3g}"
    if prediction.decision is not None:
        score += " (defect)" if bool(prediction.decision[0]) else " (good)"
    iou = agreement(mask & valid, truth & valid)
    file = Path(episode.paths[0]).name if episode.paths else ""
    name = f"{episode.product}/{'+'.join(episode.shown)}" if episode.shown else episode.name
    return draw.strip(tiles, f"{name}   IoU {iou:.2f}{score}   {file}", stacked)


def given_tiles(episode: Episode, prediction: Prediction, side: int) -> list[draw.Tile]:
    """The support, or the reconstruction of methods without one."""
    if len(episode.support_mask):
        return [("support", support_tile(episode, side))]
    if prediction.image is None:
        return []
    return [("reconstruction", draw.fit(draw.to_array(prediction.image[0]), side))]


def label_tile(image: np.ndarray, labels: Tensor, side: int) -> np.ndarray:
    """The image with the classes of a label mask (1, H, W) in their colours."""
    values = labels[0].cpu().numpy()
    return draw.fit(draw.tint(image, np.where(values == IGNORE, 0, values)), side)


def support_tile(episode: Episode, side: int) -> np.ndarray:
    """First support view that shows the class (else the first), its mask outlined."""
    shown = episode.support_mask.flatten(1).any(1).cpu().numpy()
    best = int(np.argmax(shown))
    mask = episode.support_mask[best].cpu().numpy() == 1
    return draw.outline(draw.fit(draw.to_array(episode.support_image[best]), side), draw.fit_mask(mask, side))


class Panels(Callback):
    """Draw episodes while validating and testing.

    Args:
        every_n_epochs: Validation epochs between two sheets; 0 = test only.
        count: Episodes per sheet.
        folder: Where to; default ``<default_root_dir>/panels``.
    """

    def __init__(self, every_n_epochs: int = 1, count: int = 8, folder: str | None = None) -> None:
        self.every_n_epochs, self.count, self.folder = every_n_epochs, count, folder
        self._strips: list[Image.Image] = []
        self._worst: list[tuple[float, int, str, Image.Image]] = []  # heap: the best of the worst on top
        self._mistakes = Mistakes(count)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start a sheet."""
        self._strips = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        *rest: object,
        **kwargs: object,
    ) -> None:
        """Draw the first ``count`` episodes of this epoch (first process only)."""
        due = self.every_n_epochs > 0 and trainer.current_epoch % self.every_n_epochs == 0
        if trainer.is_global_zero and due and not trainer.sanity_checking:
            room = max(0, self.count - len(self._strips))
            drawn = [pair for pair in pairs(outputs) if pair[1].logits is None]
            self._strips += [panel(*pair) for pair in drawn[:room]]

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the sheet."""
        if self._strips:
            path = self._folder(trainer) / f"val_epoch_{trainer.current_epoch:04d}.png"
            self._publish(trainer, "panels/val", path, draw.sheet(self._strips))
        self._strips = []

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        *rest: object,
        **kwargs: object,
    ) -> None:
        """Keep the panels of the worst episodes so far."""
        for episode, prediction in pairs(outputs):
            if prediction.logits is not None:
                self._mistakes.add(episode, prediction)
                continue
            _, truth, valid, _, mask = query_arrays(episode, prediction)
            iou = agreement(mask & valid, truth & valid)
            rank = (-iou, -episode.index)
            if len(self._worst) < self.count or rank > self._worst[0][:2]:
                name = f"{episode.index:05d}_{safe_name(episode.name)}"
                push = heapq.heappush if len(self._worst) < self.count else heapq.heapreplace
                push(self._worst, (*rank, name, panel(episode, prediction)))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the worst episodes, one file each, and a sheet of them (first process)."""
        worst = sorted(self._worst, key=lambda entry: entry[:2], reverse=True)
        for iou, _, name, image in worst:
            write_png(image, self._folder(trainer) / f"test_iou_{-iou:.3f}_{name}.png")
        if worst and trainer.is_global_zero:
            page = draw.sheet([entry[3] for entry in worst])
            self._publish(trainer, "panels/test", self._folder(trainer) / "test_failures.png", page)
        if (mistakes := self._mistakes.page()) is not None and trainer.is_global_zero:
            self._publish(trainer, "panels/test", self._folder(trainer) / "test_mistakes.png", mistakes)
        self._worst, self._mistakes = [], Mistakes(self.count)

    def _folder(self, trainer: Trainer) -> Path:
        return Path(self.folder or Path(trainer.default_root_dir) / "panels")

    def _publish(self, trainer: Trainer, key: str, path: Path, image: Image.Image) -> None:
        """Write a picture and hand it to the loggers that take pictures."""
        write_png(image, path)
        for logger in trainer.loggers:
            log_image = getattr(logger, "log_image", None)
            if log_image is not None:
                log_image(key=key, images=[image], caption=[path.stem])


def pairs(outputs: object) -> list[tuple[Episode, Prediction]]:
    """Read (episode, prediction) pairs from what a step returned."""
    if not isinstance(outputs, dict):
        return []
    return list(zip(outputs.get("episodes", ()), outputs.get("predictions", ()), strict=True))


def write_png(image: Image.Image, path: Path) -> None:
    """Write a picture atomically."""
    write_atomic(path, lambda file: image.save(file, format="PNG", compress_level=3))
