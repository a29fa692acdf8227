"""Stop before a loss that is not finite reaches the weights, and say where it came from."""
# ruff: noqa: ARG002 - the signatures are those of the hooks

from collections.abc import Sequence

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from fewspect.errors import UserError
from fewspect.types import Episode

SHOWN = 5


def query_paths(batch: object) -> list[str]:
    """Files of the queries in a batch of episodes."""
    episodes = batch if isinstance(batch, Sequence) else [batch]
    return [path for e in episodes if isinstance(e, Episode) for path in e.paths[: len(e.query_image)]]


def broken_parts(logged: dict[str, Tensor]) -> list[str]:
    """Names of the logged values of this step that are not finite."""
    return [name for name, value in logged.items() if not bool(torch.isfinite(value).all())]


class NanGuard(Callback):
    """Raise ``UserError`` naming step, loss part and query files when the loss is not finite.

    Reading the loss waits for the device once per step, which Lightning's progress bar does anyway.
    """

    def __init__(self) -> None:
        self._batch: object = None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: object, *rest: object, **kwargs: object
    ) -> None:
        """Remember what is being learnt."""
        self._batch = batch

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Check the sum of all losses; the parts are looked up only when it is broken."""
        if bool(torch.isfinite(loss).all()):
            return
        paths = query_paths(self._batch)
        parts = ", ".join(broken_parts(dict(trainer.callback_metrics))) or "no logged part"
        more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
        files = ", ".join(paths[:SHOWN]) + more or "unknown"
        value = float(loss.detach().float().mean())
        raise UserError(
            f"the loss is {value} at step {trainer.global_step} ({parts}); queries: {files}",
            "Look at these images and masks, lower the learning rate, or set trainer.precision=32-true.",
        )

    def on_train_batch_end(self, *args: object, **kwargs: object) -> None:
        """Let go of the batch."""
        self._batch = None
