"""Measures of generated sets against brute force, and what they say of copies, shifts and twins."""

import numpy as np
import pytest
import torch

from fewspect.metrics import generation, masks
from fewspect.metrics.memorisation import FLAG, entropy, nearest, thumbnails, usual


def rows(number, width=6, seed=0, shift=0.0):
    return torch.randn(number, width, generator=torch.manual_seed(seed), dtype=torch.float64) + shift


def test_kernel_distance_is_the_unbiased_sum_over_pairs():
    a, b = rows(7), rows(5, seed=1, shift=0.5)

    def k(x, y):
        return (float(x @ y) / 6 + 1) ** 3

    def mmd(a, b):
        own = [
            sum(k(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j) / len(x) / (len(x) - 1)
            for x in (a, b)
        ]
        return own[0] + own[1] - 2 * np.mean([[k(x, y) for y in b] for x in a])

    value, half = generation.kernel_distance(a, b)
    assert float(value) == pytest.approx(mmd(a, b))
    variance = 0.0
    for n, left in ((7, [mmd(torch.cat([a[:i], a[i + 1 :]]), b) for i in range(7)]),
                    (5, [mmd(a, torch.cat([b[:i], b[i + 1 :]])) for i in range(5)])):  # fmt: skip
        variance += (n - 1) / n * float(((np.array(left) - np.mean(left)) ** 2).sum())
    assert float(half) == pytest.approx(1.96 * variance**0.5)


def test_the_interval_of_the_kernel_distance_holds_what_it_promises():
    """Sets of one distribution that differ by a shift: about 95 of 100 intervals hold the true distance."""
    true = float(generation.kernel_distance(rows(3000, 3, 900), rows(3000, 3, 901, 0.7))[0])
    held = 0
    for seed in range(60):
        value, half = generation.kernel_distance(rows(40, 3, 2 * seed), rows(40, 3, 2 * seed + 1, 0.7))
        held += abs(float(value) - true) < float(half)
    assert held >= 50


def test_density_and_coverage_by_counting():
    real, made = rows(12), rows(9, seed=3)
    ball = [sorted(float((x - y).norm()) for y in real)[3] for x in real]
    hits = [[float((x - y).norm()) <= r for x, r in zip(real, ball, strict=True)] for y in made]
    density, coverage = generation.density_coverage(real, made)
    assert float(density) == pytest.approx(np.mean([sum(h) for h in hits]) / 3)
    assert float(coverage) == pytest.approx(np.mean(np.any(hits, axis=0)))


def test_spread_in_clusters_by_pairs():
    made, owner = rows(6), torch.tensor([0, 0, 0, 4, 4, 2])
    means = []
    for group in ([0, 1, 2], [3, 4]):
        pairs = [(i, j) for i in group for j in group if i < j]
        means.append(np.mean([float(((made[i] - made[j]) ** 2).sum()) for i, j in pairs]))
    assert float(generation.spread_in_clusters(made, owner)) == pytest.approx(np.mean(means))
    assert generation.spread_in_clusters(made, torch.arange(6)).isnan()


def test_perceptual_rows_have_the_distance_of_lpips_without_weights():
    one, two = ([torch.randn(1, d, s, s, generator=torch.manual_seed(k)) for d, s in ((4, 5), (8, 3))]
                for k in (0, 1))  # fmt: skip
    expected = 0.0
    for pair in zip(one, two, strict=True):
        a, b = (m / m.norm(dim=1, keepdim=True) for m in pair)
        expected += float(((a - b) ** 2).sum(1).mean())
    found = (generation.perceptual(one) - generation.perceptual(two)) ** 2
    assert float(found.sum()) == pytest.approx(expected, rel=1e-5)


# -- copies --------------------------------------------------------------------------------------------------


def pictures(number, seed, noise=None):
    r = torch.manual_seed(seed)
    base = torch.randint(256, (number, 3, 12, 12), generator=r).float()
    smooth = torch.nn.functional.interpolate(base, (48, 48), mode="bicubic").clamp(0, 255)
    return [p.to(torch.uint8) for p in smooth]


def test_a_memoriser_is_flagged_and_an_honest_generator_is_not():
    train = thumbnails(pictures(25, 0))
    copies = train + 0.005 * torch.randn(train.shape, generator=torch.manual_seed(1))
    fresh = thumbnails(pictures(40, 7))
    assert float(nearest(fresh, train)[0].min()) >= FLAG * usual(train)
    away, owner = nearest(copies, train)
    assert torch.equal(owner, torch.arange(25))
    assert float(away.max()) < FLAG * usual(train), "specification defect_gen, 11.6"


def test_collapse_lowers_the_entropy():
    assert entropy(torch.arange(8), 8) == pytest.approx(3.0)
    assert entropy(torch.zeros(9, dtype=torch.long), 8) == 0
    assert np.isnan(usual(torch.zeros(1, 4)))


# -- masks ---------------------------------------------------------------------------------------------------


def test_ks_distance_is_that_of_scipy():
    from scipy.stats import ks_2samp

    r = np.random.default_rng(0)
    for n, m in ((5, 9), (20, 3), (1, 1)):
        one, two = r.normal(size=n).round(1), r.normal(0.5, size=m).round(1)
        assert masks.ks_distance(one, two) == pytest.approx(ks_2samp(one, two).statistic)
    assert np.isnan(masks.ks_distance(np.zeros(0), np.ones(2)))


def test_contrast_tells_marked_defects_from_marked_surface():
    surface = torch.randn(4, 16, 16, generator=torch.manual_seed(0))
    mask = torch.zeros(64, 64, dtype=torch.uint8)
    mask[8:20, 8:20] = 2
    beside = masks.contrast(surface, mask)
    surface[:, 2:5, 2:5] += 5
    assert masks.contrast(surface, mask) > 3
    assert 0.6 < beside < 1.4
    assert np.isnan(masks.contrast(surface, torch.zeros(64, 64)))


def test_the_box_holds_the_mask_and_stays_inside():
    for rows_, columns in (((0, 2), (60, 64)), ((10, 30), (5, 9)), ((0, 64), (0, 64))):
        mask = torch.zeros(64, 64)
        mask[slice(*rows_), slice(*columns)] = 1
        top, bottom, left, right = masks.box_around(mask)
        assert 0 <= top <= rows_[0] < rows_[1] <= bottom <= 64
        assert 0 <= left <= columns[0] < columns[1] <= right <= 64
        assert min(bottom - top, right - left) >= 16
