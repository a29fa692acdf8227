"""Geometry as matrices against the functions that it stands for, bit for bit where pixels are 8 bits."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fewspect.nn import maps, pieces, traced, windows

LENGTH = st.integers(1, 160)


def number(value):
    return torch.tensor(float(value), dtype=torch.float64)


@settings(max_examples=60, deadline=None)
@given(LENGTH, LENGTH, st.integers(2, 96), st.sampled_from(["triangle", "cubic"]), st.integers(0, 9))
def test_resizing_equals_torch_bit_for_bit(height, width, side, kernel, seed):
    image = torch.randint(256, (3, height, width), dtype=torch.uint8, generator=torch.manual_seed(seed))
    mode = {"triangle": "bilinear", "cubic": "bicubic"}[kernel]
    expected = image
    if (height, width) != (side, side):
        expected = F.interpolate(image[None], (side, side), mode=mode, antialias=True)[0]
    rows, columns = (traced.shrunk(n, side, number(n), number(side), kernel) for n in (height, width))
    assert torch.equal(traced.resized(image.double(), rows, columns), expected.double())


@settings(max_examples=40, deadline=None)
@given(LENGTH, LENGTH, st.integers(8, 64))
def test_a_part_of_an_axis_is_resized_as_if_it_were_alone(height, width, side):
    """More pixels than are taken, and more room than is shown, change nothing."""
    image = torch.randint(256, (3, height, width), dtype=torch.uint8, generator=torch.manual_seed(1))
    wide = F.pad(image, (0, 7, 0, 5), value=200)
    shown = windows.fit_size(height, width, side)
    rows, columns = (
        traced.shrunk(n + more, side, number(n), number(m))
        for n, more, m in zip((height, width), (5, 7), shown, strict=True)
    )
    found = traced.resized(wide.double(), rows, columns) / 255
    expected = windows.resize_pad(image, side)
    inside = (slice(None), slice(shown[0]), slice(shown[1]))
    assert torch.equal(found[inside].float(), expected[inside])
    assert not found[:, shown[0] :].any()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), LENGTH, st.booleans())
def test_stretching_equals_interpolation(before, after, align):
    values = torch.rand(1, 1, before, before, generator=torch.manual_seed(before))
    expected = F.interpolate(values, (after, after), mode="bilinear", align_corners=align)[0, 0]
    matrix = traced.stretched(before, after, number(before), number(after), align=align)
    assert torch.allclose(matrix @ values[0, 0] @ matrix.T, expected, atol=2e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), LENGTH)
def test_nearest_places_equal_torch(before, after):
    line = torch.arange(before, dtype=torch.float32)
    expected = F.interpolate(line[None, None], after, mode="nearest")[0, 0]
    assert torch.equal(line[traced.nearest(before, after, number(before), number(after))], expected)


@settings(max_examples=60, deadline=None)
@given(LENGTH, st.integers(1, 60), st.integers(1, 60))
def test_windows_begin_where_they_begin(total, size, stride):
    size = min(size, total)
    stride = min(stride, size)
    found = traced.starts(stride, number(size), number(total))
    assert found.tolist() == windows.positions(total, size, stride)


@pytest.mark.parametrize("sigma", [0.0, 1.0, 4.0])
def test_smoothing_equals_that_of_maps(sigma):
    values = torch.rand(50, 70, generator=torch.manual_seed(0))
    assert torch.allclose(traced.smoothed(values, sigma), maps.smooth(values[None], sigma)[0], atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3000), st.sampled_from([0.5, 1.0, 7.0]))
def test_the_mean_of_the_largest_counts_like_the_score(pixels, percent):
    values = torch.rand(1, 1, pixels, generator=torch.manual_seed(pixels))
    expected = maps.image_score(values, f"top{percent:g}pct")[0]
    assert traced.mean_of_largest(values.flatten(), percent) == pytest.approx(float(expected), abs=1e-6)


def test_pieces_are_those_of_split_outside_of_a_graph():
    assert not pieces.exporting()
    tensor = torch.arange(7)
    assert [p.tolist() for p in pieces.pieces(tensor, 3)] == [[0, 1, 2], [3, 4, 5], [6]]
