import inspect
import math

import deecamp_masks
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fewspect.errors import UserError
from fewspect.nn import thresholds
from fewspect.nn.morphology import largest
from fewspect.nn.thresholds import calibrated, cdf_knots, conformal, image_threshold, needed, pixel_threshold

SCORES = st.lists(st.integers(0, 20).map(float), min_size=2, max_size=60)


def good_maps(number=4, size=(14, 17), seed=0, levels=64):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, levels, size) / levels for _ in range(number)]


# -- conformal


@given(SCORES, st.sampled_from([0.01, 0.05, 0.1, 0.25, 0.5]))
@settings(max_examples=200, deadline=None)
def test_no_ordering_of_good_images_breaks_the_promise(scores, alpha):
    """Each of n + 1 images may be the new one: the share called defective is the probability."""
    calls = []
    for k, new in enumerate(scores):
        found = conformal(scores[:k] + scores[k + 1 :], alpha)
        calls.append(new > found.threshold)
    assert np.mean(calls) <= found.alpha + 1e-12
    assert found.alpha <= max(alpha, 1 / len(scores))


@given(st.integers(1, 300), st.sampled_from([0.01, 0.05, 0.1, 0.2]))
@settings(max_examples=100, deadline=None)
def test_the_threshold_is_the_smallest_that_promises(count, alpha):
    scores = np.random.default_rng(count).permutation(count).astype(float)
    found = image_threshold("conformal", scores, alpha=alpha)
    assert found.count == count
    if count < needed(alpha):
        assert (found.threshold, found.alpha) == (count - 1, 1 / (count + 1))
        assert found.alpha > alpha
    else:
        rank = int(found.threshold) + 1
        assert (count + 1 - rank) / (count + 1) <= alpha + 1e-12 < (count + 2 - rank) / (count + 1)
        assert found.alpha <= alpha


def test_needed_counts_are_the_smallest():
    assert [needed(a) for a in (0.05, 0.01, 0.1, 0.5)] == [19, 99, 9, 1]
    assert conformal(np.arange(19.0), 0.05).alpha == 0.05
    assert conformal(np.arange(18.0), 0.05).alpha == 1 / 19


def test_realised_rate_over_fifty_splits():
    rng = np.random.default_rng(0)
    scores = rng.gamma(2.0, size=400)
    rates = []
    for _ in range(50):
        order = rng.permutation(400)
        threshold = conformal(scores[order[:200]], 0.05).threshold
        rates.append((scores[order[200:]] > threshold).mean())
    assert abs(np.mean(rates) - 0.05) < 0.02


def test_maximum_promises_what_it_can():
    found = image_threshold("max", [1.0, 5.0, 2.0], alpha=0.05)
    assert (found.threshold, found.alpha, found.count) == (5.0, 0.25, 3)


def test_impossible_requests_are_refused():
    for call in (
        lambda: conformal([], 0.1),
        lambda: conformal([1.0, math.nan], 0.1),
        lambda: conformal([1.0], 0.0),
        lambda: conformal([1.0], 1.5),
        lambda: image_threshold("f1", [1.0], alpha=0.1),
        lambda: image_threshold("conformal", [1.0]),
        lambda: pixel_threshold(name="f1", maps=good_maps()),
        lambda: pixel_threshold(name="max_area", maps=good_maps()),
        lambda: pixel_threshold(name="max", maps=good_maps(), area=3),
        lambda: pixel_threshold(name="max_area", maps=good_maps(), area=0),
        lambda: pixel_threshold(name="max", maps=[]),
    ):
        with pytest.raises(UserError):
            call()


def test_no_estimator_can_be_given_a_label_or_a_mask():
    allowed = {"maps", "scores", "alpha", "p", "k", "q", "area", "share", "value"}
    for table in (thresholds.PIXEL_ESTIMATORS, thresholds.IMAGE_ESTIMATORS):
        assert "f1" not in table
        for estimator in table.values():
            assert set(inspect.signature(estimator).parameters) <= allowed


# -- scores in [0, 1]


@given(SCORES)
@settings(max_examples=100, deadline=None)
def test_calibrated_scores_are_the_share_of_lower_good_ones(scores):
    asked = torch.tensor([-1.0, *sorted(scores), 21.0])
    found = calibrated(asked, cdf_knots(scores))
    assert found.tolist() == [np.mean(np.array(scores) < x) for x in asked.tolist()]
    assert (found.diff() >= 0).all() and found[0] == 0 and found[-1] == 1


def test_many_scores_are_kept_as_quantiles():
    scores = np.random.default_rng(0).normal(size=20_000)
    knots = cdf_knots(scores)
    assert len(knots) == 1024
    asked = torch.linspace(-3, 3, 50)
    expected = [(scores < x).mean() for x in asked.tolist()]
    assert np.abs(calibrated(asked, knots).numpy() - expected).max() < 2 / 1024


# -- pixel thresholds


def test_simple_estimators_are_what_numpy_says():
    good = good_maps()
    pixels, peaks = np.concatenate([m.ravel() for m in good]), [m.max() for m in good]
    for name, options, expected in (
        ("max", {}, pixels.max()),
        ("quantile", {"p": 0.98}, np.quantile(pixels, 0.98)),
        ("pixel_fpr", {"alpha": 0.02}, np.quantile(pixels, 0.98)),
        ("ksigma", {"k": 3.0}, pixels.mean() + 3 * pixels.std()),
        ("image_max", {"p": 0.9}, np.quantile(peaks, 0.9)),
        ("fixed", {"value": 0.25}, 0.25),
    ):
        found = pixel_threshold(name=name, maps=good, **options)
        assert found == pytest.approx(expected, abs=1e-12), name
    assert all(np.array_equal(a, b) for a, b in zip(good, good_maps(), strict=True))  # nothing is overwritten


@given(st.integers(0, 1000), st.integers(1, 60), st.integers(2, 40))
@settings(max_examples=40, deadline=None)
def test_max_area_is_the_smallest_value_that_fits(seed, area, levels):
    good = good_maps(3, (9, 11), seed, levels)
    values = np.unique(np.concatenate([m.ravel() for m in good]))
    fits = [v for v in values if all(largest(m > v) < area for m in good)]
    assert pixel_threshold(name="max_area", maps=good, area=area) == min(fits)


@given(st.integers(0, 1000), st.integers(1, 120), st.sampled_from([0.5, 0.99, 1.0]))
@settings(max_examples=40, deadline=None)
def test_legacy_area_is_the_smallest_value_that_fits(seed, area, share):
    good = good_maps(5, (9, 11), seed, 40)
    values = np.unique(np.concatenate([m.ravel() for m in good]))
    fits = [v for v in values if np.mean([(m > v).sum() < area for m in good]) >= share - 1e-9]
    found = pixel_threshold(name="legacy_area", maps=good, area=area, share=share)
    if area <= 99:
        assert found == min(fits)
    else:  # more than there are pixels: anything fits
        assert np.mean([(m > found).sum() < area for m in good]) >= share


@pytest.mark.parametrize("name", ["max_area", "legacy_area"])
def test_the_pixel_at_the_threshold_is_not_marked(name):
    good = [np.array([[0.1, 0.2, 0.3]])]
    assert pixel_threshold(name=name, maps=good, area=1) == 0.3  # {map > 0.3} is empty
    assert pixel_threshold(name=name, maps=good, area=2) == 0.2


def test_thresholds_move_the_right_way():
    good = good_maps(6)
    for name, option, values, up in (
        ("quantile", "p", (0.5, 0.9, 0.99, 1.0), True),
        ("ksigma", "k", (0.0, 1.0, 3.0), True),
        ("image_max", "p", (0.1, 0.5, 1.0), True),
        ("max_area", "area", (1, 5, 20, 100), False),
        ("legacy_area", "area", (1, 5, 20, 100), False),
        ("pixel_fpr", "alpha", (0.001, 0.01, 0.2), False),
        ("gpd", "alpha", (0.001, 0.01, 0.1), False),
    ):
        maps = good_maps(40) if name == "gpd" else good
        maps = [m + 0.01 * k for k, m in enumerate(maps)]
        found = [pixel_threshold(name=name, maps=maps, **{option: v}) for v in values]
        assert found == sorted(found, reverse=not up), name


@pytest.mark.parametrize("shape", [-0.2, 0.0, 0.2])
def test_gpd_finds_the_quantile_of_a_known_tail(shape):
    draws = stats.genpareto.rvs(shape, scale=2.0, size=4000, random_state=np.random.default_rng(0))
    maps = [np.array([[0.0, 5 + x]]) for x in draws]
    found = pixel_threshold(name="gpd", maps=maps, q=0.5, alpha=0.01)
    assert found == pytest.approx(5 + stats.genpareto.ppf(0.99, shape, scale=2.0), rel=0.06)


def test_gpd_extrapolates_beyond_the_largest_and_needs_a_tail():
    maps = [np.array([[x]]) for x in np.random.default_rng(1).exponential(size=40)]
    assert pixel_threshold(name="gpd", maps=maps, alpha=0.001) > max(m.max() for m in maps)
    with pytest.raises(UserError, match=r"tail of 0\.5") as caught:
        pixel_threshold(name="gpd", maps=maps, alpha=0.6)
    assert "method.threshold.alpha below 0.5" in caught.value.hint
    for wrong in ({"maps": maps[:3]}, {"maps": [np.ones((2, 2))] * 30}, {"maps": maps, "alpha": 0.6}):
        with pytest.raises(UserError, match="gpd"):
            pixel_threshold(name="gpd", **wrong)


# -- regression: faults of the reference (specification 7.1)


def quantised_maps(number=10, seed=0):
    """Similarity levels of good images and of one with a defect."""
    rng = np.random.default_rng(seed)
    good = [rng.integers(150, 256, (64, 64)).astype(np.uint8) for _ in range(number)]
    bad = good[0].copy()
    bad[10:40, 10:40] //= 4
    return good, bad


def test_faults_1_and_2_the_search_finds_a_threshold_that_shows_defects():
    good, bad = quantised_maps()
    found = deecamp_masks.threshold(good, area=400, share=0.99)
    assert found > 100  # the reference stops at 0 and masks nothing
    assert deecamp_masks.mask(bad, found).sum() >= 900
    assert not deecamp_masks.is_good(deecamp_masks.mask(bad, found), 400)
    judged = [[deecamp_masks.is_good(deecamp_masks.mask(q, t), 400) for q in good] for t in range(256)]
    assert found == max(t for t in range(256) if sum(judged[t]) >= math.ceil(0.99 * len(good)))


def test_fault_1_and_ours_is_the_same_rule_on_residuals():
    good, _ = quantised_maps(seed=4)
    residuals = [1 - q / 255 for q in good]
    found = pixel_threshold(name="legacy_area", maps=residuals, area=400, share=0.99)
    assert found == pytest.approx(1 - deecamp_masks.threshold(good, 400, 0.99) / 255)


def test_fault_13_options_are_checked_not_guessed():
    with pytest.raises(UserError, match="area"):
        pixel_threshold(name="max_area", maps=good_maps(), aera=25)
