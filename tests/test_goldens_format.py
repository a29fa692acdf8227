"""The golden reader itself: right values pass, every wrong one is found."""

import json
from pathlib import Path

import goldens_format
import numpy as np
import pytest

FOLDER = Path(__file__).parent / "goldens"
HEADS = goldens_format.entries(FOLDER, "sofs", "head")


@pytest.mark.parametrize("golden", HEADS, ids=lambda g: g.name)
def test_every_perturbed_output_is_found(golden):
    good = {key: golden.stored(key) for key in golden["tolerance"]}
    assert max(golden.compare(good).values()) == 0
    for key, limit in golden["tolerance"].items():
        stored = np.asarray(good[key], dtype=np.float64)
        worst = limit["atol"] + (limit["rtol"] + limit.get("of_max", 0)) * np.abs(stored).max()
        wrong = stored.copy()
        wrong.flat[wrong.size // 2] += 1.01 * worst + 1e-9
        with pytest.raises(AssertionError, match="beyond"):
            golden.compare(good | {key: wrong})


def test_an_output_that_is_not_computed_is_an_error():
    golden = HEADS[0]
    good = {key: golden.stored(key) for key in golden["tolerance"]}
    good.pop("logits")
    with pytest.raises(AssertionError, match=r"not computed.*logits"):
        golden.compare(good)


def test_nan_and_other_shapes_are_wrong():
    limit = {"atol": 1.0, "rtol": 0.0}
    assert goldens_format.deviation([1.0, float("nan")], [1.0, 2.0], limit)[1]
    assert goldens_format.deviation(np.ones((2, 3)), np.ones((3, 2)), limit)[1]
    assert goldens_format.deviation(np.ones(3), np.ones(2), limit)[1]
    assert goldens_format.deviation({"a": "x", "b": 1}, {"a": "y", "b": 1}, limit)[1]
    assert not goldens_format.deviation({"a": "x", "b": [1, 2]}, {"b": [1.5, 2], "a": "x"}, limit)[1]


def test_wrong_draws_are_found(tmp_path):
    golden = HEADS[0]
    spec = json.loads(json.dumps(golden.spec))
    spec["inputs"][0]["seed"] += 1
    with pytest.raises(AssertionError):
        goldens_format.Golden(golden.folder, golden.name, spec).draws()
    assert goldens_format.entries(tmp_path, "sofs") == []
