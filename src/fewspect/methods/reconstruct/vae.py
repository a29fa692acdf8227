"""Variational autoencoders: one with a bottleneck, and the reference's, which has none.

Specification reconstruction_ae, 2.4 and 7.3. Both answer with the decoded mean: nothing is drawn outside of
training, so the same image always gives the same map.

Example:
    >>> net = Vae(code_dim=64)
    >>> again = net(images)                          # (B, 3, H, W), decoded mean
    >>> rebuilt, mean, logvar = net.sample(images)   # for the loss
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fewspect.methods.reconstruct.blocks import AutoEncoder, decoder, encoder, leaky
from fewspect.methods.reconstruct.ssim_ae import DECODER, ENCODER


class Sampled(NamedTuple):
    """Images (B, C, H, W) of drawn codes, and mean and log variance (B, D, h, w) of the codes."""

    image: Tensor
    mean: Tensor
    logvar: Tensor


class Variational(AutoEncoder):
    """Base: a code with a diagonal Gaussian per image."""

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance (B, D, h, w) of the codes of images."""
        raise NotImplementedError

    def encode(self, x: Tensor) -> Tensor:
        """Mean of the code."""
        return self.moments(x)[0]

    def sample(self, x: Tensor, noise: Tensor | None = None) -> Sampled:
        """Rebuild images from drawn codes mean + noise * exp(logvar / 2).

        Args:
            x: (B, C, H, W) in [0, 1].
            noise: (B, D, h, w) standard normal; None = drawn from torch's generator, which the base seeds
                for every training step.
        """
        self.check(x)
        mean, logvar = self.moments(x)
        noise = torch.randn_like(mean) if noise is None else noise
        return Sampled(self.decode(mean + noise * torch.exp(0.5 * logvar)), mean, logvar)


class Vae(Variational):
    """Encoder and decoder of ``SsimAE`` around D x H/32 x W/32 Gaussian variables.

    Args:
        code_dim: Width D of the code.
        channels: Image channels C.
    """

    divisor: int = 32

    def __init__(self, code_dim: int = 256, channels: int = 3) -> None:
        super().__init__(channels)
        self.encoder = encoder(channels, ENCODER)
        width = ENCODER[-1][1]
        self.mean, self.logvar = (nn.Conv2d(width, code_dim, 3, padding=1) for _ in range(2))
        self.decoder = decoder(code_dim, DECODER, channels, torch.sigmoid)

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See ``Variational``."""
        hidden = self.encoder(x)
        return self.mean(hidden), self.logvar(hidden)


class VaeLegacy(Variational):
    """The reference's: unpadded convolutions of stride 1, so the code is 30 times larger than the image.

    The identity can be learned; kept for comparison and for its checkpoints. Any size from 15 pixels on.
    """

    minimum: int = 15

    def __init__(self) -> None:
        super().__init__(3)
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.conv2 = nn.Conv2d(6, 12, 5)
        self.conv3 = nn.Conv2d(12, 24, 3)
        self.conv4 = nn.Conv2d(24, 48, 3)
        self.conv51 = nn.Conv2d(48, 96, 3)
        self.conv52 = nn.Conv2d(48, 96, 3)
        self.deconv6 = nn.ConvTranspose2d(96, 48, 3)
        self.deconv7 = nn.ConvTranspose2d(48, 24, 3)
        self.deconv8 = nn.ConvTranspose2d(24, 12, 3)
        self.deconv9 = nn.ConvTranspose2d(12, 6, 5)
        self.deconv10 = nn.ConvTranspose2d(6, 3, 5)

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance (B, 96, H - 14, W - 14)."""
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = leaky(layer(x))
        return self.conv51(x), self.conv52(x)

    def decode(self, code: Tensor) -> Tensor:
        """Images (B, 3, H, W) of a code."""
        for layer in (self.deconv6, self.deconv7, self.deconv8, self.deconv9):
            code = leaky(layer(code))
        return torch.sigmoid(self.deconv10(code))
