"""SOFS, small-object few-shot segmentation: backbone and head.

"Small Object Few-shot Segmentation for Vision-based Industrial Inspection", arXiv 2407.21351; equations by
the numbers of our specification (sofs, section 2). The head is in ``head``.

Shapes: support images (B, S, 3, H, W), masks (B, S, H, W), counts (B, S); queries (B, Q, 3, H, W); logits
(B, Q, h, w). A state of one episode (B = 1) answers any number of queries without a copy of its tensors.

Example:
    >>> net = SofsNet(Tiny(weights=None), reduce_dim=64, embed_dim=64).eval()
    >>> state = net.encode_support(images, masks, count)       # once per episode
    >>> prob = net(queries, state)                             # (1, Q, H, W), as often as you like
"""

import torch
from torch import Tensor, nn

from fewspect.backbones.base import Backbone, Features
from fewspect.methods.sofs.head import Head, Trace
from fewspect.methods.sofs.state import Segmentation, SupportState
from fewspect.nn.pieces import pieces

__all__ = ["Head", "Segmentation", "SofsNet", "SupportState", "Trace"]


class SofsNet(nn.Module):
    """Backbone and head.

    Args:
        backbone: Any feature extractor with L layers of one width.
        views_per_pass: Support views that the backbone sees at once; bounds the memory.
        head: Options of ``Head``.
    """

    def __init__(
        self, backbone: Backbone, *, views_per_pass: int = 8, **head: int | float | bool | str
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = Head(len(backbone.layers), backbone.dim, **head)  # type: ignore[arg-type]
        self.views_per_pass = views_per_pass

    def features(self, images: Tensor) -> Features:
        """Backbone features of (B, M, 3, H, W) as tokens (B, M, N, C) per layer."""
        flat = images.flatten(0, 1)  # (B * M, 3, H, W)
        return Features.cat([self.backbone(part) for part in pieces(flat, self.views_per_pass)]).grouped(
            len(images)
        )

    def encode_support(
        self, images: Tensor, mask: Tensor, count: Tensor | None = None, trace: Trace | None = None
    ) -> SupportState:
        """Encode support images (B, S, 3, H, W) with masks (B, S, H, W) and counts (B, S)."""
        return self.head.encode_support(self.features(images), mask, count, trace)

    def segment(self, images: Tensor, state: SupportState, trace: Trace | None = None) -> Segmentation:
        """Answer queries (B, Q, 3, H, W) on the feature grid."""
        return self.head.segment(self.features(images), state, trace)

    def forward(self, images: Tensor, state: SupportState) -> Tensor:
        """Foreground probability (B, Q, H, W) of queries (B, Q, 3, H, W), float32."""
        size = (images.shape[-2], images.shape[-1])
        return self.head.probability(self.segment(images, state), state, size)

    def training_logits(
        self, query: Tensor, support: Tensor, mask: Tensor, count: Tensor | None = None
    ) -> Tensor:
        """Logits (B, Q, h, w) of a batch of episodes; queries and supports go through the backbone together.

        Args:
            query: (B, Q, 3, H, W) in [0, 1].
            support: (B, S, 3, H, W) in [0, 1].
            mask: (B, S, H, W); 1 = foreground.
            count: (B, S) multiplicity, 0 = padding.
        """
        queries = query.shape[1]
        both = self.features(torch.cat([query, support], 1))  # (B, Q + S, N, C)
        first, second = (
            Features(tuple(t[:, part] for t in both.tokens), both.grid)
            for part in (slice(queries), slice(queries, None))
        )
        return self.head.segment(first, self.head.encode_support(second, mask, count)).logits
