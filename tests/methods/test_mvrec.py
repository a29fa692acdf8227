import csv
import json
import sys

import pytest
import torch
from cli import ROOT
from PIL import Image
from warm import run

from fewspect.data import features
from fewspect.data.features import FeatureSet
from fewspect.errors import UserError
from fewspect.methods.mvrec.heads import NAMES
from fewspect.methods.mvrec.method import MVREC
from fewspect.types import DataInfo, Support

CLASSES = ("hole", "scratch", "stain")
FEW = {"steps": 6}


def world(items, seed, *, views=9, width=16, classes=3, spread=0.4):
    """Features (items, views, width) with a common part, and labels from 1."""
    kinds = torch.randn(classes, views, width, generator=torch.Generator().manual_seed(99))
    random = torch.Generator().manual_seed(seed)
    label = torch.arange(items) % classes
    noise = torch.randn(items, views, width, generator=random)
    return 3 + kinds[label] + spread * noise, label + 1


def support(shot=3, text=None, **options):
    feature, label = world(3 * shot, 1, **options)
    empty = torch.zeros(len(label), 3, 0, 0)
    return Support(empty, empty[:, 0], label, torch.ones(len(label)), CLASSES, feature, "p", text)


@pytest.mark.parametrize("head", sorted(set(NAMES) - {"text"}))
def test_every_head_answers(head):
    method = MVREC(head=head, training=FEW)
    asked, truth = world(12, 2)
    found = method.classify(support(), asked)
    assert found.logits.shape == (12, 3)
    assert found.score.shape == (12,)
    assert torch.allclose(found.logits.exp().sum(-1), torch.ones(12), atol=1e-4)
    assert (found.logits.argmax(-1) + 1 == truth).float().mean() > 0.8


def test_the_state_is_returned_and_not_kept():
    method = MVREC()
    before = {k for k in vars(method)}
    one, two = method.adapt(support()), method.adapt(support(shot=1))
    asked, _ = world(4, 2)
    assert not torch.equal(method.predict(asked, one).logits, method.predict(asked, two).logits)
    assert torch.equal(method.predict(asked, one).logits, method.predict(asked, one).logits)
    assert set(vars(method)) == before


def test_views_are_chosen():
    asked, _ = world(5, 2, views=27)
    given = support(views=27)
    whole = MVREC().classify(given, asked).logits
    first = MVREC(query_views="first").classify(given, asked).logits
    listed = MVREC(query_views=[0]).classify(given, asked).logits
    centred = MVREC(support_views="centred").classify(given, asked).logits
    by_hand = MVREC(support_views=[4, 13, 22], query_views=[4, 13, 22]).classify(given, asked).logits
    assert torch.equal(first, listed)
    assert torch.equal(centred, by_hand)
    assert not torch.allclose(whole, first)
    with pytest.raises(UserError, match=r"Views \[0\] are not among the 3 views"):
        MVREC(support_views="centred", query_views="first").classify(given, asked)


def test_text_counts_where_it_is_there():
    text = torch.eye(3, 16)
    asked = torch.eye(3, 16)[:, None].repeat(1, 9, 1)
    assert MVREC(head="text").classify(support(text=text), asked).logits.argmax(-1).tolist() == [0, 1, 2]
    mixed = MVREC(head="proto", text_weight=1.0).classify(support(text=text), asked)
    assert mixed.logits.argmax(-1).tolist() == [0, 1, 2]
    with pytest.raises(UserError, match="hold no class descriptions"):
        MVREC(text_weight=0.5).classify(support(), asked)


@pytest.mark.parametrize("way", ["laplacian", "pt_map"])
def test_transductive_answers(way):
    asked, truth = world(12, 2)
    found = MVREC(transductive=way).classify(support(), asked)
    assert (found.logits.argmax(-1) + 1 == truth).float().mean() > 0.8


@pytest.mark.parametrize("head", ["centered", "zip", "knn", "ridge"])
def test_strangers_are_rejected(head):
    method = MVREC(head=head, reject=0.1)
    known, truth = world(30, 2)
    strange = 3 + 2 * torch.randn(30, 9, 16, generator=torch.manual_seed(5))
    given = support(shot=8)
    found = method.classify(given, known)
    label = found.extra["label"]
    assert (label == -1).float().mean() <= 0.35
    assert (label[label > 0] == truth[label > 0]).float().mean() > 0.8
    if head == "centered":
        assert (method.classify(given, strange).extra["label"] == -1).float().mean() > 0.6


def test_choices_that_do_not_fit_are_told():
    for options, told in (
        ({"head": "zipp"}, "method.head=zipp does not exist"),
        ({"cache": {"config": 9}}, "config=9 does not exist"),
        ({"reject": 1.5}, "no share"),
        ({"head": "zip_f", "reject": 0.1}, "training of its own"),
        ({"text_weight": -1.0}, "no share"),
        ({"text_weight": 0.5, "transductive": "laplacian"}, "transductive=laplacian reads no"),
        ({"text_weight": 0.5, "transductive": "pt_map"}, "transductive=pt_map reads no"),
        ({"head": "zip_f", "training": {"steps": 0}}, r"method\.training\.steps=0"),
        ({"merge": "mean_feature"}, "compares views one by one"),
    ):
        with pytest.raises(UserError, match=told):
            MVREC(**options)
    with pytest.raises(UserError, match="at least two supports per class"):
        MVREC(reject=0.1).adapt(support(shot=1))
    with pytest.raises(UserError, match=r"does not work with data\.protocol=plain"):
        MVREC().setup_data(DataInfo(protocol="plain"))


# -- the command line ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    base = tmp_path_factory.mktemp("features")
    for name, items, seed in (("a", 15, 1), ("b", 21, 2)):
        feature, label = world(items, seed)
        thumb = torch.randint(256, (items, 4, 24, 24), dtype=torch.uint8, generator=torch.manual_seed(seed))
        made = FeatureSet(feature[:, :, None].half(), label - 1, CLASSES, thumb=thumb, product="bolt")
        features.write(base / f"{name}.safetensors", made)
    return base


@pytest.mark.slow
def test_features_alone(files, tmp_path):
    done = run(
        *("method=mvrec", "data=features", "data.support=a.safetensors", "data.query=b.safetensors"),
        *("data.shot=3", "data.features.samplings=6", "method.query_views=[0]", "data.batch_size=4"),
        *("logger=none", f"hydra.run.dir={tmp_path}/run"),
        cwd=files,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "done"
    assert record["metrics"]["test/accuracy"] > 0.6
    assert record["metrics"]["test/accuracy_ci95"] >= 0
    with (tmp_path / "run" / "samplings.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    mean = sum(float(r["accuracy"]) for r in rows) / 6
    assert mean == pytest.approx(record["metrics"]["test/accuracy"], abs=1e-4)
    assert Image.open(tmp_path / "run" / "panels" / "confusion_bolt.png").size[0] > 200
    assert "bolt/scratch" in done.stdout


@pytest.mark.slow
def test_heads_in_one_sweep(files, tmp_path):
    done = run(
        *("-m", "method=mvrec", "method.head=zip,zip_f,centered", "method.training.steps=5", "data=features"),
        *(
            "data.support=a.safetensors",
            "data.query=b.safetensors",
            "data.features.samplings=2",
            "logger=none",
        ),
        f"hydra.sweep.dir={tmp_path}/sweep",
        cwd=files,
    )
    assert done.returncode == 0, done.stderr
    found = sorted((tmp_path / "sweep").glob("*/run.json"))
    assert len(found) == 3
    assert all(json.loads(p.read_text())["status"] == "done" for p in found)


@pytest.mark.slow
def test_own_images_and_mistakes(tmp_path):
    for product in ("dent", "hole"):
        for n in range(5):
            path = tmp_path / "data" / product / f"{n}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = Image.new("L", (64, 64), 120)
            image.paste(30 if product == "hole" else 200, (10 + 4 * n, 20, 30 + 4 * n, 40))
            image.save(path)
    fixed = ("method=mvrec", "data=folder", f"data.root={tmp_path}/data", "logger=none", "data.workers=0")
    done = run(*fixed, "data.shot=2", f"hydra.run.dir={tmp_path}/run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "run.json").read_text())["metrics"]["test/accuracy"] > 0.7
    assert list((tmp_path / "data" / "features").glob("tiny-*.safetensors"))
    bad = run(*fixed, "data.shot=5", f"hydra.run.dir={tmp_path}/bad", cwd=tmp_path)
    assert bad.returncode == 2
    assert "dent has" in bad.stderr
    assert "Traceback" not in bad.stderr


@pytest.mark.slow
def test_new_items_are_answered_and_the_published_table_is_written(files, tmp_path):
    sys.path.insert(0, str(ROOT))
    from benchmarks.published import collect, table

    shown = ("data=features", "data.support=a.safetensors", "data.query=b.safetensors", "logger=none")
    new = run(
        "mode=predict", "method=mvrec", *shown, "data.shot=null", f"hydra.run.dir={tmp_path}/p", cwd=files
    )
    assert new.returncode == 0, new.stderr
    with (tmp_path / "p" / "predictions" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 21
    assert {r["decision"] for r in rows} == set(CLASSES)
    assert all(0 < float(r["probability"]) <= 1 for r in rows)
    unknown = run(
        *("method=mvrec", *shown, "data.shot=3", "data.features.unknown=[stain]", "method.reject=0.2"),
        f"hydra.run.dir={tmp_path}/runs/u",
        cwd=files,
    )
    assert unknown.returncode == 0, unknown.stderr
    metrics = json.loads((tmp_path / "runs" / "u" / "run.json").read_text())["metrics"]
    assert metrics["test/unknown_auroc"] > 0.7
    found = collect(tmp_path / "runs")
    assert list(found) == ["ridge"]
    assert table(found["ridge"]).splitlines()[0] == "| object | 3 mv |"


@pytest.mark.slow
def test_masks_of_another_run(tmp_path):
    """A segmenter finds the defects, MVREC names them."""
    from cli import FAST

    from fewspect.data.toy.layouts import write

    write(
        tmp_path / "parts",
        "pairs_binary",
        products=["wood"],
        defects=["blob", "hole"],
        side=64,
        images=6,
        good=4,
    )
    fit = run(*FAST, f"hydra.run.dir={tmp_path}/sofs", cwd=tmp_path)
    assert fit.returncode == 0, fit.stderr
    shown = ("data=folder", f"data.root={tmp_path}/parts", "data.workers=0")
    seen = run(
        "mode=predict", f"run={tmp_path}/sofs", *shown, "trainer.limit_predict_batches=1.0", cwd=tmp_path
    )
    assert seen.returncode == 0, seen.stderr
    named = run(
        *(
            "method=mvrec",
            *shown,
            "data.shot=2",
            "data.features.samplings=3",
            "data.features.query_masks=none",
        ),
        *(f"method.mask_from={tmp_path}/sofs", "logger=none", f"hydra.run.dir={tmp_path}/named"),
        cwd=tmp_path,
    )
    assert named.returncode == 0, named.stderr
    assert json.loads((tmp_path / "named" / "run.json").read_text())["metrics"]["test/accuracy"] >= 0
    assert (tmp_path / "named" / "panels" / "views.png").is_file()
