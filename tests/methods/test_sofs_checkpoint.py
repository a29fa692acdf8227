"""Original checkpoints in and out of the SOFS network."""

import pytest
import torch

from fewspect.backbones.dino import Dino
from fewspect.backbones.tiny import Tiny
from fewspect.errors import UserError
from fewspect.methods.sofs import checkpoint
from fewspect.methods.sofs.head import Head
from fewspect.methods.sofs.net import SofsNet


def make_net():
    return SofsNet(Dino("dinov2_vits14", [0, 1], side=28), reduce_dim=8, embed_dim=8)


def test_official_round_trip(tmp_path):
    source, target = make_net(), make_net()
    state = {k: torch.randn_like(v) for k, v in checkpoint.export_official(source).items()}
    for number, wrapped in enumerate(
        ({**state}, {"state_dict": state}, {"state_dict": {f"module.{k}": v for k, v in state.items()}})
    ):
        path = tmp_path / f"{number}.pth"
        torch.save(wrapped, path)
        checkpoint.load_official(path, target)
        back = checkpoint.export_official(target)
        assert list(back) == list(state)
        assert all(torch.equal(v, state[k]) for k, v in back.items())


def test_head_alone_is_accepted_and_leaves_the_backbone():
    net = make_net()
    before = net.backbone.vit.cls_token.clone()
    checkpoint.load_official({k: v + 1 for k, v in checkpoint.export_head(net.head).items()}, net)
    assert torch.equal(net.backbone.vit.cls_token, before)


def test_wrong_checkpoints_are_refused_and_change_nothing(tmp_path):
    net = make_net()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = checkpoint.export_official(net)
    state = {k: v + 1 for k, v in state.items()}
    key = "feature_recorrect.down_query.0.weight"
    cases = {
        "missing": {k: v for k, v in state.items() if k != key},
        "unexpected": state | {"feature_recorrect.more": torch.zeros(1)},
        "other shape": state | {key: torch.zeros(2, 2, 1, 1)},
    }
    for word, case in cases.items():
        with pytest.raises(UserError, match=word):
            checkpoint.load_official(case, net)
    with pytest.raises(UserError, match="mapping"):
        checkpoint.load_official({"epoch": 3}, net)
    with pytest.raises(UserError, match=r"none\.pth"):
        checkpoint.load_official(tmp_path / "none.pth", net)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_what_the_original_does_not_know_is_refused():
    net = SofsNet(Tiny(None, side=32, width=16), reduce_dim=8, embed_dim=8)
    with pytest.raises(UserError, match="tiny"):
        checkpoint.export_official(net)
    with pytest.raises(UserError, match="DINOv2"):
        checkpoint.load_official(checkpoint.export_official(make_net()), net)
    with pytest.raises(UserError, match="classifier"):
        checkpoint.export_head(Head(1, 4, reduce_dim=4, embed_dim=4, classifier="conv"))
