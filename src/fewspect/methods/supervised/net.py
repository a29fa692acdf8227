"""Networks of supervised segmentation: a compact U-Net that may lean on a backbone, and torchvision's.

Images (B, 3, H, W) in [0, 1] to logits (B, K + 1, H, W), channel 0 = background.
"""

import math

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from fewspect.backbones.base import IMAGENET_MEAN, IMAGENET_STD
from fewspect.errors import UserError

PRIOR = 0.95
"""Share of background that the untrained U-Net answers: defects are rare, and steps are few."""

GROUPS = 8
"""Groups of the normalisation: batches are small, so that batch statistics would be noise."""

TORCHVISION = (
    "deeplabv3_mobilenet_v3_large",
    "deeplabv3_resnet50",
    "deeplabv3_resnet101",
    "fcn_resnet50",
    "lraspp_mobilenet_v3_large",
)


class UNet(nn.Module):
    """U-Net (Ronneberger et al. 2015) with group normalisation and few channels.

    Args:
        outputs: Channels of the logits.
        width: Channels at full size; each level below has twice as many.
        levels: Sizes: full, half, quarter, ...
        context: Channels of backbone features that enter where their grid fits; 0 = none.
        stride: Image pixels per feature cell of these.
    """

    def __init__(
        self, outputs: int, *, width: int = 16, levels: int = 4, context: int = 0, stride: int = 4
    ) -> None:
        super().__init__()
        widths = [width * 2**k for k in range(levels)]
        self.down = nn.ModuleList(_double(i, o) for i, o in zip([3, *widths], widths, strict=False))
        self.up = nn.ModuleList(_double(3 * w, w) for w in widths[-2::-1])  # own + twice as wide from below
        self.level = min(levels - 1, round(math.log2(stride)))
        mix = (nn.GroupNorm(1, context), nn.Conv2d(context, widths[self.level], 1)) if context else ()
        self.mix = nn.Sequential(*mix)
        self.head = nn.Conv2d(width, outputs, 1)
        bias = [math.log(PRIOR), *[math.log((1 - PRIOR) / max(1, outputs - 1))] * (outputs - 1)]
        self.head.bias = nn.Parameter(torch.tensor(bias))

    def forward(self, image: Tensor, context: Tensor | None = None) -> Tensor:
        """Logits of images; ``context`` (B, C, h, w) are backbone features."""
        x, skips = 2 * image - 1, []
        for level, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2, ceil_mode=True) if level else x)
            if context is not None and level == self.level:
                x = x + F.interpolate(self.mix(context), x.shape[-2:], mode="bilinear", align_corners=False)
            skips.append(x)
        for block, skip in zip(self.up, skips[-2::-1], strict=True):
            x = F.interpolate(x, skip.shape[-2:], mode="nearest")
            x = block(torch.cat([skip, x], 1))
        return self.head(x)


class Torchvision(nn.Module):
    """A segmentation network of torchvision, from random weights.

    Args:
        name: One of ``TORCHVISION``.
        outputs: Channels of the logits.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, outputs: int) -> None:
        super().__init__()
        make = getattr(torchvision.models.segmentation, name)
        self.net = make(weights=None, weights_backbone=None, num_classes=outputs)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, image: Tensor, context: Tensor | None = None) -> Tensor:
        """Logits of images; backbone features are not used."""
        del context
        return self.net((image - self.mean) / self.std)["out"]


def build(name: str, outputs: int, *, width: int, levels: int, context: int, stride: int) -> nn.Module:
    """Make a network by name.

    Raises:
        UserError: There is none of this name.
    """
    if name == "unet":
        return UNet(outputs, width=width, levels=levels, context=context, stride=stride)
    if name not in TORCHVISION:
        raise UserError(f"method.network={name} is not known.", f"Choose unet or {', '.join(TORCHVISION)}.")
    return Torchvision(name, outputs)


def _double(inputs: int, outputs: int) -> nn.Sequential:
    """Two convolutions with normalisation."""
    layers: list[nn.Module] = []
    for i in (inputs, outputs):
        norm = nn.GroupNorm(math.gcd(GROUPS, outputs), outputs)
        layers += [nn.Conv2d(i, outputs, 3, padding=1, bias=False), norm, nn.SiLU()]
    return nn.Sequential(*layers)
