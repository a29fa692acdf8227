"""Views as the original cuts them: Pillow, two bicubic steps, image and mask alike (spec mvrec, 2.3)."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fewspect.nn.views import Box

BETWEEN = 512
"""Every crop is brought to this side first (published)."""


def cut_exactly(
    image: Image.Image, mask: Image.Image, boxes: Sequence[Box], side: int
) -> tuple[Tensor, Tensor]:
    """Crop, resize to 512, resize to ``side``; single-channel pictures become colour last.

    Args:
        image: The image, ``L`` or ``RGB``.
        mask: ``L``, 0 to 255.
        boxes: Windows; outside the image everything is black.
        side: Side of the result in pixels.

    Returns:
        Images (V, 3, side, side) float32 in [0, 1] and masks (V, 1, side, side) likewise.
    """
    images = torch.stack([_tensor(_resized(image, box, side).convert("RGB")) for box in boxes])
    masks = torch.stack([_tensor(_resized(mask, box, side)) for box in boxes])
    return images, masks


def _resized(picture: Image.Image, box: Box, side: int) -> Image.Image:
    bicubic = Image.Resampling.BICUBIC
    return picture.crop(box).resize((BETWEEN, BETWEEN), bicubic).resize((side, side), bicubic)


def _tensor(picture: Image.Image) -> Tensor:
    """(C, H, W) float32 in [0, 1]."""
    array = np.asarray(picture, dtype=np.float32) / 255
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())
