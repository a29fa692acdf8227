"""Targets, weights and losses of a diffusion network (specification 3.3, 11.2).

The original minimises the squared error of x0, all timesteps alike, over all channels together. Here the
preset says what is predicted (``default``: velocity; ``tiny``: x0), with min-SNR weights (Hang et al. 2023),
which stand for the same weight on x0 whatever that is.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fewspect.methods.defect_gen.codec import RGB
from fewspect.methods.defect_gen.schedule import Schedule

Prediction = Literal["x0", "noise", "velocity"]

LEAST = 1e-3
"""Variance of a class channel below which it counts no more."""

MASK_WEIGHT = 0.2
"""Weight of the cross-entropy in the original's loss of separate channels."""


def target(schedule: Schedule, kind: Prediction, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """What the network is to say, (B, C, H, W)."""
    if kind == "velocity":
        return schedule.velocity(x0, noise, t)
    return x0 if kind == "x0" else noise


def to_x0(schedule: Schedule, kind: Prediction, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """The clean sample that an output stands for, not clamped."""
    if kind == "velocity":
        return schedule.x0_of_velocity(x_t, output, t)
    return output if kind == "x0" else schedule.x0_of_noise(x_t, output, t)


def min_snr(schedule: Schedule, kind: Prediction, t: Tensor, gamma: float = 5.0) -> Tensor:
    """Weights (B,) of the squared error: min(SNR, gamma) on x0, translated to what is predicted."""
    snr = schedule.snr(t)
    weight = snr.clamp(max=gamma)
    return {"x0": weight, "noise": weight / snr, "velocity": weight / (snr + 1)}[kind]


def squared(output: Tensor, aim: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean squared error over all channels and pixels, samples weighted by ``weight`` (B,)."""
    error = F.mse_loss(output, aim, reduction="none").flatten(1).mean(1)
    return (error if weight is None else weight * error).mean()


def rarity(masks: Tensor, types: int) -> Tensor:
    """Weights (types + 1,) of the class channels: one over their variance, 1 on average.

    A class on one pixel in a thousand would count a thousandth of the colours otherwise (specification 3.3).

    Args:
        masks: (N, H, W) labels.
        types: K.
    """
    share = torch.stack([(masks == k).float().mean() for k in range(types + 1)])
    weight = 1 / (share * (1 - share)).clamp(min=LEAST)
    weight = torch.where(share > 0, weight, weight[share > 0].min())  # never shown: as the most common
    return weight / weight.mean()


def separate(output: Tensor, x0: Tensor, weight: float = MASK_WEIGHT) -> dict[str, Tensor]:
    """Squared error of the colours and cross-entropy of the class channels, which become logits by it.

    The original's, for parity only: its sampler would take logits for x0 (the method card says so).

    Args:
        output: (B, C, H, W) prediction of x0.
        x0: (B, C, H, W) clean sample.
        weight: Factor of the cross-entropy.
    """
    rgb = F.mse_loss(output[:, :RGB], x0[:, :RGB])
    mask = F.cross_entropy(output[:, RGB:], x0[:, RGB:].argmax(1))
    return {"total": rgb + weight * mask, "rgb_mse": rgb, "mask_cross_entropy": mask}
