import deecamp_masks
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from fewspect.errors import UserError
from fewspect.nn import thresholds
from fewspect.nn.maps import PixelStats, border_guard, image_score, smooth


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([0.4, 1.0, 2.3, 4.0]), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_smoothing_is_the_truncated_gaussian(height, width, sigma, seed):
    values = torch.rand(2, height, width, generator=torch.Generator().manual_seed(seed))
    radius = int(4 * sigma + 0.5)
    expected = values.double().numpy()
    for axis in (1, 2):
        mode = "mirror" if values.shape[axis] > radius else "nearest"
        expected = ndimage.gaussian_filter1d(expected, sigma, axis=axis, mode=mode, radius=radius)
    assert np.abs(smooth(values, sigma).numpy() - expected).max() < 1e-6


def test_no_smoothing_changes_nothing():
    values = torch.rand(1, 5, 6)
    assert smooth(values, 0) is values
    assert torch.allclose(smooth(torch.full((1, 9, 70), 0.3), 4.0), torch.tensor(0.3), atol=1e-6)


def test_border_guard_weakens_the_frame_alone():
    guarded = border_guard(torch.ones(2, 5, 7), 2, 0.25)
    assert (guarded[:, 2:3, 2:5] == 1).all()
    assert guarded.sum() == 2 * (3 + 0.25 * (35 - 3))
    assert torch.equal(border_guard(guarded, 0, 0.0), guarded)
    assert (border_guard(torch.ones(1, 3, 3), 2, 0.5) == 0.5).all()  # all frame


def test_image_scores():
    values = torch.arange(200.0).view(1, 10, 20).repeat(2, 1, 1)
    values[1] *= -1
    assert image_score(values, "max").tolist() == [199, 0]
    assert image_score(values, "mean").tolist() == [99.5, -99.5]
    assert image_score(values, "top1pct").tolist() == [198.5, -0.5]  # floor(0.01 * 200) = 2 pixels
    assert image_score(values, "top2.5pct").tolist() == [197, -2]
    assert image_score(values, "top4").tolist() == [197.5, -1.5]
    assert image_score(values, "top999").tolist() == [99.5, -99.5]
    assert image_score(values[:, :2, :3], "top1pct").tolist() == [22, 0]  # at least one pixel
    for wrong in ("top0", "best", "toppct", "top-3"):
        with pytest.raises(UserError, match="image score"):
            image_score(values, wrong)


# -- standardisation per pixel


def good_maps(aligned, number=12, size=(20, 24), seed=0):
    """Maps with a ramp that all share, or the same ramp shifted for each."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 3, size[1])[None].repeat(size[0], 0)
    parts = [ramp if aligned else np.roll(ramp, rng.integers(size[1]), 1) for _ in range(number)]
    return [torch.from_numpy(p + 0.3 * rng.standard_normal(size)).float() for p in parts]


def test_standardised_maps_follow_the_formula():
    good = good_maps(aligned=True)
    stack = torch.stack(good).double()
    mean, variance = (smooth(x[None].float(), 2.0)[0] for x in (stack.mean(0), stack.var(0)))
    expected = (good[3] - mean) / (variance + 0.1 * variance.mean()).sqrt()
    stats = PixelStats.fit(good, "on")
    assert torch.allclose(stats(good[3]), expected, atol=1e-5)
    again = PixelStats.of(stats.state())
    assert torch.equal(again(good[3]), stats(good[3]))


@pytest.mark.parametrize("number", [5, 12, 60])
def test_auto_is_for_aligned_parts_whatever_the_number(number):
    for seed in range(10):
        assert PixelStats.fit(good_maps(aligned=True, number=number, seed=seed), "auto") is not None
        assert PixelStats.fit(good_maps(aligned=False, number=number, seed=seed), "auto") is None


def test_a_defect_where_good_parts_are_calm_stands_out():
    good = good_maps(aligned=True, number=30)
    part = good.pop()
    part[:, :3] += 1.5  # below what is normal at the other end of the ramp
    assert part.argmax() % part.shape[1] > 12
    assert PixelStats.fit(good, "on")(part).argmax() % part.shape[1] < 3


@pytest.mark.parametrize("number", [3, 12])
def test_statistics_without_a_map_are_those_of_the_others(number):
    good = good_maps(aligned=True, number=number)
    good[1] += 100  # sums of squares that do not fit float32
    for k, stats in enumerate(PixelStats.without_each(good)):
        others = torch.stack(good[:k] + good[k + 1 :]).double()
        mean, variance = (smooth(x[None].float(), 2.0)[0] for x in (others.mean(0), others.var(0)))
        assert torch.allclose(stats.mean, mean, rtol=1e-5, atol=1e-5)
        scale = (variance + 0.1 * variance.mean()).sqrt()
        assert torch.allclose(stats.scale, scale, rtol=1e-5)


def test_statistics_need_maps_of_one_size_and_survive_another():
    assert PixelStats.fit(good_maps(aligned=True)[:4], "auto") is None
    assert PixelStats.fit(good_maps(aligned=True)[:4], "on") is not None
    assert PixelStats.fit([torch.rand(4, 4), torch.rand(4, 5)], "auto") is None
    for wrong in (good_maps(aligned=True)[:2], [torch.rand(4, 4)] * 2 + [torch.rand(4, 5)]):
        with pytest.raises(UserError, match="three good images"):
            PixelStats.fit(wrong, "on")
    stats = PixelStats.fit(good_maps(aligned=True), "on")
    assert stats(torch.rand(33, 50)).shape == (33, 50)
    constant = PixelStats.fit([torch.zeros(4, 4)] * 3, "on")
    assert constant(torch.zeros(4, 4)).abs().max() == 0  # no 0 / 0


# -- regression: faults of the reference (specification 7.1)


def test_fault_16_float_maps_keep_what_256_levels_lose():
    similarity = np.random.default_rng(0).uniform(0.2, 0.8, (64, 64))
    levels = deecamp_masks.quantised(similarity, (64, 64))
    assert (similarity - levels / 255).mean() == pytest.approx(0.5 / 255, rel=0.05)  # truncated, not rounded
    good = np.full((8, 8), 0.5)
    defect = good + 0.001  # a quarter of a grey level
    assert np.array_equal(deecamp_masks.quantised(good, (8, 8)), deecamp_masks.quantised(defect, (8, 8)))
    assert (defect > thresholds.pixel_threshold(name="max", maps=[good])).all()


def test_fault_3_thresholds_do_not_carry_over_between_windows():
    """A threshold set on uniform windows judges good images of Gaussian ones wrongly; one window is right."""
    rng = np.random.default_rng(3)

    def grey():
        return (ndimage.gaussian_filter(rng.random((48, 48)), 1.5) * 600 - 180).clip(0, 255)

    pairs = [(a, (a + rng.normal(0, 6, a.shape)).clip(0, 255)) for a in (grey() for _ in range(24))]
    pairs = [(a.astype(np.uint8), b.astype(np.uint8)) for a, b in pairs]

    def residuals(part, window):
        return [1 - deecamp_masks.similarity(*pair, window) for pair in part]

    def alarms(window):
        threshold = thresholds.mask_area(residuals(pairs[:12], window), area=20, share=1.0)
        return np.mean([(m > threshold).sum() >= 20 for m in residuals(pairs[12:], "gaussian")])

    assert alarms("gaussian") <= 0.25
    assert alarms("uniform") >= 0.75


def test_the_kernel_ends_at_four_sigmas():
    spike = torch.zeros(1, 99, 99)
    spike[0, 49, 49] = 1
    assert int((smooth(spike, 4.0)[0, 49] > 0).sum()) == 2 * int(4 * 4.0 + 0.5) + 1
