"""RED-Net of the DeeCamp project: an autoencoder whose decoder sees 2, 3 or 4 blurred encoder maps.

Specification reconstruction_ae, 2.3. The skips are added after a 3x3 maximum, which blurs small defects
away; the more skips, the sharper the reconstruction and the more of a defect leaks through. The number of
skips changes neither parameters nor names.

Example:
    >>> net = RedNet(skips=2)
    >>> again = net(torch.rand(2, 3, 256, 256))     # (2, 3, 256, 256) in [0, 1]
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fewspect.methods.reconstruct.blocks import AutoEncoder, Block, relu

ENCODER = (
    *((3, 2, 32), (3, 2, 64), (1, 1, 64), (3, 2, 64), (1, 1, 128), (3, 2, 128)),
    *((1, 1, 128), (3, 2, 128), (1, 1, 128), (3, 2, 128)),
)
"""(kernel, stride, channels) of conv0 to conv9; conv10 (1x1) and conv_f (3x3) have the code's width."""

DECODER = (
    *((3, 1, 128), (4, 2, 128), (3, 1, 128), (4, 2, 128), (3, 1, 128), (4, 2, 128)),
    *((3, 1, 64), (4, 2, 64), (3, 1, 64), (4, 2, 32), (4, 2, 32)),
)
"""(kernel, stride, channels) of deconv0 to deconv10; transposed also at stride 1."""

SKIPS = {0: 10, 2: 8, 4: 6, 6: 4}
"""Decoder block -> encoder block whose map is added to its input, the deepest first."""


class RedNet(AutoEncoder):
    """Code D x H/64 x W/64; 2.8 M parameters.

    Args:
        skips: The so many deepest skips are used.
        code_dim: Width D of the code.
        channels: Image channels C.
    """

    divisor: int = 64

    def __init__(self, skips: Literal[2, 3, 4] = 2, code_dim: int = 256, channels: int = 3) -> None:
        super().__init__(channels)
        self.skips = dict(list(SKIPS.items())[:skips])
        width = channels
        for i, (kernel, stride, outside) in enumerate((*ENCODER, (1, 1, code_dim))):
            self.add_module(f"conv{i}", Block(width, outside, kernel, stride, act=relu))
            width = outside
        self.conv_f = Block(width, width, 3, act=relu)
        for i, (kernel, stride, outside) in enumerate(DECODER):
            self.add_module(f"deconv{i}", Block(width, outside, kernel, stride, up=True, act=relu))
            width = outside
        self.deconv_f = Block(width, channels, 1, up=True, act=torch.sigmoid)

    def forward(self, x: Tensor) -> Tensor:
        """See ``AutoEncoder``."""
        self.check(x)
        kept: dict[int, Tensor] = {}
        for i in range(len(ENCODER) + 1):
            x = self.get_submodule(f"conv{i}")(x)
            kept |= {i: x} if i in self.skips.values() else {}
        x = self.conv_f(x)  # (B, D, H/64, W/64)
        for i in range(len(DECODER)):
            if i in self.skips:
                x = x + F.max_pool2d(kept[self.skips[i]], 3, 1, 1)
            x = self.get_submodule(f"deconv{i}")(x)
        return self.deconv_f(x)
