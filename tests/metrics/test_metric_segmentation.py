import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_cases import cases, episode, equal

from fewspect.metrics.interval import clusters, half_width
from fewspect.metrics.segmentation import SegmentationCounts, fb_iou, mean_iou, vote_counts
from fewspect.types import Prediction

GOLDENS = Path(__file__).parents[1] / "goldens" / "sofs"


def measure(pairs):
    metric = SegmentationCounts()
    for prediction, truth in pairs:
        metric.update(prediction, truth)
    return metric


def test_vote_counts_reproduce_the_recorded_numbers():
    stored = json.loads((GOLDENS / "protocol.json").read_text())["metric"]
    arrays = np.load(GOLDENS / "protocol.npz")
    inter, union = {}, {}
    for k, sample in enumerate(stored["samples"]):
        target = torch.tensor(arrays[f"metric{k}_target"]).long()
        i, u = vote_counts(torch.tensor(arrays[f"metric{k}_votes"]), target)
        assert i.tolist() == sample["intersection"]
        assert u.tolist() == sample["union"]
        name = sample["object"], sample["category"]
        inter[name], union[name] = inter.get(name, 0) + i, union.get(name, 0) + u
    assert mean_iou(inter, union) == pytest.approx(stored["miou"], abs=1e-8)
    assert fb_iou(inter, union) == pytest.approx(stored["fb_iou_mean"], abs=1e-8)


def test_vote_counts_skip_ignored_pixels_and_dispute_counts_against_both():
    votes = torch.tensor([[1.0, 0.5, 0.25, 0.0, 1.0]])
    target = torch.tensor([[1, 1, 0, 0, 255]])
    inter, union = vote_counts(votes, target)
    assert inter.tolist() == [1, 1]
    assert union.tolist() == [2 + 2 - 1, 2 + 2 - 1]


def test_sums_match_a_slow_reference():
    pairs = cases(40)
    sums, both = {}, np.zeros(4)
    for prediction, truth in pairs:
        p, t = prediction.mask[0].numpy(), truth.query_mask[0].numpy()
        row = np.zeros(4)
        for y in range(t.shape[0]):
            for x in range(t.shape[1]):
                if t[y, x] != 255:
                    row += [
                        p[y, x] & t[y, x],
                        p[y, x] | t[y, x],
                        1 - (p[y, x] | t[y, x]),
                        1 - (p[y, x] & t[y, x]),
                    ]
        sums[truth.name] = sums.get(truth.name, 0) + row
        both += row
    metric = measure(pairs)
    values = metric.compute()
    ious = [s[0] / s[1] for s in sums.values()]
    assert values["miou"] == pytest.approx(np.mean(ious), abs=1e-6)
    assert values["fb_iou"] == pytest.approx((both[0] / both[1] + both[2] / both[3]) / 2, abs=1e-6)
    assert values["dice"] == pytest.approx(np.mean([2 * i / (1 + i) for i in ious]), abs=1e-6)
    assert [row["class"] for row in metric.table] == sorted(sums)
    assert {row["class"]: row["iou"] for row in metric.table} == pytest.approx(
        {k: s[0] / s[1] for k, s in sums.items()}
    )


def test_strata_partition_the_defective_queries():
    pairs = cases(40)
    values = measure(pairs).compute()
    counted = sum(v for k, v in values.items() if k.startswith("count/"))
    assert counted == sum(bool((e.query_mask == 1).any()) for _, e in pairs)
    small = torch.zeros(100, 100, dtype=torch.uint8)
    small[5, 5:7] = 1  # 0.02 % of the image, one of two pixels found
    found = torch.zeros(1, 100, 100, dtype=torch.uint8)
    found[0, 5, 6:9] = 1
    values = measure([(Prediction(mask=found), episode(small))]).compute()
    assert (values["recall/lt_0.03"], values["hit/lt_0.03"], values["iou/lt_0.03"]) == (0.5, 1.0, 0.25)
    assert "recall/ge_1" not in values


def test_odd_queries_are_counted_not_dropped():
    empty = torch.zeros(6, 6, dtype=torch.uint8)
    ignored = torch.full((6, 6), 255, dtype=torch.uint8)
    silent = Prediction(mask=torch.zeros(1, 6, 6, dtype=torch.uint8))
    metric = measure([(silent, episode(empty)), (silent, episode(ignored, index=1))])
    values = metric.compute()
    assert (values["episodes"], values["episodes_empty"], values["episodes_ignored"]) == (2, 1, 1)
    assert "miou" not in values and "miou_ci95" not in values
    assert values["fb_iou"] == 1.0  # background only
    assert metric.notes == ["part/scratch: no defect in truth or prediction, no IoU"]
    assert not any(math.isnan(v) for v in values.values())
    assert measure([]).compute() == {}


def test_false_alarms_on_normal_queries_lower_the_iou():
    mask = torch.zeros(4, 4, dtype=torch.uint8)
    mask[0, 0] = 1
    exact = (Prediction(mask=mask[None]), episode(mask))
    alarm = (Prediction(mask=mask[None]), episode(torch.zeros(4, 4), index=1))
    assert measure([exact]).compute()["miou"] == 1.0
    assert measure([exact, alarm]).compute()["miou"] == 0.5


@given(st.lists(st.integers(0, 2), min_size=30, max_size=30), st.randoms(use_true_random=False))
@settings(max_examples=10, deadline=None)
def test_shards_in_any_order_equal_the_whole(owner, random):
    pairs = cases(30)
    whole = measure(pairs).compute()
    parts = [measure([p for p, o in zip(pairs, owner, strict=True) if o == k]) for k in range(3)]
    random.shuffle(parts)
    merged = parts[0]
    for part in parts[1:]:
        merged.merge_state(part)
    assert equal(merged.compute(), whole)


def test_interval_follows_theory_and_is_deterministic():
    rng = np.random.default_rng(0)
    inter = rng.binomial(100, 0.6, 400).astype(float)
    classes = {7: np.stack([inter, np.full(400, 100.0)], 1)}
    expected = 1.96 * inter.std() / 100 / math.sqrt(400)
    assert half_width(classes) == pytest.approx(expected, rel=0.1)
    assert half_width(classes) == half_width(classes)
    assert math.isnan(half_width({7: classes[7][:1]}))


def test_repeats_of_one_image_are_one_cluster():
    rows = {"query": [5, 3, 5], "index": [2, 0, 1], "i1": [1, 2, 4], "u1": [8, 16, 32]}
    assert clusters({k: np.array(v) for k, v in rows.items()}).tolist() == [[2, 16], [5, 40]]


def test_reset_forgets_and_long_names_survive():
    metric = measure(cases(5))
    metric.reset()
    assert metric.compute() == {}
    name = "ж" * 400
    mask = torch.ones(3, 3, dtype=torch.uint8)
    metric.reset()
    metric.update(Prediction(mask=mask[None]), episode(mask, product=name))
    metric.compute()
    assert metric.table[0]["class"].startswith("ж" * 200)


def test_fractional_votes_are_counted_by_the_parity_rule():
    votes = torch.tensor([[[1.0, 0.5], [0.0, 0.0]]])
    hard = (votes >= 0.5).to(torch.uint8)
    truth = episode(hard[0])
    assert measure([(Prediction(mask=hard), truth)]).compute()["miou"] == 1.0
    parity = Prediction(mask=hard, extra={"votes": votes})
    assert measure([(parity, truth)]).compute()["miou"] == pytest.approx(1 / 3)
