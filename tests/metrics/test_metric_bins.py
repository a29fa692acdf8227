import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_cases import histogram
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from fewspect.metrics import bins

SHAPES = {  # score of (rng, label), allowed error of AUROC and AP
    "uniform": (lambda r, y: (r.normal(0.4 + 0.1 * y, 0.15)).clip(0, 1), 1e-4),
    "logit": (lambda r, y: 1 / (1 + np.exp(-r.normal(-4 + 2 * y, 3))), 1e-4),
    "tiny": (lambda r, y: 1e-4 * r.gamma(2 + y), 1e-4),
    "raw": (lambda r, y: r.normal(2 * y, 3), 1e-4),
    "saturated": (lambda r, y: 1 / (1 + np.exp(-r.normal(-15 + 20 * y, 12))), 2e-3),
    "narrow": (lambda r, y: 0.7 + 1e-3 * r.normal(y), 1e-2),
}


def histograms(score, label):
    score = torch.as_tensor(score, dtype=torch.float32)
    return tuple(histogram(score[torch.as_tensor(label == k)]).numpy() for k in (1, 0))


@pytest.mark.parametrize("shape", SHAPES)
def test_binned_curves_match_scikit_learn(shape):
    draw, tolerance = SHAPES[shape]
    rng = np.random.default_rng(0)
    label = (rng.random(50_000) < 0.02).astype(int)
    score = draw(rng, label).astype(np.float32)
    positive, negative = histograms(score, label)
    error = abs(bins.auroc(positive, negative) - roc_auc_score(label, score))
    assert error <= bins.tie_bound(positive, negative) + 1e-12
    assert error < tolerance
    assert abs(bins.average_precision(positive, negative) - average_precision_score(label, score)) < tolerance


def test_exact_histograms_are_exact():
    rng = np.random.default_rng(1)
    label, score = rng.integers(0, 2, 300), rng.integers(0, 40, 300) / 7  # many ties
    positive, negative = bins.exact_histograms(score, label)
    precision, recall, _ = precision_recall_curve(label, score)
    assert bins.auroc(positive, negative) == pytest.approx(roc_auc_score(label, score), abs=1e-12)
    assert bins.average_precision(positive, negative) == pytest.approx(
        average_precision_score(label, score), abs=1e-12
    )
    best = (2 * precision * recall / np.maximum(precision + recall, 1e-12)).max()
    assert bins.f1_max(positive, negative) == pytest.approx(best, abs=1e-9)


FLOATS = st.floats(width=32, allow_nan=False) | st.floats(0, 1, width=32)


@given(st.lists(FLOATS, min_size=2, max_size=50))
@settings(max_examples=200, deadline=None)
def test_bins_are_monotone_and_in_range(values):
    place = bins.bin_of(torch.tensor(sorted(values), dtype=torch.float32))
    assert (place.diff() >= 0).all()
    assert place.min() >= 0 and place.max() < bins.NUM_BINS


def test_nan_ranks_lowest():
    assert bins.bin_of(torch.tensor([float("nan"), 0.0])).tolist()[0] == 0


def slow_aupro(maps, masks, limit):
    """Every distinct score as a threshold, components by flood fill, plain loops."""
    regions = []
    for index, mask in enumerate(masks):
        left = {tuple(p) for p in np.argwhere(mask)}
        while left:
            stack, region = [left.pop()], []
            while stack:
                r, c = stack.pop()
                region.append((index, r, c))
                for near in [(r + i, c + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]:
                    if near in left:
                        left.remove(near)
                        stack.append(near)
            regions.append(region)
    good = np.concatenate([m[~k] for m, k in zip(maps, masks, strict=True)])
    x, y = [0.0], [0.0]
    for threshold in sorted({float(v) for m in maps for v in m.flat}, reverse=True):
        x.append(float((good >= threshold).mean()))
        y.append(np.mean([np.mean([maps[i][r, c] >= threshold for i, r, c in region]) for region in regions]))
    area = 0.0
    for x0, x1, y0, y1 in zip(x, x[1:], y, y[1:], strict=False):
        if x0 >= limit:
            break
        end = min(x1, limit)
        cut = y0 + (y1 - y0) * (end - x0) / (x1 - x0) if x1 > x0 else y1
        area += (end - x0) * (y0 + cut) / 2
    return area / limit


@pytest.mark.parametrize("limit", [0.3, 0.05, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_aupro_matches_slow_reference(seed, limit):
    rng = np.random.default_rng(seed)
    masks = [rng.random((14, 17)) < 0.12, rng.random((9, 11)) < 0.2, np.zeros((8, 8), bool)]
    maps = [(rng.integers(0, 64, m.shape) / 64 * 0.7 + 0.25 * m).astype(np.float32) for m in masks]
    regions, negative, count = np.zeros(bins.NUM_BINS), np.zeros(bins.NUM_BINS), 0
    for score, mask in zip(maps, masks, strict=True):
        place = bins.bin_of(torch.tensor(score)).numpy()
        count += bins.components(mask)[1]
        regions += np.bincount(place[mask], weights=bins.region_weights(mask), minlength=bins.NUM_BINS)
        negative += np.bincount(place[~mask], minlength=bins.NUM_BINS)
    assert regions.sum() == pytest.approx(count)
    assert bins.aupro(regions, negative, limit) == pytest.approx(slow_aupro(maps, masks, limit), abs=1e-9)


def test_aupro_of_a_perfect_map_is_one():
    prob, mask = torch.tensor([[0.9, 0.1], [0.1, 0.1]]), torch.tensor([[True, False], [False, False]])
    positive, negative = (histogram(prob[part]).numpy() for part in (mask, ~mask))
    assert bins.aupro(positive, negative, 0.05) == pytest.approx(1.0)
