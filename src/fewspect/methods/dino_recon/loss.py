"""Global cosine loss with hard mining, and the residual (Dinomaly, arXiv 2405.14325, section 3.4)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

EASY_FACTOR = 0.1
"""What is left of the gradient of well-rebuilt tokens."""

HARD_RAMP, EASY_SHARE = 1000, 0.9
"""The share of tokens that count as well rebuilt grows from 0 to 0.9 over the first 1000 steps."""


def easy_share(step: int, *, ramp: int = HARD_RAMP, share: float = EASY_SHARE) -> float:
    """Share of the tokens that count as well rebuilt at an optimiser step."""
    return share * min(1.0, step / ramp)


def cosine_loss(target: Sequence[Tensor], rebuilt: Sequence[Tensor], easy: float) -> Tensor:
    """Mean over groups and images of 1 - cosine of whole feature maps, taken as one long vector each.

    Gradients of the share ``easy`` of the tokens of the batch that are rebuilt best are damped; the value of
    the loss does not change.

    Args:
        target: G tensors (B, N, D).
        rebuilt: G tensors (B, N, D).
        easy: In [0, 1).

    Returns:
        () float32 in [0, 2].
    """
    with torch.autocast(rebuilt[0].device.type, enabled=False):
        pairs = [(a.float(), b.float()) for a, b in zip(target, rebuilt, strict=True)]
        pairs = [(a, _damped(b, _distance(a, b.detach()), easy)) for a, b in pairs]
        cosines = [F.cosine_similarity(a.flatten(1), b.flatten(1), dim=1).mean() for a, b in pairs]
        return 1 - torch.stack(cosines).mean()


def residual(target: Sequence[Tensor], rebuilt: Sequence[Tensor]) -> Tensor:
    """Mean over groups of 1 - cosine of tokens: (B, N) float32 in [0, 2]."""
    with torch.autocast(rebuilt[0].device.type, enabled=False):
        pairs = zip(target, rebuilt, strict=True)
        return torch.stack([_distance(a.float(), b.float()) for a, b in pairs]).mean(0)


def _distance(wanted: Tensor, made: Tensor) -> Tensor:
    return 1 - F.cosine_similarity(wanted, made, dim=-1)  # (B, N)


def _damped(made: Tensor, distance: Tensor, easy: float) -> Tensor:
    """The same values (B, N, D), with smaller gradients where the distance (B, N) is among the smallest."""
    number = int(easy * distance.numel())
    if number == 0:
        return made
    limit = distance.flatten().kthvalue(number).values
    factor = torch.where(distance <= limit, EASY_FACTOR, 1.0)[..., None]
    return made * factor + (made * (1 - factor)).detach()
