"""Heads against slow references, and what all of them promise."""

import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LogisticRegression

from fewspect.nn import transductive
from fewspect.nn.adapter import Zip
from fewspect.nn.fine_tune import CONFIGS, Recipe, TipF, ZipF, hardest_triplets
from fewspect.nn.heads import Centred, Neighbours, Prototypes, Text
from fewspect.nn.linear_heads import Discriminant, LinearProbe, Ridge
from fewspect.nn.merging import certainty, merge
from fewspect.nn.shots import Shots

K, V, D = 3, 4, 12
FEW = Recipe(steps=12)
HEADS = {
    "zip": Zip(),
    "zip_half": Zip(half=True),
    "zip_f": ZipF(recipe=FEW),
    "zip_f_momentum": ZipF(recipe=Recipe(steps=12, key_optimizer="momentum")),
    "zip_f_triplet": ZipF(config=7, recipe=Recipe(steps=12, lr=1e-3)),
    "zip_f_half": ZipF(half=True, recipe=FEW),
    "tip_f": TipF(recipe=FEW),
    "proto": Prototypes(),
    "euclid": Prototypes("euclidean"),
    "knn": Neighbours(),
    "ridge": Ridge(),
    "ridge_all": Ridge(aligned=False),
    "lda": Discriminant(),
    "lda_class": Discriminant(within="class"),
    "linear": LinearProbe(),
    "centered": Centred(),
    "centered_all": Centred(centre="all", aligned=False),
    "centered_none": Centred(centre="none"),
    "text": Text(),
}


def task(episodes=3, shot=4, queries=6, seed=0):
    random = torch.Generator().manual_seed(seed)
    common, kinds = torch.randn(1, 1, 1, D, generator=random) * 3, torch.randn(K, V, D, generator=random)
    label = torch.arange(K).repeat_interleave(shot).expand(episodes, -1)
    noise = torch.randn(episodes, K * shot, V, D, generator=random)
    text = torch.randn(episodes, K, D, generator=random)
    shots = Shots(common + kinds[label] + 0.5 * noise, label, torch.ones(label.shape), K, text)
    truth = torch.arange(queries) % K
    asked = common[0] + kinds[truth] + 0.5 * torch.randn(queries, V, D, generator=random)
    return shots, asked[None], truth


@pytest.mark.parametrize("name", HEADS)
def test_what_every_head_promises(name):
    head = HEADS[name]
    shots, asked, truth = task()
    logits = head.fit(shots)(asked)
    assert logits.shape == (3, 6, V, K)
    assert logits.isfinite().all()
    # shared queries are those of every episode, and views are chosen one by one
    each = head.fit(shots)(asked.expand(3, -1, -1, -1).contiguous())
    assert torch.allclose(logits, each, atol=1e-4)
    some = head.fit(shots)(asked[:, :, [1, 3]], [1, 3])
    assert torch.allclose(some, logits[:, :, [1, 3]], atol=1e-4)
    # one by one is together
    alone = [
        head.fit(
            Shots(
                shots.feature[i : i + 1],
                shots.label[i : i + 1],
                shots.count[i : i + 1],
                K,
                shots.text[i : i + 1],
            )
        )
        for i in range(3)
    ]
    assert torch.allclose(torch.cat([fitted(asked) for fitted in alone]), logits, atol=1e-4)
    if name != "text":
        right = (merge(logits, head.merge).argmax(-1) == truth).float().mean()
        assert right > 0.6
    assert torch.equal(head.fit(shots)(asked), logits), "not deterministic"


@pytest.mark.parametrize("name", sorted(set(HEADS) - {"text", "lda", "lda_class"}))
def test_padding_changes_nothing(name):
    head = HEADS[name]
    shots, asked, _ = task()
    padded = Shots(
        torch.cat([shots.feature, 5 * torch.randn(3, 2, V, D)], 1),
        torch.cat([shots.label, torch.zeros(3, 2, dtype=torch.int64)], 1),
        torch.cat([shots.count, torch.zeros(3, 2)], 1),
        K,
    )
    assert torch.allclose(head.fit(padded)(asked), head.fit(shots)(asked), atol=1e-4)


def test_discriminant_with_padding_stays_close():
    shots, asked, _ = task()
    padded = Shots(
        torch.cat([shots.feature, torch.randn(3, 1, V, D)], 1),
        torch.cat([shots.label, torch.zeros(3, 1, dtype=torch.int64)], 1),
        torch.cat([shots.count, torch.zeros(3, 1)], 1),
        K,
    )
    one, two = (merge(Discriminant().fit(s)(asked), "mean_logit").argmax(-1) for s in (padded, shots))
    assert (one == two).float().mean() > 0.9


def test_centred_prototype_by_hand():
    shots, asked, _ = task(episodes=1)
    unit = lambda x: F.normalize(x, dim=-1)  # noqa: E731
    score = torch.zeros(asked.shape[1], K)
    for v in range(V):
        mean = unit(shots.feature[0, :, v]).mean(0)
        for c in range(K):
            items = shots.feature[0, shots.label[0] == c, v]
            prototype = unit(unit(items) - mean).mean(0)
            for q in range(asked.shape[1]):
                cosine = F.cosine_similarity(unit(asked[0, q, v]) - mean, prototype, dim=0)
                score[q, c] += cosine / V
    found = Centred().fit(shots)(asked).mean(2)[0] * 0.11
    assert torch.allclose(found, score, atol=1e-5)


def test_ridge_is_kernel_ridge_on_centred_views():
    shots, asked, _ = task(episodes=1)
    fitted = Ridge(penalty=0.3).fit(shots)
    for v in range(V):
        view = F.normalize(shots.feature[0, :, v], dim=-1)
        mean = view.mean(0)
        rows = F.normalize(view - mean, dim=-1)
        queries = F.normalize(F.normalize(asked[0, :, v], dim=-1) - mean, dim=-1)
        reference = KernelRidge(alpha=0.3).fit(rows, F.one_hot(shots.label[0], K).float() - 1 / K)
        found = fitted(asked)[0, :, v] * 0.11
        assert torch.allclose(found, torch.from_numpy(reference.predict(queries)).float(), atol=1e-4)


def test_linear_probe_is_logistic_regression_on_standardised_keys():
    shots, asked, _ = task(episodes=2)
    fitted = LinearProbe().fit(shots)
    for e in range(2):
        keys = shots.keys[e]
        mean, deviation = keys.mean(0), keys.std(0, correction=0)
        rows = torch.cat([(keys - mean) / deviation, torch.ones(len(keys), 1)], 1)
        queries = (asked[0, :, 0] - mean) / deviation
        queries = torch.cat([queries, torch.ones(len(queries), 1)], 1)
        reference = LogisticRegression(C=1.0, fit_intercept=False, tol=1e-8, max_iter=2000).fit(
            rows, shots.label[e]
        )
        expected = torch.from_numpy(reference.predict_proba(queries)).float()
        assert torch.allclose(fitted(asked)[e, :, 0].softmax(-1), expected, atol=2e-3)


def test_discriminant_agrees_with_scikit_learn_where_the_span_is_everything():
    shots, asked, truth = task(episodes=1, shot=12, queries=30)
    flat, label = shots.feature[0].mean(1), shots.label[0]
    reference = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.5).fit(F.normalize(flat, dim=-1), label)
    theirs = reference.score(F.normalize(asked[0].mean(1), dim=-1), truth)
    logits = Discriminant(within="class").fit(shots)(asked)
    ours = (merge(logits, "mean_logit")[0].argmax(-1) == truth).float().mean()
    assert ours >= theirs - 0.1


def test_neighbours_by_hand():
    shots, asked, _ = task(episodes=1)
    cosine = F.cosine_similarity(asked[0, 0, 0][None], shots.keys[0], dim=-1)
    best = cosine.topk(4)
    expected = torch.zeros(K)
    for value, place in zip(best.values, best.indices, strict=True):
        expected[shots.label[0, place]] += 0.11 * value
    assert torch.allclose(Neighbours().fit(shots)(asked)[0, 0, 0], expected, atol=1e-5)


@pytest.mark.parametrize("config", CONFIGS)
def test_every_configuration_trains_what_it_says(config):
    trained, zero, _ = CONFIGS[config]
    shots, _, _ = task(episodes=2)
    fitted = ZipF(config=config, recipe=FEW).fit(shots)
    assert torch.equal(fitted.keys, shots.keys) == ("keys" not in trained)
    moved = bool(fitted.weight.any())
    assert moved == (not zero or "projection" in trained)
    assert not fitted.keys.requires_grad


def test_own_keys_can_be_left_out():
    shots, asked, _ = task()
    with_own, without = (ZipF(recipe=Recipe(steps=12, own_key=o)).fit(shots)(asked) for o in (True, False))
    assert not torch.allclose(with_own, without)
    assert without.isfinite().all()


def test_momentum_moves_the_keys_as_far_as_half_precision_does():
    shots, _, _ = task(episodes=1)
    steps = {
        name: float((HEADS[name].fit(shots).keys - shots.keys).abs().mean())
        for name in ("zip_f", "zip_f_momentum", "zip_f_half")
    }
    assert steps["zip_f"] < steps["zip_f_momentum"]


def test_triplets_without_partner_are_zero():
    x = torch.randn(4, 5, generator=torch.manual_seed(0))
    assert float(hardest_triplets(x, torch.zeros(4, dtype=torch.int64), 0.5)) == 0  # nobody else's class
    apart = hardest_triplets(x, torch.arange(4), 0.5)  # alone in the class: 0 - nearest + margin
    near = torch.cdist(x, x).fill_diagonal_(math.inf).min(1).values
    assert torch.allclose(apart, F.relu(0.5 - near).mean())
    same = torch.zeros(4, 5, requires_grad=True)
    hardest_triplets(same, torch.tensor([0, 0, 1, 1]), 0.5).backward()
    assert same.grad.isfinite().all()


def test_merging():
    flat = torch.zeros(2, 5, 3)
    assert torch.allclose(merge(flat, "entropy"), torch.full((2, 3), 1 / 3))  # the original: 0 / 0
    sure = torch.tensor([[9.0, 0, 0], [0, 0.1, 0]])
    found = merge(sure[None], "entropy")[0]
    assert found[0] > merge(sure[None], "mean_prob")[0, 0]
    assert torch.allclose(found.sum(), torch.tensor(1.0))
    assert torch.equal(certainty(torch.ones(2, 1)), torch.ones(2))
    assert torch.allclose(merge(sure[None], "mean_logit")[0], sure.mean(0).softmax(-1))


@pytest.mark.parametrize("way", ["laplacian", "pt_map"])
def test_transductive_answers(way):
    shots, asked, truth = task(shot=1, queries=30, seed=4)
    _, query = transductive.centred(shots, asked)
    assert torch.allclose(query.norm(dim=-1), torch.ones(3, 30), atol=1e-4)
    score = Centred().fit(shots)(asked).mean(2)
    prob = transductive.together(way, shots, score, asked)
    if way == "pt_map":
        assert torch.allclose(prob.sum(1), torch.full((3, K), 10.0), atol=0.1)
    assert torch.allclose(prob.sum(-1), torch.ones(3, 30), atol=1e-4)
    inductive = (score.argmax(-1) == truth).float().mean()
    assert (prob.argmax(-1) == truth).float().mean() >= inductive - 0.1


def test_many_samplings_of_many_classes_end_on_two_threads():
    """LU of a batch of 20 systems of 245 unknowns never ended there."""
    g = torch.manual_seed(0)
    label = torch.arange(7).repeat_interleave(5).expand(20, -1)
    feature = torch.randn(20, 35, 2, 16, generator=g) + torch.eye(7, 16)[label][:, :, None]
    shots, query = Shots(feature, label, torch.ones(label.shape), 7), torch.randn(1, 6, 2, 16, generator=g)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(LinearProbe().fit(shots)(query))
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found[0], found[1], atol=5e-3, rtol=0)
