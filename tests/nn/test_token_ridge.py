"""Ridge on tokens: held-out answers without refitting, the best cut, the slope, against slow references."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewspect.nn import token_ridge


def world(seed, n=40, d=6):
    r = np.random.default_rng(seed)
    x = torch.from_numpy(r.normal(size=(n, d))).double()
    y = torch.from_numpy(
        (x[:, 0].numpy() + 0.3 * r.normal(size=n) > 0.6).astype(float) * r.uniform(0.3, 1, n)
    )
    return x, y, torch.from_numpy(r.integers(1, 4, n)).double()


def balanced(y, w):
    return (w * y / (w * y).sum() + w * (1 - y) / (w * (1 - y)).sum()) / 2


def slow_ridge(x, y, b, penalty):
    """Weighted ridge with intercept, by the normal equations of the centred problem."""
    mean, level = b @ x / b.sum(), b @ y / b.sum()
    z = x - mean
    weight = torch.linalg.solve(
        z.T @ (b[:, None] * z) + penalty * torch.eye(x.shape[1]).double(), z.T @ (b * (y - level))
    )
    return weight, level - mean @ weight


@pytest.mark.parametrize("seed", range(3))
def test_the_solution_is_that_of_the_normal_equations(seed):
    x, y, w = world(seed)
    found = token_ridge.fit(x, y, w, penalties=[0.1])
    b = balanced(y, w)
    z = x - b @ x
    unit = torch.linalg.eigvalsh(z.T @ (b[:, None] * z)).mean()
    weight, offset = slow_ridge(x, y, b, 0.1 * unit)
    assert torch.allclose(found.weight.double(), weight, atol=1e-6)
    assert found.offset.item() == pytest.approx(offset.item(), abs=1e-6)


def test_held_out_answers_are_those_of_fits_without_the_token():
    """Exact for fixed centre and penalty; the intercept's share of the leverage is in the formula."""
    x, y, w = world(0, n=30, d=4)
    b = balanced(y, w)
    z = torch.cat([x, torch.ones(len(x), 1).double()], 1)
    unit = torch.linalg.eigvalsh((x - b @ x).T @ (b[:, None] * (x - b @ x))).mean()
    found = token_ridge.fit(x, y, w, penalties=[0.5])
    ridge = torch.diag(torch.tensor([0.5 * unit] * 4 + [0.0], dtype=torch.double))
    for k in range(len(x)):
        rest = torch.arange(len(x)) != k
        a = z[rest].T @ (b[rest, None] * z[rest]) + ridge
        answer = z[k] @ torch.linalg.solve(a, z[rest].T @ (b[rest] * y[rest]))
        assert found.held_out[k].item() == pytest.approx(answer.item(), abs=1e-5)


def test_the_penalty_with_the_smallest_held_out_error_is_taken():
    x, y, w = world(1)
    errors = {}
    b = balanced(y, w)
    for penalty in token_ridge.PENALTIES:
        held = token_ridge.fit(x, y, w, penalties=[penalty]).held_out.double()
        errors[penalty] = float((b * (held - y) ** 2).sum())
    assert token_ridge.fit(x, y, w).penalty == min(errors, key=errors.get)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 30))
def test_no_cut_overlaps_better(seed, n):
    r = np.random.default_rng(seed)
    answer = torch.from_numpy(r.integers(0, 6, n) / 5)  # with ties
    share = torch.from_numpy(r.choice([0, 0.3, 1], n))
    share[int(r.integers(n))] = 1
    weight = torch.from_numpy(r.uniform(0.5, 2, n))

    def overlap(cut):
        over = answer > cut
        return float(
            (weight * share)[over].sum() / ((weight * share).sum() + (weight * (1 - share))[over].sum())
        )

    found = overlap(token_ridge.best_cut(answer, share, weight))
    tried = [overlap(c) for c in [-1.0, *(answer - 1e-9).tolist()]]
    if len(answer.unique()) > 1 and max(tried) > overlap(-1.0):
        assert found == pytest.approx(max(tried))


def test_the_slope_is_the_likeliest():
    x, y, w = world(2)
    found = token_ridge.fit(x, y, w)
    margin = found.held_out.double() - found.cut.double()

    def loss(slope):
        logits = slope * margin
        return float(
            (w * torch.nn.functional.binary_cross_entropy_with_logits(logits, y, reduction="none")).sum()
        )

    best = float(found.slope)
    assert loss(best) <= min(loss(best * 0.98), loss(best * 1.02))


def test_repeated_tokens_equal_weights():
    x, y, _ = world(3)
    w = torch.ones(len(x)).double()
    w[:5] = 2
    once = token_ridge.fit(x, y, w, penalties=[0.1])
    again = torch.cat([torch.arange(5), torch.arange(len(x))])
    twice = token_ridge.fit(x[again], y[again], torch.ones(len(again)).double(), penalties=[0.1])
    assert torch.allclose(once.weight, twice.weight, atol=1e-6)
