"""One-shot episodes on random surfaces; item i is a pure function of (seed, i)."""

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fewspect.data.pretext.style import Style, paint
from fewspect.data.pretext.surface import Surface, render

DISTRACTOR = 0.3
"""How often a picture also shows a defect of another style, which is not in the mask."""

NORMAL = 0.12
"""How often the query shows no defect of the class."""

GREY = 0.5
"""Share of grey episodes."""

SMALLEST, LARGEST = 4, 0.45
"""Smallest defect in pixels, largest as a share of the picture."""

ATTEMPTS = 6


class Pretext(Dataset[tuple[Tensor, Tensor]]):
    """Episodes of P = 1 + shots pictures, the query first: images (P, 3, side, side), masks (P, side, side).

    Args:
        length: Number of episodes.
        seed: Seed of all draws.
        side: Height and width in pixels.
        shots: Support pictures.
    """

    def __init__(self, length: int, seed: int, side: int = 96, shots: int = 1) -> None:
        self.length, self.seed, self.side, self.shots = length, seed, side, shots

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, item: int) -> tuple[Tensor, Tensor]:
        if not 0 <= item < self.length:
            raise IndexError(item)
        images, masks = episode(np.random.default_rng((self.seed, item)), self.side, self.shots)
        if np.random.default_rng(item + 1).random() < GREY:
            grey = images.astype(np.float32).mean(-1, keepdims=True).astype(np.uint8)
            images = np.repeat(grey, 3, -1)
        return torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(masks)


def episode(r: np.random.Generator, side: int, shots: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw a surface and a class, then 1 + shots pictures of it.

    Returns:
        Images (1 + shots, side, side, 3) uint8 and masks (1 + shots, side, side) uint8 in {0, 1}.
    """
    surface, style, other = Surface.draw(r), Style.draw(r), Style.draw(r)
    pictures = [_picture(r, surface, style, other, side, query=i == 0) for i in range(shots + 1)]
    images, masks = zip(*pictures, strict=True)
    return np.stack(images), np.stack(masks)


def _picture(
    r: np.random.Generator, surface: Surface, style: Style, other: Style, side: int, *, query: bool
) -> tuple[np.ndarray, np.ndarray]:
    image, mask = np.zeros((side, side, 3), np.float32), np.zeros((side, side), np.uint8)
    for _ in range(ATTEMPTS):
        image = render(surface, r, side)
        if r.random() < DISTRACTOR:
            image, _ = paint(image, other, r)
        if query and r.random() < NORMAL:
            mask = np.zeros((side, side), np.uint8)
            break
        painted, mask = paint(image, style, r)
        if SMALLEST <= mask.sum() < side * side * LARGEST:
            image = painted
            break
    image = np.clip(image + r.standard_normal(image.shape) * 0.005, 0, 1)
    return (image * 255).astype(np.uint8), mask
