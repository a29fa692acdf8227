import pickle
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from fewspect.data.index import Index, load_image, load_mask
from fewspect.data.splits import fold_classes, hold_out, split_by_group
from fewspect.errors import UserError
from fewspect.types import Region, Sample

RNG = np.random.default_rng(1)


def write(path, height=24, width=32):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 255, (height, width), dtype=np.uint8)).save(path)
    return path


def write_mask(path, area, height=24, width=32):
    mask = np.zeros(height * width, np.uint8)
    mask[:area] = 255
    Image.fromarray(mask.reshape(height, width)).save(path)
    return path


@pytest.fixture
def index(tmp_path):
    samples = []
    for i, (cls, area, split) in enumerate(
        [("a", 5, "train"), ("a", 0, "train"), ("b", 24 * 32, "test"), ("", 0, "train"), ("a", 7, "test")]
    ):
        regions = {cls: (Region("file", write_mask(tmp_path / f"{i}_m.png", area)),)} if cls else {}
        label = {"": 0, "a": 1, "b": 2}[cls]
        samples.append(Sample(write(tmp_path / f"{i}.png"), regions, label, "part", split, f"g{i}"))
    return Index(tuple(samples), ("a", "b"), frozenset({"segment"}))


def test_classes_and_normals(index):
    assert {k: len(v) for k, v in index.by_class("train").items()} == {("part", "a"): 1}
    assert {k: len(v) for k, v in index.by_class().items()} == {("part", "a"): 2, ("part", "b"): 1}
    assert [s.image.name for s in index.normals("train")["part"]] == ["3.png"]
    assert index.normals("test") == {}
    assert index.products == ("part",) and index.splits == {"test": 2, "train": 3}
    assert [s.image.name for s in index.filter(split="test", label=2).samples] == ["2.png"]
    assert index.facts(index.samples[0]).fraction("a") == 5 / (24 * 32)


def test_loaders(index):
    sample = index.samples[0]
    assert load_image(sample).shape == (3, 24, 32)
    assert load_mask(sample, "a").sum() == 5 and load_mask(sample, "b").sum() == 0


def test_facts_are_measured_once(index):
    before = index.by_class()
    for sample in index.samples:
        sample.image.unlink()
    assert index.by_class() == before
    assert pickle.loads(pickle.dumps(index)).by_class() == before


def test_check_collects_everything(index, tmp_path):
    bad = [
        Sample(tmp_path / "absent.png", label=0, split="train"),
        Sample(write(tmp_path / "tiny.png", 3, 3), label=0, split="train"),
        Sample(write(tmp_path / "odd.png", 20, 20), index.samples[0].regions, 1, split="train"),
        Sample(write(tmp_path / "nomask.png"), {"a": (Region("file", tmp_path / "none.png"),)}, 1),
    ]
    raw = (tmp_path / "0.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(raw[: len(raw) // 2])
    (tmp_path / "copy.png").write_bytes(raw)
    bad += [Sample(tmp_path / "cut.png", split="train"), Sample(tmp_path / "copy.png", label=0, split="test")]
    whole = index.with_samples([*index.samples, *bad])
    found = {(p.path.split("/")[-1], p.kind, p.level) for p in whole.check()}
    assert found == {
        ("1.png", "empty-mask", "warning"),
        ("2.png", "full-mask", "warning"),
        ("absent.png", "unreadable", "error"),
        ("tiny.png", "too-small", "error"),
        ("odd.png", "wrong-size", "error"),
        ("nomask.png", "bad-mask", "error"),
        ("cut.png", "unreadable", "error"),
        ("0.png", "duplicate", "warning"),
    }
    with pytest.raises(UserError, match="5 files cannot be used") as caught:
        whole.refuse("strict")
    assert all(name in str(caught.value) for name in ("absent.png", "odd.png", "cut.png"))
    left = whole.refuse("skip")
    assert len(left) == 6 and left.problems[-1].detail == "5 of 11 images skipped"
    kinds = {p.kind for p in left.problems}
    assert kinds == {"empty-mask", "full-mask", "unreadable", "too-small", "wrong-size", "bad-mask"} | {
        "duplicate",
        "skipped",
    }
    kept = index.refuse("strict")
    assert kept.samples == index.samples and [p.kind for p in kept.problems] == ["empty-mask", "full-mask"]


def test_strict_lists_ten(tmp_path):
    gone = Index(tuple(Sample(tmp_path / f"{i:02}.png") for i in range(13)))
    with pytest.raises(UserError, match="13 files") as caught:
        gone.refuse()
    assert (
        "09.png" in str(caught.value) and "10.png" not in str(caught.value) and "3 more" in str(caught.value)
    )
    with pytest.raises(UserError, match="none of the 13"):
        gone.refuse("skip")


def test_describe_shows_areas(index):
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    console.print(index.describe())
    text = console.export_text()
    assert "0.651" in text and "(good)" in text and "a (no mask)" in text


def test_mask_that_fits_only_the_unrotated_image(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / "x.jpg", exif=exif)
    for name, (height, width) in {"stored.png": (20, 30), "shown.png": (30, 20)}.items():
        write_mask(tmp_path / name, 4, height, width)
        sample = Sample(tmp_path / "x.jpg", {"a": (Region("file", tmp_path / name),)}, 1)
        assert load_image(sample).shape[1:] == load_mask(sample, "a").shape == (height, width)
        kinds = [p.kind for p in Index((sample,), ("a",)).check()]
        assert kinds == (["unrotated"] if name == "stored.png" else [])


def labels_only(classes, count=8, groups=4):
    return Index(
        tuple(
            Sample(f"{c}{i}.png", {c: (Region("box"),)} if c else {}, k, "p", group=f"{c}{i % groups}")
            for k, c in enumerate(["", *classes])
            for i in range(count)
        ),
        tuple(classes),
    )


def test_split_by_group_keeps_groups_and_balances_classes():
    index = split_by_group(labels_only(["a", "b", "c"]))
    sides = {}
    for sample in index.samples:
        assert sides.setdefault(sample.group, sample.split) == sample.split
    for label in range(4):
        assert [s.split for s in index.samples if s.label == label].count("train") == 4
    assert index == split_by_group(labels_only(["a", "b", "c"]))


def test_hold_out_moves_classes_and_drops_shared_groups():
    index = labels_only(["a", "b"])
    shared = Sample("x.png", {"b": (Region("box"),)}, 2, "p", group="a0")
    both = Sample("y.png", {"a": (Region("box"),), "b": (Region("box"),)}, 1, "p")
    index = hold_out(index.with_samples([*index.samples, shared, both]), ["a"])
    test = [s for s in index.samples if s.split == "test"]
    assert {c for s in test for c in s.regions} == {"a"}
    assert {index.classes[s.label - 1] for s in test if s.label} == {"a"}
    other = hold_out(labels_only(["a", "b"]).with_samples([both, replace(both, label=0)]), ["b"])
    assert [(s.label, sorted(s.regions)) for s in other.samples] == [(2, ["b"]), (0, ["b"])]
    assert all("a" not in s.regions for s in index.samples if s.split == "train")
    assert "x.png" not in {s.image for s in index.samples} and index.problems[-1].kind == "shared-group"
    assert {s.split for s in index.samples if s.label == 0} == {"train", "test"}
    with pytest.raises(UserError, match="unknown test classes: z"):
        hold_out(index, ["z"])


def test_folds_partition_the_classes():
    parts = [fold_classes(["c", "a", "b", "d"], fold, 3) for fold in range(3)]
    assert parts == [("a", "d"), ("b",), ("c",)]
    for fold, folds in ((3, 3), (0, 5), (0, 1)):
        with pytest.raises(UserError):
            fold_classes(["c", "a", "b", "d"], fold, folds)
