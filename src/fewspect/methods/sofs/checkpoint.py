"""Exact two-way mapping between our parameters and the original's checkpoints (specification sofs, 4).

The original saves one flat mapping: ``backbone.*`` (official DINOv2 names, 175 tensors for ViT-B) and
``feature_recorrect.*`` (35 tensors). Its 1x1 convolutions are linear layers here, so kernels change shape,
never values.

Example:
    >>> load_official("best_method_SOFS_VISION_V1_split_0_.pth", net)
    >>> torch.save(export_official(net), "ours_for_the_original.pth")
"""

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from fewspect.backbones import weights as files
from fewspect.backbones.dino import Dino
from fewspect.errors import UserError
from fewspect.methods.sofs.head import Head
from fewspect.methods.sofs.net import SofsNet

HEAD = "feature_recorrect."
BACKBONE = "backbone."
TRANSFORMER = HEAD + "query_semantic_transformer.mix_transformer."

PROJECTIONS = {
    "down_query": "down_query",
    "down_support": "down_supp",
    "down_prototype": "down_supp_semantic",
    "merge_support": "supp_merge_semantic",
    "merge_query": "query_merge_semantic",
}
BLOCK = {
    "norm1.weight": "norm1.weight",
    "norm1.bias": "norm1.bias",
    "attention.query.weight": "attn.attn.linear_q.weight",
    "attention.key.weight": "attn.attn.linear_k.weight",
    "attention.value.weight": "attn.attn.linear_v.weight",
    "attention.out.weight": "attn.attn.linear_o.weight",
    "norm2.weight": "norm2.weight",
    "norm2.bias": "norm2.bias",
    "ffn.expand.weight": "ffn.layers.0.weight",
    "ffn.expand.bias": "ffn.layers.0.bias",
    "ffn.depthwise.weight": "ffn.layers.1.weight",
    "ffn.depthwise.bias": "ffn.layers.1.bias",
    "ffn.reduce.weight": "ffn.layers.4.weight",
    "ffn.reduce.bias": "ffn.layers.4.bias",
}
KERNELS = (
    "ffn.layers.0.weight",
    "ffn.layers.4.weight",
    "support_prototype.weight",
    *(f"{n}.0.weight" for n in PROJECTIONS.values()),
)
"""Ends of official names whose tensors are 1x1 kernels (out, in, 1, 1) there and matrices (out, in) here."""


def head_names(head: Head) -> dict[str, str]:
    """Our name -> official name of every tensor of the head, in the official order.

    Raises:
        UserError: The head has the convolution classifier, which the published model and its checkpoints
            lack.
    """
    if head.conv_classifier is not None:
        raise UserError(
            "Official SOFS checkpoints have no convolution classifier.", "Use head.classifier=prototype."
        )
    names = {f"reduce.{ours}.weight": f"{HEAD}{theirs}.0.weight" for ours, theirs in PROJECTIONS.items()}
    for i in range(len(head.transformer.blocks)):
        names |= {f"transformer.blocks.{i}.{a}": f"{TRANSFORMER}sa_layers.{i}.{b}" for a, b in BLOCK.items()}
    ends = ("weight", "bias")
    return names | {f"transformer.support_prototype.{e}": f"{TRANSFORMER}support_prototype.{e}" for e in ends}


def export_head(head: Head) -> "OrderedDict[str, Tensor]":
    """The head's tensors with official names, shapes and order."""
    state = head.state_dict()
    return OrderedDict((theirs, _to_kernel(state[ours], theirs)) for ours, theirs in head_names(head).items())


def export_official(net: SofsNet) -> "OrderedDict[str, Tensor]":
    """All tensors with official names, shapes and order.

    Raises:
        UserError: The backbone is not a DINOv2 model without registers, which the original does not know.
    """
    backbone = net.backbone
    if not isinstance(backbone, Dino) or backbone.registers:
        raise UserError(
            f"The original cannot read the backbone {backbone.name}.", "Export with a DINOv2 backbone."
        )
    state = OrderedDict((BACKBONE + k, v) for k, v in backbone.official_state().items())
    state.update(export_head(net.head))
    return state


def load_official(source: str | Path | Mapping[str, Tensor], net: SofsNet) -> None:
    """Load an original checkpoint, all of it or nothing.

    Args:
        source: File, or the mapping itself; an outer ``state_dict`` and a ``module.`` prefix are accepted.
        net: Takes the head, and the backbone if the checkpoint holds one. A checkpoint of the head alone is
            accepted.

    Raises:
        UserError: No such file, not a checkpoint, or tensors that are missing, unexpected or of another
            shape.
    """
    where = str(source) if isinstance(source, str | Path) else "The checkpoint"
    state = _read(source, where)
    expected = dict(export_head(net.head))
    if any(key.startswith(BACKBONE) for key in state):
        expected |= _backbone_names(net, where)
        if BACKBONE + "mask_token" not in state:
            expected.pop(BACKBONE + "mask_token")
    files.compare(expected, state, where)
    load_head({k: v for k, v in state.items() if k.startswith(HEAD)}, net.head, where)
    inner = {k.removeprefix(BACKBONE): v for k, v in state.items() if k.startswith(BACKBONE)}
    if inner and isinstance(net.backbone, Dino):
        net.backbone.load_official(inner, where)


def load_head(state: Mapping[str, Tensor], head: Head, where: str) -> None:
    """Load the head's tensors (official names), all of them or nothing.

    Raises:
        UserError: Tensors are missing, unexpected or of another shape.
    """
    files.compare(export_head(head), state, where)
    head.load_state_dict(
        {a: state[b].reshape(head.get_parameter(a).shape) for a, b in head_names(head).items()}
    )


def _read(source: str | Path | Mapping[str, Tensor], where: str) -> files.State:
    if isinstance(source, Mapping):
        return files.clean(source, where)
    if not Path(source).is_file():
        raise UserError(f"No checkpoint {source}.", "Give the path of the original's .pth file.")
    return files.read_state(Path(source))


def _backbone_names(net: SofsNet, where: str) -> dict[str, Tensor]:
    if not isinstance(net.backbone, Dino) or net.backbone.registers:
        raise UserError(
            f"{where} was trained on a DINOv2 backbone, this network has {net.backbone.name}.",
            "Choose backbone=dinov2_vitb14.",
        )
    return {BACKBONE + k: v for k, v in net.backbone.official_state().items()}


def _to_kernel(value: Tensor, official: str) -> Tensor:
    return value[:, :, None, None] if official.endswith(KERNELS) else value
