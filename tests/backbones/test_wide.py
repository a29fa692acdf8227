"""WRN of S2M2_R as a backbone, and its training recipe on a small net; text encoders of one space."""

import numpy as np
import pytest
import torch
from PIL import Image

from fewspect.backbones.text import ClipText
from fewspect.backbones.wide import CosineHead, Wide, WideResNet
from fewspect.data.readers import folder
from fewspect.engine import s2m2
from fewspect.errors import UserError


def small(classes=3):
    torch.manual_seed(0)
    return WideResNet(10, 1, classes)


def test_a_checkpoint_makes_a_backbone(tmp_path):
    net = small()
    torch.save(net.state_dict(), tmp_path / "net.pth")
    backbone = Wide(str(tmp_path / "net.pth"), depth=10, widen=1)
    image = torch.rand(2, 3, 84, 84)
    found = backbone(image)
    assert found.tokens[0].shape == (2, 441, 64)
    assert found.grid == (21, 21)
    expected, _ = net.eval()((image - backbone.mean) / backbone.std)
    torch.testing.assert_close(found.cls[0], expected)
    assert (found.cls[0] >= 0).all()
    with pytest.raises(UserError, match="does not fit"):
        Wide(str(tmp_path / "net.pth"), depth=16, widen=1)


def test_the_head_is_a_scaled_cosine():
    head = CosineHead(8, 3)
    x = torch.randn(4, 8)
    cosine = torch.nn.functional.cosine_similarity(x[:, None], head.L.weight_v[None], dim=-1)
    torch.testing.assert_close(head(x), 2 * cosine, atol=1e-4, rtol=1e-4)
    assert CosineHead(8, 201).scale == 10


def test_rotations_are_counter_clockwise():
    image = torch.zeros(1, 1, 3, 3)
    image[0, 0, 0, 2] = 1  # upper right
    turned, turns = s2m2.rotated(image)
    assert turns.tolist() == [0, 1, 2, 3]
    assert turned[1, 0, 0, 0] == 1  # a quarter turn brings it to the upper left


def test_mixup_of_two_images():
    net, images, labels = small().eval(), torch.randn(4, 3, 84, 84), torch.tensor([0, 1, 2, 0])
    head = torch.nn.Linear(64, 4)
    one, again = (s2m2.stage_two(net, head, images, labels, np.random.default_rng(1)) for _ in range(2))
    assert torch.equal(one, again)
    one.backward()
    assert all(p.grad is not None for p in net.parameters())


def test_both_stages_train(tmp_path):
    for k in range(2):
        (tmp_path / f"c{k}").mkdir()
        for i in range(4):
            pixels = np.random.default_rng(i).integers(0, 60, (90, 90)) + 150 * k
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"c{k}" / f"{i}.png")
    samples = list(folder.read(str(tmp_path), layout="classes").samples)
    net = small(2)
    before = net.conv1.weight.clone()
    s2m2.train(samples, net, 1, batch=4)
    assert not torch.equal(net.conv1.weight, before)
    assert all(v.isfinite().all() for v in net.state_dict().values())


@pytest.mark.slow
def test_texts_of_clip_are_sentences_averaged_on_the_sphere():
    encoder = ClipText(templates=["a photo of {}.", "{}"])
    found = encoder([["a crack"], ["a crack", "a scratch"]])
    parts = torch.nn.functional.normalize(encoder.tower(["a photo of a crack.", "a crack"]), dim=1).mean(0)
    torch.testing.assert_close(found[0], parts / parts.norm())
    assert encoder.partner == "clip_vitb32"
    with pytest.raises(UserError, match="has no place"):
        ClipText(templates=["a photo"])
