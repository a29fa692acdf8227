"""Augmentation: deterministic, joint, and never the end of a defect."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewspect.data.transforms import BORDER, Augment
from fewspect.draws import rng

OFF = {"jitter": 0.0, "rotate": 0.0, "blur": 0.0, "flip": 0.0}


def picture(seed, height=24, width=31):
    r = rng(seed, "test")
    image = torch.from_numpy(r.integers(0, 256, (3, height, width), dtype=np.uint8))
    mask = torch.from_numpy((r.random((height, width)) < 0.1).astype(np.uint8))
    return image, mask


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**9))
def test_augmentation_is_a_function_of_its_generator(seed):
    image, mask = picture(seed)
    before = torch.random.get_rng_state()
    one, two = (Augment()(image.clone(), mask.clone(), rng(seed, "augment")) for _ in range(2))
    assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])
    assert torch.equal(before, torch.random.get_rng_state())
    assert one[0].dtype == one[1].dtype == torch.uint8
    assert one[0].shape == image.shape and one[1].shape == mask.shape
    assert set(one[1].unique().tolist()) <= {0, 1}


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**9), st.integers(0, 23), st.integers(0, 30))
def test_a_single_pixel_survives(seed, row, column):
    image, _ = picture(0)
    mask = torch.zeros(24, 31, dtype=torch.uint8)
    mask[row, column] = 1
    assert Augment(rotate=1.0)(image, mask, rng(seed, "a"))[1].any()


def test_flip_moves_image_and_mask_together():
    image, mask = picture(1)
    flipped, turned = Augment(**OFF | {"flip": 1.0})(image, mask, rng(0, "a"))
    assert torch.equal(flipped, image.flip(-1)) and torch.equal(turned, mask.flip(-1))


def test_colour_and_blur_leave_the_mask_alone():
    image, mask = picture(2)
    for part in ("jitter", "blur"):
        changed, same = Augment(**OFF | {part: 1.0})(image, mask, rng(0, "a"))
        assert torch.equal(same, mask) and not torch.equal(changed, image)


def test_rotation_has_the_mean_colour_outside():
    image, mask = torch.zeros(3, 40, 40, dtype=torch.uint8), torch.ones(40, 40, dtype=torch.uint8)
    turned, cut = Augment(**OFF | {"rotate": 1.0, "degrees": 10})(
        image, mask, np.random.Generator(np.random.PCG64(3))
    )
    corner = turned[:, cut == 0]
    assert corner.numel() and (corner.float().amax(1) - torch.tensor(BORDER)).abs().max() <= 1
    assert turned[:, 15:25, 15:25].max() == 0


def test_nothing_chosen_changes_nothing():
    image, mask = picture(3)
    same = Augment(**OFF)(image, mask, rng(0, "a"))
    assert torch.equal(same[0], image) and torch.equal(same[1], mask)
