"""A small convolutional backbone that needs no download: its weights travel with the package.

The weights were trained on synthetic defects. Two stride-2 convolutions, then residual blocks of one width
at stride 4 (depthwise 7x7, partly dilated for context, channel norm, 1x1 expand by 4, GELU, 1x1, layer scale;
the block of ConvNeXt, arXiv 2201.03545, Fig. 4). As every block has the same grid and width, any of them can
be a layer. A 128-pixel image costs about 0.6 GFLOP.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from fewspect.backbones import weights as files
from fewspect.backbones.base import Backbone, Features
from fewspect.errors import UserError

EMBEDDED = Path(__file__).with_suffix(".safetensors")
DILATIONS = (1, 1, 2, 1, 2, 3, 1, 2)
"""One entry per block; 7x7 kernels, so the last block sees about 79 of its cells across."""

KERNEL = 7
NORM_EPS = 1e-6
EXPANSION = 4
STRIDE = 4
SCALE_INIT = 0.1
MEAN, STD = 0.45, 0.25
"""Grey normalisation: half of the training pictures are grey, and inspection cameras often are."""


class Tiny(Backbone):
    """Small ConvNeXt-like feature extractor.

    Args:
        weights: ``"embedded"`` (file beside this module), None or ``"none"`` (random) or a path.
        layers: Blocks (0-based) whose outputs are returned.
        side: Preferred side of the input in pixels, a multiple of 4.
        width: Channels D.
        frozen: See ``Backbone``.

    Raises:
        UserError: A block that does not exist, or weights that are missing or do not fit.
    """

    def __init__(
        self,
        weights: str | None = "embedded",
        layers: Sequence[int] = (5, 6, 7),
        side: int = 128,
        width: int = 64,
        frozen: bool = True,
    ) -> None:
        super().__init__("tiny", width, STRIDE, side, layers, frozen=frozen)
        if self.layers[-1] >= len(DILATIONS) or self.layers[0] < 0:
            raise UserError(f"Backbone tiny has blocks 0 to {len(DILATIONS) - 1}, asked for {list(layers)}.")
        with torch.random.fork_rng(devices=[]):  # values are filled in below; the caller's generator stays
            self.stem = nn.Sequential(
                nn.Conv2d(3, width // 2, 3, stride=2, padding=1),
                nn.GELU(),
                nn.Conv2d(width // 2, width, 3, stride=2, padding=1),
            )
            self.blocks = nn.ModuleList(_Block(width, dilation) for dilation in DILATIONS)
        self.stem_norm = nn.LayerNorm(
            width, eps=NORM_EPS
        )  # per cell: a window gives what the whole image gives
        self.mean.fill_(MEAN)
        self.std.fill_(STD)
        self._fill(weights)
        self.freeze()
        self.blocks[self.layers[-1] + 1 :].requires_grad_(False)  # never computed

    def _fill(self, weights: str | None) -> None:
        source = str(EMBEDDED) if weights == "embedded" else weights
        state = files.fetch(source, self.name)
        if state is not None:
            return files.load_into(self, {k: v.float() for k, v in state.items()}, str(source))
        files.randomise(self, self.name)
        for block in self.blocks:
            nn.init.constant_(block.get_parameter("scale"), SCALE_INIT)
        return None

    def encode(self, image: Tensor) -> Features:
        """Features of a normalised image (B, 3, H, W)."""
        # channels last: depthwise convolutions are three times as fast on a CPU, and blocks need no copy
        x = self.stem(image.contiguous(memory_format=torch.channels_last))  # (B, D, h, w)
        x = self.stem_norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        tokens = []
        for index, block in enumerate(self.blocks[: self.layers[-1] + 1]):
            x = block(x)
            if index in self.layers:
                tokens.append(x.flatten(2).transpose(1, 2))  # (B, N, D)
        return Features(tuple(tokens), (x.shape[-2], x.shape[-1]))


class _Block(nn.Module):
    """Residual block on a map (B, D, h, w)."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        pad = dilation * (KERNEL // 2)
        self.spatial = nn.Conv2d(width, width, KERNEL, padding=pad, dilation=dilation, groups=width)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.expand = nn.Linear(width, EXPANSION * width)
        self.reduce = nn.Linear(EXPANSION * width, width)
        self.scale = nn.Parameter(torch.full((width,), SCALE_INIT))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.spatial(x).permute(0, 2, 3, 1))  # (B, h, w, D)
        y = self.reduce(nn.functional.gelu(self.expand(y))) * self.scale
        return x + y.permute(0, 3, 1, 2)
