"""Parity of the reconstruction family with the original, by file of a golden folder (``--goldens=DIR``)."""

from itertools import pairwise

import goldens_format
import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from scipy.ndimage import gaussian_filter
from torch import nn
from torch.utils.data import DataLoader

from fewspect.data import classic
from fewspect.methods import optim
from fewspect.methods.reconstruct import loss as terms
from fewspect.methods.reconstruct.adversarial import Srgan
from fewspect.methods.reconstruct.method import Reconstruct
from fewspect.methods.reconstruct.red_net import RedNet
from fewspect.methods.reconstruct.srgan import Discriminator, Generator, vgg16_reduced
from fewspect.methods.reconstruct.ssim_ae import SsimAE, SsimAELite
from fewspect.methods.reconstruct.vae import Sampled, VaeLegacy
from fewspect.nn import windows
from fewspect.nn.ssim import C1, C2, SIGMA, gaussian, ssim
from fewspect.types import Episode

NETWORKS = {"ssim_ae": SsimAE, "ssim_ae_lite": SsimAELite, "red_net": RedNet}


def built(name, code_dim, channels, skips=None):
    """An autoencoder by the name of the files; ``red_net_3skips`` names its skips, too."""
    kind = NETWORKS["red_net" if name.startswith("red_net") else name]
    if kind is RedNet:
        return RedNet(skips or int(name.removeprefix("red_net_")[0]), code_dim, channels)
    return kind(code_dim, channels)


def filled(golden, net, entry):
    """A network with the values of the manifest; running variances are 1 + their absolute values."""
    values = golden.fill(entry, net.state_dict())
    net.load_state_dict({k: 1 + v.abs() if k.endswith("running_var") else v for k, v in values.items()})
    return net


def drawn(golden):
    """Inputs, with what ``Golden.draws`` does not do: scaling, smoothing, clipping, elements as checks."""
    found = {}
    for group in golden["inputs"]:
        rng = np.random.default_rng(group["seed"])
        for draw in group["draws"]:
            assert draw["repeat"] == 1
            kind = {"random": rng.random, "standard_normal": rng.standard_normal}[draw["dist"]]
            values = kind(draw["shape"]) * draw.get("scale", 1)
            if "smooth" in draw:
                values = gaussian_filter(values, draw["smooth"])
                values = (values - values.min()) / (values.max() - values.min())
            values = values.astype(draw["dtype"])
            found[draw["name"]] = np.clip(values, *draw["clip"]) if "clip" in draw else values
    for check in golden["checks"]:
        of = found[check["of"]]
        elements = {f"at{i}": float(of[tuple(at)]) for i, at in enumerate(check.get("at", []))}
        mine = [elements.get(s, of.sum(dtype=np.float64)) for s in check["stats"]]
        assert np.allclose(golden.stored(check["key"]), mine, rtol=1e-6, atol=1e-3)
    return {k: torch.from_numpy(v) for k, v in found.items()}


def hooked(net, name):
    """A list that every output of a part is added to."""
    seen = []
    net.get_submodule(name).register_forward_hook(lambda _module, _input, output: seen.append(output.clone()))
    return seen


def parameters_agree(golden):
    for field, key in golden["param_keys"].items():
        stored = np.ravel(golden.stored(key)).tolist()
        assert np.allclose(np.ravel(golden[field]), stored), field


# -- networks ------------------------------------------------------------------------------------------------


@pytest.mark.goldens("reconstruction_ae", "autoencoder")
def test_autoencoder(golden):
    parameters_agree(golden)
    net = built(golden["network"], golden["code_dim"], golden["img_channel"], golden["skips"])
    filled(golden, net, golden["network"]).eval()
    assert net.divisor == golden["divisor"]
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(m.momentum, m.eps) for m in norms} == {(golden["bn_momentum"], golden["bn_eps"])}
    assert golden["code_after_activation"]
    code = hooked(net, golden["code_layer"])
    taps = {r["of"]: hooked(net, r["of"]) for r in golden["statistics"] if r["key"].startswith("tap_")}
    inputs = drawn(golden)
    with torch.no_grad():
        outputs = {"output": net(inputs["x"]), "code": code[0]} | {k: v[0] for k, v in taps.items()}
        trained = net.train()(inputs["x_train"])
    means = torch.cat([m.running_mean for m in norms]).double()
    variances = torch.cat([m.running_var for m in norms]).double()
    golden.compare(
        outputs
        | {
            "train_output": trained,
            "train_output_stride4": trained,
            "train_running_mean_sum_abs": [means.sum(), means.abs().sum()],
            "train_running_var_sum": variances.sum(),
        }
    )


@pytest.mark.goldens("reconstruction_ae", "vae")
@torch.no_grad()
def test_vae(golden):
    parameters_agree(golden)
    net = filled(golden, VaeLegacy(), golden["network"]).eval()
    inputs = drawn(golden)
    with_eps = net.sample(inputs["x"], inputs["eps"])
    assert list(with_eps.mean.shape) == golden["latent_shape"]
    golden.compare(
        {
            "mu": with_eps.mean,
            "logvar": with_eps.logvar,
            "mu_first8": with_eps.mean,
            "logvar_first8": with_eps.logvar,
            "recon_with_eps": with_eps.image,
            "recon_eps0": net(inputs["x"]),
        }
    )


@pytest.mark.goldens("reconstruction_ae", "srgan")
@torch.no_grad()
def test_srgan(golden):
    parameters_agree(golden)
    generator = filled(golden, Generator(golden["scale"], golden["gen_shape"][1]), "generator").eval()
    judge = filled(golden, Discriminator(golden["disc_shape"][1]), "discriminator").eval()
    vgg = filled(golden, vgg16_reduced(), "vgg").eval()
    for net in (generator, judge):
        norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
        assert {(m.momentum, m.eps) for m in norms} == {(golden["bn_momentum"], golden["bn_eps"])}
    inputs = drawn(golden)
    features = vgg(inputs["vgg_x"])
    assert list(features.shape) == golden["vgg_out_shape"]
    outputs = {
        "gen_lowres": generator.encode(inputs["gen_x"]),
        "gen_output": generator(inputs["gen_x"]),
        "disc_prob": judge(inputs["disc_x"]),
        "disc_logit": judge.logit(inputs["disc_x"]),
        "vgg_out": features,
        "vgg_out_first128": features,
        "gen_train_output_stride2": generator.train()(inputs["gen_x"]),
        "disc_train_prob": judge.train()(inputs["disc_x"]),
    }
    outputs |= {k: v.reshape(golden.stored(k).shape) for k, v in outputs.items() if k.startswith("disc_")}
    golden.compare(outputs)


# -- losses --------------------------------------------------------------------------------------------------


@pytest.mark.goldens("reconstruction_ae", "losses")
def test_losses(golden):
    parameters_agree(golden)
    assert (golden["c1"], golden["c2"]) == pytest.approx((C1, C2))
    assert golden["sigma"] == SIGMA
    target, image = (torch.from_numpy(golden.stored(k)) for k in ("target", "pred"))
    options = {"sigma": golden["sigma"], "padding": golden["padding"]}
    outputs = {}
    for k in golden["windows"]:
        found = ssim(image, target, window=k, **options)
        inner = slice(k // 2, -(k // 2) or None)
        outputs |= {
            f"window1d_{k}": gaussian(k, golden["sigma"]),
            f"loss_{k}": terms.ssim_losses(image, target, [k], **options)["ssim"],
            f"loss_per_image_{k}": -found.mean((1, 2, 3)),
            f"interior_mean_{k}": found[..., inner, inner].mean(),
        }
        if k in golden["map_windows"]:
            outputs[f"ssim_map_{k}"] = found
    for k in golden["gradient_windows"]:
        leaf = image.clone().requires_grad_()
        terms.ssim_losses(leaf, target, [k], **options)["ssim"].backward()
        outputs[f"grad_pred_{k}"] = leaf.grad
    several = terms.ssim_losses(image, target, golden["multi_windows"], **options)
    name = "multi_" + "_".join(map(str, golden["multi_windows"]))
    k = golden["identical_window"]
    outputs |= {
        name: torch.stack(list(several.values())),
        "multi_total": sum(several.values()),
        f"identical_loss_{k}": terms.ssim_losses(target, target, [k], **options)["ssim"],
        "l1_mean": terms.Loss("l1")(image, target)["l1"],
        "l2_mean": terms.Loss("l2")(image, target)["l2"],
    }
    inputs = drawn(golden)
    outputs |= vae_losses(golden, inputs) | srgan_losses(golden, inputs)
    golden.compare({k: v.detach().reshape(golden.stored(k).shape) for k, v in outputs.items()})


def vae_losses(golden, inputs):
    code = Sampled(*(inputs[f"vae_{k}"] for k in ("recon", "mu", "logvar")))
    parts = terms.Loss("vae", kl_over="latents").variational(code, inputs["vae_target"])
    row = {"bce": parts["bce"], "kld": parts["kl"], "total": sum(parts.values())}
    columns = golden["vae_columns"]
    return {"vae_" + "_".join(columns): torch.stack([row[c] for c in columns])}


def generator_row(vgg, image, target, judged, weights):
    parts = terms.generator_losses(image, target, vgg(image), vgg(target), judged)
    return parts | {"total": sum(weights[k] * v for k, v in parts.items())}


@torch.no_grad()
def srgan_losses(golden, inputs):
    weights = golden["srgan_weights"]
    assert weights == terms.GAN_WEIGHTS
    vgg = filled(golden, vgg16_reduced(), "vgg").eval()
    row = generator_row(vgg, inputs["srgan_output"], inputs["srgan_target"], inputs["d_fake"], weights)
    row["d"] = terms.discriminator_loss(inputs["d_real"], inputs["d_fake"])
    columns = golden["srgan_columns"]
    return {"srgan_" + "_".join(columns): torch.stack([row[c] for c in columns])}


# -- training ------------------------------------------------------------------------------------------------


def adam(settings, lr):
    """Options of ``optim.build``."""
    kept = {k: settings[k] for k in ("betas", "eps", "weight_decay")}
    return {"name": settings["name"].lower(), "lr": lr, "schedule": "constant", **kept}


class Steps(Callback):
    """What every training step returned."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append({k: v.clone() for k, v in outputs.items()})


def trained(method, images, batches, folder):
    """Train on one batch again and again, by the Trainer; what its steps returned."""
    steps = Steps()
    fit = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[steps],
    )
    fit.fit(method, DataLoader([episode(image) for image in images] * batches, len(images), collate_fn=list))
    return steps.seen


def episode(image):
    side = image.shape[-2:]
    return Episode(
        *(torch.zeros(0, 3, *side), torch.zeros(0, *side), torch.zeros(0), torch.zeros(0)),
        *(image[None], torch.zeros(1, *side), torch.zeros(1), ("good",)),
    )


@pytest.mark.goldens("reconstruction_ae", "train_trace")
def test_train_trace(golden, tmp_path):
    assert golden["same_batch"]
    net = built(golden["network"], golden["code_dim"], golden["img_channel"])
    filled(golden, net, "network").train()
    method = Reconstruct(
        net,
        colour="grey" if golden["img_channel"] == 1 else "rgb",
        loss={"name": golden["loss"].removeprefix("multi_"), "windows": golden["windows"]},
        optimizer=adam(golden["optimizer"], golden["lr"]),
    )
    inputs = drawn(golden)
    seen = trained(method, inputs["batch"].expand(-1, 3, -1, -1), golden["steps"], tmp_path)
    state = net.state_dict()
    outputs = {t["key"]: state[t["name"]].flatten()[: t["first"]] for t in golden["tensors"]}
    with torch.no_grad():
        again = net.eval()(inputs["batch"])
    outputs["eval_output_mean_std"] = [again.mean(), again.std(correction=golden["eval_std_ddof"])]
    outputs["losses"] = torch.stack([s["loss"] for s in seen])
    gan = golden["gan"]
    rows = gan_trace(golden, gan, inputs["gan_images"], tmp_path)
    golden.compare(outputs | {"gan_trace_" + "_".join(gan["columns"]): rows})
    limits = golden["tolerance"]["losses"]["atol_rows"]
    assert (np.abs(outputs["losses"].numpy() - golden.stored("losses")) <= limits).all()


def gan_trace(golden, gan, images, folder):
    """Rounds of a step of the judge and a step of the restorer; both are filled before the first one.

    The original's judge step reaches the restorer (``detach_generator``) to no effect, ours does not.
    """
    assert gan["order"] == ["discriminator", "generator"]
    assert gan["train_mode"]
    torch.save(filled(golden, vgg16_reduced(), "vgg").state_dict(), folder / "vgg.pth")
    method = Srgan(
        filled(golden, Generator(gan["scale"], gan["shape"][1]), "generator"),
        colour="bgr",
        loss={**gan["weights"], "vgg_weights": str(folder / "vgg.pth"), "vgg_input": "raw"},
        optimizer=adam({**golden["optimizer"], "betas": gan["betas"]}, gan["lr"]),
    )
    filled(golden, method.discriminator, "discriminator")
    seen = trained(method, images.flip(1), gan["rounds"], folder)
    names = {"D": "d", "G": "loss"}
    return torch.stack([torch.stack([s[names.get(c, c)] for c in gan["columns"]]) for s in seen])


@pytest.mark.goldens("reconstruction_ae", "lr_schedule")
def test_lr_schedule(golden):
    for plan in golden["schedules"]:
        stored = golden.stored(plan["entry"])
        every = golden["iterations_per_epoch"]
        rates = learning_rates(golden, plan, every)
        close = golden["tolerance"]["lr"]

        def same(mine, theirs, close=close, entry=plan["entry"]):
            assert not goldens_format.deviation(mine, theirs, close)[1], entry

        if plan["fault_case"]:
            # the original restarts its warm-up at a resume; ours goes on where it was
            assert plan["epoch_counter_restarts"]
            start, warm = plan["start_epoch"] * every, golden["warmup_epochs"] * every
            passed = sum(s <= plan["start_epoch"] for s in plan["epoch_steps"])
            same(rates[start], plan["base_lr"] / plan["decay"] ** passed)
            wrong = [faulty(golden, plan, every, i) for i in range(start, start + warm)]
            for view in plan["views"]:
                same(wrong[view["start"] : view["stop"] : view["step"]], stored[view["key"]])
            same(max(wrong), stored[plan["max_key"]])
            assert max(rates[start:]) < min(wrong)
            continue
        assert len(rates) == stored[plan["count_key"]]
        for view in plan["views"]:
            same(rates[view["start"] : view["stop"] : view["step"]], stored[view["key"]])
        same(rates[-1], stored[plan["last_key"]])
        warm = golden["warmup_epochs"] * every
        changes = [[warm, rates[warm]]] + [
            [i, b] for i, (a, b) in enumerate(pairwise(rates), 1) if i > warm and b != a
        ]
        same([c[1] for c in changes], [c[1] for c in stored[plan["changes_key"]]])
        assert [c[0] for c in changes] == [c[0] for c in stored[plan["changes_key"]]]


def learning_rates(golden, plan, every):
    optimizer, schedule = optim.build(
        nn.Linear(1, 1).named_parameters(),
        plan["epochs"] * every,
        lr=plan["base_lr"],
        schedule="steps",
        epochs=plan["epochs"],
        milestones=plan["epoch_steps"],
        decay=plan["decay"],
        warmup_epochs=golden["warmup_epochs"],
        warmup_lr=golden["warmup_lr"],
    )
    used = []
    for _ in range(plan["epochs"] * every):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return used


def faulty(golden, plan, every, i):
    """What the original computes after a resume: the warm-up line with the global iteration."""
    rise = plan["base_lr"] - golden["warmup_lr"]
    return golden["warmup_lr"] + rise * i / (golden["warmup_epochs"] * every)


# -- augmentation --------------------------------------------------------------------------------------------


@pytest.mark.goldens("reconstruction_ae", "augment")
def test_augment(golden):
    stored = torch.from_numpy(golden.stored("image"))
    image = stored.permute(2, 0, 1) if stored.ndim == 3 else stored[None].expand(3, -1, -1)
    gain, offset = golden["lighting_kb"]
    rows, columns = golden["resize_hw"]
    outputs = {
        "mirror": classic.mirror(image),
        "flip": classic.flip(image),
        "lighting": classic.lighting(image, gain, offset),
        "rotated": classic.rotate(image, golden["rotation_deg"]),
        "shifted": classic.shift(image, *golden["shift_xy"]),
        f"resized_{rows}x{columns}": windows._resize_uint8(image, rows, columns),
    }
    outputs = {k: v.permute(1, 2, 0) if stored.ndim == 3 else v[0] for k, v in outputs.items()}
    assert all(v.dtype == torch.uint8 for v in outputs.values())
    golden.compare(outputs)


# -- checkpoint layout ---------------------------------------------------------------------------------------


def described(model, config):
    """The network of a state-dict file."""
    others = {
        "vae": VaeLegacy,
        "srgan_discriminator": Discriminator,
        "vgg16_reducedfc": vgg16_reduced,
    }
    if model == "srgan_generator":
        return Generator(config["scale_factor"])
    return others[model]() if model in others else built(model, config["code_dim"], config["img_channel"])


@pytest.mark.goldens("reconstruction_ae", "state_dict")
def test_state_dict(golden):
    rows = golden.content if golden["entries_key"] is None else golden.content[golden["entries_key"]]
    if golden["entry_form"] == "array":
        rows = [dict(zip(("name", "shape", "dtype"), row, strict=True)) for row in rows]
    net = described(golden["model"], golden["config"])
    state = net.state_dict()
    assert (len(state), sum(v.numel() for v in state.values())) == (golden["tensors"], golden["elements"])
    if golden["parameters"] is not None:
        assert sum(p.numel() for p in net.parameters()) == golden["parameters"]

    def layout(entries):
        return {
            "names": sorted(name for name, _, _ in entries),
            "order": [name for name, _, _ in entries],
            "shapes": {name: list(shape) for name, shape, _ in entries},
            "dtypes": {name: dtype for name, _, dtype in entries},
        }

    mine = [(k, list(v.shape), str(v.dtype).removeprefix("torch.")) for k, v in state.items()]
    golden.compare(layout(mine), layout([(r["name"], r["shape"], r["dtype"]) for r in rows]))
