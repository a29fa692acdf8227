"""Parity of SOFS' data and evaluation rules with the original (``--goldens=DIR``)."""

from collections import defaultdict

import numpy as np
import pytest
import torch

from fewspect.data import polygons
from fewspect.methods.sofs.loss import cross_entropy, mixed_dice
from fewspect.metrics.segmentation import fb_iou, mean_iou, vote_counts
from fewspect.nn import windows


def tile_row(row):
    boxes = windows.tile(row["H"], row["W"], row["crop"])
    shapes = {(bottom - top, right - left) for top, bottom, left, right in boxes}
    (shape,) = shapes
    return row | {
        "positions_top_bottom_left_right": boxes,
        "tile_shape": shape,
        "resized_tile_shape": windows.fit_size(*shape, row["crop"]),
    }


def crop_row(row, share):
    r, c = row["center_row_col"]
    box = windows.crop_box(r, c, row["H"], row["W"], row["crop"], row["draw_down"], row["draw_right"])
    mask = torch.zeros(3, row["H"], row["W"], dtype=torch.uint8)
    mask[:, r, c] = 1
    cut = mask[:, box[0] : box[1], box[2] : box[3]]
    return row | {
        "box": box,
        "mask_pixels": int(cut[0].sum()),
        "out_shape": windows.resize_pad(cut, row["crop"]).shape,
        "small": bool(mask[0].float().mean() <= share),
    }


def polygon_masks(table):
    """Category -> union of its polygons."""
    masks = defaultdict(lambda: np.zeros((table["H"], table["W"]), bool))
    for annotation in table["annotations"]:
        for points in annotation["segmentation"]:
            masks[annotation["category"]] |= polygons.fill(points, table["H"], table["W"])
    return dict(masks)


def metric_table(arrays, samples, ignore):
    """The metric by the counting rule of the original, from the votes and targets."""
    rows, classes = [], defaultdict(lambda: np.zeros((2, 2)))
    for index, sample in enumerate(samples):
        votes, target = (torch.from_numpy(arrays[f"metric{index}_{k}"]) for k in ("votes", "target"))
        inter, union = vote_counts(votes, target, ignore)
        area = [int((target == v).sum()) for v in (0, 1)]
        rows.append(sample | {"intersection": inter, "union": union, "target": area})
        classes[f"{sample['object']}_{sample['category']}"] += np.stack([inter.numpy(), union.numpy()])
    total = sum(classes.values())
    by_class = {
        k: {"background_iou": v[0, 0] / v[1, 0], "foreground_iou": v[0, 1] / v[1, 1]}
        for k, v in classes.items()
    }
    inter, union = ({k: v[i] for k, v in classes.items()} for i in (0, 1))
    return {
        "metric.samples": rows,
        "metric.miou": mean_iou(inter, union),
        "metric.per_class": by_class,
        "metric.fb_iou": total[0] / total[1],
        "metric.fb_iou_mean": fb_iou(inter, union),
    }


def loss_rows(golden, arrays, rows):
    for row in rows:
        prob, target = (
            torch.from_numpy(arrays[f"loss{row['case']}_{k}"]).float() for k in ("prob", "target")
        )
        dice = mixed_dice(prob, target, row["smooth_r"]).mean()
        yield (
            float(dice),
            float(golden["dice_weight"] * dice + golden["ce_weight"] * cross_entropy(prob, target)),
        )


@pytest.mark.goldens("sofs", "protocol")
def test_protocol(golden):
    tables, companion = golden.content, golden.other(golden["arrays"])
    arrays = companion.content
    assert {k: len(tables[k]) for k in golden["tables"]} == golden["tables"]
    masks = polygon_masks(tables["polygons"])
    found = {
        "categories_found": sorted(masks),
        "pixel_area": [int(masks[k].sum()) for k in sorted(masks)],
        "num_categories": len(masks),
    }
    dice, loss = zip(*loss_rows(golden, arrays, tables["losses"]), strict=True)
    samples = [{"object": s["object"], "category": s["category"]} for s in tables["metric"]["samples"]]
    golden.compare(
        {
            "tiles": [tile_row(row) for row in tables["tiles"]],
            "crop_boxes": [crop_row(row, golden["support_area_ratio"]) for row in tables["crop_boxes"]],
            "resize_shapes": [
                row | {"out": windows.fit_size(row["h"], row["w"], row["long"])}
                for row in tables["resize_shapes"]
            ],
            "polygons": tables["polygons"] | found,
            **metric_table(arrays, samples, 255),
            "losses.loss": loss,
            "losses.dice": dice,
        }
    )


@pytest.mark.goldens("sofs", "protocol_arrays")
def test_protocol_arrays(golden):
    outputs = {}
    for row in golden["maskprep"]:
        key = f"maskprep{row['index']}"
        mask = torch.from_numpy(golden.stored(f"{key}_in"))
        assert mask.shape == (row["height"], row["width"])
        outputs[f"{key}_out"] = windows.resize_mask((mask > 0).to(torch.uint8), row["long_side"])
    for row in golden["upsample"]:
        key, (height, width) = f"upsample{row['index']}", row["target"]
        assert golden.stored(f"{key}_sizes").tolist() == [*row["valid"], height, width]
        hard, heat = (torch.from_numpy(golden.stored(f"{key}_{k}_in")) for k in ("hard", "heat"))
        outputs[f"{key}_hard_out"] = windows.restore_hard(hard, height, width, tuple(row["valid"]))
        outputs[f"{key}_heat_out"] = windows.restore_heat(heat, height, width, tuple(row["valid"]))
    masks = polygon_masks(golden.other(golden["table"]).content["polygons"])
    outputs |= {f"polygon_cat{k}": v for k, v in masks.items()}
    golden.compare(outputs)
