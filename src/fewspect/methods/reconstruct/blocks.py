"""Parts that the reconstruction networks share. Letters: B images, C channels, D code width, H x W pixels.

Specification reconstruction_ae, section 2: a block is convolution (without bias), batch normalisation,
activation, also before the output; parameter names are those of the reference's checkpoints.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewspect.errors import UserError

Activation = Callable[[Tensor], Tensor]

BN_MOMENTUM = 0.01
"""A tenth of PyTorch's: running statistics remember about 100 batches."""

leaky: Activation = partial(F.leaky_relu, negative_slope=0.2, inplace=True)
relu: Activation = partial(F.relu, inplace=True)


def half_tanh(x: Tensor) -> Tensor:
    """(tanh(x) + 1) / 2, in [0, 1]."""
    return (torch.tanh(x) + 1) / 2


class Block(nn.Module):
    """Convolution without bias, batch normalisation, activation.

    Args:
        inside: Channels in.
        outside: Channels out.
        kernel: 1, 3 (same size at stride 1) or 4 (with ``up``: twice the size at stride 2).
        stride: Step of the convolution.
        up: Transposed convolution, also at stride 1.
        act: Activation.
    """

    def __init__(
        self,
        inside: int,
        outside: int,
        kernel: int,
        stride: int = 1,
        *,
        up: bool = False,
        act: Activation = leaky,
    ) -> None:
        super().__init__()
        kind = nn.ConvTranspose2d if up else nn.Conv2d
        self.conv = kind(inside, outside, kernel, stride, (kernel - 1) // 2, bias=False)
        self.bn = nn.BatchNorm2d(outside, momentum=BN_MOMENTUM)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """(B, inside, h, w) to (B, outside, h', w')."""
        return self.act(self.bn(self.conv(x)))


def encoder(channels: int, layers: Sequence[tuple[int, int]], code: int | None = None) -> nn.Sequential:
    """Blocks ``conv1``, ``conv2``, ... of 3x3 convolutions.

    Args:
        channels: Channels of the image.
        layers: (stride, channels out) of each block.
        code: Width of a last block with ReLU; None = without it.
    """
    blocks: OrderedDict[str, nn.Module] = OrderedDict()
    for stride, width in layers:
        blocks[f"conv{len(blocks) + 1}"] = Block(channels, width, 3, stride)
        channels = width
    if code is not None:
        blocks[f"conv{len(blocks) + 1}"] = Block(channels, code, 3, act=relu)
    return nn.Sequential(blocks)


def decoder(code: int, layers: Sequence[tuple[int, int]], channels: int, act: Activation) -> nn.Sequential:
    """Blocks ``deconv1``, ``deconv2``, ...: 3x3 convolutions and 4x4 transposed ones that double the size.

    Args:
        code: Channels in.
        layers: (kernel, channels out) of each block; kernel 3 or 4.
        channels: Channels of the image, made by a last 1x1 convolution.
        act: Activation of the last block, after its normalisation.
    """
    blocks: OrderedDict[str, nn.Module] = OrderedDict()
    width = code
    for kernel, outside in layers:
        up = kernel == 4
        blocks[f"deconv{len(blocks) + 1}"] = Block(width, outside, kernel, 2 if up else 1, up=up)
        width = outside
    blocks[f"deconv{len(blocks) + 1}"] = Block(width, channels, 1, act=act)
    return nn.Sequential(blocks)


class AutoEncoder(nn.Module):
    """Base of the networks that rebuild an image (B, C, H, W) in [0, 1] at its own size.

    Attributes:
        divisor: Both sides of an image must be multiples of this.
        minimum: Neither side may be smaller.

    Args:
        channels: Channels C of the image.
    """

    divisor: int = 1
    minimum: int = 1
    encoder: Any  # a module of whatever container; networks of another shape override encode and decode
    decoder: Any

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def encode(self, x: Tensor) -> Tensor:
        """Code (B, D, h, w) of images."""
        return self.encoder(x)

    def decode(self, code: Tensor) -> Tensor:
        """Images in [0, 1] of a code."""
        return self.decoder(code)

    def forward(self, x: Tensor) -> Tensor:
        """Rebuild images; nothing is drawn.

        Raises:
            UserError: The sides or the channels do not fit the network.
        """
        self.check(x)
        return self.decode(self.encode(x))

    def check(self, x: Tensor) -> None:
        """Refuse images that would come back in another size."""
        name, (channels, height, width) = type(self).__name__, x.shape[-3:]
        if channels != self.channels:
            raise UserError(
                f"{name} has {self.channels} image channels, the images have {channels}.",
                "Grey images: method.colour=grey method.network.channels=1.",
            )
        if height % self.divisor or width % self.divisor or min(height, width) < self.minimum:
            least = max(self.minimum, self.divisor)
            step = f"multiples of {self.divisor}" if self.divisor > 1 else "sides"
            fitting = max(least, round(max(height, width) / self.divisor) * self.divisor)
            raise UserError(
                f"{name} cannot rebuild {height} x {width} pixels: it takes {step} from {least} on.",
                f"Set data.side={fitting}.",
            )
