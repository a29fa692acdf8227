"""Overlap per class label against a slow count; classes by name, ignored pixels, false alarms."""

import numpy as np
import pytest
import torch

from fewspect.metrics.suites import suite
from fewspect.types import IGNORE, Episode, Prediction

CLASSES = ("crack", "hole", "stain")


def episode(mask, index=0, classes=CLASSES, product="wood"):
    side = mask.shape[-1]
    return Episode(
        *(torch.zeros(0, 3, side, side), torch.zeros(0, side, side), torch.zeros(0), torch.zeros(0)),
        *(torch.zeros(1, 3, side, side), mask[None], torch.tensor([int(mask.any())]), classes),
        product=product,
        index=index,
        paths=(f"{product}/{index}.png",),
    )


def prediction(mask, labels=CLASSES):
    return Prediction(mask=mask[None], labels=labels)


def slow(pairs, classes, label):
    """Intersection and union of one class over all images, pixel by pixel."""
    inter = union = 0
    for found, true in pairs:
        for p, t in zip(found.flatten().tolist(), true.flatten().tolist(), strict=True):
            if t != IGNORE:
                inter += p == label and t == label
                union += label in (p, t)
    return inter, union


def test_counts_are_those_of_a_slow_loop():
    r = np.random.default_rng(0)
    measure, pairs = suite("label", False), []
    for k in range(7):
        found, true = (torch.from_numpy(r.integers(0, 4, (9, 9))).to(torch.uint8) for _ in range(2))
        true[0, :3] = IGNORE
        measure.update(prediction(found), episode(true, k))
        pairs.append((found, true))
    values = measure.compute()
    ious = [i / u for i, u in (slow(pairs, CLASSES, label) for label in range(4))]
    dices = [2 * i / (u + i) for i, u in (slow(pairs, CLASSES, label) for label in (1, 2, 3))]
    assert float(values["background_iou"]) == pytest.approx(ious[0])
    assert float(values["miou"]) == pytest.approx(np.mean(ious[1:]))
    assert float(values["miou_with_background"]) == pytest.approx(np.mean(ious))
    assert float(values["dice"]) == pytest.approx(np.mean(dices))
    assert int(values["classes"]) == 3
    assert int(values["episodes"]) == 7
    assert 0 < float(values["miou_ci95"]) < 0.2
    assert [row["class"] for row in measure.table()] == ["wood/crack", "wood/hole", "wood/stain"]
    assert [row["iou"] for row in measure.table()] == pytest.approx(ious[1:])


def test_classes_meet_by_name_and_unknown_ones_are_errors():
    measure = suite("label", False)
    true = torch.zeros(4, 4, dtype=torch.uint8)
    true[0], true[1] = 1, 2  # crack, hole
    found = torch.zeros(4, 4, dtype=torch.uint8)
    found[0], found[3] = 2, 1  # crack is its second label; its first, rust, is nowhere in the truth
    measure.update(prediction(found, ("rust", "crack")), episode(true))
    values = measure.compute()
    table = {row["class"]: row for row in measure.table()}
    assert table["wood/crack"]["iou"] == 1
    assert table["wood/hole"]["iou"] == 0
    assert set(table) == {"wood/crack", "wood/hole"}
    assert float(values["miou"]) == 0.5
    assert float(values["background_iou"]) == pytest.approx(4 / 12)
    assert any("wood/rust: predicted, never in the truth" in note for note in measure.notes())


def test_marked_good_images_are_false_alarms():
    measure = suite("label", False)
    empty, mark = torch.zeros(4, 4, dtype=torch.uint8), torch.zeros(4, 4, dtype=torch.uint8)
    mark[2, 2] = 1
    measure.update(prediction(mark), episode(mark, 0))
    measure.update(prediction(mark), episode(empty, 1))
    measure.update(prediction(empty), episode(empty, 2))
    values = measure.compute()
    assert float(values["false_alarm_rate"]) == 0.5
    assert float(values["miou"]) == 0.5, "one pixel is right, one is wrong"


def test_without_truth_there_is_nothing_to_measure():
    measure = suite("label", False)
    unknown = torch.full((4, 4), IGNORE, dtype=torch.uint8)
    measure.update(prediction(torch.ones(4, 4, dtype=torch.uint8)), episode(unknown))
    assert "miou" not in measure.compute()
    assert measure.notes()[0] == "segmentation: no masks to compare"
