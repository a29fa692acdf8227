"""Parity of Defect-Gen with the original, file by file of a golden folder (``--goldens=DIR``)."""

from pathlib import Path

import goldens_format
import numpy as np
import pytest
import torch

from fewspect.callbacks.draw import PALETTE
from fewspect.methods import optim
from fewspect.methods.defect_gen import checkpoint, loss, sampler
from fewspect.methods.defect_gen.codec import Codec
from fewspect.methods.defect_gen.ema import Average
from fewspect.methods.defect_gen.net import GROUPS, UNet
from fewspect.methods.defect_gen.schedule import Schedule, betas
from fewspect.metrics import generation
from fewspect.nn import windows

KINDS = {
    *("unet", "schedule", "quantities", "loss", "train_steps", "two_stage_trace", "decode", "data"),
    *("metrics", "state_dict", "diffusers_map"),
}


def test_every_kind_is_known(request):
    found = goldens_format.entries(Path(request.config.getoption("--goldens")), "defect_gen")
    assert {golden["kind"] for golden in found} <= KINDS


# -- what the manifest describes -----------------------------------------------------------------------------


def drawn(golden):
    """Inputs, with what ``Golden.draws`` does not do: scaling, shifting, clipping, checks by value."""
    found = {}
    for group in golden["inputs"]:
        rng = np.random.default_rng(group["seed"])
        for draw in group["draws"]:
            assert draw["repeat"] == 1
            if draw["dist"] == "integers":
                values = rng.integers(draw["low"], draw["high"], draw["shape"])
            else:
                values = {"random": rng.random, "standard_normal": rng.standard_normal}[draw["dist"]](
                    draw["shape"]
                )
                values = values * draw.get("scale", 1.0) + draw.get("shift", 0.0)
            values = values.astype(draw["dtype"])
            found[draw["name"]] = np.clip(values, *draw["clip"]) if "clip" in draw else values
    for key in golden["stored_inputs"]:
        assert np.array_equal(golden.stored(key), found.get(key, golden.stored(key))), key
        found[key] = golden.stored(key)
    return {k: torch.from_numpy(np.asarray(v)) for k, v in found.items()}


def network(spec):
    """A network of the manifest, not filled."""
    assert spec["first_output_block_skip"] == spec["middle_attention"] == spec["middle_block"]
    assert (spec["group_norm_groups"], spec["dropout"]) == (GROUPS, 0.0)
    assert spec["in_channels"] == spec["out_channels"]
    net = UNet(
        spec["in_channels"],
        width=spec["model_channels"],
        mult=spec["channel_mult"],
        blocks=spec["num_res_blocks"],
        attention=spec["attention_downsample"],
        head=spec["head_channels"] or 16,
        middle=spec["middle_block"],
        modulation=spec["time_modulation"],
    )
    assert sum(p.numel() for p in net.parameters()) == spec["n_params"]
    return net.eval()


def filled(golden, spec):
    """A network with the values of the manifest, under the original's names in their order."""
    net = network(spec)
    name, source = spec["network"], golden["names_from"][spec["network"]]
    reference = checkpoint.export_reference(net)
    stored = golden.other(source["file"]).stored(source["key"]).tolist()
    assert list(reference) == stored
    checkpoint.load_reference(golden.fill(name, reference), net)
    return net


def schedule_of(spec):
    return Schedule(spec["steps"], spec["schedule"], cosine_s=spec["cosine_s"])


def compare(golden, outputs):
    """``Golden.compare`` with its rows that are not compared, and rows with limits of their own."""
    outputs = {k: v.detach() if isinstance(v, torch.Tensor) else v for k, v in outputs.items()}
    for key, limit in golden["tolerance"].items():
        for row in limit.get("skip_rows", []):
            outputs[key] = np.array(outputs[key], copy=True)
            outputs[key][row] = golden.stored(key)[row]
        if "atol_rows" in limit:
            gap = np.abs(np.asarray(outputs[key]) - golden.stored(key))
            rows = gap.reshape(len(gap), -1).max(1)
            assert (rows <= limit["atol_rows"]).all(), (key, rows)
    print(golden.name, golden.compare(outputs))


def agree(golden, **values):
    """Fields of the manifest against the values in the file."""
    for field, key in golden.get("param_keys", {}).items():
        mine = values.get(field, golden.get(field))
        if mine is not None:
            assert np.array_equal(np.ravel(golden.stored(key)), np.ravel(mine)), field


# -- networks ------------------------------------------------------------------------------------------------


def block_outputs(net):
    """Outputs of the original's blocks by name; filled by the next call."""
    last, found = {}, {}
    for theirs, ours in checkpoint.modules(net):
        if theirs.startswith(("input", "middle", "output")):
            block = theirs.split(".")[0] if theirs.startswith("middle") else ".".join(theirs.split(".")[:2])
            last[block] = ours
    for block, ours in last.items():
        net.get_submodule(ours).register_forward_hook(
            lambda _module, _inputs, output, block=block: found.__setitem__(block, output.clone())
        )
    return found


@pytest.mark.goldens("defect_gen", "unet")
@torch.no_grad()
def test_unet(golden):
    net = filled(golden, golden)
    assert golden["in_channels"] == Codec(golden["num_defect"]).channels
    inputs = drawn(golden)
    assert inputs["t"].tolist() == golden["timesteps"]
    blocks = block_outputs(net)
    outputs = {"y": net(inputs["x"], inputs["t"])}
    order = golden.stored(golden["param_keys"]["block_order"]).tolist()
    assert order == list(blocks)
    [row] = golden["statistics"]
    outputs[row["key"]] = np.array(
        [goldens_format.statistics(blocks[b].numpy(), row["stats"], row["ddof"]) for b in order]
    )
    second = torch.tensor(golden["second_timesteps"])
    assert list(inputs["x2"].shape[-2:]) == golden["second_size"]
    outputs["sinusoid"] = net.time_proj(inputs["t"])
    outputs["time_embed"] = net.time_embedding(outputs["sinusoid"])
    compare(golden, outputs | {"y2": net(inputs["x2"], second)})
    assert int(golden.stored(golden["param_keys"]["n_params"])) == golden["n_params"]


@pytest.mark.goldens("defect_gen", "state_dict")
def test_state_dict(golden):
    rows = golden.content if golden["entries_key"] is None else golden.content[golden["entries_key"]]
    rows = [tuple(r.values()) if golden["entry_form"] == "object" else tuple(r) for r in rows]
    mine = [
        (k, list(v.shape), str(v.dtype).removeprefix("torch."))
        for k, v in checkpoint.export_reference(described(golden)).items()
    ]
    assert (len(mine), sum(int(np.prod(shape)) for _, shape, _ in mine)) == (
        golden["tensors"],
        golden["elements"],
    )

    def layout(entries):
        return {
            "names": sorted(name for name, _, _ in entries),
            "order": [name for name, _, _ in entries],
            "shapes": {name: list(shape) for name, shape, _ in entries},
            "dtypes": {name: dtype for name, _, dtype in entries},
        }

    golden.compare(layout(mine), layout(rows))


def described(golden):
    """The network of a listing, without memory."""
    config, large = golden["config"], golden["model"] == "large"
    with torch.device("meta"):
        return UNet(
            config["in_channels"],
            width=config["model_channels"],
            mult=config["channel_mult"],
            blocks=config["num_res_blocks"],
            attention=config["attention_downsample"] if large else (),
            head=config["num_head_channels"],
            middle=large,
            modulation="scale_shift" if large else "additive",
        )


@pytest.mark.goldens("defect_gen", "diffusers_map")
def test_names_in_diffusers(golden, request):
    folder = Path(request.config.getoption("--goldens"))
    listing = {g.name: g for g in goldens_format.entries(folder, "defect_gen")}[golden["state_dict"]]
    mine = {k: list(v) for k, v in checkpoint.names(described(listing)).items()}
    assert len(mine) == golden["reference_names"]
    assert sum(map(len, mine.values())) == golden["target_names"]
    assert mine == golden.content


# -- noise ---------------------------------------------------------------------------------------------------


@pytest.mark.goldens("defect_gen", "schedule")
def test_schedule(golden):
    outputs = {}
    for spec in golden["schedules"]:
        options = {"cosine_s": spec["cosine_s"], "max_beta": spec["max_beta"]}
        options |= {"start": spec["linear_start"], "end": spec["linear_end"]}
        made = Schedule(spec["steps"], spec["schedule"], **options)
        outputs |= {f"{spec['key']}/{name}": getattr(made, name) for name in spec["buffers"]}
        assert all(str(v.dtype) == f"torch.{golden['dtype']}" for v in outputs.values())
    compare(golden, outputs)


@pytest.mark.goldens("defect_gen", "quantities")
def test_quantities(golden):
    agree(golden)
    assert golden["prediction"] == "x0"
    made, inputs = schedule_of(golden), drawn(golden)
    x0, noise, t = inputs["x0"], inputs["noise"], inputs["t"]
    assert t.tolist() == golden["timesteps"]
    x_t = made.add_noise(x0, noise, t)
    given = torch.from_numpy(golden.stored("x_t"))

    def rows(values):
        return values[t][:, None, None, None]

    outputs = {
        "x_t": x_t,
        "q_mean": rows(made.sqrt_alphas_cumprod) * x0,
        "q_var": rows(made.sqrt_one_minus_alphas_cumprod) ** 2,
        "q_logvar": rows(made.log_one_minus_alphas_cumprod),
        "post_mean": made.posterior_mean(x0, given, t),
        "post_var": rows(made.posterior_variance),
        "post_logvar": rows(made.posterior_log_variance_clipped),
        "x0_from_eps": made.x0_of_noise(given, noise, t),
        "eps_from_x0": made.noise_of_x0(given, x0, t),
    }
    compare(golden, outputs)


# -- losses and training -------------------------------------------------------------------------------------


def batch_of(golden, image, mask):
    """Clean samples from images in [-1, 1] and masks (B, 1, H, W)."""
    low, high = golden["one_hot_values"]
    assert high == 1
    return Codec(golden["num_defect"], low=float(low)).encode((image + 1) / 2, mask[:, 0])


@pytest.mark.goldens("defect_gen", "loss")
def test_loss(golden):
    inputs, made = drawn(golden), schedule_of(golden["diffusion"])
    x0 = batch_of(golden, inputs["img"], inputs["idx"])
    x_t = made.add_noise(x0, inputs["noise"], inputs["t"])
    outputs = {}
    for name, spec in golden["networks"].items():
        net = filled(golden, spec)
        answer = net(x_t, inputs["t"])
        for key, form in golden["losses"].items():
            kind = {"x0": "x0", "eps": "noise"}[form["prediction"]]
            if form["form"] == "mse":
                aim = loss.target(made, kind, x0, inputs["noise"], inputs["t"])
                outputs[f"{name}_{key}"] = loss.squared(answer, aim)
            else:
                parts = loss.separate(answer, x0, golden["mask_loss_weight"])
                outputs[f"{name}_{key}"] = torch.stack([parts[c] for c in form["columns"]])
        outputs[f"{name}_{golden['gradient_of']}"].backward()
        grads = by_reference_name(net, {k: p.grad for k, p in net.named_parameters()})
        assert list(grads) == golden.stored(f"{name}_grad_names").tolist()
        outputs[f"{name}_grad_l2"] = [float(g.double().norm()) for g in grads.values()]
        outputs[f"{name}_grad_sum"] = [float(g.double().sum()) for g in grads.values()]
    compare(golden, outputs)


def by_reference_name(net, tensors):
    """Any tensors by parameter, under the original's names."""
    return {k: torch.cat([tensors[n].flatten() for n in ours]) for k, ours in checkpoint.names(net).items()}


@pytest.mark.goldens("defect_gen", "train_steps")
def test_train_steps(golden):
    [(_, spec)] = golden["networks"].items()
    net = filled(golden, spec)
    inputs, made = drawn(golden), schedule_of(golden["diffusion"])
    settings = dict(golden["optimizer"])
    assert settings.pop("clip") is None
    settings["name"] = settings["name"].lower()
    optimizer, _ = optim.build(net.named_parameters(), golden["steps"], **settings)
    assert (golden["ema"]["init"], golden["ema"]["every"]) == ("copy", 1)
    average = Average(net, golden["ema"]["decay"], warmup=False)
    start = {k: v.clone() for k, v in net.state_dict().items()}
    losses = []
    for s in range(golden["steps"]):
        x0 = batch_of(golden, inputs[f"img{s}"], inputs[f"idx{s}"])
        noise, t = inputs[f"noise{s}"], inputs[f"t{s}"]
        value = loss.squared(net(made.add_noise(x0, noise, t), t), x0)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        average.update(net)
        losses.append(value.item())
    now, mean = net.state_dict(), average.net.state_dict()

    def lengths(state, origin=None):
        apart = {k: v.double() - (0 if origin is None else origin[k].double()) for k, v in state.items()}
        return [float(v.norm()) for v in by_reference_name(net, apart).values()]

    rows = list(checkpoint.names(net))
    assert rows == golden.stored("names").tolist()
    for key in ("delta_l2", "ema_delta_l2", "param_l2"):
        skipped = golden["tolerance"][key].get("skip_rows", [])
        assert [rows[i] for i in skipped] == golden["zero_gradient_names"]
    outputs = {"loss": losses, "delta_l2": lengths(now, start), "ema_delta_l2": lengths(mean, start)}
    outputs["param_l2"] = lengths(now)
    exported = {"": checkpoint.export_reference(net), "ema_": checkpoint.export_reference(average.net)}
    for key, name in golden["tensors"].items():
        outputs[key] = exported["ema_" if key.startswith("ema_") else ""][name]
    assert np.array_equal(golden.stored("t"), [inputs[f"t{s}"].tolist() for s in range(golden["steps"])])
    compare(golden, {k: np.asarray(v) for k, v in outputs.items()})


# -- sampling ------------------------------------------------------------------------------------------------


@pytest.mark.goldens("defect_gen", "two_stage_trace")
@torch.no_grad()
def test_two_stage_trace(golden):
    inputs, made = drawn(golden), schedule_of(golden["diffusion"])
    nets = {spec["network"]: filled(golden, spec) for spec in golden["networks"].values()}
    start, steps, switch = inputs["xT"], golden["diffusion"]["steps"], golden["switch"]
    calls = sampler.plan(steps, switch)
    assert [c.t for c in calls] == golden["timesteps"]
    kinds = {
        "deterministic": sampler.deterministic,
        "ddim": sampler.ddim,
        "ancestral": sampler.Ancestral(inputs["noise"]),
    }
    traces = {}
    for name, spec in golden["traces"].items():
        chosen = calls
        if "start" in spec:
            chosen = sampler.plan(steps, switch, released=True)
            places = [chosen[0], next(c for c in chosen if c.stage != chosen[0].stage)]
            assert [list(p) for p in places] == spec["start"]
        traces[name] = list(
            sampler.descend(made, nets, start, chosen, kinds[spec["step"]], clip=spec["clip"])
        )
    released = sampler.plan(steps, switch, released=True)
    first = sum(c.stage == "large" for c in released)
    by_t = {m.t: m for m in traces["intended"]}
    compare(
        golden,
        {
            "released_t": [c.t for c in released],
            "released_model": [c.stage for c in released],
            "released_after_large": traces["released"][first - 1].x,
            "released_final": traces["released"][-1].x,
            "intended_x": torch.stack([m.x for m in traces["intended"]]),
            "intended_x0hat": torch.stack([by_t[t].x0 for t in golden["x0hat_timesteps"]]),
            "intended_noclip_final": traces["intended_noclip"][-1].x,
            "ancestral_final": traces["ancestral"][-1].x,
            "ancestral_x_at_switch": next(m.x for m in traces["ancestral"] if m.t == switch),
            "plain_ddim_final": traces["plain_ddim"][-1].x,
        },
    )


@pytest.mark.goldens("defect_gen", "decode")
def test_decode(golden):
    place, inputs = golden["sample_from"], drawn(golden)
    source = golden.other(place["file"]).stored(place["key"])[place["index"]]
    assert np.array_equal(source, golden.stored("sample"))
    codec = Codec(golden["num_defect"])
    assert codec.channels == golden["channels"]
    image, mask = codec.decode(inputs["sample"])
    assert np.array_equal(golden.stored("palette"), PALETTE)
    assert len(PALETTE) == golden["palette_entries"]
    compare(
        golden,
        {
            "index_mask": mask,
            "colour_mask": np.array(PALETTE, np.uint8)[mask.numpy()],
            "image_u8": image.movedim(1, -1),
        },
    )


@pytest.mark.goldens("defect_gen", "data")
def test_data(golden):
    agree(golden)
    side, codec = golden["resolution"], Codec(golden["num_defect"], low=0.0)
    outputs = {}
    for pair in golden["pairs"]:
        raw, labels = (torch.from_numpy(golden.stored(pair[k])) for k in ("image", "mask"))
        assert list(labels.shape) == pair["size"]
        image = windows.squash(raw.movedim(-1, 0), side)
        mask = windows.squash_labels(labels, side)
        sample = codec.encode(image[None], mask[None])[0]
        i = pair["index"]
        gap = np.abs(sample[:3].numpy() - golden.stored(f"img{i}")).max()
        assert gap <= golden["tolerance_other_resampler"], (
            "ours is torchvision's, within a grey level of PIL's"
        )
        outputs[f"img{i}"] = golden.stored(f"img{i}")  # judged above, by the limit for another resampler
        outputs |= {f"mask{i}": mask[None], f"onehot{i}": sample[3:].to(torch.uint8)}
        assert sample[3:].unique().tolist() == [0.0, 1.0]
    compare(golden, outputs)


@pytest.mark.goldens("defect_gen", "metrics")
def test_metrics(golden):
    inputs = drawn(golden)
    assert inputs["ref"].shape == (golden["n_ref"], golden["features"])
    assert golden["covariance_ddof"] == 1
    k = golden["neighbours"]
    precision, recall = generation.precision_recall(inputs["ref"], inputs["gen"], k)
    compare(
        golden,
        {
            "ref_radii": generation.radii(inputs["ref"], k),
            "gen_radii": generation.radii(inputs["gen"], k),
            "precision": precision,
            "recall": recall,
            "frechet": generation.frechet(inputs["ref"], inputs["gen"]),
        },
    )


def test_cosine_is_the_one_of_diffusers():
    from diffusers.schedulers import DDIMScheduler

    theirs = DDIMScheduler(beta_schedule="squaredcos_cap_v2").betas
    assert torch.allclose(betas().float(), theirs, atol=1e-9, rtol=1e-6)
