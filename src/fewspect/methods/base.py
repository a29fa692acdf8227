"""The contract of every method: adapt to a support, predict queries, and, if it learns, give its losses.

A method is a LightningModule whose state for a task is *returned* by ``adapt``, never stored on ``self``: two
episodes can be in flight, and the state can be saved, exported or sent to another process.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, cast

import lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn

from fewspect import draws
from fewspect.errors import UserError
from fewspect.methods import optim
from fewspect.methods.graphs import Graph
from fewspect.metrics.suites import Suite, suite
from fewspect.nn.loading import digest
from fewspect.types import DataInfo, Episode, Prediction, State, Support

T = TypeVar("T")


class Method(pl.LightningModule):
    """Base of all methods.

    Class attributes:
        task: What it does: ``segment``, ``label``, ``classify``, ``detect`` or ``generate``; the data must
            allow it, or what ``needs`` says.
        needs: What the annotations must allow, where that is not ``task``.
        fit_kind: ``gradient`` (losses are minimised), ``single_pass`` (the training set is seen once, nothing
            is differentiated) or ``none`` (training is skipped).
        protocols: Values of ``data.protocol`` that it can work with.
        not_exported: Why there is no ``exported``, as half a sentence.

    Args:
        optimizer: Keyword arguments of ``optim.build``.
        loss_weights: Factor of each entry of ``losses``; entries that are not named count 1.
        seed: Seed of the training noise (dropout); data have their own streams.

    Raises:
        UserError: Weights of losses, where nothing is minimised.
    """

    task: ClassVar[str]
    needs: ClassVar[str] = ""
    fit_kind: ClassVar[Literal["gradient", "single_pass", "none"]] = "gradient"
    protocols: ClassVar[tuple[str, ...]] = ("episodic",)
    not_exported: ClassVar[str] = "nobody has written its answer as a graph"

    def __init__(
        self,
        *,
        optimizer: Mapping[str, Any] | None = None,
        loss_weights: Mapping[str, float] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.optimizer = dict(optimizer or {})
        self.loss_weights = dict(loss_weights or {})
        if self.loss_weights and self.fit_kind != "gradient":
            raise UserError(
                f"method.loss_weights: {type(self).__name__} has no losses to weigh.", "Leave it out."
            )
        self.seed = seed
        self.info = DataInfo()
        self.metrics = nn.ModuleDict()
        self.automatic_optimization = self.fit_kind == "gradient"  # others give no loss
        if self.fit_kind != "gradient":
            self.idle = nn.Parameter(torch.zeros(()))  # DDP refuses a module without anything to train

    # -- what a method gives

    @abstractmethod
    def adapt(self, support: Support) -> State:
        """Encode the support once; the state is all that ``predict`` needs."""

    @abstractmethod
    def predict(self, images: Tensor, state: State) -> Prediction:
        """Answer queries (Q, 3, h, w) in [0, 1] at the network's side."""

    def losses(self, batch: list[Episode]) -> dict[str, Tensor]:
        """``fit_kind=gradient``: return named scalars; the base sums them with ``loss_weights``."""
        raise NotImplementedError(
            f"{type(self).__name__} is not trained by gradient (fit_kind={self.fit_kind})"
        )

    def observe(self, batch: list[Episode]) -> None:
        """``fit_kind=single_pass``: take in one batch (memory bank, streaming covariance)."""
        raise NotImplementedError(
            f"{type(self).__name__} does not learn in a single pass (fit_kind={self.fit_kind})"
        )

    def finish(self) -> None:
        """``fit_kind=single_pass``: conclude after the last batch (coreset, eigenvectors)."""

    def answers(self, batch: list[Episode]) -> list[Prediction]:
        """Answer the queries of evaluation episodes; a task base says how."""
        raise NotImplementedError(f"{type(self).__name__} answers no episodes")

    def setup_data(self, info: DataInfo) -> None:
        """Take what is known about the data and build the metrics; called by the engine before anything runs.

        Raises:
            UserError: The annotations or the protocol of the data do not allow this method.
        """
        if info.protocol not in self.protocols:
            raise UserError(
                f"{type(self).__name__} does not work with data.protocol={info.protocol}.",
                f"Set data.protocol={' or '.join(self.protocols)}.",
            )
        needed = self.needs or self.task
        if info.tasks and needed not in info.tasks:
            allowed = ", ".join(sorted(info.tasks))
            raise UserError(
                f"{type(self).__name__} is for task '{needed}', this data set allows: {allowed}.",
                "Choose another method or data set; mode=check explains a folder.",
            )
        self.info = info
        splits = ("val", "test")
        self.metrics = nn.ModuleDict({f"{split}_suite": suite(self.task, info.detect) for split in splits})

    def load_foreign(self, path: Path) -> None:
        """Load a checkpoint that another program wrote; methods that know such a format override this.

        Raises:
            UserError: This method knows no other format than the framework's own.
        """
        raise UserError(
            f"{path} is no checkpoint of this framework.",
            f"{type(self).__name__} reads no other format; name a .ckpt file of a run folder.",
        )

    def exported(self, episode: Episode) -> Graph:
        """What an exported model computes: this method's answer to one query, the episode's support inside.

        Args:
            episode: What to adapt to, for which product, and whether queries are seen whole.

        Raises:
            UserError: The method, or an option of it, has no such graph.
        """
        del episode
        raise UserError(
            f"{type(self).__name__} cannot be exported: {self.not_exported}.",
            "Use the run itself: mode=predict run=<folder>.",
        )

    @property
    def ready(self) -> bool:
        """Whether it can answer without training or loaded weights, given what is known of the data."""
        return self.fit_kind == "none"

    # -- what the base gives

    def on_train_batch_start(self, batch: list[Episode], batch_idx: int) -> None:
        """Make noise a function of (seed, epoch, batch, rank): a resumed run draws the same dropout."""
        del batch
        torch.manual_seed(draws.key(self.seed, "noise", self.current_epoch, batch_idx, self.global_rank))

    def training_step(self, batch: list[Episode], batch_idx: int) -> dict[str, Tensor] | None:
        """Sum the weighted losses and log every part, or observe the batch."""
        del batch_idx
        if self.fit_kind == "single_pass":
            return self.observe(batch)
        parts = self.losses(batch)
        if unknown := sorted(set(self.loss_weights) - set(parts)):
            raise UserError(
                f"method.loss_weights: {', '.join(unknown)} is no part of the loss.",
                f"Its parts are: {', '.join(parts)}.",
            )
        total = torch.stack([self.loss_weights.get(k, 1.0) * v for k, v in parts.items()]).sum()
        self.log_dict({f"train/{k}": v.detach() for k, v in parts.items()}, batch_size=len(batch))
        self.log("train/loss", total.detach(), prog_bar=True, batch_size=len(batch))
        return {"loss": total, **{k: v.detach() for k, v in parts.items()}}

    def on_train_batch_end(self, outputs: object, batch: list[Episode], batch_idx: int) -> None:
        """Conclude a single pass with its last batch: before validation and checkpoints see the method."""
        del outputs, batch, batch_idx
        if self.fit_kind == "single_pass" and self.trainer.is_last_batch:
            self.finish()

    def configure_optimizers(self) -> Any:  # noqa: ANN401 - Lightning's union of formats
        """Build optimiser and per-step schedule from the plain values in ``self.optimizer``."""
        if self.fit_kind != "gradient":
            return None
        steps = optim.planned_steps(self.trainer)
        optimizer, schedule = optim.build(self.named_parameters(), steps, **self.optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # -- evaluation: answer, measure, hand both to the callbacks

    def validation_step(self, batch: list[Episode], batch_idx: int) -> dict[str, Any]:
        """Answer and measure a list of episodes."""
        del batch_idx
        return self._measure(batch, "val")

    def test_step(self, batch: list[Episode], batch_idx: int) -> dict[str, Any]:
        """Answer and measure a list of episodes."""
        del batch_idx
        return self._measure(batch, "test")

    def predict_step(self, batch: list[Episode], batch_idx: int) -> dict[str, Any]:
        """Answer a list of episodes; truth is not needed."""
        del batch_idx
        return {"episodes": batch, "predictions": self.answers(batch)}

    def on_validation_epoch_start(self) -> None:
        """Forget the last validation."""
        self._suite("val").reset()

    def on_test_epoch_start(self) -> None:
        """Forget the last test."""
        self._suite("test").reset()

    def on_validation_epoch_end(self) -> None:
        """Log what the validation episodes gave."""
        self._conclude("val")

    def on_test_epoch_end(self) -> None:
        """Log what the test episodes gave; the suite keeps its table for the report."""
        self._conclude("test")

    def _suite(self, split: str) -> Suite:
        return cast(Suite, self.metrics[f"{split}_suite"])

    def _measure(self, batch: list[Episode], split: str) -> dict[str, Any]:
        predictions = self.answers(batch)
        for episode, prediction in zip(batch, predictions, strict=True):
            self._suite(split).update(prediction, episode)
        return {"episodes": batch, "predictions": predictions}

    def _conclude(self, split: str) -> None:
        self.log_dict({f"{split}/{k}": v for k, v in self._suite(split).compute().items()})

    # -- checkpoints: tensors and plain values, without what is frozen

    def frozen_parts(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield (dotted name, module) of the parts that never change and are not written into checkpoints."""
        yield from ((name, part) for name, part in self.named_modules() if getattr(part, "frozen", False))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave frozen parts out (SOFS: 22 MB, not 368), note their digest and the data's classes."""
        frozen = dict(self.frozen_parts())
        prefixes = tuple(f"{name}." for name in frozen)
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {
            k: v for k, v in state.items() if not (prefixes and k.startswith(prefixes))
        }
        info = asdict(self.info) | {"tasks": sorted(self.info.tasks)}
        checkpoint["fewspect"] = {"info": info, "frozen": {k: digest(m) for k, m in frozen.items()}}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the frozen parts back and refuse a checkpoint that was trained on other frozen weights.

        Raises:
            UserError: The frozen part (backbone) differs from the one of the checkpoint.
        """
        noted = checkpoint.get("fewspect", {}).get("frozen", {})
        for name, part in self.frozen_parts():
            if name in noted and noted[name] != digest(part):
                raise UserError(
                    f"The checkpoint was trained with another {name}: weights {noted[name][:12]}, "
                    f"now {digest(part)[:12]}.",
                    "Choose the backbone and weights of that run (see its config.yaml), or train again.",
                )
            checkpoint["state_dict"] |= {f"{name}.{k}": v for k, v in part.state_dict().items()}


def own_weights(options: Mapping[str, Any], instead: str) -> None:
    """Refuse ``loss_weights`` among the options of a method that weighs its losses by options of its own.

    Raises:
        UserError: It is there.
    """
    if "loss_weights" in options:
        raise UserError("method.loss_weights is not read by this method.", f"Set {instead}.")


def of_all_processes(mine: list[T]) -> list[T]:
    """What every process has collected, in the order of the processes."""
    if not (dist.is_available() and dist.is_initialized()):
        return mine
    parts: list[list[T]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(parts, mine)
    return [item for part in parts for item in part]
