"""What every reader must survive: hidden files, odd endings and names, hostile paths, empty folders."""

import json
import shutil

import pytest

from fewspect.data.readers import defect_spectrum, folder, magnetic_tile, mvtec, visa, vision
from fewspect.data.toy import write
from fewspect.errors import UserError

SMALL = {"side": 32, "products": ("wood", "tile"), "defects": ("hole", "crack"), "images": 2, "good": 4}

READERS = {
    "mvtec": mvtec.read,
    "chip": mvtec.read,
    "visa": visa.read,
    "magnetic_tile": magnetic_tile.read,
    "defect_spectrum": lambda root: defect_spectrum.read(root, objects=["wood"], test_objects=["tile"]),
    "vision": lambda root: vision.read(root, objects=["wood"], test_objects=["tile"]),
    "pairs_binary": folder.read,
    "classes": folder.read,
    "support_query": folder.read,
    "table": lambda root: folder.read(root, layout="table"),
    "flat": folder.read,
}
"""Toy layout -> reader."""

NAMES_IN_FILES = {"vision", "table"}
"""Layouts whose tables name every file."""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("written")
    for layout in READERS:
        write(root / layout, layout, **SMALL)
    return root


@pytest.fixture(params=READERS)
def case(request, written, tmp_path):
    """(layout, folder that may be changed, what is read from the untouched copy)."""
    root = tmp_path / request.param
    shutil.copytree(written / request.param, root)
    return request.param, root, READERS[request.param](str(root))


def content(index, root):
    """What an index says, by file names without endings."""
    return sorted(
        (str(s.image.relative_to(root).with_suffix("")), s.label, s.product, s.split, sorted(s.regions))
        for s in index.samples
    )


def images(root):
    return [p for p in sorted(root.rglob("*")) if p.suffix.lower() in (".png", ".jpg")]


def test_hidden_files_are_not_seen(case):
    layout, root, before = case
    places = [root, *(p for p in sorted(root.rglob("*")) if p.is_dir())]
    for place in places:
        for name in (".DS_Store", "._000.png", "._000.jpg", "Thumbs.db", "desktop.ini"):
            (place / name).write_bytes(b"\0litter")
        (place / "__MACOSX").mkdir()
        (place / "__MACOSX" / "a.png").write_bytes(b"")
        (place / ".cache").mkdir()
        (place / ".cache" / "a.png").write_bytes(b"")
    after = READERS[layout](str(root))
    assert content(after, root) == content(before, root)
    assert [p for p in after.check() if p.level == "error"] == []
    assert after.problems == before.problems


def test_endings_in_upper_case(case):
    layout, root, before = case
    if layout in NAMES_IN_FILES:
        pytest.skip("the table names the files as they are")
    for path in images(root):
        path.rename(path.with_suffix(path.suffix.upper()))
    after = READERS[layout](str(root))
    assert content(after, root) == content(before, root) and len(after) == len(before)
    assert [p for p in after.check() if p.level == "error"] == []


def test_endings_in_mixed_case_with_several_dots(case):
    layout, root, before = case
    if layout in NAMES_IN_FILES | {"visa"}:
        pytest.skip("the table names the files as they are")
    for path in images(root):
        stem, mask = (path.stem[:-5], "_mask") if path.stem.endswith("_mask") else (path.stem, "")
        path.rename(path.with_name(f"{stem} [ü].v1.rf$(x);'{mask}{path.suffix.title()}"))
    after = READERS[layout](str(root))
    assert len(after) == len(before)
    known = [[(s.label, bool(s.regions)) for s in index.samples] for index in (after, before)]
    assert known[0] == known[1]
    assert [p for p in after.check() if p.level == "error"] == []


@pytest.mark.parametrize("layout", READERS)
def test_an_empty_folder_ends_in_two_lines(layout, tmp_path):
    for prepare in (lambda: None, (tmp_path / ".DS_Store").touch, (tmp_path / "readme.txt").touch):
        prepare()
        with pytest.raises(UserError) as caught:
            READERS[layout](str(tmp_path))
        assert str(tmp_path) in caught.value.message or "no object folders" in caught.value.hint
        for line in (caught.value.message, caught.value.hint):
            assert line and "\n" not in line


@pytest.mark.parametrize("layout", READERS)
def test_folders_without_a_single_image_end_in_two_lines(layout, written, tmp_path):
    root = tmp_path / "x"
    shutil.copytree(written / layout, root)
    for path in images(root):
        path.unlink()
    with pytest.raises(UserError) as caught:
        index = READERS[layout](str(root))
        index.refuse("strict")
    assert caught.value.message and caught.value.hint


def test_links_out_of_the_folder_and_loops(case, tmp_path):
    layout, root, before = case
    if layout == "flat":
        pytest.skip("a folder of its own is a class there")
    (root / "loop").symlink_to(root, target_is_directory=True)
    after = READERS[layout](str(root))
    assert len(after) == len(before)


def test_coco_names_cannot_leave_the_folder(written, tmp_path):
    root = tmp_path / "v"
    shutil.copytree(written / "vision", root)
    shutil.copy(images(root)[0], tmp_path / "secret.jpg")
    path = root / "wood" / "train" / "_annotations.coco.json"
    table = json.loads(path.read_text())
    table["images"][0]["file_name"] = str(tmp_path / "secret.jpg")
    path.write_text(json.dumps(table))
    index = READERS["vision"](str(root))
    assert all(root in s.image.parents for s in index.samples)
    assert "missing-image" in {p.kind for p in index.problems}
    table["images"][0]["file_name"] = "../../../secret.jpg"
    path.write_text(json.dumps(table))
    with pytest.raises(UserError, match="leaves the data folder"):
        READERS["vision"](str(root))


def test_group_tables_are_looked_up_by_name_only(written, tmp_path):
    root = tmp_path / "m"
    shutil.copytree(written / "magnetic_tile", root)
    stem = images(root / "MT_Free")[0].stem
    lines = ["class,stem,tile_group", f"MT_Free,{stem},../../../etc", "../MT_Free,../x,g"]
    (root / "magnetic_tile_groups.csv").write_text("\n".join(lines))
    index = magnetic_tile.read(str(root))
    assert all(root in s.image.parents for s in index.samples)
    assert {s.group for s in index.samples} == {"../../../etc", ""}
