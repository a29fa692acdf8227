"""SSIM-AE and its light form, autoencoders of the DeeCamp project after Bergmann et al., arXiv 1807.02011.

Specification reconstruction_ae, 2.1 and 2.2. A batch normalisation before the output fixes the contrast of
each channel.

Example:
    >>> net = SsimAE()
    >>> again = net(torch.rand(2, 3, 256, 256))     # (2, 3, 256, 256) in [0, 1]
"""

import torch

from fewspect.methods.reconstruct.blocks import AutoEncoder, decoder, encoder, half_tanh

ENCODER = ((2, 32), (1, 32), (2, 64), (1, 64), (2, 128), (1, 128), (2, 128), (2, 128))
"""(stride, channels) of conv1 to conv8."""

DECODER = (
    *((3, 128), (4, 128), (4, 128), (3, 128), (4, 64)),
    *((3, 64), (4, 32), (3, 32), (4, 32), (3, 32)),
)
"""(kernel, channels) of deconv1 to deconv10; kernel 4 doubles the size."""

LITE_ENCODER = ((2, 32), (2, 32), (2, 32), (2, 64), (2, 64), (2, 64))
LITE_DECODER = ((4, 64), (4, 64), (3, 64), (4, 64), (4, 64), (3, 32), (4, 32), (4, 32), (3, 32))


class SsimAE(AutoEncoder):
    """Code D x H/32 x W/32; 2.1 M parameters.

    Args:
        code_dim: Width D of the code.
        channels: Image channels C.
    """

    divisor: int = 32

    def __init__(self, code_dim: int = 256, channels: int = 3) -> None:
        super().__init__(channels)
        self.encoder = encoder(channels, ENCODER, code_dim)
        self.decoder = decoder(code_dim, DECODER, channels, torch.sigmoid)


class SsimAELite(AutoEncoder):
    """Code D x H/64 x W/64; 0.6 M parameters.

    Args:
        code_dim: Width D of the code.
        channels: Image channels C.
    """

    divisor: int = 64

    def __init__(self, code_dim: int = 128, channels: int = 1) -> None:
        super().__init__(channels)
        self.encoder = encoder(channels, LITE_ENCODER, code_dim)
        self.decoder = decoder(code_dim, LITE_DECODER, channels, half_tanh)
