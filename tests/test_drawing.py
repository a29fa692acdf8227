"""Samples with what is known of them: numbers, nearest training images, near copies left out."""

import pytest
import torch
from PIL import Image

from fewspect.data.extra import content
from fewspect.engine.drawing import Shown
from fewspect.errors import UserError
from fewspect.types import Episode, Generated

SIDE = 16


def picture(seed):
    return torch.randint(256, (3, SIDE, SIDE), dtype=torch.uint8, generator=torch.manual_seed(seed))


def episode(image, path):
    empty = (torch.zeros(0, 3, SIDE, SIDE), torch.zeros(0, SIDE, SIDE), torch.zeros(0), torch.zeros(0))
    mask = torch.zeros(1, SIDE, SIDE, dtype=torch.uint8)
    return Episode(*empty, image[None].float() / 255, mask, torch.zeros(1), ("a",), paths=(str(path),))


@pytest.fixture
def shown(tmp_path):
    known = Shown()
    for k in range(4):
        path = tmp_path / f"{k}.png"
        Image.fromarray(picture(k).movedim(0, -1).numpy()).save(path)
        known.add(episode(picture(k), path))
    assert known.digests == [content(tmp_path / f"{k}.png") for k in range(4)]
    return known


def copier(numbers):
    """Every third sample is a copy of training image 2."""
    made = [picture(2 if k % 3 == 0 else 100 + k) for k in numbers]
    return [Generated(image, torch.zeros(SIDE, SIDE, dtype=torch.uint8), origin={"x": 1}) for image in made]


def test_every_sample_names_its_nearest_training_image(shown):
    made = list(shown.drawn(copier, 7))
    assert [s.origin["number"] for s in made] == list(range(7))
    assert all(s.origin["x"] == 1 for s in made)
    for s in made:
        copy = s.origin["number"] % 3 == 0
        assert s.origin["nearest"].endswith("/2.png") or not copy
        assert (s.origin["nearest_ratio"] < 0.01) == copy


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_near_copies_are_left_out_whatever_the_batch(shown, batch):
    made = list(shown.drawn(copier, 5, batch=batch, reject=0.5))
    assert [s.origin["number"] for s in made] == [1, 2, 4, 5, 7]


def test_a_generator_that_only_copies_is_told(shown):
    with pytest.raises(UserError, match=r"60 samples drawn, 60 are closer"):
        list(shown.drawn(lambda numbers: copier([0] * len(numbers)), 3, batch=4, reject=0.5))


def forgetful(numbers):
    """A dent is asked for; every third sample has none."""
    masks = [torch.full((SIDE, SIDE), int(k % 3 > 0), dtype=torch.uint8) for k in numbers]
    return [Generated(picture(100), mask, origin={"asked": "dent"}) for mask in masks]


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_samples_without_what_was_asked_for_are_left_out(shown, batch):
    made = list(shown.drawn(forgetful, 5, batch=batch, needed=("dent", "hole")))
    assert [s.origin["number"] for s in made] == [1, 2, 4, 5, 7]


def test_a_defect_that_never_comes_is_told(shown):
    with pytest.raises(UserError, match=r"60 samples drawn, 60 lack a defect type"):
        list(shown.drawn(lambda numbers: forgetful([0] * len(numbers)), 3, batch=4, needed=("dent",)))


def test_one_training_image_says_nothing_about_copies(tmp_path):
    known = Shown()
    Image.fromarray(picture(0).movedim(0, -1).numpy()).save(tmp_path / "x.png")
    known.add(episode(picture(0), tmp_path / "x.png"))
    [made] = known.drawn(copier, 1, reject=0.5)
    assert made.origin == {"x": 1, "number": 0}


def test_every_measure_of_an_evaluation_has_a_name_of_its_own():
    from fewspect.engine.evaluation import Report

    report = Report()
    for part, value in (("images", 1.0), ("defects", 2.0)):
        report.add(f"kernel distance ({part})", value, 10 * value)
        report.add("  95 % interval, half width", value / 10)
    assert report.metrics() == {
        "kernel distance (images)": 1.0,
        "real/kernel distance (images)": 10.0,
        "kernel distance (images): 95 % interval, half width": 0.1,
        "kernel distance (defects)": 2.0,
        "real/kernel distance (defects)": 20.0,
        "kernel distance (defects): 95 % interval, half width": 0.2,
    }
