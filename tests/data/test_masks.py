import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fewspect.data import polygons, rle
from fewspect.data.masks import decode_mask, rasterise, read_index
from fewspect.errors import UserError
from fewspect.types import Region

GOLDENS = Path(__file__).resolve().parents[1] / "goldens" / "sofs"
ONE = 1 << 16


def slow_fill(points, height, width):
    """Per-pixel reference for polygons inside the image: line by line, row by row, in plain integers."""
    mask = np.zeros((height, width), bool)
    flat = [int(v) for v in points]
    corners = list(zip(flat[0::2], flat[1::2], strict=False))
    crossings = {}
    for (x0, y0), (x1, y1) in zip([corners[-1], *corners[:-1]], corners, strict=True):
        (ax, ay), (bx, by) = (
            sorted([(x0, y0), (x1, y1)], key=lambda p: p[0]) if x0 != x1 else ((x0, y0), (x1, y1))
        )
        dx, dy = bx - ax, abs(by - ay)
        sign = 1 if by >= ay else -1
        for step in range(max(dx, dy) + 1):
            side = 0 if max(dx, dy) == 0 else -(-(2 * step * min(dx, dy) - max(dx, dy)) // (2 * max(dx, dy)))
            mask[(ay + sign * step, ax + side) if dy > dx else (ay + sign * side, ax + step)] = True
        if y0 != y1:
            (tx, ty), (lx, ly) = ((x0, y0), (x1, y1)) if y0 < y1 else ((x1, y1), (x0, y0))
            slope = abs(lx - tx) * ONE // (ly - ty) * (1 if lx >= tx else -1)
            for y in range(ty, ly):
                crossings.setdefault(y, []).append(tx * ONE + (y - ty) * slope)
    for y, row in crossings.items():
        row.sort()
        for left, right in zip(row[0::2], row[1::2], strict=True):
            for x in range(width):
                mask[y, x] |= left <= x * ONE <= right
    return mask


def test_polygon_golden():
    content = json.loads((GOLDENS / "protocol.json").read_text())["polygons"]
    arrays = np.load(GOLDENS / "protocol.npz")
    for category in content["categories_found"]:
        notes = [a for a in content["annotations"] if a["category"] == category]
        regions = tuple(Region("polygon", points=tuple(map(tuple, a["segmentation"]))) for a in notes)
        mask = rasterise(regions, content["H"], content["W"])
        assert mask.dtype == torch.uint8
        assert np.array_equal(mask.numpy().astype(bool), arrays[f"polygon_cat{category}"].astype(bool))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 23.99), st.floats(0, 17.99)), min_size=1, max_size=12))
def test_polygons_equal_the_slow_reference(corners):
    flat = [v for corner in corners for v in corner]
    assert np.array_equal(polygons.fill(flat, 18, 24), slow_fill(flat, 18, 24))


def test_polygons_are_clipped_at_the_image():
    assert polygons.fill([-5, -5, 100, -5, 100, 100, -5, 100], 7, 9).all()
    assert not polygons.fill([20, 20, 30, 20, 30, 30], 7, 9).any()
    assert not polygons.fill([], 7, 9).any()
    assert not polygons.fill([float("nan"), 0, 3, 3, 4, 0], 7, 9).any()
    inside = polygons.fill([-4, 2, 3, 2, 3, 5, -4, 5], 7, 9)
    assert inside[2:6, :4].all() and inside.sum() == 16
    far = polygons.fill([-1e12, -1e12, 1e12, -1e12, 1e12, 1e12, -1e12, 1e12], 7, 9)
    assert far.all()


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.randoms(use_true_random=False))
def test_run_lengths_round_trip(height, width, random):
    mask = np.array([[random.random() < 0.5 for _ in range(width)] for _ in range(height)])
    counts = encode(mask)
    assert np.array_equal(rle.decode(counts, height, width), mask)
    assert rle.decompress(compress(counts)) == counts


def encode(mask):
    """Run lengths, column by column, background first."""
    counts, before = [0], False
    for value in mask.T.ravel().tolist():
        if value != before:
            counts.append(0)
        counts[-1] += 1
        before = value
    return tuple(counts)


def compress(counts):
    """COCO's string form, written from its description."""
    text = ""
    for i, count in enumerate(counts):
        value = count - counts[i - 2] if i > 2 else count
        while True:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            text += chr(48 + bits + 32 * more)
            if not more:
                break
    return text


def test_run_lengths_are_column_major_and_checked():
    assert rle.decode([2, 2, 2], 2, 3).tolist() == [[False, True, False], [False, True, False]]
    for bad in ([1, 2], [7], [8, -2]):
        with pytest.raises(UserError):
            rle.decode(bad, 2, 3)
    with pytest.raises(UserError, match="invalid character"):
        rle.decompress("\x01")
    with pytest.raises(UserError, match="inside a number"):
        rle.decompress("`")


def save(path, array, mode=None, **options):
    Image.fromarray(array, mode).save(path, **options) if mode is None else Image.fromarray(array).convert(
        mode
    ).save(path)
    return path


def test_decoding_order(tmp_path):
    truth = np.zeros((12, 10), bool)
    truth[3:6, 2:7] = True
    cases = {
        "zero_one": truth.astype(np.uint8),
        "zero_255": truth.astype(np.uint8) * 255,
        "sixteen": truth.astype(np.uint16) * 65535,
        "colour": np.stack([truth * 255, truth * 0, truth * 0], -1).astype(np.uint8),
        "dark": np.stack([truth * 0, truth * 7, truth * 0], -1).astype(np.uint8),
    }
    soft = truth.astype(np.uint8) * 200
    soft[0, 0], soft[11, 9] = 127, 40
    cases["grey"] = soft
    alpha = np.zeros((12, 10, 4), np.uint8)
    alpha[..., 0], alpha[..., 3] = 255, soft  # red fringe that is fully transparent
    cases["alpha"] = alpha
    opaque = np.full((12, 10, 4), 255, np.uint8)
    opaque[..., :3] = cases["colour"]
    cases["opaque"] = opaque
    mixed = opaque.copy()
    mixed[0, 0] = 0
    cases["black_and_coloured"] = mixed
    for name, array in cases.items():
        mask, _ = decode_mask(save(tmp_path / f"{name}.png", array))
        assert np.array_equal(mask, truth), name
    palette = Image.fromarray(truth.astype(np.uint8)).convert("P")
    palette.putpalette([0, 0, 0, 35, 60, 54])
    palette.save(tmp_path / "palette.png")
    assert np.array_equal(decode_mask(tmp_path / "palette.png")[0], truth)
    np.save(tmp_path / "bool.npy", truth)
    assert np.array_equal(decode_mask(tmp_path / "bool.npy")[0], truth)


def test_constant_and_index_masks(tmp_path):
    assert not decode_mask(save(tmp_path / "zero.png", np.zeros((5, 5), np.uint8)))[0].any()
    assert decode_mask(save(tmp_path / "full.png", np.full((5, 5), 255, np.uint8)))[0].all()
    index = np.arange(4, dtype=np.uint8).repeat(5).reshape(4, 5)
    path = save(tmp_path / "index.png", index)
    mask, notices = decode_mask(path)
    assert np.array_equal(mask, index > 0) and "mask_type=index" in notices[0]
    assert rasterise((Region("file", path, (2,)),), 4, 5).sum() == 5
    assert rasterise((Region("file", path, (1,)), Region("file", path, (3,))), 4, 5).sum() == 10
    assert rasterise((Region("file", path, (2,), invert=True),), 4, 5).sum() == 15
    with pytest.raises(UserError, match="colour picture"):
        read_index(save(tmp_path / "rgb.png", RGB))


RGB = np.random.default_rng(0).integers(0, 255, (4, 5, 3), dtype=np.uint8)


def test_wrong_sizes_name_both(tmp_path):
    path = save(tmp_path / "m.png", np.zeros((4, 6), np.uint8))
    with pytest.raises(UserError, match=r"mask is 4 x 6, its image 6 x 4 .*swapped"):
        rasterise((Region("file", path),), 6, 4)


def test_pickles_are_refused(tmp_path):
    np.save(tmp_path / "evil.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"evil\.npy"):
        decode_mask(tmp_path / "evil.npy")


def test_boxes_are_clipped():
    assert rasterise((Region("box", points=((1, 1, 2, 3), (-5, -5, 6, 6))),), 8, 8).sum() == 7


SAME = (
    "0_255",
    "0_1",
    "antialiased",
    "palette_dark_green",
    "rgb_red",
    "rgba_opaque",
    "rgba_in_alpha",
    "one_bit",
)
SAME += ("16bit", "rgba_soft_edge", "palette_soft_edge")
AREAS = {"mask_empty.png": 0, "mask_full.png": 180 * 140, "mask_index_0123.png": 1517, "mask_specks.png": 118}


def test_odd_masks(shared_data):
    folder = shared_data / "odd_files" / "masks"
    truth, _ = decode_mask(folder / "mask_0_255.png")
    assert truth.sum() == 117
    for name in SAME:
        assert np.array_equal(decode_mask(folder / f"mask_{name}.png")[0], truth), name
    assert np.array_equal(decode_mask(folder / "mask_bool.npy")[0], truth)
    for name, area in AREAS.items():
        assert decode_mask(folder / name)[0].sum() == area, name
    lossy, notices = decode_mask(folder / "mask_jpeg.jpg")
    assert (lossy != truth).sum() < 20 and "JPEG" in notices[0]
    inverted = Region("file", folder / "mask_inverted.png", invert=True)
    assert np.array_equal(rasterise((inverted,), 180, 140).numpy(), truth)
    for name in ("mask_half_size.png", "mask_transposed.png"):
        with pytest.raises(UserError, match=name):
            rasterise((Region("file", folder / name),), 180, 140)
