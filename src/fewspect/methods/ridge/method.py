"""Ridge: which direction of a frozen feature space means this defect? One linear solve per support.

The strongest frozen-feature segmenter per line: it must be beaten by whatever is trained. Masks give soft
labels (the foreground share of every cell), so that defects smaller than a cell count, too.

Shapes: images (Q, 3, H, W) in [0, 1], maps (Q, H, W).

Example:
    >>> method = Ridge(Tiny())
    >>> state = method.adapt(support)
    >>> prob = method.predict(images, state).prob
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from fewspect.backbones.base import Backbone
from fewspect.methods.segmenter import Segmenter, Sliding
from fewspect.nn import token_ridge
from fewspect.nn.patches import Join, resized
from fewspect.nn.prototype import intensity
from fewspect.types import Prediction, Support


class Ridge(Segmenter):
    """Balanced ridge regression from patch features to foreground shares.

    Args:
        backbone: Feature extractor; its ``layers`` are joined.
        join: ``concat`` or ``mean`` of the layers, see ``nn.patches``.
        pool: Mean of the features over this many cells in both directions; 1 = none.
        equal: Bring the features of every layer to length 1 first.
        options: See ``Segmenter`` and ``Method``.
    """

    fit_kind = "none"
    needs_defect = True
    schema: ClassVar[dict[str, Any]] = {"evaluate": Sliding}

    def __init__(
        self,
        backbone: Backbone,
        *,
        join: Join = "concat",
        pool: int = 1,
        equal: bool = False,
        **options: Any,  # noqa: ANN401 - evaluate, seed: checked by the bases
    ) -> None:
        super().__init__(**options)
        self.join: Join = join
        self.backbone, self.pool, self.equal = backbone, pool, equal

    def adapt(self, support: Support) -> token_ridge.RidgeMap:
        """Solve for the support's masks.

        Raises:
            UserError: No support shows a defect.
        """
        self.require_defect(support)
        tokens, grid = self._tokens(support.image)  # (S, N, D)
        share = intensity(support.mask, grid).flatten(1)  # (S, N)
        weight = support.count[:, None].expand_as(share)
        return token_ridge.fit(tokens.flatten(0, 1), share.flatten(), weight.flatten())

    def predict(self, images: Tensor, state: token_ridge.RidgeMap) -> Prediction:
        """Foreground probability (Q, side, side) of network-ready queries (Q, 3, side, side)."""
        tokens, grid = self._tokens(images)
        pixels = resized(state.logits(tokens), grid, images.shape[-1])
        return Prediction(prob=torch.sigmoid(pixels))

    def _tokens(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Joined features (B, N, D) and their grid."""
        features = self.backbone(images)
        return features.joined(join=self.join, pool=self.pool, equal=self.equal), features.grid
