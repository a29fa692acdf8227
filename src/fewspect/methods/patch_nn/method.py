"""Memory bank of good patches: an image is as abnormal as its patches are far from all good ones.

PatchCore (arXiv 2106.08265) and AnomalyDINO (arXiv 2405.14529) in one class; nothing is trained. The bank is
made in one pass over the good images, or by ``adapt`` from the images of a support.

Shapes: images (Q, 3, H, W) in [0, 1], bank (M, D), map (Q, h, w) on the backbone's grid.

Example:
    >>> method = PatchNN(Tiny())
    >>> state = method.adapt(support)              # good images
    >>> distance = method.predict(images, state).prob
"""

import logging
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewspect.backbones.base import Backbone
from fewspect.errors import UserError
from fewspect.methods.detector import Detector, Fitted, choose, owner_of
from fewspect.methods.products import Products
from fewspect.nn import neighbours as search
from fewspect.nn.patches import Join, turned
from fewspect.nn.prototype import unit
from fewspect.types import Episode, Prediction, Support

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Bank:
    """Good patches.

    Attributes:
        rows: (M, D) float32, of length 1 for cosine distances.
        owners: (M,) int64: the image that a row comes from.
        asked: Identity of the image that is asked about, when its own rows take no part.
        alone: All rows are the asked image's own: every patch is left out of its own answer instead.
    """

    rows: Tensor
    owners: Tensor
    asked: int | None = None
    alone: bool = False


class PatchNN(Detector):
    """Nearest neighbours of patch features.

    Args:
        backbone: Feature extractor; its ``layers`` are joined.
        neighbours: k; the distance of a patch is the mean over its k nearest good ones.
        metric: ``cosine`` (AnomalyDINO) or ``euclidean`` (PatchCore).
        join: ``concat`` or ``mean`` of the layers, see ``nn.patches``.
        pool: Mean of the features over this many cells in both directions; 1 = none.
        rotations: Views of every good image, turned by 360 / rotations degrees; for few images of parts that
            lie in any direction.
        coreset: Rows that are kept (greedy k-centre): a share up to 1, or a number, of which there may be
            fewer; None = all.
        projection: The coreset is chosen after a random projection to this width; None = exact.
        reweight: b of PatchCore's factor on the image score (eq. 7); the map gets the same factor. 1 = none.
        chunk_mb: Bound on the memory of a search in MiB.
        options: See ``Detector`` and ``Method``.
    """

    fit_kind = "single_pass"

    def __init__(
        self,
        backbone: Backbone,
        *,
        neighbours: int = 1,
        metric: search.Metric = "cosine",
        join: Join = "concat",
        pool: int = 1,
        rotations: int = 1,
        coreset: float | None = None,
        projection: int | None = 64,
        reweight: int = 1,
        chunk_mb: float = 64.0,
        **options: Any,  # noqa: ANN401 - evaluate, maps, threshold, clean, seed: checked by the bases
    ) -> None:
        super().__init__(**options)
        if coreset is not None and (coreset <= 0 or (coreset > 1 and coreset != int(coreset))):
            raise UserError(
                f"method.coreset={coreset} is neither a share nor a number of rows.",
                "Give a share up to 1, a whole number of rows, or null.",
            )
        if min(neighbours, rotations, reweight) < 1 or pool % 2 == 0:
            raise UserError(
                "method.neighbours, rotations and reweight are at least 1, method.pool is odd.",
                "1 switches each of them off.",
            )
        self.backbone = backbone
        self.neighbours, self.reweight, self.rotations = neighbours, reweight, rotations
        self.metric: search.Metric = metric
        self.join: Join = join
        self.pool = pool
        self.coreset, self.projection, self.chunk_mb = coreset, projection, chunk_mb
        self.banks = Products()
        self._seen: defaultdict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)

    # -- learning: one pass over the good images

    def on_train_epoch_start(self) -> None:
        """A pass begins: say what it will cost, and forget what another pass has begun."""
        self._seen.clear()
        loader: Any = self.trainer.train_dataloader
        images = min(len(loader.dataset), int(self.trainer.num_training_batches) * loader.batch_size)
        products = max(1, len(self.info.products))
        each = -(-images // products)
        log.info("patch_nn, %d product(s) with about %d images each: %s", products, each, self.cost(each))

    def observe(self, batch: list[Episode]) -> None:
        """Put the patches of good images aside."""
        for episode in batch:
            rows, owners = self._rows(episode.query_image, [owner_of(episode.paths[0])])
            self._seen[episode.product].append((rows, owners))

    def finish(self) -> None:
        """Make the bank of every product."""
        for product in sorted(self._seen):
            parts = self._seen.pop(product)
            self.banks.keep(product, **self._reduced(*(torch.cat(p) for p in zip(*parts, strict=True))))

    def cost(self, images: int) -> search.Cost:
        """Estimate what so many good images of one product will cost."""
        with torch.inference_mode():
            rows, _ = self._rows(torch.zeros(1, 3, self.view.side, self.view.side, device=self.device), [0])
        return search.cost(
            images,
            len(rows),
            rows.shape[1],
            keep=self._kept(images * len(rows)),
            width=self.projection,
            device=self.device,
        )

    # -- answers

    def adapt(self, support: Support) -> Bank | Fitted:
        """A bank of the support's good images; without any, the one that was learned for the product."""
        if not len(support.image):
            return Fitted(support.product)
        good = support.image[support.label == 0]
        if not len(good):
            raise UserError("The support has no good image to make a memory bank of.", "Give good images.")
        return Bank(**self._reduced(*self._rows(good, list(range(len(good))))))

    def predict(self, images: Tensor, state: Bank | Fitted) -> Prediction:
        """Distances (Q, h, w) of the patches of images (Q, 3, H, W) to the bank, at least 0."""
        bank = self.settled(state)
        tokens, grid = self._tokens(images)  # (Q, N, D)
        distance, index = search.nearest(
            tokens.flatten(0, 1),
            bank.rows,
            self.neighbours + bank.alone,
            metric=self.metric,
            exclude=bank.asked,
            owners=bank.owners,
            chunk_mb=self.chunk_mb,
            half=self.metric == "cosine" and images.device.type == "cuda",
        )
        distance, index = distance[:, bank.alone :], index[:, bank.alone :]
        prob = distance.mean(1).view(tokens.shape[:2])  # (Q, N)
        if self.reweight > 1:
            prob = prob * self._factor(tokens, prob, index[:, 0].view_as(prob), bank)[:, None]
        return Prediction(prob=prob.unflatten(1, grid))

    def settled(self, state: Bank | Fitted) -> Bank:
        """See ``Detector.settled``."""
        return self._bank(state) if isinstance(state, Fitted) else state

    def _bank(self, state: Fitted) -> Bank:
        """The bank of a product, without the rows of the asked image."""
        if not self.banks.known:
            raise UserError("patch_nn has no memory bank yet.", "Run mode=train with good images first.")
        kept = self.banks.of(choose(state.product, self.banks.known))
        alone = state.owner is not None and bool((kept["owners"] == state.owner).all())
        return Bank(kept["rows"], kept["owners"], None if alone else state.owner, alone)

    def _factor(self, tokens: Tensor, prob: Tensor, index: Tensor, bank: Bank) -> Tensor:
        """PatchCore's factor (Q,) on the scores of images."""
        far = prob.argmax(1, keepdim=True)  # (Q, 1)
        query = tokens.gather(1, far[..., None].expand(-1, -1, tokens.shape[-1]))[:, 0]  # (Q, D)
        row = index.gather(1, far)[:, 0]
        return search.weight(query, row, bank.rows, self.reweight, exclude=bank.asked, owners=bank.owners)

    # -- features

    @torch.no_grad()
    def _rows(self, images: Tensor, owners: list[int]) -> tuple[Tensor, Tensor]:
        """Rows (M, D) of good images (B, 3, H, W) in all their views, and whose they are (M,)."""
        tokens, _ = self._tokens(turned(images, self.rotations))  # (rotations * B, N, D)
        whose = torch.tensor(owners, device=images.device).repeat(self.rotations)
        return tokens.flatten(0, 1), whose.repeat_interleave(tokens.shape[1])

    def _tokens(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        features = self.backbone(images)
        cosine = self.metric == "cosine"
        tokens = features.joined(join=self.join, pool=self.pool, equal=cosine)
        return unit(tokens) if cosine else tokens, features.grid

    def _reduced(self, rows: Tensor, owners: Tensor) -> dict[str, Any]:
        """The rows and owners that are kept."""
        number = self._kept(len(rows))
        if number is None:
            return {"rows": rows, "owners": owners}
        kept = search.k_centre(
            rows,
            number,
            width=self.projection,
            seed=self.seed,
            progress=lambda done, all_: log.info("coreset: %d of %d rows", done, all_),
        )
        return {"rows": rows[kept], "owners": owners[kept]}

    def _kept(self, rows: int) -> int | None:
        """How many of so many rows are kept; None = all."""
        if self.coreset is None:
            return None
        number = max(1, round(self.coreset * rows)) if self.coreset <= 1 else int(self.coreset)
        return number if number < rows else None
