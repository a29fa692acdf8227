import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from fewspect.data.readers import coco, defect_spectrum, folder, magnetic_tile, mvtec, vision
from fewspect.data.readers.source import rebase
from fewspect.data.readers.table import read_rows
from fewspect.errors import UserError

RNG = np.random.default_rng(2)


def image(path, size=(16, 20)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 255, size, dtype=np.uint8)).save(path)
    return path


def mask(path, value=255, rows=3, size=(16, 20)):
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.zeros(size, np.uint8)
    array[:rows] = value
    Image.fromarray(array).save(path)
    return path


def areas(index):
    return {k: sum(index.facts(s).area[k[1]] for s in v) for k, v in index.by_class().items()}


def counts(index, split=None):
    return {k[1]: len(v) for k, v in index.by_class(split).items()}


def mvtec_tree(root):
    for i in range(3):
        image(root / "train" / "good" / f"{i}.png")
    image(root / "test" / "good" / "0.png")
    for cls in ("bent", "cut"):
        for i in range(2):
            image(root / "test" / cls / f"{i}.png")
            mask(root / "ground_truth" / cls / f"{i}_mask.png")
    return root


def test_mvtec(tmp_path):
    mvtec_tree(tmp_path / "nut")
    (tmp_path / "readme.txt").write_text("hello")
    for index in (mvtec.read(str(tmp_path)), folder.read(str(tmp_path)), folder.read(str(tmp_path / "nut"))):
        assert index.splits == {"test": 5, "train": 3} and index.classes == ("bent", "cut")
        assert areas(index) == {("nut", "bent"): 120, ("nut", "cut"): 120}
        assert {k: len(v) for k, v in index.normals("train").items()} == {"nut": 3} and not index.problems
    assert counts(mvtec.read(str(tmp_path), test_classes=["cut"]), "train") == {"bent": 2}
    with pytest.raises(UserError, match="no category bolt"):
        mvtec.read(str(tmp_path), category="bolt")
    (tmp_path / "nut" / "ground_truth" / "cut" / "0_mask.png").unlink()
    assert [p.kind for p in mvtec.read(str(tmp_path)).problems] == ["missing-mask"]


def test_mvtec_without_ground_truth(tmp_path):
    image(tmp_path / "x" / "train" / "good" / "0.png")
    image(tmp_path / "x" / "test" / "bad" / "0.png")
    index = mvtec.read(str(tmp_path))
    assert [p.kind for p in index.problems] == ["no-ground-truth"] and "segment" not in index.tasks
    assert [s.label for s in index.samples] == [0, 1]


def test_pairs(tmp_path):
    for i in range(4):
        image(tmp_path / "Images" / f"{i}.JPG")
        mask(tmp_path / "masks" / f"{i}_mask.png", rows=i)
    index = folder.read(str(tmp_path), class_names=["dent"])
    assert counts(index) == {"dent": 3} and [s.label for s in index.samples] == [0, 1, 1, 1]
    assert index.splits == {"test": 2, "train": 2}
    assert folder.read(str(tmp_path), mask_invert=True).facts(
        folder.read(str(tmp_path), mask_invert=True).samples[1]
    ).area == {"defect": 15 * 20}


def test_pairs_problems_name_both(tmp_path):
    for name in ("a.png", "a.jpg", "b.png", "c.png"):
        image(tmp_path / "image" / name)
    for name in ("a.png", "b.png", "b_mask.png", "lost.png"):
        mask(tmp_path / "mask" / name)
    index = folder.read(str(tmp_path))
    found = {p.kind: f"{p.path} {p.detail}" for p in index.problems}
    assert set(found) == {"same-stem", "two-masks", "orphan-mask", "missing-mask"}
    assert "a.jpg" in found["same-stem"] and "a.png" in found["same-stem"]
    assert "b.png" in found["two-masks"] and "b_mask.png" in found["two-masks"]
    assert "lost.png" in found["orphan-mask"] and "c.png" in found["missing-mask"]


def test_an_accent_is_the_same_however_it_is_stored(tmp_path):
    composed, apart = "St\u00f6rung", "Sto\u0308rung"  # Windows and Linux; macOS
    image(tmp_path / "images" / apart / f"{apart}.png")
    mask(tmp_path / "masks" / composed / f"{composed}_mask.png")
    (sample,) = folder.read(str(tmp_path)).refuse("strict").samples
    assert sample.regions and sample.label == 1


def test_index_masks_and_class_folds(tmp_path):
    for i in range(6):
        image(tmp_path / "images" / f"{i}.png")
        mask(tmp_path / "labels" / f"{i}.png", value=1 + i % 2, rows=2)
    index = folder.read(str(tmp_path), mask_type="index", class_names=["x", "y"])
    assert areas(index) == {(tmp_path.name, "x"): 120, (tmp_path.name, "y"): 120}
    held = folder.read(str(tmp_path), mask_type="index", class_names=["x", "y"], fold=1, folds=2)
    assert counts(held, "train") == {"x": 3} and counts(held, "test") == {"y": 3}
    short = folder.read(str(tmp_path), mask_type="index", class_names=["x"])
    assert {p.kind for p in short.problems} == {"unknown-class"}


def test_an_index_mask_that_cannot_be_used_makes_no_good_image(tmp_path):
    for i, value in enumerate((1, 7, 0, 1)):
        image(tmp_path / "images" / f"{i}.png")
        mask(tmp_path / "masks" / f"{i}.png", value=value)
    broken = tmp_path / "masks" / "0.png"
    broken.write_bytes(broken.read_bytes()[:30])
    index = folder.read(str(tmp_path), mask_type="index", class_names=["x"])
    assert [(s.label, len(s.regions)) for s in index.samples] == [(-1, 0), (-1, 0), (0, 0), (1, 1)]
    assert [(p.kind, p.path) for p in index.problems] == [
        ("bad-mask", str(tmp_path / "images" / "0.png")),
        ("unknown-class", str(tmp_path / "images" / "1.png")),
    ]
    assert [s.image.name for s in index.refuse("skip").samples] == ["2.png", "3.png"]


def test_do_not_care_is_said_to_be_background(tmp_path):
    image(tmp_path / "images" / "0.png")
    array = np.ones((16, 20), np.uint8)
    array[8:] = 255
    (tmp_path / "masks").mkdir()
    Image.fromarray(array).save(tmp_path / "masks" / "0.png")
    index = folder.read(str(tmp_path), mask_type="index")
    assert [(p.kind, "counted as background" in p.detail) for p in index.problems] == [("void", True)]
    assert index.facts(index.samples[0]).area == {"class_1": 8 * 20}


def test_the_pixel_cap_reaches_masks_and_coco_images(tmp_path):
    for i in range(2):
        image(tmp_path / "own" / "images" / f"{i}.png")
        mask(tmp_path / "own" / "masks" / f"{i}.png", size=(32, 40))
    coco_object(tmp_path / "vision", "Other")
    for mask_type in ("binary", "index"):
        options = {"mask_type": mask_type, "resize_masks": True, "max_pixels": 16 * 20}
        found = folder.read(str(tmp_path / "own"), **options).check()
        errors = {p.path: p.detail for p in found if p.level == "error"}
        assert len(errors) == 2 and all("1280 pixels" in text for text in errors.values())
    with pytest.raises(UserError, match=r"no images found.*320 pixels"):
        vision.read(str(tmp_path / "vision"), test_objects=["Other"], max_pixels=100)


def test_class_folders(tmp_path):
    for cls in ("good", "a b", "c"):
        for i in range(4):
            image(tmp_path / cls / f"{i}.png")
    (tmp_path / "empty").mkdir()
    index = folder.read(str(tmp_path), layout="classes")
    assert index.classes == ("a b", "c") and Counter(s.label for s in index.samples) == {0: 4, 1: 4, 2: 4}
    assert [p.kind for p in index.problems] == ["empty-class"] and "segment" not in index.tasks
    image(tmp_path / "A B" / "0.png")
    assert "similar-classes" in {p.kind for p in folder.read(str(tmp_path)).problems}


def test_support_and_query(tmp_path):
    image(tmp_path / "p" / "support" / "image" / "s.png")
    mask(tmp_path / "p" / "support" / "mask" / "s_mask.png")
    image(tmp_path / "p" / "query" / "image" / "q.png")
    index = folder.read(str(tmp_path))
    assert index.splits == {"query": 1, "support": 1} and index.products == ("p",) and not index.problems
    assert counts(index, "support") == {"defect": 1} and index.filter(split="query").samples[0].label == -1
    image(tmp_path / "p" / "support" / "image" / "t.png")
    with pytest.raises(UserError, match=r"t\.png"):
        folder.read(str(tmp_path)).refuse("strict")
    assert len(folder.read(str(tmp_path)).refuse("skip")) == 2


def test_tables(tmp_path):
    image(tmp_path / "d" / "a.png")
    image(tmp_path / "d" / "b.png")
    mask(tmp_path / "d" / "a_m.png")
    lines = [r"Image;Mask;Class;Split", r"C:\data\d\a.png;d\a_m.png;dent;support", "/x/d/b.png;;good;query"]
    rows = "\r\n".join([*lines, "no.png;;good;query", ""])
    (tmp_path / "index.csv").write_bytes(b"\xef\xbb\xbf" + rows.encode())
    index = folder.read(str(tmp_path), layout="table")
    assert [(s.image.name, s.label, s.split) for s in index.samples] == [
        ("a.png", 1, "support"),
        ("b.png", 0, "query"),
    ]
    assert counts(index) == {"dent": 1} and [p.kind for p in index.problems] == ["missing-image"]
    assert folder.read(str(tmp_path)).samples == index.samples, "one folder beside a table holds its pictures"
    image(tmp_path / "e" / "c.png")
    with pytest.raises(UserError, match="several layouts fit"):
        folder.read(str(tmp_path))
    (tmp_path / "index.csv").write_text("image\n../secret.png\n")
    with pytest.raises(UserError, match="leaves the data folder"):
        folder.read(str(tmp_path), layout="table")
    (tmp_path / "list.json").write_text(json.dumps([{"image": "d/a.png", "label": 3}]))
    index = folder.read(str(tmp_path), layout="table", table="list.json")
    assert index.classes == ("class_3",)


def table(root, *rows):
    for name in "abcdef":
        image(root / "d" / f"{name}.png")
    (root / "index.csv").write_text("\n".join(rows))
    return root


def test_a_row_without_split_does_not_undo_the_others(tmp_path):
    rows = ["image,label,split", "d/a.png,x,Train", "d/b.png,good,validation", "d/c.png,x,", "d/d.png,x,TEST"]
    index = folder.read(str(table(tmp_path, *rows)))
    assert [s.split for s in index.samples] == ["train", "val", "", "test"]
    with pytest.raises(UserError, match=r"c\.png: belongs to no split"):
        index.refuse("strict")
    assert index.refuse("skip").splits == {"test": 1, "train": 1, "val": 1}
    assert set(folder.read(str(tmp_path), test_classes=["x"]).splits) == {"test", "train"}  # another split
    table(tmp_path, "image,label,split", "d/a.png,x,lot7")
    with pytest.raises(UserError, match=r"index\.csv: there is no split 'lot7'"):
        folder.read(str(tmp_path))


def test_rows_of_one_image_are_one_sample(tmp_path):
    for name in ("m", "n"):
        mask(tmp_path / f"{name}.png", rows=2)
    drawn = ["d/a.png,m.png,x,g", "d/a.png,n.png,y,", "d/b.png,,good,", "d/c.png,,x,", "d/c.png,,y,"]
    index = folder.read(str(table(tmp_path, "image,mask,label,group", *drawn)))
    assert [(s.image.stem, sorted(s.regions), s.label) for s in index.samples] == [
        ("a", ["x", "y"], 1),
        ("b", [], 0),
        ("c", [], 1),
    ]
    assert index.samples[0].group == "g" and [p.kind for p in index.problems] == ["several-labels"]
    table(tmp_path, "image,label,split", "d/a.png,x,train", "d/a.png,y,test", "d/b.png,x,test")
    with pytest.raises(UserError, match=r"a\.png: rows put it into train and test"):
        folder.read(str(tmp_path)).refuse("strict")


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("index.json", '[{"image": "d/a.png"}, {"mask": "d/a.png"}]', "a record without image"),
        ("index.csv", 'image,label\nd/a.png,"x\n' + "d/b.png,y\n" * 20000, "cannot be cut into columns"),
    ],
)
def test_broken_tables_end_in_two_lines(tmp_path, name, text, match):
    table(tmp_path).joinpath("index.csv").unlink()
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=match):
        folder.read(str(tmp_path), layout="table")


def test_readers_of_class_folds_refuse_other_words(tmp_path):
    mvtec_tree(tmp_path / "nut")
    for read in (mvtec.read, folder.read):
        with pytest.raises(UserError, match="fold=all does not exist"):
            read(str(tmp_path), fold="all")


@pytest.mark.parametrize(("third", "splits"), [(None, {"test": 2, "train": 2}), ("Test", None)])
def test_pairs_divided_by_folders(tmp_path, third, splits):
    for side in filter(None, ("train", "val", third)):
        for i in range(2):
            image(tmp_path / "images" / side / f"{side}{i}.png")
            mask(tmp_path / "masks" / side / f"{side}{i}.png", rows=i)
    index = folder.read(str(tmp_path))
    assert index.splits == (splits or {"test": 2, "train": 2, "val": 2}) and index.classes == ("defect",)
    assert index.products == (tmp_path.name,) and [s.label for s in index.filter(split="train").samples] == [
        0,
        1,
    ]
    assert all(s.split in str(s.image).lower() or "/val/" in str(s.image) for s in index.samples)
    assert [p.kind for p in index.problems] == ["val-is-test"] * (third is None)
    with pytest.raises(UserError, match="no products"):
        folder.read(str(tmp_path), layout="mvtec")


def test_pairs_divided_by_folders_then_classes(tmp_path):
    for side in ("train", "test"):
        image(tmp_path / "images" / side / "good" / "0.png")
        image(tmp_path / "images" / side / "dent" / "1.png")
        mask(tmp_path / "masks" / side / "dent" / "1.png")
    index = folder.read(str(tmp_path))
    assert index.classes == ("dent",) and index.splits == {"test": 2, "train": 2} and not index.problems
    assert counts(index, "test") == {"dent": 1} and set(index.normals("train")) == {tmp_path.name}


def test_no_path_leaves_the_root(tmp_path):
    inside = tmp_path / "root"
    image(inside / "x" / "a.png")
    image(tmp_path / "secret.png")
    assert rebase(inside, r"D:\old\x\a.png") == rebase(inside, "/old/x/a.png") == inside / "x" / "a.png"
    assert rebase(inside, str(tmp_path / "secret.png")) is None
    assert (
        rebase(inside, "a\0b") is None and rebase(inside, "n" * 5000) is None and rebase(inside, "") is None
    )
    for text in ("../secret.png", r"x\..\..\secret.png"):
        with pytest.raises(UserError, match="leaves"):
            rebase(inside, text)


def test_empty_missing_and_unknown(tmp_path):
    with pytest.raises(UserError, match="no known layout"):
        folder.read(str(tmp_path))
    with pytest.raises(UserError, match="not found"):
        folder.read(str(tmp_path / "absent"))
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        folder.read(str(tmp_path / "file"))


def coco_object(root, name, count=2, split="train"):
    base = root / name / split
    images, notes = [], []
    for i in range(count):
        image(base / f"{i}.png")
        images.append({"id": 10 + i, "file_name": f"{i}.png", "width": 20, "height": 16})
        notes.append(
            {"id": i, "image_id": 10 + i, "category_id": 4, "segmentation": [[2, 2, 6, 2, 6, 5, 2, 5]]}
        )
    content = {
        "images": images,
        "annotations": notes[:-1],
        "categories": [{"id": 0, "name": "all"}, {"id": 4, "name": "pit"}],
    }
    (base / "_annotations.coco.json").write_text(json.dumps(content))


def test_vision(tmp_path):
    for name in ("Console", "PCB_1", "Other"):
        coco_object(tmp_path, name)
    coco_object(tmp_path, "Console", 3, "val")
    index = vision.read(str(tmp_path), fold=0)
    assert areas(index) == {("Console", "pit"): 60, ("PCB_1", "pit"): 20}
    assert {s.product: s.split for s in index.samples} == {"Console": "train", "PCB_1": "test"}
    assert {k: len(v) for k, v in index.normals().items()} == {"Console": 2, "PCB_1": 1}
    kinds = Counter(p.kind for p in index.problems)
    assert kinds == {"missing-object": 12, "other-objects": 1, "unused-category": 3}
    own = vision.read(str(tmp_path), test_objects=["Other"])
    assert {s.product: s.split for s in own.samples} == {
        "Console": "train",
        "PCB_1": "train",
        "Other": "test",
    }
    assert vision.read(str(tmp_path), fold="all").splits == {"train": 7}
    with pytest.raises(UserError, match="no folder for objects Nope"):
        vision.read(str(tmp_path), test_objects=["Nope"])
    with pytest.raises(UserError, match="fold=7"):
        vision.read(str(tmp_path), fold=7)
    with pytest.raises(UserError, match=r"group_pattern=\*x"):
        vision.read(str(tmp_path), group_pattern="*x")


def annotated(root, name, note):
    """An object of three images, one of them with this note, one with a polygon."""
    coco_object(root, name, 3)
    path = root / name / "train" / "_annotations.coco.json"
    content = json.loads(path.read_text())
    content["annotations"][1] = {"id": 1, "image_id": 11, "category_id": 4} | note
    path.write_text(json.dumps(content))
    return vision.read(str(root), test_objects=[name])


def test_annotations_without_a_usable_region_make_no_good_image(tmp_path):
    index = annotated(tmp_path, "Other", {"bbox": [3, 3, 5, 5]})
    assert [(s.label, len(s.regions)) for s in index.samples] == [(1, 1), (-1, 0), (0, 0)]
    assert [s.image.name for s in index.normals()["Other"]] == ["2.png"]


def test_run_lengths_of_another_size_are_reported(tmp_path):
    code = {"size": [20, 16], "counts": [100, 10, 16 * 20 - 110]}
    index = annotated(tmp_path, "Other", {"segmentation": code})
    assert [s.label for s in index.samples] == [1, -1, 0]
    assert ["20 x 16" in p.detail for p in index.problems if p.kind == "bad-annotation"] == [True]
    code["size"] = [16, 20]
    assert annotated(tmp_path, "More", {"segmentation": code}).filter(label=1).splits == {
        "test": 2,
        "train": 1,
    }


def test_folds_follow_the_protocol():
    for fold, (train, test) in enumerate([(9, 5), (9, 5), (10, 4)]):
        objects = vision.fold_objects(fold)
        assert (len(objects[0]), len(objects[1])) == (train, test) and not set(objects[0]) & set(objects[1])
    assert [tuple(map(len, defect_spectrum.fold_objects(f))) for f in (0, 1, 2)] == [
        (15, 8),
        (16, 7),
        (15, 8),
    ]
    assert tuple(map(len, defect_spectrum.fold_objects("shift"))) == (0, 17)


def test_defect_spectrum(tmp_path):
    for name, sub in (("pill", "scratch"), ("tile", "crack"), ("DS-DAGM", "")):
        image(tmp_path / name / "image" / sub / "0.png")
        mask(tmp_path / name / "mask" / sub / "0_mask.png", value=2)
    image(tmp_path / "pill" / "image" / "good" / "1.png")
    index = defect_spectrum.read(str(tmp_path), fold=0)
    assert areas(index) == {("DS-DAGM", "class_2"): 60, ("pill", "class_2"): 60, ("tile", "class_2"): 60}
    assert {s.product: s.split for s in index.samples} == {
        "pill": "train",
        "DS-DAGM": "train",
        "tile": "test",
    }
    assert {k: len(v) for k, v in index.normals().items()} == {"pill": 1}
    assert defect_spectrum.read(str(tmp_path), fold="shift").splits == {"test": 4}


def test_magnetic_tile(tmp_path):
    lines = ["class,stem,tile_group"]
    for c, cls in enumerate(("MT_Blowhole", "MT_Crack", "MT_Free")):
        for i in range(4):
            image(tmp_path / "mt" / cls / "Imgs" / f"{c}{i}.jpg")
            mask(tmp_path / "mt" / cls / "Imgs" / f"{c}{i}.png", value=0 if cls == "MT_Free" else 200)
            lines.append(f"{cls},{c}{i},t{0 if i == 0 else c * 10 + i}")
    (tmp_path / "magnetic_tile_groups.csv").write_text("\n".join(lines))
    index = magnetic_tile.read(str(tmp_path / "mt"), fold=1)
    assert counts(index, "test") == {"MT_Crack": 4} and counts(index, "train") == {"MT_Blowhole": 3}
    tested = {s.group for s in index.samples if s.split == "test"}
    assert not tested & {s.group for s in index.samples if s.split == "train"}
    assert [p.kind for p in index.problems] == ["shared-group"]
    with pytest.raises(UserError, match="fold=5"):
        magnetic_tile.read(str(tmp_path / "mt"), fold=5)
    (tmp_path / "magnetic_tile_groups.csv").unlink()
    assert magnetic_tile.read(str(tmp_path / "mt")).problems[0].kind == "no-groups"


def test_reading_options_travel_with_the_samples(tmp_path):
    image(tmp_path / "a" / "0.png")
    sample = folder.read(str(tmp_path), white_level=4095, max_pixels=100).samples[0]
    assert sample.meta["white_level"] == 4095 and sample.meta["max_pixels"] == 100
    assert "limit of 100" in folder.read(str(tmp_path), max_pixels=100).check()[0].detail


def test_odd_tables(shared_data):
    tables, images = shared_data / "odd_files" / "tables", shared_data / "odd_files" / "images"
    broken = coco.read_file(tables / "coco_broken.json", images)
    assert Counter(p.kind for p in broken.problems) == {
        "missing-image": 1,
        "stated-size": 1,
        "degenerate-polygon": 1,
        "outside-image": 1,
        "unknown-image": 1,
        "unknown-category": 1,
        "no-segmentation": 1,
        "unused-category": 1,
    }
    boxed = coco.read_file(tables / "coco_broken.json", images, box_as_mask=True)
    assert {r.kind for rs in boxed.images[images / "base_colour.jpg"]["scratch"] for r in [rs]} == {
        "polygon",
        "box",
    }
    assert coco.read_file(tables / "coco_bom.json", images).classes == ("pore",)
    (regions,) = coco.read_file(tables / "coco_rle.json", images).images.values()
    assert rasterised(regions["blowhole"]) == 117
    with pytest.raises(UserError, match=r"filelist_backslashes\.json, line 1, column 46") as caught:
        read_rows(tables / "filelist_backslashes.json")
    assert "Backslashes" in caught.value.hint
    listed = read_rows(tables / "filelist_windows.json")
    assert [rebase(shared_data / "odd_files", r["image"]).name for r in listed] == [
        "base_grey.png",
        "base_colour.jpg",
    ]
    assert [r["label"] for r in read_rows(tables / "labels_semicolon_bom_crlf.csv")] == [
        "Lunker",
        "Kratzer",
        "Lunker",
    ]
    with pytest.raises(UserError, match=r"images/base_grey\.png"):
        read_rows(tables / "labels_whitespace.csv")
    rows = read_rows(
        tables / "labels_whitespace.csv", columns=["image", "weight", "label"], separator="blank"
    )
    assert [r["label"] for r in rows] == ["mono", "poly"]


def rasterised(regions):
    from fewspect.data.masks import decode_mask, rasterise  # noqa: F401

    return int(rasterise(regions, 180, 140).sum())


def test_real_magnetic_tile(shared_data):
    index = magnetic_tile.read(str(shared_data / "magnetic_tile"))
    assert {k[1]: v for k, v in areas(index).items()} == {
        "MT_Blowhole": 14_311,
        "MT_Break": 291_489,
        "MT_Crack": 24_742,
        "MT_Fray": 701_215,
        "MT_Uneven": 2_508_124,
    }
    assert sum(len(v) for v in index.normals().values()) == 300
    empty = {p.path.split("/")[-1][:-4] for p in index.check() if p.kind == "empty-mask"}
    assert empty == {"exp3_num_45042", "exp4_num_124690", "exp4_num_352527", "exp4_num_45057"}
    for fold in range(5):
        held = magnetic_tile.read(str(shared_data / "magnetic_tile"), fold=fold)
        groups = {side: {s.group for s in held.samples if s.split == side} for side in ("train", "test")}
        assert not groups["train"] & groups["test"] and {
            s.label for s in held.samples if s.split == "test"
        } == {0, fold + 1}


def test_real_folders(shared_data):
    seg = folder.read(str(shared_data / "neu_seg"), mask_type="index")
    assert list(areas(seg).values()) == [441_041, 1_179_196, 509_565] and list(counts(seg).values()) == [
        217,
        219,
        213,
    ]
    neu = folder.read(str(shared_data / "neu"))
    assert list(areas(neu).values()) == [701_043, 2_689_688, 844_229] and len(neu) == 1800
    assert len(folder.read(str(shared_data / "x_sdd")).classes) == 7
    steel = folder.read(str(shared_data / "severstal_open_domain"))
    pixels = {s.image.stem: steel.facts(s).area["defect"] for s in steel.samples}
    assert pixels == {
        "56de9f0d1": 3500,
        "000a4bcdd": 8319,
        "008ef3d74": 5276,
        "606f35768": 1938,
        "b3b1e1046": 7087,
        "f7916450e": 2738,
        "fed07ccf3": 533,
    }
    screw = mvtec.read(str(shared_data / "mvtec_screw_mini"))
    assert screw.splits == {"test": 14, "train": 10} and set(counts(screw).values()) == {2}


# the one degenerate polygon of LPBF (two points, 4 pixels) is skipped and listed: 744,809 - 4
SUMS = {
    ("LPBF", "train"): [744_805],
    ("LPBF", "val"): [99_827],
    ("LPBF", "inference"): [76_273],
    ("Wagon", "train"): [85_054, 101_139],
    ("Wagon", "val"): [24_880, 19_543],
}


@pytest.mark.parametrize("place", SUMS)
def test_real_polygons(shared_data, place):
    name, split = place
    index = vision.read(str(shared_data / "vision_layout"), objects=[], test_objects=[name], folders=[split])
    assert list(areas(index).values()) == SUMS[place]
    if place == ("LPBF", "train"):
        assert {p.kind for p in index.check()} == {"degenerate-polygon", "unused-category", "full-mask"}
        assert len(index.normals()["LPBF"]) == 10
