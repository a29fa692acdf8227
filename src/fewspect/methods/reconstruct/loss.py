"""What the reconstruction networks minimise, as named scalars; specification reconstruction_ae, section 3.

Images are (B, C, H, W) in [0, 1], float32 inside whatever autocast says. SSIM is a negative mean, so a
perfect reconstruction has the loss -1 per window.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fewspect.errors import UserError
from fewspect.methods.reconstruct.vae import Sampled
from fewspect.nn.ssim import SIGMA, Padding, ssim

GAN_WEIGHTS = {"image": 1.0, "vgg": 6e-3, "adv": 1e-3, "tv": 2e-8}
"""Weights of ``generator_losses``, as published."""


@dataclass(frozen=True, slots=True)
class Loss:
    """What a reconstruction is compared by.

    Attributes:
        name: ``ssim`` (one entry per window, summed), ``l2``, ``l1``, ``ssim_l1`` (both: SSIM alone hardly
            sees the level of a flat region) or ``vae`` (cross-entropy and divergence, variational networks
            only).
        windows: Sides of the SSIM windows in pixels; published (11,) and (3, 7, 15).
        sigma: Standard deviation of their Gaussian in pixels.
        padding: Border of the SSIM, see ``nn.ssim``.
        l1: Weight of L1 in ``ssim_l1``.
        kl: Weight of the divergence in ``vae`` (beta).
        kl_over: ``pixels``: divergence summed over the code, per image value, so that ``kl=1`` is the
            evidence bound; ``latents``: mean over the code, as the reference has it.
        free_nats: ``kl_over=pixels``: divergence per code variable below which nothing is gained.
    """

    name: Literal["ssim", "l2", "l1", "ssim_l1", "vae"] = "ssim"
    windows: Sequence[int] = (11,)
    sigma: float = SIGMA
    padding: Padding = "zeros"
    l1: float = 1.0
    kl: float = 1.0
    kl_over: Literal["pixels", "latents"] = "pixels"
    free_nats: float = 0.0

    @property
    def weights(self) -> dict[str, float]:
        """Factors of the entries that do not count 1."""
        return {"ssim_l1": {"l1": self.l1}, "vae": {"kl": self.kl}}.get(self.name, {})

    def __call__(self, image: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Compare a reconstruction with its target."""
        parts: dict[str, Tensor] = {}
        if "ssim" in self.name:
            parts |= ssim_losses(image, target, self.windows, sigma=self.sigma, padding=self.padding)
        if "l1" in self.name:
            parts["l1"] = F.l1_loss(image.float(), target.float())
        if "l2" in self.name:
            parts["l2"] = F.mse_loss(image.float(), target.float())
        return parts

    def variational(self, drawn: Sampled, target: Tensor) -> dict[str, Tensor]:
        """``name=vae``: cross-entropy and divergence of reconstructions from drawn codes."""
        per_pixel = self.kl_over == "pixels"
        divergence = kl_per_pixel(drawn, self.free_nats) if per_pixel else kl_per_latent(drawn)
        return {"bce": cross_entropy(drawn.image, target), "kl": divergence}


def ssim_losses(
    image: Tensor, target: Tensor, windows: Sequence[int], *, sigma: float = SIGMA, padding: Padding = "zeros"
) -> dict[str, Tensor]:
    """Negative mean SSIM in [-1, 1] per window; one window is called ``ssim``, several ``ssim_<side>``.

    Raises:
        UserError: No window.
    """
    if not windows:
        raise UserError("method.loss.windows is empty.", "Give at least one window, e.g. [11].")
    found = {k: -ssim(image, target, window=k, sigma=sigma, padding=padding).mean() for k in windows}
    return {f"ssim_{k}" if len(windows) > 1 else "ssim": v for k, v in found.items()}


def cross_entropy(image: Tensor, target: Tensor) -> Tensor:
    """Mean of -(t log r + (1 - t) log(1 - r)) over all values (3.3)."""
    with torch.autocast(image.device.type, enabled=False):
        return F.binary_cross_entropy(image.float(), target.float())


def kl_per_latent(drawn: Sampled) -> Tensor:
    """Divergence from the standard normal, mean over all code variables (3.3)."""
    return _divergence(drawn).mean()


def kl_per_pixel(drawn: Sampled, free_nats: float = 0.0) -> Tensor:
    """Divergence summed over the code, mean over the batch, divided by the C * H * W values of an image.

    Args:
        drawn: Codes and images.
        free_nats: Every code variable counts at least this much (free bits, arXiv 1606.04934, eq. 15, its
            mean over the batch); 0 = the plain divergence.
    """
    each = _divergence(drawn).mean(0)  # (D, h, w)
    return each.clamp(min=free_nats).sum() / drawn.image[0].numel()


def generator_losses(
    image: Tensor, target: Tensor, features: Tensor | None, target_features: Tensor | None, judged: Tensor
) -> dict[str, Tensor]:
    """Terms of the generator's loss (3.4), to be weighted by ``GAN_WEIGHTS``.

    Args:
        image: Reconstruction.
        target: What it should be.
        features: VGG features of the reconstruction; None = no perceptual term.
        target_features: VGG features of the target.
        judged: (B,) probability that the reconstruction is real.
    """
    parts = {"image": F.mse_loss(image.float(), target.float())}
    if features is not None and target_features is not None:
        parts["vgg"] = F.mse_loss(features.float(), target_features.float())
    return parts | {"adv": (1 - judged.float()).mean(), "tv": total_variation(image)}


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Mean of 1 - D(target) + D(reconstruction), probabilities (B,)."""
    return (1 - real.float() + fake.float()).mean()


def total_variation(image: Tensor) -> Tensor:
    """2 / B times the mean squared differences of vertical and of horizontal neighbours, summed (3.4)."""
    down, right = image.float().diff(dim=-2), image.float().diff(dim=-1)
    each = [d.square().sum() / d[0].numel() for d in (down, right)]
    return 2 * (each[0] + each[1]) / len(image)


def _divergence(drawn: Sampled) -> Tensor:
    """Divergence (B, D, h, w) of every code variable, in nats."""
    mean, logvar = drawn.mean.float(), drawn.logvar.float()
    return -0.5 * (1 + logvar - mean.square() - logvar.exp())
