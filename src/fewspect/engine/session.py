"""One run with everything it needs, and its honest end: status, state of the loggers, table, run folder."""

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from fewspect.callbacks.classes import confusion, views_page
from fewspect.callbacks.draw import sheet
from fewspect.callbacks.episodes import Episodes
from fewspect.callbacks.files import safe_name
from fewspect.callbacks.gallery import Gallery
from fewspect.callbacks.nan_guard import NanGuard
from fewspect.callbacks.panels import Panels, write_png
from fewspect.callbacks.predictions import Predictions
from fewspect.callbacks.record import FILE, LONGEST_ERROR, Record, read_record, write_record
from fewspect.data.module import DataModule
from fewspect.engine import build, checkpoints, loggers, tables
from fewspect.engine.front import Stopped
from fewspect.errors import UserError
from fewspect.methods.base import Method
from fewspect.metrics.suites import Suite
from fewspect.report.records import CHOICES
from fewspect.report.tables import is_better_high

log = logging.getLogger(__name__)

LOST = re.compile(r"DataLoader worker \(pid.* (exited unexpectedly|is killed by signal)")
UNMEASURED = re.compile(r"monitor='([^']+)'\)\W*could not find the monitored key")
"""Lightning's complaint that what is to be best was not measured."""

Stage = Literal["test", "predict"]


@dataclass(frozen=True, slots=True)
class Session:
    """Everything that one mode works with."""

    tree: dict[str, Any]
    folder: Path
    data: DataModule
    method: Method
    trainer: pl.Trainer
    record: Record


@contextmanager
def concluded(tree: dict[str, Any], folder: Path, stage: Stage) -> Iterator[Session]:
    """Build a session; whatever happens inside, ``run.json`` and the loggers say how it ended."""
    build.require_mode(tree)
    checkpoints.stop_at_once()
    curves: list[Logger] = []
    record: Record | None = None
    try:
        data, method = build.parts(tree)
        direction = direction_of(tree["objective"])
        curves = loggers.build(folder, tree, choices=chosen(), direction=direction, **tree["logger"])
        session = assemble(tree, folder, stage, curves=curves, data=data, method=method)
        record = session.record
        yield session
    except BaseException as caught:
        error = _told(caught)
        status = "interrupted" if isinstance(error, Stopped | KeyboardInterrupt) else "failed"
        text = f"{type(error).__name__}: {error}"[:LONGEST_ERROR]
        try:
            if record is not None and record.record:
                record.finish(session.trainer, status, error=text)
            else:
                path = folder / FILE
                write_record(path, {**read_record(path), "status": status, "error": text})
        except OSError as full:  # the disk that ended the run
            log.warning("%s does not say how the run ended: %s", folder / FILE, full)
        loggers.finish(curves, 1)
        if error is caught:
            raise
        raise error from caught
    loggers.finish(curves, 0)


def _told(error: BaseException) -> BaseException:
    """An error in the user's words where it has a known cause."""
    if isinstance(error, RuntimeError) and LOST.search(str(error)):
        return UserError(
            f"A loader process ended: {str(error).splitlines()[0]}",
            "Memory may have run out: lower data.workers or data.batch_size, then run=<folder> resume=true.",
        )
    if isinstance(error, RuntimeError):
        return checkpoints.misfit(error)
    if isinstance(error, MisconfigurationException) and (found := UNMEASURED.search(str(error))):
        return UserError(
            f"The validation gave no {found[1]}: no image in it shows a defect, or is taken for one.",
            "Let defects validate (mode=check shows the splits), or name another value: objective=val/...",
        )
    return error


def assemble(
    tree: dict[str, Any],
    folder: Path,
    stage: Stage,
    *,
    curves: list[Logger],
    data: DataModule,
    method: Method,
) -> Session:
    """Make callbacks and trainer.

    Args:
        tree: What ``build.resolve`` returned.
        folder: The run folder.
        stage: The stage that concludes the run.
        curves: Loggers.
        data: The data.
        method: The method, which knows the data.

    Raises:
        UserError: The trainer is to clip gradients of a method that steps its optimisers itself.
    """
    if method.fit_kind != "gradient":  # nothing to clip: the trainer's default is not the user's wish
        tree = {**tree, "trainer": {**tree["trainer"], "gradient_clip_val": None}}
    if tree["trainer"].get("gradient_clip_val") and not method.automatic_optimization:
        raise UserError(
            f"{type(method).__name__} has no gradient that the trainer could clip.",
            "Set trainer.gradient_clip_val=null.",
        )
    if tree["compile"]:
        for child in method.children():
            child.compile()
    objective, direction = tree["objective"], direction_of(tree["objective"])
    record = Record(objective, direction, facts(tree), stage, str(folder))
    callbacks: list[Callback] = [
        record,
        checkpoints.Keeper(folder),
        NanGuard(),
        Panels(folder=str(folder / "panels")),
        Episodes(str(folder)),
        Gallery(str(folder / "panels")),
    ]
    callbacks += [RichProgressBar()] if sys.stdout.isatty() else [EpochLine("train/loss", objective)]
    callbacks += [Predictions(folder=str(folder / "predictions"))] if stage == "predict" else []
    callbacks += [checkpoints.best(folder, objective, direction)]
    ours = {
        "default_root_dir": folder,
        "logger": curves,
        "callbacks": callbacks,
        "plugins": [checkpoints.AtomicIO()],
        "use_distributed_sampler": False,  # ours shard without padding
        "enable_progress_bar": sys.stdout.isatty(),
        "enable_model_summary": False,
    }
    return Session(tree, folder, data, method, pl.Trainer(**{**ours, **tree["trainer"]}), record)


def report(session: Session) -> float | None:
    """Show the result, name the run folder, return the objective."""
    suite = dict(getattr(session.method, "metrics", {})).get("test_suite")
    reached = {k: float(v) for k, v in session.trainer.callback_metrics.items() if k.startswith("test/")}
    if session.trainer.is_global_zero:
        if suite is not None and reached:
            totals = {k.removeprefix("test/"): v for k, v in reached.items()}
            tables.save(suite.table(), session.folder)
            loggers.show_table(session.trainer.loggers, suite.table())
            _keep_classes(suite, session.folder, session.data)
            tables.show(suite.printed(), totals, suite.notes(), "test")
        tables.farewell(session.folder)
    objective = session.record.record.get("objective", {}).get("value")
    return (
        objective
        if objective is not None
        else reached.get(f"test/{session.tree['objective'].rpartition('/')[2]}")
    )


def _keep_classes(suite: Suite, folder: Path, data: DataModule) -> None:
    """What a classifier's test leaves beside the table: a row per episode, confusion and what was seen."""
    if episodes := suite.episodes():
        tables.save(episodes, folder, tables.SAMPLINGS)
    for product, (names, matrix) in suite.matrices().items():
        if names:
            path = folder / "panels" / f"confusion_{safe_name(product)}.png"
            write_png(confusion(names, matrix, f"{product}, all episodes"), path)
    if pages := [views_page(*example) for example in data.source.examples()]:
        write_png(sheet(pages), folder / "panels" / "views.png")


def direction_of(objective: str) -> Literal["max", "min"]:
    """Whether more of a metric is better: errors, losses and intervals want to be small."""
    return "max" if is_better_high(objective) else "min"


def facts(tree: dict[str, Any]) -> dict[str, Any]:
    """What ``run.json`` says about the config."""
    names = {
        key: tree[key]["_target_"]
        for key in ("method", "data", "backbone")
        if "_target_" in tree.get(key, {})
    }
    told = {key: tree[key] for key in ("seed", "mode", "name", "tags")}
    return {**names, **told, "choices": chosen(), "config": tree}


def chosen() -> dict[str, str]:
    """Names of the files that were chosen for this run, e.g. ``{"method": "sofs"}``; empty without Hydra."""
    if not HydraConfig.initialized():
        return {}
    choices = HydraConfig.get().runtime.choices
    return {g: str(choices[g]) for g in CHOICES if choices.get(g) not in (None, "null")}


class EpochLine(Callback):
    """One log line per epoch where no progress bar can be drawn.

    Args:
        shown: Metrics to name.
    """

    def __init__(self, *shown: str) -> None:
        self.shown = shown

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say how far it is and what was measured."""
        del pl_module
        if trainer.is_global_zero:
            values = {k: trainer.callback_metrics[k] for k in self.shown if k in trainer.callback_metrics}
            text = "  ".join(f"{k} {float(v):.4f}" for k, v in values.items())
            log.info("epoch %d/%s  %s", trainer.current_epoch + 1, trainer.max_epochs, text)
