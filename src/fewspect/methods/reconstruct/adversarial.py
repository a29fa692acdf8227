"""SRGAN trained as a detector: restorer and judge in turn, each with its own optimiser.

Specification reconstruction_ae, 2.5, 3.4 and 7.3; Ledig et al., arXiv 1609.04802. Both networks and both
optimisers are part of every checkpoint.

Example:
    >>> method = Srgan(Generator(scale=4), loss={"vgg_weights": "data/weights/vgg16_reducedfc.pth"})
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from fewspect.backbones import weights
from fewspect.errors import UserError
from fewspect.methods import optim
from fewspect.methods.reconstruct import loss as terms
from fewspect.methods.reconstruct.method import Reconstruct
from fewspect.methods.reconstruct.srgan import Discriminator, Generator, vgg16_reduced
from fewspect.types import Episode

VGG_MEAN = (104.0, 117.0, 123.0)
"""B, G, R that the public VGG weights expect to be subtracted from 0..255."""


@dataclass(frozen=True, slots=True)
class GanLoss:
    """Weights of the generator's loss, and its perceptual network.

    Attributes:
        image: Squared difference.
        vgg: Squared difference of VGG features; takes part only with ``vgg_weights``.
        adv: 1 - judgement.
        tv: Total variation.
        vgg_weights: File of the reduced VGG-16 (SSD's, ``0.weight`` to ``33.bias``); None = no such term.
        vgg_input: ``normalised``: what the file was trained on; ``raw``: 0..1, as the reference has it.
    """

    image: float = terms.GAN_WEIGHTS["image"]
    vgg: float = terms.GAN_WEIGHTS["vgg"]
    adv: float = terms.GAN_WEIGHTS["adv"]
    tv: float = terms.GAN_WEIGHTS["tv"]
    vgg_weights: str | None = None
    vgg_input: Literal["normalised", "raw"] = "normalised"

    @property
    def weights(self) -> dict[str, float]:
        """Factors by name."""
        return {name: getattr(self, name) for name in terms.GAN_WEIGHTS}


class Srgan(Reconstruct):
    """Shrink and restore, against a judge.

    One batch is one step of each optimiser: ``trainer.max_steps`` counts both, schedules count batches.

    Args:
        network: The restorer.
        loss: Fields of ``GanLoss``.
        options: See ``Reconstruct``.
    """

    schema: ClassVar[dict[str, Any]] = Reconstruct.schema | {"loss": GanLoss}

    def __init__(
        self,
        network: Generator,
        *,
        loss: Mapping[str, Any] | None = None,
        **options: Any,  # noqa: ANN401 - checked by the bases
    ) -> None:
        super().__init__(network, loss=loss, **options)
        self.automatic_optimization = False
        self.discriminator = Discriminator(network.channels)
        self.vgg = perceptual(self.loss.vgg_weights)

    def training_step(self, batch: list[Episode], batch_idx: int) -> dict[str, Tensor]:
        """One step of the judge, then one of the restorer, on the same images."""
        del batch_idx
        generator, discriminator = cast(list[LightningOptimizer], self.optimizers())
        target = self.targets(batch)
        image = self.net(self.damaged(target))

        judge, restorer = self.discriminator, self.net
        judged = judge(image.detach())  # the judge's step must not reach the restorer
        parts = {"d": terms.discriminator_loss(judge(target), judged)}
        optim.minimise(self, parts["d"], discriminator, judge.parameters())

        parts |= terms.generator_losses(image, target, *self._features(image, target), judge(image))
        total = torch.stack([self.loss_weights[k] * v for k, v in parts.items() if k != "d"]).sum()
        optim.minimise(self, total, generator, restorer.parameters())

        for schedule in cast(list[LambdaLR], self.lr_schedulers()):
            schedule.step()
        parts = {k: v.detach() for k, v in parts.items()}
        self.log_dict({f"train/{k}": v for k, v in parts.items()}, batch_size=len(batch))
        self.log("train/loss", total.detach(), prog_bar=True, batch_size=len(batch))
        return {"loss": total.detach(), **parts}

    def configure_optimizers(self) -> Any:  # noqa: ANN401 - Lightning's union of formats
        """Two optimisers and schedules with the same options."""
        steps = optim.planned_steps(self.trainer)
        if self.trainer.max_steps > 0:
            steps = min(steps, self.trainer.max_steps // 2)
        pairs = [
            optim.build(part.named_parameters(), steps, **self.optimizer)
            for part in (self.net, self.discriminator)
        ]
        return [p for p, _ in pairs], [{"scheduler": s, "interval": "step"} for _, s in pairs]

    def _features(self, image: Tensor, target: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Features (B, 1024, h, w) of a reconstruction and of its target, which needs no gradient."""
        if self.vgg is None:
            return None, None
        with torch.no_grad():
            wanted = self.vgg(self._for_vgg(target))
        return self.vgg(self._for_vgg(image)), wanted

    def _for_vgg(self, image: Tensor) -> Tensor:
        """Three channels B, G, R as ``vgg_input`` says."""
        image = image.flip(1) if self.colour == "rgb" else image.expand(-1, 3, -1, -1)
        if self.loss.vgg_input == "raw":
            return image
        return 255 * image - image.new_tensor(VGG_MEAN)[:, None, None]


def perceptual(path: str | None) -> nn.Sequential | None:
    """The frozen perceptual network from a file; None without one.

    Raises:
        UserError: The file is missing or holds something else.
    """
    if path is None:
        return None
    if not Path(path).is_file():
        raise UserError(
            f"method.loss.vgg_weights: there is no file {path}.",
            "Put SSD's reduced VGG-16 there, or set null.",
        )
    net = vgg16_reduced().eval().requires_grad_(False)
    weights.load_into(net, weights.read_state(Path(path)), path)
    net.frozen = True  # type: ignore[assignment] # left out of checkpoints, known by its digest
    return net
