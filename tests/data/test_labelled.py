"""The labelled protocol: order and augmentation by (seed, epoch, index), five-shot splits, further images."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fewspect.data.extra import Extra, content
from fewspect.data.index import Index
from fewspect.data.labelled import Labelled, LabelledDataset, chosen
from fewspect.data.module import DataModule
from fewspect.data.readers import folder
from fewspect.data.readers.toy import read
from fewspect.errors import UserError
from fewspect.types import IGNORE, Episode, Region, Sample

SIDE = 32


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    return partial(
        read, str(tmp_path_factory.mktemp("toy")), side=SIDE, products=("wood", "board"),
        defects=("hole", "stain", "thread", "blob"), images_per_class=8, test_per_class=2, good=6,
    )  # fmt: skip


def make(reader, **options):
    return DataModule(reader, protocol="labelled", **{"side": SIDE, "shot": 2, "normal_shot": 1} | options)


def equal(one: Episode, two: Episode) -> bool:
    pairs = [(getattr(one, n), getattr(two, n)) for n in Episode.__dataclass_fields__]
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


def epochs(module, number=2):
    loader = module.train_dataloader()
    found = []
    for epoch in range(number):
        loader.sampler.set_epoch(epoch)
        found.append([e for batch in loader for e in batch])
    return found


def flipped(image, mask, r):
    r.random()
    return image.flip(-1), mask.flip(-1)


def test_an_image_counts_for_the_first_class_that_it_shows(tmp_path):
    Image.new("L", (9, 9)).save(tmp_path / "empty.png")
    Image.new("L", (9, 9), 255).save(tmp_path / "full.png")
    regions = {n: (Region("file", tmp_path / f"{p}.png"),) for n, p in (("a", "empty"), ("b", "full"))}
    sample = Sample(tmp_path / "full.png", regions, 1, "p", "train")
    assert chosen(Index((sample,), ("a", "b")), "train", None, 0, 0) == [sample]


def test_items_are_a_function_of_seed_epoch_and_index(reader):
    one, two = epochs(make(reader, batch_size=2)), epochs(make(reader, batch_size=2, workers=1))
    assert all(equal(a, b) for x, y in zip(one, two, strict=True) for a, b in zip(x, y, strict=True))
    paths = [[e.paths for e in epoch] for epoch in one]
    assert paths[0] != paths[1], "another order every epoch"
    assert sorted(paths[0]) == sorted(paths[1])
    assert [e.paths for e in epochs(make(reader, batch_size=2, seed=1))[0]] != paths[0]


def test_resuming_goes_on_at_the_very_item(reader):
    whole = epochs(make(reader, batch_size=2), 2)
    module = make(reader, batch_size=2)
    module.resume(1, 3)
    assert all(equal(a, b) for a, b in zip(whole[1][6:], epochs(module)[1], strict=True))


def test_an_image_whose_defect_vanishes_by_squashing_is_not_good(tmp_path):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    mask = np.zeros((64, 64), np.uint8)
    mask[1, 1] = 255  # between the pixels that the nearest of 8 x 8 are taken from
    Image.fromarray(mask).save(tmp_path / "masks/a.png")
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(tmp_path / "images/a.png")
    index = folder.read(str(tmp_path))
    item = LabelledDataset(index.samples, index.classes, side=8)[0]
    assert not item.query_mask.any()
    assert int(item.query_label) == 1


def test_augmentation_changes_image_and_labels_alike(reader):
    index = make(reader).index
    samples = [s for s in index.samples if s.regions][:4]
    plain = LabelledDataset(samples, index.classes, side=SIDE)
    turned = LabelledDataset(samples, index.classes, side=SIDE, augment=flipped)
    for k in range(4):
        assert torch.equal(turned[k].query_image, plain[k].query_image.flip(-1))
        assert torch.equal(turned[k].query_mask, plain[k].query_mask.flip(-1))
        assert plain[k].query_mask.any()
    assert all(equal(a, b) for a, b in zip(plain, turned, strict=True)), "a generator sees them as they are"
    assert [e.paths[0] for e in plain] == [str(s.image) for s in samples]
    drawn = make(reader)
    items = [drawn.dataset("train")[k] for k in range(8)]
    bare = {e.paths: e for e in drawn.dataset("train")}
    assert any(not torch.equal(e.query_image, bare[e.paths].query_image) for e in items)


def test_few_shots_learn_and_all_others_of_these_classes_are_asked(reader):
    module = make(reader, shot=2, normal_shot=1)
    train = list(module.dataset("train"))
    shown = [(e.product, e.shown[0]) for e in train if e.shown]
    assert len(shown) == 2 * 2 * 3, "two of each of two products' three trained classes"
    assert all(shown.count(pair) == 2 for pair in shown)
    assert len(train) == len(shown) + 2
    tested = list(module.dataset("test"))
    assert not {e.paths for e in train} & {e.paths for e in tested}
    assert {(e.product, e.shown[0]) for e in tested if e.shown} == set(shown), (
        "held-out classes are not asked"
    )
    assert sum(bool(e.shown) for e in tested) == 2 * 3 * 6
    assert sum(not e.shown for e in tested) == 2 * 2, "the good images of the test split"
    for e in tested:
        assert e.query_image.dtype == torch.uint8
        assert e.query_mask.shape == e.query_image.shape[0:1] + e.query_image.shape[2:]
        assert set(e.query_mask.unique().tolist()) <= {0, 1 + e.classes.index(e.shown[0])} if e.shown else {0}
    assert not module.info.detect


def test_groups_are_not_torn_apart(reader):
    index = make(reader).index
    grouped = index.with_samples(
        replace(s, group=f"{s.product}{s.label}{int(s.image.stem) // 2}") for s in index.samples
    )
    rule = Labelled(2, 0, 0)
    train, tested = rule.samples(grouped, "train"), rule.samples(grouped, "test")
    assert not {s.group for s in train} & {s.group for s in tested}
    assert tested


def test_where_nothing_is_left_to_ask_it_is_said(reader):
    with pytest.raises(UserError, match=r"No image is left to ask .*"):
        make(reader, shot=None).require_test()
    make(reader, shot=2).require_test()
    everything = make(reader, shot=None)
    assert {e.shown[0] for e in everything.dataset("test") if e.shown} == {"blob"}, "its own split"
    assert len(everything.dataset("train")) == 2 * 3 * 6 + 2


def test_defects_are_taken_where_they_are(reader):
    """MVTec layout: the training split has good images alone."""
    index = make(reader).index
    moved = index.with_samples(replace(s, split="test" if s.label else s.split) for s in index.samples)
    rule = Labelled(3, 2, 0)
    learned = [s for s in rule.samples(moved, "train") if s.regions]
    assert len(learned) == 2 * (3 * 3 + 2), "three of each class, two of the one that has no more"
    assert {c for s in rule.samples(moved, "train") for c in s.regions} == set(index.classes)


def test_images_without_truth_can_be_asked_about(reader):
    index = make(reader).index
    unknown = Index(tuple(replace(s, regions={}, label=-1, split="") for s in index.samples[:3]))
    data = Labelled(5, 0, 0).dataset(unknown, "predict", SIDE, None, None)
    assert [int(e.query_label[0]) for e in data] == [-1] * 3
    assert all((e.query_mask == IGNORE).all() for e in data)


# -- further images ------------------------------------------------------------------------------------------


def written(folder: Path, classes, number=6, seen=()):
    """A generated set: sample k shows class k modulo their number."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    rows = ["image,mask,product"]
    for k in range(number):
        mask = np.zeros((SIDE, SIDE), np.uint8)
        mask[4:8, 4:8] = 1 + k % len(classes)
        Image.fromarray(np.full((SIDE, SIDE, 3), 10 * k, np.uint8)).save(folder / f"images/{k}.png")
        Image.fromarray(mask).save(folder / f"masks/{k}.png")
        rows.append(f"images/{k}.png,masks/{k}.png,wood")
    (folder / "index.csv").write_text("\n".join(rows) + "\n")
    manifest = {"kind": "fewspect-generated", "format": 1, "classes": list(classes), "seen": list(seen)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return str(folder)


def test_further_images_join_by_the_names_of_their_classes(reader, tmp_path):
    root = written(tmp_path / "made", ("stain", "hole"))
    alone, more = make(reader), make(reader, extra_root=root)
    assert len(more.dataset("train")) == len(alone.dataset("train")) + 6
    added = [e for e in more.dataset("train") if root in e.paths[0]]
    classes = more.info.classes
    assert [[*{*e.query_mask.unique().tolist()} - {0}] for e in added] == [
        [1 + classes.index(("stain", "hole")[k % 2])] for k in range(6)
    ]
    assert [e.paths for e in more.dataset("test")] == [e.paths for e in alone.dataset("test")]
    real = len(alone.dataset("train"))
    part = make(reader, extra_root=root, extra_ratio=3 / real).dataset("train")
    assert len(part) == real + 3
    again = make(reader, extra_root=root, extra_ratio=3 / real).dataset("train")
    assert [e.paths for e in part] == [e.paths for e in again]


def test_what_does_not_fit_is_refused(reader, tmp_path):
    root = written(tmp_path / "strange", ("stain", "rust"))
    with pytest.raises(UserError, match="classes that the data set has not: rust"):
        make(reader, extra_root=root).dataset("train")
    with pytest.raises(UserError, match=r"extra_ratio=0"):
        make(reader, extra_root=root, extra_ratio=0.0).dataset("train")
    tested = make(reader).dataset("test")[0].paths[0]
    leaky = written(tmp_path / "leaky", ("stain",), seen=[content(Path(tested))])
    with pytest.raises(UserError, match="1 images of the test were shown to the generator"):
        make(reader, extra_root=leaky).dataset("train")
    learned = make(reader).dataset("train").samples[0].image
    honest = written(tmp_path / "honest", ("stain",), seen=[content(learned)])
    assert make(reader, extra_root=honest).dataset("train")


def test_more_than_there_are_is_said(tmp_path, caplog):
    root = written(tmp_path / "few", ("stain",), number=2)
    assert len(Extra(root, 5.0).samples(("stain",), 4, [], 0)) == 2
    assert "asks for 20 further images" in caplog.text
