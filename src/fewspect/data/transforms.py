"""Joint augmentation of an image and its mask, before resizing; all draws from an explicit generator."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

BORDER = [0.485 * 255, 0.456 * 255, 0.406 * 255]
"""Colour outside a rotated image: the mean of ImageNet, zero after normalisation."""

BLUR_KERNEL = 5
BLUR_SIGMA = 0.3 * ((BLUR_KERNEL - 1) * 0.5 - 1) + 0.8
"""1.1: what OpenCV derives from the kernel size."""


@dataclass(frozen=True, slots=True)
class Augment:
    """Colour jitter, small rotation, blur and horizontal flip, each with its probability (SOFS, section 1.7).

    Attributes:
        jitter: Probability of the colour jitter.
        brightness: Factor drawn from 1 +- this.
        contrast: Factor drawn from 1 +- this.
        saturation: Factor drawn from 1 +- this.
        hue: Shift drawn from +- this (1 = the whole circle).
        rotate: Probability of the rotation.
        degrees: Angle drawn from +- this.
        blur: Probability of the 5 x 5 Gaussian blur.
        flip: Probability of the horizontal flip.
    """

    jitter: float = 0.3
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    rotate: float = 0.5
    degrees: float = 10.0
    blur: float = 0.3
    flip: float = 0.5

    def __call__(self, image: Tensor, mask: Tensor, r: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Change an image and its mask alike.

        Args:
            image: (3, H, W) uint8.
            mask: (H, W) uint8.
            r: Source of all draws.

        Returns:
            Image and mask of the same shapes. A mask that is not empty stays so: a rotation that would turn a
            defect out of the picture is left out.
        """
        if r.random() < self.jitter:
            image = self._colour(image, r)
        if r.random() < self.rotate:
            image, mask = _rotate(image, mask, float(r.uniform(-self.degrees, self.degrees)))
        if r.random() < self.blur and min(image.shape[1:]) > BLUR_KERNEL // 2:
            image = F.gaussian_blur(image, [BLUR_KERNEL] * 2, [BLUR_SIGMA] * 2)
        if r.random() < self.flip:
            image, mask = image.flip(-1), mask.flip(-1)
        return image, mask

    def _colour(self, image: Tensor, r: np.random.Generator) -> Tensor:
        """Apply the four colour changes in random order."""
        scale = {"brightness": self.brightness, "contrast": self.contrast, "saturation": self.saturation}
        changes = [(name, r.uniform(max(0, 1 - width), 1 + width)) for name, width in scale.items()]
        changes.append(("hue", r.uniform(-self.hue, self.hue)))
        for at in r.permutation(len(changes)):
            name, amount = changes[at]
            image = getattr(F, f"adjust_{name}")(image, float(amount))
        return image


def _rotate(image: Tensor, mask: Tensor, angle: float) -> tuple[Tensor, Tensor]:
    turned = F.rotate(mask[None], angle, interpolation=InterpolationMode.NEAREST, fill=[0.0])[0]
    if bool(mask.any()) and not bool(turned.any()):
        return image, mask
    padded = F.rotate(image, angle, interpolation=InterpolationMode.BILINEAR, fill=BORDER)
    return padded.to(torch.uint8), turned
