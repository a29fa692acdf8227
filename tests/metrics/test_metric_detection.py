"""Streaming against exact, decisions, rows by type of defect, and faults of the reference."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_cases import episode, equal, histogram
from scipy import ndimage
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from fewspect.metrics import bins, exact
from fewspect.metrics.decisions import DefectTypes, ImageDecision
from fewspect.metrics.detection import ImageRanking, PixelRanking
from fewspect.metrics.legacy import curve, legacy_values
from fewspect.metrics.rows import query_key
from fewspect.metrics.suites import suite
from fewspect.types import Prediction

SHAPES = {  # map of (rng, mask): what detectors give
    "probability": lambda r, m: 1 / (1 + np.exp(-r.normal(-3 + 3 * m, 1.5))),
    "residual": lambda r, m: np.clip(r.gamma(2, 0.1, m.shape) + 0.2 * m, 0, 2),
    "tied": lambda r, m: np.round(64 * (r.random(m.shape) * 0.7 + 0.2 * m)) / 64,
    "bytes": lambda r, m: np.round(255 * np.clip(r.normal(0.3 + 0.2 * m, 0.1), 0, 1)),
    "z": lambda r, m: r.normal(m, 1.0),
    "distance": lambda r, m: r.normal(55 + 6 * m, 5),
    "mahalanobis": lambda r, m: r.normal(8000 + 900 * m, 800),
    "tiny": lambda r, m: 1e-6 * r.gamma(3 + m),
}


def pictures(number, shape, seed=0, size=(40, 46)):
    """Pairs (score (H, W) float32, mask (H, W) with good, defective and ignored pixels)."""
    rng = np.random.default_rng(seed)
    found = []
    for k in range(number):
        mask = (ndimage.gaussian_filter(rng.random(size), 2) > 0.56).astype(np.uint8) * (k % 3 > 0)
        score = SHAPES[shape](rng, mask.astype(float)).astype(np.float32)
        mask[: k % 5, :9] = 255
        found.append((score, mask))
    return found


def measured(metric, pairs, **fields):
    for k, (score, mask) in enumerate(pairs):
        truth = episode(mask, index=k, label=int((mask == 1).any()))
        metric.update(Prediction(prob=torch.from_numpy(score)[None], **fields), truth)
    return metric


@pytest.mark.parametrize("shape", SHAPES)
def test_streaming_pixels_equal_exact_ones(shape):
    pairs = pictures(9, shape)
    mine = measured(PixelRanking(), pairs).compute()
    reference = exact.exact_pixel_values(*zip(*pairs, strict=True))
    assert mine.keys() == reference.keys()
    limit = 1e-6 if shape in {"tied", "bytes"} else 1e-3
    for key, value in reference.items():
        assert float(mine[key]) == pytest.approx(value, abs=limit), key


def test_exact_pixels_equal_scikit_learn():
    pairs = pictures(7, "tied", seed=3)
    values = exact.exact_pixel_values(*zip(*pairs, strict=True))
    score, truth = (np.concatenate([p[k].ravel() for p in pairs]) for k in (0, 1))
    score, truth = score[truth != 255], truth[truth != 255]
    assert values["pixel_auroc"] == pytest.approx(roc_auc_score(truth, score), abs=1e-9)
    assert values["pixel_ap"] == pytest.approx(average_precision_score(truth, score), abs=1e-9)
    precision, recall, levels = precision_recall_curve(truth, score)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    assert values["pixel_f1_max"] == pytest.approx(f1.max(), abs=1e-9)
    overlap = [((score >= t) & (truth == 1)).sum() / ((score >= t) | (truth == 1)).sum() for t in levels]
    assert values["pixel_iou_max"] == pytest.approx(max(overlap), abs=1e-9)


@given(st.integers(0, 500), st.sampled_from(sorted(SHAPES)))
@settings(max_examples=15, deadline=None)
def test_binning_keeps_the_order_and_ties_little(seed, shape):
    score = pictures(2, shape, seed)[-1][0]
    place = bins.bin_of(torch.from_numpy(score)).numpy().ravel()
    order = np.argsort(score, axis=None)
    assert (np.diff(place[order]) >= 0).all()
    assert len(np.unique(place)) > 0.2 * len(np.unique(score))
    assert histogram(torch.from_numpy(score)).sum() == score.size


@pytest.mark.parametrize("length", [0, 1, bins.CHUNK - 1, bins.CHUNK, bins.CHUNK + 1])
def test_counting_in_pieces_counts_everything_once(length):
    score = torch.rand(length)
    assert torch.equal(histogram(score), torch.bincount(bins.bin_of(score), minlength=bins.NUM_BINS))
    table = histogram(score)
    bins.count(table, score, -1)
    assert not table.any()


def test_extent_is_the_smallest_box():
    mask = torch.zeros(9, 11, dtype=torch.uint8)
    assert mask[bins.extent(mask)].numel() == 0
    mask[3, 4] = 255
    mask[5, 9] = 1
    assert bins.extent(mask) == (slice(3, 6), slice(4, 10))


@given(st.lists(st.integers(0, 12), min_size=4, max_size=30), st.sampled_from([0.05, 0.5, 0.95, 1.0]))
@settings(max_examples=100, deadline=None)
def test_rates_at_a_rate_match_all_thresholds(scores, rate):
    scores = np.array(scores, dtype=float)
    label = np.arange(len(scores)) % 2
    positive, negative = bins.exact_histograms(scores, label)
    tpr, fpr = ([(scores[label == k] >= t).mean() for t in [*np.unique(scores), np.inf]] for k in (1, 0))
    expected = max(1 - f for t, f in zip(tpr, fpr, strict=True) if t >= rate - 1e-9)
    assert bins.tnr_at_tpr(positive, negative, rate) == pytest.approx(expected)
    expected = max(t for t, f in zip(tpr, fpr, strict=True) if f <= rate + 1e-9)
    assert bins.tpr_at_fpr(positive, negative, rate) == pytest.approx(expected)


# -- decisions and types of defect


def answers(number=24, seed=0, products=("a", "b")):
    """(prediction, episode) with masks, scores and decisions; defects are cracks, holes, or both."""
    rng = np.random.default_rng(seed)
    found = []
    for k, (score, mask) in enumerate(pictures(number, "probability", seed)):
        shown = (("crack",), ("hole",), ("crack", "hole"))[k // 3 % 3] if (mask == 1).any() else ()
        mark = torch.from_numpy(score > 0.3)[None].to(torch.uint8)
        value = torch.tensor([score.max() + rng.random()], dtype=torch.float32)
        truth = episode(mask, index=k, product=products[k % len(products)], label=int(bool(shown)))
        found.append(
            (
                Prediction(
                    prob=torch.from_numpy(score)[None],
                    mask=mark,
                    score=value,
                    decision=torch.tensor([int(rng.random() < 0.3 + 0.5 * bool(shown))]),
                ),
                replace(truth, shown=shown, classes=("anomaly",)),
            )
        )
    return found


def updated(metric, pairs):
    for prediction, truth in pairs:
        metric.update(prediction, truth)
    return metric


def test_decisions_are_counted_per_product():
    pairs = answers()
    metric = updated(ImageDecision(), pairs)
    values = metric.compute()
    rows = {}
    for name in ("a", "b"):
        said, label = (
            np.array([int(x) for x in part])
            for part in zip(
                *[(p.decision, e.query_label) for p, e in pairs if e.product == name], strict=True
            )
        )
        good, bad = 1 - said[label == 0].mean(), said[label == 1].mean()
        rows[name] = {
            "accuracy_good": good,
            "false_alarm_rate": 1 - good,
            "accuracy_defective": bad,
            "accuracy_balanced": (good + bad) / 2,
        }
    for row in metric.table:
        assert {k: v for k, v in row.items() if k != "class"} == pytest.approx(rows[row["class"]])
    for key, value in values.items():
        assert float(value) == pytest.approx(np.mean([r[key] for r in rows.values()]))
    assert metric.notes == []


def test_decisions_on_one_kind_only_are_noted_and_no_decision_is_silence():
    good = [(p, e) for p, e in answers(products=("a",)) if not e.shown]
    metric = updated(ImageDecision(), good)
    assert metric.compute().keys() == {"accuracy_good", "false_alarm_rate"}
    assert metric.notes == ["a: only good or only defective images, no balanced accuracy"]
    bad = [(p, e) for p, e in answers(products=("a",)) if e.shown]
    assert updated(ImageDecision(), bad).compute().keys() == {"accuracy_defective"}
    silent = updated(ImageDecision(), [(replace(p, decision=None), e) for p, e in good])
    assert silent.compute() == {} and silent.table == [] and silent.notes == []


def test_rows_by_type_of_defect():
    pairs = answers()
    metric = updated(DefectTypes(), pairs)
    assert metric.compute() == {}
    assert [row["class"] for row in metric.table] == ["a/crack", "a/hole", "b/crack", "b/hole"]
    for row in metric.table:
        product, kind = row["class"].split("/")
        here = [(p, e) for p, e in pairs if e.product == product and (kind in e.shown or not e.shown)]
        shown = [(p, e) for p, e in here if e.shown]
        found = [((e.query_mask == 1) & (p.mask == 1)).sum() for p, e in shown]
        union = [(((e.query_mask == 1) | (p.mask == 1)) & (e.query_mask != 255)).sum() for p, e in shown]
        assert row["images"] == len(shown)
        assert row["recall"] == pytest.approx(
            int(sum(found)) / sum(int((e.query_mask == 1).sum()) for _, e in shown)
        )
        assert row["iou"] == pytest.approx(int(sum(found)) / int(sum(union)))
        label, score = [bool(e.shown) for _, e in here], [float(p.score) for p, _ in here]
        assert row["image_auroc"] == pytest.approx(roc_auc_score(label, score))


def test_types_without_good_images_masks_or_truth_leave_values_out():
    bad = [(p, e) for p, e in answers(products=("a",)) if e.shown == ("hole",)]
    assert set(row_of(DefectTypes(), bad)) == {"class", "images", "recall", "iou"}
    plain = [(replace(p, mask=None), e) for p, e in answers(products=("a",)) if "crack" not in e.shown]
    assert set(row_of(DefectTypes(), plain)) == {"class", "images", "image_auroc"}
    unknown = [(p, replace(e, query_mask=torch.full_like(e.query_mask, 255))) for p, e in bad]
    assert set(row_of(DefectTypes(), unknown)) == {"class", "images"}
    assert updated(DefectTypes(), []).compute() == {}


def row_of(metric, pairs):
    updated(metric, pairs).compute()
    assert len(metric.table) == 1
    return metric.table[0]


def test_overlap_of_a_detector_counts_false_alarms_on_good_images():
    pairs = answers()
    metric = updated(suite("detect", detect=True), pairs)
    values = metric.compute()
    found, union = {}, {}
    for p, e in pairs:
        truth, known = e.query_mask == 1, e.query_mask != 255
        found[e.product] = found.get(e.product, 0) + int((truth & (p.mask == 1)).sum())
        union[e.product] = union.get(e.product, 0) + int(((truth | (p.mask == 1)) & known).sum())
    expected = [found[k] / union[k] for k in found]
    assert float(values["miou"]) == pytest.approx(np.mean(expected))
    rows = {row["class"]: row for row in metric.table()}
    assert rows["a"]["iou"] == pytest.approx(found["a"] / union["a"])
    assert rows["a"].keys() >= {"pixel_iou_max", "image_tnr_at_95tpr", "accuracy_balanced"}
    assert rows["a/crack"].keys() >= {"recall", "iou", "image_auroc"}
    assert not any(np.isnan(float(v)) for v in values.values())


@given(st.lists(st.integers(0, 2), min_size=12, max_size=12), st.booleans())
@settings(max_examples=8, deadline=None)
def test_merging_is_associative(owner, left_first):
    pairs = answers(12)
    for kind in (PixelRanking, ImageRanking, ImageDecision, DefectTypes):
        whole = updated(kind(), pairs)
        a, b, c = (
            updated(kind(), [p for p, o in zip(pairs, owner, strict=True) if o == k]) for k in range(3)
        )
        if left_first:
            a.merge_state(b)
            a.merge_state(c)
        else:
            b.merge_state(c)
            a.merge_state(b)
        assert equal(a.compute(), whole.compute())
        assert a.table == whole.table


def test_the_state_does_not_grow_with_the_images():
    metric = PixelRanking()
    sizes = []
    for _ in range(3):
        measured(metric, pictures(6, "residual"))
        sizes.append(sum(row.numel() for row in metric.bins))
    assert sizes[0] == sizes[-1] == 2 + 3 * bins.NUM_BINS


def test_many_small_rows_are_kept_in_few_blocks():
    """A tensor kept for every image would split the memory that large maps come from."""
    metric, pair = ImageRanking(), answers(1)[0]
    for k in range(300):
        metric.update(replace(pair[0], score=torch.tensor([float(k)])), replace(pair[1], product=f"p{k}"))
    assert len(metric.scores) <= 5 and len(metric.names) <= 5
    assert metric.read("scores")[:, 2].astype(np.int32).view(np.float32).tolist() == list(range(300))
    metric.compute()
    assert len(metric.table) == 300
    metric.reset()
    assert metric.read("scores").shape == (0, 3)
    metric.update(*pair)
    assert len(metric.read("scores")) == 1


# -- regression: faults of the reference (specification 7.1)


def test_fault_6_order_of_images_does_not_matter():
    pairs = answers()
    forward, back = (updated(suite("detect", detect=True), p) for p in (pairs, pairs[::-1]))
    assert equal(forward.compute(), back.compute())


def test_fault_7_auc_sees_good_images_and_the_end_of_the_curve():
    pairs = pictures(9, "probability")
    similarity = [1 - s for s, _ in pairs]
    truths = [m == 1 for _, m in pairs]
    legacy = legacy_values(similarity, [s > 0.5 for s, _ in pairs], truths, 400)["auc"]
    defective = [k for k, t in enumerate(truths) if t.any()]
    changed = [s if k in defective else s * 0 for k, s in enumerate(similarity)]  # good images look terrible
    assert legacy_values(changed, truths, truths, 400)["auc"] == legacy  # and the old number does not notice
    alike = [np.full((4, 4), 1.0), np.full((4, 4), 0.2)]
    fpr, tpr = curve(alike, [np.zeros((4, 4), bool), np.ones((4, 4), bool)])
    assert (len(fpr), fpr[-1], tpr[-1]) == (200, 0.0, 1.0)  # area 0 for perfect maps: no end point (1, 1)
    mine = [
        measured(PixelRanking(), [(1 - s, m) for s, (_, m) in zip(maps, pairs, strict=True)])
        for maps in (similarity, changed)
    ]
    before, after = (float(m.compute()["pixel_auroc"]) for m in mine)
    assert after < before - 0.1


def test_fault_7_images_may_differ_in_size():
    pairs = pictures(3, "residual") + pictures(3, "residual", seed=1, size=(31, 64))
    reference = exact.exact_pixel_values(*zip(*pairs, strict=True))
    assert float(measured(PixelRanking(), pairs).compute()["pixel_auroc"]) == pytest.approx(
        reference["pixel_auroc"], abs=1e-3
    )


def test_fault_12_relative_paths_with_dots_are_different_images():
    mask = torch.zeros(4, 4)
    names = ("./part/001.png", "./part/002.png", "../part/001.png", "part.v2/001.png", "part.v2/002.png")
    keys = {query_key(episode(mask, paths=(name,)), 0) for name in names}
    assert len(keys) == len(names)


def test_legacy_numbers_follow_their_definition():
    truth = np.zeros((4, 5), bool)
    truth[0] = True
    masks = [np.zeros((4, 5), bool), truth.copy(), ~truth]
    truths = [np.zeros((4, 5), bool), truth, truth]
    values = legacy_values([np.ones((4, 5)), 1.0 - truth, 1.0 - truth], masks, truths, area=1)
    assert values["pixel_accuracy"] == pytest.approx(2 / 3)
    assert values["iou"] == 0.5
    assert (values["accuracy_good"], values["accuracy_defective"]) == (1.0, 1.0)
    assert legacy_values([np.ones((4, 5))], masks[:1], truths[:1], area=1) == {
        "pixel_accuracy": 1.0,
        "accuracy_good": 1.0,
    }
