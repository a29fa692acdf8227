"""Distance of patch features to the principal subspace of good ones.

One pass adds up first and second moments, so the state does not grow with the number of images. Feature
reconstruction error by principal components: FRE (arXiv 2204.02624); over layers of a vision transformer:
SubspaceAD (arXiv 2602.23013).

The moments are kept in ``FOLDS`` parts, to which the images go in turn. For thresholds, an image that was
learned from is judged by the subspace of the other parts.

Shapes: images (Q, 3, H, W) in [0, 1], map (Q, h, w) on the backbone's grid.

Example:
    >>> method = SubspaceAD(Tiny())
    >>> state = method.adapt(support)              # good images
    >>> residual = method.predict(images, state).prob
"""

import logging
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from fewspect.backbones.base import Backbone
from fewspect.errors import UserError
from fewspect.methods.detector import Detector, Fitted, choose, owner_of
from fewspect.methods.products import Products
from fewspect.nn.patches import Join, turned
from fewspect.nn.subspace import Moments, Subspace
from fewspect.types import Episode, Prediction, Support

log = logging.getLogger(__name__)

FOLDS = 5
"""Parts of the training images; up to so many images, each one is a part of its own."""


class SubspaceAD(Detector):
    """Residual of a principal subspace.

    Args:
        backbone: Feature extractor; its ``layers`` are joined.
        variance: Share of the variance that the subspace holds, in (0, 1).
        join: ``concat`` or ``mean`` of the layers, see ``nn.patches``.
        pool: Mean of the features over this many cells in both directions; 1 = none.
        equal: Every layer's tokens are brought to length 1 before they are joined.
        rotations: Views of every good image, turned by 360 / rotations degrees.
        options: See ``Detector`` and ``Method``.
    """

    fit_kind = "single_pass"

    def __init__(
        self,
        backbone: Backbone,
        *,
        variance: float = 0.95,
        join: Join = "concat",
        pool: int = 1,
        equal: bool = True,
        rotations: int = 1,
        **options: Any,  # noqa: ANN401 - evaluate, maps, threshold, clean, seed: checked by the bases
    ) -> None:
        super().__init__(**options)
        if not 0 < variance < 1:
            raise UserError(f"method.variance={variance} is no share of the variance.", "Give e.g. 0.95.")
        if rotations < 1 or pool % 2 == 0:
            raise UserError("method.rotations is at least 1, method.pool is odd.", "1 switches both off.")
        self.backbone = backbone
        self.variance, self.pool, self.equal, self.rotations = variance, pool, equal, rotations
        self.join: Join = join
        self.subspaces = Products()
        self._owners: defaultdict[str, dict[int, int]] = defaultdict(dict)  # owner -> position
        self._parts: defaultdict[str, dict[int, Moments]] = defaultdict(dict)

    # -- learning: one pass over the good images

    def on_train_epoch_start(self) -> None:
        """A pass begins: forget what another pass has begun."""
        self._parts.clear()
        self._owners.clear()

    def observe(self, batch: list[Episode]) -> None:
        """Add the features of good images to the moments of their parts."""
        for episode in batch:
            owners, parts = self._owners[episode.product], self._parts[episode.product]
            fold = owners.setdefault(owner_of(episode.paths[0]), len(owners)) % FOLDS
            rows = self._rows(episode.query_image)
            parts.setdefault(fold, Moments(rows.shape[1], rows.device)).add(rows)

    def finish(self) -> None:
        """Make the subspaces of every product: without part 0, 1, ..., and of all parts."""
        for product in sorted(self._parts):
            parts, owners = self._parts.pop(product), self._owners.pop(product)
            whole = Subspace.of(Moments.sum(list(parts.values())), self.variance)
            made = [self._without(fold, parts, whole) for fold in range(FOLDS)] + [whole]
            self.subspaces.keep(
                product,
                owners=torch.tensor(list(owners), device=whole.mean.device),
                mean=torch.stack([s.mean for s in made]),  # (FOLDS + 1, D)
                basis=torch.stack([s.basis for s in made]),  # (FOLDS + 1, D, k)
                outside=torch.tensor(whole.outside, device=whole.mean.device),
            )
            log.info("%s: %d of %d directions", product or "subspace", whole.rank, len(whole.mean))

    def _without(self, fold: int, parts: dict[int, Moments], whole: Subspace) -> Subspace:
        """The subspace of all parts but one, with as many directions as the whole."""
        others = [moments for key, moments in parts.items() if key != fold]
        if not others or fold not in parts:  # one image only, or none in this part
            return whole
        return Subspace.of(Moments.sum(others), self.variance, whole.rank)

    # -- answers

    def adapt(self, support: Support) -> Subspace | Fitted:
        """The subspace of the support's good images; without any, the one learned for the product."""
        if not len(support.image):
            return Fitted(support.product)
        good = support.image[support.label == 0]
        if not len(good):
            raise UserError("The support has no good image to learn from.", "Give good images.")
        rows = self._rows(good)
        moments = Moments(rows.shape[1], rows.device)
        moments.add(rows)
        return Subspace.of(moments, self.variance)

    def predict(self, images: Tensor, state: Subspace | Fitted) -> Prediction:
        """Squared distances (Q, h, w) of the features of images (Q, 3, H, W) to the subspace, at least 0."""
        subspace = self.settled(state)
        tokens, grid = self._tokens(images)
        return Prediction(prob=subspace.residual(tokens).unflatten(1, grid))

    def settled(self, state: Subspace | Fitted) -> Subspace:
        """See ``Detector.settled``."""
        return self._fitted(state) if isinstance(state, Fitted) else state

    def _fitted(self, state: Fitted) -> Subspace:
        """The subspace of a product; for an image that was learned from, the one without its part."""
        if not self.subspaces.known:
            raise UserError("subspace has learned nothing yet.", "Run mode=train with good images first.")
        kept = self.subspaces.of(choose(state.product, self.subspaces.known))
        at = FOLDS
        if state.owner is not None and bool((kept["owners"] == state.owner).any()):
            at = int((kept["owners"] == state.owner).nonzero()[0, 0]) % FOLDS
        return Subspace(kept["mean"][at], kept["basis"][at], bool(kept["outside"]))

    # -- features

    @torch.no_grad()
    def _rows(self, images: Tensor) -> Tensor:
        """Tokens (M, D) of good images (B, 3, H, W) in all their views."""
        return self._tokens(turned(images, self.rotations))[0].flatten(0, 1)

    def _tokens(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Joined tokens (Q, N, D) and their grid."""
        features = self.backbone(images)
        return features.joined(join=self.join, pool=self.pool, equal=self.equal), features.grid
