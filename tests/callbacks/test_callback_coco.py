"""Run lengths of masks, read back by the decoder of the data side."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fewspect.callbacks.coco import Annotations, runs
from fewspect.data import rle


@given(arrays(bool, st.tuples(st.integers(1, 7), st.integers(1, 7))))
def test_runs_read_back(mask):
    counts = runs(mask)
    assert sum(counts) == mask.size
    assert all(c > 0 for c in counts[1:])
    assert np.array_equal(rle.decode(counts, *mask.shape), mask)


def test_every_region_is_an_annotation():
    mask = np.zeros((8, 8), np.uint8)
    mask[0:2, 0:2], mask[5:7, 5:8], mask[0, 7] = 1, 1, 2
    notes = Annotations(("a", "b"))
    notes.add("images/0.png", np.zeros((8, 8), np.uint8))
    notes.add("images/1.png", mask)
    content = notes.content()
    assert [(a["image_id"], a["category_id"], a["area"]) for a in content["annotations"]] == [
        (2, 1, 4), (2, 1, 6), (2, 2, 1)
    ]  # fmt: skip
    assert content["annotations"][1]["bbox"] == [5, 5, 3, 2]


@pytest.mark.parametrize(
    ("mask", "counts"),
    [([[1]], [0, 1]), ([[0]], [1]), ([[0, 1], [1, 1]], [1, 3]), ([[1, 0], [0, 1]], [0, 1, 2, 1])],
)
def test_runs_by_hand(mask, counts):
    assert runs(np.array(mask, bool)) == counts
