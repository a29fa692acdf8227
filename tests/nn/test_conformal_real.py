"""The promise of conformal thresholds on real good images, tiles of one group never on both sides."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewspect.draws import rng
from fewspect.nn.thresholds import conformal

REPO = Path(__file__).resolve().parents[2]
ALPHA, SPLITS, POINTS = 0.05, 50, 0.02


@pytest.fixture(scope="module")
def tiles():
    """Score (mean gradient) and group of every defect-free magnetic tile."""
    root = Path(os.environ.get("FEWSPECT_SHARED", REPO.parent / "shared")) / "data"
    table, folder = root / "magnetic_tile_groups.csv", root / "magnetic_tile" / "MT_Free" / "Imgs"
    if not (table.is_file() and folder.is_dir()):
        pytest.skip(f"no real data at {root}; set FEWSPECT_SHARED to the folder that holds data/")
    with table.open(newline="") as file:
        group = {r["stem"]: r["tile_group"] for r in csv.DictReader(file) if r["class"] == "MT_Free"}
    files = sorted(folder.glob("*.jpg"))
    return np.array([gradient(path) for path in files]), np.array([group[path.stem] for path in files])


def gradient(path):
    grey = np.asarray(Image.open(path).convert("L"), dtype=np.float64)
    return float(np.hypot(*np.gradient(grey)).mean())


def test_false_alarms_over_fifty_splits_of_real_good_images(tiles):
    score, group = tiles
    names = np.unique(group)
    rates = []
    for split in range(SPLITS):
        chosen = rng(0, "test/conformal", split).permutation(names)[: len(names) // 2]
        held = np.isin(group, chosen)
        assert not set(group[held]) & set(group[~held])
        found = conformal(score[held], ALPHA)
        assert found.alpha <= ALPHA
        rates.append((score[~held] > found.threshold).mean())
    assert abs(np.mean(rates) - ALPHA) < POINTS
