"""WRN-28-10 of S2M2_R (Mangla et al., arXiv 1907.12087), whose features GTnet and ZS-FS used.

Specification gccs, section 5. A checkpoint of that project fits name by name, its cosine head included; the
640 features are the mean over the last map, not negative.

Letters: B images, C channels, K classes of the head.

Example:
    >>> backbone = Wide(weights=None, side=84)
    >>> backbone(torch.rand(1, 3, 84, 84)).cls[0].shape
    torch.Size([1, 640])
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewspect.backbones import weights as files
from fewspect.backbones.base import Backbone, Features

GROUPS = 3
STRIDE = 4
"""Of the last map: groups of strides 1, 2, 2."""

EPS = 1e-5
MANY = 200
"""Up to so many classes the head multiplies cosines by 2, beyond by 10."""


class Block(nn.Module):
    """Pre-activation residual block; dropout between its convolutions is active in training."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.dropout = dropout
        self.convShortcut = None if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to (B, C', h / stride, w / stride)."""
        activated = F.relu(self.bn1(x))
        out = F.relu(self.bn2(self.conv1(activated)))
        out = self.conv2(F.dropout(out, self.dropout, self.training))
        return out + (x if self.convShortcut is None else self.convShortcut(activated))


class Group(nn.Module):
    """Blocks of one width; the first one has the stride."""

    def __init__(self, blocks: int, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.layer = nn.Sequential(
            *(Block(outputs if i else inputs, outputs, 1 if i else stride, dropout) for i in range(blocks))
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to (B, C', h / stride, w / stride)."""
        return self.layer(x)


class _Directions(nn.Module):
    """Weights of a class: a direction and a length of its own."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(classes, 1))
        self.weight_v = nn.Parameter(torch.randn(classes, inputs) / inputs**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.weight_g * F.normalize(self.weight_v, dim=-1)).T


class CosineHead(nn.Module):
    """Cosines times 2 (times 10 for more than 200 classes)."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.L = _Directions(inputs, classes)
        self.scale = 2.0 if classes <= MANY else 10.0

    def forward(self, x: Tensor) -> Tensor:
        """(B, C) to (B, K)."""
        return self.scale * self.L(x / (x.norm(dim=1, keepdim=True) + EPS))


class WideResNet(nn.Module):
    """The network with its head, by the names of S2M2_R.

    Args:
        depth: 6 n + 4: n blocks per group.
        widen: Factor on 16, 32, 64 channels.
        classes: Outputs K of the head.
        dropout: Between the convolutions of a block, in training.
    """

    def __init__(self, depth: int = 28, widen: int = 10, classes: int = 200, dropout: float = 0.5) -> None:
        super().__init__()
        blocks, widths = (depth - 4) // 6, [16, 16 * widen, 32 * widen, 64 * widen]
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        for i in range(GROUPS):
            group = Group(blocks, widths[i], widths[i + 1], 1 if i == 0 else 2, dropout)
            self.add_module(f"block{i + 1}", group)
        self.bn1 = nn.BatchNorm2d(widths[-1])
        self.linear = CosineHead(widths[-1], classes)
        self.width = widths[-1]
        self._begin()

    @torch.no_grad()
    def _begin(self) -> None:
        """Convolutions normal with deviation sqrt(2 / (k k outputs))."""
        for part in self.modules():
            if isinstance(part, nn.Conv2d) and not part.weight.is_meta:
                size = part.kernel_size[0] * part.kernel_size[1] * part.out_channels
                part.weight.normal_(0, (2 / size) ** 0.5)

    def maps(
        self, x: Tensor, depth: int | None = None, lam: float = 1.0, perm: Tensor | None = None
    ) -> Tensor:
        """Last map (B, C, h, w) of images (B, 3, H, W).

        Args:
            x: Normalised images.
            depth: Manifold mixup: 0 mixes the images, k = 1..3 what group k gives; None = none.
            lam: Share of an image's own; the rest is that of its partner.
            perm: (B,) partners.
        """
        out = self._mixed(x, lam, perm) if depth == 0 else x
        out = self.conv1(out)
        for i in range(GROUPS):
            out = self.get_submodule(f"block{i + 1}")(out)
            out = self._mixed(out, lam, perm) if depth == i + 1 else out
        return F.relu(self.bn1(out))

    @staticmethod
    def _mixed(x: Tensor, lam: float, perm: Tensor | None) -> Tensor:
        assert perm is not None, "mixup needs partners"
        return lam * x + (1 - lam) * x[perm]

    def forward(
        self, x: Tensor, depth: int | None = None, lam: float = 1.0, perm: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Features (B, C) and logits (B, K); arguments as in ``maps``."""
        features = self.maps(x, depth, lam, perm).mean((2, 3))
        return features, self.linear(features)


class Wide(Backbone):
    """WRN-28-10 as a feature extractor.

    Args:
        weights: None or ``"none"`` (random), or the path of an S2M2_R checkpoint.
        side: Preferred side of the input in pixels, a multiple of 4 (S2M2_R: 84).
        classes: Outputs of the head in the file; null = as the file has.
        depth: See ``WideResNet``.
        widen: See ``WideResNet``.
        sha256: Expected digest of the file, or the beginning of it.
        frozen: See ``Backbone``.

    Raises:
        UserError: Weights that are missing or do not fit.
    """

    def __init__(
        self,
        weights: str | None = None,
        side: int = 84,
        *,
        classes: int | None = None,
        depth: int = 28,
        widen: int = 10,
        sha256: str = "",
        frozen: bool = True,
    ) -> None:
        name = f"wrn{depth}_{widen}"
        super().__init__(name, 64 * widen, STRIDE, side, [0], frozen=frozen)
        state = files.fetch(weights, name, sha256=sha256)
        head = None if state is None else state.get("linear.L.weight_g")
        with torch.random.fork_rng(devices=[]):  # values are filled in below; the caller's generator stays
            self.net = WideResNet(depth, widen, classes or (200 if head is None else len(head)))
        if state is None:
            files.randomise(self.net, name)
        else:
            files.load_into(self.net, state, str(weights))
        self.freeze()
        self.net.linear.requires_grad_(False)  # not computed

    def encode(self, image: Tensor) -> Features:
        """The last map as tokens, and its mean as the class token."""
        last = self.net.maps(image)  # (B, D, h, w)
        tokens = last.flatten(2).transpose(1, 2)
        return Features((tokens,), (last.shape[-2], last.shape[-1]), (tokens.mean(1),))
