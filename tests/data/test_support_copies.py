"""Copies of a picture in one support are one picture with a count; masks of another size on request."""

import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fewspect.data.crops import Cropper
from fewspect.data.entries import class_entries, normal_entries
from fewspect.data.episodes import EpisodeDataset, Recipe
from fewspect.data.index import load_mask
from fewspect.data.masks import rasterise
from fewspect.data.readers import folder, mvtec
from fewspect.errors import UserError
from fewspect.types import Region

SIZE = (40, 50)


def picture(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, SIZE, dtype=np.uint8)).save(path)


def spot(path, top, size=SIZE, side=3):
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros(size, np.uint8)
    mask[top : top + side, 10 : 10 + side] = 255
    Image.fromarray(mask).save(path)


def tree(root, names):
    """Support pictures by (seed, row of the defect); one query."""
    for i, (seed, top) in enumerate(names):
        picture(root / "support" / "image" / f"{i}.png", seed)
        spot(root / "support" / "mask" / f"{i}.png", top)
    picture(root / "query" / "image" / "q.png", 99)
    spot(root / "query" / "true_label" / "q.png", 5)
    return folder.read(str(root))


def episode(index, shot, *, normal_shot=0, crops=4, parity=False):
    """The one test episode."""
    if shot:
        table = class_entries(index, "query", "support", shot, normal_shot)
    else:
        table = normal_entries(index, "test", normal_shot)
    recipe = Recipe(shot, normal_shot, whole=False)
    cropper = Cropper(32, 16, crops, parity=parity)
    return EpisodeDataset(table, "test", recipe, cropper, train=False)[0]


def counts_of(found):
    """(image, mask) of every view -> its count."""
    rows = zip(found.support_image, found.support_mask, found.support_count, strict=True)
    return {(i.numpy().tobytes(), m.numpy().tobytes()): float(c) for i, m, c in rows}


def test_copies_are_one_picture_with_a_count(tmp_path):
    one = episode(tree(tmp_path / "a", [(1, 20)]), 1)
    three = episode(tree(tmp_path / "b", [(1, 20)] * 3), 3)
    assert three.support_count.sum() == 3 * one.support_count.sum() == 12
    assert counts_of(three) == {view: 3 * count for view, count in counts_of(one).items()}
    assert len(three.support_image) == len(one.support_image) and (three.support_label == 1).all()
    assert len(three.paths) == 4  # the query and every file


def test_the_same_file_drawn_twice_counts_twice(tmp_path):
    index = tree(tmp_path, [(1, 20)])
    twice = episode(index, 2)  # there is one support image only
    assert twice.support_count.sum() == 8 and (twice.support_count % 2 == 0).all()


def test_parity_draws_copies_one_by_one(tmp_path):
    found = episode(tree(tmp_path, [(1, 20)] * 3), 3, parity=True)
    assert found.support_count.tolist() == [1] * 12 and len(counts_of(found)) > 4


def test_copies_among_others(tmp_path):
    index = tree(tmp_path, [(1, 20), (2, 20), (1, 20)])
    found = episode(index, 3)
    assert found.support_count.sum() == 12
    doubled = found.support_count[found.support_count % 2 == 0].sum()
    assert doubled >= 8


@pytest.mark.parametrize("second", [(1, 25), (2, 20)])
def test_another_mask_or_another_picture_is_no_copy(tmp_path, second):
    both = episode(tree(tmp_path, [(1, 20), second]), 2, crops=1)
    assert both.support_count.tolist() == [1, 1]


def test_copies_of_normal_supports(tmp_path):
    for i, seed in enumerate((1, 1, 1, 2)):
        picture(tmp_path / "x" / "train" / "good" / f"{i}.png", seed)
    picture(tmp_path / "x" / "test" / "bad" / "q.png", 5)
    found = episode(mvtec.read(str(tmp_path)), 0, normal_shot=4, crops=1)
    assert sorted(found.support_count.tolist()) == [1, 3] and (found.support_label == 0).all()


def test_a_file_that_changes_is_compared_again(tmp_path):
    index = tree(tmp_path, [(1, 20), (1, 20)])
    assert episode(index, 2, crops=1).support_count.tolist() == [2]
    picture(tmp_path / "support" / "image" / "1.png", 2)
    assert episode(index, 2, crops=1).support_count.tolist() == [1, 1]


def test_two_copies_equal_one_picture_with_a_count(tmp_path):
    """Parity: the views are those of the single picture, only counted twice."""
    index = tree(tmp_path / "a", [(1, 20)])
    single, double = episode(index, 1, crops=1), episode(index, 2, crops=1)
    assert torch.equal(double.support_count, 2 * single.support_count)
    assert double.support_image.shape == single.support_image.shape
    for part in ("image", "mask"):
        place = tmp_path / "a" / "support" / part
        shutil.copy(place / "0.png", place / "1.png")
    copied = episode(folder.read(str(tmp_path / "a")), 2, crops=1)
    assert copied.support_count.tolist() == [2]


def masks_of(root, size):
    picture(root / "images" / "a.png", 1)
    spot(root / "masks" / "a.png", 0, size)
    return str(root)


def test_another_size_is_an_error_that_names_both(tmp_path):
    root = masks_of(tmp_path, (20, 25))
    with pytest.raises(UserError, match=r"20 x 25, its image 40 x 50"):
        folder.read(root).refuse("strict")
    (problem,) = (p for p in folder.read(root).check() if p.level == "error")
    assert problem.kind == "wrong-size"


@pytest.mark.parametrize(("size", "area"), [((20, 25), 36), ((80, 100), 4), ((40, 25), 18)])
def test_resized_on_request(tmp_path, size, area):
    index = folder.read(masks_of(tmp_path, size), resize_masks=True)
    assert not [p for p in index.check() if p.level == "error"]
    (sample,) = index.samples
    mask = load_mask(sample, "defect")
    assert mask.shape == SIZE and index.facts(sample).area == {"defect": int(mask.sum())} == {"defect": area}
    assert sample.label == 1


def test_swapped_sides_are_never_stretched(tmp_path):
    index = folder.read(masks_of(tmp_path, (50, 40)), resize_masks=True)
    assert [p.kind for p in index.check() if p.level == "error"] == ["wrong-size"]
    with pytest.raises(UserError, match="height and width are swapped"):
        load_mask(index.samples[0], "defect")


@settings(deadline=None, max_examples=60)
@given(
    st.tuples(st.integers(1, 30), st.integers(1, 30)),
    st.tuples(st.integers(1, 30), st.integers(1, 30)),
    st.integers(0, 10**6),
)
def test_no_defect_is_lost_and_none_is_made(tmp_path_factory, old, new, seed):
    if new == old[::-1] and new != old:
        return
    path = tmp_path_factory.getbasetemp() / "one.npy"
    mask = np.random.default_rng(seed).random(old) < 0.1
    np.save(path, mask)
    found = rasterise((Region("file", path),), *new, resize=True).numpy().astype(bool)
    assert found.shape == new and found.any() == mask.any()
    rows, columns = (np.arange(n) * o // n for n, o in zip(new, old, strict=True))
    nearest = mask[rows][:, columns]
    assert (found >= nearest).all()
    if new[0] >= old[0] and new[1] >= old[1]:
        assert (found == nearest).all()
