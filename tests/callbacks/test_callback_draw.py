import numpy as np
import pytest
import torch
from metric_cases import cases, episode

from fewspect.callbacks import draw
from fewspect.callbacks.panels import agreement, panel
from fewspect.types import Prediction


def test_colour_table_grows_in_lightness():
    linear = (draw.colour_table() / 255.0) ** 2.2 @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(linear) > -1e-3).all() and linear[0] < 0.01 and linear[-1] > 0.85
    assert (
        draw.heat(np.array([[0.0, np.nan, 1.0, 7.0]]))[0, [0, 2]] == draw.heat(np.array([[np.nan, 1.0]]))[0]
    ).all()


def test_outline_surrounds_without_covering():
    image, mask = np.full((20, 20, 3), 100, np.uint8), np.zeros((20, 20), bool)
    mask[10, 10] = True
    drawn = draw.outline(image, mask)
    assert (drawn[10, 10] == 100).all()
    assert (drawn[10, 11] == draw.TRUTH).all()
    assert (image == 100).all()


def test_tiny_defects_survive_shrinking():
    mask = np.zeros((3000, 2000), bool)
    mask[1234, 567] = True
    small = draw.fit_mask(mask, 288)
    assert small.shape == draw.fit(np.zeros((3000, 2000, 3), np.uint8), 288).shape[:2]
    assert small.sum() == 1


@pytest.mark.parametrize("shape", [(1, 1), (7, 300), (300, 7), (64, 64), (900, 500)])
def test_every_shape_can_be_drawn(shape):
    prob = torch.rand(1, *shape)
    for truth in (torch.zeros(shape), torch.ones(shape)):
        page = panel(episode(truth), Prediction(prob=prob))
        assert max(page.size) < 3000
        assert panel(episode(truth), Prediction(score=torch.ones(1))).width == page.width


def test_zoom_box_stays_inside():
    for row, column in [(0, 0), (99, 79), (50, 40)]:
        mask = np.zeros((100, 80), bool)
        mask[row, column] = True
        box = draw.zoom_box(mask)
        assert mask[box].shape == (48, 48) and mask[box].any()


def test_agreement():
    empty, full = np.zeros((2, 2), bool), np.ones((2, 2), bool)
    assert (agreement(empty, empty), agreement(full, empty), agreement(full, full)) == (1.0, 0.0, 1.0)
    assert len(cases(2)) == 2
