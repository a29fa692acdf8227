"""Run folders: what a new one is called, what an old one remembers, who may write into it. No torch in here.

A run folder holds ``config.yaml`` (as composed, interpolations kept), ``run.json``, ``metrics.csv``,
``run.log``, ``{results,episodes,samplings}.csv``, ``checkpoints/{best,last,previous}.ckpt``, ``panels/`` and
``predictions/``.
Tests and predictions of a finished run are run folders of their own inside it, so that they never touch its
record.
"""

import fcntl
import hashlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from fewspect.errors import UserError
from fewspect.report import records

CONFIG, OVERRIDES = "config.yaml", ".hydra/overrides.yaml"
CHECKPOINTS = "checkpoints"
RUN_KEYS = ("mode", "run", "resume", "checkpoint", "debug", "allow")
"""Options of one call: never taken over from the run folder (``allow`` least of all)."""

GROUPS = ("method", "data", "backbone", "trainer", "logger")
OF_A_DATA_SET = ("root", "fold", "category", "object", "support", "query", "reader")
"""Options of ``data`` that mean one data set; the others (side, shot, ...) hold for the next one, too."""

LASTING = ("process", "slurm", "search")
"""Launchers and sweepers that continue a sweep."""

INSPECTS = "subspace"
"""What ``mode=inspect`` detects with where no method is named: one pass, a few megabytes."""

LONGEST_NAME = 60

LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"

DINOV2 = {384: "dinov2_vits14", 768: "dinov2_vitb14", 1024: "dinov2_vitl14"}
"""Width of an official checkpoint's class token -> the backbone it belongs to."""


def run_folder(run: str | None, resume: bool, mode: str, kind: str, now: str, *form: str) -> str:
    """Name the folder of a run (resolver ``run_folder`` of conf/hydra); ``form`` is that of an export."""
    if run and resume:
        return str(run)
    mine = f"{now}-{os.getpid()}"  # two runs may start in the same second
    if run and mode == "export":
        return "/".join((run, "export", *form))
    if mode == "compare":
        return f"logs/compare/{mine}"
    own = mode if mode == "evaluate" else kind
    return f"{run}/{mode}-{mine}" if run else f"logs/{own}/{mine}"


def sweep_folder(launcher: str, sweeper: str, now: str) -> str:
    """Name the folder of a sweep (resolver ``sweep_folder``).

    What can go on where it was gets one that follows from the command, so that the same command finds it
    again.
    """
    if launcher not in LASTING and sweeper not in LASTING:
        return f"logs/sweeps/{now}-{os.getpid()}"
    told = [a for a in sys.argv[1:] if not a.startswith(("-", "launcher.", "hydra", "n_trials="))]
    values = "-".join(a.partition("=")[2] for a in told if a.startswith(("method=", "data=", "experiment=")))
    if sweeper in LASTING:  # jobs of a grid are no trials: a search must not take them for its own
        told.append(f"sweeper={sweeper}")
    words = re.sub(r"[^A-Za-z0-9]+", "-", values).strip("-")[:LONGEST_NAME]
    digest = hashlib.sha256(repr(sorted(told)).encode()).hexdigest()[:8]
    return f"logs/sweeps/{'-'.join(filter(None, (words, digest)))}"


def with_choices_of_run(arguments: list[str]) -> list[str]:
    """Put the recorded overrides of ``run=<folder>`` before the typed ones: nothing need be repeated.

    A ``checkpoint=<file>`` of another program that holds its backbone chooses that backbone.

    Raises:
        UserError: ``run`` is no run folder.
    """
    typed = {a.split("=", 1)[0].lstrip("+"): a.split("=", 1)[1] for a in arguments if "=" in a}
    run = _unquoted(typed.get("run", ""))
    if not run:
        if typed.get("resume", "").lower() == "true":
            raise UserError(
                "resume=true needs the folder to continue.", "Add run=<folder>, e.g. run=logs/sofs/toy/..."
            )
        return [*_method_of(typed), *brought_backbone(typed), *arguments]
    require_run(Path(run))
    # Hydra would overwrite what a run to be continued remembers before the options are checked: ``save`` does
    later = typed.get("resume", "").lower() == "true" and "hydra.output_subdir" not in typed
    return [
        *(o for o in recorded(Path(run)) if _still_holds(o, typed)),
        *arguments,
        *(["hydra.output_subdir=null"] if later else []),
    ]


def _unquoted(value: str) -> str:
    """What Hydra will take a typed value for; empty for nothing and null."""
    from hydra.core.override_parser.overrides_parser import OverridesParser  # noqa: PLC0415

    try:
        found = OverridesParser.create().parse_override(f"key={value}").value()
    except HydraException:  # told by Hydra itself in a moment
        return value
    if found is None:
        return ""
    return str(found) if isinstance(found, str | int | float) else value


def _method_of(typed: Mapping[str, str]) -> list[str]:
    """The method of a mode that needs another one than the default; none when one was typed."""
    return [f"method={INSPECTS}"] if typed.get("mode") == "inspect" and "method" not in typed else []


def _still_holds(override: str, typed: Mapping[str, str]) -> bool:
    """Whether a recorded override is neither replaced nor about a group that another choice replaces."""
    key = key_of(override)
    group, *parts = key.split(".")
    if key in typed:
        return False
    if group not in typed or not parts:
        return True
    return group == "data" and parts[0] not in OF_A_DATA_SET


def brought_backbone(typed: dict[str, str]) -> list[str]:
    """Overrides for the DINOv2 backbone inside ``checkpoint=``; none when one was typed or none is inside."""
    path = Path(_unquoted(typed.get("checkpoint", "")))
    if "backbone" in typed or not path.is_file():
        return []
    import torch  # noqa: PLC0415 - only with checkpoint=

    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        state = state if "pytorch-lightning_version" in state else state.get("state_dict", state)
        token = next((v for k, v in state.items() if k.removeprefix("module.") == "backbone.cls_token"), None)
        name = None if token is None else DINOV2.get(int(token.shape[-1]))
    except Exception:  # unreadable: told when it is loaded
        return []
    return [f"backbone={name}", "backbone.weights=none"] if name else []


def require_run(folder: Path) -> None:
    """Refuse a folder that no run has written."""
    if not folder.is_dir():
        raise UserError(
            f"run={folder}: there is no such folder.", "Give the folder that the run printed last (logs/...)."
        )
    if not (folder / CONFIG).is_file():
        raise UserError(
            f"run={folder}: no {CONFIG} in it, so this is no run folder.",
            "Look for run.json and config.yaml below logs/.",
        )


def key_of(override: str) -> str:
    """Key of an option, without the signs of Hydra's grammar."""
    return override.lstrip("+~").partition("=")[0]


def recorded(folder: Path) -> list[str]:
    """Overrides of an earlier run that describe the experiment (not the call)."""
    path = folder / OVERRIDES
    if not path.is_file():
        return []
    overrides = [str(o) for o in OmegaConf.to_container(_read(path)) or []]
    return [o for o in overrides if (k := key_of(o)) not in RUN_KEYS and not k.startswith("hydra")]


def restore(cfg: DictConfig, overrides: list[str], choices: list[str]) -> DictConfig:
    """The config of ``cfg.run`` with this call's overrides on top.

    Args:
        cfg: What Hydra composed from recorded and typed overrides together.
        overrides: Those overrides.
        choices: The recorded ones: a group among them keeps its saved values, even if ``conf`` has changed
            since.
    """
    saved = _read(Path(cfg.run) / CONFIG)
    if not isinstance(saved, DictConfig):
        raise UserError(f"{cfg.run}/{CONFIG} is no config.", "Choose another run folder.")
    merged = OmegaConf.merge(saved, {key: cfg[key] for key in RUN_KEYS})
    assert isinstance(merged, DictConfig)
    for override in overrides:
        key = key_of(override)
        if key in GROUPS and override not in choices:
            merged[key] = cfg[key]
        elif key == "experiment" and override not in choices:
            raise UserError(
                f"{override}: run={cfg.run} has its recipe already.", "Use checkpoint=<file> instead of run=."
            )
        elif key not in (*GROUPS, *RUN_KEYS, "experiment"):
            OmegaConf.update(merged, key, OmegaConf.select(cfg, key), force_add=True)
    return merged


def save(cfg: DictConfig, folder: Path, overrides: Sequence[str] | None = None) -> None:
    """Write ``config.yaml``, and the overrides where Hydra has not written them (a continued run)."""
    write(folder / CONFIG, OmegaConf.to_yaml(cfg))
    if overrides is not None:
        (folder / OVERRIDES).parent.mkdir(exist_ok=True)
        write(folder / OVERRIDES, OmegaConf.to_yaml(OmegaConf.create(list(overrides))))


def write(path: Path, text: str) -> None:
    """Write a text file in one stroke: the old one stands until the new one is complete."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, "utf-8")
    part.replace(path)


def lock(folder: Path) -> IO[str]:
    """Own the folder for the life of this process; keep the returned file open.

    Raises:
        UserError: Another process writes into it.
    """
    handle = (folder / ".lock").open("w")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        handle.close()
        raise UserError(
            f"{folder}: another process is writing into this run.", "Wait for it, or stop it first."
        ) from None
    return handle


def chosen_checkpoint(cfg: DictConfig) -> Path | None:
    """The file to test: ``checkpoint=``, else the best of ``run=``, else its last.

    Returns:
        None for an untrained method, or for a finished run that had nothing to learn.

    Raises:
        UserError: It was named and does not exist, or the run has none yet.
    """
    if cfg.checkpoint:
        path = Path(cfg.checkpoint)
        if not path.is_file():
            raise UserError(
                f"checkpoint={path}: there is no such file.", "Name a .ckpt file, or use run=<folder>."
            )
        return path
    if not cfg.run:
        return None
    paths = [Path(cfg.run) / CHECKPOINTS / name for name in (BEST, LAST, PREVIOUS)]
    found = next((p for p in paths if p.is_file()), None)
    if found is None and state(Path(cfg.run)) != "done":
        raise UserError(
            f"run={cfg.run}: it has no checkpoint yet.",
            "Continue it with resume=true, or choose another run.",
        )
    return found


def _read(path: Path) -> object:
    try:
        return OmegaConf.load(path)
    except Exception as error:  # yaml, encoding: any unreadable file
        raise UserError(
            f"{path} cannot be read: {str(error).splitlines()[0]}", "Choose another run folder."
        ) from error


def state(folder: Path) -> str:
    """``new``, or the status of the run in a folder."""
    return str(record(folder).get("status", "new"))


def objective(folder: Path) -> float | None:
    """Best value of the objective of a finished run, else what its test gave under the same name."""
    known = record(folder)
    entry = known.get("objective") or {}
    if entry.get("value") is not None:
        return float(entry["value"])
    value = (known.get("metrics") or {}).get(f"test/{str(entry.get('name')).rpartition('/')[2]}")
    return None if value is None else float(value)


def record(folder: Path) -> dict[str, Any]:
    """Content of a folder's ``run.json``; empty where there is none that can be read."""
    return records.read(folder / records.FILE)
