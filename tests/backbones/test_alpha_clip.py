"""AlphaCLIP's and CLIP's towers: parity with the reference, names, safe loading."""

import json

import pytest
import torch

from fewspect.backbones.alpha_clip import AlphaClip
from fewspect.backbones.clip import SIZES, Clip, Size, TextTower
from fewspect.errors import UserError
from fewspect.nn.pooling import similar, top_patches


def tiny_size(golden):
    keys = ("input_resolution", "patch_size", "width", "layers", "heads", "output_dim")
    return Size(*(golden[k] for k in keys), text_width=golden["width"])


def published(state):
    """Published names and shapes of a tower's tensors."""
    return {k.replace(".attn.in_proj_", ".attn.in_proj."): v for k, v in state.items()}


def answers(tower, image, alpha):
    """Class token and all tokens of a normalised image and alpha."""
    with torch.no_grad():
        found = tower.encode(torch.cat([image, alpha], 1))
    return found.cls[0], found.tokens[0]


@pytest.mark.goldens("mvrec", "alphaclip")
def test_the_tower_agrees_with_the_reference(golden):
    image, alpha = (torch.from_numpy(golden.stored(k)) for k in golden["stored_inputs"])
    model = AlphaClip("alphaclip_vitb16", size=tiny_size(golden))
    filled = golden.fill("visual", published(model.published_state()))
    model.load_published(filled, "golden")
    cls, tokens = answers(model, image, alpha)
    ones = torch.full_like(alpha, golden["alpha_ones_value"])
    zero = AlphaClip("alphaclip_vitb16", size=tiny_size(golden))
    zero.load_published({k: v for k, v in filled.items() if k != "conv1_alpha.weight"}, "golden")
    plain = Clip("clip_vitb16", size=tiny_size(golden))
    plain.tower.load_state_dict({**zero.tower.state_dict(), "conv1.weight": filled["conv1.weight"]})
    with torch.no_grad():
        assert torch.allclose(plain.encode(image).cls[0], answers(zero, image, alpha)[0], atol=1e-5)
    golden.compare(
        {
            "cls": cls,
            "tokens": torch.cat([cls[:, None], tokens], 1),
            "patch_index": similar(cls, tokens, golden["top_patches"]),
            "mvrec": top_patches(cls, tokens, golden["top_patches"]),
            "cls_alpha_ones": answers(model, image, ones)[0],
            "cls_alpha_zero_weight": answers(zero, image, alpha)[0],
        }
    )


@pytest.mark.goldens("mvrec", "state_dict")
def test_names_are_those_of_the_published_file(golden):
    spec = golden["config"]
    with torch.device("meta"):
        from open_clip.transformer import QuickGELU, VisionTransformer

        tower = VisionTransformer(
            spec["input_resolution"],
            spec["patch_size"],
            spec["width"],
            spec["layers"],
            spec["heads"],
            4.0,
            output_dim=spec["output_dim"],
            act_layer=QuickGELU,
        )
    size = SIZES["vitl14"]
    assert (size.side, size.patch, size.width, size.layers, size.heads, size.dim) == tuple(spec.values())
    mine = {k: list(v.shape) for k, v in published(tower.state_dict()).items()}
    mine["conv1_alpha.weight"] = [spec["width"], 1, spec["patch_size"], spec["patch_size"]]
    listed = json.loads((golden.folder / golden.name).read_text())[golden["entries_key"]]
    assert mine == {e["name"]: e["shape"] for e in listed}
    assert len(listed) == golden["tensors"]


SMALL = Size(28, 14, 64, 2, 1, 16, 64)


@pytest.fixture
def checkpoint(tmp_path):
    """A small published-looking file and the tower it came from."""
    model = AlphaClip("alphaclip_vitl14", size=SMALL)
    state = {f"module.{k}": v for k, v in published(model.published_state()).items()}
    torch.save(state, tmp_path / "a.pth")
    return model, tmp_path / "a.pth"


def test_a_published_file_is_loaded_whole_or_not_at_all(checkpoint, tmp_path):
    model, path = checkpoint
    again = AlphaClip("alphaclip_vitl14", str(path), size=SMALL)
    assert all(torch.equal(v, again.tower.state_dict()[k]) for k, v in model.tower.state_dict().items())
    state = torch.load(path, weights_only=True)
    del state["module.proj"]
    torch.save({**state, "module.lora_A": torch.ones(1)}, tmp_path / "b.pth")
    with pytest.raises(UserError, match=r"missing \(1\): proj; unexpected \(1\): lora_A"):
        AlphaClip("alphaclip_vitl14", str(tmp_path / "b.pth"), size=SMALL)


def test_programs_and_foreign_names_are_refused(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "clip.pt")
    with pytest.raises(UserError, match="a program, which is never run"):
        Clip("clip_vitb32", str(tmp_path / "clip.pt"), size=SMALL)
    with pytest.raises(UserError, match="Backbone clip_vitx is unknown"):
        Clip("clip_vitx")
    with pytest.raises(UserError, match="takes 28 pixels, not 224"):
        Clip("clip_vitb32", side=224, size=SMALL)


@pytest.mark.parametrize(("build", "name"), [(Clip, "clip_vitb32"), (AlphaClip, "alphaclip_vitl14")])
def test_another_side_is_refused_since_positions_are_not_interpolated(build, name):
    with pytest.raises(UserError, match="takes 28 x 28 pixels, not 42 x 42"):
        build(name, size=SMALL)(torch.rand(1, 3, 42, 42))


def test_the_mask_counts_and_its_absence_means_everything():
    model = AlphaClip("alphaclip_vitl14", size=SMALL)
    image = torch.rand(2, 3, 28, 28, generator=torch.manual_seed(0))
    mask = torch.zeros(2, 1, 28, 28)
    mask[:, :, :10, :10] = 1
    whole = model(image).cls[0]
    assert whole.shape == (2, 16)
    assert torch.equal(whole, model(image, torch.ones_like(mask)).cls[0])
    assert not torch.allclose(whole, model(image, mask).cls[0])
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.slow
def test_texts_get_features_of_the_joint_space(tmp_path):
    tower = TextTower("clip_vitb32")
    found = tower(["a crack", "a photo of a hole", "a crack"])
    assert found.shape == (3, 512)
    assert torch.allclose(found[0], found[2])
    assert not torch.allclose(found[0], found[1])
    state = {**tower.tower.state_dict(), "logit_scale": torch.ones(()), "visual.proj": torch.ones(2)}
    torch.save(state, tmp_path / "both.pt")
    again = TextTower("clip_vitb32", str(tmp_path / "both.pt"))
    assert torch.equal(again(["a crack"]), tower(["a crack"]))
