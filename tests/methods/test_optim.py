"""Learning rates of the published recipe, schedules, and what is refused."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from cli import ROOT
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import nn

from fewspect.backbones.tiny import Tiny
from fewspect.errors import UserError
from fewspect.methods import optim
from fewspect.methods.sofs.method import SOFS

CONVS = ("down_query", "down_support", "down_prototype", "merge_support", "merge_query")
"""The five 1x1 convolutions that learn twice as fast (specification sofs, section 4)."""


def published():
    """Options of the published recipe."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("config", ["experiment=sofs_vision_fold0"])
    return OmegaConf.to_container(cfg.method.optimizer)


def sofs():
    return SOFS(Tiny(None, side=32, width=16), head={"reduce_dim": 16, "embed_dim": 16})


def built(steps, **options):
    return optim.build(nn.Linear(2, 2).named_parameters(), steps, **options)


def rates(optimizer, schedule, steps):
    """Learning rate of every group that each of ``steps`` steps uses."""
    used = []
    for _ in range(steps):
        used.append([g["lr"] for g in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return used


def test_the_five_projections_learn_twice_as_fast():
    method = sofs()
    optimizer, _ = optim.build(method.named_parameters(), 10, **published())
    fast, rest = optimizer.param_groups
    names = {id(p): name for name, p in method.named_parameters()}
    assert {names[id(p)] for p in fast["params"]} == {f"net.head.reduce.{conv}.weight" for conv in CONVS}
    others = {n for n, p in method.named_parameters() if p.requires_grad and ".reduce." not in n}
    others |= {n for n, p in method.named_parameters() if p.requires_grad and ".ffn.reduce." in n}
    assert {names[id(p)] for p in rest["params"]} == others
    assert isinstance(optimizer, torch.optim.AdamW)
    for group in (fast, rest):
        assert group["weight_decay"] == 0.01
        assert group["betas"] == (0.9, 0.999)
        assert group["eps"] == 1e-8


@pytest.mark.parametrize("steps", [1, 7, 2700])
def test_published_learning_rates_at_the_first_and_the_last_step(steps):
    optimizer, schedule = optim.build(sofs().named_parameters(), steps, **published())
    for group, base in zip(optimizer.param_groups, (2e-5, 1e-5), strict=True):
        assert group["lr"] == pytest.approx(base * (1 - 1 / steps) ** 0.9)
    at = optim.factor("poly", steps)
    assert at(steps - 1) == 0
    if steps < 100:
        used = rates(optimizer, schedule, steps)
        expected = [[b * (1 - i / steps) ** 0.9 for b in (2e-5, 1e-5)] for i in range(1, steps + 1)]
        assert torch.allclose(torch.tensor(used), torch.tensor(expected), atol=0)
        assert used[-1] == [0, 0]


def test_the_last_step_changes_nothing():
    layer = nn.Linear(2, 2)
    optimizer, _ = optim.build(layer.named_parameters(), 1, schedule="poly", lr=1.0)
    before = layer.weight.detach().clone()
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert torch.equal(layer.weight, before)


@given(st.sampled_from(["poly", "cosine", "constant"]), st.integers(1, 60), st.integers(0, 20))
@settings(max_examples=60, deadline=None)
def test_rates_rise_while_warming_up_and_never_afterwards(schedule, steps, warmup):
    at = optim.factor(schedule, steps, warmup=warmup)
    plain = optim.factor(schedule, steps)
    values = [at(s) for s in range(steps + 5)]
    assert all(0 <= v <= 1 for v in values), "also after the last step"
    late = values[max(0, warmup - 1) :]
    assert all(a >= b for a, b in pairwise(late))
    assert late == [plain(s) for s in range(max(0, warmup - 1), steps + 5)]
    for s in range(min(warmup, steps + 5)):
        assert values[s] == pytest.approx((s + 1) / warmup * plain(s))


def test_cosine_by_hand():
    at = optim.factor("cosine", 4)
    assert [at(s) for s in range(4)] == pytest.approx([0.8535534, 0.5, 0.1464466, 0.0], abs=1e-6)


@pytest.mark.parametrize("schedule", ["poly", "cosine"])
def test_a_schedule_goes_on_where_it_was_saved(schedule):
    options = {"schedule": schedule, "lr": 0.1, "warmup": 2, "groups": {"bias": 3.0}}
    whole = rates(*built(9, **options), 9)
    optimizer, plan = built(9, **options)
    first = rates(optimizer, plan, 4)
    saved = optimizer.state_dict(), plan.state_dict()
    assert not any(callable(v) for v in saved[1].values()), "a checkpoint holds plain values"
    optimizer, plan = built(9, **options)
    optimizer.load_state_dict(saved[0])
    plan.load_state_dict(saved[1])
    assert first + rates(optimizer, plan, 5) == whole


def test_the_longest_prefix_wins_and_frozen_parameters_stay_out():
    net = nn.ModuleDict(
        {"a": nn.ModuleDict({"b": nn.Linear(1, 1), "c": nn.Linear(1, 1)}), "d": nn.Linear(1, 1)}
    )
    net["d"].weight.requires_grad_(False)
    optimizer, _ = optim.build(net.named_parameters(), 1, lr=1.0, groups={"a": 2.0, "a.b": 5.0, "zzz": 9.0})
    found = {g["name"]: (g["lr"], {id(p) for p in g["params"]}) for g in optimizer.param_groups}
    ids = {name: id(p) for name, p in net.named_parameters()}
    assert found == {
        "a.b": (5.0, {ids["a.b.weight"], ids["a.b.bias"]}),
        "a": (2.0, {ids["a.c.weight"], ids["a.c.bias"]}),
        "rest": (1.0, {ids["d.bias"]}),
    }


def test_options_reach_the_optimiser():
    optimizer, _ = built(1, name="sgd", momentum=0.5, weight_decay=0.0)
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.param_groups[0]["momentum"] == 0.5
    assert optimizer.param_groups[0]["weight_decay"] == 0


def test_a_training_without_an_end_has_no_plan():
    assert optim.planned_steps(SimpleNamespace(estimated_stepping_batches=12)) == 12
    with pytest.raises(UserError, match=r"trainer\.max_epochs=-1"):
        optim.planned_steps(SimpleNamespace(estimated_stepping_batches=float("inf")))


@pytest.mark.parametrize("scale", [None, 1024.0])
def test_gradients_are_clipped_to_their_own_length_whatever_they_are_scaled_by(scale):
    """With 16-mixed the gradients of manual optimisation are multiplied by the scaler's factor."""
    scaler = None if scale is None else SimpleNamespace(get_scale=lambda: scale)
    factor = scale or 1.0
    strategy = SimpleNamespace(precision_plugin=SimpleNamespace(scaler=scaler))
    weight = nn.Parameter(torch.tensor([3.0, 4.0]))
    method = SimpleNamespace(
        trainer=SimpleNamespace(strategy=strategy),
        manual_backward=lambda loss, inputs: (factor * loss).backward(inputs=inputs),
    )
    optimizer = SimpleNamespace(zero_grad=lambda: None, step=lambda: None)
    optim.minimise(method, weight.square().sum() / 2, optimizer, [weight], clip=2.5)
    assert torch.allclose(weight.grad / factor, torch.tensor([1.5, 2.0]), atol=1e-5), "half of (3, 4)"


def test_mistakes_are_explained():
    with pytest.raises(UserError, match="adamv is not known") as error:
        built(1, name="adamv")
    assert "adamw" in str(error.value)
    with pytest.raises(UserError, match="linear is not known") as error:
        built(1, schedule="linear")
    assert "cosine" in str(error.value)
    with pytest.raises(UserError, match="no trainable parameter"):
        optim.build(nn.Linear(1, 1).requires_grad_(False).named_parameters(), 1)


@pytest.mark.parametrize("mistake", [{"momentum": 0.9}, {"lr": -1.0}])
def test_options_that_the_optimiser_does_not_take_are_explained(mistake):
    with pytest.raises(UserError):
        built(1, **mistake)
