"""Features of whole images: every row belongs to its image, and a cache to what it was made of."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fewspect.backbones.base import Features
from fewspect.data.embedding import embedded
from fewspect.data.index import Index
from fewspect.errors import UserError
from fewspect.types import Sample

SIDE = 8


class Colours(nn.Module):
    """Mean colour as class token, and how often it was asked."""

    layers = (0,)

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor, self.asked = nn.Parameter(torch.tensor(factor)), 0

    def forward(self, images):
        self.asked += len(images)
        patches = self.factor * images.flatten(2).mT  # (B, L, 3)
        return Features((patches,), (SIDE, SIDE), (patches.mean(1),))


@pytest.fixture
def index(tmp_path):
    """Seven images of one colour each; more of them than the feature is wide."""
    samples = []
    for k in range(7):
        path = tmp_path / f"{k}.png"
        Image.fromarray(np.full((SIDE, SIDE, 3), (10 * k, 20 * k, 30 * k), np.uint8)).save(path)
        samples.append(Sample(path, product="", label=1 + k % 2))
    return Index(tuple(samples), ("dent", "hole"))


def test_gccs_fault_6_every_row_is_the_feature_of_its_image(index):
    """The original reshapes (n, D) to (D, n), and counts labels from 0 for readers that count from 1."""
    found = embedded(index, Colours(), side=SIDE)
    k = torch.arange(7)[:, None]
    expected = k * torch.tensor([10.0, 20.0, 30.0])
    colour = found.feature[:, 0, 0]
    torch.testing.assert_close(colour * (255 if colour.max() <= 1 else 1), expected, atol=1e-3, rtol=0)
    assert [found.classes[c] for c in found.label.tolist()] == ["dent", "hole"] * 3 + ["dent"]
    assert [p.rpartition("/")[2] for p in found.paths] == [f"{n}.png" for n in range(7)]


def test_gccs_fault_8_a_cache_belongs_to_what_it_was_made_of(index, tmp_path):
    """The original's cache has a name without classes and numbers, and today's torch refuses it."""
    backbone, cache = Colours(), str(tmp_path / "cache")
    first = embedded(index, backbone, side=SIDE, cache=cache)
    again = embedded(index, backbone, side=SIDE, cache=cache)
    assert backbone.asked == 7
    assert torch.equal(first.feature, again.feature)
    fewer = index.with_samples(index.samples[:5])
    assert len(embedded(fewer, backbone, side=SIDE, cache=cache).feature) == 5
    renamed = replace(index, classes=("dent", "pit"))
    assert embedded(renamed, backbone, side=SIDE, cache=cache).classes == ("dent", "pit")
    whiter = index.with_samples(replace(s, meta={"white_level": 100}) for s in index.samples)
    asked = backbone.asked
    embedded(whiter, backbone, side=SIDE, cache=cache)
    assert backbone.asked == asked + 7
    relabelled = index.with_samples([*index.samples[:6], Sample(index.samples[6].image, label=2)])
    assert embedded(relabelled, backbone, side=SIDE, cache=cache).label.tolist() == [0, 1, 0, 1, 0, 1, 1]
    other = embedded(index, Colours(2.0), side=SIDE, cache=cache).feature
    torch.testing.assert_close(other, 2 * first.feature)
    Image.fromarray(np.full((SIDE, SIDE, 3), 200, np.uint8)).save(index.samples[0].image)
    assert not torch.equal(embedded(index, backbone, side=SIDE, cache=cache).feature[0], first.feature[0])


def test_nothing_with_a_class_is_told(index):
    good = index.with_samples([Sample(s.image, label=0) for s in index.samples])
    with pytest.raises(UserError, match="No image is labelled"):
        embedded(good, Colours(), side=SIDE)
