"""The contract of every feature extractor: an image in [0, 1] in, token layers on one common grid out.

A frozen backbone stays in evaluation mode inside ``.train()``, has no trainable parameter and computes no
gradient. It normalises its own input. It obeys an autocast region around it; what needs float32 is cast by
who uses the tokens.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from fewspect.errors import UserError
from fewspect.nn import patches
from fewspect.nn.patches import Join

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class Features:
    """What a backbone returns.

    Attributes:
        tokens: One (B, N, D) per requested layer, row-major over the grid.
        grid: Feature rows and columns (h, w); N = h * w.
        cls: One (B, D) class token per layer, or None where the network has none.
    """

    tokens: tuple[Tensor, ...]
    grid: tuple[int, int]
    cls: tuple[Tensor, ...] | None = None

    def maps(self) -> tuple[Tensor, ...]:
        """One (B, D, h, w) per layer."""
        return tuple(t.transpose(-1, -2).unflatten(-1, self.grid) for t in self.tokens)

    def joined(self, *, join: Join = "concat", pool: int = 1, equal: bool = True) -> Tensor:
        """One descriptor per cell (B, N, L * D or D), see ``nn.patches.joined``."""
        return patches.joined(self.tokens, self.grid, join=join, pool=pool, equal=equal)

    def split(self, *sizes: int) -> tuple["Features", ...]:
        """Cut along the batch."""
        parts = zip(*(t.split(sizes) for t in self.tokens), strict=True)
        heads = (
            [None] * len(sizes) if self.cls is None else zip(*(c.split(sizes) for c in self.cls), strict=True)
        )
        return tuple(Features(p, self.grid, c) for p, c in zip(parts, heads, strict=True))

    def grouped(self, groups: int) -> "Features":
        """Tokens as (B, M, N, D), the batch of B * M images taken as B groups of consecutive images."""
        cls = None if self.cls is None else tuple(c.unflatten(0, (groups, -1)) for c in self.cls)
        return Features(tuple(t.unflatten(0, (groups, -1)) for t in self.tokens), self.grid, cls)

    @staticmethod
    def cat(parts: Sequence["Features"]) -> "Features":
        """Join along the batch; all parts have the same layers and grid."""
        if len(parts) == 1:
            return parts[0]
        tokens = tuple(torch.cat(layer) for layer in zip(*(p.tokens for p in parts), strict=True))
        heads = [p.cls for p in parts if p.cls is not None]
        cls = (
            tuple(torch.cat(layer) for layer in zip(*heads, strict=True))
            if len(heads) == len(parts)
            else None
        )
        return Features(tokens, parts[0].grid, cls)


class Backbone(nn.Module):
    """Base of all feature extractors.

    Args:
        name: Identity, part of cache keys and reports.
        dim: Width D of every layer's tokens.
        stride: Image pixels per feature cell.
        side: Preferred side of the square input in pixels.
        layers: Which layers are returned, ascending.
        frozen: No training, no gradient, always evaluation mode.

    Raises:
        UserError: ``layers`` is empty or not ascending, or ``side`` is not a multiple of ``stride``.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, name: str, dim: int, stride: int, side: int, layers: Sequence[int], *, frozen: bool
    ) -> None:
        super().__init__()
        self.name, self.dim, self.stride, self.side, self.frozen = name, dim, stride, side, frozen
        self.layers = tuple(int(layer) for layer in layers)
        if not self.layers or list(self.layers) != sorted(set(self.layers)):
            raise UserError(
                f"Backbone {name}: layers={list(layers)}.", "List each layer once, in ascending order."
            )
        self._check_size(side, side)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    @abstractmethod
    def encode(self, image: Tensor) -> Features:
        """Features of a normalised image (B, 3, H, W)."""

    def forward(self, image: Tensor, alpha: Tensor | None = None) -> Features:
        """Normalise and encode.

        Args:
            image: (B, 3, H, W) float in [0, 1]; H and W are multiples of ``stride``.
            alpha: (B, 1, H, W) attention mask for backbones that take one; the others do without.

        Raises:
            UserError: The size does not fit the stride.
        """
        del alpha
        self._check_size(*image.shape[-2:])
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self.encode((image - self.mean) / self.std)

    def train(self, mode: bool = True) -> Self:
        """Switch the mode; a frozen backbone stays in evaluation mode."""
        return super().train(mode and not self.frozen)

    def freeze(self) -> None:
        """To be called at the end of a constructor: make ``frozen`` true in fact."""
        if self.frozen:
            self.requires_grad_(False).eval()

    def _check_size(self, height: int, width: int) -> None:
        if height % self.stride or width % self.stride or min(height, width) < self.stride:
            near = max(1, round(height / self.stride)) * self.stride
            raise UserError(
                f"Backbone {self.name}: {height} x {width} pixels do not fit its stride {self.stride}.",
                f"Choose a side that is a multiple of {self.stride}, e.g. {near}.",
            )
