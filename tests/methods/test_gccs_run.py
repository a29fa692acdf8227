"""GCCS on the command line, as its card says: own classes, shots, presets, cached features, other classes."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from warm import run

from fewspect.data.features import FeatureSet, write

pytestmark = pytest.mark.slow

WORDS = ("fine", "coarse", "upright", "flat", "dark", "bright", "dotted", "striped", "mixed")
QUICK = (
    "trainer=cpu",
    "logger=none",
    "data.ways.runs=20",
    "data.ways.val_runs=5",
    "data.ways.query=4",
    "data.ways.way=3",
)


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """Nine classes of stripes: frequency, direction and brightness."""
    root = tmp_path_factory.mktemp("classes")
    y, x = np.mgrid[:32, :32] / 32
    for k, word in enumerate(WORDS):
        (root / f"{word} surface").mkdir()
        rng = np.random.default_rng(k)
        for i in range(12):
            wave = np.sin(2 * np.pi * ((2 + k) * (x * np.cos(k) + y * np.sin(k)) + rng.random()))
            pixels = 40 + 15 * k + 30 * wave + 8 * rng.standard_normal((32, 32))
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            image.save(root / f"{word} surface" / f"{i}.png")
    return root


def metrics(done, cwd):
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    folder = done.stdout.strip().splitlines()[-1]
    return json.loads((cwd / folder / "run.json").read_text())["metrics"]


def own(classes, *more):
    return ("method=gccs", "data=folder", f"data.root={classes}", "backbone.side=32", *QUICK, *more)


def test_texts_alone_and_then_other_classes(classes, tmp_path):
    done = run(*own(classes, "data.shot=0"), cwd=tmp_path)
    assert 0 <= metrics(done, tmp_path)["test/accuracy"] <= 1
    folder = done.stdout.strip().splitlines()[-1]
    again = run("mode=test", f"run={folder}", "data.ways.test=all", "data.shot=0", cwd=tmp_path)
    assert again.returncode == 0, again.stderr[-2000:]


def test_a_shot_with_the_dustbin_and_unknown_classes(classes, tmp_path):
    more = (
        "data.shot=1",
        "data.ways.test=all",
        "+method.transport.allocation=dustbin",
        "data.ways.unknown=2",
    )
    done = run(*own(classes, "method.generator=none", *more), cwd=tmp_path)
    found = metrics(done, tmp_path)
    assert found["test/unknown_auroc"] > 0.5
    assert found["test/accuracy"] > 0.4


def test_seen_and_unseen_classes_together(classes, tmp_path):
    done = run(*own(classes, "data.shot=null", "data.ways.generalised=true"), cwd=tmp_path)
    assert {"test/harmonic", "test/ausuc", "test/seen", "test/unseen"} <= metrics(done, tmp_path).keys()


def test_the_trained_generator_of_a_preset(classes, tmp_path):
    small = [f"+method.contrast.{k}=16" for k in ("g_hidden", "d_hidden", "embed", "proj", "batch")]
    plan = ("data.episodes=3", "trainer.max_epochs=2", "data.shot=1")
    done = run(*own(classes, "method.preset=coded", *small, *plan), cwd=tmp_path)
    found = metrics(done, tmp_path)
    assert 1 >= found["test/acc_as_coded_inflated"] >= found["test/accuracy"] > 0.4


def test_cached_features_and_texts(tmp_path):
    g = torch.manual_seed(0)
    label = torch.arange(6).repeat_interleave(10)
    feature = torch.randn(6, 8, generator=g)[label] + 0.3 * torch.randn(60, 8, generator=g)
    names = tuple("abcdef")
    write(tmp_path / "images.safetensors", FeatureSet(feature[:, None, None], label, names))
    save_file({"text": torch.eye(6)}, tmp_path / "texts.safetensors", {"classes": json.dumps(names)})
    files = ("data.support=images.safetensors", "data.text=texts.safetensors")
    done = run("method=gccs", "data=features", *files, "data.shot=1", *QUICK, "data.ways.way=2", cwd=tmp_path)
    assert metrics(done, tmp_path)["test/accuracy"] > 0.8


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("data.ways.query=12",), "data.ways.query to at most 11"),
        (("data.ways.test=all", "data.shot=0"), "No class is left to learn from"),
        (("data.ways.test=[nothing]",), "no class nothing"),
    ],
)
def test_mistakes_are_told_in_two_lines(classes, tmp_path, more, message):
    done = run(*own(classes, "data.shot=1", *more), cwd=tmp_path)
    assert done.returncode == 2, done.stdout[-1000:] + done.stderr[-1000:]
    assert message in done.stdout + done.stderr
