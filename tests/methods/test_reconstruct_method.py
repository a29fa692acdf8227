"""Reconstruction as a method: maps, colours, losses, training that resumes, checkpoints of the original."""

import copy

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.utils.data import DataLoader

from fewspect.errors import UserError
from fewspect.methods import optim
from fewspect.methods.reconstruct import adversarial
from fewspect.methods.reconstruct.adversarial import Srgan
from fewspect.methods.reconstruct.blocks import AutoEncoder
from fewspect.methods.reconstruct.loss import Loss, kl_per_pixel, total_variation
from fewspect.methods.reconstruct.method import Reconstruct
from fewspect.methods.reconstruct.red_net import RedNet
from fewspect.methods.reconstruct.residual import Residual
from fewspect.methods.reconstruct.srgan import Generator, vgg16_reduced
from fewspect.methods.reconstruct.ssim_ae import SsimAE, SsimAELite
from fewspect.methods.reconstruct.vae import Sampled, Vae, VaeLegacy
from fewspect.nn.ssim import grey, ssim
from fewspect.types import Episode

PLAN = {"name": "adam", "lr": 1e-2, "weight_decay": 0.0, "schedule": "steps", "epochs": 6, "milestones": [4]}
PLAN |= {"warmup_epochs": 2, "warmup_lr": 1e-6}
STEPS = 12
"""Batches that are trained on: two per epoch of the plan."""


class Copy(AutoEncoder):
    """Gives back what it is shown, darker by a learned factor; remembers what that was."""

    def __init__(self, channels=3, factor=1.0):
        super().__init__(channels)
        self.factor = nn.Parameter(torch.tensor(factor))
        self.seen = []

    def encode(self, x):
        self.seen.append(x.detach().clone())
        return x

    def decode(self, code):
        return code * self.factor


def images(number=2, side=32, seed=0):
    draw = torch.Generator().manual_seed(seed)
    small = torch.rand(number, 3, side // 8, side // 8, generator=draw)
    return nn.functional.interpolate(small, side, mode="bilinear")


def name_of(network):
    return type(network).__name__


def episode(image):
    side = image.shape[-2:]
    return Episode(
        *(torch.zeros(0, 3, *side), torch.zeros(0, *side), torch.zeros(0), torch.zeros(0)),
        *(image[None], torch.zeros(1, *side), torch.zeros(1), ("good",)),
        paths=("good.png",),
    )


def loader(number=4, side=16, batch=2):
    return DataLoader([episode(i) for i in images(number, side)], batch, collate_fn=list)


def trainer(folder, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(
        accelerator="cpu", devices=1, default_root_dir=folder, enable_checkpointing=False, **quiet, **options
    )


# -- answers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("colour", ["rgb", "bgr", "grey"])
def test_the_network_sees_its_order_and_the_answer_is_rgb(colour):
    net = Copy(1 if colour == "grey" else 3)
    method = Reconstruct(net, colour=colour).eval()
    shown = images()
    with torch.no_grad():
        found = method.predict(shown, None)
    expected = {"rgb": shown, "bgr": shown[:, [2, 1, 0]], "grey": grey(shown)}[colour]
    assert torch.equal(net.seen[0], expected)
    assert torch.equal(found.image, grey(shown).expand(-1, 3, -1, -1) if colour == "grey" else shown)
    assert found.prob.shape == (2, 32, 32)
    assert found.prob.abs().max() < 1e-5, "a perfect reconstruction is nowhere anomalous"


def test_residuals_by_hand():
    first, second = images(2, seed=1), images(2, seed=2)
    alike = ssim(first, second, window=7, padding="reflect")
    gap = (first - second).abs()
    known = {
        "ssim": 1 - alike.mean(1),
        "l1": gap.mean(1),
        "l2": gap.square().mean(1),
        "ssim_l1": 1 - alike.mean(1) + 0.5 * gap.mean(1),
    }
    for kind, expected in known.items():
        assert torch.allclose(Residual(kind, window=7, l1=0.5)(first, second), expected, atol=1e-6)
    worst = Residual("ssim", window=7, colour="min")(first, second)
    assert torch.allclose(worst, 1 - alike.amin(1), atol=1e-6)
    in_grey = Residual("ssim", window=7, colour="grey")(first, second)
    assert torch.allclose(in_grey, 1 - ssim(grey(first), grey(second), window=7, padding="reflect")[:, 0])


@pytest.mark.parametrize("kind", ["ssim", "l1", "l2", "ssim_l1"])
def test_maps_are_neither_rounded_nor_clipped(kind):
    """Fault 16: the original's reconstruction and map have 256 levels, cut off instead of rounded."""
    method = Reconstruct(Copy(factor=0.5), residual={"kind": kind})
    shown = images()
    found = method.predict(shown, None)
    assert found.image.unique().numel() > 1000
    assert found.prob.unique().numel() > 1000
    assert torch.equal(found.image, shown * 0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = Reconstruct(SsimAE(8), residual={"kind": kind}).predict(shown, None)
    assert low.prob.dtype == low.image.dtype == torch.float32


def test_negative_similarity_exceeds_one():
    wave = (torch.arange(32) % 4 < 2).float().expand(1, 3, 32, 32)
    assert Residual("ssim")(wave, 1 - wave).max() > 1.5


def test_a_defect_stands_out_after_a_little_training(tmp_path):
    torch.manual_seed(0)
    net = SsimAE(16)
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 0.3  # 30 steps at this rate are too few for the published 0.01
    method = Reconstruct(net, loss={"name": "ssim_l1"}, optimizer={"name": "adam", "lr": 3e-3})
    good = (images(1) + 0.03 * torch.randn(17, 3, 32, 32)).clamp(0, 1)  # one part, seventeen pictures
    shown = DataLoader([episode(g) for g in good[1:]], 8, collate_fn=list)
    trainer(tmp_path, max_epochs=15).fit(method, shown)
    bad = good[:1].clone()
    bad[..., 10:16, 10:16] = 1 - bad[..., 10:16, 10:16].round()
    with torch.no_grad():
        found = method.eval().predict(torch.cat([good[:1], bad]), None).prob
    assert found[1, 11:15, 11:15].mean() > 1.5 * found[0, 11:15, 11:15].mean()
    rise = found[1] - found[0]
    assert rise[11:15, 11:15].mean() > 2 * rise[24:, 24:].mean()


# -- losses --------------------------------------------------------------------------------------------------


def parts_of(network, **loss):
    method = Reconstruct(network, loss=loss)
    return method, method.losses([episode(i) for i in images()])


def test_weights_come_from_the_options_of_the_loss():
    with pytest.raises(UserError, match=r"method\.loss_weights is not read"):
        Reconstruct(Copy(), loss_weights={"l1": 0.5})


def test_every_loss_has_its_parts_and_weights():
    assert set(parts_of(Copy())[1]) == {"ssim"}
    method, parts = parts_of(Copy(factor=0.7), windows=[3, 7, 15])
    assert list(parts) == ["ssim_3", "ssim_7", "ssim_15"]
    assert len({float(v.detach()) for v in parts.values()}) == 3
    assert method.loss_weights == {}
    assert set(parts_of(Copy(), name="l2")[1]) == {"l2"}
    method, parts = parts_of(Copy(factor=0.7), name="ssim_l1", l1=0.3)
    assert set(parts) == {"ssim", "l1"}
    assert method.loss_weights == {"l1": 0.3}
    method, parts = parts_of(Vae(8), name="vae", kl=0.1)
    assert set(parts) == {"bce", "kl"}
    assert method.loss_weights == {"kl": 0.1}
    assert all(v.ndim == 0 and v.requires_grad for v in parts.values())


def test_a_perfect_reconstruction_costs_minus_one_per_window():
    parts = Loss(windows=(3, 11))(images(), images())
    assert sum(parts.values()) == pytest.approx(-2, abs=1e-5)


def test_divergence_by_hand():
    mean, logvar = torch.tensor([0.5, -1.0, 0.0]), torch.tensor([0.0, 1.0, 0.0])
    each = 0.5 * (mean**2 + logvar.exp() - 1 - logvar)
    assert each[2] == 0
    drawn = Sampled(torch.rand(2, 1, 4, 5), *(t.expand(2, 3)[..., None, None] for t in (mean, logvar)))
    assert kl_per_pixel(drawn) == pytest.approx(float(each.sum()) / 20)
    assert kl_per_pixel(drawn, 0.2) == pytest.approx(float(each.clamp(min=0.2).sum()) / 20)
    latents = Loss("vae", kl_over="latents").variational(drawn, torch.rand(2, 1, 4, 5))["kl"]
    assert latents == pytest.approx(float(each.mean()))


def test_total_variation_by_hand():
    ramp = torch.arange(4.0).expand(2, 1, 3, 4)  # one per pixel to the right, none downwards
    assert total_variation(ramp) == pytest.approx(2 * (2 * 3 * 3) / (3 * 3) / 2)
    assert total_variation(torch.ones(1, 3, 4, 4)) == 0


@pytest.mark.parametrize("name", ["ssim", "l2", "l1", "ssim_l1", "vae"])
def test_losses_are_single_precision_under_autocast(name):
    method = Reconstruct(Vae(8), loss={"name": name})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        parts = method.losses([episode(i) for i in images()])
    assert {v.dtype for v in parts.values()} == {torch.float32}


@pytest.mark.parametrize("network", [SsimAE(8), RedNet(2, 8), RedNet(4, 8), Vae(8), VaeLegacy()], ids=name_of)
def test_gradients_reach_every_parameter(network):
    network = copy.deepcopy(network)
    name = "vae" if isinstance(network, Vae | VaeLegacy) else "ssim"
    method = Reconstruct(network, loss={"name": name})
    sum(method.losses([episode(i) for i in images(4, 64)]).values()).backward()
    assert [n for n, p in method.named_parameters() if p.grad is None or not p.grad.any()] == []


# -- mistakes ------------------------------------------------------------------------------------------------


def test_parts_that_do_not_go_together_are_refused():
    with pytest.raises(UserError, match=r"SsimAE has 3 image channels, method\.colour=grey gives 1"):
        Reconstruct(SsimAE(8), colour="grey")
    with pytest.raises(UserError, match="SsimAE has 1 image channels"):
        Reconstruct(SsimAE(8, 1))
    with pytest.raises(UserError, match=r"no distribution for method\.loss\.name=vae"):
        Reconstruct(SsimAE(8), loss={"name": "vae"})
    with pytest.raises(UserError, match="windows is empty"):
        parts_of(Copy(), windows=[])


def test_an_option_is_used_or_refused():
    """Fault 14: the original's fp16, finetune, crop size and the VAE's code_dim have no effect."""
    with pytest.raises(TypeError, match="finetune"):
        Reconstruct(SsimAE(8), finetune=True)
    with pytest.raises(TypeError, match="code_dim"):
        VaeLegacy(code_dim=8)
    with pytest.raises(TypeError, match="beta"):
        Reconstruct(SsimAE(8), loss={"beta": 1})


# -- training ------------------------------------------------------------------------------------------------


def test_corruption_is_for_training_only():
    net = Copy()
    method = Reconstruct(net, loss={"name": "l1"}, corruption=1.0)
    torch.manual_seed(0)
    parts = method.losses([episode(i) for i in images()])
    assert not torch.equal(net.seen[0], images())
    assert parts["l1"] > 0, "the whole image is the target"
    method.predict(images(), None)
    assert torch.equal(net.seen[1], images())
    Reconstruct(net, loss={"name": "l1"}).losses([episode(i) for i in images()])
    assert torch.equal(net.seen[2], images())


@pytest.mark.parametrize("network", [RedNet(2, 8), SsimAELite(8, 3)], ids=name_of)
def test_a_last_batch_of_one_small_image_can_be_learned(network):
    method = Reconstruct(network)
    parts = method.losses([episode(images(1, 64)[0])])
    assert torch.isfinite(parts["ssim"])
    sum(parts.values()).backward()


class Rates(Callback):
    """Learning rate of every batch, and the state at a given one."""

    def __init__(self, path=None, save_at=None):
        self.used, self.path, self.save_at = [], path, save_at

    def on_train_batch_start(self, trainer, *rest):
        self.used.append([o.param_groups[0]["lr"] for o in trainer.optimizers])

    def on_train_batch_end(self, trainer, *rest):
        if len(self.used) == self.save_at:
            trainer.save_checkpoint(self.path)


def made(kind):
    torch.manual_seed(0)
    if kind is Srgan:
        return Srgan(Generator(2), optimizer=PLAN, corruption=0.5)
    return Reconstruct(VaeLegacy(), optimizer=PLAN, corruption=0.5, loss={"name": "vae"})


def test_answers_are_normalised_by_what_the_training_images_give_now(tmp_path):
    learned = {}
    for settle in (0, 2):
        torch.manual_seed(0)
        method = Reconstruct(SsimAELite(channels=3), optimizer=PLAN, loss={"windows": [3]}, settle=settle)
        data = loader(6, 64)
        trainer(tmp_path, max_epochs=3).fit(method, data, data)
        learned[settle] = method.eval()
    lagging, settled = (learned[k] for k in (0, 2))
    assert all(torch.equal(a, b) for a, b in zip(lagging.parameters(), settled.parameters(), strict=True))
    first = next(m for m in settled.net.modules() if isinstance(m, nn.Conv2d))
    with torch.no_grad():
        shown = torch.cat([e.query_image for batch in list(data)[:2] for e in batch])
        seen = first(shown).movedim(1, 0).flatten(1)  # (channels, values) of two batches
    norm = next(m for m in settled.net.modules() if isinstance(m, nn.BatchNorm2d))
    assert torch.allclose(norm.running_mean, seen.mean(1), atol=1e-5)
    trained = copy.deepcopy(settled.net).train()(shown)
    off = {k: float((m.net(shown) - trained).abs().mean()) for k, m in learned.items()}
    assert off[2] < off[0]


@pytest.mark.parametrize("kind", [Reconstruct, Srgan])
def test_a_resumed_training_ends_as_if_it_had_not_stopped(tmp_path, kind):
    """Faults 8 and 10: the original begins its warm-up anew, far above the rate; its SRGAN cannot resume."""
    whole, rates = made(kind), Rates(tmp_path / "half.ckpt", save_at=STEPS // 2)
    trainer(tmp_path, max_epochs=6, callbacks=[rates]).fit(whole, loader())
    again, rest = made(kind), Rates()
    trainer(tmp_path, max_epochs=6, callbacks=[rest]).fit(
        again, loader(), ckpt_path=tmp_path / "half.ckpt", weights_only=True
    )
    assert rates.used[STEPS // 2 :] == rest.used
    for optimizer in zip(*rates.used, strict=True):
        warm = [1e-6 + (1e-2 - 1e-6) * i / 4 for i in range(4)]
        assert optimizer == pytest.approx([*warm, *[1e-2] * 4, *[1e-3] * 4])
    states = whole.state_dict(), again.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[1][k], v) for k, v in states[0].items() if isinstance(v, torch.Tensor))


def test_a_shorter_training_runs_through_the_same_plan(tmp_path):
    rates = Rates()
    trainer(tmp_path, max_epochs=3, callbacks=[rates]).fit(made(Reconstruct), loader())
    used = [u[0] for u in rates.used]
    assert used[2:4] == pytest.approx([1e-2] * 2)
    assert used[4:] == pytest.approx([1e-3] * 2)


def test_the_plan_needs_to_know_its_length():
    layer = nn.Linear(1, 1)
    with pytest.raises(UserError, match="schedule=steps needs epochs"):
        optim.build(layer.named_parameters(), 10, schedule="steps", milestones=[5])
    _, plan = optim.build(
        layer.named_parameters(), 10, schedule="steps", epochs=10, milestones=[5, 7], decay=2.0
    )
    assert [plan.lr_lambdas[0](s) for s in range(10)] == [1.0] * 5 + [0.5] * 2 + [0.25] * 3


# -- SRGAN ---------------------------------------------------------------------------------------------------


def test_both_networks_learn_and_are_kept(tmp_path):
    """Fault 10: the original would store the generator twice."""
    method = made(Srgan)
    before = copy.deepcopy(method.state_dict())
    fit = trainer(tmp_path, max_epochs=2)
    fit.fit(method, loader())
    fit.save_checkpoint(tmp_path / "x.ckpt")
    content = torch.load(tmp_path / "x.ckpt", weights_only=True)
    assert len(content["optimizer_states"]) == len(content["lr_schedulers"]) == 2
    saved = content["state_dict"]
    for part in ("net.", "discriminator."):
        mine = [k for k, p in method.named_parameters() if k.startswith(part)]
        assert mine
        assert all(k in saved and not torch.equal(saved[k], before[k]) for k in mine), part
    other = Srgan(Generator(2))
    other.load_state_dict(saved)
    shown = images()
    with torch.no_grad():
        found, expected = (m.eval().predict(shown, None) for m in (other, method))
    assert torch.equal(found.image, expected.image)
    assert torch.equal(other.discriminator(shown), method.discriminator(shown))


def test_the_judge_s_step_leaves_the_restorer_alone(tmp_path, monkeypatch):
    method, seen = made(Srgan), []
    step = optim.minimise

    def watched(module, loss, optimizer, parameters):
        module.zero_grad()
        step(module, loss, optimizer, parameters)
        seen.append({n for n, p in module.named_parameters() if p.grad is not None})

    monkeypatch.setattr(optim, "minimise", watched)
    trainer(tmp_path, max_steps=2).fit(method, loader())
    every = [
        {f"{part}.{n}" for n, _ in getattr(method, part).named_parameters()}
        for part in ("discriminator", "net")
    ]
    assert seen == every


@pytest.fixture(scope="module")
def vgg_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("vgg") / "vgg.pth"
    torch.manual_seed(0)
    torch.save(vgg16_reduced().state_dict(), path)
    return path


def test_the_perceptual_network_is_frozen_and_not_saved(tmp_path, vgg_file):
    torch.manual_seed(0)
    method = Srgan(Generator(2), loss={"vgg_weights": str(vgg_file)}, optimizer=PLAN)
    assert method.loss_weights["vgg"] == 6e-3
    before = copy.deepcopy(method.vgg.state_dict())
    fit = trainer(tmp_path, max_steps=2)
    fit.fit(method, loader())
    fit.save_checkpoint(tmp_path / "x.ckpt")
    assert "train/vgg" in fit.logged_metrics
    assert all(torch.equal(v, before[k]) for k, v in method.vgg.state_dict().items())
    saved = torch.load(tmp_path / "x.ckpt", weights_only=True)
    assert not [k for k in saved["state_dict"] if k.startswith("vgg")]
    assert list(saved["fewspect"]["frozen"]) == ["vgg"]


@pytest.mark.parametrize("colour", ["rgb", "bgr", "grey"])
def test_the_perceptual_network_gets_what_it_was_trained_on(vgg_file, colour):
    """Fault 10: 0..255 in B, G, R minus the means, not 0..1."""
    channels = 1 if colour == "grey" else 3
    method = Srgan(Generator(2, channels), loss={"vgg_weights": str(vgg_file)}, colour=colour)
    shown = images(1)
    found = method._for_vgg(method.shown(shown))
    expected = grey(shown).expand(-1, 3, -1, -1) if colour == "grey" else shown.flip(1)
    means = torch.tensor([104.0, 117.0, 123.0])[:, None, None]
    assert torch.allclose(found, 255 * expected - means)
    raw = Srgan(Generator(2, channels), loss={"vgg_input": "raw"}, colour=colour)
    assert torch.equal(raw._for_vgg(raw.shown(shown)), expected)


def test_a_wrong_perceptual_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"vgg_weights: there is no file nowhere\.pth"):
        adversarial.perceptual("nowhere.pth")
    torch.save({"0.weight": torch.zeros(1)}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="does not fit the network"):
        adversarial.perceptual(str(tmp_path / "x.pth"))


# -- checkpoints of the original -----------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("outer", [False, True])
def test_bare_state_dicts_load_with_and_without_prefix(tmp_path, prefix, outer):
    torch.manual_seed(1)
    source, target = SsimAE(8), Reconstruct(SsimAE(8))
    state = {prefix + k: v for k, v in source.state_dict().items()}
    torch.save({"state_dict": state} if outer else state, tmp_path / "x.pth")
    target.load_foreign(tmp_path / "x.pth")
    assert all(torch.equal(target.net.state_dict()[k], v) for k, v in source.state_dict().items())
    assert target.colour == "bgr", "the original was trained on B, G, R"


def test_a_foreign_generator_leaves_the_judge(tmp_path):
    source, target = Generator(2), Srgan(Generator(2))
    judge = copy.deepcopy(target.discriminator.state_dict())
    torch.save(source.state_dict(), tmp_path / "g.pth")
    target.load_foreign(tmp_path / "g.pth")
    assert all(torch.equal(target.net.state_dict()[k], v) for k, v in source.state_dict().items())
    assert all(torch.equal(target.discriminator.state_dict()[k], v) for k, v in judge.items())


def test_a_grey_network_stays_grey(tmp_path):
    torch.save(SsimAE(8, 1).state_dict(), tmp_path / "x.pth")
    method = Reconstruct(SsimAE(8, 1), colour="grey")
    method.load_foreign(tmp_path / "x.pth")
    assert method.colour == "grey"


@pytest.mark.parametrize("other", [SsimAE(16), SsimAE(8, 1), RedNet(2, 8)], ids=name_of)
def test_other_checkpoints_are_refused_and_change_nothing(tmp_path, other):
    torch.save(other.state_dict(), tmp_path / "x.pth")
    method = Reconstruct(SsimAE(8))
    before = copy.deepcopy(method.state_dict())
    with pytest.raises(UserError, match="does not fit the network"):
        method.load_foreign(tmp_path / "x.pth")
    after = method.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items() if isinstance(v, torch.Tensor))
    assert method.colour == "rgb"


def test_pickled_code_is_not_run(tmp_path):
    torch.save({"net": SsimAE(8)}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="not a readable checkpoint"):
        Reconstruct(SsimAE(8)).load_foreign(tmp_path / "x.pth")
