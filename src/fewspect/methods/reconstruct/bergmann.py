"""The autoencoder of Bergmann et al., arXiv 1807.02011, table 1: 128 x 128 pixels to a vector and back.

Specification reconstruction_ae, 2.6. No normalisation, biases, linear code. Larger images (multiples of 16,
or of 32 from ``side=256`` on) get a code with several positions.

Example:
    >>> net = BergmannAE(code_dim=100, channels=1)
    >>> again = net(torch.rand(2, 1, 128, 128))     # (2, 1, 128, 128) in [0, 1]
"""

from collections import OrderedDict
from typing import Literal

import torch
from torch import Tensor, nn

from fewspect.errors import UserError
from fewspect.methods.reconstruct.blocks import AutoEncoder, leaky

ENCODER = ((4, 2, 32), (4, 2, 32), (3, 1, 32), (4, 2, 64), (3, 1, 64), (4, 2, 128), (3, 1, 64), (3, 1, 32))
"""(kernel, stride, channels) of Conv1 to Conv8; Conv9 covers what is left (8 x 8), without padding."""

DECODER = ((3, 1, 64), (3, 1, 128), (4, 2, 64), (3, 1, 64), (4, 2, 32), (3, 1, 32), (4, 2, 32))
"""(kernel, stride, channels) of Conv10 to Deconv4, between Deconv1 (like Conv9) and Deconv5."""

EXTRA = (4, 2, 32)
"""One more layer after Conv2, and one more before the last layer."""

DEEP = 256
"""Sides from here on get the extra layers."""


class BergmannAE(AutoEncoder):
    """Code D x 1 x 1 at the nominal side.

    Args:
        code_dim: Width D of the code; published 100 (textures) and 500 (NanoTWICE).
        channels: Image channels C; published 1 for SSIM.
        side: Nominal side; published 128 (patches of textures), 256 (objects) and, for comparison, 32 and 64.
        output: ``sigmoid``, or ``linear`` as in the paper.

    Raises:
        UserError: The side is no multiple of 16 (32 from 256 on).
    """

    def __init__(
        self,
        code_dim: int = 100,
        channels: int = 1,
        side: int = 128,
        output: Literal["sigmoid", "linear"] = "sigmoid",
    ) -> None:
        super().__init__(channels)
        more = (EXTRA,) if side >= DEEP else ()
        self.minimum, self.divisor = side, 32 if more else 16
        if side < self.divisor or side % self.divisor:
            raise UserError(
                f"BergmannAE cannot have a side of {side} pixels.", f"Choose a multiple of {self.divisor}."
            )
        rest = side // self.divisor
        self.output = output
        shrinking: OrderedDict[str, nn.Module] = OrderedDict()
        width = channels
        for i, (kernel, stride, outside) in enumerate((*ENCODER[:2], *more, *ENCODER[2:])):
            shrinking[f"conv{i + 1}"] = nn.Conv2d(width, outside, kernel, stride, 1)
            width = outside
        self.encoder = nn.ModuleDict(shrinking)
        self.code = nn.Conv2d(width, code_dim, rest)
        growing: OrderedDict[str, nn.Module] = OrderedDict(deconv1=nn.ConvTranspose2d(code_dim, width, rest))
        for i, (kernel, stride, outside) in enumerate((*DECODER, *more)):
            kind = nn.ConvTranspose2d if stride == 2 else nn.Conv2d
            growing[f"deconv{i + 2}"] = kind(width, outside, kernel, stride, 1)
            width = outside
        self.decoder = nn.ModuleDict(growing)
        self.last = nn.ConvTranspose2d(width, channels, 4, 2, 1)

    def encode(self, x: Tensor) -> Tensor:
        """Linear code (B, D, h, w)."""
        for layer in self.encoder.values():
            x = leaky(layer(x))
        return self.code(x)

    def decode(self, code: Tensor) -> Tensor:
        """Images (B, C, H, W) of a code; with ``output="linear"`` not bound to [0, 1]."""
        for layer in self.decoder.values():
            code = leaky(layer(code))
        x = self.last(code)
        return torch.sigmoid(x) if self.output == "sigmoid" else x
