"""Every trained method: killed again and again it ends bit for bit; two processes measure what one does."""

import signal

import lightning.pytorch as pl
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from test_contract import CLASSES, CONF, GRADIENT, SIDE, SPECIAL

from fewspect.engine import build, checkpoints, folders
from fewspect.methods.generator import Generator

pytestmark = pytest.mark.slow

EPOCHS, BATCHES = 2, 4
KILLS = ((1, "train"), (2, "train"), (4, "validation"), (4, "train"), (5, "train"), (7, "train"))
"""Steps of eight before which the process dies: inside an epoch, in its validation, before the next one."""

VARIANTS = {name: (name,) for name in GRADIENT if not issubclass(CLASSES[name], Generator)} | {
    "gccs_gan": ("gccs", "method.preset=paper", f"data.episodes={BATCHES}")
}
PATIENT = ("patch_nn", "subspace", "ridge", "incontext", "mvrec", "gccs")
"""Not trained by gradient, measured in two processes all the same."""


class Killed(BaseException):
    """The process is gone."""


class Die(pl.Callback):
    """End without any farewell when ``step`` steps are done and the next batch of ``stage`` begins."""

    def __init__(self, step, stage):
        self.step, self.stage = step, stage

    def on_train_batch_start(self, trainer, *rest):
        self._die(trainer, "train")

    def on_validation_batch_start(self, trainer, *rest):
        self._die(trainer, "validation")

    def _die(self, trainer, stage):
        if (trainer.fit_loop.epoch_loop.batch_progress.total.completed, stage) == (self.step, self.stage):
            raise Killed


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("factory")


@pytest.fixture(autouse=True)
def signals():
    """What the Keeper changes."""
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def parts(root, name, *more):
    OmegaConf.register_new_resolver("run_folder", folders.run_folder, replace=True)
    small = (
        f"method={name}", "backbone.weights=none", f"data.root={root}", f"data.side={SIDE}", "data.workers=0",
        "data.batch_size=2", "data.test_episodes=6", f"data.reader.side={SIDE}",
        "data.reader.images_per_class=4", "data.reader.val_per_class=1", "data.reader.test_per_class=2",
        "data.reader.good=24", "+data.reader.products=[wood]",
        "+data.reader.defects=[blob,burn,dent,hole,scratch]",
    )  # fmt: skip
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return build.parts(build.resolve(compose("config", [*small, *SPECIAL.get(name, ()), *more])))


def trainer(folder, *callbacks, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    plain = {"accelerator": "cpu", "devices": 1, "max_epochs": EPOCHS, "limit_train_batches": BATCHES}
    return pl.Trainer(
        default_root_dir=folder, enable_checkpointing=False, use_distributed_sampler=False,
        num_sanity_val_steps=0, limit_val_batches=2, callbacks=list(callbacks),
        plugins=[checkpoints.AtomicIO()], **{**plain, **quiet, **options},
    )  # fmt: skip


def trained(root, folder, options, *callbacks, start=None):
    """Weights, buffers and optimiser after a whole run, or what was kept when it was killed."""
    data, method = parts(root, *options)
    fit = trainer(folder, *callbacks)
    fit.fit(method, datamodule=data, ckpt_path=start, weights_only=True)
    fit.save_checkpoint(folder / "end.ckpt")
    return torch.load(folder / "end.ckpt", weights_only=True)


@pytest.mark.parametrize("name", VARIANTS)
def test_killed_again_and_again_it_ends_bit_equal(root, tmp_path, name):
    whole = trained(root, tmp_path / "whole", VARIANTS[name])
    assert whole["global_step"] >= EPOCHS * BATCHES or name.startswith("gccs")
    folder, start = tmp_path / "killed", None
    for step, stage in KILLS:
        with pytest.raises(Killed):
            keeper = checkpoints.Keeper(folder, minutes=0)
            trained(root, folder, VARIANTS[name], keeper, Die(step, stage), start=start)
        start, notice = checkpoints.resume_point(folder)
        assert start is not None, notice
    again = trained(root, folder, VARIANTS[name], checkpoints.Keeper(folder), start=start)
    assert again["global_step"] == whole["global_step"]
    same(again["state_dict"], whole["state_dict"], "weights")
    same(again["optimizer_states"], whole["optimizer_states"], "optimiser")


def same(one, two, path):
    """Bit-equal trees of tensors and plain values."""
    if isinstance(two, torch.Tensor):
        assert torch.equal(one, two), path
    elif isinstance(two, dict):
        assert one.keys() == two.keys(), path
        for key in two:
            same(one[key], two[key], f"{path}.{key}")
    elif isinstance(two, list | tuple):
        assert len(one) == len(two), path
        for k, (a, b) in enumerate(zip(one, two, strict=True)):
            same(a, b, f"{path}[{k}]")
    else:
        assert one == two, path


@pytest.mark.parametrize("name", [*VARIANTS, *PATIENT])
def test_two_processes_measure_what_one_measures(root, tmp_path, name):
    options = VARIANTS.get(name, (name,))
    cache = ("data.features.cache=null",) if name == "mvrec" else ()
    data, method = parts(root, *options, *cache)
    if method.fit_kind != "none":
        trainer(tmp_path, max_epochs=1, limit_train_batches=2).fit(method, datamodule=data)
    found = []
    for devices, strategy in ((1, "auto"), (2, "ddp_fork")):
        test = trainer(tmp_path, devices=devices, strategy=strategy)
        (metrics,) = test.test(method, datamodule=data, verbose=False)
        found.append(metrics)
    one, two = found
    assert one.keys() == two.keys()
    assert two == {key: pytest.approx(value, abs=1e-6, nan_ok=True) for key, value in one.items()}
    assert any(value > 0 for value in one.values())
