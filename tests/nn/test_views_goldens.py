"""Parity of windows and pixels with the original, file by file of a golden folder (``--goldens=DIR``)."""

import numpy as np
import pytest
import torch
from PIL import Image

from fewspect.data.polygons import fill
from fewspect.data.views import cut_exactly
from fewspect.nn.views import BOX_SCALES, count, cut, normal_alpha, windows


def boxes(golden):
    outputs = {}
    for row in golden["instances"]:
        for kind in row["methods"]:
            scales = golden["bbox_scales"] if kind == "mso_bbox" else golden["window_sizes"]
            found = windows(row["box_x1y1x2y2"], kind, scales)
            assert len(found) == count(kind, scales) == golden["methods"][kind]
            outputs[f"boxes_{kind}_{row['index']}"] = np.array(found)
        outputs[f"inner_mso_{row['index']}"] = inner(row["box_x1y1x2y2"], golden)
    return outputs


def inner(box, golden):
    """The instance's box inside the resized crop, by the rule of the manifest."""
    x1, y1, x2, y2 = box
    rows = []
    for left, top, right, _ in windows(box, "mso", golden["window_sizes"]):
        side = right - left
        factor = golden["target_size"] / side
        corners = (max(x1 - left, 0), max(y1 - top, 0), min(x2 - left, side), min(y2 - top, side))
        rows.append([int(c * factor) for c in corners])
    return np.array(rows)


def synthetic(width, height, gray):
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    red, green = (x * 255) // (width - 1), (y * 255) // (height - 1)
    blue = 255 * ((x // 16 + y // 16) % 2)
    if gray:
        return Image.fromarray(((red + green + blue) // 3).astype(np.uint8))
    return Image.fromarray(np.stack([red, green, blue], -1).astype(np.uint8))


def case(row):
    points = np.array(row["polygon"], dtype=float)
    mask = fill(points.ravel(), row["height"], row["width"])
    box = (*points.min(0), *points.max(0))
    return synthetic(row["width"], row["height"], row["gray"]), mask, box


def normalised(images, masks, golden):
    mean, std = (torch.tensor(golden[k])[:, None, None] for k in ("image_mean", "image_std"))
    return (images - mean) / std, normal_alpha(masks)


def outputs_of(row, images, masks):
    n = row["index"]
    named = {f"pipe_{n}_image_{v}": images[v] for v in row["views"]}
    named |= {f"pipe_{n}_alpha_{v}": masks[v] for v in row["views"]}
    return named | {
        f"pipe_{n}_image_mean": images.mean((2, 3)),
        f"pipe_{n}_alpha_mean": masks.mean((1, 2, 3)),
    }


@pytest.mark.goldens("mvrec", "views")
def test_windows_and_exact_pixels(golden):
    assert tuple(golden["bbox_scales"]) == BOX_SCALES
    outputs = boxes(golden)
    for row in golden["pipeline"]:
        image, mask, box = case(row)
        outputs[f"pipe_{row['index']}_maskarea"] = mask.sum()[None]
        found = windows(box, "mso", golden["window_sizes"])
        grey = Image.fromarray(mask.astype(np.uint8) * 255)
        exact = cut_exactly(image, grey, found, golden["output_size"])
        outputs |= outputs_of(row, *normalised(*exact, golden))
    golden.compare(outputs)


@pytest.mark.goldens("mvrec", "views")
def test_fast_pixels_differ_by_the_second_resizing_only(golden):
    """One resizing instead of two: means agree, single pixels of a hard checkerboard do not."""
    limit = golden["tolerance_other_resampler"]
    for row in golden["pipeline"]:
        image, mask, box = case(row)
        pixels = torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1)
        found = windows(box, "mso", golden["window_sizes"])
        fast = cut(pixels, torch.from_numpy(mask.astype(np.uint8) * 255), found, golden["output_size"])
        outputs = outputs_of(row, *normalised(*fast, golden))
        worst = {}
        for key, value in outputs.items():
            gap = np.abs(golden.cut(key, value.numpy()) - golden.stored(key))
            worst[key] = round(float(gap.max()), 4), round(float(gap.mean()), 4)
            if key.endswith("mean"):
                assert gap.max() <= limit[key]["atol"]
            assert gap.mean() < 0.03
        print(worst)
