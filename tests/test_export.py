"""Exported models answer as the run: on toy data always, on real images of many sizes where those are."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import lightning.pytorch as pl
import pytest
import torch
from cli import FAST, ROOT, environment
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from warm import run

import fewspect
from fewspect.engine import artefact, build, folders
from fewspect.errors import UserError
from fewspect.export import parity, reader

pytest.importorskip("onnxruntime")

CONF = ROOT / "conf"
SIDE = 64
SMALL = (
    f"data.side={SIDE}",
    "data.workers=0",
    "data.batch_size=2",
    "data.test_episodes=8",
    f"data.reader.side={SIDE}",
    "data.reader.images_per_class=3",
    "data.reader.val_per_class=1",
    "data.reader.test_per_class=2",
    "data.reader.good=6",
    "+data.reader.products=[wood]",
    "+data.reader.defects=[blob,burn,dent,hole,scratch]",
)
NO_CACHE = "data.features.cache=null"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("factory")


def fitted(tmp_path, *options, batches=2, good=6):
    """Data and method of a config, after a few steps where there is something to learn."""
    OmegaConf.register_new_resolver("run_folder", folders.run_folder, replace=True)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        data, method = build.parts(build.resolve(compose("config", list(options))))
    if method.fit_kind != "none":
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        pl.Trainer(
            accelerator="cpu", devices=1, default_root_dir=tmp_path, enable_checkpointing=False,
            use_distributed_sampler=False, num_sanity_val_steps=0, max_epochs=1,
            limit_train_batches=batches, limit_val_batches=good, **quiet,
        ).fit(method, datamodule=data)  # fmt: skip
    return data, method.eval()


def photo(height, width, seed=0):
    return torch.randint(256, (3, height, width), dtype=torch.uint8, generator=torch.manual_seed(seed))


TOY = [
    ("subspace", "onnx"),
    ("ssim_ae", "torch_export"),
    pytest.param("sofs", "onnx", marks=pytest.mark.slow),
    pytest.param("sofs data.shot=0 data.normal_shot=2", "onnx", marks=pytest.mark.slow),
    pytest.param("sofs method.parity=true data.shot=2", "torch_export", marks=pytest.mark.slow),
    pytest.param("sofs data.crop_size=40 method.evaluate.overlap=0.3", "onnx", marks=pytest.mark.slow),
    pytest.param("ridge", "torch_export", marks=pytest.mark.slow),
    pytest.param("incontext", "onnx", marks=pytest.mark.slow),
    pytest.param("patch_nn", "onnx", marks=pytest.mark.slow),
    pytest.param(
        "patch_nn +method.evaluate.zoom=96 method.evaluate.stride=40 method.neighbours=2 "
        "method.metric=euclidean method.reweight=3 method.clean.min_area=5 method.clean.low=0.7",
        "onnx",
        marks=pytest.mark.slow,
    ),
    pytest.param("subspace method.evaluate.stride=40", "onnx", marks=pytest.mark.slow),
    pytest.param(
        "subspace +method.maps.resolution=model +method.maps.border=2 method.maps.smooth=1",
        "torch_export",
        marks=pytest.mark.slow,
    ),
    pytest.param("patch_nn +method.maps.pixel_norm=on", "onnx", marks=pytest.mark.slow),
    pytest.param("dino_recon", "onnx", marks=pytest.mark.slow),
    pytest.param(f"mvrec method.head=zip {NO_CACHE}", "onnx", marks=pytest.mark.slow),
    pytest.param(f"mvrec method.head=zip {NO_CACHE}", "torch_export", marks=pytest.mark.slow),
    pytest.param(
        f"mvrec {NO_CACHE} +data.features.views.relative=true +data.features.views.reflect=true",
        "torch_export",
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.parametrize(("options", "kind"), TOY)
def test_an_exported_model_answers_like_the_run(options, kind, root, tmp_path):
    name, *more = options.split()
    data, method = fitted(tmp_path, f"method={name}", f"data.root={root}", *SMALL, *more)
    agreed = artefact.export(data, method, tmp_path, kind, of=_of(data, method), samples=6)
    assert agreed.samples >= 2
    assert agreed.score <= parity.TOLERANCE
    assert agreed.map <= parity.MAP_TOLERANCE
    assert agreed.different == 0
    about = json.loads((tmp_path / "export.json").read_text())
    assert about["parity"] == agreed.plain()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith((".part", "model"))] == [about["model"]]
    exported = fewspect.load(tmp_path, trust=True)
    if method.task != "classify":
        _answers_another_size(exported, data, method)


def _of(data, method):
    if method.task == "classify":
        return None
    questions = data.dataset("predict")
    known = [questions[k] for k in range(len(questions))]
    return min(e.product if method.task == "detect" else e.name for e in known)


def _answers_another_size(exported, data, method):
    """Sizes that no sample had, smaller and larger than the network's side; floats as well as bytes."""
    least = exported.about["least_side"]
    name = _of(data, method)
    questions = (data.dataset("predict")[k] for k in range(len(data.dataset("predict"))))
    asked = next(e for e in questions if name in (e.product, e.name))
    for size in ((max(33, least), max(50, least)), (101, 160)):
        image = photo(*size)
        found, again = exported(image), exported(image.float() / 255)
        expected = method.answers([replace(asked, query_image=image[None])])[0]
        assert found.prob.shape == found.mask.shape == (1, *size)
        assert torch.equal(found.prob, again.prob)
        assert (found.prob - expected.prob).abs().max() <= 1e-3 * max(1.0, float(expected.prob.abs().max()))
        assert float((found.mask != expected.mask).float().mean()) <= 1e-3


@pytest.fixture(scope="module")
def made(root, tmp_path_factory):
    """A small detector and its data."""
    return fitted(tmp_path_factory.mktemp("fit"), "method=subspace", f"data.root={root}", *SMALL)


def test_a_model_that_answers_differently_is_not_written(made, tmp_path, monkeypatch):
    data, method = made
    answers = type(method).answers

    def wrong(self, batch):
        return [replace(p, score=p.score + 0.01) for p in answers(self, batch)]

    monkeypatch.setattr(type(method), "answers", wrong)
    with pytest.raises(UserError, match=r"answers differently: score by 0\.01.*"):
        artefact.export(data, method, tmp_path, "torch_export", of=None, samples=2)
    assert not list(tmp_path.iterdir())


def test_other_decisions_other_shapes_and_nan_are_differences():
    from fewspect.types import Prediction

    def answer(score, decision, value=0.0):
        return Prediction(
            prob=torch.full((1, 4, 4), value), mask=torch.zeros(1, 4, 4, dtype=torch.uint8),
            score=torch.tensor([score]), decision=torch.tensor([decision], dtype=torch.uint8),
        )  # fmt: skip

    same = parity.compare([(answer(0.5, 1), answer(0.5, 1), (4, 4))], 0.4)
    same.require()
    for other in (answer(0.5, 0), answer(float("nan"), 1), answer(0.5, 1, 0.01), answer(0.6, 1)):
        with pytest.raises(UserError, match="answers differently"):
            parity.compare([(answer(0.5, 1), other, (4, 4))], 0.4).require()
    with pytest.raises(UserError, match="score by inf"):  # the run's own answer is no number
        parity.compare([(answer(float("nan"), 1), answer(0.5, 1), (4, 4))], 0.4).require()
    tie = parity.compare([(answer(0.4, 0), answer(0.4, 1), (4, 4))], 0.4)
    assert (tie.ties, tie.different, tie.decisions) == (1, 0, 1)


@pytest.mark.parametrize(
    ("mask", "value"),
    [(torch.uint8, 255), (torch.int64, 255), (torch.bool, 255), (torch.float32, 128)],
    ids=str,
)
def test_an_instance_is_told_by_any_kind_of_mask(mask, value):
    """Labels of an index mask are not grey levels; soft masks are float."""
    values = torch.zeros(8, 8)
    values[2:4, 2:5] = 0.5 if mask == torch.float32 else 2
    given = reader._instance(values.to(mask), None, torch.zeros(3, 8, 8))
    assert given["mask"].unique().tolist() == [0, value]
    assert given["box"].tolist() == [2, 2, 4, 3]
    with pytest.raises(UserError, match="tells instances apart"):
        reader._instance(torch.zeros(8, 8).to(mask), None, torch.zeros(3, 8, 8))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("method=gccs data.ways.way=2 data.ways.query=1 data.ways.runs=16 data.ways.cache=null", "cannot be"),
        ("method=incontext method.clusters=0.2", "grouping patches is no graph"),
        (f"method=mvrec method.transductive=laplacian {NO_CACHE}", "depends on all queries"),
        ("method=subspace", "no thresholds yet"),
        ("method=sofs", "answers one question, this run knows"),
    ],
)
def test_what_cannot_be_exported_says_why(options, says, root, tmp_path):
    OmegaConf.register_new_resolver("run_folder", folders.run_folder, replace=True)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        given = compose("config", [*options.split(), f"data.root={root}", *SMALL])
        data, method = build.parts(build.resolve(given))
    name = None if "answers one" in says or method.task != "segment" else _of(data, method)
    with pytest.raises(UserError, match=says):
        artefact.export(data, method, tmp_path, "torch_export", of=name, samples=2)
    assert not list(tmp_path.iterdir())


def test_a_name_that_is_not_there_is_answered_by_those_that_are(made, tmp_path):
    with pytest.raises(UserError, match=r"export\.of=steel: there is nothing of that name") as error:
        artefact.export(*made, tmp_path, "torch_export", of="steel", samples=2)
    assert "wood" in error.value.hint


def written(folder, **changes):
    folder.mkdir(exist_ok=True)
    (folder / "model.pt2").write_bytes(b"x")
    about = {
        "format_version": 1, "format": "torch_export", "model": "model.pt2", "inputs": [], "outputs": [],
        "classes": [], "sha256": reader.digest(folder / "model.pt2"),
    }  # fmt: skip
    (folder / "export.json").write_text(json.dumps(about | changes))
    return folder


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sha256": "0"}, "missing, damaged"),
        ({"model": "gone.onnx"}, "missing, damaged"),
        ({}, "can run code that is hidden"),
        ({"format_version": 9}, "format version 9"),
        ({"model": 3, "classes": None, "sha256": None}, "missing, damaged"),
    ],
)
def test_a_foreign_export_is_refused(changes, says, tmp_path):
    with pytest.raises(UserError, match=says):
        fewspect.load(written(tmp_path / "x", **changes))


def test_an_export_stays_in_its_folder(tmp_path):
    (tmp_path / "secret.pt2").write_bytes(b"x")
    folder = written(tmp_path / "x", model="../secret.pt2", sha256=reader.digest(tmp_path / "secret.pt2"))
    with pytest.raises(UserError, match=r"x/secret\.pt2 is missing"):
        fewspect.load(folder, trust=True)


def test_no_export_says_how_to_make_one(tmp_path):
    with pytest.raises(UserError) as error:
        fewspect.load(tmp_path)
    assert "mode=export" in error.value.hint
    (tmp_path / "export.json").write_text("{")
    with pytest.raises(UserError, match=r"export\.json cannot be read"):
        fewspect.load(tmp_path)


ALONE = """
import sys, numpy as np, fewspect
predictor = fewspect.load(sys.argv[1])
answer = predictor(np.zeros((3, 80, 90), dtype=np.uint8))
print(int(answer.decision), tuple(answer.mask.shape), sorted({"hydra", "omegaconf"} & set(sys.modules)))
"""


@pytest.mark.slow
def test_from_a_run_to_three_lines_of_python(tmp_path):
    done = run(*FAST, "method=patch_nn", "data.test_episodes=8", "hydra.run.dir=first", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    before = (tmp_path / "first" / "run.json").read_text()
    for kind in ("onnx", "torch_export"):
        done = run("mode=export", "run=first", f"format={kind}", "export.of=wood", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1].endswith(f"first/export/{kind}")
        assert "decisions equal" in done.stderr
    assert (tmp_path / "first" / "run.json").read_text() == before
    surroundings = environment() | {"PYTHONPATH": str(ROOT / "src")}
    asked = [sys.executable, "-c", ALONE, str(tmp_path / "first")]
    answer = subprocess.run(asked, env=surroundings, capture_output=True, text=True, check=True)
    assert answer.stdout.split(maxsplit=1)[1].strip() == "(1, 80, 90) []"
    done = run("mode=export", "run=first", cwd=tmp_path)
    assert done.returncode == 2
    assert "export.of=" in done.stderr
    done = run("mode=export", "run=first", "format=onyx", "export.of=wood", cwd=tmp_path)
    assert (done.returncode, "format='onyx'" in done.stderr) == (2, True), done.stderr


REAL = {
    "sofs": ("data.fold=0", "data.side=128"),
    "ssim_ae": ("data.side=128",),
    "patch_nn": ("data.side=128", "method.coreset=2000"),
    "subspace": ("data.side=128",),
    "mvrec": ("method.head=zip", "data.shot=5", NO_CACHE, "data.features.views.kind=mo"),
}
IMAGES = 60


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_on_real_images_of_many_sizes(name, tmp_path):
    shared = os.environ.get("FEWSPECT_SHARED", str(ROOT.parent / "shared"))
    tiles = f"{shared}/data/magnetic_tile"
    if not os.path.isdir(tiles):  # noqa: PTH112 - a text
        pytest.skip(f"no real data at {tiles}; set FEWSPECT_SHARED to the folder that holds data/")
    data, method = fitted(
        tmp_path, f"method={name}", "data=magnetic_tile", f"data.root={tiles}", "data.workers=0",
        "data.batch_size=2", *REAL[name], batches=8, good=20,
    )  # fmt: skip
    for kind in ("onnx", "torch_export"):
        agreed = artefact.export(data, method, tmp_path, kind, of=_of(data, method), samples=IMAGES)
        print(name, kind, agreed)
        assert agreed.samples >= 50
        assert agreed.sizes >= 25 or name == "mvrec"
        assert agreed.score <= 1e-4
        assert agreed.mask_different <= 1e-5 * agreed.mask_pixels
        assert agreed.different == 0
