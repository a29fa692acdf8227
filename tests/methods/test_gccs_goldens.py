"""Parity of GCCS with the original and with the parent of its generator, by file (``--goldens=DIR``)."""

import json
from pathlib import Path

import goldens_format
import numpy as np
import pytest
import torch

from fewspect.backbones.wide import WideResNet
from fewspect.methods.gccs import filtering, loss
from fewspect.methods.gccs.net import Nets
from fewspect.nn import centres, graph, sampler
from fewspect.nn.centres import Centres
from fewspect.nn.graph import Graph
from fewspect.nn.transport import Transport

KINDS = {
    "episodes",
    "episode_graph",
    "episode_sampler",
    "synthetic_filter",
    "backbone",
    "contrastive_generator",
    "state_dict",
}


def test_every_kind_is_known(request):
    found = goldens_format.entries(Path(request.config.getoption("--goldens")), "gccs")
    assert {golden["kind"] for golden in found} <= KINDS


def check_config(golden):
    """The JSON string of a file says what its entry says."""
    if "config" in golden.get("param_keys", {}):
        stored = json.loads(str(golden.stored("config")))
        assert {k: golden[k] for k in stored if golden.get(k) is not None} == {
            k: v for k, v in stored.items() if golden.get(k) is not None
        }


# -- graph and centres ---------------------------------------------------------------------------------------


def graph_of(golden):
    assert golden["node_order"] == "slot * ways + class"
    assert golden["power_offset"] == graph.SMALL
    return Graph(
        k=golden["k"],
        kappa=golden["kappa"],
        self_weight=golden["self_weight"],
        cross_k=0,
        power=golden.get("power"),
    )


def centres_of(golden):
    assert golden["sinkhorn_stop"] == "largest row-sum change over all runs of the batch"
    passes = golden["sinkhorn_max_iterations"]
    tolerance = golden["sinkhorn_tolerance"]
    plan = Transport(passes=passes, final_passes=passes, tolerance=tolerance, stop="batch", warm=False)
    return Centres(golden["lam"], golden["lr"], golden["epochs"], plan)


def episodes_of(golden, dtype):
    """Nodes (R, m, D) in slot-major order, and the classes of the supports."""
    x = torch.from_numpy(golden.stored("x")).to(dtype)
    supports = golden["n_syn"] + golden["n_shot"]
    return filtering.slots(x), filtering.order(golden["ways"], supports).expand(len(x), -1)


def accuracies(golden, pred):
    """Per run over queries, and (mean, half width) with and without synthetic supports counted as hits."""
    ways, made, asked = golden["ways"], golden["n_syn"], golden["n_query"]
    assert golden["interval"] == {"z": 1.96, "ddof": 1}
    assert golden["coded_counts_synthetic"]
    per_run = (pred == filtering.order(ways, asked)).double().mean(1).numpy()
    coded = (made + asked * per_run) / (made + asked)

    def row(values):
        return [values.mean(), 1.96 * values.std(ddof=1) / np.sqrt(len(values))]

    return per_run, row(per_run), row(coded)


@pytest.mark.goldens("gccs", "episodes")
def test_episodes(golden):
    check_config(golden)
    outputs = {}
    for prefix, dtype in (("f64", torch.float64), ("f32", torch.float32)):
        x, labels = episodes_of(golden, dtype)
        trace = {}
        z, _ = graph.nodes(x, labels.shape[1], graph_of(golden))
        found = centres.optimise(z, labels, golden["ways"], centres_of(golden), trace=trace)
        assert found.plan.dtype is dtype
        pred, run = found.plan.argmax(-1), golden["recorded_run"]
        per_run, query, coded = accuracies(golden, pred)
        values = {
            "centres0_run0": trace["centres0"][run],
            "centres1_run0": trace["centres1"][run],
            "centres_run0": found.centres[run],
            "dist0": trace["distance0"],
            "alloc0": trace["plan0"],
            "alloc": found.plan,
            "pred_query": pred,
            "acc_query_per_run": per_run,
            "acc_query": query,
            "acc_as_coded": coded,
        }
        outputs |= {f"{prefix}_{k}": v for k, v in values.items()}
    golden.compare(outputs)


@pytest.mark.goldens("gccs", "episode_graph")
def test_episode_graph(golden):
    whole = golden.other(golden["episodes"])
    x = torch.from_numpy(whole.stored("x"))[golden["run"]][None].to(getattr(torch, golden["dtype"]))
    trace = {}
    z, _ = graph.nodes(filtering.slots(x), golden["support_nodes"], graph_of(golden), trace=trace)
    names = {"cosine": "cosine", "inv_sqrt_degree": "inv_sqrt_degree", "normalised": "normalised"}
    names |= {"propagation": "propagation"}
    golden.compare({f"run0_{k}": trace[v][0] for k, v in names.items()} | {"run0_nodes": z[0]})


@pytest.mark.goldens("gccs", "episode_sampler")
def test_episode_sampler(golden):
    check_config(golden)
    assert golden["generator"] == "numpy RandomState"
    assert golden["permutations_compose"]
    assert golden["order"] == ["classes", "for each class: real, then synthetic"]
    assert golden["real_per_class"] >= golden["shot"] + golden["queries"]
    found = sampler.legacy(
        golden["classes"],
        golden["real_per_class"],
        runs=golden["runs"],
        ways=golden["ways"],
        shot=golden["shot"],
        query=golden["queries"],
        synthetic=golden["n_syn"],
        pool=golden["syn_per_class"],
        seed=golden["seed"],
    )
    golden.compare({"classes": found.classes, "real_index": found.real, "syn_index": found.synthetic})


@pytest.mark.goldens("gccs", "synthetic_filter")
def test_synthetic_filter(golden):
    check_config(golden)
    assert (golden["support"], golden["queries"]) == ("real", "syn")
    made, real = (torch.from_numpy(golden.stored(k)).double() for k in ("syn", "real"))
    shares = filtering.plan(made[None], real[None], graph_of(golden), centres_of(golden))[0]  # (C, S, C)
    pred = shares.argmax(-1)
    flags = pred == torch.arange(len(pred))[:, None]
    coded = flags.T.reshape(flags.shape)  # fault 3: flags lie sample by sample, rows class by class
    golden.compare({"alloc": shares, "pred": pred, "keep": flags, "keep_as_coded": coded})
    if bool(flags.any(1).all()):
        kept = filtering.keep(shares[None], "episode", golden["n_syn"])[0]
        torch.testing.assert_close(kept, flags)


# -- generator -----------------------------------------------------------------------------------------------

SIZES = {"feat": "feature", "att": "text"}
"""Names of the files that differ from ours."""


def nets_of(config):
    known = ("feat", "att", "noise", "g_hidden", "d_hidden", "embed", "proj", "f_hidden")
    return {SIZES.get(k, k): config[k] for k in known}


@pytest.mark.goldens("gccs", "contrastive_generator")
def test_contrastive_generator(golden):
    check_config(golden)
    assert golden["net_inputs"] == {
        "G": ["noise", "att"],
        "D": ["feature", "att"],
        "E": ["feature"],
        "F": ["embedding", "att"],
    }
    assert golden["gradient_penalty_includes_weight"]
    assert golden["gp_weight"] == loss.GP_WEIGHT
    assert golden["ins_temp"] == golden["cls_temp"] == loss.TEMPERATURE
    assert golden["ins_fake_batch"] == ["fake", "real, detached"]
    nets = Nets(**nets_of(golden.spec), end=golden["output"]["G"])
    for name in "GDEF":
        part = getattr(nets, name)
        own = part.state_dict()
        named = golden.fill(name, {f"{name}.{k}": v for k, v in own.items()})
        part.load_state_dict({k.removeprefix(f"{name}."): v for k, v in named.items()})
    assert golden["nets"] == {k: sizes(getattr(nets, k)) for k in "GDEF"}
    nets.double()
    arrays = {k: torch.from_numpy(golden.stored(k)) for k in golden["stored_inputs"]}
    labels = arrays.pop("y").long()
    x, text, noise_d, noise_g, mix = (
        arrays[k].double() for k in ("x", "att", "noise_d", "noise_g", "gp_alpha")
    )

    h, q = nets.E(x)
    outputs = {"real_h": h, "real_z": q, "fake_d": nets.G(noise_d, text[labels])}
    parts = loss.critic_losses(nets, x, labels, text, noise=noise_d, mix=mix)
    total = sum(golden["d_total"][k] * v for k, v in parts.items())
    gradients = torch.autograd.grad(total, nets.critics())
    names = [k for k, _ in nets.named_parameters() if not k.startswith("G.")]
    outputs |= parts | {"d_total": total} | {f"dgrad_{k}": g for k, g in zip(names, gradients, strict=True)}

    fake = nets.G(noise_g, text[labels])
    outputs |= {"fake_g": fake} | dict(zip(("fake_h", "fake_z"), nets.E(fake), strict=True))
    parts = loss.generator_losses(nets, x, labels, text, noise=noise_g)
    total = sum(golden["g_total"][k] * v for k, v in parts.items())
    assert {"ins_fake": golden["ins_weight"], "cls_fake": golden["cls_weight"]}.items() <= golden[
        "g_total"
    ].items()
    gradients = torch.autograd.grad(total, list(nets.G.parameters()))
    names = [f"G.{k}" for k, _ in nets.G.named_parameters()]
    outputs |= parts | {"g_total": total} | {f"ggrad_{k}": g for k, g in zip(names, gradients, strict=True)}
    golden.compare(outputs)


def sizes(net):
    return [net.fc1.in_features, net.fc1.out_features, net.fc2.out_features]


# -- backbone ------------------------------------------------------------------------------------------------


@pytest.mark.goldens("gccs", "backbone")
def test_backbone(golden):
    check_config(golden)
    assert (golden["architecture"], golden["mode"]) == ("wrn28_10", "eval")
    assert golden["head"] == "cosine"
    net = WideResNet(golden["depth"], golden["widen_factor"], golden["num_classes"]).eval()
    assert (net.width, net.linear.scale) == (golden["feature_dim"], golden["head_scale"])
    values = golden.fill("backbone", net.state_dict())
    net.load_state_dict({k: 1 + v.abs() if k.endswith("running_var") else v for k, v in values.items()})
    x, perm = torch.from_numpy(golden.draws()["x"]), torch.tensor(golden["perm"])
    with torch.no_grad():
        features, logits = net(x)
        outputs = {"features": features, "logits": logits}
        for depth in golden["mixup_depths"]:
            features, logits = net(x, depth, golden["lam"], perm)
            outputs |= {f"mix{depth}_features": features, f"mix{depth}_logits": logits}
    golden.compare(outputs)


# -- names and shapes ----------------------------------------------------------------------------------------


@pytest.mark.goldens("gccs", "state_dict")
def test_state_dict(golden):
    rows = golden.content if golden["entries_key"] is None else golden.content[golden["entries_key"]]
    if golden["entry_form"] == "array":
        rows = [dict(zip(("name", "shape", "dtype"), row, strict=True)) for row in rows]
    key, config = golden["net_key"], golden["config"]
    with torch.device("meta"):
        if golden["model"] == "contrastive_generator":
            net = Nets(**nets_of(config))
        else:
            assert golden["model"] == "wrn28_10"
            net = WideResNet(config["depth"], config["widen_factor"], config["num_classes"])
    named = [f"{row[key]}.{row['name']}" if key else row["name"] for row in rows]
    state = net.state_dict()
    assert sum(v.numel() for v in state.values()) == golden["elements"]
    assert len(state) == golden["tensors"]
    mine = {
        "names": list(state),
        "order": list(state),
        "shapes": [list(v.shape) for v in state.values()],
        "dtypes": [str(v.dtype).removeprefix("torch.") for v in state.values()],
    }
    stored = {"names": named, "order": named} | {
        k: [row[k[:-1]] for row in rows] for k in ("shapes", "dtypes")
    }
    golden.compare(mine, stored)
