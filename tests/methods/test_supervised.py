"""The supervised segmenter: losses, answers, classes by checkpoint, resume, and the command line."""

import csv
import json
import math
from functools import partial

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from PIL import Image
from warm import run

from fewspect.data.module import DataModule
from fewspect.data.readers.toy import read
from fewspect.engine.checkpoints import AtomicIO, Keeper
from fewspect.engine.front import Stopped
from fewspect.errors import UserError
from fewspect.methods.supervised.loss import cross_entropy, dice
from fewspect.methods.supervised.method import Supervised
from fewspect.methods.supervised.net import TORCHVISION, UNet
from fewspect.types import IGNORE, DataInfo, Episode

SIDE = 32
INFO = DataInfo(("crack", "hole"), ("wood",), frozenset({"segment", "detect"}), False, SIDE, "labelled")


def made(**options):
    method = Supervised(**{"width": 8, "levels": 3} | options)
    method.setup_data(INFO)
    return method


# -- losses --------------------------------------------------------------------------------------------------


def test_losses_are_those_of_a_slow_loop():
    r = torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 4, generator=r)
    target = torch.randint(0, 3, (2, 4, 4), generator=r).to(torch.uint8)
    target[0, 0] = IGNORE
    total = weight = 0.0
    both, sizes = [0.0] * 3, [0.0] * 3
    for b in range(2):
        for y in range(4):
            for x in range(4):
                t = int(target[b, y, x])
                if t == IGNORE:
                    continue
                z = logits[b, :, y, x].tolist()
                p = [math.exp(v) / sum(map(math.exp, z)) for v in z]
                factor = 5.0 if t else 1.0
                total, weight = total - factor * math.log(p[t]), weight + factor
                for k in range(3):
                    both[k] += p[k] * (t == k)
                    sizes[k] += p[k] + (t == k)
    assert float(cross_entropy(logits, target, (1.0, 5.0))) == pytest.approx(total / weight, rel=1e-5)
    expected = np.mean([1 - (2 * both[k] + 1) / (sizes[k] + 1) for k in (1, 2)])
    assert float(dice(logits, target)) == pytest.approx(expected, rel=1e-5)


def test_batches_without_defects_or_truth_have_finite_losses():
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    for value in (0, IGNORE):
        target = torch.full((1, 4, 4), value, dtype=torch.uint8)
        loss = cross_entropy(logits, target) + dice(logits, target)
        loss.backward()
        assert loss.isfinite()
        assert logits.grad is not None and logits.grad.isfinite().all()
    assert float(dice(logits, torch.zeros(1, 4, 4, dtype=torch.uint8))) == 0


def test_weights_come_from_the_options_of_the_loss():
    with pytest.raises(UserError, match=r"method\.loss_weights is not read"):
        made(loss_weights={"ce": 0.5})
    method = made(loss={"dice": 0.0})
    assert list(method.losses([one_episode()])) == ["ce"]
    with pytest.raises(UserError, match="minimises nothing"):
        made(loss={"ce": 0.0, "dice": 0.0})


def one_episode():
    empty = torch.zeros(0, 3, SIDE, SIDE), torch.zeros(0, SIDE, SIDE), torch.zeros(0), torch.zeros(0)
    mask = torch.zeros(1, SIDE, SIDE, dtype=torch.uint8)
    mask[0, 4:9] = 1
    return Episode(*empty, torch.rand(1, 3, SIDE, SIDE), mask, torch.ones(1), INFO.classes)


def test_one_image_is_enough_for_a_network_that_normalises_over_images():
    method = made(network="deeplabv3_mobilenet_v3_large").train()
    assert all(v.isfinite() for v in method.losses([one_episode()]).values())


# -- answers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(32, 32), (50, 21), (5, 90)], ids=str)
def test_answers_are_labels_at_the_size_of_the_image(size):
    method = made().eval()
    image = torch.randint(256, (3, *size), dtype=torch.uint8, generator=torch.manual_seed(0))
    with torch.inference_mode():
        found = method.segment(image)
    assert found.mask.shape == found.prob.shape == (1, *size)
    assert found.labels == ("crack", "hole")
    assert set(found.mask.unique().tolist()) <= {0, 1, 2}
    assert (found.prob[found.mask == 0] <= 2 / 3).all(), "the largest of three is at least a third"
    assert float(found.score) == pytest.approx(float(found.prob.max()))


def test_resized_class_by_class_is_the_argmax_of_resized_probabilities():
    method = made()
    logits = torch.randn(2, 3, 8, 8, generator=torch.manual_seed(1))
    found = method._decided(logits, (20, 30))
    prob = torch.nn.functional.interpolate(logits.softmax(1), (20, 30), mode="bilinear")
    assert torch.equal(found.mask.long(), prob.argmax(1))
    assert torch.allclose(found.prob, 1 - prob[:, 0], atol=1e-6)


def test_the_network_takes_any_size_and_features_enter_where_they_fit():
    net = UNet(3, width=8, levels=4, context=12, stride=4)
    assert net.level == 2
    image, maps = torch.rand(2, 3, 37, 50), torch.rand(2, 12, 10, 13)
    assert net(image, maps).shape == (2, 3, 37, 50)
    assert not torch.allclose(net(image, maps), net(image, maps + torch.rand_like(maps)))
    assert UNet(2, levels=3, width=8)(image).shape == (2, 2, 37, 50)


def test_networks_of_torchvision_by_name():
    method = made(network="lraspp_mobilenet_v3_large").eval()
    with torch.inference_mode():
        assert method.logits(torch.rand(1, 3, 64, 64)).shape == (1, 3, 64, 64)
    with pytest.raises(UserError, match="segformer is not known"):
        made(network="segformer")
    assert all(hasattr(__import__("torchvision").models.segmentation, name) for name in TORCHVISION)


def test_a_checkpoint_brings_its_classes(tmp_path):
    learned = made()
    checkpoint = {"state_dict": learned.state_dict()}
    learned.on_save_checkpoint(checkpoint)
    other = Supervised(width=8, levels=3, seed=4)
    other.setup_data(DataInfo((), (), frozenset({"detect"}), False, SIDE, "labelled"))
    other.on_load_checkpoint(checkpoint)
    other.load_state_dict(checkpoint["state_dict"])
    image = torch.randint(256, (3, 40, 30), dtype=torch.uint8, generator=torch.manual_seed(0))
    with torch.inference_mode():
        one, two = learned.eval().segment(image), other.eval().segment(image)
    assert two.labels == ("crack", "hole")
    assert torch.equal(one.prob, two.prob)


def test_nothing_to_learn_is_said():
    method = Supervised()
    method.setup_data(DataInfo((), (), frozenset({"detect"}), False, SIDE, "labelled"))
    with pytest.raises(UserError, match="no defect with a mask to learn"):
        method.losses([])
    with pytest.raises(UserError, match="protocol=episodic"):
        method.setup_data(DataInfo(("a",), protocol="episodic"))


# -- learning ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    return partial(
        read, str(tmp_path_factory.mktemp("toy")), side=SIDE, products=("wood",),
        defects=("hole", "stain", "thread", "blob"), images_per_class=6, test_per_class=2, good=6,
    )  # fmt: skip


class Stop(Callback):
    """What SIGTERM does, in the middle of an epoch."""

    def __init__(self, keeper, step):
        self.keeper, self.step = keeper, step

    def on_train_batch_start(self, trainer, *rest):
        if trainer.global_step == self.step:
            self.keeper._note(15, None)


def fit(reader, folder, *, stop=None, start=None):
    data = DataModule(
        reader, protocol="labelled", side=SIDE, shot=3, normal_shot=2, batch_size=2, episodes=12
    )
    method = Supervised(width=8, levels=3, optimizer={"lr": 1e-2, "schedule": "poly"})
    method.setup_data(data.info)
    keeper = Keeper(folder)
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=2, default_root_dir=folder, logger=False, plugins=[AtomicIO()],
        callbacks=[*([Stop(keeper, stop)] if stop else []), keeper], enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(method, datamodule=data, ckpt_path=start, weights_only=True)
    return method


def test_a_stopped_training_ends_bit_equal(reader, tmp_path):
    whole = fit(reader, tmp_path / "whole")
    with pytest.raises(Stopped):
        fit(reader, tmp_path / "cut", stop=8)
    path = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    assert torch.load(path, weights_only=True)["global_step"] == 9
    again = fit(reader, tmp_path / "cut", start=path)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    fresh = made(optimizer={"lr": 1e-2})
    assert not torch.equal(next(whole.net.parameters()), next(fresh.net.parameters()))


# -- the command line ----------------------------------------------------------------------------------------

TOY = (
    "data.side=32",
    "data.reader.side=32",
    "data.reader.images_per_class=6",
    "data.reader.val_per_class=1",
    "data.reader.good=8",
    "+data.reader.products=[wood]",
    "+data.reader.defects=[hole,stain,blob,burn]",
    "data.shot=3",
    "data.workers=0",
    "backbone.weights=none",
)
QUICK = ("method.width=8", "method.levels=2", "data.episodes=16", "trainer.max_epochs=2", "trainer=cpu")


@pytest.mark.slow
def test_generate_evaluate_train_predict(tmp_path):
    """The way of a user: images from five shots, what they are like, a segmenter on both, its masks."""
    drawn = run(
        *TOY, "method=paste", "mode=generate", "generate.count=12", "generate.folder=made", cwd=tmp_path
    )
    assert drawn.returncode == 0, drawn.stderr
    folder = tmp_path / drawn.stdout.splitlines()[-1]

    looked = run("mode=evaluate", f"run={folder}", "evaluate.generated=made", cwd=tmp_path)
    assert looked.returncode == 0, looked.stderr
    report = tmp_path / looked.stdout.splitlines()[-1]
    record = json.loads((report / "run.json").read_text())
    assert record["status"] == "done"
    metrics = record["metrics"]
    assert metrics["near copies of training images (pixels), share"] == 1.0, "pasted onto training images"
    assert metrics["files or labels that are wrong"] == 0
    assert metrics["samples with an empty mask, share"] == 0
    assert metrics["Frechet distance (tiny, images)"] > 0
    assert metrics["change inside of the mask to the good image, grey levels"] > 5 * max(
        0.1, metrics["change outside of the mask to the good image, grey levels"]
    )
    assert "FID" not in looked.stdout
    assert len(list(csv.DictReader((report / "samples.csv").open()))) == 12
    assert (report / "panels" / "nearest.png").is_file()

    more = ("data.extra_root=made", "data.extra_ratio=1.0")
    trained = run(*TOY, "method=segmenter", *QUICK, *more, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    place = tmp_path / trained.stdout.splitlines()[-1]
    rows = list(csv.DictReader((place / "results.csv").open()))
    assert {r["class"] for r in rows} == {"wood/burn", "wood/hole", "wood/stain"}, "blob is held out"
    assert json.loads((place / "run.json").read_text())["metrics"]["test/miou"] >= 0
    leaked = run(*TOY, "method=segmenter", *QUICK, *more, "seed=1", cwd=tmp_path)
    assert leaked.returncode == 2
    assert "were shown to the generator" in leaked.stderr

    (tmp_path / "new").mkdir()
    picture = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "new" / "part.png")
    asked = run("mode=predict", f"run={place}", "data=folder", "data.root=new", cwd=tmp_path)
    assert asked.returncode == 0, asked.stderr
    answers = tmp_path / asked.stdout.splitlines()[-1] / "predictions"
    [row] = csv.DictReader((answers / "predictions.csv").open())
    mask = np.asarray(Image.open(answers / "mask" / f"{row['name']}.png"))
    assert mask.shape == (40, 60)
    assert {r["label"]: r["pixels"] for r in json.loads(row["labels"])} == {
        int(k): int((mask == k).sum()) for k in np.unique(mask) if k
    }
    assert Image.open(answers / "overlay" / f"{row['name']}.png").size == (60, 40)
