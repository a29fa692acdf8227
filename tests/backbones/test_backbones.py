import pytest
import torch
from safetensors.torch import save_file

from fewspect.backbones import tiny, weights
from fewspect.backbones.base import Features
from fewspect.backbones.dino import Dino
from fewspect.backbones.resnet import ResNet
from fewspect.backbones.tiny import Tiny
from fewspect.errors import UserError

BUILD = {
    "tiny": lambda **o: Tiny(None, **{"side": 32, "width": 16} | o),
    "dino": lambda **o: Dino("dinov2_vits14", **{"layers": [0, 1], "side": 28} | o),
    "dino_reg": lambda **o: Dino("dinov2_vits14_reg4", **{"layers": [0, 2], "side": 28} | o),
    "resnet": lambda **o: ResNet("resnet18", **{"side": 64} | o),
}


@pytest.fixture(params=BUILD, scope="module")
def build(request):
    return BUILD[request.param]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.tokens, b.tokens, strict=True))


def test_contract(build):
    backbone = build()
    height, width = backbone.side, 2 * backbone.side
    features = backbone(torch.rand(2, 3, height, width))
    grid = (height // backbone.stride, width // backbone.stride)
    assert features.grid == grid
    assert [t.shape for t in features.tokens] == [(2, grid[0] * grid[1], backbone.dim)] * len(backbone.layers)
    assert features.maps()[0].shape == (2, backbone.dim, *grid)
    assert all(t.isfinite().all() and t.std() > 0.01 for t in features.tokens)
    first, second = features.split(1, 1)
    assert same(Features.cat([first, second]), features)
    assert features.grouped(2).tokens[0].shape == (2, 1, grid[0] * grid[1], backbone.dim)


def test_random_weights_depend_on_the_name_only(build):
    torch.manual_seed(1)
    first, after = build(), torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(1))  # building draws nothing from the global generator
    torch.manual_seed(2)
    second = build(layers=first.layers[:1])
    image = torch.rand(1, 3, first.side, first.side)
    assert torch.equal(first(image).tokens[0], second(image).tokens[0])
    assert torch.equal(
        first.state_dict()[next(iter(second.state_dict()))], next(iter(second.state_dict().values()))
    )


def test_frozen_stays_in_evaluation_mode_and_computes_no_gradient(build):
    backbone = build()
    parent = torch.nn.Sequential(backbone).train()
    assert parent.training
    assert not any(m.training for m in backbone.modules())
    assert not any(p.requires_grad for p in backbone.parameters())
    image = torch.rand(1, 3, backbone.side, backbone.side, requires_grad=True)
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    assert not backbone(image).tokens[0].requires_grad
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())


def test_free_backbone_trains_everything_it_computes(build):
    backbone = build(frozen=False).train()
    features = backbone(torch.rand(2, 3, backbone.side, backbone.side))
    torch.stack([(t * torch.randn_like(t)).sum() for t in features.tokens]).sum().backward()
    trainable = {k: p for k, p in backbone.named_parameters() if p.requires_grad}
    assert trainable
    assert not [k for k, p in trainable.items() if p.grad is None or not p.grad.abs().sum() > 0]


def test_normalises_its_own_input_without_keeping_the_constants_in_checkpoints(build):
    backbone = build()
    image = torch.rand(1, 3, backbone.side, backbone.side)
    assert same(backbone(image), backbone.encode((image - backbone.mean) / backbone.std))
    assert not {"mean", "std"} & set(backbone.state_dict())


def test_wrong_sizes_and_layers_are_refused(build):
    backbone = build()
    with pytest.raises(UserError, match=r"stride.*\n.*multiple"):
        backbone(torch.rand(1, 3, backbone.side + 1, backbone.side))
    for layers in ([], [99], [-1, 0], [2, 1], [1, 1]):
        with pytest.raises(UserError):
            build(layers=layers)


def test_runs_under_autocast(build):
    backbone = build()
    with torch.autocast("cpu", torch.bfloat16):
        features = backbone(torch.rand(1, 3, backbone.side, backbone.side))
    assert features.tokens[-1].isfinite().all()


# -- checkpoints ---------------------------------------------------------------------------------------------


def test_tiny_round_trip_in_half_precision(tmp_path):
    other = Tiny(None, side=32, width=16)
    for value in other.state_dict().values():
        value.mul_(1.5)
    path = tmp_path / "tiny.safetensors"
    save_file({k: v.half() for k, v in other.state_dict().items()}, path)
    loaded = Tiny(str(path), side=32, width=16)
    assert all(torch.allclose(v, other.state_dict()[k], atol=1e-2) for k, v in loaded.state_dict().items())
    assert all(v.dtype == torch.float32 for v in loaded.state_dict().values())


def test_embedded_weights_load_or_say_that_they_are_missing():
    if tiny.EMBEDDED.is_file():
        assert Tiny()(torch.rand(1, 3, 128, 128)).tokens[0].isfinite().all()
    else:
        with pytest.raises(UserError, match=r"tiny\.safetensors"):
            Tiny()


def test_official_file_with_wrapper_and_prefix(tmp_path):
    backbone = Dino("dinov2_vits14", [0], side=28)
    state = {k: v + 1 for k, v in backbone.official_state().items()}
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "w.pth")
    loaded = Dino("dinov2_vits14", [0], str(tmp_path / "w.pth"), side=28)
    assert all(torch.equal(v, state[k]) for k, v in loaded.official_state().items())


def test_register_checkpoint_is_converted(tmp_path):
    backbone = Dino("dinov2_vits14_reg4", [0], side=28)
    state = {k: v.clone() for k, v in backbone.vit.state_dict().items()}
    registers, position = state.pop("reg_token"), torch.randn(1, 1, 384)
    official = state | {"register_tokens": registers, "mask_token": torch.zeros(1, 384)}
    official["cls_token"] = state["cls_token"] - position
    official["pos_embed"] = torch.cat([position, state["pos_embed"]], 1)
    torch.save(official, tmp_path / "w.pth")
    loaded = Dino("dinov2_vits14_reg4", [0], str(tmp_path / "w.pth"), side=28)
    image = torch.rand(1, 3, 28, 28)
    assert torch.allclose(loaded(image).tokens[0], backbone(image).tokens[0], atol=1e-5)


def test_wrong_checkpoint_lists_what_does_not_fit(tmp_path):
    state = Dino("dinov2_vits14", [0], side=28).official_state()
    state["surplus"] = state.pop("norm.bias")
    state["norm.weight"] = torch.zeros(3)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UserError) as error:
        Dino("dinov2_vits14", [0], str(tmp_path / "w.pth"), side=28)
    text = str(error.value)
    assert "missing (1): norm.bias" in text
    assert "unexpected (1): surplus" in text
    assert "norm.weight (3,) instead of (384,)" in text
    assert str(tmp_path / "w.pth") in text


@pytest.mark.parametrize("name", ["dinov2_vits14", "dinov2_vits14_reg4"])
def test_the_file_of_another_size_is_refused_by_name(tmp_path, name):
    state = {"mask_token": torch.zeros(1, 768), "register_tokens": torch.zeros(1, 4, 768)}
    torch.save(state, tmp_path / "b.pth")
    with pytest.raises(UserError, match=r"mask_token \(1, 768\) instead of \(1, 384\)"):
        Dino(name, [0], str(tmp_path / "b.pth"), side=28)


def test_missing_file_says_where_to_put_it_and_what_else_works(tmp_path):
    with pytest.raises(UserError) as error:
        Dino("dinov2_vits14", [0], str(tmp_path / "none.pth"), side=28)
    for part in ("none.pth", "dinov2_vits14_pretrain.pth", "weights=none", "weights=hub"):
        assert part in str(error.value)
    with pytest.raises(UserError) as error:
        weights.fetch(tmp_path / "none.pth", "clip_vitb32")
    assert "weights=none" in str(error.value) and "weights=hub" not in str(error.value)


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize("content", [Evil(), {"a": Evil()}, [torch.zeros(1)], {"a": 1}, {}])
def test_files_that_are_no_checkpoints_are_refused(tmp_path, capsys, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.pth"):
        weights.read_state(tmp_path / "w.pth")
    assert capsys.readouterr().out == ""


def test_garbage_and_wrong_digests_are_refused(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="not a readable checkpoint"):
        weights.fetch(str(tmp_path / "w.safetensors"), "x")
    with pytest.raises(UserError, match="SHA-256"):
        weights.fetch(str(tmp_path / "w.safetensors"), "x", sha256="00")
    digest = weights.digest(tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="not a readable checkpoint"):  # the digest was right
        weights.fetch(str(tmp_path / "w.safetensors"), "x", sha256=digest[:8])


def test_nothing_is_downloaded_unless_named(monkeypatch):
    def refuse(*_args, **_options):
        raise AssertionError("network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    for source in (None, "none", "None"):
        assert weights.fetch(source, "x", "https://example.org/w.pth") is None
    with pytest.raises(UserError, match="no official download"):
        weights.fetch("hub", "tiny")


def test_failed_download_is_explained(monkeypatch, tmp_path):
    def fail(*_args, **_options):
        raise OSError("no route")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(UserError, match="no route"):
        weights.fetch("hub", "x", "https://example.org/w.pth")


def test_unknown_names():
    with pytest.raises(UserError, match="dinov2_vits14"):
        Dino("dinov3_huge")
    with pytest.raises(UserError, match="resnet18"):
        ResNet("resnet7")


def test_position_rules_agree_at_the_native_grid_and_nowhere_else():
    official, other = (Dino("dinov2_vits14", [0], pos_interp=rule) for rule in ("official", "timm"))
    assert torch.equal(official.positions((37, 37)), other.positions((37, 37)))
    assert official.positions((5, 8)).shape == other.positions((5, 8)).shape == (1, 41, 384)
    assert not torch.allclose(official.positions((5, 8)), other.positions((5, 8)), atol=1e-4)


def test_final_norm_is_an_option():
    image = torch.rand(1, 3, 28, 28)
    plain, normed = (Dino("dinov2_vits14", [1], side=28, norm=n) for n in (False, True))
    assert torch.allclose(plain.vit.norm(plain(image).tokens[0]), normed(image).tokens[0], atol=1e-6)
