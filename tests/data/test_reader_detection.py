"""Readers for detectors: who is good, who is learned from, who is tested; VisA, chip, good images only."""

import csv
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from fewspect.data.index import load_mask
from fewspect.data.readers import folder, magnetic_tile, mvtec, visa
from fewspect.data.toy import draw, write
from fewspect.errors import UserError

SMALL = {"side": 32, "products": ("wood", "tile"), "defects": ("hole", "stain"), "images": 3, "good": 6}


def sides(index):
    """(split, is good) -> number of images."""
    return Counter((s.split, s.label == 0) for s in index.samples)


def kinds(index):
    return Counter(p.kind for p in index.problems)


def picture(path, seed=0, size=(16, 20)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, size, dtype=np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    """Folder of toy data sets, written once and never changed."""
    root = tmp_path_factory.mktemp("layouts")
    for name in ("visa", "chip", "flat", "mvtec", "magnetic_tile"):
        write(root / name, name, **SMALL)
    return root


@pytest.fixture
def fresh(tmp_path):
    """Write a toy data set that a test may change."""
    return lambda name: (write(tmp_path / name, name, **SMALL), tmp_path / name)[1]


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


def rewrite(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def test_visa_follows_its_tables(layouts):
    index = visa.read(str(layouts / "visa"))
    assert sides(index) == {("train", True): 6, ("test", True): 6, ("test", False): 12}
    assert index.classes == ("hole", "stain") and index.products == ("tile", "wood")
    assert index.tasks == {"segment", "classify", "detect", "reconstruct"} and not index.problems
    for sample in index.filter(product="wood").samples:
        for cls in sample.regions:  # label maps with the values 1 and 2
            number = int(sample.image.stem[-3:])
            truth = draw(0, "wood", cls, number, 32)[1]
            assert cls in sample.image.stem and (load_mask(sample, cls).numpy() == truth).all()


def test_visa_category_and_one_product_as_root(layouts):
    root = layouts / "visa"
    assert visa.read(str(root), category="wood").products == ("wood",)
    assert visa.read(str(root), category=["wood", "tile"]).products == ("tile", "wood")
    assert sides(visa.read(str(root / "wood"))) == {
        ("train", True): 3,
        ("test", True): 3,
        ("test", False): 6,
    }
    with pytest.raises(UserError, match="no category bolt") as caught:
        visa.read(str(root), category="bolt")
    assert "tile, wood" in caught.value.hint


def test_visa_mask_values_above_the_grey_rule_count(tmp_path):
    """Any value but 0 is defect, whatever the rule for grey masks would say."""
    base = tmp_path / "nut" / "Data"
    picture(base / "Images" / "Normal" / "0.JPG")
    picture(base / "Images" / "Anomaly" / "1.JPG")
    mask = np.zeros((16, 20), np.uint8)
    mask[0, :3], mask[1, :4], mask[2, :5] = 1, 40, 200
    (base / "Masks" / "Anomaly").mkdir(parents=True)
    Image.fromarray(mask).save(base / "Masks" / "Anomaly" / "1.png")
    index = visa.read(str(tmp_path))
    (defect,) = (s for s in index.samples if s.label)
    assert load_mask(defect, visa.ANOMALY).sum() == 12 and index.classes == (visa.ANOMALY,)


def test_visa_several_types_are_one_class(fresh):
    root = fresh("visa")
    path = root / "wood" / "image_anno.csv"
    rows = rows_of(path)
    last = next(i for i in reversed(range(len(rows))) if rows[i][1] == "stain")
    rows[last][1] = "hole, stain"
    rewrite(path, rows)
    index = visa.read(str(root), category="wood")
    assert index.classes == (visa.COMBINED, "hole", "stain")
    assert [len(s.regions) for s in index.samples if s.label == 1] == [1]
    (root / "wood" / "image_anno.csv").unlink()
    assert visa.read(str(root), category="wood").classes == (visa.ANOMALY,)


def test_visa_without_split_tables(fresh):
    root = fresh("visa")
    (root / "split_csv" / "1cls.csv").unlink()
    index = visa.read(str(root))
    assert sides(index)["test", False] == 12 and not sides(index)["train", False]
    assert {s.split for s in index.samples} == {"train", "test"}
    assert index.samples == visa.read(str(root)).samples
    with pytest.raises(UserError, match=r"2cls_fewshot\.csv"):
        visa.read(str(root), split="2cls_fewshot")
    held = visa.read(str(root), fold=0, folds=2)
    assert {s.label for s in held.samples if s.split == "test"} == {0, 1}


def test_visa_tables_and_folders_that_disagree(fresh):
    root = fresh("visa")
    path = root / "split_csv" / "1cls.csv"
    rows = rows_of(path)
    gone, unknown = rows.pop(), ["tile", "test", "anomaly", "tile/Data/Images/Anomaly/lost.JPG", ""]
    rewrite(path, [*rows, unknown])
    index = visa.read(str(root))
    assert kinds(index) == {"unlisted-image": 1, "missing-image": 1}
    texts = [str(p) for p in index.problems]
    assert any(gone[3].rsplit("/")[-1] in t for t in texts) and any("lost.jpg" in t for t in texts)
    assert len(index) == 23 and not any(str(s.image).endswith(gone[3]) for s in index.samples)


def test_visa_paths_in_tables_lead_nowhere(fresh, tmp_path):
    root = fresh("visa")
    secret = picture(tmp_path / "Normal" / "secret.JPG")
    rows = rows_of(root / "split_csv" / "1cls.csv")
    rows.append(["wood", "train", "normal", "../Normal/secret.JPG", "../../etc/passwd"])
    rows.append(["wood", "train", "normal", str(secret), ""])
    rewrite(root / "split_csv" / "1cls.csv", rows)
    notes = [["image", "label", "mask"], [str(secret), "../../x", "/etc/passwd"]]
    rewrite(root / "wood" / "image_anno.csv", notes)
    index = visa.read(str(root))
    regions = [r for s in index.samples for rs in s.regions.values() for r in rs]
    assert all(root in f.parents for f in [*(s.image for s in index.samples), *(r.path for r in regions)])
    assert len(index) == 24 and len(regions) == 12
    assert kinds(index) == {"missing-image": 1}


def test_visa_few_shot_split(fresh):
    root = fresh("visa")
    rows = rows_of(root / "split_csv" / "1cls.csv")
    for row in rows[1::2]:
        row[1] = "train"
    rewrite(root / "split_csv" / "2cls_highshot.csv", rows)
    assert sides(visa.read(str(root), split="2cls_highshot"))["train", False] == 6


def test_chip_images(layouts):
    index = mvtec.read(str(layouts / "chip"))
    assert sides(index) == {("train", True): 6, ("test", True): 6, ("test", False): 12}
    assert index.tasks == {"classify", "detect", "reconstruct"} and not any(s.regions for s in index.samples)
    assert kinds(index) == {"no-ground-truth": 2} and index.classes == ("hole", "stain")
    assert mvtec.read(str(layouts / "chip"), category="wood").products == ("wood",)
    assert folder.read(str(layouts / "chip" / "wood")).splits == {"test": 9, "train": 3}


def test_images_beside_class_folders_are_reported(tmp_path):
    picture(tmp_path / "train" / "good" / "0.png")
    picture(tmp_path / "train" / "stray.png")
    index = mvtec.read(str(tmp_path))
    assert len(index) == 1 and kinds(index) == {"loose-images": 1}


def test_flat_test_folder_holds_new_parts(tmp_path):
    picture(tmp_path / "train" / "good" / "0.png")
    picture(tmp_path / "test" / "1.png")
    index = mvtec.read(str(tmp_path))
    assert [(s.label, s.split) for s in index.samples] == [(0, "train"), (-1, "query")]
    assert index.tasks == {"detect", "reconstruct"}


def test_masks_belong_to_the_test_image_of_their_name(tmp_path):
    for path in ("train/good/0", "train/cut/0", "train/cut/1", "test/cut/0"):
        picture(tmp_path / f"{path}.png")
    for stem in "01":
        picture(tmp_path / "ground_truth" / "cut" / f"{stem}_mask.png")
    index = mvtec.read(str(tmp_path))
    found = {
        (s.split, s.label, s.image.stem): [r.path.stem for r in s.regions.get("cut", ())]
        for s in index.samples
    }
    assert found["train", 1, "0"] == [] and found["train", 1, "1"] == ["1_mask"]
    assert found["test", 1, "0"] == ["0_mask"]
    assert "shared-mask" in {p.kind for p in index.problems}


def test_the_group_table_may_be_windows_1252(tmp_path):
    picture(tmp_path / "MT_Hole" / "Imgs" / "tür.jpg")
    text = "class,stem,tile_group\nMT_Hole,tür,7\n"
    (tmp_path / "magnetic_tile_groups.csv").write_bytes(text.encode("cp1252"))
    assert [s.group for s in magnetic_tile.read(str(tmp_path)).samples] == ["7"]
    with pytest.raises(UserError, match=r"nope\.csv(?s:.*)data\.reader\.groups"):
        magnetic_tile.read(str(tmp_path), groups="nope.csv")


@pytest.mark.parametrize("place", [".", "good", "train", "train/good"])
def test_good_images_only(tmp_path, place):
    for i in range(5):
        picture(tmp_path / "parts" / place / f"{i}.JPG", seed=i)
    index = folder.read(str(tmp_path / "parts"))
    assert sides(index) == {("train", True): 5} and index.products == ("parts",)
    assert index.tasks == {"detect", "reconstruct"} and index.classes == ()
    assert not [p for p in index.check() if p.level != "notice"]
    assert kinds(index) == ({"all-good": 1} if place == "." else {})


def test_flat_folder_of_the_toy_factory(layouts):
    index = folder.read(str(layouts / "flat"))
    assert sides(index) == {("train", True): 6} and index.products == ("flat",)
    assert folder.read(str(layouts / "flat"), product="x").products == ("x",)


def test_flat_folder_with_masks_beside_the_images_is_refused(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / "a_mask.png")
    with pytest.raises(UserError, match=r"a_mask\.png: looks like a mask"):
        folder.read(str(tmp_path))


def test_flat_folder_beside_class_folders_is_ambiguous(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / "old" / "b.png")
    with pytest.raises(UserError, match=r"several layouts fit: classes \(.*\); flat"):
        folder.read(str(tmp_path))
    index = folder.read(str(tmp_path), layout="flat")
    assert len(index) == 1 and "sub-folders" in kinds(index)
    assert len(folder.read(str(tmp_path), layout="flat", recursive=True)) == 2


@pytest.mark.parametrize(
    ("layout", "name"), [("magnetic_tile", "magnetic_tile"), ("visa", "visa"), ("vision", "vision")]
)
def test_folder_points_at_the_reader_of_a_published_layout(tmp_path, layout, name):
    write(tmp_path / "set", layout, **SMALL)
    with pytest.raises(UserError, match=f"layout of {name}") as caught:
        folder.read(str(tmp_path / "set"))
    assert caught.value.hint == f"Use data={name} data.root={tmp_path / 'set'}."


def test_folder_points_from_one_coco_product_to_its_parent(tmp_path):
    write(tmp_path / "set", "vision", **SMALL)
    with pytest.raises(UserError, match="layout of vision") as caught:
        folder.read(str(tmp_path / "set" / "wood"))
    assert caught.value.hint == f"Use data=vision data.root={tmp_path / 'set'}."


def test_one_class_plays_the_good_images(tmp_path):
    for cls in ("a", "b", "c"):
        for i in range(30):
            picture(tmp_path / "images" / cls / f"{cls}_{i}.png", seed=i)
    picture(tmp_path / "masks" / "b" / "b_0.png")
    index = folder.read(str(tmp_path), normal_class="b")
    count = sides(index)
    assert count["test", False] == 60 and count["train", True] + count["test", True] == 30
    assert count["test", True] >= 1 and not count["train", False]
    assert index.classes == ("a", "c") and not any(s.regions for s in index.samples)
    assert {s.image.parent.name: s.label for s in index.samples} == {"a": 1, "b": 0, "c": 2}
    assert "segment" not in index.tasks and kinds(index)["one-class"] == 1
    with pytest.raises(UserError, match="normal_class=x") as caught:
        folder.read(str(tmp_path), normal_class="x")
    assert "a, b, c" in caught.value.hint
    picture(tmp_path / "images" / "good" / "g.png")
    with pytest.raises(UserError, match="good images of its own"):
        folder.read(str(tmp_path), normal_class="b")


def tile_tree(root):
    """30 good tiles of two exposures each, one more that is a crack under its second exposure."""
    lines = ["class,stem,tile_group"]
    shots = [("MT_Free", f"f{n}_{e}", f"t{n}") for n in range(30) for e in range(2)]
    shots += [("MT_Crack", f"c{n}", f"c{n}") for n in range(6)]
    shots += [("MT_Free", "mixed0", "m"), ("MT_Crack", "mixed1", "m")]
    for i, (cls, stem, group) in enumerate(shots):
        picture(root / "mt" / cls / "Imgs" / f"{stem}.jpg", seed=i)
        mask = np.zeros((16, 20), np.uint8)
        mask[:2] = 255 * (cls != "MT_Free")
        Image.fromarray(mask).save(root / "mt" / cls / "Imgs" / f"{stem}.png")
        lines.append(f"{cls},{stem},{group}")
    (root / "magnetic_tile_groups.csv").write_text("\n".join(lines))
    return root / "mt"


def test_magnetic_tiles_stay_apart(tmp_path):
    index = magnetic_tile.read(str(tile_tree(tmp_path)))
    good = [s for s in index.samples if s.label == 0]
    learned = {s.group for s in good if s.split == "train"}
    others = {s.group for s in index.samples if s.split == "test" or s.label}
    assert learned and not learned & others
    assert {s.image.stem for s in good if not s.split} == {"mixed0"}
    assert kinds(index) == {"doubtful-normal": 1}
    assert all(len({s.split for s in good if s.group == g}) == 1 for g in {s.group for s in good})
    assert {s.split for s in index.samples if s.label} == {"train", "test"}  # for few-shot methods


def test_real_magnetic_tiles(shared_data):
    """The derived split that the data's description states: 235 and 50 good images, 15 left out."""
    index = magnetic_tile.read(str(shared_data / "magnetic_tile"))
    good = [s for s in index.samples if s.label == 0]
    assert Counter(s.split for s in good) == {"train": 235, "test": 50, "": 15}
    groups = {side: {s.group for s in good if s.split == side} for side in ("train", "test")}
    assert (len(groups["train"]), len(groups["test"])) == (40, 10)
    defects = {s.group for s in index.samples if s.label}
    assert not groups["train"] & (groups["test"] | defects)


@pytest.mark.parametrize("normal", ["crazing", "patches", "rolled-in_scale"])
def test_real_neu(shared_data, normal):
    index = folder.read(str(shared_data / "neu"), layout="pairs", normal_class=normal)
    count = sides(index)
    assert count["test", False] == 1500 and count["train", True] + count["test", True] == 300
    assert 40 <= count["test", True] <= 80 and len(index.classes) == 5


def test_real_magnetic_tile_as_own_folder(shared_data):
    with pytest.raises(UserError, match="layout of magnetic_tile"):
        folder.read(str(shared_data / "magnetic_tile"))
    with pytest.raises(UserError, match="layout of vision"):
        folder.read(str(shared_data / "vision_layout"))


def test_a_coco_export_is_not_taken_for_good_images(tmp_path):
    """Images in train/ are good only where no table beside them says what they show."""
    write(tmp_path / "set", "vision", **SMALL)
    for root in (tmp_path / "set", tmp_path / "set" / "wood"):
        with pytest.raises(UserError, match="no folder with train/ and test/"):
            mvtec.read(str(root))
