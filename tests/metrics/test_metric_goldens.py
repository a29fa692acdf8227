"""Detection metrics, exact and streaming, against stored values (``--goldens=DIR``)."""

import re

import numpy as np
import pytest
import torch
from metric_cases import episode, histogram

from fewspect.metrics import bins, exact
from fewspect.metrics.detection import ImageRanking, PixelRanking
from fewspect.metrics.legacy import legacy_values
from fewspect.metrics.segmentation import SegmentationCounts
from fewspect.types import Prediction

NOT_OFFERED = ("aupimo", "PG", "PB")
"""Beginnings of the keys of the second library's block that this package does not compute: PIMO, per image or
on average; PG and PB, which take a threshold *between* two scores (an interpolated quantile of one kind of
image) and can so miss the rate in their name. ``tnr_at_tpr`` and ``tpr_at_fpr`` hold it."""


class Case:
    """Score maps (N, H, W), masks (N, H, W) and image labels of one variant."""

    def __init__(self, golden, arrays, variant):
        self.scores = arrays.stored(golden["score_keys"][variant])
        self.masks = arrays.stored(golden["mask_key"])
        self.labels = arrays.stored(golden["label_key"])
        self.images = self.scores.reshape(len(self.scores), -1).max(1)


def exact_histograms(case, connectivity):
    """(values, positive, negative, regions), one bin per score."""
    return exact.pixel_histograms(case.scores, case.masks, connectivity)


def binned_histograms(case, connectivity):
    """The same from the bins; the value of a bin is the smallest score in it."""
    scores = torch.from_numpy(case.scores)
    place = bins.bin_of(scores).numpy()
    values = np.full(bins.NUM_BINS, -np.inf)
    order = np.argsort(-case.scores, axis=None, kind="stable")
    values[place.ravel()[order]] = case.scores.ravel()[order]  # the last one written is the smallest
    values = np.maximum.accumulate(values)  # empty bins
    positive, negative = (histogram(scores[torch.from_numpy(case.masks == k)]).numpy() for k in (1, 0))
    weights = np.concatenate([bins.region_weights(m == 1, connectivity) for m in case.masks])
    regions = np.bincount(place[case.masks == 1], weights=weights, minlength=bins.NUM_BINS)
    return values, positive, negative, regions


def at_threshold(case, histograms, threshold):
    values, positive, negative, regions = histograms
    above = values > threshold
    tp, fp = int(positive[above].sum()), int(negative[above].sum())
    fn, tn = int(positive.sum()) - tp, int(negative.sum()) - fp
    masks = case.scores > threshold
    legacy = legacy_values(list(1 - case.scores), list(masks), list(case.masks == 1), 1)
    return {
        "TP": tp,
        "FP": fp,
        "FN": fn,
        "TN": tn,
        "iou": tp / (tp + fp + fn),
        "dice": 2 * tp / (2 * tp + fp + fn),
        "precision": tp / (tp + fp),
        "recall": tp / (tp + fn),
        "fpr": fp / (fp + tn),
        "mean_iou_over_defect_images": legacy["iou"],
        "pro": regions[above].sum() / regions.sum(),
    }


def all_values(golden, case, histograms):
    """Every value with a tolerance, from one way of making histograms."""
    eight, four = (histograms(case, golden[k]) for k in ("connectivity", "other_connectivity"))
    values, positive, negative, regions = eight
    image = bins.exact_histograms(case.images, case.labels)
    f1, image_f1 = bins.f1_curve(positive, negative), bins.f1_curve(*image)
    result = {
        "pixel_auroc": bins.auroc(positive, negative),
        "pixel_ap": bins.average_precision(positive, negative),
        "pixel_f1max": bins.f1_max(positive, negative),
        "pixel_f1max_threshold": values[f1.argmax()],
        "pixel_iou_max": bins.iou_max(positive, negative),
        "image_auroc": bins.auroc(*image),
        "image_ap": bins.average_precision(*image),
        "image_f1max": bins.f1_max(*image),
        "image_f1max_threshold": np.unique(case.images)[image_f1.argmax()],
        "n_regions_conn8": round(regions.sum()),
        "n_regions_conn4": round(four[3].sum()),
        **{f"aupro_{limit}": bins.aupro(regions, negative, limit) for limit in golden["aupro_limits"]},
    }
    for key in [k for k in golden["tolerance"] if re.fullmatch(r"aupro_.*_conn4", k)]:
        result[key] = bins.aupro(four[3], negative, float(key.split("_")[1]))
    rates = at_threshold(case, eight, golden["threshold"])
    return result | {f"{golden['threshold_key']}.{k}": v for k, v in rates.items()}


def both(golden):
    """(variant, case) of a file."""
    arrays = golden.other(golden["arrays"])
    entry = companion(golden)
    return [(v, Case(entry, arrays, v)) for v in golden["variants"]]


def companion(golden):
    import goldens_format

    entries = goldens_format.entries(golden.folder.parent, golden.folder.name, "metrics_arrays")
    return next(e for e in entries if e.name == golden["arrays"])


def stored(golden, variant, keys):
    """Stored values; a dot walks into a table (thresholds have dots of their own)."""
    table = golden.content[variant]
    inner = golden["threshold_key"] + "."
    return {k: table[inner[:-1]][k.removeprefix(inner)] if k.startswith(inner) else table[k] for k in keys}


@pytest.mark.goldens("reconstruction_ae", "metrics")
@pytest.mark.parametrize(
    ("histograms", "tolerance"),
    [(exact_histograms, "tolerance"), (binned_histograms, "tolerance_streaming")],
)
def test_values(golden, histograms, tolerance):
    assert golden["ap"] == "step-wise sum"
    assert golden["threshold_rule"] == "score > threshold"
    spec, golden.spec = golden.spec, golden.spec | {"tolerance": golden[tolerance]}
    try:
        for variant, case in both(golden):
            assert (len(case.labels), int((case.labels == 0).sum())) == (golden["n_images"], golden["n_good"])
            expected = stored(golden, variant, golden["tolerance"])
            golden.compare(all_values(golden, case, histograms), expected)
    finally:
        golden.spec = spec


@pytest.mark.goldens("reconstruction_ae", "metrics")
def test_the_metrics_of_the_suite_give_these_values(golden):
    names = {"pixel_f1_max": "pixel_f1max", "image_f1_max": "image_f1max"}
    for variant, case in both(golden):
        pixel, image, counts = PixelRanking(), ImageRanking(), SegmentationCounts()
        for k, (score, mask, label) in enumerate(zip(case.scores, case.masks, case.labels, strict=True)):
            prob = torch.from_numpy(score)[None]
            prediction = Prediction(prob=prob, mask=(prob > golden["threshold"]).to(torch.uint8))
            truth = episode(torch.from_numpy(mask), label=int(label), index=k)
            for metric in (pixel, image, counts):
                metric.update(prediction, truth)
        values = {k: float(v) for k, v in (pixel.compute() | image.compute()).items()}
        counts.compute()
        rates = {k: counts.table[0][k] for k in ("iou", "dice", "precision", "recall")}
        values |= {f"{golden['threshold_key']}.{k}": float(v) for k, v in rates.items()}
        mine = {names.get(k, k): v for k, v in values.items()}
        keys = [k for k in golden["tolerance"] if k in mine]
        assert {"pixel_auroc", "pixel_iou_max", "image_ap", "aupro_0.3"} <= set(keys)
        expected = stored(golden, variant, keys)
        for key in keys:
            limit = golden["tolerance_streaming" if key.startswith(("pixel", "aupro")) else "tolerance"][key]
            assert mine[key] == pytest.approx(expected[key], abs=limit["atol"] + 1e-6), key


def trapezoid_ap(positive, negative):
    """Area under the lines between the points of the precision-recall curve: what AP is not."""
    hits, alarms = np.cumsum(positive[::-1]), np.cumsum(negative[::-1])
    recall = np.concatenate([[0], hits / hits[-1]])
    precision = np.concatenate([[1], hits / (hits + alarms)])
    return np.trapezoid(precision, recall)


@pytest.mark.goldens("reconstruction_ae", "metrics")
def test_a_second_library_agrees(golden):
    settings = golden["cross_check"]
    assert settings["ap"] == "trapezoid"
    for variant, case in both(golden):
        histograms = exact_histograms(case, golden["connectivity"])
        values, positive, negative, regions = histograms
        mine = all_values(golden, case, exact_histograms)
        mine |= {
            "pixel_aupr_trapz": trapezoid_ap(positive, negative),
            f"pro_{settings['pro_threshold']}": regions[values > settings["pro_threshold"]].sum()
            / regions.sum(),
            "image_f1_adaptive_threshold": mine["image_f1max_threshold"],
        }
        expected = golden.content[variant][golden["cross_check_key"]]
        for key, limit in golden["tolerance_cross_check"].items():
            if not key.startswith(NOT_OFFERED):
                assert mine[key] == pytest.approx(expected[key], abs=limit["atol"]), (variant, key)
