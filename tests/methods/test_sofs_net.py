"""The SOFS network against a slow reference written straight from the formulas, and its invariances."""

import math

import pytest
import torch
import torch.nn.functional as F

from fewspect.backbones.base import Features
from fewspect.backbones.tiny import Tiny
from fewspect.errors import UserError
from fewspect.methods.sofs.head import Head
from fewspect.methods.sofs.loss import losses
from fewspect.methods.sofs.net import SofsNet

LAYERS, WIDTH, GRID, CELL = 3, 10, (4, 5), 3
SMALL = {"reduce_dim": 8, "embed_dim": 12, "heads": 3, "depth": 2}
SIZE = (GRID[0] * CELL, GRID[1] * CELL)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def make_head(**options):
    return Head(LAYERS, WIDTH, **SMALL | options).eval()


def make_features(batch, views):
    tokens = tuple(torch.randn(batch, views, GRID[0] * GRID[1], WIDTH) for _ in range(LAYERS))
    return Features(tokens, GRID)


def make_masks(batch, views, share=0.2):
    return (torch.rand(batch, views, *SIZE) < share).to(torch.uint8)


def pick(features, index):
    return Features(tuple(t[:, index] for t in features.tokens), features.grid)


# -- slow reference (2.2 to 2.8, one sample, one query) ------------------------------------------------------


def attention_blocks(head, x):
    """Section 2.7, self-attention blocks on (N, E)."""
    for block in head.transformer.blocks:
        y = F.layer_norm(x, x.shape[-1:], block.norm1.weight, block.norm1.bias, 1e-6)
        heads, attn = [], block.attention
        size = x.shape[-1] // attn.heads
        for h in range(attn.heads):
            part = slice(h * size, (h + 1) * size)
            q, k, v = (y @ p.weight.T[:, part] for p in (attn.query, attn.key, attn.value))
            heads.append((q @ k.T / (math.sqrt(size) + 1e-9)).softmax(1) @ v)
        x = x + torch.cat(heads, 1) @ attn.out.weight.T
        y = F.layer_norm(x, x.shape[-1:], block.norm2.weight, block.norm2.bias, 1e-6)
        up = (y @ block.ffn.expand.weight.T + block.ffn.expand.bias).T.reshape(1, -1, *GRID)
        deep = block.ffn.depthwise
        up = F.gelu(F.conv2d(up, deep.weight, deep.bias, padding=1, groups=up.shape[1]))[0].flatten(1).T
        x = x + up @ block.ffn.reduce.weight.T + block.ffn.reduce.bias
    return x


def reference(head, query, support, mask):
    """Logits and abnormality (h, w), every view spelled out; query L x (N, C), support L x (n, N, C)."""
    n = len(mask)
    m = F.avg_pool2d(mask.float()[:, None], CELL).flatten(1)  # (n, N)
    semantic, abnormal = [], []
    for fq, fs in zip(query, support, strict=True):
        masked = fs * m[..., None]
        top = torch.stack(
            [((fq @ f.T) / (fq.norm(dim=1)[:, None] * f.norm(dim=1)[None] + 1e-7)).amax(1) for f in masked]
        )
        semantic.append(top.mean(0))
        cosine = torch.stack([F.normalize(fq, dim=1) @ F.normalize(f, dim=1).T for f in fs])  # (n, N, N)
        abnormal.append(1 - ((1 - m)[:, None] * cosine).amax((0, 2)))
    pooled = torch.cat(
        [
            torch.stack([(f[k] * m[k, :, None]).sum(0) / (m[k].sum() + 5e-4) for k in range(n)])
            for f in support
        ],
        1,
    )
    q = F.relu(torch.cat(query, -1) @ head.reduce.down_query.weight.T)
    s = F.relu(torch.cat(support, -1) @ head.reduce.down_support.weight.T)
    g = F.relu(pooled @ head.reduce.down_prototype.weight.T)
    s = F.relu(torch.cat([s, g[:, None].expand_as(s)], -1) @ head.reduce.merge_support.weight.T)
    maps = [10 * x[:, None] for x in semantic + (abnormal if head.abnormal_prior else [])]
    q = F.relu(torch.cat([q, g.mean(0).expand_as(q), *maps], -1) @ head.reduce.merge_query.weight.T)
    q, s = attention_blocks(head, q), torch.stack([attention_blocks(head, x) for x in s])
    proto = s @ head.transformer.support_prototype.weight.T + head.transformer.support_prototype.bias
    z = torch.stack([(proto[k] * m[k, :, None]).sum(0) / (m[k].sum() + 5e-4) for k in range(n)]).mean(0)
    u = q.clone()
    for k in range(n):
        for j in range(m.shape[1]):
            e = F.cosine_similarity(q, s[k, j][None], dim=1) * m[k, j]
            u = u + (e / 0.1).softmax(0)[:, None] * m[k, j] * s[k, j]
    return (u @ z).view(GRID), torch.stack(abnormal).amax(0).view(GRID)


@pytest.mark.parametrize("abnormal_prior", [True, False])
def test_cached_equals_the_slow_reference(abnormal_prior):
    head = make_head(abnormal_prior=abnormal_prior)
    query, support, mask = make_features(2, 3), make_features(2, 4), make_masks(2, 4)
    mask[0, 1] = 0
    with torch.no_grad():
        answer = head.segment(query, head.encode_support(support, mask))
        for b in range(2):
            for i in range(3):
                logits, abnormal = reference(
                    head, [t[b, i] for t in query.tokens], [t[b] for t in support.tokens], mask[b]
                )
                assert torch.allclose(answer.logits[b, i], logits, atol=1e-5, rtol=1e-5)
                assert torch.allclose(answer.abnormal[b, i], abnormal, atol=1e-5)


# -- invariances ---------------------------------------------------------------------------------------------


def run(head, query, support, mask, count=None):
    with torch.no_grad():
        state = head.encode_support(support, mask, count)
        answer = head.segment(query, state)
    return answer.logits, answer.abnormal, head.probability(answer, state, SIZE)


def close(first, second, tolerance=1e-5):
    return all(torch.allclose(a, b, atol=tolerance, rtol=1e-4) for a, b in zip(first, second, strict=True))


OPTIONS = [
    {},
    {"shot_average": "foreground"},
    {"fusion_norm": True},
    {"mask_downsample": "bilinear", "abnormal_prior": False},
    {"classifier": "conv"},
]


@pytest.fixture(params=OPTIONS, ids=lambda o: "-".join(map(str, o.values())) or "published")
def head(request):
    return make_head(**request.param)


def test_order_of_the_support_views_changes_nothing(head):
    query, support, mask = make_features(1, 2), make_features(1, 4), make_masks(1, 4)
    mask[0, 0] = 0
    order = [2, 0, 3, 1]
    assert close(run(head, query, support, mask), run(head, query, pick(support, order), mask[:, order]))


def test_identical_views_equal_one_with_a_count(head):
    query, support, mask = make_features(1, 2), make_features(1, 2), make_masks(1, 2, 0.5)
    spelled = [0, 0, 0, 1]
    expected = run(head, query, pick(support, spelled), mask[:, spelled])
    assert close(run(head, query, support, mask, torch.tensor([[3.0, 1.0]])), expected)


def test_padding_takes_part_in_nothing(head):
    query, support, mask = make_features(2, 2), make_features(2, 3), make_masks(2, 3, 0.5)
    junk = Features(
        tuple(torch.cat([t, q[:, :1]], 1) for t, q in zip(support.tokens, query.tokens, strict=True)), GRID
    )
    wide = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
    for value in (0, 1):
        wide[:, 3] = value
        count = torch.tensor([[1.0, 1, 1, 0]] * 2)
        assert close(run(head, query, junk, wide, count), run(head, query, support, mask))


def test_queries_and_episodes_are_independent(head):
    query, support, mask = make_features(3, 4), make_features(3, 2), make_masks(3, 2, 0.5)
    mask[1] = 0
    mask[2, 1] = 0
    together = run(head, query, support, mask)
    for b in range(3):
        one = Features(tuple(t[b : b + 1] for t in query.tokens), GRID)
        own = Features(tuple(t[b : b + 1] for t in support.tokens), GRID)
        for i in range(4):
            alone = run(head, pick(one, [i]), own, mask[b : b + 1])
            assert close(alone, [x[b : b + 1, i : i + 1] for x in together])


def test_empty_supports_give_zero_logits_and_the_abnormality_map():
    for options in OPTIONS[:4]:
        head = make_head(**options)
        logits, abnormal, prob = run(head, make_features(2, 2), make_features(2, 3), make_masks(2, 3, 0.0))
        assert torch.equal(logits, torch.zeros_like(logits))
        assert torch.equal(prob, F.interpolate(abnormal, SIZE, mode="bilinear", align_corners=False))


def test_normal_views_dilute_the_published_average_but_not_the_foreground_average():
    query, support, mask = make_features(1, 2), make_features(1, 2), make_masks(1, 2, 0.5)
    mask[0, 1] = 0
    first = pick(support, [0])
    for average, same in (("all", False), ("foreground", True)):
        head = make_head(shot_average=average)
        head.reduce.merge_query.weight.data[:, -LAYERS:] = 0  # the abnormal prior does see the normal view
        mixed, alone = run(head, query, support, mask)[0], run(head, query, first, mask[:, :1])[0]
        assert torch.allclose(mixed, alone, atol=1e-5) == same


def test_normal_views_feed_the_abnormal_prior():
    query, mask = make_features(1, 1), make_masks(1, 1, 1.1)
    support = Features(tuple(torch.cat([torch.randn_like(t), t], 1) for t in query.tokens), GRID)
    masks = torch.cat([mask, torch.zeros_like(mask)], 1)
    abnormal = run(make_head(shot_average="foreground"), query, support, masks)[1]
    assert abnormal.abs().max() < 1e-5  # the second view is the query itself


def test_fusion_norm_makes_the_strength_independent_of_the_number_of_views():
    query, support, mask = make_features(1, 1), make_features(1, 1), make_masks(1, 1, 0.5)
    four = torch.tensor([[4.0]])
    for norm in (True, False):
        head = make_head(fusion_norm=norm)
        assert (
            torch.allclose(
                run(head, query, support, mask)[0], run(head, query, support, mask, four)[0], atol=1e-5
            )
            == norm
        )


# -- training ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gradients_reach_every_trainable_parameter(options):
    net = SofsNet(Tiny(None, side=32, width=16), **{"reduce_dim": 16, "embed_dim": 16} | options).train()
    support, mask = torch.rand(2, 3, 3, 32, 32), (torch.rand(2, 3, 32, 32) < 0.3).to(torch.uint8)
    logits = net.training_logits(torch.rand(2, 2, 3, 32, 32), support, mask)
    assert logits.shape == (2, 2, 8, 8)
    sum(losses(logits, (torch.rand(2, 2, 8, 8) < 0.3)).values()).backward()
    trainable = {k: p for k, p in net.named_parameters() if p.requires_grad}
    assert {k.split(".")[0] for k in trainable} == {"head"}
    silent = [k for k, p in trainable.items() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


def test_training_logits_without_dropout_equal_evaluation():
    net = SofsNet(
        Tiny(None, side=32, width=16), channel_dropout=0.0, dropout=0.0, reduce_dim=16, embed_dim=16
    )
    query, support = torch.rand(2, 3, 3, 32, 32), torch.rand(2, 5, 3, 32, 32)
    mask = (torch.rand(2, 5, 32, 32) < 0.3).to(torch.uint8)
    with torch.no_grad():
        trained = net.train().training_logits(query, support, mask)
        net.eval()
        expected = net.segment(query, net.encode_support(support, mask)).logits
        net.views_per_pass = 2
        pieces = net.segment(query, net.encode_support(support, mask)).logits
    assert torch.allclose(trained, expected, atol=1e-4)
    assert torch.allclose(pieces, expected, atol=1e-4)


def test_dropout_draws_per_support_view():
    head = make_head(channel_dropout=0.5).train()
    features, mask, trace = make_features(1, 1), make_masks(1, 1, 0.9), {}
    many = pick(features, [0] * 6)
    with torch.no_grad():
        head.encode_support(many, mask.expand(1, 6, *SIZE), trace=trace)
    assert len({tuple(row.tolist()) for row in (trace["down_proto"][0] == 0)}) > 1


def test_state_is_frozen():
    state = make_head().encode_support(make_features(1, 2), make_masks(1, 2))
    with pytest.raises(AttributeError):
        state.count = None


def test_autocast_changes_little():
    head = make_head()
    query, support, mask = make_features(1, 2), make_features(1, 2), make_masks(1, 2)
    exact = run(head, query, support, mask)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = run(head, query, support, mask)
    assert torch.equal(mixed[1], exact[1])  # priors are float32 islands
    assert mixed[2].dtype == torch.float32
    assert (mixed[2] - exact[2]).abs().max() < 0.05


def test_embed_dim_must_fit_the_heads():
    with pytest.raises(UserError, match="heads"):
        Head(1, 4, embed_dim=10, heads=4)
