"""Detection by reconstruction: a network that has seen good parts only cannot rebuild a defect.

Bergmann et al., arXiv 1807.02011, and the networks of the DeeCamp project (specification
reconstruction_ae). One model learns all products of the data set; for one model per product, as published,
train with ``data.category``.

Example:
    >>> method = Reconstruct(SsimAE(), loss={"windows": [3, 7, 15]})
    >>> prediction = method.predict(images, method.adapt(support))     # raw map, reconstruction
"""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.optim.swa_utils import update_bn

from fewspect.backbones import weights
from fewspect.errors import UserError
from fewspect.methods import optim
from fewspect.methods.base import own_weights
from fewspect.methods.detector import Detector
from fewspect.methods.reconstruct.blocks import AutoEncoder
from fewspect.methods.reconstruct.corrupt import cut_paste
from fewspect.methods.reconstruct.loss import Loss
from fewspect.methods.reconstruct.residual import Residual
from fewspect.methods.reconstruct.vae import Variational
from fewspect.nn.ssim import grey
from fewspect.types import Episode, Prediction, State

log = logging.getLogger(__name__)

Order = Literal["rgb", "bgr", "grey"]


class Reconstruct(Detector):
    """An autoencoder trained on good images; its residual is the anomaly map.

    Args:
        network: What rebuilds an image.
        loss: Fields of ``Loss``.
        residual: Fields of ``Residual``.
        colour: What the network is shown: ``rgb``, ``bgr`` (as the reference's checkpoints expect) or
            ``grey`` (one channel).
        corruption: Training: share of the images that are damaged by ``cut_paste`` and must come back whole.
        settle: Batches of the training set, without damage, that the statistics of batch normalisation are
            measured on before each validation; 0 = running averages as published. Running averages lag: a
            training of 25 steps answers in constant grey with them, and with a memory of ten steps, too.
        options: See ``Detector`` and ``Method``.

    Raises:
        UserError: Network, loss and colour do not go together.
    """

    schema: ClassVar[dict[str, Any]] = Detector.schema | {
        "loss": Loss,
        "residual": Residual,
        "optimizer": optim.build,
    }

    def __init__(
        self,
        network: AutoEncoder,
        *,
        loss: Mapping[str, Any] | None = None,
        residual: Mapping[str, Any] | None = None,
        colour: Order = "rgb",
        corruption: float = 0.0,
        settle: int = 16,
        **options: Any,  # noqa: ANN401 - checked by the bases
    ) -> None:
        chosen = self.schema["loss"](**(loss or {}))
        own_weights(options, "the weights in method.loss")
        super().__init__(loss_weights=chosen.weights, **options)
        self.loss = chosen
        self.residual = Residual(**(residual or {}))
        self.colour: Order = colour
        self.corruption, self.settle = corruption, settle
        self.net = network
        self._refuse()

    def predict(self, images: Tensor, state: State) -> Prediction:
        """Residual (Q, h, w) and reconstruction (Q, 3, h, w) of images (Q, 3, h, w) in [0, 1]."""
        del state  # the weights are all that was learned
        shown = self.shown(images)
        again = self.net(shown).float()
        rebuilt = self._rgb(again)
        pair = (shown, again) if self.colour == "grey" else (images, rebuilt)
        return Prediction(prob=self.residual(*pair), image=rebuilt)

    def losses(self, batch: list[Episode]) -> dict[str, Tensor]:
        """Compare good images with what the network makes of them, or of their damaged copies."""
        target = self.targets(batch)  # (B, C, side, side)
        seen = self.damaged(target)
        if self.loss.name == "vae":
            assert isinstance(self.net, Variational)
            return self.loss.variational(self.net.sample(seen), target)
        return self.loss(self.net(seen), target)

    def on_validation_epoch_start(self) -> None:
        """Measure the statistics that answers are normalised with; training itself never reads them."""
        super().on_validation_epoch_start()
        if self.settle and self.trainer.state.fn == "fit":
            update_bn(self._undamaged(), self.net)

    def _undamaged(self) -> Iterator[Tensor]:
        """The same ``settle`` batches (B, C, side, side) every time, in every process."""
        loader: Any = self.trainer.train_dataloader
        items, size = loader.dataset, loader.batch_size
        end = min(len(items), self.settle * size)
        for start in range(0, end, size):
            yield self.targets([items[k].to(self.device) for k in range(start, min(start + size, end))])

    def load_foreign(self, path: Path) -> None:
        """Load a bare state dict of the reference, with or without its ``module.`` prefix.

        Those networks were trained on B, G, R: a colour network is switched to that order.

        Raises:
            UserError: Names or shapes do not fit; all of them are listed.
        """
        weights.load_into(self.net, weights.read_state(path), str(path))
        if self.colour == "rgb":
            self.colour = "bgr"
            log.warning("%s: taken for weights of the reference, images are shown as B, G, R.", path)

    def targets(self, batch: list[Episode]) -> Tensor:
        """What the network has to rebuild (B, C, side, side).

        A single image whose code is 1 x 1 is taken twice: batch normalisation needs two values.
        """
        images = self.shown(torch.cat([e.query_image for e in batch]))
        lonely = len(images) == 1 and max(images.shape[-2:]) <= self.net.divisor
        return torch.cat([images, images]) if lonely else images

    def shown(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in R, G, B as the network wants them: (B, 3, H, W) or (B, 1, H, W)."""
        if self.colour == "grey":
            return grey(images)
        return images.flip(1) if self.colour == "bgr" else images

    def damaged(self, images: Tensor) -> Tensor:
        """What training shows instead of (B, C, H, W)."""
        return cut_paste(images, self.corruption) if self.corruption else images

    def _rgb(self, again: Tensor) -> Tensor:
        """Undo ``shown``: (B, 3, H, W), grey repeated."""
        return again.flip(1) if self.colour == "bgr" else again.expand(-1, 3, -1, -1)

    def _refuse(self) -> None:
        name, channels = type(self.net).__name__, self.net.channels
        if channels != (1 if self.colour == "grey" else 3):
            raise UserError(
                f"{name} has {channels} image channels, method.colour={self.colour} gives "
                f"{1 if self.colour == 'grey' else 3}.",
                "Grey: method.colour=grey method.network.channels=1; colour: rgb and 3.",
            )
        if getattr(self.loss, "name", "") == "vae" and not isinstance(self.net, Variational):
            raise UserError(f"{name} has no distribution for method.loss.name=vae.", "Choose ssim, l1 or l2.")
