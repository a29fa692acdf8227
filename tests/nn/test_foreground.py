"""Object and background: found where they differ, left alone where they do not."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewspect.nn.foreground import find, halved

GRID, WIDTH = (16, 20), 12


def pictures(shape, *, contrast=4.0, seed=0, number=6):
    """Tokens (number, N, WIDTH) of an object of a shape (h, w) bool in front of a background."""
    g = torch.manual_seed(seed)
    where = torch.from_numpy(shape).flatten().float()
    axis = torch.nn.functional.normalize(torch.randn(WIDTH, generator=g), dim=0)
    return torch.randn(number, len(where), WIDTH, generator=g) + contrast * where[:, None] * axis


def disk(radius=5.0):
    row, column = np.ogrid[: GRID[0], : GRID[1]]
    return np.hypot(row - GRID[0] / 2 + 0.5, column - GRID[1] / 2 + 0.5) <= radius


@pytest.mark.parametrize("sign", [1, -1])
def test_an_object_in_the_middle_is_found_whatever_the_sign(sign):
    shape = disk()
    tokens = pictures(shape, contrast=sign * 8)
    found = find(tokens, GRID)
    assert found is not None
    cells = found.cells(tokens, GRID).view(-1, *GRID).numpy()
    assert cells[:, shape].all(), "what belongs to the object is kept"
    assert not cells[:, ~disk(8.0)].any(), "grown by a cell or two, not more"


def test_a_gap_in_the_object_is_closed():
    shape = disk()
    tokens = pictures(shape, contrast=8)
    found = find(tokens, GRID)
    shape[8, 10] = False
    assert found.cells(pictures(shape, contrast=8, seed=1), GRID).view(-1, *GRID)[:, 8, 10].all()


def halves():
    shape = np.zeros(GRID, bool)
    shape[:, ::2] = True
    return shape


@pytest.mark.parametrize(
    "tokens",
    [
        pictures(np.zeros(GRID, bool)),  # a texture
        pictures(halves(), contrast=8),  # two parts, everywhere
        pictures(disk(), contrast=0.5),  # an object that hardly differs
        torch.zeros(2, GRID[0] * GRID[1], WIDTH),
    ],
    ids=["texture", "stripes", "faint", "constant"],
)
def test_where_there_is_no_background_nothing_is_left_out(tokens):
    assert find(tokens, GRID) is None


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=40))
def test_otsu_equals_brute_force(values):
    x = np.array(values, np.float64)
    offset, explained = halved(torch.from_numpy(x))
    best = 0.0
    for t in np.unique(x)[:-1]:
        low, high = x[x <= t], x[x > t]
        best = max(best, len(low) * len(high) * (low.mean() - high.mean()) ** 2 / len(x) ** 2)
    if x.var() < 1e-9:
        return
    assert float(explained) == pytest.approx(best / x.var(), abs=1e-6)
    low, high = x[x <= float(offset)], x[x > float(offset)]
    reached = len(low) * len(high) * (low.mean() - high.mean()) ** 2 / len(x) ** 2
    assert reached == pytest.approx(best, rel=1e-6)
