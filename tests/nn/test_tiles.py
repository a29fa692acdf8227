import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewspect.errors import UserError
from fewspect.nn import tiles, windows

NAMES = ("uniform", "hann", "gaussian")


@given(st.integers(1, 300), st.integers(1, 150), st.integers(1, 150))
@settings(max_examples=200, deadline=None)
def test_positions_cover_the_axis_and_end_with_it(length, patch, stride):
    patch = min(patch, length)
    found = tiles.positions(length, patch, stride)
    steps = list(range(0, length - patch + 1, stride))
    assert found == steps + [length - patch] * (steps[-1] != length - patch)  # the definition of 1.6
    if stride <= patch:
        covered = np.zeros(length, bool)
        for start in found:
            covered[start : start + patch] = True
        assert covered.all()


@pytest.mark.parametrize("size", [(1, 1), (5, 9), (16, 7), (40, 3), (16, 40), (50, 60)])
def test_small_images_are_mirrored_up_to_a_tile(size):
    view = torch.arange(3 * size[0] * size[1], dtype=torch.float32).view(3, *size)
    padded = tiles.pad(view, 16)
    wanted = [max(16, n) for n in size]
    more = [(0, w - n) for w, n in zip(wanted, size, strict=True)]
    expected = np.pad(view.numpy(), [(0, 0), *more], "reflect")
    assert padded.shape[1:] == tuple(wanted)
    assert np.array_equal(padded.numpy(), expected)
    assert torch.equal(padded[:, : size[0], : size[1]], view)


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_positive_and_symmetric(name):
    weight = tiles.weight(name, 32)
    assert weight.shape == (32, 32)
    assert (weight > 0).all()
    assert torch.allclose(weight, weight.flip(0)) and torch.allclose(weight, weight.T)
    assert weight[16, 16] == weight.max()


def test_unknown_weight_is_refused():
    with pytest.raises(UserError, match="tile weight"):
        tiles.weight("round", 8)


@given(st.sampled_from(NAMES), st.integers(8, 40), st.integers(8, 40), st.integers(1, 8), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_merging_is_the_weighted_mean(name, height, width, stride, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = tiles.weight(name, 8)
    merger = windows.Merger(height, width)
    total, mass = torch.zeros(2, height, width, dtype=torch.float64)
    for top, bottom, left, right in tiles.boxes(height, width, 8, stride):
        values = torch.rand(8, 8, generator=generator)
        merger.add((top, bottom, left, right), values, weight)
        total[top:bottom, left:right] += values * weight
        mass[top:bottom, left:right] += weight
    assert (mass > 0).all()
    assert torch.allclose(merger.result().double(), total / mass, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_tiles_of_one_picture_merge_to_it_without_seams(name):
    picture = torch.rand(37, 51)
    merger = windows.Merger(*picture.shape)
    for box in tiles.boxes(*picture.shape, 16, 10):
        top, bottom, left, right = box
        merger.add(box, picture[top:bottom, left:right], tiles.weight(name, 16))
    assert torch.allclose(merger.result(), picture, atol=1e-6)


def test_where_no_window_lay_there_is_no_answer():
    merger = windows.Merger(4, 4)
    merger.add((0, 2, 0, 2), torch.ones(2, 2), torch.full((2, 2), 0.125))
    assert merger.result().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0] * 4, [0] * 4]
