"""Nearest neighbours, coreset and costs against the plain definitions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from fewspect.nn import neighbours
from fewspect.nn.prototype import unit

METRICS = ("cosine", "euclidean")


def rows(number, width=12, seed=0, offset=0.0):
    return torch.randn(number, width, generator=torch.manual_seed(seed)) + offset


def pair(metric, queries, bank, width=12, offset=0.0):
    both = rows(queries, width, 1, offset), rows(bank, width, 2, offset)
    return tuple(unit(x) for x in both) if metric == "cosine" else both


def brute(query, bank, metric):
    """All distances, float64."""
    q, b = query.double().numpy(), bank.double().numpy()
    if metric == "cosine":
        return 1 - q @ b.T
    return np.sqrt(((q[:, None] - b[None]) ** 2).sum(-1))


@settings(max_examples=40, deadline=None)
@given(
    metric=st.sampled_from(METRICS),
    queries=st.integers(1, 40),
    bank=st.integers(1, 60),
    k=st.integers(1, 9),
    chunk=st.floats(1e-4, 1e-2),
    half=st.booleans(),
)
def test_the_nearest_rows_are_found_whatever_the_blocks(*, metric, queries, bank, k, chunk, half):
    q, b = pair(metric, queries, bank)
    half = half and metric == "cosine"
    distance, index = neighbours.nearest(q, b, k, metric=metric, chunk_mb=chunk, half=half)
    wanted = np.sort(brute(q, b, metric), 1)[:, :k]
    assert distance.shape == index.shape == (queries, min(k, bank))
    assert np.allclose(distance, wanted, atol=2e-6)
    assert np.allclose(np.take_along_axis(brute(q, b, metric), index.numpy(), 1), distance, atol=2e-6)
    assert (distance.diff(dim=1) >= 0).all()


@pytest.mark.parametrize("metric", METRICS)
def test_distances_survive_features_far_from_the_origin(metric):
    """|q|^2 + |b|^2 - 2 q b alone would be off by 0.03 here."""
    q, b = pair(metric, 30, 200, offset=100.0)
    distance, _ = neighbours.nearest(q, b, metric=metric)
    tolerance = 1e-4 if metric == "euclidean" else 5e-7
    assert np.allclose(distance[:, 0], brute(q, b, metric).min(1), atol=tolerance)


def test_half_precision_products_leave_no_trace():
    q, b = pair("cosine", 200, 3000, width=64)
    exact, where = neighbours.nearest(q, b, 3)
    rough, place = neighbours.nearest(q, b, 3, half=True)
    assert torch.equal(where, place)
    assert torch.equal(exact, rough)
    bf16 = 1 - (q.bfloat16() @ b.bfloat16().T).float().amax(1)
    assert (bf16 - exact[:, 0]).abs().max() > 1e-3, "half precision would not have shown"


def test_autocast_changes_nothing():
    q, b = pair("cosine", 20, 50)
    exact = neighbours.nearest(q, b, 2)
    with torch.autocast("cpu", torch.bfloat16):
        inside = neighbours.nearest(q, b, 2)
    assert all(torch.equal(x, y) for x, y in zip(exact, inside, strict=True))


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(METRICS), st.integers(0, 4), st.integers(1, 5), st.floats(1e-4, 1e-2))
def test_rows_of_the_excluded_owner_take_no_part(metric, owner, k, chunk):
    q, b = pair(metric, 25, 40)
    owners = torch.arange(40) % 4  # owner 4 has no rows
    options = {"metric": metric, "chunk_mb": chunk, "exclude": owner, "owners": owners}
    distance, index = neighbours.nearest(q, b, k, **options)
    table = brute(q, b, metric)
    table[:, (owners == owner).numpy()] = np.inf
    assert np.allclose(distance, np.sort(table, 1)[:, :k], atol=2e-6)
    assert not (owners[index] == owner).any()


def test_where_nothing_is_eligible_the_distance_is_infinite():
    q, b = pair("cosine", 3, 6)
    owners = torch.tensor([1, 1, 1, 1, 1, 2])
    distance, _ = neighbours.nearest(q, b, 2, exclude=1, owners=owners)
    assert distance[:, 0].isfinite().all()
    assert distance[:, 1].isinf().all()


class Largest(TorchDispatchMode):
    """Bytes of the largest new tensor."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, tuple | list) else [out]:
            if isinstance(t, torch.Tensor):
                self.bytes = max(self.bytes, t.numel() * t.element_size())
        return out


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("k", [1, 4])
def test_no_block_exceeds_the_bound(metric, k):
    q, b = pair(metric, 3000, 9000, width=8)
    chunk = 0.5
    with Largest() as watch:
        neighbours.nearest(q, b, k, metric=metric, chunk_mb=chunk)
    assert watch.bytes <= chunk * 2**20
    assert watch.bytes * 200 < 3000 * 9000 * 4, "a full matrix was made"
    numbers = [neighbours.blocks(3000, 9000, 8 * k, mb) for mb in (0.5, 5.0, 1e4)]
    assert numbers[-1] == (2048, 9000)
    assert all(r * c * 4 <= mb * 2**19 for (r, c), mb in zip(numbers, (0.5, 5.0, 1e4), strict=True))


# -- PatchCore's factor --------------------------------------------------------------------------------------


def test_the_factor_is_the_formula():
    bank, query = rows(30), rows(4, seed=5)
    distance, index = neighbours.nearest(query, bank, metric="euclidean")
    for b in (1, 2, 9):
        found = neighbours.weight(query, index[:, 0], bank, b)
        for i in range(4):
            around = brute(bank[index[i]], bank, "euclidean")[0].argsort()[:b]
            parts = np.exp(brute(query[i : i + 1], bank[around], "euclidean")[0])
            wanted = 1 - np.exp(float(distance[i, 0])) / parts.sum() if b > 1 else 1.0
            assert float(found[i]) == pytest.approx(wanted, abs=1e-5)


def test_the_factor_leaves_the_excluded_owner_out():
    bank, query = rows(30), rows(2, seed=5)
    owners = torch.arange(30) % 2
    _, index = neighbours.nearest(query, bank, metric="euclidean", exclude=1, owners=owners)
    with_all = neighbours.weight(query, index[:, 0], bank, 5)
    without = neighbours.weight(query, index[:, 0], bank, 5, exclude=1, owners=owners)
    alone = neighbours.weight(query, index[:, 0] // 2, bank[::2], 5)
    assert torch.allclose(without, alone)
    assert not torch.allclose(without, with_all)


# -- coreset -------------------------------------------------------------------------------------------------


def naive(points, number, start):
    """Greedy k-centre by the definition, float64."""
    points = points.double().numpy()
    chosen = [start]
    while len(chosen) < number:
        gap = ((points[:, None] - points[None, chosen]) ** 2).sum(-1).min(1)
        gap[chosen] = -1
        chosen.append(int(gap.argmax()))
    return chosen


@pytest.mark.parametrize("start", [0, 17])
@pytest.mark.parametrize("offset", [0.0, 50.0])
def test_the_coreset_takes_the_farthest_row_each_time(start, offset):
    points = rows(60, offset=offset)
    assert neighbours.k_centre(points, 25, start=start).tolist() == naive(points, 25, start)


def test_equal_rows_are_chosen_once_each():
    points = rows(3).repeat(4, 1)
    chosen = neighbours.k_centre(points, 12).tolist()
    assert sorted(chosen) == list(range(12))
    assert len({i % 3 for i in chosen[:3]}) == 3, "different rows come first"


def test_a_projection_is_drawn_from_the_seed_and_keeps_the_spread():
    points = rows(200, 64)
    points[::40] *= 10  # five outliers
    one, again, other = (neighbours.k_centre(points, 20, width=16, seed=s).tolist() for s in (0, 0, 1))
    assert one == again != other
    exact = neighbours.k_centre(points, 20).tolist()
    assert neighbours.k_centre(points, 20, width=64).tolist() == exact != one
    for chosen in (one, other, exact):
        assert {0, 40, 80, 120, 160} <= set(chosen[:6])


def test_progress_is_told_to_the_end():
    told = []
    neighbours.k_centre(rows(95), 95, progress=lambda done, all_: told.append((done, all_)))
    assert 9 <= len(told) <= 12
    assert told[-1] == (95, 95)
    assert told == sorted(told)


# -- costs ---------------------------------------------------------------------------------------------------


def test_the_estimate_grows_with_what_it_depends_on():
    small = neighbours.cost(10, 1000, 128)
    assert small.bank_mb == pytest.approx(10 * 1000 * 128 * 4 / 2**20)
    assert small.peak_mb == pytest.approx(2 * small.bank_mb)
    assert small.coreset_s == 0
    reduced = neighbours.cost(100, 1000, 128, keep=10_000, width=32)
    assert reduced.bank_mb == pytest.approx(small.bank_mb)
    assert reduced.coreset_s > 0
    assert reduced.peak_mb == pytest.approx(20 * small.bank_mb)
    assert "coreset" in str(reduced)
    assert "coreset" not in str(small)
    assert "4.9 MB" in str(small)
