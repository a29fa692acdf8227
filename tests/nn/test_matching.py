"""Attention, prototypes, priors and fusion against loops over the formulas."""

import math

import pytest
import torch

from fewspect.nn import attention
from fewspect.nn import prototype as match


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_attention_equals_the_formula():
    layer, x = attention.SelfAttention(12, 3), torch.randn(2, 7, 12)
    q, k, v = (p(x).view(2, 7, 3, 4).transpose(1, 2) for p in (layer.query, layer.key, layer.value))
    scores = (q @ k.transpose(-1, -2) / (math.sqrt(4) + 1e-9)).softmax(-1)
    expected = layer.out((scores @ v).transpose(1, 2).reshape(2, 7, 12))
    assert torch.allclose(layer(x), expected, atol=1e-6)


def test_block_keeps_its_shape_on_a_grid_that_is_not_square():
    assert attention.Block(8, 2)(torch.randn(3, 15, 8), (3, 5)).shape == (3, 15, 8)


def test_masked_mean_of_nothing_is_zero():
    tokens = torch.randn(2, 5, 3)
    weight = torch.tensor([[0.0] * 5, [0, 0.5, 0, 0, 1]])
    mean = match.masked_mean(tokens, weight)
    assert torch.equal(mean[0], torch.zeros(3))
    assert torch.allclose(mean[1], (0.5 * tokens[1, 1] + tokens[1, 4]) / 1.5005)


def test_area_intensity_is_the_exact_share():
    mask = torch.zeros(1, 28, 28, dtype=torch.uint8)
    mask[0, :7, :14] = 1
    mask[0, 20, 20] = 255  # ignore
    assert match.intensity(mask, (2, 2)).tolist() == [[[0.5, 0.0], [0.0, 0.0]]]


def slow_priors(query, support, mask, count, share):
    batch, cells = query.shape[:2]
    semantic, abnormal = torch.zeros(batch, cells), torch.zeros(batch, cells)
    for b in range(batch):
        for i in range(cells):
            nearest = []
            for k in range(support.shape[1]):
                if count[b, k] == 0:
                    continue
                cosine = torch.stack([query[b, i] @ s for s in support[b, k]])
                semantic[b, i] += share[b, k] * max(
                    0, *[c for c, m in zip(cosine, mask[b, k], strict=True) if m > 0], 0
                )
                nearest.append(((1 - mask[b, k]) * cosine).max())
            abnormal[b, i] = 1 - max(nearest)
    return semantic, abnormal


@pytest.mark.parametrize("cells", [1, 40, 1 << 24])
def test_priors_equal_the_formula_however_they_are_cut(cells):
    query, support = match.unit(torch.randn(2, 9, 6)), match.unit(torch.randn(2, 3, 4, 6))
    mask = torch.rand(2, 3, 4) * (torch.rand(2, 3, 4) > 0.4)
    mask[0, 1] = 0
    count = torch.tensor([[1.0, 1, 2], [1, 1, 0]])
    mask[1, 2] = 0
    share = count / count.sum(1, keepdim=True)
    result = match.cosine_priors(query, support, mask, count, share, cells=cells)
    for mine, slow in zip(result, slow_priors(query, support, mask, count, share), strict=True):
        assert torch.allclose(mine, slow, atol=1e-6)


@pytest.mark.parametrize("cells", [1, 1 << 24])
def test_fusion_equals_the_formula_however_it_is_cut(cells):
    query, key, value = torch.randn(2, 3, 5, 4), match.unit(torch.randn(2, 6, 4)), torch.randn(2, 6, 4)
    mask = torch.rand(2, 6)
    result = match.fuse(query, key, mask, value, 0.1, cells=cells)
    expected = query.clone()
    for b in range(2):
        for q in range(3):
            for j in range(6):
                e = torch.stack([torch.cosine_similarity(x, key[b, j], 0) * mask[b, j] for x in query[b, q]])
                expected[b, q] += (e / 0.1).softmax(0)[:, None] * value[b, j]
    assert torch.allclose(result, expected, atol=1e-5)


def test_foreground_cells_are_all_there_and_filled_up_with_zeros():
    mask = torch.tensor([[0.0, 0.2, 0, 1], [0, 0, 0.1, 0], [0, 0, 0, 0]])
    index = match.foreground_cells(mask)
    assert index.shape == (3, 2)
    assert torch.allclose(match.gather(mask, index), torch.tensor([[0.2, 1], [0.1, 0], [0, 0]]))
    assert match.foreground_cells(mask[2:]).shape == (1, 0)


def test_channel_dropout_takes_whole_channels():
    tokens = torch.ones(4, 10, 50)
    assert match.channel_dropout(tokens, 0.5, training=False) is tokens
    dropped = match.channel_dropout(tokens, 0.5, training=True)
    assert ((dropped == 0).all(1) | (dropped == 2).all(1)).all()
    assert 0.2 < (dropped == 0).float().mean() < 0.8


def test_priors_stay_float32_under_autocast():
    query, support = match.unit(torch.randn(1, 9, 6)), match.unit(torch.randn(1, 2, 4, 6))
    arguments = (query, support, torch.rand(1, 2, 4), torch.ones(1, 2), torch.full((1, 2), 0.5))
    exact = match.cosine_priors(*arguments)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = match.cosine_priors(*arguments)
        fused = match.fuse(torch.randn(1, 1, 4, 6), support[:, 0], torch.rand(1, 4), support[:, 0], 0.1)
    assert fused.dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(exact, mixed, strict=True))
