"""Augmentation of the autoencoders: mirror or flip, and light; pure functions of an image and a generator.

Specification reconstruction_ae, 1.4. Images are (3, H, W) uint8, before resizing. The original's MVTec recipe
never shows a part upright although every test image is; the default does.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fewspect.data.crops import Change
from fewspect.errors import UserError


@dataclass(frozen=True, slots=True)
class Classic:
    """One of mirror, flip and identity, then now and then another light.

    Attributes:
        mirror: Probability that left and right are exchanged.
        flip: Probability that top and bottom are exchanged instead; what is left of 1 is the identity.
        light: Probability of a change of light.
        gain: Interval of the factor on grey values.
        offset: Interval of what is added to them, in 0..255.
        rotation: Largest angle in degrees; 0 = none, as the original runs.
        shift: Largest shift in pixels along each axis; 0 = none, as the original runs.
    """

    mirror: float = 0.2
    flip: float = 0.2
    light: float = 0.5
    gain: tuple[float, float] = (0.95, 1.05)
    offset: tuple[float, float] = (-10.0, 10.0)
    rotation: float = 0.0
    shift: float = 0.0

    def __call__(self, image: Tensor, mask: Tensor, r: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Change an image; a good one has an empty mask, which stays.

        Args:
            image: (3, H, W) uint8.
            mask: (H, W) uint8, all zero.
            r: Source of all draws.
        """
        u = r.random()
        if u < self.mirror:
            image = mirror(image)
        elif u < self.mirror + self.flip:
            image = flip(image)
        if self.rotation:
            image = rotate(image, float(r.uniform(-self.rotation, self.rotation)))
        if self.shift:
            right, down = r.uniform(-self.shift, self.shift, 2).tolist()
            image = shift(image, right, down)
        if r.random() < self.light:
            image = lighting(image, float(r.uniform(*self.gain)), float(r.uniform(*self.offset)))
        return image, mask


PRESETS: dict[str, Classic] = {
    "upright": Classic(),
    "light": Classic(mirror=0.0, flip=0.0),
    "moved": Classic(rotation=10.0, shift=12.0),
    "turned": Classic(light=0.0, rotation=45.0),
    "deecamp": Classic(mirror=0.33, flip=0.67),
    "deecamp_chip": Classic(gain=(0.80, 0.95)),
}
"""``upright``: mostly as taken; ``light``: parts that are told from their mirror image; ``moved``: with the
rotation and shift that the original switched off; ``turned``: textures, by up to 45 degrees;
``deecamp``: its MVTec recipe, never upright; ``deecamp_chip``: its chip recipe."""


def preset(name: str) -> Change:
    """Return an augmentation by name.

    Raises:
        UserError: There is none of this name.
    """
    if name not in PRESETS:
        raise UserError(f"data.augment={name} is not known.", f"Choose true, false or {', '.join(PRESETS)}.")
    return PRESETS[name]


def mirror(image: Tensor) -> Tensor:
    """Exchange left and right."""
    return image.flip(-1)


def flip(image: Tensor) -> Tensor:
    """Exchange top and bottom."""
    return image.flip(-2)


def lighting(image: Tensor, gain: float, offset: float) -> Tensor:
    """``gain * value + offset`` in 0..255, fractions cut off as in the original."""
    return (image.double() * gain + offset).clamp(0, 255).to(torch.uint8)


def rotate(image: Tensor, degrees: float) -> Tensor:
    """Turn an image counter-clockwise about (W // 2, H // 2); its edge is continued outwards."""
    angle = np.deg2rad(degrees)
    cosine, sine = float(np.cos(angle)), float(np.sin(angle))
    height, width = image.shape[-2:]
    x, y = width // 2, height // 2
    across, down = cosine * x - sine * y, sine * x + cosine * y
    return _warp(image, ((cosine, -sine, x - across), (sine, cosine, y - down)))


def shift(image: Tensor, right: float, down: float) -> Tensor:
    """Move an image by pixels, also parts of one; its edge is continued inwards."""
    return _warp(image, ((1.0, 0.0, -right), (0.0, 1.0, -down)))


def _warp(image: Tensor, matrix: tuple[tuple[float, float, float], tuple[float, float, float]]) -> Tensor:
    """Take every pixel (x, y) from matrix (x, y, 1), bilinear, rounded."""
    height, width = image.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.tensor(matrix) @ torch.stack([x, y, torch.ones_like(x)]).flatten(1).float()  # (2, H * W)
    limits = torch.tensor([max(1, width - 1), max(1, height - 1)])[:, None]
    grid = (2 * places / limits - 1).T.view(1, height, width, 2)
    moved = F.grid_sample(
        image[None].float(), grid, mode="bilinear", padding_mode="border", align_corners=True
    )
    return moved[0].round().to(torch.uint8)
