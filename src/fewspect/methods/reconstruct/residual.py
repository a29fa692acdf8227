"""How much an image differs from its reconstruction, per pixel; specification reconstruction_ae, 4.4.

Nothing is rounded or clipped: the map has all values of float32, also above 1 (SSIM can be negative).
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from fewspect.nn.ssim import Colour, ssim


@dataclass(frozen=True, slots=True)
class Residual:
    """Map of a batch of images and reconstructions, higher = more anomalous.

    Attributes:
        kind: ``ssim``: 1 - SSIM in [0, 2]; ``l1``: mean absolute difference of the channels; ``l2``: mean
            squared difference; ``ssim_l1``: 1 - SSIM + ``l1`` times the absolute difference.
        window: Side of the SSIM window in pixels.
        colour: SSIM of every channel, averaged (``mean``), the worst channel (``min``), or of the grey images
            (``grey``, blind to hue).
        l1: Weight of the absolute difference in ``ssim_l1``.
    """

    kind: Literal["ssim", "l1", "l2", "ssim_l1"] = "ssim"
    window: int = 11
    colour: Colour = "mean"
    l1: float = 1.0

    def __call__(self, image: Tensor, again: Tensor) -> Tensor:
        """Compare (B, C, H, W) in [0, 1], colours in the order R, G, B: (B, H, W) float32.

        SSIM mirrors the border: zeros outside of both images would look alike (3.1).
        """
        gap = image.float() - again.float()
        if self.kind == "l2":
            return gap.square().mean(1)
        if self.kind == "l1":
            return gap.abs().mean(1)
        alike = ssim(image, again, window=self.window, padding="reflect", colour=self.colour)
        found = 1 - alike.mean(1)
        return found + self.l1 * gap.abs().mean(1) if self.kind == "ssim_l1" else found
