"""Augmentation of the autoencoders: what is drawn, how often, and that parts are seen upright."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewspect.data import classic
from fewspect.data.classic import PRESETS, Classic, preset
from fewspect.draws import rng
from fewspect.errors import UserError

EMPTY = torch.zeros(6, 8, dtype=torch.uint8)


def picture(height=6, width=8):
    draw = torch.Generator().manual_seed(0)
    return torch.randint(60, 200, (3, height, width), dtype=torch.uint8, generator=draw)


def views(name, number=600, light=None):
    """How often each orientation of a picture was shown."""
    change = PRESETS[name] if light is None else preset(name)
    image, found = picture(), {"upright": 0, "mirror": 0, "flip": 0, "other": 0}
    for i in range(number):
        seen, mask = change(image, EMPTY, rng(0, "test", i))
        assert mask is EMPTY
        found[orientation(seen.float(), image.float())] += 1
    return {k: v / number for k, v in found.items()}


def orientation(seen, image):
    """Which turn of the image explains a view up to a change of light."""
    for name, turned in (("upright", image), ("mirror", image.flip(-1)), ("flip", image.flip(-2))):
        x, y = seen.flatten() - seen.mean(), turned.flatten() - turned.mean()
        if float((x @ y) / (x.norm() * y.norm())) > 0.99:
            return name
    return "other"


def test_the_default_shows_parts_upright():
    """Fault 4: the original's training never does, its test always does."""
    found = views("upright")
    assert found["upright"] == pytest.approx(0.6, abs=0.07)
    assert found["mirror"] == pytest.approx(0.2, abs=0.06)
    assert found["flip"] == pytest.approx(0.2, abs=0.06)


def test_the_original_s_recipes_on_request():
    never = views("deecamp")
    assert never["upright"] == never["other"] == 0
    assert never["mirror"] == pytest.approx(0.33, abs=0.06)
    chip = views("deecamp_chip")
    assert chip["upright"] == pytest.approx(0.6, abs=0.07)
    assert views("light")["upright"] == 1


@pytest.mark.parametrize("name", PRESETS)
def test_a_view_is_a_function_of_its_generator(name):
    image = picture(20, 30)
    before = image.clone()
    first, again = (preset(name)(image, EMPTY, rng(3, "x", 7))[0] for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(image, before)
    assert first.shape == image.shape
    assert first.dtype == torch.uint8
    several = {preset(name)(image, EMPTY, rng(3, "x", i))[0].numpy().tobytes() for i in range(30)}
    assert len(several) > 5


def test_light_stays_within_its_limits():
    change, flat = Classic(mirror=0, flip=0, light=1.0), torch.full((3, 2, 2), 100, dtype=torch.uint8)
    levels = [int(change(flat, EMPTY, rng(0, "y", i))[0][0, 0, 0]) for i in range(500)]
    assert min(levels) >= 85
    assert max(levels) <= 115
    assert max(levels) - min(levels) > 20
    half = Classic(mirror=0, flip=0)
    untouched = [int(half(flat, EMPTY, rng(0, "y", i))[0][0, 0, 0]) == 100 for i in range(500)]
    assert np.mean(untouched) == pytest.approx(0.5, abs=0.1)


def test_lighting_cuts_fractions_off_and_saturates():
    image = torch.tensor([0, 10, 101, 255], dtype=torch.uint8).expand(3, 1, 4)
    assert classic.lighting(image, 0.95, 0.9)[0, 0].tolist() == [0, 10, 96, 243]
    assert classic.lighting(image, 2.0, 5.0)[0, 0].tolist() == [5, 25, 207, 255]
    assert classic.lighting(image, 1.0, -20.0)[0, 0].tolist() == [0, 0, 81, 235]


@given(st.integers(1, 24), st.integers(1, 24))
@settings(max_examples=40, deadline=None)
def test_no_movement_is_the_identity(height, width):
    image = picture(height, width)
    assert torch.equal(classic.rotate(image, 0.0), image)
    assert torch.equal(classic.shift(image, 0.0, 0.0), image)
    assert torch.equal(classic.mirror(classic.mirror(image)), image)
    assert torch.equal(classic.flip(classic.flip(image)), image)


def test_movement_by_hand():
    image = picture(9, 9)
    right = classic.shift(image, 2, 0)
    assert torch.equal(right[..., 2:], image[..., :-2])
    assert torch.equal(right[..., :2], image[..., :1].expand(-1, -1, 2)), "the edge goes on"
    down = classic.shift(image, 0, 3)
    assert torch.equal(down[:, 3:], image[:, :-3])
    assert torch.equal(classic.rotate(image, 90), image.rot90(1, (1, 2))), "counter-clockwise"


def test_an_unknown_preset_is_refused():
    with pytest.raises(UserError, match=r"data\.augment=upside is not known") as error:
        preset("upside")
    assert "upright" in error.value.hint
