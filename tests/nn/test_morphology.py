import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewspect.nn.morphology import clean, disk, grown, keep_large, largest

MASKS = st.integers(0, 10_000).map(lambda seed: np.random.default_rng(seed).random((13, 17)) < 0.55)


def slow_opening(mask, radius):
    """Union of all disks that lie inside the foreground; outside the image everything is foreground."""
    offsets = [
        (y, x)
        for y in range(-radius, radius + 1)
        for x in range(-radius, radius + 1)
        if x * x + y * y <= radius**2
    ]
    result = np.zeros_like(mask)
    for y, x in np.ndindex(mask.shape):
        cells = [(y + a, x + b) for a, b in offsets]
        cells = [(a, b) for a, b in cells if 0 <= a < mask.shape[0] and 0 <= b < mask.shape[1]]
        if all(mask[c] for c in cells):
            result[tuple(np.array(cells).T)] = True
    return result


def slow_regions(mask):
    """Flood fill over eight neighbours: list of sets of pixels."""
    left, found = {tuple(p) for p in np.argwhere(mask)}, []
    while left:
        stack, region = [left.pop()], set()
        while stack:
            y, x = stack.pop()
            region.add((y, x))
            near = {(y + a, x + b) for a in (-1, 0, 1) for b in (-1, 0, 1)} & left
            left -= near
            stack += near
        found.append(region)
    return found


def test_disk_is_the_definition():
    assert disk(0).tolist() == [[True]]
    assert disk(1).astype(int).tolist() == [[0, 1, 0], [1, 1, 1], [0, 1, 0]]
    assert [int(disk(r).sum()) for r in (2, 3, 4)] == [13, 29, 49]


@given(MASKS, st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_opening_matches_a_slow_one_and_is_idempotent(mask, radius):
    opened = clean(mask, open_radius=radius)
    assert np.array_equal(opened, slow_opening(mask, radius))
    assert not (opened & ~mask).any()
    assert np.array_equal(clean(opened, open_radius=radius), opened)


@given(MASKS, st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_area_filter_keeps_whole_regions(mask, area):
    kept = keep_large(mask, area)
    expected = np.zeros_like(mask)
    for region in slow_regions(mask):
        if len(region) >= area:
            expected[tuple(np.array(sorted(region)).T)] = True
    assert np.array_equal(kept, expected)
    assert largest(mask) == max(map(len, slow_regions(mask)), default=0)


@given(st.integers(0, 10_000), st.floats(0.2, 0.6), st.floats(0.6, 1.0))
@settings(max_examples=30, deadline=None)
def test_hysteresis_keeps_regions_with_a_strong_pixel(seed, low, high):
    values = np.random.default_rng(seed).random((13, 17))
    expected = np.zeros(values.shape, bool)
    for region in slow_regions(values > low):
        if any(values[p] > high for p in region):
            expected[tuple(np.array(sorted(region)).T)] = True
    assert np.array_equal(grown(values > high, values > low), expected)
    assert np.array_equal(clean(values > high, values > low), expected)


def test_neighbours_touch_at_corners():
    assert largest(np.eye(5, dtype=bool)) == 5
    assert keep_large(np.eye(5, dtype=bool), 5).sum() == 5


def test_holes_are_filled_after_the_area_filter():
    ring = np.zeros((9, 9), bool)
    ring[1:6, 1:6] = True
    ring[2:5, 2:5] = False  # 16 pixels around a hole of 9
    assert clean(ring, fill_holes=True).sum() == 25
    assert clean(ring, min_area=17, fill_holes=True).sum() == 0
    assert clean(ring, min_area=16).sum() == 16


@pytest.mark.parametrize("options", [{}, {"open_radius": 2, "min_area": 9, "fill_holes": True}])
def test_an_empty_mask_stays_empty(options):
    assert not clean(np.zeros((6, 7), bool), **options).any()


def test_a_region_at_the_border_is_not_worn_off():
    mask = np.zeros((12, 12), bool)
    mask[:4, :] = True
    assert np.array_equal(clean(mask, open_radius=2), mask)
