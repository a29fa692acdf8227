"""Views: a support always shows its defect; counts add up; whole images where defects are large."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewspect.data.crops import Cropper
from fewspect.data.transforms import Augment
from fewspect.draws import rng
from fewspect.errors import UserError


def scene(height, width, row, column, size=1):
    image = torch.from_numpy(rng(0, "scene").integers(0, 256, (3, height, width), dtype=np.uint8))
    mask = torch.zeros(height, width, dtype=torch.uint8)
    mask[row : row + size, column : column + size] = 1
    return image, mask


@settings(deadline=None, max_examples=80)
@given(st.integers(5, 70), st.integers(5, 70), st.integers(3, 50), st.data(), st.booleans())
def test_support_views_contain_foreground(height, width, crop, data, train):
    row, column = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    image, mask = scene(height, width, row, column)
    cropper = Cropper(32, crop, 3, (0.5, 1.2))
    views = cropper.support(
        image, mask, rng(data.draw(st.integers(0, 99)), "v"), Augment() if train else None
    )
    assert sum(v.count for v in views) == 3
    for view in views:
        assert view.image.shape == (3, 32, 32) and view.image.dtype == torch.float32
        assert view.mask.any() and view.mask.dtype == torch.uint8
        assert view.image.min() >= 0 and view.image.max() <= 1


def test_parity_can_lose_the_centre_and_the_default_cannot():
    image, mask = scene(60, 60, 20, 20)
    lost = {False: 0, True: 0}
    for parity in lost:
        cropper = Cropper(8, 4, 1, large_ratio=0.5, parity=parity)
        for i in range(60):
            lost[parity] += not cropper.support(image, mask, rng(i, "p"))[0].mask.any()
    assert not lost[False]
    assert lost[True] > 0


def test_large_defects_are_one_whole_view_with_a_count():
    image, mask = scene(64, 48, 10, 10, size=20)
    (view,) = Cropper(32, 16, 4).support(image, mask, rng(0, "v"))
    assert view.count == 4
    assert torch.equal(view.image[:, :, 24:], view.image[:, :1, -1:].expand(3, 32, 8))  # padded at the right


def test_equal_crops_are_made_once():
    image, mask = scene(32, 32, 10, 10)
    assert [v.count for v in Cropper(32, 32, 4, large_ratio=0.5).support(image, mask, rng(0, "v"))] == [4]
    parity = Cropper(32, 32, 4, large_ratio=0.5, parity=True)
    assert [v.count for v in parity.support(image, mask, rng(0, "v"))] == [1, 1, 1, 1]


def test_normal_views_are_empty():
    image, _ = scene(50, 70, 0, 0)
    for whole in (True, False):
        views = Cropper(32, 32, 4).normal(image, rng(0, "v"), whole=whole)
        assert sum(v.count for v in views) == 4
        assert not any(v.mask.any() for v in views)
        assert (len(views) == 1) == whole


def test_query_crops_follow_the_probability():
    image, mask = scene(100, 100, 50, 50)
    shown = {p: 0 for p in (0.0, 1.0)}
    for p in shown:
        cropper = Cropper(16, 16, background_query_prob=p)
        shown[p] = sum(bool(cropper.query(image, mask, rng(i, "q")).mask.any()) for i in range(40))
    assert shown[0.0] == 40 and shown[1.0] < 10


def test_a_query_without_defect_gives_a_crop():
    image, mask = scene(40, 40, 0, 0, size=0)
    assert not Cropper(16, 16).query(image, mask, rng(0, "q")).mask.any()


def test_an_empty_support_mask_is_refused():
    image, mask = scene(40, 40, 0, 0, size=0)
    with pytest.raises(UserError, match="empty"):
        Cropper(16, 16).support(image, mask, rng(0, "v"))
