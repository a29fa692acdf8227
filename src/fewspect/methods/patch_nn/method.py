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
from typing import Any, Literal

import torch
from torch import Tensor

from fewspect.backbones.base import Backbone
from fewspect.errors import UserError
from fewspect.methods.detector import Detector, Fitted, choose, owner_of
from fewspect.methods.products import Products
from fewspect.nn import neighbours as search
from fewspect.nn.foreground import Foreground, find
from fewspect.nn.patches import Join, turned
from fewspect.nn.prototype import unit
from fewspect.types import Episode, Prediction, Support

log = logging.getLogger(__name__)


Looked = tuple[Tensor, Tensor, tuple[int, int]]
"""Patches (V, N, D) of so many views, whose each view is (V,), and the grid of the patches."""


@dataclass(frozen=True, slots=True)
class Bank:
    """Good patches.

    Attributes:
        rows: (M, D) float32, of length 1 for cosine distances.
        owners: (M,) int64: the image that a row comes from.
        asked: Identity of the image that is asked about, when its own rows take no part.
        alone: All rows are the asked image's own: every patch is left out of its own answer instead.
        foreground: Cells outside of it have distance 0; None = every cell counts.
    """

    rows: Tensor
    owners: Tensor
    asked: int | None = None
    alone: bool = False
    foreground: Foreground | None = None


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
        foreground: ``auto`` leaves the background out where good pictures show an object in front of one, see
            ``nn.foreground``; ``none`` compares whole pictures. Not for tiles.
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
        foreground: Literal["none", "auto"] = "none",
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
        if foreground == "auto" and self.view.stride is not None:
            raise UserError(
                "method.foreground=auto looks for the middle of a picture, which tiles do not show.",
                "Set method.foreground=none or method.evaluate.stride=null.",
            )
        self.backbone = backbone
        self.foreground = foreground
        self.neighbours, self.reweight, self.rotations = neighbours, reweight, rotations
        self.metric: search.Metric = metric
        self.join: Join = join
        self.pool = pool
        self.coreset, self.projection, self.chunk_mb = coreset, projection, chunk_mb
        self.banks = Products()
        self._seen: defaultdict[str, list[Looked]] = defaultdict(list)

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
            seen = self._looked(episode.query_image, [owner_of(episode.paths[0])])
            self._seen[episode.product].append(seen)

    def finish(self) -> None:
        """Make the bank of every product."""
        for product in sorted(self._seen):
            tokens, owners, (grid, *_) = zip(*self._seen.pop(product), strict=True)
            bank = self._made(torch.cat(tokens), torch.cat(owners), grid, product)
            front = bank.foreground
            extra = {} if front is None else {"axis": front.axis, "offset": front.offset}
            self.banks.keep(product, rows=bank.rows, owners=bank.owners, **extra)

    def cost(self, images: int) -> search.Cost:
        """Estimate what so many good images of one product will cost."""
        blank = torch.zeros(1, 3, self.view.side, self.view.side, device=self.device)
        with torch.inference_mode():
            seen, *_ = self._looked(blank, [0])
        rows = seen.shape[0] * seen.shape[1]
        return search.cost(
            images,
            rows,
            seen.shape[2],
            keep=self._kept(images * rows),
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
        return self._made(*self._looked(good, list(range(len(good)))), support.product)

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
        if bank.foreground is not None:
            prob = prob * bank.foreground.cells(tokens, grid)
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
        front = Foreground(kept["axis"], kept["offset"]) if "axis" in kept else None
        return Bank(kept["rows"], kept["owners"], None if alone else state.owner, alone, front)

    def _factor(self, tokens: Tensor, prob: Tensor, index: Tensor, bank: Bank) -> Tensor:
        """PatchCore's factor (Q,) on the scores of images."""
        far = prob.argmax(1, keepdim=True)  # (Q, 1)
        query = tokens.gather(1, far[..., None].expand(-1, -1, tokens.shape[-1]))[:, 0]  # (Q, D)
        row = index.gather(1, far)[:, 0]
        return search.weight(query, row, bank.rows, self.reweight, exclude=bank.asked, owners=bank.owners)

    # -- features

    @torch.no_grad()
    def _looked(self, images: Tensor, owners: list[int]) -> Looked:
        """Patches of all views of good images (B, 3, H, W), and whose the views are."""
        tokens, grid = self._tokens(turned(images, self.rotations))
        return tokens, torch.tensor(owners, device=images.device).repeat(self.rotations), grid

    def _made(self, tokens: Tensor, owners: Tensor, grid: tuple[int, int], product: str) -> Bank:
        """The bank of good patches (V, N, D) of so many views."""
        front = find(tokens, grid) if self.foreground == "auto" else None
        rows, whose = tokens.flatten(0, 1), owners.repeat_interleave(tokens.shape[1])
        if front is not None:
            inside = front.cells(tokens, grid).flatten()
            rows, whose = rows[inside], whose[inside]
            log.info("%s: the object covers %.0f %% of the pictures", product, 100 * inside.float().mean())
        elif self.foreground == "auto":
            log.info("%s: no object in front of a background, whole pictures are compared", product)
        return Bank(*self._reduced(rows, whose), foreground=front)

    def _tokens(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        features = self.backbone(images)
        cosine = self.metric == "cosine"
        tokens = features.joined(join=self.join, pool=self.pool, equal=cosine)
        return unit(tokens) if cosine else tokens, features.grid

    def _reduced(self, rows: Tensor, owners: Tensor) -> tuple[Tensor, Tensor]:
        """The rows and owners that are kept."""
        number = self._kept(len(rows))
        if number is None:
            return rows, owners
        kept = search.k_centre(
            rows,
            number,
            width=self.projection,
            seed=self.seed,
            progress=lambda done, all_: log.info("coreset: %d of %d rows", done, all_),
        )
        return rows[kept], owners[kept]

    def _kept(self, rows: int) -> int | None:
        """How many of so many rows are kept; None = all."""
        if self.coreset is None:
            return None
        number = max(1, round(self.coreset * rows)) if self.coreset <= 1 else int(self.coreset)
        return number if number < rows else None
