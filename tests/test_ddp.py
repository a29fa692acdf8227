"""Two processes are one: same training, same metrics, one run folder; no one survives a failure."""

import csv
import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from cli import ROOT, command, environment, run
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from fewspect.engine import build, folders

SMALL = (
    "trainer=cpu",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=2",
    "backbone.weights=none",
    "data.workers=0",
    "data.side=64",
    "data.episodes=7",
    "data.val_episodes=3",
    "data.test_episodes=5",
    "data.reader.side=64",
    "data.reader.images_per_class=4",
    "data.reader.val_per_class=2",
    "data.reader.test_per_class=3",
    "data.reader.good=3",
    "+data.reader.products=[wood]",
    "+data.reader.defects=[crack,dent,hole,scratch,stain]",
    "++method.head.dropout=0.0",  # noise depends on the rank
    "++method.head.channel_dropout=0.0",
    "method.evaluate.threshold=0.0",
    "method.optimizer.name=sgd",  # Adam turns rounding errors of vanishing gradients into whole steps
    "method.optimizer.lr=0.1",
    "method.optimizer.schedule=constant",
    "method.optimizer.warmup=0",
)
TWO = (*SMALL, "data.batch_size=1", "trainer.devices=2", "trainer.strategy=ddp")
START = 240
"""Seconds after which a run hangs rather than being slow."""

END = 30
"""Seconds that the others get to notice a failure."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("ddp")


@pytest.fixture(scope="module")
def tree(place):
    OmegaConf.register_new_resolver("run_folder", folders.run_folder, replace=True)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return build.resolve(compose("config", [*SMALL, "data.batch_size=2", f"data.root={place / 'toy'}"]))


@pytest.fixture(scope="module")
def two(place, tree):
    """The run folder of two processes."""
    build.parts(tree)  # writes the pictures
    with (place / "two.txt").open("w") as out:
        arguments = command(*TWO, f"data.root={place / 'toy'}", "hydra.run.dir=runs/two")
        process = subprocess.Popen(arguments, cwd=place, env=environment(), stdout=out, stderr=out)
        assert ended(process, START) == 0, (place / "two.txt").read_text()[-3000:]
    return place / "runs" / "two"


def ended(process, seconds):
    """Exit status; a process that hangs is stopped together with the one that it has started."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        for pid in [*children(process.pid), process.pid]:
            os.kill(pid, 9)
        process.wait()
        pytest.fail("the processes wait for each other")


def children(pid):
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def one(tree, **options):
    """Data, method and Trainer of a single process."""
    data, method = build.parts(tree)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    limits = {k: tree["trainer"][k] for k in ("max_epochs", "limit_train_batches", "gradient_clip_val")}
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, enable_checkpointing=False, **quiet, **limits, **options
    )
    return data, method, trainer


# -- who gets what -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epoch", [0, 2])
def test_the_episodes_of_a_step_are_the_same_for_one_and_two_processes(tree, epoch):
    def steps(rank, world):
        data, _ = build.parts(tree | {"data": tree["data"] | {"batch_size": 2 // world}})
        data.trainer = SimpleNamespace(global_rank=rank, world_size=world, lightning_module=None)
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        return [[e.paths for e in batch] for batch in loader]

    together, first, second = steps(0, 1), steps(0, 2), steps(1, 2)
    assert len(together) == len(first) == len(second) == 3
    assert [sorted(b) for b in together] == [sorted(a + b) for a, b in zip(first, second, strict=True)]


def test_evaluation_is_dealt_out_without_padding(tree):
    shares = []
    for rank in (0, 1):
        data, _ = build.parts(tree)
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2, lightning_module=None)
        shares.append([e.index for batch in data.test_dataloader() for e in batch])
    assert shares == [[0, 2, 4], [1, 3]]


# -- a run ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(two, tree, tmp_path):
    data, method, trainer = one(tree, default_root_dir=tmp_path, limit_val_batches=0)
    start = {k: v.clone() for k, v in method.state_dict().items()}
    trainer.fit(method, datamodule=data)
    learnt = torch.load(two / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert learnt
    moved = [(method.state_dict()[k] - start[k]).abs().max() for k in learnt]
    assert max(moved) > 1e-4
    for key, value in learnt.items():
        assert torch.allclose(value, method.state_dict()[key], atol=1e-5), key


@pytest.mark.slow
def test_two_processes_measure_what_one_measures(two, tree, tmp_path):
    data, method, trainer = one(tree, default_root_dir=tmp_path)
    path = two / "checkpoints" / "best.ckpt"
    (expected,) = trainer.test(method, datamodule=data, ckpt_path=path, weights_only=True, verbose=False)
    record = json.loads((two / "run.json").read_text())
    found = {k: v for k, v in record["metrics"].items() if k.startswith("test/")}
    assert found == {k: pytest.approx(v, abs=1e-7) for k, v in expected.items()}
    assert found["test/episodes"] == 5
    assert record["metrics"]["val/episodes"] == 3
    assert found["test/miou"] > 0


@pytest.mark.slow
def test_two_processes_leave_one_run(two, place):
    assert [p.name for p in (place / "runs").iterdir()] == ["two"]
    assert not (place / "logs").exists()
    assert len([*place.rglob("run.json")]) == len([*place.rglob("metrics.csv")]) == 1
    record = json.loads((two / "run.json").read_text())
    assert record["status"] == "done"
    assert record["devices"] == 2
    assert record["starts"] == 1
    rows = list(csv.DictReader((two / "metrics.csv").open()))
    names = [(r["step"], r["name"]) for r in rows]
    assert len(names) == len(set(names)), "a value is written twice"
    panels = [p.name for p in (two / "panels").rglob("*.png")]
    assert panels


@pytest.mark.slow
def test_two_processes_say_everything_once(two, place):
    lines = [
        x for x in (place / "two.txt").read_text().splitlines() if x.strip().startswith(("INFO", "WARN"))
    ]
    assert lines
    assert len(lines) == len(set(lines))
    assert "sync_dist" not in (place / "two.txt").read_text()
    assert (two / "run.log").exists()


BROKEN = """
import os
from pathlib import Path
from fewspect.methods.sofs.method import SOFS

class Broken(SOFS):
    def losses(self, batch):
        part = Path(f"{self.global_rank}.part")
        part.write_text(str(os.getpid()))
        part.rename(f"{self.global_rank}.pid")
        if self.global_rank == 1:
            raise RuntimeError("this process is broken")
        return super().losses(batch)
"""


@pytest.mark.slow
def test_a_process_that_fails_ends_all(place, two, tmp_path):
    (tmp_path / "broken_rank.py").write_text(BROKEN)
    arguments = command(
        *TWO,
        f"data.root={place / 'toy'}",
        "hydra.run.dir=run",
        "method._target_=broken_rank.Broken",
        "allow=[broken_rank]",
    )
    with (tmp_path / "out.txt").open("w") as out:
        process = subprocess.Popen(
            arguments, cwd=tmp_path, env=environment() | {"PYTHONPATH": str(tmp_path)}, stdout=out, stderr=out
        )
        wait_for(tmp_path / "1.pid", process)
        assert ended(process, END) != 0
    assert "this process is broken" in (tmp_path / "out.txt").read_text()
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "failed"
    assert not [pid for pid in tmp_path.glob("*.pid") if alive(int(pid.read_text()))]


def wait_for(path, process):
    """Until the failing process has come so far."""
    for _ in range(START * 5):
        if path.exists() or process.poll() is not None:
            return
        try:
            process.wait(0.2)
        except subprocess.TimeoutExpired:
            continue
    pytest.fail("the second process never learnt anything")


@pytest.mark.slow
def test_two_processes_detect_what_one_detects(tmp_path):
    """A single pass: every process learns from all good images, the questions are dealt out."""
    small = [f"data.reader.{k}" for k in ("images_per_class=2", "val_per_class=1", "test_per_class=2")]
    base = ("method=subspace", "trainer=cpu", "+data.reader.products=[wood]", "data.test_episodes=9", *small)
    found = []
    for devices, more in ((1, ()), (2, ("trainer.strategy=ddp", "trainer.devices=2"))):
        done = run(*base, *more, f"hydra.run.dir={devices}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        found.append(json.loads((tmp_path / str(devices) / "run.json").read_text())["metrics"])
    assert "test/pixel_auroc" in found[0]
    assert found[1] == {k: pytest.approx(v, abs=1e-6) for k, v in found[0].items()}
