"""Reconstruction of frozen features: what is not rebuilt from good images' experience is abnormal.

Dinomaly (arXiv 2405.14325). One network serves all products of a data set.

Shapes: images (Q, 3, H, W) in [0, 1], map (Q, h, w) on the backbone's grid, values in [0, 2].

Example:
    >>> method = DinoRecon(Tiny())
    >>> residual = method.eval().predict(images, Fitted("bottle")).prob
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from fewspect.backbones.base import Backbone
from fewspect.methods import optim
from fewspect.methods.detector import Detector
from fewspect.methods.dino_recon.loss import cosine_loss, easy_share, residual
from fewspect.methods.dino_recon.net import ReconNet
from fewspect.types import Episode, Prediction, State


class DinoRecon(Detector):
    """Feature reconstruction, trained by gradient.

    Args:
        backbone: Feature extractor, frozen; all its ``layers`` are rebuilt.
        net: Options of ``net.ReconNet``.
        hard_ramp: Steps over which the share of damped tokens grows to 0.9; 0 = no hard mining.
        options: See ``Detector`` and ``Method``.
    """

    schema: ClassVar = {**Detector.schema, "net": ReconNet, "optimizer": optim.build}

    def __init__(
        self,
        backbone: Backbone,
        *,
        net: Mapping[str, Any] | None = None,
        hard_ramp: int = 1000,
        **options: Any,  # noqa: ANN401 - evaluate, maps, threshold, clean, optimizer, seed: checked by the bases
    ) -> None:
        super().__init__(**options)
        self.net = ReconNet(backbone, **(net or {}))
        self.hard_ramp = hard_ramp

    def losses(self, batch: list[Episode]) -> dict[str, Tensor]:
        """Cosine loss of the good images of a batch."""
        pairs = self.net(torch.cat([e.query_image for e in batch]))
        easy = easy_share(self.global_step, ramp=self.hard_ramp) if self.hard_ramp else 0.0
        return {"cosine": cosine_loss(pairs.target, pairs.rebuilt, easy)}

    def predict(self, images: Tensor, state: State) -> Prediction:
        """Residual (Q, h, w) of images (Q, 3, H, W); the state only says which product is asked about."""
        del state
        pairs = self.net(images)
        return Prediction(prob=residual(pairs.target, pairs.rebuilt).unflatten(1, pairs.grid))
