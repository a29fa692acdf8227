"""SRGAN as a detector: shrink the image by averages, restore it, and miss what a good part does not have.

Specification reconstruction_ae, 2.5, after Ledig et al., arXiv 1609.04802. Batch normalisation here has
PyTorch's momentum of 0.1.

Example:
    >>> net = Generator(scale=4)
    >>> again = net(torch.rand(2, 3, 256, 256))     # (2, 3, 256, 256) in [0, 1]
"""

from typing import Literal

import torch
from torch import Tensor, nn

from fewspect.methods.reconstruct.blocks import AutoEncoder, half_tanh

WIDTH = 64
RESIDUAL = 5
"""Residual blocks."""

SLOPE = 0.2


class Residual(nn.Module):
    """x + normalised 3x3 convolutions with a PReLU between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.prelu = nn.PReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, h, w) to the same."""
        return x + self.bn2(self.conv2(self.prelu(self.bn1(self.conv1(x)))))


class Double(nn.Module):
    """Twice the size: convolution to four times the channels, shuffled into pixels, PReLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, 4 * width, 3, padding=1)
        self.shuffle = nn.PixelShuffle(2)
        self.prelu = nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, h, w) to (B, width, 2h, 2w)."""
        return self.prelu(self.shuffle(self.conv(x)))


class Generator(AutoEncoder):
    """The restorer; its code is the image at 1/scale of its size.

    Args:
        scale: Factor of the shrinking, a power of 2.
        channels: Image channels C.
    """

    def __init__(self, scale: Literal[2, 4, 8] = 4, channels: int = 3) -> None:
        super().__init__(channels)
        self.divisor = scale
        doublings = scale.bit_length() - 1
        # border averages count the padding zeros, as in the reference
        self.block0 = nn.Sequential(*(nn.AvgPool2d(3, 2, 1) for _ in range(doublings)))
        self.block1 = nn.Sequential(nn.Conv2d(channels, WIDTH, 9, padding=4), nn.PReLU())
        for i in range(RESIDUAL):
            self.add_module(f"block{i + 2}", Residual(WIDTH))
        self.block7 = nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH))
        self.block8 = nn.Sequential(
            *(Double(WIDTH) for _ in range(doublings)), nn.Conv2d(WIDTH, channels, 9, padding=4)
        )

    def encode(self, x: Tensor) -> Tensor:
        """Shrunk image (B, C, H/scale, W/scale)."""
        return self.block0(x)

    def decode(self, code: Tensor) -> Tensor:
        """Images (B, C, H, W) of shrunk ones."""
        first = x = self.block1(code)
        for i in range(RESIDUAL):
            x = self.get_submodule(f"block{i + 2}")(x)
        return half_tanh(self.block8(first + self.block7(x)))


class Discriminator(nn.Module):
    """Probability (B,) that an image (B, C, h, w) is no reconstruction; any size from 8 pixels on.

    Args:
        channels: Image channels C.
    """

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, 64, 3, padding=1), nn.LeakyReLU(SLOPE)]
        width = 64
        for outside, stride in ((64, 2), (128, 1), (128, 2), (256, 1), (256, 2), (512, 1), (512, 2)):
            layers += [nn.Conv2d(width, outside, 3, stride, 1), nn.BatchNorm2d(outside), nn.LeakyReLU(SLOPE)]
            width = outside
        layers += [
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(width, 1024, 1),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(1024, 1, 1),
        ]
        self.net = nn.Sequential(*layers)

    def logit(self, x: Tensor) -> Tensor:
        """Logit (B,)."""
        return self.net(x).flatten()

    def forward(self, x: Tensor) -> Tensor:
        """Probability (B,)."""
        return torch.sigmoid(self.logit(x))


def vgg16_reduced() -> nn.Sequential:
    """VGG-16 with the convolutional fc6 and fc7 of SSD (1024 channels, stride 16).

    Names are the positions ``0.weight`` to ``33.bias`` of the public weight file, which expects B, G, R in
    0..255 minus (104, 117, 123).
    """
    layers: list[nn.Module] = []
    width = 3
    for number, outside in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
        for _ in range(number):
            layers += [nn.Conv2d(width, outside, 3, padding=1), nn.ReLU(inplace=True)]
            width = outside
        layers.append(nn.MaxPool2d(2, 2, ceil_mode=outside == 256))
    layers[-1] = nn.MaxPool2d(3, 1, 1)
    layers += [nn.Conv2d(width, 1024, 3, padding=6, dilation=6), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Conv2d(1024, 1024, 1), nn.ReLU(inplace=True))
