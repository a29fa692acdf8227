"""SOFS as a method: frozen backbone, a head trained on episodes, nothing to train for a new defect.

"Small Object Few-shot Segmentation for Vision-based Industrial Inspection", arXiv 2407.21351. Supports with a
defect make it a few-shot segmenter; supports without any make it a few-shot anomaly detector (the abnormality
map of section 2.6 of our specification, without learned weights); both together give segmentation that also
knows what is normal.

Example:
    >>> method = SOFS(Tiny(), head={"reduce_dim": 64, "embed_dim": 64})
    >>> state = method.adapt(episode.support)
    >>> prediction = method.segment(image, state)
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fewspect.backbones.base import Backbone
from fewspect.errors import UserError
from fewspect.methods import optim
from fewspect.methods.base import own_weights
from fewspect.methods.segmenter import Segmenter, Sliding
from fewspect.methods.sofs.checkpoint import load_official
from fewspect.methods.sofs.head import Head
from fewspect.methods.sofs.loss import cell_target, losses
from fewspect.methods.sofs.net import SofsNet, SupportState
from fewspect.types import Episode, Prediction, Support

ORIGINAL_HEAD = {
    "channel_dropout": 0.5,
    "dropout": 0.1,
    "shot_average": "all",
    "fusion_norm": False,
    "abnormal_prior": True,
    "mask_downsample": "area",
}
ORIGINAL_LOSS = {"dice_weight": 1.0, "ce_weight": 0.01, "target_threshold": 0.1}
ORIGINAL_EVALUATION = {"merge": "vote", "upsample": "hard", "overlap": 0.0, "threshold": 0.5}


class SOFS(Segmenter):
    """Small-object few-shot segmentation.

    Args:
        backbone: Feature extractor with layers of one width; frozen as published.
        parity: Overrule every choice of ``head`` and ``evaluate`` where the original differs, counting rule
            included.
        head: Options of ``net.Head``.
        loss: ``dice_weight``, ``ce_weight``, ``eta`` and ``target_threshold`` (section 3).
        options: See ``Segmenter`` and ``Method``.
    """

    schema: ClassVar = {"head": Head, "evaluate": Sliding, "optimizer": optim.build}

    def __init__(
        self,
        backbone: Backbone,
        *,
        parity: bool = False,
        head: Mapping[str, Any] | None = None,
        loss: Mapping[str, Any] | None = None,
        **options: Any,  # noqa: ANN401 - evaluate, optimizer, seed: checked by the bases
    ) -> None:
        weights = dict(loss or {})
        if parity:
            weights |= ORIGINAL_LOSS
            head = {**(head or {}), **ORIGINAL_HEAD}
            options["evaluate"] = {**(options.get("evaluate") or {}), **ORIGINAL_EVALUATION}
        parts = {"dice": weights.pop("dice_weight", 1.0), "ce": weights.pop("ce_weight", 0.5)}
        own_weights(options, "method.loss.dice_weight and ce_weight")
        super().__init__(loss_weights=parts, **options)
        self.eta = float(weights.pop("eta", 1.0))
        self.target_threshold = float(weights.pop("target_threshold", 0.1))
        if weights:
            raise UserError(
                f"method.loss has no option {', '.join(sorted(weights))}.",
                "It has dice_weight, ce_weight, eta, target_threshold.",
            )
        self.net = SofsNet(backbone, **(head or {}))

    def adapt(self, support: Support) -> SupportState:
        """Encode the support once; its state answers any number of windows and images."""
        return self.net.encode_support(support.image[None], support.mask[None], support.count[None])

    def predict(self, images: Tensor, state: SupportState) -> Prediction:
        """Foreground probability (Q, side, side) of network-ready queries (Q, 3, side, side)."""
        return Prediction(prob=self.net(images[None], state)[0])

    @property
    def ready(self) -> bool:
        """Anomaly detection (normal supports only) uses no learned weight of the head."""
        return self.info.detect

    def load_foreign(self, path: Path) -> None:
        """Load a checkpoint of the original: ``SOFS_model.pth``, names of 2.0.

        Raises:
            UserError: Names or shapes do not fit; all of them are listed.
        """
        load_official(path, self.net)
        self.net.head.fusion_norm = False  # its weights were trained without

    def losses(self, batch: list[Episode]) -> dict[str, Tensor]:
        """Mixed normal Dice and cross-entropy at the feature grid; one backbone pass for the batch."""
        query = torch.stack([e.query_image for e in batch])  # (B, Q, 3, H, W)
        truth = torch.stack([e.query_mask for e in batch])  # (B, Q, H, W)
        image, mask, count = (
            _stack([getattr(e, f"support_{k}") for e in batch]) for k in ("image", "mask", "count")
        )
        logits = self.net.training_logits(query, image, mask, count)  # (B, Q, h, w)
        target = cell_target(truth, (logits.shape[-2], logits.shape[-1]), self.target_threshold)
        return losses(logits, target, self.eta)


def _stack(parts: list[Tensor]) -> Tensor:
    """Stack along a new first axis; shorter ones are filled up with 0, which as a ``count`` means padding."""
    longest = max(len(p) for p in parts)
    return torch.stack([F.pad(p, [0, 0] * (p.ndim - 1) + [0, longest - len(p)]) for p in parts])
