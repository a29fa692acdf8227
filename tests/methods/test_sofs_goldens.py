"""Parity of SOFS with the original, file by file of a golden folder (``--goldens=DIR``)."""

from pathlib import Path

import goldens_format
import pytest
import torch
import torch.nn.functional as F

from fewspect.backbones.dino import Dino
from fewspect.methods.sofs import checkpoint
from fewspect.methods.sofs.head import Head
from fewspect.methods.sofs.loss import cell_target, cross_entropy, mixed_dice
from fewspect.methods.sofs.net import SofsNet
from fewspect.nn.prototype import intensity

KINDS = {"head", "full", "dinov2", "protocol", "protocol_arrays", "state_dict"}


def test_every_kind_is_known(request):
    found = goldens_format.entries(Path(request.config.getoption("--goldens")), "sofs")
    assert {golden["kind"] for golden in found} <= KINDS


# -- head and full model -------------------------------------------------------------------------------------


def head_options(golden):
    return {
        "reduce_dim": golden["reduce_dim"],
        "embed_dim": golden["embed_dim"],
        "heads": golden["heads"],
        "depth": golden["attention_blocks"],
        "temperature": golden["temperature"],
        "prior_scale": golden["prior_scale"],
        "abnormal_prior": golden["abnormal_prior"],
        "mask_downsample": golden["mask_downsample"],
        "classifier": golden["classifier"],
        "channel_dropout": golden["dropout"],
        "dropout": golden["dropout"],
    }


def maps(tokens, grid):
    """(B, M, N, D) -> (B * M, D, h, w)."""
    return tokens.flatten(0, 1).transpose(1, 2).unflatten(-1, grid)


def named(trace, grid):
    """Our intermediate results in the layout of the files."""
    result = {k: v for k, v in trace.items() if k.startswith("sa")}
    for key in (
        "semantic_prior",
        "abnormal_prior",
        "down_query",
        "down_supp",
        "supp_merge",
        "query_merge",
        "fused",
    ):
        result[key] = maps(trace[key], grid)
    result["mask_down"] = trace["mask_down"].flatten(0, 1)[:, None].unflatten(-1, grid)
    for key in ("layer_prototypes", "down_proto", "logits"):
        result[key] = trace[key].flatten(0, 1)
    for key in ("mask_weight", "meta_prototype", "abnormal_max"):
        result[key] = trace[key]
    return result


def evaluation(golden, head, query, support, mask):
    """Outputs of evaluation mode; features and masks of b samples, one query each."""
    trace = {}
    state = head.encode_support(support, mask, trace=trace)
    answer = head.segment(query, state, trace)
    prob = head.probability(answer, state, (golden["side"], golden["side"]))[:, 0]
    area = (prob > 0.5).sum((1, 2))
    return {"prob": prob, "prob_sum": prob.sum((1, 2)), "pred_area": area, **named(trace, query.grid)}


def training(golden, head, query, support, mask, target):  # noqa: PLR0917
    """Outputs of one training step, gradients by official name."""
    head.train().zero_grad()
    state = head.encode_support(support, mask)
    answer = head.segment(query, state)
    prob = answer.logits[:, 0].sigmoid()
    share = intensity(target, query.grid, golden["mask_downsample"])
    truth = cell_target(target, query.grid, golden["target_threshold"], golden["mask_downsample"])
    dice, ce = mixed_dice(prob, truth, golden["eta"]), cross_entropy(prob, truth)
    loss = golden["dice_weight"] * dice.mean() + golden["ce_weight"] * ce
    loss.backward()
    up = F.interpolate(answer.logits, (golden["side"],) * 2, mode="bilinear", align_corners=False)[:, 0]
    shapes = checkpoint.export_head(head)
    grads = {b: head.get_parameter(a).grad for a, b in checkpoint.head_names(head).items()}
    grads = {k: None if g is None else g.reshape(shapes[k].shape) for k, g in grads.items()}
    return {
        "loss": loss,
        "target_down": share,
        "target_bin": truth,
        "dice_per_sample": dice,
        "ce": ce,
        "train_pred_area": (up > 0).sum((1, 2)),
        "grad_norms": [-1.0 if g is None else float(g.norm()) for g in grads.values()],
        **{f"grad:{k}": g for k, g in grads.items() if g is not None},
    }


@pytest.mark.goldens("sofs", "head")
def test_head(golden):
    from fewspect.backbones.base import Features

    head = Head(golden["layers"], golden["width"], **head_options(golden))
    official = checkpoint.export_head(head)
    assert list(official) == golden.stored(golden["names_key"]).tolist()
    assert len(official) == golden["n_tensors"]
    checkpoint.load_head(golden.fill("head", official), head, golden.name)
    drawn, grid = golden.draws(), (golden["grid"],) * 2
    mask = torch.from_numpy(golden.stored("support_mask"))
    target = torch.from_numpy(golden.stored("target_mask"))

    def features(name):
        layers = drawn[name] if isinstance(drawn[name], list) else [drawn[name]]
        return Features(tuple(torch.from_numpy(t[:, 1:]) for t in layers), grid).grouped(golden["batch"])

    query, support = features("query_tokens"), features("support_tokens")
    with torch.no_grad():
        outputs = evaluation(golden, head.eval(), query, support, mask)
    golden.compare(outputs | training(golden, head, query, support, mask, target))


def rectangles(nested, side):
    """Masks (…, side, side) of nested lists of rectangles."""
    if not nested or isinstance(nested[0][0], int):
        mask = torch.zeros(side, side, dtype=torch.uint8)
        for top, left, height, width in nested:
            mask[top : top + height, left : left + width] = 1
        return mask
    return torch.stack([rectangles(part, side) for part in nested])


@pytest.mark.goldens("sofs", "full")
def test_full(golden):
    assert golden["rect_fields"] == ["top", "left", "height", "width"]
    side, batch = golden["side"], golden["batch"]
    backbone = Dino(
        golden["backbone"], golden["backbone_blocks"], None, side, pos_interp=golden["pos_interp"]
    )
    net = SofsNet(backbone, **head_options(golden)).eval()
    official = checkpoint.export_official(net)
    assert len(official) == golden["n_tensors"]
    checkpoint.load_official(golden.fill("model", official), net)
    backbone.mean.zero_()  # images are used as they are
    backbone.std.fill_(1)
    drawn = golden.draws()
    mask = torch.stack(
        [torch.stack([rectangles(s, side) for s in shots]) for shots in golden["support_rects"]]
    )
    target = torch.stack([rectangles(r, side) for r in golden["target_rects"]])
    with torch.no_grad():
        query = net.features(torch.from_numpy(drawn["query_images"]).view(batch, 1, 3, side, side))
        support = net.features(torch.from_numpy(drawn["support_images"]).view(batch, -1, 3, side, side))
        outputs = evaluation(golden, net.head, query, support, mask)
    for name, features in (("query", query), ("support", support)):
        outputs |= {
            f"{name}_block{block}": maps(tokens, features.grid)
            for block, tokens in zip(golden["backbone_blocks"], features.tokens, strict=True)
        }
    outputs |= training(golden, net.head, query, support, mask, target)
    assert list(checkpoint.export_head(net.head)) == golden.stored(golden["names_key"]).tolist()
    golden.compare(outputs)


# -- backbone ------------------------------------------------------------------------------------------------


@pytest.mark.goldens("sofs", "dinov2")
def test_backbone(golden):
    depth = golden["depth"]
    backbone = Dino(golden["backbone"], range(depth), None, pos_interp=golden["pos_interp"])
    assert (backbone.dim, backbone.stride, backbone.registers) == (
        golden["width"],
        golden["patch"],
        golden["registers"],
    )
    backbone.load_official(golden.fill("backbone", backbone.official_state()), golden.name)
    outputs, full = {}, {}
    for name, image in golden.draws().items():
        index = golden.stored(golden["token_index"][name])
        with torch.no_grad():
            features = backbone.encode(torch.from_numpy(image))
            positions = backbone.positions(features.grid)[0]  # (1 + N, D)
            outputs[f"{name}_final_cls_norm"] = backbone.vit.norm(features.cls[-1])[0]
        outputs[f"{name}_pos_embed"] = positions[[0, *(index + 1)]]
        for block in golden["backbone_blocks"]:
            key = f"{name}_block{block}"
            full[f"{key}_patch"] = features.tokens[block][0]
            outputs[f"{key}_patch"], outputs[f"{key}_cls"] = (
                features.tokens[block][0][index],
                features.cls[block][0],
            )
    for key, stride in golden["channel_stride"].items():
        outputs[key] = outputs[key][..., ::stride]
    for row in golden["statistics"]:
        outputs[row["key"]] = goldens_format.statistics(full[row["of"]].numpy(), row["stats"], row["ddof"])
    golden.compare(outputs)


# -- checkpoint layout ---------------------------------------------------------------------------------------


def exported(golden):
    """Tensors of our export for the model that the file describes."""
    config = golden["config"]
    if golden["model"] != "sofs":
        return Dino(golden["model"], side=config["side"]).official_state()
    backbone = Dino(config["backbone"], range(config["layers"]))
    options = {k: config[k] for k in ("reduce_dim", "embed_dim", "heads")}
    return checkpoint.export_official(SofsNet(backbone, depth=config["attention_blocks"], **options))


@pytest.mark.goldens("sofs", "state_dict")
def test_state_dict(golden):
    rows = golden.content if golden["entries_key"] is None else golden.content[golden["entries_key"]]
    if golden["entry_form"] == "array":
        rows = [dict(zip(("name", "shape", "dtype"), row, strict=True)) for row in rows]
    state = exported(golden)
    assert (len(state), sum(v.numel() for v in state.values())) == (golden["tensors"], golden["elements"])
    mine = [
        {"name": k, "shape": list(v.shape), "dtype": str(v.dtype).removeprefix("torch.")}
        for k, v in state.items()
    ]

    def layout(entries):
        return {
            "names": sorted(e["name"] for e in entries),
            "order": [e["name"] for e in entries],
            "shapes": {e["name"]: list(e["shape"]) for e in entries},
            "dtypes": {e["name"]: e["dtype"] for e in entries},
        }

    golden.compare(layout(mine), layout(rows))
