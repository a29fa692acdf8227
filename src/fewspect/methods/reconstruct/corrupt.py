"""Synthetic damage for training: a network that must undo it learns not to copy what it is shown."""

import torch
from torch import Tensor

PATCHES = (1, 3)
"""Fewest and most patches of a damaged image."""

AREA = (0.004, 0.04)
"""Smallest and largest share of the image that a patch covers."""

ASPECT = (0.3, 3.3)
"""Smallest and largest quotient of a patch's sides (CutPaste, arXiv 2104.04015)."""


def cut_paste(images: Tensor, share: float, generator: torch.Generator | None = None) -> Tensor:
    """Paste patches of an image elsewhere into the same image.

    Args:
        images: (B, C, H, W); left unchanged.
        share: Probability that an image is damaged.
        generator: Source of all draws, on the CPU; None = torch's, which the base seeds for every training
            step.

    Returns:
        (B, C, H, W).
    """
    damaged = images.clone()
    height, width = images.shape[-2:]
    for image, source in zip(damaged, images, strict=True):
        if float(torch.rand((), generator=generator)) >= share:
            continue
        number = int(torch.randint(PATCHES[0], PATCHES[1] + 1, (), generator=generator))
        for size, log_aspect, *places in torch.rand(number, 6, generator=generator).tolist():
            area = (AREA[0] + size * (AREA[1] - AREA[0])) * height * width
            aspect = ASPECT[0] * (ASPECT[1] / ASPECT[0]) ** log_aspect
            h = min(height, max(1, round((area * aspect) ** 0.5)))
            w = min(width, max(1, round((area / aspect) ** 0.5)))
            top, to = (int(p * (height - h + 1)) for p in places[:2])
            left, right = (int(p * (width - w + 1)) for p in places[2:])
            image[:, to : to + h, right : right + w] = source[:, top : top + h, left : left + w]
    return damaged
