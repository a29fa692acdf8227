"""Streaming moments and the residual of a principal subspace against numpy."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from position_gaussians import PositionGaussians

from fewspect.errors import UserError
from fewspect.nn.subspace import Moments, Subspace

WIDTH = 12


def features(number=400, seed=0, mean=3.0):
    """Correlated features, most of whose variance lies in a few directions."""
    g = torch.manual_seed(seed)
    mix = torch.randn(WIDTH, WIDTH, generator=g) * torch.logspace(0.5, -1.5, WIDTH)[:, None]
    return torch.randn(number, WIDTH, generator=g) @ mix + mean


def moments(*parts):
    whole = Moments(WIDTH)
    for part in parts:
        whole.add(part)
    return whole


def by_svd(rows, tokens, variance):
    """Squared distance of tokens to the principal subspace of rows, and its rank, by numpy's SVD."""
    x, t = rows.double().numpy(), tokens.double().numpy()
    mean = x.mean(0)
    _, s, vt = np.linalg.svd(x - mean, full_matrices=False)
    rank = int((np.cumsum(s**2) / np.sum(s**2) < variance).sum()) + 1
    kept = vt[:rank]
    centred = t - mean
    return ((centred - centred @ kept.T @ kept) ** 2).sum(-1), rank


@pytest.mark.parametrize("variance", [0.3, 0.8, 0.95, 0.999])
def test_the_residual_is_what_an_svd_gives(variance):
    rows, tokens = features(), features(50, seed=1, mean=2.0)
    wanted, rank = by_svd(rows, tokens, variance)
    subspace = Subspace.of(moments(rows), variance)
    assert subspace.rank == rank
    assert np.allclose(subspace.residual(tokens), wanted, rtol=1e-4, atol=1e-4)
    assert subspace.residual(tokens.view(5, 10, WIDTH)).shape == (5, 10)


def test_the_smaller_of_subspace_and_complement_is_kept():
    sizes = {v: Subspace.of(moments(features()), v) for v in (0.3, 0.9999)}
    assert not sizes[0.3].outside
    assert sizes[0.9999].outside
    assert all(s.basis.shape[1] <= WIDTH // 2 for s in sizes.values())
    for basis in (s.basis for s in sizes.values()):
        assert torch.allclose(basis.T @ basis, torch.eye(basis.shape[1]), atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(8)), st.lists(st.integers(0, 8), min_size=2, max_size=4))
def test_neither_order_nor_grouping_matters(order, cuts):
    parts = features().split(50)
    shuffled = [parts[i] for i in order]
    edges = [0, *sorted(cuts), 8]
    pieces = [moments(*shuffled[a:b]) for a, b in pairwise(edges)]
    one, other = moments(torch.cat(parts)), Moments.sum(pieces)
    assert one.count == other.count == 400
    for a, b in zip(one.mean_and_covariance(), other.mean_and_covariance(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-12 * float(one.outer.abs().max()) / 400)


def test_the_covariance_is_numpys():
    rows = features(mean=1000.0)
    mean, covariance = moments(*rows.split(7)).mean_and_covariance()
    assert np.allclose(mean, rows.double().numpy().mean(0))
    assert np.allclose(covariance, np.cov(rows.double().numpy().T, bias=True), rtol=1e-6, atol=1e-8)


def test_a_given_rank_wins_and_something_stays_outside():
    assert Subspace.of(moments(features()), 0.5, rank=7).rank == 7
    assert Subspace.of(moments(features()), 1.0, rank=99).rank == WIDTH - 1
    flat = features()[:, :1].expand(-1, WIDTH)  # one direction holds everything
    assert Subspace.of(moments(flat), 1.0).rank <= WIDTH - 1


def test_autocast_changes_nothing():
    subspace, tokens = Subspace.of(moments(features()), 0.9), features(20, seed=2)
    exact = subspace.residual(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(subspace.residual(tokens), exact)


def test_one_row_is_too_little():
    with pytest.raises(UserError, match="too little"):
        moments(features(1)).mean_and_covariance()


def test_gaussians_per_position_are_mahalanobis_distances():
    g = torch.manual_seed(0)
    rows, tokens = torch.randn(30, 3, 5, generator=g), torch.randn(4, 3, 5, generator=g)
    found = PositionGaussians.of(rows, 0.02).distance(tokens)
    for p in range(3):
        covariance = np.cov(rows[:, p].double().numpy().T) + 0.02 * np.eye(5)
        gap = tokens[:, p].double().numpy() - rows[:, p].double().numpy().mean(0)
        wanted = np.sqrt(np.einsum("bi,ij,bj->b", gap, np.linalg.inv(covariance), gap))
        assert np.allclose(found[:, p], wanted)
