"""Paste: where defects land, what changes beside them, seams, speed; ``mode=generate`` as a user runs it."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image
from warm import run

from fewspect.data import rle
from fewspect.data.readers import folder
from fewspect.errors import UserError
from fewspect.methods.paste.blend import alpha_blend, grown, poisson
from fewspect.methods.paste.method import Paste
from fewspect.methods.paste.noise import gradient_noise, perlin
from fewspect.types import DataInfo, Episode

SIDE = 64
CLASSES = ("hole", "scratch")


def episode(image, mask, name, product="board", label=None):
    side = image.shape[-1]
    return Episode(
        *(torch.zeros(0, 3, side, side), torch.zeros(0, side, side), torch.zeros(0), torch.zeros(0)),
        *(image[None], mask[None], torch.tensor([int(mask.any()) if label is None else label]), CLASSES),
        product=product,
        paths=(f"x/{name}.png",),
    )


def observed(side=SIDE, **options):
    """A grey product with a black square (class 1) and a white line (class 2)."""
    paste = Paste(**options)
    paste.setup_data(DataInfo(CLASSES, ("board",), frozenset({"segment", "detect"}), False, side, "labelled"))
    r = torch.manual_seed(0)
    for k in range(4):
        good = 0.5 + 0.02 * torch.randn(3, side, side, generator=r).clamp(-2, 2)
        empty = torch.zeros(side, side, dtype=torch.uint8)
        paste.observe([episode(good, empty, f"good{k}")])
        bad, mask = good.clone(), empty.clone()
        box = (slice(20, 30), slice(10, 20)) if k % 2 else (slice(40, 42), slice(5, 50))
        bad[:, box[0], box[1]], mask[box] = (0.0, 1) if k % 2 else (1.0, 2)
        paste.observe([episode(bad, mask, f"bad{k}")])
    return paste


# -- blending ------------------------------------------------------------------------------------------------


def test_poisson_solves_its_equation_and_leaves_the_rest():
    r = np.random.default_rng(0)
    under, pixels = (r.uniform(0, 255, (12, 15, 3)).astype(np.float32) for _ in range(2))
    mask = np.zeros((12, 15), bool)
    mask[3:9, 4:11] = mask[5, 2:14] = True
    blended = poisson(under, pixels, mask)
    assert np.array_equal(blended[~mask], under[~mask])

    def laplacian(a):
        return 4 * a[1:-1, 1:-1] - a[:-2, 1:-1] - a[2:, 1:-1] - a[1:-1, :-2] - a[1:-1, 2:]

    gap = np.abs(laplacian(blended) - laplacian(pixels))[mask[1:-1, 1:-1]]
    assert gap.max() < 0.01


def test_poisson_takes_over_a_level_that_only_differs_by_a_constant():
    under = np.full((10, 10, 3), 200, np.float32)
    mask = np.zeros((10, 10), bool)
    mask[3:7, 0:6] = True  # touches the border: nothing to agree with there
    assert np.allclose(poisson(under, np.full((10, 10, 3), 40, np.float32), mask), 200, atol=1e-3)
    everything = np.ones((10, 10), bool)
    assert np.allclose(poisson(under, under - 50, everything), 150), "nothing around it: as it is"


def test_a_cut_has_a_soft_edge_and_the_brightness_of_its_place():
    under = np.full((20, 20, 3), 200, np.float32)
    pixels = np.full((20, 20, 3), 100, np.float32)
    mask = np.zeros((20, 20), bool)
    mask[6:14, 6:14] = True
    pixels[8:12, 8:12] = 40
    blended = alpha_blend(under, pixels, mask, 2)
    assert np.array_equal(blended[~mask], under[~mask])
    assert blended[10, 10, 0] == pytest.approx(140), "60 below its surroundings, as it was"
    assert np.allclose(blended[6, 6:14], 200)
    assert grown(mask, 2).sum() > mask.sum()


def test_noise_is_smooth_and_its_shapes_are_connected():
    from scipy import ndimage

    noise = gradient_noise(np.random.default_rng(0), 64, (4, 4))
    assert np.abs(np.diff(noise, axis=0)).max() < 0.5
    assert 0.15 < noise.std() < 0.6
    for seed in range(20):
        shape = perlin(np.random.default_rng(seed), 64)
        assert max(shape.shape) <= 32
        assert ndimage.label(shape)[1] == 1
        assert shape.any(0).all()


# -- samples -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["poisson", "cut", "perlin"])
def test_defects_are_where_the_mask_is(kind):
    paste = observed(kinds={kind: 1.0}, strength=(1.0, 1.0), turn="any")
    expected = {"anomaly"} if kind == "perlin" else set(CLASSES)
    seen = set()
    for made in paste.generate(range(40)):
        assert made.image.shape == (3, SIDE, SIDE)
        assert made.image.dtype == made.mask.dtype == torch.uint8
        assert made.mask.any()
        seen |= {paste.classes[k - 1] for k in made.mask.unique().tolist() if k}
        away = (made.image.float() - 127.5).abs().mean(0)
        beyond = torch.nn.functional.max_pool2d((made.mask > 0).float()[None], 9, 1, 4)[0] == 0
        assert away[beyond].max() < 20, "changed far from the mask"
        assert away[made.mask > 0].mean() > 2 * away[beyond].mean()
        assert made.origin["good"].startswith("good")
        assert all(part.startswith(f"{kind}:") for part in made.origin["defects"].split())
    assert seen == expected


def test_a_sample_is_a_function_of_seed_and_number():
    one, two = observed(seed=3), observed(seed=3)
    first, second = one.generate([5])[0], two.generate([2, 5, 9])[1]
    assert torch.equal(first.image, second.image)
    assert torch.equal(first.mask, second.mask)
    assert not torch.equal(first.image, observed(seed=4).generate([5])[0].image)


def test_aligned_objects_keep_the_place():
    paste = observed(kinds={"cut": 1.0}, jitter=2, turn="none", scale=(1.0, 1.0), defects=(1, 1))
    for made in paste.generate(range(20)):
        rows = (made.mask == 1).any(1).nonzero()
        assert not len(rows) or abs(float(rows.float().mean()) - 24.5) <= 2.5


def test_what_is_missing_is_named():
    paste = Paste()
    paste.setup_data(DataInfo(CLASSES, protocol="labelled"))
    with pytest.raises(UserError, match="no good image"):
        paste.generate([0])
    grey, empty = torch.full((3, 8, 8), 0.5), torch.zeros(8, 8, dtype=torch.uint8)
    paste.observe([episode(grey, empty, "a"), episode(grey, empty + 1, "b", "wood")])
    with pytest.raises(UserError, match="no defect with a mask beside good images"):
        paste.generate([0])
    with pytest.raises(UserError, match="pasta does not exist"):
        Paste(kinds={"pasta": 1.0})
    for wrong, told in (
        ({"defects": [2, 1]}, r"method\.defects=\[2, 1\]"),
        ({"defects": [1]}, r"method\.defects=\[1\]"),
        ({"scale": [1.3, 0.7]}, r"method\.scale=\[1\.3, 0\.7\]"),
        ({"scale": [0, 0]}, r"method\.scale=\[0, 0\]"),
        ({"strength": [1, 0.8]}, r"method\.strength=\[1, 0\.8\]"),
        ({"jitter": -3}, r"method\.jitter=-3"),
        ({"kinds": {"cut": 1.0, "perlin": -1.0}}, "perlin is negative"),
    ):
        with pytest.raises(UserError, match=told):
            Paste(**wrong)
    with pytest.raises(UserError, match="this data set allows: classify"):
        paste.setup_data(DataInfo(CLASSES, tasks=frozenset({"classify"}), protocol="labelled"))


def test_a_defect_without_a_pixel_in_its_mask_is_no_good_ground():
    paste = observed()
    empty = torch.zeros(SIDE, SIDE, dtype=torch.uint8)
    paste.observe([episode(torch.zeros(3, SIDE, SIDE), empty, "speck", label=1)])
    assert len(paste._good["board"]) == 4
    assert len(paste._patches["board"]) == 4


# -- the command line ----------------------------------------------------------------------------------------

TOY = (
    "method=paste",
    "data.workers=0",
    "data.side=64",
    "data.reader.side=64",
    "data.reader.images_per_class=7",
    "data.reader.val_per_class=1",
    "data.reader.good=6",
    "+data.reader.products=[wood,board]",
    "+data.reader.defects=[hole,stain,thread,blob]",
)


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    place = tmp_path_factory.mktemp("generated")
    done = run(*TOY, "mode=generate", "generate.count=48", "generate.folder=made", cwd=place)
    assert done.returncode == 0, done.stderr
    return place, done


def test_good_images_alone_do_for_shapes_of_noise(tmp_path):
    (tmp_path / "parts/good").mkdir(parents=True)
    for k in range(3):
        pixels = np.random.default_rng(k).integers(90, 110, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"parts/good/{k}.png")
    kinds = [f"method.kinds.{kind}={int(kind == 'perlin')}" for kind in ("poisson", "cut", "perlin")]
    folder_of_good = ("data=folder", "data.root=parts", "data.side=64", "data.workers=0", "generate.count=2")
    done = run("mode=generate", "method=paste", *folder_of_good, *kinds, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    [manifest] = tmp_path.rglob("manifest.json")
    assert json.loads(manifest.read_text())["classes"] == ["anomaly"]


@pytest.mark.slow
def test_generate_writes_a_data_set(generated):
    place, done = generated
    made = place / "made"
    manifest = json.loads((made / "manifest.json").read_text())
    assert (manifest["seed"], len(manifest["samples"])) == (0, 48)
    assert manifest["method"].endswith("Paste")
    rows = list(csv.DictReader((made / "index.csv").open()))
    assert [r["image"] for r in rows] == [s["image"] for s in manifest["samples"]]
    for row, sample in zip(rows, manifest["samples"], strict=True):
        mask = np.asarray(Image.open(made / row["mask"]))
        areas = {c: int((mask == k).sum()) for k, c in enumerate(manifest["classes"], 1) if (mask == k).any()}
        assert areas == sample["areas"]
        assert Image.open(made / row["image"]).size == Image.open(made / f"colours/{row['mask'][6:]}").size
    record = json.loads((place / done.stdout.splitlines()[-1] / "run.json").read_text())
    assert record["status"] == "done"
    assert not list(place.glob(".made-*"))


def test_the_manifest_says_where_samples_come_from(generated):
    place, _ = generated
    manifest = json.loads((place / "made" / "manifest.json").read_text())
    samples = manifest["samples"]
    assert [s["number"] for s in samples] == list(range(48))
    assert len(set(manifest["seen"])) == len(manifest["seen"]) == 2 * (3 * 6 + 3)
    for sample in samples:
        assert sample["group"].startswith(sample["product"] + "/")
        assert sample["group"].rsplit("/", 1)[1] == sample["defects"].split()[0].split(":")[1]
        assert sample["change_inside"] > 5 * sample["change_outside"]
    ratios = [s["nearest_ratio"] for s in samples]
    assert np.median(ratios) < 0.5, "a training image with a defect on it is a near copy"
    nearest = [s["nearest"].split("/")[-1] == s["good"] for s in samples]
    assert np.mean(nearest) > 0.9
    index = folder.read(str(place / "made"))
    groups = {s.image.name: s.group for s in index.samples}
    assert groups == {s["image"].split("/")[1]: s["group"] for s in samples}
    sides = {}
    for sample in index.samples:
        sides.setdefault(sample.group, set()).add(sample.split)
    assert all(len(found) == 1 for found in sides.values()), "a group is on one side"


def test_coco_says_the_same_as_the_masks(generated):
    place, _ = generated
    content = json.loads((place / "made" / "annotations.json").read_text())
    names = {c["id"]: c["name"] for c in content["categories"]}
    manifest = json.loads((place / "made" / "manifest.json").read_text())
    assert list(names.values()) == manifest["classes"]
    for image in content["images"]:
        mask = np.asarray(Image.open(place / "made" / image["file_name"].replace("images", "masks")))
        again = np.zeros_like(mask)
        for found in (a for a in content["annotations"] if a["image_id"] == image["id"]):
            region = rle.decode(found["segmentation"]["counts"], image["height"], image["width"])
            assert region.sum() == found["area"]
            x, y, width, height = found["bbox"]
            assert region[y : y + height, x : x + width].sum() == found["area"]
            assert region.any(0).sum() == width
            again[region] = found["category_id"]
        assert np.array_equal(again, mask)


def test_a_generated_set_is_read_back(generated):
    place, _ = generated
    manifest = json.loads((place / "made" / "manifest.json").read_text())
    index = folder.read(str(place / "made"))
    assert index.classes == tuple(manifest["classes"])
    assert set(index.products) == {"wood", "board"}
    assert not [p for p in index.check() if p.level == "error"]
    assert len(index) == 48
    for sample in index.samples:
        [row] = [s for s in manifest["samples"] if s["image"].endswith(sample.image.name)]
        assert set(sample.regions) == set(row["areas"])
        assert {c: index.facts(sample).area[c] for c in sample.regions} == row["areas"]


@pytest.mark.slow
def test_every_other_method_takes_a_generated_set(generated):
    place, _ = generated
    done = run("mode=check", "data=folder", "data.root=made", "data.workers=0", "data.side=64", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "everything fits" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "says", "hint"),
    [
        (["method=paste", "mode=generate", "generate.folder=made"], "made is not empty", "generate.folder"),
        (["method=paste", "mode=generate", "generate.count=0"], "generate.count=0", "1 or more"),
        (["method=paste", "mode=train"], "Paste learns nothing before it draws", "mode=generate"),
        (["mode=generate", "method=sofs"], "SOFS generates nothing", "method=paste"),
    ],
)
def test_mistakes_are_two_lines(generated, arguments, says, hint):
    place, _ = generated
    done = run(*TOY[1:], *arguments, cwd=place)
    assert done.returncode == 2, done.stderr
    message, advice = done.stderr.strip().splitlines()
    assert says in message
    assert hint in advice
