"""``episodes.csv``: one row per test episode, so that two methods can be compared on what both were asked.

Every number in it is a count or a raw score: whoever reads it can compute metrics of any subset again.
"""
# ruff: noqa: ARG002 - the signatures are those of the hooks

import csv
import io
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from fewspect.callbacks.classes import answers
from fewspect.callbacks.files import write_atomic
from fewspect.callbacks.panels import pairs
from fewspect.types import IGNORE, Episode, Prediction

FILE = "episodes.csv"
COLUMNS = (
    "index", "class", "query", "label", "score", "decision", "correct", "intersection", "union", "product",
)  # fmt: skip
PATH_PARTS = 3
"""Last parts of a path that name an image; the folders above belong to a machine."""

Row = dict[str, str | int | float]


class Episodes(Callback):
    """Write the table at the end of a test; under DDP the first process writes the rows of all.

    Args:
        folder: Where to.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._rows: list[Row] = []

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the last test."""
        self._rows = []

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, *rest: object, **kwargs: object
    ) -> None:
        """Keep one row per episode."""
        self._rows += [row(episode, prediction) for episode, prediction in pairs(outputs)]

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write all rows in the order of the episodes."""
        every = [self._rows]
        if trainer.world_size > 1:
            every = [[] for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(every, self._rows)
        rows = sorted((r for part in every for r in part), key=lambda r: (int(r["index"]), str(r["query"])))
        if trainer.is_global_zero and rows:
            text = io.StringIO(newline="")
            writer = csv.DictWriter(text, list[str](COLUMNS), restval="")
            writer.writeheader()
            writer.writerows(rows)
            write_atomic(Path(self.folder) / FILE, lambda file: file.write(text.getvalue().encode("utf-8")))


def row(episode: Episode, prediction: Prediction) -> Row:
    """What an episode asked and what was answered.

    ``correct`` is the share of right answers in [0, 1]: of the queries of a known class where there are
    logits (a rejected one is wrong; blank where none has a known class), else of the image's decision.
    ``intersection`` and ``union`` count pixels of the class, ignored ones left out; masks of several labels
    have none, their classes are counted apart.
    """
    asked = Path(episode.paths[0]) if episode.paths else Path(str(episode.index))
    found: Row = {
        "index": episode.index,
        "class": episode.name.strip("/"),
        "query": "/".join(asked.parts[-PATH_PARTS:]),
        "label": int(episode.query_label[0]),
        "product": episode.product,
    }
    if prediction.score is not None:
        found["score"] = float(prediction.score[0])
    if prediction.logits is not None:
        known = episode.query_label.cpu() > 0
        if known.any():
            said = torch.tensor(answers(prediction)[0])
            found["correct"] = float((said == episode.query_label.cpu())[known].double().mean())
    elif prediction.decision is not None:
        found["decision"] = int(prediction.decision[0])
        found["correct"] = float(bool(prediction.decision[0]) == bool(episode.query_label[0] > 0))
    mask = None if prediction.labels else prediction.mask
    if mask is not None and mask.shape == episode.query_mask.shape:
        known = episode.query_mask != IGNORE
        truth, marked = (episode.query_mask > 0) & known, (mask > 0) & known
        found["intersection"] = int((truth & marked).sum())
        found["union"] = int((truth | marked).sum())
    return found
