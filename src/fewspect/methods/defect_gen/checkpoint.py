"""Strict translation between our networks and the checkpoints of the original (specification 10.3).

A released file is ``{"model": state dict, "optimizer": ..., "ema": state dict}``. Attention has one tensor
for query, key and value there, laid out as (head, {query, key, value}, channel of the head).

Example:
    >>> load_reference("diffusion_150000.pt", UNet(9, ...))  # doctest: +SKIP
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from fewspect.errors import UserError
from fewspect.methods.defect_gen.net import Level, UNet, levels
from fewspect.nn import loading

RESIDUAL = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
ATTENTION = {"norm": "group_norm", "qkv": "to_q to_k to_v", "proj_out": "to_out.0"}
"""Layer of the original -> ours; the order is that of the original."""

FIRST = "input_blocks.0.0.weight"
"""Its second axis is the number of channels."""


def modules(net: UNet) -> Iterator[tuple[str, str]]:
    """Yield (name of a block's part in the original, our name) in the original's order."""
    yield from (("time_embed.0", "time_embedding.linear_1"), ("time_embed.2", "time_embedding.linear_2"))
    yield "input_blocks.0.0", "conv_in"
    number = 1
    for i, level in enumerate(levels(net.down_blocks)):
        for k in range(net.blocks):
            yield from _block(level, f"input_blocks.{number}", f"down_blocks.{i}", k)
            number += 1
        for _ in level.downsamplers:
            yield f"input_blocks.{number}.0.op", f"down_blocks.{i}.downsamplers.0.conv"
            number += 1
    if net.mid_block is not None:
        for k, part in enumerate(("resnets.0", "attentions.0", "resnets.1")):
            yield f"middle_block.{k}", f"mid_block.{part}"
    number = 0
    for i, level in enumerate(levels(net.up_blocks)):
        for k in range(net.blocks + 1):
            yield from _block(level, f"output_blocks.{number}", f"up_blocks.{i}", k)
            if k == net.blocks and len(level.upsamplers):
                place = 2 if len(level.attentions) else 1
                yield f"output_blocks.{number}.{place}.conv", f"up_blocks.{i}.upsamplers.0.conv"
            number += 1
    yield from (("out.0", "conv_norm_out"), ("out.2", "conv_out"))


def _block(level: Level, theirs: str, ours: str, k: int) -> Iterator[tuple[str, str]]:
    yield f"{theirs}.0", f"{ours}.resnets.{k}"
    if len(level.attentions):
        yield f"{theirs}.1", f"{ours}.attentions.{k}"


def names(net: UNet) -> dict[str, tuple[str, ...]]:
    """Tensor name of the original -> our name, or our three names; in the original's order."""
    own = net.state_dict().keys()
    table: dict[str, tuple[str, ...]] = {}
    for theirs, ours in modules(net):
        layers = RESIDUAL if ".resnets." in ours else ATTENTION if ".attentions." in ours else {"": ""}
        for a, b in layers.items():
            for kind in ("weight", "bias"):
                found = tuple(".".join(filter(None, (ours, part, kind))) for part in b.split() or [""])
                if found[0] in own:
                    table[".".join(filter(None, (theirs, a, kind)))] = found
    return table


def export_reference(net: UNet) -> dict[str, Tensor]:
    """The network's tensors under the original's names and in its shapes."""
    own = net.state_dict()
    return {theirs: _join([own[n] for n in ours], theirs, net.head) for theirs, ours in names(net).items()}


def load_reference(
    source: Path | str | Mapping[str, Tensor], net: UNet, which: Literal["ema", "model"] = "ema"
) -> None:
    """Fill a network from a checkpoint of the original; every tensor has to fit.

    Args:
        source: A file, or a state dict with the original's names.
        net: The network, filled in place.
        which: Averaged or raw weights of a file.

    Raises:
        UserError: The file is unreadable, or its tensors are not those of the network: says which.
    """
    state = source if isinstance(source, Mapping) else _read(Path(source), which)
    what = "The state dict" if isinstance(source, Mapping) else str(source)
    expected = {k: v.shape for k, v in export_reference(net).items()}
    channels = state[FIRST].shape[1] if FIRST in state and state[FIRST].ndim == 4 else None
    if channels not in (None, net.channels):
        raise UserError(
            f"{what} is for {channels} channels ({channels - 4} defect types), not for {net.channels}.",
            f"Declare {channels - 4} defect types, or choose another checkpoint.",
        )
    wrong = [f"{k} is missing" for k in expected if k not in state]
    wrong += [f"{k} is not known" for k in state if k not in expected]
    wrong += [
        f"{k} has shape {tuple(state[k].shape)} instead of {tuple(shape)}"
        for k, shape in expected.items()
        if k in state and state[k].shape != shape
    ]
    if wrong:
        more = f" and {len(wrong) - 5} more" if wrong[5:] else ""
        raise UserError(
            f"{what} does not fit this network: {'; '.join(wrong[:5])}{more}.",
            "Set width, mult, blocks and attention to those it was trained with.",
        )
    own = net.state_dict()
    filled = {}
    for theirs, ours in names(net).items():
        parts = _split(state[theirs], len(ours), net.head)
        filled |= {n: part.reshape(own[n].shape) for n, part in zip(ours, parts, strict=True)}
    net.load_state_dict(filled)


def _read(path: Path, which: str) -> dict[str, Tensor]:
    content = loading.content(path)
    if not isinstance(content, dict) or not isinstance(content.get(which), dict):
        raise UserError(
            f"{path} holds no '{which}' weights.", "A checkpoint of the original has 'model' and 'ema'."
        )
    return {str(k).removeprefix("module."): v for k, v in content[which].items()}


def _split(tensor: Tensor, parts: int, head: int) -> list[Tensor]:
    """Query, key and value of a fused tensor."""
    if parts == 1:
        return [tensor]
    return [p.flatten(0, 1) for p in tensor.unflatten(0, (-1, parts, head)).unbind(1)]


def _join(parts: list[Tensor], theirs: str, head: int) -> Tensor:
    """One tensor in the original's shape; its projections are convolutions of size 1."""
    joined = parts[0]
    if len(parts) > 1:
        joined = torch.stack([p.unflatten(0, (-1, head)) for p in parts], 1).flatten(0, 2)
    return joined[..., None] if theirs.endswith(("qkv.weight", "proj_out.weight")) else joined
