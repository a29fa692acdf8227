"""InContext: a patch belongs to the defect when it is more like a marked patch than like any unmarked one.

Nothing is trained and nothing is solved. All unmarked patches of the supports, and those of good supports,
are what a patch has to be told from; a query patch whose nearest support patch is not marked is background
(the backward check of in-context segmenters, here without a second search). Patches that look alike may
decide together.

Shapes: images (Q, 3, H, W) in [0, 1], maps (Q, H, W).

Example:
    >>> method = InContext(Tiny())
    >>> state = method.adapt(support)
    >>> prob = method.predict(images, state).prob
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from scipy.cluster import hierarchy
from torch import Tensor

from fewspect.backbones.base import Backbone
from fewspect.errors import UserError
from fewspect.methods.graphs import Graph
from fewspect.methods.segmenter import Segmenter, Sliding
from fewspect.nn.neighbours import nearest
from fewspect.nn.patches import Join, resized
from fewspect.nn.prototype import intensity, unit
from fewspect.types import Episode, Prediction, Support

MARKED = 0.5
"""A cell is marked when its foreground share reaches this part of the largest share in its view."""


@dataclass(frozen=True, slots=True)
class Examples:
    """What patches are compared with.

    Attributes:
        marked: (J, D) unit features of the defect.
        unmarked: (M, D) unit features of everything else.
    """

    marked: Tensor
    unmarked: Tensor


class InContext(Segmenter):
    """Cosine to the defect minus cosine to everything else.

    Args:
        backbone: Feature extractor; its ``layers`` are joined.
        join: ``concat`` or ``mean`` of the layers, see ``nn.patches``.
        pool: Mean of the features over this many cells in both directions; 1 = none.
        margin: How much nearer the defect has to be.
        sharpness: Factor between the difference of two cosines and a logit.
        clusters: Cosine distance up to which the patches of an image are grouped (average linkage) and decide
            together; 0 = each for itself.
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
        margin: float = 0.0,
        sharpness: float = 20.0,
        clusters: float = 0.0,
        **options: Any,  # noqa: ANN401 - evaluate, seed: checked by the bases
    ) -> None:
        super().__init__(**options)
        self.join: Join = join
        self.backbone, self.pool = backbone, pool
        self.margin, self.sharpness, self.clusters = margin, sharpness, clusters

    def adapt(self, support: Support) -> Examples:
        """Part the support's patches by its masks; cells that are partly marked belong to neither side.

        Raises:
            UserError: No support shows a defect.
        """
        self.require_defect(support)
        tokens, grid = self._tokens(support.image)  # (S, N, D)
        share = intensity(support.mask, grid).flatten(1)  # (S, N)
        largest = share.amax(1, keepdim=True)
        marked = (share > 0) & (share >= MARKED * largest)
        return Examples(tokens[marked], tokens[share == 0])

    def predict(self, images: Tensor, state: Examples) -> Prediction:
        """Foreground probability (Q, side, side) of network-ready queries (Q, 3, side, side)."""
        tokens, grid = self._tokens(images)  # (Q, N, D)
        flat = tokens.flatten(0, 1)
        like = _cosine(flat, state.marked) - _cosine(flat, state.unmarked) - self.margin
        like = like.unflatten(0, tokens.shape[:2])
        if self.clusters > 0:
            like = torch.stack([shared(*pair, self.clusters) for pair in zip(like, tokens, strict=True)])
        return Prediction(prob=torch.sigmoid(self.sharpness * resized(like, grid, images.shape[-1])))

    def exported(self, episode: Episode) -> Graph:
        """See ``Method.exported``.

        Raises:
            UserError: Patches decide together.
        """
        if self.clusters > 0:
            raise UserError(
                "InContext cannot be exported with clusters: grouping patches is no graph.",
                "Set method.clusters=0.",
            )
        return super().exported(episode)

    def _tokens(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Joined features (B, N, D) of length 1 and their grid."""
        features = self.backbone(images)
        return unit(features.joined(join=self.join, pool=self.pool)), features.grid


def shared(values: Tensor, tokens: Tensor, distance: float) -> Tensor:
    """Mean of the values (N,) over groups of tokens (N, D) of length 1 that look alike, (N,)."""
    tree = hierarchy.linkage(tokens.detach().cpu().double().numpy(), "average", metric="cosine")
    group = torch.from_numpy(hierarchy.fcluster(tree, distance, "distance").astype(np.int64) - 1)
    group = group.to(values.device)
    total = values.new_zeros(int(group.max()) + 1).index_add_(0, group, values)
    return (total / torch.bincount(group).to(values))[group]


def _cosine(query: Tensor, rows: Tensor) -> Tensor:
    """Largest cosine (n,) of every query (n, D) with rows (m, D); -1 without rows."""
    if not len(rows):
        return query.new_full((len(query),), -1.0)
    return 1 - nearest(query, rows)[0][:, 0]
