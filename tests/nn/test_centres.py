"""Graph, transport and centres against one episode at a time, written out; and what must not happen."""

import numpy as np
import pytest
import torch

from fewspect.errors import UserError
from fewspect.nn import graph, transport
from fewspect.nn.centres import Centres, per_chunk, recognise
from fewspect.nn.graph import Graph
from fewspect.nn.transport import Transport

WAYS, SHOT, ASKED, WIDTH = 5, 3, 8, 24


def episodes(runs=6, seed=0, width=WIDTH, noise=0.7):
    g = torch.manual_seed(seed)
    centres = torch.randn(runs, 1, WAYS, width, generator=g)
    x = centres + noise * torch.randn(runs, SHOT + ASKED, WAYS, width, generator=g)
    return x.flatten(1, 2), torch.arange(WAYS).repeat(SHOT).expand(runs, -1)


def slow(x, labels, options=None, settings=None):
    """One episode (m, D) in float64, by the sentences of the specification (sections 3.1 and 4)."""
    options, settings = options or Graph(), settings or Centres()
    plan_options = settings.transport
    m, first = len(x), len(labels)
    x = x.double().numpy()
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosine = x @ x.T
    np.fill_diagonal(cosine, 0)
    near = np.zeros((m, m), bool)
    for i in range(m):
        sides = [range(m)] if not options.cross_k else [range(first), range(first, m)]
        for side in sides:
            same = not options.cross_k or (i in side)
            order = sorted(side, key=lambda j: -cosine[i, j])[: options.k if same else options.cross_k]
            near[i, order] = True
    edges = cosine * (near | near.T)
    root = edges.sum(0) ** -0.5
    spread = np.linalg.matrix_power(
        options.self_weight * np.eye(m) + root[:, None] * edges * root, options.kappa
    )
    z = np.exp(spread) / np.exp(spread).sum(1, keepdims=True)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    for side in (slice(first), slice(first, m)):
        z[side] -= z[side].mean(0)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    hot = np.eye(WAYS)[labels.numpy()]
    mu = hot.T @ z[:first] / hot.sum(0)[:, None]
    v = np.ones(WAYS)

    def share(passes, v):
        distance = ((z[first:, None] - mu[None]) ** 2).sum(-1)
        kernel = np.exp(-settings.sharpness * distance)
        kernel /= kernel.max(1, keepdims=True)  # as the start of v is defined
        v = v if plan_options.warm else np.ones(WAYS)
        for _ in range(passes):
            u = 1 / (kernel @ v)
            v = (m - first) / WAYS / (kernel.T @ u)
        return u[:, None] * kernel * v, v

    for _ in range(settings.updates):
        plan, v = share(plan_options.passes, v)
        full = np.concatenate([hot, plan])
        mu = mu + settings.step * (full.T @ z / full.sum(0)[:, None] - mu)
    return share(plan_options.final_passes, v)[0]


@pytest.mark.parametrize("options", [Graph(), Graph(k=10, kappa=9, self_weight=0.4, cross_k=0)])
def test_many_episodes_answer_what_one_answers(options):
    x, labels = episodes()
    found = recognise(x, labels, WAYS, options, Centres()).plan
    wanted = np.stack([slow(*pair, options) for pair in zip(x, labels, strict=True)])
    np.testing.assert_allclose(found.numpy(), wanted, atol=2e-4)
    assert (found.argmax(-1).numpy() == wanted.argmax(-1)).all()


@pytest.mark.parametrize("chunk_mb", [0.001, 0.1, 64.0])
def test_chunks_and_companions_change_nothing(chunk_mb):
    x, labels = episodes(runs=9)
    whole = recognise(x, labels, WAYS, Graph(), Centres())
    parts = recognise(x, labels, WAYS, Graph(), Centres(), chunk_mb=chunk_mb)
    torch.testing.assert_close(parts.plan, whole.plan, atol=1e-5, rtol=0)
    alone = recognise(x[3:4], labels[3:4], WAYS, Graph(), Centres())
    torch.testing.assert_close(alone.plan[0], whole.plan[3], atol=1e-5, rtol=0)


def test_a_chunk_is_bounded():
    assert per_chunk(130, 512, 64.0) * 4 * 130 * (7 * 130 + 2 * 512) <= 64e6
    assert per_chunk(10_000, 512, 1.0) == 1


def test_warm_starts_reproduce_the_long_run():
    x, labels = episodes(runs=60, noise=1.5)
    options = Graph(k=10, kappa=9, self_weight=0.4, cross_k=0)
    exact = Transport(passes=1000, final_passes=1000, tolerance=1e-6, stop="batch", warm=False)
    long = recognise(x, labels, WAYS, options, Centres(transport=exact)).plan.argmax(-1)
    short = recognise(x, labels, WAYS, options, Centres()).plan.argmax(-1)
    assert (long == short).float().mean() > 0.99


def test_supports_of_no_weight_are_as_good_as_deleted():
    x, labels = episodes()
    extra = 10 * torch.randn(6, 4, WIDTH, generator=torch.manual_seed(1))
    more = torch.cat([extra, x], 1)
    weight = torch.cat([torch.zeros(6, 4), torch.ones(labels.shape)], 1)
    mine = torch.cat([torch.tensor([0, 1, 2, 3]).expand(6, -1), labels], 1)
    for options in (
        Graph(),
        Graph(node="rows"),
        Graph(node="propagate"),
        Graph(node="none"),
        Graph(cross_k=0),
    ):
        found = recognise(more, mine, WAYS, options, Centres(), weight=weight).plan
        torch.testing.assert_close(
            found, recognise(x, labels, WAYS, options, Centres()).plan, atol=1e-4, rtol=0
        )


def test_reduced_features_give_the_same_plan():
    """The original's QR reduction has no effect: cosines follow from the triangular factor."""
    x, labels = episodes(width=100)
    reduced = torch.linalg.qr(x.mT, mode="r").R.mT
    plans = [recognise(v, labels, WAYS, Graph(), Centres()).plan for v in (x, reduced)]
    torch.testing.assert_close(*plans, atol=1e-4, rtol=0)


def test_half_precision_is_computed_in_single():
    x, labels = episodes()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = recognise(x, labels, WAYS, Graph(), Centres()).plan
    torch.testing.assert_close(inside, recognise(x, labels, WAYS, Graph(), Centres()).plan)


# -- transport -----------------------------------------------------------------------------------------------


def test_columns_are_exact_and_rows_nearly():
    scores = 3 * torch.randn(4, 30, 5, generator=torch.manual_seed(0))
    plan, _ = transport.assign(scores, Transport(), passes=200)
    torch.testing.assert_close(plan.sum(1), torch.full((4, 5), 6.0), atol=1e-4, rtol=0)
    torch.testing.assert_close(plan.sum(2), torch.ones(4, 30), atol=1e-3, rtol=0)


def test_known_shares_are_met():
    share = torch.tensor([[0.5, 0.3, 0.2]])
    plan, _ = transport.assign(torch.randn(1, 20, 3), Transport(), share=share, passes=100)
    torch.testing.assert_close(plan.sum(1), 20 * share, atol=1e-3, rtol=0)


def test_relaxed_columns_lie_between():
    scores = torch.cat([torch.tensor([[[4.0, 0.0]]]).expand(1, 9, 2), torch.tensor([[[0.0, 4.0]]])], 1)
    sums = [
        float(transport.assign(scores, Transport(allocation=a), passes=100)[0][0, :, 0].sum())
        for a in ("softmax", "kl", "balanced")
    ]
    assert sums[0] > sums[1] > sums[2]
    assert sums[2] == pytest.approx(5, abs=1e-3)


def test_the_dustbin_has_its_share_and_does_not_pull_the_centres():
    x, labels = episodes()
    found = recognise(x, labels, WAYS, Graph(), Centres(transport=Transport(allocation="dustbin", rho=0.2)))
    assert found.unknown.sum(1).tolist() == pytest.approx([0.2 * WAYS * ASKED] * 6, abs=1e-2)
    torch.testing.assert_close(
        found.plan.sum(-1) + found.unknown, torch.ones(6, WAYS * ASKED), atol=1e-2, rtol=0
    )


def test_an_episode_stops_by_itself():
    easy, hard = torch.eye(4)[None] * 8, 3 * torch.randn(1, 4, 4, generator=torch.manual_seed(3))
    options = Transport(tolerance=1e-5)
    both, _ = transport.assign(torch.cat([easy, hard]), options, passes=500)
    alone, _ = transport.assign(easy, options, passes=500)
    assert torch.equal(both[0], alone[0])


def test_evidence_from_texts_counts():
    x, labels = episodes(noise=5.0)
    truth = torch.arange(WAYS).repeat(ASKED)
    evidence = torch.eye(WAYS)[truth].log().clamp(min=-20).expand(6, -1, -1)
    found = recognise(x, labels, WAYS, Graph(), Centres(), evidence=evidence).plan
    assert (found.argmax(-1) == truth).all()


# -- odd features --------------------------------------------------------------------------------------------


def test_signed_features_in_a_dense_graph():
    """Degrees below zero have no root: the original's nodes are NaN there."""
    x, labels = episodes()
    x = x - x.mean(1, keepdim=True)
    edges = graph.cosines(x, WAYS * SHOT, Graph(k=0, cross_k=0))
    assert (edges.sum(1) <= 0).any()
    assert recognise(x, labels, WAYS, Graph(k=0, cross_k=0), Centres()).plan.isfinite().all()


def test_signed_features_under_a_power():
    x, labels = episodes()
    plan = recognise(x, labels, WAYS, Graph(power=0.5), Centres()).plan
    assert plan.isfinite().all()
    positive = torch.rand(2, 3)
    torch.testing.assert_close(graph.powered(positive, 0.5), (positive + 1e-6).sqrt())
    torch.testing.assert_close(graph.powered(-positive, 0.5), -(positive + 1e-6).sqrt())


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("options", [Graph(), Graph(node="none"), Graph(pre_center="split")])
def test_constant_features_have_a_defined_answer(value, options):
    _, labels = episodes()
    plan = recognise(torch.full((6, 55, WIDTH), value), labels, WAYS, options, Centres()).plan
    torch.testing.assert_close(
        plan.sum(-1), torch.ones(6, WAYS * ASKED), atol=1e-2, rtol=0
    )  # ties: any edges


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_features_that_are_no_numbers_are_refused(bad):
    x, labels = episodes()
    x[2, 3, 4] = bad
    with pytest.raises(UserError, match="not a finite number"):
        recognise(x, labels, WAYS, Graph(), Centres())


def test_a_class_without_supports_is_refused():
    x, labels = episodes()
    with pytest.raises(UserError, match="neither an image nor a synthetic"):
        recognise(x, labels.clamp(max=3), WAYS, Graph(), Centres())
    with pytest.raises(UserError, match="no query"):
        recognise(x[:, :15], labels, WAYS, Graph(), Centres())


def test_two_clouds_lose_contact_and_cross_neighbours_mend_it():
    """Specification 3.5: synthetic supports that are close to each other leave the queries alone."""
    g = torch.manual_seed(0)
    classes = torch.randn(1, WAYS, WIDTH, generator=g)
    shift = torch.zeros(WIDTH)
    shift[0] = 8.0
    made = (classes + 0.3 * torch.randn(20, WAYS, WIDTH, generator=g) + shift).flatten(0, 1)
    asked = (classes + 0.3 * torch.randn(15, WAYS, WIDTH, generator=g) - shift).flatten(0, 1)
    x, labels = torch.cat([made, asked])[None], torch.arange(WAYS).repeat(20)[None]
    truth = torch.arange(WAYS).repeat(15)

    def found(options):
        answer = recognise(x, labels, WAYS, options, Centres())
        return float(answer.contact), float((answer.plan.argmax(-1) == truth).float().mean())

    contact, accuracy = found(Graph(k=4, kappa=1, cross_k=0))
    assert contact == 0
    assert accuracy < 0.6
    for options in (Graph(k=4, kappa=1, cross_k=0, pre_center="split"), Graph(node="none")):
        assert found(options) == (1.0, 1.0)
