"""Views of the network's size without shrinking small defects (SOFS, section 1.6).

A support with a large defect is shown whole; one with a small defect is shown as crops around foreground
pixels, all of which contain foreground. Views that would be identical are made once and carry a count.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fewspect.errors import UserError
from fewspect.nn.windows import crop_box, resize_mask, resize_pad

log = logging.getLogger(__name__)

Change = Callable[[Tensor, Tensor, np.random.Generator], tuple[Tensor, Tensor]]
"""Augmentation of (image, mask) with a generator."""


@dataclass(frozen=True, slots=True)
class View:
    """One view of an image.

    Attributes:
        image: (3, side, side) float32 in [0, 1].
        mask: (side, side) uint8 in {0, 1}.
        count: How many identical views this one stands for.
    """

    image: Tensor
    mask: Tensor
    count: float = 1.0


@dataclass(frozen=True, slots=True)
class Cropper:
    """The rules that turn an image of any size into views.

    Attributes:
        side: Side of the network input in pixels.
        crop_size: Side of a crop in image pixels.
        crops: Views per support image.
        crop_ratio: Training: the crop side is multiplied by a factor drawn from this interval.
        large_ratio: Foreground fraction above which a defect is large and its image is shown whole.
        background_query_prob: Training: how often a query crop is centred on a background pixel.
        parity: Draw offsets from 0..crop as the original does (the centre can then fall just outside the
            crop), and make identical crops one by one.
    """

    side: int
    crop_size: int
    crops: int = 4
    crop_ratio: tuple[float, float] = (1.0, 1.0)
    large_ratio: float = 0.01
    background_query_prob: float = 0.3
    parity: bool = False

    def is_large(self, mask: Tensor) -> bool:
        """Whether the foreground of a mask (H, W) is a large defect."""
        return float(mask.count_nonzero()) > self.large_ratio * mask.numel()

    def support(
        self, image: Tensor, mask: Tensor, r: np.random.Generator, change: Change | None = None
    ) -> list[View]:
        """Views of a defective support, together of count ``crops``.

        Args:
            image: (3, H, W) uint8.
            mask: (H, W) uint8 in {0, 1}, not empty.
            r: Source of all draws.
            change: Training: augmentation of each view, also switches ``crop_ratio`` on.

        Raises:
            UserError: When the mask is empty.
        """
        if not bool(mask.any()):
            raise UserError(
                "A support mask is empty.", "Give it as a normal support (data.normal_shot) instead."
            )
        if self.is_large(mask):
            return [self._view(image, mask, r, change, self.crops)]
        return self._crops(image, mask, mask.nonzero().numpy(), r, change)

    def normal(
        self, image: Tensor, r: np.random.Generator, change: Change | None = None, *, whole: bool
    ) -> list[View]:
        """Views of a good support (zero masks): the image in one piece, or crops anywhere."""
        mask = torch.zeros(image.shape[1:], dtype=torch.uint8)
        if whole:
            return [self._view(image, mask, r, change, self.crops)]
        return self._crops(image, mask, None, r, change)

    def query(
        self, image: Tensor, mask: Tensor, r: np.random.Generator, change: Change | None = None
    ) -> View:
        """One training view: whole if the defect is large, otherwise a crop on foreground or background.

        Pixels of 255 (ignore) are treated as background when the centre is chosen.
        """
        front = mask == 1
        if self.is_large(front):
            return self._view(image, mask, r, change)
        on_background = not bool(front.any()) or r.random() < self.background_query_prob
        centres = None if on_background else front.nonzero().numpy()
        top, bottom, left, right = self._box(front, centres, self._crop_side(r, change), r)
        return self._view(image[:, top:bottom, left:right], mask[top:bottom, left:right], r, change)

    def _crops(
        self,
        image: Tensor,
        mask: Tensor,
        centres: np.ndarray | None,
        r: np.random.Generator,
        change: Change | None,
    ) -> list[View]:
        """``crops`` random views; equal boxes are one view with a count."""
        boxes: dict[tuple, int] = {}
        for number in range(self.crops):
            box = self._box(mask, centres, self._crop_side(r, change), r)
            key = (*box, number if self.parity else 0)
            boxes[key] = boxes.get(key, 0) + 1
        views = []
        for (top, bottom, left, right, _), count in boxes.items():
            part = mask[top:bottom, left:right]
            if centres is not None and not bool(part.any()):
                log.warning("A support crop contains no foreground (parity=true allows this).")
            views.append(self._view(image[:, top:bottom, left:right], part, r, change, count))
        return views

    def _box(
        self, mask: Tensor, centres: np.ndarray | None, crop: int, r: np.random.Generator
    ) -> tuple[int, int, int, int]:
        """Draw a crop around one of ``centres`` (N, 2); None = a background pixel of ``mask``."""
        height, width = mask.shape
        row, column = _background(mask, r) if centres is None else centres[r.integers(len(centres))]
        down, right = r.integers(0 if self.parity else 1, crop, 2, endpoint=True)
        return crop_box(int(row), int(column), height, width, crop, int(down), int(right))

    def _crop_side(self, r: np.random.Generator, change: Change | None) -> int:
        if change is None or tuple(self.crop_ratio) == (1.0, 1.0):
            return self.crop_size
        return max(1, int(self.crop_size * r.uniform(*self.crop_ratio)))

    def _view(
        self, image: Tensor, mask: Tensor, r: np.random.Generator, change: Change | None, count: float = 1
    ) -> View:
        if change is not None:
            image, mask = change(image, mask, r)
        return View(resize_pad(image, self.side), resize_mask(mask, self.side), float(count))


def _background(mask: Tensor, r: np.random.Generator) -> tuple[int, int]:
    """A background pixel; any pixel when there is none."""
    height, width = mask.shape
    found = np.flatnonzero(mask.numpy().ravel() == 0)
    at = int(r.choice(found)) if len(found) else int(r.integers(height * width))
    return divmod(at, width)
