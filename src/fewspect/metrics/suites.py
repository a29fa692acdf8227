"""The metrics of a task as one module: Lightning moves it, torchmetrics gathers it, methods call ``update``.

Example:
    >>> measure = suite("segment", detect=False)
    >>> measure.update(prediction, episode)  # doctest: +SKIP
    >>> measure.compute()["miou"]  # doctest: +SKIP
"""

from torch import Tensor, nn

from fewspect.errors import UserError
from fewspect.metrics.classification import ClassCounts, Matrix
from fewspect.metrics.decisions import DefectTypes, ImageDecision
from fewspect.metrics.detection import ImageRanking, PixelRanking
from fewspect.metrics.labels import LabelCounts
from fewspect.metrics.rows import RowMetric
from fewspect.metrics.segmentation import SegmentationCounts
from fewspect.types import Episode, Prediction

TASKS = ("segment", "label", "detect", "classify", "generate")
LOWER_IS_BETTER = ("miou_ci95", "accuracy_ci95", "macro_recall_ci95", "false_alarm_rate")
"""Reported beside the scores, but smaller is better; counts have no direction."""


class Suite(nn.Module):
    """Several metrics with flat names and one table.

    Attributes:
        metrics: The parts; each is a ``torchmetrics.Metric`` with ``table`` and ``notes``.
    """

    higher_is_better = True

    def __init__(self, *metrics: RowMetric) -> None:
        super().__init__()
        self.metrics = nn.ModuleList(metrics)

    def parts(self) -> list[RowMetric]:
        """The metrics with their type."""
        return [metric for metric in self.metrics if isinstance(metric, RowMetric)]

    def update(self, prediction: Prediction, episode: Episode) -> None:
        """Count the Q queries of one episode."""
        for metric in self.parts():
            metric.update(prediction, episode)

    def compute(self) -> dict[str, Tensor]:
        """All values, gathered over processes (every process must call this); undefined ones are absent."""
        return {key: value for metric in self.parts() for key, value in metric.compute().items()}

    def table(self) -> list[dict[str, str | int | float]]:
        """One row per class or product (key ``class``) of the last ``compute``."""
        rows: dict[str, dict[str, str | int | float]] = {}
        for metric in self.parts():
            for row in metric.table:
                rows.setdefault(str(row["class"]), {}).update(row)
        return [rows[name] for name in sorted(rows)]

    def printed(self) -> dict[str, list[dict[str, str | int | float]]]:
        """Title -> rows of the last ``compute`` with the columns to show; the main table has no title."""
        tables: dict[str, dict[str, dict[str, str | int | float]]] = {"": {}}
        for metric in self.parts():
            rows = tables.setdefault(metric.title, {})
            for row in metric.table:
                kept = {k: v for k, v in row.items() if metric.shown is None or k in ("class", *metric.shown)}
                rows.setdefault(str(row["class"]), {}).update(kept)
        return {title: [rows[name] for name in sorted(rows)] for title, rows in tables.items()}

    def notes(self) -> list[str]:
        """What the last ``compute`` left out, one sentence each."""
        return [note for metric in self.parts() for note in metric.notes]

    def matrices(self) -> dict[str, Matrix]:
        """Product -> class names and confusion counts of the last ``compute``."""
        return {k: v for m in self.parts() if isinstance(m, ClassCounts) for k, v in m.matrices.items()}

    def episodes(self) -> list[dict[str, str | int | float]]:
        """One row per episode of the last ``compute``, for paired comparisons."""
        return [row for m in self.parts() if isinstance(m, ClassCounts) for row in m.episodes]

    def reset(self) -> None:
        """Forget everything."""
        for metric in self.parts():
            metric.reset()


def suite(task: str, detect: bool) -> Suite:
    """Choose the metrics of a task.

    Args:
        task: ``segment``, ``label`` (every pixel gets a class), ``detect``, ``classify``, or ``generate``,
            which answers nothing to be measured.
        detect: The method sees good images only: rank pixels and images and judge its decisions, besides the
            overlap of masks.
    """
    if task not in TASKS:
        raise UserError(f"there are no metrics for the task {task!r}", f"Known tasks: {', '.join(TASKS)}.")
    if task == "generate":
        return Suite()
    if task == "label":
        return Suite(LabelCounts())
    if task == "classify":
        return Suite(ClassCounts())
    if detect or task == "detect":
        counts = SegmentationCounts(by_product=True)
        return Suite(PixelRanking(), ImageRanking(), ImageDecision(), counts, DefectTypes())
    return Suite(SegmentationCounts())
