import json

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from fewspect.data.check import explain, lines, report
from fewspect.data.readers import folder, magnetic_tile
from fewspect.engine import tryout
from fewspect.errors import UserError

SMALL = {"side": 32, "products": ["wood"], "defects": ["hole", "stain"], "good": 2, "folds": 2}


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def test_report_is_complete_and_plain(tmp_path):
    for i in range(3):
        write(tmp_path / "images" / f"{i}.png", np.full((20, 30), 40 * i, np.uint8))
        write(tmp_path / "masks" / f"{i}.png", np.full((20, 30), 255 * (i > 0), np.uint8))
    write(tmp_path / "masks" / "2.png", np.zeros((9, 9), np.uint8))
    (tmp_path / "images" / "page.png").write_text("<html>")
    found = report(str(tmp_path))
    assert json.loads(json.dumps(found)) == found
    assert list(found["layout"]) == ["pairs"] and found["sizes"] == {"20 x 30": 3}
    assert found["mask_values"] == {"0": 681, "255": 600}
    kinds = {(p["path"].split("/")[-1], p["kind"]) for p in found["problems"]}
    assert kinds >= {("page.png", "unreadable"), ("2.png", "wrong-size"), ("1.png", "full-mask")}
    text = "\n".join(lines(found))
    assert "mask is 9 x 9, its image 20 x 30" in text and "on_bad_file=skip" in text


def test_what_cannot_be_read_is_reported_not_raised(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    found = report(str(tmp_path))
    assert {p["kind"] for p in found["problems"]} == {"reader", "dangling-link"} and found["hints"][0]
    (tmp_path / "index.csv").write_text("nonsense\n1\n")
    assert "no image column" in report(str(tmp_path))["problems"][0]["detail"]


def test_clear_errors(tmp_path):
    with pytest.raises(UserError, match="empty"):
        report(str(tmp_path))
    with pytest.raises(UserError, match="not found"):
        report(str(tmp_path / "absent"))
    (tmp_path / "f").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        explain(str(tmp_path / "f"))


def test_the_toy_factory_is_written_before_it_is_looked_at(tmp_path, capsys):
    node = {"reader": {"_target_": "fewspect.data.readers.toy.read", "_partial_": True, **SMALL}}
    tryout.explain(node | {"root": str(tmp_path / "toy"), "fold": 1})
    assert "stain" in capsys.readouterr().out and any((tmp_path / "toy").iterdir())


def test_features_from_files_have_no_folder(capsys):
    tryout.explain({"reader": None, "protocol": "features"})
    assert not capsys.readouterr().out


@pytest.mark.parametrize("word", ["category", "object"])
def test_the_product_asked_for_is_the_one_looked_at(tmp_path, capsys, word):
    for name in ("nut", "bolt"):
        write(tmp_path / name / "train" / "good" / "0.png", np.full((20, 30), 40, np.uint8))
    node = {"reader": {"_target_": "fewspect.data.readers.mvtec.read", "_partial_": True}}
    tryout.explain(node | {"root": str(tmp_path), word: "nut"})
    assert "1 images, 1 products" in capsys.readouterr().out


def test_a_folder_is_read_once(tmp_path):
    write(tmp_path / "images" / "0.png", np.full((20, 30), 40, np.uint8))
    calls = []

    def read(root):
        calls.append(root)
        return folder.read(root, layout="flat", recursive=True)

    explain(str(tmp_path), read)
    assert len(calls) == 1


def test_real_folders(shared_data, capsys):
    found = report(
        str(shared_data / "neu_seg"), mask_type="index", class_names=["inclusion", "patches", "scratches"]
    )
    assert found["mask_values"] == {"0": 14_350_198, "1": 441_041, "2": 1_179_196, "3": 509_565}
    assert found["problems"] == []
    odd = report(str(shared_data / "odd_files"))
    unreadable = {
        p["path"].split("/")[-1] for p in odd["problems"] if p["kind"] in ("unreadable", "same-stem")
    }
    names = {
        "truncated.jpg",
        "truncated.png",
        "zero_bytes.jpg",
        "html_error_page.png",
        "panorama_20000x9000.png",
    }
    assert unreadable == names
    Console(width=200).print(explain(str(shared_data / "magnetic_tile"), magnetic_tile.read))
    text = capsys.readouterr().out
    assert "MT_Uneven" in text and "empty-mask (4)" in text
