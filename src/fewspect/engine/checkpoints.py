"""Checkpoints that are whole or absent, a state saved when the run is told to stop, the way back to it."""

import os
import re
import shutil
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from fewspect.engine.folders import BEST, CHECKPOINTS, LAST, PREVIOUS
from fewspect.engine.front import Stopped
from fewspect.errors import UserError
from fewspect.methods.base import Method
from fewspect.nn import loading

MISFIT = re.compile(r"Error\(s\) in loading state_dict for (\w+)")

MINUTES = 10.0
"""Longest time between two saved states inside an epoch."""


class AtomicIO(TorchCheckpointIO):
    """Write beside the target, then rename (Lightning renames from another disk at times, which is a copy).

    ``last.ckpt`` is kept as ``previous.ckpt`` until the next one replaces it.
    """

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | Path,
        storage_options: Any = None,  # noqa: ANN401, ARG002 - Lightning's signature
    ) -> None:
        """Save without ever leaving half a file under the final name."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:  # torch wraps what its writer meets
            part.unlink(missing_ok=True)
            raise UserError(
                f"{target} cannot be written: {str(error).splitlines()[0]}",
                "Make room on the disk; the state that was saved before stands: run=<folder> resume=true.",
            ) from error
        if target.name == LAST and target.exists():
            kept = target.with_name(f".{PREVIOUS}.part")
            kept.unlink(missing_ok=True)
            try:
                kept.hardlink_to(target)
            except OSError:  # a file system without links: exFAT, some network drives
                shutil.copyfile(target, kept)
            kept.replace(target.with_name(PREVIOUS))
        part.replace(target)


class Keeper(Callback):
    """Save ``last.ckpt`` every epoch, every few minutes and on a signal; find the place when resuming.

    The first Ctrl-C or SIGTERM lets the current step finish, the second one stops at once.

    Args:
        folder: The run folder.
        minutes: Longest time between two saved states.
    """

    SIGNALS: ClassVar = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, folder: Path, minutes: float = MINUTES) -> None:
        self.path = folder / CHECKPOINTS / LAST
        self.minutes = minutes
        self._stop = 0
        self._saved = time.monotonic()

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Tell the data where training stopped: the batch after the last one that was processed."""
        del pl_module
        loops = checkpoint["loops"]["fit_loop"]
        epoch = loops["epoch_progress"]["current"]["ready"] - 1
        data: Any = getattr(trainer, "datamodule", None)
        if hasattr(data, "resume"):
            data.resume(epoch, loops["epoch_loop.batch_progress"]["current"]["processed"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From now on a signal waits for the end of the step."""
        del trainer, pl_module
        self._saved = time.monotonic()
        for signum in self.SIGNALS:
            signal.signal(signum, self._note)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing is left to save: a signal stops at once."""
        del trainer, pl_module
        stop_at_once()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *rest: object) -> None:
        """Save when it is time or when the run is to stop; not before validation, which saves by itself.

        Half a pass of a method that sees the data once is worth nothing and is not saved: it starts over.
        """
        del rest
        stop = self._agreed(trainer)
        late = time.monotonic() - self._saved > 60 * self.minutes
        last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if trainer.strategy.reduce_boolean_decision(bool(stop or late), all=False) and not last:
            if getattr(pl_module, "fit_kind", "") != "single_pass":
                self._save(trainer)
            self._raise(stop)

    def on_validation_batch_end(self, trainer: Trainer, *rest: object) -> None:
        """Stop between two validation batches; the state of the last save stands.

        Several processes wait for the end of the epoch: they may have different numbers of batches, and an
        agreement per batch would never come.
        """
        del rest
        if trainer.world_size == 1:
            self._raise(self._stop)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save every epoch, validated, and stop here if asked to."""
        del pl_module
        self._save(trainer)
        self._raise(self._agreed(trainer))

    def _note(self, signum: int, frame: FrameType | None) -> None:
        del frame
        if self._stop:
            raise Stopped(signum)
        self._stop = signum

    def _save(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(self.path)
        self._saved = time.monotonic()

    def _agreed(self, trainer: Trainer) -> int:
        """The signal that any process got."""
        some = trainer.strategy.reduce_boolean_decision(bool(self._stop), all=False)
        return (self._stop or int(signal.SIGTERM)) if some else 0

    def _raise(self, signum: int) -> None:
        if signum:
            raise Stopped(signum)


def stop_at_once() -> None:
    """Outside of training a signal ends the run where it is, with the right exit code."""

    def now(signum: int, frame: FrameType | None) -> None:
        del frame
        raise Stopped(signum)

    for signum in Keeper.SIGNALS:
        signal.signal(signum, now)


def best(folder: Path, objective: str, mode: str) -> ModelCheckpoint:
    """Keep the best state (``Keeper`` keeps the last: Lightning's ``save_last`` is the last *better* one)."""
    return ModelCheckpoint(
        folder / CHECKPOINTS,
        filename=BEST.removesuffix(".ckpt"),
        monitor=objective,
        mode=mode,
        auto_insert_metric_name=False,
        enable_version_counter=False,
    )


def resume_point(folder: Path) -> tuple[Path | None, str]:
    """The newest readable state of a run, and a notice if it is not the obvious one.

    What a killed process has left half written is removed.
    """
    for place in (folder, folder / CHECKPOINTS):
        for part in place.glob(".*.part"):
            part.unlink(missing_ok=True)
    paths = [folder / CHECKPOINTS / name for name in (LAST, PREVIOUS)]
    present = [p for p in paths if p.is_file()]
    for path in present:
        if readable(path):
            older = "" if path is paths[0] else f"{LAST} is damaged or missing, continuing from {PREVIOUS}."
            return path, older
    if present:
        raise UserError(f"{present[0]} is damaged.", "Start a new run; this one cannot be continued.")
    return None, "There is no checkpoint yet: the run starts over."


def own_or_loaded(path: Path | None, method: Method) -> Path | None:
    """Return a checkpoint of ours for the Trainer; load one of another program into the method.

    Raises:
        UserError: The file is no checkpoint, or the method does not know its format.
    """
    if path is None:
        return None
    content = loading.content(path, mapped=True)
    if isinstance(content, dict) and "pytorch-lightning_version" in content:
        return path
    method.load_foreign(path)
    return None


def load(path: Path | None, method: Method) -> None:
    """Load a checkpoint, ours or another program's, without a Trainer; None = the method as it is.

    Raises:
        UserError: It is no checkpoint, or one of another method or of other weights.
    """
    own = own_or_loaded(path, method)
    if own is None:
        return
    content = loading.content(own)
    method.on_load_checkpoint(content)
    try:
        method.load_state_dict(content["state_dict"])
    except RuntimeError as error:
        raise misfit(error, f"checkpoint={own}") from error


def misfit(error: RuntimeError, named: str = "The checkpoint") -> UserError | RuntimeError:
    """What torch says about a state dict of another network, in our words; anything else as it is."""
    found = MISFIT.match(str(error))
    if found is None:
        return error
    return UserError(
        f"{named} does not fit {found[1]}: {str(error).splitlines()[-1].strip()}",
        "Use the configuration that it was trained with: run=<folder>, and no other options of the method.",
    )


def readable(path: Path) -> bool:
    """Whether a checkpoint is whole and loads as tensors and plain values."""
    try:
        return "state_dict" in loading.content(path, mapped=True)
    except UserError:
        return False
