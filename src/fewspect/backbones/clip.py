"""CLIP's image and text towers (arXiv 2103.00020) on open_clip's modules, with OpenAI's names and activation.

All tokens go through the last norm and the projection, so patch tokens live in the same space as the class
token and the texts. Weights: a state dict (``.pt``, ``.pth``, ``.safetensors``) with OpenAI's names; a file
of both towers is cut down to the one that is asked for. OpenAI's own files are TorchScript archives, which
would be programs: they are refused; open_clip's hub repositories hold the same tensors as safetensors.
Licence of the weights: MIT.

Shapes: image (B, 3, H, W) in [0, 1] -> tokens (B, N, D), class token (B, D), D = width of the joint space.

Example:
    >>> Clip("clip_vitb32").forward(torch.rand(1, 3, 224, 224)).cls[0].shape
    torch.Size([1, 512])
"""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewspect.backbones import weights as files
from fewspect.backbones.base import Backbone, Features
from fewspect.errors import UserError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HEAD_WIDTH = 64
"""Channels per attention head in every published size."""

CONTEXT, WORDS = 77, 49408
"""Tokens of a text, size of the vocabulary."""

LAYER_NORM_EPS = 1e-5


@dataclass(frozen=True, slots=True)
class Size:
    """A published size.

    Attributes:
        side: Input side in pixels.
        patch: Side of a patch in pixels.
        width: Of the image tower.
        layers: Of the image tower.
        heads: Of the image tower.
        dim: Of the joint space.
        text_width: Of the text tower (12 layers).
    """

    side: int
    patch: int
    width: int
    layers: int
    heads: int
    dim: int
    text_width: int = 512


SIZES = {
    "vitb32": Size(224, 32, 768, 12, 12, 512),
    "vitb16": Size(224, 16, 768, 12, 12, 512),
    "vitl14": Size(224, 14, 1024, 24, 16, 768, 768),
    "vitl14_336": Size(336, 14, 1024, 24, 16, 768, 768),
}


class Clip(Backbone):
    """Image tower; the one returned layer is the last one, projected.

    Args:
        name: ``clip_`` and a key of ``SIZES``.
        weights: None or ``none`` (random), or a path, see the module.
        side: Input side in pixels: that of the size.
        sha256: Expected digest of the file, or the beginning of it.
        frozen: See ``Backbone``.
        size: A size that is not published; for tests.

    Raises:
        UserError: Unknown name, or weights that are missing or do not fit.
    """

    prefix = "clip_"
    patches = 0
    """Patch tokens that are part of the description of an image, see ``nn.pooling``."""

    tower: Any  # open_clip's VisionTransformer; its attributes carry no types

    def __init__(
        self,
        name: str = "clip_vitl14",
        weights: str | None = None,
        side: int | None = None,
        *,
        sha256: str = "",
        frozen: bool = True,
        size: Size | None = None,
    ) -> None:
        self.size = size or size_of(name, self.prefix)
        if side not in (None, self.size.side):
            raise UserError(
                f"Backbone {name} takes {self.size.side} pixels, not {side}.",
                f"Set backbone.side={self.size.side}.",
            )
        super().__init__(
            name, self.size.dim, self.size.patch, self.size.side, [self.size.layers - 1], frozen=frozen
        )
        self.mean.copy_(torch.tensor(CLIP_MEAN).view_as(self.mean))
        self.std.copy_(torch.tensor(CLIP_STD).view_as(self.std))
        self.tower = vision(self.size)
        self.fill(weights, sha256)
        self.freeze()

    def _check_size(self, height: int, width: int) -> None:
        """The position table is that of one side; it is not interpolated."""
        side = self.size.side
        if (height, width) != (side, side):
            raise UserError(
                f"Backbone {self.name} takes {side} x {side} pixels, not {height} x {width}.",
                f"Set backbone.side={side}.",
            )

    def fill(self, weights: str | None, sha256: str) -> None:
        """Load the image tower, or randomise it."""
        state = fetch(weights, self.name, sha256)
        if state is None:
            files.randomise(self.tower, self.name)
        else:
            files.load_into(self.tower, visual(state), str(weights))

    def encode(self, image: Tensor) -> Features:
        """Projected tokens of a normalised image (B, 3, H, W)."""
        return self.tokens(self.tower.conv1(image))

    def tokens(self, cells: Tensor) -> Features:
        """The tower from its patch embedding (B, width, h, w) on."""
        tower, grid = self.tower, (cells.shape[-2], cells.shape[-1])
        x = cells.flatten(2).transpose(1, 2)  # (B, N, width)
        cls = tower.class_embedding.to(x.dtype).expand(len(x), 1, -1)
        x = tower.ln_pre(torch.cat([cls, x], 1) + tower.positional_embedding.to(x.dtype))
        x = tower.ln_post(tower.transformer(x)) @ tower.proj  # (B, 1 + N, D)
        return Features((x[:, 1:],), grid, (x[:, 0],))


class TextTower(nn.Module):
    """Text tower of CLIP: texts in, features in the joint space out; frozen.

    Args:
        name: ``clip_`` and a key of ``SIZES``.
        weights: None or ``none`` (random), or a path, see the module.
        sha256: Expected digest of the file, or the beginning of it.

    Raises:
        UserError: Unknown name, or weights that are missing or do not fit.
    """

    frozen = True

    def __init__(self, name: str = "clip_vitl14", weights: str | None = None, *, sha256: str = "") -> None:
        super().__init__()
        size = size_of(name, "clip_")
        self.name, self.dim = name, size.dim
        self.tower: Any = text(size)
        state = fetch(weights, name, sha256)
        if state is None:
            files.randomise(self.tower, f"{name}/text")
        else:
            files.load_into(self.tower, textual(state), str(weights))
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, texts: Sequence[str]) -> Tensor:
        """Features (C, D) of texts, not normalised."""
        from open_clip import tokenize  # noqa: PLC0415 - see vision

        device = next(self.tower.parameters()).device
        return self.tower(tokenize(list(texts), context_length=CONTEXT).to(device))


def size_of(name: str, prefix: str) -> Size:
    """The size that a name says.

    Raises:
        UserError: Unknown; names those that exist.
    """
    size = SIZES.get(name.removeprefix(prefix))
    if size is None or not name.startswith(prefix):
        known = ", ".join(f"{prefix}{key}" for key in SIZES)
        raise UserError(f"Backbone {name} is unknown.", f"Choose one of {known}.")
    return size


def vision(size: Size) -> nn.Module:
    """open_clip's image tower without values."""
    from open_clip.transformer import QuickGELU, VisionTransformer  # noqa: PLC0415 - takes seconds

    with torch.device("meta"):
        tower = VisionTransformer(
            size.side,
            size.patch,
            size.width,
            size.layers,
            size.heads,
            4.0,
            output_dim=size.dim,
            act_layer=QuickGELU,
        )
    return tower.to_empty(device="cpu")


def text(size: Size) -> nn.Module:
    """open_clip's text tower without values; its causal mask is no parameter and is set here."""
    from open_clip.transformer import QuickGELU, TextTransformer  # noqa: PLC0415 - takes seconds

    with torch.device("meta"):
        tower = TextTransformer(
            CONTEXT,
            WORDS,
            size.text_width,
            size.text_width // HEAD_WIDTH,
            12,
            output_dim=size.dim,
            act_layer=QuickGELU,
        )
    tower: Any = tower.to_empty(device="cpu")
    tower.attn_mask = torch.full((CONTEXT, CONTEXT), float("-inf")).triu(1)
    return tower


def fetch(weights: str | None, name: str, sha256: str) -> files.State | None:
    """Read a checkpoint; half precision becomes float32.

    Raises:
        UserError: No such file, a TorchScript archive, or not a checkpoint.
    """
    path = Path(str(weights)).expanduser()
    if path.is_file() and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(entry.endswith("constants.pkl") for entry in archive.namelist()):
                raise UserError(
                    f"{path} is a TorchScript archive: a program, which is never run.",
                    "Use the same weights as safetensors, e.g. from open_clip's hub repositories.",
                )
    state = files.fetch(weights, name, sha256=sha256)
    return None if state is None else {k: v.float() if v.is_floating_point() else v for k, v in state.items()}


def visual(state: files.State) -> files.State:
    """The image tower's tensors under open_clip's names: of a file of both towers, of OpenAI or AlphaCLIP."""
    if any(k.startswith("visual.") for k in state):
        state = {k.removeprefix("visual."): v for k, v in state.items() if k.startswith("visual.")}
    return {k.replace(".attn.in_proj.", ".attn.in_proj_"): v for k, v in state.items()}


def textual(state: files.State) -> files.State:
    """The text tower's tensors of a file of both towers."""
    others = ("visual.", "logit_scale", "logit_bias", "input_resolution", "context_length", "vocab_size")
    kept = {k.removeprefix("text."): v for k, v in state.items() if not k.startswith(others)}
    return {k: v for k, v in kept.items() if k != "attn_mask"}
