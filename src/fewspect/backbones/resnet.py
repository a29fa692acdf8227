"""ResNet features on one grid and of one width, so that a method written for transformer layers can use them.

As in PatchCore (arXiv 2106.08265, section 3.1), each stage is smoothed over 3x3 neighbours and pooled along
the channels to a common width; unlike there, every stage stays a layer of its own. All stages are resized
(bilinear) to the grid of the first requested one. Weights: torchvision's ImageNet files, BSD-3-Clause.

Example:
    >>> backbone = ResNet("resnet18", layers=[2, 3], weights=None, side=256)
    >>> [t.shape for t in backbone(torch.rand(1, 3, 256, 256)).tokens]
    [torch.Size([1, 1024, 128]), torch.Size([1, 1024, 128])]
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

from fewspect.backbones import weights as files
from fewspect.backbones.base import Backbone, Features
from fewspect.errors import UserError

URLS = {
    "resnet18": "https://download.pytorch.org/models/resnet18-f37072fd.pth",
    "resnet34": "https://download.pytorch.org/models/resnet34-b627a593.pth",
    "resnet50": "https://download.pytorch.org/models/resnet50-0676ba61.pth",
    "wide_resnet50_2": "https://download.pytorch.org/models/wide_resnet50_2-95faca4d.pth",
}
"""The eight digits at the end of a name are the beginning of the file's SHA-256."""

STAGES = 4


class ResNet(Backbone):
    """Stages of a ResNet.

    Args:
        name: ``resnet18``, ``resnet34``, ``resnet50`` or ``wide_resnet50_2``.
        layers: Stages 1 to 4 (strides 4, 8, 16, 32); the first one gives the grid.
        weights: None, a path, ``"hub"`` or ``"hub:<owner>/<name>"``, see ``weights``.
        side: Preferred side of the input in pixels, a multiple of the first stage's stride.
        width: Common width D; 0 = that of the narrowest stage.
        sha256: Expected digest of the file, or the beginning of it.
        frozen: See ``Backbone``.

    Raises:
        UserError: Unknown name or stage, or weights that are missing or do not fit.
    """

    def __init__(
        self,
        name: str = "resnet18",
        layers: Sequence[int] = (2, 3),
        weights: str | None = None,
        side: int = 256,
        *,
        width: int = 0,
        sha256: str = "",
        frozen: bool = True,
    ) -> None:
        if name not in URLS:
            raise UserError(f"Backbone {name} is unknown.", f"Choose one of {', '.join(URLS)}.")
        if not layers or not 1 <= min(layers) <= max(layers) <= STAGES:
            raise UserError(f"Backbone {name} has stages 1 to {STAGES}, asked for {list(layers)}.")
        with torch.random.fork_rng(devices=[]):  # torchvision's own initialisation draws; ours follows
            net = getattr(torchvision.models, name)(weights=None)
        dim = width or _channels(net, min(layers))
        super().__init__(name, dim, 2 ** (min(layers) + 1), side, layers, frozen=frozen)
        self._fill(net, weights, sha256)
        self.stem = torch.nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
        self.stages = torch.nn.ModuleList([net.layer1, net.layer2, net.layer3, net.layer4][: self.layers[-1]])
        self.freeze()

    def _fill(self, net: torch.nn.Module, weights: str | None, sha256: str) -> None:
        url = URLS[self.name]
        if weights == "hub":
            sha256 = sha256 or url.removesuffix(".pth").rsplit("-", 1)[-1]
        state = files.fetch(weights, self.name, url, sha256)
        if state is None:
            files.randomise(net, self.name)
        else:
            files.load_into(net, _with_counters(state, net), str(weights))

    def encode(self, image: Tensor) -> Features:
        """Features of a normalised image (B, 3, H, W)."""
        x, maps = self.stem(image), []
        for number, stage in enumerate(self.stages, 1):
            x = stage(x)  # (B, C, h, w)
            if number in self.layers:
                maps.append(F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False))
        grid = (maps[0].shape[-2], maps[0].shape[-1])
        return Features(tuple(self._tokens(m, grid) for m in maps), grid)

    def _tokens(self, maps: Tensor, grid: tuple[int, int]) -> Tensor:
        resized = F.interpolate(maps, grid, mode="bilinear", align_corners=False)
        tokens = resized.flatten(2).transpose(1, 2)  # (B, N, C)
        return F.adaptive_avg_pool1d(tokens, self.dim)  # (B, N, D)


def _channels(net: torch.nn.Module, stage: int) -> int:
    block = getattr(net, f"layer{stage}")[-1]
    return getattr(block, "bn3", block.bn2).num_features


def _with_counters(state: files.State, net: torch.nn.Module) -> files.State:
    """Old files lack the batch counters of batch norm; they are not used in evaluation."""
    counters = {k: v for k, v in net.state_dict().items() if k.endswith("num_batches_tracked")}
    return counters | state
