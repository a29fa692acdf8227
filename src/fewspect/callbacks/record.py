"""``run.json``: what a run is, how far it came and what it reached.

Written atomically at the start, after every epoch, at the end and on an error, by the first process. It is
the one file that sweeps, comparisons and resumes read, and it holds no machine name.
"""
# ruff: noqa: ARG002 - the signatures are those of the hooks

import json
import math
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.flop_counter import FlopCounterMode

import fewspect
from fewspect.callbacks.files import write_atomic

FORMAT = 1
FILE = "run.json"
LONGEST_ERROR = 4000


def versions() -> dict[str, str]:
    """Versions of what computes."""
    found = {name: metadata.version(name) for name in ("torch", "lightning", "torchmetrics", "numpy")}
    return {"fewspect": fewspect.__version__, "python": platform.python_version(), **found}


def git_state(root: Path | None = None) -> dict[str, str | bool] | None:
    """Commit and dirtiness of the checkout that holds the package; None when it is not one."""
    root = root or Path(fewspect.__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        ask = [["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]]
        calls = [["git", "-C", str(root), *words] for words in ask]
        commit, changes = (
            subprocess.run(call, capture_output=True, text=True, timeout=10, check=True).stdout
            for call in calls
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit.strip(), "dirty": bool(changes.strip())}


def peak_memory() -> dict[str, int]:
    """Largest memory so far in MiB: resident set of this process, and what was reserved on the GPU."""
    peak = {}
    if sys.platform != "win32":
        import resource  # noqa: PLC0415 - does not exist on Windows

        unit = 1 if sys.platform == "darwin" else 1024
        peak["rss"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit >> 20
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        peak["cuda"] = torch.cuda.max_memory_reserved() >> 20
    return peak


def parameters(module: torch.nn.Module) -> dict[str, int]:
    """Number of parameters, and of those that are trained; lazy ones that have no shape yet count nothing."""
    named = ((n, p) for n, p in module.named_parameters() if n != "idle")  # see ``Method``: for DDP only
    known = [p for _, p in named if not isinstance(p, torch.nn.UninitializedParameter)]
    return {
        "all": sum(p.numel() for p in known),
        "trained": sum(p.numel() for p in known if p.requires_grad),
    }


def flops(module: LightningModule, batch: object) -> int | None:
    """Floating-point operations of one answer, adaptation to its support included; None where not known.

    Products, convolutions and attention count (``torch.utils.flop_counter``), two per multiply-add.
    """
    answers: Any = getattr(module, "answers", None)
    compiled = any(getattr(m, "_compiled_call_impl", None) for m in module.modules())
    if answers is None or compiled or not isinstance(batch, list) or not batch:
        return None
    with FlopCounterMode(display=False) as counter:
        answers(batch[:1])
    return counter.get_total_flops() or None


def plain(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """Scalars as floats; values that are not finite become None (JSON knows no NaN)."""
    values = {name: float(value) for name, value in metrics.items()}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def read_record(path: Path) -> dict[str, Any]:
    """Read a record; an absent or broken file counts as empty."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record atomically."""
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomic(path, lambda file: file.write(text.encode("utf-8", "backslashreplace") + b"\n"))


class Record(Callback):
    """Keep ``<default_root_dir>/run.json`` true.

    Args:
        objective: Name of the metric that counts.
        direction: Whether more or less of it is better.
        facts: Plain values to store as they are: method, data, seed, config…
        final: The stage whose end makes the run ``done``.
        folder: The run folder; default ``trainer.default_root_dir``.
    """

    def __init__(
        self,
        objective: str = "val/miou",
        direction: Literal["max", "min"] = "max",
        facts: Mapping[str, Any] | None = None,
        final: Literal["fit", "validate", "test", "predict"] = "test",
        folder: str | None = None,
    ) -> None:
        self.objective, self.direction, self.final, self.folder = objective, direction, final, folder
        self.facts = dict(facts or {})
        self.record: dict[str, Any] = {}
        self._path = Path(FILE)
        self._began = self._mark = time.perf_counter()
        self._earlier = 0.0
        self._seconds, self._samples = 0.0, 0
        self._asked, self._answered = 0.0, list[float]()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin or go on; a record that is already there (resume, test after fit) is continued."""
        if not self.record:
            self._path = Path(self.folder or trainer.default_root_dir) / FILE
            self.record = read_record(self._path)
            self._earlier = float(self.record.get("wall_seconds") or 0.0)
            self.record |= {
                "format": FORMAT,
                **self.facts,
                "starts": int(self.record.get("starts") or 0) + 1,
                "versions": versions(),
                "git": git_state(),
            }
            self.record.setdefault("metrics", {})
            target = {"name": self.objective, "direction": self.direction}
            if (self.record.get("objective") or {}).get("name") != self.objective:
                self.record["objective"] = target | {"value": None, "last": None, "epoch": None}
        device = pl_module.device.type if trainer.strategy is None else trainer.strategy.root_device.type
        self.record["parameters"] = parameters(pl_module)
        self.record |= {"device": device, "devices": trainer.world_size, "precision": str(trainer.precision)}
        self.finish(trainer, "running", stage=stage, error=None)

    def finish(self, trainer: Trainer | None, status: str, **changes: object) -> None:
        """Set the status and write (also for the engine: ``record.finish(None, "failed", error=…)``)."""
        self.record |= {"status": status, **changes}
        best = getattr(trainer and trainer.checkpoint_callback, "best_model_path", "")
        if best:
            self.record["best_checkpoint"] = relative(Path(best), self._path.parent)
        if trainer is None or trainer.is_global_zero:
            self.record["wall_seconds"] = round(self._earlier + time.perf_counter() - self._began, 2)
            self.record["peak_memory_mib"] = peak_memory()
            write_record(self._path, self.record)

    def _update(self, trainer: Trainer) -> None:
        """Take over metrics, objective, checkpoint and speed, then write."""
        metrics = plain(trainer.callback_metrics)
        self.record["metrics"] |= metrics
        if metrics.get(self.objective) is not None:
            self._judge(metrics[self.objective], trainer.current_epoch)
        if self._seconds:
            self.record["samples_per_second"] = round(self._samples / self._seconds, 3)
        self.record |= {"epoch": trainer.current_epoch, "step": trainer.global_step}
        self.finish(trainer, self.record["status"])

    def _judge(self, value: float | None, epoch: int) -> None:
        """Keep the best value of the objective and the epoch it came from."""
        entry = self.record["objective"]
        entry["last"] = value
        better = max if self.direction == "max" else min
        if entry["value"] is None or better(value, entry["value"]) != entry["value"]:
            entry |= {"value": value, "epoch": epoch}

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of this epoch."""
        self._mark = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: object,
        *rest: object,
        **kwargs: object,
    ) -> None:
        """Count episodes and the time they took, loading included, validation not."""
        now = time.perf_counter()
        self._seconds, self._mark = self._seconds + now - self._mark, now
        self._samples += (len(batch) if isinstance(batch, list | tuple) else 1) * trainer.world_size

    def on_test_batch_start(self, *args: object, **kwargs: object) -> None:
        """Start the clock of these answers; reading the images is not in it."""
        self._asked = time.perf_counter()

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, *rest: object
    ) -> None:
        """Note what an answer took, its measurement included."""
        number = len(batch) if isinstance(batch, list | tuple) else 1
        self._answered.append(1000 * (time.perf_counter() - self._asked) / max(1, number))
        if len(self._answered) == 1:
            self.record["flops_per_image"] = flops(pl_module, batch)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write."""
        self._update(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write, and take validation off the clock."""
        if not trainer.sanity_checking:
            self._update(trainer)
        self._mark = time.perf_counter()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write."""
        if self._answered:
            self.record["milliseconds_per_image"] = round(statistics.median(self._answered), 3)
        self._update(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say what went wrong; a signal or Ctrl-C is an interruption, not a failure."""
        stopped = isinstance(exception, KeyboardInterrupt) or type(exception).__name__ == "SIGTERMException"
        text = f"{type(exception).__name__}: {exception}"[:LONGEST_ERROR]
        self.finish(trainer, "interrupted" if stopped else "failed", error=text)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """The end of the last stage is the end of the run."""
        if stage == self.final and self.record.get("status") == "running":
            self.finish(trainer, "done")


def relative(path: Path, root: Path) -> str:
    """Path inside the run folder with forward slashes; the bare name if it lies elsewhere."""
    path, root = path.resolve(), root.resolve()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
