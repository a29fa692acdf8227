"""The inspection of one image, piece by piece, and ``mode=inspect`` on the command line."""

import csv
import json
import math
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.spatial.distance import pdist
from warm import run

from fewspect.backbones.tiny import Tiny
from fewspect.data.bank import FeatureBank, ViewOptions
from fewspect.data.index import Index
from fewspect.errors import UserError
from fewspect.inspection import DEFECT, Inspector, Options, described, extent
from fewspect.methods.calibration import Observed
from fewspect.methods.detector import Detector
from fewspect.methods.mvrec.method import MVREC
from fewspect.report import inspection as report
from fewspect.types import Prediction, Region, Sample

SIDE = 48


class Bright(Detector):
    """The map is the brightness: what is anomalous can be painted."""

    fit_kind = "none"

    def predict(self, images, state):
        return Prediction(prob=images.mean(1))


def bright(product="part", limit=0.4):
    """Thresholds from ten grey images: pixels and scores above ``limit`` are defective."""
    detector = Bright(evaluate={"side": SIDE}, maps={"score": "max"})
    grey = [Observed(product, torch.full((SIDE, SIDE), limit - 0.01 * k), (SIDE, SIDE), k) for k in range(10)]
    detector.calibrations.fit(grey, detector.rules, "off", detector.finish_map)
    return detector


def bank():
    return FeatureBank(Tiny(side=32), ViewOptions(kind="ms"))


def picture(*boxes, grey=60):
    """Grey image with white boxes (x, y, width, height)."""
    image = torch.full((3, SIDE, SIDE), grey, dtype=torch.uint8)
    for x, y, width, height in boxes:
        image[:, y : y + height, x : x + width] = 250
    return image


# -- one image -----------------------------------------------------------------------------------------------


def test_a_good_image_has_no_regions():
    found = Inspector(bright(), bank())(picture())
    assert not found.defect
    assert found.regions == ()
    assert not found.answer.mask.any()
    assert found.calibrated == 0.0


def test_regions_are_told_with_their_sizes_the_largest_first():
    inspector = Inspector(bright(), bank(), options=Options(least=4))
    found = inspector(picture((3, 5, 4, 3), (20, 30, 12, 6), (40, 2, 1, 1)))
    assert found.defect
    assert [r.box for r in found.regions] == [(20, 30, 12, 6), (3, 5, 4, 3)]
    assert [r.area for r in found.regions] == [72, 12]
    assert [r.length for r in found.regions] == pytest.approx([math.hypot(12, 6), 5.0])
    assert all(r.name == DEFECT and math.isnan(r.probability) for r in found.regions)
    assert int(found.answer.mask.sum()) == 84, "the single pixel is not reported"


def test_a_defect_smaller_than_the_least_is_still_reported_when_it_is_the_only_one():
    found = Inspector(bright(), bank(), options=Options(least=30))(picture((3, 5, 2, 2)))
    assert [r.area for r in found.regions] == [4]


def test_a_defective_image_without_a_marked_pixel_shows_its_highest_place():
    detector = bright()
    detector.rules = type(detector.rules)(pixel="fixed", value=2.0)  # no pixel reaches it
    grey = [Observed("part", torch.full((SIDE, SIDE), 0.4), (SIDE, SIDE), k) for k in range(20)]
    detector.calibrations.fit(grey, detector.rules, "off", detector.finish_map)
    found = Inspector(detector, bank())(picture((10, 12, 5, 5)))
    assert found.defect
    assert [r.box for r in found.regions] == [(10, 12, 5, 5)]


def test_only_so_many_regions():
    boxes = [(4 + 14 * (k % 3), 4 + 14 * (k // 3), 5 + k, 5) for k in range(6)]
    found = Inspector(bright(), bank(), options=Options(most=2))(picture(*boxes))
    assert [r.box[2] for r in found.regions] == [10, 9]


def test_a_detector_without_thresholds_is_refused():
    with pytest.raises(UserError, match="no thresholds"):
        Inspector(Bright(), bank())


@pytest.mark.parametrize("options", [{"mm_per_pixel": 0.0}, {"most": 0}, {"least": 0}])
def test_senseless_options_are_refused(options):
    with pytest.raises(UserError):
        Options(**options)


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(1, 12))
def test_the_extent_is_the_largest_distance_of_any_two_corners(seed, height, width):
    mask = np.random.default_rng(seed).random((height, width)) < 0.3
    mask[height // 2, width // 2] = True
    corners = {(y + i, x + j) for y, x in np.argwhere(mask) for i in (0, 1) for j in (0, 1)}
    assert extent(mask) == pytest.approx(pdist(np.array(sorted(corners), dtype=float)).max())


# -- classes -------------------------------------------------------------------------------------------------


def drawn(folder, name, cls, *, split="train", mask=True):
    """A file with one defect: ``bar`` (a row) or ``dot`` (a square)."""
    at = np.random.default_rng(len(name) + ord(name[-1])).integers(8, 24, 2)
    x, y = (int(v) for v in at)
    box = (x, y, 16, 3) if cls == "bar" else (x, y, 7, 7)
    image = picture(box)
    path = folder / f"{name}.png"
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    regions = {}
    if mask:
        flat = np.zeros((SIDE, SIDE), np.uint8)
        flat[box[1] : box[1] + box[3], box[0] : box[0] + box[2]] = 255
        Image.fromarray(flat).save(folder / f"{name}_mask.png")
        regions = {cls: (Region("file", folder / f"{name}_mask.png"),)}
    return Sample(path, regions, 1 if cls == "dot" else 2, "part", split)


def world(folder, mask=True):
    rows = [drawn(folder, f"dot{k}", "dot", mask=mask) for k in range(3)]
    rows += [drawn(folder, f"bar{k}", "bar", mask=mask) for k in range(3)]
    rows += [drawn(folder, "asked", "bar", split="test", mask=mask)]
    return Index(tuple(rows), ("dot", "bar"), frozenset({"detect"}))


@pytest.mark.parametrize("mask", [True, False])
def test_regions_get_the_class_of_the_examples_drawn_or_not(tmp_path, mask):
    alone = Inspector(bright(), bank())
    examples = described(alone, world(tmp_path, mask))
    assert examples["part"].classes == ("dot", "bar")
    assert examples["part"].counts == {"dot": 3, "bar": 3}, "the test image is no example"
    inspector = Inspector(bright(), alone.bank, MVREC(head="centered"), examples)
    found = inspector(picture((5, 30, 16, 3), (30, 8, 7, 7)))
    assert [r.name for r in found.regions] == ["dot", "bar"]
    assert all(0.5 < r.probability <= 1 for r in found.regions)


def test_a_described_mask_equals_the_drawn_one(tmp_path):
    """What the detector marks on these pictures is what is drawn, so the features are the same."""
    by_mask, by_map = tmp_path / "a", tmp_path / "b"
    by_mask.mkdir()
    by_map.mkdir()
    alone = Inspector(bright(), bank(), options=Options(least=1))
    one = described(alone, world(by_mask, mask=True))["part"].feature
    two = described(alone, world(by_map, mask=False))["part"].feature
    assert torch.equal(one, two)


def test_without_classification_every_region_is_a_defect(tmp_path):
    alone = Inspector(bright(), bank())
    examples = described(alone, world(tmp_path))
    inspector = Inspector(bright(), alone.bank, MVREC(), examples, Options(classify=False))
    assert [r.name for r in inspector(picture((5, 30, 16, 3))).regions] == [DEFECT]


# -- the report ----------------------------------------------------------------------------------------------


def row(truth, decision, name="", truth_class="", file="a"):
    return {
        "file": f"/x/{file}.png", "name": file, "truth": truth, "decision": decision, "class": name,
        "truth_class": truth_class, "score": 1.0, "calibrated": 0.5, "regions": 1, "area_pixels": 3,
        "length_pixels": 2.0,
    }  # fmt: skip


def test_the_summary_counts_by_hand():
    rows = [
        row("good", "good"), row("good", "defect", "dot"), row("defect", "good", "", "dot"),
        row("defect", "defect", "dot", "dot"), row("defect", "defect", "bar", "dot"),
        row("defect", "defect", "unknown", "bar"), row("defect", "defect", "unknown", "burn"),
        row("", "defect", "bar"),
    ]  # fmt: skip
    told = report.summary(rows, [{}] * 6, ["dot", "bar"])
    assert told == {
        "images": 8, "defective": 6, "regions": 6, "found/bar": 2, "found/dot": 2, "found/unknown": 2,
        "good_images": 2, "false_alarms": 1, "false_alarm_rate": 0.5, "defects": 5, "detected": 4,
        "detection_rate": 0.8, "named": 2, "abstained": pytest.approx(1 / 3), "class_accuracy": 0.5,
        "new": 1, "new_unknown": 1.0,
    }  # fmt: skip
    assert len(report.sentences(told)) == 5


def test_names_in_the_page_are_text_not_markup():
    rows = [row("defect", "defect", "<b>", "dot", "<script>alert(1)</script>")]
    regions = [{"file": rows[0]["file"], "class": "<b>", "area_pixels": 3, "length_pixels": 2.0}]
    page = report.to_html(rows, regions, {rows[0]["name"]: b"jpeg"}, report.summary(rows, regions), "<i>")
    assert "<script>alert" not in page
    assert "<i>" not in page
    assert "http" not in page.replace("http-equiv", ""), "no request leaves the page"


# -- the command line ----------------------------------------------------------------------------------------

TOY = (
    "data=folder", "data.workers=0", "data.side=64", "logger=none", "inspect.mm_per_pixel=0.1", "alpha=0.2",
)  # fmt: skip


def parts(folder):
    """Own pictures: good ones and two labelled defects to learn from, six new parts."""
    r = np.random.default_rng(0)

    def save(place, name, *boxes):
        image = picture(*boxes).permute(1, 2, 0).numpy().astype(int) + r.integers(-6, 7, (SIDE, SIDE, 1))
        (folder / place).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / place / f"{name}.png")

    for k in range(12):
        save("train/good", f"g{k}")
    for k in range(2):
        save("train/dot", f"d{k}", (10 + 9 * k, 12, 7, 7))
        save("train/bar", f"b{k}", (6, 14 + 9 * k, 20, 3))
    for k in range(3):
        save("test/good", f"n{k}")
        save("test/bar", f"m{k}", (8, 12 + 9 * k, 20, 3))
    return folder


@pytest.fixture(scope="module")
def inspected(tmp_path_factory):
    place = tmp_path_factory.mktemp("inspect")
    parts(place / "my parts ä")
    done = run("mode=inspect", *TOY, "data.root='my parts ä'", "hydra.run.dir=first", cwd=place)
    assert done.returncode == 0, done.stderr
    return place, done


def read(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_the_command_leaves_tables_page_pictures_and_the_artefact(inspected):
    place, done = inspected
    folder = place / "first"
    rows = read(folder / "inspection.csv")
    assert len(rows) == 6
    assert {r["truth"] for r in rows} == {"good", "defect"}
    called = [r for r in rows if r["decision"] == "defect"]
    assert [r["truth_class"] for r in called if r["truth"] == "defect"] == ["bar"] * 3
    regions = read(folder / "regions.csv")
    assert float(regions[0]["length_mm"]) == pytest.approx(float(regions[0]["length_pixels"]) / 10, abs=0.01)
    assert len(list((folder / "predictions" / "mask").glob("*.png"))) == 6
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "done"
    assert record["metrics"]["inspect/detection_rate"] == 1.0
    page = (folder / "inspection.html").read_text("utf-8")
    assert page.count("data:image/jpeg") == 6
    assert done.stdout.strip().splitlines()[-1] == str(folder)


@pytest.mark.slow
def test_the_artefact_gives_the_same_decisions_in_a_later_process(inspected):
    place, _ = inspected
    shutil.copy(place / "first" / "inspector.safetensors", place / "alone.safetensors")
    same = ("file", "decision", "score", "calibrated", "class", "area_pixels", "length_pixels")
    first = [{k: r[k] for k in same} for r in read(place / "first" / "inspection.csv")]
    for how in ("run=first", "checkpoint=alone.safetensors"):
        done = run("mode=inspect", how, *TOY[:-1], "data.root='my parts ä'", "hydra.run.dir=again", cwd=place)
        assert done.returncode == 0, done.stderr
        again = [{k: r[k] for k in same} for r in read(place / "again" / "inspection.csv")]
        assert again == first
        shutil.rmtree(place / "again")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["run=first", "checkpoint=first/inspector.safetensors"])
def test_what_is_reported_can_change_and_what_was_learned_cannot(inspected, how):
    place, _ = inspected
    asked = ("mode=inspect", how, *TOY[:-2], "data.root='my parts ä'", "hydra.run.dir=other")
    done = run(*asked, "inspect.mm_per_pixel=1", "inspect.most=1", "inspect.least=3", cwd=place)
    assert done.returncode == 0, done.stderr
    regions = read(place / "other" / "regions.csv")
    assert len(regions) == len({r["file"] for r in regions})
    assert float(regions[0]["length_mm"]) == pytest.approx(float(regions[0]["length_pixels"]), abs=0.1)
    shutil.rmtree(place / "other")
    for wrong in ("alpha=0.05", "inspect.token=both"):
        done = run(*asked, wrong, cwd=place)
        assert done.returncode == 2, done.stderr
        message, advice = done.stderr.strip().splitlines()[-2:]
        assert message.startswith(f"Error: {wrong}: ")
        assert "was made with" in message
        assert advice.startswith("Leave it out")
        shutil.rmtree(place / "other")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "says", "hint"),
    [
        (["method=sofs", "data=toy"], "SOFS is none", "method=subspace"),
        (["data=toy", "alpha=1.5"], "alpha=1.5", "alpha=0.05"),
        (["data=toy", "checkpoint=no.safetensors"], "no such inspector", "inspector.safetensors"),
        (["data=toy", "checkpoint=torn.safetensors"], "no readable inspector", "Copy the file again"),
    ],
)
def test_mistakes_are_two_lines(arguments, says, hint, tmp_path):
    (tmp_path / "torn.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{}")
    done = run("mode=inspect", *arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    message, advice = done.stderr.strip().splitlines()[-2:]
    assert says in message
    assert hint in advice
