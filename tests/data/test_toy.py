"""The toy factory: pure, exact, plausible sizes; every layout is read back with the same masks."""

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewspect.data.index import load_mask
from fewspect.data.readers import defect_spectrum, folder, magnetic_tile, mvtec, visa, vision
from fewspect.data.readers.toy import read
from fewspect.data.toy import DEFECTS, LAYOUTS, PRODUCTS, draw, write
from fewspect.data.toy.defects import CATALOGUE
from fewspect.errors import UserError

SIDE = 64
SMALL = {
    "side": SIDE,
    "products": ("wood", "tile"),
    "defects": ("hole", "stain", "crack"),
    "images": 4,
    "good": 4,
}
READERS = {
    "mvtec": mvtec.read,
    "pairs_binary": lambda root: folder.read(root, layout="pairs"),
    "pairs_index": lambda root: folder.read(
        root, layout="pairs", mask_type="index", class_names=SMALL["defects"]
    ),
    "support_query": lambda root: folder.read(root, layout="support"),
    "table": lambda root: folder.read(root, layout="table"),
    "magnetic_tile": magnetic_tile.read,
    "vision": lambda root: vision.read(root, test_objects=["tile"]),
    "vision_rle": lambda root: vision.read(root, test_objects=["tile"]),
    "defect_spectrum": lambda root: defect_spectrum.read(root, objects=["wood"], test_objects=["tile"]),
    "visa": visa.read,
}
WITHOUT_MASKS = {"classes", "chip", "flat"}


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(PRODUCTS), st.sampled_from([None, *DEFECTS]), st.integers(0, 10**6), st.integers(48, 96)
)
def test_draw_is_pure_and_masks_are_exact(product, defect, index, side):
    image, mask = draw(3, product, defect, index, side)
    again, mask_again = draw(3, product, defect, index, side)
    assert image.dtype == mask.dtype == np.uint8
    assert image.shape == (side, side, 3) and mask.shape == (side, side)
    assert (image == again).all() and (mask == mask_again).all()
    assert set(np.unique(mask)) <= {0, 1}
    assert bool(mask.any()) == (defect is not None)


@pytest.mark.parametrize("defect", DEFECTS)
def test_areas_stay_in_the_interval_and_defects_can_be_seen(defect):
    low, high = CATALOGUE[defect].smallest, CATALOGUE[defect].largest
    for index, product in enumerate(PRODUCTS):
        image, mask = draw(0, product, defect, index, 128)
        assert low - 1 / 128**2 <= mask.mean() <= high + 1 / 128**2
        spread = image[mask == 1].astype(float).mean(0) - image[mask == 0].astype(float).mean(0)
        inner = image[mask == 1].astype(float)
        assert np.abs(spread).max() + inner.std() > 8  # changed in tone or relief


def test_sizes_reach_from_minute_to_large():
    areas = [draw(0, "metal", d, i, 128)[1].mean() for d in ("spot", "stain") for i in range(30)]
    assert min(areas) < 0.0006 and max(areas) > 0.05


def test_pictures_differ_between_seeds_and_indices():
    one, two, other = (draw(s, "wood", "blob", i, SIDE)[0] for s, i in ((0, 0), (0, 1), (1, 0)))
    assert (one != two).any() and (one != other).any()


def test_unknown_names_are_explained():
    with pytest.raises(UserError, match="no product 'glass'"):
        draw(0, "glass", None, 0, SIDE)
    with pytest.raises(UserError, match="no toy layout"):
        write("x", "nonsense")


def test_a_folder_that_cannot_be_made_is_explained(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="could not be made"):
        write(tmp_path / "file" / "toy", "mvtec", **SMALL)


@pytest.mark.parametrize("layout", READERS)
def test_every_layout_is_read_back_with_the_same_masks(tmp_path, layout):
    pictures = write(tmp_path / layout, layout, **SMALL)
    index = READERS[layout](str(tmp_path / layout))
    assert not [p for p in index.check() if p.level == "error"]
    found = {s.image.resolve(): s for s in index.samples}
    seen = 0
    for picture in pictures:
        sample = found.get((tmp_path / layout / picture.image).resolve())
        if sample is None:
            assert picture.defect is None  # some layouts do not list good images
            continue
        truth = draw(0, picture.product, picture.defect, picture.index, SIDE)[1]
        masks = [load_mask(sample, cls).numpy() for cls in sample.regions]
        union = np.bitwise_or.reduce(masks) if masks else np.zeros_like(truth)
        assert (union == truth).all()
        seen += picture.defect is not None
    assert seen == sum(p.defect is not None for p in pictures)


def test_class_folders_are_read_back(tmp_path):
    pictures = write(tmp_path / "c", "classes", **SMALL)
    index = folder.read(str(tmp_path / "c"), layout="classes")
    assert len(index) == len(pictures)
    assert set(index.classes) == set(SMALL["defects"])


def test_a_full_folder_is_refused(tmp_path):
    (tmp_path / "x").touch()
    with pytest.raises(UserError, match="not empty"):
        write(tmp_path, "mvtec", **SMALL)
    assert set(LAYOUTS) == {*READERS, *WITHOUT_MASKS}


def _write(root):
    write(root, "mvtec", **SMALL)


def test_two_processes_at_once_do_not_collide(tmp_path):
    context = multiprocessing.get_context("fork")  # spawn would import torch twice
    jobs = [context.Process(target=_write, args=(tmp_path / "toy",)) for _ in range(2)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert [j.exitcode for j in jobs] in (
        [0, 0],
        [0, 1],
        [1, 0],
    )  # 1: the other one had finished before it began
    assert [p.name for p in tmp_path.iterdir()] == ["toy"]
    assert len(list((tmp_path / "toy").rglob("*.png"))) == 2 * (4 + 3 * 4 * 2)


def test_reader_holds_classes_out(tmp_path):
    options = {
        "side": 32,
        "products": ("wood", "metal"),
        "images_per_class": 4,
        "test_per_class": 3,
        "good": 6,
    }
    tested = set()
    for fold in range(4):
        index = read(str(tmp_path), fold=fold, **options)
        names = {split: {c for _, c in index.by_class(split)} for split in ("train", "val", "test")}
        assert names["train"] == names["val"] and not names["train"] & names["test"]
        assert {len(v) for v in index.by_class("train").values()} == {2}
        assert {len(v) for v in index.by_class("test").values()} == {3}
        tested |= names["test"]
    assert tested == set(DEFECTS)
    assert len(list(Path(tmp_path).iterdir())) == 1  # all folds share the pictures
    assert {k: len(v) for k, v in index.normals("train").items()} == {"metal": 3, "wood": 3}
