"""Run folders as records: found on disk, looked up by short names, each kind of run once.

A run is whatever folder holds a ``run.json``. Two runs of the same configuration are the same draw twice
(every draw is a function of the seed), not two observations: the newest finished one counts.

Example:
    >>> runs = collect(["logs/sweeps/2026-11-21"])
    >>> [(value(r, "method"), value(r, "data.shot"), r.metrics["test/miou"]) for r in runs]
"""

import csv
import glob
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fewspect.errors import UserError

FILE, EPISODES, CURVES = "run.json", "episodes.csv", "metrics.csv"
FILES = ("method", "data", "backbone")
CHOICES = (*FILES, "experiment", "trainer")
SEED = "seed"

OF_ONE_CALL = {
    *("mode", "run", "resume", "name", "tags", "debug", "allow", "runs"),
    *("logger", "compile", "compare", "generate", "launcher", "format", "export"),
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy"),
    *("trainer.deterministic", "trainer.benchmark", "trainer.profiler", "trainer.enable_progress_bar"),
    *("trainer.log_every_n_steps", "trainer.num_sanity_val_steps"),
    "data.workers",
}
"""Groups and keys of a configuration that do not change what is measured."""

ROOT = "data.root"
QUIET = ("root", "_target_")
"""Ends of keys that are named only where nothing else tells two runs apart: the chosen files, or the end of
``data.root``, usually do."""

INSIDE = {"checkpoints", "export", "panels", "predictions", ".hydra", "wandb", ".submitit"}
"""Folders of a run that hold no further runs."""


@dataclass(frozen=True)
class Run:
    """One run folder.

    Attributes:
        folder: Where it is.
        record: Content of its ``run.json``.
    """

    folder: Path
    record: Mapping[str, Any]

    @property
    def status(self) -> str:
        """``running``, ``done``, ``interrupted``, ``failed``, or ``unreadable``."""
        return str(self.record.get("status", "unreadable"))

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Finite metrics by name, e.g. ``test/miou``."""
        return {k: v for k, v in (self.record.get("metrics") or {}).items() if isinstance(v, int | float)}

    @cached_property
    def config(self) -> dict[str, Any]:
        """The configuration with dotted keys."""
        return dict(_flat(self.record.get("config") or {}, ""))

    @cached_property
    def identity(self) -> str:
        """What makes this run differ from another one, as text."""
        kept = {k: v for k, v in self.config.items() if _counts(k)}
        chosen = {k: v for k, v in (self.record.get("choices") or {}).items() if k in FILES}
        return json.dumps({**kept, "choices": chosen}, sort_keys=True, default=str)


def collect(patterns: Sequence[str]) -> tuple[list[Run], list[Run]]:
    """Find runs below folders or glob patterns.

    Args:
        patterns: Folders, or patterns such as ``logs/sofs/*``.

    Returns:
        Runs with a test result, one per configuration, in the order of their folders; and the others (still
        running, failed, or never tested).

    Raises:
        UserError: There is no run at all.
    """
    found = [Run(path.parent, read(path)) for path in sorted(set(_records(patterns)))]
    if not found:
        raise UserError(
            f"No run folder in {', '.join(patterns)}.",
            "Name folders that hold run.json files: mode=compare runs=logs/sofs or runs='[a,b]'.",
        )
    newest: dict[str, Run] = {}
    for run in sorted((r for r in found if _tested(r)), key=_age):
        newest[run.identity] = run
    tested = sorted(newest.values(), key=lambda r: r.folder)
    return tested, [r for r in found if not _tested(r)]


def read(path: Path) -> dict[str, Any]:
    """Content of a ``run.json``; empty where there is none that can be read."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def value(run: Run, key: str) -> Any:  # noqa: ANN401 - any config value
    """Value of a configuration key of a run; None where it has none.

    ``method``, ``data``, ``backbone`` ... mean the chosen files; any other key may be shortened to its end
    (``shot`` for ``data.shot``) where that is unique.
    """
    if key in CHOICES:
        chosen = (run.record.get("choices") or {}).get(key)
        return chosen if chosen is not None else _class_name(run.record.get(key))
    if key in run.config:
        return run.config[key]
    ends = [k for k in run.config if k.endswith(f".{key}")]
    return run.config[ends[0]] if len(ends) == 1 else None


def known_keys(runs: Iterable[Run]) -> list[str]:
    """All keys that ``value`` knows of some run."""
    return [*CHOICES, *dict.fromkeys(k for run in runs for k in run.config)]


def varying(runs: Sequence[Run]) -> list[str]:
    """Keys that tell runs of the same method and data apart, seeds aside.

    Copies of one value (``method.evaluate.side`` is ``data.side``) are named once; of two data sets that
    ``data.root`` names its last part decides, as the folders above belong to a machine.
    """
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((str(value(run, "method")), str(value(run, "data"))), []).append(run)
    found: dict[tuple[str, ...], str] = {}
    for group in groups.values():
        keys = [k for k in dict.fromkeys(k for run in group for k in run.config) if _names(k)]
        for key in (k for k in keys if not _quiet(k)):
            _note(found, key, [text(run.config.get(key)) for run in group])
        _note(found, ROOT, [Path(text(run.config.get(ROOT))).name for run in group])
        shown = [
            (text(value(run, SEED)), *(text(run.config.get(k)) for k in found.values())) for run in group
        ]
        if len(set(shown)) < len(shown):  # of one seed, and still not told apart
            for key in filter(_quiet, keys):
                _note(found, key, [text(run.config.get(key)) for run in group])
    return list(dict.fromkeys(found.values()))


def _counts(key: str) -> bool:
    """Whether a key belongs to what is measured."""
    return key.partition(".")[0] not in OF_ONE_CALL and key not in OF_ONE_CALL


def _names(key: str) -> bool:
    """Whether a key may tell two runs apart: what counts, but for seeds."""
    return _counts(key) and key.rpartition(".")[2] != SEED


def _quiet(key: str) -> bool:
    return key.rpartition(".")[2] in QUIET


def _note(found: dict[tuple[str, ...], str], key: str, values: Sequence[str]) -> None:
    """Note a key that has several values."""
    if len(set(values)) > 1:
        found.setdefault(tuple(values), key)


def text(item: Any) -> str:  # noqa: ANN401 - any config value
    """A configuration value as people write it."""
    if isinstance(item, bool) or item is None:
        return {True: "true", False: "false", None: "null"}[item]
    return f"{item:g}" if isinstance(item, float) else str(item)


def curves(run: Run) -> dict[str, list[tuple[float, float]]]:
    """Learning curves of a run: metric -> (epoch, value)."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in _rows(run.folder / CURVES):
        try:
            lines.setdefault(row["name"], []).append((float(row["epoch"]), float(row["value"])))
        except (KeyError, TypeError, ValueError):
            continue
    return lines


def episodes(folder: Path) -> list[dict[str, str]]:
    """Rows of the test episodes of a run folder; empty where they were not written."""
    return list(_rows(folder / EPISODES))


def _rows(path: Path) -> Iterator[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            yield from csv.DictReader(file)
    except OSError:
        return


def _records(patterns: Sequence[str]) -> Iterator[Path]:
    for pattern in patterns:
        for place in glob.glob(os.path.expanduser(pattern)):  # noqa: PTH207, PTH111 - patterns may be absolute
            for folder, below, files in os.walk(place):
                below[:] = sorted(set(below) - INSIDE)
                if FILE in files:
                    yield Path(folder) / FILE


def _tested(run: Run) -> bool:
    return run.status == "done" and any(k.startswith("test/") for k in run.metrics)


def _age(run: Run) -> float:
    try:
        return (run.folder / FILE).stat().st_mtime
    except OSError:
        return 0.0


def _class_name(path: object) -> str | None:
    return str(path).rpartition(".")[2].lower() if path else None


def _flat(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - any config node
    if isinstance(node, Mapping) and node:
        for key, child in node.items():
            yield from _flat(child, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node
