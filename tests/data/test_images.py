import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from fewspect.data.images import decode_image, image_size, list_images, opened, read_image
from fewspect.data.listing import scan
from fewspect.errors import UserError

RNG = np.random.default_rng(0)


def grey(height=20, width=30):
    return RNG.integers(0, 256, (height, width), dtype=np.uint8)


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("ending", [".png", ".jpg", ".tif"])
def test_every_exif_orientation_is_applied_once(tmp_path, value, ending):
    upright = np.zeros((16, 40), np.uint8)
    upright[:8, :8] = 250  # one bright corner and one grey one tell all eight orientations apart
    upright[8:, :8] = 120
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[value]
    exif = Image.Exif()
    exif[274] = value
    path = tmp_path / f"a{ending}"
    Image.fromarray(np.ascontiguousarray(stored)).save(
        path, exif=exif, **({"quality": 100} if ending == ".jpg" else {})
    )
    assert image_size(path) == (16, 40)
    image = read_image(path)
    assert image.shape == (3, 16, 40)
    assert (image[0].int() - torch.from_numpy(upright).int()).abs().max() <= 8


def test_pillows_own_limit_has_no_say_and_stays_as_it_is(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    Image.fromarray(grey()).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # of 600 pixels
    filters = list(warnings.filters)
    first, second = opened(path, 600), opened(path, 600)  # as two threads enter and leave them
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        first.__enter__()
        assert second.__enter__().size == (30, 20)
        first.__exit__(None, None, None)
        second.__exit__(None, None, None)
    assert Image.MAX_IMAGE_PIXELS == 100 and warnings.filters == filters and not caught
    with pytest.raises(UserError, match="600 pixels, above the limit of 599"):
        image_size(path, max_pixels=599)


def test_sixteen_bit_is_scaled_and_the_white_level_is_used(tmp_path):
    values = np.array([[0, 257, 2048, 4095], [4096, 30000, 65534, 65535]], np.uint16)
    path = tmp_path / "a.png"
    Image.fromarray(values).save(path)
    assert read_image(path)[0].tolist() == [[0, 1, 8, 16], [16, 117, 255, 255]]
    assert read_image(path, white_level=4095)[0].tolist() == [[0, 16, 128, 255], [255, 255, 255, 255]]
    Image.fromarray(np.minimum(values, 4095)).save(path)
    assert "data.reader.white_level=4095" in decode_image(path)[1][0]


def test_float_images(tmp_path):
    path = tmp_path / "a.tif"
    Image.fromarray(np.array([[0, 0.5, 1]], np.float32)).save(path)
    assert read_image(path)[0].tolist() == [[0, 128, 255]]
    for bad in (np.nan, np.inf, -1.0, 7.0):
        Image.fromarray(np.array([[0, bad, 1]], np.float32)).save(path)
        with pytest.raises(UserError, match=r"a\.tif"):
            read_image(path)
    assert read_image_with_white(path) == [[0, 255, 36]]


def read_image_with_white(path):
    return read_image(path, white_level=7)[0].tolist()


def test_modes_agree(tmp_path):
    pixels = grey()
    base = Image.fromarray(pixels)
    alpha = Image.fromarray(np.linspace(0, 255, pixels.size).reshape(pixels.shape).astype(np.uint8))
    variants = {
        "rgb": base.convert("RGB"),
        "rgba": Image.merge("RGBA", [base, base, base, alpha]),
        "la": Image.merge("LA", [base, alpha]),
        "palette": base.convert("P"),
    }
    for name, image in variants.items():
        image.save(tmp_path / f"{name}.png")
        assert torch.equal(read_image(tmp_path / f"{name}.png")[1], torch.from_numpy(pixels)), name
    assert decode_image(tmp_path / "rgba.png")[1] == ("alpha channel dropped",)
    Image.fromarray(pixels > 128).save(tmp_path / "bit.png")
    assert set(read_image(tmp_path / "bit.png").unique().tolist()) == {0, 255}


def test_bombs_are_refused_from_the_header(tmp_path):
    path = tmp_path / "big.png"
    Image.new("1", (1000, 1001)).save(path)
    with pytest.raises(UserError, match="above the limit of 1000000"):
        read_image(path, max_pixels=1_000_000)
    assert read_image(path, max_pixels=1_001_000).shape == (3, 1001, 1000)
    limit = Image.MAX_IMAGE_PIXELS
    with pytest.raises(UserError, match=r"big\.png"):
        image_size(path, max_pixels=1000)
    assert limit == Image.MAX_IMAGE_PIXELS


def test_damaged_files_are_named(tmp_path):
    good = tmp_path / "good.png"
    Image.fromarray(grey(200, 200)).save(good)
    raw = good.read_bytes()
    contents = {
        "cut.png": raw[: len(raw) // 2],
        "zero.jpg": b"",
        "page.png": b"<!DOCTYPE html><html>",
        "x.jpg": raw[8:],
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name) as caught:
            read_image(tmp_path / name)
        assert caught.value.hint
    with pytest.raises(UserError, match="not found"):
        read_image(tmp_path / "absent.png")


def test_listing_ignores_litter_and_follows_no_loops(tmp_path):
    for name in ("b.PNG", "a.JpEg", "c d (1).tif"):
        (tmp_path / name).write_bytes(b"x")
    for name in (".hidden.png", "._a.jpg", "Thumbs.db", "notes.txt", "photo.HEIC"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX" / "z.png").write_bytes(b"x")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "d.bmp").write_bytes(b"x")
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert [p.name for p in list_images(tmp_path)] == ["a.JpEg", "b.PNG", "c d (1).tif"]
    assert [p.name for p in list_images(tmp_path, recursive=True)] == [
        "a.JpEg",
        "b.PNG",
        "c d (1).tif",
        "d.bmp",
    ]
    listing = scan(tmp_path)
    assert {p.kind for p in listing.problems} == {"dangling-link", "unsupported"}
    assert (listing.deeper, listing.ignored) == (1, 1)
    with pytest.raises(UserError, match="is a file"):
        list_images(tmp_path / "b.PNG")
    with pytest.raises(UserError, match="not found"):
        list_images(tmp_path / "absent")


UNREADABLE = {
    "truncated.jpg",
    "truncated.png",
    "zero_bytes.jpg",
    "html_error_page.png",
    "panorama_20000x9000.png",
}
SIZES = {"tiny_1x1.png": (1, 1), "strip_2048x12.png": (12, 2048)}


def test_odd_files(shared_data):
    folder = shared_data / "odd_files" / "images"
    for path in list_images(folder):
        if path.name in UNREADABLE:
            with pytest.raises(UserError, match=path.name):
                read_image(path)
        else:
            size = SIZES.get(path.name, (180, 140))
            assert tuple(read_image(path).shape) == (3, *size) == (3, *image_size(path)), path
    assert len(list_images(folder)) == 30

    base = read_image(folder / "base_grey.png")
    for name in ("gray16_full.tif", "grey_as_rgb.png", "grey.bmp", "grey_alpha.png", "three_pages.tif"):
        assert torch.equal(read_image(folder / name), base), name
    colour = read_image(folder / "base_colour.jpg").int()
    for name, limit in (("exif_rotated_6.jpg", 3.0), ("cmyk.jpg", 6.0), ("progressive.jpg", 3.0)):
        assert (read_image(folder / name).int() - colour).abs().float().mean() < limit, name
    assert "alpha" in decode_image(folder / "rgba.png")[1][0]
    assert "3 pages" in decode_image(folder / "three_pages.tif")[1][0]
    deep = read_image(folder / "gray16_12bit.png", white_level=4095)
    assert 20 < deep.float().mean() < 235 and len(deep.unique()) > 50
