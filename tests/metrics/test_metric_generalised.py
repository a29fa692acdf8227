"""Generalised zero-shot values against a slow count."""

from itertools import pairwise

import numpy as np
import pytest

from fewspect.metrics.generalised import generalised


def slow(truth, scores, seen):
    """U and S by classes, for a constant on the seen ones."""

    def at(gamma):
        answer = (scores - gamma * seen).argmax(1)
        rates = [(answer[truth == k] == k).mean() for k in np.unique(truth)]
        kinds = seen[np.unique(truth)]
        return np.mean(np.array(rates)[~kinds]), np.mean(np.array(rates)[kinds])

    gap = np.where(seen, scores, -np.inf).max(1) - np.where(seen, -np.inf, scores).max(1)
    steps = np.sort(gap)
    curve = [at(steps[0] - 1), *(at(g + 1e-9) for g in steps)]
    area = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(curve))
    return *at(0.0), area


@pytest.mark.parametrize("seed", range(5))
def test_equals_a_slow_count(seed):
    rng = np.random.default_rng(seed)
    seen = np.array([True] * 4 + [False] * 3)
    truth = np.r_[rng.integers(0, 7, 60), [0, 6]]
    scores = rng.standard_normal((62, 7)) + 1.5 * (np.arange(7) == truth[:, None])
    u, s, area = slow(truth, scores, seen)
    found = generalised(truth, scores, seen)
    assert found["unseen"] == pytest.approx(u)
    assert found["seen"] == pytest.approx(s)
    assert found["harmonic"] == pytest.approx(2 * u * s / (u + s))
    assert found["ausuc"] == pytest.approx(area)


def test_one_kind_alone_has_no_values():
    assert generalised(np.zeros(3, int), np.zeros((3, 2)), np.array([True, True])) == {}
    assert generalised(np.zeros(3, int), np.zeros((3, 2)), np.array([True, False])) == {}
