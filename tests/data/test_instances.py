import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from fewspect.backbones.tiny import Tiny
from fewspect.data import bank, features, instances
from fewspect.data.bank import FeatureBank, ViewOptions
from fewspect.data.feature_source import FeatureOptions, FeatureSource
from fewspect.data.index import Index
from fewspect.data.mask_source import MaskSource
from fewspect.data.readers import folder, mvtec_fs
from fewspect.errors import UserError
from fewspect.nn.views import count, cut, window, windows
from fewspect.types import Region, Sample

FIELDS = (
    *("imageName", "imageData", "classification_rank", "imageHeight", "imageWidth", "img_id", "part", "id"),
    *("img_rel_path", "x1", "x2", "y1", "y2", "label", "rank", "points"),
)


def picture(path, value=90, side=80):
    path.parent.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[:side, :side]
    Image.fromarray(((x * 3 + y * 2 + value) % 256).astype(np.uint8)).save(path)


def mvtec_fs_tree(base, shots=3, labels=("broken_large", "broken_small", "contamination")):
    """Two instances in every first image, one in the others; a folder name that lies."""
    for file, side in (("train", "training"), ("valid", "testing")):
        rows = []
        for k, label in enumerate(labels):
            for n in range(shots):
                name = f"{side}/combined/{k}{n}.png"
                picture(base / "image" / "bottle" / name, 40 * k + n + 20 * (file == "valid"))
                for m in range(2 if n == 0 else 1):
                    x, y = 10 + 30 * m, 12.5
                    points = [[x, y], [x + 20, y], [x + 20, y + 15], [x, y + 15]]
                    box = {"x1": x, "x2": x + 20, "y1": y, "y2": y + 15}
                    rows.append(
                        {"part": "bottle", "id": len(rows), "img_rel_path": name, "label": label, **box}
                    )
                    rows[-1] |= {"points": json.dumps(points), "imageName": f"{k}{n}.png", "rank": -1}
        path = base / "CONFIG" / "bottle_config1" / f"{file}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as out:
            writer = csv.DictWriter(out, FIELDS, restval="")
            writer.writeheader()
            writer.writerows(rows)


def test_every_row_of_mvtec_fs_is_an_instance(tmp_path):
    mvtec_fs_tree(tmp_path)
    index = mvtec_fs.read(str(tmp_path), category="bottle")
    assert index.classes == mvtec_fs.CLASSES["bottle"]
    assert index.splits == {"test": 12, "train": 12}
    found = instances.find(index, "train")
    assert [i.cls for i in found[:5]] == ["broken_large"] * 4 + ["broken_small"]
    assert len({i.name for i in found}) == 12
    pixels = instances.load(found[1])
    assert pixels.box == (40, 12.5, 60, 27.5)
    assert pixels.mask[12:28, 40:61].eq(255).all()  # corners truncated, border included
    assert int(pixels.mask.gt(0).sum()) == 16 * 21, "another instance of the image is in the mask"
    assert not index.check()


def test_mvtec_ad_may_stand_in_for_the_images(tmp_path):
    mvtec_fs_tree(tmp_path)
    for name in ("training", "testing"):
        for path in (tmp_path / "image" / "bottle" / name / "combined").iterdir():
            target = tmp_path / "bottle" / "test" / "combined" / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    shutil.rmtree(tmp_path / "image")
    assert len(mvtec_fs.read(str(tmp_path))) == 24


def test_bad_tables_are_told(tmp_path):
    with pytest.raises(UserError, match="no folder <object>_config1"):
        mvtec_fs.read(str(tmp_path))
    mvtec_fs_tree(tmp_path, labels=("broken_large", "crack", "contamination"))
    with pytest.raises(UserError, match=r"train\.csv, row 6: class 'crack' is none of bottle's"):
        mvtec_fs.read(str(tmp_path))
    mvtec_fs_tree(tmp_path)
    with pytest.raises(UserError, match="no object nut"):
        mvtec_fs.read(str(tmp_path), category="nut")
    path = tmp_path / "CONFIG" / "bottle_config1" / "train.csv"
    path.write_text(
        path.read_text().replace("[[10, 12.5]", "oops [[10, 12.5]").replace("combined/01", "../../01")
    )
    with pytest.raises(UserError, match="leaves the data folder"):
        mvtec_fs.read(str(tmp_path))
    path.write_text(path.read_text().replace("../../01", "gone/01"))
    kinds = {p.kind for p in mvtec_fs.read(str(tmp_path)).problems}
    assert kinds == {"missing-image", "bad-annotation"}
    path.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="no column part, img_rel_path, label, points"):
        mvtec_fs.read(str(tmp_path))


def one(tmp_path, **sample):
    picture(tmp_path / "x.png")
    given = {"label": 1, "product": "p", "split": "train"} | sample
    return Index((Sample(tmp_path / "x.png", **given),), ("hole",), frozenset({"classify"}))


def masked(tmp_path, mask):
    Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "m.png")
    return one(tmp_path, regions={"hole": (Region("file", tmp_path / "m.png"),)})


def test_connected_regions_are_instances_where_wanted(tmp_path):
    mask = np.zeros((80, 80), bool)
    mask[5:15, 5:20] = mask[40:60, 50:70] = mask[70, 70] = True
    index = masked(tmp_path, mask)
    (whole,) = instances.find(index, "train")
    assert instances.load(whole).box == (5, 5, 70, 70)
    parts = instances.find(index, "train", components=True, least=2)
    assert [instances.load(p).box for p in parts] == [(5, 5, 19, 14), (50, 40, 69, 59)]
    assert int(instances.load(parts[0]).mask.gt(0).sum()) == 150
    assert len(instances.find(index, "train", components=True)) == 3


def test_images_without_regions_are_instances_as_a_whole(tmp_path):
    (found,) = instances.find(one(tmp_path), "train")
    shown = instances.load(found)
    assert shown.box == (0, 0, 80, 80)
    assert not shown.drawn
    assert shown.mask.eq(255).all()
    assert not instances.find(one(tmp_path, label=0), "train")
    assert not instances.find(masked(tmp_path, np.zeros((80, 80), bool)), "train")
    (new,) = instances.find(one(tmp_path, label=-1), "train")
    assert new.cls == ""


def test_a_polygon_outside_the_image_is_no_mask(tmp_path):
    outside = (Region("polygon", points=((200.0, 200.0, 220.0, 200.0, 220.0, 230.0),)),)
    (found,) = instances.find(one(tmp_path, regions={"hole": outside}), "train")
    assert not instances.load(found).drawn


def test_windows_outside_are_black_or_mirrored():
    image = torch.arange(16, dtype=torch.uint8).view(1, 4, 4)
    assert window(image, (-1, -1, 2, 2)).tolist() == [[[0, 0, 0], [0, 0, 1], [0, 4, 5]]]
    assert window(image, (-1, -1, 2, 2), reflect=True).tolist() == [[[0, 0, 1], [0, 0, 1], [4, 4, 5]]]
    assert not window(image, (50, 50, 53, 53)).any()
    far = window(image, (50, 50, 53, 53), reflect=True)
    assert far.shape == (1, 3, 3)


@pytest.mark.parametrize("kind", ["none", "ms", "mo", "mso", "mso_bbox", "whole"])
@pytest.mark.parametrize("box", [(30, 30, 30, 30), (0, 0, 79, 79), (-5.5, 70.2, 10.1, 120)])
def test_every_view_set_gives_its_number_of_views(kind, box):
    for relative in (False, True):
        found = windows(box, kind, (16, 24), relative=relative)
        assert len(found) == count(kind, (16, 24))
        images, masks = cut(
            torch.zeros(3, 80, 80, dtype=torch.uint8), torch.zeros(80, 80, dtype=torch.uint8), found, 16
        )
        assert images.shape == (len(found), 3, 16, 16)
        assert masks.shape == (len(found), 1, 16, 16)


def tiny_bank(folder=None, **options):
    return FeatureBank(Tiny(side=32), ViewOptions(**{"sizes": (24, 48), **options}), folder)


def test_the_bank_computes_once_and_notices_changes(tmp_path, monkeypatch):
    mvtec_fs_tree(tmp_path)
    index = mvtec_fs.read(str(tmp_path))
    found = instances.find(index, "train")
    first = tiny_bank(tmp_path / "cache").get(found, index.classes, "bottle")
    assert first.feature.shape == (12, 18, 1, 3 * 3 * 64)
    assert first.feature.dtype == torch.float16
    assert first.counts == dict.fromkeys(index.classes, 4)
    assert first.thumb.shape == (12, 4, bank.THUMB, bank.THUMB)
    monkeypatch.setattr(FeatureBank, "compute", lambda *_: pytest.fail("computed again"))
    again = tiny_bank(tmp_path / "cache").get(found, index.classes, "bottle")
    assert torch.equal(first.feature, again.feature)
    assert again.config == json.loads(json.dumps(first.config))
    monkeypatch.undo()
    picture(found[0].sample.image, 7)
    changed = tiny_bank(tmp_path / "cache").get(found, index.classes, "bottle")
    assert not torch.equal(first.feature, changed.feature)
    other = tiny_bank(tmp_path / "cache", sizes=(20, 48)).get(found, index.classes, "bottle")
    assert not torch.equal(other.feature, changed.feature)
    assert len(list((tmp_path / "cache").iterdir())) == 3
    grouped = [replace(i, sample=replace(i.sample, group="one tile")) for i in found]
    assert set(tiny_bank(tmp_path / "cache").get(grouped, index.classes, "").groups) == {"one tile"}
    white = [replace(i, sample=replace(i.sample, meta={"white_level": 100})) for i in found]
    tiny_bank(tmp_path / "cache").get(white, index.classes, "")
    assert len(list((tmp_path / "cache").iterdir())) == 5


def test_batches_do_not_change_the_features(tmp_path):
    mvtec_fs_tree(tmp_path)
    index = mvtec_fs.read(str(tmp_path))
    found = instances.find(index, "train")[:3]
    one_by_one, together = (tiny_bank(batch=b).compute(found, index.classes, "") for b in (1, 64))
    assert torch.allclose(one_by_one.feature.float(), together.feature.float(), atol=2e-3)


def test_exact_and_fast_pixels_are_close(tmp_path):
    mvtec_fs_tree(tmp_path)
    (found, *_) = instances.find(mvtec_fs.read(str(tmp_path)), "train")
    shown = instances.load(found)
    fast, exact = (tiny_bank(exact=e).look(shown) for e in (False, True))
    assert fast[0].shape == exact[0].shape == (18, 3, 32, 32)
    assert (fast[0] - exact[0]).abs().mean() < 0.02
    assert (fast[1] - exact[1]).abs().mean() < 0.02


def test_the_mask_and_its_neighbourhood_decide(tmp_path):
    mvtec_fs_tree(tmp_path)
    (first, second, *_) = instances.find(mvtec_fs.read(str(tmp_path)), "train")
    assert first.sample.image == second.sample.image
    made = tiny_bank().compute([first, second], ("broken_large",), "")
    assert not torch.allclose(made.feature[0], made.feature[1])


def tasks(root, category=None, **options):
    source = FeatureSource(
        (None, None), FeatureOptions(cache=None, views={"sizes": (24, 48)}, **options), Tiny(side=32)
    )
    return source.tasks(lambda: mvtec_fs.read(str(root), category=category))


def test_tables_make_pool_and_queries(tmp_path):
    mvtec_fs_tree(tmp_path)
    (task,) = tasks(tmp_path)
    assert len(task.support) == len(task.query) == 12
    assert task.label.tolist() == [1] * 4 + [2] * 4 + [3] * 4
    assert task.support.product == "bottle"


def test_class_folders_are_halved_and_have_fewer_views(tmp_path):
    for name in ("dent", "hole"):
        for n in range(6):
            picture(tmp_path / name / f"{n}.png", n)
    source = FeatureSource((None, None), FeatureOptions(cache=None), Tiny(side=32))
    (task,) = source.tasks(lambda: folder.read(str(tmp_path)))
    assert task.support.feature.shape[1] == bank.WHOLE
    assert task.support.counts == {"dent": 3, "hole": 3}
    assert not set(task.support.paths) & set(task.query.paths)


def test_masks_of_some_classes_do_not_give_them_away(tmp_path, caplog):
    for name in ("dent", "hole"):
        for n in range(6):
            picture(tmp_path / "images" / name / f"{n}.png", n)
            if name == "hole":
                (tmp_path / "masks" / name).mkdir(parents=True, exist_ok=True)
                mask = np.zeros((80, 80), np.uint8)
                mask[5:9, 5 : 9 + n] = 255
                Image.fromarray(mask).save(tmp_path / "masks" / name / f"{n}.png")

    def task(**options):
        source = FeatureSource((None, None), FeatureOptions(cache=None, **options), Tiny(side=32))
        return source.tasks(lambda: folder.read(str(tmp_path)))[0]

    auto = task()
    assert "no mask or box for dent" in caplog.text
    caplog.clear()
    none, own = task(masks="none"), task(masks="own")
    assert not caplog.text
    assert auto.support.feature.shape[1] == none.support.feature.shape[1] == bank.WHOLE
    assert own.support.feature.shape[1] > bank.WHOLE
    assert torch.equal(auto.support.feature, none.support.feature)
    assert auto.support.counts == own.support.counts == {"dent": 3, "hole": 3}
    task(query_masks="none")  # the user's choice: no query is drawn, so nothing is given away
    assert not caplog.text


def test_queries_without_a_mask_take_that_of_a_run(tmp_path):
    mvtec_fs_tree(tmp_path / "data")
    run = tmp_path / "run" / "predict-1" / "predictions"
    (run / "mask").mkdir(parents=True)
    (run / "prob").mkdir()
    asked = sorted((tmp_path / "data" / "image" / "bottle" / "testing" / "combined").iterdir())
    rows = []
    for path in asked:
        mask = np.zeros((80, 80), np.uint8)
        mask[12:28, 10:31] = 255
        Image.fromarray(mask).save(run / "mask" / f"{path.stem}.png")
        Image.fromarray(mask.astype(np.uint16) // 255 * 50000).save(run / "prob" / f"{path.stem}.png")
        rows.append(
            {"file": str(path), "status": "ok", "name": path.stem, "map_low": "0.0", "map_high": "1.0"}
        )
    with (run / "predictions.csv").open("w", newline="") as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (own,), (none,), (found,) = (
        tasks(tmp_path / "data", **options)
        for options in (
            {},
            {"query_masks": "none"},
            {"query_masks": "none", "mask_from": str(tmp_path / "run")},
        )
    )
    soft = MaskSource(tmp_path / "run").of(instances.Instance(Sample(asked[0]), ""), torch.zeros(3, 80, 80))
    assert set(soft.unique().tolist()) == {0, 195}
    exact = own.query.feature[0].float()
    gap = [float((t.query.feature[0].float() - exact).abs().mean()) for t in (none, found)]
    assert gap[1] < gap[0]
    with pytest.raises(UserError, match="no predictions in this folder"):
        tasks(tmp_path / "data", mask_from=str(tmp_path / "data"))
    (run / "predictions.csv").write_text("file,status,name\n")
    with pytest.raises(UserError, match="did not see this image"):
        tasks(tmp_path / "data", query_masks="none", mask_from=str(tmp_path / "run"))


def test_known_features_and_new_images(tmp_path):
    mvtec_fs_tree(tmp_path)
    (task,) = tasks(tmp_path)
    features.write(tmp_path / "known.safetensors", task.support)
    options = FeatureOptions(cache=None, views={"sizes": (24, 48)})
    source = FeatureSource((str(tmp_path / "known.safetensors"), None), options, Tiny(side=32))
    (new,) = source.tasks(lambda: mvtec_fs.read(str(tmp_path)))
    assert len(new.query) == 24
    with pytest.raises(UserError, match="no backbone to make them"):
        FeatureSource((None, None), options).tasks(lambda: mvtec_fs.read(str(tmp_path)))


def test_windows_follow_the_size_of_the_image_unless_pixels_are_given(tmp_path):
    mask = np.zeros((80, 80), bool)
    mask[30:40, 30:40] = True
    (found,) = instances.find(masked(tmp_path, mask), "train")
    shown = instances.load(found)

    def widths(**options):
        boxes = FeatureBank(Tiny(side=32), ViewOptions(kind="ms", **options)).boxes(shown)
        return [right - left for left, _, right, _ in boxes]

    assert widths() == [20, 30, 40]
    assert widths(sizes=(16, 24)) == [16, 24]
    assert widths(relative=True) == [round(f * 32) for f in bank.FACTORS]  # at least 32 pixels
