"""Curves: ``metrics.csv`` in the run folder, Weights & Biases if asked (the only file that imports wandb)."""

import csv
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from fewspect.errors import UserError
from fewspect.metrics.suites import LOWER_IS_BETTER

ID_FILE = ".wandb_id"
SWEEPS = "sweeps"
"""Folder of all sweeps, see ``folders.sweep_folder``."""


class CsvLogger(Logger):
    """Append ``epoch,step,name,value`` rows: no empty cells, whole after a crash, simple to plot.

    A resumed run repeats the steps after its last checkpoint; the last row of a (step, name) counts.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    @property
    def name(self) -> str:
        """Kind of the logger."""
        return "csv"

    @property
    def version(self) -> str:
        """There is one per run folder."""
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - Lightning's signature
        """``config.yaml`` has them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append one row per value."""
        values = dict(metrics)
        epoch = int(values.pop("epoch", 0))
        new = not self.path.exists()
        with self.path.open("a", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerows([["epoch", "step", "name", "value"]] * new)
            rows.writerows([epoch, step, name, f"{float(value):.8g}"] for name, value in values.items())


def build(
    folder: Path,
    config: dict[str, Any],
    *,
    choices: Mapping[str, str] | None = None,
    direction: Literal["max", "min"] = "max",
    kind: Literal["csv", "wandb", "none"] = "csv",
    mode: Literal["offline", "online"] = "offline",
    project: str = "fewspect",
    entity: str | None = None,
    group: str | None = None,
) -> list[Logger]:
    """Make the loggers of ``conf/logger``.

    Args:
        folder: The run folder.
        config: The resolved config, shown in dashboards; ``name``, ``tags`` and ``objective`` are used.
        choices: Names of the chosen files, e.g. ``{"method": "sofs"}``.
        direction: Whether more of the objective is better.
        kind: ``csv``, ``wandb`` (csv as well) or ``none``.
        mode: ``offline`` writes into the run folder, ``online`` sends.
        project: W&B project.
        entity: W&B team or user.
        group: W&B group; None = the sweep that the run belongs to.
    """
    if kind == "none" or rank_zero_only.rank:
        return []
    table = CsvLogger(folder / "metrics.csv")
    if kind == "csv":
        return [table]
    options = {"mode": mode, "project": project, "entity": entity, "group": group}
    return [table, _wandb(folder, config, choices or {}, direction, options)]


def _wandb(
    folder: Path, config: dict[str, Any], choices: Mapping[str, str], direction: str, options: dict[str, Any]
) -> Logger:
    try:
        import wandb  # noqa: PLC0415 - half a second that csv users do not pay
        from lightning.pytorch.loggers import WandbLogger  # noqa: PLC0415
        from wandb.errors import Error  # noqa: PLC0415
    except ImportError as error:
        raise UserError("logger=wandb needs wandb.", "Install it: pip install wandb") from error
    id_file = folder / ID_FILE
    known = id_file.exists()
    if not known:
        id_file.write_text(secrets.token_hex(4))
    options["group"] = options["group"] or sweep_of(folder)
    try:
        run = wandb.init(
            id=id_file.read_text().strip(),
            dir=str(folder),
            name=config.get("name") or folder.name,
            job_type=config.get("mode"),
            tags=tags(config, choices),
            config={**config, "choices": dict(choices)},
            resume="allow" if known and options["mode"] == "online" else None,
            settings=wandb.Settings(console="off", silent=True),
            **options,
        )
    except Error as error:  # no login, no network, no such team
        what = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"Weights & Biases: {what}", "Run wandb login, or use logger.mode=offline."
        ) from error
    for name, summary in summaries(str(config.get("objective")), direction):
        run.define_metric(name, summary=summary)
    return WandbLogger(experiment=run)


def summaries(objective: str, direction: str) -> list[tuple[str, str]]:
    """Which value of a curve stands for the run in tables: the best one, by what is better of each metric.

    Returns:
        (name or pattern, ``max`` or ``min``); W&B takes the first that fits.
    """
    smaller = [(f"val/{name}", "min") for name in (*LOWER_IS_BETTER, "loss")]
    found = dict([(objective, direction), *smaller])
    return [*found.items(), ("val/*", "max"), ("train/*", "min")]


def tags(config: Mapping[str, Any], choices: Mapping[str, str]) -> list[str]:
    """What runs are filtered by: the user's words, then method, data, backbone and shots."""
    shot = (config.get("data") or {}).get("shot")
    known = [choices[k] for k in ("method", "data", "backbone") if k in choices]
    return [*(config.get("tags") or ()), *known, *([] if shot is None else [f"{shot}-shot"])]


def sweep_of(folder: Path) -> str | None:
    """Name of the sweep that a run folder belongs to; None for a single run."""
    return folder.parent.name if folder.parent.parent.name == SWEEPS else None


def show_table(loggers: list[Logger], rows: Sequence[Mapping[str, Any]]) -> None:
    """Hand the table of a test to the loggers that take tables, with equal columns for every row."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    for logger in loggers:
        if type(logger).__name__ == "WandbLogger" and rows:
            data = [[row.get(c) for c in columns] for row in rows]
            logger.log_table("test/results", columns=columns, data=data)  # type: ignore[attr-defined]


def finish(loggers: list[Logger], exit_code: int) -> None:
    """Close what stays open, with the state that dashboards show."""
    for logger in loggers:
        if type(logger).__name__ == "WandbLogger":
            logger.experiment.finish(exit_code=exit_code)  # type: ignore[attr-defined]
