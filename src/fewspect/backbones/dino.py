"""DINOv2 vision transformers (arXiv 2304.07193) through timm, equal to the official code at every input size.

The official files fit timm's parameters name by name. Two things are done here: the position table is
interpolated by the official rule (timm's differs away from 37 x 37 cells, 11 % in the features at 98 pixels),
and the forward pass ends after the last requested block. Weights: Apache-2.0.

Example:
    >>> backbone = Dino("dinov2_vits14", layers=[5, 8, 10], weights=None, side=98)
    >>> backbone(torch.rand(1, 3, 98, 98)).tokens[0].shape
    torch.Size([1, 49, 384])
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewspect.backbones import weights as files
from fewspect.backbones.base import Backbone, Features
from fewspect.errors import UserError

PATCH = 14
TABLE_SIDE = 518
"""The position table was trained at this side: 37 x 37 cells."""

OFFSET = 0.1
"""The official code asks for (cells + 0.1) / 37 as scale; the sampling grid is stretched with it."""

SIZES = {"vits14": "small", "vitb14": "base", "vitl14": "large"}
URL = "https://dl.fbaipublicfiles.com/dinov2/{folder}/{name}_pretrain.pth"


class Dino(Backbone):
    """DINOv2 ViT-S/B/L with 14-pixel patches, with or without registers.

    Args:
        name: ``dinov2_vit{s,b,l}14`` or the same with ``_reg4``.
        layers: Blocks (0-based) whose outputs are returned, class token separate, registers dropped.
        weights: None, a path, ``"hub"`` or ``"hub:<owner>/<name>"``, see ``weights``.
        side: Preferred side of the input in pixels, a multiple of 14.
        norm: Apply the network's final layer norm to every returned block (published SOFS: no).
        pos_interp: ``official`` or ``timm``; they agree at 518 and for the register models.
        sha256: Expected digest of the file, or the beginning of it.
        frozen: See ``Backbone``.

    Raises:
        UserError: Unknown name or block, or weights that are missing or do not fit.
    """

    mask_token: Tensor
    vit: Any  # timm's VisionTransformer; its attributes carry no types

    def __init__(
        self,
        name: str = "dinov2_vitb14",
        layers: Sequence[int] = (5, 6, 7, 8, 9, 10),
        weights: str | None = None,
        side: int = TABLE_SIDE,
        *,
        norm: bool = False,
        pos_interp: Literal["official", "timm"] = "official",
        sha256: str = "",
        frozen: bool = True,
    ) -> None:
        vit: Any = _build(name)
        super().__init__(name, vit.embed_dim, PATCH, side, layers, frozen=frozen)
        if not 0 <= self.layers[0] <= self.layers[-1] < len(vit.blocks):
            raise UserError(
                f"Backbone {name} has blocks 0 to {len(vit.blocks) - 1}, asked for {list(layers)}."
            )
        self.vit, self.norm = vit, norm
        self.registers = 4 if name.endswith("_reg4") else 0
        self.official_positions = pos_interp == "official" and not self.registers
        self.register_buffer("mask_token", torch.zeros(1, self.dim))  # of pre-training; kept for the export
        self._fill(weights, sha256)
        self.freeze()
        self._stop_gradients()

    def _fill(self, weights: str | None, sha256: str) -> None:
        folder = self.name.removesuffix("_reg4")
        state = files.fetch(weights, self.name, URL.format(folder=folder, name=self.name), sha256)
        if state is None:
            files.randomise(self.vit, self.name)
        else:
            self.load_official(state, str(weights))

    def _stop_gradients(self) -> None:
        """Parameters that no requested layer needs are never computed, hence not trained."""
        self.vit.blocks[self.layers[-1] + 1 :].requires_grad_(False)
        self.vit.norm.requires_grad_(self.norm and not self.frozen)

    # -- official names ---------------------------------------------------------------------------------

    def official_state(self) -> dict[str, Tensor]:
        """Names, order and tensors of the official file (models without registers)."""
        state: dict[str, Tensor] = {}
        for key, value in self.vit.state_dict().items():
            state[key] = value
            if key == "pos_embed":
                state["mask_token"] = self.mask_token
        return state

    def load_official(self, state: dict[str, Tensor], where: str) -> None:
        """Load tensors with official names, or timm's (without ``mask_token``).

        Raises:
            UserError: Names or shapes do not match.
        """
        named = {"register_tokens", "cls_token", "pos_embed"} <= set(state)
        state = _without_registers(state) if named else dict(state)
        state.setdefault("mask_token", torch.zeros_like(self.mask_token))
        files.compare({**self.vit.state_dict(), "mask_token": self.mask_token}, state, where)
        self.mask_token.copy_(state.pop("mask_token"))
        self.vit.load_state_dict(state)

    # -- forward ----------------------------------------------------------------------------------------

    def encode(self, image: Tensor) -> Features:
        """Features of a normalised image (B, 3, H, W)."""
        cells = self.vit.patch_embed.proj(image)  # (B, D, h, w)
        grid = (cells.shape[-2], cells.shape[-1])
        x = self._with_positions(cells.flatten(2).transpose(1, 2), grid)  # (B, 1 + registers + N, D)
        prefix, tokens, heads = 1 + self.registers, [], []
        for index, block in enumerate(self.vit.blocks[: self.layers[-1] + 1]):
            x = block(x)
            if index in self.layers:
                out = self.vit.norm(x) if self.norm else x
                heads.append(out[:, 0])
                tokens.append(out[:, prefix:])
        return Features(tuple(tokens), grid, tuple(heads))

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """Position table (1, 1 + N, D) with the class token first; (1, N, D) for register models."""
        table = self.vit.pos_embed
        prefix = 0 if self.registers else 1
        native = TABLE_SIDE // PATCH
        if grid == (native, native):
            return table
        if not self.official_positions:
            from timm.layers.pos_embed import resample_abs_pos_embed  # noqa: PLC0415 - see _build

            return resample_abs_pos_embed(table, list(grid), num_prefix_tokens=prefix)
        first, cells = table[:, :prefix], table[:, prefix:]
        square = cells.transpose(1, 2).unflatten(-1, (native, native)).float()  # (1, D, 37, 37)
        scale = tuple((length + OFFSET) / native for length in grid)  # rows first
        resized = F.interpolate(square, scale_factor=scale, mode="bicubic", antialias=False)
        return torch.cat([first, resized.flatten(2).transpose(1, 2).to(table.dtype)], 1)

    def _with_positions(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        cls = self.vit.cls_token.expand(len(x), -1, -1)
        if not self.registers:
            return torch.cat([cls, x], 1) + self.positions(grid)
        return torch.cat([cls, self.vit.reg_token.expand(len(x), -1, -1), x + self.positions(grid)], 1)


def _build(name: str) -> nn.Module:
    """Timm's module without values (they are filled in later, so timm's slow initialisation is skipped)."""
    size = name.removeprefix("dinov2_").removesuffix("_reg4")
    if not name.startswith("dinov2_") or size not in SIZES:
        known = ", ".join(f"dinov2_{s}" for s in SIZES)
        raise UserError(f"Backbone {name} is unknown.", f"Choose one of {known}, each also with _reg4.")
    registers = "_reg4" if name.endswith("_reg4") else ""
    import timm  # noqa: PLC0415 - takes three seconds, and this module is imported where no DINOv2 is used

    with torch.device("meta"):
        vit = timm.create_model(
            f"vit_{SIZES[size]}_patch14{registers}_dinov2", img_size=TABLE_SIDE, num_classes=0
        )
    return vit.to_empty(device="cpu")


def _without_registers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Official register model to timm's layout: the class token's position is added to the token itself."""
    state = dict(state)
    table = state["pos_embed"]
    state["reg_token"] = state.pop("register_tokens")
    state["cls_token"] = state["cls_token"] + table[:, :1]
    state["pos_embed"] = table[:, 1:]
    return state
