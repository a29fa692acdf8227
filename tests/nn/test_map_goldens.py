"""Parity of what lies between a raw map and a decision, by file of a golden folder (``--goldens=DIR``)."""

import re

import deecamp_masks
import numpy as np
import pytest
import torch

from fewspect.metrics.bins import auroc, components, exact_histograms
from fewspect.metrics.legacy import COUNT, STEP, curve, iou, legacy_values
from fewspect.nn import maps, morphology, thresholds, tiles, windows


def named(golden, pattern, values):
    """Values under the keys that match, in the order of the file: names may repeat settings, or not."""
    keys = [k for k in golden["tolerance"] if re.fullmatch(pattern, k)]
    return dict(zip(keys, values, strict=True))


def unpacked(golden, key):
    shape = golden["packed"][key]
    return np.unpackbits(golden.stored(key), count=shape[0] * shape[1]).reshape(shape).astype(bool)


# -- original chain ------------------------------------------------------------------------------------------


def written_search(levels, area, share):
    """The search of the original as it stands: one counter for all thresholds, ascending."""
    good = 0
    for threshold in range(256):
        for q in levels:
            good += deecamp_masks.is_good(deecamp_masks.mask(q, threshold), area)
            if good >= int(share * len(levels)):
                return threshold
    raise AssertionError("unreachable")


def check_settings(golden):
    """The constants of the chain are those that the file was made with."""
    assert (golden["channel_order"], golden["border"], golden["mask_rule"]) == (
        "BGR",
        "edge pixel repeated",
        "q < T",
    )
    assert tuple(golden["grey_weights_15bit"]) == deecamp_masks.GREY_15_BIT
    assert (golden["data_range"], golden["torch_padding"], golden["roc_start"]) == (255, "zeros", 0.0)
    assert (golden["roc_thresholds"], golden["roc_step"]) == (COUNT, STEP)
    size = golden["ssim_window"]
    assert golden["sample_covariance"] == pytest.approx(size**2 / (size**2 - 1))


@pytest.mark.goldens("reconstruction_ae", "segmentation_legacy")
def test_segmentation_legacy(golden):
    check_settings(golden)
    first, second = golden.stored("ori_bgr_u8"), golden.stored("rec_bgr_u8")
    truth = golden.stored("gt_resized_u8") == golden["truth_value"]
    size = tuple(golden["resized_hw"])
    greys = [deecamp_masks.grey(first), deecamp_masks.grey(second)]
    gaussian = {"size": 2 * golden["ssim_radius"] + 1, "sigma": golden["ssim_sigma"]}
    found = deecamp_masks.similarity(*greys, **gaussian)
    full = deecamp_masks.resized(found, size)
    levels = deecamp_masks.quantised(found, size)
    masks = [deecamp_masks.mask(levels, t) for t in golden["mask_thresholds"]]
    fpr, tpr = curve([full], [truth])
    values = [legacy_values([full], [m], [truth], golden["good_areas"][0]) for m in masks]
    good_levels = list(golden.stored("val_smaps_uniform_u8"))
    assert len(good_levels) == golden["val_images"]
    search = good_levels, golden["val_area"], golden["val_fraction"]
    float_mask = deecamp_masks.float_mask(
        first,
        second,
        golden["torch_threshold"],
        window=golden["torch_window"],
        weights=[golden["torch_grey_weights"][k] for k in ("original", "reconstruction")],
    )
    judged = [[deecamp_masks.is_good(m, a) for a in golden["good_areas"]] for m in masks]
    outputs = {
        "gray_ori_u8": greys[0],
        "gray_rec_u8": greys[1],
        "smap_gaussian": found,
        "smap_uniform": deecamp_masks.similarity(*greys, "uniform", size=golden["ssim_window"]),
        "smap_gaussian_resized_stride3": full,
        "mask_areas": [m.sum() for m in masks],
        "mask_iou": [iou(m, truth) for m in masks],
        **named(golden, "good_index.*", [np.array(judged, dtype=int)]),
        "mask_pixel_acc": [v["pixel_accuracy"] for v in values],
        "legacy_tpr": tpr,
        "legacy_fpr": fpr,
        "legacy_auc": values[0]["auc"],
        "exact_auc": auroc(*exact_histograms(1 - full.ravel(), truth.ravel().astype(int))),
        "val_threshold_legacy": written_search(*search),
        "val_threshold_intended": deecamp_masks.threshold(*search),
    }
    flips = named(golden, r"mask_t\d+", masks) | named(golden, r"torch_mask_t\d+", [float_mask])
    compare_flips(golden, outputs, flips)


def compare_flips(golden, outputs, masks):
    """Packed masks are compared by the share of pixels that differ, everything else by value."""
    rest = {k: v for k, v in golden["tolerance"].items() if "flips" not in v}
    flips = {k: v["flips"] for k, v in golden["tolerance"].items() if "flips" in v}
    assert set(flips) == set(masks)
    for key, share in flips.items():
        assert (masks[key] != unpacked(golden, key)).mean() <= share, key
    golden.spec["tolerance"], kept = rest, golden["tolerance"]
    try:
        golden.compare(outputs)
    finally:
        golden.spec["tolerance"] = kept


# -- our chain -----------------------------------------------------------------------------------------------


@pytest.mark.goldens("reconstruction_ae", "postprocess")
def test_postprocess(golden):
    assert golden["threshold_rule"] == "residual > threshold"
    assert golden["connectivity"] == 8
    residual = golden.stored("residual")
    binary = residual > golden["threshold"]
    good = list(golden.stored("good_residuals_u16") / np.float64(golden["good_scale"]))
    assert len(good) == golden["good_images"]
    both = golden["combined"]
    masks = {
        "binary": binary,
        **named(golden, r"open_disk\d+", [morphology.clean(binary, open_radius=r) for r in golden["disks"]]),
        **named(golden, r"area_ge\d+", [morphology.clean(binary, min_area=a) for a in golden["min_areas"]]),
        **named(
            golden,
            r"open\d+_then_area\d+",
            [morphology.clean(binary, open_radius=both["open_disk"], min_area=both["min_area"])],
        ),
    }
    assert {k: list(m.shape) for k, m in masks.items()} == golden["packed"]

    def estimate(name, **options):
        return thresholds.pixel_threshold(name=name, maps=good, **options)

    assert golden["ksigma_ddof"] == 0
    rules = ["max", f"top{golden['top_fraction'] * 100:g}pct", f"top{golden['top_count']}", "mean"]
    assert len(golden["score_columns"]) == len(rules)
    scores = [float(maps.image_score(torch.from_numpy(residual)[None], rule)) for rule in rules]
    golden.compare(
        {
            **{k: np.packbits(m) for k, m in masks.items()},
            **named(golden, r"disk\d+", [morphology.disk(r) for r in golden["disks"]]),
            "n_components_8": components(binary, 8)[1],
            "n_components_4": components(binary, 4)[1],
            "est_max": estimate("max"),
            "est_q": [estimate("quantile", p=p) for p in golden["quantiles"]],
            **named(golden, "est_ksigma.*", [estimate("ksigma", k=golden["ksigma"])]),
            "est_image_max_q": [estimate("image_max", p=p) for p in golden["image_max_quantiles"]],
            "est_maxarea_thr": [estimate("max_area", area=a) for a in golden["maxarea_areas"]],
            **named(golden, "score_.*", [np.array(scores)]),
        }
    )


@pytest.mark.goldens("reconstruction_ae", "tiling")
def test_tiling(golden):
    assert golden["tile_order"] == "rows outer, columns inner"
    image = torch.from_numpy(golden.stored("image"))
    rule = golden["score_rule"]
    boxes = tiles.boxes(*image.shape, golden["patch"], golden["stride"])
    merger = windows.Merger(*image.shape)
    for k, box in enumerate(boxes):
        top, bottom, left, right = box
        factor = 1 + rule["factor_step"] * (k % rule["factor_period"])
        merger.add(box, image[top:bottom, left:right] * factor + rule["offset_step"] * k)
    golden.compare(
        {
            **{
                p["key"]: np.array(tiles.positions(p["length"], p["patch"], p["stride"]))
                for p in golden["positions"]
            },
            "count_map": merger.count,
            "merged": merger.result(),
            "n_tiles": len(boxes),
        }
    )
