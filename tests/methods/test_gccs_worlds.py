"""What GCCS reaches where it is known what should be reached (specification gccs, 8.2)."""

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from gccs_worlds import accuracies, digit_episodes, percent, seen_episode, toy, unseen_episodes
from torch.utils.data import DataLoader

from fewspect.methods.gccs import filtering
from fewspect.methods.gccs.method import Gccs
from fewspect.nn.centres import Centres, recognise
from fewspect.nn.graph import Graph
from fewspect.nn.transport import Transport

COARSE, SMOOTH, MIDDLE = (
    Graph(k=k, kappa=p, self_weight=w, cross_k=0) for k, p, w in ((4, 1, 0.75), (10, 9, 0.4), (4, 2, 0.75))
)
NONE = Graph(node="none")


def by_queries(plan, ways=5):
    return (plan.argmax(-1) == filtering.order(ways, plan.shape[1] // ways)).float().mean(1)


@pytest.mark.parametrize(
    ("shot", "graph", "expected"),
    [
        (1, COARSE, 86.53),
        (1, SMOOTH, 82.21),
        (1, MIDDLE, 89.57),
        (5, COARSE, 94.13),
        (5, SMOOTH, 90.15),
        (5, MIDDLE, 95.05),
    ],
)
def test_digits(shot, graph, expected):
    x, labels = digit_episodes(shot, 200)
    assert percent(by_queries(recognise(x, labels, 5, graph, Centres()).plan)) == pytest.approx(
        expected, abs=0.5
    )


@pytest.mark.parametrize(("shot", "expected"), [(1, 85.7), (5, 92.2)])
def test_digits_without_graph(shot, expected):
    x, labels = digit_episodes(shot, 600)
    assert percent(by_queries(recognise(x, labels, 5, NONE, Centres()).plan)) == pytest.approx(
        expected, abs=0.5
    )


def test_the_toy_world_is_the_one_of_the_specification():
    world = toy()
    assert world.text[0, :3].tolist() == pytest.approx([-0.00319, 0.15429, -0.13683], abs=1e-5)
    assert world.feature[0, 0, :3].tolist() == pytest.approx([0.00220, -0.03902, 0.02213], abs=1e-5)
    assert float(world.feature.double().sum()) == pytest.approx(1400.33, abs=0.01)


GRAPHS = {
    "smooth": {"k": 10, "kappa": 9, "self_weight": 0.4, "cross_k": 0},
    "coarse": {"k": 4, "kappa": 1, "self_weight": 0.75, "cross_k": 0},
    "cross": {"k": 4, "kappa": 2, "self_weight": 0.75, "cross_k": 4},
    "none": {"node": "none"},
}


def options(kind):
    return {"recogniser": "nearest"} if kind == "nearest" else {"graph": GRAPHS[kind]}


@pytest.mark.parametrize(("kind", "expected"), [("nearest", 63.6), ("smooth", 78.6), ("none", 82.4)])
def test_zero_shot_in_closed_form(kind, expected):
    method, episodes = Gccs(syn_shots=0.0, **options(kind)), unseen_episodes(toy())
    method.observe([seen_episode(toy())])
    assert percent(accuracies(method.answers(episodes), episodes)) == pytest.approx(expected, abs=3)


@pytest.mark.parametrize(("kind", "expected"), [("nearest", 57.8), ("none", 79.3)])
def test_one_real_shot(kind, expected):
    episodes = unseen_episodes(toy(), shot=1)
    found = Gccs(generator="none", **options(kind)).answers(episodes)
    assert percent(accuracies(found, episodes)) == pytest.approx(expected, abs=3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The trained generator of the specification's trial: 600 steps, batch 256, hidden 512, h 256."""
    sizes = {"g_hidden": 512, "d_hidden": 512, "embed": 256, "batch": 256}
    method = Gccs(generator="gan", contrast=sizes)
    loader = DataLoader([seen_episode(toy())] * 600, batch_size=1, collate_fn=list)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        default_root_dir=tmp_path_factory.mktemp("gan"),
        enable_checkpointing=False,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(method, loader)
    return method


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "expected"),
    [("nearest", 59.3), ("coarse", 57.1), ("smooth", 78.4), ("cross", 83.1), ("none", 86.4)],
)
def test_zero_shot_with_a_trained_generator(trained, kind, expected):
    sizes = {"g_hidden": 512, "d_hidden": 512, "embed": 256}
    method = Gccs(generator="gan", contrast=sizes, syn_shots=0.0, **options(kind))
    method.load_state_dict(trained.state_dict())
    episodes = unseen_episodes(toy())
    assert percent(accuracies(method.answers(episodes), episodes)) == pytest.approx(expected, abs=6)
    assert torch.isfinite(torch.cat([p.logits for p in method.answers(episodes[:3])])).all()


@pytest.mark.parametrize(("shot", "expected"), [(1, 0.864), (5, 0.944)])
def test_the_dustbin_finds_unknown_digits(shot, expected):
    """Specification 8.4: digits, five known classes and two unknown ones."""
    from sklearn.metrics import roc_auc_score

    x, _ = digit_episodes(shot, 100, ways=7)
    way = torch.arange(x.shape[1]) % 7
    slot = torch.arange(x.shape[1]) // 7
    kept = (slot >= shot) | (way < 5)
    labels = way[kept & (slot < shot)].expand(100, -1)
    plan = Centres(transport=Transport(allocation="dustbin"))
    found = recognise(x[:, kept], labels, 5, Graph(k=4, kappa=1, cross_k=0), plan)
    known = (way[slot >= shot] < 5).numpy()
    areas = [roc_auc_score(known, 1 - row.numpy()) for row in found.unknown]
    assert np.mean(areas) == pytest.approx(expected, abs=0.03)
