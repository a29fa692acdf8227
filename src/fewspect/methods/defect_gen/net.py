"""The U-Net of both stages, of diffusers' blocks: a wide field of view for layout, a narrow one for texture.

Specification defect_gen, 2 and 10 (Yang et al., arXiv 2310.17316). The large network has six levels,
attention and a middle block and sees the whole image. The small one has three levels and nothing in the
middle; its last encoder output begins the decoder by itself, so the field of view of its convolutions is
``receptive_field(levels, blocks)`` pixels. Parameters have the names of ``diffusers.UNet2DModel``;
``checkpoint`` translates those of the original.

Example:
    >>> net = UNet(6, width=32, mult=(1, 2), blocks=1)
    >>> net(torch.randn(2, 6, 32, 32), torch.tensor([3, 777])).shape
    torch.Size([2, 6, 32, 32])
"""

from collections.abc import Sequence
from typing import Literal

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.resnet import Downsample2D, ResnetBlock2D, Upsample2D
from torch import Tensor, nn
from torch.nn import functional as F

from fewspect.errors import UserError

GROUPS = 32
"""Groups of every GroupNorm; widths are multiples of it."""

EPS = 1e-5

Modulation = Literal["additive", "scale_shift"]
Norm = Literal["group", "local"]


class LocalNorm(nn.Module):
    """LayerNorm over the channels of each pixel: unlike GroupNorm, no pixel hears of another one.

    Args:
        width: Channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, H, W) to the same."""
        last = x.movedim(1, -1)
        return F.layer_norm(last, last.shape[-1:], self.weight, self.bias, EPS).movedim(-1, 1)


class Level(nn.Module):
    """One resolution of encoder or decoder: residual blocks, attention behind each, a change of size.

    Args:
        widths: Channels into each residual block.
        out: Channels out of each.
        embedding: Width of the time embedding.
        attention: Attention behind every residual block.
        resample: ``down``, ``up`` or nothing after the last block.
        head: Channels per attention head.
        modulation: How the time enters a residual block.
        norm: ``group``, or ``local`` for an exact field of view.
    """

    downsamplers: nn.ModuleList
    upsamplers: nn.ModuleList

    def __init__(
        self,
        widths: Sequence[int],
        out: int,
        *,
        embedding: int,
        attention: bool,
        resample: Literal["down", "up", ""] = "",
        head: int,
        modulation: Modulation,
        norm: Norm,
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(residual(w, out, embedding, modulation, norm) for w in widths)
        self.attentions = nn.ModuleList(attend(out, head) for _ in widths if attention)
        self.downsamplers = nn.ModuleList()
        self.upsamplers = nn.ModuleList()
        if resample == "down":
            self.downsamplers.append(Downsample2D(out, use_conv=True, out_channels=out, padding=1, name="op"))
        if resample == "up":
            self.upsamplers.append(Upsample2D(out, use_conv=True, out_channels=out))

    def block(self, number: int, x: Tensor, time: Tensor) -> Tensor:
        """Residual block ``number`` and its attention."""
        x = self.resnets[number](x, time)
        return self.attentions[number](x) if len(self.attentions) else x


class Middle(nn.Module):
    """Residual block, attention, residual block at the smallest resolution; see ``Level`` for arguments."""

    def __init__(self, width: int, *, embedding: int, head: int, modulation: Modulation, norm: Norm) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(residual(width, width, embedding, modulation, norm) for _ in range(2))
        self.attentions = nn.ModuleList([attend(width, head)])

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(B, width, h, w) to the same."""
        return self.resnets[1](self.attentions[0](self.resnets[0](x, time)), time)


class UNet(nn.Module):
    """Predicts x0, noise or velocity of (image, mask) at a timestep; the last layer starts at zero.

    Args:
        channels: C of input and output: 3 + background + defect types.
        width: Channels of the first level, a multiple of 32.
        mult: Factor on ``width`` per level.
        blocks: Residual blocks per level of the encoder; the decoder has one more.
        attention: Factors of downsampling at which there is attention.
        head: Channels per attention head.
        middle: With a middle block. Without one, the decoder begins with the last encoder output, which it
            does not concatenate.
        modulation: ``additive`` (original small network) or ``scale_shift`` (original large network).
        norm: ``group`` (original), or ``local``: the field of view is exact.
        patch: Side of the squares of pixels that are one cell of the first level; 1 = original. 2 costs a
            quarter.
        condition: Length of the vector that a sample may be asked for with; 0 = original.

    Raises:
        UserError: A width is no multiple of 32.
    """

    def __init__(
        self,
        channels: int,
        *,
        width: int = 64,
        mult: Sequence[int] = (1, 2, 4),
        blocks: int = 1,
        attention: Sequence[int] = (),
        head: int = 16,
        middle: bool = False,
        modulation: Modulation = "additive",
        norm: Norm = "group",
        patch: int = 1,
        condition: int = 0,
    ) -> None:
        super().__init__()
        if width % GROUPS:
            raise UserError(f"net.width={width} is no multiple of {GROUPS}.", "Choose 32, 64, 96, ...")
        self.channels, self.blocks, self.head, self.levels = channels, blocks, head, len(mult)
        widths = [width * m for m in mult]
        embedding = 4 * width
        self.time_proj = Timesteps(width, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(width, embedding)
        self.patch, cells = patch, channels * patch**2
        self.class_embedding = nn.Linear(condition, embedding, bias=False) if condition else None
        self.conv_in = nn.Conv2d(cells, widths[0], 3, padding=1)
        common = {"embedding": embedding, "head": head, "modulation": modulation, "norm": norm}
        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        skips, now = [widths[0]], widths[0]
        for i, out in enumerate(widths):
            last = i == self.levels - 1
            inputs = [now, *[out] * (blocks - 1)]
            at = 2**i in attention
            self.down_blocks.append(
                Level(inputs, out, attention=at, resample="" if last else "down", **common)
            )
            skips += [out] * (blocks + (not last))
            now = out
        self.mid_block = Middle(now, **common) if middle else None
        for i, out in reversed(list(enumerate(widths))):
            inputs = []
            for _ in range(blocks + 1):
                alone = not middle and len(skips) == self._tensors(blocks)
                inputs.append(skips.pop() + (0 if alone else now))
                now = out
            at = 2**i in attention
            self.up_blocks.append(Level(inputs, out, attention=at, resample="up" if i else "", **common))
        self.conv_norm_out = normalise(now, norm)
        self.conv_out = nn.Conv2d(now, cells, 3, padding=1)
        _zero(self.conv_out)

    def _tensors(self, blocks: int) -> int:
        """Number of encoder outputs that the decoder takes."""
        return self.levels * (blocks + 1)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Answer for noisy samples.

        Args:
            x: (B, C, H, W), H and W multiples of ``patch`` 2^(levels - 1).
            t: (B,) timesteps 0..T-1.
            condition: (B, M) what is asked for; all zero, or None = anything.

        Returns:
            (B, C, H, W).
        """
        time = self.time_embedding(self.time_proj(t).to(x.dtype))  # (B, 4 width)
        if self.class_embedding is not None and condition is not None:
            time = time + self.class_embedding(condition)
        x = self.conv_in(F.pixel_unshuffle(x, self.patch))
        skips = [x]
        for level in levels(self.down_blocks):
            for k in range(self.blocks):
                x = level.block(k, x, time)
                skips.append(x)
            for shrink in level.downsamplers:
                x = shrink(x)
                skips.append(x)
        if self.mid_block is None:
            skips.pop()  # x itself
        else:
            x = self.mid_block(x, time)
        for i, level in enumerate(levels(self.up_blocks)):
            for k in range(self.blocks + 1):
                first = i == k == 0 and self.mid_block is None
                x = level.block(k, x if first else torch.cat([x, skips.pop()], 1), time)
            for grow in level.upsamplers:
                x = grow(x)
        return F.pixel_shuffle(self.conv_out(F.silu(self.conv_norm_out(x))), self.patch)


def levels(blocks: nn.ModuleList) -> list[Level]:
    """The levels of an encoder or decoder with their type."""
    return [block for block in blocks if isinstance(block, Level)]


def normalise(width: int, norm: Norm) -> nn.Module:
    """A normalisation of ``width`` channels."""
    return LocalNorm(width) if norm == "local" else nn.GroupNorm(GROUPS, width, EPS)


def residual(inside: int, out: int, embedding: int, modulation: Modulation, norm: Norm) -> ResnetBlock2D:
    """Residual block whose second convolution starts at zero."""
    block = ResnetBlock2D(
        in_channels=inside,
        out_channels=out,
        temb_channels=embedding,
        groups=GROUPS,
        eps=EPS,
        time_embedding_norm="default" if modulation == "additive" else "scale_shift",
    )
    if norm == "local":
        for name, channels in (("norm1", inside), ("norm2", out)):
            setattr(block, name, LocalNorm(channels))
    _zero(block.conv2)
    return block


def attend(width: int, head: int) -> Attention:
    """Self-attention over all pixels whose projection starts at zero."""
    block = Attention(
        width,
        heads=width // head,
        dim_head=head,
        norm_num_groups=GROUPS,
        eps=EPS,
        residual_connection=True,
        bias=True,
        upcast_softmax=True,
    )
    assert block.to_out is not None
    _zero(block.to_out[0])
    return block


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def receptive_field(levels: int, blocks: int) -> int:
    """Side in pixels of what one output pixel sees, for a network without attention and middle block.

    Specification 11.3: every convolution of a level adds twice its distance between pixels.
    """
    side = 3 + 2  # first and last convolution
    for level in range(levels):
        side += 4 * (2 * blocks + 1) << level  # blocks of encoder and decoder, two convolutions each
        side += (4 << level) * (level < levels - 1)  # down from this level, up into it
    return side
