"""Defect-Gen as a method: training, averages, resume, checkpoints, and the way through the command line."""

import json
import signal
import subprocess
import time
from dataclasses import replace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from cli import command, environment
from PIL import Image
from torch.utils.data import Dataset
from warm import run

from fewspect.callbacks.gallery import Gallery
from fewspect.data.readers import folder
from fewspect.data.sharding import Numbers, ResumableSampler
from fewspect.engine import checkpoints
from fewspect.errors import UserError
from fewspect.methods.defect_gen import loss
from fewspect.methods.defect_gen.augment import cropped, turned
from fewspect.methods.defect_gen.method import DefectGen
from fewspect.methods.defect_gen.stages import Blueprint, checkpoint_of
from fewspect.methods.generator import Wish
from fewspect.methods.paste.method import Paste
from fewspect.types import DataInfo, Episode

SIDE = 16
CLASSES = ("hole", "scratch")
NET = {"width": 32, "mult": [1, 2], "attention": [2], "patch": 2}


def episode(number):
    """A grey square with a black box (class 1) or a white line (class 2)."""
    r = torch.Generator().manual_seed(number)
    image = 0.5 + 0.05 * torch.randn(1, 3, SIDE, SIDE, generator=r)
    mask = torch.zeros(1, SIDE, SIDE, dtype=torch.uint8)
    at = int(torch.randint(2, 10, (), generator=r))
    box = (slice(at, at + 4), slice(at, at + 4)) if number % 2 else (slice(at, at + 2), slice(1, 15))
    image[:, :, box[0], box[1]], mask[0, box[0], box[1]] = (0.0, 1) if number % 2 else (1.0, 2)
    empty = torch.zeros(0, 3, SIDE, SIDE), torch.zeros(0, SIDE, SIDE), torch.zeros(0), torch.zeros(0)
    return Episode(*empty, image, mask, torch.ones(1), CLASSES, "board", number, paths=(f"x/{number}.png",))


class Pictures(Dataset):
    def __init__(self, number):
        self.number = number

    def __len__(self):
        return self.number

    def __iter__(self):
        return (self[k] for k in range(self.number))

    def __getitem__(self, item):
        return episode(item % self.number)


class Data(pl.LightningDataModule):
    """Few pictures, many steps; ``keep`` as the real one has it."""

    def __init__(self, number=6, steps=12, batch=4):
        super().__init__()
        self.number, self.steps, self.batch, self.start = number, steps, batch, (0, 0)

    def dataset(self, part):
        del part
        return Pictures(self.number)

    def resume(self, epoch, start):
        self.start = epoch, start * self.batch

    def train_dataloader(self):
        length = self.steps * self.batch
        sampler = ResumableSampler(length, 0, 1, self.batch)
        sampler.resume(*self.start)
        items = Numbers(length) if self.trainer.lightning_module.keep else Pictures(self.number)
        return torch.utils.data.DataLoader(items, self.batch, sampler=sampler, collate_fn=list)

    def val_dataloader(self):
        return torch.utils.data.DataLoader(Pictures(4), 2, collate_fn=list)


def info(**changes):
    known = {"classes": CLASSES, "products": ("board",), "side": SIDE, "protocol": "labelled"}
    return DataInfo(**{**known, **changes})


def made(known=None, **options):
    small = {"net": NET, "steps": 4, "optimizer": {"lr": 3e-3}}
    method = DefectGen(**{**small, **options})
    method.setup_data(known or info())
    return method


def fitted(tmp_path, method, data, *callbacks, epochs=2, resumed=None):
    trainer = pl.Trainer(
        accelerator="cpu",
        default_root_dir=tmp_path,
        max_epochs=epochs,
        callbacks=[*callbacks],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(method, datamodule=data, ckpt_path=resumed, weights_only=True)
    return trainer


class Losses(pl.Callback):
    def __init__(self, save=None):
        self.train, self.val, self.save = [], [], save

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.train.append(float(outputs["loss"]))
        if self.save and trainer.global_step == self.save[0]:
            trainer.save_checkpoint(self.save[1])

    def on_validation_epoch_end(self, trainer, pl_module):
        self.val.append(float(trainer.callback_metrics["val/loss"]))


@pytest.mark.parametrize("stage", ["large", "small"])
def test_it_learns_a_tiny_set_smaller_than_a_batch(tmp_path, stage):
    seen = Losses()
    net = NET if stage == "large" else {"width": 32, "mult": [1], "patch": 2}
    gallery = Gallery(str(tmp_path / "panels"))
    fitted(tmp_path, made(stage=stage, net=net), Data(number=3, steps=40), seen, gallery, epochs=3)
    assert len(seen.train) == 120
    assert np.mean(seen.train[-40:]) < 0.85 * np.mean(seen.train[:20])
    assert seen.val[-1] < 0.8 * seen.val[0]
    sheets = sorted((tmp_path / "panels").iterdir())
    assert [p.name for p in sheets] == [f"samples_epoch_000{k}.png" for k in range(3)]
    assert len({p.read_bytes() for p in sheets}) == 3, "the same numbers, drawn better and better"


@pytest.mark.parametrize("keep", [True, False])
def test_a_resumed_training_ends_as_if_it_had_not_stopped(tmp_path, keep):
    """In the middle of an epoch: weights, averages and moments are bit-equal."""
    whole, again, path = made(keep=keep), made(keep=keep), tmp_path / "half.ckpt"
    one = fitted(tmp_path, whole, Data(), Losses((17, path)))
    data = Data()
    data.resume(1, 5)  # what the engine's ``Keeper`` says
    two = fitted(tmp_path, again, data, resumed=path)
    assert one.global_step == two.global_step == 24
    assert int(again.average.updates) == 24
    states = whole.state_dict(), again.state_dict()
    assert all(torch.equal(states[1][k], v) for k, v in states[0].items())
    moments = [t.optimizers[0].state_dict()["state"] for t in (one, two)]
    assert all(torch.equal(moments[0][k]["exp_avg"], moments[1][k]["exp_avg"]) for k in moments[0])


def test_the_average_follows_every_step_and_validates(tmp_path):
    method = made(decay=0.9)
    fitted(tmp_path, method, Data(steps=6), epochs=1)
    assert int(method.average.updates) == 6
    batch = [episode(k) for k in range(4)]
    method.log = lambda *_, **__: None
    before = method.validation_step(batch, 0)["loss"]
    assert torch.equal(before, method.validation_step(batch, 3)["loss"]), "the same noise every time"
    for p in method.net.parameters():
        p.data.zero_()
    assert torch.equal(before, method.validation_step(batch, 0)["loss"])


def test_the_published_preset_has_the_published_loss():
    method = made(preset="paper")
    torch.manual_seed(1)
    found = method.losses([episode(0), episode(1)])
    assert list(found) == ["joint"]
    torch.manual_seed(1)
    x0 = method.plan.codec.encode(*(torch.cat([getattr(episode(k), n) for k in (0, 1)]) for n in FIELDS))
    u, _ = torch.rand(2, 2)
    t, noise = (u * 1000).long(), torch.randn_like(x0)
    output = method.net(method.schedule.add_noise(x0, noise, t), t)
    assert torch.allclose(found["joint"], loss.squared(output, x0))
    assert set(x0[:, 3:].unique().tolist()) == {0.0, 1.0}
    assert method.net.class_embedding is None


FIELDS = ("query_image", "query_mask")


@pytest.mark.parametrize(("stage", "low", "high"), [("large", 400, 1000), ("small", 0, 400)])
def test_timesteps_are_drawn_where_the_stage_works(stage, low, high):
    method, seen = made(stage=stage, focus=1.0), []
    method._error = lambda net, x0, noise, t, condition: seen.append(t) or {"x": t.float().mean()}
    for _ in range(30):
        method.losses([episode(k) for k in range(4)])
    t = torch.cat(seen)
    assert low <= t.min() < low + 60
    assert high - 60 < t.max() < high


def test_turning_and_cropping_keep_picture_and_mask_together():
    grid = torch.arange(256.0).reshape(1, 1, 16, 16)
    x = torch.cat([grid, 2 * grid], 1).expand(16, 2, 16, 16)
    torch.manual_seed(0)
    for turn in ("mirror", "any"):
        found = turned(x, turn)
        assert found.shape == x.shape
        assert torch.equal(found[:, 1], 2 * found[:, 0])
        assert len({tuple(f.flatten().tolist()) for f in found}) > 4
    assert turned(x, "none") is x
    squares = cropped(x, 4)
    assert squares.shape == (16, 2, 4, 4)
    assert torch.equal(squares[:, 0, 1] - squares[:, 0, 0], torch.full((16, 4), 16.0))
    assert cropped(x, 16) is x


def test_rare_classes_count_as_much_as_common_ones():
    masks = torch.zeros(1, 10, 10, dtype=torch.uint8)
    masks[0, 0, :5], masks[0, 5:] = 1, 3
    weight = loss.rarity(masks, 3)
    assert weight.mean() == pytest.approx(1)
    share = torch.tensor([0.45, 0.05, 0.0, 0.5])
    ratio = weight * share * (1 - share)
    assert ratio[0] == pytest.approx(float(ratio[1])) == pytest.approx(float(ratio[3]))
    assert weight[2] == weight.min(), "what is never shown asks for nothing"


def test_several_products_are_asked_for_by_name():
    plan = Blueprint("large", CLASSES, ("board", "wood"), SIDE)
    assert plan.ask(("scratch",), "wood").tolist() == [1, 0, 1, 0, 1]
    assert Blueprint("large", CLASSES, ("wood",), SIDE).ask((), "wood").tolist() == [1, 0, 0]
    method = made(info(products=("board", "wood")))
    assert method.control([0], [Wish(product="wood")])[0].product == "wood"


@pytest.mark.parametrize("keep", [True, False])
def test_a_defect_that_no_mask_shows_is_not_learned_as_good(tmp_path, caplog, keep):
    class Data2(Data):
        def dataset(self, part):
            del part
            return [replace(e, query_mask=0 * e.query_mask) if e.index == 1 else e for e in Pictures(4)]

    method = made(keep=keep)
    trainer = fitted(tmp_path, method, Data2(steps=1), epochs=1)
    if keep:
        assert len(method._pool[0]) == 3
        assert "1 of 4 training pictures are left out: at data.side=16" in caplog.text
    method.observe(trainer.datamodule.dataset("train"))
    assert all(names for names, _ in method._shown)
    assert len(method._batch(trainer.datamodule.dataset("train"))[0]) == 3


def test_the_released_countdowns_refuse_to_vary_a_picture():
    wish = Wish(image=torch.rand(3, SIDE, SIDE), start=0.5)
    with pytest.raises(UserError, match=r"generate\.start=0\.5 with method\.released=true"):
        made(released=True).control([0], [wish])
    assert len(made(released=True).preview()) == 6


# -- mistakes ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Checkpoints of a small and a large network."""
    place = tmp_path_factory.mktemp("saved")
    for stage in ("small", "large"):
        trainer = fitted(place, made(stage=stage), Data(steps=1), epochs=1)
        trainer.save_checkpoint(place / f"{stage}.ckpt")
    return place


def test_a_second_network_is_loaded_by_its_own_sizes(saved, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "best.ckpt").write_bytes((saved / "small.ckpt").read_bytes())
    method = made(net={"width": 32, "mult": [1], "patch": 4}, small=str(tmp_path / "run"))
    assert len(method.generate([0, 1])) == 2
    assert set(method.about()["networks"]) == {"large", "small"}


@pytest.mark.parametrize(
    ("known", "options", "says", "hint"),
    [
        (info(classes=(*CLASSES, "dent")), {}, r"small.ckpt is for 6 channels \(2 defect", "same data set"),
        (info(side=32), {}, r"small.ckpt was trained with side 16, this is 32", "data.side"),
        (info(products=("a", "b")), {}, r"with products board, this is a, b", "same data"),
        (None, {"small": "large.ckpt"}, r"large.ckpt is a large network", "stage=small"),
        (None, {"small": "none"}, r"no checkpoint there", "stage=small"),
    ],
)
def test_a_second_network_that_does_not_fit_is_refused(saved, known, options, says, hint):
    method = made(known, small=str(saved / options.get("small", "small.ckpt")))
    with pytest.raises(UserError, match=says) as caught:
        method.generate([0])
    assert hint in caught.value.hint


def test_a_run_on_other_classes_is_refused_by_name(saved):
    with pytest.raises(UserError, match=r"6 channels \(2 defect types: hole, scratch\), not for 7"):
        checkpoints.load(saved / "large.ckpt", made(info(classes=("a", "b", "c"))))
    with pytest.raises(UserError, match=r"large\.ckpt does not fit"):
        checkpoints.load(saved / "large.ckpt", made(net={**NET, "width": 64}))


@pytest.mark.parametrize(
    ("options", "known", "says"),
    [
        ({"preset": "huge"}, None, "preset=huge does not exist"),
        ({}, info(side=18), r"data.side=18 is no multiple of 4"),
        ({"net": {"width": 48}}, None, "no multiple of 32"),
        ({"switch": 2.0}, None, r"method.switch=2.0"),
        ({"crop": 6}, None, r"method.crop=6 is no multiple of 4"),
        ({"crop": 0}, None, r"method.crop=0 is no multiple of 4"),
        ({"steps": 0}, None, r"method.steps=0 of 1000"),
        ({"steps": 1001}, None, r"method.steps=1001 of 1000"),
        ({"stage": "small", "small": "run"}, None, r"method.small=run goes with a large network"),
    ],
)
def test_sizes_that_do_not_exist_are_refused(options, known, says):
    with pytest.raises(UserError, match=says):
        made(known, **options)


def test_foreign_files_and_other_generators(tmp_path):
    (tmp_path / "x.ckpt").write_bytes(b"no")
    with pytest.raises(UserError, match="no readable checkpoint"):
        made(small=str(tmp_path / "x.ckpt")).generate([0])
    torch.save({"state_dict": {}}, tmp_path / "y.ckpt")
    with pytest.raises(UserError, match="not written by Defect-Gen"):
        made(small=str(tmp_path / "y.ckpt")).generate([0])
    with pytest.raises(UserError, match="Paste cannot be told"):
        Paste().control([0], [Wish(classes=("hole",))])
    assert checkpoint_of(tmp_path / "x.ckpt") == tmp_path / "x.ckpt"


# -- the command line ----------------------------------------------------------------------------------------

TINY = (
    "method=defect_gen",
    *("method.net.width=32", "method.net.mult=[1]", "method.net.patch=4", "method.net.attention=[]"),
    "method.net.middle=false",
    "method.steps=3",
    "data.workers=0",
    "data.side=32",
    "data.episodes=16",
    "data.batch_size=4",
    "data.reader.side=64",
    "data.reader.images_per_class=3",
    "data.reader.val_per_class=1",
    "data.reader.good=6",
    "+data.reader.products=[wood]",
    "+data.reader.defects=[blob,hole,scratch]",
    "data.reader.folds=3",
    "trainer.max_epochs=3",
    "trainer.check_val_every_n_epoch=1",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Both stages, and the large one killed and resumed."""
    place = tmp_path_factory.mktemp("runs")
    for stage in ("large", "small"):
        done = run(*TINY, f"method.stage={stage}", f"hydra.run.dir={stage}", cwd=place)
        assert done.returncode == 0, done.stderr
    return place


@pytest.mark.slow
def test_a_killed_run_continues_as_if_nothing_had_happened(trained):
    path = trained / "killed" / "checkpoints" / "last.ckpt"
    with (trained / "out.txt").open("w") as out:
        asked = command(*TINY, "trainer.max_epochs=20", "hydra.run.dir=killed")
        process = subprocess.Popen(asked, cwd=trained, env=environment(), stdout=out, stderr=out)
        while process.poll() is None and not path.exists():
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        assert process.wait(60) == -9
    done = run("run=killed", "resume=true", cwd=trained)
    assert done.returncode == 0, done.stderr
    whole = run(*TINY, "trainer.max_epochs=20", "hydra.run.dir=whole", cwd=trained)
    assert whole.returncode == 0, whole.stderr
    one, two = (torch.load(trained / n / "checkpoints" / "last.ckpt") for n in ("killed", "whole"))
    assert one["global_step"] == two["global_step"] == 80
    assert all(torch.equal(one["state_dict"][k], v) for k, v in two["state_dict"].items())


@pytest.mark.slow
def test_both_runs_draw_a_set_that_is_read_back(trained):
    done = run(
        *("mode=generate", "run=large", "method.small=small", "generate.count=5", "generate.batch=2"),
        "generate.folder=free",
        cwd=trained,
    )
    assert done.returncode == 0, done.stderr
    manifest = json.loads((trained / "free" / "manifest.json").read_text())
    assert set(manifest["networks"]) == {"large", "small"}
    assert (manifest["steps"], manifest["switch"], len(manifest["samples"])) == (3, 0.4, 5)
    index = folder.read(str(trained / "free"))
    assert index.classes == ("blob", "hole", "scratch")
    assert len(index) == 5
    checked = run("mode=check", "data=folder", "data.root=free", "data.workers=0", cwd=trained)
    assert "free" in checked.stdout + checked.stderr


@pytest.mark.slow
def test_masks_and_good_pictures_steer_the_samples(trained):
    masks, goods = trained / "masks", trained / "goods"
    masks.mkdir()
    goods.mkdir()
    mask = np.zeros((32, 32), np.uint8)
    mask[8:16, 8:24] = 2
    Image.fromarray(mask).save(masks / "m.png")
    good = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(good).save(goods / "g.png")
    call = ("mode=generate", "run=large", "method.small=small", "generate.count=2")
    done = run(*call, "generate.mask=masks", "generate.folder=drawn", cwd=trained)
    assert done.returncode == 0, done.stderr
    assert np.array_equal(np.asarray(Image.open(trained / "drawn/masks/000001.png")), mask)
    region = np.zeros((32, 32), np.uint8)
    region[4:20, 4:20] = 255
    Image.fromarray(region).save(trained / "region.png")
    call = (*call, "generate.normal=goods", "generate.region=region.png")
    done = run(*call, "generate.folder=put", cwd=trained)
    assert done.returncode == 0, done.stderr
    found = np.asarray(Image.open(trained / "put/images/000000.png"))
    assert np.array_equal(found[region == 0], good[region == 0])
    assert not np.asarray(Image.open(trained / "put/masks/000000.png"))[region == 0].any()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "says", "hint"),
    [
        (
            ["generate.mask=wrong"],
            "n.png: label 9; this generator knows 0 background, 1 blob",
            "these values",
        ),
        (["generate.classes=[rust]"], "rust is no class", "blob, hole, scratch"),
        (["generate.region=masks"], "there is none", "generate.normal"),
    ],
)
def test_wrong_wishes_are_two_lines(trained, arguments, says, hint):
    (trained / "wrong").mkdir(exist_ok=True)
    mask = np.full((8, 8), 9, np.uint8)
    Image.fromarray(mask).save(trained / "wrong" / "n.png")
    done = run("mode=generate", "run=large", *arguments, cwd=trained)
    assert done.returncode == 2, done.stderr
    message, advice = done.stderr.strip().splitlines()[-2:]
    assert says in message
    assert hint in advice
