import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fewspect.nn import windows

SIDES = st.integers(1, 90)


@settings(max_examples=150, deadline=None)
@given(SIDES, SIDES, st.integers(1, 60), st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9]))
def test_windows_cover_every_pixel_and_end_at_the_border(height, width, crop, overlap):
    boxes = windows.tile(height, width, crop, overlap)
    seen = torch.zeros(height, width)
    for top, bottom, left, right in boxes:
        assert (bottom - top, right - left) == (min(crop, height), min(crop, width))
        seen[top:bottom, left:right] += 1
    assert seen.min() >= 1
    assert boxes[-1][1] == height
    assert boxes[-1][3] == width
    assert len(set(boxes)) == len(boxes)
    assert boxes == sorted(boxes)
    if overlap == 0:
        assert len(boxes) == -(-height // min(crop, height)) * -(-width // min(crop, width))


def test_an_image_smaller_than_the_crop_is_one_window():
    assert windows.tile(40, 30, 64) == [(0, 40, 0, 30)]


def test_overlap_is_as_asked():
    starts = [box[2] for box in windows.tile(100, 300, 100, overlap=0.25)]
    assert starts == [0, 75, 150, 200]


@settings(max_examples=150, deadline=None)
@given(st.data(), SIDES, SIDES, st.integers(1, 60))
def test_crop_box_lies_inside_and_holds_its_centre_unless_a_draw_is_zero(data, height, width, crop):
    row, col = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    down, right = data.draw(st.integers(1, crop)), data.draw(st.integers(1, crop))
    top, bottom, left, end = windows.crop_box(row, col, height, width, crop, down, right)
    assert 0 <= top < bottom <= height
    assert 0 <= left < end <= width
    assert (bottom - top, end - left) == (min(crop, height), min(crop, width))
    assert top <= row < bottom
    assert left <= col < end


@pytest.mark.parametrize("size", [(37, 60), (120, 50), (500, 333), (1, 7), (64, 64)])
def test_resize_equals_pil_within_one_level(size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    rows, columns = windows.fit_size(*size, 64)
    expected = np.asarray(Image.fromarray(pixels).resize((columns, rows), Image.Resampling.BILINEAR))
    result = windows.resize_pad(torch.from_numpy(pixels).permute(2, 0, 1), 64)
    assert result.shape == (3, 64, 64)
    assert result.dtype == torch.float32
    grey = (result[:, :rows, :columns] * 255).permute(1, 2, 0).numpy()
    assert np.abs(grey - expected).max() < 1.001  # PIL's coefficients have more bits: one level at near ties
    assert np.abs((grey - expected).mean()) < 0.2
    padding = torch.tensor(windows.PAD_COLOUR)[:, None]
    assert (result[:, rows:].flatten(1) == padding).all()
    assert (result[:, :, columns:].flatten(1) == padding).all()


def test_resize_keeps_leading_axes():
    image = torch.randint(0, 256, (2, 4, 3, 20, 30), dtype=torch.uint8)
    whole = windows.resize_pad(image, 32)
    assert whole.shape == (2, 4, 3, 32, 32)
    assert torch.equal(whole[1, 2], windows.resize_pad(image[1, 2], 32))


def test_mask_is_dilated_never_nan_and_padded_with_zero():
    empty = windows.resize_mask(torch.zeros(40, 80, dtype=torch.uint8), 32)
    assert empty.dtype == torch.uint8
    assert empty.sum() == 0
    one = torch.zeros(40, 80, dtype=torch.uint8)
    one[10, 10] = 1
    small = windows.resize_mask(one, 32)
    assert small.sum() >= 1
    assert small[16:].sum() == 0
    assert (
        windows.resize_mask(torch.full((8, 8), 255, dtype=torch.uint8), 8).sum() == 0
    )  # ignore is no foreground


def test_restore_undoes_the_padding():
    ramp = torch.linspace(0, 1, 32).expand(32, 32).clone()
    ramp[20:] = float("nan")  # padding must not leak in
    assert torch.equal(windows.restore(ramp, 20, 32, (20, 32)), ramp[:20])
    assert windows.restore(ramp[None], 41, 64, (20, 32)).shape == (1, 41, 64)
    hard = windows.restore_hard((torch.rand(32, 32) > 0.5), 45, 70, (20, 32))
    assert set(hard.unique().tolist()) <= {0.0, 1.0}


def test_merger_is_the_mean_of_the_windows():
    merger, boxes = windows.Merger(10, 14, "cpu"), windows.tile(10, 14, 6)
    stack = torch.full((len(boxes), 10, 14), float("nan"))
    for i, box in enumerate(boxes):
        top, bottom, left, right = box
        values = torch.rand(6, 6)
        stack[i, top:bottom, left:right] = values
        merger.add(box, values)
    assert torch.allclose(merger.result(), stack.nanmean(0))
